"""Decode's linear layers on a GPU at the 4B shape: each alone, as a chain of layers, beside cuBLAS.

    python -m benchmarks.gpu_linear [--batches 1,8,16,32,64] [--layers 36] [--runs 15]

Every figure is a CUDA graph over the distinct weights of all layers, so nothing stays in a cache.
The chain is a decode step but for attention, which a copy stands in for. Rates count the bytes of
the weights alone; the share is of the read-only rate measured in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from visiongate.kernels.cuda.nvrtc import Kernel, load_kernel
from visiongate.kernels.cuda.stream import Epilogue, StreamLinear, add_norm

HIDDEN, QKV, ATTENTION, INNER, VOCABULARY = 2560, 6144, 4096, 9728, 151936
SHAPES: dict[str, tuple[int, int, Epilogue]] = {
    "qkv": (QKV, HIDDEN, "bfloat16"),
    "o": (HIDDEN, ATTENTION, "partials"),
    "gate_up": (2 * INNER, HIDDEN, "silu"),
    "down": (HIDDEN, INNER, "partials"),
}
HEAD: tuple[int, int, Epilogue] = (VOCABULARY, HIDDEN, "float32")

HELPERS = r"""
// The stand-in for attention: out[b, :] = in[b, :columns], 16 bytes a thread.
extern "C" __global__ void copy_columns(const uint4* in, uint4* out, int in_units, int out_units) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const int row = blockIdx.x / (out_units / 128), unit = blockIdx.x % (out_units / 128) * 128;
    const int at = unit + threadIdx.x;
    out[row * out_units + at] = __ldcg(in + row * in_units + at);
}

extern "C" __global__ void read_all(const uint4* in, unsigned* out, int blocks_of_32_kilobytes) {
    unsigned found = 0;
    for (int i = blockIdx.x; i < blocks_of_32_kilobytes; i += gridDim.x) {
        uint4 v[8];
        for (int j = 0; j < 8; j++) v[j] = __ldcs(in + (size_t)i * 2048 + j * 256 + threadIdx.x);
        for (int j = 0; j < 8; j++) found |= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (found == 0x12345678u) *out = found;
}
"""


class Step:
    """The weights of a decode step and the tensors between its kernels."""

    def __init__(self, layers: int) -> None:
        self.linears = {
            name: [StreamLinear(draw(N, K), epilogue) for _ in range(layers)]
            for name, (N, K, epilogue) in SHAPES.items()
        }
        self.head = StreamLinear(draw(*HEAD[:2]), HEAD[2])
        self.scale = draw(HIDDEN) + 1
        self.device = self.head.weight.device

    def weight_bytes(self, name: str) -> int:
        """Of all layers' weights of one shape, or of the head."""
        linears = [self.head] if name == "head" else self.linears[name]
        return sum(linear.weight.nbytes for linear in linears)

    def chain(self, B: int) -> Callable[[], None]:
        """The step as one function of no arguments."""
        h = torch.randn(B, HIDDEN, device=self.device)
        y = torch.empty(B, HIDDEN, dtype=torch.bfloat16, device=self.device)
        first = [group[0] for group in self.linears.values()]
        qkv, o, inner, down = (linear.empty(B) for linear in first)
        attention = torch.empty(B, ATTENTION, dtype=torch.bfloat16, device=self.device)
        logits = self.head.empty(B)

        def run() -> None:
            partials: Tensor | None = None
            for wqkv, wo, wgu, wd in zip(*self.linears.values(), strict=True):
                add_norm(h, partials, self.scale, 1e-6, y)
                wqkv(y, qkv)
                copy_columns(qkv, attention)
                wo(attention, o)
                add_norm(h, o, self.scale, 1e-6, y)
                wgu(y, inner)
                wd(inner, down)
                partials = down
            add_norm(h, partials, self.scale, 1e-6, y)
            self.head(y, logits)

        return run

    def alone(self, name: str, B: int) -> Callable[[], None]:
        """One shape over all layers, of our kernels."""
        linears = [self.head] * 4 if name == "head" else self.linears[name]
        x, out = draw(B, linears[0].weight.shape[1]), linears[0].empty(B)

        def run() -> None:
            for linear in linears:
                linear(x, out)

        return run

    def cublas(self, name: str, B: int) -> Callable[[], None]:
        """The same products by torch, without what follows them."""
        linears = [self.head] * 4 if name == "head" else self.linears[name]
        x = draw(B, linears[0].weight.shape[1])
        out = torch.empty(B, linears[0].weight.shape[0], dtype=torch.bfloat16, device=self.device)

        def run() -> None:
            for linear in linears:
                torch.mm(x, linear.weight.t(), out=out)

        return run


def draw(*shape: int) -> Tensor:
    """Normal values, as large as weights are."""
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda") * 0.02


def helper(name: str) -> Kernel:
    """A kernel of HELPERS."""
    kernel = load_kernel(torch.device("cuda", torch.cuda.current_device()), name, HELPERS, ())
    kernel.allow_shared_memory(0)
    return kernel


def copy_columns(source: Tensor, target: Tensor) -> None:
    units = target.shape[1] // 8
    arguments: list[ctypes.c_void_p | ctypes.c_int] = [
        ctypes.c_void_p(t.data_ptr()) for t in (source, target)
    ]
    arguments += [ctypes.c_int(n) for n in (source.shape[1] // 8, units)]
    helper("copy_columns").launch(target.shape[0] * (units // 128), 128, 0, arguments)


def seconds(run: Callable[[], None], num_runs: int) -> tuple[float, float]:
    """Median and spread (max - min) of the run as a replayed graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(num_runs + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    taken = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]
    return statistics.median(taken), max(taken) - min(taken)


def read_rate(num_runs: int) -> float:
    """Bytes a second of a kernel that only reads."""
    room = torch.ones(1 << 30, dtype=torch.int32, device="cuda")
    found = torch.zeros(1, dtype=torch.int32, device="cuda")
    arguments: list[ctypes.c_void_p | ctypes.c_int] = [
        ctypes.c_void_p(t.data_ptr()) for t in (room, found)
    ]
    arguments.append(ctypes.c_int(room.nbytes >> 15))
    median, _ = seconds(lambda: helper("read_all").launch(132 * 8, 256, 0, arguments), num_runs)
    return room.nbytes / median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,8,16,32,64")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    limit = read_rate(options.runs)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"read-only: {limit / 1e12:.3f} TB/s")
    step = Step(options.layers)
    names = [*SHAPES, "head"]
    total = sum(step.weight_bytes(name) for name in names)
    figures: list[dict[str, float | int | str]] = []
    print(
        f"{'B':>3} {'what':8} {'ms':>8} {'TB/s':>6} {'share':>6} {'spread':>7} {'cuBLAS TB/s':>12}"
    )
    for B in map(int, options.batches.split(",")):
        for name in [*names, "chain"]:
            is_chain = name == "chain"
            num_bytes = (
                total if is_chain else step.weight_bytes(name) * (4 if name == "head" else 1)
            )
            run = step.chain(B) if is_chain else step.alone(name, B)
            median, spread = seconds(run, options.runs)
            rate = num_bytes / median
            theirs = 0.0
            if not is_chain:
                theirs = num_bytes / seconds(step.cublas(name, B), options.runs)[0]
            other = "" if is_chain else f"{theirs / 1e12:12.2f}"
            figures.append(
                {"B": B, "what": name, "seconds": median, "rate": rate, "cublas_rate": theirs}
            )
            print(
                f"{B:3} {name:8} {median * 1e3:8.3f} {rate / 1e12:6.2f} {rate / limit:6.2f} "
                f"{spread / median:7.2f} {other}",
                flush=True,
            )
    print(json.dumps({"read_rate": limit, "figures": figures}))


if __name__ == "__main__":
    main()
