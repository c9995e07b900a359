#!/usr/bin/env python3
"""The data of formulas (dev/formula): normaliser, generator, lists, tokenizer, rendering.

    build/venv/bin/python test/test_formula.py [build/BF16-cpu]     about ten seconds; without TeX nothing is drawn

With a build folder its test_tokenizer encodes formulas too, and must agree. Prints a check only when it fails, and at the
end "N passed, M failed".
"""
import os
import pathlib
import random
import re
import shutil
import string
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORMULA = ROOT / "dev/formula"
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test"), str(FORMULA)]
import tikzc  # noqa: E402
import commands as known  # noqa: E402
import draw  # noqa: E402
import generate  # noqa: E402
import numpy as np  # noqa: E402
import sources  # noqa: E402
import tokens  # noqa: E402
from check import check, end  # noqa: E402
from normalise import normalise, tidy  # noqa: E402
from tree import FormulaError  # noqa: E402

# How it is written, its normal form. Both look the same as displays, where there is no third entry.
PAIRS = [
    # white space, comments, what is not printed
    (" a  +\tb % sum\n = c", "a+b=c"), (r"a \label{x y} = b \nonumber", "a=b"), (r"a\allowbreak b\nobreak", "ab"),
    # around the whole
    ("$$x$$", "x", ""), (r"\[ x \]", "x", ""), (r"\( x \)", "x", ""), (r"\displaystyle x", "x"), (r"x \\", "x", ""),
    (r"\begin{equation*} x \end{equation*}", "x", ""), (r"x \quad", "x"), (r"\quad x \,", "x", ""),
    # one spelling for each symbol
    (r"a \le b \ge c \ne d", r"a\leq b\geq c\neq d"), (r"a \not= b", r"a\neq b"), (r"f \to g \gets h", "f\\rightarrow g\\leftarrow h"),
    (r"\lbrace a \rbrace \vert \Vert", r"\{a\}|\|"), (r"a \ast b \land c \lor \lnot d", r"a*b\wedge c\vee \neg d"),
    (r"a ~ b", r"a\ b"), (r"=~-b", r"=\ {}-b"), (r"\sum ~,", r"\sum \ {},"), (r"a\thinspace b\enskip c", r"a\,b\enspace c"),
    (r"1, \dots, n", r"1,\ldots ,n"), (r"1 + \dots + n", r"1+\cdots +n"), (r"a \dotsc ; b", r"a\ldots \,;b"),
    # arguments and scripts have braces, in one order
    (r"\frac12", r"\frac{1}{2}"), (r"\sqrt2+\sqrt[3]x", r"\sqrt{2}+\sqrt[3]{x}"), ("x^2_i", "x_{i}^{2}"),
    (r"\hat x^\prime", r"\hat{x}'"), ("x^{\\prime\\prime}", "x''"), (r"x'^2", r"x^{\prime 2}"), ("x_1'", "x_{1}'"),
    (r"x\sp2\sb i", "x_{i}^{2}"), ("{}^2 x", "{}^{2}x"), ("^2 x", "{}^{2}x"), (r"\root n \of x", r"\sqrt[n]{x}"),
    # braces that change nothing
    ("{x}^{2}", "x^{2}"), ("{ab}+c", "ab+c"), ("{a+b}", "a+b"), (r"{\frac{a}{b}}", r"\frac{a}{b}"), ("x^{{a+b}}", "x^{a+b}"),
    ("a{}b", "ab"), (r"\frac{{-a}}{b}", r"\frac{-a}{b}"),
    # braces that change something
    ("1{,}000", "1{,}000"), ("{ab}^2", "{ab}^{2}"), ("a{-b}", "a{-b}"), (r"\sin{(x)}", r"\sin {(x)}"), ("{}-1", "{}-1"),
    (r"{a}/{\Delta b}", r"a/{\Delta b}"), (r"{\displaystyle a}b", r"ab", ""),
    # fractions and fonts of plain TeX
    (r"{a \over b}", r"\frac{a}{b}"), (r"{n \choose k}", r"\binom{n}{k}"), (r"a+{b \atop c}", r"a+\genfrac{}{}{0pt}{}{b}{c}"),
    (r"{\bf x} + {\cal L}_i", r"\mathbf{x}+\mathcal{L}_{i}"), (r"{\rm a \over b}", r"\frac{\mathrm{a}}{\mathrm{b}}"),
    (r"{\it a \bf b}", r"\mathit{a}\mathbf{b}"), (r"x_{\rm max}", r"x_{\mathrm{max}}"),
    # names of operators, limits, styles
    (r"\operatorname{sin} x", r"\sin x"), (r"\operatorname{l n} x", r"\ln x"), (r"\operatorname{max}_x", r"\max \nolimits _{x}"),
    (r"\operatorname*{max}_x", r"\max _{x}"), (r"\mathop{\rm Tr} x", r"\operatorname{Tr}x"),
    (r"\mathop{\rm Tr}_a x", r"\operatorname*{Tr}_{a}x"), (r"\mathop{\rm Tr}\nolimits_a x", r"\operatorname{Tr}_{a}x"),
    (r"\sum\limits_i a + \int\nolimits_0 b", r"\sum _{i}a+\int _{0}b"), (r"\int\limits_0", r"\int \limits _{0}"),
    (r"\dfrac{a}{b}+\tfrac{a}{b}", r"\frac{a}{b}+\tfrac{a}{b}"),
    # delimiters
    (r"\left< a \right>", r"\left\langle a\right\rangle "), (r"\left\lbrack a \right\rbrack", r"\left[a\right]"),
    (r"\left\lvert a \middle\vert b \right\rvert", r"\left|a\middle|b\right|"), (r"\big{(} a \Bigr)", r"\big(a\Bigr)"),
    # texts
    (r"a \mbox{ if } b", r"a\text{ if }b"), (r"a_{\mbox{x}}", r"a_{\mbox{x}}"), (r"\textrm{a  b}", r"\text{a b}"),
    (r"\text{for $x \le 1$}", r"\text{for $x\leq 1$}"), (r"\hbox{\rm a\ b}", r"\text{a~b}"),
    # lengths
    (r"a \hspace{1em} b \hskip 2em c", r"a\quad b\qquad c"), (r"a \hspace{ 0.50cm } b", r"a\hspace{0.5cm}b"),
    (r"a \mkern 3.0mu b", r"a\mkern3mu b"),
    # environments
    (r"\begin{array} {c c} a & b \cr c & d \\ \end{array}", r"\begin{array}{cc}a&b\\c&d\end{array}"),
    (r"\begin{aligned} a &= b \\ &= c \\ \end{aligned}", r"\begin{aligned}a&=b\\&=c\end{aligned}"),
    (r"\begin{split} a &= b \end{split}", r"\begin{aligned}a&=b\end{aligned}", ""),
    (r"\begin{align*} a &= b \end{align*}", r"\begin{aligned}a&=b\end{aligned}", ""),
    (r"\begin{pmatrix} a \\ {[}b] \end{pmatrix}", r"\begin{pmatrix}a\\{[}b]\end{pmatrix}"),
    (r"\begin{matrix} a \\[ 2pt ] b \end{matrix}", r"\begin{matrix}a\\[2pt]b\end{matrix}"),
    (r"\sum_{\substack{a \\ b}}", r"\sum _{\substack{a\\b}}"),
]
REFUSED = [("{a", "braces"), ("a}", "braces"), (r"\left( a", "cut off"), (r"a \right)", r"\right without its partner or place"),
           (r"\foo a", "unknown command"), ("a^b^c", "double script"), (r"\frac{a}", "argument missing"), ("", "empty"),
           (r"\,\quad", "empty"), ("a & b", "& without its partner or place"), (r"\begin{foo} a \end{foo}", "unknown environment"),
           ("é", "character beyond ASCII"), ("a # b", "character"), (r"\hspace{a}", "length"), (r"\left a", "delimiter"),
           ("{" * 60 + "x" + "}" * 60, "nested too deeply"), (r"\text{\foo}", "text with a command"),
           (r"a \over b \over c", "two of \\over in one group"), (r"\begin{array}{cp{1cm}} a \end{array}", "columns of an array"),
           ("\\input{/etc/passwd}", "unknown command"), ("\\", "empty"), ("a^", "argument missing"), ("$a$b$", "character")]


def reason(text, **more):
    try:
        return "accepted: " + normalise(text, **more)
    except FormulaError as e:
        return e.reason


def test_rules():
    for written, expected, *_ in PAIRS:
        found = reason(written)
        check(found == "accepted: " + expected, f"normal form of {written!r}", found)
        check(reason(expected) == "accepted: " + expected, f"the normal form of {expected!r} is itself", reason(expected))
    for text, expected in REFUSED:
        check(reason(text) == expected, f"{text!r} is refused", reason(text))
    check(reason(r"\iiiint a", katex=True) == "not in KaTeX" and reason(r"\frac{a}{b}", katex=True).startswith("acc"), "KaTeX")
    check(tidy(r"\alpha x+\beta +\text{a \% b}\gamma ") == r"\alpha x+\beta+\text{a \% b}\gamma", "tidy",
          tidy(r"\alpha x+\beta +\text{a \% b}\gamma "))
    for i in range(300):
        formula = generate.formula(7, 2000 + i)
        check(normalise(tidy(formula)) == formula, "a tidy formula has the same normal form", formula)


def soup(rng):
    pool = (*string.ascii_letters[:6], *"123+-=()[],;'/|<>^_{}{}&~ %", *rng.sample(sorted(known.CLASS), 8),
            *rng.sample(sorted(known.ONE), 4), *known.TWO, *known.OPTIONAL, *known.DECLARATIONS, *known.STYLES, *known.SPACES,
            "\\left(", "\\right)", "\\left.", "\\right|", "\\big", "\\over", "\\choose", "\\limits", "\\nolimits", "\\\\", "\\dots",
            "\\begin{matrix}", "\\end{matrix}", "\\begin{aligned}", "\\end{aligned}", "\\text{a $b$}", "\\mbox{ c}", "\\not", "{}",
            "^{2}", "_{i}", "{a", "b}", "\\hspace{1em}", "\\operatorname{max}", "\\mathop{\\rm Tr}", "\\ ", "\\prime")
    return " ".join(rng.choice(pool) for _ in range(rng.randint(1, 9)))


def worse(rng, formula):
    """The formula in another spelling."""
    out = ""
    for word in re.findall(r"\\[A-Za-z]+\*?\{[a-z]+\*?\}|\\[A-Za-z]+ ?|\\.|\s|.", formula):
        if word in ("\\leq ", "\\geq ", "\\neq ") and rng.random() < 0.5:
            word = word[:3] + " "
        elif len(word) == 1 and word in "+=" and rng.random() < 0.5:
            word = f" {word}\n"
        out += word
    return out


def test_soup():
    rng, accepted = random.Random(3), 0
    for _ in range(2500):
        text = soup(rng)
        try:
            once = normalise(text)
        except FormulaError:
            continue
        accepted += 1
        twice = reason(once)
        check(twice == "accepted: " + once, f"normalising {text!r} twice", f"{once!r}, then {twice!r}")
    check(accepted > 150, "some of the soup is accepted", accepted)
    for i in range(300):
        formula = generate.formula(8, 2000 + i)
        if "\\text" not in formula:
            check(reason(worse(rng, formula)) == "accepted: " + formula, "another spelling of a generated formula", formula)


def test_generator():
    start = len(generate.START)
    first = list(generate.formulas(1, start + 400))
    check(first == [generate.formula(1, i) for i in range(start + 400)], "formula i depends on the seed and on i alone")
    check(first[:100] == list(generate.formulas(2, 100)) and first[start:] != [generate.formula(2, i) for i in range(start, start + 400)],
          "single symbols first, then what the seed says")
    everything = " ".join(first) + " "
    lacking = [name for names in known.SYMBOLS.values() for name in names if not name.startswith("\\dots")
               and name not in known.SYNONYMS and name + " " not in everything]
    check(not lacking, "every symbol is generated", lacking)
    wanted = ("\\begin{cases}", "\\begin{pmatrix}", "\\begin{array}", "\\cfrac{", "\\xrightarrow{", "\\underbrace{")
    check(all(word in everything for word in wanted), "every kind is generated", [w for w in wanted if w not in everything])
    known_bad = [f for f in first if reason(f) != "accepted: " + f]
    check(not known_bad, "generated formulas are in normal form", known_bad[:3])
    out = subprocess.run([sys.executable, FORMULA / "generate.py", "--count", "50"], capture_output=True, text=True).stdout
    check(out.splitlines() == first[:50], "generate.py prints them")


def make_lists(folder):
    """Lists as sources.py reads them. The formulas of im2latex-validate are also in another list, in another spelling."""
    folder.mkdir()
    rng, validate = random.Random(5), [generate.formula(11, i) for i in range(2000, 3100)]
    other = [generate.formula(12, i) for i in range(2000, 2400)]
    spaced = [" ".join(formula) if "\\" not in formula else formula for formula in validate]
    (folder / "im2latex-validate.txt").write_text("\n".join(validate) + "\n")
    disguised = [formula + "\\," if rng.random() < 0.5 else "{" + formula + "}" for formula in spaced[:700]]
    (folder / "school.txt").write_text("\n".join(disguised + other + ["\\foo"]) + "\n")
    return set(validate)


def run(program, *options):
    return subprocess.run([sys.executable, FORMULA / program, *map(str, options)], capture_output=True, text=True)


def test_lists(tmp):
    make_lists(tmp / "lists")
    command = ("sources.py", "--data", tmp / "lists", "--out", tmp / "train.txt", "--val-out", tmp / "val.txt")
    done = run(*command, "--generated", 1600)
    check(done.returncode == 0, "sources.py", done.stderr)
    training, validation = sources.read_list(tmp / "train.txt"), sources.read_list(tmp / "val.txt")
    check(len(validation) == sources.VALIDATION + sources.SPARE, "as many for validation as there should be", len(validation))
    held_out = {sources.look_of(f) for _, f in validation}
    check(not [f for _, f in training if sources.look_of(f) in held_out], "no formula for validation is trained on")
    check(len(training) > 1000 and "school: 1 dropped: unknown command" in done.stderr, "the others are", done.stderr)
    before = (tmp / "train.txt").read_bytes(), (tmp / "val.txt").read_bytes()
    run(*command, "--generated", 1600)
    check(before == ((tmp / "train.txt").read_bytes(), (tmp / "val.txt").read_bytes()), "again the same")
    check(run("sources.py", "--data", tmp, "--out", tmp / "x", "--val-out", tmp / "y").returncode == 1, "no lists: status 1")


def c_encode(program, path, texts, tmp):
    """The ids that lib/tokenizer_encode.h gives."""
    data = b"".join(struct.pack("<II", 1, len(t)) + t.encode() for t in texts)
    (tmp / "cases").write_bytes(data)
    subprocess.run([program, "--cases", path, tmp / "cases", tmp / "ids"], check=True, stdin=subprocess.DEVNULL)
    data, at, out = (tmp / "ids").read_bytes(), 0, []
    for _ in texts:
        (n,) = struct.unpack_from("<i", data, at)
        if n < 0:
            return data[at + 8:].decode()
        out.append(list(struct.unpack_from(f"<{n}i", data, at + 4)))
        at += 4 + 4 * n
    return out


def test_tokenizer(tmp, program):
    done = run("tokens.py", "--formulas", tmp / "train.txt", "--out", tmp / "tokenizer.safetensors")
    check(done.returncode == 0, "tokens.py", done.stderr)
    tokenizer = tikzc.Tokenizer.load(tmp / "tokenizer.safetensors")
    check(800 < len(tokenizer.tokens) <= 1000, "at most 1000 tokens", len(tokenizer.tokens))
    texts = [generate.formula(21, i) for i in range(1500)] + ["", " ", "a b  c", string.printable[:94], "\\", "\\\\alpha", "^{",
                                                             "\\leftarrow\\left(\\left\\{\\left\\langle x", "\\text{ if it is}"]
    wrong = [t for t in texts if tokenizer.decode(tokenizer.encode(t)) != t]
    check(not wrong, "decoding gives the text back", wrong[:3])
    whole = [w for w in tokens.command_words() if len(tokenizer.encode(w)) != 2]
    check(not whole, "each command is one token", whole)
    check(max(len(tokenizer.encode(f"{name} ")) for name in known.SYMBOLS["rel"] if name not in known.SYNONYMS) == 2, "symbols")
    again = tokens.train([f for _, f in sources.read_list(tmp / "train.txt")], 1000)
    check(again.fingerprint() == tokenizer.fingerprint(), "the same list gives the same tokenizer")
    if program:
        found = c_encode(program, tmp / "tokenizer.safetensors", texts, tmp)
        expected = [tokenizer.encode(t)[:-1] for t in texts]
        check(found == expected, "the encoder in C agrees", found if isinstance(found, str) else
              next(((t, a, b) for t, a, b in zip(texts, found, expected) if a != b), ""))
    few = run("tokens.py", "--formulas", tmp / "train.txt", "--out", tmp / "few", "--vocabulary", 100)
    check(few.returncode == 1 and "must not be smaller" in few.stderr, "too small a vocabulary", few.stderr)


def test_pictures():
    """The pairs of the table look the same before and after; what TeX refuses does no harm to its neighbours."""
    pairs = [pair for pair in PAIRS if len(pair) == 2]
    formulas = {2 * i + k: draw.Formula(pair[k]) for i, pair in enumerate(pairs) for k in (0, 1)}
    formulas |= {1001: draw.Formula(r"\undefined x"), 1002: draw.Formula(r"\hspace{900em}x"), 1003: draw.Formula(r"\phantom{x}"), 1004: draw.Formula("x")}
    images, dropped = draw.draw(formulas, draw.Look(), lambda k: 150, 64)
    expected = {1001: "TeX: Undefined control sequence", 1002: "too large", 1003: "nothing to see"}
    check(dropped == expected, "what is dropped, and why", dropped)
    check(1004 in images, "what stands behind an error is drawn")
    for i, (written, normal) in enumerate(pairs):
        same = 2 * i in images and 2 * i + 1 in images and np.array_equal(images[2 * i], images[2 * i + 1])
        check(same, f"{written!r} and {normal!r} look the same")


    once, tried = draw.draw_once, []

    def fail_at_two(formulas, *more):
        tried.append(len(formulas))
        if 2 in formulas:
            raise draw.tex.TexError("no")
        return {n: np.zeros((1, 1)) for n in formulas}, {}
    draw.draw_once = fail_at_two
    images, dropped = draw.draw({i: draw.Formula("x") for i in range(8)}, draw.Look(), lambda k: 70)
    draw.draw_once = once
    check(set(images) == {0, 1, 3, 4, 5, 6, 7} and dropped == {2: "no"} and len(tried) == 7, "a run that fails is halved", tried)
    if draw.has_font("times"):
        _, dropped = draw.draw({0: draw.Formula("\\boldsymbol{x}")}, draw.Look("times"), lambda k: 70)
        check(dropped == {0: "not in this font"}, "mathptmx has no bold letters", dropped)


def test_rendering(tmp):
    formulas = [generate.formula(31, i) for i in range(2000, 2020)] + ["\\jmath ", "\\undefined x"]
    sources.write_list(tmp / "few.txt", [("DT"[i % 2], f) for i, f in enumerate(formulas)])
    command = ("render.py", "--formulas", tmp / "few.txt", "--fonts", "cm,times", "--batch", 11)
    first = run(*command, "--out", tmp / "one", "--jobs", 1)
    check(first.returncode == 0 and "dropped 1: TeX: Undefined control sequence" in first.stderr, "render.py", first.stderr)
    (tmp / "two").mkdir()
    for name in ("manifest.json", "part-000001"):  # as if interrupted
        shutil.copy(tmp / "one" / name, tmp / "two" / name)
    second = run(*command, "--out", tmp / "two", "--jobs", 2)
    same = all((tmp / "one" / n).read_bytes() == (tmp / "two" / n).read_bytes() for n in ("part-000000", "part-000001"))
    check(second.returncode == 0 and same, "the same bytes, resumed and with two processes", second.stderr)
    check(run(*command, "--out", tmp / "one", "--seed", 2).returncode == 1, "parts of another seed are not mixed in")
    pack = ("pack.py", "--tokenizer", tmp / "tokenizer.safetensors", "--out", tmp / "out.bin", "--parts", tmp / "two")
    done = run(*pack)
    check(done.returncode == 0, "pack.py", done.stderr)
    dataset, tokenizer = tikzc.Dataset(tmp / "out.bin"), tikzc.Tokenizer.load(tmp / "tokenizer.safetensors")
    texts = [tokenizer.decode(dataset[i][1]) for i in range(len(dataset))]
    check(texts == formulas[:-1], "the dataset has the formulas in their order", texts)
    check(all(dataset[i][0].startswith(b"\x89PNG") for i in range(len(dataset))), "and their images")
    os.unlink(tmp / "two/part-000001")
    check("1 of 2 parts" in run(*pack).stderr, "a dataset of some of the parts is refused")
    (tmp / "two/manifest.json").write_text("{")
    check("manifest.json is damaged" in run(*pack).stderr, "a damaged manifest is refused")


def test_recipe(tmp, programs):
    """runs/formula.sh with a few formulas and steps."""
    out = tmp / "recipe"
    out.mkdir()
    short = [("D", f"x_{{{i}}}") for i in range(8)]
    for name, formulas in (("val", short[:4]), ("train", short + [("D", generate.formula(41, i)) for i in range(2000, 2030)])):
        sources.write_list(out / f"{name}.txt", formulas)
    shutil.copy(tmp / "tokenizer.safetensors", out)
    steps = dict.fromkeys(("SHORT", "MIDDLE", "TRUNK", "COOL", "BATCH"), "2")

    def recipe(*stage):
        return subprocess.run([FORMULA.parents[1] / "runs/formula.sh", tmp, *stage], capture_output=True, text=True, env=os.environ | steps | {
            "FORMULA_OUT": str(out), "PYTHON": sys.executable, "PROGRAMS": str(programs), "FORMULAS": "30", "VALIDATION": "4"})
    done = recipe()
    check(done.returncode == 0, "the recipe", done.stdout[-300:] + done.stderr[-300:])
    if done.returncode:
        return
    names = [f"{model}{part}" for model in ("teacher", "student") for part in ("-short", "-middle", "-trunk", "")]
    missing = [name for name in names if not (out / name / "student.safetensors").exists()]
    check(not missing and (out / "report/index.html").exists(), "the recipe makes the models and the report", missing)
    written = {name: (out / name / "log.jsonl").stat().st_mtime_ns for name in names}
    check(recipe("alone").returncode == 0 and (out / "alone/student.safetensors").exists(), "a student without a teacher")
    same = all((out / name / "log.jsonl").stat().st_mtime_ns == written[name] for name in names)
    check(same, "what is complete is not trained again")
    check(recipe("nothing").returncode == 2, "a stage that does not exist")


def main():
    program = pathlib.Path(sys.argv[1], "test_tokenizer").resolve() if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        tmp = pathlib.Path(folder)
        test_rules()
        test_soup()
        test_generator()
        test_lists(tmp)
        test_tokenizer(tmp, program)
        if shutil.which("pdflatex") and shutil.which("pdftoppm"):
            test_pictures()
            test_rendering(tmp)
            if len(sys.argv) > 1:
                test_recipe(tmp, pathlib.Path(sys.argv[1]).resolve())
        else:
            print("note: without TeX and Poppler nothing is drawn")
    end()


if __name__ == "__main__":
    main()
