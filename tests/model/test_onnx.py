"""The vision tower in ONNX Runtime: the same features, the same words, and a way back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.pictures import draw_receipt
from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import EngineSettings, Image, Request, SamplingParams
from visiongate.engine.worker import _use_onnx
from visiongate.model.config import ModelConfig
from visiongate.model.onnx import OnnxTower, OnnxUnavailable, open_tower, place_of
from visiongate.model.vision import to_patches
from visiongate.model.weights import load_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"
SIZES = ((256, 384), (384, 512), (96, 320))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", str(cache))


def receipts() -> list[Image]:
    return [decode(draw_receipt(seed, *size).png) for seed, size in enumerate(SIZES)]


def test_features_equal_ours_at_every_size_whole_and_in_slices() -> None:
    """1e-4 relative: float32 sums in another order, over the depth of the tower."""
    tower = load_model(WEIGHTS).visual
    onnx = open_tower(tower, WEIGHTS, num_threads=2)
    config = ModelConfig.from_pretrained(WEIGHTS).vision
    for image in receipts():
        patches = to_patches(torch.from_numpy(image.pixels.copy()), config)
        grid = image.grid_thw[1:]
        with torch.inference_mode():
            ours = tower(patches, [grid])[0]
            encoding = onnx.begin(patches, [grid])
            while encoding.num_done < onnx.num_stages:
                onnx.advance(encoding, 1)
            theirs = onnx.finish(encoding)[0]
        for mine, other in zip(
            (ours.embeddings, *ours.deepstack), (theirs.embeddings, *theirs.deepstack), strict=True
        ):
            assert (mine - other).norm() <= 1e-4 * mine.norm()


def answers(engine: Engine) -> list[str]:
    builder = PromptBuilder.from_pretrained(WEIGHTS)
    for index, image in enumerate(receipts()):
        prompt = builder.build([Message("user", (image, "Read all the text."))])
        engine.add(Request(str(index), prompt, SamplingParams(max_tokens=48)))
    texts = {str(index): "" for index in range(len(SIZES))}
    while engine.has_work:
        for event in engine.step():
            assert event.error is None
            texts[event.request_id] += event.text
    return list(texts.values())


def test_the_words_are_the_same_and_the_backend_says_what_computes() -> None:
    settings = EngineSettings(cache_tokens=4096, num_threads=2)
    ours = answers(Engine.from_pretrained(WEIGHTS, settings))
    engine = Engine.from_pretrained(WEIGHTS, settings)
    said = _use_onnx(engine, WEIGHTS)
    assert said.startswith(", pictures in ONNX Runtime")
    assert "ExecutionProvider" in said
    assert isinstance(engine.encoder.tower, OnnxTower)
    assert answers(engine) == ours
    assert engine.encoder.patches_encoded


def test_the_second_start_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = load_model(WEIGHTS).visual
    open_tower(tower, WEIGHTS)
    monkeypatch.setattr("visiongate.model.onnx._export", None)
    open_tower(tower, WEIGHTS)


def test_without_the_library_our_kernels_compute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    engine = Engine.from_pretrained(WEIGHTS, EngineSettings(cache_tokens=4096))
    before = engine.encoder.tower
    assert _use_onnx(engine, WEIGHTS) == ""
    assert engine.encoder.tower is before
    assert "USE_ONNX_RUNTIME has no effect: onnxruntime is not installed" in caplog.text


def test_a_failed_export_falls_back_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", str(tmp_path))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an operator is missing")

    monkeypatch.setattr("torch.onnx.export", fail)
    engine = Engine.from_pretrained(WEIGHTS, EngineSettings(cache_tokens=4096))
    assert _use_onnx(engine, WEIGHTS) == ""
    assert "cannot be exported or opened (RuntimeError)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_graph_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", str(tmp_path))
    graphs = place_of(WEIGHTS)
    graphs.mkdir(parents=True)
    (graphs / "block-0.onnx").write_bytes(b"cut")
    with pytest.raises(OnnxUnavailable, match="cannot be exported or opened"):
        open_tower(load_model(WEIGHTS).visual, WEIGHTS)


def test_without_a_place_for_the_graphs_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", "off")
    with pytest.raises(OnnxUnavailable, match="VISIONGATE_PACKED_WEIGHTS is off"):
        open_tower(load_model(WEIGHTS).visual, WEIGHTS)
