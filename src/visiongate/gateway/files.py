"""/v1/files: the inputs and outputs of batches, kept in the database."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import InvalidParameter, InvalidRequest
from visiongate.gateway.auth import caller_of
from visiongate.gateway.ids import new_id
from visiongate.gateway.media import read_multipart
from visiongate.gateway.problems import ProblemError, not_found
from visiongate.gateway.service import service_of
from visiongate.gateway.store import Store

router = APIRouter(tags=["batch"])

PURPOSES: Final = ("batch",)
_COLUMNS: Final = "id, who, name, purpose, created, num_bytes"


@router.post(
    "/v1/files",
    summary="Upload the input of a batch",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": list(PURPOSES)},
                        },
                    }
                }
            },
        }
    },
)
async def upload_file(request: Request) -> Response:
    """Takes JSON lines as the part `file`, with `purpose` "batch"."""
    service = service_of(request)
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise InvalidRequest(
            "send Content-Type multipart/form-data with the parts file and purpose"
        )
    parts = await read_multipart(
        content_type,
        request.stream(),
        file_parts=frozenset({"file"}),
        file_bytes=service.settings.file_bytes,
    )
    fields = {part.name: part for part in parts}
    purpose = fields["purpose"].text() if "purpose" in fields else ""
    if purpose not in PURPOSES:
        raise InvalidParameter("purpose must be batch", param="purpose")
    if "file" not in fields or not fields["file"].data:
        raise InvalidParameter("file is missing or empty", param="file")
    file = fields["file"]
    record = await asyncio.to_thread(
        add_file,
        service.store,
        caller_of(request.scope).id,
        file.filename or "input.jsonl",
        purpose,
        file.data,
    )
    return JSONResponse(record)


@router.get("/v1/files", summary="List your files")
async def list_files(request: Request) -> Response:
    """Newest first."""
    rows = service_of(request).store.rows(
        f"SELECT {_COLUMNS} FROM files WHERE who = ? ORDER BY created DESC",  # noqa: S608  # ours
        (caller_of(request.scope).id,),
    )
    return JSONResponse({"object": "list", "data": [_wire(row) for row in rows], "has_more": False})


@router.get("/v1/files/{file_id}", summary="One file")
async def read_file(request: Request, file_id: str) -> Response:
    """Name, size, purpose."""
    store, who = service_of(request).store, caller_of(request.scope).id
    return JSONResponse(_wire(find_file(store, who, file_id)))


@router.get("/v1/files/{file_id}/content", summary="The bytes of a file")
async def read_content(request: Request, file_id: str) -> Response:
    """The file as it was uploaded or written."""
    store, who = service_of(request).store, caller_of(request.scope).id
    find_file(store, who, file_id)
    content = await asyncio.to_thread(content_of, store, file_id)
    return Response(content, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", summary="Delete a file")
async def delete_file(request: Request, file_id: str) -> Response:
    """Deletes at once; a batch that still reads its input keeps its own copy of the items."""
    store, who = service_of(request).store, caller_of(request.scope).id
    find_file(store, who, file_id)
    with store.transaction() as connection:
        connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def add_file(store: Store, who: str, name: str, purpose: str, content: bytes) -> dict[str, Any]:
    """Stores a file and gives its record."""
    with store.transaction() as connection:
        file_id = insert_file(connection, who, name, purpose, content)
    return _wire(find_file(store, who, file_id))


def insert_file(
    connection: sqlite3.Connection, who: str, name: str, purpose: str, content: bytes
) -> str:
    """Stores a file inside a transaction of the caller's; gives its id."""
    file_id = new_id("file-")
    connection.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
        (file_id, who, name[:200], purpose, time.time(), len(content), content),
    )
    return file_id


def find_file(store: Store, who: str, file_id: str) -> sqlite3.Row:
    """The file's record; raises 404 when there is none or it is somebody else's."""
    row = store.row(
        f"SELECT {_COLUMNS} FROM files WHERE id = ? AND who = ?",  # noqa: S608  # our own words
        (file_id, who),
    )
    if row is None:
        raise unknown_file()
    return row


def content_of(store: Store, file_id: str) -> bytes:
    """A file's bytes."""
    row = store.row("SELECT content FROM files WHERE id = ?", (file_id,))
    if row is None:
        raise unknown_file()
    return bytes(row["content"])


def unknown_file() -> ProblemError:
    """404 for a file."""
    return not_found("this file", param="file_id")


def _wire(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["num_bytes"],
        "created_at": int(row["created"]),
        "filename": row["name"],
        "purpose": row["purpose"],
        "status": "processed",
    }
