"""Decode's linear layers on an NVIDIA GPU: weights are read once, at the speed of device memory.

    linear = StreamLinear(weight, "bfloat16")      # (N, K) bfloat16, as published
    y = linear(x)                                  # x (B, K), B = 1..64

    add_norm(h, partials, scale, out, eps)         # h += sum of partials; out = RMSNorm(h) scale

`stream.cu` says how it works; here is the plan (who computes what, in what portions), the
compilation at run time by NVRTC, which comes with torch, and the launch. Compiled kernels are kept
in VISIONGATE_CUDA_CACHE or ~/.cache/visiongate/cuda.

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
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Epilogue = Literal["bfloat16", "float32", "partials", "silu"]

MAX_TOKENS = 64
PANEL = 16  # weight rows of one unit of work
_MAX_PANELS = 5  # of a pass: 5 x 8 tiles of sums fill a thread's registers at 64 tokens
SOURCE = Path(__file__).with_name("stream.cu")

_EPILOGUES: dict[Epilogue, int] = {"bfloat16": 0, "float32": 1, "partials": 1, "silu": 2}


class StreamError(RuntimeError):
    """A kernel cannot be compiled or launched; the message says why."""


def supports(N: int, K: int, epilogue: Epilogue = "bfloat16") -> bool:
    """Whether `StreamLinear` takes a weight (N, K): K a multiple of 64, N one of 16."""
    return N > 0 and K > 0 and N % PANEL == 0 and K % 64 == 0 and N * K < 1 << 40


@functools.cache
def is_available(device_index: int = 0) -> bool:
    """Whether this machine can compile and run the kernels: compute capability 8.0 and NVRTC."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device_index) < (8, 0):
        return False
    try:
        _nvrtc(), _driver()
    except StreamError:
        return False
    return True


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
                SOURCE.read_text(),
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
                *(_pointer(t) for t in (self.weight, x, out)),
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
            _pointer(h),
            _pointer(h if partials is None else partials),
            _pointer(scale),
            _pointer(out),
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
    source = SOURCE.read_text()
    kernel = load_kernel(device, "add_norm", source, defines, max_registers=48)
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

    @property
    def block_bytes(self) -> int:
        """Shared memory for one block, so that two and a small kernel fit (1 KB each is taxed)."""
        spare = (24 << 10) if self.shared_bytes >= 160 << 10 else (4 << 10)
        return (self.shared_bytes - spare) // 2 - 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch: the kernel's constants (see stream.cu) and the grid."""

    token_tiles: int  # NT
    x_rows: int  # XR
    token_groups: int  # WT
    panels: int  # P
    chunk: int  # KC
    weight_stages: int  # DW
    token_stages: int  # DX
    epilogue: int  # EPI
    num_blocks: int

    @property
    def num_threads(self) -> int:
        """Of one block."""
        return self.token_groups * 128

    @property
    def shared_bytes(self) -> int:
        """Of one block: two rings."""
        rows = self.weight_stages * self.panels * PANEL + self.token_stages * self.x_rows
        return rows * self.chunk * 2

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """What stream.cu is compiled with."""
        return (
            ("NT", self.token_tiles),
            ("XR", self.x_rows),
            ("WT", self.token_groups),
            ("P", self.panels),
            ("KC", self.chunk),
            ("DW", self.weight_stages),
            ("DX", self.token_stages),
            ("EPI", self.epilogue),
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
    token_groups = 1  # two were slower at 32 and 64 tokens
    x_rows = 1 if B == 1 else 8 * token_tiles
    units = num_slices * (N // PANEL)
    num_blocks = min(units, machine.num_multiprocessors)  # fewer, and some would share theirs
    most = -(-units // num_blocks)
    panels = -(-most // -(-most // _MAX_PANELS))  # of equal passes
    # Chunks of at least 8 KB of weights: a barrier costs as much as 2 KB.
    chunk = 64 if panels >= 4 else 128 if panels >= 2 or token_tiles > 1 else 256

    def planned(weight_stages: int) -> Plan:
        return Plan(
            *(token_tiles, x_rows, token_groups, panels, chunk, weight_stages, weight_stages),
            *(_EPILOGUES[epilogue], num_blocks),
        )

    while chunk > 64 and planned(4).shared_bytes > machine.block_bytes:
        chunk //= 2
    while panels > 1 and planned(3).shared_bytes > machine.block_bytes:
        panels -= 1
    stages = 2
    while stages < 16 and planned(stages + 1).shared_bytes <= machine.block_bytes:
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


# Compilation and launch. The libraries are called through ctypes: torch brings them, whatever its
# version, and cuda-bindings only some versions do.


class Kernel:
    """A loaded kernel of one device."""

    def __init__(self, function: ctypes.c_void_p, device: torch.device, is_dependent: bool) -> None:
        self._function = function
        self._device = device
        self._is_dependent = is_dependent

    def allow_shared_memory(self, num_bytes: int) -> None:
        """Permits `num_bytes` of dynamic shared memory, and asks for most of L1 as such."""
        driver = _driver()
        _check(driver.cuFuncSetAttribute(self._function, 8, num_bytes), "shared memory")
        _check(driver.cuFuncSetAttribute(self._function, 9, 100), "shared memory carve-out")

    def launch(
        self,
        num_blocks: int,
        num_threads: int,
        shared_bytes: int,
        arguments: Sequence[Any],
    ) -> None:
        """Launches on torch's current stream of the device, with ctypes values as arguments.

        Raises StreamError when the driver refuses.
        """
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        attribute = _LaunchAttribute(id=6, value=1)  # programmatic stream serialisation
        stream = torch.cuda.current_stream(self._device).cuda_stream
        config = _LaunchConfig(
            grid=(num_blocks, 1, 1),
            block=(num_threads, 1, 1),
            shared_bytes=shared_bytes,
            stream=stream,
            attributes=ctypes.pointer(attribute),
            num_attributes=1 if self._is_dependent else 0,
        )
        _check(
            _driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None),
            "launch",
        )


_loaded: dict[tuple[int, str, str], Kernel] = {}


def load_kernel(
    device: torch.device,
    name: str,
    source: str,
    defines: Sequence[tuple[str, int]],
    *,
    max_registers: int = 255,
) -> Kernel:
    """The kernel `name` of a source compiled with these macros, for this device; kept.

    Raises StreamError when it cannot be compiled or loaded.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    major, minor = torch.cuda.get_device_capability(index)
    options: tuple[str, ...] = (
        f"--gpu-architecture=sm_{major}{minor}",
        "--std=c++17",
        "-default-device",
    )
    options += (f"--maxrregcount={max_registers}",)
    options += tuple(f"-D{macro}={value}" for macro, value in defines)
    digest = hashlib.sha256("\0".join((source, *options, *_nvrtc_version())).encode()).hexdigest()
    key = index, name, digest
    if key not in _loaded:
        cubin = _cached(digest) or _compile(source, options, digest)
        driver = _driver()
        _use_context(index)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver.cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
        _check(
            driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()),
            "cuModuleGetFunction",
        )
        _loaded[key] = Kernel(function, torch.device("cuda", index), major >= 9)
    return _loaded[key]


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    named = os.environ.get("VISIONGATE_CUDA_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "visiongate" / "cuda"


def _cached(digest: str) -> bytes | None:
    try:
        return (cache_folder() / f"{digest}.cubin").read_bytes()
    except OSError:
        return None


def _compile(source: str, options: Sequence[str], digest: str) -> bytes:
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"stream.cu", 0, None, None
    )
    if created:
        raise StreamError(f"nvrtcCreateProgram failed with code {created}")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise StreamError(f"stream.cu does not compile:\n{log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    _keep(digest, cubin.raw)
    return cubin.raw


def _keep(digest: str, cubin: bytes) -> None:
    """Writes the cache; one that cannot be written costs a compilation at the next start."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        os.replace(name, folder / f"{digest}.cubin")
    except OSError:
        return


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise StreamError(f"{what} failed: {reason} (CUDA error {code})")


def _use_context(device_index: int) -> None:
    """Makes torch's context of the device current in this thread, if none is."""
    driver, context, device = _driver(), ctypes.c_void_p(), ctypes.c_int()
    torch.cuda.init()
    _check(driver.cuCtxGetCurrent(ctypes.byref(context)), "cuCtxGetCurrent")
    if not context.value:
        _check(driver.cuDeviceGet(ctypes.byref(device), device_index), "cuDeviceGet")
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "context")
        _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")


@functools.cache
def _driver() -> ctypes.CDLL:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise StreamError("the NVIDIA driver's library libcuda.so.1 was not found")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of torch's CUDA version: from the wheels that torch depends on, else the system's."""
    major = (torch.version.cuda or "13").split(".")[0]
    found = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (found.submodule_search_locations or ())] if found else []
    for folder in (r / part / "lib" for r in roots for part in (f"cu{major}", "cuda_nvrtc")):
        library = folder / f"libnvrtc.so.{major}"
        if library.is_file():
            for builtins in sorted(folder.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins))  # NVRTC opens it by name only
            return ctypes.CDLL(str(library))
    try:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    except OSError as missing:
        raise StreamError(
            f"libnvrtc.so.{major} was not found: pip install nvidia-cuda-nvrtc"
        ) from missing


@functools.cache
def _nvrtc_version() -> tuple[str, str]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return str(major.value), str(minor.value)


class _LaunchAttribute(ctypes.Structure):  # CUlaunchAttribute: an id and a union of 64 bytes at 8
    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _LaunchConfig(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    )
