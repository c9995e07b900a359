#!/usr/bin/env python3
"""Hostile requests: sends serve many broken and random ones, from several connections, and checks that it stays alive, keeps
its memory, and answers nothing but statuses that it documents.

    dev/bench/serve_hostile.py BUILD_DIR [COUNT] [SEED]
"""
import base64
import collections
import json
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = (ROOT / "dev/starter/example.png").read_bytes()
KNOWN = {200, 204, 304, 400, 401, 404, 405, 408, 411, 413, 414, 415, 417, 422, 429, 431, 494, 500, 501, 503, 504, 505}
PATHS = ["/", "/v1/convert", "/v1/render", "/predict/", "/bytes/", "/predict/3", "/v1/chat/completions", "/v1/models", "/healthz",
         "/metrics", "/openapi.json", "/../../etc/passwd", "/%2e%2e/x", "//", "/predict/-1", "/" + "a" * 3000]


def damage(r, data):
    """Flips, cuts, repeats or inserts bytes."""
    data = bytearray(data)
    for _ in range(r.randrange(4)):
        at = r.randrange(len(data) + 1)
        kind = r.randrange(4)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << r.randrange(8)
        elif kind == 1:
            del data[at:at + r.randrange(1, 64)]
        elif kind == 2:
            data[at:at] = data[at:at + r.randrange(1, 64)] * r.randrange(1, 20)
        else:
            data[at:at] = r.randbytes(r.randrange(1, 16))
    return bytes(data)


def value(r, depth=0):
    kinds = [None, True, r.randrange(-5, 70), r.uniform(-1e3, 1e3), 1e308, "auto", "png,svg", "10s", "", "\0\u202e" * 3,
             base64.b64encode(damage(r, IMAGE)).decode()]
    if depth < 3:
        kinds += [[value(r, depth + 1) for _ in range(r.randrange(3))], {"url": value(r, depth + 1)}]
    return r.choice(kinds)


def body(r):
    """The content type and the body of a request."""
    names = ["image", "file", "messages", "program", "model", "task", "temperature", "top_p", "top_k", "beam", "candidates", "seed",
             "max_tokens", "render", "formats", "stream", "compile", "nothing"]
    fields = {r.choice(names): value(r) for _ in range(r.randrange(5))}
    if r.random() < 0.5:
        fields |= {"image": base64.b64encode(damage(r, IMAGE)).decode(), "compile": False, "max_tokens": 5}
    if r.random() < 0.5:
        return "application/json", damage(r, json.dumps(fields).encode())
    parts = [b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (k.encode(), str(v).encode())
             for k, v in fields.items() if k not in ("image", "file")]
    parts.append(b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n--b--\r\n'
                 % (r.choice([b"image", b"file"]), damage(r, IMAGE)))
    return "multipart/form-data; boundary=b", damage(r, b"".join(parts))


def request(r):
    kind, data = body(r)
    if r.random() < 0.1:
        kind = r.choice(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x" * 500])
    length = len(data) if r.random() < 0.9 else r.choice([0, -1, len(data) // 2, len(data) + 9, 1 << 62, "x"])
    head = (f"{r.choice(['GET', 'POST', 'POST', 'POST', 'HEAD', 'PUT', 'OPTIONS', 'BREW'])} {r.choice(PATHS)} HTTP/1.1\r\n"
            f"Host: a\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n").encode()
    return (damage(r, head) if r.random() < 0.2 else head) + data


def attack(port, count, seed, statuses):
    r = random.Random(seed)
    for _ in range(count):
        try:
            with socket.create_connection(("127.0.0.1", port), 20) as s:
                data = request(r)
                if r.random() < 0.1:
                    s.sendall(data[:r.randrange(len(data))])
                    statuses["hung up"] += 1
                    continue
                s.settimeout(0.3 if r.random() < 0.2 else 20)
                s.sendall(data)
                s.shutdown(socket.SHUT_WR) if r.random() < 0.05 else None
                found = re.match(rb"HTTP/1.[01] (\d+)", s.recv(65536))
                statuses[int(found.group(1)) if found else "closed"] += 1
        except (ConnectionError, TimeoutError) as e:
            statuses[type(e).__name__] += 1


def memory(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def main():
    build, count, seed = sys.argv[1], int((sys.argv[2:] or [2000])[0]), int((sys.argv[3:] or [1])[0])
    server = subprocess.Popen([f"{build}/serve", "--port", "0", "--quiet", "--header-timeout", "2", "--max-pixels", "1",
                               "dev/starter/student.safetensors"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    port = int(re.search(r":(\d+)", server.stderr.readline().split("http://")[1]).group(1))
    statuses, rounds = collections.Counter(), []
    for part in range(4):
        threads = [threading.Thread(target=attack, args=(port, count // 16, seed * 100 + 4 * part + k, statuses)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        rounds.append(round(memory(server.pid)))
    alive = server.poll() is None
    server.terminate()
    status = server.wait(120)
    unknown = {s for s in statuses if isinstance(s, int)} - KNOWN
    print(f"{sum(statuses.values())} requests: {dict(statuses)}; MB after each quarter: {rounds}; exit status {status}")
    print(server.stderr.read()[-2000:], end="")
    sys.exit(0 if alive and status == 0 and not unknown and 500 not in statuses else 1)


main()
