"""What `visiongate doctor` checks: facts are measured in one place, judged by plain functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check: what was measured, what is needed, what to do.

    Attributes:
        fix: what to do; empty where all is well.
        details: more lines, such as a table.
    """

    name: str
    level: Level
    measured: str
    needed: str = ""
    fix: str = ""
    details: tuple[str, ...] = ()
