"""Hub folders as other tools write them: names of transformers 5, of torch.compile and of parallel training, newer
timm, Git LFS, adapters, several end tokens, added tokens."""
import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hub_cases import Tiny, check, complaint, in_v2, make_case, must, oracle, run, script, text, vision
import tikzc

STUDENT = Path(__file__).resolve().parents[1] / "dev/starter/student.safetensors"

PAIR = "pair, bf16 to fp32, added token beyond"
TIMM = "v1 timm, image not a multiple"


def rename(folder, change):
    """Renames the tensors of a folder's model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit(path, change):
    """Changes a JSON file."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def convert(arguments, out):
    result = script("convert_hf.py", *arguments, out)
    return result, out.read_bytes() if result.returncode == 0 else None


def to_shards(folder):
    """Adds shards and their index to a folder; a stray model.safetensors stays beside them."""
    oracle.save(folder, {name: t * 0 for name, t in load_file(folder / "model.safetensors").items()},
                "safetensors.shards")


def other_image_size(config):
    config["model_args"] |= {"img_size": [26, 26], "in_chans": 3, "qkv_bias": True, "dynamic_img_size": False}


# The same model in other words: (configuration, what is changed in its folders, words of the note or None)
SAME = {
    "a tower without prefix": (PAIR, lambda f: rename(f / "tower", lambda n: n.removeprefix("vision_model.")), None),
    "a tower without prefix in v2": (
        "v2", lambda f: rename(f / "model", lambda n: n.replace("vision_model.vision_model.", "vision_model.")), None),
    "torch.compile": ("v2", lambda f: rename(f / "model", lambda n: f"_orig_mod.{n}"), "_orig_mod."),
    "torch.compile and DataParallel": (
        "v2", lambda f: rename(f / "model", lambda n: f"module._orig_mod.{n}"), "module._orig_mod."),
    "torch.compile of the layers": (
        "v2", lambda f: rename(f / "model", lambda n: n.replace(".layers.1.", ".layers.1._orig_mod.")), "_orig_mod"),
    "FSDP": ("v2", lambda f: rename(f / "model", lambda n: n.replace(".layers.0.", ".layers.0._fsdp_wrapped_module.")),
             "_fsdp_wrapped_module"),
    "a single file beside shards": ("v2", lambda f: to_shards(f / "model"), "shards are left out"),
    "an adapter beside the weights": (
        "v2", lambda f: (f / "model" / "adapter_config.json").write_text("{}"), "merge_and_unload"),
    "newer timm": (TIMM, lambda f: edit(f / "tower" / "config.json", other_image_size), None),
}


def check_same(folder):
    for i, (name, (case, change, words)) in enumerate(SAME.items()):
        place = folder / str(i)
        place.mkdir()
        _, arguments = make_case(case, place)
        _, want = convert(arguments, place / "before.safetensors")
        change(place)
        result, found = convert(arguments, place / "after.safetensors")
        must(result, name)
        check(want and found == want, f"{name}: gives another file")
        notes = [line for line in result.stderr.split("\n") if line.startswith("convert_hf.py: note: ")]
        check(len(notes) == (words is not None) + (case == PAIR) and (not words or words in "".join(notes)),
              f"{name}: the notes are {notes}, expected one with {words}")


def check_other_head(folder):
    """A tied model whose file has another head: a note; with the same head: none."""
    _, arguments = make_case("v2 tied fp16", folder)
    path = folder / "model" / "model.safetensors"
    _, want = convert(arguments, folder / "a.safetensors")
    for name, factor in (("the same head", 1), ("another head", 2)):
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.text_model.embed_tokens.weight"] * factor
        save_file(tensors, path, {"format": "pt"})
        result, found = convert(arguments, folder / "b.safetensors")
        check(found == want and ("tie_word_embeddings" in result.stderr) == (factor != 1),
              f"a tied model with {name}: {result.stderr}")


def check_pointers(folder):
    """Git LFS pointers are named as such, whichever file they stand for; devices and pipes are not read."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for case, names in (("v2", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
                        ("v2 linear bin", ["pytorch_model.bin"]),
                        ("v2 odd sizes, bin shards, bf16", ["pytorch_model.bin.index.json",
                                                             "pytorch_model-00002-of-00003.bin"])):
        place = folder / case
        place.mkdir()
        _, arguments = make_case(case, place)
        for name in names:
            path = place / "model" / name
            good = path.read_bytes()
            for what, words, make in (("pointer", "Git LFS", lambda: path.write_text(pointer)),
                                      ("pipe", "not a file", lambda: os.mkfifo(path)),
                                      ("device", "not a file", lambda: path.symlink_to("/dev/zero")),
                                      ("folder", "not a file", path.mkdir)):
                path.unlink()
                make()
                result = script("convert_hf.py", *arguments, folder / "out.safetensors", timeout=60)
                complaint(f"a {what} as {name}", result, [name, words])
                path.rmdir() if what == "folder" else path.unlink()
                path.write_bytes(good)


def adapter_alone(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def drop_weights(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def unmerged(folder):
    rename(folder, lambda n: "base_model.model." + n.replace("q_proj.weight", "q_proj.lora_A.default.weight"))


def check_refused(folder):
    for name, case, change, words in (
            ("an adapter", "v2", adapter_alone, ["LoRA adapter of some/base", "merge_and_unload"]),
            ("an adapter with a configuration", "v2", drop_weights, ["LoRA adapter", "merge_and_unload"]),
            ("an adapter that is not merged", "v2", unmerged, ["LoRA adapter", "merge_and_unload"]),
            ("no folder", "v2", shutil.rmtree, ["no such folder"]),
            ("an image that is not square", TIMM,
             lambda f: edit(f / "../tower/config.json", lambda c: c["model_args"].update(img_size=[26, 32])),
             ["img_size", "[26, 32]", "squares"]),
            ("grey images", TIMM,
             lambda f: edit(f / "../tower/config.json", lambda c: c["model_args"].update(in_chans=1)), ["in_chans"]),
            ("a window of Mistral", "pair with a bias, head_dim given",
             lambda f: edit(f / "config.json", lambda c: c.update(sliding_window=100)), ["sliding_window", "100"]),
            ("patches that cannot be joined", "pair with a bias, head_dim given",
             lambda f: edit(f / "../tower/config.json", lambda c: c["model_args"].update(img_size=40)),
             ["25 patches", "groups of 3", "--concat", "1, 5"])):
        place = folder / name
        place.mkdir()
        _, arguments = make_case(case, place)
        change(place / "model")
        arguments = [*arguments, "--concat", 3] if "joined" in name else arguments
        complaint(name, script("convert_hf.py", *arguments, folder / "out.safetensors"), words)
    place = folder / "a file"
    (place / "tower").mkdir(parents=True)
    (place / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    make_case("v2", place)
    for source, out, words in ((place / "model", place, ["is a folder; name a file to write"]),
                               (place / "model" / "model.safetensors", place / "x", ["is a file", "config.json"]),
                               (place / "model", place / "no" / "x", ["no/x cannot be written: there is no folder"]),
                               (place / "tower", place / "x", ["a vision tower", "language model", "--vision"])):
        complaint("other paths", script("convert_hf.py", source, out), words)
    complaint("an option of new connectors", script("convert_hf.py", place / "model", place / "x", "--concat", 1),
              ["--concat"])
    for option, value, words in (("--concat", 0, "from 1 to 16777216"), ("--positions", 0, "from 1 to 16777216"),
                                 ("--seed", -1, "from 0 to 4294967295")):
        result = script("convert_hf.py", place / "model", place / "x", f"{option}={value}")
        check(result.returncode == 2 and words in result.stderr, f"{option} {value}: {result.stderr}")


# What a language model may have that this decoder lacks: (case, keys of its config.json, the sentence after its path).
QWEN2, QWEN3 = "Qwen2", "Qwen3, wide heads"
WINDOW = ("sliding_window = 100 is not supported: it is shorter than the 160 positions used, and attention here sees all of "
          "them; --positions sets how many are used.")
LACKS = "is not supported; the decoder and the encoder here have no such thing."
FAMILIES = "expected a detikzify, idefics3 or smolvlm model, or one of llama, mistral, qwen2, qwen3 with --vision."
LM_REFUSED = [
    ("SmolLM2", {"model_type": "mistral", "sliding_window": 100}, WINDOW),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 100}, WINDOW),
    (QWEN3, {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 100},
     WINDOW),
    (QWEN3, {"layer_types": ["full_attention", "linear_attention"]},
     'layer_types = ["full_attention", "linear_attention"] is not supported; expected full_attention or sliding_attention for '
     'each layer.'),
    (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0}},
     'rope_scaling: the type "yarn" is not supported; expected default, linear or llama3.'),
    (QWEN3, {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
     'rope_parameters: the type "yarn" is not supported; expected default, linear or llama3.'),
    (QWEN3, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
     "rope_parameters: has different rotations for different kinds of layers; all layers here have the same."),
    (QWEN3, {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
     f"rope_parameters: partial_rotary_factor = 0.5 {LACKS}"),
    (QWEN3, {"attention_bias": True}, f"attention_bias = true {LACKS}"),
    ("SmolLM2", {"attention_bias": True}, f"attention_bias = true {LACKS}"),
    (QWEN2, {"hidden_act": "gelu"}, f'hidden_act = "gelu" {LACKS}'),
    (QWEN3, {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8},
     'model_type qwen3_moe (architectures: ["Qwen3MoeForCausalLM"]) is not supported; it is a mixture of experts, and blocks '
     f"here have one MLP; {FAMILIES}"),
    (QWEN2, {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
     f'model_type gemma2 (architectures: ["Gemma2ForCausalLM"]) is not supported; {FAMILIES}'),
]


def check_language_models(folder):
    """What is refused of Llama's relatives, with the exact sentence, and that a window that reaches as far as the positions
    do is none; what no checkpoint can hold."""
    places = {}
    for case in dict.fromkeys(case for case, *_ in LM_REFUSED):
        places[case] = folder / case
        places[case].mkdir()
        _, arguments = make_case(case, places[case])
        places[case] = places[case], arguments
    for case, keys, sentence in LM_REFUSED:
        place, arguments = places[case]
        config = place / "model" / "config.json"
        before = config.read_text("utf-8")
        edit(config, lambda c: c.update(keys))
        result = script("convert_hf.py", *arguments, folder / "no.safetensors")
        want = f"convert_hf.py: error: {config}: {sentence}"
        check(result.returncode == 1 and result.stderr.strip().split("\n")[-1] == want,
              f"{case}, {keys}: expected {want}, found {result.stderr.strip()[-400:]}")
        if sentence == WINDOW:
            result = script("convert_hf.py", *arguments, folder / "short.safetensors", "--positions", 100)
            must(result, f"{case}, a window as long as the positions")
        config.write_text(before, "utf-8")
    place, arguments = places[QWEN3]
    must(script("convert_hf.py", *arguments, "--connector-bias", folder / "bias.safetensors"), "Qwen3 with a connector's bias")
    result = script("export_hf.py", folder / "bias.safetensors", folder / "none")
    check(result.returncode == 1 and result.stderr == (
        f"export_hf.py: error: {folder / 'bias.safetensors'}: its decoder has norms of q and k (lm.qk_norm), and its connector a "
        "bias, which only DeTikZify v1 has, whose decoder is a Llama without them; train with connector.bias=false to export it "
        "as v2.\n"), f"Qwen3 as v1: {result.stderr}")
    wide = folder / "eps.safetensors"
    tensors, metadata = tikzc.read_safetensors(STUDENT)
    tikzc.write_safetensors(wide, tensors, metadata | {"vision.eps": "1e-05"})
    complaint("another eps than timm's", script("export_hf.py", wide, folder / "none"),
              [f"{wide}: vision.eps is 1e-05", "timm's", "connector.bias=false"])
    both = folder / "both.safetensors"
    tensors, metadata = tikzc.read_safetensors(folder / "bias.safetensors")
    tikzc.write_safetensors(both, tensors, metadata | {"lm.qkv_bias": "true"})
    result = script("export_hf.py", both, folder / "none")
    check(result.returncode == 1 and result.stderr == (
        f"export_hf.py: error: {both}: its decoder has biases on q, k and v (lm.qkv_bias) and norms of q and k (lm.qk_norm); Qwen2 "
        "of transformers has the first, Qwen3 the second, and no class has both.\n"), f"biases and norms: {result.stderr}")


def check_tokenizer_settings(folder):
    """What transformers 5 writes is exported as what 4 reads, too."""
    _, arguments = make_case("v2", folder)
    edit(folder / "model" / "tokenizer_config.json", lambda c: c.update(
        tokenizer_class="TokenizersBackend", backend="tokenizers", extra_special_tokens=["<pad>", "<gone>"]))
    result, _ = convert(arguments, folder / "a.safetensors")
    if must(result, "transformers 5") and must(
            script("export_hf.py", folder / "a.safetensors", folder / "export"), "transformers 5: export"):
        settings = json.loads((folder / "export" / "tokenizer_config.json").read_text())
        check(settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "backend" not in settings
              and settings["model_input_names"] == ["input_ids", "attention_mask"], f"transformers 5: {settings}")
        loaded = AutoTokenizer.from_pretrained(folder / "export")
        check(loaded.additional_special_tokens == ["<pad>"] and len(loaded) == len(json.loads(
            (folder / "export" / "tokenizer.json").read_text())["model"]["vocab"]), "transformers 5: special tokens")
        _, again = convert([folder / "export"], folder / "b.safetensors")
        check(again == (folder / "a.safetensors").read_bytes(), "transformers 5: converting the export again differs")


def check_ends(build, folder):
    """A text ends at any of the model's end tokens, and none comes first; as in transformers."""
    tiny = Tiny(vision(), text(), seed=3)
    in_v2(tiny, folder, "safetensors")
    oracle.write_tokenizer(folder / "model", oracle.tokenizer_json(120))
    png, pixels = oracle.image(24, 0)
    (folder / "image.png").write_bytes(png)
    forbidden = [oracle.BOS, oracle.PAD]
    plain = tiny.generate(pixels, 64, forbidden)
    for name, ends in (("one", [1]), ("the eighth", [1, plain[7]]), ("the first", [plain[0], 1]),
                       ("many", [plain[0], 1, plain[20], plain[9], 119])):
        edit(folder / "model" / "config.json", lambda c: c["text_config"].update(eos_token_id=ends))
        model, out = folder / f"{name}.safetensors", folder / f"{name} export"
        if not must(script("convert_hf.py", folder / "model", model), f"ends, {name}"):
            continue
        want = tiny.generate(pixels, 64, forbidden, ends)
        found = run(build / "infer", "-q", "-m", model, "--max-tokens", 64, folder / "image.png").stdout
        said = "".join(f"Q{i:03d};" for i in want)
        check(found == f"{said}\n" and want, f"ends, {name}: infer wrote {found}, transformers {said}")
        with tikzc.DatasetWriter(folder / "data.bin", tikzc.Tokenizer.load(model), "ends") as w:
            w.add(png, [*want, oracle.END])
        must(run(build / "eval", "--model", model, "--data", folder / "data.bin", "--json", folder / "json"),
             f"ends, {name}: eval")
        check(json.loads((folder / "json").read_text())[0]["exact"] == 1, f"ends, {name}: eval stops elsewhere")
        if must(script("export_hf.py", model, out), f"ends, {name}: export"):
            stored = [json.loads((out / f).read_text()) for f in ("generation_config.json", "config.json")]
            stored = [stored[0]["eos_token_id"], stored[1]["text_config"]["eos_token_id"]]
            listed = [1, *(e for e in ends if e != 1)] if len(ends) > 1 else 1
            check(stored == [listed] * 2, f"ends, {name}: exported {stored}")
            result, again = convert([out], folder / "again.safetensors")
            check(again == model.read_bytes(), f"ends, {name}: converting the export again differs")
    for ends, words in (([1, "x"], ["eos_token_id"]), (list(range(30)), ["30 tokens"]), ([2, 3], ["</s>", "[2, 3]"])):
        edit(folder / "model" / "config.json", lambda c: c["text_config"].update(eos_token_id=ends))
        complaint("end tokens", script("convert_hf.py", folder / "model", folder / "no.safetensors"), words)


def check_added(folder):
    """An added token that is not ASCII is its own text, also where the byte-level alphabet has its letters."""
    tokens = ["\u00e9", "\u2192x", "na\u00efve", "\u0120y", "plain"]
    parsed = json.loads(oracle.tokenizer_json(120))
    parsed["added_tokens"] += [{**parsed["added_tokens"][0], "id": 120 + i, "content": t, "special": False}
                               for i, t in enumerate(tokens)]
    tiny = Tiny(vision(), text(vocab=128))
    in_v2(tiny, folder, "safetensors")
    oracle.write_tokenizer(folder / "model", json.dumps(parsed))
    if must(script("convert_hf.py", folder / "model", folder / "a.safetensors"), "added tokens"):
        tokenizer = tikzc.Tokenizer.load(folder / "a.safetensors")
        found = [tokenizer.decode([120 + i]) for i in range(len(tokens))]
        check(found == tokens, f"added tokens decode to {found}")
        check([tokenizer.encode(t)[0] - 120 for t in tokens] == [*range(5)], "added tokens are encoded otherwise")


def check_all(build, folder):
    parts = (check_same, check_other_head, check_pointers, check_refused, check_language_models, check_tokenizer_settings,
             lambda f: check_ends(build, f), check_added)
    for i, part in enumerate(parts):
        place = Path(folder) / f"foreign{i}"
        place.mkdir()
        part(place)
