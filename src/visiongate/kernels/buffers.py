"""Memory for large tensors: mappings in huge pages, given out again when their tensors are gone.

The system clears every page that it hands out, and an allocator gives large blocks back at once;
for a picture's activations that took a third of the time of an int8 layer. Blocks of a
`BufferPool` keep their pages. A tensor holds its block through Python's buffer protocol, so the
block is free exactly when the last tensor on it is.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 << 20

KEEP_TAKES = 64
"""A block that was not wanted for this many others is given back: a layer takes about ten."""


def map_block(num_bytes: int, *, in_huge_pages: bool = True) -> mmap.mmap:
    """Private memory of its own, zeros; in huge pages or small ones where the system can choose."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, num_bytes)
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if in_huge_pages else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(advice)
    return block


def sparse_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in small pages, each of which takes memory when it is first written.

    Where parts here and there are written, as sequences write every layer of a cache, huge pages
    would be cleared and held for little.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(tuple(shape), dtype=dtype)
    block = map_block(num_bytes, in_huge_pages=False)
    return torch.frombuffer(block, dtype=dtype).view(tuple(shape))


class BufferPool:
    """Gives out tensors on blocks that it takes back by itself.

    Attributes:
        keep_bytes: the most memory that waits unused; older blocks beyond it are given back.
    """

    def __init__(self, keep_bytes: int = 192 << 20) -> None:
        self.keep_bytes = keep_bytes
        self._free: list[tuple[int, mmap.mmap]] = []  # when it came back, in takes; oldest first
        self._num_takes = 0
        self._returned: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that is not initialised; small ones come from torch."""
        count = 1
        for size in shape:
            count *= size
        num_bytes = count * dtype.itemsize
        if num_bytes < HUGE_PAGE_BYTES:
            return torch.empty(tuple(shape), dtype=dtype)
        block = self._take(-(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
        view = memoryview(block)
        # Runs wherever the last tensor goes, even inside `_take`: it only appends.
        weakref.finalize(view, self._returned.append, block).atexit = False
        return torch.frombuffer(view, dtype=dtype, count=count).view(tuple(shape))

    @property
    def free_bytes(self) -> int:
        """Memory that waits unused."""
        with self._lock:
            self._collect()
            return sum(len(block) for _, block in self._free)

    def _take(self, num_bytes: int) -> mmap.mmap:
        """The smallest free block that fits without wasting a third, or a new one.

        Blocks that the present kind of work does not use go (a picture's, once its text is
        computed). Dropping others for a new one would be wrong: the next layer wants them all.
        """
        with self._lock:
            self._num_takes += 1
            self._collect()
            fits = [e for e in self._free if num_bytes <= len(e[1]) <= num_bytes * 3 // 2]
            if not fits:
                return map_block(num_bytes)
            best = min(fits, key=lambda entry: len(entry[1]))
            self._free.remove(best)
            return best[1]

    def _collect(self) -> None:
        while self._returned:
            self._free.append((self._num_takes, self._returned.popleft()))
        held = sum(len(block) for _, block in self._free)
        while self._free and (
            held > self.keep_bytes or self._free[0][0] < self._num_takes - KEEP_TAKES
        ):
            held -= len(self._free.pop(0)[1])
