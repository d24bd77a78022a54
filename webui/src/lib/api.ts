// Calls to the service: the key, errors in the server's own words, and event streams.

import { createParser } from "eventsource-parser";
import { settings } from "./settings.svelte";

/** A refusal or failure; `status` is 0 when the service could not be reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfterSeconds = 0,
  ) {
    super(message);
  }
}

/** Fetches a path of this service. Throws ApiError unless it answered with success. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (settings.key) headers.set("Authorization", `Bearer ${settings.key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "");
  }
  if (response.ok) return response;
  const retry = Number(response.headers.get("Retry-After") ?? 0);
  throw new ApiError(response.status, await sentence(response), Number.isFinite(retry) ? retry : 0);
}

/** Posts JSON and returns the response. */
export function post(
  path: string,
  body: unknown,
  { signal, headers = {} }: { signal?: AbortSignal; headers?: Record<string, string> } = {},
): Promise<Response> {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
    ...(signal ? { signal } : {}),
  });
}

/** The server's sentence about an error, from either of its two error shapes. */
async function sentence(response: Response): Promise<string> {
  try {
    const { error } = (await response.json()) as { error?: string | { message?: string } };
    return (typeof error === "string" ? error : error?.message) ?? "";
  } catch {
    return "";
  }
}

export interface ServerEvent {
  name: string;
  data: string;
}

/** Yields the events of a stream as they arrive; ends with it. */
export async function* serverEvents(
  response: Response,
  onActivity: () => void = () => {},
): AsyncGenerator<ServerEvent> {
  const arrived: ServerEvent[] = [];
  const parser = createParser({
    onEvent: ({ event, data }) => arrived.push({ name: event ?? "message", data }),
  });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onActivity();
      parser.feed(value);
      yield* arrived.splice(0);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
