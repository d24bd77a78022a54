"""Engines that can do the work: ours, and those that a user would pick instead.

Each runs in a process of its own (`serve`), so that memory and loading are its own, and answers
one line of JSON for each line that it gets. A peer whose package is not installed says so and is
skipped.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import workloads
from benchmarks.workloads import Ask, Work

if TYPE_CHECKING:  # a peer's interpreter may lack ours
    from visiongate.engine.types import Precision

Times = list[list[float]]
"""For each request: when it was sent, then when each of its tokens came, in seconds."""


class Skip(Exception):
    """This engine cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an engine is started with."""

    engine: str
    precision: Precision
    checkpoint: str
    num_threads: int
    location: str = ""  # an exported model or a server's URL, for peers that need one


class Runner(abc.ABC):
    """One loaded engine."""

    works: tuple[str, ...] = ("W1", "W2")

    @abc.abstractmethod
    def run(self, work: Work) -> Times:
        """Does one work."""


class Ours(Runner):
    """VisionGate's engine in this process."""

    works = ("W1", "W2", "W3", "W4", "W5")

    def __init__(self, options: Options) -> None:
        from visiongate import kernels
        from visiongate.engine.engine import Engine
        from visiongate.engine.prompt import PromptBuilder
        from visiongate.engine.types import EngineSettings

        precision = options.precision
        settings = EngineSettings(  # random weights repeat themselves: guesses would flatter us
            precision=precision, num_threads=options.num_threads, drafts=False
        )
        kernels.set_num_threads(options.num_threads)
        self.engine = Engine.from_pretrained(options.checkpoint, settings)
        self.builder = PromptBuilder.from_pretrained(options.checkpoint)

    def run(self, work: Work) -> Times:
        """Adds requests when they are due and steps until all have ended."""
        requests = [self._request(work.name, i, ask) for i, ask in enumerate(work.asks)]
        times: Times = [[] for _ in requests]
        num_ended = num_sent = 0
        while num_ended < len(requests):
            while num_sent < len(requests) and self._is_due(work.asks, num_sent, num_ended, times):
                times[num_sent].append(time.perf_counter())
                self.engine.add(requests[num_sent])
                num_sent += 1
            for event in self.engine.step():
                if event.error is not None:
                    raise event.error
                index = int(event.request_id.rsplit("-", 1)[1])
                times[index] += [time.perf_counter()] * event.num_tokens
                num_ended += event.is_final
        return times

    @staticmethod
    def _is_due(asks: tuple[Ask, ...], index: int, num_ended: int, times: Times) -> bool:
        after = asks[index].after_tokens
        return num_ended == index if after < 0 else after == 0 or len(times[0]) > after

    def _request(self, name: str, index: int, ask: Ask) -> Any:
        from visiongate.engine import image
        from visiongate.engine.prompt import Message
        from visiongate.engine.types import Request, SamplingParams

        messages = []
        for turn in ask.turns:
            picture = () if turn.picture is None else (image.decode(workloads.png(*turn.picture)),)
            messages.append(Message(turn.role, (*picture, turn.text)))
        params = SamplingParams(max_tokens=ask.num_new_tokens, ignore_eos=True, guard=False)
        return Request(f"{name}-{index}", self.builder.build(messages), params)


class Transformers(Runner):
    """The reference implementation, as its documentation uses it."""

    def __init__(self, options: Options) -> None:
        require("transformers")
        import torch
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,  # AutoProcessor would ask for torchvision
        )

        if options.precision == "int8":
            raise Skip("has no int8 path for this model on the CPU")
        torch.set_num_threads(options.num_threads)
        self.tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
        self.pictures = Qwen2VLImageProcessorPil.from_pretrained(options.checkpoint)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            options.checkpoint, dtype=getattr(torch, options.precision)
        ).eval()

    def run(self, work: Work) -> Times:
        """One `generate` for each request, one after another."""
        return [self._generate(ask) for ask in work.asks]

    def _generate(self, ask: Ask) -> list[float]:
        import torch

        text = self.tokenizer.apply_chat_template(
            workloads.openai_messages(ask.turns), tokenize=False, add_generation_prompt=True
        )
        found = [turn.picture for turn in ask.turns if turn.picture is not None]
        images = [workloads.picture(*one) for one in found]
        times = [time.perf_counter()]
        pictures = self.pictures(images=images, return_tensors="pt")
        for grid in pictures["image_grid_thw"].tolist():
            num_pads = grid[0] * grid[1] * grid[2] // 4
            text = text.replace("<|image_pad|>", "<|pad|>" * num_pads, 1)
        text = text.replace("<|pad|>", "<|image_pad|>")
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            "pixel_values": pictures["pixel_values"].to(self.model.dtype),
            "image_grid_thw": pictures["image_grid_thw"],
        }
        clock = _TokenClock(times)
        count = ask.num_new_tokens
        self.model.generate(
            **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, streamer=clock
        )
        return times


class _TokenClock:
    """A streamer that writes down when tokens come; the first call brings the prompt."""

    def __init__(self, times: list[float]) -> None:
        self.times = times
        self.has_prompt = False

    def put(self, value: object) -> None:
        """Called with the prompt, then with every token."""
        if self.has_prompt:
            self.times.append(time.perf_counter())
        self.has_prompt = True

    def end(self) -> None:
        """Called after the last token."""


class OpenVino(Runner):
    """OpenVINO GenAI's continuous batching over a model from `optimum-cli export openvino`."""

    works = ("W1", "W2", "W3")

    def __init__(self, options: Options) -> None:
        require("openvino_genai")
        self.genai: Any = importlib.import_module("openvino_genai")
        if not options.location:
            raise Skip("needs an exported model: --openvino FOLDER")
        hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}[options.precision]
        folder = Path(options.location.format(precision=options.precision))
        if not folder.is_dir():
            raise Skip(f"no exported model in {folder}")
        scheduler = self.genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_batched_tokens = 4096  # a prompt is one step, as in its own VLMPipeline
        self.pipeline = self.genai.ContinuousBatchingPipeline(
            *(str(folder), scheduler, "CPU"),
            {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": options.num_threads},
        )
        self.num_requests = 0

    def run(self, work: Work) -> Times:
        """Submits all requests, then steps until all have ended."""
        times: Times = []
        handles = []
        for ask in work.asks:
            times.append([time.perf_counter()])
            handles.append(self._submit(ask))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter()
            for handle, mine in zip(handles, times, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        mine += [now] * len(output.generated_ids)
        return times

    def _submit(self, ask: Ask) -> Any:
        import numpy as np

        openvino: Any = importlib.import_module("openvino")
        pictures = [
            openvino.Tensor(np.asarray(workloads.picture(*turn.picture))[None])
            for turn in ask.turns
            if turn.picture is not None
        ]
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = ask.num_new_tokens
        config.ignore_eos = True
        self.num_requests += 1
        text = "\n".join(turn.text for turn in ask.turns)
        return self.pipeline.add_request(
            self.num_requests, text, images=pictures, generation_config=config
        )


class LlamaServer(Runner):
    """A llama-server that the user has started with this model; --llama-server URL."""

    works = ("W1", "W2", "W3", "W4", "W5")

    def __init__(self, options: Options) -> None:
        require("httpx")
        if not options.location:
            raise Skip("needs a running server: --llama-server URL")
        self.url = options.location.rstrip("/") + "/v1/chat/completions"

    def run(self, work: Work) -> Times:
        """Sends requests from threads when they are due."""
        times: Times = [[] for _ in work.asks]
        threads: list[threading.Thread] = []
        for index, ask in enumerate(work.asks):
            if ask.after_tokens < 0:
                for thread in threads:
                    thread.join()
            while ask.after_tokens > 0 and len(times[0]) <= ask.after_tokens:
                time.sleep(0.01)
            threads.append(threading.Thread(target=self._stream, args=(ask, times[index])))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return times

    def _stream(self, ask: Ask, times: list[float]) -> None:
        import httpx

        body = {
            "messages": workloads.openai_messages(ask.turns),
            "max_tokens": ask.num_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        times.append(time.perf_counter())
        with httpx.stream("POST", self.url, json=body, timeout=600) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:]).get("choices"):
                    delta = json.loads(line[6:])["choices"][0].get("delta", {})
                    if delta.get("content"):
                        times.append(time.perf_counter())


class LlamaText(Runner):
    """llama.cpp through llama-cpp-python on the decoder alone; only its decoding compares.

    Its bindings have no way in for this model's pictures: as many random tokens stand for one.
    """

    works = ("W1",)

    def __init__(self, options: Options) -> None:
        require("llama_cpp")
        llama_cpp: Any = importlib.import_module("llama_cpp")
        file = Path(options.location.format(precision=options.precision))
        if not options.location or not file.is_file():
            raise Skip("needs a GGUF file of the decoder: --llama-text FILE")
        self.model = llama_cpp.Llama(
            *(str(file),),
            n_ctx=1024,
            n_batch=512,
            n_threads=options.num_threads,
            n_threads_batch=options.num_threads,
            verbose=False,
        )

    def run(self, work: Work) -> Times:
        """A prompt of 793 tokens, then one token after another."""
        (ask,) = work.asks
        self.model.reset()
        times = [time.perf_counter()]
        self.model.eval([(7919 * i) % 150_000 for i in range(793)])
        for index in range(ask.num_new_tokens):
            times.append(time.perf_counter())
            self.model.eval([(104_729 * index) % 150_000])
        return [times]


ENGINES: dict[str, Callable[[Options], Runner]] = {
    "visiongate": Ours,
    "transformers": Transformers,
    "openvino": OpenVino,
    "llama-server": LlamaServer,
    "llama-text": LlamaText,
}


def require(package: str) -> None:
    """Raises Skip when a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Skip(f"the package {package} is not installed")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def serve() -> None:
    """The child: options on the first line, then a work's name and run on each."""
    options = Options(**json.loads(sys.stdin.readline()))
    begin = time.perf_counter()
    try:
        runner = ENGINES[options.engine](options)
    except Skip as reason:
        reply({"skipped": str(reason)})
        return
    reply({"ready_seconds": time.perf_counter() - begin, "works": runner.works})
    for line in sys.stdin:
        name, run = line.split()
        times = runner.run(workloads.build(name, int(run)))
        reply({"times": times, "peak_bytes": peak_bytes()})


def reply(message: dict[str, Any]) -> None:
    """One line for the parent; engines may print other lines."""
    print("BENCH " + json.dumps(message), flush=True)


if __name__ == "__main__":
    serve()
