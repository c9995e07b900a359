// Compares what is drawn on two images, whatever their sizes, margins and paper.
//
// The paper is white where a tenth of an image's border is, else the median colour of its border. The ink of a pixel is how
// far each channel lies from the paper's, so that white on black has the ink of black on white. Both images are cut to their
// ink and scaled to the same frame.

const threshold = 40;  // of 255: less is paper, or noise on it
const tolerance = 2;   // pixels of the frame by which equal lines may always be apart: antialiasing does that much
const longSide = 640;  // of the frame, in pixels
const margin = 24;

// Puts an <img> into a frame of {width, height} pixels: its ink as large as fits, in the middle. Without a frame, makes one
// of the aspect of the ink. Returns {canvas, width, height, pixel}; pixel: how large a pixel of the image is in the frame.
export function putIntoFrame(image, frame) {
  const box = inkBox(image);
  const scaleToLongSide = (longSide - 2 * margin) / Math.max(box.width, box.height);
  const { width, height } = frame ?? { width: Math.round(box.width * scaleToLongSide) + 2 * margin,
                                       height: Math.round(box.height * scaleToLongSide) + 2 * margin };
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const scale = Math.min((width - 2 * margin) / box.width, (height - 2 * margin) / box.height);
  context.fillStyle = `rgb(${box.paper.join(" ")})`;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(box.canvas, box.left, box.top, box.width, box.height, (width - box.width * scale) / 2,
                    (height - box.height * scale) / 2, box.width * scale, box.height * scale);
  return { canvas, width, height, pixel: scale * box.pixel };
}

// Compares what two calls of putIntoFrame returned. Ink is common where the other image has ink of its colour as near as the
// coarser image can tell. Returns {picture: ImageData, which shows common ink in grey and the rest in the colours `onlyFirst`
// and `onlySecond` ([r, g, b]), agreement: the share of the ink of both that is common, from 0 to 1}.
export function compareInk(first, second, onlyFirst, onlySecond) {
  const { width, height } = first;
  const a = inkOf(first.canvas), b = inkOf(second.canvas);
  const reach = Math.min(Math.max(tolerance, Math.round(Math.max(first.pixel, second.pixel))), 6);
  const picture = new ImageData(width, height);
  let common = 0, all = 0;
  const show = (pixel, colour, opacity) => picture.data.set([...colour, opacity], 4 * pixel);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const inA = isInk(a, pixel), inB = isInk(b, pixel);
    if (!inA && !inB) continue;
    const foundA = inA && isNear(a, b, pixel, reach, width);
    const foundB = inB && isNear(b, a, pixel, reach, width);
    common += foundA + foundB;
    all += inA + inB;
    if (foundA || foundB) show(pixel, [60, 60, 60], 40 + strength(a, pixel) / 2);
    else show(pixel, inA ? onlyFirst : onlySecond, 255);
  }
  return { picture, agreement: all ? common / all : 1 };
}

function pixelsOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height).data;
}

// The ink of each pixel, three values of 0 to 255.
function inkOf(canvas) {
  const data = pixelsOf(canvas), paper = paperOf(data, canvas.width, canvas.height);
  const ink = new Uint8Array(canvas.width * canvas.height * 3);
  for (let i = 0, o = 0; i < data.length; i += 4)
    for (let c = 0; c < 3; c++) ink[o++] = Math.abs(data[i + c] - paper[c]);
  return ink;
}

const strength = (ink, pixel) => Math.max(ink[3 * pixel], ink[3 * pixel + 1], ink[3 * pixel + 2]);
const isInk = (ink, pixel) => strength(ink, pixel) > threshold;

// Whether `other` has ink of the same colour as ink[pixel] at most `reach` pixels away, both ways. The limit of colours is
// wide, because antialiasing makes thin lines paler. The margin keeps what is read inside the frame.
function isNear(ink, other, pixel, reach, width) {
  for (let v = -reach; v <= reach; v++) {
    for (let u = -reach; u <= reach; u++) {
      const near = pixel + v * width + u;
      if (!isInk(other, near)) continue;
      let distance = 0;
      for (let c = 0; c < 3; c++) distance = Math.max(distance, Math.abs(ink[3 * pixel + c] - other[3 * near + c]));
      if (distance < 110) return true;
    }
  }
  return false;
}

function paperOf(data, width, height) {
  const border = [];
  for (let x = 0; x < width; x++) border.push(x, (height - 1) * width + x);
  for (let y = 0; y < height; y++) border.push(y * width, y * width + width - 1);
  const white = border.filter((pixel) => Math.min(...data.subarray(4 * pixel, 4 * pixel + 3)) > 240);
  if (white.length * 10 >= border.length) return [255, 255, 255];
  return [0, 1, 2].map((c) => {
    const values = border.map((pixel) => data[4 * pixel + c]).sort((p, q) => p - q);
    return values[values.length >> 1];
  });
}

// The image on white, at most 1600 pixels wide or high and at least 640, and where its ink is: {canvas, left, top, width,
// height, paper, pixel: how large a pixel of the image is there}. An image without ink is all of it.
function inkBox(image) {
  const long = Math.max(image.naturalWidth, image.naturalHeight);
  const scale = Math.min(Math.max(long, longSide), 1600) / long;
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(image.naturalWidth * scale)),
                                     Math.max(1, Math.round(image.naturalHeight * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparency counts as white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const paper = paperOf(pixelsOf(canvas), canvas.width, canvas.height), ink = inkOf(canvas);
  let left = canvas.width, right = -1, top = canvas.height, bottom = -1;
  for (let y = 0, pixel = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, pixel++) {
      if (!isInk(ink, pixel)) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  if (right < 0) return { canvas, left: 0, top: 0, width: canvas.width, height: canvas.height, paper, pixel: scale };
  return { canvas, left, top, width: right - left + 1, height: bottom - top + 1, paper, pixel: scale };
}
