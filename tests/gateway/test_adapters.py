"""The official clients of OpenAI and Anthropic work unchanged on the adapters."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.serving import Server, base64_of, data_url, example

TOTAL = "What is the total?"
TRUE_TOTAL = "$20.47"
ITEM = {
    "type": "object",
    "properties": {"total": {"enum": ["$20.47", "$9.99"]}},
    "required": ["total"],
    "additionalProperties": False,
}


def _input() -> Any:
    image = {"type": "input_image", "image_url": data_url(example()), "detail": "auto"}
    return [{"role": "user", "content": [image, {"type": "input_text", "text": TOTAL}]}]


def test_openai_responses_answers_and_continues(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="visiongate-mini", input=_input())
        second = client.responses.create(
            model="visiongate-mini", input="What is the date?", previous_response_id=first.id
        )
    assert first.output_text == TRUE_TOTAL
    assert first.usage is not None
    assert first.usage.input_tokens > 266
    assert second.output_text == "2026-03-14"


def test_openai_responses_streams_typed_events(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.responses.create(model="visiongate-mini", input=_input(), stream=True)
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == TRUE_TOTAL
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == TRUE_TOTAL


def test_openai_responses_follow_a_schema(server: Server) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "receipt", "schema": ITEM}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(model="visiongate-mini", input=_input(), text=text)
    assert answer.output_text.replace(" ", "") in ('{"total":"$20.47"}', '{"total":"$9.99"}')


def _messages() -> Any:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(example())}
    content = [{"type": "image", "source": source}, {"type": "text", "text": TOTAL}]
    return [{"role": "user", "content": content}]


def test_anthropic_messages_answers(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(
            model="visiongate-mini", max_tokens=64, messages=_messages(), system="Be brief."
        )
    block: Any = answer.content[0]
    assert block.text == TRUE_TOTAL
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0


def test_anthropic_messages_streams(server: Server) -> None:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        client.messages.stream(
            model="visiongate-mini", max_tokens=64, messages=_messages()
        ) as stream,
    ):
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == TRUE_TOTAL
    assert len(pieces) > 1
    assert final.usage.output_tokens > 0


def test_anthropic_errors_have_their_own_shape(server: Server) -> None:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError) as caught,
    ):
        client.messages.create(
            model="visiongate-mini", max_tokens=8, messages=[{"role": "user", "content": " "}]
        )
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"


def test_openai_error_classes_match(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(
                model="gpt-nope", messages=[{"role": "user", "content": "hi"}]
            )
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(
                model="visiongate-mini",
                messages=[{"role": "user", "content": "hi"}],
                n=1_000_000,
            )
    assert unknown.value.code == "model_not_found"
    assert wrong.value.param == "n"


def test_openai_files_and_batches_run_through_the_client(server: Server) -> None:
    import json
    import time

    lines = [
        {
            "custom_id": f"item-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": text}], "max_tokens": 4},
        }
        for number, text in enumerate(["Hello", "", "Good day"])
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        end = time.monotonic() + 30
        while batch.status != "completed" and time.monotonic() < end:
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
        assert batch.output_file_id
        assert batch.error_file_id
        good = client.files.content(batch.output_file_id).text.splitlines()
        bad = client.files.content(batch.error_file_id).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in good] == ["item-0", "item-2"]
    assert json.loads(bad[0])["response"]["status_code"] == 400
