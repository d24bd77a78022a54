"""Packed weights kept in a file: only a model's first start packs, later ones map what it wrote.

    8 bytes: length of the header | header, JSON | panels, scales and biases, each at 64 bytes

The panels are used where they lie in the mapped file, so that a start reads nothing and two
processes share the memory. A file belongs to one state of one checkpoint: its name is a digest of
what the weights are, how they are stored, and the layout. It appears whole or not at all.
They lie in `VISIONGATE_PACKED_WEIGHTS` (`off` keeps none), else in `HF_HOME`, else in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from visiongate import kernels
from visiongate.kernels import PackedLinear
from visiongate.kernels.packed import Storage
from visiongate.model.layers import Linear
from visiongate.model.qwen3vl import Qwen3VL

logger = logging.getLogger(__name__)

LAYOUT = 1
"""To be raised whenever csrc/layout.h, or what a file holds, changes."""

LEAST_BYTES = 256 << 20
"""Smaller models are packed in a blink."""

SPARE_BYTES = 1 << 30
"""Disk space that must be left after a file was written."""

UNUSED_SECONDS = 30 * 24 * 3600
"""After this long without use a file is deleted when another one is written."""

_ALIGNMENT = 64
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which the mmap module does not name
_POPULATE_BYTES = 64 << 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One packed map: its shape, and where its parts begin, counted from the header's end."""

    in_features: int
    out_features: int
    storage: Storage
    weight: int
    num_weights: int
    scale: int | None
    num_scales: int
    bias: int | None


def folder() -> Path | None:
    """Where the files are kept; None when none are wanted."""
    named = os.environ.get("VISIONGATE_PACKED_WEIGHTS", "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):  # where the checkpoints may lie, these may
        return Path(home).expanduser() / "visiongate-packed"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "visiongate" / "packed"


def place_of(model: Qwen3VL, precision: kernels.Precision, identity: str) -> Path | None:
    """The file of a model whose parameters are still those of the checkpoint; None without one.

    `identity` says which weights these are. float32 and bfloat16 share the file of a checkpoint
    that is bfloat16.
    """
    home = folder()
    num_bytes = sum(p.nbytes for p in model.parameters())
    if home is None or kernels.backend() == "torch" or num_bytes < LEAST_BYTES:
        return None
    is_bfloat16 = all(p.dtype == torch.bfloat16 for p in model.parameters())
    storage = "bfloat16" if precision == "float32" and is_bfloat16 else precision
    digest = hashlib.sha256(f"{LAYOUT} {storage} {is_bfloat16} {identity}".encode()).hexdigest()
    return home / f"{storage}-{digest[:24]}.packed"


def write(model: Qwen3VL, file: Path) -> bool:
    """Keeps the packed maps of a model; whether that was possible. Never raises for the disk.

    Written under another name and renamed, so that readers, and others who write the same, see
    whole files only.
    """
    maps = dict(packed_maps(model))
    header, entries = _plan(maps)
    num_bytes = len(header) + sum(packed.num_bytes for packed in maps.values())
    own = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _forget_unused(file.parent)
        free = shutil.disk_usage(file.parent).free
        if free < num_bytes + SPARE_BYTES:
            logger.info(
                "packed weights are not kept: %s has %.1f GB free, %.1f GB are needed",
                *(file.parent, free / 1e9, (num_bytes + SPARE_BYTES) / 1e9),
            )
            return False
        with own.open("wb") as stream:
            stream.write(header)
            for name, packed in maps.items():
                entry = entries[name]
                _write_at(stream, len(header) + entry.weight, packed.weight)
                if entry.scale is not None:
                    _write_at(stream, len(header) + entry.scale, packed.scale)
                if entry.bias is not None:
                    _write_at(stream, len(header) + entry.bias, packed.bias)
            stream.flush()
            os.fsync(stream.fileno())
        own.replace(file)
    except OSError as error:
        logger.info("packed weights are not kept: %s", error)
        with contextlib.suppress(OSError):
            own.unlink()
        return False
    return True


def read(model: Qwen3VL, file: Path, precision: kernels.Precision) -> bool:
    """Gives a model the packed maps of a file, used in place; False when there is no such file.

    The parameters of all linear maps are freed. A file that does not fit the model is ignored.
    """
    try:
        with file.open("rb") as stream:
            entries, begin, end = _read_header(stream)
            if os.fstat(stream.fileno()).st_size < end or not _fits(model, entries):
                logger.warning("%s does not fit this model and is written anew", file.name)
                return False
            data = mmap.mmap(
                *(stream.fileno(), 0),
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,  # torch wants a writable buffer
            )
        os.utime(file)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False
    _populate(data)
    for name, entry in entries.items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, _packed(data, begin, entry, precision))
    for module in model.modules():
        if isinstance(module, Linear):
            module._parameters["weight"] = None
            module._parameters["bias"] = None
    model.use_products(precision)
    return True


def packed_maps(model: Qwen3VL) -> Iterator[tuple[str, PackedLinear]]:
    """Every packed map of a model with the dotted name of the attribute that holds it."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, PackedLinear):
                yield (f"{path}.{attribute}" if path else attribute), value


def _plan(maps: dict[str, PackedLinear]) -> tuple[bytes, dict[str, Entry]]:
    """The header's bytes, and where everything goes."""
    entries: dict[str, Entry] = {}
    place = 0

    def take(part: Tensor | None) -> int | None:
        nonlocal place
        if part is None:
            return None
        begin = -(-place // _ALIGNMENT) * _ALIGNMENT
        place = begin + part.nbytes
        return begin

    for name, packed in maps.items():
        weight = take(packed.weight)
        assert weight is not None
        entries[name] = Entry(
            packed.in_features,
            packed.out_features,
            packed.storage,
            weight,
            packed.weight.numel(),
            take(packed.scale),
            0 if packed.scale is None else packed.scale.numel(),
            take(packed.bias),
        )
    text = json.dumps({"end": place, "maps": {k: asdict(v) for k, v in entries.items()}}).encode()
    padding = -(8 + len(text)) % mmap.PAGESIZE
    return struct.pack("<Q", len(text) + padding) + text + b" " * padding, entries


def _read_header(stream: BinaryIO) -> tuple[dict[str, Entry], int, int]:
    """The entries, where they count from, and the least size of a whole file."""
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > 64 << 20:
        raise ValueError("not a header")
    header: dict[str, Any] = json.loads(stream.read(length))
    entries = {name: Entry(**fields) for name, fields in header["maps"].items()}
    return entries, 8 + length, 8 + length + int(header["end"])


def _fits(model: Qwen3VL, entries: dict[str, Entry]) -> bool:
    """Whether the file has a place in the model for each of its maps, and all of its weights."""
    held = sum(entry.in_features * entry.out_features for entry in entries.values())
    wanted = sum(packed.in_features * packed.out_features for _, packed in packed_maps(model))
    if not wanted:
        wanted = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
        if model.config.tie_word_embeddings:
            wanted += model.model.language_model.embed_tokens.weight.numel()
    paths = {path for path, _ in model.named_modules()}
    return held == wanted and all(name.rpartition(".")[0] in paths for name in entries)


def _packed(
    data: mmap.mmap, begin: int, entry: Entry, precision: kernels.Precision
) -> PackedLinear:
    def part(offset: int | None, dtype: torch.dtype, count: int) -> Tensor | None:
        if offset is None:
            return None
        return torch.frombuffer(data, dtype=dtype, count=count, offset=begin + offset)

    weight = part(entry.weight, _DTYPES[entry.storage], entry.num_weights)
    assert weight is not None
    return PackedLinear(
        *(entry.in_features, entry.out_features, precision, entry.storage, True, weight),
        bias=part(entry.bias, torch.float32, entry.out_features),
        scale=part(entry.scale, torch.float32, entry.num_scales),
    )


def _populate(data: mmap.mmap) -> None:
    """Maps all pages now, in large strides: one by one at first touch takes ten times as long."""
    with contextlib.suppress(OSError):  # Linux before 5.14: they come when touched
        for begin in range(0, len(data), _POPULATE_BYTES):
            data.madvise(_POPULATE_READ, begin, min(_POPULATE_BYTES, len(data) - begin))


def _write_at(stream: BinaryIO, place: int, part: Tensor | None) -> None:
    assert part is not None
    stream.seek(place)
    stream.write(part.view(torch.uint8).numpy().data)


def _forget_unused(home: Path) -> None:
    """Deletes files that nobody used for long, and parts that were never finished."""
    now = time.time()
    for old in (*home.glob("*.packed"), *home.glob("*.part")):
        limit = UNUSED_SECONDS if old.suffix == ".packed" else 24 * 3600
        with contextlib.suppress(OSError):
            if now - old.stat().st_mtime > limit:
                old.unlink()
