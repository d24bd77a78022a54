"""Tables with a header row."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from visiongate.mini.scenes import values, words
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch

TABLE: Pair = ("a table", "一张表格")
HEADER_GROUNDS = ((220, 228, 240), (230, 230, 230), (210, 235, 215), (60, 80, 120), (40, 40, 48))


def draw(s: Sketch) -> None:
    """A table of two to five columns; some columns hold numbers that can be averaged."""
    headers, names, cells = _content(s)
    columns, rows = len(headers), len(names)
    probe = s.face(32)
    grid = [headers, *cells]
    widths = [max(probe.width(row[j]) for row in grid) / 32 for j in range(columns)]
    padding = s.between(8, 16)
    size = int(
        min(
            s.largest_size(22),
            (s.width - 12 - padding * columns) / sum(widths),
            (s.height - 10) / (rows + 1) / 1.25,
        )
    )
    if size < s.smallest_size:
        raise DoesNotFit
    ink = s.paper()
    face, bold = s.face(size), s.bold_face(size) if s.chance(0.4) else s.face(size)
    spare = s.width - 12 - sum(w * size + padding for w in widths)
    stretch = spare / columns * (1.0 if s.chance(0.6) else 0.15)
    lanes = [w * size + padding + max(0.0, stretch) for w in widths]
    pitch = min((s.height - 10) / (rows + 1), size * s.uniform(1.3, 2.2))
    left = s.uniform(5, s.width - 5 - sum(lanes))
    top = s.uniform(5, s.height - 5 - pitch * (rows + 1))
    style = s.choose(("grid", "lines", "bare", "stripes"))
    rule = (s.between(90, 190),) * 3
    pen = s.canvas.pen
    right = left + sum(lanes)
    header_ink = ink
    if sum(s.canvas.background) > 400 and s.chance(0.6):
        ground = s.choose(HEADER_GROUNDS)
        pen.rectangle((left, top, right, top + pitch), ground)
        header_ink = (255, 255, 255) if sum(ground) < 300 else ink
    align = s.choose(("left", "right", "centre"))
    for i, row in enumerate(grid):
        y = top + pitch * i
        if style == "stripes" and i % 2 == 0 and i and sum(s.canvas.background) > 600:
            pen.rectangle((left, y, right, y + pitch), (240, 242, 246))
        x = left
        used = face if i else bold
        for j, text in enumerate(row):
            slack = lanes[j] - used.width(text) - padding
            shift = 0.0 if j == 0 or align == "left" else slack if align == "right" else slack / 2
            s.canvas.text(
                x + padding / 2 + max(-padding / 2, shift),
                y + pitch / 2,
                text,
                used,
                ink if i else header_ink,
            )
            x += lanes[j]
        if style in ("grid", "lines") or i == 0:
            pen.line((left, y + pitch, right, y + pitch), rule)
        s.transcript.append(" ".join(row))
    if style == "grid":
        pen.rectangle((left, top, right, top + pitch * (rows + 1)), outline=rule)
        x = left
        for lane in lanes[:-1]:
            x += lane
            pen.line((x, top, x, top + pitch * (rows + 1)), rule)

    s.ask_transcript()
    _ask(s, headers, names, cells)


def _content(s: Sketch) -> tuple[list[str], list[str], list[list[str]]]:
    """Headers, the first cell of each row, and all cells (the first column included)."""
    columns = s.between(2, 3 if s.width < 330 else 5 if s.width > 450 and s.chance(0.4) else 4)
    room = int((s.height - 10) / (s.smallest_size * 1.4)) - 1
    rows = s.between(2, max(2, min(room, int(2 + s.difficulty * 7))))
    theme = s.between(0, 4)
    if theme == 0:
        subjects = s.say(
            ("Math", "English", "Science", "Age", "Score", "Art", "Points"),
            ("数学", "语文", "英语", "物理", "化学", "体育", "得分"),
        )
        headers = [s.say("Name", "姓名"), *s.sample(subjects, columns - 1)]
        names = s.distinct(
            lambda: values.person(s) if s.is_chinese else s.choose(words.GIVEN_NAMES), rows
        )

        def maker(header: str) -> str:
            return str(s.between(10, 100))

    elif theme == 1:
        facts = s.say(
            ("Price", "Stock", "Sold", "Qty", "Weight"), ("价格", "库存", "销量", "数量", "重量")
        )
        headers = [
            s.say(s.choose(("Product", "Item")), s.choose(("产品", "商品"))),
            *s.sample(facts, columns - 1),
        ]
        names = s.distinct(lambda: values.goods(s), rows)

        def maker(header: str) -> str:
            if header in ("Price", "价格"):
                return f"{s.between(1, 200)}.{s.between(0, 99):02d}"
            return str(s.between(1, 999))

    elif theme == 2:
        facts = s.say(
            ("Temp", "Rain", "Sales", "Staff", "Shops"), ("人数", "温度", "产量", "收入", "门店")
        )
        headers = [s.say("City", "城市"), *s.sample(facts, columns - 1)]
        names = s.sample(s.say(words.CITIES, words.CITIES_ZH), rows)

        def maker(header: str) -> str:
            is_degrees = header in ("Temp", "温度")
            return str(s.between(-10, 40) if is_degrees else s.between(1, 9999))

    elif theme == 3:
        headers = [s.say("Quarter", "季度"), *s.distinct(lambda: values.name_word(s), columns - 1)]
        names = [s.say(f"Q{i + 1}", f"第{'一二三四'[i]}季度") for i in range(min(4, rows))]

        def maker(header: str) -> str:
            return str(s.between(1, 99))

    else:
        headers = s.distinct(
            lambda: values.chinese_word(s, 2) if s.is_chinese else values.name_word(s), columns
        )
        names = s.distinct(lambda: values.name_word(s), rows)
        kinds = {h: s.choose(("number", "number", "word", "code")) for h in headers}
        makers: dict[str, Callable[[], str]] = {
            "number": lambda: str(s.between(0, 999)),
            "word": lambda: values.name_word(s),
            "code": lambda: values.code(s)[:8],
        }

        def maker(header: str) -> str:
            return makers[kinds[header]]()

    if len(headers) != columns or len(set(headers)) < columns or len(set(names)) < 2:
        raise DoesNotFit
    cells = [[name, *(maker(h) for h in headers[1:])] for name in names]
    return headers, names, cells


def _ask(s: Sketch, headers: list[str], names: list[str], cells: list[list[str]]) -> None:
    columns, rows = len(headers), len(names)
    for _ in range(4):
        i, j = s.between(0, rows - 1), s.between(1, columns - 1)
        header = headers[j].lower() if not s.is_chinese and s.chance(0.3) else headers[j]
        s.ask("cell", cells[i][j], x=names[i], y=header)
    i, j = s.between(0, rows - 1), s.between(0, columns - 1)
    s.ask("cell_number", cells[i][j], x=str(i + 1), y=str(j + 1))
    i = s.between(0, rows - 1)
    s.ask("row", " ".join(cells[i]), x=names[i])
    j = s.between(1, columns - 1)
    s.ask("column", "\n".join(row[j] for row in cells), x=headers[j])
    unknown = values.name_word(s)
    if unknown not in names and s.chance(0.3):
        s.ask_absent("cell", x=unknown, y=headers[1])
    numeric = [j for j in range(1, columns) if all(row[j].lstrip("-").isdigit() for row in cells)]
    if numeric:
        j = s.choose(numeric)
        column = [int(row[j]) for row in cells]
        if rows <= 5 and max(column) <= 100 and min(column) >= 0:
            steps = average_steps(column)
            s.ask("average", steps, x=headers[j])
            s.ask("average_number", steps, x=str(j + 1))
        if len(set(column)) == rows:
            s.ask("column_max", names[column.index(max(column))], x=headers[j])
            s.ask("column_min", names[column.index(min(column))], x=headers[j])
    s.ask("num_rows", str(rows))
    s.ask("num_columns", str(columns))
    s.ask("headers", ", ".join(headers))
    s.ask("csv", "\n".join(",".join(row) for row in [headers, *cells]))
    ruler = "|" + "---|" * columns
    body = ["| " + " | ".join(row) + " |" for row in cells]
    s.ask("markdown", "\n".join(["| " + " | ".join(headers) + " |", ruler, *body]))
    s.ask_text_box()
    s.ask_kind(TABLE)
    s.ask(
        "summary",
        (
            f"A table with {rows} rows and columns {', '.join(headers)}.",
            f"一张表格,有{rows}行,列名是{'、'.join(headers)}。",
        ),
    )


def average_steps(column: list[int]) -> str:
    """The average of whole numbers, worked out the way the model can follow: sum by sum.

    For example "40 + 52 = 92, 92 + 61 = 153, 153 / 3 = 51". Rounded to two decimals.
    """
    total, steps = column[0], []
    for value in column[1:]:
        steps.append(f"{total} + {value} = {total + value}")
        total += value
    mean = Fraction(total, len(column))
    shown = f"{float(mean):.2f}".rstrip("0").rstrip(".")
    return ", ".join([*steps, f"{total} / {len(column)} = {shown}"])
