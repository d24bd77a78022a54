"""The engine on a GPU, random weights of the 4B shape: streams, first tokens, company, throughput.

    python -m benchmarks.gpu_engine [--out FILE] [section ...]

Sections: decode, first, gaps, crowd, long, oracle, transformers. `--dry` runs them in small on
the CPU, through Triton's interpreter, to see that they run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import checkpoint
from visiongate.engine.types import Precision

if TYPE_CHECKING:
    from visiongate.engine.types import Request

Results = dict[str, Any]


class Bench:
    """An engine on random weights and short ways to ask it."""

    def __init__(
        self,
        *,
        is_dry: bool,
        precision: Precision = "bfloat16",
        device_memory_bytes: int = 0,
    ) -> None:
        from benchmarks.gpu_shape import config_4b, random_model
        from visiongate.engine.engine import Engine, limit_device_memory
        from visiongate.engine.tokenizer import Tokenizer
        from visiongate.engine.types import EngineSettings
        from visiongate.engine.worker import on_gpu
        from visiongate.model.upload import load_on_device

        self.is_dry = is_dry
        storage = precision if precision == "int8" or precision == "float8" else None
        settings = on_gpu(
            EngineSettings(
                precision="float32" if is_dry else precision,
                device="cpu" if is_dry else "cuda:0",
                max_num_seqs=4 if is_dry else 64,
                cache_tokens=2048 if is_dry else 131072,
                device_memory_bytes=device_memory_bytes,
            )
        )
        self.side = 64 if is_dry else 1024
        self.num_text = 8 if is_dry else 32
        if is_dry:
            folder = Path(checkpoint.__file__).parents[1] / "src/visiongate/mini/weights"
            self.model = load_on_device(folder, torch.float32, torch.device("cpu"), storage)
        else:
            limit_device_memory(settings)
            self.model = random_model(config_4b(), torch.bfloat16, storage=storage)
            torch.cuda.empty_cache()
            folder = Path(tempfile.mkdtemp())
            checkpoint.write_settings(folder)
            checkpoint.build_tokenizer().save(str(folder / "tokenizer.json"))
        self.engine = Engine(self.model, Tokenizer.from_pretrained(folder), settings)
        self.engine.warm_up()
        gc.collect()
        gc.freeze()  # as a worker does
        self._number = 0

    def add(self, num_new: int, **options: Any) -> str:
        """Makes a request and gives it to the engine; its id."""
        request = self.make(num_new, **options)
        self.engine.add(request)
        return request.request_id

    def make(
        self, num_new: int, *, has_picture: bool = True, num_text: int = 0, **params: Any
    ) -> Request:
        """A request with a picture of its own and random words."""
        from visiongate.engine.types import Image, ImageSpan, Prompt, Request, SamplingParams

        self._number += 1
        rng = np.random.default_rng(self._number)
        num_text = num_text or self.num_text
        tokens = rng.integers(300, 3000, size=num_text).tolist()
        spans: tuple[ImageSpan, ...] = ()
        positions = np.arange(num_text, dtype=np.int32)[None].repeat(3, 0)
        delta = 0
        if has_picture:
            pixels = rng.integers(0, 255, (self.side, self.side, 3), dtype=np.uint8)
            image = Image(pixels, rng.bytes(32), "PNG", self.side, self.side)
            count, across = image.num_tokens, self.side // 32
            tokens = [*tokens[:4], *[self.model.config.image_token_id] * count, *tokens[4:]]
            grid = np.indices((1, across, across)).reshape(3, -1) + 4
            after = np.arange(num_text - 4)[None].repeat(3, 0) + 4 + across
            positions = np.concatenate((positions[:, :4], grid, after), 1).astype(np.int32)
            delta = 4 + across - 4 - count
            spans = (ImageSpan(4, image),)
        prompt = Prompt(tokens, positions, delta, spans)
        chosen = SamplingParams(max_tokens=num_new, ignore_eos=True, guard=False, **params)
        return Request(f"r{self._number}", prompt, chosen)

    def until_idle(self) -> None:
        """Works until nothing is left."""
        while self.engine.has_work:
            self.engine.step()


def decode(results: Results, bench: Bench) -> None:
    """Tokens a second of B streams with ragged contexts: the median of three runs."""
    draws: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    }
    blocks = bench.engine.blocks
    room = blocks.num_blocks * blocks.block_size
    sizes = [1, 2] if bench.is_dry else [s for s in (1, 8, 32, 64) if s * 1300 <= room]
    num_runs = 1 if bench.is_dry else 3
    for size in sizes:
        for name, params in draws.items():
            runs = [stream_step(results, bench, size, params) for _ in range(num_runs)]
            entry = sorted(runs, key=lambda run: run["ms"])[num_runs // 2]
            results[f"engine_decode_{size}_{name}"] = entry | {"runs": [run["ms"] for run in runs]}


def stream_step(
    results: Results, bench: Bench, size: int, params: dict[str, Any]
) -> dict[str, float]:
    """The mean step of `size` streams, from when all stream until the first ends."""
    for row in range(size):
        num_text = 12 if bench.is_dry else 1024 + (37 * row) % 129 - 64
        seed = {"seed": row} if params else {}
        num_new = 6 if bench.is_dry else 160
        bench.add(num_new, has_picture=False, num_text=num_text, **params, **seed)
    while bench.engine.scheduler.waiting or bench.engine.scheduler.has_other_work:
        bench.engine.step()
    for _ in range(3):  # the last prompt may still be under way
        bench.engine.step()
    contexts = [len(s.token_ids) for s in bench.engine.scheduler.running]
    start, steps = time.perf_counter(), 0
    while len(bench.engine.scheduler.running) == size:
        bench.engine.step()
        steps += 1
    milliseconds = (time.perf_counter() - start) * 1e3 / max(steps, 1)
    bench.until_idle()
    entry = {"ms": milliseconds, "tok_s": 1e3 * size / milliseconds}
    if not bench.is_dry:
        from benchmarks.gpu import step_bytes

        middle = [context + steps // 2 for context in contexts]
        limit = step_bytes(bench.model, middle) / results["read_tb_s"] / 1e9
        entry |= {"limit_ms": limit, "share": limit / milliseconds}
    return entry


def first(results: Results, bench: Bench) -> None:
    """Time from a request's arrival in the engine to its first token; W1, nothing else."""
    times = []
    for _ in range(2 if bench.is_dry else 9):
        key = bench.add(2)
        start = time.perf_counter()
        events: list[Any] = []
        while not any(event.request_id == key and event.num_tokens for event in events):
            events = bench.engine.step()
        times.append((time.perf_counter() - start) * 1e3)
        bench.until_idle()
    results["first_token_ms"] = {
        "median": statistics.median(times[1:]), "least": min(times), "most": max(times[1:]),
    }  # fmt: skip


def gaps(results: Results, bench: Bench) -> None:
    """A stream's times between tokens alone, and while others' pictures come one after another."""
    count = 12 if bench.is_dry else 300

    def watch(*, has_company: bool) -> list[float]:
        others = [bench.make(8) for _ in range(count // 6 if has_company else 0)]
        key = bench.add(count)
        found, last, other = [], 0.0, ""
        while True:
            if last and not other and others:
                request = others.pop()
                bench.engine.add(request)
                other = request.request_id
            for event in bench.engine.step():
                if event.request_id == other and event.is_final:
                    other = ""
                if event.request_id == key and event.num_tokens:
                    now = time.perf_counter()
                    if last:
                        found.append((now - last) * 1e3)
                    last = now
                    if event.is_final:
                        bench.until_idle()
                        return found

    alone, company = watch(has_company=False), watch(has_company=True)
    results["gaps_ms"] = {
        "alone_median": statistics.median(alone),
        "company_median": statistics.median(company),
        "company_p95": float(np.percentile(company, 95)),
        "company_most": max(company),
        "ratio": float(np.percentile(company, 95)) / statistics.median(alone),
    }


def crowd(results: Results, bench: Bench) -> None:
    """64 requests W1 at once, 128 new tokens each."""
    size, num_new = (3, 4) if bench.is_dry else (64, 128)
    requests = [bench.make(num_new) for _ in range(size)]
    before, start = bench.engine.stats(), time.perf_counter()
    for request in requests:
        bench.engine.add(request)
    bench.until_idle()
    seconds, after = time.perf_counter() - start, bench.engine.stats()
    results["crowd"] = {
        "requests": size,
        "seconds": seconds,
        "steps": after.steps - before.steps,
        "answers_s": after.decode_seconds - before.decode_seconds,
        "prompts_s": after.prefill_seconds - before.prefill_seconds,
        "pictures_s": after.encode_seconds - before.encode_seconds,
        "images_s": size / seconds,
        "tokens_s": size * num_new / seconds,
    }


def long(results: Results, bench: Bench) -> None:
    """A prompt of 32,000 tokens: its first token, and steps behind it."""
    num_text, num_new = (300, 4) if bench.is_dry else (32_000, 64)
    request = bench.make(num_new, has_picture=False, num_text=num_text)
    start, times = time.perf_counter(), []
    bench.engine.add(request)
    while bench.engine.has_work:
        times += [time.perf_counter() - start for event in bench.engine.step() if event.num_tokens]
    results["long"] = {
        "prompt_tokens": num_text,
        "answer_tokens": len(times),
        "first_token_s": times[0],
        "step_ms": (times[-1] - times[0]) * 1e3 / (len(times) - 1),
    }


def hf_model(bench: Bench, dtype: torch.dtype) -> Any:
    """Transformers' model with the same weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from visiongate.kernels.cuda.weight8 import Matrix8

    config = Qwen3VLConfig.from_dict(hf_config(bench))
    device = bench.model.device
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    ours = bench.model.named()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ours:
                found = ours[name]
                if isinstance(found, Matrix8):
                    found = found.lookup(torch.arange(len(found), device=device))
                parameter.copy_(found)
    return model.eval()


def hf_config(bench: Bench) -> dict[str, Any]:
    """The configuration as transformers reads it."""
    if bench.is_dry:
        folder = Path(checkpoint.__file__).parents[1] / "src/visiongate/mini/weights"
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return found
    from benchmarks.gpu_shape import hub_config

    return hub_config(bench.model.config)


def hf_inputs(bench: Bench, batch: int) -> dict[str, Any]:
    """W1 as transformers takes it, `batch` times, different pictures."""
    config, side = bench.model.config, bench.side
    rng = np.random.default_rng(1)
    count, grid = (side // 32) ** 2, side // 16
    tokens = rng.integers(300, 3000, size=bench.num_text).tolist()
    row = [
        *tokens[:3], config.vision_start_token_id, *[config.image_token_id] * count, *tokens[4:],
    ]  # fmt: skip
    width = config.vision.in_channels * 2 * config.vision.patch_size**2
    device = bench.model.device
    pixels = torch.randn(batch * grid * grid, width // 2, device=device)
    pixels = pixels.view(-1, 3, 1, width // 6).expand(-1, -1, 2, -1).reshape(-1, width)
    return {
        "input_ids": torch.tensor([row] * batch, device=device),
        "attention_mask": torch.ones(batch, len(row), dtype=torch.long, device=device),
        "mm_token_type_ids": torch.tensor(
            [[int(token == config.image_token_id) for token in row]] * batch, device=device
        ),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, grid, grid]] * batch, device=device),
    }


@torch.inference_mode()
def oracle(results: Results, bench: Bench) -> None:
    """Error of the logits after W1's prompt against transformers in float32, ours and theirs."""
    inputs = hf_inputs(bench, 1)
    exact_model = hf_model(bench, torch.float32)
    exact = exact_model(**inputs).logits[0, -1].float()
    del exact_model
    theirs_model = hf_model(bench, bench.model.dtype)
    theirs = theirs_model(**inputs).logits[0, -1].float()
    results["oracle"] = {"transformers": relative(theirs, exact)}
    del theirs_model
    ours = our_logits(bench, inputs)
    results["oracle"] |= {"ours": relative(ours, exact)}


def our_logits(bench: Bench, inputs: dict[str, Any]) -> torch.Tensor:
    """The engine's logits after the same prompt, through its own chunks."""
    from visiongate.engine.cuda_runner import CudaRunner
    from visiongate.model.cuda import PromptInputs

    runner = bench.engine.runner
    assert isinstance(runner, CudaRunner)
    model, decoder = bench.model, bench.model.decoder
    size = model.config.vision.patch_size**2
    one_frame = inputs["pixel_values"].view(-1, 3, 2, size)[:, :, 0].reshape(-1, 3 * size)
    _, down, across = inputs["image_grid_thw"][0].tolist()
    encoding = model.visual.begin(one_frame, [(down, across)])
    model.visual.advance(encoding, model.visual.num_stages)
    features = model.visual.finish(encoding)[0]
    tokens = inputs["input_ids"][0].cpu().numpy()
    visual = (tokens == model.config.image_token_id).nonzero()[0]
    begin, end_of_picture = int(visual[0]), int(visual[-1]) + 1
    side = across // 2
    grid = np.indices((1, down // 2, side)).reshape(3, -1) + begin
    after = np.arange(len(tokens) - end_of_picture)[None].repeat(3, 0) + begin + side
    before = np.arange(begin)[None].repeat(3, 0)
    positions = np.concatenate((before, grid, after), 1)
    block = runner.pool.block_size
    state = runner._prompt_state(576)
    logits = torch.empty(0)
    for start in range(0, len(tokens), 576):
        end = min(start + 576, len(tokens))
        low, high = max(start, begin), min(end, end_of_picture)
        staged = torch.empty(len(state.inputs.flat), dtype=torch.int32)
        PromptInputs.of(staged.numpy(), 576, len(state.inputs.table)).put(
            start,
            tokens[start:end],
            places=positions[:, start:end],
            slots=np.arange(start, end),
            table=np.arange(-(-len(tokens) // block)),
            pictures=[(low - start, high - low)] if low < high else [],
            scratch=runner.scratch_block * block,
        )
        shown = features.rows(low - begin, high - begin) if low < high else None
        decoder.fill(state, staged, shown)
        decoder.compute(state, runner.pool)
        logits = decoder.logits(state, end - start - 1)[0]
    return logits


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error."""
    return float((found - exact).norm() / exact.norm())


@torch.inference_mode()
def transformers(results: Results, bench: Bench) -> None:
    """Transformers on the same weights: first token, one stream, and a batch to its end."""
    model = hf_model(bench, bench.model.dtype)

    def seconds(batch: int, num_new: int) -> float:
        inputs = hf_inputs(bench, batch)
        start = time.perf_counter()
        model.generate(
            **inputs, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    batch, num_new = (2, 3) if bench.is_dry else (32, 128)
    seconds(1, 3)
    once = statistics.median(seconds(1, 1) for _ in range(3))
    longer = seconds(1, 17)
    crowd_seconds = seconds(batch, num_new)
    results["transformers"] = {
        "first_token_ms": once * 1e3,
        "decode_tok_s": 16 / (longer - once),
        "batch": batch,
        "batch_images_s": batch / crowd_seconds,
        "batch_tokens_s": batch * num_new / crowd_seconds,
    }
    if "crowd" in results:
        ours = results["crowd"]["tokens_s"]
        results["transformers"]["ours_times"] = ours / (batch * num_new / crowd_seconds)


def memory(bench: Bench) -> dict[str, int]:
    """Bytes of the card: of all processes, and of our tensors; tokens that the cache holds."""
    free, total = torch.cuda.mem_get_info()
    blocks = bench.engine.blocks
    return {
        "card_bytes": total - free,
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "cache_tokens": blocks.num_blocks * blocks.block_size,
    }


SECTIONS: dict[str, Callable[[Results, Bench], None]] = {
    "decode": decode,
    "first": first,
    "gaps": gaps,
    "crowd": crowd,
    "long": long,
    "oracle": oracle,
    "transformers": transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "int8", "float8"])
    parser.add_argument("--memory", type=float, default=0, help="GB of the card to use, 0 for all")
    parser.add_argument("sections", nargs="*", default=list(SECTIONS))
    options = parser.parse_args()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    torch.set_grad_enabled(False)
    results: Results = {"torch": torch.__version__}
    from benchmarks import gpu

    if not options.dry:
        results["device"] = torch.cuda.get_device_name()
        gpu.limits(results)
    bench = Bench(
        is_dry=options.dry,
        precision=options.precision,
        device_memory_bytes=int(options.memory * 1e9),
    )
    results["precision"] = options.precision
    for name in options.sections:
        begin = time.perf_counter()
        try:
            SECTIONS[name](results, bench)
        except Exception as error:  # the other sections are still worth their time
            results[f"{name}_failed"] = f"{type(error).__name__}: {error}"[:300]
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
        if not options.dry:
            results["memory"] = memory(bench)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))
    gpu.show(results)


if __name__ == "__main__":
    main()
