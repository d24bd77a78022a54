"""VisionGate as a Ray Serve application: replicas on several nodes, which end under load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.deploy.ray_nodes import Nodes, run_nodes
from tests.gateway.redis_server import free_port, run_redis
from tests.gateway.serving import ROOT, base64_of, command, environment_of_tests, example, wait_for

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOTAL = {"prompt": "What is the total?", "image": base64_of(example())}
STATUS = """
import dataclasses, json, sys, ray
from ray import serve
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(dataclasses.asdict(serve.status())))
"""
SERVE = Path(sys.executable).parent / "serve"


@dataclass
class Application:
    """The application of deploy/ray/serve.yaml on a cluster of this machine."""

    url: str
    folder: Path
    nodes: Nodes
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def deploy(self, **arguments: Any) -> None:
        """Deploys the shipped file, with one proxy on this machine's port; returns when it runs."""
        document = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
        document["proxy_location"] = "HeadOnly"  # all nodes share this machine's ports
        document["http_options"] = {"host": "127.0.0.1", "port": self.port}
        settings = {"preset": "mini", "drain_seconds": 20} | arguments.pop("settings", {})
        document["applications"][0]["args"] |= {"cpus": 1, "settings": settings} | arguments
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(document))
        address = ["--address", self.nodes.address]
        done = subprocess.run(
            [SERVE, "run", "--non-blocking", *address, "serve.yaml"],
            cwd=self.folder,
            env=environment_of_tests(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: self.status() in {"RUNNING", "DEPLOY_FAILED"}, seconds=120)
        assert self.status() == "RUNNING", self.status_text()
        wait_for(lambda: self.get("/health").status_code == 200)

    def status(self) -> str:
        """What Ray says of the application."""
        found = yaml.safe_load(self.status_text())
        return str(found["applications"]["visiongate"]["status"])

    def status_text(self) -> str:
        """What the controller knows, as `serve status` shows it."""
        done = subprocess.run(
            [sys.executable, "-c", STATUS, self.nodes.address],
            env=environment_of_tests(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=60)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=60)

    def workers(self, number: int) -> set[int]:
        """The engines' process ids, once `number` replicas have been seen."""
        found: set[int] = set()

        def look() -> bool:
            found.add(self.get("/health/details").json()["workers"][0]["pid"])
            return len(found) >= number

        wait_for(look, seconds=60)
        return found


@contextlib.contextmanager
def application(folder: Path, number: int, cpus: int, **arguments: Any) -> Iterator[Application]:
    port = free_port()
    made = command(folder, "keys", "create", "--scopes", "chat,batch,admin")
    key = next(line.split()[1] for line in made.splitlines() if line.startswith("key:"))
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(run_redis(folder))
        variables = {
            "VISIONGATE_REDIS_URL": redis,
            "VISIONGATE_DATA_DIR": str(folder / "data"),
            "VISIONGATE_LOG_DIR": str(folder / "logs"),
        }
        nodes = stack.enter_context(run_nodes(number, cpus=cpus, **variables))
        found = Application(f"http://127.0.0.1:{port}", folder, nodes, port)
        found.headers["Authorization"] = f"Bearer {key}"
        found.deploy(**arguments)
        yield found


class Load:
    """Callers that ask again and again, each in a conversation of its own."""

    def __init__(self, app: Application, number: int) -> None:
        self.app = app
        self.codes: Counter[int] = Counter()
        self.faults: list[str] = []
        self.follow_ups = 0
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)

    def _ask(self) -> None:
        session = ""
        while not self._is_over.is_set():
            body = TOTAL if not session else {"prompt": "What is the date?", "session_id": session}
            answer = self.app.post("/api/chat", body)
            self.codes[answer.status_code] += 1
            if answer.status_code != 200:
                self.faults.append(answer.text)
                continue
            found = answer.json()
            expected = "2026-03-14" if session else "$20.47"
            if found["response"] != expected:
                self.faults.append(found["response"])
            self.follow_ups += bool(session)
            session = "" if session else found["session_id"]


def test_a_node_that_dies_under_load_costs_at_most_its_running_answers(tmp_path: Path) -> None:
    """Three replicas on two nodes: conversations go on, and nobody waits for the dead."""
    with application(tmp_path, 2, 2, min_replicas=3, max_replicas=3) as app:
        app.workers(3)
        session = app.post("/api/chat", TOTAL).json()["session_id"]
        with Load(app, 4) as load:
            wait_for(lambda: load.codes[200] >= 12, seconds=60)
            app.nodes.kill_one()
            before = load.codes[200]
            wait_for(lambda: load.codes[200] >= before + 12, seconds=90)
        num_lost = sum(load.codes.values()) - load.codes[200]
        assert num_lost <= 4  # one running answer of each caller
        assert all(code in {200, 500, 503} for code in load.codes)
        assert load.follow_ups > 0
        body = {"prompt": "What is the date?", "session_id": session}
        assert app.post("/api/chat", body).json()["response"] == "2026-03-14"


def test_a_replica_that_dies_is_replaced_and_its_conversation_goes_on(tmp_path: Path) -> None:
    """Each replica's engine is killed, then a whole replica; limits hold over all of them."""
    with application(tmp_path, 1, 2, min_replicas=2, max_replicas=2) as app:
        engines = app.workers(2)
        session = app.post("/api/chat", TOTAL).json()["session_id"]
        engine = engines.pop()
        replica = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(replica, signal.SIGKILL)
        body = {"prompt": "What is the date?", "session_id": session}
        for _ in range(4):
            assert app.post("/api/chat", body).json()["response"] == "2026-03-14"
        assert app.workers(2) - {engine} > engines  # the other one, and a new one
        assert not Path(f"/proc/{engine}").exists()  # the engine ended with its replica

        assert app.post("/v1/files", {}).status_code == 501
        made = command(tmp_path, "keys", "create", "--rate", "4")
        key = next(line.split()[1] for line in made.splitlines() if line.startswith("key:"))
        rated = {"Authorization": f"Bearer {key}"}
        codes = [
            requests.get(f"{app.url}/v1/models", headers=rated, timeout=20).status_code
            for _ in range(12)
        ]
        assert Counter(codes) == {200: 4, 429: 8}
        assert requests.get(f"{app.url}/v1/models", timeout=20).status_code == 401


def test_an_update_rolls_and_load_makes_replicas(tmp_path: Path) -> None:
    """A deployed change loses no request; waiting requests start a second replica."""
    limits = {"upscale_seconds": 1, "downscale_seconds": 2}
    with application(tmp_path, 1, 3, min_replicas=1, max_replicas=1) as app:
        (old,) = app.workers(1)
        assert app.get("/api/status").json()["limits"]["max_tokens"] == 2048
        with Load(app, 2) as load:
            wait_for(lambda: load.codes[200] >= 2, seconds=60)
            app.deploy(min_replicas=1, max_replicas=1, settings={"max_tokens": 1024})
            before = load.codes[200]
            wait_for(lambda: load.codes[200] >= before + 4, seconds=60)
        assert set(load.codes) == {200}, load.faults
        assert load.faults == []
        assert app.get("/api/status").json()["limits"]["max_tokens"] == 1024
        assert not Path(f"/proc/{old}").exists()

        app.deploy(min_replicas=1, max_replicas=2, requests_per_replica=2, **limits)
        app.workers(1)
        with Load(app, 8) as load:
            assert len(app.workers(2)) == 2
        assert set(load.codes) == {200}, load.faults
        end = time.monotonic() + 60
        while len({app.workers(1).pop() for _ in range(6)}) > 1:  # and it ends again
            assert time.monotonic() < end


def test_an_open_door_or_replicas_without_redis_are_refused(tmp_path: Path) -> None:
    code = """
from visiongate.gateway.ray_app import build
build({"max_replicas": 2})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment_of_tests(), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "VISIONGATE_REDIS_URL" in done.stderr
    with run_nodes(1) as nodes:
        environment = environment_of_tests() | {"RAY_USAGE_STATS_ENABLED": "0"}
        name = "visiongate.gateway.ray_app:build"
        done = subprocess.run(
            [SERVE, "run", "--non-blocking", "--address", nodes.address, name],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert "VISIONGATE_API_KEYS" in done.stdout + done.stderr
