"""The least that steps and prompts cost: counted from shapes, against the model's own tensors."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from visiongate import kernels
from visiongate.engine import limits
from visiongate.engine.budget import GPU_PRECISIONS, PRECISIONS, bytes_per_weight, published
from visiongate.engine.types import Precision
from visiongate.model.config import ModelConfig
from visiongate.model.qwen3vl import Qwen3VL


def config_of(size: str) -> ModelConfig:
    found = published(f"Qwen/Qwen3-VL-{size}-Instruct")
    assert found is not None
    return found


def matrices(config: ModelConfig, beginning: str) -> int:
    """Numbers in the matrices whose name begins so."""
    with torch.device("meta"):
        state = Qwen3VL(config).state_dict()
    return sum(t.numel() for name, t in state.items() if name.startswith(beginning) and t.ndim == 2)


@pytest.mark.parametrize("size", ["2B", "8B"])
def test_a_step_reads_every_matrix_of_the_decoder_once(size: str) -> None:
    config = config_of(size)
    text = config.text
    layers = matrices(config, "model.language_model.layers.")
    head = text.vocab_size * text.hidden_size
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    found = limits.decode_bytes(config, "bfloat16", [100, 50])
    assert found == 2 * (layers + head) + 150 * cache


@pytest.mark.parametrize("size", ["4B", "32B"])
def test_a_prompt_multiplies_by_every_matrix(size: str) -> None:
    config = config_of(size)
    tower = matrices(config, "model.visual.blocks.")
    mergers = matrices(config, "model.visual.merger.")
    mergers += matrices(config, "model.visual.deepstack_merger_list.")
    decoder = matrices(config, "model.language_model.layers.")
    expected = 2 * (400 * tower + 100 * mergers + 124 * decoder)
    assert limits.linear_operations(config, 400, 124) == pytest.approx(expected, rel=1e-12)


def test_with_int8_only_a_prompts_attention_takes_the_time_of_bfloat16() -> None:
    config = config_of("2B")
    rates = limits.Limits(1.0, {"bfloat16": 1e12, "int8": 2e12})
    prompt = limits.prompt_attention_operations(config, 800) / 1e12
    assert prompt == 2 * 28 * 800**2 * 2048 / 1e12
    slow = limits.first_token_seconds(config, rates, "bfloat16", 3072, 800)
    fast = limits.first_token_seconds(config, rates, "int8", 3072, 800)
    assert fast - prompt == pytest.approx((slow - prompt) / 2)
    assert slow - prompt == pytest.approx(
        (limits.linear_operations(config, 3072, 800) + 4 * 24 * 3072**2 * 1024) / 1e12
    )


def test_every_precision_has_its_width() -> None:
    """A new precision needs a place in each table."""
    assert set(get_args(Precision)) == {*PRECISIONS, *GPU_PRECISIONS}
    for precision in PRECISIONS:
        assert 0 < bytes_per_weight(precision) <= 2
    assert [bytes_per_weight(p, device="cuda:0") for p in GPU_PRECISIONS] == [4, 2, 1.02, 1.02]
    assert bytes_per_weight("float32", has_kernels=False) == 4


def test_the_processor_is_measured() -> None:
    found = limits.measure(repeats=1, num_bytes=1 << 26)
    if kernels.backend() == "torch":
        assert found is None
        return
    assert found is not None
    assert found.bytes_per_second > 1e8
    assert all(found.operations_per_second[precision] > 1e8 for precision in PRECISIONS)


def test_of_two_measurements_the_higher_counts() -> None:
    low = limits.Limits(1.0, {"float32": 5.0})
    high = limits.Limits(2.0, {"float32": 3.0})
    assert limits.best(low, high) == limits.Limits(2.0, {"float32": 5.0})
    assert limits.best(None, low) is low
    assert limits.best(None, None) is None
