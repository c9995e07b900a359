"""What the tests of scripts/convert_dataset.py share: running it, making what it reads, and reading what it writes."""
import contextlib
import io
import pathlib
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
from dataset import parts  # noqa: E402
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


def read(path):
    data = tikzc.Dataset(path)
    return [(image, ids.tolist()) for image, ids in (data[i] for i in range(len(data)))]


def same_files(a, b):
    return pathlib.Path(a).read_bytes() == pathlib.Path(b).read_bytes()


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


def write_pair(folder, name, code, image=".png", text=".tex"):
    (folder / f"{name}{image}").write_bytes(make_image(2 if "j" in image.lower() else 0)[0])
    (folder / f"{name}{text}").write_bytes(code if isinstance(code, bytes) else code.encode())


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


# ---- the tests ----

def run_tests(tests):
    """main of a file of tests: those whose parameter is named build get the build folder, each a folder of its own."""
    if len(sys.argv) != 2:
        sys.exit(sys.modules["__main__"].__doc__)
    build = pathlib.Path(sys.argv[1]).resolve()
    for test in tests:
        with tempfile.TemporaryDirectory() as name:
            names, started = test.__code__.co_varnames[:test.__code__.co_argcount], time.monotonic()
            test(*[pathlib.Path(name) if n == "folder" else build for n in names])
            print(f"{test.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    end()
