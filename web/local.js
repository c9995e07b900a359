// Runs the model in this browser, in a worker, with the functions that server.js has for a page with a server. `make wasm` makes
// the folder for it, and names the model's file in index.html.

import { Failure } from "./failure.js";

const modelFile = document.documentElement.dataset.model;
const needsTex = "needs TeX, which only the server has; start it with ./serve and open the address that it prints";

export const draws = false;

let worker = null;  // a Worker; null: none, the next order starts one
let opened = null;  // a promise of what it says of its model

// The models that this page has: one. Afterwards the browser keeps the page, for when there is no network.
export async function listModels() {
  const model = await start();
  navigator.serviceWorker?.register("offline.js", { updateViaCache: "none" })
    .catch((error) => console.info(`This page will need its server again: ${error.message}`));
  return [model];
}

// Turns an image into a program. Yields what server.js's convert yields, without drawings.
export async function* convert(image, options, signal) {
  if (options.search) throw new Failure(`Search ${needsTex}`, "local");
  const began = performance.now();
  const order = { name: "convert", blob: image.blob, file: image.name, options };
  for await (const event of ask(order, "result", signal)) {
    if (event.name === "result") event.data.seconds = (performance.now() - began) / 1000;
    yield event;
  }
}

// Makes a whole .tex file of a program: {document}. Nothing is drawn here.
export async function render(program, task, formats, signal) {
  if (formats.length) throw new Failure(`Rendering ${needsTex}`, "local");
  for await (const { data } of ask({ name: "document", program }, "document", signal)) return data;
}

// Starts the worker unless it is there; resolves once it has opened the model.
function start() {
  if (worker) return opened;
  if (typeof WebAssembly !== "object") {
    return Promise.reject(new Failure("This browser has no WebAssembly, which the model needs to run in it; use a newer " +
      "browser, or open the page of a server (./serve)", "local"));
  }
  const own = worker = new Worker("worker.js", { type: "module" });
  opened = new Promise((resolve, reject) => {
    own.onmessage = ({ data: { name, data } }) => name === "model" ? resolve(data) : fail(own, data, reject);
    own.onerror = ({ message }) => fail(own, message ? { message } :
      { message: "The page's file worker.js, or one that it needs, could not be loaded", type: "away" }, reject);
  });
  opened.catch(() => {}); // whoever waits for it says it
  worker.postMessage({ name: "open", file: modelFile });
  return opened;
}

function stop() {
  worker?.terminate();
  worker = null;
}

// After an error a worker is of no use any more.
function fail(own, { message, type }, reject) {
  if (own === worker) stop();
  reject(new Failure(message, type ?? "local"));
}

// Gives the worker an order and yields its events, up to the one named `last`. Aborting `signal` ends the worker, which hears
// nothing while it computes, and starts another.
async function* ask(order, last, signal) {
  let ended = null, wake = () => {};
  const events = [];
  const own = await unlessAborted(start().then(() => worker), signal);
  const end = (error) => { ended = error; wake(); };
  own.onmessage = ({ data }) => data.name === "error" ? fail(own, data.data, end) : wake(events.push(data));
  own.onerror = (event) => fail(own, { message: `The model failed: ${event.message}` }, end);
  signal.addEventListener("abort", () => {
    if (ended || own !== worker) return;
    stop();
    start();
    end(signal.reason);
  });
  own.postMessage(order);
  for (;;) {
    for (const event of events.splice(0)) {
      if (event.name === last) ended = event; // a later abort is none of this order's
      yield event;
      if (ended === event) return;
    }
    if (events.length) continue; // they came while the last one was being dealt with
    if (ended) throw ended;
    await new Promise((resolve) => { wake = resolve; });
  }
}

function unlessAborted(promise, signal) {
  const aborted = new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason));
  });
  return Promise.race([promise, aborted]);
}
