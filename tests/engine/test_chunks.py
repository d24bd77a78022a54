"""How a prompt is cut on the CPU: no pass through all weights for a handful of tokens."""

from __future__ import annotations

import pytest

from tests.engine.conftest import WEIGHTS, Desk
from tests.pictures import draw_receipt
from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import PromptBuilder
from visiongate.engine.scheduler import Chunk
from visiongate.engine.types import EngineSettings


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch, builder: PromptBuilder) -> list[int]:
    """Chunk sizes of one question about a picture, with steps of at most 100 tokens."""
    found: list[int] = []
    engine = Engine.from_pretrained(WEIGHTS, EngineSettings(max_step_tokens=100, drafts=False))
    schedule = engine.scheduler.schedule

    def watch(token_budget: int, prefill_budget: int) -> list[Chunk]:
        chunks = schedule(token_budget, prefill_budget)
        found.extend(chunk.num_tokens for chunk in chunks if chunk.sequence.is_prefilling)
        return chunks

    monkeypatch.setattr(engine.scheduler, "schedule", watch)
    Desk(engine, builder).ask("What is the total?", decode(draw_receipt(1).png))
    return found


def test_a_prompt_is_computed_in_even_parts(sizes: list[int]) -> None:
    assert len(sizes) > 1
    assert max(sizes) - min(sizes) <= len(sizes)


def test_a_few_tokens_before_a_picture_wait_for_it(sizes: list[int]) -> None:
    assert min(sizes) > 16
