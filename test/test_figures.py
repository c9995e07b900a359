#!/usr/bin/env python3
"""The generator of figures (dev/figures): determinism, parts, spelling, and that TeX draws different programs differently.

    build/venv/bin/python test/test_figures.py [build/BF16-cpu]    18 s of processor time; without TeX nothing is drawn

With a build folder its train_distill and eval run the stages of runs/figures.sh with a few figures and steps: 20 s more. Prints a check
only when it fails, and at the end "N passed, M failed".
"""
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test"), str(ROOT / "dev/starter")]
import tikzc  # noqa: E402
from check import check, end  # noqa: E402

# The order of the options that a node or a path may have.
OPTIONS = [r"-latex|->|<->|only marks", r"circle|circ|ground|diamond|state(, initial)?(, accepting)?", r"aspect=2|initial|accepting", "draw",
           r"(gray|red|blue|green|magenta|orange|cyan|yellow)(!30|!50)?", "dashed|dotted", "ultra thick", "rounded corners", "inner sep=0pt",
           r"minimum width=.*", r"minimum height=.*", r"minimum size=.*", r"fill=.*", r"fill opacity=0.5", r"step=0.5cm",
           r"(above|below|left|right|above left|above right|below left|below right)"]
NUMBER = r"-?(0|[1-9][0-9]*)(\.25|\.5|\.75)?"
KINDS = "shapes blocks flow tree automaton graph network commute plot euclid venn grid timeline circuit".split()


def rank(option):
    return next((i for i, pattern in enumerate(OPTIONS) if re.fullmatch(pattern, option)), None)


def spelling(document):
    """What is wrong with the spelling of a figure, or None."""
    if not re.fullmatch(r"\\documentclass\[tikz\]\{standalone\}\n(\\(usepackage|usetikzlibrary|pgfplotsset)\{.*\}\n)*"
                        r"\\begin\{document\}\n\\begin\{(tikzpicture|tikzcd)\}[\s\S]*\\end\{\3\}\n\\end\{document\}\n", document):
        return "the document around it"
    body = document.split("\\begin{document}\n")[1]
    if re.search(r"[ \t]\n|\t|\n\n", body):
        return "white space"
    if "tikzcd" in body or "axis" in body:
        return None
    names = re.findall(r"\\node(?:\[[^]]*\])? \((\w)\) at", body)
    if "".join(names) != "abcdefghijklmnop"[:len(names)]:
        return f"the names {names}"
    for options in re.findall(r"\\(?:node|draw|fill)\[([^]]*)\]", body):
        ranks = [rank(o) for o in options.split(", ")]
        if None in ranks or ranks != sorted(ranks):
            return f"the options {options}"
    for x, y in re.findall(r"\(([-0-9.]+),([-0-9.]+)\)", re.sub(r"\{[^{}]*\}", "", body)):
        if not (re.fullmatch(NUMBER, x) and re.fullmatch(NUMBER, y)) and "0.1" not in (x + y):
            return f"the point ({x},{y})"
    return None


def figures(program, *options):
    done = subprocess.run([program, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 0, f"generate {options}", done.stderr)
    return [t.decode() for t in done.stdout.split(b"\0")[:-1]]


def test_sequences(program, tmp):
    some = figures(program, "--seed", 5, "--count", 300)
    check(len(some) == 300 == len(set(some)), "300 figures, all different")
    check(figures(program, "--seed", 5, "--count", 300) == some, "the same seed gives the same figures")
    check(figures(program, "--seed", 5, "--skip", 100, "--count", 50) == some[100:150], "--skip leaves out the first")
    check(len(set(figures(program, "--seed", 6, "--count", 300)) & set(some)) < 30, "another seed, other figures")
    check(figures(program, "--seed", 5, "--levels", "1,2,3,4,5", "--count", 20) == some[:20], "all levels are the default")
    # Of plain Venn diagrams there are so few that sequences repeat each other's.
    few = ("--kind", "venn", "--level", 2)
    parts = {part: set(figures(program, *few, "--part", part, "--seed", seed, "--count", count))
             for part, seed, count in (("train", 1, 8000), ("val", 2, 400), ("test", 3, 400))}
    check(not any(parts[a] & parts[b] for a in parts for b in parts if a < b), "parts share no figure")
    mixed = figures(program, *few, "--seed", 4, "--count", 8000)
    check(len(set(mixed)) == 8000, "no figure occurs twice in a sequence")
    check(all(20 < 100 * len(parts[part] & set(mixed)) / len(parts[part]) for part in parts), "without --part there are figures of all")
    figures(program, "--seed", 5, "--count", 3, "--out", tmp / "some")
    check([(tmp / f"some/{i:06d}.tex").read_text() for i in range(3)] == some[:3], "files hold what stdout does")


def test_end(program):
    """A sequence that has no further figure ends soon and says so; plain Venn diagrams have 1 100 or so in a part."""
    done = subprocess.run([program, "--kind", "venn", "--level", "2", "--part", "test", "--count", "20000"], capture_output=True, timeout=300)
    texts = done.stdout.split(b"\0")[:-1]
    expected = (f"generate: error: only {len(texts)} different figures were found, 20000 are needed (--skip and --count): 100000 more tries "
                "made no new one. Ask for fewer, or for more kinds and levels\n")
    check(done.returncode == 1 and done.stderr.decode() == expected, "no further figure", done.stderr)
    check(500 < len(texts) < 20000 and len(set(texts)) == len(texts), "hardly any was left, and none is twice", len(texts))


def test_starter(program, tmp):
    """Level 1 is the starter's sequence."""
    starter = tmp / "starter"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", starter, ROOT / "dev/starter/generate.c", "-lm"], check=True)
    dataset, tokenizer = tikzc.Dataset(ROOT / "dev/starter/test.bin"), tikzc.Tokenizer.load(ROOT / "dev/starter/tokenizer.safetensors")
    shipped = [tokenizer.decode(dataset[i][1]) for i in range(20)]
    check(figures(starter, "--count", 20) == shipped, "the starter's generator gives the shipped test figures")
    level = figures(program, "--level", 1, "--count", 60)
    check(all("[scale=0.5]" in t for t in level), "level 1 are the starter's figures")


def test_spelling(program):
    for level in (2, 3, 4, 5):
        for kind in KINDS:
            for text in figures(program, "--level", level, "--kind", kind, "--count", 40):
                wrong = spelling(text)
                check(not wrong, f"{kind}, level {level}: {wrong}", text)


def test_refusals(program):
    cases = [(("--level", "6"), "--level needs levels from 1 to 5, such as 3 or 1,2,2, got '6'"),
             (("--levels", "1,"), "--levels needs levels from 1 to 5, such as 3 or 1,2,2, got '1,'"),
             (("--levels", "1;2"), "--levels needs levels from 1 to 5, such as 3 or 1,2,2, got '1;2'"),
             (("--levels",), "--levels needs levels from 1 to 5, such as 3 or 1,2,2, got ''"),
             (("--part", "dev"), "--part needs train, val or test, got 'dev'"),
             (("--kind", "cat"), f"--kind needs {', '.join(KINDS[:-1])} or {KINDS[-1]}, got 'cat'"),
             (("--count", "-1"), "--count needs a number from 0 to 1000000000, got '-1'")]
    for options, sentence in cases:
        done = subprocess.run([program, *options], capture_output=True, text=True)
        check(done.returncode == 2 and done.stderr == f"generate: error: {sentence}\n" and not done.stdout, f"{options}", done.stderr)
    done = subprocess.run([program, "--levle", "1"], capture_output=True, text=True)
    check(done.returncode == 2 and done.stderr.startswith("usage: generate "), "an unknown option", done.stderr)


def test_drawing(program):
    """Figures of one TeX run look as in their own documents; different programs look different."""
    import render
    some = figures(program, "--seed", 8, "--levels", "2,3,4,5", "--count", 14)
    for kind in ("plot", "circuit", "commute"):
        some += figures(program, "--seed", 8, "--level", 3, "--kind", kind, "--count", 1)
    bent = next(f for f in figures(program, "--seed", 8, "--level", 3, "--kind", "automaton", "--count", 20) if "bend" in f)
    some.insert(1, bent)
    together = render.render(some, random.Random(1), (100, 100))
    check(len(set(together)) == len(some), "different programs look different")
    for i in (0, 1, len(some) - 3, len(some) - 2, len(some) - 1):
        check(render.render([some[i]], random.Random(1), (100, 100))[0] == together[i], "a figure looks as in its own document", some[i])


def test_run(programs, tmp):
    """All stages of runs/figures.sh; a second run makes nothing again."""
    shape = ("tiny,vision.image_size=32,vision.patch=16,vision.layers=1,vision.width=32,vision.heads=1,vision.mlp=64,connector.concat=1,"
             "lm.layers=1,lm.width=32,lm.heads=1,lm.kv_heads=1,lm.head_dim=32,lm.ffn=64,lm.max_positions=500")
    env = dict(os.environ, FIGURES_OUT=str(tmp / "run"), PROGRAMS=str(programs), PYTHON=sys.executable, FIGURES="20", CHUNK="10", HELD_OUT="6",
               SHORT="1", TRUNK="2", COOL="1", BATCH="2", TEACHER=shape, STUDENT=shape, OMP_NUM_THREADS="2", TOKENIZER_FIGURES="300")
    for stage in ("data", "teacher", "student", "alone", "score"):
        done = subprocess.run([ROOT / "runs/figures.sh", stage], env=env, capture_output=True, text=True)
        check(done.returncode == 0, f"runs/figures.sh {stage}", done.stderr[-600:])
    for name in ("train-000.bin", "train-001.bin", "val.bin", "test-5.bin", "student/student.safetensors", "alone/student.safetensors",
                 "report-5/index.html"):
        check((tmp / "run" / name).is_file(), f"it has made {name}")
    before = {p: p.stat().st_mtime_ns for p in (tmp / "run").rglob("*.*")}
    done = subprocess.run([ROOT / "runs/figures.sh", "student"], env=env, capture_output=True, text=True)
    check(done.returncode == 0 and before == {p: p.stat().st_mtime_ns for p in (tmp / "run").rglob("*.*")}, "again: nothing is made",
          done.stderr[-600:])
    done = subprocess.run([ROOT / "runs/figures.sh", "studnet"], env=env, capture_output=True, text=True)
    check(done.returncode == 2 and done.stderr == "runs/figures.sh: 'studnet' is no stage; expected data, teacher, student, alone or score\n",
          "no stage", done.stderr)


def main():
    with tempfile.TemporaryDirectory() as folder:
        tmp = pathlib.Path(folder)
        program = tmp / "generate"
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, ROOT / "dev/figures/generate.c", "-lm"],
                       check=True)
        test_sequences(program, tmp)
        test_end(program)
        test_starter(program, tmp)
        test_spelling(program)
        test_refusals(program)
        if shutil.which("pdflatex") and shutil.which("pdftoppm"):
            test_drawing(program)
            if len(sys.argv) > 1:
                test_run(pathlib.Path(sys.argv[1]).resolve(), tmp)
        else:
            print("not tested here: drawing (no pdflatex or pdftoppm; scripts/deps.sh tex)")
    end()


if __name__ == "__main__":
    main()
