"""A run, as the tools that show runs want it: what train_distill and `eval --json` leave, in one table of numbers.

    log.jsonl      a JSON object a line: "step", numbers by name, nested ones too: {"step":90,"val":{"ce":0.31}}
    options.txt    beside it: KEY = VALUE, "# KEY =" where an option is not set
    metrics.json   numbers and strings in objects and lists, of one or several models

Nested names are joined by a slash: val/ce. A null stands for NaN or an infinity, which JSON cannot say. A "time" in a
line of the log is that of the step, in seconds since 1970.
"""
import dataclasses
import json
import math
import os

import files
import progress

MAX_STEP = (1 << 63) - 1  # all three formats have steps of 64 bits
MAX_TIME = 1e11  # the year 5138
LONG = 10000     # steps that take some seconds to write
OPTIONS_BEGIN, OPTIONS_END = "# options of train_distill", "# end of the options"


@dataclasses.dataclass
class Run:
    project: str
    name: str
    start: float = 0.0                                       # seconds since 1970
    rows: dict = dataclasses.field(default_factory=dict)     # {step: {name: number}}
    times: dict = dataclasses.field(default_factory=dict)    # {step: seconds since 1970}
    options: dict = dataclasses.field(default_factory=dict)  # {name: text}

    def steps(self, title=None):
        """Yields the steps in their order; of a long run with a progress bar, if it has a title."""
        steps = sorted(self.rows)
        if not title or len(steps) < LONG:
            yield from steps
            return
        with progress.Progress(title, len(steps)) as bar:
            for done, step in enumerate(steps, 1):
                yield step
                bar.update(done)

    def names(self):
        return sorted({name for row in self.rows.values() for name in row})


def typed(text):
    """The text of an option as the true, false or finite number that it says; else the text itself."""
    try:
        value = json.loads(text)
        if isinstance(value, bool) or isinstance(value, (int, float)) and math.isfinite(value):
            return value
    except (ValueError, RecursionError, OverflowError):
        pass
    return text


def many(n, what):
    return f"{n} {what}{'s' if n != 1 else ''}"


# ---- numbers of nested objects ----

def number(value):
    """A JSON value as a float; None if it is no number. A null is a number that was not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf


def labels(items):
    """Names of a list's elements: of models the file's name, or the path where two have the same name; else the
    numbers 0, 1, ..."""
    paths = [item["model"] if isinstance(item, dict) and isinstance(item.get("model"), str) else "" for item in items]
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    for names in (stems, paths):
        if all(names) and len(set(names)) == len(names):
            return names
    return map(str, range(len(items)))


def flatten(value, name):
    """Yields (name, value) of each value that is no object and no list."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = zip(labels(value), value)
    else:
        yield name, value
        return
    for key, inner in pairs:
        key = files.printable(key) or "_"
        yield from flatten(inner, f"{name}/{key}" if name else key)


# ---- log.jsonl ----

def read_line(line):
    """The step and the object of a line of the log."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise files.FormatError("not UTF-8")
    except ValueError:
        raise files.FormatError("not a JSON object")
    if not isinstance(row, dict):
        raise files.FormatError("not a JSON object")
    step = row.pop("step", None)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        raise files.FormatError(f'no "step" from 0 to {MAX_STEP}')
    return step, row


class LogReader:
    """Adds the lines of a log to a run, and counts what is worth a warning."""

    def __init__(self, run):
        self.run, self.bad = run, []             # bad: (line's number, reason) of those left out
        self.repeated, self.skipped = set(), {}  # steps; {name: number of values}

    def add(self, step, row):
        stamp = number(row.get("time", False))
        if stamp is not None and 0 <= stamp < MAX_TIME:
            self.run.times[step] = stamp
            del row["time"]
        leaves = list(flatten(row, ""))  # all, before any is used: it may be nested too deeply
        numbers = self.run.rows.setdefault(step, {})
        for name, value in leaves:
            value = number(value)
            if value is None:
                self.skipped[name] = self.skipped.get(name, 0) + 1
                continue
            if name in numbers:
                self.repeated.add(step)
            numbers[name] = value

    def read(self, path):
        last = b"\n"
        with files.open_input(path) as f:
            for at, line in enumerate(f, 1):
                last = line
                try:
                    if line.strip():
                        self.add(*read_line(line))
                except files.FormatError as e:
                    self.bad.append((at, e))
                except RecursionError:
                    self.bad.append((at, "nested too deeply"))
        if not self.run.rows:
            why = f"line {self.bad[0][0]}: {self.bad[0][1]}" if self.bad else "it is empty"
            raise files.FormatError(f"{path} holds no step of a run ({why}); expected the log.jsonl of train_distill.")
        if self.bad and self.bad[-1][0] == at and not last.endswith(b"\n"):
            self.bad.pop()
            yield f"{path}: the last line, {at}, is cut, as by a crash; everything before it is exported"

    def warnings(self, path):
        if self.bad:
            yield f"{path}: {many(len(self.bad), 'line')} left out, first line {self.bad[0][0]}: {self.bad[0][1]}"
        if self.repeated:
            yield (f"{path}: {many(len(self.repeated), 'step')} logged more than once, first step "
                   f"{min(self.repeated)}, as in a resumed run; the later line counts")
        for name, count in sorted(self.skipped.items()):
            yield f"{path}: {many(count, 'value')} of {name} left out: not numbers"
        infinite = [(step, name) for step, row in self.run.rows.items() for name, value in row.items()
                    if not math.isfinite(value)]
        if infinite:
            yield (f"{path}: {many(len(infinite), 'value')} not finite, first {min(infinite)[1]} at step "
                   f"{min(infinite)[0]}; exported as such")


# ---- options.txt, metrics.json ----

def read_options(path):
    """({name: text}, whether the file is whole). An option that may be given several times has all its values, with
    commas between them."""
    with files.open_input(path) as f:
        lines = f.read().decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    options = {}
    for line in lines:
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or key.startswith("#"):
            continue
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = unquote(value[1:-1])
        key = files.printable(key)
        options[key] = f"{options[key]},{value}" if key in options else value
    return options, OPTIONS_BEGIN not in lines or OPTIONS_END in lines


def unquote(text):
    """Undoes the escapes of lib/options.h: \\n is a line's end, and any other character after a backslash is itself."""
    out, escaped = "", False
    for c in text:
        if c == "\\" and not escaped:
            escaped = True
            continue
        out += "\n" if escaped and c == "n" else c
        escaped = False
    return out


def read_metrics(path):
    """({name: number}, {name: text}) of what `eval --json` has written. The names begin with eval/; that of a model
    follows if there are several."""
    with files.open_input(path) as f:
        data = f.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        leaves = dict(flatten(value, "eval"))
    except (ValueError, RecursionError) as e:
        raise files.FormatError(f"{path} is not the JSON that eval --json writes: {files.describe(e)}.")
    numbers = {name: number(leaf) for name, leaf in leaves.items() if number(leaf) is not None}
    if not isinstance(value, (dict, list)) or not numbers:
        raise files.FormatError(f"{path} holds no numbers; expected what eval --json writes.")
    texts = {name: leaf.encode(errors="replace").decode() if isinstance(leaf, str) else json.dumps(leaf)
             for name, leaf in leaves.items() if name not in numbers}
    return numbers, texts


# ---- a run ----

def read(run, log, metrics, start=None):
    """Fills a run from a log (None: none) and the metrics' file (None: none), which belong to the log's last step.
    Returns warnings."""
    warnings = []
    if log:
        files.check_input(log)
        reader = LogReader(run)
        warnings += [*reader.read(log), *reader.warnings(log)]
        options = os.path.join(os.path.dirname(log), "options.txt")
        if os.path.exists(options):
            run.options, whole = read_options(options)
            warnings += [] if whole else [f"{options} is cut; the options before the cut are exported"]
        else:
            warnings.append(f"there is no {options}; exported without the run's options")
    run.start = start if start is not None else min(run.times.values(), default=0.0)
    if metrics:
        files.check_input(metrics)
        numbers, texts = read_metrics(metrics)
        run.rows.setdefault(max(run.rows, default=0), {}).update(numbers)
        run.options.update(texts)
    last = run.start
    for step in run.steps():
        last = run.times.setdefault(step, last)
    return warnings
