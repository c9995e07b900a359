#!/usr/bin/env python3
"""Compares the metrics of texts with other implementations of them, on random, real and degenerate texts.

    build/venv/bin/python test/compare_text.py TEST_TEXT_METRICS [FIGURES.jsonl...]
        TEST_TEXT_METRICS: the binary built from test/test_text_metrics.c
        FIGURES: more programs, a JSON object with a key "code" on each line

Tokens against Pygments and sacremoses, BLEU against nltk and sacrebleu, CrystalBLEU against nltk's counts without the
n-grams that Counter.most_common gives, edit distances against the plain table, the extended edit distance against
torchmetrics, means against SciPy. Formulas: what has one normal form must look the same, so TeX draws it both ways.
Needs test/requirements.txt; the drawings need pdflatex and pdftoppm, and are left out without them.
"""
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from nltk.translate.bleu_score import corpus_bleu
from nltk.util import ngrams
from pygments.lexers.markup import TexLexer
from pygments.token import Comment, Name, Text
from sacrebleu.metrics import BLEU
from sacremoses import MosesTokenizer
from scipy.stats.mstats import winsorize
from torchmetrics.functional.text.eed import _eed_function, _preprocess_en, extended_edit_distance

from check import check, end

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc  # noqa: E402

PROGRAM = sys.argv[1]
lexer, moses = TexLexer(), MosesTokenizer()
warnings.simplefilter("ignore")  # nltk says at length that a score is 0


def run(folder, *arguments):
    """What the program prints; arguments that are lists of texts become files of them."""
    given = []
    for i, argument in enumerate(arguments):
        if isinstance(argument, list):
            path = Path(folder) / f"{i}.txt"
            path.write_bytes(b"".join(text.encode() + b"\0" for text in argument))
            argument = str(path)
        given.append(argument)
    return json.loads(subprocess.run([PROGRAM, *given], check=True, stdout=subprocess.PIPE).stdout)


def near(a, b):
    return a is not None and abs(a - b) <= 1e-6 * max(1, abs(b))


# ---- texts ----

PIECES = [r"\draw", r"\node", "[red, thick]", "[a\nb]", "*", "(0,0)", "(1.5,-2)", "--", "{", "}", "$", "$$", r"\(", r"\)",
          r"\[", r"\]", "x^{2}", "_", "&", "% c\n", "%", "\\\\", r"\%", r"\ ", ";", " ", "\n", "\n\n", "\t", "\r\n", "\\",
          "\\\n", "it's", "'a'", "'", "''", "`", '"', "1,000", "a,b", "9,", ",", ".", "..", "...", "Dr. Who", "e.g. this",
          "i.e. x", "U.S. law", "U. S. A", "e. g. x", "i. e. y", "No. 5", "No. x", "X. Y", "pp. 3", "end. Then", "small. caps", "a.b.", "0. 1", "Mr x",
          "Mrs. A", "Ms ", "!?", "<a>", "|", "[", "]", "&amp;", "@", "#1", "~", "-", "=", "12", "1+2", "(a)", "/",
          "é", "ß", "Ω", "ж. д", "中文", "→", "½", "“q”", "\u00a0", "\u2028", "😀", "３", "DOTMULTI", "\x01", "s'", "5's",
          "'90s", ".'", "a.'"]


def random_texts(count, seed, pieces=PIECES, most=30):
    r = random.Random(seed)
    return ["".join(r.choice(pieces) + r.choice(["", "", " "]) for _ in range(r.randint(0, most))) for _ in range(count)]


def starter_texts():
    tokenizer = tikzc.Tokenizer.load(ROOT / "dev/starter/tokenizer.safetensors")
    data = tikzc.Dataset(ROOT / "dev/starter/test.bin")
    return [tokenizer.decode(data[i][1][:-1]) for i in range(len(data))]


def figures(paths):
    return [json.loads(line)["code"] for path in paths for line in open(path, encoding="utf-8")]


# ---- tokens ---- by the packages that DeTikZify uses

@lru_cache(None)
def tokens(text):
    out = []
    for kind, value in lexer.get_tokens(text):
        if value.strip() and kind is not Comment:
            words = any(kind is k for k in (Text, Name.Attribute, Name.Builtin))
            out += moses.tokenize(value.strip()) if words else [value.strip()]
    return tuple(out)


@lru_cache(None)
def characters(text):
    words = []
    for kind, value in lexer.get_tokens(text):
        if kind is Text:
            words += _preprocess_en(value).split()
        elif kind is not Comment:
            words += value.split()
    return " " + " ".join(words) + " "


def compare_tokens(folder, name, texts):
    different = [(text, found, expected) for text, found in zip(texts, run(folder, "--tokens", texts))
                 if found != (expected := [list(tokens(text)), characters(text)])]
    for text, found, expected in different[:2]:
        print(f"{text!r}\n  ours   {found}\n  theirs {expected}")
    check(not different, f"tokens of {name}", f"{len(different)} of {len(texts)} texts differ")


# ---- distances ----

@lru_cache(None)
def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(last + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def compare_distances(folder, pairs):
    found = run(folder, "--distances", [text for pair in pairs for text in pair])
    wrong = [(a, b, d) for (a, b), d in zip(pairs, found) if d[0] != levenshtein(a, b)]
    check(not wrong, "Levenshtein's distance", wrong[:1])
    wrong = [(a, b, d) for (a, b), d in zip(pairs, found) if not near(d[1], _eed_function(a, b))]
    check(not wrong, "the extended edit distance", wrong[:1])
    words = [tuple(" ".join(re.findall("[a-z]+", text)) for text in pair) for pair in pairs]  # all it changes: spaces around
    found = run(folder, "--distances", [f" {text} " for pair in words for text in pair])
    mean = extended_edit_distance([a for a, _ in words], [[b] for _, b in words]).item()
    check(near(np.mean([d[1] for d in found]), mean), "the mean extended edit distance", mean)


# ---- the figures ----

def bleu_without(ignored, references, hypotheses):
    """CrystalBLEU by its definition: counts of both sides without the ignored n-grams; at least 1 in each denominator."""
    matches, totals = Counter(), Counter()
    for r, h in zip(references, hypotheses):
        for n in range(1, 5):
            a, b = (Counter(g for g in ngrams(x, n) if g not in ignored) for x in (h, r))
            matches[n] += (a & b).total()
            totals[n] += max(1, a.total())
    if not all(matches[n] for n in range(1, 5)):
        return 0
    length, wanted = sum(map(len, hypotheses)), sum(map(len, references))
    brevity = min(1, np.exp(1 - wanted / length))
    return brevity * np.exp(sum(np.log(matches[n] / totals[n]) for n in range(1, 5)) / 4)


@lru_cache(None)
def extended(a, b):
    return _eed_function(a, b)


def repetition(t):
    grams = list(ngrams(t, 4))
    return 1 - len(set(grams)) / len(grams) if grams else 0


def expected_metrics(kind, pairs, ignored, normal):
    def split(text):
        return tokens(text) if kind == "program" else tuple(text.split())

    h, r = [split(a) for a, _ in pairs], [split(b) for _, b in pairs]
    edits, longest = [levenshtein(a, b) for a, b in zip(h, r)], [max(len(a), len(b)) for a, b in zip(h, r)]
    bleu = 100 * corpus_bleu([[x] for x in r], h)
    out = {"exact_match": 100 * np.mean([a == b for a, b in pairs]),
           "bleu": bleu,
           "edit_score": 100 * (1 - sum(edits) / sum(longest)) if sum(longest) else 100,
           "cer": np.mean([levenshtein(a, b) / max(len(a), len(b), 1) for a, b in pairs]),
           "length_ratio": sum(map(len, h)) / sum(map(len, r)) if sum(map(len, r)) else None,
           "repetition_rate": np.mean([repetition(x) for x in h])}
    if kind == "program":
        out["crystal_bleu"] = 100 * bleu_without(ignored, r, h)
        out["tex_edit_distance"] = np.mean([extended(characters(a), characters(b)) for a, b in pairs])
    else:
        n = [(tuple(normal[a].split()), tuple(normal[b].split())) for a, b in pairs]
        longest = sum(max(len(a), len(b)) for a, b in n)
        out["exact_match_normalised"] = 100 * np.mean([a == b for a, b in n])
        out["bleu_normalised"] = 100 * corpus_bleu([[b] for _, b in n], [a for a, _ in n])
        out["edit_score_normalised"] = 100 * (1 - sum(levenshtein(a, b) for a, b in n) / longest) if longest else 100
    if min(map(len, h)) >= 4:  # sacrebleu does not count what is too short for an order, nltk does
        words = [[" ".join(f"w{hash(w)}" for w in t) for t in side] for side in (h, r)]
        sacre = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(words[0], [words[1]])
        check(near(sacre.score, bleu) or bleu < 1e-9, "nltk and sacrebleu agree", (sacre.score, bleu))
    return out


def compare_metrics(folder, name, kind, pairs, train=()):
    counts = Counter(g for n in range(1, 5) for text in train for g in ngrams(tokens(text), n))
    ignored = dict(counts.most_common(500))
    texts = [text for pair in pairs for text in pair]
    normal = dict(zip(texts, run(folder, "--normalise", texts)))
    arguments = ["--metrics", kind, texts] + ([list(train)] if train else [])
    found = run(folder, *arguments)[0]
    half = pairs[len(pairs) // 2:]
    for i, part in [(0, pairs), (1, half)] + [(k + 2, [pair]) for k, pair in enumerate(pairs[:20])]:
        expected = expected_metrics(kind, part, ignored, normal)
        if i == 0:
            check(set(expected) == set(found), f"{name}: the metrics", sorted(set(expected) ^ set(found)))
        for key, value in expected.items():
            if value is None:
                value, defined = 1.0, any(text.split() for text, _ in part)
                if defined:
                    check(found[key][i] is None, f"{name}: {key} without references is infinite", found[key][i])
                    continue
            check(near(found[key][i], value), f"{name}: {key}, part {i}", f"{found[key][i]}, expected {value}")


# ---- formulas ----

# What has one normal form, and must look the same. The first of each line is drawn, and each other one beside it.
SAME = [
    ["x_1^2", "x^2_1", "{x}_{1}^{2}", r"x\sp2\sb1", "$x^2_1$", r"\[x_1^2\]", "{{x}}_{{1}}^{{2}}"],
    ["x'", r"x^\prime", r"x^{\prime}"], ["f''^2_a", r"f_a^{\prime\prime 2}"],
    [r"\frac12+\frac ab", r"\frac{1}{2}+{a\over b}", r"{\frac{1}{2}}+\frac {a}{ b }"],
    [r"\mathbf{x}+\mathrm{max}", r"{\bf x}+{\rm max}", r"{\mathbf x}+{\mathrm{max}}"],
    [r"k_{\mathrm{max}}^{\mathcal{L}}", r"k_{\rm max}^{\cal L}", r"k^{\cal L}_{\mathrm{m a x}}"],
    [r"a\mathsf{b}\mathit{diff}\mathtt{c}", r"a{\sf b}{\it diff}{\tt c}"],
    [r"\binom{n}{k}a", r"{n \choose k}a"], [r"\mathbf{\frac{a}{b}}", r"{\bf a \over b}"],
    [r"\frac{a+b}{c}", r"a+b \over c", r"{{a+b \over {c}}}"],
    [r"a\geq b\leq c\neq d\rightarrow e\leftarrow f", r"a\ge b\le c\ne d\to e\gets f", r"a\ge b\le c\not= d\to e\gets f"],
    [r"a\wedge b\vee c\neg d\ni e", r"a\land b\lor c\lnot d\owns e"],
    [r"\{|a|\}*\|b\|", r"\lbrace\vert a\vert\rbrace\ast\Vert b\Vert"],
    [r"\hat{\alpha}\bar{x}\sqrt{2}\sqrt[3]{x}", r"\hat\alpha\bar x\sqrt2\sqrt [3] x", r"{\hat{{\alpha}}}{\bar x}\sqrt{{2}}\sqrt[3]{x}"],
    [r"\bar{K}_a^-+{\pi}^2+{\delta}_{ab}", r"{\bar{K}}_a^{-}+\pi^{2}+{{\delta}}_{ab}"],
    [r"\sum_{i=1}^n i", r"\displaystyle\sum^n_{i=1}i", r"\sum ^ { n } _ { i = 1 } i % all"],
    [r"a\ b\,c~", "a\\\tb\\,c ~"], [r"{}^2x", "^2x"], [r"\operatorname{arg}x\overline{ab}", r"\operatorname {a r g}x\overline {ab}"],
    [r"\begin{array}{cc}a&b\\[2pt]c&d\end{array}", r"\begin {array} { c c } a & b \\[2pt] c & d \end {array}"],
    [r"\text{if }x\mbox{ a }", r"\text{if  }{x}\mbox{ a }"], [r"\overset{a}{=}\underset b x", r"\overset a = \underset{b}{x}"],
    [r"\begin{matrix}a\\b\end{matrix}^2_1", r"\begin{matrix}a\\b\end{matrix}_1^{2}"],
]
# What looks different, and must have different normal forms.
DIFFERENT = [["x^2", "x_2"], ["a{=}b", "a=b"], ["a{-}b", "a-b"], ["x^{ab}", "x^ab"], [r"x^{\frac12}", r"x^{\dfrac12}"],
             [r"\rm x", "x"], [r"a\lvert-x\rvert", "a|-x|"], ["a~b", "ab"], [r"\ \prod", r"~\prod"],
             [r"{\dot{\hat x}}^2", r"\dot{\hat x}^2"], [r"\bar{ab}", r"\bar ab"],
             [r"\frac ab{}^2", r"\frac ab^2"], [r"\phi", r"\varphi"],
             [r"\sum\limits_a", r"\sum\nolimits_a"], [r"\text{a b}", r"\text{ab}"], [r"{\bf a}b", r"{\bf ab}"],
             [r"\begin{array}{c}ab\\c\end{array}", r"\begin{array}{r}ab\\c\end{array}"], [r"a\over b", "ab"]]
DELIMITERS = [[r"\left(x\right)", "(x)"], [r"\left\{\frac ab\right.", r"\{\frac ab"], [r"\left<a\middle|b\right>", r"\langle a|b\rangle"]]


def drawings(folder, formulas):
    """Each formula as a display, drawn by TeX: arrays of pixels, all of one size."""
    pages = "".join(rf"\page{{{f}}}" + "\n" for f in formulas)
    Path(folder, "f.tex").write_text(
        "\\documentclass{article}\\usepackage{amsmath,amssymb}\\pagestyle{empty}\\pdfcompresslevel0\n"
        "\\pdfpagewidth=300pt\\pdfpageheight=80pt\\hoffset=-60pt\\voffset=-60pt\\begin{document}\n"
        "\\long\\def\\page#1{\\shipout\\vbox{\\hsize=300pt $$#1$$}}\n" + pages +
        "\\end{document}\n")
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "f.tex"], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run(["pdftoppm", "-r", "72", "-gray", "f.pdf", "p"], cwd=folder, check=True)
    images = [path.read_bytes() for path in sorted(Path(folder).glob("p-*.pgm"))]
    for path in Path(folder).glob("p-*.pgm"):
        path.unlink()
    return images


def bare(formula):
    """Without what makes it a display, and without a comment, which would end the line of TeX's macro."""
    for begin, behind in ((r"\[", r"\]"), ("$", "$")):
        if formula.startswith(begin):
            formula = formula[len(begin):-len(behind)]
    return formula.split("%")[0]


def compare_formulas(folder):
    groups = SAME + DELIMITERS
    flat = [f for group in groups + DIFFERENT for f in group]
    normal = dict(zip(flat, run(folder, "--normalise", flat)))
    for group in groups:
        check(len({normal[f] for f in group}) == 1, f"one normal form of {group}", [normal[f] for f in group])
    for group in DIFFERENT:
        check(normal[group[0]] != normal[group[1]], f"two normal forms of {group}", normal[group[0]])
    again = run(folder, "--normalise", [normal[f] for f in flat])
    check(again == [normal[f] for f in flat], "normalising twice is as once")
    if not shutil.which("pdflatex") or not shutil.which("pdftoppm"):
        print("not drawn here: pdflatex or pdftoppm is missing")
        return
    drawn = [[bare(f) for f in group] + [normal[group[0]]] for group in SAME]
    images = iter(drawings(folder, [f for group in drawn + DIFFERENT for f in group]))
    for group in drawn:
        first = next(images)
        for f in group[1:]:
            check(next(images) == first, f"{f} looks like {group[0]}")
    for a, b in DIFFERENT:
        check(next(images) != next(images), f"{a} does not look like {b}")


def compare_winsorised():
    r = random.Random(5)
    for n in (1, 2, 19, 20, 21, 40, 99):
        values = [r.choice([r.random(), r.randint(0, 3), 1e4 * r.random()]) for _ in range(n)]
        out = subprocess.run([PROGRAM, "--winsorised", "0.05", *map(repr, values)], check=True, stdout=subprocess.PIPE)
        check(near(float(out.stdout), winsorize(np.array(values, float), limits=0.05).mean()), f"winsorised mean of {n}")


def main():
    r = random.Random(1)
    starter, soup = starter_texts(), random_texts(1500, 2)
    real = figures(sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        compare_tokens(folder, f"the starter's {len(starter)} test programs", starter)
        compare_tokens(folder, "random texts", soup)
        compare_tokens(folder, "abbreviations", [f"{word.split()[0]}. {b}" for word in moses.NONBREAKING_PREFIXES
                                                 for b in ("X", "5", "x")])
        if real:
            compare_tokens(folder, f"{len(real)} figures", real)
        short = random_texts(120, 3, list("ab  .é") + ["中", "→"], 60) + random_texts(40, 4, list("abcdefghijklmnop "), 150)
        pairs = [(a, b if r.random() < 0.7 else a) for a, b in zip(short, short[1:] + short[:1])]
        compare_distances(folder, pairs + [("", ""), ("", "a"), ("a", ""), ("a", "a"), (" ", "  ")])
        programs = [(a if r.random() < 0.8 else "", b) for a, b in zip(starter[:14], starter[1:15])]
        programs += [(a, a) for a in starter[21:24]] + [("", ""), ("x", "x"), ("x", "")]
        compare_metrics(folder, "programs", "program", programs, starter[100:140])
        compare_metrics(folder, "random programs", "program", [(a, a + b) for a, b in zip(soup[:30], soup[30:60])])
        compare_metrics(folder, "empty programs", "program", [("", ""), ("", "")])
        words = random_texts(60, 6, ["a ", "b ", r"\frac ", "{ ", "} ", "^ ", "2 ", "é "], 25)
        compare_metrics(folder, "formulas", "formula", [(a, b if r.random() < 0.6 else a) for a, b in
                                                        zip(words, words[1:])] + [("", ""), ("", "x"), ("x", "")])
        compare_metrics(folder, "empty hypotheses", "formula", [("", "x y"), ("", "x")])
        compare_metrics(folder, "empty references", "formula", [("x y", ""), ("x", "")])
        compare_formulas(folder)
        compare_winsorised()
    end()


if __name__ == "__main__":
    main()
