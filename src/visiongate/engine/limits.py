"""What a device can do at best, measured, and how fast a model would be if it reached that.

    measure                bytes a second of a read-only stream, operations a second of products
    decode_bytes           the least that a step reads, from a model's shape
    decode_seconds, first_token_seconds    the least time of a step and of a prompt

A limit is what the machine does undisturbed, so of several measurements the highest counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from visiongate import kernels
from visiongate.engine.budget import bytes_per_token, bytes_per_weight
from visiongate.engine.types import Precision
from visiongate.kernels import native
from visiongate.model.config import ModelConfig, TextConfig
from visiongate.model.vision import stage_work

PROBE_BYTES: Final = 1 << 30
PROBE_ROUNDS: Final = 400_000
CPU_PRECISIONS: Final[tuple[kernels.Precision, ...]] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second from memory, and operations a second of products at each precision."""

    bytes_per_second: float
    operations_per_second: dict[str, float]


def measure(
    device: str = "cpu", *, repeats: int = 5, num_bytes: int = PROBE_BYTES
) -> Limits | None:
    """The best of a few probes; None on a CPU without native kernels.

    The CPU reads `num_bytes` and multiplies in registers, with all threads; a GPU reads as much
    and multiplies large matrices, by its library's best kernel.
    """
    if device == "cpu":
        return _measure_cpu(repeats, num_bytes)
    from visiongate.kernels.cuda import probe

    rates = {
        str(dtype).removeprefix("torch."): probe.product_rate(dtype, device, repeats=repeats)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return Limits(probe.read_rate(device, num_bytes=num_bytes, repeats=repeats), rates)


def _measure_cpu(repeats: int, num_bytes: int) -> Limits | None:
    if kernels.backend() == "torch":
        return None
    buffer = native.empty_in_huge_pages(num_bytes)
    buffer.zero_()
    reads = []
    products: dict[str, list[float]] = {precision: [] for precision in CPU_PRECISIONS}
    for _ in range(repeats):
        begin = time.perf_counter()
        native.probe_read(buffer)
        reads.append(num_bytes / (time.perf_counter() - begin))
        for precision in CPU_PRECISIONS:
            begin = time.perf_counter()
            operations = native.probe_products(precision, PROBE_ROUNDS)
            products[precision].append(operations / (time.perf_counter() - begin))
    return Limits(max(reads), {precision: max(rates) for precision, rates in products.items()})


def best(first: Limits | None, second: Limits | None) -> Limits | None:
    """The higher of two measurements: a limit is what the machine can do undisturbed."""
    if first is None or second is None:
        return first or second
    rates = {
        precision: max(rate, second.operations_per_second[precision])
        for precision, rate in first.operations_per_second.items()
    }
    return Limits(max(first.bytes_per_second, second.bytes_per_second), rates)


def decode_bytes(
    config: ModelConfig, precision: Precision, contexts: Sequence[int], *, device: str = "cpu"
) -> float:
    """What one step of some sequences reads: all text weights with the head, and their caches."""
    text = config.text
    weights = text.num_hidden_layers * text_layer_weights(text) + text.vocab_size * text.hidden_size
    stored = bytes_per_weight(precision, device=device)
    return weights * stored + bytes_per_token(text, precision) * float(sum(contexts))


def decode_seconds(
    config: ModelConfig,
    limits: Limits,
    precision: Precision,
    contexts: Sequence[int],
    *,
    device: str = "cpu",
) -> float:
    """The least time of a step of some sequences: its bytes, or with many its products."""
    text = config.text
    weights = text.num_hidden_layers * text_layer_weights(text) + text.vocab_size * text.hidden_size
    operations = 2.0 * weights * len(contexts)
    read = decode_bytes(config, precision, contexts, device=device) / limits.bytes_per_second
    return max(read, operations / _rate(limits, precision))


def first_token_seconds(
    config: ModelConfig, limits: Limits, precision: Precision, num_patches: int, num_tokens: int
) -> float:
    """The least time to the first token: every product at the device's rate.

    With int8 the linear layers and the pictures' attention are int8, the prompt's is bfloat16.
    """
    rate = _rate(limits, precision)
    prompt_rate = _rate(limits, "bfloat16" if precision == "int8" else precision)
    operations = linear_operations(config, num_patches, num_tokens)
    operations += picture_attention_operations(config, num_patches)
    return operations / rate + prompt_attention_operations(config, num_tokens) / prompt_rate


def _rate(limits: Limits, precision: Precision) -> float:
    """Operations a second; where a device was not asked about a precision, that of bfloat16."""
    rates = limits.operations_per_second
    return rates.get(precision, rates["bfloat16"])


def linear_operations(config: ModelConfig, num_patches: int, num_tokens: int) -> float:
    """Multiplications and additions of all linear layers of one prompt."""
    vision, text = config.vision, config.text
    tower = sum(stage_work(vision, stage, num_patches) for stage in range(2 * vision.depth))
    decoder = num_tokens * text_layer_weights(text) * text.num_hidden_layers
    return 2.0 * (tower + decoder) - picture_attention_operations(config, num_patches)


def picture_attention_operations(config: ModelConfig, num_patches: int) -> float:
    """The same of attention within a picture: all pairs of patches."""
    return 4.0 * config.vision.depth * num_patches**2 * config.vision.hidden_size


def prompt_attention_operations(config: ModelConfig, num_tokens: int) -> float:
    """The same of a prompt's attention: half of the pairs of tokens."""
    text = config.text
    width = text.num_attention_heads * text.head_dim
    return 2.0 * text.num_hidden_layers * num_tokens**2 * width


def text_layer_weights(text: TextConfig) -> int:
    """Weights of one decoder layer's linear maps."""
    C, D = text.hidden_size, text.head_dim
    heads, pairs = text.num_attention_heads, text.num_key_value_heads
    return C * (heads + 2 * pairs) * D + heads * D * C + 3 * C * text.intermediate_size
