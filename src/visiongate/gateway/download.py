"""A backend whose model is not on this machine yet: downloads it first, then is the local workers.

The port is open all the while; `/health`, the page and `model_loading.log` show the progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from visiongate import hub
from visiongate.engine.types import ModelInfo, Request, TokenEvent
from visiongate.errors import ModelNotLoaded, VisionGateError
from visiongate.gateway.backend import Backend, BackendStatus

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
DOWNLOAD_SHARE: Final = 0.9
"""Of the whole start: what follows is seconds."""


class DownloadingBackend:
    """Fetches `model` from a hub, then starts `make(folder)` and hands everything on to it."""

    def __init__(self, model: str, make: Callable[[Path], Backend]) -> None:
        self._model_id = model
        self._make = make
        self._inner: Backend | None = None
        self._task: asyncio.Task[None] | None = None
        self._status = BackendStatus("loading", reason=f"downloading {model}")

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model, or None while downloading and loading."""
        return self._inner.model if self._inner else None

    async def start(self) -> None:
        """Begins the download and returns."""
        self._task = asyncio.create_task(self._prepare())

    async def stop(self) -> None:
        """Ends the workers; a download that is under way goes on from here at the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._inner is not None:
            await self._inner.stop()

    def status(self) -> BackendStatus:
        """The download's state, then the workers'."""
        return self._inner.status() if self._inner else self._status

    async def generate(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yields the workers' events; raises ModelNotLoaded while there are none."""
        if self._inner is None:
            raise ModelNotLoaded(self._status.reason, retry_after_seconds=30.0)
        async for event in self._inner.generate(request):
            yield event

    async def _prepare(self) -> None:
        while True:
            try:
                folder = await asyncio.to_thread(
                    hub.resolve, self._model_id, progress=self._on_progress
                )
                break
            except VisionGateError as error:
                logger.error("%s", error.message)
                self._status = BackendStatus("unhealthy", reason=error.message)
                await asyncio.sleep(RETRY_SECONDS)
                self._status = BackendStatus("loading", reason=f"downloading {self._model_id}")
        inner = self._make(folder)
        await inner.start()
        self._inner = inner

    def _on_progress(self, progress: hub.Progress) -> None:
        """Called in the download's thread; one assignment is atomic."""
        self._status = BackendStatus(
            "loading",
            reason=str(progress),
            # Steps of five per cent: every change of the stage is a line in model_loading.log.
            loading_stage=f"downloading {self._model_id}, {int(progress.fraction * 20) * 5}%",
            loading_fraction=progress.fraction * DOWNLOAD_SHARE,
        )
