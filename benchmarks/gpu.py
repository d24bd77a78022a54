"""The GPU edition on random weights of the 4B shape: parts, decode steps, first tokens, memory.

    python -m benchmarks.gpu [--out FILE] [section ...]

Needs an NVIDIA GPU. Sections: attention, decode, parts, profile. The bandwidth limit of a
decode step is the bytes it must read (text weights with the tied head, keys and values) over the
bandwidth of a read-only stream, measured in the same run.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_shape import config_4b, random_model
from visiongate.engine.cuda_runner import PROMPT_BUCKETS, CudaRunner
from visiongate.kernels.cuda import attention, ops, probe
from visiongate.model.cuda import CudaQwen3VL, PromptInputs, PromptState
from visiongate.model.inputs import KVPool, VisionFeatures
from visiongate.model.vision import to_patches

BLOCK = 64
CONTEXT = 1056
Results = dict[str, Any]


def milliseconds(work: Callable[[], object], repeat: int = 5, warm: int = 2) -> float:
    """Median device time of some work."""
    for _ in range(warm):
        work()
    return float(statistics.median(probe.device_times(work, repeat)))


def limits(results: Results) -> None:
    """Bandwidth of a read-only stream and a copy, and the rate of large products."""
    big = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda").normal_()
    results["copy_tb_s"] = 2 * big.nbytes / milliseconds(big.clone) / 1e9
    del big
    results["read_tb_s"] = probe.read_rate("cuda", num_bytes=1 << 31) / 1e12
    results["bf16_tflop_s"] = probe.product_rate(torch.bfloat16, "cuda") / 1e12


def make_pool(model: CudaQwen3VL, tokens: int) -> KVPool:
    """A cache of random keys and values."""
    text = model.config.text
    pool = KVPool.allocate(
        num_layers=text.num_hidden_layers,
        num_blocks=tokens // BLOCK + 1,
        block_size=BLOCK,
        num_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        dtype=torch.bfloat16,
        device="cuda",
    )
    pool.keys.normal_()
    pool.values.normal_()
    return pool


def step_bytes(model: CudaQwen3VL, contexts: list[int]) -> int:
    """Bytes that one decode step must read."""
    decoder, text = model.decoder, model.config.text
    layers: int = sum(
        tensor.nbytes
        for layer in decoder.layers
        for tensor in (layer.qkv, layer.o, layer.gate_up, layer.down)
    )
    per_token = 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return layers + decoder.head.nbytes + per_token * sum(contexts)


def decode(results: Results, model: CudaQwen3VL) -> None:
    """Graph replays alone, ragged contexts around 1120: what the engine's steps can reach."""
    pool = make_pool(model, 64 * 1280)
    runner = CudaRunner(model, pool, max_rows=64, max_context=4096)
    for rows in (1, 8, 32, 64):
        state = runner._state(rows)
        contexts = [CONTEXT + 64 + (37 * row) % 129 - 64 for row in range(rows)]
        parts = [ops.num_parts(context) for context in contexts]
        columns = [
            [5 + row for row in range(rows)],
            [-1] * rows,
            [context - 1 for context in contexts],
            [context - 900 for context in contexts],
            [sum(parts[:row]) for row in range(rows)],
        ]
        state.inputs.copy_(torch.tensor(columns, dtype=torch.int32))
        tables = torch.arange(rows * 20, dtype=torch.int32).view(rows, 20)
        state.tables[:, :20].copy_(tables)
        graph = runner._graphs[rows]
        spent = milliseconds(lambda graph=graph: [graph.replay() for _ in range(20)]) / 20  # type: ignore[misc]
        limit = step_bytes(model, contexts) / results["read_tb_s"] / 1e9
        results[f"decode_{rows}"] = {
            "ms": spent,
            "limit_ms": limit,
            "share": limit / spent,
        }


def attention_layers(results: Results, model: CudaQwen3VL) -> None:
    """Attention of a decode step, microseconds a layer, contexts around 1120: C++ and Triton's."""
    text = model.config.text
    pool = make_pool(model, 64 * 1280)
    device = model.device
    cos = sin = torch.zeros(4096, text.head_dim // 2, device=device)
    heads, kv_heads, head = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    ints = functools.partial(torch.tensor, dtype=torch.int32, device=device)
    for rows in (1, 8, 32, 64):
        qkv = torch.randn(rows, (heads + 2 * kv_heads) * head, device=device).bfloat16()
        out = torch.empty(rows, heads * head, device=device, dtype=torch.bfloat16)
        contexts = [1120 + row % 3 for row in range(rows)]
        counts = [ops.num_parts(context) for context in contexts]
        space = ops.AttentionSpace(rows, sum(counts), heads, kv_heads, head, device)
        places = ints(contexts) - 1
        first = ints([sum(counts[:row]) for row in range(rows)])
        tables = torch.arange(rows * 20, device=device, dtype=torch.int32).view(rows, 20)
        num_bytes = 4 * kv_heads * head * int(places.sum())
        results[f"attention_{rows}_limit_us"] = num_bytes / results["read_tb_s"] / 1e6
        kernels: dict[str, Callable[..., None]] = {
            "": attention.decode_attention,
            "_triton": functools.partial(ops.decode_attention, pdl=True),
        }
        shared = (places, places, first, tables, space, out)
        for name, kernel in kernels.items():
            attend = functools.partial(attend_layers, kernel, model, pool, qkv, cos, sin, *shared)
            attend()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                attend()
            per_layer = milliseconds(graph.replay) * 1e3 / len(model.decoder.layers)
            results[f"attention_{rows}{name}_us"] = per_layer


def attend_layers(
    kernel: Callable[..., None], model: CudaQwen3VL, pool: KVPool, qkv: torch.Tensor,
    cos: torch.Tensor, sin: torch.Tensor, *shared: Any,
) -> None:  # fmt: skip
    """One step's attention in every layer."""
    for index, layer in enumerate(model.decoder.layers):
        kernel(
            qkv, layer.q_norm, layer.k_norm, cos, sin, pool.keys[index], pool.values[index],
            *shared, eps=1e-6,
        )  # fmt: skip


def parts(results: Results, model: CudaQwen3VL) -> None:
    """Vision, prefill and their host time, one 1024 x 1024 picture and 32 text tokens."""
    pool = make_pool(model, 4096)
    pixels = torch.randint(0, 255, (1024, 1024, 3), dtype=torch.uint8, device="cuda")

    def vision() -> VisionFeatures:
        encoding = model.visual.begin(to_patches(pixels, model.config.vision), [(64, 64)])
        model.visual.advance(encoding, 1000)
        return model.visual.finish(encoding)[0]

    results["vision_ms"] = milliseconds(vision)
    results["vision_host_ms"] = host_milliseconds(vision)
    features = vision()
    runner = CudaRunner(model, pool, max_rows=1, max_context=4096)
    for start, count in ((0, 576), (576, 480), (0, 32), (0, 128), (0, 256), (3000, 640)):
        state = runner._prompt_state(next(size for size in PROMPT_BUCKETS if size >= count))
        graph = runner._prompt_graphs[len(state.residual)]
        staged = staged_chunk(state, start, count)
        low, high = max(4, start), min(start + count, 1028)
        shown = features.rows(low - 4, high - 4) if low < high else None

        def prefill(
            state: PromptState = state,
            staged: torch.Tensor = staged,
            shown: VisionFeatures | None = shown,
            last: int = count - 1,
        ) -> None:
            model.decoder.fill(state, staged, shown)
            runner._prompt_graphs[len(state.residual)].replay()
            model.decoder.logits(state, last)

        results[f"prefill_{start}_{count}"] = {
            "ms": milliseconds(prefill),
            "graph_ms": milliseconds(graph.replay),
            "host_ms": host_milliseconds(prefill),
        }
    if "profile" in results["sections"]:
        profile("vision", vision)
        profile("prefill", functools.partial(model.decoder.compute, state, pool))
        state1 = runner._state(1)
        state1.inputs[2:4] = CONTEXT
        profile("decode 1", functools.partial(model.decoder.decode, state1, pool))
        del runner, pool
        pool = make_pool(model, 64 * 1280)
        runner = CudaRunner(model, pool, max_rows=64, max_context=4096)
        state64 = runner._state(64)
        state64.inputs[2:4] = CONTEXT
        state64.inputs[4] = torch.arange(64, device="cuda") * ops.num_parts(CONTEXT + 1)
        state64.tables[:, :20] = torch.arange(64 * 20, device="cuda").view(64, 20)
        profile("decode 64", functools.partial(model.decoder.decode, state64, pool))


def staged_chunk(state: PromptState, start: int, count: int) -> torch.Tensor:
    """Tokens of a prompt whose picture stands at [4, 1028), on the host."""
    num_blocks = len(state.inputs.table)
    staged = torch.empty(len(state.inputs.flat), dtype=torch.int32, pin_memory=True)
    places = np.arange(start, start + count)
    low, high = max(4, start), min(start + count, 1028)
    PromptInputs.of(staged.numpy(), len(state.residual), num_blocks).put(
        start,
        np.random.default_rng(0).integers(0, 1000, count),
        places=np.broadcast_to(places, (3, count)),
        slots=places,
        table=np.arange(min(64, num_blocks)),
        pictures=[(low - start, high - low)] if low < high else [],
        scratch=0,
    )
    return staged


def profile(name: str, work: Callable[[], object]) -> None:
    """Prints the kernels that take longest."""
    work()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        work()
        torch.cuda.synchronize()
    print(f"== {name}")
    for row in sorted(found.key_averages(), key=lambda r: -r.self_device_time_total)[:14]:
        print(f"{row.self_device_time_total:9.0f} us {row.count:5}  {row.key[:90]}")


def host_milliseconds(work: Callable[[], object]) -> float:
    """Median time that the host needs to give some work to the device."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    torch.cuda.synchronize()
    return statistics.median(times)


def show(results: Results) -> None:
    """Prints every figure, a line each."""
    for name, value in results.items():
        if isinstance(value, dict):
            found = ((k, v) for k, v in value.items() if not isinstance(v, list))
            value = "  ".join(f"{k} {v:.3f}" for k, v in found)
        elif isinstance(value, float):
            value = f"{value:.3f}"
        print(f"{name:28} {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("sections", nargs="*", default=["limits", "decode", "parts"])
    options = parser.parse_args()
    torch.inference_mode().__enter__()
    results: Results = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "sections": options.sections,
    }
    limits(results)
    model = random_model(config_4b(), torch.bfloat16)
    sections = {"attention": attention_layers, "decode": decode, "parts": parts}
    for name in options.sections:
        if name in sections:
            sections[name](results, model)
    show(results)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
