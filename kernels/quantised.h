/* Weights of 8 and 4 bits. Each row of a weight W [O, I] is divided into groups of 32 elements, the last one filled up
 * with zeros, and a group has one scale, or a scale and a minimum:
 *
 *   q8   w = scale * q,            q in -127 .. 127: DT_I8 [O, 32 G], scales bf16 [O, G]               8.5 bits a weight
 *   q4   w = scale * q + minimum,  q in 0 .. 15:     DT_U8 [O, 16 G], (scale, minimum) bf16 [O, G, 2]    5 bits a weight
 *
 * with G = ceil(I / 32). Byte j of a q4 group holds element j in its lower and element j + 16 in its upper half. A q8
 * scale is as small as it can be with every element in the range of q, so that each is off by at most half a scale, 1/252
 * of the group's largest magnitude. A q4 line, scale and minimum, is fitted to the group and may cut off its extremes:
 * the square error counts. A group with an element that is not finite has NaN for its scale. */
#ifndef KERNELS_QUANTISED_H
#define KERNELS_QUANTISED_H

#include "ops.h"

enum { QUANT_GROUP = 32 };
enum { QUANT_ROWS = 8 };  // up to so many rows the CPU multiplies in whole numbers, activations too

static inline size_t quant_groups(size_t cols) { return (cols + QUANT_GROUP - 1) / QUANT_GROUP; }

static inline bool dtype_is_quantised(Dtype t) { return t == DT_I8 || t == DT_U8; }

/* Bytes of a row's elements, and bf16 numbers of its scales (and minimums). */
static inline size_t quant_row_bytes(Dtype t, size_t cols) {
    return quant_groups(cols) * (t == DT_I8 ? QUANT_GROUP : QUANT_GROUP / 2);
}
static inline size_t quant_row_scales(Dtype t, size_t cols) { return quant_groups(cols) * (t == DT_I8 ? 1 : 2); }

/* Element i of a quantised row, as fp32. */
static inline float quantised_element(Dtype t, const void *q, const bf16 *scales, size_t i) {
    size_t g = i / QUANT_GROUP, within = i % QUANT_GROUP;
    if (t == DT_I8) return bf16_to_f32(scales[g]) * (float)((const int8_t *)q)[i];
    int byte = ((const uint8_t *)q)[g * QUANT_GROUP / 2 + within % 16];
    return bf16_to_f32(scales[2 * g]) * (float)(byte >> (within / 16 * 4) & 15) + bf16_to_f32(scales[2 * g + 1]);
}

#endif
