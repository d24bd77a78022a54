"""Runs a Ray cluster of several nodes on this machine, for tests that end one of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.gateway.serving import environment_of_tests

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
number, cpus = int(sys.argv[1]), int(sys.argv[2])
cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=cpus) for _ in range(number)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A head that computes nothing, and nodes, each in processes of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def kill_one(self) -> None:
        """Ends a node as a power cut does."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._answer() == "killed"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def run_nodes(number: int, *, cpus: int = 1, **variables: str) -> Iterator[Nodes]:
    """A cluster with `number` nodes of `cpus` CPUs beside its head; all see `variables`."""
    environment = environment_of_tests() | {"RAY_USAGE_STATS_ENABLED": "0"} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(number), str(cpus)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield Nodes(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
