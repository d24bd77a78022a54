"""Whether a request would be answered, for machines and for the page; models and versions."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import visiongate
from visiongate.engine.processes import process_rss_bytes
from visiongate.gateway.auth import caller_of
from visiongate.gateway.backend import WorkerStatus
from visiongate.gateway.memory import memory_used
from visiongate.gateway.problems import not_found
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.stream import EventStream, frame

router = APIRouter(tags=["health"])

RETRY_SECONDS: Final = {"loading": "5", "degraded": "10", "unhealthy": "10"}
STATUS_SECONDS: Final = 0.5
_LIBRARIES: Final = (
    "torch",
    "numpy",
    "pillow",
    "tokenizers",
    "safetensors",
    "llguidance",
    "fastapi",
    "uvicorn",
)


@router.get("/health", summary="Would a request be answered?")
async def health(request: Request) -> Response:
    """Exactly `{"status":"healthy"}` with 200, or 503 with the state."""
    service = service_of(request)
    state, _ = service.state()
    if state == "ready" or (state == "degraded" and _answers(service)):
        return JSONResponse({"status": "healthy"})
    return _unavailable(state)


@router.get("/health/live", summary="Does the HTTP side live?")
async def live() -> Response:
    """Always 200 while the process serves."""
    return JSONResponse({"status": "alive"})


@router.get("/health/ready", summary="Do the workers make progress?")
async def ready(request: Request) -> Response:
    """200 when a worker speaks and its steps move; judged by progress, not by existence."""
    service = service_of(request)
    if _answers(service):
        return JSONResponse({"status": "ready"})
    return _unavailable(service.state()[0])


@router.get("/health/details", summary="Everything that an operator wants to know")
async def details(request: Request) -> Response:
    """State, model, workers, queue, memory, versions."""
    service = service_of(request)
    model = service.backend.model
    return JSONResponse(
        {
            **status_object(service, is_full=True),
            "uptime_seconds": round(time.time() - service.started, 1),
            "versions": versions(),
            "model_details": None
            if model is None
            else {
                "id": model.model_id,
                "path": model.path,
                "revision": model.revision,
                "num_parameters": model.num_parameters,
                "dtype": model.precision,
                "device": model.device,
                "backend": model.backend,
                "threads": model.num_threads,
                "max_context_tokens": model.max_context_tokens,
                "weights_bytes": model.weights_bytes,
                "cache_tokens": model.cache_tokens,
                "load_seconds": model.load_seconds,
            },
        }
    )


@router.get("/version", summary="Versions of the program and its libraries")
async def version() -> Response:
    """The program, Python and the libraries that compute."""
    return JSONResponse({"version": visiongate.__version__, "versions": versions()})


@router.get("/v1/models", summary="The served model")
async def models(request: Request) -> Response:
    """One model, as OpenAI lists them."""
    found = _model(service_of(request))
    return JSONResponse({"object": "list", "data": [found] if found else []})


@router.get("/v1/models/{name:path}", summary="One model")
async def model(request: Request, name: str) -> Response:
    """The served model by its id or an alias."""
    service = service_of(request)
    found = _model(service)
    if found is None or name not in service.model_aliases():
        raise not_found(f"the model {name[:100]!r}", param="model")
    return JSONResponse(found)


@router.get("/api/status", summary="The state of the service, for the page")
async def status(request: Request) -> Response:
    """State, queue, loading progress, limits."""
    service = service_of(request)
    is_full = service.sees_details(caller_of(request.scope))
    return JSONResponse(status_object(service, is_full=is_full))


@router.get("/api/status/stream", summary="The state as it changes")
async def status_stream(request: Request) -> Response:
    """Server-sent events: the status object at once and whenever it changes."""
    service = service_of(request)
    is_full = service.sees_details(caller_of(request.scope))
    return EventStream(
        _changes(service, is_full=is_full), heartbeat_seconds=service.settings.heartbeat_seconds
    )


def status_object(service: Service, *, is_full: bool) -> dict[str, Any]:
    """What the page shows; without `is_full`, nothing about the machine."""
    settings = service.settings
    backend = service.backend.status()
    state, reason = service.state()
    model = service.backend.model
    intake = service.answers.intake
    found: dict[str, Any] = {
        "state": state,
        "reason": reason,
        "edition": settings.preset,
        "title": settings.title,
        "model": intake.model_name if intake else (model.model_id if model else settings.model),
        "precision": model.precision if model else settings.precision,
        "device": model.device if model else settings.device,
        "version": visiongate.__version__,
        "queue": {
            "running": service.admission.num_running,
            "waiting": service.admission.num_waiting,
            "capacity": service.admission.num_places,
        },
        "loading": {"stage": backend.loading_stage, "fraction": backend.loading_fraction},
        "limits": {
            "image_bytes": settings.image_bytes,
            "max_images": settings.max_images,
            "max_tokens": settings.max_tokens,
        },
        "auth": "open" if service.keys.is_open else "key",
        "is_exposed": service.keys.is_open and not settings.is_loopback,
        "demo": settings.is_demo,
    }
    if is_full:
        rss = sum(worker.stats.rss_bytes for worker in backend.workers)
        found |= {
            "memory": {
                "used_bytes": process_rss_bytes() + rss,
                "system_used_bytes": memory_used(),
                "limit_bytes": service.guard.limit_bytes,
            },
            "speed": {"tokens_per_second": tokens_per_second(service)},
            "workers": [_worker(worker) for worker in backend.workers],
        }
    return found


def tokens_per_second(service: Service) -> float:
    """Generated tokens per second of decoding, over all workers since their start."""
    stats = [worker.stats for worker in service.backend.status().workers]
    seconds = sum(item.decode_seconds for item in stats)
    return round(sum(item.decoded_tokens for item in stats) / seconds, 1) if seconds else 0.0


def versions() -> dict[str, str]:
    """Python and the installed libraries, read from their metadata without importing them."""
    found = {"visiongate": visiongate.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _answers(service: Service) -> bool:
    """Whether at least one worker speaks and moves."""
    if service.state()[0] not in {"ready", "degraded"}:
        return False
    workers = service.backend.status().workers
    limit = service.settings.stuck_seconds
    return not workers or any(
        worker.state in {"ready", "degraded"}
        and worker.heartbeat_age_seconds < limit
        and worker.progress_age_seconds < 3 * limit
        for worker in workers
    )


def _unavailable(state: str) -> Response:
    shown = state if state in RETRY_SECONDS else "unhealthy"
    return JSONResponse(
        {"status": shown}, status_code=503, headers={"Retry-After": RETRY_SECONDS[shown]}
    )


def _model(service: Service) -> dict[str, Any] | None:
    info = service.backend.model
    intake = service.answers.intake
    if info is None:
        return None
    return {
        "id": intake.model_name if intake else info.model_id,
        "object": "model",
        "created": int(service.started),
        "owned_by": "visiongate",
        "revision": info.revision,
        "precision": info.precision,
        "max_context_tokens": info.max_context_tokens,
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    stats = worker.stats
    card: dict[str, Any] = {}
    if stats.device_memory_total_bytes:
        card = {
            "memory_bytes": stats.device_memory_bytes,
            "memory_total_bytes": stats.device_memory_total_bytes,
            "temperature": stats.device_temperature,
            "utilisation": stats.device_utilisation,
        }
    return {
        "card": card or None,
        "index": worker.index,
        "device": worker.device,
        "state": worker.state,
        "reason": worker.reason,
        "pid": worker.pid,
        "restarts": worker.restarts,
        "heartbeat_age_seconds": round(worker.heartbeat_age_seconds, 1),
        "progress_age_seconds": round(worker.progress_age_seconds, 1),
        "running": worker.stats.num_running,
        "waiting": worker.stats.num_waiting,
        "prompt_tokens": worker.stats.prompt_tokens,
        "completion_tokens": worker.stats.completion_tokens,
        "rss_bytes": worker.stats.rss_bytes,
    }


async def _changes(service: Service, *, is_full: bool) -> AsyncGenerator[bytes, None]:
    last = ""
    while not service.is_draining():  # a page that is open must not hold up the end
        now = status_object(service, is_full=is_full)
        shown = {k: v for k, v in now.items() if k not in {"memory", "workers"}}
        text = json.dumps(shown, sort_keys=True)
        if text != last:
            last = text
            yield frame(now)
        await asyncio.sleep(STATUS_SECONDS)
