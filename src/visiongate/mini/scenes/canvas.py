"""A sheet to draw on that remembers where every glyph and line of text went."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from visiongate.mini.scenes.camera import Box, Camera
from visiongate.mini.scenes.fonts import Typeface

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class TextRun:
    """A piece of text as drawn, before the camera; `box` is tight around its ink."""

    text: str
    box: Box


@dataclass(frozen=True, slots=True)
class Mark:
    """A glyph, or a fact about a shape, at a point of the page."""

    name: str
    x: float
    y: float


@dataclass(slots=True)
class Canvas:
    """A page of `width` x `height` pixels, seen through `camera` when there is one."""

    width: int
    height: int
    background: Colour
    camera: Camera | None = None
    picture: Image.Image = field(init=False)
    pen: ImageDraw.ImageDraw = field(init=False)
    marks: list[Mark] = field(default_factory=list)
    runs: list[tuple[str, float, float, Typeface]] = field(default_factory=list)
    smallest_size: int = 1000

    def __post_init__(self) -> None:
        self.picture = Image.new("RGB", (self.width, self.height), self.background)
        self.pen = ImageDraw.Draw(self.picture)

    def text(self, x: float, middle: float, text: str, face: Typeface, fill: Colour) -> float:
        """Draws text from x on, its capitals centred on `middle`; returns its width in pixels."""
        if not text:
            return 0.0
        baseline = middle - face.cap_middle
        self.pen.text((x, baseline), text, fill, face.font, anchor="ls")
        self.runs.append((text, x, baseline, face))
        self.smallest_size = min(self.smallest_size, face.size)
        right = x
        for character in text:
            advance = face.advance(character)
            if character != " ":
                self.marks.append(Mark(character, right + advance / 2, middle))
            right += advance
        return right - x

    def text_runs(self) -> list[TextRun]:
        """Every piece of text with the box of its ink on the page."""
        return [TextRun(text, self.ink(text, x, y, face)) for text, x, y, face in self.runs]

    def ink(self, text: str, x: float, baseline: float, face: Typeface) -> Box:
        """The tight box around a text drawn at (x, baseline)."""
        left, top, right, bottom = face.font.getbbox(text, anchor="ls")
        return x + left, baseline + top, x + right, baseline + bottom

    def last_ink(self) -> Box:
        """The box of the text drawn last."""
        return self.ink(*self.runs[-1])

    def seen(self, box: Box) -> tuple[int, int, int, int]:
        """Where a box of the page shows in the photo, in thousandths of its sides."""
        x1, y1, x2, y2 = self.camera.box(box) if self.camera else box
        return (
            _thousandth(x1, self.width),
            _thousandth(y1, self.height),
            _thousandth(x2, self.width),
            _thousandth(y2, self.height),
        )

    def seen_marks(self) -> list[Mark]:
        """The marks at their points in the photo."""
        if self.camera is None:
            return self.marks
        camera = self.camera
        return [Mark(m.name, *camera.point(m.x, m.y)) for m in self.marks]


def _thousandth(value: float, whole: int) -> int:
    return max(0, min(1000, round(value / whole * 1000)))
