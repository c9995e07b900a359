/* An image of where two drawings differ. */
#ifndef METRICS_DIFFERENCE_H
#define METRICS_DIFFERENCE_H

#include "../lib/image_pixels.h"

/* Ink of a pixel, 0 for white to 1 for black, of an image centred on a canvas; 0 outside the image. */
static inline double difference_ink(const Image *p, int x, int y) {
    if (x < 0 || y < 0 || x >= p->width || y >= p->height) return 0;
    const uint8_t *rgb = p->rgb + 3 * ((size_t)y * (size_t)p->width + (size_t)x);
    return 1 - (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
}

/* Whether the map is no larger than an image may be. */
static inline bool difference_fits(const Image *a, const Image *b) {
    const int width = a->width > b->width ? a->width : b->width,
              height = a->height > b->height ? a->height : b->height;
    return (int64_t)width * height <= IMAGE_MAX_PIXELS;
}

/* Lays two drawings on each other, centre on centre: what both have is grey, what only the reference has red, what only the
 * other has blue. Free with image_free. */
static inline Image difference_map(const Image *reference, const Image *other) {
    static const double both[3] = {150, 150, 150}, missing[3] = {30, 210, 210}, extra[3] = {225, 120, 20};
    Image out = {.width = reference->width > other->width ? reference->width : other->width,
                 .height = reference->height > other->height ? reference->height : other->height};
    out.rgb = (uint8_t *)xmalloc(3 * (size_t)out.width * (size_t)out.height);
    for (int y = 0; y < out.height; y++)
        for (int x = 0; x < out.width; x++) {
            const double a = difference_ink(reference, x - (out.width - reference->width) / 2,
                                            y - (out.height - reference->height) / 2),
                         b = difference_ink(other, x - (out.width - other->width) / 2,
                                            y - (out.height - other->height) / 2),
                         common = a < b ? a : b;
            uint8_t *rgb = out.rgb + 3 * ((size_t)y * (size_t)out.width + (size_t)x);
            for (int c = 0; c < 3; c++)
                rgb[c] =
                    (uint8_t)(255 - common * both[c] - (a - common) * missing[c] - (b - common) * extra[c] + 0.5);
        }
    return out;
}

#endif
