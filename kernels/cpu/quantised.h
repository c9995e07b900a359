/* Weights of 8 and 4 bits (kernels/quantised.h): matmuls with up to QUANT_ROWS rows in whole numbers, and widening to
 * fp32 for all else.
 *
 * In whole numbers: the rows of x are rounded to q in -127 .. 127 with a scale for each group of 32. With the groups g,
 *
 *   q8:  <x, w> = sum over g of  x_scale w_scale <x_q, w_q>
 *   q4:  <x, w> = sum over g of  x_scale w_scale <x_q, w_q> + w_minimum x_scale (sum of x_q)
 *
 * A group's product of 32 is one or two instructions (dot_group), and its sum is exact. */
#ifndef KERNELS_CPU_QUANTISED_H
#define KERNELS_CPU_QUANTISED_H

#include "dot.h"
#include "../quantised.h"

/* ---- activations ---- */

/* Rows of activations, rounded. `groups` is a multiple of DOT_LANES; what lies beyond the row is zero. */
typedef struct {
    size_t groups;
    int8_t *q;     // [rows, 32 groups]
    float *scale;  // [rows, groups]
    float *sum;    // [rows, groups] x_scale times the sum of x_q
} QuantRows;

/* Rounds the n <= 32 activations at x. A scale is NaN where one of them is not finite. */
static void quantise_group(const QuantRows *to, size_t group, const floatX *x, size_t n) {
    float rounded[QUANT_GROUP] = {0};
    vf largest = vf_zero(), finite = vf_zero();
    FOR_LANES (i, m, 0, n) {
        const vf v = vx_load_n(x + i, m);
        largest = vf_max((vf)((vi)v & 0x7fffffff), largest);
        finite += v * 0.0f;  // NaN, if v is NaN or infinite
    }
    const float most = vf_largest(largest), bad = vf_sum(finite);
    const float inverse = bad == 0 && most > 1e-30f ? 127 / most : 0;
    float sum = 0;
    if (inverse > 0)
        FOR_LANES (i, m, 0, n) vf_store(rounded + i, vf_whole(vx_load_n(x + i, m) * inverse));
    for (int i = 0; i < QUANT_GROUP; i++) {
        to->q[group * QUANT_GROUP + i] = (int8_t)rounded[i];
        sum += rounded[i];
    }
    to->scale[group] = most / 127 + bad;
    to->sum[group] = to->scale[group] * sum;
}

/* Rounds x [rows, I] into scratch memory. */
static QuantRows quantise_rows(const floatX *x, size_t rows, size_t I) {
    const size_t groups = div_up(quant_groups(I), DOT_LANES) * DOT_LANES, n = rows * groups;
    char *memory = (char *)scratch(SCRATCH_SHARED, n * (QUANT_GROUP + 2 * sizeof(float)));
    QuantRows to = {groups, (int8_t *)memory, (float *)(void *)(memory + n * QUANT_GROUP), NULL};
    to.sum = to.scale + n;
    for (size_t r = 0; r < rows; r++)
        for (size_t g = 0; g < groups; g++) {
            const size_t begin = min_size(I, g * QUANT_GROUP);
            quantise_group(&to, r * groups + g, x + r * I + begin, min_size(QUANT_GROUP, I - begin));
        }
    return to;
}

/* ---- matmuls in whole numbers ---- */

/* The scales of n <= DOT_LANES groups, and for q4 their minimums; 0 beyond them. */
ALWAYS_INLINE void quant_scales(df *scale, df *minimum, const bf16 *scales, size_t n, const bool is_q4) {
    if (is_q4) {
        du pairs = {0};
        memcpy(&pairs, scales, n == DOT_LANES ? sizeof pairs : 2 * n * sizeof(bf16));
        *scale = (df)(pairs << 16);
        *minimum = (df)(pairs & 0xffff0000u);
    } else {
        dh halves = {0};
        memcpy(&halves, scales, n == DOT_LANES ? sizeof halves : n * sizeof(bf16));
        *scale = (df)(__builtin_convertvector(halves, du) << 16);
    }
}

/* c[r * ldc] = <x_r, w> for the row w of one output channel. Cache lines are prefetched as in gemv_block. */
ALWAYS_INLINE void quant_channel(float *c, size_t ldc, const QuantRows *x, const uint8_t *w, const bf16 *scales,
                                 size_t groups, const size_t rows, const bool is_q4) {
    enum { LINE = 64, AHEAD = 2048 };  // bytes
    const size_t bytes = is_q4 ? QUANT_GROUP / 2 : QUANT_GROUP, ld = x->groups;
    df sum[QUANT_ROWS];
    for (size_t r = 0; r < rows; r++) sum[r] = (df){0};
    for (size_t g = 0; g < groups; g += DOT_LANES) {
        const size_t n = min_size(DOT_LANES, groups - g);
        float factor[QUANT_ROWS][DOT_LANES];
        df scale, minimum = {0};
        for (size_t line = 0; line < DOT_LANES * bytes; line += LINE)
            __builtin_prefetch(w + g * bytes + AHEAD + line);
        quant_scales(&scale, &minimum, scales + g * (is_q4 ? 2 : 1), n, is_q4);
        for (size_t r = 0; r < rows; r++) {
            df_store(factor[r], scale * df_load(x->scale + r * ld + g));
            if (is_q4) sum[r] += minimum * df_load(x->sum + r * ld + g);
        }
        for (size_t j = 0; j < n; j++) {
            const DotWeight group = is_q4 ? dot_weight_q4(w + (g + j) * bytes) : dot_weight_q8(w + (g + j) * bytes);
            for (size_t r = 0; r < rows; r++) {
                const int8_t *q = x->q + (r * ld + g + j) * QUANT_GROUP;
                sum[r] += __builtin_convertvector(dot_group(group, q, is_q4), df) * factor[r][j];
            }
        }
    }
    for (size_t r = 0; r < rows; r++) c[r * ldc] = df_sum(sum[r]);
}

/* c [rows, ldc] = x W^T for the output channels begin .. end. */
static void quant_channels(float *c, size_t ldc, const QuantRows *x, const Weight *w, size_t rows, size_t begin,
                           size_t end) {
    const size_t bytes = quant_row_bytes(w->dtype, w->cols), scales = quant_row_scales(w->dtype, w->cols);
    const size_t groups = quant_groups(w->cols);
    for (size_t j = begin; j < end; j++, c++) {
        const uint8_t *q = (const uint8_t *)w->data + j * bytes;
        const bf16 *s = w->scales + j * scales;
        switch (rows) {
#define ROWS_CASE(n)                                          \
    case n:                                                   \
        if (w->dtype == DT_U8)                                \
            quant_channel(c, ldc, x, q, s, groups, n, true);  \
        else                                                  \
            quant_channel(c, ldc, x, q, s, groups, n, false); \
        break
            ROWS_CASE(1);
            ROWS_CASE(2);
            ROWS_CASE(3);
            ROWS_CASE(4);
            ROWS_CASE(5);
            ROWS_CASE(6);
            ROWS_CASE(7);
            ROWS_CASE(8);
#undef ROWS_CASE
        }
    }
}

/* ---- widening ---- */

/* to = the QUANT_GROUP elements of a group; `from` and `scales` are its own. */
static void widen_group(float *to, Dtype dtype, const uint8_t *from, const bf16 *scales) {
    const float scale = bf16_to_f32(scales[0]), minimum = dtype == DT_U8 ? bf16_to_f32(scales[1]) : 0;
    if (dtype == DT_I8) {
        for (int i = 0; i < QUANT_GROUP; i++) to[i] = (float)(int8_t)from[i] * scale;
        return;
    }
    for (int i = 0; i < QUANT_GROUP / 2; i++) {
        to[i] = (float)(from[i] & 15) * scale + minimum;
        to[i + QUANT_GROUP / 2] = (float)(from[i] >> 4) * scale + minimum;
    }
}

/* to [w->cols] = row `row` of a quantised weight, in fp32. */
static void widen_row(float *to, const Weight *w, size_t row) {
    const uint8_t *q = (const uint8_t *)w->data + row * quant_row_bytes(w->dtype, w->cols);
    const bf16 *scales = w->scales + row * quant_row_scales(w->dtype, w->cols);
    const size_t cols = w->cols, bytes = quant_row_bytes(w->dtype, QUANT_GROUP);
    const size_t step = quant_row_scales(w->dtype, QUANT_GROUP);
    for (size_t i = 0; i < cols; i += QUANT_GROUP, q += bytes, scales += step) {
        float group[QUANT_GROUP];
        const bool whole = cols - i >= QUANT_GROUP;
        widen_group(whole ? to + i : group, w->dtype, q, scales);
        if (!whole) memcpy(to + i, group, (cols - i) * sizeof(float));
    }
}

#endif
