"""Turns a training checkpoint into the shipped folder's weights.

    python -m visiongate.mini.export run.pt src/visiongate/mini/weights

Prints the SHA-256 of the weights, which `card.md` quotes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def export(checkpoint: Path, folder: Path) -> str:
    """Writes `model.safetensors` in bfloat16; returns its SHA-256."""
    state = torch.load(checkpoint, map_location="cpu")["network"]
    tensors = {name: state[name].bfloat16().contiguous() for name in sorted(state)}
    target = folder / "model.safetensors"
    save_file(tensors, str(target), metadata={"format": "pt"})
    return hashlib.sha256(target.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.stdout.write(export(Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
