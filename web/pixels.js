// The pixels of an image as its file has them: decoded by the browser, but neither changed to the screen's colours nor multiplied
// by their alpha.

const asStored = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

let canvas = null; // a 2D canvas for tiles that are opaque
let gl = null;     // and WebGL for the others: a 2D canvas keeps no colours of what is transparent

// Decodes an image file; the ImageBitmap is to be closed. null: the browser cannot read it.
export const decodeImage = (blob) => createImageBitmap(blob, asStored).catch(() => null);

// Yields the image in tiles of at most side x side pixels: {x, y, width, height, rgba}.
export async function* tilesOf(image, side) {
  for (let y = 0; y < image.height; y += side)
    for (let x = 0; x < image.width; x += side) {
      const width = Math.min(side, image.width - x), height = Math.min(side, image.height - y);
      const tile = await createImageBitmap(image, x, y, width, height, asStored);
      const rgba = readOpaque(tile) ?? readTransparent(tile);
      tile.close();
      yield { x, y, width, height, rgba };
    }
}

// null: the tile is transparent somewhere.
function readOpaque(tile) {
  canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  canvas.canvas.width = tile.width; // which clears it
  canvas.canvas.height = tile.height;
  canvas.drawImage(tile, 0, 0);
  const { data } = canvas.getImageData(0, 0, tile.width, tile.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return null;
  return data;
}

function readTransparent(tile) {
  gl ??= new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || gl.isContextLost()) return canvas.getImageData(0, 0, tile.width, tile.height).data; // nearly the same
  const rgba = new Uint8Array(4 * tile.width * tile.height);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, tile);
  const frame = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  gl.readPixels(0, 0, tile.width, tile.height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.deleteFramebuffer(frame);
  gl.deleteTexture(texture);
  return gl.isContextLost() ? canvas.getImageData(0, 0, tile.width, tile.height).data : rgba;
}
