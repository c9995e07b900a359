/* Products with few rows (decoding): each weight is read once and used for all rows, at memory bandwidth. bf16
 * weights are taken in pairs, without shuffles: shifting a 32-bit pair left gives its first element as fp32, masking
 * off the low half gives the second. The rows of x wait in scratch in the same order, firsts and seconds apart. */
#ifndef KERNELS_CPU_FEW_ROWS_H
#define KERNELS_CPU_FEW_ROWS_H

#include "cpu_vector.h"
#include "ops.h"

enum { FEW_ROWS = 4, FEW_CHANNELS = 4 };

/* x [rows, I] to fp32, in steps of 2 LANES columns, padded with zeros: in a step the even columns and then the odd
 * ones (bf16 weights), or the columns in order (fp32 weights). */
static float *few_rows_input(const floatX *x, size_t rows, size_t I, Dtype dtype) {
    size_t ld = div_up(I, 2 * LANES) * 2 * LANES;
    float *f = (float *)scratch(SCRATCH_SHARED, FEW_ROWS * ld * sizeof(float));
    memset(f, 0, rows * ld * sizeof(float));
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < I; i++) {
            size_t within = i % (2 * LANES), base = i - within;
            f[r * ld + base + (dtype == DT_BF16 ? within % 2 * LANES + within / 2 : within)] = from_x(x[r * I + i]);
        }
    return f;
}

/* Two vectors of weights from element i on, in few_rows_input's order; only the first n are read. */
static inline void few_rows_load(vf w[2], const void *row, size_t i, size_t n, const bool is_bf16) {
    if (is_bf16) {
        vu pair = {0};
        memcpy(&pair, (const bf16 *)row + i, n == 2 * LANES ? sizeof pair : n * sizeof(bf16));
        w[0] = (vf)(pair << 16);
        w[1] = (vf)(pair & 0xffff0000u);
    } else {
        w[0] = vf_load_n((const float *)row + i, n < LANES ? n : LANES);
        w[1] = n > LANES ? vf_load_n((const float *)row + i + LANES, n - LANES) : vf_zero();
    }
}

/* c[r * ldc + j] = <x_r, w_j> for `channels` rows of the weight from `row` on */
static inline __attribute__((always_inline)) void few_rows_block(float *c, size_t ldc, const float *x,
                                                                 const char *row, size_t I, const size_t rows,
                                                                 const size_t channels, const bool is_bf16) {
    size_t bytes = I * (is_bf16 ? sizeof(bf16) : sizeof(float)), ld = div_up(I, 2 * LANES) * 2 * LANES;
    vf sum[FEW_CHANNELS][FEW_ROWS];
    for (size_t j = 0; j < channels; j++)
        for (size_t r = 0; r < rows; r++) sum[j][r] = vf_zero();
    size_t i = 0;
    for (; i + 2 * LANES <= I; i += 2 * LANES)
        for (size_t j = 0; j < channels; j++) {
            vf w[2];
            few_rows_load(w, row + j * bytes, i, 2 * LANES, is_bf16);
            for (size_t r = 0; r < rows; r++)
                sum[j][r] += w[0] * vf_load(x + r * ld + i) + w[1] * vf_load(x + r * ld + i + LANES);
        }
    for (size_t j = 0; j < channels; j++) {
        vf w[2] = {vf_zero(), vf_zero()};
        if (i < I) few_rows_load(w, row + j * bytes, i, I - i, is_bf16);
        for (size_t r = 0; r < rows; r++) {
            if (i < I) sum[j][r] += w[0] * vf_load(x + r * ld + i) + w[1] * vf_load(x + r * ld + i + LANES);
            c[r * ldc + j] = vf_sum(sum[j][r]);
        }
    }
}

/* c [rows, ldc] = the products of x (from few_rows_input) with the output channels begin .. end */
static void few_rows_product(float *c, size_t ldc, const float *x, const Weight *w, size_t rows, size_t begin,
                             size_t end) {
    const char *data = (const char *)w->data + begin * w->cols * dtype_size(w->dtype);
    const bool is_bf16 = w->dtype == DT_BF16;
    size_t step = 0;
    for (size_t j = begin; j < end; j += step, c += step, data += step * w->cols * dtype_size(w->dtype)) {
        step = end - j >= FEW_CHANNELS ? FEW_CHANNELS : 1;
#define ROWS(n)                                                               \
    if (rows == n) {                                                          \
        if (step == 1)                                                        \
            few_rows_block(c, ldc, x, data, w->cols, n, 1, is_bf16);          \
        else if (is_bf16)                                                     \
            few_rows_block(c, ldc, x, data, w->cols, n, FEW_CHANNELS, true);  \
        else                                                                  \
            few_rows_block(c, ldc, x, data, w->cols, n, FEW_CHANNELS, false); \
    }
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
#undef ROWS
    }
}

#endif
