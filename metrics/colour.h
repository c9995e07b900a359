/* Colour: how alike the joint histograms and the colour moments of two images are. */
#ifndef METRICS_COLOUR_H
#define METRICS_COLOUR_H

#include "../lib/error.h"

#include <math.h>

/* ---- histograms ---- */

enum { HISTOGRAM_BINS = 8 * 8 * 8 };  // 8 levels of red, green and blue together

static inline void histogram_count(uint32_t *count, const uint8_t *rgb, size_t n) {
    memset(count, 0, HISTOGRAM_BINS * sizeof *count);
    for (size_t i = 0; i < n; i++) count[rgb[3 * i] >> 5 << 6 | rgb[3 * i + 1] >> 5 << 3 | rgb[3 * i + 2] >> 5]++;
}

/* Bhattacharyya's coefficient of two joint histograms p and q: the sum of sqrt(p q), from 0 (no bin is in both) to 1. a, b
 * [n, 3]. The paper counts as a colour: drawings with little ink are alike in this measure. */
static inline double histogram_similarity(const uint8_t *a, const uint8_t *b, size_t n) {
    uint32_t p[HISTOGRAM_BINS], q[HISTOGRAM_BINS];
    double sum = 0;
    histogram_count(p, a, n);
    histogram_count(q, b, n);
    for (int i = 0; i < HISTOGRAM_BINS; i++) sum += sqrt((double)p[i] * q[i]);
    return sum / (double)n;
}

/* ---- moments in CIE Lab ---- */

typedef struct {
    double lightness, a, b;
} Lab;

/* The linear value of each sRGB level (IEC 61966-2-1). */
static inline void lab_linear_levels(double linear[256]) {
    for (int i = 0; i < 256; i++) {
        const double v = i / 255.0;
        linear[i] = v > 0.04045 ? pow((v + 0.055) / 1.055, 2.4) : v / 12.92;
    }
}

/* The cube root of t in 0.001 .. 2, to 1e-13: a guess from the bits of the number, whose exponent is divided by three, and two
 * steps of Halley's method. Several times as fast as cbrt, which images of many colours call a million times. */
static inline double lab_cube_root(double t) {
    const float guess = (float)t;
    uint32_t bits;
    memcpy(&bits, &guess, sizeof bits);
    bits = bits / 3 + 709921077;  // two thirds of the exponent's bias, less what evens out the error (3 %)
    float near;
    memcpy(&near, &bits, sizeof near);
    double root = near;
    for (int i = 0; i < 2; i++) {
        const double cube = root * root * root;
        root *= (cube + 2 * t) / (2 * cube + t);
    }
    return root;
}

static inline double lab_response(double t) { return t > 0.008856 ? lab_cube_root(t) : 7.787 * t + 16 / 116.0; }

/* CIE 1976 L*a*b* of an sRGB colour; white point D65, 2 degree observer, the constants as CIE and ITU-R BT.709 print them. */
static inline Lab lab_from_rgb(const double *linear, const uint8_t *rgb) {
    const double r = linear[rgb[0]], g = linear[rgb[1]], b = linear[rgb[2]];
    const double x = lab_response((0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.95047);
    const double y = lab_response(0.212671 * r + 0.715160 * g + 0.072169 * b);
    const double z = lab_response((0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883);
    return (Lab){116 * y - 16, 500 * (x - y), 200 * (y - z)};
}

enum { LAB_MEMO = 4096 };  // colours that are remembered: drawings have few

/* Converts n pixels. lab [n], rgb [n, 3] */
static inline void lab_from_pixels(Lab *lab, const uint8_t *rgb, size_t n) {
    struct {
        uint32_t key;  // 1 + the colour; 0: empty
        Lab lab;
    } *memo = xcalloc(LAB_MEMO, sizeof *memo);
    double linear[256];
    lab_linear_levels(linear);
    for (size_t i = 0; i < n; i++, rgb += 3) {
        const uint32_t key = 1 + ((uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2]);
        const uint32_t slot = key * 2654435769u >> 20;
        if (memo[slot].key != key) {
            memo[slot].key = key;
            memo[slot].lab = lab_from_rgb(linear, rgb);
        }
        lab[i] = memo[slot].lab;
    }
    free(memo);
}

enum { COLOUR_MOMENTS = 9 };

/* The moments of each channel (L, a, b): mean, standard deviation, and cube root of the third central moment. A cube root
 * magnifies rounding: the last may be 1e-4 where colours that lie symmetrically around their mean should give 0. */
static inline void colour_moments(double moments[COLOUR_MOMENTS], const uint8_t *rgb, size_t n) {
    Lab *lab = (Lab *)xmalloc(n * sizeof *lab);
    double sum[3] = {0}, square[3] = {0}, cube[3] = {0};
    lab_from_pixels(lab, rgb, n);
    for (size_t i = 0; i < n; i++) sum[0] += lab[i].lightness, sum[1] += lab[i].a, sum[2] += lab[i].b;
    for (int c = 0; c < 3; c++) sum[c] /= (double)n;
    for (size_t i = 0; i < n; i++) {
        const double off[3] = {lab[i].lightness - sum[0], lab[i].a - sum[1], lab[i].b - sum[2]};
        for (int c = 0; c < 3; c++) square[c] += off[c] * off[c], cube[c] += off[c] * off[c] * off[c];
    }
    for (int c = 0; c < 3; c++) {
        moments[3 * c] = sum[c];
        moments[3 * c + 1] = sqrt(square[c] / (double)n);
        moments[3 * c + 2] = cbrt(cube[c] / (double)n);
    }
    free(lab);
}

/* 1 / (1 + d), where d is the mean absolute difference of the nine moments (Stricker and Orengo, "Similarity of Color
 * Images", 1995), in units of Lab: 1 is a difference that is just seen. a, b [n, 3] */
static inline double colour_similarity(const uint8_t *a, const uint8_t *b, size_t n) {
    double x[COLOUR_MOMENTS], y[COLOUR_MOMENTS], sum = 0;
    colour_moments(x, a, n);
    colour_moments(y, b, n);
    for (int i = 0; i < COLOUR_MOMENTS; i++) sum += fabs(x[i] - y[i]);
    return 1 / (1 + sum / COLOUR_MOMENTS);
}

#endif
