"""Counts a request's body as it arrives: 413 at the first byte too many, 408 when it crawls.

The limit holds with and without Content-Length; nothing beyond it is ever kept. All bodies together
have a bound too, so that many large uploads at once are told 503 instead of filling the memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visiongate.errors import OutOfMemory, TooLarge
from visiongate.gateway.problems import Problem, ProblemError, problem_of

GRACE_SECONDS: Final = 10.0
"""An upload may start slowly; its rate is judged only after this long."""

LINGER_SECONDS: Final = 2.0
"""How long a refused upload is still read, so that its sender sees the answer and not a reset."""


class BodyLimits:
    """ASGI middleware that bounds the size and the slowness of request bodies.

    Args:
        limit_of: the most bytes that a path takes.
        pause_seconds: the longest wait for the next piece of a body.
        bytes_per_second: the slowest average rate after GRACE_SECONDS.
        total_bytes: of all bodies that are held at one moment.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit_of: Callable[[str], int],
        pause_seconds: float,
        bytes_per_second: int,
        total_bytes: int,
    ) -> None:
        self.app = app
        self.limit_of = limit_of
        self.pause_seconds = pause_seconds
        self.bytes_per_second = bytes_per_second
        self._pool = _Pool(total_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        limit = self.limit_of(path)
        body = _Body(receive, limit, self.pause_seconds, self.bytes_per_second, self._pool)
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            declared = _content_length(scope)
            if declared is not None and declared > limit:
                raise _too_large(limit)
            await self.app(scope, body.receive, watch)
        except (TooLarge, OutOfMemory, ProblemError) as error:
            if has_started:
                raise
            problem = problem_of(error, path)
            await _refuse(problem, path, body, send)
        finally:
            self._pool.held_bytes -= body.num_bytes


class _Pool:
    """The bytes of all bodies that are held now."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.held_bytes = 0


class _Body:
    """A counted, timed body; after its end, messages pass unchanged."""

    def __init__(
        self,
        receive: Receive,
        limit: int,
        pause_seconds: float,
        bytes_per_second: int,
        pool: _Pool,
    ) -> None:
        self._receive = receive
        self._pool = pool
        self._limit = limit
        self._pause_seconds = pause_seconds
        self._bytes_per_second = bytes_per_second
        self._started = time.monotonic()
        self.num_bytes = 0
        self.is_complete = False

    async def receive(self) -> Message:
        """The next message; raises TooLarge, or ProblemError 408."""
        if self.is_complete:
            return await self._receive()
        try:
            message = await _within(self._pause_seconds, self._receive)
        except asyncio.TimeoutError:
            raise _too_slow() from None
        if message["type"] != "http.request":
            self.is_complete = True
            return message
        num_new = len(message.get("body", b""))
        self.num_bytes += num_new
        self._pool.held_bytes += num_new
        self.is_complete = not message.get("more_body", False)
        if self.num_bytes > self._limit:
            raise _too_large(self._limit)
        if self._pool.held_bytes > self._pool.total_bytes:
            raise _too_many_bytes(self._pool)
        seconds = time.monotonic() - self._started
        is_late = seconds > max(GRACE_SECONDS, self._pause_seconds / 2)
        if not self.is_complete and is_late and self.num_bytes < self._bytes_per_second * seconds:
            raise _too_slow()
        return message

    async def linger(self) -> None:
        """Reads and drops what the sender still sends, for a short while."""
        end = time.monotonic() + LINGER_SECONDS
        while not self.is_complete and time.monotonic() < end:
            try:
                message = await _within(end - time.monotonic(), self._receive)
            except asyncio.TimeoutError:
                return
            self.is_complete = not message.get("more_body", False)


async def _refuse(problem: Problem, path: str, body: _Body, send: Send) -> None:
    """Answers before the body is complete, then lets the sender finish so that it reads this."""
    response = problem.response(path)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await body.linger()
    await send({"type": "http.response.body", "body": b""})


async def _within(seconds: float, receive: Receive) -> Message:
    """The next message; raises asyncio.TimeoutError when it takes longer."""
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(receive(), seconds)
    async with asyncio.timeout(seconds):  # without the task that `wait_for` makes before 3.12
        return await receive()


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request's body is over its limit of {limit} bytes")


def _too_many_bytes(pool: _Pool) -> OutOfMemory:
    megabytes = pool.total_bytes // 2**20
    return OutOfMemory(
        f"uploads of more than {megabytes} MB are being received at once; try again later",
        retry_after_seconds=2.0,
    )


def _too_slow() -> ProblemError:
    text = "the request's body arrived too slowly; send it again on a faster connection"
    return ProblemError(Problem(408, text, "upload_too_slow"))
