// The service's condition, live. Reconnects by itself, also after a restart.

import { request, serverEvents } from "./api";
import type { Status } from "./types";

const SILENCE_MS = 20_000;

export const device = $state<{ status: Status | null; connected: boolean; keyRefused: boolean }>({
  status: null,
  connected: false,
  keyRefused: false,
});

/** Whether a question sent now would be answered. */
export function isReady(): boolean {
  return (
    device.connected && (device.status?.state === "ready" || device.status?.state === "degraded")
  );
}

let restart = () => {};

/** Follows the service until the page closes. */
export async function followStatus(): Promise<void> {
  for (let failures = 0; ; failures += 1) {
    const control = new AbortController();
    const stop = () => control.abort();
    restart = stop;
    let watchdog = setTimeout(stop, SILENCE_MS);
    try {
      const response = await request("/api/status/stream", { signal: control.signal });
      const alive = () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE_MS);
      };
      for await (const event of serverEvents(response, alive)) {
        device.status = JSON.parse(event.data) as Status;
        device.connected = true;
        device.keyRefused = false;
        failures = 0;
      }
    } catch (error) {
      const code = (error as { status?: number }).status;
      device.keyRefused = code === 401 || code === 403;
    }
    clearTimeout(watchdog);
    device.connected = false;
    await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, 4000)));
  }
}

/** Connects anew at once, for example with another key. */
export function reconnect(): void {
  restart();
}

/** Resolves when the service would answer; rejects when the signal aborts. */
export function untilReady(signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const release = $effect.root(() => {
      $effect(() => {
        if (!isReady()) return;
        resolve();
        queueMicrotask(release);
      });
    });
    signal.addEventListener("abort", () => {
      release();
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
