"""Guesses for the next tokens: what followed the last time the same words stood in the text.

Answers that read a picture repeat themselves and the question (keys of JSON, columns, units). A
guess costs one more row in a step that is bound by reading the weights; a right one saves a step.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_DRAFT = 6
LONGEST_MATCH = 4
SHORTEST_MATCH = 2
WINDOW = 1024


def propose(token_ids: Sequence[int]) -> list[int]:
    """Up to MAX_DRAFT tokens that followed the latest earlier place with the same last tokens."""
    tokens = list(token_ids[-WINDOW:])
    end = len(tokens)
    for length in range(min(LONGEST_MATCH, end - 1), SHORTEST_MATCH - 1, -1):
        tail = tokens[end - length :]
        for start in range(end - length - 1, -1, -1):
            if tokens[start] == tail[0] and tokens[start : start + length] == tail:
                return tokens[start + length : start + length + MAX_DRAFT]
    return []
