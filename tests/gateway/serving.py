"""Runs the real server in a process of its own, for tests that speak HTTP with it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_KEPT = {"VISIONGATE_KERNELS"}
START = "from visiongate.cli import main; main()"


@dataclass
class Server:
    """A running server: its address, process and folders."""

    url: str
    process: subprocess.Popen[str]
    folder: Path
    lines: list[str] = field(default_factory=list)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def log(self, name: str) -> str:
        return (self.folder / "logs" / name).read_text(encoding="utf-8")

    def access_line(self, request_id: str) -> str:
        line: str = wait_for(
            lambda: next(
                (line for line in self.log("api_access.log").splitlines() if request_id in line), ""
            )
        )
        return line

    def worker_pid(self) -> int:
        pid: int = self.get("/health/details").json()["workers"][0]["pid"]
        return pid


@contextlib.contextmanager
def serve(folder: Path, *arguments: str, waits: Any = True, **environment: str) -> Iterator[Server]:
    """A server on a free port, stopped at the end; `waits` until it says that it is ready.

    `waits` is true or false; it is typed loosely so that an environment can be unpacked beside it.
    """
    env = environment_of_tests() | environment
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", "--port", "0", *arguments],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_collect, args=(process, lines), daemon=True)
    reader.start()
    try:
        word = "API server running on" if waits else "the page is at"
        line = wait_for(
            lambda: next((line for line in lines if word in line), ""),
            seconds=60,
            failed=lambda: process.poll() is not None,
            why=lambda: "".join(lines),
        )
        yield Server("http://" + line.split("http://")[1].strip(), process, folder, lines)
    finally:
        stop(process)
        reader.join(5)
        if process.stdout is not None:
            process.stdout.close()


def command(folder: Path, *arguments: str, status: int = 0) -> str:
    """What a command of ours prints; it must end with `status`."""
    found = subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=environment_of_tests() | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == status, found.stdout + found.stderr
    return found.stdout + (found.stderr if status else "")


def environment_of_tests() -> dict[str, str]:
    """This process's environment, without settings of ours."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VISIONGATE_") or k in _KEPT}
    return env | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a server as `docker stop` does, then as `docker kill` does."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def _collect(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    lines.extend(iter(process.stdout.readline, ""))


def wait_for(
    probe: Any, *, seconds: float = 20.0, failed: Any = lambda: False, why: Any = lambda: ""
) -> Any:
    """The first true value of `probe`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        if failed():
            break
        time.sleep(0.05)
    raise AssertionError(f"never became true: {why()}")


def truths(kind: str = "receipt") -> list[tuple[str, str]]:
    """Questions and true answers of an example picture."""
    pictures = json.loads((EXAMPLES / "truths.json").read_text(encoding="utf-8"))["pictures"]
    found = next(picture for picture in pictures if picture["kind"] == kind)
    return [(item["question"], item["answer"]) for item in found["questions"]]


def example(name: str = "receipt.png") -> bytes:
    """The bytes of an example picture."""
    return (EXAMPLES / name).read_bytes()


def base64_of(data: bytes) -> str:
    """Plain base64."""
    return base64.b64encode(data).decode()


def data_url(data: bytes, kind: str = "image/png") -> str:
    """A data: URL."""
    return f"data:{kind};base64,{base64_of(data)}"


def question(data: bytes, text: str, **fields: Any) -> dict[str, Any]:
    """A body for /v1/chat/completions."""
    image = {"type": "image_url", "image_url": {"url": data_url(data)}}
    content = [image, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], **fields}


def endless(**fields: Any) -> dict[str, Any]:
    """A body whose answer goes on for seconds: a number without an end."""
    schema = {"type": "object", "properties": {"x": {"type": "string", "minLength": 3000}}}
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "long", "schema": schema | {"required": ["x"]}},
    }
    return {
        "messages": [{"role": "user", "content": "Say something long."}],
        "response_format": response_format,
        "max_tokens": 2000,
        "repetition_guard": False,
        **fields,
    }


def events(response: requests.Response) -> list[tuple[str, Any]]:
    """The server-sent events of a response: (name, data)."""
    found: list[tuple[str, Any]] = []
    name = ""
    for raw in response.iter_lines():
        line = raw.decode()
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            text = line[6:]
            found.append((name, text if text == "[DONE]" else json.loads(text)))
            name = ""
    return found


def content_of(found: list[tuple[str, Any]]) -> str:
    """The text of a streamed completion."""
    return "".join(
        choice["delta"].get("content") or ""
        for _, data in found
        if isinstance(data, dict)
        for choice in data.get("choices", [])
    )
