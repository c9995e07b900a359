#!/usr/bin/env python3
"""Earth mover's distances by POT (ot.emd2), for test/test_search.c; needs numpy and POT.

    transport_oracle.py > test/fixtures/transport.txt

Each line: N M DIM LEVELS WEIGHTS SEED DISTANCE. The patches are uniform in -1 .. 1, drawn with splitmix64 from the seed,
first [N, DIM], then [M, DIM]; LEVELS > 0: rounded to that many levels, so that many costs are equal. WEIGHTS 1: then N and
M weights follow, uniform in 0 .. 1, the first of each 0. The cost of i and j is 1 - cos(i, j).
"""
import numpy as np
import ot

MASK = (1 << 64) - 1


def uniform(seed, count):
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(((z ^ (z >> 31)) >> 11) * 2.0 ** -53)
    return np.array(out), seed


def main():
    cases = [(1, 1, 3, 0, 0), (5, 5, 3, 0, 0), (7, 3, 4, 0, 0), (3, 8, 2, 0, 1), (16, 16, 2, 3, 0), (64, 64, 8, 0, 0),
             (100, 60, 6, 0, 1), (90, 90, 4, 2, 1), (128, 96, 3, 2, 0), (300, 300, 16, 0, 0), (900, 900, 12, 0, 0),
             (400, 500, 5, 0, 1)]
    for seed, (n, m, dim, levels, weights) in enumerate(cases, 1):
        x, state = uniform(seed, (n + m) * dim)
        x = 2 * x - 1
        if levels:
            x = np.floor(x * levels) + 0.5
        x = x.reshape(n + m, dim)
        x = x / np.sqrt((x * x).sum(1, keepdims=True))
        a, b = np.full(n, 1 / n), np.full(m, 1 / m)
        if weights:
            w, _ = uniform(state, n + m)
            a, b = w[:n], w[n:]
            a[0] = b[0] = 0
            a, b = a / a.sum(), b / b.sum()
        distance = ot.emd2(a, b, 1 - x[:n] @ x[n:].T, numItermax=10 ** 7)
        print(n, m, dim, levels, weights, seed, repr(float(distance)))


if __name__ == "__main__":
    main()
