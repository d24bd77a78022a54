"""Weights in 8 bits on an NVIDIA GPU: half the bytes of bfloat16, to hold and to read for a token.

    matrix = Matrix8.empty(N, K, "int8", device)   # or "float8": e4m3
    matrix[0:n].store(rows)                        # rows of any float type, quantised on the device
    linear = Linear8(matrix, "bfloat16")           # 1 to 64 tokens: weights are read once
    weight = matrix.widen(scratch)                 # many tokens: back to bfloat16, for torch.mm

Each output channel has one scale, so that y = (x values^T) scale: values of both types are exact in
bfloat16, products are added in float32, and the scale follows. A row of x has the same result in
any batch: features are added in an order that only the matrix decides.

A thread turns 8 bits into 16 for two weights that stand side by side in bfloat16, and reads 32 bits
at a time. So bytes are stored in another order (see `_pack`): a word holds features 32 apart.

    features of a block     0 1 2 ... 31 | 32 33 ... 63 | 64 65 ... 95 | 96 97 ... 127
    bytes in memory         0 32 64 96 | 1 33 65 97 | ... | 31 63 95 127

Dimensions: B tokens, N output features, K input features, S slices of the input features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from visiongate.kernels.cuda.nvrtc import has_dependent_launch
from visiongate.kernels.cuda.ops import _prefetch
from visiongate.kernels.cuda.stream import Epilogue

Storage = Literal["int8", "float8"]

MAX_TOKENS: Final = 64
BLOCK: Final = 128
"""Features whose bytes are stored in an order of their own; rows are padded to whole blocks."""

_LARGEST: Final[dict[Storage, float]] = {"int8": 127.0, "float8": 448.0}
_ROWS_AT_ONCE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Matrix8:
    """A matrix (N, K) in 8 bits.

    Attributes:
        values: int8 (N, K rounded up to whole blocks), of both storages, in `_pack`'s order.
        scale: float32 (N,).
    """

    values: Tensor
    scale: Tensor
    num_columns: int
    storage: Storage

    @classmethod
    def empty(cls, N: int, K: int, storage: Storage, device: torch.device) -> Matrix8:
        """A matrix to be filled by `store`."""
        width = -(-K // BLOCK) * BLOCK
        values = torch.empty(N, width, dtype=torch.int8, device=device)
        return cls(values, torch.empty(N, device=device), K, storage)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return len(self.values), self.num_columns

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.values.nbytes + self.scale.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Matrix8:
        return Matrix8(self.values[rows], self.scale[rows], self.num_columns, self.storage)

    def store(self, rows: Tensor) -> None:
        """Quantises rows (N, K) into this matrix: each by its own largest value."""
        per_pass = max(1, _ROWS_AT_ONCE_BYTES // (4 * self.num_columns))
        for first in range(0, len(rows), per_pass):
            part, target = rows[first : first + per_pass].float(), self[first : first + per_pass]
            largest = part.abs().amax(1)
            scale = torch.where(largest > 0, largest / _LARGEST[self.storage], 1.0)
            target.scale.copy_(scale)
            scaled = part / scale[:, None]
            if self.storage == "int8":
                bits = scaled.round().to(torch.int8)
            else:
                limit = _LARGEST["float8"]
                bits = scaled.clamp(-limit, limit).to(torch.float8_e4m3fn).view(torch.int8)
            target.values.copy_(_pack(bits))

    def lookup(self, rows: Tensor) -> Tensor:
        """Float32 (T, K): the rows with these numbers, as an embedding is looked up."""
        bits = _unpack(self.values[rows])[:, : self.num_columns]
        values = bits if self.storage == "int8" else bits.view(torch.float8_e4m3fn)
        return values.float() * self.scale[rows][:, None]

    def widen(self, out: Tensor) -> Tensor:
        """The matrix in the type of `out`, whose first N K elements it is written to."""
        N, K = self.shape
        wide = out.view(-1)[: N * K].view(N, K)
        words = self.values.view(torch.int32)
        width = min(128, triton.next_power_of_2(words.shape[1]))
        rows = 2048 // width
        _widen[(triton.cdiv(N, rows), triton.cdiv(words.shape[1], width))](
            words, self.scale, wide, N, words.shape[1], K, self.storage == "float8", rows, width
        )
        return wide


def embed_rows(tokens: Tensor, drawn: Tensor, source: Tensor, table: Matrix8, out: Tensor) -> None:
    """As `ops.embed_rows`, of a table in 8 bits: out (B, C) float32."""
    words = table.values.view(torch.int32)
    _embed8[(len(out),)](
        tokens, drawn, source, words, table.scale, out, words.shape[1], out.shape[1],
        table.storage == "float8", triton.next_power_of_2(words.shape[1]),
    )  # fmt: skip


class Linear8:
    """A linear layer for 1 to 64 tokens; the same contract as `stream.StreamLinear`.

    Attributes:
        epilogue: what `__call__` gives:
            bfloat16: (B, N) in `dtype`;
            float32: (B, N) float32;
            partials: (S, B, N) float32, one summand for each slice of K;
            silu: (B, N / 2) in `dtype`, silu(gate) * up, of a matrix with all gate rows first.
        dtype: of x; bfloat16, or float32 for the interpreter.
    """

    def __init__(
        self,
        matrix: Matrix8,
        epilogue: Epilogue,
        dtype: torch.dtype = torch.bfloat16,
        *,
        num_slices: int | None = None,
    ) -> None:
        self.matrix, self.epilogue, self.dtype = matrix, epilogue, dtype
        N, K = matrix.shape
        self.num_slices = 1
        if epilogue == "partials":
            self.num_slices = num_slices or choose_slices(N, K)
        self.has_dependent_launch = has_dependent_launch(matrix.values.device)
        self._shared_bytes = _shared_bytes(matrix.values.device)

    def output_shape(self, B: int) -> tuple[int, ...]:
        """The shape of the result for B tokens."""
        N = len(self.matrix)
        if self.epilogue == "partials":
            return self.num_slices, B, N
        return B, N // 2 if self.epilogue == "silu" else N

    def empty(self, B: int) -> Tensor:
        """A result for B tokens to be written into, not initialised."""
        is_float32 = self.epilogue in ("float32", "partials")
        dtype = torch.float32 if is_float32 else self.dtype
        return torch.empty(self.output_shape(B), dtype=dtype, device=self.matrix.values.device)

    def __call__(self, x: Tensor, out: Tensor | None = None, tile: Tile | None = None) -> Tensor:
        """The product with x (B, K), contiguous; writes `out` when given, and returns it.

        `tile` is chosen by `choose_tile` when not given; it changes the speed, never a bit.
        """
        B, K = x.shape
        N = len(self.matrix)
        out = self.empty(B) if out is None else out
        assert 1 <= B <= MAX_TOKENS
        assert (K, x.dtype) == (self.matrix.num_columns, self.dtype), "another layer's input"
        assert out.shape == self.output_shape(B)
        assert x.is_contiguous()
        assert out.is_contiguous()
        room = self._shared_bytes * 2 // x.itemsize  # tiles are counted in bfloat16
        tile = tile or choose_tile(N, B, self.epilogue, room)
        words = self.matrix.values.view(torch.int32)
        is_silu = self.epilogue == "silu"
        pdl = self.has_dependent_launch
        _linear8[(triton.cdiv(N, tile.rows), self.num_slices)](
            words,
            self.matrix.scale,
            x,
            out,
            B,
            N // 2 if is_silu else N,
            words.shape[1],
            K,
            is_silu,
            self.matrix.storage == "float8",
            x.dtype == torch.bfloat16,
            K % BLOCK == 0,
            tile.rows,
            num_token_columns(B),
            tile.stages,
            pdl,
            num_warps=tile.rows // 16,
            **({"launch_pdl": True} if pdl else {}),
        )
        return out


@dataclass(frozen=True, slots=True)
class Tile:
    """How a block of threads computes: rows of the matrix, and portions on their way at once."""

    rows: int
    stages: int

    def shared_bytes(self, B: int) -> int:
        """Shared memory of a block for B tokens: one ring of weights, one of tokens."""
        tokens = num_token_columns(B) * BLOCK * 2
        return (self.stages - 1) * self.rows * BLOCK + self.stages * tokens


def num_token_columns(B: int) -> int:
    """Columns of a product for B tokens."""
    return next(columns for columns in (16, 32, 64) if columns >= B)


def choose_slices(N: int, K: int) -> int:
    """S for partials: enough for about 128 blocks of 64 rows, of at least 512 features each."""
    slices = 1
    while slices < 8 and slices * N < 128 * 64 and K // (2 * slices) >= 512:
        slices *= 2
    return slices


def choose_tile(N: int, B: int, epilogue: Epilogue, shared_bytes: int) -> Tile:
    """The tile for B tokens on a machine with this shared memory for a multiprocessor.

    Two blocks find room on a multiprocessor, or one where two would have too few portions.
    """
    is_wide = B > 16 and N >= 128 * 128 and epilogue != "partials"
    rows = 128 if is_wide else 64
    for num_blocks in (2, 1):
        fits = [
            tile
            for stages in range(3, 7)
            if (tile := Tile(rows, stages)).shared_bytes(B) <= shared_bytes // num_blocks - 1024
        ]
        if fits:
            return fits[-1]
    return Tile(64, 2)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory of a multiprocessor."""
    if device.type != "cuda":
        return 100 << 10
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor


def _pack(bits: Tensor) -> Tensor:
    """Int8 (N, K) in the order of the kernels, (N, K rounded up to whole blocks)."""
    N, K = bits.shape
    padded = torch.nn.functional.pad(bits, (0, -K % BLOCK))
    return padded.view(N, -1, 4, BLOCK // 4).transpose(2, 3).reshape(N, -1)


def _unpack(bits: Tensor) -> Tensor:
    """The reverse of `_pack`, padding included."""
    N, width = bits.shape
    return bits.view(N, width // BLOCK, BLOCK // 4, 4).transpose(2, 3).reshape(N, width)


INT8_TO_BFLOAT16: Final = """{
.reg .b32 p<4>, m<4>, s<4>, one;
mov.b32 one, 0x3F803F80;
prmt.b32 p0, $4, $5, 0x0400;
prmt.b32 p1, $4, $5, 0x0501;
prmt.b32 p2, $4, $5, 0x0602;
prmt.b32 p3, $4, $5, 0x0703;
lop3.b32 m0, p0, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 m1, p1, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 m2, p2, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 m3, p3, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 s0, p0, 0x00800080, 0xC300C300, 0xEA;
lop3.b32 s1, p1, 0x00800080, 0xC300C300, 0xEA;
lop3.b32 s2, p2, 0x00800080, 0xC300C300, 0xEA;
lop3.b32 s3, p3, 0x00800080, 0xC300C300, 0xEA;
fma.rn.bf16x2 $0, m0, one, s0;
fma.rn.bf16x2 $1, m1, one, s1;
fma.rn.bf16x2 $2, m2, one, s2;
fma.rn.bf16x2 $3, m3, one, s3;
}"""
"""Byte j of two words to two bfloat16 in output j, exactly: the low seven bits as 128 + bits, less
128, or less 256 where the sign bit is set."""

FLOAT8_TO_BFLOAT16: Final = """{
.reg .b32 p<4>, t<4>, s<4>, m<4>, up, none;
mov.b32 up, 0x7B807B80;
mov.b32 none, 0x80008000;
prmt.b32 p0, $4, $5, 0x4000;
prmt.b32 p1, $4, $5, 0x5010;
prmt.b32 p2, $4, $5, 0x6020;
prmt.b32 p3, $4, $5, 0x7030;
shr.b32 t0, p0, 4;
shr.b32 t1, p1, 4;
shr.b32 t2, p2, 4;
shr.b32 t3, p3, 4;
and.b32 s0, p0, 0x80008000;
and.b32 s1, p1, 0x80008000;
and.b32 s2, p2, 0x80008000;
and.b32 s3, p3, 0x80008000;
lop3.b32 m0, t0, 0x07F007F0, s0, 0xEA;
lop3.b32 m1, t1, 0x07F007F0, s1, 0xEA;
lop3.b32 m2, t2, 0x07F007F0, s2, 0xEA;
lop3.b32 m3, t3, 0x07F007F0, s3, 0xEA;
fma.rn.bf16x2 $0, m0, up, none;
fma.rn.bf16x2 $1, m1, up, none;
fma.rn.bf16x2 $2, m2, up, none;
fma.rn.bf16x2 $3, m3, up, none;
}"""
"""The same for e4m3: exponent and fraction in their places, times 2^120 for the other bias."""

_INT8_ASM = tl.constexpr(INT8_TO_BFLOAT16)
_FLOAT8_ASM = tl.constexpr(FLOAT8_TO_BFLOAT16)
_QUARTER = tl.constexpr(BLOCK // 4)


@triton.jit
def _byte(words, place: tl.constexpr, FLOAT8: tl.constexpr):
    """Byte `place` of each word as float32."""
    if FLOAT8:
        byte = (words >> (8 * place)) & 0xFF
        size = ((byte & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        return tl.where(byte >= 0x80, -size, size)
    return ((words << (24 - 8 * place)) >> 24).to(tl.float32)


@triton.jit
def _four(words, FLOAT8: tl.constexpr, BFLOAT16: tl.constexpr):
    """The four bytes of each word, of the type that is multiplied."""
    if BFLOAT16:
        if FLOAT8:
            return tl.inline_asm_elementwise(
                _FLOAT8_ASM, "=r,=r,=r,=r,r,r", [words],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        else:  # noqa: RET505  # the branches are chosen when the kernel is compiled
            return tl.inline_asm_elementwise(
                _INT8_ASM, "=r,=r,=r,=r,r,r", [words],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
    else:
        return (
            _byte(words, 0, FLOAT8),
            _byte(words, 1, FLOAT8),
            _byte(words, 2, FLOAT8),
            _byte(words, 3, FLOAT8),
        )


@triton.jit(do_not_specialize=["B"])
def _linear8(
    words, scale, x, out, B, N, WORDS, K, SILU: tl.constexpr, FLOAT8: tl.constexpr,
    BFLOAT16: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (rows, slice). With SILU, N counts results, and rows are gate 0, up 0, gate 1, ..."""
    part = tl.program_id(1)
    slices = tl.num_programs(1)
    r = tl.arange(0, ROWS)
    if SILU:
        n = tl.minimum(tl.program_id(0) * (ROWS // 2) + r // 2, N - 1) + r % 2 * N
    else:
        n = tl.minimum(tl.program_id(0) * ROWS + r, N - 1)
    blocks = WORDS // _QUARTER
    first = blocks * part // slices
    last = blocks * (part + 1) // slices
    row_at = words + n.to(tl.int64) * WORDS
    s = tl.load(scale + n)
    if PDL:
        gdc_launch_dependents()
        near = tl.minimum(first + tl.arange(0, 8), last - 1) * _QUARTER
        _prefetch(row_at[:, None] + near[None, :])
        gdc_wait()
    b = tl.arange(0, TOKENS)
    q = tl.arange(0, _QUARTER)
    there = (b < B)[:, None]
    words_at = row_at[:, None] + q[None, :]
    x_at = x + b[:, None] * K + q[None, :]
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    for t in tl.range(first, last, num_stages=STAGES):
        w = tl.load(words_at + t * _QUARTER, eviction_policy="evict_first")
        k = t * 4 * _QUARTER
        if EVEN:
            x0 = tl.load(x_at + k, mask=there, other=0.0)
            x1 = tl.load(x_at + k + _QUARTER, mask=there, other=0.0)
            x2 = tl.load(x_at + k + 2 * _QUARTER, mask=there, other=0.0)
            x3 = tl.load(x_at + k + 3 * _QUARTER, mask=there, other=0.0)
        else:
            left = K - k - q[None, :]
            x0 = tl.load(x_at + k, mask=there & (left > 0), other=0.0)
            x1 = tl.load(x_at + k + _QUARTER, mask=there & (left > _QUARTER), other=0.0)
            x2 = tl.load(x_at + k + 2 * _QUARTER, mask=there & (left > 2 * _QUARTER), other=0.0)
            x3 = tl.load(x_at + k + 3 * _QUARTER, mask=there & (left > 3 * _QUARTER), other=0.0)
        w0, w1, w2, w3 = _four(w, FLOAT8, BFLOAT16)
        acc = tl.dot(w0, tl.trans(x0), acc, input_precision="ieee")
        acc = tl.dot(w1, tl.trans(x1), acc, input_precision="ieee")
        acc = tl.dot(w2, tl.trans(x2), acc, input_precision="ieee")
        acc = tl.dot(w3, tl.trans(x3), acc, input_precision="ieee")
    y = acc * s[:, None]
    if SILU:
        c = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        gate, up = tl.split(tl.trans(tl.reshape(y, [ROWS // 2, 2, TOKENS]), 0, 2, 1))
        y = gate / (1 + tl.exp(-gate)) * up
    else:
        c = tl.program_id(0) * ROWS + r
    to = out + (part * B + b).to(tl.int64)[None, :] * N + c[:, None]
    tl.store(to, y.to(out.dtype.element_ty), mask=(b < B)[None, :] & (c < N)[:, None])


@triton.jit
def _widen(
    words, scale, out, N, WORDS, K, FLOAT8: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Program (rows, part of them): words to four elements each, times the row's scale."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row = n.to(tl.int64)[:, None]
    there = (n < N)[:, None] & (i < WORDS)[None, :]
    w = tl.load(words + row * WORDS + i[None, :], mask=there, other=0)
    s = tl.load(scale + n, mask=n < N, other=0.0)[:, None]
    k = (i // _QUARTER * (4 * _QUARTER) + i % _QUARTER)[None, :]
    for place in tl.static_range(4):
        at = k + place * _QUARTER
        y = (_byte(w, place, FLOAT8) * s).to(out.dtype.element_ty)
        tl.store(out + row * K + at, y, mask=there & (at < K))


@triton.jit
def _embed8(
    tokens, drawn, source, words, scale, out, WORDS, C, FLOAT8: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    where = tl.load(source + row)
    if where >= 0:
        token = tl.load(drawn + where)
    i = tl.arange(0, WIDTH)
    w = tl.load(words + token.to(tl.int64) * WORDS + i, mask=i < WORDS, other=0)
    s = tl.load(scale + token)
    c = i // _QUARTER * (4 * _QUARTER) + i % _QUARTER
    for place in tl.static_range(4):
        at = c + place * _QUARTER
        tl.store(out + row * C + at, _byte(w, place, FLOAT8) * s, mask=(i < WORDS) & (at < C))
