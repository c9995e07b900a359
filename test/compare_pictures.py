#!/usr/bin/env python3
"""Compares metrics/image.h, metrics/kid.h and lib/assignment.h with scikit-image, imagehash, SciPy, NumPy and torchmetrics.

    test/compare_pictures.py TEST_IMAGE_METRICS TEST_CDM        the binaries built from test/test_image_metrics.c, test_cdm.c

The pairs are drawings, noise, one colour, all white, 1 x 1 and of different sizes. The references work on the frame that
Pillow makes (trimmed, padded to a white square, resized), so the whole way from the file to the number is compared: to
1e-6, and perceptual hashes bit by bit, but for bits whose coefficients are the median up to rounding (they must be 0).
"""
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import scipy.fftpack
import scipy.ndimage
import scipy.optimize
from PIL import Image, ImageChops, ImageOps
from check import check, end
from compare_images import drawing, noise

warnings.filterwarnings("ignore")
import imagehash  # noqa: E402
import torch  # noqa: E402
from skimage.color import rgb2lab  # noqa: E402
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity  # noqa: E402
from torchmetrics.image.kid import poly_mmd  # noqa: E402

SIZES = (11, 64, 97)


def make_pairs(folder):
    """[(reference, hypothesis)] as Pillow images, saved as r0.png, h0.png, ..."""
    def one(size, colour):
        return Image.new("RGB", size, colour)

    def changed(image, seed, levels):
        rng = np.random.default_rng(seed)
        values = np.asarray(image).astype(int) + rng.integers(-levels, levels + 1, np.asarray(image).shape)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    first, second = drawing("RGB", (150, 90), 1), drawing("RGB", (80, 200), 2)
    grey = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (100, 1))).convert("RGB")
    halves = Image.fromarray(np.repeat(np.uint8([[0] * 30 + [255] * 30]), 40, 0)).convert("RGB")
    pairs = [(first, first), (first, second), (second, first), (first, changed(first, 3, 9)),
             (first, first.resize((300, 180))), (first, ImageOps.expand(first, 20, "white")), (first, ImageOps.mirror(first)),
             (noise("RGB", (64, 64), 4), noise("RGB", (64, 64), 5)), (noise("RGB", (97, 40), 6), noise("RGB", (31, 85), 7)),
             (one((30, 40), "white"), one((50, 20), "white")), (one((30, 40), "white"), first),
             (one((1, 1), "white"), one((1, 1), "black")), (one((1, 1), (200, 10, 30)), one((1, 1), (10, 200, 90))),
             (one((64, 64), (9, 99, 200)), one((64, 64), (9, 99, 201))), (one((300, 2), "black"), one((2, 300), "black")),
             (grey, ImageOps.invert(grey)), (grey, grey.convert("RGB").rotate(180)), (halves, ImageOps.mirror(halves)),
             (drawing("RGB", (400, 300), 8), drawing("RGB", (420, 310), 8)), (grey, changed(grey, 9, 1))]
    for i, pair in enumerate(pairs):
        for name, image in zip("rh", pair):
            image.save(folder / f"{name}{i}.png")
    return pairs


def frame(image, size):
    """The common frame, u8 [size, size, 3]."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    image = image.crop(box) if box else image
    side = max(image.size)
    return np.asarray(ImageOps.pad(image, (side, side), color="white").resize((size, size), Image.Resampling.BICUBIC))


def moments(pixels):
    """Mean, deviation and cube root of the third central moment of L, a, b."""
    lab = rgb2lab(pixels).reshape(-1, 3)
    off = lab - lab.mean(0)
    return np.stack([lab.mean(0), lab.std(0), np.cbrt((off ** 3).mean(0))], 1).reshape(-1)


def sharpness(pixels):
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.int64)
    return scipy.ndimage.laplace(grey, mode="constant", cval=255).var()


def sure_bits(pixels):
    """Which of a perceptual hash's coefficients are not the median up to rounding."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    low = scipy.fftpack.dct(scipy.fftpack.dct(small, axis=0), axis=1)[:8, :8]
    return np.abs(low - np.median(low)) > 1e-6


def ink(pixels, side):
    """The ink, summed over squares of `side` pixels."""
    size = -(-len(pixels) // side) * side
    whole = np.zeros((size, size, 3))
    whole[:len(pixels), :len(pixels)] = 255.0 - pixels
    return whole.reshape(size // side, side, size // side, side, 3).sum((1, 3)).reshape(-1)


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms > 0 else float(not a.any() and not b.any())


def expected_scores(reference, hypothesis, size):
    a, b = frame(reference, size), frame(hypothesis, size)
    mse = mean_squared_error(a, b)
    p, q = (np.histogramdd(x.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)[0] / size ** 2 for x in (a, b))
    low, high = sorted((sharpness(a), sharpness(b)))
    return {
        "exact_pixels": float(reference.size == hypothesis.size and reference.tobytes() == hypothesis.tobytes()),
        "mse": mse,
        "psnr": min(100, peak_signal_noise_ratio(a, b, data_range=255)) if mse > 0 else 100,
        "ssim": structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
                                      channel_axis=2),
        "histogram_similarity": np.sqrt(p * q).sum(),
        "sharpness_ratio": low / high if high > 0 else 1,
        "colour_similarity": 1 / (1 + np.abs(moments(a) - moments(b)).mean()),
        "ink_similarity": np.mean([cosine(ink(a, s), ink(b, s)) for s in (1, 4, 16, 64)]),
    }


def compare_hash(mine, a, what):
    """Bits, of which those in doubt must be 0. Returns how many are in doubt."""
    bits = np.array([int(c) for c in f"{int(mine['hash'], 16):064b}"], bool).reshape(8, 8)
    sure, theirs = sure_bits(a), imagehash.phash(Image.fromarray(a)).hash
    check((bits[sure] == theirs[sure]).all() and not bits[~sure].any(), f"{what}: the hash equals imagehash's", mine["hash"])
    return 64 - sure.sum()


def compare_pairs(program, folder):
    pairs, most, doubtful = make_pairs(folder), {}, 0
    files = [str(folder / f"{name}{i}.png") for i in range(len(pairs)) for name in "rh"]
    for size in SIZES:
        lines = subprocess.run([program, "--compare", str(size)] + files, check=True, capture_output=True, text=True).stdout
        for i, line in enumerate(lines.splitlines()):
            mine, what, a = json.loads(line), f"pair {i} at {size}", frame(pairs[i][0], size)
            with np.errstate(divide="ignore"):
                expected = expected_scores(*pairs[i], size)
            off = np.abs(np.array(mine["moments"]) - moments(a))
            most["moments"] = max(most.get("moments", 0), off.max())
            check(off.max() < 1e-6, f"{what}: colour moments", list(off))
            check(abs(mine["sharpness"] - sharpness(a)) <= 1e-9 * sharpness(a), f"{what}: sharpness", mine["sharpness"])
            doubt = compare_hash(mine, a, what) + (~sure_bits(frame(pairs[i][1], size))).sum()
            doubtful += doubt
            hashes = [imagehash.phash(Image.fromarray(frame(x, size))) for x in pairs[i]]
            check(abs(mine["perceptual_hash"] - (1 - (hashes[0] - hashes[1]) / 64)) * 64 <= doubt, f"{what}: distance of hashes")
            check(mine["selfsim_mean"] is None and mine["selfsim_emd"] is None, f"{what}: no features, no self-similarity")
            for key, value in expected.items():
                off = abs(mine[key] - value)
                most[key] = max(most.get(key, 0), off)
                check(off < 1e-6, f"{what}: {key}", f"{mine[key]!r}, expected {value!r}")
    print(f"{len(pairs)} pairs at {', '.join(map(str, SIZES))}; {doubtful} bits of hashes in doubt; largest differences: "
          + ", ".join(f"{key} {value:.1e}" for key, value in most.items()))


def compare_kid(program, folder):
    """The mean and deviation of torchmetrics' MMD² over the subsets that the program has drawn."""
    rng, most = np.random.default_rng(0), 0
    for n, m, d, shift in ((120, 80, 33, 0.5), (60, 60, 8, 0), (50, 50, 16, 1), (20, 31, 5, 0.2), (2, 2, 3, 1), (2, 70, 768, 0)):
        x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift
        np.concatenate([x, y]).tofile(folder / "features")
        run = subprocess.run([program, "--kid", str(n), str(m), str(d), "5", str(folder / "features")], check=True,
                             capture_output=True, text=True)
        mine, what, size = json.loads(run.stdout), f"KID of {n} and {m} images", min(50, n, m)
        check(len(mine["subsets"]) == 200 and all(len(set(s)) == size for s in mine["subsets"]), f"{what}: 100 subsets of {size}")
        values = [float(poly_mmd(torch.tensor(x[a]), torch.tensor(y[b])))
                  for a, b in zip(mine["subsets"][::2], mine["subsets"][1::2])]
        off = max(abs(mine["mean"] - np.mean(values)), abs(mine["deviation"] - np.std(values)))
        most = max(most, off)
        check(off < 1e-6, what, f"{mine['mean']} +- {mine['deviation']}, expected {np.mean(values)} +- {np.std(values)}")
    print(f"KID: differs from torchmetrics by at most {most:.1e}")


def compare_assignments(program, folder):
    """The cost of the assignment, with and without equal costs; the columns may differ where several are best."""
    rng = np.random.default_rng(1)
    for i in range(24):
        n = int(rng.integers(1, 60))
        m = n + int(rng.integers(0, 30)) * (i % 2)
        cost = rng.integers(-3, 4, (n, m)).astype(float) if i % 3 == 0 else rng.normal(size=(n, m))
        cost.tofile(folder / "cost")
        run = subprocess.run([program, "--assign", str(n), str(m), str(folder / "cost")], check=True, capture_output=True, text=True)
        columns = [int(line) for line in run.stdout.split()]
        best = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
        check(len(set(columns)) == n and abs(cost[range(n), columns].sum() - best) < 1e-9, f"assignment of {n} to {m}", columns)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        compare_pairs(sys.argv[1], Path(name))
        compare_kid(sys.argv[1], Path(name))
        compare_assignments(sys.argv[2], Path(name))
    end()


if __name__ == "__main__":
    main()
