"""At every precision, and with every level of kernels, the promises are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.engine.conftest import WEIGHTS, Desk
from tests.pictures import draw_receipt
from visiongate import kernels
from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import PromptBuilder
from visiongate.engine.tokenizer import Tokenizer
from visiongate.engine.types import EngineSettings, WorkerSettings
from visiongate.engine.worker import _choose_device
from visiongate.model.weights import load_model

READ = "Read all the text."


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_lower_precision_reads_and_keeps_the_invariants(
    precision: kernels.Precision, tokenizer: Tokenizer, builder: PromptBuilder
) -> None:
    model = load_model(WEIGHTS, precision)
    receipts = [draw_receipt(seed) for seed in range(3)]
    images = [decode(receipt.png) for receipt in receipts]

    def desk(**options: object) -> Desk:
        settings = EngineSettings(precision=precision, cache_tokens=4096, **options)  # type: ignore[arg-type]
        return Desk(Engine(model, tokenizer, settings), builder)

    totals = [desk().ask("What is the total?", image).text for image in images]
    assert totals == [receipt.total for receipt in receipts]
    alone = [desk(drafts=False).ask(READ, image).text for image in images]
    together = desk(max_prefills=2)
    keys = [together.add(READ, image) for image in images]
    together.run()
    assert [together.answers[key].text for key in keys] == alone
    small = desk(max_step_tokens=23, slice_seconds=0.0)
    assert [small.ask(READ, image).text for image in images] == alone
    warm = desk()
    for image in images:
        warm.ask(READ, image)
    assert [warm.ask(READ, image).text for image in images] == alone


@pytest.mark.parametrize("level", ["avx512", "avx2", "scalar", "torch"])
def test_every_level_of_kernels_gives_the_same_words(level: str) -> None:
    """Each in its own process, because a level is chosen once."""
    script = (
        "import json, sys\n"
        "from tests.engine.conftest import WEIGHTS, Desk\n"
        "from tests.pictures import draw_receipt\n"
        "from visiongate import kernels\n"
        "from visiongate.engine.engine import Engine\n"
        "from visiongate.engine.image import decode\n"
        "from visiongate.engine.prompt import PromptBuilder\n"
        "engine = Engine.from_pretrained(WEIGHTS)\n"
        "desk = Desk(engine, PromptBuilder.from_pretrained(WEIGHTS))\n"
        "images = [decode(draw_receipt(seed).png) for seed in (0, 1)]\n"
        "texts = [desk.ask('Read all the text.', image).text for image in images]\n"
        "print(json.dumps([kernels.backend(), texts]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "VISIONGATE_KERNELS": level, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "processor" in done.stderr:
        pytest.skip(f"this processor has no {level}")
    assert done.returncode == 0, done.stderr
    used, texts = json.loads(done.stdout)
    assert used == level
    for seed, text in enumerate(texts):
        receipt = draw_receipt(seed)
        assert receipt.store in text
        assert receipt.lines[0][1] in text


def test_float8_falls_back_to_int8_with_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    wanted = EngineSettings(device="cuda:0", precision="float8")
    settings, reason = _choose_device(WorkerSettings("folder", "model", wanted))
    assert (settings.device, settings.precision) == ("cpu", "int8")
    assert "no NVIDIA GPU" in reason
