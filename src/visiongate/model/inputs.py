"""What crosses into `Qwen3VL.forward`: a packed batch, picture features, cached keys and values.

Dimensions: T tokens of all sequences, B sequences, V visual rows, C hidden size, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from visiongate.kernels.buffers import sparse_zeros


@dataclass(frozen=True, slots=True, eq=False)
class VisionFeatures:
    """What the vision tower gives for one picture.

    Attributes:
        embeddings: (V, C), stand in for the picture's pad tokens.
        deepstack: one (V, C) for each tap, added after the first decoder layers.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]

    def rows(self, start: int, stop: int) -> VisionFeatures:
        """The features of visual tokens [start, stop)."""
        return VisionFeatures(
            self.embeddings[start:stop], tuple(tap[start:stop] for tap in self.deepstack)
        )

    @staticmethod
    def concatenate(parts: list[VisionFeatures]) -> VisionFeatures:
        """Several pictures' features as one, in order."""
        if len(parts) == 1:
            return parts[0]
        taps = zip(*(part.deepstack for part in parts), strict=True)
        return VisionFeatures(
            torch.cat([part.embeddings for part in parts]), tuple(torch.cat(tap) for tap in taps)
        )

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        tensors = (self.embeddings, *self.deepstack)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, slots=True, eq=False)
class KVPool:
    """Keys and values of every layer, in slots; block b holds slots [b * size, (b + 1) * size).

    Attributes:
        keys, values: (layers, blocks, key-value heads, block size, head size): what a head reads
            of a block lies together.
    """

    keys: Tensor
    values: Tensor

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        """Slots of a block."""
        return self.keys.shape[3]

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KVPool:
        """A pool of zeros; on the CPU pages become resident when first written."""
        shape = (num_layers, num_blocks, num_heads, block_size, head_dim)
        if torch.device(device).type != "cpu":
            keys = torch.zeros(shape, dtype=dtype, device=device)
            return cls(keys, torch.zeros_like(keys))
        keys, values = (sparse_zeros(shape, dtype) for _ in range(2))
        return cls(keys, values)


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """Tokens of several sequences, packed one after another.

        tokens       | seq 0: chunk of a prompt | seq 1: one token | seq 2 ...   T rows
        cu_seqlens_q 0                          9                  10            B + 1
        block_tables row b: the blocks that hold sequence b from its first token on
        context_lens tokens of sequence b in the cache after this step, these included

    Attributes:
        token_ids: int64 (T,).
        positions: int64 (3, T), time, height, width.
        slot_mapping: int64 (T,), where each token's key and value go.
        block_tables: int32 (B, widest table).
        cu_seqlens_q: int32 (B + 1,).
        context_lens: int32 (B,).
        logits_rows: int64 (R,), the tokens whose logits are wanted.
        visual_rows: int64 (V,), the tokens that stand for picture parts; None without pictures.
        features: the V rows to put there.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    logits_rows: Tensor
    visual_rows: Tensor | None = None
    features: VisionFeatures | None = None

    def only(self, rows: Tensor) -> ForwardBatch:
        """These tokens, int64 (R,) with R > 0, when keys and values of all are in the cache.

        Tokens that follow one another are one chunk, which ends where the last of them stands in
        its sequence. Pictures are left out.
        """
        ends = self.cu_seqlens_q[1:].long()
        sequences = torch.searchsorted(ends, rows, right=True)
        is_last = torch.ones_like(rows, dtype=torch.bool)
        is_last[:-1] = (rows[1:] != rows[:-1] + 1) | (sequences[1:] != sequences[:-1])
        lasts = is_last.nonzero().flatten()
        owners = sequences[lasts]
        num_later = ends[owners] - 1 - rows[lasts]
        return ForwardBatch(
            token_ids=self.token_ids[rows],
            positions=self.positions[:, rows],
            slot_mapping=self.slot_mapping[rows],
            block_tables=self.block_tables[owners],
            cu_seqlens_q=functional.pad(lasts + 1, (1, 0)).int(),
            context_lens=(self.context_lens[owners] - num_later).int(),
            logits_rows=torch.arange(len(rows), device=rows.device),
        )
