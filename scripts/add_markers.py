#!/usr/bin/env python3
"""Adds the markers of Idefics3 and SmolVLM to a tokenizer, to train a student that can be exported as one of them.

    add_markers.py MODEL.safetensors OUT.safetensors [--prompt 'User:<image>Assistant:']
    train_distill --tokenizer OUT.safetensors --student small,connector.kind=shuffle,connector.scale_factor=3 ...

MODEL is any file with a tokenizer, such as the teacher's; OUT gets the tokenizer alone. Tokens that are missing of
<fake_token_around_image>, <global-img>, <image> and <end_of_utterance> become special ones behind the last, so that all others
keep their ids. Data must be converted with OUT (convert_dataset.py --tokenizer OUT).

The prompt says what stands around every image, besides the markers.
"""
import argparse
import os
import sys

import tikzc  # first, because it says whether a package is missing
import files
from hub import idefics3


def run(args):
    files.need("tokenizers")
    files.check_output(args.out)
    if os.path.exists(args.source) and os.path.realpath(args.out) == os.path.realpath(args.source):
        raise files.FormatError(f"OUT must not be the file of the tokenizer, {args.source}.")
    tokenizer = idefics3.add_markers(tikzc.Tokenizer.load(args.source), args.source)
    idefics3.set_prompt(tokenizer, args.prompt, args.source)
    tokenizer.save(args.out)
    print(f"{files.printable(args.out)}: {len(tokenizer.tokens)} tokens, {len(tokenizer.before_image)} before and "
          f"{len(tokenizer.after_image)} after the image", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="MODEL", help="safetensors file with a tokenizer")
    parser.add_argument("out", metavar="OUT", help="safetensors file to write")
    parser.add_argument("--prompt", metavar="TEXT", default="<image>",
                        help="the text around the image, with <image> in it (default: <image> alone)")
    args = parser.parse_args()
    try:
        run(args)
    except files.FormatError as e:
        files.fail("add_markers.py", e)
    except OSError as e:
        files.fail("add_markers.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("add_markers.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
