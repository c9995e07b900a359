#!/usr/bin/env python3
"""Uses the page in web/ as people do, in headless Chromium: images chosen, dropped, pasted, photographed and drawn, programs
streamed, stopped, edited, rendered, copied and downloaded; the history, keys alone, both themes, and what goes wrong.

    test_web.py [--serve FOLDER] [--pictures FOLDER]

The server is test/page_server.py, whose answers are invented. --serve FOLDER: also FOLDER/serve with the shipped student and
real TeX. --pictures FOLDER: leaves pictures of the page there, at 360, 768 and 1400 pixels, to be looked at. Everywhere:
nothing is wider than the window, the console has no errors, and axe-core finds nothing to object to."""
import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from check import check, end
from page_server import FIGURE, FORMULA, ROOT, PageServer

if not shutil.which("chromium"):
    print("not tested here: the page in web/, because Chromium is not installed (scripts/deps.sh page)\n0 passed, 0 failed")
    sys.exit(0)
from axe_playwright_python.sync_playwright import Axe  # noqa: E402: where Chromium is, its driver must be
from playwright.sync_api import sync_playwright  # noqa: E402

IMAGE = ROOT / "dev/starter/example.png"


class Site:
    """A browser, a server, and what the tests do again and again. One tab serves nearly all tests: opening another costs a
    second of processor time."""

    def __init__(self, browser, server):
        self.browser, self.server, self.tab, self.console = browser, server, None, []

    def open_tab(self, **settings):
        context = self.browser.new_context(permissions=["clipboard-read", "clipboard-write", "camera"], **settings)
        context.set_default_timeout(60000)
        tab = context.new_page()
        tab.on("pageerror", lambda error: self.console.append(str(error)))
        tab.on("console", lambda message: self.console.append(f"{message.text} {message.location.get('url')}")
               if message.type in ("error", "warning") else None)
        return tab

    @contextmanager
    def page(self, name, width=1000, height=900, scheme="light", expected=None, address=None, **settings):
        """The page as at a first visit. expected: pattern of what the console may say. settings: of a tab of its own."""
        self.server.mode, self.server.delay, self.server.key = "", 0, ""
        self.server.requests.clear()
        self.server.hung_up.clear()
        self.tab = self.tab or self.open_tab()
        tab = self.open_tab(**settings) if settings else self.tab
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        tab.goto("about:blank")
        tab.context.new_cdp_session(tab).send("Storage.clearDataForOrigin", {
            "origin": self.server.address.rstrip("/"), "storageTypes": "all"})
        tab.goto("about:blank")
        self.console.clear()
        try:
            tab.goto(address or self.server.address)
            tab.evaluate("sessionStorage.clear()")
            yield tab
        except Exception as error:  # the next tests say more than a traceback
            check(False, f"{name}: {type(error).__name__}: {str(error)[:600]}")
        unexpected = [line for line in self.console if not (expected and re.search(expected, line))]
        check(not unexpected, f"{name}: console: {unexpected[:3]}")
        if settings:
            tab.context.close()


def program_of(page):
    return page.input_value("#program")


def wait_for_drawing(page):
    page.wait_for_selector("#drawing-figure:not([hidden])", state="attached")
    page.wait_for_selector("#stop:disabled")


def convert_example(page):
    page.set_input_files("#file", IMAGE)
    wait_for_drawing(page)


def wait_for_text(page, selector, pattern):
    page.wait_for_function("([s, p]) => new RegExp(p).test(document.querySelector(s).textContent)", arg=[selector, pattern])


def fits(page, what, axe=True):
    """Nothing is wider than the window, and axe-core has no objection."""
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    check(width[0] <= width[1], f"{what}: {width[0]} pixels wide in a window of {width[1]}")
    if not axe:
        return
    found = Axe().run(page).response["violations"]
    check(not found, f"{what}: axe-core: {[(v['id'], v['impact'], v['nodes'][0]['html'][:120]) for v in found]}")


def picture(folder, page, name):
    if folder:
        page.screenshot(path=folder / f"{name}.png", full_page=True)


# ---- the ways of an image ----


def test_choose(site):
    with site.page("choose") as page:
        with page.expect_file_chooser() as chooser:
            page.click("#choose")
        chooser.value.set_files(IMAGE)
        wait_for_drawing(page)
        check(program_of(page) == FIGURE, "choose: the program is not the model's")
        path, body = site.server.requests[-1]
        fields = dict(re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n', body))
        check(path == "/v1/convert" and fields == {"task": "auto", "temperature": "0", "render": "png,svg", "stream": "true"},
              f"choose: sent {path} {fields}")
        check('filename="example.png"' in body, "choose: the image has lost its name")


def test_drop(site):
    with site.page("drop") as page:
        tools = page.context.new_cdp_session(page)
        box = page.locator("#stage").bounding_box()
        for kind in ("dragEnter", "dragOver", "drop"):
            tools.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 50, "y": box["y"] + 50, "data": {
                "items": [], "files": [str(IMAGE)], "dragOperationsMask": 1}})
            if kind == "dragOver":
                check("target" in page.get_attribute("#stage", "class"), "drop: the stage does not show that it takes a file")
        wait_for_drawing(page)
        check(program_of(page) == FIGURE, "drop: no program")


def test_paste(site):
    with site.page("paste") as page:
        page.evaluate("""async () => navigator.clipboard.write([
            new ClipboardItem({"image/png": (await fetch("example.png")).blob()})])""")
        page.keyboard.press("Control+V")
        wait_for_drawing(page)
        check(program_of(page) == FIGURE, "Ctrl+V: no program")
        page.click("#paste")
        page.wait_for_function("() => document.querySelector('#input-image').naturalWidth === 111")
        wait_for_drawing(page)
        page.evaluate("navigator.clipboard.writeText('only words')")
        page.click("#paste")
        wait_for_text(page, "#notice", "^There is no image in the clipboard.$")
        page.focus("#program")
        page.keyboard.press("Control+A")
        page.keyboard.press("Control+V")
        check(program_of(page) == "only words", "Ctrl+V: text does not reach the editor")


def test_camera(site):
    with site.page("camera") as page:
        page.click("#take")
        page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
        page.evaluate("() => { window.track = document.querySelector('video').srcObject.getTracks()[0]; }")
        page.click("#shoot")
        wait_for_drawing(page)
        check('filename="photograph.jpg"' in site.server.requests[-1][1], "camera: no photograph was sent")
        check(page.evaluate("window.track.readyState") == "ended", "camera: it is still on")
    with site.page("camera of a phone", width=360, is_mobile=True, has_touch=True) as page:
        with page.expect_file_chooser() as chooser:
            page.tap("#take")
        chooser.value.set_files(IMAGE)
        wait_for_drawing(page)


def test_draw(site):
    with site.page("draw", height=1200, expected="readback") as page:
        page.click("#draw")
        fits(page, "the drawing board")
        check(page.is_disabled("#use-drawing"), "draw: an empty board can be used")
        box = page.locator("#board canvas").bounding_box()
        dark = """() => { const canvas = document.querySelector("#board canvas");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let count = 0;
            for (let i = 0; i < data.length; i += 4) count += data[i] < 60 && data[i + 2] < 60;
            return count; }"""

        def stroke(x, y, right, down):
            page.mouse.move(box["x"] + x, box["y"] + y)
            page.mouse.down()
            page.mouse.move(box["x"] + x + right, box["y"] + y + down, steps=4)
            page.mouse.up()
            return page.evaluate(dark)
        first = stroke(50, 50, 200, 0)
        second = stroke(50, 150, 200, 40)
        check(0 < first < second, f"draw: {first} and {second} dark pixels")
        page.click("#undo")
        check(page.evaluate(dark) == first, "draw: undo")
        page.keyboard.press("Control+Shift+Z")
        check(page.evaluate(dark) == second, "draw: redo")
        page.get_by_role("radio", name="Eraser").check()
        check(stroke(150, 20, 0, 300) < second, "draw: the eraser")
        page.get_by_role("radio", name="Pen").check()
        before = page.evaluate(dark)
        page.focus("#board canvas")
        for key in ("ArrowDown", " ", *["ArrowRight"] * 6, " ", "ArrowUp"):
            page.keyboard.press(key)
        page.click("#use-drawing")
        wait_for_drawing(page)
        check('filename="drawing.png"' in site.server.requests[-1][1], "draw: no drawing was sent")
        page.click("#draw")
        check(page.evaluate(dark) > before, "draw: keys do not draw, or the board has forgotten")
        page.click("#clear-board")
        check(page.evaluate(dark) == 0, "draw: clear")
        tools = page.context.new_cdp_session(page)
        tools.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})

        def touch(kind, *fingers):
            tools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [
                {"id": k, "x": box["x"] + x, "y": box["y"] + y} for k, (x, y) in enumerate(fingers)]})
        touch("touchStart", (50, 50))
        touch("touchMove", (250, 50))
        touch("touchEnd")
        alone = page.evaluate(dark)
        page.click("#clear-board")
        touch("touchStart", (50, 50))
        touch("touchStart", (50, 50), (50, 250))
        touch("touchMove", (150, 50), (150, 250))
        touch("touchMove", (250, 50), (250, 250))
        touch("touchEnd")
        both = page.evaluate(dark)
        check(0 < alone == both, f"draw: one finger gives {alone} dark pixels, a second one beside it {both}")
        tools.send("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_other_formats(site):
    """What only the browser reads is sent as PNG; what neither reads is refused by name."""
    with site.page("formats") as page:
        svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"><path d="M9 9H80"/></svg>'
        page.set_input_files("#file", [{"name": "a.b.svg", "mimeType": "image/svg+xml", "buffer": svg}])
        wait_for_drawing(page)
        check('filename="a.b.png"' in site.server.requests[-1][1], "an SVG image is not sent as PNG")
        page.set_input_files("#file", [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"}])
        wait_for_text(page, "#notice", r"^notes\.txt is not an image; its type is text/plain\.$")
        page.set_input_files("#file", [{"name": "none.png", "mimeType": "image/png", "buffer": b""}])
        wait_for_text(page, "#notice", r"^none\.png is empty\.$")
        page.set_input_files("#file", [{"name": "scan.tiff", "mimeType": "image/tiff", "buffer": b"II*\0"}])
        page.wait_for_selector("#input-figure", state="hidden")
        wait_for_drawing(page)
        check(page.is_hidden("#views"), "an image that cannot be shown is offered for comparison")
        page.set_input_files("#file", [{"name": "wide.svg", "mimeType": "image/svg+xml", "buffer":
                                        b'<svg xmlns="http://www.w3.org/2000/svg" width="50000" height="40000"/>'}])
        wait_for_text(page, "#notice", r"^wide\.svg has 50000 × 40000 pixels, more than this browser can draw\.")


def test_replaced_images(site):
    """The newest image stays, and the browser keeps the file of no other."""
    with site.page("replaced images") as page:
        page.evaluate("""() => {
            window.kept = new Set();
            const { createObjectURL, revokeObjectURL } = URL, { decode } = HTMLImageElement.prototype;
            URL.createObjectURL = (blob) => { const url = createObjectURL.call(URL, blob); kept.add(url); return url; };
            URL.revokeObjectURL = (url) => { kept.delete(url); revokeObjectURL.call(URL, url); };
            HTMLImageElement.prototype.decode = async function () {
              HTMLImageElement.prototype.decode = decode;
              await new Promise((resolve) => { setTimeout(resolve, 1000); });
              window.late = true;
              return decode.call(this);
            }; }""")
        for name in ("slow.png", "fast.png"):
            page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": IMAGE.read_bytes()}])
        page.wait_for_function("() => window.late")
        page.wait_for_timeout(200)
        wait_for_drawing(page)
        sent = [re.search('filename="(.*?)"', body)[1] for _, body in site.server.requests]
        check(sent == ["fast.png"], f"an image that is read slowly replaces a newer one: {sent}")
        svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"><path d="M9 9H80"/></svg>'
        page.set_input_files("#file", [{"name": "a.svg", "mimeType": "image/svg+xml", "buffer": svg}])
        page.wait_for_function("() => document.querySelector('#input-image').naturalWidth === 90")
        wait_for_drawing(page)
        check(page.evaluate("kept.size") == 1, f"the browser keeps {page.evaluate('kept.size')} images for one that is shown")


# ---- from the image to the program ----


def test_stream_and_stop(site):
    with site.page("stream") as page:
        site.server.delay = 0.15
        page.set_input_files("#file", IMAGE)
        page.wait_for_function("() => document.querySelector('#program').value.includes('documentclass')")
        early = program_of(page)
        check(FIGURE.startswith(early) and early != FIGURE, "stream: the program does not grow")
        page.wait_for_function("n => document.querySelector('#program').value.length > n", arg=len(early))
        check(page.get_attribute("#program", "readonly") is not None, "stream: the program can be edited while it is written")
        page.click("#stop")
        wait_for_text(page, "#status", r"^Stopped after \d+ tokens\.$")
        check(site.server.hung_up.wait(30), "stop: the server goes on")
        check(FIGURE.startswith(program_of(page)) and program_of(page), "stop: what was written is gone")
        check(page.evaluate("document.activeElement.id") == "convert", "stop: the focus is lost")
        page.click("#convert")
        page.wait_for_function("() => document.querySelector('#program').value.length > 20")
        page.keyboard.press("Escape")
        wait_for_text(page, "#status", "^Stopped")
        page.click("#convert")
        page.wait_for_function("() => document.querySelector('#program').value.length > 20")
        site.server.delay = 0
        page.set_input_files("#file", IMAGE)  # newer work ends older work
        wait_for_drawing(page)
        wait_for_text(page, "#status", r"^It compiles\. \d+ tokens in 1\.3 s, log p -2\.13$")
        check(program_of(page) == FIGURE, "a second image: two programs are mixed")


def test_candidates(site):
    with site.page("candidates") as page:
        page.get_by_role("radio", name="Best of N").check()
        page.get_by_role("spinbutton", name="Candidates").fill("4")
        page.get_by_label("Seed").fill("7")
        convert_example(page)
        fields = dict(re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n', site.server.requests[-1][1]))
        check(fields.items() >= {"candidates": "4", "seed": "7", "temperature": "0.8"}.items() and "beam" not in fields,
              f"candidates: sent {fields}")
        scores = page.locator(".candidate .score").all_text_contents()
        check(scores == ["Score 0.970", "Score 0.910", "Score 0.850", "Score 0.200"], f"candidates: {scores}")
        check(page.locator(".candidate").nth(0).get_attribute("aria-pressed") == "true", "candidates: the best is not marked")
        check("red!20" in program_of(page), "candidates: the best is not shown")
        fits(page, "candidates")
        page.locator(".candidate").nth(2).click()
        check("gray" in program_of(page), "candidates: another cannot be chosen")
        check(page.locator(".candidate[aria-pressed=true]").count() == 1, "candidates: one is marked")
        site.server.mode = "ponders"  # after the third candidate
        page.click("#convert")
        page.wait_for_function("() => document.querySelectorAll('.candidate').length === 3")
        page.click("#stop")
        wait_for_text(page, "#status", "^Stopped.$")
        site.server.mode = ""
        check("red!20" in program_of(page) and page.is_visible("#drawing-figure"), "stop: the best so far is not shown")
        page.get_by_role("spinbutton", name="Candidates").fill("99")
        page.click("#convert")
        check(len(site.server.requests) == 2, "candidates: 99 were asked for")
        page.reload()
        check(page.get_by_role("radio", name="Best of N").is_checked() and page.get_by_label("Seed").input_value() == "7",
              "the options are not kept")


def test_methods(site):
    expected = {"Sample": {"temperature": "0.8", "seed": "1"}, "Beam": {"beam": "5"},
                "Search": {"search": "10s", "temperature": "0.8", "seed": "1"}}
    with site.page("methods") as page:
        page.wait_for_selector("option[value=student]", state="attached")
        page.get_by_label("Model").select_option("student")
        page.set_input_files("#file", IMAGE)
        for method, fields in expected.items():
            page.get_by_role("radio", name=method).check()
            page.click("#convert")
            wait_for_drawing(page)
            sent = dict(re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n', site.server.requests[-1][1]))
            fields |= {"model": "student", "task": "auto", "render": "png,svg", "stream": "true"}
            check(sent == fields, f"{method}: sent {sent}")


def test_compare(site):
    with site.page("compare") as page:
        convert_example(page)
        page.get_by_role("radio", name="Slider").check()
        page.focus("#divide")
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        check(page.evaluate("document.querySelector('#overlay').style.getPropertyValue('--divide')") == "30%", "slider: keys")
        box = page.locator("#divide").bounding_box()
        page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 40)
        moved = page.evaluate("getComputedStyle(document.querySelector('#overlay-drawing')).clipPath")
        check(re.fullmatch(r"inset\(0px 0px 0px (79|8[01])%\)", moved), f"slider: {moved}")
        fits(page, "the slider")
        page.get_by_role("radio", name="Difference").check()
        wait_for_text(page, "#difference-text", r"^\d+ % of the ink agrees")
        fits(page, "the difference")
        # Two inks against what must come out: the same lines, thinner and elsewhere on the page; others; white on black.
        found = page.evaluate("""async () => {
            const { putIntoFrame, compareInk } = await import("./ink.js");
            const draw = async (paper, ink, x, path) => { const image = new Image();
              image.src = "data:image/svg+xml," + encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" width="300"
                height="200"><rect width="300" height="200" fill="${paper}"/><path transform="translate(${x} 9)" d="${path}"
                fill="${ink}"/></svg>`);
              await image.decode(); return image; };
            const square = "M0 0H80V80H0Z M90 0H120V80H90Z", other = "M0 0H80V80H0Z M90 0H120V40H90Z M119 79H120V80H119Z";
            const first = putIntoFrame(await draw("white", "black", 10, square));
            const agreement = async (...what) =>
              compareInk(first, putIntoFrame(await draw(...what), first), [1, 1, 1], [2, 2, 2]).agreement;
            return [await agreement("white", "black", 90, square), await agreement("black", "white", 50, square),
                    await agreement("white", "black", 10, other), await agreement("white", "red", 10, square)]; }""")
        check(found[0] > 0.999 and found[1] > 0.999, f"ink: what is the same agrees by {found[:2]}")
        check(abs(found[2] - 2 * 7600 / (8800 + 7600)) < 0.03, f"ink: a part that is missing: {found[2]}")
        check(found[3] < 0.02, f"ink: another colour agrees by {found[3]}")


def test_formula(site):
    with site.page("formula") as page:
        page.get_by_role("radio", name="Formula").check()
        convert_example(page)
        page.wait_for_selector("#formula-figure:not([hidden])")
        check(page.locator("#formula-view .katex-mathml").count() == 1, "formula: KaTeX has not drawn it")
        check(page.locator("#formula-view annotation").text_content() == FORMULA, "formula: KaTeX has drawn another")
        check(page.evaluate("document.fonts.check('20px KaTeX_Main')"), "formula: KaTeX's fonts are not there")
        fits(page, "a formula")
        page.fill("#program", r"$\frac{1}{$")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#formula-figure", state="hidden")
    with site.page("formula without KaTeX", expected="404") as page:
        page.get_by_role("radio", name="Formula").check()
        site.server.mode = "no-katex"
        convert_example(page)
        check(page.is_hidden("#formula-figure"), "formula: an empty figure is shown without KaTeX")


# ---- what people do with a program ----


def test_edit(site):
    with site.page("edit") as page:
        convert_example(page)
        before = page.get_attribute("#drawing-image", "src")
        page.fill("#program", FIGURE.replace("blue!30", "orange"))
        page.click("#render")
        page.wait_for_function("old => document.querySelector('#drawing-image').src !== old", arg=before)
        check(json.loads(site.server.requests[-1][1])["formats"] == ["png", "svg"], "edit: asks for other formats")
        site.server.delay = 0.5
        page.click("#render")
        wait_for_text(page, "#status", "^Rendering…$")
        page.fill("#program", FIGURE)
        page.wait_for_selector("#stop:disabled")
        check(page.text_content("#status") == "", "edit: while TeX runs, and the page says for ever that it does")
        site.server.delay = 0
        page.fill("#program", FIGURE.replace("  \\draw", "  \\oops", 1).replace("{A}", "{<img src=x>}"))
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#errors li")
        check(page.text_content("#errors") == "Line 8 Undefined control sequence.", "edit: TeX's error")
        marked = page.locator("#editor .bad").all_text_contents()
        check(len(marked) == 1 and "\\oops" in marked[0], f"edit: marked are {marked}")
        check(page.locator("#editor img").count() == 0, "edit: a program becomes part of the page")
        check(page.is_hidden("#drawing-figure"), "edit: the old drawing is still shown")
        fits(page, "an error of TeX")
        page.click("#errors button")
        chosen = page.evaluate("(a => a.value.slice(a.selectionStart, a.selectionEnd))(document.activeElement)")
        check(chosen.startswith("  \\oops"), f"edit: the error's line is not found, but {chosen!r}")
        page.keyboard.type("  % gone")
        check(page.locator("#errors li").count() == 0, "edit: errors of an older program are still shown")
        heights = page.evaluate("['pre', 'textarea'].map(s => document.querySelector('#editor ' + s).scrollHeight)")
        check(abs(heights[0] - heights[1]) <= 1, f"edit: letters and colours part, at {heights}")


def test_copy_and_download(site):
    with site.page("download") as page:
        convert_example(page)
        page.click("#copy")
        wait_for_text(page, "#status", "^Copied.$")
        check(page.evaluate("navigator.clipboard.readText()") == FIGURE, "copy: the clipboard has something else")
        begins = {"tex": b"% whole\n\\documentclass", "pdf": b"%PDF", "svg": b"<svg", "png": b"\x89PNG"}
        for edited in (False, True):
            if edited:
                page.fill("#program", FIGURE.replace("blue!30", "orange"))
            for format, begin in begins.items():
                with page.expect_download() as download:
                    page.click(f"[data-download={format}]")
                content = Path(download.value.path()).read_bytes()
                name = download.value.suggested_filename
                check(name == f"example.{format}", f"download: .{format} gets the name {name}")
                check(content.startswith(begin) and (format not in ("tex", "svg") or (b"orange" in content) == edited),
                      f"download: .{format} is {content[:40]}")
        check("orange" in base64.b64decode(page.get_attribute("#drawing-image", "src").split(",")[1]).decode(),
              "download: an edited program, and the old drawing")
        page.fill("#program", "\\oops")
        page.click("[data-download=pdf]")
        wait_for_text(page, "#status", "There is no .pdf")


def test_history(site):
    with site.page("history") as page:
        convert_example(page)
        page.fill("#program", FIGURE.replace("blue!30", "orange"))
        page.click("#render")
        wait_for_text(page, "#status", "^It compiles.$")
        page.get_by_role("radio", name="Formula").check()
        page.set_input_files("#file", IMAGE)
        wait_for_drawing(page)
        page.reload()
        page.click("#open-history")
        page.wait_for_selector(".entry")
        check(page.locator(".entry").count() == 2, f"history: {page.locator('.entry').count()} entries")
        fits(page, "the history")
        page.locator(".entry").nth(1).click()
        wait_for_drawing(page)
        check("orange" in program_of(page), "history: not the program as it was edited")
        page.get_by_role("radio", name="Figure").check()
        page.get_by_role("radio", name="Best of N").check()
        page.set_input_files("#file", IMAGE)
        wait_for_drawing(page)
        page.set_input_files("#file", [{"name": "none.png", "mimeType": "image/png", "buffer": b""}])
        wait_for_text(page, "#notice", "is empty")
        check(page.is_visible("#candidates"), "history: no candidates beside which to open an entry")
        page.click("#open-history")
        page.locator("#history li button[aria-label^=Delete]").first.click()
        page.wait_for_function("() => document.querySelectorAll('.entry').length === 2")
        page.locator(".entry").nth(1).click()
        wait_for_text(page, "#status", "^From the history.$")
        check(page.is_hidden("#candidates"), "history: the candidates of another image stay")
        check(page.text_content("#notice") == "", "history: an older message stays")
        check(page.evaluate("document.querySelector('#input-image').naturalWidth") == 111, "history: the image is lost")
        page.click("#render")
        wait_for_text(page, "#status", "^It compiles.$")
        page.click("#open-history")
        page.wait_for_selector(".entry")
        check(page.locator(".entry").count() == 2, "history: an entry that was opened again becomes another")
        page.locator("#history li button[aria-label^=Delete]").first.click()
        page.wait_for_function("() => document.querySelectorAll('.entry').length === 1")
        page.click("#clear-history")
        wait_for_text(page, "#history ul", "Nothing yet")
        page.keyboard.press("Escape")
        check(page.evaluate("document.activeElement.id") == "open-history", "history: the focus is lost")


def test_keyboard(site):
    """From an empty page to an edited program by keys alone."""
    with site.page("keyboard") as page:
        page.wait_for_selector("option[value=reader]", state="attached")
        focused = """() => { const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
            const shown = [e, e.nextElementSibling, e.closest("#editor")].some(
              (x) => x && getComputedStyle(x).outlineStyle !== "none" && getComputedStyle(x).outlineWidth !== "0px");
            return { name: e.id || e.getAttribute("name") || e.textContent, shown: shown, inside: box.width > 0 }; }"""
        order = []
        for _ in range(20):
            page.keyboard.press("Tab")
            at = page.evaluate(focused)
            order.append(at["name"])
            check(at["shown"] and at["inside"], f"keyboard: the focus on {at['name']!r} is not to be seen")
            if at["name"] == "program":
                break
        wanted = ["Skip to the program", "open-history", "open-key", "theme", "choose", "paste", "take", "draw", "example",
                  "model", "task", "method", "program"]
        check(order == wanted, f"keyboard: the order is {order}")
        page.focus("#example")
        page.keyboard.press("Enter")
        wait_for_drawing(page)
        page.get_by_role("radio", name="Side by side").focus()
        page.keyboard.press("ArrowRight")
        check(page.is_visible("#overlay"), "keyboard: the views cannot be changed")
        page.focus("#convert")
        page.keyboard.press("Enter")
        check(page.evaluate("document.activeElement.id") == "convert", "keyboard: converting loses the focus")
        wait_for_drawing(page)
        page.keyboard.press("Tab")
        check(page.evaluate("document.activeElement.id") == "program", "keyboard: Tab leads from Convert elsewhere")
        page.keyboard.press("Control+Home")
        page.keyboard.type("% mine\n")
        page.keyboard.press("Control+Enter")
        wait_for_text(page, "#status", "^It compiles.$")
        rendered = json.loads(site.server.requests[-1][1])["program"]
        check(rendered == "% mine\n" + FIGURE, "keyboard: another program is rendered")
        page.keyboard.press("Tab")
        check(page.evaluate("document.activeElement.id") == "render", "keyboard: Tab does not leave the program")


def test_themes(site, pictures):
    for width, scheme in ((360, "light"), (768, "dark"), (1400, "light"), (1400, "dark")):
        name = f"{scheme} at {width} pixels"
        with site.page(name, width=width, scheme=scheme) as page:
            check(page.get_attribute("html", "data-theme") == scheme, f"{name}: not the system's theme")
            fits(page, f"{name}, empty", axe=width == 360)
            picture(pictures, page, f"{width}-{scheme}-empty")
            page.get_by_role("radio", name="Best of N").check()
            convert_example(page)
            fits(page, name, axe=scheme == "dark")
            picture(pictures, page, f"{width}-{scheme}")
    with site.page("theme") as page:
        page.click("#theme")
        check(page.get_attribute("html", "data-theme") == "dark", "theme: the switch")
        check(page.get_attribute("#theme", "aria-pressed") == "true", "theme: the switch does not say so")
        page.reload()
        check(page.get_attribute("html", "data-theme") == "dark", "theme: it is forgotten")
        page.click("#theme")
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("html[data-theme=dark]")  # it follows the system again


# ---- what goes wrong ----


def test_blocked_storage(site):
    """A browser that lets the page keep nothing: touching its storage throws."""
    with site.page("blocked storage", expected="The history keeps nothing", locale="en-GB") as page:
        page.add_init_script("""for (const name of ["localStorage", "sessionStorage", "indexedDB"])
            Object.defineProperty(window, name, { get() { throw new DOMException("no access", "SecurityError"); } });""")
        page.reload()
        page.click("#theme")
        check(page.get_attribute("html", "data-theme") == "dark", "blocked storage: the theme's switch")
        page.get_by_role("radio", name="Best of N").check()
        convert_example(page)
        check(page.is_visible("#candidates"), "blocked storage: the options are not taken")
        page.click("#open-key")
        page.fill("#api-key", "secret")
        page.keyboard.press("Enter")
        site.server.key = "secret"
        page.click("#convert")
        wait_for_drawing(page)
        check(page.text_content("#notice") == "", f"blocked storage: the key: {page.text_content('#notice')}")


def test_refusals(site):
    with site.page("refusals", expected="status of 4") as page:
        for mode, text in (("busy", "16 images are waiting already"), ("large", "at most 100 million are read"),
                           ("unreadable", "not a PNG, JPEG or BMP")):
            site.server.mode = mode
            page.set_input_files("#file", IMAGE)
            wait_for_text(page, "#notice", text)
            check(page.is_enabled("#convert"), f"{mode}: the page is stuck")
            if mode == "busy":
                fits(page, "a message")
                site.server.mode = ""
                page.click("#notice button")
                wait_for_drawing(page)
                check(page.text_content("#notice") == "", "busy: the message stays")
        site.server.mode = "tex"
        page.click("#convert")
        page.wait_for_selector("#editor .bad")
        wait_for_text(page, "#status", "^It does not compile")
        site.server.mode = "breaks"
        page.click("#convert")
        wait_for_text(page, "#notice", "^The server ended its answer before the result")


def test_key(site):
    with site.page("key", expected="status of 401") as page:
        site.server.key = "secret"
        page.reload()
        wait_for_text(page, "#notice", "^This server wants a key")
        page.click("#notice button")
        fits(page, "the key")
        page.fill("#api-key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("option[value=reader]", state="attached")
        convert_example(page)
        page.reload()
        page.wait_for_selector("option[value=reader]", state="attached")
        check(page.evaluate("localStorage.length") == 0, "key: it is remembered without being asked to")


def test_away(browser):
    server = PageServer()
    with Site(browser, server).page("away", expected="ERR_") as page:
        page.wait_for_selector("option[value=reader]", state="attached")
        server.shutdown()
        server.server_close()
        page.set_input_files("#file", IMAGE)
        wait_for_text(page, "#notice", r"^The server at 127\.0\.0\.1:\d+ does not answer\. Is \./serve running\?")
        check(page.is_visible("#notice button"), "away: nothing to try again with")


def test_from_file(site):
    with site.page("file://", address=(ROOT / "web/index.html").as_uri()) as page:
        text = page.inner_text("#needs-server").replace("\n", " ")
        check("Start it with ./serve" in text, f"file://: the page does not say what it needs, but {text!r}")
        check(page.is_hidden("main"), "file://: the page offers what it cannot do")


# ---- with the real server ----


@contextmanager
def real_server(folder, *options):
    process = subprocess.Popen([folder / "serve", "--port", "0", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while "listening" not in said:
            said = process.stderr.readline()
            if not said:
                raise RuntimeError(f"{folder}/serve has ended")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would wait for a reader of its log
        yield said.split()[-1] + "/"
    finally:
        process.terminate()
        process.wait(20)


def test_real(site, folder, pictures):
    infer = subprocess.run([folder / "infer", IMAGE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with real_server(folder) as address, site.page("serve", width=1400, address=address, expected="status of 4") as page:
        page.set_default_timeout(60000)
        page.click("#example")
        wait_for_drawing(page)
        wait_for_text(page, "#status", "^It compiles")
        check(program_of(page) == infer, "serve: not the program of infer")
        picture(pictures, page, "serve")
        page.get_by_role("radio", name="Difference").check()
        wait_for_text(page, "#difference-text", "^(9[5-9]|100) % of the ink agrees")
        picture(pictures, page, "serve-difference")
        page.fill("#program", infer.replace("blue!30", "orange").replace("\\draw", "\\drawn", 1))
        page.click("#render")
        page.wait_for_selector("#editor .bad")
        check("\\drawn" in page.text_content("#editor .bad"), "serve: TeX's error marks another line")
        page.fill("#program", infer.replace("blue!30", "orange"))
        page.keyboard.press("Control+Enter")
        wait_for_text(page, "#status", "^It compiles.$")
        for format, begin in {"tex": b"\\documentclass", "pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}.items():
            with page.expect_download() as download:
                page.click(f"[data-download={format}]")
            check(Path(download.value.path()).read_bytes().startswith(begin), f"serve: .{format}")
        page.get_by_role("radio", name="Slider").check()
        page.get_by_role("radio", name="Best of N").check()
        page.get_by_role("spinbutton", name="Candidates").fill("4")
        page.get_by_role("spinbutton", name="Temperature").fill("1.2")
        page.click("#convert")
        page.wait_for_selector("#stop:disabled")
        check(page.locator(".candidate").count() > 1, "serve: no candidates")
        picture(pictures, page, "serve-candidates")
        page.get_by_role("radio", name="Search").check()
        page.get_by_label("Seconds").fill("60")
        page.click("#convert")
        page.wait_for_selector(".candidate", state="attached")
        page.click("#stop")
        wait_for_text(page, "#status", "^Stopped")
        page.set_input_files("#file", [{"name": "broken.png", "mimeType": "image/png", "buffer": IMAGE.read_bytes()[:300]}])
        page.wait_for_selector("#notice:not(:empty)")
        check("is cut off" in page.text_content("#notice"), f"serve: a broken image: {page.text_content('#notice')}")
        with tempfile.NamedTemporaryFile(suffix=".png") as large:
            large.truncate(40_000_000)
            page.set_input_files("#file", large.name)
            wait_for_text(page, "#notice", r"^The body has 400\d+ bytes; at most 16777216 are taken here\.$")


def test_real_formula(site, folder, pictures):
    """A formula of the user's, drawn by TeX and by KaTeX, which the server has from the system."""
    with real_server(folder) as address, site.page("serve, a formula", address=address) as page:
        page.set_default_timeout(60000)
        page.get_by_role("radio", name="Formula").check()
        page.fill("#program", FORMULA)
        page.keyboard.press("Control+Enter")
        wait_for_text(page, "#status", "^It compiles.$")
        page.wait_for_selector("#drawing-figure:not([hidden])")
        page.wait_for_selector("#formula-figure:not([hidden])")
        picture(pictures, page, "serve-formula")


def run_tests(browser, serve, pictures):
    site = Site(browser, PageServer())
    for test in (test_choose, test_drop, test_paste, test_camera, test_draw, test_other_formats, test_replaced_images, test_stream_and_stop,
                 test_candidates, test_methods, test_compare, test_formula, test_edit, test_copy_and_download, test_history,
                 test_keyboard, test_blocked_storage, test_refusals, test_key, test_from_file):
        test(site)
    test_themes(site, pictures)
    test_away(browser)
    if serve and (serve / "serve").exists():
        test_real(site, serve, pictures)
        test_real_formula(site, serve, pictures)
    elif serve:
        print("not tested here: the page with the real server, which is not built (scripts/deps.sh serve)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[
            "--no-sandbox", "--disable-gpu", "--disable-extensions", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream=fps=5"])
        run_tests(browser, options.serve, options.pictures)
        browser.close()
    end()


if __name__ == "__main__":
    main()
