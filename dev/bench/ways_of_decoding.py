#!/usr/bin/env python3
"""Measures what each way of decoding finds and costs: greedy, beam search, candidates, tree search.

    ways_of_decoding.py --keep FOLDER [--model FILE] [--data FILE.bin] [--count N] [--ways "NAME;..."] [--infer PROGRAM]

Runs infer over the first N figures of a dataset, as PNG files, in each of the ways, and compares what the programs draw
(dev/starter/score.py, which needs TeX). Prints, for each way, how many programs compile, how many draw the same image as
the reference program, how many equal it, and the seconds of a figure from the file to the program, with reading and
encoding the image. A way whose programs FOLDER has already is only compared again; another model, other data or another
number of figures needs another folder.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc  # noqa: E402  first, because it says whether NumPy is missing
from options import whole  # noqa: E402

WAYS = {
    "greedy": [],
    "greedy, one at a time": ["-b", "1"],
    "beam 5": ["--beam", "5", "-b", "1"],
    "16 candidates": ["--candidates", "16"],
    "search 10 s": ["--search", "10s"],
}


def read_figures(args):
    """Writes the images; returns their paths and the reference programs."""
    dataset, tokenizer = tikzc.Dataset(args.data), tikzc.Tokenizer.load(args.tokenizer)
    folder = args.keep / "images"
    folder.mkdir(parents=True, exist_ok=True)
    asked, note = f"{args.model} {args.data} {args.count}\n", args.keep / "asked"
    if note.exists() and note.read_text() != asked:
        sys.exit(f"ways_of_decoding.py: error: {args.keep} has programs of: {note.read_text().strip()}; name another folder")
    note.write_text(asked)
    paths, references = [], []
    for i in range(min(args.count, len(dataset))):
        image, ids = dataset[i]
        paths.append(folder / f"{i:06d}.png")
        paths[-1].write_bytes(image)
        references.append(tokenizer.decode([int(t) for t in ids[:-1]]))
    return paths, references


def generate(args, options, paths, folder):
    """Writes a program of each image into the folder, and beside them how many seconds all took."""
    command = [args.infer, "-q", "-o", folder, "-m", args.model, *options, *paths]
    begin = time.monotonic()
    result = subprocess.run([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - begin
    if result.returncode:
        sys.exit(f"ways_of_decoding.py: error: infer failed: {result.stderr[-1000:].strip()}")
    (folder / "seconds").write_text(f"{seconds}\n")


def score(folder):
    """-> how many programs compile, how many draw the same image, and how many are the same text, as "N (P %)"."""
    result = subprocess.run([sys.executable, ROOT / "dev" / "starter" / "score.py", folder], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    found = re.findall(r"^(\d+) of \d+ programs \((.*?)\)", result.stdout, re.M)
    if result.returncode or len(found) != 3:
        sys.exit(f"ways_of_decoding.py: error: score.py failed: {result.stderr[-1000:].strip()}")
    return [f"{count} ({share})" for count, share in found]


def measure(args, name, paths, references):
    folder = args.keep / re.sub(r"\W+", "-", name)
    folder.mkdir(exist_ok=True)
    if not (folder / "seconds").exists():
        generate(args, WAYS[name], paths, folder)
    for path, reference in zip(paths, references):
        (folder / f"{path.stem}.ref.tex").write_text(reference)
    seconds = float((folder / "seconds").read_text()) / len(paths)
    print(f"| {name} | {' | '.join(score(folder))} | {seconds:.2f} |", flush=True)


def ways(text):
    for name in text.split(";"):
        if name not in WAYS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {'; '.join(WAYS)}")
    return text.split(";")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    starter = ROOT / "dev" / "starter"
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--model", default=starter / "student.safetensors")
    parser.add_argument("--tokenizer", default=starter / "tokenizer.safetensors")
    parser.add_argument("--data", default=starter / "test.bin")
    parser.add_argument("--count", type=whole(1, 10 ** 6), default=300)
    parser.add_argument("--ways", type=ways, default=list(WAYS), metavar="NAME;...")
    parser.add_argument("--infer", default=ROOT / "infer")
    args = parser.parse_args()
    paths, references = read_figures(args)
    print(f"| {len(paths)} figures | compile | draw the same | same program | seconds each |\n|---|---|---|---|---|")
    for name in args.ways:
        measure(args, name, paths, references)


if __name__ == "__main__":
    main()
