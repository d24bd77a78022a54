"""What HTTP adds: the same questions to the engine directly and through a server, in turns.

    python -m benchmarks.overhead [--pairs N] [--size 1024x768] [--before SRC]

The embedded model, one client, at most 16 new tokens. In every turn a new JPEG, then another
question about it; the server is asked for whole answers and for streams. The engine's side decodes
a new picture too, and reuses a known one as the server does. Prints the medians in milliseconds,
the median difference of the pairs (`added`), how much of it the client spent on writing base64 and
JSON before it sent anything, and the processor time that the gateway's process took for a request,
which other programs on the machine disturb less than the clock.

`--before` names the `src` folder of another version: its server takes its turn in every pair.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import visiongate
from visiongate.cli.checks.speed import jpeg
from visiongate.engine import image
from visiongate.engine.engine import Engine
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import EngineSettings, Image, Request, SamplingParams

SOURCES = Path(visiongate.__file__).parents[1]
WEIGHTS = SOURCES / "visiongate" / "mini" / "weights"
QUESTIONS = ("What is the total?", "What is the store name?", "How many lines are there?")
NUM_TOKENS = 16
WARM_UP = 3
GRAIN = 14  # 240 KB at 1024 x 768, as a camera writes
KINDS = ("new", "known", "streamed")
START = "from visiongate.cli import main; main()"


@dataclass
class Times:
    """Seconds of each kind of request: by the clock, the client's part, the gateway's processor."""

    clock: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    client: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    processor: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in KINDS})

    def note(self, kind: str, clock: float, client: float = 0.0, processor: float = 0.0) -> None:
        """Keeps one request."""
        self.clock[kind].append(clock)
        self.client[kind].append(client)
        self.processor[kind].append(processor)


class Server:
    """A server in a process of its own."""

    def __init__(self, sources: Path) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("VISIONGATE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "serve", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**env, "PYTHONPATH": str(sources), "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout
        ready = next(line for line in self.process.stdout if "API server running on" in line)
        self.port = int(ready.strip().rsplit(":", 1)[1])
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, picture: bytes, question: str, *, is_streamed: bool) -> float:
        """One answer over HTTP, read to its end; returns the seconds that writing the body took."""
        begin = time.perf_counter()
        url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        fields = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "stream": is_streamed,
        }
        body = json.dumps(fields).encode()
        client = time.perf_counter() - begin
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", "/v1/chat/completions", body, headers)
        response = self.connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return client

    def processor_seconds(self) -> float:
        """What the gateway's process, without its workers, has computed so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def stop(self) -> None:
        """Ends the process."""
        self.connection.close()
        self.process.terminate()
        self.process.wait()


class Direct:
    """The engine in this process."""

    def __init__(self) -> None:
        self.engine = Engine.from_pretrained(WEIGHTS, EngineSettings(num_threads=2))
        self.builder = PromptBuilder.from_pretrained(WEIGHTS)
        vision = self.builder.config.vision
        self.limits = image.ImageLimits(min_pixels=vision.min_pixels, max_pixels=vision.max_pixels)
        self.number = 0

    def ask(self, picture: bytes | Image, question: str) -> Image:
        """One answer."""
        if isinstance(picture, bytes):
            picture = image.decode(picture, limits=self.limits)
        prompt = self.builder.build([Message("user", (picture, question))])
        self.number += 1
        self.engine.add(Request(str(self.number), prompt, SamplingParams(max_tokens=NUM_TOKENS)))
        while self.engine.has_work:
            self.engine.step()
        return picture


def main() -> None:
    """Measures and prints a table, and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--size", default="1024x768")
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    width, height = (int(part) for part in options.size.split("x"))
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it when it is loaded, as a worker's does
        arguments = [sys.executable, "-m", "benchmarks.overhead", *sys.argv[1:]]
        env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        os.execve(sys.executable, arguments, env)  # noqa: S606  # ourselves again
    servers = {"served": Server(SOURCES)}
    if options.before:
        servers["before"] = Server(options.before)
    try:
        engine = Direct()
        times = {name: Times() for name in ("engine", *servers)}
        for number in range(options.pairs + WARM_UP):
            picture = jpeg(number, width, height, grain=GRAIN)
            turn(engine, servers, picture, times if number >= WARM_UP else None, number)
    finally:
        for server in servers.values():
            server.stop()
    report(times, options.size, options.pairs)


def turn(
    engine: Direct,
    servers: dict[str, Server],
    picture: bytes,
    times: dict[str, Times] | None,
    number: int,
) -> None:
    """Every kind of request once to everyone; who is first changes from turn to turn."""
    known: list[Image] = []

    def directly(kind: str) -> None:
        what = picture if kind == "new" else known[0]
        begin = time.perf_counter()
        known.append(engine.ask(what, QUESTIONS[KINDS.index(kind)]))
        if times:
            times["engine"].note(kind, time.perf_counter() - begin)

    def through(name: str, kind: str) -> None:
        server = servers[name]
        before, begin = server.processor_seconds(), time.perf_counter()
        question = QUESTIONS[KINDS.index(kind)]
        client = server.ask(picture, question, is_streamed=kind == "streamed")
        clock = time.perf_counter() - begin
        time.sleep(0.005)  # what a request leaves behind is counted too
        if times:
            times[name].note(kind, clock, client, server.processor_seconds() - before)

    everyone: list[Callable[[str], None]] = [directly]
    everyone += [lambda kind, name=name: through(name, kind) for name in servers]  # type: ignore[misc]
    order = everyone[number % len(everyone) :] + everyone[: number % len(everyone)]
    for kind in KINDS:
        for ask in order:
            ask(kind)


def report(times: dict[str, Times], size: str, num_pairs: int) -> None:
    """The table, then one line of JSON."""
    found: dict[str, Any] = {"size": size, "pairs": num_pairs}
    head = f"{'engine':>8} {'served':>8} {'added':>7} {'client':>7} {'processor':>10}"
    print(f"{'':10} {'picture':9} {head}   ms")
    for name in times:
        if name == "engine":
            continue
        for kind in KINDS:
            direct, served = times["engine"].clock[kind], times[name].clock[kind]
            entry = {
                "engine_ms": median(direct),
                "served_ms": median(served),
                "added_ms": median([b - a for a, b in zip(direct, served, strict=True)]),
                "client_ms": median(times[name].client[kind]),
                "processor_ms": median(times[name].processor[kind]),
            }
            found[f"{name}_{kind}"] = entry
            row = f"{name:10} {kind:9} {entry['engine_ms']:8.2f} {entry['served_ms']:8.2f}"
            row += f" {entry['added_ms']:7.2f} {entry['client_ms']:7.2f}"
            print(f"{row} {entry['processor_ms']:10.2f}")
    print(json.dumps(found))


def median(seconds: list[float]) -> float:
    """The middle, in milliseconds."""
    return round(1e3 * statistics.median(seconds), 2)


if __name__ == "__main__":
    main()
