"""The vision tower: patches in, one feature row for every 2 x 2 patches out, with DeepStack taps.

Patches come in merge order: the four patches of a 2 x 2 block stand together, blocks row by row.
Dimensions: N patches, V = N / 4 visual rows, C channels, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiongate import kernels
from visiongate.kernels import reference
from visiongate.model.attention import attend_within
from visiongate.model.config import VisionConfig
from visiongate.model.inputs import VisionFeatures
from visiongate.model.layers import (
    LayerNorm,
    Linear,
    Stack,
    empty_embedding,
    has_kernels,
    rotate,
)

Grid = tuple[int, int]
"""Patches down and across."""

MLP_ROWS = 1024
"""Rows that kernels take through an MLP at a time: as fast as all at once, in less memory."""


class PatchEmbed(nn.Module):
    """Patches to channels.

    The checkpoint has a convolution over two frames; a still picture shows the same frame twice, so
    the two halves of the kernel are added once and the map is one matrix product.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        shape = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, shape, stride=shape)
        self._folded: Tensor | None = None
        self._packed: kernels.PackedLinear | None = None

    def forward(self, patches: Tensor) -> Tensor:
        """Maps one frame of patches (N, channels * patch * patch) to (N, C)."""
        bias = self.proj.bias
        assert bias is not None
        if has_kernels(patches):
            if self._packed is None:  # exact at every precision: it is a hundredth of the tower
                self._packed = kernels.pack_linear(self._fold(), bias, "float32")
            return kernels.linear(patches, self._packed)
        weight = self._folded
        if weight is None:
            weight = self._fold()
            if not torch.is_grad_enabled():
                self._folded = weight
        return F.linear(patches, weight.to(patches.dtype), bias.to(patches.dtype))

    def _fold(self) -> Tensor:
        return self.proj.weight.float().sum(2).flatten(1)


class VisionAttention(nn.Module):
    """Full attention within each picture, with a 2-D rotary embedding."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.products = torch.float32
        """What native kernels multiply in: what the maps around multiply in."""
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, stream: Tensor, x: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]
    ) -> Tensor:
        """The stream (N, C) plus the rows of x (N, C), mixed within each picture."""
        N, C = x.shape
        qkv = self.qkv(x, self.qkv.rows_dtype).view(N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.unbind(1)
        if has_kernels(x):
            narrow = torch.float32 if self.products == torch.float32 else torch.bfloat16
            q, k = (kernels.norm_rope(x, None, cos, sin, 0.0, narrow) for x in (q, k))
        else:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = attend_within(q, k, v, lengths, products=self.products)
        return self.proj.add_to(stream, out.reshape(N, C))


class VisionMLP(nn.Module):
    """Two maps around a tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, stream: Tensor, x: Tensor) -> Tensor:
        """The stream (N, C) plus the maps of x (N, C)."""
        if self.linear_fc2.packed is None or not has_kernels(x):
            return self._map(stream, x)
        for rows, normed in zip(stream.split(MLP_ROWS), x.split(MLP_ROWS), strict=True):
            self._map(rows, normed)  # in place
        return stream

    def _map(self, stream: Tensor, x: Tensor) -> Tensor:
        wide = self.linear_fc1.gelu(x, "tanh", self.linear_fc2.rows_dtype)
        return self.linear_fc2.add_to(stream, wide)


class VisionBlock(nn.Module):
    """Attention and MLP, each on a normed copy, each added to the stream (kernels: in place)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(N, C) to (N, C)."""
        return self.transform(self.mix(x, cos, sin, lengths))

    def mix(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The first half: rows of a picture see each other."""
        normed = self.norm1(x, self.attn.qkv.rows_dtype)
        return self.attn(x, normed, cos, sin, lengths)

    def transform(self, x: Tensor) -> Tensor:
        """The second half: each row for itself."""
        return self.mlp(x, self.norm2(x, self.mlp.linear_fc1.rows_dtype))


class PatchMerger(nn.Module):
    """Joins 2 x 2 patches into one row of the decoder's size.

    The last merger norms each patch; the DeepStack mergers norm the joined row.
    """

    def __init__(self, config: VisionConfig, *, norm_after_join: bool) -> None:
        super().__init__()
        self.joined_size = config.hidden_size * config.spatial_merge_size**2
        self.norm_after_join = norm_after_join
        norm_size = self.joined_size if norm_after_join else config.hidden_size
        self.norm = LayerNorm(norm_size, eps=1e-6)
        self.linear_fc1 = Linear(self.joined_size, self.joined_size)
        self.linear_fc2 = Linear(self.joined_size, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to (V, decoder C)."""
        if self.norm_after_join:
            x = x.view(-1, self.joined_size)
        normed = self.norm(x, self.linear_fc1.rows_dtype).view(-1, self.joined_size)
        wide = self.linear_fc1.gelu(normed, "erf", self.linear_fc2.rows_dtype)
        return self.linear_fc2(wide, x.dtype)


@dataclass(slots=True, eq=False)
class Encoding:
    """A batch of pictures on its way through the tower, so that the work can be cut into slices.

    A stage is half a block: stage 2 i mixes rows in block i, stage 2 i + 1 transforms them.

    Attributes:
        hidden: (N, C), the stream after `num_done` stages.
        lengths: patches of each picture.
        taps: DeepStack features so far, each (V, decoder C).
        delta: (N, C), what `hidden` still lacks where the addition waits for the next norm.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    lengths: tuple[int, ...]
    num_done: int = 0
    taps: list[Tensor] = field(default_factory=list)
    delta: Tensor | None = None


class VisionTower(nn.Module):
    """`forward` encodes pictures at once; `begin`, `advance`, `finish` do it in slices."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = empty_embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks: Stack[VisionBlock] = Stack(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_after_join=False)
        self.deepstack_merger_list: Stack[PatchMerger] = Stack(
            PatchMerger(config, norm_after_join=True) for _ in config.deepstack_visual_indexes
        )
        self._tables: dict[Grid, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def forward(self, patches: Tensor, grids: list[Grid]) -> list[VisionFeatures]:
        """Encodes pictures given as patches (N, channels * patch * patch), N over all pictures."""
        encoding = self.begin(patches, grids)
        self.advance(encoding, self.num_stages)
        return self.finish(encoding)

    @property
    def num_stages(self) -> int:
        """Stages from `begin` to `finish`: two for each block."""
        return 2 * self.config.depth

    def stage_work(self, stage: int, num_patches: int) -> int:
        """`stage_work` of this tower."""
        return stage_work(self.config, stage, num_patches)

    def begin(self, patches: Tensor, grids: list[Grid]) -> Encoding:
        """Embeds the patches and their positions."""
        tables = [self._position_tables(grid, patches.device) for grid in grids]
        taps, weights, cos, sin = (_joined(parts) for parts in zip(*tables, strict=True))
        hidden = self.patch_embed(patches)
        add = kernels.add_weighted_rows if has_kernels(hidden) else reference.add_weighted_rows
        hidden = add(hidden, self.pos_embed.weight, taps, weights)
        lengths = tuple(height * width for height, width in grids)
        return Encoding(hidden, cos, sin, lengths)

    def advance(self, encoding: Encoding, num_stages: int) -> None:
        """Takes the stream through the next `num_stages` stages, or as many as are left."""
        last = min(encoding.num_done + num_stages, self.num_stages)
        for stage in range(encoding.num_done, last):
            index, is_second_half = divmod(stage, 2)
            block = self.blocks.at(index)
            if not is_second_half:
                encoding.hidden = block.mix(
                    encoding.hidden, encoding.cos, encoding.sin, encoding.lengths
                )
            else:
                encoding.hidden = block.transform(encoding.hidden)
                if index in self.config.deepstack_visual_indexes:
                    merger = self.deepstack_merger_list.at(len(encoding.taps))
                    encoding.taps.append(merger(encoding.hidden))
            encoding.num_done = stage + 1

    def finish(self, encoding: Encoding) -> list[VisionFeatures]:
        """The features of each picture; every stage must be done."""
        assert encoding.num_done == self.num_stages
        merged = self.merger(encoding.hidden)
        rows = [length // self.config.spatial_merge_size**2 for length in encoding.lengths]
        per_tap = [torch.split(tap, rows) for tap in encoding.taps]
        return [
            VisionFeatures(embeddings, tuple(tap[index] for tap in per_tap))
            for index, embeddings in enumerate(torch.split(merged, rows))
        ]

    def _position_tables(
        self, grid: Grid, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`position_tables` of a grid, computed once."""
        if grid not in self._tables:
            if len(self._tables) >= 64:
                self._tables.clear()
            self._tables[grid] = tuple(  # type: ignore[assignment]  # four tensors
                table.to(device) for table in position_tables(self.config, grid)
            )
        return self._tables[grid]


def stage_work(config: VisionConfig, stage: int, num_patches: int) -> int:
    """Multiplications of half a block for one picture; with the merger that follows, if any."""
    N, C = num_patches, config.hidden_size
    index, is_second_half = divmod(stage, 2)
    if not is_second_half:
        return N * (4 * C * C + 2 * N * C)
    num_mergers = (index in config.deepstack_visual_indexes) + (index == config.depth - 1)
    joined = C * config.spatial_merge_size**2
    per_merger = N * C * (joined + config.out_hidden_size)
    return 2 * N * C * config.intermediate_size + num_mergers * per_merger


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def position_tables(config: VisionConfig, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear taps into the learned square position table, and rotary angles, in merge order.

    Returns:
        taps int64 (N, 4), weights float32 (N, 4), cos and sin float32 (N, D).
    Source: Qwen3-VL (transformers, models/qwen3_vl).
    """
    height, width = grid
    side = int(config.num_position_embeddings**0.5)
    top, bottom, down = _axis_taps(height, side)
    left, right, across = _axis_taps(width, side)
    taps = torch.stack(
        [row[:, None] * side + column for row in (top, bottom) for column in (left, right)], dim=-1
    )
    weights = torch.stack(
        [
            vertical[:, None] * horizontal
            for vertical in (1 - down, down)
            for horizontal in (1 - across, across)
        ],
        dim=-1,
    )
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns), dim=-1).float()  # (height, width, 2)
    half = config.head_dim // 2
    inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    angles = (places[..., None] * inv_freq).flatten(2)  # (height, width, D / 2)
    angles = torch.cat((angles, angles), dim=-1)
    merge = config.spatial_merge_size
    taps, weights, cos, sin = (
        _merge_order(table, merge) for table in (taps, weights, angles.cos(), angles.sin())
    )
    return taps, weights, cos, sin


def _axis_taps(length: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper table index along one axis, and the upper one's weight: each (length,)."""
    place = torch.linspace(0, side - 1, length)
    lower = place.long()
    return lower, (lower + 1).clamp(max=side - 1), place - lower


def _merge_order(table: Tensor, merge: int) -> Tensor:
    """(height, width, X) in raster order to (N, X) with each merge block's patches together."""
    height, width, size = table.shape
    blocks = table.view(height // merge, merge, width // merge, merge, size)
    return blocks.permute(0, 2, 1, 3, 4).reshape(height * width, size)


def to_patches(pixels: Tensor, config: VisionConfig) -> Tensor:
    """Normalised patches in merge order.

    uint8 (height, width, 3) to float32 (N, 3 * patch * patch).
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    mean = torch.tensor(config.image_mean, device=pixels.device) * 255
    std = torch.tensor(config.image_std, device=pixels.device) * 255
    if has_kernels(pixels):
        levels = (torch.arange(256.0)[:, None] - mean) / std  # what each number stands for
        return kernels.cut_patches(pixels, levels.t(), patch, merge)
    return reference.in_patches((pixels.float() - mean) / std, patch, merge)
