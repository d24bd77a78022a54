// One question about many pictures, over /v1/files and /v1/batches; survives a reload.

import { ApiError, post, request } from "./api";
import { t } from "./i18n.svelte";
import { dataUri, newId, type Picture, prepare, refusal } from "./pictures";
import { settings } from "./settings.svelte";
import { device } from "./status.svelte";
import { forgetValue, keepValue, keptValue } from "./store";
import type { BatchJob } from "./types";

export type ItemState = "ready" | "waiting" | "done" | "failed" | "cancelled";

export interface Item {
  id: string;
  name: string;
  thumb: Blob | null;
  picture: Picture | null;
  state: ItemState;
  answer: string;
}

interface Kept {
  jobId: string;
  prompt: string;
  items: { id: string; name: string; thumb: Blob | null }[];
}

/** One line of a batch's output or error file. */
interface OutputLine {
  custom_id: string;
  response?: {
    status_code: number;
    body?: { choices?: { message: { content: string } }[]; error?: { message: string } };
  } | null;
  error?: { message?: string } | null;
}

const KEPT = "batch";
const POLL_MS = 1000;
const OVER = new Set(["completed", "failed", "expired", "cancelled"]);

class Batch {
  items = $state<Item[]>([]);
  prompt = $state("");
  job = $state<BatchJob | null>(null);
  uploading = $state(false);
  refusals = $state<string[]>([]);
  problem = $state("");

  get isRunning(): boolean {
    return this.uploading || (this.job !== null && !OVER.has(this.job.status));
  }

  get isOver(): boolean {
    return this.job !== null && OVER.has(this.job.status);
  }

  async add(files: Iterable<File>): Promise<void> {
    this.refusals = [];
    for (const file of files) {
      const reason = await refusal(file, device.status?.limits.image_bytes ?? 10 * 1024 * 1024);
      if (reason) {
        this.refusals.push(reason);
        continue;
      }
      const picture = await prepare(file);
      const { name, thumb } = picture;
      this.items.push({ id: newId(), name, thumb, picture, state: "ready", answer: "" });
    }
  }

  removeItem(id: string): void {
    this.items = this.items.filter((item) => item.id !== id);
  }

  async start(): Promise<void> {
    if (this.isRunning || !this.prompt.trim() || this.items.length === 0) return;
    this.uploading = true;
    this.problem = "";
    try {
      const form = new FormData();
      form.append("purpose", "batch");
      form.append("file", new File(await this.#lines(), "pictures.jsonl"));
      const file = await json<{ id: string }>(request("/v1/files", { method: "POST", body: form }));
      this.job = await json<BatchJob>(
        post("/v1/batches", {
          input_file_id: file.id,
          endpoint: "/v1/chat/completions",
          completion_window: "24h",
        }),
      );
      for (const item of this.items) item.state = "waiting";
      await this.#keep();
    } catch (error) {
      this.problem = (error as Error).message || t("errorOffline");
    }
    this.uploading = false;
    if (this.job) await this.follow();
  }

  async cancel(): Promise<void> {
    if (!this.job) return;
    await post(`/v1/batches/${this.job.id}/cancel`, {}).catch(() => {});
  }

  /** Takes up the batch that an earlier visit started. */
  async restore(): Promise<void> {
    const kept = await keptValue<Kept>(KEPT).catch(() => undefined);
    if (!kept) return;
    this.prompt = kept.prompt;
    this.items = kept.items.map((item) => ({
      ...item,
      picture: null,
      state: "waiting",
      answer: "",
    }));
    try {
      this.job = await json<BatchJob>(request(`/v1/batches/${kept.jobId}`));
      await this.follow();
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) return;
      this.problem = t("batchGone");
      this.items = [];
      await forgetValue(KEPT);
    }
  }

  /** Empties the tab and deletes the batch's files on the server. */
  async reset(): Promise<void> {
    const files = [this.job?.input_file_id, this.job?.output_file_id, this.job?.error_file_id];
    for (const id of files)
      if (id) request(`/v1/files/${id}`, { method: "DELETE" }).catch(() => {});
    this.job = null;
    this.items = [];
    this.refusals = [];
    this.problem = "";
    await forgetValue(KEPT).catch(() => {});
  }

  /** Polls until the batch is over; results appear as the service hands them out. */
  async follow(): Promise<void> {
    while (this.job) {
      await this.#collect();
      if (OVER.has(this.job.status)) break;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      const id: string | undefined = this.job?.id;
      if (!id) return;
      this.job = await json<BatchJob>(request(`/v1/batches/${id}`)).catch(() => this.job);
    }
    for (const item of this.items) if (item.state === "waiting") item.state = "cancelled";
  }

  /** The results as rows, header first. */
  rows(): string[][] {
    const header = [t("batchName"), t("batchState"), t("batchAnswer")];
    return [header, ...this.items.map((item) => [item.name, itemWord(item.state), item.answer])];
  }

  async #lines(): Promise<BlobPart[]> {
    const lines: BlobPart[] = [];
    for (const { id, picture } of this.items) {
      if (!picture) continue;
      const url = await dataUri(picture.blob);
      const content = [
        { type: "image_url", image_url: { url, detail: settings.detail } },
        { type: "text", text: this.prompt.trim() },
      ];
      const body = {
        model: device.status?.model ?? "",
        messages: [{ role: "user", content }],
        temperature: settings.temperature,
        max_tokens: settings.maxTokens,
      };
      const line = { custom_id: id, method: "POST", url: "/v1/chat/completions", body };
      lines.push(new Blob([`${JSON.stringify(line)}\n`]));
    }
    return lines;
  }

  async #collect(): Promise<void> {
    for (const id of [this.job?.output_file_id, this.job?.error_file_id]) {
      if (!id) continue;
      const text = await request(`/v1/files/${id}/content`)
        .then((response) => response.text())
        .catch(() => "");
      for (const line of text.split("\n")) if (line.trim()) this.#take(JSON.parse(line));
    }
  }

  #take(line: OutputLine): void {
    const item = this.items.find((other) => other.id === line.custom_id);
    if (!item) return;
    const content = line.response?.body?.choices?.[0]?.message.content;
    item.state = content === undefined ? "failed" : "done";
    item.answer =
      content ?? line.error?.message ?? line.response?.body?.error?.message ?? t("errorServer");
  }

  async #keep(): Promise<void> {
    if (!this.job) return;
    const items = this.items.map(({ id, name, thumb }) => ({ id, name, thumb }));
    await keepValue(KEPT, { jobId: this.job.id, prompt: this.prompt, items }).catch(() => {});
  }
}

async function json<T>(response: Promise<Response>): Promise<T> {
  return (await response).json() as Promise<T>;
}

/** The word for an item's state. */
export function itemWord(state: ItemState): string {
  const words = {
    ready: "itemReady",
    waiting: "itemWaiting",
    done: "itemDone",
    failed: "itemFailed",
    cancelled: "itemCancelled",
  } as const;
  return t(words[state]);
}

export const batch = new Batch();
