#!/usr/bin/env python3
"""Checks an exported model against DeTikZify's own code: programs generated greedily from the same images are equal.

    dev/detikzify_check.py CHECKOUT MODEL.safetensors [--infer build/FP32-cpu/infer] [--count 12]

CHECKOUT is a checkout of github.com/potamides/DeTikZify; run this with a Python that has what its pyproject.toml asks
for (transformers 4.52 in 2025; for v1 checkpoints also timm). The images are test figures of the starter. DeTikZify's
load() reads the folder that export_hf.py makes; of a v1 checkpoint, with the help that export_hf.py prints. DeTikZify
trims and squares the images and prepares them with its processor, without its Lanczos enlargement, which tikz.c leaves
out. Says so and ends with status 0 where the checkout or its packages are missing.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc        # noqa: E402


def load_v1(folder, side, **options):
    from detikzify.model import load
    before = os.getcwd()
    os.chdir(folder)        # config.json names the tower by a relative path
    model, processor = load(str(folder), is_v1=True, **options)
    os.chdir(before)
    processor.image_processor.size = {"height": side, "width": side}
    processor.image_processor.image_mean = processor.image_processor.image_std = [0.5, 0.5, 0.5]
    return model, processor, model.config


def load_v2(folder, **options):
    from detikzify.model import load
    model, processor = load(str(folder), **options)
    return model, processor, model.config.text_config


def theirs(folder, config, images):
    """The programs of DeTikZify's code, generated as by its pipeline, but without sampling."""
    import torch
    from detikzify.util.image import expand, load as load_image, trim
    if config["connector.bias"] == "true":
        model, processor, text = load_v1(folder, int(config["vision.image_size"]), torch_dtype=torch.float32)
    else:
        model, processor, text = load_v2(folder, torch_dtype=torch.float32)
    programs = []
    for data in images:
        image = trim(load_image(data))
        inputs = processor(images=expand(image, max(image.size)), return_tensors="pt")
        with torch.inference_mode():
            ids = model.eval().generate(
                inputs["input_ids"], pixel_values=inputs["pixel_values"], do_sample=False,
                max_length=int(config["lm.max_positions"]), bad_words_ids=[[model.config.image_token_id]],
                begin_suppress_tokens=[text.eos_token_id], pad_token_id=processor.tokenizer.eos_token_id)[0]
        programs.append(processor.decode(ids[inputs["input_ids"].shape[1]:], skip_special_tokens=True))
    return programs


def ours(infer, model, images, folder):
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, data in zip(paths, images):
        path.write_bytes(data)
    subprocess.run([infer, "--quiet", "--model", model, "--output", folder, *paths], check=True)
    return [path.with_suffix(".tex").read_text() for path in paths]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", metavar="CHECKOUT")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--infer", default=ROOT / "build" / "FP32-cpu" / "infer", help="of a PRECISION=FP32 build")
    parser.add_argument("--count", type=int, default=12, help="images of dev/starter/test.bin")
    options = parser.parse_args()
    sys.path.insert(0, options.checkout)
    try:
        import detikzify.model      # noqa: F401
    except ImportError as e:
        print(f"not tested here: DeTikZify's own code ({e})")
        return
    data = tikzc.Dataset(ROOT / "dev" / "starter" / "test.bin")
    images = [data[i][0] for i in range(options.count)]
    _, config = tikzc.read_header(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, ROOT / "scripts" / "export_hf.py", options.model, folder / "hub"], check=True)
        mine = ours(options.infer, options.model, images, folder)
        pairs = list(zip(mine, theirs(folder / "hub", config, images)))
    different = [i for i, (a, b) in enumerate(pairs) if a.rstrip("\n") != b.rstrip("\n")]
    for i in different:
        print(f"image {i}: tikz.c wrote\n{pairs[i][0]}\nDeTikZify's code\n{pairs[i][1]}")
    print(f"{len(pairs) - len(different)} of {len(pairs)} programs are equal; {len(set(mine))} different programs, "
          f"{sum(map(len, mine))} characters")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
