#!/usr/bin/env python3
"""Whether normalising changes no picture: draws formulas as they are written and normalised, and compares the images.

    check_normalise.py --data FOLDER [--count 400] [--skip K] [--dpi 150]     lists as for sources.py

Takes COUNT formulas of each list. Two images are the same if all their pixels are; space before the formula is left out
on both sides, because it moves the formula by part of a pixel. Prints those that differ, and the counts. Status 1 if any
differs.
"""
import argparse
import pathlib
import re
import sys

import draw
import sources
from normalise import FormulaError, normalise, unwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import files  # noqa: E402
from options import whole  # noqa: E402
import numpy as np  # noqa: E402

draw.FONTS["raw"] = ("Computer Modern, with the packages that the lists use", (), draw.AMS + r"\usepackage{bm}")
BATCH = 200


LEADING = re.compile(r"(\\(quad|qquad|enspace)(?![A-Za-z])|\\[,:;!> ]|~|\s)*")


def pairs(args):
    """Yields (list, as written, normalised)."""
    for name in sources.NAMES:
        lines = sources.open_list(args.data, name)
        if lines is None:
            continue
        with lines:
            for number, line in enumerate(lines):
                if number >= args.skip + args.count:
                    break
                if number >= args.skip:
                    try:
                        # split is not for lines of text; an empty degree of a root, which is dropped, moves the root
                        written = unwrap(line).replace("{split}", "{aligned}").replace("\\sqrt[]", "\\sqrt")
                        yield name, written[LEADING.match(written).end():], normalise(line)
                    except FormulaError:
                        pass


def compare(batch, dpi):
    """Yields (pair, verdict): same, different, refused as written, refused when normalised."""
    written = {i: draw.Formula(pair[1]) for i, pair in enumerate(batch)}
    normal = {i: draw.Formula(pair[2]) for i, pair in enumerate(batch)}
    before, refused_before = draw.draw(written, draw.Look("raw"), lambda k: dpi, 64)
    after, refused = draw.draw(normal, draw.Look("raw"), lambda k: dpi, 64)
    for i, pair in enumerate(batch):
        if i in refused_before:
            yield pair, f"refused as written ({'both' if i in refused else 'only so'})"
        elif i in refused:
            yield pair, f"refused when normalised: {refused[i]}"
        else:
            yield pair, "same" if np.array_equal(before[i], after[i]) else "different"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the lists")
    parser.add_argument("--count", type=whole(1, 10**7), default=400, help="formulas of each list (default 400)")
    parser.add_argument("--skip", type=whole(0, 10**7), default=0, help="formulas of each list to leave out first")
    parser.add_argument("--dpi", type=whole(20, 1200), default=150, help="resolution (default 150)")
    args = parser.parse_args()
    todo, counts, bad = list(pairs(args)), {}, 0
    for start in range(0, len(todo), BATCH):
        for pair, verdict in compare(todo[start:start + BATCH], args.dpi):
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict == "different" or verdict.startswith("refused when"):
                bad += 1
                print(f"{verdict}, {pair[0]}:\n  {pair[1]}\n  {pair[2]}")
    for verdict, n in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{n} {files.printable(verdict)}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
