"""The one path from a question to its answer; every endpoint goes through here.

    Ask --prepare--> Answer --events--> Queued, Queued, ..., Delta, Delta, ..., Ended

`prepare` does all that can be refused with a status code (limits, decoding, the prompt's length);
`events` waits for a place and generates. Closing `events` aborts the request within one step.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast

from visiongate.engine.image import ImagePlan, decode, plan
from visiongate.engine.pipe import share
from visiongate.engine.prompt import Message
from visiongate.engine.types import (
    FinishReason,
    Image,
    Prompt,
    Request,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from visiongate.errors import (
    ContextOverflow,
    InvalidParameter,
    ModelNotLoaded,
    Unavailable,
    WorkerDied,
)
from visiongate.gateway.admission import Admission
from visiongate.gateway.auth import Caller
from visiongate.gateway.backend import Backend
from visiongate.gateway.boxes import Box, find_boxes
from visiongate.gateway.intake import Intake
from visiongate.gateway.logs import Note
from visiongate.gateway.memory import MemoryGuard
from visiongate.gateway.reasoning import ReasoningSplitter
from visiongate.gateway.schemas import (
    CompletionTokensDetails,
    ImageReceipt,
    PromptTokensDetails,
    Timing,
    UsageReport,
    VisionReceipt,
)
from visiongate.gateway.sessions import Picture, Turn
from visiongate.gateway.upstream import ReasoningEvent, Upstream

DECODED_BYTES: Final = 96 * 1024 * 1024
"""Memory for pictures that were decoded lately; follow-up questions find theirs here."""

SHORT_CHARACTERS: Final = 1024
SHORT_PICTURES: Final = 8
"""A conversation of no more is tokenised where it is: a thread takes longer to wake up. For an
upstream server every picture is written as PNG, which is never short."""

LOADING_RETRY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A question that has been read from the wire and checked.

    Attributes:
        params: as the caller wants them; `num_choices` answers are drawn.
        deadline_seconds: from the request's arrival; None for never.
        priority: 1 for batch work, which lets others go first.
    """

    turns: tuple[Turn, ...]
    params: SamplingParams
    caller: Caller
    num_choices: int = 1
    deadline_seconds: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one of the answers."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """New text of the reasoning before one of the answers."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """One of the answers is complete."""

    index: int
    reason: FinishReason


Event = Queued | Thought | Delta | Ended


@dataclass(slots=True)
class Draft:
    """One answer as it grows.

    Attributes:
        num_reasoning_tokens: those of the steps up to the one that ended the reasoning.
    """

    text: str = ""
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)


class Answers:
    """Prepares answers: decodes pictures, builds prompts, checks limits.

    Attributes:
        intake: what is known of the loaded model; None until a worker is ready.
    """

    def __init__(
        self,
        backend: Backend,
        admission: Admission,
        guard: MemoryGuard,
        *,
        max_images: int,
        deadline_seconds: float | None,
    ) -> None:
        self.backend = backend
        self.admission = admission
        self.intake: Intake | None = None
        self._guard = guard
        self._max_images = max_images
        self._deadline_seconds = deadline_seconds
        self._decoded = _DecodedPictures(DECODED_BYTES)
        self._has_workers = not isinstance(backend, Upstream)
        self._decoders = asyncio.Semaphore(max(1, min(8, os.cpu_count() or 1)))

    def check_ready(self) -> Intake:
        """What is known of the model; raises ModelNotLoaded when no request would be answered."""
        status = self.backend.status()
        if status.state in {"ready", "degraded"} and self.intake is not None:
            return self.intake
        if status.state == "unhealthy":
            reason = status.reason or "no worker is running"
            raise ModelNotLoaded(
                f"the model is not available: {reason}", retry_after_seconds=LOADING_RETRY_SECONDS
            )
        raise ModelNotLoaded(
            "the model is still loading; try again soon", retry_after_seconds=LOADING_RETRY_SECONDS
        )

    def check_room(self, caller: Caller) -> Intake:
        """As `check_ready`; also raises Busy when the queue would refuse the caller."""
        intake = self.check_ready()
        self.admission.check(caller.id)
        return intake

    async def prepare(self, ask: Ask, note: Note, *, is_patient: bool = False) -> Answer:
        """Decodes, builds the prompt, checks that it fits; raises what the caller can mend.

        A patient request does not mind a full queue now.
        """
        intake = self.check_ready() if is_patient else self.check_room(ask.caller)
        deadline = ask.deadline_seconds or self._deadline_seconds
        pictures = [p for turn in ask.turns for p in turn.parts if isinstance(p, Picture)]
        if len(pictures) > self._max_images:
            raise InvalidParameter(
                f"the conversation has {len(pictures)} images; this server takes up to "
                f"{self._max_images}",
                param="image",
            )
        started = time.monotonic()
        images = [await self.decode(picture, intake) for picture in pictures]
        decode_seconds = time.monotonic() - started
        _remember(note, pictures, ask)
        thinks = intake.thinks and ask.params.grammar is None  # a grammar leaves no room for it
        if self._has_workers and _is_short(ask.turns):
            prompt = _build(intake, ask.turns, images, thinks)
        else:
            prompt = await asyncio.to_thread(_build, intake, ask.turns, images, thinks)
        limit = intake.max_context_tokens
        if len(prompt.token_ids) >= limit:
            raise ContextOverflow(
                f"the prompt has {len(prompt.token_ids)} tokens ({prompt.num_image_tokens} of "
                f"them visual); the model takes up to {limit - 1}: send fewer or smaller images"
            )
        answer = Answer(self, ask, prompt, images, note, intake.model_name)
        answer.decode_seconds = decode_seconds
        answer.thinks = thinks
        answer.deadline = None if deadline is None else note.started + deadline
        return answer

    async def decode(self, picture: Picture, intake: Intake) -> Image:
        """The picture as the model sees it, from memory when it was decoded lately."""
        key = (picture.sha256, picture.detail, picture.min_pixels, picture.max_pixels)
        known = self._decoded.get(key)
        if known is not None:
            return known
        async with self._decoders:
            image = await asyncio.to_thread(self._decode, picture, intake)
        self._decoded.put(key, image)
        return image

    def _decode(self, picture: Picture, intake: Intake) -> Image:
        """Decodes while memory for it is reserved; workers on this machine get the same pages."""
        layout = self.plan(picture, intake)
        with self._guard.reserve(layout.original_width * layout.original_height):
            image = decode(
                picture.data,
                limits=intake.image_limits,
                detail=cast(Literal["auto", "low", "high"], picture.detail),
                min_pixels=picture.min_pixels,
                max_pixels=picture.max_pixels,
            )
        return replace(image, pixels=share(image.pixels)) if self._has_workers else image

    def plan(self, picture: Picture, intake: Intake) -> ImagePlan:
        """What would happen to a picture, from its header alone."""
        return plan(
            picture.data,
            limits=intake.image_limits,
            detail=cast(Literal["auto", "low", "high"], picture.detail),
            min_pixels=picture.min_pixels,
            max_pixels=picture.max_pixels,
        )


class Answer:
    """One request on its way, and its receipt afterwards.

    Attributes:
        drafts: the answers so far, complete when `events` ends.
    """

    def __init__(
        self,
        answers: Answers,
        ask: Ask,
        prompt: Prompt,
        images: Sequence[Image],
        note: Note,
        model_name: str,
    ) -> None:
        self.ask = ask
        self.prompt = prompt
        self.images = images
        self.note = note
        self.model_name = model_name
        self.drafts = [Draft() for _ in range(ask.num_choices)]
        self.thinks = False
        self.decode_seconds = 0.0
        self.queue_seconds = 0.0
        self.first_token_seconds: float | None = None
        self.deadline: float | None = None
        self._answers = answers
        self._is_watched = True

    async def events(self) -> AsyncGenerator[Event, None]:
        """Waits, generates, and yields what happens; the drafts fill meanwhile.

        Raises Busy or DeadlineExceeded while waiting, and WorkerDied when a worker ends under it.
        """
        admission = self._answers.admission
        caller = self.ask.caller
        ticket = admission.join(
            caller.id, priority=self.ask.priority, max_running=caller.max_running
        )
        try:
            async for position in admission.positions(ticket, deadline=self.deadline):
                yield Queued(position)
            self.queue_seconds = ticket.wait_seconds
            async with aclosing(self._generate()) as events:
                async for event in events:
                    yield event
        finally:
            admission.leave(ticket)
            self._settle()

    async def complete(self) -> None:
        """Runs to the end without watching, so that the worker need not tell of every token."""
        self._is_watched = False
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass

    @property
    def text(self) -> str:
        """The first answer."""
        return self.drafts[0].text

    @property
    def reasoning(self) -> str:
        """What the model thought before the first answer."""
        return self.drafts[0].reasoning

    @property
    def reason(self) -> str:
        """Why the first answer ended."""
        return self.drafts[0].reason or "abort"

    def usage(self) -> UsageReport:
        """Tokens of all answers; the prompt is counted once."""
        first = self.drafts[0].usage
        prompt_tokens = len(self.prompt.token_ids) or first.prompt_tokens
        completion_tokens = sum(draft.usage.completion_tokens for draft in self.drafts)
        image_tokens = self.prompt.num_image_tokens
        return UsageReport(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                image_tokens=image_tokens, cached_tokens=first.cached_tokens
            ),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(draft.num_reasoning_tokens for draft in self.drafts)
            ),
            total_time_ms=self._total_ms(),
        )

    def vision(self) -> VisionReceipt:
        """What the model saw and how long each stage took."""
        usage = self.drafts[0].usage
        hits = usage.feature_hits
        receipts = [
            image_receipt(image, is_cached=index < len(hits) and hits[index])
            for index, image in enumerate(self.images)
        ]
        timing = Timing(
            queue_ms=_ms(self.queue_seconds + usage.queue_seconds),
            decode_ms=_ms(self.decode_seconds),
            encode_ms=_ms(usage.encode_seconds),
            prefill_ms=_ms(usage.prefill_seconds),
            first_token_ms=_ms(self.first_token_seconds or 0.0),
            total_ms=self._total_ms(),
        )
        return VisionReceipt(images=receipts, timing=timing)

    def boxes(self) -> list[Box]:
        """The boxes of the first answer, in pixels of the upright originals."""
        return find_boxes(self.text, self.images)

    async def _generate(self) -> AsyncGenerator[Event, None]:
        if len(self.drafts) == 1:
            async with aclosing(self._draw(0)) as events:
                async for event in events:
                    yield event
            return
        queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_pump(self._draw(index), queue))
            for index in range(len(self.drafts))
        ]
        try:
            remaining = len(tasks)
            while remaining:
                item = await queue.get()
                if item is None:
                    remaining -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _draw(self, index: int) -> AsyncGenerator[Event, None]:
        """One answer; tried once more when the worker dies before its first token."""
        draft = self.drafts[index]
        for attempt in (1, 2):
            has_begun = False
            try:
                async with aclosing(self._stream(index, self._request(index, attempt))) as events:
                    async for event in events:
                        has_begun = True
                        if isinstance(event, Ended):
                            draft.reason = event.reason
                        yield event
                return
            except WorkerDied:
                if has_begun or attempt == 2:
                    raise
                await self._wait_for_worker()

    async def _stream(
        self, index: int, request: Request
    ) -> AsyncGenerator[Thought | Delta | Ended, None]:
        draft = self.drafts[index]
        splitter = ReasoningSplitter() if self.thinks else None
        waited_seconds = time.monotonic() - self.note.started
        generated = self._answers.backend.generate(request)
        try:
            async for event in generated:
                has_news = bool(event.text or event.logprobs)
                if has_news and self._is_watched and self.first_token_seconds is None:
                    self.first_token_seconds = time.monotonic() - self.note.started
                thought, text, logprobs = "", event.text, event.logprobs
                if isinstance(event, ReasoningEvent):
                    thought, text = event.text, ""
                    draft.num_reasoning_tokens += event.num_tokens
                elif splitter is not None and splitter.is_open:
                    draft.num_reasoning_tokens += event.num_tokens
                    thought, text = splitter.add(text)
                    thought += splitter.finish() if event.is_final else ""
                    logprobs = ()
                elif splitter is not None:
                    _, text = splitter.add(text)
                if thought:
                    draft.reasoning += thought
                    yield Thought(index, thought)
                if text or logprobs:
                    draft.text += text
                    draft.logprobs.extend(logprobs)
                    yield Delta(index, text, logprobs)
                if event.finish_reason is not None:
                    draft.usage = event.usage or draft.usage
                    has_begun = bool(draft.text or draft.reasoning or draft.logprobs)
                    if has_begun and not self._is_watched:  # all its events came at once
                        self._note_first_token(waited_seconds + draft.usage.first_token_seconds)
                    if event.finish_reason == "abort":
                        raise Unavailable("the server is stopping; try again soon")
                    yield Ended(index, event.finish_reason)
        finally:
            close = getattr(generated, "aclose", None)
            if close is not None:
                await close()

    def _note_first_token(self, seconds: float) -> None:
        """Of several answers the earliest counts."""
        if self.first_token_seconds is None:
            self.first_token_seconds = seconds
        else:
            self.first_token_seconds = min(self.first_token_seconds, seconds)

    async def _wait_for_worker(self) -> None:
        """Waits a little for another worker; the second attempt raises when there is none."""
        for _ in range(100):
            if self._answers.backend.status().state in {"ready", "degraded"}:
                return
            await asyncio.sleep(0.1)

    def _request(self, index: int, attempt: int) -> Request:
        params = self.ask.params
        if index and params.seed is not None:
            params = replace(params, seed=params.seed + index)
        remaining = None if self.deadline is None else max(0.001, self.deadline - time.monotonic())
        return Request(
            request_id=f"{self.note.request_id}-{index}-{id(self)}.{attempt}",
            prompt=self.prompt,
            params=params,
            cache_salt=self.ask.caller.salt,
            deadline_seconds=remaining,
            priority=self.ask.priority,
            is_streamed=self._is_watched,
        )

    def _settle(self) -> None:
        """Leaves the totals in the request's note, for the log and the metrics."""
        self.note.prompt_tokens += len(self.prompt.token_ids)
        self.note.completion_tokens += sum(d.usage.completion_tokens for d in self.drafts)
        self.note.answers.append(self)

    def _total_ms(self) -> int:
        return max(1, _ms(time.monotonic() - self.note.started))


class _DecodedPictures:
    """The pictures decoded last, within a bound of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[object, Image] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: object) -> Image | None:
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def put(self, key: object, image: Image) -> None:
        if key in self._images:
            return
        self._images[key] = image
        self._num_bytes += image.pixels.nbytes
        while self._num_bytes > self._max_bytes and len(self._images) > 1:
            _, old = self._images.popitem(last=False)
            self._num_bytes -= old.pixels.nbytes


def image_receipt(image: Image | ImagePlan, *, is_cached: bool) -> ImageReceipt:
    """What the model sees of one picture, for the caller."""
    return ImageReceipt(
        format=image.format,
        original_width=image.original_width,
        original_height=image.original_height,
        orientation=image.orientation,
        width=image.width,
        height=image.height,
        scale=scale_of(image),
        tokens=image.num_tokens,
        cache_hit=is_cached,
        warnings=list(image.warnings),
    )


def scale_of(image: Image | ImagePlan) -> float:
    """Processed over original length."""
    areas = image.width * image.height / (image.original_width * image.original_height)
    return round(math.sqrt(areas), 4)


def new_answer_id(prefix: str) -> str:
    """An id for a response object."""
    return f"{prefix}{hashlib.sha256(os.urandom(16)).hexdigest()[:28]}"


async def _pump(
    events: AsyncGenerator[Event, None], queue: asyncio.Queue[Event | BaseException | None]
) -> None:
    try:
        async for event in events:
            queue.put_nowait(event)
    except Exception as error:  # handed to the reader, which raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
    finally:
        await events.aclose()


def _build(intake: Intake, turns: Sequence[Turn], images: Sequence[Image], thinks: bool) -> Prompt:
    remaining = iter(images)
    messages = [
        Message(
            turn.role,
            tuple(part if isinstance(part, str) else next(remaining) for part in turn.parts),
        )
        for turn in turns
    ]
    return intake.build(messages, thinks=thinks)


def _is_short(turns: Sequence[Turn]) -> bool:
    parts = [part for turn in turns for part in turn.parts]
    texts = [part for part in parts if isinstance(part, str)]
    num_pictures = len(parts) - len(texts)
    return num_pictures <= SHORT_PICTURES and sum(map(len, texts)) <= SHORT_CHARACTERS


def _remember(note: Note, pictures: Sequence[Picture], ask: Ask) -> None:
    note.image_digests += [picture.sha256 for picture in pictures]
    note.image_names = note.image_names or [picture.name or "inline" for picture in pictures]
    params = ask.params
    note.parameters.update(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=params.seed,
        n=ask.num_choices,
        grammar=params.grammar.kind if params.grammar else None,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
