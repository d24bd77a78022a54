"""Measures any model that answers questions about pictures, on drawings it has never seen.

    report = run_evaluation(answer, num_questions=500, seed=777, kinds=None, progress=print_line)
    print(report.table()); Path("eval.json").write_text(report.to_json())

`answer(images, messages)` takes PIL pictures and chat messages whose picture parts are
{"type": "image"} in order, and returns the text. `served_model` makes one from a base URL.

Questions come from the held-out split: seeds, words and, where Debian's fonts are installed,
typefaces that training never used.
"""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from visiongate.mini import scenes
from visiongate.mini.scenes.asking import Question
from visiongate.mini.scenes.fonts import FontBook, system_fonts
from visiongate.mini.scenes.words import Vocabulary, small_vocabulary

Message = dict[str, Any]
Answer = Callable[[list[Image.Image], list[Message]], str]
Progress = Callable[[int, int], None]

BOX_THRESHOLD = 0.5  # intersection over union from which a box counts as found
POINT_TOLERANCE = 50  # thousandths of the picture's side
JSON_KINDS = ("json", "menu_json", "repair_json")
CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out question as it is put to a model."""

    kind: str
    scene: str
    images: tuple[Image.Image, ...]
    messages: tuple[Message, ...]
    truth: str
    is_chinese: bool


@dataclass(frozen=True, slots=True)
class Result:
    """A case's answer and its marks.

    Attributes:
        is_right: exactly the truth; for boxes and points, near enough.
        distance: characters to change to reach the truth, for full-page reading; else 0.
        overlap: intersection over union, for boxes; else None.
        field_f1: over the JSON fields, for JSON answers; else None.
    """

    kind: str
    scene: str
    question: str
    truth: str
    answer: str
    is_right: bool
    is_chinese: bool
    distance: int = 0
    overlap: float | None = None
    field_f1: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How many were right, with a 95 % Wilson interval."""

    name: str
    right: int
    total: int

    @property
    def share(self) -> float:
        """The share that is right."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.right, self.total)


@dataclass(slots=True)
class EvalReport:
    """All results of a run, and the tables made of them."""

    results: list[Result]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def overall(self) -> Score:
        """Over all questions."""
        return _score("all", self.results)

    def by_kind(self) -> list[Score]:
        """One score for each kind of question, in alphabetical order."""
        return self._by(lambda r: r.kind)

    def by_language(self) -> list[Score]:
        """One score for questions in English and one for Chinese."""
        return self._by(lambda r: "Chinese" if r.is_chinese else "English")

    def by_scene(self) -> list[Score]:
        """One score for each kind of picture."""
        return self._by(lambda r: r.scene)

    @property
    def character_error_rate(self) -> float:
        """Wrong characters over all characters, in full-page reading."""
        read = [r for r in self.results if r.kind == "ocr"]
        letters = sum(len(r.truth) for r in read)
        return sum(r.distance for r in read) / letters if letters else math.nan

    @property
    def mean_overlap(self) -> float:
        """The mean intersection over union of boxes."""
        return _mean(r.overlap for r in self.results if r.overlap is not None)

    @property
    def mean_field_f1(self) -> float:
        """The mean F1 over JSON fields."""
        return _mean(r.field_f1 for r in self.results if r.field_f1 is not None)

    def table(self) -> str:
        """The scores for people to read."""
        lines = [f"{'':22}{'right':>12}{'share':>9}{'95 % interval':>18}"]
        groups = ([self.overall], self.by_language(), self.by_kind())
        for group in groups:
            for score in group:
                low, high = score.interval
                counted, range_ = f"{score.right}/{score.total}", f"{low:.1%} .. {high:.1%}"
                lines.append(f"{score.name:22}{counted:>12}{score.share:>9.1%}{range_:>18}")
            lines.append("")
        lines.append(f"character error, full page {self.character_error_rate:.2%}")
        lines.append(f"boxes, mean overlap        {self.mean_overlap:.3f}")
        lines.append(f"JSON, mean field F1        {self.mean_field_f1:.3f}")
        lines.append(f"seconds                    {self.seconds:.0f}")
        return "\n".join(lines)

    def to_json(self, *, with_results: bool = False) -> str:
        """The scores for programs; with every question and answer where asked for."""

        def plain(score: Score) -> dict[str, Any]:
            return {**asdict(score), "share": round(score.share, 4), "interval": score.interval}

        body: dict[str, Any] = {
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "overall": plain(self.overall),
            "by_language": [plain(s) for s in self.by_language()],
            "by_kind": [plain(s) for s in self.by_kind()],
            "by_scene": [plain(s) for s in self.by_scene()],
            "character_error_rate": _or_none(self.character_error_rate),
            "mean_overlap": _or_none(self.mean_overlap),
            "mean_field_f1": _or_none(self.mean_field_f1),
        }
        if with_results:
            body["results"] = [asdict(r) for r in self.results]
        return json.dumps(body, ensure_ascii=False)

    def _by(self, name: Callable[[Result], str]) -> list[Score]:
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(name(result), []).append(result)
        return [_score(key, groups[key]) for key in sorted(groups)]


def run_evaluation(
    answer: Answer,
    *,
    num_questions: int = 500,
    seed: int = 777,
    kinds: Sequence[str] | None = None,
    progress: Progress | None = None,
    settings: dict[str, Any] | None = None,
) -> EvalReport:
    """Asks held-out questions, one after another, and marks the answers.

    `kinds` keeps only those kinds of question; `progress(done, total)` is called after each.
    """
    cases = make_cases(num_questions, seed=seed, kinds=kinds)
    start = time.monotonic()
    results = []
    for number, case in enumerate(cases, 1):
        results.append(mark(case, answer(list(case.images), list(case.messages))))
        if progress:
            progress(number, len(cases))
    facts = {
        "num_questions": len(cases),
        "seed": seed,
        "kinds": list(kinds or ()),
        **(settings or {}),
    }
    return EvalReport(results, time.monotonic() - start, facts)


def make_cases(
    num_questions: int,
    *,
    seed: int = 777,
    kinds: Sequence[str] | None = None,
    fonts: FontBook | None = None,
    vocabulary: Vocabulary | None = None,
    questions_per_scene: int = 4,
) -> list[Case]:
    """Held-out cases, each kind of question about equally often.

    Three in ten pictures use held-out faces; a quarter are seen as by a phone.
    """
    words = (vocabulary or small_vocabulary()).split("test")
    rng = random.Random(f"evaluation:{seed}")
    cases: list[Case] = []
    asked: Counter[str] = Counter()
    number = 0
    while len(cases) < num_questions:
        number += 1
        if number > 400 + 100 * num_questions:
            raise ValueError(f"no question of kind {', '.join(kinds or ())}; known: see by_kind()")
        try:
            found = _cases_of_round(number, rng, fonts, words)
        except scenes.DoesNotFit:  # rare, with few words; another seed fits
            continue
        if kinds:
            found = [c for c in found if c.kind in kinds]
        else:
            found = _spread(found, questions_per_scene, rng, asked)
        cases += found
        asked.update(case.kind for case in found)
    return cases[:num_questions]


def mark(case: Case, answer: str) -> Result:
    """The marks for an answer."""
    said = answer.strip()
    is_right, distance, overlap, f1 = said == case.truth, 0, None, None
    if case.kind == "box":
        overlap = box_overlap(said, case.truth)
        is_right = overlap > BOX_THRESHOLD
    elif case.kind == "point":
        is_right = _is_near(said, case.truth)
    elif case.kind == "ocr":
        distance = min(edit_distance(said, case.truth), len(case.truth))
    elif case.kind == "average":
        is_right = said.rpartition("=")[2].strip() == case.truth.rpartition("=")[2].strip()
    elif case.kind in JSON_KINDS:
        f1 = field_f1(said, case.truth)
        is_right = f1 == 1.0
    content = case.messages[-1]["content"]
    question = content if isinstance(content, str) else content[-1]["text"]
    return Result(
        case.kind,
        case.scene,
        question,
        case.truth,
        said,
        is_right,
        case.is_chinese,
        distance,
        overlap,
        f1,
    )


def served_model(
    base_url: str, *, model: str = "", api_key: str = "", max_tokens: int = 400
) -> Answer:
    """An answer function over any server that speaks OpenAI's chat completions."""
    import httpx  # only needed against a server

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    client = httpx.Client(base_url=base_url.rstrip("/"), headers=headers, timeout=600)
    path = "/chat/completions" if base_url.rstrip("/").endswith("/v1") else "/v1/chat/completions"

    def answer(images: list[Image.Image], messages: list[Message]) -> str:
        left = list(images)
        body = {
            "model": model or "default",
            "messages": [_with_pictures(m, left) for m in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        response = client.post(path, json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    return answer


# Metrics


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share."""
    if not total:
        return 0.0, 1.0
    share = right / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def edit_distance(a: str, b: str) -> int:
    """The fewest single-character changes from one string to the other (Levenshtein)."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def box_overlap(said: str, truth: str) -> float:
    """The mean intersection over union of the boxes said and true, paired in order.

    A missing or an extra box counts 0.
    """
    mine, theirs = _boxes(said), _boxes(truth)
    if not mine or not theirs:
        return 0.0
    shared = sum(_overlap(a, b) for a, b in zip(mine, theirs, strict=False))
    return shared / max(len(mine), len(theirs))


def field_f1(said: str, truth: str) -> float:
    """F1 over the leaves of two JSON values; 0 when the answer is no JSON."""
    try:
        mine = _leaves(json.loads(said))
    except ValueError:
        return 0.0
    theirs = _leaves(json.loads(truth))
    shared = len(mine & theirs)
    return 2 * shared / (len(mine) + len(theirs)) if mine or theirs else 1.0


# Helpers


def _cases_of_round(
    number: int, rng: random.Random, fonts: FontBook | None, words: Vocabulary
) -> list[Case]:
    """The cases of one drawn picture, of a pair, or of talk without a picture."""
    if number % 16 == 0:
        talk = scenes.talk(rng.getrandbits(60), vocabulary=words)
        return [Case("decline", "none", (), (_user(talk.text, 0),), talk.answer, talk.is_chinese)]

    def scene(kind: str) -> tuple[scenes.Scene, Image.Image]:
        book = fonts or system_fonts(held_out=rng.random() < 0.3)
        seed = rng.getrandbits(60)
        by_camera = rng.random() < 0.25
        drawn = scenes.draw(kind, seed, fonts=book, vocabulary=words, seen_by_camera=by_camera)
        return drawn, scenes.photo(drawn, seed, wear=0.6) if by_camera else drawn.picture

    if number % 20 == 7:
        kind = rng.choice(("receipt", "shapes", rng.choice(scenes.KINDS)))
        (first, a), (second, b) = scene(kind), scene(rng.choice((kind, rng.choice(scenes.KINDS))))
        asked = scenes.questions_about_both(first, second, rng)[:6]
        return [
            Case("two_images", "pair", (a, b), (_user(q.text, 2),), q.answer, q.is_chinese)
            for q in asked
        ]
    drawn, picture = scene(scenes.KINDS[number % len(scenes.KINDS)])
    asked = list(drawn.questions)
    if rng.random() < 0.1:
        asked.append(scenes.off_topic(rng.getrandbits(60), vocabulary=words))
    cases = [
        Case(q.kind, drawn.kind, (picture,), (_user(q.text, 1),), q.answer, q.is_chinese)
        for q in asked
    ]
    return cases + _follow_ups(asked, drawn.kind, picture, rng)


def _follow_ups(
    asked: list[Question], kind: str, picture: Image.Image, rng: random.Random
) -> list[Case]:
    """One second turn: a first question with its true answer, then a short one."""
    first = rng.choice(asked)
    fitting = [q for q in asked if q is not first and q.follow_up and q.follows in ("", first.key)]
    if not fitting or first.kind in ("ocr", "box"):
        return []
    second = rng.choice(fitting)
    messages = (
        _user(first.text, 1),
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": second.follow_up},
    )
    return [Case("follow_up", kind, (picture,), messages, second.answer, second.is_chinese)]


def _spread(
    found: list[Case], count: int, rng: random.Random, asked: Mapping[str, int]
) -> list[Case]:
    """A few of a picture's cases, the kinds first that were asked least so far."""
    rng.shuffle(found)
    by_kind: dict[str, Case] = {}
    for case in found:
        by_kind.setdefault(case.kind, case)
    return sorted(by_kind.values(), key=lambda case: asked.get(case.kind, 0))[:count]


def _user(text: str, num_images: int) -> Message:
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    return {"role": "user", "content": content if num_images else text}


def _with_pictures(message: Message, left: list[Image.Image]) -> Message:
    """The message with the next pictures in place of its image parts."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for part in message["content"]:
        if part["type"] == "image":
            buffer = io.BytesIO()
            left.pop(0).save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        parts.append(part)
    return {**message, "content": parts}


def _score(name: str, results: list[Result]) -> Score:
    return Score(name, sum(r.is_right for r in results), len(results))


def _boxes(text: str) -> list[tuple[int, ...]]:
    found = re.findall(r"\[\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*\]", text)
    return [tuple(map(int, four)) for four in found]


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _is_near(said: str, truth: str) -> bool:
    points = [re.search(r"\[\s*(\d+)\s*,\s*(\d+)\s*\]", text) for text in (said, truth)]
    if points[0] is None or points[1] is None:
        return False
    (a, b), (c, d) = (tuple(map(int, p.groups())) for p in points if p)
    return abs(a - c) <= POINT_TOLERANCE and abs(b - d) <= POINT_TOLERANCE


def _leaves(value: object, path: str = "") -> set[tuple[str, str]]:
    if isinstance(value, dict):
        return {leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{k}")}
    if isinstance(value, list):
        return {leaf for i, v in enumerate(value) for leaf in _leaves(v, f"{path}[{i}]")}
    return {(path, json.dumps(value, ensure_ascii=False))}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
