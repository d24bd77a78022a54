"""The application: routes, the order of the middleware, the lifespan, the OpenAPI document.

request -> RequestLog -> (CORS) -> Authorisation -> BodyLimits -> RouteNames -> routes
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import visiongate
from visiongate.errors import VisionGateError
from visiongate.gateway import (
    batch,
    batches,
    chat,
    completions,
    files,
    health,
    messages,
    metrics,
    page,
    plan,
    responses,
)
from visiongate.gateway.auth import PUBLIC_PATHS, Authorisation
from visiongate.gateway.backend import Backend
from visiongate.gateway.limits import BodyLimits
from visiongate.gateway.logs import RequestLog, note_of
from visiongate.gateway.problems import (
    Problem,
    ProblemError,
    problem_of,
    problem_of_status,
)
from visiongate.gateway.schemas import (
    AnthropicError,
    ChatCompletionRequest,
    ChatRequest,
    OpenAIError,
    PlainError,
    PlanRequest,
)
from visiongate.gateway.service import Service
from visiongate.gateway.settings import Settings
from visiongate.gateway.stream import CallerLeft

DESCRIPTION: Final = (
    "A private vision API for Qwen3-VL: ask questions about pictures that never leave your network."
)
SMALL_BODY_BYTES: Final = 64 * 1024
UPLOAD_SHARE: Final = 8
"""All uploads that are under way may take this part of the memory limit."""

_ROUTES: Final = (
    completions,
    chat,
    batch,
    plan,
    responses,
    messages,
    files,
    batches,
    health,
    metrics,
    page,
)
_WIRE_BODIES: Final = (
    ChatCompletionRequest,
    ChatRequest,
    PlanRequest,
    responses.ResponseRequest,
    messages.MessagesRequest,
    batches.BatchRequest,
    AnthropicError,
    OpenAIError,
    PlainError,
)


def create_app(settings: Settings, backend: Backend) -> FastAPI:
    """The whole HTTP service over a backend; it loads nothing until its lifespan starts."""
    service = Service(settings, backend)
    service.batches = batches.BatchRunner(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="VisionGate",
        version=visiongate.__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in _ROUTES:
        app.include_router(module.router)
    _handle_errors(app)
    _add_middleware(app, service)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def body_limit(settings: Settings, path: str) -> int:
    """The most bytes that the body of a path may have."""
    one_picture = settings.image_bytes * 4 // 3 + 1024 * 1024
    if path in {"/api/chat", "/v1/images/plan"}:
        return min(
            settings.body_bytes, one_picture * (settings.max_images if path == "/api/chat" else 1)
        )
    if path.startswith("/v1/files"):
        return settings.file_bytes + SMALL_BODY_BYTES
    if path.startswith(("/v1/", "/api/")):
        return settings.body_bytes
    return SMALL_BODY_BYTES


class RouteNames:
    """Innermost ASGI middleware: leaves the matched route in the note, for the metrics."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on; reads the route that the router left in the scope."""
        try:
            await self.app(scope, receive, send)
        finally:
            route = scope.get("route")
            if scope["type"] == "http" and isinstance(route, APIRoute):
                note_of(scope).route = route.path


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Added from the inside out."""
    settings = service.settings
    app.add_middleware(RouteNames)
    app.add_middleware(
        BodyLimits,
        limit_of=lambda path: body_limit(settings, path),
        pause_seconds=settings.upload_seconds,
        bytes_per_second=settings.upload_bytes_per_second,
        total_bytes=service.guard.limit_bytes // UPLOAD_SHARE,
    )
    app.add_middleware(Authorisation, keys=service.keys, rates=service.rates)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-VisionGate-Events", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(
        RequestLog, logs=service.logs, finish=service.finish, extra=service.state_headers
    )


def _handle_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        problem = problem_of(error, request.scope["path"])
        if problem.status >= 500 and problem.code == "server_error":
            request.app.state.service.logs.error(error, note_of(request.scope).request_id)
        return _respond(request, problem)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _respond(request, problem_of_status(error.status_code, dict(error.headers or {})))

    async def validation(request: Request, error: Exception) -> Response:
        return _respond(request, Problem(400, "a parameter is not valid", "invalid_parameter"))

    async def left(request: Request, error: Exception) -> Response:
        note = note_of(request.scope)
        note.outcome = "caller left"
        return Response(status_code=499)

    app.add_exception_handler(VisionGateError, ours)
    app.add_exception_handler(ProblemError, ours)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(CallerLeft, left)


def _respond(request: Request, problem: Problem) -> Response:
    return problem.response(request.scope["path"], note_of(request.scope).request_id)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with our request bodies, our errors and our security."""
    if app.openapi_schema:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    _, definitions = models_json_schema(
        [(model, "validation") for model in _WIRE_BODIES],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic"},
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if path in _STREAMING:
                answer = operation["responses"]["200"].setdefault("content", {})
                answer["text/event-stream"] = {"schema": {"type": "string"}}
            if path in _OTHER_TYPES:
                kind = _OTHER_TYPES[path]
                schema = {"type": "string"} | ({"format": "binary"} if "octet" in kind else {})
                operation["responses"]["200"]["content"] = {kind: {"schema": schema}}
            if path in _HEALTH:
                operation["responses"]["503"] = _UNHEALTHY
            _add_errors(path, operation)
            if path not in PUBLIC_PATHS:
                operation["security"] = [{"bearer": []}, {"basic": []}, {}]
    app.openapi_schema = document
    return document


def _add_errors(path: str, operation: dict[str, Any]) -> None:
    name = "OpenAIError" if path.startswith("/v1/") else "PlainError"
    if path == "/v1/messages":
        name = "AnthropicError"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    codes = {"400": _ERRORS["400"], "404": _ERRORS["404"], "503": _ERRORS["503"]}
    if "requestBody" in operation:
        codes = dict(_ERRORS)
    elif path not in PUBLIC_PATHS:
        codes |= {code: _ERRORS[code] for code in ("401", "403", "429")}
    for code, text in codes.items():
        operation["responses"].setdefault(code, {"description": text, "content": content})


_STREAMING: Final = frozenset(
    {"/v1/chat/completions", "/api/chat", "/v1/responses", "/v1/messages", "/api/status/stream"}
)
_OTHER_TYPES: Final = {
    "/metrics": "text/plain",
    "/v1/files/{file_id}/content": "application/octet-stream",
}
_HEALTH: Final = frozenset({"/health", "/health/ready"})
_UNHEALTHY: Final = {
    "description": "A request would not be answered now; see Retry-After",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"enum": ["loading", "degraded", "unhealthy"]}},
            }
        }
    },
}

_ERRORS: Final = {
    "400": "The request cannot be served as it stands; the text names the field",
    "401": "A key is missing or wrong",
    "403": "This key lacks the scope",
    "404": "There is no such thing, or it belongs to another key",
    "408": "The body arrived too slowly",
    "413": "The body or a picture is over its limit",
    "429": "This key is over its rate or quota; see Retry-After",
    "503": "Not now: loading, queue full or memory short; see Retry-After",
    "504": "The request's own deadline passed",
}
