#!/usr/bin/env python3
"""Whether figures can be told from their pictures: draws figures of the generator and looks for what would teach a model wrongly.

    check_pictures.py --generator BINARY [--levels 2,3,4,5] [--count 300] [--seed 11] [--dpi 150] [--kind KIND]
                      [--tokenizer FILE]

Takes COUNT figures of each level. Wrong are figures that do not compile, those with a side of more than 7.3 cm, those with ink outside
of their page (level 1 has some: sharp corners and tips of the starter's figures), and two programs that have one picture, as they are
drawn or as a model sees them: trimmed and scaled to 224 pixels. The nearest pairs are shown in any case. Status 1 if anything is wrong.
"""
import argparse
import collections
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "starter"), str(pathlib.Path(__file__).resolve().parents[2] / "scripts")]
import tikzc  # noqa: E402  first, because it says whether NumPy is missing
import files  # noqa: E402
from options import whole  # noqa: E402
import render  # noqa: E402
import tex  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

BATCH = 100          # figures of a TeX run
LIMITS = tex.Limits(seconds=120, wall=1200)
LONGEST = 7.3        # cm, of a side
BORDER = 0.5         # cm around a page, in which ink outside of it is seen
OUTSIDE = 0.03       # cm of ink outside of a page that are only rounded pixels
SEEN = 224           # pixels of a side, as a model sees a picture
DIFFERENT = 64       # levels of gray or colour from which two pixels are different
SHOWN = 3            # of what is wrong, and of the nearest pairs


def draw(documents, dpi, border):
    """The pages of documents that compile together, as arrays (height, width, 3), with a border of so many cm."""
    source = render.join(documents)
    if border:
        source = source.replace("[tikz]", f"[tikz,border={border}cm]", 1)
    with tempfile.TemporaryDirectory() as folder:
        tex.compile_document(source.encode(), folder, LIMITS)
        with tex.render_pages(folder, dpi, 1, len(documents), LIMITS) as pages:
            return [page.copy() for page in render.parse_ppm(pages.read())]


def draw_all(documents, dpi):
    """Two lists: the pages and the same with a border; None instead of what does not compile."""
    pages, bordered = [], []
    for start in range(0, len(documents), BATCH):
        batch = documents[start:start + BATCH]
        try:
            pages += draw(batch, dpi, 0)
            bordered += draw(batch, dpi, BORDER)
        except tex.TexError:
            for document in batch:
                try:
                    pages += draw([document], dpi, 0)
                    bordered += draw([document], dpi, BORDER)
                except tex.TexError as e:
                    print(f"{e}:\n{document}")
                    del pages[len(bordered):]
                    pages.append(None)
                    bordered.append(None)
    return pages, bordered


def ink(page):
    """First row, first column, row and column after the last of what is not white."""
    marks = np.argwhere(page.min(2) < 250)
    return (*marks.min(0), *(marks.max(0) + 1)) if len(marks) else (0, 0, 1, 1)


def trim(page):
    top, left, bottom, right = ink(page)
    return page[top:bottom, left:right]


def outside(page, dpi):
    """How far, in cm, ink reaches out of a page that was drawn with a border."""
    top, left, bottom, right = ink(page)
    inside = min(top, left, page.shape[0] - bottom, page.shape[1] - right)
    return BORDER - inside * 2.54 / dpi


def as_seen(page):
    """A picture as a model sees it: trimmed, and scaled to a square that it fits into."""
    return np.asarray(ImageOps.pad(Image.fromarray(trim(page)), (SEEN, SEEN), method=Image.BICUBIC, color="white")).astype(np.int16)


def nearest(pages):
    """Pairs (different pixels, first, second) of what a model sees, the nearest first."""
    pictures = {i: as_seen(page) for i, page in enumerate(pages) if page is not None}
    numbers = list(pictures)
    flat = np.array([pictures[i].reshape(SEEN // 4, 4, SEEN // 4, 4, 3).mean((1, 3)).ravel() for i in numbers], np.float32)
    rough = []
    for i in range(len(numbers) - 1):
        distance = np.abs(flat[i + 1:] - flat[i]).sum(1)
        rough += [(distance[k], numbers[i], numbers[i + 1 + k]) for k in np.argsort(distance)[:SHOWN]]
    pairs = [(int((np.abs(pictures[i] - pictures[k]).max(2) >= DIFFERENT).sum()), i, k) for _, i, k in sorted(rough)[:10 * SHOWN]]
    return sorted(pairs)


def show(title, documents):
    print(title)
    for document in documents:
        print(document.split(render.BEGIN)[1].split(render.END)[0])


def same_pictures(pages):
    """Pairs of figures that are drawn with the same pixels."""
    groups = collections.defaultdict(list)
    for i, page in enumerate(pages):
        if page is not None:
            picture = trim(page)
            groups[picture.shape, picture.tobytes()].append(i)
    return [(group[0], other) for group in groups.values() for other in group[1:]]


def check_level(level, documents, args):
    """Prints what is wrong with figures of a level, and a line of numbers. Returns how many things are wrong."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pages, bordered = draw_all(documents, args.dpi)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sides = {i: max(page.shape[:2]) * 2.54 / args.dpi for i, page in enumerate(pages) if page is not None}
    reach = {i: outside(page, args.dpi) for i, page in enumerate(bordered) if page is not None}
    long = [i for i in sides if sides[i] > LONGEST]
    out = [i for i in reach if reach[i] > OUTSIDE]
    same, pairs = same_pictures(pages), nearest(pages)
    alike = [(i, k) for pixels, i, k in pairs if pixels == 0 and (i, k) not in same]
    for i in long[:SHOWN]:
        show(f"a side of {sides[i]:.2f} cm, more than {LONGEST}:", [documents[i]])
    for i in out[:SHOWN]:
        show(f"ink {10 * reach[i]:.1f} mm outside of the page:", [documents[i]])
    for i, k in same[:SHOWN]:
        show("two programs with one picture:", [documents[i], documents[k]])
    for pixels, i, k in pairs[:SHOWN]:
        show(f"near: {pixels} different pixels of {SEEN} x {SEEN}:", [documents[i], documents[k]])
    broken = len(documents) - len(sides)
    print(f"level {level}: {len(documents)} figures, {broken} do not compile; longer side mean {np.mean(list(sides.values())):.2f}, "
          f"max {max(sides.values()):.2f} cm, {len(long)} over {LONGEST}; {len(out)} with ink outside of the page; {len(same)} pairs with "
          f"one picture, {len(alike)} more with one as it is seen, the nearest differ in {', '.join(str(p) for p, *_ in pairs[:SHOWN])} "
          f"pixels; {500 * seconds / len(documents):.0f} ms a figure{tokens_of(documents, args.tokenizer)}", flush=True)
    return broken + len(long) + len(out) + len(same) + len(alike)


def tokens_of(documents, path):
    if not path:
        return ""
    tokenizer = tikzc.Tokenizer.load(path)
    counts = [len(tokenizer.encode(document)) for document in documents]
    return f"; tokens mean {np.mean(counts):.1f}, max {max(counts)}"


def level_list(text):
    if not re.fullmatch(r"[1-5](,[1-5])*", text):
        raise argparse.ArgumentTypeError(f"expected levels from 1 to 5, such as 2,3, got '{text}'")
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, help="the compiled generate.c")
    parser.add_argument("--levels", type=level_list, default="2,3,4,5", help="levels to check (default 2,3,4,5)")
    parser.add_argument("--count", type=whole(2, 10**5), default=300, help="figures of each level (default 300)")
    parser.add_argument("--seed", type=whole(0, 10**9), default=11, help="which sequence of figures (default 11)")
    parser.add_argument("--dpi", type=whole(50, 600), default=150, help="resolution (default 150)")
    parser.add_argument("--kind", help="of the figures (default: all)")
    parser.add_argument("--tokenizer", help="safetensors file with a tokenizer, to count tokens")
    args = parser.parse_args()
    wrong = 0
    try:
        for level in args.levels:
            command = [args.generator, "--seed", str(args.seed), "--count", str(args.count), "--level", level,
                       *(["--kind", args.kind] if args.kind else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE)
            if done.returncode:
                raise RuntimeError(f"{args.generator} ended with status {done.returncode}.")
            wrong += check_level(level, [d.decode() for d in done.stdout.split(b"\0")[:-1]], args)
    except (OSError, RuntimeError, tex.TexError, tex.Missing, tikzc.FormatError) as e:
        files.fail("check_pictures.py", files.describe(e, args.generator))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
