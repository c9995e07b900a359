#!/usr/bin/env python3
"""Converts a data set to the .bin format of tikz.c (described in tikzc/dataset_file.py).

    convert_dataset.py --parquet data/ --split train --model teacher.safetensors --out train.bin --shards 8
    convert_dataset.py --hub UniMER-1M --tokenizer tokenizer.safetensors --out train.bin
    convert_dataset.py --im2latex im2latex-100k --split validate --tokenizer tokenizer.safetensors --out val.bin
    convert_dataset.py --pairs my-figures --tokenizer tokenizer.safetensors --out my.bin --val-out my-val.bin

Sources: parquet files with images and code (DaTikZ and other data sets of the Hub), the layout of im2latex-100K, or a
folder of name.png (or .jpg, .webp, ...) and name.tex files. --hub tells by what is in a folder which of the first two it is,
and also knows UniMER-1M and UniMER-Test. The tokenizer comes from a model (--model; samples that
exceed its context length are left out) or from any other safetensors file that contains one (--tokenizer).

PNG and JPEG images are stored unchanged if the reader can decode them; all others are converted to PNG. Code becomes
UTF-8 without a byte order mark, with lines that end with \\n; nothing else in it changes. Samples that cannot be used
are left out, counted by reason at the end and listed by --report.

The same arguments give the same bytes, whatever --jobs is. Until the conversion is complete, finished parts are kept
in the folder OUT.parts, so that after any interruption the same command continues from there.
"""
import argparse
import collections
import contextlib
import hashlib
import json
import os
import re
import signal
import sys

import tikzc  # first, because it says whether a package is missing
import files
from dataset import hub, parquet, sources
from dataset.parts import Folder, Job, Output, plan, run_here, run_parallel
from options import whole
from progress import Progress

PART_BYTES = 64 << 20  # bytes of the source in a part, which one process converts at a time
ENCODING_VERSION = 2   # must be raised if the same arguments give other bytes than before


# ---- the summary ----

class Summary:
    """Sums up the reports of the parts. The lists of dropped samples stay in the files of the parts until write."""

    def __init__(self):
        self.total, self.notes = collections.Counter(), collections.Counter()
        self.dropped, self.example, self.longest = collections.Counter(), {}, 0

    def add(self, report):
        self.total.update({key: report[key] for key in ("train", "val", "tokens")})
        self.longest = max(self.longest, report["longest"])
        self.notes.update(report["notes"])
        for *place, reason, detail in report["dropped"]:
            self.dropped[reason] += 1
            self.example.setdefault(reason, f"{sources.Place(*place)}{': ' if detail else ''}{detail}")

    @property
    def kept(self):
        return self.total["train"] + self.total["val"]

    def lines(self):
        validation = f", of these {self.total['val']} for validation" if self.total["val"] else ""
        yield (f"{self.kept} samples{validation}; tokens: mean {self.total['tokens'] / max(1, self.kept):.1f}, "
               f"max {self.longest}")
        for note, n in sorted(self.notes.items(), key=lambda item: (-item[1], item[0])):
            yield f"{n} sample{'s' if n > 1 else ''}: {note}"
        for reason, n in sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])):
            yield f"dropped {n}: {reason} (first: {files.printable(self.example[reason])})"

    def write(self, path, reports):
        """{"kept", "validation", "notes", "dropped": {reason: n}, "samples": [{"file", "row"|"line", ...}]}"""
        head = {"kept": self.kept, "validation": self.total["val"], "notes": self.notes, "dropped": self.dropped}
        with tikzc.AtomicFile(path) as f:
            f.write(json.dumps(head)[:-1].encode() + b', "samples": [')
            separator = b"\n"
            for report in reports:
                for file, label, number, reason, detail in report["dropped"]:
                    place = {"file": file, **({label: number} if label else {})}
                    f.write(separator + json.dumps({**place, "reason": reason, "detail": detail}).encode())
                    separator = b",\n"
            f.write(b"\n]}\n")


def shard_paths(out, shards):
    if shards == 0:
        return [out]
    stem, suffix = os.path.splitext(out)
    return [f"{stem}-{i:05d}-of-{shards:05d}{suffix}" for i in range(shards)]


def plan_outputs(args, parts, shards):
    """The outputs in the order in which they can be completed; the validation data are last."""
    outputs = []
    for shard, path in enumerate(shard_paths(args.out, shards)):
        mine = [i for i, part in enumerate(parts) if part.shard == shard]
        outputs.append(Output(path, "train.bin", mine[0], mine[-1] + 1))
    return outputs + ([Output(args.val_out, "val.bin", 0, len(parts))] if args.val_out else [])


def earlier_outputs(args, shards):
    """Existing files of an earlier conversion to these names: all shards, because a pattern would match them."""
    stem, suffix = map(re.escape, os.path.splitext(os.path.basename(args.out)))
    pattern = re.compile(rf"{stem}-\d+-of-\d+{suffix}" if shards else rf"{stem}{suffix}")
    folder = os.path.dirname(args.out) or "."
    names = [os.path.join(folder, name) for name in os.listdir(folder) if pattern.fullmatch(name)]
    return names + [path for path in [args.val_out] if path and os.path.exists(path)]


def open_folder(args, manifest, shards):
    """Opens OUT.parts, and removes the outputs of an earlier conversion (with --overwrite)."""
    folder = Folder(files.beside(args.out, ".parts"), manifest, args.overwrite)
    earlier = [] if folder.begun else earlier_outputs(args, shards)
    if earlier and not args.overwrite:
        folder.remove()
        raise tikzc.FormatError(f"{earlier[0]} exists already; remove it, give --overwrite or another --out.")
    for path in earlier:
        os.unlink(path)
    folder.begin()
    return folder


# ---- the conversion ----

def convert_all(job, folder, outputs, jobs):
    """Makes the parts and the outputs that do not exist yet."""
    left = [i for i in range(len(job.parts)) if not folder.has_part(i)]
    ready = set(range(len(job.parts))) - set(left)
    pending = [output for output in outputs if not folder.is_done(output)]
    if ready:
        print(f"{files.printable(folder.path)}: going on, {len(ready)} of {len(job.parts)} parts are done",
              file=sys.stderr)

    def join():
        while pending and ready.issuperset(range(pending[0].first, pending[0].last)):
            folder.finish(pending.pop(0), job)
    with Progress("convert", job.source.rows, sum(job.parts[i].rows for i in ready)) as bar:
        join()
        jobs = min(jobs, len(left))
        with contextlib.closing(run_parallel(job, left, bar, jobs) if jobs > 1 else run_here(job, left, bar)) as done:
            for number in done:
                ready.add(number)
                join()


def convert(args):
    """The whole conversion; returns the Summary."""
    for path in filter(None, (args.out, args.val_out, args.report)):
        files.check_output(path)
    source = make_source(args)
    tokenizer, max_tokens, limit_name, fingerprint = load_tokenizer(args)
    blocks = source.blocks()
    for remark in getattr(source, "remarks", ()):
        print(f"note: {files.printable(remark)}", file=sys.stderr)
    if not blocks:
        raise tikzc.FormatError(f"The source ({source.name}) has no rows.")
    shards = args.shards or 0
    if args.shard_size:
        shards = max(1, -(-sum(b.weight for b in blocks) // args.shard_size))
    parts = plan(blocks, max(1, shards), PART_BYTES)
    for path in shard_paths(args.out, shards):
        files.check_output(path)
        if args.val_out and os.path.realpath(path) == os.path.realpath(args.val_out):
            raise tikzc.FormatError(f"--val-out {args.val_out} is one of the shards of --out; name another file.")
    for path in (*earlier_outputs(args, shards), args.report):
        if path and source.holds(path):
            raise tikzc.FormatError(f"{path} belongs to the source; name another file to write.")
    share = (0.01 if args.val_share is None else args.val_share) if args.val_out else 0
    manifest = {"version": ENCODING_VERSION, "source": source.identity, "columns": getattr(source, "columns", None),
                "text for the header": args.source or source.name, "--shards": shards,
                "--val-out": args.val_out and os.path.basename(args.val_out), "--val-share": share,
                "--seed": args.seed, "--max-side": args.max_side, "token limit": f"{max_tokens}{limit_name}",
                "tokenizer": fingerprint, "parts": len(parts), "Pillow": pillow_version()}
    folder = open_folder(args, manifest, shards)
    job = Job(source, parts, folder.path, tokenizer, int(fingerprint.split()[0], 16), args.source or source.name,
              max_tokens, limit_name, args.max_side, share, args.seed)
    outputs = plan_outputs(args, parts, shards)
    try:
        convert_all(job, folder, outputs, args.jobs)
    except BaseException:
        if not any(map(folder.has_part, range(len(parts)))):
            folder.remove()  # there is nothing to continue from
        raise
    summary = Summary()
    for i in range(len(parts)):
        summary.add(folder.part(i))
    if args.report:
        summary.write(args.report, map(folder.part, range(len(parts))))
    folder.remove()
    if not summary.kept:
        raise tikzc.FormatError(f"No sample could be used, so {args.out} was not written.", *summary.lines())
    for output in outputs:
        if not os.path.exists(output.path):
            print(f"{files.printable(output.path)} was not written: no sample is left for it", file=sys.stderr)
    return summary


def pillow_version():
    import PIL
    return PIL.__version__


def make_source(args):
    files.need("PIL", "Pillow")
    files.need("tokenizers")
    if args.parquet:
        return parquet.Parquet(args.parquet, args.image_column, args.code_column, args.split)
    if args.hub:
        return hub.open_folder(args.hub, args.split, args.image_column, args.code_column)
    if args.im2latex:
        return sources.Im2latex(args.im2latex, args.split, args.formulas, args.list, args.images)
    return sources.Pairs(args.pairs)


def load_tokenizer(args):
    """(tokenizer, most tokens of a sample, the reason of that limit, an identity of the tokenizer)"""
    max_tokens, reason = tikzc.MAX_TOKENS, ""
    if args.model:
        _, metadata = tikzc.read_header(args.model)
        try:
            shuffle = metadata.get("connector.kind") == "shuffle"
            patch, joined, positions = (int(metadata[key]) for key in (
                "vision.patch", "connector.scale_factor" if shuffle else "connector.concat", "lm.max_positions"))
            sides = ("height", "width") if "vision.image_height" in metadata else ("size", "size")
            height, width = (int(metadata[f"vision.image_{side}"]) for side in sides)
            markers = [metadata.get(f"tokenizer.{side}_image") for side in ("before", "after")]
            image = sum(text.count(",") + 1 for text in markers if text)
            image += (height // patch) * (width // patch) // (joined ** 2 if shuffle else joined)
        except (KeyError, ValueError, ZeroDivisionError) as e:
            raise tikzc.FormatError(f"{args.model}: not a model of tikz.c; its metadata give no sizes ({e!r}).")
        max_tokens, reason = positions - image, f" ({positions} positions of the model less {image} of the image and its markers)"
        if max_tokens < 1:
            raise tikzc.FormatError(f"{args.model}: {positions} positions leave no room for text after {image} of "
                                    f"the image.")
    if args.max_tokens and args.max_tokens < max_tokens:
        max_tokens, reason = args.max_tokens, ""
    tokenizer = tikzc.Tokenizer.load(args.model or args.tokenizer)
    try:
        tokenizer.encode("")
    except tikzc.FormatError as e:
        raise tikzc.FormatError(f"{args.model or args.tokenizer}: {e}")
    digest = hashlib.sha256(tokenizer.json_text.encode()).hexdigest()[:16]
    begin = getattr(tokenizer, "begin", None)
    identity = f"{tokenizer.fingerprint():016x} {digest} {'' if begin is None else begin}".strip()
    return tokenizer, max_tokens, reason, identity


# ---- the command line ----

def size(text):
    """Parses a number of bytes: 500M, 2G, 1000000."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500M or 2G")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def share(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("source").add_mutually_exclusive_group(required=True)
    source.add_argument("--parquet", nargs="+", metavar="PATH", help="parquet files, folders of them, patterns")
    source.add_argument("--hub", metavar="FOLDER", help="folder of a data set of the Hub: DaTikZ, UniMER, im2latex-100K, ...")
    source.add_argument("--im2latex", metavar="FOLDER", help="folder in the layout of im2latex-100K")
    source.add_argument("--pairs", metavar="FOLDER", help="folder of name.png (or .jpg, .webp, ...) + name.tex")
    add = parser.add_argument_group("reading").add_argument
    add("--split", metavar="NAME", help="part of the data set (default: im2latex: train; parquet: all)")
    add("--image-column", metavar="NAME", help="parquet: column of images (default: image)")
    add("--code-column", metavar="NAME",
        help=f"parquet: column of code (default: the first there is of {', '.join(parquet.CODE_COLUMNS)})")
    add("--formulas", metavar="FILE", help=f"im2latex: list of formulas (default: {sources.FORMULAS[0]})")
    add("--list", metavar="FILE", help="im2latex: list of the split (default: im2latex_SPLIT.lst)")
    add("--images", metavar="FOLDER", help=f"im2latex: folder of images (default: {sources.IMAGES[0]})")
    tokens = parser.add_argument_group("tokens").add_mutually_exclusive_group(required=True)
    tokens.add_argument("--model", metavar="FILE", help="model whose tokenizer to use and whose positions to keep to")
    tokens.add_argument("--tokenizer", metavar="FILE", help="any safetensors file that carries a tokenizer")
    add = parser.add_argument_group("choosing").add_argument
    add("--max-tokens", type=whole(1, tikzc.MAX_TOKENS), metavar="N",
        help="leave out samples with more tokens, end token included (default: the model's positions)")
    add("--max-side", type=whole(1, 1 << 24), default=0, metavar="PIXELS",
        help="scale larger images down to this (default: no; above 20000 an image is left out)")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--out", required=True, metavar="FILE", help=".bin file to write; with shards FILE-00000-of-00004.bin")
    shards = output.add_mutually_exclusive_group()
    shards.add_argument("--shards", type=whole(1, 99999), metavar="N",
                        help="number of files (default: one, named as --out)")
    shards.add_argument("--shard-size", type=size, metavar="SIZE", help="files of about this size: 500M, 2G")
    add("--val-out", metavar="FILE", help="set samples aside for validation, in this file")
    add("--val-share", type=share, metavar="X",
        help="how many, chosen by the code's hash (default 0.01)")
    add("--seed", type=whole(0, (1 << 63) - 1), default=0, metavar="N", help="changes which (default 0)")
    add("--source", metavar="TEXT", help="where the data come from, for the header (default: from the names)")
    add("--report", metavar="FILE", help="list all samples left out, as JSON")
    add("--overwrite", action="store_true",
        help="start anew; remove what earlier conversions left under these names")
    add("--jobs", type=whole(1, 1024), default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes (default: all cores)")
    return parser


def check_options(parser, args):
    named = {"--out": args.out, "--val-out": args.val_out, "--report": args.report, "--tokenizer": args.tokenizer,
             "--model": args.model}
    seen = {}
    for option, path in named.items():
        other = path and seen.setdefault(os.path.realpath(path), option)
        if path and other != option:
            parser.error(f"{option} and {other} must not be the same file")
    for name in ("image_column", "code_column"):
        if getattr(args, name) and not args.parquet and not args.hub:
            parser.error(f"--{name.replace('_', '-')} goes with --parquet or --hub")
    for name in ("formulas", "list", "images"):
        if getattr(args, name) and not args.im2latex:
            parser.error(f"--{name} goes with --im2latex")
    if args.split and args.pairs:
        parser.error("--split goes with --parquet, --hub or --im2latex")
    if args.val_share is not None and not args.val_out:
        parser.error("--val-share goes with --val-out")


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_options(parser, args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = convert(args)
    except tikzc.FormatError as e:
        files.fail("convert_dataset.py", *e.args)
    except OSError as e:
        files.fail("convert_dataset.py", f"{files.describe(e, args.out)}.")
    except KeyboardInterrupt:
        sys.exit("convert_dataset.py: interrupted; the same command goes on from here")
    print(f"{files.printable(args.out)}:", "\n".join(summary.lines()), file=sys.stderr)


if __name__ == "__main__":
    main()
