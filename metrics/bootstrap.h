/* Confidence intervals by resampling the samples of a dataset (Efron 1979), and whether two models differ, by resampling the
 * same samples for both (paired bootstrap; Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").
 *
 * Every figure of a model is a function of sums over the samples: an accuracy of two sums, BLEU of ten. A resample takes as
 * many samples as there are, with replacement, and adds up what was counted of each; the figure is computed from the sums. */
#ifndef METRICS_BOOTSTRAP_H
#define METRICS_BOOTSTRAP_H

#include "../lib/error.h"

#include "../lib/random.h"

#include <math.h>

enum { BOOTSTRAP_RESAMPLES = 1000, BOOTSTRAP_GROUP = 20 };  // the groups have all resamples

/* What is counted of a sample, and how two counts are added. All zeros are the sum of no samples. */
typedef struct {
    size_t bytes;
    void (*add)(void *sum, const void *sample);
} SampleKind;

typedef struct {
    size_t bytes;
    int count;    // samples
    char *total;  // sum of the samples themselves
    char *sums;   // [BOOTSTRAP_RESAMPLES], of the resamples
} Bootstrap;

typedef struct {
    double value, low, high;  // low, high: of the 95 % interval; not a number where the value is none
} Interval;

/* A figure from the sum of samples, and a number that says which; not a number where it is not defined. */
typedef double (*BootstrapFigure)(const void *sums, int which);

/* Adds the samples to the sums of BOOTSTRAP_GROUP resamples from number `first` on. It is counted first how often each resample
 * takes each sample; so the samples are read once, in their order, for all of the group, though they may not fit into a cache. */
static inline void bootstrap_group(Bootstrap *b, const char *samples, SampleKind kind, uint64_t seed, int first) {
    uint32_t *times = (uint32_t *)xcalloc((size_t)b->count * BOOTSTRAP_GROUP, sizeof *times);
    for (int r = 0; r < BOOTSTRAP_GROUP; r++) {
        Random random;
        random_seed3(&random, seed, (uint64_t)(first + r), (uint64_t)b->count);
        for (int i = 0; i < b->count; i++)
            times[random_below(&random, (uint64_t)b->count) * BOOTSTRAP_GROUP + (size_t)r]++;
    }
    for (int i = 0; i < b->count; i++)
        for (int r = 0; r < BOOTSTRAP_GROUP; r++)
            for (uint32_t k = times[(size_t)i * BOOTSTRAP_GROUP + (size_t)r]; k > 0; k--)
                kind.add(b->sums + (size_t)(first + r) * kind.bytes, samples + (size_t)i * kind.bytes);
    free(times);
}

/* Resamples an array of `count` samples. The same seed and count pick the same samples, so that two models are paired. */
static inline void bootstrap_open(Bootstrap *b, const void *samples, int count, SampleKind kind, uint64_t seed) {
    const char *all = (const char *)samples;
    b->bytes = kind.bytes;
    b->count = count;
    b->total = (char *)xcalloc(1, kind.bytes);
    b->sums = (char *)xcalloc(BOOTSTRAP_RESAMPLES, kind.bytes);
    for (int i = 0; i < count; i++) kind.add(b->total, all + (size_t)i * kind.bytes);
#pragma omp parallel for schedule(dynamic)
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r += BOOTSTRAP_GROUP) bootstrap_group(b, all, kind, seed, r);
}

static inline void bootstrap_close(Bootstrap *b) {
    free(b->total);
    free(b->sums);
}

static inline int bootstrap_compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value at a share of n > 0 sorted values, linear between neighbours. */
static inline double bootstrap_quantile(const double *sorted, int n, double share) {
    const double at = share * (n - 1);
    const int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

/* The value, and the interval of its finite resamples; of one sample there is none. */
static inline Interval bootstrap_of(double value, double *resampled, int count) {
    Interval out = {value, NAN, NAN};
    int n = 0;
    if (count < 2) return out;
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++)
        if (isfinite(resampled[r])) resampled[n++] = resampled[r];
    if (!n || !isfinite(value)) return out;
    qsort(resampled, (size_t)n, sizeof *resampled, bootstrap_compare);
    out.low = bootstrap_quantile(resampled, n, 0.025);
    out.high = bootstrap_quantile(resampled, n, 0.975);
    return out;
}

static inline Interval bootstrap_interval(const Bootstrap *b, BootstrapFigure figure, int which) {
    double values[BOOTSTRAP_RESAMPLES];
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++) values[r] = figure(b->sums + (size_t)r * b->bytes, which);
    return bootstrap_of(figure(b->total, which), values, b->count);
}

/* a - b, with its interval. The models differ significantly (at 5 %) where the interval leaves out 0. */
static inline Interval bootstrap_difference(const Bootstrap *a, const Bootstrap *b, BootstrapFigure figure,
                                            int which) {
    double values[BOOTSTRAP_RESAMPLES];
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++)
        values[r] = figure(a->sums + (size_t)r * a->bytes, which) - figure(b->sums + (size_t)r * b->bytes, which);
    return bootstrap_of(figure(a->total, which) - figure(b->total, which), values, a->count);
}

static inline bool bootstrap_significant(const Interval *difference) {
    return difference->low > 0 || difference->high < 0;
}

#endif
