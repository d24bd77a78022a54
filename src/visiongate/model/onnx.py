"""The vision tower in ONNX Runtime: exported once, cached by the weights, run in the same slices.

    begin (torch)  ->  block-0.onnx  ->  block-1.onnx  ->  ...  ->  merger.onnx  ->  features
                                             `-> tap-0.onnx            (DeepStack)

Every block is a graph of its own, so that a large picture still goes through in slices between
other requests. The graphs are float32, with the number of patches left open. The OpenVINO execution
provider computes where it is installed, else ONNX Runtime's own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from visiongate.errors import VisionGateError
from visiongate.model.inputs import VisionFeatures
from visiongate.model.packed_file import folder as cache_folder
from visiongate.model.vision import Encoding, Grid, PatchMerger, VisionBlock, VisionTower
from visiongate.model.weights import identity_of, load_tower

logger = logging.getLogger(__name__)

LAYOUT: Final = 1
"""To be raised whenever what the graphs compute or their names change."""

NEEDED: Final = ("onnxruntime", "onnx", "onnxscript")
"""To export; to run what is exported already the first is enough."""

_PROVIDERS: Final = ("OpenVINOExecutionProvider", "CPUExecutionProvider")


class OnnxUnavailable(VisionGateError):
    """The tower cannot run in ONNX Runtime; the message says what to do."""


class OnnxTower:
    """Encodes pictures as `VisionTower` does, with the same slices, in ONNX Runtime."""

    def __init__(self, tower: VisionTower, graphs: Path, num_threads: int | None = None) -> None:
        import onnxruntime

        self.config = tower.config
        self._tower = tower
        installed = onnxruntime.get_available_providers()
        self.providers = [name for name in _PROVIDERS if name in installed]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def open_graph(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(graphs / f"{name}.onnx"), options, providers=self.providers
            )

        self._blocks = [open_graph(f"block-{i}") for i in range(self.config.depth)]
        taps = range(len(self.config.deepstack_visual_indexes))
        self._taps = [open_graph(f"tap-{i}") for i in taps]
        self._merger = open_graph("merger")
        self.name = f"ONNX Runtime {onnxruntime.__version__} ({self._blocks[0].get_providers()[0]})"

    @property
    def num_stages(self) -> int:
        """Stages from `begin` to `finish`: one for each block."""
        return self.config.depth

    def stage_work(self, stage: int, num_patches: int) -> int:
        """`stage_work` of a block's two halves."""
        return sum(self._tower.stage_work(2 * stage + half, num_patches) for half in (0, 1))

    def begin(self, patches: Tensor, grids: list[Grid]) -> Encoding:
        """As `VisionTower.begin`; one picture."""
        assert len(grids) == 1
        return self._tower.begin(patches, grids)

    def advance(self, encoding: Encoding, num_stages: int) -> None:
        """Takes the stream through the next blocks."""
        last = min(encoding.num_done + num_stages, self.num_stages)
        for index in range(encoding.num_done, last):
            encoding.hidden = _run(
                self._blocks[index], hidden=encoding.hidden, cos=encoding.cos, sin=encoding.sin
            )
            if index in self.config.deepstack_visual_indexes:
                encoding.taps.append(_run(self._taps[len(encoding.taps)], hidden=encoding.hidden))
            encoding.num_done = index + 1

    def finish(self, encoding: Encoding) -> list[VisionFeatures]:
        """The features of the picture; every stage must be done."""
        assert encoding.num_done == self.num_stages
        return [VisionFeatures(_run(self._merger, hidden=encoding.hidden), tuple(encoding.taps))]


def open_tower(tower: VisionTower, path: Path, num_threads: int | None = None) -> OnnxTower:
    """The tower of a checkpoint in ONNX Runtime; the first start exports it.

    `tower` gives the embedding of patches and positions. Raises OnnxUnavailable.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise OnnxUnavailable("onnxruntime is not installed: pip install 'visiongate[onnx]'")
    graphs = place_of(path)
    try:
        if not graphs.is_dir():
            _export(path, graphs)
        return OnnxTower(tower, graphs, num_threads)
    except OnnxUnavailable:
        raise
    except Exception as error:  # torch's exporter and ONNX Runtime raise what they like
        logger.warning("the vision tower in ONNX Runtime failed", exc_info=error)
        raise OnnxUnavailable(
            f"the vision tower cannot be exported or opened ({type(error).__name__})"
        ) from error


def place_of(path: Path) -> Path:
    """Where a checkpoint's graphs are kept: beside packed weights, named by what made them."""
    home = cache_folder()
    if home is None:
        raise OnnxUnavailable("VISIONGATE_PACKED_WEIGHTS is off, and the graphs need a place")
    made_of = f"{LAYOUT} {torch.__version__} {identity_of(path)}"
    return home / f"onnx-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}"


def _export(path: Path, graphs: Path) -> None:
    """Writes the graphs under another name and renames: a folder is whole or not there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OnnxUnavailable(
            f"{', '.join(missing)} must be installed to export: pip install 'visiongate[onnx]'"
        )
    own = graphs.with_suffix(f".{os.getpid()}.part")
    try:
        own.mkdir(parents=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's exporter speaks about its own code,
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # and about torchvision
            for name, part, inputs in _parts(load_tower(path)):
                rows = torch.export.Dim("rows", min=4)
                program = torch.onnx.export(
                    part,
                    tuple(inputs.values()),
                    dynamo=True,
                    verbose=False,
                    input_names=list(inputs),
                    output_names=["out"],
                    dynamic_shapes=tuple({0: 4 * rows} for _ in inputs),
                )
                assert program is not None
                program.save(own / f"{name}.onnx")
        own.rename(graphs)
    except OSError as error:
        if not graphs.is_dir():  # else another worker was first
            raise OnnxUnavailable(f"{graphs.parent} cannot be written") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _parts(tower: VisionTower) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Each graph's name, module and example inputs."""
    config, rows = tower.config, 64
    hidden = torch.zeros(rows, config.hidden_size)
    angles = torch.zeros(rows, config.head_dim)
    for index, block in enumerate(tower.blocks.each()):
        yield f"block-{index}", _Block(block), {"hidden": hidden, "cos": angles, "sin": angles + 1}
    for index, merger in enumerate(tower.deepstack_merger_list.each()):
        yield f"tap-{index}", _Merger(merger), {"hidden": hidden}
    yield "merger", _Merger(tower.merger), {"hidden": hidden}


class _Block(nn.Module):
    """A block over one picture."""

    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block
        self.eval()

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.block(hidden, cos, sin, (hidden.shape[0],))


class _Merger(nn.Module):
    """A merger under the blocks' input name."""

    def __init__(self, merger: PatchMerger) -> None:
        super().__init__()
        self.merger = merger
        self.eval()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.merger(hidden)


def _run(session: Any, **inputs: Tensor) -> Tensor:
    """A graph's output; arrays are shared, not copied."""
    feeds = {name: tensor.float().contiguous().numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(session.run(None, feeds)[0])
