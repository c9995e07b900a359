"""Broken Hub folders: whatever is wrong, the answer is a sentence that names it, status 1, and no file left behind."""
import json
import os
import pickle
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hub_cases import SCRIPTS, check, complaint, make_case, must, oracle, run, script
import convert_hf
import tikzc

def damage_tensors(change):
    """A damage that changes the tensors of model.safetensors."""
    def damage(folder):
        tensors = load_file(folder / "model" / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model" / "model.safetensors", {"format": "pt"})
    return damage


def damage_json(file, *path, value):
    """A damage that sets a value in a JSON file; None deletes it."""
    def damage(folder):
        at = whole = json.loads((folder / "model" / file).read_text())
        for key in path[:-1]:
            at = at[key]
        at.pop(path[-1], None)
        if value is not None:
            at[path[-1]] = value
        (folder / "model" / file).write_text(json.dumps(whole))
    return damage


def cut(folder):
    path = folder / "model" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 10)


def to_shards(change):
    def damage(folder):
        model = folder / "model"
        tensors = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        oracle.save(model, tensors, "safetensors.shards")
        change(model)
    return damage


def move_in_index(model):
    index = json.loads((model / "model.safetensors.index.json").read_text())
    where = index["weight_map"]
    where["lm_head.weight"] = next(s for s in where.values() if s != where["lm_head.weight"])
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def to_bin(make):
    def damage(folder):
        model = folder / "model"
        tensors = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        make(tensors, model / "pytorch_model.bin")
    return damage


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def evil_bin(tensors, path):
    torch.save({**tensors, "evil": Evil()}, path)


def bare_pickle(tensors, path):
    path.write_bytes(pickle.dumps({"evil": Evil()}))


def strided_bin(tensors, path):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous().T
    torch.save(tensors, path)


def drop(name):
    return damage_tensors(lambda tensors: tensors.pop(name))


def put(name, make):
    return damage_tensors(lambda tensors: tensors.update({name: make(tensors)}))


def unlink(name):
    return lambda folder: (folder / "model" / name).unlink()


def config(*path, value, file="config.json"):
    return damage_json(file, *path, value=value)


def text_config(key, value):
    return config("text_config", key, value=value)


HEAD = "lm_head.weight"
CONNECTOR = "model.connector.modality_projection.proj"
Q = "model.text_model.layers.1.self_attn.q_proj"
SHARD = "model-00002-of-00003.safetensors"
UNIGRAM = {"type": "Unigram", "vocab": [["a", 0]]}
YARN = {"rope_type": "yarn", "factor": 2.0}


def as_it_is(folder):
    pass


# what is broken: (damage to the folder of the configuration "v2", words of the message, more arguments)
BROKEN = {
    "a missing tensor": (drop(f"{Q}.weight"), [f"{Q}.weight", "missing", "model"]),
    "a tensor that has no place": (put(f"{Q}.bias", lambda t: torch.zeros(32)), [f"{Q}.bias", "unknown"]),
    "a bias at the connector": (put(f"{CONNECTOR}.bias", lambda t: torch.zeros(32)), [CONNECTOR, "unknown"]),
    "a wrong shape": (put(HEAD, lambda t: t[HEAD][:-1].clone()), [HEAD, "[119, 32]", "[120, 32]", "safetensors"]),
    "a wrong dtype": (put(HEAD, lambda t: t[HEAD].to(torch.int64)), [HEAD, "I64", "model.safetensors"]),
    "too large for fp16": (put(HEAD, lambda t: t[HEAD] * 1e6), ["fp16", "model.safetensors"], "--dtype", "fp16"),
    "a file cut off": (cut, ["model.safetensors", "does not fit"]),
    "a missing shard": (to_shards(lambda m: (m / SHARD).unlink()), [SHARD, "missing", "index.json"]),
    "an index that is wrong": (to_shards(move_in_index), [HEAD, "index.json", "it is not"]),
    "a pickle that runs code": (to_bin(evil_bin), ["pytorch_model.bin", "system"]),
    "a bare pickle": (to_bin(bare_pickle), ["pytorch_model.bin", "torch.save"]),
    "a tensor that is not contiguous": (to_bin(strided_bin), ["pytorch_model.bin", "contiguous"]),
    "no weights": (unlink("model.safetensors"), ["no weights", "pytorch_model.bin"]),
    "no config.json": (unlink("config.json"), ["config.json", "no such file"]),
    "no tokenizer.json": (unlink("tokenizer.json"), ["tokenizer.json", "no such file"]),
    "config.json not JSON": (lambda f: (f / "model" / "config.json").write_text("{"), ["config.json", "not a JSON"]),
    "an unknown architecture": (config("model_type", value="llava"), ["config.json", "llava"]),
    "an unknown language model": (text_config("model_type", "gemma2"), ["config.json", "gemma2"]),
    "attention biases": (text_config("attention_bias", True), ["attention_bias"]),
    "mlp biases": (text_config("mlp_bias", True), ["mlp_bias"]),
    "a sliding window": (text_config("sliding_window", 64), ["sliding_window", "64"]),
    "yarn": (text_config("rope_scaling", YARN), ["rope_scaling", "yarn"]),
    "quantised weights": (text_config("quantization_config", {"bits": 4}), ["quantization_config"]),
    "another activation": (text_config("hidden_act", "relu"), ["hidden_act", "relu"]),
    "an activation of the tower": (config("vision_config", "hidden_act", value="quick_gelu"), ["hidden_act"]),
    "grey images": (config("vision_config", "num_channels", value=1), ["num_channels"]),
    "a number that is a text": (text_config("hidden_size", "32"), ["config.json", "hidden_size", "int"]),
    "a size of the configuration": (text_config("intermediate_size", 41), ["gate_proj", "[41, 32]", "[40, 32]"]),
    "heads that do not divide": (text_config("num_key_value_heads", 3), ["key-value heads"]),
    "patches that do not divide": (config("concat_factor", value=2), ["9 patches", "groups of 2"]),
    "no room for text": (as_it_is, ["3 positions", "no room"], "--positions", 3),
    "an image token outside": (config("image_token_id", value=120), ["image token", "120"]),
    "a tokenizer that is too large": (lambda f: oracle.write_tokenizer(f / "model", oracle.tokenizer_json(130)),
                                      ["tokenizer.json", "130", "120 rows"]),
    "another kind of tokenizer": (config("model", value=UNIGRAM, file="tokenizer.json"), ["tokenizer.json"]),
    "another end token": (config("eos_token", value="<pad>", file="tokenizer_config.json"), ["<pad>", "[1]"]),
    "an end that is no token": (config("eos_token", value="<end>", file="tokenizer_config.json"), ["<end>"]),
    "a tower beside v2": (as_it_is, ["--vision"], "--vision", "."),
    "itself as its output": (as_it_is, ["one of the files to convert"]),
}


def check_broken(folder):
    for i, (name, (damage, words, *more)) in enumerate(BROKEN.items()):
        place = folder / str(i)
        place.mkdir()
        make_case("v2", place)
        damage(place)
        out = place / ("model/model.safetensors" if damage is as_it_is and not more else "out.safetensors")
        complaint(name, script("convert_hf.py", place / "model", out, *more, cwd=place), words)
        left = [p.name for p in place.iterdir() if p.name not in ("model", "tower")]
        check(not left, f"{name}: {left} left behind")


def flip_bytes(path, rng, region):
    """Damages a file near its beginning or its end, where its structure is: changes, removes or repeats bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randint(min(region, len(data))), rng.randint(8)
        at = at if rng.randint(2) else max(len(data) - 1 - at, 0)
        if kind == 0:
            del data[at:at + 1 + rng.randint(40)]
        elif kind == 1:
            data[at:at] = data[at:at + 1 + rng.randint(40)]
        elif kind == 2:
            data[at:at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"[[[["])
        elif data:
            data[at if at < len(data) else -1] = rng.choice(list(b'0129{}[]",:-eaQ.()Rrtuq\0\x80\x8a\xff'))
    path.write_bytes(data)


VALUES = [None, True, -1, 0, 1, 3, 2**40, 10**400, 0.5, -1e308, float("inf"), float("nan"), "x", "\ud800", "a\nb", [],
          {}, [1], [3, 3], [[]], {"a": 1}, json.loads("[" * 400 + "]" * 400)]


def change_value(path, rng):
    """Replaces one value somewhere in a JSON file."""
    whole = at = json.loads(path.read_text())
    while True:
        key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randint(len(at))
        if not isinstance(at[key], (dict, list)) or not at[key] or not rng.randint(4):
            break
        at = at[key]
    at[key] = VALUES[rng.randint(len(VALUES))]
    path.write_text(json.dumps(whole))


def answer(options):
    """What converting answers: None for a file, or the sentence. Raises whatever should not have come through."""
    try:
        with open(os.devnull, "w") as null, redirect_stderr(null), redirect_stdout(null):
            convert_hf.convert(options)
    except (tikzc.FormatError, OSError) as e:
        return str(e)


def check_damage(folder, rounds=240):
    """Whatever is wrong with a folder, the answer is a sentence, never another exception or a file."""
    rng, out = np.random.RandomState(1), folder / "out.safetensors"
    for name, files in (("v2", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
                        ("v1 hf tower, layer from the end, bin", ["config.json", "pytorch_model.bin"]),
                        ("v2 linear bin", ["pytorch_model.bin", "pytorch_model.bin"]),
                        ("v2 odd sizes, bin shards, bf16", ["pytorch_model.bin.index.json"]),
                        ("v1 timm, image not a multiple", ["config.json", "../tower/config.json"])):
        place = Path(tempfile.mkdtemp(dir=folder))
        _, arguments = make_case(name, place)
        options = convert_hf.parser().parse_args([str(a) for a in [*arguments, out]])
        for i in range(rounds // len(files) * len(files)):
            path = place / "model" / files[i % len(files)]
            good = path.read_bytes()
            if path.suffix == ".json" and rng.randint(3):
                change_value(path, rng)
            else:
                flip_bytes(path, rng, 4000)
            damaged = path.read_bytes()
            try:
                sentence = answer(options)
                fine = sentence is None or sentence and not out.exists()
            except Exception as e:
                fine = print(f"{type(e).__name__}: {e}")
            check(fine, f"{name}: damage {i} to {path.name}: {damaged[:200]}")
            path.write_bytes(good)
            out.unlink(missing_ok=True)


# ---- files that ask for much, or never end ----

PEAK = ("import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r.returncode)")


def archive(path, pickled, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("model/data.pkl", pickled)
        z.writestr("model/byteorder", byteorder)
        z.writestr("model/data/0", b"\0" * 8)


def tensor_pickle(shape, strides, first=b"K\0"):
    """{"a": a tensor of storage 0}; shape, strides and first as opcodes."""
    return (b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
            b"0X\3\0\0\0cpuK\2tQ" + first + shape + strides + b"\x89ccollections\nOrderedDict\n)RtRs.")


HUGE = b"\x8a\xff" + b"\x7f" * 255
# data.pkl, and words of the sentence
PICKLES = {
    "a memo index of 2^27": (b"\x80\x02}r\0\0\0\x08.", ["model: tensors"]),
    "a text of 4 GB": (b"\x80\x02}X\xff\xff\xff\xff.", ["torch.save"]),
    "bytes of 2^62": (b"\x80\x04\x8e\0\0\0\0\0\0\0\x40.", ["torch.save"]),
    "a buffer of 1 GB": (b"\x80\x05\x96\0\0\0\x40\0\0\0\0.", ["torch.save"]),
    "a number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", ["torch.save"]),
    "a key that takes ages to hash": (b"\x80\x02})" + b"q\0h\0\x86" * 200 + b"Ns.", ["filled in another way"]),
    "a tuple of itself": (b"\x80\x02]q\0h\0a.", ["list"]),
    "lists in lists": (b"\x80\x02" + b"]" * 100000 + b"a" * 99999 + b".", ["list"]),
    "an empty stack": (b"\x80\x02a.", ["IndexError"]),
    "a mark that is missing": (b"\x80\x02}u.", ["IndexError"]),
    "no end": (b"\x80\x02}", ["torch.save"]),
    "no pickle": (b"", ["torch.save"]),
    "another opcode": (b"\x80\x02}(lp0\n.", ["opcode LIST"]),
    "a name called": (b"\x80\x02ctorch\nFloatStorage\n)R.", ["FloatStorage"]),
    "a dictionary with an odd number of items": (b"\x80\x02}(NNNu.", ["filled in another way"]),
    "a shape of huge numbers": (tensor_pickle(HUGE + b"\x85", b"K\1\x85"), ["shape"]),
    "many dimensions": (tensor_pickle(b"(" + b"K\1" * 5000 + b"t", b"(" + b"K\1" * 5000 + b"t"), ["shape"]),
    "a negative size": (tensor_pickle(b"J\xff\xff\xff\xff\x85", b"K\1\x85"), ["shape"]),
    "a shape of texts": (tensor_pickle(b"X\1\0\0\0a\x85", b"K\1\x85"), ["shape"]),
    "a tensor beyond its storage": (tensor_pickle(b"K\x03\x85", b"K\1\x85"), ["tensor a", "inside its storage"]),
}


def check_hostile_bins(folder):
    """A few bytes can neither take memory nor time."""
    make_case("v2", folder)
    model = folder / "model"
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"

    def expect(name, words):
        result = run(sys.executable, "-c", PEAK, sys.executable, SCRIPTS / "convert_hf.py", model, folder / "out",
                     timeout=60)
        complaint(f"bin: {name}", result, words)
        check(int(result.stdout.split()[-1]) < 150 << 10, f"bin: {name}: took {result.stdout.split()[-1]} KiB")

    for name, (pickled, words) in PICKLES.items():
        archive(path, pickled)
        expect(name, words)
    archive(path, b"\0" * (256 << 20), zipfile.ZIP_DEFLATED)
    expect("a member that inflates to 256 MB", ["compressed"])
    archive(path, b"\x80\x02}.", byteorder=b"big")
    expect("big-endian", ["little-endian"])
    archive(path, b"\x80\x02}.")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    expect("encrypted", ["encrypted"])


DEEP = "[" * 100000 + "]" * 100000
NUMBER = "1" * 5000


def check_hostile_json(folder):
    """JSON that is nested too deeply, and numbers too large for anything, wherever JSON is read."""
    for case, files in (("v2", ["config.json", "tokenizer.json", "tokenizer_config.json"]),
                        ("v2 odd sizes, bin shards, bf16", ["pytorch_model.bin.index.json"])):
        place = folder / case
        place.mkdir()
        make_case(case, place)
        for name in files:
            path = place / "model" / name
            good = path.read_text()
            for value in (DEEP, NUMBER, "1e999", '"\\ud800"', good[:-1]):
                path.write_text(f'{{"model_type": {value}, "x": 1}}' if value != good[:-1] else value)
                result = script("convert_hf.py", place / "model", folder / "out")
                complaint(f"{name} with {value[:20]}", result, [""])
            path.write_text(good)
    path = folder / "v2" / "model" / "model.safetensors"
    for header, words in ((DEEP, ["nested"]), (f'{{"a": {NUMBER}}}', ["header"]),
                          (f'{{"a": {{"dtype": "F32", "shape": [{NUMBER[:4000]}], "data_offsets": [0, 0]}}}}',
                           ["malformed"]),
                          ('{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}', ["malformed"]),
                          ('{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', ["malformed"]),
                          ('{"a": ' + "[" * 500 + "]" * 500 + "}", ["malformed"]),
                          ('{"__metadata__": {"a": 1}}', ["not a string"]), ('{"__metadata__": []}', ["header"])):
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        complaint(f"header {header[:40]}", script("convert_hf.py", path.parent, folder / "out"), words)
        complaint(f"export of {header[:40]}", script("export_hf.py", path, folder / "made"), words)


def check_broken_pairs(folder):
    tiny, arguments = make_case("v1 timm, image not a multiple", folder)
    out = folder / "out.safetensors"
    complaint("v1 without a tower", script("convert_hf.py", arguments[0], out), ["--vision", "vit_of_our_own"])
    config = folder / "tower" / "config.json"
    good = json.loads(config.read_text())
    for name, change, words in (
            ("an unknown tower", {"architecture": "resnet50"}, ["resnet50", "tower"]),
            ("a class token", {"model_args": {**good["model_args"], "class_token": True}}, ["class_token"]),
            ("an unknown argument", {"model_args": {**good["model_args"], "qk_norm": True}}, ["qk_norm"]),
            ("a tower of another width", {"model_args": {**good["model_args"], "embed_dim": 64}}, ["patch_embed"])):
        config.write_text(json.dumps({**good, **change}))
        complaint(name, script("convert_hf.py", *arguments, out), words)
    config.write_text(json.dumps(good))
    language_model = folder / "lm"
    oracle.write_lm(language_model, tiny)
    oracle.write_tokenizer(language_model, oracle.tokenizer_json(300, "llama"))
    complaint("a language model alone", script("convert_hf.py", language_model, out), ["--vision"])
    twice = script("convert_hf.py", language_model, "--vision", language_model, out)
    complaint("a tower that is none", twice, ["llama"])
    check(not out.exists(), "a file was written in spite of an error")

    model, made = folder / "model.safetensors", folder / "made"
    must(script("convert_hf.py", *arguments, model), "v1")
    complaint("export to a folder in use", script("export_hf.py", model, folder / "tower"), ["tower", "empty"])
    hub_file = folder / "model" / "model.safetensors"
    complaint("export of no model", script("export_hf.py", hub_file, made), ["not a tikz.c"])
    complaint("export of nothing", script("export_hf.py", folder / "none", made), ["none"])
    rectangular = Path(__file__).resolve().parent / "fixtures" / "rect.student.safetensors"
    complaint("export of rectangular images", script("export_hf.py", rectangular, made), ["8 x 20 pixels", "SiglipVisionModel"])
    os.truncate(model, model.stat().st_size - 10)
    complaint("export of a file cut off", script("export_hf.py", model, made), ["does not fit"])
    check(not [p for p in folder.iterdir() if p.name.startswith("made")], "a failed export left something behind")
