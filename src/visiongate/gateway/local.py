"""Answers without a server: the same path from question to answer, for the command line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from visiongate.engine.types import ModelInfo
from visiongate.errors import ModelNotLoaded
from visiongate.gateway.admission import Admission
from visiongate.gateway.answer import Answer, Answers, Ask, Delta
from visiongate.gateway.auth import ANYBODY
from visiongate.gateway.backend import Backend, BackendStatus
from visiongate.gateway.intake import Intake
from visiongate.gateway.launch import make_backend
from visiongate.gateway.logs import Note, new_request_id
from visiongate.gateway.memory import MemoryGuard
from visiongate.gateway.sessions import Picture, Turn
from visiongate.gateway.settings import Settings
from visiongate.gateway.wire import Sampling, params_of


class LocalModel:
    """A loaded model that answers in this process's name."""

    def __init__(self, settings: Settings, backend: Backend, intake: Intake) -> None:
        self.settings = settings
        self.backend = backend
        self.intake = intake
        self._answers = Answers(
            backend,
            Admission(settings.max_concurrency, settings.max_queue),
            MemoryGuard(settings.memory_limit),
            max_images=settings.max_images,
            deadline_seconds=settings.deadline_seconds or None,
        )
        self._answers.intake = intake

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        assert self.backend.model is not None
        return self.backend.model

    async def prepare(
        self, pictures: Sequence[bytes], question: str, wish: Sampling | None = None
    ) -> Answer:
        """An answer to one question, ready to be generated."""
        parts: tuple[str | Picture, ...] = (*(Picture(data) for data in pictures), question)
        return await self.prepare_turns([Turn("user", parts)], wish)

    async def prepare_turns(self, turns: Sequence[Turn], wish: Sampling | None = None) -> Answer:
        """The next answer of a conversation, ready to be generated."""
        params = params_of(self.settings, self.intake.generation, wish or Sampling())
        note = Note(new_request_id(), "-", "CLI", "-")
        return await self._answers.prepare(Ask(tuple(turns), params, ANYBODY), note)

    async def stream(
        self, pictures: Sequence[bytes], question: str, wish: Sampling | None = None
    ) -> AsyncGenerator[str, None]:
        """The answer's text as it is generated."""
        answer = await self.prepare(pictures, question, wish)
        async with aclosing(answer.events()) as events:
            async for event in events:
                if isinstance(event, Delta):
                    yield event.text

    async def answer(
        self, pictures: Sequence[bytes], question: str, wish: Sampling | None = None
    ) -> Answer:
        """The whole answer."""
        answer = await self.prepare(pictures, question, wish)
        await answer.complete()
        return answer


@asynccontextmanager
async def local_model(
    settings: Settings, on_status: Callable[[BackendStatus], None] | None = None
) -> AsyncIterator[LocalModel]:
    """Loads the model of the settings; raises ModelNotLoaded with the reason when it cannot."""
    backend = make_backend(settings)
    await backend.start()
    try:
        while backend.model is None:
            status = backend.status()
            if on_status is not None:
                on_status(status)
            if status.state == "unhealthy":
                raise ModelNotLoaded(f"the model cannot be loaded: {status.reason}")
            await asyncio.sleep(0.1)
        yield LocalModel(settings, backend, await Intake.load(backend, settings))
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await backend.stop()
