"""The machine that is measured, and how long the 2B shape's work must take at its limits."""

from __future__ import annotations

from typing import Final

import torch

from visiongate import kernels
from visiongate.engine import limits
from visiongate.engine.budget import published
from visiongate.engine.limits import Limits
from visiongate.engine.types import Precision
from visiongate.model.config import ModelConfig


def _shape() -> ModelConfig:
    found = published("Qwen/Qwen3-VL-2B-Instruct")
    assert found is not None
    return found


SHAPE: Final = _shape()
"""What `benchmarks.checkpoint` writes."""


def first_token_seconds(
    found: Limits, precision: Precision, num_patches: int, num_tokens: int
) -> float:
    """The least time to the first token of a prompt."""
    return limits.first_token_seconds(SHAPE, found, precision, num_patches, num_tokens)


def decode_tokens_per_second(found: Limits, precision: Precision, num_tokens: int) -> float:
    """The most that one answer can get after a prompt."""
    return found.bytes_per_second / limits.decode_bytes(SHAPE, precision, [num_tokens])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    name = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {
        "processor": name,
        "threads": kernels.num_threads(),
        "kernels": kernels.backend(),
        "torch": torch.__version__,
    }
