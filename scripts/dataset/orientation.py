"""The orientation that an image file records, 1 to 8, by the same rules as lib/image_orientation.h: a tag of EXIF comes
first, then one of XMP; a damaged block counts as absent.
"""
import re
import struct
import zlib

ORIENTATION, XMP = 274, 700  # TIFF tags
MAX_PNG_TEXT = 1 << 20  # bytes of a text, when inflated
RAW_PROFILE, PNG_XMP, JPEG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp", b"http://ns.adobe.com/xap/1.0/\0"


def of_exif(exif):
    """The tag in the first directory of an EXIF block, which is a TIFF file. None: there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    if len(exif) < 14 or exif[:4] not in (b"II*\0", b"MM\0*"):
        return None
    order = "<" if exif[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at > len(exif) - 2:
        return None
    (entries,) = struct.unpack_from(order + "H", exif, at)
    for at in range(at + 2, min(at + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
        if tag == ORIENTATION:
            if count != 1 or kind not in (3, 4, 8, 9):
                return None
            (value,) = struct.unpack_from(order + ("H" if kind in (3, 8) else "I"), exif, at + 8)
            return value if 1 <= value <= 8 else 1
    return None


def of_xmp(xmp):
    found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return None if not found else int(found[1]) if 1 <= int(found[1]) <= 8 else 1


def raw_profile(text):
    """An EXIF block that ImageMagick wrote as text: a line break, "exif", its length, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def png_text(kind, content):
    """(keyword, text) of a chunk tEXt, zTXt or iTXt, as far as the orientation may be in it."""
    key, _, text = content.partition(b"\0")
    if key not in (RAW_PROFILE, PNG_XMP):
        return b"", b""
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:] if text[:1] == b"\0" else b""
    elif kind == b"iTXt":
        parts = text[2:].split(b"\0", 2)  # language, keyword in that language, text
        text = parts[2] if text[:2] in (b"\0\0", b"\1\0") and len(parts) == 3 else b""
    if packed:
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(text, MAX_PNG_TEXT)
        except zlib.error:
            text = b""
        text = text if inflate.eof else b""
    return key, text


def of_png(data):
    """What the first chunk of each kind says: eXIf, ImageMagick's text of it, XMP. None: nothing."""
    found, at = {}, 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4:at + 8], data[at + 8:at + 8 + length]
        if kind == b"eXIf":
            found.setdefault("exif", of_exif(content))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = png_text(kind, content)
            if key == RAW_PROFILE:
                found.setdefault("raw", of_exif(raw_profile(text)))
            elif key == PNG_XMP:
                found.setdefault("xmp", of_xmp(text))
        at += 12 + length
    return found.get("exif") or found.get("raw") or found.get("xmp")


def of_jpeg(data):
    """What the segments before the first scan say. None: nothing."""
    found, at = {}, 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a byte that fills
            at += 1
            continue
        length = int.from_bytes(data[at + 2:at + 4], "big")
        content = data[at + 4:at + 2 + length]
        if length < 2 or len(content) < length - 2:
            break
        if data[at + 1] == 0xE1 and content.startswith(b"Exif\0\0"):
            found.setdefault("exif", of_exif(content))
        elif data[at + 1] == 0xE1 and content.startswith(JPEG_XMP):
            found.setdefault("xmp", of_xmp(content))
        at += 2 + length
    return found.get("exif") or found.get("xmp")


def tiff_xmp(value):
    """The XMP block in the value of its tag, which Pillow gives as bytes, or as (bytes,) or (text,) where the tag has
    the type UNDEFINED or ASCII. A tag of numbers counts as absent."""
    value = value[0] if isinstance(value, tuple) and value else value
    value = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return value if isinstance(value, bytes) else b""


def of(data, kind, image):
    """The orientation of a file of this kind; image: as Pillow opened it, before it is loaded. 1 for a TIFF with the
    tag, because Pillow turns it by itself."""
    if kind in ("PNG", "JPEG"):
        return (of_png if kind == "PNG" else of_jpeg)(data) or 1
    if kind == "TIFF" and ORIENTATION not in image.tag_v2:
        return of_xmp(tiff_xmp(image.tag_v2.get(XMP))) or 1
    if kind == "WEBP":
        return of_exif(image.info.get("exif", b"")) or of_xmp(image.info.get("xmp", b"")) or 1
    return 1


def upright(image, orientation):
    from PIL import Image
    turn = Image.Transpose
    method = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
              6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}.get(orientation)
    return image if method is None else image.transpose(method)
