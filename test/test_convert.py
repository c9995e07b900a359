#!/usr/bin/env python3
"""Tests of scripts/convert_dataset.py: every source and image format, and bad input.

    test/test_convert.py BUILD_DIR       BUILD_DIR: with test_lib and eval, the C side that reads the result

Needs the packages of scripts/requirements.txt.
"""
import io
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import unittest.mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / folder) for folder in ("scripts", "test")]
from check import check  # noqa: E402
import compare_images  # noqa: E402
from converting import (  # noqa: E402
    MODEL, ROOM, ROOT, TOKENIZER, convert, encoded, fix_crc, interrupted, make_image, over_white, read, readable,
    refused, run_tests, same_files, same_image, samples, saved, write_pair, write_parquet)
from dataset import images, parquet, parts, sources  # noqa: E402
import tikzc  # noqa: E402


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
    for options in (["--shards", "0"], ["--val-share", "2"], ["--val-share", "0.5"], ["--shard-size", "x"], ["--val-out", str(out)]):
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


if __name__ == "__main__":
    run_tests((test_parquet, test_validation, test_im2latex, test_hub, test_pairs, test_own_output, test_links,
               test_no_image, test_line_ends, test_suffixes, test_splits, test_pointers, test_names, test_begin,
               test_bad_rows, test_refused, test_scaling, test_dataset_bits))
