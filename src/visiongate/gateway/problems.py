"""Turns every error into one body per family of routes; the texts are ours and fixed.

/v1/messages   {"type": "error", "error": {"type", "message"}, "request_id"}
/v1/*          {"error": {"message", "type", "param", "code"}}
all others     {"error": "text"}
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from visiongate.errors import (
    Busy,
    DeadlineExceeded,
    InvalidImage,
    InvalidParameter,
    InvalidRequest,
    ModelNotLoaded,
    OutOfMemory,
    TooLarge,
    Unavailable,
    VisionGateError,
    WorkerDied,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the wire knows it.

    Attributes:
        code: a stable word for programs.
        param: the field at fault, where one is.
        retry_after_seconds: becomes the Retry-After header, rounded up.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_seconds: float | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, path: str, request_id: str = "") -> dict[str, object]:
        """The JSON body that the family of `path` promises."""
        if path == "/v1/messages" or path.startswith("/v1/messages/"):
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
            inner = {"type": kind, "message": self.message}
            return {"type": "error", "error": inner, "request_id": request_id}
        if path == "/v1" or path.startswith("/v1/"):
            fields = {"message": self.message, "type": self.type}
            return {"error": fields | {"param": self.param, "code": self.code}}
        return {"error": self.message}

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _OPENAI_TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def response(self, path: str, request_id: str = "") -> Response:
        """The whole HTTP response."""
        headers = dict(self.headers)
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        body = json.dumps(self.body(path, request_id), ensure_ascii=False).encode()
        return Response(body, self.status, headers, media_type="application/json")


class ProblemError(Exception):
    """Carries a Problem with no class in the error tree (401, 403, 404, 408, 429)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def not_found(what: str, *, param: str | None = None) -> ProblemError:
    """404 for a thing that does not exist or belongs to somebody else."""
    code = "model_not_found" if param == "model" else "not_found"
    return ProblemError(Problem(404, f"{what} was not found", code, param))


def problem_of(error: BaseException, path: str) -> Problem:
    """The Problem that an error stands for; an unknown error shows nothing of itself."""
    match error:
        case ProblemError():
            return error.problem
        case InvalidParameter():
            return Problem(400, error.message, "invalid_parameter", error.param)
        case InvalidImage():
            return Problem(400, error.message, "invalid_image", "image")
        case InvalidRequest():
            return Problem(400, error.message, _code(error))
        case TooLarge():
            return Problem(413, error.message, "too_large")
        case ModelNotLoaded() if not path.startswith("/v1"):
            # These very words are promised on /api/*.
            return Problem(
                503,
                "model not loaded",
                "model_not_loaded",
                retry_after_seconds=error.retry_after_seconds,
            )
        case Unavailable():
            after = error.retry_after_seconds
            return Problem(503, error.message, _code(error), retry_after_seconds=after)
        case DeadlineExceeded():
            return Problem(504, error.message, "deadline_exceeded")
        case VisionGateError():
            return Problem(500, "the server is not set up correctly; see error.log", "server_error")
        case _:
            return Problem(500, "something went wrong on the server; see error.log", "server_error")


def problem_of_status(status: int, headers: dict[str, str] | None = None) -> Problem:
    """The Problem for a bare status that the router raises (404, 405)."""
    texts = {404: "this path does not exist", 405: "this path does not take this method"}
    text = texts.get(status, HTTPStatus(status).phrase.lower())
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
    return Problem(status, text, code, headers=tuple((headers or {}).items()))


def _code(error: VisionGateError) -> str:
    return _CODES.get(type(error), "invalid_request")


_CODES: Final[dict[type[VisionGateError], str]] = {
    Busy: "queue_full",
    ModelNotLoaded: "model_not_loaded",
    WorkerDied: "worker_died",
    OutOfMemory: "out_of_memory",
    Unavailable: "unavailable",
}

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}

_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
