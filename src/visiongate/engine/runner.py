"""Turns a step's chunks into one packed forward pass, and pictures into features in slices."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from visiongate.engine.heap import trim_heap
from visiongate.engine.scheduler import Chunk
from visiongate.engine.sequence import Sequence
from visiongate.engine.types import Image
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import Encoding, VisionTower, to_patches

if TYPE_CHECKING:
    from visiongate.model.cuda import CudaQwen3VL, CudaVisionTower
    from visiongate.model.onnx import OnnxTower

AnyModel: TypeAlias = "Qwen3VL | CudaQwen3VL"
"""The network as the CPU computes it, or as a GPU does."""

Output: TypeAlias = "Tensor | int | None"
"""What a step gives for a chunk: logits (1 + drafts, V) to draw from, a token drawn already, or
nothing, where the chunk ends before the next token."""


@dataclass(slots=True, eq=False)
class Launched:
    """A step that was given to the device.

    Attributes:
        seconds: what it took, once `wait` has returned.
        can_follow: whether the next tokens are all drawn on the device, so that the next step can
            be launched before they are known here.
        draws: whether there is anything to wait for; else the next step may follow at once.
        rest: what of the step comes after this, with its own end: prompts, for which streams
            need not wait.
    """

    chunks: list[Chunk]
    outputs: list[Output]
    seconds: float = 0.0
    can_follow: bool = False
    draws: bool = True
    rest: Launched | None = None

    @property
    def all_chunks(self) -> list[Chunk]:
        """The whole step's chunks."""
        return self.chunks + (self.rest.chunks if self.rest else [])

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return True

    def wait(self) -> list[Output]:
        """One output for each chunk, as soon as they are there."""
        return self.outputs


class Runner:
    """A cache of keys and values, the device it lives on, and steps on that device."""

    is_beside = False
    """Whether the device computes beside the host: a launched step is then under way."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.device = pool.keys.device

    def warm_up(self) -> None:
        """Prepares what the first step would otherwise wait for."""

    def launch(self, chunks: Seq[Chunk], after: Launched | None = None) -> Launched:
        """Gives a step to the device.

        With `after`, a chunk may stand for the token that the step `after` is about to draw; only
        a device that computes beside the host takes that.
        """
        raise NotImplementedError


class ModelRunner(Runner):
    """Steps on the CPU: one packed pass through the model."""

    def __init__(self, model: Qwen3VL, pool: KVPool) -> None:
        super().__init__(pool)
        self.model = model

    @torch.inference_mode()
    def launch(self, chunks: Seq[Chunk], after: Launched | None = None) -> Launched:
        """Computes the chunks; the step is over when this returns."""
        assert after is None
        start = time.perf_counter()
        batch, counts = self._pack(chunks)
        logits = self.model(batch, self.pool)
        parts = iter(logits.split([count for count in counts if count]))
        outputs: list[Output] = [next(parts) if count else None for count in counts]
        return Launched(list(chunks), outputs, time.perf_counter() - start)

    def _pack(self, chunks: Seq[Chunk]) -> tuple[ForwardBatch, list[int]]:
        """The packed batch, and how many rows of logits each chunk gets."""
        tokens: list[int] = []
        positions, slots, counts = [], [], []
        logits_rows: list[int] = []
        visual_rows: list[np.ndarray] = []
        features: list[VisionFeatures] = []
        widest = max(len(chunk.sequence.block_table) for chunk in chunks)
        tables = np.zeros((len(chunks), widest), dtype=np.int32)
        starts, lengths = [0], []
        for row, chunk in enumerate(chunks):
            sequence, start = chunk.sequence, chunk.start
            stop = start + chunk.num_tokens
            offset = len(tokens)
            tokens += (sequence.token_ids + sequence.draft)[start:stop]
            positions.append(positions_of(sequence, start, stop))
            slots.append(slots_of(sequence, start, stop, self.pool.block_size))
            tables[row, : len(sequence.block_table)] = sequence.block_table
            count = stop - len(sequence.token_ids) + 1 if chunk.draws else 0
            counts.append(count)
            logits_rows += range(len(tokens) - count, len(tokens))
            for place, part in pictures_of(sequence, start, stop):
                visual_rows.append(np.arange(len(part.embeddings)) + place + offset)
                features.append(part)
            starts.append(len(tokens))
            lengths.append(stop)
        batch = ForwardBatch(
            token_ids=torch.from_numpy(np.asarray(tokens, dtype=np.int64)),
            positions=torch.from_numpy(np.concatenate(positions, axis=1).astype(np.int64)),
            slot_mapping=torch.from_numpy(np.concatenate(slots)),
            block_tables=torch.from_numpy(tables),
            cu_seqlens_q=torch.from_numpy(np.asarray(starts, dtype=np.int32)),
            context_lens=torch.from_numpy(np.asarray(lengths, dtype=np.int32)),
            logits_rows=torch.from_numpy(np.asarray(logits_rows, dtype=np.int64)),
            visual_rows=torch.from_numpy(np.concatenate(visual_rows)) if features else None,
            features=VisionFeatures.concatenate(features) if features else None,
        )
        return batch, counts


def pictures_of(sequence: Sequence, start: int, stop: int) -> list[tuple[int, VisionFeatures]]:
    """Features that stand for tokens [start, stop), each after its place among those tokens."""
    found = []
    for span, picture in zip(sequence.spans, sequence.features, strict=True):
        low, high = max(span.start, start), min(span.end, stop)
        if low < high:
            assert picture is not None
            found.append((low - start, picture.rows(low - span.start, high - span.start)))
    return found


def slots_of(sequence: Sequence, start: int, stop: int, block_size: int) -> np.ndarray:
    """Slots of tokens [start, stop) in the cache, int64 (n,)."""
    places = np.arange(start, stop)
    table = np.asarray(sequence.block_table, dtype=np.int64)
    return table[places // block_size] * block_size + places % block_size


def positions_of(sequence: Sequence, start: int, stop: int) -> np.ndarray:
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


class Stopwatch:
    """Times work on a device without waiting for it: laps come out when they are known."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._started: float | torch.cuda.Event = 0.0
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event, int]] = deque()
        self._laps: list[tuple[float, int]] = []

    def start(self) -> None:
        """Begins a lap."""
        self._started = self._event() if self._is_cuda else time.perf_counter()

    def stop(self, num_units: int) -> None:
        """Ends the lap, in which `num_units` of work were done."""
        if isinstance(self._started, float):
            self._laps.append((time.perf_counter() - self._started, num_units))
        else:
            self._under_way.append((self._started, self._event(), num_units))

    def laps(self) -> list[tuple[float, int]]:
        """Seconds and units of the laps that have become known since the last call."""
        while self._under_way and self._under_way[0][1].query():
            start, end, num_units = self._under_way.popleft()
            self._laps.append((start.elapsed_time(end) / 1e3, num_units))
        laps, self._laps = self._laps, []
        return laps

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class ImageEncoder:
    """Encodes pictures in slices of a wanted length, by turns; equal pictures only once."""

    def __init__(self, model: AnyModel, device: torch.device) -> None:
        self.model = model
        self.tower: VisionTower | CudaVisionTower | OnnxTower = model.visual
        self.device = device
        self.jobs: dict[tuple[bytes, bytes], EncodeJob] = {}
        self.patches_encoded = 0
        self.seconds = 0.0
        self._seconds_per_work = 0.0
        self._clock = Stopwatch(device)

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
        self._learn()
        self._clock.start()
        start, tower = time.perf_counter(), self.tower
        if job.encoding is None:
            config = self.model.config.vision
            pixels = self._upload(job.image.pixels)
            grid = job.image.grid_thw[1:]
            job.encoding = tower.begin(to_patches(pixels, config), [grid])
        work = self._run_stages(job.encoding, start, seconds)
        features = None
        if job.encoding.num_done == tower.num_stages:
            features = tower.finish(job.encoding)[0]
            job.encoding = None
            if self.device.type == "cpu":
                trim_heap()  # the prompt wants nothing of what the picture took
            self.patches_encoded += job.image.grid_thw[1] * job.image.grid_thw[2]
            del self.jobs[job.key]
        self._clock.stop(work)
        self._learn()
        seconds = self._seconds_per_work * work
        job.seconds += seconds
        self.seconds += seconds
        return features

    def _run_stages(self, encoding: Encoding, start: float, seconds: float) -> int:
        """Runs stages until the next would end later than `seconds` after `start`, at least one.

        The CPU's clock is looked at before each; how far a GPU is, is only guessed. Returns the
        work that was done.
        """
        tower, done, spent = self.tower, 0, 0.0
        while encoding.num_done < tower.num_stages:
            work = tower.stage_work(encoding.num_done, encoding.lengths[0])
            if done and (
                not self._seconds_per_work or spent + work * self._seconds_per_work > seconds
            ):
                break
            tower.advance(encoding, 1)
            done += work
            if self.device.type == "cpu":
                spent = time.perf_counter() - start
            else:
                spent = done * self._seconds_per_work
        return done

    def _upload(self, pixels: np.ndarray) -> Tensor:
        """The picture's bytes on the device; on a GPU their way there overlaps with its work."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.array(pixels))
        pinned = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        np.copyto(pinned.numpy(), pixels)
        return pinned.to(self.device, non_blocking=True)

    def _learn(self) -> None:
        for seconds, work in self._clock.laps():
            old, new = self._seconds_per_work, seconds / work
            self._seconds_per_work = new if not old else 0.7 * old + 0.3 * new
