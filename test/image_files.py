"""Makes small image files of every kind that lib/image.h reads, for test/compare_images.py: WebP, GIF, BMP and TIFF, and
PNG and JPEG files that record an orientation. Pillow writes what it can; the rest is put together here.
"""
import io
import struct
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

XMP = ('<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
       '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}</rdf:RDF></x:xmpmeta>')
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(image, orientation):
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def exif_block(orientation, kind=3, order=">"):
    """A TIFF block whose only tag is the orientation; kind: 3 SHORT, 4 LONG."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    return ((b"MM\0*" if order == ">" else b"II*\0") +
            struct.pack(order + "IHHHI", 8, 1, 274, kind, 1) + value + bytes(4))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png, kind, data, last=False):
    """The PNG file with one more chunk, before its data or after them."""
    at = png.rindex(b"IEND") - 4 if last else png.index(b"IDAT") - 4
    return png[:at] + chunk(kind, data) + png[at:]


def raw_profile(exif):
    text = (b"Exif\0\0" + exif).hex()
    lines = "\n".join(text[i:i + 72] for i in range(0, len(text), 72))
    return f"\nexif\n{len(text) // 2:8}\n{lines}\n".encode()


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(samples, bits, colour, interlaced, chunks=b""):
    """A PNG file of samples [height, width, channels]; chunks: what comes between the header and the data."""
    height, width, channels = samples.shape
    rows = b""
    for x, y, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[y::down, x::across]
        for row in part.reshape(len(part), -1) if part.size else ():
            if bits == 16:
                packed = row.astype(">u2").tobytes()
            else:
                text = "".join(f"{v:0{bits}b}" for v in row)
                text += "0" * (-len(text) % 8)
                packed = int(text, 2).to_bytes(len(text) // 8, "big")
            rows += b"\0" + packed
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows)) +
            chunk(b"IEND", b""))


def make_png():
    """Every colour type, depth and kind of transparency, interlaced or not; what must be seen is worked out here."""
    rng = np.random.default_rng(505)
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for bits in depths:
            for size in ((19, 13), (3, 2), (1, 9)):
                samples = rng.integers(0, 1 << bits, (*size[::-1], {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]))
                palette = rng.integers(0, 256, (1 << min(bits, 8), 4), dtype=np.uint8)
                plain = chunk(b"PLTE", palette[:, :3].tobytes()) if colour == 3 else b""
                key = samples[size[1] // 2, size[0] // 2]
                for transparent in (False, True) if colour in (0, 2, 3) else (False,):
                    eight = samples >> 8 if bits == 16 else samples * 255 // ((1 << bits) - 1)
                    eight, chunks = eight.astype(np.uint8), plain
                    if colour in (0, 4):
                        eight = np.concatenate([eight[:, :, :1]] * 3 + [eight[:, :, 1:]], 2)
                    if colour == 3:
                        eight = palette[samples[:, :, 0]][:, :, :4 if transparent else 3]
                    if transparent and colour == 3:
                        chunks += chunk(b"tRNS", palette[:, 3].tobytes())
                    elif transparent:
                        chunks += chunk(b"tRNS", key.astype(">u2").tobytes())
                        alpha = np.where((samples == key).all(2, keepdims=True), 0, 255).astype(np.uint8)
                        eight = np.concatenate([eight, alpha], 2)
                    expected = Image.fromarray(eight, "RGBA" if eight.shape[2] == 4 else "RGB")
                    for interlaced in (0, 1):
                        name = f"png-{colour}-{bits}-{size[0]}-{transparent}-{interlaced}.png"
                        yield name, png(samples, bits, colour, interlaced, chunks), expected


def make_turned(drawing):
    """PNG and JPEG files that say in each way how they are turned."""
    image = drawing("RGB", (61, 37), 500)
    plain = saved(image, "PNG")
    for orientation in range(0, 10):
        xmp = XMP.format(f'tiff:Orientation="{orientation}"/>').encode()
        element = XMP.format(f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>").encode()
        expected = turned(image, orientation)
        files = {
            "exif": with_chunk(plain, b"eXIf", exif_block(orientation)),
            "exif_long_after": with_chunk(plain, b"eXIf", exif_block(orientation, 4, "<"), last=True),
            "raw_packed": with_chunk(plain, b"zTXt", b"Raw profile type exif\0\0" +
                                     zlib.compress(raw_profile(exif_block(orientation)))),
            "raw": with_chunk(plain, b"tEXt", b"Raw profile type exif\0" + raw_profile(exif_block(orientation))),
            "xmp": with_chunk(plain, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
            "xmp_packed": with_chunk(plain, b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(element)),
        }
        for name, data in files.items():
            yield f"turned_{name}{orientation}.png", data, expected
        both = with_chunk(files["xmp"], b"eXIf", exif_block(3))  # EXIF comes first
        yield f"turned_both{orientation}.png", both, turned(image, 3)
        jpeg = saved(image, "JPEG", quality=95, subsampling=0)
        decoded = Image.open(io.BytesIO(jpeg)).convert("RGB")
        for name, packet in (("attribute", xmp), ("element", element)):
            content = b"http://ns.adobe.com/xap/1.0/\0" + packet
            segment = b"\xff\xff\xe1" + struct.pack(">H", len(content) + 2) + content  # a byte that fills before it
            yield f"turned_xmp_{name}{orientation}.jpg", jpeg[:2] + segment + jpeg[2:], turned(decoded, orientation)
    yield "turned_damaged.png", with_chunk(plain, b"eXIf", b"MM\0*\0\0\0\xff\0\1" + bytes(9)), image


def make_webp(drawing, noise):
    for name, options in (("lossy", {"quality": 80}), ("lossless", {"lossless": True})):
        for mode in ("RGB", "RGBA"):
            for i, size in enumerate([(50, 31), (1, 1), (17, 64)]):
                yield f"{name}{mode}{i}.webp", saved(drawing(mode, size, 510 + i), "WEBP", **options), None
            yield f"{name}{mode}-noise.webp", saved(noise(mode, (33, 29), 1), "WEBP", **options), None
            for orientation in (1, 3, 6, 8):
                data = saved(drawing(mode, (40, 22), 513), "WEBP", exif=exif_block(orientation), **options)
                yield f"{name}{mode}-turned{orientation}.webp", data, None
    xmp = XMP.format('tiff:Orientation="6"/>').encode()
    plain = drawing("RGB", (40, 22), 514)
    yield "xmp.webp", saved(plain, "WEBP", lossless=True, xmp=xmp), turned(plain, 6)
    frames = [drawing("RGBA", (45, 27), 515 + i) for i in range(3)]
    yield "animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), None
    opaque = [f.convert("RGB") for f in frames]
    yield "animated_opaque.webp", saved(opaque[0], "WEBP", save_all=True, append_images=opaque[1:]), None


def gif(screen, frame, indices, palette=None, local=None, transparent=None, interlaced=False):
    """A GIF89a file. screen: (width, height); frame: (left, top, width, height); indices: uint8 [height, width]."""
    def table(colours):
        size = max(1, (len(colours) - 1).bit_length())
        return size - 1, b"".join(bytes(c) for c in colours) + bytes(3 * ((1 << size) - len(colours)))
    bits, colours = table(palette) if palette else (0, b"")
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, (0x80 | bits) if palette else 0, 0, 0) + colours
    if transparent is not None:
        out += b"!\xf9\4" + struct.pack("<BHBB", 1, 0, transparent, 0)
    bits, colours = table(local) if local else (0, b"")
    out += b"," + struct.pack("<HHHHB", *frame, ((0x80 | bits) if local else 0) | (0x40 if interlaced else 0)) + colours
    rows = [r for s, e in ((0, 8), (4, 8), (2, 4), (1, 2)) for r in range(s, frame[3], e)] if interlaced else slice(None)
    return out + b"\x08" + lzw(indices[rows].tobytes()) + b"\0;"


def lzw(data):
    """Codes of 9 bits, each one index, with a clear code before the table is full: valid, if long."""
    bits = count = 0
    packed = bytearray()
    for i, value in enumerate(data):
        for code in ([256] if i % 200 == 0 else []) + [value] + ([257] if i == len(data) - 1 else []):
            bits |= code << count
            count += 9
            while count >= 8:
                packed.append(bits & 255)
                bits, count = bits >> 8, count - 8
    packed.append(bits & 255)
    return b"".join(bytes([len(packed[i:i + 255])]) + packed[i:i + 255] for i in range(0, len(packed), 255))


def make_gif(drawing, noise):
    for mode in ("P", "L", "1"):
        yield f"mode{mode}.gif", saved(drawing("RGB", (44, 30), 520).convert(mode), "GIF"), None
        yield f"interlaced{mode}.gif", saved(drawing("RGB", (44, 30), 520).convert(mode), "GIF", interlace=True), None
    yield "transparent.gif", saved(drawing("P", (44, 30), 521), "GIF", transparency=3), None
    yield "rgba.gif", saved(drawing("RGBA", (44, 30), 522), "GIF"), None
    frames = [drawing("P", (44, 30), 523 + i) for i in range(3)]
    yield "animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), None
    rng = np.random.default_rng(524)
    colours = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(16)]
    others = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(16)]
    grey = [(i, i, i) for i in range(16)]
    indices = rng.integers(0, 16, (9, 21), dtype=np.uint8)
    whole, part = ((21, 9), (0, 0, 21, 9)), ((40, 25), (5, 11, 21, 9))
    for name, (screen, frame) in (("whole", whole), ("part", part), ("beyond", ((10, 15), (5, 3, 21, 9)))):
        for interlaced in (False, True):
            for transparent in (None, 0, 5):
                for kind, palettes in (("global", (colours, None)), ("local", (colours, others)),
                                       ("only_local", (None, others)), ("none", (None, None))):
                    data = gif(screen, frame, indices, *palettes, transparent, interlaced)
                    yield f"{name}-{kind}-{transparent}-{interlaced}.gif", data, None
    # Pillow takes the global palette instead of a local one that is a grey ramp
    yield "other-grey.gif", gif(*whole, indices, colours, grey), Image.fromarray(indices)


def bmp(width, height, bits, rows, compression=0, palette=b"", header=40, masks=b"", down=False):
    """A BMP file; rows: the pixel data as they are in the file."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, width, -height if down else height, 1, bits, compression, len(rows),
                           0, 0, len(palette) // 4, 0)
        info = (info + masks).ljust(header, b"\0") if header > 40 else info + masks
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + palette + rows


def packed_rows(indices, bits):
    """Rows of indices with the leftmost in the upper bits, each filled to 4 bytes."""
    out = b""
    for row in indices:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 32)
        out += int(text, 2).to_bytes(len(text) // 8, "big")
    return out


def make_bmp(drawing, noise):
    rng = np.random.default_rng(530)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"mode{mode}.bmp", saved(drawing("RGBA", (43, 30), 531).convert(mode), "BMP"), None
    for bits in (1, 4, 8):
        indices = rng.integers(0, 1 << bits, (11, 13), dtype=np.uint8)
        colours = rng.integers(0, 256, (1 << bits, 4), dtype=np.uint8)
        rows = packed_rows(indices, bits)
        yield f"palette{bits}.bmp", bmp(13, 11, bits, rows, palette=colours.tobytes()), None
        yield f"palette{bits}-down.bmp", bmp(13, 11, bits, rows, palette=colours.tobytes(), down=True), None
        yield f"palette{bits}-v5.bmp", bmp(13, 11, bits, rows, palette=colours.tobytes(), header=124), None
        yield f"palette{bits}-os2.bmp", bmp(13, 11, bits, rows, palette=colours[:, :3].tobytes(), header=12), None
    few = rng.integers(0, 256, (5, 4), dtype=np.uint8)
    yield "few.bmp", bmp(13, 11, 8, packed_rows(indices % 5, 8), palette=few.tobytes()), None
    pixels = rng.integers(0, 256, (11, 13 * 4), dtype=np.uint8)
    wide = [row.tobytes() for row in pixels]
    words = {16: b"".join(r[:26].ljust(28, b"\0") for r in wide), 24: b"".join(r[:39].ljust(40, b"\0") for r in wide),
             32: b"".join(wide)}
    for bits, rows in words.items():
        yield f"direct{bits}.bmp", bmp(13, 11, bits, rows), None
        yield f"direct{bits}-down.bmp", bmp(13, 11, bits, rows, down=True), None
    yield "cut-padding.bmp", bmp(13, 11, 24, words[24])[:-1], None
    for bits, name, masks in (
            (16, "565", (0xF800, 0x7E0, 0x1F)), (16, "555", (0x7C00, 0x3E0, 0x1F)), (24, "24", (0xFF0000, 0xFF00, 0xFF)),
            (32, "bgrx", (0xFF0000, 0xFF00, 0xFF)), (32, "xbgr", (0xFF000000, 0xFF0000, 0xFF00))):
        data = bmp(13, 11, bits, words[bits], 3, masks=struct.pack("<3I", *masks))
        yield f"fields-{name}.bmp", data, None
    for name, masks in (("abgr", (0xFF000000, 0xFF0000, 0xFF00, 0xFF)), ("rgba", (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
                        ("bgra", (0xFF0000, 0xFF00, 0xFF, 0xFF000000)), ("none", (0, 0, 0, 0))):
        for header in (56, 108, 124):
            data = bmp(13, 11, 32, words[32], 3, masks=struct.pack("<4I", *masks), header=header)
            yield f"fields-{name}-{header}.bmp", data, None
    colours = rng.integers(0, 256, (16, 4), dtype=np.uint8).tobytes()
    eight = b"".join((bytes([5, 3, 2, 4]) + bytes([0, 4]) + bytes([1, 2, 3, 9]) + bytes([2, y]) + b"\0\0")
                     for y in range(10)) + bytes([13, 1]) + b"\0\1"
    yield "rle8.bmp", bmp(13, 11, 8, eight, 1, palette=colours), None
    jumps = np.zeros((11, 13), np.uint8)  # Pillow 10.4 reads the two bytes of a jump twice
    jumps[10, :3], jumps[9, 5:8], jumps[1:9, 0], jumps[0] = 1, 4, 2, 5
    data = b"\3\1\0\2\2\1\3\4\0\0" + b"\1\2\0\0" * 8 + b"\15\5\0\1"
    rgb_of = np.frombuffer(colours, np.uint8).reshape(16, 4)[:, 2::-1]
    yield "other-jump.bmp", bmp(13, 11, 8, data, 1, palette=colours), rgb(rgb_of[jumps])
    yield "other-end.bmp", bmp(13, 11, 8, data[:10] + b"\0\1", 1, palette=colours), rgb(
        rgb_of[np.where(np.arange(11)[:, None] < 9, 0, jumps)])
    four = b"".join(bytes([5, 0x34, 0, 4, 0x12, 0x9A, 4, y * 16 + 1]) + b"\0\0" for y in range(10)) + bytes([13, 0x21])
    yield "rle4.bmp", bmp(13, 11, 4, four + b"\0\1", 2, palette=colours), None


def tiff(pixels, photometric, extra=(), tile=None, separate=False, order="<", strip=None, tags=()):
    """An uncompressed TIFF file of uint8 or uint16 [height, width, samples]. tile: (width, height); strip: rows."""
    height, width, samples = pixels.shape
    bits = pixels.dtype.itemsize * 8
    planes = [pixels[:, :, s:s + 1] for s in range(samples)] if separate else [pixels]
    parts = []
    for plane in planes:
        if tile:
            across, down = -(-width // tile[0]), -(-height // tile[1])
            whole = np.zeros((down * tile[1], across * tile[0], plane.shape[2]), plane.dtype)
            whole[:height, :width] = plane
            parts += [whole[y:y + tile[1], x:x + tile[0]] for y in range(0, height, tile[1])
                      for x in range(0, width, tile[0])]
        else:
            parts += [plane[y:y + (strip or height)] for y in range(0, height, strip or height)]
    data = [np.ascontiguousarray(p).astype(p.dtype.newbyteorder(order)).tobytes() for p in parts]
    offsets = [8 + sum(len(d) for d in data[:i]) for i in range(len(data))]
    fields = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
              277: (3, [samples]), 284: (3, [2 if separate else 1])}
    if tile:
        fields.update({322: (4, [tile[0]]), 323: (4, [tile[1]]), 324: (4, offsets), 325: (4, [len(d) for d in data])})
    else:
        fields.update({273: (4, offsets), 278: (4, [strip or height]), 279: (4, [len(d) for d in data])})
    if extra:
        fields[338] = (3, list(extra))
    fields.update(tags)
    body = b"".join(data)
    body += bytes(len(body) % 2)
    directory, values = b"", b""
    values_at = 8 + len(body) + 2 + 12 * len(fields) + 4
    for tag, (kind, numbers) in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(numbers)}{ {3: 'H', 4: 'I'}.get(kind, 'B')}", *numbers)
        directory += struct.pack(order + "HHI", tag, kind, len(numbers))
        directory += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", values_at + len(values))
        values += (packed + bytes(len(packed) % 2)) if len(packed) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    return head + body + struct.pack(order + "H", len(fields)) + directory + bytes(4) + values


def make_tiff(drawing, noise):
    image = drawing("RGBA", (45, 31), 540)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            converted = image.convert("RGB").convert(mode) if mode in ("P", "CMYK", "1") else image.convert(mode)
            yield f"{mode}-{compression}.tif", saved(converted, "TIFF", compression=compression), None
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"{compression}.tif", saved(image.convert("RGB").convert("1"), "TIFF", compression=compression), None
    for mode in ("L", "RGB"):
        yield f"jpeg{mode}.tif", saved(image.convert(mode), "TIFF", compression="jpeg", quality=90), None
    for orientation in range(1, 9):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = orientation
        data = saved(image.convert("RGB"), "TIFF", compression="tiff_lzw", tiffinfo=tags)
        yield f"turned{orientation}.tif", data, turned(image.convert("RGB"), orientation)
    xmp, pixels = XMP.format('tiff:Orientation="6"/>').encode(), np.asarray(image.convert("RGB"))
    for kind, name in ((1, "bytes"), (2, "text"), (7, "undefined")):
        data = tiff(pixels, 2, tags={700: (kind, list(xmp))})
        yield f"xmp_{name}.tif", data, turned(image.convert("RGB"), 6)
    yield "xmp_numbers.tif", tiff(pixels, 2, tags={700: (4, [1 << 31, 1 << 31])}), image.convert("RGB")
    pages = [drawing("RGB", (30, 20), 541 + i) for i in range(2)]
    yield "pages.tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), None
    rng = np.random.default_rng(543)
    for order in "<>":
        for kind in (np.uint8, np.uint16):
            bits = np.dtype(kind).itemsize * 8
            values = rng.integers(0, 1 << bits, (37, 53, 4), dtype=kind)
            high = (values >> (bits - 8)).astype(np.uint8)
            ends = "le" if order == "<" else "be"
            for layout, options in (("strips", {"strip": 7}), ("tiles", {"tile": (16, 32)}),
                                    ("planes", {"strip": 10, "separate": True}),
                                    ("tiled_planes", {"tile": (32, 16), "separate": True})):
                for name, samples, photometric, extra, expected in (
                        ("grey", 1, 1, (), grey(high)), ("inverted", 1, 0, (), grey(255 - high)),
                        ("rgb", 3, 2, (), rgb(high)), ("rgba", 4, 2, (2,), Image.fromarray(high, "RGBA")),
                        ("rgbx", 4, 2, (0,), rgb(high))):
                    data = tiff(values[:, :, :samples], photometric, extra, order=order, **options)
                    unread = ((bits == 16 or name in ("rgbx", "inverted")) if "planes" in layout else
                              bits == 16 and name == "inverted")
                    yield f"{'other-' if unread else ''}{layout}-{ends}-{bits}-{name}.tif", data, expected
    values = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    yield "reversed_bits.tif", tiff(values[:, :, :3], 2, tags={266: (3, [2])}), None
    yield "premultiplied.tif", tiff(values, 2, (1,)), None
    yield "no_extra.tif", tiff(values, 2), None


def grey(values):
    return Image.fromarray(values[:, :, 0])


def rgb(values):
    return Image.fromarray(np.ascontiguousarray(values[:, :, :3]))


def make(drawing, noise):
    """Yields (name, bytes, the image as it must be seen, or None: as Pillow opens it)."""
    for maker in (make_png, lambda: make_turned(drawing), lambda: make_webp(drawing, noise),
                  lambda: make_gif(drawing, noise), lambda: make_bmp(drawing, noise),
                  lambda: make_tiff(drawing, noise)):
        yield from maker()
