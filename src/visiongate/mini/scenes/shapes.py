"""Coloured shapes: what, how many, where, and how they stand to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.camera import Box
from visiongate.mini.scenes.canvas import Colour, Mark
from visiongate.mini.scenes.sketch import Sketch
from visiongate.mini.scenes.text import COLOURS

SHAPES_KIND: Pair = ("coloured shapes", "一些彩色图形")
SHAPES: dict[str, str] = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "rectangle": "长方形",
    "diamond": "菱形",
    "hexagon": "六边形",
}
PATCH = 16


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape on the page."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    box: Box

    @property
    def name(self) -> Pair:
        """Its name in both languages."""
        return f"{self.colour} {self.shape}", COLOURS[self.colour][0] + SHAPES[self.shape]


def draw(s: Sketch) -> None:
    """Shapes on a grid of cells, so that none covers another."""
    ground = s.choose(("white", "white", "black", "gray", "", "", ""))
    background = COLOURS[ground][1] if ground else s.light()
    s.start(background)
    cell = s.choose((48, 64, 64, 96, 128))
    cell = min(cell, s.width // 2, s.height // 2)
    columns, rows = s.width // cell, s.height // cell
    count = s.between(1, min(columns * rows, int(2 + s.difficulty * 8)))
    hidden = {ground or "white"}
    colours = [c for c in COLOURS if c not in hidden]
    shapes = list(SHAPES)
    if s.chance(0.5):
        colours, shapes = s.sample(colours, s.between(1, 3)), s.sample(shapes, s.between(1, 3))
    places = s.sample([(i, j) for j in range(rows) for i in range(columns)], count)
    left, top = (s.width - columns * cell) / 2, (s.height - rows * cell) / 2
    things = []
    for i, j in places:
        radius = s.uniform(max(10, cell * 0.2), cell * 0.45)
        slack = cell / 2 - radius
        x = left + (i + 0.5) * cell + s.uniform(-slack, slack)
        y = top + (j + 0.5) * cell + s.uniform(-slack, slack)
        shape, colour = s.choose(shapes), s.choose(colours)
        outline = (90, 90, 90) if s.chance(0.3) or colour == "white" else None
        box = _paint(s, shape, x, y, radius, COLOURS[colour][1], outline)
        things.append(Thing(shape, colour, x, y, radius, box))
        _mark(s, things[-1])
    things.sort(key=lambda t: (int((t.y - top) // cell), t.x))
    _ask_counts(s, things)
    _ask_looks(s, things, ground)
    _ask_places(s, things)
    names = [t.name for t in things]
    s.ask("list_shapes", (", ".join(n[0] for n in names), "、".join(n[1] for n in names)))
    if count <= 5:
        english = ", ".join(f"{'an' if n[0][0] in 'aeiou' else 'a'} {n[0]}" for n in names)
        s.ask(
            "summary", (f"The image shows {english}.", f"图中有{'、'.join(n[1] for n in names)}。")
        )
    else:
        s.ask(
            "summary", (f"The image shows {count} coloured shapes.", f"图中有{count}个彩色图形。")
        )
    s.ask_kind(SHAPES_KIND)
    s.ask_absent(s.choose(("total", "ocr", "title", "date", "merchant", "expiry")))
    s.facts["shapes"] = count


def _paint(
    s: Sketch, shape: str, x: float, y: float, r: float, fill: Colour, outline: Colour | None
) -> Box:
    """Draws one shape; returns its bounding box."""
    pen = s.canvas.pen
    if shape in ("circle", "square", "rectangle"):
        a, b = {"circle": (r, r), "square": (r * 0.88, r * 0.88), "rectangle": (r, r * 0.5)}[shape]
        box = (x - a, y - b, x + a, y + b)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=fill, outline=outline)
        return box
    if shape == "triangle":
        points = [(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)]
    elif shape == "diamond":
        points = [(x, y - r), (x - r * 0.75, y), (x, y + r), (x + r * 0.75, y)]
    elif shape == "hexagon":
        points = [
            (x + r * math.cos(math.pi * i / 3), y + r * math.sin(math.pi * i / 3)) for i in range(6)
        ]
    else:
        points = []
        for i in range(10):
            length, angle = r if i % 2 == 0 else r * 0.42, math.pi * i / 5 - math.pi / 2
            points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    pen.polygon(points, fill=fill, outline=outline)
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _mark(s: Sketch, thing: Thing) -> None:
    """Marks the patches inside the shape with its colour and form, for the glyph loss."""
    x1, y1, x2, y2 = thing.box
    for row in range(int(y1 // PATCH), int(y2 // PATCH) + 1):
        for column in range(int(x1 // PATCH), int(x2 // PATCH) + 1):
            x, y = column * PATCH + 8, row * PATCH + 8
            if abs(x - thing.x) < thing.radius * 0.8 and abs(y - thing.y) < thing.radius * 0.8:
                s.canvas.marks.append(Mark(f"colour:{thing.colour}", x - 3, y))
                s.canvas.marks.append(Mark(f"shape:{thing.shape}", x + 1, y))


def _ask_counts(s: Sketch, things: list[Thing]) -> None:
    s.ask("num_shapes", str(len(things)))
    colour = s.choose(things).colour if s.chance(0.8) else s.choose(list(COLOURS))
    found = sum(t.colour == colour for t in things)
    s.ask("count", str(found), x=(f"{colour} shapes", f"{COLOURS[colour][0]}图形"))
    shape = s.choose(things).shape if s.chance(0.8) else s.choose(list(SHAPES))
    s.ask("count", str(sum(t.shape == shape for t in things)), x=(f"{shape}s", SHAPES[shape]))
    one = s.choose(things)
    s.ask(
        "count",
        str(sum(t.name == one.name for t in things)),
        x=(f"{one.colour} {one.shape}s", one.name[1]),
    )


def _ask_looks(s: Sketch, things: list[Thing], ground: str) -> None:
    lone_shapes = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
    lone_colours = [t for t in things if sum(o.colour == t.colour for o in things) == 1]
    if lone_shapes:
        t = s.choose(lone_shapes)
        s.ask("colour", (t.colour, COLOURS[t.colour][0]), x=(t.shape, SHAPES[t.shape]))
    if lone_colours:
        t = s.choose(lone_colours)
        s.ask("shape", (t.shape, SHAPES[t.shape]), x=(t.colour, COLOURS[t.colour][0]))
    if ground:
        s.ask("background", (ground, COLOURS[ground][0]))
    if s.chance(0.5):
        shape, colour = s.choose(list(SHAPES)), s.choose(list(COLOURS))
        name = (f"{colour} {shape}", COLOURS[colour][0] + SHAPES[shape])
    else:
        name = s.choose(things).name
    s.ask_yes_no("exists", any(t.name == name for t in things), x=name)


def _ask_places(s: Sketch, things: list[Thing]) -> None:
    if len(things) > 1:
        for key, axis, sign in (
            ("leftmost", "x", 1),
            ("rightmost", "x", -1),
            ("topmost", "y", 1),
            ("lowermost", "y", -1),
        ):
            by = sorted(things, key=lambda t: sign * float(getattr(t, axis)))
            if abs(getattr(by[0], axis) - getattr(by[1], axis)) > 12 and s.chance(0.6):
                s.ask(key, by[0].name)
        by = sorted(things, key=lambda t: -t.radius)
        if by[0].radius > by[1].radius * 1.3:
            s.ask("biggest", by[0].name)
    lone = [t for t in things if sum(o.name == t.name for o in things) == 1]
    if len(lone) > 1:
        for _ in range(2):
            a, b = s.sample(lone, 2)
            across, says_first = s.chance(0.5), s.chance(0.5)
            if across and abs(a.x - b.x) > 14:
                words = [
                    ("to the left of", "左边"),
                    ("to the right of", "右边"),
                    ("left of", "左边"),
                    ("right of", "右边"),
                ]
                i = s.between(0, 3)
                s.ask_yes_no(
                    "relation", (a.x < b.x) == (i % 2 == 0), x=a.name, y=b.name, d=words[i]
                )
            elif not across and abs(a.y - b.y) > 14:
                word = ("above", "上方") if says_first else ("below", "下方")
                s.ask_yes_no("relation", (a.y < b.y) == says_first, x=a.name, y=b.name, d=word)
    for t in s.sample(lone, 2):
        name = t.name[1 if s.asks_chinese else 0]
        s.ask_box(t.box, name, name)
    groups: dict[str, list[Thing]] = {}
    for t in things:
        groups.setdefault(t.shape, []).append(t)
    several = [k for k, g in groups.items() if 2 <= len(g) <= 4]
    if several:
        shape = s.choose(several)
        label = (shape + "s", SHAPES[shape])
        s.ask_boxes([(t.box, t.name[1 if s.asks_chinese else 0]) for t in groups[shape]], label)
