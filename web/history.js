// What has been converted, kept in the browser's own database: {id, time, name, image (a Blob), task, program, png}.

const dialog = document.getElementById("history");
const list = dialog.querySelector("ul");
const clearButton = document.getElementById("clear-history");
const most = 100; // entries; the oldest go first

let opening = null;

// open: called with the entry that the user picks.
export function startHistory(open) {
  document.getElementById("open-history").addEventListener("click", async () => {
    await show(open);
    dialog.showModal();
  });
  clearButton.addEventListener("click", async () => {
    await inStore("readwrite", (store) => store.clear());
    await show(open);
  });
}

// Keeps an entry; returns its id. An entry with an id replaces the one that has it. Without a database, as in some private
// windows, nothing is kept, and the id is undefined.
export async function keep(entry) {
  try {
    const id = await inStore("readwrite", (store) => store.put({ time: Date.now(), ...entry }));
    const ids = await inStore("readonly", (store) => store.getAllKeys());
    for (const old of ids.slice(0, Math.max(ids.length - most, 0))) await inStore("readwrite", (store) => store.delete(old));
    return id;
  } catch (error) {
    console.info(`The history keeps nothing: ${error.message}`);
    return undefined;
  }
}

async function show(open) {
  const entries = await inStore("readonly", (store) => store.getAll()).catch(() => []);
  clearButton.disabled = entries.length === 0;
  list.replaceChildren(...entries.reverse().map((entry) => makeItem(entry, open)));
  if (entries.length === 0) list.append(Object.assign(document.createElement("li"), { textContent: "Nothing yet." }));
}

function makeItem(entry, open) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "entry";
  const image = new Image();
  image.src = entry.png ? `data:image/png;base64,${entry.png}` : URL.createObjectURL(entry.image);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.alt = "";
  const text = document.createElement("span");
  const time = new Date(entry.time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  text.append(Object.assign(document.createElement("strong"), { textContent: entry.name }), document.createElement("br"), time);
  button.append(image, text);
  button.addEventListener("click", () => {
    dialog.close();
    open(entry);
  });
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "Delete";
  remove.setAttribute("aria-label", `Delete ${entry.name}, ${time}`);
  remove.addEventListener("click", async () => {
    await inStore("readwrite", (store) => store.delete(entry.id));
    await show(open);
    (list.querySelector("button") ?? dialog.querySelector(".close")).focus();
  });
  item.append(button, remove);
  return item;
}

// Runs `work` on the store in a transaction of its own; resolves with its result when that is on disk.
async function inStore(mode, work) {
  const database = await (opening ??= openDatabase());
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("conversions", mode);
    const request = work(transaction.objectStore("conversions"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("tikz.c", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversions", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
