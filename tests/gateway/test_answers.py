"""Questions over HTTP come back with the true answer, whatever the shape of the request."""

from __future__ import annotations

import io
import json
import subprocess
from typing import Any

import openai
import PIL.Image
import pytest
import requests

from tests.gateway.serving import (
    EXAMPLES,
    Server,
    base64_of,
    content_of,
    data_url,
    events,
    example,
    question,
)

TOTAL = "What is the total?"
TRUE_TOTAL = "$20.47"


def test_curl_with_a_form_gets_the_true_total(server: Server) -> None:
    command = ["curl", "-sS", "-F", f"image=@{EXAMPLES / 'receipt.png'}", "-F", f"prompt={TOTAL}"]
    found = subprocess.run(
        [*command, f"{server.url}/v1/chat/completions"], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] == TRUE_TOTAL


def test_a_large_picture_is_seen_new_and_known(server: Server) -> None:
    """A megabyte of pixels: it reaches the worker as a memory file, the second time the same."""
    with PIL.Image.open(EXAMPLES / "receipt.png") as small:
        large = small.convert("RGB").resize((896, 1216), PIL.Image.Resampling.LANCZOS)
    out = io.BytesIO()
    large.save(out, "PNG")
    body = question(out.getvalue(), TOTAL, temperature=0)
    first, second = (server.post("/v1/chat/completions", body).json() for _ in range(2))
    told = [found["choices"][0]["message"]["content"] for found in (first, second)]
    assert first["vision"]["images"][0]["width"] * first["vision"]["images"][0]["height"] > 200_000
    assert told == [TRUE_TOTAL, TRUE_TOTAL]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_the_promised_requests_call_works_unchanged(server: Server) -> None:
    """A43: a text part without a file name beside a file part."""
    with (EXAMPLES / "receipt.png").open("rb") as file:
        parts: Any = {"image": ("receipt.png", file, "image/png"), "prompt": (None, TOTAL)}
        response = requests.post(f"{server.url}/v1/chat/completions", files=parts, timeout=(5, 30))
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == TRUE_TOTAL
    assert response.json()["usage"]["total_time_ms"] > 0


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_official_openai_client_works(server: Server, is_streamed: bool) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages: Any = question(example(), TOTAL)["messages"]
    with client:
        if not is_streamed:
            answer = client.chat.completions.create(model="visiongate-mini", messages=messages)
            assert answer.choices[0].message.content == TRUE_TOTAL
            assert answer.usage is not None
            return
        stream = client.chat.completions.create(
            model="visiongate-mini",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TRUE_TOTAL
    assert sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 1
    assert chunks[-1].usage is not None
    details: Any = chunks[-1].usage.prompt_tokens_details
    assert details.image_tokens > 0


def test_plain_post_to_api_chat_and_a_follow_up_without_the_image(server: Server) -> None:
    body = {"image": base64_of(example()), "prompt": TOTAL, "temperature": 0.0, "max_tokens": 128}
    first = server.post("/api/chat", body).json()
    assert first["response"] == TRUE_TOTAL
    assert first["session_id"].startswith("sess_")
    follow_up = {"session_id": first["session_id"], "prompt": "What is the date?"}
    second = server.post("/api/chat", follow_up).json()
    assert second["response"] == "2026-03-14"
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 200


def test_completions_keep_sessions_too(server: Server) -> None:
    body = question(example(), TOTAL, session_id="")
    first = server.post("/v1/chat/completions", body).json()
    second = {
        "session_id": first["session_id"],
        "messages": [{"role": "user", "content": "What is the store name?"}],
    }
    answer = server.post("/v1/chat/completions", second).json()
    assert answer["choices"][0]["message"]["content"] == "Harbor Market"
    assert answer["session_id"] == first["session_id"]


def test_streamed_and_whole_answers_are_the_same(server: Server) -> None:
    body = question(example(), "How much is the Milk?")
    whole = server.post("/v1/chat/completions", body).json()
    streamed = events(server.post("/v1/chat/completions", body | {"stream": True}, stream=True))
    assert content_of(streamed) == whole["choices"][0]["message"]["content"] == "$2.75"
    assert streamed[-1] == ("", "[DONE]")


def test_the_last_chunk_carries_usage_receipt_and_boxes(server: Server) -> None:
    body = question(example(), TOTAL, stream=True)
    found = events(server.post("/v1/chat/completions", body, stream=True))
    last = found[-2][1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["prompt_tokens_details"]["image_tokens"] == 266
    assert last["vision"]["images"][0]["original_width"] == 448
    assert last["boxes"] == []
    assert all(name == "" for name, _ in found)


def test_the_receipt_says_what_the_model_saw(server: Server) -> None:
    vision = server.post("/v1/chat/completions", question(example(), TOTAL)).json()["vision"]
    image = vision["images"][0]
    assert (image["format"], image["width"], image["height"]) == ("PNG", 448, 608)
    assert image["tokens"] == image["width"] // 32 * (image["height"] // 32)
    assert set(vision["timing"]) == {
        "queue_ms",
        "decode_ms",
        "encode_ms",
        "prefill_ms",
        "first_token_ms",
        "total_ms",
    }
    assert 0 < vision["timing"]["first_token_ms"] <= vision["timing"]["total_ms"]


def test_reported_time_is_the_time_that_the_client_waits(server: Server) -> None:
    """A46: within a tenth, and 50 ms for the wire on a busy machine."""
    body = question(example("table.png"), "Read the whole table.", max_tokens=200)
    response = server.post("/v1/chat/completions", body)
    waited = response.elapsed.total_seconds() * 1000
    assert abs(waited - response.json()["usage"]["total_time_ms"]) <= 0.1 * waited + 50


def test_boxes_come_in_pixels_of_the_original(server: Server) -> None:
    body = question(example(), "Where is the total? Answer with bbox JSON.", annotate=True)
    found = server.post("/v1/chat/completions", body).json()
    relative = json.loads(found["choices"][0]["message"]["content"])[0]["bbox_2d"]
    box = found["boxes"][0]
    sizes = (448, 608, 448, 608)
    assert box["bbox"] == [round(r * size / 1000) for r, size in zip(relative, sizes, strict=True)]
    assert found["annotated_image"].startswith("data:image/png;base64,iVBOR")


def test_logprobs_are_shaped_like_openai(server: Server) -> None:
    body = question(example(), TOTAL, logprobs=True, top_logprobs=3)
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith(TRUE_TOTAL)
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    assert all(token["logprob"] <= 0 for token in tokens)


def test_several_answers_are_drawn_for_one_prompt(server: Server) -> None:
    body = question(example(), TOTAL, n=3, temperature=0)
    found = server.post("/v1/chat/completions", body).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in found["choices"]} == {TRUE_TOTAL}


def test_stop_strings_end_the_answer_and_are_not_part_of_it(server: Server) -> None:
    body = question(example(), TOTAL, stop=["."])
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["message"]["content"] == "$20"
    assert choice["finish_reason"] == "stop"


def test_max_tokens_ends_with_length(server: Server) -> None:
    body = question(example(), TOTAL, max_completion_tokens=2)
    found = server.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 2


def test_several_pictures_and_turns_are_told_apart(server: Server) -> None:
    receipt = {"type": "image_url", "image_url": {"url": data_url(example())}}
    card = {"type": "image_url", "image_url": {"url": data_url(example("id_card.png"))}}
    messages = [
        {"role": "user", "content": [receipt, {"type": "text", "text": TOTAL}]},
        {"role": "assistant", "content": TRUE_TOTAL},
        {"role": "user", "content": [card, {"type": "text", "text": "What is on this card?"}]},
    ]
    found = server.post("/v1/chat/completions", {"messages": messages}).json()
    assert len(found["vision"]["images"]) == 2


def test_small_pixel_budgets_make_fewer_tokens(server: Server) -> None:
    body = question(example("chart.png"), "What is shown?", max_tokens=4)
    full = server.post("/v1/chat/completions", body).json()
    body["messages"][0]["content"][0]["image_url"]["max_pixels"] = 100_000
    small = server.post("/v1/chat/completions", body).json()
    tokens = [f["usage"]["prompt_tokens_details"]["image_tokens"] for f in (full, small)]
    assert tokens[1] < tokens[0]
    assert small["vision"]["images"][0]["original_width"] > small["vision"]["images"][0]["width"]


def test_chinese_goes_through_a_server_in_the_c_locale(tight_server: Server) -> None:
    """B64: no mojibake in bodies, file names and logs, whatever the locale."""
    files: Any = {"image": ("小票.png", example(), "image/png"), "prompt": (None, "总计是多少？")}
    answer = tight_server.post("/v1/chat/completions", files=files)
    assert answer.status_code == 200
    assert "小票.png" in tight_server.access_line(answer.headers["X-Request-ID"])
    refused = tight_server.post("/api/chat", {"prompt": "总计", "错误": 1})
    assert refused.status_code == 400
    assert "错误" in refused.content.decode("utf-8")
