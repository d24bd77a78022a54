"""A checkpoint of the true 2B shape with random weights: speed does not depend on the values.

It is written once, outside the repository, and holds what every engine needs: config, tokenizer,
chat template, image settings, weights. The tokenizer is synthetic: bytes, then pairs and triples
of bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from visiongate.model.config import ModelConfig
from visiongate.model.qwen3vl import Qwen3VL

SEED = 6
SHARD_BYTES = 1 << 30
NUM_TEXT_TOKENS = 151643
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "dtype": "bfloat16",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
IMAGES: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
}
GENERATION: dict[str, Any] = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": False,
}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def default_folder() -> Path:
    """Where the checkpoint is kept: the user's cache, never the repository."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "visiongate-bench" / "qwen3vl-2b-random"


def ensure(folder: Path) -> Path:
    """Writes the checkpoint unless it is there; returns the folder."""
    done = folder / "complete"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder)
        build_tokenizer().save(str(folder / "tokenizer.json"))
        write_weights(folder)
        done.touch()
    return folder


def write_settings(folder: Path) -> None:
    """Everything but tokenizer and weights."""
    video = {**IMAGES, "size": {"longest_edge": 25165824, "shortest_edge": 4096}}
    del video["image_processor_type"]
    files: dict[str, Any] = {
        "config.json": CONFIG,
        "preprocessor_config.json": IMAGES,
        "video_preprocessor_config.json": {
            **video,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "generation_config.json": GENERATION,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "chat_template": CHAT_TEMPLATE,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 262144,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE of the right size: every byte, every pair, and triples for the rest."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    merges: list[tuple[str, str]] = []
    for left, right in _merges(symbols):
        if len(vocab) == NUM_TEXT_TOKENS:
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def _merges(symbols: list[str]) -> Iterator[tuple[str, str]]:
    pairs = [(left, right) for left in symbols for right in symbols]
    yield from pairs
    for left, right in pairs:
        for last in symbols:
            yield left + right, last


def write_weights(folder: Path) -> None:
    """Shards of random bfloat16 weights under the names that the model asks for."""
    config = ModelConfig.from_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Qwen3VL(config).state_dict().items()}
    generator = np.random.default_rng(SEED)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += shape.numel() * 2
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: random_weight(name, shapes[name], generator) for name in names}
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(shape.numel() * 2 for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def random_weight(name: str, shape: torch.Size, generator: np.random.Generator) -> torch.Tensor:
    """Ones for norms; else random signs and sizes between 1/64 and 1/32, straight as bfloat16."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    bits = generator.integers(0, 1 << 16, size=shape.numel(), dtype=np.uint16)
    bits &= 0x807F  # sign and mantissa
    bits |= 0x3C80  # 2 ** -6
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).view(shape)
