"""Low-rank adapters of tikz.c (lora.h) as folders that PEFT reads: adapter_config.json and adapter_model.safetensors.

tikz.c has q, k and v in one matrix, and gate and up, so that they share A. PEFT has an adapter for each: they all get this
A, and the rows of B that are theirs. That is exact.
"""
import json
import math
import re

import numpy as np

import hub.config as hub
import tikzc
from hub.weights import FLOATS
from tikzc import FormatError

FORMAT = "tikz.c/lora/1"
RUNS, RUN = 16, 64      # of numbers that the fingerprint of a model takes of each tensor, as in lora.h
FNV_BEGIN, FNV_PRIME = 14695981039346656037, 1099511628211


def fnv(value, data):
    for byte in data:
        value = (value ^ byte) * FNV_PRIME & (1 << 64) - 1
    return value


def elements(path, stored, begin, count):
    """Elements of a tensor as bf16 bits."""
    kind, _, offset = stored
    dtype = np.dtype(FLOATS[kind])
    with tikzc.open_input(path) as f:
        f.seek(offset + begin * dtype.itemsize)
        values = np.frombuffer(f.read(count * dtype.itemsize), dtype)
    return values if kind == "BF16" else tikzc.bf16_from_float(values.astype(np.float32))


def fingerprint(x, entries):
    """lora_fingerprint of lora.h. x: the opened model; entries: all of its tensors, in the order of their declaration."""
    value = fnv(FNV_BEGIN, x.tokenizer.fingerprint().to_bytes(8, "little"))
    for text in hub.config_text(x.config).values():
        value = fnv(value, text.encode() + b"\0")
    for e in entries:
        n = math.prod(e.shape)
        length, runs = min(n, RUN), 1 if n <= RUN else RUNS
        value = fnv(value, e.name.encode())
        for run in range(runs):
            begin = (n - length) // (runs - 1) * run if runs > 1 else 0
            value = fnv(value, elements(x.path, x.place(e.name, e.shape), begin, length).astype("<u2").tobytes())
    return value


class Adapter:
    """An opened adapter file: rank, alpha, dropout, and the layers {name: (A [r, I], B [O, r])}."""

    def __init__(self, path):
        self.path = path
        header, metadata = tikzc.read_header(path)
        if metadata.get("format") != FORMAT:
            raise FormatError(f"{path}: not an adapter of tikz.c (metadata format is "
                              f"{metadata.get('format', 'missing')}, expected {FORMAT}).")
        self.base, self.base_name = metadata.get("lora.base"), metadata.get("lora.base_name")
        self.rank = int(self.number(metadata, "lora.rank", 1, 65536))
        self.alpha = self.number(metadata, "lora.alpha", 1e-6, 1e6)
        self.dropout = self.number(metadata, "lora.dropout", 0, 0.99)
        self.kind, self.layers = None, {}
        for name in header:
            if name.endswith(".lora_A"):
                layer = name[:-len(".lora_A")]
                self.layers[layer] = (self.matrix(header, name), self.matrix(header, f"{layer}.lora_B").T)
        if not self.layers:
            raise FormatError(f"{path}: holds no adapter of any layer.")

    def number(self, metadata, key, least, most):
        try:
            value = float(metadata[key])
        except (KeyError, ValueError):
            value = math.nan
        if not least <= value <= most or (key == "lora.rank" and value != int(value)):
            raise FormatError(f"{self.path}: the metadata {key} is {metadata.get(key, 'missing')}, expected a number "
                              f"from {least:g} to {most:g}.")
        return value

    def matrix(self, header, name):
        kind, shape, offset = header.get(name, (None, (), 0))
        if kind not in FLOATS or len(shape) != 2 or shape[0] != self.rank:
            raise FormatError(f"{self.path}: tensor {name} is {kind or 'missing'} {list(shape)}, expected floating point "
                              f"with {self.rank} rows.")
        self.kind = kind
        with tikzc.open_input(self.path) as f:
            f.seek(offset)
            data = f.read(math.prod(shape) * np.dtype(FLOATS[kind]).itemsize)
        return np.frombuffer(data, FLOATS[kind]).reshape(shape)


def pattern(names):
    """A regular expression that matches these module names, with layer numbers left open."""
    kinds = sorted({re.sub(r"\.\d+\.", ".#.", name) for name in names})
    return "|".join(re.escape(kind).replace(r"\#", r"\d+") for kind in kinds)


def adapter_tensors(adapter, entries):
    """{PEFT's name: array}, and the names of the modules that they belong to."""
    tensors, modules, left = {}, [], dict(adapter.layers)
    for e in entries:
        A, B = left.pop(e.name[:-len(".weight")], (None, None)) if e.name.endswith(".weight") else (None, None)
        if A is None:
            continue
        if A.shape[1:] != e.shape[1:] or B.shape[0] != e.shape[0]:
            raise FormatError(f"{adapter.path}: the adapter of {e.name} is for a matrix of {B.shape[0]} x {A.shape[1]}; "
                              f"the model has {' x '.join(map(str, e.shape))}.")
        row = 0
        for name, shape in e.parts:
            module = name[:-len(".weight")]
            modules.append(module)
            tensors[f"base_model.model.{module}.lora_A.weight"] = A
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(B[row:row + shape[0]])
            row += shape[0]
    if left:
        raise FormatError(f"{adapter.path}: the layer {next(iter(left))} has no place in the checkpoint; merge the adapter "
                          f"with quantize --lora and export the merged model.")
    return tensors, modules


def write_adapter(x, adapter, entries, places, folder):
    """Writes the folder's two files. x: the opened base; entries: its tensors; places: those that the checkpoint holds."""
    if adapter.base != f"{fingerprint(x, entries):016x}":
        raise FormatError(f"{adapter.path}: an adapter of another model than {x.path}; it was trained on "
                          f"{adapter.base_name or 'one that it does not name'}.")
    tensors, modules = adapter_tensors(adapter, places)
    config = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": adapter.base_name, "r": adapter.rank,
              "lora_alpha": adapter.alpha if adapter.alpha % 1 else int(adapter.alpha), "lora_dropout": adapter.dropout,
              "target_modules": pattern(modules), "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
              "init_lora_weights": True, "modules_to_save": None, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    specs = [(name, adapter.kind, array.shape) for name, array in tensors.items()]
    with tikzc.SafetensorsWriter(folder / "adapter_model.safetensors", specs, {"format": "pt"}) as w:
        for name in w.order:
            w.write(np.ascontiguousarray(tensors[name]).tobytes())
