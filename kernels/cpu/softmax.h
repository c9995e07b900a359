/* Sums over the softmax of rows of logits, in double, for the figures of a position (kernels/figures.h). */
#ifndef KERNELS_CPU_SOFTMAX_H
#define KERNELS_CPU_SOFTMAX_H

#include "../figures.h"
#include "doubles.h"

/* Below all floats: stands for entries that a row does not have. */
static const double NO_ENTRY = -0x1p200;

/* Entries i .. i + VD_LANES of x [n]. */
static inline vd softmax_load(const float *x, size_t i, size_t n) {
    if (i + VD_LANES <= n) return vd_from_floats(x + i);
    vd v = (vd){0} + NO_ENTRY;
    for (size_t k = 0; i + k < n; k++) v[k] = (double)x[i + k];
    return v;
}

/* ---- one row ---- */

/* T where it is a small whole number, whose power of exp(y) is exp(x - top); else 0. */
static int softmax_power(double T) { return T >= 1 && T <= 8 && T == (int)T ? (int)T : 0; }

/* Sums in lanes: z, w at temperature 1; zT, wT, qT at T. */
typedef struct {
    vd z, w, zT, wT, qT, weighted;
} SoftmaxLanes;

/* Adds the entries x to the sums; returns their exponentials at T. power: of softmax_power. */
ALWAYS_INLINE vd softmax_step(SoftmaxLanes *s, vd x, double top, double to_T, const int power) {
    const vd d = x - top, y = d * to_T, e = vd_exp(y);
    s->zT += e;
    s->wT += e * y;
    s->qT += e * e;
    vd e1 = e;
    for (int k = 1; k < power; k++) e1 *= e;
    if (!power) e1 = vd_exp(d);
    s->z += e1;
    s->w += e1 * d;
    return e;
}

/* The sums over a finite row x [n] with the largest entry `top`, at the temperatures 1 and T. twice, if not NULL: twice the
 * ranks, and e gets the exponentials at T (0 after the n-th); both in whole vectors. */
ALWAYS_INLINE void softmax_row_as(FigureSums *s, double *e, const int *twice, const float *x, size_t n, double top,
                                  double T, const int power) {
    SoftmaxLanes sums = {0};
    for (size_t i = 0; i < n; i += VD_LANES) {
        const vd p = softmax_step(&sums, softmax_load(x, i, n), top, 1 / T, power);
        if (!twice) continue;
        sums.weighted += p * vd_from_ints(twice + i);
        memcpy(e + i, &p, sizeof p);
    }
    *s = (FigureSums){.top = top,
                      .z = vd_sum(sums.z),
                      .w = vd_sum(sums.w),
                      .soft_top = top,
                      .zT = vd_sum(sums.zT),
                      .wT = vd_sum(sums.wT),
                      .qT = vd_sum(sums.qT),
                      .weighted = vd_sum(sums.weighted)};
}

static void softmax_row(FigureSums *s, double *e, const int *twice, const float *x, size_t n, double top, double T) {
    const int power = softmax_power(T);
    if (power == 1)
        softmax_row_as(s, e, twice, x, n, top, T, 1);
    else if (power == 2)
        softmax_row_as(s, e, twice, x, n, top, T, 2);
    else
        softmax_row_as(s, e, twice, x, n, top, T, power);
}

/* Adds the sums at temperature 1 over more entries of the row. */
static void softmax_join(FigureSums *a, const FigureSums *b) {
    const double top = a->top > b->top ? a->top : b->top, from_a = exp(a->top - top), from_b = exp(b->top - top);
    a->w = from_a * (a->w + a->z * (a->top - top)) + from_b * (b->w + b->z * (b->top - top));
    a->z = from_a * a->z + from_b * b->z;
    a->top = top;
}

/* ---- two rows ---- */

/* Of rows t and s [n] with their sums and exponentials at T. */
static DivergenceSums softmax_divergences(const float *t, const FigureSums *a, const double *et, const float *s,
                                          const FigureSums *b, const double *es, size_t n, double T) {
    vd sum_p = {0}, sum_q = {0}, sum_m = {0};
    const double to_p = 0.5 / a->zT, to_q = 0.5 / b->zT, tops = a->soft_top - b->soft_top;
    for (size_t i = 0; i < n; i += VD_LANES) {
        const vd p = vd_load(et + i), q = vd_load(es + i);
        const vd ratio = (softmax_load(t, i, n) - softmax_load(s, i, n) - tops) * (1 / T);
        sum_p += p * ratio;
        sum_q += q * ratio;
        const vd m = p * to_p + q * to_q + DBL_MIN;  // where both are 0
        sum_m += m * vd_log(m);
    }
    return (DivergenceSums){vd_sum(sum_p), vd_sum(sum_q), vd_sum(sum_m)};
}

#endif
