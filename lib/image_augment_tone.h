/* Augmentations that change the colours of an image: paper of another colour, contrast, brightness, blur, noise,
 * JPEG. Used by lib/image_augment.h. */
#ifndef LIB_IMAGE_AUGMENT_TONE_H
#define LIB_IMAGE_AUGMENT_TONE_H

#include "jpeg.h"
#include "jpeg_write.h"
#include "random.h"

#include <math.h>

/* ---- tables of colours ---- */

static inline uint8_t augment_level(double x) { return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x + 0.5); }

static inline void augment_by_table(Image *p, uint8_t table[3][256]) {
    for (size_t i = 0, n = 3 * (size_t)p->width * p->height; i < n; i += 3)
        for (int k = 0; k < 3; k++) p->rgb[i + k] = table[k][p->rgb[i + k]];
}

/* value -> (value - 127.5) contrast + 127.5 + brightness, in levels. */
static inline void augment_tone(Image *p, double contrast, double brightness) {
    uint8_t table[3][256];
    for (int v = 0; v < 256; v++)
        table[0][v] = table[1][v] = table[2][v] = augment_level((v - 127.5) * contrast + 127.5 + brightness);
    augment_by_table(p, table);
}

/* Lays the drawing on paper of this colour: white becomes the paper, and each colour is darkened alike. */
static inline void augment_background(Image *p, const double *paper) {
    uint8_t table[3][256];
    for (int k = 0; k < 3; k++)
        for (int v = 0; v < 256; v++) table[k][v] = augment_level(v * paper[k] / 255);
    augment_by_table(p, table);
}

/* ---- blur ---- */

/* out[i] = weight[0] in[i] + sum over j from 1 to reach of weight[j] (in[i - j step] + in[i + j step]) for i < n. */
static inline void augment_weighted(float *__restrict__ out, const float *__restrict__ in, size_t n, size_t step,
                                    const float *weight, int reach) {
    for (size_t i = 0; i < n; i++) out[i] = weight[0] * in[i];
    for (int j = 1; j <= reach; j++) {
        const float w = weight[j], *before = in - j * step, *after = in + j * step;
        for (size_t i = 0; i < n; i++) out[i] += w * (before[i] + after[i]);
    }
}

/* Blurs the image with a Gaussian of standard deviation `sigma` in pixels, cut off at 3 sigma; beyond the border, its
 * pixels go on. */
static inline void augment_blur(Image *p, double sigma) {
    const int reach = (int)ceil(3 * sigma), w = p->width, h = p->height;
    const size_t stride = 3 * (size_t)w;
    float *weight = xmalloc((reach + 1) * sizeof *weight),
          *line = xmalloc((stride + 6 * (size_t)reach) * sizeof *line);
    float *rows = xmalloc(stride * (h + 2 * (size_t)reach) * sizeof *rows), *middle = rows + stride * reach;
    double sum = 0;
    for (int j = -reach; j <= reach; j++) sum += exp(-0.5 * j * j / (sigma * sigma));
    for (int j = 0; j <= reach; j++) weight[j] = (float)(exp(-0.5 * j * j / (sigma * sigma)) / sum);
    for (int y = 0; y < h; y++) {
        const uint8_t *from = p->rgb + y * stride;
        for (int x = -reach; x < w + reach; x++)
            for (int k = 0; k < 3; k++)
                line[3 * (x + reach) + k] = from[3 * (size_t)(x < 0 ? 0 : x < w ? x : w - 1) + k];
        augment_weighted(middle + y * stride, line + 3 * (size_t)reach, stride, 3, weight, reach);
    }
    for (int y = 0; y < reach; y++) {
        memcpy(rows + y * stride, middle, stride * sizeof *rows);
        memcpy(middle + (h + y) * stride, middle + (h - 1) * stride, stride * sizeof *rows);
    }
    float *sums = xmalloc(stride * sizeof *sums);
    for (int y = 0; y < h; y++) {
        augment_weighted(sums, middle + y * stride, stride, stride, weight, reach);
        for (size_t i = 0; i < stride; i++) p->rgb[y * stride + i] = (uint8_t)fminf(sums[i] + 0.5f, 255);
    }
    free(sums);
    free(rows);
    free(line);
    free(weight);
}

/* ---- noise ---- */

/* The standard normal quantile of u, 1e-10 < u < 1 - 1e-10 (Wichura 1988, algorithm AS 241, PPND7; about 7 digits,
 * for the tails to 5 standard deviations). */
static inline double augment_normal_quantile(double u) {
    const double q = u - 0.5;
    if (fabs(q) <= 0.425) {
        const double r = 0.180625 - q * q;
        return q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179) /
               (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1);
    }
    const double r = sqrt(-log(q < 0 ? u : 1 - u)) - 1.6;
    const double x = (((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
                     ((0.12021132975 * r + 0.73700164250) * r + 1);
    return q < 0 ? -x : x;
}

/* Adds Gaussian noise of standard deviation `sigma` in levels, independent for each value. The noise is one of 4096
 * equally likely quantiles, so it is cut off at 3.7 sigma; five values take one random number. */
static inline void augment_noise(Image *p, double sigma, Random *random) {
    enum { BITS = 12, COUNT = 1 << BITS };
    int16_t table[COUNT];
    for (int i = 0; i < COUNT; i++) table[i] = (int16_t)lrint(sigma * augment_normal_quantile((i + 0.5) / COUNT));
    const size_t n = 3 * (size_t)p->width * p->height;
    for (size_t i = 0; i < n;) {
        uint64_t bits = random_u64(random);
        for (int k = 0; k < 5 && i < n; k++, i++, bits >>= BITS) {
            const int x = p->rgb[i] + table[bits & (COUNT - 1)];
            p->rgb[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
        }
    }
}

/* ---- JPEG ---- */

/* Stores the image as JPEG in memory, and reads it again. */
static inline void augment_jpeg(Image *p, int quality) {
    Error err;
    size_t size;
    uint8_t *bytes = jpeg_encode(p, quality, &size);
    image_free(p);
    if (image_decode_jpeg(p, bytes, size, IMAGE_MAX_PIXELS, "that was just made", &err) != 0)
        die("internal error: %s", err.text);
    free(bytes);
}

#endif
