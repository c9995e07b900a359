/* The orientation that a camera or a program recorded in an image file, as a tag of EXIF or of XMP: 1 to 8 (EXIF
 * 2.32, section 4.6.4), 1 when upright. EXIF comes first, then XMP, as in Pillow's ImageOps.exif_transpose;
 * scripts/dataset/images.py does the same. A damaged block counts as absent. */
#ifndef LIB_IMAGE_ORIENTATION_H
#define LIB_IMAGE_ORIENTATION_H

#include "image_pixels.h"

/* The value of the tag Orientation (274) in the first directory of an EXIF block, which is a TIFF file and may begin
 * with "Exif\0\0". 0: there is none. A value that means nothing is 1. */
static inline int image_exif_orientation(const uint8_t *t, size_t n) {
    if (n >= 6 && !memcmp(t, "Exif\0\0", 6)) {
        t += 6;
        n -= 6;
    }
    if (n < 14 || (memcmp(t, "II*\0", 4) && memcmp(t, "MM\0*", 4))) return 0;
    const bool big = t[0] == 'M';
    size_t at = image_integer(t + 4, 4, big);
    if (at > n - 2) return 0;
    uint32_t entries = image_integer(t + at, 2, big);
    for (at += 2; entries > 0 && at + 12 <= n; entries--, at += 12) {
        if (image_integer(t + at, 2, big) != 274) continue;
        const uint32_t type = image_integer(t + at + 2, 2, big), count = image_integer(t + at + 4, 4, big);
        const bool is_short = type == 3 || type == 8, is_long = type == 4 || type == 9;  // unsigned and signed
        if (count != 1 || (!is_short && !is_long)) return 0;
        const uint32_t value = image_integer(t + at + 8, is_short ? 2 : 4, big);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 0;
}

/* The value of tiff:Orientation in an XMP packet, as an attribute or an element. 0: there is none. */
static inline int image_xmp_orientation(const uint8_t *xmp, size_t n) {
    static const char tag[] = "tiff:Orientation";
    const uint8_t *end = xmp + n, *at = xmp;
    while ((at = memmem(at, (size_t)(end - at), tag, sizeof tag - 1))) {
        at += sizeof tag - 1;
        const size_t left = (size_t)(end - at), open = left && *at == '>'                  ? 1
                                                       : left > 1 && !memcmp(at, "=\"", 2) ? 2
                                                                                           : 0;
        if (!open || left <= open || at[open] < '0' || at[open] > '9') continue;
        const int value = at[open] - '0';
        return value >= 1 && value <= 8 ? value : 1;
    }
    return 0;
}

#endif
