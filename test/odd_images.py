#!/usr/bin/env python3
"""Makes images that no model was trained on, for the tests of infer: odd_images.py FOLDER

photo.png       something like a photo of an animal: soft blobs, shadows, fur
noise.png       random grey levels
empty.png       white
chinese.png     two Chinese characters
formula.png     a formula, such as x = 1 + 1 / x
several.png     three such formulas in one image
wide.png        one of 10 000 pixels
figure.png      a circle and a square, joined by a line
Only the standard library is used."""
import math
import pathlib
import random
import struct
import sys
import zlib

LETTERS = {  # strokes in a square of 0 to 1, x to the right and y down
    "x": [(0, 0.3, 0.7, 1), (0.7, 0.3, 0, 1)],
    "y": [(0, 0.3, 0.35, 0.8), (0.7, 0.3, 0.1, 1.25)],
    "1": [(0.1, 0.2, 0.3, 0), (0.3, 0, 0.3, 1)],
    "+": [(0, 0.6, 0.7, 0.6), (0.35, 0.25, 0.35, 0.95)],
    "=": [(0, 0.5, 0.7, 0.5), (0, 0.75, 0.7, 0.75)],
    "中": [(0.1, 0.3, 0.9, 0.3), (0.1, 0.3, 0.1, 0.6), (0.9, 0.3, 0.9, 0.6), (0.1, 0.6, 0.9, 0.6), (0.5, 0, 0.5, 1)],
    "文": [(0.5, 0, 0.55, 0.15), (0.1, 0.25, 0.9, 0.25), (0.7, 0.3, 0.1, 1), (0.3, 0.3, 0.9, 1)],
}


class Canvas:
    """RGB pixels, white at first."""

    def __init__(self, width, height):
        self.width, self.height, self.rows = width, height, [bytearray(b"\xff" * 3 * width) for _ in range(height)]

    def dot(self, x, y, colour=(0, 0, 0)):
        if 0 <= x < self.width and 0 <= y < self.height:
            self.rows[y][3 * x:3 * x + 3] = bytes(colour)

    def line(self, x0, y0, x1, y1, colour=(0, 0, 0)):
        steps = int(max(abs(x1 - x0), abs(y1 - y0))) + 1
        for i in range(steps + 1):
            x, y = x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps
            for dx in range(2):
                for dy in range(2):
                    self.dot(round(x) + dx, round(y) + dy, colour)

    def write(self, text, x, y, size):
        for letter in text:
            for x0, y0, x1, y1 in LETTERS[letter]:
                self.line(x + size * x0, y + size * y0, x + size * x1, y + size * y1)
            x += size * (1 if letter > "\x7f" else 0.9)
        return x

    def save(self, path):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        pixels = zlib.compress(b"".join(b"\0" + row for row in self.rows), 1)
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def photo(rng, width=240, height=180):
    blobs = [(rng.uniform(0, width), rng.uniform(0, height), rng.uniform(15, 60),
              [rng.uniform(-90, 90) for _ in range(3)]) for _ in range(14)]
    c = Canvas(width, height)
    for y in range(height):
        for x in range(width):
            fur = rng.gauss(0, 9) + 14 * math.sin(0.9 * x + 0.35 * y)
            value = [120 + fur + 0.3 * y, 100 + fur, 80 + fur]
            for bx, by, size, colour in blobs:
                near = math.exp(-((x - bx) ** 2 + (y - by) ** 2) / (2 * size * size))
                value = [v + near * k for v, k in zip(value, colour)]
            c.dot(x, y, [min(max(int(v), 0), 255) for v in value])
    return c


def noise(rng, size=160):
    c = Canvas(size, size)
    for y in range(size):
        for x in range(size):
            c.dot(x, y, [rng.randrange(256)] * 3)
    return c


def formula(c, x, y, size):
    x = c.write("x=1+", x, y, size)
    c.line(x, y + 0.6 * size, x + 0.8 * size, y + 0.6 * size)
    c.write("1", x + 0.1 * size, y - 0.55 * size, size)
    c.write("y", x + 0.1 * size, y + 0.5 * size, size)


def main():
    folder, rng = pathlib.Path(sys.argv[1]), random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    photo(rng).save(folder / "photo.png")
    noise(rng).save(folder / "noise.png")
    Canvas(120, 80).save(folder / "empty.png")
    chinese = Canvas(120, 60)
    chinese.write("中文", 10, 10, 40)
    chinese.save(folder / "chinese.png")
    one = Canvas(160, 80)
    formula(one, 10, 30, 24)
    one.save(folder / "formula.png")
    several = Canvas(180, 260)
    for i in range(3):
        formula(several, 10 + 12 * i, 30 + 80 * i, 24)
    several.save(folder / "several.png")
    wide = Canvas(10000, 40)
    for i in range(100):
        wide.write("x+1=y", 20 + 99 * i, 10, 18)
    wide.save(folder / "wide.png")
    figure = Canvas(200, 180)
    for i in range(360):
        a, b = math.radians(i), math.radians(i + 1)
        figure.line(60 + 50 * math.cos(a), 60 + 50 * math.sin(a), 60 + 50 * math.cos(b), 60 + 50 * math.sin(b))
    for x0, y0, x1, y1 in ((120, 110, 190, 110), (190, 110, 190, 170), (190, 170, 120, 170), (120, 170, 120, 110)):
        figure.line(x0, y0, x1, y1, (200, 0, 0))
    figure.line(96, 96, 120, 110)
    figure.save(folder / "figure.png")


if __name__ == "__main__":
    main()
