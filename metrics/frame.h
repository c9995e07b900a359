/* The common frame in which two images are compared: each without its exactly white margin, centred in a white square, and
 * resized to the same size with a bicubic filter, as a model's input is (lib/image_prepare.h). So neither the page around a
 * drawing counts nor the resolution in which it was made. */
#ifndef METRICS_FRAME_H
#define METRICS_FRAME_H

#include "../lib/image_prepare.h"

typedef struct {
    int size;       // S
    uint8_t *rgb;   // [S, S, 3]
    uint8_t *grey;  // [S, S]
} CommonFrame;

/* Brightness in whole numbers, ITU-R BT.601, rounded as in Pillow's convert("L"). grey [n], rgb [n, 3] */
static inline void frame_grey(uint8_t *grey, const uint8_t *rgb, size_t n) {
    for (size_t i = 0; i < n; i++)
        grey[i] = (uint8_t)((19595 * rgb[3 * i] + 38470 * rgb[3 * i + 1] + 7471 * rgb[3 * i + 2] + 0x8000) >> 16);
}

/* Free with frame_free. */
static inline CommonFrame frame_make(const Image *p, int size) {
    const size_t n = (size_t)size * size;
    CommonFrame f = {size, (uint8_t *)xmalloc(3 * n), (uint8_t *)xmalloc(n)};
    image_prepare(f.rgb, p, image_square(size));
    frame_grey(f.grey, f.rgb, n);
    return f;
}

static inline void frame_free(CommonFrame *f) {
    free(f->rgb);
    free(f->grey);
    memset(f, 0, sizeof *f);
}

#endif
