"""Receipts and invoices."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from collections.abc import Callable

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.layout import Row, choose_size, draw_rows
from visiongate.mini.scenes.sketch import Sketch

RECEIPT: Pair = ("a receipt", "一张购物小票")
INVOICE: Pair = ("an invoice", "一张发票")
TOTALS = "Total|TOTAL|Total|Amount Due|Grand Total|Balance Due|Total Due|To Pay|Total Amount|Amount Payable".split(
    "|"
)
TOTALS_ZH = "合计|总计|应付|实付|总金额|合计金额|应付金额|总额|应收".split("|")
TAXES = "Tax|VAT|GST|Sales Tax|Tax 8%|VAT 20%|Tax (5%)|TAX".split("|")
TAXES_ZH = "税额|税费|增值税|税金|税".split("|")
SUBTOTALS = "Subtotal|Sub-total|SUBTOTAL|Net|Sub Total".split("|")
SUBTOTALS_ZH = "小计|商品小计|税前金额|金额小计".split("|")
THANKS = "Thank you!|THANK YOU|Have a nice day|Please come again|Thank you for shopping|www.shop.com|Keep this receipt".split(
    "|"
)
THANKS_ZH = "谢谢惠顾|欢迎光临|欢迎下次光临|请保留小票|谢谢光临".split("|")


def draw(s: Sketch) -> None:
    """A receipt or invoice with items, sums and the usual other lines."""
    ink = s.paper()
    symbol = values.currency(s)
    is_invoice = s.chance(0.3)
    most_rows = int((s.height - 12) / (s.smallest_size * 1.35))
    count = s.between(1, max(1, min(9, most_rows - 6, int(2 + s.difficulty * 7))))
    items = s.distinct(lambda: values.goods(s) if s.chance(0.6) else values.dish(s), count)
    quantities = [s.choose((1, 1, 1, 2, 2, 3, 4, 5)) for _ in items]
    sums = [round(values.amount(s) * q, 2) for q in quantities]
    prices = [values.money(v, symbol) for v in sums]
    room = most_rows - len(items) - 3

    def has(probability: float) -> bool:
        nonlocal room
        if room <= 0 or not s.chance(probability):
            return False
        room -= 1
        return True

    # Header
    shop = values.merchant(s)
    rows = [Row("centre", (shop,), is_bold=True)]
    fields: dict[Pair, str] = {("merchant", "商家"): shop}
    if is_invoice and has(0.9):
        rows.append(
            Row("centre", (s.say(s.choose(("INVOICE", "Invoice", "TAX INVOICE")), "发票"),))
        )
    elif not is_invoice and has(0.25):
        rows.append(
            Row("centre", (s.say(s.choose(("RECEIPT", "Receipt", "SALES RECEIPT")), "购物小票"),))
        )
    details, known = _details(s, has)
    rows += details
    style = s.choose(("plain", "times", "columns"))
    rows.append(Row("rule"))
    if style == "columns":
        rows.append(Row("columns", s.say(("Item", "Qty", "Price"), ("商品", "数量", "金额"))))
    for name, quantity, price in zip(items, quantities, prices, strict=True):
        if style == "plain":
            rows.append(Row("pair", (name, price)))
        elif style == "times":
            rows.append(Row("pair", (s.say(f"{quantity} x {name}", f"{name} x{quantity}"), price)))
        else:
            rows.append(Row("columns", (name, str(quantity), price)))
    rows.append(Row("rule"))

    # Sums
    net = sum(sums)
    amounts = list(zip(items, prices, strict=True))
    asks: list[tuple[str, str]] = []
    total = net
    if has(0.5):
        subtotal_label = s.choose(s.say(SUBTOTALS, SUBTOTALS_ZH))
        amounts.append((subtotal_label, values.money(net, symbol)))
        asks.append(("subtotal", amounts[-1][1]))
        rows.append(Row("pair", amounts[-1]))
    if has(0.18):
        off = round(net * s.choose((0.05, 0.1, 0.2)), 2)
        total -= off
        amounts.append(
            (s.say("Discount", s.choose(("优惠", "折扣"))), "-" + values.money(off, symbol))
        )
        asks.append(("discount", amounts[-1][1]))
        rows.append(Row("pair", amounts[-1]))
    if has(0.5):
        tax = round(net * s.choose((0.05, 0.06, 0.08, 0.1, 0.13, 0.2)), 2)
        total += tax
        amounts.append((s.choose(s.say(TAXES, TAXES_ZH)), values.money(tax, symbol)))
        asks.append(("tax", amounts[-1][1]))
        fields["tax", "税额"] = amounts[-1][1]
        rows.append(Row("pair", amounts[-1]))
    total_text = values.money(total, symbol)
    total_label = s.choose(s.say(TOTALS, TOTALS_ZH))
    rows.append(Row("pair", (total_label, total_text), is_bold=s.chance(0.7)))
    total_row = len(rows) - 1
    amounts.append((total_label, total_text))
    fields["total", "总金额"] = total_text
    rows += _payment(s, has, total, symbol, asks, amounts)
    if has(0.35):
        rows.append(Row("centre", (s.choose(s.say(THANKS, THANKS_ZH)),)))

    # Drawing
    paper_width = s.width if s.chance(0.75) else s.between(int(s.width * 0.75), s.width)
    left = (s.width - paper_width) / 2 + s.between(6, 14)
    size = choose_size(s, rows, s.width - 2 * left, s.height - 8, s.largest_size(24))
    if paper_width < s.width:
        sheet = s.canvas.background
        s.canvas.pen.rectangle(
            (0, 0, s.width, s.height), s.choose(((90, 80, 70), (60, 70, 90), (170, 160, 150)))
        )
        s.canvas.pen.rectangle(
            ((s.width - paper_width) / 2, 0, (s.width + paper_width) / 2, s.height), sheet
        )
    placed = draw_rows(
        s,
        rows,
        left=left,
        right=s.width - left,
        top=4,
        bottom=s.height - 4,
        size=size,
        ink=ink,
        column_edges=(0.68, 1.0),
    )

    # Questions
    s.ask_transcript()
    s.ask("total", total_text)
    s.ask("merchant", shop)
    for key, answer in asks:
        s.ask(key, answer)
    for key, (name_pair, answer) in known.items():
        s.ask(key, answer)
        fields[name_pair] = answer
    for key in s.sample(
        [
            k
            for k in (
                "date",
                "number",
                "phone",
                "tax",
                "payment",
                "cashier",
                "discount",
                "address",
                "time",
            )
            if k not in known and k not in dict(asks)
        ],
        1,
    ):
        if not (key == "time" and "date" in known):
            s.ask_absent(key)
    for i in s.sample(range(len(items)), 2):
        s.ask("price", prices[i], x=items[i])
    if style != "plain":
        i = s.between(0, len(items) - 1)
        s.ask("quantity", str(quantities[i]), x=items[i])
    missing = values.goods(s)
    if missing not in items and s.chance(0.3):
        s.ask_absent("price", x=missing)
    s.ask("num_items", str(len(items)))
    s.ask("items", "\n".join(f"{n}: {p}" for n, p in zip(items, prices, strict=True)))
    s.ask("names", "\n".join(items))
    for _ in range(2):
        s.ask("amounts", "\n".join(f"{n}: {p}" for n, p in amounts))
    absent = [
        n for n in (("date", "日期"), ("phone", "电话"), ("number", "单号")) if n not in fields
    ]
    s.ask_json(fields, absent)
    if len(set(sums)) == len(sums) > 1:
        s.ask("dearest", items[sums.index(max(sums))])
        s.ask("cheapest", items[sums.index(min(sums))])
    s.ask_box(
        s.canvas.ink(*s.canvas.runs[placed[total_row][1]]), ("total amount", "总金额"), total_text
    )
    s.ask_text_box()
    kind = INVOICE if is_invoice else RECEIPT
    s.ask_kind(kind)
    s.facts["total"] = (total, total_text)
    plural = "s" if len(items) > 1 else ""
    s.ask(
        "summary",
        (
            f"{kind[0].capitalize()} from {shop} with {len(items)} item{plural}, total {total_text}.",
            f"{kind[1]},来自{shop},共{len(items)}件商品,合计{total_text}。",
        ),
    )


def _details(
    s: Sketch, has: Callable[[float], bool]
) -> tuple[list[Row], dict[str, tuple[Pair, str]]]:
    """The lines between the name and the items, shuffled, and what they tell."""
    known: dict[str, tuple[Pair, str]] = {}
    rows: list[Row] = []
    if has(0.75):
        day = values.date(s)
        shown = (
            s.say(s.choose(("Date: ", "", "Date ")), s.choose(("日期:", "", "日期：", "时间:")))
            + day
        )
        known["date"] = (("date", "日期"), day)
        if s.chance(0.4):
            moment = values.clock(s)
            shown += " " + moment
            known["time"] = (("time", "时间"), moment)
        rows.append(Row("left", (shown,)))
    if has(0.5):
        number = values.code(s)
        label = s.say(
            s.choose(("No: ", "Receipt #", "No. ", "Ref: ", "Invoice No: ", "Order # ")),
            s.choose(("单号:", "编号:", "No:", "订单号:")),
        )
        known["number"] = (("number", "单号"), number)
        rows.append(Row("left", (label + number,)))
    if has(0.3):
        number = values.phone(s)
        known["phone"] = (("phone", "电话"), number)
        rows.append(
            Row(
                s.choose(("left", "centre")),
                (s.say(s.choose(("Tel: ", "Phone: ", "")), s.choose(("电话:", "Tel:"))) + number,),
            )
        )
    if has(0.25):
        place = values.address(s)
        known["address"] = (("address", "地址"), place)
        rows.append(
            Row(s.choose(("left", "centre")), (s.say("", s.choose(("地址:", ""))) + place,))
        )
    if has(0.2):
        who = values.person(s)
        known["cashier"] = (("cashier", "收银员"), who)
        rows.append(Row("left", (s.say("Cashier: ", "收银员:") + who,)))
    s.rng.shuffle(rows)
    return rows, known


def _payment(
    s: Sketch,
    has: Callable[[float], bool],
    total: float,
    symbol: str,
    asks: list[tuple[str, str]],
    amounts: list[tuple[str, str]],
) -> list[Row]:
    """How it was paid; money given and change are the usual distractors beside the total."""
    if not has(0.35):
        return []
    way = s.choose(
        s.say(
            ("Cash", "Visa", "Card", "Mastercard", "Cash"),
            ("微信支付", "支付宝", "现金", "银行卡", "现金"),
        )
    )
    asks.append(("payment", way))
    given = total
    if way in ("Cash", "现金") and has(0.7):
        given = float(int(total / 10 + 1) * 10)
        back = values.money(given - total, symbol)
        asks.append(("change", back))
        lines = [(way, values.money(given, symbol)), (s.say("Change", "找零"), back)]
    else:
        lines = [(way, values.money(given, symbol))]
    amounts += lines
    return [Row("pair", line) for line in lines]
