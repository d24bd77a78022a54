"""Checkpoint weights to a GPU: parallel reads into pinned memory, copies while others are read.

    file --preadv, several threads--> pinned buffers --copy engine--> tensors where they are used

No tensor is held twice: a part of a fused matrix is read straight into its rows. Rows of a matrix
in 8 bits are quantised on the device as they arrive, some megabytes at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from visiongate.errors import InvalidCheckpoint
from visiongate.kernels.cuda.weight8 import Matrix8, Storage
from visiongate.model.config import ModelConfig
from visiongate.model.cuda import CudaQwen3VL
from visiongate.model.weights import damaged, read_header, weight_files

PIECE_BYTES: Final = 32 * 1024 * 1024
QUANTISED_PIECE_BYTES: Final = 8 * 1024 * 1024
"""Every thread holds some copies of its piece on the device until the piece is in 8 bits."""

NUM_THREADS: Final = 8

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes [offset, offset + num_bytes) of a file, for elements [first, ...) of a tensor.

    A matrix in 8 bits gets whole rows.
    """

    file: Path
    offset: int
    num_bytes: int
    dtype: torch.dtype
    target: Tensor | Matrix8
    first: int


def load_on_device(
    path: str | Path, dtype: torch.dtype, device: torch.device, storage: Storage | None = None
) -> CudaQwen3VL:
    """A checkpoint on `device`, its numbers turned into `dtype`, or the decoder's into `storage`.

    Raises InvalidCheckpoint when tensors are missing, left over, cut or of the wrong shape.
    """
    folder = Path(path)
    model = CudaQwen3VL(ModelConfig.from_pretrained(folder), dtype, device, storage)
    copy_weights(folder, model.named(), device)
    return model


def copy_weights(
    folder: Path, targets: Mapping[str, Tensor | Matrix8], device: torch.device
) -> None:
    """Fills every target, on `device`, from the tensor of its name; raises InvalidCheckpoint."""
    pieces = list(_pieces(folder, targets))
    readers = threading.local()

    def copy(piece: _Piece) -> None:
        if not hasattr(readers, "own"):
            readers.own = _Reader(device)
        readers.own.copy(piece)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(copy, pieces):
            pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what quantising has used


def _pieces(folder: Path, targets: Mapping[str, Tensor | Matrix8]) -> Iterator[_Piece]:
    """Where every part of every tensor lies; raises InvalidCheckpoint before anything is read."""
    missing = set(targets)
    for file in weight_files(folder):
        header, data_start = read_header(file)
        for name, entry in header.items():
            if name == "__metadata__" or (name == "lm_head.weight" and name not in targets):
                continue
            if name not in targets:
                raise InvalidCheckpoint(f"{file.name} holds {name}, which this model has not")
            target, dtype = targets[name], _DTYPES.get(entry["dtype"])
            if dtype is None or tuple(entry["shape"]) != tuple(target.shape):
                raise InvalidCheckpoint(
                    f"{name} is {entry['dtype']} {tuple(entry['shape'])} in {file.name}; "
                    f"config.json asks for {tuple(target.shape)}"
                )
            missing.discard(name)
            begin, end = entry["data_offsets"]
            step = PIECE_BYTES
            if isinstance(target, Matrix8):
                row_bytes = target.num_columns * dtype.itemsize
                step = max(1, QUANTISED_PIECE_BYTES // row_bytes) * row_bytes
            for offset in range(begin, end, step):
                yield _Piece(
                    file,
                    data_start + offset,
                    min(step, end - offset),
                    dtype,
                    target,
                    (offset - begin) // dtype.itemsize,
                )
    if missing:
        raise InvalidCheckpoint(
            f"{folder.name} lacks {len(missing)} tensors, the first is {min(missing)}; "
            "the download may be incomplete"
        )


class _Reader:
    """One thread's pinned buffers and stream; a buffer is reused once its copy is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.buffers = [
            torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=self.is_cuda) for _ in range(2)
        ]
        self.stream = torch.cuda.Stream(device) if self.is_cuda else None
        self.events: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def copy(self, piece: _Piece) -> None:
        """Reads a piece and sends it on its way; returns before the copy is done."""
        self.turn = 1 - self.turn
        event = self.events[self.turn]
        if event is not None:
            event.synchronize()
        buffer = self.buffers[self.turn][: piece.num_bytes]
        _read(piece.file, piece.offset, buffer)
        values = buffer.view(piece.dtype)
        if self.stream is None:
            self._put(values, piece)
            return
        with torch.cuda.stream(self.stream):
            self._put(values, piece)
            self.events[self.turn] = self.stream.record_event()

    def _put(self, values: Tensor, piece: _Piece) -> None:
        if isinstance(piece.target, Matrix8):
            rows = values.to(self.device, non_blocking=True).view(-1, piece.target.num_columns)
            first = piece.first // piece.target.num_columns
            piece.target[first : first + len(rows)].store(rows)
        else:
            target = piece.target.view(-1)[piece.first : piece.first + len(values)]
            target.copy_(values, non_blocking=True)


def _read(file: Path, offset: int, buffer: Tensor) -> None:
    view = memoryview(buffer.numpy().data)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise damaged(file)
            done += count
    finally:
        os.close(descriptor)
