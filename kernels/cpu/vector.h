/* Vectors for the CPU kernels: one native register of fp32 lanes, by the vector extensions of GCC and clang; loads
 * and stores of fp32 and bf16, whole or partial, one vector or a group of them; and a thread's scratch memory. Every
 * kernel in this folder is written with them. So the ragged end of a row goes through the same arithmetic as its
 * middle, and the bits do not depend on how a loop was divided. */
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

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

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

/* yes in the lanes where mask, the result of a comparison, is all ones, no in those where it is 0. */
static inline vf vf_select(vi mask, vf yes, vf no) {
#if defined(VECTOR_256)
    return (vf)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
#else
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
#endif
}

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
    if (n == LANES) {
        vf_store(p, v);
    } else {
#if defined(VECTOR_512)
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
        vf copy = v;  // v itself stays in a register
        memcpy(p, &copy, n * sizeof(float));
#endif
    }
}

static inline vh vh_load_n(const bf16 *p, size_t n) {
#if defined(VECTOR_512)
    if (n < LANES) return (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
    bf16 part[LANES];
    if (n < LANES) {
        memset(part, 0, sizeof part);
        memcpy(part, p, n * sizeof(bf16));
        p = part;
    }
#endif
    vh h;
    memcpy(&h, p, sizeof h);
    return h;
}

static inline void vh_store_n(bf16 *p, vh h, size_t n) {
    if (n == LANES) {
        memcpy(p, &h, sizeof h);
    } else {
#if defined(VECTOR_512)
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)h);
#else
        vh copy = h;
        memcpy(p, &copy, n * sizeof(bf16));
#endif
    }
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

/* The bits of v rounded to bf16, in the upper half of each lane; the lower half is undefined. */
static inline vu bf16_bits(vf v) {
    vu u = (vu)v;
    return (vu)vf_select(v != v, v + v, (vf)(u + 0x7fffu + ((u >> 16) & 1u)));  // v + v: a quiet NaN
}

/* Rounds to nearest, ties to even; NaN stays NaN. AVX512-BF16's instruction does the same, except that fp32
 * subnormals (below 1.2e-38) become zero. */
static inline vh vf_to_bf16(vf v) {
#if defined(VECTOR_512) && defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#elif defined(VECTOR_256)
    __m256i high = (__m256i)(bf16_bits(v) >> 16);
    return (vh)_mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
#else
    return __builtin_convertvector(bf16_bits(v) >> 16, vh);
#endif
}

/* even and odd, rounded, side by side: a lane has an element of even in its lower half, one of odd in its upper. */
static inline vu bf16_pairs(vf even, vf odd) {
#if defined(VECTOR_512) && defined(__AVX512BF16__)
    return vu_from_vh(vf_to_bf16(even)) | vu_from_vh(vf_to_bf16(odd)) << 16;
#else
    return bf16_bits(even) >> 16 | (bf16_bits(odd) & 0xffff0000u);
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

/* ---- groups ---- GROUP vectors at once: one instruction after the other for each of them, so that no instruction
 * waits for the one before. A group of bf16 is widened and rounded in pairs: of two neighbours, which share a lane of
 * 32 bits, the first becomes an fp32 by a shift and the second by clearing the first, and no element moves between
 * lanes. So the elements of a group are in an order of its own, the same for all loads and stores of floatX. */
enum { GROUP = 4, GROUP_SIZE = GROUP * LANES };

/* Loads n <= GROUP_SIZE elements; the others are `padding`. */
ALWAYS_INLINE void vx_load_group(vf *x, const floatX *p, size_t n, float padding) {
    floatX part[GROUP_SIZE];
    if (n < GROUP_SIZE) {
        for (size_t i = n; i < GROUP_SIZE; i++) part[i] = to_x(padding);
        memcpy(part, p, n * sizeof *p);
        p = part;
    }
#ifdef PRECISION_FP32
    for (int i = 0; i < GROUP; i++) x[i] = vf_load(p + i * LANES);
#else
    for (int i = 0; i < GROUP; i += 2) {
        vu two;
        memcpy(&two, p + i * LANES, sizeof two);
        x[i] = (vf)(two << 16), x[i + 1] = (vf)(two & 0xffff0000u);
    }
#endif
}

ALWAYS_INLINE void vx_store_group(floatX *p, const vf *x, size_t n) {
    floatX part[GROUP_SIZE], *to = n < GROUP_SIZE ? part : p;
#ifdef PRECISION_FP32
    for (int i = 0; i < GROUP; i++) vf_store(to + i * LANES, x[i]);
#else
    for (int i = 0; i < GROUP; i += 2) {
        vu two = bf16_pairs(x[i], x[i + 1]);
        memcpy(to + i * LANES, &two, sizeof two);
    }
#endif
    if (n < GROUP_SIZE) memcpy(p, part, n * sizeof *p);
}

/* Where element i of an array is when its vectors are stored in the order of groups. */
static inline size_t group_place(size_t i) {
#ifdef PRECISION_FP32
    return i;
#else
    size_t in_pair = i % (2 * LANES);
    return i - in_pair + in_pair % 2 * LANES + in_pair / 2;
#endif
}

ALWAYS_INLINE void vf_load_group(vf *x, const float *p) {
    for (int i = 0; i < GROUP; i++) x[i] = vf_load(p + i * LANES);
}

ALWAYS_INLINE void vf_store_group(float *p, const vf *x) {
    for (int i = 0; i < GROUP; i++) vf_store(p + i * LANES, x[i]);
}

static inline float vf_sum_group(const vf *x) { return vf_sum((x[0] + x[1]) + (x[2] + x[3])); }

/* for (i = begin; i < end; i += LANES or GROUP_SIZE), where m is the number of elements of this step. */
#define FOR_STEPS(i, m, begin, end, step)                                                                            \
    for (size_t i = (begin), i##_end = (end), m; i < i##_end && (m = i##_end - i < step ? i##_end - i : step, true); \
         i += step)
#define FOR_LANES(i, m, begin, end) FOR_STEPS (i, m, begin, end, LANES)
#define FOR_GROUPS(i, m, begin, end) FOR_STEPS (i, m, begin, end, GROUP_SIZE)

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
static inline size_t round_up(size_t n, size_t step) { return div_up(n, step) * step; }
static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

#endif
