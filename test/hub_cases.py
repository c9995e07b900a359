"""What the tests of Hub folders share: counting checks, running the scripts, and the configurations, each written as
folders in one of the Hub's layouts."""
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import hub_oracle as oracle     # noqa: E402
from hub_oracle import Tiny     # noqa: E402

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
counts = {True: 0, False: 0}


def check(truth, what):
    counts[bool(truth)] += 1
    if not truth:
        print(f"failed: {what}", flush=True)
    return bool(truth)


def run(*command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT, **more)


def script(name, *arguments, **more):
    return run(sys.executable, SCRIPTS / name, *arguments, **more)


def must(result, what):
    return check(result.returncode == 0, f"{what}: {result.stderr.strip()[-500:]}")


def complaint(name, result, words):
    """Status 1 and one sentence with these words on the last line, after the program's name."""
    last = result.stderr.strip().split("\n")[-1]
    check(result.returncode == 1 and ".py: error: " in last and "Traceback" not in result.stderr
          and all(w in last for w in words),
          f"{name}: status {result.returncode}, expected {words}, found: {result.stderr.strip()[-400:]}")


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


def as_pair_5(tiny, folder, form):
    arguments = as_pair(tiny, folder, form)
    shutil.rmtree(folder / "model")
    oracle.write_lm_5(folder / "model", tiny, form)
    return arguments


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
    "SmolLM2": case(as_pair, vision(), text(36, 6, 2, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True),
                    connector=False, dtype="bf16"),
    "Llama 3.2, transformers 5": case(
        as_pair_5, vision(), text(64, 4, 1, rope_theta=5e5, tie_word_embeddings=True,
                                  rope_scaling={"rope_type": "llama3", **LLAMA3, "factor": 32.0}), connector=False),
    "Mistral, a window beyond the positions": case(
        as_pair, vision(), text(kv=1, sliding_window=160), family="mistral", connector=False),
    "Qwen2": case(as_pair, vision(), text(), family="qwen2", connector=False, full_siglip=True),
    "Qwen2.5, tied, transformers 5": case(
        as_pair_5, vision(act="gelu"), text(40, 2, 1, tie_word_embeddings=True, rope_theta=1e6, sliding_window=8),
        family="qwen2", connector=False, dtype="bf16"),
    "Qwen3, wide heads": case(
        as_pair, vision(), text(32, 4, 2, head_dim=16, rope_theta=1e6, sliding_window=None, rms_norm_eps=1e-3),
        family="qwen3", connector=False),
    "Qwen3, tied, transformers 5": case(
        as_pair_5, vision(), text(40, 2, 2, head_dim=12, tie_word_embeddings=True, sliding_window=None), "safetensors.shards",
        family="qwen3", connector=False, dtype="bf16"),
    "v2 with Qwen2": case(in_v2, vision(), text(kv=1), family="qwen2"),
    "v2 with Qwen3": case(in_v2, vision(), text(32, 2, 1, head_dim=24, sliding_window=None), family="qwen3"),
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
