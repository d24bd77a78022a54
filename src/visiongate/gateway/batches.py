"""/v1/batches: many questions as one durable job.

Every item is a row. A result is written in the transaction that marks its row as done, and the
output is put together once, in the transaction that completes the batch; so a process that is
killed at any moment goes on where it was, and each item is in the output exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import InvalidParameter, Unavailable
from visiongate.gateway.auth import Caller, caller_of
from visiongate.gateway.chat import chat_ask, chat_reply
from visiongate.gateway.completions import completion_of, read_json_call
from visiongate.gateway.files import content_of, find_file, insert_file
from visiongate.gateway.ids import new_id
from visiongate.gateway.logs import Note, new_request_id
from visiongate.gateway.problems import ProblemError, not_found, problem_of
from visiongate.gateway.schemas import ChatCompletionRequest, ChatRequest, Wire, explain, parse
from visiongate.gateway.service import service_of
from visiongate.gateway.store import Store

if TYPE_CHECKING:
    from visiongate.gateway.service import Service

router = APIRouter(tags=["batch"])

Endpoint = Literal["/v1/chat/completions", "/api/chat"]
MAX_ITEMS: Final = 50_000
WINDOW_SECONDS: Final = 86400
IDLE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
_ACTIVE: Final = ("in_progress", "cancelling")


class BatchRequest(Wire):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"] = "24h"
    metadata: dict[str, str] | None = None


@router.post(
    "/v1/batches",
    summary="Start a batch",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}
            },
        }
    },
)
async def create_batch(request: Request) -> Response:
    """The same `Idempotency-Key` gives the same batch again instead of a second one."""
    service = service_of(request)
    who = caller_of(request.scope).id
    body = parse(BatchRequest, await request.body())
    key = request.headers.get("idempotency-key", "")[:200] or None
    find_file(service.store, who, body.input_file_id)
    batch_id = await asyncio.to_thread(start_batch, service.store, who, body, key)
    service.batches.wake()
    return JSONResponse(_wire(service.store, find_batch(service.store, who, batch_id)))


@router.get("/v1/batches", summary="List your batches")
async def list_batches(request: Request) -> Response:
    """Newest first."""
    store, who = service_of(request).store, caller_of(request.scope).id
    rows = store.rows("SELECT * FROM batches WHERE who = ? ORDER BY created DESC", (who,))
    data = [_wire(store, row) for row in rows]
    return JSONResponse({"object": "list", "data": data, "has_more": False})


@router.get("/v1/batches/{batch_id}", summary="The progress of a batch")
async def read_batch(request: Request, batch_id: str) -> Response:
    """State, counts, and the output's file once there is one."""
    store, who = service_of(request).store, caller_of(request.scope).id
    return JSONResponse(_wire(store, find_batch(store, who, batch_id)))


@router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Items that were answered stay in the output."""
    service = service_of(request)
    store, who = service.store, caller_of(request.scope).id
    row = find_batch(store, who, batch_id)
    if row["state"] == "in_progress":
        set_state(store, batch_id, "cancelling")
        service.batches.wake()
    return JSONResponse(_wire(store, find_batch(store, who, batch_id)))


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a batch."""

    batch_id: str
    number: int
    custom_id: str
    endpoint: Endpoint
    who: str
    body: str


class BatchRunner:
    """Works on the batches in the background, behind everybody else."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._woken = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._in_flight: set[tuple[str, int]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Goes on with what an earlier process left."""
        num_workers = max(1, self._service.admission.num_places - 1)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(num_workers)]

    async def stop(self) -> None:
        """Stops at once; items that are not done are done after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Tells the workers that there is something new."""
        self._woken.set()

    async def _work(self) -> None:
        while True:
            try:
                async with self._claiming:
                    item = await asyncio.to_thread(self._claim)
                if item is None:
                    self._woken.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)
                    continue
                await self._do(item)
            except Exception as error:  # a batch must not end the background work
                self._service.logs.error(error, "batch")
                await asyncio.sleep(RETRY_SECONDS)

    def _claim(self) -> Item | None:
        """The next item that nobody works on; completes batches that have none left."""
        store = self._service.store
        for batch in store.rows(
            "SELECT * FROM batches WHERE state IN (?, ?) ORDER BY created", _ACTIVE
        ):
            if batch["state"] == "cancelling":
                if not any(batch_id == batch["id"] for batch_id, _ in self._in_flight):
                    finish_batch(store, batch["id"])
                continue
            rows = store.rows(
                "SELECT number, custom_id, body FROM batch_items "
                "WHERE batch = ? AND is_done = 0 ORDER BY number LIMIT ?",
                (batch["id"], len(self._in_flight) + 1),
            )
            if not rows:
                finish_batch(store, batch["id"])
            for row in rows:
                key = (batch["id"], row["number"])
                if key not in self._in_flight:
                    self._in_flight.add(key)
                    names = batch["endpoint"], batch["who"], row["body"]
                    return Item(*key, row["custom_id"], *names)
        return None

    async def _do(self, item: Item) -> None:
        try:
            self._service.answers.check_ready()
            status, result = await self._answer(item)
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)  # the item stays undone and is taken again
        else:
            await asyncio.to_thread(save_result, self._service.store, item, status, result)
        finally:
            self._in_flight.discard((item.batch_id, item.number))

    async def _answer(self, item: Item) -> tuple[int, dict[str, Any]]:
        """The status and body that the endpoint would have answered with."""
        service = self._service
        note = Note(new_request_id(), "-", "BATCH", item.endpoint, who=item.who)
        try:
            caller = service.keys.caller_by_id(item.who)
            body = json.loads(item.body)
            if item.endpoint == "/api/chat":
                result = await _chat(service, caller, body, note)
            else:
                result = await _completion(service, caller, body, note)
            note.status = 200
        except Unavailable:
            raise
        except Exception as error:  # told in the item's own result
            problem = problem_of(error, item.endpoint)
            if problem.code == "server_error":
                service.logs.error(error, note.request_id)
            note.status = problem.status
            result = problem.body(item.endpoint)
        note.seconds = time.monotonic() - note.started
        service.finish(note)
        return note.status, result


async def _chat(service: Service, caller: Caller, body: Any, note: Note) -> dict[str, Any]:
    try:
        wish = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise explain(error) from None
    session = await service.session(wish.session_id or "", caller)
    assert session is not None
    turn, ask = chat_ask(service, wish, caller, session, priority=1)
    answer = await service.answers.prepare(ask, note, is_patient=True)
    await answer.complete()
    return await chat_reply(service, wish, session, turn, answer)


async def _completion(service: Service, caller: Caller, body: Any, note: Note) -> dict[str, Any]:
    try:
        wish = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        raise explain(error) from None
    call = await read_json_call(service, caller, wish, priority=1)
    answer = await service.answers.prepare(call.ask, note, is_patient=True)
    await answer.complete()
    return await completion_of(service, call, answer)


def start_batch(store: Store, who: str, body: BatchRequest, key: str | None) -> str:
    """Checks every line and stores the items; all or none."""
    if key is not None:
        known = store.row(
            "SELECT id FROM batches WHERE who = ? AND idempotency_key = ?", (who, key)
        )
        if known is not None:
            return str(known["id"])
    items = list(_read_items(content_of(store, body.input_file_id), body.endpoint))
    batch_id = new_id("batch_")
    now = time.time()
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, 'in_progress', ?, ?, NULL, NULL, ?, ?, ?, NULL)",
            (
                batch_id,
                who,
                now,
                body.endpoint,
                body.input_file_id,
                json.dumps(body.metadata or {}),
                key,
                json.dumps({"in_progress": now}),
            ),
        )
        connection.executemany(
            "INSERT INTO batch_items (batch, number, custom_id, body) VALUES (?, ?, ?, ?)",
            [(batch_id, number, custom_id, text) for number, custom_id, text in items],
        )
    return batch_id


def save_result(store: Store, item: Item, status: int, result: dict[str, Any]) -> None:
    """Marks an item as done, with its result, once."""
    with store.transaction() as connection:
        connection.execute(
            "UPDATE batch_items SET is_done = 1, status = ?, result = ?, body = '' "
            "WHERE batch = ? AND number = ? AND is_done = 0",
            (status, json.dumps(result, ensure_ascii=False), item.batch_id, item.number),
        )


def finish_batch(store: Store, batch_id: str) -> None:
    """Writes the output and error files and completes the batch, once."""
    with store.transaction() as connection:
        batch = connection.execute(
            "SELECT * FROM batches WHERE id = ? AND state IN (?, ?)", (batch_id, *_ACTIVE)
        ).fetchone()
        if batch is None:
            return
        good: list[str] = []
        bad: list[str] = []
        for row in connection.execute(
            "SELECT * FROM batch_items WHERE batch = ? AND is_done = 1 ORDER BY number", (batch_id,)
        ):
            (good if row["status"] == 200 else bad).append(_line(batch_id, row))
        files = [
            insert_file(connection, batch["who"], f"{batch_id}_{kind}.jsonl", "batch_output", data)
            if data
            else None
            for kind, data in (("output", _lines(good)), ("error", _lines(bad)))
        ]
        state = "cancelled" if batch["state"] == "cancelling" else "completed"
        times = json.loads(batch["times"]) | {state: time.time()}
        connection.execute(
            "UPDATE batches SET state = ?, output_file = ?, error_file = ?, times = ? WHERE id = ?",
            (state, *files, json.dumps(times), batch_id),
        )


def set_state(store: Store, batch_id: str, state: str) -> None:
    """Moves a batch that is in progress to another state."""
    with store.transaction() as connection:
        row = connection.execute("SELECT times FROM batches WHERE id = ?", (batch_id,)).fetchone()
        times = json.loads(row["times"]) | {state: time.time()}
        connection.execute(
            "UPDATE batches SET state = ?, times = ? WHERE id = ? AND state = 'in_progress'",
            (state, json.dumps(times), batch_id),
        )


def find_batch(store: Store, who: str, batch_id: str) -> sqlite3.Row:
    """The batch; raises 404 when there is none or it is somebody else's."""
    row = store.row("SELECT * FROM batches WHERE id = ? AND who = ?", (batch_id, who))
    if row is None:
        raise _unknown_batch()
    return row


def _read_items(content: bytes, endpoint: Endpoint) -> list[tuple[int, str, str]]:
    items: list[tuple[int, str, str]] = []
    seen: set[str] = set()
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        custom_id, body = _read_line(line, number, endpoint)
        if custom_id in seen:
            raise _bad_line(number, f"custom_id {custom_id[:60]!r} stands there twice")
        seen.add(custom_id)
        items.append((number, custom_id, json.dumps(body, ensure_ascii=False)))
    if not items or len(items) > MAX_ITEMS:
        raise InvalidParameter(
            f"the input file has {len(items)} items; 1 to {MAX_ITEMS} are accepted",
            param="input_file_id",
        )
    return items


def _read_line(line: bytes, number: int, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise _bad_line(number, "is not valid JSON") from None
    if not isinstance(item, dict) or not isinstance(item.get("custom_id"), str):
        raise _bad_line(number, "has no custom_id")
    if not isinstance(item.get("body"), dict):
        raise _bad_line(number, "has no body")
    if item.get("method", "POST") != "POST" or item.get("url", endpoint) != endpoint:
        raise _bad_line(number, f"must be POST {endpoint}")
    if item["body"].get("stream"):
        raise _bad_line(number, "asks for a stream, which a batch cannot give")
    return item["custom_id"], item["body"]


def _bad_line(number: int, what: str) -> InvalidParameter:
    return InvalidParameter(f"line {number} of the input file {what}", param="input_file_id")


def _unknown_batch() -> ProblemError:
    return not_found("this batch", param="batch_id")


def _line(batch_id: str, row: sqlite3.Row) -> str:
    request_id = f"{batch_id}_{row['number']}"
    response = {
        "status_code": row["status"],
        "request_id": request_id,
        "body": json.loads(row["result"]),
    }
    line = {"id": request_id, "custom_id": row["custom_id"], "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False)


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _wire(store: Store, row: sqlite3.Row) -> dict[str, Any]:
    counts = store.row(
        "SELECT count(*) AS total, coalesce(sum(is_done = 1 AND status = 200), 0) AS completed, "
        "coalesce(sum(is_done = 1 AND status <> 200), 0) AS failed FROM batch_items "
        "WHERE batch = ?",
        (row["id"],),
    )
    assert counts is not None
    times = {name: int(value) for name, value in json.loads(row["times"]).items()}
    return {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "errors": None,
        "input_file_id": row["input_file"],
        "completion_window": "24h",
        "status": row["state"],
        "output_file_id": row["output_file"],
        "error_file_id": row["error_file"],
        "created_at": int(row["created"]),
        "expires_at": int(row["created"]) + WINDOW_SECONDS,
        "in_progress_at": times.get("in_progress"),
        "completed_at": times.get("completed"),
        "cancelling_at": times.get("cancelling"),
        "cancelled_at": times.get("cancelled"),
        "request_counts": dict(counts),
        "metadata": json.loads(row["metadata"]),
    }
