// Which files are pictures, and what was dropped.

const SUFFIXES = new Set(
  ("apng avif avifs bmp dib gif heic heics heif heifs hif insp jfi jfif jif jpe jpeg jpg jps mpo pbm "
    + "pfm pgm pjp pjpeg png pnm ppm tif tiff webp").split(" "));
const SYSTEM_FOLDERS = new Set(["@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found"]);

const isPicture = (name) => SUFFIXES.has(name.slice(name.lastIndexOf(".") + 1).toLowerCase());

const isPassedOver = (path) =>
  path.split("/").some((part) => part.startsWith(".") || SYSTEM_FOLDERS.has(part.toLowerCase()));

/** Split a folder's files [{ path, file }] into pictures, in order of their paths, and the rest. */
export function sortFolder(files) {
  const pictures = files.filter(({ path, file }) => isPicture(file.name) && !isPassedOver(path));
  pictures.sort((a, b) => a.path.localeCompare(b.path, undefined, { numeric: true }));
  return { pictures, others: files.length - pictures.length };
}

/** Return { path, file } of the files of an <input webkitdirectory>, and the folder's name. */
export function fromInput(list) {
  const files = [...list];
  const root = files[0]?.webkitRelativePath.split("/")[0] ?? "";
  const inside = (file) => file.webkitRelativePath.split("/").slice(1).join("/") || file.name;
  return { name: root, files: files.map((file) => ({ path: inside(file), file })) };
}

/**
 * Return what was dropped: { files } without folders, or { name, files: [{ path, file }] } of a
 * folder. The entries must be taken before anything is awaited: the browser forgets them.
 */
export async function fromDrop(transfer) {
  const loose = [...transfer.files];
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return { files: loose, isFolder: false };
  const files = [];
  const single = entries.length === 1;
  for (const entry of entries) await walk(entry, single ? "" : entry.name, files);
  return { name: single ? entries[0].name : "pictures", files, isFolder: true };
}

async function walk(entry, path, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path, file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // a reader gives about a hundred entries at a time, and none at the end
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const inner of some) await walk(inner, path ? `${path}/${inner.name}` : inner.name, found);
  }
}
