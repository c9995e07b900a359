"""Draws many formulas in one run of TeX: pdflatex makes a page of each, pdftoppm an image of each page.

Both run within the limits of dev/starter/tex.py. A formula in which TeX finds an error is left out, with the error as the
reason; the others of its run are not touched by it.
"""
import functools
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "dev/starter")]
import files  # noqa: E402
import tex  # noqa: E402
files.need("numpy")
import numpy as np  # noqa: E402

MAX_EM = (100, 40)  # width and height of a formula, in units of the font's size
MARGIN = 2          # white pixels left around a formula
AMS = r"\usepackage{amsmath,amssymb}"

# Fonts: what they look like, the files that must be there, and the preamble. Those whose packages bring the symbols of
# amssymb themselves do not load it.
FONTS = {
    "cm": ("Computer Modern", (), AMS),
    "times": ("Times", ("mathptmx.sty",), AMS + r"\usepackage{mathptmx}"
              r"\DeclareMathAlphabet{\mathcal}{OMS}{cmsy}{m}{n}"),  # its own is the script that others give \mathscr
    "txfonts": ("Times, with its own symbols", ("txfonts.sty",), r"\usepackage{amsmath,txfonts}"),
    "newtx": ("Times, newer", ("newtxmath.sty", "newtxtext.sty", "binhex.tex"),
              r"\usepackage{amsmath,newtxtext,newtxmath}"),
    "palatino": ("Palatino", ("mathpazo.sty",), AMS + r"\usepackage{mathpazo}"),
    "pxfonts": ("Palatino, with its own symbols", ("pxfonts.sty",), r"\usepackage{amsmath,pxfonts}"),
    "newpx": ("Palatino, newer", ("newpxmath.sty", "newpxtext.sty", "binhex.tex"),
              r"\usepackage{amsmath,newpxtext,newpxmath}"),
    "fira": ("Fira Sans", ("FiraSans.sty", "newtxsf.sty", "binhex.tex"),
             r"\usepackage{amsmath}\usepackage[sfdefault]{FiraSans}\usepackage{newtxsf}"),
    "libertine": ("Libertine", ("libertine.sty", "libertinust1math.sty"),
                  AMS + r"\usepackage{libertine,libertinust1math}"),
    "stix": ("STIX", ("stix.sty",), r"\usepackage{amsmath,stix}"),
    "stix2": ("STIX Two", ("stix2.sty",), r"\usepackage{amsmath,stix2}"),
}
# What looks in a font like something else: it has no bold letters, or all its letters are without serifs.
LACKS = {"times": ("\\boldsymbol",), "fira": ("\\mathsf", "\\textsf")}

DOCUMENT = r"""\documentclass[%dpt]{article}
%s
\makeatletter
\@ifundefined{mathscr}{\IfFileExists{mathrsfs.sty}{\RequirePackage{mathrsfs}}{}}{}
\makeatother
\pdfhorigin=0pt \pdfvorigin=0pt \tracinglostchars=3
\def\F#1#2#3{%% the number of the formula, its style, itself
  \immediate\write-1{FORMULA #1}%%
  \setbox1\vbox{\noindent\null\par}%% makes TeX's count of errors zero: it gives up at 100
  \setbox0\hbox{$#2#3$}%%
  \immediate\write-1{SIZE #1 \the\wd0 \the\ht0 \the\dp0}%%
  \pdfpagewidth=\dimexpr\wd0+16pt\relax \pdfpageheight=\dimexpr\ht0+\dp0+16pt\relax
  \shipout\vbox{\kern8pt\hbox{\kern8pt\box0}}}
\begin{document}
%s
\end{document}
"""
EVENT = re.compile(r"^(?:FORMULA (\d+)|SIZE (\d+) (-?[\d.]+)pt ?(-?[\d.]+)pt ?(-?[\d.]+)pt|! (.*))", re.MULTILINE)


class FontError(Exception):
    """TeX cannot use a font; the message is a sentence."""


class Formula(NamedTuple):
    latex: str
    style: str = "D"  # D: as a display; T: in a line of text


class Look(NamedTuple):
    font: str = "cm"
    size: int = 10  # of the font in points: 10, 11 or 12


@functools.cache
def has_font(name):
    """Whether TeX finds the files of a font."""
    try:
        return all(subprocess.run(["kpsewhich", file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  stdin=subprocess.DEVNULL).stdout for file in FONTS[name][1])
    except FileNotFoundError:
        raise tex.Missing("kpsewhich is not installed; scripts/deps.sh tex installs TeX.")


def reason_of(error):
    """TeX's error message without what differs from formula to formula."""
    return "TeX: " + re.sub(r"\s+", " ", re.sub(r"[`'\"].*|\\.*|\(.*", "", error)).strip().rstrip(".:")[:60]


def read_log(log, size):
    """({number: page} of the formulas that were set without an error, {number: reason} of those with one). If TeX gave up
    at one, the first is empty: the others are to be set again."""
    good, bad, number, page, error = {}, {}, None, 0, ""
    for match in EVENT.finditer(log):
        begun, done, width, height, depth, message = match.groups()
        if begun:
            number, error = int(begun), ""
        elif done:
            page += 1
            if not error and (float(width) > MAX_EM[0] * size or float(height) + float(depth) > MAX_EM[1] * size):
                error = "too large"
            if error:
                bad[number] = error
            else:
                good[number] = page
            number = None
        elif number is not None:
            error = error or reason_of(message)
    if number is not None:  # TeX gave up, and wrote no PDF file
        return {}, bad | {number: error or "TeX: stopped"}
    return good, bad


def compile_formulas(formulas, look, folder):
    """Makes FOLDER/a.pdf of formulas {number: Formula}. Returns what read_log returns."""
    styles = {"D": r"\displaystyle ", "T": ""}
    # each ends with its line, so that a comment cannot take the others in
    lines = "\n".join(f"\\F{{{number}}}{{{styles[f.style]}}}{{{f.latex}\n}}" for number, f in formulas.items())
    pathlib.Path(folder, "a.tex").write_text(DOCUMENT % (look.size, FONTS[look.font][2], lines))
    limits = tex.Limits(seconds=30 + len(formulas), wall=180 + 6 * len(formulas))
    tex.run(["pdflatex", "-interaction=batchmode", "-no-shell-escape", "a.tex"], folder, limits)
    try:
        with open(pathlib.Path(folder, "a.log"), "rb") as log:
            good, bad = read_log(log.read(64 << 20).decode("utf-8", "replace"), look.size)
    except FileNotFoundError:
        raise tex.TexError("pdflatex: no log was written")
    if not good and not bad:
        raise FontError(f"The font {look.font} cannot be used: {tex.first_error(folder)}.")
    if good and not pathlib.Path(folder, "a.pdf").exists():
        raise FontError(f"The font {look.font} cannot be used: pdflatex wrote no PDF file ({tex.first_error(folder)}).")
    return good, bad


def parse_pgm(data):
    """Yields pdftoppm's images, binary PGM files one after another, as uint8 arrays (height, width)."""
    at = 0
    while at < len(data):
        header = re.compile(rb"P5\n(\d+) (\d+)\n255\n").match(data, at)
        width, height = int(header[1]), int(header[2])
        yield np.frombuffer(data, np.uint8, width * height, header.end()).reshape(height, width)
        at = header.end() + width * height


def cut(page):
    """The page without the white around the formula, but for a margin; None: nothing is on it."""
    rows, columns = np.flatnonzero(page.min(1) < 255), np.flatnonzero(page.min(0) < 255)
    if not len(rows):
        return None
    top, left = max(rows[0] - MARGIN, 0), max(columns[0] - MARGIN, 0)
    return page[top:rows[-1] + 1 + MARGIN, left:columns[-1] + 1 + MARGIN]


def draw_pages(folder, pages, dpi, group):
    """Images of pages {number: page} of FOLDER/a.pdf. dpi(k): the resolution of the k-th group of pages."""
    images, numbers = {}, {page: number for number, page in pages.items()}
    last = max(numbers, default=0)
    for k, first in enumerate(range(1, last + 1, group)):
        end = min(first + group - 1, last)
        with tex.render_pages(folder, dpi(k), first, end, gray=True) as output:
            for page, image in enumerate(parse_pgm(output.read()), first):
                if page in numbers:
                    images[numbers[page]] = cut(image)
    return images


def draw_once(formulas, look, dpi, group):
    """One run of TeX: ({number: image or None}, {number: reason}) of the formulas that it came to. Raises TexError."""
    with tempfile.TemporaryDirectory() as folder:
        good, bad = compile_formulas(formulas, look, folder)
        return draw_pages(folder, good, dpi, group) if good else {}, bad


def draw(formulas, look, dpi, group=16):
    """Draws formulas {number: Formula}. Returns ({number: image}, {number: reason why there is none})."""
    lacking = LACKS.get(look.font, ())
    dropped = {number: "not in this font" for number, f in formulas.items() if any(c in f.latex for c in lacking)}
    images = {}
    waiting = [{number: f for number, f in formulas.items() if number not in dropped}]
    while waiting:
        some = waiting.pop()
        try:
            drawn, bad = draw_once(some, look, dpi, group) if some else ({}, {})
        except tex.TexError as e:  # it took too long, or an image could not be made: looks for the formula that did it
            numbers = list(some)
            half = len(numbers) // 2
            if half:
                waiting += [{n: some[n] for n in numbers[half:]}, {n: some[n] for n in numbers[:half]}]
            else:
                dropped[numbers[0]] = str(e)
            continue
        images |= {number: image for number, image in drawn.items() if image is not None}
        dropped |= {number: "nothing to see" for number, image in drawn.items() if image is None} | bad
        left = {number: f for number, f in some.items() if number not in drawn and number not in bad}
        waiting += [left] if left else []
    return images, dropped
