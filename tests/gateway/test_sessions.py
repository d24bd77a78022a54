"""Conversations are remembered for their owner, for a while, within bounds; in memory or Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.gateway.redis_server import run_redis
from tests.gateway.serving import Server, base64_of, example, serve
from visiongate.gateway.problems import ProblemError
from visiongate.gateway.sessions import MemorySessions, Picture, Session, Turn

TOTAL = "What is the total?"


def run(ttl: float, max_bytes: int, max_sessions: int) -> MemorySessions:
    return MemorySessions(ttl_seconds=ttl, max_bytes=max_bytes, max_sessions=max_sessions)


async def _kept(sessions: MemorySessions, who: str, picture: bytes) -> Session:
    session = await sessions.open(who)
    await sessions.append(session, [Turn("user", (Picture(picture), "what?"))])
    return session


def test_ids_cannot_be_guessed() -> None:
    ids = {asyncio.run(run(1, 10**6, 10).open("a")).id for _ in range(200)}
    assert len(ids) == 200
    assert all(name.startswith("sess_") and len(name) >= 37 for name in ids)


def test_a_picture_is_kept_once_however_often_it_is_sent() -> None:
    async def story() -> int:
        sessions = run(60, 10**9, 10)
        session = await _kept(sessions, "a", b"x" * 1000)
        for _ in range(5):
            await sessions.append(session, [Turn("user", (Picture(bytes(b"x" * 1000)),))])
        return sessions.num_bytes()

    assert asyncio.run(story()) < 1100


def test_the_oldest_session_goes_when_memory_is_short() -> None:
    async def story() -> tuple[bool, bool]:
        sessions = run(60, 2500, 10)
        first = await _kept(sessions, "a", b"1" * 1000)
        second = await _kept(sessions, "a", b"2" * 1000)
        await sessions.append(first, [Turn("user", ("again",))])
        await _kept(sessions, "a", b"3" * 1000)
        found = []
        for session in (first, second):
            try:
                await sessions.find(session.id, "a")
                found.append(True)
            except ProblemError:
                found.append(False)
        return found[0], found[1]

    assert asyncio.run(story()) == (True, False)


def test_a_session_is_forgotten_after_its_time() -> None:
    async def story() -> None:
        sessions = run(0.05, 10**6, 10)
        session = await _kept(sessions, "a", b"x")
        await sessions.find(session.id, "a")
        await asyncio.sleep(0.1)
        with pytest.raises(ProblemError):
            await sessions.find(session.id, "a")

    asyncio.run(story())


def test_a_session_is_its_owners() -> None:
    async def story() -> None:
        sessions = run(60, 10**6, 10)
        session = await _kept(sessions, "mine", b"x")
        with pytest.raises(ProblemError):
            await sessions.find(session.id, "theirs")

    asyncio.run(story())


def test_a_session_is_read_and_deleted(server: Server) -> None:
    body = {"image": base64_of(example()), "prompt": TOTAL}
    session = server.post("/api/chat", body).json()["session_id"]
    found = server.get(f"/api/sessions/{session}").json()
    assert [turn["role"] for turn in found["turns"]] == ["user", "assistant"]
    assert found["turns"][0]["content"][0]["type"] == "image"
    assert found["expires"] > time.time()
    path = f"{server.url}/api/sessions/{session}"
    assert requests.delete(path, timeout=10).json()["deleted"] is True
    assert requests.delete(path, timeout=10).status_code == 404
    assert server.post("/api/chat", {"session_id": session, "prompt": "x"}).status_code == 404


def test_a_failed_round_is_not_remembered(server: Server) -> None:
    body = {"image": base64_of(example()), "prompt": TOTAL}
    session = server.post("/api/chat", body).json()["session_id"]
    server.post("/api/chat", {"session_id": session, "prompt": "x", "max_tokens": 10**6})
    turns = server.get(f"/api/sessions/{session}").json()["turns"]
    assert len(turns) == 2


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


def test_redis_carries_a_session_from_one_gateway_to_another(
    redis_url: str, tmp_path: Path
) -> None:
    """The second server never saw the picture, and answers about it."""
    environment = {"VISIONGATE_REDIS_URL": redis_url}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with serve(tmp_path / "a", **environment) as first:
        body = {"image": base64_of(example()), "prompt": TOTAL}
        session = first.post("/api/chat", body).json()["session_id"]
    with serve(tmp_path / "b", **environment) as second:
        follow_up = {"session_id": session, "prompt": "What is the date?"}
        assert second.post("/api/chat", follow_up).json()["response"] == "2026-03-14"
        assert len(second.get(f"/api/sessions/{session}").json()["turns"]) == 4
        assert requests.delete(f"{second.url}/api/sessions/{session}", timeout=10).ok
        assert second.get(f"/api/sessions/{session}").status_code == 404


def test_a_redis_that_is_gone_is_503_and_not_500(tmp_path: Path) -> None:
    with serve(tmp_path, VISIONGATE_REDIS_URL="redis://127.0.0.1:9/0") as own:
        answer = own.post("/api/chat", {"session_id": "sess_x", "prompt": "x"})
        assert answer.status_code == 503
        assert "session store" in answer.json()["error"]
