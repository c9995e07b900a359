"""The weight files of a Hub folder: model.safetensors or pytorch_model.bin, single or in shards with an index.
Opening them reads only names, types, shapes and positions of the tensors; the values are read later, in pieces.
"""
import math
from collections import namedtuple
from pathlib import Path

import numpy as np

import tikzc
from hub.files import Section, read_json
from hub.torch_file import torch_tensors
from tikzc import FormatError

PIECE = 1 << 20     # elements read at a time

# A tensor in a file: contiguous bytes from `offset` on; kind: the dtype as safetensors names it.
Stored = namedtuple("Stored", "path kind shape offset")

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


# Name of a weight file, and its reader: path -> {name: (kind, shape, offset)}.
FORMS = (("model.safetensors", lambda path: tikzc.read_header(path)[0]), ("pytorch_model.bin", torch_tensors),
         ("open_clip_model.safetensors", lambda path: tikzc.read_header(path)[0]),
         ("open_clip_pytorch_model.bin", torch_tensors))
INDEX = ".index.json"   # behind the name: which shard holds which tensor

# What torch.compile, FSDP and activation checkpointing put between the parts of a tensor's name.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
MERGE = ("merge it into its base model (with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
         ".save_pretrained(folder)) and convert that")


def folder_tensors(folder, note):
    """{name: Stored} for all weights of a Hub folder. note: takes sentences about what was left out or changed."""
    folder = Path(folder)
    for single, read in FORMS:
        path, index = folder / single, folder / f"{single}{INDEX}"
        if path.exists() and index.exists():
            note(f"{folder}: holds {single} and the shards of {index.name}; {single} is read, as by transformers, and "
                 f"the shards are left out")
        if path.exists() or index.exists():
            tensors = read_weights(path, read) if path.exists() else sharded_tensors(index, read)
            if (folder / "adapter_config.json").exists():
                note(f"{folder}: its LoRA adapter (adapter_config.json) is left out; to include it, {MERGE}")
            return plain_names(tensors, folder, note)
    raise FormatError(f"{folder}: no weights there; expected model.safetensors or pytorch_model.bin, or one of them "
                      f"with .index.json behind its name.")


def check_folder(folder):
    """Raises an error that says why a path cannot be a model's folder."""
    folder = Path(folder)
    if folder.is_file():
        raise FormatError(f"{folder}: is a file, expected the folder that holds it, with config.json beside it.")
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; models are read from local folders, so download it first.")
    adapter = folder / "adapter_config.json"
    if adapter.exists() and not any((folder / f"{name}{end}").exists() for name, _ in FORMS for end in ("", INDEX)):
        name = read_json(adapter).get("base_model_name_or_path")
        of = f" of {name}" if isinstance(name, str) else ""
        raise FormatError(f"{folder}: a LoRA adapter{of} alone, without the weights it changes; {MERGE}.")


def read_weights(path, read):
    return {name: Stored(path, *place) for name, place in read(path).items()}


def sharded_tensors(index, read):
    listed = Section(read_json(index), str(index)).get("weight_map", dict)
    tensors = {}
    for shard in sorted(set(map(str, listed.values()))):
        path = index.parent / shard
        if Path(shard).name != shard or "\0" in shard or not path.exists():
            raise FormatError(f"{index}: lists the shard {shard[:200]}, which is missing; download the folder again.")
        tensors |= read_weights(path, read)
    for name, shard in listed.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise FormatError(f"{index}: says that tensor {name} is in {shard}, but it is not.")
    return tensors


def plain_names(tensors, folder, note):
    """Removes what wrappers put into the names of all tensors, and `module.` of DataParallel in front of them."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): t for name, t in tensors.items()}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): t for name, t in plain.items()}
    if len(plain) != len(tensors):
        raise FormatError(f"{folder}: has tensors twice, with and without the prefix of torch.compile or FSDP.")
    if list(plain) != list(tensors):
        before, after = next((a, b) for a, b in zip(tensors, plain) if a != b)
        note(f"{folder}: the names of tensors are read without what torch.compile or a parallel wrapper put into them: "
             f"{before} as {after}")
    if any(".lora_A." in name or ".lora_B." in name for name in plain):
        raise FormatError(f"{folder}: its weights hold a LoRA adapter that is not merged; {MERGE}.")
    return plain


def same_values(a, b):
    """Whether two stored tensors hold the same values."""
    if tuple(a.shape) != tuple(b.shape) or not {a.kind, b.kind} <= set(FLOATS):
        return False
    kind = a.kind if a.kind == b.kind else "F32"
    return all(x == y for x, y in zip(pieces(a, kind), pieces(b, kind), strict=True))


def pieces(stored, kind):
    """Yields the bytes of a tensor converted to the dtype `kind`, a few megabytes at a time."""
    dtype, left = np.dtype(FLOATS[stored.kind]), math.prod(stored.shape)
    with tikzc.open_input(stored.path) as f:
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
