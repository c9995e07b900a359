/* Sums over the softmax of rows of logits, in double, four entries at a time. The functions are inlined into callers that
 * are compiled for the processor's vectors (metrics/position.h). */
#ifndef METRICS_SOFTMAX_H
#define METRICS_SOFTMAX_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define SOFTMAX_INLINE static inline __attribute__((always_inline))

enum { SOFTMAX_LANES = 4 };
typedef double vd __attribute__((vector_size(32)));
typedef int64_t vl __attribute__((vector_size(32)));
typedef uint64_t vu __attribute__((vector_size(32)));
typedef float vd_floats __attribute__((vector_size(16)));
typedef int32_t vd_ints __attribute__((vector_size(16)));

SOFTMAX_INLINE double vd_sum(const vd *x) { return ((*x)[0] + (*x)[1]) + ((*x)[2] + (*x)[3]); }

/* Entries i .. i+3 of x [n]; the lowest float stands for those beyond the end. */
SOFTMAX_INLINE void vd_load(vd *out, const float *x, int i, int n) {
    vd_floats v = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX};
    if (n - i >= SOFTMAX_LANES)
        memcpy(&v, x + i, sizeof v);
    else
        for (int k = 0; k < n - i; k++) v[k] = x[i + k];
    *out = __builtin_convertvector(v, vd);
}

/* e^x for x <= 0, with a relative error below 1e-12; 0 for x < -700. 2^k e^r with r = x - k log 2, |r| <= log(2)/2, by
 * Taylor's series. */
SOFTMAX_INLINE void vd_exp(vd *out, const vd *in) {
    static const double taylor[] = {1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                                    1.0 / 24,     1.0 / 6,     0.5,        1.0,       1.0};
    const vd round = (vd){0} + 0x1.8p52;  // adding it leaves k in the lowest bits
    const vl inside = *in >= -700;
    const vd x = (vd)((vl)*in & inside), shifted = x * 0x1.71547652b82fep0 + round, k = shifted - round;
    const vd r = x - k * 0x1.62e42fefap-1 - k * 0x1.cf79abc9e3b39p-40;  // log 2 in two parts
    vd p = (vd){0} + 1.0 / 3628800;
    for (int i = 0; i < 10; i++) p = p * r + taylor[i];
    *out = (vd)((vl)(p * (vd)(((vl)shifted + 1023) << 52)) & inside);
}

/* log x for normal x > 0, with an error below 1e-12. x = 2^k m with m in [1/sqrt 2, sqrt 2), and
 * log m = 2 atanh s, s = (m - 1) / (m + 1), by its series. */
SOFTMAX_INLINE void vd_log(vd *out, const vd *in) {
    static const double series[] = {1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0};
    const vu bits = (vu)*in, exponent = (bits - 0x3fe6a09e667f3bcd) & 0xfff0000000000000;  // k * 2^52, wrapped
    const vd m = (vd)(bits - exponent), magic = (vd){0} + (0x1p52 + 2048);
    const vd k = (vd)(((exponent + 0x8000000000000000) >> 52) | 0x4330000000000000) - magic;
    const vd s = (m - 1) / (m + 1), z = s * s;
    vd p = (vd){0} + 1.0 / 15;
    for (int i = 0; i < 7; i++) p = p * z + series[i];
    *out = k * 0x1.62e42fefa39efp-1 + 2 * s * p;
}

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
SOFTMAX_INLINE double softmax_entropy(double z, double w) {
    const double h = log(z) - w / z;
    return h > 0 ? h : 0;  // may be rounded below
}

/* The largest entry of x [n]; NaN where an entry is not finite. */
SOFTMAX_INLINE double softmax_top(const float *x, int n) {
    vd_floats best = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, nothing = {0};
    for (int i = 0; i < n; i += SOFTMAX_LANES) {
        vd_floats v = {x[i], x[i], x[i], x[i]};
        memcpy(&v, x + i, (size_t)(n - i < SOFTMAX_LANES ? n - i : SOFTMAX_LANES) * sizeof *x);
        const vd_ints larger = v > best;
        best = (vd_floats)((larger & (vd_ints)v) | (~larger & (vd_ints)best));
        nothing += v * 0;  // NaN where it is not finite
    }
    float top = best[0], sum = nothing[0];
    for (int k = 1; k < SOFTMAX_LANES; k++) {
        top = best[k] > top ? best[k] : top;
        sum += nothing[k];
    }
    return (double)(top + sum);
}

/* T where it is a small whole number, whose power of exp(y) is exp(x - top); else 0. */
SOFTMAX_INLINE int softmax_power(double T) { return T >= 1 && T <= 8 && T == (int)T ? (int)T : 0; }

/* Both sums over a finite row x [n], n > 0, at the temperatures 1 and T; e, if not NULL, gets the exponentials at T, a
 * multiple of four of them (0 after the n-th). */
SOFTMAX_INLINE void softmax_row(Softmax *s, SoftSoftmax *soft, double *e, const float *x, int n, double T) {
    vd z = {0}, w = {0}, zT = {0}, wT = {0}, q = {0};
    const int power = softmax_power(T);
    const double top = softmax_top(x, n);
    for (int i = 0; i < n; i += SOFTMAX_LANES) {
        vd d, y, p, p1;
        vd_load(&d, x, i, n);
        d -= top;
        y = d * (1 / T);
        vd_exp(&p, &y);
        if (e) memcpy(e + i, &p, sizeof p);
        zT += p;
        wT += p * y;
        q += p * p;
        p1 = p;
        for (int k = 1; k < power; k++) p1 *= p;
        if (!power) vd_exp(&p1, &d);
        z += p1;
        w += p1 * d;
    }
    *s = (Softmax){top, vd_sum(&z), vd_sum(&w)};
    *soft = (SoftSoftmax){top, vd_sum(&zT), vd_sum(&wT), vd_sum(&q)};
}

/* Adds the sums over more entries of the row. */
SOFTMAX_INLINE void softmax_join(Softmax *a, const Softmax *b) {
    const double top = a->top > b->top ? a->top : b->top, from_a = exp(a->top - top), from_b = exp(b->top - top);
    const double w = from_a * (a->w + a->z * (a->top - top)) + from_b * (b->w + b->z * (b->top - top));
    *a = (Softmax){top, from_a * a->z + from_b * b->z, w};
}

/* ---- two rows ---- */

/* Divergences of p, the softmax of t / T, and q, that of s / T; in nats. */
typedef struct {
    double kl, reverse_kl, js;  // sum of p log(p/q); of q log(q/p); (KL(p||m) + KL(q||m)) / 2, m = (p + q) / 2
} Divergences;

/* Of rows t and s [n] with their sums and exponentials at T. KL(p||q) = sum of p (log p - log q), in which the difference
 * of logarithms is taken from the logits; JS = H(m) - (H(p) + H(q)) / 2. All are 0 or more, and may be rounded below. */
SOFTMAX_INLINE void softmax_divergences(Divergences *d, const float *t, const SoftSoftmax *a, const double *et,
                                        const float *s, const SoftSoftmax *b, const double *es, int n, double T) {
    vd under_p = {0}, under_q = {0}, mixed = {0};
    const vd least = (vd){0} + DBL_MIN;
    const double to_p = 0.5 / a->z, to_q = 0.5 / b->z;
    for (int i = 0; i < n; i += SOFTMAX_LANES) {
        vd p, q, x, y, m, logarithm;
        memcpy(&p, et + i, sizeof p);
        memcpy(&q, es + i, sizeof q);
        vd_load(&x, t, i, n);
        vd_load(&y, s, i, n);
        const vd ratio = ((x - a->top) - (y - b->top)) * (1 / T);
        under_p += p * ratio;
        under_q += q * ratio;
        m = p * to_p + q * to_q;
        m += least;  // where both are 0
        vd_log(&logarithm, &m);
        mixed += m * logarithm;
    }
    const double log_z = log(a->z) - log(b->z);
    d->kl = fmax(0, vd_sum(&under_p) / a->z - log_z);
    d->reverse_kl = fmax(0, log_z - vd_sum(&under_q) / b->z);
    d->js = fmax(0, -vd_sum(&mixed) - (softmax_entropy(a->z, a->w) + softmax_entropy(b->z, b->w)) / 2);
}

#endif
