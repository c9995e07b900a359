#!/usr/bin/env python3
"""Makes the fixtures that test_model.c compares with: nine pairs of tiny random models (student and teacher), inputs,
and what doc/reference.py computes from them in float64.

    make_fixtures.py [--out DIR]     writes DIR/*.safetensors (default: fixtures/ beside this file)
    make_fixtures.py --check         computes everything again and compares with the files, without writing

NAME.student.safetensors and NAME.teacher.safetensors are ordinary model files. NAME.expected.safetensors holds

    pixels, teacher.pixels     u8 [B, height, width, 3]
    ids                        i32 [B, T], -1 after the end of a text
    image, hidden, logits      image tokens [B, I, W]; hidden states [n, W] and logits [n, V] of the n positions that
    teacher.image, ...         predict a text token, row by row
    embed_map                  [Wt, Ws], the linear map of the embedding loss, where the widths differ
    layer_map.S:T              [Wt, Ws], the linear map of the layer loss of a pair of layers, where the widths differ
    K.rows                     setting K of the objective: [n, 6] CE, D, hard, teacher entropy, confidence, gate
    K.embed                    [B] 1 - cos
    K.layer                    [1] mean layer loss
    K.loss                     [1]
    K.gradient.PARAMETER       every gradient, for the settings with K.gradient = true in the metadata
    adamw.loss, adamw.norm     [5] loss and gradient norm before each of five AdamW steps with setting 0
    adamw.PARAMETER            the student's weights after them
"""

import argparse
import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "scripts"), str(HERE.parent / "doc")]
import reference  # noqa: E402  the model in PyTorch
import tikzc  # noqa: E402  the safetensors reader and writer

ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-5, "decay": 0.1, "max_norm": 0.7}
STEPS = 5


def config(image, concat, bias, vision, lm, rope=None, tied=False, activation="gelu_tanh", vision_eps=1e-6,
           lm_eps=1e-5, flags=(), shuffle=0, strips=False, markers=()):
    """image: (size, patch), or (height, width, patch); vision: (width, layers, heads, mlp); lm: (vocab, width, layers, heads, kv_heads,
    head_dim, ffn); rope: changed keys; flags: keys of the decoder that are true, absent elsewhere; shuffle: scale factor, in
    place of concat; strips: the patches of concat stand in strips; markers: ids before and after the image."""
    c = {"format": "tikz.c/1"}
    sizes = ("image_size",) if len(image) == 2 else ("image_height", "image_width")
    c |= dict(zip([f"vision.{key}" for key in (*sizes, "patch")], image))
    c |= dict(zip(("vision.width", "vision.layers", "vision.heads", "vision.mlp"), vision))
    c |= {"vision.activation": activation, "vision.eps": vision_eps}
    c |= {"connector.kind": "shuffle", "connector.scale_factor": shuffle} if shuffle else {"connector.concat": concat}
    c |= {"connector.kind": "strips"} if strips else {}
    c |= {"connector.bias": bias, **dict(zip(("tokenizer.before_image", "tokenizer.after_image"), markers))}
    names = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn")
    c |= {f"lm.{name}": value for name, value in zip(names, lm)}
    c |= {"lm.max_positions": 40, "lm.eps": lm_eps, "lm.rope_theta": 10000.0, "lm.rope_scaling": "none"}
    c |= {"lm.rope_factor": 1.0, "lm.rope_low": 1.0, "lm.rope_high": 4.0, "lm.rope_original": 40, "lm.tied": tied}
    c |= {f"lm.{name}": True for name in flags}
    c |= {f"lm.rope_{key}": value for key, value in (rope or {}).items()}
    return {key: str(value).lower() for key, value in c.items()}


LLAMA3 = {"scaling": "llama3", "theta": 14.0, "factor": 8.0, "low": 1.0, "high": 2.0, "original": 16}

# Each pair: the two configs, the number of texts and their lengths, and the settings of the objective. Settings with
# gradient=True have all gradients stored; setting 0 is also the one of the AdamW steps.
PAIRS = {
    # grouped queries with odd head sizes, heads wider than the FFN; a teacher with another image size, number of
    # image tokens, depth and a larger vocabulary
    "gqa": {
        "student": config((16, 4), 1, True, (12, 2, 2, 14), (27, 18, 2, 4, 2, 6, 14)),
        "teacher": config((12, 4), 3, False, (10, 1, 1, 14), (31, 14, 1, 3, 1, 4, 20), tied=True, activation="gelu"),
        "lengths": (9, 6, 2),
        "settings": [
            dict(w_ce=0.5, w_soft=0.5, temperature=2.0, soft="kl", gradient=True),
            dict(w_ce=1.0, w_soft=0.7, w_hard=0.3, temperature=1.5, soft="reverse-kl", sure_confidence=0.6,
                 sure_factor=0.3, gradient=True),
            dict(w_ce=0.2, w_soft=0.8, temperature=3.0, soft="jsd", mix=0.7, band_low=1.23, band_high=2.3),
        ],
    },
    # one key head for all queries, linear scaling, erf GELU, tied head, no connector bias; entropy band
    "linear": {
        "student": config((12, 4), 3, False, (12, 1, 3, 18), (26, 36, 1, 3, 1, 10, 11), {"scaling": "linear",
                          "factor": 2.0, "theta": 500.0}, tied=True, activation="gelu", lm_eps=1e-6),
        "teacher": config((15, 5), 3, True, (8, 1, 2, 12), (26, 18, 1, 2, 2, 6, 16)),
        "lengths": (8, 8, 5),
        "settings": [
            dict(gradient=True),
            dict(w_ce=0.3, w_soft=0.6, w_hard=0.2, temperature=1.3, soft="jsd", mix=0.3, band_low=0.7,
                 band_high=2.04, gradient=True),
            dict(w_ce=0.5, w_soft=0.5, temperature=2.0, soft="kl", band_low=2.9, band_high=3.0),
        ],
    },
    # as many key heads as query heads, llama3 scaling; a smaller teacher vocabulary; embedding loss with equal widths
    "llama3": {
        "student": config((15, 5), 3, True, (10, 1, 1, 18), (33, 20, 1, 2, 2, 10, 28), LLAMA3, activation="gelu",
                          vision_eps=1e-5),
        "teacher": config((12, 4), 3, False, (10, 1, 2, 14), (29, 20, 1, 2, 1, 8, 18), LLAMA3, tied=True),
        "lengths": (10, 3, 7),
        "settings": [
            dict(w_ce=0.3, w_soft=0.5, w_hard=0.2, w_embed=0.4, temperature=4.0, soft="kl", gradient=True),
            dict(w_ce=0.0, w_soft=1.0, w_embed=1.0, temperature=1.0, soft="reverse-kl", sure_confidence=0.4,
                 sure_factor=0.3, band_high=0.5, gradient=True),
            dict(w_ce=0.5, w_layer=0.3, layer_loss="mse", layer_pairs="1:1", gradient=True),
        ],
    },
    # square image of 16 patches joined in pairs, tied, grouped; embedding loss through the learned map
    "mapped": {
        "student": config((16, 4), 2, True, (12, 1, 2, 16), (30, 20, 1, 6, 2, 4, 22), {"theta": 1000.0}, tied=True),
        "teacher": config((20, 5), 2, True, (8, 1, 1, 12), (30, 18, 1, 2, 1, 6, 20), {"scaling": "linear",
                          "factor": 4.0}, activation="gelu"),
        "lengths": (7, 9, 1, 4),
        "settings": [
            dict(w_ce=0.6, w_soft=0.4, temperature=2.0, soft="jsd", mix=0.5, gradient=True),
            dict(w_ce=0.5, w_soft=0.3, w_hard=0.2, w_embed=0.7, temperature=1.5, soft="kl", gradient=True),
            dict(w_ce=0.2, w_soft=0.8, temperature=1.2, soft="skl", mix=0.1, gradient=True),
            dict(w_ce=0.1, w_soft=0.9, temperature=1.7, soft="srkl", mix=0.3, gradient=True),
        ],
    },
    # rectangular images: two rows of five patches, and a teacher that sees the same ones in five rows of two
    "rect": {
        "student": config((8, 20, 4), 2, True, (12, 2, 2, 16), (28, 16, 1, 2, 1, 8, 20)),
        "teacher": config((15, 6, 3), 2, False, (8, 1, 2, 12), (28, 20, 1, 2, 2, 6, 18), tied=True),
        "lengths": (6, 9, 3),
        "settings": [
            dict(w_ce=0.5, w_soft=0.5, temperature=2.0, soft="kl", gradient=True),
            dict(w_ce=0.4, w_soft=0.3, w_hard=0.3, w_embed=0.6, temperature=1.5, soft="jsd", gradient=True),
        ],
    },
    # layers in the middle and at the end, out of order, through learned maps
    "layers": {
        "student": config((12, 4), 3, True, (12, 1, 2, 14), (26, 18, 2, 4, 2, 6, 14)),
        "teacher": config((8, 4), 1, True, (10, 1, 1, 12), (26, 14, 3, 2, 2, 6, 16), tied=True),
        "lengths": (6, 8, 4),
        "settings": [
            dict(w_ce=0.3, w_layer=2.0, layer_loss="cosine", layer_pairs="2:3,1:2", gradient=True),
            dict(w_ce=0.4, w_soft=0.3, w_layer=0.5, layer_loss="mse", layer_pairs="2:1,1:3", temperature=2.0,
                 gradient=True),
        ],
    },
    # biases of q, k and v and norms of q and k, in two blocks; a teacher with norms alone, as Qwen3
    "qwen": {
        "student": config((12, 4), 3, False, (12, 1, 2, 14), (28, 18, 2, 4, 2, 8, 14), tied=True,
                          flags=("qkv_bias", "qk_norm")),
        "teacher": config((8, 4), 1, True, (10, 1, 1, 12), (28, 14, 2, 2, 1, 6, 16), flags=("qk_norm",)),
        "lengths": (6, 9, 4),
        "settings": [
            dict(w_ce=0.5, w_soft=0.5, temperature=2.0, soft="kl", gradient=True),
            dict(w_ce=0.4, w_hard=0.3, w_soft=0.3, temperature=1.5, soft="jsd", gradient=True),
        ],
    },
    # blocks of 2 x 2 patches in a rectangular image of 4 x 6, with markers around them; a teacher that shuffles 3 x 3 of 6 x 9
    "shuffle": {
        "student": config((8, 12, 2), 0, False, (10, 1, 2, 12), (28, 16, 1, 2, 1, 8, 20), shuffle=2,
                          markers=("20,3", "3,9,14")),
        "teacher": config((12, 18, 2), 0, True, (8, 1, 2, 12), (28, 20, 1, 2, 2, 6, 18), tied=True, shuffle=3,
                          markers=("7",)),
        "lengths": (6, 9, 3),
        "settings": [
            dict(w_ce=0.5, w_soft=0.5, temperature=2.0, soft="kl", gradient=True),
            dict(w_ce=0.4, w_soft=0.3, w_hard=0.3, w_embed=0.6, temperature=1.5, soft="jsd", gradient=True),
        ],
    },
    # strips of one column of 4 patches; a teacher with strips of two columns of 2
    "strips": {
        "student": config((8, 12, 2), 4, True, (10, 1, 2, 12), (28, 16, 1, 2, 1, 8, 20), strips=True),
        "teacher": config((4, 24, 2), 4, False, (8, 1, 2, 12), (28, 20, 1, 2, 2, 6, 18), tied=True, strips=True),
        "lengths": (6, 9, 3),
        "settings": [dict(w_ce=0.4, w_soft=0.3, w_hard=0.3, w_embed=0.6, temperature=1.5, soft="kl", gradient=True)],
    },
}


def draw_weights(c, rng, head_scale):
    """Random weights that bf16 holds exactly, so that both builds of the C code start from the same numbers."""
    weights = {}
    for name, shape in reference.shapes(reference.Config(c)).items():
        w = rng.standard_normal(shape)
        if len(shape) == 1:  # norms around one, biases around zero
            w = 0.1 * w if name.endswith("bias") else 1 + 0.2 * w
        elif name in ("lm.embed", "lm.head"):
            w *= head_scale / np.sqrt(shape[1])
        elif name.startswith("vision.position"):
            w *= 0.5
        else:
            w *= 1 / np.sqrt(shape[1])
        weights[name] = torch.tensor(w).bfloat16().double()
    return weights


def gap_of(logits):
    """How far the largest logit is above the second one."""
    top = torch.sort(logits, descending=True).values
    return float(top[0] - top[1])


@torch.no_grad()
def write_texts(weights, c, size, vocab, lengths, rng, least_gap=0.25):
    """Images and texts on which the teacher always has a clear favourite, so that bf16 finds the same one. Half of
    the tokens are that favourite, the others random. Returns pixels [B, height, width, 3] and ids [B, T]."""
    ids = torch.full((len(lengths), max(lengths)), -1)
    images = []
    for b, length in enumerate(lengths):
        for attempt in range(1000):
            pixels = torch.tensor(rng.randint(0, 256, (1, *size, 3)).astype(np.uint8))
            row = torch.full((1, length), -1)
            if write_text(weights, c, pixels, row, vocab, rng, least_gap):
                break
        else:
            raise SystemExit("no text with a clear favourite was found; change the seed")
        images.append(pixels)
        ids[b, :length] = row[0]
    return torch.cat(images), ids


def write_text(weights, c, pixels, row, vocab, rng, least_gap):
    """Fills row [1, length] token by token; False when it runs into a position without a favourite."""
    for t in range(row.shape[1]):
        logits = reference.forward(weights, c, pixels, row[:, : t + 1])[2][0, t, :vocab]
        if gap_of(logits) < least_gap:
            return False
        row[0, t] = int(logits.argmax()) if rng.randint(2) else int(rng.randint(vocab))
    return True


def student_pixels(c, count, rng):
    return torch.tensor(rng.randint(0, 256, (count, *c.size, 3)).astype(np.uint8))


def draw_layer_maps(settings, widths, seed):
    """A map for every pair of layers of the settings, where the widths [teacher, student] differ."""
    rng = np.random.RandomState(seed)
    pairs = dict.fromkeys(pair for setting in settings for pair in objective_of(setting).pairs())
    draw = lambda: torch.tensor(rng.standard_normal(widths) / np.sqrt(widths[1])).bfloat16().double()
    return {f"layer_map.{s}:{t}": draw() for s, t in pairs} if widths[0] != widths[1] else {}


def differentiate(weights, c, pixels, ids, teacher, objective, embed_map, layer_maps):
    """-> loss, terms, student's outputs, gradients by name (with those of the maps that take part)."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    map_leaf = embed_map.clone().requires_grad_() if embed_map is not None else None
    layer_leaves = {name: w.clone().requires_grad_() for name, w in layer_maps.items()}
    student = reference.forward(leaves, c, pixels, ids)
    loss, terms = reference.objective(student, teacher, ids, objective, map_leaf, layer_leaves)
    loss.backward()
    gradients = {name: w.grad for name, w in leaves.items()}
    if map_leaf is not None and map_leaf.grad is not None:
        gradients["embed_map"] = map_leaf.grad
    gradients |= {name: w.grad for name, w in layer_leaves.items() if w.grad is not None}
    return float(loss), terms, student, gradients


def objective_of(setting):
    return reference.Objective(**{key: value for key, value in setting.items() if key != "gradient"})


def make_pair(name, pair, seed):
    """-> {file name: (metadata, tensors)}"""
    rng = np.random.RandomState(seed)
    texts = pair["student"], pair["teacher"]
    student_c, teacher_c = (reference.Config(text) for text in texts)
    student_w, teacher_w = draw_weights(texts[0], rng, 1.5), draw_weights(texts[1], rng, 4.0)
    vocab = min(student_c.int("lm.vocab"), teacher_c.int("lm.vocab"))
    teacher_pixels, ids = write_texts(teacher_w, teacher_c, teacher_c.size, vocab, pair["lengths"], rng)
    pixels = student_pixels(student_c, len(pair["lengths"]), rng)
    with torch.no_grad():
        teacher = reference.forward(teacher_w, teacher_c, teacher_pixels, ids)
    widths = teacher_c.int("lm.width"), student_c.int("lm.width")
    same_tokens = student_c.image_tokens == teacher_c.image_tokens
    embed_map = None
    if same_tokens and widths[0] != widths[1]:
        embed_map = torch.tensor(rng.standard_normal(widths) / np.sqrt(widths[1])).bfloat16().double()
    layer_maps = draw_layer_maps(pair["settings"], widths, seed + 100)

    counts = ids >= 0
    out = {"pixels": pixels, "teacher.pixels": teacher_pixels, "ids": ids.int()}
    predicts = [reference.predicting(ids, c.prompt) for c in (student_c, teacher_c)]
    out |= {"teacher.image": teacher[0], "teacher.hidden": teacher[1][predicts[1]]}
    out |= {"teacher.logits": teacher[2][counts]}
    if embed_map is not None:
        out["embed_map"] = embed_map
    out |= layer_maps
    metadata = {"settings": str(len(pair["settings"])), "steps": str(STEPS)}
    metadata |= {f"adamw.{key}": repr(value) for key, value in ADAMW.items()}
    for k, setting in enumerate(pair["settings"]):
        gradient = setting.get("gradient", False)
        o = objective_of(setting)
        loss, terms, student, gradients = differentiate(student_w, student_c, pixels, ids, teacher, o, embed_map,
                                                          layer_maps)
        check_margins(name, k, o, terms)
        out[f"{k}.rows"] = torch.stack([terms[t] for t in ("ce", "soft", "hard", "entropy", "confidence", "gate")], 1)
        out[f"{k}.loss"] = torch.tensor([loss])
        if o.w_embed:
            out[f"{k}.embed"] = terms["embed"]
        if o.w_layer:
            out[f"{k}.layer"] = terms["layer"].mean()[None]
        if gradient:
            out |= {f"{k}.gradient.{name}": g for name, g in gradients.items()}
        keys = [key for key in vars(o) if o.w_layer or key not in ("w_layer", "layer_loss", "layer_pairs")]
        metadata |= {f"{k}.{key}": str(getattr(o, key)) for key in keys}
        metadata[f"{k}.gradient"] = str(gradient).lower()
    out |= {"image": student[0], "hidden": student[1][predicts[0]], "logits": student[2][counts]}
    out |= five_steps(student_w, student_c, pixels, ids, teacher, objective_of(pair["settings"][0]), embed_map,
                      layer_maps)
    out = {key: t.detach().float() if t.is_floating_point() else t.detach() for key, t in out.items()}
    files = {f"{name}.expected.safetensors": (metadata, out)}
    for role, text, weights in (("student", texts[0], student_w), ("teacher", texts[1], teacher_w)):
        files[f"{name}.{role}.safetensors"] = (text, weights)
    return files


def five_steps(weights, c, pixels, ids, teacher, objective, embed_map, layer_maps):
    adamw = reference.AdamW(weights, **ADAMW)
    losses, norms = [], []
    for _ in range(STEPS):
        loss, _, _, gradients = differentiate(weights, c, pixels, ids, teacher, objective, embed_map, layer_maps)
        weights, norm = adamw.step(weights, {name: gradients[name] for name in weights})
        losses.append(loss)
        norms.append(norm)
    assert max(norms) > ADAMW["max_norm"], "the clipping is not exercised"
    out = {f"adamw.{name}": w for name, w in weights.items()}
    return out | {"adamw.loss": torch.tensor(losses), "adamw.norm": torch.tensor(norms)}


def check_margins(name, k, o, terms, margin=0.02):
    """No gate may hang on the last digits: bf16 would flip it."""
    entropy = terms["entropy"]
    for values, edge in [(terms["confidence"], o.sure_confidence), (entropy, o.band_low), (entropy, o.band_high)]:
        distance = float((values - edge).abs().min())
        if edge > 0 and distance < margin:
            raise SystemExit(f"{name}, setting {k}: a position is {distance:.4f} from the edge {edge}; change it")


def tokenizer(vocab):
    """The smallest vocabulary a model file can carry: printable characters, the last token ends a text."""
    tokens = [bytes([ord("!") + i]) for i in range(vocab)]
    return tikzc.Tokenizer(tokens, [i == vocab - 1 for i in range(vocab)], vocab - 1, "{}")


def stored_form(name, metadata, tensors):
    """What is written for one file: (metadata, numpy arrays, dtypes)."""
    arrays = {key: t.float().numpy() if t.is_floating_point() else t.numpy() for key, t in tensors.items()}
    if name.endswith(".expected.safetensors"):
        return metadata, arrays, {}
    small = tokenizer(int(metadata["lm.vocab"]))
    # one model in float32, the others in bf16: each build of the C code converts some of them while loading
    dtypes = {} if name == "linear.teacher.safetensors" else {key: "BF16" for key in arrays}
    return metadata | small.metadata(), arrays | small.tensors(), dtypes


def compare(path, metadata, arrays):
    """Prints what differs between a stored file and a fresh one; the number of differences."""
    stored, stored_metadata = tikzc.read_safetensors(path)
    problems = []
    for key in sorted(set(metadata) | set(stored_metadata)):
        if metadata.get(key) != stored_metadata.get(key):
            problems.append(f"metadata {key}: {stored_metadata.get(key)} stored, {metadata.get(key)} now")
    for key in sorted(set(arrays) | set(stored)):
        old, new = stored.get(key), arrays.get(key)
        if old is None or new is None or old.shape != new.shape:
            problems.append(f"{key}: only in one of the two, or of another shape")
        elif old.dtype != np.float32 and not np.array_equal(old, new):
            problems.append(f"{key}: other values")
        elif old.dtype == np.float32:
            error = float(np.linalg.norm(old - new)) / max(float(np.linalg.norm(new)), 1e-12)
            if not error <= 1e-6:
                problems.append(f"{key}: relative error {error:.1e}")
    for problem in problems:
        print(f"{path.name}: {problem}")
    return len(problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fixtures", help="folder of the fixtures")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = total = 0
    for seed, (pair_name, pair) in enumerate(PAIRS.items()):
        for name, (metadata, tensors) in make_pair(pair_name, pair, seed + 1).items():
            metadata, arrays, dtypes = stored_form(name, metadata, tensors)
            path = options.out / name
            if options.check:
                problems += compare(path, {"format": tikzc.FORMAT} | metadata, arrays)
            else:
                options.out.mkdir(parents=True, exist_ok=True)
                tikzc.write_safetensors(path, arrays, metadata, dtypes)
            total += path.stat().st_size
            print(f"{path.name}: {path.stat().st_size} bytes", file=sys.stderr)
    print(f"{total} bytes in all, {problems} differences" if options.check else f"{total} bytes in all")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
