#!/usr/bin/env python3
"""Draws the times of a lesson's versions against the floor.

    plot.py FILE.json OUT.svg     FILE.json: what a program of this folder wrote with --json

Every version is a bar on a logarithmic axis of milliseconds; the line is the floor. Figures without times (from the
emulated GPU) cannot be drawn: then there is no OUT.svg, and the exit status is 1.
"""
import html
import json
import math
import sys

LEFT, RIGHT, TOP, STEP, BAR = 130, 90, 64, 30, 18  # pixels: of names, of times, of the title, between bars, of a bar
WIDTH = 760


def read(path):
    """The versions of one kernel, in order."""
    with open(path) as file:
        versions = [json.loads(line) for line in file]
    if not versions:
        sys.exit(f"plot.py: {path} is empty; expected one line for each version")
    for v in versions:
        missing = {"kernel", "version", "idea", "rows", "width", "dtype", "more", "floor_bytes", "flops", "bandwidth",
                   "matmul", "floor_ms", "ms"} - v.keys()
        if missing:
            sys.exit(f"plot.py: {path} has a version without {', '.join(sorted(missing))}")
    return versions


def ticks(low, high):
    """1, 2 and 5 times the powers of ten from low to high."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]


def text(x, y, words, size=12, anchor="start", color="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">'
            f"{html.escape(words)}</text>")


def floor_line(v):
    """What the floor is made of."""
    words = (f"floor {v['floor_ms']:.4g} ms: {v['floor_bytes'] / 1e6:.4g} MB at {v['bandwidth'] / 1e9:.0f} GB/s "
             "(measured copy)")
    if v["matmul"]:
        words += f", {v['flops'] / 1e9:.4g} GFLOP at {v['matmul'] / 1e12:.0f} TFLOP/s (measured matmul)"
    return words


def svg(versions):
    first = versions[0]
    floor = first["floor_ms"]
    title = f"{first['kernel']}, {first['rows']} x {first['width']} {first['dtype']}"
    low, high = floor / 2, max(v["ms"] for v in versions) * 1.1
    bottom = TOP + STEP * len(versions)

    def x_of(ms):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(ms / low) / math.log(high / low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 44}" '
           'font-family="sans-serif">',
           '<rect width="100%" height="100%" fill="#fff"/>',
           text(12, 22, f"{title}, {first['more']}" if first["more"] else title, 15),
           text(12, 42, floor_line(first), color="#a30")]
    for ms in ticks(low, high):
        out += [f'<line x1="{x_of(ms):.1f}" y1="{TOP}" x2="{x_of(ms):.1f}" y2="{bottom}" stroke="#ddd"/>',
                text(x_of(ms), bottom + 16, f"{ms:g}", 11, "middle", "#666")]
    for i, v in enumerate(versions):
        y = TOP + STEP * i + (STEP - BAR) / 2
        out += [text(LEFT - 8, y + 14, v["version"], anchor="end"),
                f'<rect x="{LEFT}" y="{y:.1f}" width="{x_of(v["ms"]) - LEFT:.1f}" height="{BAR}" fill="#4a7ab5">'
                f'<title>{html.escape(v["idea"])}</title></rect>',
                text(x_of(v["ms"]) + 6, y + 14, f"{v['ms']:.4g} ms, {100 * floor / v['ms']:.0f} %", 11)]
    out += [f'<line x1="{x_of(floor):.1f}" y1="{TOP}" x2="{x_of(floor):.1f}" y2="{bottom}" stroke="#a30" '
            'stroke-width="2"/>',
            text((LEFT + WIDTH - RIGHT) / 2, bottom + 36, "milliseconds; share of the floor's speed", 12, "middle"),
            "</svg>"]
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    versions = read(sys.argv[1])
    if not all(v["ms"] and v["floor_ms"] and v["bandwidth"] for v in versions):
        sys.exit(f"plot.py: {sys.argv[1]} was not timed (an emulated GPU): nothing to draw")
    image = svg(versions)
    with open(sys.argv[2], "w") as file:
        file.write(image)


if __name__ == "__main__":
    main()
