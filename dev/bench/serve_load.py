#!/usr/bin/env python3
"""Load on serve over the loopback: programs a second with few and many clients, and how long /healthz takes meanwhile.

    dev/bench/serve_load.py BUILD_DIR [--clients 1,16] [--seconds 20] [--image FILE]
        [--model FILE | --wide WIDTH LAYERS] [--tokens N] [-- OPTION...]

Starts BUILD_DIR/serve with the shipped student, or the model of --model, and the OPTIONs. Every client sends one request
after another, greedy and without TeX; another process asks for /healthz twenty times a second. A client that is told to come
again (429, 503) does so after a tenth of a second.
Prints a line for each number of clients: programs and tokens a second, the median and the 99th percentile of a program's
time, the server's processor time for a program, the 99th percentile and the longest of /healthz, the server's memory at the
end, and the statuses.
"""
import argparse
import asyncio
import collections
import http.client
import json
import math
import multiprocessing
import os
import pathlib
import re
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Load:
    def __init__(self, port, body):
        self.port, self.body = port, body
        self.times, self.health, self.statuses, self.tokens = [], [], collections.Counter(), 0
        self.until = 0.0

    async def ask(self, reader, writer, request):
        """Returns the status and the body of an answer with a length."""
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
        return int(head.split(b" ", 2)[1]), await reader.readexactly(length)

    async def client(self):
        request = (b"POST /v1/convert HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                   b"Content-Length: %d\r\n\r\n" % len(self.body)) + self.body
        writer = None
        while time.monotonic() < self.until:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                begin = time.monotonic()
                status, answer = await self.ask(reader, writer, request)
            except (OSError, asyncio.IncompleteReadError) as e:
                self.statuses[type(e).__name__] += 1
                writer = None
                await asyncio.sleep(0.1)
                continue
            self.statuses[status] += 1
            if status == 200:
                self.times.append(time.monotonic() - begin)
                self.tokens += json.loads(answer)["tokens"]
            else:
                await asyncio.sleep(0.1)
        if writer:
            writer.close()

    async def run(self, clients, seconds):
        self.until = time.monotonic() + seconds
        begin = time.monotonic()
        mine, other = multiprocessing.Pipe()
        probe = multiprocessing.Process(target=ask_health, args=(self.port, self.until, other))
        probe.start()
        await asyncio.gather(*(self.client() for _ in range(clients)))
        seconds = time.monotonic() - begin
        self.health, wrong = mine.recv()
        probe.join()
        self.statuses.update({"healthz": wrong} if wrong else {})
        return seconds


def ask_health(port, until, out):
    """In a process of its own, so that the times are the server's: sends how long each took, and how many were not 200."""
    times, wrong = [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < until:
        begin = time.monotonic()
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        times.append(time.monotonic() - begin)
        wrong += answer.status != 200
        time.sleep(0.05)
    out.send((times, wrong))


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def memory(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def processor(pid):
    """Seconds of processor time so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def random_bf16(n):
    """n numbers of either sign, of 1/128 to 1/64."""
    out = bytearray(2 * n)
    out[0::2] = os.urandom(n)
    out[1::2] = os.urandom(n).translate(bytes(0x3C if b < 128 else 0xBC for b in range(256)))
    return bytes(out)


def wide_model(path, width, layers):
    """Writes a model with the student's encoder and tokenizer, and a random decoder of another size: what it writes means
    nothing, but it takes the time of a real one."""
    data = (ROOT / "dev/starter/student.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    metadata = header.pop("__metadata__")
    ffn, vocab = 8 * width // 3 // 32 * 32, int(metadata["lm.vocab"])
    metadata |= {"lm.width": str(width), "lm.layers": str(layers), "lm.heads": str(width // 64), "lm.kv_heads": str(width // 64),
                 "lm.head_dim": "64", "lm.ffn": str(ffn)}
    shapes = {"connector.weight": [width, int(metadata["vision.width"])], "connector.bias": [width],
              "lm.embed": [vocab, width], "lm.head": [vocab, width], "lm.norm": [width]}
    for k in range(layers):
        shapes |= {f"lm.{k}.{name}": shape for name, shape in {
            "norm1": [width], "norm2": [width], "qkv.weight": [3 * width, width], "out.weight": [width, width],
            "gate_up.weight": [2 * ffn, width], "down.weight": [width, ffn]}.items()}
    tensors = {name: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for name, t in header.items()
               if not name.startswith(("lm.", "connector."))}
    tensors |= {name: ("BF16", shape, random_bf16(math.prod(shape))) for name, shape in shapes.items()}
    entries, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, values) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(values)]}
        at += len(values)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.writelines(values for _, _, values in tensors.values())
    return path


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("build")
    p.add_argument("--clients", default="1,16")
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--model", default="dev/starter/student.safetensors")
    p.add_argument("--wide", type=int, nargs=2, metavar=("WIDTH", "LAYERS"), help="instead a random decoder of this size")
    p.add_argument("--tokens", type=int, default=0, help="longest program")
    p.add_argument("--image", default=ROOT / "dev/starter/example.png")
    o, rest = p.parse_known_args()
    image = pathlib.Path(o.image).read_bytes()
    if o.wide:
        o.model = wide_model(pathlib.Path(o.build) / "wide.safetensors", *o.wide)
    body = (b'--x\r\nContent-Disposition: form-data; name="max_tokens"\r\n\r\n%d\r\n--x\r\nContent-Disposition: form-data; name="compile"\r\n\r\nfalse\r\n'
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%s\r\n--x--\r\n' % (o.tokens, image))
    server = subprocess.Popen([f"{o.build}/serve", "--port", "0", "--quiet", o.model, *[a for a in rest if a != "--"]],
                              stderr=subprocess.PIPE, text=True, cwd=ROOT)
    line = server.stderr.readline()
    while line and "listening" not in line:
        line = server.stderr.readline()
    found = re.search(r":(\d+)(?: |$)", line.strip() + " ")
    if not found:
        sys.exit(f"serve did not start: {line}")
    port = int(found.group(1))
    print("clients  programs/s  tokens/s  median s  p99 s  ms of processor  healthz p99 ms  longest ms  MB  statuses")
    try:
        for clients in map(int, o.clients.split(",")):
            load, before = Load(port, body), processor(server.pid)
            seconds = asyncio.run(load.run(clients, o.seconds))
            print(f"{clients:7}  {len(load.times) / seconds:10.2f}  {load.tokens / seconds:8.0f}  "
                  f"{percentile(load.times, 0.5):8.2f}  {percentile(load.times, 0.99):5.2f}  "
                  f"{1e3 * (processor(server.pid) - before) / max(1, len(load.times)):15.1f}  {1e3 * percentile(load.health, 0.99):14.1f}  {1e3 * max(load.health):10.1f}  {memory(server.pid):.0f}  "
                  f"{dict(load.statuses)}", flush=True)
    finally:
        server.terminate()
        server.wait()


main()
