"""Low-rank adapters that PEFT saved, as adapter files of tikz.c (lora.h): the way back from adapter.py.

PEFT has an adapter for q, k and v each, and for gate and up; tikz.c has one for all three, and for both, of one rank in all layers.
Where the parts of a matrix have the same A, as those that adapter.py writes, that is their adapter. Else their As are stacked, and
each B stands beside its own A, with zeros elsewhere: the rank becomes that of the stack. Layers of which the folder has nothing get
zeros. All of that is exact.
"""
import math
import re
from collections import namedtuple
from pathlib import Path

import numpy as np

import hub.config as hub
import tikzc
from hub.adapter import FORMAT, fingerprint
from hub.files import read_json, shown
from hub.weights import FLOATS
from tikzc import FormatError

TARGETS = {"qkv": r"lm\.\d+\.qkv", "out": r"lm\.\d+\.out", "gate_up": r"lm\.\d+\.gate_up", "down": r"lm\.\d+\.down",
           "vision.qkv": r"vision\.\d+\.qkv", "vision.proj": r"vision\.\d+\.proj", "vision.fc1": r"vision\.\d+\.fc1",
           "vision.fc2": r"vision\.\d+\.fc2", "connector": r"connector"}      # as in lora.h

# Settings of PEFT that change what an adapter computes, and what each means for the reader of the message.
REFUSED = {"use_dora": "DoRA, whose magnitudes an adapter of tikz.c has no place for",
           "alora_invocation_tokens": "aLoRA, which acts only after certain tokens",
           "modules_to_save": "whole layers that were trained beside the adapters",
           "rank_pattern": "layers with ranks of their own", "alpha_pattern": "layers with an alpha of their own",
           "layer_replication": "layers that are repeated", "lora_bias": "biases of B",
           "fan_in_fan_out": "weights stored the other way round", "megatron_config": "layers of Megatron",
           "trainable_token_indices": "embeddings that were trained", "use_qalora": "QALoRA", "target_parameters":
           "parameters that are no layers"}

Settings = namedtuple("Settings", "rank alpha rslora dropout base_name")
Part = namedtuple("Part", "layer row shape")    # where a module is in a matrix of ours


def number(config, key, least, most, where, default=None):
    value = config.get(key, default)
    if type(value) not in (int, float) or not least <= value <= most:
        raise FormatError(f"{where}: {key} is {shown(value)}, expected a number from {least:g} to {most:g}.")
    return value


def read_settings(folder):
    """adapter_config.json, or a refusal of what tikz.c cannot represent."""
    where = Path(folder) / "adapter_config.json"
    config = read_json(where)
    if config.get("peft_type") != "LORA":
        raise FormatError(f"{where}: peft_type is {shown(config.get('peft_type'))}, expected \"LORA\".")
    for key, meaning in REFUSED.items():
        if config.get(key):
            raise FormatError(f"{where}: {key} is {shown(config[key])}: {meaning}; this cannot be imported.")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in ("gaussian", "eva", "orthogonal"):
        raise FormatError(f"{where}: init_lora_weights is {shown(init)}: the base was changed, too; this cannot be imported.")
    if config.get("bias", "none") != "none":
        raise FormatError(f"{where}: bias is {shown(config['bias'])}: biases were trained beside the adapters; only \"none\" "
                          f"can be imported.")
    rank = number(config, "r", 1, 65536, where, 8)
    if rank != int(rank):
        raise FormatError(f"{where}: r is {rank}, expected a whole number.")
    base_name = config.get("base_model_name_or_path")
    return Settings(int(rank), number(config, "lora_alpha", 1e-6, 1e6, where, 8), bool(config.get("use_rslora")),
                    number(config, "lora_dropout", 0, 0.99, where, 0.0), base_name if isinstance(base_name, str) else None)


def modules(c):
    """{name of a linear layer in a checkpoint: Part}, for all layouts that convert_hf.py reads and export_hf.py writes."""
    found = {}
    entries = [e for prefix in (hub.V2["lm"], hub.V1["lm"], "") for e in hub.lm_entries(c, prefix, "head")]
    entries += [e for prefix in (hub.V2["vision"], hub.V2["tower"], "vision_model.")
                for e in hub.vision_entries(c, "hf", prefix)]
    entries += [e for names in (hub.V1, hub.V2) for e in hub.connector_entries(c, names["connector"])]
    for e in entries:
        layer, row = e.name.removesuffix(".weight"), 0
        if not e.name.endswith(".weight") or not any(re.fullmatch(t, layer) for t in TARGETS.values()):
            continue
        for name, shape in e.parts:
            found[name.removesuffix(".weight")] = Part(layer, row, shape)
            row += shape[0]
    return found


def read_matrices(folder, known, rank):
    """({layer: {row: (A [r, I], B [O, r])}}, dtype) of the folder's adapters."""
    path = Path(folder) / "adapter_model.safetensors"
    if not path.exists():
        raise FormatError(f"{path}: no such file; expected a folder that PEFT's save_pretrained wrote.")
    header, _ = tikzc.read_header(path)
    kinds = {kind for kind, _, _ in header.values()}
    if not kinds or not kinds <= set(FLOATS):
        raise FormatError(f"{path}: its tensors are {', '.join(sorted(kinds)) or 'missing'}, expected floating point.")
    tensors, _ = tikzc.read_safetensors(path, raw_bf16=len(kinds) == 1)
    halves, layers = {}, {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight", name)
        if not match or match[1] not in known:
            raise FormatError(f"{path}: tensor {name} belongs to no layer that can have an adapter in tikz.c; those are q, k, v, "
                              f"out, gate, up and down of the language model, the layers of the vision tower, and the connector.")
        halves.setdefault(match[1], {})[match[2]] = array if len(kinds) == 1 else array.astype(np.float32)
    for module, found in halves.items():
        part = known[module]
        expected = {"A": (rank, part.shape[1]), "B": (part.shape[0], rank)}
        for half, shape in expected.items():
            if half not in found or found[half].shape != shape:
                raise FormatError(f"{path}: lora_{half} of {module} is {list(found[half].shape) if half in found else 'missing'}; "
                                  f"r in adapter_config.json and the model ask for {list(shape)}.")
        if part.row in layers.setdefault(part.layer, {}):
            raise FormatError(f"{path}: {module} is there twice, under two names.")
        layers[part.layer][part.row] = (found["A"], found["B"])
    return layers, kinds.pop() if len(kinds) == 1 else "F32"


def blocks(parts):
    """The different As of a layer's parts, in order of their rows."""
    found = []
    for _, (A, _) in sorted(parts.items()):
        if not any(np.array_equal(A, other) for other in found):
            found.append(A)
    return found


def joined(parts, shape, rank, dtype):
    """One adapter of a layer of ours: A [rank, I], and B transposed [rank, O]."""
    A, B = np.zeros((rank, shape[1]), dtype), np.zeros((rank, shape[0]), dtype)
    found = blocks(parts)
    for i, block in enumerate(found):
        r = len(block)
        A[i * r:(i + 1) * r] = block
        for row, (a, b) in parts.items():
            if np.array_equal(a, block):
                B[i * r:(i + 1) * r, row:row + len(b)] = b.T
    return A, B


def import_adapter(x, folder, out):
    """Writes the adapter file of a PEFT folder. x: the opened base. Returns its rank and its number of layers."""
    s, c = read_settings(folder), x.config
    names = hub.V1 if c["connector.bias"] else hub.V2
    entries = [*hub.vision_entries(c, "hf", hub.V2["vision"]), *hub.connector_entries(c, names["connector"]),
               *hub.lm_entries(c, names["lm"], names["head"])]
    layers, kind = read_matrices(folder, modules(c), s.rank)
    rank = s.rank * max((len(blocks(parts)) for parts in layers.values()), default=1)
    alpha = s.alpha if rank == s.rank else s.alpha / s.rank * rank
    if s.rslora:
        alpha = s.alpha / math.sqrt(s.rank) * rank
    targets = [t for t, pattern in TARGETS.items() if any(re.fullmatch(pattern, layer) for layer in layers)]
    if not targets:
        raise FormatError(f"{folder}: holds no adapter of any layer.")
    tensors = {}
    for e in entries:
        layer = e.name.removesuffix(".weight")
        if layer == e.name or not any(re.fullmatch(TARGETS[t], layer) for t in targets):
            continue
        if rank > min(e.shape):
            raise FormatError(f"{folder}: its adapters of rank {s.rank} need rank {rank} where the parts of a matrix share one, and "
                              f"{e.name} is {e.shape[0]} x {e.shape[1]}; merge the adapter with PEFT and convert the merged model.")
        tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"] = joined(layers.get(layer, {}), e.shape, rank, FLOATS[kind])
    metadata = {"format": FORMAT, "lora.rank": str(rank), "lora.alpha": f"{alpha:.17g}", "lora.dropout": f"{s.dropout:.17g}",
                "lora.targets": ",".join(targets), "lora.base": f"{fingerprint(x, entries):016x}",
                "lora.base_name": s.base_name or str(x.path)}
    with tikzc.SafetensorsWriter(out, [(name, kind, array.shape) for name, array in tensors.items()], metadata) as w:
        for name in w.order:
            w.write(tensors[name].tobytes())
    return rank, len(tensors) // 2
