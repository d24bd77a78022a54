"""A decoder's layers in one native call, for steps of few rows (csrc/decoder.h).

What it computes is what `linear`, `rms_norm`, `norm_rope`, `store_kv`, `paged_attention` and
`silu_mul` compute one after another, to the same bits; Python took a seventh of a token's time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visiongate.kernels import native
from visiongate.kernels.packed import PackedLinear

MOST_ROWS = 64
"""More take so long that Python's part hardly counts, and memory between the kernels."""

_I64, _F32, _PTR = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer.

    Attributes:
        maps: qkv, o, gate and up together, down.
        norms: float32 weights of the norms of the layer's input, queries, keys, SwiGLU's input.
    """

    maps: tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]
    norms: tuple[Tensor, ...]


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, _PTR) for name in ("panels", "scale", "bias")),
        *((name, _I64) for name in ("N", "product")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Map) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _PTR) for name in ("input_norm", "q_norm", "k_norm", "inner_norm")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, _PTR) for name in ("layers", "x", "cos", "sin", "slots", "bounds", "lengths")),
        *((name, _PTR) for name in ("block_table", "keys", "values")),
        *((name, _I64) for name in ("num_layers", "T", "C", "inner", "Hq", "Hkv", "D")),
        *((name, _I64) for name in ("num_sequences", "table_width", "block_size", "num_blocks")),
        *((name, _I64) for name in ("cache_type", "inner_type")),
        *((name, _F32) for name in ("eps", "scale")),
    )


class Decoder:
    """Layers whose maps are all packed for the library; it keeps them alive."""

    def __init__(
        self, layers: Sequence[LayerWeights], eps: float, inner_dtype: torch.dtype
    ) -> None:
        """`inner_dtype` is the type of the rows that `down` multiplies."""
        self._weights = list(layers)
        self._layers = (_Layer * len(layers))(*(_layer(weights) for weights in layers))
        self._eps, self._inner_dtype = eps, inner_dtype

    def run(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        slot_mapping: Tensor,
        block_table: Tensor,
        cu_seqlens_q: Tensor,
        context_lens: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
    ) -> Tensor:
        """All layers over the stream x (T, C), float32, which is written over and returned.

        keys and values are the caches (layers, blocks, Hkv, block_size, D); the rest is as in
        `norm_rope`, `store_kv` and `paged_attention`.
        """
        assert x.dtype == torch.float32
        assert slot_mapping.dtype == torch.int64
        assert {t.dtype for t in (block_table, cu_seqlens_q, context_lens)} == {torch.int32}
        num_layers, num_blocks, Hkv, block_size, D = keys.shape
        _, o, _, down = self._weights[0].maps
        tensors = (x, cos, sin, slot_mapping, cu_seqlens_q, context_lens, block_table, keys, values)
        assert all(tensor.is_contiguous() for tensor in tensors)
        assert num_layers == len(self._weights)
        call = _Call(
            ctypes.addressof(self._layers),
            *(tensor.data_ptr() for tensor in tensors),
            *(num_layers, *x.shape, down.in_features, o.in_features // D, Hkv, D),
            *(context_lens.numel(), block_table.shape[-1], block_size, num_blocks),
            *(native.type_of(keys.dtype), native.type_of(self._inner_dtype), self._eps, scale),
        )
        native.run_decoder(ctypes.addressof(call))
        return x


def _layer(weights: LayerWeights) -> _Layer:
    norms = (norm.data_ptr() for norm in weights.norms)
    return _Layer(*(_map(packed) for packed in weights.maps), *norms)


def _map(packed: PackedLinear) -> _Map:
    assert packed.is_native
    addresses = (native.address_of(t) for t in (packed.weight, packed.scale, packed.bias))
    return _Map(*addresses, packed.out_features, native.product_of(packed))
