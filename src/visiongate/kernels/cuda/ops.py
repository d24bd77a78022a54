"""The small kernels of a GPU step, in Triton: what stands between the matrix products.

    embed_rows            token ids -> residual stream, float32
    place_rows            prompt: pictures' features where they belong
    gather_angles         prompt: cosines and sines of its rotary positions
    add_norm              residual += product; RMS norm of it
    qk_norm_rope_store    prompt: norm and turn queries and keys, put keys and values in the cache
    prompt_attention      prompt: attention of a chunk over the paged cache
    decode_attention      one new token a row: norm, turn, store, and attention over the paged cache
    add_layer_norm, rotate_vision    the vision tower's
    silu_mul, argmax_rows
    draw_rows             one random draw a row: temperature, top-k, top-p, min-p

Dimensions: T or B rows, C channels, I inner channels, H heads, Hkv key-value heads, D head size.
One layer's cache of keys or values is (blocks, Hkv, block size, D): what a head reads of a block
lies together. A slot is block * block size + place in it. Matrices are row-major.

Kernels launched with `pdl` start while the kernel before them ends (programmatic dependent launch,
compute capability 9.0), let the next one do the same at once, and read what others write only
after `gdc_wait`; what they read before was complete when the graph was launched.

A row's result has the same bits in any batch: sums run in an order that only the row's own length
decides. Source of the split softmax: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PART = 128
"""Positions of the cache whose softmax is summed as one; parts are merged in order."""

TILE = 64
"""Positions that `decode_attention` reads at a time."""

STAGES = 2
"""Tiles on their way from memory while one is computed."""

MERGED = tl.constexpr(64)
"""Parts that the merge reads at once."""

_LOG2E = tl.constexpr(1.4426950408889634)


def num_parts(context: int) -> int:
    """Parts of a context, each of which needs room in `decode_attention`'s work space."""
    return -(-context // PART)


def embed_rows(tokens: Tensor, drawn: Tensor, source: Tensor, table: Tensor, out: Tensor) -> None:
    """Gives out (B, C) float32 = table[token]; token = drawn[source] where source >= 0 (int32)."""
    B, C = out.shape
    _embed[(B,)](tokens, drawn, source, table, out, C, triton.next_power_of_2(C), num_warps=8)


def place_rows(rows: Tensor, where: Tensor, out: Tensor, *, keeps_others: bool) -> None:
    """Puts rows[where[t]] into row t of out (T, C), float32; int32 (T,).

    Where that is negative the row of `out` stays as it is, or becomes zeros.
    """
    T, C = out.shape
    _place_rows[(T,)](rows, where, out, C, triton.next_power_of_2(C), keeps_others, num_warps=8)


def gather_angles(
    places: Tensor, axis: Tensor, cosines: Tensor, sines: Tensor, cos: Tensor, sin: Tensor
) -> None:
    """Cosines and sines (T, D / 2) of positions int32 (3, T), out of tables (positions, D / 2).

    `axis` int64 (D / 2,) says which of the three positions a frequency follows.
    """
    T, half = cos.shape
    _gather_angles[(T,)](
        places, axis, cosines, sines, cos, sin, T, half, triton.next_power_of_2(half), num_warps=1
    )


def add_norm(
    residual: Tensor,
    parts: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
) -> None:
    """Adds parts (S, T, C) to residual (T, C) in order; out = RMS norm of it times weight (C,)."""
    T, C = residual.shape
    _add_norm[(T,)](
        residual,
        residual if parts is None else parts,
        weight,
        out,
        T,
        C,
        triton.next_power_of_2(C),
        0 if parts is None else parts.shape[0],
        eps,
        num_warps=8,
    )


def add_layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, out: Tensor, eps: float
) -> None:
    """Adds delta (N, C) to x (N, C) in x's type; out = layer norm of it, weight and bias (C,)."""
    N, C = x.shape
    _add_layer_norm[(N,)](
        x,
        x if delta is None else delta,
        weight,
        bias,
        out,
        C,
        triton.next_power_of_2(C),
        delta is not None,
        eps,
        num_warps=4,
    )


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """Gives out (T, I) = silu(gate_up[:, :I]) * gate_up[:, I:]."""
    T, inner = out.shape
    width = min(2048, triton.next_power_of_2(inner))
    _silu_mul[(T, triton.cdiv(inner, width))](gate_up, out, inner, width)


def qk_norm_rope_store(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    eps: float,
) -> None:
    """Queries and keys normed per head and turned, in place; keys and values into their slots.

    Args:
        qkv: (T, (H + 2 Hkv) D).
        cos, sin: float32 (T, D / 2).
        keys, values: (blocks, Hkv, block size, D), one layer's cache.
        slots: int32 (T,).
    """
    T = qkv.shape[0]
    _, kv_heads, block_size, head = keys.shape
    heads = qkv.shape[1] // head - 2 * kv_heads
    _qk_norm_rope_store[(T,)](
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        keys,
        values,
        slots,
        heads,
        kv_heads,
        head // 2,
        block_size,
        triton.next_power_of_2(heads + kv_heads),
        triton.next_power_of_2(kv_heads),
        eps,
    )


def rotate_vision(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> None:
    """Turns queries and keys of qkv (N, 3, H, D) in place; cos, sin float32 (N, D / 2)."""
    N = qkv.shape[0]
    half = cos.shape[1]
    _rotate_vision[(N,)](
        qkv, cos, sin, num_heads, triton.next_power_of_2(2 * num_heads), half,
        triton.next_power_of_2(half),
    )  # fmt: skip


class AttentionSpace:
    """Work space of `decode_attention` for `num_rows` rows with `num_parts` parts together."""

    def __init__(
        self,
        num_rows: int,
        num_parts: int,
        heads: int,
        kv_heads: int,
        head: int,
        device: torch.device,
    ) -> None:
        self.num_parts = num_parts
        count = num_parts * heads
        self.sums = torch.empty(count * head, dtype=torch.float32, device=device)
        self.stats = torch.empty(count, 2, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(num_rows * kv_heads, dtype=torch.int32, device=device)


def decode_attention(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    rope_places: Tensor,
    first_parts: Tensor,
    tables: Tensor,
    space: AttentionSpace,
    out: Tensor,
    *,
    eps: float,
    pdl: bool = False,
) -> None:
    """Attention of one new token a row over its paged cache; stores its key and value there.

    Args:
        qkv: (B, (H + 2 Hkv) D), as the product gave it.
        cos, sin: float32 (positions, D / 2), tables by rope position.
        keys, values: (blocks, Hkv, block size, D), one layer's cache.
        places: int32 (B,), the new token's place in its sequence.
        rope_places: int32 (B,), its rotary position, equal in time, height and width.
        first_parts: int32 (B,), where the row's `num_parts(place + 1)` parts begin in `space`.
        tables: int32 (B, blocks).
        out: (B, H D).
    """
    B = qkv.shape[0]
    _, kv_heads, block_size, head = keys.shape
    heads = qkv.shape[1] // head - 2 * kv_heads
    splits = max(8, min(32, 256 // (B * kv_heads)))
    _decode_attention[(B * kv_heads, splits)](
        qkv,
        keys,
        values,
        cos,
        sin,
        q_weight,
        k_weight,
        places,
        rope_places,
        first_parts,
        tables,
        out,
        space.sums,
        space.stats,
        space.arrived,
        tables.stride(0),
        kv_heads,
        heads // kv_heads,
        head // 2,
        block_size,
        PART,
        min(TILE, block_size),
        splits,
        STAGES,
        head**-0.5,
        eps,
        pdl,
        num_warps=4,
        **_launch(pdl),
    )


def prompt_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    span: Tensor,
    out: Tensor,
) -> None:
    """Causal attention of a chunk of one prompt over its paged cache, its own keys included.

    Args:
        qkv: (T, (H + 2 Hkv) D), queries normed and turned; keys and values are in the cache.
        keys, values: (blocks, Hkv, block size, D), one layer's cache.
        table: int32 (blocks,).
        span: int32 (2,): the chunk's first position and its tokens; rows from there on are not
            computed, so that one graph serves every shorter chunk.
        out: (T, H D).
    """
    T = qkv.shape[0]
    _, kv_heads, block_size, head = keys.shape
    heads = qkv.shape[1] // head - 2 * kv_heads
    _prompt_attention[(triton.cdiv(T, _QUERIES), heads)](
        qkv,
        keys,
        values,
        table,
        span,
        out,
        kv_heads,
        heads // kv_heads,
        head,
        block_size,
        _QUERIES,
        min(64, block_size),
        head**-0.5,
        num_warps=4,
        num_stages=3,
    )


_QUERIES = 64


class ArgmaxSpace:
    """Work space of `argmax_rows`."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.best = torch.empty(num_rows, _SLICES, dtype=torch.float32, device=device)
        self.where = torch.empty(num_rows, _SLICES, dtype=torch.int32, device=device)
        self.ordered = torch.empty_like(self.best)  # each row of `best`, the largest first


_SLICES = 64


def argmax_rows(logits: Tensor, space: ArgmaxSpace, out: Tensor, *, pdl: bool = False) -> None:
    """Gives out int32 (B,) = place of the largest of logits (B, V), the first of equal ones."""
    B, V = logits.shape
    per = triton.cdiv(V, _SLICES)
    _argmax_slices[(B, _SLICES)](
        logits, space.best, space.where, V, per, triton.next_power_of_2(per), _SLICES, pdl,
        num_warps=2, **_launch(pdl),
    )  # fmt: skip
    _argmax_merge[(B,)](space.best, space.where, space.ordered, out, _SLICES, pdl, **_launch(pdl))


MOST_DRAWN = 32
"""The largest top-k of `draw_rows`."""


class DrawSpace:
    """Work space of `draw_rows`."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.best = torch.empty(num_rows, 2 * _SLICES, MOST_DRAWN, dtype=torch.int64, device=device)


def draw_rows(
    logits: Tensor,
    settings: Tensor,
    argmax: ArgmaxSpace,
    space: DrawSpace,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Draws a token in some rows of logits (B, V) float32, by inverting the cumulative sum.

    Args:
        argmax: the space that `argmax_rows` had for these logits. The k-th largest of a row's 64
            maxima is no larger than the k-th largest logit, so slices with a smaller maximum are
            not read.
        settings: float64 (R, 6), for each row that draws: the row, temperature, top-k (1 to
            MOST_DRAWN), top-p, min-p, and a random number in [0, 1). A top-k of 0 draws nothing.
        out: int32 (B,); the rows that draw are written.
    """
    R, V = len(settings), logits.shape[1]
    per = triton.cdiv(V, _SLICES)
    halves = 2 if per > 2048 else 1  # of a slice whose maximum is known
    width = max(MOST_DRAWN, triton.next_power_of_2(triton.cdiv(per, halves)))
    maxima, ordered = argmax.best, argmax.ordered
    _draw_slices[(R, halves * _SLICES)](
        logits, settings, maxima, ordered, space.best, V, per, width, halves, _SLICES, MOST_DRAWN,
        pdl, **_launch(pdl),
    )  # fmt: skip
    _draw_merge[(R,)](
        settings, maxima, ordered, space.best, out, halves, _SLICES, MOST_DRAWN, pdl,
        **_launch(pdl),
    )  # fmt: skip


def _launch(pdl: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def _embed(tokens, drawn, source, table, out, C, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    where = tl.load(source + row)
    if where >= 0:
        token = tl.load(drawn + where)
    c = tl.arange(0, WIDTH)
    x = tl.load(table + token.to(tl.int64) * C + c, mask=c < C, other=0.0)
    tl.store(out + row * C + c, x.to(tl.float32), mask=c < C)


@triton.jit
def _place_rows(rows, where, out, C, WIDTH: tl.constexpr, KEEPS: tl.constexpr):
    row = tl.program_id(0)
    source = tl.load(where + row).to(tl.int64)
    c = tl.arange(0, WIDTH)
    if source >= 0:
        x = tl.load(rows + source * C + c, mask=c < C, other=0.0)
        tl.store(out + row * C + c, x.to(tl.float32), mask=c < C)
    elif not KEEPS:
        tl.store(out + row * C + c, tl.zeros((WIDTH,), tl.float32), mask=c < C)


@triton.jit
def _gather_angles(places, axis, cosines, sines, cos, sin, T, HALF, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, WIDTH)
    inside = d < HALF
    which = tl.load(axis + d, mask=inside, other=0)
    place = tl.load(places + which * T + row, mask=inside, other=0)
    at = place.to(tl.int64) * HALF + d
    tl.store(cos + row * HALF + d, tl.load(cosines + at, mask=inside, other=0.0), mask=inside)
    tl.store(sin + row * HALF + d, tl.load(sines + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def _add_norm(
    residual, parts, weight, out, T, C, WIDTH: tl.constexpr, S: tl.constexpr, EPS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < C
    g = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(residual + row * C + c, mask=inside, other=0.0)
    if S > 0:
        for s in tl.static_range(S):
            part = tl.load(parts + (s * T + row) * C + c, mask=inside, other=0.0)
            x += part.to(tl.float32)
        tl.store(residual + row * C + c, x, mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, 0) / C + EPS)
    tl.store(out + row * C + c, (x * scale * g).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_layer_norm(
    x, delta, weight, bias, out, C, WIDTH: tl.constexpr, HAS_DELTA: tl.constexpr, EPS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < C
    value = tl.load(x + row * C + c, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + row * C + c, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(x.dtype.element_ty)
        tl.store(x + row * C + c, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 0) / C
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / C + EPS)
    g = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    y = centred * scale * g + b
    tl.store(out + row * C + c, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate_up, out, inner, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < inner
    gate = tl.load(gate_up + row * 2 * inner + c, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + c, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * inner + c, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _qk_norm_rope_store(
    qkv, q_weight, k_weight, cos, sin, keys, values, slots,
    H: tl.constexpr, HKV: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    D: tl.constexpr = 2 * HALF
    WIDTH: tl.constexpr = (H + 2 * HKV) * D
    heads = tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    c = tl.load(cos + row * HALF + d)[None, :]
    s = tl.load(sin + row * HALF + d)[None, :]
    inside = (heads < H + HKV)[:, None]
    is_query = (heads < H)[:, None]
    at = qkv + row * WIDTH + heads[:, None] * D + d[None, :]
    left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / D + EPS)[:, None]
    query_left = tl.load(q_weight + d).to(tl.float32)[None, :]
    query_right = tl.load(q_weight + HALF + d).to(tl.float32)[None, :]
    key_left = tl.load(k_weight + d).to(tl.float32)[None, :]
    key_right = tl.load(k_weight + HALF + d).to(tl.float32)[None, :]
    left = left * scale * tl.where(is_query, query_left, key_left)
    right = right * scale * tl.where(is_query, query_right, key_right)
    turned_left = (left * c - right * s).to(qkv.dtype.element_ty)
    turned_right = (right * c + left * s).to(qkv.dtype.element_ty)
    tl.store(at, turned_left, mask=inside)
    tl.store(at + HALF, turned_right, mask=inside)
    slot = tl.load(slots + row).to(tl.int64)
    is_key = inside & (heads >= H)[:, None]
    first = slot // BLOCK * HKV * BLOCK + slot % BLOCK  # of key-value head 0
    key_at = keys + (first + (heads[:, None] - H) * BLOCK) * D + d[None, :]
    tl.store(key_at, turned_left, mask=is_key)
    tl.store(key_at + HALF, turned_right, mask=is_key)
    kv = tl.arange(0, KV_HEADS)
    full = tl.arange(0, D)
    one = (kv < HKV)[:, None]
    v = tl.load(
        qkv + row * WIDTH + (H + HKV + kv)[:, None] * D + full[None, :], mask=one, other=0.0
    )
    tl.store(values + (first + kv[:, None] * BLOCK) * D + full[None, :], v, mask=one)


@triton.jit
def _rotate_vision(
    qkv, cos, sin, H: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, WIDTH)
    column = (d < HALF)[None, :]
    inside = (heads < 2 * H) & column
    c = tl.load(cos + row * HALF + d, mask=d < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * HALF + d, mask=d < HALF, other=0.0)[None, :]
    at = qkv + (row * 3 * H + heads) * 2 * HALF + d[None, :]
    left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (left * c - right * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (right * c + left * s).to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _prefetch(pointers):
    """Asks for the 128-byte lines at these addresses to be brought into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _decode_attention(
    qkv, keys, values, cos, sin, q_weight, k_weight, places, rope_places, first_parts, tables, out,
    sums, stats, arrived, table_stride,
    HKV: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    SCALE: tl.constexpr, EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (row * HKV + key-value head, split): every SPLITS-th part of one head's context."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    row = pair // HKV
    head = pair % HKV
    D: tl.constexpr = 2 * HALF
    H: tl.constexpr = HKV * GROUP
    WIDTH: tl.constexpr = (H + 2 * HKV) * D
    place = tl.load(places + row)
    last = place // PART
    if split <= last:
        d = tl.arange(0, HALF)
        full = tl.arange(0, D)
        g = tl.arange(0, 16)
        in_group = (g < GROUP)[:, None]
        rope = tl.load(rope_places + row)
        first_part = tl.load(first_parts + row).to(tl.int64)
        table = tables + row.to(tl.int64) * table_stride
        c = tl.load(cos + rope * HALF + d)
        s = tl.load(sin + rope * HALF + d)
        q_left = tl.load(q_weight + d).to(tl.float32)[None, :]
        q_right = tl.load(q_weight + HALF + d).to(tl.float32)[None, :]
        k_left = tl.load(k_weight + d).to(tl.float32)
        k_right = tl.load(k_weight + HALF + d).to(tl.float32)
        home = tl.load(table + place // BLOCK).to(tl.int64)
        if PDL:
            gdc_launch_dependents()
            # What earlier steps stored may come near while the product before this ends.
            old_places = tl.minimum(split * PART + tl.arange(0, PART), tl.maximum(place - 1, 0))
            near = tl.load(table + old_places // BLOCK).to(tl.int64) * HKV + head
            near = (near * BLOCK + old_places % BLOCK) * D
            for line in tl.static_range(0, D, 64):
                _prefetch(keys + near + line)
                _prefetch(values + near + line)
            gdc_wait()
        at = qkv + row.to(tl.int64) * WIDTH + (head * GROUP + g)[:, None] * D + d[None, :]
        left = tl.load(at, mask=in_group, other=0.0).to(tl.float32)
        right = tl.load(at + HALF, mask=in_group, other=0.0).to(tl.float32)
        r = tl.rsqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / D + EPS)[:, None]
        left = left * r * q_left
        right = right * r * q_right
        q1 = (left * c[None, :] - right * s[None, :]).to(keys.dtype.element_ty)
        q2 = (right * c[None, :] + left * s[None, :]).to(keys.dtype.element_ty)
        # The new token: its key and value come from the product; one program stores them.
        at_new = qkv + row.to(tl.int64) * WIDTH + (H + head) * D + d
        left1 = tl.load(at_new).to(tl.float32)
        right1 = tl.load(at_new + HALF).to(tl.float32)
        v1 = tl.load(qkv + row.to(tl.int64) * WIDTH + (H + HKV + head) * D + full)
        r1 = tl.rsqrt((tl.sum(left1 * left1, 0) + tl.sum(right1 * right1, 0)) / D + EPS)
        left1 = left1 * r1 * k_left
        right1 = right1 * r1 * k_right
        k1 = (left1 * c - right1 * s).to(keys.dtype.element_ty)
        k2 = (right1 * c + left1 * s).to(keys.dtype.element_ty)
        if last % SPLITS == split:
            to = ((home * HKV + head) * BLOCK + place % BLOCK) * D
            tl.store(keys + to + d, k1)
            tl.store(keys + to + HALF + d, k2)
            tl.store(values + to + full, v1)
        own = q1.to(tl.float32) * k1.to(tl.float32)[None, :]
        own += q2.to(tl.float32) * k2.to(tl.float32)[None, :]
        own_score = tl.sum(own, 1) * (SCALE * _LOG2E)
        for part in tl.range(split, last + 1, SPLITS):
            begin = part * PART
            end = tl.minimum(place, begin + PART)
            is_last = part == last
            m = tl.where(is_last, own_score, -1e30)
            total = tl.where(is_last, tl.full([16], 1.0, tl.float32), 0.0)
            acc = tl.where(is_last, tl.zeros([16, D], tl.float32) + v1.to(tl.float32)[None, :], 0.0)
            for t in tl.range(begin, end, TILE, num_stages=STAGES):
                offset = t + tl.arange(0, TILE)
                old = offset < end
                block = tl.load(table + t // BLOCK).to(tl.int64)
                at_old = ((block * HKV + head) * BLOCK + offset % BLOCK) * D
                k1t = tl.load(keys + at_old[None, :] + d[:, None], mask=old[None, :], other=0.0)
                k2t = tl.load(
                    keys + at_old[None, :] + HALF + d[:, None], mask=old[None, :], other=0.0
                )
                v = tl.load(values + at_old[:, None] + full[None, :], mask=old[:, None], other=0.0)
                scores = tl.dot(q1, k1t, input_precision="ieee")
                scores = tl.dot(q2, k2t, scores, input_precision="ieee")
                scores = tl.where(old[None, :], scores * (SCALE * _LOG2E), float("-inf"))
                new = tl.maximum(m, tl.max(scores, 1))
                shrink = tl.exp2(m - new)
                p = tl.exp2(scores - new[:, None])
                total = total * shrink + tl.sum(p, 1)
                acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
                m = new
            if last == 0:
                to1 = out + row.to(tl.int64) * H * D + (head * GROUP + g)[:, None] * D
                y = (acc / total[:, None]).to(out.dtype.element_ty)
                tl.store(to1 + full[None, :], y, mask=in_group)
            else:
                base = ((first_part + part) * HKV + head) * GROUP
                tl.store(sums + (base + g)[:, None] * D + full[None, :], acc, mask=in_group)
                tl.store(stats + 2 * (base + g), m, mask=g < GROUP)
                tl.store(stats + 2 * (base + g) + 1, total, mask=g < GROUP)
        if last > 0:
            tl.debug_barrier()
            before = tl.atomic_add(arrived + pair, 1, sem="acq_rel")
            if before == tl.minimum(SPLITS, last + 1) - 1:
                tl.store(arrived + pair, 0)
                i = tl.arange(0, MERGED)
                for which in tl.static_range(GROUP):
                    m0 = tl.full([1], float("-inf"), tl.float32)
                    total0 = tl.zeros([1], tl.float32)
                    acc0 = tl.zeros([D], tl.float32)
                    for first in tl.range(0, last + 1, MERGED):
                        mask = first + i <= last
                        at0 = ((first_part + first + i) * HKV + head) * GROUP + which
                        mi = tl.load(
                            stats + 2 * at0, mask=mask, other=float("-inf"), cache_modifier=".cg"
                        )
                        li = tl.load(
                            stats + 2 * at0 + 1, mask=mask, other=0.0, cache_modifier=".cg"
                        )
                        oi = tl.load(
                            sums + at0[:, None] * D + full[None, :],
                            mask=mask[:, None], other=0.0, cache_modifier=".cg",
                        )  # fmt: skip
                        new0 = tl.maximum(m0, tl.max(mi, 0))
                        shrink0 = tl.exp2(m0 - new0)
                        e = tl.exp2(mi - new0)
                        total0 = total0 * shrink0 + tl.sum(li * e, 0)
                        acc0 = acc0 * shrink0 + tl.sum(oi * e[:, None], 0)
                        m0 = new0
                    to0 = out + row.to(tl.int64) * H * D + (head * GROUP + which) * D
                    tl.store(to0 + full, (acc0 / total0).to(out.dtype.element_ty))


@triton.jit
def _prompt_attention(
    qkv, keys, values, table, span, out, HKV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Program (64 queries, head): over the context in tiles, up to the last query's own key."""
    H: tl.constexpr = HKV * GROUP
    WIDTH: tl.constexpr = (H + 2 * HKV) * D
    first = tl.program_id(0) * ROWS
    head = tl.program_id(1)
    start = tl.load(span)
    count = tl.load(span + 1)
    if first < count:
        rows = first + tl.arange(0, ROWS)
        d = tl.arange(0, D)
        inside = (rows < count)[:, None]
        at = qkv + rows.to(tl.int64)[:, None] * WIDTH + head * D + d[None, :]
        q = tl.load(at, mask=inside, other=0.0)
        kv = head // GROUP
        m = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D], tl.float32)
        end = start + tl.minimum(count, first + ROWS)
        for t in tl.range(0, end, TILE):
            places = t + tl.arange(0, TILE)
            block = tl.load(table + t // BLOCK).to(tl.int64)
            slots = (block * HKV + kv) * BLOCK + places % BLOCK
            known = places < end
            k = tl.load(keys + slots[None, :] * D + d[:, None], mask=known[None, :], other=0.0)
            v = tl.load(values + slots[:, None] * D + d[None, :], mask=known[:, None], other=0.0)
            scores = tl.dot(q, k, input_precision="ieee") * (SCALE * _LOG2E)
            scores = tl.where(places[None, :] <= (start + rows)[:, None], scores, float("-inf"))
            new = tl.maximum(m, tl.max(scores, 1))
            shrink = tl.exp2(m - new)
            p = tl.exp2(scores - new[:, None])
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            m = new
        to = out + rows.to(tl.int64)[:, None] * H * D + head * D + d[None, :]
        tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _argmax_slices(
    logits, best, where, V, per, WIDTH: tl.constexpr, SLICES: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    c = part * per + tl.arange(0, WIDTH)
    inside = (c < V) & (c < (part + 1) * per)
    x = tl.load(logits + row * V + c, mask=inside, other=float("-inf")).to(tl.float32)
    value, at = tl.max(x, 0, return_indices=True)
    tl.store(best + row * SLICES + part, value)
    tl.store(where + row * SLICES + part, part * per + at)


@triton.jit
def _argmax_merge(best, where, ordered, out, SLICES: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i = tl.arange(0, SLICES)
    most = tl.load(best + row * SLICES + i)
    _, at = tl.max(most, 0, return_indices=True)
    tl.store(out + row, tl.load(where + row * SLICES + at))
    other = tl.load(best + row * SLICES + i)[None, :]
    is_before = (other > most[:, None]) | ((other == most[:, None]) & (i[None, :] < i[:, None]))
    tl.store(ordered + row * SLICES + tl.sum(is_before.to(tl.int32), 1), most)


@triton.jit
def _largest(keys, count, least, K: tl.constexpr):
    """The `count` largest of different int64 keys, the largest first; none below `least`."""
    rank = tl.arange(0, K)
    found = tl.full([K], -0x7FFFFFFFFFFFFFFF, tl.int64)
    best = tl.max(keys, 0)
    i = 0
    while (i < count) & (best >= least):
        found = tl.where(rank == i, best, found)
        keys = tl.where(keys == best, -0x7FFFFFFFFFFFFFFF, keys)
        best = tl.max(keys, 0)
        i += 1
    return found


@triton.jit
def _ordered(x):
    """Bits of a float32 as an int32 of the same order; its own inverse."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _draw_slices(
    logits, settings, maxima, ordered, best, V, per,
    WIDTH: tl.constexpr, HALVES: tl.constexpr, MAXIMA: tl.constexpr, K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """What one slice, or half of it, has of its row's k largest, as (order of the logit, ~token).

    A slice that has nothing of them is not read, and nothing is written for it.
    """
    which = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.load(settings + which * 6).to(tl.int64)
    top_k = tl.load(settings + which * 6 + 2).to(tl.int32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if top_k == 0:
        return
    least = tl.load(ordered + row * MAXIMA + top_k - 1)  # of the k largest none is below it
    owner = part // HALVES
    if tl.load(maxima + row * MAXIMA + owner) < least:
        return
    half = tl.cdiv(per, HALVES)
    c = part % HALVES * half + tl.arange(0, WIDTH)
    inside = (c < per) & (c < (part % HALVES + 1) * half)
    c += owner * per
    inside = inside & (c < V)
    x = tl.load(logits + row * V + c, mask=inside, other=float("-inf"))
    keys = _ordered(x).to(tl.int64) * 0x100000000 + (0x7FFFFFFF - c).to(tl.int64)
    lowest = _ordered(least).to(tl.int64) * 0x100000000
    at = best + (which * MAXIMA * HALVES + part) * K + tl.arange(0, K)
    tl.store(at, _largest(keys, top_k, lowest, K))


@triton.jit
def _draw_merge(
    settings, maxima, ordered, best, out,
    HALVES: tl.constexpr, MAXIMA: tl.constexpr, K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0)
    row = tl.load(settings + which * 6).to(tl.int64)
    temperature = tl.load(settings + which * 6 + 1).to(tl.float32)
    top_k = tl.load(settings + which * 6 + 2).to(tl.int32)
    top_p = tl.load(settings + which * 6 + 3).to(tl.float32)
    min_p = tl.load(settings + which * 6 + 4).to(tl.float32)
    uniform = tl.load(settings + which * 6 + 5)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if top_k == 0:
        return
    least = tl.load(ordered + row * MAXIMA + top_k - 1)
    COUNT: tl.constexpr = MAXIMA * HALVES * K
    i = tl.arange(0, COUNT)
    is_written = tl.load(maxima + row * MAXIMA + i // (HALVES * K)) >= least
    keys = tl.load(best + which * COUNT + i, mask=is_written, other=-0x7FFFFFFFFFFFFFFF)
    keys = _largest(keys, top_k, -0x7FFFFFFFFFFFFFFF, K)
    token = 0x7FFFFFFF - (keys & 0xFFFFFFFF).to(tl.int32)
    bits = (keys >> 32).to(tl.int32)
    x = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    rank = tl.arange(0, K)
    x = tl.where(rank < top_k, x / temperature, float("-inf"))
    largest = tl.max(x, 0)
    weight = tl.exp(x - largest)
    weight = weight / tl.sum(weight, 0)
    before = tl.cumsum(weight.to(tl.float64), 0) - weight
    keep = (weight > 0) & (before < tl.where(top_p >= 1, 2.0, top_p))
    keep = keep & (weight >= min_p * tl.max(weight, 0))
    keep = tl.where(rank == 0, True, keep)
    cumulative = tl.cumsum(tl.where(keep, weight, 0.0).to(tl.float64), 0)
    target = uniform * tl.max(cumulative, 0)
    place = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), 0), K - 1)
    tl.store(out + row, tl.sum(tl.where(rank == place, token, 0), 0))
