// The program's editor: a text area with transparent letters, over a copy of its text that has colours, line numbers and
// marks. The copy gives the size of both, so that long lines wrap alike.

import { highlight } from "./highlight.js";

const box = document.getElementById("editor");
const area = document.getElementById("program");
const copy = box.querySelector("pre");
const errorList = document.getElementById("errors");

let badLines = new Set();
let painting = 0;  // the pending animation frame; 0: none
let incoming = ""; // what the model has written since the last frame: tokens may come faster than frames

// onEdit: after the user has changed the text. onRender: the user asks to have it drawn.
export function startEditor({ onEdit, onRender }) {
  area.addEventListener("input", () => {
    showErrors([]);
    paintSoon();
    onEdit();
  });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    onRender();
  });
  paint();
}

export const getProgram = () => area.value + incoming;

export function setProgram(text) {
  incoming = "";
  area.value = text;
  paintSoon();
}

// Adds what the model has just written, and keeps it in sight unless the user has scrolled up.
export function appendToProgram(text) {
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  incoming += text;
  paintSoon(atEnd);
}

// While the model writes, the user does not.
export function setWriting(writing) {
  area.readOnly = writing;
  box.classList.toggle("writing", writing);
}

// Marks the lines that TeX complains about, and lists why. errors: [{line, message}]; line 0: of the whole program.
export function showErrors(errors) {
  badLines = new Set(errors.map((error) => error.line));
  errorList.replaceChildren(...errors.map(({ line, message }) => {
    const item = document.createElement("li");
    if (line > 0) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "link";
      button.textContent = `Line ${line}`;
      button.addEventListener("click", () => goToLine(line));
      item.append(button, ` ${message}`);
    } else {
      item.append(message);
    }
    return item;
  }));
  paintSoon();
}

function goToLine(number) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, number - 1).reduce((sum, line) => sum + line.length + 1, 0);
  area.focus({ preventScroll: true });
  area.setSelectionRange(start, start + (lines[number - 1]?.length ?? 0));
  copy.children[number - 1]?.scrollIntoView({ block: "nearest" });
}

function paintSoon(scroll = false) {
  painting ||= requestAnimationFrame(() => {
    painting = 0;
    paint();
    if (scroll) box.scrollTop = box.scrollHeight;
  });
}

function paint() {
  if (incoming) area.value += incoming;
  incoming = "";
  const lines = area.value.split("\n");
  copy.replaceChildren(...lines.map((line, i) => {
    const row = document.createElement("div");
    if (badLines.has(i + 1)) row.className = "bad";
    for (const { kind, text } of highlight(line)) {
      const part = document.createElement("span");
      part.className = kind;
      part.textContent = text;
      row.append(part);
    }
    if (line === "") row.append("\u200b"); // gives an empty line its height
    return row;
  }));
  copy.style.setProperty("--digits", String(lines.length).length);
}
