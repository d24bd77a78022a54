"""The machine's limits, measured, and how long each work must take at them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from benchmarks.checkpoint import CONFIG
from visiongate import kernels
from visiongate.kernels import Precision, native

PROBE_BYTES = 1 << 30
PROBE_ROUNDS = 400_000
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second from memory, and operations a second in registers for each precision."""

    bytes_per_second: float
    operations_per_second: dict[str, float]


def measure(repeats: int = 5) -> Limits | None:
    """The best of a few probes with all threads; None without native kernels."""
    if kernels.backend() == "torch":
        return None
    buffer = native.empty_in_huge_pages(PROBE_BYTES)
    buffer.zero_()
    reads = []
    products: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(repeats):
        begin = time.perf_counter()
        native.probe_read(buffer)
        reads.append(PROBE_BYTES / (time.perf_counter() - begin))
        for precision in PRECISIONS:
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


def first_token_seconds(limits: Limits, precision: str, num_patches: int, num_tokens: int) -> float:
    """The least time to the first token: every product at the register limit.

    With int8 the linear layers are int8 and attention is bfloat16.
    """
    linear = linear_operations(num_patches, num_tokens)
    attention = attention_operations(num_patches, num_tokens)
    rates = limits.operations_per_second
    attention_rate = rates["bfloat16" if precision == "int8" else precision]
    return linear / rates[precision] + attention / attention_rate


def linear_operations(num_patches: int, num_tokens: int) -> float:
    """Multiplications and additions of all linear layers of one prompt."""
    vision, text = CONFIG["vision_config"], CONFIG["text_config"]
    C, wide = vision["hidden_size"], vision["intermediate_size"]
    joined = 4 * C
    merger = joined * joined + joined * vision["out_hidden_size"]
    num_mergers = 1 + len(vision["deepstack_visual_indexes"])
    tower = num_patches * vision["depth"] * (4 * C * C + 2 * C * wide)
    mergers = num_patches / 4 * num_mergers * merger
    decoder = num_tokens * text_layer_weights() * text["num_hidden_layers"]
    total: float = 2 * (tower + mergers + decoder)
    return total


def attention_operations(num_patches: int, num_tokens: int) -> float:
    """The same of attention: all pairs of patches, half of the pairs of tokens."""
    vision, text = CONFIG["vision_config"], CONFIG["text_config"]
    tower = 4.0 * vision["depth"] * num_patches**2 * vision["hidden_size"]
    width = text["num_attention_heads"] * text["head_dim"]
    total: float = tower + 2.0 * text["num_hidden_layers"] * num_tokens**2 * width
    return total


def text_layer_weights() -> int:
    """Weights of one decoder layer's linear maps."""
    text = CONFIG["text_config"]
    C, D, wide = text["hidden_size"], text["head_dim"], text["intermediate_size"]
    heads, pairs = text["num_attention_heads"], text["num_key_value_heads"]
    total: int = C * (heads + 2 * pairs) * D + heads * D * C + 3 * C * wide
    return total


def decode_bytes(bytes_per_weight: float, num_tokens: int, bytes_per_value: int) -> float:
    """What one step of one sequence reads: all text weights with the head, and its cache."""
    text = CONFIG["text_config"]
    layers, head = text["num_hidden_layers"], text["vocab_size"] * text["hidden_size"]
    cache = layers * num_tokens * 2 * text["num_key_value_heads"] * text["head_dim"]
    weights = layers * text_layer_weights() + head
    total: float = weights * bytes_per_weight + cache * bytes_per_value
    return total


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
