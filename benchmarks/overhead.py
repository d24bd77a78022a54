"""What HTTP adds: the same questions to the engine directly and through a server, in turns.

    python -m benchmarks.overhead [requests]

The embedded model, one client, a new small picture in every pair, at most 16 new tokens; both sides
decode the picture. Prints the medians and their difference in milliseconds. Set OMP_WAIT_POLICY to
PASSIVE, as the server does for its worker, or torch's threads spin on the engine's side.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import visiongate
from benchmarks import workloads
from visiongate.engine import image
from visiongate.engine.engine import Engine
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import EngineSettings, Request, SamplingParams

WEIGHTS = Path(visiongate.__file__).parent / "mini" / "weights"
QUESTION = "What is the total?"
NUM_TOKENS = 16


def main() -> None:
    """Measures and prints one line of JSON."""
    num_pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    port = free_port()
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("visiongate")), "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    try:
        wait_until_ready(port)
        engine = Engine.from_pretrained(WEIGHTS, EngineSettings(num_threads=2))
        builder = PromptBuilder.from_pretrained(WEIGHTS)
        direct, served = [], []
        for number in range(num_pairs + 3):
            png = workloads.png(number, 256, 192)
            begin = time.perf_counter()
            ask_engine(engine, builder, png, number)
            middle = time.perf_counter()
            ask_server(port, png)
            if number >= 3:  # the first ones warm both up
                direct.append(1000 * (middle - begin))
                served.append(1000 * (time.perf_counter() - middle))
    finally:
        server.terminate()
        server.wait()
    differences = [b - a for a, b in zip(direct, served, strict=True)]
    names = ("engine_ms", "served_ms", "added_ms")
    figures = (direct, served, differences)
    medians = {n: round(statistics.median(f), 2) for n, f in zip(names, figures, strict=True)}
    print(json.dumps({**medians, "pairs": num_pairs}))


def ask_engine(engine: Engine, builder: PromptBuilder, png: bytes, number: int) -> None:
    """One answer from the engine in this process."""
    prompt = builder.build([Message("user", (image.decode(png), QUESTION))])
    params = SamplingParams(max_tokens=NUM_TOKENS)
    engine.add(Request(str(number), prompt, params))
    while engine.has_work:
        engine.step()


def ask_server(port: int, png: bytes) -> None:
    """The same answer over HTTP."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert response.status == 200, text


def wait_until_ready(port: int) -> None:
    """Returns once /health says 200."""
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise TimeoutError("the server did not become ready")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
