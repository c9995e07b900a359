"""Compiles and renders documents that nobody has read: pdflatex and pdftoppm, within limits.

A document is a program. It may loop, take all memory, write without end, read any file that TeX finds, or make a small
PDF file that takes for ever to draw. So each process has limits of processor time, memory, file size and open files
(setrlimit), works in a folder of its own which is also its HOME, is watched for the time that passes and for what it
writes in all, and is killed with all its children. TeX itself is told to read and write nothing outside (openin_any and
openout_any of texmf.cnf) and to start no other program than those that make fonts.

This is no sandbox: it trusts pdflatex and pdftoppm to have no faults that let a document run code of its own.
"""
import ctypes
import functools
import os
import pathlib
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
WATCH = 0.25  # seconds between two looks at a process
LIBC = ctypes.CDLL(None)


class TexError(Exception):
    """The document cannot be used; the message is the reason."""


class Missing(Exception):
    """A program is not installed; the message is a sentence."""


class Limits(NamedTuple):
    seconds: int = 20             # of processor time, each process
    wall: int = 120               # seconds that may pass, on a machine that does other things, too
    memory: int = 1 << 30         # bytes of address space, each process
    file_bytes: int = 128 << 20   # of one file
    folder_bytes: int = 256 << 20  # of all files in its folder
    open_files: int = 64


def confine(limits):
    """Sets the limits of this process, between fork and exec."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not outlive the process that watches it
    for what, limit in ((resource.RLIMIT_CPU, limits.seconds), (resource.RLIMIT_AS, limits.memory),
                        (resource.RLIMIT_FSIZE, limits.file_bytes), (resource.RLIMIT_NOFILE, limits.open_files),
                        (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # The signal of the soft limit of time says why the process ends.
        last = soft + 1 if what == resource.RLIMIT_CPU and soft != hard else soft
        resource.setrlimit(what, (soft, last))


def environment(folder):
    """What pdflatex and pdftoppm need of the environment, and no more."""
    kept = {name: value for name, value in os.environ.items()
            if name == "PATH" or name.startswith("TEX") and name != "TEXMFOUTPUT"}
    return {**kept, "LC_ALL": "C", "HOME": str(folder), "TMPDIR": str(folder), "openin_any": "p", "openout_any": "p",
            "shell_escape": "f", "max_print_line": "1000"}  # whole lines in the log


def folder_bytes(folder):
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                pass
    return total


def watch(process, folder, limits):
    """Waits for the end of a process. Raises TexError if it takes too long or writes too much."""
    name, end = process.args[0], time.monotonic() + limits.wall
    handle = os.pidfd_open(process.pid)
    try:
        while not select.select([handle], [], [], WATCH)[0]:
            if time.monotonic() > end:
                raise TexError(f"{name} took more than {limits.wall} s")
            if folder_bytes(folder) > limits.folder_bytes:
                raise TexError(f"{name} wrote more than {limits.folder_bytes >> 20} MB")
    finally:
        os.close(handle)


def run(command, folder, limits):
    """Runs a command in its folder. Returns (its status, what it printed as an open file, the same of stderr)."""
    output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    try:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=errors, start_new_session=True,
                                   preexec_fn=functools.partial(confine, limits))
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not installed; scripts/deps.sh tex installs it.")
    try:
        watch(process, folder, limits)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # before wait, while the number of the group cannot be another's
        process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise TexError(f"{command[0]} took more than {limits.seconds} s of processor time")
    if process.returncode == -signal.SIGXFSZ:
        raise TexError(f"{command[0]} wrote a file of more than {limits.file_bytes >> 20} MB")
    if process.returncode < 0:
        raise TexError(f"{command[0]} ended with signal {-process.returncode}")
    output.seek(0)
    errors.seek(0)
    return process.returncode, output, errors


def first_error(folder):
    """The first error in TeX's log, for a message."""
    try:
        with open(pathlib.Path(folder, "a.log"), "rb") as log:
            lines = log.read(1 << 20).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = []
    return next((line[2:200] for line in lines if line.startswith("! ")), "no reason is in its log")


def compile_document(source, folder, limits=Limits()):
    """Compiles a document (bytes) to FOLDER/a.pdf. Raises TexError."""
    pathlib.Path(folder, "a.tex").write_bytes(source)
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "-no-shell-escape", "a.tex"]
    status, _, _ = run(command, folder, limits)
    if status:
        raise TexError(f"pdflatex: {first_error(folder)}")
    if not pathlib.Path(folder, "a.pdf").exists():
        raise TexError("pdflatex: the document has no page")


def images_are_whole(file, gray=False):
    """Whether an open file holds PPM images (gray: PGM images), one after another."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        file.seek(at)
        header = re.match(rb"P([56])\n([1-9]\d*) ([1-9]\d*)\n255\n", file.read(40))
        if not header or (header[1] == b"5") != gray:
            return False
        at += header.end() + int(header[2]) * int(header[3]) * (1 if gray else 3)
    file.seek(0)
    return at == size > 0


def render_pages(folder, dpi, first, last, limits=Limits(), gray=False):
    """Renders pages of FOLDER/a.pdf. Returns them as PPM images (gray: PGM images), one after another, in an open file.
    Raises TexError."""
    command = ["pdftoppm", "-r", str(dpi), "-f", str(first), "-l", str(last), *(["-gray"] if gray else []), "a.pdf"]
    status, output, errors = run(command, folder, limits)
    message = errors.read(1000).decode("utf-8", "replace").strip()
    # Without the memory for a page, pdftoppm says so and writes one pixel, with status 0.
    if status or "memory" in message or not images_are_whole(output, gray):
        raise TexError(f"pdftoppm: {message.split(chr(10))[0][:200] or 'its images are not whole'}")
    return output
