"""Random weights of the published 4B shape, drawn on the GPU; speed does not depend on values."""

from __future__ import annotations

import torch

from visiongate.engine.budget import published
from visiongate.kernels.cuda.weight8 import Matrix8, Storage
from visiongate.model.config import ModelConfig
from visiongate.model.cuda import CudaQwen3VL


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
