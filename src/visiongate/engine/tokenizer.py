"""Text to tokens and back: the checkpoint's own tokenizer, and deltas that are safe to stream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from visiongate.engine.heap import trim_heap
from visiongate.errors import InvalidCheckpoint


class Tokenizer:
    """The checkpoint's byte-level tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Reads `tokenizer.json`; raises InvalidCheckpoint when it is missing or damaged."""
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise InvalidCheckpoint(f"{path} has no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise InvalidCheckpoint(f"{file} cannot be read as a tokenizer") from error
        trim_heap()  # reading takes twice what stays: 70 MB with Qwen3-VL's
        return cls(backend)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Every added token's text and id: the control tokens, and tags such as <think>."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items()}

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds any added token's text."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in which control tokens are control tokens."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_literally(self, text: str) -> list[int]:
        """Tokens of a text in which control tokens are only letters: decodes to the same text."""
        tokens: list[int] = []
        start = 0
        for match in self.special_pattern.finditer(text):
            tokens += self.encode(text[start : match.start() + 1])  # "...<" | "|im_end|>..."
            start = match.start() + 1
        return tokens + self.encode(text[start:])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token's exact text, or None."""
        return self.backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """Tokens, the added ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)


class Detokenizer:
    """Turns a growing list of tokens into text that may be shown.

    What it gives is always whole characters, and never a beginning of a stop string that may yet be
    completed:

        tokens   Tot|al|: |€ (3 bytes in 2 tokens)|...
        shown    Tot al :   |            €
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.token_ids: list[int] = []
        self.text = ""
        """All text given out so far."""
        self.is_stopped = False
        """Whether a stop string was found; nothing follows then."""
        self._skip = skip_special_tokens
        self._prefix = 0  # decoding restarts here: a token's text can depend on its neighbours
        self._read = 0  # tokens before this are in `text` or held back
        self._held = ""  # decoded, but possibly the beginning of a stop string

    def add(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens; returns the text that became certain."""
        if self.is_stopped:
            return ""
        self.token_ids += token_ids
        before = self._decode(self._prefix, self._read)
        now = self._decode(self._prefix, len(self.token_ids))
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""  # in the middle of a character
        self._prefix, self._read = self._read, len(self.token_ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """The rest: what was held back, and an unfinished character as U+FFFD."""
        if self.is_stopped:
            return ""
        before = self._decode(self._prefix, self._read)
        now = self._decode(self._prefix, len(self.token_ids))
        self._prefix = self._read = len(self.token_ids)
        shown = self._release(now[len(before) :])
        if self.is_stopped:
            return shown
        rest, self._held = self._held, ""
        self.text += rest
        return shown + rest

    def _decode(self, start: int, stop: int) -> str:
        return self.tokenizer.decode(self.token_ids[start:stop], skip_special_tokens=self._skip)

    def _release(self, new: str) -> str:
        """Gives out what cannot be part of a stop string any more; cuts at a complete one."""
        pending = self._held + new
        found = [place for stop in self.stop if (place := pending.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = pending[: min(found)], ""
        else:
            keep = max((_overlap(pending, stop) for stop in self.stop), default=0)
            shown, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
