"""Product tiles as in a shop's listing: a drawn article, its name, price and attributes."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.canvas import Colour, Mark
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch
from visiongate.mini.scenes.text import COLOURS

PRODUCT: Pair = ("a product picture", "一张商品图")
ARTICLES: dict[str, Pair] = {
    "dress": ("dress", "连衣裙"),
    "shirt": ("shirt", "衬衫"),
    "mug": ("mug", "杯子"),
    "bag": ("bag", "包"),
    "bottle": ("bottle", "瓶子"),
    "phone": ("phone", "手机"),
    "hat": ("hat", "帽子"),
    "box": ("box", "盒子"),
}
ATTRIBUTES = "V-neck|Cotton|Waterproof|Slim fit|Long sleeve|Leather|Steel|Handmade|Vintage|Wireless|Soft|Foldable|Linen|Light|Portable|Organic|Large|Classic".split(
    "|"
)
ATTRIBUTES_ZH = "V领|纯棉|防水|修身|长袖|真皮|不锈钢|手工|复古|无线|柔软|可折叠|亚麻|轻便|便携|有机|大号|经典".split(
    "|"
)
MATERIALS = "Cotton|Leather|Steel|Linen|Wool|Glass|Silk|Wood|Plastic|Ceramic".split("|")
MATERIALS_ZH = "棉|皮革|不锈钢|亚麻|羊毛|玻璃|真丝|木头|塑料|陶瓷".split("|")


def draw(s: Sketch) -> None:
    """One product with its picture, name, price and some attributes."""
    ink = s.paper()
    article = s.choose(list(ARTICLES))
    ground = s.canvas.background
    colour = s.choose(
        [
            c
            for c, (_, rgb) in COLOURS.items()
            if sum(abs(a - b) for a, b in zip(rgb, ground, strict=True)) > 90
        ]
    )
    name = s.say(
        f"{values.name_word(s)} {ARTICLES[article][0].title()}",
        values.name_word(s) + ARTICLES[article][1],
    )
    symbol = s.choose(("¥", "¥", "元")) if s.is_chinese else s.choose(("$", "$", "€"))
    price = round(values.amount(s), 2)
    price_text = values.money(price, symbol)
    usual, lines = _lines(s, price, price_text, symbol)
    attributes = s.distinct(
        lambda: (
            s.choose(s.say(ATTRIBUTES, ATTRIBUTES_ZH)) if s.chance(0.7) else values.name_word(s)
        ),
        s.between(1, 3),
    )
    facts = _facts(s)
    texts = [name, *lines, *attributes, *(label + value for _, label, value in facts)]
    beside = s.width > s.height
    text_width = s.width * 0.5 - 16 if beside else s.width - 32
    picture = (s.width * 0.46, float(s.height)) if beside else (float(s.width), s.height * 0.42)
    room = s.height - 16 if beside else s.height * 0.58 - 12
    face = s.fit(texts, text_width, min(s.largest_size(24), room / len(texts) / 1.2))
    if s.rng.random() < 0.5:
        s.rng.shuffle(attributes)
    _paint(s, article, COLOURS[colour][1], picture)
    for dx in (-16, 0, 16):
        s.canvas.marks.append(Mark(f"colour:{colour}", picture[0] / 2 + dx, picture[1] / 2))
    pitch = min(room / len(texts), face.size * s.uniform(1.25, 1.9))
    x = s.width * 0.5 if beside else 16.0
    y = (
        (s.height - room) + s.uniform(0, room - pitch * len(texts) - 4)
        if not beside
        else s.uniform(8, s.height - pitch * len(texts))
    )
    for i, text in enumerate(texts):
        faded = usual and text == lines[-1]
        s.write(
            x,
            y + pitch / 2,
            text,
            face,
            (140, 140, 140)
            if faded and sum(ground) > 400
            else (190, 30, 30)
            if i == 1 and sum(ground) > 400
            else ink,
        )
        y += pitch

    s.ask_transcript()
    s.ask("goods_name", name)
    s.ask("goods_price", price_text)
    s.ask("colour", (colour, COLOURS[colour][0]), x=ARTICLES[article])
    s.ask("attributes", ", ".join(attributes))
    if usual:
        usual_text = values.money(usual, symbol)
        s.ask("usual_price", usual_text)
        for _ in range(2):
            if price < usual:
                s.ask(
                    "is_sensible",
                    (
                        f"Yes: {price_text} is below the usual price of {usual_text}.",
                        f"合理:{price_text}低于原价{usual_text}。",
                    ),
                )
            else:
                s.ask(
                    "is_sensible",
                    (
                        f"No: {price_text} is above the usual price of {usual_text}.",
                        f"不合理:{price_text}高于原价{usual_text}。",
                    ),
                )
    else:
        s.ask(
            "is_sensible",
            (
                f"I cannot tell: the image shows only {price_text}.",
                f"无法判断:图中只有{price_text}。",
            ),
        )
        s.ask_absent("usual_price")
    known = {key: value for key, _, value in facts}
    for key in ("material", "stock", "sold"):
        if key in known:
            s.ask(key, known[key])
        elif s.chance(0.15):
            s.ask_absent(key)
    fields: dict[Pair, str] = {("name", "名称"): name, ("price", "价格"): price_text}
    if "material" in known:
        fields["material", "材质"] = known["material"]
    if "stock" in known:
        fields["stock", "库存"] = known["stock"]
    s.ask_json(fields, [] if "brand" in name else [("brand", "品牌")])
    s.ask_text_box()
    s.ask_kind(PRODUCT)
    listed = ", ".join(attributes)
    for _ in range(2):
        s.ask(
            "summary",
            (
                f"{'An' if colour == 'orange' else 'A'} {colour} {ARTICLES[article][0]}, {listed}, for {price_text}.",
                f"一件{COLOURS[colour][0]}{ARTICLES[article][1]},{'、'.join(attributes)},售价{price_text}。",
            ),
        )


def _lines(s: Sketch, price: float, price_text: str, symbol: str) -> tuple[float | None, list[str]]:
    """The price lines; the usual price stands last when there is one."""
    first = s.choose(s.say(("", "", "Price: ", "Now "), ("", "", "价格:", "现价:"))) + price_text
    if s.chance(0.45):
        return None, [first]
    usual = round(price * s.choose((0.6, 0.8, 1.2, 1.25, 1.5, 2.0)), 2)
    if usual == price:
        raise DoesNotFit
    label = s.choose(
        s.say(("Usual price: ", "Was ", "List price: "), ("原价:", "平时价:", "市场价:"))
    )
    return usual, [first, label + values.money(usual, symbol)]


def _facts(s: Sketch) -> list[tuple[str, str, str]]:
    """Rows of (template, label, value)."""
    rows: list[tuple[str, str, str]] = []
    if s.chance(0.4):
        rows.append(
            ("material", s.say("Material: ", "材质:"), s.choose(s.say(MATERIALS, MATERIALS_ZH)))
        )
    if s.chance(0.3):
        rows.append(("stock", s.say("Stock: ", "库存:"), str(s.between(1, 999))))
    if s.chance(0.3):
        rows.append(("sold", s.say("Sold: ", "销量:"), str(s.between(1, 9999))))
    return rows


def _paint(s: Sketch, article: str, fill: Colour, room: tuple[float, float]) -> None:
    """Draws the article in the middle of its room, a simple outline per kind."""
    width, height = room
    x, y, r = width / 2, height / 2, min(width, height) * s.uniform(0.28, 0.4)
    pen = s.canvas.pen
    edge = (110, 110, 110)
    if article == "dress":
        pen.polygon(
            [
                (x - r * 0.35, y - r),
                (x, y - r * 0.7),
                (x + r * 0.35, y - r),
                (x + r * 0.3, y - r * 0.2),
                (x + r * 0.8, y + r),
                (x - r * 0.8, y + r),
                (x - r * 0.3, y - r * 0.2),
            ],
            fill,
            edge,
        )
    elif article == "shirt":
        pen.polygon(
            [
                (x - r * 0.4, y - r * 0.8),
                (x + r * 0.4, y - r * 0.8),
                (x + r, y - r * 0.3),
                (x + r * 0.75, y),
                (x + r * 0.5, y - r * 0.2),
                (x + r * 0.5, y + r * 0.9),
                (x - r * 0.5, y + r * 0.9),
                (x - r * 0.5, y - r * 0.2),
                (x - r * 0.75, y),
                (x - r, y - r * 0.3),
            ],
            fill,
            edge,
        )
    elif article == "mug":
        pen.ellipse(
            (x + r * 0.3, y - r * 0.35, x + r, y + r * 0.45),
            outline=fill,
            width=max(3, int(r * 0.14)),
        )
        pen.rectangle((x - r * 0.7, y - r * 0.7, x + r * 0.55, y + r * 0.8), fill, edge)
    elif article == "bag":
        pen.arc(
            (x - r * 0.4, y - r, x + r * 0.4, y + r * 0.1),
            180,
            360,
            fill=edge,
            width=max(3, int(r * 0.1)),
        )
        pen.rectangle((x - r * 0.8, y - r * 0.45, x + r * 0.8, y + r * 0.9), fill, edge)
    elif article == "bottle":
        pen.rectangle((x - r * 0.15, y - r, x + r * 0.15, y - r * 0.4), fill, edge)
        pen.rounded_rectangle((x - r * 0.4, y - r * 0.5, x + r * 0.4, y + r), r * 0.15, fill, edge)
    elif article == "phone":
        pen.rounded_rectangle((x - r * 0.5, y - r, x + r * 0.5, y + r), r * 0.12, fill, edge)
        pen.rectangle((x - r * 0.4, y - r * 0.8, x + r * 0.4, y + r * 0.75), outline=edge)
    elif article == "hat":
        pen.ellipse((x - r, y + r * 0.1, x + r, y + r * 0.5), fill, edge)
        pen.pieslice(
            (x - r * 0.55, y - r * 0.7, x + r * 0.55, y + r * 1.1),
            180,
            360,
            fill=fill,
            outline=edge,
        )
    else:
        pen.rectangle((x - r * 0.8, y - r * 0.5, x + r * 0.8, y + r * 0.7), fill, edge)
        pen.line((x, y - r * 0.5, x, y + r * 0.7), edge, width=2)
