"""A key's rate and quota hold however many gateways serve it; counted in memory or in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tests.gateway.redis_server import free_port, run_redis
from tests.gateway.serving import base64_of, command, example, serve, wait_for
from visiongate.errors import Unavailable
from visiongate.gateway.auth import Caller
from visiongate.gateway.problems import ProblemError
from visiongate.gateway.rates import MemoryRates, Rates
from visiongate.gateway.redis_rates import RedisRates


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


def bounded(who: str, rate: int = 0, quota: int = 0) -> Caller:
    return Caller(id=who, requests_per_minute=rate, tokens_per_day=quota)


async def status_of(rates: Rates, caller: Caller) -> int:
    try:
        await rates.count_request(caller)
    except ProblemError as error:
        return error.problem.status
    return 200


def test_requests_at_once_through_many_gateways_pass_exactly_as_often_as_the_rate(
    redis_url: str,
) -> None:
    async def story() -> list[int]:
        gateways = [RedisRates(redis_url) for _ in range(4)]
        caller = bounded("key_flood", rate=30)
        codes = await asyncio.gather(*(status_of(gateways[i % 4], caller) for i in range(100)))
        for gateway in gateways:
            await gateway.close()
        return list(codes)

    codes = asyncio.run(story())
    assert (codes.count(200), codes.count(429)) == (30, 70)


@pytest.mark.parametrize("seed", range(5))
def test_redis_decides_as_memory_does(redis_url: str, seed: int) -> None:
    """The same random traffic of three keys, told to memory and to two gateways in turn."""

    async def story() -> None:
        memory = MemoryRates()
        gateways = [RedisRates(redis_url) for _ in range(2)]
        chance = random.Random(seed)
        callers = [
            bounded(f"key_{seed}_a", rate=7),
            bounded(f"key_{seed}_b", quota=50),
            bounded(f"key_{seed}_c", rate=9, quota=40),
        ]
        seen = set()
        for _ in range(80):
            caller, gateway = chance.choice(callers), chance.choice(gateways)
            code = await status_of(memory, caller)
            assert await status_of(gateway, caller) == code
            seen.add((caller.id, code))
            if chance.random() < 0.5:
                num_tokens = chance.randrange(1, 12)
                memory.count_tokens(caller.id, num_tokens)
                gateway.count_tokens(caller.id, num_tokens)
                await asyncio.gather(*gateway._sending)
        assert len(seen) == 6  # every key was let in and turned away
        for gateway in gateways:
            await gateway.close()

    asyncio.run(story())


def test_a_minute_later_a_request_passes_again(redis_url: str) -> None:
    async def story() -> None:
        rates, caller = RedisRates(redis_url), bounded("key_minute", rate=2)
        assert [await status_of(rates, caller) for _ in range(3)] == [200, 200, 429]
        with pytest.raises(ProblemError) as refused:
            await rates.count_request(caller)
        after = refused.value.problem.retry_after_seconds
        assert after is not None
        assert 50 < after <= 60
        redis: Any = AsyncRedis.from_url(redis_url)
        name = "visiongate:rate:{key_minute}"
        oldest = (await redis.zrange(name, 0, 0))[0]
        await redis.zincrby(name, -60_000_000, oldest)  # as if it had come a minute earlier
        assert [await status_of(rates, caller) for _ in range(2)] == [200, 429]
        assert 0 < await redis.ttl(name) <= 61
        await redis.aclose()
        await rates.close()

    asyncio.run(story())


def test_a_quota_begins_anew_with_the_day(redis_url: str) -> None:
    async def story() -> None:
        rates, caller = RedisRates(redis_url), bounded("key_day", quota=10)
        rates.count_tokens(caller.id, 10)
        with pytest.raises(ProblemError) as refused:
            await rates.count_request(caller)
        after = refused.value.problem.retry_after_seconds
        assert after is not None
        assert after == pytest.approx(86400 - time.time() % 86400, abs=5)
        redis: Any = AsyncRedis.from_url(redis_url)
        name = "visiongate:tokens:{key_day}"
        await redis.hincrby(name, "day", -1)
        assert await status_of(rates, caller) == 200
        rates.count_tokens(caller.id, 3)
        await rates.close()
        assert await redis.hget(name, "used") == b"3"
        assert 0 < await redis.ttl(name) <= 172_800
        await redis.aclose()

    asyncio.run(story())


def test_a_bound_that_cannot_be_checked_is_503_and_its_tokens_are_told_later(
    tmp_path: Path,
) -> None:
    """Redis comes up after the request was answered; nothing of what it used is lost."""
    port = free_port()

    async def away(rates: RedisRates) -> None:
        await rates.count_request(bounded("key_free"))  # no bound: nothing to check
        with pytest.raises(Unavailable):
            await rates.count_request(bounded("key_a", rate=5))
        rates.count_tokens("key_a", 60)
        rates.count_tokens("key_a", 40)
        await asyncio.gather(*rates._sending)

    async def story() -> None:
        rates = RedisRates(f"redis://127.0.0.1:{port}/0")
        await away(rates)
        with run_redis(tmp_path, port) as url:
            assert await status_of(rates, bounded("key_a", quota=101)) == 200
            assert await status_of(rates, bounded("key_a", quota=100)) == 429
            other = RedisRates(url)
            assert await status_of(other, bounded("key_a", quota=100)) == 429
            await other.close()
            await rates.close()

    asyncio.run(story())


def test_two_servers_share_the_limits_of_a_key(tmp_path: Path) -> None:
    """Rate and quota over HTTP: what one server counted, the other refuses; 503 without Redis."""

    def make_key(*arguments: str) -> dict[str, str]:
        found = command(tmp_path, "keys", "create", *arguments)
        key = next(line.split()[1] for line in found.splitlines() if line.startswith("key:"))
        return {"Authorization": f"Bearer {key}"}

    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(contextlib.ExitStack())
        url = redis.enter_context(run_redis(tmp_path))
        environment = {"VISIONGATE_REDIS_URL": url, "VISIONGATE_DATA_DIR": str(tmp_path / "data")}
        rated, limited = make_key("--rate", "3"), make_key("--quota", "50")
        first, second = (stack.enter_context(serve(tmp_path, **environment)) for _ in range(2))
        codes = [
            server.get("/v1/models", headers=rated).status_code
            for server in (first, second, second, first, second)
        ]
        assert codes == [200, 200, 200, 429, 429]
        body = {"image": base64_of(example()), "prompt": "What is the total?"}
        assert first.post("/api/chat", body, headers=limited).status_code == 200
        with Redis.from_url(url) as database:  # told just after the last byte of the answer
            wait_for(lambda: list(database.scan_iter("visiongate:tokens:*")))
        answer = second.post("/api/chat", body, headers=limited)
        assert answer.status_code == 429
        assert "50 tokens a day" in answer.json()["error"]
        assert int(answer.headers["Retry-After"]) >= 1
        redis.close()
        answer = first.get("/v1/models", headers=rated)
        assert answer.status_code == 503
        assert "cannot be checked" in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 1
