"""What a checkpoint's `config.json` says, parsed once into types that cannot be wrong.

Pure Python: the gateway reads it without loading a tensor library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiongate.errors import InvalidCheckpoint

SUPPORTED_MODEL_TYPE = "qwen3_vl"


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower's shape, and how pictures become its input.

    Attributes:
        deepstack_visual_indexes: after these blocks the features are tapped for the decoder.
        num_position_embeddings: entries of the learned square position table.
        min_pixels, max_pixels: area of a picture, in pixels, that the checkpoint was made for.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    rope_theta: float = 10000.0
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    min_pixels: int = 65536
    max_pixels: int = 16777216

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder's shape.

    Attributes:
        mrope_section: how many rotary frequencies follow time, height and width.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults from the checkpoint's `generation_config.json`."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense Qwen3-VL checkpoint: both halves, the special tokens, the defaults."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool
    generation: GenerationDefaults

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ModelConfig:
        """Reads `config.json`, `generation_config.json` and `preprocessor_config.json` of a folder.

        Raises InvalidCheckpoint when a file is missing or the model is of another family.
        """
        folder = Path(path)
        raw = read_json(folder / "config.json")
        model_type = raw.get("model_type", "(none)")
        if model_type != SUPPORTED_MODEL_TYPE:
            raise InvalidCheckpoint(
                f"{folder.name} holds a model of type {model_type!r}; VisionGate runs dense "
                "Qwen3-VL checkpoints (2B, 4B, 8B, 32B; Instruct or Thinking)"
            )
        generation = read_json(folder / "generation_config.json", default={})
        preprocessor = read_json(folder / "preprocessor_config.json", default={})
        try:
            return _parse(raw, generation, preprocessor)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidCheckpoint(
                f"config.json of {folder.name} is incomplete or malformed: {error!r}"
            ) from error


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file, or `default` where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise InvalidCheckpoint(
            f"{path.parent} has no {path.name}; point --model at a folder in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path} cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise InvalidCheckpoint(f"{path} does not hold a JSON object")
    return content


def _parse(
    raw: Mapping[str, Any], generation: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> ModelConfig:
    text = raw["text_config"]
    eos = generation.get("eos_token_id", text.get("eos_token_id"))
    return ModelConfig(
        vision=_vision(raw["vision_config"], preprocessor),
        text=_text(text),
        image_token_id=raw["image_token_id"],
        vision_start_token_id=raw["vision_start_token_id"],
        vision_end_token_id=raw["vision_end_token_id"],
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (int(eos),),
        tie_word_embeddings=bool(
            raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        ),
        generation=GenerationDefaults(
            do_sample=bool(generation.get("do_sample", False)),
            temperature=float(generation.get("temperature", 1.0)),
            top_p=float(generation.get("top_p", 1.0)),
            top_k=int(generation.get("top_k", 0)),
            repetition_penalty=float(generation.get("repetition_penalty", 1.0)),
        ),
    )


def _vision(raw: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> VisionConfig:
    _require("vision activation", raw.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh")
    size = preprocessor.get("size", {})
    return VisionConfig(
        depth=raw["depth"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_heads=raw["num_heads"],
        out_hidden_size=raw["out_hidden_size"],
        num_position_embeddings=raw["num_position_embeddings"],
        deepstack_visual_indexes=tuple(raw["deepstack_visual_indexes"]),
        patch_size=raw.get("patch_size", 16),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        spatial_merge_size=raw.get("spatial_merge_size", 2),
        in_channels=raw.get("in_channels", 3),
        rope_theta=float((raw.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
        image_mean=tuple(preprocessor.get("image_mean", (0.5, 0.5, 0.5))),
        image_std=tuple(preprocessor.get("image_std", (0.5, 0.5, 0.5))),
        min_pixels=int(size.get("shortest_edge", 65536)),
        max_pixels=int(size.get("longest_edge", 16777216)),
    )


def _text(raw: Mapping[str, Any]) -> TextConfig:
    _require("decoder activation", raw.get("hidden_act", "silu"), "silu")
    # Checkpoints of 2025 spell it rope_scaling + rope_theta, later ones rope_parameters.
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    _require("rope_type", rope.get("rope_type", rope.get("type", "default")), "default", "mrope")
    heads = raw["num_attention_heads"]
    time, height, width = rope.get("mrope_section", (24, 20, 20))
    return TextConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads", heads),
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        max_position_embeddings=raw["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 5_000_000.0))),
        mrope_section=(time, height, width),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        attention_bias=raw.get("attention_bias", False),
    )


def _require(what: str, value: object, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{what} {value!r} is not supported, only {' or '.join(allowed)}")
