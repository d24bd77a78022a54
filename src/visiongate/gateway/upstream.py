"""Another server that speaks OpenAI's API, behind the same gateway.

Keys, limits, sessions, the strict intake of pictures, logs and audit stay here; the answer comes
from there. Pictures are sent on as PNG at the size that this gateway shows in its receipt.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import httpx
import numpy as np
from PIL import Image as Pillow

from visiongate.engine.prompt import Message
from visiongate.engine.types import (
    FinishReason,
    Image,
    ImageSpan,
    ModelInfo,
    Prompt,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from visiongate.errors import DeadlineExceeded, InvalidRequest, ModelNotLoaded, WorkerDied
from visiongate.gateway.backend import BackendStatus
from visiongate.gateway.settings import Settings

PROBE_SECONDS: Final = 2.0
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 300.0
_BROKEN_OFF: Final = "the upstream server broke the answer off; try again"
_REASONS: Final = frozenset({"stop", "length", "repetition", "deadline"})


@dataclass(frozen=True, slots=True, eq=False)
class RelayedPrompt(Prompt):
    """A conversation that another server will tokenise; `token_ids` stays empty."""

    messages: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningEvent(TokenEvent):
    """Text, or a number of tokens, of the upstream's reasoning."""


class Upstream:
    """Implements `Backend` over HTTP."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.upstream.rstrip("/").removesuffix("/v1")
        key = settings.upstream_key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False)
        self._wanted_model = settings.model
        self._model: ModelInfo | None = None
        self._reason = "the upstream server was not reached yet"
        self._probing: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelInfo | None:
        """The upstream's model, once it was reached."""
        return self._model

    @property
    def model_name(self) -> str:
        """The model's name over there."""
        return self._model.model_id if self._model else self._wanted_model

    async def start(self) -> None:
        """Begins to look for the upstream."""
        self._probing = asyncio.create_task(self._probe_forever())

    async def stop(self) -> None:
        """Closes connections."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        await self._client.aclose()

    def status(self) -> BackendStatus:
        """Ready while the last probe reached the upstream."""
        if not self._reason:
            return BackendStatus("ready")
        state = "loading" if self._model is None else "unhealthy"
        return BackendStatus(cast(Any, state), self._reason, loading_stage="upstream")

    def build(self, messages: Sequence[Message], *, thinks: bool = True) -> Prompt:
        """The conversation as the upstream takes it; whether it thinks is decided over there."""
        images = [part for m in messages for part in m.parts if isinstance(part, Image)]
        return RelayedPrompt(
            token_ids=[],
            positions=np.zeros((3, 0), np.int32),
            rope_delta=0,
            spans=tuple(ImageSpan(0, image) for image in images),
            messages=tuple(_message(message) for message in messages),
        )

    async def generate(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Streams the upstream's answer; leaving closes the connection, which aborts it there."""
        assert isinstance(request.prompt, RelayedPrompt)
        started = time.monotonic()
        body = _body(request.params, request.prompt, self.model_name)
        usage: dict[str, Any] = {}
        reason: FinishReason | None = None
        first: float | None = None
        try:
            async with self._client.stream(
                "POST", f"{self._url}/v1/chat/completions", json=body
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async for chunk in _chunks(response, request.deadline_seconds, started):
                    usage = chunk.get("usage") or usage
                    for choice in chunk.get("choices", ()):
                        delta = choice.get("delta", {})
                        text = delta.get("content") or ""
                        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
                        first = first or (time.monotonic() if text or thought else None)
                        logprobs = _logprobs(choice.get("logprobs"))
                        found = choice.get("finish_reason")
                        reason = (found if found in _REASONS else "stop") if found else reason
                        if thought:
                            yield ReasoningEvent(request.request_id, thought)
                        if text or logprobs:
                            yield TokenEvent(request.request_id, text, 1, logprobs)
        except (httpx.ReadError, httpx.RemoteProtocolError):  # it may be well for the next request
            raise WorkerDied(_BROKEN_OFF) from None
        except httpx.HTTPError:
            self._reason = "the upstream server cannot be reached"
            raise WorkerDied(
                "the upstream server cannot be reached; try again", retry_after_seconds=5.0
            ) from None
        if reason is None:  # llama-cpp-python's server refuses a stream with 200 and nothing in it
            raise WorkerDied(_BROKEN_OFF)
        now = time.monotonic()
        details = usage.get("prompt_tokens_details") or {}
        split = usage.get("completion_tokens_details") or {}
        if split.get("reasoning_tokens"):
            count = int(split["reasoning_tokens"])
            yield ReasoningEvent(request.request_id, num_tokens=count)
        yield TokenEvent(
            request.request_id,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=int(usage.get("prompt_tokens", 0)),
                completion_tokens=int(usage.get("completion_tokens", 0)),
                cached_tokens=int(details.get("cached_tokens") or 0),
                first_token_seconds=(first or now) - started,
                total_seconds=now - started,
            ),
        )

    async def _probe_forever(self) -> None:
        while True:
            await self._probe()
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self) -> None:
        try:
            response = await self._client.get(f"{self._url}/v1/models", timeout=PROBE_SECONDS)
            names = [item["id"] for item in response.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            self._reason = "the upstream server does not answer /v1/models"
            return
        if self._wanted_model and self._wanted_model not in names:
            self._reason = f"the upstream server does not have the model {self._wanted_model}"
            return
        if not names:
            self._reason = "the upstream server has no model loaded"
            return
        name = self._wanted_model or names[0]
        if self._model is None or self._model.model_id != name:
            self._model = ModelInfo(
                model_id=name,
                path="",
                revision="",
                num_parameters=0,
                precision="",
                device="upstream",
                backend="upstream",
                max_context_tokens=0,
                num_threads=0,
            )
        self._reason = ""


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": "".join(str(part) for part in message.parts)}
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        png = io.BytesIO()
        Pillow.fromarray(part.pixels).save(png, "PNG", compress_level=1)
        url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": content}


def _body(params: SamplingParams, prompt: RelayedPrompt, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": list(prompt.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    optional: dict[str, Any] = {
        "top_k": params.top_k or None,
        "min_p": params.min_p or None,
        "presence_penalty": params.presence_penalty or None,
        "frequency_penalty": params.frequency_penalty or None,
        "seed": params.seed,
        "stop": list(params.stop) or None,
    }
    if params.repetition_penalty != 1.0:
        optional["repetition_penalty"] = params.repetition_penalty
    if params.num_logprobs is not None:
        optional |= {"logprobs": True, "top_logprobs": params.num_logprobs}
    if params.grammar is not None and params.grammar.kind == "json_object":
        optional["response_format"] = {"type": "json_object"}
    if params.grammar is not None and params.grammar.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(params.grammar.text)}
        optional["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | {name: value for name, value in optional.items() if value is not None}


async def _chunks(
    response: httpx.Response, deadline_seconds: float | None, started: float
) -> AsyncIterator[dict[str, Any]]:
    lines = response.aiter_lines().__aiter__()
    while True:
        remaining = None
        if deadline_seconds is not None:
            remaining = max(0.0, started + deadline_seconds - time.monotonic())
        try:
            line = await asyncio.wait_for(lines.__anext__(), remaining)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was complete") from None
        if not line.startswith("data:"):
            continue
        text = line[5:].strip()
        if text == "[DONE]":
            return
        with contextlib.suppress(ValueError):
            chunk = json.loads(text)
            if "error" in chunk:
                raise WorkerDied(_BROKEN_OFF)
            yield chunk


def _logprobs(found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not found:
        return ()
    return tuple(
        TokenLogprob(
            -1,
            item["token"],
            item["logprob"],
            tuple((-1, top["token"], top["logprob"]) for top in item.get("top_logprobs", ())),
        )
        for item in found.get("content") or ()
    )


def _refusal(response: httpx.Response) -> Exception:
    """What an upstream's refusal means for our caller; its text is not passed on."""
    status = response.status_code
    if status in {429, 503}:
        after = response.headers.get("retry-after", "")
        seconds = float(after) if after.isdigit() else 2.0
        return ModelNotLoaded("the upstream server is busy", retry_after_seconds=seconds)
    if status in {400, 413, 422}:
        return InvalidRequest("the upstream server does not accept this request")
    return ModelNotLoaded(f"the upstream server refuses with status {status}")
