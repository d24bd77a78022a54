"""Attention: paged and causal for the decoder, full within each picture for the vision tower.

Dimensions: T query rows, N patches, H heads, D head size.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from visiongate import kernels
from visiongate.model.inputs import ForwardBatch
from visiongate.model.layers import has_kernels


def attend(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, *, scale: float) -> Tensor:
    """Causal attention of packed queries over the paged cache, their own keys included.

    Args:
        q: (T, H, D).
        keys, values: (blocks, key-value heads, block size, D), one layer's cache.
        batch: says which rows belong to which sequence, and where its cache blocks are.

    Returns:
        (T, H, D). Row i of a chunk sees its sequence up to its own position.
    """
    if has_kernels(q):
        return kernels.paged_attention(
            q,
            keys,
            values,
            batch.block_tables,
            batch.cu_seqlens_q,
            batch.context_lens,
            scale=scale,
        )
    return attend_reference(q, keys, values, batch, scale=scale)


def attend_reference(
    q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, *, scale: float
) -> Tensor:
    """`attend` in plain torch: gathers each sequence's blocks, then one masked product."""
    out = torch.empty_like(q)
    starts = batch.cu_seqlens_q.tolist()
    lengths = batch.context_lens.tolist()
    block_size = keys.shape[2]
    for index, length in enumerate(lengths):
        rows = slice(starts[index], starts[index + 1])
        blocks = batch.block_tables[index, : -(-length // block_size)].long()
        k, v = (  # (length, key-value heads, D)
            cache[blocks].transpose(1, 2).flatten(0, 1)[:length] for cache in (keys, values)
        )
        out[rows] = causal_attention(q[rows], k, v, scale=scale)
    return out


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attention of a sequence's last rows: q (Tq, H, D) over k, v (Tk, key-value heads, D)."""
    num_queries, num_keys = q.shape[0], k.shape[0]
    mask = None
    if num_queries > 1:
        ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)
        mask = ones.tril(num_keys - num_queries)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.to(q.dtype).transpose(0, 1)[None],
        v.to(q.dtype).transpose(0, 1)[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def attend_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    *,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """Full attention within each picture: q, k, v (N, H, D), N = sum(lengths).

    `products` is the type that native kernels multiply in; plain torch uses the tensors' own.
    """
    if has_kernels(q):
        starts = [0, *itertools.accumulate(lengths)]
        return kernels.vision_attention(q, k, v, starts, products=products)
    if len(lengths) > 1:
        pictures = zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True)
        return torch.cat([_attend_fully(*picture) for picture in pictures])
    return _attend_fully(q, k, v)


def _attend_fully(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every row sees every other: q, k, v (N, H, D)."""
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
