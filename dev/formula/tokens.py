#!/usr/bin/env python3
"""Trains the tokenizer of formulas: byte-level BPE in which a command is one token.

    tokens.py --formulas LIST --out tokenizer.safetensors [--vocabulary 1000]

LIST is an output of sources.py. The pre-tokenizer cuts a normal form into words (WORDS below):

    \\frac{   \\alpha    \\left(   \\begin{pmatrix}   \\end{pmatrix}   \\\\   \\,     a command with what belongs to it
    _{1}   ^{2}   _{n}                                                    a script of one letter or digit
    _{   ^{   }{   ''    a word of a text behind a space; and every other character for itself

A word in the vocabulary is one token, every other one falls apart into characters. Every command of commands.py is in
it, seen or not, so that a rare symbol costs as much as a frequent one; the rest are the words that save the most tokens
in LIST.
The characters are those of ASCII that are printed, because a normal form has no others.
"""
import argparse
import collections
import pathlib
import re
import sys

import commands as known
import sources

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import tikzc  # noqa: E402
import files  # noqa: E402
from options import whole  # noqa: E402

END = "</s>"
ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1)))
SPACE = "\u0120"  # the space in byte-level BPE's alphabet
# The words; of the alternatives the first that fits wins. lib/regex_ascii.h must know all that is used here.
WORDS = [r"\\begin\{[a-zA-Z]+\}", r"\\end\{[a-zA-Z]+\}", r"\\left\\?[a-zA-Z]+ ", r"\\right\\?[a-zA-Z]+ ",
         r"\\left\\?[^a-zA-Z ]", r"\\right\\?[^a-zA-Z ]", r"\\middle\\?[^a-zA-Z ]",
         r"\\[a-zA-Z]+\*?[{ ]?", r"\\[^a-zA-Z]",
         r"[_^]\{[a-zA-Z0-9]\}", r"[_^]\{", r"\}\{", r"'+", r" [a-zA-Z]+", r"[a-zA-Z0-9]"]


def words_of(formula):
    """The words of more than one character that the pre-tokenizer makes of a formula."""
    return [word for word in re.findall("|".join(WORDS), formula) if len(word) > 1]


def command_words():
    """The words of all commands, which get a token each whether the texts have them or not."""
    out = []
    for names in known.SYMBOLS.values():
        out += [name + " " for name in names if name not in known.SYNONYMS and not name.startswith("\\dots")]
    out += [name + " " for name in (*known.STYLES, "\\quad", "\\qquad", "\\enspace", "\\limits", "\\nolimits", "\\not",
                                    "\\hline", "\\bmod")]
    out += [name + "{" for name in (*known.ONE, *known.TWO, *known.OPTIONAL, *known.TEXTS, "\\hspace", "\\substack")
            if name not in known.SYNONYMS]
    out += ["\\sqrt", "\\xrightarrow", "\\xleftarrow"]
    delimiters = sorted({known.SYNONYMS.get(d, d) for d in known.DELIMITERS} - {"<", ">"})
    for side in ("\\left", "\\right", "\\middle"):
        out += [side + d + (" " if d[-1].isalpha() else "") for d in delimiters
                if side != "\\middle" or d in ("|", "/", "\\|")]
    out += ["\\" + c for c in ",:;!{}|%$&_# \\"]
    for name in known.ENVIRONMENTS:
        if name not in ("split", "alignedat"):
            out += [f"\\begin{{{name}}}", f"\\end{{{name}}}"]
    out += list(known.SIZES)
    return list(dict.fromkeys(out))


def choose_words(formulas, count):
    """The `count` words beside the commands that save the most tokens; of equals the first in the alphabet."""
    found = collections.Counter(word for formula in formulas for word in words_of(formula))
    known_words = set(command_words())
    worth = {word: n * (len(word) - 1) for word, n in found.items() if word not in known_words and n > 1}
    return sorted(worth, key=lambda word: (-worth[word], word))[:count]


def train(formulas, vocabulary):
    """Makes the tokenizer; a tikzc.Tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    fixed = [END, *ALPHABET, *(word for word in command_words() if len(word) > 1)]
    if len(fixed) > vocabulary:
        raise files.FormatError(f"The characters and commands are {len(fixed)} tokens; --vocabulary must not be smaller.")
    tokens = fixed + choose_words(formulas, vocabulary - len(fixed))
    names = [token if token == END else token.replace(" ", SPACE) for token in tokens]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("|".join(WORDS)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    made = tikzc.Tokenizer.from_json(tokenizer.to_str(), END)
    made.task = "formula"
    return made


def run(args):
    files.need("tokenizers")
    files.check_output(args.out)
    formulas = [formula for _, formula in sources.read_list(args.formulas)]
    if not formulas:
        raise files.FormatError(f"{args.formulas} has no formulas.")
    tokenizer = train(formulas, args.vocabulary)
    lengths = []
    for formula in formulas[:20000]:
        ids = tokenizer.encode(formula)
        lengths.append(len(ids))
        if tokenizer.decode(ids) != formula:
            raise files.FormatError(f"Decoding does not give this formula back: {formula}")
    tokenizer.save(args.out)
    print(f"{files.printable(args.out)}: {len(tokenizer.tokens)} tokens, fingerprint {tokenizer.fingerprint():016x}; "
          f"tokens a formula: mean {sum(lengths) / len(lengths):.1f}, max {max(lengths)}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formulas", required=True, metavar="LIST", help="list of formulas, from sources.py")
    parser.add_argument("--out", required=True, help="safetensors file to write")
    parser.add_argument("--vocabulary", type=whole(1, tikzc.MAX_VOCABULARY), default=1000,
                        help="number of tokens (default 1000)")
    args = parser.parse_args()
    try:
        run(args)
    except files.FormatError as e:
        files.fail("tokens.py", e)
    except OSError as e:
        files.fail("tokens.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("tokens.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
