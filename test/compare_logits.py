#!/usr/bin/env python3
"""Compares the metrics of the logits (kernels/figures.h, metrics/logits.h) with SciPy, NumPy and torchmetrics.

    test/compare_logits.py BUILD        BUILD: a folder with test_logits_metrics and eval

First every figure of rows of every kind: random, equal, tied, one-hot, huge, of vocabularies of 1 to 5 ids and of
different size. Then all that `eval --metrics` writes of the starter's models, from the logits that `eval --logits`
writes of each. All in fp64 and equal to 1e-10, but for torchmetrics, which sums in fp32.
"""
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy import special, stats
from scipy.spatial import distance
from torchmetrics.functional.classification import multiclass_calibration_error

from check import check, end

BUILD = Path(sys.argv[1]).resolve()
ROOT = Path(__file__).resolve().parent.parent
TOPS = (1, 3, 5, 10)
SIDE = ("ce", "correct", "confidence", "entropy", "soft_entropy", "effective", "gini")
FIGURES = ([*SIDE] + [f"truth_{k}" for k in TOPS] + [f"teacher_{x}" for x in SIDE] +
           ["kl", "reverse_kl", "js", "agreement", "confidence_mse"] + [f"overlap_{k}" for k in TOPS] +
           [f"first_{k}" for k in TOPS] + ["rank", "rank_defined"])
TOLERANCE = 1e-10


def top(x, k):
    """The k largest, of equal ones those with smaller ids."""
    return list(np.argsort(-x, kind="stable")[:k])


def gini(p):
    """Half the mean absolute difference of all pairs, over the mean: another form than the one of the C code."""
    p, n = np.sort(p), len(p)
    below = np.concatenate(([0], np.cumsum(p)[:-1]))
    return 2 * np.sum(p * np.arange(n) - below) / (2 * n * n * p.mean())


def side(x, shared, label, T):
    """The figures of one model: on all its ids at temperature 1, on the first `shared` ones at T."""
    log_p, p = special.log_softmax(x), special.softmax(x)
    soft = special.softmax(x[:shared] / T)
    return {"ce": -log_p[label], "correct": float(top(x, 1)[0] == label), "confidence": p.max(),
            "entropy": stats.entropy(p), "soft_entropy": stats.entropy(soft), "effective": 1 / np.sum(soft**2),
            "gini": gini(soft)}


def row(s, t, label, T):
    s = s.astype(np.float64)
    shared = min(len(s), len(t)) if t is not None else len(s)
    out = dict.fromkeys(FIGURES, 0.0)
    out.update(side(s, shared, label, T))
    out.update({f"truth_{k}": float(label in top(s, k)) for k in TOPS})
    if t is None:
        return out
    t = t.astype(np.float64)
    out.update({f"teacher_{name}": value for name, value in side(t, shared, label, T).items()})
    p, q = special.softmax(t[:shared] / T), special.softmax(s[:shared] / T)
    log_p, log_q = special.log_softmax(t[:shared] / T), special.log_softmax(s[:shared] / T)
    out["kl"] = T * T * np.sum(np.where(p > 0, p * (log_p - log_q), 0))
    out["reverse_kl"] = T * T * np.sum(np.where(q > 0, q * (log_q - log_p), 0))
    out["js"] = distance.jensenshannon(p, q) ** 2
    first = top(t[:shared], 1)[0]
    out["agreement"] = float(top(s, 1)[0] == first)
    out["confidence_mse"] = (out["confidence"] - out["teacher_confidence"]) ** 2
    for k in TOPS:
        mine, its = set(top(s, k)), top(t[:shared], k)
        out[f"overlap_{k}"] = len(mine & set(its)) / len(its)
        out[f"first_{k}"] = float(first in mine)
    defined = shared > 1 and np.ptp(s[:shared]) > 0 and np.ptp(t[:shared]) > 0
    out["rank_defined"] = float(defined)
    out["rank"] = stats.spearmanr(s[:shared], t[:shared]).statistic if defined else 0.0
    return out


def close(a, b):
    """To TOLERANCE, of a where a is above 1. What is no number, or too large for one, is null in JSON."""
    if a is None or not np.isfinite(a):
        return b is None
    return b is not None and abs(a - b) <= TOLERANCE * max(1, abs(a))


def exp(x):
    return np.exp(x) if x < 700 else np.inf


def calibration(confidence, correct):
    """ECE and the curve: bins [b/10, (b+1)/10), the last one closed."""
    confidence, correct = np.array(confidence), np.array(correct)
    which = np.minimum(np.searchsorted(np.arange(1, 10) / 10, confidence, side="right"), 9)
    curve, error = [], 0.0
    for b in range(10):
        inside = which == b
        n = int(inside.sum())
        c, a = (confidence[inside].mean(), correct[inside].mean()) if n else (None, None)
        curve.append({"count": n, "confidence": c, "accuracy": a})
        if n:
            error += n / len(confidence) * abs(a - c)
    return error, curve


def summary(rows, teacher):
    """What follows from the figures of all positions, under the names of our JSON."""
    mean = {name: float(np.mean([r[name] for r in rows])) for name in FIGURES}
    error, curve = calibration([r["confidence"] for r in rows], [r["correct"] for r in rows])
    out = {"ce": mean["ce"], "perplexity": exp(mean["ce"]), "accuracy": mean["correct"], "ece": error,
           "confidence": mean["confidence"], "entropy": mean["entropy"], "soft_entropy": mean["soft_entropy"],
           "effective_vocabulary": mean["effective"], "gini": mean["gini"], "reliability": curve}
    out.update({f"truth_in_{k}": mean[f"truth_{k}"] for k in TOPS})
    if not teacher:
        return out, None
    s, t = [np.array([r[name] for r in rows]) for name in ("confidence", "teacher_confidence")]
    varies = np.ptp(s) > 0 and np.ptp(t) > 0
    out.update({name: mean[name] for name in ("kl", "reverse_kl", "js", "agreement", "confidence_mse")})
    out.update({f"overlap_{k}": mean[f"overlap_{k}"] for k in TOPS})
    out.update({f"first_in_{k}": mean[f"first_{k}"] for k in TOPS})
    defined = [r["rank"] for r in rows if r["rank_defined"]]
    entropy = mean["teacher_soft_entropy"]
    out.update({"confidence_correlation": stats.pearsonr(s, t).statistic if varies and len(s) > 1 else None,
                "rank_correlation": float(np.mean(defined)) if defined else None,
                "entropy_ratio": mean["soft_entropy"] / entropy if entropy > 0 else None,
                "teacher_confidence": mean["teacher_confidence"], "teacher_entropy": mean["teacher_entropy"],
                "teacher_soft_entropy": entropy, "teacher_gini": mean["teacher_gini"],
                "teacher_effective_vocabulary": mean["teacher_effective"]})
    error, curve = calibration([r["teacher_confidence"] for r in rows], [r["teacher_correct"] for r in rows])
    return out, {"ce": mean["teacher_ce"], "perplexity": exp(mean["teacher_ce"]), "reliability": curve,
                 "accuracy": mean["teacher_correct"], "ece": error}


def compare_summary(name, found, expected):
    """Every key is there, and no other, with the value expected."""
    check(set(found) == set(expected), f"{name}: the keys", set(found) ^ set(expected))
    for key, value in expected.items():
        if key == "reliability":
            for b in range(10):
                for part in value[b]:
                    check(close(value[b][part], found[key][b][part]), f"{name}: bin {b}, {part}", found[key][b])
        else:
            check(close(value, found[key]), f"{name}: {key}", f"{found[key]}, expected {value}")


# ---- rows ----


def measure(s, t, labels, T):
    with tempfile.NamedTemporaryFile() as file:
        Vt = t.shape[1] if t is not None else 0
        file.write(struct.pack("<iiid", len(s), s.shape[1], Vt, T) + np.asarray(labels, np.int32).tobytes())
        file.write(s.astype(np.float32).tobytes() + (t.astype(np.float32).tobytes() if Vt else b""))
        file.flush()
        run = [BUILD / "test_logits_metrics", "--rows", file.name]
        return json.loads(subprocess.run(run, check=True, capture_output=True).stdout)


def compare_rows(name, s, t=None, T=2.0):
    s = s.astype(np.float32)
    t = t.astype(np.float32) if t is not None else None
    labels = np.random.default_rng(len(name)).integers(0, min(s.shape[1], t.shape[1] if t is not None else 1 << 30),
                                                       len(s))
    found = measure(s, t, labels, T)
    rows = [row(s[i], t[i] if t is not None else None, labels[i], T) for i in range(len(s))]
    for i, expected in enumerate(rows):
        bad = {k: (f, expected[k]) for k, f in zip(FIGURES, found["rows"][i]) if not close(expected[k], f)}
        check(len(found["rows"][i]) == len(FIGURES) and not bad, f"{name}, T {T}, row {i}", bad)
    model, teacher = summary(rows, t is not None)
    compare_summary(f"{name}, T {T}", found["model"], model)
    if teacher:
        compare_summary(f"{name}, T {T}, teacher", found["teacher"], teacher)
    return found, labels


def compare_all_rows():
    rng = np.random.default_rng(3)
    near = rng.normal(0, 3, (12, 300))
    one_hot = np.where(np.arange(100) == rng.integers(0, 100, (8, 1)), 1e4, -1e4)
    for T in (0.5, 1.0, 3.0, 4.5):
        compare_rows("random", near, near + rng.normal(0, 1, near.shape), T)
        compare_rows("one-hot teachers", rng.normal(0, 2, one_hot.shape), one_hot, T)
    compare_rows("one-hot students", one_hot[:, ::-1], one_hot)
    compare_rows("one-hot both", one_hot, one_hot)
    compare_rows("no teacher", near)
    compare_rows("the same", near, near)
    compare_rows("nearly the same", near, near + 1e-4 * rng.normal(0, 1, near.shape))
    compare_rows("ties", np.round(near), np.round(near[::-1] / 2))
    compare_rows("all ties", np.full((4, 60), 2.5), rng.normal(0, 1, (4, 60)))
    compare_rows("all ties of both", np.full((4, 60), 2.5), np.zeros((4, 60)))
    compare_rows("huge", 1e4 * near, 3e4 * near[::-1])
    compare_rows("one position", near[:1], near[1:2])
    compare_rows("large", rng.normal(0, 3, (3, 20001)), rng.normal(0, 3, (3, 20001)))
    compare_rows("far apart", near - 5e5, near + 5e5)
    for V in range(1, 6):
        compare_rows(f"{V} ids", rng.normal(0, 2, (6, V)), rng.normal(0, 2, (6, V)))
    compare_rows("a larger student", rng.normal(0, 2, (9, 77)), rng.normal(0, 2, (9, 70)))
    compare_rows("a larger teacher", rng.normal(0, 2, (9, 70)), rng.normal(0, 2, (9, 77)))
    compare_rows("one id shared", rng.normal(0, 2, (9, 4)), rng.normal(0, 2, (9, 1)))
    for bad in (np.nan, np.inf, -np.inf):
        broken = near[:2].copy()
        broken[1, 7] = bad
        for s, t in ((broken, near[:2]), (near[:2], broken)):
            found = measure(s, t, [0, 1], 2.0)["rows"]
            check(len(found[0]) == len(FIGURES) and not found[1], f"a row with {bad} has no figures", found[1])
    logits, labels = rng.normal(0, 1.5, (800, 20)).astype(np.float32), rng.integers(0, 20, 800)
    theirs = multiclass_calibration_error(torch.tensor(logits, dtype=torch.float64).softmax(-1), torch.tensor(labels),
                                          num_classes=20, n_bins=10, norm="l1").item()
    mine = measure(logits, None, labels, 1.0)["model"]["ece"]
    check(abs(theirs - mine) < 1e-6, "ECE as torchmetrics has it", f"{mine}, expected {theirs}")


# ---- eval ----

UPSTREAM = {
    "CE": "ce", "Perplexity": "perplexity", "KL_to_teacher": "kl", "ArgmaxAgreementWithTeacher": "agreement",
    "NextTokenAccuracy": "accuracy", "ECE": "ece", "MeanEntropy": "entropy", "Top5OverlapWithTeacher": "overlap_5",
    "JS_Divergence": "js", "RankCorrelation": "rank_correlation", "confidence_mse": "confidence_mse",
    "confidence_correlation": "confidence_correlation", "student_entropy": "soft_entropy",
    "teacher_entropy": "teacher_soft_entropy", "entropy_ratio": "entropy_ratio",
    "student_effective_vocab": "effective_vocabulary", "teacher_effective_vocab": "teacher_effective_vocabulary",
    "student_gini": "gini", "teacher_gini": "teacher_gini"}
for k in TOPS:
    UPSTREAM.update({f"teacher_top1_in_student_top{k}": f"first_in_{k}", f"gt_in_student_top{k}": f"truth_in_{k}",
                     f"topk_{k}_overlap_ratio": f"overlap_{k}"})


def read_logits(path):
    """[(logits [n, V], labels [n])] of each sample of a file that eval --logits wrote."""
    data = Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])

    def tensor(name, kind):
        begin, finish = header[name]["data_offsets"]
        return np.frombuffer(data[8 + size + begin:8 + size + finish], kind).reshape(header[name]["shape"])

    logits, ids = tensor("logits", np.float32), tensor("ids", np.int32)
    return [(x[:n], y[:n]) for x, y in zip(logits, ids) for n in [int((y >= 0).sum())]]


def compare_eval(folder, samples):
    starter = ROOT / "dev/starter"
    teacher, model = starter / "teacher.safetensors", starter / "student.safetensors"
    common = [BUILD / "eval", "--no-greedy", "--data", starter / "test.bin", "-n", str(samples), "--device", "cpu"]

    def run(*more):
        subprocess.run([*common, *more], check=True, capture_output=True)

    run("--model", model, "--logits", folder / "s")
    run("--model", teacher, "--logits", folder / "t")
    student, its = read_logits(folder / "s"), read_logits(folder / "t")
    for batch, threads, T in ((1, 1, 2.0), (samples, 2, 3.0)):
        run("--teacher", teacher, "--baseline", teacher, "--model", model, "--metrics", folder / "m", "--json",
            folder / "j", "--batch", str(batch), "--threads", str(threads), "--temperature", str(T))
        written, reports = [json.loads((folder / x).read_text()) for x in "mj"]
        ours = written.pop("tikz_c")
        blocks = list(written)
        check(blocks == ["baseline_student", "distilled_model", "teacher_self"], "the three blocks", blocks)
        for block, logits, report in (("baseline_student", its, 0), ("distilled_model", student, 1)):
            rows = [row(s[i], t[i], y[i], T) for (s, y), (t, _) in zip(logits, its) for i in range(len(y))]
            expected, own = summary(rows, True)
            compare_summary(f"eval, {block}", ours[block], expected)
            compare_summary(f"eval, {block}", reports[report]["logits"], expected)
            compare_summary(f"Image2TikZ, {block}", written[block], {k: expected[v] for k, v in UPSTREAM.items()})
            check(reports[report]["baseline"] == (report == 0), "which one is the baseline")
            check(reports[report]["tokens"] == len(rows) == ours["tokens"], "the number of tokens")
            check(abs(reports[report]["ce"] - expected["ce"]) < 0.02, "the objective's CE", reports[report]["ce"])
        compare_summary("eval, teacher_self", ours["teacher_self"], own)
        compare_summary("Image2TikZ, teacher_self", written["teacher_self"],
                        {k: own[v] for k, v in (("CE", "ce"), ("Perplexity", "perplexity"), ("ECE", "ece"),
                                                ("NextTokenAccuracy", "accuracy"))})
    run("--model", model, "--json", folder / "j")
    rows = [row(s[i], None, y[i], 2.0) for s, y in student for i in range(len(y))]
    compare_summary("eval, without a teacher", json.loads((folder / "j").read_text())[0]["logits"],
                    summary(rows, False)[0])


compare_all_rows()
with tempfile.TemporaryDirectory() as name:
    compare_eval(Path(name), 3)
    compare_eval(Path(name), 1)
end()
