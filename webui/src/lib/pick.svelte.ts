// Taking up a ready-made task.

import { chat } from "./chat.svelte";
import { settings } from "./settings.svelte";
import { promptOf, sampleFile, type Task } from "./tasks";

/** Fills the composer: the task's question, exact reading, and its sample where no picture is chosen. */
export async function pickTask(task: Task): Promise<void> {
  if (chat.running) return;
  const brings = task.file && chat.drafts.length === 0;
  if (brings) chat.startNew(); // another picture is another conversation
  chat.question = promptOf(task);
  settings.temperature = 0;
  if (brings) await chat.add([await sampleFile(task.file ?? "")]);
  document.getElementById("question")?.focus();
}
