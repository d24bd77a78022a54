"""Scenes to training batches: pictures of one grid, and rows that pack many conversations.

One row of a batch:

    prefix (picture and all before it) | conversation 1 | conversation 2 | ... | unused
    segment 0                          | segment 1      | segment 2      |     | UNUSED

Every conversation sees the prefix and itself, and takes its positions as if it alone followed the
prefix, so the picture is encoded and read once for all its questions. A conversation without any
picture stands in segment ALONE and sees only itself.

Dimensions: B rows, P pictures, T tokens of a row, K supervised tokens of a row, N patches of a
picture.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from visiongate.mini import scenes
from visiongate.mini.scenes.asking import SYSTEM_PROMPTS, Question
from visiongate.mini.scenes.fonts import FontBook
from visiongate.mini.scenes.scene import Scene
from visiongate.mini.scenes.shapes import SHAPES
from visiongate.mini.scenes.text import COLOURS
from visiongate.mini.scenes.words import Vocabulary

Batch = dict[str, Tensor]
Grid = tuple[int, int]  # visual tokens down and across
ALONE, UNUSED = 126, 127
GLYPHS_PER_PATCH = 3
MAX_QUESTIONS = 10


class Progress(Protocol):
    """How far the training is, from 0 to 1; a number that processes share."""

    value: float


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Rows of equal shape: pictures of `tokens` visual tokens, on any of the grids."""

    name: str
    tokens: int
    grids: tuple[Grid, ...]
    rows: int
    text_tokens: int
    targets: int
    pictures: int = 1

    @property
    def row_tokens(self) -> int:
        """T."""
        return self.tokens * self.pictures + self.text_tokens


SMALL: tuple[Grid, ...] = ((8, 12), (12, 8), (8, 12), (12, 8), (6, 16), (16, 6))
MEDIUM: tuple[Grid, ...] = ((12, 15), (15, 12), (10, 18), (18, 10), (9, 20), (20, 9))
LARGE: tuple[Grid, ...] = ((14, 18), (18, 14), (14, 18), (18, 14), (12, 21), (21, 12))
FULL: tuple[Grid, ...] = ((16, 21), (21, 16), (16, 21), (21, 16), (14, 24), (24, 14))
SIZE_CLASSES = {
    size.name: size
    for size in (
        SizeClass("small", 96, SMALL, rows=224, text_tokens=224, targets=176),
        SizeClass("medium", 180, MEDIUM, rows=128, text_tokens=320, targets=256),
        SizeClass("large", 252, LARGE, rows=96, text_tokens=388, targets=320),
        SizeClass("full", 336, FULL, rows=72, text_tokens=480, targets=400),
        SizeClass("pair", 180, MEDIUM[:2], rows=80, text_tokens=320, targets=224, pictures=2),
    )
}


@dataclass(frozen=True, slots=True)
class Stage:
    """What to draw at a point of the training."""

    sizes: dict[str, float]
    difficulty: float
    ocr_first: float
    camera: float


def stage_at(progress: float) -> Stage:
    """The curriculum: a few large words first, every size and kind from a third on."""
    if progress < 0.05:
        return Stage({"small": 1}, progress * 4, 0.75, 0.0)
    if progress < 0.12:
        return Stage({"small": 3, "medium": 1}, 0.2 + (progress - 0.05) * 5, 0.6, 0.1)
    if progress < 0.3:
        return Stage(
            {"small": 2, "medium": 3, "large": 1}, 0.55 + (progress - 0.12) * 2.5, 0.4, 0.2
        )
    if progress < 0.5:
        return Stage({"small": 2, "medium": 4, "large": 3, "full": 2, "pair": 0.7}, 1.0, 0.25, 0.25)
    return Stage({"small": 1, "medium": 3, "large": 3.4, "full": 3, "pair": 0.7}, 1.0, 0.22, 0.28)


EARLY_WEIGHTS = {"lines": 10.0, "sign": 1.5, "shapes": 2.0, "paragraph": 1.0}
LATE_WEIGHTS = {
    "lines": 2.0,
    "paragraph": 1.2,
    "sign": 0.5,
    "receipt": 3.0,
    "form": 1.4,
    "card": 1.3,
    "label": 0.9,
    "repair": 1.2,
    "menu": 1.9,
    "table": 3.0,
    "chart": 2.2,
    "shapes": 2.0,
    "screen": 1.4,
    "product": 1.1,
}


class Drawer:
    """Draws training scenes; everything random comes from one seeded generator."""

    def __init__(self, seed: int, fonts: FontBook, vocabulary: Vocabulary) -> None:
        self.rng = random.Random(seed)
        self.fonts = fonts
        self.vocabulary = vocabulary

    def scene(self, grid: Grid, stage: Stage, kind: str | None = None) -> Scene:
        """A scene for a grid; kinds that do not fit it give way to plain lines."""
        rng = self.rng
        late = min(1.0, stage.difficulty * 1.6)
        weights = [
            EARLY_WEIGHTS.get(k, 0) * (1 - late) + LATE_WEIGHTS[k] * late for k in scenes.KINDS
        ]
        size = (grid[1] * 32, grid[0] * 32)
        kind = kind or rng.choices(scenes.KINDS, weights)[0]
        chinese = rng.random() < 0.42
        seen = rng.random() < stage.camera
        for attempt in (kind, rng.choice(("lines", "sign", "shapes"))):
            try:
                return scenes.draw(
                    attempt,
                    rng.getrandbits(62),
                    size=size,
                    chinese=chinese,
                    difficulty=stage.difficulty,
                    seen_by_camera=seen,
                    fonts=self.fonts,
                    vocabulary=self.vocabulary,
                )
            except scenes.DoesNotFit:
                continue
        return scenes.draw("shapes", rng.getrandbits(62), size=size, fonts=self.fonts)

    def questions(self, found: list[Scene], stage: Stage) -> list[Question]:
        """The row's questions in the order to pack them."""
        rng = self.rng
        if len(found) == 2:
            return scenes.questions_about_both(found[0], found[1], rng)
        asked = list(found[0].questions)
        rng.shuffle(asked)
        if rng.random() < stage.ocr_first:
            asked.sort(key=lambda q: q.kind != "ocr")
        asked = asked[:MAX_QUESTIONS]
        if rng.random() < 0.08:
            asked.insert(0, scenes.off_topic(rng.getrandbits(62), vocabulary=self.vocabulary))
        return asked


class Glyphs:
    """Names of what a patch can show, for the auxiliary loss; 0 is nothing."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        names = (
            [chr(c) for c in range(33, 127)]
            + list("€£¥°，。？！：；（）、·")
            + list(vocabulary.characters)
        )
        names += [f"colour:{c}" for c in COLOURS] + [f"shape:{n}" for n in SHAPES]
        self.index = {name: i + 1 for i, name in enumerate(dict.fromkeys(names))}
        self.count = len(self.index) + 1

    def labels(self, scene: Scene, grid: Grid) -> NDArray[np.int16]:
        """(N, GLYPHS_PER_PATCH) in merge order: what lies in each patch, from left to right."""
        height, width = grid[0] * 2, grid[1] * 2
        patches: dict[int, list[tuple[float, int]]] = {}
        for mark in scene.marks:
            number = self.index.get(mark.name)
            column, row = int(mark.x // 16), int(mark.y // 16)
            if number is not None and 0 <= column < width and 0 <= row < height:
                patches.setdefault(row * width + column, []).append((mark.x, number))
        labels = np.zeros((height * width, GLYPHS_PER_PATCH), np.int16)
        for patch, found in patches.items():
            for slot, (_, number) in enumerate(sorted(found)[:GLYPHS_PER_PATCH]):
                labels[patch, slot] = number
        blocks = labels.reshape(grid[0], 2, grid[1], 2, GLYPHS_PER_PATCH)
        return blocks.transpose(0, 2, 1, 3, 4).reshape(height * width, GLYPHS_PER_PATCH)


class Packer:
    """Packs rows with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = self._special
        self.end_of_text = special("<|endoftext|>")
        self.end_of_turn = special("<|im_end|>")
        self.picture_pad = special("<|image_pad|>")
        start, newline = special("<|im_start|>"), self.encode("\n")
        self.picture_start, self.picture_end = (
            special("<|vision_start|>"),
            special("<|vision_end|>"),
        )
        self.system = [start, *self.encode("system\n")]
        self.close = [self.end_of_turn, *newline]
        self.user = [start, *self.encode("user\n")]
        self.to_answer = [*self.close, start, *self.encode("assistant\n")]
        self.next_question = [*newline, *self.user]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special(self, name: str) -> int:
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise ValueError(f"the tokenizer has no {name}")
        return int(number)

    def batch(self, size: SizeClass, drawer: Drawer, stage: Stage, glyphs: Glyphs) -> Batch:
        """A batch of the size class, ready for the device."""
        rng = drawer.rng
        grid = rng.choice(size.grids)
        found: list[list[Scene]] = []
        for _ in range(size.rows):
            kind = (
                rng.choice(("receipt", "shapes"))
                if size.pictures > 1 and rng.random() < 0.4
                else None
            )
            found.append([drawer.scene(grid, stage, kind) for _ in range(size.pictures)])
        arrays = _empty_rows(size, self.end_of_text)
        for row, pictures in enumerate(found):
            _Row(self, arrays, row, size, grid, rng).fill(drawer, pictures, stage)
        flat = [scene for row in found for scene in row]
        arrays["pixels"] = np.stack([_pixels(s.picture, rng) for s in flat])
        arrays["glyphs"] = np.stack([glyphs.labels(s, grid) for s in flat])
        arrays["camera"] = np.stack([_sampling_matrix(s, grid) for s in flat])
        desk = np.random.default_rng(rng.getrandbits(32)).uniform(-0.6, 0.95, (len(flat), 3))
        arrays["desk"] = desk.astype(np.float32)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Row:
    """Fills one row of the arrays."""

    def __init__(
        self,
        packer: Packer,
        arrays: dict[str, NDArray[np.generic]],
        row: int,
        size: SizeClass,
        grid: Grid,
        rng: random.Random,
    ) -> None:
        self.packer, self.arrays, self.row = packer, arrays, row
        self.size, self.grid, self.rng = size, grid, rng
        self.used = 0
        self.targets = 0

    def fill(self, drawer: Drawer, pictures: list[Scene], stage: Stage) -> None:
        packer, rng = self.packer, self.rng
        asked = drawer.questions(pictures, stage)
        prefix = self._system() + packer.user
        question_first = len(pictures) == 1 and rng.random() < 0.08
        if question_first:
            prefix += packer.encode(asked[0].text)
        position = self._write_prefix(prefix, len(pictures))
        if question_first:
            self._converse([asked[0]], 1, position, skip_first=True)
        else:
            segment = 1
            while asked and self.size.row_tokens - self.used > 12:
                turns = self._take_turns(asked)
                segment += self._converse(turns, segment, position)
        if rng.random() < 0.06:
            talk = scenes.talk(rng.getrandbits(62), vocabulary=drawer.vocabulary)
            self._converse([talk], ALONE, 0, before=[*self._system(), *packer.user])

    def _system(self) -> list[int]:
        if self.rng.random() > 0.12:
            return []
        packer = self.packer
        return [*packer.system, *packer.encode(self.rng.choice(SYSTEM_PROMPTS)), *packer.close]

    def _write_prefix(self, before: list[int], num_pictures: int) -> int:
        """Writes the pictures and what stands before them; returns the next position."""
        packer, row, (down, across) = self.packer, self.row, self.grid
        position = self._write(before, 0, 0)
        rows, columns = (a.ravel() for a in np.mgrid[0:down, 0:across])
        count = down * across
        for number in range(num_pictures):
            position = self._write([packer.picture_start], 0, position)
            start, stop = self.used, self.used + count
            self._write([packer.picture_pad] * count, 0, position)
            place = self.arrays["positions"]
            place[0, row, start:stop] = position
            place[1, row, start:stop] = position + rows
            place[2, row, start:stop] = position + columns
            self.arrays["feature_rows"][row, start:stop] = np.arange(
                number * count, (number + 1) * count
            )
            position = self._write([packer.picture_end], 0, position + max(down, across))
        return position

    def _write(self, ids: list[int], segment: int, position: int) -> int:
        """Writes text tokens at the next free places; returns the position after them."""
        start, stop = self.used, self.used + len(ids)
        arrays, row = self.arrays, self.row
        arrays["token_ids"][row, start:stop] = ids
        arrays["segments"][row, start:stop] = segment
        arrays["positions"][:, row, start:stop] = np.arange(position, position + len(ids))
        self.used = stop
        return position + len(ids)

    def _take_turns(self, asked: list[Question]) -> list[Question]:
        """One to four questions of one conversation; some are said as follow-ups."""
        turns = [asked.pop(0)]
        while asked and len(turns) < 4 and self.rng.random() < 0.3:
            last = turns[-1].key
            fitting = [q for q in asked if q.follow_up and q.follows in ("", last)]
            if fitting and self.rng.random() < 0.6:
                question = fitting[0]
                asked.remove(question)
                said = Question(
                    "follow_up",
                    question.key,
                    question.follow_up,
                    question.answer,
                    question.is_chinese,
                )
                turns.append(said)
            else:
                turns.append(asked.pop(0))
        return turns

    def _converse(
        self,
        turns: list[Question],
        segment: int,
        position: int,
        *,
        skip_first: bool = False,
        before: list[int] | None = None,
    ) -> int:
        """Writes a conversation, less the turns that do not fit; returns 1, or 0 if none did."""
        packer = self.packer
        ids = list(before or [])
        supervised: list[tuple[int, float]] = []
        for number, turn in enumerate(turns):
            question = [] if skip_first and number == 0 else packer.encode(turn.text)
            head = [*(packer.next_question if number else []), *question, *packer.to_answer]
            answer = [*packer.encode(turn.answer), packer.end_of_turn]
            if (
                self.used + len(ids) + len(head) + len(answer) > self.size.row_tokens
                or self.targets + len(supervised) + len(answer) > self.size.targets
            ):
                break
            ids += head
            weight = len(answer) ** -0.3
            supervised += [(len(ids) + i, weight) for i in range(len(answer))]
            ids += answer
        if not supervised:
            return 0
        start, arrays, row = self.used, self.arrays, self.row
        self._write(ids, segment, position)
        for offset, weight in supervised:
            arrays["target_index"][row, self.targets] = start + offset - 1
            arrays["targets"][row, self.targets] = ids[offset]
            arrays["weights"][row, self.targets] = weight
            self.targets += 1
        return 1


def attention_mask(segments: Tensor) -> Tensor:
    """Who sees whom, bool (B, 1, T, T), from segments (B, T)."""
    T = segments.shape[1]
    asks, asked = segments[:, :, None], segments[:, None, :]
    may = (asks == asked) | ((asked == 0) & (asks < ALONE))
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (may & causal)[:, None]


def stream(
    tokenizer_file: Path,
    fonts: FontBook,
    vocabulary: Vocabulary,
    seed: int,
    progress: Progress,
    *,
    size_seed: int = 0,
) -> Iterator[Batch]:
    """Endless batches; `progress` has a `value` from 0 to 1 that the trainer moves.

    Streams with the same `size_seed` choose the same sizes: GPUs do not wait for each other.
    """
    sizes = random.Random(size_seed)
    packer = Packer(Tokenizer.from_file(str(tokenizer_file)))
    drawer = Drawer(seed, fonts, vocabulary)
    glyphs = Glyphs(vocabulary)
    while True:
        stage = stage_at(progress.value)
        name = sizes.choices(list(stage.sizes), list(stage.sizes.values()))[0]
        yield packer.batch(SIZE_CLASSES[name], drawer, stage, glyphs)


def _empty_rows(size: SizeClass, end_of_text: int) -> dict[str, NDArray[np.generic]]:
    B, T, K = size.rows, size.row_tokens, size.targets
    return {
        "token_ids": np.full((B, T), end_of_text, np.int32),
        "segments": np.full((B, T), UNUSED, np.int16),
        "positions": np.zeros((3, B, T), np.int16),
        "feature_rows": np.full((B, T), -1, np.int16),
        "target_index": np.zeros((B, K), np.int16),
        "targets": np.full((B, K), -1, np.int32),
        "weights": np.zeros((B, K), np.float32),
    }


def _pixels(picture: Image.Image, rng: random.Random) -> NDArray[np.uint8]:
    """The picture's bytes, one in twelve through JPEG."""
    if rng.random() < 0.08:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=rng.randint(40, 92))
        picture = Image.open(buffer)
    return np.asarray(picture, np.uint8)


def _sampling_matrix(scene: Scene, grid: Grid) -> NDArray[np.float32]:
    """Photo to page, both in coordinates from -1 to 1, for the device's resampling."""
    if scene.camera is None:
        return np.eye(3, dtype=np.float32)
    height, width = grid[0] * 32, grid[1] * 32
    to_pixels = np.array([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])
    matrix = np.linalg.inv(to_pixels) @ scene.camera.to_page @ to_pixels
    return (matrix / matrix[2, 2]).astype(np.float32)
