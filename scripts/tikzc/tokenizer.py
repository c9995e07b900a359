"""Tokenizers, inside a safetensors file (a model, or a file of its own).

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
"""
import json
import struct

import numpy as np

from files import FormatError
from .model_file import read_safetensors, write_safetensors
from .tokenizer_json import (BYTE_TOKEN, byte_of_stand_in, read_added_tokens, read_decoder, read_vocabulary,
                             with_plain_merges)

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
