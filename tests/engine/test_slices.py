"""How much of a picture is encoded in one step, by a clock that the tower moves itself."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from visiongate.engine.runner import EncodeJob, ImageEncoder
from visiongate.engine.types import Image
from visiongate.model.config import VisionConfig
from visiongate.model.inputs import VisionFeatures
from visiongate.model.vision import Encoding, stage_work

NUM_STAGES = 12
CONFIG = VisionConfig(
    depth=NUM_STAGES // 2,
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    out_hidden_size=48,
    num_position_embeddings=16,
    deepstack_visual_indexes=(1, 3),
)


class Tower:
    """Stages that take `seconds_per_work` of a clock, and write down when they began."""

    num_stages = NUM_STAGES

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds_per_work = 1e-6
        self.beginnings: list[float] = []

    def stage_work(self, stage: int, num_patches: int) -> int:
        return stage_work(CONFIG, stage, num_patches)

    def begin(self, patches: torch.Tensor, grids: list[tuple[int, int]]) -> Encoding:
        (height, width) = grids[0]
        nothing = torch.empty(0)
        return Encoding(nothing, nothing, nothing, (height * width,))

    def advance(self, encoding: Encoding, num_stages: int) -> None:
        for _ in range(num_stages):
            self.beginnings.append(self.now)
            work = self.stage_work(encoding.num_done, encoding.lengths[0])
            self.now += work * self.seconds_per_work
            encoding.num_done += 1

    def finish(self, encoding: Encoding) -> list[VisionFeatures]:
        return [VisionFeatures(torch.empty(0, 48), ())]


def make_job(side: int) -> EncodeJob:
    edge = 16 * side
    pixels = np.zeros((edge, edge, 3), dtype=np.uint8)
    image = Image(pixels, b"", "PNG", original_width=edge, original_height=edge)
    sequence: Any = SimpleNamespace(turn=0)
    return EncodeJob((b"", b""), image, waiting=[(sequence, 0)])


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def encoder(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> ImageEncoder:
    model: Any = SimpleNamespace(visual=tower, config=SimpleNamespace(vision=CONFIG))
    monkeypatch.setattr(time, "perf_counter", lambda: tower.now)
    return ImageEncoder(model, torch.device("cpu"))


def encode(encoder: ImageEncoder, tower: Tower, job: EncodeJob, seconds: float) -> list[float]:
    """What each slice of a picture took."""
    encoder.jobs[job.key] = job
    slices = []
    while job.key in encoder.jobs:
        before = tower.now
        encoder.advance(job, seconds)
        slices.append(tower.now - before)
    return slices


def test_what_is_not_known_yet_is_tried_with_one_stage(encoder: ImageEncoder, tower: Tower) -> None:
    job = make_job(4)
    encoder.jobs[job.key] = job
    encoder.advance(job, 1e9)
    assert len(tower.beginnings) == 1


@pytest.mark.parametrize("side", [4, 10])
def test_a_slice_ends_before_the_stage_that_would_not_fit(
    encoder: ImageEncoder, tower: Tower, side: int
) -> None:
    encode(encoder, tower, make_job(4), 1.0)
    works = [stage_work(CONFIG, stage, side * side) for stage in range(NUM_STAGES)]
    longest = max(works) * tower.seconds_per_work
    wanted = 2.5 * longest
    slices = encode(encoder, tower, make_job(side), wanted)
    assert len(slices) > 2
    assert max(slices) <= wanted * (1 + 1e-9)
    assert all(took > wanted - longest for took in slices[:-1])


def test_a_machine_that_slows_down_gets_fewer_stages_in_the_same_slice(
    encoder: ImageEncoder, tower: Tower
) -> None:
    encode(encoder, tower, make_job(4), 1.0)
    longest = max(stage_work(CONFIG, stage, 16) for stage in range(NUM_STAGES)) * 1e-6
    tower.seconds_per_work = 3e-6
    slices = encode(encoder, tower, make_job(4), 6.5 * longest)
    assert max(slices) <= (6.5 + 2) * longest  # one stage took longer than was known


def test_no_slice_is_empty(encoder: ImageEncoder, tower: Tower) -> None:
    encode(encoder, tower, make_job(4), 1.0)
    assert len(encode(encoder, tower, make_job(4), 0.0)) == NUM_STAGES
