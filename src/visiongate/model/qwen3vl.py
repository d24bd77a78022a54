"""Qwen3-VL, dense: the whole network. Module names equal the checkpoint's tensor names.

pictures --visual--> features ----------------------+--------------+
                                                    v              v  DeepStack
tokens --embed_tokens--> x with features put in --> layers 0, 1, 2, ... --> norm --> logits
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visiongate import kernels
from visiongate.model.config import ModelConfig
from visiongate.model.inputs import ForwardBatch, KVPool
from visiongate.model.layers import Linear
from visiongate.model.text import TextModel
from visiongate.model.vision import VisionTower


class Qwen3VLModel(nn.Module):
    """The two halves, under the names of the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.language_model = TextModel(config.text)


class Qwen3VL(nn.Module):
    """Pictures and tokens to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3VLModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self.packed_head: kernels.PackedLinear | None = None
        self.compute_dtype = torch.float32

    @property
    def visual(self) -> VisionTower:
        """The vision tower."""
        return self.model.visual

    def forward(self, batch: ForwardBatch, pool: KVPool) -> Tensor:
        """Logits, float32 (R, vocabulary), of the rows that the batch asks for.

        Writes the keys and values of every token of the batch into the pool.
        """
        text = self.model.language_model
        return self.logits(text.norm(text(self.embed(batch), batch, pool)))

    def embed(self, batch: ForwardBatch) -> Tensor:
        """Embedded tokens (T, C), picture features in place of their pads."""
        x = self.model.language_model.embed_tokens(batch.token_ids).to(self.compute_dtype)
        if batch.features is None:
            return x
        assert batch.visual_rows is not None
        return x.index_copy_(0, batch.visual_rows, batch.features.embeddings.to(x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 (R, vocabulary) of normed rows (R, C)."""
        if self.packed_head is not None:
            return kernels.linear(hidden, self.packed_head).float()
        if self.config.tie_word_embeddings:
            weight = self.model.language_model.embed_tokens.weight
            return torch.nn.functional.linear(hidden, weight.to(hidden.dtype)).float()
        return self.lm_head(hidden).float()

    def use_products(self, precision: kernels.Precision) -> None:
        """Tells attention inside pictures what to multiply in."""
        for block in self.model.visual.blocks.each():
            block.attn.products = getattr(torch, precision)

    def pack(self, precision: kernels.Precision) -> None:
        """Stores every linear map in the kernels' layout at `precision`, in place.

        The embedding stays as it lies in the checkpoint: only the rows of used tokens are read.
        """
        self.use_products(precision)
        for block in self.model.visual.blocks.each():
            for linear in (
                block.attn.qkv,
                block.attn.proj,
                block.mlp.linear_fc1,
                block.mlp.linear_fc2,
            ):
                linear.pack(precision)
        for merger in (self.visual.merger, *self.visual.deepstack_merger_list.each()):
            merger.linear_fc1.pack(precision)
            merger.linear_fc2.pack(precision)
        for layer in self.model.language_model.layers.each():
            layer.self_attn.pack(precision)
            layer.mlp.pack(precision)
        if self.config.tie_word_embeddings:
            weight = self.model.language_model.embed_tokens.weight.detach()
            self.packed_head = kernels.pack_linear(weight, None, precision, release=True)
        else:
            self.lm_head.pack(precision)
