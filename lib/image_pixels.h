/* The pixels of an image, and how the decoders of lib/png.h, lib/jpeg.h, ... write them.
 *
 * A decoder opens a canvas when it knows the size, and puts the pixels there row by row as it decodes them. The
 * canvas lays alpha over white and turns the image upright on the way, so that no second copy of the image is needed:
 * 100 million pixels take 300 MB, beside the mapped file and what the decoder itself must keep (each file says
 * what). */
#ifndef LIB_IMAGE_PIXELS_H
#define LIB_IMAGE_PIXELS_H

#include "error.h"

/* Limits that keep a small file from taking all memory; IMAGE_TOO_LARGE is what a decoder returns beyond them. */
enum { IMAGE_MAX_SIDE = 20000, IMAGE_MAX_PIXELS = 100000000, IMAGE_TOO_LARGE = -2 };

typedef struct {
    int width, height;
    uint8_t *rgb;  // [height, width, 3]
} Image;

static inline void image_free(Image *p) {
    free(p->rgb);
    memset(p, 0, sizeof *p);
}

static inline const uint8_t *image_at(const Image *p, int x, int y) {
    return p->rgb + 3 * ((size_t)y * p->width + x);
}

/* The darkest of a pixel's three values below white: 0 for white, 255 for black and for every full colour. */
static inline int image_depth(const uint8_t *rgb) {
    const int least = rgb[0] < rgb[1] ? rgb[0] : rgb[1];
    return 255 - (least < rgb[2] ? least : rgb[2]);
}

/* A copy, to be freed with image_free. */
static inline Image image_copy(const Image *p) {
    const size_t bytes = 3 * (size_t)p->width * p->height;
    Image q = {p->width, p->height, (uint8_t *)xmalloc(bytes)};
    memcpy(q.rgb, p->rgb, bytes);
    return q;
}

/* Checks the size in the header of an image file against the limits, before anything of that size is allocated. max_pixels:
 * in all, at most IMAGE_MAX_PIXELS. Returns 0, or with *err filled -1 for no size at all or IMAGE_TOO_LARGE. */
static inline int image_check_size(uint64_t width, uint64_t height, uint64_t max_pixels, const char *name,
                                   Error *err) {
    if (width < 1 || height < 1)
        return error_set(err, "cannot read the image %s: its header is damaged: it says %llu x %llu pixels", name,
                         (unsigned long long)width, (unsigned long long)height);
    if (width <= IMAGE_MAX_SIDE && height <= IMAGE_MAX_SIDE && width * height <= max_pixels) return 0;
    error_set(err,
              "cannot read the image %s: it has %llu x %llu pixels; at most %d a side and %.6g million in all are "
              "supported; make it smaller",
              name, (unsigned long long)width, (unsigned long long)height, IMAGE_MAX_SIDE, (double)max_pixels / 1e6);
    return IMAGE_TOO_LARGE;
}

/* One colour value laid over white. The integer arithmetic is that of Pillow's alpha_composite on an opaque
 * background: 7 extra bits while blending, and a division by 255 made of shifts. */
static inline uint8_t image_over_white(uint32_t value, uint32_t alpha) {
    uint32_t t = (value * alpha + 255 * (255 - alpha) + 128) << 7;
    return (uint8_t)((((t >> 8) + t) >> 8) >> 7);
}

/* Where the pixels of a file go in the upright image. */
typedef struct {
    uint8_t *origin;        // of the file's pixel 0, 0
    ptrdiff_t right, down;  // bytes from a pixel of the file to its right and lower neighbour
    int width, height;      // of the file, before it is turned
} ImageCanvas;

/* Allocates p->rgb, all zero, for a file of width x height pixels. `orientation` is EXIF's, 1 to 8: 5 to 8 swap the
 * axes, and each axis may be flipped; anything else means upright. */
static inline ImageCanvas image_canvas(Image *p, int width, int height, int orientation) {
    const int o = orientation >= 1 && orientation <= 8 ? orientation : 1;
    const bool swap = o >= 5, flip_x = o == 2 || o == 3 || o == 7 || o == 8,
               flip_y = o == 3 || o == 4 || o == 6 || o == 7;
    *p = (Image){swap ? height : width, swap ? width : height, xcalloc((size_t)width * height, 3)};
    ImageCanvas c = {p->rgb, 3, 3 * (ptrdiff_t)width, width, height};
    if (swap) {
        c.right = 3 * (ptrdiff_t)height;
        c.down = 3;
    }
    if (flip_x) {
        c.origin += (width - 1) * c.right;
        c.right = -c.right;
    }
    if (flip_y) {
        c.origin += (height - 1) * c.down;
        c.down = -c.down;
    }
    return c;
}

/* Puts n pixels into row y, at columns x, x + step, x + 2 step, ... channels: 3 for RGB, 4 for RGBA. Pixels outside
 * the canvas are left out. */
static inline void image_put(const ImageCanvas *c, int x, int y, int step, const uint8_t *pixels, int n,
                             int channels) {
    if (x < 0 || x >= c->width || y < 0 || y >= c->height) return;
    const int most = (c->width - 1 - x) / step + 1;
    if (n > most) n = most;
    uint8_t *to = c->origin + x * c->right + y * c->down;
    const ptrdiff_t next = step * c->right;
    if (channels == 3 && next == 3) {
        memcpy(to, pixels, 3 * (size_t)n);
        return;
    }
    for (int i = 0; i < n; i++, pixels += channels, to += next) {
        if (channels == 3 || pixels[3] == 255)
            memcpy(to, pixels, 3);
        else
            for (int k = 0; k < 3; k++) to[k] = image_over_white(pixels[k], pixels[3]);
    }
}

/* The same for n indices of a palette [256, 4] of RGBA. */
static inline void image_put_indexed(const ImageCanvas *c, int x, int y, const uint8_t *indices, int n,
                                     const uint8_t *palette) {
    for (int i = 0; i < n; i++) image_put(c, x + i, y, 1, palette + 4 * indices[i], 1, 4);
}

/* An opaque grey ramp [256, 4]: what Pillow takes for the entries that a palette lacks. */
static inline void image_grey_palette(uint8_t *palette) {
    for (int i = 0; i < 256; i++) memcpy(palette + 4 * i, (uint8_t[]){(uint8_t)i, (uint8_t)i, (uint8_t)i, 255}, 4);
}

/* Converts a pixel of inverted CMYK, as Adobe stores it in JPEG (255: no ink), to RGB: each colour times black,
 * rounded as in Pillow. */
static inline void image_from_cmyk(uint8_t *rgb, const uint8_t *cmyk) {
    for (int c = 0; c < 3; c++) {
        int t = (255 - cmyk[c]) * cmyk[3] + 128;
        rgb[c] = (uint8_t)(cmyk[3] - (((t >> 8) + t) >> 8));
    }
}

/* An unsigned integer of `size` bytes in a file. */
static inline uint32_t image_integer(const uint8_t *p, int size, bool big_endian) {
    uint32_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint32_t)p[i] << (8 * (big_endian ? size - 1 - i : i));
    return value;
}

static inline uint32_t image_u32(const uint8_t *p) { return image_integer(p, 4, true); }

#endif
