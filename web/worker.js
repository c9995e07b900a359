// The worker in which the model runs: web/wasm.c, compiled to WebAssembly. It is given orders, {name: "open", file}, {name:
// "convert", blob, file, options} or {name: "document", program}, and answers with events, {name, data}. After an "error",
// {message, type}, it is of no use any more.

import { Failure } from "./failure.js";
import { decodeImage, tilesOf } from "./pixels.js";

const tileSide = 1024; // PAGE_TILE of web/wasm.c

// A module with one function that uses a vector: browsers without SIMD find it invalid.
const vectorModule = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0,  // magic number and version
  1, 5, 1, 96, 0, 1, 123,                 // a type: no arguments, a v128
  3, 2, 1, 0,                             // a function of this type:
  10, 8, 1, 6, 0, 65, 0, 253, 17, 11);    // i32.const 0, i32x4.splat, end

let model = null; // the module, once it has opened the model

const say = (name, data) => postMessage({ name, data });

const orders = {
  async open({ file }) {
    const bytes = download(file);
    const kernels = WebAssembly.validate(vectorModule) ? "simd128" : "portable";
    const [module, contents] = await Promise.all([startModule(kernels), bytes]);
    model = module;
    model.FS.writeFile(file, contents, { canOwn: true });
    model.ccall("page_open", null, ["string"], [file]);
    model.FS.unlink(file); // the module has mapped it
  },

  async convert({ blob, file, options }) {
    const image = await decodeImage(blob);
    if (!image) throw new Failure(`The browser cannot read the image ${file}: it is damaged, or of a kind that it does not know`, "local");
    const address = model.ccall("page_image_begin", "number", ["string", "number", "number"],
      [file, image.width, image.height]) >>> 0; // an address above 2 GB comes as a negative number
    for await (const { x, y, width, height, rgba } of tilesOf(image, tileSide)) {
      model.HEAPU8.set(rgba, address);
      model._page_image_put(x, y, width, height);
    }
    image.close();
    const { temperature = 0, seed = 1, beam = 1, candidates = 1 } = options;
    model._page_convert(Number(temperature), Number(seed), Number(beam), Number(candidates));
  },

  document({ program }) {
    const bytes = new TextEncoder().encode(`${program}\0`); // which may be too long for the stack, where ccall puts texts
    const address = model._malloc(bytes.length) >>> 0;
    model.HEAPU8.set(bytes, address);
    model._page_document(address);
    model._free(address);
  },
};

addEventListener("message", async ({ data: order }) => {
  try {
    await orders[order.name](order);
  } catch (error) {
    if (error.name === "ExitStatus") return; // the module has said why
    say("error", { message: error.type ? error.message : `The model failed: ${error.message}`, type: error.type });
  }
});

// The module for these kernels.
async function startModule(kernels) {
  try {
    const { default: begin } = await import(`./model-${kernels}.js`);
    return await begin({ onEvent: say, printErr: (text) => console.info(text) });
  } catch (error) {
    console.info(error.message);
    throw new Failure(`The page's file model-${kernels}.js or .wasm could not be loaded`, "away");
  }
}

async function download(file) {
  const answer = await fetch(file).catch(() => null);
  if (answer?.ok) return new Uint8Array(await answer.arrayBuffer());
  const why = answer ? `the server answers with status ${answer.status}` : "the server does not answer";
  throw new Failure(`The model's file ${file} could not be loaded: ${why}`, "away");
}
