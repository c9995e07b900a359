#!/usr/bin/env python3
"""Times a whole distillation step in PyTorch, to compare with train_distill on equal work.

    peer_step.py --make-data FILE.bin               64 samples with texts of 1024 tokens
    peer_step.py --out FILE.json [--batch 8] [--steps 8] [--seconds 60] [--tiny]

The student has TinyLlama's decoder and the teacher CodeLlama-7B's; both share a frozen SigLIP SO400M, which encodes
each image once. 243 image and 1024 text positions; the loss is 0.5 CE + 0.5 tau^2 KL at tau 2, over chunks of 2048
positions. PyTorch uses bf16 (autocast, with fp32 master weights of the student), fused attention and a fused AdamW,
with and without torch.compile; the faster variant counts. The models are those of Transformers.
"""
import argparse
import contextlib
import json
import pathlib
import sys
import time

CHUNK, TAU, TEXT = 2048, 2.0, 1024
SHAPES = {  # arguments of LlamaConfig
    "student": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                "num_key_value_heads": 4, "vocab_size": 32000},
    "teacher": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 32, "vocab_size": 32016},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
          "image_size": 384, "patch_size": 14}
TINY_VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 42, "patch_size": 14}


def make_data(path):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    import train_torch
    train_torch.make_data(path, samples=64, text=TEXT, side=48)


def build(torch, transformers, shape, features, attention):
    """A module of connector, decoder and head, which maps features [B, P, F] and ids [B, T] to hidden states [B T,
    W]."""
    class LanguageModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = transformers.LlamaConfig(**SHAPES[shape], attn_implementation=attention)
            self.decoder = transformers.LlamaModel(config)
            self.connector = torch.nn.Linear(features, config.hidden_size)
            self.head = torch.nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)

        def forward(self, images, ids):
            x = torch.cat([self.connector(images), self.decoder.embed_tokens(ids[:, :-1])], 1)
            hidden = self.decoder(inputs_embeds=x, use_cache=False).last_hidden_state
            return hidden[:, images.shape[1] - 1:].flatten(0, 1)

    return LanguageModel()


def chunk_loss(torch, hidden, head, teacher_hidden, teacher_head, labels):
    """The loss of a chunk, summed over its positions."""
    F = torch.nn.functional
    s, t = (hidden @ head.t()).float(), (teacher_hidden @ teacher_head.t()).float()[:, :head.shape[0]]
    kl = F.kl_div(F.log_softmax(s / TAU, -1), F.log_softmax(t / TAU, -1), log_target=True, reduction="sum")
    return 0.5 * F.cross_entropy(s, labels, reduction="sum") + 0.5 * TAU * TAU * kl


class Step:
    """Models, data and optimizer; run() makes one training step."""

    def __init__(self, torch, transformers, args, device, attention):
        self.torch, self.device = torch, device
        if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
            attention = "eager"
        vision = transformers.SiglipVisionConfig(**(TINY_VISION if args.tiny else SO400M),
                                                 attn_implementation=attention if device == "cuda" else "eager")
        text = 16 if args.tiny else TEXT
        names = ("tiny", "tiny") if args.tiny else ("student", "teacher")
        with torch.device(device) if device == "cuda" else contextlib.nullcontext():  # initializes on the GPU
            self.encoder = transformers.SiglipVisionModel(vision).to(torch.bfloat16).eval()
            self.student, self.teacher = (build(torch, transformers, name, 3 * vision.hidden_size, attention)
                                          for name in names)
        self.teacher.to(torch.bfloat16).eval()
        self.images = torch.randn(args.batch, 3, vision.image_size, vision.image_size, device=device)
        self.ids = torch.randint(0, 256, (args.batch, text), device=device)
        fused = {"fused": True} if device == "cuda" else {}
        self.adamw = torch.optim.AdamW(self.student.parameters(), lr=1e-4, **fused)
        self.student_head, self.teacher_head = self.student.head, self.teacher.head
        self.loss = lambda *x: chunk_loss(torch, *x)

    def compile(self):
        self.encoder = self.torch.compile(self.encoder)
        self.student = self.torch.compile(self.student)
        self.teacher = self.torch.compile(self.teacher)
        self.loss = self.torch.compile(self.loss)

    def teacher_forward(self):
        """Returns the image features, for both models, and the hidden states of the teacher."""
        with self.torch.no_grad():
            x = self.encoder(self.images.to(self.torch.bfloat16)).last_hidden_state
            images = x[:, :x.shape[1] // 3 * 3].reshape(x.shape[0], -1, 3 * x.shape[2])
            return images, self.teacher(images, self.ids)

    def run(self):
        torch, labels = self.torch, self.ids.flatten()
        with torch.autocast(self.device, dtype=torch.bfloat16):
            images, teacher_hidden = self.teacher_forward()
            hidden = self.student(images, self.ids)
            detached = hidden.detach().requires_grad_()
            for at in range(0, len(labels), CHUNK):
                part = slice(at, at + CHUNK)
                loss = self.loss(detached[part], self.student_head, teacher_hidden[part], self.teacher_head,
                                 labels[part])
                (loss / len(labels)).backward()
        hidden.backward(detached.grad)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)


def median_seconds(step, steps, stop):
    """The median time of up to `steps` steps after two warm-up steps; None if time runs out before a step is
    measured."""
    times = []
    for i in range(2 + steps):
        if time.monotonic() > stop:
            break
        begin = time.perf_counter()
        step.run()
        if step.device == "cuda":
            step.torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])[len(times[2:]) // 2] if times[2:] else None


def measure(args):
    import torch
    import transformers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = time.monotonic() + args.seconds
    try:
        step = Step(torch, transformers, args, device, "sdpa")
    except (ValueError, ImportError) as error:  # old versions support it for some models only
        print(f"eager attention: {str(error).splitlines()[0]}", file=sys.stderr)
        step = Step(torch, transformers, args, device, "eager")
    best = None
    for how in ("eager", "compiled"):
        if how == "compiled":
            if device != "cuda" or time.monotonic() > stop:
                break
            step.compile()
        try:
            seconds = median_seconds(step, args.steps, stop)
        except Exception as error:  # not every version compiles this, and memory may not suffice
            print(f"{how}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        if seconds and (best is None or seconds < best["ms"] / 1e3):
            best = {"peer": f"PyTorch {torch.__version__}, Transformers {transformers.__version__}, {how}",
                    "batch": args.batch, "ms": 1e3 * seconds, "tokens_per_second": step.ids.numel() / seconds}
            with open(args.out, "w") as file:  # written at once, because compiling may exceed the time
                file.write(json.dumps(best) + "\n")
            print(json.dumps(best), flush=True)
    if best is None:
        sys.exit("peer_step.py: no step was timed; give it more --seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--make-data", metavar="FILE")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try out this program")
    args = parser.parse_args()
    if args.make_data:
        make_data(args.make_data)
    elif args.out:
        measure(args)
    else:
        parser.error("one of --make-data and --out is needed")


if __name__ == "__main__":
    main()
