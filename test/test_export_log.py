#!/usr/bin/env python3
"""Tests of scripts/export_log.py: a run of train_distill and what eval has measured, read back with TensorBoard, MLflow
and `wandb sync`; the same input again; bad input.

    test/test_export_log.py BUILD_DIR       BUILD_DIR: with train_distill and eval

Needs the packages of test/requirements-logs.txt: scripts/deps.sh logs, build/venv-logs/bin/python.
"""
import contextlib
import glob
import http.server
import io
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import unittest.mock

from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test")]
from check import check, end  # noqa: E402
import export_log  # noqa: E402
import files  # noqa: E402
from logs import mlflow_store, run as runs, tensorboard, wandb_run  # noqa: E402

SCRIPT = ROOT / "scripts" / "export_log.py"
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # newer versions ask for it


# ---- running ----

def export(*options):
    """In this process; its messages. Fails as the program would: SystemExit with the sentence."""
    messages = io.StringIO()
    argv = ["export_log.py", *map(str, options)]
    with unittest.mock.patch.object(sys, "argv", argv), contextlib.redirect_stderr(messages), \
            unittest.mock.patch.dict(os.environ):
        export_log.main()
    return messages.getvalue()


def refused(part, folder, *options):
    """The export ends with one sentence that contains `part`, and changes nothing below the folder."""
    before = snapshot(folder)
    try:
        check(False, f"refused with '{part}'", export(*options))
    except SystemExit as e:
        check(part in str(e.code) and str(e.code).startswith("export_log.py: error: ") and "\n" not in str(e.code),
              f"'{part}' in", e.code)
    check(snapshot(folder) == before, f"'{part}': nothing has changed", set(snapshot(folder)) ^ set(before))


def snapshot(folder):
    """{path: bytes, None for a folder}"""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write_log(folder, *lines, options=None):
    """A run's folder with these lines, bytes or objects, and options."""
    folder.mkdir(parents=True)
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines]
    (folder / "log.jsonl").write_bytes(b"".join(data))
    (folder / "options.txt").write_text("lr = 0.001\n" if options is None else options)
    return folder


def expected(folder):
    """{name: [(step, number)]} of a log, read in a plain way."""
    found = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.items():
            inner = {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            for name, v in inner.items():
                if name not in ("step", "time"):
                    found.setdefault(name, []).append((row["step"], v))
    return found


def flat(value, name):
    """{name: number} of what eval has written: no names of bins, since those have none."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        return {} if isinstance(value, str) else {name: math.nan if value is None else value}
    return {inner: v for key, part in value for inner, v in flat(part, f"{name}/{key}").items()}


def comparable(found):
    """NaN equals NaN."""
    return {name: [(step, "NaN" if math.isnan(v) else v) for step, v in values] for name, values in found.items()}


# ---- reading back ----

def read_tensorboard(folder):
    """({name: [(step, number)]}, {name: [time]}, {option: value})"""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    options = {}
    with contextlib.suppress(KeyError):
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        for name, value in hparams.parse_session_start_info_plugin_data(content).hparams.items():
            options[name] = getattr(value, value.WhichOneof("kind"))
    return ({name: [(e.step, e.value) for e in all] for name, all in scalars.items()},
            {name: [e.wall_time for e in all] for name, all in scalars.items()}, options)


def read_mlflow(store, project="tikz.c"):
    """(run, {name: [(step, number)]}, {name: [milliseconds]}) of the store's only run in the project"""
    client = MlflowClient(tracking_uri=f"file:{store}")
    run, = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return (run, {name: [(m.step, m.value) for m in all] for name, all in history.items()},
            {name: [m.timestamp for m in all] for name, all in history.items()})


class Server(http.server.BaseHTTPRequestHandler):
    """As much of the server of Weights & Biases as `wandb sync` needs. Keeps what it is sent."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({})

    def do_PUT(self):  # a file of the run's, to the address that createRunFiles gave
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if not self.path.startswith("/graphql"):
            self.server.streams.append((self.path, body))
            return self.reply({"exitcode": None, "limits": {}})
        query, given = body["query"], body.get("variables") or {}
        data = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
                "serverInfo": {"cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None,
                               "features": []}, "model": {"bucket": None}}
        if "createRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/"
            data["createRunFiles"] = {"runID": "r", "uploadHeaders": [], "files": [
                {"name": name, "uploadUrl": url + name} for name in given["files"]]}
        if "upsertBucket" in query:
            self.server.runs.append(given)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            data["upsertBucket"] = {"inserted": True, "bucket": {
                "id": "r", "name": given["name"], "displayName": given["displayName"], "config": "{}",
                "sweepName": None, "historyLineCount": 0, "project": project}}
        self.reply({"data": data})

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def sync(folder, work):
    """What `wandb sync` uploads of an offline run: (the run's names and config, its history, whether it has ended)"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.runs, server.streams = [], []
    server.handle_error = lambda *_: None  # a connection that is left open when the program ends
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": 40 * "a",
                    "WANDB_ERROR_REPORTING": "false", "HOME": str(work), "NO_PROXY": "127.0.0.1"}
    program = pathlib.Path(sys.executable).parent / "wandb"
    done = subprocess.run([program, "sync", "--yes", folder], env=environment, cwd=work, capture_output=True,
                          text=True, timeout=120)
    server.shutdown()
    thread.join()
    server.server_close()
    check(done.returncode == 0 and "Finished syncing" in done.stdout + done.stderr, "wandb sync accepts the folder",
          done.stdout + done.stderr)
    history = [json.loads(line) for _, body in server.streams
               for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])]
    return server.runs, history, any(body.get("complete") for _, body in server.streams)


def read_history(history):
    """{name: [(step, number)]}; the names that begin with _ are the package's own."""
    found = {}
    for row in history:
        for name in row:
            if not name.startswith("_"):
                found.setdefault(name, []).append((row["_step"], float(row[name])))
    return found


# ---- tests ----

def test_real_run(folder, build):
    """A run as train_distill has logged it, and figures as eval has written them, in all three formats."""
    out, metrics = folder / "real", folder / "metrics.json"
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    subprocess.run([build / "train_distill", "--steps", "2", "--batch", "1", "--eval-every", "1", "--eval-batches", "1",
                    "--out", out], **quiet)
    subprocess.run([build / "eval", "-n", "1", "--no-greedy", "-m", "dev/starter/student.safetensors", "--json",
                    metrics], **quiet)
    to = folder / "exports"
    messages = export(out, "--metrics", metrics, "--tensorboard", to / "tb", "--mlflow", to / "ml", "--wandb", to)
    check("warning" not in messages and messages.count("2 steps, ") == 3, "messages", messages)
    wanted, figures = expected(out), json.loads(metrics.read_text())[0]
    check(len(wanted) > 15 and {"loss", "val/ce", "lr"} <= set(wanted), "the log has what is tested", sorted(wanted))
    wanted |= {name: [(2, v)] for name, v in flat(figures, "eval").items()}
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    stamps = {row["step"]: row["time"] for row in rows}     # an evaluation comes after its step
    options, whole = runs.read_options(out / "options.txt")
    check(whole and options["batch"] == "1" and len(options) > 30, "options are read", options)
    options |= {"eval/model": "dev/starter/student.safetensors", "eval/data": figures["data"]}

    found, times, given = read_tensorboard(to / "tb" / "real")
    single = {name: [(step, struct.unpack("f", struct.pack("f", v))[0]) for step, v in values]
              for name, values in wanted.items()}
    check(comparable(found) == comparable(single), "TensorBoard reads all numbers", found)
    check(given["lr"] == 0.001 and given["resume"] is False and given["student"] == options["student"] and
          set(given) == set(options), "TensorBoard reads the options", given)

    run, found, times = read_mlflow(to / "ml")
    check(comparable(found) == comparable(wanted), "MLflow reads all numbers, to the last bit", found)
    check(run.data.params == options, "MLflow reads the options", run.data.params)
    check((run.info.run_name, run.info.status, run.info.run_id) == ("real", "FINISHED", mlflow_store.run_id(
        runs.Run("tikz.c", "real"))), "MLflow reads name, state and id", run.info)

    offline, = (to / "wandb").iterdir()
    runs_sent, history, ended = sync(offline, folder)
    check(comparable(read_history(history)) == comparable(wanted) and ended, "wandb sync uploads all numbers, to the last bit", history)
    check({row["_step"]: row["_timestamp"] for row in history} == stamps,
          "wandb sync uploads the log's times, not the clock's", history)
    config = json.loads([r["config"] for r in runs_sent if r["config"]][-1])
    check({name: value["value"] for name, value in config.items() if name != "_wandb"} ==
          {name: runs.typed(value) for name, value in options.items()}, "wandb sync uploads the options", config)
    check([(r["project"], r["host"] or "") for r in runs_sent] == [("tikz.c", "")] * len(runs_sent) and
          runs_sent[0]["displayName"] == "real", "wandb sync uploads the names, and not the machine's", runs_sent)
    again = export(out, "--metrics", metrics, "--tensorboard", to / "tb", "--mlflow", to / "ml", "--wandb", to)
    check(again.count("there already, unchanged") == 3, "the same export again, one of them uploaded", again)


def test_records(folder):
    check(tensorboard.crc32c(b"123456789") == 0xE3069283, "CRC32C of the standard's check")
    check(tensorboard.crc32c(bytes(32)) == 0x8A9136AA, "CRC32C of 32 zeros, as in RFC 3720")
    check(tensorboard.crc32c(bytes(range(32))) == 0x46DD794E, "CRC32C of 0 to 31, as in RFC 3720")
    long = runs.Run("p", "long", rows=dict.fromkeys(range(runs.LONG), {}))
    with contextlib.redirect_stderr(io.StringIO()) as messages:
        check(list(long.steps("title")) == list(long.steps()), "the steps of a long run")
    check(messages.getvalue().startswith("title "), "a long run has a progress bar", messages.getvalue())
    check(tensorboard.varint(300) == b"\xac\x02", "a number of two bytes")
    run = write_log(folder / "damage", {"step": 1, "a": 1}, {"step": 2, "a": 2})
    export(run, "--tensorboard", folder / "tb")
    path, = (folder / "tb" / "damage").iterdir()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    check(read_tensorboard(path.parent)[0] == {"a": [(1, 1.0)]}, "TensorBoard minds the checksums")


def test_times(folder):
    """The times are the log's; a line without one has that of the line before."""
    run = write_log(folder / "timed", {"step": 1, "a": 1, "time": 1700000000.5},
                    {"step": 2, "a": 2, "time": 1700000009}, {"step": 3, "a": 3})
    export(run, "--tensorboard", folder / "tb", "--mlflow", folder / "ml")
    check(read_tensorboard(folder / "tb" / "timed")[1] == {"a": [1700000000.5, 1700000009, 1700000009]},
          "TensorBoard's times")
    run, _, times = read_mlflow(folder / "ml")
    check(times == {"a": [1700000000500, 1700000009000, 1700000009000]}, "MLflow's times", times)
    check((run.info.start_time, run.info.end_time) == (1700000000500, 1700000009000), "begin and end", run.info)
    export(write_log(folder / "untimed", {"step": 1, "a": 1}), "--tensorboard", folder / "tb", "--start",
           "2026-01-02T03:04:05+01:00")
    check(read_tensorboard(folder / "tb" / "untimed")[1] == {"a": [1767319445.0]}, "--start")


def test_same_bytes(folder):
    """The same input gives the same files, and another input with the same names is refused, in whichever format."""
    run = write_log(folder / "run", {"step": 1, "a": 0.1, "val": {"b": 2}}, options='lr = 1\nname = "x # y"\n')
    to = folder / "to"
    options = ("--tensorboard", to, "--mlflow", to / "ml", "--wandb", to)
    export(run, *options)
    first = snapshot(to)
    os.rename(to, folder / "before")
    export(run, *options)
    second = snapshot(to)
    changed = {name for name in first | second if first.get(name) != second.get(name)}
    check(set(first) == set(second) and all(name.endswith(".wandb") for name in changed),  # it has the clock's time
          "the same input gives the same bytes", changed)
    (run / "log.jsonl").write_text('{"step":1,"a":0.2,"val":{"b":2}}\n')
    refused("is there already, and is not this export", to, run, *options)
    for i in 0, 2, 4:
        refused("is there already, and is not this export", to, run, *options[i:i + 2])
    refused("is there already", folder, run, "--tensorboard", folder / "new", "--mlflow", to / "ml")
    refused("is there already", folder, run, "--tensorboard", folder)  # the run's own folder
    first = snapshot(to)
    messages = export(run, *options, "--name", "other")
    check(messages.count("1 step, ") == 3 and all(snapshot(to)[n] == d for n, d in first.items()),
          "under another name, beside the first", messages)
    names = {r.info.run_name for r in MlflowClient(tracking_uri=f"file:{to / 'ml'}").search_runs(
        [mlflow_store.experiment_id(to / "ml", "tikz.c")])}
    check(names == {"run", "other"}, "two runs in one experiment", names)


def test_mlflow_names(folder):
    """Names that are no files' names, or meet there; a store that MLflow has made."""
    store = folder / "ml"
    client = MlflowClient(tracking_uri=f"file:{store}")
    identity = client.create_experiment("mine: #1")
    row = {"step": 1, "a": 1, "a/b": 2, "a_": 3, "é": 4, "è": 5, "../../x": 6, "": 7, "n" * 400: 8, "n" * 401: 9,
           "p//q": 10, "k\n\ud800": 11}
    export(write_log(folder / "names é", row), "--mlflow", store, "--project", "mine: #1", "--tensorboard",
           folder / "tb")
    found = read_tensorboard(folder / "tb" / "names é")[0]
    check(sorted(v for (_, v), in found.values()) == list(range(1, 12)) and found["é"] == [(1, 4)] and
          found["k\\n\\ud800"] == [(1, 11)], "TensorBoard takes all names", found)
    run, found, _ = read_mlflow(store, "mine: #1")
    check(run.info.experiment_id == identity, "the experiment of that name is used", run.info)
    check(sorted(v for (_, v), in found.values()) == list(range(1, 12)), "each name keeps its value", found)
    check(found["a/b"] == [(1, 2)] and found["a_"] == [(1, 1)] and found["a__"] == [(1, 3)],
          "a folder and a file of one name", found)
    check(run.info.run_name == "names é", "names that are not ASCII", run.info)
    check(not [p for p in folder.rglob("x") if "metrics" not in str(p)], "no file is outside of the run")


def test_lines(folder):
    """What is left out is said; everything else is there."""
    run = write_log(
        folder / "lines", {"step": 1, "a": 1, "b": "text", "c": True}, b"\n", b"nonsense\n", b"[1]\n", b'{"step":-1}\n',
        b'{"step":1.5,"a":1}\n', b'{"a":1}\n', b"\xff\n", b"[" * 100000 + b"\n", b'{"step":9,"a":' * 900 + b"\n",
        {"step": 2, "a": math.nan, "d": None}, {"step": 3, "a": -math.inf, "e": 1e300, "f": 10 ** 400},
        {"step": 2, "a": 5}, {"step": 2 ** 63 - 1, "a": [1, {"x": 2}]}, b'{"step":4,"a":0.')
    messages = export(run, "--tensorboard", folder / "tb", "--mlflow", folder / "ml")
    for part in ("the last line, 15, is cut, as by a crash", "8 lines left out, first line 3: not a JSON object",
                 "1 step logged more than once, first step 2", "1 value of b left out: not numbers",
                 "1 value of c left out", "3 values not finite, first d at step 2"):
        check(part in messages, part, messages)
    check(messages.count("warning") == 6 and "\x1b" not in messages, "one warning for each kind", messages)
    _, found, _ = read_mlflow(folder / "ml")
    check(math.isnan(found.pop("d")[0][1]), "a null is NaN")
    top = 2 ** 63 - 1
    check(found == {"a_": [(1, 1), (2, 5), (3, -math.inf)], "a/0": [(top, 1)], "a/1/x": [(top, 2)],
                    "e": [(3, 1e300)], "f": [(3, math.inf)]}, "MLflow reads what is left", found)
    found = read_tensorboard(folder / "tb" / "lines")[0]
    check(math.isnan(found.pop("d")[0][1]) and found == {
        "a": [(1, 1), (2, 5), (3, -math.inf)], "a/0": [(top, 1)], "a/1/x": [(top, 2)], "e": [(3, math.inf)],
        "f": [(3, math.inf)]}, "TensorBoard reads what is left", found)


def test_options(folder):
    run = write_log(folder / "run", {"step": 1, "a": 1}, options='# options of train_distill\n# tokenizer =\n'
                    'lr = 1e-3\nstudent = "a \\"b\\" \\\\ c"\ndata = x\ndata = y\nempty = ""\nno sense\n'
                    '# end of the options\n')
    options, whole = runs.read_options(run / "options.txt")
    check(whole and options == {"lr": "1e-3", "student": 'a "b" \\ c', "data": "x,y", "empty": ""}, "options", options)
    check([runs.typed(t) for t in ("true", "3", "1e+09", "nan", "NaN", "x", '"x"', "1_0", "1e999", "")] ==
          [True, 3, 1e9, "nan", "NaN", "x", '"x"', "1_0", "1e999", ""], "kinds of options")
    export(run, "--mlflow", folder / "ml")
    check(read_mlflow(folder / "ml")[0].data.params == options, "MLflow reads unusual options")
    (run / "options.txt").write_text("# options of train_distill\nlr = 1\nbat")
    check("is cut" in export(run, "--tensorboard", folder / "a"), "options that are cut are said")
    (run / "options.txt").unlink()
    check("there is no" in export(run, "--tensorboard", folder / "b"), "missing options are said")


def test_metrics(folder):
    """One model, several, and blocks."""
    path, n = folder / "m.json", iter(range(100))

    def numbers(value):
        path.write_text(json.dumps(value))
        name = f"m{next(n)}"
        export("--metrics", path, "--mlflow", folder / name)
        run, found, _ = read_mlflow(folder / name)
        check(run.info.run_name == "m" and all(step == 0 for (step, _), in found.values()), "metrics without a log")
        return {name: v for name, ((_, v),) in found.items()}, run.data.params

    check(numbers([{"model": "a/x.safetensors", "ce": 1, "flag": True}]) ==
          ({"eval/ce": 1}, {"eval/model": "a/x.safetensors", "eval/flag": "true"}), "one model")
    check(numbers([{"model": "a/x.st", "ce": 1}, {"model": "a/y.st", "ce": 2}])[0] == {"eval/x/ce": 1, "eval/y/ce": 2},
          "two models")
    check(numbers([{"model": "a/x.st", "ce": 1}, {"model": "b/x.st", "ce": 2}])[0] ==
          {"eval/a/x.st/ce": 1, "eval/b/x.st/ce": 2}, "two models of one name")
    check(numbers([{"model": "a", "ce": 1}, {"model": "a", "ce": 2}])[0] == {"eval/0/ce": 1, "eval/1/ce": 2},
          "one model twice")
    check(numbers({"teacher_self": {"ece": {"bins": [1, 2.5]}}, "n": 3, "s": "\ud800"}) ==
          ({"eval/teacher_self/ece/bins/0": 1, "eval/teacher_self/ece/bins/1": 2.5, "eval/n": 3}, {"eval/s": "?"}),
          "blocks")
    for text, part in (("", "is not the JSON"), ("[1", "is not the JSON"), ("{}", "holds no numbers"),
                       ("3", "holds no numbers"), ('{"a":"b"}', "holds no numbers"), ("[" * 9999, "is not the JSON")):
        path.write_text(text)
        refused(part, folder, "--metrics", path, "--mlflow", folder / "new" / "store")


def test_bad_input(folder):
    run = write_log(folder / "run", {"step": 1, "a": 1})
    empty, foreign = write_log(folder / "empty"), write_log(folder / "foreign", {"a": 1})
    os.mkfifo(folder / "pipe")
    (folder / "pointer").write_bytes(files.LFS_POINTER + b"v1\n")
    to = folder / "to" / "deep"
    for source, part in ((folder / "none", "There is no"), (folder, "There is no"), (empty, "it is empty"),
                         (foreign, 'no "step"'), (folder / "pipe", "a pipe, not a file"),
                         (folder / "pointer", "Git LFS pointer"), (run / "options.txt", "holds no step of a run")):
        refused(part, folder, source, "--tensorboard", to)
    for option in ("--tensorboard", "--mlflow", "--wandb"):
        refused("cannot be written", folder, run, option, run / "log.jsonl" / "x")
        refused("cannot be written", folder, run, option, "/proc/tikzc/x")
    for options in ((run,), ("--mlflow", to), (run, "--mlflow", to, "--name", "../x"),
                    (run, "--mlflow", to, "--name", ""), (run, "--mlflow", to, "--start", "yesterday"),
                    (run, "--mlflow", to, "--start", "1969-01-01")):
        try:
            check(False, "wrong usage", export(*options))
        except SystemExit as e:
            check(e.code == 2, f"status 2 for wrong usage: {options[1:]}", e.code)
    check(not to.exists(), "wrong usage writes nothing")
    with unittest.mock.patch.dict(sys.modules, {"wandb": None}):
        refused("install it with `pip install wandb`", folder, run, "--tensorboard", to, "--wandb", to)
    check(not (folder / "to").exists(), "folders that were made on the way are gone")


def test_full_disk(folder):
    """A file that cannot grow ends the export with a sentence; a file of wandb's that is cut is noticed."""
    run = write_log(folder / "run", *({"step": i, "a": i, "b": 1 / (1 + i)} for i in range(1000)))

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    for option in ("--tensorboard", "--mlflow"):
        done = subprocess.run([sys.executable, SCRIPT, run, option, folder / "to"], preexec_fn=limit, text=True,
                              capture_output=True)
        sentence = f"export_log.py: error: writing {folder / 'to'}: File too large.\n"
        check((done.returncode, done.stderr) == (1, sentence), f"{option} on a full disk", done.stderr)
        check(not (folder / "to").exists(), "nothing is left behind")
    export(run, "--wandb", folder)
    path, = glob.glob(str(folder / "wandb" / "*" / "*.wandb"))
    exported = runs.Run("tikz.c", "run")
    runs.read(exported, str(run / "log.jsonl"), None)
    wandb_run.check_written(exported, path)
    for count in 999, 1001:
        try:
            wandb_run.check_written(runs.Run("tikz.c", "run", rows=dict.fromkeys(range(count))), path)
            check(False, "another number of steps is noticed", count)
        except files.FormatError as e:
            check(f"of the {count} steps" in str(e), "another number of steps", e)
    whole = pathlib.Path(path).read_bytes()
    check(len(whole) > 3 * 0x8000, "the file has several blocks", len(whole))
    for size in (0, 7, 0x8000, len(whole) // 2, len(whole) - 5):
        pathlib.Path(path).write_bytes(whole[:size])
        try:
            wandb_run.check_written(exported, path)
            check(False, f"a file of wandb's with {size} of {len(whole)} bytes is noticed")
        except files.FormatError as e:
            check("of the 1000 steps" in str(e), "a file that is cut", e)


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for test in (test_records, test_times, test_same_bytes, test_mlflow_names, test_lines, test_options,
                     test_metrics, test_bad_input, test_full_disk):
            (root / test.__name__).mkdir()
            test(root / test.__name__)
        test_real_run(root, build)
    end()


if __name__ == "__main__":
    main()
