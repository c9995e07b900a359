#!/usr/bin/env python3
"""Makes formulas of the kinds that lists of real ones lack: matrices, cases, long fractions, single symbols, every symbol
and command of commands.py.

    generate.py [--seed S] [--count N] >formulas    one a line, in normal form; the same arguments give the same lines

Formula i depends on the seed and on i alone. The first formulas are the single symbols, letters and
digits, then each symbol between two letters.
"""
import argparse
import pathlib
import random
import string
import sys

import commands as known
from normalise import normalise

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from options import whole  # noqa: E402

GREEK = known.words("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi "
                    "omega varepsilon varphi vartheta Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega")
# Symbols that alone look like others; between letters their spaces tell them apart.
ALIKE = known.words("And impliedby iff implies backslash bot cdotp colon ldotp mid lvert rvert parallel lVert rVert lhd "
                    "rhd unlhd unrhd bigtriangleup")
SYMBOLS = [name for names in known.SYMBOLS.values() for name in names if not name.startswith("\\dots")]
SINGLE = [name for name in SYMBOLS if name not in ALIKE]
SINGLE += list(string.ascii_letters + string.digits) + ["\\{", "\\}", "\\|", "\\%", "\\$", "\\&", "\\_", "\\#"]
SINGLE += list("+-*/=<>()[]|.,;:!?'")
SINGLE += [f"\\{alphabet}{{{letter}}}" for alphabet, letters in (
    ("mathbb", string.ascii_uppercase), ("mathcal", string.ascii_uppercase), ("mathscr", string.ascii_uppercase),
    ("mathfrak", string.ascii_letters), ("mathbf", string.ascii_letters + string.digits), ("mathsf", string.ascii_letters),
    ("mathtt", string.ascii_letters), ("mathrm", string.ascii_letters), ("mathit", string.ascii_letters))
    for letter in letters]
START = SINGLE + [f"{a}{name} {b}" for name, a, b in zip(SYMBOLS, "abcxyzpqr" * 100, "ijkmnstuvw" * 100)]
RARE = [name for kind in ("ord", "bin", "rel", "op") for name in known.SYMBOLS[kind] if name not in known.SYNONYMS]
PAIRS = [("(", ")"), ("[", "]"), ("\\{", "\\}"), ("|", "|"), ("\\|", "\\|"), ("\\langle", "\\rangle"),
         ("\\lfloor", "\\rfloor"), ("\\lceil", "\\rceil"), ("[", ")"), ("(", "]"), (".", "|"), (".", "\\}"), ("\\{", ".")]
WORDS = ["if", "otherwise", "and", "for all", "where", "else", "if and only if", "for some", "such that", "or", "with",
         "as", "when", "then", "odd", "even"]


class Maker:
    """Draws the parts of one formula. depth: how much deeper fractions and brackets may still nest."""

    def __init__(self, rng):
        self.rng = rng

    def pick(self, choices):
        return self.rng.choice(choices)

    def letter(self):
        r = self.rng.random()
        if r < 0.6:
            return self.pick(string.ascii_letters)
        if r < 0.85:
            return self.pick(GREEK) + " "
        if r < 0.95:
            alphabet = self.pick(("mathbf", "mathcal", "mathbb", "mathrm", "boldsymbol"))
            return f"\\{alphabet}{{{self.pick(string.ascii_uppercase)}}}"
        return self.pick(known.SYMBOLS["ord"]) + " "

    def number(self):
        r = self.rng.random()
        if r < 0.6:
            return str(self.rng.randint(0, 9))
        if r < 0.85:
            return str(self.rng.randint(10, 9999))
        return f"{self.rng.randint(0, 99)}.{self.rng.randint(0, 999)}"

    def atom(self, depth):
        r = self.rng.random()
        base = self.number() if r < 0.2 else self.letter()
        if r > 0.9:
            base = f"{self.pick(known.ACCENTS)}{{{self.letter()}}}"
        if r >= 0.2 and self.rng.random() < 0.25:
            base += f"_{{{self.short()}}}"
        if self.rng.random() < 0.2:
            base += self.pick(("'", "^{2}", f"^{{{self.short()}}}")) if r >= 0.2 else f"^{{{self.short()}}}"
        if depth and self.rng.random() < 0.12:
            base = self.nested(depth - 1)
        return base

    def short(self):
        return self.pick((self.number, self.letter, lambda: f"{self.letter()}{self.pick('+-')}1",
                          lambda: f"{self.letter()},{self.letter()}", lambda: f"{self.letter()}{self.letter()}"))()

    def nested(self, depth):
        return self.pick((self.fraction, self.root, self.brackets, self.function, self.operator))(depth)

    def fraction(self, depth):
        return f"\\{self.pick(('frac', 'frac', 'frac', 'binom'))}{{{self.sum(depth)}}}{{{self.sum(depth)}}}"

    def root(self, depth):
        degree = self.pick(("", "", "", "[3]", "[n]"))
        return f"\\sqrt{degree}{{{self.sum(depth)}}}"

    def brackets(self, depth):
        left, right = self.pick(PAIRS)
        return f"\\left{left} {self.sum(depth)}\\right{right} "

    def function(self, depth):
        return f"{self.pick(tuple(known.NAMED.values()))} {self.pick((f'({self.sum(depth)})', self.letter()))}"

    def operator(self, depth):
        name = self.pick([n for n in known.SYMBOLS["op"] if n[1:] not in known.NAMED])
        low, high = f"_{{{self.short()}}}", f"^{{{self.short()}}}"
        return name + self.pick(("", low, high, low + high)) + " " + self.atom(depth)

    def sum(self, depth, terms=3):
        out = self.pick(("", "", "", "-")) + self.atom(depth)
        for _ in range(self.rng.randint(0, terms)):
            out += self.pick(("+", "-", "+", "-", "", "", "\\cdot ", "\\times ", ",")) + self.atom(depth)
        return out

    # ---- kinds of formulas ----

    def matrix(self):
        kind = self.pick(("matrix", "pmatrix", "bmatrix", "vmatrix", "Vmatrix", "Bmatrix", "smallmatrix", "array", "array"))
        rows, columns = self.rng.randint(1, 5), self.rng.randint(1, 5)
        cell = self.pick((self.number, self.letter, lambda: self.atom(0), lambda: self.sum(0, 1),
                          lambda: self.pick(("0", "1", "-1", "\\cdots ", "\\vdots ", "\\ddots "))))
        body = "\\\\".join("&".join(cell() for _ in range(columns)) for _ in range(rows))
        if kind != "array":
            out = f"\\begin{{{kind}}}{body}\\end{{{kind}}}"
            return f"\\left({out}\\right)" if kind == "smallmatrix" else out
        spec = [self.pick("lccr")] * columns if self.rng.random() < 0.7 else [self.pick("lcr") for _ in range(columns)]
        if columns > 1 and self.rng.random() < 0.25:
            spec.insert(columns - 1, "|")
        left, right = self.pick(PAIRS[:6] + [(".", ".")])
        return f"\\left{left} \\begin{{array}}{{{''.join(spec)}}}{body}\\end{{array}}\\right{right} "

    def matrix_in_formula(self):
        return self.pick((self.matrix(), f"{self.letter()}={self.matrix()}", f"{self.matrix()}{self.matrix()}",
                          f"{self.matrix()}^{{{self.pick(('T', '-1', '2'))}}}={self.matrix()}",
                          f"\\det {self.matrix()}={self.sum(1)}"))

    def cases(self):
        condition = self.pick((lambda: f"\\text{{if }}{self.relation(0)}", lambda: self.relation(0),
                               lambda: f"\\text{{{self.pick(WORDS)}}}", lambda: f"{self.letter()}\\in {self.letter()}"))
        comma = self.pick((",", ",", ""))
        rows = "\\\\".join(f"{self.sum(1)}{comma}&{condition()}" for _ in range(self.rng.randint(2, 4)))
        return f"{self.letter()}({self.letter()})=\\begin{{cases}}{rows}\\end{{cases}}"

    def aligned(self):
        rows = "\\\\".join(f"{self.sum(1) if i == 0 else ''}&={self.sum(1)}" for i in range(self.rng.randint(2, 4)))
        return f"\\begin{{aligned}}{rows}\\end{{aligned}}"

    def relation(self, depth):
        sign = self.pick(("=", "<", ">", *(name + " " for name in known.SYMBOLS["rel"][:12])))
        return f"{self.sum(depth)}{sign}{self.sum(depth)}"

    def long_fraction(self):
        return f"{self.letter()}=\\frac{{{self.sum(2, 7)}}}{{{self.sum(2, 7)}}}"

    def continued_fraction(self):
        levels = self.rng.randint(1, 4)
        name = self.pick(("frac", "cfrac"))
        parts = [f"{self.atom(0)}+\\{name}{{{self.atom(0)}}}{{" for _ in range(levels)]
        return "".join(parts) + self.atom(0) + "}" * levels

    def rare(self):
        """A rare symbol where it belongs: beside others."""
        name = self.pick(RARE)
        kind = known.CLASS[name]
        if kind == "ord":
            return self.pick((f"{name} {self.pick('=+')}{self.letter()}", f"{self.letter()}_{{{name} }}={self.sum(0)}",
                              f"({name} ,{self.letter()})", f"{self.letter()}{name} "))
        if kind == "op":
            return f"{name} _{{{self.short()}}}{self.sum(1)}"
        return f"{self.sum(0, 1)}{name} {self.sum(0, 1)}"

    def decorated(self):
        """Everything with an argument that is rare: arrows with text, braces above and below, stacked symbols."""
        inner = self.sum(0)
        return self.pick((f"{self.pick(known.LINES)}{{{inner}}}={self.sum(0)}",
                          f"\\underbrace{{{inner}}}_{{{self.short()}}}", f"\\overbrace{{{inner}}}^{{{self.short()}}}",
                          f"{self.letter()}\\xrightarrow{{{self.short()}}}{self.letter()}",
                          f"{self.letter()}\\xleftarrow[{self.letter()}]{{{self.short()}}}{self.letter()}",
                          f"{self.letter()}\\overset{{{self.short()}}}{{=}}{inner}",
                          f"{self.letter()}\\stackrel{{{self.short()}}}{{\\rightarrow }}{inner}",
                          f"\\underset{{{self.short()}}}{{\\operatorname{{argmin}}}}{inner}", f"\\boxed{{{inner}}}",
                          f"\\sum_{{\\substack{{{self.short()}\\\\{self.short()}}}}}{inner}",
                          f"{self.letter()}\\equiv {self.number()}\\pmod{{{self.letter()}}}",
                          f"\\bigl({inner}\\bigr)", f"\\Bigl[{inner}\\Bigr]", f"\\biggl\\{{{inner}\\biggr\\}}",
                          f"{self.pick(known.ACCENTS)}{{{self.letter()}}}={inner}"))

    def any(self):
        kinds = ((self.matrix_in_formula, 5), (self.cases, 3), (self.aligned, 1), (self.long_fraction, 3),
                 (self.continued_fraction, 1), (self.rare, 5), (self.decorated, 4), (self.number, 1),
                 (lambda: self.atom(1), 2), (lambda: self.relation(2), 2))
        return self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()


def formula(seed, i):
    """The i-th formula, normalised."""
    if i < len(START):
        return normalise(START[i])
    return normalise(Maker(random.Random(f"{seed} {i}")).any())


def formulas(seed, count):
    return (formula(seed, i) for i in range(count))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=whole(0, 2**63), default=1, help="which sequence of formulas (default 1)")
    parser.add_argument("--count", type=whole(1, 10**8), default=1000, help="how many (default 1000)")
    args = parser.parse_args()
    for line in formulas(args.seed, args.count):
        print(line)


if __name__ == "__main__":
    main()
