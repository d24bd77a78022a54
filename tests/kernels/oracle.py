"""Float64 oracles and the distance that the kernel tests bound."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(result: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """Attention of q (T, Hq, D) over k and v (L, Hkv, D) in float64; visible is (T, L)."""
    queries, keys, values = (t.double().transpose(0, 1) for t in (q, k, v))
    group = queries.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    scores = queries @ keys.transpose(1, 2) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    out: Tensor = (scores.softmax(-1) @ values).transpose(0, 1)
    return out
