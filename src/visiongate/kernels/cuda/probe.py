"""How fast a card reads and multiplies at best: what its kernels are measured against.

read_rate       a stream that only reads, as decode's products do with the weights
product_rate    large square products by the library's own kernel
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 4096
ROWS = 8


def read_sums(words: Tensor) -> Tensor:
    """Sums of every ROWS x WIDTH numbers, float32; reads each once and writes next to nothing."""
    sums = words.new_empty(words.numel() // (ROWS * WIDTH), dtype=torch.float32)
    _read_sum[(len(sums),)](words, sums, WIDTH, ROWS)
    return sums


def is_right(device: str | torch.device) -> bool:
    """Whether a kernel compiles, runs and gives the right sum; raises what the compiler raises."""
    words = torch.ones(ROWS * WIDTH, dtype=torch.bfloat16, device=device)
    return float(read_sums(words)[0]) == words.numel()


def read_rate(device: str | torch.device, *, num_bytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second of a stream that only reads, the best of some runs."""
    span = 2 * ROWS * WIDTH
    words = torch.ones(max(1, num_bytes // span) * span // 2, dtype=torch.bfloat16, device=device)
    return words.nbytes / _least_seconds(lambda: read_sums(words), repeats, words.device)


def product_rate(
    dtype: torch.dtype, device: str | torch.device, *, side: int = 8192, repeats: int = 5
) -> float:
    """Operations a second of a product of two (side, side) matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / _least_seconds(lambda: a @ b, repeats, a.device)


def device_times(work: Callable[[], object], repeat: int) -> list[float]:
    """Milliseconds of each of some runs, by the clock of the current card."""
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def _least_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The shortest run after a warm-up, by the device's clock where it has one."""
    work()
    if device.type == "cuda":
        with torch.cuda.device(device):
            return min(device_times(work, repeats)) / 1e3
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


@triton.jit  # type: ignore[untyped-decorator]
def _read_sum(source, sums, WIDTH: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums COUNT rows of WIDTH numbers: reads much, writes little."""
    place = tl.program_id(0).to(tl.int64)
    total = tl.zeros([WIDTH], tl.float32)
    for i in tl.static_range(COUNT):
        at = (place * COUNT + i) * WIDTH + tl.arange(0, WIDTH)
        total += tl.load(source + at).to(tl.float32)
    tl.store(sums + place, tl.sum(total, 0))
