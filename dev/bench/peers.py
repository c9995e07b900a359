#!/usr/bin/env python3
"""Times PyTorch (also through torch.compile, that is Triton), Liger's kernels and Transformers on the work that
bench_kernels and bench_decode have timed on the same GPU.

    peers.py --kernels kernels.json --out peers.json [--seconds 100]
    peers.py --decode [--shape 7b] --out decode-peer.json [--seconds 100]

kernels.json is the output of `bench_kernels --json`. For every operation that has a counterpart, one line is written:
the operation, the name and milliseconds of the fastest peer, and the milliseconds of all peers. If a peer does less
(SDPA has no RoPE), its name says so.
"""
import argparse
import contextlib
import itertools
import json
import math
import sys
import time

import torch
import torch.nn.functional as F

with contextlib.suppress(ImportError):  # otherwise compiled backward passes cannot run repeatedly
    import torch._functorch.config
    torch._functorch.config.donated_buffer = False


def timed(call, device):
    """Milliseconds of a call: the minimum over 5 rounds of the mean of a round, which has enough calls to last about
    3 ms."""
    def synchronize():
        if device == "cuda":
            torch.cuda.synchronize()

    def round_of(calls):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls

    call()
    calls = max(1, min(200, int(3e-3 / max(round_of(1), 1e-7))))
    return 1e3 * min(round_of(calls) for _ in range(5))


def kl(log_q, log_p):
    """KL(p||q), averaged over rows."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def jsd(log_q, log_p):
    """The Jensen-Shannon divergence, averaged over rows."""
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    return 0.5 * (kl(log_m, log_p) + kl(log_m, log_q))


def liger():
    """Liger's kernels, or None if they are not installed."""
    try:
        import liger_kernel.transformers
    except ImportError:
        return None
    return liger_kernel.transformers


class Peers:
    """One method per operation of kernels/ops.h, which maps its shape to {name of the peer: function to time}."""

    def __init__(self, device, dtype, compiled):
        self.device, self.dtype = device, dtype
        self.compile = torch.compile if compiled else None

    def random(self, *shape, grad=False, dtype=None):
        return torch.randn(*shape, device=self.device, dtype=dtype or self.dtype).requires_grad_(grad)

    def both(self, function, *tensors):
        """A function, eager and compiled."""
        calls = {"torch": lambda: function(*tensors)}
        if self.compile:
            fast = self.compile(function)
            calls["torch.compile"] = lambda: fast(*tensors)
        return calls

    def gradient(self, function, wanted, dout, *tensors):
        """The backward pass of a function alone, eager and compiled."""
        calls = {}
        for name, f in (("torch", function), ("torch.compile", self.compile and self.compile(function))):
            if f:
                out = f(*tensors)
                calls[name] = lambda out=out: torch.autograd.grad(out, wanted, dout, retain_graph=True)
        return calls

    def linear_forward(self, rows, I, O, act):
        x, w, b = self.random(rows, I), self.random(O, I), self.random(O)
        if rows == 1:
            return self.gemv(x, I, O)
        if act == 0:
            return {"torch": lambda: F.linear(x, w, b)}
        return self.both(lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"), x, w, b)

    linear_logits = linear_forward

    def gemv(self, x, I, O):
        """One row. Alternates between copies of the weight, so that none is in the cache."""
        copies = [self.random(O, I) for _ in range(4 + int(256e6 / (2 * I * O)) if I * O > 50000 else 4)]
        calls = itertools.count()
        return {"torch": lambda: F.linear(x, copies[next(calls) % len(copies)])}

    def linear_backward_input(self, rows, I, O, act):
        d, w = self.random(rows, O), self.random(O, I)
        return {"torch": lambda: d @ w}

    def linear_backward_weight(self, rows, I, O, act):
        d, x = self.random(rows, O), self.random(rows, I)
        dw = torch.zeros(O, I, device=self.device)
        db = torch.zeros(O, device=self.device)
        return {"torch": lambda: (dw.add_(d.t() @ x), db.add_(d.sum(0)))}

    def heads(self, B, T, H, K, D, grad):
        return [self.random(B, n, T, D, grad=grad) for n in (H, K, K)]

    def sdpa(self, q, k, v, causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    def attention_forward(self, B, T, H, K, D, causal):
        q, k, v = self.heads(B, T, H, K, D, False)
        return {"SDPA, no RoPE": lambda: self.sdpa(q, k, v, bool(causal))}

    def attention_backward(self, B, T, H, K, D, causal):
        q, k, v = self.heads(B, T, H, K, D, True)
        out = self.sdpa(q, k, v, bool(causal))
        dout = torch.randn_like(out)
        return {"SDPA, no RoPE": lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)}

    def attention_decode(self, B, H, K, D, positions):
        q = self.random(B, H, 1, D)
        k, v = self.random(B, K, positions, D), self.random(B, K, positions, D)
        return {"SDPA, no RoPE": lambda: self.sdpa(q, k, v, False)}

    def layernorm_forward(self, rows, C):
        x, w = self.random(rows, C), self.random(C)
        return self.both(lambda x, w: F.layer_norm(x, (C,), w, w), x, w)

    def residual_layernorm_forward(self, rows, C):
        def f(a, b, w):
            s = a + b
            return s, F.layer_norm(s, (C,), w, w)
        return self.both(f, self.random(rows, C), self.random(rows, C), self.random(C))

    def layernorm_backward(self, rows, C):
        x, w, b = self.random(rows, C, grad=True), self.random(C, grad=True), self.random(C, grad=True)
        return self.gradient(lambda x, w, b: F.layer_norm(x, (C,), w, b), (x, w, b), self.random(rows, C), x, w, b)

    def rmsnorm_forward(self, rows, C):
        return self.both(lambda x, w: F.rms_norm(x, (C,), w), self.random(rows, C), self.random(C))

    def residual_rmsnorm_forward(self, rows, C):
        def f(a, b, w):
            s = a + b
            return s, F.rms_norm(s, (C,), w)
        return self.both(f, self.random(rows, C), self.random(rows, C), self.random(C))

    def rmsnorm_backward(self, rows, C):
        x, w = self.random(rows, C, grad=True), self.random(C, grad=True)
        return self.gradient(lambda x, w: F.rms_norm(x, (C,), w), (x, w), self.random(rows, C), x, w)

    def gelu_backward(self, n):
        d, x = self.random(n), self.random(n)
        return {"torch": lambda: torch.ops.aten.gelu_backward(d, x, approximate="tanh")}

    def swiglu(self, x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def swiglu_forward(self, rows, F):
        return self.both(self.swiglu, self.random(rows, 2 * F))

    def swiglu_backward(self, rows, F):
        x = self.random(rows, 2 * F, grad=True)
        return self.gradient(self.swiglu, (x,), self.random(rows, F), x)

    def residual_forward(self, n):
        a, b, out = self.random(n), self.random(n), self.random(n)
        return {"torch": lambda: torch.add(a, b, out=out)}

    def embedding_forward(self, rows, C, V):
        ids, table = torch.arange(rows, device=self.device) % V, self.random(V, C)
        return {"torch": lambda: F.embedding(ids, table)}

    def embedding_backward(self, rows, C, V):
        ids, d = torch.arange(rows, device=self.device) % V, self.random(rows, C)
        return {"torch": lambda: torch.ops.aten.embedding_dense_backward(d, ids, V, -1, False)}

    def gather_rows(self, rows, total, C):
        x, index = self.random(total, C), torch.arange(rows, device=self.device)
        return {"torch": lambda: torch.index_select(x, 0, index)}

    def distill_rows(self, rows, V, what):
        """Loss and gradient with respect to the student's logits."""
        student, teacher = self.random(rows, V, grad=True), self.random(rows, V)
        labels = torch.arange(rows, device=self.device) % V
        if "without" in what:
            return {}
        tau = next((t for t in (1.0, 2.0, 3.0) if f"tau {t:.0f}" in what), 1.0)

        def loss_with(divergence):
            def loss(s, t, y):
                if "cross entropy" in what:
                    return F.cross_entropy(s.float(), y)
                log_q, log_p = F.log_softmax(s.float() / tau, -1), F.log_softmax(t.float() / tau, -1)
                soft = tau * tau * divergence(log_q, log_p)
                return soft if "alone" in what else 0.5 * F.cross_entropy(s.float(), y) + 0.5 * soft
            return loss

        def call_of(f):
            return lambda: torch.autograd.grad(f(student, teacher, labels), student)

        plain = loss_with(jsd if "JSD" in what else kl)
        calls = {"torch": call_of(plain)}
        if self.compile:
            calls["torch.compile"] = call_of(self.compile(plain))
        if "JSD" in what and self.device == "cuda" and liger():
            calls["Liger's JSD"] = call_of(loss_with(liger().LigerJSD(beta=0.5)))
        return calls

    def objective(self, n, V, student, teacher):
        """Both heads, 0.5 CE + 0.5 tau^2 KL at tau 2 and all gradients, in chunks; also Liger's fused linear JSD."""
        h, ht = self.random(n, student, grad=True), self.random(n, teacher)
        w, wt = self.random(V, student, grad=True), self.random(V, teacher)
        labels = torch.arange(n, device=self.device) % V

        def chunk_loss(h, w, ht, y):
            s, t = (h @ w.t()).float(), (ht @ wt.t()).float()
            return 0.5 * F.cross_entropy(s, y, reduction="sum") + 2 * len(y) * kl(F.log_softmax(s / 2, -1),
                                                                              F.log_softmax(t / 2, -1))

        def in_chunks(f):
            def step():
                h.grad = w.grad = None
                for at in range(0, n, 2048):
                    part = slice(at, at + 2048)
                    (f(h[part], w, ht[part], labels[part]) / n).backward()
            return step

        calls = {"torch, chunks of 2048": in_chunks(chunk_loss)}
        if self.compile:
            calls["torch.compile, chunks of 2048"] = in_chunks(self.compile(chunk_loss))
        if self.device == "cuda" and liger():
            fused = liger().LigerFusedLinearJSD(jsd_beta=0.5, temperature=2.0)
            calls["Liger's fused linear JSD"] = lambda: torch.autograd.grad(fused(h, w, ht, wt, labels), (h, w))
        return calls

    def objective_products(self, n, V, student, teacher):
        h, ht, w, wt = (self.random(*shape) for shape in ((n, student), (n, teacher), (V, student), (V, teacher)))
        dw = torch.zeros(V, student, device=self.device)

        def products():
            s, _ = h @ w.t(), ht @ wt.t()
            return s @ w, dw.add_(s.t() @ h)
        return {"torch": products}

    def cosine(self, B, n):
        a, t = self.random(B, n, grad=True), self.random(B, n)

        def loss(a, t):
            return (1 - F.cosine_similarity(a.float(), t.float(), dim=-1)).sum()
        return {"torch": lambda: torch.autograd.grad(loss(a, t), a)}

    def squared_norm(self, n):
        x = self.random(n, dtype=torch.float32)
        return {"torch": lambda: torch.linalg.vector_norm(x)}

    def adamw(self, n):
        p = self.random(n, dtype=torch.float32, grad=True)
        p.grad = torch.randn_like(p)
        step = torch.optim.AdamW([p], lr=1e-3, fused=self.device == "cuda").step
        return {"fused AdamW, no bf16 copy": step}

    def cast_to_x(self, n):
        x, out = self.random(n, dtype=torch.float32), self.random(n)
        return {"torch": lambda: out.copy_(x)}

    def cast_from_x(self, n):
        x, out = self.random(n), self.random(n, dtype=torch.float32)
        return {"torch": lambda: out.copy_(x)}


# The most informative operations come first, because there may not be time for all.
PRIORITY = ("objective", "distill_rows", "attention_forward", "attention_backward", "rmsnorm_backward",
         "residual_rmsnorm_forward", "swiglu_forward", "adamw", "attention_decode", "linear_forward")


def priority(entry):
    """A sort key: first the operations in the table of goals (gpu_report.py)."""
    goal = entry["what"] == "alone" or "V=32768" in entry["shape"]
    return not goal, PRIORITY.index(entry["op"]) if entry["op"] in PRIORITY else len(PRIORITY)


def measure(peers, entry, stop):
    """The fastest peer of an operation, with the times of all peers; None if there is none."""
    method = getattr(peers, entry["op"], None)
    if method is None:
        return None
    shape = {key: int(value) for key, value in (pair.split("=") for pair in entry["shape"].split())}
    if entry["op"] == "distill_rows":
        shape["what"] = entry["what"]
    best, every = None, {}
    for name, call in method(**shape).items():
        if time.monotonic() > stop:
            break
        try:
            ms = every[name] = timed(call, peers.device)
        except Exception as error:  # not every version compiles this, and memory may not suffice
            print(f"{name}, {entry['op']} {entry['what']}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        if best is None or ms < best["ms"]:
            best = {"op": entry["op"], "what": entry["what"], "shape": entry["shape"], "peer": name, "ms": ms}
    return best and {**best, "all": every}


def kernels(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with open(args.kernels) as file:
        machine, *entries = [json.loads(line) for line in file]
    dtype = torch.bfloat16 if machine["dtype"] == "BF16" else torch.float32
    peers = Peers(device, dtype, device == "cuda" and not args.no_compile)
    stop = time.monotonic() + args.seconds
    done = 0
    with open(args.out, "w") as out:
        for entry in sorted(entries, key=priority):
            if time.monotonic() > stop:
                break
            try:
                best = measure(peers, entry, stop)
            except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError) as error:
                print(f"no peer for {entry['op']} {entry['what']}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            finally:
                if device == "cuda":
                    torch.cuda.empty_cache()
            if best:
                out.write(json.dumps(best) + "\n")
                out.flush()
                done += 1
    print(f"PyTorch {torch.__version__} on {device}: {done} of {len(entries)} operations timed")


LLAMA = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32016},
}


def generate_ms(model, batch, device, static):
    """Milliseconds of a decoding step for `batch` sequences in greedy `generate` after a prompt of 243 positions,
    from the difference between a long and a short sequence."""
    ids = torch.ones(batch, 243, dtype=torch.long, device=device)
    options = {"do_sample": False, "use_cache": True, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    if static:
        options["cache_implementation"] = "static"

    def seconds(tokens):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(2):
        seconds(64)
    return 1e3 * min((seconds(64) - seconds(4)) / 60 for _ in range(3))


def decode(args):
    """Times Llama of Transformers with TinyLlama's or CodeLlama-7B's shape: unchanged, and with a static cache and a
    compiled forward pass, until the time is up."""
    import transformers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = time.monotonic() + args.seconds
    config = transformers.LlamaConfig(**LLAMA[args.shape if device == "cuda" else "tiny"])
    with torch.device(device) if device == "cuda" else contextlib.nullcontext():  # initializes on the GPU
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    result = {"peer": f"Transformers {transformers.__version__}", "shape": args.shape, "batches": []}
    forward = {"generate as it is": model.forward}
    if device == "cuda" and not args.no_compile:
        forward["static cache, compiled"] = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    for how, model.forward in forward.items():
        for batch in (1, 8, 64):
            if time.monotonic() > stop:
                break
            try:
                with torch.no_grad():
                    ms = generate_ms(model, batch, device, "static" in how)
            except Exception as error:  # not every version compiles this, and memory may not suffice
                print(f"batch {batch}, {how}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            result["batches"].append({"batch": batch, "step_ms": ms, "how": how})
            with open(args.out, "w") as file:  # written at once, because compiling may exceed the time
                file.write(json.dumps(result) + "\n")
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernels", metavar="FILE")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--shape", choices=sorted(LLAMA), default="1.1b", help="with --decode")
    parser.add_argument("--out", metavar="FILE", required=True)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    if args.decode:
        decode(args)
    elif args.kernels:
        kernels(args)
    else:
        parser.error("one of --kernels and --decode is needed")


if __name__ == "__main__":
    main()
