"""Weights & Biases: the folder of an offline run, written by the package wandb, for `wandb sync FOLDER`.

The package notes the clock's time of the export; all else, the steps' times too, is of the log. The file EXPORT in the
folder says of which data it was made. The package writes wrong files without a word when the disk is full, so they are
read again.
"""
import filecmp
import glob
import hashlib
import json
import os
import shutil
import struct
import time
import zlib

import files
from . import folder
from .run import typed

EXPORT = "export.sha256"
# Nothing of the machine on which the log is exported belongs to the run. Each setting under its older and newer name.
QUIET = {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DISABLE_GIT": "true", "DISABLE_CODE": "true",
         "SAVE_CODE": "false", "_DISABLE_META": "true", "_DISABLE_STATS": "true", "_SAVE_REQUIREMENTS": "false",
         "X_DISABLE_META": "true", "X_DISABLE_STATS": "true", "X_SAVE_REQUIREMENTS": "false",
         "X_DISABLE_MACHINE_INFO": "true", "ERROR_REPORTING": "false", "HOST": ""}


def run_id(run):
    return hashlib.sha256(f"{run.project}/{run.name}".encode()).hexdigest()[:16]


def folder_name(run):
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(run.start))
    return os.path.join("wandb", f"offline-run-{stamp}-{run_id(run)}")


def digest(run):
    data = [run.project, run.name, run.start, sorted(run.options.items()),
            [(step, run.times[step], sorted(run.rows[step].items())) for step in run.steps()]]
    return hashlib.sha256(json.dumps(data).encode()).hexdigest() + "\n"


def same(a, b):
    """Whether two folders were made of the same data; b may also hold what wandb sync leaves there."""
    return set(folder.sizes(a)) <= set(folder.sizes(b)) and filecmp.cmp(os.path.join(a, EXPORT),
                                                                       os.path.join(b, EXPORT), shallow=False)


# ---- what the package has written ----

def records(data):
    """The records of a .wandb file: after 7 bytes, blocks of 32 KB with pieces of records, each after a checksum, its
    length and its place (1: whole, 2: first, 3: middle, 4: last)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 0x8000 - at % 0x8000 < 7:  # too little for a piece: the block ends with padding
            at += 0x8000 - at % 0x8000
            continue
        checksum, length, place = struct.unpack_from("<IHB", data, at)
        piece = data[at + 7:at + 7 + length]
        if not 1 <= place <= 4 or len(piece) < length or checksum != zlib.crc32(piece, zlib.crc32(bytes([place]))):
            return
        whole = piece if place in (1, 2) else whole + piece
        if place in (1, 4):
            yield whole
        at += 7 + length


def varint(data, at):
    """(number, where it ends)"""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def fields(data):
    """The numbers of the fields of a record, a message of protocol buffers."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        yield tag >> 3
        size, end = varint(data, at) if tag & 7 in (0, 2) else (8 if tag & 7 == 1 else 4, at)
        at = end + (0 if tag & 7 == 0 else size)


HISTORY, EXIT = 2, 18  # the fields that say that a record is a step, or the end of the run


def check_written(run, path):
    """Raises FormatError if not all is in the file: the package says nothing when the disk is full."""
    with files.open_input(path) as f:
        found = [number for data in records(f.read()) for number in fields(data)]
    if found.count(HISTORY) != len(run.rows) or EXIT not in found:
        raise files.FormatError(f"wandb has written {found.count(HISTORY)} of the {len(run.rows)} steps; is the disk "
                                f"full? Nothing was written.")


# ---- writing ----

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
        for step in run.steps("Weights & Biases"):
            made.log(run.rows[step] | {"_timestamp": run.times[step]}, step=step)
        made.finish()
        wandb.teardown()  # ends the process that writes, and so waits for the rest of the file
    except Exception as e:  # whatever a package of many versions may raise
        raise files.FormatError(f"wandb could not write the run: {files.describe(e)}.")
    folders = glob.glob(os.path.join(glob.escape(path), "wandb", f"offline-run-*-{run_id(run)}"))
    if len(folders) != 1 or not os.path.isfile(os.path.join(folders[0], f"run-{run_id(run)}.wandb")):
        raise files.FormatError(f"wandb {wandb.__version__} wrote no offline run.")
    check_written(run, os.path.join(folders[0], f"run-{run_id(run)}.wandb"))
    for name in ("files", f"run-{run_id(run)}.wandb"):
        if os.path.exists(os.path.join(folders[0], name)):
            os.rename(os.path.join(folders[0], name), os.path.join(path, name))
    shutil.rmtree(os.path.join(path, "wandb"))
    folder.write_file(os.path.join(path, EXPORT), digest(run))
