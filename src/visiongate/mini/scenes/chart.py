"""Bar, line and pie charts with labelled values."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from itertools import pairwise

from visiongate.mini.scenes import values, words
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.canvas import Colour
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch
from visiongate.mini.scenes.text import COLOURS

BAR: Pair = ("a bar chart", "一张柱状图")
LINE: Pair = ("a line chart", "一张折线图")
PIE: Pair = ("a pie chart", "一张饼图")
TITLES = (
    "Sales|Revenue|Visitors|Orders|Profit|Output|Rainfall|Users|Costs|Exports|Traffic|Budget".split(
        "|"
    )
)
TITLES_ZH = "销量|收入|人数|产量|温度|销售额|支出|利润|订单|访问量|营收|用户数".split("|")
SERIES = "Online|Store|North|South|Plan|Actual|Product A|Product B|Men|Women|Cost|Income".split("|")
SERIES_ZH = "线上|线下|北区|南区|计划|实际|产品甲|产品乙|男|女|成本|收入".split("|")


def draw(s: Sketch) -> None:
    """A chart of one or two series; every value is printed, so that it can be read."""
    ink = s.paper()
    form = s.choose(("bar", "bar", "line", "line", "pie", "side", "pair"))
    categories = _categories(s, form)
    count = len(categories)
    title = s.choose(s.say(TITLES, TITLES_ZH))
    if s.chance(0.4):
        title = s.say(f"{values.name_word(s)} {title}", values.name_word(s) + title)
    palette = _palette(s)
    numbers = _numbers(s, count, form)
    shown = [_shown(v, form) for v in numbers]
    title_face = s.fit([title], s.width - 16, s.largest_size(22))
    s.write(
        (s.width - title_face.width(title)) / 2, 6 + title_face.size / 2, title, title_face, ink
    )
    top = title_face.size + 16.0
    if form == "pair":
        _draw_two_series(s, title, categories, numbers, top, palette, ink)
        return
    growth: dict[str, str] = {}
    if form == "side":
        _draw_side_bars(s, categories, numbers, shown, top, palette, ink)
    elif form == "pie":
        _draw_pie(s, categories, numbers, shown, top, palette, ink)
    else:
        growth = _draw_upright(
            s, categories, numbers, shown, top, palette, ink, is_line=form == "line"
        )

    if form in ("side", "pie"):
        s.ask_transcript()
    s.ask("title", title)
    for i in s.sample(range(count), 3):
        s.ask("value", shown[i], x=categories[i])
    unknown = values.name_word(s)
    if unknown not in categories and s.chance(0.2):
        s.ask_absent("value", x=unknown)
    high, low = numbers.index(max(numbers)), numbers.index(min(numbers))
    s.ask("highest", f"{categories[high]} ({shown[high]})")
    s.ask("lowest", f"{categories[low]} ({shown[low]})")
    s.ask("data", "\n".join(f"{c}: {v}" for c, v in zip(categories, shown, strict=True)))
    s.ask("num_categories", str(count))
    a, b = s.sample(range(count), 2)
    s.ask_yes_no(
        "higher", numbers[a] > numbers[b], kind="chart_fact", x=categories[a], y=categories[b]
    )
    if form in ("bar", "line"):
        i = s.between(1, count - 1)
        rises = numbers[i] > numbers[i - 1]
        s.ask(
            "trend",
            ("It rises.", "上升。") if rises else ("It falls.", "下降。"),
            x=categories[i - 1],
            y=categories[i],
        )
    for category in s.sample(list(growth), 2):
        s.ask("growth", growth[category], x=category)
    s.ask_text_box()
    kind = {"line": LINE, "pie": PIE}.get(form, BAR)
    s.ask_kind(kind)
    s.ask(
        "summary",
        (
            f"{kind[0].capitalize()} titled {title} with {count} values; the highest is {categories[high]} ({shown[high]}).",
            f"{kind[1]},标题是{title},有{count}个数据,最高的是{categories[high]}({shown[high]})。",
        ),
    )


def _categories(s: Sketch, form: str) -> list[str]:
    most = {"side": min(8, s.height // 40), "pie": min(7, s.height // 44)}.get(
        form, min(8, s.width // 52)
    )
    count = s.between(2, max(2, min(int(3 + s.difficulty * 5), most)))
    dice = s.rng.random()
    if dice < 0.22:
        first = s.between(0, 12 - count)
        return list(s.say(words.MONTHS, words.MONTHS_ZH)[first : first + count])
    if dice < 0.32 and count <= 7:
        return list(s.say(words.WEEKDAYS, words.WEEKDAYS_ZH)[:count])
    if dice < 0.5 and count <= 4:
        return [f"Q{i + 1}" for i in range(count)]
    if dice < 0.58:
        first = s.between(2008, 2026 - count)
        return [str(first + i) for i in range(count)]
    if dice < 0.66:
        return list("ABCDEFGH"[:count])
    if dice < 0.8:
        found = s.sample(s.say(words.CITIES, words.CITIES_ZH), count)
    else:
        found = s.distinct(
            lambda: values.chinese_word(s, 2) if s.is_chinese else values.name_word(s)[:9], count
        )
    if len(found) < 2:
        raise DoesNotFit
    return found


def _numbers(s: Sketch, count: int, form: str) -> list[float]:
    """Different numbers; shares of a pie add up to 100."""
    if form == "pie":
        cuts = sorted(s.sample(range(4, 97), count - 1))
        shares = [float(b - a) for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(shares) < 3 or len(set(shares)) < count:
            raise DoesNotFit
        return shares
    scale = s.choose((10, 100, 100, 1000, 10000))
    has_tenths = s.chance(0.2)
    numbers = [
        s.between(max(1, scale // 10), scale) + (s.between(0, 9) / 10 if has_tenths else 0.0)
        for _ in range(count)
    ]
    if len(set(numbers)) < count:
        raise DoesNotFit
    return numbers


def _shown(value: float, form: str) -> str:
    if form == "pie":
        return f"{value:.0f}%"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _palette(s: Sketch) -> list[Colour]:
    return [
        COLOURS[c][1] for c in s.sample([c for c in COLOURS if c not in ("white", "black")], 10)
    ]


def _draw_upright(
    s: Sketch,
    categories: list[str],
    numbers: list[float],
    shown: list[str],
    top: float,
    palette: list[Colour],
    ink: Colour,
    *,
    is_line: bool,
) -> dict[str, str]:
    """Bars, or a line; returns the printed changes by category, if any were printed."""
    left, right = 12.0, s.width - 12.0
    step = (right - left) / len(categories)
    face = s.fit(categories, step - 6, s.largest_size(18) * 0.8 + 4)
    number_face = s.fit(shown, step - 4, min(s.largest_size(18), face.size + 4))
    base = s.height - face.size * 1.7
    has_growth = s.chance(0.35) and max(map(len, shown)) < 6
    labels = [""] * len(shown)
    if has_growth:
        pick = [round((b / a - 1) * 100) for a, b in pairwise(numbers)]
        labels = ["", *(f"{p:+d}%" for p in pick)]
    over = number_face.size * (2.7 if has_growth else 1.5)
    if base - top - over < 40:
        raise DoesNotFit
    pen = s.canvas.pen
    pen.line((left, base, right, base), ink)
    if s.chance(0.5):
        pen.line((left, top, left, base), ink)
    if s.chance(0.3):
        for k in range(1, 4):
            y = base - (base - top) * k / 4
            pen.line((left, y, right, y), (215, 215, 215))
    highest = max(numbers) * s.uniform(1.0, 1.15)
    one_colour = s.chance(0.45)
    points = []
    half = step * s.uniform(0.2, 0.4)
    for i, number in enumerate(numbers):
        x = left + step * (i + 0.5)
        y = base - (base - top - over) * number / highest
        points.append((x, y))
        if not is_line:
            pen.rectangle((x - half, y, x + half, base), palette[0 if one_colour else i % 10])
    if is_line:
        pen.line(points, palette[0], width=s.between(2, 4))
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), palette[0])
    growth: dict[str, str] = {}
    for (x, y), category, text, label in zip(points, categories, shown, labels, strict=True):
        s.canvas.text(x - face.width(category) / 2, base + face.size * 0.8, category, face, ink)
        above = y - number_face.size * 0.75 - (4 if is_line else 0)
        s.canvas.text(x - number_face.width(text) / 2, above, text, number_face, ink)
        if label and number_face.width(label) < step - 2:
            s.canvas.text(
                x - number_face.width(label) / 2,
                above - number_face.size * 1.15,
                label,
                number_face,
                (30, 130, 60) if label[0] == "+" else (190, 40, 40),
            )
            growth[category] = label
    return growth


def _draw_side_bars(
    s: Sketch,
    categories: list[str],
    numbers: list[float],
    shown: list[str],
    top: float,
    palette: list[Colour],
    ink: Colour,
) -> None:
    pitch = min(s.largest_size(24) * 1.8, (s.height - top - 8) / len(categories))
    face = s.fit(categories, s.width * 0.4, pitch * 0.75)
    lane = max(map(face.width, categories)) + 18
    room = s.width - lane - max(map(face.width, shown)) - 20
    if room < 40:
        raise DoesNotFit
    y = top + s.uniform(0, s.height - top - 6 - pitch * len(categories))
    one_colour = s.chance(0.5)
    for i, (category, number, text) in enumerate(zip(categories, numbers, shown, strict=True)):
        s.canvas.text(8, y + pitch / 2, category, face, ink)
        length = max(2.0, room * number / max(numbers))
        s.canvas.pen.rectangle(
            (lane, y + pitch * 0.2, lane + length, y + pitch * 0.8),
            palette[0 if one_colour else i % 10],
        )
        s.canvas.text(lane + length + 6, y + pitch / 2, text, face, ink)
        s.transcript.append(f"{category} {text}")
        y += pitch


def _draw_pie(
    s: Sketch,
    categories: list[str],
    numbers: list[float],
    shown: list[str],
    top: float,
    palette: list[Colour],
    ink: Colour,
) -> None:
    radius = min((s.height - top) / 2 - 8, s.width * 0.25)
    if radius < 30:
        raise DoesNotFit
    legend = [f"{c} {v}" for c, v in zip(categories, shown, strict=True)]
    face = s.fit(
        legend,
        s.width - 2 * radius - 64,
        min(s.largest_size(22), (s.height - top) / len(legend) / 1.15),
    )
    pitch = min(face.size * 1.6, (s.height - top) / len(legend))
    x, middle = radius + 14, top + (s.height - top) / 2
    y = middle - pitch * len(legend) / 2
    angle = -90.0
    edge = x + radius + 14
    ground = s.canvas.background
    for i, (number, text) in enumerate(zip(numbers, legend, strict=True)):
        end = angle + 3.6 * number
        box = (x - radius, middle - radius, x + radius, middle + radius)
        s.canvas.pen.pieslice(box, angle, end, fill=palette[i % 10], outline=ground)
        angle = end
        s.canvas.pen.rectangle(
            (edge, y + pitch / 2 - 6, edge + 12, y + pitch / 2 + 6), palette[i % 10]
        )
        s.write(edge + 20, y + pitch / 2, text, face, ink)
        y += pitch


def _draw_two_series(
    s: Sketch,
    title: str,
    categories: list[str],
    first: list[float],
    top: float,
    palette: list[Colour],
    ink: Colour,
) -> None:
    """Grouped bars of two series with a legend."""
    if len(categories) > 4:
        categories, first = categories[:4], first[:4]
    second = _numbers(s, len(categories), "pair")
    names = (
        s.sample(s.say(SERIES, SERIES_ZH), 2)
        if s.chance(0.7)
        else s.distinct(lambda: values.name_word(s)[:8], 2)
    )
    if len(names) < 2:
        raise DoesNotFit
    scale = max(first) / max(second)
    if not 0.3 < scale < 3:
        second = [max(1.0, round(v * scale)) for v in second]
    step = (s.width - 24) / len(categories)
    shown = [[_shown(v, "pair") for v in row] for row in (first, second)]
    face = s.fit(categories, step - 6, s.largest_size(18))
    number_face = s.fit([*shown[0], *shown[1]], step / 2 - 4, face.size + 2)
    legend_face = s.fit([names[0] + names[1]], s.width - 110, face.size)
    x = (s.width - legend_face.width(names[0] + names[1]) - 80) / 2
    for name, colour in zip(names, palette, strict=False):
        s.canvas.pen.rectangle((x, top - 2, x + 12, top + 10), colour)
        x += 20 + s.canvas.text(x + 18, top + 4, name, legend_face, ink) + 20
    top += legend_face.size + 8
    base = s.height - face.size * 1.7
    if base - top - number_face.size * 1.5 < 40:
        raise DoesNotFit
    highest = max(*first, *second)
    s.canvas.pen.line((12, base, s.width - 12, base), ink)
    for i, category in enumerate(categories):
        middle = 12 + step * (i + 0.5)
        s.canvas.text(
            middle - face.width(category) / 2, base + face.size * 0.8, category, face, ink
        )
        for k, number in enumerate((first[i], second[i])):
            left = middle + (-step * 0.46 if k == 0 else step * 0.02)
            right = left + step * 0.44
            y = base - (base - top - number_face.size * 1.5) * number / highest
            s.canvas.pen.rectangle((left, y, right, base), palette[k])
            text = shown[k][i]
            s.canvas.text(
                (left + right - number_face.width(text)) / 2,
                y - number_face.size * 0.75,
                text,
                number_face,
                ink,
            )
    s.ask("title", title)
    for _ in range(4):
        i, k = s.between(0, len(categories) - 1), s.between(0, 1)
        s.ask("series_value", shown[k][i], x=categories[i], y=names[k])
    s.ask("legend", ", ".join(names))
    s.ask("num_categories", str(len(categories)))
    rows = zip(categories, shown[0], shown[1], strict=True)
    s.ask("data", "\n".join(f"{c}: {names[0]} {a}, {names[1]} {b}" for c, a, b in rows))
    s.ask_text_box()
    s.ask_kind(BAR)
    s.ask(
        "summary",
        (
            f"A bar chart titled {title} that compares {names[0]} and {names[1]}.",
            f"一张柱状图,标题是{title},对比{names[0]}和{names[1]}。",
        ),
    )
