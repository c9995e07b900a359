/* How long every operation of a device takes, against the floor: the larger of bytes / measured bandwidth and FLOPs /
 * measured peak. On a GPU both are measured once; bandwidth is that of copying (read and written bytes). On the
 * processor the peak is measured before and after each operation, because clocks vary, and the bandwidth, the better of
 * reading and copying, with as many bytes as the operation has: those that fit in a cache come from there. There an
 * exponential or a logarithm counts as EXP_FLOPS; a GPU has units of their own for these.
 *
 *   bench_kernels [--device NAME] [--shapes small|large|tiny] [--json FILE] [PART]
 *
 * PART: only the operations whose name contains it. The shapes are those of a training step and of decoding:
 *   small   --student small, batch 64 (the processor's default)
 *   large   the SO400M encoder and TinyLlama's decoder, batch 64 (a GPU's default): most arrays are larger than its
 *           L2 cache
 *   tiny    for trying this program out
 * With large and tiny, attention and the objective are also measured by themselves, in the sizes that others publish.
 * FILE gets one JSON object per line, the machine first. */
#include "../../lib/json.h"
#include "../../kernels/peak.h"
#include "../../kernels/quantised.h"
#include "../../lib/threads.h"
#include "../../loss.cuh"

typedef struct {
    const char *name;
    int B;                                             // images
    int image, patch, C, F, heads, layers;             // encoder: heads of C / heads channels
    int image_tokens, text, W, FF, H, K, D, V, depth;  // decoder
    int position;                                      // of the token that is decoded
    int decode_W, decode_FF, decode_V;                 // of the large model that is decoded
    size_t parameters;
    int n, n_V, n_student, n_teacher, n_chunk;  // the whole objective: positions, vocabulary, widths; 0: not measured
    int n_B, n_T, n_H;                          // attention: sequences, positions, heads
} Shapes;

/* clang-format off */
static const Shapes all_shapes[] = {
    {.name = "small", .B = 64, .image = 96, .patch = 8, .C = 96, .F = 384, .heads = 3, .layers = 3, .image_tokens = 48,
     .text = 95, .W = 128, .FF = 352, .H = 4, .K = 4, .D = 32, .V = 512, .depth = 3, .position = 500,
     .decode_W = 2048, .decode_FF = 5632, .decode_V = 32000, .parameters = 1139136},
    {.name = "large", .B = 64, .image = 384, .patch = 14, .C = 1152, .F = 4304, .heads = 16, .layers = 27,
     .image_tokens = 243, .text = 512, .W = 2048, .FF = 5632, .H = 32, .K = 4, .D = 64, .V = 32000, .depth = 22,
     .position = 500, .decode_W = 2048, .decode_FF = 5632, .decode_V = 32000, .parameters = 268435456,
     .n = 8192, .n_V = 32768, .n_student = 2048, .n_teacher = 4096, .n_B = 8, .n_T = 2048, .n_H = 16},
    {.name = "tiny", .B = 1, .image = 32, .patch = 8, .C = 32, .F = 64, .heads = 2, .layers = 1, .image_tokens = 4,
     .text = 12, .W = 32, .FF = 48, .H = 2, .K = 1, .D = 16, .V = 64, .depth = 1, .position = 20,
     .decode_W = 64, .decode_FF = 96, .decode_V = 128, .parameters = 1000,
     .n = 12, .n_V = 128, .n_student = 16, .n_teacher = 32, .n_chunk = 4, .n_B = 1, .n_T = 24, .n_H = 1},
};
/* clang-format on */

static const Ops *op;
static FILE *json;
static double bandwidth, peak, total, total_floor;  // peak: on the processor, that of the last measurement
static double extra_memory;                         // bytes, of the operation being measured; 0: not told
static double working_set;  // bytes that the calls of one operation take turns with; 0: those of one call
static const char *only;
static char shape[200];  // of the operation being measured, as "rows=8 C=16"

#define SHAPE(...) snprintf(shape, sizeof shape, __VA_ARGS__)

enum { EXP_FLOPS = 20 };  // range reduction, a polynomial of degree 6 and the scaling by a power of 2

/* The FLOPs of n exponentials or logarithms. */
static double exps(double n) { return op->host_memory ? EXP_FLOPS * n : 0; }

/* The bandwidth for operations that take turns with so many bytes. Sizes are powers of 2, rounded down. */
static double bandwidth_of(double bytes) {
    enum { SMALLEST = 18, LARGEST = 27 };
    static double measured[LARGEST];
    int size = SMALLEST;
    while (size < LARGEST && (double)((size_t)2 << size) <= bytes) size++;
    if (!op->host_memory || size == LARGEST) return bandwidth;
    if (measured[size] > 0) return measured[size];
    void *data = op->alloc((size_t)1 << size);
    for (int pass = 0; data && pass < 20; pass++)
        measured[size] = fmax(measured[size], measure_read_bandwidth(data, (size_t)1 << size));
    if (data) op->release(data);
    for (int pass = 0; pass < 5; pass++)
        measured[size] = fmax(measured[size], measure_copy_bandwidth(op, (size_t)1 << (size - 1)));
    return measured[size] = fmax(measured[size], bandwidth);
}

static void print_result(const char *name, const char *what, double seconds, double flops, double bytes, int count) {
    double before = peak;
    if (op->host_memory) peak = measure_peak_flops(op);
    double by_bytes = bytes / bandwidth_of(fmax(bytes, working_set)), by_flops = flops / fmax(before, peak);
    double floor = fmax(by_bytes, by_flops);
    char title[64];
    snprintf(title, sizeof title, "%s%s%s", name, *what ? " " : "", what);
    printf("%-40s %9.4f ms  %8.0f GFLOP/s %7.1f GB/s  floor %8.4f ms (%s)  %5.0f %%\n", title, seconds * 1e3,
           flops / seconds * 1e-9, bytes / seconds * 1e-9, floor * 1e3, by_bytes > by_flops ? "bytes" : "FLOPs",
           100 * floor / seconds);
    fflush(stdout);
    total += seconds * count;
    total_floor += floor * count;
    if (!json) return;
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "op"), json_string(&w, name);
    json_key(&w, "what"), json_string(&w, what);
    json_key(&w, "shape"), json_string(&w, shape);
    json_key(&w, "ms"), json_number(&w, seconds * 1e3);
    json_key(&w, "floor_ms"), json_number(&w, floor * 1e3);
    json_key(&w, "bound"), json_string(&w, by_bytes > by_flops ? "bytes" : "FLOPs");
    if (extra_memory > 0) json_key(&w, "extra_memory"), json_number(&w, extra_memory);
    json_end_object(&w);
    if (json_write_line(&w, json)) die("cannot write the figures: %s", strerror(errno));
    json_writer_free(&w);
}

/* Seconds of a call: between two waits for the device come as many calls as fill two milliseconds, so that waiting
 * does not count; the best of several such rounds. Usage: while (timer_again(&t)) call; */
typedef struct {
    double best, begin, start;
    int calls, left, rounds;
} Timer;

static bool timer_again(Timer *t) {
    if (t->left-- > 0) return true;
    op->sync();
    double now = seconds_now(), each = (now - t->begin) / (t->calls ? t->calls : 1);
    if (t->rounds == 0) t->start = now;
    if (t->rounds > 1 && each < t->best) t->best = each;  // the first round warms up, the second counts the calls
    if (t->rounds > 2 && now - t->start > 0.1) return false;
    if (t->rounds == 2 && !op->host_memory) t->calls = each < 1e-5 ? 200 : each < 2e-3 ? (int)(2e-3 / each) + 1 : 1;
    if (t->rounds < 2) t->calls = 1;
    t->rounds++;
    t->left = t->calls - 1;
    t->begin = seconds_now();
    return true;
}

static bool wanted(const char *name, const char *what) { return !only || strstr(name, only) || strstr(what, only); }

/* count: how often a training step calls it */
#define BENCH(count, name, what, flops, bytes, call)                \
    if (wanted(name, what)) {                                       \
        Timer timer_ = {1e9, 0, 0, 0, 0, 0};                        \
        while (timer_again(&timer_)) call;                          \
        print_result(name, what, timer_.best, flops, bytes, count); \
    }

static void *room(size_t bytes) {
    void *p = op->alloc(bytes);
    if (!p) die("there is no room for %.1f MB on %s; choose smaller --shapes", (double)bytes / 1e6, op->name);
    return p;
}

static floatX *random_x(size_t n) {
    floatX *x = random_block(op, n);
    if (!x) die("there is no room for %.1f MB on %s; choose smaller --shapes", (double)n * sizeof *x / 1e6, op->name);
    return x;
}

static float *zeros_f(size_t n) { return (float *)room(n * sizeof(float)); }

static int *index_i(size_t n, int below) {  // 0, 1, .. below-1, 0, ..
    int *host = (int *)malloc(n * sizeof *host), *x = (int *)room(n * sizeof *x);
    if (!host) die("out of memory");
    for (size_t i = 0; i < n; i++) host[i] = (int)(i % (size_t)below);
    op->upload(x, host, n * sizeof *x);
    free(host);
    return x;
}

/* ---- linear layers ---- */

/* forward, input gradient and weight gradient of one linear layer */
static void bench_linear(const char *what, size_t rows, int I, int O, Activation act, int count) {
    size_t X = sizeof(floatX);
    floatX *x = random_x(rows * I), *y = random_x(rows * O), *pre = random_x(rows * O), *w = random_x((size_t)O * I);
    floatX *bias = random_x(O);
    float *dw = zeros_f((size_t)O * I), *db = zeros_f(O);
    Weight weight = {w, DT_FLOATX, O, I, NULL};
    double flops = 2.0 * rows * I * O, bytes = (double)(rows * I + rows * O + (size_t)O * I) * X;
    SHAPE("rows=%zu I=%d O=%d act=%d", rows, I, O, (int)act);
    BENCH(count, "linear_forward", what, flops + (act ? exps((double)rows * O) : 0),
          bytes + (act ? (double)rows * O * X : 0),
          op->linear_forward(y, x, weight, bias, act, act ? pre : NULL, rows))
    BENCH(count, "linear_backward_input", what, flops, bytes, op->linear_backward_input(x, y, weight, rows, false))
    BENCH(count, "linear_backward_weight", what, flops, bytes + 8.0 * O * I,
          op->linear_backward_weight(dw, db, y, x, rows, O, I))
    op->release(x), op->release(y), op->release(pre), op->release(w), op->release(dw), op->release(db);
    op->release(bias);
}

/* one token of a large model: the weight is read once, and copies take turns so that no cache holds it */
static void bench_one_row(int I, int O) {
    double bytes = (double)O * I * sizeof(floatX);
    int copies = 4, turn = 0;
    if (!op->host_memory && bytes > 1e5) copies += (int)(256e6 / bytes);
    floatX *x = random_x(I), *y = random_x(O), *w = random_x((size_t)copies * O * I);
    float *logits = zeros_f(O);
    Weight weight = {w, DT_FLOATX, O, I, NULL};
    working_set = copies * bytes;
    SHAPE("rows=1 I=%d O=%d act=0", I, O);
    BENCH(0, "linear_forward", "one row", 2.0 * O * I, bytes,
          (weight.data = w + (size_t)(turn++ % copies) * O * I,
           op->linear_forward(y, x, weight, NULL, ACT_NONE, NULL, 1)))
    BENCH(0, "linear_logits", "one row", 2.0 * O * I, bytes,
          (weight.data = w + (size_t)(turn++ % copies) * O * I, op->linear_logits(logits, x, weight, 1)))
    working_set = 0;
    op->release(x), op->release(y), op->release(w), op->release(logits);
}

/* A few tokens of a large model whose weights have 8 or 4 bits, which are read once. */
static void bench_quantised(Dtype dtype, size_t rows, int I, int O) {
    const size_t data = O * quant_row_bytes(dtype, I), scales = O * quant_row_scales(dtype, I);
    const double bytes = (double)(data + scales * sizeof(bf16));
    int copies = 4, turn = 0;
    char what[32];
    if (!op->host_memory && bytes > 1e5) copies += (int)(256e6 / bytes);
    floatX *x = random_x(rows * I), *y = random_x(rows * O);
    char *q = (char *)room(copies * data);
    bf16 *s = (bf16 *)room(copies * scales * sizeof *s);
    Weight weight = {q, dtype, O, I, s};
    snprintf(what, sizeof what, "%s %zu row%s", dtype == DT_I8 ? "q8" : "q4", rows, rows > 1 ? "s" : "");
    working_set = copies * bytes;
    SHAPE("rows=%zu I=%d O=%d act=0", rows, I, O);
    BENCH(0, "linear_forward", what, 2.0 * rows * O * I, bytes,
          (turn++, weight.data = q + turn % copies * data, weight.scales = s + turn % copies * scales,
           op->linear_forward(y, x, weight, NULL, ACT_NONE, NULL, rows)))
    working_set = 0;
    op->release(x), op->release(y), op->release(q), op->release(s);
}

static void bench_few_rows(int W, int FF, int V) {
    const int outs[3] = {W, FF, V};
    for (int i = 0; i < 3; i++) {
        bench_one_row(W, outs[i]);
        for (int k = 0; k < 4; k++) bench_quantised(k / 2 ? DT_U8 : DT_I8, k % 2 ? 8 : 1, W, outs[i]);
    }
}

/* ---- attention ---- */

static float *rotation(int T, int D) {
    size_t n = (size_t)T * D;
    float *host = (float *)malloc(n * sizeof *host), *rope = zeros_f(n);
    if (!host) die("out of memory");
    for (size_t i = 0; i < n; i++) host[i] = i % (size_t)D < (size_t)D / 2 ? 0.8f : 0.6f;
    op->upload(rope, host, n * sizeof *host);
    free(host);
    return rope;
}

static void bench_attention(const char *what, int B, int T, int H, int K, int D, bool causal, int count) {
    size_t X = sizeof(floatX), n = (size_t)B * T * D;
    float *rope = rotation(T, D);
    AttentionShape s = {B, T, H, K, D, causal, 0.17f, causal ? rope : NULL};
    floatX *qkv = random_x(n * (H + 2 * K)), *dqkv = random_x(n * (H + 2 * K)), *out = random_x(n * H);
    floatX *dout = random_x(n * H);
    float *lse = zeros_f((size_t)B * H * T);
    double scores = (double)B * H * T * T * (causal ? 0.5 : 1.0), matmul = 2.0 * scores * D;
    SHAPE("B=%d T=%d H=%d K=%d D=%d causal=%d", B, T, H, K, D, causal);
    BENCH(count, "attention_forward", what, 2 * matmul + exps(scores), (double)n * (2 * H + 2 * K) * X,
          op->attention_forward(out, lse, qkv, s))
    BENCH(count, "attention_backward", what, 5 * matmul + exps(scores), (double)n * (4 * H + 4 * K) * X,
          op->attention_backward(dqkv, dout, out, lse, qkv, s))
    op->release(qkv), op->release(dqkv), op->release(out), op->release(dout), op->release(lse);
    op->release(rope);
}

/* One new token of B sequences, each with `position` before it. */
static void bench_cache(int B, const Shapes *m) {
    int max_T = m->position + 1, heads = m->H + 2 * m->K;
    size_t X = sizeof(floatX), cached = (size_t)B * m->K * max_T * m->D;
    float *rope = rotation(max_T, m->D);
    AttentionShape s = {B, 1, m->H, m->K, m->D, true, 0.17f, rope};
    floatX *qkv = random_x((size_t)B * max_T * heads * m->D), *out = random_x((size_t)B * m->H * m->D);
    floatX *kcache = random_x(cached), *vcache = random_x(cached);
    int *positions = index_i(B, 1), *last = (int *)malloc((size_t)B * sizeof *last);
    for (int b = 0; last && b < B; b++) last[b] = m->position;
    op->upload(positions, last, (size_t)B * sizeof *last);
    free(last);
    SHAPE("B=%d H=%d K=%d D=%d positions=%d", B, m->H, m->K, m->D, max_T);
    BENCH(0, "attention_decode", B > 1 ? "batch" : "one row", 4.0 * B * m->H * m->D * max_T, 2.0 * cached * X,
          op->attention_decode(out, kcache, vcache, qkv, positions, s, max_T))
    s.T = max_T;
    BENCH(0, "cache_store", B > 1 ? "batch" : "one row", 0, 4.0 * cached * X,
          op->cache_store(kcache, vcache, qkv, s, 0, max_T))
    op->release(rope), op->release(qkv), op->release(out), op->release(kcache), op->release(vcache);
    op->release(positions);
}

/* ---- rows ---- */

static void bench_vision_rows(const Shapes *m, size_t rows) {
    int C = m->C, F = m->F, per = 2 * m->layers + 1;
    size_t X = sizeof(floatX), n = rows * C;
    floatX *a = random_x(n), *b = random_x(n), *c = random_x(n), *w = random_x(C), *pre = random_x(rows * F);
    floatX *d = random_x(rows * F), *act = random_x(rows * F);
    float *mean = zeros_f(rows), *rstd = zeros_f(rows), *dw = zeros_f(C), *db = zeros_f(C);
    SHAPE("rows=%zu C=%d", rows, C);
    BENCH(0, "layernorm_forward", "", 0, 2.0 * n * X, op->layernorm_forward(b, mean, rstd, a, w, w, rows, C, 1e-5f))
    BENCH(per, "residual_layernorm_forward", "", 0, 4.0 * n * X,
          op->residual_layernorm_forward(c, b, mean, rstd, a, b, w, w, rows, C, 1e-5f))
    BENCH(per, "layernorm_backward", "", 0, 4.0 * n * X,
          op->layernorm_backward(a, dw, db, b, c, w, mean, rstd, rows, C))
    SHAPE("n=%zu", rows * F);
    BENCH(m->layers, "gelu_backward", "tanh", exps((double)rows * F), 3.0 * rows * F * X,
          op->gelu_backward(d, act, pre, rows * F, ACT_GELU_TANH))
    BENCH(0, "gelu_backward", "erf", exps((double)rows * F), 3.0 * rows * F * X,
          op->gelu_backward(d, act, pre, rows * F, ACT_GELU_ERF))
    op->release(a), op->release(b), op->release(c), op->release(w), op->release(pre), op->release(d);
    op->release(act), op->release(mean), op->release(rstd), op->release(dw), op->release(db);
}

static void bench_text_rows(const Shapes *m, size_t rows) {
    int C = m->W, F = m->FF, per = 2 * m->depth + 1;
    size_t X = sizeof(floatX), n = rows * C;
    floatX *a = random_x(n), *b = random_x(n), *c = random_x(n), *w = random_x(C), *gate = random_x(rows * 2 * F);
    floatX *up = random_x(rows * 2 * F), *act = random_x(rows * F);
    float *rstd = zeros_f(rows), *dw = zeros_f(C);
    SHAPE("rows=%zu C=%d", rows, C);
    BENCH(0, "rmsnorm_forward", "", 0, 2.0 * n * X, op->rmsnorm_forward(b, rstd, a, w, rows, C, 1e-5f))
    BENCH(per, "residual_rmsnorm_forward", "", 0, 4.0 * n * X,
          op->residual_rmsnorm_forward(c, b, rstd, a, b, w, rows, C, 1e-5f))
    BENCH(per, "rmsnorm_backward", "", 0, 4.0 * n * X, op->rmsnorm_backward(a, dw, b, c, w, rstd, rows, C))
    SHAPE("rows=%zu F=%d", rows, F);
    BENCH(m->depth, "swiglu_forward", "", exps((double)rows * F), 3.0 * rows * F * X,
          op->swiglu_forward(act, gate, rows, F))
    BENCH(m->depth, "swiglu_backward", "", exps((double)rows * F), 5.0 * rows * F * X,
          op->swiglu_backward(up, act, gate, rows, F))
    SHAPE("n=%zu", n);
    BENCH(1, "residual_forward", "", 0, 3.0 * n * X, op->residual_forward(c, a, b, n))
    op->release(a), op->release(b), op->release(c), op->release(w), op->release(gate), op->release(up);
    op->release(act), op->release(rstd), op->release(dw);
}

/* ---- inputs ---- */

static void bench_inputs(const Shapes *m, size_t patches, size_t tokens) {
    int side = m->image / m->patch, features = 3 * m->patch * m->patch, P = side * side;
    size_t X = sizeof(floatX), pixels = (size_t)m->B * m->image * m->image * 3, text = (size_t)m->B * m->text;
    uint8_t *u8 = (uint8_t *)room(pixels);
    floatX *columns = random_x(patches * features), *x = random_x(patches * m->C), *w = random_x((size_t)P * m->C);
    float *dposition = zeros_f((size_t)P * m->C);
    SHAPE("B=%d S=%d patch=%d", m->B, m->image, m->patch);
    BENCH(1, "patchify", "", 0, (double)pixels + (double)patches * features * X,
          op->patchify(columns, u8, m->B, m->image, m->image, m->patch))
    SHAPE("B=%d T=%d C=%d", m->B, P, m->C);
    BENCH(1, "position_forward", "", 0, (2.0 * patches + P) * m->C * X, op->position_forward(x, w, m->B, P, m->C))
    BENCH(1, "position_backward", "", 0, (double)patches * m->C * X + 8.0 * P * m->C,
          op->position_backward(dposition, x, m->B, P, m->C))
    BENCH(1, "position_2d_forward", "", 0, (2.0 * patches + 2 * side) * m->C * X,
          op->position_2d_forward(x, w, w, m->B, side, side, m->C))
    BENCH(1, "position_2d_backward", "", 0, 2.0 * patches * m->C * X + 16.0 * side * m->C,
          op->position_2d_backward(dposition, dposition + side * m->C, x, m->B, side, side, m->C))
    op->release(u8), op->release(columns), op->release(x), op->release(w), op->release(dposition);
    floatX *table = random_x((size_t)m->V * m->W), *out = random_x(tokens * m->W), *some = random_x(text * m->W);
    float *dtable = zeros_f((size_t)m->V * m->W);
    int *ids = index_i(tokens, m->V), *rows = index_i(text, (int)tokens);
    SHAPE("rows=%zu C=%d V=%d", tokens, m->W, m->V);
    BENCH(1, "embedding_forward", "", 0, 2.0 * tokens * m->W * X,
          op->embedding_forward(out, ids, (Weight){table, DT_FLOATX, m->V, m->W, NULL}, tokens))
    BENCH(1, "embedding_backward", "", 0, (double)tokens * m->W * X + 8.0 * m->V * m->W,
          op->embedding_backward(dtable, out, ids, tokens, m->W, m->V))
    SHAPE("rows=%zu total=%zu C=%d", text, tokens, m->W);
    BENCH(1, "gather_rows", "", 0, 2.0 * text * m->W * X, op->gather_rows(some, out, rows, text, m->W))
    BENCH(1, "scatter_rows", "", 0, (double)(tokens + text) * m->W * X,
          op->scatter_rows(out, some, rows, text, tokens, m->W))
    op->release(table), op->release(out), op->release(some), op->release(dtable), op->release(ids), op->release(rows);
}

/* ---- objective, optimizer ---- */

static void bench_rows(size_t rows, int V) {
    size_t X = sizeof(floatX), n = rows * V;
    floatX *s = random_x(n), *t = random_x(n);
    int *labels = index_i(rows, V);
    RowStats *stats = (RowStats *)room(rows * sizeof(RowStats));
    float *gate = zeros_f(rows);
    ObjectiveRow o = {0.5f, 0, 0, 1, SOFT_KL, 0.5f, 2, 1, 1.0f / (float)rows, NULL, 0, NULL};
    SHAPE("rows=%zu V=%d", rows, V);
    /* exponentials: of s; of s / tau, t / tau and t; and for JSD one and a logarithm. Temperature 1 has two fewer. */
    BENCH(1, "distill_rows", "cross entropy", exps(n), 2.0 * n * X,
          op->distill_rows(s, NULL, labels, NULL, stats, o, rows, V, V, true))
    o.w_soft = 0.5f, o.temperature = 2;
    BENCH(0, "distill_rows", "KL tau 2", exps(4.0 * n), 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    o.temperature = 3;
    BENCH(0, "distill_rows", "KL tau 3", exps(4.0 * n), 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    o.soft = SOFT_JSD, o.temperature = 2;
    BENCH(0, "distill_rows", "JSD tau 2", exps(6.0 * n), 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    o.temperature = 1, o.w_ce = 0, o.w_soft = 1;
    BENCH(0, "distill_rows", "JSD alone tau 1", exps(4.0 * n), 3.0 * n * X,
          op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, true))
    o.temperature = 2, o.w_ce = o.w_soft = 0.5f;
    BENCH(0, "distill_rows", "KL tau 2 without gradient", exps(4.0 * n), 2.0 * n * X,
          (o.soft = SOFT_KL, op->distill_rows(s, t, labels, NULL, stats, o, rows, V, V, false)))
    SHAPE("rows=%zu", rows);
    BENCH(0, "entropy_band", "", 0, rows * (sizeof *stats + sizeof *gate),
          op->entropy_band(gate, stats, rows, 0.1f, 1.0f, 45))
    op->release(s), op->release(t), op->release(labels), op->release(stats), op->release(gate);
}

static void bench_cosine(const Shapes *m) {
    size_t X = sizeof(floatX), tokens = (size_t)m->image_tokens * m->W;
    floatX *a = random_x(m->B * tokens), *b = random_x(m->B * tokens), *da = random_x(m->B * tokens);
    float *cosines = zeros_f(m->B);
    SHAPE("B=%d n=%zu", m->B, tokens);
    BENCH(0, "cosine", "", 0, 3.0 * m->B * tokens * X, op->cosine(cosines, da, a, b, m->B, tokens, 1))
    op->release(a), op->release(b), op->release(da), op->release(cosines);
}

/* The matmuls of the objective alone, over all positions at once. The whole objective cannot take less time. */
static void bench_objective_products(const Shapes *m, floatX *dh, float *dw, const floatX *h, const floatX *ht,
                                     Weight head, Weight teacher_head, double flops) {
    size_t n = (size_t)m->n;
    floatX *s = random_x(n * m->n_V), *t = random_x(n * m->n_V);
    BENCH(0, "objective_products", "", flops, 0,
          (op->linear_forward(s, h, head, NULL, ACT_NONE, NULL, n),
           op->linear_forward(t, ht, teacher_head, NULL, ACT_NONE, NULL, n),
           op->linear_backward_input(dh, s, head, n, false),
           op->linear_backward_weight(dw, NULL, s, h, n, m->n_V, m->n_student)))
    op->release(s), op->release(t);
}

/* Both heads, loss and all gradients, from hidden states; and the memory that takes beyond inputs and gradients. */
static void bench_objective(const Shapes *m) {
    if (!m->n || !wanted("objective", "")) return;
    const int n = m->n, V = m->n_V, ws = m->n_student, wt = m->n_teacher;
    Objective o;
    TeacherOutput q;
    ObjectiveConfig config;
    memset(&config, 0, sizeof config);
    memset(&q, 0, sizeof q);
    config.w_ce = config.w_soft = 0.5f, config.temperature = 2, config.mix = 0.5f;
    config.band_high = INFINITY, config.gate_confidence = 2, config.gate_factor = 1;
    floatX *h = random_x((size_t)n * ws), *ht = random_x((size_t)n * wt), *dh = random_x((size_t)n * ws);
    q.hidden = ht;
    floatX *w = random_x((size_t)V * ws), *w_teacher = random_x((size_t)V * wt);
    float *dw = zeros_f((size_t)V * ws);
    Param student_head = {.rows = V, .cols = ws, .n = (size_t)V * ws, .value = w, .gradient = dw};
    Model student = {.op = op, .lm_head = &student_head};  // as much of one as the objective asks for
    student.c.lm.vocab = V, student.c.lm.hidden_size = ws;
    student.c.vision.image_size = student.c.vision.patch_size = student.c.vision.concat = 1;
    Weight head = {w, DT_FLOATX, V, ws, NULL}, teacher_head = {w_teacher, DT_FLOATX, V, wt, NULL};
    int *labels = (int *)calloc((size_t)n, sizeof *labels);
    if (!labels) die("out of memory");
    double flops = 2.0 * n * V * (3.0 * ws + wt);
    op->linear_forward(dh, h, (Weight){w, DT_FLOATX, ws, ws, NULL}, NULL, ACT_NONE, NULL,
                       (size_t)n);  // makes scratch
    op->sync();
    size_t free_before = op->memory_free();
    objective_open(&o, config, &student, teacher_head, m->n_chunk, n, 0, 1);
    objective_positions(&o, dh, h, &student_head, &q, labels, n, 1.0 / n);
    objective_collect(&o);
    extra_memory = (double)free_before - (double)op->memory_free();
    SHAPE("n=%d V=%d student=%d teacher=%d", n, V, ws, wt);
    BENCH(0, "objective", "", flops, 0, objective_positions(&o, dh, h, &student_head, &q, labels, n, 1.0 / n))
    printf("    in chunks of %d positions; %.1f MB beyond inputs and gradients\n", o.chunk, extra_memory / 1e6);
    extra_memory = 0;
    objective_close(&o);
    bench_objective_products(m, dh, dw, h, ht, head, teacher_head, flops);
    free(labels);
    op->release(h), op->release(ht), op->release(dh), op->release(w), op->release(w_teacher), op->release(dw);
}

static void bench_optimizer(size_t n) {
    floatX *p = random_x(n);
    float *w = zeros_f(n), *m = zeros_f(n), *v = zeros_f(n), *g = zeros_f(n), *norm = zeros_f(1);
    SHAPE("n=%zu", n);
    BENCH(1, "squared_norm", "", 0, 4.0 * n, op->squared_norm(norm, g, n, false))
    BENCH(1, "adamw", "", 0, (28.0 + sizeof(floatX)) * n,
          op->adamw(p, w, m, v, g, n, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, norm, 1, 10))
    BENCH(0, "cast_to_x", "", 0, (4.0 + sizeof(floatX)) * n, op->cast_to_x(p, w, n))
    BENCH(0, "cast_from_x", "", 0, (4.0 + sizeof(floatX)) * n, op->cast_from_x(w, p, n))
    op->release(p), op->release(w), op->release(m), op->release(v), op->release(g), op->release(norm);
}

/* ---- the machine ---- */

static void measure_bandwidth(bool tiny) {
    size_t bytes = (size_t)1 << (tiny ? 20 : 30);
    if (!op->host_memory) {
        bandwidth = measure_copy_bandwidth(op, bytes);
        return;
    }
    void *data = op->alloc(bytes);
    for (int pass = 0; data && pass < 5; pass++) {
        double rate = measure_read_bandwidth(data, bytes);
        if (rate > bandwidth) bandwidth = rate;
    }
    if (data) op->release(data);
}

static void print_machine(const Shapes *m) {
    printf("device %s, %s shapes: measured %s bandwidth %.1f GB/s, matmul %.0f GFLOP/s\n", op->name, m->name,
           op->host_memory ? "read" : "copy", bandwidth * 1e-9, peak * 1e-9);
    if (!json) return;
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "device"), json_string(&w, op->name);
    json_key(&w, "shapes"), json_string(&w, m->name);
    json_key(&w, "dtype"), json_string(&w, dtype_name(DT_FLOATX));
    json_key(&w, "bandwidth"), json_number(&w, bandwidth);
    json_key(&w, "peak"), json_number(&w, peak);
    json_end_object(&w);
    if (json_write_line(&w, json)) die("cannot write the figures: %s", strerror(errno));
    json_writer_free(&w);
}

static void bench_step(const Shapes *m) {
    int side = m->image / m->patch, V = m->layers, L = m->depth, vD = m->C / m->heads;
    int P = side * side, T = m->image_tokens + m->text;
    size_t patches = (size_t)m->B * P, tokens = (size_t)m->B * T, text = (size_t)m->B * m->text;
    size_t images = (size_t)m->B * m->image_tokens;
    bench_linear("patch embedding", patches, 3 * m->patch * m->patch, m->C, ACT_NONE, 1);
    bench_linear("vision qkv", patches, m->C, 3 * m->C, ACT_NONE, V);
    bench_linear("vision attention out", patches, m->C, m->C, ACT_NONE, V);
    bench_linear("vision MLP in", patches, m->C, m->F, ACT_GELU_TANH, V);
    bench_linear("vision MLP out", patches, m->F, m->C, ACT_NONE, V);
    bench_linear("connector", images, 3 * m->C, m->W, ACT_NONE, 1);
    bench_linear("LM qkv", tokens, m->W, (m->H + 2 * m->K) * m->D, ACT_NONE, L);
    bench_linear("LM attention out", tokens, m->H * m->D, m->W, ACT_NONE, L);
    bench_linear("LM gate and up", tokens, m->W, 2 * m->FF, ACT_NONE, L);
    bench_linear("LM down", tokens, m->FF, m->W, ACT_NONE, L);
    bench_linear("LM head", text, m->W, m->V, ACT_NONE, 1);
    bench_attention("vision", m->B, P, m->heads, m->heads, vD, false, V);
    bench_attention("LM", m->B, T, m->H, m->K, m->D, true, L);
    bench_vision_rows(m, patches);
    bench_text_rows(m, tokens);
    bench_inputs(m, patches, tokens);
    bench_rows(text, m->V);
    bench_cosine(m);
    bench_optimizer(m->parameters);
    if (total > 0)
        printf("a training step of these: %.1f ms, floor %.1f ms (%.0f %%): %.0f samples/s\n", total * 1e3,
               total_floor * 1e3, 100 * total_floor / total, m->B / total);
}

/* What the machine is judged by, apart from any step. */
static void bench_alone(const Shapes *m) {
    const double counted = total, counted_floor = total_floor;
    bench_rows((size_t)m->n, m->n_V);
    bench_objective(m);
    for (int D = 64; D <= 128; D *= 2)
        for (int causal = 1; causal >= 0; causal--)
            bench_attention("alone", m->n_B, m->n_T, m->n_H, m->n_H, D, causal, 0);
    total = counted, total_floor = counted_floor;
}

int main(int argc, char **argv) {
    const char *device = "cpu", *shapes = NULL;
    Error err;
    const Shapes *m = NULL;
    threads_wait_politely(argv);
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--device"))
            device = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--shapes"))
            shapes = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--json")) {
            if (!(json = fopen(argv[++i], "w"))) die("cannot write %s: %s", argv[i], strerror(errno));
        } else
            only = argv[i];
    }
    if (!(op = ops_open(device, &err))) die("%s", err.text);
    if (!shapes) shapes = op->host_memory ? "small" : "large";
    for (size_t i = 0; i < sizeof all_shapes / sizeof *all_shapes; i++)
        if (!strcmp(all_shapes[i].name, shapes)) m = &all_shapes[i];
    if (!m) die("--shapes is '%s'; expected small, large or tiny", shapes);
    measure_bandwidth(m->B == 1);
    peak = measure_peak_flops(op);
    print_machine(m);
    if (m->n) bench_alone(m);
    bench_step(m);
    bench_few_rows(m->decode_W, m->decode_FF, m->decode_V);
    bench_cache(1, m);
    bench_cache(m->B > 1 ? 16 : 2, m);
    if (json && fclose(json)) die("cannot write the figures: %s", strerror(errno));
    return 0;
}
