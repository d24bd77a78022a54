"""Rows of print, as on receipts, menus and orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from visiongate.mini.scenes.canvas import Colour
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch

Style = Literal["centre", "left", "pair", "columns", "indent", "rule"]
RULE_HEIGHT = 0.5  # of a row


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its texts from left to right, and how they are set."""

    style: Style
    texts: tuple[str, ...] = ()
    is_bold: bool = False

    @property
    def height(self) -> float:
        """The height in rows."""
        return RULE_HEIGHT if self.style == "rule" else 1.0


def choose_size(s: Sketch, rows: Sequence[Row], width: float, height: float, largest: int) -> int:
    """The largest size at which every row fits; raises DoesNotFit below readable print."""
    probe = s.face(32)
    bold = s.bold_face(32)
    widest = 0.1
    for row in rows:
        face = bold if row.is_bold else probe
        gap = {"pair": 20.0, "columns": 28.0, "indent": 24.0}.get(row.style, 0.0)
        widest = max(
            widest, (sum(map(face.width, row.texts)) + gap * max(1, len(row.texts) - 1)) / 32
        )
    total = sum(row.height for row in rows)
    size = int(min(largest, width / widest, height / total / 1.12))
    if size < s.smallest_size:
        raise DoesNotFit
    return size


def draw_rows(
    s: Sketch,
    rows: Sequence[Row],
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    size: int,
    ink: Colour,
    column_edges: tuple[float, ...] = (),
    dotted: bool = False,
) -> list[list[int]]:
    """Draws the rows between the margins; returns, per row, the indices of its text runs.

    `column_edges` are the right edges of all columns but the first, as fractions of the width.
    """
    total = sum(row.height for row in rows)
    line = max(size * 1.08, min((bottom - top) / total, size * s.uniform(1.12, 1.75)))
    y = top + s.uniform(0, bottom - top - line * total)
    face, bold = s.face(size), s.bold_face(size)
    rule_gap = s.choose((0, 4, 9))
    placed: list[list[int]] = []
    canvas = s.canvas
    for row in rows:
        middle = y + line * row.height / 2
        used = bold if row.is_bold else face
        start = len(canvas.runs)
        if row.style == "rule":
            _rule(s, left, right, middle, rule_gap, ink)
        elif row.style == "centre":
            canvas.text(
                (left + right - used.width(row.texts[0])) / 2, middle, row.texts[0], used, ink
            )
        elif row.style == "left":
            canvas.text(left, middle, row.texts[0], used, ink)
        elif row.style == "indent":
            canvas.text(left + size, middle, row.texts[0], used, ink)
        elif row.style == "pair":
            first, last = row.texts
            stop = right - used.width(last)
            end = left + canvas.text(left, middle, first, used, ink)
            canvas.text(stop, middle, last, used, ink)
            if dotted:
                for x in range(int(end + 6), int(stop - 5), 6):
                    canvas.pen.point((x, middle + size * 0.28), ink)
        else:
            canvas.text(left, middle, row.texts[0], used, ink)
            for text, edge in zip(row.texts[1:], column_edges, strict=True):
                canvas.text(
                    left + (right - left) * edge - used.width(text), middle, text, used, ink
                )
        if row.texts:
            s.transcript.append(" ".join(t for t in row.texts if t))
        placed.append(list(range(start, len(canvas.runs))))
        y += line * row.height
    return placed


def _rule(s: Sketch, left: float, right: float, y: float, gap: int, ink: Colour) -> None:
    if not gap:
        s.canvas.pen.line((left, y, right, y), ink)
        return
    x = left
    while x < right:
        s.canvas.pen.line((x, y, min(right, x + 5), y), ink)
        x += 5 + gap
