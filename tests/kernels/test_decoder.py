"""A decoder in one call: the bits of its kernels called one after another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from visiongate import kernels
from visiongate.kernels import Decoder, LayerWeights, PackedLinear, Precision

EPS = 1e-6
BLOCK_SIZE = 16


@dataclass
class Shape:
    """C, inner, query heads, key heads, head size."""

    C: int
    inner: int
    Hq: int
    Hkv: int
    D: int


SHAPES = [Shape(96, 200, 4, 2, 24), Shape(130, 66, 3, 1, 40), Shape(512, 640, 8, 8, 64)]


def random_layer(shape: Shape, precision: Precision, has_bias: bool) -> LayerWeights:
    width = (shape.Hq + 2 * shape.Hkv) * shape.D

    def random_map(N: int, K: int) -> PackedLinear:
        bias = torch.randn(N) if has_bias else None
        return kernels.pack_linear((torch.randn(N, K) * K**-0.5).bfloat16(), bias, precision)

    maps = (
        random_map(width, shape.C),
        random_map(shape.C, shape.Hq * shape.D),
        random_map(2 * shape.inner, shape.C),
        random_map(shape.C, shape.inner),
    )
    sizes = (shape.C, shape.D, shape.D, shape.C)
    return LayerWeights(maps, tuple(torch.randn(size) + 1 for size in sizes))


@dataclass
class Step:
    """The last rows of a few sequences, and a cache with what was before them."""

    lengths: list[int]
    rows: list[int]
    shape: Shape
    dtype: torch.dtype
    num_layers: int

    def __post_init__(self) -> None:
        torch.manual_seed(3)
        blocks = [-(-length // BLOCK_SIZE) for length in self.lengths]
        order = torch.randperm(sum(blocks)).int().split(blocks)
        self.table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
        slots = []
        for b, own in enumerate(order):
            self.table[b, : len(own)] = own
            places = torch.arange(self.lengths[b] - self.rows[b], self.lengths[b])
            slots.append(own[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE)
        self.slots = torch.cat(slots).long()
        self.bounds = torch.tensor([0, *self.rows]).cumsum(0).int()
        self.ends = torch.tensor(self.lengths, dtype=torch.int32)
        size = (self.num_layers, sum(blocks), self.shape.Hkv, BLOCK_SIZE, self.shape.D)
        self.keys, self.values = torch.randn(2, *size).to(self.dtype)
        self.x = torch.randn(sum(self.rows), self.shape.C)
        angles = torch.randn(sum(self.rows), self.shape.D // 2).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def in_one_call(self, layers: list[LayerWeights], inner: torch.dtype) -> Tensor:
        return Decoder(layers, EPS, inner).run(
            *(self.x.clone(), self.cos, self.sin, self.slots, self.table, self.bounds, self.ends),
            *(self.keys, self.values, self.shape.D**-0.5),
        )

    def one_by_one(self, layers: list[LayerWeights], inner: torch.dtype) -> Tensor:
        x, shape = self.x.clone(), self.shape
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            qkv, o, gate_up, down = layer.maps
            input_norm, q_norm, k_norm, inner_norm = layer.norms
            both = kernels.linear(kernels.rms_norm(x, input_norm, EPS), qkv)
            heads = both.view(len(x), -1, shape.D)
            q, k, v = heads.split([shape.Hq, shape.Hkv, shape.Hkv], dim=1)
            q, k = (
                kernels.norm_rope(x, norm, self.cos, self.sin, EPS, keys.dtype)
                for x, norm in ((q, q_norm), (k, k_norm))
            )
            kernels.store_kv(k, v, keys, values, self.slots)
            out = kernels.paged_attention(
                *(q, keys, values, self.table, self.bounds, self.ends),
                scale=shape.D**-0.5,
            )
            x = kernels.linear(out.reshape(len(x), -1), o, residual=x)
            both = kernels.linear(kernels.rms_norm(x, inner_norm, EPS), gate_up)
            x = kernels.linear(kernels.silu_mul(both, inner), down, residual=x)
        return x


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_one_call_gives_the_bits_of_its_kernels(
    native_level: str, precision: Precision, shape: Shape, has_bias: bool
) -> None:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layers = [random_layer(shape, precision, has_bias) for _ in range(3)]
    for lengths, rows in (([1], [1]), ([300], [1]), ([40, 3, 270], [7, 3, 1]), ([64], [64])):
        alone, together = (Step(lengths, rows, shape, dtype, 3) for _ in range(2))
        expected = alone.one_by_one(layers, dtype)
        assert torch.equal(together.in_one_call(layers, dtype), expected)
        assert torch.equal(together.keys, alone.keys)
        assert torch.equal(together.values, alone.values)


def test_threads_do_not_change_a_call(native_level: str) -> None:
    layers = [random_layer(SHAPES[2], "int8", False) for _ in range(2)]
    before = kernels.num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            kernels.set_num_threads(count)
            step = Step([500, 20], [1, 1], SHAPES[2], torch.bfloat16, 2)
            results.append(step.in_one_call(layers, torch.bfloat16))
    finally:
        kernels.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
