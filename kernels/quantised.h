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

/* The least bf16 number that is not below x >= 0. */
static inline bf16 bf16_round_up(float x) {
    bf16 r = f32_to_bf16(x);
    if (bf16_to_f32(r) < x) r.bits++;  // the bits of positive floats are in their order
    return r;
}

/* Quantises one group of n <= 32 elements; the missing ones become 0 (q8) or the minimum (q4). */
static inline void quantise_group_q8(int8_t q[QUANT_GROUP], bf16 *scale, const float *x, int n) {
    float largest = 0, finite = 0;
    for (int i = 0; i < n; i++) {
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        finite += x[i] * 0;  // NaN, if x is NaN or infinite
    }
    *scale = finite == 0 ? bf16_round_up(largest / 127) : f32_to_bf16(NAN);
    const float s = bf16_to_f32(*scale);
    for (int i = 0; i < QUANT_GROUP; i++) {
        const float v = i < n && s > 0 ? x[i] / s : 0;
        q[i] = (int8_t)(int)(v + (v < 0 ? -0.5f : 0.5f));  // never beyond 127.5
    }
}

/* A line that stands for a group, x = scale * q + minimum, with its weighted square error. */
typedef struct {
    bf16 scale_minimum[2];
    float error;
} QuantLine;

/* A group, filled up to 32, and how much the error of each element counts: large weights meet large activations more often
 * than small ones; what is filled up does not count. */
typedef struct {
    float x[QUANT_GROUP], weight[QUANT_GROUP];
} QuantGroup;

/* The 4 bits of x on a line; inverse: 1 / scale, or 0. */
static inline float quant_q4(float x, float inverse, float minimum) {
    float v = (x - minimum) * inverse + 0.5f;
    v = v < 15 ? v : 15;
    return (float)(int)(v > 0 ? v : 0);
}

static inline float quant_sum(const float *parts) {  // of 8, as a tree
    return (parts[0] + parts[4] + (parts[2] + parts[6])) + (parts[1] + parts[5] + (parts[3] + parts[7]));
}

/* Sets the line's error. *refit gets the line that is nearest to x over the same q (weighted linear regression), with its
 * own error still to be found. The sums are over d = x - minimum; eight side by side, for the compiler. */
static inline void quant_q4_try(QuantLine *line, QuantLine *refit, const QuantGroup *g) {
    const float scale = bf16_to_f32(line->scale_minimum[0]), minimum = bf16_to_f32(line->scale_minimum[1]);
    const float inverse = scale > 1e-37f ? 1 / scale : 0;
    float w[8] = {0}, wq[8] = {0}, wqq[8] = {0}, wd[8] = {0}, wqd[8] = {0}, error[8] = {0};
    for (int i = 0; i < QUANT_GROUP; i += 8)
        for (int k = 0; k < 8; k++) {
            const float q = quant_q4(g->x[i + k], inverse, minimum), d = g->x[i + k] - minimum, c = g->weight[i + k];
            const float off = scale * q - d;
            w[k] += c, wq[k] += c * q, wqq[k] += c * q * q, wd[k] += c * d, wqd[k] += c * q * d;
            error[k] += c * off * off;
        }
    const float W = quant_sum(w), Q = quant_sum(wq), QQ = quant_sum(wqq), D = quant_sum(wd), QD = quant_sum(wqd);
    const float spread = W * QQ - Q * Q, slope = spread > 0 ? (W * QD - Q * D) / spread : scale;
    line->error = quant_sum(error);
    refit->scale_minimum[0] = f32_to_bf16(slope);
    refit->scale_minimum[1] = f32_to_bf16(W > 0 ? minimum + (D - slope * Q) / W : minimum);
}

/* Tries ranges from the whole of the group to 80 % of it, each refitted twice, and takes the line with the least error. */
static inline void quantise_group_q4(uint8_t q[QUANT_GROUP / 2], bf16 scale_minimum[2], const float *x, int n) {
    enum { RANGES = 5, REFITS = 3 };
    QuantGroup g = {{0}, {0}};
    float low = x[0], high = x[0], mean = 0;
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        mean += fabsf(x[i]) / (float)n;
        g.x[i] = x[i];
    }
    for (int i = 0; i < n; i++) g.weight[i] = fabsf(x[i]) + mean;
    const bf16 start = f32_to_bf16(mean - mean);  // 0, or NaN if one is NaN or infinite
    QuantLine best = {{start, start}, INFINITY};
    for (int r = 0; r < RANGES; r++) {
        const float margin = (float)r * (high - low) / 40;
        QuantLine line = {{f32_to_bf16((high - low - 2 * margin) / 15), f32_to_bf16(low + margin)}, 0}, next = line;
        for (int k = 0; k < REFITS; k++, line = next) {
            quant_q4_try(&line, &next, &g);
            if (line.error < best.error) best = line;
        }
    }
    memcpy(scale_minimum, best.scale_minimum, sizeof best.scale_minimum);
    const float scale = bf16_to_f32(best.scale_minimum[0]), minimum = bf16_to_f32(best.scale_minimum[1]);
    memset(q, 0, QUANT_GROUP / 2);
    for (int i = 0; i < n; i++)
        q[i % 16] |= (uint8_t)((int)quant_q4(x[i], scale > 1e-37f ? 1 / scale : 0, minimum) << (i / 16 * 4));
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
