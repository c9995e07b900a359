/* Gives thin lines the colour back that JPEG took. Used by lib/image_clean.h; the paper is white already.
 *
 * JPEG stores brightness for each pixel but colour only for squares of 2 x 2 pixels, and coarsely: a thin line's colour
 * is spread over the white paper beside it, and the line itself turns grey. Here the colour that a neighbourhood has in
 * all is given to its pixels in proportion to how much colour each can have at its brightness: none on white or
 * black, most in between. */
#ifndef LIB_IMAGE_COLOUR_H
#define LIB_IMAGE_COLOUR_H

#include "image_frame.h"

enum {
    IMAGE_COLOUR_REACH = 2,         // pixels around the middle of a neighbourhood
    IMAGE_COLOUR_FLAT = 24,         // a neighbourhood with less contrast than this has no lines
    IMAGE_COLOUR_PIXELS = 4000000,  // in larger images, lines are wider than the squares
};
/* A line is fully coloured when the neighbourhood has 60 % of the colour it could have, since JPEG rounds much of it
 * away, and grey at 10 %. Set on validation figures at quality 75. */
#define IMAGE_COLOUR_NONE 0.1f
#define IMAGE_COLOUR_GAIN 2.0f

/* ITU-R BT.601, as in JPEG. */
static inline float image_luma(const uint8_t *rgb) { return 0.299f * rgb[0] + 0.587f * rgb[1] + 0.114f * rgb[2]; }

/* The largest t for which luma + t * direction is a colour, with all its channels from 0 to 255. up and down: 255 and 0
 * are reached in each channel at (255 - luma) * up and luma * down. */
static inline float image_colour_room(float luma, float up, float down) {
    const float a = (255 - luma) * up, b = luma * down;
    return a < b ? a : b;
}

/* The colour of the middle pixel (x, y) from the colour of its neighbourhood. */
static inline void image_colour_pixel(uint8_t *out, const Image *p, const float *luma, int x, int y) {
    const int reach = IMAGE_COLOUR_REACH, w = p->width, h = p->height;
    const int left = x < reach ? 0 : x - reach, right = x + reach < w ? x + reach : w - 1;
    const int top = y < reach ? 0 : y - reach, bottom = y + reach < h ? y + reach : h - 1;
    float sum[3] = {0}, low = 255, high = 0, most = 0, total = 0, above = 0, below = 0;
    for (int v = top; v <= bottom; v++)
        for (int u = left; u <= right; u++) {
            const float l = luma[(size_t)v * w + u];
            const uint8_t *rgb = image_at(p, u, v);
            for (int k = 0; k < 3; k++) sum[k] += rgb[k] - l;
            low = l < low ? l : low;
            high = l > high ? l : high;
        }
    if (high - low < IMAGE_COLOUR_FLAT) return;
    for (int k = 0; k < 3; k++) most = fmaxf(most, fabsf(sum[k]));
    if (most == 0) return;
    for (int k = 0; k < 3; k++) {
        sum[k] /= most;
        above = fmaxf(above, sum[k]);
        below = fmaxf(below, -sum[k]);
    }
    const float up = above > 0 ? 1 / above : 1e6f, down = below > 0 ? 1 / below : 1e6f;
    for (int v = top; v <= bottom; v++)
        for (int u = left; u <= right; u++) total += image_colour_room(luma[(size_t)v * w + u], up, down);
    const float share = ((total > 0 ? most / total : 0) - IMAGE_COLOUR_NONE) * IMAGE_COLOUR_GAIN;
    const float own = luma[(size_t)y * w + x];
    const float amount = image_colour_room(own, up, down) * (share < 0 ? 0 : share > 1 ? 1 : share);
    for (int k = 0; k < 3; k++) out[k] = (uint8_t)fminf(fmaxf(own + amount * sum[k] + 0.5f, 0), 255);
}

/* Restores the colour of thin lines in an image of at most IMAGE_COLOUR_PIXELS pixels. */
static inline void image_colour_restore(Image *p) {
    const size_t n = (size_t)p->width * p->height;
    if (n > IMAGE_COLOUR_PIXELS) return;
    float *luma = xcalloc(n, sizeof *luma);
    uint8_t *out = xmalloc(3 * n);
    for (size_t i = 0; i < n; i++) luma[i] = image_luma(p->rgb + 3 * i);
    memcpy(out, p->rgb, 3 * n);
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++) image_colour_pixel(out + 3 * ((size_t)y * p->width + x), p, luma, x, y);
    free(luma);
    free(p->rgb);
    p->rgb = out;
}

#endif
