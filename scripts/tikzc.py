"""Reads and writes the files of tikz.c: safetensors, tokenizers, .bin datasets.

Needs numpy; encoding text also needs the package `tokenizers`. All numbers are little-endian.

Models, checkpoints: safetensors
--------------------------------
    u64 n, then n bytes of JSON, then the data of all tensors, contiguous.
The JSON is {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets": [begin, end]}}, with offsets
from the beginning of the data. The files written here have "format" = "tikz.c/1" in the metadata; JSON that is padded
with spaces so that the data begin at a multiple of 64 bytes; and tensors sorted by descending element size, so that
each one is aligned to its element size. In a quantised model, which only infer and eval read, a weight NAME is I8 or U8 and
has a tensor NAME.scales (weights.h).

Tokenizer, inside a safetensors file (a model, or a file of its own)
--------------------------------------------------------------------
    tokenizer.bytes    U8 [total]  the byte strings of all tokens, one after another, as they appear in the text
                                   (with byte-level BPE's alphabet and the metaspace already mapped back; an added
                                   token that is not in the BPE vocabulary is its own text)
    tokenizer.offsets  I32 [V+1]   token i is bytes[offsets[i] : offsets[i+1]]
    tokenizer.flags    U8 [V]      bit 0: special token, never printed; bit 1: a byte token of byte fallback
    tokenizer.json     U8 [n]      tokenizer.json of the package `tokenizers`, UTF-8, for encoding
    metadata: "tokenizer.kind" = "byte_level_bpe" or "byte_fallback_bpe", "tokenizer.end" = id of the end token,
              decimal; optional: "tokenizer.more_ends" = "7,9", ids of other tokens that end a text when they are
              generated, "tokenizer.begin" = id of the token that begins every text, "tokenizer.strip" = number
              of leading spaces of a text that are not printed, "tokenizer.before_image", "tokenizer.after_image" = ids of
              the markers around the image
Kinds: in byte_level_bpe a text is the concatenated bytes of its tokens, and invalid UTF-8 is printed as U+FFFD. In
byte_fallback_bpe tokens are text; a run of byte tokens is text if all of it is valid UTF-8, else one U+FFFD for each
byte (lib/tokenizer.h specifies both).
The fingerprint of a tokenizer is the 64-bit FNV-1a hash of the length (u32), the bytes and the flags of each token, in
the order of ids.

Datasets: .bin
--------------
    header, 72 bytes: char magic[8] = "TIKZBIN1"; u32 version = 2; u32 header_bytes = 72; u64 count;
                      u64 fingerprint of the tokenizer; u64 index_offset; u64 source_offset; u64 source_bytes;
                      u64 file_bytes; u32 crc32 (zlib) of the 64 bytes before, the source and the index; u32 zero
    records:          the bytes of a PNG or JPEG file, zeros up to a multiple of 4,
                      u32 ids[token_count] (the program and the end token, no image tokens)
    source:           UTF-8, one line that says where the data come from; zeros up to a multiple of 8
    index:            count entries of 32 bytes: u64 offset of the record in the file; u32 image_bytes;
                      u32 token_count; u32 crc32 (zlib) of the whole record; u32 zero; u64 zero
The parts have this order. Version 1, which is still read, has a header of 64 bytes, without the CRC. Files are written
under a temporary name and renamed when they are complete.
"""
import json
import math
import mmap
import os
import re
import reprlib
import struct
import zlib

from files import AtomicFile, FormatError, check_input, need, open_input

need("numpy")
import numpy as np  # noqa: E402

FORMAT = "tikz.c/1"
DATA_ALIGNMENT = 64
MAX_HEADER = 100_000_000    # bytes of a safetensors header; as in lib/safetensors.h
MAX_DIMENSIONS = 8          # of a tensor
MAX_VOCABULARY = 1 << 20    # as in config.h
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
          "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


# ---- safetensors ----

def bf16_from_float(array):
    """float array -> uint16 array of bf16 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def float_from_bf16(bits):
    """uint16 array of bf16 bits -> float32 array."""
    return (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)


def read_header(path):
    """Reads the header of a safetensors file and checks it against the size of the file. Returns ({name: (dtype,
    shape, position in the file)}, metadata)."""
    check_input(path)
    with open_input(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise FormatError(f"{path}: expected a safetensors file, found {size} bytes, too short for its header.")
        (header_bytes,) = struct.unpack("<Q", f.read(8))
        if header_bytes > min(size - 8, MAX_HEADER):
            raise FormatError(f"{path}: the safetensors header claims {header_bytes} bytes, but the file has {size}"
                              f"{', and at most 100 MB are read' if size > MAX_HEADER else ''}; it is cut off, damaged "
                              f"or no safetensors file.")
        text = f.read(header_bytes)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        texts = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, AttributeError, TypeError) as e:
        raise FormatError(f"{path}: the safetensors header is not a JSON object ({e}).")
    except RecursionError:
        raise FormatError(f"{path}: the safetensors header is nested too deeply for one.")
    if not texts:
        raise FormatError(f"{path}: a value in __metadata__ of the safetensors header is not a string.")
    start = 8 + header_bytes
    return {name: header_entry(path, name, info, start, size - start) for name, info in header.items()}, metadata


def header_entry(path, name, info, start, size):
    """One tensor of a safetensors header -> (dtype, shape, position in the file). size: bytes of all data."""
    try:
        kind, shape, (begin, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        item = np.dtype(DTYPES[kind]).itemsize
        known = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        known = known and max(shape, default=0) < 1 << 62
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise FormatError(f"{path}: tensor '{name[:80]}' has an unknown dtype or a malformed entry: "
                          f"{reprlib.repr(info)}.")
    if not (begin <= end <= size and end - begin == math.prod(shape) * item):
        raise FormatError(f"{path}: tensor '{name[:80]}' of shape {list(shape)} and type {kind} does not fit its bytes "
                          f"{reprlib.repr(begin)} to {reprlib.repr(end)} of {size}.")
    return kind, shape, start + begin


def read_safetensors(path, raw_bf16=False):
    """Returns ({name: array}, metadata). Arrays are read-only views of the mapped file; only BF16 is converted to
    float32, unless raw_bf16 is set (then it gives uint16 bits)."""
    header, metadata = read_header(path)
    with open_input(path) as f:
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, (kind, shape, offset) in header.items():
        try:
            array = np.frombuffer(data, DTYPES[kind], math.prod(shape), offset).reshape(shape)
        except (ValueError, OverflowError):  # an empty tensor may claim any other dimensions
            raise FormatError(f"{path}: tensor '{name}' has the impossible shape {list(shape)[:40]}.")
        tensors[name] = float_from_bf16(array) if kind == "BF16" and not raw_bf16 else array
    return tensors, metadata


class SafetensorsWriter:
    """Writes a file tensor by tensor, so that it need not fit into memory:

        with SafetensorsWriter(path, [(name, kind, shape), ...], metadata) as w:
            for name in w.order: w.write(data)  # in one or several calls

    In the file the tensors are sorted by descending element size, which aligns each one; equal sizes keep the order
    given.
    """

    def __init__(self, path, specs, metadata):
        sizes = {name: np.dtype(DTYPES[kind]).itemsize for name, kind, _ in specs}
        specs = sorted(specs, key=lambda spec: -sizes[spec[0]])
        self.order, self.bytes_left = [name for name, _, _ in specs], 0
        header = {"__metadata__": metadata}
        for name, kind, shape in specs:
            end = self.bytes_left + sizes[name] * math.prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [self.bytes_left, end]}
            self.bytes_left = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
        self.output = AtomicFile(path)
        with self.output.discarded_on_error():
            self.output.file.write(struct.pack("<Q", len(text)) + text)

    def write(self, data):
        self.bytes_left -= self.output.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None and self.bytes_left:
            kind, value = FormatError, FormatError(f"{self.output.path}: {self.bytes_left} bytes were not written.")
            self.output.__exit__(kind, value, trace)
            raise value
        self.output.__exit__(kind, value, trace)


def write_safetensors(path, tensors, metadata=None, dtypes=None):
    """Writes tensors {name: array}. dtypes {name: "BF16"} stores a float array as bf16 (uint16 arrays are taken as
    bf16 bits); other tensors have the type of their array. "format" is added to the metadata, whose values must be
    strings."""
    names_of = {np.dtype(v): k for k, v in DTYPES.items() if k != "BF16"}
    stored = {}
    for name, array in sorted(tensors.items()):
        array = np.asarray(array)
        kind = (dtypes or {}).get(name) or names_of.get(array.dtype)
        if kind is None:
            raise FormatError(f"{path}: tensor '{name}' has type {array.dtype}, which safetensors cannot hold.")
        if kind == "BF16":
            array = array if array.dtype == np.uint16 else bf16_from_float(array)
        stored[name] = (kind, np.ascontiguousarray(array, dtype=DTYPES[kind]).reshape(array.shape))
    specs = [(name, kind, array.shape) for name, (kind, array) in stored.items()]
    with SafetensorsWriter(path, specs, {"format": FORMAT, **(metadata or {})}) as w:
        for name in w.order:
            w.write(stored[name][1].tobytes())


# ---- tokenizers ----

def byte_of_stand_in():
    """GPT-2's byte-level alphabet, as a dict from character to byte. A byte that is printable in Latin-1 is
    represented by that character; the others by the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def with_plain_merges(json_text):
    """tokenizer.json with BPE merges written as "a b", which every version of `tokenizers` reads; versions from 0.20
    on write ["a", "b"], which earlier ones cannot read."""
    parsed = json.loads(json_text)
    merges = parsed["model"].get("merges") or []
    if not all(isinstance(m, list) and " " not in m[0] + m[1] for m in merges):
        return json_text
    parsed["model"]["merges"] = [" ".join(m) for m in merges]
    return json.dumps(parsed, ensure_ascii=False)


BYTE_TOKEN = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")  # byte tokens of the decoder ByteFallback


def refuse_decoder(what):
    raise FormatError(f"The tokenizer's decoder {what}; a ByteLevel decoder, or a sequence of Replace, ByteFallback, "
                      f"Fuse and Strip as Llama's was expected.")


def decoder_steps(decoder):
    """The decoders of a (nested) Sequence as a flat list."""
    if not isinstance(decoder, dict):
        refuse_decoder("is missing")
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", []) for step in decoder_steps(part)]


def read_decoder(decoder):
    """Reads the decoder of a tokenizer.json. Returns (kind, [(text, replacement)], whether <0x00> to <0xFF> are byte
    tokens, number of leading spaces to strip)."""
    steps = decoder_steps(decoder)
    names = [step.get("type") for step in steps]
    if names == ["ByteLevel"]:
        return "byte_level_bpe", [], False, 0
    replacements = []
    while names[:1] == ["Replace"]:
        step = steps.pop(0)
        names.pop(0)
        pattern = step.get("pattern", {}).get("String")
        if not pattern:
            refuse_decoder("replaces a regular expression")
        if max(len(pattern), len(step["content"])) > 100:
            refuse_decoder("replaces a text of more than 100 characters")
        replacements.append((pattern, step["content"]))
    known = [name for name in ("ByteFallback", "Fuse", "Strip") if name in names]
    if names != known or not names and not replacements or "Strip" in names and "Fuse" not in names:
        refuse_decoder(f"has the steps {', '.join(str(step.get('type')) for step in decoder_steps(decoder))}")
    strip = steps[-1] if "Strip" in names else {"content": " ", "start": 0, "stop": 0}
    if strip.get("content") != " " or strip.get("stop") != 0 or not 0 <= strip.get("start", -1) < 1000:
        refuse_decoder(f"strips something other than spaces at the beginning ({strip})")
    return "byte_fallback_bpe", replacements, "ByteFallback" in names, strip["start"]


def read_added_tokens(parsed):
    """{id: added token}, with the ids that the package `tokenizers` assigns."""
    vocabulary, ids, highest = parsed["model"]["vocab"], {}, -1
    for token in parsed.get("added_tokens") or []:
        text = token["content"]
        if not text or text in ids:
            continue
        beyond = highest + 1 if ids and (highest >= len(vocabulary) or not vocabulary) else len(vocabulary)
        ids[text] = vocabulary.get(text, beyond)
        highest = max(highest, ids[text])
        if token["id"] != ids[text]:
            raise FormatError(f"The tokenizer's added token '{text}' has the id {token['id']}, but `tokenizers` "
                              f"gives it {ids[text]}: an id before it is missing.")
    return {ids[token["content"]]: token for token in parsed.get("added_tokens") or [] if token["content"]}


def read_vocabulary(parsed):
    """{id: text} of the vocabulary of a BPE model, checked."""
    model = parsed.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise FormatError(f"The tokenizer is of the kind {kind}; only BPE is supported.")
    if model.get("dropout"):
        raise FormatError("The tokenizer drops merges at random (model.dropout), so that a text has no fixed ids; "
                          "set it to null.")
    texts = {i: text for text, i in model["vocab"].items()}
    wrong = next((i for i in texts if type(i) is not int or not 0 <= i < MAX_VOCABULARY), None)
    if wrong is not None:
        raise FormatError(f"The tokenizer's token '{texts[wrong][:40]}' has the id {reprlib.repr(wrong)}; expected a "
                          f"number from 0 to {MAX_VOCABULARY - 1}.")
    if len(texts) != len(model["vocab"]):
        text = next(text for text, i in model["vocab"].items() if texts[i] != text)
        raise FormatError(f"The tokenizer's tokens '{text}' and '{texts[model['vocab'][text]]}' have the same id.")
    return texts


MAX_MARKERS = 256   # before or after the image; as in lib/tokenizer.h


def metadata_numbers(path, metadata, key, limit):
    """The numbers below limit, with commas between them, that a key of the metadata holds; [] without the key."""
    if key not in metadata:
        return []
    parts = metadata[key].split(",")
    if not all(n.isascii() and n.isdigit() and len(n) < 10 and int(n) < limit for n in parts):
        raise FormatError(f"{path}: '{key}' is '{metadata[key][:40]}'; expected a number from 0 to {limit - 1}.")
    if len(parts) > MAX_MARKERS:
        raise FormatError(f"{path}: '{key}' has {len(parts)} numbers; expected at most {MAX_MARKERS}.")
    return [int(n) for n in parts]


class Tokenizer:
    """Token strings, flags and end token; encodes text if the package `tokenizers` is installed."""

    def __init__(self, tokens, special, end, json_text, kind="byte_level_bpe", byte_tokens=(), begin=None, strip=0):
        self.tokens = tokens                   # list of bytes
        self.special = special                 # list of bool
        self.end = end
        self.json_text = json_text
        self.kind = kind
        self.byte_tokens = set(byte_tokens)    # ids of the byte tokens of byte fallback
        self.begin = begin                     # id of the token that begins every text, or None
        self.strip = strip                     # number of leading spaces of a text that are not printed
        self.more_ends = []                    # ids of other tokens that end a generated text
        self.before_image, self.after_image = [], []    # ids of the markers around the image
        self.task = None                       # "formula" or "tikz": what the texts are; None: tikz
        self._encoder = None

    @classmethod
    def from_json(cls, json_text, end_token="</s>", size=None, begin_token=None):
        """Makes a tokenizer from the text of a tokenizer.json: BPE with a byte-level or a byte fallback decoder;
        other kinds raise FormatError. size: vocabulary size (default: that of the file)."""
        try:
            parsed = json.loads(json_text)
        except (ValueError, RecursionError) as e:
            raise FormatError(f"The tokenizer is not JSON ({e}).")
        try:
            return cls.from_parsed(parsed, json_text, end_token, size, begin_token)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as e:
            raise FormatError(f"The tokenizer's JSON does not have the form of a tokenizer.json "
                              f"({type(e).__name__}: {str(e)[:200]}).")

    @classmethod
    def from_parsed(cls, parsed, json_text, end_token, size, begin_token):
        """The same from the parsed JSON, which may have any form."""
        texts = read_vocabulary(parsed)
        kind, replacements, has_bytes, strip = read_decoder(parsed.get("decoder"))
        added = read_added_tokens(parsed)
        texts.update({i: token["content"] for i, token in added.items()})
        ids = {text: i for i, text in texts.items()}
        count = 1 + max(texts, default=-1)
        size = size or count
        if count > size:
            raise FormatError(f"The tokenizer has ids up to {count - 1}, expected fewer than {size}.")
        for text in filter(None, (end_token, begin_token)):
            if text not in ids:
                raise FormatError(f"The tokenizer has no token '{text}' to begin or end a text with.")
        alphabet, vocabulary, byte_tokens = byte_of_stand_in(), parsed["model"]["vocab"], set()
        tokens, special = [b""] * size, [True] * size     # ids without a token are special, so never printed
        for i, text in texts.items():
            special[i] = i in added and bool(added[i]["special"])
            for pattern, replacement in replacements:
                text = text.replace(pattern, replacement)
            if has_bytes and BYTE_TOKEN.fullmatch(text):
                tokens[i] = bytes([int(text[3:5], 16)])
                byte_tokens.add(i)
            elif kind == "byte_level_bpe" and text in vocabulary and all(c in alphabet for c in text):
                tokens[i] = bytes(alphabet[c] for c in text)
            else:
                tokens[i] = text.encode()
        begin = ids[begin_token] if begin_token else None
        return cls(tokens, special, ids[end_token], json_text, kind, byte_tokens, begin, strip)

    @classmethod
    def load(cls, path):
        """Loads the tokenizer of a safetensors file."""
        tensors, metadata = read_safetensors(path, raw_bf16=True)  # views, so the weights are not read
        kinds = {"bytes": np.uint8, "offsets": np.int32, "flags": np.uint8, "json": np.uint8}
        missing = [n for n in kinds if f"tokenizer.{n}" not in tensors]
        missing += [n for n in ("end", "kind") if f"tokenizer.{n}" not in metadata]
        if missing:
            raise FormatError(f"{path}: no tokenizer inside; 'tokenizer.{missing[0]}' is missing.")
        for name, kind in kinds.items():
            array = tensors[f"tokenizer.{name}"]
            if array.dtype != kind or array.ndim != 1:
                raise FormatError(f"{path}: 'tokenizer.{name}' is {array.dtype} with {array.ndim} dimensions; expected "
                                  f"{np.dtype(kind)} with one.")
        blob, offsets = tensors["tokenizer.bytes"].tobytes(), tensors["tokenizer.offsets"]
        flags, json_text = tensors["tokenizer.flags"], tensors["tokenizer.json"].tobytes()
        if (len(offsets) != len(flags) + 1 or offsets[0] != 0 or offsets[-1] != len(blob)
                or (offsets[1:] < offsets[:-1]).any()):
            raise FormatError(f"{path}: 'tokenizer.offsets' does not divide the {len(blob)} bytes of the tokens.")
        tokens = [blob[a:b] for a, b in zip(offsets[:-1], offsets[1:])]
        kind = metadata["tokenizer.kind"]
        if kind not in ("byte_level_bpe", "byte_fallback_bpe"):
            raise FormatError(f"{path}: the tokenizer is of the kind '{kind}'; expected byte_level_bpe or "
                              f"byte_fallback_bpe.")
        try:
            json_text = json_text.decode()
        except UnicodeDecodeError as e:
            raise FormatError(f"{path}: 'tokenizer.json' is not UTF-8 ({e}).")
        numbers = {name: metadata_numbers(path, metadata, f"tokenizer.{name}", 1000 if name == "strip" else len(tokens))
                   for name in ("end", "more_ends", "begin", "strip", "before_image", "after_image")}
        if any(len(numbers[name]) > 1 for name in ("end", "begin", "strip")):
            raise FormatError(f"{path}: one of 'tokenizer.end', 'tokenizer.begin' and 'tokenizer.strip' has a comma; "
                              f"expected one number.")
        tokenizer = cls(tokens, [bool(f & 1) for f in flags], numbers["end"][0], json_text, kind,
                        np.flatnonzero(flags & 2).tolist(), next(iter(numbers["begin"]), None), sum(numbers["strip"]))
        for name in ("more_ends", "before_image", "after_image"):
            setattr(tokenizer, name, numbers[name])
        tokenizer.task = metadata.get("tokenizer.task")
        if tokenizer.task not in (None, "tikz", "formula"):
            raise FormatError(f"{path}: 'tokenizer.task' is '{tokenizer.task[:40]}'; expected tikz or formula.")
        return tokenizer

    def flags(self):
        """tokenizer.flags, uint8 [V] (see the head of this file)."""
        flags = np.array(self.special, np.uint8)
        flags[list(self.byte_tokens)] |= 2
        return flags

    def tensors(self):
        offsets = np.cumsum([0] + [len(t) for t in self.tokens]).astype(np.int32)
        return {"tokenizer.bytes": np.frombuffer(b"".join(self.tokens), np.uint8),
                "tokenizer.offsets": offsets,
                "tokenizer.flags": self.flags(),
                "tokenizer.json": np.frombuffer(self.json_text.encode(), np.uint8)}

    def metadata(self):
        metadata = {"tokenizer.kind": self.kind, "tokenizer.end": str(self.end)}
        if self.more_ends:
            metadata["tokenizer.more_ends"] = ",".join(map(str, self.more_ends))
        if self.begin is not None:
            metadata["tokenizer.begin"] = str(self.begin)
        if self.strip:
            metadata["tokenizer.strip"] = str(self.strip)
        if self.task:
            metadata["tokenizer.task"] = self.task
        for name in ("before_image", "after_image"):
            if getattr(self, name):
                metadata[f"tokenizer.{name}"] = ",".join(map(str, getattr(self, name)))
        return metadata

    def save(self, path):
        write_safetensors(path, self.tensors(), self.metadata())

    def fingerprint(self):
        h = 0xCBF29CE484222325
        for token, flags in zip(self.tokens, self.flags().tolist()):
            for b in struct.pack("<I", len(token)) + token + bytes([flags]):
                h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        return h

    def encode(self, text):
        """The ids of a text, with the end token."""
        try:
            if self._encoder is None:
                import tokenizers
                self._encoder = tokenizers.Tokenizer.from_str(with_plain_merges(self.json_text))
                self._encoder.no_truncation()   # some files contain such settings of their last user
                self._encoder.no_padding()
            return self._encoder.encode(text, add_special_tokens=False).ids + [self.end]
        except ImportError:
            raise
        except BaseException as e:  # the package raises nothing more specific
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":  # a failure of its Rust code
                raise
            raise FormatError(f"The package tokenizers cannot use the tokenizer ({str(e)[:200]}).")

    def decode(self, ids):
        """Decodes ids to text, without special tokens, as `tokenizers` and lib/tokenizer.h do."""
        parts, run = [], b""
        for i in (*ids, None):
            if i is not None and (i >= len(self.tokens) or self.special[i]):
                continue
            if i in self.byte_tokens:
                run += self.tokens[i]
                continue
            try:
                parts.append(run.decode().encode())
            except UnicodeDecodeError:
                parts.append("\ufffd".encode() * len(run))
            run = b""
            parts.append(b"" if i is None else self.tokens[i])
        text = b"".join(parts).decode("utf-8", "replace")
        return text[min(self.strip, len(text) - len(text.lstrip(" "))):]


# ---- datasets ----

HEADER = struct.Struct("<8sIIQQQQQQ")  # all of version 1
HEADER_CRC = struct.Struct("<II")  # what version 2 adds
HEADER_BYTES = {1: HEADER.size, 2: HEADER.size + HEADER_CRC.size}
ENTRY = struct.Struct("<QIIIIQ")
MAGIC = b"TIKZBIN1"
MAX_TOKENS = 1 << 20  # of a sample; the limit of lib/dataset.h


class DatasetWriter:
    """Writes a .bin file: with DatasetWriter(path, tokenizer, source) as w: w.add(image_bytes, ids)

    fingerprint: that of the tokenizer, if it is known already (computing it takes a second for a large vocabulary).
    temporary: see AtomicFile."""

    def __init__(self, path, tokenizer, source, fingerprint=None, temporary=None):
        self.output = AtomicFile(path, temporary)
        self.file = self.output.file
        self.vocabulary = len(tokenizer.tokens)
        self.fingerprint = tokenizer.fingerprint() if fingerprint is None else fingerprint
        self.source = " ".join(source.split()).encode("utf-8", "replace")
        self.index, self.offset = bytearray(), HEADER_BYTES[2]
        self.file.write(b"\0" * self.offset)

    @property
    def count(self):
        return len(self.index) // ENTRY.size

    def add(self, image, ids):
        ids = np.asarray(ids, dtype="<u4")
        if not image or not 1 <= len(ids) <= MAX_TOKENS:
            raise FormatError(f"{self.output.path}: sample {self.count} has {len(image)} bytes of image and "
                              f"{len(ids)} tokens; expected an image and 1 to {MAX_TOKENS} tokens.")
        if int(ids.max()) >= self.vocabulary:
            raise FormatError(f"{self.output.path}: token id {ids.max()} is outside the vocabulary of "
                              f"{self.vocabulary}.")
        record = image + b"\0" * (-len(image) % 4) + ids.tobytes()
        self.index += ENTRY.pack(self.offset, len(image), len(ids), zlib.crc32(record), 0, 0)
        self.file.write(record)
        self.offset += len(record)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            with self.output.discarded_on_error():
                self.write_end()
        self.output.__exit__(kind, value, trace)

    def write_end(self):
        """Writes what follows the records, then the header."""
        padding = -(self.offset + len(self.source)) % 8
        index_offset = self.offset + len(self.source) + padding
        self.file.write(self.source + b"\0" * padding + self.index)
        self.file.seek(0)
        header = HEADER.pack(MAGIC, 2, HEADER_BYTES[2], self.count, self.fingerprint, index_offset, self.offset,
                             len(self.source), index_offset + len(self.index))
        self.file.write(header + HEADER_CRC.pack(zlib.crc32(header + self.source + self.index), 0))


class Dataset:
    """A .bin file: len(d), d[i] -> (image bytes, uint32 ids), d.source, d.fingerprint. Everything read is checked."""

    def __init__(self, path):
        self.path = str(path)
        check_input(path)
        with open_input(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size < HEADER_BYTES[2]:
                raise FormatError(f"{path}: expected a dataset of at least {HEADER_BYTES[2]} bytes, found {size}.")
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        (magic, version, header_bytes, self.count, self.fingerprint, self.index_offset, source_offset, source_bytes,
         file_bytes) = HEADER.unpack_from(self.data)
        if magic != MAGIC or header_bytes != HEADER_BYTES.get(version):
            raise FormatError(f"{path}: not a tikz.c dataset of version 1 or 2; convert the data again.")
        if (file_bytes != size or self.index_offset > size or source_offset > size
                or source_bytes > size - source_offset or self.count > (size - self.index_offset) // ENTRY.size):
            raise FormatError(f"{path}: the header describes {file_bytes} bytes and {self.count} samples, which does "
                              f"not fit the file of {size} bytes; the file is cut off or damaged.")
        source = self.data[source_offset:source_offset + source_bytes]
        self.check_index(version, source, source_offset)
        self.source = source.decode("utf-8", "replace")

    def check_index(self, version, source, source_offset):
        end = self.index_offset + self.count * ENTRY.size
        if version == 1:
            whole = end in (len(self.data), source_offset)
        else:
            checked = self.data[:HEADER.size] + source + self.data[self.index_offset:end]
            whole = HEADER_CRC.unpack_from(self.data, HEADER.size) == (zlib.crc32(checked), 0)
        if not whole:
            raise FormatError(f"{self.path}: the header or the index is damaged; copy the file again.")

    def __len__(self):
        return self.count

    def close(self):
        self.data.close()

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(f"{self.path}: sample {i} of {self.count}")
        offset, image_bytes, token_count, crc, _, _ = ENTRY.unpack_from(self.data, self.index_offset + i * ENTRY.size)
        padded = image_bytes + -image_bytes % 4
        record = self.data[offset:offset + padded + 4 * token_count]
        if len(record) != padded + 4 * token_count or zlib.crc32(record) != crc:
            raise FormatError(f"{self.path}: record {i} at byte {offset} is damaged (CRC-32 differs).")
        return record[:image_bytes], np.frombuffer(record, "<u4", token_count, padded)
