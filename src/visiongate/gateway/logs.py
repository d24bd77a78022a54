"""Gives every request its id and its one line, and keeps the three log files.

    api_access.log      time, address, picture name, status code, duration, id, method, path
    model_loading.log   the stages of loading, timed; a hint after 60 seconds
    error.log           stack traces with the request's id; a hint when memory is short

No line holds a prompt, an answer, a picture or a key.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visiongate.gateway.ids import new_id
from visiongate.gateway.problems import problem_of

if TYPE_CHECKING:
    from visiongate.gateway.answer import Answer

SLOW_LOADING_SECONDS: Final = 60.0
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNPRINTABLE: Final = re.compile(r"[^\w.,:;/+@()=-]")


@dataclass(slots=True)
class Note:
    """What is remembered of one request for its log line, its audit record and the metrics.

    Attributes:
        who: the id of the key; "-" where the door is open.
        route: the path as the route table writes it, for metrics.
        parameters: sampling and limits, never content.
        image_names, image_digests: one for each picture.
        answers: what was generated for it, for the metrics.
    """

    request_id: str
    address: str
    method: str
    path: str
    who: str = "-"
    route: str = ""
    status: int = 0
    image_names: list[str] = field(default_factory=list)
    image_digests: list[str] = field(default_factory=list)
    parameters: dict[str, object] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    outcome: str = ""
    answers: list[Answer] = field(default_factory=list)


def note_of(scope: Scope) -> Note:
    """The note of the request that a scope belongs to."""
    note: Note = scope["visiongate.note"]
    return note


def new_request_id() -> str:
    """The id of a request."""
    return new_id("req_")


class RequestLog:
    """Outermost ASGI middleware: the id, the last resort for errors, the line at the end.

    Args:
        finish: called once with the note of every finished request.
        extra: headers that every response carries at this moment.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        logs: Logs,
        finish: Callable[[Note], None],
        extra: Callable[[], list[tuple[bytes, bytes]]],
    ) -> None:
        self.app = app
        self.logs = logs
        self.finish = finish
        self.extra = extra

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = Note(_request_id(scope), _address(scope), scope["method"], scope["path"])
        scope["visiongate.note"] = note
        id_header = (b"x-request-id", note.request_id.encode())

        async def stamp(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                headers = [*message["headers"], id_header, *_SAFETY_HEADERS, *self.extra()]
                message["headers"] = headers
            await send(message)

        try:
            await self.app(scope, receive, stamp)
        except Exception as error:
            self.logs.error(error, note.request_id)
            if note.status == 0:
                problem = problem_of(error, note.path)
                await problem.response(note.path, note.request_id)(scope, receive, stamp)
            else:
                note.outcome = note.outcome or "error"
        finally:
            note.seconds = time.monotonic() - note.started
            self.logs.access(note)
            self.finish(note)


class Logs:
    """The three files, each rotated at `max_bytes`; a file that cannot be written is said once."""

    def __init__(self, folder: Path, *, max_bytes: int, num_files: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_files = num_files
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            sys.stderr.write(f"warning: the log folder {folder} cannot be made\n")
        self._access = self._open("api_access.log")
        self._loading = self._open("model_loading.log")
        self._error = self._open("error.log")

    def access(self, note: Note) -> None:
        """One line for one call."""
        names = ",".join(clean(name) for name in note.image_names) or "-"
        status = note.status or 499  # the caller left before the answer began
        self._access.info(
            "%s %s %s %d %.2fs %s %s %s",
            _now(),
            clean(note.address),
            names,
            status,
            note.seconds,
            note.request_id,
            clean(note.method),
            clean(note.path),
        )

    def loading(self, text: str) -> None:
        """One stage of loading the model."""
        self._loading.info("%s %s", _now(), text)

    def error(self, error: BaseException, request_id: str) -> None:
        """A stack trace with its request id, and a hint when memory was short."""
        trace = "".join(traceback.format_exception(error)).rstrip()
        self._error.error("%s %s %s\n%s", _now(), request_id, type(error).__name__, trace)
        if is_out_of_memory(error):
            self._error.error(
                "%s %s hint: memory is short; give the container more (docker run -m), or lower "
                "MAX_CONCURRENCY, BATCH_SIZE or VISIONGATE_CACHE_TOKENS",
                _now(),
                request_id,
            )

    def close(self) -> None:
        """Closes the files."""
        for logger in (self._access, self._loading, self._error):
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
                handler.close()

    def _open(self, name: str) -> logging.Logger:
        logger = logging.getLogger(f"visiongate.file.{name}")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        path = self._folder / name
        try:
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=self._max_bytes, backupCount=self._num_files, encoding="utf-8"
            )
        except OSError:
            sys.stderr.write(f"warning: {path} cannot be written; its lines are lost\n")
            logger.addHandler(logging.NullHandler())
            return logger
        logger.addHandler(handler)
        return logger


class LoadingLog:
    """Writes the stages of loading as they change; `watch` is called a few times a second."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._started = time.monotonic()
        self._stage = ""
        self._has_hinted = False

    def watch(self, stage: str, state: str, reason: str = "") -> None:
        """Notes the present stage; a stage that has not changed costs nothing."""
        seconds = time.monotonic() - self._started
        now = f"{state} {stage}".strip()
        if now != self._stage:
            if state == "loading" and not self._stage.startswith("loading"):
                self._started, seconds, self._has_hinted = time.monotonic(), 0.0, False
            self._stage = now
            self._logs.loading(
                f"{seconds:8.2f}s {now}" + (f": {clean_text(reason)}" * bool(reason))
            )
        if state == "loading" and seconds > SLOW_LOADING_SECONDS and not self._has_hinted:
            self._has_hinted = True
            self._logs.loading(
                f"{seconds:8.2f}s hint: loading takes over 60 s. If weights are being downloaded, "
                "fetch them before with `visiongate pull` (a mirror: HF_ENDPOINT), mount the "
                "folder and set MODEL_PATH."
            )


def clean(text: str) -> str:
    """A word safe for one line: no spaces, no control characters, at most 80 characters."""
    return str(_UNPRINTABLE.sub("_", text))[:80] or "-"


def clean_text(text: str) -> str:
    """A sentence safe for one line."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _CLIENT_ID.fullmatch(text):
                return text
    return new_request_id()


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "-"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


_SAFETY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
