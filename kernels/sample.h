/* The arithmetic of choosing a token. It is the same on every device bit for bit, so that a seed gives the same
 * completion on all of them: weights are whole numbers, whose sums do not depend on the order of the additions.
 *
 *   distance  q = log2 of (the largest probability / this one), in steps of 2^-24; tokens beyond 2^40 are never drawn
 *   weight    2^40 / 2^(q 2^-24), to fp32's precision
 *   order     by distance, equal ones by id; top-k and top-p keep the first tokens of this order
 *   draw      the first kept token, by id, at which the running sum of the kept tokens' weights exceeds u times their
 *             total, where u in [0, 1) is a function of (seed, stream, position) */
#ifndef KERNELS_SAMPLE_H
#define KERNELS_SAMPLE_H

#include "ops.h"
#include "../lib/random.h"

#ifdef __CUDACC__
#define SAMPLE_INLINE static __device__ __forceinline__
#else
#define SAMPLE_INLINE static inline
#endif

enum { SAMPLE_FRACTION = 24, SAMPLE_RANGE = 40 };  // a distance's bits after the point, and its largest whole part
enum { SAMPLE_ID_BITS = 20, SAMPLE_DIGIT = 10, SAMPLE_BINS = 1 << SAMPLE_DIGIT };
enum { SAMPLE_KEY_BITS = 50 };  // of (distance, id): a distance has 30 bits, and a vocabulary at most 2^20 tokens
#define SAMPLE_NEVER 0xffffffffu

/* distance = scale (largest logit - logit) */
SAMPLE_INLINE float sample_scale(float temperature) { return 1.44269504f * (1 << SAMPLE_FRACTION) / temperature; }

SAMPLE_INLINE uint32_t sample_distance(float logit, float top, float scale) {
    float below = top - logit, q = below * scale;
    if (logit == top) return 0;
    return q < (float)((uint32_t)SAMPLE_RANGE << SAMPLE_FRACTION) ? (uint32_t)q : SAMPLE_NEVER;  // NaN is never drawn
}

/* 2^40 times 2^-f by a polynomial with an error of 3e-9, where f in [0, 1) is the fraction, shifted by the whole
 * part. fmaf fixes every rounding, so that no compiler rounds differently. */
SAMPLE_INLINE uint64_t sample_weight(uint32_t distance) {
    const float f = (float)(distance & ((1u << SAMPLE_FRACTION) - 1)) * 0x1p-24f;
    float p = fmaf(0x1.ca8f0ap-14f, f, -0x1.4e600cp-10f);
    p = fmaf(p, f, 0x1.39e9b0p-7f);
    p = fmaf(p, f, -0x1.c694ecp-5f);
    p = fmaf(p, f, 0x1.ebfabcp-3f);
    p = fmaf(p, f, -0x1.62e42cp-1f);
    p = fmaf(p, f, 1.0f);
    return distance == SAMPLE_NEVER ? 0 : (uint64_t)(p * 0x1p40f) >> (distance >> SAMPLE_FRACTION);
}

SAMPLE_INLINE uint64_t sample_key(uint32_t distance, int id) {
    return (uint64_t)distance << SAMPLE_ID_BITS | (uint32_t)id;
}

/* top-p keeps a token when the tokens before it weigh less than this; at least 1, so that the first one stays. */
SAMPLE_INLINE uint64_t sample_target(float top_p, uint64_t total) {
    if (!(top_p < 1)) return total;
    const uint64_t target = (uint64_t)ceil((double)top_p * (double)total);
    return target ? target : 1;
}

SAMPLE_INLINE bool sample_is_limited(const Sampling *s) { return s->top_k > 0 || s->top_p < 1; }
SAMPLE_INLINE bool sample_is_greedy(const Sampling *s) { return !(s->temperature > 0) || s->top_k == 1; }

/* Uniform in 0 .. total-1. */
SAMPLE_INLINE uint64_t sample_draw(uint64_t seed, int stream, int position, uint64_t total) {
    uint64_t x = seed;
    x = random_splitmix(&x) ^ (uint32_t)stream;
    x = random_splitmix(&x) ^ (uint32_t)position;
    return (uint64_t)((unsigned __int128)random_splitmix(&x) * total >> 64);
}

#endif
