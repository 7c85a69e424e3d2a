// Requests to the server that this page came from.

import { apiKey } from "./memory.js";

/** What the server refused, in its own words. `code` is its word for programs. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answers ${status}.`);
    this.status = status;
    this.code = error?.code ?? "";
  }
}

/** The server does not answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. Is it still running? Start it again and reload this page.");
  }
}

const MOST_SECONDS_TO_WAIT = 30;

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });

async function isServerThere() {
  try {
    return (await fetch("/healthz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

async function request(path, options) {
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (!(await isServerThere())) throw new Unreachable();
    throw new Error(
      "This file did not reach the server: it cannot be read any more, or it is too large.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const refused = new Refused(response.status, body?.error);
  refused.retryAfter = Number(response.headers.get("Retry-After")) || 1;
  throw refused;
}

/** Send a form; while the server's queue is full, wait as long as it says and try again. */
async function post(path, fields, file, { signal, onWait }) {
  for (;;) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("images", file, file.name);
    try {
      return await request(path, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.status !== 429) throw error;
      onWait?.();
      await pause(Math.min(error.retryAfter, MOST_SECONDS_TO_WAIT), signal);
    }
  }
}

/** Return the models and which of them the server takes where none is named. */
export async function listModels() {
  return (await request("/v1/models", { cache: "no-store" })).json();
}

/** Describe one picture; return its record. Throws Refused for one that cannot be read. */
export async function caption(file, fields, options = {}) {
  const response = await post("/v1/captions", fields, file, options);
  const [record] = (await response.json()).captions;
  if (record.error) throw new Refused(400, record.error);
  return record;
}

/** Yield the events { name, data } of a picture's caption, or of the answer to a question. */
export async function* stream(path, file, fields, options = {}) {
  const response = await post(path, { ...fields, stream: "true" }, file, options);
  let ended = false;
  for await (const event of readEvents(response.body)) {
    if (event.name === "error" || event.name === "caption.failed") {
      throw new Refused(400, event.data.error);
    }
    ended ||= event.name === "done";
    yield event;
  }
  if (!ended) throw new Unreachable();
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Unreachable();
      });
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      yield* blocks.map(parseEvent).filter(Boolean);
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading gives the caption up
  }
}

function parseEvent(block) {
  const event = { name: "", data: null };
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) event.name = line.slice(7);
    if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
  }
  return event.name ? event : null;
}
