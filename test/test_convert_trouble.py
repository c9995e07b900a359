#!/usr/bin/env python3
"""Tests of scripts/convert_dataset.py in trouble: hostile and damaged sources, little memory, full disks, interruptions.

    test/test_convert_trouble.py BUILD_DIR       BUILD_DIR: with test_lib, the C side that reads the images

Needs the packages of scripts/requirements.txt.
"""
import errno
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
from PIL import Image

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / folder) for folder in ("scripts", "test")]
from check import check  # noqa: E402
import compare_images  # noqa: E402
from converting import (  # noqa: E402
    MODEL, ROOT, TOKENIZER, arguments, convert, fix_crc, interrupted, make_image, read, readable, refused,
    run_tests, same_files, samples, saved, script, write_pair, write_parquet)
from dataset import images, pages, parts  # noqa: E402
import files  # noqa: E402
import tikzc  # noqa: E402


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
    root = folder / "pairs"
    root.mkdir()
    for i in range(24):
        write_pair(root, f"{i:02d}", f"x = {i}")
    interrupted("--pairs", root, out=folder / "pairs.bin")
    for suffix in (".png", ".tex"):
        (root / f"00{suffix}").rename(root / f"99{suffix}")
    refused("the interrupted conversion had source", "--pairs", root, out=folder / "pairs.bin")


if __name__ == "__main__":
    run_tests((test_full_disk, test_damaged_png, test_damaged_jpeg, test_damaged_parquet, test_damaged_lists,
               test_damaged_tokenizer, test_damaged_parts, test_hostile_parquet, test_hostile, test_going_on,
               test_interruptions, test_memory))
