/* Products of 32 whole numbers of 8 bits, by what each set of instructions has for them. The partial sums stay in
 * DOT_LANES lanes, and are exact. Weights are signed (q8, -127 .. 127) or 0 .. 15 (q4). */
#ifndef KERNELS_CPU_DOT_H
#define KERNELS_CPU_DOT_H

#include "vector.h"
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { DOT_LANES = LANES == 4 ? 4 : 8 };  // AVX-512 multiplies in vectors of 256 bits too: a group of 32

typedef int32_t di __attribute__((vector_size(DOT_LANES * 4)));
typedef uint32_t du __attribute__((vector_size(DOT_LANES * 4)));
typedef float df __attribute__((vector_size(DOT_LANES * 4)));
typedef uint16_t dh __attribute__((vector_size(DOT_LANES * 2)));

static inline df df_load(const float *p) {
    df v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void df_store(float *p, df v) { memcpy(p, &v, sizeof v); }

static inline float df_sum(df v) {  // a balanced tree
    float x[DOT_LANES];
    memcpy(x, &v, sizeof x);
    for (int step = DOT_LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) x[i] += x[i + step];
    return x[0];
}

#if defined(__AVX2__)
/* x86 multiplies unsigned by signed numbers. So a weight gives its magnitude, and its sign to the other factor. The sum of
 * two products fits into 16 bits: 2 * 127 * 127. */
typedef struct {
    __m256i value, magnitude;
} DotWeight;

static inline DotWeight dot_weight_q8(const uint8_t *p) {
    DotWeight w;
    w.value = _mm256_loadu_si256((const __m256i *)(const void *)p);
    w.magnitude = _mm256_abs_epi8(w.value);
    return w;
}

static inline DotWeight dot_weight_q4(const uint8_t *p) {
    const __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)p);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(pairs), _mm_srli_epi16(pairs, 4), 1);
    DotWeight w;
    w.value = w.magnitude = _mm256_and_si256(both, _mm256_set1_epi8(15));
    return w;
}

static inline di dot_group(DotWeight w, const int8_t *q, bool is_q4) {
    __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)q);
    if (!is_q4) x = _mm256_sign_epi8(x, w.value);
#if defined(__AVX512VNNI__)
    return (di)_mm256_dpbusd_epi32(_mm256_setzero_si256(), w.magnitude, x);
#elif defined(__AVXVNNI__)
    return (di)_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w.magnitude, x);
#else
    return (di)_mm256_madd_epi16(_mm256_maddubs_epi16(w.magnitude, x), _mm256_set1_epi16(1));
#endif
}
#elif defined(__ARM_NEON)
typedef struct {
    int8x16_t low, high;
} DotWeight;

static inline DotWeight dot_weight_q8(const uint8_t *p) {
    DotWeight w = {vld1q_s8((const int8_t *)p), vld1q_s8((const int8_t *)p + 16)};
    return w;
}

static inline DotWeight dot_weight_q4(const uint8_t *p) {
    const uint8x16_t pairs = vld1q_u8(p);
    DotWeight w = {vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4))};
    return w;
}

static inline di dot_group(DotWeight w, const int8_t *q, bool is_q4) {
    const int8x16_t low = vld1q_s8(q), high = vld1q_s8(q + 16);
    (void)is_q4;
#if defined(__ARM_FEATURE_DOTPROD)
    return (di)vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, low), w.high, high);
#else
    int16x8_t a = vmull_s8(vget_low_s8(w.low), vget_low_s8(low)),
              b = vmull_s8(vget_low_s8(w.high), vget_low_s8(high));
    a = vmlal_s8(a, vget_high_s8(w.low), vget_high_s8(low));  // two products fit into 16 bits: 2 * 127 * 127
    b = vmlal_s8(b, vget_high_s8(w.high), vget_high_s8(high));
    return (di)vpadalq_s16(vpaddlq_s16(a), b);
#endif
}
#else
typedef struct {
    int8_t q[32];
} DotWeight;

static inline DotWeight dot_weight_q8(const uint8_t *p) {
    DotWeight w;
    memcpy(w.q, p, sizeof w.q);
    return w;
}

static inline DotWeight dot_weight_q4(const uint8_t *p) {
    DotWeight w;
    for (int i = 0; i < 16; i++) w.q[i] = (int8_t)(p[i] & 15), w.q[i + 16] = (int8_t)(p[i] >> 4);
    return w;
}

static inline di dot_group(DotWeight w, const int8_t *q, bool is_q4) {
    di sum = {0};
    (void)is_q4;
    for (int lane = 0; lane < DOT_LANES; lane++)
        for (int i = lane; i < 32; i += DOT_LANES) sum[lane] += (int16_t)w.q[i] * (int16_t)q[i];
    return sum;
}
#endif

#endif
