"""The layers both halves share: linear maps with a storage precision, norms, rotary embeddings.

Dimensions: T rows, C channels, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiongate import kernels
from visiongate.kernels import reference


def has_kernels(x: Tensor) -> bool:
    """Whether the native kernels can compute on this tensor; they keep no gradients, no graph."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return kernels.backend() != "torch"


M = TypeVar("M", bound=nn.Module)


class Stack(nn.ModuleList, Generic[M]):
    """A module list that knows what it holds."""

    def at(self, index: int) -> M:
        """The module at a place."""
        return cast("M", self[index])

    def each(self) -> Iterator[M]:
        """All modules in order."""
        return cast("Iterator[M]", iter(self))


class Linear(nn.Module):
    """y = x W^T + b, computed from the parameters, or from a packed copy once `pack` was called."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.packed: kernels.PackedLinear | None = None

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Maps (..., in) to (..., out); kernels write it as `dtype` if given."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return kernels.linear(x, self.packed, dtype=dtype if has_kernels(x) else None)

    def gelu(self, x: Tensor, form: kernels.Gelu, dtype: torch.dtype) -> Tensor:
        """The GELU of what `forward` gives; kernels write it as `dtype`."""
        if self.packed is None or not has_kernels(x):
            return F.gelu(self(x), approximate=reference.TORCH_GELUS[form])
        return kernels.linear(x, self.packed, dtype=dtype, gelu=form)

    def add_to(self, stream: Tensor, x: Tensor) -> Tensor:
        """The stream (..., out) plus what `forward` gives; kernels write over the stream."""
        if self.packed is None or not has_kernels(x):
            return stream + self(x).to(stream.dtype)
        return kernels.linear(x, self.packed, residual=stream)

    @property
    def rows_dtype(self) -> torch.dtype:
        """The type that loses nothing, or next to nothing, of the rows that this map multiplies."""
        return rows_dtype(self.packed)

    def pack(self, precision: kernels.Precision) -> None:
        """Stores the weights in the kernels' layout at `precision` and frees the parameters."""
        weight, bias = self.weight.detach(), _detached(self.bias)
        self.packed = kernels.pack_linear(weight, bias, precision, release=True)
        self._parameters["weight"] = None
        self._parameters["bias"] = None


def rows_dtype(packed: kernels.PackedLinear | None) -> torch.dtype:
    """bfloat16 where a map rounds its rows to that or to whole numbers, else float32."""
    is_exact = packed is None or packed.precision == "float32"
    return torch.float32 if is_exact else torch.bfloat16


def pack_together(linears: Sequence[Linear], precision: kernels.Precision) -> kernels.PackedLinear:
    """One packed map that gives the outputs of several side by side; frees their parameters."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [_detached(linear.bias) for linear in linears]
    bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
    for linear in linears:
        kernels.release_pages(linear.weight.detach())  # copied: the file's pages may go
        linear._parameters["weight"] = None
        linear._parameters["bias"] = None
    return kernels.pack_linear(weight, bias, precision)


def empty_embedding(num_rows: int, size: int) -> nn.Embedding:
    """A table of `num_rows` rows (size,) that is still to be filled.

    torch 2.13 would draw normal numbers, which on the meta device imports its compiler: two
    seconds of a start, and 130 MB.
    """
    return nn.Embedding.from_pretrained(torch.empty(num_rows, size), freeze=False)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalises the last dimension; kernels write it as `dtype` if given."""
        if has_kernels(x):
            return kernels.rms_norm(x, self.weight, self.eps, dtype)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm with mean, variance, weight and bias."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalises the last dimension; kernels write it as `dtype` if given."""
        if has_kernels(x):
            return kernels.layer_norm(x, self.weight, self.bias, self.eps, dtype)
        return super().forward(x)


class MRotaryEmbedding(nn.Module):
    """Angles of the decoder's rotary embedding over three positions, interleaved.

    Frequency i follows height when i % 3 == 1 and width when i % 3 == 2, as long as i is below
    three times that axis' section; every other frequency follows time.
    Source: Qwen3-VL (transformers, models/qwen3_vl).
    """

    inv_freq: Tensor
    axis: Tensor

    def __init__(self, head_dim: int, theta: float, sections: tuple[int, int, int]) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        axis = torch.zeros(head_dim // 2, dtype=torch.long, device="cpu")
        for which in (1, 2):
            axis[which : sections[which] * 3 : 3] = which
        self.register_buffer("inv_freq", 1.0 / theta**exponent, persistent=False)
        self.register_buffer("axis", axis, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 (T, D), of positions (3, T)."""
        angles = positions.float()[self.axis].t() * self.inv_freq  # (T, D / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the two halves of every head by the given angles: x (T, H, D), cos and sin (T, D)."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return x * cos[:, None].to(x.dtype) + turned * sin[:, None].to(x.dtype)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
