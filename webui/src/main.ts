// Starts the page.

import { mount } from "svelte";
import App from "./App.svelte";
import "./app.css";
import { batch } from "./lib/batch.svelte";
import { chat } from "./lib/chat.svelte";
import { keepSettings } from "./lib/settings.svelte";
import { followStatus } from "./lib/status.svelte";

const target = document.getElementById("app");
if (target) {
  keepSettings();
  void followStatus();
  void chat.restore();
  void batch.restore();
  mount(App, { target });
}
