/* Pointwise operations: GELU, SwiGLU, their gradients, residual addition, casts. They are memory-bound, and each
 * takes one pass. */
#ifndef KERNELS_CPU_POINTWISE_H
#define KERNELS_CPU_POINTWISE_H

#include "functions.h"
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
ALWAYS_INLINE void vf_gelu_each(vf *x, const Activation act, const int count) {
    vf factor[GROUP], density[GROUP];
    for (int i = 0; i < count; i++)
        factor[i] = act == ACT_GELU_ERF ? x[i] : 1.59576912f * x[i] * (1.0f + 0.044715f * x[i] * x[i]);
    if (act == ACT_GELU_ERF)
        vf_normal_cdf_each(factor, density, count);
    else
        vf_sigmoid_each(factor, count);
    for (int i = 0; i < count; i++) x[i] *= factor[i];
}

/* Replaces x by GELU'(x). */
ALWAYS_INLINE void vf_gelu_derivative_each(vf *x, const Activation act, const int count) {
    vf factor[GROUP], density[GROUP];
    for (int i = 0; i < count; i++)
        factor[i] = act == ACT_GELU_ERF ? x[i] : 1.59576912f * x[i] * (1.0f + 0.044715f * x[i] * x[i]);
    if (act == ACT_GELU_ERF) {
        vf_normal_cdf_each(factor, density, count);
        for (int i = 0; i < count; i++) x[i] = factor[i] + x[i] * density[i];
        return;
    }
    vf_sigmoid_each(factor, count);
    for (int i = 0; i < count; i++) {
        vf s = factor[i];
        x[i] = s + x[i] * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * x[i] * x[i]);
    }
}

ALWAYS_INLINE void gelu_forward_range(floatX *out, const floatX *preact, size_t begin, size_t end,
                                      const Activation act) {
    FOR_GROUPS (i, m, begin, end) {
        vf x[GROUP];
        vx_load_group(x, preact + i, m, 0.0f);
        vf_gelu_each(x, act, GROUP);
        vx_store_group(out + i, x, m);
    }
}

static void cpu_gelu_forward(floatX *out, const floatX *preact, size_t n, Activation act) {
    FOR_BLOCKS (begin, end, n)
        if (act == ACT_NONE)
            memmove(out + begin, preact + begin, (end - begin) * sizeof *out);
        else if (act == ACT_GELU_TANH)
            gelu_forward_range(out, preact, begin, end, ACT_GELU_TANH);
        else
            gelu_forward_range(out, preact, begin, end, ACT_GELU_ERF);
}

ALWAYS_INLINE void gelu_backward_range(floatX *dinp, const floatX *dout, const floatX *preact, size_t begin,
                                       size_t end, const Activation act) {
    FOR_GROUPS (i, m, begin, end) {
        vf x[GROUP], d[GROUP];
        vx_load_group(x, preact + i, m, 0.0f);
        vf_gelu_derivative_each(x, act, GROUP);
        vx_load_group(d, dout + i, m, 0.0f);
        for (int v = 0; v < GROUP; v++) d[v] *= x[v];
        vx_store_group(dinp + i, d, m);
    }
}

static void cpu_gelu_backward(floatX *dinp, const floatX *dout, const floatX *preact, size_t n, Activation act) {
    FOR_BLOCKS (begin, end, n)
        if (act == ACT_NONE)
            memmove(dinp + begin, dout + begin, (end - begin) * sizeof *dinp);
        else if (act == ACT_GELU_TANH)
            gelu_backward_range(dinp, dout, preact, begin, end, ACT_GELU_TANH);
        else
            gelu_backward_range(dinp, dout, preact, begin, end, ACT_GELU_ERF);
}

/* SwiGLU (Shazeer 2020): silu(gate) * up with silu(x) = x sigmoid(x). */
static void cpu_swiglu_forward(floatX *out, const floatX *gate_up, size_t rows, int F) {
#pragma omp parallel for schedule(static) if (rows * F > 16384)
    for (size_t r = 0; r < rows; r++) {
        const floatX *gate = gate_up + r * 2 * F, *up = gate + F;
        FOR_GROUPS (i, m, 0, (size_t)F) {
            vf g[GROUP], s[GROUP], u[GROUP];
            vx_load_group(g, gate + i, m, 0.0f);
            memcpy(s, g, sizeof s);
            vf_sigmoid_each(s, GROUP);
            vx_load_group(u, up + i, m, 0.0f);
            for (int v = 0; v < GROUP; v++) u[v] *= g[v] * s[v];
            vx_store_group(out + r * F + i, u, m);
        }
    }
}

/* d gate = dout up s (1 + gate (1 - s)), d up = dout gate s, with s = sigmoid(gate). */
static void cpu_swiglu_backward(floatX *dgate_up, const floatX *dout, const floatX *gate_up, size_t rows, int F) {
#pragma omp parallel for schedule(static) if (rows * F > 16384)
    for (size_t r = 0; r < rows; r++) {
        const floatX *gate = gate_up + r * 2 * F, *up = gate + F;
        floatX *dgate = dgate_up + r * 2 * F, *dup = dgate + F;
        FOR_GROUPS (i, m, 0, (size_t)F) {
            vf g[GROUP], s[GROUP], u[GROUP], d[GROUP];
            vx_load_group(g, gate + i, m, 0.0f);
            memcpy(s, g, sizeof s);
            vf_sigmoid_each(s, GROUP);
            vx_load_group(u, up + i, m, 0.0f);
            vx_load_group(d, dout + r * F + i, m, 0.0f);
            for (int v = 0; v < GROUP; v++) {
                u[v] = d[v] * u[v] * s[v] * (1.0f + g[v] * (1.0f - s[v]));
                d[v] = d[v] * g[v] * s[v];
            }
            vx_store_group(dgate + i, u, m);
            vx_store_group(dup + i, d, m);
        }
    }
}

static void cpu_residual_forward(floatX *out, const floatX *a, const floatX *b, size_t n) {
    FOR_BLOCKS (begin, end, n)
        FOR_GROUPS (i, m, begin, end) {
            vf x[GROUP], y[GROUP];
            vx_load_group(x, a + i, m, 0.0f);
            vx_load_group(y, b + i, m, 0.0f);
            for (int v = 0; v < GROUP; v++) x[v] += y[v];
            vx_store_group(out + i, x, m);
        }
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
