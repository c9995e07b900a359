#!/usr/bin/env python3
"""Compares lib/picture.h with Pillow on pictures of every kind.

    test/compare_pictures.py TEST_LIB        TEST_LIB: the binary built from test/test_lib.c

PNG pictures must be equal in every pixel. Two JPEG decoders differ by rounding: there the mean difference must stay
below 1 level and no pixel may differ by more than 16. Needs Pillow and NumPy.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

SIZES = (96, 31, 384)


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


def make_pictures(folder):
    """Returns [(path, the picture as Pillow sees it or None to open the file)]."""
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
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned{orientation}.jpg", drawing("RGB", (90, 50), 420), quality=95, subsampling=0, exif=exif)
    return made


def reference(image, size):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    image = image.crop(box) if box else image
    side = max(image.size)
    return np.asarray(ImageOps.pad(image, (side, side), color="white").resize((size, size), Image.Resampling.BICUBIC))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_pictures(folder)
        for size in SIZES:
            out = folder / "out"
            subprocess.run([sys.argv[1], "--prepare", str(size), str(out)] + [str(p) for p, _ in made], check=True)
            ours = np.fromfile(out, dtype=np.uint8).reshape(len(made), size, size, 3)
            for (path, image), mine in zip(made, ours):
                difference = np.abs(mine.astype(int) - reference(image or Image.open(path), size))
                jpeg = path.suffix == ".jpg"
                good = difference.mean() < 1 and difference.max() <= 16 if jpeg else not difference.any()
                passed, failed = passed + good, failed + (not good)
                if not good:
                    print(f"failed: {path.name} at {size}: differs by up to {difference.max()}, "
                          f"mean {difference.mean():.3f}, in {(difference > 0).mean():.1%} of the values")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
