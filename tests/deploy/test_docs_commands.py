"""The commands of the pages that are not `run` blocks: executed here, or named with the reason."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.deploy.test_docs import PAGES
from tests.gateway.serving import ROOT, environment_of_tests, example
from tests.hub.hub_server import MODEL, Hub, published, run_hub

PLAIN = re.compile(r"^```(?:bash|python)\n(?P<code>.*?)^```\n", re.MULTILINE | re.DOTALL)
PUBLISHED = "Qwen/Qwen3-VL-2B-Instruct"

ELSEWHERE = {
    "docker build": "no container engine: test_rootfs.py does the image's steps and its start",
    "pip install 'visiongate[ray]'": "what `make test-slow` does before the Ray tests",
    "export RAY_USAGE": "test_ray_serve.py and test_ray_batch.py start the nodes of one machine",
    "visiongate batch scans": "test_ray_batch.py, over its own folder and cluster",
    "export VISIONGATE_REDIS_URL": "test_ray_serve.py deploys serve.yaml with its Redis and key",
    "ray start --head": "test_ray_serve.py builds the same application",
    "python -m benchmarks": "minutes to hours, some on a GPU; the results page says when it ran",
}
"""First words of a block and where it is executed instead, or why it is not."""

HERE = ("git clone", "visiongate pull", "visiongate serve", "visiongate doctor")


def plain_blocks() -> list[tuple[Path, str]]:
    """Blocks that no other test executes; all of http-api.md is executed by tests/gateway."""
    return [
        (page, match["code"])
        for page in PAGES
        if page.name != "http-api.md"
        for match in PLAIN.finditer(page.read_text(encoding="utf-8") + "\n")
    ]


def test_every_command_is_executed_or_says_why_not() -> None:
    known = (*HERE, *ELSEWHERE)
    for page, code in plain_blocks():
        assert code.startswith(known), f"{page.name}: nobody runs\n{code}"
    for words in known:
        assert any(code.startswith(words) for _, code in plain_blocks()), f"{words}: gone"


def block(page: str, beginning: str) -> list[str]:
    """The lines of a block, comments cut off."""
    found = next(c for p, c in plain_blocks() if p.name == page and c.startswith(beginning))
    return [line for text in found.splitlines() if (line := text.split("  #")[0].strip())]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with run_hub(published(tmp_path_factory.mktemp("published"), is_whole=True)) as found:
        yield found


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return environment_of_tests() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "VISIONGATE_PORT": str(port),
    }


def here(line: str, hub: Hub, folder: Path) -> str:
    """A page's line with our hub, our tiny model and our folders in it."""
    for theirs, ours in (
        (PUBLISHED, MODEL),
        ("https://your-mirror", hub.url),
        ("/media/usb/qwen3-vl-2b", str(folder / "model")),
        ("/data/models/qwen3-vl-2b", str(folder / "model")),
    ):
        line = line.replace(theirs, ours)
    return line


def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def answers(line: str, folder: Path, environment: dict[str, str]) -> None:
    """A line that serves: it must say that it runs, answer a picture, and end when told to."""
    with subprocess.Popen(
        ["bash", "-c", re.sub(r"(?<!exec )visiongate serve", "exec visiongate serve", line)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = ""
        for text in process.stdout:
            seen += text
            if "API server running on" in text:
                break
        assert "API server running on" in seen, seen
        found = requests.post(
            f"http://127.0.0.1:{environment['VISIONGATE_PORT']}/v1/chat/completions",
            files={"image": ("receipt.png", example(), "image/png")},
            data={"prompt": "What is the total?"},
            timeout=60,
        )
        os.killpg(process.pid, signal.SIGTERM)  # `make run` has a child
        process.wait(30)
    assert "20.47" in found.json()["choices"][0]["message"]["content"]


def test_the_pull_lines(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    for line in block("quickstart.md", "visiongate pull Qwen/Qwen3-VL-2B-Instruct  "):
        run(here(line, hub, tmp_path), tmp_path, environment)


def test_a_carried_model(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    pull, serve = block("quickstart.md", "visiongate pull Qwen/Qwen3-VL-2B-Instruct --to")
    run(here(pull, hub, tmp_path), tmp_path, environment)
    requests_before = len(hub.requests)
    answers(here(serve, hub, tmp_path), tmp_path, environment)
    assert len(hub.requests) == requests_before


@pytest.mark.slow
def test_the_serve_lines(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    """With a tiny model in place of the presets' own; without a card `pro` runs degraded."""
    run(f"visiongate pull {MODEL} --to {tmp_path / 'model'}", tmp_path, environment)
    environment["MODEL_PATH"] = str(tmp_path / "model")
    for line in (
        *block("quickstart.md", "visiongate serve --preset cpu"),
        *block("operations.md", "visiongate doctor --preset cpu"),
    ):
        answers(line, tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quick_start_is_quick(tmp_path: Path) -> None:
    """From a clone with an empty environment to the first answer; prints the seconds."""
    clone, make = block("quickstart.md", "git clone")
    assert clone.startswith("git clone")
    assert make == "make run"
    start = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "visiongate")], check=True)
    folder = tmp_path / "visiongate"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = environment_of_tests() | {"VISIONGATE_PORT": str(port)}
    del environment["PYTHONPATH"]
    answers("exec make run", folder, environment | {"VISIONGATE_PORT": str(port)})
    seconds = time.monotonic() - start
    print(f"from the clone to the first answer: {seconds:.0f} s")
    assert seconds < 15 * 60  # what the page promises
