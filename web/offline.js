// The service worker of the page that needs no server: it keeps the page's files, so that the page opens without a network.
//
// files.js, which `make wasm` writes, has the SHA-256 of each file. A file is kept under its hash. A new version's files.js
// differs, so the browser installs this again: what has changed is downloaded, checked and kept, and what no version needs is
// deleted. A new version takes over when the page is opened next and at most one tab shows it already. What is missing, because
// the browser or another version has deleted it, is downloaded once more.

importScripts("files.js"); // self.files: {name: hash}

const keep = () => caches.open("tikz.c");
const keyOf = (hash) => new URL(`kept/${hash}`, registration.scope);

addEventListener("install", (event) => event.waitUntil(install().catch((error) => {
  console.info(`This page will need its server again: ${error.message}`);
  throw error;
})));

async function install() {
  const cache = await keep();
  await Promise.all(Object.entries(self.files).map(async ([name, hash]) => {
    if (!await cache.match(keyOf(hash))) await cache.put(keyOf(hash), await download(name, hash));
  }));
}

// The browser may still have the file from opening the page; if that is another version's, it is asked for again.
async function download(name, hash) {
  for (const cache of ["default", "reload"]) {
    const answer = await fetch(name, { cache });
    const bytes = await answer.arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    // A copy: browsers refuse an answer that was redirected when a page is opened.
    if (answer.ok && found === hash) return new Response(bytes, { headers: { "Content-Type": answer.headers.get("Content-Type") } });
  }
  throw new Error(`${name} is not the file of this version`);
}

addEventListener("activate", (event) => event.waitUntil(activate()));

async function activate() {
  const cache = await keep();
  const needed = new Set(Object.values(self.files).map((hash) => keyOf(hash).href));
  for (const { url } of await cache.keys()) if (!needed.has(url)) await cache.delete(url);
  await clients.claim();
}

addEventListener("message", () => skipWaiting());

addEventListener("fetch", (event) => {
  const { href } = new URL(event.request.url);
  const name = href.replace(/[?#].*/, "").slice(registration.scope.length) || "index.html";
  if (event.request.method !== "GET" || !href.startsWith(registration.scope) || !Object.hasOwn(self.files, name)) return;
  event.respondWith(answer(event.request, name));
});

async function answer(request, name) {
  if (request.mode === "navigate" && registration.waiting && (await clients.matchAll({ type: "window" })).length < 2) {
    registration.waiting.postMessage("take over");
    return new Response("", { headers: { Refresh: "0" } }); // the new version answers
  }
  const cache = await keep(), key = keyOf(self.files[name]);
  const kept = await cache.match(key);
  if (kept) return kept;
  try {
    const fresh = await download(name, self.files[name]);
    await cache.put(key, fresh.clone());
    return fresh;
  } catch {
    return fetch(request);
  }
}
