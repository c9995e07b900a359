#!/usr/bin/env python3
"""Compares two log.jsonl files of train_distill step by step.

    compare_curves.py A/log.jsonl B/log.jsonl --tolerance 1e-4 [--bits]

The terms of the loss must agree within the relative tolerance; every logged step and evaluation is one check. With
--bits all numbers except the timings must be equal. Ends with "N passed, M failed".
"""
import argparse
import json
import sys

TERMS = ("loss", "ce", "soft", "hard", "embed")
TIMINGS = ("time", "tokens_per_second", "peak_share", "comm", "wait", "sampling", "rewarding")


def read(path):
    """Reads a log as {(step, "train" or "val"): numbers}."""
    lines = {}
    with open(path) as file:
        for line in file:
            entry = json.loads(line)
            lines[entry["step"], "val" if "val" in entry else "train"] = entry.get("val", entry)
    return lines


def difference(a, b):
    """The largest relative difference of any term of the loss."""
    worst = 0.0
    for term in TERMS:
        if term in a or term in b:
            x, y = a.get(term), b.get(term)
            if x is None or y is None or x != x or y != y:
                return float("inf")
            worst = max(worst, abs(x - y) / max(abs(x), abs(y), 1e-12))
    return worst


def without_timings(entry):
    return {key: value for key, value in entry.items() if key not in TIMINGS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--bits", action="store_true")
    args = parser.parse_args()
    a, b = read(args.a), read(args.b)
    passed = failed = 0
    worst = (0.0, None)
    for key in sorted(set(a) | set(b)):
        if key not in a or key not in b:
            print(f"FAIL step {key[0]} ({key[1]}) is in one log only")
            failed += 1
            continue
        apart = difference(a[key], b[key])
        worst = max(worst, (apart, key), key=lambda pair: pair[0])
        if args.bits:
            equal = without_timings(a[key]) == without_timings(b[key])
        else:
            equal = apart <= args.tolerance
        if not equal:
            print(f"FAIL step {key[0]} ({key[1]}): apart by {apart:.3g}, "
                  f"{'expected the same bits' if args.bits else f'allowed {args.tolerance:g}'}")
        passed, failed = passed + equal, failed + (not equal)
    if not a and not b:
        print("FAIL both logs are empty")
        failed += 1
    print(f"largest relative difference {worst[0]:.3g} at {worst[1]}")
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
