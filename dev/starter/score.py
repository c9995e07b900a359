#!/usr/bin/env python3
"""Compares what programs draw: of `eval --texts DIR`, each greedy DIR/N.tex with the data's own DIR/N.ref.tex.

    score.py DIR [--jobs J] [--dpi D]

Every program that is not letter for letter the reference is compiled by itself with pdflatex and drawn with pdftoppm,
and so is its reference; two images are the same when all their pixels are. Prints how many programs compile and how
many draw the same image. A program equal to its reference compiles and draws the same by definition; --all compiles
those too.
"""
import argparse
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile


def draw(source, dpi):
    """The pixels of a program's first page as a PPM file, or None when it does not compile within 60 seconds."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "a.tex").write_bytes(source)
        tex = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "-no-shell-escape", "a.tex"]
        try:
            done = subprocess.run(tex, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode or not pathlib.Path(folder, "a.pdf").exists():
            return None
        page = subprocess.run(["pdftoppm", "-r", str(dpi), "-l", "1", "a.pdf"], cwd=folder, stdout=subprocess.PIPE)
        return page.stdout if page.returncode == 0 else None


def judge(job):
    """(compiles, draws the same, is the same text) of one program."""
    mine, reference, dpi, compile_all = job
    mine, reference = mine.read_bytes(), reference.read_bytes()
    if mine == reference and not compile_all:
        return True, True, True
    image = draw(mine, dpi)
    return image is not None, image is not None and image == draw(reference, dpi), mine == reference


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--dpi", type=int, default=100, help="resolution of the comparison (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="compile programs that equal their reference too")
    args = parser.parse_args()
    references = sorted(args.folder.glob("*.ref.tex"))
    if not references:
        sys.exit(f"{args.folder} holds no N.ref.tex; make it with `./eval --texts {args.folder}`.")
    jobs = [(r.with_name(r.name.replace(".ref.tex", ".tex")), r, args.dpi, args.all) for r in references]
    with multiprocessing.Pool(args.jobs) as pool:
        results = pool.map(judge, jobs, chunksize=1)
    for column, what in enumerate(("compile", "draw the same image", "are the same text")):
        good = sum(r[column] for r in results)
        print(f"{good} of {len(results)} programs ({100 * good / len(results):.1f} %) {what}")


if __name__ == "__main__":
    main()
