/* Tests of what a device does with calls beside computing: graphs, streams, asynchronous downloads. */
#ifndef DEV_TEST_KERNELS_DEVICE_H
#define DEV_TEST_KERNELS_DEVICE_H

#include "test_kernels.h"

/* x [n] = new random values, rounded to floatX as in h. */
static void draw_x(double *x, floatX *h, size_t n) {
    for (size_t i = 0; i < n; i++) h[i] = to_x((float)normal()), x[i] = from_x(h[i]);
}

/* ---- graphs ---- */

/* The operands of the graph below. It adds whatever numbers are in memory when it runs, and some of its operations
 * need scratch memory. */
typedef struct {
    floatX *a, *b, *sum, *copy;
    float *norm, *floats;
    size_t n;
} GraphCase;

/* Launches the graph, or makes its calls; true when it was launched. */
static bool graph_case_run(const GraphCase *g, const void *owner, uint64_t variant) {
    if (op->graph_launch(owner, variant)) return true;
    op->residual_forward(g->sum, g->a, g->b, g->n);
    op->residual_forward(g->sum, g->sum, g->a, g->n);
    op->copy(g->copy, g->sum, g->n * sizeof(floatX));
    op->cast_from_x(g->floats, g->copy, g->n);
    op->zero(g->sum, g->n * sizeof(floatX));
    op->squared_norm(g->norm, g->floats, g->n, false);
    op->graph_end();
    return false;
}

static GraphCase graph_case_make(size_t n) {
    GraphCase g = {out_x(n), out_x(n), out_x(n), out_x(n), out_f(1), out_f(n), n};
    return g;
}

typedef enum { CALLS_MADE, GRAPH_LAUNCHED, EITHER } Expected;

/* Runs the graph on new numbers and compares its results. */
static void graph_case_check(const GraphCase *g, Expected expected, const void *owner, uint64_t variant) {
    size_t n = g->n;
    double *a = zeros(4 * n), *b = a + n, *sum = b + n, *nothing = sum + n, norm = 0;
    floatX *h = (floatX *)host(n * sizeof *h);
    draw_x(b, h, n);
    op->upload(g->b, h, n * sizeof *h);
    draw_x(a, h, n);
    op->upload(g->a, h, n * sizeof *h);
    bool launched = graph_case_run(g, owner, variant);
    if (expected != EITHER && comparing)
        report(launched == (expected == GRAPH_LAUNCHED && !op->host_memory), "the graph was %slaunched",
               launched ? "" : "not ");
    for (size_t i = 0; i < n; i++) {
        sum[i] = from_x(to_x((float)(from_x(to_x((float)(a[i] + b[i]))) + a[i])));
        norm += sum[i] * sum[i];
    }
    check_x("graph's copy", g->copy, sum, n, FP32);
    check_x("graph's zero", g->sum, nothing, n, FP32);
    check_f("graph's norm", g->norm, &norm, 1, FP32);
}

/* A graph reads what is in memory at each launch, also when the scratch memory that it needs has moved in between,
 * and it is not launched any more once it is freed. Runs before the tests that make scratch memory large. */
static void test_graph(void) {
    static size_t wide = 3000;
    GraphCase g = graph_case_make(1 + (size_t)below(700));
    for (int i = 0; i < 4; i++) graph_case_check(&g, i >= 2 ? GRAPH_LAUNCHED : CALLS_MADE, &g, 0);
    wide += wide / 3;
    floatX *dout = out_x(4 * wide), *inp = out_x(4);
    float *dw = out_f(wide), *db = out_f(wide);
    op->linear_backward_weight(dw, db, dout, inp, 4, (int)wide, 1);  // needs more scratch memory than ever
    graph_case_check(&g, EITHER, &g, 0);
    graph_case_check(&g, GRAPH_LAUNCHED, &g, 0);
    op->graph_free(&g);
    for (int i = 0; i < 3; i++) graph_case_check(&g, i >= 2 ? GRAPH_LAUNCHED : CALLS_MADE, &g, 0);
    op->graph_free(&g);
}

/* Owners and variants are kept apart, and when there are more graphs than a device keeps, the oldest is dropped. */
static void test_graphs(void) {
    static const int owners[2] = {0, 1};
    GraphCase g[2] = {graph_case_make(20), graph_case_make(33)};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 4; k++)
            graph_case_check(&g[k % 2], i >= 2 ? GRAPH_LAUNCHED : CALLS_MADE, &owners[k / 2], (uint64_t)(k % 2));
    op->graph_free(&owners[0]);
    graph_case_check(&g[1], GRAPH_LAUNCHED, &owners[1], 1);
    graph_case_check(&g[0], CALLS_MADE, &owners[0], 0);
    for (int i = 2; i < 200; i++) {
        (void)graph_case_run(&g[0], &owners[0], (uint64_t)i);
        (void)graph_case_run(&g[1], &owners[1], 1);  // stays among the latest
    }
    bool launched = graph_case_run(&g[1], &owners[1], 1);
    report(launched == !op->host_memory, "the latest graph was dropped");
    launched = graph_case_run(&g[0], &owners[1], 0);
    report(!launched, "more graphs are kept than a device has places for");
    op->graph_free(&owners[0]);
    op->graph_free(&owners[1]);
}

/* ---- streams ---- */

/* Two streams work on each other's results, and neither of them waits for the host: x = 2 (x + 1) + 1 in whole
 * numbers, which floatX holds exactly. */
static void test_second_stream(void) {
    const Ops *second = ops_second_stream(op);
    const size_t n = 1 + (size_t)below(3000);
    double *want = zeros(n), *want_copy = zeros(n);
    floatX *x = put_x(zeros(n), n), *one, *y = out_x(n), *z = out_x(n), *copy = out_x(n);
    double *ones = zeros(n);
    for (size_t i = 0; i < n; i++) ones[i] = 1;
    one = put_x(ones, n);
    report(second->device == op->device && !strcmp(second->name, op->name), "a second has the name of its device");
    for (int i = 0; i < 5; i++) {
        op->residual_forward(x, x, one, n);  // x + 1
        second->wait_for(op);
        second->residual_forward(y, x, x, n);  // 2x
        if (i % 2) {
            op->copy_from(z, second, y, n * sizeof(floatX));
            second->zero(y, n * sizeof(floatX));  // after it has been read
        } else {
            op->wait_for(second);
            op->copy(z, y, n * sizeof(floatX));
        }
        op->residual_forward(x, z, one, n);  // 2x + 1, after the second has read x
        op->copy(copy, x, n * sizeof(floatX));
        for (size_t k = 0; k < n; k++) want_copy[k] = want[k] = 2 * (want[k] + 1) + 1;
    }
    second->sync();
    check_x("second stream x", x, want, n, FP32);
    check_x("second stream copy", copy, want_copy, n, FP32);
}

/* A device and a stream of another one copy from each other, and each overwrites what it lent as soon as it may:
 * `there` counts 1, 2, ... in y, `op` adds them up in sum, and `there` copies the sum back. */
static void check_copies_between(const Ops *there, const char *what) {
    enum { STEPS = 6 };
    const size_t n = 1 + (size_t)below(20000), bytes = n * sizeof(floatX);
    double *ones = zeros(n), *want = zeros(n);
    for (size_t i = 0; i < n; i++) ones[i] = 1, want[i] = STEPS * (STEPS + 1) / 2;
    floatX *one = put_x(ones, n), *x = out_x(n), *sum = put_x(zeros(n), n), *back = out_x(n);
    floatX *one_there = (floatX *)there->alloc(bytes), *y = (floatX *)there->alloc(bytes);
    floatX *z = (floatX *)there->alloc(bytes);
    there->copy_from(one_there, op, one, bytes);
    for (int i = 0; i < STEPS; i++) {
        there->residual_forward(y, y, one_there, n);
        op->copy_from(x, there, y, bytes);
        op->residual_forward(sum, sum, x, n);
    }
    there->zero(y, bytes);  // after the last value has been read
    there->copy_from(z, op, sum, bytes);
    op->zero(sum, bytes);  // likewise
    op->copy_from(back, there, z, bytes);
    check_x(what, back, want, n, 0);
    there->sync();
    there->release(one_there);
    there->release(y);
    there->release(z);
}

/* Every stream of this device, and of another one where there is one. */
static void test_streams(void) {
    Error err;
    const Ops *other = op->host_memory ? op : ops_open("cuda:1", &err);
    if (!other) other = op;
    for (int i = 0; i < OPS_STREAMS; i++) {
        const Ops *here = ops_stream(op, i), *there = ops_stream(other, i);
        report(here == ops_stream(op, i) && here->device == op->device && ops_share_memory(here, op) &&
                   here->stream == (op->host_memory ? 0 : i) && (here == op) == (op->host_memory || i == 0),
               "stream %d has the wrong table", i);
        report(op->host_memory ? !here->native_stream
                               : here->native_stream && (here->native_stream == op->native_stream) == (i == 0),
               "stream %d has the wrong native stream", i);
        check_copies_between(here, "copies between streams");
        check_copies_between(there, "copies between a device and a stream of another");
    }
}

/* ---- downloads ---- */

/* An asynchronous download gives what was in memory when it was asked for. */
static void test_downloads(void) {
    int values[OPS_DOWNLOADS * 3], n = 1 + below(OPS_DOWNLOAD_BYTES / (int)sizeof(int));
    int *d = (int *)device((size_t)n * sizeof(int)), *h = (int *)host((size_t)n * sizeof(int));
    for (int i = 0; i < OPS_DOWNLOADS * 3; i++) {
        values[i] = below(1 << 30);
        for (int k = 0; k < n; k++) h[k] = values[i] + k;
        op->upload(d, h, (size_t)n * sizeof(int));
        op->download_async(i % OPS_DOWNLOADS, d, (size_t)n * sizeof(int));
        op->zero(d, (size_t)n * sizeof(int));
        if (i + 1 < OPS_DOWNLOADS) continue;
        const int *got = (const int *)op->download_wait((i + 1) % OPS_DOWNLOADS);
        int first = values[i + 1 - OPS_DOWNLOADS], wrong = 0;
        for (int k = 0; k < n; k++) wrong += got[k] != first + k;
        report(wrong == 0, "%d of %d downloaded values are not what was in memory", wrong, n);
    }
}

#endif
