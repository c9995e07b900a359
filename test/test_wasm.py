#!/usr/bin/env python3
"""Uses the page that needs no server (`make wasm`, build/wasm) in headless Chromium, with and without WebAssembly's SIMD: its
programs are those that infer writes, it opens without a network after the first visit, takes a new version over, and says in
one sentence what goes wrong. The pixels that it reads from files are compared with Pillow's.

    test_wasm.py --infer FOLDER [--pictures FOLDER] [--measure]

FOLDER/infer is the native program; it runs the portable kernels, whose sums are rounded as WebAssembly's are. --pictures: as
test_web.py's. --measure: only prints how long it takes from opening the page, with nothing kept by the browser, to its first
program."""
import argparse
import base64
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from check import check, end

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build/wasm"
for missing, what in ((not shutil.which("emcc"), "Emscripten is not installed (scripts/deps.sh wasm)"),
                      (not shutil.which("chromium"), "Chromium is not installed (scripts/deps.sh page)")):
    if missing:
        print(f"not tested here: the page without a server, because {what}\n0 passed, 0 failed")
        sys.exit(0)
import numpy as np  # noqa: E402
from PIL import Image, ImageCms, ImageOps  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from test_web import fits, picture, program_of, wait_for_text  # noqa: E402

EXAMPLE = ROOT / "dev/starter/example.png"
NO_SIMD = "--js-flags=--no-enable-sse4-1"  # V8 has WebAssembly's SIMD only where the processor has SSE4.1
FIGURES, SLOW_FIGURES = 24, 6  # that are converted with SIMD and without


class Folder(ThreadingHTTPServer):
    """A server of a folder's files, as any web server. It redirects index.html to the folder, as many do."""
    daemon_threads = True

    def __init__(self, path):
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=path)

            def do_GET(self):
                if not self.path.endswith("/index.html"):
                    return super().do_GET()
                self.send_response(308)
                self.send_header("Location", "./")
                self.end_headers()

            def log_message(self, *_):
                pass
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@contextmanager
def page_at(browser, address, name, expected=None, init=""):
    """A first visit to the page: nothing is kept from earlier ones. expected: pattern of what the console may say. init: a script
    that runs before the page's."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    context.add_init_script(init)
    context.set_default_timeout(60000)
    page, console = context.new_page(), []
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("console", lambda message: console.append(f"{message.text} {message.location.get('url')}")
            if message.type in ("error", "warning") else None)
    try:
        page.goto(address)
        yield page
    except Exception as error:  # the next tests say more than a traceback
        check(False, f"{name}: {type(error).__name__}: {str(error)[:600]}")
    unexpected = [line for line in console if not (expected and re.search(expected, line))]
    check(not unexpected, f"{name}: console: {unexpected[:3]}")
    context.close()


def convert(page, file):
    """The program of an image that is chosen, a path or what set_input_files takes."""
    page.evaluate("document.querySelector('#status').textContent = ''")
    page.set_input_files("#file", file)
    wait_for_text(page, "#status", r"^\d+ tokens in|^It was cut off")
    return program_of(page)


def infer(folder, *arguments):
    environment = {**os.environ, "TIKZ_CPU": "portable"}
    return subprocess.run([folder / "infer", "--quiet", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=True).stdout


# ---- images ----


def starter_figures(folder, count):
    """The first PNG files of the starter's test figures."""
    data, at, files = (ROOT / "dev/starter/test.bin").read_bytes(), 0, []
    while len(files) < count:
        begin = data.index(b"\x89PNG\r\n\x1a\n", at)
        at = data.index(b"IEND", begin) + 8
        files.append(folder / f"figure{len(files):02}.png")
        files[-1].write_bytes(data[begin:at])
    return files


def image_files(folder):
    """The example in other kinds of files, and what a browser could spoil: alpha, 16 bits, a gamma, a turned photo."""
    image = Image.open(EXAMPLE).convert("RGB")
    grey = image.convert("L")
    soft = image.copy()
    soft.putalpha(grey.point(lambda value: 255 - value // 2))
    noise = Image.effect_noise((300, 211), 90)
    mixed = Image.merge("RGBA", (noise, noise.rotate(90), noise.rotate(180), noise.transpose(0)))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {}

    def save(name, picture, **options):
        files[name] = folder / name
        picture.save(files[name], **options)
    save("colour.jpg", image, quality=85)
    save("progressive.jpg", image, quality=70, progressive=True)
    save("turned.jpg", image, quality=95, exif=turned)
    save("soft.png", soft)
    save("mixed.png", mixed)
    save("palette.png", image.quantize(16), transparency=0)
    save("grey.png", grey)
    save("deep.png", Image.frombytes("I;16", grey.size, bytes(b for value in grey.tobytes() for b in (value * 37 % 256, value))))
    save("large.png", mixed.resize((1100, 1030)))  # several tiles
    save("profile.png", image, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())
    save("lossless.webp", soft, lossless=True, exact=True)
    save("plain.bmp", image)
    return files


def pillow_pixels(path):
    """RGBA as infer reads the file: of 16 bits the upper 8, turned upright."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256).convert("L")
    return image.convert("RGBA")


READ = """async (bytes) => {
    const { decodeImage, tilesOf } = await import("./pixels.js");
    const image = await decodeImage(new Blob([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))]));
    const all = new Uint8Array(4 * image.width * image.height);
    for await (const { x, y, width, height, rgba } of tilesOf(image, 1024))
        for (let row = 0; row < height; row++)
            all.set(rgba.subarray(4 * row * width, 4 * (row + 1) * width), 4 * ((y + row) * image.width + x));
    let text = "";
    for (let i = 0; i < all.length; i += 8192) text += String.fromCharCode(...all.subarray(i, i + 8192));
    return [image.width, image.height, btoa(text)];
}"""


def test_pixels(browser, address, files):
    with page_at(browser, address, "pixels", expected="readback|GL Driver") as page:
        for name, path in files.items():
            width, height, found = page.evaluate(READ, base64.b64encode(path.read_bytes()).decode())
            image = pillow_pixels(path)
            pixels, expected = (np.frombuffer(rgba, np.uint8).reshape(-1, 4).astype(int)
                                for rgba in (base64.b64decode(found), image.tobytes()))
            if (width, height) != image.size:
                check(False, f"{name}: {width} x {height} pixels, not {image.size}")
                continue
            wrong = np.abs(pixels - expected) * (expected[:, 3:] > 0)  # what is transparent has no colour
            check(not wrong.any(), f"{name}: {np.count_nonzero(wrong)} values differ from Pillow's, by at most {wrong.max()}")


# ---- programs ----


def test_programs(browser, address, figures, expected, kernels):
    with page_at(browser, address, kernels) as page:
        found = page.evaluate("import('./local.js').then((local) => local.listModels())")[0]
        check(found["kernels"] == kernels and found["id"] == "student.safetensors", f"{kernels}: the model says {found}")
        for file in figures:
            check(convert(page, file) == expected[file], f"{kernels}: the program of {file.name} is not infer's")


def test_methods(browser, address, folder, pictures):
    with page_at(browser, address, "methods", expected="readback") as page:
        check(convert(page, EXAMPLE) == infer(folder, EXAMPLE), "greedy: not infer's program")
        wait_for_text(page, "#status", r"^61 tokens in [0-9.]+ s, log p -0\.65, confidence 0\.99$")
        for selector in ("#render", "[data-download=pdf]", "#open-key", "[name=method][value=search]", "footer a"):
            check(page.is_hidden(selector), f"{selector} needs a server, and is offered")
        page.get_by_role("radio", name="Sample").check()
        page.get_by_label("Temperature").fill("1.3")
        page.get_by_label("Seed").fill("7")
        sampled = infer(folder, EXAMPLE, "--temperature", "1.3", "--seed", "7")
        check(convert(page, EXAMPLE) == sampled, "sample: not infer's program")
        page.get_by_role("radio", name="Beam").check()
        check(convert(page, EXAMPLE) == infer(folder, EXAMPLE, "--beam", "5"), "beam: not infer's program")
        check(page.locator(".candidate").count() == 5, "beam: not five programs")
        page.get_by_role("radio", name="Best of N").check()
        page.get_by_label("Temperature").fill("1")
        page.get_by_role("spinbutton", name="Candidates").fill("20")  # more than are written together
        convert(page, EXAMPLE)
        scores = [float(text.split()[-1]) for text in page.locator(".candidate .quiet").all_text_contents()]
        check(len(scores) > 2 and scores == sorted(scores, reverse=True), f"candidates: log p {scores}")
        for width in (360, 768, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            fits(page, f"{width} pixels wide", axe=width != 768)
            picture(pictures, page, f"wasm-{width}")
        page.fill("#program", r"\tikz\draw (0,0) -- (1,1);")
        with page.expect_download() as download:
            page.click("[data-download=tex]")
        check(r"\begin{document}" in Path(download.value.path()).read_text(), ".tex: the edited program is no document")
        page.keyboard.press("Control+Enter")
        page.focus("#program")
        page.keyboard.press("Control+Enter")
        wait_for_text(page, "#notice", r"^Rendering needs TeX, which only the server has; start it with \./serve ")


def test_stop(browser, address, expected):
    with page_at(browser, address, "stop") as page:
        page.get_by_role("radio", name="Best of N").check()
        page.get_by_role("spinbutton", name="Candidates").fill("64")
        page.get_by_label("Temperature").fill("2")  # makes long programs
        page.set_input_files("#file", EXAMPLE)
        page.wait_for_function("() => document.querySelector('#program').value")
        page.click("#stop")
        wait_for_text(page, "#status", "^Stopped")
        page.get_by_role("radio", name="Greedy").check()
        page.click("#convert")
        wait_for_text(page, "#status", r"^61 tokens in")
        check(program_of(page) == expected, "stop: the next program is not infer's")
        page.get_by_role("radio", name="Best of N").check()
        page.click("#convert")
        page.get_by_role("radio", name="Greedy").check()
        page.set_input_files("#file", EXAMPLE)  # newer work ends older work
        wait_for_text(page, "#status", r"^61 tokens in")
        check(program_of(page) == expected and page.locator(".candidate").count() == 0, "a second image: two programs are mixed")


# ---- without a network ----


def kept(page):
    """Waits until the browser keeps the page's files."""
    page.evaluate("navigator.serviceWorker.ready")
    page.wait_for_function("() => navigator.serviceWorker.controller")


def write_list(folder):
    """files.js, as the Makefile writes it."""
    names = [file.name for file in sorted(folder.iterdir()) if file.name not in ("files.js", "offline.js")]
    lines = [f'  "{name}": "{hashlib.sha256((folder / name).read_bytes()).hexdigest()}",' for name in names]
    (folder / "files.js").write_text("self.files = {\n" + "\n".join(lines) + "\n};\n")
    os.utime(folder / "files.js", (next(seconds),) * 2)  # a server says in whole seconds when a file changed


seconds = itertools.count(2_000_000_000)


def test_offline(browser, site, expected):
    server = Folder(site)
    with page_at(browser, server.address, "offline", expected="ERR_|Failed to load") as page:
        kept(page)
        index = site / "index.html"
        index.write_text(index.read_text().replace("<h1>tikz.c</h1>", "<h1>tikz.c 2</h1>"))
        (site / "ink.js").write_text("broken")  # not the file of the list: a version that is only half there
        write_list(site)
        (site / "ink.js").write_text((BUILT / "ink.js").read_text())
        page.evaluate("""navigator.serviceWorker.getRegistration().then(async (registration) => {
            await registration.update().catch(() => {});
            for (let i = 0; i < 100 && registration.installing; i++) await new Promise((resolve) => setTimeout(resolve, 50));
            window.waits = Boolean(registration.waiting);
        })""")
        check(not page.evaluate("window.waits"), "half of a new version waits to take over")
        page.reload()
        check(page.inner_text("h1") == "tikz.c", "half of a new version was taken over")
        write_list(site)
        page.evaluate("""navigator.serviceWorker.getRegistration().then(async (registration) => {
            await registration.update();
            for (let i = 0; i < 100 && !registration.waiting; i++) await new Promise((resolve) => setTimeout(resolve, 50));
        })""")
        page.reload()
        page.wait_for_function("() => document.querySelector('h1')?.textContent === 'tikz.c 2'")
        wait = "caches.open('tikz.c').then((cache) => cache.keys()).then((keys) => keys.length)"
        count = len(list(site.iterdir())) - 2
        page.wait_for_function(f"(count) => {wait}.then((found) => found === count)", arg=count)
        server.shutdown()
        server.server_close()
        page.reload()
        page.click("#example")
        wait_for_text(page, "#status", r"^61 tokens in")
        check(program_of(page) == expected, "offline: not infer's program")


# ---- what goes wrong ----


def test_refusals(browser, address):
    with page_at(browser, address, "refusals") as page:
        page.set_input_files("#file", [{"name": "broken.png", "mimeType": "image/png", "buffer": EXAMPLE.read_bytes()[:300]}])
        wait_for_text(page, "#notice", r"^The browser cannot read the image broken\.png: it is damaged, or of a kind that it "
                                       r"does not know\.$")
        with tempfile.NamedTemporaryFile(suffix=".png") as wide:
            Image.new("1", (20001, 2)).save(wide.name)
            page.set_input_files("#file", wide.name)
            wait_for_text(page, "#notice", r"^Cannot read the image tmp\w+\.png: it has 20001 x 2 pixels; at most 20000 a side "
                                           r"and 100 million in all are supported; make it smaller\.$")
        convert(page, EXAMPLE)
        check(page.inner_text("#notice") == "", "an old error stays")


def test_model_file(browser, site):
    model, server = site / "student.safetensors", Folder(site)
    whole = model.read_bytes()
    for name, content, sentence in (
            ("missing", None, r"^The model's file student\.safetensors could not be loaded: .* status 404\."),
            ("cut off", whole[:-1000], r"^Cannot read student\.safetensors: "),
            ("damaged", b"\xff" * 8 + whole[8:], r"^Cannot read student\.safetensors: it is not a safetensors file")):
        model.unlink() if content is None else model.write_bytes(content)
        with page_at(browser, server.address, f"model {name}", expected="404") as page:
            wait_for_text(page, "#notice", sentence)
            model.write_bytes(whole)
            if name == "missing":
                page.click("#notice button")
            convert(page, EXAMPLE)


def test_module_file(browser, site):
    server = Folder(site)
    for name, sentence in (("model-simd128.wasm", r"^The page's file model-simd128\.js or \.wasm could not be loaded\."),
                           ("model-simd128.js", r"^The page's file model-simd128\.js or \.wasm could not be loaded\."),
                           ("worker.js", r"^The page's file worker\.js, or one that it needs, could not be loaded\.")):
        (site / name).rename(site / "away")
        with page_at(browser, server.address, f"{name} missing", expected="404|Aborted") as page:
            wait_for_text(page, "#notice", sentence)
            (site / "away").rename(site / name)
            page.click("#notice button")
            convert(page, EXAMPLE)


def test_no_wasm(browser, address):
    with page_at(browser, address, "no WebAssembly", init="delete window.WebAssembly") as page:
        wait_for_text(page, "#notice", "^This browser has no WebAssembly, which the model needs to run in it; use a newer "
                                       r"browser, or open the page of a server \(\./serve\)\.$")


def test_from_file(browser):
    with page_at(browser, (BUILT / "index.html").as_uri(), "file://") as page:
        check(page.is_hidden("main") and page.is_hidden("#needs-server"), "file://: the page offers what it cannot do")
        text = page.locator(".from-file:visible").inner_text().replace("\n", " ")
        check(text.startswith("Browsers run this page only from a web server, not from a file: run make wasm, then "),
              f"file://: {text}")


# ---- all of it ----


def launch(playwright, *flags):
    return playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                      args=["--no-sandbox", "--disable-gpu", "--disable-extensions", *flags])


def measure(playwright, address):
    seconds = []
    for _ in range(5):
        browser = launch(playwright)
        page = browser.new_page()
        page.goto("about:blank")
        begin = time.monotonic()
        page.goto(address)
        page.set_input_files("#file", EXAMPLE)
        page.wait_for_function("() => /tokens in/.test(document.querySelector('#status').textContent)")
        seconds.append(time.monotonic() - begin)
        browser.close()
    print(f"from opening the page to its first program, in seconds: {', '.join(f'{s:.2f}' for s in sorted(seconds))}")


def run_tests(playwright, folder, pictures, scratch):
    server = Folder(BUILT)
    browser = launch(playwright)
    files = image_files(scratch)
    figures = starter_figures(scratch, FIGURES) + [files[name] for name in
                                                   ("colour.jpg", "turned.jpg", "soft.png", "deep.png", "grey.png")]
    infer(folder, *figures, "-o", scratch / "programs")
    programs = {file: (scratch / "programs" / f"{file.stem}.tex").read_text() for file in figures}
    expected = infer(folder, EXAMPLE)
    test_pixels(browser, server.address, files)
    test_programs(browser, server.address, figures, programs, "simd128")
    test_methods(browser, server.address, folder, pictures)
    test_stop(browser, server.address, expected)
    for name in ("offline", "model"):
        shutil.copytree(BUILT, scratch / name)
    test_offline(browser, scratch / "offline", expected)
    test_model_file(browser, scratch / "model")
    test_module_file(browser, scratch / "model")
    test_refusals(browser, server.address)
    test_no_wasm(browser, server.address)
    test_from_file(browser)
    browser.close()
    browser = launch(playwright, NO_SIMD)
    test_programs(browser, server.address, figures[:SLOW_FIGURES], programs, "portable")
    browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infer", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        if options.measure:
            return measure(playwright, Folder(BUILT).address)
        run_tests(playwright, options.infer.resolve(), options.pictures, Path(scratch))
    end()


if __name__ == "__main__":
    main()
