r"""Tells a thinking model's reasoning from its answer while both stream.

prompt ... <think>\n | it adds up to ... \n</think>\n\n The total is $20.47.
                     |------ reasoning ------|          |------ answer ------|
"""

from __future__ import annotations

from typing import Final

CLOSE: Final = "</think>"


class ReasoningSplitter:
    """Takes an answer's text whose prompt opened `<think>`; pieces may cut the tag anywhere."""

    def __init__(self) -> None:
        self.is_open = True
        """Whether the reasoning goes on."""
        self._held = ""  # may be the beginning of the tag
        self._strips = True  # blank space before the first words is not part of them

    def add(self, text: str) -> tuple[str, str]:
        """New reasoning and new answer."""
        if not self.is_open:
            return "", self._begin(text)
        pending = self._held + text
        thought, tag, answer = pending.partition(CLOSE)
        if tag:
            self.is_open, self._held = False, ""
            thought = self._begin(thought).rstrip()
            self._strips = True
            return thought, self._begin(answer)
        keep = _held_length(pending)
        self._held = pending[len(pending) - keep :]
        return self._begin(pending[: len(pending) - keep]), ""

    def finish(self) -> str:
        """What was held back when the text ended within the reasoning."""
        held, self._held = self._held.rstrip(), ""
        return held

    def _begin(self, text: str) -> str:
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        return text


def _held_length(text: str) -> int:
    """Length of the end of `text` that may belong to the tag, the space before it included."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if text.endswith(CLOSE[:size]):
            return len(text) - len(text[: len(text) - size].rstrip())
    return len(text) - len(text.rstrip())
