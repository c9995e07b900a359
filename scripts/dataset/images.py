"""Checks images and converts them for a dataset.

PNG and JPEG files that pass the checks below are stored unchanged, because every build of the C reader (lib/image.h)
decodes them, and turns them upright by the same tags as orientation() here.
Everything else that Pillow can read (WebP, GIF, BMP, TIFF; PNG and JPEG variants that the reader rejects or would
decode differently) is converted to an 8-bit PNG. The size of an image is read from its header and checked before
anything is decoded, and PNG data are inflated in pieces against the size in the header, so that a malicious file
takes no more memory than the largest image allowed.
"""
import io
import itertools
import struct
import warnings
import zlib

import files
from dataset import orientation

MAX_SIDE, MAX_PIXELS = 20000, 100_000_000  # the limits of lib/image_pixels.h
MAX_BYTES = 1 << 28  # of an image file; the reader has no such limit, but no image needs more
MAX_SCANS, MAX_SCANNED = 500, 2_000_000_000  # of a JPEG, and pixels in all of them; the limits of lib/jpeg.h
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
MAX_PNG_CHUNKS = 1 << 17
PNG_PIECE = 1 << 16  # bytes inflated at a time, and most bytes that may follow the pixels
INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 262, 322, 323  # TIFF tags


class ImageError(Exception):
    """The image cannot be used. reason: the class of the error, for counting; detail: the error."""

    def __init__(self, reason, detail=""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Unsupported(Exception):
    """The C reader does not decode this PNG or JPEG file, or not as Pillow does; Pillow may decode it."""


def kind_of(data):
    if files.is_lfs_pointer(data):
        raise ImageError("the image is a Git LFS pointer, not the data; run git lfs pull")
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    raise ImageError("the image has an unknown format", f"it begins with {data[:8]!r}")


def check_size(width, height):
    if width < 1 or height < 1:
        raise ImageError("the image is damaged", f"its header says {width} x {height} pixels")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"{MAX_SIDE} pixels a side or {MAX_PIXELS // 10**6} million in all"
        raise ImageError(f"the image has more than {limit}", f"{width} x {height}")


# ---- PNG: the format is ISO/IEC 15948, "Portable Network Graphics" ----

def png_chunks(data):
    """Yields (type, content) of the critical chunks and tRNS, up to IEND. Verifies the CRC of every chunk."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if length > len(data) - at - 12:
            break
        kind, content = data[at + 4:at + 8], data[at + 8:at + 8 + length]
        if zlib.crc32(content, zlib.crc32(kind)) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise ImageError("the image is damaged", f"the CRC of the PNG chunk at byte {at} is wrong")
        if not kind.isalpha():
            raise ImageError("the image is damaged", f"the PNG chunk at byte {at} has no valid name")
        if not kind[0] & 32 or kind == b"tRNS":
            yield kind, content
        if kind == b"IEND":
            return
        at += 12 + length
    raise ImageError("the image is damaged", "the PNG data end before the last chunk")


def png_size(data):
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError("the image is damaged", "the PNG file does not begin with its header")
    return struct.unpack_from(">II", data, 16)


def png_rows(width, height, depth, colour, interlace):
    """Yields (bytes of a row with its filter byte, number of rows) of the inflated data, for each interlacing pass."""
    bits = depth * PNG_CHANNELS[colour]
    for x, y, step_x, step_y in INTERLACED if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            yield 1 + (columns * bits + 7) // 8, rows


def check_png_data(chunks, shape):
    """Inflates the IDAT chunks in pieces, and checks the filter byte of each row and the number of rows."""
    inflate, rows = zlib.decompressobj(), png_rows(*shape)
    length, left = next(rows)
    inflated = at = 0  # number of bytes inflated; position of the next row
    for chunk in chunks:
        while chunk and not inflate.eof:
            try:
                piece = inflate.decompress(chunk, PNG_PIECE)
            except zlib.error as e:
                raise Unsupported(f"the PNG data cannot be inflated ({e})")
            chunk = inflate.unconsumed_tail
            while left and at < inflated + len(piece):
                if piece[at - inflated] > 4:
                    raise ImageError("the image is damaged", "a row of the PNG data has an unknown filter")
                at, left = at + length, left - 1
                if not left:
                    length, left = next(rows, (0, 0))
            inflated += len(piece)
            if not left and inflated > at + PNG_PIECE:
                raise Unsupported("the PNG data inflate to more than the pixels")
    if left or inflated < at or not inflate.eof:
        raise ImageError("the image is damaged", "the PNG data hold fewer pixels than the header says")


def check_png_parts(chunks, depth, colour, method, filtering, interlace):
    """Checks that the reader decodes these chunks [(type, content)]: 1 to 16 bits per channel, palettes and tRNS."""
    names = [kind for kind, _ in chunks]
    if (depth not in (1, 2, 4, 8, 16) or colour not in PNG_CHANNELS or (colour == 3 and depth == 16) or method
            or filtering or interlace > 1 or names.count(b"IHDR") != 1):
        raise ImageError("the image is damaged", "the PNG header has impossible values")
    unknown = [kind for kind in names if not kind[0] & 32 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")]
    if unknown:
        raise Unsupported(f"the PNG has a chunk {unknown[0]!r}")
    if b"IDAT" not in names:
        raise ImageError("the image is damaged", "the PNG has no data")
    palette = b""
    for number, (kind, content) in enumerate(chunks):
        if kind == b"PLTE":
            if palette or not content or len(content) % 3 or len(content) > 768:
                raise Unsupported("the palette of the PNG has an odd size, or there are several")
            palette = content
        elif kind == b"tRNS":
            valid = len(content) <= len(palette) // 3 if colour == 3 else len(content) == 2 * PNG_CHANNELS[colour]
            if colour in (4, 6) or not valid or b"IDAT" in names[:number]:
                raise Unsupported("the PNG has a malformed tRNS chunk")
    if colour == 3:
        if not palette or b"PLTE" in names[names.index(b"IDAT"):]:
            raise Unsupported("the PNG has no palette before its data")
        if len(palette) // 3 < 1 << depth:
            check_palette(chunks, len(palette) // 3)


def check_palette(chunks, colours):
    """Checks that no pixel has an index beyond the palette; its colour would be undefined in the reader."""
    data = PNG_SIGNATURE + b"".join(struct.pack(">I", len(content)) + kind + content +
                                    struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
                                    for kind, content in chunks if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"))
    if open_image(data, "PNG").getextrema()[1] >= colours:
        raise Unsupported("the PNG uses colours beyond its palette")


def check_png(data):
    chunks = list(itertools.islice(png_chunks(data), MAX_PNG_CHUNKS))
    if len(chunks) == MAX_PNG_CHUNKS or len(chunks[0][1]) != 13:
        raise ImageError("the image is damaged", "the PNG header has a wrong length, or too many chunks follow")
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    check_png_parts(chunks, depth, colour, method, filtering, interlace)
    shape = width, height, depth, colour, interlace
    check_png_data((content for kind, content in chunks if kind == b"IDAT"), shape)


# ---- JPEG: ITU-T T.81 ----

def jpeg_segments(data):
    """Yields (marker, content) of the segments up to and including the header of the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            break
        yield marker, data[at + 4:at + 2 + length]
        if marker == 0xDA:
            return
        at += 2 + length
    raise ImageError("the image is damaged", "the JPEG data end before the image begins")


def jpeg_frame(data):
    """(marker, content) of the frame header: precision, height, width, the components."""
    for marker, content in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(content) < 6 or len(content) != 6 + 3 * content[5]:
                break
            return marker, content
    raise ImageError("the image is damaged", "the JPEG data have no frame header")


def jpeg_size(data):
    height, width = struct.unpack_from(">HH", jpeg_frame(data)[1], 1)
    return width, height


def check_scans(data):
    """Limits the number of scans, because each costs a pass over all pixels, however short its data are."""
    width, height = jpeg_size(data)
    arithmetic = jpeg_frame(data)[0] >= 0xC9
    most = min(MAX_SCANS, MAX_SCANNED // (8 if arithmetic else 1) // (width * height))
    before = sum(4 + len(content) for _, content in jpeg_segments(data))  # a preview in them has its own scans
    if 1 + data.count(b"\xff\xda", before) > most:
        raise ImageError("the image is damaged", f"the JPEG data have more than {most} scans")


def check_jpeg(data):
    """Checks that the reader decodes a JPEG file. Pillow uses the same library, so what Pillow decodes the reader
    decodes to the same pixels, except kinds that not every build of the library supports (arithmetic coding,
    lossless)."""
    marker, frame = jpeg_frame(data)
    if marker not in (0xC0, 0xC1, 0xC2) or frame[0] != 8 or frame[5] not in (1, 3, 4):
        raise Unsupported(f"the JPEG is of kind {marker:02x} with {frame[0]} bits and {frame[5]} components")
    image = open_image(data, "JPEG", load=False)
    image.draft(None, (-(-image.width // 8), -(-image.height // 8)))  # an eighth of the size: 1/64 of the memory
    load(image)


# ---- Pillow ----

def guarded(action):
    """Runs action() and turns any exception into an ImageError: Pillow may raise anything on a damaged file."""
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also limits a GIF frame that is larger than its screen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return action()
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("the image needs more memory than there is")
        except Exception as e:
            raise ImageError("the image is damaged", f"{type(e).__name__}: {e}")


def load(image):
    guarded(image.load)
    return image


def open_image(data, kind, load=True):
    from PIL import Image
    image = guarded(lambda: Image.open(io.BytesIO(data), formats=(kind,)))
    check_size(*image.size)
    if kind == "TIFF" and TILE_WIDTH in image.tag_v2:  # a tile is decoded as a whole, however small the image is
        guarded(lambda: check_size(image.tag_v2[TILE_WIDTH], image.tag_v2[TILE_HEIGHT]))
    if load:
        guarded(image.load)
    return image


def eight_bits(image, kind, photometric=None):
    """Converts an image to mode L, RGB or RGBA. Of 16 bits the upper 8 are kept, as in the reader. photometric: the
    tag of a TIFF."""
    import numpy as np
    from PIL import Image
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and kind == "PNG"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        inverted = kind == "TIFF" and photometric == 0  # 0 is white; Pillow heeds that only up to 8 bits
        return Image.fromarray(255 - high if inverted else high)
    if mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        return image.convert("RGBA")
    if mode in ("1", "L"):
        return image.convert("L")
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise ImageError("the image has a pixel format that is not supported", f"{kind} of mode {mode}")


def shrink(image, max_side):
    """Scales an image down so that no side is longer than max_side. RGBA is composited over white first, so that the
    colours of transparent pixels do not bleed into visible ones."""
    from PIL import Image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = max_side / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def as_png(data, kind, max_side):
    """The image as an 8-bit PNG, upright, no side longer than max_side pixels (0: no limit)."""
    def convert():
        image = open_image(data, kind, load=False)
        photometric = image.tag_v2.get(PHOTOMETRIC) if kind == "TIFF" else None
        turn = orientation.of(data, kind, image)
        image = eight_bits(orientation.upright(load(image), turn), kind, photometric)
        if max_side and max(image.size) > max_side:
            image = shrink(image, max_side)
        image.info = {}  # no metadata
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()
    return guarded(convert)


def prepare(data, max_side=0):
    """Returns (bytes to store, a note of what was changed or None). max_side: longest side in pixels, 0: the limit of
    the reader. Raises ImageError."""
    kind = kind_of(data)
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image has more than {MAX_BYTES >> 20} MB", f"{len(data)} bytes")
    size = {"PNG": png_size, "JPEG": jpeg_size}.get(kind)
    size = size(data) if size else open_image(data, kind, load=False).size
    check_size(*size)
    if kind == "JPEG":
        check_scans(data)
    large = max_side and max(size) > max_side
    if kind in ("PNG", "JPEG") and not large:
        try:
            (check_png if kind == "PNG" else check_jpeg)(data)
            return data, None
        except Unsupported as e:
            return as_png(data, kind, max_side), f"the image is stored again as PNG: {e}"
    done = f"scaled down to {max_side} pixels" if large else f"stored again as PNG, not {kind}"
    return as_png(data, kind, max_side), f"the image is {done}"
