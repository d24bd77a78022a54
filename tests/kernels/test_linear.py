"""Linear layers: near float64, the same bits whatever the batch, rows that can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.oracle import distance
from visiongate import kernels
from visiongate.kernels import Gelu, Precision, native, reference

# (N, K): multiples of the panels, odd ones, and the shapes of the small embedded model
SHAPES = [(128, 256), (64, 64), (1, 1), (7, 3), (65, 33), (320, 256), (832, 320), (97, 515)]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
GELUS: tuple[Gelu, ...] = ("tanh", "erf")

# float32 adds K rounded terms; bfloat16 also rounds x and, where x is bfloat16, y (2 ** -9);
# int8 keeps 7 bits of the largest weight of a row and of the largest activation of a group.
BOUNDS = {"float32": 2e-6, "bfloat16": 4e-3, "int8": 2e-2}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_product_is_near_float64(level: str, precision: Precision, N: int, K: int) -> None:
    weight = torch.randn(N, K).bfloat16()
    bias = torch.randn(N)
    packed = kernels.pack_linear(weight, bias, precision)
    x = torch.randn(41, K)
    expected = x.double() @ weight.double().t() + bias.double()
    for M in (1, 2, 3, 5, 6, 7, 8, 13, 16, 41):
        y = kernels.linear(x[:M], packed)
        assert y.dtype == torch.float32
        assert distance(y, expected[:M]) < BOUNDS[precision], M


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bfloat16_rows_give_bfloat16_results(level: str, precision: Precision) -> None:
    weight = torch.randn(100, 130).bfloat16()
    packed = kernels.pack_linear(weight, None, precision)
    x = torch.randn(9, 130).bfloat16()
    y = kernels.linear(x, packed)
    assert y.dtype == torch.bfloat16
    assert distance(y, x.double() @ weight.double().t()) < max(BOUNDS[precision], 4e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("M", "N"), [(1, 33), (7, 64), (40, 130)])
def test_results_may_be_bent_narrowed_or_added(
    level: str, precision: Precision, M: int, N: int
) -> None:
    """What the product is made into on its way to memory is what one would make of it there."""
    packed = kernels.pack_linear(torch.randn(N, 70).bfloat16(), torch.randn(N), precision)
    x, stream = torch.randn(M, 70), torch.randn(M, N)
    plain = kernels.linear(x, packed)
    assert torch.equal(kernels.linear(x, packed, dtype=torch.bfloat16), plain.bfloat16())
    for gelu in GELUS:
        bent = kernels.linear(x, packed, gelu=gelu)
        form = reference.TORCH_GELUS[gelu]
        expected = torch.nn.functional.gelu(plain.double(), approximate=form)
        assert distance(bent, expected) < 1e-6
        both = kernels.linear(x, packed, gelu=gelu, dtype=torch.bfloat16)
        assert torch.equal(both, bent.bfloat16())
    total = stream + plain
    added = kernels.linear(x, packed, residual=stream)
    assert torch.equal(added, total)
    assert added.data_ptr() == stream.data_ptr()
    narrow = kernels.linear(x.bfloat16(), packed, dtype=torch.float32)
    assert distance(narrow, plain) < 1e-2


@pytest.mark.parametrize("gelu", GELUS)
def test_gelu_survives_extremes(level: str, gelu: Gelu) -> None:
    packed = kernels.pack_linear(torch.eye(6), None, "float32")
    x = torch.tensor([[-1e4, -100.0, -0.0, 100.0, 1e4, 88.0]])
    bent = kernels.linear(x, packed, gelu=gelu)
    lost = 1e-30 if gelu == "erf" else 0.0  # far below zero the polynomial leaves a trace
    assert torch.allclose(bent, torch.tensor([[0.0, 0, 0, 100, 1e4, 88]]), rtol=0, atol=lost)


def test_gelu_itself_is_near_float64_everywhere(level: str) -> None:
    """The polynomial gives erf to 1.5e-7: half of that times x, and float32's roundings."""
    packed = kernels.pack_linear(torch.ones(1, 1), None, "float32")
    x = torch.linspace(-12, 12, 48001)[:, None]
    bent = kernels.linear(x, packed, gelu="erf")
    expected = torch.nn.functional.gelu(x.double())
    bound = 4e-7 if level == "torch" else 2e-7
    assert bool(((bent - expected).abs() <= bound * x.abs().clamp_min(1)).all())


def test_float32_weights_that_bfloat16_cannot_hold_stay_exact(level: str) -> None:
    weight = torch.randn(70, 45)
    packed = kernels.pack_linear(weight, None, "float32")
    x = torch.randn(11, 45)
    assert distance(kernels.linear(x, packed), x.double() @ weight.double().t()) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("N", "K"), [(130, 1030), (320, 256), (65, 4100)])
def test_a_row_has_the_same_bits_in_every_batch(
    native_level: str, precision: Precision, N: int, K: int
) -> None:
    packed = kernels.pack_linear(torch.randn(N, K).bfloat16(), torch.randn(N), precision)
    x = torch.randn(300, K)
    alone = torch.cat([kernels.linear(row[None], packed) for row in x[:40]])
    for M in [*range(1, 41), 64, 97, 300]:
        together = kernels.linear(x[:M], packed)
        assert torch.equal(together[:40], alone[:M]), M
    shuffled = kernels.linear(x.flip(0), packed).flip(0)
    assert torch.equal(shuffled[:40], alone)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 64), (0, 49), (64, 300), (128, 150), (49, 300)])
def test_some_outputs_have_the_bits_of_all(
    native_level: str, precision: Precision, has_bias: bool, start: int, stop: int
) -> None:
    bias = torch.randn(300) if has_bias else None
    weights = [torch.randn(300, 515).bfloat16()]
    if precision == "float32":
        weights.append(torch.randn(300, 515))  # held as float32
    for weight in weights:
        packed = kernels.pack_linear(weight, bias, precision)
        x = torch.randn(70, 515)
        whole = kernels.linear(x, packed)
        for M in (1, 5, 70):
            part = kernels.linear_part(x[:M], packed, start, stop)
            assert torch.equal(part, whole[:M, start:stop])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_some_outputs_are_near_float64(level: str, precision: Precision) -> None:
    weight, bias, x = torch.randn(100, 130).bfloat16(), torch.randn(100), torch.randn(2, 9, 130)
    packed = kernels.pack_linear(weight, bias, precision)
    expected = x.double() @ weight.double().t() + bias.double()
    part = kernels.linear_part(x, packed, 70, 90)
    assert distance(part, expected[..., 70:90]) < BOUNDS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_do_not_change_bits(native_level: str, precision: Precision) -> None:
    packed = kernels.pack_linear(torch.randn(513, 300).bfloat16(), None, precision)
    x = torch.randn(50, 300)
    before = kernels.num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            kernels.set_num_threads(count)
            results.append(kernels.linear(x, packed))
    finally:
        kernels.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rows_may_lie_apart(level: str) -> None:
    packed = kernels.pack_linear(torch.randn(33, 40).bfloat16(), None, "float32")
    wide = torch.randn(10, 100)
    y = kernels.linear(wide[:, 20:60], packed)
    assert distance(y, kernels.linear(wide[:, 20:60].contiguous(), packed)) < 1e-6


def test_leading_dimensions_are_kept(level: str) -> None:
    packed = kernels.pack_linear(torch.randn(33, 40).bfloat16(), None, "float32")
    assert kernels.linear(torch.randn(2, 3, 40), packed).shape == (2, 3, 33)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_give_no_rows(level: str, precision: Precision) -> None:
    """A chunk in the midst of a prompt wants no logits: torch's int8 ended such a step."""
    packed = kernels.pack_linear(torch.randn(33, 40).bfloat16(), None, precision)
    assert kernels.linear(torch.randn(0, 40), packed).shape == (0, 33)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_rows_are_exact(level: str, dtype: torch.dtype) -> None:
    for weight in (torch.randn(150, 77).bfloat16(), torch.randn(150, 77)):
        packed = kernels.pack_linear(weight, None, "float32")
        ids = torch.tensor([0, 149, 3, 64, 63, 3])
        assert torch.equal(kernels.embedding(ids, packed, dtype), weight[ids].to(dtype))


def test_int8_embedding_rows_are_near(level: str) -> None:
    weight = torch.randn(150, 301).bfloat16()
    packed = kernels.pack_linear(weight, None, "int8")
    ids = torch.tensor([0, 149, 3, 64])
    assert distance(kernels.embedding(ids, packed), weight[ids].float()) < 1e-2


def test_int8_agrees_with_its_reference(native_level: str) -> None:
    """The same whole numbers: only the float32 additions of the groups may differ."""
    weight = torch.randn(130, 700).bfloat16()
    x = torch.randn(20, 700)
    packed = kernels.pack_linear(weight, None, "int8")
    expected = reference.linear_int8(x, *reference.quantize_weight(weight), None)
    assert distance(kernels.linear(x, packed), expected) < 1e-6


def test_int8_survives_rows_of_zeros(level: str) -> None:
    weight = torch.zeros(66, 300).bfloat16()
    weight[0] = 1
    packed = kernels.pack_linear(weight, None, "int8")
    y = kernels.linear(torch.stack((torch.zeros(300), torch.ones(300))), packed)
    assert torch.equal(y[0], torch.zeros(66))
    assert torch.allclose(y[1, :1], torch.tensor([300.0]), rtol=1e-5)
    assert torch.equal(y[1, 1:], torch.zeros(65))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packing_in_pieces_gives_the_same_panels(
    native_level: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(200, 302).bfloat16()
    x = torch.randn(5, 302)
    whole = kernels.linear(x, kernels.pack_linear(weight, None, precision))
    monkeypatch.setattr(native, "_PIECE_BYTES", 1)  # 64 rows at a time
    assert torch.equal(kernels.linear(x, kernels.pack_linear(weight, None, precision)), whole)


def test_released_pages_are_read_again_from_the_file(native_level: str, tmp_path: Path) -> None:
    values = torch.randn(64, 4096).bfloat16()
    file = tmp_path / "weights"
    file.write_bytes(bytes(values.view(torch.uint8).numpy().data))
    mapped = torch.from_file(str(file), shared=False, size=values.numel(), dtype=torch.bfloat16)
    mapped = mapped.view(64, 4096)
    packed = kernels.pack_linear(mapped, None, "float32", release=True)
    assert torch.equal(mapped, values)
    assert torch.equal(kernels.embedding(torch.arange(64), packed), values.float())
    kernels.pack_linear(values, None, "float32", release=True)  # not of a file: left alone
    assert bool(values.any())
