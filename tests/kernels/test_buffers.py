"""Large tensors get their memory back from tensors that are gone, and from no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from visiongate.kernels.buffers import HUGE_PAGE_BYTES, KEEP_TAKES, BufferPool, sparse_zeros

COUNT = HUGE_PAGE_BYTES // 4 + 5


def test_a_block_is_reused_when_its_last_tensor_is_gone() -> None:
    pool = BufferPool()
    first = pool.empty((COUNT,), torch.float32)
    address = first.data_ptr()
    part = first[3:].view(-1)
    del first
    assert pool.free_bytes == 0
    assert pool.empty((COUNT,), torch.float32).data_ptr() != address  # `part` still holds it
    del part
    assert address in [pool.empty((COUNT,), torch.float32).data_ptr() for _ in range(2)]


def test_the_same_memory_comes_back_for_the_same_size() -> None:
    pool = BufferPool()
    tensor = pool.empty((COUNT,), torch.float32)
    address = tensor.data_ptr()
    del tensor
    assert pool.free_bytes == 2 * HUGE_PAGE_BYTES
    assert pool.empty((5, COUNT // 5), torch.float32).data_ptr() == address


def test_small_tensors_and_tensors_without_elements_are_torch_s_own() -> None:
    pool = BufferPool()
    assert pool.empty((0, 7), torch.float32).shape == (0, 7)
    del_me = pool.empty((8,), torch.float32)
    del del_me
    assert pool.free_bytes == 0


def test_no_more_waits_than_is_allowed() -> None:
    pool = BufferPool(keep_bytes=3 * HUGE_PAGE_BYTES)
    tensors = [pool.empty((COUNT,), torch.float32) for _ in range(4)]
    tensors.clear()
    assert pool.free_bytes == 2 * HUGE_PAGE_BYTES


def test_sizes_that_alternate_all_keep_their_blocks() -> None:
    """The story: each new size threw out the oldest block, which the next layer wanted."""
    pool = BufferPool()
    counts = [COUNT, 3 * COUNT, 9 * COUNT]
    first = [pool.empty((count,), torch.float32).data_ptr() for count in counts]
    again = [pool.empty((count,), torch.float32).data_ptr() for count in counts]
    assert again == first


def test_what_other_work_left_behind_is_given_back() -> None:
    pool = BufferPool()
    pool.empty((9 * COUNT,), torch.float32)
    for _ in range(KEEP_TAKES + 2):
        pool.empty((COUNT,), torch.float32)
    assert pool.free_bytes == 2 * HUGE_PAGE_BYTES


def test_zeros_are_zeros_of_any_shape() -> None:
    for shape in ((3, 5), (0, 4), (1, 2, 70000)):
        for dtype in (torch.float32, torch.bfloat16):
            zeros = sparse_zeros(shape, dtype)
            assert zeros.shape == shape
            assert zeros.dtype == dtype
            assert not zeros.any()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_zeros_take_memory_only_where_they_are_written() -> None:
    """The story: a cache in huge pages held 2 MB of every layer for a few rows of each."""
    zeros = sparse_zeros((32, HUGE_PAGE_BYTES // 4), torch.float32)
    before = resident_bytes()
    zeros[:, 7] = 1.0
    assert resident_bytes() - before < 4 * HUGE_PAGE_BYTES


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
