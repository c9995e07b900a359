#!/usr/bin/env python3
"""Compares decoding with llama.cpp: equal shape, equal threads, equal or nearly equal bits, in turns in one run.

    llama.py DIR [--bench build/BF16-cpu/bench_decode] [--quantize ./quantize] [--threads N] [--rounds N]
             [--types bf16,q8,q4] [--layers N] [--json OUT]

Needs `pip install llama-cpp-python gguf numpy`; CMAKE_ARGS=-DGGML_NATIVE=on and --no-binary llama-cpp-python compile
llama.cpp for this processor. The models have TinyLlama-1.1B's shape and random weights, which cost as much time as trained
ones. They are written to DIR if they are not there yet (10 GB): tl.safetensors, tl-q8.safetensors and tl-q4.safetensors for
tikz.c, tl-bf16.gguf and so on for llama.cpp. With --layers N, for trying out, the decoder has N layers and the encoder
one, and the names begin with tl-N.

    type    tikz.c          llama.cpp       bits a weight
    bf16    bf16            BF16            16 both
    q8      q8              Q8_0            8.5 both
    q4      q4              Q4_0, Q4_1      5; 4.5, 5

In tikz.c's q4 file and in both 4-bit GGUF files, embedding and head have 8 bits (q8, Q8_0). Q4_1 is the format of equal
bits, Q4_0 the one that llama.cpp has its fastest kernels for. The cache has 16 bits (bf16, llama.cpp's default fp16).

Measured are: tokens/s of one sequence and of eight decoded together, greedily, behind as many positions as an image has
(243), and the seconds that the decoder takes to read 300 positions. llama.cpp maps its file, and computes the logits of
the last position only. A round measures each of them with tikz.c, then with llama.cpp; a figure is the median of
the rounds, a decoding round the median of its steps (64; 16 for eight sequences). One round before them is not counted.
A round of all types takes some minutes on two cores, so that the machine has to be idle for that long.
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import gguf
import llama_cpp
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 2048, 22, 32, 4, 5632, 32000, 512
SEQUENCES, PREFILL = 8, 300
PEERS = {"bf16": ("BF16",), "q8": ("Q8_0",), "q4": ("Q4_0", "Q4_1")}
MEASURES = (("one", "decode 1"), ("eight", f"decode {SEQUENCES}"), ("prefill", f"prefill {PREFILL}"))


# ---- the files ----


def tensors(layers):
    """Name and shape of every tensor of a Llama in GGUF; a matrix has the shape [rows, columns]."""
    kv = HIDDEN // HEADS * KV_HEADS
    yield "token_embd.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (HIDDEN,)
        yield f"blk.{i}.attn_q.weight", (HIDDEN, HIDDEN)
        yield f"blk.{i}.attn_k.weight", (kv, HIDDEN)
        yield f"blk.{i}.attn_v.weight", (kv, HIDDEN)
        yield f"blk.{i}.attn_output.weight", (HIDDEN, HIDDEN)
        yield f"blk.{i}.ffn_norm.weight", (HIDDEN,)
        yield f"blk.{i}.ffn_gate.weight", (FFN, HIDDEN)
        yield f"blk.{i}.ffn_up.weight", (FFN, HIDDEN)
        yield f"blk.{i}.ffn_down.weight", (HIDDEN, FFN)
    yield "output_norm.weight", (HIDDEN,)
    yield "output.weight", (VOCAB, HIDDEN)


def describe(writer, kind, layers):
    """Writes the configuration, and a tokenizer with as many tokens as the embedding has rows."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    types = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>"] + [f"t{i}" for i in range(3, VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([types.UNKNOWN, types.CONTROL, types.CONTROL] + [types.NORMAL] * (VOCAB - 3))


def write_gguf(path, kind, layers):
    """Writes a model. Its matrices are slices of one block of random numbers, which is quantised once: drawing and
    quantising a billion would take minutes, and all in memory at once several GB."""
    values = 0.02 * np.random.RandomState(1).standard_normal((4096, HIDDEN)).astype(np.float32)
    matrix = gguf.GGMLQuantizationType[kind]
    vocabulary = gguf.GGMLQuantizationType["Q8_0" if kind.startswith("Q4") else kind]
    blocks = {t: gguf.quants.quantize(values, t).view(np.uint8).reshape(-1) for t in {matrix, vocabulary}}

    def kind_of(name):
        return vocabulary if name in ("token_embd.weight", "output.weight") else matrix

    def bytes_of(name, shape):
        size = np.prod(gguf.quants.quant_shape_to_byte_shape(shape, kind_of(name)))
        block, start = blocks[kind_of(name)], len(name) * 4096 * blocks[kind_of(name)].size // (64 * 4096)
        return np.resize(np.roll(block, -start), size)

    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    describe(writer, kind, layers)
    for name, shape in tensors(layers):
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            row = gguf.quants.quant_shape_to_byte_shape(shape, kind_of(name))
            writer.add_tensor_info(name, row, np.dtype(np.uint8), int(np.prod(row)), raw_dtype=kind_of(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in tensors(layers):
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else bytes_of(name, shape))
    writer.close()
    partial.rename(path)


def make_files(options, prefix, types):
    """Writes the files that are not there yet."""
    ours = options.dir / f"{prefix}.safetensors"
    if not ours.exists():
        shape = f"tl-1.1b,lm.vocab={VOCAB}"
        if options.layers != LAYERS:
            shape += f",lm.layers={options.layers},vision.layers=1"
        subprocess.run([options.bench, "--make", ours, shape], check=True)
    for name in types:
        quantised = options.dir / f"{prefix}-{name}.safetensors"
        if name != "bf16" and not quantised.exists():
            subprocess.run([options.quantize, "--weights", name, ours, quantised], check=True)
        for kind in PEERS[name]:
            path = options.dir / f"{prefix}-{kind.lower()}.gguf"
            if not path.exists():
                write_gguf(path, kind, options.layers)
                print(f"{path}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


# ---- the two programs: ask("decode N" or "prefill N") gives milliseconds ----


class Ours:
    """bench_decode --serve in a process of its own, which sleeps while it is not asked."""

    def __init__(self, bench, path, threads):
        self.process = subprocess.Popen([bench, "--serve", str(SEQUENCES), path], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        self.image = int(self.line().split()[0])

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"llama.py: error: {self.process.args[0]} ended with status {self.process.wait()}")
        return line

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return float(self.line())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@llama_cpp.llama_log_callback
def log_errors(level, text, _):
    """Shows llama.cpp's errors only."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


class Llama:
    """A model in llama.cpp, in this process."""

    def __init__(self, path, threads, image):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        if hasattr(params, "use_mmap"):
            params.use_mmap = True
        else:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            sys.exit(f"llama.py: error: llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = CONTEXT * SEQUENCES, SEQUENCES
        params.n_batch = params.n_ubatch = CONTEXT
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.py: error: llama.cpp cannot make a context for {path}")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        self.prompt = np.random.RandomState(2).randint(3, VOCAB, PREFILL).tolist()
        self.image = image
        self.decode([(token, i, 0, i + 1 == image) for i, token in enumerate(self.prompt[:image])])
        for s in range(1, SEQUENCES):
            llama_cpp.llama_memory_seq_cp(self.memory, 0, s, -1, -1)

    def decode(self, entries):
        """Computes a batch of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            sys.exit(f"llama.py: error: llama_decode of {len(entries)} tokens gave {status}")
        llama_cpp.llama_synchronize(self.context)

    def best(self, n):
        """The most probable next token of each of the n sequences of the last batch."""
        logits = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, shape=(n, VOCAB)).argmax(1).tolist()

    def forget(self, sequence, position):
        if not llama_cpp.llama_memory_seq_rm(self.memory, sequence, position, -1):
            sys.exit("llama.py: error: llama.cpp cannot shorten a sequence")

    def ask(self, request):
        what, n = request.split()
        return self.time_prefill(int(n)) if what == "prefill" else self.time_decode(int(n))

    def time_prefill(self, n):
        self.forget(0, 0)
        start = time.perf_counter()
        self.decode([(token, i, 0, i + 1 == n) for i, token in enumerate(self.prompt[:n])])
        self.best(1)
        milliseconds = 1e3 * (time.perf_counter() - start)
        self.forget(0, self.image)
        return milliseconds

    def time_decode(self, n):
        """The median step after two to warm up, as bench_decode does it."""
        steps, tokens, times = 64 if n == 1 else 16, [self.prompt[0]] * n, []
        for t in range(-2, steps):
            if t <= 0:
                for s in range(n):
                    self.forget(s, self.image)
            start = time.perf_counter()
            self.decode([(tokens[s], self.image + max(t, 0), s, True) for s in range(n)])
            tokens = self.best(n)
            if t >= 0:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


# ---- the comparison ----


def figure(measure, milliseconds):
    """Tokens per second, or seconds of a prefill."""
    if measure == "prefill":
        return milliseconds / 1e3
    return 1e3 * (SEQUENCES if measure == "eight" else 1) / milliseconds


def compare(options, prefix, name):
    """Measures a type of tikz.c and its peers in turns. Returns one result per peer."""
    ours_path = options.dir / (f"{prefix}.safetensors" if name == "bf16" else f"{prefix}-{name}.safetensors")
    ours = Ours(options.bench, ours_path, options.threads)
    programs = {"tikz.c": ours}
    for kind in PEERS[name]:
        programs[kind] = Llama(options.dir / f"{prefix}-{kind.lower()}.gguf", options.threads, ours.image)
    rounds = {(program, measure): [] for program in programs for measure, _ in MEASURES}
    for r in range(-1, options.rounds):
        for measure, request in MEASURES:
            for program in programs:
                milliseconds = programs[program].ask(request)
                if r >= 0:
                    rounds[program, measure].append(figure(measure, milliseconds))
    for program in programs.values():
        program.close()
    return [{"type": name, "peer": kind, "load": os.getloadavg()[0],
             **{measure: {"tikz.c": rounds["tikz.c", measure], "llama.cpp": rounds[kind, measure]}
                for measure, _ in MEASURES}} for kind in PEERS[name]]


def print_results(results):
    titles = {"one": "tokens/s, one sequence", "eight": "tokens/s, eight sequences",
              "prefill": f"seconds to read {PREFILL} positions"}
    print("\n| | types | tikz.c | llama.cpp | speed ratio | range of tikz.c | range of llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    for measure, _ in MEASURES:
        for r in results:
            ours, peer = r[measure]["tikz.c"], r[measure]["llama.cpp"]
            a, b = statistics.median(ours), statistics.median(peer)
            ratio = b / a if measure == "prefill" else a / b
            print(f"| {titles[measure]} | {r['type']}, {r['peer']} | {a:.2f} | {b:.2f} | {ratio:.2f} | "
                  f"{min(ours):.2f} to {max(ours):.2f} | {min(peer):.2f} to {max(peer):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, metavar="DIR", help="where the models are")
    parser.add_argument("--bench", default="build/BF16-cpu/bench_decode")
    parser.add_argument("--quantize", default="./quantize")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default="bf16,q8,q4", help="of bf16, q8, q4")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the decoder; fewer only for trying out")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT")
    options = parser.parse_args()
    types = options.types.split(",")
    if options.threads < 1 or options.rounds < 1 or options.layers < 1 or not set(types) <= set(PEERS):
        parser.error("--threads, --rounds and --layers are numbers from 1 on, --types a list of bf16, q8 and q4")
    options.dir.mkdir(parents=True, exist_ok=True)
    prefix = "tl" if options.layers == LAYERS else f"tl-{options.layers}"
    llama_cpp.llama_log_set(log_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    make_files(options, prefix, types)
    system = llama_cpp.llama_print_system_info().decode().strip()
    print(f"{options.threads} threads, {options.rounds} rounds; llama-cpp-python {llama_cpp.__version__}, {system}")
    start, results = time.monotonic(), []
    for name in types:
        results += compare(options, prefix, name)
        print(f"{name} measured after {time.monotonic() - start:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    print_results(results)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "layers": options.layers, "llama.cpp": system,
                                            "version": llama_cpp.__version__, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
