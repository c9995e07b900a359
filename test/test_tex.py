#!/usr/bin/env python3
"""Tests of dev/starter/tex.py and score.py: hostile documents are given up within limits, and every mistake is a
sentence.

    test/test_tex.py

Needs Python's standard library, and pdflatex and pdftoppm for the documents (scripts/deps.sh tex).
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev" / "starter"))
from check import check, end  # noqa: E402
import tex  # noqa: E402

SCORE = ROOT / "dev" / "starter" / "score.py"
LIMITS = tex.Limits(seconds=4, wall=60)
WRITER = r"\newwrite\w\immediate\openout\w=big.txt \def\z{\immediate\write\w{" + "a" * 200 + r"}\z}\z"
MANY_FILES = (r"\newwrite\w\count9=0 \def\z{\advance\count9 by 1 \immediate\openout\w=f\the\count9 \count8=0 "
              r"\y\immediate\closeout\w\z}\def\y{\advance\count8 by 1 \immediate\write\w{" + "a" * 200 +
              r"}\ifnum\count8<9000 \expandafter\y\fi}\z")
# Compiles at once; forty forms that each draw the one before twice.
SLOW_PAGE = r"""\documentclass[tikz]{standalone}\begin{document}\setbox0\hbox{x}\immediate\pdfxform0 \count1=0
\loop\setbox0\hbox{\rlap{\pdfrefxform\pdflastxform}\pdfrefxform\pdflastxform}\immediate\pdfxform0
\advance\count1 by1 \ifnum\count1<40 \repeat\tikz\node{\pdfrefxform\pdflastxform};\end{document}"""


def article(body):
    return (r"\documentclass{article}\begin{document}" + body + r"\end{document}").encode()


def outcome(folder, action, *arguments, **changed):
    """Why the action gives up, or "done"."""
    try:
        action(*arguments, limits=LIMITS._replace(**changed))
        return "done"
    except tex.TexError as e:
        return str(e)


def compiled(folder, source, **changed):
    inside = pathlib.Path(tempfile.mkdtemp(dir=folder))
    return outcome(folder, tex.compile_document, source, inside, **changed), inside


# ---- limits ----

def test_limits(folder):
    """Each limit, with programs that do nothing but exceed it."""
    def python(program, **changed):
        return outcome(folder, tex.run, [sys.executable, "-c", program], folder, **changed)
    check("processor time" in python("while True: pass", seconds=1), "processor time")
    check("took more than 1 s" in python("import time; time.sleep(50)", wall=1), "time that passes")
    reason = outcome(folder, tex.run, ["head", "-c", "2000000", "/dev/zero"], folder, file_bytes=1 << 20)
    check("a file of more than 1 MB" in reason, "a file", reason)
    several = "import time\nfor i in range(9): open(f'f{i}', 'wb').write(bytes(1 << 20))\ntime.sleep(50)"
    check("wrote more than 4 MB" in python(several, folder_bytes=4 << 20), "all files together")
    status, _, errors = tex.run([sys.executable, "-c", "bytearray(1 << 30)"], folder, LIMITS._replace(memory=1 << 29))
    check(status == 1 and b"MemoryError" in errors.read(), "memory")
    status, _, errors = tex.run([sys.executable, "-c", "[open('f0') for i in range(99)]\n" * 2 + "x = list(map(open, "
                                 "['f0'] * 99))"], folder, LIMITS)
    check(status == 1 and b"Too many open files" in errors.read(), "open files")
    pid = folder / "pid"
    outcome(folder, tex.run, ["sh", "-c", f"sleep 99 & echo $! >{pid}; wait"], folder, wall=1)
    check(gone(int(pid.read_text())), "a child of the program is ended with it")
    outcome(folder, tex.run, ["sh", "-c", f"sleep 99 >/dev/null 2>&1 & echo $! >{pid}"], folder)
    check(gone(int(pid.read_text())), "a child that the program leaves is ended, too")


def gone(process):
    """Whether a process has ended, perhaps without its parent having noticed."""
    for _ in range(200):
        try:
            if pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_environment(folder):
    os.environ.update(SECRET="x", TEXMFOUTPUT="/tmp")
    _, output, _ = tex.run(["env"], folder, LIMITS)
    found = dict(line.split("=", 1) for line in output.read().decode().splitlines())
    check(found["HOME"] == str(folder) and found["openin_any"] == "p" and found["openout_any"] == "p" and
          found["shell_escape"] == "f" and not {"SECRET", "TEXMFOUTPUT"} & set(found), "the environment", found)


# ---- documents ----

def test_documents(folder):
    example = (ROOT / "dev" / "starter" / "example.tex").read_bytes()
    reason, inside = compiled(folder, example, seconds=20)
    check(reason == "done", "the example compiles", reason)
    pages = tex.render_pages(inside, 100, 1, 1, LIMITS).read()
    check(pages.startswith(b"P6"), "and is rendered", pages[:20])
    for what, source, expected in (
            ("a loop", article(r"\loop\iftrue\repeat"), "pdflatex took more than 2 s of processor time"),
            ("a macro that grows", article(r"\def\z#1{\z{#1#1}}\z{aaaa}"), "pdflatex: TeX capacity exceeded"),
            ("an endless file", article(WRITER), "pdflatex wrote a file of more than 8 MB"),
            ("many files", article(MANY_FILES), "pdflatex wrote more than 16 MB"),
            ("thousands of pages", article(r"\def\z{x\newpage\z}\z"), "pdflatex"),
            ("\\input{/etc/passwd}", article(r"\input{/etc/passwd}"), "pdflatex: LaTeX Error: File `/etc/passwd"),
            ("another program", article(r"\immediate\write18{touch escaped}\newread\r\openin\r=|ls \ifeof\r\else"
                                        r"\undefined\fi"), "pdflatex: the document has no page"),
            ("a file outside", article(r"\newwrite\w\immediate\openout\w=../escaped x"), "pdflatex: I can't write"),
            ("no page", article(""), "pdflatex: the document has no page"),
            ("no document", b"\0\xff\r\n", "pdflatex")):
        begin = time.monotonic()
        seconds = 2 if what in ("a loop", "thousands of pages") else LIMITS.seconds
        reason, inside = compiled(folder, source, seconds=seconds, file_bytes=8 << 20, folder_bytes=16 << 20)
        check(reason.startswith(expected), f"{what} does not compile", reason)
        check(time.monotonic() - begin < LIMITS.wall + 10, f"{what} ends in time")
        check(not list(folder.rglob("escaped*")), f"{what} leaves nothing outside")
    readers = r"\newread\r\openin\r=/etc/passwd \ifeof\r\else\read\r to\x\message{\x}\fi"
    readers += r"\message{[\pdffiledump offset 0 length 20{/etc/passwd}\pdfmdfivesum file{/etc/passwd}]}x"
    reason, inside = compiled(folder, article(readers), seconds=20)
    log = (inside / "a.log").read_text("utf-8", "replace")
    check(reason == "done" and "[]" in log and "root" not in log, "a document reads no file outside", log[-300:])


def test_rendering(folder):
    reason, inside = compiled(folder, SLOW_PAGE.encode(), seconds=20)
    check(reason == "done", "the slow page compiles", reason)
    reason = outcome(folder, tex.render_pages, inside, 100, 1, 1, seconds=2)
    check(reason == "pdftoppm took more than 2 s of processor time", "but cannot be rendered", reason)
    reason, inside = compiled(folder, article(r"\pdfpagewidth=16000pt\pdfpageheight=16000pt x"), seconds=20)
    check(reason == "done", "the large page compiles", reason)
    reason = outcome(folder, tex.render_pages, inside, 200, 1, 1, memory=1 << 28)
    check(reason.startswith("pdftoppm: "), "but cannot be rendered, though pdftoppm says it was",
          reason)
    (inside / "a.pdf").write_bytes(b"%PDF-1.5 damaged")
    check(outcome(folder, tex.render_pages, inside, 100, 1, 1).startswith("pdftoppm: "), "a damaged PDF file")


# ---- score.py ----

def scored(folder, *options, **environment):
    return subprocess.run([sys.executable, str(SCORE), str(folder), *map(str, options)], capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=300)


def refused(status, part, folder, *options, **environment):
    done = scored(folder, *options, **environment)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    check(done.returncode == status and part in last[0] and last[0].startswith("score.py: error: ") and
          "Traceback" not in done.stderr, f"'{part}'", f"status {done.returncode}, {done.stderr[-300:]}")


def test_score_refuses(folder):
    refused(1, "holds no N.ref.tex", folder)
    (folder / "0.ref.tex").write_text("x")
    refused(1, "0.tex: No such file", folder)
    os.mkfifo(folder / "0.tex")
    refused(1, "0.tex: a pipe, not a file", folder)
    (folder / "0.tex").unlink()
    (folder / "0.tex").write_text("y")
    refused(1, "pdflatex is not installed; scripts/deps.sh tex", folder, PATH="/nowhere")
    for options in (["--jobs", "0"], ["--dpi", "-5"], ["--seconds", "x"]):
        refused(2, "is not a whole number from 1", folder, *options)


def test_score(folder):
    example = (ROOT / "dev" / "starter" / "example.tex").read_text()
    programs = {"a": example, "b": example.replace("\n", "\n\n", 1), "c\n! d": "x", "d": SLOW_PAGE, "e": example}
    for name, program in programs.items():
        (folder / f"{name}.tex").write_text(program)
        (folder / f"{name}.ref.tex").write_text("x" if name == "e" else example)
    done = scored(folder, "--seconds", 6, "--jobs", 2)
    expected = ["4 of 5 programs (80.0 %) compile", "2 of 5 programs (40.0 %) draw the same image",
                "1 of 5 programs (20.0 %) are the same text"]
    check(done.stdout.splitlines() == expected, "counts", done.stdout + done.stderr)
    check(done.returncode == 0 and "1 program (first: c\\n! d.tex) does not compile: pdflatex: " in done.stderr and
          "1 program (first: d.tex) cannot be rendered: pdftoppm took more than 6 s" in done.stderr and
          "1 program (first: e.tex) has a reference that does not compile: pdflatex: " in done.stderr, "says why not",
          done.stderr)


def main():
    tests = [test_limits, test_environment, test_score_refuses]
    if shutil.which("pdflatex") and shutil.which("pdftoppm"):
        tests += [test_documents, test_rendering, test_score]
    else:
        print("not tested here: hostile documents (no pdflatex or pdftoppm; scripts/deps.sh tex)")
    for test in tests:
        with tempfile.TemporaryDirectory() as name:
            started = time.monotonic()
            test(pathlib.Path(name))
            print(f"{test.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    end()


if __name__ == "__main__":
    main()
