"""Plain print: loose lines, paragraphs, signs and notes."""

# ruff: noqa: E501 - lists of words read better whole
from __future__ import annotations

from collections.abc import Callable

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch

COLOURS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "red": ("红色", (215, 40, 40)),
    "green": ("绿色", (40, 155, 60)),
    "blue": ("蓝色", (40, 85, 220)),
    "yellow": ("黄色", (240, 215, 40)),
    "orange": ("橙色", (245, 140, 30)),
    "purple": ("紫色", (140, 60, 180)),
    "black": ("黑色", (25, 25, 25)),
    "gray": ("灰色", (130, 130, 130)),
    "pink": ("粉色", (245, 150, 190)),
    "brown": ("棕色", (130, 80, 40)),
    "cyan": ("青色", (50, 200, 220)),
    "white": ("白色", (250, 250, 250)),
}
SIGNS = "EXIT|ENTRANCE|STOP|OPEN|CLOSED|SALE|NO SMOKING|PARKING|CAUTION|WELCOME|PUSH|PULL|TICKETS|LIFT|TAXI|HELP"
SIGNS_ZH = "出口|入口|小心地滑|禁止吸烟|请勿触摸|营业中|休息中|停车场|洗手间|电梯|特价|打折|请排队|安全出口|服务台"
TEXT: Pair = ("printed text", "一段文字")
SIGN: Pair = ("a sign", "一块标牌")


def draw_lines(s: Sketch) -> None:
    """Loose lines of words, numbers and codes, up to 120 px tall."""
    ink = s.paper()
    most = max(1, min(int(s.height / 34), int(1 + s.difficulty * 9)))
    lines = [_loose_line(s) for _ in range(s.between(1, most))]
    if s.chance(0.2 * s.difficulty + 0.1):
        lines = lines[:2]
        largest = float(s.between(40, 120))
    else:
        largest = float(s.choose((16, 18, 22, 26, 30, 36, 44)))
    face = s.fit(lines, s.width - 16, min(largest, s.height / len(lines) / 1.1))
    line = min(s.height / len(lines), face.size * s.uniform(1.15, 2.2))
    y = s.uniform(0, s.height - line * len(lines)) + line / 2
    widths = [face.width(t) for t in lines]
    shared_left = s.uniform(4, s.width - 4 - max(widths))
    align = s.choose(("left", "left", "centre", "ragged"))
    for text, width in zip(lines, widths, strict=True):
        x = {
            "left": shared_left,
            "centre": (s.width - width) / 2,
            "ragged": s.uniform(4, s.width - 4 - width),
        }[align]
        s.write(x, y, text, face, ink)
        y += line
    s.ask_transcript()
    _ask_about_lines(s, lines)
    s.ask_kind(TEXT)


def draw_paragraph(s: Sketch) -> None:
    """A block of running text."""
    ink = s.paper()
    size = s.between(s.smallest_size + 1, 24 if s.chance(0.8) else 34)
    face = s.face(size)
    pitch = size * s.uniform(1.2, 1.6)
    per_line = (s.width - 16) / face.width(s.say("n", "国"))
    short_enough = int(s.say(750, 300) / per_line)  # answers stay within what training supervises
    most = min(int((s.height - 12) / pitch), int(2 + s.difficulty * 12), short_enough)
    if most < 2:
        raise DoesNotFit
    lines = [_running_line(s, face.width, s.width - 16) for _ in range(s.between(2, most))]
    y = s.uniform(6, s.height - 6 - pitch * len(lines)) + pitch / 2
    for text in lines:
        s.write(8, y, text, face, ink)
        y += pitch
    s.ask_transcript()
    _ask_about_lines(s, lines)
    if not s.is_chinese:
        found = " ".join(lines).split(" ")
        once = [i for i, w in enumerate(found[:-1]) if found.count(w) == 1 and w.isalpha()]
        if once:
            index = s.choose(once)
            s.ask("word_after", found[index + 1], x=found[index])
    s.ask_kind(TEXT)


def draw_sign(s: Sketch) -> None:
    """A sign: few large words on a coloured ground."""
    ground = s.choose([c for c in COLOURS if c not in ("pink", "cyan")])
    light_ground = sum(COLOURS[ground][1]) > 480
    letters = "black" if light_ground else s.choose(("white", "white", "yellow"))
    if (ground, letters) == ("orange", "yellow"):
        letters = "white"
    s.start(COLOURS[ground][1])
    if s.chance(0.5):
        lines = [s.choose(s.say(SIGNS, SIGNS_ZH).split("|"))]
    else:
        lines = [values.name_word(s) for _ in range(s.between(1, 3))]
        lines = [t.upper() if s.chance(0.5) else t for t in lines]
    if s.chance(0.3):
        lines.append(values.money(values.amount(s), s.say("$", "¥")))
    face = s.fit(lines, s.width - 24, min(s.between(30, 120), (s.height - 16) / len(lines) / 1.25))
    pitch = min(face.size * 1.35, (s.height - 10) / len(lines))
    y = (s.height - pitch * len(lines)) / 2 + pitch / 2
    fill = COLOURS[letters][1]
    for text in lines:
        s.write((s.width - face.width(text)) / 2, y, text, face, fill)
        y += pitch
    if s.chance(0.4):
        s.canvas.pen.rectangle((4, 4, s.width - 5, s.height - 5), outline=fill, width=2)
    s.ask_transcript()
    s.ask("background", (ground, COLOURS[ground][0]))
    s.ask("ink", (letters, COLOURS[letters][0]))
    s.ask_text_box()
    s.ask_kind(SIGN)
    said = " ".join(lines)
    s.ask(
        "summary",
        (
            f"{'An' if ground == 'orange' else 'A'} {ground} sign that says {said}.",
            f"一块{COLOURS[ground][0]}标牌,写着{said}。",
        ),
    )


def _loose_line(s: Sketch) -> str:
    dice = s.rng.random()
    if s.is_chinese:
        if dice < 0.35:
            return values.chinese_word(s)
        if dice < 0.55:
            return values.chinese_word(s) + values.chinese_word(s)
        if dice < 0.65:
            return values.code(s)
        if dice < 0.72:
            return values.chinese_word(s) + s.choose((":", " ", "：")) + str(s.between(0, 99999))
        return values.chinese_characters(s, s.between(1, 6))
    if dice < 0.3:
        text = values.english_word(s)
    elif dice < 0.6:
        text = " ".join(values.english_word(s) for _ in range(s.between(2, 3)))
    elif dice < 0.75:
        return values.code(s)
    elif dice < 0.85:
        return f"{s.between(0, 9999)}.{s.between(0, 99):02d}"
    else:
        text = f"{values.english_word(s)}{s.choose((':', ' -', ' &', '/', ' #', ','))} {values.english_word(s)}"
    dice = s.rng.random()
    if dice < 0.2:
        return text.upper()
    if dice < 0.5:
        return text.capitalize()
    return text.title() if dice < 0.65 else text


def _running_line(s: Sketch, measure: Callable[[str], float], width: float) -> str:
    """Words up to the width; `measure` gives a text's width in pixels."""
    text = ""
    for _ in range(40):
        if s.is_chinese:
            piece = values.chinese_word(s) if s.chance(0.7) else values.chinese_characters(s, 1)
            if s.chance(0.12):
                piece += s.choose(",。,、")
            longer = text + piece
        else:
            piece = values.english_word(s) if s.chance(0.88) else str(s.between(0, 2030))
            if s.chance(0.12):
                piece += s.choose(",.;:!?")
            longer = f"{text} {piece}" if text else piece.capitalize()
        if measure(longer) > width:
            break
        text = longer
    if not text:
        raise DoesNotFit
    return text


def _ask_about_lines(s: Sketch, lines: list[str]) -> None:
    if len(lines) > 1:
        index = s.between(1, len(lines))
        s.ask("line", lines[index - 1], x=str(index))
        s.ask(*s.choose((("first_line", lines[0]), ("last_line", lines[-1]))))
        s.ask("num_lines", str(len(lines)))
    s.ask_text_box()
    here = s.choose(s.choose(lines).split(" "))
    elsewhere = values.chinese_word(s) if s.is_chinese else values.english_word(s)
    if s.chance(0.5):
        s.ask_yes_no("contains", True, x=here)
    elif elsewhere not in " ".join(lines).lower():
        s.ask_yes_no("contains", False, x=elsewhere)
    if s.chance(0.3) and elsewhere not in " ".join(lines).lower() and here not in elsewhere:
        pair = [here, elsewhere]
        s.rng.shuffle(pair)
        joined = s.choose((", ", ",")).join(pair)
        s.ask("banned", here, x=joined)
    if s.chance(0.12):
        s.ask_absent(s.choose(("total", "phone", "expiry", "price")), x=elsewhere)
