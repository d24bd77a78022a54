"""Server-sent events with heartbeats, and answers that stop when their caller leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, Final, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from visiongate.gateway.logs import note_of

T = TypeVar("T")

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


class CallerLeft(Exception):  # not a fault
    """The caller closed the connection before the answer was complete."""


def frame(data: Mapping[str, Any] | list[Any], *, event: str = "") -> bytes:
    """One event, as it goes over the wire."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode()


class EventStream(Response):
    """A response of server-sent events.

    `frames` is closed as soon as the caller leaves, which aborts what it stands for. A silent
    stream carries a comment line every `heartbeat_seconds`, so that proxies keep it open.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        heartbeat_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.frames = frames
        self.heartbeat_seconds = heartbeat_seconds
        self.status_code = 200
        self.background = None
        self.body = b""
        extra = {"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        self.media_type = "text/event-stream"
        self.init_headers(extra)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends frames until they end or the caller leaves."""
        queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(maxsize=64)
        reading = asyncio.ensure_future(self._read_frames(queue))  # first: it asks the question
        sending = asyncio.ensure_future(self._send_frames(send, queue))
        leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                note_of(scope).outcome = "caller left"
        finally:
            for task in (leaving, sending, reading):
                await _end(task)
            await self.frames.aclose()
        if not sending.cancelled():
            sending.result()

    async def _send_frames(
        self, send: Send, queue: asyncio.Queue[bytes | BaseException | None]
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()

        def beat() -> None:
            if queue.empty():
                queue.put_nowait(KEEP_ALIVE)

        while True:
            heartbeat = loop.call_later(self.heartbeat_seconds, beat)
            try:
                item = await queue.get()
            finally:
                heartbeat.cancel()
            if item is None:
                break
            if isinstance(item, BaseException):
                raise item
            await send({"type": "http.response.body", "body": item, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _read_frames(self, queue: asyncio.Queue[bytes | BaseException | None]) -> None:
        """Runs the generator in one task, so that it is closed where it was running."""
        try:
            async for item in self.frames:
                await queue.put(item)
        except Exception as error:  # handed to the sender, which raises it
            await queue.put(error)
        else:
            await queue.put(None)


async def until_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller leaves (raising CallerLeft)."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerLeft
        return working.result()
    finally:
        leaving.cancel()  # not waited for: the answer would wait as well
        leaving.add_done_callback(_look_at)
        await _end(working)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancels a task and waits until it has ended; its result stays readable.

    Asked again and again, because `asyncio.wait_for` before Python 3.12 can swallow a cancellation
    that arrives together with its result.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.2)
    _look_at(task)


def _look_at(task: asyncio.Future[Any]) -> None:
    """Sees what a task ended with, so that asyncio does not report it as forgotten."""
    if not task.cancelled():
        task.exception()
