"""The same gateway in front of another server that speaks OpenAI's API: here, another of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.serving import (
    Server,
    base64_of,
    content_of,
    endless,
    events,
    example,
    question,
    serve,
    wait_for,
)

TOTAL = "What is the total?"


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("front"), "--upstream", server.url) as found:
        yield found


def test_answers_come_through_with_receipt_and_usage(front: Server) -> None:
    found = front.post("/v1/chat/completions", question(example(), TOTAL)).json()
    assert found["choices"][0]["message"]["content"] == "$20.47"
    assert found["model"] == "visiongate-mini"
    assert found["usage"]["prompt_tokens"] > 266
    assert found["usage"]["completion_tokens"] > 0
    assert found["vision"]["images"][0]["original_width"] == 448


def test_streams_come_through_as_they_are_made(front: Server) -> None:
    body = question(example(), "What is the store name?", stream=True)
    found = events(front.post("/v1/chat/completions", body, stream=True))
    assert content_of(found) == "Harbor Market"
    assert len(found) > 4


def test_sessions_boxes_and_schemas_work_in_front(front: Server) -> None:
    body = {"image": base64_of(example()), "prompt": TOTAL, "temperature": 0.0}
    first = front.post("/api/chat", body).json()
    follow_up = {"session_id": first["session_id"], "prompt": "What is the date?", "temperature": 0}
    assert front.post("/api/chat", follow_up).json()["response"] == "2026-03-14"
    boxes = question(example(), "Where is the total? Answer with bbox JSON.", temperature=0)
    assert front.post("/v1/chat/completions", boxes).json()["boxes"][0]["bbox"]


def test_leaving_the_front_frees_the_place_behind(front: Server, server: Server) -> None:
    with front.post("/v1/chat/completions", endless(stream=True), stream=True) as stream:
        next(stream.iter_lines())
        wait_for(lambda: server.get("/api/status").json()["queue"]["running"] == 1)
    wait_for(lambda: server.get("/api/status").json()["queue"]["running"] == 0, seconds=5)


def test_the_front_says_when_nobody_is_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("alone")
    with serve(folder, "--upstream", "http://127.0.0.1:9", waits=False) as alone:
        answer = alone.post("/v1/chat/completions", question(example(), TOTAL))
        assert answer.status_code == 503
        assert alone.get("/health").json() == {"status": "loading"}
        wait_for(lambda: "upstream" in alone.get("/api/status").json()["reason"])
