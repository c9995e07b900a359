/* Tests of what a device does with calls, beside computing: recordings, lanes, downloads that are waited for later. */
#ifndef DEV_TEST_KERNELS_DEVICE_H
#define DEV_TEST_KERNELS_DEVICE_H

#include "test_kernels.h"

/* x [n] = its values at the call, rounded as the device has them. */
static void draw_x(double *x, floatX *h, size_t n) {
    for (size_t i = 0; i < n; i++) h[i] = to_x((float)normal()), x[i] = from_x(h[i]);
}

/* What is recorded below: sums with the bits that stand in memory at the time, among them ones that need scratch. */
typedef struct {
    floatX *a, *b, *sum, *copy;
    float *norm, *floats;
    size_t n;
} Recorded;

static bool recorded_run(const Recorded *r, const void *owner, uint64_t variant) {
    if (op->graph_launch(owner, variant)) return true;
    op->residual_forward(r->sum, r->a, r->b, r->n);
    op->residual_forward(r->sum, r->sum, r->a, r->n);
    op->copy(r->copy, r->sum, r->n * sizeof(floatX));
    op->cast_from_x(r->floats, r->copy, r->n);
    op->zero(r->sum, r->n * sizeof(floatX));
    op->squared_norm(r->norm, r->floats, r->n, false);
    op->graph_end();
    return false;
}

static Recorded recorded_make(size_t n) {
    Recorded r = {out_x(n), out_x(n), out_x(n), out_x(n), out_f(1), out_f(n), n};
    return r;
}

typedef enum { MADE, REPLAYED, EITHER } Expected;

/* New numbers, and what comes of them. */
static void recorded_check(const Recorded *r, Expected expected, const void *owner, uint64_t variant) {
    size_t n = r->n;
    double *a = zeros(4 * n), *b = a + n, *sum = b + n, *nothing = sum + n, norm = 0;
    floatX *h = (floatX *)host(n * sizeof *h);
    draw_x(b, h, n);
    op->upload(r->b, h, n * sizeof *h);
    draw_x(a, h, n);
    op->upload(r->a, h, n * sizeof *h);
    bool was = recorded_run(r, owner, variant);
    if (expected != EITHER && comparing)
        report(was == (expected == REPLAYED && !op->host_memory), "calls were %s", was ? "replayed" : "made");
    for (size_t i = 0; i < n; i++) {
        sum[i] = from_x(to_x((float)(from_x(to_x((float)(a[i] + b[i]))) + a[i])));
        norm += sum[i] * sum[i];
    }
    check_x("recorded copy", r->copy, sum, n, FP32);
    check_x("recorded zero", r->sum, nothing, n, FP32);
    check_f("recorded norm", r->norm, &norm, 1, FP32);
}

/* The calls are made with what lies in memory at each replay, also when the scratch memory that they need has moved in
 * between, and are not replayed any more once they are forgotten. Runs before tests that make scratch memory large. */
static void test_recording(void) {
    static size_t wide = 3000;
    Recorded r = recorded_make(1 + (size_t)below(700));
    for (int i = 0; i < 4; i++) recorded_check(&r, i >= 2 ? REPLAYED : MADE, &r, 0);
    wide += wide / 3;
    floatX *dout = out_x(4 * wide), *inp = out_x(4);
    float *dw = out_f(wide), *db = out_f(wide);
    op->linear_backward_weight(dw, db, dout, inp, 4, (int)wide, 1);  // needs more scratch memory than ever
    recorded_check(&r, EITHER, &r, 0);
    recorded_check(&r, REPLAYED, &r, 0);
    op->graph_free(&r);
    for (int i = 0; i < 3; i++) recorded_check(&r, i >= 2 ? REPLAYED : MADE, &r, 0);
    op->graph_free(&r);
}

/* Owners and variants are kept apart, and more of them than a device keeps make it forget the oldest. */
static void test_recordings(void) {
    static const int owners[2] = {0, 1};
    Recorded r[2] = {recorded_make(20), recorded_make(33)};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 4; k++) recorded_check(&r[k % 2], i >= 2 ? REPLAYED : MADE, &owners[k / 2], (uint64_t)(k % 2));
    op->graph_free(&owners[0]);
    recorded_check(&r[1], REPLAYED, &owners[1], 1);
    recorded_check(&r[0], MADE, &owners[0], 0);
    for (int i = 2; i < 200; i++) {
        (void)recorded_run(&r[0], &owners[0], (uint64_t)i);
        (void)recorded_run(&r[1], &owners[1], 1);  // stays among the latest
    }
    bool was = recorded_run(&r[1], &owners[1], 1);
    report(was == !op->host_memory, "the latest recording was forgotten");
    was = recorded_run(&r[0], &owners[1], 0);
    report(!was, "more recordings are kept than there is room for");
    op->graph_free(&owners[0]);
    op->graph_free(&owners[1]);
}

/* Two lanes that work on each other's results, neither of them waiting for the host: 3 (2x + 1) + ... in whole
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

/* What is received is what stood there when it was sent. */
static void test_sending(void) {
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
        report(wrong == 0, "%d of %d received values are not what was sent", wrong, n);
    }
}

#endif
