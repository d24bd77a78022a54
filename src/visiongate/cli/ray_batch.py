"""`visiongate batch --ray`: a Ray Data job that asks on every machine of a Ray cluster.

    items -> blocks -> Asker (one loaded model for each replica) -> results -> the journal

Only this process writes results, each name once. A replica or machine that ends takes its blocks
with it; what is missing at the end of a round is asked in the next one, in smaller blocks, by the
replicas that are left. So nothing waits for a machine that does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from visiongate.cli.items import Item, answer_of, model_of
from visiongate.errors import InvalidSettings, ModelNotLoaded, Unavailable, VisionGateError

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

ITEMS_PER_PLACE: Final = 4
"""A block holds this many items for each request at once: its end leaves few places idle."""

KNOCK_SECONDS: Final = 5.0
CALLS: Final = 2
"""Blocks that a replica works on together, so that the end of one overlaps the next."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """How the model is spread over a cluster.

    Attributes:
        number: the most replicas; 0 for as many as there is room for.
        cpus: of each replica; 0 for those of the smallest machine.
        gpus: of each replica; None for one where the model runs on GPUs.
    """

    number: int = 0
    cpus: float = 0
    gpus: float | None = None


class Asker:
    """One replica: a loaded model in an actor of Ray Data."""

    def __init__(self, settings: Settings, parallel: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(parallel)
        self._stack = AsyncExitStack()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._failure = ""
        try:
            self._ask = self._run(self._stack.enter_async_context(model_of(settings)))
        except VisionGateError as error:  # Ray would show the driver a trace instead of the text
            self._failure = error.message

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """The results of a block of items, both as JSON; or why there is no model."""
        if self._failure:
            return {"result": [json.dumps({"failure": self._failure})]}
        items = [Item(**json.loads(text)) for text in block["item"]]
        return {"result": self._run(self._answer_all(items))}

    async def _answer_all(self, items: Sequence[Item]) -> list[str]:
        async def one(item: Item) -> str:
            async with self._places:
                return json.dumps(await answer_of(self._ask, item), ensure_ascii=False)

        return list(await asyncio.gather(*(one(item) for item in items)))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def ask_cluster(
    address: str, settings: Settings, items: Sequence[Item], parallel: int, replicas: Replicas
) -> Iterator[dict[str, Any]]:
    """The result of every item, once, as it comes.

    Raises Unavailable when the cluster cannot be reached, or when a whole round in blocks of one
    item answered nothing.
    """
    ray = _connect(address)
    try:
        waiting = {item.name: item for item in items}
        size = parallel * ITEMS_PER_PLACE
        while waiting:
            before = len(waiting)
            cpus, gpus, number = _room(ray, replicas, settings)
            for result in _round(
                ray, _fitted(settings, cpus, gpus), list(waiting.values()), parallel, size,
                {"num_cpus": cpus, "num_gpus": gpus}, number,
            ):  # fmt: skip
                if waiting.pop(result["name"], None) is not None:
                    yield result
            if size == 1 and len(waiting) == before:
                raise Unavailable(
                    f"{before} pictures are left, and every replica that was asked about them "
                    "ended; run the same command again to go on"
                )
            size = max(1, size // 4)
    finally:
        ray.shutdown()


def _round(
    ray: Any,
    settings: Settings,
    items: Sequence[Item],
    parallel: int,
    size: int,
    needs: dict[str, float],
    number: int,
) -> Iterator[dict[str, Any]]:
    """Results of the items whose replica lived; each at most once for each name asked."""
    from ray.data import ActorPoolStrategy, DataContext, from_items

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends is said by our own words
    num_blocks = -(-len(items) // size)
    number = min(number, num_blocks)
    rows = [{"item": json.dumps(asdict(item))} for item in items]
    # Ray 2.60 has no other way to say max_restarts, and means to drop this one in 2.64.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    answers = from_items(rows, override_num_blocks=num_blocks).map_batches(
        Asker,
        fn_constructor_args=(settings, parallel),
        batch_size=None,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=number,
            initial_size=number,
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        ),
        max_restarts=0,  # an actor that waits for a machine's return would hold its blocks
        **needs,
    )
    # A RayError means that machines ended; the next round asks what is missing.
    with contextlib.suppress(ray.exceptions.RayError):
        for row in answers.iter_rows():
            result = json.loads(row["result"])
            if "failure" in result:
                raise ModelNotLoaded(result["failure"])
            yield result


def _connect(address: str) -> Any:
    """The `ray` module, connected; `local` starts a cluster of this machine alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
    try:
        import ray
        import ray.data
    except ImportError:
        raise InvalidSettings("--ray needs Ray: pip install 'visiongate[ray]'") from None
    extra = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **extra)
    except (OSError, ValueError, RuntimeError):
        raise Unavailable(
            f"no Ray cluster answers at {address}; start one with `ray start --head`, or use "
            "--ray local"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _room(ray: Any, replicas: Replicas, settings: Settings) -> tuple[float, float, int]:
    """CPUs and GPUs of a replica, and how many replicas there is room for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpus = any(node.get("GPU", 0) for node in nodes)
    gpus = replicas.gpus
    if gpus is None:
        gpus = 1.0 if has_gpus and settings.device != "cpu" else 0.0
    able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    cpus = replicas.cpus or (1.0 if gpus else min((node["CPU"] for node in able), default=1.0))
    number = sum(_fits(node, cpus, gpus) for node in able)
    if number == 0:
        raise Unavailable(
            f"no machine of the cluster has the {cpus:g} CPUs and {gpus:g} GPUs of one replica"
        )
    return cpus, gpus, min(number, replicas.number or number)


def _fits(node: dict[str, float], cpus: float, gpus: float) -> int:
    by_gpu = node.get("GPU", 0) // gpus if gpus else float("inf")
    return int(min(node.get("CPU", 0) // cpus, by_gpu))


def _fitted(settings: Settings, cpus: float, gpus: float) -> Settings:
    """The settings of one replica: its share of the machine and no more."""
    update: dict[str, Any] = {"threads": settings.threads or max(1, int(cpus))}
    if not gpus:
        update["device"] = "cpu"
    return settings.model_copy(update=update)
