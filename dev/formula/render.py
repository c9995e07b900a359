#!/usr/bin/env python3
"""Draws a list of formulas, each in a font, size and resolution of its own.

    render.py --formulas LIST --out FOLDER [--fonts cm,times,...] [--dpi 70-300] [--seed S] [--jobs J] [--batch B]

LIST is an output of sources.py. FOLDER gets a part for each B formulas, which share a run of TeX, the font and its size;
the resolution changes every 16 formulas. The same arguments give the same bytes, whatever --jobs is. The same command goes
on where an earlier one was interrupted. pack.py makes a dataset of the parts.

What a font lacks is drawn in Computer Modern; a formula that TeX refuses there, too, is dropped and its reason counted.
"""
import argparse
import collections
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import random
import signal
import sys

import draw
import sources
import tex

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import files  # noqa: E402
from options import whole  # noqa: E402
from progress import Progress  # noqa: E402
files.need("PIL", "Pillow")
from PIL import Image  # noqa: E402

VERSION = 1          # of the parts; raised if the same arguments give other images than before
PAGES = 16           # formulas that share a resolution
INLINE = 0.15        # how many displays are drawn as in a line of text
WEIGHTS = {"cm": 6}  # how often a font is used; others: once


def png_bytes(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png", compress_level=6)
    return out.getvalue()


def part_path(folder, number):
    return os.path.join(folder, f"part-{number:06d}")


def write_part(path, drawn):
    """A part: a line of JSON {"formulas": [...], "sizes": [...], "dropped": [...]}, then the PNG files."""
    head = {"formulas": [latex for latex, png, _ in drawn if png], "sizes": [len(png) for _, png, _ in drawn if png],
            "dropped": [[latex, reason] for latex, png, reason in drawn if not png]}
    with files.AtomicFile(path) as f:
        f.write(json.dumps(head).encode() + b"\n" + b"".join(png for _, png, _ in drawn if png))


def read_part(path):
    """(formulas, PNG files, [[formula, reason]]) of a part."""
    with files.open_input(path) as f:
        data = f.read()
    line, _, blob = data.partition(b"\n")
    try:
        head = json.loads(line)
        formulas, sizes, dropped = head["formulas"], head["sizes"], head["dropped"]
        if len(formulas) != len(sizes) or sum(sizes) != len(blob):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise files.FormatError(f"{path} is damaged; remove it and run render.py again.")
    images, at = [], 0
    for size in sizes:
        images.append(blob[at:at + size])
        at += size
    return formulas, images, dropped


def draw_part(seed, fonts, dpi, batch):
    """Draws one part. Returns [(formula, PNG file or b"", reason)] in the order of the formulas."""
    number, lines = batch
    rng = random.Random(f"{seed} {number}")
    look = draw.Look(rng.choices(fonts, [WEIGHTS.get(font, 1) for font in fonts])[0], rng.choice((10, 11, 12)))
    formulas = {i: draw.Formula(latex, "T" if style == "T" or rng.random() < INLINE else "D")
                for i, (style, latex) in enumerate(lines)}
    resolutions = [round(math.exp(rng.uniform(math.log(dpi[0]), math.log(dpi[1])))) for _ in range(len(lines) // PAGES + 1)]
    images, dropped = draw.draw(formulas, look, resolutions.__getitem__, PAGES)
    if dropped and look.font != "cm":
        again = {i: formulas[i] for i in sorted(dropped)}
        more, dropped = draw.draw(again, draw.Look("cm", look.size), resolutions.__getitem__, PAGES)
        images |= more
    return [(f.latex, png_bytes(images[i]) if i in images else b"", dropped.get(i, "")) for i, f in formulas.items()]


def make_part(folder, seed, fonts, dpi, batch):
    drawn = draw_part(seed, fonts, dpi, batch)
    write_part(part_path(folder, batch[0]), drawn)
    reasons = collections.Counter(reason for _, _, reason in drawn if reason)
    return len(drawn), sum(bool(png) for _, png, _ in drawn), reasons


def read_manifest(folder):
    path = os.path.join(folder, "manifest.json")
    with files.open_input(path) as f:
        try:
            manifest = json.loads(f.read())
            if manifest["batch"] > 0 and manifest["formulas"] >= 0:
                return manifest
        except (ValueError, KeyError, TypeError):
            pass
    raise files.FormatError(f"{path} is damaged; remove the folder and run render.py again.")


def check_folder(folder, manifest):
    """Makes the folder, or checks that its parts belong to the same command."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "manifest.json")
    if os.path.exists(path):
        earlier = read_manifest(folder)
        changed = [key for key in manifest if earlier.get(key) != manifest[key]]
        if changed:
            raise files.FormatError(f"{folder} holds parts that were drawn with another {changed[0]}; remove it, or name "
                                    f"another folder.")
        return
    with files.AtomicFile(path) as f:
        f.write(json.dumps(manifest, indent=1).encode() + b"\n")


def choose_fonts(names):
    """Those of the fonts that are there; says which are not."""
    missing = [name for name in names if not draw.has_font(name)]
    if missing:
        print(f"note: TeX has not the fonts {', '.join(missing)}; scripts/deps.sh tex-fonts installs them", file=sys.stderr)
    fonts = [name for name in names if name not in missing]
    if not fonts:
        raise files.FormatError("TeX has none of the fonts.")
    return fonts


def render(args):
    formulas = sources.read_list(args.formulas)
    fonts = choose_fonts(args.fonts)
    digest = hashlib.sha256("\n".join(map("\t".join, formulas)).encode()).hexdigest()
    manifest = {"version": VERSION, "list": digest, "formulas": len(formulas), "fonts": fonts, "resolution": list(args.dpi),
                "seed": args.seed, "batch": args.batch}
    check_folder(args.out, manifest)
    starts = range(0, len(formulas), args.batch)
    left = [k for k in range(len(starts)) if not os.path.exists(part_path(args.out, k))]
    batches = ((k, formulas[starts[k]:starts[k] + args.batch]) for k in left)
    before = len(formulas) - sum(min(args.batch, len(formulas) - starts[k]) for k in left)
    done, kept, reasons = before, 0, collections.Counter()
    work = functools.partial(make_part, args.out, args.seed, fonts, args.dpi)
    # An interruption ends the processes, and each ends the program that it watches.
    with multiprocessing.Pool(args.jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool, \
            Progress("render", len(formulas), before) as bar:
        for count, good, why in pool.imap_unordered(work, batches):
            done, kept = done + count, kept + good
            reasons.update(why)
            bar.update(done, f"{sum(reasons.values())} dropped")
    print(f"{files.printable(args.out)}: {kept} formulas drawn" + (f", {before} before" if before else ""), file=sys.stderr)
    for reason, n in reasons.most_common():
        print(f"dropped {n}: {files.printable(reason)}", file=sys.stderr)


def resolutions(text):
    """Parses "70-300"."""
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and 20 <= int(low) <= int(high) <= 1200):
        raise argparse.ArgumentTypeError(f"'{text}' is not two numbers from 20 to 1200, as in 70-300")
    return int(low), int(high)


def font_list(text):
    names = text.split(",")
    for name in names:
        if name not in draw.FONTS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of the fonts {', '.join(draw.FONTS)}")
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formulas", required=True, metavar="LIST", help="list of formulas, from sources.py")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the parts")
    parser.add_argument("--fonts", type=font_list, default=list(draw.FONTS), help="names, with commas (default: all)")
    parser.add_argument("--dpi", type=resolutions, default=(70, 300), metavar="LOW-HIGH",
                        help="resolutions, in dots an inch (default 70-300)")
    parser.add_argument("--seed", type=whole(0, 2**63), default=1, help="of fonts, sizes, resolutions (default 1)")
    parser.add_argument("--jobs", type=whole(1, 1024), default=2, help="processes (default 2)")
    parser.add_argument("--batch", type=whole(1, 10000), default=256, help="formulas a run of TeX (default 256)")
    args = parser.parse_args()
    try:
        render(args)
    except (files.FormatError, tex.Missing, tex.TexError, draw.FontError) as e:
        files.fail("render.py", e)
    except OSError as e:
        files.fail("render.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("render.py: interrupted; the same command goes on from here.")


if __name__ == "__main__":
    main()
