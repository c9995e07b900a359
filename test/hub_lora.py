"""Adapters of train_distill --lora, exported by export_hf.py, against PEFT: logits, and the gradients of A and B. And back: adapters that
PEFT made, imported by import_lora.py, give PEFT's logits."""
import json
import shutil

import torch

from hub_cases import check, complaint, make_case, must, oracle, run, script    # finds scripts/
import hub.config as hub
import tikzc
from export_hf import Export

try:
    import peft
except ImportError:     # scripts/deps.sh fixtures installs it
    peft = None

CASES = {"v2": "all", "v2 linear bin": "qkv,gate_up,vision.qkv",
         "v2 with Qwen2": "qkv,out", "v1 OpenCLIP's prefix, tied, fp16": "lm,connector"}
BORN = {"v2": {"target_modules": ["q_proj", "v_proj", "down_proj", "fc1"], "lora_alpha": 3},     # made by PEFT
        "v2 linear bin": {"target_modules": ["o_proj", "gate_proj", "up_proj"], "use_rslora": True, "lora_alpha": 5,
                          "layers_to_transform": [1]},
        "v2 with Qwen2": {"target_modules": ["q_proj", "k_proj"], "lora_alpha": 2},
        "v1 OpenCLIP's prefix, tied, fp16": {"target_modules": ["k_proj", "mm_projector"], "lora_dropout": 0.25}}


class Whole(torch.nn.Module):
    """An exported checkpoint as one module, whose parts have the names of its tensors, as in DeTikZify's own code."""

    def __init__(self, tiny, v2):
        super().__init__()
        self.model = torch.nn.Module()
        self.config = {}
        if v2:
            self.model.vision_model, self.model.text_model = tiny.siglip, tiny.lm.model
            self.model.connector = torch.nn.Module()
            self.model.connector.modality_projection = torch.nn.Module()
            self.model.connector.modality_projection.proj = tiny.connector
        else:
            self.model = tiny.lm.model
            self.model.mm_projector = tiny.connector
        self.lm_head, self.tiny, self.v2 = tiny.lm.lm_head, [tiny], v2

    def forward(self, pixels, ids):
        """Logits of the positions that predict ids [B, T], where they are not -1, one after another."""
        tiny, text = self.tiny[0], self.model.text_model if self.v2 else self.model
        tiny.connector = self.model.connector.modality_projection.proj if self.v2 else self.model.mm_projector
        image = tiny.image_tokens(pixels)
        words = text.get_input_embeddings()(ids[:, :-1].clamp(min=0))
        hidden = text(inputs_embeds=torch.cat([image, words], 1)).last_hidden_state[:, image.shape[1] - 1:]
        return self.lm_head(hidden)[ids >= 0]


def fill_b(path):
    """Gives B random values, which a short training leaves near zero."""
    tensors, metadata = tikzc.read_safetensors(path)
    generator = torch.Generator().manual_seed(3)
    for name, array in tensors.items():
        if name.endswith("lora_B"):
            tensors[name] = (0.2 * torch.randn(array.shape, generator=generator)).numpy()
    tikzc.write_safetensors(path, tensors, metadata)


def joined_gradients(model, name, parts):
    """PEFT's gradients of our layer: those of A added up over the parts, those of B one after another."""
    found = dict(model.named_parameters())
    at = [f"base_model.model.{part}.lora_{{}}.default.weight" for part in parts]
    return (sum(found[p.format("A")].grad for p in at), torch.cat([found[p.format("B")].grad for p in at]))


def compare(build, name, folder, targets):
    tiny, arguments = make_case(name, folder)
    model, v2 = folder / "model.safetensors", name.startswith("v2")
    must(script("convert_hf.py", *arguments, "--dtype", "fp32", model), f"lora {name}: convert")
    size, T = tiny.tower.config.image_size, 9
    ids = torch.randint(3, 110, (2, T), generator=torch.Generator().manual_seed(1)).int()
    ids[1, 6:] = -1
    images = [oracle.image(size, i) for i in range(2)]
    pixels = torch.stack([pixels for _, pixels in images])
    with tikzc.DatasetWriter(folder / "data.bin", tikzc.Tokenizer.load(model), "random") as w:
        for png, _ in images:
            w.add(png, ids[0].numpy().astype("uint32"))
    if not must(run(build / "train_distill", "--student", model, "--teacher", "none", "--data", folder / "data.bin",
                    "--val-data", "none", "--batch", 2, "--steps", 1, "--lora", 3, "--lora-alpha", 4.5, "--lora-targets",
                    targets, "--out", folder / "run"), f"lora {name}: train"):
        return
    adapter, base, out = folder / "run" / "adapter.safetensors", folder / "base", folder / "peft"
    must(script("export_hf.py", model, base), f"lora {name}: export the base")
    there_and_back(name, folder, model, adapter)
    fill_b(adapter)
    if not must(script("export_hf.py", model, out, "--lora", adapter), f"lora {name}: export"):
        return
    whole = peft.PeftModel.from_pretrained(Whole(oracle.load_export(base), v2), out, is_trainable=True).eval()
    logits = whole(pixels, ids.long())
    loss = torch.nn.functional.cross_entropy(logits, ids[ids >= 0].long())
    loss.backward()
    (folder / "pixels").write_bytes(pixels.numpy().tobytes())
    (folder / "ids").write_bytes(ids.numpy().tobytes())
    if not must(run(build / "test_lora", "--gradients", model, adapter, folder / "pixels", folder / "ids",
                    folder / "gradients"), f"lora {name}: gradients"):
        return
    compare_tensors(name, tikzc.read_safetensors(folder / "gradients")[0], logits, whole, v2, model)
    born = check_import(build, name, folder, Whole(oracle.load_export(base), v2), pixels, ids)
    if name == "v2":
        complaints(name, folder, model, adapter)
        refused_imports(name, folder, model, born)
    if not v2:
        check_tower(name, folder, model)


def there_and_back(name, folder, model, adapter):
    """Exported and imported again, an adapter file has the same bytes."""
    back = folder / "back.safetensors"
    must(script("export_hf.py", model, folder / "there", "--lora", adapter), f"lora {name}: there")
    if must(script("import_lora.py", model, folder / "there", back), f"lora {name}: back"):
        check(back.read_bytes() == adapter.read_bytes(), f"lora {name}: there and back, the file has changed")


def check_import(build, name, folder, whole, pixels, ids):
    """An adapter that PEFT made, with random A and B. Returns its folder."""
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **BORN[name])
    made, born, adapter = peft.get_peft_model(whole, config).eval(), folder / "born", folder / "imported.safetensors"
    made.create_or_update_model_card = lambda folder: None      # it needs another package
    made.save_pretrained(born, save_embedding_layers=False)
    logits = made(pixels, ids.long()).detach()
    with made.disable_adapter():
        check(error(made(pixels, ids.long()).detach(), logits) > 1e-2, f"lora {name}: the adapter changes nothing")
    if (must(script("import_lora.py", folder / "model.safetensors", born, adapter), f"lora {name}: import") and
            must(run(build / "test_lora", "--gradients", folder / "model.safetensors", adapter, folder / "pixels", folder / "ids",
                     folder / "imported"), f"lora {name}: logits of the import")):
        ours = tikzc.read_safetensors(folder / "imported")[0]["logits"]
        check(error(ours, logits) < 1e-5, f"lora {name}: imported, the logits differ from PEFT's by {error(ours, logits):.1e}")
    return born


def refused_imports(name, folder, model, born):
    """What tikz.c cannot represent, one sentence each."""
    good, out, copy = json.loads((born / "adapter_config.json").read_text()), folder / "none.safetensors", folder / "copy"
    shutil.copytree(born, copy)
    for change, words in (({"use_dora": True}, ["use_dora is true", "DoRA"]), ({"bias": "lora_only"}, ["bias is", "biases"]),
                          ({"modules_to_save": ["lm_head"]}, ["modules_to_save"]), ({"rank_pattern": {"q_proj": 4}}, ["rank_pattern"]),
                          ({"alpha_pattern": {"q_proj": 4}}, ["alpha_pattern"]), ({"r": 3}, ["lora_A of", "ask for [3, "]),
                          ({"peft_type": "LOHA"}, ["peft_type is", "expected"]), ({"lora_alpha": "high"}, ["lora_alpha is"]),
                          ({"fan_in_fan_out": True}, ["fan_in_fan_out"]), ({"alora_invocation_tokens": [1]}, ["aLoRA"]),
                          ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights is", "the base was changed"])):
        (copy / "adapter_config.json").write_text(json.dumps(good | change))
        complaint(f"lora {name}: {words}", script("import_lora.py", model, copy, out), words)
    (copy / "adapter_config.json").write_text(json.dumps(good))
    path = copy / "adapter_model.safetensors"
    tensors, metadata = tikzc.read_safetensors(path)
    tensors = {key: array.copy() for key, array in tensors.items()}
    first = sorted(tensors)[0]
    for change, words in (({first.replace(first.split(".lora_")[0], "base_model.model.lm_head"): tensors[first]}, ["lm_head", "belongs to no layer"]),
                          ({first: tensors[first][:, :-1].copy()}, ["lora_A of", "ask for"]),
                          ({first.replace(".weight", "_magnitude"): tensors[first]}, ["belongs to no layer"])):
        tikzc.write_safetensors(path, tensors | change, metadata)
        complaint(f"lora {name}: {words}", script("import_lora.py", model, copy, out), words)
    for source in (model, path):
        before = source.read_bytes()
        complaint(f"lora {name}: over its source", script("import_lora.py", model, copy, source), ["is what the adapter is made from"])
        check(source.read_bytes() == before, f"lora {name}: {source.name} is as it was")
    path.unlink()
    complaint(f"lora {name}: no file", script("import_lora.py", model, copy, out), ["no such file", "save_pretrained"])
    check(not out.exists(), f"lora {name}: a refused adapter has left a file")


def error(ours, theirs):
    return float((torch.tensor(ours) - theirs).norm() / theirs.norm())


def compare_tensors(name, ours, logits, whole, v2, model):
    c, names = Export(model).config, hub.V2 if v2 else hub.V1
    check(error(ours.pop("logits"), logits.detach()) < 1e-5, f"lora {name}: logits differ from PEFT's")
    entries = {e.name: e for e in [*hub.vision_entries(c, "hf", hub.V2["vision"]),
                                   *hub.connector_entries(c, names["connector"]),
                                   *hub.lm_entries(c, names["lm"], names["head"])]}
    layers = {key[:-len(".lora_A")] for key in ours if key.endswith(".lora_A")}
    trainable = sum(".lora_A." in key for key, p in whole.named_parameters() if p.requires_grad)
    check(trainable == sum(len(entries[f"{layer}.weight"].parts) for layer in layers),
          f"lora {name}: PEFT trains {trainable} adapters")
    for layer in sorted(layers):
        parts = [part[:-len(".weight")] for part, _ in entries[f"{layer}.weight"].parts]
        A, B = joined_gradients(whole, layer, parts)
        for kind, theirs in (("A", A), ("B", B.T)):
            worst = error(ours[f"{layer}.lora_{kind}"], theirs)
            check(worst < 1e-4, f"lora {name}: the gradient of {layer}.lora_{kind} differs from PEFT's by {worst:.1e}")


def complaints(name, folder, model, adapter):
    bad, out = folder / "bad.safetensors", folder / "refused"
    data = adapter.read_bytes()
    for what, words in ((data[:-4], ["bad.safetensors"]), (data.replace(b"lora.rank", b"lora.tank"), ["lora.rank"]),
                        (data.replace(b"lora.base\"", b"lora.bale\""), ["an adapter of another model"]),
                        (model.read_bytes(), ["not an adapter of tikz.c"])):
        bad.write_bytes(what)
        complaint(f"lora {name}: {words}", script("export_hf.py", model, out, "--lora", bad), words)
        check(not out.exists(), f"lora {name}: {words}: a folder is left")


def check_tower(name, folder, model):
    """Adapters of a v1 checkpoint's vision tower, which is a model of its own, are refused."""
    tensors, metadata = tikzc.read_safetensors(folder / "run" / "adapter.safetensors")
    A, width = tensors["lm.0.out.lora_A"], Export(model).config["vision.width"]
    tensors |= {"vision.0.proj.lora_A": A[:, :1].repeat(width, 1), "vision.0.proj.lora_B": A[:, :1].repeat(width, 1)}
    tikzc.write_safetensors(folder / "tower.safetensors", tensors, metadata)
    complaint(f"lora {name}: the tower", script("export_hf.py", model, folder / "refused", "--lora",
                                                        folder / "tower.safetensors"),
              ["vision.0.proj has no place in the checkpoint"])


def check_all(build, folder):
    if not check(peft is not None, "lora: PEFT is not installed; scripts/deps.sh fixtures installs it"):
        return
    for i, (name, targets) in enumerate(CASES.items()):
        (folder / str(i)).mkdir()
        compare(build, name, folder / str(i), targets)
