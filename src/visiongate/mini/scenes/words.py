"""The words that scenes print: a small vocabulary of ours, and room for large lists at training time."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DISHES = tuple(
    "Latte|Espresso|Cappuccino|Mocha|Green Tea|Black Tea|Orange Juice|Apple Juice|Milk|Bagel|Croissant|Muffin|Donut|"
    "Sandwich|Burger|Cheeseburger|French Fries|Caesar Salad|Soup|Pizza|Pasta|Noodles|Fried Rice|Steak|Fish Tacos|"
    "Chicken Wings|Ice Cream|Cookie|Brownie|Water|Soda|Beer|Red Wine|Tomato Soup|Garlic Bread|Onion Rings|Pancakes|"
    "Waffles|Omelette|Lemon Tart|Cheesecake|Grilled Salmon|Roast Chicken|Beef Stew|Lamb Curry|Mushroom Risotto|"
    "Spring Rolls|Dumplings|Ramen|Sushi Set|Club Sandwich|Hot Chocolate|Iced Tea|Lemonade|House Salad".split(
        "|"
    )
)
GOODS = tuple(
    "Bread|Eggs|Butter|Cheese|Yogurt|Banana|Bananas|Apples|Oranges|Grapes|Tomato|Potato|Onion|Carrot|Rice 5kg|Sugar|"
    "Salt|Olive Oil|Shampoo|Soap|Toothpaste|Paper Towel|Notebook|Pen|Pencil|Eraser|Stapler|USB Cable|Mouse|Keyboard|"
    "Monitor|Headphones|Battery AA|Light Bulb|T-Shirt|Jeans|Socks|Hat|Jacket|Shoes|Web Design|Hosting|Consulting|"
    "Support Plan|License|Delivery|Repair|Cleaning|Printer Ink|Desk Lamp|Chair|Table|Phone Case|Charger|Candle|Mug|"
    "Plate|Umbrella|Backpack|Ticket|Parking|Breakfast|Room Service|Massage|Haircut|Flowers|Gift Card|Coffee|Honey|"
    "Detergent|Tissues|Toothbrush|Scissors|Glue|Folder|Lamp|Towel|Pillow|Blanket|Basket|Bottle".split(
        "|"
    )
)
SHOP_SUFFIXES = tuple(
    "Cafe Market Store Bakery Deli Books Pharmacy Grill Diner Hotel Supply Foods Bistro Shop Mart Bar Kitchen Garage "
    "Studio Labs Grocery Trading Motors Clinic".split()
)
GIVEN_NAMES = tuple(
    "James Mary John Linda Robert Susan David Karen Daniel Lisa Paul Anna Mark Emma Kevin Laura Brian Julia Peter Alice "
    "Henry Grace Oscar Nina Victor Clara Leo Ruth Ivan Sara Tom Amy Jack Kate Eric Rose Adam Zoe Carl Mia".split()
)
FAMILY_NAMES = tuple(
    "Smith Johnson Brown Taylor Miller Wilson Moore Clark Lewis Walker Hall Young King Wright Scott Green Baker Adams "
    "Nelson Carter Turner Parker Evans Collins Stewart Morris Reed Cook Bell Cooper Ward Gray Price Wood Ross Long "
    "Foster Hughes Chen Wang Li Kim Lopez Garcia".split()
)
CITIES = tuple(
    "London Paris Berlin Madrid Rome Tokyo Boston Chicago Dallas Denver Seattle Austin Miami Toronto Sydney Dublin Oslo "
    "Vienna Prague Lisbon Beijing Shanghai Shenzhen Hangzhou Singapore Munich Zurich Milan Athens Cairo".split()
)
MONTHS = tuple("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
LONG_MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
WEEKDAYS = tuple("Mon Tue Wed Thu Fri Sat Sun".split())

DISHES_ZH = tuple(
    "宫保鸡丁 鱼香肉丝 麻婆豆腐 红烧肉 糖醋排骨 酸辣土豆丝 西红柿炒鸡蛋 清蒸鱼 水煮牛肉 回锅肉 青椒肉丝 炒青菜 蛋炒饭 牛肉面 小笼包 饺子 馄饨 米饭 "
    "豆浆 油条 包子 馒头 粥 酸辣汤 紫菜蛋花汤 烤鸭 火锅 羊肉串 拍黄瓜 凉皮 可乐 雪碧 啤酒 绿茶 红茶 咖啡 奶茶 橙汁 清炒时蔬 干锅花菜 红烧鱼 白切鸡 "
    "排骨汤 冬瓜汤 炒面 炸酱面 春卷 煎饼 豆腐脑 手抓饼".split()
)
GOODS_ZH = tuple(
    "牛奶 酸奶 矿泉水 面包 蛋糕 饼干 巧克力 苹果 香蕉 橙子 葡萄 西瓜 草莓 鸡蛋 大米 面粉 食用油 酱油 醋 盐 白糖 洗发水 牙膏 肥皂 纸巾 毛巾 笔记本 铅笔 "
    "圆珠笔 橡皮 书包 电池 台灯 键盘 鼠标 耳机 充电器 手机壳 数据线 雨伞 水杯 衬衫 裤子 袜子 帽子 外套 运动鞋 门票 停车费 服务费 快递费 住宿费 维修费 打印纸 "
    "墨盒 图书 鲜花 洗衣液 枕头 毛毯 剪刀 胶水 文件夹 拖鞋 保温杯".split()
)
SHOP_SUFFIXES_ZH = tuple(
    "超市 便利店 餐厅 咖啡馆 书店 药店 商店 面馆 酒店 公司 茶馆 水果店 百货 花店 饭店 商行 维修中心 诊所".split()
)
FAMILY_NAMES_ZH = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹"
GIVEN_CHARS_ZH = (
    "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉红建文国志海云飞雪梅林晓东春宁佳欣宇浩然思雨"
)
CITIES_ZH = tuple(
    "北京 上海 广州 深圳 杭州 南京 苏州 成都 重庆 武汉 西安 天津 长沙 青岛 大连 厦门 福州 济南 郑州 合肥 昆明 宁波".split()
)
ROADS_ZH = tuple(
    "人民路 中山路 解放路 建设路 文化路 和平路 南京路 长江路 光明路 新华路 学院路 东风路".split()
)
MONTHS_ZH = tuple("一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月".split())
WEEKDAYS_ZH = tuple("周一 周二 周三 周四 周五 周六 周日".split())

ENGLISH = tuple(
    "able apple autumn basin bell bird blue board bold bread bridge bright broad brook calm candle canyon castle cedar "
    "chalk chart cherry circle clay clear cliff cloud clover coast copper coral corner cotton craft crane crest crown "
    "dawn deep delta desert dock dream dune eagle early east echo ember falcon farm feather fern field fire flint forest "
    "fox frost garden gate gentle glass globe gold grand granite grass grove harbor hazel heron hill hollow honey horizon "
    "house iron island ivory jade jasper jewel juniper keen kettle lake lantern leaf lemon light lily linen lion maple "
    "marble meadow mellow mill mint mirror mist moon moss mountain north oak ocean olive onyx orange orchard otter paper "
    "park pearl pebble pepper pine plain planet plum pond poplar prairie quartz quick quiet rain raven reed ridge river "
    "robin rock rose royal ruby sage sail salt sand scarlet shadow shell shore silver sky smooth snow solar south spring "
    "spruce star steel stone storm stream sugar summer summit sun swan swift thistle thunder tiger timber trail tulip "
    "valley velvet violet walnut water wave west wheat willow wind winter wolf wood yellow".split()
)
CHINESE = tuple(
    "东方 南山 北海 西湖 春天 夏日 秋风 冬雪 天空 大地 山水 花园 阳光 月亮 星星 白云 江河 海洋 森林 草原 城市 乡村 道路 桥梁 学校 医院 图书 电影 音乐 "
    "体育 科学 技术 文化 历史 地理 数学 语言 经济 市场 工业 农业 商业 交通 通信 建筑 材料 机械 电子 化学 物理 生物 环境 能源 水利 健康 食品 服装 家庭 "
    "朋友 老师 学生 工人 农民 医生 司机 经理 主任 计划 项目 报告 会议 通知 文件 合同 质量 安全 标准 管理 服务 产品 设备 工具 价格 数量 时间 地点 方向 "
    "速度 温度 高度 重量 面积 长度 颜色 形状 明天 今天 昨天 早上 中午 晚上 快乐 平安 幸福 成功 努力 认真 学习 工作 生活 休息".split()
)


def is_held_out(word: str) -> bool:
    """Whether training never prints the word: one word in ten, by its checksum."""
    return zlib.crc32(word.encode()) % 10 == 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The free words of a split; labels and templates are the same for every split."""

    english: tuple[str, ...]
    chinese: tuple[str, ...]
    characters: str

    def split(self, name: str) -> Vocabulary:
        """The words that the split ("train" or "test") may print."""
        keep = name == "test"
        return Vocabulary(
            tuple(w for w in self.english if is_held_out(w) == keep),
            tuple(w for w in self.chinese if is_held_out(w) == keep),
            self.characters,
        )


@cache
def small_vocabulary() -> Vocabulary:
    """The committed words; enough for doctor, tests and benchmarks."""
    characters = "".join(sorted({c for word in CHINESE for c in word}))
    return Vocabulary(ENGLISH, CHINESE, characters)


@cache
def load_vocabulary(path: Path) -> Vocabulary:
    """The large lists that `mini.prepare` wrote to words.json."""
    lists = json.loads(path.read_text("utf-8"))
    return Vocabulary(tuple(lists["english"]), tuple(lists["chinese"]), lists["characters"])
