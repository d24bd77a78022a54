"""Weights in 8 bits against plain torch: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import functools
import os
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

IS_CUDA = torch.cuda.is_available()
if not IS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

pytest.importorskip("triton")

from visiongate.kernels.cuda import ops, weight8  # noqa: E402  # after the variable is set
from visiongate.kernels.cuda.stream import Epilogue  # noqa: E402
from visiongate.kernels.cuda.weight8 import Linear8, Matrix8, Storage, Tile  # noqa: E402

DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
DTYPE = torch.bfloat16 if IS_CUDA else torch.float32
TOLERANCE = {torch.float32: 2e-5 if IS_CUDA else 1e-6, torch.bfloat16: 4e-3}
"""Float32: another order of additions, and on a card tensor cores that cut off what they add.
Bfloat16: the result's own rounding, 2^-8 at most."""

STORAGES: list[Storage] = ["int8", "float8"]
EPILOGUES: list[Epilogue] = ["bfloat16", "float32", "partials", "silu"]
cuda = pytest.mark.skipif(not IS_CUDA, reason="needs an NVIDIA GPU")


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)


@functools.cache
def matrix_of(N: int, K: int, storage: Storage) -> Matrix8:
    matrix = Matrix8.empty(N, K, storage, DEVICE)
    matrix.store(randn(N, K) / K**0.5)
    return matrix


def values_of(matrix: Matrix8) -> Tensor:
    """Float64 (N, K)."""
    return matrix.lookup(torch.arange(len(matrix), device=DEVICE)).double()


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def expected_of(matrix: Matrix8, epilogue: Epilogue, x: Tensor) -> Tensor:
    y = x.double() @ values_of(matrix).t()
    if epilogue != "silu":
        return y
    gate, up = y.chunk(2, 1)
    return F.silu(gate) * up


@pytest.mark.parametrize("storage", STORAGES)
def test_a_weight_is_kept_to_half_a_step(storage: Storage) -> None:
    """Of int8's even steps, or of e4m3's: an eighth of the power of two below, 2^-9 at least."""
    weight = randn(37, 200).float()
    weight[3] = 0
    weight[4, 7] = 100.0  # one outlier costs its own row only
    matrix = Matrix8.empty(37, 200, storage, DEVICE)
    matrix.store(weight)
    in_units = weight / matrix.scale[:, None]
    if storage == "int8":
        step = torch.ones_like(in_units)
    else:
        step = torch.exp2(in_units.abs().log2().floor().clamp(min=-6)) / 8
    distance = (values_of(matrix) - weight).abs() / matrix.scale[:, None]
    assert (distance <= step * 0.5001).all()
    assert not values_of(matrix)[3].any()


def test_int8_keeps_whole_numbers_as_they_are() -> None:
    weight = torch.arange(-127.0, 128.0, device=DEVICE).repeat(2, 1) / 64
    matrix = Matrix8.empty(2, 255, "int8", DEVICE)
    matrix.store(weight)
    assert torch.equal(values_of(matrix).float(), weight)


def test_rows_may_be_stored_part_by_part() -> None:
    weight = randn(50, 130)
    whole, parts = (Matrix8.empty(50, 130, "int8", DEVICE) for _ in range(2))
    whole.store(weight)
    parts[30:].store(weight[30:])
    parts[:30].store(weight[:30])
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.scale, parts.scale)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("N", "K"), [(5, 128), (33, 200), (3, 4500)])
def test_widen_gives_back_what_is_stored(storage: Storage, N: int, K: int) -> None:
    matrix = matrix_of(N, K, storage)
    room = torch.full((N * K + 9,), 7.0, device=DEVICE, dtype=DTYPE)
    wide = matrix.widen(room)
    assert torch.equal(wide, values_of(matrix).to(DTYPE))
    assert wide.data_ptr() == room.data_ptr()
    assert (room[N * K :] == 7).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_embed_rows_reads_host_or_drawn_tokens(storage: Storage) -> None:
    table = matrix_of(50, 200, storage)
    tokens = torch.tensor([4, 9, 0], dtype=torch.int32, device=DEVICE)
    drawn = torch.tensor([11, 12, 13], dtype=torch.int32, device=DEVICE)
    source = torch.tensor([-1, 2, 0], dtype=torch.int32, device=DEVICE)
    out = torch.full((3, 200), torch.nan, device=DEVICE)
    weight8.embed_rows(tokens, drawn, source, table, out)
    assert torch.equal(out, table.lookup(torch.tensor([4, 13, 11], device=DEVICE)))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("B", [1, 3, 17, 64])
@pytest.mark.parametrize(("N", "K"), [(64, 128), (90, 328), (300, 640)])
def test_the_product_of_few_rows(
    storage: Storage, epilogue: Epilogue, B: int, N: int, K: int
) -> None:
    matrix = matrix_of(N, K, storage)
    slices = 3 if epilogue == "partials" else None
    linear = Linear8(matrix, epilogue, DTYPE, num_slices=slices)
    x = randn(B, K, seed=5)
    out = linear.empty(B).fill_(torch.nan)
    assert linear(x, out) is out
    found = out.double().sum(0) if epilogue == "partials" else out
    rounding = TOLERANCE[out.dtype if epilogue != "partials" else torch.float32]
    assert error(found, expected_of(matrix, epilogue, x)) < rounding


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_a_row_has_the_same_bits_in_any_company_and_any_tile(
    storage: Storage, epilogue: Epilogue
) -> None:
    """The interpreter's products are numpy's, whose bits depend on their width: 16, 32 or 64."""
    N, K = 140, 896
    slices = 2 if epilogue == "partials" else None
    linear = Linear8(matrix_of(N, K, storage), epilogue, DTYPE, num_slices=slices)
    x = randn(64, K)

    def rows(first: int, last: int, tile: Tile | None = None) -> Tensor:
        out = linear(x[first:last].contiguous(), tile=tile)
        return out.view(linear.num_slices, last - first, -1)

    for largest, others in ((16, (1, 3, 9)), (32, (17, 20)), (64, (33, 50))):
        together = rows(0, largest)
        for B in others:
            assert torch.equal(rows(5, 5 + B), together[:, 5 : 5 + B])
        if IS_CUDA:
            assert torch.equal(together, rows(0, 64)[:, :largest])
            for tile in (Tile(64, 2), Tile(128, 4)):
                assert torch.equal(rows(0, largest, tile), together)


def test_partial_sums_go_into_the_stream_in_order() -> None:
    linear = Linear8(matrix_of(96, 640, "int8"), "partials", DTYPE, num_slices=4)
    x, residual = randn(3, 640), randn(3, 96).float()
    parts = linear(x)
    expected = residual.clone()
    for part in parts:
        expected += part
    ops.add_norm(residual, parts, randn(96), 1e-6, torch.empty(3, 96, device=DEVICE, dtype=DTYPE))
    assert torch.equal(residual, expected)


def test_slices_and_tiles_of_the_published_shapes() -> None:
    """S depends on the matrix alone; a tile always fits the machine it is chosen for."""
    assert weight8.choose_slices(2560, 4096) == 4
    assert weight8.choose_slices(2560, 9728) == 4
    assert weight8.choose_slices(64, 128) == 1
    for shared in (228 << 10, 164 << 10, 100 << 10):
        for N in (6144, 19456, 2560, 151936):
            for epilogue in EPILOGUES:
                for B in (1, 16, 17, 64):
                    tile = weight8.choose_tile(N, B, epilogue, shared)
                    assert tile.shared_bytes(B) <= shared - 1024
                    assert tile.stages >= 3


class Ptx:
    """Runs the few instructions that turn 8 bits into 16, for one pair of words."""

    def __init__(self, source: str, first: int, second: int) -> None:
        self.registers = {"$4": first, "$5": second}
        for line in source.strip("{}\n").split("\n"):
            name, *operands = re.split(r"[ ,;]+", line.strip(" ;"))
            if name != ".reg":
                to, *given = operands
                self.registers[to] = self.compute(name, [self.value(word) for word in given])

    def value(self, word: str) -> int:
        return self.registers[word] if word in self.registers else int(word, 0)

    def compute(self, name: str, given: list[int]) -> int:
        if name == "mov.b32":
            return given[0]
        if name == "and.b32":
            return given[0] & given[1]
        if name == "shr.b32":
            return given[0] >> given[1]
        if name == "prmt.b32":
            low, high, selector = given
            words = (low | high << 32).to_bytes(8, "little")
            picked = [words[selector >> 4 * place & 7] for place in range(4)]
            return int.from_bytes(bytes(picked), "little")
        if name == "lop3.b32":
            a, b, c, table = given
            bits = [table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1 for i in W]
            return sum(bit << i for i, bit in enumerate(bits))
        assert name == "fma.rn.bf16x2"
        x, y, z = (halves(word).double() for word in given)
        exact = x * y + z
        rounded = exact.to(torch.bfloat16)
        assert torch.equal(rounded.double(), exact)
        return int.from_bytes(rounded.view(torch.int16).numpy().tobytes(), "little")


W = range(32)


def halves(word: int) -> Tensor:
    """A register as two bfloat16."""
    return torch.frombuffer(bytearray(word.to_bytes(4, "little")), dtype=torch.bfloat16)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_instructions_turn_every_byte_into_its_bfloat16(storage: Storage) -> None:
    """What no interpreter of Triton runs, run here: each of the 256 bytes in each place."""
    is_int8 = storage == "int8"
    source = weight8.INT8_TO_BFLOAT16 if is_int8 else weight8.FLOAT8_TO_BFLOAT16
    for byte in range(256):
        if not is_int8 and byte & 0x7F == 0x7F:
            continue  # e4m3's NaN, which is never stored
        others = [(byte + 37 * place + 11) % 251 for place in range(1, 8)]
        eight = torch.tensor([byte, *others], dtype=torch.uint8)
        if not is_int8:
            eight[eight % 128 == 127] = 0
        first, second = (int(word) & 0xFFFFFFFF for word in eight.view(torch.int32))
        done = Ptx(source, first, second).registers
        stored = eight.view(torch.int8 if is_int8 else torch.float8_e4m3fn)
        for place in range(4):
            expected = stored[[place, 4 + place]].to(torch.bfloat16)
            assert torch.equal(halves(done[f"${place}"]), expected), (byte, place)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("N", "K", "epilogue"),
    [
        (6144, 2560, "bfloat16"),
        (2560, 4096, "partials"),
        (19456, 2560, "silu"),
        (2560, 9728, "partials"),
        (151936, 2560, "float32"),
    ],
)
def test_the_published_shapes_on_the_card(
    storage: Storage, N: int, K: int, epilogue: Epilogue
) -> None:
    """Right at every number of rows, and a row's bits the same at all of them, in a graph too."""
    matrix = Matrix8.empty(N, K, storage, DEVICE)
    matrix.store(torch.randn(N, K, device=DEVICE, dtype=DTYPE) * 0.02)
    linear = Linear8(matrix, epilogue)
    x = torch.randn(64, K, device=DEVICE, dtype=DTYPE)
    together = linear(x).view(linear.num_slices, 64, -1)
    whole = together.double().sum(0)
    exact = torch.cat(
        [x.double() @ values_of(matrix[n : n + 8192]).t() for n in range(0, N, 8192)], 1
    )
    if epilogue == "silu":
        gate, up = exact.chunk(2, 1)
        exact = F.silu(gate) * up
    assert error(whole, exact) < TOLERANCE[linear.empty(1).dtype]
    for B in (1, 2, 8, 16, 17, 32, 33, 48):
        alone = linear(x[7 : 7 + B].contiguous()).view(linear.num_slices, B, -1)
        assert torch.equal(alone, together[:, 7 : 7 + B]), B
    out = linear.empty(64)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            linear(x, out)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out.view_as(together), together)
