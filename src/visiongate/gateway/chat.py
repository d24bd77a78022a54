"""POST /api/chat: one picture as base64, one question, one answer; sessions for follow-ups."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import DeadlineExceeded
from visiongate.gateway.answer import Answer, Ask, Delta, Queued, Thought
from visiongate.gateway.auth import Caller, caller_of
from visiongate.gateway.completions import annotated
from visiongate.gateway.logs import note_of
from visiongate.gateway.problems import problem_of
from visiongate.gateway.schemas import ChatReply, ChatRequest, parse
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.sessions import Picture, Session, Turn
from visiongate.gateway.stream import EventStream, frame, until_left
from visiongate.gateway.wire import Sampling, sampling_params, turn_of_chat

router = APIRouter(tags=["chat"])

DEFAULT_TEMPERATURE = 0.5


@router.post(
    "/api/chat",
    response_model=ChatReply,
    summary="Ask one question about one picture",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}
            },
        }
    },
)
async def chat(request: Request) -> Response:
    """Answers, and keeps the round under the returned `session_id`."""
    service = service_of(request)
    caller = caller_of(request.scope)
    service.answers.check_room(caller)
    body = parse(ChatRequest, await request.body())
    session = await service.session(body.session_id or "", caller)
    assert session is not None
    turn, ask = chat_ask(service, body, caller, session)
    answer = await service.answers.prepare(ask, note_of(request.scope))
    if body.stream:
        frames = _frames(service, body, session, turn, answer)
        return EventStream(frames, heartbeat_seconds=service.settings.heartbeat_seconds)
    await until_left(request.receive, answer.complete())
    return JSONResponse(await chat_reply(service, body, session, turn, answer))


@router.get("/api/sessions/{session_id}", summary="Read a conversation")
async def read_session(request: Request, session_id: str) -> Response:
    """The rounds so far; pictures appear as their digests."""
    service = service_of(request)
    session = await service.sessions.find(session_id, caller_of(request.scope).id)
    turns = [
        {"role": turn.role, "content": [_part(part) for part in turn.parts]}
        for turn in session.turns
    ]
    return JSONResponse(
        {
            "session_id": session.id,
            "created": int(session.created),
            "expires": int(session.used + service.settings.session_seconds),
            "turns": turns,
        }
    )


@router.delete("/api/sessions/{session_id}", summary="Forget a conversation")
async def delete_session(request: Request, session_id: str) -> Response:
    """Forgets texts and pictures at once."""
    service = service_of(request)
    await service.sessions.delete(session_id, caller_of(request.scope).id)
    return JSONResponse({"deleted": True, "session_id": session_id})


def chat_ask(
    service: Service, body: ChatRequest, caller: Caller, session: Session, *, priority: int = 0
) -> tuple[Turn, Ask]:
    """The user's turn and the whole question of one body."""
    turn = turn_of_chat(service, body, has_history=bool(session.turns))
    temperature = body.temperature
    if temperature is None and service.answers.check_ready().generation.do_sample:
        temperature = DEFAULT_TEMPERATURE
    wish = Sampling(
        max_tokens=body.max_tokens,
        temperature=temperature,
        seed=body.seed,
        stop=body.stop,
        response_format=body.response_format,
    )
    ask = Ask(
        turns=(*session.turns, turn),
        params=sampling_params(service, wish),
        caller=caller,
        deadline_seconds=body.deadline_ms / 1000 if body.deadline_ms else None,
        priority=priority,
    )
    return turn, ask


async def chat_reply(
    service: Service, body: ChatRequest, session: Session, turn: Turn, answer: Answer
) -> dict[str, Any]:
    """The response, with the round kept; raises DeadlineExceeded for an answer cut by time."""
    if answer.reason == "deadline" and not body.stream:
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    await service.sessions.append(session, [turn, Turn("assistant", (answer.text,))])
    reply: dict[str, Any] = {
        "response": answer.text,
        "session_id": session.id,
        "finish_reason": answer.reason,
        "usage": answer.usage().model_dump(),
        "vision": answer.vision().model_dump(),
        "boxes": [box.wire() for box in answer.boxes()],
    }
    if answer.reasoning:
        reply["reasoning_content"] = answer.reasoning
    if body.annotate and answer.images:
        reply["annotated_image"] = annotated(answer)
    return reply


async def _frames(
    service: Service, body: ChatRequest, session: Session, turn: Turn, answer: Answer
) -> AsyncGenerator[bytes, None]:
    """`{"delta"}` events, then the whole reply with `"done": true`."""
    try:
        async with aclosing(answer.events()) as events:
            async for event in events:
                if isinstance(event, Queued):
                    yield frame({"position": event.position}, event="queue")
                elif isinstance(event, Thought):
                    yield frame({"reasoning_delta": event.text})
                elif isinstance(event, Delta):
                    yield frame({"delta": event.text})
        reply = await chat_reply(service, body, session, turn, answer)
        yield frame(reply | {"done": True})
    except Exception as error:  # told in the stream, whose status is already out
        service.note_error(error, answer.note)
        yield frame(problem_of(error, "/api").body("/api"), event="error")


def _part(part: str | Picture) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "sha256": part.sha256, "bytes": len(part.data)}
