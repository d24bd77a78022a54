"""The Pro edition over HTTP on random weights of the 4B shape: first tokens, throughput, two cards.

    python -m benchmarks.gpu_http [--out FILE] [--folder FOLDER] [section ...]

Sections: first, crowd, pair. Starts `visiongate serve --preset pro` as a process of its own and
asks it like a client: base64 JPEG of 1024 x 1024, some 30 tokens of text. `pair` needs two GPUs:
the same crowd on one and on both, then a worker is killed while streams run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiongate.cli.checks.speed import jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator

Results = dict[str, Any]
QUESTION = (
    "What is to be seen in this picture? Answer in one sentence and name the colours, please."
)


def picture(seed: int) -> str:
    """A JPEG with some grain, as a data URL: 180 KB, as photographs are."""
    data = jpeg(seed, 1024, 1024, grain=6)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def pictures(first: int, count: int) -> list[str]:
    """Different pictures, made by all cores."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        return list(workers.map(picture, range(first, first + count)))


class Server:
    """A running `visiongate serve`."""

    def __init__(self, folder: Path, visible: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.home = Path(tempfile.mkdtemp())
        command = [
            sys.executable, "-c", "from visiongate.cli import main; main()", "serve",
            "--preset", "pro", "--model", str(folder), "--port", str(self.port),
            "--set", "max_concurrency=128", "--set", f"data_dir={self.home / 'data'}",
            "--set", f"log_dir={self.home / 'logs'}", "--set", "cpu_fallback=false",
        ]  # fmt: skip
        self.ready_seconds, self.model = 0.0, ""
        self.log = (self.home / "out.txt").open("w")
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": visible},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def wait(self, num_workers: int, seconds: float = 120) -> float:
        """Seconds until so many workers are ready."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            try:
                workers = self.get("/api/status")["workers"]
                is_ready = self.get("/health")["status"] == "healthy"
                if is_ready and sum(w["state"] == "ready" for w in workers) >= num_workers:
                    self.model = self.get("/v1/models")["data"][0]["id"]
                    return time.perf_counter() - begun
            except (OSError, KeyError, ValueError):
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError((self.home / "out.txt").read_text()[-3000:])

    def get(self, path: str) -> Any:
        """The object at a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def ask(self, url: str, num_new: int, *, stream: bool) -> tuple[float, int, str]:
        """Seconds to the first content, or to the answer; tokens or events; the error, if any."""
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": QUESTION},
        ]
        body = json.dumps(
            {
                "model": self.model, "messages": [{"role": "user", "content": content}],
                "max_tokens": num_new, "temperature": 0, "stream": stream,
            }
        )  # fmt: skip
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        if answer.status != 200 or not stream:
            found = json.loads(answer.read())
            connection.close()
            seconds = time.perf_counter() - begun
            if answer.status != 200:
                return seconds, 0, str(found)[:200]
            return seconds, int(found["usage"]["completion_tokens"]), ""
        first, events, error = 0.0, 0, ""
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                error = str(event["error"])[:200]
            elif event["choices"] and event["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - begun
                events += 1
        connection.close()
        return first, events, error

    def stop(self) -> None:
        """Ends the server."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextmanager
def serving(folder: Path, visible: str, num_workers: int) -> Iterator[Server]:
    """A server on these cards, warm."""
    server = Server(folder, visible)
    try:
        server.ready_seconds = server.wait(num_workers)
        for seed in range(3 * num_workers):
            *_, error = server.ask(picture(10_000 + seed), 8, stream=False)
            if error:
                raise RuntimeError(error)
        yield server
    finally:
        server.stop()


def first(results: Results, server: Server) -> None:
    """New pictures one after another: seconds from the request to the first event with text."""
    times = [server.ask(picture(seed), 4, stream=True)[0] * 1e3 for seed in range(12)]
    again = [server.ask(picture(11), 4, stream=True)[0] * 1e3 for _ in range(6)]
    results["http_first_token_ms"] = {
        "median": statistics.median(times), "least": min(times), "most": max(times),
        "same_picture_median": statistics.median(again),
    }  # fmt: skip


def crowd(server: Server, size: int, num_new: int = 128) -> dict[str, Any]:
    """So many requests at once, each a new picture."""
    urls = pictures(1_000 * size, size)
    found: list[tuple[float, int, str]] = []
    asks = [
        threading.Thread(
            target=lambda url=url: found.append(server.ask(url, num_new, stream=False))
        )
        for url in urls
    ]
    begun = time.perf_counter()
    for ask in asks:
        ask.start()
    for ask in asks:
        ask.join()
    seconds = time.perf_counter() - begun
    return {
        "requests": size, "seconds": seconds, "images_s": size / seconds,
        "tokens_s": sum(tokens for _, tokens, _ in found) / seconds,
        "errors": sum(bool(error) for *_, error in found),
        "error": next((error for *_, error in found if error), ""),
    }  # fmt: skip


def kill_one(results: Results, server: Server) -> None:
    """Streams on both cards; one worker dies. Its streams end with an error, the others go on."""
    urls = pictures(20_000, 16)
    found: list[tuple[float, int, str]] = []
    asks = [
        threading.Thread(target=lambda url=url: found.append(server.ask(url, 400, stream=True)))
        for url in urls
    ]
    for ask in asks:
        ask.start()
    time.sleep(1.2)
    running = {w["index"]: w["running"] for w in server.get("/api/status")["workers"]}
    victim = server.get("/api/status")["workers"][0]
    os.kill(victim["pid"], signal.SIGKILL)
    begun = time.perf_counter()
    time.sleep(0.5)
    during = server.ask(picture(30_000), 8, stream=False)
    for ask in asks:
        ask.join()
    server.wait(2)
    results["kill"] = {
        "running": str(running),
        "ended_with_error": sum(bool(error) for *_, error in found),
        "ended_whole": sum(not error for *_, error in found),
        "asked_meanwhile_s": during[0],
        "asked_meanwhile_error": during[2],
        "back_after_s": time.perf_counter() - begun,
        "errors": sorted({error for *_, error in found if error}),
    }
    results["crowd_after_kill"] = crowd(server, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "qwen3vl-4b")
    parser.add_argument("sections", nargs="*", default=["first", "crowd"])
    options = parser.parse_args()
    import torch

    results: Results = {
        "device": torch.cuda.get_device_name(),
        "cards": torch.cuda.device_count(),
        "torch": torch.__version__,
    }
    if not (options.folder / "model.safetensors").exists():
        from benchmarks.gpu_shape import write_checkpoint

        begun = time.perf_counter()
        write_checkpoint(options.folder)
        print(f"checkpoint: {time.perf_counter() - begun:.0f} s", flush=True)
        torch.cuda.empty_cache()

    def single(server: Server) -> None:
        results["ready_s"] = server.ready_seconds
        if "first" in options.sections:
            first(results, server)
        if "crowd" in options.sections or "pair" in options.sections:
            results["crowd_one"] = crowd(server, 64)
            results["crowd_one_128"] = crowd(server, 128)

    def both(server: Server) -> None:
        results["ready_pair_s"] = server.ready_seconds
        results["crowd_two_128"] = crowd(server, 128)
        results["crowd_two_256"] = crowd(server, 256)
        kill_one(results, server)

    runs: list[tuple[str, int, Callable[[Server], None]]] = [("0", 1, single)]
    if "pair" in options.sections:
        runs.append(("0,1", 2, both))
    for visible, num_workers, work in runs:
        with serving(options.folder, visible, num_workers) as server:
            work(server)
        text = json.dumps(results, indent=1)
        print(text, flush=True)
        if options.out:
            options.out.write_text(text)


if __name__ == "__main__":
    main()
