#!/usr/bin/env python3
"""Converts a data set to the flat binary format of tikz.c (described in tikzc.py).

    convert_dataset.py --pairs FOLDER --tokenizer FILE.safetensors --out OUT.bin [--max-tokens N] [--source TEXT]

--pairs takes a folder of name.png (or .jpg, .jpeg) and name.tex files, subfolders included, in the order of their
names. The pictures are copied as they are; the code becomes token ids and the end token. Pairs that cannot be used
are left out, and counted by reason at the end. The tokenizer comes from any safetensors file that carries one: a
model or tokenizer.safetensors.
"""
import argparse
import collections
import pathlib
import sys

import tikzc

SUFFIXES = (".png", ".jpg", ".jpeg")
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


class Report:
    """Counts what was kept and what was dropped and why, with one example each."""

    def __init__(self):
        self.kept, self.tokens, self.longest = 0, 0, 0
        self.dropped, self.example = collections.Counter(), {}

    def drop(self, reason, name):
        self.dropped[reason] += 1
        self.example.setdefault(reason, name)

    def keep(self, ids):
        self.kept, self.tokens, self.longest = self.kept + 1, self.tokens + len(ids), max(self.longest, len(ids))

    def __str__(self):
        lines = [f"{self.kept} samples; tokens: mean {self.tokens / max(1, self.kept):.1f}, max {self.longest}"]
        for reason, n in self.dropped.most_common():
            lines.append(f"dropped {n}: {reason} (first: {self.example[reason]})")
        return "\n".join(lines)


def read_pairs(folder, report):
    """(name, picture bytes, text) for each name that has both files; the rest goes to the report."""
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise tikzc.FormatError(f"{folder}: not a folder; --pairs needs one with name.png and name.tex files.")
    pictures, texts = {}, set()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if path.suffix.lower() in SUFFIXES:
            pictures.setdefault(name, path)
        elif path.suffix == ".tex":
            texts.add(name)
    if not pictures or not texts:
        raise tikzc.FormatError(f"{folder}: found {len(pictures)} pictures and {len(texts)} .tex files; expected "
                                f"pairs such as a.png and a.tex.")
    for name in sorted(pictures.keys() | texts):
        if name not in texts:
            report.drop("a picture without its .tex file", name)
        elif name not in pictures:
            report.drop("a .tex file without its picture", name)
        else:
            try:
                yield name, pictures[name].read_bytes(), (root / f"{name}.tex").read_text("utf-8")
            except UnicodeDecodeError:
                report.drop("the .tex file is not UTF-8", name)


def convert(samples, report, tokenizer, out, source, max_tokens):
    """Writes samples (name, picture bytes, text), as they come, to the dataset `out`."""
    with tikzc.DatasetWriter(out, tokenizer, source) as writer:
        for name, picture, text in samples:
            if not picture.startswith(SIGNATURES):
                report.drop("the picture is neither PNG nor JPEG", name)
                continue
            if not text.strip():
                report.drop("the text is empty", name)
                continue
            ids = tokenizer.encode(text)
            if max_tokens and len(ids) > max_tokens:
                report.drop(f"more than {max_tokens} tokens", name)
                continue
            writer.add(picture, ids)
            report.keep(ids)
        if not report.kept:
            raise tikzc.FormatError(f"No sample could be used, so {out} was not written.\n{report}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, metavar="FOLDER", help="folder of name.png|jpg + name.tex")
    parser.add_argument("--tokenizer", required=True, metavar="FILE",
                        help="safetensors file that carries a tokenizer")
    parser.add_argument("--out", required=True, metavar="FILE", help=".bin file to write")
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N",
                        help="leave out samples with more tokens, end token included (default: keep all)")
    parser.add_argument("--source", metavar="TEXT", help="where the data come from (default: the folder's name)")
    args = parser.parse_args()
    report = Report()
    try:
        tokenizer = tikzc.Tokenizer.load(args.tokenizer)
        source = args.source or f"pairs from the folder {pathlib.Path(args.pairs).resolve().name}"
        convert(read_pairs(args.pairs, report), report, tokenizer, args.out, source, args.max_tokens)
    except (OSError, tikzc.FormatError) as e:
        sys.exit(f"convert_dataset.py: error: {e}")
    print(f"{args.out}: {report}", file=sys.stderr)


if __name__ == "__main__":
    main()
