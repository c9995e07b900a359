/* Weights of 8 and 4 bits. Each row of a weight W [O, I] is divided into groups of 32 elements, the last one filled up
 * with zeros, and a group has one scale, or a scale and a minimum:
 *
 *   q8   w = scale * q,            q in -127 .. 127: DT_I8 [O, 32 G], scales bf16 [O, G]               8.5 bits a weight
 *   q4   w = scale * q + minimum,  q in 0 .. 15:     DT_U8 [O, 16 G], (scale, minimum) bf16 [O, G, 2]    5 bits a weight
 *
 * with G = ceil(I / 32). Byte j of a q4 group holds element j in its lower and element j + 16 in its upper half. Scales
 * and minimums are rounded to bf16 away from the group, so that every element lies in the range of q and is off by at
 * most half a scale: 1/252 of the group's largest magnitude (q8), or about 1/30 of the group's range (q4). */
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

/* The bf16 number next to x that is not below it (up) or not above it, for finite x. */
static inline bf16 bf16_round_towards(float x, bool up) {
    bf16 r = f32_to_bf16(x);
    float back = bf16_to_f32(r);
    if (up ? back >= x : back <= x) return r;
    /* one step away from the rounded value: the bits of a float are ordered as its magnitude */
    if (back == 0) return (bf16){(uint16_t)(up ? 0x0001 : 0x8001)};
    r.bits = (uint16_t)(r.bits + ((back > 0) == up ? 1 : -1));
    return r;
}

/* Quantises one group of n <= 32 elements; the missing ones become 0 (q8) or the minimum (q4). */
static inline void quantise_group_q8(int8_t q[QUANT_GROUP], bf16 *scale, const float *x, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, fabsf(x[i]));
    *scale = bf16_round_towards(largest / 127, true);
    const float s = bf16_to_f32(*scale);
    for (int i = 0; i < QUANT_GROUP; i++) {
        float v = i < n && s > 0 ? rintf(x[i] / s) : 0;
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
}

static inline void quantise_group_q4(uint8_t q[QUANT_GROUP / 2], bf16 scale_minimum[2], const float *x, int n) {
    float low = x[0], high = x[0];
    for (int i = 1; i < n; i++) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
    scale_minimum[1] = bf16_round_towards(low, false);
    const float minimum = bf16_to_f32(scale_minimum[1]);
    scale_minimum[0] = bf16_round_towards((high - minimum) / 15, true);
    const float s = bf16_to_f32(scale_minimum[0]);
    memset(q, 0, QUANT_GROUP / 2);
    for (int i = 0; i < n; i++) {
        float v = s > 0 ? rintf((x[i] - minimum) / s) : 0;
        int whole = v > 15 ? 15 : v < 0 ? 0 : (int)v;
        q[i % 16] |= (uint8_t)(whole << (i / 16 * 4));
    }
}

/* Quantises one row x [cols] to dtype DT_I8 (q8) or DT_U8 (q4). */
static inline void quantise_row(Dtype t, void *q, bf16 *scales, const float *x, int cols) {
    for (int g = 0; g * QUANT_GROUP < cols; g++) {
        int n = cols - g * QUANT_GROUP < QUANT_GROUP ? cols - g * QUANT_GROUP : QUANT_GROUP;
        if (t == DT_I8)
            quantise_group_q8((int8_t *)q + g * QUANT_GROUP, scales + g, x + g * QUANT_GROUP, n);
        else
            quantise_group_q4((uint8_t *)q + g * QUANT_GROUP / 2, scales + 2 * g, x + g * QUANT_GROUP, n);
    }
}

/* Element i of a quantised row, as fp32. */
static inline float quantised_element(Dtype t, const void *q, const bf16 *scales, size_t i) {
    size_t g = i / QUANT_GROUP, within = i % QUANT_GROUP;
    if (t == DT_I8) return bf16_to_f32(scales[g]) * (float)((const int8_t *)q)[i];
    int byte = ((const uint8_t *)q)[g * QUANT_GROUP / 2 + within % 16];
    return bf16_to_f32(scales[2 * g]) * (float)(byte >> (within / 16 * 4) & 15) + bf16_to_f32(scales[2 * g + 1]);
}

#endif
