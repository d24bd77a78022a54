"""The worker process and its pool: a worker that dies, stops, or is left by its client."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import draw_receipt
from visiongate.engine.image import decode
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import (
    EngineSettings,
    Prompt,
    Request,
    SamplingParams,
    WorkerSettings,
)
from visiongate.errors import InvalidRequest, ModelNotLoaded, WorkerDied
from visiongate.gateway.backend import BackendState
from visiongate.gateway.pool import WorkerPool

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"
BUILDER = PromptBuilder.from_pretrained(WEIGHTS)
RECEIPT = draw_receipt(0)


def request(name: str, question: str = "What is the total?", **params: object) -> Request:
    prompt = BUILDER.build([Message("user", (decode(RECEIPT.png), question))])
    return Request(name, prompt, SamplingParams(**params))  # type: ignore[arg-type]


@asynccontextmanager
async def running_pool(count: int = 1, path: Path = WEIGHTS) -> AsyncIterator[WorkerPool]:
    settings = WorkerSettings(str(path), "mini", EngineSettings(num_threads=1, cache_tokens=4096))
    pool = WorkerPool([settings] * count)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def until(pool: WorkerPool, *states: BackendState, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while pool.status().state not in states:
        assert time.monotonic() < deadline, pool.status()
        await asyncio.sleep(0.02)


async def answer(pool: WorkerPool, wanted: Request) -> str:
    return "".join([event.text async for event in pool.generate(wanted)])


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


class Stage:
    """Pools that several tests use one after the other: a worker takes seconds to start.

    The loop stands still between the tests; what the workers said meanwhile is heard first.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._pools: dict[int, WorkerPool] = {}

    def run(
        self, test: Callable[[WorkerPool], Coroutine[None, None, None]], count: int = 1
    ) -> None:
        """Plays a test with a pool of so many workers, all of them ready."""
        self._loop.run_until_complete(self._play(test, count))

    def close(self) -> None:
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()

    async def _play(
        self, test: Callable[[WorkerPool], Coroutine[None, None, None]], count: int
    ) -> None:
        if count not in self._pools:
            self._pools[count] = await self._stack.enter_async_context(running_pool(count))
        await until(self._pools[count], "ready")
        await test(self._pools[count])


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    found = Stage()
    yield found
    found.close()


def test_a_killed_worker_ends_its_streams_and_comes_back() -> None:
    async def story() -> None:
        async with running_pool() as pool:
            with pytest.raises(ModelNotLoaded):
                await answer(pool, request("too early"))
            await until(pool, "ready")
            assert await answer(pool, request("first")) == RECEIPT.total
            pid = pool.status().workers[0].pid
            assert pid is not None
            with pytest.raises(WorkerDied):  # noqa: PT012  # the kill comes in the middle
                async for event in pool.generate(request("cut", "Read all the text.")):
                    assert not event.is_final
                    os.kill(pid, signal.SIGKILL)
            assert pool.status().state == "loading"
            await until(pool, "ready")
            assert pool.status().workers[0].restarts == 1
            assert await answer(pool, request("after")) == RECEIPT.total

    run(story)


def test_a_frozen_worker_is_not_ready_within_seconds(stage: Stage) -> None:
    async def story(pool: WorkerPool) -> None:
        pid = pool.status().workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(pool, "unhealthy", seconds=10)
            assert "silent" in pool.status().reason
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(pool, "ready", seconds=10)
        assert await answer(pool, request("thawed")) == RECEIPT.total

    stage.run(story)


def test_a_known_picture_goes_where_its_features_are_and_a_new_one_to_the_idle_worker(
    stage: Stage,
) -> None:
    async def story(pool: WorkerPool) -> None:
        assert await answer(pool, request("first")) == RECEIPT.total
        stream = pool.generate(
            request("long", "Read all the text.", ignore_eos=True, max_tokens=2000, guard=False)
        )
        await anext(stream)
        again = [event async for event in pool.generate(request("again"))]
        assert again[-1].usage is not None
        assert again[-1].usage.cached_tokens > 0
        text = Prompt([5, 6, 7, 8], np.zeros((3, 4), np.int32) + np.arange(4), 0)
        other = pool.generate(
            Request("other", text, SamplingParams(max_tokens=2000, ignore_eos=True, guard=False))
        )
        await anext(other)
        await asyncio.sleep(1.2)  # a heartbeat
        running = [worker.stats.num_running for worker in pool.status().workers]
        assert running == [1, 1]
        await stream.aclose()  # type: ignore[attr-defined]
        await other.aclose()  # type: ignore[attr-defined]

    stage.run(story, count=2)


def test_closing_the_iterator_frees_the_worker(stage: Stage) -> None:
    async def story(pool: WorkerPool) -> None:
        stream = pool.generate(
            request("left", "Read all the text.", ignore_eos=True, max_tokens=2000, guard=False)
        )
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 10
        await asyncio.sleep(2.2)  # two heartbeats
        while pool.status().workers[0].stats.num_running:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        stats = pool.status().workers[0].stats
        assert stats.num_free_blocks == stats.num_blocks

    stage.run(story)


def test_two_workers_share_the_load_and_one_is_enough(stage: Stage) -> None:
    async def story(pool: WorkerPool) -> None:
        before = [worker.stats.completion_tokens for worker in pool.status().workers]
        texts = await asyncio.gather(*(answer(pool, request(f"r{i}")) for i in range(6)))
        assert texts == [RECEIPT.total] * 6
        await asyncio.sleep(1.2)
        after = [worker.stats.completion_tokens for worker in pool.status().workers]
        assert all(more > less for less, more in zip(before, after, strict=True))
        pid = pool.status().workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(pool, "degraded", seconds=10)
        assert await answer(pool, request("other")) == RECEIPT.total
        await until(pool, "ready")

    stage.run(story, count=2)


def test_errors_of_a_request_cross_the_border_whole(stage: Stage) -> None:
    async def story(pool: WorkerPool) -> None:
        images = [decode(draw_receipt(seed, 512, 640).png) for seed in range(16)]
        prompt = BUILDER.build([Message("user", (*images, "Compare."))])
        with pytest.raises(InvalidRequest, match="this server's context is 4096"):
            await answer(pool, Request("long", prompt, SamplingParams()))
        assert await answer(pool, request("next")) == RECEIPT.total

    stage.run(story)


def test_a_folder_without_a_model_says_so_and_is_not_tried_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_pool(path=tmp_path) as pool:
            await until(pool, "unhealthy")
            assert "config.json" in pool.status().reason or "tokenizer" in pool.status().reason
            await asyncio.sleep(0.5)
            assert pool.status().workers[0].restarts == 0

    run(story)
