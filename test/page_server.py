"""A server that speaks serve's interface to the page in web/, with invented answers, for what a real one does not do when
asked: be busy, break off, draw a formula without a model for it. Used by test_web.py, or alone: page_server.py [PORT]."""
import base64
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KATEX = Path("/usr/share/javascript/katex")
POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
         ".png": "image/png", ".ttf": "font/ttf"}
FIGURE = (ROOT / "dev/starter/example.tex").read_text()
FORMULA = r"\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}"
PNG = base64.b64encode((ROOT / "dev/starter/example-rendered.png").read_bytes()).decode()
PIECE = re.compile(r"\s+|\\?\w+|.", re.S)  # what a token is, here


def svg_of(program):
    """Four boxes in the program's first fill colour, or the formula's length as a bar."""
    colour = (re.search(r"fill=(\w+)", program) or ["", "lightsteelblue"])[1]
    boxes = "".join(f'<rect x="{x}" y="{y}" width="38" height="38" fill="{colour}" stroke="black"/>'
                    for x in (1, 80) for y in (1, 120))
    lines = '<path d="M39 20H80M39 139H80M20 120V39M99 120V39" stroke="black" fill="none"/>'
    if "tikzpicture" not in program:
        boxes, lines = '<rect x="2" y="2" width="115" height="30" fill="none" stroke="black"/>', ""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 119 159" width="119" height="159">{boxes}{lines}</svg>'


def drawing_of(program, task, formats):
    """What POST /v1/render answers. A program with \\oops does not compile."""
    lines = program.split("\n")
    errors = [{"line": i + 1, "message": "Undefined control sequence."} for i, line in enumerate(lines) if "\\oops" in line]
    answer = {"compiles": not errors, "errors": errors, "document": f"% whole\n{program}"}
    if not errors:
        files = {"png": PNG, "svg": base64.b64encode(svg_of(program).encode()).decode(),
                 "pdf": base64.b64encode(b"%PDF-1.5 invented").decode()}
        answer |= {name: files[name] for name in formats}
    return answer


class PageServer(ThreadingHTTPServer):
    """mode: "" or how the next requests fail. delay: seconds between tokens. requests: [(path, text of the body)]."""
    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.mode, self.delay, self.key, self.requests, self.hung_up = "", 0.005, "", [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, kind, message):
        self.answer(status, json.dumps({"error": {"message": message, "type": kind}}).encode())

    def is_allowed(self):
        if not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self.refuse(401, "unauthorized", "This server wants a key.")
        return False

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/") or "index.html"
        if path == "v1/models" and self.is_allowed():
            self.answer(200, json.dumps({"object": "list", "data": [
                {"id": "student", "task": "tikz", "image_height": 192, "image_width": 192},
                {"id": "reader", "task": "formula", "image_height": 64, "image_width": 384}]}).encode())
        elif path == "healthz":
            self.answer(200, b"{}")
        elif not path.startswith("v1/"):
            folder, name = (KATEX, path.removeprefix("katex/")) if path.startswith("katex/") else (ROOT / "web", path)
            file = folder / name
            if file.is_file() and self.server.mode != "no-katex":
                self.answer(200, file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"))
            else:
                self.refuse(404, "invalid_request", f"There is no {path}.")

    def do_POST(self):
        if not self.is_allowed():
            return
        body = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        self.server.requests.append((self.path, body))
        if self.path == "/v1/render":
            wanted = json.loads(body)
            time.sleep(self.server.delay)
            self.answer(200, json.dumps(drawing_of(wanted["program"], wanted["task"], wanted["formats"])).encode())
        elif self.server.mode == "busy":
            self.refuse(429, "busy", "16 images are waiting already; ask again in a few seconds.")
        elif self.server.mode == "large":
            self.refuse(413, "too_large", "The image has 120 million pixels; at most 100 million are read.")
        elif self.server.mode == "unreadable":
            self.refuse(400, "invalid_request", "The image is not a PNG, JPEG or BMP.")
        else:
            try:
                self.stream(body)
            except (BrokenPipeError, ConnectionResetError):
                self.server.hung_up.set()

    def event(self, name, data):
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def stream(self, body):
        field = lambda name: (re.search(rf'name="{name}"\r\n\r\n(.*?)\r\n', body) or ["", ""])[1]
        task = "formula" if field("task") == "formula" or field("model") == "reader" else "tikz"
        program = FORMULA if task == "formula" else FIGURE
        if self.server.mode == "tex":
            program = program.replace("  \\draw", "  \\oops", 1)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.event("begin", {"model": "student", "task": task})
        several = field("candidates") or field("beam") or field("search")
        pieces = PIECE.findall(program)
        for piece in [] if several else pieces:
            self.event("token", {"text": piece})
            time.sleep(self.server.delay)
            if self.server.mode == "breaks" and piece == "\\begin":
                return
        found = [{"program": program.replace("blue!30", colour), "log_probability": -1.5 - i, "compiles": i != 2,
                  "score": score, "png": PNG if i != 2 else None}
                 for i, (colour, score) in enumerate([("blue!30", 0.91), ("red!20", 0.97), ("green", 0.2), ("gray", 0.85)])]
        for candidate in found if several else []:
            self.event("candidate", candidate)
            time.sleep(30 if self.server.mode == "ponders" and candidate is found[2] else self.server.delay)
        best = found[1]["program"] if several else program
        answer = {"model": "student", "task": task, "program": best, "log_probability": -2.125, "tokens": len(pieces),
                  "ended": True, "seconds": 1.25, **drawing_of(best, task, ["png", "svg"])}
        if several:
            answer["candidates"] = sorted(found, key=lambda candidate: -candidate["score"])
        self.event("result", answer)


if __name__ == "__main__":
    print(PageServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8080).address)
    threading.Event().wait()
