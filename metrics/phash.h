/* Perceptual hash: 64 bits that stay nearly the same when an image is changed a little. The grey image is resized to 32 x 32
 * with Lanczos's filter and transformed (DCT-II in both directions); of the 8 x 8 lowest frequencies, row by row, each bit
 * says whether the coefficient is above their median. Equals imagehash.phash, but for coefficients that are the median up to
 * rounding (of an image of one colour, of a symmetric one): their bits are 0 here and chance there. */
#ifndef METRICS_PHASH_H
#define METRICS_PHASH_H

#include "frame.h"

enum { PHASH_IMAGE = 32, PHASH_SIDE = 8, PHASH_BITS = PHASH_SIDE * PHASH_SIDE };

#define PHASH_TIE 1e-6  // coefficients are about 1e3 to 1e6, and exact to about 1e-9

static inline int phash_order(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The lowest frequencies of a DCT-II in two dimensions, not normalised: each is the sum of
 * 4 x[i, j] cos(pi u (2 i + 1) / 64) cos(pi v (2 j + 1) / 64). x [32, 32], out [8, 8] */
static inline void phash_dct(double *out, const uint8_t *x) {
    double cosine[PHASH_SIDE][PHASH_IMAGE], columns[PHASH_SIDE][PHASH_IMAGE];
    for (int u = 0; u < PHASH_SIDE; u++)
        for (int i = 0; i < PHASH_IMAGE; i++) cosine[u][i] = 2 * cos(M_PI * u * (2 * i + 1) / (2 * PHASH_IMAGE));
    for (int u = 0; u < PHASH_SIDE; u++)
        for (int j = 0; j < PHASH_IMAGE; j++) {
            columns[u][j] = 0;
            for (int i = 0; i < PHASH_IMAGE; i++) columns[u][j] += cosine[u][i] * x[i * PHASH_IMAGE + j];
        }
    for (int u = 0; u < PHASH_SIDE; u++)
        for (int v = 0; v < PHASH_SIDE; v++) {
            double sum = 0;
            for (int j = 0; j < PHASH_IMAGE; j++) sum += cosine[v][j] * columns[u][j];
            out[u * PHASH_SIDE + v] = sum;
        }
}

/* The first coefficient's bit is the highest. */
static inline uint64_t phash_bits(const double *coefficients) {
    double sorted[PHASH_BITS];
    uint64_t bits = 0;
    memcpy(sorted, coefficients, sizeof sorted);
    qsort(sorted, PHASH_BITS, sizeof *sorted, phash_order);
    const double median = (sorted[PHASH_BITS / 2 - 1] + sorted[PHASH_BITS / 2]) / 2;
    for (int i = 0; i < PHASH_BITS; i++) bits = bits << 1 | (coefficients[i] > median + PHASH_TIE);
    return bits;
}

/* Resizes rows of S values to 32, rounded as in Pillow, and transposes. in [rows, S], out [32, rows] */
static inline void phash_resize(uint8_t *out, const uint8_t *in, int rows, int S, const ImageTaps *t) {
    for (int y = 0; y < rows; y++, in += S)
        for (int o = 0; o < PHASH_IMAGE; o++) {
            const uint8_t *from = in + t->first[o];
            const int32_t *weight = t->weight + (size_t)o * t->max_taps;
            int32_t sum = 1 << (IMAGE_WEIGHT_BITS - 1);
            for (int i = 0; i < t->count[o]; i++) sum += weight[i] * from[i];
            sum >>= IMAGE_WEIGHT_BITS;
            out[(size_t)o * rows + y] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
}

static inline uint64_t phash(const CommonFrame *f) {
    const int S = f->size;
    uint8_t *columns = (uint8_t *)xmalloc((size_t)PHASH_IMAGE * S), small[PHASH_IMAGE * PHASH_IMAGE];
    double coefficients[PHASH_BITS];
    ImageTaps taps = image_taps(image_filter_lanczos, S, PHASH_IMAGE);
    phash_resize(columns, f->grey, S, S, &taps);
    phash_resize(small, columns, PHASH_IMAGE, S, &taps);
    image_taps_free(&taps);
    free(columns);
    phash_dct(coefficients, small);
    return phash_bits(coefficients);
}

/* The share of equal bits. */
static inline double phash_similarity(uint64_t a, uint64_t b) {
    return 1 - (double)__builtin_popcountll(a ^ b) / PHASH_BITS;
}

#endif
