"""Seeded drawings with their questions and answers, from which the embedded model learns.

They are also the pictures of the tests, the doctor and the benchmarks. Each kind is a pure function
of its seed (and of the faces and words given to it):

    scene = draw("receipt", seed=7)
    scene.picture.save("receipt.png")
    for question in scene.questions:
        print(question.text, "->", question.answer)
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from visiongate.mini.scenes import (
    chart,
    form,
    menu,
    product,
    receipt,
    repair,
    screen,
    shapes,
    table,
    text,
)
from visiongate.mini.scenes.asking import (
    ABSENT,
    NO_PICTURE,
    OUTSIDE_KNOWLEDGE,
    SMALL_TALK,
    TEMPLATES,
    Question,
)
from visiongate.mini.scenes.camera import photograph, random_camera
from visiongate.mini.scenes.fonts import FontBook, system_fonts
from visiongate.mini.scenes.pairs import questions_about_both
from visiongate.mini.scenes.scene import Scene
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch
from visiongate.mini.scenes.words import Vocabulary, small_vocabulary

SIZES = (
    (384, 512),
    (512, 384),
    (416, 608),
    (608, 416),
    (448, 576),
    (576, 448),
    (512, 512),
    (512, 672),
    (672, 512),
)
MAX_TRIES = 12

_DRAW: dict[str, Callable[[Sketch], None]] = {
    "lines": text.draw_lines,
    "paragraph": text.draw_paragraph,
    "sign": text.draw_sign,
    "receipt": receipt.draw,
    "form": form.draw_form,
    "card": form.draw_card,
    "label": form.draw_label,
    "repair": repair.draw,
    "menu": menu.draw,
    "table": table.draw,
    "chart": chart.draw,
    "shapes": shapes.draw,
    "screen": screen.draw,
    "product": product.draw,
}
KINDS: tuple[str, ...] = tuple(_DRAW)


def draw(
    kind: str,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    chinese: bool | None = None,
    difficulty: float = 1.0,
    seen_by_camera: bool = False,
    fonts: FontBook | None = None,
    vocabulary: Vocabulary | None = None,
) -> Scene:
    """The scene of a kind for a seed.

    `size` is (width, height) in pixels; `chinese` the language of the print (without a Chinese face
    on this machine it is English). Raises DoesNotFit when the size is too small for the kind.
    """
    rng = random.Random(f"{kind}:{seed}")
    if size is None:
        size = SIZES[rng.randrange(len(SIZES))]
    if chinese is None:
        chinese = rng.random() < 0.35
    for _ in range(MAX_TRIES):
        sketch = Sketch(
            rng,
            vocabulary or small_vocabulary(),
            fonts or system_fonts(),
            *size,
            is_chinese=chinese,
            difficulty=difficulty,
            camera=random_camera(rng, *size) if seen_by_camera else None,
        )
        try:
            _DRAW[kind](sketch)
        except DoesNotFit:
            continue
        asked = tuple(sketch.questions)
        return Scene(kind, sketch.is_chinese, asked, dict(sketch.facts), sketch.canvas)
    raise DoesNotFit(f"no {kind} fits {size[0]} x {size[1]} pixels")


def photo(scene: Scene, seed: int, *, wear: float = 1.0) -> Image.Image:
    """The scene's picture as a phone would take it: its camera's view, light, blur and noise."""
    return photograph(scene.picture, scene.camera, random.Random(f"photo:{seed}"), wear=wear)


def talk(seed: int, *, vocabulary: Vocabulary | None = None) -> Question:
    """A question without any picture: small talk gets a word back, knowledge is declined."""
    rng = random.Random(f"talk:{seed}")
    chinese = int(rng.random() < 0.4)
    if rng.random() < 0.25:
        asked, answer = rng.choice(SMALL_TALK)
        return Question(
            "decline", "talk", rng.choice(asked[chinese].split("|")), answer[chinese], bool(chinese)
        )
    words = vocabulary or small_vocabulary()
    word = rng.choice(words.chinese if chinese else words.english)
    if not chinese and rng.random() < 0.6:
        word = word.capitalize()
    if rng.random() < 0.3:  # a question about a picture that nobody sent
        template = TEMPLATES[rng.choice(list(TEMPLATES))]
        wording = rng.choice(template.chinese if chinese else template.english)
        text_ = wording.format(x=word, y=word, d=("left of", "左边")[chinese])
    else:
        wording = rng.choice(OUTSIDE_KNOWLEDGE)[chinese]
        text_ = wording.format(w=word, n=rng.randint(0, 99), m=rng.randint(0, 99))
    return Question("decline", "talk", text_, NO_PICTURE[chinese], bool(chinese))


def off_topic(seed: int, *, vocabulary: Vocabulary | None = None) -> Question:
    """A question of general knowledge beside a picture that does not answer it."""
    rng = random.Random(f"off:{seed}")
    chinese = int(rng.random() < 0.4)
    words = vocabulary or small_vocabulary()
    word = rng.choice(words.chinese if chinese else words.english).capitalize()
    wording = rng.choice(OUTSIDE_KNOWLEDGE)[chinese]
    asked = wording.format(w=word, n=rng.randint(0, 99), m=rng.randint(0, 99))
    return Question("absent", "off_topic", asked, ABSENT[chinese], bool(chinese))


__all__ = [
    "KINDS",
    "DoesNotFit",
    "Question",
    "Scene",
    "draw",
    "off_topic",
    "photo",
    "questions_about_both",
    "talk",
]
