"""The same gateway in front of another server that speaks OpenAI's API: here, another of ours."""

from __future__ import annotations

import contextlib
import json
import socket
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
        lines = stream.iter_lines()  # kept: a forgotten one closes the connection
        next(lines)
        wait_for(lambda: server.get("/api/status").json()["queue"]["running"] == 1)
    wait_for(lambda: server.get("/api/status").json()["queue"]["running"] == 0, seconds=5)


def test_an_upstream_that_is_killed_is_a_clean_error_and_is_found_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Killed in the middle of a stream; another one on the same port is used without a restart."""
    behind, front_folder = tmp_path_factory.mktemp("behind"), tmp_path_factory.mktemp("before")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serve(behind, "--port", port))
        front = stack.enter_context(serve(front_folder, "--upstream", first.url))
        body = endless(stream=True)
        with front.post("/v1/chat/completions", body, stream=True) as stream:
            lines = stream.iter_lines()
            while b'"content":"{' not in next(lines):
                pass
            first.process.kill()
            rest = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        assert set(rest[-1]) == {"error"}
        assert "upstream" in rest[-1]["error"]["message"]
        refused = front.post("/v1/chat/completions", question(example(), TOTAL))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        wait_for(lambda: front.get("/health").status_code == 503)
        stack.enter_context(serve(behind, "--port", port))
        wait_for(lambda: front.get("/health").status_code == 200)
        again = front.post("/v1/chat/completions", question(example(), TOTAL))
        assert again.json()["choices"][0]["message"]["content"] == "$20.47"


def test_a_schema_is_enforced_behind_the_front(front: Server) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
    wish = {"type": "json_schema", "json_schema": {"name": "total", "schema": schema}}
    body = question(example(), TOTAL, response_format=wish, temperature=0)
    answer = front.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert set(json.loads(answer)) == {"total"}


def test_what_the_upstream_refuses_is_the_callers_error(front: Server) -> None:
    """Its context is its own matter: the front cannot count tokens of another's tokenizer."""
    long = {"messages": [{"role": "user", "content": "word " * 60_000}]}
    refused = front.post("/v1/chat/completions", long)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "the upstream server does not accept this request"


def test_the_front_says_when_nobody_is_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("alone")
    with serve(folder, "--upstream", "http://127.0.0.1:9", waits=False) as alone:
        answer = alone.post("/v1/chat/completions", question(example(), TOTAL))
        assert answer.status_code == 503
        assert alone.get("/health").json() == {"status": "loading"}
        wait_for(lambda: "upstream" in alone.get("/api/status").json()["reason"])
