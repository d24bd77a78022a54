"""Pictures drawn from a seed with the font that Pillow ships, and what is written on them."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

ITEMS = ("Bread", "Milk", "Apples", "Coffee", "Sugar", "Rice", "Tea", "Butter", "Soap", "Eggs")
STORES = ("Harbor Market", "Green Valley", "Corner Store", "City Foods", "Lake Shop")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A drawn receipt and its truth."""

    png: bytes
    store: str
    total: str
    lines: tuple[tuple[str, str], ...]


def draw_receipt(seed: int, width: int = 384, height: int = 512) -> Receipt:
    """A receipt of three to five items; every number follows from the seed."""
    rng = random.Random(seed)
    store = rng.choice(STORES)
    names = rng.sample(ITEMS, rng.randint(3, 5))
    cents = [rng.randint(100, 990) for _ in names]
    lines = tuple((name, f"${amount / 100:.2f}") for name, amount in zip(names, cents, strict=True))
    total = f"${sum(cents) / 100:.2f}"
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(26), ImageFont.load_default(34)
    pen.text((24, 20), store, fill="black", font=large)
    y = 90
    for name, amount in lines:
        pen.text((24, y), name, fill="black", font=font)
        pen.text((width - 24, y), amount, fill="black", font=font, anchor="ra")
        y += 46
    pen.line((24, y + 6, width - 24, y + 6), fill="black", width=2)
    pen.text((24, y + 20), "Total", fill="black", font=large)
    pen.text((width - 24, y + 20), total, fill="black", font=large, anchor="ra")
    return Receipt(to_bytes(picture), store, total, lines)


def to_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
