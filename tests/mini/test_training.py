"""The training code: the same numbers as the serving model, and losses that fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from visiongate.mini import packing, train
from visiongate.mini.network import TrainingNetwork
from visiongate.mini.packing import SIZE_CLASSES, Drawer, Glyphs, Packer, SizeClass, stage_at
from visiongate.mini.scenes.fonts import BUILTIN, FontBook
from visiongate.mini.scenes.words import small_vocabulary
from visiongate.model.config import ModelConfig, TextConfig, VisionConfig
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import to_patches

WEIGHTS = Path(packing.__file__).parent / "weights"
BOOK = FontBook((BUILTIN,), ())


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))


def _config(packer: Packer, *, text: dict[str, int], vision: dict[str, int]) -> ModelConfig:
    """The shipped configuration at another size."""
    shipped = ModelConfig.from_pretrained(WEIGHTS)
    small_text: TextConfig = dataclasses.replace(shipped.text, **text)  # type: ignore[arg-type]  # only counts
    small_vision: VisionConfig = dataclasses.replace(
        shipped.vision,
        out_hidden_size=small_text.hidden_size,
        deepstack_visual_indexes=(0,),
        **vision,  # type: ignore[arg-type]  # only counts
    )
    return dataclasses.replace(shipped, text=small_text, vision=small_vision)


def _few_rows(name: str, rows: int) -> SizeClass:
    return dataclasses.replace(SIZE_CLASSES[name], rows=rows)


def _drawer(seed: int) -> Drawer:
    return Drawer(seed, BOOK, small_vocabulary())


def _serve(
    model: Qwen3VL, ids: list[int], positions: torch.Tensor, images: list[torch.Tensor]
) -> torch.Tensor:
    """Logits of one sequence as the engine would compute them."""
    config = model.config
    T = len(ids)
    pool = KVPool.allocate(
        num_layers=config.text.num_hidden_layers,
        num_blocks=(T + 15) // 16,
        block_size=16,
        num_heads=config.text.num_key_value_heads,
        head_dim=config.text.head_dim,
    )
    features = None
    if images:
        patches = torch.cat([to_patches(image, config.vision) for image in images])
        grids = [(image.shape[0] // 16, image.shape[1] // 16) for image in images]
        features = VisionFeatures.concatenate(model.visual(patches, grids))
    tokens = torch.tensor(ids)
    rows = (tokens == config.image_token_id).nonzero()[:, 0]
    batch = ForwardBatch(
        token_ids=tokens,
        positions=positions.long(),
        slot_mapping=torch.arange(T),
        block_tables=torch.arange((T + 15) // 16, dtype=torch.int32)[None],
        cu_seqlens_q=torch.tensor([0, T], dtype=torch.int32),
        context_lens=torch.tensor([T], dtype=torch.int32),
        logits_rows=torch.arange(T),
        visual_rows=rows if images else None,
        features=features,
    )
    logits: torch.Tensor = model(batch, pool)
    return logits


@pytest.mark.parametrize("name", ["small", "pair"])
def test_packed_conversations_equal_the_serving_model(packer: Packer, name: str) -> None:
    """Each conversation of a packed row gives the logits that `Qwen3VL` gives it alone."""
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    config = _config(packer, text=size, vision={"depth": 2, "hidden_size": 64, "num_heads": 1})
    network = TrainingNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = Qwen3VL(config).eval()
    model.load_state_dict(network.state_dict())
    drawer = _drawer(3)
    batch = packer.batch(_few_rows(name, 1), drawer, stage_at(1.0), Glyphs(drawer.vocabulary))
    with torch.no_grad():
        features, taps, _ = network.see(batch["pixels"].float() / 127.5 - 1)
        features, *taps = (t.reshape(1, -1, t.shape[-1]) for t in (features, *taps))
        states = network.read(
            batch["token_ids"].long(),
            batch["positions"],
            packing.attention_mask(batch["segments"]),
            features,
            taps,
            batch["feature_rows"].long(),
        )
        segments = batch["segments"][0]
        found = sorted(set(segments.tolist()) - {0, packing.UNUSED})
        assert found
        for segment in found:
            alone = segment == packing.ALONE
            place = ((segments == segment) | ((segments == 0) & (not alone))).nonzero()[:, 0]
            served = _serve(
                model,
                batch["token_ids"][0, place].tolist(),
                batch["positions"][:, 0, place],
                [] if alone else list(batch["pixels"]),
            )
            packed = network.logits(states[0, place])
            torch.testing.assert_close(packed, served, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(SIZE_CLASSES))
def test_rows_hold_what_the_loss_needs(packer: Packer, name: str) -> None:
    size = _few_rows(name, 3)
    drawer = _drawer(8)
    batch = packer.batch(size, drawer, stage_at(1.0), Glyphs(drawer.vocabulary))
    tokens, targets, index = batch["token_ids"], batch["targets"], batch["target_index"].long()
    wanted = targets >= 0
    assert wanted.any(1).all()
    following = tokens.gather(1, index + 1)
    assert torch.equal(following[wanted], targets[wanted])
    pads = (tokens == packer.picture_pad).sum(1)
    assert pads.tolist() == [size.tokens * size.pictures] * 3
    assert ((batch["feature_rows"] >= 0) == (tokens == packer.picture_pad)).all()


def test_conversations_do_not_see_each_other() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, packing.ALONE, packing.UNUSED]])
    mask = packing.attention_mask(segments)[0, 0]
    assert mask[4].tolist() == [True, True, False, False, True, False, False]
    assert mask[5].tolist() == [False] * 5 + [True, False]
    assert mask[3].tolist() == [True] * 4 + [False] * 3


def test_batches_are_the_same_for_a_seed(packer: Packer) -> None:
    size = _few_rows("small", 2)
    first, again = (
        packer.batch(size, _drawer(4), stage_at(0.5), Glyphs(small_vocabulary())) for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(1)
    update = train.orthogonalise(torch.randn(2, 24, 48)).float()
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_a_camera_without_tilt_leaves_the_picture() -> None:
    pixels = torch.rand(1, 3, 64, 96)
    seen = train._through_camera(pixels, torch.eye(3)[None], torch.zeros(1, 3))
    torch.testing.assert_close(seen, pixels, rtol=1e-4, atol=1e-5)


def test_a_short_training_on_the_cpu_improves_the_loss(packer: Packer, tmp_path: Path) -> None:
    """Forty steps of a very small model, with a save and a fresh start in the middle."""
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 192}
    config = _config(packer, text=size, vision={"depth": 2, "hidden_size": 64, "num_heads": 1})
    drawer = _drawer(1)
    glyphs = Glyphs(drawer.vocabulary)
    trainer = train.new_trainer(config, glyphs.count, torch.device("cpu"))
    trainer.start()
    rows, stage = _few_rows("small", 2), stage_at(0.0)
    losses = []
    for step in range(40):
        if step == 20:
            trainer.save(tmp_path / "run.pt")
            trainer = train.new_trainer(config, glyphs.count, torch.device("cpu"))
            trainer.load(tmp_path / "run.pt")
            trainer.start()
        trainer.steps_here += train.WARM_UP_STEPS // 4  # a shorter warm-up than the real one
        batch = packer.batch(rows, drawer, stage, glyphs)
        found = trainer.train_on(batch, rate=1.0, glyph_weight=1.0)
        losses.append(float(found.answer.detach()))
    assert trainer.step == 40
    assert trainer.pictures == 80
    assert sum(losses[-8:]) < 0.75 * sum(losses[:4]) * 2, losses
