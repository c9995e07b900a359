// The page: what happens when. An image comes in from anywhere, convert() gives it to the engine and shows what that answers, and
// redraw() has TeX draw what the user made of the program.

import { firstFile, readClipboard, readImage, releaseImage } from "./image_input.js";
import { takePhotograph } from "./camera.js";
import { showDrawing, showInput } from "./compare.js";
import { bytesOf, dataAddress, save } from "./download.js";
import { drawImage } from "./draw.js";
import { appendToProgram, getProgram, setProgram, setWriting, showErrors, startEditor } from "./editor.js";
import { Failure } from "./failure.js";
import { showFormula } from "./formula.js";
import { addCandidate, markChosen, showCandidates, startGallery } from "./gallery.js";
import { keep, startHistory } from "./history.js";
import { getApiKey, setApiKey } from "./key.js";
import { offerModels, readOptions, startOptions } from "./options.js";

// The engine: the server, or the model in this browser where the page was made for that.
const engine = await import(document.documentElement.dataset.model ? "./local.js" : "./server.js");

const byId = (id) => document.getElementById(id);

let image = null;       // what readImage returned; null: none yet
let newest = 0;         // counts the images that come, so that one that is read slowly does not replace a newer one
let models = [];        // as the engine lists them
let work = null;        // an AbortController while the engine works; null: it does not
let result = null;      // the newest drawing: {program, task, document, png, svg, pdf}; null: none
let entry = null;       // the history's entry of this image

// ---- the way of an image ----

// Takes a new image and converts it at once. `file`: null if the user has changed their mind.
async function accept(file) {
  if (file && await replaceImage(file, null)) await convert();
}

// Makes a file the page's image, and forgets what belongs to the one before. `own`: its entry of the history, or null. Returns
// whether it is the image now: not where it cannot be read, which is said, or where a newer one came meanwhile.
async function replaceImage(file, own) {
  const number = ++newest;
  let read;
  try {
    read = await readImage(file);
  } catch (error) {
    if (number === newest) complain(error);
    return false;
  }
  if (number !== newest) {
    releaseImage(read);
    return false;
  }
  stop();
  const before = image;
  image = read;
  entry = own;
  showInput(image);
  if (before) releaseImage(before);
  showResult(null);
  setProgram("");
  byId("notice").replaceChildren();
  byId("count").textContent = "";
  return true;
}

async function convert() {
  const options = readOptions();
  if (!options || !image) return;
  const signal = begin("Looking at the image…");
  setProgram("");
  showResult(null);
  setWriting(true);
  let tokens = 0, task = null;
  try {
    for await (const { name, data } of engine.convert(image, options, signal)) {
      if (name === "begin") {
        task = data.task;
      } else if (name === "token") {
        if (tokens++ === 0) say("Writing the program…");
        byId("count").textContent = `${tokens} tokens`;
        appendToProgram(data.text);
      } else if (name === "candidate") {
        say("Comparing candidates…");
        if (addCandidate(data)) showCandidate(data, task);
      } else if (name === "result") {
        showAnswer(data);
      }
    }
  } catch (error) {
    if (!result && task && work?.signal === signal) showResult({ task }); // what is written so far can be rendered
    failed(signal, error, tokens > 0 ? `Stopped after ${tokens} tokens.` : "Stopped.");
  } finally {
    end(signal);
  }
}

function showCandidate(candidate, task = taskNow()) {
  setProgram(candidate.program);
  showResult({ ...candidate, task });
}

function showAnswer(answer) {
  setProgram(answer.program);
  if (answer.candidates) showCandidates(answer.candidates);
  showResult(answer);
  byId("count").textContent = "";
  say(describe(answer));
  keepEntry();
}

function describe({ tokens, seconds, log_probability, confidence, ended, compiles }) {
  const parts = [];
  if (compiles !== null) parts.push(compiles ? "It compiles." : "It does not compile.");
  if (ended === false) parts.push("It was cut off at the limit of tokens.");
  parts.push(`${tokens} tokens in ${seconds.toFixed(1)} s`);
  if (typeof log_probability === "number") parts.push(`, log p ${log_probability.toFixed(2)}`);
  if (typeof confidence === "number") parts.push(`, confidence ${confidence.toFixed(2)}`);
  return parts.join(" ").replaceAll(" ,", ",");
}

// Has TeX draw the program as it stands in the editor.
async function redraw() {
  const program = getProgram(), task = taskNow();
  if (program.trim() === "") return;
  const signal = begin("Rendering…");
  try {
    const answer = await engine.render(program, task, ["png", "svg"], signal);
    if (program !== getProgram()) return say(""); // edited meanwhile
    showResult({ ...answer, program, task });
    say(answer.compiles ? "It compiles." : "It does not compile.");
    keepEntry();
  } catch (error) {
    failed(signal, error, "Stopped.", redraw);
  } finally {
    end(signal);
  }
}

// ---- showing ----

// `answer`: of convert or render; null: nothing is drawn.
function showResult(answer) {
  result = answer;
  if (!answer) showCandidates([]);
  const drawing = answer?.svg ? dataAddress(answer.svg, "svg") : answer?.png ? dataAddress(answer.png, "png") : null;
  showDrawing(drawing);
  showErrors((answer?.errors ?? []).map((error) => typeof error === "string" ? { line: 0, message: error } : error));
  showFormula(answer?.task === "formula" ? answer.program : null);
  markChosen(answer?.program);
  showButtons();
}

function showButtons() {
  document.querySelector("main").ariaBusy = work !== null;
  const empty = getProgram().trim() === "";
  byId("convert").disabled = !image;
  byId("stop").disabled = work === null;
  byId("render").disabled = empty;
  byId("render").classList.toggle("primary", !work && getProgram() !== (result?.program ?? ""));
  for (const button of [byId("copy"), ...document.querySelectorAll("[data-download]")]) button.disabled = empty;
}

// A short sentence on the state of things; screen readers read it out.
function say(text) {
  byId("status").textContent = text;
}

// An error, as a sentence, with what can be done about it: `retry` does what failed again.
function complain(error, retry = models.length ? convert : connect) {
  const notice = byId("notice");
  notice.replaceChildren(error.message);
  if (error.type === "unauthorized") {
    notice.append(" ", noticeButton("Enter the key", openKey));
  } else if (["away", "busy", "timeout"].includes(error.type)) {
    notice.append(" ", noticeButton("Try again", () => { notice.replaceChildren(); retry(); }));
  }
  if (!(error instanceof Failure) && error.constructor !== Error) throw error; // a mistake of this page
}

function noticeButton(text, action) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  button.addEventListener("click", action);
  return button;
}

// ---- the engine's work ----

// Newer work ends older work.
function begin(text) {
  stop();
  work = new AbortController();
  byId("notice").replaceChildren();
  byId("count").textContent = "";
  setWriting(false);
  say(text);
  showButtons();
  return work.signal;
}

function end(signal) {
  if (work?.signal !== signal) return; // newer work has begun
  work = null;
  setWriting(false);
  const hadFocus = document.activeElement === byId("stop");
  showButtons();
  if (hadFocus) byId("convert").focus();
}

function stop() {
  work?.abort();
}

function failed(signal, error, whenStopped, retry) {
  if (work?.signal !== signal) return; // newer work has begun
  if (error.name === "AbortError") return say(whenStopped);
  say("");
  complain(error, retry);
}

function taskNow() {
  if (result?.task) return result.task;
  const { model: { value: model }, task: { value: task } } = byId("options").elements;
  if (task === "formula" || task === "tikz") return task;
  return models.find(({ id }) => !model || id === model)?.task ?? "tikz";
}

async function connect() {
  try {
    models = await engine.listModels();
    offerModels(models);
  } catch (error) {
    complain(error);
  }
}

// ---- history, copies, downloads ----

async function keepEntry() {
  if (!image) return;
  const { program, task, png } = result, own = entry, of = image;
  const kept = { ...own, name: image.name, image: image.blob, program, task, png };
  const id = await keep(kept);
  if (of === image && own === entry) entry = { ...kept, id };
}

async function reopen(old) {
  if (!await replaceImage(new File([old.image], old.name, { type: old.image.type }), old)) return;
  setProgram(old.program);
  showResult({ ...old, errors: [] });
  say("From the history.");
}

async function copyProgram() {
  try {
    await navigator.clipboard.writeText(getProgram());
  } catch {
    byId("program").select(); // a page that did not come over https or from this machine may not write to the clipboard
    document.execCommand("copy");
  }
  say("Copied.");
}

// What is not there yet is made now; a program that was edited is also shown as TeX draws it.
async function download(format) {
  const program = getProgram(), task = taskNow(), wanted = format === "tex" ? "document" : format;
  const edited = result?.program !== program;
  if (edited || !result[wanted]) {
    const signal = begin(`Making the .${format}…`);
    try {
      const formats = new Set([...(edited && engine.draws ? ["png", "svg"] : []), ...(format === "tex" ? [] : [format])]);
      const answer = await engine.render(program, task, [...formats], signal);
      showResult({ ...(edited ? {} : result), ...answer, program, task });
      if (!answer[wanted]) return say(engine.draws ? `There is no .${format} of a program that does not compile.`
        : "The program is no figure, so there is no .tex of it.");
      say("");
    } catch (error) {
      return failed(signal, error, "Stopped.", () => download(format));
    } finally {
      end(signal);
    }
  }
  save(format === "tex" ? result.document : bytesOf(result[format]), image?.name ?? "program", format);
}

function openKey() {
  const { key, remembered } = getApiKey();
  byId("api-key").value = key;
  byId("remember-key").checked = remembered;
  byId("key").showModal();
}

// ---- events ----

byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  accept(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
byId("paste").addEventListener("click", () => readClipboard().then(accept, complain));
byId("take").addEventListener("click", () => takePhotograph().then(accept, complain));
byId("draw").addEventListener("click", () => {
  const model = models.find(({ id }) => id === byId("options").elements.model.value) ?? models[0];
  drawImage((model?.image_width ?? 1) / (model?.image_height ?? 1)).then(accept);
});
byId("example").addEventListener("click", async () => {
  const example = await fetch("example.png").catch(() => null);
  if (!example?.ok) return complain(new Failure("The example could not be loaded.", "away"), () => byId("example").click());
  accept(new File([await example.blob()], "example.png", { type: "image/png" }));
});

addEventListener("paste", (event) => {
  const file = firstFile(event.clipboardData);
  if (file) event.preventDefault();
  accept(file);
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files"); // and not words, which may go into the editor
addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  byId("stage").classList.add("target");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("stage").classList.remove("target"); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  byId("stage").classList.remove("target");
  accept(firstFile(event.dataTransfer));
});

byId("options").addEventListener("submit", (event) => {
  event.preventDefault();
  convert();
});
byId("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop(); });

byId("render").addEventListener("click", redraw);
byId("copy").addEventListener("click", copyProgram);
for (const button of document.querySelectorAll("[data-download]"))
  button.addEventListener("click", () => download(button.dataset.download));

byId("open-key").addEventListener("click", openKey);
byId("key").querySelector("form").addEventListener("submit", () => {
  setApiKey(byId("api-key").value.trim(), byId("remember-key").checked);
  byId("notice").replaceChildren();
  connect();
});
for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

startOptions();
startEditor({ onEdit: showButtons, onRender: redraw });
startHistory(reopen);
startGallery((candidate) => {
  showCandidate(candidate);
  say("Another candidate.");
});
connect();
