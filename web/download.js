// Files made of what the server answers.

export const mediaTypes = { png: "image/png", svg: "image/svg+xml", pdf: "application/pdf", tex: "application/x-tex" };

export function dataAddress(base64, format) {
  return `data:${mediaTypes[format]};base64,${base64}`;
}

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// Saves `content` (text or bytes) under the name of the image, with the ending of `format`.
export function save(content, imageName, format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: mediaTypes[format] }));
  link.download = `${imageName.replace(/\.[^.]*$/, "") || "drawing"}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
