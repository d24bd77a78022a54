"""Remembers conversations, so that a follow-up question needs no picture.

A session belongs to the key that opened it, is forgotten some time after its last use, and holds
each picture once. The oldest sessions go first when memory is short.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, Protocol

from visiongate.gateway.problems import ProblemError, not_found

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it was sent, with the wishes that came with it.

    Attributes:
        name: the file name, for the log line only.
        detail: "low", "high" or "auto".
        min_pixels, max_pixels: bounds of the area that the model sees; None for the defaults.
    """

    data: bytes
    name: str = ""
    detail: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    _sha256: str = field(default="", init=False, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """The digest of the bytes as they were sent; computed once."""
        if not self._sha256:
            object.__setattr__(self, "_sha256", hashlib.sha256(self.data).hexdigest())
        return self._sha256


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[str | Picture, ...]


@dataclass(slots=True)
class Session:
    """A conversation so far.

    Attributes:
        who: the id of the key that opened it.
        created, used: seconds since the epoch.
    """

    id: str
    who: str
    turns: list[Turn] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)

    def num_bytes(self) -> int:
        """Memory for its pictures (each counted once) and texts."""
        pictures: dict[int, int] = {}
        texts = 0
        for turn in self.turns:
            for part in turn.parts:
                if isinstance(part, Picture):
                    pictures[id(part.data)] = len(part.data)
                else:
                    texts += len(part)
        return texts + sum(pictures.values())


class Sessions(Protocol):
    """Where sessions are kept."""

    async def open(self, who: str) -> Session:
        """A new, empty session."""
        ...

    async def find(self, session_id: str, who: str) -> Session:
        """The session; raises 404 when it is unknown, forgotten or somebody else's."""
        ...

    async def append(self, session: Session, turns: list[Turn]) -> None:
        """Adds turns and counts as a use."""
        ...

    async def delete(self, session_id: str, who: str) -> None:
        """Forgets a session at once; raises 404 as `find` does."""
        ...

    async def close(self) -> None:
        """Ends connections, if there are any."""
        ...


class MemorySessions:
    """Sessions in this process's memory."""

    def __init__(self, *, ttl_seconds: float, max_bytes: int, max_sessions: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._sizes: dict[str, int] = {}

    async def open(self, who: str) -> Session:
        """A new, empty session, kept from its first `append` on."""
        return Session(new_session_id(), who)

    async def find(self, session_id: str, who: str) -> Session:
        """The session; raises 404 when it is unknown, forgotten or somebody else's."""
        self._forget()
        session = self._sessions.get(session_id)
        if session is None or session.who != who:
            raise unknown_session()
        return session

    async def append(self, session: Session, turns: list[Turn]) -> None:
        """Adds turns; the oldest other sessions go when the bounds are passed."""
        session.turns.extend(share_pictures(session.turns, turns))
        session.used = time.time()
        self._sessions[session.id] = session
        self._sessions.move_to_end(session.id)
        self._sizes[session.id] = session.num_bytes()
        self._forget()

    async def delete(self, session_id: str, who: str) -> None:
        """Forgets a session at once."""
        await self.find(session_id, who)
        self._drop(session_id)

    async def close(self) -> None:
        """Nothing to end."""

    def num_bytes(self) -> int:
        """Memory of all sessions."""
        return sum(self._sizes.values())

    def _forget(self) -> None:
        oldest_use = time.time() - self._ttl_seconds
        while self._sessions:
            session_id, session = next(iter(self._sessions.items()))
            is_crowded = len(self._sessions) > self._max_sessions
            is_heavy = self.num_bytes() > self._max_bytes
            if session.used >= oldest_use and not is_crowded and not is_heavy:
                return
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._sizes.pop(session_id, None)


def new_session_id() -> str:
    """An id that cannot be guessed: 192 random bits."""
    return "sess_" + secrets.token_urlsafe(24)


def unknown_session() -> ProblemError:
    """404, the same for a session that never was and for somebody else's."""
    return not_found("this session", param="session_id")


def share_pictures(known: list[Turn], turns: list[Turn]) -> list[Turn]:
    """The new turns, with pictures that are already known pointing to the same bytes."""
    by_digest = {p.sha256: p for turn in known for p in turn.parts if isinstance(p, Picture)}
    shared: list[Turn] = []
    for turn in turns:
        parts: list[str | Picture] = []
        for part in turn.parts:
            if isinstance(part, Picture):
                twin = by_digest.setdefault(part.sha256, part)
                sizes = part.detail, part.min_pixels, part.max_pixels
                part = Picture(twin.data, part.name, *sizes)
            parts.append(part)
        shared.append(Turn(turn.role, tuple(parts)))
    return shared
