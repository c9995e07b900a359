/* Pointwise operations: GELU, SwiGLU, their gradients, residual addition, casts. They are memory-bound: each reads
 * its inputs and writes its output once, a 16-byte vector (N elements) for each thread. The last thread takes the
 * elements past the last whole vector one by one. */
#ifndef KERNELS_CUDA_POINTWISE_CUH
#define KERNELS_CUDA_POINTWISE_CUH

#include "common.cuh"

enum { POINTWISE_THREADS = 256 };

/* ---- GELU ---- */

static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

/* GELU(x) = x Phi(x). The tanh form (Hendrycks & Gimpel 2016) is x sigmoid(2u) with
 * u = sqrt(2/pi) (x + 0.044715 x^3), because (1 + tanh u) / 2 = sigmoid(2u). */
static __device__ __forceinline__ float gelu(float x, Activation act) {
    if (act == ACT_GELU_ERF) return 0.5f * x * (1.0f + erff(0.707106781f * x));
    return x / (1.0f + __expf(-1.59576912f * x * (1.0f + 0.044715f * x * x)));
}

/* The derivative of gelu(). */
template <Activation ACT> static __device__ __forceinline__ float gelu_derivative(float x) {
    if constexpr (ACT == ACT_GELU_TANH) {
        float s = sigmoid(1.59576912f * x * (1.0f + 0.044715f * x * x));
        return s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * x * x);
    } else if constexpr (ACT == ACT_GELU_ERF) {
        return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * __expf(-0.5f * x * x);
    } else {
        return 1.0f;
    }
}

/* out = act(preact) for n elements; out may be preact. Reads and writes once. */
template <int WIDTH>
static __global__ void gelu_forward_kernel(floatX *out, const floatX *preact, size_t n, Activation act) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    if (i >= n) return;
    Floats<WIDTH> v = load<WIDTH>(preact + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++)
        if (act != ACT_NONE) v.x[k] = gelu(v.x[k], act);
    store<WIDTH>(out + i, v);
}

static void cuda_gelu_forward(floatX *out, const floatX *preact, size_t n, Activation act) {
    if (n == 0 || (out == preact && act == ACT_NONE)) return;
    if (vectors_fit(n, VECTOR, out, preact))
        LAUNCH(gelu_forward_kernel<VECTOR>, cuda_blocks(n, POINTWISE_THREADS * VECTOR), POINTWISE_THREADS, 0, out,
               preact, n, act);
    else
        LAUNCH(gelu_forward_kernel<1>, cuda_blocks(n, POINTWISE_THREADS), POINTWISE_THREADS, 0, out, preact, n, act);
}

/* dinp = dout * act'(preact): reads two arrays, writes one. */
template <Activation ACT, int N>
static __device__ __forceinline__ void gelu_backward_at(floatX *dinp, const floatX *dout, const floatX *preact) {
    Floats<N> d = load<N>(dout), x = load<N>(preact);
#pragma unroll
    for (int k = 0; k < N; k++) d.x[k] *= gelu_derivative<ACT>(x.x[k]);
    store<N>(dinp, d);
}

template <Activation ACT, int N>
static __global__ void gelu_backward_kernel(floatX *dinp, const floatX *dout, const floatX *preact, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n)
        gelu_backward_at<ACT, N>(dinp + i, dout + i, preact + i);
    else
        for (; i < n; i++) gelu_backward_at<ACT, 1>(dinp + i, dout + i, preact + i);
}

template <Activation ACT>
static void gelu_backward(floatX *dinp, const floatX *dout, const floatX *preact, size_t n) {
    if (vectors_fit(VECTOR, VECTOR, dinp, dout, preact))
        LAUNCH((gelu_backward_kernel<ACT, VECTOR>), cuda_blocks(n, POINTWISE_THREADS * VECTOR), POINTWISE_THREADS, 0,
               dinp, dout, preact, n);
    else
        LAUNCH((gelu_backward_kernel<ACT, 1>), cuda_blocks(n, POINTWISE_THREADS), POINTWISE_THREADS, 0, dinp, dout,
               preact, n);
}

static void cuda_gelu_backward(floatX *dinp, const floatX *dout, const floatX *preact, size_t n, Activation act) {
    if (n == 0) return;
    if (act == ACT_GELU_TANH) gelu_backward<ACT_GELU_TANH>(dinp, dout, preact, n);
    if (act == ACT_GELU_ERF) gelu_backward<ACT_GELU_ERF>(dinp, dout, preact, n);
    if (act == ACT_NONE && dinp != dout)
        CUDA_CHECK(cudaMemcpyAsync(dinp, dout, n * sizeof(floatX), cudaMemcpyDeviceToDevice, cuda_stream()));
}

/* ---- SwiGLU (Shazeer 2020) ---- silu(gate) * up with silu(x) = x sigmoid(x); a block per row */

/* Reads 2F, writes F elements a row. Grid (rows, blocks that share a row). */
template <int N> static __global__ void swiglu_forward_kernel(floatX *out, const floatX *gate_up, int F) {
    const floatX *gate = gate_up + (size_t)blockIdx.x * 2 * F, *up = gate + F;
    floatX *o = out + (size_t)blockIdx.x * F;
    let_next_begin();
    wait_for_previous();
    for (int i = (int)(blockIdx.y * blockDim.x + threadIdx.x) * N; i < F; i += (int)(gridDim.y * blockDim.x) * N) {
        Floats<N> g = load<N>(gate + i), u = load<N>(up + i);
#pragma unroll
        for (int k = 0; k < N; k++) u.x[k] *= g.x[k] * sigmoid(g.x[k]);
        store<N>(o + i, u);
    }
}

/* d gate = dout up s (1 + gate (1 - s)), d up = dout gate s, with s = sigmoid(gate). Reads 3F, writes 2F elements a
 * row; each thread reads what it overwrites, so dgate_up may be gate_up. */
template <int N>
static __global__ void swiglu_backward_kernel(floatX *dgate_up, const floatX *dout, const floatX *gate_up, int F) {
    size_t row = (size_t)blockIdx.x * 2 * F;
    const floatX *gate = gate_up + row, *up = gate + F, *d = dout + (size_t)blockIdx.x * F;
    floatX *dgate = dgate_up + row, *dup = dgate + F;
    for (int i = (int)threadIdx.x * N; i < F; i += (int)blockDim.x * N) {
        Floats<N> g = load<N>(gate + i), u = load<N>(up + i), o = load<N>(d + i), dg, du;
#pragma unroll
        for (int k = 0; k < N; k++) {
            float s = sigmoid(g.x[k]);
            dg.x[k] = o.x[k] * u.x[k] * s * (1.0f + g.x[k] * (1.0f - s));
            du.x[k] = o.x[k] * g.x[k] * s;
        }
        store<N>(dgate + i, dg);
        store<N>(dup + i, du);
    }
}

template <int N> static void swiglu_forward(floatX *out, const floatX *gate_up, size_t rows, int F) {
    const unsigned threads = cuda_row_threads((size_t)F / N);
    const unsigned blocks = rows < 256 ? cuda_blocks((size_t)F / N, threads) : 1;
    LAUNCH_EARLY(swiglu_forward_kernel<N>, dim3((unsigned)rows, blocks), threads, 0, out, gate_up, F);
}

static void cuda_swiglu_forward(floatX *out, const floatX *gate_up, size_t rows, int F) {
    if (rows == 0) return;
    if (vectors_fit(F, VECTOR, out, gate_up))
        swiglu_forward<VECTOR>(out, gate_up, rows, F);
    else
        swiglu_forward<1>(out, gate_up, rows, F);
}

static void cuda_swiglu_backward(floatX *dgate_up, const floatX *dout, const floatX *gate_up, size_t rows, int F) {
    if (rows == 0) return;
    if (vectors_fit(F, VECTOR, dgate_up, dout, gate_up))
        LAUNCH(swiglu_backward_kernel<VECTOR>, (unsigned)rows, cuda_row_threads(F / VECTOR), 0, dgate_up, dout,
               gate_up, F);
    else
        LAUNCH(swiglu_backward_kernel<1>, (unsigned)rows, cuda_row_threads(F), 0, dgate_up, dout, gate_up, F);
}

/* ---- residual addition ---- reads two arrays, writes one */

template <int N> static __device__ __forceinline__ void residual_at(floatX *out, const floatX *a, const floatX *b) {
    Floats<N> x = load<N>(a), y = load<N>(b);
#pragma unroll
    for (int k = 0; k < N; k++) x.x[k] += y.x[k];
    store<N>(out, x);
}

template <int N> static __global__ void residual_kernel(floatX *out, const floatX *a, const floatX *b, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n)
        residual_at<N>(out + i, a + i, b + i);
    else
        for (; i < n; i++) residual_at<1>(out + i, a + i, b + i);
}

static void cuda_residual_forward(floatX *out, const floatX *a, const floatX *b, size_t n) {
    if (n == 0) return;
    if (vectors_fit(VECTOR, VECTOR, out, a, b))
        LAUNCH(residual_kernel<VECTOR>, cuda_blocks(n, POINTWISE_THREADS * VECTOR), POINTWISE_THREADS, 0, out, a, b,
               n);
    else
        LAUNCH(residual_kernel<1>, cuda_blocks(n, POINTWISE_THREADS), POINTWISE_THREADS, 0, out, a, b, n);
}

/* ---- casts ---- */

template <typename To, typename From, int N> static __global__ void cast_kernel(To *out, const From *inp, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n)
        store<N>(out + i, load<N>(inp + i));
    else
        for (; i < n; i++) store<1>(out + i, load<1>(inp + i));
}

template <typename To, typename From> static void cast(To *out, const From *inp, size_t n) {
    if (n == 0) return;
    if (vectors_fit(VECTOR, VECTOR, out, inp))
        LAUNCH((cast_kernel<To, From, VECTOR>), cuda_blocks(n, POINTWISE_THREADS * VECTOR), POINTWISE_THREADS, 0, out,
               inp, n);
    else
        LAUNCH((cast_kernel<To, From, 1>), cuda_blocks(n, POINTWISE_THREADS), POINTWISE_THREADS, 0, out, inp, n);
}

static void cuda_cast_to_x(floatX *out, const float *inp, size_t n) { cast<floatX, float>(out, inp, n); }
static void cuda_cast_from_x(float *out, const floatX *inp, size_t n) { cast<float, floatX>(out, inp, n); }

#endif
