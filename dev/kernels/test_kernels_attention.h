/* Tests of attention, over a whole sequence and for new tokens over the cache. */
#ifndef DEV_TEST_KERNELS_ATTENTION_H
#define DEV_TEST_KERNELS_ATTENTION_H

#include "test_kernels.h"

static float *host_rope(int positions, int D) {
    float *rope = (float *)host((size_t)positions * D * sizeof(float));
    for (int t = 0; t < positions; t++)
        for (int i = 0; i < D / 2; i++) {
            double angle = t * pow(100.0, -2.0 * i / D);
            rope[(size_t)t * D + i] = (float)cos(angle);
            rope[(size_t)t * D + D / 2 + i] = (float)sin(angle);
        }
    return rope;
}

/* Heads of more than 128 channels come with few positions: their references are slow. */
static AttentionShape attention_shape(int positions) {
    static const int heads[][2] = {{1, 1}, {2, 1}, {4, 2}, {3, 3}, {6, 2}, {4, 1}, {10, 1}, {8, 1}};
    const int *h = heads[below(8)];
    int D = 2 * ONE_OF(int, 1, 3, 4, 8, 9, 16, 20, 32, 36, 40, 48, 64);
    if (below(2)) D = ONE_OF(int, 64, 72, 80, 128);  // the usual ones
    if (positions <= 33 && !below(3)) D = ONE_OF(int, 136, 200, 256, 328, 512);
    const float *rope = below(3) ? host_rope(positions, D) : NULL;
    if (!rope && !below(4)) D = ONE_OF(int, 1, 5, 63, 77);  // odd ones have no halves to turn
    AttentionShape s = {1 + below(3), positions, h[0], h[1], D, below(2), 1 / sqrtf((float)D), rope};
    return s;
}

static AttentionShape on_device(AttentionShape s, int positions) {
    if (!s.rope) return s;
    float *rope = out_f((size_t)positions * s.D);
    op->upload(rope, s.rope, (size_t)positions * s.D * sizeof(float));
    s.rope = rope;
    return s;
}

typedef struct {
    AttentionShape s;
    double *qkv, *dout, *out, *lse;
} AttentionCase;

static double attention_loss(void *context) {
    AttentionCase *k = (AttentionCase *)context;
    ref_attention_forward(k->out, k->lse, k->qkv, &k->s);
    return ref_dot(k->out, k->dout, k->s.B * k->s.T * k->s.H * k->s.D);
}

/* Columns begin .. end of x [rows, C] one row after another */
static double *columns_of(const double *x, size_t rows, size_t C, size_t begin, size_t end) {
    double *part = zeros(rows * (end - begin)), *p = part;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = begin; c < end; c++) *p++ = x[r * C + c];
    return part;
}

/* The gradients of queries, keys and values apart: those of keys and values are sums over a group of heads, so they
 * and their errors are larger than the rest. */
static void check_dqkv(const floatX *dqkv, const double *want, const AttentionShape *s) {
    static const char *const names[] = {"attention_backward dq", "attention_backward dk", "attention_backward dv"};
    size_t rows = (size_t)s->B * s->T, C = (size_t)(s->H + 2 * s->K) * s->D;
    size_t ends[] = {0, (size_t)s->H * s->D, (size_t)(s->H + s->K) * s->D, C};
    floatX *raw = (floatX *)host(rows * C * sizeof(floatX));
    double *all = zeros(rows * C);
    op->download(raw, dqkv, rows * C * sizeof(floatX));
    add_hash(raw, rows * C * sizeof(floatX));
    for (size_t i = 0; i < rows * C; i++) all[i] = from_x(raw[i]);
    double whole = sqrt(ref_dot(want, want, (int)(rows * C)) / (double)(rows * C));
    for (int k = 0; k < 3; k++) {
        size_t n = rows * (ends[k + 1] - ends[k]);
        double *part = columns_of(all, rows, C, ends[k], ends[k + 1]);
        float *got = (float *)host(n * sizeof(float));
        for (size_t i = 0; i < n; i++) got[i] = (float)part[i];
        compare_with(names[k], got, columns_of(want, rows, C, ends[k], ends[k + 1]), n, ATTENTION, whole);
    }
}

/* Scores that rise by 128 scale every 64 keys, through queries and keys that are exact in bf16: what has been summed
 * must be made smaller again and again. */
static void raise_scores(double *qkv, const AttentionShape *s) {
    size_t row = (size_t)(s->H + 2 * s->K) * s->D;
    for (int t = 0; t < s->B * s->T; t++)
        for (int h = 0; h < s->H + s->K; h++)
            for (int c = 0; c < 16 && c < s->D; c++)
                qkv[t * row + (size_t)h * s->D + c] = h < s->H ? 4 : t % s->T / 64 * 2;
}

static void test_attention(void) {
    AttentionCase k;
    k.s = attention_shape(below(4) ? ragged() : 130 + below(80));
    AttentionShape s = k.s;
    size_t n = (size_t)s.B * s.T * s.D, heads = s.H + 2 * s.K, rows = (size_t)s.B * s.H * s.T;
    k.qkv = draw(n * heads, s.D < 16 ? 0.5 : 1), k.dout = draw(n * s.H, 1), k.out = zeros(n * s.H),
    k.lse = zeros(rows);
    if (!s.rope && !below(3)) raise_scores(k.qkv, &s);
    double *dqkv = zeros(n * heads);
    floatX *qkv = put_x(k.qkv, n * heads), *dout = put_x(k.dout, n * s.H), *out = out_x(n * s.H);
    floatX *bare = out_x(n * s.H), *dev_dqkv = out_x(n * heads);
    float *lse = out_f(rows);
    AttentionShape d = on_device(s, s.T);
    op->attention_forward(out, lse, qkv, d);
    op->attention_forward(bare, NULL, qkv, d);
    attention_loss(&k);
    check_x("attention_forward", out, k.out, n * s.H, ATTENTION);
    check_x("attention_forward without lse", bare, k.out, n * s.H, ATTENTION);
    check_f("attention_forward lse", lse, k.lse, rows, ATTENTION);
    double *want_out = copy_of(k.out, n * s.H), *want_lse = copy_of(k.lse, rows);
    floatX *saved = put_x(want_out, n * s.H);
    op->attention_backward(dev_dqkv, dout, saved, put_f(want_lse, rows), qkv, d);
    if (comparing) ref_attention_backward(dqkv, k.dout, k.qkv, &s);
    check_dqkv(dev_dqkv, dqkv, &s);
    if (n * heads < 4000) check_difference("attention", attention_loss, &k, k.qkv, dqkv, n * heads);
}

/* The first `count` positions of every sequence into the caches, in two pieces. */
static void store_positions(floatX *keys, floatX *values, const double *qkv, AttentionShape s, int T, int count,
                            int max_T) {
    size_t row = (size_t)(s.H + 2 * s.K) * s.D;
    for (int piece = 0; piece < 2; piece++) {
        int from = piece ? count / 2 : 0, n = piece ? count - count / 2 : count / 2;
        double *part = zeros(s.B * n * row + 1);
        for (int b = 0; b < s.B; b++)
            memcpy(part + b * n * row, qkv + ((size_t)b * T + from) * row, n * row * sizeof(double));
        s.T = n;
        if (n) op->cache_store(keys, values, put_x(part, s.B * n * row), s, from, max_T);
    }
}

/* qkv of tokens at[b] .. at[b] + n - 1 of every sequence b, on the device; all is [B, T, row]. */
static floatX *put_tokens(const double *all, const int *at, int B, int T, int n, size_t row) {
    double *part = zeros((size_t)B * n * row);
    for (int b = 0; b < B; b++)
        memcpy(part + (size_t)b * n * row, all + ((size_t)b * T + at[b]) * row, n * row * sizeof(double));
    return put_x(part, (size_t)B * n * row);
}

/* A cache filled by cache_store for the first positions and by attention_decode for `steps` times n more gives what
 * attention_forward gives for the last n of every sequence; a sequence ends `behind` positions before the one before it.
 * Two caches are filled, one of them token by token: the results are the same bits. */
static void test_decode(void) {
    bool is_long = !below(4);
    int T = 1 + below(is_long ? 900 : 150), max_T = T + below(is_long ? 9000 : 9);
    AttentionShape s = attention_shape(T);
    s.causal = true;
    int behind = below(2) ? 0 : (T - 1) / s.B, begin = T - (s.B - 1) * behind, n = below(3) ? 1 + below(16) : 1;
    if (n > begin) n = begin;
    int steps = 1 + below(n > 1 ? 3 : 10);
    if (steps > begin / n) steps = begin / n;
    int start = begin - steps * n, at[3] = {0, 0, 0};
    size_t row = (size_t)(s.H + 2 * s.K) * s.D, cache = (size_t)s.B * s.K * max_T * s.D, heads = (size_t)s.H * s.D;
    double *qkv = draw((size_t)s.B * T * row, 1), *want = zeros(s.B * n * heads), *p = zeros(T);
    floatX *keys = out_x(cache), *values = out_x(cache), *out = out_x(s.B * n * heads);
    floatX *keys1 = out_x(cache), *values1 = out_x(cache), *one = out_x(s.B * heads), *ones = out_x(s.B * n * heads);
    put_x(qkv, (size_t)s.B * T * row);
    AttentionShape d = on_device(s, T);
    store_positions(keys, values, qkv, d, T, start + (s.B - 1) * behind, max_T);
    store_positions(keys1, values1, qkv, d, T, start + (s.B - 1) * behind, max_T);
    for (int step = 0; step < steps; step++) {
        for (int b = 0; b < s.B; b++) at[b] = start + (s.B - 1 - b) * behind + step * n;
        d.T = n;
        op->attention_decode(out, keys, values, put_tokens(qkv, at, s.B, T, n, row), put_i(at, s.B), d, max_T);
        d.T = 1;
        for (int t = 0, now[3]; t < n && step + 1 == steps; t++) {
            for (int b = 0; b < s.B; b++) now[b] = at[b] + t;
            op->attention_decode(one, keys1, values1, put_tokens(qkv, now, s.B, T, 1, row), put_i(now, s.B), d,
                                 max_T);
            op->copy_rows(ones + t * heads, n * heads * sizeof(floatX), one, heads * sizeof(floatX),
                          heads * sizeof(floatX), s.B);
        }
        if (step + 1 == steps) break;
        op->copy(keys1, keys, cache * sizeof(floatX));
        op->copy(values1, values, cache * sizeof(floatX));
    }
    double *rotated = ref_rotated(qkv, &s, 1);
    for (int i = 0; i < s.B * n * s.H; i++)
        ref_attention_row(want + (size_t)i * s.D, p, rotated, &s, i / s.H / n, at[i / s.H / n] + i / s.H % n,
                          i % s.H);
    free(rotated);
    check_x("attention_decode", out, want, s.B * n * heads, ATTENTION);
    check_same("attention_decode token by token", ones, out, s.B * n * heads);
}

#endif
