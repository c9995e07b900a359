/* Pearson's correlation of pairs that come one after another. Means and sums of squared deviations are updated, not sums of
 * squares, which would cancel (Welford 1962); two halves are merged as in Chan, Golub & LeVeque 1983. */
#ifndef METRICS_MOMENTS_H
#define METRICS_MOMENTS_H

#include <math.h>

typedef struct {
    double count, x, y;  // pairs, means
    double xx, yy, xy;   // sums of products of the deviations from the means
} Moments;

static inline void moments_add(Moments *m, double x, double y) {
    const double dx = x - m->x, dy = y - m->y;
    m->count++;
    m->x += dx / m->count;
    m->y += dy / m->count;
    m->xx += dx * (x - m->x);
    m->yy += dy * (y - m->y);
    m->xy += dx * (y - m->y);
}

static inline void moments_merge(Moments *m, const Moments *more) {
    const double count = m->count + more->count;
    if (count == 0) return;
    const double dx = more->x - m->x, dy = more->y - m->y, between = m->count * more->count / count;
    m->xx += more->xx + dx * dx * between;
    m->yy += more->yy + dy * dy * between;
    m->xy += more->xy + dx * dy * between;
    m->x += dx * more->count / count;
    m->y += dy * more->count / count;
    m->count = count;
}

/* NaN where all x, or all y, are equal. */
static inline double moments_correlation(const Moments *m) {
    return m->xx > 0 && m->yy > 0 ? m->xy / (sqrt(m->xx) * sqrt(m->yy)) : NAN;
}

#endif
