#!/usr/bin/env python3
"""Times the training step of train_distill in PyTorch, to compare speeds on equal work.

    train_torch.py --make-data FILE.bin          writes 2048 samples of 95 tokens with 96-pixel images
    train_torch.py --data FILE.bin [--steps N]   trains on them and prints samples/s
        --fp32                                   in fp32, without autocast to bf16
        --device cuda --compile --json OUT       on a GPU; with torch.compile; the result also as JSON

The model is `--student small` of train_distill (cross entropy only, batch 64): a vision encoder of width 96 with 3
layers and 3 heads; 48 image tokens; a decoder of width 128 with 3 layers, 4 heads and an intermediate size of 352. It
is trained with bf16 autocast, AdamW and gradient clipping to norm 1, on all processors that it may use or on a GPU
(there with fused attention and a fused AdamW). Images are decoded before the timing starts, as they are cached in
train_distill after one epoch.
"""
import argparse
import io
import os
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import tikzc  # noqa: E402

TOKENIZER = ROOT / "dev/starter/tokenizer.safetensors"
IMAGE_TOKENS, TEXT = 48, 95


def make_data(path, samples=2048, text=TEXT, side=12):
    """Writes a dataset of random ids and random images of 8 * side pixels a side, which have no white border to
    trim."""
    from PIL import Image
    tokenizer = tikzc.Tokenizer.load(TOKENIZER)
    rng = np.random.RandomState(1)
    with tikzc.DatasetWriter(path, tokenizer, "dev/bench/train_torch.py: random images and ids") as writer:
        for _ in range(samples):
            pixels = np.kron(rng.randint(0, 255, (side, side, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "png")
            ids = rng.randint(0, 256, text)
            ids[-1] = tokenizer.end
            writer.add(out.getvalue(), ids.tolist())


def model(torch, vocab):
    """The model in PyTorch; its forward pass returns the cross entropy."""
    nn, F = torch.nn, torch.nn.functional

    class Attention(nn.Module):
        def __init__(self, hidden_size, heads, bias, rope):
            super().__init__()
            self.heads, self.rope = heads, rope
            self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
            self.o_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
            if rope:
                half = hidden_size // heads // 2
                angle = torch.arange(IMAGE_TOKENS + TEXT)[:, None] * 1e4 ** (-torch.arange(half) / half)
                self.register_buffer("cos", angle.cos())
                self.register_buffer("sin", angle.sin())

        def rotate(self, x):
            half, T = x.shape[-1] // 2, x.shape[-2]
            cos, sin = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
            a, b = x[..., :half], x[..., half:]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        def forward(self, x):
            B, T, W = x.shape
            q, k, v = self.qkv(x).view(B, T, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
            if self.rope:
                q, k = self.rotate(q), self.rotate(k)
            if x.is_cuda:
                y = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=self.rope)
                return self.o_proj(y.transpose(1, 2).reshape(B, T, W))
            scores = q @ k.transpose(-1, -2) / (W // self.heads) ** 0.5
            if self.rope:
                scores = scores + torch.full((T, T), float("-inf")).triu(1)
            y = torch.softmax(scores, -1).to(v.dtype) @ v
            return self.o_proj(y.transpose(1, 2).reshape(B, T, W))

    class VisionBlock(nn.Module):
        def __init__(self, hidden_size, heads):
            super().__init__()
            self.input_layernorm = nn.LayerNorm(hidden_size)
            self.post_attention_layernorm = nn.LayerNorm(hidden_size)
            self.attention = Attention(hidden_size, heads, True, False)
            self.fc1, self.fc2 = nn.Linear(hidden_size, 4 * hidden_size), nn.Linear(4 * hidden_size, hidden_size)

        def forward(self, x):
            x = x + self.attention(self.input_layernorm(x))
            return x + self.fc2(F.gelu(self.fc1(self.post_attention_layernorm(x)), approximate="tanh"))

    class RMSNorm(nn.Module):
        def __init__(self, hidden_size):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(hidden_size))

        def forward(self, x):
            return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight

    class TextBlock(nn.Module):
        def __init__(self, hidden_size, heads, intermediate_size):
            super().__init__()
            self.input_layernorm = RMSNorm(hidden_size)
            self.post_attention_layernorm = RMSNorm(hidden_size)
            self.attention = Attention(hidden_size, heads, False, True)
            self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
            self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

        def forward(self, x):
            x = x + self.attention(self.input_layernorm(x))
            gate, up = self.gate_up(self.post_attention_layernorm(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 96, 8, 8)
            self.position = nn.Parameter(torch.randn(144, 96) * 0.02)
            self.vision = nn.Sequential(*[VisionBlock(96, 3) for _ in range(3)])
            self.vision_norm, self.connector = nn.LayerNorm(96), nn.Linear(3 * 96, 128)
            self.embed = nn.Embedding(vocab, 128)
            self.blocks = nn.Sequential(*[TextBlock(128, 4, 352) for _ in range(3)])
            self.norm, self.head = RMSNorm(128), nn.Linear(128, vocab, bias=False)

        def forward(self, pixels, ids):
            x = self.patch(pixels).flatten(2).transpose(1, 2) + self.position
            x = self.vision_norm(self.vision(x))
            image = self.connector(x.reshape(len(x), IMAGE_TOKENS, -1))
            x = self.blocks(torch.cat([image, self.embed(ids[:, :-1]).to(image.dtype)], 1))
            logits = self.head(self.norm(x[:, IMAGE_TOKENS - 1:]))
            return F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())

    return Model()


def train(path, steps, batch, device, compiled, fp32, out):
    """Trains, and prints the median time of a step, from gathering the batch to reading the loss on the host."""
    import json
    import torch
    from PIL import Image
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = tikzc.Dataset(path)
    samples = [data[i] for i in range(len(data))]
    pixels = torch.tensor(np.stack([np.asarray(Image.open(io.BytesIO(bytes(s[0]))).convert("RGB")) for s in samples]))
    pixels = ((pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(device)
    ids = torch.tensor(np.stack([np.asarray(s[1]).astype(np.int64) for s in samples])).to(device)
    torch.manual_seed(1)
    tokens = len(tikzc.Tokenizer.load(TOKENIZER).tokens)
    net = model(torch, (tokens + 15) // 16 * 16).to(device)
    parameters = sum(p.numel() for p in net.parameters())
    fused = {"fused": True} if device != "cpu" else {}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05, **fused)
    run = torch.compile(net) if compiled else net
    times = []
    for step in range(steps):
        start = time.perf_counter()
        rows = torch.arange(step * batch, (step + 1) * batch, device=device) % len(ids)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=not fp32):
            loss = run(pixels[rows], ids[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - start)
    median = sorted(times[len(times) // 5:])[len(times[len(times) // 5:]) // 2]
    print(f"PyTorch {torch.__version__}, {'fp32' if fp32 else 'bf16'}, {torch.get_num_threads()} threads, "
          f"{parameters / 1e6:.2f} M parameters: {batch / median:.1f} samples/s "
          f"(median of {len(times)} steps), loss {loss.item():.3f}")
    if out:
        peer = f"PyTorch {torch.__version__}{', compiled' if compiled else ''}"
        pathlib.Path(out).write_text(json.dumps({"peer": peer, "ms": 1e3 * median}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--make-data", metavar="FILE")
    parser.add_argument("--data", metavar="FILE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    if args.make_data:
        make_data(args.make_data)
    elif args.data:
        train(args.data, args.steps, args.batch, args.device, args.compile, args.fp32, args.json)
    else:
        parser.error("one of --make-data and --data is needed")


if __name__ == "__main__":
    main()
