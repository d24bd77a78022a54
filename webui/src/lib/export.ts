// A conversation as a file, and an answer as plain text.

import { AnswerParser } from "./markdown";
import { download, textOf } from "./plain";
import type { Conversation } from "./store";
import type { Status } from "./types";

/** An answer without Markdown: paragraphs, lists, tab-separated tables, code as it is. */
export function plainAnswer(answer: string): string {
  const blocks = new AnswerParser().update(answer, true);
  return blocks
    .map((block) => {
      if (block.kind === "html") return textOf(block.html);
      if (block.kind === "table") return block.rows.map((row) => row.join("\t")).join("\n");
      return block.text;
    })
    .join("\n\n");
}

export function exportMarkdown(conversation: Conversation, status: Status | null): void {
  const rounds = conversation.rounds.map((round) => {
    const names = round.pictures.map((picture) => picture.name).join(", ");
    const seen = names ? `*${names}*\n\n` : "";
    return `## ${round.question}\n\n${seen}${round.answer}\n`;
  });
  const head = `# ${conversation.title}\n\n${status?.model ?? ""} · ${stamp(conversation)}\n`;
  download(`${fileName(conversation)}.md`, [head, ...rounds].join("\n"), "text/markdown");
}

export function exportJson(conversation: Conversation, status: Status | null): void {
  const rounds = conversation.rounds.map((round) => ({
    asked_at: new Date(round.askedAt).toISOString(),
    pictures: round.pictures.map(({ name, bytes, width, height }) => ({
      name,
      bytes,
      width,
      height,
    })),
    question: round.question,
    reasoning: round.reasoning || undefined,
    answer: round.answer,
    finish_reason: round.finish,
    usage: round.usage,
    vision: round.vision,
    boxes: round.boxes,
  }));
  const whole = { title: conversation.title, model: status?.model ?? "", rounds };
  download(`${fileName(conversation)}.json`, JSON.stringify(whole, null, 2), "application/json");
}

function fileName(conversation: Conversation): string {
  const words = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  return words.replace(/^-|-$/g, "") || "conversation";
}

function stamp(conversation: Conversation): string {
  return new Date(conversation.updatedAt).toISOString().slice(0, 16).replace("T", " ");
}
