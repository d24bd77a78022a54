"""How much memory a model needs, computed from its configuration; nothing is loaded.

    weights      linear maps at the precision's width; on the CPU the embedding stays in the file
    cache        keys and values of every token that may be held at once
    work         one picture of the largest area in the vision tower, one step in the decoder
    program      two processes and the features of recent pictures; on a card its context

On the CPU "float32" stores published bfloat16 weights as they are and computes in float32: two
bytes each. A card stores what it computes with: four; `gpu_budget` tells of its memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from visiongate.engine.types import Precision
from visiongate.model.card_limits import CHUNK_TOKENS, NUM_PICTURE_STATES, NUM_POSITION_TABLES
from visiongate.model.config import GenerationDefaults, ModelConfig, TextConfig, VisionConfig

PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "int8")
GPU_PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "int8", "float8")
PROGRAM_BYTES: Final = 480_000_000
"""Both processes with their libraries (measured: 0.45 GB with the embedded model)."""

FEATURE_BYTES: Final = 256 * 1024 * 1024

CONTEXT_BYTES: Final = 600_000_000
"""A process on a card before its first tensor: the driver's context, libraries, kernels."""

LIBRARY_BYTES: Final = 150_000_000
"""What matrix libraries work in, and what lies between tensors."""

STEP_TOKENS: Final = 2048
MIN_CACHE_TOKENS: Final = 4096
"""One picture at the default area (1024 visual tokens), its question and a long answer."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The bytes that one precision needs."""

    precision: Precision
    weights_bytes: int
    cache_bytes: int
    work_bytes: int
    cache_tokens: int
    bytes_per_token: int
    program_bytes: int = PROGRAM_BYTES + FEATURE_BYTES

    @property
    def fixed_bytes(self) -> int:
        """All but the cache."""
        return self.weights_bytes + self.work_bytes + self.program_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, with a full cache."""
        return self.fixed_bytes + self.cache_bytes

    def fitting_cache_tokens(self, limit_bytes: int) -> int:
        """The largest cache that fits a limit, in steps of 1024 tokens; 0 when none does."""
        room = max(0, limit_bytes - self.fixed_bytes) // self.bytes_per_token
        return room // 1024 * 1024 if room >= MIN_CACHE_TOKENS else 0

    def __str__(self) -> str:
        return (
            f"{self.precision:8}  {_gb(self.total_bytes)} = weights {_gb(self.weights_bytes)} "
            f"+ cache {_gb(self.cache_bytes)} ({self.cache_tokens} tokens) "
            f"+ work {_gb(self.work_bytes)} + program {_gb(self.program_bytes)}"
        )


def budget(
    config: ModelConfig,
    precision: Precision,
    *,
    cache_tokens: int,
    image_area: int = 1024 * 1024,
    has_kernels: bool = True,
) -> Budget:
    """What a model needs at one precision on the CPU."""
    vision, text = config.vision, config.text
    patches = image_area // vision.patch_size**2
    tower = patches * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    step = STEP_TOKENS * (6 * text.hidden_size + 3 * text.intermediate_size)
    per_token = bytes_per_token(text, precision)
    per_weight = bytes_per_weight(precision, has_kernels=has_kernels)
    return Budget(
        precision,
        int(num_linear_weights(config) * per_weight),
        cache_tokens * per_token,
        4 * max(tower, step),
        cache_tokens,
        per_token,
    )


def gpu_budget(
    config: ModelConfig,
    precision: Precision,
    *,
    cache_tokens: int,
    max_rows: int,
    feature_bytes: int = FEATURE_BYTES,
    image_area: int = 1024 * 1024,
) -> Budget:
    """What a model needs of a card's memory; 8 bits are for the decoder's matrices alone.

    The work is one picture in the tower, with and without its graphs, what is kept of other sizes
    (all as large as can be), a chunk of a prompt, `max_rows` answers with their graphs and draws,
    the features of recent pictures and, with 8 bits, one matrix widened.
    """
    text, vision = config.text, config.vision
    is_8_bits = precision in ("int8", "float8")
    size = 4 if precision == "float32" else 2
    C, inner = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    qkv = queries + 2 * text.num_key_value_heads * text.head_dim
    matrices = text.num_hidden_layers * C * (qkv + queries + 3 * inner)
    matrices += text.vocab_size * C * (1 if config.tie_word_embeddings else 2)
    weights = num_parameters(config) * size - matrices * (size - 1 if is_8_bits else 0)
    num_taps = len(vision.deepstack_visual_indexes)
    stream = 4 * C * (1 + num_taps) + 4 * text.head_dim + size * (3 * C + queries + inner)
    chunk = CHUNK_TOKENS * (stream + size * (qkv + 2 * inner))
    answers = max_rows * text.vocab_size * 4 * 8  # logits of some graphs, and copies to draw from
    patches = image_area // vision.patch_size**2
    tower = size * patches * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    angles = 4 * vision.head_dim
    kept = NUM_POSITION_TABLES * patches * (size * vision.hidden_size + angles)
    kept += NUM_PICTURE_STATES * patches * (2 * size * vision.hidden_size + angles)
    wide = size * 2 * inner * C if is_8_bits else 0
    return Budget(
        precision,
        weights,
        cache_tokens * bytes_per_token(text, precision),
        chunk + answers + 2 * tower + kept + wide + feature_bytes + LIBRARY_BYTES,
        cache_tokens,
        bytes_per_token(text, precision),
        program_bytes=CONTEXT_BYTES,
    )


def bytes_per_weight(
    precision: Precision, *, has_kernels: bool = True, device: str = "cpu"
) -> float:
    """Bytes of one weight of a linear map, its share of the scales included.

    Without native kernels the CPU keeps float32 weights widened: four bytes each, as on a card.
    """
    if precision == "float32":
        return 2.0 if has_kernels and device == "cpu" else 4.0
    return {"bfloat16": 2.0, "int8": 1.02, "float8": 1.02}[precision]


def bytes_per_token(text: TextConfig, precision: Precision) -> int:
    """Bytes of one token's keys and values in all layers."""
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return values * (4 if precision == "float32" else 2)


def num_linear_weights(config: ModelConfig) -> int:
    """Weights of all linear maps, the output head among them even where it is tied."""
    return num_parameters(config) - (
        0 if config.tie_word_embeddings else config.text.vocab_size * config.text.hidden_size
    )


def num_parameters(config: ModelConfig) -> int:
    """Parameters of a checkpoint, tied ones counted once."""
    text, vision = config.text, config.vision
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    bias = 2 * keys + 2 * queries if text.attention_bias else 0
    layer = (
        text.hidden_size * (2 * queries + 2 * keys)
        + bias
        + 3 * text.hidden_size * text.intermediate_size
        + 2 * text.head_dim
        + 2 * text.hidden_size
    )
    head = text.vocab_size * text.hidden_size
    decoder = text.num_hidden_layers * layer + text.hidden_size
    decoder += head * (1 if config.tie_word_embeddings else 2)
    C, inner = vision.hidden_size, vision.intermediate_size
    block = 4 * C * C + 4 * C + 2 * C * inner + C + inner + 4 * C
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    wide = C * vision.spatial_merge_size**2
    merger = wide * wide + wide + wide * vision.out_hidden_size + vision.out_hidden_size
    num_taps = len(vision.deepstack_visual_indexes)
    tower = vision.depth * block + patch * C + C + vision.num_position_embeddings * C
    tower += merger + 2 * C + num_taps * (merger + 2 * wide)
    return decoder + tower


def published(name: str) -> ModelConfig | None:
    """The configuration of a published dense Qwen3-VL by its id, or None."""
    size = next((s for s in _SHAPES if f"Qwen3-VL-{s}-" in f"{name}-"), None)
    if size is None:
        return None
    hidden, inner, layers, heads, is_tied, large_tower = _SHAPES[size]
    tower = _LARGE_TOWER if large_tower else _SMALL_TOWER
    depth, width, vision_inner, taps = tower
    return ModelConfig(
        vision=VisionConfig(
            depth=depth,
            hidden_size=width,
            intermediate_size=vision_inner,
            num_heads=16,
            out_hidden_size=hidden,
            num_position_embeddings=2304,
            deepstack_visual_indexes=taps,
        ),
        text=TextConfig(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            rope_theta=5_000_000.0,
            mrope_section=(24, 20, 20),
        ),
        image_token_id=151655,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        eos_token_ids=(151645, 151643),
        tie_word_embeddings=is_tied,
        generation=GenerationDefaults(),
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


# hidden, intermediate, layers, heads, tied head, large tower
_SHAPES: Final = {
    "2B": (2048, 6144, 28, 16, True, False),
    "4B": (2560, 9728, 36, 32, True, False),
    "8B": (4096, 12288, 36, 32, False, True),
    "32B": (5120, 25600, 64, 64, False, True),
}
_SMALL_TOWER: Final = (24, 1024, 4096, (5, 11, 17))
_LARGE_TOWER: Final = (27, 1152, 4304, (8, 16, 24))
