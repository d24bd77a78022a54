"""What is measured: five works, each a handful of questions with drawn pictures, all seeded.

W1  one 1024 x 768 picture, a short question, exactly 64 new tokens
W2  the same with a 448 x 448 picture
W3  three W1 at once, different pictures
W4  after W1: a second question in the same conversation, then another first question about the
    same picture in a new one
W5  a stream of 192 tokens is running when another client's W1 arrives
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

NUM_NEW_TOKENS = 64
QUESTION = "Describe this."  # about 10 tokens of the synthetic tokenizer, 32 with the template
SECOND_QUESTION = "And what else?"
OTHER_QUESTION = "Is it a house?"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: a role, a text, and the seed and size of a picture before it, if any."""

    role: str
    text: str
    picture: tuple[int, int, int] | None = None  # seed, width, height


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: it is sent once the work's first request has given `after_tokens` tokens.

    `after_tokens` -1 sends it when everything before it has ended.
    """

    turns: tuple[Turn, ...]
    num_new_tokens: int = NUM_NEW_TOKENS
    after_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """A named set of requests."""

    name: str
    asks: tuple[Ask, ...]


def build(name: str, run: int) -> Work:
    """A work for one run; every run has pictures of its own, so that nothing is cached."""
    seed = 1000 * int(name[1:]) + 10 * run
    if name == "W1":
        return Work(name, (_ask(seed, 1024, 768),))
    if name == "W2":
        return Work(name, (_ask(seed, 448, 448),))
    if name == "W3":
        return Work(name, tuple(_ask(seed + i, 1024, 768) for i in range(3)))
    if name == "W4":
        picture = (seed, 1024, 768)
        first = Turn("user", QUESTION, picture)
        answer = Turn("assistant", "It is a drawing.")
        second = Turn("user", SECOND_QUESTION)
        other = Turn("user", OTHER_QUESTION, picture)
        return Work(
            name,
            (
                Ask((first,)),
                Ask((first, answer, second), after_tokens=-1),
                Ask((other,), after_tokens=-1),
            ),
        )
    if name == "W5":
        stream = Ask(_ask(seed, 448, 448).turns, num_new_tokens=192)
        late = Ask(_ask(seed + 1, 1024, 768).turns, after_tokens=8)
        return Work(name, (stream, late))
    raise ValueError(f"no work is named {name}; there are W1 to W5")


def _ask(seed: int, width: int, height: int) -> Ask:
    return Ask((Turn("user", QUESTION, (seed, width, height)),))


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Shapes on a noisy ground."""
    generator = np.random.default_rng(seed)
    ground = generator.integers(200, 256, size=(height, width, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    for _ in range(20):
        x, y = generator.integers(0, width), generator.integers(0, height)
        w, h = generator.integers(10, width // 3), generator.integers(10, height // 3)
        color = tuple(int(c) for c in generator.integers(0, 256, size=3))
        draw.rectangle((int(x), int(y), int(x + w), int(y + h)), fill=color)
    return image


def png(seed: int, width: int, height: int) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture(seed, width, height).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def openai_messages(turns: tuple[Turn, ...]) -> list[dict[str, object]]:
    """The turns as chat-completions messages with data URLs."""
    messages: list[dict[str, object]] = []
    for turn in turns:
        parts: list[dict[str, object]] = []
        if turn.picture is not None:
            data = base64.b64encode(png(*turn.picture)).decode()
            url = f"data:image/png;base64,{data}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": turn.text})
        messages.append({"role": turn.role, "content": parts})
    return messages
