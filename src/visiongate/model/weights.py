"""Checkpoint weights: safetensors files, memory-mapped, loaded strictly by name.

A float32 engine whose checkpoint is bfloat16 computes the same numbers from half the memory, so
weights are kept as they lie on disk until a layer packs or widens them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from visiongate import kernels
from visiongate.errors import InvalidCheckpoint
from visiongate.model import packed_file
from visiongate.model.config import ModelConfig, read_json
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.vision import VisionTower


def load_model(
    path: str | Path,
    precision: kernels.Precision = "float32",
    device: torch.device | str = "cpu",
) -> Qwen3VL:
    """A checkpoint, ready to compute at `precision`.

    On the CPU the stream between layers is float32 at every precision; `precision` says how linear
    maps are stored and multiplied. Without native kernels float32 and bfloat16 run through torch.

    Raises InvalidCheckpoint when tensors are missing, left over, or of the wrong shape.
    """
    config = ModelConfig.from_pretrained(path)
    with torch.device("meta"):
        model = Qwen3VL(config)
    assign_weights(model, path, device)
    model.requires_grad_(False).eval()
    model.model.language_model.rotary.to(device)  # computed, not loaded
    if kernels.backend() != "torch" or precision != "float32":
        pack(model, Path(path), precision, device)
    widen_small_parameters(model)
    return model


def load_tower(path: str | Path) -> VisionTower:
    """A checkpoint's vision tower alone, float32, unpacked."""
    with torch.device("meta"):
        model = Qwen3VL(ModelConfig.from_pretrained(path))
    assign_weights(model, path)
    tower = model.visual.requires_grad_(False).eval()
    for parameter in tower.parameters():
        parameter.data = parameter.data.float()
    return tower


def pack(
    model: Qwen3VL, path: Path, precision: kernels.Precision, device: torch.device | str
) -> None:
    """Packs the linear maps, or maps the file of a former start; the first start writes it."""
    file = None
    if torch.device(device).type == "cpu":
        file = packed_file.place_of(model, precision, identity_of(path))
    if file is not None and packed_file.read(model, file, precision):
        return
    model.pack(precision)
    if file is not None and packed_file.write(model, file):
        packed_file.read(model, file, precision)  # its memory is shared, and dropped when short


def assign_weights(model: nn.Module, path: str | Path, device: torch.device | str = "cpu") -> None:
    """Puts the checkpoint's tensors into the module: every name once, every shape equal."""
    folder = Path(path)
    expected = dict(model.state_dict())
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with _opened(file, device) as handle:
            for name in handle.keys():  # noqa: SIM118  # not a mapping
                if name == "lm_head.weight" and name not in expected:
                    continue  # some exporters store the tied head a second time
                if name not in expected:
                    raise InvalidCheckpoint(f"{file.name} holds {name}, which this model has not")
                tensor = handle.get_tensor(name)
                if tensor.shape != expected[name].shape:
                    raise InvalidCheckpoint(
                        f"{name} is {tuple(tensor.shape)} in {file.name}; "
                        f"config.json asks for {tuple(expected[name].shape)}"
                    )
                tensors[name] = tensor
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise InvalidCheckpoint(
            f"{folder.name} lacks {len(missing)} tensors, the first is {missing[0]}; "
            "the download may be incomplete"
        )
    model.load_state_dict(tensors, assign=True)


def _opened(file: Path, device: torch.device | str) -> Any:
    """A safetensors file, mapped; raises InvalidCheckpoint when it is cut or not one."""
    try:
        return safe_open(file, framework="pt", device=str(device))
    except SafetensorError as error:
        raise damaged(file) from error


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins.

    Raises InvalidCheckpoint when the file is not one, or shorter than its header says.
    """
    try:
        with file.open("rb") as handle:
            (num_bytes,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(num_bytes))
        last = max(entry["data_offsets"][1] for entry in header.values() if "shape" in entry)
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise damaged(file) from error
    if file.stat().st_size < 8 + num_bytes + last:
        raise damaged(file)
    return header, 8 + num_bytes


def damaged(file: Path) -> InvalidCheckpoint:
    """What a weight file that cannot be read to its end is answered with."""
    return InvalidCheckpoint(
        f"{file.name} is damaged or incomplete: fetch it again with `visiongate pull`"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or the single one.

    Raises InvalidCheckpoint when there are none or one is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise InvalidCheckpoint(
                f"{folder.name} lacks {', '.join(absent)}, named by its index; "
                "the download may be incomplete"
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise InvalidCheckpoint(f"{folder} has no model.safetensors and no index of shards")
    return [single]


def revision_of(folder: Path) -> str:
    """A short name for the weights' layout and values: a digest of headers, sizes and samples."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        _, begin = read_header(file)
        size = file.stat().st_size
        with file.open("rb") as handle:
            handle.seek(8)
            digest.update(handle.read(begin - 8))
            digest.update(str(size).encode())
            for part in range(16):  # 16 samples: a hash of gigabytes would delay the start
                handle.seek(begin + (size - begin) * part // 16)
                digest.update(handle.read(4096))
    return digest.hexdigest()[:16]


def identity_of(folder: Path) -> str:
    """Which weights these are, for files made from them: `revision_of`, settings, sizes, times."""
    found = [revision_of(folder), (folder / "config.json").read_text(encoding="utf-8")]
    for file in weight_files(folder):
        status = file.stat()
        found.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(found)


def num_weight_bytes(folder: Path) -> int:
    """Bytes of all weight files."""
    return sum(file.stat().st_size for file in weight_files(folder))


def num_parameters(folder: Path) -> int:
    """Parameters, counted from the headers without reading a weight."""
    total = 0
    for file in weight_files(folder):
        header, _ = read_header(file)
        for name, entry in header.items():
            if name != "__metadata__":
                total += int(torch.Size(entry["shape"]).numel())
    return total


def widen_small_parameters(model: Qwen3VL) -> None:
    """Makes float32 of every parameter left, the embedding excepted once the head is packed.

    Norms and biases are a thousandth of the weights; without native kernels it is all of them.
    """
    keep = model.model.language_model.embed_tokens.weight if model.packed_head is not None else None
    for parameter in model.parameters():
        if parameter is not keep:
            parameter.data = parameter.data.float()
