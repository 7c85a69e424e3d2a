// Elements, and what screen readers are told. Texts go in by textContent alone: captions come
// from models that have read strangers' pictures.

/** Make an element: make("p", { class: "note", text: "…" }, child, …). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Make a button. */
export const button = (text, onclick, attributes = {}) =>
  make("button", { type: "button", text, onclick, ...attributes });

let announced = 0;

/** Let screen readers say a sentence. */
export function announce(text) {
  // The same sentence twice would be no change, which is not read aloud.
  byId("announcer").textContent = text + (announced++ % 2 ? "\u00a0" : "");
}

/** Return "1 picture" or "12 pictures". */
export const count = (number, one) => `${number.toLocaleString()} ${one}${number === 1 ? "" : "s"}`;
