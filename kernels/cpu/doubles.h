/* Vectors of doubles, half as many to a register as there are fp32 (vector.h): loading fp32 and whole numbers, exponential
 * and logarithm. */
#ifndef KERNELS_CPU_DOUBLES_H
#define KERNELS_CPU_DOUBLES_H

#include "vector.h"
#include <float.h>
#include <math.h>

enum { VD_LANES = LANES / 2 };
typedef double vd __attribute__((vector_size(LANES * 4)));
typedef int64_t vl __attribute__((vector_size(LANES * 4)));
typedef uint64_t vul __attribute__((vector_size(LANES * 4)));
typedef float vd_floats __attribute__((vector_size(LANES * 2)));
typedef int32_t vd_ints __attribute__((vector_size(LANES * 2)));

/* The sum of the lanes, as a balanced tree. */
static inline double vd_sum(vd v) {
    double x[VD_LANES];
    memcpy(x, &v, sizeof x);
    for (int step = VD_LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) x[i] += x[i + step];
    return x[0];
}

static inline vd vd_load(const double *p) {
    vd v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vd vd_from_floats(const float *p) {
    vd_floats v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vd);
}

static inline vd vd_from_ints(const int *p) {
    vd_ints v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vd);
}

/* The polynomials below are summed in pairs, pairs of pairs and so on (Estrin's scheme), so that one multiplication need not
 * wait for another. */

/* e^x for x <= 0, with a relative error below 1e-12; 0 for x < -700. 2^k e^r with r = x - k log 2, |r| <= log(2)/2, by
 * Taylor's series. */
ALWAYS_INLINE vd vd_exp(vd x) {
    const vd round = (vd){0} + 0x1.8p52;  // adding it leaves k in the lowest bits
    const vd shifted = x * 0x1.71547652b82fep0 + round, k = shifted - round;
    const vd r = x - k * 0x1.62e42fefap-1 - k * 0x1.cf79abc9e3b39p-40;  // log 2 in two parts
    const vd r2 = r * r, r4 = r2 * r2;
    const vd low = (1 + r) + (0.5 + r * (1.0 / 6)) * r2;
    const vd middle = (1.0 / 24 + r * (1.0 / 120)) + (1.0 / 720 + r * (1.0 / 5040)) * r2;
    const vd high = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800);
    const vd p = low + (middle + high * r4) * r4;
    return (vd)((vl)(p * (vd)(((vl)shifted + 1023) << 52)) & (x >= -700));  // whatever came of what is below
}

/* log x for normal x > 0, with an error below 1e-12. x = 2^k m with m in [1/sqrt 2, sqrt 2), and
 * log m = 2 atanh s = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1). */
ALWAYS_INLINE vd vd_log(vd x) {
    const vul bits = (vul)x, exponent = (bits - 0x3fe6a09e667f3bcd) & 0xfff0000000000000;  // k * 2^52, wrapped
    const vd m = (vd)(bits - exponent), magic = (vd){0} + (0x1p52 + 2048);
    const vd k = (vd)(((exponent + 0x8000000000000000) >> 52) | 0x4330000000000000) - magic;
    const vd s = (m - 1) / (m + 1), z = s * s, z2 = z * z, z4 = z2 * z2;
    const vd low = (1 + z * (1.0 / 3)) + (1.0 / 5 + z * (1.0 / 7)) * z2;
    const vd high = (1.0 / 9 + z * (1.0 / 11)) + (1.0 / 13 + z * (1.0 / 15)) * z2;
    return k * 0x1.62e42fefa39efp-1 + 2 * s * (low + high * z4);
}

#endif
