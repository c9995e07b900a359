// The candidates that sampling, beams or the search have found, as a gallery in the order of their scores.

const section = document.getElementById("candidates");
const list = section.querySelector("ol");

let candidates = []; // {program, score, log_probability, compiles, png, button}, best first
let onChoose = () => {};

// choose: called with the candidate that the user picks.
export function startGallery(choose) {
  onChoose = choose;
}

// Replaces all candidates; [] hides the gallery.
export function showCandidates(found) {
  candidates = [];
  list.replaceChildren();
  section.hidden = true;
  for (const candidate of found) addCandidate(candidate);
}

// Adds one in its place, while the server still looks for more; a program that is there already is not shown twice. Returns
// whether it is the best so far.
export function addCandidate(candidate) {
  if (candidates.some((other) => other.program === candidate.program)) return false;
  const entry = { ...candidate, button: makeButton(candidate) };
  const place = candidates.findIndex((other) => isBetter(candidate, other));
  candidates.splice(place < 0 ? candidates.length : place, 0, entry);
  const item = document.createElement("li");
  item.append(entry.button);
  list.insertBefore(item, place < 0 ? null : list.children[place]);
  section.hidden = candidates.length < 2;
  return candidates[0] === entry;
}

// Marks the candidate that the editor shows, if any.
export function markChosen(program) {
  for (const { program: own, button } of candidates) button.setAttribute("aria-pressed", own === program);
}

const valueOf = ({ score, log_probability }) => score ?? log_probability ?? -Infinity;

function isBetter(a, b) {
  if ((a.compiles === false) !== (b.compiles === false)) return b.compiles === false;
  return valueOf(a) > valueOf(b);
}

function makeButton(candidate) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "candidate";
  if (candidate.png) {
    const image = new Image();
    image.src = `data:image/png;base64,${candidate.png}`;
    image.alt = "";
    button.append(image);
  } else {
    const length = candidate.tokens ? `${candidate.tokens} tokens` : "No drawing";
    button.append(part("none", candidate.compiles === false ? "Does not compile" : length));
  }
  if (typeof candidate.score === "number") button.append(part("score", `Score ${candidate.score.toFixed(3)}`));
  if (typeof candidate.log_probability === "number")
    button.append(part("quiet", `log p ${candidate.log_probability.toFixed(2)}`));
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => onChoose(candidate));
  return button;
}

function part(className, textContent) {
  return Object.assign(document.createElement("span"), { className, textContent });
}
