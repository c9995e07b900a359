"""Reading and writing the files of tikz.c from Python: safetensors, tokenizers, .bin datasets.

Needs numpy; encoding text needs the package `tokenizers` too. All numbers are little-endian.

Models, checkpoints: safetensors
--------------------------------
    u64 n, then n bytes of JSON, then the data of all tensors, contiguous.
The JSON is {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets": [begin, end]}}, with offsets
from the start of the data. We write: "format" = "tikz.c/1" in the metadata; the JSON padded with spaces so that the
data start at a multiple of 64 bytes; tensors sorted by element size, largest first, then by name, so that each one is
aligned to its element size.

Tokenizer, inside a safetensors file (a model, or a file of its own)
--------------------------------------------------------------------
    tokenizer.bytes    U8 [total]  the byte strings of all tokens, one after another, as they appear in the text
                                   (the printable stand-ins of byte-level BPE already undone)
    tokenizer.offsets  I32 [V+1]   token i is bytes[offsets[i] : offsets[i+1]]
    tokenizer.flags    U8 [V]      bit 0: special, never printed
    tokenizer.json     U8 [n]      tokenizer.json of the package `tokenizers`, UTF-8, for Python
    metadata: "tokenizer.kind" = "byte_level_bpe", "tokenizer.end" = id of the end token, decimal
The fingerprint of a tokenizer is the 64-bit FNV-1a hash of, for each token in the order of ids: its length as u32,
its bytes, its flags byte.

Datasets: .bin
--------------
    header, 64 bytes: char magic[8] = "TIKZBIN1"; u32 version = 1; u32 header_bytes = 64; u64 count;
                      u64 fingerprint of the tokenizer; u64 index_offset; u64 source_offset; u64 source_bytes;
                      u64 file_bytes
    records:          the bytes of a PNG or JPEG file as they were, zeros up to a multiple of 4,
                      u32 ids[token_count] (text and end token, no image tokens)
    source:           UTF-8, one line that says where the data come from; zeros up to a multiple of 8
    index:            count entries of 32 bytes: u64 offset of the record in the file; u32 image_bytes;
                      u32 token_count; u32 crc32 (zlib) of the whole record; u32 zero; u64 zero
The parts lie in this order. Files are written under a temporary name and renamed when they are whole.
"""
import json
import mmap
import os
import struct
import zlib

import numpy as np

FORMAT = "tikz.c/1"
DATA_ALIGNMENT = 64
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
          "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


class FormatError(Exception):
    """A file does not have the form described above; the message is one sentence for the user."""


class AtomicFile:
    """A binary file that appears under its name only when all of it is written."""

    def __init__(self, path):
        self.path, self.temporary = str(path), f"{path}.{os.getpid()}.tmp"
        self.file = open(self.temporary, "wb")

    def __enter__(self):
        return self.file

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            os.unlink(self.temporary)


# ---- safetensors ----

def bf16_from_float(array):
    """float array -> uint16 array of bf16 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def float_from_bf16(bits):
    """uint16 array of bf16 bits -> float32 array."""
    return (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)


def read_safetensors(path, raw_bf16=False):
    """Returns ({name: array}, metadata). Arrays are read-only views of the mapped file, except that BF16 becomes
    float32 unless raw_bf16 (then uint16 bits)."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise FormatError(f"{path}: expected a safetensors file, found {size} bytes, too short for its header.")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    (header_bytes,) = struct.unpack_from("<Q", data, 0)
    if header_bytes > size - 8:
        raise FormatError(f"{path}: the safetensors header claims {header_bytes} bytes, but the file has {size}.")
    try:
        header = json.loads(data[8:8 + header_bytes])
        metadata = header.pop("__metadata__", {})
    except (ValueError, AttributeError) as e:
        raise FormatError(f"{path}: the safetensors header is not a JSON object ({e}).")
    start, tensors = 8 + header_bytes, {}
    for name, info in header.items():
        try:
            kind, shape, (begin, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
            dtype = np.dtype(DTYPES[kind])
            count = int(np.prod(shape, dtype=np.int64))
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{path}: tensor '{name}' has an unknown dtype or a malformed entry: {info}.")
        if not 0 <= begin <= end <= size - start or end - begin != count * dtype.itemsize:
            raise FormatError(f"{path}: tensor '{name}' of shape {list(shape)} and type {kind} does not fit its "
                              f"bytes {begin} to {end} of {size - start}.")
        array = np.frombuffer(data, dtype, count, start + begin).reshape(shape)
        tensors[name] = float_from_bf16(array) if kind == "BF16" and not raw_bf16 else array
    return tensors, metadata


def write_safetensors(path, tensors, metadata=None, dtypes=None):
    """tensors: {name: array}. dtypes: {name: "BF16"} stores a float array as bf16 (or takes uint16 bits as they are).
    Other types follow the arrays'. "format" is added to the metadata, whose values must be strings."""
    names_of = {np.dtype(v): k for k, v in DTYPES.items() if k != "BF16"}
    stored = {}
    for name, array in tensors.items():
        array = np.asarray(array)
        kind = (dtypes or {}).get(name) or names_of.get(array.dtype)
        if kind is None:
            raise FormatError(f"{path}: tensor '{name}' has type {array.dtype}, which safetensors cannot hold.")
        if kind == "BF16":
            array = array if array.dtype == np.uint16 else bf16_from_float(array)
        stored[name] = (kind, np.ascontiguousarray(array, dtype=DTYPES[kind]).reshape(array.shape))
    order = sorted(stored, key=lambda name: (-stored[name][1].itemsize, name))
    header, offset = {"__metadata__": {"format": FORMAT, **(metadata or {})}}, 0
    for name in order:
        kind, array = stored[name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    with AtomicFile(path) as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for name in order:
            f.write(stored[name][1].tobytes())


# ---- tokenizers ----

def byte_of_stand_in():
    """GPT-2's byte-level alphabet: a dict from the printable character to the byte it stands for. Bytes that are
    printable in Latin-1 stand for themselves; the others take the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


class Tokenizer:
    """Token strings, flags and the end token; encodes text when the package `tokenizers` is there."""

    def __init__(self, tokens, special, end, json_text):
        self.tokens = tokens        # list of bytes
        self.special = special      # list of bool
        self.end = end
        self.json_text = json_text
        self._encoder = None

    @classmethod
    def from_json(cls, json_text, end_token="</s>", size=None):
        """From the text of a byte-level tokenizer.json. size: number of ids (default: as many as the file names)."""
        parsed = json.loads(json_text)
        alphabet = byte_of_stand_in()
        vocabulary = parsed["model"]["vocab"]
        added = {t["id"]: t for t in parsed.get("added_tokens", [])}
        count = 1 + max([*vocabulary.values(), *added])
        size = size or count
        if count > size:
            raise FormatError(f"The tokenizer has ids up to {count - 1}, expected fewer than {size}.")
        tokens, special = [b""] * size, [True] * size     # ids without a token are never printed
        for text, i in vocabulary.items():
            if i not in added:
                tokens[i], special[i] = bytes(alphabet[c] for c in text), False
        for i, token in added.items():
            tokens[i], special[i] = token["content"].encode(), bool(token["special"])
        ends = [i for i, token in added.items() if token["content"] == end_token]
        if not ends:
            raise FormatError(f"The tokenizer has no added token '{end_token}' to end a text with.")
        return cls(tokens, special, ends[0], json_text)

    @classmethod
    def load(cls, path):
        """From a safetensors file that carries a tokenizer."""
        tensors, metadata = read_safetensors(path)
        missing = [n for n in ("bytes", "offsets", "flags", "json") if f"tokenizer.{n}" not in tensors]
        if missing or "tokenizer.end" not in metadata:
            name = missing[0] if missing else "end"
            raise FormatError(f"{path}: no tokenizer inside; 'tokenizer.{name}' is missing.")
        blob, offsets = tensors["tokenizer.bytes"].tobytes(), tensors["tokenizer.offsets"]
        flags = tensors["tokenizer.flags"]
        if (len(offsets) != len(flags) + 1 or offsets[0] != 0 or offsets[-1] != len(blob)
                or (np.diff(offsets) < 0).any()):
            raise FormatError(f"{path}: 'tokenizer.offsets' does not divide the {len(blob)} bytes of the tokens.")
        tokens = [blob[a:b] for a, b in zip(offsets[:-1], offsets[1:])]
        end = int(metadata["tokenizer.end"])
        if not 0 <= end < len(tokens):
            raise FormatError(f"{path}: the end token {end} is outside the vocabulary of {len(tokens)}.")
        return cls(tokens, [bool(f & 1) for f in flags], end, tensors["tokenizer.json"].tobytes().decode())

    def tensors(self):
        offsets = np.cumsum([0] + [len(t) for t in self.tokens]).astype(np.int32)
        return {"tokenizer.bytes": np.frombuffer(b"".join(self.tokens), np.uint8),
                "tokenizer.offsets": offsets,
                "tokenizer.flags": np.array(self.special, np.uint8),
                "tokenizer.json": np.frombuffer(self.json_text.encode(), np.uint8)}

    def metadata(self):
        return {"tokenizer.kind": "byte_level_bpe", "tokenizer.end": str(self.end)}

    def save(self, path):
        write_safetensors(path, self.tensors(), self.metadata())

    def fingerprint(self):
        h = 0xCBF29CE484222325
        for token, special in zip(self.tokens, self.special):
            for b in struct.pack("<I", len(token)) + token + bytes([special]):
                h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        return h

    def encode(self, text):
        """Ids of the text and of the end token."""
        if self._encoder is None:
            import tokenizers
            self._encoder = tokenizers.Tokenizer.from_str(self.json_text)
        return self._encoder.encode(text, add_special_tokens=False).ids + [self.end]

    def decode(self, ids):
        return b"".join(self.tokens[i] for i in ids if not self.special[i]).decode("utf-8", "replace")


# ---- datasets ----

HEADER = struct.Struct("<8sIIQQQQQQ")
ENTRY = struct.Struct("<QIIIIQ")
MAGIC = b"TIKZBIN1"


class DatasetWriter:
    """with DatasetWriter(path, tokenizer, source) as w: w.add(image_bytes, ids)"""

    def __init__(self, path, tokenizer, source):
        self.output = AtomicFile(path)
        self.file = self.output.file
        self.vocabulary, self.fingerprint = len(tokenizer.tokens), tokenizer.fingerprint()
        self.source = " ".join(source.split()).encode()
        self.index, self.offset = [], HEADER.size
        self.file.write(b"\0" * HEADER.size)

    def add(self, image, ids):
        ids = np.asarray(ids, dtype="<u4")
        if ids.size and int(ids.max()) >= self.vocabulary:
            raise FormatError(f"{self.output.path}: token id {ids.max()} is outside the vocabulary of "
                              f"{self.vocabulary}.")
        record = image + b"\0" * (-len(image) % 4) + ids.tobytes()
        self.index.append(ENTRY.pack(self.offset, len(image), len(ids), zlib.crc32(record), 0, 0))
        self.file.write(record)
        self.offset += len(record)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            padding = -(self.offset + len(self.source)) % 8
            index_offset = self.offset + len(self.source) + padding
            self.file.write(self.source + b"\0" * padding + b"".join(self.index))
            self.file.seek(0)
            self.file.write(HEADER.pack(MAGIC, 1, HEADER.size, len(self.index), self.fingerprint, index_offset,
                                        self.offset, len(self.source), index_offset + ENTRY.size * len(self.index)))
        self.output.__exit__(kind, value, trace)


class Dataset:
    """A .bin file: len(d), d[i] -> (image bytes, uint32 ids); d.source, d.fingerprint. Checks what it reads."""

    def __init__(self, path):
        self.path = str(path)
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size < HEADER.size:
                raise FormatError(f"{path}: expected a dataset of at least {HEADER.size} bytes, found {size}.")
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        (magic, version, header_bytes, self.count, self.fingerprint, self.index_offset, source_offset, source_bytes,
         file_bytes) = HEADER.unpack_from(self.data)
        if magic != MAGIC or version != 1 or header_bytes != HEADER.size:
            raise FormatError(f"{path}: not a tikz.c dataset of version 1; convert the data again.")
        if (file_bytes != size or self.index_offset > size or source_offset > size
                or source_bytes > size - source_offset or self.count > (size - self.index_offset) // ENTRY.size):
            raise FormatError(f"{path}: the header describes {file_bytes} bytes and {self.count} samples, which does "
                              f"not fit the file of {size} bytes; the file is cut off or damaged.")
        self.source = self.data[source_offset:source_offset + source_bytes].decode("utf-8", "replace")

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(f"{self.path}: sample {i} of {self.count}")
        offset, image_bytes, token_count, crc, _, _ = ENTRY.unpack_from(self.data, self.index_offset + i * ENTRY.size)
        padded = image_bytes + -image_bytes % 4
        record = self.data[offset:offset + padded + 4 * token_count]
        if len(record) != padded + 4 * token_count or zlib.crc32(record) != crc:
            raise FormatError(f"{self.path}: record {i} at byte {offset} is damaged (CRC-32 differs).")
        return record[:image_bytes], np.frombuffer(record, "<u4", token_count, padded)
