/* Matmuls with up to four rows (decoding): y = x W^T, where each weight is read once and used for all rows, at memory
 * bandwidth. bf16 weights are read in pairs and need no shuffles: shifting a pair of 32 bits left gives its first
 * element as fp32, masking off the lower half gives the second. The rows of x are stored in scratch memory in the
 * same order, the first elements of the pairs and then the second ones. */
#ifndef KERNELS_CPU_GEMV_H
#define KERNELS_CPU_GEMV_H

#include "vector.h"
#include "../ops.h"

enum { GEMV_ROWS = 4 };

/* Converts x [rows, I] to fp32 in scratch memory, in steps of 2 LANES columns, padded with zeros. A step has the even
 * columns and then the odd ones (bf16 weights), or the columns in order (fp32 weights). */
static float *gemv_input(const floatX *x, size_t rows, size_t I, Dtype dtype) {
    size_t ld = div_up(I, 2 * LANES) * 2 * LANES;
    float *f = (float *)scratch(SCRATCH_SHARED, GEMV_ROWS * ld * sizeof(float));
    memset(f, 0, rows * ld * sizeof(float));
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < I; i++) {
            size_t within = i % (2 * LANES), base = i - within;
            f[r * ld + base + (dtype == DT_BF16 ? within % 2 * LANES + within / 2 : within)] = from_x(x[r * I + i]);
        }
    return f;
}

/* Two vectors of weights from element i on, in gemv_input's order; only the first n are read. */
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

/* sum[r] += x_r w, over the n weights from element i on. */
static inline __attribute__((always_inline)) void gemv_step(vf sum[GEMV_ROWS][2], const float *x, size_t ld,
                                                            const char *w, size_t i, size_t n, const size_t rows,
                                                            const bool is_bf16) {
    vf pair[2];
    gemv_load(pair, w, i, n, is_bf16);
    for (size_t r = 0; r < rows; r++) {
        sum[r][0] += pair[0] * vf_load(x + r * ld + i);
        sum[r][1] += pair[1] * vf_load(x + r * ld + i + LANES);
    }
}

/* c[r * ldc] = <x_r, w> for the weights w [I] of one output channel. Cache lines are prefetched explicitly, because
 * the processor's own prefetching stops at every page. */
static inline __attribute__((always_inline)) void gemv_channel(float *c, size_t ldc, const float *x, const char *w,
                                                               size_t I, const size_t rows, const bool is_bf16) {
    enum { STEP = 2 * LANES, LINE = 64, AHEAD = 2048 };  // elements, bytes, bytes
    const size_t bytes = STEP * (is_bf16 ? sizeof(bf16) : sizeof(float)), ld = div_up(I, STEP) * STEP;
    vf sum[GEMV_ROWS][2];
    size_t i = 0;
    for (size_t r = 0; r < rows; r++) sum[r][0] = sum[r][1] = vf_zero();
    for (const char *ahead = w + AHEAD; i + STEP <= I; i += STEP, ahead += bytes) {
        for (size_t line = 0; line < bytes; line += LINE) __builtin_prefetch(ahead + line);
        gemv_step(sum, x, ld, w, i, STEP, rows, is_bf16);
    }
    if (i < I) gemv_step(sum, x, ld, w, i, I - i, rows, is_bf16);
    for (size_t r = 0; r < rows; r++) c[r * ldc] = vf_sum(sum[r][0] + sum[r][1]);
}

/* c [rows, ldc] = x W^T for the output channels begin .. end, with x from gemv_input. */
static void gemv_channels(float *c, size_t ldc, const float *x, const Weight *w, size_t rows, size_t begin,
                          size_t end) {
    const bool is_bf16 = w->dtype == DT_BF16;
    size_t bytes = w->cols * dtype_size(w->dtype);
    const char *data = (const char *)w->data + begin * bytes;
    for (size_t j = begin; j < end; j++, c++, data += bytes) {
#define ROWS(n)                                               \
    if (rows == n) {                                          \
        if (is_bf16)                                          \
            gemv_channel(c, ldc, x, data, w->cols, n, true);  \
        else                                                  \
            gemv_channel(c, ldc, x, data, w->cols, n, false); \
    }
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
#undef ROWS
    }
}

#endif
