/* How alike two images are: self-similarity, from features of a model's own vision encoder (Belouadi et al. 2024,
 * "DeTikZify"), and similarity of the pixels themselves. All sums are in double. 1: equal. */
#ifndef METRICS_SIMILARITY_H
#define METRICS_SIMILARITY_H

#include "../lib/image_size.h"
#include "../lib/transport.h"

typedef enum {
    SIMILARITY_PIXELS,  // cosine of the ink at several resolutions; needs no model
    SIMILARITY_PLACES,  // mean over the patches of the cosine of the two feature vectors at the same place
    SIMILARITY_MEAN,    // cosine of the mean feature vectors
    SIMILARITY_EMD,     // 2 tanh(-EMD) + 1 of the sets of feature vectors, each with the same weight; cost 1 - cosine
    SIMILARITIES
} Similarity;

static const char *const similarity_names[SIMILARITIES] = {"pixels", "places", "mean", "emd"};

/* a · b; eight sums, which the compiler adds in vectors. */
static inline double similarity_dot(const double *a, const double *b, size_t n) {
    double sum[8] = {0}, all = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] += a[i + k] * b[i + k];
    for (; i < n; i++) all += a[i] * b[i];
    for (size_t k = 0; k < 8; k++) all += sum[k];
    return all;
}

/* Of the zero vector with any other: 0; of two zero vectors: 1. */
static inline double similarity_cosine(const double *a, const double *b, size_t n) {
    const double aa = similarity_dot(a, a, n), bb = similarity_dot(b, b, n);
    if (aa == 0 || bb == 0) return aa == bb;
    return similarity_dot(a, b, n) / sqrt(aa * bb);
}

/* ---- of features ---- a, b [P, C] */

/* The mean of P vectors. */
static inline void similarity_pool(double *mean, const double *x, int P, int C) {
    for (int c = 0; c < C; c++) mean[c] = 0;
    for (int p = 0; p < P; p++)
        for (int c = 0; c < C; c++) mean[c] += x[(size_t)p * C + c];
    for (int c = 0; c < C; c++) mean[c] /= P;
}

static inline double similarity_mean(const double *a, const double *b, int P, int C) {
    double *pooled = (double *)xmalloc(2 * (size_t)C * sizeof *pooled);
    similarity_pool(pooled, a, P, C);
    similarity_pool(pooled + C, b, P, C);
    const double s = similarity_cosine(pooled, pooled + C, (size_t)C);
    free(pooled);
    return s;
}

static inline double similarity_places(const double *a, const double *b, int P, int C) {
    double sum = 0;
    for (int p = 0; p < P; p++) sum += similarity_cosine(a + (size_t)p * C, b + (size_t)p * C, (size_t)C);
    return sum / P;
}

/* The earth mover's distance of two sets of vectors. */
static inline double similarity_distance(const double *a, const double *b, int P, int C) {
    double *norm = (double *)xmalloc(2 * (size_t)P * sizeof *norm), result = INFINITY;
    double *cost = (double *)xmalloc((size_t)P * P * sizeof *cost);
    Error err;
    for (int i = 0; i < 2 * P; i++) {
        const double *row = (i < P ? a : b) + (size_t)(i % P) * C;
        norm[i] = sqrt(similarity_dot(row, row, (size_t)C));
    }
    for (int i = 0; i < P; i++)
        for (int j = 0; j < P; j++) {
            const double norms = norm[i] * norm[P + j];
            const double dot = similarity_dot(a + (size_t)i * C, b + (size_t)j * C, (size_t)C);
            cost[(size_t)i * P + j] = 1 - (norms > 0 ? dot / norms : norm[i] == norm[P + j]);
        }
    if (transport_cost(cost, P, P, NULL, NULL, &result, &err)) result = INFINITY;  // of features that are not finite
    free(cost);
    free(norm);
    return result;
}

/* The similarity of two encoded images. Not of the kind SIMILARITY_PIXELS. */
static inline double similarity_features(Similarity kind, const double *a, const double *b, int P, int C) {
    if (kind == SIMILARITY_MEAN) return similarity_mean(a, b, P, C);
    if (kind == SIMILARITY_PLACES) return similarity_places(a, b, P, C);
    return 2 * tanh(-similarity_distance(a, b, P, C)) + 1;
}

/* ---- of pixels ---- */

/* The ink of an image at several resolutions, one after another: whole numbers below 2^24. */
typedef struct {
    float *ink;
    size_t count[4];  // values of each resolution
} SimilarityInk;

/* A quarter of a size, rounded up. */
static inline ImageSize similarity_quarter(ImageSize s) { return image_size((s.height + 3) / 4, (s.width + 3) / 4); }

/* Adds up squares of 4 x 4. to [height / 4, width / 4, 3], rounded up, zeroed; from [height, width, 3] */
static inline void similarity_add_squares(float *to, const float *from, ImageSize s) {
    const int coarse = similarity_quarter(s).width;
    for (int y = 0; y < s.height; y++)
        for (int x = 0; x < s.width; x++, from += 3) {
            float *square = to + 3 * ((size_t)coarse * (size_t)(y / 4) + (size_t)(x / 4));
            for (int c = 0; c < 3; c++) square[c] += from[c];
        }
}

/* The ink (255 - value) of pixels u8 [height, width, 3], summed over squares of 1, 4, 16 and 64 pixels. */
static inline SimilarityInk similarity_ink(const uint8_t *pixels, ImageSize size) {
    SimilarityInk k;
    ImageSize s = size;
    size_t all = 0;
    for (int r = 0; r < 4; r++, s = similarity_quarter(s)) all += k.count[r] = image_size_bytes(s);
    k.ink = (float *)xcalloc(all, sizeof(float));
    for (size_t i = 0; i < k.count[0]; i++) k.ink[i] = 255 - pixels[i];
    float *ink = k.ink;
    s = size;
    for (int r = 0; r < 3; ink += k.count[r++], s = similarity_quarter(s))
        similarity_add_squares(ink + k.count[r], ink, s);
    return k;
}

/* The cosine of two vectors of ink, as of similarity_cosine; the sums are exact, so their order does not matter. */
static inline double similarity_ink_cosine(const float *a, const float *b, size_t n) {
    enum { LANES = 4 };  // which the compiler adds in vectors
    double aa[LANES] = {0}, bb[LANES] = {0}, ab[LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        const double x = a[i], y = b[i];
        aa[i % LANES] += x * x, bb[i % LANES] += y * y, ab[i % LANES] += x * y;
    }
    for (int k = 1; k < LANES; k++) aa[0] += aa[k], bb[0] += bb[k], ab[0] += ab[k];
    return aa[0] == 0 || bb[0] == 0 ? aa[0] == bb[0] : ab[0] / sqrt(aa[0] * bb[0]);
}

/* The mean over the resolutions of the cosine of the ink. Fine ones tell an exact drawing, coarse ones lead there. */
static inline double similarity_of_ink(const SimilarityInk *a, const SimilarityInk *b) {
    const float *x = a->ink, *y = b->ink;
    double sum = 0;
    for (int r = 0; r < 4; x += a->count[r], y += b->count[r], r++) sum += similarity_ink_cosine(x, y, a->count[r]);
    return sum / 4;
}

/* The same of pixels u8 [height, width, 3]. */
static inline double similarity_of_pixels(const uint8_t *a, const uint8_t *b, ImageSize size) {
    SimilarityInk x = similarity_ink(a, size), y = similarity_ink(b, size);
    const double s = similarity_of_ink(&x, &y);
    free(x.ink);
    free(y.ink);
    return s;
}

/* In which size a drawing is made before it is prepared for comparison with an image whose longest side, without its margin,
 * is `longest` (0: not known): in the image's, so that both are blurred alike, but in no more than twice the longest side of
 * the model's images. */
static inline int similarity_drawing_size(int longest, ImageSize size) {
    const int S = size.height > size.width ? size.height : size.width;
    return longest < 1 ? S : longest > 2 * S ? 2 * S : longest;
}

#endif
