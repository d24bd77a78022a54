"""The worker process and its pool: a worker that dies, stops, or is left by its client."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.gateway.serving import wait_for
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


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


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


def test_a_frozen_worker_is_not_ready_within_seconds() -> None:
    async def story() -> None:
        async with running_pool() as pool:
            await until(pool, "ready")
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

    run(story)


def test_a_known_picture_goes_where_its_features_are_and_a_new_one_to_the_idle_worker() -> None:
    async def story() -> None:
        async with running_pool(count=2) as pool:
            await asyncio.to_thread(
                wait_for, lambda: all(w.state == "ready" for w in pool.status().workers)
            )
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
                Request(
                    "other", text, SamplingParams(max_tokens=2000, ignore_eos=True, guard=False)
                )
            )
            await anext(other)
            await asyncio.sleep(1.2)  # a heartbeat
            running = [worker.stats.num_running for worker in pool.status().workers]
            assert running == [1, 1]
            await stream.aclose()  # type: ignore[attr-defined]
            await other.aclose()  # type: ignore[attr-defined]

    run(story)


def test_closing_the_iterator_frees_the_worker() -> None:
    async def story() -> None:
        async with running_pool() as pool:
            await until(pool, "ready")
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

    run(story)


def test_two_workers_share_the_load_and_one_is_enough() -> None:
    async def story() -> None:
        async with running_pool(2) as pool:
            await until(pool, "ready")
            texts = await asyncio.gather(*(answer(pool, request(f"r{i}")) for i in range(6)))
            assert texts == [RECEIPT.total] * 6
            await asyncio.sleep(1.2)
            assert all(w.stats.completion_tokens > 0 for w in pool.status().workers)
            pid = pool.status().workers[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(pool, "degraded", seconds=10)
            assert await answer(pool, request("other")) == RECEIPT.total
            await until(pool, "ready")

    run(story)


def test_errors_of_a_request_cross_the_border_whole() -> None:
    async def story() -> None:
        async with running_pool() as pool:
            await until(pool, "ready")
            images = [decode(draw_receipt(seed, 512, 640).png) for seed in range(16)]
            prompt = BUILDER.build([Message("user", (*images, "Compare."))])
            with pytest.raises(InvalidRequest, match="this server's context is 4096"):
                await answer(pool, Request("long", prompt, SamplingParams()))
            assert await answer(pool, request("next")) == RECEIPT.total

    run(story)


def test_a_folder_without_a_model_says_so_and_is_not_tried_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_pool(path=tmp_path) as pool:
            await until(pool, "unhealthy")
            assert "config.json" in pool.status().reason or "tokenizer" in pool.status().reason
            await asyncio.sleep(0.5)
            assert pool.status().workers[0].restarts == 0

    run(story)
