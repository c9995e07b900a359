/* Tests of norms, linear layers and pointwise operations. */
#ifndef DEV_TEST_KERNELS_LAYERS_H
#define DEV_TEST_KERNELS_LAYERS_H

#include "../../kernels/dropout.h"
#include "test_kernels.h"

/* ---- norms ---- */

typedef struct {
    size_t rows;
    int C;
    bool layer;
    double *x, *weight, *bias, *dout, *out, *mean, *rstd;
} NormCase;

static double norm_loss(void *context) {
    NormCase *k = (NormCase *)context;
    ref_norm_forward(k->out, k->mean, k->rstd, k->x, k->weight, k->bias, k->rows, k->C, 1e-5, k->layer);
    return ref_dot(k->out, k->dout, (int)(k->rows * k->C));
}

static void norm_forward_check(NormCase *k, bool residual, bool alias, bool save) {
    size_t n = k->rows * k->C;
    double *a = draw(n, 1), *b = draw(n, 1);
    for (size_t i = 0; i < n; i++) a[i] += 1;
    floatX *dev_a = put_x(a, n), *dev_b = put_x(b, n), *sum = alias ? dev_a : out_x(n), *out = out_x(n);
    floatX *weight = put_x(k->weight, k->C), *bias = put_x(k->bias, k->C);
    float *mean = save ? out_f(k->rows) : NULL, *rstd = save ? out_f(k->rows) : NULL;
    for (size_t i = 0; i < n; i++) k->x[i] = residual ? from_x(to_x((float)(a[i] + b[i]))) : a[i];
    norm_loss(k);
    if (k->layer && residual)
        op->residual_layernorm_forward(sum, out, mean, rstd, dev_a, dev_b, weight, bias, k->rows, k->C, 1e-5f);
    else if (k->layer)
        op->layernorm_forward(out, mean, rstd, dev_a, weight, bias, k->rows, k->C, 1e-5f);
    else if (residual)
        op->residual_rmsnorm_forward(sum, out, rstd, dev_a, dev_b, weight, k->rows, k->C, 1e-5f);
    else
        op->rmsnorm_forward(out, rstd, dev_a, weight, k->rows, k->C, 1e-5f);
    if (residual) check_x("residual sum", sum, k->x, n, 1e-7);
    double spread = 0;  // a mean is rounded, and where a row's values are almost equal, rstd makes much of that
    for (size_t r = 0; r < k->rows && k->layer; r++) spread = fmax(spread, fabs(k->mean[r]) * k->rstd[r]);
    check_x(k->layer ? "layernorm_forward" : "rmsnorm_forward", out, k->out, n, FORWARD + 0x1p-22 * spread);
    if (save && k->layer) check_f("mean", mean, k->mean, k->rows, FP32);
    if (save) check_f("rstd", rstd, k->rstd, k->rows, FP32);
}

static void test_norm(void) {
    NormCase k = {.rows = 1 + below(150), .C = 1 + ragged(), .layer = below(2)};
    int unusual = below(8);  // very long rows, many rows, very many
    if (unusual == 0) k.rows = 1 + below(3), k.C = below(2) ? 12288 : 12543;
    if (unusual == 1) k.rows = 256 + below(100);
    if (unusual == 2) k.rows = 4300 + below(900), k.C = 1 + below(12);
    bool residual = below(2), frozen = below(4) == 0;
    size_t n = k.rows * k.C;
    k.x = draw(n, 1), k.weight = draw(k.C, 1), k.bias = draw(k.C, 1), k.dout = draw(n, 1);
    k.out = zeros(n), k.mean = zeros(k.rows), k.rstd = zeros(k.rows);
    norm_forward_check(&k, residual, residual && below(2), below(4) != 0);
    norm_loss(&k);
    double *dx = draw(n, 1), *dweight = draw(k.C, 1), *dbias = draw(k.C, 1);
    floatX *dev_dx = put_x(dx, n), *dev_dout = put_x(k.dout, n), *dev_x = put_x(k.x, n);
    floatX *dev_weight = put_x(k.weight, k.C);
    float *dev_dweight = put_f(dweight, k.C), *dev_dbias = put_f(dbias, k.C);
    float *mean = put_f(k.mean, k.rows), *rstd = put_f(k.rstd, k.rows);
    if (k.layer)
        op->layernorm_backward(dev_dx, frozen ? NULL : dev_dweight, frozen ? NULL : dev_dbias, dev_dout, dev_x,
                               dev_weight, mean, rstd, k.rows, k.C);
    else
        op->rmsnorm_backward(dev_dx, frozen ? NULL : dev_dweight, dev_dout, dev_x, dev_weight, rstd, k.rows, k.C);
    double *gx = zeros(n), *gweight = zeros(k.C), *gbias = zeros(k.C);
    ref_norm_backward(gx, gweight, gbias, k.dout, k.x, k.weight, k.mean, k.rstd, k.rows, k.C, k.layer);
    for (size_t i = 0; i < n; i++) dx[i] += gx[i];
    for (int c = 0; c < k.C && !frozen; c++) dweight[c] += gweight[c], dbias[c] += k.layer ? gbias[c] : 0;
    check_x("norm_backward dinp", dev_dx, dx, n, BACKWARD);
    check_f("norm_backward dweight", dev_dweight, dweight, k.C, 5 * FP32);
    check_f("norm_backward dbias", dev_dbias, dbias, k.C, 5 * FP32);
    if (k.C < 4) return;  // two normalised values hardly move: nothing to difference
    check_difference("norm dx", norm_loss, &k, k.x, gx, n);
    check_difference("norm dweight", norm_loss, &k, k.weight, gweight, k.C);
}

/* ---- linear layers ---- */

static Weight put_weight(double *w, int O, int I, Dtype dtype) {
    size_t n = (size_t)O * I, size = dtype_size(dtype);
    char *h = (char *)malloc(n * size);
    for (size_t i = 0; i < n; i++) {
        float f = (float)w[i];
        bf16 x = f32_to_bf16(f);
        memcpy(h + i * size, dtype == DT_F32 ? (void *)&f : (void *)&x, size);
        w[i] = dtype == DT_F32 ? f : bf16_to_f32(x);
    }
    void *d = device(n * size);
    op->upload(d, h, n * size);
    free(h);
    Weight weight = {d, dtype, O, I, NULL};
    return weight;
}

static size_t matmul_rows(void) {
    return ONE_OF(size_t, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 100, 129, 517, 700);
}

/* Half of them whole vectors, some of them square. */
static void matmul_shape(int *O, int *I) {
    *O = ragged() + (below(3) ? 0 : below(500)), *I = ragged() + (below(3) ? 0 : below(600));
    if (below(2)) *O = (*O + 7) / 8 * 8, *I = (*I + 7) / 8 * 8;
    if (!below(6)) *O = *I;
}

/* Its activation, half of the time in the same place. */
static floatX *activated(floatX *preact, size_t n, Activation act) {
    floatX *out = below(2) ? preact : out_x(n);
    op->gelu_forward(out, preact, n, act);
    return out;
}

static void test_linear_forward(void) {
    int O, I;
    matmul_shape(&O, &I);
    size_t rows = matmul_rows();
    Activation act = (Activation)below(3);
    double *x = draw(rows * I, 1), *w = draw((size_t)O * I, 1 / sqrt(I)), *bias = draw(O, 1);
    double *want = zeros(rows * O);
    Dtype dtype = below(3) ? DT_FLOATX : ONE_OF(Dtype, DT_F32, DT_BF16);
    Weight weight = put_weight(w, O, I, dtype);
    bool biased = below(3), keep = below(2);
    floatX *dev_x = put_x(x, rows * I), *dev_bias = put_x(bias, O), *out = out_x(rows * O), *preact = out_x(rows * O);
    float *logits = out_f(rows * O);
    op->linear_logits(logits, dev_x, weight, rows);
    /* twice, into other memory: what a device remembers of a shape must not hold on to the pointers */
    op->linear_forward(out_x(rows * O), dev_x, weight, biased ? put_x(draw(O, 1), O) : NULL, act,
                       keep ? out_x(rows * O) : NULL, rows);
    op->linear_forward(out, dev_x, weight, biased ? dev_bias : NULL, act, keep ? preact : NULL, rows);
    ref_matmul(want, x, I, 1, w, 1, I, rows, O, I);
    bool rounds = dtype != DT_FLOATX && dtype == DT_F32;  // an fp32 weight may be rounded to bf16 by the matmul
    check_f("linear_logits", logits, want, rows * O, rounds ? FORWARD : FP32);
    for (size_t i = 0; i < rows * O && biased; i++) want[i] += bias[i % O];
    if (keep) check_x("linear_forward preact", preact, want, rows * O, FORWARD);
    if (keep) check_same("gelu_forward of linear_forward's preact", activated(preact, rows * O, act), out, rows * O);
    /* The activation passes on the rounding of what it is given, which is as large as that is, not as the result
     * is. */
    double given = ref_dot(want, want, (int)(rows * O));
    for (size_t i = 0; i < rows * O; i++) want[i] = ref_activation(want[i], act);
    double left = ref_dot(want, want, (int)(rows * O));
    check_x("linear_forward", out, want, rows * O, FORWARD * fmax(1, sqrt(given / (left + 1e-30))));
}

static void test_linear_backward(void) {
    int O, I;
    matmul_shape(&O, &I);
    size_t rows = matmul_rows() + (below(8) ? 0 : 9000);
    if (rows > 9000) O = O % 70 + 1, I = I % 70 + 1;
    bool accumulate = below(2), biased = below(2);
    double *x = draw(rows * I, 1), *w = draw((size_t)O * I, 1 / sqrt(I)), *dout = draw(rows * O, 1);
    double *dx = draw(rows * I, 1), *dw = draw((size_t)O * I, 1), *db = draw(O, 1), *sum = zeros(rows * I);
    Weight weight = put_weight(w, O, I, below(3) ? DT_FLOATX : DT_BF16);
    floatX *dev_x = put_x(x, rows * I), *dev_dout = put_x(dout, rows * O), *dev_dx = put_x(dx, rows * I);
    float *dev_dw = put_f(dw, (size_t)O * I), *dev_db = put_f(db, O);
    op->linear_backward_input(dev_dx, dev_dout, weight, rows, accumulate);
    op->linear_backward_weight(dev_dw, biased ? dev_db : NULL, dev_dout, dev_x, rows, O, I);
    ref_matmul(sum, dout, O, 1, w, I, 1, rows, I, O);
    for (size_t i = 0; i < rows * I; i++) dx[i] = sum[i] + (accumulate ? dx[i] : 0);
    check_x("linear_backward_input", dev_dx, dx, rows * I, FORWARD / 2);
    double *grad = zeros((size_t)O * I);
    ref_matmul(grad, dout, 1, O, x, I, 1, O, I, rows);
    for (size_t i = 0; i < (size_t)O * I; i++) dw[i] += grad[i];
    for (size_t i = 0; i < rows * O && biased; i++) db[i % O] += dout[i];
    check_f("linear_backward_weight", dev_dw, dw, (size_t)O * I, 2 * FP32);
    check_f("linear_backward_weight dbias", dev_db, db, O, 2 * FP32);
}

/* ---- pointwise ---- */

static void test_gelu(void) {
    size_t n = 1 + below(below(2) ? 100 : 60000);
    Activation act = (Activation)below(3);
    double *x = draw(n, 3), *dout = draw(n, 1), *want = zeros(n);
    bool alias = below(2);
    if (n > 4) x[0] = 90, x[1] = -90, x[2] = 0, x[3] = -5.5;
    floatX *dev_x = put_x(x, n), *dev_dout = put_x(dout, n), *dinp = alias ? dev_dout : out_x(n), *out = out_x(n);
    op->gelu_forward(out, dev_x, n, act);
    for (size_t i = 0; i < n; i++) want[i] = ref_activation(x[i], act);
    check_x("gelu_forward", out, want, n, FORWARD);
    op->gelu_backward(dinp, dev_dout, dev_x, n, act);
    for (size_t i = 0; i < n; i++) want[i] = dout[i] * ref_activation_derivative(x[i], act);
    check_x("gelu_backward", dinp, want, n, FORWARD);
    check_same("gelu_forward in place or not", activated(dev_x, n, act), out, n);
    for (int i = 0; i < 10 && comparing; i++) {
        double v = 3 * normal(), h = 1e-5;
        double slope = (ref_activation(v + h, act) - ref_activation(v - h, act)) / (2 * h);
        double silu = (ref_silu(v + h) - ref_silu(v - h)) / (2 * h);
        report(fabs(slope - ref_activation_derivative(v, act)) < 1e-8, "reference derivative of activation %d", act);
        report(fabs(silu - ref_silu_derivative(v)) < 1e-8, "reference derivative of silu");
    }
}

static void test_swiglu(void) {
    size_t rows = 1 + below(100), F = ragged() + below(3) * 100, n = rows * F;
    double *x = draw(2 * n, 2), *dout = draw(n, 1), *out = zeros(n), *dx = zeros(2 * n);
    bool alias = below(2);
    if (below(2)) x[0] = 100, x[F] = 2;
    if (below(2)) x[0] = -100;
    floatX *dev_x = put_x(x, 2 * n), *dev_dout = put_x(dout, n), *dev_out = out_x(n);
    floatX *dev_dx = alias ? dev_x : out_x(2 * n);
    op->swiglu_forward(dev_out, dev_x, rows, (int)F);
    op->swiglu_backward(dev_dx, dev_dout, dev_x, rows, (int)F);
    for (size_t i = 0; i < n; i++) {
        size_t gate = i / F * 2 * F + i % F, up = gate + F;
        out[i] = ref_silu(x[gate]) * x[up];
        dx[gate] = dout[i] * x[up] * ref_silu_derivative(x[gate]);
        dx[up] = dout[i] * ref_silu(x[gate]);
    }
    check_x("swiglu_forward", dev_out, out, n, FORWARD / 2);
    check_x("swiglu_backward", dev_dx, dx, 2 * n, FORWARD / 2);
}

/* The same elements as kernels/dropout.h says, about p of them; key 0 and p 0 only scale. */
static void test_dropout(void) {
    size_t n = 1 + below(below(2) ? 100 : 60000), dropped = 0;
    const float p = below(3) ? 0.05f + 0.9f * (float)below(100) / 100 : 0, scale = (float)(1 + below(8)) / 4;
    const uint64_t key = below(4) ? 1 + below(1000000) : 0;
    const int stream = (int)below(100);
    const bool accumulate = below(2), alias = !accumulate && below(2);
    double *x = draw(n, 1), *y = draw(n, 1);
    floatX *dev_x = put_x(x, n), *dev_y = put_x(y, n), *out = alias ? dev_x : dev_y;
    uint64_t *dev_key = (uint64_t *)device(sizeof key);
    op->upload(dev_key, &key, sizeof key);
    op->dropout(out, dev_x, n, scale, p, dev_key, stream, accumulate);
    const uint64_t start = dropout_stream(key, stream);
    for (size_t i = 0; i < n; i++) {
        const bool drop = p > 0 && key && dropout_bits(start, i) < dropout_threshold(p);
        dropped += drop;
        y[i] = (accumulate ? y[i] : 0) + (drop ? 0 : x[i] * scale / (p > 0 && key ? 1 - (double)p : 1));
    }
    check_x("dropout", out, y, n, FORWARD / 2);
    const double want = p > 0 && key ? n * (double)p : 0;
    report(fabs((double)dropped - want) <= 6 * sqrt((double)n) * (want > 0), "dropout of %g dropped %zu of %zu", p,
           dropped, n);
}

static void test_residual_and_casts(void) {
    size_t n = 1 + below(below(2) ? 100 : 60000);
    double *a = draw(n, 1), *b = draw(n, 1), *sum = zeros(n), *f = draw(n, 1), *rounded = zeros(n);
    int alias = below(3);
    if (n > 6) f[0] = 0, f[1] = -0.0, f[2] = 3e38, f[3] = 1 + 0x1p-8, f[4] = 1 + 3 * 0x1p-8, f[5] = 1e-30;
    floatX *dev_a = put_x(a, n), *dev_b = put_x(b, n), *out = alias == 0 ? out_x(n) : alias == 1 ? dev_a : dev_b;
    float *dev_f = put_f(f, n), *wide = out_f(n);
    floatX *narrow = out_x(n);
    op->residual_forward(out, dev_a, dev_b, n);
    op->cast_to_x(narrow, dev_f, n);
    op->cast_from_x(wide, narrow, n);
    for (size_t i = 0; i < n; i++) {
        sum[i] = from_x(to_x((float)(a[i] + b[i])));
        rounded[i] = from_x(to_x((float)f[i]));
    }
    check_x("residual_forward", out, sum, n, 0);
    check_x("cast_to_x", narrow, rounded, n, 0);
    check_f("cast_from_x", wide, rounded, n, 0);
    float special[3] = {NAN, INFINITY, -INFINITY}, back[3];
    op->upload(dev_f, special, min_of(n, 3) * sizeof(float));
    op->cast_to_x(narrow, dev_f, min_of(n, 3));
    op->cast_from_x(wide, narrow, min_of(n, 3));
    op->download(back, wide, min_of(n, 3) * sizeof(float));
    report(isnan(back[0]) && (n < 3 || (back[1] == INFINITY && back[2] == -INFINITY)), "casts keep NaN and infinity");
}

#endif
