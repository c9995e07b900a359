// The drawing board. A drawing is a list of strokes; undo takes the last one away and paints the rest again.

const dialog = document.getElementById("board");
const canvas = dialog.querySelector("canvas");
const context = canvas.getContext("2d");
const penWidth = document.getElementById("pen-width");
const [undoButton, redoButton, clearButton, useButton] =
  ["undo", "redo", "clear-board", "use-drawing"].map((id) => document.getElementById(id));

let strokes = []; // {eraser, width, points: [[x, y], ...]} in pixels of the canvas
let undone = [];
let current = null; // the stroke that is being drawn
let pointer = null; // id of the pointer that draws it; null: keys do
let pen = null;     // where the keyboard's pen is, [x, y]; null until an arrow key is pressed

// Opens the board; resolves with a PNG file, or null if the user closes it. `aspect`: width over height.
export function drawImage(aspect) {
  if (strokes.length === 0) {
    canvas.width = aspect >= 1 ? 960 : Math.round(960 * aspect);
    canvas.height = aspect >= 1 ? Math.round(960 / aspect) : 960;
  }
  pen = current = null;
  paint();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(null), { once: true });
    useButton.onclick = () => {
      pen = null;
      paint();
      canvas.toBlob((blob) => {
        resolve(new File([blob], "drawing.png", { type: "image/png" }));
        dialog.close();
      });
    };
  });
}

function paint() {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) paintStroke(stroke);
  if (pen) paintPen();
  undoButton.disabled = clearButton.disabled = useButton.disabled = strokes.length === 0;
  redoButton.disabled = undone.length === 0;
}

// Lines between the middles of neighbouring points, bent towards the points: the hand's corners become round.
function paintStroke({ eraser, width, points }) {
  context.strokeStyle = eraser ? "#fff" : "#111";
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(...points[0]);
  for (let i = 1; i < points.length - 1; i++) {
    const [x, y] = points[i], [nextX, nextY] = points[i + 1];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  context.lineTo(...points.at(-1));
  context.stroke();
}

function paintPen() {
  context.strokeStyle = current ? "#c2410c" : "#2563eb";
  context.lineWidth = 2;
  context.beginPath();
  context.arc(...pen, 9, 0, 2 * Math.PI);
  context.stroke();
}

// `by`: the id of a pointer, or null.
function beginStroke(point, by) {
  const eraser = dialog.querySelector("[name=tool]:checked").value === "eraser";
  pointer = by;
  current = { eraser, width: penWidth.value * (eraser ? 8 : 2), points: [point] };
  strokes.push(current);
  undone = [];
  paint();
}

function pointOf(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  const other = current && pointer !== null && pointer !== event.pointerId; // a second finger, or the hand beside a pen
  if (event.button !== 0 || other) return;
  canvas.setPointerCapture(event.pointerId);
  pen = null;
  beginStroke(pointOf(event), event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!current || pen || pointer !== event.pointerId) return;
  for (const step of event.getCoalescedEvents?.() ?? [event]) current.points.push(pointOf(step));
  paint();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => { if (!pen && pointer === event.pointerId) current = null; });
}

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  if (arrows[event.key]) {
    const [x, y] = pen ?? [canvas.width / 2, canvas.height / 2], step = event.shiftKey ? 4 : 16;
    const within = (value, limit) => Math.min(Math.max(value, 0), limit);
    pen = [within(x + step * arrows[event.key][0], canvas.width), within(y + step * arrows[event.key][1], canvas.height)];
    current?.points.push(pen);
  } else if (event.key === " ") {
    pen ??= [canvas.width / 2, canvas.height / 2];
    if (current) current = null;
    else beginStroke(pen, null);
  } else {
    return;
  }
  event.preventDefault();
  paint();
});

function undo() {
  if (strokes.length > 0) undone.push(strokes.pop());
  current = null;
  paint();
}

function redo() {
  if (undone.length > 0) strokes.push(undone.pop());
  paint();
}

undoButton.addEventListener("click", undo);
redoButton.addEventListener("click", redo);
clearButton.addEventListener("click", () => { strokes = []; undone = []; current = null; paint(); });
dialog.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  (event.shiftKey ? redo : undo)();
});
