"""TensorBoard: one event file in the folder of the run's name.

The file is a sequence of records: the length (uint64) and its checksum, the data and their checksum. The data are an
Event of tensorflow/core/util/event.proto, written here field by field. The options are the session's hyperparameters
(HPARAMS in the page).
"""
import math
import os
import struct

from . import folder
from .run import typed


# ---- records ----

def crc32c_table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(i)
    return table


TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data):
    """The checksum as records store it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


# ---- protocol buffers: a field is its number and type, then its value ----

def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes((*out, n))


def integer(field, n):
    return varint(field << 3) + varint(n)


def double(field, x):
    return varint(field << 3 | 1) + struct.pack("<d", x)


def text(field, data):
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def single(field, x):
    """float32; what is too large for it becomes an infinity."""
    try:
        data = struct.pack("<f", x)
    except OverflowError:
        data = struct.pack("<f", math.copysign(math.inf, x))
    return varint(field << 3 | 5) + data


# ---- events ----

def event(time, step, *content):
    return record(b"".join((double(1, time), integer(2, step), *content)))


def scalar(name, value):
    """Summary.Value: tag and simple_value."""
    return text(1, text(1, name) + single(2, value))


def hyperparameter(value):
    """google.protobuf.Value"""
    if isinstance(value, bool):
        return integer(4, value)
    return text(3, value) if isinstance(value, str) else double(2, float(value))


def session_start(run):
    """Summary.Value whose metadata are the HParamsPluginData of the run's options."""
    entries = [text(1, text(1, name) + text(2, hyperparameter(typed(value)))) for name, value in run.options.items()]
    session = b"".join((*entries, text(4, run.name), double(5, run.start)))  # group_name, start_time_secs
    plugin = text(1, "hparams") + text(2, text(3, session))
    return text(1, text(1, "_hparams_/session_start_info") + text(9, text(1, plugin)))


def write(run, path):
    """Writes the run's event file into a folder."""
    events = [event(run.start, 0, text(3, "brain.Event:2"))]
    if run.options:
        events.append(event(run.start, 0, text(5, session_start(run))))
    for step in run.steps("TensorBoard"):
        row = run.rows[step]
        if row:
            events.append(event(run.times[step], step, text(5, b"".join(scalar(n, row[n]) for n in sorted(row)))))
    folder.write_file(os.path.join(path, f"events.out.tfevents.{int(run.start):010d}.tikzc"), b"".join(events))
