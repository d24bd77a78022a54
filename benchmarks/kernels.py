"""The kernels alone, at the true shapes, beside torch and the machine's limits.

Ours and torch's alternate within one process; the figures are the best and the median of the runs.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch.nn import functional

from benchmarks import limits
from visiongate import kernels
from visiongate.engine.limits import CPU_PRECISIONS as PRECISIONS
from visiongate.engine.limits import Limits, measure
from visiongate.kernels import PackedLinear, Precision

SHAPES = {"qkv": (4096, 2048), "o": (2048, 2048), "gate_up": (12288, 2048), "down": (2048, 6144)}
HEAD = (151936, 2048)
NUM_LAYERS = 28
LAYERS_IN_MEMORY = 4  # of the simulated step: more than the caches hold
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; rates are in billions a second."""

    name: str
    precision: str
    unit: str
    best: float
    median: float
    torch_best: float | None
    share: float | None


def run(num_runs: int) -> None:
    """Measures everything and prints the table and one line of JSON."""
    found = measure()
    torch.manual_seed(0)
    figures: list[Figure] = []
    for precision in PRECISIONS:
        figures += decode_step(precision, num_runs, found)
        figures += large_products(precision, num_runs, found)
        if precision != "int8":
            figures += attention(precision, num_runs, found)
    print(f"\n{'what':34} {'precision':9} {'unit':8} {'best':>8} {'median':>8} {'torch':>8} share")
    for one in figures:
        other = "" if one.torch_best is None else f"{one.torch_best:8.1f}"
        share = "" if one.share is None else f"{one.share:.2f}"
        print(
            f"{one.name:34} {one.precision:9} {one.unit:8} {one.best:8.1f} {one.median:8.1f} "
            f"{other:>8} {share}"
        )
    line = {"machine": limits.machine(), "limits": None if found is None else asdict(found)}
    print(json.dumps({**line, "kernels": [asdict(one) for one in figures]}))


def decode_step(precision: Precision, num_runs: int, found: Limits | None) -> list[Figure]:
    """The linear layers of a decode step, for one row and for several streams together."""
    layers = [
        {name: random_linear(shape, precision) for name, shape in SHAPES.items()}
        for _ in range(LAYERS_IN_MEMORY)
    ]
    head = random_linear(HEAD, precision)
    num_bytes = head.num_bytes + NUM_LAYERS * sum(p.num_bytes for p in layers[0].values())
    figures = []
    for M in (1, 2, 3, 4, 6, 8, 16):
        rows = {
            K: torch.randn(M, K).to(DTYPES[precision])
            for K in {shape[1] for shape in SHAPES.values()}
        }

        def step(rows: dict[int, torch.Tensor] = rows) -> None:
            for index in range(NUM_LAYERS):
                for packed in layers[index % LAYERS_IN_MEMORY].values():
                    kernels.linear(rows[packed.in_features], packed)
            kernels.linear(rows[head.in_features], head)

        (times,) = alternate([step], num_runs)
        limit = None if found is None else found.bytes_per_second / 1e9
        figures.append(
            figure(f"decode step, {M} rows", precision, "GB/s", num_bytes, times, None, limit)
        )
    return figures


def large_products(precision: Precision, num_runs: int, found: Limits | None) -> list[Figure]:
    """Prefill and vision: many rows, beside torch's own product of the same type."""
    figures = []
    for name, (N, K) in {**SHAPES, "vision fc1": (4096, 1024), "vision fc2": (1024, 4096)}.items():
        for M in (256, 1024):
            dtype = DTYPES[precision]
            packed = random_linear((N, K), precision)
            x, weight = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
            calls: list[Callable[[], object]] = [partial(kernels.linear, x, packed)]
            if precision != "int8":
                calls.append(partial(functional.linear, x, weight))
            times = alternate(calls, num_runs)
            limit = None if found is None else found.operations_per_second[precision] / 1e9
            label = f"linear {name}, {M} rows"
            other = times[1] if len(times) > 1 else None
            figures.append(
                figure(label, precision, "GFLOP/s", 2.0 * M * N * K, times[0], other, limit)
            )
    return figures


def attention(precision: Precision, num_runs: int, found: Limits | None) -> list[Figure]:
    """A 1024 x 768 picture in the tower; its prompt in the decoder; one token after it."""
    dtype = DTYPES[precision]
    limit = None if found is None else found.operations_per_second[precision] / 1e9
    N, H, D = 3072, 16, 64
    is_int8 = precision == "int8"
    q, k, v = torch.randn(3, N, H, D).to(torch.bfloat16 if is_int8 else dtype)
    products = torch.int8 if is_int8 else dtype
    heads = [t.transpose(0, 1)[None].contiguous() for t in (q, k, v)]
    ours, other = alternate(
        [
            lambda: kernels.vision_attention(q, k, v, [0, N], products=products),
            lambda: functional.scaled_dot_product_attention(*heads),
        ],
        num_runs,
    )
    operations = 4.0 * N * N * H * D
    figures = [figure("vision attention", precision, "GFLOP/s", operations, ours, other, limit)]

    T, Hq, Hkv, D = 800, 16, 8, 128
    cache = torch.randn(2, 64, Hkv, 16, D).to(dtype)
    table = torch.arange(64, dtype=torch.int32)[None]
    queries = torch.randn(T, Hq, D).to(dtype)

    def attend(num_rows: int) -> torch.Tensor:
        bounds = torch.tensor([0, num_rows], dtype=torch.int32)
        lengths = torch.tensor([T], dtype=torch.int32)
        return kernels.paged_attention(
            *(queries[:num_rows], cache[0], cache[1], table, bounds, lengths), scale=D**-0.5
        )

    (prefill,) = alternate([lambda: attend(T)], num_runs)
    operations = 2.0 * T * T * Hq * D
    figures.append(
        figure("prefill attention, 800", precision, "GFLOP/s", operations, prefill, None, limit)
    )
    (decode,) = alternate([lambda: attend(1)], 20 * num_runs)
    num_bytes = 2.0 * T * Hkv * D * cache.element_size()
    memory = None if found is None else found.bytes_per_second / 1e9
    figures.append(
        figure("decode attention, 800", precision, "GB/s", num_bytes, decode, None, memory)
    )
    return figures


def random_linear(shape: tuple[int, int], precision: Precision) -> PackedLinear:
    """A packed layer (N, K) with small random weights."""
    weight = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
    return kernels.pack_linear(weight, None, precision)


def alternate(calls: Sequence[Callable[[], object]], num_runs: int) -> list[list[float]]:
    """Seconds of each call's runs, in turns after a warm-up.

    Beside others a call is made twice and timed the second time: torch's threads spin for
    milliseconds after its products, on the processors that ours then want.
    """
    times: list[list[float]] = [[] for _ in calls]
    for run_number in range(num_runs + 1):
        for call, mine in zip(calls, times, strict=True):
            if len(calls) > 1:
                call()
            begin = time.perf_counter()
            call()
            if run_number:
                mine.append(time.perf_counter() - begin)
    return times


def figure(
    name: str,
    precision: str,
    unit: str,
    amount: float,
    times: list[float],
    torch_times: list[float] | None,
    limit: float | None,
) -> Figure:
    """A line of the table from the seconds of `amount` of work."""
    best = amount / min(times) / 1e9
    median = amount / statistics.median(times) / 1e9
    other = None if torch_times is None else amount / min(torch_times) / 1e9
    return Figure(
        name, precision, unit, best, median, other, None if limit is None else best / limit
    )
