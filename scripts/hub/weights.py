"""The weight files of a Hub folder: model.safetensors or pytorch_model.bin, single or in shards with an index.
Opening them reads only names, types, shapes and positions of the tensors; the values are read later, in pieces.
"""
import math
import pickle
import struct
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np

import tikzc
from hub.config import Section, read_json
from tikzc import FormatError

PIECE = 1 << 20     # elements read at a time

# A tensor in a file: contiguous bytes from `offset` on; kind: the dtype as safetensors names it.
Stored = namedtuple("Stored", "path kind shape offset")

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def folder_tensors(folder):
    """{name: Stored} for all weights of a Hub folder."""
    folder = Path(folder)
    for single, read in (("model.safetensors", safetensors_tensors), ("pytorch_model.bin", torch_tensors),
                         ("open_clip_model.safetensors", safetensors_tensors),
                         ("open_clip_pytorch_model.bin", torch_tensors)):
        if (folder / single).exists():
            return read(folder / single)
        if (folder / f"{single}.index.json").exists():
            return sharded_tensors(folder / f"{single}.index.json", read)
    raise FormatError(f"{folder}: no weights there; expected model.safetensors or pytorch_model.bin, or one of them "
                      f"with .index.json behind its name.")


def sharded_tensors(index, read):
    listed = Section(read_json(index), str(index)).get("weight_map", dict)
    tensors = {}
    for shard in sorted(set(map(str, listed.values()))):
        path = index.parent / shard
        if Path(shard).name != shard or not path.exists():
            raise FormatError(f"{index}: lists the shard {shard}, which is missing; download the folder again.")
        tensors |= read(path)
    for name, shard in listed.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise FormatError(f"{index}: says that tensor {name} is in {shard}, but it is not.")
    return tensors


def safetensors_tensors(path):
    header, _ = tikzc.read_header(path)
    return {name: Stored(path, *place) for name, place in header.items()}


class TorchUnpickler(pickle.Unpickler):
    """Unpickles a state dict of torch.save into names, types, shapes and positions of tensors. It resolves only the
    few names below, so a file cannot execute code."""
    STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
                "LongStorage": "I64", "IntStorage": "I32", "ByteStorage": "U8", "BoolStorage": "BOOL"}
    Tensor = namedtuple("Tensor", "kind key shape first count")

    @classmethod
    def rebuild_tensor(cls, storage, first, shape, strides, *_):
        (kind, key, count), contiguous = storage, 1
        for size, stride in zip(reversed(shape), reversed(strides)):
            if size > 1 and stride != contiguous:
                raise pickle.UnpicklingError("a tensor is not contiguous; save it with .contiguous()")
            contiguous *= size
        return cls.Tensor(kind, key, tuple(shape), first, count)

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in self.STORAGES:
            return self.STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no plain state dict needs")

    def persistent_load(self, pid):
        word, kind, key, _, count = pid
        if word != "storage":
            raise pickle.UnpicklingError(f"it refers to '{word}', not to a storage")
        return str(kind), str(key), int(count)


def torch_tensors(path):
    """{name: Stored} for a file of torch.save since PyTorch 1.6: a zip archive with a pickle that describes the
    tensors, and an uncompressed member for each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise zipfile.BadZipFile("no data.pkl inside")
            root = pickles[0][:-len("data.pkl")]
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise zipfile.BadZipFile("its numbers are not little-endian")
            with archive.open(pickles[0]) as f:
                state = TorchUnpickler(f).load()
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError,
            ValueError, RecursionError, MemoryError, UnicodeError, struct.error, NotImplementedError) as e:
        raise FormatError(f"{path}: not a state dict as torch.save writes it since PyTorch 1.6 ({e}); save it anew "
                          f"as safetensors.")
    if not isinstance(state, dict):
        raise FormatError(f"{path}: holds {type(state).__name__}, expected a dict of tensors.")
    return {str(name): torch_place(path, name, value, members, root) for name, value in state.items()}


def torch_place(path, name, value, members, root):
    """The Stored of one tensor: its storage begins after the local header of its zip member."""
    if not isinstance(value, TorchUnpickler.Tensor):
        raise FormatError(f"{path}: entry {name} is a {type(value).__name__}, expected a tensor.")
    info = members.get(f"{root}data/{value.key}")
    size = np.dtype(tikzc.DTYPES[value.kind]).itemsize if value.kind in tikzc.DTYPES else 0
    shape_ok = all(isinstance(n, int) and n >= 0 for n in value.shape) and isinstance(value.first, int)
    last = value.first + math.prod(value.shape) if shape_ok else 0
    if (not size or not shape_ok or info is None or info.compress_type != zipfile.ZIP_STORED or value.first < 0
            or last * size > info.file_size):
        raise FormatError(f"{path}: tensor {name} does not lie inside its storage; the file is damaged.")
    with open(path, "rb") as f:
        f.seek(info.header_offset)
        header = f.read(30)
    if len(header) != 30 or not header.startswith(b"PK\3\4"):
        raise FormatError(f"{path}: the archive's entry of tensor {name} is damaged.")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return Stored(path, value.kind, value.shape,
                  info.header_offset + 30 + name_bytes + extra_bytes + value.first * size)


def pieces(stored, kind):
    """Yields the bytes of a tensor converted to the dtype `kind`, a few megabytes at a time."""
    dtype, left = np.dtype(FLOATS[stored.kind]), math.prod(stored.shape)
    with open(stored.path, "rb") as f:
        f.seek(stored.offset)
        while left:
            data = f.read(min(left, PIECE) * dtype.itemsize)
            if len(data) % dtype.itemsize or not data:
                raise FormatError(f"{stored.path}: ends inside a tensor; the file is cut off.")
            left -= len(data) // dtype.itemsize
            yield data if kind == stored.kind else cast(np.frombuffer(data, dtype), stored, kind).tobytes()


def cast(values, stored, kind):
    """Converts values to the dtype `kind`; an overflow to infinity in fp16 is an error."""
    values = tikzc.float_from_bf16(values) if stored.kind == "BF16" else values
    if kind == "BF16":
        return tikzc.bf16_from_float(values.astype(np.float32))
    with np.errstate(over="ignore"):
        result = values.astype(FLOATS[kind])
    if kind == "F16" and np.isinf(result).any() and not np.isinf(values).any():
        raise FormatError(f"{stored.path}: a tensor holds {np.abs(values).max():g}, too large for fp16; choose "
                          f"another --dtype.")
    return result
