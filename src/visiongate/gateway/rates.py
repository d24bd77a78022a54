"""Counts what each key uses: requests per minute and tokens per day."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from visiongate.gateway.problems import Problem, ProblemError

if TYPE_CHECKING:
    from visiongate.gateway.auth import Caller

MINUTE_SECONDS: Final = 60
DAY_SECONDS: Final = 86400


class Rates(Protocol):
    """Where the counts of all keys are kept."""

    async def count_request(self, caller: Caller) -> None:
        """Counts a request; raises 429 when the key is over its rate or its quota."""
        ...

    def count_tokens(self, caller_id: str, num_tokens: int) -> None:
        """Adds what a request used."""
        ...

    async def close(self) -> None:
        """Writes what is not written yet and ends connections, where there are any."""
        ...


class MemoryRates:
    """Counts in this process's memory; implements `Rates`."""

    def __init__(self) -> None:
        self._requests: dict[str, deque[float]] = {}
        self._tokens: dict[str, tuple[int, int]] = {}

    async def count_request(self, caller: Caller) -> None:
        """Counts a request; raises 429 when the key is over its rate or its quota."""
        if caller.requests_per_minute:
            now = time.monotonic()
            times = self._requests.setdefault(caller.id, deque())
            while times and times[0] <= now - MINUTE_SECONDS:
                times.popleft()
            if len(times) >= caller.requests_per_minute:
                raise over_rate(caller, times[0] + MINUTE_SECONDS - now)
            times.append(now)
        if caller.tokens_per_day and self._tokens_today(caller.id) >= caller.tokens_per_day:
            raise over_quota(caller, DAY_SECONDS - time.time() % DAY_SECONDS)

    def count_tokens(self, caller_id: str, num_tokens: int) -> None:
        """Adds what a request used."""
        today = int(time.time() // DAY_SECONDS)
        self._tokens[caller_id] = (today, num_tokens + self._tokens_today(caller_id))

    async def close(self) -> None:
        """Nothing to end."""

    def _tokens_today(self, caller_id: str) -> int:
        """Tokens that a key used since midnight UTC."""
        day, used = self._tokens.get(caller_id, (0, 0))
        return used if day == int(time.time() // DAY_SECONDS) else 0


def over_rate(caller: Caller, after_seconds: float) -> ProblemError:
    """429: too many requests in the last minute."""
    return _too_many(f"{caller.requests_per_minute} requests a minute", after_seconds)


def over_quota(caller: Caller, after_seconds: float) -> ProblemError:
    """429: too many tokens since midnight UTC."""
    return _too_many(f"{caller.tokens_per_day} tokens a day", after_seconds)


def _too_many(limit: str, after_seconds: float) -> ProblemError:
    text = f"this key is over its limit of {limit}"
    return ProblemError(Problem(429, text, "rate_limited", retry_after_seconds=after_seconds))
