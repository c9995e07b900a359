"""Reads where the tensors are in a file of torch.save (since PyTorch 1.6): a zip archive with a pickle that describes
them, data.pkl, and one uncompressed member for the bytes of each storage.

The pickle is not run. A small machine here knows only the operations of a plain state dict and the names below; it
allocates nothing but what the file itself spells out, so neither code nor a few bytes that ask for gigabytes do any
harm."""
import io
import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections import namedtuple

import numpy as np

import tikzc
from tikzc import FormatError

MAX_PICKLE = 1 << 24    # bytes of data.pkl; a tensor takes about 250
MAX_DIMENSIONS = 8

Tensor = namedtuple("Tensor", "kind key shape first")   # kind as safetensors names it; first: element of its storage
Storage = namedtuple("Storage", "kind key")
Global = namedtuple("Global", "module name")

STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
            "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
            "BoolStorage": "BOOL"}
CALLED = {Global("collections", "OrderedDict"), Global("torch._utils", "_rebuild_tensor_v2"),
          Global("torch._utils", "_rebuild_parameter")}
IGNORED = {"PROTO", "FRAME", "STOP"}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
MADE = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
        "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Damaged(Exception):
    """The pickle is not one of a plain state dict; the message says why."""


def whole(*numbers):
    """Whether all are whole numbers that a file can hold."""
    return all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


class Machine:
    """Executes the opcodes of a pickle (PEP 307 and 3154; pickletools describes them)."""

    def __init__(self):
        self.stack, self.marks, self.memo = [], [], {}

    def pop(self, kind=object):
        if not isinstance(self.stack[-1], kind):
            raise Damaged(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} was expected")
        return self.stack.pop()

    def since_mark(self):
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def step(self, name, arg):
        push = self.stack.append
        if name in VALUES:
            push(arg)
        elif name in MADE:
            push(MADE[name]())
        elif name in TUPLES:
            push(tuple(reversed([self.pop() for _ in range(TUPLES[name])])))
        elif name == "TUPLE":
            push(tuple(self.since_mark()))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[arg])
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            self.fill(name)
        elif name == "GLOBAL":
            push(named(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last = self.pop(str)
            push(named(self.pop(str), last))
        elif name == "BINPERSID":
            push(storage(self.pop(tuple)))
        elif name == "REDUCE":
            arguments = self.pop(tuple)
            push(call(self.pop(Global), arguments))
        elif name not in IGNORED:
            raise Damaged(f"its opcode {name} is none of a plain state dict")

    def fill(self, name):
        """Puts what is on top of the stack into the list or dictionary below it. What BUILD adds to an object (the
        _metadata of a state dict) is not used."""
        if name == "BUILD":
            self.pop()
            return
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self.since_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        target = self.stack[-1]
        if name.startswith("APPEND") and isinstance(target, list):
            target += items
        elif name.startswith("SET") and isinstance(target, dict) and all(isinstance(k, (str, int)) for k in items[::2]):
            target.update(zip(items[::2], items[1::2], strict=True))
        else:
            raise Damaged("a list or a dictionary is filled in another way")


def named(module, name):
    """A name that the pickle asks for; only those of a plain state dict exist."""
    found = Global(module, name)
    if found not in CALLED and not (module == "torch" and name in STORAGES):
        raise Damaged(f"it asks for {module[:40]}.{name[:40]}, which no plain state dict needs")
    return found


def storage(pid):
    """The persistent id of a storage: ("storage", type, key, device, number of elements)."""
    if len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], Global) or not isinstance(pid[2], str):
        raise Damaged("it refers to something that is not a storage")
    return Storage(STORAGES.get(pid[1].name), pid[2])


def call(function, arguments):
    if function.name == "OrderedDict" and not arguments:
        return {}
    if function.name == "_rebuild_parameter" and arguments and isinstance(arguments[0], Tensor):
        return arguments[0]
    if function.name != "_rebuild_tensor_v2" or len(arguments) < 4:
        raise Damaged(f"it calls {function.name} in another way than torch.save does")
    store, first, shape, strides = arguments[:4]
    if (not isinstance(store, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple)
            or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS or not whole(first, *shape, *strides)):
        raise Damaged("a tensor's shape, strides or offset is none")
    contiguous = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size > 1 and stride != contiguous:
            raise Damaged("a tensor is not contiguous; save it with .contiguous()")
        contiguous *= size
    return Tensor(store.kind, store.key, shape, first)


def read_pickle(data):
    """The bytes of data.pkl -> {name: Tensor}. Raises Damaged."""
    machine = Machine()
    try:
        for opcode, arg, _ in pickletools.genops(io.BytesIO(data)):
            machine.step(opcode.name, arg)
        state = machine.pop()
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as e:
        raise Damaged(f"its pickle is damaged: {type(e).__name__} {e}")
    if not isinstance(state, dict):
        raise Damaged(f"it holds a {type(state).__name__}, expected a dict of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise Damaged(f"its entry {str(name)[:80]} is a {type(value).__name__}, expected a tensor")
    return {str(name): value for name, value in state.items()}


def read_member(archive, name, limit):
    """The bytes of a small member. torch.save compresses nothing, so nothing is inflated here."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise zipfile.BadZipFile(f"its member {name[:60]} is compressed or has more than {limit} bytes")
    with archive.open(info) as f:
        return f.read(limit)


def torch_tensors(path):
    """{name: (kind, shape, offset in the file)} of a file of torch.save."""
    tikzc.check_input(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise zipfile.BadZipFile("no data.pkl inside")
            root = pickles[0][:-len("data.pkl")]
            if root + "byteorder" in members and read_member(archive, root + "byteorder", 16) != b"little":
                raise zipfile.BadZipFile("its numbers are not little-endian")
            state = read_pickle(read_member(archive, pickles[0], MAX_PICKLE))
    except (Damaged, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, KeyError, IndexError,
            ValueError, OverflowError, RuntimeError, MemoryError) as e:     # what zipfile raises for damaged archives
        raise FormatError(f"{path}: not a state dict as torch.save writes it since PyTorch 1.6 ({e}); save it anew "
                          f"as safetensors.")
    with tikzc.open_input(path) as f:
        size = os.fstat(f.fileno()).st_size
        return {name: tensor_place(path, f, size, name, tensor, members.get(f"{root}data/{tensor.key}"))
                for name, tensor in state.items()}


def tensor_place(path, f, size, name, tensor, info):
    """(kind, shape, offset) of a tensor. Its storage begins after the local header of its zip member, info."""
    item = np.dtype(tikzc.DTYPES[tensor.kind]).itemsize if tensor.kind in tikzc.DTYPES else 0
    last = (tensor.first + math.prod(tensor.shape)) * item
    if (not item or info is None or info.compress_type != zipfile.ZIP_STORED or last > info.file_size
            or not 0 <= info.header_offset <= size):
        raise FormatError(f"{path}: tensor {name[:80]} does not lie inside its storage; the file is damaged.")
    f.seek(info.header_offset)
    header = f.read(30)
    if len(header) != 30 or not header.startswith(b"PK\3\4"):
        raise FormatError(f"{path}: the archive's entry of tensor {name[:80]} is damaged.")
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if begin + last > size:
        raise FormatError(f"{path}: ends inside tensor {name[:80]}; the file is cut off.")
    return tensor.kind, tensor.shape, begin + tensor.first * item
