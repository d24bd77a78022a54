"""Checkpoints from a hub of our own: complete, verified, resumed, refused in words."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.hub.hub_server import MODEL, NOISE, Hub
from visiongate import hub
from visiongate.errors import InvalidCheckpoint, InvalidSettings
from visiongate.hub.cache import copy_to, find_cached, missing_files, model_folder
from visiongate.model.weights import load_model

COMMAND = [sys.executable, "-c", "from visiongate.cli import main; main()", "pull", MODEL]


def hashes(folder: Path) -> dict[str, str]:
    names = [path for path in folder.iterdir() if path.name != "visiongate.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_pulled_model_is_what_was_published_and_nothing_else(
    hub_server: Hub, whole_checkpoint: dict[str, bytes], source: hub.Source
) -> None:
    hub_server.files = whole_checkpoint
    folder = hub.pull(MODEL, source=source)
    assert hashes(folder) == hub_server.hashes()
    assert not set(NOISE) & set(hashes(folder))
    assert missing_files(folder) == []
    assert load_model(folder).config.vision.depth > 0


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_second_start_makes_no_request(hub_server: Hub, source: hub.Source) -> None:
    first = hub.resolve(MODEL, source=source)
    hub_server.requests.clear()
    assert hub.resolve(MODEL) == first
    assert hub.resolve(MODEL, offline=True) == first
    assert hub_server.requests == []


def test_a_folder_is_taken_as_it_is_without_any_request(hub_server: Hub, tmp_path: Path) -> None:
    copied = copy_to(hub.pull(MODEL), tmp_path / "mounted")
    shutil.rmtree(tmp_path / "home")
    hub_server.requests.clear()
    assert hub.resolve(str(copied)) == copied
    assert hub_server.requests == []
    assert hashes(copied) == hub_server.hashes()
    assert not any(path.is_symlink() for path in copied.iterdir())


def test_cut_connections_go_on_where_they_were_cut(hub_server: Hub) -> None:
    hub_server.faults.num_cuts, hub_server.faults.cut_after = 8, 200_000
    folder = hub.pull(MODEL)
    assert hashes(folder) == hub_server.hashes()
    total = sum(len(hub_server.files[name]) for name in hub_server.hashes())
    assert hub_server.sent_bytes == total  # no byte twice


def test_a_hub_that_ignores_ranges_sends_the_file_again(hub_server: Hub) -> None:
    hub_server.faults.num_cuts, hub_server.faults.cut_after = 2, 200_000
    hub_server.faults.ignores_ranges = True
    assert hashes(hub.pull(MODEL)) == hub_server.hashes()


def test_a_busy_hub_is_asked_again(hub_server: Hub) -> None:
    hub_server.faults.busy_files = 2
    assert hashes(hub.pull(MODEL)) == hub_server.hashes()
    assert hub_server.faults.busy_files == 0


def test_a_wrong_hash_is_asked_for_once_more(hub_server: Hub) -> None:
    hub_server.faults.wrong = {"model-00001-of-00002.safetensors": 1}
    assert hashes(hub.pull(MODEL)) == hub_server.hashes()


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_a_wrong_hash_twice_ends_and_keeps_nothing_of_the_file(hub_server: Hub, name: str) -> None:
    hub_server.faults.wrong = {name: 99}
    with pytest.raises(hub.DownloadFailed, match="another hash"):
        hub.pull(MODEL)
    assert find_cached(MODEL) is None
    assert not list((model_folder(MODEL) / "blobs").glob("*.part"))


def test_a_pull_killed_ten_times_ends_with_identical_hashes(
    hub_server: Hub, whole_checkpoint: dict[str, bytes]
) -> None:
    """Kills come at random points of the transfer, in whatever file that is."""
    hub_server.files = whole_checkpoint
    rng = random.Random(8)
    total = sum(len(hub_server.files[name]) for name in hub_server.hashes())
    hub_server.faults.bytes_per_second = total // 4
    environment = os.environ | {"PYTHONPATH": "src"}
    for kill in range(1, 11):
        target = total * kill / 12 + rng.uniform(-0.03, 0.03) * total
        process = subprocess.Popen(COMMAND, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while hub_server.sent_bytes < target and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert find_cached(MODEL) is None
    hub_server.faults.bytes_per_second = 0
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert hashes(folder) == hub_server.hashes()
    # What a kill can lose is what lay in buffers: far less than the whole file again.
    assert hub_server.sent_bytes < total * 1.6
    hub_server.requests.clear()
    again = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    assert hub_server.requests == []


def test_two_pulls_at_once_download_once(hub_server: Hub) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(hub.pull(MODEL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    assert len([path for path in hub_server.requests if path.startswith("/cdn/")]) == 2


def test_progress_ends_with_every_byte(hub_server: Hub) -> None:
    seen: list[hub.Progress] = []
    hub.pull(MODEL, progress=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert seen[-1].fraction == 1.0
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)
    assert f"downloading {MODEL}" in str(seen[-1])


def test_a_file_that_was_cut_on_disk_is_noticed_and_fetched_again(hub_server: Hub) -> None:
    folder = hub.pull(MODEL)
    blob = (folder / "model-00001-of-00002.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert find_cached(MODEL) is None
    assert hashes(hub.pull(MODEL)) == hub_server.hashes()


def test_verify_finds_a_turned_bit(hub_server: Hub) -> None:
    folder = hub.pull(MODEL)
    assert all(verdict.is_good for verdict in hub.verify(folder))
    blob = (folder / "model-00001-of-00002.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    assert [verdict.name for verdict in hub.verify(folder) if verdict.is_good is False] == [
        "model-00001-of-00002.safetensors"
    ]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "is gated .* HF_TOKEN"),
        (401, "RepoNotFound", "no public model .* spelling"),
        (404, "RevisionNotFound", "no such revision"),
        (429, "", "slow down"),
        (500, "", "answered 500 .* another mirror"),
    ],
)
def test_refusals_are_told_in_words(hub_server: Hub, status: int, code: str, words: str) -> None:
    hub_server.faults.status, hub_server.faults.error_code = status, code
    with pytest.raises(hub.DownloadFailed, match=words):
        hub.resolve(MODEL)


def test_no_network_is_told_with_the_ways_out(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hub.DownloadFailed, match=r"HF_ENDPOINT .* modelscope.* MODEL_PATH"):
        hub.resolve(MODEL)
    assert hub_server.requests == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "VISIONGATE_OFFLINE"])
def test_offline_means_no_request(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(hub.DownloadFailed, match="downloads are switched off"):
        hub.resolve(MODEL)
    assert hub_server.requests == []


def test_a_full_disk_is_told_before_the_first_weight(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(hub.DownloadFailed, match=r"too full: 0\.\d+ GB more .* HF_HOME"):
        hub.resolve(MODEL)
    assert not [path for path in hub_server.requests if "resolve" in path]


@pytest.mark.parametrize("name", ["no such folder", "../x", "/does/not/exist", "a/b/c", "tiny-vl"])
def test_what_is_neither_a_folder_nor_an_id_is_refused_without_a_request(
    hub_server: Hub, name: str
) -> None:
    with pytest.raises(InvalidSettings, match="neither a folder"):
        hub.resolve(name)
    assert hub_server.requests == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b'{"model_type": "qwen2_5_vl"}', "qwen2_5_vl.*Qwen3-VL-2B"),
        (b'{"model_type": "qwen3_vl_moe"}', "dense size"),
        (b'{"model_type": "llava"}', "'llava'.*--upstream"),
        (b'{"model_type": "qwen3_vl", "quantization_config": {"quant_method": "fp8"}}', "fp8"),
    ],
)
def test_another_family_is_refused_by_name_before_its_weights_are_fetched(
    hub_server: Hub, config: bytes, words: str
) -> None:
    hub_server.files["config.json"] = config
    with pytest.raises(InvalidCheckpoint, match=words):
        hub.resolve(MODEL)
    assert not [path for path in hub_server.requests if path.startswith("/cdn/")]


def test_a_token_goes_to_the_hub_only(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch, checkpoint_files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.pull(MODEL)
    assert hub_server.tokens[0] == "Bearer hf_secret"
    request = httpx.Request("GET", "http://hub/a", headers={"Authorization": "Bearer x"})
    client = httpx.Client()
    moved = client._build_redirect_request(
        request, httpx.Response(302, headers={"Location": "http://cdn/a"}, request=request)
    )
    client.close()
    assert "Authorization" not in moved.headers


def test_names_that_could_leave_the_folder_are_not_taken(hub_server: Hub) -> None:
    hub_server.files["../../evil.safetensors"] = b"x"
    hub_server.files["sub/model.safetensors"] = b"x"
    assert hashes(hub.pull(MODEL)) == {
        name: value for name, value in hub_server.hashes().items() if "/" not in name
    }
