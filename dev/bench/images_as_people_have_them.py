#!/usr/bin/env python3
"""Measures what a model makes of images as people have them: other sizes, JPEG, margins, paper, dark mode, photos.

    images_as_people_have_them.py [--model FILE] [--data FILE.bin] [--other NAME=FILE.bin ...] [--count N]
                                  [--variants NAME,...] [--modes MODE,...] [--infer PROGRAM] [--keep FOLDER]

Takes the first N samples of a dataset, makes a variant of each as an image file, runs infer over all of them, and prints for
each variant and --preprocess mode two shares: of programs that equal the model's own for the unchanged image ("same"), and of
programs that equal the reference ("correct"). --other is a dataset of the same texts drawn otherwise, such as in another font.
The same arguments make the same files. --keep keeps the images and programs.
"""
import argparse
import io
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc  # noqa: E402  first, because it says whether NumPy is missing
import files  # noqa: E402
files.need("PIL", "Pillow")
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps  # noqa: E402
from options import whole  # noqa: E402

BICUBIC = Image.Resampling.BICUBIC


def margin(image, share, colour=(255, 255, 255)):
    """The image with a margin of `share` of its longer side."""
    return ImageOps.expand(image, round(share * max(image.size)), colour)


def per_pixel(image, change):
    """Applies a change of float values [height, width, 3] to an image."""
    values = change(np.asarray(image, np.float64))
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def noise(image, sigma, random):
    return per_pixel(image, lambda v: v + random.normal(0, sigma, v.shape))


def paper(image, colour):
    """The image printed on paper of this colour."""
    return per_pixel(image, lambda v: v * (np.array(colour) / 255))


def stray(image, random):
    """A margin with one black pixel in it."""
    image = margin(image, 0.1)
    width, height = image.size
    depth = round(0.1 * max(width, height) / 1.2) - 6
    image.putpixel((int(random.integers(1, width - 1)), int(random.integers(0, max(1, depth)))), (0, 0, 0))
    return image


def theme(image):
    """A dark theme: light grey on dark grey."""
    return per_pixel(image, lambda v: 30 + (255 - v) * (212 - 30) / 255)


def rotated(image, degrees, colour=(255, 255, 255)):
    return image.rotate(degrees, BICUBIC, True, fillcolor=colour)


def sized(image, scale):
    """The image as a viewer shows it at this zoom."""
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, BICUBIC if scale > 1 else Image.Resampling.BOX)


def underlined(image):
    """A line under the image, as under a formula that someone marked."""
    taller = ImageOps.expand(image, (0, 0, 0, 8), (255, 255, 255))
    ImageDraw.Draw(taller).rectangle((0, taller.height - 3, taller.width, taller.height - 2), (0, 0, 0))
    return taller


def numbered(image):
    """An equation number at the right, as in a paper."""
    digits = max(10, min(40, image.height // 2))
    wider = ImageOps.expand(image, (0, 0, 6 * digits, 0), (255, 255, 255))
    ImageDraw.Draw(wider).text((wider.width - 3 * digits, (wider.height - digits) // 2), "(12)", (0, 0, 0),
                               ImageFont.load_default(digits))
    return wider


def coloured(image, ink):
    """Dark lines become lines of this colour."""
    return per_pixel(image, lambda v: 255 - (255 - v) * (255 - np.array(ink)) / 255)


def scan(image, degrees, random):
    """A page of off-white paper at three times the resolution, not quite straight in the scanner."""
    image = rotated(margin(sized(image, 3), 0.1), degrees)
    return noise(paper(image, (248, 247, 243)), 2, random)


def photo(image, degrees, random):
    """A page under warm light that falls off to one side, with a soft shadow, photographed with some noise."""
    image = rotated(margin(sized(image, 3), 0.15), degrees)
    x, y = np.linspace(0, 1, image.width)[None, :, None], np.linspace(0, 1, image.height)[:, None, None]
    light = 0.92 - 0.25 * x - 0.12 * y - 0.12 * np.exp(-((x - 0.7) ** 2 + (y - 0.3) ** 2) / 0.1)
    warm = np.array([1.0, 0.95, 0.85])
    return noise(per_pixel(image, lambda v: (25 + v * 230 / 255) * light * warm), 3, random)


UNCHANGED = "unchanged"
# name -> (quality of JPEG, or None for PNG; the function that makes it from an image and a generator of numbers)
VARIANTS = {
    UNCHANGED: (None, lambda p, r: p),
    "x 0.5": (None, lambda p, r: sized(p, 0.5)),
    "x 0.6": (None, lambda p, r: sized(p, 0.6)),
    "x 0.75": (None, lambda p, r: sized(p, 0.75)),
    "x 1.5": (None, lambda p, r: sized(p, 1.5)),
    "x 2": (None, lambda p, r: sized(p, 2)),
    "x 3": (None, lambda p, r: sized(p, 3)),
    "x 4": (None, lambda p, r: sized(p, 4)),
    "JPEG 50": (50, lambda p, r: p),
    "JPEG 30": (30, lambda p, r: p),
    "margin 20 %": (None, lambda p, r: margin(p, 0.2)),
    "blur 1 px": (None, lambda p, r: p.filter(ImageFilter.GaussianBlur(1))),
    "black border": (None, lambda p, r: ImageOps.expand(margin(p, 0.05), 2, (0, 0, 0))),
    "underline": (None, lambda p, r: underlined(p)),
    "equation number": (None, lambda p, r: numbered(p)),
    "red ink": (None, lambda p, r: coloured(p, (200, 30, 30))),
    "blue ink": (None, lambda p, r: coloured(p, (30, 60, 200))),
    "margin 254": (None, lambda p, r: margin(p, 0.1, (254, 254, 254))),
    "margin, noise 2": (None, lambda p, r: noise(margin(p, 0.2), 2, r)),
    "margin, JPEG 90": (90, lambda p, r: margin(p, 0.1)),
    "margin, JPEG 75": (75, lambda p, r: margin(p, 0.1)),
    "stray pixel": (None, stray),
    "dark mode": (None, lambda p, r: ImageOps.invert(p)),
    "margin, noise 5": (None, lambda p, r: noise(margin(p, 0.1), 5, r)),
    "JPEG 75": (75, lambda p, r: p),
    "margin, JPEG 50": (50, lambda p, r: margin(p, 0.1)),
    "dark mode, JPEG 90": (90, lambda p, r: ImageOps.invert(margin(p, 0.1))),
    "dark theme": (None, lambda p, r: theme(margin(p, 0.1))),
    "paper 240": (None, lambda p, r: paper(margin(p, 0.1), (240, 240, 240))),
    "cream paper, JPEG 90": (90, lambda p, r: paper(margin(p, 0.1), (250, 244, 228))),
    "grey frame": (None, lambda p, r: ImageOps.expand(margin(p, 0.1), 1, (160, 160, 160))),
    "grey desk": (None, lambda p, r: margin(margin(p, 0.1), 0.1, (128, 128, 128))),
    "larger x 3, JPEG 75": (75, lambda p, r: margin(sized(p, 3), 0.1)),
    "scan": (85, lambda p, r: scan(p, 0, r)),
    "scan, 1.3 degrees": (85, lambda p, r: scan(p, 1.3, r)),
    "scan, 3 degrees": (85, lambda p, r: scan(p, -3, r)),
    "photo": (80, lambda p, r: photo(p, 0, r)),
    "photo, 1.7 degrees": (80, lambda p, r: photo(p, -1.7, r)),
}


def make_variant(name, figures, folder):
    """Writes a variant of each figure; returns the paths."""
    quality, make = VARIANTS[name]
    random = np.random.default_rng(sum(name.encode()))
    paths = []
    for i, figure in enumerate(figures):
        path = folder / f"{i:06d}.{'jpg' if quality else 'png'}"
        image = make(figure, random)
        image.save(path, **({"quality": quality} if quality else {}))
        paths.append(path)
    return paths


def run_infer(args, mode, paths, folder):
    command = [args.infer, "-q", "--preprocess", mode, "-b", "50", "-o", folder, "-m", args.model, *paths]
    result = subprocess.run([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"images_as_people_have_them.py: error: infer failed: {result.stderr[-1000:].strip()}")
    return [(folder / f"{path.stem}.tex").read_text() for path in paths]


def read_samples(path, tokenizer, count):
    """(images, texts) of the first samples of a dataset."""
    dataset = tikzc.Dataset(path)
    images, texts = [], []
    for i in range(min(count, len(dataset))):
        image, ids = dataset[i]
        images.append(Image.open(io.BytesIO(image)).convert("RGB"))
        texts.append(tokenizer.decode([int(t) for t in ids[:-1]]).rstrip("\n"))
    return images, texts


def measure(args, folder):
    tokenizer = tikzc.Tokenizer.load(args.tokenizer or args.model)
    images, references = read_samples(args.data, tokenizer, args.count)
    rows = [(name, name, images) for name in [UNCHANGED, *(v for v in args.variants if v != UNCHANGED)]]
    for name, path in args.other:
        others, texts = read_samples(path, tokenizer, args.count)
        if texts != references:
            sys.exit(f"images_as_people_have_them.py: error: {path} has other texts than {args.data}")
        rows.append((name, UNCHANGED, others))
    print(f"| {len(images)} images |" + "".join(f" {m}: same | correct |" for m in args.modes))
    print("|---|" + "---|---|" * len(args.modes))
    own = {}
    for name, variant, originals in rows:
        place = folder / name.replace(" ", "-").replace(",", "")
        place.mkdir(parents=True, exist_ok=True)
        paths, row = make_variant(variant, originals, place), ""
        for mode in args.modes:
            programs = [program.rstrip("\n") for program in run_infer(args, mode, paths, place / mode)]
            own.setdefault(mode, programs)  # the first row is that of the unchanged images
            row += "".join(f" {100 * sum(map(str.__eq__, programs, like)) / len(images):.1f} |"
                           for like in (own[mode], references))
        print(f"| {name} |{row}", flush=True)


def names(known):
    def split(text):
        found = [name.strip() for name in text.replace(", ", "\0").split(",")]
        found = [name.replace("\0", ", ") for name in found]
        for name in found:
            if known is not None and name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {'; '.join(known)}")
        return found
    return split


def named_file(text):
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE")
    return name, path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    starter = ROOT / "dev" / "starter"
    parser.add_argument("--model", default=starter / "teacher.safetensors")
    parser.add_argument("--tokenizer", help="safetensors file with the tokenizer (default: the model's)")
    parser.add_argument("--data", default=starter / "test.bin")
    parser.add_argument("--other", type=named_file, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--count", type=whole(1, 10 ** 6), default=300)
    parser.add_argument("--variants", type=names(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--modes", type=names(None), default=["plain", "auto"])
    parser.add_argument("--infer", default=ROOT / "infer")
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    if args.keep:
        measure(args, args.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, pathlib.Path(folder))


if __name__ == "__main__":
    main()
