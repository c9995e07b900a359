/* Sums over the softmax of rows of logits, in double. */
#ifndef METRICS_SOFTMAX_H
#define METRICS_SOFTMAX_H

#include "lanes.h"

/* ---- one row ---- */

/* Sums over the entries of a row x, with e = exp(x - top). They overflow nowhere, whatever the logits. */
typedef struct {
    double top;   // the largest entry
    double z, w;  // sums of e and of e (x - top)
} Softmax;

/* The same at a temperature T: y = (x - top) / T, e = exp(y). */
typedef struct {
    double top;
    double z, w, q;  // sums of e, e y and e^2
} SoftSoftmax;

/* -sum of p log p, in nats. */
LANES_INLINE double softmax_entropy(double z, double w) {
    const double h = log(z) - w / z;
    return h > 0 ? h : 0;  // may be rounded below
}

/* T where it is a small whole number, whose power of exp(y) is exp(x - top); else 0. */
LANES_INLINE int softmax_power(double T) { return T >= 1 && T <= 8 && T == (int)T ? (int)T : 0; }

/* Sums in lanes: z, w at temperature 1; zT, wT, qT at T. */
typedef struct {
    vd z, w, zT, wT, qT;
} SoftmaxLanes;

/* Adds four entries to the sums; *p gets their exponentials at T. power: of softmax_power. */
LANES_INLINE void softmax_step(SoftmaxLanes *s, vd *p, const vd *x, double top, double to_T, int power) {
    const vd d = *x - top, y = d * to_T;
    vd_exp(p, &y);
    s->zT += *p;
    s->wT += *p * y;
    s->qT += *p * *p;
    vd p1 = *p;
    if (power)
        for (int k = 1; k < power; k++) p1 *= *p;
    else
        vd_exp(&p1, &d);
    s->z += p1;
    s->w += p1 * d;
}

/* Both sums over a finite row x [n] with the largest entry `top`, at the temperatures 1 and T; e, if not NULL, gets the
 * exponentials at T, a multiple of four of them (0 after the n-th). */
LANES_INLINE void softmax_row(Softmax *s, SoftSoftmax *soft, double *e, const float *x, int n, double top, double T) {
    SoftmaxLanes sums = {0};
    const int power = softmax_power(T);
    vd v, p;
    int i = 0;
    for (; i + VD_LANES <= n; i += VD_LANES) {
        vd_load(&v, x + i);
        softmax_step(&sums, &p, &v, top, 1 / T, power);
        if (e) memcpy(e + i, &p, sizeof p);
    }
    if (i < n) {
        vd_load_some(&v, x + i, n - i);
        softmax_step(&sums, &p, &v, top, 1 / T, power);
        if (e) memcpy(e + i, &p, sizeof p);
    }
    *s = (Softmax){top, vd_sum(&sums.z), vd_sum(&sums.w)};
    *soft = (SoftSoftmax){top, vd_sum(&sums.zT), vd_sum(&sums.wT), vd_sum(&sums.qT)};
}

/* Adds the sums over more entries of the row. */
LANES_INLINE void softmax_join(Softmax *a, const Softmax *b) {
    const double top = a->top > b->top ? a->top : b->top, from_a = exp(a->top - top), from_b = exp(b->top - top);
    const double w = from_a * (a->w + a->z * (a->top - top)) + from_b * (b->w + b->z * (b->top - top));
    *a = (Softmax){top, from_a * a->z + from_b * b->z, w};
}

/* ---- two rows ---- */

/* Divergences of p, the softmax of t / T, and q, that of s / T; in nats. */
typedef struct {
    double kl, reverse_kl, js;  // sum of p log(p/q); of q log(q/p); (KL(p||m) + KL(q||m)) / 2, m = (p + q) / 2
} Divergences;

/* Sums in lanes: p ratio, q ratio, m log m, with ratio = log (p_i / q_i) up to a constant. */
typedef struct {
    vd p, q, m;
} DivergenceLanes;

LANES_INLINE void softmax_divergence_step(DivergenceLanes *s, const vd *p, const vd *q, const vd *ratio, double to_p,
                                          double to_q) {
    s->p += *p * *ratio;
    s->q += *q * *ratio;
    vd logarithm;
    const vd m = *p * to_p + *q * to_q + DBL_MIN;  // where both are 0
    vd_log(&logarithm, &m);
    s->m += m * logarithm;
}

/* Of rows t and s [n] with their sums and exponentials at T. KL(p||q) = sum of p (log p - log q), in which the difference
 * of logarithms is taken from the logits; JS = H(m) - (H(p) + H(q)) / 2. All are 0 or more, and may be rounded below. */
LANES_INLINE void softmax_divergences(Divergences *d, const float *t, const SoftSoftmax *a, const double *et,
                                      const float *s, const SoftSoftmax *b, const double *es, int n, double T) {
    DivergenceLanes sums = {0};
    const double to_p = 0.5 / a->z, to_q = 0.5 / b->z;
    vd p, q, x, y;
    for (int i = 0; i < n; i += VD_LANES) {
        memcpy(&p, et + i, sizeof p);
        memcpy(&q, es + i, sizeof q);
        if (i + VD_LANES <= n) {
            vd_load(&x, t + i);
            vd_load(&y, s + i);
        } else {
            vd_load_some(&x, t + i, n - i);
            vd_load_some(&y, s + i, n - i);
        }
        const vd ratio = ((x - a->top) - (y - b->top)) * (1 / T);
        softmax_divergence_step(&sums, &p, &q, &ratio, to_p, to_q);
    }
    const double log_z = log(a->z) - log(b->z);
    d->kl = fmax(0, vd_sum(&sums.p) / a->z - log_z);
    d->reverse_kl = fmax(0, log_z - vd_sum(&sums.q) / b->z);
    d->js = fmax(0, -vd_sum(&sums.m) - (softmax_entropy(a->z, a->w) + softmax_entropy(b->z, b->w)) / 2);
}

#endif
