"""`serve --model ID` without the weights here: fetched on first use, from the disk after."""

from __future__ import annotations

import time
from pathlib import Path

import requests

from tests.gateway.serving import Server, serve
from tests.hub.hub_server import MODEL, run_hub
from tests.pictures import Receipt, draw_receipt


def total_of(server: Server, receipt: Receipt) -> str:
    files = {"image": ("receipt.png", receipt.png, "image/png")}
    form = {"prompt": "What is the total?"}
    url = f"{server.url}/v1/chat/completions"
    body = requests.post(url, files=files, data=form, timeout=60).json()
    text: str = body["choices"][0]["message"]["content"]
    return text


def test_a_first_start_downloads_in_sight_and_a_second_asks_nobody(
    whole_checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    receipt = draw_receipt(0)
    with run_hub(dict(whole_checkpoint)) as hub:
        hub.faults.bytes_per_second = 20_000_000  # about two seconds
        home = str(tmp_path / "home")
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        with serve(
            first, "--model", MODEL, waits=False, HF_ENDPOINT=hub.url, HF_HOME=home
        ) as server:
            early = server.get("/health")
            assert early.status_code == 503
            assert early.json() == {"status": "loading"}
            assert "Retry-After" in early.headers
            stages = set()
            while server.get("/health").status_code != 200:
                stages.add(server.get("/api/status").json()["loading"]["stage"])
                time.sleep(0.1)
            assert any(stage.startswith(f"downloading {MODEL}") for stage in stages)
            assert total_of(server, receipt) == receipt.total
            assert f"downloading {MODEL}" in server.log("model_loading.log")
            assert server.get("/v1/models").json()["data"][0]["id"] == MODEL
        asked = len(hub.requests)
        with serve(second, "--model", MODEL, HF_ENDPOINT=hub.url, HF_HOME=home) as server:
            assert total_of(server, receipt) == receipt.total
        assert len(hub.requests) == asked
