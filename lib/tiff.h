/* Decodes the first page of TIFF files with libtiff: strips and tiles; 1, 2, 4, 8 and 16 bits; grey, RGB, CMYK and
 * palettes, with alpha; YCbCr in JPEG; uncompressed, CCITT, LZW, deflate, PackBits and JPEG. The pixels equal
 * Pillow's; of 16 bits the upper 8 are kept. Beside the image it keeps one row, of a tiled file or one with separate
 * planes a row of tiles or strips of at most TIFF_MAX_BLOCK bytes. */
#ifndef LIB_TIFF_H
#define LIB_TIFF_H

#include "image_orientation.h"

#ifndef WITH_TIFF
static inline int image_decode_tiff(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                    Error *err) {
    (void)p, (void)bytes, (void)n, (void)max_pixels;
    return error_set(err,
                     "cannot read the image %s: it is TIFF, and this program was built without libtiff; "
                     "scripts/deps.sh build installs it (Debian and Ubuntu: libtiff-dev), then run make again",
                     name);
}
#else
#include <pthread.h>
#include <tiffio.h>

enum {
    TIFF_MAX_BLOCK = 1 << 27,
    TIFF_MAX_JPEG_SCANS = 4  // of a strip or tile: one per component; each scan costs a pass over its pixels
};

typedef struct {
    TIFF *tiff;
    const uint8_t *bytes;
    size_t size, at;
    uint32_t width, height;
    uint16_t bits, samples, photometric, compression, planes;  // planes: 1, or `samples` when each has its own
    int colours;                                               // samples before the extra ones: 1, 3 or 4
    bool alpha, premultiplied;                                 // the first extra sample is alpha
    uint8_t palette[1024];                                     // [256, 4] RGBA
    uint8_t *block, *rgba;                                     // data as libtiff gives them; one row as RGBA
    ImageCanvas canvas;
    char why[160];
} TiffReader;

/* ---- the file in memory ---- */

static inline tmsize_t tiff_read(thandle_t handle, void *out, tmsize_t n) {
    TiffReader *r = handle;
    if (n < 0) return -1;
    if ((size_t)n > r->size - r->at) n = (tmsize_t)(r->size - r->at);
    memcpy(out, r->bytes + r->at, (size_t)n);
    r->at += (size_t)n;
    return n;
}

static inline tmsize_t tiff_write(thandle_t handle, void *data, tmsize_t n) {
    (void)handle, (void)data, (void)n;
    return -1;
}

static inline toff_t tiff_seek(thandle_t handle, toff_t offset, int whence) {
    TiffReader *r = handle;
    const toff_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? r->at : r->size;
    if (from + offset > r->size) return (toff_t)-1;
    r->at = from + offset;
    return r->at;
}

static inline toff_t tiff_size(thandle_t handle) { return ((TiffReader *)handle)->size; }
static inline int tiff_map(thandle_t handle, void **base, toff_t *size) {
    TiffReader *r = handle;
    *base = (void *)r->bytes;
    *size = r->size;
    return 1;
}
static inline void tiff_unmap(thandle_t handle, void *base, toff_t size) { (void)handle, (void)base, (void)size; }
static inline int tiff_close(thandle_t handle) {
    (void)handle;
    return 0;
}

/* The handlers of the whole process; each error goes to the reader of its file. The first one says the cause. */
static inline void tiff_error(thandle_t handle, const char *module, const char *format, va_list args) {
    TiffReader *r = handle;
    (void)module;
    if (r && !r->why[0]) vsnprintf(r->why, sizeof r->why, format, args);
}

static inline void tiff_handlers(void) {
    TIFFSetErrorHandler(NULL);
    TIFFSetWarningHandler(NULL);
    TIFFSetErrorHandlerExt(tiff_error);
}

static inline void tiff_open(TiffReader *r, const char *name) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, tiff_handlers);
#if TIFFLIB_VERSION >= 20221213
    TIFFOpenOptions *options = TIFFOpenOptionsAlloc();
    TIFFOpenOptionsSetMaxSingleMemAlloc(options, TIFF_MAX_BLOCK);
    r->tiff = TIFFClientOpenExt(name, "r", r, tiff_read, tiff_write, tiff_seek, tiff_close, tiff_size, tiff_map,
                                tiff_unmap, options);
    TIFFOpenOptionsFree(options);
#else
    r->tiff =
        TIFFClientOpen(name, "r", r, tiff_read, tiff_write, tiff_seek, tiff_close, tiff_size, tiff_map, tiff_unmap);
#endif
}

/* ---- header ---- */

/* Whether the file's directory has this tag; libtiff adds a few that it lacks. */
static inline bool tiff_has_tag(const TiffReader *r, uint16_t tag) {
    const bool big_endian = r->bytes[0] == 'M', big = r->bytes[big_endian ? 3 : 2] == '+';  // big: BigTIFF
    const uint64_t begin = TIFFCurrentDirOffset(r->tiff), at = begin + (big ? 8 : 2), entry = big ? 20 : 12;
    if (at > r->size) return false;
    const uint64_t entries = image_integer(r->bytes + begin + (big && big_endian ? 4 : 0), big ? 4 : 2, big_endian);
    for (uint64_t i = 0; i < entries && at + entry * (i + 1) <= r->size; i++)
        if (image_integer(r->bytes + at + entry * i, 2, big_endian) == tag) return true;
    return false;
}

/* Reads the fields that say what a pixel is. Returns what is not read about them, or NULL. */
static inline const char *tiff_kind(TiffReader *r) {
    uint16_t format = SAMPLEFORMAT_UINT, planar = PLANARCONFIG_CONTIG, extra_count = 0, *extra = NULL;
    uint16_t *red, *green, *blue;
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_BITSPERSAMPLE, &r->bits);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_SAMPLESPERPIXEL, &r->samples);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_SAMPLEFORMAT, &format);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_PLANARCONFIG, &planar);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_COMPRESSION, &r->compression);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_EXTRASAMPLES, &extra_count, &extra);
    if (!TIFFGetField(r->tiff, TIFFTAG_PHOTOMETRIC, &r->photometric)) r->photometric = PHOTOMETRIC_MINISWHITE;
    static const uint16_t compressions[] = {COMPRESSION_NONE,      COMPRESSION_CCITTRLE,  COMPRESSION_CCITTRLEW,
                                            COMPRESSION_CCITTFAX3, COMPRESSION_CCITTFAX4, COMPRESSION_LZW,
                                            COMPRESSION_JPEG,      COMPRESSION_DEFLATE,   COMPRESSION_ADOBE_DEFLATE,
                                            COMPRESSION_PACKBITS};
    bool known = false;
    for (size_t i = 0; i < sizeof compressions / sizeof *compressions; i++)
        known = known || compressions[i] == r->compression;
    if (!known || !TIFFIsCODECConfigured(r->compression)) return "compression";
    const bool ycbcr = r->photometric == PHOTOMETRIC_YCBCR;
    if (ycbcr && (r->compression != COMPRESSION_JPEG || planar != PLANARCONFIG_CONTIG)) return "kind of YCbCr";
    if (ycbcr) TIFFSetField(r->tiff, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
    r->colours = ycbcr || r->photometric == PHOTOMETRIC_RGB ? 3 : r->photometric == PHOTOMETRIC_SEPARATED ? 4 : 1;
    if (r->photometric > PHOTOMETRIC_PALETTE && r->colours == 1) return "colour space";
    if (r->samples < r->colours || r->samples > 16) return "number of samples";
    if (format != SAMPLEFORMAT_UINT) return "kind of numbers";
    const bool packed = r->bits == 1 || r->bits == 2 || r->bits == 4;
    const bool deep = r->bits == 16 && r->photometric != PHOTOMETRIC_PALETTE && r->colours != 4;
    if (r->bits != 8 && !deep && !(packed && r->samples == 1)) return "number of bits";
    r->planes = planar == PLANARCONFIG_SEPARATE ? r->samples : 1;
    r->premultiplied = extra_count && extra[0] == EXTRASAMPLE_ASSOCALPHA;
    r->alpha = r->premultiplied || (extra_count && extra[0] == EXTRASAMPLE_UNASSALPHA) ||
               (r->samples == 4 && r->colours == 3 && !tiff_has_tag(r, TIFFTAG_EXTRASAMPLES));
    r->alpha = r->alpha && r->samples > r->colours;
    image_grey_palette(r->palette);
    if (r->photometric != PHOTOMETRIC_PALETTE) return NULL;
    if (!TIFFGetField(r->tiff, TIFFTAG_COLORMAP, &red, &green, &blue)) return "palette";
    for (int i = 0; i < 1 << r->bits; i++)
        memcpy(r->palette + 4 * i, (uint8_t[]){red[i] >> 8, green[i] >> 8, blue[i] >> 8}, 3);
    return NULL;
}

/* Checks that the strips or tiles lie in the file, do not overlap and, in JPEG, have few scans: so the work stays in
 * proportion to the file and the size of the image. */
static inline bool tiff_check_strips(TiffReader *r) {
    const uint32_t count = TIFFIsTiled(r->tiff) ? TIFFNumberOfTiles(r->tiff) : TIFFNumberOfStrips(r->tiff);
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = TIFFGetStrileOffset(r->tiff, i), n = TIFFGetStrileByteCount(r->tiff, i);
        int scans = 0;
        if (at > r->size || n > r->size - at || (total += n) > r->size) return false;
        if (r->compression != COMPRESSION_JPEG) continue;
        for (const uint8_t *p = r->bytes + at, *end = p + n; (p = memmem(p, (size_t)(end - p), "\xff\xda", 2));
             p += 2)
            if (++scans > TIFF_MAX_JPEG_SCANS) return false;
    }
    return true;
}

/* The orientation: the file's own tag, else XMP's. */
static inline int tiff_orientation(TiffReader *r) {
    uint16_t orientation = 1;
    uint32_t size = 0;
    void *xmp = NULL;
    if (TIFFGetField(r->tiff, TIFFTAG_ORIENTATION, &orientation)) return orientation;
    return TIFFGetField(r->tiff, TIFFTAG_XMLPACKET, &size, &xmp) && xmp ? image_xmp_orientation(xmp, size) : 1;
}

/* ---- pixels ---- */

/* Converts n pixels to RGBA. sample[s]: the first value of sample s; step: bytes from one value to the next. */
static inline void tiff_convert(TiffReader *r, const uint8_t *const *sample, size_t step, int n) {
    const bool inverted = r->photometric == PHOTOMETRIC_MINISWHITE;
    const int most = (1 << (r->bits < 8 ? r->bits : 8)) - 1;
    const size_t high_byte = r->bits == 16;  // libtiff gives them in the machine's order, which is little-endian
    for (int i = 0; i < n; i++) {
        uint8_t value[5], *out = r->rgba + 4 * (size_t)i;
        if (r->bits < 8)
            value[0] = sample[0][(size_t)i * r->bits / 8] >> (8 - r->bits - i * r->bits % 8) & most;
        else
            for (int s = 0; s < r->colours + r->alpha; s++) value[s] = sample[s][i * step + high_byte];
        out[3] = r->alpha ? value[r->colours] : 255;
        if (r->photometric == PHOTOMETRIC_PALETTE) {
            memcpy(out, r->palette + 4 * value[0], 3);
        } else if (r->colours == 1) {
            memset(out, (inverted ? most - value[0] : value[0]) * 255 / most, 3);
        } else if (r->colours == 4) {
            for (int c = 0; c < 4; c++) value[c] = 255 - value[c];
            image_from_cmyk(out, value);
        } else {
            memcpy(out, value, 3);
        }
        for (int c = 0; c < 3 && r->premultiplied && r->alpha && out[3] < 255; c++) {
            const int whole = out[3] ? out[c] * 255 / out[3] : 0;
            out[c] = (uint8_t)(whole > 255 ? 255 : whole);
        }
    }
}

/* Puts a row of a block: its planes are plane_bytes apart. */
static inline void tiff_put(TiffReader *r, int x, int y, const uint8_t *row, size_t plane_bytes, int n) {
    const size_t bytes = r->bits == 16 ? 2 : 1;
    const uint8_t *sample[16];
    for (int s = 0; s < r->samples; s++) sample[s] = row + (r->planes > 1 ? plane_bytes : bytes) * s;
    tiff_convert(r, sample, r->planes > 1 ? bytes : bytes * r->samples, n);
    image_put(&r->canvas, x, y, 1, r->rgba, n, 4);
}

/* Decodes blocks of block_width x block_height pixels, which are tiles, or strips of a file with separate planes. */
static inline int tiff_blocks(TiffReader *r, uint32_t block_width, uint32_t block_height) {
    const bool tiled = TIFFIsTiled(r->tiff);
    const size_t bytes = (size_t)(tiled ? TIFFTileSize(r->tiff) : TIFFStripSize(r->tiff));
    const size_t stride = (size_t)(tiled ? TIFFTileRowSize(r->tiff) : TIFFScanlineSize(r->tiff));
    for (uint32_t y = 0; y < r->height; y += block_height)
        for (uint32_t x = 0; x < r->width; x += block_width) {
            const uint32_t rows = r->height - y < block_height ? r->height - y : block_height;
            const uint32_t columns = r->width - x < block_width ? r->width - x : block_width;
            for (uint16_t s = 0; s < r->planes; s++) {
                uint8_t *to = r->block + bytes * s;
                const tmsize_t got =
                    tiled ? TIFFReadEncodedTile(r->tiff, TIFFComputeTile(r->tiff, x, y, 0, s), to, (tmsize_t)bytes)
                          : TIFFReadEncodedStrip(r->tiff, TIFFComputeStrip(r->tiff, y, s), to, (tmsize_t)bytes);
                if (got < 0 || (size_t)got < stride * rows) return -1;
            }
            for (uint32_t k = 0; k < rows; k++)
                tiff_put(r, (int)x, (int)(y + k), r->block + stride * k, bytes, (int)columns);
        }
    return 0;
}

/* Decodes the pixels onto the canvas. Returns -1 with the reason in r->why. */
static inline int tiff_pixels(TiffReader *r) {
    uint32_t block_width = r->width, block_height = r->height;
    const bool tiled = TIFFIsTiled(r->tiff), rows = !tiled && r->planes == 1;
    if (tiled) {
        TIFFGetField(r->tiff, TIFFTAG_TILEWIDTH, &block_width);
        TIFFGetField(r->tiff, TIFFTAG_TILELENGTH, &block_height);
    } else {
        TIFFGetFieldDefaulted(r->tiff, TIFFTAG_ROWSPERSTRIP, &block_height);
    }
    if (block_height > r->height && !tiled) block_height = r->height;
    if (block_width < 1 || block_height < 1) return -1;
    const uint64_t across = ((uint64_t)r->width + block_width - 1) / block_width * block_width;
    const uint64_t down = ((uint64_t)r->height + block_height - 1) / block_height * block_height;
    const int64_t bytes = rows ? TIFFScanlineSize(r->tiff) : tiled ? TIFFTileSize(r->tiff) : TIFFStripSize(r->tiff);
    if (bytes <= 0 || bytes > TIFF_MAX_BLOCK / r->planes || across > 2 * IMAGE_MAX_PIXELS / down) {
        snprintf(r->why, sizeof r->why, "its tiles or strips are too large; store it again");
        return -1;
    }
    r->block = xcalloc(r->planes, (size_t)bytes + 8);
    r->rgba = xcalloc(r->width, 4);
    if (!rows) return tiff_blocks(r, block_width, block_height);
    for (uint32_t y = 0; y < r->height; y++) {
        if (TIFFReadScanline(r->tiff, r->block, y, 0) < 0) return -1;
        tiff_put(r, 0, (int)y, r->block, 0, (int)r->width);
    }
    return 0;
}

/* Decodes a TIFF file of n bytes. */
static inline int image_decode_tiff(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                    Error *err) {
    TiffReader r = {.bytes = bytes, .size = n};
    tiff_open(&r, name);
    if (!r.tiff) return error_set(err, "cannot read the image %s: its TIFF data are damaged (%s)", name, r.why);
    TIFFGetField(r.tiff, TIFFTAG_IMAGEWIDTH, &r.width);
    TIFFGetField(r.tiff, TIFFTAG_IMAGELENGTH, &r.height);
    int status = image_check_size(r.width, r.height, max_pixels, name, err);
    const char *unread = status == 0 ? tiff_kind(&r) : NULL;
    if (unread) {
        status = error_set(err,
                           "cannot read the image %s: it is a TIFF of a %s that is not read (%d samples of %d bits, "
                           "photometric %d, compression %d); store it as PNG",
                           name, unread, r.samples, r.bits, r.photometric, r.compression);
    } else if (status == 0 && !tiff_check_strips(&r)) {
        status = error_set(err,
                           "cannot read the image %s: its TIFF data are damaged or cut off (strips or tiles "
                           "overlap, lie outside the file, or have too many scans)",
                           name);
    } else if (status == 0) {
        r.canvas = image_canvas(p, (int)r.width, (int)r.height, tiff_orientation(&r));
        r.why[0] = '\0';  // what was wrong with fields that nothing here needs
        status = tiff_pixels(&r);
        if (status != 0)
            error_set(err, "cannot read the image %s: its TIFF data are damaged or cut off (%s)", name,
                      r.why[0] ? r.why : "a strip or tile is too short");
    }
    if (status != 0) image_free(p);
    TIFFClose(r.tiff);
    free(r.block);
    free(r.rgba);
    return status;
}
#endif

#endif
