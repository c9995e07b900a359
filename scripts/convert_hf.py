#!/usr/bin/env python3
"""Converts a model from a local folder in the layout of the Hugging Face Hub to a tikz.c file, which contains the
configuration and the tokenizer.

    convert_hf.py DETIKZIFY_V2 OUT.safetensors
    convert_hf.py DETIKZIFY_V1 --vision SIGLIP OUT.safetensors
    convert_hf.py SMOLVLM OUT.safetensors                      and Idefics3
    convert_hf.py LM --vision SIGLIP OUT.safetensors           a new combination, with an untrained connector

LM is a folder of a Llama (Llama 3.2, SmolLM2, TinyLlama, ...), Mistral, Qwen2 or Qwen3; a SigLIP 2 of one resolution is a SIGLIP.

Weights are converted a few megabytes at a time, whatever the size of the model is. The same sources and options give
the same bytes.
"""
import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tikzc  # first, because it says whether a package is missing
import numpy as np

import files
import hub.config as hub
import hub.idefics3 as idefics3
from hub.files import Section, read_json, shown
from hub.tokenizer import read_tokenizer
from hub.weights import FLOATS, check_folder, folder_tensors, pieces, same_values
from options import whole
from progress import Progress
from tikzc import FormatError

DETIKZIFY_POSITIONS = 2048      # context length of DeTikZify's models, image and text together
KINDS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


@dataclass
class Source:
    """The tensors of a folder, and the entries to be made of them."""
    folder: Path
    tensors: dict
    entries: list = field(default_factory=list)
    left_out: set = field(default_factory=set)      # names of tensors that are deliberately not converted


@dataclass
class Model:
    config: dict
    sources: list
    fresh: list                 # entries that are randomly initialized
    image: object = None        # id of the token at the image positions, None: choose one
    ends: object = None         # id or ids that end a sequence, as in config.json
    prompted: bool = False      # there are markers around the image


# ---- the three kinds of checkpoints ----

def read_tower(folder):
    """Reads a SigLIP folder -> (vision configuration, naming, prefix, Source)."""
    folder = Path(folder)
    check_folder(folder)
    config = read_json(folder / "config.json", needed=not (folder / "open_clip_config.json").exists())
    if config is None:
        s = Section(read_json(folder / "open_clip_config.json"), str(folder / "open_clip_config.json"))
        tower = s.section("model_cfg").section("vision_cfg")
        config = {"architecture": tower.get("timm_model_name", str)}
    source = Source(folder, folder_tensors(folder, note))
    s = Section(config, str(folder / "config.json"))
    if "architecture" in config:
        prefix = "visual.trunk." if "visual.trunk.pos_embed" in source.tensors else ""
        return hub.timm_config(s), "timm", prefix, source
    kind = s.get("model_type", str, "(missing)")
    if kind not in ("siglip", "siglip_vision_model"):
        raise FormatError(f"{s.where}: model_type {kind} is not supported as a vision tower; expected siglip or "
                          f"siglip_vision_model, or a folder of timm's with an architecture.")
    prefix = hub.tower_prefix(source.tensors)
    source.left_out |= hub.pooling_head(source.tensors, prefix)
    return hub.vision_config(s.section("vision_config") if kind == "siglip" else s, hub.SIGLIP), "hf", prefix, source


def add_tower(model, folder, keep_layer=None):
    """Adds the vision tower of a separate folder. keep_layer: the layer whose features are used, -1 for the last;
    later layers are left out."""
    vision, naming, prefix, source = read_tower(folder)
    everything = {part for e in hub.vision_entries(vision, naming, prefix) for part, _ in e.parts}
    if keep_layer is not None:
        depth = vision["vision.layers"]
        vision["vision.layers"] = max(-depth, min(keep_layer, depth - 1)) % depth + 1
    model.config |= vision
    source.entries = list(hub.vision_entries(vision, naming, prefix))
    source.left_out |= everything - {part for e in source.entries for part, _ in e.parts}
    model.sources.insert(0, source)


def read_v1(s, folder, options):
    """DeTikZify v1: a Llama checkpoint with connector, and a vision tower in another folder."""
    config = s.values
    tower = options.vision or (folder / "vision" if (folder / "vision").is_dir() else None)
    if tower is None:
        raise FormatError(f"{s.where}: a DeTikZify v1 model, whose vision tower ({config.get('vision_tower')}) lies "
                          f"elsewhere; name its folder with --vision.")
    model = Model(hub.lm_config(s, positions(folder, options)), [Source(folder, folder_tensors(folder, note))], [])
    add_tower(model, tower, s.get("feature_layer", int, -1))
    model.config |= {"connector.concat": s.size("concat_patches", 3), "connector.bias": True}
    known = hub.timm_architecture(str(config.get("vision_tower")))
    if known and known["vision.activation"] != model.config["vision.activation"]:
        note(f"the activation is {known['vision.activation']}, as in timm's {config['vision_tower']}, which the "
             f"model was trained with")
        model.config["vision.activation"] = known["vision.activation"]
    add_lm(model, hub.V1, with_connector=True)
    model.image = config.get("patch_token_id")
    return model


def read_v2(s, folder, options):
    """DeTikZify v2 and v2.5: one checkpoint."""
    if options.vision:
        raise FormatError(f"{s.where}: a DeTikZify v2 model brings its own vision tower; leave out --vision.")
    text = s.section("text_config")
    if text.get("model_type", str, "llama") not in hub.LM_FAMILIES:
        raise FormatError(f"{text.where}: model_type {text.values['model_type']} is not supported; expected one of "
                          f"{', '.join(hub.LM_FAMILIES)}.")
    if (folder / "adapter").exists():
        note(f"{folder / 'adapter'}: left out; it is for captions, and images do not need it")
    text.values["tie_word_embeddings"] = s.get("tie_word_embeddings", bool, False)
    source = Source(folder, folder_tensors(folder, note))
    vision = hub.vision_config(s.section("vision_config"), hub.DETIKZIFY)
    model = Model(hub.lm_config(text, positions(folder, options)) | vision, [source], [])
    model.config |= {"connector.concat": s.size("concat_factor", 3), "connector.bias": False}
    prefix = hub.tower_prefix(source.tensors, hub.V2["tower"])
    source.left_out |= hub.pooling_head(source.tensors, prefix)
    source.entries = list(hub.vision_entries(model.config, "hf", prefix))
    add_lm(model, hub.V2, with_connector=True)
    model.image = s.get("image_token_id", int, 128005)
    return model


def read_idefics3(s, folder, options):
    """Idefics3 and SmolVLM: one checkpoint."""
    if options.vision:
        raise FormatError(f"{s.where}: a model that brings its own vision tower; leave out --vision.")
    text, vision = s.section("text_config"), s.section("vision_config")
    if text.get("model_type", str, "llama") != "llama":
        raise FormatError(f"{text.where}: model_type {text.values['model_type']} is not supported; expected llama.")
    text.values["tie_word_embeddings"] = s.get("tie_word_embeddings", bool, False)
    source = Source(folder, folder_tensors(folder, note))
    model = Model(hub.lm_config(text, positions(folder, options)) | hub.vision_config(vision, idefics3.VISION), [source], [])
    model.config |= {"connector.kind": "shuffle", "connector.scale_factor": s.size("scale_factor", 2, 16),
                     "connector.bias": False}
    side = model.config["vision.image_size"] // model.config["vision.patch"]
    if idefics3.wrong_positions(side):
        note(f"{s.where}: with {side} patches a side, Idefics3's code gives some the position embedding of their neighbours, since it "
             f"rounds down in fp32; here each has its own, so the logits differ")
    idefics3.check_preprocessing(folder, note)
    source.entries = list(hub.vision_entries(model.config, "hf", idefics3.NAMES["vision"]))
    add_lm(model, idefics3.NAMES, with_connector=True)
    model.image, model.prompted = s.get("image_token_id", int, 128257), True
    return model


def read_pair(s, folder, options):
    """A language model and a SigLIP folder, to be joined by a new connector."""
    if not options.vision:
        raise FormatError(f"{s.where}: a language model alone; name a SigLIP folder to go with it with --vision.")
    model = Model(hub.lm_config(s, positions(folder, options)), [Source(folder, folder_tensors(folder, note))], [])
    add_tower(model, options.vision)
    concat = options.concat or 3
    model.config |= {"connector.concat": concat, "connector.bias": options.connector_bias}
    P = hub.patches(model.config)
    if P % concat:
        raise FormatError(f"{options.vision}: its {P} patches cannot be joined in groups of {concat}; choose "
                          f"another --concat, such as {', '.join(str(n) for n in range(1, 10) if P % n == 0)}.")
    model.fresh = list(hub.connector_entries(model.config, "connector"))
    add_lm(model, {"lm": "model.", "head": "lm_head.weight"}, with_connector=False)
    return model


def add_lm(model, names, with_connector):
    source = model.sources[-1]
    if with_connector:
        source.entries += hub.connector_entries(model.config, names["connector"])
    source.entries += hub.lm_entries(model.config, names["lm"], names["head"])
    if model.config["lm.tied"]:
        source.left_out.add(names["head"])
        head, embed = (source.tensors.get(name) for name in (names["head"], f"{names['lm']}embed_tokens.weight"))
        if head and embed and not same_values(head, embed):
            note(f"{head.path}: {names['head']} differs from the embedding, but config.json ties the two, so it is "
                 f"left out; to keep it, set tie_word_embeddings to false there")


def read_model(options):
    folder = Path(options.source)
    check_folder(folder)
    s = Section(read_json(folder / "config.json"), str(folder / "config.json"))
    kind = s.get("model_type", str, "(missing)")
    pair = kind in hub.LM_FAMILIES and "mm_hidden_size" not in s.values
    if not pair and (options.concat or options.connector_bias):
        raise FormatError(f"{s.where}: a model with a connector of its own; leave out --concat and --connector-bias.")
    if options.prompt is not None and kind not in idefics3.CLASSES:
        raise FormatError(f"{s.where}: --prompt goes with a model of idefics3 or smolvlm, and this is one of {kind}.")
    if kind in idefics3.CLASSES:
        model, text = read_idefics3(s, folder, options), s.section("text_config").values
    elif kind == "detikzify" and "text_config" in s.values:
        model, text = read_v2(s, folder, options), s.section("text_config").values
    elif "mm_hidden_size" in s.values or (kind == "detikzify" and "use_mm_proj" in s.values):
        model, text = read_v1(s, folder, options), s.values
    elif pair:
        model, text = read_pair(s, folder, options), s.values
    elif kind in ("siglip", "siglip_vision_model") or "architecture" in s.values:
        raise FormatError(f"{s.where}: a vision tower; name the folder of the language model, and the tower's with "
                          f"--vision.")
    else:
        built = shown(s.values.get("architectures"))
        moe = " it is a mixture of experts, and blocks here have one MLP;" if "num_experts" in s.values else ""
        raise FormatError(f"{s.where}: model_type {kind} (architectures: {built}) is not supported;{moe} expected a "
                          f"detikzify, idefics3 or smolvlm model, or one of {', '.join(hub.LM_FAMILIES)} with --vision.")
    generation = read_json(folder / "generation_config.json", needed=False) or {}
    ends = (values.get("eos_token_id") for values in (generation, text, s.values))
    model.ends = next((end for end in ends if end is not None), None)
    hub.check_config(model.config, str(folder))
    return model


def positions(folder, options):
    """The context length: --positions, or the model_max_length of the tokenizer, but at most that of DeTikZify."""
    settings = read_json(tokenizer_folder(folder, options) / "tokenizer_config.json", needed=False) or {}
    longest = settings.get("model_max_length")
    return options.positions or min(longest if isinstance(longest, int) else 1 << 30, DETIKZIFY_POSITIONS)


def tokenizer_folder(folder, options):
    return Path(options.tokenizer or folder)


# ---- checking and writing ----

def check_source(source):
    """Checks that every tensor exists, with its shape and a floating-point type, and that none is left over."""
    wanted = {part: shape for e in source.entries for part, shape in e.parts}
    missing = [name for name in wanted if name not in source.tensors]
    if missing:
        raise FormatError(f"{source.folder}: {some(missing)} missing.")
    for name, shape in wanted.items():
        stored = source.tensors[name]
        if tuple(stored.shape) != shape:
            raise FormatError(f"{stored.path}: tensor {name} has shape {list(stored.shape)}, config.json asks for "
                              f"{list(shape)}.")
        if stored.kind not in FLOATS:
            raise FormatError(f"{stored.path}: tensor {name} is of type {stored.kind}, expected BF16, F16 or F32.")
    left = [name for name in source.tensors if name not in wanted and name not in source.left_out
            and not any(pattern.fullmatch(name) for pattern in hub.UNUSED)]
    if left:
        raise FormatError(f"{source.folder}: {some(left)} unknown; the model has no place for what they do.")


def some(names):
    many = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {', '.join(names[:5])}{many} " \
           f"{'is' if len(names) == 1 else 'are'}"


def fresh_values(e, seed):
    """The values of an untrained connector, initialized as in vision.h; the bias is 0."""
    if len(e.shape) == 1:
        return np.zeros(e.shape, np.float32)
    return (np.random.RandomState(seed).standard_normal(e.shape) / math.sqrt(3 * e.shape[1])).astype(np.float32)


def write(path, model, tokenizer, metadata, kind, seed):
    arrays = {name: np.ascontiguousarray(array) for name, array in tokenizer.tensors().items()}
    kinds = {"int32": "I32", "uint8": "U8", "float32": "F32"}
    places = {e.name: (e, source.tensors) for source in model.sources for e in source.entries}
    places |= {e.name: (e, None) for e in model.fresh}
    names = [name for part in ("vision.", "connector.", "lm.") for name in places if name.startswith(part)]
    specs = [(name, kind, places[name][0].shape) for name in names]
    specs += [(name, kinds[array.dtype.name], array.shape) for name, array in arrays.items()]
    metadata = {"format": tikzc.FORMAT} | hub.config_text(model.config) | tokenizer.metadata() | metadata
    with tikzc.SafetensorsWriter(path, specs, metadata) as w, \
            Progress("converting, MB", w.bytes_left // 10**6) as bar:
        total = w.bytes_left
        for name in w.order:
            for data in values_of(*places[name], kind, seed) if name in places else [arrays[name].tobytes()]:
                w.write(data)
                bar.update((total - w.bytes_left) // 10**6)


def values_of(e, tensors, kind, seed):
    """Yields the bytes of one tensor of the file, in pieces. tensors: those of its source, None: it is random."""
    if tensors is None:
        values = fresh_values(e, seed)
        yield {"BF16": tikzc.bf16_from_float, "F32": np.float32, "F16": np.float16}[kind](values).tobytes()
    else:
        for part, _ in e.parts:
            yield from pieces(tensors[part], kind)


def note(sentence):
    print(f"convert_hf.py: note: {files.printable(sentence)}", file=sys.stderr)


def convert(options):
    files.check_output(options.out)
    model = read_model(options)
    for source in model.sources:
        check_source(source)
    tokenizer, metadata = read_tokenizer(tokenizer_folder(options.source, options), model.config["lm.vocab"],
                                         model.ends, model.image, options.end_token, note)
    if model.prompted:
        prompt, guessed = idefics3.read_prompt(Path(options.source), tokenizer, options.prompt)
        idefics3.set_prompt(tokenizer, prompt, options.source)
        if guessed:
            note(f"{options.source}: every image gets the prompt {json.dumps(prompt)}; --prompt sets another one")
        metadata = idefics3.without_template(metadata)
        if len(tokenizer.before_image + tokenizer.after_image) + hub.image_tokens(model.config) >= model.config["lm.max_positions"]:
            raise FormatError(f"{options.source}: {model.config['lm.max_positions']} positions leave no room for text after the "
                              f"image and the prompt.")
    metadata["hub.preprocess"] = "plain"    # infer cleans the model's images only when asked
    for source in model.sources:
        if any(Path(stored.path).resolve() == Path(options.out).resolve() for stored in source.tensors.values()):
            raise FormatError(f"{options.out}: is one of the files to convert; name another file.")
    embed = next(e for e in model.sources[-1].entries if e.name == "lm.embed")
    kind = KINDS.get(options.dtype) or model.sources[-1].tensors[embed.parts[0][0]].kind
    write(options.out, model, tokenizer, metadata, kind, options.seed)
    c, count = model.config, sum(math.prod(e.shape) for source in model.sources for e in source.entries)
    print(f"{files.printable(options.out)}: {count / 1e6:.2f} M parameters in {kind}, "
          f"{hub.image_tokens(c)} image tokens of {c['lm.max_positions']} positions, {len(tokenizer.tokens)} tokens of {c['lm.vocab']} rows"
          + (", the connector is untrained" if model.fresh else ""))


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="folder of the model, or of the language model")
    parser.add_argument("out", metavar="OUT", help="the tikz.c file")
    parser.add_argument("--vision", metavar="DIR", help="folder of the SigLIP tower, timm's or Hugging Face's")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder with tokenizer.json (default: SRC)")
    parser.add_argument("--end-token", metavar="TEXT", help="the token that ends a text (default: the tokenizer's)")
    parser.add_argument("--dtype", choices=["auto", *KINDS], default="auto",
                        help="type of all weights (default: that of the language model's embedding; DeTikZify v1 "
                        "brings its tower to the language model's type, too)")
    parser.add_argument("--positions", type=whole(1, 1 << 24), metavar="N",
                        help=f"most positions, image and text (default: the model's, the tokenizer's or "
                        f"{DETIKZIFY_POSITIONS}, whichever is least)")
    parser.add_argument("--concat", type=whole(1, 1 << 24), metavar="N",
                        help="of a new pair: patches joined into one image token (default 3)")
    parser.add_argument("--prompt", metavar="TEXT",
                        help="of Idefics3 and SmolVLM: the text around <image>, with <image> in it (default: that of an exported "
                        "model, else a question without a text)")
    parser.add_argument("--connector-bias", action="store_true", help="of a new pair: the connector has a bias")
    parser.add_argument("--seed", type=whole(0, (1 << 32) - 1), default=1, metavar="N",
                        help="of a new pair's connector (default 1)")
    return parser


def main():
    options = parser().parse_args()
    try:
        convert(options)
    except FormatError as e:
        files.fail("convert_hf.py", e)
    except OSError as e:
        files.fail("convert_hf.py", f"{files.describe(e, options.out)}.")
    except KeyboardInterrupt:
        sys.exit("convert_hf.py: interrupted; nothing was written.")


if __name__ == "__main__":
    main()
