/* What a search for a program cost (Belouadi et al. 2024, "DeTikZify"): mean token efficiency and mean sampling throughput,
 * both winsorised, so that a few images on which a search ran wild do not decide. */
#ifndef METRICS_SEARCH_COST_H
#define METRICS_SEARCH_COST_H

#include "../lib/error.h"

#include <math.h>

#define SEARCH_COST_LIMIT 0.05  // the share of the values that is cut off at each end

static inline int search_cost_compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The mean after the share `limit`, below 0.5, of the values at each end has been replaced by the nearest value that is
 * left, as scipy.stats.mstats.winsorize does it: the number of replaced values is rounded down. NaN of no values. */
static inline double winsorised_mean(const double *values, size_t n, double limit) {
    if (n == 0) return NAN;
    double *sorted = (double *)xmalloc(n * sizeof *sorted), sum = 0;
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, search_cost_compare);
    const size_t low = (size_t)(limit * (double)n), high = n - 1 - low;
    for (size_t i = 0; i < n; i++) sum += sorted[i < low ? low : i > high ? high : i];
    free(sorted);
    return sum / (double)n;
}

/* The efficiency of one search, whose winsorised mean is MTE: tokens (in DeTikZify's own script characters) of the program
 * that was returned, divided by those of all programs that were tried, the returned one among them. 0 where none was. The
 * throughput of one search, whose mean is MST, is the number of different programs that it found in its time. */
static inline double search_efficiency(double returned, double tried) { return tried > 0 ? returned / tried : 0; }

#endif
