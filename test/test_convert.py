#!/usr/bin/env python3
"""Tests of scripts/convert_dataset.py: every source and image format, bad input, hostile images, memory,
interruptions.

    test/test_convert.py BUILD_DIR       BUILD_DIR: with test_lib and eval, the C side that reads the result

Needs the packages of scripts/requirements.txt.
"""
import contextlib
import errno
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest.mock
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test")]
from check import check, end  # noqa: E402
import compare_images  # noqa: E402
import convert_dataset  # noqa: E402
from dataset import images, pages, parquet, parts, sources  # noqa: E402
import files  # noqa: E402
import tikzc  # noqa: E402

SCRIPT = ROOT / "scripts" / "convert_dataset.py"
TOKENIZER = ROOT / "dev" / "starter" / "tokenizer.safetensors"
MODEL = ROOT / "dev" / "starter" / "student.safetensors"
ROOM = 256 - 64  # positions of the model less those of the image


# ---- running ----

def arguments(*options, out, tokenizer=True):
    return [str(o) for o in (*options, *(["--tokenizer", TOKENIZER] if tokenizer else []), "--out", out)]


def convert(*options, out, tokenizer=True, jobs=1):
    """In this process; the messages. Fails as the program would: SystemExit with the sentence."""
    messages = io.StringIO()
    argv = ["convert_dataset.py", *arguments(*options, out=out, tokenizer=tokenizer), "--jobs", str(jobs)]
    with unittest.mock.patch.object(sys, "argv", argv), contextlib.redirect_stderr(messages):
        convert_dataset.main()
    return messages.getvalue()


def refused(part, *options, out, tokenizer=True):
    """The conversion ends with one sentence that contains `part`, and leaves nothing."""
    before = snapshot(out)
    try:
        messages = convert(*options, out=out, tokenizer=tokenizer)
        check(False, f"refused with '{part}'", messages)
    except SystemExit as e:
        check(part in str(e.code) and str(e.code).startswith("convert_dataset.py: error: "), f"'{part}' in", e.code)
    check(snapshot(out) == before, f"'{part}': nothing is left behind", snapshot(out) - before)


def snapshot(out):
    """Names and sizes of the files and folders beside out."""
    folder = pathlib.Path(out).parent
    return {(p.name, p.stat().st_size if p.is_file() else -1) for p in folder.iterdir() if p.name.startswith("out")}


def script(*options, stderr=subprocess.PIPE):
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, options)], stderr=stderr, text=True)


def read(path):
    data = tikzc.Dataset(path)
    return [(image, ids.tolist()) for image, ids in (data[i] for i in range(len(data)))]


def same_files(a, b):
    return pathlib.Path(a).read_bytes() == pathlib.Path(b).read_bytes()


def opens(path):
    try:
        tikzc.Dataset(path).close()
    except tikzc.FormatError:
        return False
    return True


def test_dataset_bits(folder):
    """Every bit of a dataset's header and index counts; a file of version 1 is read as it was."""
    path, tokenizer = folder / "bits.bin", tikzc.Tokenizer.load(TOKENIZER)
    with tikzc.DatasetWriter(path, tokenizer, "made by the tests") as writer:
        for i in range(5):
            writer.add(b"image" * (i + 1), [i, 1])
    data = bytearray(path.read_bytes())
    index = len(data) - 5 * tikzc.ENTRY.size
    found = []
    for at in [*range(tikzc.HEADER_BYTES[2]), *range(index, len(data))]:
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        data[at] ^= 1 << at % 8
        found += [at] if opens(path) else []
    check(not found, "damage of a header or an index is noticed", found)
    old = bytearray((ROOT / "dev" / "starter" / "test.bin").read_bytes())
    check(old[8] == 1 and len(tikzc.Dataset(ROOT / "dev" / "starter" / "test.bin")) > 0, "version 1 is read")
    old[16] ^= 4
    path.write_bytes(old)
    check(not opens(path), "another number of samples is noticed in version 1")
    path.unlink()


def test_full_disk(folder):
    """A file that cannot be written to its end leaves nothing behind, wherever the disk is full."""
    tokenizer = tikzc.Tokenizer.load(TOKENIZER)

    def dataset():
        with tikzc.DatasetWriter(folder / "full.bin", tokenizer, "x" * 4000) as writer:
            writer.add(b"image", [1])

    def model():
        tikzc.write_safetensors(folder / "full.safetensors", {"a" * 20000: np.zeros(1)})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (0, 50, 1000, 4050):
        for make in (dataset, model):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                make()
                check(False, f"{make.__name__} in {limit} bytes")
            except OSError as e:
                check(e.errno == errno.EFBIG, "the disk is full", e)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            left = [path.name for path in folder.iterdir()]
            check(not left, f"{make.__name__} in {limit} bytes leaves nothing", left)
    signal.signal(signal.SIGXFSZ, handler)


# ---- making sources ----

def texts(count):
    """TikZ programs of the starter data."""
    data, tokenizer = tikzc.Dataset(ROOT / "dev" / "starter" / "train.bin"), tikzc.Tokenizer.load(TOKENIZER)
    return [tokenizer.decode(data[i][1]) for i in range(count)]


def encoded(texts):
    """What the texts must become: the package `tokenizers` on the tokenizer's own JSON, and the end token."""
    tensors, metadata = tikzc.read_safetensors(TOKENIZER)
    encoder = tokenizers.Tokenizer.from_str(tikzc.with_plain_merges(tensors["tokenizer.json"].tobytes().decode()))
    return [encoder.encode(text, add_special_tokens=False).ids + [int(metadata["tokenizer.end"])] for text in texts]


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def make_image(i):
    """(bytes of an image of the i-th kind, whether it must be stored as it is)"""
    size = (40 + i % 37, 30 + i % 23)
    rgb, rgba = compare_images.drawing("RGB", size, i), compare_images.drawing("RGBA", size, i)
    return [lambda: (saved(rgb, "PNG"), True), lambda: (saved(rgba, "PNG"), True),
            lambda: (saved(rgb, "JPEG", quality=90), True), lambda: (saved(rgb, "JPEG", progressive=True), True),
            lambda: (saved(rgb.convert("L"), "PNG"), True), lambda: (saved(rgb.convert("P"), "PNG"), True),
            lambda: (saved(rgb.convert("1"), "PNG"), True), lambda: (saved(rgba, "WEBP", lossless=True), False),
            lambda: (saved(rgb, "GIF"), False), lambda: (saved(rgb, "BMP"), False),
            lambda: (saved(rgba, "TIFF", compression="tiff_lzw"), False),
            lambda: (saved(rgb.convert("CMYK"), "JPEG"), True)][i % 12]()


def over_white(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def same_image(a, b):
    a, b = (over_white(Image.open(io.BytesIO(x))) for x in (a, b))
    return a.shape == b.shape and (a == b).all()


def write_parquet(path, samples, group=None, kind="struct", **options):
    """samples: [(image or None, code or None)]; the columns of DaTikZ v2 and v3."""
    images, codes = [s[0] for s in samples], [s[1] for s in samples]
    if kind == "struct":
        images = pa.array([None if i is None else {"bytes": i, "path": None} for i in images],
                          pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        images = pa.array(images, pa.large_binary())
    if any(isinstance(c, bytes) for c in codes):  # a string column with bytes that are not UTF-8
        codes = pa.array([c.encode() if isinstance(c, str) else c for c in codes], pa.binary()).view(pa.string())
    else:
        codes = pa.array(codes, pa.string() if kind == "struct" else pa.large_string())
    blank = pa.array(["a figure"] * len(samples))
    table = pa.table({"caption": blank, "code": codes, "image": images, "pdf": blank.cast(pa.binary()), "uri": blank})
    pq.write_table(table, path, row_group_size=group or len(samples), **options)


def samples(count):
    return [(*make_image(i), text) for i, text in enumerate(texts(count))]


# ---- tests ----

def test_parquet(folder, build):
    """Content, any number of jobs and shards, DaTikZ's two shapes of an image column, the C side."""
    made = samples(300)
    (folder / "data").mkdir()
    rows = [(image, text) for image, _, text in made]
    write_parquet(folder / "data" / "train-00000-of-00003.parquet", rows[:100], 7)
    write_parquet(folder / "data" / "train-00001-of-00003.parquet", rows[100:101])
    write_parquet(folder / "data" / "train-00002-of-00003.parquet", rows[101:], 50, "binary", compression="gzip")
    messages = convert("--parquet", folder / "data", "--model", MODEL, out=folder / "one.bin", tokenizer=False)
    check("300 samples" in messages and "dropped" not in messages, "all rows are kept", messages)
    check("25 samples: the image is stored again as PNG, not WEBP" in messages, "what was stored again", messages)
    got, ids = read(folder / "one.bin"), encoded([text for *_, text in made])
    check([i for _, i in got] == ids, "the ids are those of tokenizers")
    for (image, as_is, _), (stored, _) in zip(made, got):
        check(stored == image if as_is else stored.startswith(images.PNG_SIGNATURE) and
              same_image(stored, image), "the image is the source's")
    convert("--parquet", folder / "data", "--model", MODEL, out=folder / "two.bin", tokenizer=False, jobs=3)
    check(same_files(folder / "one.bin", folder / "two.bin"), "3 jobs write the same bytes as 1")
    for jobs in (1, 3):
        pattern = folder / "data" / "train-*.parquet"
        convert("--parquet", pattern, "--shards", 4, out=folder / f"s{jobs}.bin", jobs=jobs)
    shards = [sorted(folder.glob(f"s{jobs}-*-of-00004.bin")) for jobs in (1, 3)]
    check(all(len(s) == 4 for s in shards) and all(map(same_files, *shards)), "4 shards, the same for 1 and 3 jobs")
    counts = [len(tikzc.Dataset(s)) for s in shards[0]]
    check(sum(counts) == 300 and min(counts) > 30, "shards of about equal size", counts)
    check([x for s in shards[0] for x in read(s)] == got, "the shards together are the one file")
    convert("--parquet", folder / "data", "--shard-size", "40K", out=folder / "k.bin")
    check(len(list(folder.glob("k-*.bin"))) in range(3, 40), "--shard-size makes several shards")
    command = [build / "eval", "--model", MODEL, "--data", folder / "s3-*.bin", "--json", folder / "e.json"]
    run = subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)
    scores = json.loads((folder / "e.json").read_text()) if run.returncode == 0 else {}
    check(run.returncode == 0 and "300" in json.dumps(scores), "eval reads the shards", run.stderr[-300:])


def test_validation(folder):
    made = samples(120)
    write_parquet(folder / "a.parquet", [(p, t) for p, _, t in made], 10)
    write_parquet(folder / "b.parquet", [(p, t) for p, _, t in reversed(made)], 10)
    split = []
    for name in "ab":
        convert("--parquet", folder / f"{name}.parquet", "--val-out", folder / f"{name}-val.bin", "--val-share",
                "0.25", out=folder / f"{name}.bin", jobs=2)
        split.append([sorted(read(folder / f"{name}{kind}.bin"), key=str) for kind in ("", "-val")])
    check(split[0] == split[1], "what is validation data depends on the code only")
    check(15 < len(split[0][1]) < 50 and len(split[0][0]) + len(split[0][1]) == 120, "about the share asked for",
          len(split[0][1]))


def test_im2latex(folder):
    root = folder / "im2latex"
    (root / "formula_images").mkdir(parents=True)
    formulas = [rb"\alpha + \beta", rb"x \rightarrow y", b"a\rb", "\u00e9 = 1".encode("utf-8"), b"\xe9 = 2", b"",
                b"last"]
    (root / "im2latex_formulas.lst").write_bytes(b"\n".join(formulas) + b"\n")
    for i in range(7):
        (root / "formula_images" / f"pic{i}.png").write_bytes(make_image(12 * i)[0])
    lines = ["0 pic0 basic", "6 pic6 basic", "2 pic2 basic", "3 pic3 basic", "4 pic4 basic", "5 pic5 basic",
             "7 pic1 basic", "x pic1 basic", "1", "1 ../../../etc/passwd basic", "1 gone basic", ""]
    (root / "im2latex_train.lst").write_text("\n".join(lines) + "\n")
    messages = convert("--im2latex", root, "--report", folder / "r.json", out=folder / "f.bin")
    got = read(folder / "f.bin")
    expected = encoded([formulas[0].decode(), "last", "a\nb", "\u00e9 = 1", "\u00e9 = 2"])
    check([ids for _, ids in got] == expected, "formulas by their number; UTF-8, else Latin-1", messages)
    check([p for p, _ in got] == [make_image(12 * i)[0] for i in (0, 6, 2, 3, 4)], "images by their name")
    check("1 sample: the formula is not UTF-8, it was read as Latin-1" in messages, "says what was Latin-1", messages)
    report = json.loads((folder / "r.json").read_text())
    found = {(s["line"], s["reason"]) for s in report["samples"]}
    malformed, listing = "the line is malformed", "im2latex_train.lst"
    expected = {(6, "the code is empty"), (7, "the line names a formula beyond the list"), (8, malformed),
                (9, malformed), (10, malformed), (11, "the image is missing"), (12, malformed)}
    check(found == expected, "bad lines", found)
    check(all(os.path.basename(s["file"]) == listing for s in report["samples"]), "each names the list")
    check("(first: " in messages and f"{listing}, line 7: 7 of 7" in messages, "an example for each reason", messages)
    (root / "val_filter.lst").write_text("pic3.png 0\npic1.png 1\n")  # the layout of im2markup's scripts
    convert("--im2latex", root, "--split", "val", out=folder / "g.bin", jobs=2)
    check([ids for _, ids in read(folder / "g.bin")] == encoded([f.decode() for f in formulas[:2]]), "filtered lists")
    refused("there is no im2latex_test.lst or ", "--im2latex", root, "--split", "test", out=folder / "out.bin")
    refused("there is no nothing.lst; name it with --formulas", "--im2latex", root, "--formulas", "nothing.lst",
            out=folder / "out.bin")


def test_hub(folder):
    """--hub tells by what is in a folder how to read it."""
    made = [make_image(12 * i)[0] for i in range(4)]
    unimer = folder / "Dataset" / "UniMER-1M"
    (unimer / "images").mkdir(parents=True)
    (unimer / "train.txt").write_bytes(b"a\nb\r\nc\n\\frac{d}{e}\n")
    for i in (3, 0, 1):
        (unimer / "images" / f"{i:07d}.png").write_bytes(made[i])
    (unimer / "images" / "cover.png").write_bytes(made[2])
    messages = convert("--hub", unimer, "--report", folder / "r.json", out=folder / "f.bin")
    expected = list(zip([made[0], made[1], made[3]], encoded(["a", "b", "\\frac{d}{e}"])))
    check(read(folder / "f.bin") == expected, "UniMER-1M: line N belongs to the image N", messages)
    check("dropped 1: there is no image of this number (first: " in messages and "line 3: 0000002.png" in messages,
          "a line without its image", messages)
    convert("--hub", unimer.parent, out=folder / "g.bin", jobs=3)
    check(same_files(folder / "f.bin", folder / "g.bin"), "the folder above, and 3 jobs, give the same bytes")
    refused("belongs to the source", "--hub", unimer, out=unimer / "train.txt")
    test = folder / "Dataset" / "UniMER-Test"
    (test / "spe").mkdir(parents=True)
    (test / "spe.txt").write_text("x\n")
    (test / "spe" / "0000000.png").write_bytes(made[2])
    convert("--hub", folder / "Dataset", "--split", "spe", out=folder / "h.bin")
    check(read(folder / "h.bin") == [(made[2], encoded(["x"])[0])], "UniMER-Test by --split")
    refused("there are several splits; choose one of spe, train with --split", "--hub", folder / "Dataset", out=folder / "out.bin")
    refused("there is no split 'hwe'; choose one of spe with", "--hub", test, "--split", "hwe", out=folder / "out.bin")
    (test / "spe" / "0000001.png").write_bytes(made[2])
    refused("0000001.png belongs to line 2 of", "--hub", test, out=folder / "out.bin")
    data = folder / "datikz" / "data"
    data.mkdir(parents=True)
    write_parquet(data / "train-00000-of-00001.parquet", [(made[0], "x")])
    convert("--hub", data.parent, out=folder / "i.bin")
    check(read(folder / "i.bin") == [(made[0], encoded(["x"])[0])], "parquet files below the folder")
    refused("there is no column 'tikz' for the code; the columns are ", "--hub", data.parent, "--code-column", "tikz",
            out=folder / "out.bin")
    lists = folder / "im2latex-100k"
    (lists / "formula_images").mkdir(parents=True)
    (lists / "im2latex_formulas.lst").write_text("x\n")
    (lists / "im2latex_train.lst").write_text("0 a basic\n")
    (lists / "formula_images" / "a.png").write_bytes(made[1])
    convert("--hub", lists, out=folder / "j.bin")
    check(read(folder / "j.bin") == [(made[1], encoded(["x"])[0])], "im2latex-100K")
    (folder / "other" / "pictures").mkdir(parents=True)
    (folder / "other" / "rows.csv").write_text("")
    refused("the layout is not known. Expected parquet files, im2latex_formulas.lst, or UniMER's train.txt with images; found "
            "pictures/, rows.csv.", "--hub", folder / "other", out=folder / "out.bin")
    refused("not a folder; --hub needs one", "--hub", folder / "nothing", out=folder / "out.bin")


def test_pairs(folder):
    root = folder / "pairs"
    (root / "sub").mkdir(parents=True)
    for name, i in (("a", 0), ("sub/b", 2), ("c", 7), ("lonely", 0)):
        (root / name).with_suffix({0: ".png", 2: ".jpg", 7: ".webp"}[i]).write_bytes(make_image(i)[0])
    for name in ("a", "sub/b", "c", "orphan"):
        (root / f"{name}.tex").write_text(rf"\draw ({name});")
    (root / "c.tex").write_text("trailing \n\n")
    messages = convert("--pairs", root, out=folder / "p.bin")
    got = read(folder / "p.bin")
    check([ids for _, ids in got] == encoded([r"\draw (a);", "trailing \n\n", r"\draw (sub/b);"]),
          "pairs in the order of their names, the code unchanged", messages)
    check(got[2][0] == make_image(2)[0], "subfolders and JPEG")
    for reason, name in (("an image without its .tex file", "lonely.png"),
                         ("a .tex file without its image", "orphan.tex")):
        check(f"{reason} (first: " in messages and f"{name})" in messages, reason, messages)


def test_own_output(folder):
    """What would overwrite a file of the source is refused, and the file stays."""
    write_pair(folder, "a", "x")
    out, images_folder = folder / "out.bin", folder / "formula_images"
    write_parquet(folder / "p-00000-of-00001.parquet", [(make_image(0)[0], "x")] * 2)
    images_folder.mkdir()
    (images_folder / "a.png").write_bytes(make_image(0)[0])
    (folder / "im2latex_formulas.lst").write_text("x\n")
    (folder / "im2latex_train.lst").write_text("0 a basic\n")
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    parquet_file, pairs, formulas = ["--parquet", folder / "p-00000-of-00001.parquet"], ["--pairs", folder], [
        "--im2latex", folder]
    for source, name in ((parquet_file, "p-00000-of-00001.parquet"), (pairs, "a.tex"), (pairs, "a.png"),
                         (formulas, "im2latex_formulas.lst"), (formulas, "formula_images/a.png")):
        refused("belongs to the source", *source, "--overwrite", out=folder / name)
        refused("belongs to the source", *source, "--report", folder / name, out=out)
    refused("belongs to the source", *parquet_file, "--shards", 1, "--overwrite", out=folder / "p.parquet")
    left = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    check(left == before, "the files of the source are left alone", set(left) ^ set(before))


def test_no_image(folder):
    """Files that are no image: a named pipe is not waited for, and a Git LFS pointer is named."""
    os.mkfifo(folder / "pipe.png")
    signal.alarm(20)
    check(sources.read_image(folder / "pipe.png")[1][0] == "the image cannot be read", "a named pipe")
    signal.alarm(0)
    try:
        images.prepare(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
        check(False, "a Git LFS pointer is refused")
    except images.ImageError as e:
        check("Git LFS pointer" in e.reason, "a Git LFS pointer is named", e)


def test_links(folder):
    """What is created under a name of its own making does not follow a symbolic link."""
    target, out = folder / "precious", folder / "out.bin"
    target.write_text("precious")
    (folder / f"x.{os.getpid()}.tmp").symlink_to(target)
    try:
        tikzc.AtomicFile(folder / "x")
        check(False, "a symbolic link at the temporary name is refused")
    except tikzc.FormatError as e:
        check("is a symbolic link" in str(e), "the sentence names the link", e)
    (folder / "out.bin.parts").mkdir()
    (folder / "out.bin.parts" / "lock").symlink_to(target)
    (folder / "a.png").write_bytes(make_image(0)[0])
    (folder / "a.tex").write_text(r"\draw (a);")
    refused("lock is a symbolic link", "--pairs", folder, out=out)
    check(target.read_text() == "precious", "what the links point to is left alone")


def write_pair(folder, name, code, image=".png", text=".tex"):
    (folder / f"{name}{image}").write_bytes(make_image(2 if "j" in image.lower() else 0)[0])
    (folder / f"{name}{text}").write_bytes(code if isinstance(code, bytes) else code.encode())


def test_line_ends(folder):
    """\\r\\n, \\r, byte order marks and UTF-16 become what the same code without them is, and are counted."""
    root, code = folder / "pairs", "\\draw (1,2)\n\n  -- (3,4);\n"
    root.mkdir()
    forms = {"a": code, "b": code.replace("\n", "\r\n"), "c": code.replace("\n", "\r"), "d": "\ufeff" + code,
             "e": ("\ufeff" + code).encode("utf-16-le"), "f": ("\ufeff" + code).encode("utf-16-be"),
             "g": code.encode("utf-16-le"), "h": ("\ufeff" + code).encode("utf-32-le"), "i": b"\xff\xfex"}
    for name, form in forms.items():
        write_pair(root, name, form)
    messages = convert("--pairs", root, out=folder / "p.bin")
    check([ids for _, ids in read(folder / "p.bin")] == encoded([code]) * 7, "the same tokens", messages)
    for part in ("2 samples: the lines of the code ended with \\r\\n or \\r", "2 samples: the code was UTF-16",
                 "1 sample: the code was UTF-32", "1 sample: the byte order mark before the code is left out",
                 "dropped 1: the code contains NUL characters", "dropped 1: the code is not UTF-16"):
        check(part in messages, part, messages)
    write_parquet(folder / "p.parquet", [(make_image(0)[0], form) for form in forms.values()])
    convert("--parquet", folder / "p.parquet", out=folder / "q.bin")
    check([ids for _, ids in read(folder / "q.bin")] == encoded([code]) * 7, "the same from parquet")
    lists = folder / "im2latex"
    (lists / "formula_images").mkdir(parents=True)
    for i in range(3):
        (lists / "formula_images" / f"p{i}.png").write_bytes(make_image(0)[0])
    formulas = lists / "im2latex_formulas.lst"
    formulas.write_bytes(b"\xef\xbb\xbfx = 1\r\ny\r\r\nz = 3")
    lines = b"".join(b"%d p%d basic\r\n" % (i, i) for i in range(3))
    (lists / "im2latex_train.lst").write_bytes(b"\xef\xbb\xbf" + lines)
    messages = convert("--im2latex", lists, out=folder / "f.bin")
    check([ids for _, ids in read(folder / "f.bin")] == encoded(["x = 1", "y\n", "z = 3"]), "formulas", messages)
    check("2 samples: the lines of the code ended" in messages and "1 sample: the byte order mark" in messages,
          "counted for formulas", messages)
    formulas.write_bytes("\ufeffx\n".encode("utf-16-le"))
    refused("im2latex_formulas.lst is UTF-16; convert it to UTF-8", "--im2latex", lists, out=folder / "out.bin")


def test_suffixes(folder):
    """Suffixes in any case; of several files of a name, those that are not used are named."""
    root = folder / "pairs"
    root.mkdir()
    for name, image, text in (("a", ".PNG", ".TEX"), ("b", ".Jpg", ".tex"), ("c", ".JPEG", ".Tex"),
                              ("d", ".png", ".tex")):
        write_pair(root, name, name, image, text)
    (root / "d.TEX").write_text("another")
    (root / "d.jpg").write_bytes(make_image(2)[0])
    messages = convert("--pairs", root, out=folder / "p.bin")
    # "d.TEX" is before "d.tex", as is "d.jpg" before "d.png"
    check([ids for _, ids in read(folder / "p.bin")] == encoded(["a", "b", "c", "another"]), "pairs", messages)
    for part in ("dropped 1: another image for the same .tex file (first: ", "d.png)",
                 "dropped 1: another .tex file for the same image (first: ", "d.tex)"):
        check(part in messages, part, messages)


def test_begin(folder):
    """A begin token of the tokenizer stands first, once."""
    plain = tikzc.Tokenizer.load(TOKENIZER)
    job = parts.Job(None, [], "", plain, 0, "", 100, "", 0, 0, 0)
    ids = parts.encode(job, "x = 1")
    plain.begin = 5
    check(parts.encode(job, "x = 1") == [5] + ids, "the begin token is first", parts.encode(job, "x = 1"))
    plain.encode = lambda text: [5] + ids
    check(parts.encode(job, "x = 1") == [5] + ids, "the begin token is there once", parts.encode(job, "x = 1"))


def test_bad_rows(folder):
    """One row of each kind; the good ones between them stay."""
    good = make_image(0)[0]
    huge = bytearray(good)
    huge[16:24] = struct.pack(">II", 60000, 60000)
    rows = [(good, "good"), (None, "x"), (b"", "x"), (good, None), (good, b"caf\xe9 \x80"), (good, ""),
            (good, " \n\t"), (good, "a</s>b"), (good, "x " * 400), (b"plain text", "x"), (good[:200], "x"),
            (fix_crc(huge), "x"), (flipped(good), "x"), (saved(Image.new("F", (3, 3)), "TIFF"), "x"),
            (make_image(2)[0][:300], "x"), (good, "good too")]
    write_parquet(folder / "bad.parquet", rows, 5)
    messages = convert("--parquet", folder / "bad.parquet", "--model", MODEL, "--report", folder / "bad.json",
                       out=folder / "bad.bin", tokenizer=False)
    check([ids for _, ids in read(folder / "bad.bin")] == encoded(["good", "good too"]), "the good rows are kept")
    report = json.loads((folder / "bad.json").read_text())
    damaged = "the image is damaged"
    expected = [(1, "the row has no image"), (2, "the row has no image"), (3, "the row has no code"),
                (4, "the code is not UTF-8"), (5, "the code is empty"), (6, "the code is empty"),
                (7, "the code contains a special token of the tokenizer"),
                (8, f"more than {ROOM} tokens (256 positions of the model less 64 of the image and its markers)"),
                (9, "the image has an unknown format"), (10, damaged),
                (11, "the image has more than 20000 pixels a side or 100 million in all"), (12, damaged),
                (13, "the image has a pixel format that is not supported"), (14, damaged)]
    found = [(s["row"], s["reason"]) for s in report["samples"]]
    check(found == expected, "each bad row with its reason", [f for f in found if f not in expected])
    check(report["kept"] == 2 and sum(report["dropped"].values()) == 14, "the report counts", report["dropped"])
    check("dropped 3: the image is damaged (first: " in messages and "bad.parquet, row 10: the PNG data end" in
          messages, "counted, with an example", messages)


def fix_crc(png):
    """The PNG with the right checksum in every chunk."""
    png, at = bytearray(png), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if length > len(png) - at - 12:
            break
        struct.pack_into(">I", png, at + 8 + length, zlib.crc32(png[at + 4:at + 8 + length]))
        at += 12 + length
    return bytes(png)


def flipped(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 4
    return bytes(data)


def test_refused(folder):
    """What spoils the whole conversion: one sentence, nothing left behind."""
    out = folder / "out.bin"
    write_parquet(folder / "fine.parquet", [(make_image(i)[0], f"text {i}") for i in range(4)])
    fine = ["--parquet", folder / "fine.parquet"]
    pq.write_table(pa.table({"drawing": [b"x"], "tex": ["y"], "number": [1]}), folder / "columns.parquet")
    other = ["--parquet", folder / "columns.parquet"]
    refused("no column 'image' for the image; the columns are drawing, tex, number", *other, out=out)
    refused("no column 'code'", *other, "--image-column", "drawing", out=out)
    refused("column 'number' has type int64; expected binary", *other, "--image-column", "number", out=out)
    refused("column 'number' has type int64; expected a string", *other, "--image-column", "drawing", "--code-column",
            "number", out=out)
    (folder / "text.parquet").write_text("not parquet")
    refused("text.parquet: not a parquet file", "--parquet", folder / "text.parquet", out=out)
    data = (folder / "fine.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(data[:-100])
    refused("cut.parquet: not a parquet file", "--parquet", folder / "cut.parquet", out=out)
    (folder / "zero.parquet").write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2:])
    refused("zero.parquet: row group 0 is damaged", "--parquet", folder / "zero.parquet", out=out)
    refused("none: there is no such file or folder", "--parquet", folder / "none", out=out)
    refused("The name of the file to write is empty", *fine, out="")
    refused("there are no parquet files", "--parquet", folder / "none-*.parquet", out=out)
    write_parquet(folder / "empty.parquet", [(b"x", "y")])
    pq.write_table(pq.read_table(folder / "empty.parquet").slice(0, 0), folder / "empty.parquet")
    refused("has no rows", "--parquet", folder / "empty.parquet", out=out)
    (folder / "splits").mkdir()
    for split in ("train", "test"):
        shutil.copy(folder / "fine.parquet", folder / "splits" / f"{split}-00000-of-00001.parquet")
    refused("different splits (test, train); choose one", "--parquet", folder / "splits", out=out)
    refused("no parquet files of the split 'dev'", "--parquet", folder / "splits", "--split", "dev", out=out)
    refused("ask for fewer", *fine, "--shards", 9, out=out)
    refused("not a folder", "--pairs", folder / "nothing", out=out)
    refused("found 0 images", "--pairs", folder / "splits", out=out)
    refused("no tokenizer inside", *fine, "--tokenizer", ROOT / "test/fixtures/gqa.expected.safetensors", out=out,
            tokenizer=False)
    refused("not a model of tikz.c", *fine, "--model", TOKENIZER, out=out, tokenizer=False)
    refused("No sample could be used", *fine, "--max-tokens", 1, out=out)
    with unittest.mock.patch.dict(sys.modules, {"pyarrow": None, "pyarrow.parquet": None}):
        refused("The package pyarrow is missing; install it with `pip install -r", *fine, out=out)
    with unittest.mock.patch.dict(sys.modules, {"tokenizers": None}):
        refused("The package tokenizers is missing; install it with `pip install -r", *fine, out=out)
    check("4 samples" in convert("--parquet", folder / "splits", "--split", "test", out=out), "one split of two")
    refused("out.bin exists already", *fine, out=out)
    convert(*fine, "--max-tokens", 8, "--overwrite", out=out)
    check(len(read(out)) == 4, "--overwrite")
    for options in (["--shards", "0"], ["--val-share", "2"], ["--shard-size", "x"], ["--val-out", str(out)]):
        with unittest.mock.patch.object(sys, "stderr", io.StringIO()):
            try:
                convert(*fine, *options, out=out)
                check(False, f"{options} are refused")
            except SystemExit as e:
                check(e.code == 2, f"{options} end with status 2", e.code)


def test_splits(folder):
    """The usual layouts of the Hub."""
    for path, split in (("data/train-00000-of-00002.parquet", "train"), ("train/0000.parquet", "train"),
                        ("default/train/0000.parquet", "train"), ("default/partial-train/0000.parquet", "train"),
                        ("data/train-00000-of-00032-b1cc0d.parquet", "train"), ("validation.parquet", "validation"),
                        ("my_test_v2.parquet", "test"), ("train/data-00000-of-00004.parquet", "train"),
                        ("data/train_sft-00000-of-00001.parquet", "train_sft"), ("data/0000.parquet", None),
                        ("data/part-0.parquet", None)):
        check(parquet.split_of(path) == split, path, parquet.split_of(path))
    check(parquet.split_of("data/extra-00000-of-00001.parquet", "extra") == "extra", "a split of another name")
    hub = folder / "hub"
    for config, name, count in (("big", "partial-train", 3), ("small", "train", 2), ("small", "partial-train", 1),
                                ("small", "test", 1)):
        (hub / config / name).mkdir(parents=True)
        write_parquet(hub / config / name / "0000.parquet", [(make_image(i)[0], f"{config} {i}") for i in range(count)])
    messages = convert("--parquet", hub / "big", "--split", "train", out=folder / "a.bin")
    check(len(read(folder / "a.bin")) == 3 and "big/partial-train: only a part of the split" in messages, "in part",
          messages)
    messages = convert("--parquet", hub / "small", "--split", "train", out=folder / "b.bin")
    check(len(read(folder / "b.bin")) == 2 and "small/partial-train: left out" in messages, "the whole one", messages)
    refused("no parquet files of the split 'dev'; found: test, train", "--parquet", hub, "--split", "dev",
            out=folder / "out.bin")
    refused("different splits (test, train)", "--parquet", hub / "*" / "*" / "*", out=folder / "out.bin")
    messages = convert("--parquet", hub / "*" / "*" / "*.parquet", "--split", "test", out=folder / "c.bin")
    check(len(read(folder / "c.bin")) == 1, "--split with a pattern", messages)
    refused("nothing-*: there are no parquet files", "--parquet", hub, hub / "nothing-*", "--split", "test",
            out=folder / "out.bin")
    twice = hub / "small" / "test"
    convert("--parquet", twice, twice / "0000.parquet", out=folder / "d.bin")
    check(len(read(folder / "d.bin")) == 1, "a file that is named twice is read once")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


def test_pointers(folder):
    """Git LFS pointers instead of data are called so; pipes and devices are refused at once."""
    root, out, parquet_file = folder / "pairs", folder / "out.bin", folder / "a.parquet"
    root.mkdir()
    write_pair(root, "a", "good")
    write_pair(root, "b", POINTER)
    write_pair(root, "c", "x")
    (root / "c.png").write_bytes(POINTER)
    write_pair(root, "d", "x")
    (root / "d.png").unlink()
    os.mkfifo(root / "d.png")
    messages = convert("--pairs", root, out=folder / "p.bin")
    for part in ("dropped 1: the code is a Git LFS pointer, not the data; run git lfs pull (first: ",
                 "dropped 1: the image is a Git LFS pointer, not the data; run git lfs pull (first: ",
                 "dropped 1: a .tex file without its image (first: "):
        check(part in messages, part, messages)
    write_parquet(parquet_file, [(POINTER, "x"), (make_image(0)[0], "y")])
    messages = convert("--parquet", parquet_file, out=folder / "q.bin")
    check("dropped 1: the image is a Git LFS pointer" in messages, "a pointer in parquet", messages)
    pointer, pipe, lists = folder / "pointer", folder / "pipe", folder / "im2latex"
    pointer.write_bytes(POINTER)
    os.mkfifo(pipe)
    (lists / "formula_images").mkdir(parents=True)
    (lists / "im2latex_train.lst").write_text("0 a basic\n1 b basic\n")
    (lists / "im2latex_formulas.lst").write_text("x\ny\n")
    os.mkfifo(lists / "formula_images" / "a.png")
    (lists / "formula_images" / "b.png").symlink_to("/dev/zero")
    refused("dropped 2: the image cannot be read (first: ", "--im2latex", lists, out=out)
    for path, part in ((pointer, "is a Git LFS pointer, not the data; run git lfs pull."),
                       (pipe, "a pipe, not a file."), ("/dev/zero", "a device, not a file.")):
        refused(part, "--parquet", path, out=out)
        refused(part, "--pairs", root, "--tokenizer", path, out=out, tokenizer=False)
        refused(part, "--pairs", root, "--model", path, out=out, tokenizer=False)
        refused(part, "--im2latex", lists, "--formulas", path, out=out)
        refused(part, "--im2latex", lists, "--list", path, out=out)


def test_names(folder):
    """Names with line ends and other control characters, and the longest names."""
    root = folder / "pairs"
    root.mkdir()
    names = ["a\nb", "c\x1b[31md", "e\u202ef", os.fsdecode(b"g\xff"), "h" * 250, "i" * 251]
    for i, name in enumerate(names):
        write_pair(root, name, "" if i % 2 else f"x {i}")
    (root / "z\nconvert_dataset.py: error: forged.png").write_bytes(b"x")
    messages = convert("--pairs", root, "--report", folder / "r.json", out=folder / "p.bin")
    check("(first: " in messages and "c\\x1b[31md" in messages and "z\\nconvert_dataset.py: error: forged.png)" in
          messages and all(c.isprintable() for c in messages.replace("\n", "")), "messages are lines", messages)
    report = json.loads((folder / "r.json").read_text())
    check(len(report["samples"]) == 4 and len(read(folder / "p.bin")) == 3, "the report", report)
    (folder / "new\nline").mkdir()
    shutil.copytree(root, folder / "new\nline" / "pairs\nx")
    convert("--pairs", folder / "new\nline" / "pairs\nx", out=folder / "q.bin")
    check("\n" not in tikzc.Dataset(folder / "q.bin").source, "the source in the header is a line")
    for out in ("o" * 240, "o" * 251 + ".bin", "\u00e9" * 127, "new\nline.bin"):
        made = [folder / out, folder / f"v{out[1:]}"]
        messages = convert("--pairs", root, "--val-out", made[1], "--val-share", 0.5, out=made[0])
        check(sum(len(read(path)) for path in made if path.exists()) == 3 and "\nline" not in messages,
              f"a name of {len(os.fsencode(out))} bytes", messages)
        interrupted_at = folder / f"w{out[1:]}"
        interrupted("--pairs", root, out=interrupted_at)
        convert("--pairs", root, out=interrupted_at)
        check(len(read(interrupted_at)) == 3, f"gone on with a name of {len(os.fsencode(out))} bytes")
    check(not list(folder.glob("*.parts")), "nothing is left")
    refused("The name ooo", "--pairs", root, out=folder / ("o" * 256))
    refused("has 257 bytes", "--pairs", root, "--shards", 1, out=folder / ("o" * 242))
    for option in ("--val-out", "--report"):
        refused("nowhere/x cannot be written: there is no folder", "--pairs", root, option, folder / "nowhere" / "x",
                out=folder / "out.bin")
        refused("is a folder; name a file", "--pairs", root, option, root, out=folder / "out.bin")
    refused("/dev/null is not a regular file", "--pairs", root, out="/dev/null")
    (folder / "out.bin.parts").mkdir()
    (folder / "out.bin.parts" / "mine.txt").write_text("mine")
    refused("a folder with other files, such as mine.txt", "--pairs", root, "--overwrite", out=folder / "out.bin")


def test_hostile_parquet(folder):
    """Few bytes that stand for gigabytes: a page, a dictionary, rows."""
    good, big = make_image(0)[0], make_image(0)[0] + bytes(8 << 20)

    def write(name, images, codes, **options):
        pq.write_table(pa.table({"image": images, "code": codes}), folder / name, compression="zstd", **options)

    def repeated(value, kind, count):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value], kind))
    write("page.parquet", pa.array([bytes(1 << 29)], pa.binary()), ["x"], use_dictionary=False)
    write("codes.parquet", pa.array([good] * 100, pa.binary()), repeated("x" * (8 << 20), pa.string(), 100),
          dictionary_pagesize_limit=1 << 30)
    # without the Arrow schema, in which the column is a dictionary, pyarrow repeats the value
    write("images.parquet", repeated(big, pa.binary(), 100), ["x"] * 100, dictionary_pagesize_limit=1 << 30,
          store_schema=False)
    write("rows.parquet", repeated(good, pa.binary(), 1 << 20), repeated("x", pa.string(), 1 << 20),
          row_group_size=1 << 20)
    for name, part in (("page", "inflates to 53687"), ("codes", "inflates from"), ("images", "inflates from"),
                       ("rows", f"claims {1 << 20} rows in")):
        path = folder / f"{name}.parquet"
        check(path.stat().st_size < 50000, f"{path.name} is small", path.stat().st_size)
        status, messages, memory = measured("--parquet", path, "--tokenizer", TOKENIZER, "--out", folder / "out.bin",
                                            "--jobs", 1)
        check(status == 1 and part in messages and memory < 230 << 20, f"{path.name} is refused",
              f"{memory >> 20} MB {messages[-300:]}")
    with pages.limited_memory(64 << 20):
        try:
            found = len(bytearray(1 << 30))
        except MemoryError:
            found = "MemoryError"
    check(found == "MemoryError" and len(bytearray(1 << 28)), "memory is limited for a while", found)
    noise = np.random.default_rng(1).bytes(60 << 20)
    write("large.parquet", pa.array([noise], pa.binary()), ["x"], use_dictionary=False)
    program = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import convert_dataset; from dataset import pages, "
               "parquet; parquet.SPARE_BYTES = 16 << 20; pages.row_group_cost = lambda *_: pages.Cost(1, 1, 0); "
               "convert_dataset.main()")
    done = subprocess.run([sys.executable, "-c", program, ROOT / "scripts", *arguments(
        "--parquet", folder / "large.parquet", "--jobs", 1, out=folder / "out.bin")], capture_output=True, text=True)
    check("row group 0 is damaged (reading it takes too much memory)" in done.stderr, "what the pages do not tell",
          done.stderr[-300:])


def hostile(folder):
    """Images that would cost far more memory than they have bytes. {name: bytes}"""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width, height, data, extra=b""):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return images.PNG_SIGNATURE + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    def zeros(size):
        deflate = zlib.compressobj(9)
        return b"".join(deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)) + deflate.flush()
    bomb, honest = zeros(1 << 29), zlib.compress(bytes(10 * 31))
    lossy, webp = Image.new("RGB", (8, 8)), bytearray(saved(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)  # 16384 x 16384
    jpeg = bytearray(saved(lossy, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5:frame + 9] = struct.pack(">HH", 65000, 65000)
    scans = saved(lossy, "JPEG", progressive=True)
    last = scans.rindex(b"\xff\xda")
    gif = bytearray(saved(lossy.convert("P"), "GIF"))
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    gif[frame + 5:frame + 9] = struct.pack("<HH", 60000, 60000)  # a frame larger than its screen
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 10)
    for tag, value in ((256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, 22000), (323, 22000),
                       (324, 200), (325, len(bomb))):
        tiff += struct.pack("<HHII", tag, 4, 1, value)
    return {"header.png": png(60000, 60000, honest), "bomb.png": png(10, 10, bomb),
            "short.png": png(9000, 9000, honest), "flat.webp": bytes(webp),
            "text.png": png(10, 10, honest, chunk(b"zTXt", b"a\0\0" + bomb)),
            "header.jpg": bytes(jpeg), "frame.gif": bytes(gif),
            "scans.jpg": scans[:-2] + scans[last:-2] * 600 + scans[-2:],
            "tile.tif": tiff.ljust(200, b"\0") + bomb,
            "chunks.png": png(10, 10, honest, chunk(b"PLTE", b"") * 300000),
            "header.bmp": saved(lossy, "BMP").replace(struct.pack("<ii", 8, 8), struct.pack("<ii", 50000, 50000))}


def test_hostile(folder, build):
    root = folder / "hostile"
    root.mkdir()
    for name, data in hostile(folder).items():
        (root / name).write_bytes(data)
    for i, name in enumerate(sorted(p.name for p in root.iterdir())):  # one stem may have several suffixes
        (root / name).rename(root / f"{i}-{name}")
        (root / f"{i}-{name}").with_suffix(".tex").write_text(name)
    started = time.monotonic()
    status, messages, memory = measured("--pairs", root, "--tokenizer", TOKENIZER, "--out", folder / "h.bin",
                                        "--jobs", 1)
    check(status == 0 and memory < 200 << 20, "hostile images cost little memory", f"{memory >> 20} MB, {messages}")
    check(time.monotonic() - started < 20, "hostile images cost little time")
    kept = {tikzc.Tokenizer.load(TOKENIZER).decode(ids) for _, ids in read(folder / "h.bin")}
    check(kept == {"bomb.png", "text.png"}, "only the small ones are kept", kept)
    stored = [image for image, _ in read(folder / "h.bin")]
    check(min(map(len, stored)) < 500, "what follows the pixels is gone", list(map(len, stored)))
    readable(build, folder, stored, "hostile images that are kept")


def peak(pid):
    """Most resident bytes so far of a process and its children, each for itself."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")]
    return max([*own, *map(peak, children)], default=0)


def measured(*options):
    """(status, messages, peak resident bytes of the largest process). ru_maxrss will not do: it is inherited."""
    with tempfile.TemporaryFile("w+") as messages:
        process, most = script(*options, stderr=messages), 0
        while process.poll() is None:
            most = max(most, peak(process.pid))
            time.sleep(0.01)
        messages.seek(0)
        return process.returncode, messages.read(), most


def readable(build, folder, stored, what):
    """All images are taken by the C reader."""
    names = []
    for i, data in enumerate(stored):
        names.append(folder / f"stored{i}")
        names[-1].write_bytes(data)
    run = subprocess.run([build / "test_lib", "--prepare", "8", folder / "prepared", *names], capture_output=True,
                         text=True)
    check(run.returncode == 0, f"the C reader takes {what}", run.stderr[-300:])
    for name in names:
        name.unlink()


def damage(random_, png, kind):
    """kind 0: changes the inflated data; 1: inserts a chunk; 2, 3: changes bytes and corrects the checksums;
    4: changes bytes."""
    head, content, tail = inflate(png)
    if kind == 0:
        for _ in range(random_.randint(1, 3)):
            content[random_.randrange(len(content))] = random_.randrange(8)
        content = content[:len(content) - random_.choice((0, 0, 0, 1))]
    if kind <= 1:
        chunk = random_.choice((b"tRNS", b"tRNS", b"PLTE", b"IHDR", b"IEND", b"eXIf", b"ABCD", b"abCD"))
        chunk = bytes([0, 0, 0, n := random_.choice((0, 2, 3, 6, 30))]) + chunk + random_.randbytes(n) + bytes(4)
        before = random_.random() < 0.7
        content = zlib.compress(content)
        return fix_crc(head + chunk * (kind and before) + struct.pack(">I", len(content)) + b"IDAT" + content +
                       bytes(4) + chunk * (kind and not before) + tail)
    for _ in range(random_.randint(1, 3)):
        png[random_.randrange(8, len(png))] = random_.randrange(256)
    return fix_crc(png) if kind < 4 else png


def inflate(png):
    """(the PNG up to its data, the inflated data, the rest)"""
    first, last = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    return bytes(png[:first]), bytearray(zlib.decompress(b"".join(
        content for kind, content in images.png_chunks(bytes(png)) if kind == b"IDAT"))), bytes(png[last:])


def test_damaged_png(folder, build):
    """Of PNG that are damaged at random, in the file or in the inflated data: what is kept, the C reader takes."""
    random_, stored, made = random.Random(7), [], []
    for path, _ in compare_images.make_images(folder):
        if path.suffix == ".png" and path.stat().st_size < 20000:
            made.append(path.read_bytes())
    for i in range(2500):
        data = damage(random_, bytearray(random_.choice(made)), i % 5)
        try:
            stored.append(images.prepare(bytes(data))[0])
        except images.ImageError:
            pass
    check(len(stored) > 50, "some survive", len(stored))
    readable(build, folder, stored, "what is kept of damaged PNG")


def test_damaged_jpeg(folder, build):
    """The same for JPEG: changed bytes, and cut off anywhere."""
    random_, stored = random.Random(8), []
    made = [data for size in ((40, 25), (17, 33)) for progressive in (False, True)
            for _, data in compare_images.make_jpegs(size, 1, progressive=progressive)]
    for i in range(1500):
        data = random_.choice(made).copy()
        for _ in range(random_.randint(0, 3)):
            data[random_.randrange(len(data))] = random_.choice((0, 0xFF, 0xD9, 0xDA, random_.randrange(256)))
        if i % 3 == 0:
            del data[random_.randrange(3, len(data)):]
        try:
            stored.append(images.prepare(bytes(data))[0])
        except images.ImageError:
            pass
    check(200 < len(stored) < 1300, "some survive", len(stored))
    readable(build, folder, stored, "what is kept of damaged JPEG")


def damaged(random_, data, from_end=None):
    """The bytes with one kind of damage. from_end: change bytes only among so many last ones."""
    data, how = bytearray(data), random_.randrange(6)
    at = random_.randrange(len(data))
    if how == 0:
        del data[at:]
    elif how == 1:
        del data[at:at + random_.randint(1, 60)]
    elif how == 2:
        data[at:at] = random_.randbytes(random_.randint(1, 30))
    else:
        for _ in range(random_.choice((1, 1, 2, 4, 9))):
            at = random_.randrange(max(0, len(data) - (from_end or len(data))), len(data))
            data[at] = random_.choice((data[at] ^ 1 << random_.randrange(8), random_.randrange(256), 0, 127, 128, 255))
    return bytes(data)


def survives(*options, out, tokenizer=True):
    """The conversion of damaged data succeeds or ends with one sentence. Returns whether it succeeds."""
    try:
        with unittest.mock.patch.object(os, "fsync"):  # most of the time
            messages = convert(*options, "--overwrite", out=out, tokenizer=tokenizer)
        check(files.printable(messages.replace("\n", "")) == messages.replace("\n", ""), "printable", messages)
        return True
    except SystemExit as e:
        check(str(e.code).startswith("convert_dataset.py: error: "), "a sentence", e.code)
    except Exception as e:
        check(False, "damage ends in a sentence", f"{e!r}")
    return False


def test_damaged_parquet(folder):
    random_, good, made = random.Random(21), 0, []
    rows = [(make_image(i)[0], f"\\draw ({i},{i * i});") for i in range(0, 48, 2)]
    for options in ({"compression": "snappy"}, {"compression": "zstd", "use_dictionary": False},
                    {"compression": "gzip", "data_page_version": "2.0", "data_page_size": 2000},
                    {"compression": "none", "use_dictionary": False, "column_encoding": {
                        "code": "DELTA_BYTE_ARRAY", "image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}):
        write_parquet(folder / "whole.parquet", rows, 9, **options)
        made.append((folder / "whole.parquet").read_bytes())
    for i in range(200):
        (folder / "d.parquet").write_bytes(damaged(random_, made[i % 4], random_.choice((None, 3000))))
        good += survives("--parquet", folder / "d.parquet", out=folder / "d.bin")
    check(10 < good < 190, "some survive", good)
    # a name that is not UTF-8 in the description of a column
    (folder / "d.parquet").write_bytes(made[0].replace(b"caption", b"capti\x80n"))
    survives("--parquet", folder / "d.parquet", out=folder / "d.bin")


def test_damaged_lists(folder):
    random_, good, root = random.Random(22), 0, folder / "lists"
    (root / "formula_images").mkdir(parents=True)
    for i in range(40):
        for k in range(6):
            data = make_image(k)[0]
            data = damaged(random_, data) if random_.random() < 0.3 else data
            (root / "formula_images" / f"p{k}.png").write_bytes(data)
        formulas = b"".join(b"\\alpha_%d + %d\n" % (k, k) for k in range(6))
        (root / "im2latex_formulas.lst").write_bytes(damaged(random_, formulas))
        listing = b"".join(b"%d p%d basic\n" % (k, k) for k in range(6))
        (root / "im2latex_train.lst").write_bytes(damaged(random_, listing))
        good += survives("--im2latex", root, out=folder / "d.bin")
        pairs = folder / "pairs"
        pairs.mkdir(exist_ok=True)
        for k in range(12):
            suffix = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")[k % 6]
            (pairs / f"{k}{suffix}").write_bytes(damaged(random_, make_image((0, 2, 7, 8, 9, 10)[k % 6])[0]))
            (pairs / f"{k}.tex").write_bytes(damaged(random_, b"\\draw (1,2);\r\n caf\xc3\xa9" * 3))
        good += survives("--pairs", pairs, out=folder / "d.bin")
    check(good > 50, "most survive", good)


def test_damaged_tokenizer(folder):
    """The safetensors file with the tokenizer: its header, its tensors, and shapes that cannot be."""
    random_, whole, root = random.Random(23), TOKENIZER.read_bytes(), folder / "pairs"
    root.mkdir()
    write_pair(root, "a", "x = 1")
    (length,), path = struct.unpack("<Q", whole[:8]), folder / "t.safetensors"

    def attempt(header, rest):
        path.write_bytes(struct.pack("<Q", len(header)) + header + rest)
        return survives("--pairs", root, "--tokenizer", path, out=folder / "d.bin", tokenizer=False)
    header, rest, good = whole[8:8 + length], whole[8 + length:], 0
    for i in range(160):
        good += attempt(damaged(random_, header), rest) if i % 2 else attempt(header, damaged(random_, rest))
    check(good < 150, "some are refused", good)
    parsed = json.loads(header)
    for text in (b"[]", b"1", b"null", b"[" * 100000, b'{"__metadata__":[]}', b'{"__metadata__":{"a":1}}', b'{"a":5}',
                 b'{"a":{"dtype":[],"shape":[],"data_offsets":[0,0]}}',
                 b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}',
                 b'{"a":{"dtype":"U8","shape":[0,' + b"9" * 40 + b'],"data_offsets":[0,0]}}',
                 b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'):
        check(not attempt(text, rest), f"{text[:60]} is refused")
    for name, change in (("tokenizer.offsets", {"dtype": "F32"}), ("tokenizer.flags", {"dtype": "BOOL"}),
                         ("tokenizer.offsets", {"shape": [1, parsed["tokenizer.offsets"]["shape"][0]]}),
                         ("tokenizer.offsets", {"shape": [0], "data_offsets": [0, 0]}),
                         ("__metadata__", {"tokenizer.end": "9" * 5000}), ("__metadata__", {"tokenizer.strip": "-1"})):
        check(not attempt(json.dumps({**parsed, name: {**parsed[name], **change}}).encode(), rest), f"{change}"[:60])


def test_damaged_parts(folder):
    """What an interruption left, damaged: the same command goes on or says to start anew."""
    random_, root, out = random.Random(24), folder / "pairs", folder / "o.bin"
    root.mkdir()
    for i in range(24):
        write_pair(root, f"{i:02d}", f"x = {i}")
    interrupted("--pairs", root, out=out)
    shutil.move(folder / "o.bin.parts", folder / "kept")
    refusals = 0
    for i in range(60):
        shutil.rmtree(folder / "o.bin.parts", ignore_errors=True)
        shutil.copytree(folder / "kept", folder / "o.bin.parts")
        out.unlink(missing_ok=True)
        victim = random_.choice([p for p in sorted((folder / "o.bin.parts").iterdir()) if p.name != "lock"])
        victim.write_bytes((b"[]", b"[" * 100000, b"", b"null", b"\xff", b"{}")[i] if i < 6 else
                           damaged(random_, victim.read_bytes()))
        try:
            convert("--pairs", root, out=out)
        except SystemExit as e:
            refusals += 1
            check("is damaged" in str(e.code) or "--overwrite" in str(e.code), "names what to do", e.code)
        except Exception as e:
            check(False, f"{victim.name} ends in a sentence", f"{e!r}")
    check(refusals > 30, "damage is noticed", refusals)


def test_scaling(folder, build):
    image = compare_images.drawing("RGBA", (900, 300), 3)
    stored, note = images.prepare(saved(image, "PNG"), 300)
    check(Image.open(io.BytesIO(stored)).size == (300, 100) and "scaled down to 300 pixels" in note, "scaled", note)
    expected = Image.fromarray(over_white(image)).resize((300, 100), Image.Resampling.BICUBIC)
    check((over_white(Image.open(io.BytesIO(stored))) == np.asarray(expected)).all(), "scaled over white")
    data = saved(image, "PNG")
    check(images.prepare(data, 900) == (data, None), "an image within --max-side stays as it is")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(compare_images.drawing("RGB", (50, 20), 1), "PNG", exif=exif)
    check(images.prepare(turned) == (turned, None), "a PNG that must be turned stays as it is, for the reader to turn")
    check(Image.open(io.BytesIO(images.prepare(turned, 40)[0])).size == (16, 40), "scaled down, it is stored upright")
    beyond = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    beyond.putpalette([255, 0, 0, 0, 255, 0])
    stored, note = images.prepare(saved(beyond, "PNG", bits=4))
    check(note is None or "beyond its palette" in note, "colours beyond the palette", note)
    readable(build, folder, [stored], "a short palette")


def test_memory(folder):
    """300 MB in one row group: less than 200 MB resident, for the single process and for each of two."""
    rng = np.random.default_rng(1)
    some = [saved(Image.fromarray(rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)), "PNG", compress_level=0)
            for _ in range(20)]
    path = folder / "large.parquet"
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("code", pa.string())])
    table = pa.table([pa.array([{"bytes": some[i % 20]} for i in range(10000)], schema[0].type),
                      pa.array([f"text {i}" for i in range(10000)])], schema=schema)
    pq.write_table(table, path, row_group_size=10000, compression="none", use_dictionary=False)
    del table
    check(path.stat().st_size > 290e6, "the source is large enough", path.stat().st_size)
    options = ["--parquet", path, "--tokenizer", TOKENIZER, "--out", folder / "large.bin"]
    for jobs in (1, 2):
        status, messages, memory = measured(*options, "--jobs", jobs, "--overwrite")
        check(status == 0 and memory < 200 << 20, f"{jobs} processes: each below 200 MB",
              f"{memory >> 20} MB {messages[-300:]}")
        print(f"memory: {memory >> 20} MB resident at most, {jobs} processes, source of "
              f"{path.stat().st_size >> 20} MB", file=sys.stderr)
    check(len(tikzc.Dataset(folder / "large.bin")) == 10000, "all rows are there")
    (folder / "large.bin").unlink()
    path.unlink()


def test_interruptions(folder):
    """kill -9 at random moments, then the same command again: the same bytes. Ctrl-C and a changed argument, too."""
    made = samples(120) * 40
    write_parquet(folder / "many.parquet", [(p, f"{t}% {i}") for i, (p, _, t) in enumerate(made)], 40)
    base = ["--parquet", folder / "many.parquet", "--model", MODEL, "--shards", 3, "--val-out"]
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir()
    cut.mkdir()
    started = time.monotonic()
    process = script(*base, whole / "v.bin", "--out", whole / "t.bin", "--jobs", 2)
    messages, took = process.communicate()[1], time.monotonic() - started
    check(process.returncode == 0 and len(list(whole.iterdir())) == 4, "uninterrupted", messages)
    command = [*base, cut / "v.bin", "--out", cut / "t.bin", "--jobs", 2]
    random_, kills, resumed = random.Random(11), 0, 0
    for attempt in range(30):
        process = script(*command)
        pattern, more = ("t.bin.parts/part-*.json", random_.randint(1, 3)) if attempt else ("t-*.bin", 1)
        if wait_for_files(process, cut, pattern, more, random_.uniform(0, 0.05 * took) if attempt else 0):
            process.send_signal(signal.SIGINT if attempt == 2 else signal.SIGKILL)
            kills += 1
        messages = process.communicate()[1]
        resumed += "going on" in messages
        if process.returncode == 0:
            break
        check(attempt != 2 or process.returncode == 1 and "the same command goes on" in messages, "Ctrl-C", messages)
        check(all(same_files(p, whole / p.name) for p in cut.glob("*.bin")), "no file under its name is half written")
    # how many fit into one conversion depends on the machine
    check(process.returncode == 0 and kills >= 2 and resumed >= 2, "killed and gone on",
          f"{kills} kills, {resumed} resumed, {messages}")
    check(sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir()) and
          all(same_files(p, whole / p.name) for p in cut.iterdir()), "interrupted and not: the same files")
    print(f"interruptions: {kills} kills, {resumed} went on, uninterrupted {took:.1f} s", file=sys.stderr)


def wait_for_files(process, folder, pattern, more, delay):
    """Until there are so many more files, and a moment longer; False when the process ends before."""
    wanted = len(list(folder.glob(pattern))) + more
    while process.poll() is None:
        if len(list(folder.glob(pattern))) >= wanted:
            time.sleep(delay)
            return True
        time.sleep(0.001)
    return False


def interrupted(*options, out):
    """Leaves a conversion that was interrupted after its first part."""
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)
    original = parts.convert_part
    with unittest.mock.patch.object(parts, "convert_part", stop):
        try:
            convert(*options, out=out)
        except SystemExit as e:
            check("interrupted" in str(e.code), "interrupted", e.code)


def test_going_on(folder):
    """Resuming refuses what is not the same; two at once are refused; Ctrl-C in a single process."""
    write_parquet(folder / "few.parquet", [(p, t) for p, _, t in samples(60)], 10)
    source, out = ["--parquet", folder / "few.parquet"], folder / "out.bin"
    convert(*source, out=folder / "reference.bin")
    interrupted(*source, out=out)
    check((folder / "out.bin.parts" / "part-000000.json").exists() and not out.exists(), "the first part is kept")
    refused('had token limit "1048576", this one has "100"; go on', *source, "--max-tokens", 100, out=out)
    refused("had --shards 0, this one has 2", *source, "--shards", 2, out=out)
    shutil.copy(folder / "few.parquet", folder / "few-copy.parquet")
    write_parquet(folder / "few.parquet", [(p, t) for p, _, t in samples(60)], 20)
    refused('the interrupted conversion had source ["few.parquet"', *source, out=out)
    shutil.copy2(folder / "few-copy.parquet", folder / "few.parquet")
    lock = parts.Folder(str(out) + ".parts", json.loads((folder / "out.bin.parts/manifest.json").read_text()),
                                  False)
    refused("another conversion is writing there", *source, out=out)
    lock.lock.close()
    (folder / "out.bin.parts" / "part-000001.train.bin").write_bytes(b"left by a kill before the part was done")
    (folder / "out.bin.parts" / "part-000001.json.123.tmp").write_bytes(b"half")
    manifest = folder / "out.bin.parts" / "manifest.json"
    state = json.loads(manifest.read_text())
    state["source"][0][2] = (folder / "few.parquet").stat().st_mtime_ns  # the copy is younger than the original
    manifest.write_text(json.dumps(state))
    messages = convert(*source, out=out)
    check("going on, 1 of" in messages and same_files(out, folder / "reference.bin"), "gone on: the same", messages)
    check(not (folder / "out.bin.parts").exists(), "the folder of parts is gone")
    interrupted(*source, out=folder / "out2.bin")
    (folder / "out2.bin.parts" / "manifest.json").write_text("{")
    refused("its manifest.json is damaged", *source, out=folder / "out2.bin")
    convert(*source, "--overwrite", out=folder / "out2.bin")
    check(same_files(folder / "out2.bin", folder / "reference.bin"), "--overwrite starts anew")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = pathlib.Path(sys.argv[1]).resolve()
    for test in (test_parquet, test_validation, test_im2latex, test_hub, test_pairs, test_own_output, test_links, test_no_image,
                 test_line_ends, test_suffixes, test_splits, test_pointers, test_names, test_begin, test_bad_rows,
                 test_refused, test_scaling, test_dataset_bits, test_full_disk, test_damaged_png, test_damaged_jpeg,
                 test_damaged_parquet, test_damaged_lists, test_damaged_tokenizer, test_damaged_parts,
                 test_hostile_parquet, test_hostile, test_going_on, test_interruptions, test_memory):
        with tempfile.TemporaryDirectory() as name:
            names, started = test.__code__.co_varnames[:test.__code__.co_argcount], time.monotonic()
            test(*[pathlib.Path(name) if n == "folder" else build for n in names])
            print(f"{test.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    end()


if __name__ == "__main__":
    main()
