"""The small fused operations agree with their references in float64, over odd shapes."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.oracle import distance
from visiongate import kernels
from visiongate.kernels import native, reference

DTYPES = [torch.float32, torch.bfloat16]
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
SIZES = [1, 8, 33, 320, 2048]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", SIZES)
def test_norms_are_near_float64(level: str, dtype: torch.dtype, C: int) -> None:
    x = (torch.randn(37, C) + 1).to(dtype)
    weight, bias = torch.randn(2, C)
    wide = x.double()
    square = wide.pow(2).mean(-1, keepdim=True)
    expected = wide / (square + 1e-6).sqrt() * weight
    normed = kernels.rms_norm(x, weight, 1e-6)
    assert distance(normed, expected) < BOUNDS[dtype]
    assert torch.equal(kernels.rms_norm(x, weight, 1e-6, torch.bfloat16), normed.bfloat16())

    layered = kernels.layer_norm(x, weight, bias, 1e-6)
    expected = torch.nn.functional.layer_norm(wide, (C,), weight.double(), bias.double(), 1e-6)
    assert distance(layered, expected) < BOUNDS[dtype]
    narrow = kernels.layer_norm(x, weight, bias, 1e-6, torch.bfloat16)
    assert torch.equal(narrow, layered.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", SIZES)
def test_activations_are_near_float64(level: str, dtype: torch.dtype, C: int) -> None:
    x = (torch.randn(19, 2 * C) * 4).to(dtype)
    gate, up = x.double().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    result = kernels.silu_mul(x)
    assert distance(result, expected) < BOUNDS[dtype]
    assert torch.equal(kernels.silu_mul(x, torch.bfloat16), result.bfloat16())


def test_silu_survives_extremes(level: str) -> None:
    x = torch.tensor([[-1e4, -100.0, -0.0, 100.0, 1e4, 88.0]])
    both = torch.cat((x, torch.ones_like(x)), dim=1)
    assert torch.allclose(kernels.silu_mul(both), torch.nn.functional.silu(x), atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [8, 16, 32, 64, 72, 128])
@pytest.mark.parametrize("has_norm", [True, False])
def test_rotation_is_near_the_reference(
    level: str, dtype: torch.dtype, D: int, has_norm: bool
) -> None:
    both = torch.randn(23, 5 * D).to(dtype)  # one product, cut into views
    angles = torch.randn(23, D // 2).repeat(1, 2)
    for x in (both[:, : 3 * D].view(23, 3, D), both[:, 3 * D :].view(23, 2, D)):
        weight = torch.randn(D) if has_norm else None
        rest = (weight, angles.cos(), angles.sin(), 1e-6)
        result = kernels.norm_rope(x, *rest)
        assert result.dtype == dtype
        assert distance(result, reference.norm_rope(x.float(), *rest)) < BOUNDS[dtype]
        rounded = kernels.norm_rope(x, *rest, torch.bfloat16)
        assert torch.equal(rounded, result.bfloat16())


def test_stored_rows_stand_in_their_slots(level: str) -> None:
    k, v = torch.randn(2, 5, 2, 24)
    for dtype in DTYPES:
        key_cache, value_cache = torch.zeros(2, 4, 2, 3, 24, dtype=dtype)
        slots = torch.tensor([7, 0, 3, 11, 4])
        kernels.store_kv(k, v, key_cache, value_cache, slots)
        assert torch.equal(key_cache[slots // 3, :, slots % 3], k.to(dtype))
        assert torch.equal(value_cache[slots // 3, :, slots % 3], v.to(dtype))
        assert int(key_cache.any(-1).any(1).sum()) == 5
        mixed = torch.zeros_like(value_cache)
        kernels.store_kv(k.bfloat16(), v, key_cache, mixed, slots)
        assert torch.equal(key_cache[slots // 3, :, slots % 3], k.bfloat16().to(dtype))
        assert torch.equal(mixed, value_cache)


def test_unknown_levels_are_refused() -> None:
    before = kernels.backend()
    with pytest.raises(ValueError, match="VISIONGATE_KERNELS=avx1024"):
        native.use_backend("avx1024")
    assert kernels.backend() == before
