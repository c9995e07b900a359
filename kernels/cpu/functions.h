/* exp, log, the sigmoid and the normal distribution function for vectors. The forms that end in _each replace x by the
 * function of x, for `count` <= GROUP vectors (vector.h) at once: with several vectors, no instruction waits
 * for the one before. The bits do not depend on count. */
#ifndef KERNELS_CPU_FUNCTIONS_H
#define KERNELS_CPU_FUNCTIONS_H

#include "vector.h"

/* e^x with a relative error of 2e-7: x = n ln 2 + r, then Taylor's polynomial for e^r on |r| <= ln 2 / 2, times 2^n.
 * It is 0 below -87.3, where results would be subnormal (and slow), and e^88 above 88; NaN stays NaN. */
ALWAYS_INLINE void vf_exp_each(vf *x, const int count) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    static const float taylor[] = {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    vf t[GROUP], r[GROUP], p[GROUP];
    for (int i = 0; i < count; i++) x[i] = vf_min(vf_set(88.0f), x[i]);
    for (int i = 0; i < count; i++) t[i] = x[i] * 1.44269504f + magic;
    /* n = t - magic; ln 2 in two parts, the first exact in few bits */
    for (int i = 0; i < count; i++) r[i] = x[i] - (t[i] - magic) * 0.693359375f;
    for (int i = 0; i < count; i++) r[i] = r[i] + (t[i] - magic) * 2.12194440e-4f;
    for (int i = 0; i < count; i++) p[i] = r[i] * (1.0f / 720.0f) + taylor[0];
    for (int k = 1; k < 6; k++)
        for (int i = 0; i < count; i++) p[i] = p[i] * r[i] + taylor[k];
    for (int i = 0; i < count; i++) {
#if defined(VECTOR_512)
        __mmask16 normal = _mm512_cmp_ps_mask((__m512)x[i], _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
        x[i] = (vf)_mm512_maskz_scalef_ps(normal, (__m512)p[i], (__m512)(t[i] - magic));
#else
        vf power = (vf)(((vi)t[i] - (vi)vf_set(magic) + 127) << 23);
        x[i] = (vf)(~(x[i] < -87.3f) & (vi)(p[i] * power));
#endif
    }
}

static inline vf vf_exp(vf x) {
    vf_exp_each(&x, 1);
    return x;
}

/* 1 / x with a relative error of 1e-7, for 1e-37 < |x| < 1e38. Where it is faster, it is an estimate and one step of
 * Newton's iteration. */
static inline vf vf_reciprocal(vf x) {
#if defined(VECTOR_512)
    vf r = (vf)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* log x, for normal x > 0, with a relative error of 1e-7: x = 2^e m with m in [sqrt 1/2, sqrt 2), then the series
 * log m = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1). */
static inline vf vf_log(vf x) {
    vi bits = (vi)x;
    vi e = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 = sqrt 1/2
    vf m = (vf)(bits - (e << 23));
    vf s = (m - 1.0f) * vf_reciprocal(m + 1.0f), z = s * s;
    vf p = z * (2.0f / 9.0f) + (2.0f / 7.0f);
    p = p * z + 0.4f;
    p = p * z + (2.0f / 3.0f);
    vf log_m = s * 2.0f + s * z * p;
    return log_m + __builtin_convertvector(e, vf) * 0.693147181f;
}

ALWAYS_INLINE void vf_sigmoid_each(vf *x, const int count) {
    for (int i = 0; i < count; i++) x[i] = vf_min(vf_set(80.0f), -x[i]);  // 1 / e^80 is far from subnormal numbers
    vf_exp_each(x, count);
    for (int i = 0; i < count; i++) x[i] = vf_reciprocal(1.0f + x[i]);
}

/* Phi(x), the distribution function of the standard normal, with an absolute error of 1e-7, and its density
 * (Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26, with erfc(z) for z = |x| / sqrt 2). */
ALWAYS_INLINE void vf_normal_cdf_each(vf *x, vf *density, const int count) {
    static const float tail[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    vf t[GROUP], p[GROUP], *e = density;
    for (int i = 0; i < count; i++) {
        vf z = (vf)((vi)x[i] & 0x7fffffff) * 0.707106781f;
        e[i] = -z * z;
        t[i] = vf_reciprocal(1.0f + 0.3275911f * z);
    }
    vf_exp_each(e, count);
    for (int i = 0; i < count; i++) p[i] = t[i] * tail[0] + tail[1];
    for (int k = 2; k < 5; k++)
        for (int i = 0; i < count; i++) p[i] = p[i] * t[i] + tail[k];
    for (int i = 0; i < count; i++) {
        vf below = 0.5f * p[i] * t[i] * e[i];  // Phi(-|x|)
        x[i] = vf_select(x[i] < 0.0f, below, 1.0f - below);
        density[i] = e[i] * 0.398942280f;
    }
}

#endif
