"""Finds boxes in an answer and gives them in pixels of the upright original.

Qwen3-VL writes boxes relative to the picture, 0 to 1000 on both axes:
`[{"bbox_2d": [x1, y1, x2, y2], "label": "total"}]`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image as Pillow
from PIL import ImageDraw

from visiongate.engine.types import Image

_OBJECT: Final = re.compile(r"\{[^{}]*\}")
_NUMBERS: Final = re.compile(
    r'"(?:bbox_2d|bbox|box_2d)"\s*:\s*\[\s*'
    r"(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\]"
)
_LABEL: Final = re.compile(r'"label"\s*:\s*("(?:[^"\\]|\\.)*")')
_IMAGE: Final = re.compile(r'"image"\s*:\s*(\d{1,4})')
_COLOURS: Final = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled rectangle: x1, y1, x2, y2 in pixels of picture number `image`."""

    label: str
    bbox: tuple[int, int, int, int]
    image: int = 0

    def wire(self) -> dict[str, object]:
        """The box as JSON carries it."""
        return {"label": self.label, "bbox": list(self.bbox), "image": self.image}


def find_boxes(text: str, images: Sequence[Image]) -> list[Box]:
    """The boxes of an answer, clipped to their picture; empty boxes are left out."""
    if not images or ('"bb' not in text and '"box_2d"' not in text):
        return []
    return list(_boxes(text, images))


def _boxes(text: str, images: Sequence[Image]) -> Iterator[Box]:
    for match in _OBJECT.finditer(text):
        numbers = _NUMBERS.search(match.group())
        if numbers is None:
            continue
        label = _LABEL.search(match.group())
        index = _IMAGE.search(match.group())
        number = int(index.group(1)) if index else 0
        image = images[number if number < len(images) else 0]
        width, height = image.original_width, image.original_height
        x1, x2 = sorted(_pixel(float(numbers.group(i)), width) for i in (1, 3))
        y1, y2 = sorted(_pixel(float(numbers.group(i)), height) for i in (2, 4))
        if x1 < x2 and y1 < y2:
            yield Box(_text(label), (x1, y1, x2, y2), number if number < len(images) else 0)


def draw_boxes(image: Image, boxes: Sequence[Box]) -> bytes:
    """A PNG of what the model saw, at its size, with the boxes drawn."""
    canvas = Pillow.fromarray(image.pixels)
    draw = ImageDraw.Draw(canvas)
    across, down = image.width / image.original_width, image.height / image.original_height
    for number, box in enumerate(boxes):
        colour = _COLOURS[number % len(_COLOURS)]
        x1, y1, x2, y2 = box.bbox
        place = (x1 * across, y1 * down, x2 * across, y2 * down)
        draw.rectangle(place, outline=colour, width=3)
        caption = box.label.encode("latin-1", "replace").decode("latin-1")
        draw.text((place[0] + 4, max(0.0, place[1] - 12)), caption, fill=colour)
    png = io.BytesIO()
    canvas.save(png, "PNG")
    return png.getvalue()


def _pixel(relative: float, size: int) -> int:
    return round(min(1000.0, max(0.0, relative)) * size / 1000)


def _text(label: re.Match[str] | None) -> str:
    if label is None:
        return ""
    try:
        return str(json.loads(label.group(1)))
    except ValueError:
        return label.group(1).strip('"')
