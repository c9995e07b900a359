"""Files as inputs and outputs: what every script checks before it reads or writes one. Needs only the standard library.

An input is a regular file, because a script would wait for a pipe, and read from a device, without end. An output
appears under its name only when it is complete.
"""
import contextlib
import hashlib
import os
import stat
import sys
import tempfile

NAME_MAX = 255  # bytes of a file's name, in every file system in use
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of each, by the specification of Git LFS


class FormatError(Exception):
    """A file cannot be used; the message is one sentence for the user."""


# ---- messages ----

def printable(text):
    """The text in one line without control characters: a name or a quotation must not forge a line of a log, or
    control a terminal. What cannot be printed is written as in Python: \\n, \\x1b, \\udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def describe(error, out=None):
    """An exception as a sentence: that of a FormatError, or what the system says about a file. out: the file that is
    being written, for an error that names none."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename or (f"writing {out}" if out else "")
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error) or type(error).__name__


def fail(program, message, *more):
    """Ends the program with status 1 and "PROGRAM: error: MESSAGE", a single line. more: further lines."""
    sys.exit("\n".join(map(printable, (f"{program}: error: {message}", *more))))


def need(package, install=None):
    """Ends the program with a sentence if a package is missing. install: its name for pip."""
    try:
        __import__(package)
    except ImportError:
        fail(os.path.basename(sys.argv[0]), f"The package {install or package} is missing; install it with `pip "
             f"install -r scripts/requirements.txt`, or use build/venv/bin/python, which `scripts/deps.sh python` "
             f"makes.")


# ---- inputs ----

def is_lfs_pointer(data):
    return data.startswith(LFS_POINTER)


def open_input(path):
    """Opens a regular file for reading bytes. A pipe or a device raises FormatError at once, where open() would
    wait."""
    path = os.fspath(path)
    check_regular(path, os.stat(path).st_mode)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(path, os.fstat(handle).st_mode)  # it may have been replaced meanwhile
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path, mode):
    if not stat.S_ISREG(mode):
        kind = ("folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else
                "socket" if stat.S_ISSOCK(mode) else "device")
        raise FormatError(f"{path}: a {kind}, not a file.")


def check_input(path):
    """Checks that a path is a regular file with data of its own."""
    with open_input(path) as f:
        if is_lfs_pointer(f.read(len(LFS_POINTER))):
            raise FormatError(f"{path} is a Git LFS pointer, not the data; run git lfs pull.")


# ---- outputs ----

def beside(path, suffix):
    """PATH + SUFFIX. If that name is too long for a file, its middle is replaced by a hash of the whole name."""
    folder, name = os.path.split(os.fsencode(path))
    end = os.fsencode(suffix)
    if len(name + end) > NAME_MAX:
        digest = b"-" + hashlib.sha256(name).hexdigest()[:16].encode()
        kept = os.fsdecode(name)
        while len(os.fsencode(kept) + digest + end) > NAME_MAX:
            kept = kept[:-1]  # whole characters
        name = os.fsencode(kept) + digest
    return os.fsdecode(os.path.join(folder, name + end))


def check_replaceable(path):
    """Raises FormatError if an output would replace something that is no regular file, such as a device."""
    path = os.fspath(path)
    if not path:
        raise FormatError("The name of the file to write is empty.")
    if os.path.isdir(path) or not os.path.basename(path):
        raise FormatError(f"{path} is a folder; name a file to write.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise FormatError(f"{path} is not a regular file; name a file to write.")


def check_output(path):
    """Raises FormatError if a file cannot be written under this name. To be called before the work, not after it."""
    check_replaceable(path)
    folder, name = os.path.split(os.fspath(path))
    length = len(os.fsencode(name))
    if length > NAME_MAX:
        raise FormatError(f"The name {name} has {length} bytes; the name of a file has at most {NAME_MAX}.")
    if not os.path.isdir(folder or "."):
        raise FormatError(f"{path} cannot be written: there is no folder {folder}.")
    try:
        tempfile.TemporaryFile(dir=folder or ".").close()
    except OSError as e:
        raise FormatError(f"{path} cannot be written: {e.strerror}.")


def create(path, mode):
    """Opens a file for writing under a name that the program makes itself. What a symbolic link of that name points
    to is not ours to change."""
    try:
        return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError:
        if os.path.islink(path):
            raise FormatError(f"{path} is a symbolic link, which is not followed; remove it.")
        raise


class AtomicFile:
    """A binary file that appears under its name only when it is complete. Until then it is called `temporary`, which
    must be in the same file system (default: PATH.PID.tmp)."""

    def __init__(self, path, temporary=None):
        check_replaceable(path)
        self.path, self.temporary = os.fspath(path), temporary or beside(path, f".{os.getpid()}.tmp")
        try:
            self.file = create(self.temporary, "wb")
        except OSError as e:
            raise OSError(e.errno, e.strerror, self.path)  # the name that the user knows

    def __enter__(self):
        return self.file

    @contextlib.contextmanager
    def discarded_on_error(self):
        """For what is written outside of a with statement of this file itself."""
        try:
            yield
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __exit__(self, kind, value, trace):
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.temporary, self.path)
        finally:
            if os.path.lexists(self.temporary):  # the data are not complete
                with contextlib.suppress(OSError):
                    self.file.close()
                os.unlink(self.temporary)
