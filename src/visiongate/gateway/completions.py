"""POST /v1/chat/completions: JSON as OpenAI's clients send it, or a multipart form."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidParameter,
    InvalidRequest,
)
from visiongate.gateway.answer import Answer, Ask, Delta, Ended, Queued, Thought, new_answer_id
from visiongate.gateway.auth import Caller, caller_of
from visiongate.gateway.boxes import draw_boxes
from visiongate.gateway.logs import note_of
from visiongate.gateway.media import Part, read_multipart
from visiongate.gateway.problems import problem_of
from visiongate.gateway.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    Detail,
    Pixels,
    StreamOptions,
    Wire,
    explain,
    parse,
)
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.sessions import Picture, Session, Turn
from visiongate.gateway.stream import DONE, EventStream, frame, until_left
from visiongate.gateway.wire import (
    Sampling,
    check_model,
    logprobs_wire,
    required_text,
    sampling_params,
    turns_of,
    wants_queue_events,
)

router = APIRouter()

MULTIPART_EXTRA: Final = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "One or more pictures.",
        },
        "prompt": {"type": "string", "description": "The question."},
        "model": {"type": "string"},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "max_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
        "session_id": {"type": "string"},
        "detail": {"type": "string", "enum": ["auto", "low", "high"]},
        "deadline_ms": {"type": "integer", "minimum": 1},
    },
}

_FIELDS: Final = frozenset(MULTIPART_EXTRA["properties"]) | {
    "image[]",
    "images",
    "top_p",
    "seed",
    "annotate",
    "min_pixels",
    "max_pixels",
}
_FILES: Final = frozenset({"image", "image[]", "images"})


class _FormSizes(Wire):
    """The fields of a form that apply to each of its pictures."""

    detail: Detail = "auto"
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request to this endpoint."""

    ask: Ask
    turns: list[Turn]
    session: Session | None
    is_streamed: bool
    includes_usage: bool
    has_logprobs: bool
    is_annotated: bool


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    summary="Answer a conversation about pictures",
    tags=["chat"],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}
                },
                "multipart/form-data": {"schema": MULTIPART_EXTRA},
            },
        }
    },
)
async def create_completion(request: Request) -> Response:
    """Takes OpenAI's JSON, or a form with `image` files and a `prompt`."""
    service = service_of(request)
    service.answers.check_room(caller_of(request.scope))
    call = await _read(request, service)
    answer = await service.answers.prepare(call.ask, note_of(request.scope))
    if call.is_streamed:
        frames = _frames(service, call, answer, shows_queue=wants_queue_events(request))
        return EventStream(frames, heartbeat_seconds=service.settings.heartbeat_seconds)
    await until_left(request.receive, answer.complete())
    return JSONResponse(await completion_of(service, call, answer))


async def completion_of(service: Service, call: Call, answer: Answer) -> dict[str, Any]:
    """The response of a finished answer, kept in its session; raises DeadlineExceeded."""
    if any(draft.reason == "deadline" for draft in answer.drafts):
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    await _keep(service, call, answer)
    return _completion(call, answer)


async def read_json_call(
    service: Service, caller: Caller, body: ChatCompletionRequest, *, priority: int = 0
) -> Call:
    """A checked request of the JSON kind; other adapters build on it."""
    check_model(service, body.model)
    settings = service.settings
    num_choices = body.n or 1
    if num_choices > settings.max_choices:
        raise InvalidParameter(
            f"n is {num_choices}; this server allows 1 to {settings.max_choices}", param="n"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", param="top_logprobs")
    session = await service.session(body.session_id, caller)
    turns = await turns_of(service, body.messages)
    wish = Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        stop=body.stop,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        response_format=body.response_format,
        repetition_guard=body.repetition_guard,
    )
    ask = Ask(
        turns=(*(session.turns if session else ()), *turns),
        params=sampling_params(service, wish),
        caller=caller,
        num_choices=num_choices,
        deadline_seconds=body.deadline_ms / 1000 if body.deadline_ms else None,
        priority=priority,
    )
    options = body.stream_options or StreamOptions()
    return Call(
        ask,
        turns,
        session,
        is_streamed=bool(body.stream),
        includes_usage=options.include_usage,
        has_logprobs=bool(body.logprobs),
        is_annotated=body.annotate,
    )


async def _read(request: Request, service: Service) -> Call:
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parts = await read_multipart(
            content_type,
            request.stream(),
            file_parts=_FILES,
            file_bytes=service.settings.image_bytes,
        )
        return await _read_form(request, service, parts)
    if kind in {"application/json", ""}:
        body = parse(ChatCompletionRequest, await request.body())
        return await read_json_call(service, caller_of(request.scope), body)
    raise InvalidRequest("send Content-Type application/json or multipart/form-data")


async def _read_form(request: Request, service: Service, parts: list[Part]) -> Call:
    """The fields of a form; a text part may come without a file name, a file part must not."""
    fields: dict[str, str] = {}
    files: list[Part] = []
    for part in parts:
        if part.name in _FILES:
            files.append(part)
        elif part.name not in _FIELDS:
            name = part.name[:100]
            raise InvalidParameter(f"{name!r} is not a field that this form knows", param=name)
        elif part.name in fields:
            raise InvalidParameter(f"{part.name} is given twice", param=part.name)
        else:
            fields[part.name] = part.text()
    question = required_text(fields.pop("prompt", ""), "prompt")
    note_of(request.scope).image_names += [part.filename or "image" for part in files]
    has_history = bool(fields.get("session_id"))
    if not files and not has_history:
        raise InvalidParameter("image is missing; send the picture as a file part", param="image")
    sizes = {
        name: fields.pop(name) for name in ("detail", "min_pixels", "max_pixels") if name in fields
    }
    try:
        body = ChatCompletionRequest.model_validate(
            {**fields, "messages": [{"role": "user", "content": question}]}
        )
        form = _FormSizes.model_validate(sizes)
    except ValidationError as error:
        raise explain(error) from None
    call = await read_json_call(service, caller_of(request.scope), body)
    for part in files:
        if not part.data:
            raise InvalidImage("the image is empty (0 bytes)")
    pictures = [
        Picture(part.data, part.filename or "", form.detail, form.min_pixels, form.max_pixels)
        for part in files
    ]
    turn = Turn("user", (*pictures, question))
    earlier = call.session.turns if call.session else []
    return replace_turns(call, [*earlier, turn], [turn])


def replace_turns(call: Call, conversation: list[Turn], turns: list[Turn]) -> Call:
    """The call with another conversation."""
    return replace(call, ask=replace(call.ask, turns=tuple(conversation)), turns=turns)


async def _frames(
    service: Service, call: Call, answer: Answer, *, shows_queue: bool
) -> AsyncGenerator[bytes, None]:
    """The chunks of a streamed answer; an error after the start is an event of its own."""
    head = _head(answer, "chat.completion.chunk", call.session)
    for index in range(call.ask.num_choices):
        yield frame(head | {"choices": [_choice(index, {"role": "assistant", "content": ""})]})
    num_ended = 0
    try:
        async with aclosing(answer.events()) as events:
            async for event in events:
                match event:
                    case Queued(position):
                        if shows_queue:
                            yield frame({"position": position}, event="queue")
                    case Thought(index, text):
                        choice = _choice(index, {"reasoning_content": text})
                        yield frame(head | {"choices": [choice]})
                    case Delta(index, text, logprobs):
                        choice = _choice(index, {"content": text})
                        if call.has_logprobs:
                            choice["logprobs"] = logprobs_wire(logprobs)
                        yield frame(head | {"choices": [choice]})
                    case Ended(index, reason):
                        num_ended += 1
                        chunk = head | {"choices": [_choice(index, {}, reason)]}
                        is_last = num_ended == call.ask.num_choices
                        if is_last:
                            await _keep(service, call, answer)
                        if is_last and not call.includes_usage:
                            chunk |= _receipt(call, answer)
                        yield frame(chunk)
    except Exception as error:  # told in the stream, whose status is already out
        service.note_error(error, answer.note)
        yield frame(problem_of(error, "/v1").body("/v1"))
        yield DONE
        return
    if call.includes_usage:
        yield frame(head | {"choices": []} | _receipt(call, answer))
    yield DONE


def _completion(call: Call, answer: Answer) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": draft.text, "refusal": None}
            | ({"reasoning_content": draft.reasoning} if draft.reasoning else {}),
            "logprobs": logprobs_wire(draft.logprobs) if call.has_logprobs else None,
            "finish_reason": draft.reason,
        }
        for index, draft in enumerate(answer.drafts)
    ]
    head = _head(answer, "chat.completion", call.session)
    return head | {"choices": choices} | _receipt(call, answer)


def _head(answer: Answer, kind: str, session: Session | None) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": new_answer_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": answer.model_name,
    }
    if session is not None:
        head["session_id"] = session.id
    return head


def _choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _receipt(call: Call, answer: Answer) -> dict[str, Any]:
    receipt: dict[str, Any] = {
        "usage": answer.usage().model_dump(),
        "vision": answer.vision().model_dump(),
        "boxes": [box.wire() for box in answer.boxes()],
    }
    if call.is_annotated and answer.images:
        receipt["annotated_image"] = annotated(answer)
    return receipt


def annotated(answer: Answer) -> str:
    """The first picture with its boxes drawn, as a data: URL."""
    boxes = [box for box in answer.boxes() if box.image == 0]
    png = draw_boxes(answer.images[0], boxes)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


async def _keep(service: Service, call: Call, answer: Answer) -> None:
    """Remembers the round in the session, if there is one."""
    if call.session is not None:
        reply = Turn("assistant", (answer.text,))
        await service.sessions.append(call.session, [*call.turns, reply])
