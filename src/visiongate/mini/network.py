"""Qwen3-VL as training wants it: whole batches of equal shape, and many conversations in one row.

The same parameters under the same names as `visiongate.model.Qwen3VL`, and the same numbers (a test
holds the two together); only the forward pass differs. Serving packs sequences of every length over
a paged cache, one step at a time; training wants dense, static shapes that compile well.

Dimensions: B rows, P pictures, N patches of a picture, T tokens of a row, C channels, H heads, D
head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiongate.model.config import ModelConfig, TextConfig, VisionConfig
from visiongate.model.vision import position_tables


class Linear(nn.Linear):
    """A linear map whose float32 weights are cast to the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, over the last axis."""
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, over the last axis."""
        full = x.float()
        scale = torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * (full * scale)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding over the last axis, halves interleaved as in Llama."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class VisionAttention(nn.Module):
    """Full attention within each picture."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(P, N, C) to (P, N, C)."""
        P, N, C = x.shape
        qkv = self.qkv(x).view(P, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (P, H, N, D)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(out.transpose(1, 2).reshape(P, N, C))


class VisionMLP(nn.Module):
    """Two maps around a tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(P, N, C) to (P, N, C)."""
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    """Attention and MLP on normed copies."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(P, N, C) to (P, N, C)."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Joins 2 x 2 patches into one row of the decoder's size."""

    def __init__(self, config: VisionConfig, *, norm_after_join: bool) -> None:
        super().__init__()
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm_after_join = norm_after_join
        self.norm = LayerNorm(self.joined if norm_after_join else config.hidden_size, eps=1e-6)
        self.linear_fc1 = Linear(self.joined, self.joined)
        self.linear_fc2 = Linear(self.joined, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(P, N, C) to (P, N / 4, decoder C)."""
        P, N, _ = x.shape
        if self.norm_after_join:
            x = self.norm(x.reshape(P, N // 4, self.joined))
        else:
            x = self.norm(x).reshape(P, N // 4, self.joined)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class PatchEmbed(nn.Module):
    """Patches to channels; both frames of the kernel see the same still picture."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        shape = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, shape, stride=shape)

    def forward(self, patches: Tensor) -> Tensor:
        """(P, N, channels * patch * patch) to (P, N, C)."""
        weight = self.proj.weight.sum(2).flatten(1)
        bias = self.proj.bias
        assert bias is not None
        return F.linear(patches, weight.to(patches.dtype), bias.to(patches.dtype))


class VisionTower(nn.Module):
    """Pictures of one grid to decoder rows, DeepStack rows, and the last patch states."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_after_join=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_after_join=True) for _ in config.deepstack_visual_indexes
        )

    def forward(
        self, patches: Tensor, tables: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """(P, N, X) to (P, N / 4, decoder C), the same for each tap, and (P, N, C)."""
        places, weights, cos, sin = tables
        learned = (self.pos_embed(places) * weights[..., None]).sum(1)
        x = self.patch_embed(patches) + learned.to(patches.dtype)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        taps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if index in self.config.deepstack_visual_indexes:
                taps.append(self.deepstack_merger_list[len(taps)](x))
        return self.merger(x), taps, x


class TextAttention(nn.Module):
    """Grouped-query attention under a mask of our own."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, bias=False)
        self.k_proj = Linear(config.hidden_size, keys, bias=False)
        self.v_proj = Linear(config.hidden_size, keys, bias=False)
        self.o_proj = Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        repeats = q.shape[1] // k.shape[1]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class TextMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP on normed copies."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = TextAttention(config)
        self.mlp = TextMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """The decoder."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Halves(nn.Module):
    """The two halves, under the names of the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.language_model = TextModel(config.text)


class TrainingNetwork(nn.Module):
    """The whole network; parameters stay float32, arithmetic runs in the pictures' type."""

    inverse_frequency: Tensor
    frequency_axis: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.tie_word_embeddings:
            raise ValueError("training expects tied word embeddings")
        self.config = config
        self.model = Halves(config)
        self._tables: dict[
            tuple[int, int, torch.device], tuple[Tensor, Tensor, Tensor, Tensor]
        ] = {}
        text = config.text
        half = text.head_dim // 2
        inverse = 1.0 / text.rope_theta ** (torch.arange(half).float() * 2 / text.head_dim)
        axes = torch.zeros(half, dtype=torch.long)
        for axis in (1, 2):  # interleaved sections: t h w t h w ... t t
            axes[axis : text.mrope_section[axis] * 3 : 3] = axis
        self.register_buffer("inverse_frequency", inverse, persistent=False)
        self.register_buffer("frequency_axis", axes, persistent=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.mul_(1 / math.sqrt(2 * text.num_hidden_layers))
            elif ".blocks." in name and name.endswith(("attn.proj.weight", "linear_fc2.weight")):
                parameter.data.mul_(1 / math.sqrt(2 * config.vision.depth))

    def see(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Normalised pictures (P, height, width, 3) to what `VisionTower` gives."""
        P, height, width, _ = pixels.shape
        key = (height // 16, width // 16, pixels.device)
        if key not in self._tables:
            tables = position_tables(self.config.vision, key[:2])
            self._tables[key] = tuple(t.to(pixels.device) for t in tables)  # type: ignore[assignment]
        x = pixels.view(P, height // 32, 2, 16, width // 32, 2, 16, 3)
        patches = x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(P, height * width // 256, 768)
        return self.model.visual(patches, self._tables[key])

    def read(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        features: Tensor,
        taps: list[Tensor],
        feature_rows: Tensor,
    ) -> Tensor:
        """Final states (B, T, C) of packed rows.

        positions (3, B, T); mask bool (B, 1, T, T); features and taps (B, V, C); feature_rows
        (B, T), the row of `features` that a token stands for, -1 for text.
        """
        text = self.model.language_model
        x = text.embed_tokens(token_ids).to(features.dtype)
        angles = positions.float()[self.frequency_axis].permute(1, 2, 0) * self.inverse_frequency
        angles = torch.cat((angles, angles), -1)[:, None]  # (B, 1, T, D)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        is_picture = (feature_rows >= 0)[..., None]
        index = feature_rows.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        x = torch.where(is_picture, features.gather(1, index), x)
        for number, layer in enumerate(text.layers):
            x = layer(x, cos, sin, mask)
            if number < len(taps):
                x = x + torch.where(is_picture, taps[number].gather(1, index), 0)
        return text.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) to (..., vocabulary), in the states' type."""
        return F.linear(states, self.model.language_model.embed_tokens.weight.to(states.dtype))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.7 / math.sqrt(module.in_features))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, 0, 0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
