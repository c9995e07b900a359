#!/usr/bin/env python3
"""Generates figures, renders them with pdflatex and pdftoppm, and packs images and token ids into a .bin dataset.

    render.py --generator BINARY --tokenizer FILE.safetensors --out OUT.bin [--seed S] [--skip K] [--count N]
              [--options OPTIONS] [--dpi LOW..HIGH] [--jobs J] [--batch B] [--pairs FOLDER]

Starting TeX takes as long as 40 figures, so B figures are joined to one document, whose class makes a page of each and
which loads what any of them loads; the page equals that of the figure's own document. The resolution changes every 10
pages. It is that of the starter's figures: mostly 70 to 100 dpi (images of 100 to 155 pixels), sometimes up to 160, but
at least 92 dpi for scenes in which line widths matter, because below that pdftoppm draws normal and "ultra thick" lines
equally wide. Or it lies between the two that --dpi names, evenly on a logarithmic scale. The same arguments give the
same file, whatever --jobs is. With --pairs the figures are also written as FOLDER/000000.tex and .png, for
convert_dataset.py.
"""
import argparse
import functools
import io
import multiprocessing
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import tex

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import tikzc  # noqa: E402  first, because it says whether NumPy is missing
import files  # noqa: E402
files.need("PIL", "Pillow")
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

PAGES_PER_RESOLUTION = 10
BEGIN, END = "\\begin{document}\n", "\\end{document}\n"


def parse_ppm(data):
    """Yields the images of pdftoppm's output, concatenated binary PPM files, as uint8 arrays (height, width, 3)."""
    at = 0
    while at < len(data):
        magic, width, height, depth = data[at:at + 64].split(maxsplit=4)[:4]
        if magic != b"P6" or depth != b"255":
            raise RuntimeError(f"pdftoppm wrote {data[at:at + 20]!r}, expected a PPM image.")
        width, height = int(width), int(height)
        at += len(b"P6\n%d %d\n255\n" % (width, height))
        yield np.frombuffer(data, np.uint8, width * height * 3, at).reshape(height, width, 3)
        at += width * height * 3


def png_bytes(image):
    """The image (height, width, 3) as the smallest PNG that Pillow can make: with a palette if it has at most 256
    colours."""
    packed = image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, index = np.unique(packed, return_inverse=True)
    if len(colours) <= 256:
        image = Image.fromarray(index.reshape(image.shape[:2]).astype(np.uint8)).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(b"".join(int(c).to_bytes(3, "big") for c in colours))
    else:
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, "png", optimize=True)
    return out.getvalue()


def is_coarse(document):
    """Whether the figure may be rendered below 92 dpi: graphs, block diagrams and bar charts have one line width."""
    return "\\node" in document or "\\draw[->]" in document and "ultra thick" not in document


def resolution(generator, coarse, between):
    """A random resolution; between: the lowest and the highest, or None for the starter's."""
    if between:
        return round(between[0] * (between[1] / between[0]) ** generator.random())
    low = 70 if coarse else 92
    return generator.randint(low, 100) if generator.random() < 0.9 else generator.randint(100, 160)


def join(documents):
    """One document with the pages of all; they share their first line, and it loads what any of them loads, in the order
    in which they first do. circuitikz changes the tips of all arrows, which pages without circuits must not have (circuits
    have no tips)."""
    preamble, bodies = {}, []
    for document in documents:
        begin = document.index(BEGIN)
        preamble.update(dict.fromkeys(document[:begin].splitlines(keepends=True)))
        bodies.append(document[begin + len(BEGIN):document.index(END)])
    if any("circuitikz" in line for line in preamble):
        preamble["\\tikzset{arrows=[quick], >=to}\n"] = None
    return "".join([*preamble, BEGIN, *bodies, END])


def render(documents, generator, between=None):
    """Renders documents. Returns the PNG bytes of each. between: as for resolution."""
    # pages with the same lower limit of the resolution are adjacent
    coarse = [not between and is_coarse(t) for t in documents]
    order = sorted(range(len(documents)), key=lambda i: coarse[i])
    fine = len(documents) - sum(coarse)
    starts = [*range(0, fine, PAGES_PER_RESOLUTION), *range(fine, len(documents), PAGES_PER_RESOLUTION),
              len(documents)]
    images = []
    with tempfile.TemporaryDirectory() as folder:
        limits = tex.Limits(seconds=20 + len(documents), wall=120 + 6 * len(documents))
        tex.compile_document(join([documents[i] for i in order]).encode(), folder, limits)
        for first, last in zip(starts[:-1], starts[1:]):
            dpi = resolution(generator, first >= fine, between)
            with tex.render_pages(folder, dpi, first + 1, last, limits) as pages:
                images += [png_bytes(p) for p in parse_ppm(pages.read())]
    if len(images) != len(documents):
        raise RuntimeError(f"{len(documents)} figures gave {len(images)} pages; expected one page a figure.")
    return [image for _, image in sorted(zip(order, images))]


def render_batch(seed, between, batch):
    number, documents = batch
    return documents, render(documents, random.Random(seed * 1000003 + number), between)


def generate(args):
    """Runs the generator and yields batches (number of the first figure, documents)."""
    command = [args.generator, "--seed", str(args.seed), "--skip", str(args.skip), "--count", str(args.count),
               *args.options.split()]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as e:
        raise RuntimeError(f"{args.generator} cannot be started: {e.strerror}.")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}; it said: "
                           f"{done.stderr[-600:].decode('utf-8', 'replace').strip() or 'nothing'}")
    documents = [t.decode() for t in done.stdout.split(b"\0")[:-1]]
    if len(documents) != args.count:
        raise RuntimeError(f"{args.generator} wrote {len(documents)} figures, expected {args.count}.")
    for i in range(0, len(documents), args.batch):
        yield args.skip + i, documents[i:i + args.batch]


def pack(args):
    files.check_output(args.out)
    tokenizer = tikzc.Tokenizer.load(args.tokenizer)
    source = " ".join([f"{args.name}: generate --seed {args.seed} --skip {args.skip} --count {args.count}", *args.options.split()])
    if args.pairs:
        pathlib.Path(args.pairs).mkdir(parents=True, exist_ok=True)
    start, done, image_bytes, tokens, longest = time.time(), 0, 0, 0, 0
    # An interruption ends the processes, and each ends the program that it watches.
    with multiprocessing.Pool(args.jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool, \
            tikzc.DatasetWriter(args.out, tokenizer, source) as writer:
        for documents, images in pool.imap(functools.partial(render_batch, args.seed, args.dpi), generate(args)):
            for document, image in zip(documents, images):
                ids = tokenizer.encode(document)
                writer.add(image, ids)
                if args.pairs:
                    stem = pathlib.Path(args.pairs, f"{args.skip + done:06d}")
                    stem.with_suffix(".tex").write_text(document)
                    stem.with_suffix(".png").write_bytes(image)
                done, image_bytes, tokens = done + 1, image_bytes + len(image), tokens + len(ids)
                longest = max(longest, len(ids))
            if sys.stderr.isatty() or done % (20 * args.batch) == 0:
                print(f"{done}/{args.count}, {done / (time.time() - start):.0f} figures/s", file=sys.stderr)
    print(f"{files.printable(args.out)}: {done} samples, {pathlib.Path(args.out).stat().st_size} bytes; an image has "
          f"{image_bytes / done:.0f} bytes; tokens: mean {tokens / done:.1f}, max {longest}; "
          f"{done / (time.time() - start):.0f} figures/s", file=sys.stderr)


def dpi_range(text):
    low, dots, high = text.partition("..")
    if not (dots and low.isdecimal() and high.isdecimal() and 20 <= int(low) <= int(high) <= 1200):
        raise argparse.ArgumentTypeError(f"expected two resolutions from 20 to 1200, such as 90..200, got '{text}'")
    return int(low), int(high)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, help="the compiled generate.c")
    parser.add_argument("--tokenizer", required=True, help="safetensors file with the tokenizer")
    parser.add_argument("--out", required=True, help=".bin file to write")
    parser.add_argument("--seed", type=int, default=1, help="which sequence of figures (default 1)")
    parser.add_argument("--skip", type=int, default=0, help="figures of the sequence to leave out first (default 0)")
    parser.add_argument("--count", type=int, default=100, help="figures to pack (default 100)")
    parser.add_argument("--options", default="", help="further options of the generator, such as --options='--levels 1,2'")
    parser.add_argument("--name", default="dev/starter", help="of the generator, for the dataset's origin (default %(default)s)")
    parser.add_argument("--dpi", type=dpi_range, metavar="LOW..HIGH", help="resolutions (default: the starter's)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--batch", type=int, default=200, help="figures a TeX run (default 200)")
    parser.add_argument("--pairs", help="folder to also write .tex and .png files to")
    args = parser.parse_args()
    if args.count < 1 or args.batch < 1 or args.jobs < 1:
        parser.error("--count, --batch and --jobs must be at least 1")
    try:
        pack(args)
    except (OSError, RuntimeError, ValueError, tex.TexError, tex.Missing, tikzc.FormatError) as e:
        files.fail("render.py", files.describe(e, args.out))
    except KeyboardInterrupt:
        sys.exit("render.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
