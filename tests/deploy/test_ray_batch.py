"""`visiongate batch --ray` on clusters of several nodes, all on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_batch import receipts, results
from tests.deploy.ray_nodes import run_nodes
from tests.gateway.serving import ROOT, START, command, environment_of_tests, wait_for

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOTAL = "What is the total?"
WEIGHTS = ROOT / "src" / "visiongate" / "mini" / "weights"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=environment_of_tests() | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def check(rows: list[dict[str, Any]], totals: dict[str, str]) -> None:
    """Every item exactly once, in order, with the true answer; the broken picture as an error."""
    assert [row["name"] for row in rows] == [*sorted(totals), "broken.png"]
    assert [row["response"] for row in rows[:-1]] == [totals[name] for name in sorted(totals)]
    assert not any(row["error"] for row in rows[:-1])
    assert "accepted" in rows[-1]["error"]


@pytest.mark.parametrize("number", [40, pytest.param(500, id="500")])
def test_a_node_that_dies_costs_no_item_and_doubles_none(tmp_path: Path, number: int) -> None:
    """Two nodes with a replica each; one is killed when a tenth of the answers is there."""
    totals = receipts(tmp_path / "in", number)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    journal = tmp_path / "results.jsonl"
    with run_nodes(2) as nodes:
        job = start(tmp_path, "batch", "in", "--prompt", TOTAL, "--ray", nodes.address)
        with job:
            wait_for(
                lambda: num_lines(journal) >= number / 10,
                seconds=120,
                failed=lambda: job.poll() is not None,
                why=lambda: job.communicate()[0],
            )
            nodes.kill_one()
            assert num_lines(journal) < number  # it died in the middle of the work
            text = job.communicate(timeout=400)[0]
    assert f"{number} answered, 1 failed" in text
    assert job.returncode == 1
    check(results(journal), totals)


def test_a_job_that_was_killed_goes_on_on_the_same_cluster(tmp_path: Path) -> None:
    totals = receipts(tmp_path / "in", 24)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    journal = tmp_path / "results.jsonl"
    with run_nodes(2) as nodes:
        arguments = ["batch", "in", "--prompt", TOTAL, "--parallel", "1", "--ray", nodes.address]
        first = start(tmp_path, *arguments)
        with first:
            wait_for(lambda: num_lines(journal) >= 4, seconds=120)
            first.send_signal(signal.SIGKILL)
        num_before = sum(not row["error"] for row in results(journal))
        assert 0 < num_before < 24
        text = command(tmp_path, *arguments, status=1)
    assert f"{num_before} of 25 were done before" in text
    check(results(journal), totals)


def test_a_table_is_the_same_with_and_without_ray(tmp_path: Path) -> None:
    """Lines with prompts and lengths of their own, a bucket's address, a spreadsheet's file."""
    receipts(tmp_path / "in", 3)
    lines = [
        {"image": "in/000.png", "prompt": TOTAL, "id": "=1+1"},
        {"image": (tmp_path / "in" / "001.png").as_uri(), "prompt": "What is the store name?"},
        {"image": "in/002.png", "prompt": "What is the date?", "max_tokens": 2},
        {"image": "in/none.png", "prompt": TOTAL, "id": "none"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command(tmp_path, "batch", "in.jsonl", "--out", "plain.csv", status=1)
    command(tmp_path, "batch", "in.jsonl", "--out", "ray.csv", "--ray", "local", status=1)

    def rows(name: str) -> list[list[str]]:  # without the seconds
        text = (tmp_path / name).read_text(encoding="utf-8-sig")
        return [[c for i, c in enumerate(row.split(",")) if i != 4] for row in text.splitlines()]

    assert rows("ray.csv") == rows("plain.csv")
    assert len(rows("ray.csv")) == 5


def test_what_cannot_work_is_said_in_a_sentence(tmp_path: Path) -> None:
    receipts(tmp_path / "in", 1)
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in WEIGHTS.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    os.truncate(bad / "model.safetensors", 100_000)
    arguments = ["batch", "in", "--prompt", TOTAL]
    text = command(tmp_path, *arguments, "--ray", "local", "--model", str(bad), status=2)
    assert "the model cannot be loaded" in text
    assert "Traceback" not in text
    text = command(tmp_path, *arguments, "--ray", "127.0.0.1:9", status=2)
    assert "no Ray cluster answers at 127.0.0.1:9" in text
    text = command(
        tmp_path, *arguments, "--ray", "local", "--replica-cpus", "1000", status=2
    )  # fmt: skip
    assert "1000 CPUs" in text
    text = command(tmp_path, *arguments, "--ray", "local", "--base-url", "http://x", status=2)
    assert "--base-url" in text
