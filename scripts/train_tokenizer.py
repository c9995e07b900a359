#!/usr/bin/env python3
"""Trains the starter tokenizer: byte-level BPE for TikZ in which coordinates stay single digits.

    train_tokenizer.py --texts PATH --out tokenizer.safetensors [--vocabulary 512]

PATH is a folder of .tex files, with its subfolders, or a file of NUL-terminated texts ("-": stdin).

The pre-tokenizer splits the text before merging: each digit of a coordinate and each capital letter (the node labels)
is a piece of its own, and no piece extends beyond a line. The constant parts between them, such as "\\draw[red,
dashed] (" or ") -- (", are merged into single tokens.
"""
import argparse
import collections
import os
import sys

import tikzc  # first, because it says whether a package is missing
from dataset import sources, text
import files

END = "</s>"
SINGLE = r"(?<=[(,])[0-9]|[A-Z]"  # other digits, as in scale=0.5, 1cm or red!30, may merge
MAX_BYTES = 1 << 31  # of all texts; a sample of a larger data set gives the same tokenizer


def read_bytes(file, name):
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise files.FormatError(f"{name} has more than {MAX_BYTES >> 30} GB; give a sample of it.")
    return data


def read_pieces(path):
    """Yields (name, bytes) of each text."""
    if path == "-":
        data = read_bytes(sys.stdin.buffer, "stdin")
    elif os.path.isdir(path):
        for name, _, _ in sorted(sources.walk(path)):
            if name.lower().endswith(".tex"):
                name = os.path.join(path, name)
                with files.open_input(name) as f:
                    yield name, read_bytes(f, name)
        return
    else:
        files.check_input(path)
        with files.open_input(path) as f:
            data = read_bytes(f, path)
    for number, piece in enumerate(data.split(b"\0")):
        if piece:
            yield f"{'stdin' if path == '-' else path}, text {number}", piece


def read_texts(path):
    """(texts, {note: number of texts})"""
    texts, notes, left = [], collections.Counter(), MAX_BYTES
    for name, data in read_pieces(path):
        left -= len(data)
        if left < 0:
            raise files.FormatError(f"{path} has more than {MAX_BYTES >> 30} GB of texts; give a sample of it.")
        try:
            decoded, changes = text.decode(data)
        except text.TextError as e:
            reason, detail = e.args
            raise files.FormatError(f"{name}: {reason}{': ' if detail else ''}{detail}.")
        texts.append(decoded)
        notes.update(changes)
    if not texts:
        raise files.FormatError(f"{path} holds no texts; expected .tex files or NUL-terminated texts.")
    return texts, notes


def train(texts, vocabulary):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SINGLE), "isolated"),
        pre_tokenizers.Split("\n", "merged_with_previous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tikzc.Tokenizer.from_json(tokenizer.to_str(), END)


def run(args):
    files.need("tokenizers")
    files.check_output(args.out)
    if os.path.exists(args.texts) and os.path.realpath(args.out) == os.path.realpath(args.texts):
        raise files.FormatError(f"--out must not be the file of the texts, {args.texts}.")
    texts, notes = read_texts(args.texts)
    for note, n in sorted(notes.items()):
        print(f"{n} text{'s' if n > 1 else ''}: {note}", file=sys.stderr)
    tokenizer = train(texts, args.vocabulary)
    lengths = [len(tokenizer.encode(t)) for t in texts[:5000]]
    if any(tokenizer.decode(tokenizer.encode(t)) != t for t in texts[:100]):
        raise files.FormatError("Decoding does not give the encoded text back.")
    tokenizer.save(args.out)
    print(f"{files.printable(args.out)}: {len(tokenizer.tokens)} tokens, fingerprint {tokenizer.fingerprint():016x}; "
          f"tokens a text: mean {sum(lengths) / len(lengths):.1f}, max {max(lengths)}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True,
                        help="folder of .tex files, or a file of NUL-terminated texts, or -")
    parser.add_argument("--out", required=True, help="safetensors file to write")
    parser.add_argument("--vocabulary", type=int, default=512, help="number of tokens, at least 257 (default 512)")
    args = parser.parse_args()
    if not 257 <= args.vocabulary <= tikzc.MAX_VOCABULARY:
        parser.error(f"--vocabulary must be from 257 (256 bytes and the end token) to {tikzc.MAX_VOCABULARY}")
    try:
        run(args)
    except files.FormatError as e:
        files.fail("train_tokenizer.py", e)
    except OSError as e:
        files.fail("train_tokenizer.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("train_tokenizer.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
