#!/usr/bin/env python3
"""Makes one table and one JSON of what dev/gpu_check.sh measured.

    gpu_report.py FOLDER OUT        FOLDER: the check's; writes OUT/gpu.md and OUT/gpu.json

What a stage did not leave behind is left out.
"""
import json
import pathlib
import sys


def lines(path):
    """The JSON objects of a file, one a line; none where there is no file, and a broken last line is dropped."""
    found = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return found


def median(values):
    return sorted(values)[len(values) // 2]


def stages(folder):
    path = folder / "stages.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return [{"stage": name, "seconds": int(seconds), "passed": int(passed), "failed": int(failed), "note": note}
            for name, seconds, passed, failed, note in rows]


def kernels(folder):
    machine, *entries = lines(folder / "kernels.json") or [{}]
    peers = {(p["op"], p["what"], p["shape"]): p for p in lines(folder / "peers.json")}
    for entry in entries:
        peer = peers.get((entry["op"], entry["what"], entry["shape"]))
        entry["share"] = entry["floor_ms"] / entry["ms"]
        if peer:
            entry["peer"], entry["peer_ms"] = peer["peer"], peer["ms"]
    return machine, entries


def training(folder, name, samples_of_tokens):
    """The second half of a run's steps: milliseconds, share of the measured peak."""
    steps = [line for line in lines(folder / name / "log.jsonl") if "tokens_per_second" in line]
    steps = steps[len(steps) // 2:]
    if not steps:
        return None
    tokens = median([s["tokens_per_second"] for s in steps])
    result = {"tokens_per_second": tokens, "share": median([s["peak_share"] for s in steps])}
    if samples_of_tokens:
        result["samples_per_second"] = tokens / samples_of_tokens
    return result


def collect(folder):
    machine, entries = kernels(folder)
    name = (folder / "gpu.txt").read_text().strip() if (folder / "gpu.txt").exists() else machine.get("device", "none")
    report = {"gpu": name, "date": (folder / "date.txt").read_text().strip(), "machine": machine,
              "stages": stages(folder), "kernels": entries, "training": {}, "decoding": None}
    for run, tokens in (("distil-starter", 0), ("train-small", 95), ("train-large", 95)):
        result = training(folder, run, tokens)
        if result:
            report["training"][run] = result
    peers = [p[0] for p in (lines(folder / f) for f in ("train-peer.json", "train-peer-compiled.json")) if p]
    if peers and "train-small" in report["training"]:
        best = min(peers, key=lambda p: p["ms"])
        report["training"]["train-small"].update(peer=best["peer"], peer_samples_per_second=64e3 / best["ms"])
    report["decoding"] = {}
    for shape in ("1.1b", "7b"):
        decoding, peer = lines(folder / f"decode-{shape}.json"), lines(folder / f"decode-{shape}-peer.json")
        if decoding:
            report["decoding"][shape] = {**decoding[0], "peer": peer[0] if peer else None}
    return report


def decoding_rows(shape, d):
    """A row for each batch, with the fastest peer of that batch."""
    for b in d["batches"]:
        peers = [p for p in (d["peer"] or {"batches": []})["batches"] if p["batch"] == b["batch"]]
        best = min(peers, key=lambda p: p["step_ms"], default=None)
        beside = (f"{best['step_ms']:.3f} | {best['step_ms'] / b['step_ms']:.1f} | {d['peer']['peer']}, {best['how']}"
                  if best else " | | ")
        yield (f"| {shape} | {b['batch']} | {b['step_ms']:.3f} | {b['floor_ms']:.3f} | "
               f"{100 * b['floor_ms'] / b['step_ms']:.0f} % | {1e3 * b['batch'] / b['step_ms']:.0f} | {beside} |")


def kernel_rows(entries):
    for e in entries:
        peer = f"{e['peer_ms']:.4f} | {e['peer_ms'] / e['ms']:.2f} | {e['peer']}" if "peer" in e else " | | "
        yield (f"| {e['op']} | {e['what']} | {e['shape']} | {e['ms']:.4f} | {e['floor_ms']:.4f} | {e['bound']} | "
               f"{100 * e['share']:.0f} % | {peer} |")


def training_rows(runs):
    titles = {"distil-starter": "distilling the starter (its defaults)",
              "train-small": "--student small, batch 64, no teacher",
              "train-large": "SO400M encoder and TinyLlama's decoder, batch 16, no teacher"}
    for name, r in runs.items():
        peer = f"{r['peer_samples_per_second']:.0f} samples/s ({r['peer']})" if "peer" in r else ""
        samples = f"{r['samples_per_second']:.0f}" if "samples_per_second" in r else ""
        yield f"| {titles[name]} | {r['tokens_per_second']:.0f} | {samples} | {100 * r['share']:.1f} % | {peer} |"


def markdown(r):
    m = r["machine"]
    out = ["# On a GPU", "", f"Written by `dev/gpu_check.sh` on {r['date']}; the numbers are those of one run.", "",
           f"Machine: {r['gpu']}."]
    if m:
        out += ["", f"Measured there: product {m['peak'] / 1e12:.1f} TFLOP/s ({m['dtype']}), copy "
                f"{m['bandwidth'] / 1e9:.0f} GB/s (read and written). The floor of an operation is the larger of "
                "FLOPs / product and bytes / copy; its share is floor / time."]
    out += ["", "## Checks", "", "| stage | seconds | passed | failed | |", "|---|---|---|---|---|"]
    out += [f"| {s['stage']} | {s['seconds']} | {s['passed']} | {s['failed']} | {s['note']} |" for s in r["stages"]]
    if r["training"]:
        out += ["", "## Training steps", "", "| | text tokens/s | samples/s | share of the peak | peer |",
                "|---|---|---|---|---|", *training_rows(r["training"])]
    d = r["decoding"]
    if d:
        out += ["", "## Decoding", "", "Milliseconds for one token of each text of a batch; the floor is the bytes of the "
                "weights and the cache over the copy bandwidth.", "",
                "| shape | batch | ms | floor ms | share | tokens/s | peer ms | peer/ours | peer |",
                "|---|---|---|---|---|---|---|---|---|",
                *(row for shape, one in d.items() for row in decoding_rows(shape, one))]
    if "1.1b" in d:
        out += ["", f"1.1b: picture to first token {1e3 * d['1.1b']['picture_to_first_token_s']:.1f} ms; from nothing to "
                f"the first product {d['1.1b']['open_s']:.3f} s."]
    if r["kernels"]:
        out += ["", f"## Operations, {m['shapes']} shapes", "",
                "| operation | | shape | ms | floor ms | bound | share | peer ms | peer/ours | peer |",
                "|---|---|---|---|---|---|---|---|---|---|", *kernel_rows(r["kernels"])]
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    report = collect(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu.md").write_text(markdown(report))
    print(f"{out / 'gpu.md'} and {out / 'gpu.json'}")


if __name__ == "__main__":
    main()
