"""The true shape of Qwen3-VL-2B with random weights, against transformers in float32 (17 GB)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLForConditionalGeneration

from tests.model.test_oracle import MINI, relative_error, run_ours
from visiongate.engine.prompt import prompt_positions
from visiongate.engine.types import Image, ImageSpan
from visiongate.model.config import ModelConfig
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import to_patches
from visiongate.model.weights import load_model

TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of the true shape; bfloat16, normal with deviation 0.02, norms about one."""
    config = json.loads((MINI / "config.json").read_text())
    config["text_config"].update(TEXT)
    # The spelling of the published 2025 checkpoints.
    del config["text_config"]["rope_parameters"]
    config["text_config"]["rope_theta"] = 5_000_000
    config["text_config"]["rope_scaling"] = {
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
        "rope_type": "default",
    }
    config["vision_config"].update(VISION)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = Qwen3VL(ModelConfig.from_pretrained(folder)).state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, parameter in shapes.items():
        tensor = torch.empty(parameter.shape, dtype=torch.bfloat16)
        tensor.normal_(0, 0.02, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            tensor += 1
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.timeout(1500)
@torch.inference_mode()
def test_the_true_2b_shape_equals_the_reference(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    image = Image(pixels, b"", "PNG", 256, 192)
    config = ModelConfig.from_pretrained(tmp_path)
    ids = [100, 200, config.vision_start_token_id]
    span = ImageSpan(len(ids), image)
    ids += [config.image_token_id] * image.num_tokens + [config.vision_end_token_id, 5, 6, 7]
    positions, _ = prompt_positions(len(ids), [span])
    patches = to_patches(torch.from_numpy(pixels), config.vision)

    theirs = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.tensor([ids])
    expected = theirs(
        input_ids=tokens,
        pixel_values=patches.view(-1, 3, 1, 256).expand(-1, 3, 2, 256).reshape(-1, 1536),
        image_grid_thw=torch.tensor([image.grid_thw]),
        mm_token_type_ids=(tokens == config.image_token_id).int(),
    ).logits[0]
    del theirs

    ours = load_model(tmp_path)
    features = ours.visual(patches, [image.grid_thw[1:]])
    logits = run_ours(ours, ids, torch.from_numpy(positions).long(), features, chunks=[20])
    assert relative_error(logits, expected) < 2e-4  # 28 layers of float32 rounding
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
