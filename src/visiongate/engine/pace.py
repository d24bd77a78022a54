"""How long a step may work on prompts and pictures, by what the device was measured to take."""

from __future__ import annotations

from dataclasses import dataclass

from visiongate.engine.types import EngineSettings

SECONDS_ALONE = 6.0
"""Beside nobody who streams: a prompt in one part takes 3 to 5 % less time than in three."""

LEAST_TOKENS_ALONE = 256
LEAST_TOKENS_STREAMING = 32
"""Prompt tokens that a step computes even where that takes long: fewer would waste the weights' way
through the cache."""

PATIENCE = 2.5
"""On a GPU: prompts and pictures may take so many times a step of all streams. More streams take
longer for a step, so a crowd's pictures are through before its answers crowd the card in vain."""

MOST_PATIENCE = 2 * PATIENCE
"""Where several requests wait for each one that streams."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests whose answers stream, and others, which wait for their pictures and prompts."""

    num_streaming: int
    num_others: int


class Pace:
    """Learns seconds from steps, gives tokens and seconds to steps.

    On the CPU a step has a slice of fixed length for others while answers stream. On a GPU
    (`is_beside`: it computes beside the host) the slice grows with the streams' own step.
    """

    def __init__(self, settings: EngineSettings, *, is_beside: bool) -> None:
        self.settings = settings
        self.is_beside = is_beside
        self.forget()

    def forget(self) -> None:
        """Starts anew, after a warm-up."""
        self._seconds_per_token = 0.0  # of prompts; on the CPU beyond what answers alone take
        self._step_seconds = 0.0
        self._answers_seconds = 0.0  # of a step that only continues answers

    def note(self, seconds: float, num_prompt_tokens: int) -> bool:
        """Learns from a step; whether prompts were what took its time."""
        self._step_seconds = seconds
        if num_prompt_tokens < 16:
            self._answers_seconds = seconds
            return False
        if not self.is_beside:  # the weights' way through the caches serves answers, too
            seconds = max(seconds - self._answers_seconds, seconds / 2)
        new, old = seconds / num_prompt_tokens, self._seconds_per_token
        self._seconds_per_token = new if not old else 0.7 * old + 0.3 * new
        return True

    def prompt_tokens(self, load: Load) -> int:
        """Prompt tokens of the next step: a slice's worth while others stream, else seconds'."""
        is_streaming = load.num_streaming > 0
        least = LEAST_TOKENS_STREAMING if is_streaming else LEAST_TOKENS_ALONE
        if not self._seconds_per_token:
            return least
        seconds = SECONDS_ALONE if not (is_streaming or self.is_beside) else self._slice(load)
        return max(
            least, min(int(seconds / self._seconds_per_token), self.settings.max_step_tokens)
        )

    def picture_seconds(
        self, load: Load, *, is_one_key: bool, num_prompt_tokens: int
    ) -> float | None:
        """Seconds for pictures in a step with so many tokens of prompts; None where that is enough.

        With others' requests slices are short: where nothing else is to do that costs no time, and
        a newcomer is seen soon.
        """
        is_streaming = load.num_streaming > 0
        whole = self._slice(load)
        if is_streaming and num_prompt_tokens:
            whole -= num_prompt_tokens * self._seconds_per_token
            if not self.is_beside or whole < self.settings.slice_seconds / 5:
                return None
        if is_one_key if is_streaming else self.is_beside:
            return whole
        return min(whole, max(whole / 10, self._step_seconds))

    def _slice(self, load: Load) -> float:
        whole = self.settings.slice_seconds
        if not self.is_beside:
            return whole
        if not load.num_streaming:
            return 4 * whole  # no answer waits, and the host is ahead of the device
        patience = min(MOST_PATIENCE, PATIENCE * max(1.0, load.num_others / load.num_streaming))
        return max(whole, patience * self._answers_seconds)
