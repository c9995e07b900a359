#!/usr/bin/env python3
"""Compares programs by the images they draw: after `eval --texts DIR`, each generated program DIR/N.tex with its
reference program DIR/N.ref.tex.

    score.py DIR [--jobs J] [--dpi D] [--seconds S]

A program that differs from its reference is compiled with pdflatex and rendered with pdftoppm, as is the reference;
two images are the same if all their pixels are. Prints how many programs compile and how many draw the same image, and
on stderr why the others do not. A program that equals its reference counts as compiling and drawing the same; --all
compiles it too. The programs run within limits (tex.py): one that takes S seconds of the processor is given up.
"""
import argparse
import collections
import hashlib
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
from typing import NamedTuple

import tex

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import files  # noqa: E402
from options import whole  # noqa: E402

MAX_SOURCE = 1 << 20  # bytes of a program


class Job(NamedTuple):
    """What the process that scores a program gets."""
    program: pathlib.Path
    reference: pathlib.Path
    dpi: int
    compile_all: bool
    folder: str         # for temporary files
    limits: tex.Limits


class Drawing(NamedTuple):
    """What came of a program: whether it compiles; a hash of its image, or None; why not, or None."""
    compiles: bool
    image: bytes = None
    problem: str = None


def draw(source, job):
    """The Drawing of the first page of a program."""
    compiles = False
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        try:
            if len(source) > MAX_SOURCE:
                raise tex.TexError(f"it has more than {MAX_SOURCE} bytes")
            tex.compile_document(source, folder, job.limits)
            compiles = True
            with tex.render_pages(folder, job.dpi, 1, 1, job.limits) as page:
                return Drawing(True, hashlib.file_digest(page, "sha256").digest())
        except tex.TexError as e:
            return Drawing(compiles, None, f"{'cannot be rendered' if compiles else 'does not compile'}: {e}")


def score(job):
    """Returns (compiles, draws the same image, is the same text, problem) of one program."""
    sources = []
    for path in (job.program, job.reference):
        with files.open_input(path) as f:
            sources.append(f.read(MAX_SOURCE + 1))
    program, reference = sources
    if program == reference and not job.compile_all:
        return True, True, True, None
    drawing = draw(program, job)
    expected = drawing if program == reference or drawing.image is None else draw(reference, job)
    problem = drawing.problem or expected.problem and f"has a reference that {expected.problem}"
    same = drawing.image is not None and drawing.image == expected.image
    return drawing.compiles, same, program == reference, problem


def score_all(args):
    references = sorted(args.folder.glob("*.ref.tex"))
    if not references:
        raise files.FormatError(f"{args.folder} holds no N.ref.tex; make it with `./eval --texts {args.folder}`.")
    with tempfile.TemporaryDirectory() as folder:
        limits = tex.Limits(seconds=args.seconds, wall=6 * args.seconds)
        jobs = [Job(r.with_name(r.name.removesuffix(".ref.tex") + ".tex"), r, args.dpi, args.all, folder, limits)
                for r in references]
        # An interruption ends the processes, and each ends the program that it watches.
        with multiprocessing.Pool(args.jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            return jobs, pool.map(score, jobs, chunksize=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--jobs", type=whole(1, 1024), default=len(os.sched_getaffinity(0)),
                        help="processes (default: all cores)")
    parser.add_argument("--dpi", type=whole(1, 1200), default=100,
                        help="resolution of the comparison (default: %(default)s)")
    parser.add_argument("--seconds", type=whole(1, 3600), default=tex.Limits().seconds,
                        help="processor time of pdflatex and of pdftoppm for a program (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="compile programs that equal their reference too")
    args = parser.parse_args()
    try:
        jobs, results = score_all(args)
    except (files.FormatError, tex.Missing) as e:
        files.fail("score.py", e)
    except OSError as e:
        files.fail("score.py", f"{files.describe(e)}.")
    except KeyboardInterrupt:
        sys.exit("score.py: interrupted")
    for column, predicate in enumerate(("compile", "draw the same image", "are the same text")):
        count = sum(r[column] for r in results)
        print(f"{count} of {len(results)} programs ({100 * count / len(results):.1f} %) {predicate}")
    problems = collections.defaultdict(list)
    for job, result in zip(jobs, results):
        if result[3]:
            problems[result[3]].append(job.program.name)
    for problem, names in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(files.printable(f"{len(names)} program{'s' if len(names) > 1 else ''} (first: {names[0]}) {problem}"),
              file=sys.stderr)


if __name__ == "__main__":
    main()
