// Pictures before they are sent: checked in words, turned upright and shrunk for the preview.

import { type Key, t } from "./i18n.svelte";

export interface Picture {
  id: string;
  name: string;
  bytes: number;
  width: number;
  height: number;
  blob: Blob;
  /** A small upright copy; null where the browser cannot draw the format. */
  thumb: Blob | null;
}

export const ADVISED_BYTES = 5 * 1024 * 1024;
const THUMB_PIXELS = 360;

const SIGNATURES: [string, (head: Uint8Array) => boolean][] = [
  ["image/jpeg", (b) => b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff],
  ["image/png", (b) => ascii(b, 1, 4) === "PNG"],
  ["image/gif", (b) => ascii(b, 0, 4) === "GIF8"],
  ["image/bmp", (b) => ascii(b, 0, 2) === "BM"],
  ["image/webp", (b) => ascii(b, 0, 4) === "RIFF" && ascii(b, 8, 12) === "WEBP"],
  ["image/tiff", (b) => ["II*\0", "MM\0*"].includes(ascii(b, 0, 4))],
  ["image/heic", (b) => ascii(b, 4, 8) === "ftyp" && /^(hei|mif|hev)/.test(ascii(b, 8, 11))],
];

/** A random identifier; crypto.randomUUID is missing on plain http beyond this machine. */
export function newId(): string {
  const numbers = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(numbers, (n) => n.toString(16).padStart(2, "0")).join("");
}

/** Why a file cannot be sent, as a sentence; empty when it can. */
export async function refusal(file: File, limitBytes: number): Promise<string> {
  if (file.size === 0) return say("emptyFile", file);
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  if (!SIGNATURES.some(([, matches]) => matches(head))) return say("wrongType", file);
  if (file.size > limitBytes) {
    return t("tooLarge", { name: file.name, size: mb(file.size), limit: mb(limitBytes) });
  }
  return "";
}

/** Advice about a file that will be accepted; empty when there is none. */
export function advice(picture: { bytes: number; width: number; height: number }): string {
  if (picture.bytes > ADVISED_BYTES) return t("largeAdvice", { size: mb(picture.bytes) });
  const sides = [picture.width, picture.height];
  if (picture.width && Math.max(...sides) / Math.min(...sides) > 8) return t("stripAdvice");
  return "";
}

function say(key: Key, file: File): string {
  return t(key, { name: file.name });
}

/** A file as a picture with its size and thumbnail. */
export async function prepare(file: File): Promise<Picture> {
  const drawn = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  return {
    id: newId(),
    name: file.name || "picture",
    bytes: file.size,
    width: drawn?.width ?? 0,
    height: drawn?.height ?? 0,
    blob: file,
    thumb: drawn ? await shrink(drawn) : null,
  };
}

async function shrink(drawn: ImageBitmap): Promise<Blob | null> {
  const scale = Math.min(1, THUMB_PIXELS / Math.max(drawn.width, drawn.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(drawn.width * scale));
  canvas.height = Math.max(1, Math.round(drawn.height * scale));
  canvas.getContext("2d")?.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  drawn.close();
  return new Promise((resolve) => {
    canvas.toBlob(resolve, "image/webp", 0.85);
  });
}

/** The data URI of a picture, as the API takes it. */
export function dataUri(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

const urls = new WeakMap<Blob, string>();

/** An address under which this page can show a blob. */
export function urlOf(blob: Blob): string {
  const known = urls.get(blob);
  if (known) return known;
  const url = URL.createObjectURL(blob);
  urls.set(blob, url);
  return url;
}

/** Lets go of a picture's memory. */
export function release(picture: Picture): void {
  for (const blob of [picture.blob, picture.thumb]) {
    const url = blob && urls.get(blob);
    if (blob && url) {
      URL.revokeObjectURL(url);
      urls.delete(blob);
    }
  }
}

/** Bytes for people. */
export function mb(bytes: number): string {
  if (bytes < 100 * 1024) return `${Math.max(1, Math.round(bytes / 1024))} kB`;
  const value = bytes / (1024 * 1024);
  return `${value.toFixed(value < 10 && !Number.isInteger(value) ? 1 : 0)} MB`;
}

function ascii(bytes: Uint8Array, from: number, to: number): string {
  return String.fromCharCode(...bytes.subarray(from, to));
}
