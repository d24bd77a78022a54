"""Rates and quotas in Redis, so that a key has one limit however many gateways serve it.

A check and its count are one script, which Redis runs alone and by its own clock: two gateways can
neither let one request too many pass nor disagree about the minute. Gateways tell their tokens when
a request has ended; while Redis is away they keep the sum and tell it later.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from visiongate.errors import Unavailable
from visiongate.gateway.rates import over_quota, over_rate
from visiongate.gateway.redis_client import PREFIX, connect

if TYPE_CHECKING:
    from visiongate.gateway.auth import Caller

# {key id} is a hash tag: a Redis Cluster keeps both counts of a key on one node.
# The set holds one member for each request of the last minute, scored by its microsecond.
# The hash holds the tokens of one day; another day's are worth nothing.
_SCRIPT: Final = """
local clock = redis.call('TIME')
local now, day = clock[1] * 1000000 + clock[2], math.floor(clock[1] / 86400)
local rate, quota, spent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if spent > 0 then
  if tonumber(redis.call('HGET', KEYS[2], 'day')) ~= day then
    redis.call('HSET', KEYS[2], 'day', day, 'used', 0)
  end
  redis.call('HINCRBY', KEYS[2], 'used', spent)
  redis.call('EXPIRE', KEYS[2], 172800)
end
if rate > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000000)
  if redis.call('ZCARD', KEYS[1]) >= rate then
    local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    return {'rate', oldest[2] + 60000000 - now}
  end
  redis.call('ZADD', KEYS[1], now, ARGV[4])
  redis.call('EXPIRE', KEYS[1], 61)
end
if quota > 0 then
  local kept = redis.call('HMGET', KEYS[2], 'day', 'used')
  if tonumber(kept[1]) == day and tonumber(kept[2]) >= quota then
    return {'quota', (day + 1) * 86400000000 - now}
  end
end
return {'', 0}
"""


class RedisRates:
    """Implements `Rates`.

    Keys without bounds cost nothing before a request. A bound that cannot be checked is no bound,
    so a key that has one gets 503 while Redis is away.
    """

    def __init__(self, url: str) -> None:
        self._redis: Any
        self._redis, self._error = connect(url)
        self._script = self._redis.register_script(_SCRIPT)
        self._unsent: Counter[str] = Counter()
        self._sending: set[asyncio.Task[None]] = set()

    async def count_request(self, caller: Caller) -> None:
        """Counts a request; raises 429 when the key is over its rate or its quota."""
        if not caller.requests_per_minute and not caller.tokens_per_day:
            return
        try:
            limit, microseconds = await self._run(
                caller.id, caller.requests_per_minute, caller.tokens_per_day
            )
        except self._error:
            raise Unavailable(
                "the limits of this key cannot be checked; try again", retry_after_seconds=5.0
            ) from None
        if limit == b"rate":
            raise over_rate(caller, microseconds / 1e6)
        if limit == b"quota":
            raise over_quota(caller, microseconds / 1e6)

    def count_tokens(self, caller_id: str, num_tokens: int) -> None:
        """Adds what a request used; this process's next check of the key includes it."""
        self._unsent[caller_id] += num_tokens
        task = asyncio.get_running_loop().create_task(self._send(caller_id))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """Tells what is not told yet, as far as Redis can be reached, and disconnects."""
        await asyncio.gather(*self._sending)
        for caller_id in list(self._unsent):
            await self._send(caller_id)
        await self._redis.aclose()

    async def _send(self, caller_id: str) -> None:
        """Tells the tokens of a key; they stay here when Redis cannot be reached."""
        if self._unsent[caller_id]:
            try:
                await self._run(caller_id, 0, 0)
            except self._error:
                return

    async def _run(self, caller_id: str, rate: int, quota: int) -> tuple[bytes, int]:
        """Which limit stands against a request and for how many microseconds yet.

        Takes the key's untold tokens along; a failed call leaves them here.
        """
        spent = self._unsent.pop(caller_id, 0)
        name = f"{{{caller_id}}}"
        try:
            limit, microseconds = await self._script(
                keys=[f"{PREFIX}rate:{name}", f"{PREFIX}tokens:{name}"],
                args=[rate, quota, spent, secrets.token_hex(8)],
            )
        except BaseException:
            self._unsent[caller_id] += spent
            raise
        return limit, microseconds
