/* Quantising weights to 8 and 4 bits, on the host (the formats: quantised.h). Written with vectors of four, which every
 * processor has or the compiler takes apart: a model of a billion weights is quantised while it is loaded. */
#ifndef KERNELS_QUANTISE_H
#define KERNELS_QUANTISE_H

#include "quantised.h"

typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_int __attribute__((vector_size(16)));
enum { QUADS = QUANT_GROUP / 4 };

static inline quad quad_select(quad_int which, quad yes, quad no) {
    return (quad)((which & (quad_int)yes) | (~which & (quad_int)no));
}
static inline quad quad_magnitude(quad x) { return (quad)((quad_int)x & 0x7fffffff); }
static inline float quad_sum(quad x) { return x[0] + x[2] + (x[1] + x[3]); }

/* A group of n <= 32 elements, filled up with zeros. */
static inline void quad_group(quad group[QUADS], const float *x, int n) {
    memset(group, 0, QUANT_GROUP * sizeof(float));
    memcpy(group, x, (size_t)n * sizeof(float));
}

/* The least bf16 number that is not below x >= 0. */
static inline bf16 bf16_round_up(float x) {
    bf16 r = f32_to_bf16(x);
    if (bf16_to_f32(r) < x) r.bits++;  // the bits of positive floats are in their order
    return r;
}

/* The largest magnitude of a group, or NaN if one of its elements is not finite. */
static inline float quant_largest(const quad *x) {
    quad largest = {0}, finite = {0};
    float most = 0;
    for (int i = 0; i < QUADS; i++) {
        const quad magnitude = quad_magnitude(x[i]);
        largest = quad_select(magnitude > largest, magnitude, largest);
        finite += x[i] * 0.0f;  // NaN, if x is NaN or infinite
    }
    for (int k = 0; k < 4; k++) most = largest[k] > most ? largest[k] : most;
    return most + quad_sum(finite);
}

static inline void quantise_group_q8(int8_t q[QUANT_GROUP], bf16 *scale, const float *x, int n) {
    quad group[QUADS];
    quad_group(group, x, n);
    const float largest = quant_largest(group);
    *scale = largest < INFINITY ? bf16_round_up(largest / 127) : f32_to_bf16(NAN);
    const float s = bf16_to_f32(*scale), inverse = s > 1e-37f ? 1 / s : 0;
    for (int i = 0; i < QUADS; i++) {
        const quad v = group[i] * inverse, half = quad_select(v < 0, (quad){0} - 0.5f, (quad){0} + 0.5f);
        const quad_int whole = __builtin_convertvector(inverse > 0 ? v + half : (quad){0}, quad_int);  // up to 127.5
        for (int k = 0; k < 4; k++) q[4 * i + k] = (int8_t)whole[k];
    }
}

/* ---- 4 bits ---- */

/* A line that stands for a group, x = scale * q + minimum, with its weighted square error. */
typedef struct {
    bf16 scale_minimum[2];
    float error;
} QuantLine;

/* A group, and how much the error of each element counts: large weights meet large activations more often than small ones;
 * what the group was filled up with does not count. */
typedef struct {
    quad x[QUADS], weight[QUADS];
    float total;  // of the weights
} QuantGroup;

/* The whole numbers 0 .. 15 of x on a line; inverse: 1 / scale, or 0. */
static inline quad quant_q4(quad x, float inverse, float minimum) {
    const quad v = (x - minimum) * inverse + 0.5f, most = (quad){0} + 15.0f;
    const quad within = quad_select(v > 0, quad_select(v < most, v, most), (quad){0});
    return __builtin_convertvector(__builtin_convertvector(within, quad_int), quad);
}

static inline float quant_q4_inverse(float scale) { return scale > 1e-37f ? 1 / scale : 0; }

/* Sets the line's error. *refit gets the line that is nearest to x over the same q (weighted linear regression, with
 * d = x - minimum), its error still to be found. */
static inline void quant_q4_try(QuantLine *line, QuantLine *refit, const QuantGroup *g) {
    const float scale = bf16_to_f32(line->scale_minimum[0]), minimum = bf16_to_f32(line->scale_minimum[1]);
    const float inverse = quant_q4_inverse(scale);
    quad sum_q = {0}, sum_qq = {0}, sum_d = {0}, sum_qd = {0}, error = {0};
    for (int i = 0; i < QUADS; i++) {
        const quad q = quant_q4(g->x[i], inverse, minimum), d = g->x[i] - minimum;
        const quad wq = g->weight[i] * q, off = scale * q - d;
        sum_q += wq, sum_qq += wq * q, sum_d += g->weight[i] * d, sum_qd += wq * d;
        error += g->weight[i] * off * off;
    }
    const float W = g->total, Q = quad_sum(sum_q), QQ = quad_sum(sum_qq), D = quad_sum(sum_d), QD = quad_sum(sum_qd);
    const float spread = W * QQ - Q * Q, slope = spread > 0 ? (W * QD - Q * D) / spread : scale;
    line->error = quad_sum(error);
    refit->scale_minimum[0] = f32_to_bf16(slope);
    refit->scale_minimum[1] = f32_to_bf16(W > 0 ? minimum + (D - slope * Q) / W : minimum);
}

/* The best line for a group between low and high: tries ranges from the whole to 80 % of it, each refitted twice. */
static inline QuantLine quant_q4_line(const QuantGroup *g, float low, float high) {
    enum { RANGES = 5, TRIES = 3 };
    QuantLine best = {{f32_to_bf16(0), f32_to_bf16(0)}, INFINITY};
    for (int r = 0; r < RANGES; r++) {
        const float margin = (float)r * (high - low) / 40;
        QuantLine line = {{f32_to_bf16((high - low - 2 * margin) / 15), f32_to_bf16(low + margin)}, 0}, next = line;
        for (int k = 0; k < TRIES; k++, line = next) {
            quant_q4_try(&line, &next, g);
            if (line.error < best.error) best = line;
        }
    }
    return best;
}

static inline void quantise_group_q4(uint8_t q[QUANT_GROUP / 2], bf16 scale_minimum[2], const float *x, int n) {
    QuantGroup g = {.total = 0};
    float low = x[0], high = x[0], mean = 0, weights[QUANT_GROUP] = {0};
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        mean += fabsf(x[i]) / (float)n;
    }
    for (int i = 0; i < n; i++) g.total += weights[i] = fabsf(x[i]) + mean;
    quad_group(g.x, x, n);
    quad_group(g.weight, weights, n);
    QuantLine best = quant_q4_line(&g, low, high);
    if (!(mean < INFINITY)) best.scale_minimum[0] = best.scale_minimum[1] = f32_to_bf16(NAN);
    memcpy(scale_minimum, best.scale_minimum, sizeof best.scale_minimum);
    const float scale = bf16_to_f32(best.scale_minimum[0]), minimum = bf16_to_f32(best.scale_minimum[1]);
    float numbers[QUANT_GROUP];
    for (int i = 0; i < QUADS; i++) {
        const quad v = quant_q4(g.x[i], quant_q4_inverse(scale), minimum);
        memcpy(numbers + 4 * i, &v, sizeof v);
    }
    for (int i = 0; i < QUANT_GROUP / 2; i++)
        q[i] = (uint8_t)((int)numbers[i] | (int)(16 * numbers[i + QUANT_GROUP / 2]));
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

#endif
