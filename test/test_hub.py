#!/usr/bin/env python3
"""Checks scripts/convert_hf.py and scripts/export_hf.py, and the model they make, against transformers.

    test/test_hub.py BUILD        BUILD: a folder with infer, eval, quantize, train_distill, test_beam and
                                  test_lora of a PRECISION=FP32 build

For every configuration: logits of the C model equal to those of transformers' modules within 1e-4 of the largest, 64
greedy tokens identical, the exported folder loaded by transformers' classes with equal weights, and converting it
again gives the same file, bit for bit. Then folders as other tools write them (hub_foreign.py), broken folders
(hub_broken.py), beam search (hub_beam.py), adapters against PEFT (hub_lora.py), memory, and a distillation between two converted models.
Needs the packages of test/requirements.txt.
"""
import json
import resource
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, logging

import hub_beam
import hub_broken
import hub_foreign
import hub_lora
from hub_cases import (CASES, SCRIPTS, TOKENS, as_pair, check, complaint, counts, in_v1, in_v2, make_case, must, oracle,
                       round_to, run, script, text, vision)
from hub_oracle import Tiny
import tikzc

GREEDY = 64


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
    check(tikzc.read_header(model)[1]["hub.preprocess"] == "plain", f"{name}: infer would clean its images")
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


def check_starter(build, folder):
    """The model that ships has no spare special token; a control character stands in for the image. Its connector has a
    bias: it becomes a v1 checkpoint, and what DeTikZify's code needs for its trained tower is printed."""
    shipped = SCRIPTS.parent / "dev" / "starter" / "student.safetensors"
    result = script("export_hf.py", shipped, folder / "export")
    if must(result, "starter: export") and must(
            script("convert_hf.py", folder / "export", folder / "again.safetensors"), "starter: convert"):
        ours, theirs = (tikzc.read_safetensors(p) for p in (shipped, folder / "again.safetensors"))
        weights = [name for name in ours[0] if not name.startswith("tokenizer.")]
        check(all(np.array_equal(ours[0][n], theirs[0][n]) for n in weights), "starter: the weights changed")
        oracle.load_export(folder / "export")
        tower = json.loads((folder / "export" / "config.json").read_text())["vision_tower"]
        check(tower == "local-dir:vision" and all(words in result.stderr for words in (
            "local-dir:", "is_v1=True", '"height": 96', "image_mean", "connector.bias=false")), result.stderr)
    for weights in ("q8", "q4"):
        must(run(build / "quantize", "--weights", weights, shipped, folder / weights), f"starter: quantize to {weights}")
        result = script("export_hf.py", folder / weights, folder / "none")
        check(result.returncode == 1 and not (folder / "none").exists() and result.stderr == (
            f"export_hf.py: error: {folder / weights} has weights of 8 or 4 bits, which are not exported; name the model "
            f"that it was made of.\n"), f"starter: exporting {weights}: {result.stderr}")
    data = ["--data", shipped.parent / "val.bin", "--val-data", "none", "--teacher", "none", "--batch", 2, "--accum", 1]
    for name, student, bias in (("shipped", shipped, "true"), ("new", "tiny", "false")):
        out = folder / name
        must(run(build / "train_distill", "--student", student, "--out", out, "--steps", 2, *data), f"starter: {name}")
        must(run(build / "train_distill", "--resume", "--out", out, "--steps", 3), f"starter: {name}, resumed")
        _, metadata = tikzc.read_header(out / "student.safetensors")
        check(metadata["connector.bias"] == bias, f"starter: {name}: connector.bias is {metadata['connector.bias']}")
        result = script("export_hf.py", out / "student.safetensors", folder / f"{name} export")
        check(f"v{1 if bias == 'true' else 2} checkpoint" in result.stdout, f"starter: {name}: {result.stdout}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(2)
    logging.set_verbosity_error()
    build = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        for part in (lambda f: check_cases(build, f), lambda f: hub_foreign.check_all(build, f),
                     lambda f: hub_beam.check_all(build, f), lambda f: hub_lora.check_all(build, f),
                     hub_broken.check_broken, hub_broken.check_hostile_bins, hub_broken.check_hostile_json,
                     hub_broken.check_damage, hub_broken.check_broken_pairs, check_memory,
                     lambda f: check_distillation(build, f), lambda f: check_starter(build, f)):
            try:
                part(Path(tempfile.mkdtemp(dir=name)))
            except Exception:
                check(False, traceback.format_exc())
    print(f"{counts[True]} passed, {counts[False]} failed")
    sys.exit(counts[False] > 0)


if __name__ == "__main__":
    main()
