"""The same text again is the same picture, made once; another text never is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from visiongate.errors import InvalidImage
from visiongate.gateway.known import KnownPictures
from visiongate.gateway.sessions import Picture


class Reader:
    """Makes pictures of texts and counts them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def of(self, text: str) -> Callable[[], Picture]:
        def read() -> Picture:
            self.texts.append(text)
            return Picture(text.encode())

        return read


def test_a_text_that_comes_again_is_read_once() -> None:
    known, reader = KnownPictures(), Reader()
    text = "data:," + "x" * 500
    first = known.picture(text, "auto", read=reader.of(text))
    again = known.picture("".join(["data:,", "x" * 500]), "auto", read=reader.of(text))
    assert again is first
    assert len(reader.texts) == 1


@pytest.mark.parametrize("place", [0, 100, 250, 300, 400, 499])
def test_one_other_character_anywhere_is_another_picture(place: int) -> None:
    known, reader = KnownPictures(), Reader()
    text = "x" * 500
    other = text[:place] + "y" + text[place + 1 :]
    for wanted in (text, other, text, other):
        assert known.picture(wanted, read=reader.of(wanted)).data == wanted.encode()
    assert known.num_bytes <= 2 * 2 * 500


def test_other_wishes_are_another_picture() -> None:
    known, reader = KnownPictures(), Reader()
    for detail in ("low", "high", "low"):
        known.picture("text", detail, 1024, read=reader.of("text"))
    assert len(reader.texts) == 2


def test_what_cannot_be_read_is_not_remembered() -> None:
    known, reader = KnownPictures(), Reader()

    def broken() -> Picture:
        raise InvalidImage("no picture")

    with pytest.raises(InvalidImage):
        known.picture("text", read=broken)
    assert known.num_bytes == 0
    assert known.picture("text", read=reader.of("text")).data == b"text"


def test_the_oldest_go_first_and_none_is_kept_that_is_over_the_bound() -> None:
    known, reader = KnownPictures(max_bytes=40), Reader()
    for text in ("a" * 8, "b" * 8, "a" * 8, "c" * 8):
        known.picture(text, read=reader.of(text))
    assert known.num_bytes == 32
    known.picture("a" * 8, read=reader.of("again"))
    assert "again" not in reader.texts
    assert known.picture("d" * 21, read=reader.of("d" * 21)).data == b"d" * 21
    assert known.num_bytes == 32
