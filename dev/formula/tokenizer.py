#!/usr/bin/env python3
"""Trains the tokenizer of formulas: byte pair encoding in which a command is one token.

    tokenizer.py --formulas LIST --out tokenizer.safetensors [--vocabulary 1000]

LIST is an output of sources.py, or any list of formulas in normal form, one a line. The pre-tokenizer cuts a normal form
into words, in which pairs may merge, and over whose ends nothing merges:

    \\frac{   \\alpha    \\left(   \\begin{pmatrix}   \\end{pmatrix}   \\hspace{   \\\\   \\,    a command with what belongs to it
    _{1}   ^{2}   _{n}                                                         a script of one letter or digit
    _{   ^{   }{   }   &   '''   and every other character                     themselves

Every command of commands.py is one token, seen or not, so that a rare symbol costs as much as a frequent one; the rest of
the vocabulary are scripts and words of texts. Any text can be encoded: what is not in the vocabulary falls apart into bytes.
"""
import argparse
import collections
import json
import pathlib
import re
import sys

import commands as known
import generate

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import tikzc  # noqa: E402
import files  # noqa: E402
from options import whole  # noqa: E402

END = "</s>"
MAX_VOCABULARY = 1000
# The words; of the alternatives the first that fits wins. Nothing here needs more than lib/regex_ascii.h has.
WORDS = [r"\\begin\{[a-zA-Z]+\}", r"\\end\{[a-zA-Z]+\}", r"\\left\\?[a-zA-Z]+ ", r"\\right\\?[a-zA-Z]+ ",
         r"\\left\\?[^a-zA-Z\s]", r"\\right\\?[^a-zA-Z\s]", r"\\[a-zA-Z]+\*?[{ ]?", r"\\[^a-zA-Z]",
         r"[_^]\{[a-zA-Z0-9]\}", r"[_^]\{", r"\}\{", r"'+", r" ?[a-z]+", r"[^a-z]"]
