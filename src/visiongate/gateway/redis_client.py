"""The connection to Redis that several gateways share; needs the `redis` extra."""

from __future__ import annotations

from typing import Any, Final

from visiongate.errors import InvalidSettings

PREFIX: Final = "visiongate:"


def connect(url: str) -> tuple[Any, type[Exception]]:
    """A client, which connects at its first call, and the class of the errors that it raises."""
    try:
        from redis.asyncio import Redis
        from redis.exceptions import RedisError
    except ImportError:
        raise InvalidSettings(
            "VISIONGATE_REDIS_URL needs the redis library: pip install 'visiongate[redis]'"
        ) from None
    return Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5), RedisError
