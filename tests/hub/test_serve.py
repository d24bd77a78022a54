"""`serve --model ID`: pulled on first use with the port open, from the cache afterwards."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import requests

from tests.gateway.serving import example, serve, wait_for
from tests.hub.hub_server import MODEL, Hub


def environment(hub_server: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(folder / "home")}


def ask(url: str) -> str:
    answer = requests.post(
        url + "/v1/chat/completions",
        files={"image": ("receipt.png", example(), "image/png")},
        data={"prompt": "What is the total?"},
        timeout=60,
    )
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_first_start_downloads_in_sight_and_the_second_asks_nobody(
    hub_server: Hub, whole_checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    hub_server.files = whole_checkpoint
    total = sum(len(whole_checkpoint[name]) for name in hub_server.hashes())
    hub_server.faults.bytes_per_second = total // 3
    env = environment(hub_server, tmp_path)
    with serve(tmp_path, "--model", MODEL, waits=False, **env) as server:
        assert server.get("/health").json() == {"status": "loading"}
        refused = server.post("/api/chat", {"image": "aaaa", "prompt": "What is it?"})
        assert refused.status_code == 503
        assert refused.json() == {"error": "model not loaded"}
        assert int(refused.headers["Retry-After"]) >= 1
        seen: set[tuple[str, float]] = set()
        while (status := server.get("/api/status").json())["state"] == "loading":
            seen.add((status["loading"]["stage"], round(status["loading"]["fraction"], 2)))
            time.sleep(0.1)
        assert len([stage for stage, _ in seen if stage.startswith(f"downloading {MODEL}")]) > 3
        wait_for(lambda: server.get("/health").status_code == 200, seconds=60)
        assert "20.47" in ask(server.url)
        log = server.log("model_loading.log")
        assert re.search(rf"downloading {MODEL}, \d+%", log)
        assert "loaded acme/tiny-vl" in log
    hub_server.requests.clear()
    with serve(tmp_path, "--model", MODEL, **env) as server:
        assert "20.47" in ask(server.url)
    assert hub_server.requests == []


def test_a_hub_that_is_down_is_told_on_the_open_port(hub_server: Hub, tmp_path: Path) -> None:
    hub_server.faults.status, hub_server.faults.error_code = 403, "GatedRepo"
    env = environment(hub_server, tmp_path)
    with serve(tmp_path, "--model", MODEL, waits=False, **env) as server:
        wait_for(lambda: server.get("/health").json()["status"] == "unhealthy")
        assert "HF_TOKEN" in server.get("/health/details").json()["reason"]


def test_a_service_that_downloads_stops_when_it_is_told_to(
    hub_server: Hub, whole_checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    """The download runs in a thread, which must not keep the process for hours."""
    hub_server.files = whole_checkpoint
    hub_server.faults.bytes_per_second = 200_000  # three minutes
    env = environment(hub_server, tmp_path)
    with serve(tmp_path, "--model", MODEL, waits=False, **env) as server:
        wait_for(lambda: hub_server.sent_bytes > 100_000)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(14)
        assert time.monotonic() - started < 12
