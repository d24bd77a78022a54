"""The Triton kernels against plain torch: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

IS_CUDA = torch.cuda.is_available()
if not IS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

pytest.importorskip("triton")

from visiongate.kernels.cuda import ops  # noqa: E402  # after the variable is set
from visiongate.model.attention import causal_attention  # noqa: E402

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
        self.keys = randn(sum(counts) * block, kv_heads, head, dtype=dtype)
        self.values = randn(sum(counts) * block, kv_heads, head, dtype=dtype, seed=1)
        self.qkv = randn(len(contexts), (heads + 2 * kv_heads) * head, dtype=dtype, seed=2)
        self.q_weight = randn(head, dtype=dtype, seed=3) + 1
        self.k_weight = randn(head, dtype=dtype, seed=4) + 1
        self.cos, self.sin = rope_tables(max(contexts), head)
        self.rope = [max(0, context - 7) for context in contexts]

    def rows(self, which: list[int]) -> Tensor:
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

        ops.decode_attention(
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
            block_size=self.block,
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
        slots = self.tables[row].long()[places // block] * block + places % block
        k, v = self.keys[slots].float(), self.values[slots].float()
        new = turn(x[self.heads : self.heads + self.kv_heads], self.k_weight, cos, sin)
        assert error(k[-1], new) < TOLERANCE[self.keys.dtype]
        assert torch.equal(v[-1], x[self.heads + self.kv_heads :])
        group = self.heads // self.kv_heads
        k, v = (t.transpose(0, 1).repeat_interleave(group, 0) for t in (k, v))
        return F.scaled_dot_product_attention(q[:, None], k, v).reshape(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head", "block"), [(6, 2, 64, 64), (8, 2, 128, 64), (2, 2, 32, 16)]
)
def test_decode_attention(
    dtype: torch.dtype, heads: int, kv_heads: int, head: int, block: int
) -> None:
    paged = Paged([1, 2, 64, 65, 128, 129, 300, 17], heads, kv_heads, head, block, dtype)
    out = paged.rows(list(range(8)))
    for row in range(8):
        assert error(out[row], paged.expected(row)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_attention_over_a_long_context(dtype: torch.dtype) -> None:
    paged = Paged([8500, 3], 2, 1, 32, 64, dtype)  # more parts than one round of the merge
    out = paged.rows([0, 1])
    assert error(out[0], paged.expected(0)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    paged = Paged([700, 1, 129, 64, 300, 1000], 4, 2, 64, 64, dtype)
    together = paged.rows([0, 1, 2, 3, 4, 5])
    assert torch.equal(together, paged.rows([0, 1, 2, 3, 4, 5]))
    for row in range(6):
        assert torch.equal(paged.rows([row])[0], together[row])
    assert torch.equal(paged.rows([5, 0, 2]), together[[5, 0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "count", "room"), [(0, 70, 70), (130, 5, 64), (64, 66, 128)])
def test_prompt_attention(dtype: torch.dtype, start: int, count: int, room: int) -> None:
    """A chunk in a graph made for `room` rows, after `start` tokens that are in the cache."""
    heads, kv_heads, head, block = 4, 2, 64, 64
    paged = Paged([start + count], heads, kv_heads, head, block, dtype)
    qkv = randn(room, (heads + 2 * kv_heads) * head, dtype=dtype)
    out = torch.full((room, heads * head), torch.nan, device=DEVICE, dtype=dtype)
    span = torch.tensor([start, count], dtype=torch.int32, device=DEVICE)
    ops.prompt_attention(
        qkv, paged.keys, paged.values, paged.tables[0], span, out, block_size=block
    )
    places = torch.arange(start + count, device=DEVICE)
    slots = paged.tables[0].long()[places // block] * block + places % block
    q = qkv[:count].view(count, -1, head)[:, :heads].float()
    expected = causal_attention(
        q, paged.keys[slots].float(), paged.values[slots].float(), scale=head**-0.5
    )
    assert error(out[:count], expected.reshape(count, -1)) < TOLERANCE[dtype]
    assert out[count:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_parts", [0, 1, 4])
def test_add_norm(dtype: torch.dtype, num_parts: int) -> None:
    x, weight = randn(5, 320), randn(320, dtype=dtype)
    parts = randn(num_parts, 5, 320) if num_parts else None
    out = torch.full((5, 320), torch.nan, device=DEVICE, dtype=dtype)
    total = x.clone() if parts is None else x + parts.sum(0)
    ops.add_norm(x, parts, weight, EPS, out)
    assert error(x, total) < 1e-6
    assert error(out, F.rms_norm(total, (320,), weight.float(), EPS)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_delta", [False, True])
def test_add_layer_norm(dtype: torch.dtype, has_delta: bool) -> None:
    x, weight, bias = randn(5, 192, dtype=dtype), randn(192, dtype=dtype), randn(192, dtype=dtype)
    delta = randn(5, 192, dtype=dtype, seed=1) if has_delta else None
    out = torch.full((5, 192), torch.nan, device=DEVICE, dtype=dtype)
    total = x.clone() if delta is None else x + delta
    ops.add_layer_norm(x, delta, weight, bias, out, EPS)
    assert torch.equal(x, total)
    expected = F.layer_norm(total.float(), (192,), weight.float(), bias.float(), EPS)
    assert error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = randn(3, 2 * 832, dtype=dtype)
    out = torch.full((3, 832), torch.nan, device=DEVICE, dtype=dtype)
    ops.silu_mul(gate_up, out)
    gate, up = gate_up.float().chunk(2, -1)
    assert error(out, F.silu(gate) * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head"), [(6, 2, 64), (4, 1, 128)])
def test_qk_norm_rope_store(dtype: torch.dtype, heads: int, kv_heads: int, head: int) -> None:
    T = 5
    qkv = randn(T, (heads + 2 * kv_heads) * head, dtype=dtype)
    before = qkv.clone().view(T, -1, head)
    weights = randn(head, dtype=dtype, seed=1), randn(head, dtype=dtype, seed=2)
    cos, sin = rope_tables(T, head)
    keys = torch.full((40, kv_heads, head), torch.nan, device=DEVICE, dtype=dtype)
    values = keys.clone()
    slots = torch.tensor([7, 3, 39, 0, 21], device=DEVICE)
    ops.qk_norm_rope_store(qkv, *weights, cos, sin, keys, values, slots, EPS)
    after = qkv.view(T, -1, head)
    q = turn(before[:, :heads], weights[0], cos[:, None], sin[:, None])
    k = turn(before[:, heads : heads + kv_heads], weights[1], cos[:, None], sin[:, None])
    assert error(after[:, :heads], q) < TOLERANCE[dtype]
    assert error(keys[slots], k) < TOLERANCE[dtype]
    assert torch.equal(after[:, heads : heads + kv_heads], keys[slots])
    assert torch.equal(values[slots], before[:, heads + kv_heads :])
    assert int(keys[:, 0, 0].isnan().sum()) == 35


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_vision(dtype: torch.dtype) -> None:
    N, H, head = 6, 3, 64
    qkv = randn(N, 3, H, head, dtype=dtype)
    before = qkv.float().clone()
    cos, sin = rope_tables(N, head)
    ops.rotate_vision(qkv, cos, sin, H)
    left, right = before[:, :2].chunk(2, -1)
    c, s = cos[:, None, None], sin[:, None, None]
    expected = torch.cat((left * c - right * s, right * c + left * s), -1)
    assert error(qkv[:, :2], expected) < TOLERANCE[dtype]
    assert torch.equal(qkv[:, 2].float(), before[:, 2])


def test_argmax_rows_takes_the_first_of_equals() -> None:
    logits = randn(4, 3968)
    logits[1, [70, 3000, 3900]] = 50.0
    logits[2, 3967] = 60.0
    logits[3] = -torch.inf
    logits[3, 5] = -100.0
    out = torch.full((4,), -1, dtype=torch.int32, device=DEVICE)
    ops.argmax_rows(logits, ops.ArgmaxSpace(4, DEVICE), out)
    assert out.tolist() == [int(logits[0].argmax()), 70, 3967, 5]


def test_embed_rows_reads_host_or_drawn_tokens() -> None:
    table = randn(50, 320)
    tokens = torch.tensor([4, 9, 0], dtype=torch.int32, device=DEVICE)
    drawn = torch.tensor([11, 12, 13], dtype=torch.int32, device=DEVICE)
    source = torch.tensor([-1, 2, 0], dtype=torch.int32, device=DEVICE)
    out = torch.full((3, 320), torch.nan, device=DEVICE)
    ops.embed_rows(tokens, drawn, source, table, out)
    assert torch.equal(out, table[[4, 13, 11]])
