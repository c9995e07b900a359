/* Matmuls with up to eight rows (decoding): y = x W^T, where each weight is read once and used for all rows, at memory
 * bandwidth. bf16 weights are read in pairs and need no shuffles: shifting a pair of 32 bits left gives its first
 * element as fp32, masking off the lower half gives the second. The rows of x are stored in scratch memory in the
 * same order, the first elements of the pairs and then the second ones. */
#ifndef KERNELS_CPU_GEMV_H
#define KERNELS_CPU_GEMV_H

#include "vector.h"
#include "../ops.h"

enum { GEMV_ROWS = 8, GEMV_PASS = 4, GEMV_CHANNELS = 4 };  // rows in all, rows and channels side by side

/* Two vectors of a row from element i on, of which only the first n are read: the even elements and then the odd ones
 * (bf16), or the elements in order (fp32). */
static inline void gemv_load(vf w[2], const void *row, size_t i, size_t n, const bool is_bf16) {
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

/* Converts x [rows, I] to fp32 in scratch memory, in steps of 2 LANES columns, padded with zeros. A step has the even
 * columns and then the odd ones (bf16 weights), or the columns in order (fp32 weights). */
static float *gemv_input(const floatX *x, size_t rows, size_t I, Dtype dtype) {
    const size_t ld = div_up(I, 2 * LANES) * 2 * LANES;
    float *f = (float *)scratch(SCRATCH_SHARED, GEMV_ROWS * ld * sizeof(float)), *to = f;
    for (size_t r = 0; r < rows; r++, x += I)
        for (size_t i = 0; i < I; i += 2 * LANES, to += 2 * LANES) {
            const size_t n = min_size(2 * LANES, I - i);
            vf pair[2] = {vf_zero(), vf_zero()};
            if (dtype == DT_FLOATX)
                gemv_load(pair, x, i, n, dtype == DT_BF16);
            else
                for (size_t j = 0; j < n; j++)
                    ((float *)pair)[dtype == DT_BF16 ? j % 2 * LANES + j / 2 : j] = from_x(x[i + j]);
            memcpy(to, pair, sizeof pair);
        }
    return f;
}

/* sums[c][r] += <x_r, w_c> over the n weights from element i on, for `channels` neighbouring rows of the weight. */
ALWAYS_INLINE void gemv_step(vf *sums, const float *x, size_t ld, const char *w, size_t row_bytes, size_t i, size_t n,
                             const size_t channels, const size_t rows, const bool is_bf16) {
    vf pair[GEMV_CHANNELS][2];
    for (size_t c = 0; c < channels; c++) gemv_load(pair[c], w + c * row_bytes, i, n, is_bf16);
    for (size_t half = 0; half < 2; half++)
        for (size_t r = 0; r < rows; r++) {
            const vf v = vf_load(x + r * ld + i + half * LANES);
            for (size_t c = 0; c < channels; c++) sums[c * rows + r] += pair[c][half] * v;
        }
}

/* out[r * ldc + c] = <x_r, w_c>. Cache lines are prefetched explicitly, because the processor's own prefetching stops at
 * every page. */
ALWAYS_INLINE void gemv_block(float *out, size_t ldc, const float *x, const char *w, size_t I, const size_t channels,
                              const size_t rows, const bool is_bf16) {
    enum { STEP = 2 * LANES, LINE = 64, AHEAD = 2048 };  // elements, bytes, bytes
    const size_t element = is_bf16 ? sizeof(bf16) : sizeof(float), ld = div_up(I, STEP) * STEP;
    vf sums[GEMV_CHANNELS * GEMV_PASS];
    size_t i = 0;
    for (size_t s = 0; s < channels * rows; s++) sums[s] = vf_zero();
    for (; i + STEP <= I; i += STEP) {
        for (size_t c = 0; c < channels; c++)
            for (size_t line = 0; line < STEP * element; line += LINE)
                __builtin_prefetch(w + (c * I + i) * element + AHEAD + line);
        gemv_step(sums, x, ld, w, I * element, i, STEP, channels, rows, is_bf16);
    }
    if (i < I) gemv_step(sums, x, ld, w, I * element, i, I - i, channels, rows, is_bf16);
    for (size_t c = 0; c < channels; c++)
        for (size_t r = 0; r < rows; r++) out[r * ldc + c] = vf_sum(sums[c * rows + r]);
}

/* Up to GEMV_PASS rows. */
ALWAYS_INLINE void gemv_pass(float *out, size_t ldc, const float *x, const char *w, size_t I, const size_t channels,
                             size_t rows, const bool is_bf16) {
    if (rows == 1) gemv_block(out, ldc, x, w, I, channels, 1, is_bf16);
    if (rows == 2) gemv_block(out, ldc, x, w, I, channels, 2, is_bf16);
    if (rows == 3) gemv_block(out, ldc, x, w, I, channels, 3, is_bf16);
    if (rows == 4) gemv_block(out, ldc, x, w, I, channels, 4, is_bf16);
}

/* All rows for some channels. The weights come from memory once, and from the first-level cache for the second pass. */
ALWAYS_INLINE void gemv_rows(float *out, size_t ldc, const float *x, const char *w, size_t I, const size_t channels,
                             size_t rows, const bool is_bf16) {
    const size_t ld = div_up(I, 2 * LANES) * 2 * LANES;
    for (size_t r = 0; r < rows; r += GEMV_PASS)
        gemv_pass(out + r * ldc, ldc, x + r * ld, w, I, channels, min_size(GEMV_PASS, rows - r), is_bf16);
}

/* n output channels. One row takes four channels at a time and more rows take two, so that there are enough sums which do
 * not wait for each other. */
ALWAYS_INLINE void gemv_all(float *out, size_t ldc, const float *x, const char *w, size_t I, size_t rows, size_t n,
                            const bool is_bf16) {
    const size_t bytes = I * (is_bf16 ? sizeof(bf16) : sizeof(float));
    size_t j = 0;
    if (rows == 1)
        for (; j + 4 <= n; j += 4) gemv_block(out + j, ldc, x, w + j * bytes, I, 4, 1, is_bf16);
    for (; j + 2 <= n; j += 2) gemv_rows(out + j, ldc, x, w + j * bytes, I, 2, rows, is_bf16);
    if (j < n) gemv_rows(out + j, ldc, x, w + j * bytes, I, 1, rows, is_bf16);
}

/* c [rows, ldc] = x W^T for the output channels begin .. end, with x from gemv_input. */
static void gemv_channels(float *c, size_t ldc, const float *x, const Weight *w, size_t rows, size_t begin,
                          size_t end) {
    const char *data = (const char *)w->data + begin * w->cols * dtype_size(w->dtype);
    if (w->dtype == DT_BF16)
        gemv_all(c, ldc, x, data, w->cols, rows, end - begin, true);
    else
        gemv_all(c, ldc, x, data, w->cols, rows, end - begin, false);
}

#endif
