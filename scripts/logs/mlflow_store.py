"""MLflow's file store: STORE/EXPERIMENT/RUN with meta.yaml, and a file for each metric, parameter and tag.

A metric's file has a line "MILLISECONDS VALUE STEP" for each value. A slash in a name makes a folder.
"""
import glob
import hashlib
import json
import os
import re
import urllib.parse

import files
from . import folder

NAME_BYTES = 240  # MLflow takes names of up to 250 characters


def experiment_id(store, project):
    """That of the experiment of this name in the store; without one, an id made of the name."""
    wanted = [project, quoted(project), "'" + project.replace("'", "''") + "'"]
    for path in sorted(glob.glob(os.path.join(glob.escape(store), "*", "meta.yaml"))):
        with files.open_input(path) as f:
            lines = f.read().decode("utf-8", "replace").splitlines()
        if any(line == f"name: {name}" for line in lines for name in wanted):
            return os.path.basename(os.path.dirname(path))
    return str(int(hashlib.sha256(project.encode()).hexdigest()[:14], 16) + 10**17)  # 18 digits, as MLflow's own


def run_id(run):
    return hashlib.sha256(f"{run.project}/{run.name}".encode()).hexdigest()[:32]


def quoted(value):
    """Printable text, numbers and empty lists in JSON's notation are YAML."""
    return json.dumps(value, ensure_ascii=False)


def yaml(entries):
    return "".join(f"{key}: {quoted(value)}\n" for key, value in entries.items())


def file_names(names):
    """{name: one that MLflow allows, and that is neither another's nor the folder of another}"""
    chosen, taken, folders = {}, set(), set()
    for name in sorted(names, key=lambda n: (-n.count("/"), n)):  # the deepest first: they say what is a folder
        parts = [re.sub(r"[^\w.\- ]", "_", part, flags=re.ASCII) for part in name.split("/")]
        safe = "/".join("_" + part if part[:1] in ("", ".") else part for part in parts)
        if len(safe) > NAME_BYTES:
            safe = safe[:NAME_BYTES - 17].rstrip("/.") + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
        while safe in taken or safe in folders:
            safe += "_"
        chosen[name] = safe
        taken.add(safe)
        at = safe
        while "/" in at:
            at = at.rpartition("/")[0]
            folders.add(at)
    return chosen


def write_experiments(store, experiment, project):
    """Writes the meta.yaml of the experiment, unless it is there; and of MLflow's default one into an empty store."""
    wanted = {experiment: project}
    if not glob.glob(os.path.join(glob.escape(store), "*", "meta.yaml")):
        wanted.setdefault("0", "Default")
    for identity, name in wanted.items():
        path = os.path.join(store, identity, "meta.yaml")
        if os.path.exists(path):
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with files.AtomicFile(path) as f:
            f.write(yaml({"artifact_location": uri(os.path.dirname(path)), "experiment_id": identity,
                          "lifecycle_stage": "active", "name": name}).encode())


def uri(path):
    return "file://" + urllib.parse.quote(os.path.realpath(path))


def write(run, path, store, experiment):
    """Writes the run's folder at `path`. It is meant for STORE/EXPERIMENT/RUN, where its artifacts would be."""
    milliseconds = {step: round(1000 * run.times[step]) for step in run.rows}
    identity, start = run_id(run), round(1000 * run.start)
    meta = {"artifact_uri": uri(os.path.join(store, experiment, identity, "artifacts")),
            "end_time": max(milliseconds.values(), default=start), "entry_point_name": "",
            "experiment_id": experiment, "lifecycle_stage": "active", "run_id": identity, "run_name": run.name,
            "run_uuid": identity, "source_name": "", "source_type": 4, "source_version": "", "start_time": start,
            "status": 3, "tags": [], "user_id": ""}  # source_type 4: local; status 3: finished
    folder.write_file(os.path.join(path, "meta.yaml"), yaml(meta))
    for name in ("artifacts", "metrics", "params", "tags"):
        os.makedirs(os.path.join(path, name))
    lines = {}
    for step in run.steps("MLflow"):
        for name, value in run.rows[step].items():
            lines.setdefault(name, []).append(f"{milliseconds[step]} {value!r} {step}\n")
    for name, file in file_names(lines).items():
        folder.write_file(os.path.join(path, "metrics", file), "".join(lines[name]))
    for name, file in file_names(run.options).items():
        folder.write_file(os.path.join(path, "params", file), run.options[name])
    for name, value in {"mlflow.runName": run.name, "mlflow.source.name": "train_distill",
                        "mlflow.source.type": "LOCAL"}.items():
        folder.write_file(os.path.join(path, "tags", name), value)
