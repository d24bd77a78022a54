"""Decode's attention in CUDA C++: it compiles anywhere, and on a card agrees with plain torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.paged import TOLERANCE, Paged, error  # where Triton is
from visiongate.kernels.cuda import attention, nvrtc

# (heads, key-value heads, head size, block) of the 4B, 2B and embedded models, and odd ones.
SHAPES = [(32, 8, 128, 64), (16, 8, 128, 64), (6, 2, 64, 64), (8, 1, 128, 16), (3, 3, 64, 256)]


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_compiles(shape: tuple[int, int, int, int], capability: tuple[int, int]) -> None:
    if not nvrtc.has_compiler():
        pytest.skip("NVRTC is not installed")
    source = nvrtc.source_text("attention.cu")
    assert nvrtc.compile_source(source, capability, attention.defines(*shape))


def test_three_blocks_fit_on_an_h100_and_one_on_every_card() -> None:
    assert 3 * (attention.shared_bytes(32, 8, 128) + 1024) <= 228 << 10
    for heads, kv_heads, head, _ in SHAPES:
        assert attention.shared_bytes(heads, kv_heads, head) <= 99 << 10


def test_what_is_supported() -> None:
    bf16 = torch.bfloat16
    assert all(attention.supports(*shape, bf16) for shape in SHAPES)
    assert not attention.supports(32, 8, 128, 64, torch.float32)
    assert not attention.supports(32, 8, 96, 64, bf16)
    assert not attention.supports(32, 2, 128, 64, bf16)
    assert not attention.supports(32, 8, 128, 8, bf16)
    assert not attention.supports(32, 8, 128, 48, bf16)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_agree_with_torch_and_have_the_same_bits_in_any_company(
    shape: tuple[int, int, int, int],
) -> None:
    contexts = [1, 2, 64, 65, 127, 128, 129, 130, 255, 256, 257, 300, 1120, 2049]
    contexts += [1 + 53 * row % 777 for row in range(50)]
    paged = Paged(contexts, *shape, torch.bfloat16)
    together = paged.rows(list(range(64)), attention.decode_attention)
    for row in range(64):
        assert error(together[row], paged.expected(row)) < TOLERANCE[torch.bfloat16]
    assert torch.equal(together, paged.rows(list(range(64)), attention.decode_attention))
    for row in range(14):
        assert torch.equal(paged.rows([row], attention.decode_attention)[0], together[row])
    some = [13, 0, 40, 12, 7]
    assert torch.equal(paged.rows(some, attention.decode_attention), together[some])
    # Triton's twin rounds elsewhere, but means the same.
    assert error(paged.rows(some), together[some]) < TOLERANCE[torch.bfloat16]


@pytest.mark.cuda
def test_a_long_context() -> None:
    paged = Paged([32_000, 5, 20_001], 8, 2, 128, 64, torch.bfloat16)
    out = paged.rows([0, 1, 2], attention.decode_attention)
    for row in range(3):
        assert error(out[row], paged.expected(row)) < TOLERANCE[torch.bfloat16]


@pytest.mark.cuda
def test_what_is_not_supported_is_refused() -> None:
    paged = Paged([5], 2, 2, 32, 16, torch.bfloat16)
    with pytest.raises(ValueError, match="not supported"):
        paged.rows([0], attention.decode_attention)
