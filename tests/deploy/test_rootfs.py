"""Dockerfile.cpu without a container engine: its steps in roots of their own, then its run line.

A Debian root made by debootstrap stands for the base image. Every RUN, COPY and ENV is executed as
written; the result is started the way `docker run` would: own processes, own network without any
way out, a root-owned log folder, weights mounted read-only. Needs root and debootstrap.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.dockerfile import Stage, read
from tests.gateway.serving import ROOT, wait_for

TOOLS = ("debootstrap", "chroot", "unshare", "nsenter", "ip")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, TOOLS)),
        reason=f"needs root and {', '.join(TOOLS)}",
    ),
]
CONTEXT_IGNORED = shutil.ignore_patterns("node_modules", "__pycache__", "static", "_native.so")
ASK = textwrap.dedent(
    """
    import json, sys, urllib.request, uuid
    picture, prompt = open(sys.argv[1], "rb").read(), sys.argv[2]
    mark = uuid.uuid4().hex
    head = f'--{mark}\\r\\nContent-Disposition: form-data; name="prompt"\\r\\n\\r\\n{prompt}\\r\\n'
    head += f'--{mark}\\r\\nContent-Disposition: form-data; name="image"; filename="发票.png"\\r\\n'
    body = (head + "Content-Type: image/png\\r\\n\\r\\n").encode() + picture
    request = urllib.request.Request(
        "http://127.0.0.1:8080/v1/chat/completions",
        body + f"\\r\\n--{mark}--\\r\\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={mark}"},
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        print(json.load(answer)["choices"][0]["message"]["content"])
    """
)


@dataclass
class Image:
    """A built root and what its Dockerfile says."""

    root: Path
    stage: Stage


def debian_mirror() -> list[str]:
    """The mirror that this machine uses, where one is named."""
    for file in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if file.is_file():
            found = re.search(
                r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+/debian)/?( |$)", file.read_text(), re.M
            )
            if found:
                return [found[1]]
    return []


def package_settings(root: Path) -> tuple[dict[str, str], list[Path]]:
    """This machine's pip and npm settings inside a root, and local folders that they name."""
    text = ""
    for source, target in (
        (Path("/etc/pip.conf"), "etc/pip.conf"),
        (Path.home() / ".config/pip/pip.conf", "root/.config/pip/pip.conf"),
        (Path("/etc/npmrc"), "root/.npmrc"),
        (Path.home() / ".npmrc", "root/.npmrc"),
        (Path("/etc/resolv.conf"), "etc/resolv.conf"),
    ):
        if source.is_file():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            with (root / target).open("a") as out:
                out.write(source.read_text())
            text += source.read_text()
    kept = {k: v for k, v in os.environ.items() if re.match("(?i)(pip|npm_config|node)_", k)}
    text += " ".join(kept.values())
    folders = {Path(name) for name in re.findall(r"(?:(?<=file://)|(?<![\w:/]))/[\w./-]+", text)}
    # An index in a folder names its files beside it.
    folders = {path.parent if path.name == "simple" else path for path in folders}
    return kept, sorted(path for path in folders if path.is_dir())


def in_root(
    root: Path, command: list[str], environment: dict[str, str], mounts: list[tuple[Path, str]]
) -> list[str]:
    """A command line that runs `command` with `root` as its whole world."""
    lines = [f"mount --bind {source} {root}{target}" for source, target in mounts]
    script = " && ".join(
        [
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            *lines,
            f'exec chroot {root} /usr/bin/env -i "$@"',
        ]
    )
    pairs = [f"{name}={value}" for name, value in environment.items()]
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGTERM"),
        *("sh", "-c", script, "sh", *pairs, *command),
    ]


def build(stage: Stage, root: Path, others: dict[str, Path], arguments: dict[str, str]) -> None:
    """Executes a stage's instructions in its root."""
    kept, folders = package_settings(root)
    for local in folders:
        (root / str(local).lstrip("/")).mkdir(parents=True, exist_ok=True)
    mounts = [(local, str(local)) for local in folders]
    environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"} | kept
    if Path("/etc/ssl/certs/ca-certificates.crt").exists():
        mounts.append((Path("/etc/ssl/certs"), "/etc/ssl/certs"))
    folder = "/"
    for item in stage.instructions:
        if item.word == "ENV":
            pairs = {k: v.replace("$PATH", environment["PATH"]) for k, v in item.pairs.items()}
            environment |= pairs
        elif item.word == "ARG":
            environment |= {name: arguments.get(name, v) for name, v in item.pairs.items()}
        elif item.word == "WORKDIR":
            folder = item.text
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif item.word == "COPY":
            copy(item.words, root, folder, others)
        elif item.word == "RUN":
            command = ["sh", "-c", f"cd {folder} && {item.text}"]
            done = subprocess.run(
                in_root(root, command, environment, mounts),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{item.text}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


def copy(words: list[str], root: Path, folder: str, others: dict[str, Path]) -> None:
    """COPY, from the build context or from another stage."""
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = others[words.pop(0).partition("=")[2]]
    *names, target = words
    place = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
    if names == ["."]:
        names = context_names()
    for name in names:
        source = source_root / name.lstrip("/")
        if source.is_dir():
            inner = place / name if source_root == ROOT else place
            ignored = CONTEXT_IGNORED if source_root == ROOT else None
            shutil.copytree(source, inner, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            inner = place / (name if name.count("/") and len(names) > 4 else source.name)
            inner.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, inner)


def context_names() -> list[str]:
    """What .dockerignore lets through."""
    lines = (ROOT / "deploy/Dockerfile.cpu.dockerignore").read_text().split()
    return [line[1:] for line in lines if line.startswith("!")]


def debian_root(folder: Path) -> Path:
    """A small Debian with Python: what the base image is, two minutes' work."""
    include = "--include=ca-certificates,python3,python3-venv,python3-dev"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", include, "bookworm", str(folder), *debian_mirror()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("roots")
    base = Path(os.environ.get("VISIONGATE_DEBIAN_ROOT") or debian_root(folder / "base"))
    roots: dict[str, Path] = {}
    for stage in read(ROOT / "deploy/Dockerfile.cpu"):
        root = folder / (stage.name or "final")
        subprocess.run(["cp", "-a", str(base), str(root)], check=True)
        roots[stage.name] = root
        build(stage, root, roots, {"TORCH_INDEX_URL": ""})
        last = stage
    yield Image(roots[""], last)
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Run:
    """A started image: its first process as this machine sees it, and its lines."""

    process: subprocess.Popen[str]
    image: Image
    environment: dict[str, str]
    folder: Path

    def first_pid(self) -> int:
        """The service, a child of unshare."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int((path.read_text().split() or ["0"])[0])

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the run's own network, with this machine's programs (a client)."""
        return subprocess.run(
            ["nsenter", "-t", str(self.first_pid()), "-n", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def health(self) -> int:
        """The image's HEALTHCHECK, inside its root."""
        words = json.loads(self.image.stage.last("HEALTHCHECK").text.split("CMD ")[1])
        pairs = [f"{name}={value}" for name, value in self.environment.items()]
        return self.inside(
            "chroot", str(self.image.root), "/usr/bin/env", "-i", *pairs, *words
        ).returncode


@pytest.fixture
def started(image: Image, tmp_path: Path) -> Iterator[Run]:
    """docker run -v logs:/app/logs -v model:/models:ro -e MODEL_PATH=/models IMAGE"""
    logs = tmp_path / "logs"
    logs.mkdir()
    (image.root / "models").mkdir(exist_ok=True)
    environment = image.stage.environment | {"MODEL_PATH": "/models", "LANG": "C"}
    environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    mounts = [(logs, "/app/logs"), (ROOT / "src/visiongate/mini/weights", "/models")]
    words = [*image.stage.last("ENTRYPOINT").words, *image.stage.last("CMD").words]
    command = in_root(
        image.root, ["sh", "-c", f"cd /app && exec {' '.join(words)}"], environment, mounts
    )
    command[1:1] = ["--net"]
    # The loopback of a new network is down at first.
    place = command.index("sh")
    command[place + 2] = f"ip link set lo up && {command[place + 2]}"
    output = (tmp_path / "stdout").open("w", encoding="utf-8")
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
    run = Run(process, image, environment, tmp_path)
    try:
        wait_for(run.first_pid)
        yield run
    finally:
        if process.poll() is None:
            # Becoming another user has cleared the parent's death signal: end the service itself.
            os.kill(run.first_pid() or process.pid, signal.SIGKILL)
            process.wait(10)
        output.close()


def test_the_image_has_no_compiler_and_the_promised_folders(image: Image) -> None:
    for name in ("usr/bin/g++", "usr/bin/gcc", "usr/bin/node"):
        assert not (image.root / name).exists()
    for name in ("logs", ".cache", "data"):
        assert (image.root / "app" / name).stat().st_uid == 10001
    packages = image.root / "opt/visiongate/lib/python3.11/site-packages"
    assert (packages / "visiongate/static/index.html").exists()
    assert list((packages / "visiongate/kernels").glob("_native*"))
    assert not list(packages.glob("nvidia*"))  # no CUDA


def test_the_promised_run_line_serves_offline_as_its_user_and_drains(started: Run) -> None:
    output = started.folder / "stdout"
    assert started.health() == 1
    wait_for(
        lambda: "API server running on http://0.0.0.0:8080" in output.read_text("utf-8"),
        seconds=120,
        failed=lambda: started.process.poll() is not None,
        why=lambda: output.read_text("utf-8"),
    )
    assert started.health() == 0
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in _tree(started.first_pid())]
    assert len(statuses) >= 2  # the gateway and its worker
    assert all("\nUid:\t10001\t10001" in status for status in statuses)
    picture = str(ROOT / "examples/receipt.png")
    client = (sys.executable, "-c", ASK, picture)
    answer = started.inside(*client, "What is the total?")
    assert "20.47" in answer.stdout, answer.stderr
    logs = started.folder / "logs"
    assert logs.stat().st_uid == 10001  # it was root's, as Docker makes it
    wait_for(lambda: "发票.png" in (logs / "api_access.log").read_text("utf-8"))
    with ThreadPoolExecutor(4) as pool:
        prompts = [f"Read all the text. {number}" for number in range(4)]
        asked = [pool.submit(started.inside, *client, prompt) for prompt in prompts]
        time.sleep(1.0)
        os.kill(started.first_pid(), signal.SIGTERM)
        answers = [item.result() for item in asked]
    assert all("Harbor Market" in item.stdout for item in answers), answers
    assert started.process.wait(30) is not None


def _tree(pid: int) -> list[int]:
    """A process and all below it; each thread has children of its own."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            found += _tree(int(child))
    return found
