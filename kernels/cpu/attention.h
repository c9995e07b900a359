/* Attention, out = softmax(scale Q K^T) V, full or causal, with grouped queries and RoPE applied on the way in. A
 * task owns one head of one sequence, with its operands packed for the microkernel. Scores exist for a block of
 * queries only; the backward pass recomputes them from the saved log-sum-exp (FlashAttention: Dao et al. 2022). The
 * attention of new tokens and the caches are in attention_decode.h. */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "functions.h"
#include "microkernel.h"
#include "../ops.h"

enum { SPAN = 32 };  // queries (forward) or keys (backward) that one matmul takes together

static inline const float *rope_row(const AttentionShape *s, size_t t) { return s->rope ? s->rope + t * s->D : NULL; }

/* dst [D] = src rotated by the angles of its position (a row of AttentionShape's rope); sign is 1, or -1 to undo the
 * rotation. dst may be src. */
static inline void rotate(float *dst, const float *src, const float *rope, size_t D, float sign) {
    size_t half = D / 2;
    FOR_LANES (i, m, 0, half) {
        vf a = vf_load_n(src + i, m), b = vf_load_n(src + half + i, m);
        vf c = vf_load_n(rope + i, m), s = sign * vf_load_n(rope + half + i, m);
        vf_store_n(dst + i, a * c - b * s, m);
        vf_store_n(dst + half + i, b * c + a * s, m);
    }
}

/* The same for a src in floatX; only the rotation itself. */
static inline void rotate_x(float *dst, const floatX *src, const float *rope, size_t D) {
    size_t half = D / 2;
    FOR_LANES (i, m, 0, half) {
        vf a = vx_load_n(src + i, m), b = vx_load_n(src + half + i, m);
        vf c = vf_load_n(rope + i, m), s = vf_load_n(rope + half + i, m);
        vf_store_n(dst + i, a * c - b * s, m);
        vf_store_n(dst + half + i, b * c + a * s, m);
    }
}

/* The rows [T, D] of one head, which are `stride` apart in src. If rotated and the shape has RoPE, they are rotated
 * into buffer [T, D]. */
static Matrix head_matrix(const floatX *src, size_t stride, float *buffer, const AttentionShape *s, bool rotated) {
    Matrix plain = {src, DT_FLOATX, stride}, in_buffer = {buffer, DT_F32, (size_t)s->D};
    if (!rotated || !s->rope) return plain;
    for (size_t t = 0; t < (size_t)s->T; t++) rotate_x(buffer + t * s->D, src + t * stride, rope_row(s, t), s->D);
    return in_buffer;
}

/* Takes the next `bytes` of a block of scratch memory, in whole cache lines. A layout that starts from NULL gives the
 * size of the block. */
static inline void *carve(char **at, size_t bytes) {
    char *p = *at;
    *at = p + round_up(bytes, 64);
    return p;
}

/* ---- forward ---- */

typedef struct {
    float *rotated, *scores, *o, top[SPAN], sum[SPAN], inverse[SPAN];
    element *q, *p;
    PackedB k, v;
} AttentionForward;

static size_t attention_forward_layout(AttentionForward *w, char *base, const AttentionShape *s) {
    size_t T = s->T, D = s->D, keys = round_up(T, SPAN);
    char *at = base;
    w->rotated = (float *)carve(&at, T * D * sizeof(float));
    w->q = (element *)carve(&at, keys * round_up(D, K_STEP) * sizeof(element));
    w->k = packed_b_at((element *)carve(&at, packed_b_size(D, T) * sizeof(element)), D, T);
    w->v = packed_b_at((element *)carve(&at, packed_b_size(T, D) * sizeof(element)), T, D);
    w->scores = (float *)carve(&at, SPAN * keys * sizeof(float));
    w->p = (element *)carve(&at, SPAN * keys * sizeof(element));
    w->o = (float *)carve(&at, SPAN * round_up(D, LANES) * sizeof(float));
    return (size_t)(at - base);
}

/* Turns the scores [rows, ld] of the queries t0.. into unnormalised probabilities and stores 1 / sum of each row in
 * inverse, its log-sum-exp in lse. Keys that a query does not see, up to ld, get probability 0. */
static void softmax_rows(AttentionForward *w, size_t ld, float *lse, size_t t0, size_t rows,
                         const AttentionShape *s) {
    const vi index = lane_index();
    for (size_t r = 0; r < rows; r++) {
        float *x = w->scores + r * ld;
        element *p = w->p + r * ld;
        size_t keys = s->causal ? t0 + r + 1 : (size_t)s->T, whole = keys / LANES * LANES,
               end = round_up(keys, LANES);
        vf largest = vf_set(-INFINITY), sum = vf_zero();
        for (size_t j = 0; j < whole; j += LANES) largest = vf_max(largest, vf_load(x + j));
        if (whole < end) {
            vf last = vf_select(index < (int32_t)(keys - whole), vf_load(x + whole), vf_set(-INFINITY));
            vf_store(x + whole, last);
            largest = vf_max(largest, last);
        }
        float top = vf_largest(largest) * s->scale;
        size_t j = 0;
        for (; j + GROUP_SIZE <= end; j += GROUP_SIZE) {
            vf e[GROUP];
            for (int i = 0; i < GROUP; i++) e[i] = vf_load(x + j + i * LANES) * s->scale - top;
            vf_exp_each(e, GROUP);
            for (int i = 0; i < GROUP; i++) element_store(p + j + i * LANES, e[i]);
            sum += (e[0] + e[1]) + (e[2] + e[3]);
        }
        for (; j < end; j += LANES) {
            vf e = vf_exp(vf_load(x + j) * s->scale - top);
            sum += e;
            element_store(p + j, e);
        }
        for (; j < ld; j += LANES) element_store(p + j, vf_zero());
        w->top[r] = top;
        w->sum[r] = vf_sum(sum);
    }
    FOR_LANES (r, m, 0, rows) {
        vf sum = vf_load_n(w->sum + r, m);
        vf_store_n(w->inverse + r, 1.0f / sum, m);
        if (lse) vf_store_n(lse + r, vf_load_n(w->top + r, m) + vf_log(sum), m);
    }
}

/* One query head, with the packed keys and values; q and out point at the head's first row. */
static void attention_forward_head(AttentionForward *w, floatX *out, float *lse, const floatX *q,
                                   const AttentionShape *s) {
    size_t T = s->T, D = s->D, ldq = round_up(D, K_STEP), ldo = round_up(D, LANES);
    Matrix queries = head_matrix(q, (size_t)(s->H + 2 * s->K) * D, w->rotated, s, true);
    pack_a_from_rows(w->q, ldq, &queries, 0, 0, T, D);
    microkernel_begin();
    for (size_t t0 = 0; t0 < T; t0 += SPAN) {
        size_t rows = min_size(SPAN, T - t0), seen = s->causal ? t0 + rows : T, ld = round_up(seen, SPAN);
        microkernel_matmul(w->scores, ld, w->q + t0 * ldq, ldq, &w->k, 0, 0, rows, seen, D, false);
        softmax_rows(w, ld, lse ? lse + t0 : NULL, t0, rows, s);
        microkernel_matmul(w->o, ldo, w->p, ld, &w->v, 0, 0, rows, D, seen, false);
        for (size_t r = 0; r < rows; r++)
            FOR_LANES (d, m, 0, D)
                vx_store_n(out + (t0 + r) * s->H * D + d, vf_load(w->o + r * ldo + d) * w->inverse[r], m);
    }
    microkernel_end();
}

/* A task takes the query heads that share a key/value head, or only one of them where there would be few tasks. */
static void cpu_attention_forward(floatX *out, float *lse, const floatX *qkv, AttentionShape s) {
    size_t T = s.T, D = s.D, stride = (size_t)(s.H + 2 * s.K) * D, group = s.H / s.K;
    size_t share = s.B * s.K >= 64 ? group : 1, tasks = (size_t)s.B * s.H / share;
#pragma omp parallel for schedule(dynamic) if (s.B * T * T * s.H * D > 50000)
    for (size_t task = 0; task < tasks; task++) {
        size_t b = task * share / s.H, first = task * share % s.H, kv = s.H + first / group;
        const floatX *row = qkv + b * T * stride;
        AttentionForward w;
        size_t bytes = attention_forward_layout(&w, NULL, &s);
        attention_forward_layout(&w, (char *)scratch(SCRATCH_A, bytes), &s);
        Matrix keys = head_matrix(row + kv * D, stride, w.rotated, &s, true);
        pack_b_from_columns(&w.k, &keys, 0, 0, D, T);
        Matrix values = head_matrix(row + (kv + s.K) * D, stride, NULL, &s, false);
        pack_b_from_rows(&w.v, &values, 0, 0, T, D);
        for (size_t h = first; h < first + share; h++)
            attention_forward_head(&w, out + (b * T * s.H + h) * D, lse ? lse + (b * s.H + h) * T : NULL, row + h * D,
                                   &s);
    }
}

/* ---- backward ----
 * With P = softmax(scale Q K^T), dP = dO V^T, delta_t = <dO_t, O_t>:
 *   dS = scale P (dP - delta),  dQ = dS K,  dK = dS^T Q,  dV = P^T dO.
 * P and dS are computed transposed, with a row for each key. Then they can be A operands of dK and dV as they are,
 * and dQ^T = K^T dS^T takes dS^T as its B operand. A task owns a key/value head and loops over its query heads, so
 * that the group's sums have one order. For each block of queries, it loops over the keys in spans. */

typedef struct {
    size_t block;                        // queries in a block
    float *rotated, *lse, *delta;        // [T, D], [T], [T] (scale * delta)
    float *s, *dp;                       // [SPAN, block]
    float *dk, *dv, *dq;                 // [T, D], [T, D], [D, block]
    element *k, *v, *kt;                 // A operands: K [T, D], V [T, D], K^T [D, T]
    element *p, *ds;                     // A operands: [SPAN, block]
    PackedB q_t, dout_t, q, dout, ds_t;  // Q^T and dO^T [D, T], Q and dO [T, D], dS^T [T, block]
} AttentionBackward;

static element *carve_elements(char **at, size_t n) { return (element *)carve(at, n * sizeof(element)); }
static float *carve_floats(char **at, size_t n) { return (float *)carve(at, n * sizeof(float)); }

static size_t attention_backward_layout(AttentionBackward *w, char *base, const AttentionShape *s) {
    size_t T = s->T, D = s->D, Tp = round_up(T, SPAN), Dp = round_up(D, 32);
    char *at = base;
    w->block = min_size(Tp, max_size(SPAN, min_size(256, 65536 / Tp / SPAN * SPAN)));  // dS^T stays in cache
    w->rotated = carve_floats(&at, Tp * Dp);
    w->lse = carve_floats(&at, Tp);
    w->delta = carve_floats(&at, Tp);
    w->s = carve_floats(&at, SPAN * w->block);
    w->dp = carve_floats(&at, SPAN * w->block);
    w->dk = carve_floats(&at, Tp * Dp);
    w->dv = carve_floats(&at, Tp * Dp);
    w->dq = carve_floats(&at, Dp * w->block);
    w->k = carve_elements(&at, Tp * Dp);
    w->v = carve_elements(&at, Tp * Dp);
    w->kt = carve_elements(&at, packed_columns_size(Dp, Tp));
    w->p = carve_elements(&at, SPAN * w->block);
    w->ds = carve_elements(&at, SPAN * w->block);
    w->q_t = packed_b_at(carve_elements(&at, Dp * Tp), D, T);
    w->dout_t = packed_b_at(carve_elements(&at, Dp * Tp), D, T);
    w->q = packed_b_at(carve_elements(&at, Tp * Dp), T, D);
    w->dout = packed_b_at(carve_elements(&at, Tp * Dp), T, D);
    w->ds_t = packed_b_at(carve_elements(&at, Tp * w->block), Tp, w->block);
    return (size_t)(at - base);
}

/* Computes P and dS for GROUP keys from j on (rows r.. of the span) and one vector of queries t.., and stores them
 * where the three matmuls read them. masked: keys beyond the last one, queries beyond `count` and queries before the
 * diagonal get 0. */
ALWAYS_INLINE void softmax_backward_keys(AttentionBackward *w, size_t j, size_t r, size_t t0, size_t t, size_t count,
                                         vf lse, vf delta, const AttentionShape *s, const bool masked) {
    vf p[GROUP], ds[GROUP];
    for (size_t i = 0; i < GROUP; i++) p[i] = vf_load(w->s + (r + i) * w->block + t) * s->scale - lse;
    vf_exp_each(p, GROUP);
    for (size_t i = 0; i < GROUP; i++) {
        size_t at = (r + i) * w->block + t;
        ds[i] = p[i] * (vf_load(w->dp + at) * s->scale - delta);
        if (masked) {
            int32_t limit = j + i < (size_t)s->T ? (int32_t)count - (int32_t)t : 0;
            vi seen = lane_index() < limit;
            if (s->causal) seen &= lane_index() >= (int32_t)(j + i) - (int32_t)(t0 + t);
            p[i] = vf_select(seen, p[i], vf_zero());
            ds[i] = vf_select(seen, ds[i], vf_zero());
        }
        element_store(w->p + at, p[i]);
        element_store(w->ds + at, ds[i]);
    }
    for (size_t i = 0; i < GROUP; i += 2) packed_b_store_rows(&w->ds_t, j + i, t, ds[i], ds[i + 1]);
}

/* P and dS for the keys j0.. and the queries t0+first .. t0+count. */
static void softmax_backward(AttentionBackward *w, size_t j0, size_t t0, size_t first, size_t count,
                             const AttentionShape *s) {
    bool all_keys = j0 + SPAN <= (size_t)s->T;
    for (size_t t = first; t < round_up(count, SPAN); t += LANES) {
        vf lse = vf_load(w->lse + t0 + t), delta = vf_load(w->delta + t0 + t);
        bool plain = all_keys && t + LANES <= count && (!s->causal || j0 + SPAN - 1 <= t0 + t);
        if (plain)
            for (size_t r = 0; r < SPAN; r += GROUP)
                softmax_backward_keys(w, j0 + r, r, t0, t, count, lse, delta, s, false);
        else
            for (size_t r = 0; r < SPAN; r += GROUP)
                softmax_backward_keys(w, j0 + r, r, t0, t, count, lse, delta, s, true);
    }
}

/* Stores fp32 rows [rows, ld] in rows t0.. of a head of dqkv, with the rotation undone if rotated. */
static void store_head(floatX *dst, size_t stride, float *src, size_t ld, size_t t0, size_t rows,
                       const AttentionShape *s, bool rotated) {
    for (size_t r = 0; r < rows; r++) {
        if (rotated && s->rope) rotate(src + r * ld, src + r * ld, rope_row(s, t0 + r), s->D, -1.0f);
        FOR_LANES (d, m, 0, (size_t)s->D) vx_store_n(dst + (t0 + r) * stride + d, vf_load(src + r * ld + d), m);
    }
}

/* Stores dq [D, block], transposed, in the rows of dqkv of the queries t0 .. t0+count. */
static void store_queries(AttentionBackward *w, floatX *dst, size_t stride, size_t t0, size_t count,
                          const AttentionShape *s) {
    size_t ld = round_up(s->D, LANES);
    float rows[LANES * 32 * LANES];
    for (size_t t = 0; t < count; t += LANES) {
        float *buffer = ld <= 32 * LANES ? rows : w->rotated;
        for (size_t d = 0; d < (size_t)s->D; d += LANES) {
            vf x[LANES];
            for (size_t i = 0; i < LANES; i++) x[i] = vf_load(w->dq + (d + i) * w->block + t);
            transpose_lanes(x);
            for (size_t i = 0; i < LANES; i++) vf_store(buffer + i * ld + d, x[i]);
        }
        store_head(dst, stride, buffer, ld, t0 + t, min_size(LANES, count - t), s, true);
    }
}

/* One block of queries, with all keys: adds to dk and dv, and writes the queries' gradients. */
static void attention_backward_block(AttentionBackward *w, floatX *dq, size_t t0, const AttentionShape *s) {
    size_t T = s->T, D = s->D, Dk = round_up(D, K_STEP), Dn = round_up(D, 32), Tp = round_up(T, SPAN);
    size_t count = min_size(w->block, T - t0), seen = s->causal ? t0 + count : T, ld = w->block;
    for (size_t j0 = 0; j0 < seen; j0 += SPAN) {
        size_t keys = min_size(SPAN, T - j0), first = s->causal && j0 > t0 ? j0 - t0 : 0, n = count - first;
        microkernel_matmul(w->s + first, ld, w->k + j0 * Dk, Dk, &w->q_t, 0, t0 + first, keys, n, D, false);
        microkernel_matmul(w->dp + first, ld, w->v + j0 * Dk, Dk, &w->dout_t, 0, t0 + first, keys, n, D, false);
        softmax_backward(w, j0, t0, first, count, s);
        microkernel_matmul(w->dv + j0 * Dn, Dn, w->p + first, ld, &w->dout, t0 + first, 0, keys, D, n, true);
        microkernel_matmul(w->dk + j0 * Dn, Dn, w->ds + first, ld, &w->q, t0 + first, 0, keys, D, n, true);
    }
    if (!s->causal) microkernel_matmul_columns(w->dq, ld, w->kt, Tp, &w->ds_t, 0, 0, D, count, T, false);
    for (size_t t = 0; s->causal && t < count; t += SPAN) {  // up to the diagonal
        size_t n = min_size(SPAN, count - t);
        microkernel_matmul_columns(w->dq + t, ld, w->kt, Tp, &w->ds_t, 0, t, D, n, t0 + t + n, false);
    }
    store_queries(w, dq, (size_t)(s->H + 2 * s->K) * D, t0, count, s);
}

/* One query head; q, dout and out point at its first row. */
static void attention_backward_head(AttentionBackward *w, floatX *dq, const floatX *q, const floatX *dout,
                                    const floatX *out, const float *lse, const AttentionShape *s) {
    size_t T = s->T, D = s->D;
    Matrix queries = head_matrix(q, (s->H + 2 * s->K) * D, w->rotated, s, true);
    Matrix grads = head_matrix(dout, s->H * D, NULL, s, false);
    pack_b_from_columns(&w->q_t, &queries, 0, 0, D, T);
    pack_b_from_rows(&w->q, &queries, 0, 0, T, D);
    pack_b_from_columns(&w->dout_t, &grads, 0, 0, D, T);
    pack_b_from_rows(&w->dout, &grads, 0, 0, T, D);
    for (size_t t = 0; t < T; t++) {
        vf sum = vf_zero();
        FOR_LANES (d, m, 0, D) sum += vx_load_n(dout + t * s->H * D + d, m) * vx_load_n(out + t * s->H * D + d, m);
        w->delta[t] = vf_sum(sum) * s->scale;
        w->lse[t] = lse[t];
    }
    for (size_t t = T; t < round_up(T, SPAN); t++) w->delta[t] = w->lse[t] = 0.0f;
    microkernel_begin();
    for (size_t t0 = 0; t0 < T; t0 += w->block) attention_backward_block(w, dq, t0, s);
    microkernel_end();
}

static void cpu_attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                   const floatX *qkv, AttentionShape s) {
    size_t T = s.T, D = s.D, stride = (size_t)(s.H + 2 * s.K) * D, group = s.H / s.K, Dn = round_up(D, 32);
#pragma omp parallel for schedule(dynamic) if (s.B * T * T * s.H * D > 50000)
    for (size_t task = 0; task < (size_t)s.B * s.K; task++) {
        size_t b = task / s.K, kv = task % s.K, key = (s.H + kv) * D, value = key + s.K * D;
        const floatX *row = qkv + b * T * stride;
        floatX *drow = dqkv + b * T * stride;
        AttentionBackward w;
        size_t bytes = attention_backward_layout(&w, NULL, &s);
        attention_backward_layout(&w, (char *)scratch(SCRATCH_A, bytes), &s);
        Matrix keys = head_matrix(row + key, stride, w.rotated, &s, true);
        Matrix values = head_matrix(row + value, stride, NULL, &s, false);
        pack_a_from_rows(w.k, round_up(D, K_STEP), &keys, 0, 0, T, D);
        pack_a_from_columns(w.kt, round_up(T, SPAN), &keys, 0, 0, D, T);
        pack_a_from_rows(w.v, round_up(D, K_STEP), &values, 0, 0, T, D);
        memset(w.dk, 0, round_up(T, SPAN) * Dn * sizeof(float));
        memset(w.dv, 0, round_up(T, SPAN) * Dn * sizeof(float));
        for (size_t h = kv * group; h < (kv + 1) * group; h++) {
            size_t at = (b * T * s.H + h) * D;
            attention_backward_head(&w, drow + h * D, row + h * D, dout + at, out + at, lse + (b * s.H + h) * T, &s);
        }
        store_head(drow + key, stride, w.dk, Dn, 0, T, &s, true);
        store_head(drow + value, stride, w.dv, Dn, 0, T, &s, false);
    }
}

#endif
