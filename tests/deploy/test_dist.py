"""`make dist`: the wheel in an empty environment, without compiler or Node, sees a picture."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gateway.serving import ROOT, example

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("VISIONGATE_")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--quiet",
            "-w",
            str(folder),
            str(ROOT),
        ),
        folder=folder,
    )
    return next(folder.glob("visiongate-*.whl"))


def test_the_wheel_carries_page_kernels_weights_and_pictures(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "visiongate/static/index.html",
        "visiongate/kernels/_native",
        "visiongate/mini/weights/model.safetensors",
    ):
        assert any(name.startswith(part) for name in names), part
    assert not any(name.startswith(("tests/", "webui/")) for name in names)


def test_an_empty_environment_installs_it_and_answers(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), folder=tmp_path)
    python = tmp_path / "venv/bin/python"
    constraints = str(ROOT / "constraints.txt")
    run(
        *(str(python), "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel)),
        folder=tmp_path,
    )
    (tmp_path / "receipt.png").write_bytes(example())
    # No compiler, no Node: the path holds the environment's own commands and nothing else.
    answer = run(
        *(str(tmp_path / "venv/bin/visiongate"), "ask", "receipt.png", "What is the total?"),
        folder=tmp_path,
        PATH=str(tmp_path / "venv/bin"),
    )
    assert "20.47" in answer
    checked = run(
        *(str(tmp_path / "venv/bin/visiongate"), "doctor", "--set", "port=0", "--seed", "11"),
        folder=tmp_path,
        PATH=str(tmp_path / "venv/bin"),
    )
    assert "0 failed" in checked
