"""Known-answer pictures, drawn when they are needed: does the model really see?

The same questions go to an own engine and to a running server. Numbers are random, so no cache and
no memory of an answer can help.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from visiongate.cli.checks import Verdict

if TYPE_CHECKING:
    from PIL import Image

Asker = Callable[[bytes, str], Awaitable[str]]
"""Gives the answer to a question about a picture."""

FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
TURNS: Final = {3: 180, 6: 90, 8: 270}
"""EXIF orientation: how far the stored pixels were turned, counter-clockwise."""

_ITEMS: Final = ("Bread", "Milk", "Apples", "Coffee", "Sugar", "Rice", "Tea", "Butter")
_COLORS: Final = {"red": (214, 39, 40), "blue": (31, 119, 220), "green": (44, 160, 44)}


@dataclass(frozen=True, slots=True)
class Known:
    """A picture, a question and the only right answer.

    Attributes:
        box: left, top, right, bottom in thousandths, where a box is asked for.
    """

    name: str
    data: bytes
    question: str
    answer: str
    box: tuple[float, float, float, float] | None = None

    def is_answered_by(self, text: str) -> bool:
        """Whether an answer holds the truth."""
        if self.box is None:
            return _plain(self.answer) in _plain(text)
        return overlap(self.box, read_box(text)) >= 0.5


def draw_all(seed: int) -> Iterator[Known]:
    """A code to read, formats, EXIF turns, a box: in that order."""
    rng = random.Random(seed)
    receipt, answer = _receipt(rng)
    question = "What is the total?"
    yield Known("random amount", _encode(receipt, "PNG"), question, answer)
    for kind in FORMATS[1:]:
        receipt, answer = _receipt(rng)
        yield Known(f"format {kind}", _encode(receipt, kind), question, answer)
    for orientation, degrees in TURNS.items():
        receipt, answer = _receipt(rng)
        turned = receipt.rotate(degrees, expand=True)
        exif = turned.getexif()
        exif[0x0112] = orientation
        data = _encode(turned, "JPEG", exif=exif.tobytes())
        yield Known(f"EXIF turn {orientation}", data, question, answer)
    yield _shapes(rng)


async def check_sight(ask: Asker, seed: int) -> list[Verdict]:
    """Asks every known picture; one verdict each, and one for the whole."""
    found: list[Verdict] = []
    for known in draw_all(seed):
        text = (await ask(known.data, known.question)).strip()
        truth = "a box" if known.box else repr(known.answer)
        is_right = known.is_answered_by(text)
        fix = "" if is_right else "the model misread this picture; `visiongate eval` asks many"
        found.append(
            Verdict(
                f"sight: {known.name}",
                "ok" if is_right else "warning",
                f"answered {text[:60]!r}",
                f"{truth} (seed {seed})",
                fix,
            )
        )
    right = sum(verdict.level == "ok" for verdict in found)
    measured, needed = f"{right} of {len(found)} right", "more than half"
    if right * 2 > len(found):
        return [*found, Verdict("sight", "ok", measured, needed)]
    fix = "check the weights (`visiongate pull MODEL --verify`) and --precision float32"
    return [*found, Verdict("sight", "failed", measured, needed, fix)]


def read_box(text: str) -> tuple[float, float, float, float]:
    """The first four numbers in brackets of an answer; zeros where there are none."""
    found = re.search(r"\[\s*(-?[\d.]+(?:\s*,\s*-?[\d.]+){3})\s*\]", text)
    if not found:
        return (0, 0, 0, 0)
    left, top, right, bottom = (float(part) for part in json.loads(f"[{found[1]}]"))
    return left, top, right, bottom


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def _receipt(rng: random.Random) -> tuple[Image.Image, str]:
    """A receipt of three lines and its total."""
    from PIL import Image, ImageDraw, ImageFont

    cents = [rng.randint(100, 990) for _ in range(3)]
    names = rng.sample(_ITEMS, 3)
    picture = Image.new("RGB", (384, 448), "white")
    pen = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(26), ImageFont.load_default(34)
    pen.text((24, 20), "Corner Store", fill="black", font=large)
    rows = [(name, price, font) for name, price in zip(names, cents, strict=True)]
    for number, (name, price, size) in enumerate([*rows, ("Total", sum(cents), large)]):
        y = 100 + 60 * number
        pen.text((24, y), name, fill="black", font=size)
        pen.text((360, y), f"${price / 100:.2f}", fill="black", font=size, anchor="ra")
    return picture, f"${sum(cents) / 100:.2f}"


def _shapes(rng: random.Random) -> Known:
    """Two shapes; the question is where one of them is."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (448, 448), "white")
    pen = ImageDraw.Draw(picture)
    (one, rgb_one), (_, rgb_two) = rng.sample(sorted(_COLORS.items()), 2)
    size = rng.randint(90, 150)
    x, y = rng.randint(20, 60), rng.randint(20, 280)
    pen.rectangle((x, y, x + size, y + size), fill=rgb_one)
    pen.ellipse((290, 150, 400, 260), fill=rgb_two)
    box = tuple(1000 * value / 448 for value in (x, y, x + size, y + size))
    assert len(box) == 4
    question = f"Locate the {one} square and output its bbox in JSON."
    return Known("a box", _encode(picture, "PNG"), question, one, box)


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        options = {"quality": 95, **options}
    if kind == "WEBP":
        options = {"lossless": True, **options}
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text.lower())
