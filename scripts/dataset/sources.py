"""The data sets that convert_dataset.py reads: the layout of im2latex-100K, a folder of pairs (parquet files are in
parquet.py).

A source has
    name            its name, for the header of the dataset
    identity        [[name, bytes, time of change]], which must be the same when an interrupted conversion continues
    rows            the number of rows
    blocks()        [Block]: how it can be divided, in order
    read(span)      yields the Rows of a span, with only a few in memory at a time
    holds(path)     whether a file is one of its own, which must not be overwritten
and can be pickled, to be sent to another process. A problem with a whole file raises tikzc.FormatError; a problem
with one row is reported in its `problem`.
"""
import codecs
import hashlib
import os
from typing import NamedTuple, Optional

import numpy as np

from dataset import images, text
import files
import tikzc

MAX_CODE_BYTES = 1 << 20  # longer code is not encoded at all, because `tokenizers` needs 250 times its bytes


class Place(NamedTuple):
    """Where a sample comes from. label: "row" (counted from 0), "line" (counted from 1), or "" for a file of its
    own."""
    file: str
    label: str = ""
    number: int = 0

    def __str__(self):
        return f"{self.file}, {self.label} {self.number}" if self.label else self.file


class Row(NamedTuple):
    """A sample of the source. file: the image file, if there is one; problem: (reason, detail) if the sample cannot
    be used; notes: remarks about a sample that can."""
    place: Place
    image: bytes = b""
    code: str = ""
    problem: Optional[tuple] = None
    notes: tuple = ()
    file: str = ""


class Block(NamedTuple):
    """Rows first..last-1 of a unit (a file, a row group). weight: approximate size in bytes; max_pieces: the most
    pieces it may be divided into, because reading from the middle of a unit may require reading its beginning too."""
    unit: int
    first: int
    last: int
    weight: int
    max_pieces: int


def decode(place, image, code, file="", fallback=None):
    """The Row of an image and the bytes of its code. fallback: the encoding of code that is not UTF-8."""
    if len(code) > MAX_CODE_BYTES:
        return Row(place, problem=(f"the code has more than {MAX_CODE_BYTES} bytes", f"{len(code)}"))
    try:
        code, notes = text.decode(code, fallback)
    except text.TextError as e:
        return Row(place, problem=e.args)
    return Row(place, image, code, notes=tuple(notes), file=file)


def read_file(path, most):
    """The first `most` + 1 bytes of a file, None, or b"" and why not: (reason, detail)."""
    try:
        with files.open_input(path) as f:
            return f.read(most + 1), None
    except FileNotFoundError:
        return b"", ("is missing", str(path))
    except (OSError, files.FormatError) as e:
        return b"", ("cannot be read", files.describe(e))


def read_image(path):
    """Returns (bytes, None) or (b"", problem)."""
    data, problem = read_file(path, images.MAX_BYTES)
    if problem:
        return b"", (f"the image {problem[0]}", problem[1])
    return data, None if data else ("the image is empty", str(path))


def file_identity(path):
    status = os.stat(path)
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def listing_identity(files):
    """A text that changes with the name, the size or the time of change of any of the files (path, size, time)."""
    return hashlib.sha256(repr(sorted(files)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def same_folder(a, b):
    return os.path.realpath(a) == os.path.realpath(b)


# ---- lists of lines ----

class Lines:
    """The lines of a file, without their \\n. No other character ends a line, because formulas may contain them."""

    def __init__(self, path):
        files.check_input(path)
        self.path, ends, size, last = str(path), [], 0, b""
        with files.open_input(path) as f:
            while block := f.read(1 << 22):
                if not size and text.byte_order_mark(block)[1] != "utf-8":
                    raise tikzc.FormatError(f"{path} is {text.byte_order_mark(block)[1].upper()}; convert it to "
                                            f"UTF-8, for example with iconv.")
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size)
                size += len(block)
                last = block[-1:]
        self.ends = np.concatenate(ends + [[size] if size and last != b"\n" else []]).astype(np.int64)
        self.file = None

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        """The line, or its beginning if it is longer than any code may be."""
        if self.file is None:
            self.file = files.open_input(self.path)
        first, last = int(self.ends[i - 1]) + 1 if i else 0, int(self.ends[i])
        return os.pread(self.file.fileno(), min(last - first, MAX_CODE_BYTES + 1), first)

    def __getstate__(self):
        return {**self.__dict__, "file": None}


# ---- im2latex ----

FORMULAS = ("im2latex_formulas.lst", "im2latex_formulas.norm.lst", "formulas.norm.lst")
LISTS = ("im2latex_{}.lst", "im2latex_{}_filter.lst", "{}_filter.lst", "{}.lst")
IMAGES = ("formula_images", "formula_images_processed", "images_processed")


class Im2latex:
    """im2latex-100K (https://zenodo.org/records/56198): a list of formulas, one per line; a list for each split with
    lines "NUMBER NAME RENDERING" (NUMBER: the line of the formula, from 0; image: NAME.png); and a folder of images.
    The filtered lists that the scripts of im2markup write have lines "NAME.png NUMBER". Formulas that are not UTF-8
    are read as Latin-1, the encoding of that data set."""

    def __init__(self, folder, split=None, formulas=None, listing=None, images=None):
        split = split or "train"
        self.folder = folder
        if not os.path.isdir(folder):
            raise tikzc.FormatError(f"{folder}: not a folder; --im2latex needs one with {FORMULAS[0]}, "
                                    f"{LISTS[0].format(split)} and {IMAGES[0]}.")
        self.formulas = Lines(self.find("formulas", formulas, FORMULAS))
        self.lines = Lines(self.find("list", listing, [name.format(split) for name in LISTS]))
        self.images = self.find("images", images, IMAGES)
        if not os.path.isdir(self.images):
            raise tikzc.FormatError(f"{self.images}: not a folder of images.")
        listed = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(self.images) if e.is_file()]
        sizes = [size for _, size, _ in listed]
        self.identity = [file_identity(self.formulas.path), file_identity(self.lines.path),
                         [os.path.basename(self.images), sum(sizes), listing_identity(listed)]]
        self.rows, self.weight = len(self.lines), sum(sizes) // max(1, len(sizes)) + 100
        self.name = f"im2latex {os.path.basename(os.path.abspath(folder))}, {os.path.basename(self.lines.path)}"

    def find(self, what, wanted, usual):
        for name in [wanted] if wanted else usual:
            path = os.path.join(self.folder, name)
            if os.path.exists(path):
                return path
        names = wanted or " or ".join(usual)
        raise tikzc.FormatError(f"{self.folder}: there is no {names}; name it with --{what}.")

    def blocks(self):
        return [Block(0, 0, self.rows, self.rows * self.weight, self.rows)] if self.rows else []

    def read(self, span):
        _, first, last = span
        for i in range(first, last):
            yield self.row(Place(self.lines.path, "line", i + 1), self.lines[i])

    def holds(self, path):
        return (os.path.realpath(path) in map(os.path.realpath, (self.formulas.path, self.lines.path))
                or os.path.exists(path) and same_folder(os.path.dirname(path), self.images))

    def row(self, place, line):
        parts = line.removeprefix(codecs.BOM_UTF8).split()
        swapped = len(parts) == 2 and not parts[0].isdigit()
        number, name = (parts[1], parts[0]) if swapped else (parts[0], parts[1]) if len(parts) in (2, 3) else ("", "")
        name = name if swapped else name and name + b".png"
        if not number or not number.isdigit() or len(number) > 18 or b"/" in name or b"\0" in name:
            return Row(place, problem=("the line is malformed", f"expected 'NUMBER NAME RENDERING', found "
                                                                f"{line[:60]!r}"))
        if int(number) >= len(self.formulas):
            return Row(place, problem=("the line names a formula beyond the list",
                                       f"{int(number)} of {len(self.formulas)}"))
        file = os.path.join(self.images, os.fsdecode(name))
        image, problem = read_image(file)
        if problem:
            return Row(place, problem=problem)
        code = self.formulas[int(number)]
        row = decode(place, image, code.removesuffix(b"\r"), file, "latin-1")
        if code.endswith(b"\r") and text.LINE_ENDS not in row.notes:
            row = row._replace(notes=(*row.notes, text.LINE_ENDS))
        return row


# ---- pairs ----

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Pairs:
    """A folder of pairs name.png (or .jpg, ...) and name.tex, including subfolders, sorted by name."""

    def __init__(self, folder):
        self.folder = folder
        if not os.path.isdir(folder):
            raise tikzc.FormatError(f"{folder}: not a folder; --pairs needs one with name.png and name.tex files.")
        found, listed = {}, []  # found: {name: ([images], [texts])}
        for path, size, time in sorted(walk(folder)):
            name, suffix = os.path.splitext(path)
            if suffix.lower() in (*SUFFIXES, ".tex"):
                found.setdefault(name, ([], []))[suffix.lower() == ".tex"].append(path)
                listed.append((path, size, time))
        self.weight = sum(size for _, size, _ in listed)
        counts = [sum(len(both[i]) for both in found.values()) for i in (0, 1)]
        if not all(counts):
            raise tikzc.FormatError(f"{folder}: found {counts[0]} images and {counts[1]} .tex files; expected "
                                    f"pairs such as a.png and a.tex.")
        self.pairs = [pair for name in sorted(found) for pair in self.match(*found[name])]
        self.rows, folder = len(self.pairs), os.path.basename(os.path.abspath(folder))
        self.identity = [[folder, self.weight, listing_identity(listed)]]
        self.name = f"pairs from the folder {folder}"

    @staticmethod
    def match(image_files, code_files):
        """The pairs (image, code, why it is none) of the files of one name, which may have several suffixes."""
        if not code_files:
            return [(path, None, "an image without its .tex file") for path in image_files]
        if not image_files:
            return [(None, path, "a .tex file without its image") for path in code_files]
        return [(image_files[0], code_files[0], None),
                *((path, None, "another image for the same .tex file") for path in image_files[1:]),
                *((None, path, "another .tex file for the same image") for path in code_files[1:])]

    def blocks(self):
        return [Block(0, 0, self.rows, max(self.weight, self.rows), self.rows)]

    def read(self, span):
        _, first, last = span
        for image, code, problem in self.pairs[first:last]:
            if problem:
                yield Row(Place(os.path.join(self.folder, image or code)), problem=(problem, ""))
            else:
                yield self.row(os.path.join(self.folder, code), os.path.join(self.folder, image))

    def holds(self, path):
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(self.folder))
        return any(name in pair[:2] for pair in self.pairs)

    @staticmethod
    def row(path, image):
        data, problem = read_image(image)
        if problem:
            return Row(Place(image), problem=problem)
        code, problem = read_file(path, MAX_CODE_BYTES)
        if problem:
            return Row(Place(path), problem=(f"the .tex file {problem[0]}", problem[1]))
        return decode(Place(path), data, code, image)


def walk(folder):
    """Yields (path relative to the folder, size, time of change in ns) of all files below it."""
    left = [""]
    while left:
        prefix = left.pop()
        for entry in os.scandir(os.path.join(folder, prefix)):
            if entry.is_dir(follow_symlinks=False):
                left.append(os.path.join(prefix, entry.name))
            elif entry.is_file():
                status = entry.stat()
                yield os.path.join(prefix, entry.name), status.st_size, status.st_mtime_ns
