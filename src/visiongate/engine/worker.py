"""The engine in its own process: requests in, events out, a heartbeat all the time.

    gateway process                            worker process
    WorkerProcess.send(...)         --pipe-->  engine thread, between steps: Engine.step
    WorkerProcess.receive_ready()   <--pipe--  engine thread: Events;  heartbeat thread: Heartbeat

The gateway's side imports no tensor library; the worker's side imports it first thing.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from visiongate.engine.pipe import MessagePipe, Sender
from visiongate.engine.processes import process_rss_bytes
from visiongate.engine.types import (
    Crossing,
    EngineSettings,
    EngineStats,
    ModelInfo,
    Request,
    TokenEvent,
    WorkerSettings,
)
from visiongate.errors import VisionGateError
from visiongate.model.card_limits import CHUNK_TOKENS

if TYPE_CHECKING:
    from visiongate.engine.engine import Engine

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Add(Crossing):
    """To the worker: begin this request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort(Crossing):
    """To the worker: forget this request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Loading:
    """From the worker: what it loads now; `fraction` of the whole start is done."""

    stage: str
    fraction: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: requests are answered from now on."""

    model: ModelInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker, before it ends: why nothing could be loaded."""

    message: str
    is_final: bool
    """Whether another try would fail the same way."""


@dataclass(frozen=True, slots=True)
class Events(Crossing):
    """From the worker: the news of one step."""

    events: list[TokenEvent]


@dataclass(frozen=True, slots=True)
class Heartbeat(Crossing):
    """From the worker, every second: its state; sent even while the engine thread is busy."""

    stats: EngineStats


@dataclass(frozen=True, slots=True)
class LogRecord:
    """From the worker: a line for the gateway's logs."""

    level: int
    message: str
    trace: str = ""


ToWorker = Add | Abort
FromWorker = Loading | Ready | Failed | Events | Heartbeat | LogRecord


class WorkerProcess:
    """The gateway's handle of one worker; nothing waits but its start and its end."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = socket.socketpair()
        self._pipe = MessagePipe(mine)
        self._sender = Sender(self._pipe)
        self.process: SpawnProcess = context.Process(
            target=run_worker, args=(theirs, settings), name="visiongate-worker", daemon=True
        )
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self.process.pid

    def fileno(self) -> int:
        """The descriptor that is readable when the worker has said something, or has ended."""
        return self._pipe.fileno()

    def send(self, message: ToWorker) -> None:
        """Hands a message over; a worker that is gone is noticed by `receive_ready`."""
        self._sender.send(message)

    def receive_ready(self) -> list[FromWorker]:
        """The messages that have arrived. Raises EOFError once the worker has ended."""
        try:
            messages: list[FromWorker] = self._pipe.receive_ready()
        except (OSError, ValueError) as error:
            raise EOFError from error
        return messages

    def stop(self, grace_seconds: float = 3.0) -> None:
        """Ends the process: asks, then kills."""
        self.process.terminate()
        self.process.join(grace_seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def close(self) -> None:
        """Closes the pipe; nobody may be watching `fileno` any more."""
        self._sender.close()
        self._pipe.close()

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()


def run_worker(end: socket.socket, settings: WorkerSettings) -> None:
    """The worker process's main function; returns only when there is nothing left to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's; it stops us
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    pipe = MessagePipe(end)
    outbox = _Outbox(pipe)
    logging.getLogger().addHandler(_PipeHandler(outbox))
    try:
        engine, model = load_engine(settings, outbox.send)
    except VisionGateError as error:
        outbox.send(Failed(error.message, is_final=True))
        sys.exit(1)
    except MemoryError:
        outbox.send(Failed("memory is too short for this model; see `visiongate doctor`", False))
        sys.exit(1)
    except Exception:
        logger.exception("loading failed")
        outbox.send(Failed("the model could not be loaded; error.log has the reason", False))
        sys.exit(1)
    threading.Thread(target=_beat, args=(engine, outbox), daemon=True).start()
    outbox.send(Ready(model))
    _serve(engine, pipe, outbox, settings.check_seconds)


def _serve(engine: Engine, pipe: MessagePipe, outbox: _Outbox, check_seconds: float) -> None:
    """The engine thread: takes messages between steps, sends each step's events."""
    held = HeldEvents()
    next_check = time.monotonic() + check_seconds
    while True:
        wait = 0.0 if engine.has_work else max(0.0, next_check - time.monotonic())
        for message in _read(pipe, wait):
            match message:
                case Add(request):
                    held.begin(request)
                    engine.add(request)
                case Abort(request_id):
                    held.forget(request_id)
                    engine.abort(request_id)
        if engine.has_work:
            events = held.release(engine.step())
            if events:
                outbox.send(Events(events))
        if time.monotonic() >= next_check:
            _check_device(engine)
            next_check = time.monotonic() + check_seconds


class HeldEvents:
    """Holds back the news of answers that nobody watches, until they are complete.

    A message wakes the gateway between two steps, on the cores that compute them. When the answer
    began stands in its usage.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[TokenEvent]] = {}

    def begin(self, request: Request) -> None:
        """Takes note of a new request."""
        if not request.is_streamed:
            self._held[request.request_id] = []

    def forget(self, request_id: str) -> None:
        """Drops what is held of a request that was aborted."""
        self._held.pop(request_id, None)

    def release(self, events: list[TokenEvent]) -> list[TokenEvent]:
        """What is to be sent after a step with these events, in order."""
        ready: list[TokenEvent] = []
        for event in events:
            if event.request_id not in self._held:
                ready.append(event)
            elif event.is_final:
                ready += [*self._held.pop(event.request_id), event]
            else:
                self._held[event.request_id].append(event)
        return ready


def _read(pipe: MessagePipe, wait_seconds: float) -> list[ToWorker]:
    """The messages that are there; when the gateway is gone there is nothing left to do."""
    try:
        messages: list[ToWorker] = pipe.receive_begun(wait_seconds)
    except (EOFError, OSError):
        os._exit(0)
    return messages


def _beat(engine: Engine, outbox: _Outbox) -> None:
    """The heartbeat thread."""
    card = None
    if engine.settings.device != "cpu":
        from visiongate.engine.cards import Card

        card = Card(engine.settings.device)
    while True:
        stats = dataclasses.replace(engine.stats(), rss_bytes=process_rss_bytes())
        if card is not None:
            state = card.read()
            stats = dataclasses.replace(
                stats,
                device_memory_bytes=state.memory_bytes,
                device_memory_total_bytes=state.memory_total_bytes,
                device_temperature=state.temperature,
                device_utilisation=state.utilisation,
            )
        outbox.send(Heartbeat(stats))
        time.sleep(HEARTBEAT_SECONDS)


def _check_device(engine: Engine) -> None:
    """A tiny computation with a known result; a device that gets it wrong is given up.

    Free memory that the engine holds back is returned first; when the second try fails too the
    process ends, and the gateway starts a new one.
    """
    if engine.device_is_sound():
        return
    logger.error("the device failed its check; caches are cleared and it is tried again")
    engine.clear_caches()
    if not engine.device_is_sound():
        logger.error("the device failed its check twice; the worker ends")
        os._exit(1)


def load_engine(
    settings: WorkerSettings, report: Callable[[Loading], None]
) -> tuple[Engine, ModelInfo]:
    """Imports, loads and warms up, reporting each stage; raises what a checkpoint raises."""
    clock = _StageClock(report)
    clock.begin("libraries", 0.0)
    # torch's own threads would spin between our kernels and take processor time from them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from visiongate import kernels
    from visiongate.engine.engine import Engine
    from visiongate.model.weights import num_parameters, num_weight_bytes, revision_of

    threads = settings.engine.num_threads or kernels.default_num_threads()
    engine_settings, degraded = _choose_device(settings)
    engine_settings = dataclasses.replace(engine_settings, num_threads=threads)
    clock.begin("weights", 0.2)
    folder = Path(settings.model_path)
    engine = Engine.from_pretrained(folder, engine_settings)
    clock.begin("pictures", 0.8)
    onnx = _use_onnx(engine, folder) if engine_settings.use_onnx_runtime else ""
    clock.begin("warm-up", 0.9)
    engine.warm_up()
    gc.collect()
    gc.freeze()  # later collections look at requests alone: others took longer than a step
    seconds = clock.end()
    info = ModelInfo(
        model_id=settings.model_id,
        path=str(folder),
        revision=revision_of(folder),
        num_parameters=num_parameters(folder),
        precision=engine_settings.precision,
        device=engine_settings.device,
        backend=(kernels.backend() if engine_settings.device == "cpu" else "cuda") + onnx,
        max_context_tokens=engine.max_context,
        num_threads=threads,
        weights_bytes=num_weight_bytes(folder),
        cache_tokens=engine_settings.cache_tokens,
        degraded=degraded,
        load_seconds=seconds,
    )
    return engine, info


def _use_onnx(engine: Engine, folder: Path) -> str:
    """Moves the vision tower to ONNX Runtime; says so for `backend`, or warns and does nothing."""
    from visiongate.model.onnx import OnnxUnavailable, open_tower
    from visiongate.model.vision import VisionTower

    try:
        tower = engine.encoder.tower
        if engine.settings.device != "cpu" or not isinstance(tower, VisionTower):
            raise OnnxUnavailable("it is for the CPU, and this worker has a GPU")
        onnx = open_tower(tower, folder, engine.settings.num_threads)
    except OnnxUnavailable as error:
        logger.warning("USE_ONNX_RUNTIME has no effect: %s", error.message)
        return ""
    engine.encoder.tower = onnx
    return f", pictures in {onnx.name}"


def on_gpu(settings: EngineSettings) -> EngineSettings:
    """The same settings in a GPU's measures: larger blocks, chunks and steps, shorter slices.

    A slice stands between two tokens of the streams, whose own step takes 3 to 8 ms (`Pace` makes
    it longer for many streams). Guesses are off: the next step is launched before this one's
    tokens are known.
    """
    return dataclasses.replace(
        settings,
        block_size=64,
        chunk_tokens=CHUNK_TOKENS,
        max_step_tokens=2048,
        slice_seconds=0.005,
        drafts=False,
    )


def _choose_device(settings: WorkerSettings) -> tuple[EngineSettings, str]:
    """The settings to load with, and a reason when that is the CPU instead of the wanted device."""
    import torch

    wanted = settings.engine.device
    if wanted == "cpu":
        return settings.engine, ""
    if torch.cuda.is_available():
        return on_gpu(settings.engine), ""
    if not settings.fall_back_to_cpu:
        raise VisionGateError(f"{wanted} cannot be used: no NVIDIA GPU is visible to this process")
    reason = f"{wanted} cannot be used (no NVIDIA GPU is visible); running on the CPU, slowly"
    logger.warning(reason)
    precision = settings.engine.precision
    precision = "int8" if precision == "float8" else precision  # as small, on the CPU
    return dataclasses.replace(settings.engine, device="cpu", precision=precision), reason


class _StageClock:
    """Times the stages of loading and tells of each."""

    def __init__(self, report: Callable[[Loading], None]) -> None:
        self._report = report
        self._stage = ""
        self._start = self._stage_start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def begin(self, stage: str, fraction: float) -> None:
        self._close()
        self._stage = stage
        self._report(Loading(stage, fraction, time.perf_counter() - self._start))

    def end(self) -> dict[str, float]:
        self._close()
        return {**self._seconds, "total": time.perf_counter() - self._start}

    def _close(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] = now - self._stage_start
        self._stage_start = now


class _Outbox:
    """The pipe to the gateway, for several threads."""

    def __init__(self, pipe: MessagePipe) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                os._exit(0)  # the gateway is gone


class _PipeHandler(logging.Handler):
    """Log records go to the gateway, which has the log files."""

    def __init__(self, outbox: _Outbox) -> None:
        super().__init__(logging.WARNING)
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._outbox.send(LogRecord(record.levelno, record.getMessage(), trace))
