"""Everything that the routes share: the backend, the queue, sessions, keys, logs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from visiongate.errors import VisionGateError
from visiongate.gateway.admission import Admission
from visiongate.gateway.answer import Answers
from visiongate.gateway.audit import Audit
from visiongate.gateway.auth import ALL_SCOPES, Caller, Keys
from visiongate.gateway.backend import Backend, BackendState
from visiongate.gateway.fetch import Fetcher
from visiongate.gateway.intake import Intake
from visiongate.gateway.known import KnownPictures
from visiongate.gateway.logs import LoadingLog, Logs, Note
from visiongate.gateway.memory import MemoryGuard
from visiongate.gateway.metrics import Metrics
from visiongate.gateway.rates import MemoryRates, Rates
from visiongate.gateway.redis_rates import RedisRates
from visiongate.gateway.redis_sessions import RedisSessions
from visiongate.gateway.sessions import MemorySessions, Session, Sessions
from visiongate.gateway.settings import Settings
from visiongate.gateway.store import Store

if TYPE_CHECKING:
    from visiongate.gateway.batches import BatchRunner

WATCH_SECONDS: Final = 0.1
_AUDITED: Final = ("/v1/", "/api/")
_NOT_AUDITED: Final = ("/api/status", "/v1/models")


class Service:
    """Made once for an application; `start` and `stop` are its lifespan."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self.started = time.time()
        self.logs = Logs(
            settings.log_dir, max_bytes=settings.log_bytes, num_files=settings.log_files
        )
        self.store = Store(settings.data_dir)
        self.keys = Keys(settings, self.store)
        self.rates = make_rates(settings)
        self.audit = Audit(self.store) if settings.audit else None
        self.admission = Admission(settings.max_concurrency, settings.max_queue)
        self.guard = MemoryGuard(settings.memory_limit)
        self.answers = Answers(
            backend,
            self.admission,
            self.guard,
            max_images=settings.max_images,
            deadline_seconds=settings.deadline_seconds or None,
        )
        self.sessions = make_sessions(settings)
        self.fetcher = Fetcher(
            hosts=settings.image_hosts,
            allows_private=settings.private_image_hosts,
            limit=settings.image_bytes,
        )
        self.known = KnownPictures()
        self.metrics = Metrics(self)
        self.batches: BatchRunner  # made by create_app, which knows both
        self.ready = asyncio.Event()
        self.is_draining: Callable[[], bool] = lambda: False
        """Whether the server is stopping; told by whoever runs it."""
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins loading; the port may open at once."""
        await self.backend.start()
        self._watch = asyncio.create_task(self._watch_backend())
        self.batches.start()

    async def stop(self) -> None:
        """Stops the backend and closes the files."""
        await self.batches.stop()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await self.backend.stop()
        await self.sessions.close()
        await self.rates.close()
        await self.fetcher.close()
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)
        self.store.close()
        self.logs.close()

    def state(self) -> tuple[BackendState, str]:
        """Whether a request would be answered now, and the reason why not."""
        status = self.backend.status()
        if status.state in {"ready", "degraded"} and self.answers.intake is None:
            return "loading", "loading the tokenizer"
        return status.state, status.reason

    def state_headers(self) -> list[tuple[bytes, bytes]]:
        """Tells every caller of a degraded service that it is one."""
        is_degraded = self.backend.status().state == "degraded"
        return [(b"x-visiongate-state", b"degraded")] if is_degraded else []

    async def session(self, session_id: str | None, caller: Caller) -> Session | None:
        """The session that a request names: None for none, a new one for ""."""
        if session_id is None:
            return None
        if session_id == "":
            return await self.sessions.open(caller.id)
        return await self.sessions.find(session_id, caller.id)

    def model_aliases(self) -> frozenset[str]:
        """The names under which the served model may be asked for."""
        names = {self.settings.preset, "default", "visiongate", self.settings.model}
        if self.answers.intake is not None:
            names.add(self.answers.intake.model_name)
        if self.backend.model is not None:
            names.add(self.backend.model.model_id)
        return frozenset(names | {Path(name).name for name in names if name})

    def finish(self, note: Note) -> None:
        """Called once for every request, when its last byte is out."""
        self.metrics.observe(note)
        if note.prompt_tokens:
            self.rates.count_tokens(note.who, note.prompt_tokens + note.completion_tokens)
        is_call = note.path.startswith(_AUDITED) and not note.path.startswith(_NOT_AUDITED)
        if self.audit is not None and is_call and note.method != "GET":
            self.audit.record(note)

    def note_error(self, error: BaseException, note: Note) -> None:
        """Keeps an error that was told inside a stream; ours need no stack trace."""
        note.outcome = type(error).__name__
        if not isinstance(error, VisionGateError):
            self.logs.error(error, note.request_id)

    def sees_details(self, caller: Caller) -> bool:
        """Whether a caller of a public path may see more than the state."""
        return caller.scopes == ALL_SCOPES or "chat" in caller.scopes

    async def _watch_backend(self) -> None:
        """Reads the tokenizer once a model is there, and logs the stages of loading."""
        log = LoadingLog(self.logs)
        while True:
            status = self.backend.status()
            log.watch(status.loading_stage, status.state, status.reason)
            model = self.backend.model
            if model is not None and self.answers.intake is None:
                try:
                    self.answers.intake = await Intake.load(self.backend, self.settings)
                except VisionGateError as error:
                    self.logs.error(error, "start")
                    self.logs.loading(f"the tokenizer cannot be loaded: {error.message}")
                    await asyncio.sleep(5)
                    continue
                stages = ", ".join(f"{k} {v:.2f}s" for k, v in model.load_seconds.items())
                self.logs.loading(
                    f"loaded {model.model_id} {model.revision} {model.precision} on "
                    f"{model.device} ({model.backend}): {stages}"
                )
            if self.state()[0] in {"ready", "degraded"}:
                self.ready.set()
            await asyncio.sleep(WATCH_SECONDS)


def make_sessions(settings: Settings) -> Sessions:
    """In Redis where the settings name one, else in memory."""
    url = settings.redis_url.get_secret_value()
    if url:
        return RedisSessions(url, ttl_seconds=settings.session_seconds)
    return MemorySessions(
        ttl_seconds=settings.session_seconds,
        max_bytes=settings.session_bytes,
        max_sessions=settings.max_sessions,
    )


def make_rates(settings: Settings) -> Rates:
    """In Redis where the settings name one, else in memory."""
    url = settings.redis_url.get_secret_value()
    return RedisRates(url) if url else MemoryRates()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service
