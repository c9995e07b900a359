#!/usr/bin/env python3
"""Makes the lists of formulas to draw from lists of real ones: normalised, distinct, in a fixed random order.

    sources.py --data FOLDER --out train.txt --val-out val.txt [--generated N] [--limit N] [--seed S] [--katex]

FOLDER has the lists NAME.txt or NAME.txt.xz, one formula a line (NAMES below; those that are not there are left out). A
line of an output is a style, D or T, a tab and a formula: D is drawn as a display, T as in a line of text. VAL gets
VALIDATION formulas of im2latex-validate and some more, because TeX may refuse one: `pack.py --count 1000` takes the first
1 000 that are drawn. No formula in VAL is in OUT, however it is spelled.
"""
import argparse
import collections
import hashlib
import lzma
import os
import pathlib
import sys

import generate
from normalise import normalise
from tree import FormulaError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import files  # noqa: E402
from options import whole  # noqa: E402

VALIDATION = 1000
SPARE = 40
VALIDATION_LIST = "im2latex-validate"
NAMES = {"arxiv-display": "D", "arxiv-inline": "T", "school": "D", "stacks": "D", VALIDATION_LIST: "D"}
MAX_LINE = 4000  # characters of a formula


def open_list(folder, name):
    """The lines of a list, or None if it is not there."""
    for path, opener in ((os.path.join(folder, name + ".txt.xz"), lzma.open), (os.path.join(folder, name + ".txt"), open)):
        if os.path.exists(path):
            files.check_input(path)
            return opener(path, "rt", encoding="utf-8", errors="replace")
    return None


def rank(seed, text):
    """Where a formula stands in the order: a hash, so that it does not depend on what else is there."""
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def look_of(formula):
    """What two formulas share if they look nearly the same: nothing of the validation data may hide in the training data
    behind a space or a pair of braces."""
    for spacing in ("\\,", "\\:", "\\;", "\\!", "\\quad ", "\\qquad ", "\\ ", "\\left", "\\right", " ", "{", "}"):
        formula = formula.replace(spacing, "")
    return formula.rstrip(".,;")


def read_lists(args, counts):
    """{name: [normalised formula]}, each formula once in its list."""
    lists = {}
    for name in NAMES:
        lines = open_list(args.data, name)
        if lines is None:
            print(f"note: no list {name} in {files.printable(args.data)}", file=sys.stderr)
            continue
        seen = {}
        with lines:
            for number, line in enumerate(lines):
                if args.limit and number >= args.limit:
                    break
                try:
                    if len(line) > MAX_LINE:
                        raise FormulaError("long line")
                    seen[normalise(line, args.katex)] = True
                    counts["kept", name] += 1
                except FormulaError as e:
                    counts[e.reason, name] += 1
        lists[name] = list(seen)
    return lists


def choose(args, counts):
    """(training, validation): lists of (style, formula)."""
    lists = read_lists(args, counts)
    if not lists:
        raise files.FormatError(f"{args.data} has none of the lists {', '.join(NAMES)}.")
    ordered = sorted(lists.get(VALIDATION_LIST, []), key=lambda f: rank(args.seed, f))
    validation = ordered[:VALIDATION + SPARE]
    held_out = {look_of(formula) for formula in validation}
    training = {}
    if args.generated:
        lists["generated"] = [normalise(f, args.katex) for f in generate.formulas(args.seed, args.generated)]
    for name, formulas in lists.items():
        for formula in formulas:
            if look_of(formula) in held_out:
                counts["a formula for validation", name] += 1
            else:
                training.setdefault(formula, NAMES.get(name, "D"))
    order = sorted(training, key=lambda f: rank(args.seed, f))
    return [(training[f], f) for f in order], [("D", f) for f in validation]


def write_list(path, formulas):
    with files.AtomicFile(path) as f:
        for style, formula in formulas:
            f.write(f"{style}\t{formula}\n".encode())


def read_list(path):
    """[(style, formula)] of a file that this program wrote."""
    files.check_input(path)
    out = []
    with files.open_input(path) as f:
        for number, line in enumerate(f.read().decode().splitlines(), 1):
            style, tab, formula = line.partition("\t")
            if style not in ("D", "T") or not tab or not formula:
                raise files.FormatError(f"{path}, line {number}: expected D or T, a tab and a formula.")
            out.append((style, formula))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the lists")
    parser.add_argument("--out", required=True, help="list of formulas to train on")
    parser.add_argument("--val-out", required=True, help="list of formulas for validation")
    parser.add_argument("--generated", type=whole(0, 10**7), default=0, help="formulas of generate.py to add (default 0)")
    parser.add_argument("--limit", type=whole(0, 10**9), default=0, help="lines of each list (default: all)")
    parser.add_argument("--seed", type=whole(0, 2**63), default=1, help="which are for validation, and the order "
                        "(default 1)")
    parser.add_argument("--katex", action="store_true", help="only formulas that KaTeX can draw")
    args = parser.parse_args()
    counts = collections.Counter()
    try:
        if os.path.realpath(args.out) == os.path.realpath(args.val_out):
            parser.error("--out and --val-out must not be the same file")
        for path in (args.out, args.val_out):
            files.check_output(path)
        training, validation = choose(args, counts)
        write_list(args.out, training)
        write_list(args.val_out, validation)
    except files.FormatError as e:
        files.fail("sources.py", e)
    except OSError as e:
        files.fail("sources.py", f"{files.describe(e)}.")
    except KeyboardInterrupt:
        sys.exit("sources.py: interrupted; nothing was written.")
    for (reason, name), n in sorted(counts.items(), key=lambda item: (item[0][1], -item[1])):
        print(f"{name}: {n} {'' if reason == 'kept' else 'dropped: '}{reason}", file=sys.stderr)
    print(f"{len(training)} formulas to train on, {len(validation)} for validation", file=sys.stderr)


if __name__ == "__main__":
    main()
