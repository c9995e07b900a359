#!/usr/bin/env python3
"""Checks models whose connector is a pixel shuffle, with markers around the image, against Idefics3 of transformers: imported,
exported, and trained here.

    test/test_idefics3.py BUILD [published]    BUILD: a folder with infer, eval and train_distill of a PRECISION=FP32 build

An imported and an exported model give the logits and the greedy tokens of Idefics3ForConditionalGeneration behind its own
processor; converting an exported folder again gives the same file; what cannot be converted is refused with a sentence.
published: only a model as large as SmolVLM-256M, with random weights; takes minutes and 5 GB.
Needs the packages of test/requirements-idefics3.txt.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Idefics3Config, Idefics3ForConditionalGeneration, logging

import hub_oracle as oracle
from hub_cases import SCRIPTS, TOKENS, check, complaint, counts, must, run, script, text, vision
import tikzc
from hub import idefics3

PROMPT = "<s><pad><image><s><end_of_utterance><pad>"
MARKERS = ["<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
FAKE, GLOBAL, IMAGE, UTTERANCE = range(TOKENS, TOKENS + 4)
GREEDY = 40
transformers.generation.utils.is_fsdp_managed_module = lambda model: False    # it needs a newer PyTorch


SMOLVLM_256M = dict(scale=4, size=512, patch=16, width=768, heads=12, mlp=3072, layers=12, decoder=text(
    width=576, heads=9, kv=3, ffn=1536, layers=30, vocab=49280, rope_theta=1e5, max_position_embeddings=8192))


def make_model(seed=1, scale=2, tied=False, size=48, decoder=text(vocab=128), **more):
    """A random Idefics3ForConditionalGeneration, of 6 x 6 patches unless `more` says otherwise."""
    torch.manual_seed(seed)
    config = Idefics3Config(vision_config=vision(size=size, **more), text_config={**decoder, "model_type": "llama",
                            "pad_token_id": oracle.PAD, "bos_token_id": oracle.BOS, "eos_token_id": oracle.END},
                            scale_factor=scale, image_token_id=IMAGE, tie_word_embeddings=tied, pad_token_id=oracle.PAD)
    config.text_config.tie_word_embeddings = tied
    model = Idefics3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    oracle.randomise(model, torch.float32)
    return model


def write_model(folder, model, split=True):
    """A folder as the published ones are: keys that have their default left out, images split."""
    folder.mkdir()
    tensors = {name: t for name, t in model.state_dict().items()
               if not (name == "lm_head.weight" and model.config.tie_word_embeddings)}
    oracle.save(folder, tensors)
    c = model.config.to_dict()
    c["vision_config"] = {k: v for k, v in c["vision_config"].items() if k in idefics3.VISION or k == "hidden_act"}
    oracle.write_config(folder, c)
    oracle.write_tokenizer(folder, oracle.tokenizer_json(TOKENS, added=MARKERS))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_image_splitting": split, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"longest_edge": 192}}))
    return folder


def picture(folder, size, seed=5):
    pixels = np.random.RandomState(seed).randint(0, 250, (size, size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png", pixels


def question(folder, png, more=()):
    """What the processor of a folder makes of a message with an image, and more ids behind it."""
    processor = AutoProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is that?"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    x = processor(text=prompt, images=[Image.open(png)], return_tensors="pt")
    x["input_ids"] = torch.cat([x["input_ids"], torch.tensor([list(more)], dtype=torch.long)], 1)
    x["attention_mask"] = torch.ones_like(x["input_ids"])
    return processor, x


@torch.no_grad()
def compare(build, name, model, file, exported, folder, size):
    """Logits and greedy tokens of our file, and of what transformers makes of the exported folder; model: the original."""
    png, pixels = picture(folder, size)
    ids = np.append(np.random.RandomState(3).randint(3, TOKENS, 17), oracle.END)
    with tikzc.DatasetWriter(folder / "data.bin", tikzc.Tokenizer.load(file), "random") as w:
        w.add(png.read_bytes(), ids)
    if not must(run(build / "eval", "--model", file, "--data", folder / "data.bin", "--logits", folder / "logits",
                    "--no-greedy", "--batch", 1), f"{name}: eval"):
        return
    mine = load_file(folder / "logits")["logits"][0][:len(ids)]
    loaded = Idefics3ForConditionalGeneration.from_pretrained(exported, attn_implementation="eager").eval()
    processor, x = question(exported, png, ids[:-1])
    seen = ((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5).permute(2, 0, 1)
    check(torch.allclose(x["pixel_values"][0, 0], seen, atol=1e-5), f"{name}: the processor changes the pixels")
    for who, other in (("exported", loaded), ("original", model)):
        want = other(**x).logits[0, -len(ids):]
        worst = float((mine - want).abs().max() / want.abs().max())
        check(worst <= 1e-4, f"{name}: logits differ from the {who} model's by {worst:.1e}")
    _, x = question(exported, png)
    out = loaded.generate(**x, max_new_tokens=GREEDY, do_sample=False)
    ours = run(build / "infer", "--model", file, "--max-tokens", GREEDY, "--quiet", png)
    want = processor.batch_decode(out[:, x["input_ids"].shape[1]:], skip_special_tokens=True)[0]
    check(must(ours, f"{name}: infer") and ours.stdout.rstrip("\n") == want.rstrip("\n") and len(want) > 20,
          f"{name}: greedy tokens differ: {ours.stdout!r}, transformers {want!r}")


def check_case(build, name, folder, prompt, **shape):
    folder.mkdir()
    model, file, out = make_model(**shape), folder / "model.safetensors", folder / "export"
    source = write_model(folder / "model", model)
    result = script("convert_hf.py", source, file, "--prompt", prompt)
    if not (must(result, f"{name}: convert") and must(script("export_hf.py", file, out), f"{name}: export")):
        return
    check("do_image_splitting is left out: an image is seen once, as a whole, and not in parts" in result.stderr,
          f"{name}: {result.stderr}")
    if must(script("convert_hf.py", out, folder / "again.safetensors"), f"{name}: convert again"):
        check(file.read_bytes() == (folder / "again.safetensors").read_bytes(), f"{name}: converting again gives another file")
    compare(build, name, model, file, out, folder, model.config.vision_config.image_size)


def check_cases(build, folder):
    check_case(build, "prompt", folder / "1", PROMPT)
    check_case(build, "bare, tied, 3 x 3", folder / "2", "<image>", seed=2, scale=3, tied=True)
    check_case(build, "exact gelu", folder / "3", "<image><pad>", seed=3, act="gelu")
    _, metadata = tikzc.read_header(folder / "1" / "model.safetensors")
    markers = [metadata[f"tokenizer.{side}_image"] for side in ("before", "after")]
    check(markers == [f"{oracle.BOS},{oracle.PAD},{FAKE},{GLOBAL}",
                      f"{FAKE},{oracle.BOS},{UTTERANCE},{oracle.PAD}"], f"markers: {markers}")
    check((metadata["connector.kind"], metadata["connector.scale_factor"]) == ("shuffle", "2")
          and "connector.concat" not in metadata, f"connector: {metadata}")
    out = folder / "smolvlm"
    if must(script("export_hf.py", folder / "1" / "model.safetensors", out, "--as", "smolvlm"), "smolvlm: export"):
        config = json.loads((out / "config.json").read_text())
        check((config["model_type"], config["architectures"]) == ("smolvlm", ["SmolVLMForConditionalGeneration"]), str(config))
        must(script("convert_hf.py", out, out / "again.safetensors"), "smolvlm: convert again")
        check((out / "again.safetensors").read_bytes() == (folder / "1" / "model.safetensors").read_bytes(),
              "smolvlm: converting again gives another file")


def check_sides(folder):
    """The sides of patches for which transformers' positions are wrong are those that the scripts know."""
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    for side in range(2, 33):
        e = Idefics3VisionEmbeddings(Idefics3VisionConfig(hidden_size=1, image_size=side, patch_size=1))
        e.patch_embedding.weight.data.zero_(), e.patch_embedding.bias.data.zero_()
        e.position_embedding.weight.data = torch.arange(side * side)[:, None].float()
        found = e(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))[0, :, 0]
        right = torch.equal(found, torch.arange(side * side).float())
        check(right or side in idefics3.WRONG_SIDES, f"positions of {side} patches a side")


# ---- a student that was trained here ----

def check_prompts(exported, folder, tokenizer):
    """The prompt of a folder, where it says one, where it does not, and as the user says."""
    encode = lambda text: tokenizer.encode(text)[:-1]
    (exported / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    for name, options, before, after in (
            ("the folder's", [], "Fig:", ""), ("the user's", ["--prompt", "a\n<image>[x]"], "a\n", "[x]"),
            ("a guess", [], "User:", "<end_of_utterance>\nAssistant:")):
        if name == "a guess":
            (exported / "chat_template.json").unlink()
        result = script("convert_hf.py", exported, folder / "p", *options)
        if must(result, f"prompts: {name}"):
            found = tikzc.Tokenizer.load(folder / "p")
            check(found.before_image == encode(f"{before}<fake_token_around_image><global-img>")
                  and found.after_image == encode(f"<fake_token_around_image>{after}"), f"prompts: {name}: {found.before_image}")
            said = 'every image gets the prompt "User:<image><end_of_utterance>\\nAssistant:"; --prompt sets another one'
            check((said in result.stderr) == (name == "a guess"), f"prompts: {name}: {result.stderr}")


def check_student(build, folder):
    shipped = SCRIPTS.parent / "dev" / "starter"
    tokenizer, pairs, out = folder / "tokenizer.safetensors", folder / "pairs", folder / "out"
    must(script("add_markers.py", shipped / "student.safetensors", tokenizer, "--prompt", "Fig:<image>"), "student: markers")
    pairs.mkdir()
    for kind in ("png", "tex"):
        (pairs / f"a.{kind}").write_bytes((shipped / f"example.{kind}").read_bytes())
    must(script("convert_dataset.py", "--pairs", pairs, "--tokenizer", tokenizer, "--out", folder / "d.bin"), "student: data")
    shape = "tiny,vision.image_size=48,connector.kind=shuffle,connector.scale_factor=2"
    train = ["--teacher", "none", "--student", shape, "--tokenizer", tokenizer, "--data", folder / "d.bin", "--val-data", "none",
             "--batch", 1, "--out", out]
    if not must(run(build / "train_distill", *train, "--steps", 3), "student: train"):
        return
    must(run(build / "train_distill", "--resume", "--out", out, "--steps", 4), "student: resume")
    file, exported = out / "student.safetensors", folder / "export"
    if must(script("export_hf.py", file, exported), "student: export"):
        kind = json.loads((exported / "config.json").read_text())["text_config"]["architectures"]
        check(kind == ["LlamaForCausalLM"], f"student: llama.cpp's converter reads the decoder's class there: {kind}")
        png, _ = picture(folder, 48)
        _, x = question(exported, png, range(5, 40))
        loaded = Idefics3ForConditionalGeneration.from_pretrained(exported, attn_implementation="eager").eval()
        with tikzc.DatasetWriter(folder / "one.bin", tikzc.Tokenizer.load(file), "random") as w:
            w.add(png.read_bytes(), np.append(np.arange(5, 40), tikzc.Tokenizer.load(file).end))
        must(run(build / "eval", "--model", file, "--data", folder / "one.bin", "--logits", folder / "logits", "--no-greedy"),
             "student: eval")
        with torch.no_grad():
            want = loaded(**x).logits[0, -36:]
        mine = load_file(folder / "logits")["logits"][0][:36]
        train[1], train[3], train[-1] = file, "tiny,vision.image_size=48,connector.concat=4", folder / "o"
        result = run(build / "train_distill", *train, "--steps", 1, "--w-embed", 0.1)
        check(result.returncode == 1 and "--w-embed compares image tokens of the same place, but the connectors of student and "
              "teacher join other patches" in result.stderr, f"student: other places: {result.stderr[-300:]}")
        check_prompts(exported, folder, tikzc.Tokenizer.load(file))
        check(float((mine - want).abs().max()) <= 1e-4 * float(want.abs().max()), "student: logits differ from transformers'")


# ---- refusals ----

def sentence(name, result, program, words):
    check(result.returncode == 1 and result.stderr.strip().split("\n")[-1] == f"{program}: error: {words}",
          f"{name}: {result.stderr.strip()[-500:]}")


def changed(source, path, metadata):
    """A copy of a tikz.c file with other metadata; None removes a key."""
    tensors, old = tikzc.read_safetensors(source, raw_bf16=True)
    new = {key: value for key, value in (old | metadata).items() if value is not None}
    tikzc.write_safetensors(path, tensors, new)
    return path


def check_refused_exports(build, folder):
    source = write_model(folder / "model", make_model())
    good, bad = folder / "good.safetensors", folder / "bad.safetensors"
    must(script("convert_hf.py", source, good, "--prompt", PROMPT), "refusals: convert")

    def refused(words, *arguments, file=bad, **metadata):
        if metadata:
            changed(good, bad, {f"tokenizer.{key}": value for key, value in metadata.items()})
        sentence("an export", script("export_hf.py", file, folder / "out", *arguments), "export_hf.py", f"{file}{words}")
        check(not (folder / "out").exists(), f"an export left something behind: {words}")

    starter = SCRIPTS.parent / "dev" / "starter" / "student.safetensors"
    refused(": its connector joins patches that follow each other (connector.concat), and Idefics3's joins blocks of them; train "
            "a student with connector.kind=shuffle.", "--as", "idefics3", file=starter)
    prompt = ": Idefics3's prompt cannot be made: "
    refused(f"{prompt}the tokens <fake_token_around_image> and <global-img> do not stand before the image, or "
            "<fake_token_around_image> not after it; transformers' processor always puts them there.", before_image=None)
    refused(f"{prompt}its texts begin with Q007;, which here stands after the image, and there before everything.", begin="7")
    refused(": 'tokenizer.after_image' is '4,900'; expected a number from 0 to 123.", after_image="4,900")
    for shape, words in (
            ("tiny,vision.image_size=96,connector.kind=shuffle,connector.scale_factor=3,connector.bias=true",
             ": its connector has a bias, and Idefics3's has none; train a student with connector.bias=false."),
            ("tiny,vision.image_size=200,connector.kind=shuffle,connector.scale_factor=5,lm.max_positions=300",
             ": Idefics3's code gives some of 25 patches a side the position embedding of their neighbours, since it rounds down "
             "in fp32; choose another vision.image_size or vision.patch."),
            ("tiny,connector.kind=shuffle,connector.scale_factor=3",
             f"{prompt}its tokenizer has no token <fake_token_around_image>; scripts/add_markers.py makes a tokenizer with all "
             "of them, to train a student with.")):
        data = SCRIPTS.parent / "dev" / "starter" / "val.bin"
        must(run(build / "train_distill", "--teacher", "none", "--student", shape, "--data", data, "--val-data", "none", "--batch",
                 1, "--steps", 1, "--overwrite", "--out", folder / "new"), f"refusals: {shape}")
        refused(words, file=folder / "new" / "student.safetensors")


def check_refused_imports(folder):
    source = write_model(folder / "model", make_model(), split=False)
    config = json.loads((source / "config.json").read_text())

    def refused(words, *arguments, **changes):
        oracle.write_config(source, config | changes)
        result = script("convert_hf.py", source, folder / "out", *arguments)
        sentence("an import", result, "convert_hf.py", words)

    refused("The prompt 'a' names <image> 0 times; expected once, where the image is.", "--prompt", "a")
    refused(f"{source / 'config.json'}: a model that brings its own vision tower; leave out --vision.", "--vision", source)
    refused(f"{source}: 6 x 6 patches cannot be joined in blocks of 4 x 4.", scale_factor=4)
    refused(f"{source / 'config.json'}: text_config: model_type gemma is not supported; expected llama.",
            text_config={**config["text_config"], "model_type": "gemma"})
    refused(f"{source}: 12 positions leave no room for text after the image and the prompt.", "--prompt", "<image>",
            "--positions", 12)
    refused(f"{source}: the tokenizer does not keep the prompt: 'User:' becomes ''.")
    oracle.write_config(source, config)
    (source / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}))
    complaint("another mean", script("convert_hf.py", source, folder / "out"), ["preprocessor_config.json", "image_mean", "0.4"])
    oracle.write_tokenizer(source, oracle.tokenizer_json(TOKENS, added=MARKERS[:3]))
    (source / "preprocessor_config.json").unlink()
    refused(f"{source}: the tokenizer has no special token <end_of_utterance>, which stands beside the image.")


def check_refused_shapes(build, folder):
    """The programs refuse connectors and markers that do not fit."""
    train = lambda shape, *more: run(build / "train_distill", "--teacher", "none", "--student", shape, "--out", folder / "o",
                                     "--steps", 1, "--val-data", "none", *more)
    shuffle = "connector.kind=shuffle,connector.scale_factor"
    for shape, words in (
            (f"tiny,{shuffle}=5", "12 x 12 patches cannot be joined in blocks of 5 x 5 (connector.scale_factor)"),
            (f"tiny,vision.image_height=16,vision.image_width=40,{shuffle}=2",
             "2 x 5 patches cannot be joined in blocks of 2 x 2 (connector.scale_factor)"),
            ("tiny,connector.kind=shuffle", "connector.kind shuffle and connector.scale_factor belong together; one is missing"),
            ("tiny,connector.scale_factor=2", "connector.kind shuffle and connector.scale_factor belong together; one is missing"),
            ("tiny,connector.kind=pool", 'connector.kind is "pool"; expected concat, shuffle or strips')):
        result = train(shape)
        check(result.returncode == 2 and result.stderr.strip().split("\n")[-1].endswith(f"model shape: {words} (try --help)"),
              f"{shape}: {result.stderr[-300:]}")
    tokenizer, words = folder / "t.safetensors", ": 50 positions leave no room for text after 48 image tokens and 3 markers around them"
    must(script("add_markers.py", SCRIPTS.parent / "dev" / "starter" / "student.safetensors", tokenizer), "shapes: markers")
    result = train("tiny,lm.max_positions=50", "--tokenizer", tokenizer)
    check(result.returncode == 1 and result.stderr.strip().endswith(f"{tokenizer}{words}"), result.stderr[-300:])


def main():
    if sys.argv[2:] not in ([], ["published"]) or len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(2)
    logging.set_verbosity_error()
    build = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        new = lambda: Path(tempfile.mkdtemp(dir=name))
        if sys.argv[2:]:
            check_case(build, "as large as SmolVLM-256M", new() / "1", PROMPT, **SMOLVLM_256M)
        else:
            check_cases(build, new())
            check_sides(new())
            check_student(build, new())
            check_refused_exports(build, new())
            check_refused_imports(new())
            check_refused_shapes(build, new())
    print(f"{counts[True]} passed, {counts[False]} failed")
    sys.exit(counts[False] > 0)


if __name__ == "__main__":
    main()
