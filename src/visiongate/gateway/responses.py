"""POST /v1/responses: OpenAI's newer shape, as a thin adapter over the same path."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import DeadlineExceeded, InvalidParameter
from visiongate.gateway.answer import Answer, Ask, Delta, Thought
from visiongate.gateway.auth import caller_of
from visiongate.gateway.logs import note_of
from visiongate.gateway.problems import problem_of
from visiongate.gateway.schemas import (
    ChatMessage,
    Detail,
    JsonSchema,
    Probability,
    ResponseFormat,
    Temperature,
    Wire,
    parse,
)
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.sessions import Session, Turn
from visiongate.gateway.stream import EventStream, frame, until_left
from visiongate.gateway.wire import Sampling, check_model, sampling_params, turns_of

router = APIRouter(tags=["chat"])


class InputText(Wire):
    """A piece of text; `output_text` in the assistant's earlier turns."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputImage(Wire):
    """A picture as a data: URL, or an http(s) URL of an allowed host."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: Detail = "auto"


class InputMessage(Wire):
    """One turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[InputText | InputImage, Field(discriminator="type")]]
    id: str | None = None
    status: str | None = None


class TextFormat(Wire):
    """Plain text, a JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Wire):
    """How the text is shaped."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseRequest(Wire):
    """The body of POST /v1/responses."""

    model: str = ""
    input: str | list[InputMessage]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: Temperature | None = None
    top_p: Probability | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = Field(None, max_length=100)
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    include: list[str] | None = Field(None, max_length=0)


@router.post(
    "/v1/responses",
    summary="Answer in the shape of OpenAI's Responses API",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ResponseRequest"}}
            },
        }
    },
)
async def create_response(request: Request) -> Response:
    """`previous_response_id` continues a conversation that was kept (`store`, on by default)."""
    service = service_of(request)
    caller = caller_of(request.scope)
    service.answers.check_room(caller)
    body = parse(ResponseRequest, await request.body())
    check_model(service, body.model)
    session, turns, ask = await _ask(request, service, body)
    answer = await service.answers.prepare(ask, note_of(request.scope))
    if body.stream:
        frames = _frames(service, body, session, turns, answer)
        return EventStream(frames, heartbeat_seconds=service.settings.heartbeat_seconds)
    await until_left(request.receive, answer.complete())
    if answer.reason == "deadline":
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    await _keep(service, body, session, turns, answer)
    return JSONResponse(_response(body, session, answer))


async def _ask(
    request: Request, service: Service, body: ResponseRequest
) -> tuple[Session, list[Turn], Ask]:
    caller = caller_of(request.scope)
    earlier = (body.previous_response_id or "").replace("resp_", "sess_", 1)
    session = await service.session(earlier, caller)
    assert session is not None
    turns = await turns_of(service, _messages(body))
    system = [Turn("system", (body.instructions,))] if body.instructions else []
    wish = Sampling(
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=_format(body),
    )
    ask = Ask((*system, *session.turns, *turns), sampling_params(service, wish), caller)
    if body.previous_response_id:  # each response is its own point to continue from
        fork = await service.sessions.open(caller.id)
        fork.turns = list(session.turns)
        session = fork
    return session, turns, ask


def _messages(body: ResponseRequest) -> list[ChatMessage]:
    if isinstance(body.input, str):
        return [ChatMessage(role="user", content=body.input)]
    if not body.input:
        raise InvalidParameter("input is empty", param="input")
    messages: list[ChatMessage] = []
    for message in body.input:
        content: str | list[dict[str, Any]]
        if isinstance(message.content, str):
            content = message.content
        else:
            content = [_part(part) for part in message.content]
            if message.role == "assistant":
                content = "".join(part.get("text", "") for part in content)
        messages.append(ChatMessage.model_validate({"role": message.role, "content": content}))
    return messages


def _part(part: InputText | InputImage) -> dict[str, Any]:
    if isinstance(part, InputText):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}


def _format(body: ResponseRequest) -> ResponseFormat | None:
    wish = body.text.format if body.text else None
    if wish is None:
        return None
    schema = None
    if wish.schema_ is not None:
        schema = JsonSchema(name=wish.name, schema=wish.schema_)
    return ResponseFormat(type=wish.type, json_schema=schema)


def _response(
    body: ResponseRequest, session: Session, answer: Answer, *, status: str = ""
) -> dict[str, Any]:
    is_cut = answer.reason in {"length", "deadline"}
    is_running = status == "in_progress"
    text = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    message = {
        "id": f"msg_{session.id[5:]}",
        "type": "message",
        "role": "assistant",
        "status": "incomplete" if is_cut else "completed",
        "content": [text],
    }
    usage = answer.usage()
    return {
        "id": session.id.replace("sess_", "resp_", 1),
        "object": "response",
        "created_at": int(time.time()),
        "status": status or ("incomplete" if is_cut else "completed"),
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"}
        if is_cut and not is_running
        else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": answer.model_name,
        "output": [] if is_running else [*_reasoning_items(session, answer), message],
        "parallel_tool_calls": False,
        "previous_response_id": body.previous_response_id,
        "temperature": answer.ask.params.temperature,
        "top_p": answer.ask.params.top_p,
        "tool_choice": "none",
        "tools": [],
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "usage": None
        if is_running
        else {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "image_tokens": usage.prompt_tokens_details.image_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": usage.completion_tokens_details.model_dump(),
            "total_tokens": usage.total_tokens,
        },
        "vision": None if is_running else answer.vision().model_dump(),
        "boxes": [box.wire() for box in answer.boxes()],
    }


def _reasoning_items(session: Session, answer: Answer) -> list[dict[str, Any]]:
    """What the model thought, as an item before its message."""
    if not answer.reasoning:
        return []
    text = {"type": "reasoning_text", "text": answer.reasoning}
    return [
        {
            "id": f"rs_{session.id[5:]}",
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [text],
        }
    ]


async def _frames(
    service: Service,
    body: ResponseRequest,
    session: Session,
    turns: list[Turn],
    answer: Answer,
) -> AsyncGenerator[bytes, None]:
    """The typed events of the Responses API, numbered."""
    numbers = itertools.count()
    item_id, thought_id = f"msg_{session.id[5:]}", f"rs_{session.id[5:]}"
    place: dict[str, Any] = {"item_id": item_id, "output_index": 0, "content_index": 0}
    thought_place = {"item_id": thought_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, "sequence_number": next(numbers), **fields}, event=kind)

    running = _response(body, session, answer, status="in_progress")
    yield event("response.created", response=running)
    yield event("response.in_progress", response=running)
    item = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress"}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}

    def begin_message() -> list[bytes]:
        added = event(
            "response.output_item.added",
            output_index=place["output_index"],
            item=item | {"content": []},
        )
        return [added, event("response.content_part.added", **place, part=part)]

    def end_reasoning() -> list[bytes]:
        text = answer.reasoning
        found = _reasoning_items(session, answer)[0]
        place["output_index"] = 1
        return [
            event("response.reasoning_text.done", **thought_place, text=text),
            event("response.output_item.done", output_index=0, item=found),
        ]

    is_thinking = has_begun = False
    try:
        async with aclosing(answer.events()) as events:
            async for found in events:
                if isinstance(found, Thought):
                    if not is_thinking:
                        is_thinking = True
                        thought = {"id": thought_id, "type": "reasoning", "summary": []}
                        yield event("response.output_item.added", output_index=0, item=thought)
                    yield event("response.reasoning_text.delta", **thought_place, delta=found.text)
                elif isinstance(found, Delta) and found.text:
                    if not has_begun:
                        has_begun = True
                        for line in [*(end_reasoning() if is_thinking else ()), *begin_message()]:
                            yield line
                    delta = {"delta": found.text, "logprobs": []}
                    yield event("response.output_text.delta", **place, **delta)
    except Exception as error:  # told in the stream, whose status is already out
        service.note_error(error, answer.note)
        problem = problem_of(error, "/v1")
        yield event("error", message=problem.message, code=problem.code, param=problem.param)
        return
    await _keep(service, body, session, turns, answer)
    if not has_begun:
        for line in [*(end_reasoning() if is_thinking else ()), *begin_message()]:
            yield line
    done = _response(body, session, answer)
    yield event("response.output_text.done", **place, text=answer.text, logprobs=[])
    yield event("response.content_part.done", **place, part=part | {"text": answer.text})
    last = place["output_index"]
    yield event("response.output_item.done", output_index=last, item=done["output"][-1])
    kind = "response.completed" if done["status"] == "completed" else "response.incomplete"
    yield event(kind, response=done)


async def _keep(
    service: Service, body: ResponseRequest, session: Session, turns: list[Turn], answer: Answer
) -> None:
    if body.store is not False:
        await service.sessions.append(session, [*turns, Turn("assistant", (answer.text,))])
