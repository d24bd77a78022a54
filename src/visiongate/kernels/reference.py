"""What every kernel computes, in plain torch: the fallback, and the oracle of the tests.

Dimensions: T tokens, N patches or output features, K input features, H heads, D head size, B
sequences. Arithmetic is float32 unless a docstring says otherwise; the
result has the type of the first argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 256
"""Input features that share one activation scale in int8 products."""


TORCH_GELUS = {"tanh": "tanh", "erf": "none"}
"""Torch's names for the forms of GELU."""


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 form (N, K) of a weight and the float32 scale (N,) of each output channel."""
    rows = weight.float()
    largest = rows.abs().amax(dim=1).clamp_min(1e-30)
    quantized = (rows * _inverse(largest)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return quantized, largest / 127.0


def _inverse(largest: Tensor) -> Tensor:
    """127 / largest, divided once as the kernels do (torch's `127 / x` rounds twice)."""
    return largest.new_tensor(127.0) / largest


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as whole numbers (T, K) in float32, and their scales (T, groups)."""
    T, K = x.shape
    num_groups = -(-K // GROUP)
    groups = functional.pad(x.float(), (0, num_groups * GROUP - K)).view(T, num_groups, GROUP)
    largest = groups.abs().amax(dim=2).clamp_min(1e-30)
    quantized = (groups * _inverse(largest)[..., None]).round()
    return quantized.flatten(1)[:, :K], largest / 127.0


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer (T, K) -> (T, N) over `quantize_weight`'s pair, activations quantised per group.

    A group's sum of products is below 2**24, so float32 adds it exactly.
    """
    quantized, x_scale = quantize_activations(x)
    y = x.new_zeros((x.shape[0], weight.shape[0]), dtype=torch.float32)
    for group, begin in enumerate(range(0, x.shape[1], GROUP)):
        part = quantized[:, begin : begin + GROUP] @ weight[:, begin : begin + GROUP].float().t()
        y += part * x_scale[:, group, None]
    y *= scale
    return (y if bias is None else y + bias.float()).to(x.dtype)


def vision_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Sequence[int], scale: float
) -> Tensor:
    """Full attention inside each picture: (N, H, D) -> (N, H, D)."""
    out = torch.empty(q.shape, dtype=q.dtype)
    for begin, end in pairwise(cu_seqlens):
        queries, keys, values = (t[begin:end].transpose(0, 1)[None] for t in (q, k, v))
        attended = functional.scaled_dot_product_attention(queries, keys, values, scale=scale)
        out[begin:end] = attended[0].transpose(0, 1)
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
    """Causal attention of (T, Hq, D) queries over a paged cache."""
    T, Hq, D = q.shape
    Hkv, block_size = key_cache.shape[1:3]
    out = q.new_empty((T, Hq, D))
    bounds = cu_seqlens_q.tolist()
    for b, context_len in enumerate(context_lens.tolist()):
        begin, end = bounds[b], bounds[b + 1]
        if begin == end:
            continue
        positions = torch.arange(context_len)
        blocks = block_table[b].long()[positions // block_size]
        keys, values = (  # (Hq, context_len, D) each; a group of query heads shares one
            cache[blocks, :, positions % block_size]
            .transpose(0, 1)
            .repeat_interleave(Hq // Hkv, dim=0)
            .to(q.dtype)
            for cache in (key_cache, value_cache)
        )
        row_positions = torch.arange(context_len - (end - begin), context_len)
        visible = positions[None, :] <= row_positions[:, None]  # (rows, context_len)
        attended = functional.scaled_dot_product_attention(
            q[begin:end].transpose(0, 1), keys, values, attn_mask=visible, scale=scale
        )
        out[begin:end] = attended.transpose(0, 1)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., C) over its root mean square, times weight (C,)."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(..., C) with mean 0 and variance 1 along C, times weight plus bias, both (C,)."""
    return functional.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(
        x.dtype
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """(T, 2I) -> (T, I): silu of the first half times the second half."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def gelu(x: Tensor, form: str) -> Tensor:
    """GELU, elementwise: its approximation by "tanh", or by "erf" itself."""
    return functional.gelu(x.float(), approximate=TORCH_GELUS[form]).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(T, H, D) turned by the angles whose cosines and sines are (T, D); halves are paired."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos.float()[:, None] + turned * sin.float()[:, None]).to(x.dtype)


def norm_rope(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Queries or keys (T, H, D), normalised per head if weighed, then turned."""
    return rope(x if weight is None else rms_norm(x, weight, eps), cos, sin)


def cut_patches(pixels: Tensor, levels: Tensor, patch: int, merge: int) -> Tensor:
    """uint8 (height, width, channels) to float32 (patches, channels * patch * patch)."""
    numbers = levels.t()[pixels.long(), torch.arange(pixels.shape[2])]
    return in_patches(numbers, patch, merge)


def in_patches(numbers: Tensor, patch: int, merge: int) -> Tensor:
    """(height, width, channels) to (patches, channels * patch * patch), blocks together."""
    height, width, channels = numbers.shape
    blocks = numbers.view(
        height // patch // merge, merge, patch, width // patch // merge, merge, patch, channels
    )
    return blocks.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels * patch * patch)


def add_weighted_rows(y: Tensor, table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Rows `ids` (T, taps) of a table (rows, C), times weights, added to y (T, C) in place."""
    for tap, weight in zip(ids.unbind(1), weights.unbind(1), strict=True):
        y += (functional.embedding(tap, table).float() * weight[:, None]).to(y.dtype)
    return y


def store_kv(
    k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Writes keys and values (T, Hkv, D) into slots (T,) of caches (blocks, Hkv, block size, D)."""
    block_size = key_cache.shape[2]
    blocks, places = slot_mapping.long() // block_size, slot_mapping.long() % block_size
    key_cache[blocks, :, places] = k.to(key_cache.dtype)
    value_cache[blocks, :, places] = v.to(value_cache.dtype)
