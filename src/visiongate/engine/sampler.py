"""Draws the next token: grammar mask, penalties, temperature, top-k, top-p, min-p, seeded draw.

Dimensions: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from visiongate.engine.grammar import GrammarMatcher
from visiongate.engine.tokenizer import Tokenizer
from visiongate.engine.types import SamplingParams, TokenLogprob

LEAST_TEMPERATURE = 1e-4
"""Below it the draw is the largest logit: a quotient by less overflows and means the same."""

_NUMBERS_AT_ONCE = 32


class Sampler:
    """Draws one answer's tokens; one random number for each, so a seed repeats it exactly."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        matcher: GrammarMatcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        self._counts: Counter[int] = Counter()
        self._prompt = torch.tensor(sorted(set(prompt_token_ids)), dtype=torch.long)
        self._uniforms: list[float] = []
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def is_plain(self) -> bool:
        """Whether the draw is the largest logit and nothing else."""
        p = self.params
        return (
            p.temperature < LEAST_TEMPERATURE and self.matcher is None and not self._has_penalties
        )

    @property
    def needs_host(self) -> bool:
        """Whether the draw needs more than logits and a random number: it is made here then."""
        has_logprobs = self.params.num_logprobs is not None
        return self.matcher is not None or self._has_penalties or has_logprobs

    @property
    def is_random(self) -> bool:
        """Whether a device draws it by logits and a random number."""
        return not (self.is_plain or self.needs_host)

    def uniform(self) -> float:
        """The next of the answer's random numbers, in [0, 1)."""
        if not self._uniforms:  # the same numbers, some at once
            drawn = torch.rand(_NUMBERS_AT_ONCE, generator=self._generator, dtype=torch.float64)
            self._uniforms = drawn.tolist()[::-1]
        return self._uniforms.pop()

    @property
    def _has_penalties(self) -> bool:
        p = self.params
        return bool(p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty)

    def draw(self, logits: Tensor) -> int:
        """The next token from float32 logits (V,)."""
        if self.is_plain:
            return int(logits.argmax())
        logits = logits.clone()
        if self.matcher is not None:
            allowed = torch.from_numpy(self.matcher.allowed()).to(logits.device)
            logits[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            logits[len(allowed) :] = -torch.inf
        if self._has_penalties:
            self._penalise(logits)
        if self.params.temperature < LEAST_TEMPERATURE:
            return int(logits.argmax())
        return self._draw_random(logits / self.params.temperature)

    def commit(self, token_id: int) -> None:
        """Counts a token as part of the answer."""
        self._counts[token_id] += 1

    def _penalise(self, logits: Tensor) -> None:
        p = self.params
        answer = torch.tensor(list(self._counts), dtype=torch.long, device=logits.device)
        if p.repetition_penalty != 1:
            seen = torch.unique(torch.cat((self._prompt.to(logits.device), answer)))
            values = logits[seen]
            logits[seen] = torch.where(
                values > 0, values / p.repetition_penalty, values * p.repetition_penalty
            )
        if len(answer):
            counts = torch.tensor(
                list(self._counts.values()), dtype=logits.dtype, device=logits.device
            )
            logits[answer] -= p.presence_penalty + p.frequency_penalty * counts

    def _draw_random(self, logits: Tensor) -> int:
        """One draw from what top-k, top-p and min-p leave, by inverting the cumulative sum."""
        p = self.params
        if 0 < p.top_k < len(logits):
            logits, order = logits.topk(p.top_k)
        else:
            logits, order = logits.sort(descending=True, stable=True)
        weights = logits.softmax(-1)
        keep = weights > 0
        if p.top_p < 1:
            keep &= weights.cumsum(-1) - weights < p.top_p  # the one that passes top_p stays
        if p.min_p > 0:
            keep &= weights >= p.min_p * weights[0]
        keep[0] = True
        cumulative = (weights * keep).cumsum(-1)
        target = self.uniform() * cumulative[-1].double()
        place = int(torch.searchsorted(cumulative.double(), target, right=True))
        return int(order[min(place, len(order) - 1)])


def token_logprob(
    logits: Tensor, token_id: int, num_top: int, tokenizer: Tokenizer
) -> TokenLogprob:
    """A token's log probability under the model's own distribution, with the best alternatives."""
    logprobs = logits.log_softmax(-1)
    top: tuple[tuple[int, str, float], ...] = ()
    if num_top:
        values, ids = logprobs.topk(num_top)
        top = tuple(
            (token, _text(tokenizer, token), value)
            for token, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
    return TokenLogprob(token_id, _text(tokenizer, token_id), float(logprobs[token_id]), top)


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)
