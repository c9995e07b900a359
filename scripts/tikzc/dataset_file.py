"""Datasets: .bin.

    header, 72 bytes: char magic[8] = "TIKZBIN1"; u32 version = 2; u32 header_bytes = 72; u64 count;
                      u64 fingerprint of the tokenizer; u64 index_offset; u64 source_offset; u64 source_bytes;
                      u64 file_bytes; u32 crc32 (zlib) of the 64 bytes before, the source and the index; u32 zero
    records:          the bytes of a PNG or JPEG file, zeros up to a multiple of 4,
                      u32 ids[token_count] (the program and the end token, no image tokens)
    source:           UTF-8, one line that says where the data come from; zeros up to a multiple of 8
    index:            count entries of 32 bytes: u64 offset of the record in the file; u32 image_bytes;
                      u32 token_count; u32 crc32 (zlib) of the whole record; u32 zero; u64 zero
The parts have this order. Version 1, which is still read, has a header of 64 bytes, without the CRC. Files are written
under a temporary name and renamed when they are complete.
"""
import mmap
import os
import struct
import zlib

import numpy as np

from files import AtomicFile, FormatError, check_input, open_input

HEADER = struct.Struct("<8sIIQQQQQQ")  # all of version 1
HEADER_CRC = struct.Struct("<II")  # what version 2 adds
HEADER_BYTES = {1: HEADER.size, 2: HEADER.size + HEADER_CRC.size}
ENTRY = struct.Struct("<QIIIIQ")
MAGIC = b"TIKZBIN1"
MAX_TOKENS = 1 << 20  # of a sample; the limit of lib/dataset.h


class DatasetWriter:
    """Writes a .bin file: with DatasetWriter(path, tokenizer, source) as w: w.add(image_bytes, ids)

    fingerprint: that of the tokenizer, if it is known already (computing it takes a second for a large vocabulary).
    temporary: see AtomicFile."""

    def __init__(self, path, tokenizer, source, fingerprint=None, temporary=None):
        self.output = AtomicFile(path, temporary)
        self.file = self.output.file
        self.vocabulary = len(tokenizer.tokens)
        self.fingerprint = tokenizer.fingerprint() if fingerprint is None else fingerprint
        self.source = " ".join(source.split()).encode("utf-8", "replace")
        self.index, self.offset = bytearray(), HEADER_BYTES[2]
        self.file.write(b"\0" * self.offset)

    @property
    def count(self):
        return len(self.index) // ENTRY.size

    def add(self, image, ids):
        ids = np.asarray(ids, dtype="<u4")
        if not image or not 1 <= len(ids) <= MAX_TOKENS:
            raise FormatError(f"{self.output.path}: sample {self.count} has {len(image)} bytes of image and "
                              f"{len(ids)} tokens; expected an image and 1 to {MAX_TOKENS} tokens.")
        if int(ids.max()) >= self.vocabulary:
            raise FormatError(f"{self.output.path}: token id {ids.max()} is outside the vocabulary of "
                              f"{self.vocabulary}.")
        record = image + b"\0" * (-len(image) % 4) + ids.tobytes()
        self.index += ENTRY.pack(self.offset, len(image), len(ids), zlib.crc32(record), 0, 0)
        self.file.write(record)
        self.offset += len(record)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            with self.output.discarded_on_error():
                self.write_end()
        self.output.__exit__(kind, value, trace)

    def write_end(self):
        """Writes what follows the records, then the header."""
        padding = -(self.offset + len(self.source)) % 8
        index_offset = self.offset + len(self.source) + padding
        self.file.write(self.source + b"\0" * padding + self.index)
        self.file.seek(0)
        header = HEADER.pack(MAGIC, 2, HEADER_BYTES[2], self.count, self.fingerprint, index_offset, self.offset,
                             len(self.source), index_offset + len(self.index))
        self.file.write(header + HEADER_CRC.pack(zlib.crc32(header + self.source + self.index), 0))


class Dataset:
    """A .bin file: len(d), d[i] -> (image bytes, uint32 ids), d.source, d.fingerprint. Everything read is checked."""

    def __init__(self, path):
        self.path = str(path)
        check_input(path)
        with open_input(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size < HEADER_BYTES[2]:
                raise FormatError(f"{path}: expected a dataset of at least {HEADER_BYTES[2]} bytes, found {size}.")
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        (magic, version, header_bytes, self.count, self.fingerprint, self.index_offset, source_offset, source_bytes,
         file_bytes) = HEADER.unpack_from(self.data)
        if magic != MAGIC or header_bytes != HEADER_BYTES.get(version):
            raise FormatError(f"{path}: not a tikz.c dataset of version 1 or 2; convert the data again.")
        if (file_bytes != size or self.index_offset > size or source_offset > size
                or source_bytes > size - source_offset or self.count > (size - self.index_offset) // ENTRY.size):
            raise FormatError(f"{path}: the header describes {file_bytes} bytes and {self.count} samples, which does "
                              f"not fit the file of {size} bytes; the file is cut off or damaged.")
        source = self.data[source_offset:source_offset + source_bytes]
        self.check_index(version, source, source_offset)
        self.source = source.decode("utf-8", "replace")

    def check_index(self, version, source, source_offset):
        end = self.index_offset + self.count * ENTRY.size
        if version == 1:
            whole = end in (len(self.data), source_offset)
        else:
            checked = self.data[:HEADER.size] + source + self.data[self.index_offset:end]
            whole = HEADER_CRC.unpack_from(self.data, HEADER.size) == (zlib.crc32(checked), 0)
        if not whole:
            raise FormatError(f"{self.path}: the header or the index is damaged; copy the file again.")

    def __len__(self):
        return self.count

    def close(self):
        self.data.close()

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(f"{self.path}: sample {i} of {self.count}")
        offset, image_bytes, token_count, crc, _, _ = ENTRY.unpack_from(self.data, self.index_offset + i * ENTRY.size)
        padded = image_bytes + -image_bytes % 4
        record = self.data[offset:offset + padded + 4 * token_count]
        if len(record) != padded + 4 * token_count or zlib.crc32(record) != crc:
            raise FormatError(f"{self.path}: record {i} at byte {offset} is damaged (CRC-32 differs).")
        return record[:image_bytes], np.frombuffer(record, "<u4", token_count, padded)
