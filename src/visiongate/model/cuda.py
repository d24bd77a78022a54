"""Qwen3-VL on an NVIDIA GPU: fused weights, a float32 residual stream, few and large kernels.

The same network as `qwen3vl`, told for a machine that is slowed by launches and bytes, not by
Python: q-k-v and gate-up are one matrix each, norms are fused with the additions before them, and
`decode` and `compute` touch only preallocated tensors, so that each is one CUDA graph.

    compute   a chunk of one prompt: large products
    decode    one new token for each of B rows: products that read every weight once
    visual    pictures, in slices, as `vision.VisionTower` does; sizes that come back from graphs

Dimensions: T tokens, B rows, N patches, C hidden size, I inner size, H heads, D head size, S slots,
V vocabulary. Matrices are (out features, in features), as in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from visiongate.kernels.cuda import attention, nvrtc, ops, stream, weight8
from visiongate.kernels.cuda.weight8 import Matrix8
from visiongate.model.card_limits import CHUNK_TOKENS, NUM_PICTURE_STATES, NUM_POSITION_TABLES
from visiongate.model.config import ModelConfig, VisionConfig
from visiongate.model.inputs import KVPool, VisionFeatures
from visiongate.model.layers import MRotaryEmbedding
from visiongate.model.vision import Encoding, Grid, position_tables, stage_work

MatrixT = TypeVar("MatrixT", Tensor, Matrix8)
ArrayT = TypeVar("ArrayT", Tensor, "np.ndarray[Any, Any]")
Linear = stream.StreamLinear | weight8.Linear8

DRAW_WORDS = 12
"""Words of a row of `DecodeState.draws`: six float64."""

HOST_WORDS = DRAW_WORDS + 5
"""Words of a row of `DecodeState.host`: those, then those of `inputs`."""


@dataclass(slots=True, eq=False)
class DecoderLayer(Generic[MatrixT]):
    """One layer's weights; the matrices are tensors, or held in 8 bits."""

    input_norm: Tensor
    qkv: MatrixT
    q_norm: Tensor
    k_norm: Tensor
    o: MatrixT
    post_norm: Tensor
    gate_up: MatrixT
    down: MatrixT


@dataclass(frozen=True, slots=True, eq=False)
class PromptInputs(Generic[ArrayT]):
    """What the host says about a prompt's chunk of up to T tokens: one int32 array, so one copy.

    Attributes:
        flat: all of it.
        span: (2,): the chunk's first position and its tokens.
        table: (blocks,), the sequence's.
        tokens: (T,).
        visual: (T,), the row of the features that stands for a token, or -1.
        places: (3, T), rotary positions.
        slots: (T,), where keys and values go.
    """

    flat: ArrayT
    span: ArrayT
    table: ArrayT
    tokens: ArrayT
    visual: ArrayT
    places: ArrayT
    slots: ArrayT

    @staticmethod
    def length(num_rows: int, num_blocks: int) -> int:
        """Numbers of a chunk of up to `num_rows` tokens whose table has `num_blocks` entries."""
        return 32 + -(-num_blocks // 32) * 32 + 6 * num_rows  # each part begins at a whole line

    @classmethod
    def of(cls, flat: ArrayT, num_rows: int, num_blocks: int) -> PromptInputs[ArrayT]:
        """The parts of the first `length` numbers of an array."""
        flat = flat[: cls.length(num_rows, num_blocks)]
        rows = flat[len(flat) - 6 * num_rows :].reshape(6, num_rows)
        table = flat[32 : 32 + num_blocks]
        return cls(flat, flat[:2], table, rows[0], rows[1], rows[2:5], rows[5])

    def put(
        self: PromptInputs[np.ndarray[Any, Any]],
        start: int,
        tokens: ArrayLike,
        *,
        places: ArrayLike,
        slots: ArrayLike,
        table: ArrayLike,
        pictures: Iterable[tuple[int, int]],
        scratch: int,
    ) -> None:
        """Writes all of it.

        Args:
            start: the first token's position.
            tokens, places, slots: (n,), (3, n), (n,); the rows beyond write to the slot `scratch`.
            table: the sequence's blocks.
            pictures: place and number of tokens that stand for the features' rows, in their order.
        """
        count, num_before = np.shape(slots)[0], 0
        self.flat[:] = 0
        self.span[:] = start, count
        self.table[: np.shape(table)[0]] = table
        self.tokens[:count] = tokens
        self.places[:, :count] = places
        self.slots[:] = scratch
        self.slots[:count] = slots
        self.visual[:] = -1
        for place, length in pictures:
            self.visual[place : place + length] = np.arange(num_before, num_before + length)
            num_before += length


@dataclass(slots=True, eq=False)
class PromptState:
    """The tensors of a prompt's chunk of up to T tokens; fixed addresses, as in `DecodeState`.

    Attributes:
        inputs: what `fill` copies.
        residual: float32 (T, C): embedded tokens, then the stream.
        taps: float32 (taps, T, C): what DeepStack adds after the first layers.
        cos, sin: float32 (T, D / 2).
        delta: (1, T, C), the last layer's part that is not in `residual` yet.
    """

    inputs: PromptInputs[Tensor]
    residual: Tensor
    taps: Tensor
    cos: Tensor
    sin: Tensor
    normed: Tensor
    attended: Tensor
    inner: Tensor
    delta: Tensor


class Products:
    """A layer's four products for a few rows, each into its own tensor.

    Torch's library has no promise about bits: rows may differ between batches in the last one.
    """

    def __init__(self, layer: DecoderLayer[Tensor]) -> None:
        self.layer = layer

    def outputs(self, num_rows: int) -> list[Tensor]:
        """What the products write for `num_rows` rows: qkv, o, gate-up, down."""
        layer = self.layer
        like = layer.qkv
        return [
            like.new_empty(num_rows, len(layer.qkv)),
            like.new_empty(1, num_rows, len(layer.o)),
            like.new_empty(num_rows, len(layer.gate_up) // 2),
            like.new_empty(1, num_rows, len(layer.down)),
        ]

    def qkv(self, x: Tensor, out: Tensor) -> None:
        """(B, C) to (B, (H + 2 Hkv) D)."""
        torch.mm(x, self.layer.qkv.t(), out=out)

    def o(self, x: Tensor, out: Tensor) -> None:
        """(B, H D) to partial sums (S, B, C)."""
        torch.mm(x, self.layer.o.t(), out=out[0])

    def gate_up(self, x: Tensor, out: Tensor) -> None:
        """(B, C) to silu(gate) * up, (B, I)."""
        ops.silu_mul(F.linear(x, self.layer.gate_up), out)

    def down(self, x: Tensor, out: Tensor) -> None:
        """(B, I) to partial sums (S, B, C)."""
        torch.mm(x, self.layer.down.t(), out=out[0])


class StreamProducts(Products):
    """The same at the speed of memory, with equal bits in any batch.

    `linear` makes a layer of a matrix: `stream.StreamLinear`, or `weight8.Linear8` for 8 bits.
    """

    def __init__(
        self, layer: DecoderLayer[Any], linear: Callable[[Any, stream.Epilogue], Linear]
    ) -> None:
        super().__init__(layer)
        self._qkv = linear(layer.qkv, "bfloat16")
        self._o = linear(layer.o, "partials")
        self._gate_up = linear(layer.gate_up, "silu")
        self._down = linear(layer.down, "partials")

    def outputs(self, num_rows: int) -> list[Tensor]:
        """What the products write for `num_rows` rows: qkv, o, gate-up, down."""
        return [
            linear.empty(num_rows) for linear in (self._qkv, self._o, self._gate_up, self._down)
        ]

    def qkv(self, x: Tensor, out: Tensor) -> None:
        """(B, C) to (B, (H + 2 Hkv) D)."""
        self._qkv(x, out)

    def o(self, x: Tensor, out: Tensor) -> None:
        """(B, H D) to partial sums (S, B, C)."""
        self._o(x, out)

    def gate_up(self, x: Tensor, out: Tensor) -> None:
        """(B, C) to silu(gate) * up, (B, I)."""
        self._gate_up(x, out)

    def down(self, x: Tensor, out: Tensor) -> None:
        """(B, I) to partial sums (S, B, C)."""
        self._down(x, out)


@dataclass(slots=True, eq=False)
class DecodeState:
    """The tensors of a decode step for B rows; fixed addresses, so that a graph can hold them.

    Attributes:
        host: int32 (HOST_WORDS B,): `draws` and `inputs`, so that both come by one copy.
        draws: float64 (B, 6), what `ops.draw_rows` reads.
        inputs: int32 (5, B): token, row of `drawn` to take it from (or -1), place, rotary
            position, first part in the attention's work space.
        tables: int32 (B, blocks).
        logits: float32 (B, V), and `drawn` int32 (B,) the tokens, after a step.
    """

    host: Tensor
    draws: Tensor
    inputs: Tensor
    tables: Tensor
    residual: Tensor
    normed: Tensor
    attended: Tensor
    qkv: Tensor
    o_parts: Tensor
    inner: Tensor
    down_parts: Tensor
    logits: Tensor
    drawn: Tensor
    attention: ops.AttentionSpace
    argmax: ops.ArgmaxSpace
    draw: ops.DrawSpace


class CudaDecoder:
    """The decoder's weights and its two ways of computing.

    With a `storage` its matrices and the embedding are held in 8 bits; `dtype` is what flows
    between the products.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        storage: weight8.Storage | None = None,
    ) -> None:
        text = config.text
        if text.attention_bias:
            raise ValueError("attention biases are not part of the published Qwen3-VL checkpoints")
        self.config = text
        self.dtype, self.device, self.storage = dtype, device, storage
        C, inner = text.hidden_size, text.intermediate_size
        D = text.head_dim
        self.heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads
        qkv = (self.heads + 2 * self.kv_heads) * D
        self.layers: list[DecoderLayer[Any]] = [  # all Tensor or, with a storage, all Matrix8
            DecoderLayer(
                input_norm=self._empty(C),
                qkv=self._matrix(qkv, C),
                q_norm=self._empty(D),
                k_norm=self._empty(D),
                o=self._matrix(C, self.heads * D),
                post_norm=self._empty(C),
                gate_up=self._matrix(2 * inner, C),
                down=self._matrix(C, inner),
            )
            for _ in range(text.num_hidden_layers)
        ]
        self.norm = self._empty(C)
        self.embedding = self._matrix(text.vocab_size, C)
        tied = config.tie_word_embeddings
        self.head = self.embedding if tied else self._matrix(text.vocab_size, C)
        self.rotary = MRotaryEmbedding(D, text.rope_theta, text.mrope_section).to(device)
        self._cos = self._sin = torch.empty(0, D // 2, device=device)
        self._products: list[Products] = []
        self._stream_head: Linear | None = None
        self._wide = self._empty(0)
        self._undrawn = torch.full((CHUNK_TOKENS,), -1, dtype=torch.int32, device=device)

    def prepare(self, num_positions: int) -> None:
        """Readies `decode`, once the weights are there, for rotary positions up to a number."""
        places = torch.arange(num_positions, device=self.device).float()[:, None]
        angles = places * self.rotary.inv_freq
        self._cos, self._sin = angles.cos().contiguous(), angles.sin().contiguous()
        if isinstance(self.head, Matrix8):
            linear = functools.partial(weight8.Linear8, dtype=self.dtype)
            self._products = [StreamProducts(layer, linear) for layer in self.layers]
            self._stream_head = linear(self.head, "float32")
            layer = self.layers[0]
            shapes = (m.shape for m in (layer.qkv, layer.o, layer.gate_up, layer.down))
            self._wide = self._empty(max(N * K for N, K in shapes))
        elif self.can_stream:
            self._products = [StreamProducts(layer, stream.StreamLinear) for layer in self.layers]
            self._stream_head = stream.StreamLinear(self.head, "float32")
        else:
            self._products = [Products(layer) for layer in self.layers]

    def _attention(self, block_size: int, pdl: bool) -> Callable[..., None]:
        """The kernel for the cache's blocks: CUDA C++ where it fits, else Triton's."""
        shape = self.heads, self.kv_heads, self.config.head_dim, block_size, self.dtype
        is_fast = self.device.type == "cuda" and nvrtc.is_available(self.device.index or 0)
        if is_fast and attention.supports(*shape):
            return attention.decode_attention
        return functools.partial(ops.decode_attention, pdl=pdl)

    @property
    def can_stream(self) -> bool:
        """Whether the streaming kernels take these weights on this device."""
        if self.dtype != torch.bfloat16 or self.device.type != "cuda" or self.storage:
            return False
        layer = self.layers[0]
        weights = (layer.qkv, layer.o, layer.gate_up, layer.down, self.head)
        fits = all(stream.supports(*weight.shape) for weight in weights)
        return fits and nvrtc.is_available(self.device.index or 0)

    def named(self) -> Iterable[tuple[str, Tensor | Matrix8]]:
        """Every tensor of the checkpoint and where it goes; parts of fused matrices are views."""
        text, root = self.config, "model.language_model."
        q, kv = self.heads * text.head_dim, self.kv_heads * text.head_dim
        yield f"{root}embed_tokens.weight", self.embedding
        yield f"{root}norm.weight", self.norm
        if self.head is not self.embedding:
            yield "lm_head.weight", self.head
        for index, layer in enumerate(self.layers):
            at = f"{root}layers.{index}."
            yield f"{at}input_layernorm.weight", layer.input_norm
            yield f"{at}post_attention_layernorm.weight", layer.post_norm
            yield f"{at}self_attn.q_proj.weight", layer.qkv[:q]
            yield f"{at}self_attn.k_proj.weight", layer.qkv[q : q + kv]
            yield f"{at}self_attn.v_proj.weight", layer.qkv[q + kv :]
            yield f"{at}self_attn.q_norm.weight", layer.q_norm
            yield f"{at}self_attn.k_norm.weight", layer.k_norm
            yield f"{at}self_attn.o_proj.weight", layer.o
            yield f"{at}mlp.gate_proj.weight", layer.gate_up[: text.intermediate_size]
            yield f"{at}mlp.up_proj.weight", layer.gate_up[text.intermediate_size :]
            yield f"{at}mlp.down_proj.weight", layer.down

    def attention_space(self, num_rows: int, num_parts: int) -> ops.AttentionSpace:
        """Work space that the states of all row counts share: steps run one after another."""
        return ops.AttentionSpace(
            num_rows, num_parts, self.heads, self.kv_heads, self.config.head_dim, self.device
        )

    def decode_state(
        self,
        num_rows: int,
        num_blocks: int,
        drawn: Tensor,
        space: ops.AttentionSpace,
        draw: ops.DrawSpace,
    ) -> DecodeState:
        """Tensors for steps of `num_rows` rows whose tables have `num_blocks` entries."""
        text, B = self.config, num_rows
        C = text.hidden_size
        qkv, o_parts, inner, down_parts = self._products[0].outputs(B)

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=self.device)

        host = ints(HOST_WORDS * B)
        return DecodeState(
            host=host,
            draws=host[: DRAW_WORDS * B].view(torch.float64).view(B, 6),
            inputs=host[DRAW_WORDS * B :].view(5, B),
            tables=ints(B, num_blocks),
            residual=torch.zeros(B, C, device=self.device),
            normed=self._empty(B, C),
            attended=self._empty(B, self.heads * text.head_dim),
            qkv=qkv,
            o_parts=o_parts,
            inner=inner,
            down_parts=down_parts,
            logits=torch.empty(B, text.vocab_size, device=self.device),
            drawn=drawn[:B],
            attention=space,
            argmax=ops.ArgmaxSpace(B, self.device),
            draw=draw,
        )

    def decode(self, state: DecodeState, pool: KVPool) -> None:
        """One token for each row: writes the pool, `state.logits` and `state.drawn`."""
        eps = self.config.rms_norm_eps
        token, source, place, rope, first_part = state.inputs
        x, y = state.residual, state.normed
        streams = self._stream_head is not None
        pdl = streams and nvrtc.has_dependent_launch(self.device)
        add_norm = stream.add_norm if streams and self._has_stream_norm else ops.add_norm
        attend = self._attention(pool.block_size, pdl)
        parts: Tensor | None = None
        if isinstance(self.embedding, Matrix8):
            weight8.embed_rows(token, state.drawn, source, self.embedding, x)
        else:
            ops.embed_rows(token, state.drawn, source, self.embedding, x)
        for index, (layer, products) in enumerate(zip(self.layers, self._products, strict=True)):
            add_norm(x, parts, layer.input_norm, eps, y)
            products.qkv(y, state.qkv)
            attend(
                state.qkv,
                layer.q_norm,
                layer.k_norm,
                self._cos,
                self._sin,
                pool.keys[index],
                pool.values[index],
                place,
                rope,
                first_part,
                state.tables,
                state.attention,
                state.attended,
                eps=eps,
            )
            products.o(state.attended, state.o_parts)
            add_norm(x, state.o_parts, layer.post_norm, eps, y)
            products.gate_up(y, state.inner)
            products.down(state.inner, state.down_parts)
            parts = state.down_parts
        add_norm(x, parts, self.norm, eps, y)
        self._head(y, state.logits)
        ops.argmax_rows(state.logits, state.argmax, state.drawn, pdl=pdl)
        ops.draw_rows(state.logits, state.draws, state.argmax, state.draw, state.drawn, pdl=pdl)

    def prompt_state(self, num_rows: int, num_blocks: int, num_taps: int) -> PromptState:
        """Tensors for chunks of up to `num_rows` tokens whose table has `num_blocks` entries."""
        text, T = self.config, num_rows
        zeros = functools.partial(torch.zeros, device=self.device)
        inputs = zeros(PromptInputs.length(T, num_blocks), dtype=torch.int32)
        return PromptState(
            inputs=PromptInputs.of(inputs, T, num_blocks),
            residual=zeros(T, text.hidden_size),
            taps=zeros(num_taps, T, text.hidden_size),
            cos=zeros(T, text.head_dim // 2),
            sin=zeros(T, text.head_dim // 2),
            normed=self._empty(T, text.hidden_size),
            attended=self._empty(T, self.heads * text.head_dim).zero_(),
            inner=self._empty(T, text.intermediate_size),
            delta=self._empty(1, T, text.hidden_size),
        )

    def prompt_view(self, state: PromptState, num_rows: int) -> PromptState:
        """A state of fewer rows in the memory of another: chunks run one after another."""
        rows = slice(num_rows)
        inputs = state.inputs
        return dataclasses.replace(
            state,
            inputs=PromptInputs.of(inputs.flat, num_rows, len(inputs.table)),
            residual=state.residual[rows],
            taps=state.taps[:, rows],
            cos=state.cos[rows],
            sin=state.sin[rows],
            normed=state.normed[rows],
            attended=state.attended[rows],
            inner=state.inner[rows],
            delta=state.delta[:, rows],
        )

    def fill(self, state: PromptState, staged: Tensor, features: VisionFeatures | None) -> None:
        """Puts one sequence's chunk into a state, after `prepare`.

        `staged` is the state's inputs on the host; its `visual` tells rows of `features`.
        """
        inputs, x = state.inputs, state.residual
        inputs.flat.copy_(staged, non_blocking=True)
        nobody = self._undrawn[: len(x)]
        if isinstance(self.embedding, Matrix8):
            weight8.embed_rows(inputs.tokens, nobody, nobody, self.embedding, x)
        else:
            ops.embed_rows(inputs.tokens, nobody, nobody, self.embedding, x)
        if features is None:
            state.taps.zero_()
        else:
            ops.place_rows(features.embeddings, inputs.visual, x, keeps_others=True)
            for tap, rows in zip(state.taps, features.deepstack, strict=True):
                ops.place_rows(rows, inputs.visual, tap, keeps_others=False)
        axis = self.rotary.axis
        ops.gather_angles(inputs.places, axis, self._cos, self._sin, state.cos, state.sin)

    def compute(self, state: PromptState, pool: KVPool) -> None:
        """All layers over a filled state; writes the pool; what is left is `logits`."""
        eps = self.config.rms_norm_eps
        x, y, delta = state.residual, state.normed, state.delta
        parts: Tensor | None = None
        for index, layer in enumerate(self.layers):
            ops.add_norm(x, parts, layer.input_norm, eps, y)
            qkv = F.linear(y, self._weight(layer.qkv))
            keys, values = pool.keys[index], pool.values[index]
            ops.qk_norm_rope_store(
                qkv,
                layer.q_norm,
                layer.k_norm,
                state.cos,
                state.sin,
                keys,
                values,
                state.inputs.slots,
                eps,
            )
            ops.prompt_attention(
                qkv, keys, values, state.inputs.table, state.inputs.span, state.attended
            )
            torch.mm(state.attended, self._weight(layer.o).t(), out=delta[0])
            ops.add_norm(x, delta, layer.post_norm, eps, y)
            ops.silu_mul(F.linear(y, self._weight(layer.gate_up)), state.inner)
            torch.mm(state.inner, self._weight(layer.down).t(), out=delta[0])
            parts = delta
            if index < len(state.taps):
                x += state.taps[index]

    def logits(self, state: PromptState, row: int) -> Tensor:
        """Float32 (1, V): what follows the token in a row of a computed state."""
        x = state.residual[row : row + 1].clone()
        y = self._empty(*x.shape)
        delta = state.delta[:, row : row + 1].contiguous()
        ops.add_norm(x, delta, self.norm, self.config.rms_norm_eps, y)
        logits = torch.empty(1, self.config.vocab_size, device=self.device)
        self._head(y, logits)
        return logits

    def _head(self, x: Tensor, out: Tensor) -> None:
        head = self.head
        if self._stream_head is not None:
            self._stream_head(x, out)
            return
        assert not isinstance(head, Matrix8), "`prepare` comes first"
        if self.dtype == torch.float32:
            torch.mm(x, head.t(), out=out)
        elif x.is_cuda:
            torch.mm(x, head.t(), out_dtype=torch.float32, out=out)
        else:
            out.copy_(x @ head.t())

    @property
    def _has_stream_norm(self) -> bool:
        if self.dtype != torch.bfloat16 or self.device.type != "cuda":
            return False
        return nvrtc.is_available(self.device.index or 0)

    def _weight(self, matrix: Tensor | Matrix8) -> Tensor:
        """The matrix for a large product; one in 8 bits is valid until the next is asked for."""
        return matrix.widen(self._wide) if isinstance(matrix, Matrix8) else matrix

    def _matrix(self, N: int, K: int) -> Tensor | Matrix8:
        if self.storage is None:
            return self._empty(N, K)
        return Matrix8.empty(N, K, self.storage, self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class PictureEncoding(Encoding):
    """An encoding that can be seen to be gone."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, eq=False)
class PictureState:
    """The tensors of pictures of N patches at fixed addresses, and a graph for each stage.

    Attributes:
        hidden, delta: (N, C), as in `Encoding`; cos, sin: (N, D / 2).
        user: the encoding that is under way here.
    """

    hidden: Tensor
    delta: Tensor
    cos: Tensor
    sin: Tensor
    graphs: dict[int, torch.cuda.CUDAGraph] = field(default_factory=dict)
    user: Callable[[], Encoding | None] = lambda: None


class CudaVisionTower:
    """The vision tower; `begin`, `advance`, `finish` as in `vision.VisionTower`."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype, self.device = dtype, device
        C, inner = config.hidden_size, config.intermediate_size
        joined = C * config.spatial_merge_size**2
        patch = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self._tensors = {
            "patch_embed.proj.weight": self._empty(C, config.in_channels, *patch),
            "patch_embed.proj.bias": self._empty(C),
            "pos_embed.weight": self._empty(config.num_position_embeddings, C),
        }
        for index in range(config.depth):
            at = f"blocks.{index}."
            for norm in ("norm1", "norm2"):
                self._add_map(f"{at}{norm}", C)
            self._add_map(f"{at}attn.qkv", 3 * C, C)
            self._add_map(f"{at}attn.proj", C, C)
            self._add_map(f"{at}mlp.linear_fc1", inner, C)
            self._add_map(f"{at}mlp.linear_fc2", C, inner)
        num_taps = len(config.deepstack_visual_indexes)
        for at in ("merger.", *(f"deepstack_merger_list.{i}." for i in range(num_taps))):
            self._add_map(f"{at}norm", C if at == "merger." else joined)
            self._add_map(f"{at}linear_fc1", joined, joined)
            self._add_map(f"{at}linear_fc2", config.out_hidden_size, joined)
        self._patch_weight: Tensor | None = None
        self._num_seen: Counter[int] = Counter()
        self._states: OrderedDict[int, PictureState] = OrderedDict()
        self._side: torch.cuda.Stream | None = None
        self._graph_memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._tables: dict[Grid, tuple[Tensor, Tensor, Tensor]] = {}

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor of the checkpoint and where it goes."""
        for name, tensor in self._tensors.items():
            yield f"model.visual.{name}", tensor

    @property
    def num_stages(self) -> int:
        """Stages from `begin` to `finish`: two for each block."""
        return 2 * self.config.depth

    def stage_work(self, stage: int, num_patches: int) -> int:
        """`stage_work` of this tower."""
        return stage_work(self.config, stage, num_patches)

    def begin(self, patches: Tensor, grids: list[Grid]) -> Encoding:
        """Embeds the patches of one picture and their positions."""
        (grid,) = grids
        learned, cos, sin = self._position_tables(grid)
        if self._patch_weight is None:  # a still picture shows the same frame twice
            weight = self._tensors["patch_embed.proj.weight"].float().sum(2).flatten(1)
            self._patch_weight = weight.to(self.dtype)
        bias = self._tensors["patch_embed.proj.bias"]
        hidden = F.linear(patches.to(self.dtype), self._patch_weight, bias) + learned
        num_patches = grid[0] * grid[1]
        self._num_seen[num_patches] += 1
        state = self._state(num_patches)
        if state is None:
            delta = torch.empty_like(hidden)
            return PictureEncoding(hidden, cos, sin, (num_patches,), delta=delta)
        state.hidden.copy_(hidden)
        state.cos.copy_(cos)
        state.sin.copy_(sin)
        lengths = (num_patches,)
        encoding = PictureEncoding(state.hidden, state.cos, state.sin, lengths, delta=state.delta)
        state.user = weakref.ref(encoding)
        return encoding

    def advance(self, encoding: Encoding, num_stages: int) -> None:
        """Takes the stream through the next `num_stages` stages, or as many as are left."""
        last = min(encoding.num_done + num_stages, self.num_stages)
        state = self._states.get(encoding.lengths[0])
        if state is not None and state.user() is not encoding:
            state = None
        for stage in range(encoding.num_done, last):
            if state is None:
                self._compute(stage, encoding)
            else:
                self._replay(stage, encoding, state)
            index, is_second_half = divmod(stage, 2)
            if is_second_half and index in self.config.deepstack_visual_indexes:
                tap = f"deepstack_merger_list.{len(encoding.taps)}."
                encoding.taps.append(self._merge(tap, self._stream(encoding)))
        encoding.num_done = last

    def finish(self, encoding: Encoding) -> list[VisionFeatures]:
        """The features of the picture; every stage must be done."""
        assert encoding.num_done == self.num_stages
        merged = self._merge("merger.", self._stream(encoding))
        return [VisionFeatures(merged, tuple(encoding.taps))]

    def _state(self, num_patches: int) -> PictureState | None:
        """The tensors for a size, if it came before and nobody is using them."""
        if self._graph_memory is None or self._num_seen[num_patches] < 2:
            return None
        state = self._states.get(num_patches)
        if state is None:
            for size in [size for size, other in self._states.items() if other.user() is None]:
                if len(self._states) >= NUM_PICTURE_STATES:
                    del self._states[size]
            hidden = self._empty(num_patches, self.config.hidden_size)
            cos = torch.empty(num_patches, self.config.head_dim // 2, device=self.device)
            state = PictureState(hidden, torch.empty_like(hidden), cos, torch.empty_like(cos))
            self._states[num_patches] = state
        self._states.move_to_end(num_patches)
        return state if state.user() is None else None

    def _replay(self, stage: int, encoding: Encoding, state: PictureState) -> None:
        """Computes a stage by its graph; captures it the first time."""
        graph = state.graphs.get(stage)
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            if self._side is None:  # one for all, or their graphs would share no memory
                self._side = torch.cuda.Stream(self.device)
            side = self._side
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                graph.capture_begin(self._graph_memory, capture_error_mode="thread_local")
                try:
                    self._compute(stage, encoding)
                finally:
                    graph.capture_end()
            torch.cuda.current_stream(self.device).wait_stream(side)
            state.graphs[stage] = graph
        graph.replay()

    def _compute(self, stage: int, encoding: Encoding) -> None:
        """Half a block: adds to the stream what is left of the stage before, gives the next."""
        index, is_second_half = divmod(stage, 2)
        at, x, delta = f"blocks.{index}.", encoding.hidden, encoding.delta
        assert delta is not None
        y = torch.empty_like(x)
        weight, bias = self._map(f"{at}norm{1 + is_second_half}")
        ops.add_layer_norm(x, delta if stage else None, weight, bias, y, 1e-6)
        if is_second_half:
            self._transform(at, y, delta)
        else:
            self._mix(at, y, encoding.cos, encoding.sin, delta)

    def _mix(self, at: str, y: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
        """Attention: what it adds to the stream, (N, C)."""
        H = self.config.num_heads
        qkv = self._linear(f"{at}attn.qkv", y)  # (N, 3 C)
        ops.rotate_vision(qkv, cos, sin, H)
        q, k, v = qkv.view(len(y), 3, H, -1).permute(1, 2, 0, 3)[:, None]  # (1, H, N, D) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        self._linear(f"{at}attn.proj", mixed[0].transpose(0, 1).reshape(y.shape), out)

    def _transform(self, at: str, y: Tensor, out: Tensor) -> None:
        """The MLP: what it adds to the stream, (N, C)."""
        weight, bias = self._map(f"{at}mlp.linear_fc1")
        if y.is_cuda:  # the GELU (its tanh form) in the product's epilogue
            y = torch._addmm_activation(bias, y, weight.t(), use_gelu=True)
        else:
            y = F.gelu(F.linear(y, weight, bias), approximate="tanh")
        self._linear(f"{at}mlp.linear_fc2", y, out)

    def _stream(self, encoding: Encoding) -> Tensor:
        """The stream with what the last half block gave."""
        assert encoding.delta is not None
        return encoding.hidden + encoding.delta

    def _merge(self, at: str, x: Tensor) -> Tensor:
        joined = self.config.hidden_size * self.config.spatial_merge_size**2
        if at == "merger.":
            x = self._norm(f"{at}norm", x).view(-1, joined)
        else:
            x = self._norm(f"{at}norm", x.view(-1, joined))
        return self._linear(f"{at}linear_fc2", F.gelu(self._linear(f"{at}linear_fc1", x)))

    def _position_tables(self, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Learned positions (N, C), cosines and sines (N, D / 2) of a grid, computed once."""
        if grid not in self._tables:
            if len(self._tables) >= NUM_POSITION_TABLES:
                self._tables.clear()
            taps, weights, cos, sin = (
                table.to(self.device) for table in position_tables(self.config, grid)
            )
            table = self._tensors["pos_embed.weight"]
            learned = (table[taps].float() * weights[..., None]).sum(1).to(self.dtype)
            half = self.config.head_dim // 2
            self._tables[grid] = (learned, cos[:, :half].contiguous(), sin[:, :half].contiguous())
        return self._tables[grid]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._map(name)
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def _linear(self, name: str, x: Tensor, out: Tensor | None = None) -> Tensor:
        weight, bias = self._map(name)
        return torch.addmm(bias, x, weight.t(), out=out)

    def _map(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    def _add_map(self, name: str, *shape: int) -> None:
        self._tensors[f"{name}.weight"] = self._empty(*shape)
        self._tensors[f"{name}.bias"] = self._empty(shape[0])

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class CudaQwen3VL:
    """Pictures and tokens to logits on one GPU; weights are loaded by `upload.load_on_device`.

    A `storage` of 8 bits is for the decoder, nine tenths of the weights; the vision tower stays in
    `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        storage: weight8.Storage | None = None,
    ) -> None:
        self.config = config
        self.dtype, self.device = dtype, device
        self.visual = CudaVisionTower(config.vision, dtype, device)
        self.decoder = CudaDecoder(config, dtype, device, storage)

    def named(self) -> dict[str, Tensor | Matrix8]:
        """Every tensor of the checkpoint by name, to be filled in place."""
        return dict((*self.visual.named(), *self.decoder.named()))
