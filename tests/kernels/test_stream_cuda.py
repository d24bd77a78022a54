"""Decode's linear layers on a GPU against float64, and their promises; plans anywhere."""

from __future__ import annotations

import itertools
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visiongate.kernels.cuda import nvrtc, stream
from visiongate.kernels.cuda.stream import Epilogue, Machine, StreamLinear, add_norm

H100 = Machine(num_multiprocessors=132, shared_bytes=228 << 10)
A100 = Machine(num_multiprocessors=108, shared_bytes=164 << 10)
RTX_4090 = Machine(num_multiprocessors=128, shared_bytes=100 << 10)

# (N, K, epilogue) of the 4B, 2B and 8B models and of the embedded one, and odd ones.
SHAPES: list[tuple[int, int, Epilogue]] = [
    (6144, 2560, "bfloat16"),
    (2560, 4096, "partials"),
    (19456, 2560, "silu"),
    (2560, 9728, "partials"),
    (151936, 2560, "float32"),
    (4096, 2048, "bfloat16"),
    (2048, 2048, "partials"),
    (12288, 2048, "silu"),
    (2048, 6144, "partials"),
    (24576, 4096, "silu"),
    (4096, 12288, "partials"),
    (640, 320, "bfloat16"),
    (320, 384, "partials"),
    (1664, 320, "silu"),
    (320, 832, "partials"),
    (3968, 320, "float32"),
    (16, 64, "bfloat16"),
    (48, 192, "silu"),
]


@pytest.mark.parametrize("machine", [H100, A100, RTX_4090])
@pytest.mark.parametrize(("N", "K", "epilogue"), SHAPES)
def test_every_unit_is_computed_exactly_once(
    N: int, K: int, epilogue: Epilogue, machine: Machine
) -> None:
    slices = stream.choose_slices(N, K, machine.num_multiprocessors)
    slices = slices if epilogue == "partials" else 1
    for B in (1, 2, 8, 9, 16, 17, 32, 33, 64):
        plan = stream.make_plan(N, K, B, epilogue, slices, machine)
        assert plan.num_blocks <= machine.num_multiprocessors
        assert 3 <= plan.stages <= 16
        assert plan.shared_bytes <= machine.block_bytes(plan.blocks_at_once)
        assert 8 * plan.token_tiles >= B
        done = [
            (index, panel + i)
            for block in range(plan.num_blocks)
            for index, panel, count in stream.passes(
                N // 16, stream.block_units(slices * N // 16, plan.num_blocks, block), plan.panels
            )
            for i in range(count)
        ]
        assert sorted(done) == list(itertools.product(range(slices), range(N // 16)))


@pytest.mark.parametrize(
    ("machine", "capability"), [(H100, (9, 0)), (A100, (8, 0)), (RTX_4090, (8, 9))]
)
def test_every_plan_of_the_4b_model_compiles_to_legal_code(
    machine: Machine, capability: tuple[int, int], tmp_path: Path
) -> None:
    """ptxas 13.0 may give a copy a uniform register in its address beside its cache policy, which
    the card refuses at run time (see stream.cu)."""
    if not nvrtc.has_compiler():
        pytest.skip("NVRTC is not installed")
    triton = find_spec("triton")
    folder = Path(triton.origin or "").parent if triton else tmp_path
    disassembler = folder / "backends/nvidia/bin/cuobjdump"
    plans = set()
    for N, K, epilogue in SHAPES[:5]:
        slices = stream.choose_slices(N, K, machine.num_multiprocessors)
        slices = slices if epilogue == "partials" else 1
        for B in (1, 8, 32, 64) if machine is H100 else (64,):
            plans.add(stream.make_plan(N, K, B, epilogue, slices, machine).defines)
    for defines in plans:
        code = nvrtc.compile_source(nvrtc.source_text("stream.cu"), capability, defines)
        if disassembler.exists():
            (tmp_path / "kernel.cubin").write_bytes(code)
            command = [str(disassembler), "-sass", str(tmp_path / "kernel.cubin")]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            copies = [line for line in text.splitlines() if "LDGSTS" in line]
            assert copies
            assert not [line for line in copies if re.search(r"\[R\d+\+UR", line)], defines


@pytest.mark.parametrize("K", [64, 320, 832, 2560, 9728])
@pytest.mark.parametrize("slices", [1, 2, 4, 8])
def test_slices_cover_every_column_exactly_once(K: int, slices: int) -> None:
    parts = [stream.slice_columns(K, min(slices, K // 64), i) for i in range(min(slices, K // 64))]
    assert [k for part in parts for k in part] == list(range(K))
    assert all(len(part) % 64 == 0 and part for part in parts)


def test_a_pass_never_crosses_into_another_slice() -> None:
    for index, panel, count in stream.passes(10, range(3, 38), 4):
        assert 1 <= count <= 4
        assert 0 <= panel <= 10 - count
        assert 0 <= index < 4


@pytest.mark.parametrize("shape", [(17, 64), (16, 72), (0, 64), (16, 0)])
def test_other_shapes_are_not_supported(shape: tuple[int, int]) -> None:
    assert not stream.supports(*shape)


# On a GPU

cuda = pytest.mark.cuda
BATCHES = (1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 47, 63, 64)
GPU_SHAPES = [s for s in SHAPES if s[0] != 24576 and s[1] != 12288]


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal bfloat16 values on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    values = torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32)
    return (values * scale).bfloat16()


def exact(x: Tensor, linear: StreamLinear) -> Tensor:
    """The result in float64, partials added."""
    product = x.double() @ linear.weight.double().T
    if linear.epilogue != "silu":
        return product
    gate, up = product.chunk(2, dim=1)
    return gate * torch.sigmoid(gate) * up


def error(y: Tensor, wanted: Tensor) -> float:
    return float((y.double() - wanted).norm() / wanted.norm())


@cuda
@pytest.mark.parametrize(("N", "K", "epilogue"), GPU_SHAPES)
def test_products_equal_float64_up_to_rounding(N: int, K: int, epilogue: Epilogue) -> None:
    """bfloat16 results carry one rounding (relative 2**-9), float32 ones sums of K terms."""
    linear = StreamLinear(draw(N, K, seed=1, scale=K**-0.5), epilogue)
    x = draw(64, K, seed=2)
    wanted = exact(x, linear)
    for B in BATCHES:
        out = torch.full_like(linear.empty(B), float("nan"))
        y = linear(x[:B].contiguous(), out)
        y = y.sum(0) if epilogue == "partials" else y
        limit = 1e-5 if epilogue in ("float32", "partials") else 2.0**-8
        assert error(y, wanted[:B]) < limit, B


@cuda
@pytest.mark.parametrize(("N", "K", "epilogue"), GPU_SHAPES)
def test_a_row_has_the_same_bits_in_every_batch(N: int, K: int, epilogue: Epilogue) -> None:
    """At every B, wherever the row stands, whatever the others hold, and twice in a row."""
    linear = StreamLinear(draw(N, K, seed=3, scale=K**-0.5), epilogue)
    row = draw(1, K, seed=4)
    alone = linear(row)
    for B in BATCHES:
        for place in {0, B // 2, B - 1}:
            x = draw(B, K, seed=5 + B, scale=30.0)
            x[(place + 1) % B] = float("inf")
            x[place] = row[0]
            for _ in range(2):
                assert torch.equal(linear(x)[..., place, :], alone[..., 0, :]), (B, place)


@cuda
def test_partials_equal_the_slices_own_products() -> None:
    N, K = 2560, 9728
    linear = StreamLinear(draw(N, K, seed=6, scale=K**-0.5), "partials")
    x = draw(7, K, seed=7)
    y = linear(x)
    assert y.shape == (linear.num_slices, 7, N)
    for index in range(linear.num_slices):
        part = stream.slice_columns(K, linear.num_slices, index)
        columns = slice(part.start, part.stop)
        wanted = x[:, columns].double() @ linear.weight[:, columns].double().T
        assert error(y[index], wanted) < 1e-5


@cuda
@pytest.mark.parametrize("epilogue", ["bfloat16", "float32", "partials", "silu"])
def test_nothing_outside_the_tensors_is_read_or_written(epilogue: Epilogue) -> None:
    """Not-a-numbers around weight and tokens do not get in; the surroundings of out stay."""
    N, K = 528, 704
    for B in BATCHES:
        room = torch.full(((N + 64) * K,), float("nan"), dtype=torch.bfloat16, device="cuda")
        weight = room[32 * K : (32 + N) * K].view(N, K)
        weight.copy_(draw(N, K, seed=8, scale=K**-0.5))
        linear = StreamLinear(weight, epilogue)
        wide = torch.full((B + 64, K + 64), float("nan"), dtype=torch.bfloat16, device="cuda")
        x = wide[32 : 32 + B, 32 : 32 + K]
        x.copy_(draw(B, K, seed=9))
        shape, empty = linear.output_shape(B), linear.empty(B)
        around = torch.full((empty.numel() + 8192,), 77.0, dtype=empty.dtype, device="cuda")
        out = around[4096:-4096].view(shape)
        out.fill_(float("nan"))
        linear(x, out)
        y = out.sum(0) if epilogue == "partials" else out
        assert error(y, exact(x, linear)) < 2.0**-8
        assert bool((around[:4096] == 77).all())
        assert bool((around[-4096:] == 77).all())


@cuda
def test_misuse_is_refused() -> None:
    weight = draw(64, 128, seed=10)
    linear = StreamLinear(weight)
    for bad in (
        lambda: StreamLinear(weight.float()),
        lambda: StreamLinear(weight[:, :64]),
        lambda: StreamLinear(weight[:24]),
        lambda: StreamLinear(weight.cpu()),
        lambda: StreamLinear(weight, num_slices=2),
        lambda: linear(draw(65, 128, seed=11)),
        lambda: linear(draw(2, 64, seed=11)),
        lambda: linear(draw(2, 136, seed=11)[:, 4:132]),
        lambda: linear(draw(2, 128, seed=11), torch.empty(3, 64, device="cuda")),
    ):
        with pytest.raises(ValueError, match=r"."):
            bad()


@cuda
@pytest.mark.parametrize("C", [64, 320, 2048, 2560, 4096, 8192])
@pytest.mark.parametrize("num_slices", [0, 1, 4])
def test_add_norm_equals_its_definition(C: int, num_slices: int) -> None:
    torch.manual_seed(12)
    scale = draw(C, seed=13)
    for B in (1, 2, 33, 64):
        h = torch.randn(B, C, device="cuda")
        partials = torch.randn(num_slices, B, C, device="cuda") if num_slices else None
        wanted_h = h.clone()
        for index in range(num_slices):
            assert partials is not None
            wanted_h += partials[index]
        alone = h[:1].clone()
        out = torch.full((B, C), float("nan"), dtype=torch.bfloat16, device="cuda")
        add_norm(h, partials, scale, 1e-6, out)
        assert torch.equal(h, wanted_h)
        wide = wanted_h.double()
        wanted = wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt() * scale.double()
        assert error(out, wanted) < 2.0**-8
        first = None if partials is None else partials[:, :1].contiguous()
        assert torch.equal(add_norm(alone, first, scale, 1e-6)[0], out[0])


@cuda
@pytest.mark.parametrize("B", [1, 8, 33, 64])
def test_a_captured_chain_of_dependent_launches_equals_the_same_calls_one_by_one(B: int) -> None:
    """Layers in one graph, started before their forerunners end, replayed on fresh inputs."""
    C, F, layers = 512, 1536, 6
    scale = draw(C, seed=14)
    blocks = [
        (
            StreamLinear(draw(2 * F, C, seed=20 + i, scale=C**-0.5), "silu"),
            StreamLinear(draw(C, F, seed=40 + i, scale=F**-0.5), "partials"),
        )
        for i in range(layers)
    ]
    h, y = torch.zeros(B, C, device="cuda"), torch.zeros(B, C, device="cuda").bfloat16()
    inner = blocks[0][0].empty(B)
    partials = blocks[0][1].empty(B)

    def forward(is_eager: bool) -> None:
        add_norm(h, None, scale, 1e-6, y)
        for gate_up, down in blocks:
            for call in (
                lambda g=gate_up: g(y, inner),
                lambda d=down: d(inner, partials),
                lambda: add_norm(h, partials, scale, 1e-6, y),
            ):
                call()
                if is_eager:
                    torch.cuda.synchronize()

    forward(is_eager=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(is_eager=False)
    for seed in range(5):
        start = draw(B, C, seed=60 + seed).float()
        h.copy_(start)
        forward(is_eager=True)
        wanted, wanted_y = h.clone(), y.clone()
        h.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(h, wanted)
        assert torch.equal(y, wanted_y)
