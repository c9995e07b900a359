#!/usr/bin/env python3
"""Load on serve over the loopback: programs a second with few and many clients, and how long /healthz takes meanwhile.

    dev/bench/serve_load.py BUILD_DIR [--clients 1,16] [--seconds 20] [--image FILE] [-- OPTION...]

Starts BUILD_DIR/serve with the shipped student, or the model of --model, and the OPTIONs. Every client sends one request after another, greedy and without TeX;
one more asks for /healthz twenty times a second. A client that is told to come again (429, 503) does so after a tenth of a second.
Prints a line for each number of clients: programs and tokens a second, the median and the 99th percentile of a program's
time, the server's processor time for a program, the 99th percentile and the longest of /healthz, the server's memory at the
end, and the statuses.
"""
import argparse
import asyncio
import collections
import json
import os
import pathlib
import re
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

    async def healthy(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.monotonic() < self.until:
            begin = time.monotonic()
            status, _ = await self.ask(reader, writer, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            self.health.append(time.monotonic() - begin)
            if status != 200:
                self.statuses[f"healthz {status}"] += 1
            await asyncio.sleep(0.05)
        writer.close()

    async def run(self, clients, seconds):
        self.until = time.monotonic() + seconds
        begin = time.monotonic()
        await asyncio.gather(self.healthy(), *(self.client() for _ in range(clients)))
        return time.monotonic() - begin


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def memory(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def processor(pid):
    """Seconds of processor time so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("build")
    p.add_argument("--clients", default="1,16")
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--model", default="dev/starter/student.safetensors")
    p.add_argument("--image", default=ROOT / "dev/starter/example.png")
    o, rest = p.parse_known_args()
    image = pathlib.Path(o.image).read_bytes()
    body = (b'--x\r\nContent-Disposition: form-data; name="compile"\r\n\r\nfalse\r\n'
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%s\r\n--x--\r\n' % image)
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
