// The settings: which models, what the captioner is told, how much of a picture it takes in. The
// browser remembers them.

import { listModels } from "./api.js";
import { announce, byId, make } from "./dom.js";
import { apiKey, keepApiKey, recall, remember } from "./memory.js";

const NONE = { captioner: "", reasoner: "", instruction: "", tokens: "", rows: "", lookAgain: true };
let chosen = { ...NONE, ...parsed(recall("settings")) };
let models = { captioners: [], reasoners: [], defaults: { captioner: "", reasoner: "" } };
const listeners = [];

function parsed(text) {
  try {
    return JSON.parse(text ?? "{}");
  } catch {
    return {};
  }
}

/** Return the fields of a request for a caption. */
export function captionFields() {
  const fields = {};
  if (chosen.captioner) fields.model = chosen.captioner;
  if (chosen.instruction.trim()) fields.instruction = chosen.instruction;
  if (chosen.tokens) fields.caption_tokens = chosen.tokens;
  if (chosen.rows) fields.visual_tokens = chosen.rows;
  return fields;
}

/** Return the fields of a request for an answer, but the question. */
export function askFields() {
  const fields = { ...captionFields(), instruction_mode: chosen.lookAgain ? "question" : "generic" };
  if (chosen.captioner || chosen.reasoner) {
    const { captioner, reasoner } = models.defaults;
    fields.model = `${chosen.captioner || captioner}+${chosen.reasoner || reasoner}`;
  }
  return fields;
}

/** Return whether there is a reasoner, so that questions can be asked. */
export const canAsk = () => models.reasoners.length > 0;

/** Call `listener` now and whenever the models that the server has were listed anew. */
export function onModels(listener) {
  listeners.push(listener);
  listener();
}

/** Ask the server for its models; say on the page if it does not answer, or wants its key. */
export async function refreshModels() {
  const problem = byId("server-problem");
  try {
    const list = await listModels();
    models = { ...sorted(list.data.map((model) => model.id)), defaults: list.defaults };
    problem.hidden = true;
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    if (error.status === 401) {
      byId("key-field").hidden = false;
      openSettings();
    }
    return;
  }
  fillSelects();
  listeners.forEach((listener) => listener());
}

/** Take names such as "nano" and "nano+smollm2-135m" apart; a name may itself hold a plus. */
function sorted(ids) {
  const captioners = ids.filter((id) => !ids.some((other) => id.startsWith(`${other}+`)));
  const reasoners = new Set();
  for (const id of ids) {
    const captioner = captioners.find((name) => id.startsWith(`${name}+`));
    if (captioner) reasoners.add(id.slice(captioner.length + 1));
  }
  return { captioners, reasoners: [...reasoners] };
}

function fillSelects() {
  for (const kind of ["captioner", "reasoner"]) {
    const names = models[`${kind}s`];
    const options = names.map((name) => make("option", { value: name, text: shortName(name) }));
    const standard = names.length ? `${shortName(models.defaults[kind])} (default)` : "none installed";
    byId(kind).replaceChildren(make("option", { value: "", text: standard }), ...options);
    // a model that was chosen once and is not here any more would make every request fail
    if (!names.includes(chosen[kind])) chosen[kind] = "";
    byId(kind).value = chosen[kind];
  }
}

/** Return a model's name without the folders of a path; an address stays as it is. */
const shortName = (name) =>
  (name.includes("://") ? name : name.split(/[\\/]/).pop()) || name;

export function openSettings() {
  const dialog = byId("settings");
  byId("instruction").value = chosen.instruction;
  byId("tokens").value = chosen.tokens;
  showRows(chosen.rows);
  byId("look-again").checked = chosen.lookAgain;
  byId("captioner").value = chosen.captioner;
  byId("reasoner").value = chosen.reasoner;
  byId("key").value = apiKey();
  if (!dialog.open) dialog.showModal();
}

/** Show "", "all", "auto" or a number of visual rows. */
function showRows(rows) {
  const isNumber = /^\d+$/.test(rows);
  byId("rows").value = isNumber ? "number" : rows;
  byId("rows-number").value = isNumber ? rows : "";
  offerNumber();
}

/** Let a number be given, and ask for one, where one was chosen. */
function offerNumber() {
  const number = byId("rows-number");
  number.hidden = byId("rows").value !== "number";
  number.disabled = number.hidden; // else the form would wait for a number that nobody sees
}

function take() {
  chosen = {
    captioner: byId("captioner").value,
    reasoner: byId("reasoner").value,
    instruction: byId("instruction").value,
    tokens: byId("tokens").value,
    rows: byId("rows").value === "number" ? byId("rows-number").value : byId("rows").value,
    lookAgain: byId("look-again").checked,
  };
  remember("settings", JSON.stringify(chosen));
  if (!byId("key-field").hidden) {
    keepApiKey(byId("key").value);
    refreshModels();
  }
  byId("settings").close();
  announce("Settings saved.");
}

export function startSettings() {
  byId("open-settings").addEventListener("click", () => {
    openSettings();
    refreshModels();
  });
  byId("settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    take();
  });
  byId("rows").addEventListener("change", offerNumber);
  byId("reset-settings").addEventListener("click", () => {
    chosen = { ...NONE };
    openSettings();
  });
  if (apiKey()) byId("key-field").hidden = false;
  return refreshModels();
}
