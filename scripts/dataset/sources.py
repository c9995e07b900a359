"""The data sets that convert_dataset.py reads: parquet files, the layout of im2latex-100K, a folder of pairs.

A source has
    name            its name, for the header of the dataset
    identity        [[name, bytes, time of change]], which must be the same when an interrupted conversion continues
    rows            the number of rows
    blocks()        [Block]: how it can be divided, in order
    read(span)      yields the Rows of a span, with only a few in memory at a time
and can be pickled, to be sent to another process. A problem with a whole file raises tikzc.FormatError; a problem
with one row is reported in its `problem`.
"""
import glob
import mmap
import os
import pathlib
import re
from typing import NamedTuple, Optional

import numpy as np

from dataset import images
import tikzc

MAX_CODE_BYTES = 1 << 26  # longer code is not encoded at all


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
    be used; note: a remark about a sample that can."""
    place: Place
    image: bytes = b""
    code: str = ""
    problem: Optional[tuple] = None
    note: Optional[str] = None
    file: str = ""


class Block(NamedTuple):
    """Rows first..last-1 of a unit (a file, a row group). weight: approximate size in bytes; max_pieces: the most
    pieces it may be divided into, because reading from the middle of a unit may require reading its beginning too."""
    unit: int
    first: int
    last: int
    weight: int
    max_pieces: int


def decode(place, image, code, file=""):
    if len(code) > MAX_CODE_BYTES:
        return Row(place, problem=(f"the code has more than {MAX_CODE_BYTES} bytes", f"{len(code)}"))
    try:
        return Row(place, image, code.decode("utf-8"), file=file)
    except UnicodeDecodeError as e:
        return Row(place, problem=("the code is not UTF-8", f"byte {e.start} is {e.object[e.start]:#04x}"))


def read_image(path):
    """Returns (bytes, None) or (b"", problem)."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a named pipe could wait for ever
        return b"", ("the image is not a regular file", str(path))
    try:
        with open(path, "rb") as f:
            data = f.read(images.MAX_BYTES + 1)
    except FileNotFoundError:
        return b"", ("the image is missing", str(path))
    except OSError as e:
        return b"", ("the image cannot be read", str(e))
    return data, None if data else ("the image is empty", str(path))


def file_identity(path):
    status = os.stat(path)
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


# ---- parquet ----

IMAGE_COLUMNS = ("image",)  # DaTikZ v1 to v3 have image and code; other data sets of the Hub formula, latex_formula
CODE_COLUMNS = ("code", "text", "formula", "latex_formula")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")
BATCH_BYTES, MAX_BATCH_ROWS = 4 << 20, 256  # limits of the rows that are read together
ROW_GROUP_PIECES = 8  # most pieces of a row group, which can only be read from its beginning


def import_parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise tikzc.FormatError("Reading parquet needs the package pyarrow; install it with `pip install -r "
                                "scripts/requirements.txt`.")
    return pyarrow


def parquet_files(paths, split):
    """The files that the paths, folders and patterns name, in that order; the files of a folder are sorted by
    name."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True))
            found += [p for p in inside if not split or split_of(p) == split]
        else:
            found += [path] if os.path.exists(path) else sorted(glob.glob(path))
    if not found:
        wanted = f" of the split '{split}'" if split else ""
        raise tikzc.FormatError(f"{', '.join(paths)}: there are no parquet files{wanted}.")
    splits = {split_of(p) for p in found} - {None}
    if len(splits) > 1 and not split:
        raise tikzc.FormatError(f"{', '.join(paths)}: the files belong to different splits "
                                f"({', '.join(sorted(splits))}); choose one with --split.")
    return found


def split_of(path):
    """The split of a parquet file, or None: Hub data sets name their files SPLIT-00000-of-00009-....parquet, or
    SPLIT/0000.parquet."""
    path = pathlib.Path(path)
    first = re.split(r"[-_.]", path.name)[0]
    return first if first in SPLITS else path.parent.name if path.parent.name in SPLITS else None


class Parquet:
    def __init__(self, paths, image=None, code=None, split=None):
        self.files, self.groups, self.starts = parquet_files(paths, split), [], [0]
        self.identity = [file_identity(path) for path in self.files]
        self.image, self.code = image, code
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        self.name = f"parquet {os.path.basename(self.files[0])}{more}"
        self.rows, self.columns = 0, []
        for number, path in enumerate(self.files):
            self.add(number, path)

    def open(self, path):
        """Opens a file with buffered reads, so that a column of a row group is never in memory as a whole."""
        pyarrow = import_parquet()
        try:
            return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as e:
            raise tikzc.FormatError(f"{path}: not a parquet file that can be read ({first_line(e)}).")

    def add(self, number, path):
        with self.open(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            self.columns.append((image_leaf(path, schema, self.image), code_leaf(path, schema, self.code)))
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group)
                self.groups.append((number, group, rows.num_rows, column_bytes(rows, self.columns[-1])))
                self.rows += rows.num_rows

    def blocks(self):
        return [Block(unit, 0, rows, weight, ROW_GROUP_PIECES)
                for unit, (_, _, rows, weight) in enumerate(self.groups) if rows]

    def read(self, span):
        unit, first, last = span
        number, group, rows, weight = self.groups[unit]
        path, (image, code) = self.files[number], self.columns[number]
        before = sum(r for n, _, r, _ in self.groups[:unit] if n == number)
        size = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // max(1, weight)))
        with self.open(path) as file:
            at = 0
            for batch in self.batches(file, path, group, size, [image, code]):
                if first < at + len(batch):
                    columns = [as_bytes(batch.column(leaf_index(batch.schema, leaf))) for leaf in (image, code)]
                    for i in range(max(first - at, 0), min(last - at, len(batch))):
                        yield self.row(Place(path, "row", before + at + i), columns[0][i], columns[1][i])
                at += len(batch)
                if at >= last:
                    return

    def batches(self, file, path, group, size, columns):
        pyarrow = import_parquet()
        batches = file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as e:
                raise tikzc.FormatError(f"{path}: row group {group} is damaged ({first_line(e)}).")
            if batch is None:
                return
            yield batch

    @staticmethod
    def row(place, image, code):
        if not image:
            return Row(place, problem=("the row has no image", ""))
        if code is None:
            return Row(place, problem=("the row has no code", ""))
        return decode(place, image, code)


def first_line(error):
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def choose_column(path, schema, wanted, usual, what):
    name = wanted or next((n for n in usual if n in schema.names), None)
    if name is None or name not in schema.names:
        raise tikzc.FormatError(f"{path}: there is no column '{wanted or usual[0]}' for the {what}; the columns are "
                                f"{', '.join(schema.names)}. Choose one with --{what}-column.")
    return name, schema.field(name).type


def image_leaf(path, schema, wanted):
    """The leaf column with the bytes of the image: NAME, or NAME.bytes of a struct."""
    import pyarrow.types as t
    name, kind = choose_column(path, schema, wanted, IMAGE_COLUMNS, "image")
    if t.is_struct(kind):
        field = kind.get_field_index("bytes")
        if field >= 0 and is_bytes(kind.field(field).type):
            return f"{name}.bytes"
    elif is_bytes(kind):
        return name
    raise tikzc.FormatError(f"{path}: column '{name}' has type {kind}; expected binary, or a struct with a binary "
                            f"field 'bytes'.")


def code_leaf(path, schema, wanted):
    import pyarrow.types as t
    name, kind = choose_column(path, schema, wanted, CODE_COLUMNS, "code")
    plain = kind.value_type if t.is_dictionary(kind) else kind
    if not (is_bytes(plain) or t.is_string(plain) or t.is_large_string(plain)):
        raise tikzc.FormatError(f"{path}: column '{name}' has type {kind}; expected a string.")
    return name


def is_bytes(kind):
    import pyarrow.types as t
    return t.is_binary(kind) or t.is_large_binary(kind)


def leaf_index(schema, leaf):
    """The index of the column that contains a leaf."""
    return schema.get_field_index(leaf if leaf in schema.names else leaf.rsplit(".", 1)[0])


def column_bytes(row_group, leaves):
    total = 0
    for i in range(row_group.num_columns):
        column = row_group.column(i)
        if column.path_in_schema in leaves:
            total += column.total_uncompressed_size
    return max(total, row_group.num_rows)


def as_bytes(array):
    """The elements of an array as bytes or None. Strings are not decoded, because parquet does not guarantee
    UTF-8."""
    import pyarrow
    import pyarrow.types as t
    if t.is_struct(array.type):
        array = array.flatten()[0]  # unlike field(): None where the struct is None
    if t.is_dictionary(array.type):
        array = array.dictionary_decode()
    if t.is_string(array.type) or t.is_large_string(array.type):
        array = array.view(pyarrow.binary() if t.is_string(array.type) else pyarrow.large_binary())
    return array.to_pylist()


# ---- lists of lines ----

class Lines:
    """The lines of a file, without their \\n. No other character ends a line, because formulas may contain them."""

    def __init__(self, path):
        self.path, ends, size = str(path), [], 0
        with open(path, "rb") as f:
            while block := f.read(1 << 24):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size)
                size += len(block)
                last = block[-1:]
        self.ends = np.concatenate(ends + [[size] if size and last != b"\n" else []]).astype(np.int64)
        self.data = None

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        if self.data is None:
            with open(self.path, "rb") as f:
                self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return self.data[(self.ends[i - 1] + 1 if i else 0):self.ends[i]]

    def __getstate__(self):
        return {**self.__dict__, "data": None}


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
        sizes = [entry.stat().st_size for entry in os.scandir(self.images) if entry.is_file()]
        self.identity = [file_identity(self.formulas.path), file_identity(self.lines.path),
                         [os.path.basename(self.images), sum(sizes), len(sizes)]]
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

    def row(self, place, line):
        parts = line.split()
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
        try:
            return Row(place, image, code.decode("utf-8"), file=file)
        except UnicodeDecodeError:
            return Row(place, image, code.decode("latin-1"), None,
                       "the formula is not UTF-8, it was read as Latin-1", file)


# ---- pairs ----

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Pairs:
    """A folder of pairs name.png (or .jpg, ...) and name.tex, including subfolders, sorted by name."""

    def __init__(self, folder):
        self.folder = folder
        if not os.path.isdir(folder):
            raise tikzc.FormatError(f"{folder}: not a folder; --pairs needs one with name.png and name.tex files.")
        images, texts, changed = {}, {}, 0
        for path, size, time in walk(folder, ""):
            stem, suffix = os.path.splitext(path)
            if suffix.lower() in SUFFIXES:
                images[stem] = min(images.get(stem, (path, size)), (path, size))
            elif suffix == ".tex":
                texts[stem] = (path, size)
            changed = max(changed, time)
        if not images or not texts:
            raise tikzc.FormatError(f"{folder}: found {len(images)} images and {len(texts)} .tex files; expected "
                                    f"pairs such as a.png and a.tex.")
        names = sorted(images.keys() | texts.keys())
        self.pairs = [(name, images.get(name, (None,))[0], name in texts) for name in names]
        self.weight = sum(size for _, size in [*images.values(), *texts.values()])
        self.rows, folder = len(self.pairs), os.path.basename(os.path.abspath(folder))
        self.identity = [[folder, self.weight, changed]]
        self.name = f"pairs from the folder {folder}"

    def blocks(self):
        return [Block(0, 0, self.rows, max(self.weight, self.rows), self.rows)]

    def read(self, span):
        _, first, last = span
        for name, image, text in self.pairs[first:last]:
            path = os.path.join(self.folder, name)
            if not text:
                yield Row(Place(os.path.join(self.folder, image)), problem=("an image without its .tex file", ""))
            elif not image:
                yield Row(Place(path + ".tex"), problem=("a .tex file without its image", ""))
            else:
                yield self.row(path + ".tex", os.path.join(self.folder, image))

    @staticmethod
    def row(text, image):
        data, problem = read_image(image)
        if problem:
            return Row(Place(image), problem=problem)
        try:
            with open(text, "rb") as f:
                code = f.read(MAX_CODE_BYTES + 1)
        except OSError as e:
            return Row(Place(text), problem=("the .tex file cannot be read", str(e)))
        return decode(Place(text), data, code, image)


def walk(folder, prefix):
    """Yields (path relative to the folder, size, time of change in ns) of all files below it."""
    for entry in os.scandir(os.path.join(folder, prefix)):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder, os.path.join(prefix, entry.name))
        elif entry.is_file():
            status = entry.stat()
            yield os.path.join(prefix, entry.name), status.st_size, status.st_mtime_ns
