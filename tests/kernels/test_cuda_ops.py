"""The Triton kernels against plain torch: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from tests.kernels.paged import (  # where Triton is
    DEVICE,
    DTYPES,
    EPS,
    IS_CUDA,
    TOLERANCE,
    Paged,
    error,
    randn,
    rope_tables,
    turn,
)
from visiongate.engine.sampler import Sampler
from visiongate.engine.types import SamplingParams
from visiongate.kernels.cuda import ops
from visiongate.model.attention import causal_attention


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
    ops.prompt_attention(qkv, paged.keys, paged.values, paged.tables[0], span, out)
    places = torch.arange(start + count, device=DEVICE)
    blocks = paged.tables[0].long()[places // block]
    k, v = (cache[blocks, :, places % block].float() for cache in (paged.keys, paged.values))
    q = qkv[:count].view(count, -1, head)[:, :heads].float()
    expected = causal_attention(q, k, v, scale=head**-0.5)
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
    blocks, block = 5, 8
    shape = (blocks, kv_heads, block, head)
    keys = torch.full(shape, torch.nan, device=DEVICE, dtype=dtype)
    values = keys.clone()
    slots = torch.tensor([7, 3, 39, 0, 21], device=DEVICE)
    ops.qk_norm_rope_store(qkv, *weights, cos, sin, keys, values, slots, EPS)
    assert int(keys[:, 0, :, 0].isnan().sum()) == blocks * block - T
    keys, values = (cache[slots // block, :, slots % block] for cache in (keys, values))
    after = qkv.view(T, -1, head)
    q = turn(before[:, :heads], weights[0], cos[:, None], sin[:, None])
    k = turn(before[:, heads : heads + kv_heads], weights[1], cos[:, None], sin[:, None])
    assert error(after[:, :heads], q) < TOLERANCE[dtype]
    assert error(keys, k) < TOLERANCE[dtype]
    assert torch.equal(after[:, heads : heads + kv_heads], keys)
    assert torch.equal(values, before[:, heads + kv_heads :])


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
    space = ops.ArgmaxSpace(4, DEVICE)
    ops.argmax_rows(logits, space, out)
    assert out.tolist() == [int(logits[0].argmax()), 70, 3967, 5]
    assert torch.equal(space.ordered, space.best.sort(descending=True).values)


def test_embed_rows_reads_host_or_drawn_tokens() -> None:
    table = randn(50, 320)
    tokens = torch.tensor([4, 9, 0], dtype=torch.int32, device=DEVICE)
    drawn = torch.tensor([11, 12, 13], dtype=torch.int32, device=DEVICE)
    source = torch.tensor([-1, 2, 0], dtype=torch.int32, device=DEVICE)
    out = torch.full((3, 320), torch.nan, device=DEVICE)
    ops.embed_rows(tokens, drawn, source, table, out)
    assert torch.equal(out, table[[4, 13, 11]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keeps_others", [False, True])
def test_place_rows(dtype: torch.dtype, *, keeps_others: bool) -> None:
    rows = randn(9, 320, dtype=dtype)
    where = torch.tensor([-1, 7, 0, -1, 3], dtype=torch.int32, device=DEVICE)
    before = randn(5, 320)
    out = before.clone()
    ops.place_rows(rows[1:], where, out, keeps_others=keeps_others)
    expected = before if keeps_others else torch.zeros_like(before)
    expected[[1, 2, 4]] = rows[[8, 1, 4]].float()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("half", [24, 64])
def test_gather_angles(half: int) -> None:
    places = torch.tensor([[0, 7, 3, 39], [1, 0, 4, 2], [2, 5, 5, 1]], dtype=torch.int32)
    axis = torch.arange(half) % 3
    cosines, sines = rope_tables(40, 2 * half)
    cos, sin = (torch.full((4, half), torch.nan, device=DEVICE) for _ in range(2))
    ops.gather_angles(places.to(DEVICE), axis.to(DEVICE), cosines, sines, cos, sin)
    at = places[axis].t().to(DEVICE)  # (4, half)
    assert torch.equal(cos, cosines.gather(0, at.long()))
    assert torch.equal(sin, sines.gather(0, at.long()))


@pytest.mark.parametrize("vocabulary", [3968, 151_936])
def test_draw_rows(vocabulary: int) -> None:
    """Each row by its own settings, as the sampler of the host draws; other rows are left alone."""
    if vocabulary > 4000 and not IS_CUDA:
        pytest.skip("minutes in the interpreter")
    params = [
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=0.7, top_k=20, top_p=0.8),
        SamplingParams(temperature=1.5, top_k=32),
        SamplingParams(temperature=1.0, top_k=7, min_p=0.3),
        SamplingParams(temperature=0.3, top_k=32, top_p=0.99, min_p=0.01),
        SamplingParams(temperature=1.0, top_k=5, top_p=0.0),
    ]
    logits = randn(len(params) + 2, vocabulary) * 4
    if vocabulary < 4000:  # torch's top-k takes any of equal ones where there are many
        logits[3, [9, 30, 3900]] = 17.0
    logits[5, 700:760] += 30.0  # the best in one slice
    argmax = ops.ArgmaxSpace(len(logits), DEVICE)
    ops.argmax_rows(logits, argmax, torch.empty(len(logits), dtype=torch.int32, device=DEVICE))
    space = ops.DrawSpace(len(params), DEVICE)
    seen: set[int] = set()
    for seed in range(40 if IS_CUDA else 6):
        out = torch.full((len(logits),), -1, dtype=torch.int32, device=DEVICE)
        samplers = [Sampler(dataclasses.replace(p, seed=seed), [], None) for p in params]
        table = [
            (row + 1, p.temperature, p.top_k, p.top_p, p.min_p, sampler.uniform())
            for row, (p, sampler) in enumerate(zip(params, samplers, strict=True))
        ]
        settings = torch.tensor(table, dtype=torch.float64, device=DEVICE)
        ops.draw_rows(logits, settings, argmax, space, out)
        twins = [Sampler(dataclasses.replace(p, seed=seed), [], None) for p in params]
        expected = [twin.draw(logits[row + 1].cpu()) for row, twin in enumerate(twins)]
        assert out.tolist() == [-1, *expected, -1]
        seen |= {expected[2]}
    assert len(seen) > 2  # it does draw
