"""Pictures that came as text lately: the same text again is neither decoded nor digested.

A client without sessions sends the picture with every question about it. Two texts are the same
when all their characters are; a few of them only tell which one to compare with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from visiongate.gateway.sessions import Picture

KNOWN_BYTES: Final = 32 * 1024 * 1024
_SAMPLE: Final = 64


class KnownPictures:
    """The texts seen last with the pictures that they are, within a bound of bytes."""

    def __init__(self, max_bytes: int = KNOWN_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[Hashable, tuple[str, Picture]] = OrderedDict()
        self.num_bytes = 0

    def picture(self, text: str, *wishes: Hashable, read: Callable[[], Picture]) -> Picture:
        """The picture of a text that was sent with these wishes; `read` makes it where it is new.

        What `read` raises is not remembered.
        """
        middle = len(text) // 2
        key = (len(text), text[middle : middle + _SAMPLE], text[-_SAMPLE:], *wishes)
        held = self._held.get(key)
        if held is not None and held[0] == text:
            self._held.move_to_end(key)
            return held[1]
        picture = read()
        if _size(text, picture) > self._max_bytes:
            return picture
        self._drop(key)
        self._held[key] = text, picture
        self.num_bytes += _size(text, picture)
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._held)))
        return picture

    def _drop(self, key: Hashable) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.num_bytes -= _size(*held)


def _size(text: str, picture: Picture) -> int:
    return len(text) + len(picture.data)
