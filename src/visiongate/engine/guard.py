"""Notices an answer that has begun to repeat itself, so that it can end at its last good part."""

from __future__ import annotations

MAX_PERIOD = 64
SUSPECT_TOKENS = 24
STOP_TOKENS = 96
MIN_REPEATS = 4


class RepetitionGuard:
    """Follows the tokens of one answer and measures how long its end has been periodic.

    After `tokens t0 t1 ...` with the last ones a unit of p tokens over and over:

        A B C  D E F  D E F  D E F  D E F        period 3
               `---- first unit stays ---'
    From SUSPECT_TOKENS of repetition on, the repeats are not shown yet; when the loop ends they
    are; when it reaches STOP_TOKENS (and MIN_REPEATS units) it is a loop, and they are cut.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._runs = [0] * (MAX_PERIOD + 1)  # how many last tokens equal the one `period` before

    def add(self, token_id: int) -> None:
        """Takes the next token."""
        self._tokens.append(token_id)
        count = len(self._tokens)
        for period in range(1, min(MAX_PERIOD, count - 1) + 1):
            same = self._tokens[count - 1 - period] == token_id
            self._runs[period] = self._runs[period] + 1 if same else 0

    @property
    def num_repeated(self) -> int:
        """Tokens at the end that only repeat what stands before them, 0 when too few to matter."""
        return max(
            (run for period, run in enumerate(self._runs) if period and run >= 2 * period
             and run + period >= SUSPECT_TOKENS),
            default=0,
        )  # fmt: skip

    @property
    def is_looping(self) -> bool:
        """Whether the answer should be stopped."""
        return any(
            run + period >= STOP_TOKENS and run >= (MIN_REPEATS - 1) * period
            for period, run in enumerate(self._runs)
            if period
        )
