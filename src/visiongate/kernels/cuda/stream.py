"""Decode's linear layers on an NVIDIA GPU: weights are read once, at the speed of device memory.

    linear = StreamLinear(weight, "bfloat16")      # (N, K) bfloat16, as published
    y = linear(x)                                  # x (B, K), B = 1..64

    add_norm(h, partials, scale, out, eps)         # h += sum of partials; out = RMSNorm(h) scale

`stream.cu` says how it works; here is the plan (who computes what, in what portions).

A row's result has the same bits in every batch, at every B, on a given device.

Every launch goes to torch's current stream as a programmatic dependent launch: it may start before
the kernels ahead of it end, reads nothing but weights until they have, and lets the next one do the
same. So weights must be complete before the first launch (synchronise once after loading), and a
kernel of somebody else's on the stream that is launched in the same way must wait for what is
before it (griddepcontrol.wait), whether it needs that or not.

Dimensions: B tokens, N output features, K input features, S slices of the input features.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visiongate.kernels.cuda.nvrtc import Kernel, load_kernel, pointer, source_text

Epilogue = Literal["bfloat16", "float32", "partials", "silu"]

MAX_TOKENS = 64
PANEL = 16  # weight rows of one unit of work
_MAX_PANELS = 5  # of a pass

_EPILOGUES: dict[Epilogue, int] = {"bfloat16": 0, "float32": 1, "partials": 1, "silu": 2}


def supports(N: int, K: int, epilogue: Epilogue = "bfloat16") -> bool:
    """Whether `StreamLinear` takes a weight (N, K): K a multiple of 64, N one of 16."""
    return N > 0 and K > 0 and N % PANEL == 0 and K % 64 == 0 and N * K < 1 << 40


class StreamLinear:
    """A linear layer for 1 to 64 tokens.

    Attributes:
        weight: (N, K) bfloat16, contiguous, on a GPU; shared, never copied or changed.
        epilogue: what `__call__` gives:
            bfloat16: (B, N) bfloat16;
            float32: (B, N) float32;
            partials: (S, B, N) float32, one summand for each slice of K; `add_norm` adds them;
            silu: (B, N / 2) bfloat16, silu(gate) * up, of a weight with all gate rows first.
        num_slices: S; 1 but for partials.
    """

    def __init__(
        self, weight: Tensor, epilogue: Epilogue = "bfloat16", *, num_slices: int | None = None
    ) -> None:
        """Checks the weight and plans; compiles nothing (see `prepare`).

        `num_slices` is chosen by `choose_slices` when not given. Raises ValueError for a weight
        that is not bfloat16, contiguous, 16-byte aligned and on a GPU, for a shape that `supports`
        refuses, and for slices without partials.
        """
        if weight.dtype != torch.bfloat16 or weight.dim() != 2 or not weight.is_contiguous():
            raise ValueError("the weight must be a contiguous (N, K) bfloat16 matrix")
        if not weight.is_cuda or weight.data_ptr() % 16:
            raise ValueError("the weight must be on a GPU, at a multiple of 16 bytes")
        N, K = weight.shape
        if not supports(N, K, epilogue):
            raise ValueError(f"({N}, {K}) is not supported: N % {PANEL} and K % 64 must be 0")
        self.weight = weight
        self.epilogue: Epilogue = epilogue
        self._machine = Machine.of(weight.device)
        if epilogue == "partials":
            self.num_slices = num_slices or choose_slices(N, K, self._machine.num_multiprocessors)
        else:
            self.num_slices = 1
            if num_slices not in (None, 1):
                raise ValueError(f"{epilogue} has one slice, not {num_slices}")
        if not 1 <= self.num_slices <= K // 64:
            raise ValueError(f"K = {K} has at most {K // 64} slices, not {self.num_slices}")
        self._launches: dict[int, tuple[Kernel, Plan]] = {}

    def output_shape(self, B: int) -> tuple[int, ...]:
        """The shape of the result for B tokens."""
        N = self.weight.shape[0]
        if self.epilogue == "partials":
            return self.num_slices, B, N
        return B, N // 2 if self.epilogue == "silu" else N

    def empty(self, B: int) -> Tensor:
        """A result for B tokens to be written into, not initialised."""
        is_float32 = self.epilogue in ("float32", "partials")
        dtype = torch.float32 if is_float32 else torch.bfloat16
        return torch.empty(self.output_shape(B), dtype=dtype, device=self.weight.device)

    def plan(self, B: int) -> Plan:
        """How B tokens are computed. Raises ValueError unless B is in 1..64."""
        N, K = self.weight.shape
        return make_plan(N, K, B, self.epilogue, self.num_slices, self._machine)

    def prepare(self, B: int) -> None:
        """Compiles (or loads) the kernel for B tokens; do so before capturing a graph."""
        if B not in self._launches:
            plan = self.plan(B)
            kernel = load_kernel(
                self.weight.device,
                "stream_linear",
                source_text("stream.cu"),
                plan.defines,
            )
            kernel.allow_shared_memory(plan.shared_bytes)
            self._launches[B] = kernel, plan

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The product with x (B, K), bfloat16, rows 16-byte aligned, any distance apart.

        Writes `out` (contiguous, of `output_shape`) when given, and returns it. Raises ValueError
        for tensors of another shape, type, device or alignment.
        """
        B, K = x.shape
        if self.weight.shape[1] != K or x.dtype != torch.bfloat16 or x.device != self.weight.device:
            raise ValueError(f"x must be (B, {self.weight.shape[1]}) bfloat16 on the weight's GPU")
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            raise ValueError("the rows of x must be contiguous and 16-byte aligned")
        if out is None:
            out = self.empty(B)
        elif out.shape != self.output_shape(B) or not out.is_contiguous():
            raise ValueError(f"out must be contiguous and of shape {self.output_shape(B)}")
        elif out.dtype != self._output_dtype or out.device != x.device:
            raise ValueError(f"out must be {self._output_dtype} on {x.device}")
        self.prepare(B)
        kernel, plan = self._launches[B]
        kernel.launch(
            plan.num_blocks,
            plan.num_threads,
            plan.shared_bytes,
            [
                *(pointer(t) for t in (self.weight, x, out)),
                *(ctypes.c_int(v) for v in (B, *self.weight.shape, self.num_slices, x.stride(0))),
            ],
        )
        return out

    @property
    def _output_dtype(self) -> torch.dtype:
        return torch.float32 if self.epilogue in ("float32", "partials") else torch.bfloat16


def add_norm(
    h: Tensor, partials: Tensor | None, scale: Tensor, eps: float, out: Tensor | None = None
) -> Tensor:
    """Adds partials into h, one after the other, and gives RMSNorm(h) * scale as bfloat16 (B, C).

    h (B, C) float32 is changed in place; partials (S, B, C) float32, as `StreamLinear` gives them,
    or None to normalise alone; scale (C,) bfloat16. All contiguous; C a multiple of 4. Raises
    ValueError otherwise.
    """
    B, C = h.shape
    num_slices = 0 if partials is None else partials.shape[0]
    if out is None:
        out = torch.empty((B, C), dtype=torch.bfloat16, device=h.device)
    wanted: list[tuple[Tensor, tuple[int, ...], torch.dtype]] = [
        (h, (B, C), torch.float32),
        (out, (B, C), torch.bfloat16),
    ]
    wanted.append((scale, (C,), torch.bfloat16))
    if partials is not None:
        wanted.append((partials, (num_slices, B, C), torch.float32))
    for tensor, shape, dtype in wanted:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != h.device:
            raise ValueError(f"expected {dtype} of shape {shape}, found {tuple(tensor.shape)}")
        if not tensor.is_contiguous() or tensor.data_ptr() % 16 or not tensor.is_cuda:
            raise ValueError("tensors must be contiguous, 16-byte aligned and on one GPU")
    if C % 4 or C > 16384:
        raise ValueError(f"C = {C} must be a multiple of 4 up to 16384")
    kernel, threads = _norm_kernel(h.device, C, num_slices)
    kernel.launch(
        B,
        threads,
        0,
        [
            pointer(h),
            pointer(h if partials is None else partials),
            pointer(scale),
            pointer(out),
            ctypes.c_int(B),
            ctypes.c_int(C),
            ctypes.c_float(eps),
        ],
    )
    return out


@functools.cache
def _norm_kernel(device: torch.device, C: int, num_slices: int) -> tuple[Kernel, int]:
    vectors = C // 4
    per_thread = max(2, -(-vectors // 1024))
    threads = -(-vectors // per_thread // 32) * 32
    defines = (("NORM", threads), ("NI", per_thread), ("S", num_slices))
    kernel = load_kernel(device, "add_norm", source_text("stream.cu"), defines, max_registers=48)
    kernel.allow_shared_memory(0)
    return kernel, threads


# The plan


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan needs to know of a GPU."""

    num_multiprocessors: int
    shared_bytes: int  # of one multiprocessor

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """The machine that a device is."""
        found = torch.cuda.get_device_properties(device)
        return cls(found.multi_processor_count, found.shared_memory_per_multiprocessor)

    def block_bytes(self, num_blocks: int = 2) -> int:
        """Shared memory of one block where so many and a small kernel fit (1 KB each is taxed)."""
        spare = (24 << 10) if self.shared_bytes >= 160 << 10 else (4 << 10)
        # no block gets more than all but 1 KB
        return min((self.shared_bytes - spare) // num_blocks, self.shared_bytes - 1024) - 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch: the kernel's constants (see stream.cu) and the grid."""

    token_tiles: int  # NT
    x_rows: int  # XR
    token_groups: int  # WT
    panels: int  # P
    chunk: int  # KC
    stages: int  # D
    epilogue: int  # EPI
    blocks_at_once: int  # MINB: of this kernel or the next, on one multiprocessor
    num_blocks: int

    @property
    def num_threads(self) -> int:
        """Of one block."""
        return self.token_groups * 128

    @property
    def shared_bytes(self) -> int:
        """Of one block: two rings."""
        return self.stages * (self.panels * PANEL + self.x_rows) * self.chunk * 2

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """What stream.cu is compiled with."""
        return (
            ("NT", self.token_tiles),
            ("XR", self.x_rows),
            ("WT", self.token_groups),
            ("P", self.panels),
            ("KC", self.chunk),
            ("D", self.stages),
            ("EPI", self.epilogue),
            ("MINB", self.blocks_at_once),
        )


def choose_slices(N: int, K: int, num_multiprocessors: int) -> int:
    """S for partials: the fewest slices that keep at least 9 in 10 multiprocessors at work.

    Three panels a block at least, because tokens are read again for each block's share; slices of
    at least 256 features.
    """
    best, best_score = 1, 0.0
    for slices in (1, 2, 4, 8):
        if slices > 1 and K // slices < 256:
            break
        units = slices * (N // PANEL)
        most = -(-units // num_multiprocessors)
        score = units / (most * num_multiprocessors) * min(most, 3) / 3
        if score >= 0.9:
            return slices
        if score > best_score + 0.01:
            best, best_score = slices, score
    return best


def make_plan(
    N: int, K: int, B: int, epilogue: Epilogue, num_slices: int, machine: Machine
) -> Plan:
    """The launch for B tokens. Raises ValueError unless B is in 1..64."""
    if not 1 <= B <= MAX_TOKENS:
        raise ValueError(f"B = {B} must be from 1 to {MAX_TOKENS}")
    token_tiles = next(n for n in (1, 2, 4, 8) if 8 * n >= B)
    x_rows = 1 if B == 1 else 8 * token_tiles
    units = num_slices * (N // PANEL)
    num_blocks = min(units, machine.num_multiprocessors)  # fewer, and some would share theirs
    most = -(-units // num_blocks)
    # A block that reads much has the multiprocessor to itself and a ring twice as deep. Of small
    # ones there is room for two, so that the next kernel fills its ring while this one ends.
    is_large = most * PANEL * 2 * (K // num_slices) > machine.block_bytes(1)
    blocks_at_once = 1 if most > 3 and (is_large or token_tiles > 1) else 2
    room = machine.block_bytes(blocks_at_once)
    panels = -(-most // -(-most // _MAX_PANELS))  # of equal passes
    token_groups = 2 if token_tiles > 1 and panels > 1 else 1
    chunk = 256 if panels == 1 and token_tiles == 1 else 128  # a barrier costs as much as 2 KB

    def planned(stages: int) -> Plan:
        return Plan(
            *(token_tiles, x_rows, token_groups, panels, chunk, stages),
            *(_EPILOGUES[epilogue], blocks_at_once, num_blocks),
        )

    # Three stages at least: with two, ptxas 13.0 makes illegal code of the copies.
    while chunk > 64 and planned(3).shared_bytes > room:
        chunk //= 2
    while panels > 1 and planned(3).shared_bytes > room:
        panels -= 1
    stages = 3
    while stages < 16 and planned(stages + 1).shared_bytes <= room:
        stages += 1
    return planned(stages)


def block_units(units: int, num_blocks: int, block: int) -> range:
    """The units of a block, as stream.cu shares them out."""
    return range(units * block // num_blocks, units * (block + 1) // num_blocks)


def slice_columns(K: int, num_slices: int, index: int) -> range:
    """The input features of a slice, as stream.cu cuts them."""
    blocks = K // 64
    return range(blocks * index // num_slices * 64, blocks * (index + 1) // num_slices * 64)


def passes(
    panels_in_matrix: int, owned: range, panels_at_once: int
) -> Iterator[tuple[int, int, int]]:
    """The (slice, first panel, count) that a block with these units computes, in turn."""
    unit = owned.start
    while unit < owned.stop:
        index, panel = divmod(unit, panels_in_matrix)
        left = min(owned.stop, (index + 1) * panels_in_matrix) - unit
        num_passes = -(-left // panels_at_once)
        count = -(-left // num_passes)
        yield index, panel, count
        unit += count
