"""POST /v1/messages: Anthropic's shape, as a thin adapter over the same path."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import DeadlineExceeded
from visiongate.gateway.answer import Answer, Ask, Delta, Thought, new_answer_id
from visiongate.gateway.auth import caller_of
from visiongate.gateway.logs import note_of
from visiongate.gateway.problems import problem_of
from visiongate.gateway.schemas import ChatMessage, Probability, Wire, parse
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.sessions import Turn
from visiongate.gateway.stream import EventStream, frame, until_left
from visiongate.gateway.wire import Sampling, check_model, sampling_params, turns_of

router = APIRouter(tags=["chat"])

_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "deadline": "max_tokens"}


class TextBlock(Wire):
    """A piece of text."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: list[Any] | None = None


class Base64Source(Wire):
    """A picture's bytes as base64; its type is read from the bytes."""

    type: Literal["base64"]
    media_type: str = ""
    data: str = Field(min_length=1)


class UrlSource(Wire):
    """A picture of an allowed host."""

    type: Literal["url"]
    url: str = Field(min_length=1)


class ImageBlock(Wire):
    """A picture."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    cache_control: dict[str, Any] | None = None


class MessageParam(Wire):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class MessagesRequest(Wire):
    """The body of POST /v1/messages."""

    model: str = ""
    messages: list[MessageParam] = Field(min_length=1, max_length=1000)
    max_tokens: int = Field(ge=1)
    system: str | list[TextBlock] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Probability | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    tools: list[Any] | None = Field(None, max_length=0)


@router.post(
    "/v1/messages",
    summary="Answer in the shape of Anthropic's Messages API",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/MessagesRequest"}}
            },
        }
    },
)
async def create_message(request: Request) -> Response:
    """Text and image blocks, several turns, streamed or whole."""
    service = service_of(request)
    caller = caller_of(request.scope)
    service.answers.check_room(caller)
    body = parse(MessagesRequest, await request.body())
    check_model(service, body.model)
    turns = await turns_of(service, [_message(message) for message in body.messages])
    system = _system(body)
    wish = Sampling(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
    )
    ask = Ask((*system, *turns), sampling_params(service, wish), caller)
    answer = await service.answers.prepare(ask, note_of(request.scope))
    if body.stream:
        frames = _frames(service, answer)
        return EventStream(frames, heartbeat_seconds=service.settings.heartbeat_seconds)
    await until_left(request.receive, answer.complete())
    if answer.reason == "deadline":
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    message = _head(answer)
    return JSONResponse(
        message
        | {
            "content": [*_thinking(answer), {"type": "text", "text": answer.text}],
            "stop_reason": _reason(answer),
            "usage": _usage(answer),
            "vision": answer.vision().model_dump(),
            "boxes": [box.wire() for box in answer.boxes()],
        }
    )


def _thinking(answer: Answer) -> list[dict[str, Any]]:
    if not answer.reasoning:
        return []
    return [{"type": "thinking", "thinking": answer.reasoning, "signature": ""}]


def _system(body: MessagesRequest) -> list[Turn]:
    if not body.system:
        return []
    if isinstance(body.system, str):
        return [Turn("system", (body.system,))]
    return [Turn("system", ("\n".join(block.text for block in body.system),))]


def _message(message: MessageParam) -> ChatMessage:
    if isinstance(message.content, str):
        return ChatMessage(role=message.role, content=message.content)
    parts: list[dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
            continue
        source = block.source
        url = source.url if isinstance(source, UrlSource) else f"data:;base64,{source.data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return ChatMessage.model_validate({"role": message.role, "content": parts})


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": new_answer_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": answer.model_name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(answer.prompt.token_ids), "output_tokens": 0},
    }


def _usage(answer: Answer) -> dict[str, int]:
    usage = answer.usage()
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.prompt_tokens_details.cached_tokens,
    }


def _reason(answer: Answer) -> str:
    return _REASONS.get(answer.reason, "end_turn")


async def _frames(service: Service, answer: Answer) -> AsyncGenerator[bytes, None]:
    """The typed events of the Messages API."""

    def event(kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, **fields}, event=kind)

    yield event("message_start", message=_head(answer))
    text_block = {"type": "text", "text": ""}
    index, has_begun = 0, False  # the first piece tells which block begins
    try:
        async with aclosing(answer.events()) as events:
            async for found in events:
                if isinstance(found, Thought):
                    if not has_begun:
                        has_begun = True
                        block = {"type": "thinking", "thinking": "", "signature": ""}
                        yield event("content_block_start", index=0, content_block=block)
                    delta = {"type": "thinking_delta", "thinking": found.text}
                    yield event("content_block_delta", index=0, delta=delta)
                elif isinstance(found, Delta) and found.text:
                    if answer.reasoning and not index:
                        index = 1
                        yield event("content_block_stop", index=0)
                        yield event("content_block_start", index=1, content_block=text_block)
                    elif not has_begun:
                        has_begun = True
                        yield event("content_block_start", index=0, content_block=text_block)
                    delta = {"type": "text_delta", "text": found.text}
                    yield event("content_block_delta", index=index, delta=delta)
    except Exception as error:  # told in the stream, whose status is already out
        service.note_error(error, answer.note)
        body = problem_of(error, "/v1/messages").body("/v1/messages", answer.note.request_id)
        yield frame(body, event="error")
        return
    if not has_begun:
        yield event("content_block_start", index=0, content_block=text_block)
    yield event("content_block_stop", index=index)
    ending = {"stop_reason": _reason(answer), "stop_sequence": None}
    yield event("message_delta", delta=ending, usage=_usage(answer))
    yield event("message_stop")
