"""The three log files, the audit chain, the metrics: promised words, and never any content."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import uuid
from pathlib import Path

from tests.gateway.serving import (
    Server,
    base64_of,
    command,
    example,
    question,
    serve,
    wait_for,
)
from visiongate.gateway.ids import new_id
from visiongate.gateway.logs import LoadingLog, Logs, clean

TOTAL = "What is the total?"
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "  # time
    r"(?P<ip>\S+) (?P<name>\S+) (?P<code>\d{3}) (?P<seconds>\d+\.\d\d)s "
    r"(?P<id>\S+) (?P<method>\S+) (?P<path>\S+)"
)


def test_every_call_leaves_one_line_with_five_facts(server: Server) -> None:
    """A56: time, address, picture name, code, duration; within a second (A29)."""
    files = {"image": ("my receipt.png", example()), "prompt": (None, TOTAL)}
    answer = server.post("/v1/chat/completions", files=files)
    line = server.access_line(answer.headers["X-Request-ID"])
    found = LINE.fullmatch(line)
    assert found
    assert (found["ip"], found["name"], found["code"]) == ("127.0.0.1", "my_receipt.png", "200")
    assert abs(float(found["seconds"]) - answer.elapsed.total_seconds()) < 0.5


def test_codes_are_found_by_grep(server: Server) -> None:
    answer = server.post("/v1/chat/completions", files={"prompt": (None, "x")})
    assert answer.status_code == 400
    server.access_line(answer.headers["X-Request-ID"])
    log = server.folder / "logs" / "api_access.log"
    found = subprocess.run(
        ["grep", "-E", "400|500", str(log)], capture_output=True, text=True, check=True
    )
    lines = found.stdout.splitlines()
    assert any(answer.headers["X-Request-ID"] in line for line in lines)
    for line in lines:
        match = LINE.fullmatch(line)
        assert match
        chosen = match["name"] + match["path"]  # clients name pictures and sessions as they like
        if "400" not in chosen and "500" not in chosen:
            assert match["code"] in {"400", "500"}


def test_our_ids_hold_no_digits() -> None:
    ids = {new_id("batch_") for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"batch_[a-z]{20}", found) for found in ids)


def test_names_cannot_forge_lines(server: Server) -> None:
    files = {"image": ('a\r\n2026 evil" 500.png', example()), "prompt": (None, TOTAL)}
    answer = server.post("/v1/chat/completions", files=files)
    line = server.access_line(answer.headers["X-Request-ID"])
    assert LINE.fullmatch(line)
    path = server.get("/x%0a2026-01-01%20127.0.0.1%20x%20200")
    assert LINE.fullmatch(server.access_line(path.headers["X-Request-ID"]))
    assert clean("a b\nc\x1b[0m\u202e") == "a_b_c__0m_"


def test_the_request_id_of_the_caller_is_kept_when_it_is_harmless(server: Server) -> None:
    good = server.get("/health", headers={"X-Request-ID": "trace-42.a_B"})
    assert good.headers["X-Request-ID"] == "trace-42.a_B"
    bad = server.get("/health", headers={"X-Request-ID": "a b; c"})
    assert bad.headers["X-Request-ID"].startswith("req_")


def test_loading_is_logged_in_timed_stages(server: Server) -> None:
    """A57."""
    text = server.log("model_loading.log")
    assert re.search(r"\d+\.\d\ds loading", text)
    assert re.search(r"\d+\.\d\ds ready", text)
    assert "visiongate-mini" in text


def test_slow_loading_leaves_a_hint(tmp_path: Path) -> None:
    logs = Logs(tmp_path, max_bytes=10_000, num_files=1)
    log = LoadingLog(logs)
    log.watch("weights", "loading")
    log._started -= 61
    log.watch("weights", "loading")
    log.watch("weights", "loading")
    text = (tmp_path / "model_loading.log").read_text()
    logs.close()
    assert text.count("hint") == 1
    assert "MODEL_PATH" in text


def test_errors_have_a_trace_an_id_and_a_hint_when_memory_is_short(tmp_path: Path) -> None:
    """A59."""
    logs = Logs(tmp_path, max_bytes=10_000, num_files=1)
    try:
        raise OSError(12, "Cannot allocate memory")
    except OSError as error:
        logs.error(error, "req_abc")
    text = (tmp_path / "error.log").read_text()
    logs.close()
    assert "req_abc" in text
    assert "Traceback" in text
    assert "docker run -m" in text


def test_logs_are_rotated(tmp_path: Path) -> None:
    logs = Logs(tmp_path, max_bytes=4096, num_files=2)
    for number in range(500):
        logs.loading(f"line {number}")
    logs.close()
    names = sorted(path.name for path in tmp_path.glob("model_loading*"))
    assert names == ["model_loading.log", "model_loading.log.1", "model_loading.log.2"]
    assert all(path.stat().st_size <= 4096 for path in tmp_path.glob("model_loading*"))


def test_nothing_that_was_said_is_kept(server: Server) -> None:
    """No question, answer or picture in any file of the server."""
    marker = f"zebra{uuid.uuid4().hex}"
    picture = example() + marker.encode()
    body = {"image": base64_of(picture), "prompt": f"{marker} {TOTAL}", "max_tokens": 8}
    assert server.post("/api/chat", body).status_code == 200
    server.post("/v1/chat/completions", question(picture, marker, max_tokens=2))
    encoded = base64_of(marker.encode() * 3)[8:32].encode()
    for file in server.folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert marker.encode() not in data, file
            assert encoded not in data, file


def test_each_question_is_audited_and_the_chain_holds(tmp_path: Path) -> None:
    """B03: who, when, picture hash, parameters, code, duration; a changed record is found."""
    import hashlib

    with serve(tmp_path) as own:
        body = {"image": base64_of(example()), "prompt": TOTAL, "max_tokens": 9}
        first = own.post("/api/chat", body)
        own.post("/api/chat", {"prompt": "no picture"})
        own.get("/v1/models")
        wait_for(lambda: len(command(tmp_path, "audit", "export").splitlines()) == 2)
    records = [json.loads(line) for line in command(tmp_path, "audit", "export").splitlines()]
    assert [record["status"] for record in records] == [200, 400]
    found = records[0]
    assert found["request_id"] == first.headers["X-Request-ID"]
    assert found["images"] == [hashlib.sha256(example()).hexdigest()]
    assert found["parameters"]["max_tokens"] == 9
    assert found["call"] == "POST /api/chat"
    assert "2 records, unbroken" in command(tmp_path, "audit", "verify")
    with sqlite3.connect(tmp_path / "data" / "visiongate.db") as database:
        database.execute("UPDATE audit SET record = replace(record, '200', '500') WHERE number = 1")
    database.close()
    assert "broken at record 1" in command(tmp_path, "audit", "verify", status=1)


def test_metrics_count_what_happened(server: Server) -> None:
    def value(name: str) -> float:
        text = server.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    first = value('visiongate_requests_total{code="200",method="POST",route="/api/chat"}')
    tokens = value("visiongate_time_to_first_token_seconds_count")
    server.post("/api/chat", {"image": base64_of(example()), "prompt": TOTAL})
    last = value('visiongate_requests_total{code="200",method="POST",route="/api/chat"}')
    assert last == first + 1
    assert value("visiongate_time_to_first_token_seconds_count") == tokens + 1
    assert value("visiongate_ready") == 1
    assert value("visiongate_requests_capacity") == 3
    for name in (
        "visiongate_queue_seconds_count",
        "visiongate_prefill_seconds_count",
        "visiongate_vision_encode_seconds_count",
        "visiongate_time_per_output_token_seconds_count",
        "visiongate_prefix_cache_hit_tokens_total",
        "visiongate_image_tokens_total",
        "visiongate_worker_resident_bytes",
    ):
        wait_for(lambda name=name: value(name) > 0, seconds=5)
    assert value("visiongate_worker_restarts_total") == 0
