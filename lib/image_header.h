/* The size that the header of an image file claims, read without any library: a server refuses most images that are too large
 * before it opens a decoder. A file can be made whose decoder finds another size, so image_decode_limited has the last word. */
#ifndef LIB_IMAGE_HEADER_H
#define LIB_IMAGE_HEADER_H

#include "image_pixels.h"

typedef struct {
    uint32_t width, height;
} ImageHeader;

/* JPEG: the frame header is the first segment SOF0 to SOF15 that is not DHT, JPG or DAC (ITU T.81, table B.1). */
static inline bool image_header_jpeg(const uint8_t *p, size_t n, ImageHeader *h) {
    for (size_t at = 2; at + 9 <= n;) {
        const uint8_t marker = p[at + 1];
        if (p[at] != 0xff || marker == 0xff) {  // what a decoder skips, or a fill byte
            at++;
            continue;
        }
        const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
        const bool alone = marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8);  // no length follows
        if (frame) {
            *h = (ImageHeader){image_integer(p + at + 7, 2, true), image_integer(p + at + 5, 2, true)};
            return true;
        }
        at += alone ? 2 : 2 + image_integer(p + at + 2, 2, true);
    }
    return false;
}

/* WebP: lossy, lossless or extended (RFC 9649). */
static inline bool image_header_webp(const uint8_t *p, size_t n, ImageHeader *h) {
    if (n < 30) return false;
    if (!memcmp(p + 12, "VP8X", 4)) {
        *h = (ImageHeader){1 + image_integer(p + 24, 3, false), 1 + image_integer(p + 27, 3, false)};
    } else if (!memcmp(p + 12, "VP8L", 4)) {
        const uint32_t bits = image_integer(p + 21, 4, false);
        *h = (ImageHeader){1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff)};
    } else {
        *h = (ImageHeader){image_integer(p + 26, 2, false) & 0x3fff, image_integer(p + 28, 2, false) & 0x3fff};
    }
    return true;
}

/* TIFF and BigTIFF: the tags 256 and 257 of the first directory, whose values are inline. */
static inline bool image_header_tiff(const uint8_t *p, size_t n, ImageHeader *h) {
    const bool motorola = p[0] == 'M', big = p[2 + motorola] == 43;
    const size_t entry = big ? 20 : 12, count_bytes = big ? 8 : 2;
    if (n < 16) return false;
    const uint64_t at =
        image_integer(p + (big ? 8 + 4 * motorola : 4), 4, motorola);  // beyond 4 GB there is no file here
    if (at + count_bytes > n) return false;
    const uint32_t count = image_integer(p + at + (motorola ? count_bytes - 2 : 0), 2, motorola);
    for (uint32_t i = 0; i < count && at + count_bytes + (i + 1) * entry <= n; i++) {
        const uint8_t *e = p + at + count_bytes + i * entry, *value = e + (big ? 12 : 8);
        const uint32_t tag = image_integer(e, 2, motorola), type = image_integer(e + 2, 2, motorola);
        const uint32_t size = type == 3 ? 2 : 4;  // SHORT or LONG
        const uint32_t number = image_integer(value + (big && motorola && type == 16 ? 4 : 0), (int)size, motorola);
        if (tag == 256 && !h->width) h->width = number;  // of several, a decoder takes the first
        if (tag == 257 && !h->height) h->height = number;
    }
    return h->width > 0 && h->height > 0;
}

/* Reads the size that the file claims; false where its kind is not known or its header is not whole, which the decoder says
 * better. */
static inline bool image_header_read(const uint8_t *p, size_t n, ImageHeader *h) {
    *h = (ImageHeader){0, 0};
    if (n >= 24 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8)) {
        *h = (ImageHeader){image_u32(p + 16), image_u32(p + 20)};
        return true;
    }
    if (n >= 10 && !memcmp(p, "GIF8", 4)) {
        *h = (ImageHeader){image_integer(p + 6, 2, false), image_integer(p + 8, 2, false)};
        return true;
    }
    if (n >= 26 && !memcmp(p, "BM", 2)) {
        const bool core = image_integer(p + 14, 4, false) == 12;  // OS/2's header has 16 bits each
        const int32_t height =
            core ? 0 : (int32_t)image_integer(p + 22, 4, false);  // negative: the top row comes first
        *h = core ? (ImageHeader){image_integer(p + 18, 2, false), image_integer(p + 20, 2, false)}
                  : (ImageHeader){image_integer(p + 18, 4, false),
                                  height < 0 ? 0u - (uint32_t)height : (uint32_t)height};
        return true;
    }
    if (n >= 3 && !memcmp(p, "\xff\xd8\xff", 3)) return image_header_jpeg(p, n, h);
    if (n >= 16 && !memcmp(p, "RIFF", 4) && !memcmp(p + 8, "WEBP", 4)) return image_header_webp(p, n, h);
    if (n >= 8 && (!memcmp(p, "II", 2) || !memcmp(p, "MM", 2))) return image_header_tiff(p, n, h);
    return false;
}

#endif
