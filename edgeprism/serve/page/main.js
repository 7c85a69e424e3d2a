// Begins: views, theme, dropping and pasting.

import { byId } from "./dom.js";
import { fromDrop } from "./files.js";
import { openFolder, startFolder } from "./folder.js";
import { recall, remember, takeKeyFromAddress } from "./memory.js";
import { addPictures, startPictures } from "./pictures.js";
import { refreshModels, startSettings } from "./settings.js";

const MOST_CARDS = 20; // more pictures at once are shown as a folder's

// ---- views: each is a section #view-NAME and a link #NAME

const views = [...document.querySelectorAll(".view")].map((view) => view.id.slice(5));

function showView(name) {
  for (const view of views) byId(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function showViewOfAddress() {
  if (takeKeyFromAddress()) refreshModels();
  const name = location.hash.slice(1);
  if (name === "content") return; // the link that skips to the content
  showView(views.includes(name) ? name : views[0]);
}

function goTo(name) {
  if (location.hash !== `#${name}`) location.hash = name;
  showView(name);
}

// ---- theme

const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");

const isDark = () =>
  document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : systemIsDark.matches;

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  // Back at the system's own theme, the page follows the system again.
  const isSystems = (theme === "dark") === systemIsDark.matches;
  remember("theme", isSystems ? "" : theme);
  showTheme();
}

// ---- dropping and pasting, anywhere on the page

function take(files) {
  if (files.length <= MOST_CARDS) {
    goTo("pictures");
    addPictures(files);
    return;
  }
  goTo("folder");
  const numbers = new Map(); // two files of one name, from two folders
  openFolder("pictures", files.map((file) => {
    const number = (numbers.get(file.name) ?? 0) + 1;
    numbers.set(file.name, number);
    return { path: number > 1 ? `${number}/${file.name}` : file.name, file };
  }));
}

async function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const dropped = await fromDrop(event.dataTransfer);
  if (!dropped.isFolder) {
    take(dropped.files);
    return;
  }
  goTo("folder");
  openFolder(dropped.name, dropped.files);
}

function paste(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return; // text goes where it was meant to go
  event.preventDefault();
  take(files);
}

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function watchDrops() {
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  window.addEventListener("drop", drop);
  window.addEventListener("paste", paste);
}

// ---- start

const isOwnMachine = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
for (const place of document.querySelectorAll(".where")) {
  place.textContent = isOwnMachine
    ? "Pictures stay on this machine." : `Pictures go to ${location.hostname} alone.`;
}
byId("theme").addEventListener("click", switchTheme);
systemIsDark.addEventListener("change", showTheme);
window.addEventListener("hashchange", showViewOfAddress);
document.addEventListener("visibilitychange", () => {
  // a model may have been pulled meanwhile
  if (document.visibilityState === "visible" && !byId("settings").open) refreshModels();
});
if (!recall("theme")) delete document.documentElement.dataset.theme;
showTheme();
showViewOfAddress();
startPictures();
startFolder();
watchDrops();
startSettings().then(() => document.documentElement.classList.add("ready"));
