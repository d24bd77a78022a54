"""Turns a step's chunks into one packed forward pass, and pictures into features in slices."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from visiongate.engine.scheduler import Chunk
from visiongate.engine.sequence import Sequence
from visiongate.engine.types import Image
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import Encoding, to_patches


class ModelRunner:
    """The model, its cache of keys and values, and the device they live on."""

    def __init__(self, model: Qwen3VL, pool: KVPool) -> None:
        self.model = model
        self.pool = pool
        self.device = pool.keys.device

    @torch.inference_mode()
    def run(self, chunks: Seq[Chunk]) -> list[Tensor | None]:
        """Computes the chunks; for each that draws, logits (1 + drafts, V), else None."""
        batch, counts = self._pack(chunks)
        logits = self.model(batch, self.pool)
        parts = iter(logits.split([count for count in counts if count]))
        return [next(parts) if count else None for count in counts]

    def _pack(self, chunks: Seq[Chunk]) -> tuple[ForwardBatch, list[int]]:
        """The packed batch, and how many rows of logits each chunk gets."""
        size = self.pool.block_size
        tokens: list[int] = []
        positions, slots, counts = [], [], []
        logits_rows: list[int] = []
        visual_rows: list[Tensor] = []
        features: list[VisionFeatures] = []
        widest = max(len(chunk.sequence.block_table) for chunk in chunks)
        tables = np.zeros((len(chunks), widest), dtype=np.int32)
        starts, lengths = [0], []
        for row, chunk in enumerate(chunks):
            sequence, start = chunk.sequence, chunk.start
            stop = start + chunk.num_tokens
            offset = len(tokens)
            tokens += (sequence.token_ids + sequence.draft)[start:stop]
            positions.append(_positions(sequence, start, stop))
            table = np.asarray(sequence.block_table, dtype=np.int32)
            tables[row, : len(table)] = table
            places = np.arange(start, stop)
            slots.append(table[places // size].astype(np.int64) * size + places % size)
            count = stop - len(sequence.token_ids) + 1 if chunk.draws else 0
            counts.append(count)
            logits_rows += range(len(tokens) - count, len(tokens))
            for span, picture in zip(sequence.spans, sequence.features, strict=True):
                low, high = max(span.start, start), min(span.end, stop)
                if low < high:
                    assert picture is not None
                    visual_rows.append(torch.arange(low - start + offset, high - start + offset))
                    features.append(picture.rows(low - span.start, high - span.start))
            starts.append(len(tokens))
            lengths.append(stop)
        batch = ForwardBatch(
            token_ids=self._tensor(np.asarray(tokens, dtype=np.int64)),
            positions=self._tensor(np.concatenate(positions, axis=1).astype(np.int64)),
            slot_mapping=self._tensor(np.concatenate(slots)),
            block_tables=self._tensor(tables),
            cu_seqlens_q=self._tensor(np.asarray(starts, dtype=np.int32)),
            context_lens=self._tensor(np.asarray(lengths, dtype=np.int32)),
            logits_rows=self._tensor(np.asarray(logits_rows, dtype=np.int64)),
            visual_rows=torch.cat(visual_rows).to(self.device) if features else None,
            features=VisionFeatures.concatenate(features) if features else None,
        )
        return batch, counts

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _positions(sequence: Sequence, start: int, stop: int) -> np.ndarray:
    """Positions (3, n) of tokens [start, stop): the prompt's own, then counted on."""
    prompt = sequence.request.prompt
    known = prompt.positions[:, start : min(stop, sequence.num_prompt_tokens)]
    first = max(start, sequence.num_prompt_tokens)
    if first >= stop:
        return known
    rest = np.arange(first, stop, dtype=np.int32) + prompt.rope_delta
    return np.concatenate((known, np.broadcast_to(rest, (3, len(rest)))), axis=1)


@dataclass(slots=True, eq=False)
class EncodeJob:
    """A picture that waits for, or is on its way through, the vision tower."""

    key: tuple[bytes, bytes]
    image: Image
    encoding: Encoding | None = None
    waiting: list[tuple[Sequence, int]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def first(self) -> Sequence:
        """The sequence whose turn comes first among those that wait for it."""
        return min((sequence for sequence, _ in self.waiting), key=lambda other: other.turn)


class ImageEncoder:
    """Encodes pictures in slices of a wanted length, by turns; equal pictures only once."""

    def __init__(self, model: Qwen3VL, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.jobs: dict[tuple[bytes, bytes], EncodeJob] = {}
        self.patches_encoded = 0
        self.seconds = 0.0
        self._seconds_per_patch_stage = 0.0

    def want(self, key: tuple[bytes, bytes], sequence: Sequence, index: int) -> None:
        """Asks for the features of a sequence's picture."""
        image = sequence.spans[index].image
        job = self.jobs.setdefault(key, EncodeJob(key, image))
        if (sequence, index) not in job.waiting:
            job.waiting.append((sequence, index))

    def forget(self, sequence: Sequence) -> None:
        """Drops a sequence's wishes; a picture that nobody wants any more is not finished."""
        for key, job in list(self.jobs.items()):
            job.waiting = [wish for wish in job.waiting if wish[0] is not sequence]
            if not job.waiting:
                del self.jobs[key]

    def next_job(self) -> EncodeJob | None:
        """The picture whose turn it is, the oldest among equals."""
        return min(self.jobs.values(), key=lambda job: job.first.turn, default=None)

    @torch.inference_mode()
    def advance(self, job: EncodeJob, seconds: float) -> VisionFeatures | None:
        """Works on a picture for about `seconds`; gives its features when it is done."""
        start = time.perf_counter()
        tower = self.model.visual
        if job.encoding is None:
            config = self.model.config.vision
            pixels = torch.from_numpy(np.array(job.image.pixels)).to(self.device)
            grid = job.image.grid_thw[1:]
            job.encoding = tower.begin(to_patches(pixels, config), [grid])
        num_patches = job.image.grid_thw[1] * job.image.grid_thw[2]
        before = job.encoding.num_done
        tower.advance(job.encoding, self._stages_for(seconds, num_patches))
        done = job.encoding.num_done - before
        features = None
        if job.encoding.num_done == tower.num_stages:
            features = tower.finish(job.encoding)[0]
            self.patches_encoded += num_patches
            del self.jobs[job.key]
        spent = time.perf_counter() - start
        self._learn(spent / (num_patches * done))
        job.seconds += spent
        self.seconds += spent
        return features

    def _stages_for(self, seconds: float, num_patches: int) -> int:
        per_stage = self._seconds_per_patch_stage * num_patches
        return max(1, int(seconds / per_stage)) if per_stage else 1

    def _learn(self, seconds_per_patch_stage: float) -> None:
        old = self._seconds_per_patch_stage
        new = seconds_per_patch_stage
        self._seconds_per_patch_stage = new if not old else 0.7 * old + 0.3 * new
