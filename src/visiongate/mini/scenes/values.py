"""Made-up names, dates, numbers and prices in the picture's language."""

from __future__ import annotations

import string

from visiongate.mini.scenes import words
from visiongate.mini.scenes.sketch import Sketch

CODE_PREFIXES = ("INV", "NO", "ORD", "R", "A", "TX", "PO", "ID", "SN", "WO", "RO", "B")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"


def english_word(s: Sketch) -> str:
    """A lower-case word; one in six is made up of syllables."""
    if s.chance(0.84):
        return s.choose(s.vocabulary.english)
    syllables = [
        s.choose("bcdfghjklmnprstvwxyz")
        + s.choose("aeiou")
        + (s.choose("nrstlmk") if s.chance(0.3) else "")
        for _ in range(s.between(1, 4))
    ]
    return "".join(syllables)


def chinese_word(s: Sketch, length: int | None = None) -> str:
    """A Chinese word, of that many characters when a length is given."""
    for _ in range(200):
        word = s.choose(s.vocabulary.chinese)
        if length is None or len(word) == length:
            return word
    return word


def chinese_characters(s: Sketch, count: int) -> str:
    """Characters that form no word, so that every one of them is learnt."""
    return "".join(s.choose(s.vocabulary.characters) for _ in range(count))


def name_word(s: Sketch) -> str:
    """A word for a name or label in the picture's language, capitalised."""
    if s.is_chinese:
        return chinese_word(s) if s.chance(0.8) else chinese_characters(s, s.between(2, 4))
    return english_word(s).capitalize()


def digits(s: Sketch, count: int) -> str:
    """A string of digits."""
    return "".join(s.choose(string.digits) for _ in range(count))


def code(s: Sketch) -> str:
    """A document number."""
    dice = s.rng.random()
    if dice < 0.35:
        return f"{s.choose(CODE_PREFIXES)}-{s.between(100, 999999)}"
    if dice < 0.6:
        return str(s.between(1000, 99999999))
    if dice < 0.75:
        return f"{s.choose(CODE_PREFIXES)}{digits(s, s.between(4, 8))}"
    return "".join(s.choose(LETTERS) for _ in range(s.between(4, 9)))


def date(s: Sketch, first_year: int = 2012, last_year: int = 2035) -> str:
    """A date in one of the usual ways to write it."""
    year, month, day = s.between(first_year, last_year), s.between(1, 12), s.between(1, 28)
    iso = f"{year}-{month:02d}-{day:02d}"
    if s.is_chinese:
        return s.choose(
            (
                f"{year}年{month}月{day}日",
                iso,
                f"{year}/{month:02d}/{day:02d}",
                f"{year}.{month:02d}.{day:02d}",
            )
        )
    short, long = words.MONTHS[month - 1], words.LONG_MONTHS[month - 1]
    return s.choose(
        (
            iso,
            iso,
            f"{month:02d}/{day:02d}/{year}",
            f"{day:02d}/{month:02d}/{year}",
            f"{day} {short} {year}",
            f"{short} {day}, {year}",
            f"{day:02d}.{month:02d}.{year}",
            f"{day} {long} {year}",
        )
    )


def clock(s: Sketch) -> str:
    """A time of day."""
    return f"{s.between(0, 23):02d}:{s.between(0, 59):02d}"


def phone(s: Sketch) -> str:
    """A telephone number."""
    if s.is_chinese and s.chance(0.8):
        return "1" + s.choose("3578") + digits(s, 9)
    return s.choose(
        (
            f"{s.between(200, 999)}-{s.between(200, 999)}-{digits(s, 4)}",
            f"{s.between(200, 999)}-{digits(s, 4)}",
            f"{s.between(20, 99)} {digits(s, 4)} {digits(s, 4)}",
        )
    )


def address(s: Sketch) -> str:
    """A street address."""
    if s.is_chinese:
        road = s.choose(words.ROADS_ZH) if s.chance(0.5) else chinese_word(s, 2) + "路"
        return f"{road}{s.between(1, 999)}号"
    number, name = s.between(1, 999), english_word(s).capitalize()
    return f"{number} {name} {s.choose(('Street', 'Road', 'Ave', 'Lane', 'St', 'Rd'))}"


def person(s: Sketch) -> str:
    """A person's name."""
    if s.is_chinese:
        given = "".join(s.choose(words.GIVEN_CHARS_ZH) for _ in range(s.between(1, 2)))
        return s.choose(words.FAMILY_NAMES_ZH) + given
    family = s.choose(words.FAMILY_NAMES) if s.chance(0.5) else english_word(s).capitalize()
    return f"{s.choose(words.GIVEN_NAMES)} {family}"


def merchant(s: Sketch) -> str:
    """A shop's or company's name."""
    if s.is_chinese:
        return name_word(s) + s.choose(words.SHOP_SUFFIXES_ZH)
    dice = s.rng.random()
    suffix = s.choose(words.SHOP_SUFFIXES)
    if dice < 0.6:
        name = f"{english_word(s).capitalize()} {suffix}"
    elif dice < 0.8:
        name = f"{english_word(s).capitalize()} {english_word(s).capitalize()} {suffix}"
    else:
        name = f"{s.choose(words.FAMILY_NAMES)}'s {suffix}"
    return name.upper() if s.chance(0.2) else name


def goods(s: Sketch) -> str:
    """The name of something sold in a shop."""
    return _thing(s, words.GOODS_ZH if s.is_chinese else words.GOODS)


def dish(s: Sketch) -> str:
    """The name of something on a menu."""
    return _thing(s, words.DISHES_ZH if s.is_chinese else words.DISHES)


def _thing(s: Sketch, known: tuple[str, ...]) -> str:
    if s.chance(0.45):
        return s.choose(known)
    if s.is_chinese:
        return name_word(s)
    count = 1 if s.chance(0.5) else 2
    name = " ".join(english_word(s).capitalize() for _ in range(count))
    if s.chance(0.15):
        name += s.choose((" 500g", " 1kg", " 2L", " x6", " XL", " (M)", " 250ml"))
    return name


def amount(s: Sketch) -> float:
    """A price of everyday size."""
    return s.choose(
        (
            s.between(1, 30) + s.choose((0.0, 0.5, 0.99, 0.25, 0.8)),
            float(s.between(3, 300)),
            s.between(100, 9999) / 100,
            s.between(50, 99999) / 100,
        )
    )


def money(value: float, symbol: str) -> str:
    """The value as printed, with its currency."""
    return f"{value:.2f}元" if symbol == "元" else f"{symbol}{value:,.2f}"


def currency(s: Sketch) -> str:
    """A currency sign, often none."""
    return (
        s.choose(("¥", "¥", "", "元")) if s.is_chinese else s.choose(("$", "$", "$", "", "€", "£"))
    )
