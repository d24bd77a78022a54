"""Where answers come from: the protocol that every route sees.

Two things speak it: `WorkerPool` (local worker processes) and `Upstream` (another server that
speaks OpenAI's API).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from visiongate.engine.types import EngineStats, ModelInfo, Request, TokenEvent

BackendState = Literal["loading", "ready", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process as the gateway sees it.

    Attributes:
        heartbeat_age_seconds: since the worker last said anything.
        progress_age_seconds: since its step count last moved, 0 while it has nothing to do.
    """

    index: int
    device: str
    state: BackendState
    reason: str = ""
    pid: int | None = None
    restarts: int = 0
    heartbeat_age_seconds: float = 0.0
    progress_age_seconds: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a request would be answered now, and why not.

    Attributes:
        state: "ready" and "degraded" answer requests; "degraded" with a reason to look into.
        reason: a sentence for operators; empty when ready.
        loading_stage: what loads now, for the page; empty otherwise.
        loading_fraction: 0 to 1.
    """

    state: BackendState
    reason: str = ""
    loading_stage: str = ""
    loading_fraction: float = 0.0
    workers: tuple[WorkerStatus, ...] = ()


class Backend(Protocol):
    """Generates answers; created before the server listens, started and stopped by its lifespan."""

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model, or None while loading."""
        ...

    async def start(self) -> None:
        """Begins loading and returns at once."""
        ...

    async def stop(self) -> None:
        """Lets running requests end within a few seconds, then stops the workers."""
        ...

    def status(self) -> BackendStatus:
        """The present state; cheap, called for every health probe."""
        ...

    def generate(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yields the request's events; closing the iterator aborts the request within one step.

        Raises ModelNotLoaded before the first event when no worker is ready. A worker that dies
        ends the iteration by raising WorkerDied; an event's `error` is raised here, never yielded.
        """
        ...
