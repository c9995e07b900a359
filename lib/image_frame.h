/* What surrounds a drawing and is not the paper: the frame of a window, a desk around a page; and whether an image is
 * in dark mode. Used by lib/image_clean.h. */
#ifndef LIB_IMAGE_FRAME_H
#define LIB_IMAGE_FRAME_H

#include "image_pixels.h"
#include "image_prepare.h"

static inline int image_brightness(const uint8_t *rgb) { return (rgb[0] + 2 * rgb[1] + rgb[2]) / 4; }

static inline bool image_near(const uint8_t *a, const uint8_t *b, int tolerance) {
    return abs(a[0] - b[0]) <= tolerance && abs(a[1] - b[1]) <= tolerance && abs(a[2] - b[2]) <= tolerance;
}

/* Whether all pixels are the same; then there is nothing to see. */
static inline bool image_one_colour(const Image *p) {
    const size_t n = 3 * (size_t)p->width * p->height;
    return !memcmp(p->rgb, p->rgb + 3, n - 3);
}

/* ---- frames ---- */

enum { IMAGE_FRAME_TOLERANCE = 8 };  // levels: what JPEG does to a frame of one colour

/* Whether n pixels from `at`, `step` bytes apart, have one colour. */
static inline bool image_line_is(const uint8_t *at, ptrdiff_t step, int n, const uint8_t *colour) {
    for (int i = 0; i < n; i++, at += step)
        if (!image_near(at, colour, IMAGE_FRAME_TOLERANCE)) return false;
    return true;
}

static inline bool image_row_is(const Image *p, ImageBox b, int y, const uint8_t *colour) {
    return image_line_is(image_at(p, b.x, y), 3, b.width, colour);
}

static inline bool image_column_is(const Image *p, ImageBox b, int x, const uint8_t *colour) {
    return image_line_is(image_at(p, x, b.y), 3 * (ptrdiff_t)p->width, b.height, colour);
}

static inline bool image_ring_is(const Image *p, ImageBox b, const uint8_t *colour) {
    return image_row_is(p, b, b.y, colour) && image_row_is(p, b, b.y + b.height - 1, colour) &&
           image_column_is(p, b, b.x, colour) && image_column_is(p, b, b.x + b.width - 1, colour);
}

/* The part of `b` that is left without the rows and columns at its border that have one colour; empty (width or
 * height 0) if all have. */
static inline ImageBox image_peel(const Image *p, ImageBox b, const uint8_t *colour) {
    while (b.height > 0 && image_row_is(p, b, b.y, colour)) b.y++, b.height--;
    while (b.height > 0 && image_row_is(p, b, b.y + b.height - 1, colour)) b.height--;
    while (b.height > 0 && b.width > 0 && image_column_is(p, b, b.x, colour)) b.x++, b.width--;
    while (b.height > 0 && b.width > 0 && image_column_is(p, b, b.x + b.width - 1, colour)) b.width--;
    return b;
}

/* Cuts the image down to a box. */
static inline void image_crop(Image *p, ImageBox b) {
    for (int y = 0; y < b.height; y++)
        memmove(p->rgb + 3 * (size_t)y * b.width, image_at(p, b.x, b.y + y), 3 * (size_t)b.width);
    p->width = b.width;
    p->height = b.height;
}

/* Removes a ring of one grey around paper: a thin line, or a wide margin such as a desk or the window of a viewer.
 * The ring must be grey, and thin rings neither black nor dark, because a drawing that was cut to its own outline
 * looks the same; what it surrounds must begin with a ring of another, brighter colour. Returns its width in
 * pixels, 0: there is none. */
static inline int image_frame_remove(Image *p) {
    const ImageBox all = {0, 0, p->width, p->height};
    uint8_t ring[3], inner[3];
    memcpy(ring, p->rgb, 3);
    const int low = 255 - image_depth(ring), spread = image_brightness(ring) - low;
    if (low > 250 || spread > 12 || p->width < 16 || p->height < 16 || !image_ring_is(p, all, ring)) return 0;
    ImageBox b = image_peel(p, all, ring);
    const int right = all.width - b.x - b.width, bottom = all.height - b.y - b.height;
    const int side = all.width < all.height ? all.width : all.height;
    int widest = b.x > b.y ? b.x : b.y, thinnest = b.x < b.y ? b.x : b.y;
    if (right > widest) widest = right;
    if (bottom > widest) widest = bottom;
    if (right < thinnest) thinnest = right;
    if (bottom < thinnest) thinnest = bottom;
    if (b.width < 8 || b.height < 8 || low < (thinnest * 25 < side ? 96 : 0)) return 0;
    memcpy(inner, image_at(p, b.x, b.y), 3);
    if (image_brightness(inner) < image_brightness(ring) + 24) {  // the edge itself may be blurred
        if (b.width < 24 || b.height < 24) return 0;
        b = (ImageBox){b.x + 2, b.y + 2, b.width - 4, b.height - 4};
        memcpy(inner, image_at(p, b.x, b.y), 3);
    }
    if (image_brightness(inner) < image_brightness(ring) + 24 || !image_ring_is(p, b, inner)) return 0;
    const ImageBox content = image_peel(p, b, inner);
    if (content.width == 0 || content.height == 0) return 0;
    image_crop(p, b);
    return widest;
}

/* ---- dark mode ---- */

/* Whether the image has light lines on dark ground: most of it is dark, so is a good part of its border, and something
 * in it is light. A drawing that was cut to its own light outline has its border inside that. */
static inline bool image_is_dark(const Image *p) {
    enum { DARK = 100, CONTRAST = 60 };
    const size_t n = (size_t)p->width * p->height;
    size_t dark = 0, light = 0, counts[256] = {0}, dark_border = 0, border = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *rgb = p->rgb + 3 * i;
        dark += rgb[0] < DARK && rgb[1] < DARK && rgb[2] < DARK;
        counts[image_brightness(rgb)]++;
    }
    if (2 * dark < n) return false;
    int ground = 0;
    for (int k = 0; k < DARK; k++)
        if (counts[k] > counts[ground]) ground = k;
    for (int k = ground + CONTRAST; k < 256; k++) light += counts[k];
    if (light == 0 || light * 2 > n) return false;
    ImageBox b = {0, 0, p->width, p->height};
    if (image_brightness(p->rgb) > DARK && image_ring_is(p, b, p->rgb)) {
        const ImageBox inside = image_peel(p, b, p->rgb);
        const int most = 3 + (p->width + p->height) / 60;
        if (inside.x > most || inside.y > most || inside.width < 3 || inside.height < 3) return false;
        b = (ImageBox){inside.x + 1, inside.y + 1, inside.width - 2, inside.height - 2};
    }
    for (int y = b.y; y < b.y + b.height; y++) {
        const int step = y == b.y || y == b.y + b.height - 1 || b.width < 2 ? 1 : b.width - 1;
        for (int x = b.x; x < b.x + b.width; x += step, border++)
            dark_border += image_depth(image_at(p, x, y)) > 255 - DARK && image_brightness(image_at(p, x, y)) < DARK;
    }
    return 4 * dark_border >= border;
}

#endif
