"""The words of the engine: what a request is, and what comes back.

Everything here crosses the border between the gateway's process and the worker's, so it is plain
data (numpy arrays, no tensors) and can be pickled.

    picture bytes --image.decode--> Image --+
    messages --------------------------------+--prompt.PromptBuilder--> Prompt --+
    sampling parameters ---------------------------------------------------------+--> Request
    Request --engine--> TokenEvent, TokenEvent, ..., TokenEvent(finish_reason or error set)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

FinishReason = Literal["stop", "length", "repetition", "abort", "deadline"]
"""Why a sequence ended: an end token or stop string; `max_tokens` or the context; the repetition
guard; the caller left; the request's own deadline."""

Precision = Literal["float32", "bfloat16", "int8", "float8"]
"""How linear maps are stored and multiplied; float32 keeps bfloat16 weights as they are."""

GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]


class Crossing:
    """What crosses the border: pickled as its class and its fields in order.

    A frozen dataclass with slots is otherwise pickled by `dataclasses` itself, through a list of
    its fields that is made anew for every object: three times as slow.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Calls the class again on the other side."""
        return type(self), tuple([getattr(self, name) for name in self.__dataclass_fields__])


@dataclass(frozen=True, slots=True)
class Grammar(Crossing):
    """A constraint that the answer must follow: the schema, expression or grammar as text."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams(Crossing):
    """How the next token is drawn. `temperature` 0 is greedy: the most likely token, always.

    Attributes:
        max_tokens: the most tokens to generate, at least 1.
        temperature: 0 to 2.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach this sum.
        min_p: drop tokens less likely than this share of the most likely one.
        repetition_penalty: over 1 makes tokens of prompt and answer less likely.
        presence_penalty: taken once from the logit of each token already in the answer.
        frequency_penalty: taken once for each time a token stands in the answer.
        seed: makes the draw repeatable; None draws afresh.
        stop: strings that end the answer; they are not part of it.
        num_logprobs: None for none, else how many alternatives to report with each token.
        grammar: what the answer must follow.
        ignore_eos: go on past end tokens (benchmarks).
        guard: stop an answer that repeats itself.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    grammar: Grammar | None = None
    ignore_eos: bool = False
    guard: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Image(Crossing):
    """A picture, read, upright and at the size that the model sees.

    Attributes:
        pixels: uint8 (height, width, 3), RGB; both sides are multiples of 32.
        digest: 32 bytes over mode, size, orientation, preprocessing and pixels; equal digests mean
            that the model sees the same picture.
        format: "JPEG", "PNG", ...
        original_width, original_height: in pixels, after the picture was made upright.
        orientation: the EXIF orientation that was applied, 1 for none.
        num_tokens: visual tokens: (height / 32) * (width / 32).
        warnings: sentences for the user, such as small text that is probably lost.
        decode_seconds: time spent reading and scaling.
    """

    pixels: npt.NDArray[np.uint8]
    digest: bytes
    format: str
    original_width: int
    original_height: int
    orientation: int = 1
    warnings: tuple[str, ...] = ()
    decode_seconds: float = 0.0

    @property
    def height(self) -> int:
        """The height that the model sees, in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """The width that the model sees, in pixels."""
        return int(self.pixels.shape[1])

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Patches in time, down and across (patches are 16 pixels wide)."""
        return 1, self.height // 16, self.width // 16

    @property
    def num_tokens(self) -> int:
        """Visual tokens in the prompt."""
        return self.height // 32 * (self.width // 32)


@dataclass(frozen=True, slots=True, eq=False)
class ImageSpan(Crossing):
    """Where an image's visual tokens stand in a prompt: tokens [start, end)."""

    start: int
    image: Image

    @property
    def end(self) -> int:
        """One past the last visual token."""
        return self.start + self.image.num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Prompt(Crossing):
    """A tokenised conversation with its pictures.

    Attributes:
        token_ids: the tokens, with an image pad for every visual token.
        positions: int32 (3, T): time, height, width position of every token (interleaved M-RoPE).
        rope_delta: the position of generated token i is T + i + rope_delta.
        spans: the pictures, in prompt order.
    """

    token_ids: list[int]
    positions: npt.NDArray[np.int32]
    rope_delta: int
    spans: tuple[ImageSpan, ...] = ()

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of all pictures."""
        return sum(span.image.num_tokens for span in self.spans)


@dataclass(frozen=True, slots=True, eq=False)
class Request(Crossing):
    """One answer to be generated.

    Attributes:
        request_id: unique among running requests.
        cache_salt: prefixes and features are shared only between equal salts (one per API key).
        deadline_seconds: ends with `deadline` this long after the worker got it; None for never.
        priority: lower goes first among waiting requests; batch work uses 1.
        is_streamed: whether somebody reads the events as they come; else the worker sends them all
            with the last.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    cache_salt: bytes = b""
    deadline_seconds: float | None = None
    priority: int = 0
    is_streamed: bool = True


@dataclass(frozen=True, slots=True)
class TokenLogprob(Crossing):
    """A generated token's log probability and its most likely alternatives."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage(Crossing):
    """What one request used. Times are seconds, measured inside the worker.

    Attributes:
        cached_tokens: prompt tokens whose keys and values were already there.
        queue_seconds: from arrival in the worker to the first step that worked for it.
        encode_seconds: vision tower.
        prefill_seconds: from the end of waiting and encoding to the first token.
        first_token_seconds: from arrival to the first token.
        total_seconds: from arrival to the last token.
        feature_hits: per picture, whether the vision tower was not needed.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    feature_hits: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent(Crossing):
    """One step's news of one request; the last one has `finish_reason` or `error` set.

    Attributes:
        text: new text: valid UTF-8 and past any possible stop string; may be empty.
        num_tokens: tokens that this event adds to the answer.
        usage: set on the last event.
        error: set when the request failed; what was streamed before stands.
    """

    request_id: str
    text: str = ""
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: Exception | None = None

    @property
    def is_final(self) -> bool:
        """Whether no further event follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine uses its device.

    Attributes:
        max_num_seqs: sequences that run together.
        max_prefills: prompts that are computed together in one step (BATCH_SIZE).
        max_step_tokens: tokens of one step.
        cache_tokens: tokens whose keys and values fit; also bounds the context.
        feature_cache_bytes: pictures' features that are kept.
        slice_seconds: how long a step may work for others while streams run.
        use_onnx_runtime: encode pictures in ONNX Runtime instead of our kernels (CPU).
        drafts: guess repeated text ahead (prompt lookup) and verify the guesses in one step.
        chunk_tokens: the most tokens of a prompt's chunk, where the prompt alone is to decide how
            it is cut (GPUs: other cuts give other bits); 0 cuts by what a step has room for.
        device_memory_bytes: the most that a GPU's process may use of the card; 0 for all of it.
    """

    precision: Precision = "float32"
    device: str = "cpu"
    num_threads: int | None = None
    max_num_seqs: int = 3
    max_prefills: int = 1
    max_step_tokens: int = 1024
    cache_tokens: int = 16384
    block_size: int = 16
    feature_cache_bytes: int = 256 * 1024 * 1024
    slice_seconds: float = 0.7
    drafts: bool = True
    use_onnx_runtime: bool = False
    chunk_tokens: int = 0
    device_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker process loads, and how it runs.

    Attributes:
        model_path: a checkpoint folder.
        model_id: the name that the API shows.
        fall_back_to_cpu: where the device cannot be used, load on the CPU and say `degraded`.
        check_seconds: how often the device is checked by a tiny computation.
    """

    model_path: str
    model_id: str
    engine: EngineSettings = field(default_factory=EngineSettings)
    fall_back_to_cpu: bool = True
    check_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class EngineStats(Crossing):
    """A worker's state at one moment, sent with every heartbeat and after busy steps.

    Attributes:
        num_running: sequences that hold cache blocks.
        num_waiting: sequences that wait for a place.
        steps: steps done since the start; a busy engine whose count stands still is stuck.
        cache_hit_tokens, prompt_tokens: totals since the start.
        device_temperature: of a GPU, degrees Celsius; None where unknown.
        device_utilisation: share of the time in which a GPU computes, 0 to 1; None where unknown.
    """

    num_running: int = 0
    num_waiting: int = 0
    steps: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    block_size: int = 16
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cache_hit_tokens: int = 0
    feature_hits: int = 0
    feature_misses: int = 0
    preemptions: int = 0
    encode_seconds: float = 0.0
    encoded_patches: int = 0
    prefill_seconds: float = 0.0
    prefilled_tokens: int = 0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0
    rss_bytes: int = 0
    device_memory_bytes: int = 0
    device_memory_total_bytes: int = 0
    device_temperature: int | None = None
    device_utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker has loaded; the gateway shows it and builds prompts by it.

    Attributes:
        model_id: the name that the API shows.
        path: the folder the model was loaded from.
        revision: a commit of a hub, or the digest of the weights' headers.
        precision: "float32", "bfloat16", "int8" or "float8".
        device: "cpu" or "cuda:0".
        backend: which kernels compute, in words ("torch", "avx512", "triton").
        load_seconds: time from the worker's start to ready, by stage.
    """

    model_id: str
    path: str
    revision: str
    num_parameters: int
    precision: str
    device: str
    backend: str
    max_context_tokens: int
    num_threads: int
    weights_bytes: int = 0
    cache_tokens: int = 0
    degraded: str = ""
    load_seconds: dict[str, float] = field(default_factory=dict)
