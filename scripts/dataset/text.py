"""Code as text: UTF-8 without a byte order mark, lines that end with \\n.

TeX reads \\r\\n and \\r as the end of a line, too, and ignores a byte order mark, so the image does not change; but a
model would have to learn tokens that mean nothing.
"""
import codecs

import files

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # UTF-32's begins as UTF-16's
LINE_ENDS = "the lines of the code ended with \\r\\n or \\r, they end with \\n now"


class TextError(Exception):
    """The bytes are not code. Arguments: reason (the class of the error, for counting), detail."""


def byte_order_mark(data):
    """(the mark at the beginning, the encoding it stands for), or (b"", "utf-8")."""
    return next(((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), (b"", "utf-8"))


def decode(data, fallback=None):
    """Returns (text, [notes of what was changed]). fallback: the encoding of what is not UTF-8. Raises TextError."""
    if files.is_lfs_pointer(data):
        raise TextError("the code is a Git LFS pointer, not the data; run git lfs pull", "")
    (mark, encoding), notes = byte_order_mark(data), []
    if mark:
        notes.append("the byte order mark before the code is left out" if encoding == "utf-8" else
                     f"the code was {encoding.upper()}, it is UTF-8 now")
    content = data if encoding != "utf-8" else data[len(mark):]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        if not fallback or encoding != "utf-8":
            raise TextError(f"the code is not {encoding.upper()}", f"byte {e.start} is {e.object[e.start]:#04x}")
        text = content.decode(fallback)
        notes.append(f"the formula is not UTF-8, it was read as {fallback.title()}")
    if "\0" in text:
        raise TextError("the code contains NUL characters, as UTF-16 or a binary file does",
                        f"the first is character {text.index(chr(0))}")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        notes.append(LINE_ENDS)
    return text, notes
