"""Weights & Biases: the folder of an offline run, written by the package wandb, for `wandb sync FOLDER`.

The package notes the clock's time of the export; all else, the steps' times too, is of the log. A file EXPORT in the folder says of which data it was made.
"""
import filecmp
import glob
import hashlib
import json
import os
import shutil
import time

import files
from . import folder
from .run import typed

EXPORT = "export.sha256"
# Nothing of the machine on which the log is exported belongs to the run. Each setting under its older and newer name.
QUIET = {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DISABLE_GIT": "true", "DISABLE_CODE": "true",
         "SAVE_CODE": "false", "_DISABLE_META": "true", "_DISABLE_STATS": "true", "_SAVE_REQUIREMENTS": "false",
         "X_DISABLE_META": "true", "X_DISABLE_STATS": "true", "X_SAVE_REQUIREMENTS": "false",
         "X_DISABLE_MACHINE_INFO": "true", "ERROR_REPORTING": "false"}


def run_id(run):
    return hashlib.sha256(f"{run.project}/{run.name}".encode()).hexdigest()[:16]


def folder_name(run):
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(run.start))
    return os.path.join("wandb", f"offline-run-{stamp}-{run_id(run)}")


def digest(run):
    data = [run.project, run.name, run.start, sorted(run.options.items()),
            [(step, run.times.get(step), sorted(run.rows[step].items())) for step in run.steps()]]
    return hashlib.sha256(json.dumps(data).encode()).hexdigest() + "\n"


def same(a, b):
    """Whether two folders were made of the same data; b may also hold what wandb sync leaves there."""
    return set(folder.sizes(a)) <= set(folder.sizes(b)) and filecmp.cmp(os.path.join(a, EXPORT),
                                                                       os.path.join(b, EXPORT), shallow=False)


def load():
    """The package, with settings of ours only."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update({f"WANDB_{name}": value for name, value in QUIET.items()})
    try:
        import wandb
    except ImportError:
        raise files.FormatError("--wandb needs the package wandb, which is missing; install it with `pip install "
                                "wandb` and run this script with the same Python.")
    return wandb


def write(run, path):
    """Writes the run's folder at `path`, which is empty."""
    wandb = load()
    os.environ["WANDB_DIR"] = path
    try:
        made = wandb.init(project=run.project, id=run_id(run), name=run.name, dir=path,
                          config={name: typed(value) for name, value in run.options.items()})
        for step in run.steps():
            made.log(run.rows[step] | {"_timestamp": run.time(step)}, step=step)
        made.finish()
    except Exception as e:  # whatever a package of many versions may raise
        raise files.FormatError(f"wandb could not write the run: {files.describe(e)}.")
    folders = glob.glob(os.path.join(glob.escape(path), "wandb", f"offline-run-*-{run_id(run)}"))
    if len(folders) != 1 or not os.path.isfile(os.path.join(folders[0], f"run-{run_id(run)}.wandb")):
        raise files.FormatError(f"wandb {wandb.__version__} wrote no offline run.")
    for name in ("files", f"run-{run_id(run)}.wandb"):
        if os.path.exists(os.path.join(folders[0], name)):
            os.rename(os.path.join(folders[0], name), os.path.join(path, name))
    shutil.rmtree(os.path.join(path, "wandb"))
    folder.write_file(os.path.join(path, EXPORT), digest(run))
