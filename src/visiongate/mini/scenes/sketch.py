"""What every kind of scene draws with: seeded choices, words, faces, and the list of questions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from visiongate.mini.scenes.asking import (
    ABSENT,
    FOLLOW_UPS,
    TEMPLATES,
    Pair,
    Question,
    Said,
)
from visiongate.mini.scenes.camera import Box, Camera
from visiongate.mini.scenes.canvas import BLACK, WHITE, Canvas, Colour
from visiongate.mini.scenes.fonts import BUILTIN, FontBook, Typeface
from visiongate.mini.scenes.words import Vocabulary

T = TypeVar("T")

SMALLEST_LATIN = 12  # pixels; smaller print is lost in a 16-pixel patch
SMALLEST_CHINESE = 16


class DoesNotFit(Exception):
    """The scene's words do not fit its picture; another seed may."""


@dataclass(slots=True)
class Sketch:
    """One scene in the making.

    Attributes:
        rng: the only source of chance.
        is_chinese: the language that the picture is printed in.
        difficulty: 0 (a few large words) to 1 (everything).
        questions: filled by the scene as it draws.
        facts: values that pairs of scenes are compared by.
    """

    rng: random.Random
    vocabulary: Vocabulary
    fonts: FontBook
    width: int
    height: int
    is_chinese: bool
    difficulty: float = 1.0
    camera: Camera | None = None
    canvas: Canvas = field(init=False)
    source: str = field(init=False)
    asks_chinese: bool = field(init=False)
    questions: list[Question] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.is_chinese and not self.fonts.chinese:
            self.is_chinese = False
        self.source = self.choose(self.fonts.chinese if self.is_chinese else self.fonts.latin)
        self.asks_chinese = self.chance(0.85 if self.is_chinese else 0.2)
        self.canvas = Canvas(self.width, self.height, WHITE, self.camera)

    # Chance

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]; `low` when the range is empty."""
        return self.rng.randint(low, max(low, high))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high]; `low` when the range is empty."""
        return self.rng.uniform(low, max(low, high))

    def chance(self, probability: float) -> bool:
        """True with the probability."""
        return self.rng.random() < probability

    def choose(self, things: Sequence[T]) -> T:
        """One of the things."""
        return things[int(self.rng.random() * len(things))]

    def sample(self, things: Sequence[T], count: int) -> list[T]:
        """Up to `count` different places of the sequence."""
        return self.rng.sample(things, min(count, len(things)))

    def distinct(self, make: Callable[[], str], count: int) -> list[str]:
        """Up to `count` different strings from the maker."""
        found: dict[str, None] = {}
        for _ in range(count * 6):
            if len(found) == count:
                break
            found[make()] = None
        return list(found)

    def say(self, english: T, chinese: T) -> T:
        """The one in the picture's language."""
        return chinese if self.is_chinese else english

    # Faces and colours

    def face(self, size: int) -> Typeface:
        """The scene's face at a size."""
        return self.fonts.face(self.source, size)

    def bold_face(self, size: int) -> Typeface:
        """The scene's face in bold, where there is one."""
        return self.fonts.face(self.fonts.bold(self.source), size)

    def fit(
        self, texts: Sequence[str], width: float, largest: float, smallest: int | None = None
    ) -> Typeface:
        """The largest face, up to `largest`, in which the widest text fits the width.

        Raises DoesNotFit when that is smaller than print that can be read.
        """
        probe = self.face(32)
        widest = max(probe.width(t) for t in texts) / 32
        size = int(min(largest, width / max(widest, 0.1)))
        if size < (smallest or self.smallest_size):
            raise DoesNotFit
        return self.face(size)

    @property
    def smallest_size(self) -> int:
        """The smallest print of the scene's language, in pixels; larger when seen at an angle."""
        smallest = SMALLEST_CHINESE if self.is_chinese else SMALLEST_LATIN
        return smallest + 2 if self.camera else smallest

    def largest_size(self, usual: int) -> int:
        """A random upper limit for print: mostly the usual, sometimes up to three times that."""
        return self.between(self.smallest_size + 2, usual * (3 if self.chance(0.25) else 1))

    def light(self) -> Colour:
        """A paper colour."""
        if self.chance(0.45):
            return WHITE
        base = self.between(215, 255)
        red, green, blue = (base - self.between(0, 28) for _ in range(3))
        return red, green, blue

    def dark(self) -> Colour:
        """An ink colour."""
        if self.chance(0.6):
            level = self.between(0, 60)
            return level, level, level
        red, green, blue = (self.between(0, 110) for _ in range(3))
        return red, green, blue

    def paper(self) -> Colour:
        """Starts the picture on a fresh sheet of paper; returns an ink that shows on it."""
        dark_mode = self.chance(0.1)
        sheet, ink = self.light(), self.dark()
        if dark_mode:
            sheet, ink = (
                (self.between(5, 60), self.between(5, 60), self.between(5, 60)),
                (self.between(215, 255), self.between(215, 255), self.between(200, 255)),
            )
        self.start(sheet)
        return ink

    def start(self, background: Colour) -> Canvas:
        """Starts the picture on a background; what was drawn and asked before is dropped."""
        self.canvas = Canvas(self.width, self.height, background, self.camera)
        self.questions.clear()
        self.transcript.clear()
        self.facts.clear()
        return self.canvas

    def write(
        self, x: float, middle: float, text: str, face: Typeface, fill: Colour = BLACK
    ) -> float:
        """Draws text and adds it to the page's transcript as a line of its own."""
        self.transcript.append(text)
        return self.canvas.text(x, middle, text, face, fill)

    # Questions

    def ask(self, key: str, answer: Said, *, kind: str = "", **slots: Said) -> None:
        """Adds a question from the template `key`, in one of the two languages."""
        template = TEMPLATES[key]
        chinese = self.asks_chinese if self.chance(0.9) else not self.asks_chinese
        filled = {name: _in(value, chinese) for name, value in slots.items()}
        wording = self.choose(template.chinese if chinese else template.english)
        follow_up = follows = ""
        if template.noun or list(slots) == ["x"]:
            noun = _in(template.noun, chinese) if template.noun else filled["x"]
            follow_up = _in(self.choose(FOLLOW_UPS), chinese).format(x=noun)
            follows = "" if template.noun else key
        self.questions.append(
            Question(
                kind or template.kind,
                key,
                self._vary(wording.format(**filled), chinese),
                _in(answer, chinese),
                chinese,
                follow_up,
                follows,
            )
        )

    def ask_absent(self, key: str, **slots: Said) -> None:
        """Adds a question about something that the picture does not show."""
        self.ask(key, ABSENT, kind="absent", **slots)

    def ask_transcript(self) -> None:
        """Adds the question for all text on the page."""
        self.ask("ocr", "\n".join(self.transcript))

    def ask_kind(self, name: Pair) -> None:
        """Adds the question what the picture is, and remembers the kind for comparisons."""
        english, chinese = name
        self.facts["kind"] = name
        self.ask("kind", (f"{english[0].upper()}{english[1:]}.", f"{chinese}。"))

    def ask_json(self, fields: dict[Pair, str], missing: Sequence[Pair] = ()) -> None:
        """Adds a question for two to four of the fields as JSON; a missing one becomes null."""
        chinese = self.asks_chinese and self.chance(0.6)
        chosen: list[tuple[Pair, str | None]] = list(
            self.sample(list(fields.items()), self.between(2, 4))
        )
        if missing and self.chance(0.12):
            chosen.append((self.choose(missing), None))
        answer = {_in(name, chinese): value for name, value in chosen}
        template = TEMPLATES["json"]
        wording = self.choose(template.chinese if chinese else template.english)
        names = ("、" if chinese else ", ").join(answer)
        text = self._vary(wording.format(x=names), chinese)
        body = json.dumps(answer, ensure_ascii=False)
        self.questions.append(Question("json", "json", text, body, chinese))

    def ask_box(self, box: Box, name: Said, label: Said, *, key: str = "box") -> None:
        """Adds the question where something is; the answer is Qwen3-VL's list of one box."""
        chinese = self.asks_chinese
        shown = self.canvas.seen(box)
        answer = json.dumps(
            [{"bbox_2d": list(shown), "label": _in(label, chinese)}], ensure_ascii=False
        )
        self.ask_in(key, answer, chinese, x=_in(name, chinese))

    def ask_text_box(self) -> None:
        """Adds questions where two pieces of text are that the page holds once.

        Boxes under 5 % of the width or 2 % of the height are not asked for: a digit's box is
        finer than the thousandths of the answer resolve.
        """
        runs = self.canvas.runs
        texts = [run[0] for run in runs]
        for run in self.sample(runs, 2):
            x1, y1, x2, y2 = box = self.canvas.ink(*run)
            is_large = x2 - x1 > 0.05 * self.width and y2 - y1 > 0.02 * self.height
            if is_large and texts.count(run[0]) == 1 and len(run[0]) < 28:
                name = (f'text "{run[0]}"', f"文字“{run[0]}”")
                self.ask_box(box, name, run[0])

    def ask_boxes(self, boxes: Sequence[tuple[Box, str]], name: Said) -> None:
        """Adds the question where all things of a kind are, in reading order."""
        chinese = self.asks_chinese
        found = [{"bbox_2d": list(self.canvas.seen(box)), "label": text} for box, text in boxes]
        answer = json.dumps(found, ensure_ascii=False)
        self.ask_in("boxes", answer, chinese, x=_in(name, chinese))

    def ask_point(self, box: Box, name: str) -> None:
        """Adds the question where to click for something."""
        x1, y1, x2, y2 = self.canvas.seen(box)
        point = {"point_2d": [(x1 + x2) // 2, (y1 + y2) // 2], "label": name}
        self.ask_in("point", json.dumps(point, ensure_ascii=False), self.asks_chinese, x=name)

    def ask_yes_no(self, key: str, is_so: bool, *, kind: str = "", **slots: Said) -> None:
        """Adds a question that is answered yes or no."""
        self.ask(key, ("Yes", "是") if is_so else ("No", "否"), kind=kind, **slots)

    def ask_in(self, key: str, answer: str, chinese: bool, **slots: str) -> None:
        """Adds a question in the language given."""
        template = TEMPLATES[key]
        wording = self.choose(template.chinese if chinese else template.english)
        text = self._vary(wording.format(**slots), chinese)
        self.questions.append(Question(template.kind, key, text, answer, chinese))

    def _vary(self, question: str, chinese: bool) -> str:
        """The question as people type it: no full stop, lower case, a polite word, a hint."""
        dice = self.rng.random()
        if dice < 0.12:
            return question.rstrip(".?。")
        if dice < 0.18 and not chinese:
            return question[0].lower() + question[1:]
        if dice < 0.24:
            if chinese:
                return "请" + question if question[0] != "请" else question
            return f"Please {question[0].lower()}{question[1:]}"
        if dice < 0.27:
            return question + ("请简短回答。" if chinese else " Answer briefly.")
        if dice < 0.3 and chinese:
            return question.replace("?", "？").replace(",", "，").replace(":", "：")
        return question


def _in(said: Said, chinese: bool) -> str:
    return said if isinstance(said, str) else said[1 if chinese else 0]


__all__ = ["BUILTIN", "DoesNotFit", "Sketch"]
