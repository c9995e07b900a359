// Formulas as the browser draws them, by KaTeX, which the server has under katex/ if the system does (Debian: libjs-katex).
// Without it, there is only TeX's drawing.

const figure = document.getElementById("formula-figure");
const view = document.getElementById("formula-view");

let shown = 0; // counts what was to be shown
let loading = null; // a promise of KaTeX, or of null where there is none

// Shows a formula, or nothing where `program` is null, KaTeX is missing, or does not know what the formula uses.
export async function showFormula(program) {
  const number = ++shown;
  figure.hidden = true;
  if (!program) return;
  const katex = await (loading ??= loadKatex());
  if (!katex || number !== shown) return; // something newer is shown
  try {
    katex.render(stripDelimiters(program), view, { displayMode: true, throwOnError: true });
    figure.hidden = false;
  } catch (error) {
    if (!(error instanceof katex.ParseError)) throw error;
  }
}

// The formula without the $...$, \[...\] or \(...\) around it.
function stripDelimiters(program) {
  const inside = program.trim().match(/^(\$\$?|\\\[|\\\()([^]*?)(\$\$?|\\\]|\\\))$/);
  return inside ? inside[2] : program;
}

async function loadKatex() {
  const answer = await fetch("katex/katex.min.css").catch(() => null);
  if (!answer?.ok) return null;
  // Debian has the fonts as TrueType only. A sheet made by a script is one that the Content-Security-Policy allows.
  const sheet = new CSSStyleSheet();
  await sheet.replace((await answer.text())
    .replace(/url\([^)]*\.woff2?\)\s*format\([^)]*\),/g, "")
    .replace(/url\(([^)]*)\)/g, (_, font) => `url(${new URL(font, answer.url)})`));
  document.adoptedStyleSheets.push(sheet);
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = "katex/katex.min.js";
    script.onload = () => resolve(window.katex);
    script.onerror = () => resolve(null);
    document.head.append(script);
  });
}
