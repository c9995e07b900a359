/* Calibration: does a model that is sure with probability c turn out right in c of the cases? Predictions are sorted into
 * ten bins by confidence (the probability of the likeliest token); the reliability curve is each bin's accuracy beside its
 * mean confidence, and the expected calibration error
 *
 *     ECE = sum over bins of (n_b / N) |accuracy_b - confidence_b|          (Guo et al. 2017)
 *
 * Bin b is [b/10, (b+1)/10), the last one closed. */
#ifndef METRICS_RELIABILITY_H
#define METRICS_RELIABILITY_H

#include <math.h>
#include <stdbool.h>

enum { RELIABILITY_BINS = 10 };

/* Sums over the predictions of each bin. */
typedef struct {
    double count[RELIABILITY_BINS], confidence[RELIABILITY_BINS], correct[RELIABILITY_BINS];
} Reliability;

/* The bin of a confidence in [0, 1]. */
static inline int reliability_bin(double confidence) {
    int b = (int)(confidence * RELIABILITY_BINS);  // the product may be rounded up to an edge
    if (b > 0 && confidence < (double)b / RELIABILITY_BINS) b--;
    return b < RELIABILITY_BINS ? b : RELIABILITY_BINS - 1;
}

static inline void reliability_add(Reliability *r, double confidence, bool correct) {
    const int b = reliability_bin(confidence);
    r->count[b]++;
    r->confidence[b] += confidence;
    r->correct[b] += correct;
}

static inline void reliability_merge(Reliability *r, const Reliability *more) {
    for (int b = 0; b < RELIABILITY_BINS; b++) {
        r->count[b] += more->count[b];
        r->confidence[b] += more->confidence[b];
        r->correct[b] += more->correct[b];
    }
}

/* NaN without predictions. */
static inline double reliability_error(const Reliability *r) {
    double count = 0, error = 0;
    for (int b = 0; b < RELIABILITY_BINS; b++) {
        count += r->count[b];
        error += fabs(r->correct[b] - r->confidence[b]);
    }
    return count > 0 ? error / count : NAN;
}

#endif
