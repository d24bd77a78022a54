"""What is decided before a worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from visiongate.engine.budget import MIN_CACHE_TOKENS, budget
from visiongate.gateway.launch import (
    fitting_cache_tokens,
    wanted_cache_tokens,
    warnings_of,
    workers_of,
)
from visiongate.gateway.settings import load
from visiongate.model.config import ModelConfig

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"


@pytest.mark.parametrize("limit", [700_000_000, 800_000_000, 10_000_000_000])
def test_a_full_cache_fits_the_memory_limit(limit: int) -> None:
    settings = load({"memory_limit": limit})
    tokens = fitting_cache_tokens(settings, WEIGHTS, "cpu")
    need = budget(ModelConfig.from_pretrained(WEIGHTS), "float32", cache_tokens=tokens)
    assert need.total_bytes <= limit or tokens == MIN_CACHE_TOKENS
    assert tokens <= wanted_cache_tokens(settings)


def test_a_named_number_of_tokens_is_taken_as_it_is() -> None:
    settings = load({"memory_limit": 800_000_000, "cache_tokens": 50_000})
    assert fitting_cache_tokens(settings, WEIGHTS, "cpu") == 50_000


def test_a_limit_of_the_card_s_memory_reaches_its_worker() -> None:
    (worker,) = workers_of(load({"gpu_memory_limit": 8 * 10**9, "device": "cuda"}), WEIGHTS)
    assert worker.engine.device_memory_bytes == 8 * 10**9


def test_a_switch_without_effect_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = warnings_of(load(environ={"USE_ONNX_RUNTIME": "true"}), has_keys=False)
    assert any("USE_ONNX_RUNTIME=true has no effect" in line for line in told)
    assert not any("ONNX" in line for line in warnings_of(load(), has_keys=False))
