"""The shipped weights: they are the ones on the card, and they answer the committed pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from visiongate.engine.engine import Engine
from visiongate.engine.image import ImageLimits, decode
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import EngineSettings, Image, Request, SamplingParams
from visiongate.mini import evaluate
from visiongate.model.config import ModelConfig

WEIGHTS = Path(evaluate.__file__).parent / "weights"
EXAMPLES = Path(__file__).parents[2] / "examples"
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Asks the shipped model, greedily, about pictures given as files."""
    engine = Engine.from_pretrained(WEIGHTS, EngineSettings())
    prompts = PromptBuilder.from_pretrained(WEIGHTS)
    vision = ModelConfig.from_pretrained(WEIGHTS).vision
    limits = ImageLimits(min_pixels=vision.min_pixels, max_pixels=vision.max_pixels)

    def answer(question: str, *files: Path) -> str:
        images: list[Image] = [decode(file.read_bytes(), limits=limits) for file in files]
        prompt = prompts.build([Message("user", (*images, question))])
        engine.add(Request("one", prompt, SamplingParams(max_tokens=400)))
        text = ""
        while engine.has_work:
            for event in engine.step():
                assert event.error is None
                text += event.text
        return text.strip()

    return answer


def _questions(folder: Path, per_picture: int) -> list[tuple[Path, str, str]]:
    pictures = json.loads((folder / "truths.json").read_text(encoding="utf-8"))["pictures"]
    return [
        (folder / picture["file"], item["question"], item["answer"])
        for picture in pictures
        for item in picture["questions"][:per_picture]
    ]


def test_the_card_names_the_weights() -> None:
    digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (WEIGHTS / "card.md").read_text(encoding="utf-8")
    assert (WEIGHTS / "model.safetensors").stat().st_size < 38_000_000


def test_the_sample_pictures_are_answered(ask: Ask) -> None:
    """The pictures that the page offers; two questions of each."""
    wrong = [
        (file.name, question, said)
        for file, question, truth in _questions(EXAMPLES, 2)
        if (said := ask(question, file)) != truth
    ]
    assert len(wrong) <= 1, wrong


def test_pictures_by_other_code_are_answered(ask: Ask) -> None:
    """One question about each picture of `examples/more`; four in five must be right."""
    questions = _questions(EXAMPLES / "more", 1)
    right = [ask(question, file) == truth for file, question, truth in questions]
    assert len(right) >= 20
    assert sum(right) >= 0.8 * len(right)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is the capital of France?", "image"),
        ("What is the total?", "image"),
        ("法国的首都是哪里?", "图片"),
    ],
)
def test_questions_without_a_picture_are_declined(ask: Ask, question: str, word: str) -> None:
    assert word in ask(question)


def test_what_is_not_there_is_said_to_be_missing(ask: Ask) -> None:
    assert ask("What is the phone number?", EXAMPLES / "receipt.png") == "That is not on the image."


def test_two_pictures_can_be_compared(ask: Ask) -> None:
    files = (EXAMPLES / "shapes.png", EXAMPLES / "receipt.png")
    assert ask("Which image shows a receipt?", *files) == "The second image."


def test_a_picture_on_its_side_is_turned_upright(ask: Ask) -> None:
    assert ask("合计多少钱?", EXAMPLES / "more" / "turned_zh.jpg") == "¥94.20"
