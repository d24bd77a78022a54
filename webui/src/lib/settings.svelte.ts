// What the visitor chose: kept in this browser only.

import type { Detail } from "./types";

export type Theme = "system" | "light" | "dark" | "contrast";
export type Language = "en" | "zh";
export type ReceiptDetail = "off" | "brief" | "full";

interface Settings {
  theme: Theme;
  language: Language;
  key: string;
  receipt: ReceiptDetail;
  history: boolean;
  temperature: number;
  maxTokens: number;
  detail: Detail;
  noticeClosed: boolean;
}

const STORED = "visiongate.settings";

const defaults: Settings = {
  theme: "system",
  language: navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en",
  key: "",
  receipt: "brief",
  history: true,
  temperature: 0.5,
  maxTokens: 512,
  detail: "auto",
  noticeClosed: false,
};

function load(): Settings {
  try {
    return { ...defaults, ...JSON.parse(localStorage.getItem(STORED) ?? "{}") };
  } catch {
    return { ...defaults };
  }
}

export const settings = $state(load());

/** Applies theme and language to the document and keeps every change; call once. */
export function keepSettings(): void {
  $effect.root(() => {
    $effect(() => {
      document.documentElement.dataset.theme = settings.theme;
      document.documentElement.lang = settings.language === "zh" ? "zh-CN" : "en";
      try {
        localStorage.setItem(STORED, JSON.stringify(settings));
      } catch {
        // Storage is full or blocked: the choice lasts until the page closes.
      }
    });
  });
}
