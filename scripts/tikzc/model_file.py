"""Models, checkpoints: safetensors.

    u64 n, then n bytes of JSON, then the data of all tensors, contiguous.
The JSON is {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets": [begin, end]}}, with offsets
from the beginning of the data. The files written here have "format" = "tikz.c/1" in the metadata; JSON that is padded
with spaces so that the data begin at a multiple of 64 bytes; and tensors sorted by descending element size, so that
each one is aligned to its element size. In a quantised model, which only infer and eval read, a weight NAME is I8 or U8 and
has a tensor NAME.scales (weights.h).
"""
import json
import math
import mmap
import os
import reprlib
import struct

import numpy as np

from files import AtomicFile, FormatError, check_input, open_input

FORMAT = "tikz.c/1"
DATA_ALIGNMENT = 64
MAX_HEADER = 100_000_000    # bytes of a safetensors header; as in lib/safetensors.h
MAX_DIMENSIONS = 8          # of a tensor
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
          "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


def bf16_from_float(array):
    """float array -> uint16 array of bf16 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def float_from_bf16(bits):
    """uint16 array of bf16 bits -> float32 array."""
    return (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)


def read_header(path):
    """Reads the header of a safetensors file and checks it against the size of the file. Returns ({name: (dtype,
    shape, position in the file)}, metadata)."""
    check_input(path)
    with open_input(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise FormatError(f"{path}: expected a safetensors file, found {size} bytes, too short for its header.")
        (header_bytes,) = struct.unpack("<Q", f.read(8))
        if header_bytes > min(size - 8, MAX_HEADER):
            raise FormatError(f"{path}: the safetensors header claims {header_bytes} bytes, but the file has {size}"
                              f"{', and at most 100 MB are read' if size > MAX_HEADER else ''}; it is cut off, damaged "
                              f"or no safetensors file.")
        text = f.read(header_bytes)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        texts = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, AttributeError, TypeError) as e:
        raise FormatError(f"{path}: the safetensors header is not a JSON object ({e}).")
    except RecursionError:
        raise FormatError(f"{path}: the safetensors header is nested too deeply for one.")
    if not texts:
        raise FormatError(f"{path}: a value in __metadata__ of the safetensors header is not a string.")
    start = 8 + header_bytes
    return {name: header_entry(path, name, info, start, size - start) for name, info in header.items()}, metadata


def header_entry(path, name, info, start, size):
    """One tensor of a safetensors header -> (dtype, shape, position in the file). size: bytes of all data."""
    try:
        kind, shape, (begin, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        item = np.dtype(DTYPES[kind]).itemsize
        known = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        known = known and max(shape, default=0) < 1 << 62
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise FormatError(f"{path}: tensor '{name[:80]}' has an unknown dtype or a malformed entry: "
                          f"{reprlib.repr(info)}.")
    if not (begin <= end <= size and end - begin == math.prod(shape) * item):
        raise FormatError(f"{path}: tensor '{name[:80]}' of shape {list(shape)} and type {kind} does not fit its bytes "
                          f"{reprlib.repr(begin)} to {reprlib.repr(end)} of {size}.")
    return kind, shape, start + begin


def read_safetensors(path, raw_bf16=False):
    """Returns ({name: array}, metadata). Arrays are read-only views of the mapped file; only BF16 is converted to
    float32, unless raw_bf16 is set (then it gives uint16 bits)."""
    header, metadata = read_header(path)
    with open_input(path) as f:
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, (kind, shape, offset) in header.items():
        try:
            array = np.frombuffer(data, DTYPES[kind], math.prod(shape), offset).reshape(shape)
        except (ValueError, OverflowError):  # an empty tensor may claim any other dimensions
            raise FormatError(f"{path}: tensor '{name}' has the impossible shape {list(shape)[:40]}.")
        tensors[name] = float_from_bf16(array) if kind == "BF16" and not raw_bf16 else array
    return tensors, metadata


class SafetensorsWriter:
    """Writes a file tensor by tensor, so that it need not fit into memory:

        with SafetensorsWriter(path, [(name, kind, shape), ...], metadata) as w:
            for name in w.order: w.write(data)  # in one or several calls

    In the file the tensors are sorted by descending element size, which aligns each one; equal sizes keep the order
    given.
    """

    def __init__(self, path, specs, metadata):
        sizes = {name: np.dtype(DTYPES[kind]).itemsize for name, kind, _ in specs}
        specs = sorted(specs, key=lambda spec: -sizes[spec[0]])
        self.order, self.bytes_left = [name for name, _, _ in specs], 0
        header = {"__metadata__": metadata}
        for name, kind, shape in specs:
            end = self.bytes_left + sizes[name] * math.prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [self.bytes_left, end]}
            self.bytes_left = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
        self.output = AtomicFile(path)
        with self.output.discarded_on_error():
            self.output.file.write(struct.pack("<Q", len(text)) + text)

    def write(self, data):
        self.bytes_left -= self.output.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None and self.bytes_left:
            kind, value = FormatError, FormatError(f"{self.output.path}: {self.bytes_left} bytes were not written.")
            self.output.__exit__(kind, value, trace)
            raise value
        self.output.__exit__(kind, value, trace)


def write_safetensors(path, tensors, metadata=None, dtypes=None):
    """Writes tensors {name: array}. dtypes {name: "BF16"} stores a float array as bf16 (uint16 arrays are taken as
    bf16 bits); other tensors have the type of their array. "format" is added to the metadata, whose values must be
    strings."""
    names_of = {np.dtype(v): k for k, v in DTYPES.items() if k != "BF16"}
    stored = {}
    for name, array in sorted(tensors.items()):
        array = np.asarray(array)
        kind = (dtypes or {}).get(name) or names_of.get(array.dtype)
        if kind is None:
            raise FormatError(f"{path}: tensor '{name}' has type {array.dtype}, which safetensors cannot hold.")
        if kind == "BF16":
            array = array if array.dtype == np.uint16 else bf16_from_float(array)
        stored[name] = (kind, np.ascontiguousarray(array, dtype=DTYPES[kind]).reshape(array.shape))
    specs = [(name, kind, array.shape) for name, (kind, array) in stored.items()]
    with SafetensorsWriter(path, specs, {"format": FORMAT, **(metadata or {})}) as w:
        for name in w.order:
            w.write(stored[name][1].tobytes())
