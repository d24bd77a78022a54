"""Rows of docs/operations.md whose symptom needs a broken service: each is brought about."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.serving import ROOT, START, base64_of, example, serve, wait_for

WEIGHTS = ROOT / "src/visiongate/mini/weights"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def broken_checkpoint(folder: Path) -> Path:
    """The embedded model whose weights were cut off by an unfinished copy."""
    shutil.copytree(WEIGHTS, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    return folder


def test_a_model_that_cannot_be_loaded_says_so_everywhere(tmp_path: Path) -> None:
    """`{"error": "model not loaded"}`: the promised words, with the reason where operators look."""
    folder = broken_checkpoint(tmp_path / "model")
    with serve(tmp_path, "--model", str(folder), waits=False) as server:
        wait_for(lambda: server.get("/health").json()["status"] == "unhealthy", seconds=60)
        body = {"image": base64_of(example()), "prompt": "What is the total?"}
        answer = server.post("/api/chat", body)
        assert answer.status_code == 503
        assert answer.json() == {"error": "model not loaded"}
        assert int(answer.headers["Retry-After"]) >= 1
        assert server.get("/").status_code == 200  # the page is there and shows the reason
        assert server.get("/health/details").json()["reason"]
        wait_for(lambda: "unhealthy" in server.log("model_loading.log"), seconds=5)
        assert "model.safetensors is damaged" in server.log("model_loading.log")


def test_a_checkpoint_with_a_missing_file_is_named_by_the_doctor(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    (folder / "tokenizer.json").unlink()
    done = command(tmp_path, "doctor", "--skip-model", "--json", "--model", str(folder))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert "tokenizer.json" in checks["weights"]["measured"]
    assert "pull" in checks["weights"]["fix"]


@pytest.mark.slow
def test_a_busy_port_ends_the_start_with_a_sentence_and_the_doctor_says_whose_it_is(
    tmp_path: Path,
) -> None:
    with serve(tmp_path) as server:
        port = server.url.rsplit(":", 1)[1]
        done = command(tmp_path, "serve", "--port", port)
        assert done.returncode == 2
        assert "cannot listen on" in done.stderr
        assert "--port" in done.stderr
        checked = command(tmp_path, "doctor", "--skip-model", "--set", f"port={port}")
        assert f"{port} is served by VisionGate" in checked.stdout
