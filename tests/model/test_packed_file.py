"""Packed weights are kept in a file, used in place, and never taken for another model's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import WEIGHTS
from visiongate import kernels
from visiongate.kernels import native
from visiongate.model import packed_file
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.weights import load_model

pytestmark = pytest.mark.skipif(kernels.backend() == "torch", reason="no kernel library is built")


class Disk(NamedTuple):
    """What shutil.disk_usage tells."""

    total: int
    used: int
    free: int


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files, which are kept for small models, too."""
    folder = tmp_path / "packed"
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", str(folder))
    monkeypatch.setattr(packed_file, "LEAST_BYTES", 0)
    monkeypatch.setattr(packed_file, "SPARE_BYTES", 0)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded weights."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(WEIGHTS, folder)
    return folder


def files(home: Path) -> list[str]:
    return sorted(file.name for file in home.iterdir())


def parts(model: Qwen3VL) -> Iterator[tuple[str, torch.Tensor]]:
    for name, packed in packed_file.packed_maps(model):
        yield name, packed.weight
        if packed.bias is not None:
            yield f"{name} bias", packed.bias
        if packed.scale is not None:
            yield f"{name} scale", packed.scale


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_second_start_maps_what_the_first_one_packed(
    precision: kernels.Precision, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setenv("VISIONGATE_PACKED_WEIGHTS", "off")
        expected = load_model(WEIGHTS, precision)
    load_model(WEIGHTS, precision)
    monkeypatch.setattr(kernels, "pack_linear", None)  # from here on packing would fail
    found = load_model(WEIGHTS, precision)
    assert len(files(home)) == 1
    for (name, theirs), (_, mine) in zip(parts(expected), parts(found), strict=True):
        assert torch.equal(theirs, mine), name
    assert dict(found.named_parameters()).keys() == dict(expected.named_parameters()).keys()
    for model in (expected, found):
        products = {block.attn.products for block in model.visual.blocks.each()}
        assert products == {getattr(torch, precision)}


def test_float32_and_bfloat16_share_one_file(home: Path) -> None:
    for precision in ("float32", "bfloat16"):
        model = load_model(WEIGHTS, precision)
        assert {p.precision for _, p in packed_file.packed_maps(model)} == {precision}
    assert len(files(home)) == 1


@pytest.mark.parametrize("level", ["avx512", "avx2", "scalar"])
def test_every_level_writes_the_same_file(
    level: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a file has no level in it."""
    load_model(WEIGHTS, "int8")
    (name,) = files(home)
    before = kernels.backend()
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", str(home / level))
    try:
        native.use_backend(level)
        load_model(WEIGHTS, "int8")
    except ValueError as missing:
        pytest.skip(str(missing))
    finally:
        native.use_backend(before)
    assert (home / level / name).read_bytes() == (home / name).read_bytes()


def test_other_weights_get_another_file(home: Path, checkpoint: Path) -> None:
    """One number of one tensor differs; a revision made of samples would not see it."""
    load_model(checkpoint)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = "model.visual.blocks.0.mlp.linear_fc1.weight"
    tensors[name][3, 5] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    changed = load_model(checkpoint)
    assert len(files(home)) == 2
    packed = changed.visual.blocks.at(0).mlp.linear_fc1.packed
    assert packed is not None
    direct = kernels.pack_linear(tensors[name], None, "float32")
    assert torch.equal(packed.weight, direct.weight)


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "foreign"])
def test_a_damaged_file_is_written_anew(damage: str, home: Path) -> None:
    load_model(WEIGHTS)
    (name,) = files(home)
    file = home / name
    good = file.read_bytes()
    if damage == "foreign":
        length = int.from_bytes(good[:8], "little")
        header = json.loads(good[8 : 8 + length])
        header["maps"].popitem()
        file.write_bytes(good[:8] + json.dumps(header).encode().ljust(length) + good[8 + length :])
    else:
        file.write_bytes(
            {"cut": good[:-1], "empty": b"", "header": good[:8] + b"x" + good[9:]}[damage]
        )
    load_model(WEIGHTS)
    assert file.read_bytes() == good
    assert files(home) == [name]


def test_nothing_is_kept_where_the_disk_is_short_or_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1, 1, 1000))
    load_model(WEIGHTS)
    assert files(home) == []
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", "/proc/packed")
    load_model(WEIGHTS)
    monkeypatch.setenv("VISIONGATE_PACKED_WEIGHTS", "off")
    load_model(WEIGHTS)
    assert files(home) == []


def test_unused_files_and_unfinished_parts_go(home: Path) -> None:
    home.mkdir()
    for name in ("bfloat16-old.packed", "bfloat16-new.packed", "int8-1.7.part"):
        (home / name).touch()
    for name in ("bfloat16-old.packed", "int8-1.7.part"):
        os.utime(home / name, (0, 0))
    load_model(WEIGHTS)
    left = files(home)
    assert len(left) == 2
    assert "bfloat16-new.packed" in left
