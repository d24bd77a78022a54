"""Menus with prices and notes."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

import json

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.layout import Row, choose_size, draw_rows
from visiongate.mini.scenes.sketch import Sketch

MENU: Pair = ("a menu", "一份菜单")
TITLES = "MENU|Menu|Drinks|Lunch|Specials|Dinner|Breakfast|Today's Menu|Desserts".split("|")
TITLES_ZH = "菜单|今日特价|饮料|主食|甜点|午餐|招牌菜|小吃|晚餐".split("|")
NOTES = "spicy|vegan|contains nuts|new|for two|served cold|gluten free|seasonal|chef's choice|no sugar|small|half price".split(
    "|"
)
NOTES_ZH = "微辣|特辣|素食|含坚果|新品|双人份|冷食|时令|招牌|无糖|小份|限量|半价".split("|")


def draw(s: Sketch) -> None:
    """A menu: dishes, prices, and for some dishes a note."""
    ink = s.paper()
    most = int((s.height - 16) / (s.smallest_size * 1.5)) - 1
    dishes = s.distinct(
        lambda: values.dish(s), s.between(2, max(2, min(9, most - 1, int(3 + s.difficulty * 6))))
    )
    symbol = s.choose(("¥", "", "元")) if s.is_chinese else s.choose(("$", "$", "", "€"))
    has_cents = s.chance(0.5)
    worth = [
        s.between(1, 98) + (s.choose((0.0, 0.5, 0.95, 0.99)) if has_cents else 0) for _ in dishes
    ]
    prices = [_price(v, symbol, has_cents) for v in worth]
    has_notes = s.chance(0.6)
    notes = [_note(s) if has_notes and s.chance(0.5) else "" for _ in dishes]
    inline_notes = s.chance(0.45)
    title = s.choose(s.say(TITLES, TITLES_ZH)) if s.chance(0.8) else values.merchant(s)
    rows = [Row("centre", (title,), is_bold=True)]
    price_rows: list[int] = []
    bracket = s.choose((("(", ")"), ("[", "]"), ("（", "）"))) if s.is_chinese else ("(", ")")
    for name, price, note in zip(dishes, prices, notes, strict=True):
        price_rows.append(len(rows))
        if note and inline_notes:
            rows.append(
                Row(
                    "pair",
                    (
                        f"{name} {bracket[0]}{note}{bracket[1]}"
                        if not s.is_chinese
                        else f"{name}{bracket[0]}{note}{bracket[1]}",
                        price,
                    ),
                )
            )
        else:
            rows.append(Row("pair", (name, price)))
            if note:
                rows.append(Row("indent", (note,)))
    size = choose_size(s, rows, s.width - 28, s.height - 12, s.largest_size(26))
    placed = draw_rows(
        s,
        rows,
        left=14,
        right=s.width - 14,
        top=6,
        bottom=s.height - 6,
        size=size,
        ink=ink,
        dotted=s.chance(0.35),
    )

    s.ask_transcript()
    s.ask("title", title)
    for i in s.sample(range(len(dishes)), 3):
        s.ask("price", prices[i], x=dishes[i])
    unknown = values.dish(s)
    if unknown not in dishes and s.chance(0.3):
        s.ask_absent("price", x=unknown)
    noted = [i for i, n in enumerate(notes) if n]
    if noted:
        i = s.choose(noted)
        s.ask("note", notes[i], x=dishes[i])
    for _ in range(2 if has_notes else 1):
        chinese = s.asks_chinese and s.chance(0.6)
        keys = ("菜名", "价格", "备注") if chinese else ("dish", "price", "note")
        truth = [
            dict(zip(keys, row, strict=True)) for row in zip(dishes, prices, notes, strict=True)
        ]
        s.ask_in("menu_json", json.dumps(truth, ensure_ascii=False), chinese)
    listed = "\n".join(f"{n}: {p}" for n, p in zip(dishes, prices, strict=True))
    s.ask("items", listed)
    s.ask("names", "\n".join(dishes))
    s.ask("amounts", listed)
    s.ask("num_items", str(len(dishes)))
    if len(set(worth)) == len(worth):
        s.ask("dearest", dishes[worth.index(max(worth))])
        s.ask("cheapest", dishes[worth.index(min(worth))])
    i = s.between(0, len(dishes) - 1)
    s.ask_box(
        s.canvas.ink(*s.canvas.runs[placed[price_rows[i]][1]]),
        (f"price of {dishes[i]}", f"{dishes[i]}的价格"),
        prices[i],
    )
    s.ask_kind(MENU)
    count = len(dishes)
    s.ask(
        "summary",
        (f"A menu titled {title} with {count} items.", f"一份菜单,标题是{title},有{count}个项目。"),
    )


def _price(value: float, symbol: str, has_cents: bool) -> str:
    if has_cents:
        return values.money(value, symbol)
    return f"{value}元" if symbol == "元" else f"{symbol}{value}"


def _note(s: Sketch) -> str:
    if s.chance(0.6):
        return s.choose(s.say(NOTES, NOTES_ZH))
    if s.is_chinese:
        return values.chinese_word(s)
    return f"{s.choose(('with', 'no', 'and'))} {values.english_word(s)}"
