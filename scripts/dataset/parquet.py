"""Parquet files as a source of convert_dataset.py (sources.py says what a source has)."""
import contextlib
import glob
import os
import pathlib
import re

from dataset import pages
from dataset.sources import Block, Place, Row, decode, file_identity
import files
import tikzc

IMAGE_COLUMNS = ("image",)  # DaTikZ v1 to v3 have image and code; other data sets of the Hub formula, latex_formula
CODE_COLUMNS = ("code", "text", "formula", "latex_formula")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")
PARTIAL = "partial-"  # the Hub's prefix of the folder of a split that it has converted to parquet in part
BATCH_BYTES, MAX_BATCH_ROWS = 4 << 20, 256  # limits of the rows that are read together
WORST_BATCH_BYTES = 32 << 20  # the same, if each row were the longest of the dictionary
SPARE_BYTES = 1 << 30  # what pyarrow may allocate besides its pages
ROW_GROUP_PIECES = 8  # most pieces of a row group, which can only be read from its beginning


def import_parquet():
    files.need("pyarrow")
    import pyarrow.parquet
    return pyarrow


@contextlib.contextmanager
def reading(what):
    """Turns the exceptions of pyarrow on a damaged file into a FormatError that begins with `what`."""
    pyarrow = import_parquet()
    try:
        yield
    except MemoryError:
        raise tikzc.FormatError(f"{what} (reading it takes too much memory).")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, RuntimeError) as e:
        raise tikzc.FormatError(f"{what} ({first_line(e)}).")


def first_line(error):
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


# ---- files and splits ----

def parquet_files(paths, split):
    """(the files that the paths, folders and patterns name, in that order, remarks). The files of a folder are sorted
    by name."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            named = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.[pP][aA][rR][qQ][uU][eE][tT]"),
                                     recursive=True))
            mine = [p for p in named if not split or split_of(p, split) == split]
        else:
            named = [path] if os.path.exists(path) else sorted(glob.glob(path))
            mine = [p for p in named if not split or split_of(p, split) in (split, None)]
        if not named and not os.path.exists(path) and not glob.has_magic(path):
            raise tikzc.FormatError(f"{path}: there is no such file or folder.")
        if not mine:
            splits = sorted({split_of(p) for p in named} - {None})
            wanted = f" of the split '{split}'" if split else ""
            raise tikzc.FormatError(f"{path}: there are no parquet files{wanted}"
                                    f"{'; found: ' if splits else ''}{', '.join(splits)}.")
        found += mine
    found = list({os.path.realpath(p): p for p in reversed(found)}.values())[::-1]  # each file once
    splits = {split_of(p) for p in found} - {None}
    if len(splits) > 1 and not split:
        raise tikzc.FormatError(f"{', '.join(paths)}: the files belong to different splits "
                                f"({', '.join(sorted(splits))}); choose one with --split.")
    return without_partial(found)


def split_of(path, wanted=None):
    """The split of a parquet file, or None. Data sets of the Hub name their files SPLIT-00000-of-00009-....parquet,
    SPLIT/0000.parquet or partial-SPLIT/0000.parquet. wanted: a name to take for a split, besides the usual ones."""
    path = pathlib.Path(path)
    shard = re.match(r"(.+?)-\d+-of-\d+", path.name)
    names = [shard[1]] if shard else re.split(r"[-_. ]", path.stem)
    for name in (*names, path.parent.name.removeprefix(PARTIAL)):
        if name == wanted or re.split(r"[-_.]", name)[0] in SPLITS:
            return name
    return None


def without_partial(found):
    """(the files, remarks): without a partial split beside the whole one, and with a remark about any other."""
    partial = {p: os.path.dirname(p) for p in found if os.path.basename(os.path.dirname(p)).startswith(PARTIAL)}
    whole = {os.path.dirname(p) for p in found} - set(partial.values())
    remarks = []
    for folder in sorted(set(partial.values())):
        parent, name = os.path.split(folder)
        if os.path.join(parent, name.removeprefix(PARTIAL)) in whole:
            found = [p for p in found if partial.get(p) != folder]
            remarks.append(f"{folder}: left out, because the whole split is there, too")
        else:
            remarks.append(f"{folder}: only a part of the split; the Hub converts the first gigabytes to parquet")
    return found, remarks


# ---- the source ----

class Parquet:
    def __init__(self, paths, image=None, code=None, split=None):
        self.files, self.remarks = parquet_files(paths, split)
        for path in self.files:
            files.check_input(path)
        self.identity = [file_identity(path) for path in self.files]
        self.image, self.code = image, code
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        self.name = f"parquet {os.path.basename(self.files[0])}{more}"
        self.rows, self.columns, self.groups = 0, [], []
        for number, path in enumerate(self.files):
            with reading(f"{path}: not a parquet file that can be read"):
                self.add(number, path)

    def open(self, path):
        """Opens a file with buffered reads, so that a column of a row group is never in memory as a whole."""
        return import_parquet().parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)

    def add(self, number, path):
        with self.open(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            leaves = (image_leaf(path, schema, self.image), code_leaf(path, schema, self.code))
            self.columns.append(leaves)
            for group in range(metadata.num_row_groups):
                chunks = column_chunks(path, metadata.row_group(group), leaves)
                rows = metadata.row_group(group).num_rows
                stored = sum(c.total_compressed_size for c in chunks)
                pages.check_rows(path, group, rows, stored)
                weight = max(rows, sum(c.total_uncompressed_size for c in chunks))
                self.groups.append((number, group, rows, weight, stored))
                self.rows += rows

    def blocks(self):
        return [Block(unit, 0, rows, weight, ROW_GROUP_PIECES)
                for unit, (_, _, rows, weight, _) in enumerate(self.groups) if rows]

    def read(self, span):
        unit, first, last = span
        number, group, rows, _, stored = self.groups[unit]
        path, leaves = self.files[number], self.columns[number]
        before = sum(g[2] for g in self.groups[:unit] if g[0] == number)
        at = read = 0
        for images, codes in self.batches(path, group, leaves):
            for i in range(max(first - at, 0), min(last - at, len(images))):
                with reading(f"{path}: row {before + at + i} is damaged"):
                    image, code = images[i].as_py(), codes[i].as_py()
                read += len(image or b"") + len(code or b"")
                pages.check_inflation(path, group, read, stored)
                yield self.row(Place(path, "row", before + at + i), image, code)
            at += len(images)
            if at >= last:
                return
        raise tikzc.FormatError(f"{path}: row group {group} is damaged (it ends after {at} of {rows} rows).")

    def holds(self, path):
        return os.path.realpath(path) in map(os.path.realpath, self.files)

    def batches(self, path, group, leaves):
        """Yields the two columns of a row group piece by piece, as arrays of bytes."""
        damaged = f"{path}: row group {group} is damaged"
        with contextlib.ExitStack() as stack:
            with reading(damaged):
                file = stack.enter_context(self.open(path))
                chunks = column_chunks(path, file.metadata.row_group(group), leaves)
                cost = pages.row_group_cost(path, group, chunks)
                size = min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, cost.average),
                           WORST_BATCH_BYTES // max(1, cost.longest))
                batches = file.iter_batches(batch_size=max(1, size), row_groups=[group], columns=leaves,
                                            use_threads=False)
            while True:
                with reading(damaged), pages.limited_memory(SPARE_BYTES + 4 * cost.page):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    columns = [as_bytes(batch.column(leaf_index(batch.schema, leaf))) for leaf in leaves]
                yield columns

    @staticmethod
    def row(place, image, code):
        if not image:
            return Row(place, problem=("the row has no image", ""))
        if code is None:
            return Row(place, problem=("the row has no code", ""))
        return decode(place, image, code)


# ---- columns ----

def choose_column(path, schema, wanted, usual, what):
    name = wanted or next((n for n in usual if n in schema.names), None)
    if name is None or name not in schema.names:
        raise tikzc.FormatError(f"{path}: there is no column '{wanted or usual[0]}' for the {what}; the columns are "
                                f"{', '.join(schema.names)}. Choose one with --{what}-column.")
    if schema.names.count(name) > 1:
        raise tikzc.FormatError(f"{path}: there are {schema.names.count(name)} columns '{name}'.")
    return name, schema.field(name).type


def value_type(kind):
    import pyarrow.types as t
    return kind.value_type if t.is_dictionary(kind) else kind


def image_leaf(path, schema, wanted):
    """The leaf column with the bytes of the image: NAME, or NAME.bytes of a struct."""
    import pyarrow.types as t
    name, kind = choose_column(path, schema, wanted, IMAGE_COLUMNS, "image")
    if t.is_struct(kind):
        field = kind.get_field_index("bytes")
        if field >= 0 and is_bytes(value_type(kind.field(field).type)):
            return f"{name}.bytes"
    elif is_bytes(value_type(kind)):
        return name
    raise tikzc.FormatError(f"{path}: column '{name}' has type {kind}; expected binary, or a struct with a binary "
                            f"field 'bytes'.")


def code_leaf(path, schema, wanted):
    import pyarrow.types as t
    name, kind = choose_column(path, schema, wanted, CODE_COLUMNS, "code")
    plain = value_type(kind)
    if not (is_bytes(plain) or t.is_string(plain) or t.is_large_string(plain)):
        raise tikzc.FormatError(f"{path}: column '{name}' has type {kind}; expected a string.")
    return name


def is_bytes(kind):
    import pyarrow.types as t
    return t.is_binary(kind) or t.is_large_binary(kind)


def leaf_index(schema, leaf):
    """The index of the column that contains a leaf."""
    return schema.get_field_index(leaf if leaf in schema.names else leaf.rsplit(".", 1)[0])


def column_chunks(path, row_group, leaves):
    """The descriptions of the leaf columns of a row group."""
    chunks = {}
    for i in range(row_group.num_columns):
        chunk = row_group.column(i)
        if chunk.path_in_schema in leaves:
            chunks[chunk.path_in_schema] = chunk
    if len(chunks) != len(set(leaves)):
        raise tikzc.FormatError(f"{path}: a row group lacks one of the columns {', '.join(leaves)}.")
    return list(chunks.values())


def as_bytes(array):
    """The array with the type binary, so that strings are not decoded, because parquet does not guarantee UTF-8."""
    import pyarrow
    import pyarrow.types as t
    if t.is_struct(array.type):
        array = array.flatten()[0]  # unlike field(): None where the struct is None
    if t.is_dictionary(array.type):
        return pyarrow.DictionaryArray.from_arrays(array.indices, as_bytes(array.dictionary))
    if t.is_string(array.type) or t.is_large_string(array.type):
        array = array.view(pyarrow.binary() if t.is_string(array.type) else pyarrow.large_binary())
    return array
