#!/usr/bin/env python3
"""Compares programs by the images they draw: after `eval --texts DIR`, each generated program DIR/N.tex with its
reference program DIR/N.ref.tex.

    score.py DIR [--jobs J] [--dpi D]

A program that differs from its reference is compiled with pdflatex and rendered with pdftoppm, as is the reference;
two images are the same if all their pixels are. Prints how many programs compile and how many draw the same image. A
program that equals its reference counts as compiling and drawing the same; --all compiles it too.
"""
import argparse
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile


def draw(source, dpi):
    """The first page of a program as the bytes of a PPM file, or None if it does not compile within 60 seconds."""
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


def score(job):
    """Returns (compiles, draws the same image, is the same text) of one program."""
    program_path, reference_path, dpi, compile_all = job
    program, reference = program_path.read_bytes(), reference_path.read_bytes()
    if program == reference and not compile_all:
        return True, True, True
    image = draw(program, dpi)
    return image is not None, image is not None and image == draw(reference, dpi), program == reference


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
        results = pool.map(score, jobs, chunksize=1)
    for column, predicate in enumerate(("compile", "draw the same image", "are the same text")):
        count = sum(r[column] for r in results)
        print(f"{count} of {len(results)} programs ({100 * count / len(results):.1f} %) {predicate}")


if __name__ == "__main__":
    main()
