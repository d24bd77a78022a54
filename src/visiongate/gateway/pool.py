"""The backend over local worker processes: least loaded first, restarted when dead or stuck."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from visiongate.engine.types import EngineStats, ModelInfo, Request, TokenEvent, WorkerSettings
from visiongate.engine.worker import (
    Abort,
    Add,
    Events,
    Failed,
    FromWorker,
    Heartbeat,
    Loading,
    LogRecord,
    Ready,
    WorkerProcess,
)
from visiongate.errors import ModelNotLoaded, WorkerDied
from visiongate.gateway.backend import BackendState, BackendStatus, WorkerStatus

logger = logging.getLogger(__name__)

SILENT_SECONDS = 5.0
"""A worker that said nothing for this long is not answering (it beats every second)."""

STUCK_SECONDS = 30.0
"""A worker whose steps stand still this long, with work to do, is restarted."""

MAX_RESTART_DELAY_SECONDS = 30.0

KNOWN_BONUS = 2
"""Requests that a worker may be busier by and still get one whose beginning it has computed."""

BEGINNING_TOKENS = 64
HOMES = 4096
"""Beginnings whose worker is remembered."""

LoadingListener = Callable[[int, FromWorker], None]


@dataclass(eq=False)
class _Worker:
    """One place for a worker process, through all its restarts."""

    index: int
    settings: WorkerSettings
    process: WorkerProcess | None = None
    model: ModelInfo | None = None
    loading: Loading | None = None
    failure: str = ""
    is_hopeless: bool = False
    restarts: int = 0
    failures_in_a_row: int = 0
    stats: EngineStats = field(default_factory=EngineStats)
    last_message: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)
    requests: dict[str, asyncio.Queue[TokenEvent | Exception]] = field(default_factory=dict)

    @property
    def progress_age(self) -> float:
        """Seconds since the steps last moved; 0 while there is nothing to do."""
        if not self.requests or self.model is None:
            return 0.0
        return time.monotonic() - self.last_progress

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the worker last said anything."""
        return time.monotonic() - self.last_message

    def load(self, known: int | None) -> int:
        """Requests under way, fewer by a bonus on the worker whose index is `known`."""
        return len(self.requests) - (KNOWN_BONUS if self.index == known else 0)

    def status(self) -> tuple[BackendState, str]:
        """The state and, unless ready, the reason."""
        if self.model is None:
            if self.failure:
                return "unhealthy", self.failure
            stage = self.loading.stage if self.loading else "starting"
            return "loading", f"loading the model: {stage}"
        if self.heartbeat_age > SILENT_SECONDS:
            return "unhealthy", f"the worker has been silent for {self.heartbeat_age:.0f} s"
        if self.progress_age > STUCK_SECONDS / 2:
            return "unhealthy", f"the worker has made no progress for {self.progress_age:.0f} s"
        return ("degraded", self.model.degraded) if self.model.degraded else ("ready", "")


def _beginning(request: Request) -> bytes:
    """What two requests share when one can use the other's cache: key, picture, first words."""
    prompt = request.prompt
    digest = hashlib.blake2b(request.cache_salt, digest_size=16)
    if prompt.spans:
        digest.update(prompt.spans[0].image.digest)
    else:
        digest.update(array("q", prompt.token_ids[:BEGINNING_TOKENS]).tobytes())
    return digest.digest()


class WorkerPool:
    """One worker process for each device; implements `Backend`.

    Args:
        workers: what each process loads.
        on_message: told of every Loading, Ready, Failed and LogRecord, for the log files.
    """

    def __init__(
        self, workers: Sequence[WorkerSettings], on_message: LoadingListener | None = None
    ) -> None:
        self._workers = [_Worker(index, settings) for index, settings in enumerate(workers)]
        self._on_message = on_message
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._restarts: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._homes: OrderedDict[bytes, int] = OrderedDict()

    @property
    def model(self) -> ModelInfo | None:
        """The first loaded worker's model, or None."""
        return next((worker.model for worker in self._workers if worker.model), None)

    async def start(self) -> None:
        """Starts all processes and returns while they load."""
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        for worker in self._workers:
            await self._spawn(worker)
        self._watch = asyncio.create_task(self._watch_progress())

    async def stop(self) -> None:
        """Ends all processes; running requests end with WorkerDied."""
        self._is_stopping = True
        tasks = [*self._restarts, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(self._stop_worker(worker) for worker in self._workers))

    def status(self) -> BackendStatus:
        """The best worker's state counts: one that answers is enough, others are told of."""
        statuses = []
        for worker in self._workers:
            state, reason = worker.status()
            statuses.append(
                WorkerStatus(
                    index=worker.index,
                    device=worker.settings.engine.device,
                    state=state,
                    reason=reason,
                    pid=worker.process.pid if worker.process else None,
                    restarts=worker.restarts,
                    heartbeat_age_seconds=worker.heartbeat_age,
                    progress_age_seconds=worker.progress_age,
                    stats=worker.stats,
                )
            )
        state, reason = _overall(statuses)
        loading = next((worker.loading for worker in self._workers if not worker.model), None)
        return BackendStatus(
            state=state,
            reason=reason,
            loading_stage=loading.stage if loading and state == "loading" else "",
            loading_fraction=loading.fraction if loading and state == "loading" else 0.0,
            workers=tuple(statuses),
        )

    async def generate(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yields the request's events from the worker that `_choose` finds."""
        worker = self._choose(request)
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        if not worker.requests:
            worker.last_progress = time.monotonic()
        worker.requests[request.request_id] = events
        process = worker.process
        assert process is not None
        process.send(Add(request))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if event.error is not None:
                    raise event.error
                yield event
                if event.is_final:
                    return
        finally:
            if worker.requests.pop(request.request_id, None) is not None:
                process.send(Abort(request.request_id))  # harmless when it has ended

    def _choose(self, request: Request) -> _Worker:
        """The least loaded worker that is ready, or one little busier that knows the beginning.

        A worker that has answered about the same picture or the same first words has their keys and
        values, which saves more than a shorter line does.
        """
        able = [worker for worker in self._workers if worker.status()[0] in ("ready", "degraded")]
        if not able:
            status = self.status()
            raise ModelNotLoaded(status.reason or "model not loaded", retry_after_seconds=2.0)
        beginning = _beginning(request)
        known = self._homes.get(beginning)
        worker = min(able, key=lambda other: (other.load(known), other.index))
        self._homes[beginning] = worker.index
        self._homes.move_to_end(beginning)
        while len(self._homes) > HOMES:
            self._homes.popitem(last=False)
        return worker

    # ---- processes

    async def _spawn(self, worker: _Worker) -> None:
        """Starts a process and listens to it."""
        worker.model = None
        worker.loading = None
        worker.last_message = worker.last_progress = time.monotonic()
        process = await asyncio.to_thread(WorkerProcess, worker.settings)
        worker.process = process
        assert self._loop is not None
        self._loop.add_reader(process.fileno(), self._listen, worker, process)

    def _listen(self, worker: _Worker, process: WorkerProcess) -> None:
        """Takes what a process has said, or that it has ended."""
        assert self._loop is not None
        try:
            messages = process.receive_ready()
        except EOFError:
            self._loop.remove_reader(process.fileno())
            self._on_end(worker)
            return
        for message in messages:
            self._on_receive(worker, message)

    def _on_receive(self, worker: _Worker, message: FromWorker) -> None:
        worker.last_message = time.monotonic()
        match message:
            case Events(events):
                worker.last_progress = time.monotonic()
                self._deliver(worker, events)
            case Heartbeat(stats):
                if stats.steps != worker.stats.steps:
                    worker.last_progress = time.monotonic()
                worker.stats = stats
            case Loading():
                worker.loading = message
            case Ready(model):
                worker.model, worker.failure = model, ""
                worker.failures_in_a_row = 0
            case Failed(reason, is_final):
                worker.failure, worker.is_hopeless = reason, is_final
            case LogRecord(level, text, trace):
                logger.log(level, "worker %d: %s", worker.index, "\n".join((text, trace)).strip())
        if self._on_message and not isinstance(message, Events | Heartbeat):
            self._on_message(worker.index, message)

    def _deliver(self, worker: _Worker, events: list[TokenEvent]) -> None:
        for event in events:
            waiting = worker.requests.get(event.request_id)
            if waiting is None:
                continue  # aborted meanwhile
            waiting.put_nowait(event)
            if event.is_final:
                del worker.requests[event.request_id]

    def _on_end(self, worker: _Worker) -> None:
        """A process has ended: its requests end with an error, and a new one is started."""
        worker.model = None
        for waiting in worker.requests.values():
            waiting.put_nowait(
                WorkerDied(
                    "the worker that was answering has ended; it is being restarted, try again",
                    retry_after_seconds=5.0,
                )
            )
        worker.requests.clear()
        if self._is_stopping or worker.is_hopeless:
            return
        task = asyncio.ensure_future(self._restart(worker))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, worker: _Worker) -> None:
        """Starts a worker again, after a pause that grows with every failure in a row."""
        delay = min(0.1 * 2.0**worker.failures_in_a_row, MAX_RESTART_DELAY_SECONDS)
        worker.restarts += 1
        worker.failures_in_a_row += 1
        code = None
        if worker.process is not None:
            code = await self._end(worker.process, grace_seconds=0.1)
            worker.process = None
        logger.error(
            "worker %d ended with code %s; restart %d in %.1f s",
            worker.index,
            code,
            worker.restarts,
            delay,
        )
        await asyncio.sleep(delay)
        await self._spawn(worker)

    async def _watch_progress(self) -> None:
        """Kills a worker that has work and makes no progress; its end starts a new one."""
        while True:
            await asyncio.sleep(1.0)
            for worker in self._workers:
                is_silent = worker.model is not None and worker.heartbeat_age > STUCK_SECONDS
                if worker.process and (is_silent or worker.progress_age > STUCK_SECONDS):
                    logger.error("worker %d is stuck and is killed", worker.index)
                    worker.process.kill()
                    worker.last_message = worker.last_progress = time.monotonic()

    async def _stop_worker(self, worker: _Worker) -> None:
        if worker.process is not None:
            await self._end(worker.process)
            worker.process = None
        self._on_end(worker)

    async def _end(self, process: WorkerProcess, grace_seconds: float = 3.0) -> int | None:
        """Ends a process and stops listening to it; returns its exit code."""
        assert self._loop is not None
        await asyncio.to_thread(process.stop, grace_seconds)
        self._loop.remove_reader(process.fileno())
        process.close()
        return process.process.exitcode


def _overall(workers: Sequence[WorkerStatus]) -> tuple[BackendState, str]:
    """The service's state from its workers': ready when all are, degraded when some answer."""
    states = [worker.state for worker in workers]
    reasons = "; ".join(
        f"{worker.device}: {worker.reason}" if len(workers) > 1 else worker.reason
        for worker in workers
        if worker.reason
    )
    if all(state == "ready" for state in states):
        return "ready", ""
    if any(state in ("ready", "degraded") for state in states):
        return "degraded", reasons
    return ("loading" if "loading" in states else "unhealthy"), reasons
