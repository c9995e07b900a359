/* Pointwise operations: GELU, SwiGLU, their gradients, residual addition, casts. They are memory-bound, and each
 * takes one pass. */
#ifndef KERNELS_CPU_POINTWISE_H
#define KERNELS_CPU_POINTWISE_H

#include "vector.h"
#include "../ops.h"

/* Threads get elements in blocks of this size. Up to two blocks are done by one thread. */
enum { POINTWISE_BLOCK = 16384 };

/* Loops over blocks begin .. end of the n elements, in parallel. The count must be called n, because macro arguments
 * are not substituted in a pragma. */
// clang-format off
#define FOR_BLOCKS(begin, end, n)                                                                  \
    _Pragma("omp parallel for schedule(static) if (n > 2 * POINTWISE_BLOCK)")                      \
    for (size_t begin = 0; begin < n; begin += POINTWISE_BLOCK)                                    \
        for (size_t end = min_size(n, begin + POINTWISE_BLOCK), once = 1; once; once = 0)
// clang-format on

/* GELU(x) = x Phi(x). The tanh form (Hendrycks & Gimpel 2016) is x sigmoid(2u) with
 * u = sqrt(2/pi) (x + 0.044715 x^3), because (1 + tanh u) / 2 = sigmoid(2u). */
static inline vf vf_gelu(vf x, Activation act) {
    if (act == ACT_GELU_ERF) {
        vf density;
        return x * vf_normal_cdf(x, &density);
    }
    return x * vf_sigmoid(1.59576912f * x * (1.0f + 0.044715f * x * x));
}

static inline vf vf_gelu_derivative(vf x, Activation act) {
    if (act == ACT_GELU_ERF) {
        vf density, cdf = vf_normal_cdf(x, &density);
        return cdf + x * density;
    }
    vf s = vf_sigmoid(1.59576912f * x * (1.0f + 0.044715f * x * x));
    return s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * x * x);
}

static void cpu_gelu_forward(floatX *out, const floatX *preact, size_t n, Activation act) {
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, m, begin, end) {
            vf x = vx_load_n(preact + i, m);
            vx_store_n(out + i, act == ACT_NONE ? x : vf_gelu(x, act), m);
        }
}

static void cpu_gelu_backward(floatX *dinp, const floatX *dout, const floatX *preact, size_t n, Activation act) {
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, m, begin, end) {
            vf d = vx_load_n(dout + i, m);
            if (act != ACT_NONE) d *= vf_gelu_derivative(vx_load_n(preact + i, m), act);
            vx_store_n(dinp + i, d, m);
        }
}

/* SwiGLU (Shazeer 2020): silu(gate) * up with silu(x) = x sigmoid(x). */
static void cpu_swiglu_forward(floatX *out, const floatX *gate_up, size_t rows, int F) {
#pragma omp parallel for schedule(static) if (rows * F > 16384)
    for (size_t r = 0; r < rows; r++) {
        const floatX *gate = gate_up + r * 2 * F, *up = gate + F;
        FOR_LANES (i, m, 0, (size_t)F) {
            vf g = vx_load_n(gate + i, m);
            vx_store_n(out + r * F + i, g * vf_sigmoid(g) * vx_load_n(up + i, m), m);
        }
    }
}

/* d gate = dout up s (1 + gate (1 - s)), d up = dout gate s, with s = sigmoid(gate). */
static void cpu_swiglu_backward(floatX *dgate_up, const floatX *dout, const floatX *gate_up, size_t rows, int F) {
#pragma omp parallel for schedule(static) if (rows * F > 16384)
    for (size_t r = 0; r < rows; r++) {
        const floatX *gate = gate_up + r * 2 * F, *up = gate + F;
        floatX *dgate = dgate_up + r * 2 * F, *dup = dgate + F;
        FOR_LANES (i, m, 0, (size_t)F) {
            vf g = vx_load_n(gate + i, m), u = vx_load_n(up + i, m), d = vx_load_n(dout + r * F + i, m);
            vf s = vf_sigmoid(g);
            vx_store_n(dgate + i, d * u * s * (1.0f + g * (1.0f - s)), m);
            vx_store_n(dup + i, d * g * s, m);
        }
    }
}

static void cpu_residual_forward(floatX *out, const floatX *a, const floatX *b, size_t n) {
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, m, begin, end) vx_store_n(out + i, vx_load_n(a + i, m) + vx_load_n(b + i, m), m);
}

static void cpu_cast_to_x(floatX *out, const float *inp, size_t n) {
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, m, begin, end) vx_store_n(out + i, vf_load_n(inp + i, m), m);
}

static void cpu_cast_from_x(float *out, const floatX *inp, size_t n) {
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, m, begin, end) vf_store_n(out + i, vx_load_n(inp + i, m), m);
}

#endif
