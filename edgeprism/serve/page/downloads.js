// Records → JSON lines, CSV and text files, in the forms that `edgeprism caption` writes.

import { announce, button, count, make } from "./dom.js";

/** A result is { path, record } or { path, error }; `path` is the picture's within its folder. */

const isDone = (result) => Boolean(result.record);

/** Return the records as JSON lines; pictures that failed are lines with an error. */
export function toJsonLines(results) {
  const line = ({ path, record, error }) =>
    JSON.stringify(record ? { ...record, image: path } : { image: path, error });
  return results.map((result) => `${line(result)}\n`).join("");
}

const COLUMNS = {
  image: (r) => r.image, caption: (r) => r.caption, finish_reason: (r) => r.finish_reason,
  image_sha256: (r) => r.image_sha256, instruction: (r) => r.instruction,
  model: (r) => r.model.name, model_digest: (r) => r.model.digest,
  vision_quant: (r) => r.model.vision_quant, lm_quant: (r) => r.model.lm_quant,
  device: (r) => r.device, tokens_visual: (r) => r.tokens.visual,
  tokens_prompt: (r) => r.tokens.prompt, tokens_generated: (r) => r.tokens.generated,
  total_ms: (r) => r.timings_ms.total, version: (r) => r.version,
};

function toCell(value) {
  // A spreadsheet would run such a text as a formula.
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return the captions as CSV (RFC 4180). */
export function toCsv(results) {
  const rows = results.filter(isDone).map(({ path, record }) =>
    Object.values(COLUMNS).map((column) => column({ ...record, image: path })));
  return [Object.keys(COLUMNS), ...rows].map((row) => `${row.map(toCell).join(",")}\r\n`).join("");
}

const oneLine = (text) => text.split(/\s*[\r\n]+\s*/).join(" ");

/** Return the captions as lines "picture: caption". */
export const toText = (results) =>
  results.filter(isDone).map(({ path, record }) => `${path}: ${oneLine(record.caption)}\n`).join("");

/** Return [path of a text file, its text] for each picture: photo.txt, or photo.jpg.txt. */
export function toTextFiles(results) {
  // Disks may take names for equal that differ in case or in how accents are composed.
  const key = (path) => path.normalize("NFC").toLowerCase();
  const stem = (path) => path.replace(/\.[^./]*$/, "");
  const owners = new Map();
  for (const { path } of results) owners.set(key(stem(path)), (owners.get(key(stem(path))) ?? 0) + 1);
  return results.filter(isDone).map(({ path, record }) => {
    const name = owners.get(key(stem(path))) > 1 ? path : stem(path);
    return [`${name}.txt`, `${record.caption}\n`];
  });
}

function save(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: `${kind};charset=utf-8` }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
}

/** Write text files into a folder that the person chooses; return [written, left alone]. */
async function writeTextFiles(results) {
  const root = await window.showDirectoryPicker({ mode: "readwrite" });
  let written = 0;
  let left = 0;
  for (const [path, text] of toTextFiles(results)) {
    const folders = path.split("/");
    const name = folders.pop();
    let folder = root;
    for (const part of folders) folder = await folder.getDirectoryHandle(part, { create: true });
    if (await exists(folder, name)) {
      left += 1;
      continue;
    }
    const stream = await (await folder.getFileHandle(name, { create: true })).createWritable();
    await stream.write(text);
    await stream.close();
    written += 1;
  }
  return [written, left];
}

async function exists(folder, name) {
  try {
    await folder.getFileHandle(name);
    return true;
  } catch (error) {
    if (error.name === "NotFoundError") return false;
    if (error.name === "TypeMismatchError") return true; // a folder has this name
    throw error;
  }
}

/** Return the buttons; `results()` gives what there is, `onSaved` is told when it was saved. */
export function downloads(name, results, onSaved = () => {}) {
  const said = make("p", { class: "help", role: "status" });
  const safe = () => name().replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[.-]+/, "") || "pictures";
  const file = (suffix, kind, convert) => () => {
    save(`captions-${safe()}.${suffix}`, kind, convert(results()));
    said.textContent = `Saved as captions-${safe()}.${suffix}.`;
    onSaved();
  };
  const writeFiles = async () => {
    try {
      const [written, left] = await writeTextFiles(results());
      said.textContent = `${count(written, "text file")} written.`
        + (left ? ` ${count(left, "file")} of that name existed and stayed as they were.` : "");
      announce(said.textContent);
      onSaved();
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = `Not written: ${error.message}`;
    }
  };
  const text = "showDirectoryPicker" in window
    ? button("Text files …", writeFiles, { title: "photo.txt for each picture, in a folder that you choose" })
    : button("Text", file("txt", "text/plain", toText));
  return make("div", { class: "downloads" },
    make("p", { class: "downloads-title", text: "Save captions" }),
    make("div", { class: "buttons" },
      button("JSON lines", file("jsonl", "application/jsonl", toJsonLines)),
      button("CSV", file("csv", "text/csv", toCsv)),
      text),
    said);
}
