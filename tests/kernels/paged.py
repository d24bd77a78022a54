"""Random inputs of the GPU kernels, a paged cache, and the same results in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from visiongate.kernels.cuda import ops

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if IS_CUDA else [torch.float32]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
EPS = 1e-6


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def turn(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm per head and rotation, in float32."""
    x = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS) * weight.float()
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def rope_tables(num: int, head: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(num)[:, None] / 10000 ** (torch.arange(0, head, 2) / head)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


class Paged:
    """Random caches, tables and inputs for rows with the given contexts."""

    def __init__(
        self,
        contexts: list[int],
        heads: int,
        kv_heads: int,
        head: int,
        block: int,
        dtype: torch.dtype,
    ) -> None:
        self.contexts, self.heads, self.kv_heads, self.head = contexts, heads, kv_heads, head
        self.block = block
        counts = [-(-context // block) for context in contexts]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1))
        self.tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
        for row, count in enumerate(counts):
            begin = sum(counts[:row])
            self.tables[row, :count] = order[begin : begin + count]
        self.tables = self.tables.to(DEVICE)
        self.keys = randn(sum(counts), kv_heads, block, head, dtype=dtype)
        self.values = randn(sum(counts), kv_heads, block, head, dtype=dtype, seed=1)
        self.qkv = randn(len(contexts), (heads + 2 * kv_heads) * head, dtype=dtype, seed=2)
        self.q_weight = randn(head, dtype=dtype, seed=3) + 1
        self.k_weight = randn(head, dtype=dtype, seed=4) + 1
        self.cos, self.sin = rope_tables(max(contexts), head)
        self.rope = [max(0, context - 7) for context in contexts]

    def rows(self, which: list[int], attend: Callable[..., None] = ops.decode_attention) -> Tensor:
        """`decode_attention` of some of the rows, in that order."""
        counts = [ops.num_parts(self.contexts[row]) for row in which]
        first = [sum(counts[:index]) for index in range(len(counts))]
        space = ops.AttentionSpace(
            len(which), sum(counts), self.heads, self.kv_heads, self.head, DEVICE
        )
        out = torch.full((len(which), self.heads * self.head), torch.nan, device=DEVICE)
        out = out.to(self.keys.dtype)

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=DEVICE)

        attend(
            self.qkv[which],
            self.q_weight,
            self.k_weight,
            self.cos,
            self.sin,
            self.keys,
            self.values,
            ints([self.contexts[row] - 1 for row in which]),
            ints([self.rope[row] for row in which]),
            ints(first),
            self.tables[which],
            space,
            out,
            eps=EPS,
        )
        assert not space.arrived.any()
        return out

    def expected(self, row: int) -> Tensor:
        """The same row in float32 torch; reads the cache as `rows` left it."""
        context, block = self.contexts[row], self.block
        x = self.qkv[row].float().view(-1, self.head)
        cos, sin = self.cos[self.rope[row]], self.sin[self.rope[row]]
        q = turn(x[: self.heads], self.q_weight, cos, sin)
        places = torch.arange(context, device=DEVICE)
        blocks = self.tables[row].long()[places // block]
        k, v = (cache[blocks, :, places % block].float() for cache in (self.keys, self.values))
        new = turn(x[self.heads : self.heads + self.kv_heads], self.k_weight, cos, sin)
        assert error(k[-1], new) < TOLERANCE[self.keys.dtype]
        assert torch.equal(v[-1], x[self.heads + self.kv_heads :])
        group = self.heads // self.kv_heads
        k, v = (t.transpose(0, 1).repeat_interleave(group, 0) for t in (k, v))
        return F.scaled_dot_product_attention(q[:, None], k, v).reshape(-1)
