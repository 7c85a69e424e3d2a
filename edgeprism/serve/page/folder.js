// The view of a folder: all its pictures are described, several at a time; then they are saved.

import { caption, Refused, Unreachable } from "./api.js";
import { announce, button, byId, count, make } from "./dom.js";
import { downloads } from "./downloads.js";
import { fromInput, sortFolder } from "./files.js";
import { captionFields } from "./settings.js";
import { duration } from "./stages.js";

const AT_A_TIME = 4;
const HOLDS_FOR_ALL = new Set([401, 403, 404]); // of the server, not of one picture
let run = null;

/** Show a folder's files [{ path, file }], ready to be described; ask before captions get lost. */
export function openFolder(name, files) {
  const question = `The captions of ${run?.name} are not saved. Open ${name || "the pictures"} all the same?`;
  if (run?.isUnsaved && !window.confirm(question)) return;
  run?.stop();
  run = new Run(name, files);
  byId("run").hidden = false;
  byId("run").replaceChildren(run.element);
  run.begin.focus();
}

export function startFolder() {
  const input = byId("folder-files");
  if (!("webkitdirectory" in input)) {
    byId("folder-drop").hidden = true;
    byId("no-folders").hidden = false;
  }
  input.addEventListener("change", () => {
    const { name, files } = fromInput(input.files);
    input.value = "";
    openFolder(name, files);
  });
  window.addEventListener("beforeunload", (event) => {
    if (run?.isUnsaved) event.preventDefault(); // the browser asks whether to leave
  });
}

/** Return seconds as "about 3 minutes". */
function left(seconds) {
  if (seconds < 60) return "less than a minute";
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `about ${count(minutes, "minute")}` : `about ${count(Math.round(minutes / 60), "hour")}`;
}

/** One folder. */
class Run {
  constructor(name, files) {
    this.name = name;
    const { pictures, others } = sortFolder(files);
    this.pictures = pictures;
    this.results = new Map(); // path → { path, record } or { path, error }
    this.failed = 0;
    this.isUnsaved = false;
    this.url = "";
    this.build(others);
  }

  build(others) {
    const passed = others ? ` ${count(others, "other file")} passed over.` : "";
    this.begin = button("Describe them", () => this.start(), { class: "primary" });
    if (!this.pictures.length) this.begin.hidden = true;
    this.progress = make("progress", { max: this.pictures.length || 1, value: 0, "aria-label": "Pictures described" });
    this.state = make("p", { class: "state" }); // not read aloud at each picture, but at the end
    this.image = make("img", { alt: "", hidden: true, onerror: () => (this.image.hidden = true) });
    this.latest = make("p", { class: "caption" });
    this.now = make("div", { class: "now", hidden: true, "aria-hidden": "true" }, this.image, this.latest);
    this.list = make("ol", { class: "results", "aria-label": "Captions" });
    const all = () => this.pictures.map(({ path }) => this.results.get(path)).filter(Boolean);
    this.saving = downloads(() => this.name, all, () => (this.isUnsaved = false));
    this.saving.hidden = true;
    const found = this.pictures.length ? `${count(this.pictures.length, "picture")}.` : "No pictures.";
    this.element = make("div", {},
      make("div", { class: "run-head" },
        make("div", {}, make("h2", { text: this.name || "Pictures" }), make("p", { class: "help", text: found + passed })),
        this.begin),
      this.progress, this.state, this.saving, this.now, this.list);
    this.progress.hidden = true;
  }

  /** Describe what is not described yet; pictures that failed are tried again. */
  async start() {
    const todo = this.pictures.filter(({ path }) => !this.results.get(path)?.record);
    this.failed = 0;
    this.list.querySelectorAll(".failed").forEach((row) => row.remove());
    this.stopping = new AbortController();
    this.trouble = null;
    this.progress.hidden = false;
    this.setBegin("Stop", () => this.stop());
    const started = performance.now();
    const before = this.pictures.length - todo.length;
    const work = async () => {
      while (todo.length && !this.stopping.signal.aborted) {
        await this.describe(todo.shift());
        this.tell(before, started);
      }
    };
    await Promise.all(Array.from({ length: AT_A_TIME }, work));
    this.end(performance.now() - started);
  }

  stop() {
    this.stopping?.abort();
  }

  setBegin(text, act) {
    const fresh = button(text, act, { class: "primary" });
    const had = document.activeElement === this.begin;
    this.begin.replaceWith(fresh);
    this.begin = fresh;
    if (had) fresh.focus();
  }

  async describe({ path, file }) {
    try {
      const record = await caption(file, captionFields(), { signal: this.stopping.signal });
      this.results.set(path, { path, record });
      this.isUnsaved = true;
      this.showRow(path, record.caption, false);
      this.showNow(file, record.caption);
    } catch (error) {
      if (this.stopping.signal.aborted) return;
      if (error instanceof Unreachable || HOLDS_FOR_ALL.has(error.status)) {
        this.trouble = error;
        this.stop();
        return;
      }
      const code = error instanceof Refused ? error.code : "not_sent";
      this.results.set(path, { path, error: { code, message: error.message } });
      this.failed += 1;
      this.showRow(path, error.message, true);
    }
  }

  showRow(path, text, isFailure) {
    this.list.prepend(make("li", { class: isFailure ? "failed" : "" },
      make("span", { class: "path", text: path }), make("span", { class: "text", text })));
  }

  showNow(file, text) {
    URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    this.now.hidden = false;
    this.image.hidden = false;
    this.image.src = this.url;
    this.latest.textContent = text;
  }

  get done() {
    return [...this.results.values()].filter((result) => result.record).length;
  }

  tell(before, started) {
    const done = this.done + this.failed;
    this.progress.value = done;
    const each = (performance.now() - started) / Math.max(1, done - before);
    const rest = this.pictures.length - done;
    this.state.textContent = `${done.toLocaleString()} of ${this.pictures.length.toLocaleString()}`
      + ` · ${duration(each)} each` + (rest ? ` · ${left((rest * each) / 1000)} left` : "");
  }

  end(ms) {
    const rest = this.pictures.length - this.done - this.failed;
    const failures = this.failed ? ` ${this.failed} failed.` : "";
    const told = this.trouble ? this.trouble.message : rest ? "Stopped." : `Done in ${duration(ms)}.`;
    this.state.textContent = `${told} ${count(this.done, "caption")}.${failures}`;
    this.saving.hidden = !this.done;
    this.begin.hidden = false;
    if (rest || this.failed) this.setBegin(rest ? "Go on" : "Try the failed again", () => this.start());
    else this.begin.hidden = true;
    announce(this.state.textContent);
  }
}
