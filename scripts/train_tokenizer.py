#!/usr/bin/env python3
"""Trains the starter tokenizer: byte-level BPE for TikZ in which coordinates stay single digits.

    train_tokenizer.py --texts PATH --out tokenizer.safetensors [--vocabulary 512]

PATH is a folder of .tex files or a file of NUL-terminated texts ("-": stdin).

The pre-tokenizer splits the text before merging: each digit of a coordinate and each capital letter (the node labels)
is a piece of its own, and no piece extends beyond a line. The constant parts between them, such as "\\draw[red,
dashed] (" or ") -- (", are merged into single tokens.
"""
import argparse
import pathlib
import sys

import tikzc

END = "</s>"
SINGLE = r"(?<=[(,])[0-9]|[A-Z]"  # other digits, as in scale=0.5, 1cm or red!30, may merge


def read_texts(path):
    if path != "-" and pathlib.Path(path).is_dir():
        return [p.read_text("utf-8") for p in sorted(pathlib.Path(path).glob("*.tex"))]
    data = sys.stdin.buffer.read() if path == "-" else pathlib.Path(path).read_bytes()
    return [t.decode("utf-8") for t in data.split(b"\0") if t]


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True,
                        help="folder of .tex files, or a file of NUL-terminated texts, or -")
    parser.add_argument("--out", required=True, help="safetensors file to write")
    parser.add_argument("--vocabulary", type=int, default=512, help="number of tokens, at least 257 (default 512)")
    args = parser.parse_args()
    if args.vocabulary < 257:
        parser.error("--vocabulary must be at least 257: 256 bytes and the end token")
    texts = read_texts(args.texts)
    if not texts:
        sys.exit(f"train_tokenizer.py: error: {args.texts} holds no texts; expected .tex files or "
                 f"NUL-terminated texts.")
    tokenizer = train(texts, args.vocabulary)
    lengths = [len(tokenizer.encode(t)) for t in texts[:5000]]
    if any(tokenizer.decode(tokenizer.encode(t)) != t for t in texts[:100]):
        sys.exit("train_tokenizer.py: error: decoding does not give the encoded text back.")
    tokenizer.save(args.out)
    print(f"{args.out}: {len(tokenizer.tokens)} tokens, fingerprint {tokenizer.fingerprint():016x}; "
          f"tokens a text: mean {sum(lengths) / len(lengths):.1f}, max {max(lengths)}", file=sys.stderr)


if __name__ == "__main__":
    main()
