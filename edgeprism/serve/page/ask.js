// Questions about one picture: the answer, and the sentences of the description that support it.

import { stream } from "./api.js";
import { announce, button, make } from "./dom.js";
import { askFields, canAsk, onModels } from "./settings.js";
import { duration, stageBar } from "./stages.js";

let forms = 0;

/** Return the part of a picture's card where questions are asked. */
export function questions(file) {
  const id = `question-${++forms}`;
  const input = make("input", {
    id, type: "text", name: "question", maxlength: "2000", required: true, autocomplete: "off",
    placeholder: "What would you like to know?", enterkeyhint: "send",
  });
  const label = make("label", { for: id, class: "unseen", text: `A question about ${file.name}` });
  const submit = make("button", { type: "submit", text: "Ask" });
  const form = make("form", { class: "ask" }, label, input, submit);
  const advice = make("p", { class: "help" }, "Questions need a reasoner. Install one: ",
    make("code", { text: "edgeprism pull smollm2-135m" }));
  const answers = make("ol", { class: "answers", "aria-label": `Answers about ${file.name}` });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = input.value.trim();
    if (!question) return;
    input.value = "";
    answers.append(ask(file, question));
  });
  const section = make("div", { class: "questions" }, form, advice, answers);
  onModels(() => {
    form.hidden = !canAsk();
    advice.hidden = canAsk();
  });
  return section;
}

/** Ask, and return the list item that the answer comes into. */
function ask(file, question) {
  const state = make("p", { class: "state", text: "Thinking …" });
  const answer = make("p", { class: "answer" });
  const account = make("p", { class: "account" });
  const focus = make("p", { class: "help" });
  const details = make("details", {}, make("summary", { text: "What it looked at" }), focus, account);
  const stopping = new AbortController();
  const stop = button("Stop", () => stopping.abort(), { class: "quiet" });
  const item = make("li", {}, make("p", { class: "question", text: question }), answer,
    make("div", { class: "state-line" }, state, stop), details);
  details.hidden = true;
  follow(file, question, { item, state, answer, account, focus, details, stop }, stopping.signal);
  return item;
}

async function follow(file, question, shown, signal) {
  const { state, answer, account, focus, details, stop } = shown;
  const fields = { ...askFields(), question };
  const onWait = () => (state.textContent = "The server is busy; waiting …");
  try {
    for await (const { name, data } of stream("/v1/ask", file, fields, { signal, onWait })) {
      if (name === "focus") {
        state.textContent = "Looking at the picture …";
        focus.textContent = data.focus ? `Looking for: ${data.focus}` : "";
        details.hidden = details.open = false;
      } else if (name === "caption.delta") {
        account.append(data.text);
      } else if (name === "caption.done") {
        account.textContent = data.caption.caption;
        state.textContent = "Reasoning …";
      } else if (name === "answer.delta") {
        answer.append(data.text);
        state.textContent = "Answering …";
      } else if (name === "answer.done") {
        showAnswer(data.answer, shown);
      }
    }
    state.remove();
  } catch (error) {
    state.classList.add("failed");
    state.setAttribute("role", "alert");
    state.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    if (!answer.textContent) answer.remove();
  }
  stop.remove();
}

function showAnswer(record, { item, answer, account, details }) {
  answer.textContent = record.answer;
  const caption = record.captions[0];
  const found = caption && record.evidence ? mark(account, caption.caption, record.evidence) : 0;
  details.open = found > 0;
  if (record.evidence && !found) {
    details.append(make("p", {
      class: "help", text: "No sentence of the description supports the answer: it may be a guess.",
    }));
  }
  record.notes.forEach((note) => details.append(make("p", { class: "help", text: note })));
  const total = record.timings_ms.total;
  details.append(stageBar(record.timings_ms, `${record.reasoner.name}, ${duration(total)} in all`));
  announce(`Answer: ${record.answer}`);
  item.scrollIntoView({ block: "nearest" });
}

const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Show a caption with the sentences of `evidence` marked; return how many were found in it. */
export function mark(element, text, evidence) {
  const ranges = [];
  for (const { text: sentence } of evidence) {
    // A sentence of the evidence has single blanks, whatever stands between the caption's words.
    const pattern = sentence.trim().split(/\s+/).map(escaped).join("\\s+");
    const found = new RegExp(pattern).exec(text);
    if (found) ranges.push([found.index, found.index + found[0].length]);
  }
  ranges.sort((a, b) => a[0] - b[0]);
  element.replaceChildren();
  let at = 0;
  for (const [start, end] of ranges) {
    if (start < at) continue;
    element.append(text.slice(at, start), make("mark", { text: text.slice(start, end) }));
    at = end;
  }
  element.append(text.slice(at));
  return ranges.length;
}
