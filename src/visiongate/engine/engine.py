"""The engine: one thread that turns requests into tokens, a step at a time.

    add ---> waiting --admit--> running --------------------------------> events
                                  |  pictures without features: ImageEncoder, a slice a step
                                  |  tokens: Scheduler -> Chunk... -> ModelRunner -> logits
                                  `--- Sampler -> token -> Detokenizer -> text

Read `step` first: it is the table of contents.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visiongate import kernels
from visiongate.engine.budget import CONTEXT_BYTES, gpu_budget
from visiongate.engine.cache import BlockNamer, BlockPool, FeatureCache
from visiongate.engine.drafts import propose
from visiongate.engine.grammar import GrammarCompiler
from visiongate.engine.pace import Pace
from visiongate.engine.runner import (
    AnyModel,
    ImageEncoder,
    Launched,
    ModelRunner,
    Output,
    Runner,
)
from visiongate.engine.sampler import Sampler, token_logprob
from visiongate.engine.scheduler import Chunk, Scheduler
from visiongate.engine.sequence import Sequence
from visiongate.engine.tokenizer import Detokenizer, Tokenizer
from visiongate.engine.types import (
    EngineSettings,
    EngineStats,
    FinishReason,
    Prompt,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from visiongate.errors import ContextOverflow, InvalidSettings, OutOfMemory, VisionGateError
from visiongate.model.inputs import KVPool
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.weights import load_model

logger = logging.getLogger(__name__)

GPU_CACHE_SHARE = 0.8
"""Of a card's memory that is free after loading, the most that the cache takes."""

LEAST_GPU_CACHE_TOKENS = 2048
"""A picture at the default area, its question and an answer."""


class Engine:
    """Owns model, cache, scheduler and samplers; not safe for use from several threads."""

    def __init__(self, model: AnyModel, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        text = model.config.text
        self.settings = settings
        self.tokenizer = tokenizer
        is_fused = not isinstance(model, Qwen3VL)
        if isinstance(model, Qwen3VL):
            dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
        else:
            dtype = model.dtype
        num_blocks = fitting_blocks(model, settings)
        pool = KVPool.allocate(
            num_layers=text.num_hidden_layers,
            num_blocks=num_blocks + is_fused,  # a block for the rows that fill a graph up
            block_size=settings.block_size,
            num_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            dtype=dtype,
            device=settings.device,
        )
        self.blocks = BlockPool(num_blocks, settings.block_size)
        self.max_context = min(text.max_position_embeddings, num_blocks * settings.block_size)
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=settings.max_num_seqs,
            max_prefills=settings.max_prefills,
            chunk_tokens=settings.chunk_tokens,
        )
        self.features = FeatureCache(settings.feature_cache_bytes)
        self.runner = make_runner(model, pool, settings, self.max_context)
        self._drafts = settings.drafts and not self.runner.is_beside
        self._ahead: Launched | None = None
        self._rest: Launched | None = None
        self._unmeasured: deque[Launched] = deque()
        self.encoder = ImageEncoder(model, self.runner.device)
        self.grammars = GrammarCompiler(tokenizer, text.vocab_size, model.config.eos_token_ids)
        self._eos = frozenset(model.config.eos_token_ids)
        self._by_id: dict[str, Sequence] = {}
        self._rejected: list[TokenEvent] = []
        self._pace = Pace(settings, is_beside=self.runner.is_beside)
        self._totals = _Totals()

    @classmethod
    def from_pretrained(cls, path: str | Path, settings: EngineSettings | None = None) -> Engine:
        """Loads a checkpoint; raises InvalidCheckpoint.

        Where native kernels compute, torch is left one thread: its others wait for its next
        operation by spinning, for milliseconds, on the processors that the kernels need.
        """
        settings = settings or EngineSettings()
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
            kernels.set_num_threads(settings.num_threads)
        tokenizer = Tokenizer.from_pretrained(path)
        engine = cls(load(path, settings), tokenizer, settings)
        if settings.device == "cpu" and kernels.backend() != "torch":
            torch.set_num_threads(1)
        return engine

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._by_id or self._rejected)

    def add(self, request: Request) -> None:
        """Takes a request; what is wrong with it comes back as its only event."""
        try:
            sequence = self._sequence(request)
        except VisionGateError as error:
            self._rejected.append(TokenEvent(request.request_id, error=error, usage=Usage()))
            return
        self._by_id[request.request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Ends a request without an event; its blocks are free at once."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is not None:
            self._forget(sequence)

    def step(self) -> list[TokenEvent]:
        """Does one piece of work for everyone and returns the news."""
        events, self._rejected = self._rejected, []
        events += self._expire()
        events += self._collect_rest()
        launched, self._ahead = self._ahead, None
        if launched is None:
            launched = self._launch(events)
        if launched is not None and not self.runner.is_beside:
            events += self._collect(launched)
        events += self._encode(launched.all_chunks if launched else [])
        if launched is not None and self.runner.is_beside:
            self._ahead = self._follow(launched)
            events += self._collect(launched)
            self._rest = launched.rest
        self._totals.steps += 1
        return events

    def stats(self) -> EngineStats:
        """The present state and the totals since the start."""
        totals, encoder = self._totals, self.encoder
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            steps=totals.steps,
            num_blocks=self.blocks.num_blocks,
            num_free_blocks=self.blocks.num_free,
            block_size=self.blocks.block_size,
            prompt_tokens=totals.prompt_tokens,
            image_tokens=totals.image_tokens,
            completion_tokens=totals.completion_tokens,
            cache_hit_tokens=totals.cache_hit_tokens,
            feature_hits=totals.feature_hits,
            feature_misses=totals.feature_misses,
            preemptions=self.scheduler.num_preemptions,
            encode_seconds=encoder.seconds,
            encoded_patches=encoder.patches_encoded,
            prefill_seconds=totals.prefill_seconds,
            prefilled_tokens=totals.prefilled_tokens,
            decode_seconds=totals.decode_seconds,
            decoded_tokens=totals.decoded_tokens,
        )

    def warm_up(self) -> None:
        """Answers a tiny text prompt, so that the first request meets warm code."""
        self.runner.warm_up()
        if self.runner.device.type == "cuda":  # so that no picture waits for memory
            with contextlib.suppress(torch.OutOfMemoryError):
                size = self.settings.feature_cache_bytes
                torch.empty(size, dtype=torch.uint8, device=self.runner.device)
        tokens = self.tokenizer.encode("Hello")
        positions = np.broadcast_to(np.arange(len(tokens), dtype=np.int32), (3, len(tokens)))
        prompt = Prompt(tokens, positions, rope_delta=0)
        params = SamplingParams(max_tokens=2, ignore_eos=True)
        self.add(Request("warm-up", prompt, params, cache_salt=b"warm-up"))
        while self.has_work:
            self.step()
        self._totals = _Totals()
        self._pace.forget()

    def device_is_sound(self) -> bool:
        """Whether the device still computes: a small product with a known result."""
        try:
            ones = torch.ones(16, 16, device=self.runner.device)
            return bool((ones @ ones).sum().item() == 16**3)
        except RuntimeError:
            logger.exception("the device check raised")
            return False

    def clear_caches(self) -> None:
        """Forgets features and prefixes that nobody uses now."""
        self.features.clear()
        self.blocks.clear()
        if self.runner.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- requests

    def _sequence(self, request: Request) -> Sequence:
        prompt, params = request.prompt, request.params
        num_prompt = len(prompt.token_ids)
        if num_prompt + 1 > self.max_context:
            raise ContextOverflow(
                f"the prompt has {num_prompt} tokens ({prompt.num_image_tokens} of them visual); "
                f"this server's context is {self.max_context}: send fewer or smaller pictures"
            )
        matcher = self.grammars.compile(params.grammar) if params.grammar else None
        sequence = Sequence(
            request=request,
            sampler=Sampler(params, prompt.token_ids, matcher),
            detokenizer=Detokenizer(self.tokenizer, params.stop),
            namer=BlockNamer(prompt, request.cache_salt, self.blocks.block_size),
            stop_at=min(num_prompt + params.max_tokens, self.max_context),
        )
        if matcher is not None:
            self._append(sequence, matcher.forced())
            # What the grammar forces before the first draw is part of the first computation.
            sequence.num_prefill_tokens = len(sequence.token_ids)
        return sequence

    def _expire(self) -> list[TokenEvent]:
        now = time.monotonic()
        return [
            self._finish(sequence, "deadline")
            for sequence in list(self._by_id.values())
            if sequence.deadline is not None and now > sequence.deadline
        ]

    def _forget(self, sequence: Sequence) -> None:
        self.encoder.forget(sequence)
        self.scheduler.remove(sequence)

    # ---- pictures

    def _request_features(self) -> None:
        """Finds or orders the features that running sequences lack."""
        for sequence in self.scheduler.running:
            if sequence.admitted_at is None:
                sequence.admitted_at = time.monotonic()
                self._note_cached(sequence)
            for index in sequence.needed_images():
                salt = sequence.request.cache_salt
                digest = sequence.spans[index].image.digest
                found = self.features.get(salt, digest)
                if found is not None:
                    sequence.features[index] = found
                    sequence.feature_hits[index] = True
                    self._totals.feature_hits += 1
                else:
                    self.encoder.want((salt, digest), sequence, index)

    def _note_cached(self, sequence: Sequence) -> None:
        self._totals.prompt_tokens += sequence.num_prompt_tokens
        self._totals.image_tokens += sequence.request.prompt.num_image_tokens
        self._totals.cache_hit_tokens += sequence.num_cached_tokens
        for index, span in enumerate(sequence.spans):
            sequence.feature_hits[index] = span.end <= sequence.num_computed_tokens

    def _encode(self, chunks: Seq[Chunk]) -> list[TokenEvent]:
        """Works on the next picture in what the step's chunks leave of its time.

        A failure ends only the requests that need this picture.
        """
        job = self.encoder.next_job()
        if job is None or self.scheduler.is_held(job.first, chunks):
            return []
        salt, before = job.key[0], job.seconds
        seconds = self._pace.picture_seconds(
            self.scheduler.load,
            is_one_key=all(sequence.salt == salt for sequence in self._by_id.values()),
            num_prompt_tokens=_num_prompt_tokens(chunks),
        )
        if seconds is None:
            return []
        try:
            features = self.encoder.advance(job, seconds)
        except Exception as error:
            self.encoder.jobs.pop(job.key, None)
            return self._fail([sequence for sequence, _ in job.waiting], error)
        self.scheduler.shares.charge(job.seconds - before, {salt: 1})
        if features is not None:
            self.features.put(*job.key, features)
            for sequence, index in job.waiting:
                sequence.features[index] = features
                sequence.encode_seconds += job.seconds
            self._totals.feature_misses += 1
        return []

    # ---- tokens

    def _launch(self, events: list[TokenEvent]) -> Launched | None:
        """Gives the next step to the device; adds an event for each request that cannot go on."""
        budget = self._pace.prompt_tokens(self.scheduler.load)
        chunks = self.scheduler.schedule(self.settings.max_step_tokens, budget)
        self._request_features()
        if not chunks:
            return None
        try:
            return self.runner.launch(chunks)
        except Exception as error:
            events += self._fail([chunk.sequence for chunk in chunks], error)
            return None

    def _follow(self, launched: Launched) -> Launched | None:
        """Gives the step after `launched` to the device before its tokens are known here.

        Only while nobody waits for anything else. Where a token turns out to be an answer's last,
        that answer's row of the next step was computed in vain and is dropped.
        """
        if not launched.can_follow or self.scheduler.has_other_work:
            return None
        chunks = []
        for chunk in launched.chunks:
            sequence, place = chunk.sequence, chunk.start + 1
            if self._is_gone(sequence) or place + 1 >= sequence.stop_at:
                continue
            if not self.scheduler.reserve(sequence, place + 1):
                return None
            chunks.append(Chunk(sequence, place, 1))
        return self.runner.launch(chunks, after=launched) if chunks else None

    def _collect_rest(self) -> list[TokenEvent]:
        """What the last step left under way while its streams' tokens went out."""
        rest, self._rest = self._rest, None
        events = self._collect(rest) if rest is not None else []
        while self._unmeasured and self._unmeasured[0].is_done:
            launched = self._unmeasured.popleft()
            launched.wait()
            self._measure(launched.chunks, launched.seconds)
        return events

    def _collect(self, launched: Launched) -> list[TokenEvent]:
        """Waits for a step and turns what it gave into news."""
        chunks, outputs = launched.chunks, launched.outputs
        if launched.draws:
            try:
                outputs = launched.wait()
            except Exception as error:
                return self._fail([chunk.sequence for chunk in chunks], error)
            self._measure(chunks, launched.seconds)
        else:
            self._unmeasured.append(launched)
        events = []
        for chunk, output in zip(chunks, outputs, strict=True):
            if self._is_gone(chunk.sequence):
                continue
            try:
                event = self._commit(chunk, output)
            except Exception as error:  # one answer's trouble; the others go on
                events += self._fail([chunk.sequence], error)
                continue
            if event is not None:
                events.append(event)
        return events

    def _is_gone(self, sequence: Sequence) -> bool:
        """Whether a sequence ended while a step for it was under way."""
        return self._by_id.get(sequence.request.request_id) is not sequence

    def _measure(self, chunks: list[Chunk], seconds: float) -> None:
        """Learns how long a prompt token takes, by which slices are cut, and who had the time."""
        parts: Counter[bytes] = Counter()
        for chunk in chunks:
            parts[chunk.sequence.salt] += chunk.num_tokens
        self.scheduler.shares.charge(seconds, parts)
        num_prompt_tokens = _num_prompt_tokens(chunks)
        if self._pace.note(seconds, num_prompt_tokens):
            self._totals.prefill_seconds += seconds
            self._totals.prefilled_tokens += num_prompt_tokens
        else:
            self._totals.decode_seconds += seconds

    def _commit(self, chunk: Chunk, output: Output) -> TokenEvent | None:
        """Records what was computed and, where the chunk reached the end, draws."""
        sequence = chunk.sequence
        if output is None:
            self.scheduler.commit(sequence, chunk.start + chunk.num_tokens)
            return None
        known = len(sequence.token_ids)
        logprobs, accepted = self._draw(sequence, output)
        self.scheduler.commit(sequence, known + accepted)
        if sequence.first_token_at is None:
            sequence.first_token_at = time.monotonic()
        return self._event(sequence, logprobs)

    def _draw(self, sequence: Sequence, output: Tensor | int) -> tuple[list[TokenLogprob], int]:
        """Draws a token, unless the device did, and one for each guess that the last one confirmed.

        Returns the log probabilities asked for, and how many guesses were right: their keys and
        values are in the cache already.
        """
        draft, sequence.draft = sequence.draft, []
        logprobs: list[TokenLogprob] = []
        accepted = 0
        for row in range(len(draft) + 1):
            if isinstance(output, int):
                token = output
            else:
                token = sequence.sampler.draw(output[row])
                num_top = sequence.request.params.num_logprobs
                if num_top is not None:
                    logprobs.append(token_logprob(output[row], token, num_top, self.tokenizer))
            self._append(sequence, [token])
            if self._is_at_end(sequence):
                break
            matcher = sequence.sampler.matcher
            if matcher is not None:
                matcher.accept(token)
                forced = matcher.forced()
                self._append(sequence, forced)
                if forced or matcher.is_complete:
                    break
            if row == len(draft) or draft[row] != token:
                break
            accepted += 1
        self._propose(sequence, len(draft), accepted)
        return logprobs, accepted

    def _append(self, sequence: Sequence, tokens: list[int]) -> None:
        for token in tokens[: max(0, sequence.stop_at - len(sequence.token_ids))]:
            sequence.token_ids.append(token)
            sequence.sampler.commit(token)
            if sequence.request.params.guard:
                sequence.guard.add(token)

    def _is_at_end(self, sequence: Sequence) -> bool:
        ended = sequence.token_ids[-1] in self._eos and not sequence.request.params.ignore_eos
        return ended or len(sequence.token_ids) >= sequence.stop_at

    def _propose(self, sequence: Sequence, num_guessed: int, num_right: int) -> None:
        """Prepares guesses for the next step, unless guessing did not pay lately."""
        if num_guessed and num_right == 0:
            sequence.draft_pause = min(2 * sequence.draft_pause + 2, 32)
        elif num_right:
            sequence.draft_pause = 0
        if sequence.draft_pause and not num_guessed:
            sequence.draft_pause -= 1
        if self._drafts and not sequence.draft_pause:
            room = sequence.stop_at - len(sequence.token_ids) - 1
            sequence.draft = propose(sequence.token_ids)[:room]

    def _event(self, sequence: Sequence, logprobs: list[TokenLogprob]) -> TokenEvent:
        """The news of a sequence after a draw."""
        reason = self._finish_reason(sequence)
        is_whole = reason in ("stop", "length")
        num_hidden = 0 if is_whole else sequence.guard.num_repeated
        text = self._show(sequence, sequence.num_generated - num_hidden)
        num_tokens = sequence.num_generated - sequence.num_reported
        sequence.num_reported = sequence.num_generated
        self._totals.completion_tokens += num_tokens
        self._totals.decoded_tokens += num_tokens
        if sequence.detokenizer.is_stopped:
            reason = "stop"
        if reason is not None:
            return self._finish(sequence, reason, text, num_tokens, logprobs)
        return TokenEvent(sequence.request.request_id, text, num_tokens, tuple(logprobs))

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        params = sequence.request.params
        if sequence.token_ids[-1] in self._eos and not params.ignore_eos:
            return "stop"
        matcher = sequence.sampler.matcher
        if matcher is not None and matcher.is_complete:
            return "stop"
        if params.guard and sequence.guard.is_looping:
            return "repetition"
        if len(sequence.token_ids) >= sequence.stop_at:
            return "length"
        return None

    def _show(self, sequence: Sequence, num_shown: int) -> str:
        """Gives the next tokens of the answer to the detokenizer."""
        if num_shown <= sequence.num_shown:
            return ""
        begin = sequence.num_prompt_tokens
        tokens = sequence.token_ids[begin + sequence.num_shown : begin + num_shown]
        sequence.num_shown = num_shown
        return sequence.detokenizer.add(tokens)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        text: str = "",
        num_tokens: int = 0,
        logprobs: Seq[TokenLogprob] = (),
    ) -> TokenEvent:
        self._by_id.pop(sequence.request.request_id, None)
        self._forget(sequence)
        return TokenEvent(
            sequence.request.request_id,
            text + sequence.detokenizer.finish(),
            num_tokens,
            tuple(logprobs),
            finish_reason=reason,
            usage=_usage(sequence),
        )

    def _fail(self, sequences: list[Sequence], error: Exception) -> list[TokenEvent]:
        """Ends some requests with an error; all others go on."""
        logger.error("a step failed", exc_info=error)
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():
            self.clear_caches()
            error = OutOfMemory(
                "memory is too short for this request now; send a smaller picture, "
                "or give the server more memory"
            )
        elif not isinstance(error, VisionGateError):
            error = VisionGateError("the engine failed on this request; see error.log")
        events = []
        for sequence in sequences:
            self._by_id.pop(sequence.request.request_id, None)
            self._forget(sequence)
            events.append(
                TokenEvent(sequence.request.request_id, error=error, usage=_usage(sequence))
            )
        return events


@dataclass(slots=True)
class _Totals:
    steps: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cache_hit_tokens: int = 0
    feature_hits: int = 0
    feature_misses: int = 0
    prefill_seconds: float = 0.0
    prefilled_tokens: int = 0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0


def load(path: str | Path, settings: EngineSettings) -> AnyModel:
    """A checkpoint as the settings' device computes it; raises InvalidCheckpoint."""
    precision = settings.precision
    if settings.device == "cpu":
        if precision == "float8":
            raise InvalidSettings("precision=float8 is for GPUs; on the CPU int8 is as small")
        return load_model(path, precision)
    from visiongate.model.upload import load_on_device

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    storage = precision if precision == "int8" or precision == "float8" else None
    if storage is not None:
        major, minor = torch.cuda.get_device_capability(settings.device)
        if major < 8:
            raise InvalidSettings(
                f"precision={precision} needs a card of compute capability 8.0 or newer; "
                f"{settings.device} has {major}.{minor}"
            )
    torch.cuda.set_device(settings.device)  # kernels are launched on the thread's own card
    limit_device_memory(settings)
    try:
        return load_on_device(path, dtype, torch.device(settings.device), storage)
    except torch.OutOfMemoryError:
        raise too_small_a_card(settings) from None


def limit_device_memory(settings: EngineSettings) -> None:
    """Holds this process to `device_memory_bytes` of its card, the driver's share included."""
    if settings.device_memory_bytes:
        _, total = torch.cuda.mem_get_info(settings.device)
        room = max(0, settings.device_memory_bytes - CONTEXT_BYTES)
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), settings.device)


def too_small_a_card(settings: EngineSettings) -> InvalidSettings:
    """What a model that does not fit is answered with."""
    limit = settings.device_memory_bytes or torch.cuda.mem_get_info(settings.device)[1]
    return InvalidSettings(
        f"{limit / 1e9:.1f} GB of {settings.device} are too few for this model in "
        f"{settings.precision}: `visiongate doctor` says what it needs (--precision int8, fewer "
        "MAX_CONCURRENCY, or VISIONGATE_GPU_MEMORY_LIMIT)"
    )


def make_runner(
    model: AnyModel, pool: KVPool, settings: EngineSettings, max_context: int
) -> Runner:
    """The runner for a model's kind."""
    if isinstance(model, Qwen3VL):
        return ModelRunner(model, pool)
    from visiongate.engine.cuda_runner import CudaRunner  # imports the GPU's compiler

    return CudaRunner(
        model,
        pool,
        max_rows=settings.max_num_seqs,
        max_context=max_context,
    )


def fitting_blocks(model: AnyModel, settings: EngineSettings) -> int:
    """The wanted number of cache blocks, on a GPU no more than its memory holds beside the work.

    Raises InvalidSettings where not even one short answer fits.
    """
    wanted = settings.cache_tokens // settings.block_size
    if settings.device == "cpu":
        return wanted
    need = gpu_budget(
        model.config,
        settings.precision,
        cache_tokens=settings.cache_tokens,
        max_rows=settings.max_num_seqs,
        feature_bytes=settings.feature_cache_bytes,
    )
    free = free_device_bytes(settings)
    room = min(free - need.work_bytes, int(free * GPU_CACHE_SHARE))
    fitting = room // (need.bytes_per_token * settings.block_size)
    if fitting < min(wanted, LEAST_GPU_CACHE_TOKENS // settings.block_size):
        raise too_small_a_card(settings)
    return min(wanted, fitting)


def free_device_bytes(settings: EngineSettings) -> int:
    """What this process may still take of its card."""
    free, _ = torch.cuda.mem_get_info(settings.device)
    if settings.device_memory_bytes:
        taken = torch.cuda.memory_reserved(settings.device) + CONTEXT_BYTES
        free = min(free, settings.device_memory_bytes - taken)
    return max(0, free)


def _num_prompt_tokens(chunks: Seq[Chunk]) -> int:
    return sum(chunk.num_tokens for chunk in chunks if chunk.is_prompt)


def _usage(sequence: Sequence) -> Usage:
    now = time.monotonic()
    admitted = sequence.admitted_at or now
    first = sequence.first_token_at or now
    return Usage(
        prompt_tokens=sequence.num_prompt_tokens,
        completion_tokens=sequence.num_generated,
        image_tokens=sequence.request.prompt.num_image_tokens,
        cached_tokens=sequence.num_cached_tokens,
        queue_seconds=admitted - sequence.arrival,
        encode_seconds=sequence.encode_seconds,
        prefill_seconds=max(0.0, first - admitted - sequence.encode_seconds),
        first_token_seconds=first - sequence.arrival,
        total_seconds=now - sequence.arrival,
        feature_hits=tuple(sequence.feature_hits),
    )
