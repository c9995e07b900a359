"""The JSON files of a Hub folder, read with type checks. Whatever they hold, the answer is a value of the expected type
or a FormatError that names the file and the key."""
import json
from pathlib import Path

import files
from files import FormatError

MAX_JSON = 1 << 28      # bytes; the tokenizer.json of a vocabulary of 256 000 tokens has 33 MB


def shown(value):
    """A value for an error sentence, at most 60 characters."""
    try:
        return json.dumps(value, ensure_ascii=False)[:60]
    except (RecursionError, ValueError):    # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__} too large to show"


def compact(value, where):
    """A value as JSON text without spaces, as it is stored in a model file."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
        return text
    except (RecursionError, ValueError) as e:
        raise FormatError(f"{where}: cannot be written as JSON again ({e}).")


def parse_object(text, where):
    """JSON text -> dict"""
    try:
        value = json.loads(text)
    except ValueError as e:
        raise FormatError(f"{where}: not a JSON object ({e}).")
    except RecursionError:
        raise FormatError(f"{where}: not a JSON object that can be read; it is nested too deeply.")
    return Section(value, str(where)).values


def read_json(path, needed=True):
    """Reads a JSON object; None if the file does not exist and is not needed."""
    path = Path(path)
    if not path.exists():
        if not needed:
            return None
        raise FormatError(f"{path}: no such file; expected a folder as on the Hugging Face Hub.")
    return parse_object(read_text(path), path)


def read_text(path):
    files.check_input(path)
    with files.open_input(path) as f:
        data = f.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise FormatError(f"{path}: has more than {MAX_JSON} bytes.")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise FormatError(f"{path}: not UTF-8 ({e}).")


class Section:
    """A section of a config.json: reads values with type checks and defaults, and raises errors that name file and
    key."""

    def __init__(self, values, where):
        if not isinstance(values, dict):
            raise FormatError(f"{where}: expected a JSON object, found {type(values).__name__}.")
        self.values, self.where = values, where

    def get(self, key, kind, default=None):
        value = self.values.get(key)
        value = default if value is None else value
        good = isinstance(value, kind) if kind is not float else isinstance(value, (int, float)) and abs(value) < 1e30
        if not good or (isinstance(value, bool) and kind is not bool):
            found = "nothing" if value is None else shown(value)
            raise FormatError(f"{self.where}: {key} is {found}, expected {kind.__name__}.")
        return kind(value)

    def size(self, key, default=None, limit=1 << 24):
        value = self.get(key, int, default)
        if not 1 <= value <= limit:
            raise FormatError(f"{self.where}: {key} is {shown(value)}, expected a number from 1 to {limit}.")
        return value

    def square_size(self, key, default):
        """A size that may also be written as [n, n]."""
        value = self.values.get(key)
        if not isinstance(value, list):
            return self.size(key, default)
        if not value or any(v != value[0] for v in value):
            raise FormatError(f"{self.where}: {key} is {shown(value)}; only squares are supported.")
        return Section({key: value[0]}, self.where).size(key)

    def section(self, key):
        return Section(self.values.get(key), f"{self.where}: {key}")

    def refuse(self, key, *neutral):
        """Raises an error if a key has another value than the neutral ones: the checkpoint uses what the model
        lacks."""
        if self.values.get(key) not in (None, *neutral):
            raise FormatError(f"{self.where}: {key} = {shown(self.values[key])} is not supported; the decoder and the "
                              f"encoder here have no such thing.")
