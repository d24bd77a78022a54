"""`visiongate batch`: what a list may name, what resumes, and in which order results stand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import START, Server, command, environment_of_tests, wait_for
from tests.pictures import draw_receipt
from visiongate.cli.batch import read_items
from visiongate.cli.locations import read_bytes, shown
from visiongate.errors import InvalidRequest

TOTAL = "What is the total?"


def receipts(folder: Path, number: int) -> dict[str, str]:
    """Pictures of receipts in a folder: the true total of each name."""
    folder.mkdir(parents=True)
    totals = {}
    for seed in range(number):
        receipt = draw_receipt(seed)
        name = f"{seed:03d}.png"
        (folder / name).write_bytes(receipt.png)
        totals[name] = receipt.total
    return totals


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_end_in_the_order_of_the_items(server: Server, tmp_path: Path) -> None:
    totals = receipts(tmp_path / "in", 6)
    arguments = ["batch", "in", "--prompt", TOTAL, "--parallel", "6", "--base-url", server.url]
    command(tmp_path, *arguments)
    found = results(tmp_path / "results.jsonl")
    assert [(row["name"], row["response"]) for row in found] == sorted(totals.items())


def test_a_run_that_was_killed_goes_on_and_answers_each_item_once(
    server: Server, tmp_path: Path
) -> None:
    totals = receipts(tmp_path / "in", 10)
    arguments = ["batch", "in", "--prompt", TOTAL, "--parallel", "1", "--base-url", server.url]
    journal = tmp_path / "results.jsonl"
    first = subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=tmp_path,
        env=environment_of_tests(),
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: journal.is_file() and len(journal.read_text().splitlines()) >= 3)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    num_before = len(results(journal))
    assert num_before < 10
    with journal.open("a") as file:
        file.write('{"name": "009.png", "resp')  # a line that the kill cut off
    assert f"{num_before} of 10 were done before" in command(tmp_path, *arguments)
    found = results(journal)
    assert [(row["name"], row["response"]) for row in found] == sorted(totals.items())


def test_two_lines_with_one_id_are_refused(tmp_path: Path) -> None:
    """One of them would have got the other's answer."""
    lines = [{"image": name, "prompt": "x", "id": "same"} for name in ("a.png", "b.png")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidRequest, match=r"line 2 .* 'same'"):
        list(read_items(str(tmp_path / "in.jsonl"), "", None))


def test_credentials_of_an_address_are_not_shown() -> None:
    address = "s3://user:secret@bucket/folder/list.jsonl?endpoint_override=host"
    assert shown(address) == "s3://bucket/folder/list.jsonl"


def test_addresses_name_the_same_pictures_as_paths(tmp_path: Path) -> None:
    """file:// goes the way of every bucket; names with spaces and signs come through."""
    pytest.importorskip("pyarrow")
    folder = tmp_path / "in put"
    (folder / "deep").mkdir(parents=True)
    for name in ("b #1%.png", "deep/ü?.png", "a.jpg", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    by_path = list(read_items(str(folder), "x", None))
    address = folder.as_uri()
    by_address = list(read_items(address, "x", None))
    assert [item.name for item in by_address] == [item.name for item in by_path]
    assert len(by_path) == 3
    for item in by_address:
        assert item.location.startswith("file://")
        assert read_bytes(item.location) == item.name.encode()
    (folder / "in.jsonl").write_text(json.dumps({"image": "deep/ü?.png", "prompt": "x"}))
    (item,) = read_items(f"{address}/in.jsonl", "", None)
    assert read_bytes(item.location) == "deep/ü?.png".encode()
