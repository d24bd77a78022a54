"""A picture that memory cannot take is refused with the numbers; the service lives on."""

from __future__ import annotations

import socket
import time

import pytest
from PIL import Image

from tests.gateway.serving import base64_of, example, serve
from tests.pictures import to_bytes
from visiongate.errors import OutOfMemory, TooLarge
from visiongate.gateway import memory
from visiongate.gateway.memory import MIB, MemoryGuard


def test_a_picture_that_never_fits_is_too_large() -> None:
    guard = MemoryGuard(100 * MIB)
    with pytest.raises(TooLarge, match="80 MB to decode; this server can spare 50 MB"):
        guard.reserve(10 * MIB).__enter__()


def test_a_picture_that_does_not_fit_now_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_used", lambda: 900 * MIB)
    guard = MemoryGuard(1000 * MIB)
    with guard.reserve(8 * MIB), pytest.raises(OutOfMemory, match="36 MB of 1000 MB") as caught:
        guard.reserve(9 * MIB).__enter__()
    assert caught.value.retry_after_seconds >= 1
    with guard.reserve(9 * MIB):
        pass


def test_the_limit_is_the_machines_or_less() -> None:
    assert 0 < memory.memory_used() < memory.memory_limit()


def test_a_server_short_of_memory_says_so_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("small")
    with serve(folder, VISIONGATE_MEMORY_LIMIT=str(100 * MIB)) as own:
        large = base64_of(to_bytes(Image.new("L", (4000, 3000))))
        answer = own.post("/api/chat", {"image": large, "prompt": "What is this?"})
        assert answer.status_code == 413
        assert "MB" in answer.json()["error"]
        host, port = own.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as wire:
            wire.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n"
                b"Content-Type: application/json\r\n\r\n" + b" " * 11_000_000
            )
            time.sleep(0.5)
            second = own.post("/api/chat", {"image": "A" * 3_000_000, "prompt": "What is this?"})
        assert second.status_code == 503
        assert int(second.headers["Retry-After"]) >= 1
        assert "12 MB" in second.json()["error"]
        good = {"image": base64_of(example()), "prompt": "What is the total?"}
        assert own.post("/api/chat", good).json()["response"] == "$20.47"
