"""CUDA C++ compiled at run time by NVRTC, which comes with torch, and its launches.

The libraries are called through ctypes: torch brings them, whatever its version, and cuda-bindings
only some versions do. Compiled kernels are kept in VISIONGATE_CUDA_CACHE or
~/.cache/visiongate/cuda.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class CudaKernelError(RuntimeError):
    """A kernel cannot be compiled or launched; the message says why."""


@functools.cache
def is_available(device_index: int = 0) -> bool:
    """Whether this machine can compile and run the kernels: compute capability 8.0 and NVRTC."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device_index) < (8, 0):
        return False
    try:
        _driver()
    except CudaKernelError:
        return False
    return has_compiler()


def has_compiler() -> bool:
    """Whether NVRTC is installed."""
    try:
        _nvrtc()
    except CudaKernelError:
        return False
    return True


def has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may begin while the one before it ends."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


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

        Raises CudaKernelError when the driver refuses.
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

    Raises CudaKernelError when it cannot be compiled or loaded.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    capability = torch.cuda.get_device_capability(index)
    options = _options(capability, defines, max_registers)
    digest = hashlib.sha256("\0".join((source, *options, *_nvrtc_version())).encode()).hexdigest()
    key = index, name, digest
    if key not in _loaded:
        cubin = _cached(digest)
        if cubin is None:
            cubin = _compile(source, options)
            _keep(digest, cubin)
        driver = _driver()
        _use_context(index)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver.cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
        _check(
            driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()),
            "cuModuleGetFunction",
        )
        card = torch.device("cuda", index)
        _loaded[key] = Kernel(function, card, has_dependent_launch(card))
    return _loaded[key]


def compile_source(
    source: str,
    capability: tuple[int, int],
    defines: Sequence[tuple[str, int]],
    *,
    max_registers: int = 255,
) -> bytes:
    """The machine code (cubin) of a source for a capability; needs NVRTC, but no GPU.

    Raises CudaKernelError when it does not compile.
    """
    return _compile(source, _options(capability, defines, max_registers))


@functools.cache
def source_text(name: str) -> str:
    """A source of this folder, after what all of them share."""
    folder = Path(__file__).parent
    return (folder / "common.cuh").read_text() + (folder / name).read_text()


def _options(
    capability: tuple[int, int], defines: Sequence[tuple[str, int]], max_registers: int
) -> tuple[str, ...]:
    major, minor = capability
    return (
        f"--gpu-architecture=sm_{major}{minor}",
        "--std=c++17",
        "-default-device",
        f"--maxrregcount={max_registers}",
        *(f"-D{macro}={value}" for macro, value in defines),
    )


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


def _compile(source: str, options: Sequence[str]) -> bytes:
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
    )
    if created:
        raise CudaKernelError(f"nvrtcCreateProgram failed with code {created}")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CudaKernelError(f"a kernel does not compile:\n{log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return bytes(cubin.raw)


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


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """A tensor's address, as an argument of `Kernel.launch`."""
    return ctypes.c_void_p(tensor.data_ptr())


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise CudaKernelError(f"{what} failed: {reason} (CUDA error {code})")


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
    raise CudaKernelError("the NVIDIA driver's library libcuda.so.1 was not found")


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
        raise CudaKernelError(
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
