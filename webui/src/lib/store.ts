// History in this browser: conversations and their pictures in IndexedDB, within bounds.

import { createStore, del, delMany, get, set, setMany } from "idb-keyval";
import type { Picture } from "./pictures";
import type { Box, Usage, Vision } from "./types";

export type RoundState =
  | "preparing"
  | "waiting"
  | "sending"
  | "queued"
  | "thinking"
  | "streaming"
  | "done"
  | "stopped"
  | "failed";

/** One question with its pictures and its answer. */
export interface Round {
  id: string;
  question: string;
  pictures: Picture[];
  answer: string;
  /** What the model thought before it answered; not there in what older pages kept. */
  reasoning?: string;
  state: RoundState;
  queuePosition: number;
  error: { status: number; message: string; retryAfterSeconds: number } | null;
  finish: string;
  usage: Usage | null;
  vision: Vision | null;
  boxes: Box[];
  askedAt: number;
  firstTextMs: number;
  totalMs: number;
}

export interface Conversation {
  id: string;
  title: string;
  updatedAt: number;
  /** The server's session; empty when the next question has to carry the whole history. */
  sessionId: string;
  rounds: Round[];
}

/** A conversation in the list, without its content. */
export interface Entry {
  id: string;
  title: string;
  updatedAt: number;
  bytes: number;
  pictureIds: string[];
}

const MAX_CONVERSATIONS = 50;
const MAX_BYTES = 200 * 1024 * 1024;

const store = createStore("visiongate", "history");

/** The conversations, newest first; empty where the browser keeps nothing. */
export async function listConversations(): Promise<Entry[]> {
  return (await get<Entry[]>("index", store).catch(() => undefined)) ?? [];
}

/** A conversation with its pictures, or null when it is gone. */
export async function loadConversation(id: string): Promise<Conversation | null> {
  const kept = await get<Conversation>(`c:${id}`, store).catch(() => undefined);
  if (!kept) return null;
  for (const round of kept.rounds) {
    const pictures = await Promise.all(
      round.pictures.map((picture) => get<Picture>(`p:${picture.id}`, store)),
    );
    round.pictures = pictures.filter((picture) => picture !== undefined);
  }
  return kept;
}

/** Keeps a conversation and drops the oldest ones beyond the bounds. */
export async function saveConversation(conversation: Conversation): Promise<Entry[]> {
  const pictures = conversation.rounds.flatMap((round) => round.pictures);
  const entries = await listConversations();
  const known = new Set(entries.find((entry) => entry.id === conversation.id)?.pictureIds);
  await setMany(
    pictures
      .filter((picture) => !known.has(picture.id))
      .map((picture) => [`p:${picture.id}`, picture]),
    store,
  );
  const bare = conversation.rounds.map((round) => ({
    ...round,
    pictures: round.pictures.map(({ id, name }) => ({ id, name })),
  }));
  await set(`c:${conversation.id}`, { ...conversation, rounds: bare }, store);
  const entry: Entry = {
    id: conversation.id,
    title: conversation.title,
    updatedAt: conversation.updatedAt,
    bytes: pictures.reduce((sum, picture) => sum + picture.bytes, 0),
    pictureIds: pictures.map((picture) => picture.id),
  };
  const gone = [...known].filter((id) => !entry.pictureIds.includes(id));
  await delMany(
    gone.map((id) => `p:${id}`),
    store,
  );
  return bound([entry, ...entries.filter((other) => other.id !== conversation.id)]);
}

async function bound(entries: Entry[]): Promise<Entry[]> {
  let bytes = 0;
  const kept = entries.filter((entry, index) => {
    bytes += entry.bytes;
    return index === 0 || (index < MAX_CONVERSATIONS && bytes <= MAX_BYTES);
  });
  for (const entry of entries) if (!kept.includes(entry)) await drop(entry);
  await set("index", kept, store);
  return kept;
}

/** Forgets a conversation. */
export async function deleteConversation(id: string): Promise<Entry[]> {
  const entries = await listConversations();
  const entry = entries.find((other) => other.id === id);
  if (entry) await drop(entry);
  const rest = entries.filter((other) => other.id !== id);
  await set("index", rest, store);
  return rest;
}

async function drop(entry: Entry): Promise<void> {
  await delMany([`c:${entry.id}`, ...entry.pictureIds.map((id) => `p:${id}`)], store);
}

/** Forgets everything. */
export async function deleteEverything(): Promise<void> {
  for (const entry of await listConversations()) await drop(entry);
  await del("index", store);
}

/** Small values that outlive a reload, such as a running batch. */
export const keepValue = (key: string, value: unknown): Promise<void> => set(key, value, store);
export const keptValue = <T>(key: string): Promise<T | undefined> => get<T>(key, store);
export const forgetValue = (key: string): Promise<void> => del(key, store);
