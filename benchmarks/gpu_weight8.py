"""Products by weights in 8 bits on a GPU, 4B shape: each alone, a chain of layers, a prompt's.

    python -m benchmarks.gpu_weight8 [--storages int8] [--batches 1,8,32,64] [--layers 12]
    python -m benchmarks.gpu_weight8 --sweep qkv,o [--batches 1,64]      # other tiles and slices

Every figure is a CUDA graph over the distinct weights of all layers, so nothing stays in a cache.
The chain is a decode step but for attention, which a copy stands in for. Rates count the bytes of
the weights alone; the share is of the read-only rate measured in the same run. `--dry` runs all of
it in small on the CPU, through Triton's interpreter, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from visiongate.kernels.cuda.stream import Epilogue
    from visiongate.kernels.cuda.weight8 import Linear8, Matrix8, Storage

Figures = list[dict[str, Any]]

PROMPT_TOKENS = 640


class Bench:
    """Weights of some layers in 8 bits, and how long work with them takes."""

    def __init__(self, storage: Storage, num_layers: int, num_runs: int, *, is_dry: bool) -> None:
        from benchmarks.gpu_linear import HEAD, SHAPES, read_rate
        from visiongate.kernels.cuda.weight8 import Linear8

        self.is_dry, self.num_runs = is_dry, num_runs
        self.device = torch.device("cpu" if is_dry else "cuda")
        self.dtype = torch.float32 if is_dry else torch.bfloat16
        self.shapes: dict[str, tuple[int, int, Epilogue]] = {**SHAPES, "head": HEAD}
        if is_dry:
            small = {"qkv": (96, 64), "o": (64, 96), "gate_up": (256, 64), "down": (64, 128)}
            small["head"] = 300, 64
            self.shapes = {n: (*small[n], epilogue) for n, (_, _, epilogue) in self.shapes.items()}
        self.linears: dict[str, list[Linear8]] = {}
        for name, (N, K, epilogue) in self.shapes.items():
            count = 1 if name == "head" else num_layers
            self.linears[name] = [
                Linear8(self.draw(N, K, storage), epilogue, self.dtype) for _ in range(count)
            ]
        self.read_rate = 1.0 if is_dry else read_rate(num_runs)

    def draw(self, N: int, K: int, storage: Storage) -> Matrix8:
        """Normal weights."""
        from visiongate.kernels.cuda.weight8 import Matrix8

        matrix = Matrix8.empty(N, K, storage, self.device)
        for first in range(0, N, 8192):
            part = matrix[first : first + 8192]
            part.store(torch.randn(part.shape, dtype=self.dtype, device=self.device) * 0.02)
        return matrix

    def seconds(self, run: Callable[[], None]) -> tuple[float, float]:
        """Median and spread of a graph of the run."""
        if not self.is_dry:
            from benchmarks.gpu_linear import seconds

            return seconds(run, self.num_runs)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start, 0.0

    def figure(self, run: Callable[[], None], num_bytes: int, **what: Any) -> dict[str, Any]:
        """One figure, printed."""
        median, spread = self.seconds(run)
        rate = num_bytes / median
        found = what | {
            "ms": median * 1e3,
            "tb_s": rate / 1e12,
            "share": rate / self.read_rate,
            "spread": spread / median,
        }
        words = " ".join(
            f"{key} {v:.3f}" if isinstance(v, float) else str(v) for key, v in found.items()
        )
        print(words, flush=True)
        return found

    def alone(self, name: str, B: int, **options: Any) -> tuple[Callable[[], None], int]:
        """One shape over all layers, the head four times; and the bytes of it."""
        linears = self.linears[name] * (4 if name == "head" else 1)
        x = torch.randn(B, self.shapes[name][1], device=self.device).to(self.dtype)
        out = linears[0].empty(B)

        def run() -> None:
            for linear in linears:
                linear(x, out, **options)

        return run, sum(linear.matrix.values.nbytes for linear in linears)

    def chain(self, B: int) -> tuple[Callable[[], None], int]:
        """All layers and the head, with the norms between them; and the bytes of the weights."""
        from visiongate.kernels.cuda import ops, stream

        add_norm = ops.add_norm
        if not self.is_dry:
            add_norm = cast(Any, lambda x, parts, g, eps, y: stream.add_norm(x, parts, g, eps, y))
        C = self.shapes["qkv"][1]
        x = torch.randn(B, C, device=self.device)
        y, scale = torch.empty(B, C, device=self.device).to(self.dtype), torch.ones(C)
        scale = scale.to(self.device, self.dtype)
        names = ("qkv", "o", "gate_up", "down")
        qkv, o, inner, down = (self.linears[name][0].empty(B) for name in names)
        attended = torch.randn(B, self.shapes["o"][1], device=self.device).to(self.dtype)
        logits = self.linears["head"][0].empty(B)

        def run() -> None:
            parts: Tensor | None = None
            for wqkv, wo, wgu, wd in zip(*(self.linears[name] for name in names), strict=True):
                add_norm(x, parts, scale, 1e-6, y)
                wqkv(y, qkv)
                if not self.is_dry:
                    copy_columns(qkv, attended)
                wo(attended, o)
                add_norm(x, o, scale, 1e-6, y)
                wgu(y, inner)
                wd(inner, down)
                parts = down
            add_norm(x, parts, scale, 1e-6, y)
            self.linears["head"][0](y, logits)

        everything = (linear for group in self.linears.values() for linear in group)
        return run, sum(linear.matrix.values.nbytes for linear in everything)

    def prompt(self, name: str) -> Iterator[tuple[str, Callable[[], None], int]]:
        """What one shape costs a chunk of a prompt: widening, and the product after it."""
        linears = self.linears[name]
        N, K, _ = self.shapes[name]
        room = torch.empty(N * K, dtype=self.dtype, device=self.device)
        x = torch.randn(PROMPT_TOKENS, K, device=self.device).to(self.dtype)
        out = torch.empty(PROMPT_TOKENS, N, dtype=self.dtype, device=self.device)
        wide = room.view(N, K)

        def widen() -> None:
            for linear in linears:
                linear.matrix.widen(room)

        def multiply() -> None:
            for _ in linears:
                torch.mm(x, wide.t(), out=out)

        moved = sum(linear.matrix.values.nbytes + room.nbytes for linear in linears)
        yield "widen", widen, moved
        yield "mm", multiply, len(linears) * room.nbytes


def copy_columns(source: Tensor, target: Tensor) -> None:
    """The stand-in for attention."""
    from benchmarks.gpu_linear import copy_columns as copy

    copy(source, target)


def measure(bench: Bench, storage: str, batches: list[int]) -> Figures:
    """Every shape alone and the chain, for each number of tokens; then a prompt's work."""
    figures: Figures = []
    for B in batches:
        for name in (*bench.shapes, "chain"):
            run, num_bytes = bench.chain(B) if name == "chain" else bench.alone(name, B)
            figures.append(bench.figure(run, num_bytes, storage=storage, B=B, what=name))
    for name in ("qkv", "o", "gate_up", "down"):
        for part, run, num_bytes in bench.prompt(name):
            what = f"{name}_{part}"
            figures.append(
                bench.figure(run, num_bytes, storage=storage, B=PROMPT_TOKENS, what=what)
            )
    return figures


def sweep(bench: Bench, storage: str, names: list[str], batches: list[int]) -> Figures:
    """Shapes with other tiles and slices; the chosen ones are marked."""
    from visiongate.kernels.cuda.weight8 import Tile, choose_tile

    figures: Figures = []
    for name in names:
        N, _, epilogue = bench.shapes[name]
        first = bench.linears[name][0]
        usual = first.num_slices
        for B in batches:
            chosen = choose_tile(N, B, epilogue, first._shared_bytes)
            tiles = {Tile(rows, stages) for rows in (64, 128) for stages in (3, 4, 6, 8)} | {chosen}
            for tile in sorted(tiles, key=lambda tile: (tile.rows, tile.stages)):
                if tile.shared_bytes(B) > first._shared_bytes - 1024:
                    continue
                for slices in (2, 4, 8, 16) if epilogue == "partials" else (1,):
                    for linear in bench.linears[name]:
                        linear.num_slices = slices
                    run, num_bytes = bench.alone(name, B, tile=tile)
                    what = {"storage": storage, "B": B, "what": name, "rows": tile.rows}
                    what |= {"stages": tile.stages, "slices": slices}
                    what["is_chosen"] = tile == chosen and slices == usual
                    figures.append(bench.figure(run, num_bytes, **what))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storages", default="int8")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--sweep", default="", help="names of shapes to try other tiles for")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    torch.manual_seed(0)
    batches = [int(size) for size in options.batches.split(",")]
    result: dict[str, Any] = {"torch": torch.__version__, "layers": options.layers, "figures": []}
    for storage in options.storages.split(","):
        bench = Bench(storage, options.layers, options.runs, is_dry=options.dry)
        result["device"] = "cpu" if options.dry else torch.cuda.get_device_name()
        result["read_tb_s"] = bench.read_rate / 1e12
        print(f"{result['device']}, read-only {result['read_tb_s']:.3f} TB/s")
        if options.sweep:
            result["figures"] += sweep(bench, storage, options.sweep.split(","), batches)
        else:
            result["figures"] += measure(bench, storage, batches)
        del bench
    print(json.dumps(result))


if __name__ == "__main__":
    main()
