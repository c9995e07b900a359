#!/usr/bin/env python3
"""Summarizes the measurements of dev/gpu_check.sh as Markdown and JSON.

    gpu_report.py FOLDER OUT        FOLDER: the output of gpu_check.sh; writes OUT/gpu.md and OUT/gpu.json

Stages without output are omitted.
"""
import json
import pathlib
import sys


def lines(path):
    """The JSON objects of a file, one per line. A missing file has none; a truncated last line is dropped."""
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
    """The stages of the check, from stages.tsv."""
    path = folder / "stages.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return [{"stage": name, "seconds": int(seconds), "passed": int(passed), "failed": int(failed), "note": note}
            for name, seconds, passed, failed, note in rows]


def kernels(folder):
    """(machine, operations): the output of bench_kernels, with shares of the floor and the fastest peers."""
    machine, *entries = lines(folder / "kernels.json") or [{}]
    peers = {(p["op"], p["what"], p["shape"]): p for p in lines(folder / "peers.json")}
    for entry in entries:
        peer = peers.get((entry["op"], entry["what"], entry["shape"]))
        entry["share"] = entry["floor_ms"] / entry["ms"]
        if peer:
            entry["peer"], entry["peer_ms"], entry["peers"] = peer["peer"], peer["ms"], peer.get("all", {})
    return machine, entries


def training(folder, name, samples_of_tokens):
    """Medians over the second half of the steps of a run: text tokens per second and share of the measured peak; with
    samples_of_tokens, the text tokens of a sample, also samples per second. None without steps."""
    steps = [line for line in lines(folder / name / "log.jsonl") if "tokens_per_second" in line]
    steps = steps[len(steps) // 2:]
    if not steps:
        return None
    tokens = median([s["tokens_per_second"] for s in steps])
    result = {"tokens_per_second": tokens, "share": median([s["peak_share"] for s in steps])}
    if samples_of_tokens:
        result["samples_per_second"] = tokens / samples_of_tokens
    return result


def lessons(folder):
    """The measurements of the kernel versions in dev/learn."""
    return [v for path in sorted(folder.glob("lesson-*.json")) for v in lines(path)]


def all_training(folder):
    """The training runs that exist, each with the rate of its fastest peer in text tokens per second."""
    runs = {name: training(folder, name, tokens)
            for name, tokens in (("distil-starter", 0), ("train-small", 95), ("distil-large", 0))}
    runs = {name: run for name, run in runs.items() if run}
    peers = [p[0] for p in (lines(folder / f) for f in ("train-peer.json", "train-peer-compiled.json")) if p]
    if peers and "train-small" in runs:
        best = min(peers, key=lambda p: p["ms"])
        runs["train-small"].update(peer=best["peer"], peer_tokens_per_second=95 * 64e3 / best["ms"])
    peer = lines(folder / "distil-large-peer.json")
    if peer and "distil-large" in runs:
        runs["distil-large"].update(peer=peer[0]["peer"], peer_tokens_per_second=peer[0]["tokens_per_second"])
    return runs


def all_decoding(folder):
    """The measurements of bench_decode by shape, each with its peer."""
    found = {}
    for shape in ("1.1b", "7b"):
        decoding, peer = lines(folder / f"decode-{shape}.json"), lines(folder / f"decode-{shape}-peer.json")
        if decoding:
            found[shape] = {**decoding[0], "peer": peer[0] if peer else None}
    return found


def collect(folder):
    machine, entries = kernels(folder)
    gpu = folder / "gpu.txt"
    name = gpu.read_text().strip() if gpu.exists() else machine.get("device", "none")
    first = lines(folder / "first.json")
    report = {"gpu": name, "date": (folder / "date.txt").read_text().strip(), "machine": machine,
              "stages": stages(folder), "kernels": entries, "lessons": lessons(folder),
              "training": all_training(folder), "decoding": all_decoding(folder),
              "start_to_first_token_s": first[0]["start_to_first_token_s"] if first else None}
    report["goals"] = [{"what": what, "measured": measured, "asked": asked, "reached": reached}
                       for what, measured, asked, reached in ([] if trial(report) else goals(report))]
    return report


def trial(report):
    """Whether the sizes were tiny, so that the times mean nothing."""
    return report["machine"].get("shapes") == "tiny"


# ---- goals: (what, measured, asked, reached or None if not measured) ----

def at_least(what, value, bound, unit=""):
    shown = "not measured" if value is None else f"{value:.3g}{unit}"
    return what, shown, f"at least {bound:g}{unit}", None if value is None else value >= bound


def at_most(what, value, bound, unit=""):
    shown = "not measured" if value is None else f"{value:.3g}{unit}"
    return what, shown, f"at most {bound:g}{unit}", None if value is None else value <= bound


def ratio(a, b):
    return a / b if a is not None and b else None


def kernel_goals(entries):
    def find(op, what=None, *parts):
        return next((e for e in entries if e["op"] == op and what in (None, e["what"])
                     and all(p in e["shape"].split() for p in parts)), {})

    bound = [e for e in entries if e["bound"] == "bytes" and e["floor_ms"] > 0.02]
    fast = [e for e in bound if e["share"] >= 0.85]
    yield ("operations bound by memory at 85 % of its bandwidth or more, of those that take 0.02 ms at least",
           f"{len(fast)} of {len(bound)}", "all", len(fast) == len(bound) if bound else None)
    row = find("distill_rows", "KL tau 2", "rows=8192", "V=32768")
    yield at_most("row kernel of the objective, 8192 x 32768: time / floor",
                  ratio(row.get("ms"), row.get("floor_ms")), 1.3)
    jsd = find("distill_rows", "JSD alone tau 1", "rows=8192", "V=32768")
    peers = jsd.get("peers", {})
    name = "Liger's JSD" if "Liger's JSD" in peers else "torch"
    yield at_least(f"the same with JSD: time of {name} / ours", ratio(peers.get(name), jsd.get("ms")), 10)
    whole, products = (find(op, None, "n=8192", "V=32768") for op in ("objective", "objective_products"))
    yield at_most("whole objective, widths 2048 and 4096: time / time of its matmuls",
                  ratio(whole.get("ms"), products.get("ms")), 1.15)
    yield at_most("its memory beyond inputs and gradients", ratio(whole.get("extra_memory"), 1e6), 600, " MB")
    for D in (64, 128):
        for direction, share in (("forward", 0.55), ("backward", 0.4)):
            e = find(f"attention_{direction}", "alone", "T=2048", f"D={D}", "causal=1")
            name = f"attention {direction}, causal, T = 2048, heads of {D}"
            yield at_least(f"{name}: share of the matmul rate", e.get("share"), share)
            yield at_most(f"{name}: time / PyTorch's", ratio(e.get("ms"), e.get("peer_ms")), 1.25)


def goals(report):
    yield from kernel_goals(report["kernels"])
    large = report["training"].get("distil-large", {})
    yield at_least("distilling 1.1b from 7b: share of the matmul rate", large.get("share"), 0.6)
    yield at_least("the same: tokens/s / PyTorch's",
                   ratio(large.get("tokens_per_second"), large.get("peer_tokens_per_second")), 1.5)
    for shape in ("1.1b", "7b"):
        d = report["decoding"].get(shape, {"batches": [], "peer": None})
        alone = next((b for b in d["batches"] if b["batch"] == 1), {})
        peers = [p["step_ms"] for p in (d["peer"] or {"batches": []})["batches"] if p["batch"] == 1]
        yield at_least(f"decoding one sequence, {shape}: share of the bandwidth",
                       ratio(alone.get("floor_ms"), alone.get("step_ms")), 0.88)
        yield at_least("the same: time of Transformers / ours",
                       ratio(min(peers, default=None), alone.get("step_ms")), 4)
    yield at_most("infer, 1.1b, file in memory: from start to the end of a first token",
                  report["start_to_first_token_s"], 1.5, " s")


def goal_rows(found):
    words = {True: "yes", False: "no", None: ""}
    for g in found:
        yield f"| {g['what']} | {g['measured']} | {g['asked']} | {words[g['reached']]} |"


def decoding_rows(shape, d):
    """A row for each batch size, with the fastest peer at that size."""
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
              "distil-large": "distilling TinyLlama from CodeLlama-7B, SO400M frozen, 1024 text positions"}
    for name, r in runs.items():
        peer = " | | "
        if "peer" in r:
            theirs = r["peer_tokens_per_second"]
            peer = f"{theirs:.0f} | {r['tokens_per_second'] / theirs:.2f} | {r['peer']}"
        samples = f"{r['samples_per_second']:.0f}" if "samples_per_second" in r else ""
        yield f"| {titles[name]} | {r['tokens_per_second']:.0f} | {samples} | {100 * r['share']:.1f} % | {peer} |"


def lesson_rows(versions):
    for v in versions:
        time = "not timed | |"
        if v["ms"]:
            time = f"{v['ms']:.4f} | {v['floor_ms']:.4f} | {100 * v['floor_ms'] / v['ms']:.0f} %"
        yield f"| {v['kernel']} | {v['version']} | {v['rows']} x {v['width']} | {time} |"


def markdown(r):
    m = r["machine"]
    out = ["# On a GPU", "", f"Written by `dev/gpu_check.sh` on {r['date']}; the numbers are those of one run.", "",
           f"Machine: {r['gpu']}."]
    if m:
        out += ["", f"Measured there: matmul {m['peak'] / 1e12:.1f} TFLOP/s ({m['dtype']}), copy "
                f"{m['bandwidth'] / 1e9:.0f} GB/s (read and written). The floor of an operation is the larger of "
                "FLOPs / matmul rate and bytes / copy; its share is floor / time."]
    if trial(r):
        out += ["", "**Tiny sizes, for trying the script out: no figure here says anything about a GPU.**"]
    else:
        out += ["", "## Asked for", "", "| | measured | asked | reached |", "|---|---|---|---|",
                *goal_rows(r["goals"])]
    out += ["", "## Checks", "", "| stage | seconds | passed | failed | |", "|---|---|---|---|---|"]
    out += [f"| {s['stage']} | {s['seconds']} | {s['passed']} | {s['failed']} | {s['note']} |" for s in r["stages"]]
    if r["training"]:
        out += ["", "## Training steps", "",
                "The share is that of the models' FLOPs at the measured matmul rate.", "",
                "| | text tokens/s | samples/s | share | peer's tokens/s | ours/peer | peer |",
                "|---|---|---|---|---|---|---|", *training_rows(r["training"])]
    d = r["decoding"]
    if d:
        out += ["", "## Decoding", "", "Milliseconds of a decoding step, one token for each sequence of a batch; the "
                "floor is the bytes of the weights and the KV cache over the copy bandwidth.", "",
                "| shape | batch | ms | floor ms | share | tokens/s | peer ms | peer/ours | peer |",
                "|---|---|---|---|---|---|---|---|---|",
                *(row for shape, one in d.items() for row in decoding_rows(shape, one))]
    if "1.1b" in d:
        image, opened = d["1.1b"]["image_to_first_token_s"], d["1.1b"]["open_s"]
        out += ["", f"1.1b: image to first token {1e3 * image:.1f} ms; from start to the first matmul "
                f"{opened:.3f} s."]
    if r["lessons"]:
        out += ["", "## Kernels in teaching order", "", "| kernel | version | shape | ms | floor ms | share |",
                "|---|---|---|---|---|---|", *lesson_rows(r["lessons"])]
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
