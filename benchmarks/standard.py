"""The standard work: starts the engines, alternates their runs, sums up.

Engines of one precision stay loaded together and take turns, so that what else happens on the
machine meets all of them; `--apart` loads one at a time where memory is short.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks import limits, workloads
from benchmarks.runners import Options, Times
from visiongate import kernels
from visiongate.engine.limits import Limits, best, measure
from visiongate.engine.types import Precision

WARM_UP_RUN = 99


@dataclass(slots=True)
class Result:
    """What one engine did: for every work, one entry a run.

    Attributes:
        first_peak_bytes: memory after the first counted run.
        peak_bytes: after the last, when caches hold more prefixes and features.
        limits: what the machine gave right after each run, of which decoding is the end.
    """

    engine: str
    precision: Precision
    ready_seconds: float = 0.0
    first_peak_bytes: int = 0
    peak_bytes: int = 0
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    limits: dict[str, list[Limits | None]] = field(default_factory=dict)


class Child:
    """An engine in a process of its own."""

    def __init__(self, options: Options, python: str = sys.executable) -> None:
        self.result = Result(options.engine, options.precision)
        env = {**os.environ, "OMP_NUM_THREADS": str(options.num_threads)}
        if options.engine == "visiongate":
            env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as its worker process is started
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.runners"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            text=True,
            env=env,
        )
        first = self._ask(json.dumps(dataclasses.asdict(options)))
        self.skipped: str = first.get("skipped", "")
        self.works: list[str] = first.get("works", [])
        self.result.ready_seconds = first.get("ready_seconds", 0.0)

    def run(self, name: str, run: int) -> None:
        """Does one run of a work and keeps its figures, unless it is the warm-up."""
        answer = self._ask(f"{name} {run}")
        if run == WARM_UP_RUN:
            return
        self.result.runs.setdefault(name, []).append(figures(name, answer["times"]))
        self.result.limits.setdefault(name, []).append(measure(repeats=3))
        self.result.peak_bytes = answer["peak_bytes"]
        self.result.first_peak_bytes = self.result.first_peak_bytes or answer["peak_bytes"]

    def stop(self) -> None:
        """Lets the process end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("BENCH "):
                reply: dict[str, Any] = json.loads(answer[6:])
                return reply
        return {
            "skipped": f"it ended with status {self.process.wait()} (BENCH_VERBOSE=1 says more)"
        }


def figures(name: str, times: Times) -> dict[str, float]:
    """The figures of one run; seconds, and tokens a second."""
    first = times[0]
    found = {
        "first_token_seconds": first[1] - first[0],
        "decode_tokens_per_second": (len(first) - 2) / (first[-1] - first[1]),
    }
    if name == "W3":
        found["total_seconds"] = max(t[-1] for t in times) - min(t[0] for t in times)
        found["last_first_token_seconds"] = max(t[1] - t[0] for t in times)
    if name == "W4":
        found["second_question_seconds"] = times[1][1] - times[1][0]
        found["other_question_seconds"] = times[2][1] - times[2][0]
    if name == "W5":
        found["longest_gap_seconds"] = max(b - a for a, b in pairwise(first[1:]))
        found["late_first_token_seconds"] = times[1][1] - times[1][0]
    return found


def run(arguments: argparse.Namespace, checkpoint: str) -> None:
    """Runs everything that was asked for and prints the table and the JSON line."""
    before = measure()
    results: list[Result] = []
    for precision in arguments.precision:
        locations = {
            "openvino": arguments.openvino,
            "llama-server": arguments.llama_server,
            "llama-text": arguments.llama_text,
        }
        options = [
            Options(
                *(engine, precision, checkpoint, arguments.threads),
                location=locations.get(engine, ""),
            )
            for engine in arguments.engines
        ]
        groups = [[one] for one in options] if arguments.apart else [options]
        for group in groups:
            results += run_group(group, arguments.works, arguments.runs, arguments.python)
    beside = [one for result in results for many in result.limits.values() for one in many]
    found = functools.reduce(best, beside, best(before, measure()))
    report(results, None if arguments.checkpoint else found)  # limits are those of the 2B shape


def run_group(
    group: list[Options], works: list[str], num_runs: int, pythons: dict[str, str]
) -> list[Result]:
    """Loads the engines, warms them up with W2, and lets them take turns."""
    children = []
    for options in group:
        child = Child(options, pythons.get(options.engine, sys.executable))
        if child.skipped:
            print(f"skipped {options.engine} {options.precision}: {child.skipped}", flush=True)
            continue
        child.run("W2" if "W2" in child.works else child.works[0], WARM_UP_RUN)
        children.append(child)
    for run_number in range(num_runs):
        for name in works:
            for child in children:
                if name in child.works:
                    child.run(name, run_number)
                    last = child.result.runs[name][-1]
                    told = ", ".join(f"{key} {value:.3g}" for key, value in last.items())
                    print(f"  {child.result.engine} {child.result.precision} {name}: {told}")
    for child in children:
        child.stop()
    return [child.result for child in children]


def report(results: list[Result], found: Limits | None) -> None:
    """The table for people, then one line of JSON."""
    print(
        f"\n{'engine':14} {'precision':9} {'work':4} {'figure':26} {'median':>8} {'spread':>15}"
        "  of the limit: the undisturbed machine's, and as measured beside"
    )
    for result in results:
        for name, runs in result.runs.items():
            for key in runs[0]:
                values = [one[key] for one in runs]
                middle, low, high = statistics.median(values), min(values), max(values)
                share = share_of_limit(result.precision, name, key, middle, found)
                beside = [
                    share_of_limit(result.precision, name, key, value, limit)
                    for value, limit in zip(values, result.limits[name], strict=True)
                ]
                print(
                    f"{result.engine:14} {result.precision:9} {name:4} {key:26} {middle:8.3f} "
                    f"{low:7.3f}-{high:<7.3f}{_shares(share, beside)}"
                )
        print(
            f"{result.engine:14} {result.precision:9} ready {result.ready_seconds:.1f} s, "
            f"peak {result.first_peak_bytes / 1e9:.2f} GB after the first run, "
            f"{result.peak_bytes / 1e9:.2f} after the last"
        )
    line = {
        "machine": limits.machine(),
        "commit": commit(),
        "limits": None if found is None else dataclasses.asdict(found),
        "results": [dataclasses.asdict(result) for result in results],
    }
    print(json.dumps(line))


def share_of_limit(
    precision: Precision, name: str, key: str, value: float, found: Limits | None
) -> float | None:
    """How near a figure of W1 or W2 is to the machine's limit, where there is one."""
    if found is None or name not in ("W1", "W2"):
        return None
    width, height = next(
        turn.picture[1:] for turn in workloads.build(name, 0).asks[0].turns if turn.picture
    )
    num_patches, num_tokens = width * height // 256, width * height // 1024 + 24
    if key == "first_token_seconds":
        return limits.first_token_seconds(found, precision, num_patches, num_tokens) / value
    if key == "decode_tokens_per_second":
        return value / limits.decode_tokens_per_second(found, precision, num_tokens)
    return None


def _shares(undisturbed: float | None, beside: list[float | None]) -> str:
    known = [share for share in beside if share is not None]
    if undisturbed is None or not known:
        return ""
    return f"  {undisturbed:.2f}, {statistics.median(known):.2f}"


def commit() -> str:
    """The commit that was measured."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607  # whichever git the user has
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def default_threads() -> int:
    """What the machine gives."""
    return kernels.default_num_threads()
