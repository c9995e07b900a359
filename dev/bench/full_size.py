#!/usr/bin/env python3
"""Converts and times models with exactly the shapes of DeTikZify's checkpoints and random weights.

    full_size.py make tl-1.1b|v2-8b DIR      writes the Hub folder DIR/hub (4 or 17 GB; tl-1.1b: also DIR/tower)
    full_size.py convert DIR                 DIR/hub -> DIR/model.safetensors; reports seconds and peak memory
    full_size.py transformers DIR            times transformers with that folder: one image and 64 tokens

After convert, `build/BF16/bench_decode DIR/model.safetensors` times the same work in tikz.c. convert needs numpy;
transformers needs the packages of test/requirements.txt. Delete DIR afterwards.
"""
import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import hub.config as hub            # noqa: E402
import tikzc                        # noqa: E402
from hub.files import Section       # noqa: E402

TOKENS = 64
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
          "num_channels": 3, "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
TINY_LLAMA = {"vocab_size": 32008, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
              "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
LLAMA_8B = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192}}
V1 = {"model_type": "detikzify", "architectures": ["DetikzifyForCausalLM"], "use_mm_proj": True, "concat_patches": 3,
      "mm_hidden_size": 3456, "feature_layer": 26, "patch_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
      "vision_tower": "vit_so400m_patch14_siglip_384.webli", **TINY_LLAMA}
V2 = {"model_type": "detikzify", "architectures": ["DetikzifyForConditionalGeneration"], "image_token_id": 1,
      "concat_factor": 3, "text_config": {"model_type": "llama", "eos_token_id": 2, **LLAMA_8B},
      "vision_config": {"model_type": "detikzify", "image_size": 420, **SIGLIP}}

# ---- random models ----


def write_weights(folder, entries, kind, shards):
    """Writes random matrices, ones for norms and zeros for biases. The matrices are slices of one block of random
    numbers, because drawing eight billion would take longer than everything else."""
    values = 0.02 * np.random.RandomState(1).standard_normal(1 << 23).astype(np.float32)
    block = (tikzc.bf16_from_float(values) if kind == "BF16" else values).view(np.uint8)
    one = (np.array([0x3F80], np.uint16) if kind == "BF16" else np.ones(1, np.float32)).view(np.uint8)
    parts, where = [part for e in entries for part in e.parts], {}
    for i in range(shards):
        mine = parts[len(parts) * i // shards:len(parts) * (i + 1) // shards]
        name = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        where |= {tensor: name for tensor, _ in mine}
        shapes = dict(mine)
        with tikzc.SafetensorsWriter(folder / name, [(n, kind, s) for n, s in mine], {"format": "pt"}) as w:
            for n, tensor in enumerate(w.order):
                left = math.prod(shapes[tensor]) * one.size
                if len(shapes[tensor]) == 1:
                    w.write(one.tobytes() * (left // one.size) if "norm" in tensor else bytes(left))
                    continue
                start = n * 4096 % block.size
                while left:
                    w.write(block[start:start + left].tobytes())
                    left, start = left - min(left, block.size - start), 0
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_tokenizer(folder, rows):
    """Writes a tokenizer with as many tokens as the embedding has rows, without the 8 padding rows of TinyLlama."""
    special = [{"id": i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    vocabulary = {t["content"]: t["id"] for t in special} | {f"t{i}": i for i in range(3, rows // 256 * 256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                  "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def make(name, folder):
    model = folder / "hub"
    model.mkdir(parents=True)
    v1 = name == "tl-1.1b"
    config = V1 if v1 else V2
    text = config if v1 else config["text_config"]
    c = hub.lm_config(Section(text, name), 2048) | {"connector.concat": 3, "connector.bias": v1}
    c |= hub.vision_config(Section({**SIGLIP, "image_size": 384 if v1 else 420}, name), hub.SIGLIP)
    names = hub.V1 if v1 else hub.V2
    entries = [*hub.connector_entries(c, names["connector"]), *hub.lm_entries(c, names["lm"], names["head"])]
    if v1:
        tower = folder / "tower"
        tower.mkdir()
        write_weights(tower, list(hub.vision_entries(c, "hf", "vision_model.")), "F32", 1)
        siglip = {"model_type": "siglip_vision_model", "image_size": 384, **SIGLIP}
        (tower / "config.json").write_text(json.dumps(siglip))
    else:
        entries = [*hub.vision_entries(c, "hf", names["vision"]), *entries]
    write_weights(model, entries, "BF16", 1 if v1 else 4)
    (model / "config.json").write_text(json.dumps(config))
    write_tokenizer(model, text["vocab_size"])
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    print(f"{folder}: {name}, {size / 1e9:.2f} GB of random weights")


def convert(folder):
    tower = ["--vision", folder / "tower"] if (folder / "tower").exists() else []
    start = time.monotonic()
    subprocess.run([sys.executable, SCRIPTS / "convert_hf.py", folder / "hub", *tower, folder / "model.safetensors"],
                   check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = (folder / "model.safetensors").stat().st_size
    print(f"converted to {size / 1e9:.2f} GB in {time.monotonic() - start:.1f} s, peak memory {peak:.0f} MiB")


# ---- the same work in transformers ----


def load(folder, dtype):
    """Returns (vision tower, connector, language model) with the weights of the folder in dtype."""
    import torch
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel
    from transformers.modeling_utils import no_init_weights
    config = json.loads((folder / "hub" / "config.json").read_text())
    v2 = "text_config" in config
    vision = config["vision_config"] if v2 else json.loads((folder / "tower" / "config.json").read_text())
    text = dict(config["text_config"] if v2 else config)
    for values in (vision, text):
        values.pop("model_type", None)
    torch.set_default_dtype(dtype)
    with no_init_weights():
        tower = SiglipVisionModel(SiglipVisionConfig(**{**vision, "vision_use_head": False})).eval()
        lm = LlamaForCausalLM(LlamaConfig(**text)).eval()
        connector = torch.nn.Linear(3 * 1152, text["hidden_size"], bias=not v2)
    torch.set_default_dtype(torch.float32)
    prefixes = (("model.vision_model.", tower), ("model.connector.modality_projection.proj.", connector),
                ("model.text_model.", lm.model)) if v2 else (
                ("vision_model.", tower), ("model.mm_projector.", connector), ("model.", lm.model))
    places = {prefix + name if prefix != "vision_model." else name: p
              for prefix, module in prefixes for name, p in module.named_parameters()}
    places["lm_head.weight"] = lm.lm_head.weight
    with torch.no_grad():
        for path in [*sorted((folder / "hub").glob("*.safetensors")), *(folder / "tower").glob("*.safetensors")]:
            with safe_open(path, "pt") as f:
                for name in f.keys():
                    places.pop(name).copy_(f.get_tensor(name))
    assert not places, sorted(places)[:5]
    return tower, connector, lm


def time_transformers(folder, dtype_name, threads):
    start = time.monotonic()
    import torch
    torch.set_num_threads(threads)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    with torch.no_grad():
        tower, connector, lm = load(folder, dtype)
        loaded = time.monotonic()
        side = tower.config.image_size
        features = tower(pixel_values=torch.zeros(1, 3, side, side, dtype=dtype)).last_hidden_state
        image = connector(features.reshape(1, -1, 3 * features.shape[-1]))
        encoded = time.monotonic()
        out = lm(inputs_embeds=image, use_cache=True)
        first = time.monotonic()
        for _ in range(TOKENS):
            token = out.logits[:, -1:].argmax(-1)
            out = lm(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        done = time.monotonic()
    print(f"transformers, {dtype_name}, {threads} threads: imported and loaded in {loaded - start:.2f} s, image "
          f"encoded in {encoded - loaded:.2f} s, read in {first - encoded:.2f} s, "
          f"{TOKENS / (done - first):.2f} tokens/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "convert", "transformers"))
    parser.add_argument("arguments", nargs="+", metavar="[NAME] DIR")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of transformers (default bf16)")
    parser.add_argument("--threads", type=int, default=2, help="of transformers (default 2)")
    options = parser.parse_args()
    folder = Path(options.arguments[-1])
    if options.step == "make":
        if len(options.arguments) != 2 or options.arguments[0] not in ("tl-1.1b", "v2-8b"):
            parser.error("make needs tl-1.1b or v2-8b, and a folder")
        make(options.arguments[0], folder)
    elif options.step == "convert":
        convert(folder)
    else:
        time_transformers(folder, options.dtype, options.threads)


if __name__ == "__main__":
    main()
