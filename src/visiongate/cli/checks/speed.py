"""Measures how fast a loaded engine is, as its users feel it.

new picture      its bytes -> decode, prompt, vision tower, prefill -> first token
known picture    another question about it: only the question is computed
decode           tokens a second of answers that run together, without guesses
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image as Picture

from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import Message
from visiongate.engine.types import Image, Prompt, Request, SamplingParams
from visiongate.gateway.intake import Intake

WIDTH, HEIGHT = 1024, 768
QUESTION = "What does this picture show? Name the main colours, from left to right."
OTHER_QUESTIONS = ("How many shapes", "Which colours", "What kinds of edges", "Which bright areas")
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Streams:
    """Some answers that ran together.

    Attributes:
        tokens_per_second: of all together, one entry a round.
        contexts: tokens of each, in the middle of the measurement.
    """

    tokens_per_second: list[float]
    contexts: list[int]


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured; seconds are wall time.

    Attributes:
        num_patches, num_tokens: of a new picture's prompt.
    """

    new_seconds: list[float]
    known_seconds: list[float]
    num_patches: int
    num_tokens: int
    alone: Streams
    together: Streams | None


def measure(
    engine: Engine,
    intake: Intake,
    *,
    num_pictures: int,
    num_tokens: int,
    num_streams: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Speeds:
    """Measures an engine that has nothing else to do."""
    asker = _Asker(engine, intake)
    asker.first_token(jpeg(0), QUESTION)  # pages of memory and code are touched once
    new, known = [], []
    for number in range(1, num_pictures + 1):
        progress(f"new pictures, {number} of {num_pictures}")
        seconds, image, prompt = asker.first_token(jpeg(number), QUESTION)
        new.append(seconds)
        known.append(asker.first_token(image, other_question(number))[0])
    progress("one answer")
    alone = asker.streams(image, 1, num_tokens)
    together = None
    if num_streams > 1:
        progress(f"{num_streams} answers")
        together = asker.streams(image, num_streams, num_tokens)
    _, down, across = image.grid_thw
    return Speeds(new, known, down * across, len(prompt.token_ids), alone, together)


def jpeg(seed: int, width: int = WIDTH, height: int = HEIGHT, *, grain: int = 0) -> bytes:
    """A drawn picture of its own: soft colours with hard-edged rectangles.

    `grain` is the largest change of a sample by noise; 6 to 14 make files as large as photographs.
    """
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Picture.fromarray(colours).resize((width, height), Picture.Resampling.BICUBIC)
    for left, top in rng.integers(0, (width - 200, height - 150), (12, 2)):
        size = rng.integers(20, 150, 2)
        box = (int(left), int(top), int(left + size[0]), int(top + size[1]))
        picture.paste(tuple(int(value) for value in rng.integers(0, 256, 3)), box)
    if grain:
        noise = rng.integers(-grain, grain + 1, (height, width, 3), dtype=np.int16)
        grainy = (np.asarray(picture, dtype=np.int16) + noise).clip(0, 255)
        picture = Picture.fromarray(grainy.astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def other_question(number: int) -> str:
    """A question that no other request of the run begins with."""
    words = OTHER_QUESTIONS[number % len(OTHER_QUESTIONS)]
    return f"Part {number}: {words} do you see in it, and where?"


class _Asker:
    """Short ways to ask an engine."""

    def __init__(self, engine: Engine, intake: Intake) -> None:
        self._engine = engine
        self._intake = intake
        self._numbers = itertools.count()

    def first_token(self, picture: bytes | Image, question: str) -> tuple[float, Image, Prompt]:
        """Seconds from a picture's bytes, or from a decoded picture, to the first token."""
        begin = time.perf_counter()
        if isinstance(picture, bytes):
            picture = decode(picture, limits=self._intake.image_limits)
        prompt = self._prompt(picture, question)
        self._add(prompt, 1)
        while self._engine.has_work:
            for event in self._engine.step():
                if event.error is not None:
                    raise event.error
        return time.perf_counter() - begin, picture, prompt

    def streams(self, image: Image, count: int, num_steps: int) -> Streams:
        """Answers to other questions about a known picture, from when all of them stream."""
        rates, contexts = [], [0]
        for _ in range(ROUNDS):
            rate, contexts = self._round(image, count, num_steps)
            rates.append(rate)
        return Streams(rates, contexts)

    def _round(self, image: Image, count: int, num_steps: int) -> tuple[float, list[int]]:
        lengths: dict[str, int] = {}
        for _ in range(count):
            number = next(self._numbers)
            prompt = self._prompt(image, other_question(1000 + number))
            # until the last one streams, the first ones get some tokens ahead
            lengths[self._add(prompt, num_steps + 4 * count + 4)] = len(prompt.token_ids)
        begun: set[str] = set()
        while len(begun) < count and self._engine.has_work:
            begun |= {key for key, num in self._step().items() if num}
        begin, generated = time.perf_counter(), 0
        for _ in range(num_steps):
            generated += sum(self._step().values())
        seconds = time.perf_counter() - begin
        for key in lengths:
            self._engine.abort(key)
        return generated / seconds, [num + num_steps // 2 for num in lengths.values()]

    def _step(self) -> dict[str, int]:
        """One step's new tokens of each request."""
        found: dict[str, int] = {}
        for event in self._engine.step():
            if event.error is not None:
                raise event.error
            found[event.request_id] = event.num_tokens
        return found

    def _prompt(self, image: Image, question: str) -> Prompt:
        return self._intake.build([Message("user", (image, question))])

    def _add(self, prompt: Prompt, max_tokens: int) -> str:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, guard=False)
        request = Request(f"bench-{next(self._numbers)}", prompt, params)
        self._engine.add(request)
        return request.request_id
