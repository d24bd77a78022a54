"""What the promised `docker run` lines start, run here: the images' entry, command and environment.

The folders of the image are moved under a folder of the test; everything else is read from the
Dockerfile. The slow part runs the Dockerfile's steps in a root of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.deploy.dockerfile import read
from tests.gateway.serving import ROOT, example, question, stop, wait_for

ENTRY = ROOT / "deploy/entrypoint.sh"
HEALTH = ROOT / "deploy/healthcheck.py"
IMAGE = read(ROOT / "deploy/Dockerfile.cpu")[-1]
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@dataclass
class Container:
    """A started "container": its process, its folders, its output."""

    process: subprocess.Popen[str]
    root: Path
    port: int
    environment: dict[str, str]
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def health(self) -> int:
        """What HEALTHCHECK would say."""
        return subprocess.run(
            [sys.executable, str(HEALTH)], env=self.environment, check=False
        ).returncode


@contextlib.contextmanager
def run_image(root: Path, *arguments: str, **extra: str) -> Iterator[Container]:
    """Runs ENTRYPOINT and CMD with the image's ENV, /app moved to `root`; LANG is plain C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    moved = {k: v.replace("/app", str(root)) for k, v in IMAGE.environment.items()}
    environment = moved | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C",
        "VISIONGATE_ROOT": str(root),
        "VISIONGATE_USER": str(os.getuid()),
        "VISIONGATE_PORT": str(port),
        "VISIONGATE_HOST": "127.0.0.1",
        "VISIONGATE_PRESET": "mini",
        "OMP_NUM_THREADS": "1",
        **extra,
    }
    for name in ("VISIONGATE_KERNELS",):
        if name in os.environ:
            environment[name] = os.environ[name]
    shutil.copy(ROOT / "app.py", root)
    process = subprocess.Popen(
        [str(ENTRY), *IMAGE.last("CMD").words, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield Container(process, root, port, environment, lines)
    finally:
        stop(process)
        reader.join(5)
        process.stdout.close()


def until_healthy(container: Container) -> None:
    wait_for(
        lambda: _status(container) == 200,
        seconds=90,
        failed=lambda: container.process.poll() is not None,
        why=lambda: "".join(container.lines),
    )


def _status(container: Container) -> int:
    with contextlib.suppress(requests.RequestException):
        return requests.get(container.url + "/health", timeout=5).status_code
    return 0


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with run_image(tmp_path_factory.mktemp("image"), "--debug") as found:
        assert found.health() == 1  # nothing listens yet, or it loads
        until_healthy(found)
        yield found


def test_health_is_good_only_once_a_request_would_be_answered(container: Container) -> None:
    """The container runs `app.py --debug`, the promised way to watch it load."""
    assert container.health() == 0


def test_chinese_stays_chinese_under_a_plain_c_locale(container: Container) -> None:
    """Mojibake (乱码) was in the original's list of troubles: bodies and logs are UTF-8."""
    answer = requests.post(
        container.url + "/v1/chat/completions",
        files={"image": ("发票.png", example(), "image/png")},
        data={"prompt": "总计是多少?"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert "20.47" in answer.json()["choices"][0]["message"]["content"]
    refused = requests.post(container.url + "/api/chat", json={"prompt": "这是什么?", "image": "!"})
    assert refused.status_code == 400
    log = container.root / "logs/api_access.log"
    wait_for(lambda: "发票.png" in log.read_text(encoding="utf-8"))


def test_logs_and_data_lie_in_the_mounted_folders(container: Container) -> None:
    names = {path.name for path in (container.root / "logs").iterdir()}
    assert names >= {"api_access.log", "model_loading.log", "error.log"}
    assert (container.root / "data").is_dir()
    assert (container.root / ".cache").is_dir()
    assert "loaded visiongate-mini" in (container.root / "logs/model_loading.log").read_text()


def test_sigterm_answers_what_has_begun_and_a_restart_keeps_its_folders(tmp_path: Path) -> None:
    """`docker restart`: running and waiting requests are answered, then the process ends."""
    with run_image(tmp_path) as first:
        until_healthy(first)

        def ask(number: int) -> requests.Response:
            body = question(example(), f"Read all the text. ({number})", max_tokens=64)
            return requests.post(first.url + "/v1/chat/completions", json=body, timeout=60)

        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(ask, number) for number in range(5)]
            running = "/api/status"
            wait_for(
                lambda: requests.get(first.url + running, timeout=5).json()["queue"]["running"]
            )
            time.sleep(0.3)  # all five have been sent
            first.process.send_signal(signal.SIGTERM)
            codes = [item.result().status_code for item in asked]
        assert codes == [200] * 5
        assert first.process.wait(30) in {0, -signal.SIGTERM}  # the server passes the signal on
        assert first.health() == 1
    with run_image(tmp_path) as second:
        wait_for(lambda: _status(second) in {200, 503}, seconds=60)
        until_healthy(second)
    log = (tmp_path / "logs/api_access.log").read_text(encoding="utf-8")
    assert log.count("/v1/chat/completions") == 5


@is_root
def test_the_entry_hands_folders_over_and_becomes_the_user() -> None:
    folder = Path(tempfile.mkdtemp(prefix="visiongate-entry-"))
    folder.chmod(0o755)
    try:
        (folder / "logs").mkdir()  # as Docker makes a missing -v folder: root's
        command = f"id -u; id -G; echo x > {folder}/logs/x; grep NoNewPrivs /proc/self/status"
        done = subprocess.run(
            [str(_readable(folder)), "sh", "-c", command],
            env={"PATH": os.environ["PATH"], "VISIONGATE_ROOT": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["10001", "10001", "NoNewPrivs:", "1"]
        assert (folder / "logs/x").stat().st_uid == 10001
        assert {p.name for p in folder.iterdir()} >= {"logs", ".cache", "data"}
    finally:
        shutil.rmtree(folder)


def _readable(folder: Path) -> Path:
    """The script where every user may run it."""
    copied = folder / "entrypoint.sh"
    shutil.copy(ENTRY, copied)
    copied.chmod(0o755)
    return copied


@pytest.mark.parametrize(
    ("preset", "port", "expected"), [("pro", "", 8501), ("cpu", "", 8080), ("pro", "9000", 9000)]
)
def test_the_health_check_knows_the_port(preset: str, port: str, expected: int) -> None:
    code = (
        "import json, runpy, http.client as h\n"
        "seen = []\n"
        "def connect(self):\n"
        "    seen.append(self.port)\n"
        "    raise OSError\n"
        "h.HTTPConnection.connect = connect\n"
        "try: runpy.run_path(__import__('sys').argv[1], run_name='__main__')\n"
        "except SystemExit as end: print(json.dumps([seen[0], end.code]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HEALTH)],
        env={"VISIONGATE_PRESET": preset, "VISIONGATE_PORT": port},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [expected, 1]
