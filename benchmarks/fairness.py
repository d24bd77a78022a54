"""A modest key beside a greedy one: `python -m benchmarks.fairness` starts a server and measures.

The modest key asks from two clients, first alone and then beside eighteen clients of the greedy key
that never pause. Its p95 beside, over its p95 alone, is what fairness is about; the throughput of
all together is what fairness may cost. `known`: every picture was seen before, so an answer is a
few short steps; `new`: the greedy key's pictures are new each time and pass through the tower.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.gateway.serving import Server, command, serve
from tests.pictures import draw_receipt

NUM_PICTURES = 20
NUM_GREEDY = 18
NUM_MODEST = 2
NUM_ASKS = 100
"""Of the modest key in each part: its p95 is the fifth worst."""


class Client:
    """One connection with one key; bodies are made beforehand so that clients cost little."""

    def __init__(self, server: Server, key: str) -> None:
        address = server.url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(self, body: bytes) -> float:
        """Seconds until the whole answer is there."""
        start = time.perf_counter()
        self._connection.request("POST", "/api/chat", body, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer[:200]!r}")
        return time.perf_counter() - start


def bodies(first_seed: int, count: int) -> list[bytes]:
    """Questions about different receipts."""
    return [
        json.dumps(
            {
                "image": base64.b64encode(draw_receipt(seed, 256, 384).png).decode(),
                "prompt": "What is the total?",
                "max_tokens": 12,
                "temperature": 0,
            }
        ).encode()
        for seed in range(first_seed, first_seed + count)
    ]


def modest_times(server: Server, key: str, asks: list[bytes]) -> list[float]:
    """Two clients ask in turns until all is asked."""

    def run(mine: list[bytes]) -> list[float]:
        client = Client(server, key)
        return [client.ask(body) for body in mine]

    with ThreadPoolExecutor(NUM_MODEST) as threads:
        parts = threads.map(run, [asks[i::NUM_MODEST] for i in range(NUM_MODEST)])
        return [seconds for part in parts for seconds in part]


class Flood:
    """The greedy key's clients, without a pause, until the end of the block."""

    def __init__(self, server: Server, key: str, next_body: Callable[[], bytes]) -> None:
        self.times: list[float] = []
        self._ends = threading.Event()

        def run() -> None:
            client = Client(server, key)
            while not self._ends.is_set():
                self.times.append(client.ask(next_body()))

        self._threads = [threading.Thread(target=run) for _ in range(NUM_GREEDY)]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        time.sleep(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()


def p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def measure(server: Server, modest: str, greedy: str, kind: str, run: int) -> dict[str, float]:
    """One run: the greedy key alone, the modest key alone, both together."""
    known = bodies(0, NUM_PICTURES)
    asks = [known[i % NUM_PICTURES] for i in range(NUM_ASKS)]
    seed = 100_000 * (run + 1)
    fresh = iter(bodies(seed, 400 if kind == "new" else 0))
    lock = threading.Lock()
    places = iter(range(10**9))

    def next_body() -> bytes:
        with lock:
            return next(fresh) if kind == "new" else known[next(places) % NUM_PICTURES]

    for key in (modest, greedy):  # each key has a cache of its own
        modest_times(server, key, known)
    alone = modest_times(server, modest, asks)
    with Flood(server, greedy, next_body) as flood:
        started, before = time.perf_counter(), len(flood.times)
        beside = modest_times(server, modest, asks)
        seconds, count = time.perf_counter() - started, len(flood.times) - before
    with Flood(server, greedy, next_body) as only:
        begun, first = time.perf_counter(), len(only.times)
        time.sleep(4.0)
        rate = (len(only.times) - first) / (time.perf_counter() - begun)
    return {
        "modest_p95_alone_seconds": p95(alone),
        "modest_p95_beside_seconds": p95(beside),
        "ratio": p95(beside) / p95(alone),
        "modest_median_alone_seconds": statistics.median(alone),
        "modest_median_beside_seconds": statistics.median(beside),
        "greedy_p95_seconds": p95(flood.times),
        "answers_per_second_together": (count + len(beside)) / seconds,
        "answers_per_second_greedy_only": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", default="known,new")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = []
        for who in ("modest", "greedy"):
            text = command(folder, "keys", "create", "--name", who, "--scopes", "chat")
            keys.append(next(x.split()[1] for x in text.splitlines() if x.startswith("key:")))
        with serve(folder) as server:
            for kind in arguments.kinds.split(","):
                found = [
                    measure(server, keys[0], keys[1], kind, run) for run in range(arguments.runs)
                ]
                medians = {
                    name: round(statistics.median(run[name] for run in found), 4)
                    for name in found[0]
                }
                spread = [round(run["ratio"], 2) for run in found]
                for label, value in medians.items():
                    print(f"{kind:6} {label:32} {value:8.3f}")
                print(f"{kind:6} ratios {spread}")
                line = {"kind": kind, "cores": os.cpu_count(), "runs": len(found), **medians}
                print(json.dumps(line))


if __name__ == "__main__":
    main()
