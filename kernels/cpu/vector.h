/* Vectors for the CPU kernels: one native register of fp32 lanes, by the vector extensions of GCC and clang; loads
 * and stores of fp32 and bf16, whole or partial; exp, log and the normal distribution function; and a thread's
 * scratch memory. Every kernel in this folder is written with them. So the ragged end of a row goes through the same
 * arithmetic as its middle, and the bits do not depend on how a loop was divided. */
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H

#include "../../lib/dtype.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VECTOR_512
#define LANES 16
#elif defined(__AVX2__)
#define VECTOR_256
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- arithmetic ---- */

static inline vf vf_set(float x) {
#if defined(VECTOR_512)
    return (vf)_mm512_set1_ps(x);
#elif defined(VECTOR_256)
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){0} + x;
#endif
}
static inline vf vf_zero(void) { return (vf){0}; }
static inline vf vf_select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

static inline vi lane_index(void) {
    vi index;
    for (int i = 0; i < LANES; i++) index[i] = i;
    return index;
}

/* Where either is NaN, the result is b, as in x86's instruction. */
static inline vf vf_max(vf a, vf b) {
#if defined(VECTOR_512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(VECTOR_256)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

static inline vf vf_min(vf a, vf b) {
#if defined(VECTOR_512)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(VECTOR_256)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vf_select(a < b, a, b);
#endif
}

static inline vf vf_sqrt(vf v) {
#if defined(VECTOR_512)
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(VECTOR_256)
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < LANES; i++) v[i] = sqrtf(v[i]);
    return v;
#endif
}

/* Rounds to whole numbers, ties to even. An instruction where there is one, because an addition could be fused with the
 * caller's multiplication, which would round otherwise. */
static inline vf vf_whole(vf v) {
#if defined(VECTOR_512)
    return (vf)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(VECTOR_256)
    return (vf)_mm256_round_ps((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    for (int i = 0; i < LANES; i++) v[i] = rintf(v[i]);
    return v;
#endif
}

static inline float vf_sum(vf v) {  // a balanced tree
#if defined(VECTOR_512)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) x[i] += x[i + step];
    return x[0];
#endif
}

static inline float vf_largest(vf v) {
#if defined(VECTOR_512)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int i = 1; i < LANES; i++)
        if (x[i] > x[0]) x[0] = x[i];
    return x[0];
#endif
}

/* ---- loads and stores ---- the _n forms touch only the first n <= LANES elements; the other lanes load as 0 */

static inline vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

static inline vf vf_load_n(const float *p, size_t n) {
    if (n == LANES) return vf_load(p);
#if defined(VECTOR_512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v = {0};
    memcpy(&v, p, n * sizeof(float));
    return v;
#endif
}

static inline void vf_store_n(float *p, vf v, size_t n) {
    if (n == LANES)
        vf_store(p, v);
    else
#if defined(VECTOR_512)
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
        memcpy(p, &v, n * sizeof(float));
#endif
}

static inline vh vh_load_n(const bf16 *p, size_t n) {
    vh h = {0};
    if (n == LANES)
        memcpy(&h, p, sizeof h);
    else
#if defined(VECTOR_512)
        h = (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
        memcpy(&h, p, n * sizeof(bf16));
#endif
    return h;
}

static inline void vh_store_n(bf16 *p, vh h, size_t n) {
    if (n == LANES)
        memcpy(p, &h, sizeof h);
    else
#if defined(VECTOR_512)
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)h);
#else
        memcpy(p, &h, n * sizeof(bf16));
#endif
}

static inline vu vu_from_vh(vh h) {
#if defined(VECTOR_512)
    return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(VECTOR_256)
    return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, vu);
#endif
}

static inline vf vf_from_bf16(vh h) { return (vf)(vu_from_vh(h) << 16); }

/* Rounds to nearest, ties to even; NaN stays NaN. AVX512-BF16's instruction does the same, except that fp32
 * subnormals (below 1.2e-38) become zero. */
static inline vh vf_to_bf16(vf v) {
#if defined(VECTOR_512) && defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
    vu u = (vu)v;
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vu quiet = (u >> 16) | 0x40u, is_nan = (vu)(v != v);
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), vh);
#endif
}

static inline vf bf16_load_n(const bf16 *p, size_t n) { return vf_from_bf16(vh_load_n(p, n)); }
static inline void bf16_store_n(bf16 *p, vf v, size_t n) { vh_store_n(p, vf_to_bf16(v), n); }

#ifdef PRECISION_FP32
static inline vf vx_load_n(const floatX *p, size_t n) { return vf_load_n(p, n); }
static inline void vx_store_n(floatX *p, vf v, size_t n) { vf_store_n(p, v, n); }
static inline vf vx_round(vf v) { return v; }
#else
static inline vf vx_load_n(const floatX *p, size_t n) { return bf16_load_n(p, n); }
static inline void vx_store_n(floatX *p, vf v, size_t n) { bf16_store_n(p, v, n); }
static inline vf vx_round(vf v) { return vf_from_bf16(vf_to_bf16(v)); }
#endif
static inline vf vx_load(const floatX *p) { return vx_load_n(p, LANES); }

/* for (i = begin; i < end; i += LANES), where m is the number of elements of this step. */
#define FOR_LANES(i, m, begin, end)              \
    for (size_t i = (begin), i##_end = (end), m; \
         i < i##_end && (m = i##_end - i < LANES ? i##_end - i : LANES, true); i += LANES)

/* Exchanges x[i][j] and x[j][i] of LANES vectors, by log2(LANES) rounds of a perfect shuffle of the rows. */
static inline void transpose_lanes(vf *x) {
#if LANES == 16
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST_HALVES 0, 4, 1, 5
#define SECOND_HALVES 2, 6, 3, 7
#endif
    for (int step = 1; step < LANES; step *= 2) {
        vf y[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + LANES / 2], FIRST_HALVES);
            y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + LANES / 2], SECOND_HALVES);
        }
        memcpy(x, y, sizeof y);
    }
}

/* ---- functions ---- */

/* e^x with a relative error of 2e-7: x = n ln 2 + r, then Taylor's polynomial for e^r on |r| <= ln 2 / 2, times 2^n.
 * It is 0 below -87.3, where results would be subnormal (and slow), and e^88 above 88; NaN stays NaN. */
static inline vf vf_exp(vf x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    vf y = vf_min(vf_set(88.0f), x);
    vf t = y * 1.44269504f + magic, n = t - magic;
    vf r = y - n * 0.693359375f;  // ln 2 in two parts, the first exact in few bits
    r = r + n * 2.12194440e-4f;
    vf p = r * (1.0f / 720.0f) + (1.0f / 120.0f);
    p = p * r + (1.0f / 24.0f);
    p = p * r + (1.0f / 6.0f);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
#if defined(VECTOR_512)
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)y, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
    return (vf)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
    vi whole = (vi)t - (vi)vf_set(magic);
    return vf_select(y < -87.3f, vf_zero(), p * (vf)((whole + 127) << 23));
#endif
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

static inline vf vf_sigmoid(vf x) {  // at least e^-80, far from subnormal numbers
    return vf_reciprocal(1.0f + vf_exp(vf_min(vf_set(80.0f), -x)));
}

/* Phi(x), the distribution function of the standard normal, with an absolute error of 1e-7, and its density
 * (Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26, with erfc(z) for z = |x| / sqrt 2). */
static inline vf vf_normal_cdf(vf x, vf *density) {
    vf z = (vf)((vi)x & 0x7fffffff) * 0.707106781f;
    vf t = vf_reciprocal(1.0f + 0.3275911f * z), e = vf_exp(-z * z);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf tail = 0.5f * p * t * e;
    *density = e * 0.398942280f;
    return vf_select(x < 0.0f, tail, 1.0f - tail);
}

/* ---- scratch ---- */

/* Memory that belongs to the calling thread: 64-byte aligned, at least `bytes` large, with undefined contents. It
 * grows, and is released only when the thread ends, so a training step allocates nothing. A thread can hold several
 * blocks, one in each slot; a second call with the same slot replaces the first block. */
enum { SCRATCH_SHARED, SCRATCH_A, SCRATCH_B, SCRATCH_C, SCRATCH_WIDE, SCRATCH_SLOTS };

typedef struct {
    void *memory[SCRATCH_SLOTS];
    size_t size[SCRATCH_SLOTS];
} Scratch;

static _Thread_local Scratch thread_scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_free(void *p) {
    Scratch *s = (Scratch *)p;
    for (int i = 0; i < SCRATCH_SLOTS; i++) free(s->memory[i]);
    memset(s, 0, sizeof *s);
}

static void scratch_key_create(void) {
    if (pthread_key_create(&scratch_key, scratch_free) != 0) abort();
}

static void *scratch(int slot, size_t bytes) {
    Scratch *s = &thread_scratch;
    if (bytes <= s->size[slot]) return s->memory[slot];
    pthread_once(&scratch_once, scratch_key_create);
    pthread_setspecific(scratch_key, s);
    size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    free(s->memory[slot]);
    s->memory[slot] = aligned_alloc(64, size);
    s->size[slot] = size;
    if (!s->memory[slot]) {
        fprintf(stderr, "error: out of memory: a CPU kernel needs %zu bytes of scratch\n", size);
        exit(1);
    }
    return s->memory[slot];
}

static inline size_t div_up(size_t a, size_t b) { return (a + b - 1) / b; }
static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

#endif
