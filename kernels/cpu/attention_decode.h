/* Attention of new tokens against the keys and values of the tokens before them, and the caches that hold those. */
#ifndef KERNELS_CPU_ATTENTION_DECODE_H
#define KERNELS_CPU_ATTENTION_DECODE_H

#include "attention.h"

/* dst [D] = a query or key as fp32, rotated where there is RoPE. */
static inline void load_rotated(float *dst, const floatX *src, const float *rope, size_t D) {
    if (rope)
        rotate_x(dst, src, rope, D);
    else
        FOR_LANES (d, m, 0, D) vf_store_n(dst + d, vx_load_n(src + d, m), m);
}

/* Stores the key, rotated, and the value of head kv at row (b, t) of qkv at `position` of the caches. */
static void cache_store_row(floatX *kcache, floatX *vcache, const floatX *qkv, const AttentionShape *s, size_t b,
                            size_t kv, size_t t, size_t position, size_t max_T) {
    size_t D = s->D;
    const floatX *row = qkv + (b * s->T + t) * (size_t)(s->H + 2 * s->K) * D;
    size_t at = ((b * s->K + kv) * max_T + position) * D;
    float *key = (float *)scratch(SCRATCH_C, round_up(D, LANES) * sizeof(float));
    load_rotated(key, row + (s->H + kv) * D, rope_row(s, position), D);
    FOR_LANES (e, n, 0, D) vx_store_n(kcache + at + e, vf_load_n(key + e, n), n);
    memcpy(vcache + at, row + (s->H + s->K + kv) * D, D * sizeof(floatX));
}

static void cpu_cache_store(floatX *kcache, floatX *vcache, const floatX *qkv, AttentionShape s, int start,
                            int max_T) {
#pragma omp parallel for schedule(static) if ((size_t)s.B * s.T * s.K * s.D > 16384)
    for (size_t i = 0; i < (size_t)s.B * s.T * s.K; i++) {
        size_t b = i / s.K / s.T, t = i / s.K % s.T;
        cache_store_row(kcache, vcache, qkv, &s, b, i % s.K, t, start + t, max_T);
    }
}

/* One query head of one new token attends to positions 0 .. position of the caches of its key/value head. */
static void decode_head(floatX *out, const floatX *query, const floatX *keys, const floatX *values, size_t position,
                        const AttentionShape *s) {
    size_t D = s->D, n = position + 1, padded = round_up(n, LANES);
    float *q = (float *)scratch(SCRATCH_A, (round_up(D, LANES) + padded) * sizeof(float)),
          *x = q + round_up(D, LANES);
    load_rotated(q, query, rope_row(s, position), D);
    for (size_t t = 0; t < n; t++) {
        vf sum = vf_zero();
        FOR_LANES (d, m, 0, D) sum += vf_load_n(q + d, m) * vx_load_n(keys + t * D + d, m);
        x[t] = vf_sum(sum) * s->scale;
    }
    float top = x[0];
    for (size_t t = 1; t < n; t++) top = x[t] > top ? x[t] : top;
    for (size_t t = n; t < padded; t++) x[t] = -INFINITY;
    vf sum = vf_zero();
    for (size_t t = 0; t < padded; t += LANES) {
        vf e = vf_exp(vf_load(x + t) - top);
        vf_store(x + t, e);
        sum += e;
    }
    float inverse = 1.0f / vf_sum(sum);
    for (size_t d = 0; d < D; d += 4 * LANES) {  // four sums at a time hide the latency of adding
        vf total[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        size_t width[4];
        for (size_t v = 0; v < 4; v++) width[v] = min_size(LANES, D - min_size(D, d + v * LANES));
        for (size_t t = 0; t < n; t++)
            for (size_t v = 0; v < 4; v++) total[v] += x[t] * vx_load_n(values + t * D + d + v * LANES, width[v]);
        for (size_t v = 0; v < 4; v++) vx_store_n(out + d + v * LANES, total[v] * inverse, width[v]);
    }
}

/* A task takes the tokens of one sequence and one key/value head in order. */
static void cpu_attention_decode(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv, const int *positions,
                                 AttentionShape s, int max_T) {
    size_t D = s.D, T = s.T, group = s.H / s.K;
#pragma omp parallel for schedule(static) if (s.B > 1 || (positions[0] + T) * T * s.H * D > 16384)
    for (size_t task = 0; task < (size_t)s.B * s.K; task++) {
        size_t b = task / s.K, kv = task % s.K, head = task * max_T * D;
        for (size_t t = 0; t < T; t++) {
            size_t row = b * T + t, position = positions[b] + t;
            cache_store_row(kcache, vcache, qkv, &s, b, kv, t, position, max_T);
            for (size_t h = kv * group; h < (kv + 1) * group; h++)
                decode_head(out + (row * s.H + h) * D, qkv + (row * (s.H + 2 * s.K) + h) * D, kcache + head,
                            vcache + head, position, &s);
        }
    }
}

#endif
