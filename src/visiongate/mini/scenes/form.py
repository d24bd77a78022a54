"""Forms, ID cards, tickets and the printed labels on packages."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from collections.abc import Callable

from visiongate.mini.scenes import values, words
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.canvas import WHITE
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch

FORM: Pair = ("a form", "一张表单")
CARD: Pair = ("an ID card", "一张证件")
LABEL: Pair = ("a product label", "一张商品标签")
FORM_TITLES = "Application Form|Registration|Order Form|Customer Record|Boarding Pass|Profile|Patient Record|Shipping Note|Contract".split(
    "|"
)
FORM_TITLES_ZH = "登记表|申请表|客户信息|订单|报名表|入库单|病历|快递单|合同信息".split("|")
CARD_TITLES = "ID CARD|STAFF ID|MEMBER CARD|STUDENT ID|DRIVER LICENCE|VISITOR PASS|LIBRARY CARD|Identity Card|Passport".split(
    "|"
)
CARD_TITLES_ZH = "身份证|工作证|学生证|会员卡|驾驶证|访客证|借书证|居民身份证|护照".split("|")

# What a field asks for: its labels in both languages, and how its value is made.
EXPIRY = (
    "Expiry Date|Valid Until|Expires|Date of Expiry|Expiration|Valid Thru|EXP",
    "有效期|有效期至|到期日|有效期限|失效日期",
)
BIRTH = ("Date of Birth|Birth Date|Born|DOB", "出生日期|出生|生日")
NAME = ("Name|Full Name|Holder", "姓名|名字|持有人")
FIELDS: tuple[tuple[str, str, Callable[[Sketch], str]], ...] = (
    ("Gender|Sex", "性别", lambda s: s.choose(s.say(("Male", "Female", "M", "F"), ("男", "女")))),
    ("City|Place|Town", "城市|籍贯", lambda s: s.choose(s.say(words.CITIES, words.CITIES_ZH))),
    ("Phone|Tel|Mobile|Contact", "电话|手机|联系电话", values.phone),
    (
        "Email|E-mail",
        "邮箱|电子邮箱",
        lambda s: (
            f"{values.english_word(s)}{s.between(1, 99)}@{values.english_word(s)}{s.choose(('.com', '.org', '.net', '.cn'))}"
        ),
    ),
    (
        "ID Number|ID No|Card No|Licence No|Passport No",
        "证件号码|身份证号|卡号|编号",
        lambda s: values.digits(s, s.between(8, 14)) if s.chance(0.6) else values.code(s),
    ),
    ("Address|Home Address", "地址|住址|家庭住址", values.address),
    ("Position|Title|Role|Job", "职位|职务|岗位", values.name_word),
    ("Department|Dept|Team", "部门|科室|单位", values.name_word),
    ("Country|Nationality", "国家|国籍|民族", values.name_word),
    (
        "Order No|Reference|Account|Contract No|Tracking No",
        "订单号|合同号|账号|运单号|受理号",
        values.code,
    ),
    ("Customer|Client|Sender|Receiver", "客户|收件人|寄件人|联系人", values.person),
    (
        "Amount|Deposit|Fee|Balance",
        "金额|押金|费用|余额",
        lambda s: values.money(values.amount(s), values.currency(s)),
    ),
    (
        "Status|State",
        "状态|办理状态",
        lambda s: s.choose(
            s.say(
                ("Paid", "Unpaid", "Pending", "Done", "Active", "Closed"),
                ("已付", "未付", "处理中", "完成", "有效"),
            )
        ),
    ),
    ("Issue Date|Date of Issue|Issued", "签发日期|发证日期|办理日期", values.date),
    (
        "Flight|Train",
        "航班|车次",
        lambda s: f"{s.choose('ABCDEFGHM')}{s.choose('AUZNC')}{s.between(100, 9999)}",
    ),
    ("Seat", "座位", lambda s: f"{s.between(1, 40)}{s.choose('ABCDEF')}"),
    ("Gate", "登机口", lambda s: f"{s.choose('ABCD')}{s.between(1, 60)}"),
    ("Height", "身高", lambda s: f"{s.between(150, 199)} cm"),
    ("Weight|Net Weight", "体重|净重", lambda s: f"{s.between(40, 900)} {s.choose(('kg', 'g'))}"),
    ("Blood Type", "血型", lambda s: s.choose(("A", "B", "O", "AB"))),
    ("School|Company|Employer", "学校|公司|工作单位", values.merchant),
    ("Room|Floor|Ward", "房间|楼层|病房", lambda s: str(s.between(1, 2500))),
)
LABEL_FIELDS: tuple[tuple[str, str, Callable[[Sketch], str]], ...] = (
    (
        "Net Weight|Net Wt|Contents",
        "净含量|净重|规格",
        lambda s: f"{s.between(1, 60) * 10}{s.choose(('g', 'ml', ' g', ' ml'))}",
    ),
    ("Batch|Lot|Batch No", "批号|批次|产品批号", values.code),
    (
        "Made in|Origin|Country of Origin",
        "产地|原产地",
        lambda s: s.choose(s.say(words.CITIES, words.CITIES_ZH)),
    ),
    (
        "Ingredients|Contains",
        "配料|成分",
        lambda s: s.say(", ", "、").join(values.name_word(s) for _ in range(2)),
    ),
    ("Storage|Store", "贮存条件|储存方法", values.name_word),
    ("Produced|Production Date|MFG|Packed on", "生产日期", lambda s: values.date(s, 2015, 2026)),
    ("Maker|Manufacturer|Brand", "生产商|品牌|厂家", values.merchant),
    (
        "Price|Retail Price",
        "价格|零售价",
        lambda s: values.money(values.amount(s), values.currency(s)),
    ),
)
LABEL_EXPIRY = ("Best Before|Use By|Expiry Date|EXP|Best by", "保质期至|有效期至|到期日|保质期")


def draw_form(s: Sketch) -> None:
    """A form with labelled values."""
    title = s.choose(s.say(FORM_TITLES, FORM_TITLES_ZH)) if s.chance(0.7) else values.name_word(s)
    fields = _choose_fields(s, FIELDS, s.chance(0.35), s.chance(0.5), s.chance(0.15))
    _draw(s, title, fields, FORM, has_banner=s.chance(0.2))


def draw_card(s: Sketch) -> None:
    """An identity card, pass or licence; it always says until when it is valid."""
    title = s.choose(s.say(CARD_TITLES, CARD_TITLES_ZH))
    fields = _choose_fields(s, FIELDS, True, True, s.chance(0.5))
    _draw(s, title, fields, CARD, has_banner=s.chance(0.7))


def draw_label(s: Sketch) -> None:
    """The printed label of a packaged product."""
    name = values.goods(s)
    fields = _choose_fields(s, LABEL_FIELDS, True, False, False, LABEL_EXPIRY)
    _draw(s, name, fields, LABEL, has_banner=s.chance(0.3))
    s.ask("goods_name", name)


def _choose_fields(
    s: Sketch,
    choices: tuple[tuple[str, str, Callable[[Sketch], str]], ...],
    has_expiry: bool,
    has_name: bool,
    has_birth: bool,
    expiry: tuple[str, str] = EXPIRY,
) -> list[tuple[str, str, str]]:
    """Rows of (role, label, value); the role is "" or the template that asks for the row."""

    def label(english: str, chinese: str) -> str:
        text = s.choose(s.say(english, chinese).split("|"))
        return text.upper() if s.chance(0.08) and not s.is_chinese else text

    most = int((s.height - 30) / (s.smallest_size * 1.5)) - 1
    count = s.between(2, max(2, min(most, int(3 + s.difficulty * 7), 10)))
    rows: list[tuple[str, str, str]] = []
    if has_name:
        rows.append(("holder", label(*NAME), values.person(s)))
    if has_expiry:
        rows.append(("expiry", label(*expiry), values.date(s, 2018, 2045)))
    if has_birth:
        rows.append(("birth", label(*BIRTH), values.date(s, 1940, 2015)))
    for english, chinese, make in s.sample(choices, len(choices)):
        if len(rows) >= count:
            break
        if s.chance(0.25):  # a field that nobody has heard of
            text = values.name_word(s)
            if not s.is_chinese and s.chance(0.5):
                text += " " + values.name_word(s)
            rows.append(("", text, s.choose((values.name_word, values.code, values.person))(s)))
        else:
            rows.append(("", label(english, chinese), make(s)))
    unique = list({row[1].lower(): row for row in reversed(rows)}.values())[::-1]
    if s.chance(0.6):
        s.rng.shuffle(unique)
    if len(unique) < 2:
        raise DoesNotFit
    return unique


def _draw(
    s: Sketch, title: str, fields: list[tuple[str, str, str]], kind: Pair, *, has_banner: bool
) -> None:
    ink = s.paper()
    colon = s.choose(s.say((": ", ": ", ":", " "), (":", "：", ":", " ")))
    layout = s.choose(
        ("inline", "columns", "stacked") if len(fields) < 5 else ("inline", "columns")
    )
    height = s.height - 12
    rows = len(fields) * (2 if layout == "stacked" else 1)
    if layout == "inline":
        texts = [label + colon + value for _, label, value in fields]
    elif layout == "columns":
        widest = max(fields, key=lambda f: len(f[1]))[1]
        texts = [widest + "    " + value for _, _, value in fields]
    else:
        texts = [t for _, label, value in fields for t in (label, value)]
    largest = min(float(s.largest_size(26)), height / (rows + 1.4) / 1.15)
    face = s.fit([*texts, title], s.width - 30, largest)
    pitch = max(face.size * 1.1, min(height / (rows + 1.4), face.size * s.uniform(1.2, 2.0)))
    bold = s.bold_face(min(int(face.size * 1.2), int(pitch / 1.05)))
    if bold.width(title) > s.width - 16:
        bold = s.bold_face(face.size)
    title_x = (s.width - bold.width(title)) / 2 if s.chance(0.6) else 12
    title_ink = ink
    if has_banner:
        colour = (s.between(10, 150), s.between(20, 120), s.between(20, 190))
        s.canvas.pen.rectangle((0, 0, s.width, pitch + 8), colour)
        title_ink = WHITE
    s.write(title_x, pitch / 2 + 4, title, bold, title_ink)
    y = pitch + 12
    y += s.uniform(0, s.height - y - pitch * rows - 2)
    left = (
        14
        if kind is not CARD or s.chance(0.6)
        else _portrait(s, y, pitch * rows, texts, face.width)
    )
    value_x = left + max(face.width(label) for _, label, _ in fields) + s.between(12, 28)
    has_boxes = layout == "columns" and s.chance(0.35)
    inks: dict[str, tuple[float, float, float, float]] = {}
    for _, label, value in fields:
        if layout == "inline":
            s.write(left, y + pitch / 2, label + colon + value, face, ink)
        elif layout == "columns":
            if value_x + face.width(value) > s.width - 4:
                raise DoesNotFit
            if has_boxes:
                box = (value_x - 5, y + 1, s.width - 6, y + pitch - 1)
                s.canvas.pen.rectangle(box, outline=(150, 150, 150))
            s.canvas.text(left, y + pitch / 2, label, face, ink)
            s.canvas.text(value_x, y + pitch / 2, value, face, ink)
            inks[label] = s.canvas.last_ink()
            s.transcript.append(f"{label} {value}")
        else:
            s.write(left, y + pitch / 2, label, face, _faded(ink))
            y += pitch
            s.write(left, y + pitch / 2, value, face, ink)
            inks[label] = s.canvas.last_ink()
        y += pitch
    _ask(s, title, fields, kind, inks)


def _portrait(
    s: Sketch, top: float, height: float, texts: list[str], width: Callable[[str], float]
) -> float:
    """Draws a head-and-shoulders figure at the left where there is room; returns the text's left edge."""
    size = min(height, s.width * 0.26)
    if max(width(t) for t in texts) + size + 44 > s.width or size < 48:
        return 14
    pen = s.canvas.pen
    pen.rectangle((10, top, 10 + size, top + size * 1.2), fill=(215, 222, 232))
    skin = s.choose(((240, 205, 175), (200, 155, 120), (140, 95, 65)))
    pen.ellipse((10 + size * 0.3, top + size * 0.15, 10 + size * 0.7, top + size * 0.6), fill=skin)
    coat = (s.between(20, 120), s.between(20, 120), s.between(40, 160))
    pen.pieslice(
        (10 + size * 0.1, top + size * 0.65, 10 + size * 0.9, top + size * 1.7), 180, 360, fill=coat
    )
    return 24 + size


def _faded(ink: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = ((c + 60) if c < 128 else (c - 60) for c in ink)
    return red, green, blue


def _ask(
    s: Sketch,
    title: str,
    fields: list[tuple[str, str, str]],
    kind: Pair,
    inks: dict[str, tuple[float, float, float, float]],
) -> None:
    s.ask_transcript()
    s.ask("title", title)
    roles = {role for role, _, _ in fields}
    for role, _, value in fields:
        if role:
            s.ask(role, value)
    for key in ("expiry", "holder", "birth"):
        if key not in roles and s.chance(0.15):
            s.ask_absent(key)
    for _, label, value in s.sample(fields, 3):
        s.ask("field", value, x=label.lower() if not s.is_chinese and s.chance(0.3) else label)
    english, chinese, _ = s.choose(FIELDS)
    unknown = s.choose(s.say(english, chinese).split("|"))
    said = " ".join(label for _, label, _ in fields).lower()
    if unknown.lower() not in said and s.chance(0.5) and not (kind is LABEL and "eight" in unknown):
        s.ask_absent("field", x=unknown)
    s.ask("fields", "\n".join(f"{label}: {value}" for _, label, value in fields))
    pairs: dict[Pair, str] = {(label, label): value for _, label, value in fields}
    s.ask_json(pairs, [(unknown, unknown)] if unknown.lower() not in said else [])
    if inks:
        label = s.choose(list(inks))
        s.ask_box(
            inks[label],
            (f"value of {label}", f"{label}的值"),
            {name: value for _, name, value in fields}[label],
        )
    s.ask_text_box()
    s.ask_kind(kind)
    count = len(fields)
    s.ask(
        "summary",
        (
            f"{kind[0].capitalize() if kind is not CARD else 'An ID card'} titled {title} with {count} fields.",
            f"{kind[1]},标题是{title},有{count}个字段。",
        ),
    )
