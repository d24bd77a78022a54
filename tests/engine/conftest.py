"""An engine on the embedded weights, and short ways to ask it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.pictures import draw_receipt
from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.tokenizer import Tokenizer
from visiongate.engine.types import (
    EngineSettings,
    Image,
    Request,
    SamplingParams,
    TokenEvent,
    Usage,
)
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.weights import load_model

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"


@dataclass
class Answer:
    """All events of one request, gathered."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    num_tokens: int = 0
    finals: list[TokenEvent] = field(default_factory=list)

    def take(self, event: TokenEvent) -> None:
        self.text += event.text
        self.pieces.append(event.text)
        self.num_tokens += event.num_tokens
        if event.is_final:
            self.finals.append(event)

    @property
    def usage(self) -> Usage:
        usage = self.finals[0].usage
        assert usage is not None
        return usage


class Desk:
    """An engine with a counter for request ids."""

    def __init__(self, engine: Engine, builder: PromptBuilder) -> None:
        self.engine = engine
        self.builder = builder
        self.answers: dict[str, Answer] = {}
        self._ids = itertools.count()

    def add(
        self,
        question: str,
        *images: Image,
        salt: bytes = b"",
        deadline_seconds: float | None = None,
        **params: object,
    ) -> str:
        prompt = self.builder.build([Message("user", (*images, question))])
        request = Request(
            f"r{next(self._ids)}",
            prompt,
            dataclasses.replace(SamplingParams(max_tokens=48), **params),  # type: ignore[arg-type]
            cache_salt=salt,
            deadline_seconds=deadline_seconds,
        )
        self.engine.add(request)
        self.answers[request.request_id] = Answer()
        return request.request_id

    def step(self) -> list[TokenEvent]:
        events = self.engine.step()
        for event in events:
            self.answers[event.request_id].take(event)
        blocks = self.engine.blocks
        assert blocks.num_free + blocks.num_held == blocks.num_blocks
        return events

    def run(self) -> None:
        while self.engine.has_work:
            self.step()
        assert self.engine.blocks.num_free == self.engine.blocks.num_blocks
        assert all(len(answer.finals) == 1 for answer in self.answers.values())

    def ask(self, question: str, *images: Image, **options: object) -> Answer:
        key = self.add(question, *images, **options)  # type: ignore[arg-type]
        self.run()
        return self.answers[key]


@pytest.fixture(scope="session")
def model() -> Qwen3VL:
    return load_model(WEIGHTS)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="session")
def builder() -> PromptBuilder:
    return PromptBuilder.from_pretrained(WEIGHTS)


@pytest.fixture
def make_desk(model: Qwen3VL, tokenizer: Tokenizer, builder: PromptBuilder) -> Callable[..., Desk]:
    """Makes engines that share the loaded weights."""

    def make(**settings: object) -> Desk:
        chosen = dataclasses.replace(EngineSettings(cache_tokens=4096), **settings)  # type: ignore[arg-type]
        return Desk(Engine(model, tokenizer, chosen), builder)

    return make


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


@pytest.fixture(scope="session")
def receipts() -> list[Image]:
    return [decode(draw_receipt(seed).png) for seed in range(4)]
