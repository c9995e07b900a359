"""Idefics3 and SmolVLM: checkpoints of a SigLIP tower, a pixel shuffle with one linear map, and a language model, whose prompt
has markers around the image:

    TEXT <fake_token_around_image> <global-img> <image> * N <fake_token_around_image> TEXT

The markers and texts are tokenizer.before_image and tokenizer.after_image of a tikz.c file. `<image>` alone stands for all of
that in a text for transformers, whose processor writes the markers. Here is one image, seen once and as a whole:
do_image_splitting is off.

Sources: models/idefics3 and models/smolvlm of transformers 4.46 to 5.24.
"""
import json
import re

import tikzc
from hub.files import Section, compact, parse_object, read_json, read_text
from tikzc import FormatError

IMAGE, FAKE, GLOBAL, UTTERANCE = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
MARKERS = (FAKE, GLOBAL, IMAGE, UTTERANCE)
VISION = dict(hidden_size=1152, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16, image_size=224,
              patch_size=32)        # the defaults of Idefics3VisionConfig and SmolVLMVisionConfig
NAMES = {"vision": "model.vision_model.", "connector": "model.connector.modality_projection.proj",
         "lm": "model.text_model.", "head": "lm_head.weight"}
CLASSES = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}     # model_type and what the names of its classes begin with

# A chat template that writes the one prompt of a model where the image is, whatever text is beside it. A content that is a
# string stands for the image itself: llama.cpp puts its own marker there.
TEMPLATE = """\
{%%- set before = %s -%%}
{%%- set after = %s -%%}
{%%- for message in messages -%%}
{%%- if message['content'] is string -%%}{{ before + message['content'] + after }}
{%%- else -%%}
{%%- for part in message['content'] -%%}
{%%- if part['type'] == 'image' -%%}{{ before + '<image>' + after }}{%%- endif -%%}
{%%- endfor -%%}
{%%- endif -%%}
{%%- endfor -%%}"""
IN_TEMPLATE = re.compile(r'\{%- set before = ("(?:[^"\\]|\\.)*") -%\}\n\{%- set after = ("(?:[^"\\]|\\.)*") -%\}\n')


# ---- prompts ----

def split_prompt(text):
    """"A<image>B" -> ("A" and the markers before the image, the marker after it and "B")."""
    parts = text.split(IMAGE)
    if len(parts) != 2:
        raise FormatError(f"The prompt '{text[:100]}' names {IMAGE} {len(parts) - 1} times; expected once, where the image "
                          f"is.")
    return parts[0] + FAKE + GLOBAL, FAKE + parts[1]


def marker_text(tokenizer, ids):
    """The text of ids, that of special tokens included."""
    return b"".join(tokenizer.tokens[i] for i in ids).decode("utf-8", "replace")


def set_prompt(tokenizer, text, where):
    """Sets a tokenizer's markers to those of a prompt such as "<image>"."""
    known = {token for token, special in zip(tokenizer.tokens, tokenizer.special) if special}
    missing = [marker for marker in MARKERS if marker.encode() not in known]
    if missing:
        raise FormatError(f"{where}: the tokenizer has no special token {missing[0]}, which stands beside the image.")
    parts = split_prompt(text)
    tokenizer.before_image, tokenizer.after_image = (tokenizer.encode(part)[:-1] for part in parts)
    for part, ids in zip(parts, (tokenizer.before_image, tokenizer.after_image)):
        kept = marker_text(tokenizer, ids)
        if kept != part and tokenizer.kind == "byte_level_bpe":     # the other kind puts a space before a text
            part, kept = (text.replace(FAKE, "").replace(GLOBAL, "")[:100] for text in (part, kept))
            raise FormatError(f"{where}: the tokenizer does not keep the prompt: '{part}' becomes '{kept}'.")
    if max(len(tokenizer.before_image), len(tokenizer.after_image)) > tikzc.MAX_MARKERS:
        raise FormatError(f"{where}: the prompt has more than {tikzc.MAX_MARKERS} tokens before or after the image.")


def read_prompt(folder, tokenizer, wanted):
    """The prompt of a folder, as above: `wanted`; else that of an exported model; else a question without a text, as the
    published models' chat templates write it. -> (text, whether that was a guess)"""
    if wanted is not None:
        return wanted, False
    found = IN_TEMPLATE.search(chat_template(folder))
    if found:
        return IMAGE.join(json.loads(part) for part in found.groups()), False
    begin = next((t for t in ("<|im_start|>", "<|begin_of_text|>") if t.encode() in tokenizer.tokens), "")
    return f"{begin}User:{IMAGE}{UTTERANCE}\nAssistant:", True


def chat_template(folder):
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = (read_json(folder / name, needed=False) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    return ""


def check_preprocessing(folder, note):
    """Raises an error where images are normalised otherwise than here, and says that they are not split."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        s = read_json(path, needed=False) or {}
        s = Section(s.get("image_processor", s), str(path))     # transformers 5 writes the one into the other
        for key in ("image_mean", "image_std"):
            s.refuse(key, [0.5] * 3)
        if s.get("do_image_splitting", bool, False):
            note(f"{path}: do_image_splitting is left out: an image is seen once, as a whole, and not in parts")


def without_template(metadata):
    """The metadata of a tokenizer without its chat template, from which the prompt has been read, and its processor."""
    key = "hub.tokenizer_config"
    settings = parse_object(metadata[key], key)
    left = {name: value for name, value in settings.items() if name not in ("chat_template", "processor_class")}
    return metadata | {key: compact(left, key)}


def prompt_text(x):
    """(before, after) of an opened tikz.c file: its markers as texts without those that the processor writes. An error says
    why transformers would not make the same ids of them."""
    t, where = x.tokenizer, f"{x.path}: Idefics3's prompt cannot be made"
    ids = {name: i for i, name in x.names.items()}
    missing = [marker for marker in MARKERS if marker not in ids]
    if missing:
        raise FormatError(f"{where}: its tokenizer has no token {missing[0]}; scripts/add_markers.py makes a tokenizer with "
                          f"all of them, to train a student with.")
    before, after = marker_text(t, t.before_image), marker_text(t, t.after_image)
    if not before.endswith(FAKE + GLOBAL) or not after.startswith(FAKE):
        raise FormatError(f"{where}: the tokens {FAKE} and {GLOBAL} do not stand before the image, or {FAKE} not after it; "
                          f"transformers' processor always puts them there.")
    if t.begin is not None:
        raise FormatError(f"{where}: its texts begin with {x.names[t.begin]}, which here stands after the image, and there "
                          f"before everything.")
    before, after = before.removesuffix(FAKE + GLOBAL), after.removeprefix(FAKE)
    want = [*t.before_image, ids[IMAGE], *t.after_image]
    for text in (before, before.removeprefix(x.names[want[0]])):    # what the tokenizer itself puts first
        if encode(x, text + FAKE + GLOBAL + IMAGE + FAKE + after) == want:
            return text, after
    raise FormatError(f"{where}: the tokenizer of transformers does not make the same ids of "
                      f"'{(before + IMAGE + after)[:100]}'.")


def encode(x, text):
    import tokenizers
    try:
        return tokenizers.Tokenizer.from_str(tikzc.with_plain_merges(x.tokenizer.json_text)).encode(text).ids
    except Exception as e:      # the package raises nothing more specific
        raise FormatError(f"{x.path}: the package tokenizers cannot use the tokenizer ({str(e)[:200]}).")


def add_markers(tokenizer, where):
    """The same tokenizer with the markers that it lacks as special tokens behind its last ones."""
    parsed = parse_object(tokenizer.json_text, where)
    added = parsed["added_tokens"] = parsed.get("added_tokens") or []
    there, count = {token["content"] for token in added}, len(tokenizer.tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [marker for marker in MARKERS if marker not in there]
    if any(marker in parsed["model"]["vocab"] for marker in new):
        raise FormatError(f"{where}: one of {', '.join(MARKERS)} is an ordinary token of the tokenizer.")
    added += [{"id": count + i, "content": marker, **flags} for i, marker in enumerate(new)]
    result = tikzc.Tokenizer(tokenizer.tokens + [marker.encode() for marker in new], tokenizer.special + [True] * len(new),
                             tokenizer.end, compact(parsed, where), tokenizer.kind, tokenizer.byte_tokens, tokenizer.begin,
                             tokenizer.strip)
    result.more_ends, result.task = tokenizer.more_ends, tokenizer.task
    return result


# ---- positions ----

# Sides of a square of patches, up to 128, in which Idefics3 gives some rows the position embedding of the row before: it
# divides in fp32, and rounds down. Measured with transformers 4.46 and 5.24, which differ for a few.
WRONG_SIDES = {
    19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 52, 54, 55, 58, 59, 61, 62, 67, 68, 71, 72, 73, 74, 75, 76, 77, 79,
    80, 82, 83, 84, 86, 87, 93, 94, 96, 97, 98, 99, 100, 101, 103, 104, 107, 108, 109, 110, 111, 112, 113, 114, 115,
    116, 118, 121, 122, 123, 124, 125, 127}


def wrong_positions(side):
    """Whether Idefics3's positions are wrong for this many patches a side, or may be: larger ones were not measured."""
    return side > 128 or side in WRONG_SIDES


# ---- configurations ----

def refuse(x):
    """Raises an error if a tikz.c file cannot become an Idefics3 checkpoint."""
    c = x.config
    if c.get("connector.kind") != "shuffle":
        raise FormatError(f"{x.path}: its connector joins patches that follow each other (connector.concat), and Idefics3's "
                          f"joins blocks of them; train a student with connector.kind=shuffle.")
    if c["connector.bias"]:
        raise FormatError(f"{x.path}: its connector has a bias, and Idefics3's has none; train a student with "
                          f"connector.bias=false.")
    if c["lm.qkv_bias"] or c["lm.qk_norm"]:
        raise FormatError(f"{x.path}: its decoder is a Qwen's, and Idefics3 is exported with a Llama's; train a student without "
                          f"lm.qkv_bias and lm.qk_norm.")
    side = c["vision.image_size"] // c["vision.patch"]
    if wrong_positions(side):
        raise FormatError(f"{x.path}: Idefics3's code gives some of {side} patches a side the position embedding of their "
                          f"neighbours, since it rounds down in fp32; choose another vision.image_size or vision.patch.")


def config(x, kind, vision, text, image, dtype):
    """config.json. kind: idefics3 or smolvlm; vision, text: a SiglipVisionConfig and a LlamaConfig; image: id of <image>."""
    c = x.config
    pad = text["pad_token_id"] if text["pad_token_id"] is not None else x.tokenizer.end
    return {"architectures": [f"{CLASSES[kind]}ForConditionalGeneration"], "model_type": kind, "image_token_id": image,
            "scale_factor": c["connector.scale_factor"], "tie_word_embeddings": c["lm.tied"], "use_cache": True,
            "pad_token_id": pad, "eos_token_id": x.ends, "torch_dtype": dtype,
            "vision_config": {"model_type": f"{kind}_vision", **vision},
            "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **text,    # llama.cpp looks for it
                            "pad_token_id": pad}}


def generation(x):
    """What generation_config.json says besides the tokens: the tokens that are never generated here, and that a text does not
    begin with its end."""
    ends = [x.tokenizer.end, *x.tokenizer.more_ends]
    special = [i for i, flag in enumerate(x.tokenizer.special) if flag and i not in ends]
    return {"suppress_tokens": [*special, *range(len(x.tokenizer.tokens), x.config["lm.vocab"])],
            "begin_suppress_tokens": ends}


def write_processor(x, kind, folder, before, after, write_json):
    c, side, name = x.config, x.config["vision.image_size"], CLASSES[kind]
    template = TEMPLATE % (json.dumps(before), json.dumps(after))
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": f"{name}ImageProcessor", "processor_class": f"{name}Processor", "do_convert_rgb": True,
        "do_image_splitting": False, "do_resize": False, "size": {"longest_edge": side},
        "max_image_size": {"longest_edge": side}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_pad": True})
    tokens = (side // c["vision.patch"] // c["connector.scale_factor"]) ** 2
    write_json(folder / "processor_config.json", {"processor_class": f"{name}Processor", "image_seq_len": tokens})
    write_json(folder / "chat_template.json", {"chat_template": template})
    return template
