"""Model folders in the layout of the Hugging Face Hub: the names of their tensors here and there, and their
configurations. convert_hf.py and export_hf.py use the same tables, in opposite directions.

Folders
-------
    v1     DeTikZify v1: a Llama checkpoint whose config.json also describes the vision side; the connector is
           `model.mm_projector`. The SigLIP tower is in a folder of its own, with timm's or Hugging Face's names.
    v2     DeTikZify v2 and v2.5: vision tower, connector and language model in one checkpoint, with `vision_config`
           and `text_config`.
    plain  a SigLIP folder and one of a language model (Llama, Mistral, Qwen2, Qwen3), to be combined into a new model.
weights.py and torch_file.py read the weight files, files.py JSON, tokenizer.py the tokenizer's files.

Sources: github.com/potamides/DeTikZify (detikzify/model, detikzify/model/v1), the SiglipVisionModel, LlamaForCausalLM,
MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM of transformers, VisionTransformer and the siglip entries of timm.
"""
import math
import re
from collections import namedtuple

import numpy as np

import tikzc
from hub.files import Section, shown
from tikzc import FormatError

# ---- tensor names, for both directions ----

# A tensor of a tikz.c file, and the Hub tensors, parts = [(name, shape), ...], whose concatenated bytes it consists
# of: fused matrices are concatenated by rows, and a reshape does not move any data.
Entry = namedtuple("Entry", "name shape parts")

VISION_LAYER = (    # names in tikz.c, Hugging Face, timm; each has .weight and .bias
    ("norm1", ("layer_norm1",), ("norm1",)),
    ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("attn.qkv",)),
    ("proj", ("self_attn.out_proj",), ("attn.proj",)),
    ("norm2", ("layer_norm2",), ("norm2",)),
    ("fc1", ("mlp.fc1",), ("mlp.fc1",)),
    ("fc2", ("mlp.fc2",), ("mlp.fc2",)),
)


def entry(name, shape, *parts):
    assert math.prod(shape) == sum(math.prod(s) for _, s in parts), name
    return Entry(name, tuple(shape), [(part, tuple(s)) for part, s in parts])


def vision_entries(c, naming, prefix):
    """The entries of a vision encoder. c: a tikz.c configuration; naming: hf or timm."""
    C, M, p = c["vision.width"], c["vision.mlp"], c["vision.patch"]
    P = patches(c)
    hf = naming == "hf"

    def both(name, hf_name, timm_name, shape, part_shape=None):
        return entry("vision." + name, shape, (prefix + (hf_name if hf else timm_name), part_shape or shape))

    yield both("patch.weight", "embeddings.patch_embedding.weight", "patch_embed.proj.weight", (C, 3 * p * p),
               (C, 3, p, p))
    yield both("patch.bias", "embeddings.patch_embedding.bias", "patch_embed.proj.bias", (C,))
    yield both("position", "embeddings.position_embedding.weight", "pos_embed", (P, C), (P, C) if hf else (1, P, C))
    sizes = {"qkv": (3 * C, C), "proj": (C, C), "fc1": (M, C), "fc2": (C, M)}
    for layer in range(c["vision.layers"]):
        block = f"{prefix}encoder.layers.{layer}." if hf else f"{prefix}blocks.{layer}."
        for module, hf_names, timm_names in VISION_LAYER:
            names, shape = hf_names if hf else timm_names, sizes.get(module, (C,))
            for kind, whole in (("weight", shape), ("bias", shape[:1])):
                part = (whole[0] // len(names), *whole[1:])
                yield entry(f"vision.{layer}.{module}.{kind}", whole, *((f"{block}{n}.{kind}", part) for n in names))
    yield both("norm.weight", "post_layernorm.weight", "norm.weight", (C,))
    yield both("norm.bias", "post_layernorm.bias", "norm.bias", (C,))


def connector_entries(c, name):
    """The entries of the connector. name: the name of its linear layer in the checkpoint."""
    shape = (c["lm.width"], joined(c) * c["vision.width"])
    yield entry("connector.weight", shape, (f"{name}.weight", shape))
    if c["connector.bias"]:
        yield entry("connector.bias", shape[:1], (f"{name}.bias", shape[:1]))


def lm_entries(c, prefix, head):
    """The entries of the language model. head: the name of the output head in the checkpoint."""
    W, F, V = c["lm.width"], c["lm.ffn"], c["lm.vocab"]
    D = c["lm.head_dim"]
    Q, K = c["lm.heads"] * D, c["lm.kv_heads"] * D
    yield entry("lm.embed", (V, W), (prefix + "embed_tokens.weight", (V, W)))
    for layer in range(c["lm.layers"]):
        ours, block = f"lm.{layer}.", f"{prefix}layers.{layer}."
        attention, mlp = block + "self_attn.", block + "mlp."
        yield entry(ours + "norm1", (W,), (block + "input_layernorm.weight", (W,)))
        yield entry(ours + "qkv.weight", (Q + 2 * K, W), (attention + "q_proj.weight", (Q, W)),
                    (attention + "k_proj.weight", (K, W)), (attention + "v_proj.weight", (K, W)))
        if c["lm.qkv_bias"]:
            yield entry(ours + "qkv.bias", (Q + 2 * K,), (attention + "q_proj.bias", (Q,)),
                        (attention + "k_proj.bias", (K,)), (attention + "v_proj.bias", (K,)))
        if c["lm.qk_norm"]:
            for part in ("q_norm", "k_norm"):
                yield entry(ours + part, (D,), (f"{attention}{part}.weight", (D,)))
        yield entry(ours + "out.weight", (W, Q), (attention + "o_proj.weight", (W, Q)))
        yield entry(ours + "norm2", (W,), (block + "post_attention_layernorm.weight", (W,)))
        yield entry(ours + "gate_up.weight", (2 * F, W), (mlp + "gate_proj.weight", (F, W)),
                    (mlp + "up_proj.weight", (F, W)))
        yield entry(ours + "down.weight", (W, F), (mlp + "down_proj.weight", (W, F)))
    yield entry("lm.norm", (W,), (prefix + "norm.weight", (W,)))
    if not c["lm.tied"]:
        yield entry("lm.head", (V, W), (head, (V, W)))


# Names in a checkpoint, by its kind: prefixes of vision tower and language model, connector, output head.
V1 = {"connector": "model.mm_projector", "lm": "model.", "head": "lm_head.weight"}
V2 = {"tower": "model.vision_model.", "vision": "model.vision_model.vision_model.",
      "connector": "model.connector.modality_projection.proj",
      "lm": "model.text_model.", "head": "lm_head.weight"}

# Tensors of checkpoints that are not used: SigLIP's text tower, timm's pooling head, tables that are recomputed.
UNUSED = [re.compile(pattern) for pattern in (
    r"(.*\.)?rotary_emb\.inv_freq", r"(.*\.)?embeddings\.position_ids",
    r"text_model\..*", r"logit_(scale|bias)",          # Hugging Face's
    r"(visual\.trunk\.)?attn_pool\..*", r"text\..*")]  # timm's, OpenCLIP's


def tower_prefix(names, outer=""):
    """The prefix of a SigLIP tower's tensors in Hugging Face's naming: transformers 5 writes a tower that is a model of
    its own without `vision_model.`. outer: prefix of the part that holds the tower."""
    inner = f"{outer}vision_model."
    return outer if f"{outer}embeddings.patch_embedding.weight" in names else inner


def pooling_head(names, prefix):
    """The tensors of a SigLIP tower's pooling head, which is not used."""
    return {name for name in names if name.startswith(f"{prefix}head.")}


# ---- configuration ----

CONFIG = {          # every key of a tikz.c configuration, in the order of config.h
    "vision.image_size": int, "vision.image_height": int, "vision.image_width": int, "vision.letter": int,
    "vision.patch": int, "vision.width": int, "vision.layers": int, "vision.heads": int, "vision.mlp": int,
    "vision.activation": str, "vision.eps": float, "connector.kind": str, "connector.scale_factor": int,
    "connector.concat": int, "connector.bias": bool,
    "lm.vocab": int, "lm.width": int, "lm.layers": int, "lm.heads": int, "lm.kv_heads": int, "lm.head_dim": int,
    "lm.ffn": int, "lm.max_positions": int, "lm.eps": float, "lm.rope_theta": float, "lm.rope_scaling": str,
    "lm.rope_factor": float, "lm.rope_low": float, "lm.rope_high": float, "lm.rope_original": int,
    "lm.qkv_bias": bool, "lm.qk_norm": bool, "lm.tied": bool}
FLAGS = {"lm.qkv_bias", "lm.qk_norm"}       # written only where true, as the optional ones of config.h
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh",
               "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"}


SQUARE, RECTANGULAR = {"vision.image_size"}, {"vision.image_height", "vision.image_width"}    # a model has either


def is_rectangular(c):
    return "vision.image_height" in c


CONCAT, SCALE = {"connector.concat"}, {"connector.scale_factor"}    # and either of these


def is_shuffle(c):
    return c.get("connector.kind") == "shuffle"


def config_keys(c):
    """{key: type} of the keys that a configuration of square or of rectangular images, and of its kind of connector, has.
    c: what is there of it."""
    other = (SQUARE if is_rectangular(c) else RECTANGULAR) | (CONCAT if is_shuffle(c) else SCALE)
    other |= {"vision.letter", "connector.kind"} - c.keys()
    return {key: kind for key, kind in CONFIG.items() if key not in other}


def image_size(c):
    """(height, width) of the images in pixels."""
    return tuple(c[f"vision.image_{side}"] for side in (("height", "width") if is_rectangular(c) else ("size", "size")))


def patches(c):
    height, width = image_size(c)
    return (height // c["vision.patch"]) * (width // c["vision.patch"])


def joined(c):
    """Patches that are joined into one image token."""
    return c["connector.scale_factor"] ** 2 if is_shuffle(c) else c["connector.concat"]


def image_tokens(c):
    return patches(c) // joined(c)


def config_text(c):
    """{key: value} -> the metadata of a model file, {key: text}, formatted as by the C code."""
    def text(value):
        if isinstance(value, bool):
            return str(value).lower()
        return format(float(np.float32(value)), ".9g") if isinstance(value, float) else str(value)
    return {key: text(kind(c[key])) for key, kind in config_keys(c).items() if key not in FLAGS or c[key]}


def config_read(metadata, path):
    """The metadata of a model file -> {key: value}. A float becomes the double with the shortest decimal that rounds
    to the same fp32."""
    if metadata.get("format") != tikzc.FORMAT:
        raise FormatError(f"{path}: not a tikz.c model (metadata format is {metadata.get('format', 'missing')}, "
                          f"expected {tikzc.FORMAT}).")
    c = {}
    for key, kind in config_keys(metadata).items():
        text = metadata.get(key, "false" if key in FLAGS else "(missing)")
        try:
            c[key] = (float(str(np.float32(text))) if kind is float else kind(text) if kind is not bool
                      else {"true": True, "false": False}[text])
        except (ValueError, KeyError):
            raise FormatError(f"{path}: the metadata key {key} is '{text}', expected {kind.__name__}.")
    check_config(c, path)
    return c


def check_config(c, where):
    """Checks a configuration as config.h will when the model is opened."""
    def need(truth, sentence):
        if not truth:
            raise FormatError(f"{where}: {sentence}.")
    for key, kind in config_keys(c).items():
        need(kind is not int or 1 <= c[key] <= 1 << 24, f"{key} is {c[key]}, expected a number from 1 to 2^24")
    (height, width), p, C = image_size(c), c["vision.patch"], c["vision.width"]
    if is_rectangular(c):
        need(height <= 4096 and width <= 4096 and height % p == 0 and width % p == 0,
             f"the image has {height} x {width} pixels, expected multiples of the patch ({p}) up to 4096")
    else:
        need(p <= width <= 2048, f"the image is {width} pixels wide, expected from one patch ({p}) to 2048")
    letter = c.get("vision.letter")
    need(letter is None or is_rectangular(c) and 4 <= letter <= min(256, height),
         f"vision.letter is {letter}, expected a number from 4 to the height of rectangular images, at most 256")
    need(C % c["vision.heads"] == 0, f"the vision width {C} is not a multiple of its {c['vision.heads']} heads")
    kind = c.get("connector.kind", "concat")
    need(kind in ("concat", "shuffle", "strips"), f"connector.kind is {kind[:40]}, expected concat, shuffle or strips")
    if is_shuffle(c):
        rows, columns, s = height // p, width // p, c["connector.scale_factor"]
        need(s <= 16, f"connector.scale_factor is {s}, expected a number from 1 to 16")
        need(rows % s == 0 and columns % s == 0, f"{rows} x {columns} patches cannot be joined in blocks of {s} x {s}")
    else:
        need(kind != "strips" or c["connector.concat"] % (height // p) == 0,
             f"connector.concat {c['connector.concat']} is not a multiple of the {height // p} rows of patches (kind strips)")
        need(patches(c) % c["connector.concat"] == 0,
             f"{patches(c)} patches cannot be joined in groups of {c['connector.concat']}")
    need(c["lm.heads"] % c["lm.kv_heads"] == 0,
         f"{c['lm.heads']} attention heads are not a multiple of {c['lm.kv_heads']} key-value heads")
    need(c["lm.head_dim"] % 2 == 0, f"head_dim {c['lm.head_dim']} is odd; rotary positions need an even one")
    need(c["lm.max_positions"] > image_tokens(c),
         f"{c['lm.max_positions']} positions leave no room for text after {image_tokens(c)} image tokens")


def activation(s, key, default):
    name = s.get(key, str, default)
    if name not in ACTIVATIONS:
        raise FormatError(f"{s.where}: {key} is {name}, expected one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


SIGLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
              patch_size=16)        # the defaults of SiglipVisionConfig, and below those of DeTikZify's vision_config
DETIKZIFY = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
                 image_size=420, patch_size=14)


def vision_config(s, defaults):
    """A SiglipVisionConfig -> the vision keys of tikz.c. defaults: values of missing keys."""
    s.refuse("num_channels", 3)
    s.refuse("quantization_config")
    names = {"width": "hidden_size", "mlp": "intermediate_size", "layers": "num_hidden_layers",
             "heads": "num_attention_heads", "image_size": "image_size", "patch": "patch_size"}
    c = {f"vision.{ours}": s.size(theirs, defaults[theirs], 256 if ours == "layers" else 1 << 24)
         for ours, theirs in names.items()}
    c["vision.activation"] = activation(s, "hidden_act", "gelu_pytorch_tanh")
    c["vision.eps"] = s.get("layer_norm_eps", float, 1e-6)
    return c


TIMM_FAMILIES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "so400m": (1152, 27, 16, 4304),
                 "giantopt": (1536, 40, 16, 6144)}     # width, layers, heads, mlp
TIMM_NEUTRAL = {"in_chans": 3, "qkv_bias": True, "proj_bias": True, "final_norm": True, "pos_embed": "learn",
                "reg_tokens": 0}    # values of model_args that change nothing; of others, False
TIMM_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt)")


def timm_architecture(name):
    """The vision keys of tikz.c for a model name of timm, such as vit_so400m_patch14_siglip_384.webli; None if it is
    no SigLIP tower. Unlike transformers, timm uses the exact GELU in most of its SigLIP towers."""
    match = re.fullmatch(r"vit_(\w+?)_patch(\d+)_siglip(?:_gap)?_(\d+)", name.split(".")[0])
    if not match or match[1] not in TIMM_FAMILIES:
        return None
    width, layers, heads, mlp = TIMM_FAMILIES[match[1]]
    return {"vision.image_size": int(match[3]), "vision.patch": int(match[2]), "vision.width": width,
            "vision.layers": layers, "vision.heads": heads, "vision.mlp": mlp,
            "vision.activation": "gelu_tanh" if TIMM_TANH.match(name) else "gelu", "vision.eps": 1e-6}


def timm_config(s):
    """The config.json of a timm folder -> the vision keys of tikz.c."""
    name = s.get("architecture", str)
    known = timm_architecture(name)
    if known is None:
        raise FormatError(f"{s.where}: architecture {name} is not supported; expected one of timm's SigLIP towers, "
                          f"such as vit_so400m_patch14_siglip_384.")
    changed = Section(s.values.get("model_args") or {}, f"{s.where}: model_args")
    pretrained = Section(s.values.get("pretrained_cfg") or {}, f"{s.where}: pretrained_cfg")
    c, args = dict(known), changed.values
    sizes = pretrained.get("input_size", list, [c["vision.image_size"]])     # channels, height, width
    c["vision.image_size"] = Section({"input_size": sizes[1:] or sizes}, pretrained.where).square_size("input_size", 0)
    for ours, theirs in (("image_size", "img_size"), ("patch", "patch_size")):
        c[f"vision.{ours}"] = changed.square_size(theirs, c[f"vision.{ours}"])
    for ours, theirs in (("width", "embed_dim"), ("layers", "depth"), ("heads", "num_heads")):
        c[f"vision.{ours}"] = changed.size(theirs, c[f"vision.{ours}"], 256 if ours == "layers" else 1 << 24)
    ratio = c["vision.mlp"] / known["vision.width"]
    if "mlp_ratio" in args or "embed_dim" in args:
        c["vision.mlp"] = int(c["vision.width"] * changed.get("mlp_ratio", float, ratio))
    c["vision.activation"] = activation(changed, "act_layer", c["vision.activation"])
    for key in sorted(set(args) - {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
                                   "act_layer", "global_pool", "fc_norm", "num_classes"}):
        changed.refuse(key, TIMM_NEUTRAL.get(key, False))
    return c


def rope_config(s):
    """The RoPE keys of tikz.c, from the keys of transformers 4 (rope_theta, rope_scaling with type or rope_type) or 5
    (rope_parameters)."""
    values = s.values.get("rope_scaling") or s.values.get("rope_parameters") or {}
    rope = Section(values, f"{s.where}: {'rope_scaling' if s.values.get('rope_scaling') else 'rope_parameters'}")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise FormatError(f"{rope.where}: the type {shown(kind)} is not supported; expected default, linear or llama3.")
    if any(isinstance(value, dict) for value in values.values()):
        raise FormatError(f"{rope.where}: has different rotations for different kinds of layers; all layers here have the same.")
    rope.refuse("partial_rotary_factor", 1)
    theta = s.get("rope_theta", float, values.get("rope_theta", 10000.0))
    c = {"lm.rope_theta": theta, "lm.rope_scaling": "none" if kind == "default" else kind, "lm.rope_factor": 1.0,
         "lm.rope_low": 1.0, "lm.rope_high": 4.0}
    if kind != "default":
        c["lm.rope_factor"] = rope.get("factor", float)
    if kind == "llama3":
        c["lm.rope_low"] = rope.get("low_freq_factor", float)
        c["lm.rope_high"] = rope.get("high_freq_factor", float)
        c["lm.rope_original"] = rope.size("original_max_position_embeddings")
    return c


# The language models that can be read, by model_type, with the defaults of their classes where these are not Llama's. Mistral
# is Llama with a sliding window; Qwen2 has biases on q, k and v, Qwen3 norms of q and k.
LM_FAMILIES = {
    "llama": {},
    "mistral": dict(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096),
    "qwen2": dict(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768,
                  sliding_window=4096),
    "qwen3": dict(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768,
                  sliding_window=4096, head_dim=128)}
LAYER_TYPES = ("full_attention", "sliding_attention")


def lm_family(c):
    """The model_type of transformers that computes what a tikz.c configuration says; None: there is none."""
    names = {(False, False): "llama", (True, False): "qwen2", (False, True): "qwen3"}
    return names.get((c["lm.qkv_bias"], c["lm.qk_norm"]))


def check_window(s, family, positions, layers):
    """Refuses a sliding window that is shorter than the positions used: attention here sees all of them."""
    window = s.values.get("sliding_window", LM_FAMILIES[family].get("sliding_window"))
    kinds = s.values.get("layer_types") or []
    if not isinstance(kinds, list) or not all(kind in LAYER_TYPES for kind in kinds):
        raise FormatError(f"{s.where}: layer_types = {shown(kinds)} is not supported; expected full_attention or "
                          f"sliding_attention for each layer.")
    if family.startswith("qwen"):       # only layers from max_window_layers on, and only where use_sliding_window says so
        first = s.get("max_window_layers", int, 28)
        slides = s.get("use_sliding_window", bool, False) and ("sliding_attention" in kinds if kinds else first < layers)
    else:
        slides = True
    if slides and window is not None and not (type(window) is int and window >= positions):
        raise FormatError(f"{s.where}: sliding_window = {shown(window)} is not supported: it is shorter than the {positions} "
                          f"positions used, and attention here sees all of them; --positions sets how many are used.")


def lm_config(s, positions):
    """The configuration of a language model of LM_FAMILIES -> the lm keys of tikz.c. positions: upper limit of
    lm.max_positions."""
    family = s.get("model_type", str, "llama")
    family = family if family in LM_FAMILIES else "llama"       # DeTikZify's own
    defaults = dict(vocab_size=32000, intermediate_size=11008, max_position_embeddings=2048) | LM_FAMILIES[family]
    heads, width = s.size("num_attention_heads", 32), s.size("hidden_size", 4096)
    layers = s.size("num_hidden_layers", 32, 256)
    c = {"lm.vocab": s.size("vocab_size", defaults["vocab_size"]), "lm.width": width, "lm.heads": heads, "lm.layers": layers,
         "lm.kv_heads": s.size("num_key_value_heads", defaults.get("num_key_value_heads", heads)),
         "lm.head_dim": s.size("head_dim", defaults.get("head_dim", width // heads)),
         "lm.ffn": s.size("intermediate_size", defaults["intermediate_size"]),
         "lm.max_positions": min(s.size("max_position_embeddings", defaults["max_position_embeddings"]), positions),
         "lm.eps": s.get("rms_norm_eps", float, 1e-6), "lm.tied": s.get("tie_word_embeddings", bool, False),
         "lm.qkv_bias": family == "qwen2", "lm.qk_norm": family == "qwen3"}
    for key, neutral in (("attention_bias", False), ("mlp_bias", False), ("partial_rotary_factor", 1),
                         ("quantization_config", None)):
        s.refuse(key, neutral)
    if s.get("hidden_act", str, "silu") not in ("silu", "swish"):
        s.refuse("hidden_act")
    check_window(s, family, c["lm.max_positions"], layers)
    return {"lm.rope_original": c["lm.max_positions"]} | c | rope_config(s)
