#!/usr/bin/env python3
"""Exports a tikz.c file as a folder in the layout of the Hugging Face Hub.

    export_hf.py MODEL.safetensors OUT_DIR
    export_hf.py MODEL.safetensors OUT_DIR --as smolvlm
    export_hf.py MODEL.safetensors OUT_DIR --lora ADAPTER.safetensors

A model whose connector has no bias becomes a DeTikZify v2 checkpoint: DeTikZify's code loads it, and SiglipVisionModel and
LlamaForCausalLM (Qwen2ForCausalLM, Qwen3ForCausalLM) of transformers load its parts. A model whose connector has a bias
becomes a DeTikZify v1 checkpoint, whose language model must be a Llama, with the vision tower in OUT_DIR/vision under timm's
names. DeTikZify's v1 code is made for towers that timm downloads by their name; what it needs for this one is printed.
Converting the folder again gives the same file, bit for bit. A model of rectangular images cannot be exported:
SiglipVisionModel has square ones, and no position embeddings of rows and of columns.

A model whose connector is a shuffle becomes an Idefics3 checkpoint, or, with --as smolvlm, one of SmolVLM, which is the same
under other names: its tokenizer must have Idefics3's markers, and its connector no bias (scripts/add_markers.py). With
Idefics3ForConditionalGeneration and its processor it writes what infer writes, from the same pixels. Their preprocessing differs:
here white margins are cut off, and the rest is scaled to fit and centred on white; there the image is stretched to a square.

With --lora, OUT_DIR gets the adapter alone, as PEFT reads it (adapter_config.json, adapter_model.safetensors), for the
model that the same command writes without --lora.
"""
import argparse
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import tikzc  # first, because it says whether a package is missing
import numpy as np

import files
import hub.config as hub
import hub.idefics3 as idefics3
from hub.adapter import Adapter, write_adapter
from hub.files import parse_object
from hub.tokenizer import image_token, token_names, token_text, tokenizer_settings
from hub.weights import FLOATS, Stored, pieces
from progress import Progress
from tikzc import FormatError

TOWER = "vision"        # folder of a v1 checkpoint's tower
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Export:
    """An opened tikz.c file: configuration, tokenizer, and positions of its tensors."""

    def __init__(self, path):
        self.path = Path(path)
        self.header, metadata = tikzc.read_header(path)
        self.config = hub.config_read(metadata, path)
        if hub.is_rectangular(self.config):
            height, width = hub.image_size(self.config)
            raise FormatError(f"{path}: its images have {height} x {width} pixels, and its position embeddings are those of "
                              f"rows and of columns; SiglipVisionModel of Hugging Face has square images and one table of "
                              f"positions, so that such a model cannot be represented there.")
        if self.config.get("connector.kind") == "strips":
            raise FormatError(f"{path}: its connector joins strips of patches (connector.kind), and no model of Hugging Face does.")
        self.tokenizer = tikzc.Tokenizer.load(path)
        self.names = token_names(self.tokenizer.json_text, f"{path}: tokenizer.json")
        if self.tokenizer.end not in self.names:
            raise FormatError(f"{path}: the end token {self.tokenizer.end} is not in its tokenizer.json.")
        image = metadata.get("hub.image_token", image_token(self.tokenizer))
        if image is None or not re.fullmatch("[0-9]{1,8}", str(image)) or int(image) >= self.config["lm.vocab"]:
            raise FormatError(f"{path}: its tokenizer has no token that could stand for the image (a special one "
                              f"besides the end token); the Hub's layout needs one.")
        self.image = int(image)
        given = parse_object(metadata.get("hub.tokenizer_config") or "{}", f"{path}: the metadata hub.tokenizer_config")
        self.settings = tokenizer_settings(given, self.tokenizer, self.image)
        more = self.tokenizer.more_ends
        self.ends = [self.tokenizer.end, *more] if more else self.tokenizer.end     # eos_token_id
        self.kind = self.place("lm.embed", None)[0]

    def place(self, name, shape):
        if name not in self.header:
            raise FormatError(f"{self.path}: tensor {name} is missing.")
        kind, found, offset = self.header[name]
        if f"{name}.scales" in self.header:
            raise FormatError(f"{self.path} has weights of 8 or 4 bits, which are not exported; name the model that it "
                              f"was made of.")
        if kind not in FLOATS or (shape and tuple(found) != shape):
            raise FormatError(f"{self.path}: tensor {name} is {kind} {list(found)}, the configuration asks for "
                              f"floating point {list(shape or ())}.")
        return kind, found, offset

    def parts(self, entries):
        """{name: Stored} for the Hub tensors of the entries, which are slices of the tensors of the file."""
        tensors = {}
        for e in entries:
            kind, _, offset = self.place(e.name, e.shape)
            for name, shape in e.parts:
                tensors[name] = Stored(self.path, kind, shape, offset)
                offset += math.prod(shape) * np.dtype(FLOATS[kind]).itemsize
        return tensors

    def token_id(self, key):
        """The id of a special token that tokenizer_config.json names, or None."""
        text = token_text(self.settings.get(key))
        return next((i for i, name in self.names.items() if name == text), None)


TIMM_EPS = 1e-6    # of the layer norms of timm's encoders


def check_family(c, path):
    """Refuses a model for which a DeTikZify checkpoint has no class."""
    what = ["biases on q, k and v (lm.qkv_bias)"] * c["lm.qkv_bias"] + ["norms of q and k (lm.qk_norm)"] * c["lm.qk_norm"]
    if hub.lm_family(c) is None:
        raise FormatError(f"{path}: its decoder has {' and '.join(what)}; Qwen2 of transformers has the first, Qwen3 the second, "
                          f"and no class has both.")
    if c["connector.bias"] and what:
        raise FormatError(f"{path}: its decoder has {what[0]}, and its connector a bias, which only DeTikZify v1 has, whose decoder "
                          f"is a Llama without them; train with connector.bias=false to export it as v2.")
    if c["connector.bias"] and not math.isclose(c["vision.eps"], TIMM_EPS, rel_tol=1e-6):
        raise FormatError(f"{path}: vision.eps is {c['vision.eps']:g}, and its connector has a bias, which only DeTikZify v1 has, whose "
                          f"encoder (timm's) has {TIMM_EPS:g}; train with connector.bias=false to export it as v2.")


# ---- configurations ----

def siglip_config(c):
    return {"hidden_size": c["vision.width"], "intermediate_size": c["vision.mlp"],
            "num_hidden_layers": c["vision.layers"], "num_attention_heads": c["vision.heads"], "num_channels": 3,
            "image_size": c["vision.image_size"], "patch_size": c["vision.patch"], "layer_norm_eps": c["vision.eps"],
            "hidden_act": "gelu" if c["vision.activation"] == "gelu" else "gelu_pytorch_tanh",
            "attention_dropout": 0.0, "vision_use_head": False}


def lm_config(x, family):
    """The configuration of a language model. family: its model_type in transformers."""
    c, kind = x.config, x.config["lm.rope_scaling"]
    longest, scaling = c["lm.max_positions"], None
    if kind != "none":
        scaling = {"rope_type": kind, "factor": c["lm.rope_factor"]}
    if kind == "llama3":
        scaling |= {"low_freq_factor": c["lm.rope_low"], "high_freq_factor": c["lm.rope_high"],
                    "original_max_position_embeddings": c["lm.rope_original"]}
        longest = max(longest, int(c["lm.rope_original"] * c["lm.rope_factor"]))
    ids = {f"{name}_token_id": x.token_id(f"{name}_token") for name in ("bos", "pad")}
    qwen = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": c["lm.layers"]}
    biases = {"llama": {"attention_bias": False, "mlp_bias": False}, "qwen2": qwen, "qwen3": {"attention_bias": False, **qwen}}
    return {"vocab_size": c["lm.vocab"], "hidden_size": c["lm.width"], "intermediate_size": c["lm.ffn"],
            "num_hidden_layers": c["lm.layers"], "num_attention_heads": c["lm.heads"],
            "num_key_value_heads": c["lm.kv_heads"], "head_dim": c["lm.head_dim"], "hidden_act": "silu",
            "max_position_embeddings": longest, "rms_norm_eps": c["lm.eps"], "rope_theta": c["lm.rope_theta"],
            "rope_scaling": scaling, **biases[family], "attention_dropout": 0.0,
            "tie_word_embeddings": c["lm.tied"], "eos_token_id": x.ends, **ids}


def v2_config(x):
    c, family = x.config, hub.lm_family(x.config)
    text = lm_config(x, family)
    return {"architectures": ["DetikzifyForConditionalGeneration"], "model_type": "detikzify",
            "image_token_id": x.image, "concat_factor": c["connector.concat"], "pad_token_id": text["pad_token_id"],
            "tie_word_embeddings": c["lm.tied"], "torch_dtype": TORCH[x.kind],
            "text_config": {"model_type": family, **text},
            "vision_config": {"model_type": "detikzify", **siglip_config(c)}}


def v1_config(x):
    c = x.config
    return {"architectures": ["DetikzifyForCausalLM"], "model_type": "detikzify", **lm_config(x, "llama"),
            "torch_dtype": TORCH[x.kind], "use_mm_proj": True, "vision_tower": f"local-dir:{TOWER}",
            "mm_hidden_size": c["connector.concat"] * c["vision.width"], "concat_patches": c["connector.concat"],
            "num_patches": hub.image_tokens(c), "feature_layer": c["vision.layers"] - 1,
            "patch_token_id": x.image}


def timm_config(c):
    """config.json for timm: one of its SigLIP architectures, and all arguments that may differ; without the pooling
    head."""
    side = c["vision.image_size"]
    args = {"img_size": side, "patch_size": c["vision.patch"], "embed_dim": c["vision.width"],
            "depth": c["vision.layers"], "num_heads": c["vision.heads"],
            "mlp_ratio": mlp_ratio(c["vision.mlp"], c["vision.width"]), "act_layer": c["vision.activation"],
            "class_token": False, "global_pool": ""}
    return {"architecture": "vit_base_patch16_siglip_224", "num_classes": 0, "num_features": c["vision.width"],
            "global_pool": "", "model_args": args,
            "pretrained_cfg": {"input_size": [3, side, side], "fixed_input_size": True, "interpolation": "bicubic",
                               "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0,
                               "first_conv": "patch_embed.proj", "classifier": "head"}}


def mlp_ratio(mlp, width):
    """The ratio for which timm's int(width * ratio) is mlp; the division may round to just below the integer."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


# ---- writing ----

def write_json(path, value):
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    except (RecursionError, ValueError) as e:
        raise FormatError(f"{path.name}: cannot be written as JSON ({e}).")


def write_weights(path, tensors):
    specs = [(name, stored.kind, stored.shape) for name, stored in tensors.items()]
    with tikzc.SafetensorsWriter(path, specs, {"format": "pt"}) as w, \
            Progress(f"writing {path.name}, MB", w.bytes_left // 10**6) as bar:
        total = w.bytes_left
        for name in w.order:
            for data in pieces(tensors[name], tensors[name].kind):
                w.write(data)
                bar.update((total - w.bytes_left) // 10**6)


def write_tokenizer(x, folder, more):
    """more: of generation_config.json."""
    (folder / "tokenizer.json").write_text(x.tokenizer.json_text, "utf-8", newline="")
    write_json(folder / "tokenizer_config.json", {**x.settings, "model_max_length": x.config["lm.max_positions"]})
    ids = {f"{name}_token_id": x.token_id(f"{name}_token") for name in ("bos", "pad")}
    write_json(folder / "generation_config.json", {"eos_token_id": x.ends, **more,
                                                   **{key: i for key, i in ids.items() if i is not None}})


def write_processor(x, folder):
    c, side = x.config, x.config["vision.image_size"]
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "SiglipImageProcessor", "processor_class": "DetikzifyProcessor", "do_resize": True,
        "size": {"height": side, "width": side}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True})
    write_json(folder / "processor_config.json", {
        "processor_class": "DetikzifyProcessor", "image_token": x.names.get(x.image),
        "image_seq_len": hub.image_tokens(c), "model_expects_text": False})


def write_idefics3(x, kind, folder):
    """A checkpoint of Idefics3 or SmolVLM, without its tokenizer."""
    before, after = idefics3.prompt_text(x)
    image = next(i for i, name in x.names.items() if name == idefics3.IMAGE)
    write_json(folder / "config.json", idefics3.config(x, kind, siglip_config(x.config), lm_config(x, "llama"), image,
                                                     TORCH[x.kind]))
    x.settings["chat_template"] = idefics3.write_processor(x, kind, folder, before, after, write_json)
    x.settings["processor_class"] = f"{idefics3.CLASSES[kind]}Processor"


def write_folder(x, folder, kind):
    c = x.config
    if kind in idefics3.CLASSES:
        write_idefics3(x, kind, folder)
        names, entries = idefics3.NAMES, [*hub.vision_entries(c, "hf", idefics3.NAMES["vision"])]
    elif c["connector.bias"]:
        (folder / TOWER).mkdir()
        write_json(folder / TOWER / "config.json", timm_config(c))
        write_weights(folder / TOWER / "model.safetensors", x.parts(hub.vision_entries(c, "timm", "")))
        names, entries = hub.V1, []
        write_json(folder / "config.json", v1_config(x))
    else:
        names, entries = hub.V2, [*hub.vision_entries(c, "hf", hub.V2["vision"])]
        write_json(folder / "config.json", v2_config(x))
        write_processor(x, folder)
    entries += [*hub.connector_entries(c, names["connector"]), *hub.lm_entries(c, names["lm"], names["head"])]
    write_weights(folder / "model.safetensors", x.parts(entries))
    write_tokenizer(x, folder, idefics3.generation(x) if kind in idefics3.CLASSES else {})


def write_adapter_folder(x, adapter, folder):
    """The adapter's folder. In a v1 checkpoint the vision tower is a model of its own, and its adapters have no place."""
    c = x.config
    names = hub.V1 if c["connector.bias"] else hub.V2
    vision = [*hub.vision_entries(c, "hf", hub.V2["vision"])]
    rest = [*hub.connector_entries(c, names["connector"]), *hub.lm_entries(c, names["lm"], names["head"])]
    write_adapter(x, adapter, vision + rest, rest if c["connector.bias"] else vision + rest, folder)


def kind_of(x, wanted, adapter):
    """v1, v2, idefics3 or smolvlm."""
    if hub.is_shuffle(x.config) and adapter:
        raise FormatError(f"{x.path}: adapters of a model whose connector is a shuffle are not exported; train without --lora.")
    if hub.is_shuffle(x.config) or wanted:
        idefics3.refuse(x)
        return wanted or "idefics3"
    return "v1" if x.config["connector.bias"] else "v2"


def export(source, out, wanted=None, lora=None):
    """Exports a model, or an adapter of it. The folder appears under its name when it is complete."""
    x, out, adapter = Export(source), Path(out), lora and Adapter(lora)
    kind = kind_of(x, wanted, adapter)
    if kind in ("v1", "v2"):
        check_family(x.config, x.path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"{out}: exists and is not an empty folder; name a new one.")
    if not out.absolute().parent.is_dir():
        raise FormatError(f"{out}: cannot be made, since the folder {out.absolute().parent} does not exist.")
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        if adapter:
            write_adapter_folder(x, adapter, temporary)
        else:
            write_folder(x, temporary, kind)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if adapter:
        print(f"{files.printable(out)}: an adapter for PEFT, rank {adapter.rank}, {len(adapter.layers)} layers")
        return
    name = idefics3.CLASSES.get(kind, f"DeTikZify {kind}")
    print(f"{files.printable(out)}: {'an' if name[0] == 'I' else 'a'} {name} checkpoint, {TORCH[x.kind]}")
    if kind == "v1":
        explain_v1(files.printable(out), x.config["vision.image_size"])


def explain_v1(out, side):
    """What DeTikZify's v1 code does not find out by itself: where the tower is, and the form of its input. Without the
    second it takes 224 pixels and ImageNet's mean, and says nothing."""
    print(f"""export_hf.py: note: the connector has a bias, which makes this a v1 checkpoint. To run it with DeTikZify's code:
  - in {out}/config.json, set vision_tower to local-dir: and the path of {out}/{TOWER}
    (as it stands, it is found from inside {out} only)
  - model, processor = load("{out}", is_v1=True)
    processor.image_processor.size = {{"height": {side}, "width": {side}}}
    processor.image_processor.image_mean = processor.image_processor.image_std = [0.5, 0.5, 0.5]
A student trained with connector.bias=false, the default for new ones, is exported as v2 and needs none of this.""",
          file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="the tikz.c file")
    parser.add_argument("out", metavar="OUT_DIR", help="the folder to make")
    parser.add_argument("--as", dest="kind", choices=[*idefics3.CLASSES], metavar="KIND",
                        help="idefics3 or smolvlm (default: idefics3 where the connector is a shuffle, else DeTikZify)")
    parser.add_argument("--lora", metavar="ADAPTER", help="write this adapter of the model, as PEFT reads it")
    options = parser.parse_args()
    try:
        export(options.source, options.out, options.kind, options.lora)
    except FormatError as e:
        files.fail("export_hf.py", e)
    except OSError as e:
        files.fail("export_hf.py", f"{files.describe(e, options.out)}.")
    except KeyboardInterrupt:
        sys.exit("export_hf.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
