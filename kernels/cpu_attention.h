/* Attention: softmax(scale q k^T) v, full or causal, grouped queries, with RoPE applied on the way in. One task owns
 * one head of one sequence; its operands are copied to fp32 scratch, and scores exist for a block of query rows
 * only (FlashAttention's recomputation from the log-sum-exp in the backward pass, Dao et al. 2022). */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "cpu_small.h"
#include "ops.h"

enum { QUERY_BLOCK = 64 };

static inline size_t pad_lanes(size_t n) { return div_up(n, LANES) * LANES; }

/* x[0 .. D) = head of one position, rotated when rope is not NULL (inverse: rotated back). */
static inline void rotate(float *x, const float *rope, int D, float sign) {
    if (!rope) return;
    int half = D / 2;
    FOR_LANES(i, m, 0, (size_t)half) {
        vf a = vf_load_n(x + i, m), b = vf_load_n(x + half + i, m);
        vf c = vf_load_n(rope + i, m), s = sign * vf_load_n(rope + half + i, m);
        vf_store_n(x + i, a * c - b * s, m);
        vf_store_n(x + half + i, b * c + a * s, m);
    }
}

static inline const float *rope_row(const AttentionShape *s, size_t t) { return s->rope ? s->rope + t * s->D : NULL; }

/* dst [T, ld] = fp32 rows of D values that are `stride` apart in src */
static void load_head(float *dst, size_t ld, const floatX *src, size_t stride, const AttentionShape *s, bool turn) {
    for (int t = 0; t < s->T; t++) {
        FOR_LANES(d, m, 0, (size_t)s->D) vf_store(dst + t * ld + d, vx_load_n(src + t * stride + d, m));
        if (turn) rotate(dst + t * ld, rope_row(s, t), s->D, 1.0f);
    }
}

static void store_head(floatX *dst, size_t stride, float *src, size_t ld, const AttentionShape *s, bool turn) {
    for (int t = 0; t < s->T; t++) {
        if (turn) rotate(src + t * ld, rope_row(s, t), s->D, -1.0f);
        FOR_LANES(d, m, 0, (size_t)s->D) vx_store_n(dst + t * stride + d, vf_load(src + t * ld + d), m);
    }
}

/* dst [D, ldt] = src^T for src [T, ld] */
static void transpose_head(float *dst, size_t ldt, const float *src, size_t ld, int T, int D) {
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) dst[d * ldt + t] = src[t * ld + d];
}

/* Turns scores [rows, keys] of queries t0.. into unnormalised probabilities; scale and 1/sum per row go out. */
static void softmax_rows(float *scores, size_t ld, float *inverse, float *lse, size_t t0, size_t rows,
                         const AttentionShape *s) {
    for (size_t r = 0; r < rows; r++) {
        float *x = scores + r * ld;
        size_t keys = s->causal ? t0 + r + 1 : (size_t)s->T;
        for (size_t j = keys; j < ld; j++) x[j] = -INFINITY;
        vf largest = vf_set(-INFINITY), sum = vf_zero();
        for (size_t j = 0; j < ld; j += LANES) largest = vf_max(largest, vf_load(x + j));
        float top = vf_largest(largest);
        for (size_t j = 0; j < ld; j += LANES) {
            vf e = vf_exp((vf_load(x + j) - top) * s->scale);
            sum += e;
            vf_store(x + j, e);
        }
        float total = vf_sum(sum);
        inverse[r] = 1.0f / total;
        if (lse) lse[r] = top * s->scale + logf(total);
    }
}

static void cpu_attention_forward(floatX *out, float *lse, const floatX *qkv, AttentionShape s) {
    size_t T = s.T, D = s.D, stride = (size_t)(s.H + 2 * s.K) * D, ld = pad_lanes(D), ldt = pad_lanes(T);
#pragma omp parallel for schedule(dynamic) if (s.B * T * T * s.H * D > 16384)
    for (size_t task = 0; task < (size_t)s.B * s.H; task++) {
        size_t b = task / s.H, h = task % s.H, kv = h / (s.H / s.K);
        const floatX *row = qkv + b * T * stride;
        float *q = (float *)scratch(SCRATCH_A, (2 * T * ld + D * ldt + QUERY_BLOCK * (ldt + ld + 1)) * sizeof(float));
        float *v = q + T * ld, *kt = v + T * ld, *scores = kt + D * ldt, *o = scores + QUERY_BLOCK * ldt;
        float *inverse = o + QUERY_BLOCK * ld;
        load_head(v, ld, row + (s.H + kv) * D, stride, &s, true);
        transpose_head(kt, ldt, v, ld, T, D);
        load_head(v, ld, row + (s.H + s.K + kv) * D, stride, &s, false);
        load_head(q, ld, row + h * D, stride, &s, true);
        for (size_t t0 = 0; t0 < T; t0 += QUERY_BLOCK) {
            size_t rows = min_size(QUERY_BLOCK, T - t0), keys = s.causal ? t0 + rows : T;
            size_t padded = pad_lanes(keys);
            small_product(scores, padded, q + t0 * ld, ld, 1, kt, ldt, rows, padded, D, false);
            softmax_rows(scores, padded, inverse, lse ? lse + (b * s.H + h) * T + t0 : NULL, t0, rows, &s);
            small_product(o, ld, scores, padded, 1, v, ld, rows, ld, keys, false);
            for (size_t r = 0; r < rows; r++)
                FOR_LANES(d, m, 0, D)
            vx_store_n(out + (b * T + t0 + r) * s.H * D + h * D + d, vf_load(o + r * ld + d) * inverse[r], m);
        }
    }
}

/* probabilities P = exp(scale S - lse), then dS = P (dP - delta) scale in dp's place */
static void softmax_rows_backward(float *p, float *dp, size_t ld, const float *lse, const float *delta, size_t t0,
                                  size_t rows, const AttentionShape *s) {
    for (size_t r = 0; r < rows; r++) {
        size_t keys = s->causal ? t0 + r + 1 : (size_t)s->T;
        for (size_t j = keys; j < ld; j++) p[r * ld + j] = -INFINITY, dp[r * ld + j] = 0.0f;
        for (size_t j = 0; j < ld; j += LANES) {
            vf e = vf_exp(vf_load(p + r * ld + j) * s->scale - lse[r]);
            vf_store(p + r * ld + j, e);
            vf_store(dp + r * ld + j, e * (vf_load(dp + r * ld + j) - delta[r]) * s->scale);
        }
    }
}

typedef struct {
    float *k, *kt, *vt, *dk, *dv;                      // of the key/value head
    float *q, *dq, *dout, *delta;                      // of one query head
    float *p, *dp;                                     // a block of query rows
} HeadBackward;

static void attention_backward_head(HeadBackward *w, const float *lse, const AttentionShape *s, size_t ld,
                                    size_t ldt) {
    size_t T = s->T, D = s->D;
    for (size_t t0 = 0; t0 < T; t0 += QUERY_BLOCK) {
        size_t rows = min_size(QUERY_BLOCK, T - t0), keys = s->causal ? t0 + rows : T, padded = pad_lanes(keys);
        small_product(w->p, padded, w->q + t0 * ld, ld, 1, w->kt, ldt, rows, padded, D, false);
        small_product(w->dp, padded, w->dout + t0 * ld, ld, 1, w->vt, ldt, rows, padded, D, false);
        softmax_rows_backward(w->p, w->dp, padded, lse + t0, w->delta + t0, t0, rows, s);
        small_product(w->dq + t0 * ld, ld, w->dp, padded, 1, w->k, ld, rows, ld, keys, false);
        small_product(w->dk, ld, w->dp, 1, padded, w->q + t0 * ld, ld, keys, ld, rows, true);
        small_product(w->dv, ld, w->p, 1, padded, w->dout + t0 * ld, ld, keys, ld, rows, true);
    }
}

static void cpu_attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                   const floatX *qkv, AttentionShape s) {
    size_t T = s.T, D = s.D, stride = (size_t)(s.H + 2 * s.K) * D, ld = pad_lanes(D), ldt = pad_lanes(T);
    size_t floats = T * ld * 6 + 2 * D * ldt + T + 2 * QUERY_BLOCK * ldt;
#pragma omp parallel for schedule(dynamic) if (s.B * T * T * s.H * D > 16384)
    for (size_t task = 0; task < (size_t)s.B * s.K; task++) {
        size_t b = task / s.K, kv = task % s.K, group = s.H / s.K;
        const floatX *row = qkv + b * T * stride;
        floatX *drow = dqkv + b * T * stride;
        HeadBackward w;
        w.k = (float *)scratch(SCRATCH_A, floats * sizeof(float));
        w.dk = w.k + T * ld, w.dv = w.dk + T * ld, w.q = w.dv + T * ld, w.dq = w.q + T * ld, w.dout = w.dq + T * ld;
        w.kt = w.dout + T * ld, w.vt = w.kt + D * ldt, w.p = w.vt + D * ldt, w.dp = w.p + QUERY_BLOCK * ldt;
        w.delta = w.dp + QUERY_BLOCK * ldt;
        load_head(w.k, ld, row + (s.H + s.K + kv) * D, stride, &s, false);
        transpose_head(w.vt, ldt, w.k, ld, T, D);
        load_head(w.k, ld, row + (s.H + kv) * D, stride, &s, true);
        transpose_head(w.kt, ldt, w.k, ld, T, D);
        memset(w.dk, 0, 2 * T * ld * sizeof(float));
        for (size_t h = kv * group; h < (kv + 1) * group; h++) {
            load_head(w.q, ld, row + h * D, stride, &s, true);
            load_head(w.dout, ld, dout + b * T * s.H * D + h * D, s.H * D, &s, false);
            for (size_t t = 0; t < T; t++) {
                vf sum = vf_zero();
                FOR_LANES(d, m, 0, D)
                sum += vf_load(w.dout + t * ld + d) * vx_load_n(out + ((b * T + t) * s.H + h) * D + d, m);
                w.delta[t] = vf_sum(sum);
            }
            attention_backward_head(&w, lse + (b * s.H + h) * T, &s, ld, ldt);
            store_head(drow + h * D, stride, w.dq, ld, &s, true);
        }
        store_head(drow + (s.H + kv) * D, stride, w.dk, ld, &s, true);
        store_head(drow + (s.H + s.K + kv) * D, stride, w.dv, ld, &s, false);
    }
}

/* ---- decoding ---- */

static void cache_store_row(floatX *kcache, floatX *vcache, const floatX *qkv, const AttentionShape *s, size_t b,
                            size_t kv, size_t t, size_t position, size_t max_T) {
    size_t D = s->D;
    const floatX *row = qkv + (b * s->T + t) * (size_t)(s->H + 2 * s->K) * D;
    size_t at = ((b * s->K + kv) * max_T + position) * D;
    float *key = (float *)scratch(SCRATCH_C, pad_lanes(D) * sizeof(float));
    FOR_LANES(d, m, 0, D) vf_store(key + d, vx_load_n(row + (s->H + kv) * D + d, m));
    rotate(key, rope_row(s, position), s->D, 1.0f);
    FOR_LANES(e, n, 0, D) vx_store_n(kcache + at + e, vf_load(key + e), n);
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

static void decode_head(floatX *out, const floatX *query, const floatX *keys, const floatX *values, size_t position,
                        const AttentionShape *s) {
    size_t D = s->D, ld = pad_lanes(D), n = position + 1, padded = pad_lanes(n);
    float *q = (float *)scratch(SCRATCH_A, (2 * ld + padded) * sizeof(float)), *o = q + ld, *x = o + ld;
    FOR_LANES(d, m, 0, D) vf_store(q + d, vx_load_n(query + d, m));
    rotate(q, rope_row(s, position), s->D, 1.0f);
    for (size_t t = 0; t < n; t++) {
        vf sum = vf_zero();
        FOR_LANES(d, m, 0, D) sum += vf_load(q + d) * vx_load_n(keys + t * D + d, m);
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
    FOR_LANES(e, w, 0, D) {
        vf total = vf_zero();
        for (size_t t = 0; t < n; t++) total += x[t] * vx_load_n(values + t * D + e, w);
        vx_store_n(out + e, total * inverse, w);
    }
}

static void cpu_attention_decode(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv, const int *positions,
                                 AttentionShape s, int max_T) {
    size_t D = s.D, group = s.H / s.K;
#pragma omp parallel for schedule(static) if (s.B > 1 || positions[0] * s.H * D > 16384)
    for (size_t task = 0; task < (size_t)s.B * s.K; task++) {
        size_t b = task / s.K, kv = task % s.K, head = task * max_T * D;
        cache_store_row(kcache, vcache, qkv, &s, b, kv, 0, positions[b], max_T);
        for (size_t h = kv * group; h < (kv + 1) * group; h++)
            decode_head(out + (b * s.H + h) * D, qkv + (b * (s.H + 2 * s.K) + h) * D, kcache + head, vcache + head,
                        positions[b], &s);
    }
}

#endif
