/* Kernel inception distance (Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", 2018): how far two sets of
 * images are from each other, given a feature vector of each image. With k(x, y) = (x·y / d + 1)³, the unbiased estimate of
 * the squared maximum mean discrepancy of s images of each set is
 *
 *   MMD² = (sum of k(x, x') + sum of k(y, y')) / (s (s - 1)) - 2 / s² sum of k(x, y),   x != x', y != y'
 *
 * and the distance is its mean over 100 random subsets of 50 images of each set. It may be below 0 when the sets are alike;
 * papers print it times 1000. */
#ifndef METRICS_KID_H
#define METRICS_KID_H

#include "../lib/random.h"
#include "similarity.h"

enum { KID_SUBSETS = 100, KID_SUBSET_SIZE = 50 };

typedef struct {
    double mean, deviation;  // over the subsets; the population's standard deviation
    int subset_size;         // KID_SUBSET_SIZE, or all images of the smaller set where that has fewer
} Kid;

/* The sum of k(x, y) over the images x of one subset and y of another; of the same one: over all x before y, twice. */
static inline double kid_kernel_sum(const double *a, const uint32_t *of_a, const double *b, const uint32_t *of_b,
                                    int s, int d) {
    const bool same = a == b && of_a == of_b;
    double sum = 0;
    for (int i = 0; i < s; i++)
        for (int j = same ? i + 1 : 0; j < s; j++) {
            const double k = similarity_dot(a + (size_t)of_a[i] * d, b + (size_t)of_b[j] * d, (size_t)d) / d + 1;
            sum += k * k * k;
        }
    return same ? 2 * sum : sum;
}

/* MMD² of the images of_a [s] of a [, d] and of_b [s] of b [, d]; s is 2 at least. */
static inline double kid_of_subsets(const double *a, const uint32_t *of_a, const double *b, const uint32_t *of_b,
                                    int s, int d) {
    const double own = kid_kernel_sum(a, of_a, a, of_a, s, d) + kid_kernel_sum(b, of_b, b, of_b, s, d);
    return own / ((double)s * (s - 1)) - 2 * kid_kernel_sum(a, of_a, b, of_b, s, d) / ((double)s * s);
}

/* Draws s of n images without replacement for subset number `subset` of set 0 or 1. chosen: memory for n numbers, of which
 * the first s are the result. */
static inline void kid_draw(uint32_t *chosen, int n, int s, uint64_t seed, int subset, int set) {
    Random rng;
    random_seed3(&rng, seed, (uint64_t)subset, (uint64_t)set);
    for (int i = 0; i < n; i++) chosen[i] = (uint32_t)i;
    for (int i = 0; i < s; i++) {
        const uint32_t at = (uint32_t)i + (uint32_t)random_below(&rng, (uint64_t)(n - i)), drawn = chosen[at];
        chosen[at] = chosen[i];
        chosen[i] = drawn;
    }
}

/* The distance of n images a [n, d] and m images b [m, d], the same for any number of threads. Returns 0, or -1 with *err
 * filled. */
static inline int kid(Kid *k, const double *a, int n, const double *b, int m, int d, uint64_t seed, Error *err) {
    const int fewest = n < m ? n : m, s = fewest < KID_SUBSET_SIZE ? fewest : KID_SUBSET_SIZE;
    double value[KID_SUBSETS], sum = 0, square = 0;
    if (s < 2 || d < 1)
        return error_set(err, "the kernel inception distance needs two images of each set; there are %d and %d", n,
                         m);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < KID_SUBSETS; i++) {
        uint32_t *chosen = (uint32_t *)xmalloc(((size_t)n + m) * sizeof *chosen);
        kid_draw(chosen, n, s, seed, i, 0);
        kid_draw(chosen + n, m, s, seed, i, 1);
        value[i] = kid_of_subsets(a, chosen, b, chosen + n, s, d);
        free(chosen);
    }
    for (int i = 0; i < KID_SUBSETS; i++) sum += value[i];
    k->mean = sum / KID_SUBSETS;
    for (int i = 0; i < KID_SUBSETS; i++) square += (value[i] - k->mean) * (value[i] - k->mean);
    k->deviation = sqrt(square / KID_SUBSETS);
    k->subset_size = s;
    if (isfinite(k->deviation)) return 0;
    return error_set(err, "the features for the kernel inception distance are not all finite numbers");
}

#endif
