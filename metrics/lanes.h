/* Four entries of a row at a time, in double: loading them, their exponential and logarithm; and the range of a row. The
 * functions are inlined into callers that are compiled for the processor's vectors (metrics/position.h). */
#ifndef METRICS_LANES_H
#define METRICS_LANES_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define LANES_INLINE static inline __attribute__((always_inline))

enum { VD_LANES = 4 };
typedef double vd __attribute__((vector_size(32)));
typedef int64_t vl __attribute__((vector_size(32)));
typedef uint64_t vu __attribute__((vector_size(32)));
typedef float vd_floats __attribute__((vector_size(16)));
typedef int32_t vd_ints __attribute__((vector_size(16)));

LANES_INLINE double vd_sum(const vd *x) { return ((*x)[0] + (*x)[1]) + ((*x)[2] + (*x)[3]); }

LANES_INLINE void vd_load(vd *out, const float *x) { *out = (vd){x[0], x[1], x[2], x[3]}; }

LANES_INLINE void vd_load_ints(vd *out, const int *x) { *out = (vd){x[0], x[1], x[2], x[3]}; }

/* n < 4 entries; a number below all floats stands for the others. */
LANES_INLINE void vd_load_some(vd *out, const float *x, int n) {
    *out = (vd){0} - 0x1p200;
    for (int k = 0; k < n; k++) (*out)[k] = x[k];
}

/* The polynomials below are summed in pairs, pairs of pairs and so on (Estrin's scheme), so that one multiplication need not
 * wait for another. */

/* e^x for x <= 0, with a relative error below 1e-12; 0 for x < -700. 2^k e^r with r = x - k log 2, |r| <= log(2)/2, by
 * Taylor's series. */
LANES_INLINE void vd_exp(vd *out, const vd *in) {
    const vd round = (vd){0} + 0x1.8p52;  // adding it leaves k in the lowest bits
    const vd x = *in, shifted = x * 0x1.71547652b82fep0 + round, k = shifted - round;
    const vd r = x - k * 0x1.62e42fefap-1 - k * 0x1.cf79abc9e3b39p-40;  // log 2 in two parts
    const vd r2 = r * r, r4 = r2 * r2;
    const vd low = (1 + r) + (0.5 + r * (1.0 / 6)) * r2;
    const vd middle = (1.0 / 24 + r * (1.0 / 120)) + (1.0 / 720 + r * (1.0 / 5040)) * r2;
    const vd high = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800);
    const vd p = low + (middle + high * r4) * r4;
    *out = (vd)((vl)(p * (vd)(((vl)shifted + 1023) << 52)) & (x >= -700));  // whatever came of what is below
}

/* log x for normal x > 0, with an error below 1e-12. x = 2^k m with m in [1/sqrt 2, sqrt 2), and
 * log m = 2 atanh s = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1). */
LANES_INLINE void vd_log(vd *out, const vd *in) {
    const vu bits = (vu)*in, exponent = (bits - 0x3fe6a09e667f3bcd) & 0xfff0000000000000;  // k * 2^52, wrapped
    const vd m = (vd)(bits - exponent), magic = (vd){0} + (0x1p52 + 2048);
    const vd k = (vd)(((exponent + 0x8000000000000000) >> 52) | 0x4330000000000000) - magic;
    const vd s = (m - 1) / (m + 1), z = s * s, z2 = z * z, z4 = z2 * z2;
    const vd low = (1 + z * (1.0 / 3)) + (1.0 / 5 + z * (1.0 / 7)) * z2;
    const vd high = (1.0 / 9 + z * (1.0 / 11)) + (1.0 / 13 + z * (1.0 / 15)) * z2;
    *out = k * 0x1.62e42fefa39efp-1 + 2 * s * (low + high * z4);
}

/* The smallest and the largest entry of a row. */
typedef struct {
    float low, high;
    bool finite;  // all entries are; else low and high mean nothing
} RowRange;

LANES_INLINE RowRange row_range(const float *x, int n) {
    RowRange r = {INFINITY, -INFINITY, true};
    int i = 0;
    float nothing = 0;  // NaN after an entry that is not finite
    if (n >= VD_LANES) {
        vd_floats low, high, none = {0};
        memcpy(&low, x, sizeof low);
        high = low;
        for (; i + VD_LANES <= n; i += VD_LANES) {
            vd_floats v;
            memcpy(&v, x + i, sizeof v);
            const vd_ints below = v<low, above = v> high;
            low = (vd_floats)((below & (vd_ints)v) | (~below & (vd_ints)low));
            high = (vd_floats)((above & (vd_ints)v) | (~above & (vd_ints)high));
            none += v * 0;
        }
        for (int k = 0; k < VD_LANES; k++) {
            r.low = low[k] < r.low ? low[k] : r.low;
            r.high = high[k] > r.high ? high[k] : r.high;
            nothing += none[k];
        }
    }
    for (; i < n; i++) {
        r.low = x[i] < r.low ? x[i] : r.low;
        r.high = x[i] > r.high ? x[i] : r.high;
        nothing += x[i] * 0;
    }
    r.finite = nothing == 0;
    return r;
}

#endif
