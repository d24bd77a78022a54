"""Repair orders: fault, replaced parts, hours."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

import json

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.layout import Row, choose_size, draw_rows
from visiongate.mini.scenes.sketch import Sketch

REPAIR: Pair = ("a repair order", "一张维修单")
TITLES = "REPAIR ORDER|Repair Order|Work Order|Service Order|SERVICE REPORT|Job Card".split("|")
TITLES_ZH = "维修单|维修工单|检修记录|服务工单|报修单|设备维修单".split("|")
FAULT_LABELS = (
    "Fault|Problem|Complaint|Issue|Reported fault|Defect",
    "故障|故障现象|问题|故障描述|报修内容",
)
PART_LABELS = (
    "Parts|Replaced parts|Parts replaced|Parts used|Spare parts",
    "更换零件|零件|更换配件|配件|更换部件",
)
HOUR_LABELS = ("Hours|Labour|Labour hours|Work hours|Time spent", "工时|维修工时|用时|作业工时")
DEVICES = "Engine|Pump|Motor|Printer|Brake|Battery|Screen|Compressor|Gearbox|Heater|Fan|Door|Lift|Conveyor|Router|Camera|Clutch|Valve".split(
    "|"
)
DEVICES_ZH = "发动机|水泵|电机|打印机|刹车|电池|屏幕|压缩机|变速箱|空调|风扇|车门|电梯|传送带|路由器|摄像头|离合器|阀门".split(
    "|"
)
FAULTS = "overheats|does not start|makes noise|leaks oil|stops suddenly|vibrates|is broken|smells burnt|is slow|shows no picture|is blocked|loses power".split(
    "|"
)
FAULTS_ZH = (
    "过热|无法启动|有异响|漏油|突然停机|震动大|损坏|有焦味|运行慢|无显示|堵塞|动力不足".split("|")
)
PARTS = "Filter|Belt|Bearing|Fuse|Seal|Gasket|Cable|Sensor|Spark plug|Bulb|Switch|Relay|Hose|Chain|Brake pad|Oil|Fan blade|Spring".split(
    "|"
)
PARTS_ZH = "滤芯|皮带|轴承|保险丝|密封圈|垫片|电缆|传感器|火花塞|灯泡|开关|继电器|软管|链条|刹车片|机油|风扇叶|弹簧".split(
    "|"
)


def draw(s: Sketch) -> None:
    """A repair order with one fault, one to three parts and the hours worked."""
    ink = s.paper()
    title = s.choose(s.say(TITLES, TITLES_ZH))
    fault = _fault(s)
    parts = s.distinct(lambda: _part(s), s.between(1, 3))
    hours = s.choose(
        (
            str(s.between(1, 12)),
            f"{s.between(0, 9)}.5",
            f"{s.between(0, 9)}.{s.choose(('25', '75', '2', '8'))}",
        )
    )
    unit = s.choose(s.say((" h", "", " hours", "h"), ("小时", "", " 小时", "h")))
    colon = s.choose(s.say((": ", ": ", ":"), (":", "：")))
    rows: list[Row] = []
    asks: list[tuple[str, str]] = []

    def line(english: str, chinese: str, value: str) -> Row:
        return Row("left", (s.choose(s.say(english, chinese).split("|")) + colon + value,))

    if s.chance(0.6):
        asks.append(("number", values.code(s)))
        rows.append(line("No|Order No|Job No", "单号|编号|工单号", asks[-1][1]))
    if s.chance(0.6):
        asks.append(("date", values.date(s)))
        rows.append(line("Date", "日期|维修日期", asks[-1][1]))
    customer = values.person(s)
    if s.chance(0.4):
        rows.append(line("Customer", "客户|报修人", customer))
    body: list[list[Row]] = [[line(*FAULT_LABELS, fault)]]
    if s.chance(0.5) or len(parts) == 1:
        body.append([line(*PART_LABELS, s.say(", ", s.choose(("、", ","))).join(parts))])
    else:
        label = s.choose(s.say(*PART_LABELS).split("|")) + colon.strip()
        body.append(
            [Row("left", (label,)), *(Row("indent", (s.choose(("", "- ")) + p,)) for p in parts)]
        )
    body.append([line(*HOUR_LABELS, hours + unit)])
    if s.chance(0.25):
        s.rng.shuffle(body)
    rows += [row for block in body for row in block]
    if s.chance(0.5):
        asks.append(("technician", values.person(s)))
        rows.append(line("Technician|Engineer|Done by", "技师|维修人员|工程师", asks[-1][1]))
    if s.chance(0.35):
        asks.append(("total", values.money(values.amount(s), values.currency(s))))
        rows.append(line("Total|Cost|Total cost", "合计|费用合计|总费用", asks[-1][1]))
    heading = [Row("centre", (title,), is_bold=True)]
    if s.chance(0.5):
        shop = values.merchant(s)
        asks.append(("merchant", shop))
        heading.insert(s.between(0, 1), Row("centre", (shop,)))
    rows = [*heading, *([Row("rule")] if s.chance(0.6) else []), *rows]
    size = choose_size(s, rows, s.width - 28, s.height - 12, s.largest_size(24))
    draw_rows(s, rows, left=14, right=s.width - 14, top=6, bottom=s.height - 6, size=size, ink=ink)

    s.ask_transcript()
    s.ask("title", title)
    s.ask("fault", fault)
    s.ask("parts", ", ".join(parts))
    s.ask("hours", hours)
    for _ in range(3):
        chinese = s.asks_chinese and s.chance(0.4)
        keys = ("故障", "零件", "工时") if chinese else ("fault", "parts", "hours")
        truth = dict(zip(keys, (fault, parts, hours), strict=True))
        _ask_json(s, chinese, json.dumps(truth, ensure_ascii=False))
    for key, answer in asks:
        s.ask(key, answer)
    for key in s.sample(
        [k for k in ("number", "date", "total", "phone", "technician") if k not in dict(asks)], 1
    ):
        s.ask_absent(key)
    s.ask_text_box()
    s.ask_kind(REPAIR)
    joined = ", ".join(parts)
    s.ask(
        "summary",
        (
            f"A repair order: {fault}; {joined}; {hours} hours.",
            f"一张维修单:{fault};{joined};{hours}小时。",
        ),
    )


def _ask_json(s: Sketch, chinese_keys: bool, answer: str) -> None:
    """The repair question; Chinese keys only where the question names them in Chinese."""
    was = s.asks_chinese
    s.asks_chinese = chinese_keys
    template = "repair_json"
    s.ask_in(template, answer, chinese_keys)
    s.asks_chinese = was


def _fault(s: Sketch) -> str:
    if s.chance(0.75):
        device = s.choose(s.say(DEVICES, DEVICES_ZH))
        return s.say(f"{device} {s.choose(FAULTS)}", device + s.choose(FAULTS_ZH))
    if s.is_chinese:
        return values.chinese_word(s) + values.chinese_word(s)
    return " ".join(
        [
            values.english_word(s).capitalize(),
            *(values.english_word(s) for _ in range(s.between(1, 2))),
        ]
    )


def _part(s: Sketch) -> str:
    if s.chance(0.65):
        return s.choose(s.say(PARTS, PARTS_ZH))
    return values.name_word(s)
