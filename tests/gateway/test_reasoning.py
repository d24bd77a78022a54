"""Thinking models: what they think never stands in the answer, in any shape, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.serving import (
    Server,
    base64_of,
    content_of,
    data_url,
    events,
    example,
    question,
    serve,
)
from tests.thinking import WEIGHTS, make_thinking_model
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.gateway.reasoning import CLOSE, ReasoningSplitter

TOTAL = "What is the total?"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_thinking_model(tmp_path_factory.mktemp("thinking") / "model")


@pytest.fixture(scope="module")
def thinker(thinking: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("thinker")
    with serve(folder, "--model", str(thinking)) as found:
        yield found


@pytest.fixture(scope="module", params=["local", "upstream"])
def server(
    request: pytest.FixtureRequest, thinker: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The model in a worker of this server, and the same behind another gateway."""
    if request.param == "local":
        yield thinker
        return
    with serve(tmp_path_factory.mktemp("front"), "--upstream", thinker.url) as front:
        yield front


def test_reasoning_is_a_field_of_its_own_in_chat_completions(server: Server) -> None:
    body = question(example(), TOTAL, temperature=0)
    found = server.post("/v1/chat/completions", body).json()
    message = found["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("$20", "47")
    usage = found["usage"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < thought < usage["completion_tokens"]
    streamed = events(server.post("/v1/chat/completions", body | {"stream": True}, stream=True))
    deltas = [
        choice["delta"]
        for _, data in streamed
        if isinstance(data, dict)
        for choice in data["choices"]
    ]
    assert content_of(streamed) == "47"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "$20"
    first_answer = next(i for i, delta in enumerate(deltas) if delta.get("content"))
    assert not any("reasoning_content" in delta for delta in deltas[first_answer:])


def test_an_answer_cut_while_thinking_is_empty_and_says_length(server: Server) -> None:
    body = question(example(), TOTAL, temperature=0, max_tokens=2)
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["message"]["content"] == ""
    assert "$20".startswith(choice["message"]["reasoning_content"])
    assert choice["finish_reason"] == "length"


def test_the_pages_endpoint_keeps_only_the_answer_in_its_session(server: Server) -> None:
    body = {"image": base64_of(example()), "prompt": TOTAL, "temperature": 0}
    found = server.post("/api/chat", body).json()
    assert (found["reasoning_content"], found["response"]) == ("$20", "47")
    turns = server.get(f"/api/sessions/{found['session_id']}").json()["turns"]
    assert turns[-1]["content"] == [{"type": "text", "text": "47"}]
    streamed = [data for _, data in events(server.post("/api/chat", body | {"stream": True}))]
    assert "".join(item.get("reasoning_delta", "") for item in streamed) == "$20"
    assert "".join(item.get("delta", "") for item in streamed) == "47"
    assert streamed[-1]["reasoning_content"] == "$20"


def test_openais_client_sees_a_reasoning_item(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    content: Any = [
        {"type": "input_image", "image_url": data_url(example()), "detail": "auto"},
        {"type": "input_text", "text": TOTAL},
    ]
    asked: Any = {"model": "", "input": [{"role": "user", "content": content}], "temperature": 0}
    with client:
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            seen = list(stream)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.output[0].content[0].text == "$20"
    assert whole.output_text == "47"
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    thoughts = [item.delta for item in seen if item.type == "response.reasoning_text.delta"]
    texts = [item.delta for item in seen if item.type == "response.output_text.delta"]
    assert ("".join(thoughts), "".join(texts)) == ("$20", "47")
    assert [item.type for item in seen if item.type.endswith("item.done")] == [
        "response.output_item.done"
    ] * 2


def test_anthropics_client_sees_a_thinking_block(server: Server) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key="none")
    source: Any = {"type": "base64", "media_type": "image/png", "data": base64_of(example())}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": TOTAL}]
    asked: Any = {
        "model": "default",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": content}],
        "extra_body": {"temperature": 0},
    }
    with client:
        whole: Any = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            final: Any = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert (whole.content[0].thinking, whole.content[1].text) == ("$20", "47")
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert (final.content[0].thinking, final.content[1].text) == ("$20", "47")


def test_a_schema_is_answered_without_reasoning(thinker: Server) -> None:
    """A grammar begins with the answer's first token, so the prompt closes the reasoning."""
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = question(example(), TOTAL, temperature=0, response_format=wish)
    message = thinker.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert "reasoning_content" not in message
    assert json.loads(message["content"])["n"] in (1, 2)


def test_thinking_is_known_by_the_template_not_by_the_name(thinking: Path) -> None:
    plain, thinks = PromptBuilder.from_pretrained(WEIGHTS), PromptBuilder.from_pretrained(thinking)
    assert (plain.opens_thinking, thinks.opens_thinking) == (False, True)
    question = [Message("user", ("Hello",))]
    closed = thinks.tokenizer.decode(thinks.build(question, thinks=False).token_ids)
    assert closed.endswith("</think>\n\n")
    assert plain.build(question, thinks=False).token_ids == plain.build(question).token_ids


@given(
    st.text("ab <>/think\n", max_size=30).filter(lambda text: CLOSE not in text),
    st.text("ab <>/think\n", max_size=20),
    st.lists(st.integers(1, 6), max_size=60),
)
def test_wherever_the_pieces_are_cut_the_parts_are_the_same(
    thought: str, answer: str, sizes: list[int]
) -> None:
    whole = f"{thought}{CLOSE}{answer}"
    before, _, after = whole.partition(CLOSE)
    splitter = ReasoningSplitter()
    found, start = ["", ""], 0
    for size in [*sizes, len(whole)]:
        for index, part in enumerate(splitter.add(whole[start : start + size])):
            found[index] += part
        start += size
    assert found == [before.strip(), after.lstrip()]
    assert not splitter.is_open


@given(st.text("ab <>/think\n", max_size=30).filter(lambda text: CLOSE not in text))
def test_what_ends_within_the_reasoning_is_all_reasoning(thought: str) -> None:
    splitter = ReasoningSplitter()
    pieces = [splitter.add(letter) for letter in thought]
    assert "".join(piece[0] for piece in pieces) + splitter.finish() == thought.strip()
    assert not any(piece[1] for piece in pieces)
