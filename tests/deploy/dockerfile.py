"""Reads a Dockerfile into stages and instructions: enough of its grammar for our own two."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments: a JSON list, or shell words."""
        if self.text.startswith("["):
            return [str(item) for item in json.loads(self.text)]
        return shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """NAME=VALUE arguments, as of ENV, ARG and LABEL."""
        found = (word.partition("=") for word in self.words)
        return {name: value for name, _, value in found}


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """Every instruction of one kind."""
        return [item for item in self.instructions if item.word == word]

    def last(self, word: str) -> Instruction:
        """The instruction that counts."""
        return self.all(word)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets, in the end."""
        found: dict[str, str] = {}
        for item in self.all("ENV"):
            found |= item.pairs
        return found


def read(path: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    stages: list[Stage] = []
    text = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        text += line.strip()
        if text.endswith("\\"):
            text = text[:-1].rstrip() + " "
            continue
        word, _, rest = text.partition(" ")
        text = ""
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base.strip(), name.strip()))
        else:
            stages[-1].instructions.append(Instruction(word, rest.strip()))
    return stages
