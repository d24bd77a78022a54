"""Sessions in Redis, shared by several gateways; needs the `redis` extra.

A session is one JSON document; each picture is kept once under its owner and digest, with the same
time to live. Nothing is pickled.
"""

from __future__ import annotations

import json
import time
from typing import Any

from visiongate.errors import Unavailable
from visiongate.gateway.redis_client import PREFIX, connect
from visiongate.gateway.sessions import (
    Picture,
    Session,
    Turn,
    new_session_id,
    unknown_session,
)


class RedisSessions:
    """Implements `Sessions`."""

    def __init__(self, url: str, *, ttl_seconds: float) -> None:
        self._redis: Any
        self._redis, self._error = connect(url)
        self._ttl_seconds = max(1, round(ttl_seconds))

    async def open(self, who: str) -> Session:
        """A new, empty session, kept from its first `append` on."""
        return Session(new_session_id(), who)

    async def find(self, session_id: str, who: str) -> Session:
        """The session with its pictures; raises 404 as every store does."""
        try:
            text = await self._redis.get(_session_key(session_id))
            document = json.loads(text) if text else None
            if document is None or document["who"] != who:
                raise unknown_session()
            pictures = await self._pictures(who, document)
        except self._error:
            raise _unreachable() from None
        turns = [_turn(turn, pictures) for turn in document["turns"]]
        return Session(session_id, who, turns, document["created"], document["used"])

    async def append(self, session: Session, turns: list[Turn]) -> None:
        """Adds turns and renews the time to live of the session and its pictures."""
        session.turns.extend(turns)
        session.used = time.time()
        pictures = {
            part.sha256: part.data
            for turn in session.turns
            for part in turn.parts
            if isinstance(part, Picture)
        }
        document = {
            "who": session.who,
            "created": session.created,
            "used": session.used,
            "turns": [_document(turn) for turn in session.turns],
        }
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                for digest, data in pictures.items():
                    pipe.set(_picture_key(session.who, digest), data, ex=self._ttl_seconds)
                pipe.set(_session_key(session.id), json.dumps(document), ex=self._ttl_seconds)
                await pipe.execute()
        except self._error:
            raise _unreachable() from None

    async def delete(self, session_id: str, who: str) -> None:
        """Forgets a session; its pictures end with their time to live unless others use them."""
        await self.find(session_id, who)
        try:
            await self._redis.delete(_session_key(session_id))
        except self._error:
            raise _unreachable() from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _pictures(self, who: str, document: dict[str, Any]) -> dict[str, bytes]:
        digests = sorted(
            {
                part["sha256"]
                for turn in document["turns"]
                for part in turn["parts"]
                if isinstance(part, dict)
            }
        )
        if not digests:
            return {}
        found = await self._redis.mget([_picture_key(who, digest) for digest in digests])
        if any(data is None for data in found):
            raise unknown_session()
        return dict(zip(digests, found, strict=True))


def _session_key(session_id: str) -> str:
    return f"{PREFIX}session:{session_id}"


def _picture_key(who: str, digest: str) -> str:
    return f"{PREFIX}picture:{who}:{digest}"


def _document(turn: Turn) -> dict[str, Any]:
    parts = [part if isinstance(part, str) else _picture(part) for part in turn.parts]
    return {"role": turn.role, "parts": parts}


def _picture(picture: Picture) -> dict[str, Any]:
    return {
        "sha256": picture.sha256,
        "name": picture.name,
        "detail": picture.detail,
        "min_pixels": picture.min_pixels,
        "max_pixels": picture.max_pixels,
    }


def _turn(document: dict[str, Any], pictures: dict[str, bytes]) -> Turn:
    parts: list[str | Picture] = []
    for part in document["parts"]:
        if isinstance(part, str):
            parts.append(part)
        else:
            sizes = part["detail"], part["min_pixels"], part["max_pixels"]
            parts.append(Picture(pictures[part["sha256"]], part["name"], *sizes))
    return Turn(document["role"], tuple(parts))


def _unreachable() -> Unavailable:
    return Unavailable("the session store cannot be reached; try again", retry_after_seconds=5.0)
