/* Decodes BMP files: 1, 4, 8, 16, 24 and 32 bits a pixel, bottom-up and top-down, run lengths of 4 and 8 bits, and
 * bit fields of the layouts in use. The format is that of Windows' BITMAPCOREHEADER, BITMAPINFOHEADER and its
 * extensions to BITMAPV5HEADER (Microsoft, "Bitmap Storage"). The pixels equal Pillow's. Beside the image it keeps
 * nothing. */
#ifndef LIB_BMP_H
#define LIB_BMP_H

#include "image_pixels.h"

enum { BMP_RGB = 0, BMP_RLE8 = 1, BMP_RLE4 = 2, BMP_BITFIELDS = 3 };

typedef struct {
    const uint8_t *bytes;
    size_t size, data;  // data: where the pixels begin
    int width, height, bits;
    bool top_down;
    uint32_t compression;
    int shift[4];           // 24 and 32 bits: place of red, green, blue, alpha in the pixel; -1: no alpha
    int green_bits;         // 16 bits: 5 or 6
    uint8_t palette[1024];  // [256, 4] RGBA
    ImageCanvas canvas;
} BmpReader;

static inline uint32_t bmp_u(const BmpReader *r, size_t at, int size) {
    return image_integer(r->bytes + at, size, false);
}

/* ---- header ---- */

/* Sets the layout of pixels of 16, 24 or 32 bits from the masks in the file; `masks`: where they are, `count` of them
 * (3 or 4). Returns false when the layout is not one that is read. */
static inline bool bmp_layout(BmpReader *r, size_t masks, int count) {
    uint32_t mask[4] = {0, 0, 0, 0};
    for (int c = 0; c < count; c++) mask[c] = bmp_u(r, masks + 4 * c, 4);
    if (r->bits == 16) {
        r->green_bits = mask[1] == 0x7e0 ? 6 : 5;
        return (mask[0] == 0xf800 && mask[1] == 0x7e0 && mask[2] == 0x1f) ||
               (mask[0] == 0x7c00 && mask[1] == 0x3e0 && mask[2] == 0x1f);
    }
    if (r->bits != 24 && r->bits != 32) return false;
    if (!mask[0] && !mask[1] && !mask[2] && !mask[3]) {  // blue, green, red, alpha
        r->shift[3] = 24;
        return r->bits == 32;
    }
    for (int c = 0; c < 4; c++) {
        r->shift[c] = -1;
        for (int shift = 0; shift < r->bits; shift += 8)
            if (mask[c] == 0xffu << shift) r->shift[c] = shift;
        if (r->shift[c] < 0 && (c < 3 || mask[c])) return false;
    }
    return true;
}

/* Reads the palette, whose `count` entries of `size` bytes (blue, green, red) begin at byte `at`. */
static inline void bmp_palette(BmpReader *r, size_t at, uint32_t count, int size) {
    image_grey_palette(r->palette);
    for (uint32_t i = 0; i < count && i < 256 && at + 3 <= r->size; i++, at += size)
        for (int c = 0; c < 3; c++) r->palette[4 * i + c] = r->bytes[at + 2 - c];
}

static inline int bmp_header(BmpReader *r, uint64_t max_pixels, const char *name, Error *err) {
    const uint32_t header = r->size >= 18 ? bmp_u(r, 14, 4) : 0;
    const bool old = header == 12;
    if ((!old && header != 40 && header != 52 && header != 56 && header != 64 && header != 108 && header != 124) ||
        r->size < 14 + (size_t)header)
        return error_set(err, "cannot read the image %s: its BMP header is damaged or cut off", name);
    int64_t height = old ? (int64_t)bmp_u(r, 20, 2) : (int32_t)bmp_u(r, 22, 4);
    r->top_down = height < 0;
    if (height < 0) height = -height;
    const uint32_t width = bmp_u(r, 18, old ? 2 : 4);
    const int refused = image_check_size(width, (uint64_t)height, max_pixels, name, err);
    if (refused) return refused;
    r->width = (int)width;
    r->height = (int)height;
    r->bits = (int)bmp_u(r, old ? 24 : 28, 2);
    r->compression = old ? BMP_RGB : bmp_u(r, 30, 4);
    r->data = bmp_u(r, 10, 4);
    memcpy(r->shift, (int[]){16, 8, 0, -1}, sizeof r->shift);
    r->green_bits = 5;
    bool known = r->compression == BMP_RGB || (r->compression == BMP_RLE8 && r->bits == 8) ||
                 (r->compression == BMP_RLE4 && r->bits == 4);
    if (r->compression == BMP_BITFIELDS && r->size >= 14 + 40 + 16) known = bmp_layout(r, 54, header >= 56 ? 4 : 3);
    if (!known || !strchr("\1\4\10\20\30\40", r->bits & 0xff ? r->bits & 0xff : 99) || r->bits > 32)
        return error_set(err,
                         "cannot read the image %s: it is a BMP of a kind that is not read (%d bits, compression %u)",
                         name, r->bits, r->compression);
    if (r->bits > 8) return 0;
    uint32_t colours = old ? 0 : bmp_u(r, 46, 4);
    if (!colours || colours > 256) colours = 1u << r->bits;
    bmp_palette(r, 14 + (size_t)header, colours, old ? 3 : 4);
    if (r->data == 14 + header) r->data += 4 * colours;  // a header that forgets the palette
    return 0;
}

/* ---- pixels ---- */

static inline void bmp_put(BmpReader *r, int x, int y, const uint8_t *pixel, int channels) {
    image_put(&r->canvas, x, r->top_down ? y : r->height - 1 - y, 1, pixel, 1, channels);
}

static inline void bmp_row(BmpReader *r, int y, const uint8_t *row) {
    const int bytes = r->bits / 8;
    for (int x = 0; x < r->width; x++) {
        if (r->bits <= 8) {
            const int per_byte = 8 / r->bits, shift = 8 - r->bits * (x % per_byte + 1);
            bmp_put(r, x, y, r->palette + 4 * (row[x / per_byte] >> shift & ((1 << r->bits) - 1)), 3);
            continue;
        }
        const uint32_t v = image_integer(row + (size_t)bytes * x, bytes, false);
        uint8_t p[4] = {0, 0, 0, 255};
        if (r->bits == 16) {
            const uint32_t green = v >> 5 & ((1u << r->green_bits) - 1), red = v >> (5 + r->green_bits) & 31;
            p[0] = (uint8_t)(red * 255 / 31);
            p[1] = (uint8_t)(green * 255 / ((1u << r->green_bits) - 1));
            p[2] = (uint8_t)((v & 31) * 255 / 31);
        } else {
            for (int c = 0; c < 4; c++)
                if (r->shift[c] >= 0) p[c] = (uint8_t)(v >> r->shift[c]);
        }
        bmp_put(r, x, y, p, 4);
    }
}

/* Run lengths: pairs of a count and a value, or 0 and an escape. Pixels that are not named have the index 0. Returns
 * -1 when the data end before the rows do. */
static inline int bmp_runs(BmpReader *r) {
    const bool four = r->compression == BMP_RLE4;
    size_t at = r->data;
    int x = 0, y = 0;
    while (at + 2 <= r->size && y < r->height) {
        const int count = r->bytes[at], value = r->bytes[at + 1];
        at += 2;
        if (!count && value < 2) {
            if (value == 1) return 0;
            x = 0;
            y++;
        } else if (!count && value == 2) {
            if (at + 2 > r->size) return -1;
            x += r->bytes[at];
            if (x > r->width) x = r->width;  // so that many of these do not overflow
            y += r->bytes[at + 1];
            at += 2;
        } else {
            const int n = count ? count : value, bytes = count ? 0 : four ? (n + 1) / 2 : n;
            if (at + bytes > r->size) return -1;
            for (int i = 0; i < n && x < r->width; i++, x++) {
                const int pair = count ? value : r->bytes[at + (four ? i / 2 : i)];
                bmp_put(r, x, y, r->palette + 4 * (!four ? pair : i % 2 ? pair & 15 : pair >> 4), 3);
            }
            at += bytes + bytes % 2;
        }
    }
    return y < r->height ? -1 : 0;
}

/* Decodes a BMP file of n bytes. */
static inline int image_decode_bmp(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                   Error *err) {
    BmpReader r = {.bytes = bytes, .size = n};
    const int refused = bmp_header(&r, max_pixels, name, err);
    if (refused) return refused;
    const size_t stride = ((size_t)r.width * r.bits + 31) / 32 * 4;
    const bool runs = r.compression == BMP_RLE8 || r.compression == BMP_RLE4;
    int cut_off = r.data > n || (!runs && (n - r.data) / stride < (size_t)r.height - 1);
    if (!cut_off && !runs)  // the last row may lack its padding
        cut_off = n - r.data - stride * (r.height - 1) < ((size_t)r.width * r.bits + 7) / 8;
    if (!cut_off) {
        r.canvas = image_canvas(p, r.width, r.height, 1);
        for (int y = 0; runs && y < r.height; y++)
            for (int x = 0; x < r.width; x++) bmp_put(&r, x, y, r.palette, 3);
        if (runs) cut_off = bmp_runs(&r) != 0;
        for (int y = 0; !runs && y < r.height; y++) bmp_row(&r, y, bytes + r.data + stride * y);
    }
    if (!cut_off) return 0;
    image_free(p);
    return error_set(err, "cannot read the image %s: the BMP data end before the image does; the file is cut off",
                     name);
}

#endif
