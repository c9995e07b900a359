/* Tests of weights of 8 and 4 bits (kernels/quantised.h): the format, linear layers and embeddings. */
#ifndef DEV_TEST_KERNELS_QUANTISED_H
#define DEV_TEST_KERNELS_QUANTISED_H

#include "test_kernels_layers.h"
#include "../../kernels/quantise.h"

/* A quantised weight on the device; w becomes what it stands for. */
static Weight put_quantised(double *w, int O, int I, Dtype dtype) {
    const size_t bytes = quant_row_bytes(dtype, I), scales = quant_row_scales(dtype, I);
    uint8_t *q = (uint8_t *)host(O * bytes);
    bf16 *s = (bf16 *)host(O * scales * sizeof *s);
    float *row = (float *)host(I * sizeof *row);
    for (int o = 0; o < O; o++) {
        for (int i = 0; i < I; i++) row[i] = (float)w[(size_t)o * I + i];
        quantise_row(dtype, q + o * bytes, s + o * scales, row, I);
        for (int i = 0; i < I; i++)
            w[(size_t)o * I + i] = (double)quantised_element(dtype, q + o * bytes, s + o * scales, i);
    }
    void *dev_q = device(O * bytes), *dev_s = device(O * scales * sizeof *s);
    op->upload(dev_q, q, O * bytes);
    op->upload(dev_s, s, O * scales * sizeof *s);
    Weight weight = {dev_q, dtype, O, I, (const bf16 *)dev_s};
    return weight;
}

/* Rows of activations as the CPU rounds them before it multiplies in whole numbers. */
static void round_activations(double *x, size_t rows, int I) {
    for (size_t r = 0; r < rows; r++)
        for (int i = 0; i < I; i += QUANT_GROUP) {
            double *group = x + r * I + i;
            float largest = 0;
            int n = (int)min_of(QUANT_GROUP, I - i);
            for (int j = 0; j < n; j++) largest = fmaxf(largest, fabsf((float)group[j]));
            for (int j = 0; j < n && largest > 0; j++)  // in fp32, so that ties fall as they do in the kernel
                group[j] = (double)rintf((float)group[j] * (127 / largest)) * (double)(largest / 127);
        }
}

/* A device may round the widened weight to floatX before it multiplies. Returns the one of two references that is nearer
 * to what it computed. */
static double *nearer(const float *dev, double *exact, double *rounded, size_t n) {
    float *got = (float *)host(n * sizeof *got);
    double from_exact = 0, from_rounded = 0;
    op->download(got, dev, n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        from_exact += (got[i] - exact[i]) * (got[i] - exact[i]);
        from_rounded += (got[i] - rounded[i]) * (got[i] - rounded[i]);
    }
    return from_rounded < from_exact ? rounded : exact;
}

/* ---- the format ---- */

/* Every element is off by half a scale at most, and the scale is as small as that allows. */
static void check_q8(const float *x, const int8_t *q, const bf16 *scale, int n) {
    const double s = (double)bf16_to_f32(*scale);
    double largest = 0;
    for (int i = 0; i < n; i++) {
        const double error = fabs(q[i] * s - (double)x[i]);
        report(error <= s * (0.5 + 1e-4), "q8 of %g is off by %g, half a scale is %g", (double)x[i], error, s / 2);
        largest = fmax(largest, fabs((double)x[i]));
    }
    for (int i = n; i < QUANT_GROUP; i++) report(q[i] == 0, "the filling of a group is %d", q[i]);
    report(s <= largest / 127 * (1 + 1.0 / 127) + 1e-38, "the scale is %g for a largest of %g", s, largest);
}

/* The weighted square error of a group. */
static double q4_error(const float *x, int n, double scale, double minimum) {
    double mean = 0, error = 0;
    for (int i = 0; i < n; i++) mean += fabs((double)x[i]) / n;
    for (int i = 0; i < n; i++) {
        const double q = fmin(15, fmax(0, rint(((double)x[i] - minimum) / (scale + 1e-300))));
        error += pow(scale * q + minimum - (double)x[i], 2) * (fabs((double)x[i]) + mean);
    }
    return error;
}

/* The q are the nearest ones, and the error is no larger than with the group's whole range. */
static void check_q4(const float *x, const uint8_t *q, const bf16 *line, int n) {
    const double scale = (double)bf16_to_f32(line[0]), minimum = (double)bf16_to_f32(line[1]);
    float low = x[0], high = x[0];
    for (int i = 0; i < n; i++) {
        const double stands = (double)quantised_element(DT_U8, q, line, i), error = fabs(stands - (double)x[i]);
        const double beyond = fmax(minimum - (double)x[i], (double)x[i] - minimum - 15 * scale);
        report(error <= scale * (0.5 + 1e-4) + fmax(0, beyond) + 1e-6 * fabs((double)x[i]),
               "q4 of %g is off by %g with a scale of %g from %g", (double)x[i], error, scale, minimum);
        low = fminf(low, x[i]), high = fmaxf(high, x[i]);
    }
    const double widest = (double)bf16_to_f32(f32_to_bf16((high - low) / 15)),
                 from = (double)bf16_to_f32(f32_to_bf16(low));
    const double error = q4_error(x, n, scale, minimum), simple = q4_error(x, n, widest, from);
    report(error <= simple * (1 + 1e-3) + 1e-45, "the error is %g, and %g with the whole range", error, simple);
}

static void test_quantise(void) {
    const int I = ragged();
    const double size = ONE_OF(double, 1, 1e-6, 1e6, 1e-3), shift = below(3) ? 0 : ONE_OF(double, 5, -5, 100);
    float *x = (float *)host(I * sizeof *x);
    for (int i = 0; i < I; i++) x[i] = below(8) ? (float)(size * (normal() + shift)) : (float)(size * shift);
    int8_t *q8 = (int8_t *)host(quant_row_bytes(DT_I8, I));
    uint8_t *q4 = (uint8_t *)host(quant_row_bytes(DT_U8, I));
    bf16 *scales = (bf16 *)host(quant_groups(I) * sizeof *scales),
         *lines = (bf16 *)host(2 * quant_groups(I) * sizeof *lines);
    quantise_row(DT_I8, q8, scales, x, I);
    quantise_row(DT_U8, q4, lines, x, I);
    for (int i = 0, g = 0; i < I; i += QUANT_GROUP, g++) {
        const int n = (int)min_of(QUANT_GROUP, I - i);
        check_q8(x + i, q8 + i, scales + g, n);
        check_q4(x + i, q4 + i / 2, lines + 2 * g, n);
    }
    x[below(I)] = below(2) ? NAN : -INFINITY;
    quantise_row(DT_I8, q8, scales, x, I);
    quantise_row(DT_U8, q4, lines, x, I);
    int bad = 0;
    for (size_t g = 0; g < quant_groups(I); g++)
        bad += isnan(bf16_to_f32(scales[g])) + isnan(bf16_to_f32(lines[2 * g]));
    report(bad == 2, "of a group with a weight that is not finite, %d of 2 scales are NaN", bad);
}

/* ---- operations ---- */

static void test_quantised_linear(void) {
    int O, I;
    matmul_shape(&O, &I);
    const size_t rows = matmul_rows();
    const Dtype dtype = below(2) ? DT_I8 : DT_U8;
    const Activation act = (Activation)below(3);
    const bool biased = below(3), keep = below(2), whole = op->host_memory && rows <= QUANT_ROWS;
    double *x = draw(rows * I, 1), *w = draw((size_t)O * I, 1 / sqrt(I)), *bias = draw(O, 1);
    double *exact = zeros(rows * O), *rounded = zeros(rows * O);
    if (!below(4))
        for (int i = 0; i < O * I; i++) w[i] += 2 / sqrt(I);  // minimums that matter
    const Weight weight = put_quantised(w, O, I, dtype);
    floatX *dev_x = put_x(x, rows * I), *dev_bias = put_x(bias, O), *out = out_x(rows * O), *preact = out_x(rows * O);
    float *logits = out_f(rows * O);
    op->linear_logits(logits, dev_x, weight, rows);
    op->linear_forward(out, dev_x, weight, biased ? dev_bias : NULL, act, keep ? preact : NULL, rows);
    if (whole) round_activations(x, rows, I);
    ref_matmul(exact, x, I, 1, w, 1, I, rows, O, I);
    for (size_t i = 0; i < (size_t)O * I; i++) w[i] = from_x(to_x((float)w[i]));
    ref_matmul(rounded, x, I, 1, w, 1, I, rows, O, I);
    double *want = whole ? exact : nearer(logits, exact, rounded, rows * O);
    check_f("linear_logits", logits, want, rows * O, FP32);
    for (size_t i = 0; i < rows * O && biased; i++) want[i] += bias[i % O];
    if (keep) check_x("linear_forward preact", preact, want, rows * O, FORWARD);
    const double given = ref_dot(want, want, (int)(rows * O));
    for (size_t i = 0; i < rows * O; i++) want[i] = ref_activation(want[i], act);
    const double left = ref_dot(want, want, (int)(rows * O));
    check_x("linear_forward", out, want, rows * O, FORWARD * fmax(1, sqrt(given / (left + 1e-30))));
    /* an activation that is not finite makes its row's results NaN, and no other's */
    x[below(I)] = below(2) ? (double)NAN : (double)INFINITY;
    op->linear_logits(logits, put_x(x, rows * I), weight, rows);
    float *got = (float *)host(rows * O * sizeof *got);
    op->download(got, logits, rows * O * sizeof *got);
    bool bad = true, good = true;
    for (size_t i = 0; i < rows * O; i++) *(i < (size_t)O ? &bad : &good) &= (i < (size_t)O) == !isfinite(got[i]);
    report(bad && good, "an activation that is not finite: %s",
           bad ? "other rows have changed" : "its row is finite");
}

static void test_quantised_embedding(void) {
    const int C = ragged(), vocab = 1 + below(70);
    const size_t rows = 1 + below(400);
    int *ids = (int *)host(rows * sizeof(int));
    for (size_t r = 0; r < rows; r++) ids[r] = below(4) ? below(vocab) : -1;
    double *table = draw((size_t)vocab * C, 1), *out = draw(rows * C, 1);
    const Weight dev_table = put_quantised(table, vocab, C, below(2) ? DT_I8 : DT_U8);
    floatX *dev_out = put_x(out, rows * C);
    op->embedding_forward(dev_out, put_i(ids, rows), dev_table, rows);
    for (size_t r = 0; r < rows; r++)
        for (int c = 0; c < C && ids[r] >= 0; c++) out[r * C + c] = table[(size_t)ids[r] * C + c];
    check_x("embedding_forward", dev_out, out, rows * C, FORWARD);
}

#endif
