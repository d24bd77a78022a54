"""Random weights of the published 4B shape, drawn on the GPU; speed does not depend on values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import checkpoint
from visiongate.engine.budget import published
from visiongate.kernels.cuda.weight8 import Matrix8, Storage
from visiongate.model.config import ModelConfig
from visiongate.model.cuda import CudaQwen3VL


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """A published size's configuration as a checkpoint holds it."""
    found: dict[str, Any] = json.loads(json.dumps(checkpoint.CONFIG))
    found["text_config"] |= {
        "hidden_size": config.text.hidden_size,
        "intermediate_size": config.text.intermediate_size,
        "num_attention_heads": config.text.num_attention_heads,
        "num_hidden_layers": config.text.num_hidden_layers,
    }
    found["vision_config"]["out_hidden_size"] = config.vision.out_hidden_size
    return found


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of the 4B shape, about 9 GB; its weights are drawn on the GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_4b()
    checkpoint.write_settings(folder)
    (folder / "config.json").write_text(json.dumps(hub_config(config)), encoding="utf-8")
    checkpoint.build_tokenizer().save(str(folder / "tokenizer.json"))
    named = random_model(config, torch.bfloat16).named()
    tensors = {
        name: t.cpu().contiguous() for name, t in named.items() if isinstance(t, torch.Tensor)
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def config_4b() -> ModelConfig:
    """The configuration of Qwen3-VL-4B-Instruct."""
    config = published("Qwen/Qwen3-VL-4B-Instruct")
    assert config is not None
    return config


def random_model(
    config: ModelConfig, dtype: torch.dtype, device: str = "cuda", storage: Storage | None = None
) -> CudaQwen3VL:
    """A model with normal weights (std 0.02) and norms around one."""
    model = CudaQwen3VL(config, dtype, torch.device(device), storage)
    generator = torch.Generator(device).manual_seed(6)
    for name, target in model.named().items():
        if isinstance(target, Matrix8):
            drawn = torch.empty(target.shape, dtype=dtype, device=device)
            target.store(drawn.normal_(0, 0.02, generator=generator))
        elif target.dim() == 1 and name.endswith("weight"):
            target.copy_(1 + 0.1 * torch.randn(target.shape, device=device, generator=generator))
        elif target.dim() == 1:
            target.zero_()
        else:
            target.normal_(0, 0.02, generator=generator)
    return model
