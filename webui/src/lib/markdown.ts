// Answers as blocks to show: Markdown that arrives in pieces, with code, JSON and tables apart.

import DOMPurify from "dompurify";
import { Marked, type Token, type Tokens } from "marked";

/** A part of an answer. `key` stays the same while the part is the same. */
export type Block =
  | { key: number; kind: "html"; html: string }
  | { key: number; kind: "code"; language: string; text: string }
  | { key: number; kind: "json"; text: string; value: unknown }
  | { key: number; kind: "table"; html: string; rows: string[][] };

const ESCAPES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escapeHtml(text: string): string {
  return text.replace(/[&<>"]/g, (character) => ESCAPES[character] ?? character);
}

// Raw HTML is shown as text, and pictures of other hosts as their description: an answer can neither
// bring its own elements nor make the browser fetch anything.
const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ text, href }) => escapeHtml(text || href),
    link({ href, tokens }) {
      const text = this.parser.parseInline(tokens);
      if (!/^https?:\/\//i.test(href)) return text;
      return `<a href="${escapeHtml(href)}" target="_blank" rel="noopener noreferrer nofollow">${text}</a>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") node.setAttribute("rel", "noopener noreferrer nofollow");
});

function clean(tokens: Token[]): string {
  return DOMPurify.sanitize(marked.parser(tokens), {
    FORBID_TAGS: ["style", "img", "input", "form", "svg", "math"],
    FORBID_ATTR: ["style", "class", "id"],
    ADD_ATTR: ["target"],
  });
}

/** Turns a growing answer into blocks; a finished block is never worked on again. */
export class AnswerParser {
  #finished: Block[] = [];
  #source = "";
  #offset = 0;

  /** The blocks of the whole text so far. */
  update(text: string, isComplete: boolean): Block[] {
    if (!text.startsWith(this.#source)) {
      this.#finished = [];
      this.#offset = 0;
    }
    const bare = text.trimStart();
    if (bare.startsWith("{") || /^\[\s*[[{"\d\]-]/.test(bare)) {
      this.#source = "";
      return [codeBlock(0, "json", text.trim(), isComplete)];
    }
    this.#source = text;
    const tokens = marked.lexer(text.slice(this.#offset));
    let last = tokens.length - 1;
    while (last >= 0 && tokens[last]?.type === "space") last -= 1;
    for (let i = 0; i < last; i += 1) {
      const token = tokens[i] as Token;
      this.#offset += token.raw.length;
      if (token.type !== "space") this.#finished.push(toBlock(this.#finished.length, token, true));
    }
    const open = tokens[last];
    if (!open) return [...this.#finished];
    return [...this.#finished, toBlock(this.#finished.length, open, isComplete)];
  }
}

function toBlock(key: number, token: Token, isComplete: boolean): Block {
  if (token.type === "code") {
    const { lang, text } = token as Tokens.Code;
    return codeBlock(key, lang ?? "", text, isComplete);
  }
  if (token.type === "table") {
    const { header, rows } = token as Tokens.Table;
    const texts = [header, ...rows].map((row) => row.map((cell) => cell.text));
    return { key, kind: "table", html: clean([token]), rows: texts };
  }
  return { key, kind: "html", html: clean([token]) };
}

function codeBlock(key: number, language: string, text: string, isComplete: boolean): Block {
  if (isComplete && /^(json)?$/i.test(language)) {
    try {
      const value: unknown = JSON.parse(text);
      if (value !== null && typeof value === "object") return { key, kind: "json", text, value };
    } catch {
      // Not JSON after all: show it as it is.
    }
  }
  return { key, kind: "code", language, text };
}

/** Points in an answer (`point_2d`, 0 to 1000 on both axes), as shares of the picture. */
export function findPoints(answer: string): { label: string; x: number; y: number }[] {
  const found = answer.matchAll(/\{[^{}]*"point_2d"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\][^{}]*\}/g);
  return [...found].map(([whole, x, y]) => ({
    label: /"label"\s*:\s*"([^"]*)"/.exec(whole)?.[1] ?? "",
    x: Number(x) / 1000,
    y: Number(y) / 1000,
  }));
}

/** One row of a table made from JSON, with the box that belongs to it. */
export interface TableRow {
  cells: string[];
  hasBox: boolean;
}

export interface Table {
  header: string[];
  rows: TableRow[];
}

type Fields = Record<string, unknown>;

function isFields(value: unknown): value is Fields {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function cellText(value: unknown): string {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value).replaceAll(",", ", ") : String(value);
}

/** JSON as tables: a list of records is one table; an object is its fields, then its lists. */
export function toTables(value: unknown): Table[] {
  if (Array.isArray(value)) {
    if (value.length > 0 && value.every(isFields)) return [recordTable(value)];
    if (value.length > 0 && value.every((item) => !isFields(item) && !Array.isArray(item))) {
      return [{ header: ["#", ""], rows: value.map((v, i) => row([String(i + 1), cellText(v)])) }];
    }
    return [];
  }
  if (!isFields(value)) return [];
  const lists = Object.values(value).filter(
    (item): item is Fields[] => Array.isArray(item) && item.length > 0 && item.every(isFields),
  );
  const plain = Object.entries(value).filter(([, item]) => !lists.includes(item as Fields[]));
  const fields = plain.map(([name, item]) => row([name, cellText(item)]));
  const first = fields.length > 0 ? [{ header: [], rows: fields }] : [];
  return [...first, ...lists.map(recordTable)];
}

function recordTable(records: Fields[]): Table {
  const header = [...new Set(records.flatMap((record) => Object.keys(record)))];
  return {
    header,
    rows: records.map((record) => ({
      cells: header.map((name) => cellText(record[name])),
      hasBox: header.some((name) => /box|point/i.test(name) && Array.isArray(record[name])),
    })),
  };
}

function row(cells: string[]): TableRow {
  return { cells, hasBox: false };
}

/** Marks the labels of boxes where the text names them, so that text and box can point at each other. */
export function markLabels(html: string, labels: string[]): string {
  const wanted = labels.map(labelPattern);
  if (!wanted.some(Boolean)) return html;
  const template = document.createElement("template");
  template.innerHTML = html;
  const walker = document.createTreeWalker(template.content, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  while (walker.nextNode()) texts.push(walker.currentNode as Text);
  for (const [index, pattern] of wanted.entries()) {
    if (!pattern) continue;
    const place = texts.findIndex((text) => pattern.test(text.data));
    const found = texts[place];
    const match = found && pattern.exec(found.data);
    if (!match) continue;
    const named = found.splitText(match.index);
    const after = named.splitText(match[0].length);
    const mark = document.createElement("mark");
    mark.dataset.box = String(index);
    named.replaceWith(mark);
    mark.append(named);
    texts.splice(place, 1, found, after);
  }
  return template.innerHTML;
}

/** A label as a whole word (Chinese has no word limits to look for); null for an empty one. */
function labelPattern(label: string): RegExp | null {
  const words = label.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  if (!words) return null;
  return new RegExp(/^\w/.test(words) ? `(?<!\\w)${words}(?!\\w)` : words, "i");
}
