// Ready-made tasks: prompts that work, with a sample picture where the service ships one.

import { request } from "./api";
import { settings } from "./settings.svelte";

export interface Task {
  id: string;
  title: { en: string; zh: string };
  prompt: { en: string; zh: string };
  file: string | null;
}

/** Id, sample picture, titles and prompts; the samples' prompts are ones that every model answers. */
const BUILT_IN: [string, string, string, string, string, string][] = [
  [
    "receipt",
    "receipt.png",
    "Receipt amounts",
    "小票金额",
    "List all amounts with their items.",
    "列出所有商品和价格。",
  ],
  ["menu", "menu.png", "Menu", "菜单", "List all items with prices.", "列出所有菜品和价格。"],
  [
    "id_card",
    "id_card.png",
    "ID expiry date",
    "证件有效期",
    "What is the Expiry Date?",
    "Expiry Date是什么？",
  ],
  [
    "table",
    "table.png",
    "Table",
    "表格",
    "Give this table as Markdown.",
    "用Markdown输出这张表格。",
  ],
  ["chart", "chart.png", "Chart", "图表", "Which has the highest value?", "哪一项最高？"],
  [
    "summary",
    "shapes.png",
    "One-sentence summary",
    "一句话摘要",
    "Describe this picture in one sentence.",
    "用一句话描述这张图片。",
  ],
  ["button", "screen.png", "Find the buttons", "找按钮", "List the buttons.", "有哪些按钮？"],
  [
    "locate",
    "shapes.png",
    "Locate a shape",
    "定位图形",
    "Detect the red circle. Return bbox_2d JSON.",
    "检测红色圆形，返回bbox_2d。",
  ],
  [
    "invoice",
    "",
    "Invoice to JSON",
    "发票转 JSON",
    "Extract this invoice as JSON: number, date, seller, buyer, items (name, quantity, amount), total.",
    "将这张发票提取为 JSON：发票号、日期、销售方、购买方、明细（名称、数量、金额）、合计。",
  ],
  [
    "repair",
    "",
    "Repair order",
    "维修单",
    "From this repair order give the fault, the replaced parts and the hours as JSON.",
    "从维修单中提取故障、更换部件、工时，以 JSON 输出。",
  ],
  [
    "price",
    "",
    "Goods and price",
    "商品与价格",
    "What goods are shown, at which price, and does the price seem reasonable?",
    "图中是什么商品、价格多少？价格是否合理？",
  ],
  [
    "scene",
    "",
    "Scene",
    "场景描述",
    "Describe in one paragraph what people do here, which devices are in use, and the atmosphere.",
    "用一段话描述图中人物在做什么、使用了哪些设备，以及现场氛围。",
  ],
];

/** The tasks, each with its sample picture where this service ships it. */
export async function loadTasks(): Promise<Task[]> {
  const shipped = await request("/samples/index.json")
    .then(async (response) => {
      const index = (await response.json()) as { pictures: { file: string }[] };
      return new Set(index.pictures.map((picture) => picture.file));
    })
    .catch(() => new Set<string>());
  return BUILT_IN.map(([id, file, en, zh, promptEn, promptZh]) => ({
    id,
    title: { en, zh },
    prompt: { en: promptEn, zh: promptZh },
    file: shipped.has(file) ? file : null,
  }));
}

/** A task's title in the present language. */
export function titleOf(task: Task): string {
  return task.title[settings.language];
}

/** A task's prompt in the present language. */
export function promptOf(task: Task): string {
  return task.prompt[settings.language];
}

/** Where a sample picture is served. */
export function sampleUrl(file: string): string {
  return `/samples/${encodeURIComponent(file)}`;
}

/** A task's sample picture as a file. */
export async function sampleFile(file: string): Promise<File> {
  const blob = await (await request(sampleUrl(file))).blob();
  return new File([blob], file, { type: blob.type });
}
