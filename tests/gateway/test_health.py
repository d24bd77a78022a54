"""Health tells the truth: while loading, when a worker is killed, when it is frozen."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.gateway.serving import (
    Server,
    endless,
    events,
    example,
    question,
    serve,
    wait_for,
)

TOTAL = "What is the total?"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose worker these tests may hurt."""
    with serve(tmp_path_factory.mktemp("fragile")) as found:
        yield found


def test_the_body_is_exactly_as_promised(server: Server) -> None:
    """A34."""
    answer = server.get("/health")
    assert answer.status_code == 200
    assert answer.content == b'{"status":"healthy"}'
    assert server.get("/health/ready").status_code == 200
    assert server.get("/health/live").status_code == 200


def test_details_name_what_runs(server: Server) -> None:
    """A01, A16."""
    details = server.get("/health/details").json()
    assert details["model_details"]["dtype"] == "float32"
    assert details["model_details"]["revision"]
    assert details["demo"] is True
    assert server.get("/v1/models").json()["data"][0]["id"] == "visiongate-mini"
    assert server.get("/version").json()["versions"]["pillow"]


def test_the_port_answers_while_the_model_loads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A15, A55, B63: 503 with Retry-After and the promised words; the page is there at once."""
    with serve(tmp_path_factory.mktemp("loading"), waits=False) as own:
        health = own.get("/health")
        chat = own.post("/api/chat", {"prompt": "x", "image": "aGVsbG8="})
        openai = own.post("/v1/chat/completions", question(example(), TOTAL))
        page = own.get("/")
        status = own.get("/api/status").json()
        if health.status_code == 200:
            pytest.fail("the model loaded before the first look")
        assert health.status_code == 503
        assert health.json() == {"status": "loading"}
        assert chat.status_code == 503
        assert chat.json() == {"error": "model not loaded"}
        assert openai.json()["error"]["code"] == "model_not_loaded"
        for answer in (health, chat, openai):
            assert int(answer.headers["Retry-After"]) >= 1
        assert page.status_code == 200
        assert status["state"] == "loading"
        assert not any("API server running" in line for line in own.lines)
        wait_for(lambda: own.get("/health").status_code == 200, seconds=60)
        wait_for(lambda: any("API server running on http://127.0.0.1" in x for x in own.lines))
        assert own.post("/v1/chat/completions", question(example(), TOTAL)).status_code == 200


def test_a_killed_worker_ends_its_stream_cleanly_and_comes_back(fragile: Server) -> None:
    with fragile.post("/v1/chat/completions", endless(stream=True), stream=True) as stream:
        lines = stream.iter_lines()
        for _ in range(20):
            next(lines)
        os.kill(fragile.worker_pid(), signal.SIGKILL)
        rest = [line for line in lines if line.startswith(b"data: ")]
    assert rest[-1] == b"data: [DONE]"
    error = json.loads(rest[-2][6:])["error"]
    assert error["code"] == "worker_died"
    wait_for(lambda: fragile.get("/health").status_code == 503, seconds=10)
    refused = fragile.post("/v1/chat/completions", question(example(), TOTAL))
    assert refused.status_code in {200, 503}
    wait_for(lambda: fragile.get("/health").status_code == 200, seconds=60)
    answer = fragile.post("/v1/chat/completions", question(example(), TOTAL)).json()
    assert answer["choices"][0]["message"]["content"] == "$20.47"


def test_a_request_without_a_token_yet_survives_its_worker(fragile: Server) -> None:
    """Nothing was said yet, so the answer is simply begun again; or told 503 with Retry-After."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    from tests.pictures import to_bytes

    noise = to_bytes(Image.effect_noise((1000, 1000), 80).convert("RGB"), "JPEG")
    wait_for(lambda: fragile.get("/health").status_code == 200, seconds=60)
    with ThreadPoolExecutor(1) as threads:
        body = question(noise, "What is this?", max_tokens=4)
        waiting = threads.submit(fragile.post, "/v1/chat/completions", body)
        wait_for(lambda: fragile.get("/api/status").json()["queue"]["running"] == 1)
        os.kill(fragile.worker_pid(), signal.SIGKILL)
        answer = waiting.result()
    assert answer.status_code in {200, 503}
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    wait_for(lambda: fragile.get("/health").status_code == 200, seconds=60)


def test_a_frozen_worker_is_not_ready_within_seconds(fragile: Server) -> None:
    wait_for(lambda: fragile.get("/health").status_code == 200, seconds=60)
    pid = fragile.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        wait_for(lambda: fragile.get("/health/ready").status_code == 503, seconds=15)
        assert time.monotonic() - start < 12
        assert fragile.get("/health/live").status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: fragile.get("/health/ready").status_code == 200, seconds=60)


def test_the_status_stream_sends_changes(server: Server) -> None:
    with server.get("/api/status/stream", stream=True) as stream:
        first = next(line for line in stream.iter_lines() if line.startswith(b"data: "))
    status = json.loads(first[6:])
    assert status["state"] == "ready"
    assert set(status) >= {
        "edition", "title", "model", "precision", "device", "version", "queue", "loading",
        "memory", "speed", "limits", "auth", "demo", "workers", "reason",
    }  # fmt: skip
    assert status["limits"]["image_bytes"] == 10485760


def test_the_page_and_docs_ask_no_other_host(server: Server) -> None:
    for path in ("/", "/docs"):
        answer = server.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "http://" not in answer.text.replace(server.url, "")
        assert "https://" not in answer.text
    document = server.get("/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    samples = server.get("/samples/index.json").json()["pictures"]
    assert server.get(f"/samples/{samples[0]['file']}").content == example()


def test_a_streamed_answer_has_heartbeats_while_it_waits(tight_server: Server) -> None:
    url = "/v1/chat/completions"
    body = question(example(), TOTAL, stream=True)
    with tight_server.post(url, endless(stream=True, n=4), stream=True) as first:
        assert first.status_code == 200, first.text
        wait_for(lambda: tight_server.get("/api/status").json()["queue"]["running"] == 1)
        with tight_server.post(url, body, stream=True) as second:
            lines = second.iter_lines()
            seen = [next(line for line in lines if line) for _ in range(3)]
    assert b": keep-alive" in seen
    wait_for(lambda: tight_server.get("/api/status").json()["queue"]["running"] == 0)
    done = events(tight_server.post(url, body, stream=True))
    assert done[-1] == ("", "[DONE]")
