// The view of single pictures: a card each, with its caption as it comes, and questions.

import { stream } from "./api.js";
import { questions } from "./ask.js";
import { announce, button, byId, make } from "./dom.js";
import { downloads } from "./downloads.js";
import { captionFields } from "./settings.js";
import { duration, stageBar } from "./stages.js";

const AT_A_TIME = 3;
const cards = new Set();
const waiting = [];
let running = 0;

/** Show pictures, the newest first, and describe them. */
export function addPictures(files) {
  const added = [...files].map((file) => new Card(file));
  byId("cards").prepend(...added.map((card) => card.element));
  added.forEach((card) => card.start());
  showState();
  if (added.length) announce(`${added.length === 1 ? added[0].file.name : `${added.length} pictures`} added.`);
  added[0]?.element.scrollIntoView({ block: "nearest" });
}

export function startPictures() {
  const results = () => [...cards].filter((card) => card.record)
    .map((card) => ({ path: card.file.name, record: card.record }));
  byId("pictures-downloads").append(downloads(() => "pictures", results));
  byId("files").addEventListener("change", (event) => {
    addPictures(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}

/** Show what fits the number of cards. */
function showState() {
  byId("view-pictures").classList.toggle("has-cards", cards.size > 0);
  byId("pictures-downloads").hidden = ![...cards].some((card) => card.record);
}

/** Begin with the pictures that wait, while fewer than AT_A_TIME are being described. */
function next() {
  while (running < AT_A_TIME && waiting.length) {
    running += 1;
    waiting.shift().describe().finally(() => {
      running -= 1;
      next();
    });
  }
}

let numbers = 0;

/** One picture. */
class Card {
  constructor(file) {
    this.file = file;
    this.record = null;
    const id = `picture-${++numbers}`;
    this.url = URL.createObjectURL(file);
    this.image = make("img", { src: this.url, alt: file.name, onerror: () => this.withoutPreview() });
    this.frame = make("figure", { class: "frame" }, this.image);
    this.caption = make("p", { class: "caption", "aria-live": "polite" });
    this.state = make("p", { class: "state", text: "Waiting …" });
    this.facts = make("div", { class: "facts" });
    this.actions = make("div", { class: "actions" });
    this.element = make("article", { class: "card", "aria-labelledby": id }, this.frame,
      make("div", { class: "words" },
        make("h2", { id, text: file.name }), this.caption, this.state, this.facts, this.actions,
        questions(file)));
    cards.add(this);
  }

  withoutPreview() {
    this.image.remove();
    this.frame.classList.add("empty");
    this.frame.append(make("span", { text: "This browser shows no preview of it." }));
  }

  start() {
    waiting.push(this);
    this.offer(["Remove", () => this.remove()]);
    next();
  }

  offer(...choices) {
    const had = this.actions.contains(document.activeElement);
    this.actions.replaceChildren(...choices.map(([text, act]) =>
      button(text, act, { class: "quiet", "aria-label": `${text}: ${this.file.name}` })));
    if (had) this.actions.firstChild?.focus(); // a keyboard's place must not get lost
  }

  async describe() {
    if (!cards.has(this)) return;
    this.stopping = new AbortController();
    this.record = null;
    this.caption.textContent = "";
    this.caption.setAttribute("aria-busy", "true"); // it is read aloud once it is whole
    this.caption.classList.add("streaming");
    this.facts.replaceChildren();
    this.tell("Looking …");
    this.offer(["Stop", () => this.stopping.abort()]);
    try {
      await this.follow();
    } catch (error) {
      this.tell(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    }
    this.caption.classList.remove("streaming");
    this.caption.removeAttribute("aria-busy");
    const copy = this.record ? [["Copy", () => this.copy()]] : [];
    this.offer(...copy, ["Describe again", () => this.start()], ["Remove", () => this.remove()]);
    showState();
  }

  async follow() {
    const options = {
      signal: this.stopping.signal, onWait: () => this.tell("The server is busy; waiting …"),
    };
    for await (const { name, data } of stream("/v1/captions", this.file, captionFields(), options)) {
      if (name === "caption.delta") {
        this.tell("");
        this.caption.append(data.text);
      } else if (name === "caption.done") {
        this.show(data.caption);
      }
    }
  }

  show(record) {
    this.record = record;
    this.tell("");
    this.caption.textContent = record.caption;
    this.image.alt = record.caption;
    const [width, height] = record.image_size;
    const remark = `${record.model.name}, ${width} × ${height}, ${record.tokens.visual} visual rows, `
      + `${duration(record.timings_ms.total)} in all`;
    this.facts.replaceChildren(stageBar(record.timings_ms, remark));
    const notes = [...record.notes];
    if (record.finish_reason === "length") notes.push("The caption was cut at its longest length.");
    if (record.finish_reason === "repetition") notes.push("The caption began to repeat itself and was ended.");
    this.facts.append(...notes.map((note) => make("p", { class: "help", text: note })));
  }

  tell(text, isFailure = false) {
    this.state.textContent = text;
    this.state.classList.toggle("failed", isFailure);
    if (isFailure) announce(`${this.file.name}: ${text}`);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.record.caption);
      announce("Copied.");
      this.tell("Copied.");
    } catch {
      this.tell("The browser does not let the page copy. Select the text instead.");
    }
  }

  remove() {
    this.stopping?.abort();
    cards.delete(this);
    if (waiting.includes(this)) waiting.splice(waiting.indexOf(this), 1);
    const neighbour = this.element.nextElementSibling ?? this.element.previousElementSibling;
    this.element.remove();
    URL.revokeObjectURL(this.url);
    (neighbour?.querySelector("button") ?? byId("files")).focus();
    announce(`${this.file.name} removed.`);
    showState();
  }
}
