"""Reads and writes the files of tikz.c: models (model_file.py), tokenizers (tokenizer.py, tokenizer_json.py) and .bin data sets
(dataset_file.py), each described at the head of its file.

Needs numpy; encoding text also needs the package `tokenizers`. All numbers are little-endian.
"""
from files import AtomicFile, FormatError, check_input, need, open_input  # noqa: F401

need("numpy")
from .dataset_file import ENTRY, HEADER_BYTES, MAX_TOKENS, Dataset, DatasetWriter  # noqa: E402, F401
from .model_file import (  # noqa: E402, F401
    DTYPES, FORMAT, SafetensorsWriter, bf16_from_float, float_from_bf16, read_header, read_safetensors, write_safetensors)
from .tokenizer import MAX_MARKERS, Tokenizer  # noqa: E402, F401
from .tokenizer_json import MAX_VOCABULARY, byte_of_stand_in, with_plain_merges  # noqa: E402, F401
