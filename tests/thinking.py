"""A Thinking model for tests, made of the embedded one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from visiongate.gateway.reasoning import CLOSE

WEIGHTS = Path(__file__).parents[1] / "src/visiongate/mini/weights"


def make_thinking_model(folder: Path) -> Path:
    """The embedded model as a Thinking one: its receipt's total reads "$20</think>47".

    The template opens `<think>` as published Thinking templates do. The token of the full stop is
    called `</think>` instead; the opening is taken out again before the tokenizer, because this
    model has never seen one.
    """
    shutil.copytree(WEIGHTS, folder)
    template = folder / "chat_template.jinja"
    opening = "<|im_start|>assistant\n"
    text = template.read_text(encoding="utf-8")
    assert text.count(opening + "{% endif %}") == 1
    text = text.replace(opening + "{% endif %}", opening + "<think>\n{% endif %}")
    template.write_text(text, encoding="utf-8")
    file = folder / "tokenizer.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found["added_tokens"] = [
        token for token in found["added_tokens"] if token["content"] not in ("<think>", CLOSE)
    ]
    vocab = found["model"]["vocab"]
    for tag in ("<think>", CLOSE):
        vocab[f"unused {tag}"] = vocab.pop(tag, None)
    found["model"]["vocab"] = {k: v for k, v in vocab.items() if v is not None}
    found["model"]["vocab"][CLOSE] = found["model"]["vocab"].pop(".")
    found["model"]["merges"] = [pair for pair in found["model"]["merges"] if "." not in pair]
    away = {"type": "Replace", "pattern": {"String": "<think>\n"}, "content": ""}
    found["normalizer"] = {"type": "Sequence", "normalizers": [found["normalizer"], away]}
    file.write_text(json.dumps(found), encoding="utf-8")
    return folder
