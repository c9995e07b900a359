#!/usr/bin/env python3
"""Checks the HTML page of a report: valid, without errors or network in a browser, and readable at any width.

    check_page.py PROGRAM          PROGRAM: test_report, which writes a page of invented models
    check_page.py --page FILE

HTML is checked by tidy. Headless Chromium opens the page, light and dark, at 360 and 1400 pixels: nothing is wider than
the window, every chart and image has a size, and every text of a chart lies inside it and stands out from its ground.
"""
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """<script>
function luminance(text) {
  const parts = text.match(/[0-9.]+/g).slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
function contrast(a, b) {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
}
addEventListener("load", () => {
  const faults = [], charts = document.querySelectorAll("svg.chart"), room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > room) faults.push("the page is wider than the window");
  for (const chart of charts) {
    const box = chart.getBoundingClientRect(), name = chart.querySelector("title").textContent;
    const ground = getComputedStyle(chart).backgroundColor;
    if (box.width < 250 || box.height < 40 || box.left < 0 || box.right > room) faults.push(name + ": not in sight");
    if (!chart.querySelector("desc").textContent) faults.push(name + ": no description");
    for (const text of chart.querySelectorAll("text")) {
      const t = text.getBoundingClientRect();
      if (t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1)
        faults.push(name + ": '" + text.textContent + "' lies outside");
      if (contrast(getComputedStyle(text).fill, ground) < 4.5) faults.push(name + ": '" + text.textContent + "' is faint");
    }
    for (const line of chart.querySelectorAll(".series"))
      if (contrast(getComputedStyle(line).stroke, ground) < 3) faults.push(name + ": a series is faint");
  }
  for (const image of document.images)
    if (!image.complete || !image.naturalWidth || !image.alt) faults.push("an image is not shown, or has no alt");
  const out = document.createElement("output");
  out.id = "checked";
  out.textContent = JSON.stringify({charts: charts.length, images: document.images.length, faults: faults});
  document.body.append(out);
});
</script></body>"""

passed = failed = 0


def check(good, what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"failed: {what}")


def open_page(page, width, dark):
    """Opens a copy of the page with SCRIPT in it; returns what SCRIPT found, and the lines of the console."""
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--virtual-time-budget=5000", f"--window-size={width},1000", "--dump-dom"]
    if dark:
        browser.append("--blink-settings=preferredColorScheme=0")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.replace("</body>", SCRIPT))
        result = subprocess.run([*browser, f"--user-data-dir={folder}/profile", copy.as_uri()], capture_output=True, text=True,
                                timeout=120)
    found = re.search(r'<output id="checked">(.*?)</output>', result.stdout, re.S)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) if found else None, console


def check_page(path):
    page = path.read_text()
    check(not re.search(r"""(src|href)=["']?(https?:|//)""", page), "the page asks the network for something")
    check("<script" not in page, "the page has a script")
    if shutil.which("tidy"):
        result = subprocess.run(["tidy", "-q", "-e", path], capture_output=True, text=True)
        check(result.returncode == 0, f"tidy: {result.stderr[:500]}")
    else:
        print("not tested here: HTML by tidy, which is not installed (scripts/deps.sh page)")
    if not shutil.which("chromium"):
        print("not tested here: the page in Chromium, which is not installed (scripts/deps.sh page)")
        return
    for width in (360, 1400):
        for dark in (False, True):
            found, console = open_page(page, width, dark)
            where = f"at {width} pixels{', dark' if dark else ''}"
            check(found is not None, f"{where}: the page did not load")
            check(not console, f"{where}: console: {console[:3]}")
            if found:
                check(found["charts"] >= 5, f"{where}: only {found['charts']} charts")
                check(not found["faults"], f"{where}: {found['faults'][:5]}")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--page":
        check_page(Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.argv[1], "--page", folder], check=True)
            check_page(Path(folder) / "index.html")
    else:
        sys.exit(__doc__)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
