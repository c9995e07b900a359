"""Conversion in parts: the work of each process, and the folder that keeps the parts until they are joined.

A part is a piece of the source, the unit of work that an interruption may lose. Its result depends only on the Job
and its number, so any process can convert it at any time, and an interrupted conversion continues with the missing
parts.
"""
import collections
import concurrent.futures
import contextlib
import fcntl
import glob
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import threading
import time
from typing import NamedTuple

import numpy as np

from dataset import images
import files
import tikzc

STEP = 16  # rows between two checks of whether to stop


# ---- dividing ----

class Part(NamedTuple):
    """The unit of work of a process: a list of spans (unit, first, last)."""
    spans: tuple
    rows: int
    shard: int


def plan(blocks, shards, target):
    """Divides the blocks into parts of at most about `target` bytes, and the parts among the shards. The result
    depends only on the source and the arguments, so that an interrupted conversion finds the same parts again."""
    total = sum(b.weight for b in blocks)
    target = max(1, min(target, total // (4 * shards)))
    pieces = []
    for b in blocks:
        n = max(1, min(-(-b.weight // target), b.max_pieces, b.last - b.first))
        edges = [b.first + (b.last - b.first) * i // n for i in range(n + 1)]
        pieces += [((b.unit, first, last), b.weight / n) for first, last in zip(edges, edges[1:])]
    weights = np.array([weight for _, weight in pieces])
    middles = np.cumsum(weights) - weights / 2
    edges = [0, *np.searchsorted(middles, [total * s / shards for s in range(1, shards)]), len(pieces)]
    parts = []
    for shard, (first, last) in enumerate(zip(edges, edges[1:])):
        if first >= last:
            raise tikzc.FormatError(f"The source's {len(pieces)} pieces cannot be divided into {shards} shards of "
                                    f"about equal size; ask for fewer.")
        spans, weight = [], 0
        for span, size in pieces[first:last]:
            if spans and weight + size > target:
                parts.append(Part(tuple(spans), sum(s[2] - s[1] for s in spans), shard))
                spans, weight = [], 0
            spans.append(span)
            weight += size
        parts.append(Part(tuple(spans), sum(s[2] - s[1] for s in spans), shard))
    return parts


# ---- one sample ----

class Drop(Exception):
    """The sample cannot be used. Arguments: reason (the class of the error, for counting), detail."""


class Job(NamedTuple):
    """The description of a conversion that every process gets."""
    source: object
    parts: list
    folder: str
    tokenizer: tikzc.Tokenizer
    fingerprint: int
    name: str            # of the source, for the header
    max_tokens: int
    limit_name: str      # the reason of max_tokens, for messages
    max_side: int
    val_share: float     # 0: no validation data
    seed: int


def encode(job, code):
    """The token ids of the code, preceded by the begin token if the tokenizer has one. Raises Drop."""
    if not code.strip():
        raise Drop("the code is empty", "")
    tokenizer = job.tokenizer
    ids = tokenizer.encode(code)
    begin = getattr(tokenizer, "begin", None)
    if begin is not None and ids[0] != begin:
        ids = [begin] + ids
    text = ids[begin is not None:-1]
    special = next((i for i in text if tokenizer.special[i]), None)
    if special is not None:
        name = tokenizer.tokens[special].decode("utf-8", "replace")
        raise Drop("the code contains a special token of the tokenizer", name)
    if len(ids) > job.max_tokens:
        raise Drop(f"more than {job.max_tokens} tokens{job.limit_name}", f"{len(ids)} tokens")
    return ids


def is_validation(job, code):
    """Decides by the hash of the code, so that equal code is always on the same side of the split."""
    digest = hashlib.blake2b(code.encode(), digest_size=8, key=str(job.seed).encode()).digest()
    return int.from_bytes(digest, "big") < job.val_share * 2.0**64


def convert_row(job, row):
    """Returns (image bytes, ids, whether the sample is validation data, notes). Raises Drop."""
    if row.problem:
        raise Drop(*row.problem)
    ids = encode(job, row.code)
    try:
        image, note = images.prepare(row.image, job.max_side)
    except images.ImageError as e:
        raise Drop(e.reason, ": ".join(part for part in (row.file, e.detail) if part))
    return image, ids, job.val_share > 0 and is_validation(job, row.code), [*row.notes, *([note] if note else [])]


# ---- one part ----

def part_file(folder, number, suffix):
    return os.path.join(folder, f"part-{number:06d}.{suffix}")


def convert_part(job, number, advance):
    """Writes part-NUMBER.train.bin, .val.bin (if there is to be validation data) and, when these are complete, the
    report .json. advance(rows) is called regularly with the number of rows done; it may raise to stop the
    conversion."""
    report = {"train": 0, "val": 0, "tokens": 0, "longest": 0, "notes": collections.Counter(), "dropped": []}
    count = 0
    with contextlib.ExitStack() as stack:
        writers = {kind: stack.enter_context(tikzc.DatasetWriter(part_file(job.folder, number, f"{kind}.bin"),
                                                                 job.tokenizer, job.name, job.fingerprint))
                   for kind in (("train", "val") if job.val_share else ("train",))}
        for row in (row for span in job.parts[number].spans for row in job.source.read(span)):
            count += 1
            if count % STEP == 0:
                advance(STEP)
            try:
                image, ids, validation, notes = convert_row(job, row)
            except Drop as e:
                report["dropped"].append([*row.place, *e.args])
                continue
            kind = "val" if validation else "train"
            writers[kind].add(image, ids)
            report[kind] += 1
            report["tokens"] += len(ids)
            report["longest"] = max(report["longest"], len(ids))
            report["notes"].update(notes)
        advance(count % STEP)
    write_json(part_file(job.folder, number, "json"), report)


def write_json(path, value):
    with tikzc.AtomicFile(path) as f:
        f.write(json.dumps(value).encode())


def read_json(path):
    """The object in a JSON file of the folder of parts, or None if there is no such file."""
    try:
        with files.open_input(path) as f:
            value = json.load(f)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        refuse_damaged(path)
    return value


def refuse_damaged(path):
    folder, name = os.path.split(path)
    raise tikzc.FormatError(f"{folder}: its {name} is damaged; start anew with --overwrite.")


def is_report(value):
    """Whether this is the report of a part."""
    def counts(values):
        return all(type(n) is int and n >= 0 for n in values)
    return (value is not None and counts(value.get(key) for key in ("train", "val", "tokens", "longest"))
            and isinstance(value.get("notes"), dict) and counts(value["notes"].values())
            and isinstance(value.get("dropped"), list)
            and all(isinstance(d, list) and list(map(type, d)) == [str, str, int, str, str] for d in value["dropped"]))


# ---- many processes ----

class Stopped(Exception):
    """The conversion was told to stop."""


class Worker:
    """A process that converts parts: what it keeps between them, as class attributes."""
    job = done = stop = None

    @classmethod
    def start(cls, job, done, stop, parent):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        cls.job, cls.done, cls.stop = job, done, stop
        threading.Thread(target=cls.follow, args=(parent,), daemon=True).start()

    @staticmethod
    def follow(parent):
        """Ends the process when its parent was killed, instead of waiting for work forever."""
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    @classmethod
    def convert(cls, number):
        def advance(rows):
            if cls.stop.is_set():
                raise Stopped()
            with cls.done.get_lock():
                cls.done.value += rows
        convert_part(cls.job, number, advance)
        return number


def run_here(job, numbers, bar):
    """Converts parts in this process. Yields the number of each part when it is done."""
    done = bar.first

    def advance(rows):
        nonlocal done
        done += rows
        bar.update(done)
    for number in numbers:
        convert_part(job, number, advance)
        yield number


@contextlib.contextmanager
def ignoring_interrupts():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_parallel(job, numbers, bar, jobs):
    """As run_here with `jobs` processes; parts are yielded in the order in which they finish."""
    context = multiprocessing.get_context("spawn")  # threads of pyarrow and tokenizers do not survive a fork
    done, stop = context.Value("q", 0), context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, Worker.start, (job, done, stop, os.getpid()))
    try:
        with ignoring_interrupts():  # the processes start here and inherit the setting
            waiting = {pool.submit(Worker.convert, number) for number in numbers}
        while waiting:
            finished, waiting = concurrent.futures.wait(waiting, 0.1, concurrent.futures.FIRST_COMPLETED)
            bar.update(bar.first + done.value)
            for future in finished:
                yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise tikzc.FormatError("A process ended without a word, perhaps because memory ran out; the same command "
                                "goes on, fewer --jobs need less memory.")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


# ---- the folder of parts ----

OWN_FILES = re.compile(r"lock|manifest\.json|part-\d+\..*|.*\.done|.*\.tmp", re.DOTALL)


class Output(NamedTuple):
    """A file to be joined from the parts first..last-1."""
    path: str
    suffix: str
    first: int
    last: int


class Folder:
    """The folder OUT.parts: a lock, the manifest (the arguments and the source), the parts, and a file NAME.done for
    each complete output."""

    def __init__(self, path, manifest, overwrite):
        self.path, self.manifest = path, manifest
        os.makedirs(path, exist_ok=True)
        foreign = [name for name in os.listdir(path) if not OWN_FILES.fullmatch(name)]
        if foreign:
            raise tikzc.FormatError(f"{path}: the folder of parts would have this name, but there is a folder with "
                                    f"other files, such as {foreign[0]}.")
        self.lock = files.create(os.path.join(path, "lock"), "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise tikzc.FormatError(f"{path}: another conversion is writing there.")
        if overwrite:
            remove(self.file("manifest.json"))
        self.begun = self.compare()
        for name in glob.glob(os.path.join(glob.escape(path), "*.tmp")):
            os.unlink(name)

    def file(self, name, suffix=""):
        return files.beside(os.path.join(self.path, name), suffix)

    def compare(self):
        """Whether this continues an earlier conversion. Raises an error if that had another manifest."""
        old = read_json(self.file("manifest.json"))
        if old is None:
            for name in os.listdir(self.path):
                if name != "lock":
                    os.unlink(self.file(name))
            return False
        for key, value in json.loads(json.dumps(self.manifest)).items():
            if old.get(key) != value:
                before, now = short(old.get(key), value), short(value, old.get(key))
                raise tikzc.FormatError(f"{self.path}: the interrupted conversion had {key} {before}, this one has "
                                        f"{now}; go on with the same arguments and source, or start anew with "
                                        f"--overwrite.")
        return True

    def begin(self):
        if not self.begun:
            write_json(self.file("manifest.json"), self.manifest)

    def has_part(self, number):
        return os.path.exists(part_file(self.path, number, "json"))

    def part(self, number):
        """The report of a part."""
        path = part_file(self.path, number, "json")
        report = read_json(path)
        if not is_report(report):
            refuse_damaged(path)
        return report

    def is_done(self, output):
        done = read_json(self.file(os.path.basename(output.path), ".done"))
        if done is None:
            return False
        if not all(type(done.get(key)) is int for key in ("samples", "bytes")):
            refuse_damaged(self.file(os.path.basename(output.path), ".done"))
        if done["samples"] and (not os.path.exists(output.path) or os.path.getsize(output.path) != done["bytes"]):
            raise tikzc.FormatError(f"{output.path} was finished, but is gone or has changed since; start anew with "
                                    f"--overwrite.")
        return True

    def finish(self, output, job):
        """Joins the parts of an output in order, and removes them. An output without samples is not written."""
        name = os.path.basename(output.path)
        samples = sum(self.part(i)["val" if output.suffix == "val.bin" else "train"]
                      for i in range(output.first, output.last))
        if samples:
            temporary = self.file(name, ".tmp")
            with tikzc.DatasetWriter(output.path, job.tokenizer, job.name, job.fingerprint, temporary) as writer:
                for number in range(output.first, output.last):
                    path = part_file(self.path, number, output.suffix)
                    try:
                        part = tikzc.Dataset(path)
                        for i in range(len(part)):
                            writer.add(*part[i])
                        part.close()
                    except tikzc.FormatError:
                        refuse_damaged(path)
                if writer.count != samples:  # the reports of these parts were written with other data
                    raise tikzc.FormatError(f"{self.path}: its parts have {writer.count} samples, but their reports "
                                            f"say {samples}; start anew with --overwrite.")
        size = os.path.getsize(output.path) if samples else 0
        write_json(self.file(name, ".done"), {"samples": samples, "bytes": size})
        for number in range(output.first, output.last):
            remove(part_file(self.path, number, output.suffix))

    def remove(self):
        """Removes the folder; the manifest first, because without it the rest is ignored."""
        remove(self.file("manifest.json"))
        shutil.rmtree(self.path)


def remove(path):
    pathlib.Path(path).unlink(missing_ok=True)


def short(value, other):
    """A value for a message; of a list only the first item that `other` lacks."""
    if isinstance(value, list) and isinstance(other, list):
        different = [v for v in value if v not in other]
        value = different[0] if different else f"{len(value)} files"
    return json.dumps(value, ensure_ascii=False)
