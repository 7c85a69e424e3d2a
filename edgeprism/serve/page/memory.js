// What this browser remembers of the page: settings for good, the API key while the tab is open.

const inLocal = () => localStorage;
const inSession = () => sessionStorage;

function read(storage, name) {
  try {
    return storage().getItem(`edgeprism.${name}`);
  } catch {
    return null; // storage may be forbidden: then the page forgets
  }
}

function write(storage, name, value) {
  try {
    if (value) storage().setItem(`edgeprism.${name}`, value);
    else storage().removeItem(`edgeprism.${name}`);
  } catch {
    // as above
  }
}

export const recall = (name) => read(inLocal, name);
export const remember = (name, value) => write(inLocal, name, value);

let key = read(inSession, "key") ?? "";

/** Return the server's API key; "" if there is none. */
export const apiKey = () => key;

export function keepApiKey(value) {
  key = value.trim();
  write(inSession, "key", key);
}

/** Take the key out of the address that `edgeprism desktop` opened (…/#key=…), if it is there. */
export function takeKeyFromAddress() {
  const found = /^#key=([\w-]+)$/.exec(location.hash);
  if (!found) return false;
  keepApiKey(found[1]);
  history.replaceState(null, "", location.pathname); // so that no history or bookmark keeps it
  return true;
}
