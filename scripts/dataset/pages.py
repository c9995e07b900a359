"""The headers of the pages of a parquet file, and how much memory the pages take.

A page's data are compressed, or are numbers of the values in a dictionary, so a few bytes of a file can stand for
gigabytes. pyarrow believes a page's header and allocates; here the headers are read first.

The format is that of https://github.com/apache/parquet-format: a column chunk is a sequence of pages, each a
PageHeader in Thrift's compact protocol and then its data.
"""
import contextlib
import pathlib
import resource
from typing import NamedTuple

import files

LARGE_PAGE = 64 << 20  # bytes; a page up to this size may be any
MAX_INFLATION = 256    # times its size in the file that a larger page may have; images and programs need 1 to 20
MAX_ROWS = 1 << 16     # of a row group; more only if it has a byte for every MAX_INFLATION rows
PADDING = 100          # bytes that some writers have not counted in the size of a column (PARQUET-816)
MAX_DEPTH = 8          # of structs in a header

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
CONTENT = {DATA_PAGE: (5, 1, 2), DICTIONARY_PAGE: (7, 1, 2), DATA_PAGE_V2: (8, 1, 4)}  # struct; its values, encoding
DELTA_BYTE_ARRAY = 7   # encoding in which a value may repeat the beginning of the one before


class Malformed(Exception):
    """The bytes are not a page header."""


class Page(NamedTuple):
    kind: int
    stored: int    # bytes in the file
    inflated: int  # bytes in memory, when decompressed
    values: int
    encoding: int


# ---- Thrift's compact protocol ----

def read_byte(file):
    byte = file.read(1)
    if not byte:
        raise Malformed("the file ends")
    return byte[0]


def read_varint(file):
    value = shift = 0
    while True:
        byte = read_byte(file)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value
        if shift > 63:
            raise Malformed("a number is too long")


def read_number(file):
    value = read_varint(file)
    return value >> 1 ^ -(value & 1)  # zigzag


def read_value(file, kind, depth):
    """A value of a compact type: a number, a struct as {id: value}, or None for what no page header needs."""
    if kind in (1, 2):  # booleans, which are part of the type
        return None
    if kind == 3:
        return read_byte(file)
    if kind in (4, 5, 6):
        return read_number(file)
    if kind in (7, 8):
        file.seek(8 if kind == 7 else read_varint(file), 1)  # a float, or bytes
        return None
    if kind == 12 and depth < MAX_DEPTH:
        return read_struct(file, depth + 1)
    raise Malformed(f"it has a field of type {kind}")


def read_struct(file, depth=0):
    fields, number = {}, 0
    while byte := read_byte(file):
        number = number + (byte >> 4) if byte >> 4 else read_number(file)
        fields[number] = read_value(file, byte & 15, depth)
    return fields


# ---- pages ----

def read_pages(file, first, last, values):
    """Yields the pages of a column chunk in the bytes first..last-1 of the file, until these have so many values, as
    pyarrow does."""
    while values > 0:
        if first >= last:
            raise Malformed("pages are missing")
        file.seek(first)
        header = read_struct(file)
        kind, inflated, stored = (number(header, i) for i in (1, 2, 3))
        first = file.tell() + stored
        if first > last:
            raise Malformed("a page is longer than its column")
        if kind in CONTENT:
            struct, count, encoding = CONTENT[kind]
            content = header.get(struct)
            page = Page(kind, stored, inflated, number(content, count), number(content, encoding))
            values -= page.values if kind != DICTIONARY_PAGE else 0
            yield page


def number(struct, field):
    """A field of a header that must be a number from 0."""
    value = struct.get(field) if isinstance(struct, dict) else None
    if not isinstance(value, int) or value < 0:
        raise Malformed("the header of a page lacks a number")
    return value


def check_page(page):
    if page.inflated > LARGE_PAGE and page.inflated > MAX_INFLATION * page.stored:
        raise Malformed(f"a page of {page.stored} bytes inflates to {page.inflated}, which is not read")
    if page.kind == DICTIONARY_PAGE and page.values > page.inflated // 4:  # each has a length of 4 bytes
        raise Malformed(f"a dictionary of {page.inflated} bytes claims {page.values} values")


class Cost(NamedTuple):
    """What reading a column takes. page: bytes of the largest page; average: of a value in the page where they are
    longest; longest: the most that one value can have because it is not in the page itself (0: all are)."""
    page: int
    average: int
    longest: int


def column_cost(file, column):
    """The Cost of a column chunk, given by pyarrow's ColumnChunkMetaData. Raises Malformed for what is a trap."""
    first, dictionary = column.data_page_offset, column.dictionary_page_offset
    if dictionary and 0 < dictionary < first:
        first = dictionary
    last = first + column.total_compressed_size + PADDING
    if not 0 <= first < last:
        raise Malformed("the position of a column is impossible")
    page = average = longest = 0
    for p in read_pages(file, first, last, column.num_values):
        check_page(p)
        page = max(page, p.inflated + p.stored)
        if p.kind == DICTIONARY_PAGE or p.encoding == DELTA_BYTE_ARRAY:
            longest = max(longest, p.inflated)
        if p.kind != DICTIONARY_PAGE and p.values:
            average = max(average, -(-p.inflated // p.values))
    return Cost(page, average, longest)


def check_rows(path, group, rows, stored):
    """Checks how many rows a row group claims for its bytes in the file."""
    if rows < 0 or rows > MAX_ROWS and rows > MAX_INFLATION * stored:
        raise files.FormatError(f"{path}: row group {group} claims {rows} rows in {stored} bytes.")


def check_inflation(path, group, read, stored):
    """Checks how many bytes have been read from a row group, in which one value may stand for many rows."""
    if read > LARGE_PAGE and read > MAX_INFLATION * stored:
        raise files.FormatError(f"{path}: row group {group} inflates from {stored} bytes to more than {read}, which is "
                                f"not read.")


def row_group_cost(path, group, columns):
    """The Cost of these columns of a row group together."""
    with files.open_input(path) as file:
        try:
            costs = [column_cost(file, column) for column in columns]
        except (Malformed, OSError, ValueError, OverflowError) as e:  # seek takes no impossible position
            raise files.FormatError(f"{path}: row group {group} is damaged ({e}).")
    return Cost(*map(sum, zip(*costs)))


@contextlib.contextmanager
def limited_memory(more):
    """Lets this process allocate only so many bytes more, in case that the headers do not tell all: what exceeds them
    is a MemoryError."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        data = int(pathlib.Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    limits = [limit for limit in (data + more, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
