"""What `/v1/images/plan` foretells is what the answer then uses."""

from __future__ import annotations

import base64

import pytest
from PIL import Image

from tests.gateway.serving import Server
from tests.pictures import to_bytes


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
@pytest.mark.parametrize("size", [(40, 30), (448, 608), (1600, 700), (90, 1500)])
def test_the_planned_tokens_are_the_used_tokens(
    server: Server, size: tuple[int, int], detail: str
) -> None:
    picture = to_bytes(Image.linear_gradient("L").resize(size), "PNG")
    encoded = base64.b64encode(picture).decode()
    planned = server.post("/v1/images/plan", {"image": encoded, "detail": detail}).json()
    url = f"data:image/png;base64,{encoded}"
    body = {
        "model": "visiongate-mini",
        "max_tokens": 1,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": detail}},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        ],
    }
    answer = server.post("/v1/chat/completions", body).json()
    assert planned["tokens"] == answer["usage"]["prompt_tokens_details"]["image_tokens"]
    seen = answer["vision"]["images"][0]
    assert (planned["width"], planned["height"]) == (seen["width"], seen["height"])
    assert planned["warnings"] == seen["warnings"]
