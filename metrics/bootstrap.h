/* Confidence intervals by resampling the samples of a dataset (Efron 1979), and whether two models differ, by resampling the
 * same samples for both (paired bootstrap; Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").
 *
 * Every figure of a model is a function of sums over the samples: an accuracy of two sums, BLEU of ten. A resample takes as
 * many samples as there are, with replacement, and adds up their rows; the figure is computed from those sums. */
#ifndef METRICS_BOOTSTRAP_H
#define METRICS_BOOTSTRAP_H

#include "../lib/error.h"

#include "../lib/random.h"

#include <math.h>

enum { BOOTSTRAP_RESAMPLES = 1000 };

typedef struct {
    int columns;
    double *total;  // [columns], of the samples themselves
    double *sums;   // [BOOTSTRAP_RESAMPLES, columns]
} Bootstrap;

typedef struct {
    double value, low, high;  // low, high: of the 95 % interval; not a number where the value is none
} Interval;

/* A figure from the sums of columns; not a number where it is not defined. */
typedef double (*BootstrapFigure)(const double *sums);

/* Resamples rows [count, columns]. The same seed and count draw the same samples, so that two models are paired. */
static inline void bootstrap_open(Bootstrap *b, const double *rows, int count, int columns, uint64_t seed) {
    Random random;
    int *times = (int *)xcalloc((size_t)count + 1, sizeof *times);
    random_seed(&random, seed);
    b->columns = columns;
    b->total = (double *)xcalloc((size_t)columns + 1, sizeof(double));
    b->sums = (double *)xcalloc((size_t)BOOTSTRAP_RESAMPLES * columns + 1, sizeof(double));
    for (int i = 0; i < count; i++)
        for (int c = 0; c < columns; c++) b->total[c] += rows[(size_t)i * columns + c];
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++) {
        double *sums = b->sums + (size_t)r * columns;
        memset(times, 0, (size_t)count * sizeof *times);
        for (int i = 0; i < count; i++) times[random_below(&random, (uint64_t)count)]++;
        for (int i = 0; i < count; i++)
            for (int c = 0; c < columns && times[i]; c++) sums[c] += times[i] * rows[(size_t)i * columns + c];
    }
    free(times);
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

/* The value, and the interval of its finite resamples. */
static inline Interval bootstrap_of(double value, double *resampled) {
    Interval out = {value, NAN, NAN};
    int n = 0;
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++)
        if (isfinite(resampled[r])) resampled[n++] = resampled[r];
    if (!n || !isfinite(value)) return out;
    qsort(resampled, (size_t)n, sizeof *resampled, bootstrap_compare);
    out.low = bootstrap_quantile(resampled, n, 0.025);
    out.high = bootstrap_quantile(resampled, n, 0.975);
    return out;
}

static inline Interval bootstrap_interval(const Bootstrap *b, BootstrapFigure figure) {
    double values[BOOTSTRAP_RESAMPLES];
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++) values[r] = figure(b->sums + (size_t)r * b->columns);
    return bootstrap_of(figure(b->total), values);
}

/* a - b, with its interval. The models differ significantly (at 5 %) where the interval leaves out 0. */
static inline Interval bootstrap_difference(const Bootstrap *a, const Bootstrap *b, BootstrapFigure figure) {
    double values[BOOTSTRAP_RESAMPLES];
    for (int r = 0; r < BOOTSTRAP_RESAMPLES; r++)
        values[r] = figure(a->sums + (size_t)r * a->columns) - figure(b->sums + (size_t)r * b->columns);
    return bootstrap_of(figure(a->total) - figure(b->total), values);
}

static inline bool bootstrap_significant(const Interval *difference) {
    return difference->low > 0 || difference->high < 0;
}

#endif
