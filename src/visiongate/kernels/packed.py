"""Linear layers whose weights lie in the order in which the kernels read them.

`pack_linear` turns a published weight (N, K) into a `PackedLinear`; `linear` multiplies with it,
`linear_part` with some of its outputs, and `embedding` reads single rows back out of it (a tied
head needs no second copy). The layout is drawn in csrc/layout.h. Every number of rows goes through
the same order of additions, so a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from visiongate.kernels import native, reference

Precision = Literal["float32", "bfloat16", "int8"]
Storage = Literal["float32", "bfloat16", "int8"]
Gelu = Literal["tanh", "erf"]
"""GELU's approximation by tanh, or GELU itself."""

_COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A linear layer's weight in the kernels' order.

    Attributes:
        in_features: K.
        out_features: N.
        precision: what the arithmetic is: exact float32; products of bfloat16 added in float32; or
            products of int8 with one scale per output channel and one per 256 activations.
        storage: how a weight is held; float32 precision holds bfloat16 when that loses nothing.
        is_native: whether `weight` is in panels for the library, or (N, K) for torch.
        weight: panels, flat; or (N, K).
        bias: float32 (N,), or None.
        scale: float32 of each output channel for int8, padded as panels are, else None.
    """

    in_features: int
    out_features: int
    precision: Precision
    storage: Storage
    is_native: bool
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        held = (self.weight, self.bias, self.scale)
        return sum(t.nbytes for t in held if t is not None)

    def outputs(self, start: int, stop: int) -> PackedLinear:
        """The map to outputs [start, stop) alone, of the same memory.

        In panels, `start` must be a multiple of PANEL.
        """
        assert 0 <= start < stop <= self.out_features
        end, weight = stop, self.weight[start:stop]
        if self.is_native:
            assert start % native.PANEL == 0
            panels = self.weight.view(-(-self.out_features // native.PANEL), -1)
            first, last = start // native.PANEL, -(-stop // native.PANEL)
            end, weight = last * native.PANEL, panels[first:last].flatten()
        return replace(
            self,
            out_features=stop - start,
            weight=weight,
            bias=None if self.bias is None else self.bias[start:stop],
            scale=None if self.scale is None else self.scale[start:end],
        )


def pack_linear(
    weight: Tensor, bias: Tensor | None, precision: Precision, *, release: bool = False
) -> PackedLinear:
    """The packed form of a linear layer with `weight` (N, K), float32 or bfloat16, and `bias` (N,).

    `release` tells the kernel that the weight's memory-mapped pages need not stay in memory; the
    weight must then be a view of a file that is not read again soon.
    """
    bias = None if bias is None else bias.float().contiguous()
    if native.library() is not None and weight.device.type == "cpu":
        release = release and weight.is_contiguous()
        return _pack_native(weight.contiguous(), bias, precision, release)
    N, K = weight.shape
    if precision == "int8":
        quantized, scale = reference.quantize_weight(weight)
        return PackedLinear(K, N, precision, "int8", False, quantized, bias, scale)
    storage: Storage = precision
    dense = weight.to(_COMPUTE_DTYPES[precision])
    return PackedLinear(K, N, precision, storage, False, dense, bias)


def _pack_native(
    weight: Tensor, bias: Tensor | None, precision: Precision, release: bool
) -> PackedLinear:
    N, K = weight.shape
    if precision == "int8":
        panels, scale = native.pack_int8(weight, release)
        return PackedLinear(K, N, precision, "int8", True, panels, bias, scale)
    fits = weight.dtype == torch.bfloat16 or precision == "bfloat16"
    if not fits:
        rounded = weight.bfloat16()
        fits = torch.equal(rounded.float(), weight)
    if fits:
        panels = native.pack_bfloat16(weight.bfloat16(), release)
        return PackedLinear(K, N, precision, "bfloat16", True, panels, bias)
    return PackedLinear(
        K, N, precision, "float32", True, native.pack_float32(weight, release), bias
    )


def linear(
    x: Tensor,
    packed: PackedLinear,
    *,
    dtype: torch.dtype | None = None,
    gelu: Gelu | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The product of x (..., K) and the packed weight, plus its bias: (..., N).

    It has x's type, or `dtype`. With `gelu` the result is the GELU of that. With a `residual`
    (..., N), contiguous, it is added to that one, which is written over and returned.
    """
    K, N = packed.in_features, packed.out_features
    rows = x.reshape(-1, K)
    if packed.is_native:
        stream = None if residual is None else residual.view(-1, N)
        return native.linear(rows, packed, dtype or x.dtype, gelu, stream).view(*x.shape[:-1], N)
    if packed.precision == "int8":
        assert packed.scale is not None
        y = reference.linear_int8(rows, packed.weight, packed.scale, packed.bias)
    else:
        bias = None if packed.bias is None else packed.bias.to(packed.weight.dtype)
        y = nn.functional.linear(rows.to(packed.weight.dtype), packed.weight, bias).to(x.dtype)
    y = y.view(*x.shape[:-1], N)
    if gelu is not None:
        y = reference.gelu(y, gelu)
    return y.to(dtype or x.dtype) if residual is None else residual.add_(y)


def linear_part(x: Tensor, packed: PackedLinear, start: int, stop: int) -> Tensor:
    """Outputs [start, stop) of `linear` (..., stop - start); rows may be apart."""
    first = start // native.PANEL * native.PANEL if packed.is_native else start
    return linear(x, packed.outputs(first, stop))[..., start - first :]


def embedding(ids: Tensor, packed: PackedLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows `ids` (T,) of the packed weight: (T, K) of type `dtype`."""
    if packed.is_native:
        return native.embedding(ids, packed, dtype)
    rows = packed.weight[ids]
    if packed.scale is not None:
        rows = rows.float() * packed.scale[ids, None]
    return rows.to(dtype)
