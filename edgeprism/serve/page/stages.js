// Where the time of a caption or an answer went, as a bar and in words.

import { make } from "./dom.js";

const STAGES = [
  ["load", "Load", ["load"]],
  ["read", "Read", ["decode_image", "preprocess"]],
  ["see", "See", ["encode"]],
  ["prepare", "Prompt", ["prefill"]],
  ["write", "Write", ["decode"]],
];

/** Return milliseconds as people read them: "8 ms", "340 ms", "2.1 s". */
export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Return the bar for `timings_ms` of a record, with a remark behind its figures. */
export function stageBar(timings, remark = "") {
  const parts = STAGES.map(([name, label, keys]) => ({
    name, label, ms: keys.reduce((sum, key) => sum + (timings[key] ?? 0), 0),
  })).filter((part) => part.ms > 0);
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  const words = make("ul", { class: "stages", "aria-label": "Time of each stage" });
  for (const part of parts) {
    const piece = make("span", { class: `stage ${part.name}` });
    piece.style.flexGrow = String(part.ms);
    bar.append(piece);
    words.append(make("li", { class: part.name, text: `${part.label} ${duration(part.ms)}` }));
  }
  if (remark) words.append(make("li", { class: "remark", text: remark }));
  return make("div", { class: "timing" }, bar, words);
}
