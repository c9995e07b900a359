// Images from files: chosen, dropped or pasted.

const everyServerReads = ["image/png", "image/jpeg", "image/bmp"];

// Makes of a file what the page calls an image: {blob, name: what the server gets, element: an <img>, or null where this
// browser cannot show it}. Formats that a server may lack (SVG, AVIF, ...) are sent as PNG if the browser can read them.
// Throws an Error with a sentence for the user.
export async function readImage(file) {
  if (file.type && !file.type.startsWith("image/")) throw new Error(`${file.name} is not an image; its type is ${file.type}.`);
  if (file.size === 0) throw new Error(`${file.name} is empty.`);
  const element = await decode(file);
  if (!element || everyServerReads.includes(file.type)) return { blob: file, name: file.name || "image", element };
  const png = await toPng(element);
  URL.revokeObjectURL(element.src);
  if (!png) throw new Error(`${file.name} has ${element.naturalWidth} × ${element.naturalHeight} pixels, more than this browser can ` +
    "draw. Make it smaller.");
  return { blob: png, name: `${file.name.replace(/\.[^.]*$/, "")}.png`, element: await decode(png) };
}

// Lets go of an image of readImage that is no longer shown: the browser keeps its file until then.
export function releaseImage({ element }) {
  if (element) URL.revokeObjectURL(element.src);
}

// The first image among files dropped or pasted; null: there is none, and the browser goes on as usual.
export function firstFile(transfer) {
  const files = [...(transfer?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
}

// Reads the clipboard for the button "Paste"; Ctrl+V needs no permission and comes as an event instead.
export async function readClipboard() {
  let items;
  try {
    items = await navigator.clipboard.read();
  } catch {
    throw new Error("The browser does not let this page read the clipboard. Press Ctrl+V instead.");
  }
  for (const item of items) {
    const type = item.types.find((type) => type.startsWith("image/"));
    if (type) return new File([await item.getType(type)], "clipboard.png", { type });
  }
  throw new Error("There is no image in the clipboard.");
}

async function decode(blob) {
  const element = new Image();
  element.src = URL.createObjectURL(blob);
  try {
    await element.decode();
    return element;
  } catch {
    URL.revokeObjectURL(element.src);
    return null;
  }
}

// A PNG of what an <img> shows; null: it has more pixels than this browser can draw.
async function toPng(element) {
  const canvas = document.createElement("canvas");
  // An SVG may have no size of its own.
  canvas.width = element.naturalWidth || 512;
  canvas.height = element.naturalHeight || 512;
  canvas.getContext("2d").drawImage(element, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}
