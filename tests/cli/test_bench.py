"""The speed measurement: through the real engine on the CPU, a card's path with its figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import ROOT, command
from visiongate import kernels
from visiongate.cli import bench
from visiongate.cli.bench import Figure, Report, figures_of, measured_worker, notes_of
from visiongate.cli.checks.speed import Speeds, Streams, jpeg, measure
from visiongate.engine import limits as least
from visiongate.engine.budget import published
from visiongate.engine.engine import Engine
from visiongate.engine.limits import Limits
from visiongate.engine.types import EngineSettings, ModelInfo, WorkerSettings
from visiongate.gateway.intake import Intake
from visiongate.gateway.settings import load
from visiongate.model.config import ModelConfig

WEIGHTS = ROOT / "src/visiongate/mini/weights"
INFO = ModelInfo("mini", str(WEIGHTS), "r", 1, "float32", "cpu", "avx512", 4096, 1)
SMALL = ("--pictures", "2", "--tokens", "6", "--streams", "2")


def test_the_embedded_model_is_measured_beside_the_machine(tmp_path: Path) -> None:
    found = json.loads(command(tmp_path, "bench", "--json", *SMALL))
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert list(figures) == [
        "start",
        "first token, new picture",
        "first token, known picture",
        "decode, 1 answer",
        "decode, 2 answers",
        "read from memory, 1 answer",
        "peak memory, process",
    ]
    assert all(figure["value"] > 0 for figure in figures.values())
    known, new = (figures[f"first token, {word} picture"]["value"] for word in ("known", "new"))
    assert known < new
    alone = figures["decode, 1 answer"]
    assert alone["least"] <= alone["value"] <= alone["most"]
    if found["limits"] is None:
        assert alone["limit"] is None
    else:
        assert alone["share"] == pytest.approx(alone["value"] / alone["limit"])
        assert found["limits"]["bytes_per_second"] > 1e8
    assert found["model"]["model_id"] == "visiongate-mini"
    assert "path" not in found["model"]  # a report is sent around
    assert str(ROOT) not in json.dumps(found)


def test_the_table_has_value_limit_and_share(tmp_path: Path) -> None:
    text = command(tmp_path, "bench", *SMALL, "--precision", "int8")
    assert "visiongate-mini" in text
    assert "int8 on cpu" in text
    line = next(line for line in text.splitlines() if line.startswith("decode, 1 answer"))
    assert "tok/s" in line
    if kernels.backend() != "torch":
        assert line.endswith("%")
        assert "GB/s; products" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "cpu"], "visiongate pull Qwen/Qwen3-VL-2B-Instruct"),
        (["--set", "upstream=http://127.0.0.1:9"], "upstream is set"),
        (["--device", "cuda"], "no NVIDIA GPU is visible"),
        (["--device", "tpu"], "auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = command(tmp_path, "bench", *arguments, status=2)
    assert words in text
    assert "Traceback" not in text


def test_known_pictures_skip_the_tower_and_streams_run_together() -> None:
    worker = measured_worker(WorkerSettings(str(WEIGHTS), "mini", EngineSettings(num_threads=1)))
    assert not worker.engine.drafts
    assert not worker.fall_back_to_cpu
    engine = Engine.from_pretrained(WEIGHTS, worker.engine)
    intake = Intake.from_model(INFO, load({}, environ={}))
    told: list[str] = []
    found = measure(
        engine, intake, num_pictures=2, num_tokens=4, num_streams=3, progress=told.append
    )
    stats = engine.stats()
    assert stats.feature_misses == 3  # two and the warm-up: no other request saw the tower
    assert 1000 < found.num_patches < 1024 * 768 // 256  # the embedded model takes smaller ones
    assert found.num_patches // 4 < found.num_tokens < found.num_patches // 4 + 64
    assert len(found.new_seconds) == len(found.known_seconds) == 2
    assert found.together is not None
    assert len(found.together.contexts) == 3
    assert min(found.together.contexts) > found.num_patches // 4
    assert not engine.has_work
    assert stats.num_running == 0
    assert told[0].startswith("new pictures, 1 of 2")


def test_pictures_differ_and_repeat() -> None:
    assert jpeg(1) != jpeg(2)
    assert jpeg(1) == jpeg(1)


# ---- a card, with figures of a real one: 3.0 TB/s and 700 TFLOP/s

CARD = Limits(3.0e12, {"float32": 50e12, "bfloat16": 700e12})
CARD_INFO = dataclasses.replace(INFO, precision="bfloat16", device="cuda:0", backend="cuda")
SPEEDS = Speeds(
    [0.05, 0.06, 0.04], [0.01], 3072, 800, Streams([200.0], [900]), Streams([700.0], [900] * 4)
)


def config_4b() -> ModelConfig:
    config = published("Qwen/Qwen3-VL-4B-Instruct")
    assert config is not None
    return config


def test_a_cards_limits_follow_the_bytes_of_its_precision() -> None:
    """8.0 GB of text weights at 3 TB/s: 2.7 ms a step; in float32 twice that."""
    config = config_4b()
    figures = {f.name: f for f in figures_of(SPEEDS, config, CARD_INFO, CARD)}
    alone = figures["decode, 1 answer"]
    assert alone.limit
    assert alone.limit == pytest.approx(365, rel=0.02)
    assert alone.share == pytest.approx(200 / alone.limit)
    assert figures["read from memory, 1 answer"].share == pytest.approx(alone.share)
    four = figures["decode, 4 answers"].limit
    assert four is not None
    assert 3.5 < four / alone.limit < 4
    first = figures["first token, new picture"]
    assert first.value == 50
    assert first.share == pytest.approx((first.limit or 0) / 50)
    wide = dataclasses.replace(CARD_INFO, precision="float32")
    slower = {f.name: f for f in figures_of(SPEEDS, config, wide, CARD)}["decode, 1 answer"]
    assert slower.limit
    assert alone.limit / slower.limit == pytest.approx(2, rel=0.01)


def test_many_answers_are_limited_by_products_not_by_memory() -> None:
    seconds = [
        least.decode_seconds(config_4b(), CARD, "bfloat16", [100] * num, device="cuda:0")
        for num in (1, 2000)
    ]
    assert seconds[1] > 5 * seconds[0]


def test_the_report_of_a_card_says_so() -> None:
    figures = tuple(figures_of(SPEEDS, config_4b(), CARD_INFO, CARD))
    notes = tuple(notes_of(CARD_INFO, config_4b(), SPEEDS, CARD))
    report = Report(CARD_INFO, CARD, (*figures, Figure("peak memory, card", "GB", (9.1,))), notes)
    assert "this card reads 3,000.0 GB/s" in report.table()
    assert "cache of" not in report.table()
    assert json.loads(report.to_json())["figures"][-1]["value"] == 9.1


def test_a_card_is_probed_by_its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card here: Triton's interpreter reads and torch multiplies, on the CPU."""
    pytest.importorskip("triton")
    import torch

    from visiongate.kernels.cuda import probe

    if torch.cuda.is_available():
        pytest.skip("this machine has a card: the device itself is measured in the CUDA tests")
    seen: list[tuple[str, Any]] = []
    read, product = probe.read_rate, probe.product_rate

    def read_small(device: str, **_: Any) -> float:
        seen.append(("read", device))
        return read("cpu", num_bytes=1 << 17, repeats=1)

    def product_small(dtype: torch.dtype, device: str, **_: Any) -> float:
        seen.append((str(dtype), device))
        return product(dtype, "cpu", side=32, repeats=1)

    monkeypatch.setattr(probe, "read_rate", read_small)
    monkeypatch.setattr(probe, "product_rate", product_small)
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    found = bench.device_limits("cuda:0")
    assert found is not None
    assert set(found.operations_per_second) == {"float32", "bfloat16"}
    assert {device for _, device in seen} == {"cuda:0"}
    assert emptied  # what the engine held is free before the probe asks for room


def test_a_cards_peak_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 9_100_000_000)
    assert bench.card_memory("cpu") == []
    assert bench.card_memory("cuda:0")[0].value == pytest.approx(9.1)
