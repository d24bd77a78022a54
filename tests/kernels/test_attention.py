"""Attention: near float64, the same bits however a prompt is cut, garbage in free slots ignored."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.kernels import oracle
from tests.kernels.oracle import distance
from visiongate import kernels

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "D"), [(3, 64), (2, 72), (2, 8), (1, 128), (2, 40)])
def test_pictures_attend_only_to_themselves(level: str, dtype: torch.dtype, H: int, D: int) -> None:
    cu_seqlens = [0, 1, 30, 30, 166, 420]
    q, k, v = torch.randn(3, 420, H, D).to(dtype)
    out = kernels.vision_attention(q, k, v, cu_seqlens)
    assert out.dtype == dtype
    parts = [
        oracle.attention(q[a:b], k[a:b], v[a:b], D**-0.5, None) for a, b in pairwise(cu_seqlens)
    ]
    assert distance(out, torch.cat(parts)) < BOUNDS[dtype]


def test_float32_rows_may_be_multiplied_in_bfloat16(level: str) -> None:
    q, k, v = torch.randn(3, 200, 2, 64)
    out = kernels.vision_attention(q, k, v, [0, 200], products=torch.bfloat16)
    assert out.dtype == torch.float32
    assert distance(out, oracle.attention(q, k, v, 64**-0.5, None)) < 8e-3
    if level != "torch":  # values are rounded where they are packed
        rounded = kernels.vision_attention(q, k, v.bfloat16(), [0, 200], products=torch.bfloat16)
        assert torch.equal(out, rounded)


def int8_distance(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: list[int]) -> float:
    """How far int8 products are from float64 over the same numbers; keys are bfloat16 then."""
    k = k.bfloat16()
    out = kernels.vision_attention(q, k, v, cu_seqlens, products=torch.int8)
    assert out.dtype == q.dtype
    scale = q.shape[-1] ** -0.5
    parts = [oracle.attention(q[a:b], k[a:b], v[a:b], scale, None) for a, b in pairwise(cu_seqlens)]
    return distance(out, torch.cat(parts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "D"), [(3, 64), (2, 72), (2, 8), (1, 128), (2, 40)])
def test_pictures_may_be_multiplied_in_int8(level: str, dtype: torch.dtype, H: int, D: int) -> None:
    q, k, v = torch.randn(3, 1100, H, D).to(dtype)
    assert int8_distance(q, k, v, [0, 1, 30, 30, 166, 420, 1100]) < 2e-2
    assert int8_distance(q, k, v[:, :1].expand(-1, H, -1), [0, 1100]) < 2e-2


@pytest.mark.parametrize("D", [64, 40])
def test_what_keys_and_values_have_in_common_takes_none_of_the_eight_bits(
    level: str, D: int
) -> None:
    q, k, v = torch.randn(3, 700, 2, D)
    offset = 20 * torch.randn(2, D).sign()
    assert int8_distance(q, k + offset, v, [0, 300, 700]) < 2e-2
    assert int8_distance(q, k, v + offset, [0, 300, 700]) < 1e-3


def test_equal_keys_give_the_mean_value_in_int8(level: str) -> None:
    """What values lose by rounding is given back where all of them count alike."""
    q, k, v = torch.randn(3, 700, 2, 64)
    assert int8_distance(q, k[:1].expand(700, -1, -1), v, [0, 700]) < 1e-5
    assert int8_distance(0 * q, k, v, [0, 1, 700]) < 1e-5  # nor do keys count that are not there


def test_many_small_probabilities_count_in_int8(level: str) -> None:
    """One key outweighs each other one a thousand times, and all of them only twice."""
    q, k, v = torch.randn(3, 2000, 1, 64) * 0.1
    v += torch.tensor([1.0, -1.0]).repeat(32)
    q[..., 0] = 8.0  # times D ** -0.5: a score rises by k's first number
    k[3, 0, 0] += 7.0
    v[3] *= -1
    assert int8_distance(q, k, v, [0, 2000]) < 2e-2


def test_one_large_value_spoils_no_other_block_in_int8(level: str) -> None:
    q, k, v = torch.randn(3, 1100, 2, 64)
    v[300] *= 30
    k[300] = -10 * q.mean(0)
    scale = 64**-0.5
    out = kernels.vision_attention(q, k.bfloat16(), v, [0, 1100], products=torch.int8)
    assert distance(out, oracle.attention(q, k.bfloat16(), v, scale, None)) < 6e-2


@pytest.mark.parametrize("rise", [-30.0, 3.0, 8.0])
def test_scores_may_rise_from_block_to_block_in_int8(level: str, rise: float) -> None:
    q, k, v = torch.randn(3, 1100, 2, 64)
    q[..., 0] = 8.0
    k[..., 0] = rise * (torch.arange(1100) // 256)[:, None]
    assert int8_distance(q * 0.25, k, v, [0, 1100]) < 4e-2


@pytest.mark.parametrize("products", [*DTYPES, torch.int8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_picture_has_the_same_bits_beside_others(
    native_level: str, dtype: torch.dtype, products: torch.dtype
) -> None:
    q, k, v = torch.randn(3, 500, 2, 64).to(dtype)
    together = kernels.vision_attention(q, k, v, [0, 123, 500], products=products)
    alone = kernels.vision_attention(q[123:], k[123:], v[123:], [0, 377], products=products)
    assert torch.equal(together[123:], alone)


@pytest.mark.parametrize("products", [*DTYPES, torch.int8])
def test_a_picture_has_the_same_bits_on_any_number_of_threads(
    native_level: str, products: torch.dtype
) -> None:
    q, k, v = torch.randn(3, 800, 3, 64)
    before = kernels.num_threads()
    results = []
    for count in (1, 2, 5):
        kernels.set_num_threads(count)
        results.append(kernels.vision_attention(q, k, v, [0, 123, 800], products=products))
    kernels.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_large_scores_do_not_overflow(level: str) -> None:
    q, k, v = torch.randn(3, 300, 2, 64)
    out = kernels.vision_attention(q * 40, k * 40, v, [0, 300])
    assert distance(out, oracle.attention(q * 40, k * 40, v, 64**-0.5, None)) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rise", [-30.0, 3.0, 8.0, 60.0])
def test_scores_may_rise_from_block_to_block(level: str, dtype: torch.dtype, rise: float) -> None:
    """Sums are scaled anew only where a block's scores go far beyond those before it."""
    q, k, v = torch.randn(3, 1100, 2, 64)
    q[..., 0] = 8.0  # times D ** -0.5: a score rises by k's first number
    k[..., 0] = rise * (torch.arange(1100) // 256)[:, None]
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out = kernels.vision_attention(q, k, v, [0, 1100])
    bound = max(BOUNDS[dtype], 1e-4)  # float32 scores of some hundreds
    assert distance(out, oracle.attention(q, k, v, 64**-0.5, None)) < bound


class Paged:
    """Sequences whose keys and values lie in shuffled blocks; free slots hold NaN."""

    block_size = 16

    def __init__(self, lengths: list[int], Hkv: int, D: int, dtype: torch.dtype) -> None:
        blocks = [-(-length // self.block_size) for length in lengths]
        order = (torch.randperm(sum(blocks)) + 1).int()
        self.context_lens = torch.tensor(lengths, dtype=torch.int32)
        self.block_table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        shape = (sum(blocks) + 2, Hkv, self.block_size, D)
        self.key_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.value_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.keys, self.values = [], []
        for b, length in enumerate(lengths):
            begin = sum(blocks[:b])
            self.block_table[b, : blocks[b]] = order[begin : begin + blocks[b]]
            k, v = torch.randn(2, length, Hkv, D).to(dtype)
            kernels.store_kv(k, v, self.key_cache, self.value_cache, self.slots(b, 0, length))
            self.keys.append(k)
            self.values.append(v)

    def slots(self, b: int, begin: int, end: int) -> Tensor:
        positions = torch.arange(begin, end)
        blocks = self.block_table[b][positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def attend(self, q: list[Tensor], rows: list[int], ends: list[int]) -> Tensor:
        """The last `rows[b]` rows before position `ends[b]` of each sequence."""
        taken = [t[end - n : end] for t, n, end in zip(q, rows, ends, strict=True)]
        bounds = torch.tensor([0, *rows]).cumsum(0).int()
        return kernels.paged_attention(
            torch.cat(taken),
            *(self.key_cache, self.value_cache, self.block_table),
            *(bounds, torch.tensor(ends, dtype=torch.int32)),
            scale=q[0].shape[-1] ** -0.5,
        )

    def expected(self, q: list[Tensor], rows: list[int], ends: list[int]) -> Tensor:
        parts = []
        for b, (n, end) in enumerate(zip(rows, ends, strict=True)):
            visible = torch.arange(end)[None] <= torch.arange(end - n, end)[:, None]
            k, v = self.keys[b][:end], self.values[b][:end]
            taken = q[b][end - n : end]
            parts.append(oracle.attention(taken, k, v, q[b].shape[-1] ** -0.5, visible))
        return torch.cat(parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("Hq", "Hkv", "D"), [(4, 2, 128), (5, 1, 64), (2, 2, 40), (16, 8, 16), (12, 12, 24)]
)
def test_rows_see_their_own_past(level: str, dtype: torch.dtype, Hq: int, Hkv: int, D: int) -> None:
    lengths = [1, 17, 300, 64]
    paged = Paged(lengths, Hkv, D, dtype)
    q = [torch.randn(length, Hq, D).to(dtype) for length in lengths]
    for rows in ([1, 1, 1, 1], [1, 5, 133, 64], [1, 17, 300, 1]):
        out = paged.attend(q, rows, lengths)
        assert distance(out, paged.expected(q, rows, lengths)) < BOUNDS[dtype]


def test_blocks_may_have_any_size(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paged, "block_size", 12)
    paged = Paged([100, 31], 2, 64, torch.float32)
    q = [torch.randn(length, 4, 64) for length in (100, 31)]
    for rows in ([1, 1], [100, 3]):
        out = paged.attend(q, rows, [100, 31])
        assert distance(out, paged.expected(q, rows, [100, 31])) < BOUNDS[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("group", "D", "block_size"), [(3, 64, 16), (2, 128, 16), (1, 96, 12), (4, 40, 16), (2, 128, 7)]
)
def test_a_row_has_the_same_bits_however_the_prompt_is_cut(
    native_level: str,
    dtype: torch.dtype,
    group: int,
    D: int,
    block_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few rows read the cache in place, many pack it first."""
    monkeypatch.setattr(Paged, "block_size", block_size)
    lengths = [333, 90]
    paged = Paged(lengths, 2, D, dtype)
    q = [torch.randn(length, 2 * group, D).to(dtype) for length in lengths]
    whole = paged.attend(q, lengths, lengths)[:333]
    for size in (1, 2, 7, 32, 100, 256):
        chunks = []
        for begin in range(0, 333, size):
            end = min(333, begin + size)
            beside = 1 + begin % 90
            chunks.append(paged.attend(q, [end - begin, 1], [end, beside])[: end - begin])
        assert torch.equal(torch.cat(chunks), whole), size


def test_float32_queries_over_a_bfloat16_cache(level: str) -> None:
    paged = Paged([77], 2, 64, torch.bfloat16)
    q = [torch.randn(77, 4, 64)]
    out = paged.attend(q, [77], [77])
    assert out.dtype == torch.float32
    assert distance(out, paged.expected(q, [77], [77])) < BOUNDS[torch.bfloat16]
