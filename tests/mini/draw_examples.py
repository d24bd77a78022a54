"""Draws `examples/more`: by other code than the training's, in other layouts, as people send them.

    python tests/mini/draw_examples.py

Needs fonts-dejavu, fonts-ebgaramond, fonts-open-sans, fonts-noto-cjk and fonts-noto-mono. The drawn
files and their truths are committed; tests read those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

OUT = Path(__file__).parents[2] / "examples" / "more"
FONTS = Path("/usr/share/fonts")
FILES = {
    "sans": "truetype/dejavu/DejaVuSans.ttf",
    "bold": "truetype/dejavu/DejaVuSans-Bold.ttf",
    "mono": "truetype/noto/NotoMono-Regular.ttf",
    "serif": "truetype/dejavu/DejaVuSerif-Bold.ttf",
    "open": "truetype/open-sans/OpenSans-Semibold.ttf",
    "hand": "truetype/open-sans/OpenSans-Italic.ttf",
    "chinese": "opentype/noto/NotoSansCJK-Regular.ttc",
    "chinese-bold": "opentype/noto/NotoSansCJK-Bold.ttc",
    "song": "opentype/noto/NotoSerifCJK-Regular.ttc",
}
Pairs = list[tuple[str, str]]
Corner = tuple[float, float]


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the faces at a size."""
    index = 2 if "CJK" in FILES[name] else 0
    return ImageFont.truetype(FONTS / FILES[name], size, index)


class Sheet:
    """A page with the few strokes that these pictures need."""

    def __init__(self, width: int, height: int, ground: str = "white") -> None:
        self.image = Image.new("RGB", (width, height), ground)
        self.pen = ImageDraw.Draw(self.image)

    def put(self, x: float, y: float, text: str, face: str, size: int, ink: str = "black") -> None:
        """Text from its left edge."""
        self.pen.text((x, y), text, ink, font(face, size))

    def end(self, x: float, y: float, text: str, face: str, size: int, ink: str = "black") -> None:
        """Text up to its right edge."""
        self.pen.text((x, y), text, ink, font(face, size), anchor="ra")

    def middle(self, y: float, text: str, face: str, size: int, ink: str = "black") -> None:
        """Text centred on the page."""
        self.pen.text((self.image.width / 2, y), text, ink, font(face, size), anchor="ma")


def photo(image: Image.Image, seed: int, *, tilt: float = 0.03, noise: float = 5.0) -> Image.Image:
    """The page on a desk as a phone sees it."""
    rng = np.random.default_rng(seed)
    width, height = image.size
    big = (int(width * 1.12), int(height * 1.12))
    page = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    margin = [(width * 0.06, height * 0.06)] * 4
    corners: list[Corner] = [
        (x + m[0] + rng.uniform(-tilt, tilt) * width, y + m[1] + rng.uniform(-tilt, tilt) * height)
        for (x, y), m in zip(page, margin, strict=True)
    ]
    rows, right = [], []
    for (x, y), (u, v) in zip(corners, page, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    matrix = np.linalg.solve(np.array(rows), np.array(right))
    desk = tuple(int(c) for c in rng.integers(70, 130, 3))
    seen = image.transform(
        big,
        Image.Transform.PERSPECTIVE,
        tuple(matrix),
        Image.Resampling.BICUBIC,
        fillcolor=desk,
    ).filter(ImageFilter.GaussianBlur(0.6))
    pixels = np.asarray(seen, np.float64)
    slope = np.linspace(rng.uniform(0.72, 0.9), 1.0, big[0])[None, :, None]
    pixels = pixels * slope + rng.normal(0, noise, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# The pictures: each returns the page and the questions with their answers.


def grocery() -> tuple[Image.Image, Pairs]:
    """A till receipt in a typewriter face, with an address and VAT."""
    s = Sheet(460, 640)
    s.middle(24, "GREEN VALLEY FOODS", "mono", 24)
    s.middle(60, "17 Station Road, Leeds", "mono", 18)
    s.put(24, 104, "Date: 12/05/2026  18:42", "mono", 18)
    s.put(24, 132, "Receipt: 77120", "mono", 18)
    items = [
        ("Bananas", "1.15"),
        ("Whole Milk 2L", "1.89"),
        ("Rye Bread", "2.40"),
        ("Butter", "2.75"),
    ]
    for i, (name, price) in enumerate([*items, ("Coffee Beans", "6.49")]):
        s.put(24, 184 + 34 * i, name, "mono", 20)
        s.end(436, 184 + 34 * i, price, "mono", 20)
    s.put(24, 366, "-" * 34, "mono", 20)
    for i, (name, price) in enumerate([("Subtotal", "14.68"), ("VAT", "1.47")]):
        s.put(24, 396 + 34 * i, name, "mono", 20)
        s.end(436, 396 + 34 * i, price, "mono", 20)
    s.put(24, 474, "TOTAL", "mono", 26)
    s.end(436, 474, "16.15", "mono", 26)
    s.middle(560, "Thank you for shopping", "mono", 18)
    return photo(s.image, 1), [
        ("What is the total?", "16.15"),
        ("How much is the Butter?", "2.75"),
        ("What is the VAT?", "1.47"),
        ("What is the store name?", "GREEN VALLEY FOODS"),
    ]


def bill() -> tuple[Image.Image, Pairs]:
    """A restaurant's bill with quantities in front."""
    s = Sheet(420, 560, "#fbf7ee")
    s.middle(28, "Harbour Grill", "serif", 30)
    s.middle(76, "Table 12", "sans", 18)
    rows = [("2 x Fish Tacos", "$18.00"), ("1 x House Salad", "$7.50"), ("3 x Lemonade", "$9.00")]
    for i, (name, price) in enumerate(rows):
        s.put(28, 130 + 44 * i, name, "sans", 20)
        s.end(392, 130 + 44 * i, price, "sans", 20)
    s.pen.line((28, 280, 392, 280), "black", 2)
    s.put(28, 300, "Amount Due", "bold", 24)
    s.end(392, 300, "$34.50", "bold", 24)
    s.put(28, 350, "Cash", "sans", 20)
    s.end(392, 350, "$40.00", "sans", 20)
    s.put(28, 390, "Change", "sans", 20)
    s.end(392, 390, "$5.50", "sans", 20)
    return photo(s.image, 2, noise=8), [
        ("How much has to be paid?", "$34.50"),
        ("How much change was given?", "$5.50"),
        ("What is the quantity of Lemonade?", "3"),
        ("What is the phone number?", "That is not on the image."),
    ]


def chinese_receipt() -> tuple[Image.Image, Pairs]:
    """A Chinese till receipt."""
    s = Sheet(420, 600)
    s.middle(26, "阳光超市", "chinese-bold", 32)
    s.put(26, 90, "日期:2026-02-18", "chinese", 20)
    s.put(26, 122, "单号:80451", "chinese", 20)
    rows = [("苹果", "12.80"), ("牛奶", "25.50"), ("大米", "46.00"), ("酱油", "9.90")]
    for i, (name, price) in enumerate(rows):
        s.put(26, 180 + 46 * i, name, "chinese", 22)
        s.end(394, 180 + 46 * i, "¥" + price, "chinese", 22)
    s.pen.line((26, 374, 394, 374), "black")
    s.put(26, 396, "合计", "chinese-bold", 28)
    s.end(394, 396, "¥94.20", "chinese-bold", 28)
    s.middle(500, "谢谢惠顾", "chinese", 20)
    return photo(s.image, 3), [
        ("总金额是多少?", "¥94.20"),
        ("牛奶多少钱?", "¥25.50"),
        ("日期是什么?", "2026-02-18"),
        ("这是哪家店?", "阳光超市"),
    ]


def invoice() -> tuple[Image.Image, Pairs]:
    """An invoice with a block for the customer beside the number."""
    s = Sheet(560, 600)
    s.put(30, 28, "INVOICE", "bold", 34, "#204070")
    s.put(30, 84, "Invoice No: INV-20418", "sans", 18)
    s.put(30, 112, "Date: 3 March 2026", "sans", 18)
    s.put(330, 84, "Bill to:", "sans", 18, "#777777")
    s.put(330, 112, "Oak Trading", "bold", 18)
    s.pen.rectangle((30, 170, 530, 204), "#e4e9f2")
    for x, text in ((40, "Item"), (330, "Qty"), (440, "Price")):
        s.put(x, 176, text, "bold", 18)
    rows = [
        ("Web Design", "1", "$850.00"),
        ("Hosting", "12", "$144.00"),
        ("Support Plan", "1", "$60.00"),
    ]
    for i, row in enumerate(rows):
        for x, text in zip((40, 338, 440), row, strict=True):
            s.put(x, 220 + 40 * i, text, "sans", 18)
    s.put(330, 380, "Total Due", "bold", 20)
    s.put(440, 380, "$1,054.00", "bold", 18)
    return s.image, [
        ("What is the invoice number?", "INV-20418"),
        ("What is the total amount?", "$1,054.00"),
        ("What is the price of Hosting?", "$144.00"),
    ]


def licence() -> tuple[Image.Image, Pairs]:
    """A driving licence with small labels over large values."""
    s = Sheet(640, 400, "#eef3f8")
    s.pen.rectangle((0, 0, 640, 62), "#7a2430")
    s.put(24, 14, "DRIVER LICENCE", "bold", 28, "white")
    s.pen.rectangle((24, 90, 184, 290), "#c9d4e0")
    s.pen.ellipse((64, 120, 144, 210), "#e2b998")
    s.pen.pieslice((40, 220, 168, 360), 180, 360, "#405878")
    fields = [
        ("Name", "Nina Walker"),
        ("Date of Birth", "1990-07-21"),
        ("Expires", "2031-07-20"),
        ("Licence No", "W4410932"),
    ]
    for i, (label, value) in enumerate(fields):
        s.put(220, 84 + 72 * i, label, "sans", 16, "#667788")
        s.put(220, 106 + 72 * i, value, "open", 24)
    return photo(s.image, 5, tilt=0.02), [
        ("Which day does this card expire?", "2031-07-20"),
        ("Whose card is this?", "Nina Walker"),
        ("What is the Licence No?", "W4410932"),
        ("What is the title?", "DRIVER LICENCE"),
    ]


def chinese_card() -> tuple[Image.Image, Pairs]:
    """A Chinese staff card."""
    s = Sheet(560, 380, "#fdfdfd")
    s.pen.rectangle((0, 0, 560, 70), "#1c6b52")
    s.middle(14, "工作证", "chinese-bold", 34, "white")
    fields = [("姓名", "李晓东"), ("部门", "财务"), ("编号", "A20873"), ("有效期至", "2028-06-30")]
    for i, (label, value) in enumerate(fields):
        s.put(60, 96 + 64 * i, label + ":", "song", 26)
        s.put(220, 96 + 64 * i, value, "song", 26)
    return s.image, [
        ("有效期到什么时候?", "2028-06-30"),
        ("姓名是什么?", "李晓东"),
        ("编号是什么?", "A20873"),
    ]


def boarding_pass() -> tuple[Image.Image, Pairs]:
    """A boarding pass with its fields in two rows."""
    s = Sheet(680, 340)
    s.pen.rectangle((0, 0, 680, 60), "#2458a6")
    s.put(24, 12, "Boarding Pass", "bold", 28, "white")
    cells = [
        ("Name", "Carl Foster"),
        ("Flight", "BA2490"),
        ("Seat", "14C"),
        ("Gate", "B22"),
        ("City", "Lisbon"),
        ("Date", "2026-09-03"),
    ]
    for i, (label, value) in enumerate(cells):
        x, y = 28 + 220 * (i % 3), 92 + 110 * (i // 3)
        s.put(x, y, label, "sans", 18, "#777777")
        s.put(x, y + 26, value, "bold", 24)
    return s.image, [
        ("What is the Seat?", "14C"),
        ("What is the Gate?", "B22"),
        ("Which flight is it? Give the Flight.", "BA2490"),
    ]


def package() -> tuple[Image.Image, Pairs]:
    """The back of a packet."""
    s = Sheet(480, 480, "#fff6dd")
    s.middle(26, "Honey Oats", "serif", 36, "#8a4b10")
    rows = [
        ("Net Weight", "500 g"),
        ("Batch", "L40917"),
        ("Produced", "2026-01-10"),
        ("Best Before", "2027-01-09"),
        ("Origin", "Dublin"),
    ]
    for i, (label, value) in enumerate(rows):
        s.put(40, 110 + 62 * i, f"{label}: {value}", "open", 26)
    return photo(s.image, 8), [
        ("What is the best before date?", "2027-01-09"),
        ("What is the Batch?", "L40917"),
        ("What product is this?", "Honey Oats"),
    ]


def repair() -> tuple[Image.Image, Pairs]:
    """A work order as a ruled form."""
    s = Sheet(560, 520)
    s.middle(22, "Service Order", "bold", 30)
    rows = [
        ("Order No", "WO-3391"),
        ("Customer", "Grace Hall"),
        ("Fault", "Pump leaks oil"),
        ("Parts", "Seal, Gasket"),
        ("Hours", "2.5"),
        ("Technician", "Oscar Reed"),
    ]
    for i, (label, value) in enumerate(rows):
        y = 84 + 66 * i
        s.pen.rectangle((30, y, 530, y + 66), outline="#888888")
        s.pen.line((190, y, 190, y + 66), "#888888")
        s.put(42, y + 20, label, "open", 20)
        s.put(206, y + 20, value, "sans", 20)
    truth = {"fault": "Pump leaks oil", "parts": ["Seal", "Gasket"], "hours": "2.5"}
    return photo(s.image, 9, tilt=0.02), [
        ("What is the fault?", "Pump leaks oil"),
        ("How many hours were worked?", "2.5"),
        ("Extract fault, parts and hours as JSON.", json.dumps(truth)),
    ]


def chinese_repair() -> tuple[Image.Image, Pairs]:
    """A Chinese repair slip."""
    s = Sheet(480, 460)
    s.middle(24, "设备维修单", "chinese-bold", 30)
    lines = ["单号:20733", "故障:电机过热", "更换零件:轴承、皮带", "工时:3小时", "技师:陈国强"]
    for i, line in enumerate(lines):
        s.put(40, 96 + 64 * i, line, "chinese", 26)
    truth = {"故障": "电机过热", "零件": ["轴承", "皮带"], "工时": "3"}
    return s.image, [
        ("故障是什么?", "电机过热"),
        ("工时是多少?", "3"),
        ("以JSON格式输出故障、零件、工时。", json.dumps(truth, ensure_ascii=False)),
    ]


def menu() -> tuple[Image.Image, Pairs]:
    """A menu with a line of description under each dish."""
    s = Sheet(520, 640, "#fffdf7")
    s.middle(28, "Lunch", "serif", 40, "#303030")
    dishes = [
        ("Tomato Soup", "$6.50", "vegan"),
        ("Beef Stew", "$13.90", ""),
        ("Cheesecake", "$5.20", "contains nuts"),
        ("Iced Tea", "$3.00", ""),
    ]
    y = 120
    for name, price, note in dishes:
        s.put(40, y, name, "open", 28)
        s.end(480, y, price, "open", 28)
        if note:
            s.put(68, y + 44, note, "hand", 24, "#555555")
        y += 116 if note else 84
    truth = [{"dish": n, "price": p, "note": t} for n, p, t in dishes]
    return s.image, [
        ("How much is the Beef Stew?", "$13.90"),
        ("What is the note for Cheesecake?", "contains nuts"),
        ("What is the cheapest item?", "Iced Tea"),
        ("Extract the menu as JSON with dish, price and note.", json.dumps(truth)),
    ]


def chinese_menu() -> tuple[Image.Image, Pairs]:
    """A dark menu board."""
    s = Sheet(480, 560, "#20242a")
    s.middle(28, "今日特价", "chinese-bold", 38, "#ffd866")
    rows = [
        ("红烧肉", "48元"),
        ("清蒸鱼", "66元"),
        ("炒青菜", "22元"),
        ("牛肉面", "28元"),
        ("米饭", "3元"),
    ]
    for i, (name, price) in enumerate(rows):
        s.put(44, 116 + 78 * i, name, "chinese", 30, "white")
        s.end(436, 116 + 78 * i, price, "chinese", 30, "white")
    return photo(s.image, 12), [
        ("红烧肉多少钱?", "48元"),
        ("最贵的是什么?", "清蒸鱼"),
        ("标题是什么?", "今日特价"),
    ]


def marks() -> tuple[Image.Image, Pairs]:
    """A table of marks."""
    s = Sheet(520, 400)
    grid = [
        ("Name", "Math", "Science"),
        ("Emma", "82", "91"),
        ("Victor", "74", "66"),
        ("Julia", "90", "85"),
    ]
    for i, row in enumerate(grid):
        y = 30 + 84 * i
        s.pen.line((30, y + 70, 490, y + 70), "#aaaaaa")
        for x, text in zip((46, 230, 370), row, strict=True):
            s.put(x, y + 18, text, "bold" if i == 0 else "sans", 26)
    return s.image, [
        ("What is the Science of Victor?", "66"),
        ("Who has the highest Math?", "Julia"),
        ("What is the average of the Math column?", "82 + 74 = 156, 156 + 90 = 246, 246 / 3 = 82"),
        ("How many columns does the table have?", "3"),
    ]


def stock() -> tuple[Image.Image, Pairs]:
    """A photographed Chinese stock list."""
    s = Sheet(520, 420)
    grid = [
        ("产品", "价格", "库存"),
        ("台灯", "89.00", "35"),
        ("耳机", "129.00", "12"),
        ("键盘", "199.00", "8"),
        ("雨伞", "29.90", "64"),
    ]
    for i, row in enumerate(grid):
        y = 20 + 76 * i
        if i == 0:
            s.pen.rectangle((20, y, 500, y + 76), "#dde6f0")
        s.pen.rectangle((20, y, 500, y + 76), outline="#999999")
        for x, text in zip((40, 210, 380), row, strict=True):
            s.put(x, y + 18, text, "chinese", 28)
    return photo(s.image, 14, tilt=0.02), [
        ("耳机的价格是多少?", "129.00"),
        ("雨伞的库存是多少?", "64"),
        ("列名是什么?", "产品, 价格, 库存"),
    ]


def bars() -> tuple[Image.Image, Pairs]:
    """A bar chart with an axis and grid lines."""
    s = Sheet(600, 440)
    s.middle(14, "Quarterly Orders", "bold", 26)
    values = [("Q1", 120), ("Q2", 180), ("Q3", 150), ("Q4", 240)]
    for k in range(5):
        y = 380 - k * 70
        s.pen.line((40, y, 570, y), "#dddddd")
    for i, (name, value) in enumerate(values):
        x = 100 + 130 * i
        top = 380 - value * 1.1
        s.pen.rectangle((x - 36, top, x + 36, 380), "#c0504d")
        s.pen.text((x, 390), name, "black", font("sans", 22), anchor="ma")
        s.pen.text((x, top - 30), str(value), "black", font("sans", 22), anchor="ma")
    return s.image, [
        ("What is the value for Q3?", "150"),
        ("Which has the highest value?", "Q4 (240)"),
        ("Is Q1 higher than Q2?", "No"),
        ("What is the title?", "Quarterly Orders"),
    ]


def pie() -> tuple[Image.Image, Pairs]:
    """A pie with its legend underneath."""
    s = Sheet(460, 620)
    s.middle(20, "Budget", "bold", 30)
    parts = [
        ("Rent", 45, "#4472c4"),
        ("Food", 30, "#ed7d31"),
        ("Travel", 15, "#70ad47"),
        ("Other", 10, "#a5a5a5"),
    ]
    angle = -90.0
    for i, (name, share, colour) in enumerate(parts):
        s.pen.pieslice((100, 80, 360, 340), angle, angle + share * 3.6, colour)
        angle += share * 3.6
        s.pen.rectangle((120, 388 + 50 * i, 140, 408 + 50 * i), colour)
        s.put(160, 382 + 50 * i, f"{name} {share}%", "sans", 26)
    return s.image, [
        ("What is the value for Food?", "30%"),
        ("Which category is the largest?", "Rent (45%)"),
        ("What kind of image is this?", "A pie chart."),
    ]


def trend() -> tuple[Image.Image, Pairs]:
    """A line chart with the change printed at each point."""
    s = Sheet(640, 420)
    s.middle(12, "Revenue", "bold", 28)
    points = [("Q1", 200, ""), ("Q2", 250, "+25%"), ("Q3", 280, "+12%"), ("Q4", 266, "-5%")]
    places = [(90 + 150 * i, 360 - (v - 150) * 1.6) for i, (_, v, _) in enumerate(points)]
    s.pen.line((40, 366, 620, 366), "black")
    s.pen.line(places, "#2060c0", 3)
    for (x, y), (name, value, change) in zip(places, points, strict=True):
        s.pen.ellipse((x - 5, y - 5, x + 5, y + 5), "#2060c0")
        s.pen.text((x, 376), name, "black", font("sans", 22), anchor="ma")
        s.pen.text((x, y - 36), str(value), "black", font("sans", 22), anchor="ma")
        if change:
            ink = "#1e823c" if change[0] == "+" else "#be2828"
            s.pen.text((x, y - 64), change, ink, font("sans", 22), anchor="ma")
    return s.image, [
        ("What is the growth of Q3?", "+12%"),
        ("What is the value for Q2?", "250"),
        ("Did it rise or fall from Q3 to Q4?", "It falls."),
    ]


def shapes() -> tuple[Image.Image, Pairs]:
    """Large shapes on grey paper."""
    s = Sheet(560, 420, "#f1f1ee")
    s.pen.rectangle((60, 60, 200, 200), "#d62828")
    s.pen.ellipse((330, 50, 480, 200), "#2a5bd7")
    star = []
    for i in range(10):
        r, a = (80 if i % 2 == 0 else 34), math.pi * i / 5 - math.pi / 2
        star.append((280 + r * math.cos(a), 310 + r * math.sin(a)))
    s.pen.polygon(star, "#f0c419")
    return s.image, [
        ("How many shapes are there?", "3"),
        ("What color is the star?", "yellow"),
        ("Is the red square to the left of the blue circle?", "Yes"),
        ("Is there a green triangle?", "No"),
    ]


def phone_screen() -> tuple[Image.Image, Pairs]:
    """A shop's app with a failed payment."""
    s = Sheet(400, 700, "#f4f5f7")
    s.pen.rectangle((0, 0, 400, 60), "#5a3fc0")
    s.put(20, 16, "Payment", "open", 24, "white")
    s.pen.rectangle((20, 90, 380, 190), "#fde8e8", "#d04040")
    s.put(40, 106, "Payment failed", "open", 22, "#a01818")
    s.put(40, 146, "Error code: E4012", "sans", 20, "#a01818")
    s.put(20, 230, "Order No", "sans", 20, "#333333")
    s.pen.rectangle((20, 262, 380, 312), "white", "#999999")
    s.put(34, 274, "ORD-55821", "sans", 20)
    s.pen.rounded_rectangle((20, 360, 190, 420), 10, "#2858dc")
    s.put(70, 376, "Retry", "open", 22, "white")
    s.pen.rounded_rectangle((210, 360, 380, 420), 10, "#828282")
    s.put(262, 376, "Help", "open", 22, "white")
    return s.image, [
        ("What is the error message?", "Payment failed"),
        ("What is the error code?", "E4012"),
        ("List the buttons.", "Retry, Help"),
        ("What does the Order No field say?", "ORD-55821"),
    ]


def tile() -> tuple[Image.Image, Pairs]:
    """A shop's listing of a white dress."""
    s = Sheet(440, 640, "#dfe6ee")
    s.pen.polygon(
        [
            (170, 60),
            (200, 90),
            (240, 90),
            (270, 60),
            (262, 150),
            (320, 330),
            (120, 330),
            (178, 150),
        ],
        "#fbfbfb",
        "#777777",
    )
    lines = [
        ("Summer Dress", "#202020"),
        ("$39.00", "#c02020"),
        ("List price: $59.00", "#888888"),
        ("V-neck", "#202020"),
        ("Cotton", "#202020"),
    ]
    for i, (text, ink) in enumerate(lines):
        s.put(40, 370 + 50 * i, text, "open", 26, ink)
    return s.image, [
        ("What is the price?", "$39.00"),
        ("What is the list price?", "$59.00"),
        ("Is the price sensible?", "Yes: $39.00 is below the usual price of $59.00."),
        ("What product is this?", "Summer Dress"),
    ]


def note() -> tuple[Image.Image, Pairs]:
    """A note in a slanted face on yellow paper."""
    s = Sheet(480, 420, "#fff3a8")
    lines = ["Call Peter at noon", "Buy milk and bread", "Room 214 on Friday"]
    for i, line in enumerate(lines):
        s.put(40, 70 + 100 * i, line, "hand", 34, "#223a8a")
    return photo(s.image, 21), [
        ("Read all the text.", "\n".join(lines)),
        ("What is the first line?", lines[0]),
        ("How many lines of text are there?", "3"),
    ]


def sign() -> tuple[Image.Image, Pairs]:
    """A sign in bad light."""
    s = Sheet(560, 380, "#0f6b35")
    s.middle(70, "EXIT", "bold", 110, "white")
    s.middle(230, "Platform 7", "sans", 56, "white")
    return photo(s.image, 22, noise=14), [
        ("What does it say?", "EXIT\nPlatform 7"),
        ("What is the background color?", "green"),
    ]


def turned() -> tuple[Image.Image, Pairs]:
    """A receipt that the phone stored lying on its side; its EXIF says so."""
    image, _ = chinese_receipt()
    return image, [("合计多少钱?", "¥94.20"), ("大米的价格是多少?", "¥46.00")]


PICTURES: dict[str, Callable[[], tuple[Image.Image, Pairs]]] = {
    "grocery.jpg": grocery,
    "bill.jpg": bill,
    "receipt_zh.jpg": chinese_receipt,
    "invoice.png": invoice,
    "licence.jpg": licence,
    "staff_card_zh.png": chinese_card,
    "boarding_pass.png": boarding_pass,
    "package.jpg": package,
    "repair_order.jpg": repair,
    "repair_order_zh.png": chinese_repair,
    "menu_notes.png": menu,
    "menu_board_zh.jpg": chinese_menu,
    "marks.png": marks,
    "stock_zh.jpg": stock,
    "bars.png": bars,
    "pie.png": pie,
    "trend.png": trend,
    "shapes.png": shapes,
    "phone_screen.png": phone_screen,
    "product.png": tile,
    "note.jpg": note,
    "sign.jpg": sign,
    "turned_zh.jpg": turned,
}


# A screenshot of our own page at 560 x 640, taken with Chromium; not drawn here.
PAGE = {
    "file": "page.png",
    "kind": "page",
    "questions": [
        {"question": "What is the title?", "answer": "VisionGate mini"},
        {"question": "What kind of image is this?", "answer": "A screenshot."},
        {"question": 'Does the image contain the word "Ready"?', "answer": "Yes"},
        {"question": 'Does the image contain the word "Invoice"?', "answer": "No"},
    ],
}


def main() -> None:
    """Writes the pictures and `truths.json`."""
    OUT.mkdir(parents=True, exist_ok=True)
    truths = []
    for name, draw in PICTURES.items():
        image, questions = draw()
        if draw is turned:
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise by 90 degrees
            image.rotate(90, expand=True).save(OUT / name, quality=88, exif=exif)
        elif name.endswith(".jpg"):
            image.save(OUT / name, quality=88)
        else:
            image.save(OUT / name, optimize=True)
        asked = [{"question": q, "answer": a} for q, a in questions]
        truths.append({"file": name, "kind": draw.__name__.replace("_", " "), "questions": asked})
    body = json.dumps({"pictures": [*truths, PAGE]}, ensure_ascii=False, indent=1)
    (OUT / "truths.json").write_text(body + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
