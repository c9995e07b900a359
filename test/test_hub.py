#!/usr/bin/env python3
"""Checks scripts/convert_hf.py and scripts/export_hf.py, and the model they make, against transformers.

    test/test_hub.py BUILD        BUILD: a folder with infer, eval and train_distill of a PRECISION=FP32 build

For every configuration: logits of the C model equal to those of transformers' modules within 1e-4 of the largest, 64
greedy tokens identical, the exported folder loaded by transformers' classes with equal weights, and converting it
again gives the same file, bit for bit. Then broken folders, memory, and a distillation between two converted models.
Needs the packages of test/requirements.txt.
"""
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import convert_hf               # noqa: E402
import hub_oracle as oracle     # noqa: E402
import tikzc                    # noqa: E402
from hub_oracle import Tiny     # noqa: E402

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
GREEDY = 64
passed = failed = 0


def check(truth, what):
    global passed, failed
    passed, failed = passed + bool(truth), failed + (not truth)
    if not truth:
        print(f"failed: {what}", flush=True)
    return bool(truth)


def run(*command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT, **more)


def script(name, *arguments, **more):
    return run(sys.executable, SCRIPTS / name, *arguments, **more)


def must(result, what):
    return check(result.returncode == 0, f"{what}: {result.stderr.strip()[-500:]}")


# ---- configurations: what a model is made of, and what folders it is put into ----

def vision(size=24, patch=8, width=32, heads=2, mlp=48, layers=2, act="gelu_pytorch_tanh", **more):
    return {"image_size": size, "patch_size": patch, "hidden_size": width, "num_attention_heads": heads,
            "intermediate_size": mlp, "num_hidden_layers": layers, "hidden_act": act, **more}


def text(width=32, heads=4, kv=2, ffn=40, layers=2, vocab=120, **more):
    return {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": ffn,
            "num_hidden_layers": layers, "vocab_size": vocab, "max_position_embeddings": 160, **more}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def in_v2(tiny, folder, form):
    oracle.write_v2(folder / "model", tiny, form)
    return [folder / "model"]


def in_v1(tiny, folder, form, tower=oracle.write_timm, **more):
    oracle.write_v1(folder / "model", tiny, form, **more)
    tower(folder / "tower", tiny)
    return [folder / "model", "--vision", folder / "tower"]


def in_v1_inner(tiny, folder, form):
    return in_v1(tiny, folder, form, feature_layer=1)


def in_v1_hf(tiny, folder, form):
    return in_v1(tiny, folder, form, oracle.write_tower, feature_layer=-2)


def in_v1_open_clip(tiny, folder, form):
    return in_v1(tiny, folder, form, lambda path, t: oracle.write_timm(path, t, prefix="visual.trunk."))


def as_pair(tiny, folder, form, tower=oracle.write_tower):
    oracle.write_lm(folder / "model", tiny, form)
    tower(folder / "tower", tiny)
    return [folder / "model", "--vision", folder / "tower"]


def as_pair_timm(tiny, folder, form):
    return as_pair(tiny, folder, form, oracle.write_timm)


@dataclass
class Case:
    tiny: dict                      # arguments of Tiny
    layout: object                  # writes the folders, returns arguments of convert_hf.py
    form: str = "safetensors"       # of the weights
    tokenizer: str = "byte_level"   # or llama, or beyond: with an added token beyond the embedding
    options: tuple = ()             # of convert_hf.py


def case(layout, vision, text, form="safetensors", tokenizer="byte_level", options=(), **tiny):
    return Case({"vision": vision, "text": text, **tiny}, layout, form, tokenizer, options)


TOKENS = 120    # of the tests' tokenizer
CASES = {
    "v2": case(in_v2, vision(), text()),
    "v2 llama3 bf16 shards padded": case(
        in_v2, vision(act="gelu"), text(vocab=131, kv=1, rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}),
        "safetensors.shards", dtype="bf16"),
    "v2 tied fp16": case(in_v2, vision(act="gelu_new"), text(tie_word_embeddings=True), dtype="fp16"),
    "v2 linear bin": case(in_v2, vision(), text(rope_scaling={"rope_type": "linear", "factor": 4.0}), "bin"),
    "v2 odd sizes, bin shards, bf16": case(
        in_v2, vision(50, 8, 36, 3, 53, 3), text(42, 3, 1, 57, 3, 127, rms_norm_eps=0.1), "bin.shards", dtype="bf16"),
    "v2 tied bin": case(in_v2, vision(layer_norm_eps=0.03), text(tie_word_embeddings=True), "bin"),
    "v2 wide heads": case(in_v2, vision(20, 10, 144, 2, 60, 1), text(256, 2, 1, 40), concat=2),
    "v1 timm, image not a multiple": case(
        in_v1, vision(26, 8, act="gelu"), text(vocab=300, rope_scaling={"type": "linear", "factor": 2.0}),
        tokenizer="llama", bias=True),
    "v1 timm, inner layer, mixed types": case(
        in_v1_inner, vision(layers=4), text(vocab=128), bias=True, layer=1, dtype="bf16", vision_dtype="fp32"),
    "v1 hf tower, layer from the end, bin": case(
        in_v1_hf, vision(layers=3, act="gelu_new"), text(), "bin", bias=True, layer=1),
    "v1 OpenCLIP's prefix, tied, fp16": case(
        in_v1_open_clip, vision(act="gelu"), text(tie_word_embeddings=True), "safetensors.shards", bias=True,
        dtype="fp16"),
    "pair": case(as_pair, vision(), text(rope_scaling={"rope_type": "llama3", **LLAMA3}), full_siglip=True,
                 connector=False),
    "pair with a bias, head_dim given": case(
        as_pair_timm, vision(act="gelu"), text(40, 2, 2, head_dim=12, sliding_window=None), concat=1, bias=True,
        family="mistral", connector=False, options=("--concat", 1, "--connector-bias")),
    "pair, bf16 to fp32, added token beyond": case(
        as_pair, vision(), text(kv=4), "bin", "beyond", ("--seed", 3, "--dtype", "fp32"), dtype="bf16",
        connector=False),
    "v2 fp32 to bf16": case(in_v2, vision(), text(), options=("--dtype", "bf16")),
}


def round_to(tiny, dtype):
    with torch.no_grad():
        for module in (tiny.siglip, tiny.connector, tiny.lm):
            for p in module.parameters() if module is not None else ():
                p.copy_(p.to(dtype).float())


def make_case(name, folder):
    """Writes a case's folders -> (Tiny, arguments of convert_hf.py)"""
    c = CASES[name]
    tiny = Tiny(seed=list(CASES).index(name) + 1, **c.tiny)
    if c.tokenizer == "llama":      # its tokens for single bytes cannot be told apart in a text: make them unlikely
        tiny.lm.lm_head.weight.data[3:259] = 0
    arguments = [*c.layout(tiny, folder, c.form), *c.options]
    llama, beyond = c.tokenizer == "llama", c.tokenizer == "beyond"
    json_text = oracle.tokenizer_json(300 if llama else TOKENS, c.tokenizer, ["<image-pad>"] if beyond else [])
    oracle.write_tokenizer(folder / "model", json_text, with_settings=not beyond)
    return tiny, arguments


def compare_weights(name, tiny, exported):
    """The exported weights are those that went in."""
    for part in ("tower", "connector", "lm"):
        ours, theirs = getattr(exported, part), getattr(tiny, part)
        if theirs is None:
            setattr(tiny, part, ours)
            continue
        theirs = theirs.state_dict()
        different = [key for key, value in ours.state_dict().items() if not torch.equal(value, theirs[key])]
        check(not different, f"{name}: exported {part} differs in {different[:3]}")


def samples_of(tiny, count, tokens):
    """[(PNG bytes, pixels, ids)]: random programs of different lengths."""
    size, rng = tiny.tower.config.image_size, np.random.RandomState(7)
    return [(*oracle.image(size, i), torch.from_numpy(np.append(rng.randint(3, tokens, 5 + 7 * i), oracle.END)))
            for i in range(count)]


def write_dataset(path, model, samples):
    with tikzc.DatasetWriter(path, tikzc.Tokenizer.load(model), "random") as w:
        for png, _, ids in samples:
            w.add(png, ids.numpy())


def check_logits(build, name, tiny, model, samples, folder):
    write_dataset(folder / "data.bin", model, samples)
    if not must(run(build / "eval", "--model", model, "--data", folder / "data.bin", "--logits", folder / "logits",
                    "--json", folder / "json", "--no-greedy", "--batch", 2), f"{name}: eval"):
        return
    logits = load_file(folder / "logits")["logits"]
    worst = 0.0
    for mine, (_, pixels, ids) in zip(logits, samples):
        want = tiny.logits(pixels, ids)
        worst = max(worst, float((mine[:len(ids)] - want).abs().max() / want.abs().max()))
    check(worst <= 1e-4, f"{name}: logits differ by {worst:.1e}")
    want = tiny.cross_entropy([(pixels, ids) for _, pixels, ids in samples])
    ce = json.loads((folder / "json").read_text())[0]["ce"]
    check(abs(ce - want) <= 1e-4 * want, f"{name}: CE {ce}, transformers {want}")


def check_greedy(build, name, tiny, model, samples, folder, tokens):
    """Returns how many tokens were compared: in the tests' tokenizer, equal texts mean equal tokens."""
    png, pixels, _ = samples[0]
    (folder / "image.png").write_bytes(png)
    result = run(build / "infer", "--model", model, "--max-tokens", GREEDY, "--quiet", folder / "image.png")
    if not must(result, f"{name}: infer"):
        return 0
    forbidden = [oracle.BOS, oracle.PAD, *range(tokens, tiny.lm.config.vocab_size)]
    want = tiny.generate(pixels, GREEDY, forbidden)
    want_text = AutoTokenizer.from_pretrained(folder / "export").decode(want)
    check(result.stdout.rstrip("\n") == want_text, f"{name}: greedy tokens differ")
    return len(want)


def check_case(build, name, folder):
    tiny, arguments = make_case(name, folder)
    model, again, out = folder / "model.safetensors", folder / "again.safetensors", folder / "export"
    result = script("convert_hf.py", *arguments, model)
    if not (must(result, f"{name}: convert") and must(script("export_hf.py", model, out), f"{name}: export")):
        return 0
    if arguments[-1] == "bf16":
        round_to(tiny, torch.bfloat16)
    if tiny.vision_dtype != tiny.dtype:
        round_to(tiny, oracle.TYPES[tiny.dtype])    # the tower is brought to the language model's type
    if must(script("convert_hf.py", out, again), f"{name}: convert again"):
        check(model.read_bytes() == again.read_bytes(), f"{name}: converting the exported folder gives another file")
    compare_weights(name, tiny, exported := oracle.load_export(out))
    tokenizer = tikzc.Tokenizer.load(model)
    loaded = AutoTokenizer.from_pretrained(out)
    check((loaded.eos_token_id, loaded.bos_token_id) == (oracle.END, oracle.BOS)
          and loaded.convert_ids_to_tokens(len(tokenizer.tokens) - 1) == f"Q{len(tokenizer.tokens) - 1:03d};",
          f"{name}: the exported tokenizer is another")
    samples = samples_of(tiny, 3, TOKENS)
    want = tiny.logits(*samples[0][1:])
    check(torch.allclose(exported.logits(*samples[0][1:]), want, rtol=0, atol=1e-5 * float(want.abs().max())),
          f"{name}: the exported configuration computes something else")
    check_logits(build, name, tiny, model, samples, folder)
    return check_greedy(build, name, tiny, model, samples, folder, len(tokenizer.tokens))


def check_cases(build, folder):
    lengths = {}
    for i, name in enumerate(CASES):
        (folder / str(i)).mkdir()
        lengths[name] = check_case(build, name, folder / str(i))
    full = sum(n == GREEDY for n in lengths.values())
    check(full >= 12, f"only {full} configurations wrote {GREEDY} tokens: {lengths}")


# ---- broken input ----

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
    "an unknown language model": (text_config("model_type", "qwen2"), ["config.json", "qwen2"]),
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


def complaint(name, result, words):
    """Status 1 and one sentence with these words on the last line."""
    last = result.stderr.strip().split("\n")[-1]
    check(result.returncode == 1 and "Traceback" not in result.stderr and all(w in last for w in words),
          f"{name}: status {result.returncode}, expected {words}, found: {result.stderr.strip()[-400:]}")


def flip_bytes(path, rng, region):
    """Changes a few bytes near the beginning or the end of a file, where its structure is."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(min(region, len(data)))
        data[at if rng.randint(2) else -1 - at] = rng.choice(list(b'0129{}[]",:-eaQ\0\xff'))
    path.write_bytes(data)


def change_value(path, rng):
    """Replaces one value somewhere in a JSON file."""
    whole = at = json.loads(path.read_text())
    while True:
        key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randint(len(at))
        if not isinstance(at[key], (dict, list)) or not at[key] or not rng.randint(4):
            break
        at = at[key]
    values = [None, True, -1, 0, 1, 3, 2**40, 0.5, float("inf"), "x", [], {}, [1], {"a": 1}]
    at[key] = values[rng.randint(len(values))]
    path.write_text(json.dumps(whole))


def check_damage(folder):
    """Whatever is wrong with a folder, the answer is a sentence, never another exception or a file."""
    rng, out = np.random.RandomState(1), folder / "out.safetensors"
    for name, files in (("v2", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
                        ("v1 hf tower, layer from the end, bin", ["config.json", "pytorch_model.bin"]),
                        ("v1 timm, image not a multiple", ["config.json", "../tower/config.json"])):
        place = Path(tempfile.mkdtemp(dir=folder))
        _, arguments = make_case(name, place)
        options = convert_hf.parser().parse_args([str(a) for a in [*arguments, out]])
        for i in range(240 // len(files) * len(files)):
            path = place / "model" / files[i % len(files)]
            good = path.read_bytes()
            if path.suffix == ".json" and rng.randint(3):
                change_value(path, rng)
            else:
                flip_bytes(path, rng, 4000)
            damaged = path.read_bytes()
            try:
                with open(os.devnull, "w") as null, redirect_stderr(null), redirect_stdout(null):
                    convert_hf.convert(options)
                fine = True
            except (tikzc.FormatError, OSError) as e:
                fine = "\n" not in str(e) and not out.exists()
            except Exception as e:
                fine = print(f"{type(e).__name__}: {e}")
            check(fine, f"{name}: damage {i} to {path.name}: {damaged[:200]}")
            path.write_bytes(good)
            out.unlink(missing_ok=True)


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
    os.truncate(model, model.stat().st_size - 10)
    complaint("export of a file cut off", script("export_hf.py", model, made), ["does not fit"])
    check(not [p for p in folder.iterdir() if p.name.startswith("made")], "a failed export left something behind")


# ---- memory, interruption ----

def check_memory(folder):
    """A language model of 0.4 GB, made of zeros that take no room on the disk: peak memory stays far below its
    largest tensor."""
    tiny = Tiny(vision(), text(width=512, heads=8, kv=8, ffn=8, layers=1, vocab=100000), connector=False)
    model = folder / "model"
    arguments = as_pair(tiny, folder, "safetensors")
    header, _ = tikzc.read_header(model / "model.safetensors")
    size = (model / "model.safetensors").stat().st_size
    with open(model / "model.safetensors", "rb+") as f:
        f.truncate(min(offset for _, _, offset in header.values()))
        f.truncate(size)
    del tiny
    oracle.write_tokenizer(model, oracle.tokenizer_json(TOKENS))
    probe = ("import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); "
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r.returncode)")
    result = run(sys.executable, "-c", probe, sys.executable, SCRIPTS / "convert_hf.py", *arguments, "--dtype",
                 "bf16", folder / "out.safetensors")
    if must(result, "memory"):
        peak = int(result.stdout.split()[-1]) / 1024
        print(f"converting {size / 2**20:.0f} MiB, its largest tensor 195 MiB, took {peak:.0f} MiB of memory")
        check(peak < 120, f"converting took {peak:.0f} MiB")
    small = script("convert_hf.py", *arguments, folder / "full.safetensors",
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    complaint("a full disk", small, [""])
    check(not [p for p in folder.iterdir() if p.name.startswith("full")], "a full disk left a file behind")


# ---- distillation between converted models ----

def check_distillation(build, folder):
    """A few steps from one converted model to another with other padding; transformers gives the student the same
    cross entropy."""
    paths = {}
    for role, vocab, layout in (("teacher", 131, in_v2), ("student", 144, in_v1)):
        (folder / role).mkdir()
        tiny = Tiny(vision(act="gelu"), text(vocab=vocab), seed=vocab, bias=layout is in_v1)
        arguments = layout(tiny, folder / role, "safetensors")
        oracle.write_tokenizer(folder / role / "model", oracle.tokenizer_json(TOKENS))
        paths[role] = folder / f"{role}.safetensors"
        must(script("convert_hf.py", *arguments, paths[role]), f"distillation: {role}")
    samples, out = samples_of(tiny, 4, TOKENS), folder / "out"
    write_dataset(folder / "data.bin", paths["teacher"], samples)
    before = tiny.cross_entropy([(pixels, ids) for _, pixels, ids in samples])
    result = run(build / "train_distill", "--teacher", paths["teacher"], "--student", paths["student"], "--data",
                 folder / "data.bin", "--val-data", "none", "--out", out, "--steps", 6, "--batch", 4, "--alpha", 0.5,
                 "--lr", 0.003)
    if not must(result, "distillation"):
        return
    student = out / "student.safetensors"
    must(run(build / "eval", "--model", student, "--data", folder / "data.bin", "--json", folder / "json",
             "--no-greedy"), "distillation: eval")
    must(script("export_hf.py", student, folder / "export"), "distillation: export")
    exported = oracle.load_export(folder / "export")
    want = exported.cross_entropy([(pixels, ids) for _, pixels, ids in samples])
    ce = json.loads((folder / "json").read_text())[0]["ce"]
    check(abs(ce - want) <= 1e-4 * want, f"distillation: CE {ce}, transformers {want}")
    check(want < before, f"distillation: CE {before} before, {want} after")
    config = json.loads((folder / "export" / "config.json").read_text())
    settings = json.loads((folder / "export" / "tokenizer_config.json").read_text())
    check(config["patch_token_id"] == oracle.BOS and settings["pad_token"] == "<pad>",
          "distillation: the tokenizer's settings were lost in training")
    if must(script("convert_hf.py", folder / "export", folder / "again.safetensors"), "distillation: convert again"):
        ours, theirs = (tikzc.read_safetensors(p) for p in (student, folder / "again.safetensors"))
        check(ours[1] == theirs[1] and list(ours[0]) == list(theirs[0])
              and all(np.array_equal(ours[0][n], theirs[0][n]) for n in ours[0]),
              "distillation: the exported student converts to another model")


def check_starter(folder):
    """The model that ships has no spare special token; a control character stands in for the image."""
    shipped = Path(__file__).resolve().parent.parent / "dev" / "starter" / "student.safetensors"
    if must(script("export_hf.py", shipped, folder / "export"), "starter: export") and must(
            script("convert_hf.py", folder / "export", folder / "again.safetensors"), "starter: convert"):
        ours, theirs = (tikzc.read_safetensors(p) for p in (shipped, folder / "again.safetensors"))
        weights = [name for name in ours[0] if not name.startswith("tokenizer.")]
        check(all(np.array_equal(ours[0][n], theirs[0][n]) for n in weights), "starter: the weights changed")
        oracle.load_export(folder / "export")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(2)
    logging.set_verbosity_error()
    build = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        for part in (lambda f: check_cases(build, f), check_broken, check_damage, check_broken_pairs, check_memory,
                     lambda f: check_distillation(build, f), check_starter):
            try:
                part(Path(tempfile.mkdtemp(dir=name)))
            except Exception:
                check(False, traceback.format_exc())
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
