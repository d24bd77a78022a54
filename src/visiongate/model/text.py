"""The decoder: q/k-norm, grouped-query attention, interleaved M-RoPE, SwiGLU.

Dimensions: T tokens, C hidden size, H heads, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiongate import kernels
from visiongate.kernels import reference
from visiongate.model.attention import attend
from visiongate.model.config import TextConfig
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.layers import (
    Linear,
    MRotaryEmbedding,
    RMSNorm,
    Stack,
    empty_embedding,
    has_kernels,
    pack_together,
    rotate,
)


class TextAttention(nn.Module):
    """Causal attention over the paged cache."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.layer = layer
        self.head_dim = D
        self.sizes = (config.num_attention_heads * D, config.num_key_value_heads * D)
        self.q_proj = Linear(C, self.sizes[0], bias=config.attention_bias)
        self.k_proj = Linear(C, self.sizes[1], bias=config.attention_bias)
        self.v_proj = Linear(C, self.sizes[1], bias=config.attention_bias)
        self.o_proj = Linear(self.sizes[0], C, bias=config.attention_bias)
        self.q_norm = RMSNorm(D, config.rms_norm_eps)
        self.k_norm = RMSNorm(D, config.rms_norm_eps)
        self.packed_qkv: kernels.PackedLinear | None = None

    def forward(
        self,
        stream: Tensor,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        pool: KVPool,
    ) -> Tensor:
        """The stream (T, C) plus attention of x; writes this step's keys and values to the pool."""
        q, k, v = self.project(x)
        self.store(k, v, cos, sin, batch, pool)
        return self.add_to(stream, q, cos, sin, batch, pool)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, key-value heads, D), before norm and rotation."""
        if self.packed_qkv is None:
            return self.project_queries(x), *self.project_keys(x)
        query, key = self.sizes
        q, k, v = kernels.linear(x, self.packed_qkv).split([query, key, key], dim=-1)
        return self._heads(q), self._heads(k), self._heads(v)

    def project_queries(self, x: Tensor) -> Tensor:
        """The queries alone."""
        if self.packed_qkv is None:
            return self._heads(self.q_proj(x))
        return self._heads(kernels.linear_part(x, self.packed_qkv, 0, self.sizes[0]))

    def project_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone."""
        if self.packed_qkv is None:
            return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        query, key = self.sizes
        both = kernels.linear_part(x, self.packed_qkv, query, query + 2 * key)
        return self._heads(both[:, :key]), self._heads(both[:, key:])

    def store(
        self, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, pool: KVPool
    ) -> None:
        """Writes projected keys and values to the pool."""
        keys, values = pool.keys[self.layer], pool.values[self.layer]
        k = self._turn(k, self.k_norm, cos, sin, keys.dtype)
        store_kv = kernels.store_kv if has_kernels(k) else reference.store_kv
        store_kv(k, v, keys, values, batch.slot_mapping)

    def add_to(
        self, stream: Tensor, q: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, pool: KVPool
    ) -> Tensor:
        """The stream (T, C) plus attention of projected queries over the pool."""
        keys, values = pool.keys[self.layer], pool.values[self.layer]
        q = self._turn(q, self.q_norm, cos, sin, keys.dtype)  # it is multiplied in the cache's type
        out = attend(q, keys, values, batch, scale=self.head_dim**-0.5)
        return self.o_proj.add_to(stream, out.flatten(1))

    def _turn(
        self, x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Heads (T, H, D), normed per head, then turned; kernels write it as `dtype`."""
        if has_kernels(x):
            return kernels.norm_rope(x, norm.weight, cos, sin, norm.eps, dtype)
        return rotate(norm(x), cos, sin)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.head_dim)

    def pack(self, precision: kernels.Precision) -> None:
        """Stores the three input maps as one."""
        self.packed_qkv = pack_together((self.q_proj, self.k_proj, self.v_proj), precision)
        self.o_proj.pack(precision)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        C, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(C, inner, bias=False)
        self.up_proj = Linear(C, inner, bias=False)
        self.down_proj = Linear(inner, C, bias=False)
        self.packed_gate_up: kernels.PackedLinear | None = None

    def forward(self, stream: Tensor, x: Tensor) -> Tensor:
        """The stream (T, C) plus the maps of x (T, C)."""
        if self.packed_gate_up is None:
            return self.down_proj.add_to(stream, F.silu(self.gate_proj(x)) * self.up_proj(x))
        both = kernels.linear(x, self.packed_gate_up)
        return self.down_proj.add_to(stream, kernels.silu_mul(both, self.down_proj.rows_dtype))

    def pack(self, precision: kernels.Precision) -> None:
        """Stores gate and up as one map."""
        self.packed_gate_up = pack_together((self.gate_proj, self.up_proj), precision)
        self.down_proj.pack(precision)


class DecoderLayer(nn.Module):
    """Attention and SwiGLU, each on a normed copy, each added to the stream (kernels: in place)."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = TextAttention(config, layer)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, pool: KVPool
    ) -> Tensor:
        """(T, C) to (T, C)."""
        x = self.self_attn(x, self.input_layernorm(x), cos, sin, batch, pool)
        return self.mlp(x, self.post_attention_layernorm(x))

    def finish(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, pool: KVPool
    ) -> Tensor:
        """`forward` of the last layer: (T, C) to (R, C), the rows whose logits are wanted.

        Of the other rows only keys and values are computed: nobody reads more of them.
        """
        normed, rows = self.input_layernorm(x), batch.logits_rows
        k, v = self.self_attn.project_keys(normed)
        self.self_attn.store(k, v, cos, sin, batch, pool)
        x = x[rows]
        if not len(rows):
            return x
        q = self.self_attn.project_queries(normed[rows])
        x = self.self_attn.add_to(x, q, cos[rows], sin[rows], batch.only(rows), pool)
        return self.mlp(x, self.post_attention_layernorm(x))

    def native_weights(self) -> kernels.LayerWeights | None:
        """What a native call needs of this layer; None unless all of it is packed for one."""
        attention, mlp = self.self_attn, self.mlp
        packed = (
            *(attention.packed_qkv, attention.o_proj.packed),
            *(mlp.packed_gate_up, mlp.down_proj.packed),
        )
        maps = [one for one in packed if one is not None and one.is_native]
        if len(maps) < len(packed):
            return None
        norms = (
            *(self.input_layernorm, attention.q_norm),
            *(attention.k_norm, self.post_attention_layernorm),
        )
        weights = tuple(norm.weight.detach().float().contiguous() for norm in norms)
        return kernels.LayerWeights((maps[0], maps[1], maps[2], maps[3]), weights)


class TextModel(nn.Module):
    """The stack of decoder layers, with picture features let in at the first ones (DeepStack)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = empty_embedding(config.vocab_size, config.hidden_size)
        self.layers: Stack[DecoderLayer] = Stack(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = MRotaryEmbedding(config.head_dim, config.rope_theta, config.mrope_section)
        self._decoder: kernels.Decoder | None = None

    def forward(self, x: Tensor, batch: ForwardBatch, pool: KVPool) -> Tensor:
        """Embedded tokens (T, C) to the final stream of the rows whose logits are wanted (R, C).

        It is not yet normed.
        """
        cos, sin = self.rotary(batch.positions)
        if has_kernels(x) and x.shape[0] <= kernels.MOST_DECODER_ROWS and batch.features is None:
            decoder = self.decoder()
            if decoder is not None:
                x = decoder.run(
                    *(x, cos, sin, batch.slot_mapping, batch.block_tables, batch.cu_seqlens_q),
                    *(batch.context_lens, pool.keys, pool.values),
                    scale=self.layers.at(0).self_attn.head_dim ** -0.5,
                )
                return x[batch.logits_rows]
        last = len(self.layers) - 1
        num_taps = 0 if batch.features is None else len(batch.features.deepstack)
        for index, layer in enumerate(self.layers.each()):
            if index == last >= num_taps and len(batch.logits_rows) < len(x):
                return layer.finish(x, cos, sin, batch, pool)
            x = layer(x, cos, sin, batch, pool)
            if batch.features is not None and index < num_taps:
                add_taps(x, index, batch.visual_rows, batch.features)
        return x[batch.logits_rows]

    def decoder(self) -> kernels.Decoder | None:
        """The layers as one native call; None until they are packed."""
        if self._decoder is None:
            weights = [layer.native_weights() for layer in self.layers.each()]
            known = [one for one in weights if one is not None]
            if len(known) == len(weights):
                self._decoder = kernels.Decoder(
                    known, self.norm.eps, self.layers.at(0).mlp.down_proj.rows_dtype
                )
        return self._decoder


def add_taps(x: Tensor, tap: int, rows: Tensor | None, features: VisionFeatures) -> None:
    """Adds one DeepStack tap to the stream at the visual rows."""
    assert rows is not None
    x.index_add_(0, rows, features.deepstack[tap].to(x.dtype))
