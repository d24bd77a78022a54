"""Screens: fields, tick boxes, buttons, and dialogs with an error."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from visiongate.mini.scenes import values
from visiongate.mini.scenes.asking import Pair
from visiongate.mini.scenes.camera import Box
from visiongate.mini.scenes.canvas import WHITE
from visiongate.mini.scenes.sketch import DoesNotFit, Sketch
from visiongate.mini.scenes.text import COLOURS

SCREEN: Pair = ("a screenshot", "一张界面截图")
TITLES = "Login|Sign Up|Settings|Search|Profile|Checkout|Account|Payment|Upload|Welcome".split("|")
TITLES_ZH = "登录|注册|设置|搜索|首页|个人中心|结算|账户|支付|上传|欢迎".split("|")
FIELDS = "Username|Email|Phone|City|Address|Name|Company|Password hint|Coupon|Order No".split("|")
FIELDS_ZH = "用户名|邮箱|电话|城市|地址|姓名|公司|优惠码|订单号|昵称".split("|")
OPTIONS = "Remember me|Accept terms|Send alerts|Auto update|Dark mode|Share data|Keep me signed in|Notifications".split(
    "|"
)
OPTIONS_ZH = "记住我|同意条款|接收通知|自动更新|深色模式|共享数据|保持登录|开启提醒".split("|")
BUTTONS = "Submit|Cancel|OK|Login|Search|Save|Delete|Back|Next|Edit|Add|Open|Close|Download|Upload|Send|Share|Retry|Help|Pay".split(
    "|"
)
BUTTONS_ZH = "提交|取消|确定|登录|注册|搜索|保存|删除|返回|下一步|编辑|添加|打开|关闭|下载|上传|发送|分享|重试|支付".split(
    "|"
)
ERRORS = "Network timeout|Payment failed|Wrong password|File not found|Access denied|Server error|Invalid coupon|Session expired|Disk is full|Unknown device|Upload failed|Order not found".split(
    "|"
)
ERRORS_ZH = "网络超时|支付失败|密码错误|文件不存在|没有权限|服务器错误|优惠码无效|登录已过期|磁盘已满|设备未识别|上传失败|订单不存在".split(
    "|"
)
ACCENTS = ((40, 110, 220), (40, 150, 90), (200, 60, 60), (120, 70, 190), (70, 80, 95))
BUTTON_COLOURS = ("blue", "green", "red", "gray", "orange", "purple", "black")


def draw(s: Sketch) -> None:
    """A window with a title bar and, below it, an error, fields, options and buttons."""
    is_dark = s.chance(0.25)
    s.start((32, 34, 40) if is_dark else s.choose((WHITE, (245, 246, 248))))
    ink = (235, 235, 235) if is_dark else (30, 30, 30)
    size = s.between(s.smallest_size + 1, 20 if s.chance(0.8) else 28)
    face = s.face(size)
    accent = s.choose(ACCENTS)
    title = s.choose(s.say(TITLES, TITLES_ZH)) if s.chance(0.75) else values.name_word(s)
    bar = size * 2.0
    s.canvas.pen.rectangle((0, 0, s.width, bar), accent)
    s.write(12, bar / 2, title, face, WHITE)
    y = bar + size * 0.7
    error, y = _draw_error(s, y, size, ink) if s.chance(0.35) else (("", ""), y)
    fields, y = _draw_fields(s, y, size, ink)
    options, y = _draw_options(s, y, size, ink, accent)
    y = max(y + 4, min(s.height - size * 2.4, y + s.uniform(4, 40)))
    buttons = _draw_buttons(s, y, size)
    if not (buttons or fields or options):
        raise DoesNotFit

    s.ask_transcript()
    s.ask("title", title)
    message, number = error
    if message:
        s.ask("error_message", message)
        if number:
            s.ask("error_code", number)
    elif s.chance(0.2):
        s.ask_absent("error_code")
    _ask_buttons(s, buttons)
    for label, value in fields[:2]:
        s.ask("field", value, x=label)
    if fields:
        s.ask_json(
            {(label, label): value for label, value in [*fields, (s.say("title", "标题"), title)]}
        )
    if options:
        label, is_on = s.choose(options)
        s.ask_yes_no("is_checked", is_on, x=label)
        on = [label for label, is_on in options if is_on]
        s.ask("checked", ", ".join(on) if on else ("None", "没有"))
    unknown = s.choose(s.say(FIELDS, FIELDS_ZH))
    if unknown not in [f[0] for f in fields] and s.chance(0.25):
        s.ask_absent("field", x=unknown)
    s.ask_text_box()
    s.ask_kind(SCREEN)
    if message:
        s.ask(
            "summary",
            (
                f"A screen titled {title} that shows the error {message}.",
                f"一张{title}界面截图,提示{message}。",
            ),
        )
    else:
        s.ask(
            "summary",
            (
                f"A screen titled {title} with {len(fields)} text fields and {len(buttons)} buttons.",
                f"一张{title}界面截图,有{len(fields)}个输入框和{len(buttons)}个按钮。",
            ),
        )


def _draw_error(
    s: Sketch, y: float, size: int, ink: tuple[int, int, int]
) -> tuple[tuple[str, str], float]:
    """An error line, with or without a code; returns (message, code) and the next free y."""
    face = s.face(size)
    message = s.choose(s.say(ERRORS, ERRORS_ZH))
    if s.chance(0.3):
        message = s.say(
            f"{values.name_word(s)} {values.english_word(s)} failed", f"{values.name_word(s)}失败"
        )
    number = (
        s.choose(
            (
                f"E{s.between(10, 9999)}",
                str(s.between(100, 599)),
                f"0x{s.between(4096, 65535):X}",
                "",
            )
        )
        if s.chance(0.8)
        else ""
    )
    lines = [message]
    if number:
        lines.append(
            s.say(
                s.choose(("Error code: ", "Code: ", "Error ")), s.choose(("错误代码:", "错误码:"))
            )
            + number
        )
    if (
        max(map(face.width, lines)) > s.width - 36
        or y + size * 1.6 * len(lines) > s.height - size * 3
    ):
        return ("", ""), y
    height = size * 1.5 * len(lines) + size * 0.4
    if s.chance(0.6):
        s.canvas.pen.rectangle((8, y, s.width - 8, y + height), (253, 232, 232), (200, 60, 60))
        ink = (150, 20, 20)
    for i, line in enumerate(lines):
        s.write(18, y + size * (0.95 + 1.5 * i), line, face, ink)
    return (message, number), y + height + size * 0.6


def _draw_fields(
    s: Sketch, y: float, size: int, ink: tuple[int, int, int]
) -> tuple[list[tuple[str, str]], float]:
    """Text fields with their values; returns them and the next free y."""
    face = s.face(size)
    fields: list[tuple[str, str]] = []
    for label in s.sample(s.say(FIELDS, FIELDS_ZH), s.between(0, 4)):
        if y + size * 3.2 > s.height - size * 2.6:
            break
        value = s.choose((values.person, values.name_word, values.phone, values.code))(s)
        if face.width(value) > s.width - 44:
            continue
        s.write(14, y + size * 0.7, label, face, ink)
        box = (14, y + size * 1.4, s.width - 14, y + size * 3.0)
        s.canvas.pen.rectangle(box, WHITE, (150, 150, 150))
        s.write(22, y + size * 2.2, value, face, (30, 30, 30))
        fields.append((label, value))
        y += size * 3.5
    return fields, y


def _draw_options(
    s: Sketch, y: float, size: int, ink: tuple[int, int, int], accent: tuple[int, int, int]
) -> tuple[list[tuple[str, bool]], float]:
    """Tick boxes; returns them with their state, and the next free y."""
    face = s.face(size)
    options: list[tuple[str, bool]] = []
    for label in s.distinct(
        lambda: s.choose(s.say(OPTIONS, OPTIONS_ZH)) if s.chance(0.6) else values.name_word(s),
        s.between(0, 4),
    ):
        if y + size * 1.6 > s.height - size * 2.6:
            break
        if face.width(label) > s.width - size * 3:
            continue
        is_on = s.chance(0.5)
        box = (14, y, 14 + size * 1.15, y + size * 1.15)
        s.canvas.pen.rectangle(box, accent if is_on else None, ink)
        if is_on:
            points = [
                (14 + size * a, y + size * b) for a, b in ((0.2, 0.55), (0.48, 0.85), (0.95, 0.25))
            ]
            s.canvas.pen.line(points, WHITE, width=max(2, size // 8))
        s.write(14 + size * 1.7, y + size * 0.58, label, face, ink)
        options.append((label, is_on))
        y += size * 1.75
    return options, y


def _draw_buttons(s: Sketch, y: float, size: int) -> list[tuple[str, str, Box]]:
    """Buttons from left to right in as many rows as fit."""
    face = s.face(size)
    buttons: list[tuple[str, str, Box]] = []
    height = size * s.uniform(1.7, 2.3)
    x = 14.0
    radius = s.choose((0, 4, 8, int(height / 2)))
    for text in s.distinct(
        lambda: s.choose(s.say(BUTTONS, BUTTONS_ZH)) if s.chance(0.8) else values.name_word(s),
        s.between(1, 5),
    ):
        width = face.width(text) + s.between(18, 44)
        if x + width > s.width - 8:
            x, y = 14.0, y + height + 10
        if y + height > s.height - 2 or x + width > s.width - 8:
            break
        colour = s.choose(BUTTON_COLOURS)
        box = (x, y, x + width, y + height)
        s.canvas.pen.rounded_rectangle(box, radius, COLOURS[colour][1])
        s.write(x + (width - face.width(text)) / 2, y + height / 2, text, face, WHITE)
        buttons.append((text, colour, box))
        x += width + s.between(8, 24)
    return buttons


def _ask_buttons(s: Sketch, buttons: list[tuple[str, str, Box]]) -> None:
    if not buttons:
        return
    for text, _, box in s.sample(buttons, 2):
        s.ask_box(box, (f"{text} button", f"{text}按钮"), text)
    text, _, box = s.choose(buttons)
    s.ask_point(box, text)
    text, colour, _ = s.choose(buttons)
    s.ask("colour", (colour, COLOURS[colour][0]), x=(f"{text} button", f"{text}按钮"))
    s.ask("buttons", ", ".join(b[0] for b in buttons))
    if 2 <= len(buttons) <= 4:
        s.ask_boxes(
            [(box, text) for text, _, box in buttons], (s.choose(("button", "buttons")), "按钮")
        )
