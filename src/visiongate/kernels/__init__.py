"""Floor 0: the few compute kernels that torch lacks, each with its reference.

    weight --pack_linear--> PackedLinear;  linear, linear_part(x, packed), embedding(ids, packed)
    vision_attention: whole pictures;  paged_attention: text over the cache
    rms_norm, layer_norm, silu_mul, norm_rope, store_kv;  Decoder: all of it for a few rows
    cut_patches, add_weighted_rows: how a picture enters its tower

`_native.so`, built from csrc/ when the package is built, holds them for AVX-512 (with BF16 and
VNNI), AVX2 and any other processor, and picks at run time. Without it, or with
VISIONGATE_KERNELS=torch, `reference` computes the same in plain torch.
VISIONGATE_KERNELS=avx512|avx2|scalar forces a level.

Dimensions: T tokens, N patches or output features, K input features, H heads, D head size, B
sequences. Tensors are on the CPU, float32 or bfloat16.

The kernels' promise: a row's result has the same bits whatever stands beside it, in whatever
batch or chunk it is computed. (Plain torch does not promise that.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visiongate.kernels import native, reference
from visiongate.kernels.decoder import MOST_ROWS as MOST_DECODER_ROWS
from visiongate.kernels.decoder import Decoder, LayerWeights
from visiongate.kernels.native import (
    Backend,
    backend,
    default_num_threads,
    num_threads,
    release_pages,
    set_num_threads,
)
from visiongate.kernels.packed import (
    Gelu,
    PackedLinear,
    Precision,
    embedding,
    linear,
    linear_part,
    pack_linear,
)

__all__ = [
    "MOST_DECODER_ROWS",
    "Backend",
    "Decoder",
    "Gelu",
    "LayerWeights",
    "PackedLinear",
    "Precision",
    "add_weighted_rows",
    "backend",
    "cut_patches",
    "default_num_threads",
    "embedding",
    "layer_norm",
    "linear",
    "linear_part",
    "norm_rope",
    "num_threads",
    "pack_linear",
    "paged_attention",
    "release_pages",
    "rms_norm",
    "set_num_threads",
    "silu_mul",
    "store_kv",
    "vision_attention",
]


def vision_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Sequence[int],
    scale: float | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Full attention inside each picture: q, k, v (N, H, D) -> (N, H, D).

    Rows [cu_seqlens[i], cu_seqlens[i + 1]) are picture i. D is a multiple of 8. `scale` is
    D ** -0.5 unless given. `products` is the type in which queries, keys, values and probabilities
    are multiplied, that of q unless given; sums are float32. With int8 all are quantised: queries
    and keys by rows, values by columns of 256 keys, probabilities in steps of a 255th of the
    highest among 256 keys. The result has q's type, in which plain torch computes.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if native.takes(q):
        return native.vision_attention(q, k, v, cu_seqlens, scale, products or q.dtype)
    return reference.vision_attention(q, k.to(q.dtype), v.to(q.dtype), cu_seqlens, scale)


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention over a paged cache: q (T, Hq, D) -> (T, Hq, D).

    Rows [cu_seqlens_q[b], cu_seqlens_q[b + 1]) are the last tokens of sequence b: its last row
    stands at position context_lens[b] - 1 and sees every position up to its own. Position p of
    sequence b is place p % block_size of block block_table[b, p // block_size] of the caches
    (blocks, Hkv, block_size, D); query head h reads head h // (Hq // Hkv). The caches already hold
    the rows' own keys and values. Their type, float32 or bfloat16, is the type of the products;
    sums are float32. The int32 tensors are block_table (B, widest), cu_seqlens_q (B + 1,) and
    context_lens (B,).
    """
    attend = native.paged_attention if native.takes(q) else reference.paged_attention
    return attend(q, key_cache, value_cache, block_table, cu_seqlens_q, context_lens, scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """(..., C) over its root mean square, times weight (C,), of type `dtype` if given."""
    dtype = dtype or x.dtype
    if native.takes(x):
        return native.rms_norm(x, weight, eps, dtype)
    return reference.rms_norm(x, weight, eps).to(dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """(..., C) with mean 0 and variance 1 along C, times weight plus bias, both (C,)."""
    dtype = dtype or x.dtype
    if native.takes(x):
        return native.layer_norm(x, weight, bias, eps, dtype)
    return reference.layer_norm(x, weight, bias, eps).to(dtype)


def silu_mul(gate_up: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(T, 2I) -> (T, I): silu of the first half times the second half, of type `dtype` if given."""
    dtype = dtype or gate_up.dtype
    if native.takes(gate_up):
        return native.silu_mul(gate_up, dtype)
    return reference.silu_mul(gate_up).to(dtype)


def norm_rope(
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Queries or keys (T, H, D), normalised per head, then turned, as a new tensor.

    Without a weight (D,) there is no normalisation (the vision tower). cos and sin are float32 (T,
    D) with equal halves; element i is paired with element i + D / 2. Rows of x may be apart, as
    those of a product's part are. The result has the type of x, or `dtype`.
    """
    dtype = dtype or x.dtype
    if native.takes(x):
        return native.norm_rope(x, weight, cos, sin, eps, dtype)
    return reference.norm_rope(x, weight, cos, sin, eps).to(dtype)


def store_kv(
    k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Writes keys and values (T, Hkv, D) into slots (T,) of the caches.

    Those are (blocks, Hkv, block_size, D); slot s is place s % block_size of block s // block_size.
    """
    if native.takes(k):
        native.store_kv(k, v, key_cache, value_cache, slot_mapping)
    else:
        reference.store_kv(k, v, key_cache, value_cache, slot_mapping)


def cut_patches(pixels: Tensor, levels: Tensor, patch: int, merge: int) -> Tensor:
    """Patches of a picture, uint8 (height, width, channels), as levels (channels, 256) say.

    The result is float32 (patches, channels * patch * patch). Patches of a block of `merge` x
    `merge` stand together, blocks row by row; both sides are whole blocks.
    """
    cut = native.cut_patches if native.library() is not None else reference.cut_patches
    return cut(pixels, levels, patch, merge)


def add_weighted_rows(y: Tensor, table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Adds rows `ids` (T, taps) of a table (rows, C), times weights (T, taps), to y (T, C).

    y is float32, contiguous, and written over.
    """
    add = native.add_weighted_rows if native.takes(y) else reference.add_weighted_rows
    return add(y, table, ids, weights)
