"""All of tikz.c once more, in PyTorch, in 300 lines: model, objective, optimizer. The tests compare with it.

It is slow, short and independent of the C code. Every formula is written the plain way: no fusion, no chunks, gradients
by autograd, float64 when the weights are float64. test/make_fixtures.py stores what it computes for small random
models, and test/test_model.c compares the C and CUDA code with that.

Where a formula is in C:

    encode, connect         vision_encode, vision_forward             vision.h
    rope_frequencies        rope_table                                rope.h
    decode, forward         decoder_block_forward, model_forward      model.h
    predicting              model_layout                              model.h
    row_terms, divergence   distill_rows                              kernels/cpu/distill.h
    band_gate               entropy_band                              kernels/ops.h
    objective, embed_term   objective_run, objective_embed            loss.cuh
    layer_term              layer_loss_run                            train/layer_loss.h
    AdamW                   adamw                                     kernels/cpu/optimizer.h

Parameters are a dict of tensors by their names in a model file; the config is the file's flat metadata as a dict of
strings (doc/glossary.md has Hugging Face's names for both). Shapes: B images, P patches, I = P / j image tokens,
T text tokens, L = I + markers + T - 1 positions that the decoder sees, C and W the widths of encoder and decoder, V vocabulary.
model.h writes P for I and the markers, and S for L.

Sources: Zhai et al. 2023 (SigLIP), Touvron et al. 2023 (Llama), Qwen Team 2024 and 2025 (Qwen2: biases of q, k and v;
Qwen3: norms of q and k), Su et al. 2021 (RoPE, here with the half rotation and the `linear` and `llama3` scalings of
Hugging Face's transformers), Belouadi et al. 2024 (DeTikZify: connector), Hinton et al. 2015 (distillation), Loshchilov &
Hutter 2019 (AdamW).
"""

import math

import torch
import torch.nn.functional as F


class Config:
    """The flat metadata of a model file, read as numbers."""

    def __init__(self, metadata):
        self.text = metadata

    def int(self, key):
        return int(self.text[key])

    def float(self, key):
        return float(self.text[key])

    def bool(self, key):
        return self.text.get(key) == "true"

    @property
    def square(self):
        return "vision.image_size" in self.text

    @property
    def size(self):
        """(height, width) of the images in pixels."""
        keys = ("image_size", "image_size") if self.square else ("image_height", "image_width")
        return tuple(self.int(f"vision.{key}") for key in keys)

    @property
    def grid(self):
        """(rows, columns) of patches."""
        height, width = self.size
        return height // self.int("vision.patch"), width // self.int("vision.patch")

    @property
    def patches(self):
        rows, columns = self.grid
        return rows * columns

    @property
    def block(self):
        """(height, width) of the block of patches that is joined into one image token; None for patches that follow each other."""
        kind, rows = self.text.get("connector.kind", "concat"), self.grid[0]
        if kind == "shuffle":
            return self.int("connector.scale_factor"), self.int("connector.scale_factor")
        return (rows, self.int("connector.concat") // rows) if kind == "strips" else None

    @property
    def joined(self):
        """Patches that are joined into one image token."""
        return self.block[0] * self.block[1] if self.block else self.int("connector.concat")

    @property
    def image_tokens(self):
        return self.patches // self.joined

    def markers(self, side):
        """Ids of the tokens before or after the image."""
        return [int(n) for n in self.text.get(f"tokenizer.{side}_image", "").split(",") if n]

    @property
    def prompt(self):
        """Positions before the text."""
        return len(self.markers("before")) + self.image_tokens + len(self.markers("after"))


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def gelu(x, kind):
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    assert kind == "gelu_tanh"
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q, k, v, causal):
    """q [B, H, T, D], k and v [B, K, T, D] with H a multiple of K: query head h reads key head h // (H / K)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        T = q.shape[2]
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, -1) @ v


def patchify(pixels, patch, dtype):
    """u8 [B, height, width, 3] -> [B, P, 3 * patch * patch], features ordered (channel, y, x), normalised to -1 .. 1. Pixels
    beyond the last whole patch are left out."""
    B, height, width, _ = pixels.shape
    rows, columns = height // patch, width // patch
    x = (pixels[:, : rows * patch, : columns * patch].to(dtype) / 255 - 0.5) / 0.5
    x = x.reshape(B, rows, patch, columns, patch, 3).permute(0, 1, 3, 5, 2, 4)  # B, row, column, channel, y, x
    return x.reshape(B, rows * columns, 3 * patch * patch)


def positions(p, c):
    """What is added to the patches, [P, C]: for square images one table, for rectangular ones the sum of the embedding of the
    patch's row and that of its column."""
    if c.square:
        return p["vision.position"]
    return (p["vision.position.rows"][:, None] + p["vision.position.columns"][None]).flatten(0, 1)


def encode(p, c, pixels):
    """Images u8 [B, height, width, 3] -> normalised patch features [B, P, C]."""
    heads, eps, kind = c.int("vision.heads"), c.float("vision.eps"), c.text["vision.activation"]
    weight = p["vision.patch.weight"]
    x = patchify(pixels, c.int("vision.patch"), weight.dtype) @ weight.T + p["vision.patch.bias"]
    x = x + positions(p, c)
    B, P, C = x.shape
    for layer in range(c.int("vision.layers")):
        w = {name: p[f"vision.{layer}.{name}"] for name in VISION_LAYER}
        y = layer_norm(x, w["norm1.weight"], w["norm1.bias"], eps)
        qkv = (y @ w["qkv.weight"].T + w["qkv.bias"]).reshape(B, P, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
        y = attention(qkv[0], qkv[1], qkv[2], causal=False).transpose(1, 2).reshape(B, P, C)
        x = x + y @ w["proj.weight"].T + w["proj.bias"]
        y = layer_norm(x, w["norm2.weight"], w["norm2.bias"], eps)
        y = gelu(y @ w["fc1.weight"].T + w["fc1.bias"], kind)
        x = x + y @ w["fc2.weight"].T + w["fc2.bias"]
    return layer_norm(x, p["vision.norm.weight"], p["vision.norm.bias"], eps)


def connect(p, c, features):
    """[B, P, C] -> image tokens [B, I, W]: `concat` consecutive patches, or those of a block,
    side by side through one linear map."""
    B, P, C = features.shape
    if c.block:
        (h, w), (rows, columns) = c.block, c.grid
        features = features.reshape(B, rows // h, h, columns // w, w, C).transpose(2, 3)  # B, block row, column, y, x, C
    x = features.reshape(B, c.image_tokens, c.joined * C) @ p["connector.weight"].T
    return x + p["connector.bias"] if c.bool("connector.bias") else x


def rope_frequencies(c):
    """float64 [D/2]: the angle in radians by which a pair of channels is rotated from one position to the next."""
    D = c.int("lm.head_dim")
    frequency = c.float("lm.rope_theta") ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    kind = c.text["lm.rope_scaling"]
    if kind == "none":
        return frequency
    factor = c.float("lm.rope_factor")
    if kind == "linear":
        return frequency / factor
    assert kind == "llama3"
    low, high, original = c.float("lm.rope_low"), c.float("lm.rope_high"), c.float("lm.rope_original")
    turns = original * frequency / (2 * math.pi)  # rotations of a pair within the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: only slow pairs are slowed down further, 1: left alone
    return (1 - smooth) * frequency / factor + smooth * frequency


def rotate(x, frequency):
    """RoPE on x [B, heads, T, D]: the pair (x_i, x_{i+D/2}) is rotated by position * frequency_i."""
    T, D = x.shape[2], x.shape[3]
    angle = torch.arange(T, dtype=torch.float64)[:, None] * frequency[None, :]
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def decode(p, c, x):
    """The decoder: its input (residual stream) [B, L, W] -> hidden states after the last norm [B, L, W], and the residual
    stream after each block."""
    H, K, D = c.int("lm.heads"), c.int("lm.kv_heads"), c.int("lm.head_dim")
    intermediate, eps, frequency = c.int("lm.ffn"), c.float("lm.eps"), rope_frequencies(c)
    B, L, _ = x.shape
    layers = []
    for layer in range(c.int("lm.layers")):
        w = {name: p[f"lm.{layer}.{name}"] for name in LM_LAYER}
        y = rms_norm(x, w["norm1"], eps)
        qkv = y @ w["qkv.weight"].T + p.get(f"lm.{layer}.qkv.bias", 0)
        qkv = qkv.reshape(B, L, H + 2 * K, D).transpose(1, 2)
        q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]
        if c.bool("lm.qk_norm"):
            q, k = rms_norm(q, p[f"lm.{layer}.q_norm"], eps), rms_norm(k, p[f"lm.{layer}.k_norm"], eps)
        y = attention(rotate(q, frequency), rotate(k, frequency), v, causal=True).transpose(1, 2).reshape(B, L, H * D)
        x = x + y @ w["out.weight"].T
        y = rms_norm(x, w["norm2"], eps) @ w["gate_up.weight"].T
        x = x + (F.silu(y[..., :intermediate]) * y[..., intermediate:]) @ w["down.weight"].T
        layers.append(x)
    return rms_norm(x, p["lm.norm"], eps), layers


VISION_LAYER = [
    f"{part}.{kind}" for part in ("norm1", "qkv", "proj", "norm2", "fc1", "fc2") for kind in ("weight", "bias")
]
LM_LAYER = ["norm1", "qkv.weight", "out.weight", "norm2", "gate_up.weight", "down.weight"]


def head(p, c):
    return p["lm.embed"] if c.bool("lm.tied") else p["lm.head"]


def forward(p, c, pixels, ids):
    """One teacher-forced pass. ids [B, T], -1 after the end. Returns image tokens [B, I, W], hidden states [B, L, W],
    and of the positions that predict ids[:, 0 .. T-1] the logits [B, T, V] and the residual stream [B, T, W] after each
    block."""
    image = connect(p, c, encode(p, c, pixels))
    text = p["lm.embed"][ids[:, :-1].clamp(min=0)]
    before, after = (p["lm.embed"][c.markers(side)].expand(len(ids), -1, -1) for side in ("before", "after"))
    hidden, layers = decode(p, c, torch.cat([before, image, after, text], 1))
    first = c.prompt - 1
    logits = hidden[:, first:] @ head(p, c).T
    return image, hidden, logits, [x[:, first:] for x in layers]


def predicting(ids, prompt):
    """Mask [B, L] of the positions that predict a token: position prompt - 1 + t predicts ids[:, t]."""
    none = torch.zeros(len(ids), prompt - 1, dtype=torch.bool)
    return torch.cat([none, ids >= 0], 1)


def shapes(c):
    """Every parameter's shape by name, in the order of a model file."""
    C, M, patch = c.int("vision.width"), c.int("vision.mlp"), c.int("vision.patch")
    W, V, intermediate = c.int("lm.width"), c.int("lm.vocab"), c.int("lm.ffn")
    H, K, D = c.int("lm.heads"), c.int("lm.kv_heads"), c.int("lm.head_dim")
    s = {"vision.patch.weight": (C, 3 * patch * patch), "vision.patch.bias": (C,)}
    if c.square:
        s["vision.position"] = (c.patches, C)
    else:
        s |= {"vision.position.rows": (c.size[0] // patch, C), "vision.position.columns": (c.size[1] // patch, C)}
    linear = {"qkv": (3 * C, C), "proj": (C, C), "fc1": (M, C), "fc2": (C, M)}
    for layer in range(c.int("vision.layers")):
        for name in VISION_LAYER:
            part, kind = name.split(".")
            shape = linear.get(part, (C,))
            s[f"vision.{layer}.{name}"] = shape if kind == "weight" else shape[:1]
    s |= {"vision.norm.weight": (C,), "vision.norm.bias": (C,)}
    s["connector.weight"] = (W, c.joined * C)
    if c.bool("connector.bias"):
        s["connector.bias"] = (W,)
    s["lm.embed"] = (V, W)
    block = {"norm1": (W,), "qkv.weight": ((H + 2 * K) * D, W)}
    block |= {"qkv.bias": ((H + 2 * K) * D,)} if c.bool("lm.qkv_bias") else {}
    block |= {"q_norm": (D,), "k_norm": (D,)} if c.bool("lm.qk_norm") else {}
    block |= {"out.weight": (W, H * D), "norm2": (W,), "gate_up.weight": (2 * intermediate, W)}
    block["down.weight"] = (W, intermediate)
    for layer in range(c.int("lm.layers")):
        s |= {f"lm.{layer}.{name}": shape for name, shape in block.items()}
    s["lm.norm"] = (W,)
    if not c.bool("lm.tied"):
        s["lm.head"] = (V, W)
    return s


class Objective:
    """Weights and switches of the objective; the defaults are plain cross-entropy."""

    def __init__(self, **settings):
        self.w_ce, self.w_soft, self.w_hard, self.w_embed = 1.0, 0.0, 0.0, 0.0
        self.w_layer, self.layer_loss, self.layer_pairs = 0.0, "cosine", ""  # pairs: "2:5,4:11", counted from 1
        self.temperature, self.soft, self.mix = 1.0, "kl", 0.5  # mix: beta of jsd, a of skl and srkl
        self.sure_confidence, self.sure_factor = 2.0, 1.0  # confidence gate; above 1: off
        self.band_low, self.band_high = 0.0, math.inf  # entropy of the teacher in nats
        for key, value in settings.items():
            assert hasattr(self, key), key
            setattr(self, key, value)

    def pairs(self):
        return [tuple(map(int, pair.split(":"))) for pair in self.layer_pairs.split(",") if pair]


def divergence(log_p, log_q, kind, mix):
    """D(p, q) per row; p is the teacher."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "kl":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "reverse-kl":
        return (q * (log_q - log_p)).sum(-1)
    share = 1 - mix if kind == "srkl" else mix  # of p in the mixture
    log_m = torch.log(share * p + (1 - share) * q)
    to_p, to_q = (p * (log_p - log_m)).sum(-1), (q * (log_q - log_m)).sum(-1)
    return {"jsd": mix * to_p + (1 - mix) * to_q, "skl": to_p, "srkl": to_q}[kind]


def band_gate(entropy, o):
    """1 for the positions whose teacher entropy lies in the band, else 0; all 1 when fewer than 45 % would remain."""
    keep = (entropy >= o.band_low) & (entropy <= o.band_high)
    if 100 * int(keep.sum()) < 45 * len(keep):
        keep = torch.ones_like(keep)
    return keep.to(entropy.dtype)


def row_terms(student, teacher, labels, o):
    """student [n, Vs], teacher [n, Vt] logits of the n positions that count, labels [n] -> dict of [n]."""
    rows = torch.arange(len(labels))
    log_s = torch.log_softmax(student, -1)
    V = min(student.shape[1], teacher.shape[1])
    log_p = torch.log_softmax(teacher[:, :V] / o.temperature, -1)
    log_q = torch.log_softmax(student[:, :V] / o.temperature, -1)
    confidence, top = torch.softmax(teacher[:, :V], -1).max(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    confident = (top == labels) & (confidence >= o.sure_confidence)
    gate = band_gate(entropy, o) * torch.where(confident, o.sure_factor, 1.0).to(entropy.dtype)
    return {
        "ce": -log_s[rows, labels],
        "soft": divergence(log_p, log_q, o.soft, o.mix),
        "hard": -log_s[rows, top],
        "entropy": entropy,
        "confidence": confidence,
        "gate": gate,
    }


def embed_term(student, teacher, embed_map):
    """1 - cos per image between flattened image tokens [B, I, W], the student's first through embed_map [Wt, Ws]
    where the widths differ (None: they do not); [B]."""
    a = student if embed_map is None else student @ embed_map.T
    a, b = a.flatten(1), teacher.flatten(1)
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def layer_term(student, teacher, counts, o, layer_maps):
    """The layer loss of every pair at the positions that count [pairs, n]: 1 - cos of the residual streams, the student's
    first through a map [Wt, Ws] where the widths differ (else layer_maps is empty), or the mean of the squared differences
    of their channels."""
    terms = []
    for s, t in o.pairs():
        a, b = student[s - 1][counts], teacher[t - 1][counts]
        a = a @ layer_maps[f"layer_map.{s}:{t}"].T if layer_maps else a
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        terms.append(1 - cosine if o.layer_loss == "cosine" else ((a - b) ** 2).mean(-1))
    return torch.stack(terms)


def objective(student, teacher, ids, o, embed_map=None, layer_maps=None):
    """student and teacher: what forward() returned. -> (loss, dict of terms)"""
    counts = ids >= 0
    terms = row_terms(student[2][counts], teacher[2][counts], ids[counts], o)
    distilled = o.w_soft * o.temperature**2 * terms["soft"] + o.w_hard * terms["hard"]
    loss = (o.w_ce * terms["ce"] + terms["gate"] * distilled).mean()
    if o.w_embed:
        terms["embed"] = embed_term(student[0], teacher[0], embed_map)
        loss = loss + o.w_embed * terms["embed"].mean()
    if o.w_layer:
        terms["layer"] = layer_term(student[3], teacher[3], counts, o, layer_maps)
        loss = loss + o.w_layer * terms["layer"].mean()
    return loss, terms


class AdamW:
    """Decoupled weight decay on matrices, clipping by the global norm. PyTorch's own AdamW does the same without the
    clipping; it is written out so that the formula is in one place."""

    def __init__(self, parameters, lr, beta1, beta2, eps, decay, max_norm):
        self.lr, self.beta1, self.beta2, self.eps, self.decay, self.max_norm = lr, beta1, beta2, eps, decay, max_norm
        self.m = {name: torch.zeros_like(w) for name, w in parameters.items()}
        self.v = {name: torch.zeros_like(w) for name, w in parameters.items()}
        self.step_count = 0

    @torch.no_grad()
    def step(self, parameters, gradients):
        """Returns the new parameters and the gradients' norm before clipping."""
        self.step_count += 1
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        clip = min(1.0, self.max_norm / norm) if self.max_norm > 0 else 1.0
        new = {}
        for name, w in parameters.items():
            g = gradients[name] * clip
            self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
            self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g * g
            m = self.m[name] / (1 - self.beta1**self.step_count)
            v = self.v[name] / (1 - self.beta2**self.step_count)
            decay = self.decay if decays(name, w) else 0.0
            new[name] = w - self.lr * (m / (torch.sqrt(v) + self.eps) + decay * w)
        return new, norm


def decays(name, weight):
    return weight.ndim == 2 and not name.startswith("vision.position")
