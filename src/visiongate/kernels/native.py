"""The kernel library: how it is found and chosen, and one thin call for each of its functions.

Nothing here checks shapes beyond what would read outside memory; `visiongate.kernels` is the public
side. Tensors given to the library are kept alive by the caller's frame while it runs.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from visiongate.kernels.buffers import HUGE_PAGE_BYTES, BufferPool, map_block

if TYPE_CHECKING:
    from visiongate.kernels.packed import Gelu, PackedLinear, Precision

logger = logging.getLogger(__name__)

Backend = Literal["avx512", "avx2", "scalar", "torch"]

PANEL = 64  # output features of one panel; csrc/layout.h
GROUP = 256  # activations that share one scale; csrc/layout.h
_PIECE_BYTES = 64 << 20
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_PRODUCTS = {
    ("float32", "bfloat16"): 0,  # (precision, storage) -> csrc/api.h, enum Product
    ("float32", "float32"): 1,
    ("bfloat16", "bfloat16"): 2,
    ("int8", "int8"): 3,
}
_GELUS: dict[Gelu | None, int] = {None: 0, "tanh": 1, "erf": 2}  # csrc/level.h

_I64, _INT, _F32, _PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[object, ...]] = {
    "vg_set_num_threads": (_INT,),
    "vg_release_pages": (_PTR, _I64),
    "vg_pack_bf16": (_PTR, _PTR, _I64, _I64),
    "vg_pack_f32": (_PTR, _PTR, _I64, _I64),
    "vg_pack_int8": (_PTR, _INT, _PTR, _PTR, _I64, _I64),
    "vg_linear": (
        *(_INT, _PTR, _INT, _I64, _PTR, _PTR, _PTR, _PTR),
        *(_I64, _I64, _I64, _INT, _INT, _INT),
    ),
    "vg_embedding": (_INT, _PTR, _PTR, _PTR, _PTR, _INT, _I64, _I64, _I64),
    "vg_attention": (
        *(_PTR, _INT, _PTR, _PTR, _INT, _PTR),
        *(_I64, _I64, _I64, _I64, _I64, _I64),
        *(_PTR, _PTR, _PTR, _I64, _I64, _INT, _F32, _INT, _I64, _INT),
    ),
    "vg_probe_read": (_PTR, _I64),
    "vg_probe_products": (_INT, _I64),
    "vg_rms_norm": (_PTR, _INT, _PTR, _PTR, _INT, _I64, _I64, _F32),
    "vg_layer_norm": (_PTR, _INT, _PTR, _PTR, _PTR, _INT, _I64, _I64, _F32),
    "vg_silu_mul": (_PTR, _PTR, _INT, _I64, _I64, _INT),
    "vg_norm_rope": (_PTR, _I64, _PTR, _PTR, _PTR, _PTR, _INT, _I64, _I64, _I64, _F32, _INT),
    "vg_cut_patches": (_PTR, _PTR, _PTR, _I64, _I64, _I64, _I64, _I64),
    "vg_add_weighted_rows": (_PTR, _PTR, _INT, _PTR, _PTR, _I64, _I64, _I64),
    "vg_decoder": (_PTR,),
    "vg_store_kv": (
        *(_PTR, _I64, _INT, _PTR, _I64, _INT, _PTR, _PTR, _INT, _PTR),
        *(_I64, _I64, _I64, _I64),
    ),
}

_buffers = BufferPool()
_library: ctypes.CDLL | None = None
_backend: Backend = "torch"
_num_threads = 1


def library() -> ctypes.CDLL | None:
    """The library in use, or None when torch computes."""
    return _library


def backend() -> Backend:
    """Who computes: a level of the library, or torch."""
    return _backend


def takes(x: Tensor) -> bool:
    """Whether the library computes for this tensor."""
    return _library is not None and x.device.type == "cpu" and x.dtype in _TYPES


def use_backend(name: str) -> Backend:
    """Picks who computes from now on: a level, "torch", or "" for the best there is.

    Weights that are packed already keep working only under the levels of the library. Raises
    ValueError for a level that this processor, or this installation, does not have.
    """
    global _library, _backend
    found = None if name == "torch" else _load()
    if found is None:
        if name not in ("", "torch"):
            raise ValueError(f"VISIONGATE_KERNELS={name}: no kernel library is installed")
        _library, _backend = None, "torch"
        return _backend
    if found.vg_select(name.encode()) != 0:
        raise ValueError(
            f"VISIONGATE_KERNELS={name}: this processor has no such level; "
            "leave it unset, or use avx2, scalar or torch"
        )
    _library = found
    _backend = cast(Backend, found.vg_level().decode())
    return _backend


def _load() -> ctypes.CDLL | None:
    """The library beside this file, or None when it was not built, or from other sources."""
    path = Path(__file__).with_name("_native.so")
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes = arguments
            function.restype = None
    except (OSError, AttributeError) as error:
        logger.warning("the kernel library cannot be used, torch computes: %s", error)
        return None
    found.vg_probe_read.restype = ctypes.c_float
    found.vg_probe_products.restype = ctypes.c_double
    found.vg_select.argtypes = (ctypes.c_char_p,)
    found.vg_select.restype = ctypes.c_int
    found.vg_level.argtypes = ()
    found.vg_level.restype = ctypes.c_char_p
    found.vg_set_num_threads(_num_threads)
    return found


def default_num_threads() -> int:
    """Processors that this process may use, by its affinity and its cgroup's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _cgroup_quota() -> float | None:
    """The cgroup's processor quota in processors, or None for no limit."""
    try:  # version 2: "max 100000" or "200000 100000"
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    if limit.strip() in ("max", "-1"):
        return None
    return int(limit) / int(period)


def set_num_threads(count: int) -> None:
    """Sets how many threads compute, the caller's among them."""
    global _num_threads
    _num_threads = max(1, count)
    if _library is not None:
        _library.vg_set_num_threads(_num_threads)


def num_threads() -> int:
    """How many threads compute."""
    return _num_threads


def _lib() -> ctypes.CDLL:
    assert _library is not None
    return _library


def release_pages(t: Tensor) -> None:
    """Drops a memory-mapped tensor's pages from this process; they are read again when touched.

    Only for views of a file: anything else would lose its contents, and is left alone.
    """
    if _library is not None and _is_file_backed(t):
        _library.vg_release_pages(t.data_ptr(), t.nbytes)


def _is_file_backed(t: Tensor) -> bool:
    """Whether the tensor lies wholly in a mapping of a file."""
    address = t.data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            begin, end = (int(bound, 16) for bound in fields[0].split("-"))
            if begin <= address < end:
                return address + t.nbytes <= end and fields[4] != "0"  # inode
    return False


def _empty_panels(num_elements: int, dtype: torch.dtype) -> Tensor:
    """Memory for panels: where they are large, a mapping of their own, in huge pages."""
    num_bytes = num_elements * dtype.itemsize
    if num_bytes < HUGE_PAGE_BYTES:
        return torch.empty(num_elements, dtype=dtype)
    return torch.frombuffer(map_block(num_bytes), dtype=dtype)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _pieces(weight: Tensor, release: bool) -> Iterator[tuple[int, Tensor]]:
    """Whole panels' worth of rows, about 64 MB at a time, each with the number of its first row.

    With `release` a piece's file pages are dropped when the next one is asked for.
    """
    N, K = weight.shape
    rows = max(1, _PIECE_BYTES // (K * weight.itemsize * PANEL)) * PANEL
    for begin in range(0, N, rows):
        piece = weight[begin : begin + rows]
        yield begin, piece
        if release:
            release_pages(piece)


def pack_bfloat16(weight: Tensor, release: bool = False) -> Tensor:
    """Panels of a contiguous bfloat16 (N, K) weight."""
    N, K = weight.shape
    padded_K = _round_up(K, 2)
    panels = _empty_panels(_round_up(N, PANEL) * padded_K, torch.bfloat16)
    for begin, piece in _pieces(weight, release):
        address = panels.data_ptr() + begin * padded_K * 2
        _lib().vg_pack_bf16(piece.data_ptr(), address, len(piece), K)
    return panels


def pack_float32(weight: Tensor, release: bool = False) -> Tensor:
    """Panels of a contiguous float32 (N, K) weight."""
    N, K = weight.shape
    panels = _empty_panels(_round_up(N, PANEL) * K, torch.float32)
    for begin, piece in _pieces(weight, release):
        address = panels.data_ptr() + begin * K * 4
        _lib().vg_pack_f32(piece.data_ptr(), address, len(piece), K)
    return panels


def pack_int8(weight: Tensor, release: bool = False) -> tuple[Tensor, Tensor]:
    """Panels and the scales (padded N,) of a contiguous weight (N, K)."""
    N, K = weight.shape
    padded_N = _round_up(N, PANEL)
    row_bytes = _round_up(K, 4) + 4 * -(-K // GROUP)
    panels = _empty_panels(padded_N * row_bytes, torch.int8)
    scale = torch.empty(padded_N, dtype=torch.float32)
    for begin, piece in _pieces(weight, release):
        _lib().vg_pack_int8(
            *(piece.data_ptr(), _TYPES[weight.dtype], panels.data_ptr() + begin * row_bytes),
            *(scale.data_ptr() + begin * 4, len(piece), K),
        )
    return panels, scale


def probe_read(buffer: Tensor) -> None:
    """Reads a buffer once with all threads: as fast as weights could ever be read."""
    _lib().vg_probe_read(buffer.data_ptr(), buffer.nbytes)


def probe_products(precision: Precision, num_rounds: int) -> float:
    """Multiplies in registers with all threads; the number of operations done."""
    product = _PRODUCTS[precision, precision]
    return float(_lib().vg_probe_products(product, num_rounds))


def empty_in_huge_pages(num_bytes: int) -> Tensor:
    """Bytes in huge pages, as packed weights are held."""
    return _empty_panels(num_bytes, torch.uint8)


def address_of(t: Tensor | None) -> int | None:
    """Where a tensor's numbers lie; None without one."""
    return None if t is None else t.data_ptr()


def type_of(dtype: torch.dtype) -> int:
    """The library's number for a type."""
    return _TYPES[dtype]


def product_of(packed: PackedLinear) -> int:
    """The library's number for a map's arithmetic and storage."""
    return _PRODUCTS[packed.precision, packed.storage]


def linear(
    x: Tensor, packed: PackedLinear, dtype: torch.dtype, gelu: Gelu | None, residual: Tensor | None
) -> Tensor:
    """See `visiongate.kernels.linear`; x is (M, K), a residual (M, N)."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    M, K, N = x.shape[0], packed.in_features, packed.out_features
    assert x.shape[1] == K
    y = _buffers.empty((M, N), dtype) if residual is None else residual
    assert y.shape == (M, N)
    assert y.is_contiguous()
    _lib().vg_linear(
        *(product_of(packed), x.data_ptr(), _TYPES[x.dtype], x.stride(0)),
        *(packed.weight.data_ptr(), address_of(packed.scale), address_of(packed.bias)),
        *(y.data_ptr(), M, N, K, _TYPES[y.dtype], _GELUS[gelu], residual is not None),
    )
    return y


def embedding(ids: Tensor, packed: PackedLinear, dtype: torch.dtype) -> Tensor:
    """Rows `ids` of the packed weight as (T, K)."""
    ids = ids.to(torch.int64).contiguous()
    T, K, N = ids.numel(), packed.in_features, packed.out_features
    rows = _buffers.empty((T, K), dtype)
    _lib().vg_embedding(
        *(product_of(packed), ids.data_ptr(), packed.weight.data_ptr()),
        *(address_of(packed.scale), rows.data_ptr(), _TYPES[dtype], T, N, K),
    )
    return rows


def _rows_of_heads(t: Tensor) -> Tensor:
    """The tensor (T, H, D) with every row's heads side by side; rows may be apart."""
    return t if t.stride(2) == 1 and t.stride(1) == t.shape[2] else t.contiguous()


def vision_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Sequence[int],
    scale: float,
    products: torch.dtype,
) -> Tensor:
    """See `visiongate.kernels.vision_attention`."""
    kept = torch.bfloat16 if products == torch.int8 else products
    if kept == torch.float32:
        v = v.float()  # float32 values are rounded where they are packed, not the other way
    q, k, v = (_rows_of_heads(t) for t in (q, k.to(kept), v))
    N, H, D = q.shape
    out = _buffers.empty((N, H, D), q.dtype)
    bounds = torch.tensor(list(cu_seqlens), dtype=torch.int32)
    _lib().vg_attention(
        *(q.data_ptr(), _TYPES[q.dtype], k.data_ptr(), v.data_ptr(), _TYPES[kept]),
        *(out.data_ptr(),),
        *(len(bounds) - 1, H, H, D, q.stride(0), k.stride(0)),
        *(bounds.data_ptr(), None, None, 0, 1, 0, scale, _TYPES[v.dtype], v.stride(0)),
        products == torch.int8,
    )
    return out


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """See `visiongate.kernels.paged_attention`."""
    q = _rows_of_heads(q)
    T, Hq, D = q.shape
    _, Hkv, block_size, _ = key_cache.shape
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    block_table, bounds, lengths = (
        t.to(torch.int32).contiguous() for t in (block_table, cu_seqlens_q, context_lens)
    )
    out = _buffers.empty((T, Hq, D), q.dtype)
    _lib().vg_attention(
        *(q.data_ptr(), _TYPES[q.dtype], key_cache.data_ptr(), value_cache.data_ptr()),
        *(_TYPES[key_cache.dtype], out.data_ptr()),
        *(lengths.numel(), Hq, Hkv, D, q.stride(0), D),
        *(bounds.data_ptr(), lengths.data_ptr(), block_table.data_ptr(), block_table.shape[-1]),
        *(block_size, 1, scale, _TYPES[value_cache.dtype], D, 0),
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `visiongate.kernels.rms_norm`."""
    x, weight = x.contiguous(), weight.float().contiguous()
    y = _buffers.empty(x.shape, dtype)
    C = x.shape[-1]
    _lib().vg_rms_norm(
        *(x.data_ptr(), _TYPES[x.dtype], weight.data_ptr(), y.data_ptr(), _TYPES[dtype]),
        *(x.numel() // C, C, eps),
    )
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `visiongate.kernels.layer_norm`."""
    x, weight, bias = x.contiguous(), weight.float().contiguous(), bias.float().contiguous()
    y = _buffers.empty(x.shape, dtype)
    C = x.shape[-1]
    _lib().vg_layer_norm(
        *(x.data_ptr(), _TYPES[x.dtype], weight.data_ptr(), bias.data_ptr()),
        *(y.data_ptr(), _TYPES[dtype], x.numel() // C, C, eps),
    )
    return y


def silu_mul(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """See `visiongate.kernels.silu_mul`."""
    gate_up = gate_up.contiguous()
    I = gate_up.shape[-1] // 2  # noqa: E741 - the intermediate size
    y = _buffers.empty((*gate_up.shape[:-1], I), dtype)
    num_rows = gate_up.numel() // (2 * I)
    _lib().vg_silu_mul(
        *(gate_up.data_ptr(), y.data_ptr(), _TYPES[gate_up.dtype], num_rows, I, _TYPES[dtype])
    )
    return y


def norm_rope(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """See `visiongate.kernels.norm_rope`."""
    x = _rows_of_heads(x)
    T, H, D = x.shape
    y = _buffers.empty((T, H, D), dtype)
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    weight = None if weight is None else weight.float().contiguous()
    _lib().vg_norm_rope(
        *(x.data_ptr(), x.stride(0), address_of(weight), cos.data_ptr(), sin.data_ptr()),
        *(y.data_ptr(), _TYPES[x.dtype], T, H, D, eps, _TYPES[dtype]),
    )
    return y


def store_kv(
    k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """See `visiongate.kernels.store_kv`."""
    k, v = _rows_of_heads(k), _rows_of_heads(v)
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    slots = slot_mapping.to(torch.int64).contiguous()
    T, Hkv, D = k.shape
    _lib().vg_store_kv(
        *(k.data_ptr(), k.stride(0), _TYPES[k.dtype]),
        *(v.data_ptr(), v.stride(0), _TYPES[v.dtype]),
        *(key_cache.data_ptr(), value_cache.data_ptr(), _TYPES[key_cache.dtype]),
        *(slots.data_ptr(), T, Hkv, D, key_cache.shape[2]),
    )


def cut_patches(pixels: Tensor, levels: Tensor, patch: int, merge: int) -> Tensor:
    """See `visiongate.kernels.cut_patches`."""
    pixels, levels = pixels.contiguous(), levels.float().contiguous()
    height, width, channels = pixels.shape
    assert height % (patch * merge) == 0
    assert width % (patch * merge) == 0
    assert levels.shape == (channels, 256)
    num_patches, size = (height // patch) * (width // patch), channels * patch * patch
    patches = _buffers.empty((num_patches, size), torch.float32)
    _lib().vg_cut_patches(
        *(pixels.data_ptr(), levels.data_ptr(), patches.data_ptr()),
        *(height, width, channels, patch, merge),
    )
    return patches


def add_weighted_rows(y: Tensor, table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """See `visiongate.kernels.add_weighted_rows`."""
    (T, C), num_taps = y.shape, ids.shape[1]
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    assert table.shape[1] == C
    assert ids.shape == weights.shape == (T, num_taps)
    table, ids = table.contiguous(), ids.to(torch.int64).contiguous()
    weights = weights.float().contiguous()
    _lib().vg_add_weighted_rows(
        *(y.data_ptr(), table.data_ptr(), _TYPES[table.dtype]),
        *(ids.data_ptr(), weights.data_ptr(), T, C, num_taps),
    )
    return y


def run_decoder(call: int) -> None:
    """Runs the layers of a call at this address; see `visiongate.kernels.decoder`."""
    _lib().vg_decoder(call)


_num_threads = default_num_threads()
use_backend(os.environ.get("VISIONGATE_KERNELS", ""))
