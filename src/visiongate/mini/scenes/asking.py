"""The questions one can ask about a picture, in English and Chinese."""

# ruff: noqa: E501 - lists of sentences read better whole
from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[str, str]  # the same thing in English and Chinese
Said = str | Pair

ABSENT: Pair = ("That is not on the image.", "图中没有。")
NO_PICTURE: Pair = (
    "I can only answer questions about an image. Please send one.",
    "我只能回答关于图片的问题,请上传图片。",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its one right answer.

    Attributes:
        kind: the group it is scored in.
        key: the template it was made from.
        follow_up: the same question said shortly after another one ("And the tax?"); "" where
            that would be ambiguous.
        follows: the template key that must come just before `follow_up`; "" when any may.
    """

    kind: str
    key: str
    text: str
    answer: str
    is_chinese: bool
    follow_up: str = ""
    follows: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """Ways to ask one thing; `noun` names it in a follow-up."""

    kind: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    noun: Pair | None = None


def _template(kind: str, english: str, chinese: str, noun: Pair | None = None) -> Template:
    return Template(kind, tuple(english.split("|")), tuple(chinese.split("|")), noun)


TEMPLATES: dict[str, Template] = {
    # Text
    "ocr": _template(
        "ocr",
        "Read all the text.|Transcribe all text in the image.|What text is in the image?|OCR this image.|"
        "Read the text in this image.|Extract all the text.|What does it say?|Convert the image to text.|"
        "Transcribe this image.|What is written here?|Please read this for me.",
        "识别图中所有文字。|读出图片中的文字。|提取图中的全部文字。|图片里写了什么?|请输出图中文字内容。|把图片转成文字。|提取图片中的文字|"
        "图中的文字是什么?|识别文字。",
    ),
    "line": _template(
        "line",
        "What does line {x} say?|Read line {x}.|What is written on line {x}?",
        "第{x}行写的是什么?|读出第{x}行。|第{x}行是什么?",
    ),
    "first_line": _template(
        "line",
        "What is the first line?|Read the first line only.|What does the first line say?",
        "第一行是什么?|只读第一行。|第一行写了什么?",
        ("the first line", "第一行"),
    ),
    "last_line": _template(
        "line",
        "What is the last line?|Read the last line only.|What does the last line say?",
        "最后一行是什么?|只读最后一行。|最后一行写了什么?",
        ("the last line", "最后一行"),
    ),
    "num_lines": _template(
        "count",
        "How many lines of text are there?|Count the lines of text.",
        "图中有几行文字?|有几行字?",
    ),
    "word_after": _template(
        "line",
        'Which word comes after "{x}"?|What follows "{x}"?',
        "“{x}”后面是什么?|“{x}”之后写的是什么?",
    ),
    "contains": _template(
        "exists",
        'Does the image contain the word "{x}"?|Is "{x}" in the image?|Does it say "{x}"?',
        "图中有“{x}”吗?|图片里是否出现“{x}”?|有没有“{x}”这个词?",
    ),
    "banned": _template(
        "exists",
        "Which of these words are in the image: {x}?|Check the image for these words: {x}.",
        "图中出现了以下哪些词:{x}?|检查图中是否有这些词:{x}。",
    ),
    # Any picture
    "kind": _template(
        "kind",
        "What kind of image is this?|What type of document is this?|What is this?|Classify this image.",
        "这是什么?|这是什么类型的图片?|这张图是什么?|这是哪种图片?",
    ),
    "summary": _template(
        "summary",
        "Describe this image.|Describe this image in one sentence.|What is in this image?|Summarize the image.|"
        "Summarize this image in one sentence.|Give me a one-sentence summary.|What does the image show?|"
        "Describe the picture briefly.",
        "描述这张图片。|用一句话描述图片。|图中有什么?|请描述图片内容。|用一句话概括这张图。|一句话总结图片内容。|描述图片|简要描述这张图片。",
    ),
    "title": _template(
        "title",
        "What is the title?|What is the heading?|What title is shown?|What is written at the top?",
        "标题是什么?|图的标题是什么?|顶部写的是什么?",
        ("the title", "标题"),
    ),
    # Receipts, invoices and other documents
    "total": _template(
        "lookup",
        "What is the total?|What is the total amount?|How much is the total?|Total amount?|What's the total price?|"
        "How much in total?|What is the amount due?|How much has to be paid?|How much did it cost in total?|"
        "What is the final amount?",
        "总金额是多少?|合计多少钱?|总价是多少?|一共多少钱?|总共要付多少钱?|总计是多少?|应付多少?|总额是多少?|这张小票一共多少钱?",
        ("the total", "总金额"),
    ),
    "subtotal": _template(
        "lookup",
        "What is the subtotal?|How much is the subtotal?|What is the amount before tax?",
        "小计是多少?|小计金额多少?|税前金额是多少?",
        ("the subtotal", "小计"),
    ),
    "tax": _template(
        "lookup",
        "How much is the tax?|What is the tax amount?|How much tax was charged?|What is the VAT?",
        "税额是多少?|税是多少?|税费多少?|税金是多少?",
        ("the tax", "税额"),
    ),
    "discount": _template(
        "lookup",
        "How much is the discount?|What discount was given?",
        "优惠了多少?|折扣金额是多少?|优惠金额是多少?",
        ("the discount", "优惠"),
    ),
    "change": _template(
        "lookup",
        "How much change was given?|What is the change?",
        "找零多少?|找了多少钱?",
        ("the change", "找零"),
    ),
    "merchant": _template(
        "lookup",
        "What is the store name?|Who is the merchant?|What is the name of the business?|Which company issued this?|"
        "Which shop is this from?|What is the name of the shop?|Who issued this?|What is the merchant name?",
        "商家名称是什么?|这是哪家店?|店名是什么?|商户名叫什么?|哪家店的?|商店叫什么?|是哪家公司开的?",
        ("the store name", "店名"),
    ),
    "date": _template(
        "lookup",
        "What is the date?|What date is shown?|When was this issued?|What is the date of purchase?|Which day is it from?",
        "日期是什么?|日期是哪天?|是哪一天的?|什么时候开的?|日期是多少?",
        ("the date", "日期"),
    ),
    "time": _template(
        "lookup",
        "What time is shown?|What is the time?|At what time?",
        "时间是几点?|时间是多少?|几点?",
        ("the time", "时间"),
    ),
    "number": _template(
        "lookup",
        "What is the receipt number?|What is the document number?|What is the number of this document?|"
        "What is the invoice number?|What is the order number?|Which number does it have?",
        "单号是多少?|编号是多少?|单据号码是什么?|票据号码是多少?|订单号是多少?",
        ("the number", "单号"),
    ),
    "phone": _template(
        "lookup",
        "What is the phone number?|Which phone number is given?|How can I call them?",
        "电话号码是多少?|电话是多少?|联系电话是什么?",
        ("the phone number", "电话"),
    ),
    "address": _template(
        "lookup",
        "What is the address?|Where is the shop?|Which address is given?",
        "地址是什么?|地址在哪里?|店在哪里?",
        ("the address", "地址"),
    ),
    "payment": _template(
        "lookup",
        "How was it paid?|What is the payment method?|What was used to pay?",
        "付款方式是什么?|怎么支付的?|支付方式是什么?",
        ("the payment method", "付款方式"),
    ),
    "cashier": _template(
        "lookup",
        "Who is the cashier?|Who served?",
        "收银员是谁?|收银员是哪位?",
        ("the cashier", "收银员"),
    ),
    "price": _template(
        "lookup",
        "How much is the {x}?|What is the price of {x}?|Price of {x}?|How much does {x} cost?|How much for {x}?|"
        "What does the {x} cost?",
        "{x}多少钱?|{x}的价格是多少?|{x}的金额是多少?|{x}卖多少钱?",
    ),
    "quantity": _template(
        "lookup",
        "What is the quantity of {x}?|How many {x} were bought?|How many {x}?",
        "{x}的数量是多少?|买了几个{x}?|{x}有几份?",
    ),
    "num_items": _template(
        "count",
        "How many items are listed?|How many different items are there?|Count the items.",
        "一共有几种商品?|列出了几个项目?|有几个项目?",
        ("the number of items", "项目数量"),
    ),
    "items": _template(
        "items",
        "List all items with prices.|List the items and their prices.|What items are listed and how much are they?|"
        "List every item and its price.",
        "列出所有项目及价格。|列出所有商品和价格。|列出每个项目和价格。",
    ),
    "names": _template(
        "items",
        "List the item names.|What items are listed?|Which items are there?",
        "列出所有项目名称。|都有哪些项目?|有哪些商品?",
    ),
    "amounts": _template(
        "amounts",
        "Extract all amounts with their item names.|Extract every amount in the image and label it with its item.|"
        "List all the amounts and what they are for.|Extract all amounts and label the corresponding items.|"
        "List every amount with its label.",
        "提取图中所有金额数字,并标注对应项目名称|提取所有金额及对应项目。|列出图中所有金额和名称。|提取图中所有金额,并标注对应项目。|列出所有金额和对应的项目名称。",
    ),
    "json": _template(
        "json",
        "Extract as JSON with keys {x}.|Return JSON with {x}.|Output a JSON object with the keys {x}.|"
        "Give me {x} as JSON.|Extract {x} as JSON.|Return a JSON object with the fields {x}.",
        "以JSON格式输出{x}。|提取{x},返回JSON。|用JSON给出{x}。|提取{x},以JSON格式输出。|返回JSON,包含{x}。",
    ),
    "dearest": _template(
        "compare",
        "What is the most expensive item?|Which item costs the most?|Which item is the dearest?",
        "最贵的是什么?|哪个最贵?|最贵的是哪一项?",
        ("the most expensive one", "最贵的"),
    ),
    "cheapest": _template(
        "compare",
        "What is the cheapest item?|Which item is the cheapest?|Which item costs the least?",
        "最便宜的是什么?|哪个最便宜?|最便宜的是哪一项?",
        ("the cheapest one", "最便宜的"),
    ),
    # Forms and cards
    "field": _template(
        "lookup",
        "What is the {x}?|What does the {x} field say?|Give the {x}.|{x}?|What is written under {x}?|Tell me the {x}.|"
        "What's the {x}?",
        "{x}是什么?|{x}是多少?|{x}一栏写的什么?|{x}?|请告诉我{x}。|{x}填的是什么?",
    ),
    "expiry": _template(
        "lookup",
        "Which day does this card expire?|When does it expire?|What is the expiry date?|Until when is it valid?|"
        "On which date does this ID card expire?|Which day does this ID card expire?|What is the expiration date?|"
        "What is the best before date?",
        "有效期到什么时候?|哪天过期?|什么时候到期?|这张证件哪天到期?|有效期至哪天?|到期日是哪天?|保质期到哪天?",
        ("the expiry date", "有效期"),
    ),
    "birth": _template(
        "lookup",
        "When was this person born?|What is the date of birth?",
        "出生日期是什么?|哪天出生的?|生日是哪天?",
        ("the date of birth", "出生日期"),
    ),
    "holder": _template(
        "lookup",
        "Whose card is this?|What is the person's name?|Who is the holder?|What is the name?|Who filled this in?",
        "这是谁的证件?|姓名是什么?|持有人是谁?|叫什么名字?",
        ("the name", "姓名"),
    ),
    "fields": _template(
        "items",
        "List all fields and values.|Extract all key-value pairs.|Extract all fields.",
        "列出所有字段和值。|提取所有键值对。|提取所有字段。",
    ),
    # Repair orders
    "fault": _template(
        "lookup",
        "What is the fault?|What is the problem?|What is broken?|What fault was reported?",
        "故障是什么?|出了什么问题?|故障现象是什么?|哪里坏了?",
        ("the fault", "故障"),
    ),
    "parts": _template(
        "items",
        "Which parts were replaced?|List the replaced parts.|What parts were used?",
        "更换了哪些零件?|列出更换的零件。|换了什么配件?",
        ("the parts", "零件"),
    ),
    "hours": _template(
        "lookup",
        "How many hours were worked?|How long did the repair take?|What are the labour hours?",
        "工时是多少?|维修用了多少小时?|花了几个小时?",
        ("the hours", "工时"),
    ),
    "technician": _template(
        "lookup",
        "Who did the repair?|Who is the technician?",
        "谁修的?|维修人员是谁?|技师是谁?",
        ("the technician", "技师"),
    ),
    "repair_json": _template(
        "repair_json",
        "Extract fault, parts and hours as JSON.|Return the fault, the replaced parts and the hours as JSON.|"
        "Extract the repair order as JSON with keys fault, parts, hours.|"
        "Separate the fault, the replaced parts and the labour hours. Answer in JSON.",
        "提取故障、更换零件和工时,返回JSON。|以JSON格式输出故障、零件、工时。|识别维修单:故障、更换零件、工时,用JSON输出。|区分故障现象、更换零件和工时,输出JSON。",
    ),
    # Menus
    "note": _template(
        "lookup",
        "What is the note for {x}?|What does it say under {x}?|Which note does {x} have?",
        "{x}的备注是什么?|{x}有什么备注?|{x}的说明是什么?",
    ),
    "menu_json": _template(
        "menu_json",
        "Extract the menu as JSON with dish, price and note.|Return a JSON list of dish, price and note.|"
        "Separate dish, price and note. Answer in JSON.|Read the menu: dish, price, note as JSON.",
        "识别菜单,以JSON输出菜名、价格、备注。|提取菜名、价格和备注,返回JSON。|区分菜名、价格、备注,用JSON输出。|把菜单转成JSON,包含菜名、价格、备注。",
    ),
    # Tables
    "cell": _template(
        "cell",
        "What is the {y} of {x}?|What is {x}'s {y}?|In the table, what is the {y} for {x}?|{y} of {x}?|"
        "Look up the {y} for {x}.",
        "{x}的{y}是什么?|{x}的{y}是多少?|表中{x}对应的{y}是多少?|查一下{x}的{y}。",
    ),
    "cell_number": _template(
        "cell",
        "What is in row {x}, column {y}?|Read the cell in row {x}, column {y}.",
        "第{x}行第{y}列是什么?|读出第{x}行第{y}列。",
    ),
    "row": _template(
        "cell",
        "Read the row of {x}.|What does the row of {x} say?",
        "读出{x}这一行。|{x}这一行写了什么?",
    ),
    "column": _template(
        "cell",
        "List the values in the {x} column.|Read the {x} column.",
        "列出{x}这一列的值。|读出{x}列。",
    ),
    "num_rows": _template(
        "count",
        "How many rows does the table have, without the header?|How many data rows are in the table?",
        "表格有几行数据?|不算表头有几行?",
    ),
    "num_columns": _template(
        "count", "How many columns does the table have?|Count the columns.", "表格有几列?|有多少列?"
    ),
    "headers": _template(
        "items",
        "What are the column names?|List the column headers.|Which columns are there?",
        "表头有哪些?|列名是什么?|有哪些列?",
    ),
    "average": _template(
        "average",
        "What is the average of the {x} column?|What is the average {x}?|Compute the mean of {x}.|"
        "Average of column {x}?|What is the mean {x}?",
        "{x}的平均值是多少?|{x}这一列的平均数是多少?|计算{x}的平均值。",
    ),
    "average_number": _template(
        "average",
        "What is the average of column {x}?|Compute the mean of column {x} of this table.|Average of column {x} of this table?",
        "第{x}列的平均值是多少?|这张表第{x}列的平均数是多少?",
    ),
    "column_max": _template(
        "compare",
        "Which row has the highest {x}?|Who has the highest {x}?|Which one has the largest {x}?",
        "哪一行的{x}最高?|{x}最高的是哪个?|谁的{x}最大?",
    ),
    "column_min": _template(
        "compare",
        "Which row has the lowest {x}?|Who has the lowest {x}?|Which one has the smallest {x}?",
        "哪一行的{x}最低?|{x}最低的是哪个?|谁的{x}最小?",
    ),
    "markdown": _template(
        "table_text",
        "Convert the table to Markdown.|Output the table as Markdown.|Give me the table in Markdown.",
        "把表格转成Markdown。|用Markdown输出表格。|输出Markdown表格。",
    ),
    "csv": _template(
        "table_text",
        "Convert the table to CSV.|Output the table as CSV.",
        "把表格转成CSV。|用CSV输出表格。",
    ),
    # Charts
    "value": _template(
        "chart_value",
        "What is the value for {x}?|What is the value of {x}?|How much is {x}?|{x}?|What value does {x} have?|"
        "What is the figure for {x}?",
        "{x}的值是多少?|{x}是多少?|{x}对应的数值是多少?|{x}的数据是多少?",
    ),
    "series_value": _template(
        "chart_value",
        "What is the {y} value for {x}?|How much is {y} in {x}?|What is {y} for {x}?",
        "{x}的{y}是多少?|{x}对应的{y}值是多少?",
    ),
    "highest": _template(
        "chart_extreme",
        "Which has the highest value?|Which category is the largest?|What is the maximum and where?|Which one is the highest?",
        "哪个最大?|哪一项数值最高?|最高的是哪个?|最大值是哪一项?",
        ("the highest", "最高的"),
    ),
    "lowest": _template(
        "chart_extreme",
        "Which has the lowest value?|Which category is the smallest?|Which one is the lowest?",
        "哪个最小?|哪一项数值最低?|最低的是哪个?",
        ("the lowest", "最低的"),
    ),
    "data": _template(
        "chart_data",
        "List all values in the chart.|Extract the chart data.|Read the data from the chart.|What data does the chart show?",
        "列出图表中所有数据。|提取图表数据。|读出图表数据。",
    ),
    "num_categories": _template(
        "count",
        "How many categories are in the chart?|How many data points are there?",
        "图表有几个类别?|有几个数据?",
    ),
    "higher": _template(
        "chart_fact",
        "Is {x} higher than {y}?|Is {x} larger than {y}?|Is the value for {x} above that for {y}?",
        "{x}比{y}大吗?|{x}高于{y}吗?|{x}是否比{y}高?",
    ),
    "growth": _template(
        "chart_fact",
        "By how much did {x} change?|What is the growth of {x}?|What change is shown for {x}?|"
        "How did {x} change from the one before?",
        "{x}变化了多少?|{x}的增幅是多少?|{x}环比变化多少?|{x}的变化是多少?",
    ),
    "trend": _template(
        "chart_fact",
        "Did it rise or fall from {x} to {y}?|Is there an increase or a decrease from {x} to {y}?",
        "从{x}到{y}是上升还是下降?|{x}到{y}是增加还是减少?",
    ),
    "legend": _template(
        "chart_fact", "Which series are shown?|What does the legend say?", "图例有哪些?|有哪些系列?"
    ),
    # Shapes
    "num_shapes": _template(
        "count",
        "How many shapes are there?|Count the shapes.|How many objects are in the image?",
        "一共有几个图形?|数一数有几个图形。|有多少个图形?",
    ),
    "count": _template(
        "count",
        "How many {x} are there?|Count the {x}.|How many {x}?|How many {x} do you see?",
        "有几个{x}?|图中有多少个{x}?|{x}有几个?",
    ),
    "colour": _template(
        "colour",
        "What color is the {x}?|What is the color of the {x}?|What colour is the {x}?|Which color does the {x} have?",
        "{x}是什么颜色?|{x}的颜色是什么?|{x}是哪种颜色?",
    ),
    "shape": _template(
        "shape",
        "What shape is {x}?|What is the {x} shape?|Which shape is {x}?|What is the shape of the {x} object?",
        "{x}的是什么形状?|{x}的图形是什么?|{x}的是哪种图形?",
    ),
    "leftmost": _template(
        "position",
        "What is the leftmost shape?|Which shape is furthest left?|What is on the far left?",
        "最左边的图形是什么?|最左边是什么?",
        ("the leftmost one", "最左边的"),
    ),
    "rightmost": _template(
        "position",
        "What is the rightmost shape?|Which shape is furthest right?|What is on the far right?",
        "最右边的图形是什么?|最右边是什么?",
        ("the rightmost one", "最右边的"),
    ),
    "topmost": _template(
        "position",
        "What is the topmost shape?|Which shape is at the top?|Which shape is the highest in the image?",
        "最上面的图形是什么?|最上面是什么?",
        ("the topmost one", "最上面的"),
    ),
    "lowermost": _template(
        "position",
        "What is the bottom shape?|Which shape is the lowest in the image?|Which shape is at the bottom?",
        "最下面的图形是什么?|最下面是什么?",
        ("the one at the bottom", "最下面的"),
    ),
    "biggest": _template(
        "position",
        "What is the largest shape?|Which shape is the biggest?",
        "最大的图形是什么?|哪个图形最大?",
        ("the biggest one", "最大的"),
    ),
    "relation": _template(
        "relation",
        "Is the {x} {d} the {y}?|Is the {x} located {d} the {y}?",
        "{x}在{y}的{d}吗?|{x}是不是在{y}的{d}?",
    ),
    "exists": _template(
        "exists",
        "Is there a {x}?|Do you see a {x}?|Is there any {x} in the image?",
        "有{x}吗?|图中有没有{x}?|图中有{x}吗?",
    ),
    "list_shapes": _template(
        "items",
        "List all shapes.|What shapes are there?|Which shapes do you see?",
        "列出所有图形。|都有哪些图形?",
    ),
    "background": _template(
        "colour",
        "What is the background color?|What color is the background?",
        "背景是什么颜色?|背景色是什么?",
    ),
    "ink": _template(
        "colour",
        "What color is the text?|Which color are the letters?",
        "文字是什么颜色?|字是什么颜色?",
    ),
    # Places
    "box": _template(
        "box",
        "Where is the {x}? Answer with bbox JSON.|Locate the {x} and output its bbox in JSON.|"
        "Detect the {x}. Return bbox_2d JSON.|Find the {x} (bbox 0-1000 JSON).|Locate the {x}.|"
        "Give the bounding box of the {x}.|Locate the {x}, report the bbox coordinates in JSON format.",
        "{x}在哪里?用JSON输出bbox。|定位{x},以JSON输出坐标。|检测{x},返回bbox_2d。|框出{x}。|定位{x}。|给出{x}的坐标框,JSON格式。",
    ),
    "boxes": _template(
        "box",
        "Locate every {x}. Return bbox_2d JSON.|Detect all {x}.|Find all {x} (bbox JSON).",
        "检测所有{x},返回bbox_2d。|定位每个{x}。|框出所有{x}。",
    ),
    "point": _template(
        "point",
        "Point to the {x}. Answer with JSON.|Where should I click for {x}? JSON point.|Give the click point of {x} as JSON.",
        "指出{x}的位置,JSON格式。|点击{x}的坐标是多少?JSON。|给出{x}的点击坐标。",
    ),
    # Screens
    "buttons": _template(
        "items",
        "List the buttons.|What buttons are there?|Which buttons are on the screen?",
        "有哪些按钮?|列出所有按钮。",
    ),
    "checked": _template(
        "check",
        "Which options are checked?|What is ticked?|Which boxes are ticked?",
        "哪些选项被选中?|勾选了什么?|选中了哪些?",
    ),
    "is_checked": _template(
        "check",
        'Is "{x}" checked?|Is the {x} box ticked?|Is {x} selected?',
        "“{x}”被选中了吗?|{x}勾选了吗?|{x}是否选中?",
    ),
    "error_message": _template(
        "lookup",
        "What is the error message?|What does the error say?|What went wrong?|Which problem does the screen show?",
        "错误信息是什么?|报错内容是什么?|出了什么错?|提示了什么错误?",
        ("the error message", "错误信息"),
    ),
    "error_code": _template(
        "lookup",
        "What is the error code?|Which error code is shown?",
        "错误代码是多少?|错误码是什么?",
        ("the error code", "错误代码"),
    ),
    # Goods
    "goods_name": _template(
        "lookup",
        "What product is this?|What is the name of the product?|What is being sold?",
        "这是什么商品?|商品名称是什么?|卖的是什么?",
        ("the product", "商品名称"),
    ),
    "goods_price": _template(
        "lookup",
        "How much does the product cost?|What is the price?|What is the current price?|How much is it?",
        "商品多少钱?|价格是多少?|现价是多少?|卖多少钱?",
        ("the price", "价格"),
    ),
    "usual_price": _template(
        "lookup",
        "What is the usual price?|What was the old price?|What is the list price?",
        "原价是多少?|平时卖多少钱?",
        ("the usual price", "原价"),
    ),
    "is_sensible": _template(
        "price_sense",
        "Is the price sensible?|Is the price reasonable?|Does the price make sense?|Is this a fair price?",
        "价格合理吗?|这个价格合理吗?|价格是否合理?|这个价格划算吗?",
    ),
    "attributes": _template(
        "items",
        "List the attributes of the product.|What are the features?|Which attributes are listed?",
        "列出商品属性。|有哪些属性?|有什么特点?",
    ),
    "material": _template(
        "lookup",
        "What is it made of?|What is the material?",
        "是什么材质?|材质是什么?",
        ("the material", "材质"),
    ),
    "stock": _template(
        "lookup",
        "How many are in stock?|What is the stock?",
        "库存多少?|还有多少库存?",
        ("the stock", "库存"),
    ),
    "sold": _template(
        "lookup",
        "How many were sold?|What are the sales?",
        "卖了多少?|销量是多少?",
        ("the number sold", "销量"),
    ),
    # Two pictures
    "same_kind": _template(
        "two_images",
        "Are both images of the same kind?|Do both images show the same kind of thing?",
        "两张图是同一类吗?|两张图片类型相同吗?",
    ),
    "same_total": _template(
        "two_images",
        "Do both have the same total?|Are the two totals equal?",
        "两张的总金额一样吗?|合计相同吗?",
    ),
    "higher_total": _template(
        "two_images",
        "Which image has the higher total?|Which one costs more in total?|Which of the two totals is larger?",
        "哪张图的总金额更高?|哪一张总价更高?|哪张合计更大?",
    ),
    "more_shapes": _template(
        "two_images",
        "Which image has more shapes?|Where are more shapes?",
        "哪张图的图形更多?|哪张图形多?",
    ),
    "which_kind": _template(
        "two_images", "Which image shows {x}?|Which of the two is {x}?", "哪张图是{x}?|哪一张是{x}?"
    ),
    "differences": _template(
        "two_images",
        "What do the two images show?|Describe both images.",
        "两张图分别是什么?|描述这两张图。",
    ),
}

IN_IMAGE: tuple[tuple[Pair, ...], ...] = (
    (
        ("In the first image: {q}", "第一张图:{q}"),
        ("Look at the first image. {q}", "看第一张图。{q}"),
        ("Image 1: {q}", "图1:{q}"),
    ),
    (
        ("In the second image: {q}", "第二张图:{q}"),
        ("Look at the second image. {q}", "看第二张图。{q}"),
        ("Image 2: {q}", "图2:{q}"),
    ),
)
FOLLOW_UPS: tuple[Pair, ...] = (
    ("And {x}?", "{x}呢?"),
    ("What about {x}?", "那{x}呢?"),
    ("Now {x}.", "再看{x}。"),
    ("And {x}", "{x}呢"),
)
OUTSIDE_KNOWLEDGE: tuple[Pair, ...] = (
    ("What is the capital of {w}?", "{w}的首都是哪里?"),
    ("Who wrote {w}?", "{w}是谁写的?"),
    ("What is the weather in {w} today?", "今天{w}天气怎么样?"),
    ("Translate {w} into French.", "把{w}翻译成英语。"),
    ("Write a poem about {w}.", "写一首关于{w}的诗。"),
    ("Tell me a joke.", "讲个笑话。"),
    ("What is {n} plus {m}?", "{n}加{m}等于多少?"),
    ("Who is the president of {w}?", "{w}的总统是谁?"),
    ("How do I cook {w}?", "{w}怎么做?"),
    ("Explain {w}.", "解释一下{w}。"),
    ("Give me a recipe for {w}.", "推荐一个{w}的菜谱。"),
    ("How old is {w}?", "{w}多大了?"),
    ("Write a Python function that sorts {w}.", "写一个排序的函数。"),
    ("What time is it in {w}?", "{w}现在几点?"),
    ("Who invented the {w}?", "{w}是谁发明的?"),
    ("Why is the sky blue?", "天空为什么是蓝色的?"),
    ("How far is the moon?", "月亮有多远?"),
    ("What is the population of {w}?", "{w}有多少人口?"),
    ("Recommend a good {w}.", "推荐一个好的{w}。"),
    ("What is the meaning of {w}?", "{w}是什么意思?"),
)
SMALL_TALK: tuple[tuple[Pair, Pair], ...] = (
    (
        ("Hello|Hi|Hello!|Hi there|Hey|Good morning", "你好|您好|你好!|早上好"),
        ("Hello! Send me an image and a question about it.", "你好!请上传图片并提问。"),
    ),
    (
        (
            "Who are you?|What are you?|What model is this?|Are you a robot?",
            "你是谁?|你是什么模型?|你叫什么?",
        ),
        (
            "I am a small demonstration model. I can read simple images.",
            "我是一个小型演示模型,可以读取简单的图片。",
        ),
    ),
    (
        ("What can you do?|Help|How does this work?", "你能做什么?|你可以做什么?|怎么用?"),
        (
            "I can read text, receipts, forms, tables, charts and shapes in images.",
            "我可以读取图片里的文字、小票、表单、表格、图表和图形。",
        ),
    ),
    (
        ("Thanks|Thank you|Thank you!|Great, thanks", "谢谢|谢谢!|多谢"),
        ("You're welcome!", "不客气!"),
    ),
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful vision assistant. Answer briefly.",
    "Answer concisely.",
    "You read images for a company. Be precise.",
    "你是一个有用的助手。",
    "你是一个图像理解助手,请准确回答。",
)
