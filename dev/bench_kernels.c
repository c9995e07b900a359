/* How long the kernels take at the shapes of a training step of `--student small` (batch 64, 144 patches, 48 image
 * and 95 text tokens, vocabulary 512) and of decoding with a large model, against the floor: the larger of bytes /
 * measured bandwidth and FLOPs / measured peak.
 *
 *   bench_kernels [PART]      only the kernels whose name contains PART */
#include "../kernels/ops.h"
#include "../lib/machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Ops *op;
static double bandwidth, peak, total, total_floor;
static const char *only;
static double best_time, started;

static bool begin_kernel(const char *name) {
    best_time = 1e9;
    started = seconds_now();
    return !only || strstr(name, only);
}

static bool again(double *begin) {
    double now = seconds_now();
    if (*begin > 0 && now - *begin < best_time) best_time = now - *begin;
    bool more = now - started < 0.1 || *begin == 0;
    *begin = seconds_now();
    return more;
}

static void print_kernel(const char *name, double flops, double bytes, int count) {
    double by_bytes = bytes / bandwidth, by_flops = flops / peak, floor = by_bytes > by_flops ? by_bytes : by_flops;
    printf("%-34s %9.3f ms  %7.0f GFLOP/s %6.1f GB/s  floor %8.3f ms (%s)  %5.0f %%\n", name, best_time * 1e3,
           flops / best_time * 1e-9, bytes / best_time * 1e-9, floor * 1e3, by_bytes > by_flops ? "bytes" : "FLOPs",
           100 * floor / best_time);
    total += best_time * count;
    total_floor += floor * count;
}

/* count: how often a training step calls it */
#define BENCH(count, name, flops, bytes, call)   \
    if (begin_kernel(name)) {                    \
        double begin_ = 0;                       \
        while (again(&begin_)) {                 \
            call;                                \
            op->sync();                          \
        }                                        \
        print_kernel(name, flops, bytes, count); \
    }

static floatX *random_x(size_t n) {
    floatX *host = (floatX *)malloc(n * sizeof *host), *x = (floatX *)op->alloc(n * sizeof *host);
    if (!host || !x) exit(1);
    uint32_t state = 12345;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        host[i] = to_x((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    op->upload(x, host, n * sizeof *host);
    free(host);
    return x;
}

static float *zeros_f(size_t n) {
    float *p = (float *)op->alloc(n * sizeof(float));
    if (!p) exit(1);
    return p;
}

/* forward, input gradient and weight gradient of one linear layer */
static void bench_linear(const char *what, size_t rows, int I, int O, Activation act, int count) {
    char name[64];
    size_t X = sizeof(floatX);
    floatX *x = random_x(rows * I), *y = random_x(rows * O), *pre = random_x(rows * O), *w = random_x((size_t)O * I);
    floatX *bias = random_x(O);
    float *dw = zeros_f((size_t)O * I), *db = zeros_f(O);
    Weight weight = {w, DT_FLOATX, O, I, NULL};
    double flops = 2.0 * rows * I * O, bytes = (double)(rows * I + rows * O + (size_t)O * I) * X;
    snprintf(name, sizeof name, "%s %dx%d forward", what, I, O);
    BENCH(count, name, flops, bytes + (act ? (double)rows * O * X : 0),
          op->linear_forward(y, x, weight, bias, act, act ? pre : NULL, rows))
    snprintf(name, sizeof name, "%s %dx%d dinp", what, I, O);
    BENCH(count, name, flops, bytes, op->linear_backward_input(x, y, weight, rows, false))
    snprintf(name, sizeof name, "%s %dx%d dweight", what, I, O);
    BENCH(count, name, flops, bytes + 8.0 * O * I, op->linear_backward_weight(dw, db, y, x, rows, O, I))
    op->release(x), op->release(y), op->release(pre), op->release(w), op->release(dw), op->release(db);
    op->release(bias);
}

static void bench_attention(const char *what, int B, int T, int H, int K, int D, bool causal, int count) {
    char name[64];
    size_t X = sizeof(floatX), n = (size_t)B * T * D;
    float *rope = zeros_f((size_t)T * D);
    for (int i = 0; i < T * D && op->host_memory; i++) rope[i] = i % D < D / 2 ? 0.8f : 0.6f;  // a rotation
    AttentionShape s = {B, T, H, K, D, causal, 0.17f, causal ? rope : NULL};
    floatX *qkv = random_x(n * (H + 2 * K)), *dqkv = random_x(n * (H + 2 * K)), *out = random_x(n * H);
    floatX *dout = random_x(n * H);
    float *lse = zeros_f((size_t)B * H * T);
    double product = 2.0 * B * H * T * T * D * (causal ? 0.5 : 1.0);
    snprintf(name, sizeof name, "attention %s forward", what);
    BENCH(count, name, 2 * product, (double)n * (2 * H + 2 * K) * X, op->attention_forward(out, lse, qkv, s))
    snprintf(name, sizeof name, "attention %s backward", what);
    BENCH(count, name, 5 * product, (double)n * (4 * H + 4 * K) * X,
          op->attention_backward(dqkv, dout, out, lse, qkv, s))
    op->release(qkv), op->release(dqkv), op->release(out), op->release(dout), op->release(lse);
    op->release(rope);
}

static void bench_vision_rows(size_t rows, int C, int F) {
    size_t X = sizeof(floatX), n = rows * C;
    floatX *a = random_x(n), *b = random_x(n), *c = random_x(n), *w = random_x(C), *pre = random_x(rows * F);
    floatX *d = random_x(rows * F), *act = random_x(rows * F);
    float *mean = zeros_f(rows), *rstd = zeros_f(rows), *dw = zeros_f(C), *db = zeros_f(C);
    BENCH(7, "residual_layernorm_forward", 0, 4.0 * n * X,
          op->residual_layernorm_forward(c, b, mean, rstd, a, b, w, w, rows, C, 1e-5f))
    BENCH(7, "layernorm_backward", 0, 4.0 * n * X, op->layernorm_backward(a, dw, db, b, c, w, mean, rstd, rows, C))
    BENCH(3, "gelu_backward tanh", 0, 3.0 * rows * F * X, op->gelu_backward(d, act, pre, rows * F, ACT_GELU_TANH))
    BENCH(0, "gelu_backward erf", 0, 3.0 * rows * F * X, op->gelu_backward(d, act, pre, rows * F, ACT_GELU_ERF))
    op->release(a), op->release(b), op->release(c), op->release(w), op->release(pre), op->release(d);
    op->release(act), op->release(mean), op->release(rstd), op->release(dw), op->release(db);
}

static void bench_text_rows(size_t rows, int C, int F) {
    size_t X = sizeof(floatX), n = rows * C;
    floatX *a = random_x(n), *b = random_x(n), *c = random_x(n), *w = random_x(C), *gate = random_x(rows * 2 * F);
    floatX *up = random_x(rows * 2 * F), *act = random_x(rows * F);
    float *rstd = zeros_f(rows), *dw = zeros_f(C);
    BENCH(7, "residual_rmsnorm_forward", 0, 4.0 * n * X,
          op->residual_rmsnorm_forward(c, b, rstd, a, b, w, rows, C, 1e-5f))
    BENCH(7, "rmsnorm_backward", 0, 4.0 * n * X, op->rmsnorm_backward(a, dw, b, c, w, rstd, rows, C))
    BENCH(3, "swiglu_forward", 0, 3.0 * rows * F * X, op->swiglu_forward(act, gate, rows, F))
    BENCH(3, "swiglu_backward", 0, 5.0 * rows * F * X, op->swiglu_backward(up, act, gate, rows, F))
    BENCH(1, "residual_forward", 0, 3.0 * n * X, op->residual_forward(c, a, b, n))
    op->release(a), op->release(b), op->release(c), op->release(w), op->release(gate), op->release(up);
    op->release(act), op->release(rstd), op->release(dw);
}

static void bench_objective(size_t rows, int V) {
    size_t X = sizeof(floatX), n = rows * V;
    floatX *s = random_x(n), *t = random_x(n);
    int *labels = (int *)op->alloc(rows * sizeof(int));
    RowStats *stats = (RowStats *)op->alloc(rows * sizeof(RowStats));
    ObjectiveRow o = {0.5f, 0, 0, 1, SOFT_KL, 0.5f, 2, 1, 1.0f / (float)rows};
    BENCH(1, "distill_rows cross entropy", 0, 2.0 * n * X,
          op->distill_rows(s, NULL, labels, NULL, stats, o, rows, V, V, true))
    o.w_soft = 0.5f, o.temperature = 2;
    BENCH(0, "distill_rows KL, tau 2", 0, 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    o.soft = SOFT_JSD;
    BENCH(0, "distill_rows JSD, tau 2", 0, 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    op->release(s), op->release(t), op->release(labels), op->release(stats);
}

static void bench_optimizer(size_t n) {
    floatX *p = random_x(n);
    float *w = zeros_f(n), *m = zeros_f(n), *v = zeros_f(n), *g = zeros_f(n), *norm = zeros_f(1);
    BENCH(1, "squared_norm", 0, 4.0 * n, op->squared_norm(norm, g, n, false))
    BENCH(1, "adamw", 0, (28.0 + sizeof(floatX)) * n,
          op->adamw(p, w, m, v, g, n, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, norm, 1, 10))
    op->release(p), op->release(w), op->release(m), op->release(v), op->release(g), op->release(norm);
}

/* one token of a large model: the weight is read once, and copies take turns so that no cache of the core holds it */
static void bench_decode(int I, int O) {
    char name[64];
    enum { COPIES = 4 };
    floatX *x = random_x(I), *y = random_x(O), *w = random_x((size_t)COPIES * O * I);
    float *logits = zeros_f(O);
    Weight weight = {w, DT_FLOATX, O, I, NULL};
    int turn = 0;
    double bytes = (double)O * I * sizeof(floatX);
    snprintf(name, sizeof name, "one row %dx%d", I, O);
    BENCH(0, name, 2.0 * O * I, bytes,
          (weight.data = w + (size_t)(turn++ % COPIES) * O * I,
           op->linear_forward(y, x, weight, NULL, ACT_NONE, NULL, 1)))
    snprintf(name, sizeof name, "one row %dx%d logits", I, O);
    BENCH(0, name, 2.0 * O * I, bytes,
          (weight.data = w + (size_t)(turn++ % COPIES) * O * I, op->linear_logits(logits, x, weight, 1)))
    op->release(x), op->release(y), op->release(w), op->release(logits);
}

static void measure_bandwidth(void) {
    const size_t bytes = (size_t)1 << 30;
    void *data = op->alloc(bytes);
    for (int pass = 0; data && pass < 5; pass++) {
        double rate = measure_read_bandwidth(data, bytes);
        if (rate > bandwidth) bandwidth = rate;
    }
    if (data) op->release(data);
}

int main(int argc, char **argv) {
    only = argc > 1 ? argv[1] : NULL;
    op = &cpu_ops;
    measure_bandwidth();
    peak = measure_peak_flops(op);
    printf("measured read bandwidth %.1f GB/s, product %.0f GFLOP/s\n", bandwidth * 1e-9, peak * 1e-9);
    const int vocab = 512;
    const size_t patches = 64 * 144, tokens = 64 * 143, text = 64 * 95;
    bench_linear("patch embedding", patches, 192, 96, ACT_NONE, 1);
    bench_linear("vision qkv", patches, 96, 288, ACT_NONE, 3);
    bench_linear("vision attention out", patches, 96, 96, ACT_NONE, 3);
    bench_linear("vision MLP in", patches, 96, 384, ACT_GELU_TANH, 3);
    bench_linear("vision MLP out", patches, 384, 96, ACT_NONE, 3);
    bench_linear("connector", 64 * 48, 288, 128, ACT_NONE, 1);
    bench_linear("LM qkv", tokens, 128, 384, ACT_NONE, 3);
    bench_linear("LM attention out", tokens, 128, 128, ACT_NONE, 3);
    bench_linear("LM gate and up", tokens, 128, 704, ACT_NONE, 3);
    bench_linear("LM down", tokens, 352, 128, ACT_NONE, 3);
    bench_linear("LM head", text, 128, vocab, ACT_NONE, 1);
    bench_attention("vision", 64, 144, 3, 3, 32, false, 3);
    bench_attention("LM", 64, 143, 4, 4, 32, true, 3);
    bench_vision_rows(patches, 96, 384);
    bench_text_rows(tokens, 128, 352);
    bench_objective(text, vocab);
    bench_optimizer(1139136);
    if (total > 0)
        printf("a training step of these: %.1f ms, floor %.1f ms (%.0f %%): %.0f samples/s\n", total * 1e3,
               total_floor * 1e3, 100 * total_floor / total, 64 / total);
    bench_decode(2048, 2048);
    bench_decode(2048, 5632);
    bench_decode(2048, 32000);
    return 0;
}
