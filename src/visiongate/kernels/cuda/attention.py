"""Attention of decode steps on an NVIDIA GPU, in CUDA C++: `attention.cu` says how it works.

    space = AttentionSpace(rows, parts, heads, kv_heads, head, device)
    decode_attention(qkv, ..., space, out, eps=1e-6)

The same function as `ops.decode_attention`, for bfloat16 and heads of 64 or 128; parts are of the
same length. A launch is a programmatic dependent launch, as those of `stream`.

Source of the split softmax: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from visiongate.kernels.cuda.nvrtc import Kernel, load_kernel, pointer, source_text
from visiongate.kernels.cuda.ops import PART, AttentionSpace

MAX_ROWS = 64


def supports(heads: int, kv_heads: int, head: int, block_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes these heads and this cache."""
    group, rest = divmod(heads, kv_heads)
    return (
        dtype == torch.bfloat16
        and head in (64, 128)
        and rest == 0
        and 1 <= group <= 8
        and block_size % 16 == 0
        and (PART % block_size == 0 or block_size % PART == 0)
    )


def defines(heads: int, kv_heads: int, head: int, block_size: int) -> tuple[tuple[str, int], ...]:
    """What attention.cu is compiled with."""
    group = heads // kv_heads
    return (("D", head), ("GROUP", group), ("HKV", kv_heads), ("BLOCK", block_size), ("PART", PART))


def shared_bytes(heads: int, kv_heads: int, head: int) -> int:
    """Shared memory of one block: keys, values, queries, and the warps' sums."""
    group = heads // kv_heads
    return 2 * PART * head * 2 + 8 * head * 2 + 4 * group * (head + 2) * 4 + 16


def decode_attention(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    rope_places: Tensor,
    first_parts: Tensor,
    tables: Tensor,
    space: AttentionSpace,
    out: Tensor,
    *,
    eps: float,
) -> None:
    """Attention of one new token a row over its paged cache; stores its key and value there.

    The arguments are those of `ops.decode_attention`; B is 1..64, and `first_parts` ascends, a row
    having `ops.num_parts(place + 1)` parts. Raises ValueError for what `supports` refuses.
    """
    B = qkv.shape[0]
    _, kv_heads, block_size, head = keys.shape
    heads = qkv.shape[1] // head - 2 * kv_heads
    if not 1 <= B <= MAX_ROWS or not supports(heads, kv_heads, head, block_size, qkv.dtype):
        raise ValueError(f"{B} rows of {heads} heads of {head} by {kv_heads} are not supported")
    kernel, most_teams = _kernel(qkv.device, heads, kv_heads, head, block_size)
    kernel.launch(
        kv_heads * min(most_teams, B * -(-tables.shape[1] * block_size // PART)),
        128,
        shared_bytes(heads, kv_heads, head),
        [
            *(pointer(t) for t in (qkv, keys, values, cos, sin, q_weight, k_weight)),
            *(pointer(t) for t in (places, rope_places, first_parts, tables, out)),
            *(pointer(t) for t in (space.sums, space.stats, space.arrived)),
            ctypes.c_int(B),
            ctypes.c_int(tables.stride(0)),
            ctypes.c_float(head**-0.5),
            ctypes.c_float(eps),
        ],
    )


@functools.cache
def _kernel(
    device: torch.device, heads: int, kv_heads: int, head: int, block_size: int
) -> tuple[Kernel, int]:
    """The kernel, and the teams (a block for each key-value head) that the device holds at once."""
    macros = defines(heads, kv_heads, head, block_size)
    kernel = load_kernel(device, "decode_attention", source_text("attention.cu"), macros)
    num_bytes = shared_bytes(heads, kv_heads, head)
    kernel.allow_shared_memory(num_bytes)
    machine = torch.cuda.get_device_properties(device)
    fitting = min(3, machine.shared_memory_per_multiprocessor // (num_bytes + 1024))
    return kernel, max(1, max(1, fitting) * machine.multi_processor_count // kv_heads)
