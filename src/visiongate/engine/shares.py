"""How much of the device's time each key had, so that two keys get about equal shares of it.

    key A   |==request==|==request==|==request==| ...      turn of A's next request: its seconds
    key B                          (arrives)  |==|         turn of B's first: at most CREDIT less

Work with an earlier turn goes first. Answers that run are never held back: a step computes them
together. What waits is the long work of a heavier key, its prompts and pictures, and only while the
key that had less has something to compute.
Source: start-time fair queueing (Goyal, Vin and Cheng, 1996), with a bounded credit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

Salt = bytes
"""What tells keys apart inside the engine: the salt of their cache."""

CREDIT_SECONDS: Final = 1.0
"""How far a key that paused may lag behind, and so go first when it comes back."""


class Shares:
    """Seconds of work per key."""

    def __init__(self) -> None:
        self._seconds: dict[Salt, float] = {}

    def enter(self, salt: Salt, active: Collection[Salt]) -> float:
        """The turn of a request that arrives beside those of the `active` keys.

        Time in which a key asked for nothing is not saved up beyond the credit.
        """
        others = [self.of(other) for other in active if other != salt]
        least = min(others) - CREDIT_SECONDS if others else 0.0
        self._seconds = {
            key: seconds for key, seconds in self._seconds.items() if key in active or key == salt
        }
        self._seconds[salt] = max(self.of(salt), least)
        return self._seconds[salt]

    def charge(self, seconds: float, parts: Mapping[Salt, int]) -> None:
        """Divides the seconds of one piece of work by how much of it was each key's."""
        whole = sum(parts.values())
        for salt, part in parts.items():
            self._seconds[salt] = self.of(salt) + seconds * part / whole

    def of(self, salt: Salt) -> float:
        """Seconds that this key had."""
        return self._seconds.get(salt, 0.0)
