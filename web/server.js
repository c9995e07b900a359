// Talks to the server. Addresses are relative, so that the page also works behind a proxy, under a path of its own. local.js has
// the same functions for a page without a server.

import { Failure } from "./failure.js";
import { getApiKey } from "./key.js";

export const draws = true; // programs can be rendered

// The models that the server has: [{id, task, image_height, image_width, ...}].
export async function listModels() {
  const answer = await request("v1/models");
  return (await answer.json()).data;
}

// Turns an image into a program. Yields what the server says while it works, as {name, data}: "begin" {model,
// task}, "token" {text}, "candidate" {program, score, ...}, and at the end "result", the whole answer. Leaving the loop or aborting `signal` ends the work.
export async function* convert(image, options, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...options, render: "png,svg", stream: "true" })) form.append(name, value);
  form.append("image", image.blob, image.name);
  const answer = await request("v1/convert", { method: "POST", body: form, signal }, image.blob.size);
  for await (const event of readEvents(answer.body)) {
    if (event.name === "error") throw new Failure(event.data.error.message, event.data.error.type);
    yield event;
    if (event.name === "result") return;
  }
  throw new Failure("The server ended its answer before the result. Its own messages say why.", "internal");
}

// Has TeX draw a program. Returns {compiles, errors: [{line, message}], document, and what `formats` names in base64}.
export async function render(program, task, formats, signal) {
  const body = JSON.stringify({ program, task, formats });
  const answer = await request("v1/render", { method: "POST", body, signal, headers: { "Content-Type": "application/json" } });
  return answer.json();
}

async function request(path, options = {}, bytes = 0) {
  const { key } = getApiKey();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw await whyNoAnswer(bytes);
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Failure(error?.message ?? `The server answered with status ${answer.status}.`,
                        error?.type ?? { 401: "unauthorized", 413: "too_large", 429: "busy" }[answer.status] ?? "internal");
}

// A server that finds a body too large may hang up while the browser still sends, and the browser then sees no answer.
async function whyNoAnswer(bytes) {
  const alive = bytes > 0 && await fetch("healthz").then((answer) => answer.ok, () => false);
  if (!alive) return new Failure(`The server at ${location.host} does not answer. Is ./serve running?`, "away");
  const size = (bytes / 1e6).toFixed(1);
  return new Failure(`The server hung up while it was sent ${size} MB. A smaller image may be accepted.`, "too_large");
}

function whyBroken(error) {
  if (error.name === "AbortError") throw error;
  throw new Failure(`The connection to ${location.host} broke before the result came.`, "away");
}

// Server-sent events: blocks of "event: NAME" and "data: JSON" lines, each ended by an empty line.
async function* readEvents(body) {
  let rest = "";
  const stream = body.pipeThrough(new TextDecoderStream());
  const reader = stream.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(whyBroken);
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const field = (name) => block.split("\n").filter((line) => line.startsWith(`${name}:`))
          .map((line) => line.slice(name.length + 1).trimStart()).join("\n");
        if (field("data")) yield { name: field("event"), data: JSON.parse(field("data")) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
