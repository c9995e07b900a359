#!/usr/bin/env python3
"""Tests of serve with the shipped student: programs equal to infer's while requests run together, streaming, every status,
broken and hostile requests, clients that are slow or leave, signals. Needs nothing but Python and, for what is drawn, TeX.

    test/test_serve.py BUILD_DIR [NAME...]       BUILD_DIR: with serve and infer; NAME: only these tests
"""
import atexit
import base64
import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))
from check import check, end  # noqa: E402

BUILD = pathlib.Path(sys.argv[1]).resolve()
STUDENT = ROOT / "dev/starter/student.safetensors"
TEX = shutil.which("pdflatex") is not None and shutil.which("pdftocairo") is not None
WAIT = 120  # seconds for anything: the machine may be busy, and sanitizers are slow
folder = pathlib.Path(tempfile.mkdtemp(prefix="test_serve."))


# ---- images ----

def png(width, height, pixel=lambda x, y: (255, 255, 255)):
    """A PNG file of RGB pixels."""
    rows = b"".join(b"\0" + bytes(v for x in range(width) for v in pixel(x, y)) for y in range(height))
    return png_of(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(rows))


def png_of(header, data):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(side):
    """A small PNG file that claims side x side pixels."""
    return png_of(struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), zlib.compress(b"\0" * 100000, 9))


def starter_images(count):
    """The first images of the starter's test set, which are PNG files inside test.bin."""
    data, found, at = (ROOT / "dev/starter/test.bin").read_bytes(), [], 0
    while len(found) < count and (at := data.find(b"\x89PNG\r\n\x1a\n", at)) >= 0:
        stop = data.index(b"IEND", at) + 8
        found.append(data[at:stop])
        at = stop
    return found


def large_headers():
    """The beginnings of files of each kind that claim 60000 x 50000 pixels."""
    w, h, pad = 60000, 50000, b"\0" * 40
    return {
        "PNG": png_of(struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0), b""),
        "JPEG": b"\xff\xd8\xff\xe0\0\4AB\xff\xff\xc2\0\x11\x08" + struct.pack(">HH", h, w) + b"\3" + pad,
        "GIF": b"GIF89a" + struct.pack("<HH", w, h) + pad,
        "BMP": b"BM" + pad[:12] + struct.pack("<Iii", 40, w, -h) + pad,
        "TIFF": b"II*\0" + struct.pack("<IHHHIIHHII", 8, 2, 256, 4, 1, w, 257, 4, 1, h) + pad,
        "big-endian TIFF": b"MM\0*" + struct.pack(">IHHHIHHHHIHH", 8, 2, 256, 3, 1, w, 0, 257, 3, 1, h, 0) + pad,
        "WebP": b"RIFF" + pad[:4] + b"WEBPVP8X" + pad[:8] + (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little") + pad,
    }


def disguised_jpeg(side):
    """A JPEG file of side x side pixels that a reader of segments takes for 8 x 8: libjpeg skips FF 00 between segments, so
    what seems to be one more segment to be left out is its frame header."""
    def frame(side):
        return b"\xff\xc0\0\x0b\x08" + struct.pack(">HH", side, side) + b"\1\1\x11\0"
    hidden = frame(side) + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    return b"\xff\xd8\xff\0" + struct.pack(">H", 2 + len(hidden)) + hidden + frame(8) + b"\0" * 20


IMAGE = (ROOT / "dev/starter/example.png").read_bytes()


# ---- the server ----

class Server:
    def __init__(self, *options, model=STUDENT, environment=None):
        self.log = open(folder / f"log{time.monotonic_ns()}", "w+", encoding="latin-1")
        self.process = subprocess.Popen([BUILD / "serve", "--port", "0", *options, "--model", f"starter={model}"],
                                        stderr=self.log, stdin=subprocess.DEVNULL, cwd=ROOT,
                                        env={**os.environ, **(environment or {})})
        atexit.register(self.process.kill)
        self.port = int(self.wait_for(r"listening on http://\S+:(\d+)").group(1))

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def wait_for(self, pattern):
        """Waits until the log matches."""
        begin = time.monotonic()
        while not (found := re.search(pattern, self.text())):
            if time.monotonic() > begin + WAIT or self.process.poll() is not None:
                raise RuntimeError(f"serve did not say {pattern!r}: {self.text()}")
            time.sleep(0.05)
        return found

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def ask(self, method, path, body=None, headers=None):
        """Returns status, headers and body."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def raw(self, data, timeout=WAIT):
        """Sends bytes, and reads until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as s:
            try:
                s.sendall(data)
                answer = b""
                while piece := s.recv(65536):
                    answer += piece
            except (ConnectionError, TimeoutError):
                pass
            return answer

    def json(self, path, fields, headers=None):
        status, _, body = self.ask("POST", path, json.dumps(fields),
                                   {"Content-Type": "application/json", **(headers or {})})
        return status, json.loads(body)

    def convert(self, image=IMAGE, **fields):
        return self.json("/v1/convert", {"image": base64.b64encode(image).decode(), "compile": False, **fields})

    def form(self, path, fields, image=IMAGE, name="image"):
        status, _, body = self.ask("POST", path, *form(fields, image, name))
        return status, json.loads(body)

    def metric(self, name):
        return float(re.search(rf"^tikzc_{name} (\S+)", self.ask("GET", "/metrics")[2].decode(), re.M).group(1))

    def stop(self):
        """Stops the server; returns its exit status and log."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(WAIT)
        return status, self.text()


def form(fields, image=IMAGE, name="image", boundary="xXx"):
    """The body and the headers of a form."""
    parts = [(f'name="{k}"', str(v).encode()) for k, v in fields.items()]
    parts.append((f'name="{name}"; filename="a.png"', image))
    body = b"".join(b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), value)
                    for head, value in parts) + b"--%s--\r\n" % boundary.encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def check_error(answer, status, pattern, kind="invalid_request"):
    """Checks the status, the sentence and the type of an error."""
    error = answer[1].get("error", {}) if isinstance(answer[1], dict) else {}
    check(answer[0] == status and re.search(pattern, error.get("message", "")) and error.get("type") == kind,
          f"status {status}, {pattern}", str(answer)[:300])


def infer_all(images, *options, tex=False):
    """The JSON that infer prints of each image, written alone."""
    paths = [folder / f"infer{k}.png" for k in range(len(images))]
    for path, image in zip(paths, images):
        path.write_bytes(image)
    out = subprocess.run([BUILD / "infer", "--model", STUDENT, "--json", "--quiet", "--batch", "1", *options, *paths], cwd=ROOT,
                         env=dict(os.environ) if tex else {**os.environ, "PATH": "/nowhere"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         check=False).stdout
    return [json.loads(line) for line in out.splitlines()]


def infer(image, *options, tex=False):
    return infer_all([image], *options, tex=tex)[0]


def events(body):
    """[(name, data)] of server-sent events."""
    found = []
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in lines:
            found.append((lines.get("event"), lines["data"]))
    return found


# ---- tests ----

def test_parity(s):
    """What is written together is what infer writes alone, to the last bit of its log-probability."""
    images = [IMAGE] + starter_images(9)  # more than one kernel takes at a time
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(s.convert, images))
    check(s.metric("decode_rows_total") > s.metric("decode_steps_total"), "programs are written together")
    for k, (answer, alone) in enumerate(zip(answers, infer_all(images))):
        check(answer[0] == 200 and answer[1]["program"] == alone["program"], f"image {k}: infer's program",
              (answer, alone))
        check(answer[1].get("log_probability") == alone["log_probability"], f"image {k}: infer's log-probability")
        check(answer[1].get("ended") == alone["complete"] and answer[1].get("tokens") == alone["tokens"],
              f"image {k}: infer's end and number of tokens")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        settings = [dict(temperature=0.8, seed=7), dict(temperature=1.2, top_p=0.9, seed=3), dict(temperature=1, top_k=5),
                    dict(max_tokens=9)]
        answers = list(pool.map(lambda f: s.convert(**f), settings))
    for fields, answer in zip(settings, answers):
        options = [f"--{k.replace('_', '-')}={v}" for k, v in fields.items()]
        check(answer[1].get("program") == infer(IMAGE, *options)["program"], f"infer's program with {fields}", answer)


def test_several(s):
    """Beams, candidates and search find what infer finds, while other requests come."""
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        beam = pool.submit(s.convert, beam=3)
        plain = [pool.submit(s.convert, max_tokens=30) for _ in range(2)]
        last = pool.submit(s.convert, beam=2, temperature=0)
        check(all(p.result()[0] == 200 for p in plain), "others beside a beam search")
    alone, found = infer(IMAGE, "--beam", "3"), beam.result()[1]
    check(found["program"] == alone["program"] and abs(found["log_probability"] - alone["log_probability"]) < 1e-4,
          "infer's beam", found)
    check([c["score"] for c in found["candidates"]] == sorted((c["score"] for c in found["candidates"]), reverse=True)
          and found["candidates"][0]["program"].strip() == found["program"].strip(), "beams, the best first", found)
    check(last.result()[0] == 200, "a beam search after another")
    if not TEX:
        check_error(s.convert(candidates=2), 422, "need TeX")
        return
    found = s.convert(candidates=3, max_tokens=120)
    check(found[0] == 200 and found[1]["program"] == infer(IMAGE, "--candidates", "3", "--max-tokens", "120", tex=True)["program"],
          "infer's candidate", found)
    found = s.convert(search="2", render=["png"])
    check(found[0] == 200 and found[1]["candidates"][0]["score"] == found[1]["similarity"]
          and base64.b64decode(found[1]["candidates"][0]["png"]).startswith(b"\x89PNG"), "search", str(found)[:500])
    found = s.convert(search="2", max_tokens=12)
    check(found[0] == 200 and found[1]["tokens"] <= 12, "search writes no more than max_tokens", str(found)[:500])


def test_stream(s):
    body, headers = form({"stream": "true", "compile": "false"})
    status, answer_headers, text = s.ask("POST", "/v1/convert", body, headers)
    found = events(text)
    written = "".join(json.loads(d)["text"] for n, d in found if n == "token")
    result = json.loads(found[-1][1])
    check(status == 200 and answer_headers["Content-Type"].startswith("text/event-stream"), "a stream's type")
    check(found[-1][0] == "result" and len(found) > 20 and written.strip() == result["program"].strip(),
          "the tokens are the program", found[-2:])
    connection = s.connect()
    connection.request("POST", "/v1/convert", *form({"stream": 1, "compile": 0}))
    first = connection.getresponse()
    begin = time.monotonic()
    line = first.readline()
    at_first = time.monotonic() - begin
    rest = first.read()
    check(found[0] == ("begin", '{"model":"starter","task":"tikz"}'), "a stream says first who writes what", found[0])
    check(line == b"event: begin\n" and time.monotonic() - begin > at_first and b"event: result" in rest,
          "tokens come one after another")
    check_error(s.convert(b"no image", stream=True), 422, "neither PNG")


def test_forms(s):
    """The other shapes of requests and answers."""
    plain = s.convert()[1]["program"]
    data = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    check(s.form("/v1/convert", {"compile": "off"})[1]["program"] == plain, "a form")
    check(s.json("/v1/convert", {"image": data, "compile": False, "model": "starter", "task": "tikz", "top_k": None})[1]
          ["program"] == plain, "a data: URL, null fields")
    disguised = (b'--xXx\r\nContent-Disposition: form-data; filename="a; name=\\"beam\\"; name=beam"; name="image"\r\n\r\n%s\r\n--xXx--\r\n'
                 % IMAGE, {"Content-Type": 'multipart/form-data; note="; boundary=no"; boundary="xXx"'})
    check(json.loads(s.ask("POST", "/v1/convert", *disguised)[2])["program"] == plain, "what a quoted text holds is no parameter")
    for path in "/predict/", "/bytes/":
        check(s.form(path, {}, name="file") == (200, plain.rstrip("\n")), f"pix2tex's shape at {path}")
    answer = s.form("/predict/1", {}, name="file")
    check(answer == (200, {"message": "OK", "status-code": 200, "data": {"pred": plain.rstrip("\n")}}),
          "image-to-latex's shape", answer)
    messages = [{"role": "system", "content": "Write TikZ."},
                {"role": "user", "content": [{"type": "text", "text": "this"},
                                             {"type": "image_url", "image_url": {"url": data, "detail": "high"}}]}]
    status, answer = s.json("/v1/chat/completions", {"model": "starter", "messages": messages, "n": 1, "user": "me"})
    check(status == 200 and answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"] == plain
          and answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] > 10, "OpenAI's shape",
          answer)
    _, _, text = s.ask("POST", "/v1/chat/completions", json.dumps({"messages": messages, "stream": True, "max_tokens": 5}),
                       {"Content-Type": "application/json"})
    chunks = [d for _, d in events(text)]
    check(chunks[-1] == "[DONE]" and json.loads(chunks[-2])["choices"][0]["finish_reason"] == "length"
          and plain.startswith("".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks[:-1]).strip()),
          "OpenAI's stream", chunks[-2:])


def test_reading(s):
    """Pages and lists."""
    status, _, body = s.ask("GET", "/v1/models")
    model = json.loads(body)["data"][0]
    check(status == 200 and model["id"] == "starter" and model["task"] == "tikz" and model["image_height"] == 96
          and model["parameters"] > 1e6, "the list of models", body)
    check(s.ask("GET", "/healthz")[::2] == (200, b'{"status":"ok"}'), "health")
    check(s.ask("HEAD", "/healthz")[::2] == (200, b""), "HEAD")
    check(s.ask("GET", "/metrics?of=a%00b")[0] == 200, "a zero byte in a query is no matter of the path")
    document = json.loads(s.ask("GET", "/openapi.json")[2])
    check(document["openapi"] == "3.1.0" and set(document["paths"]) >= {"/v1/convert", "/v1/render", "/predict/{beam_width}", "/bytes/"}
          and document["paths"]["/v1/convert"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
          ["beam"]["maximum"] == 16, "the OpenAPI document")
    status, headers, page = s.ask("GET", "/docs")
    check(status == 200 and b"max_tokens" in page and b'href="openapi.json"' in page
          and "default-src 'self'" in headers["Content-Security-Policy"], "the docs")
    check(b'tikzc_requests_total{path="/healthz",status="200"} 2' in s.ask("GET", "/metrics")[2], "the metrics")
    check("GET /docs 200" in s.text(), "the log")


def test_statuses(s):
    check_error(s.json("/nothing", {}), 405, "POST is not possible here; GET, HEAD is")
    check_error((404, json.loads(s.ask("GET", "/nothing")[2])), 404, "there is nothing at /nothing")
    check(s.ask("GET", "/v1/convert")[1]["Allow"] == "POST" and s.ask("GET", "/v1/convert")[0] == 405, "405 says Allow")
    check(s.ask("OPTIONS", "/v1/convert")[0] == 405, "no preflight without --cors")
    check(s.ask("POST", "/v1/convert", "x", {"Content-Type": "text/plain"})[0] == 415, "415")
    check(s.ask("POST", "/v1/render", *form({}))[0] == 415, "415 for a form where JSON is expected")
    for path in "/predict/", "/bytes/":
        check(s.ask("POST", path, "{}", {"Content-Type": "application/json"})[0] == 415, f"415 for JSON at {path}, where a form is")
    check(s.ask("POST", "/v1/convert", "", {"Content-Type": "application/json"})[0] == 400, "400 for no body")
    check_error(s.json("/v1/convert", []), 422, "must be a JSON object")
    check_error(s.json("/v1/convert", {}), 422, "the field image is missing")
    check_error(s.convert(tempo=1), 422, "there is no field 'tempo'; there are image, ")
    check_error(s.convert(temperature="hot"), 422, "the field temperature must be a number, not a string")
    check_error(s.convert(temperature=101), 422, "from 0 to 100, not 101")
    check_error(s.convert(beam=2.5), 422, "beam must be a whole number, not 2.5")
    check_error(s.convert(beam=17), 422, "from 1 to 16, not 17")
    check_error(s.convert(beam=2, candidates=2), 422, "cannot be used together")
    check_error(s.convert(beam=2, temperature=1), 422, "beam does not sample")
    check_error(s.convert(search="fast"), 422, "search must be seconds")
    check_error(s.convert(search="1000s"), 422, "shorter than the 120 s")
    check_error(s.convert(task="song"), 422, "must be one of tikz formula auto, not 'song'")
    check_error(s.convert(task="formula"), 422, "no model here writes the task formula")
    check_error(s.convert(model="starter", task="formula"), 422, "the model starter writes the task tikz, not formula")
    check_error(s.convert(model="gpt"), 404, "there is no model 'gpt'")
    check_error(s.convert(render=["gif"]), 422, "must name png, svg or pdf, not 'gif'")
    check_error(s.convert(compile="yes"), 422, "must be true or false, not a string")
    check_error(s.convert(b""), 422, "cannot read the image")
    check_error(s.convert(b"GIF89a"), 422, "cannot read the image")
    check_error(s.convert(IMAGE[:200]), 422, "cannot read the image")
    check_error(s.convert(bomb(20000)), 413, "20000 x 20000 pixels; at most 25 million", "too_large")
    for file in large_headers().values():
        check_error(s.convert(file), 413, "60000 x 50000 pixels", "too_large")
    check_error(s.convert(disguised_jpeg(10000)), 413, "10000 x 10000 pixels; at most 20000 a side and 25 million", "too_large")
    check_error(s.json("/v1/convert", {"image": "%%%%"}), 422, "is not base64: character 1")
    check_error(s.json("/v1/convert", {"image": "AAAAA"}), 422, "ends in the middle of a byte")
    check_error(s.json("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}), 422, "no message has an image")
    check_error(s.json("/v1/chat/completions", {"messages": [{"content": [{"image_url": {"url": "http://a/b.png"}}]}]}), 422,
                "nothing is fetched from 'http://a/b.png'")
    check_error(s.form("/predict/99", {}, name="file"), 422, "the beam width must be a number from 1 to 16, not 99")
    check_error(s.form("/predict/x", {}, name="file"), 422, "not x")
    check_error(s.json("/v1/render", {"program": 1}), 422, "the field program must be a string")


def test_broken(s):
    """Broken and hostile bodies."""
    body, headers = form({"beam": "1"})
    for what, broken, pattern in (
            ("no boundary in the body", b"hello", "boundary 'xXx' does not come"),
            ("cut before its end", body[:-9], "does not end with the boundary|ends without its last boundary"),
            ("cut in a header", body[:40], "headers of a part do not end"),
            ("a part without a name", body.replace(b'name="beam"', b""), "no Content-Disposition with a name"),
            ("a part without headers", b"--xXx\r\n\r\n\r\n1\r\n--xXx--", "has no headers|headers of a part|no Content-Disp")):
        status, _, answer = s.ask("POST", "/v1/convert", broken, headers)
        check_error((status, json.loads(answer)), 400, pattern)
    many = b"".join(b'--xXx\r\nContent-Disposition: form-data; name="beam"\r\n\r\n1\r\n' for _ in range(100)) + b"--xXx--\r\n"
    check_error((400, json.loads(s.ask("POST", "/v1/convert", many, headers)[2])), 400, "more than 64 parts")
    status, _, answer = s.ask("POST", "/v1/convert", body, {"Content-Type": "multipart/form-data"})
    check_error((status, json.loads(answer)), 400, "names no boundary")
    check_error(s.form("/v1/convert", {"beam": "two"}), 422, "the field beam must be a number, not 'two'")
    check_error(s.form("/v1/convert", {"x" * 30: "two"}), 422, "there is no field 'xxx")
    kind = {"Content-Type": "application/json"}
    for text, status, pattern in ((b"{", 400, "cannot read the body"), (b'{"image":"\xff"}', 400, "not valid UTF-8"),
                                  (b"[" * 200, 400, "64 nested levels"), (b'{"image":"a","image":"b"}', 400, "occurs twice"),
                                  (b"[" + b"1," * 200000 + b"1]", 422, "more than 10000 values"),
                                  (b'{"image":1e999}', 400, "too large")):
        answer = s.ask("POST", "/v1/convert", text, kind)
        check_error((answer[0], json.loads(answer[2])), status, pattern)
    large = s.raw(b"POST /v1/convert HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{}")
    check(b" 413 " in large.split(b"\r\n")[0] and b"at most 16777216" in large, "a body that says that it is too long", large)
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    large = s.raw(b"POST /v1/convert HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
                  b"Connection: close\r\n\r\n" + chunk * 20 + b"0\r\n\r\n")
    check(b" 413 " in large.split(b"\r\n")[0], "a chunked body that is too long", large[:200])
    for garbage in (b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/convert HTTP/1.1\r\n" +
                    b"A: " + b"x" * 100000 + b"\r\n\r\n", b"POST /v1/convert HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        s.raw(garbage, 5)
    check(s.ask("GET", "/healthz")[0] == 200, "alive after garbage")


def test_files(s, web):
    status, headers, body = s.ask("GET", "/")
    check((status, body) == (200, b"<p>page</p>") and headers["Content-Type"] == "text/html; charset=utf-8"
          and headers["X-Content-Type-Options"] == "nosniff" and "object-src 'none'" in headers["Content-Security-Policy"],
          "the page", headers)
    check(s.ask("GET", "/", headers={"If-None-Match": headers["ETag"]})[0] == 304, "not modified")
    check(s.ask("GET", "/a/b.js")[1]["Content-Type"].startswith("text/javascript"), "a script")
    check(s.ask("GET", "/empty.css")[::2] == (200, b""), "an empty file")
    for path in ("/../secret", "/a/../../secret", "/%2e%2e/secret", "/a/..%2f..%2fsecret", "/.hidden", "//etc/passwd", "/a",
                 "/a/b.js/", "/..%5csecret", "/%00", "/a%00b", "/" + "x" * 5000, "/pipe", "/%ff"):
        status = s.raw(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()).split(b"\r\n")[0]
        check(b" 404 " in status or b" 400 " in status or b" 414 " in status, f"nothing at {path[:30]}", status)


def test_render(s):
    if not TEX:
        return
    status, answer = s.json("/v1/render", {"program": r"\tikz\draw (0,0) -- (1,1);", "formats": ["png", "svg", "pdf"]})
    check(status == 200 and answer["compiles"] is True and not answer["errors"]
          and base64.b64decode(answer["png"]).startswith(b"\x89PNG") and b"<svg" in base64.b64decode(answer["svg"])
          and base64.b64decode(answer["pdf"]).startswith(b"%PDF") and r"\documentclass" in answer["document"], "a figure",
          str(answer)[:300])
    status, answer = s.json("/v1/render", {"program": r"\frac{a}{b", "task": "formula"})
    check(status == 200 and answer["compiles"] is False and answer["errors"][0]["message"], "errors of TeX", answer)
    status, answer = s.json("/v1/render", {"program": "\\documentclass{article}\\begin{document}\n\\nothing x\n\\end{document}"})
    check(status == 200 and answer["errors"][0] == {"line": 2, "message": "Undefined control sequence."}, "their lines", answer)
    status, answer = s.json("/v1/render", {"program": r"\input{/etc/passwd}x", "task": "formula", "formats": ["svg"]})
    check(status == 200 and answer["compiles"] is False, "no files of the system", answer)
    status, answer = s.form("/v1/convert", {"render": "png,pdf"})
    check(status == 200 and answer["compiles"] is True and base64.b64decode(answer["pdf"]).startswith(b"%PDF")
          and "svg" not in answer, "drawings of an image's program", str(answer)[:300])


def test_leaving(s):
    """Clients that hang up or are slow."""
    before = s.metric("tokens_total")
    for fields in ({}, {"stream": True}, {"beam": 16}):
        body = json.dumps({"image": base64.b64encode(IMAGE).decode(), "compile": False, **fields}).encode()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", s.port)) as c:
                c.sendall(b"POST /v1/convert HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(body) + body)
    begin = time.monotonic()
    while s.metric("jobs") and time.monotonic() < begin + WAIT:
        time.sleep(0.05)
    check(s.metric("jobs") == 0, "nobody works for clients that have gone")
    check(s.metric("tokens_total") - before < 9 * 60, "their programs are not written", s.metric("tokens_total") - before)
    s.wait_for(r"/v1/convert 499")
    with socket.create_connection(("127.0.0.1", s.port)) as slow:
        body, headers = form({"compile": "false"})
        head = f"POST /v1/convert HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {headers['Content-Type']}\r\n" \
               f"Content-Length: {len(body)}\r\n\r\n"
        for piece in head.encode(), body[:100], body[100:101], body[101:]:
            slow.sendall(piece)
            check(s.ask("GET", "/healthz")[0] == 200, "others are served beside a slow client")
        answer = b""
        while piece := slow.recv(65536):
            answer += piece
        check(b" 200 OK" in answer and b'"program"' in answer, "a slow client is answered", answer[:200])


def programs_of(process):
    """The programs that a process runs."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = re.fullmatch(r"\d+ \((.*)\) . (\d+) .*\n", stat.read_text(), re.S).groups()
        except (OSError, AttributeError):  # it has just ended
            continue
        if int(rest) == process.pid:
            found.append(name)
    return found


def test_left_candidates():
    """TeX compiles nothing more for a client that has gone."""
    if not TEX:
        return
    s = Server()
    body = json.dumps({"image": base64.b64encode(IMAGE).decode(), "compile": False, "candidates": 16,
                       "temperature": 1.2}).encode()
    with socket.create_connection(("127.0.0.1", s.port)) as c:
        c.sendall(b"POST /v1/convert HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                  % len(body) + body)
        begin = time.monotonic()
        while "pdflatex" not in programs_of(s.process) and time.monotonic() < begin + WAIT:
            time.sleep(0.01)
    while s.metric("jobs") and time.monotonic() < begin + WAIT:
        time.sleep(0.01)
    seen = []
    for _ in range(20):
        seen += programs_of(s.process)
        time.sleep(0.05)
    check(not seen, "TeX goes on for a client that has gone", seen)
    check(s.convert(candidates=2, max_tokens=60)[0] == 200 and s.stop()[0] == 0, "candidates for the next one")


def test_no_tex():
    s = Server(environment={"PATH": "/nowhere"})
    check_error(s.json("/v1/render", {"program": "x"}), 501, "the program was not compiled: no TeX engine is installed",
                "unsupported")
    check_error(s.convert(candidates=2), 422, "need TeX")
    responses = json.loads(s.ask("GET", "/openapi.json")[2])["paths"]["/v1/render"]["post"]["responses"]
    check("501" in responses and s.stop()[0] == 0, "501 is documented", list(responses))


def test_limits():
    """Few places and little time."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most[0], 1024), most[1]))
    s = Server("--queue", "2", "--timeout", "1.5", "--max-body", "1", "--cors", "https://a.example", "--batch", "1",
               environment={"TIKZ_API_KEY": "secret"})
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    wanted, has = 2 * 2000 + 256, resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE)[0]
    check(has == (min(wanted, most[1]) if most[1] != resource.RLIM_INFINITY else wanted),
          "a socket and a file for each connection", has)
    key = {"Authorization": "Bearer secret"}
    for headers in {}, {"Authorization": "Bearer secre"}, {"Authorization": "Bearer secrets"}, {"Authorization": "secret"}, \
            {"Authorization": "Bearer "}:
        status, answer_headers, body = s.ask("POST", "/v1/convert", *form({}))[0:3] if not headers else \
            s.ask("GET", "/v1/models", headers=headers)
        check_error((status, json.loads(body)), 401, "asks for its key", "unauthorized")
        check(answer_headers["WWW-Authenticate"] == "Bearer", "401 says how")
    long = b"x" * 12_000_000  # more than a socket holds: it must be taken off before its sender reads
    for path, headers, status in (("/v1/convert", {"Content-Type": "application/json"}, 401), ("/docs", key, 405),
                                  ("/v1/convert", {"Content-Type": "text/plain", **key}, 415),
                                  ("/v1/convert", {"Content-Type": "application/json", **key}, 413)):
        answer = s.ask("POST", path, long, headers)
        check(answer[0] == status, f"a sender of much gets its {status}", answer[0])
    check(s.ask("GET", "/v1/models", headers=key)[0] == 200 and s.ask("GET", "/healthz")[0] == 200, "the key opens")
    check(s.ask("OPTIONS", "/v1/convert")[1]["Access-Control-Allow-Origin"] == "https://a.example", "--cors")
    image = base64.b64encode(IMAGE).decode()
    endless = {"image": image, "compile": False, "temperature": 100, "beam": 1, "seed": 1}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda k: s.json("/v1/convert", endless, key), range(12)))
    check(any(a[0] == 200 for a in answers) or any(a[0] == 504 for a in answers), "some are answered", answers)
    full = [a for a in answers if a[0] == 429]
    check(len(full) > 2, "others are refused", [a[0] for a in answers])
    check_error(full[0], 429, "2 requests are waiting or worked on", "busy")
    check_error(s.json("/v1/convert", {"image": "A" * 2000000}, key), 413, "at most 1048576", "too_large")
    if TEX:
        check_error(s.json("/v1/render", {"program": r"\def\a{\a}\a", "task": "formula"}, key), 504,
                    "longer than the 2 s|longer than the 1 s", "timeout")
    status, log = s.stop()
    check(status == 0 and "429" in log, "the server stops", (status, log[-300:]))


def with_positions(count):
    """The shipped student with room for so many positions; nothing else in its file changes."""
    data = STUDENT.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + size])
    head["__metadata__"]["lm.max_positions"] = str(count)
    head = json.dumps(head).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data[8 + size:]


def test_memory():
    """A model that does not fit beside the one that serves is refused, and that one goes on serving."""
    model = folder / "grows.safetensors"
    shutil.copy(STUDENT, model)
    s = Server(model=model)
    (folder / "next").write_bytes(with_positions(131072))
    os.replace(folder / "next", model)
    used = int(re.search(r"VmSize:\s+(\d+)", pathlib.Path(f"/proc/{s.process.pid}/status").read_text()).group(1)) << 10
    resource.prlimit(s.process.pid, resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
    for failed in 1, 2:
        s.process.send_signal(signal.SIGHUP)
        s.wait_for(r"(?s)(the model starter stays as it was: cannot allocate 16\d\d\.\d MB on device cpu for the key-value cache.*){%d}"
                   % failed)
        check(s.convert(max_tokens=20)[0] == 200 and s.metric("failed_reloads_total") == failed, "the old model serves on")
    resource.prlimit(s.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "next").write_bytes(with_positions(5000))
    os.replace(folder / "next", model)
    s.process.send_signal(signal.SIGHUP)
    s.wait_for("loaded starter again from")
    check(s.convert(max_tokens=20)[0] == 200 and s.stop()[0] == 0, "one that fits is taken afterwards")


def test_signals():
    model = folder / "model.safetensors"
    shutil.copy(STUDENT, model)
    s = Server("--batch", "2", model=model)
    (folder / "next").write_bytes(b"nonsense")
    os.replace(folder / "next", model)
    s.process.send_signal(signal.SIGHUP)
    s.wait_for("the model starter stays as it was: .*model.safetensors")
    check(s.convert(max_tokens=20)[0] == 200, "the old model stays")
    shutil.copy(STUDENT, folder / "next")
    os.replace(folder / "next", model)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(s.convert) for _ in range(4)]
        time.sleep(0.3)
        s.process.send_signal(signal.SIGHUP)
        check(len({r.result()[1]["program"] for r in running}) == 1, "requests go on while a model is loaded again")
    s.wait_for("loaded starter again from")
    check(s.convert(max_tokens=20)[0] == 200 and s.metric("reloads_total") == 1, "the new model serves")
    taken = subprocess.run([BUILD / "serve", "--port", str(s.port), STUDENT], stderr=subprocess.PIPE, text=True, cwd=ROOT,
                           check=False)
    check(taken.returncode == 1 and f"cannot listen on 127.0.0.1 port {s.port}: Address already in use" in taken.stderr
          and taken.stderr.count("\n") == 1, "a port in use", taken.stderr)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(s.convert) for _ in range(3)]
        while s.metric("jobs") < 3:
            time.sleep(0.01)
        s.process.send_signal(signal.SIGTERM)
        s.wait_for("stopping; [1-3] request")
        try:
            refused = s.convert()
            check_error(refused, 503, "is stopping", "busy")
            check(s.ask("GET", "/healthz")[0] == 503, "health while stopping")
        except ConnectionError:
            check(all(r.done() for r in running), "the server is there while it works")
        check(all(r.result()[0] == 200 for r in running), "what runs is finished", [r.result()[0] for r in running])
    check(s.process.wait(WAIT) == 0, "status 0")


def main():
    wanted = sys.argv[2:]
    web = folder / "web"
    (web / "a").mkdir(parents=True)
    (web / "index.html").write_text("<p>page</p>")
    (web / "a/b.js").write_text("1")
    (web / "empty.css").write_text("")
    (web / ".hidden").write_text("secret")
    (folder / "secret").write_text("secret")
    os.mkfifo(web / "pipe")
    shared = (test_parity, test_several, test_stream, test_forms, test_reading, test_statuses, test_broken, test_render,
              test_leaving)
    s = Server("--web", str(web))
    for test in shared:
        if not wanted or test.__name__[5:] in wanted:
            test(s)
    if not wanted or "files" in wanted:
        test_files(s, web)
    status, log = s.stop()
    check(status == 0 and "ERROR: " not in log and "runtime error" not in log, "the server stops clean", log[-3000:])
    for test in test_left_candidates, test_no_tex, test_limits, test_memory, test_signals:
        if not wanted or test.__name__[5:] in wanted:
            test()
    shutil.rmtree(folder)
    end()


main()
