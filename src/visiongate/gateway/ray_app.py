"""VisionGate on a Ray cluster: each replica is the whole gateway with an engine of its own.

    serve run visiongate.gateway.ray_app:build max_replicas=4 cpus=4

Ray Serve's proxy takes the requests, chooses a replica, and starts more of them while requests
wait. Settings are read where the application is built, so that all replicas have the same ones.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from visiongate.errors import InvalidSettings, ModelNotLoaded
from visiongate.gateway.app import create_app
from visiongate.gateway.auth import check_door
from visiongate.gateway.launch import make_backend
from visiongate.gateway.problems import Problem
from visiongate.gateway.settings import Settings, load

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere

HEALTH_SECONDS = 5.0
"""How often a replica is asked whether it makes progress."""

ONE_PLACE_PATHS = ("/v1/files", "/v1/batches")


class Options(BaseModel):
    """What `serve run` takes as NAME=VALUE and a config file as `args`."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1, description="Replicas that always run.")
    max_replicas: int = Field(1, ge=1, description="Replicas at most; more start as requests wait.")
    cpus: float = Field(1.0, gt=0, description="CPUs of one replica.")
    gpus: float = Field(0.0, ge=0, description="GPUs of one replica; 0 computes on the CPU.")
    requests_per_replica: float = Field(
        0.0, ge=0, description="Running and waiting requests at which one more starts; 0: places."
    )
    upscale_seconds: float = Field(10.0, ge=0, description="Load lasts this long before a start.")
    downscale_seconds: float = Field(300.0, ge=0, description="And this long before an end.")
    settings: dict[str, Any] = Field({}, description="Settings of VisionGate, over environment.")


@serve.deployment(name="VisionGate")
@serve.ingress()
class Replica:
    """The gateway and its engine in one actor of Ray Serve."""

    def __init__(self, settings: Settings, *, is_alone: bool) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        settings = settings.model_copy(update={"log_dir": settings.log_dir / f"replica-{name}"})
        self.app_of_gateway = create_app(settings, make_backend(settings))
        self.service = self.app_of_gateway.state.service
        # A cluster is a network, whatever address its proxies listen on.
        everywhere = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104
        check_door(everywhere, has_keys=not self.service.keys.is_open)
        outer: Any = self.app_of_gateway if is_alone else OnePlace(self.app_of_gateway)
        if settings.trusted_proxies:
            outer = ProxyHeadersMiddleware(outer, list(settings.trusted_proxies))
        self.outer: ASGIApp = outer
        self.has_answered = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray Serve runs, lifespan included."""
        return self.outer

    async def check_health(self) -> None:
        """Raises when /health/ready would say 503; the first check waits for the model."""
        while not self.has_answered:
            backend = self.service.backend.status()
            if backend.state == "unhealthy":
                raise ModelNotLoaded(f"the model cannot be loaded: {backend.reason}")
            self.has_answered = self.service.ready.is_set()
            await asyncio.sleep(0 if self.has_answered else 0.1)
        transport = httpx.ASGITransport(app=self.app_of_gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            answer = await client.get("/health/ready")
        if answer.status_code != 200:
            raise ModelNotLoaded(f"this replica makes no progress: {answer.text}")


class OnePlace:
    """Refuses what is kept in the files of one machine, where the next call may meet another."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 501 for files and batches, and passes the rest on."""
        if scope["type"] == "http" and scope["path"].startswith(ONE_PLACE_PATHS):
            text = "several replicas answer here; use /api/batch, or `visiongate batch --ray`"
            problem = Problem(501, text, "not_on_clusters")
            await problem.response(scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def build(arguments: dict[str, Any]) -> Any:
    """The application of Ray Serve from the fields of `Options`; raises InvalidSettings."""
    options = _options_of(arguments)
    settings = _settings_of(options)
    most = options.max_replicas
    if most < options.min_replicas:
        raise InvalidSettings(f"max_replicas={most} is less than min_replicas")
    if most > 1 and not settings.redis_url.get_secret_value():
        raise InvalidSettings(
            "several replicas share sessions, rates and quotas through Redis: set "
            "VISIONGATE_REDIS_URL, or keep max_replicas=1"
        )
    places = settings.max_concurrency
    deployment: Any = Replica  # to mypy the decorated class is still a class
    replica = deployment.options(
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=places + settings.max_queue,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": most,
            "initial_replicas": options.min_replicas,
            "target_ongoing_requests": options.requests_per_replica or places,
            "upscale_delay_s": options.upscale_seconds,
            "downscale_delay_s": options.downscale_seconds,
        },
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return replica.bind(settings, is_alone=most == 1)


def _options_of(arguments: dict[str, Any]) -> Options:
    try:
        return Options.model_validate(arguments)
    except ValidationError as error:
        names = ", ".join(sorted({str(fault["loc"][0]) for fault in error.errors()}))
        raise InvalidSettings(
            f"{names}: not an argument of this application, or a wrong value; it takes "
            f"{', '.join(Options.model_fields)}"
        ) from None


def _settings_of(options: Options) -> Settings:
    """The settings of every replica: its CPUs are its threads, its GPUs its devices."""
    settings = load(options.settings)
    update: dict[str, Any] = {"threads": settings.threads or max(1, int(options.cpus))}
    if not options.gpus:
        update["device"] = "cpu"
    for name in ("data_dir", "log_dir"):  # a replica works in another folder
        update[name] = getattr(settings, name).absolute()
    if Path(settings.model).is_dir() and settings.model:
        update["model"] = str(Path(settings.model).absolute())
    return settings.model_copy(update=update)
