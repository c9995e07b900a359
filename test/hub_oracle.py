"""Tiny random models in the Hub's layouts, and what transformers' own modules compute with them.

A Tiny holds a SiglipVisionModel, a linear connector and a LlamaForCausalLM (or Mistral's, Qwen2's, Qwen3's), glued together as
DeTikZify does: the features of one layer, normalised; neighbours joined; one linear map; image tokens, then text. It
is the oracle that test_hub.py compares tikz.c with; nothing here uses our own code.
"""
import io
import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel)

try:
    from transformers import Qwen3Config, Qwen3ForCausalLM
except ImportError:     # before 4.51: made of Mistral's modules, whose heads may have any size
    class Qwen3Config(MistralConfig):
        model_type = "qwen3"

    class Qwen3ForCausalLM(MistralForCausalLM):
        """Each head of queries and keys goes through Mistral's own RMS norm before the rotation."""

        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                attention = layer.self_attn
                for name, projection in (("q_norm", attention.q_proj), ("k_norm", attention.k_proj)):
                    norm = type(self.model.norm)(attention.head_dim, config.rms_norm_eps)
                    setattr(attention, name, norm)
                    projection.register_forward_hook(
                        lambda _, inputs, out, norm=norm, D=attention.head_dim:
                        norm(out.reshape(*out.shape[:-1], -1, D)).reshape(out.shape))

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
SPECIAL = ["<s>", "</s>", "<pad>"]      # of the tests' tokenizer: ids 0, 1, 2
BOS, END, PAD = range(3)


class Tiny:
    """vision, text: arguments of the configuration classes; layer: whose features are used, None: the last;
    vision_dtype: what the tower is stored in, when other than dtype."""

    def __init__(self, vision, text, concat=3, bias=False, layer=None, dtype="fp32", vision_dtype=None, seed=1,
                 full_siglip=False, family="llama", connector=True):
        torch.manual_seed(seed)
        config, model = FAMILIES[family]
        self.dtype, self.vision_dtype, self.concat, self.layer = dtype, vision_dtype or dtype, concat, layer
        siglip = SiglipVisionConfig(**vision)
        if full_siglip:
            small = {"hidden_size": siglip.hidden_size, "num_hidden_layers": 1, "num_attention_heads": 1,
                     "intermediate_size": 8, "vocab_size": 20}
            self.siglip = SiglipModel(SiglipConfig(text_config=small, vision_config=siglip.to_dict()))
        else:
            self.siglip = SiglipVisionModel(siglip)
        text = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD} | text
        self.lm = model(config(**text, attn_implementation="eager"))
        joined = concat * siglip.hidden_size
        self.connector = torch.nn.Linear(joined, self.lm.config.hidden_size, bias=bias) if connector else None
        for module, kind in ((self.siglip, self.vision_dtype), (self.connector, dtype), (self.lm, dtype)):
            if module is not None:
                randomise(module, TYPES[kind])

    @property
    def tower(self):
        return getattr(self.siglip, "vision_model", self.siglip)       # transformers 5 has it in one

    def image_tokens(self, pixels):
        """pixels u8 [B, S, S, 3] -> [B, P / concat, W]"""
        x = ((pixels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        out = self.tower(pixel_values=x, output_hidden_states=True)
        features = out.last_hidden_state
        if self.layer is not None:
            features = self.tower.post_layernorm(out.hidden_states[self.layer + 1])
        B, P, C = features.shape
        return self.connector(features.reshape(B, P // self.concat, C * self.concat))

    @torch.no_grad()
    def logits(self, pixels, ids):
        """ids [T] of one text -> logits [T, V] of the positions that predict them."""
        image = self.image_tokens(pixels[None])
        text = self.lm.get_input_embeddings()(ids[None, :-1])
        return self.lm(inputs_embeds=torch.cat([image, text], 1)).logits[0, image.shape[1] - 1:]

    @torch.no_grad()
    def cross_entropy(self, samples):
        """Mean over all text tokens of [(pixels, ids), ...]."""
        terms = [torch.nn.functional.cross_entropy(self.logits(p, ids), ids, reduction="none") for p, ids in samples]
        return float(torch.cat(terms).mean())

    @torch.no_grad()
    def generate(self, pixels, count, forbidden, ends=(END,)):
        """Greedy ids, without the end token, which may not come first."""
        out = self.lm.generate(inputs_embeds=self.image_tokens(pixels[None]), do_sample=False, max_new_tokens=count,
                               suppress_tokens=forbidden, begin_suppress_tokens=list(ends), eos_token_id=list(ends),
                               pad_token_id=PAD)[0].tolist()
        return out[:next((i for i, token in enumerate(out) if token in ends), len(out))]


def randomise(module, dtype):
    """Weights that keep activations of order 1 and give logits of some spread, all representable in dtype."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif p.ndim == 1:
                p.copy_(0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) / np.sqrt(p[0].numel()) * (4 if "lm_head" in name else 1.2))
            p.copy_(p.to(dtype).float())
    module.eval()


# ---- tokenizers ----

def tokenizer_json(count, kind="byte_level", added=()):
    """A tokenizer of `count` tokens of which every sequence can be told from its text. added: more special tokens."""
    words = [f"Q{i:03d};" for i in range(len(SPECIAL), count)]
    vocabulary = {text: i for i, text in enumerate(SPECIAL + words)}
    if kind == "llama":
        for i, b in enumerate(range(256)):
            vocabulary.pop(f"Q{i + 3:03d};")
            vocabulary[f"<0x{b:02X}>"] = i + 3
    special = {**dict(zip(SPECIAL, range(3))), **{text: count + i for i, text in enumerate(added)}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": kind == "llama", "vocab": vocabulary,
             "merges": []}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    llama = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    normalizer = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special.items()],
        "normalizer": normalizer if kind == "llama" else None,
        "pre_tokenizer": None if kind == "llama" else byte_level, "post_processor": None,
        "decoder": llama if kind == "llama" else byte_level, "model": model}, ensure_ascii=False)


def write_tokenizer(folder, text, with_settings=True):
    (folder / "tokenizer.json").write_text(text, "utf-8")
    if with_settings:
        llama = json.loads(text)["model"]["byte_fallback"]
        settings = {"tokenizer_class": "LlamaTokenizer" if llama else "PreTrainedTokenizerFast", "eos_token": "</s>",
                    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False,
                                  "rstrip": False, "single_word": False, "special": True},
                    "pad_token": "<pad>", "model_max_length": 10**30}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


# ---- folders ----

def save(folder, tensors, form="safetensors"):
    """form: safetensors or bin, with .shards for three shards."""
    kind, tensors = form.split(".")[0], {name: t.contiguous().clone() for name, t in tensors.items()}
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")

    def write(path, part):
        save_file(part, path, {"format": "pt"}) if kind == "safetensors" else torch.save(part, path)
    if not form.endswith(".shards"):
        return write(folder / f"{stem}.{ending}", tensors)
    names, where = list(tensors), {}
    for i in range(3):
        shard = f"{stem}-{i + 1:05d}-of-00003.{ending}"
        write(folder / shard, {name: tensors[name] for name in names[i::3]})
        where |= {name: shard for name in names[i::3]}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def state(module, prefix, dtype, tied=False):
    return {prefix + name: t.to(TYPES[dtype]) for name, t in module.state_dict().items()
            if not (tied and name == "lm_head.weight")}


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def write_v2(folder, tiny, form="safetensors"):
    """DeTikZify v2's names: the language model without its own `model.`, the head at the top."""
    folder.mkdir()
    tensors = state(tiny.tower, "model.vision_model.vision_model.", tiny.dtype)
    tensors |= state(tiny.connector, "model.connector.modality_projection.proj.", tiny.dtype)
    tensors |= state(tiny.lm.model, "model.text_model.", tiny.dtype)
    if not tiny.lm.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tiny.lm.lm_head.weight.detach().to(TYPES[tiny.dtype])
    save(folder, tensors, form)
    write_config(folder, {"model_type": "detikzify", "architectures": ["DetikzifyForConditionalGeneration"],
                          "image_token_id": BOS, "concat_factor": tiny.concat,
                          "tie_word_embeddings": tiny.lm.config.tie_word_embeddings,
                          "text_config": tiny.lm.config.to_dict(),
                          "vision_config": {**tiny.siglip.config.to_dict(), "model_type": "detikzify"}})


def write_v1(folder, tiny, form="safetensors", **more):
    """DeTikZify v1's names, without the tower."""
    folder.mkdir()
    tensors = state(tiny.lm, "", tiny.dtype, tiny.lm.config.tie_word_embeddings)
    tensors |= state(tiny.connector, "model.mm_projector.", tiny.dtype)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)     # of older versions of transformers
    save(folder, tensors, form)
    write_config(folder, {**tiny.lm.config.to_dict(), "model_type": "detikzify", "use_mm_proj": True,
                          "architectures": ["DetikzifyForCausalLM"], "vision_tower": "vit_of_our_own",
                          "concat_patches": tiny.concat, "mm_hidden_size": tiny.connector.in_features,
                          "patch_token_id": BOS, **more})


def write_lm(folder, tiny, form="safetensors"):
    folder.mkdir()
    save(folder, state(tiny.lm, "", tiny.dtype, tiny.lm.config.tie_word_embeddings), form)
    write_config(folder, tiny.lm.config.to_dict())


def write_lm_5(folder, tiny, form="safetensors"):
    """A language model as transformers 5 writes its configuration."""
    write_lm(folder, tiny, form)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if "rope_parameters" not in config:
        rope = {key: config.pop(key, None) for key in ("rope_theta", "rope_scaling")}
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": rope["rope_theta"], **(rope["rope_scaling"] or {})}
    config["dtype"] = config.pop("torch_dtype", None) or "float32"
    if config["model_type"].startswith("qwen"):
        config |= {"layer_types": ["full_attention"] * config["num_hidden_layers"], "sliding_window": None}
    write_config(folder, config)


def write_tower(folder, tiny, form="safetensors"):
    """transformers' own naming, a SiglipVisionModel or a whole SiglipModel."""
    folder.mkdir()
    save(folder, state(tiny.siglip, "", tiny.vision_dtype), form)
    write_config(folder, tiny.siglip.config.to_dict())


TIMM = {"embeddings.patch_embedding": "patch_embed.proj", "layer_norm1": "norm1", "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj", "post_layernorm": "norm", "encoder.layers": "blocks"}


def write_timm(folder, tiny, form="safetensors", prefix=""):
    """timm's naming: joined q, k and v, a leading dimension at the positions, and a pooling head."""
    folder.mkdir()
    hf, c, tensors = tiny.tower.state_dict(), tiny.tower.config, {}
    for name, tensor in hf.items():
        if name.startswith("head.") or ".k_proj." in name or ".v_proj." in name:
            continue
        if name == "embeddings.position_embedding.weight":
            name, tensor = "pos_embed", tensor[None]
        if ".q_proj." in name:
            tensor = torch.cat([hf[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"])
            name = name.replace("self_attn.q_proj", "attn.qkv")
        for old, new in TIMM.items():
            name = name.replace(old, new)
        tensors[prefix + name] = tensor.to(TYPES[tiny.vision_dtype])
    tensors[prefix + "attn_pool.latent"] = torch.zeros(1, 1, c.hidden_size)
    save(folder, tensors, form)
    write_config(folder, {
        "architecture": "vit_base_patch16_siglip_224", "num_classes": 0, "global_pool": "map",
        "model_args": {"patch_size": c.patch_size, "embed_dim": c.hidden_size, "depth": c.num_hidden_layers,
                       "num_heads": c.num_attention_heads, "mlp_ratio": c.intermediate_size / c.hidden_size + 1e-9,
                       "act_layer": "gelu" if c.hidden_act == "gelu" else "gelu_tanh"},
        "pretrained_cfg": {"input_size": [3, c.image_size, c.image_size]}})


# ---- what an exported folder holds, loaded by transformers ----

def load_export(folder):
    """A Tiny from a folder that export_hf.py wrote. Every tensor must find its place and every place its tensor."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    v2 = "text_config" in config
    if v2:
        vision = {k: v for k, v in config["vision_config"].items() if k != "model_type"}
        text, concat = dict(config["text_config"]), config["concat_factor"]
    else:
        timm = json.loads((folder / "vision" / "config.json").read_text())
        args = timm["model_args"]
        vision = {"hidden_size": args["embed_dim"], "patch_size": args["patch_size"], "image_size": args["img_size"],
                  "num_hidden_layers": args["depth"], "num_attention_heads": args["num_heads"],
                  "intermediate_size": int(args["embed_dim"] * args["mlp_ratio"]), "vision_use_head": False,
                  "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[args["act_layer"]]}
        text, concat = dict(config), config["concat_patches"]
        tensors |= timm_to_hf(load_file(folder / "vision" / "model.safetensors"))
    heads, width = text["num_attention_heads"], text["hidden_size"]
    family = text["model_type"] if v2 else "llama"
    if family == "llama" and text["head_dim"] * heads != width:
        family = "mistral"      # this version's Llama has no head_dim
    for key in ("model_type", "architectures"):
        text.pop(key, None)
    text["tie_word_embeddings"] = tied = config["tie_word_embeddings"]
    if family == "mistral":
        text["sliding_window"] = None
    tiny = Tiny(vision, text, concat=concat, bias=not v2, family=family)
    connector = "model.connector.modality_projection.proj." if v2 else "model.mm_projector."
    put(tiny.tower, tensors, "model.vision_model.vision_model." if v2 else "vision_model.")
    put(tiny.connector, tensors, connector)
    put(tiny.lm.model, tensors, "model.text_model." if v2 else "model.")
    if not tied:
        put(tiny.lm.lm_head, tensors, "lm_head.")
    assert not tensors, f"left over: {sorted(tensors)}"
    return tiny


def put(module, tensors, prefix):
    """Moves tensors into a module, all of its own and no other."""
    wanted = module.state_dict()
    module.load_state_dict({name: tensors.pop(prefix + name).float() for name in list(wanted)}, strict=True)


def timm_to_hf(tensors):
    renamed = {}
    for name, tensor in tensors.items():
        for hf, timm in TIMM.items():
            if timm != "norm" or name.startswith("norm."):
                name = name.replace(timm + ".", hf + ".")
        if ".attn.qkv." in name:
            for x, part in zip("qkv", tensor.chunk(3)):
                renamed["vision_model." + name.replace("attn.qkv", f"self_attn.{x}_proj")] = part
            continue
        if name == "pos_embed":
            name, tensor = "embeddings.position_embedding.weight", tensor[0]
        renamed["vision_model." + name] = tensor
    return renamed


# ---- samples ----

def image(size, seed):
    """PNG bytes and pixels of a square image that preparation leaves as it is."""
    pixels = np.random.RandomState(seed).randint(0, 250, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue(), torch.from_numpy(pixels)
