// The stage: the image and what TeX draws, side by side, one over the other with a slider between, or as their difference.

import { compareInk, putIntoFrame } from "./ink.js";

const stage = document.getElementById("stage");
const views = document.getElementById("views");
const inputImage = document.getElementById("input-image");
const drawingImage = document.getElementById("drawing-image");
const drawingFigure = document.getElementById("drawing-figure");
const divide = document.getElementById("divide");
const overlay = document.getElementById("overlay");

let input = null;   // the image's <img>; null: none, or the browser cannot show it
let drawing = null; // the drawing's <img>, loaded; null: none
let drawn = 0;      // counts calls of showDrawing, so that a late one does not replace a newer

// Shows a new image, without a drawing. `image`: from readImage.
export function showInput(image) {
  input = image.element;
  if (input) inputImage.src = input.src;
  document.getElementById("input-figure").hidden = !input;
  showDrawing(null);
}

// `source`: address of the drawing; null: there is none.
export async function showDrawing(source) {
  const number = ++drawn;
  const image = source && new Image();
  if (image) {
    image.src = source;
    await image.decode().catch(() => {});
    if (number !== drawn) return;
  }
  drawing = image?.naturalWidth ? image : null;
  drawingFigure.hidden = !drawing;
  if (drawing) drawingImage.src = source;
  views.hidden = !(input && drawing);
  const shape = input ?? drawing;
  stage.classList.toggle("wide", shape !== null && shape.naturalWidth > 2 * shape.naturalHeight);
  showView();
}

function showView() {
  const chosen = views.querySelector(":checked").value;
  const view = views.hidden ? "beside" : chosen;
  stage.dataset.view = input || drawing ? view : "empty";
  if (view === "beside") return;
  const first = putIntoFrame(input), second = putIntoFrame(drawing, first);
  if (view === "overlay") {
    copyTo("overlay-input", first.canvas);
    copyTo("overlay-drawing", second.canvas);
    moveDivider();
  } else {
    showDifference(first, second);
  }
}

function showDifference(first, second) {
  const style = getComputedStyle(stage);
  const colour = (name) => style.getPropertyValue(name).match(/\d+/g).map(Number);
  const { picture, agreement } = compareInk(first, second, colour("--only-image"), colour("--only-drawing"));
  const canvas = document.getElementById("difference-canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const key = (className, text) => Object.assign(document.createElement("span"), { className, textContent: text });
  document.getElementById("difference-text").replaceChildren(
    `${Math.floor(100 * agreement)} % of the ink agrees. `, key("only-image", "Only in the image"), " ",
    key("only-drawing", "Only in the drawing"));
}

function copyTo(id, source) {
  const canvas = document.getElementById(id);
  canvas.width = source.width;
  canvas.height = source.height;
  canvas.getContext("2d").drawImage(source, 0, 0);
}

function moveDivider() {
  overlay.style.setProperty("--divide", `${divide.value}%`);
}

divide.addEventListener("input", moveDivider);
views.addEventListener("change", showView);
