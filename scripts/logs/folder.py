"""The folder of one exported run. It appears under its name when it is complete; one that is there is never changed."""
import filecmp
import os
import shutil
import tempfile

import files


def sizes(folder):
    """{path: bytes} of all files, {path: None} of all folders."""
    found = {}
    for at, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(at, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size if name in names else None
    return found


def equal(a, b):
    """Whether two folders hold the same files."""
    found = sizes(a)
    return found == sizes(b) and all(filecmp.cmp(os.path.join(a, path), os.path.join(b, path), shallow=False)
                                     for path, size in found.items() if size is not None)


def write_file(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


class Staged:
    """with Staged(store, NAME) as s: write into s.folder, check(), publish(). It becomes store/NAME. same: a function
    that says whether two folders hold the same export."""

    def __init__(self, store, name, same=equal):
        self.store, self.path = store, os.path.join(store, name)
        self.same, self.made, self.there = same, [], False
        at = os.path.dirname(os.path.abspath(self.path))
        while not os.path.lexists(at):
            self.made.append(at)
            at = os.path.dirname(at)

    def __enter__(self):
        try:
            os.makedirs(self.store, exist_ok=True)
            self.folder = tempfile.mkdtemp(prefix=".export-", dir=self.store)
        except OSError as e:
            self.remove_made()
            raise files.FormatError(f"{self.store} cannot be written: {e.strerror}.")
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(self.folder, 0o777 & ~mask)
        return self

    def __exit__(self, kind, value, trace):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.remove_made()

    def remove_made(self):
        """Removes the folders that were made on the way, as far as they are empty."""
        for folder in self.made:
            try:
                os.rmdir(folder)
            except OSError:
                pass

    def check(self):
        """Raises FormatError if the name is taken by anything else than the same export."""
        if not os.path.lexists(self.path):
            return
        if not os.path.isdir(self.path) or not self.same(self.folder, self.path):
            raise files.FormatError(f"{self.path} is there already, and is not this export; give another --name or "
                                    f"folder, or move it away. Nothing was written.")
        self.there = True

    def publish(self):
        if not self.there:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            os.rename(self.folder, self.path)
