#!/usr/bin/env python3
"""Makes a tikz.c dataset of the parts that render.py has drawn.

    pack.py --parts FOLDER --tokenizer FILE.safetensors --out OUT.bin [--count N] [--max-tokens N]
"""
import argparse
import collections
import os
import pathlib
import re
import sys

import render

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import tikzc  # noqa: E402
import files  # noqa: E402
from options import whole  # noqa: E402


def part_names(folder):
    """The parts in their order; raises FormatError if some are missing."""
    manifest = render.read_manifest(folder)
    expected = -(-manifest["formulas"] // manifest["batch"])
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"part-\d{6,}", name))
    if len(names) != expected:
        raise files.FormatError(f"{folder} has {len(names)} of {expected} parts; run render.py to its end first.")
    return [os.path.join(folder, name) for name in names]


def pack(args):
    files.check_output(args.out)
    files.need("tokenizers")
    tokenizer = tikzc.Tokenizer.load(args.tokenizer)
    count, tokens, longest, image_bytes, dropped = 0, 0, 0, 0, collections.Counter()
    with tikzc.DatasetWriter(args.out, tokenizer, args.source) as writer:
        for path in part_names(args.parts):
            formulas, images, refused = render.read_part(path)
            dropped.update(reason for _, reason in refused)
            for formula, image in zip(formulas, images):
                ids = tokenizer.encode(formula)
                if args.count and count == args.count:
                    break
                if len(ids) > args.max_tokens:
                    dropped[f"more than {args.max_tokens} tokens"] += 1
                    continue
                writer.add(image, ids)
                count, tokens, image_bytes = count + 1, tokens + len(ids), image_bytes + len(image)
                longest = max(longest, len(ids))
        if not count:
            raise files.FormatError(f"{args.parts} has no formula that fits.")
        if count < args.count:
            raise files.FormatError(f"{args.parts} has {count} formulas, fewer than --count {args.count}.")
    print(f"{files.printable(args.out)}: {count} samples; an image has {image_bytes / count:.0f} bytes; tokens: mean "
          f"{tokens / count:.1f}, max {longest}", file=sys.stderr)
    for reason, n in dropped.most_common():
        print(f"dropped {n}: {files.printable(reason)}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", required=True, metavar="FOLDER", help="folder of render.py")
    parser.add_argument("--tokenizer", required=True, help="safetensors file with the tokenizer")
    parser.add_argument("--out", required=True, help=".bin file to write")
    parser.add_argument("--count", type=whole(0, 10**9), default=0, help="the first N samples (default: all)")
    parser.add_argument("--max-tokens", type=whole(1, tikzc.MAX_TOKENS), default=256,
                        help="leave out longer formulas, end token included (default 256)")
    parser.add_argument("--source", default="dev/formula", help="where the data come from, for the header")
    args = parser.parse_args()
    try:
        pack(args)
    except files.FormatError as e:
        files.fail("pack.py", e)
    except OSError as e:
        files.fail("pack.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("pack.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
