"""POST /api/batch: many questions at once; one bad item is an error in its own slot only."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import InvalidParameter, InvalidRequest
from visiongate.gateway.auth import Caller, caller_of
from visiongate.gateway.chat import chat_ask, chat_reply
from visiongate.gateway.logs import Note, note_of
from visiongate.gateway.problems import problem_of
from visiongate.gateway.schemas import ChatRequest, explain
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.stream import until_left

router = APIRouter(tags=["batch"])


@router.post(
    "/api/batch",
    summary="Ask many questions at once",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"$ref": "#/components/schemas/ChatRequest"},
                    }
                }
            },
        }
    },
)
async def create_batch(request: Request) -> Response:
    """Takes an array of /api/chat bodies; answers in their order, `{"error"}` where one fails."""
    service = service_of(request)
    caller = caller_of(request.scope)
    service.answers.check_room(caller)
    items = _items(await request.body(), service.settings.max_batch_items)
    note = note_of(request.scope)
    places = asyncio.Semaphore(service.admission.num_places)

    async def one(item: Any) -> dict[str, Any]:
        async with places:
            return await answer_item(service, caller, item, note)

    async def everything() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one(item) for item in items)))

    return JSONResponse(await until_left(request.receive, everything()))


async def answer_item(service: Service, caller: Caller, item: Any, note: Note) -> dict[str, Any]:
    """The reply of one item, or its error."""
    own_note = Note(note.request_id, note.address, note.method, note.path, who=note.who)
    try:
        body = _parse(item)
        session = await service.session(body.session_id or "", caller)
        assert session is not None
        turn, ask = chat_ask(service, body, caller, session)
        answer = await service.answers.prepare(ask, own_note)
        await answer.complete()
        return await chat_reply(service, body, session, turn, answer)
    except Exception as error:  # told in the item's own slot
        problem = problem_of(error, "/api")
        if problem.code == "server_error":
            service.logs.error(error, note.request_id)
        return {"error": problem.message, "status": problem.status}
    finally:
        note.image_digests += own_note.image_digests
        note.prompt_tokens += own_note.prompt_tokens
        note.completion_tokens += own_note.completion_tokens
        note.answers += own_note.answers


def _items(body: bytes, most: int) -> list[Any]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not valid JSON, or is nested too deeply") from None
    if not isinstance(items, list) or not items:
        raise InvalidRequest("the body must be an array of at least one /api/chat body")
    if len(items) > most:
        raise InvalidParameter(
            f"the batch has {len(items)} items; this server takes up to {most}: use /v1/batches "
            "for more",
            param="items",
        )
    return items


def _parse(item: Any) -> ChatRequest:
    try:
        body = ChatRequest.model_validate(item)
    except ValidationError as error:
        raise explain(error) from None
    if body.stream:
        raise InvalidParameter("stream is not possible in a batch", param="stream")
    return body
