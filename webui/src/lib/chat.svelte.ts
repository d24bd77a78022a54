// The conversation: what is asked, what comes back, and how the history is kept.

import { ApiError, post, request, serverEvents } from "./api";
import { t } from "./i18n.svelte";
import {
  ADVISED_BYTES,
  advice,
  dataUri,
  newId,
  type Picture,
  prepare,
  refusal,
  release,
} from "./pictures";
import { settings } from "./settings.svelte";
import { device, isReady, untilReady } from "./status.svelte";
import type { Conversation, Entry, Round } from "./store";
import * as store from "./store";
import type { Chunk, Message, Part, Plan } from "./types";

/** A picture in the composer; `picture` is null while it is being prepared. */
export interface Draft {
  id: string;
  name: string;
  picture: Picture | null;
  ready: Promise<Picture>;
  /** What the service would do with it, where it said so. */
  plan: Plan | null;
  /** Why the service would refuse it, in its words. */
  problem: string;
}

const DEFAULT_LIMIT_BYTES = 10 * 1024 * 1024;
const DEFAULT_MAX_IMAGES = 8;

class Chat {
  conversation = $state<Conversation>(fresh());
  entries = $state<Entry[]>([]);
  drafts = $state<Draft[]>([]);
  question = $state("");
  /** The round being answered; while there is one, nothing else can be sent. */
  running = $state<Round | null>(null);
  /** Sentences about files that were refused. */
  refusals = $state<string[]>([]);
  /** A short sentence for screen readers and the status line. */
  announcement = $state("");

  #abort: AbortController | null = null;
  #saving: Promise<void> = Promise.resolve();
  #cleared = new Set<string>();

  get canSend(): boolean {
    return this.running === null && this.question.trim() !== "";
  }

  /** The pictures that the model saw with a round, as boxes and receipts count them. */
  seenPictures(round: Round): Picture[] {
    const { rounds } = this.conversation;
    const until = rounds.findIndex((other) => other.id === round.id) + 1;
    const all = rounds.slice(0, until).flatMap((other) => other.pictures);
    const seen = round.vision?.images.length ?? 0;
    return seen > 0 && seen < all.length ? all.slice(-seen) : all;
  }

  /** Opens the newest kept conversation. */
  async restore(): Promise<void> {
    this.entries = await store.listConversations();
    const newest = this.entries[0];
    if (newest && settings.history) await this.open(newest.id);
  }

  async open(id: string): Promise<void> {
    const kept = await store.loadConversation(id);
    if (!kept || this.running) return;
    for (const round of kept.rounds) settle(round);
    this.conversation = kept;
  }

  startNew(): void {
    if (this.running) return;
    this.conversation = fresh();
  }

  /** Adds files to the composer, or says why not. */
  async add(files: Iterable<File>): Promise<void> {
    this.refusals = [];
    const limits = device.status?.limits;
    for (const file of files) {
      const reason = await refusal(file, limits?.image_bytes ?? DEFAULT_LIMIT_BYTES);
      const most = limits?.max_images ?? DEFAULT_MAX_IMAGES;
      if (reason) this.refusals.push(reason);
      else if (this.drafts.length >= most) {
        this.refusals.push(t("tooMany", { count: most }));
        return;
      } else this.#addDraft(file);
    }
  }

  #addDraft(file: File): void {
    const ready = prepare(file);
    const id = newId();
    this.drafts.push({ id, name: file.name, picture: null, ready, plan: null, problem: "" });
    const draft = this.drafts.at(-1) as Draft;
    ready.then((picture) => {
      draft.picture = picture;
      if (picture.bytes <= ADVISED_BYTES && isReady()) void this.#planDraft(draft, picture);
    });
  }

  /** Asks what would happen to a picture, so that a bad one is known before the question is typed. */
  async #planDraft(draft: Draft, picture: Picture): Promise<void> {
    const form = new FormData();
    form.append("image", picture.blob, picture.name);
    try {
      const response = await request("/v1/images/plan", { method: "POST", body: form });
      draft.plan = (await response.json()) as Plan;
    } catch (error) {
      const isRefusal = error instanceof ApiError && [400, 413].includes(error.status);
      if (isRefusal) draft.problem = error.message;
    }
  }

  removeDraft(id: string): void {
    this.drafts = this.drafts.filter((draft) => draft.id !== id);
  }

  /** Sends what the composer holds. Does nothing while an answer is running. */
  async send(): Promise<void> {
    if (!this.canSend) return;
    const drafts = this.drafts;
    const round = this.#append(this.question.trim());
    this.question = "";
    this.drafts = [];
    this.refusals = [];
    await this.#answer(round, async () => {
      round.pictures = await Promise.all(drafts.map((draft) => draft.ready));
    });
  }

  /** Asks a round again, changed or not; what followed it is dropped. */
  async ask(round: Round, question: string): Promise<void> {
    if (this.running || !question.trim()) return;
    const { rounds } = this.conversation;
    const pictures = round.pictures;
    rounds.splice(rounds.findIndex((other) => other.id === round.id));
    this.#leaveSession();
    const again = this.#append(question.trim());
    again.pictures = pictures;
    await this.#answer(again);
  }

  stop(): void {
    this.#abort?.abort();
  }

  /** Empties the conversation here and on the server. */
  async clear(): Promise<void> {
    this.stop();
    this.#leaveSession();
    const { id, rounds } = this.conversation;
    for (const picture of rounds.flatMap((round) => round.pictures)) release(picture);
    this.conversation = fresh();
    this.drafts = [];
    this.refusals = [];
    this.#cleared.add(id);
    await this.#saving;
    this.entries = await store.deleteConversation(id).catch(() => this.entries);
  }

  async remove(id: string): Promise<void> {
    if (id === this.conversation.id) await this.clear();
    else this.entries = await store.deleteConversation(id).catch(() => this.entries);
  }

  async removeAll(): Promise<void> {
    await this.clear();
    await store.deleteEverything().catch(() => {});
    this.entries = [];
  }

  #append(question: string): Round {
    if (this.conversation.rounds.length === 0) this.conversation.title = question.slice(0, 80);
    this.conversation.rounds.push(newRound(question));
    return this.conversation.rounds.at(-1) as Round;
  }

  async #answer(round: Round, prepared: () => Promise<void> = async () => {}): Promise<void> {
    const abort = new AbortController();
    this.#abort = abort;
    this.running = round;
    this.announcement = t("thinking");
    try {
      await prepared();
      void this.#keep(); // a page that is closed now still shows the question later
      if (!isReady()) {
        round.state = "waiting";
        await untilReady(abort.signal);
      }
      round.state = "sending";
      await this.#stream(round, abort.signal).catch((error) => {
        const sessionIsGone = error instanceof ApiError && error.status === 404;
        if (!sessionIsGone || !this.conversation.sessionId) throw error;
        this.conversation.sessionId = "";
        return this.#stream(round, abort.signal);
      });
      round.state = "done";
      this.announcement = t("answered");
    } catch (error) {
      this.#leaveSession();
      round.state = abort.signal.aborted ? "stopped" : "failed";
      if (round.state === "failed") round.error = problem(error);
      this.announcement = round.state === "stopped" ? t("stopped") : "";
    }
    round.totalMs = Date.now() - round.askedAt;
    this.running = null;
    this.#abort = null;
    await this.#keep();
  }

  async #stream(round: Round, signal: AbortSignal): Promise<void> {
    const { conversation } = this;
    const response = await post("/v1/chat/completions", await this.#body(round), {
      signal,
      headers: { "X-VisionGate-Events": "queue" },
    });
    round.state = "thinking";
    const text = new SmoothText(round);
    let session = "";
    try {
      for await (const event of serverEvents(response)) {
        if (event.data === "[DONE]") break;
        const chunk = JSON.parse(event.data) as Chunk & { position?: number };
        if (event.name === "queue") {
          round.queuePosition = chunk.position ?? 0;
          round.state = round.queuePosition > 0 ? "queued" : "thinking";
          continue;
        }
        if (chunk.error) throw new ApiError(502, chunk.error.message);
        if (chunk.session_id) session = chunk.session_id;
        const choice = chunk.choices?.[0];
        if (choice?.delta?.reasoning_content) text.think(choice.delta.reasoning_content);
        if (choice?.delta?.content) text.add(choice.delta.content);
        if (choice?.finish_reason) round.finish = choice.finish_reason;
        if (chunk.usage) round.usage = chunk.usage;
        if (chunk.vision) round.vision = chunk.vision;
        if (chunk.boxes) round.boxes = chunk.boxes;
      }
    } finally {
      text.flush();
    }
    if (!round.finish && !signal.aborted) throw new ApiError(0, "");
    if (session) conversation.sessionId = session; // the server keeps complete rounds only
  }

  /** A request that continues the session, or carries the whole conversation to open a new one. */
  async #body(round: Round): Promise<object> {
    const { sessionId, rounds } = this.conversation;
    const asked = sessionId ? [round] : rounds.slice(0, rounds.indexOf(round) + 1);
    const told = asked.filter((other) => other === round || other.answer);
    let room = device.status?.limits.max_images ?? DEFAULT_MAX_IMAGES;
    const messages: Message[] = [];
    for (const one of told.toReversed()) {
      const pictures = one.pictures.slice(0, room);
      room -= pictures.length;
      if (one !== round) messages.unshift({ role: "assistant", content: one.answer });
      messages.unshift({ role: "user", content: await parts(one.question, pictures) });
    }
    return {
      model: device.status?.model ?? "",
      messages,
      stream: true,
      stream_options: { include_usage: true },
      temperature: settings.temperature,
      max_tokens: settings.maxTokens,
      session_id: sessionId,
    };
  }

  /** Forgets the server's session; the next question carries the history again. */
  #leaveSession(): void {
    const { sessionId } = this.conversation;
    if (!sessionId) return;
    this.conversation.sessionId = "";
    request(`/api/sessions/${sessionId}`, { method: "DELETE" }).catch(() => {});
  }

  /** Stores the conversation; one write after the other, so that the newest is the last. */
  #keep(): Promise<void> {
    if (!settings.history || this.conversation.rounds.length === 0) return Promise.resolve();
    this.conversation.updatedAt = Date.now();
    const copy = plainCopy(this.conversation);
    this.#saving = this.#saving.then(async () => {
      if (this.#cleared.has(copy.id)) return;
      try {
        this.entries = await store.saveConversation(copy);
      } catch {
        this.announcement = t("storageFull");
      }
    });
    return this.#saving;
  }
}

/** Collects deltas and shows them once a frame, so that a fast answer does not redraw per token. */
class SmoothText {
  #pending = "";
  #thought = "";
  #timer = 0;

  constructor(private readonly round: Round) {}

  /** Text of the reasoning before the answer; the first tokens come with it. */
  think(delta: string): void {
    this.#begin();
    this.#thought += delta;
    this.#show();
  }

  add(delta: string): void {
    this.#begin();
    this.round.state = "streaming";
    this.#pending += delta;
    if (this.round.answer === "") this.flush(); // the first text is shown without waiting
    this.#show();
  }

  #begin(): void {
    if (this.round.firstTextMs === 0) this.round.firstTextMs = Date.now() - this.round.askedAt;
  }

  #show(): void {
    if (this.#timer || !(this.#pending || this.#thought)) return;
    const show = () => this.flush();
    this.#timer = document.hidden ? window.setTimeout(show, 50) : requestAnimationFrame(show);
  }

  flush(): void {
    this.#timer = 0;
    if (this.#thought) this.round.reasoning = (this.round.reasoning ?? "") + this.#thought;
    this.round.answer += this.#pending;
    this.#pending = this.#thought = "";
  }
}

async function parts(question: string, pictures: Picture[]): Promise<Part[]> {
  const images = pictures.map(
    async ({ blob }): Promise<Part> => ({
      type: "image_url",
      image_url: { url: await dataUri(blob), detail: settings.detail },
    }),
  );
  return [...(await Promise.all(images)), { type: "text", text: question }];
}

function newRound(question: string): Round {
  return {
    id: newId(),
    question,
    pictures: [],
    answer: "",
    state: "preparing",
    queuePosition: 0,
    error: null,
    finish: "",
    usage: null,
    vision: null,
    boxes: [],
    askedAt: Date.now(),
    firstTextMs: 0,
    totalMs: 0,
  };
}

function fresh(): Conversation {
  return { id: newId(), title: "", updatedAt: Date.now(), sessionId: "", rounds: [] };
}

/** A round that a closed page left unfinished has ended. */
function settle(round: Round): void {
  if (!["done", "failed"].includes(round.state)) round.state = "stopped";
}

function problem(error: unknown): NonNullable<Round["error"]> {
  if (error instanceof ApiError) {
    const { status, message, retryAfterSeconds } = error;
    return { status, message, retryAfterSeconds };
  }
  return { status: 0, message: "", retryAfterSeconds: 0 };
}

/** The conversation without reactive wrappers, as the store can keep it. */
function plainCopy(conversation: Conversation): Conversation {
  const { rounds, ...rest } = conversation;
  return {
    ...rest,
    rounds: rounds.map((round) => ({
      ...(JSON.parse(JSON.stringify({ ...round, pictures: [] })) as Round),
      pictures: round.pictures.map((picture) => ({ ...picture })),
    })),
  };
}

/** What is worth saying about a draft; empty when nothing is. */
export function draftAdvice(draft: Draft): string {
  const own = draft.picture ? advice(draft.picture) : "";
  return own || (draft.plan?.warnings[0] ?? "");
}

export const chat = new Chat();
