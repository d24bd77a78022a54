"""A request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from visiongate.engine.cache import BlockNamer
from visiongate.engine.guard import RepetitionGuard
from visiongate.engine.sampler import Sampler
from visiongate.engine.tokenizer import Detokenizer
from visiongate.engine.types import ImageSpan, Request
from visiongate.model.inputs import VisionFeatures


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's tokens, its place in the cache, and its clocks.

        token_ids    | prompt ......................... | answer ......... |
        computed     | num_cached |  chunk, chunk, ...  | ... |
        block_table  [  7  ][  2  ][  9  ][  4  ] ...    block_size tokens each

    Attributes:
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_prompt_tokens: tokens before the answer.
        num_prefill_tokens: what has to be computed before the next token can be drawn.
        features: per picture; None where not encoded yet, or not needed any more.
        draft: guesses for the next tokens, verified in the same step.
        turn: earlier turns go first; see `Shares`.
        stop_at: the most tokens, prompt and answer together.
        num_shown: tokens of the answer that the detokenizer has.
        num_reported: tokens of the answer that events have counted.
    """

    request: Request
    sampler: Sampler
    detokenizer: Detokenizer
    namer: BlockNamer
    stop_at: int
    token_ids: list[int] = field(init=False)
    arrival: float = field(default_factory=time.monotonic)
    block_table: list[int] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    features: list[VisionFeatures | None] = field(init=False)
    feature_hits: list[bool] = field(init=False)
    guard: RepetitionGuard = field(default_factory=RepetitionGuard)
    num_shown: int = 0
    num_reported: int = 0
    draft: list[int] = field(default_factory=list)
    draft_pause: int = 0
    admitted_at: float | None = None
    first_token_at: float | None = None
    encode_seconds: float = 0.0
    preemptions: int = 0
    turn: float = 0.0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt.token_ids)
        self.features = [None] * len(self.spans)
        self.feature_hits = [False] * len(self.spans)
        self.num_prompt_tokens = self.num_prefill_tokens = len(self.token_ids)

    @property
    def spans(self) -> tuple[ImageSpan, ...]:
        """Where the pictures stand."""
        return self.request.prompt.spans

    @property
    def salt(self) -> bytes:
        """What tells its key from others."""
        return self.request.cache_salt

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more must be computed before a token can be drawn."""
        return self.num_computed_tokens < self.num_prefill_tokens - 1

    @property
    def num_ready_tokens(self) -> int:
        """Tokens that can be computed now: up to the first picture that is not encoded yet."""
        for span, features in zip(self.spans, self.features, strict=True):
            if features is None and span.end > self.num_computed_tokens:
                return max(span.start, self.num_computed_tokens)
        return len(self.token_ids)

    def needed_images(self) -> list[int]:
        """Indexes of the pictures whose features are still to come."""
        return [
            index
            for index, span in enumerate(self.spans)
            if self.features[index] is None and span.end > self.num_computed_tokens
        ]

    def drop_used_features(self) -> None:
        """Lets go of features whose tokens are all in the cache."""
        for index, span in enumerate(self.spans):
            if span.end <= self.num_computed_tokens:
                self.features[index] = None

    @property
    def deadline(self) -> float | None:
        """When the request's time is over, on the monotonic clock."""
        seconds = self.request.deadline_seconds
        return None if seconds is None else self.arrival + seconds
