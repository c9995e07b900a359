#!/usr/bin/env python3
"""Checks an exported model against DeTikZify's own code: programs written greedily from the same images are equal.

    dev/detikzify_check.py CHECKOUT MODEL.safetensors [--infer build/FP32-cpu/infer] [--count 12]

CHECKOUT is a checkout of github.com/potamides/DeTikZify; run this with a Python that has what its pyproject.toml asks
for (torch, transformers, datasets, PyMuPDF, requests; of 2025: transformers 4.52). MODEL is one whose connector has no
bias. The images are test figures of the starter. DeTikZify's load() reads the folder that export_hf.py makes;
DeTikZify trims and squares the images and prepares them with its processor, without its Lanczos enlargement, which
tikz.c leaves out. Says so and ends with status 0 where the checkout or its packages are missing.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc        # noqa: E402


def theirs(folder, images):
    """The programs of DeTikZify's code, as DetikzifyPipeline generates them, without sampling."""
    import torch
    from detikzify.model import load
    from detikzify.util.image import expand, load as load_image, trim
    model, processor = load(str(folder), torch_dtype=torch.float32)
    model.eval()
    programs = []
    for data in images:
        image = trim(load_image(data))
        inputs = processor(images=expand(image, max(image.size)), return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_length=processor.tokenizer.model_max_length,
                                 bad_words_ids=[[model.config.image_token_id]],
                                 begin_suppress_tokens=[model.config.text_config.eos_token_id])[0]
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
    parser.add_argument("--infer", default=ROOT / "build" / "FP32-cpu" / "infer", help="program of a PRECISION=FP32 build")
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, ROOT / "scripts" / "export_hf.py", options.model, folder / "hub"], check=True)
        pairs = list(zip(ours(options.infer, options.model, images, folder), theirs(folder / "hub", images)))
    same = [a.rstrip("\n") == b.rstrip("\n") for a, b in pairs]
    for i in range(options.count):
        if not same[i]:
            print(f"image {i}: tikz.c wrote\n{pairs[i][0]}\nDeTikZify's code\n{pairs[i][1]}")
    print(f"{sum(same)} of {options.count} programs are equal, {len({a for a, _ in pairs})} of them different ones, "
          f"{sum(map(len, (a for a, _ in pairs)))} characters")
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
