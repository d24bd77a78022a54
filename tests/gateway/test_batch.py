"""Many questions: at once in one call, or as a durable job that survives a kill."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import Server, base64_of, example, question, serve, wait_for
from tests.pictures import draw_receipt

TOTAL = "What is the total?"


def test_a_batch_keeps_order_and_errors_stay_in_their_slot(server: Server) -> None:
    """B58."""
    receipts = [draw_receipt(seed) for seed in range(3)]
    items: list[Any] = [
        {"image": base64_of(receipts[0].png), "prompt": TOTAL},
        {"image": "not base64!", "prompt": TOTAL},
        {"image": base64_of(receipts[1].png), "prompt": TOTAL},
        {"prompt": "no picture"},
        {"image": base64_of(receipts[2].png), "prompt": TOTAL, "colour": 1},
        "not an object",
    ]
    results = server.post("/api/batch", items).json()
    assert results[0]["response"] == receipts[0].total
    assert results[2]["response"] == receipts[1].total
    assert results[0]["session_id"] != results[2]["session_id"]
    for index, word in ((1, "base64"), (3, "image"), (4, "colour"), (5, "object")):
        assert results[index]["status"] == 400
        assert word in results[index]["error"]


def test_a_batch_runs_in_parallel(server: Server) -> None:
    items = [{"image": base64_of(draw_receipt(s).png), "prompt": TOTAL} for s in range(20, 26)]
    results = server.post("/api/batch", items).json()
    assert all("response" in result for result in results)


@pytest.mark.parametrize("body", [[], {}, "x", [{}] * 65])
def test_a_batch_that_is_none_is_refused(server: Server, body: Any) -> None:
    assert server.post("/api/batch", body).status_code == 400


def upload(server: Server, lines: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    files = {"file": ("in.jsonl", content.encode()), "purpose": (None, "batch")}
    return str(server.post("/v1/files", files=files).json()["id"])


def start(server: Server, lines: list[dict[str, Any]], endpoint: str, **headers: str) -> Any:
    wish = {"input_file_id": upload(server, lines), "endpoint": endpoint}
    return server.post("/v1/batches", wish, headers=headers)


def line(name: str, text: str) -> dict[str, Any]:
    body = {"image": base64_of(draw_receipt(1).png), "prompt": text, "max_tokens": 8}
    return {"custom_id": name, "method": "POST", "url": "/api/chat", "body": body}


def test_the_same_idempotency_key_starts_one_batch(server: Server) -> None:
    lines = [line("a", TOTAL)]
    first = start(server, lines, "/api/chat", **{"Idempotency-Key": "same"}).json()
    second = start(server, lines, "/api/chat", **{"Idempotency-Key": "same"}).json()
    assert first["id"] == second["id"]


def test_a_cancelled_batch_keeps_what_was_done(server: Server) -> None:
    lines = [line(f"n{number}", f"{number} {TOTAL}") for number in range(200)]
    batch = start(server, lines, "/api/chat").json()

    def state() -> Any:
        return server.get(f"/v1/batches/{batch['id']}").json()

    wait_for(lambda: state()["request_counts"]["completed"] >= 1, seconds=30)
    server.post(f"/v1/batches/{batch['id']}/cancel")
    final = wait_for(lambda: (s := state())["status"] == "cancelled" and s)
    content = server.get(f"/v1/files/{final['output_file_id']}/content").text
    assert 1 <= len(content.splitlines()) < 200
    assert len(content.splitlines()) == final["request_counts"]["completed"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("not json", "line 1"),
        ('{"custom_id": "a"}', "no body"),
        ('{"body": {}}', "no custom_id"),
        ('{"custom_id": "a", "body": {}}\n{"custom_id": "a", "body": {}}', "twice"),
        ('{"custom_id": "a", "url": "/v1/x", "body": {}}', "must be POST"),
        ('{"custom_id": "a", "body": {"stream": true}}', "stream"),
        ("\n\n", "0 items"),
    ],
)
def test_bad_batch_files_name_the_line(server: Server, text: str, word: str) -> None:
    files = {"file": ("in.jsonl", text.encode()), "purpose": (None, "batch")}
    file = server.post("/v1/files", files=files).json()["id"]
    answer = server.post("/v1/batches", {"input_file_id": file, "endpoint": "/api/chat"})
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


def test_interactive_requests_go_before_a_batch(server: Server) -> None:
    lines = [line(f"n{number}", f"{number} {TOTAL}") for number in range(60)]
    batch = start(server, lines, "/api/chat").json()
    time.sleep(0.3)
    answer = server.post("/v1/chat/completions", question(example(), TOTAL)).json()
    assert answer["vision"]["timing"]["queue_ms"] < 1500
    counts = server.get(f"/v1/batches/{batch['id']}").json()["request_counts"]
    server.post(f"/v1/batches/{batch['id']}/cancel")
    assert counts["total"] == 60


def _killed_at_random_moments(
    folder: Path, num_items: int, num_kills: int, seed: int
) -> dict[str, Any]:
    """Starts a batch, kills the whole server again and again, and lets the last one finish."""
    rng = random.Random(seed)
    receipts = [draw_receipt(number % 12, 256, 352) for number in range(num_items)]
    lines = [
        {
            "custom_id": f"item-{number}",
            "url": "/api/chat",
            "body": {"image": base64_of(receipt.png), "prompt": TOTAL, "max_tokens": 12},
        }
        for number, receipt in enumerate(receipts)
    ]
    batch_id = ""
    for number in range(num_kills + 1):
        with serve(folder) as own:
            if not batch_id:
                batch_id = start(own, lines, "/api/chat").json()["id"]

            def state(own: Server = own, batch_id: str = batch_id) -> Any:
                return own.get(f"/v1/batches/{batch_id}").json()

            if number == num_kills:
                final = wait_for(
                    lambda state=state: (s := state())["status"] == "completed" and s, seconds=100
                )
                content = own.get(f"/v1/files/{final['output_file_id']}/content").text
                assert final["error_file_id"] is None
                found = [json.loads(text) for text in content.splitlines()]
                return {x["custom_id"]: x["response"]["body"] for x in found} | {"n": len(found)}
            time.sleep(rng.random() * 0.8)
            worker = own.worker_pid()
            own.process.send_signal(signal.SIGKILL)
            own.process.wait(10)
            wait_for(lambda worker=worker: not Path(f"/proc/{worker}").exists(), seconds=15)
    raise AssertionError("unreachable")


def test_a_killed_server_does_each_item_exactly_once(tmp_path: Path) -> None:
    found = _killed_at_random_moments(tmp_path, num_items=24, num_kills=1, seed=1)
    assert found.pop("n") == 24
    assert set(found) == {f"item-{number}" for number in range(24)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    found = _killed_at_random_moments(tmp_path, num_items=60, num_kills=20, seed=2)
    assert found.pop("n") == 60
    assert set(found) == {f"item-{number}" for number in range(60)}
