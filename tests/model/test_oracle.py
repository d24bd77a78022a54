"""Our Qwen3-VL against transformers', on random tiny configurations and on the embedded weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from visiongate import kernels
from visiongate.model.config import ModelConfig
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import VisionTower, position_tables, to_patches
from visiongate.model.weights import load_model

BLOCK_SIZE = 16
IMAGE_PAD, VISION_START, VISION_END = 90, 91, 92


@dataclass
class Pair:
    """One checkpoint, loaded by both."""

    ours: Qwen3VL
    theirs: Qwen3VLForConditionalGeneration
    path: Path


SHAPES: dict[str, Any] = {
    "tied": dict(
        vision=dict(depth=4, hidden_size=64, intermediate_size=96, num_heads=4, taps=[0, 2]),
        text=dict(hidden_size=48, intermediate_size=80, heads=4, kv=2, head_dim=16, layers=3),
        sections=[4, 2, 2],
        tied=True,
    ),
    "untied": dict(
        vision=dict(depth=3, hidden_size=32, intermediate_size=48, num_heads=2, taps=[1]),
        text=dict(hidden_size=64, intermediate_size=64, heads=6, kv=3, head_dim=32, layers=2),
        sections=[6, 5, 5],
        tied=False,
    ),
    "odd head": dict(
        vision=dict(depth=5, hidden_size=72, intermediate_size=40, num_heads=3, taps=[0, 1, 3]),
        text=dict(hidden_size=32, intermediate_size=56, heads=2, kv=1, head_dim=24, layers=4),
        sections=[4, 4, 4],
        tied=True,
    ),
}


def make_checkpoint(folder: Path, name: str, seed: int) -> Path:
    """Writes a random checkpoint in Hugging Face layout."""
    shape = SHAPES[name]
    vision, text = shape["vision"], shape["text"]
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=128,
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            num_key_value_heads=text["kv"],
            head_dim=text["head_dim"],
            max_position_embeddings=4096,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=10000.0,
                mrope_section=shape["sections"],
                mrope_interleaved=True,
            ),
            tie_word_embeddings=shape["tied"],
            eos_token_id=1,
            pad_token_id=0,
        ),
        vision_config=dict(
            depth=vision["depth"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_heads=vision["num_heads"],
            out_hidden_size=text["hidden_size"],
            num_position_embeddings=36,
            deepstack_visual_indexes=vision["taps"],
        ),
        image_token_id=IMAGE_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape["tied"],
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1) * 0.5)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    if shape["tied"]:
        tensors.pop("lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = make_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny", request.param, seed=3)
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    return Pair(load_model(path), theirs, path)


GRIDS = {
    "one picture": [(4, 6)],
    "several sizes": [(2, 2), (6, 4), (4, 10)],
    "a strip": [(2, 300)],
    "a tower": [(128, 2)],
    "text only": [],
}


def make_prompt(grids: list[tuple[int, int]], seed: int) -> tuple[list[int], Tensor]:
    """Random text with the pictures between it, and random pixels as patches."""
    rng = np.random.default_rng(seed)
    ids: list[int] = rng.integers(2, 80, 13).tolist()
    patches = []
    for height, width in grids:
        ids += [VISION_START] + [IMAGE_PAD] * (height * width // 4) + [VISION_END]
        ids += rng.integers(2, 80, int(rng.integers(1, 9))).tolist()
        patches.append(torch.from_numpy(rng.normal(size=(height * width, 768)).astype(np.float32)))
    return ids, torch.cat(patches) if patches else torch.empty(0, 768)


def two_frames(patches: Tensor) -> Tensor:
    """The reference's input: the same frame twice, (N, 3, 2, 256) flattened."""
    return patches.view(-1, 3, 1, 256).expand(-1, 3, 2, 256).reshape(-1, 1536)


def reference_positions(pair: Pair, ids: list[int], grids: list[tuple[int, int]]) -> Tensor:
    tokens = torch.tensor([ids])
    thw = torch.tensor([[1, h, w] for h, w in grids]) if grids else None
    positions, _ = pair.theirs.model.get_rope_index(
        tokens, mm_token_type_ids=(tokens == IMAGE_PAD).int(), image_grid_thw=thw
    )
    first: Tensor = positions[:, 0]
    return first


def run_ours(
    model: Qwen3VL,
    ids: list[int],
    positions: Tensor,
    features: list[VisionFeatures],
    *,
    chunks: list[int],
) -> Tensor:
    """Logits of every token, computed in chunks through a scattered paged cache."""
    text = model.config.text
    num_blocks = -(-len(ids) // BLOCK_SIZE)
    pool = KVPool.allocate(
        num_layers=text.num_hidden_layers,
        num_blocks=num_blocks * 2 + 1,
        block_size=BLOCK_SIZE,
        num_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
    )
    blocks = torch.randperm(num_blocks * 2 + 1)[:num_blocks]
    slots = (blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten()
    tokens = torch.tensor(ids)
    visual = (tokens == model.config.image_token_id).nonzero().flatten()
    everything = VisionFeatures.concatenate(features) if features else None
    outputs, start = [], 0
    for size in [*chunks, len(ids) - sum(chunks)]:
        stop = start + size
        rows = visual[(visual >= start) & (visual < stop)]
        before = int((visual < start).sum())
        part = everything.rows(before, before + len(rows)) if everything and len(rows) else None
        batch = ForwardBatch(
            token_ids=tokens[start:stop],
            positions=positions[:, start:stop],
            slot_mapping=slots[start:stop],
            block_tables=blocks[None].int(),
            cu_seqlens_q=torch.tensor([0, size], dtype=torch.int32),
            context_lens=torch.tensor([stop], dtype=torch.int32),
            logits_rows=torch.arange(size),
            visual_rows=rows - start if part else None,
            features=part,
        )
        outputs.append(model(batch, pool))
        start = stop
    return torch.cat(outputs)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.inference_mode()
@pytest.mark.parametrize(
    "grids", [g for g in GRIDS.values() if g], ids=[n for n in GRIDS if GRIDS[n]]
)
def test_tower_and_deepstack_equal_the_reference(pair: Pair, grids: list[tuple[int, int]]) -> None:
    _, patches = make_prompt(grids, seed=1)
    thw = torch.tensor([[1, h, w] for h, w in grids])
    theirs = pair.theirs.model.visual(two_frames(patches), grid_thw=thw)
    ours = VisionFeatures.concatenate(pair.ours.visual(patches, grids))
    assert relative_error(ours.embeddings, theirs.pooler_output) < 1e-5
    assert len(ours.deepstack) == len(theirs.deepstack_features)
    for tap, expected in zip(ours.deepstack, theirs.deepstack_features, strict=True):
        assert relative_error(tap, expected) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_logits_equal_the_reference_whole_and_in_chunks(
    pair: Pair, grids: list[tuple[int, int]]
) -> None:
    ids, patches = make_prompt(grids, seed=2)
    tokens = torch.tensor([ids])
    vision = (
        dict(
            pixel_values=two_frames(patches),
            image_grid_thw=torch.tensor([[1, h, w] for h, w in grids]),
        )
        if grids
        else {}
    )
    theirs = pair.theirs(
        input_ids=tokens, mm_token_type_ids=(tokens == IMAGE_PAD).int(), **vision
    ).logits[0]
    features = pair.ours.visual(patches, grids) if grids else []
    positions = reference_positions(pair, ids, grids)
    for chunks in ([], [5], [1, 7, 2]):
        ours = run_ours(pair.ours, ids, positions, features, chunks=chunks)
        assert relative_error(ours, theirs) < 1e-4  # float32 with other summation orders
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@torch.inference_mode()
def test_few_rows_in_one_native_call_give_the_bits_of_the_layers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, _ = make_prompt([], seed=4)
    positions = reference_positions(pair, ids, [])
    called = run_ours(pair.ours, ids, positions, [], chunks=[1, 7, 2])
    monkeypatch.setattr(kernels, "MOST_DECODER_ROWS", 0)
    assert torch.equal(run_ours(pair.ours, ids, positions, [], chunks=[1, 7, 2]), called)


@torch.inference_mode()
def test_slices_of_the_tower_give_the_same_bits(pair: Pair) -> None:
    _, patches = make_prompt([(4, 6), (8, 2)], seed=5)
    whole = pair.ours.visual(patches, [(4, 6), (8, 2)])
    tower = pair.ours.visual
    encoding = tower.begin(patches, [(4, 6), (8, 2)])
    while encoding.num_done < tower.num_stages:
        tower.advance(encoding, 1)
    for one, other in zip(whole, tower.finish(encoding), strict=True):
        assert torch.equal(one.embeddings, other.embeddings)
        assert all(map(torch.equal, one.deepstack, other.deepstack))


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_stages_work_is_what_plain_torch_multiplies(name: str, tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(make_checkpoint(tmp_path, name, seed=1)).vision
    _, patches = make_prompt([(8, 6)], seed=5)
    tower = VisionTower(config)
    encoding = tower.begin(patches, [(8, 6)])
    for stage in range(tower.num_stages):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tower.advance(encoding, 1)
            if stage == tower.num_stages - 1:
                tower.finish(encoding)
        assert counter.get_total_flops() == 2 * tower.stage_work(stage, 48)


@torch.inference_mode()
def test_patches_equal_the_reference_processor() -> None:
    config = ModelConfig.from_pretrained(MINI).vision
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 1024, "longest_edge": 10**6},
    )
    theirs = processor(images=pixels, return_tensors="pt")["pixel_values"]
    ours = two_frames(to_patches(torch.from_numpy(pixels), config))
    # (x / 255 - 0.5) / 0.5 against (x - 127.5) / 127.5: one rounding apart
    assert float((ours - theirs).abs().max()) < 3e-7


def test_kernels_cut_the_same_patches() -> None:
    config = ModelConfig.from_pretrained(MINI).vision
    pixels = torch.randint(0, 256, (96, 160, 3), dtype=torch.uint8)
    plain = to_patches(pixels, config)  # with gradients torch computes
    with torch.inference_mode():
        assert torch.equal(to_patches(pixels, config), plain)


@pytest.mark.parametrize("grid", [(2, 2), (6, 4), (48, 64), (2, 400)])
def test_position_tables_equal_the_reference(grid: tuple[int, int]) -> None:
    from transformers.models.qwen3_vl import modeling_qwen3_vl as reference

    config = ModelConfig.from_pretrained(MINI).vision
    thw = torch.tensor([[1, *grid]])
    indices, weights = reference.get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=24, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    taps, ours, _, _ = position_tables(config, grid)
    table = torch.randn(576, 8)
    blend = (table[taps] * ours[..., None]).sum(1)
    expected = (table[indices] * weights[..., None]).sum(1)
    assert float((blend - expected).abs().max()) < 2e-5  # weights to float32's last bits


MINI = Path(__file__).parents[2] / "src/visiongate/mini/weights"
