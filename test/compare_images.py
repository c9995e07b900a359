#!/usr/bin/env python3
"""Compares lib/image.h with Pillow, and with transformers' SiglipImageProcessor, on images of every kind.

    test/compare_images.py TEST_LIB        TEST_LIB: the binary built from test/test_lib.c

Images must be equal in every pixel, JPEG images (also inside TIFF) within 1 level of 255: equal where Pillow carries
the same version of libjpeg. What scripts/dataset/images.py stores for a dataset must give exactly the pixels of the
image itself. Needs Pillow and NumPy; where transformers is installed, the last steps (resize, rescale, normalise) are
its own, else Pillow's bicubic and the formula.
"""
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import image_files  # noqa: E402
from dataset import images  # noqa: E402

SIZES = ((96, 96), (31, 31), (384, 384))  # width, height
FRAMES = ((384, 64), (40, 96), (97, 32))  # of rectangular models; whose images are
OF_FRAMES = ("drawing", "noise", "all_", "corner")
LETTERS = ((192, 32, 8), (96, 40, 12))  # and the height that letters get
OF_LETTERS = ("drawing", "noise", "all_", "corner", "text")


def drawing(mode, size, seed):
    """Lines, boxes and noise on white, with a border that must be trimmed."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.new("RGBA", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(width // 8, width - width // 8, 2), rng.integers(height // 8, height - height // 8, 2)
        colour = tuple(int(c) for c in rng.integers(0, 256, 4))
        box = (int(min(x)), int(min(y)), int(max(x)), int(max(y)))
        draw.rectangle(box, fill=colour) if rng.random() < 0.5 else draw.line(box, fill=colour, width=2)
    return image.convert(mode)


def text(zoom):
    image = Image.new("RGB", (160, 40), "white")
    draw = ImageDraw.Draw(image)
    draw.text((10, 12), "f(x) = gh - 2.i, |y_1|", fill=(40, 40, 80))
    draw.line((100, 34, 140, 34), fill="black")
    return image.resize((160 * zoom, 40 * zoom), Image.Resampling.BICUBIC)


def matrix(zoom):
    """Letters between delimiters three times as high, on grey paper."""
    image = Image.new("RGB", (80, 50), (210, 205, 200))
    draw = ImageDraw.Draw(image)
    draw.arc((10, 5, 30, 45), 120, 240, fill="black", width=2)
    draw.arc((45, 5, 65, 45), -60, 60, fill="black", width=2)
    draw.text((24, 8), "a b", fill="black")
    draw.text((24, 28), "c d", fill="black")
    return image.resize((80 * zoom, 50 * zoom), Image.Resampling.BICUBIC)


def letter_height(image):
    """The height of the letters in an RGB image: the lower third over the pieces of ink that are no bars and no dots, each counted
    by its height, and by the square of its width over its height where it is narrow."""
    depth = 255 - np.asarray(image).min(axis=2).astype(int)
    paper = np.sort(depth, axis=None)[-(-depth.size // 10) - 1]
    darkest, factor = depth.max(), 1
    while (image.width // factor) * (image.height // factor) > 1000000:
        factor += 1
    depth = np.pad(depth, ((0, -depth.shape[0] % factor), (0, -depth.shape[1] % factor)))
    depth = depth.reshape(depth.shape[0] // factor, factor, -1, factor).max(axis=(1, 3))
    labels, _ = ndimage.label(5 * (depth - paper) >= darkest - paper, structure=np.ones((3, 3)))
    letters, widest = [], 0
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if 3 * width >= 2 * height and 4 * np.count_nonzero(labels[rows, columns] == number) >= 3 * width * height:
            widest = max(widest, width)
        else:
            letters.append((height, 64 * min(width, height) ** 2 // height + 1))
    if not letters:
        return factor * -(-2 * widest // 3)
    heights, weights = zip(*sorted(letters))
    return factor * heights[np.searchsorted(3 * np.cumsum(weights), sum(weights))]


def noise(mode, size, seed):
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(2) if channels == 1 else values, mode)


def write_png16(path, values):
    """16 bits a channel, which Pillow cannot write in colour: [height, width, channels] of uint16."""
    import struct
    import zlib
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return bytearray(out.getvalue())


def resampled(data, factors, components=(0,)):
    """The JPEG data with other sampling factors (T.81, B.2.2), high nibble across, of these components."""
    frame = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))  # none of the tables below has these bytes
    for component in components:
        data[frame + 11 + 3 * component] = factors
    return data


def make_jpegs(size, seed, **options):
    """[(name, bytes)]: noise in every colour space and subsampling. Pillow does not write all of them; those are made
    from what it writes by changing the headers, which changes the image but leaves as many blocks as before."""
    colour, cmyk = noise("RGB", size, seed), Image.frombytes("CMYK", size, noise("RGBA", size, seed).tobytes())
    options["quality"] = 85
    inks = jpeg(cmyk, **options)  # with an Adobe marker that says CMYK
    ycck = inks.copy()
    ycck[inks.index(b"Adobe") + 11] = 2
    adobe_rgb = jpeg(colour, subsampling=0, **options)
    adobe_rgb[2:20] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # instead of the JFIF marker, which means YCbCr
    made = {"grey": jpeg(noise("L", size, seed), **options), "rgb": adobe_rgb, "cmyk": inks, "ycck": ycck,
            "ycck420": resampled(ycck.copy(), 0x22, (0, 3))}
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        made[name] = jpeg(colour, subsampling=subsampling, **options)
    made["411"] = resampled(made["420"].copy(), 0x41)
    tall = jpeg(colour.transpose(Image.Transpose.TRANSPOSE), subsampling=1, **options)
    made["440"] = resampled(tall, 0x12)
    sides = made["440"].index(b"\0\x11\x08") + 3
    tall[sides:sides + 4] = tall[sides + 2:sides + 4] + tall[sides:sides + 2]
    return list(made.items())


def make_images(folder):
    """Returns [(path, the image as Pillow sees it or None to open the file)]."""
    made = []

    def add(name, image, **options):
        made.append((folder / name, None))
        image.save(folder / name, **options)

    shapes = [(128, 128), (127, 90), (90, 127), (300, 41), (41, 300), (96, 96), (97, 96), (31, 31), (640, 480),
              (16, 16)]
    for i, shape in enumerate(shapes):
        add(f"drawing{i}.png", drawing("RGB", shape, i))
        add(f"alpha{i}.png", drawing("RGBA", shape, 100 + i))
    for i, shape in enumerate([(1, 1), (1, 2), (2, 1), (3, 5), (7, 4), (1, 50), (60, 1), (2000, 3), (1500, 1100)]):
        add(f"noise{i}.png", noise("RGBA", shape, i))
    for i, mode in enumerate(["L", "LA", "P", "1", "RGB"]):
        add(f"mode{i}.png", drawing(mode if mode != "1" else "L", (83, 61), 200 + i).convert(mode))
    add("palette_transparent.png", drawing("P", (50, 40), 300), transparency=3)
    add("rgb_transparent.png", drawing("RGB", (50, 40), 301), transparency=(255, 255, 255))
    add("all_white.png", Image.new("RGB", (70, 30), "white"))
    add("all_transparent.png", Image.new("RGBA", (30, 70), (10, 20, 30, 0)))
    add("all_black.png", Image.new("L", (70, 30), 0))
    add("corner.png", ImageOps.expand(Image.new("RGB", (1, 2), "red"), (0, 5, 40, 0), "white"))
    add("huge.png", drawing("RGB", (6000, 3500), 302))
    for zoom in (1, 2, 3):
        add(f"text{zoom}.png", text(zoom))
        add(f"text-matrix{zoom}.png", matrix(zoom))
    rng = np.random.default_rng(5)
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        values = rng.integers(0, 65536, (37, 53, channels), dtype=np.uint16)
        path = folder / f"deep{channels}.png"
        write_png16(path, values)
        high = (values >> 8).astype(np.uint8)
        made.append((path, Image.fromarray(high.squeeze(2) if channels == 1 else high, mode)))
    for i, options in enumerate([{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}]):
        add(f"photo{i}.jpg", drawing("RGB", (150, 110), 400 + i), quality=90, **options)
    add("grey.jpg", drawing("L", (77, 111), 410), quality=90)
    add("cmyk.jpg", drawing("RGB", (77, 111), 411).convert("CMYK"), quality=90)
    for i, shape in enumerate([(96, 96), (96, 71), (45, 96), (31, 31), (17, 31), (5, 3), (384, 45)]):
        for progressive in (False, True):
            for kind, data in make_jpegs(shape, 430 + i, progressive=progressive):
                made.append((folder / f"{kind}-{i}-{'progressive' if progressive else 'baseline'}.jpg", None))
                made[-1][0].write_bytes(data)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned{orientation}.jpg", drawing("RGB", (90, 50), 420), quality=95, subsampling=0, exif=exif)
    for name, data, expected in image_files.make(drawing, noise):
        made.append((folder / name, expected))
        made[-1][0].write_bytes(data)
    return made


def padded(image, size, detikzify=False):
    """Alpha over white, turned upright, the white border cut off, padded with white to the shape of size (width, height): the
    side of the image that is too short for it becomes longer. detikzify: enlarged to the longest side that it had with its
    border, as DeTikZify's own pipeline does."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    side = max(image.size)
    image = image.crop(box) if box else image
    if detikzify:
        return ImageOps.pad(image, (side, side), color="white", method=Image.Resampling.LANCZOS)
    wide = image.width * size[1] >= image.height * size[0]
    area = (image.width, max(image.height, round(image.width * size[1] / size[0]))) if wide else (
        max(image.width, round(image.height * size[0] / size[1])), image.height)
    if len(size) == 3:
        scale = letter_height(image) / size[2]
        natural = round(size[0] * scale), round(size[1] * scale)
        area = natural if natural[0] > area[0] and natural[1] > area[1] else area
    white = Image.new("RGB", area, "white")
    if len(size) == 3:
        white.paste(image, (0, round((area[1] - image.height) * 0.5)))
        return white
    white.paste(image, (round((area[0] - image.width) * 0.5), round((area[1] - image.height) * 0.5)))
    return white


def siglip():
    """SiglipImageProcessor of transformers, with its defaults; None without that package."""
    try:
        from transformers import SiglipImageProcessor
    except ImportError:
        return None
    return SiglipImageProcessor()


def reference(image, size, processor, detikzify=False):
    """What the encoder must see, float32 [height, width, 3] for size (width, height): resized, to 0..1, (x - 0.5) / 0.5."""
    if detikzify:
        return encoder_input(np.asarray(padded(image, size, True).resize(size, Image.Resampling.BICUBIC)))
    if processor:  # the layout is said, because an image of 1 or 3 pixels a side would be taken for [C, H, W]
        pixels = processor(padded(image, size), size={"height": size[1], "width": size[0]}, input_data_format="channels_last")
        return np.asarray(pixels["pixel_values"][0], np.float32).transpose(1, 2, 0)
    return encoder_input(np.asarray(padded(image, size).resize(size[:2], Image.Resampling.BICUBIC)))


def encoder_input(pixels):
    return (pixels.astype(np.float32) / 255 - 0.5) / 0.5


def compare(path, mine, expected):
    """Whether they are near enough; says why not. Differences are in levels of 0..255."""
    difference = np.abs(encoder_input(mine) - expected) * 127.5
    good = difference.max() < (1.01 if path.suffix == ".jpg" or "jpeg" in path.name else 1e-3)
    if not good:
        print(f"failed: {path.name} at {mine.shape[1]} x {mine.shape[0]}: differs by up to {difference.max():.3f}, "
              f"mean {difference.mean():.4f}, in {(difference > 0.5).mean():.1%} of the values")
    return good, difference.max(), difference.mean()


def prepare(test_lib, size, paths, folder, detikzify=False):
    """What lib/image.h makes of the files, uint8 [files, height, width, 3]."""
    out = folder / "out"
    what = "--prepare-detikzify" if detikzify else "--prepare"
    subprocess.run([test_lib, what, "x".join(map(str, size)), str(out)] + [str(p) for p in paths], check=True)
    return np.fromfile(out, dtype=np.uint8).reshape(len(paths), size[1], size[0], 3)


def compare_stored(test_lib, paths, folder):
    """Whether what a dataset stores gives the same pixels; returns one result per file. Not those named other-...,
    which Pillow does not read, or sees otherwise."""
    paths = [path for path in paths if not path.name.startswith("other-")]
    stored = [folder / f"stored-{path.name}" for path in paths]
    for path, copy in zip(paths, stored):
        copy.write_bytes(images.prepare(path.read_bytes())[0])
    difference = np.abs(prepare(test_lib, SIZES[0], paths, folder).astype(int) - prepare(test_lib, SIZES[0], stored, folder))
    results = []
    for path, most in zip(paths, difference.max(axis=(1, 2, 3))):
        results.append(most <= (1 if "jpeg" in path.name else 0))
        if not results[-1]:
            print(f"failed: a dataset stores {path.name} with other pixels: they differ by up to {most}")
    return results


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    results, processor = [], siglip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_images(folder)
        for size in SIZES + FRAMES + LETTERS:
            names = OF_FRAMES if size in FRAMES else OF_LETTERS
            some = made if size in SIZES else [m for m in made if m[0].name.startswith(names)]
            ours = prepare(sys.argv[1], size, [p for p, _ in some], folder)
            for (path, image), mine in zip(some, ours):
                expected = reference(image or Image.open(path), size, processor)
                results.append((path.suffix, *compare(path, mine, expected)))
        ours = prepare(sys.argv[1], SIZES[0], [p for p, _ in made], folder, True)
        enlarged = []
        for (path, image), mine in zip(made, ours):
            enlarged.append(compare(path, mine, reference(image or Image.open(path), SIZES[0], None, True))[0])
        stored = compare_stored(sys.argv[1], [p for p, _ in made], folder)
    for suffix in sorted({r[0] for r in results}):
        of_kind = [r for r in results if r[0] == suffix]
        sizes = SIZES + FRAMES + LETTERS if suffix == ".png" else SIZES
        print(f"{len(of_kind)} comparisons of {suffix[1:]} images at {', '.join('x'.join(map(str, s)) for s in sizes)} with "
              f"{'SiglipImageProcessor' if processor else 'Pillow'}: differ by at most "
              f"{max(r[2] for r in of_kind):.4f} levels of 255, on average {np.mean([r[3] for r in of_kind]):.4f}")
    passed, total = sum(bool(r[1]) for r in results) + sum(stored) + sum(enlarged), len(results) + len(stored) + len(enlarged)
    print(f"{passed} passed, {total - passed} failed")
    sys.exit(int(passed < total))


if __name__ == "__main__":
    main()
