/* AdamW and the gradient norm. Memory-bound: AdamW reads 16 bytes and writes 12 plus the rounded copy per parameter,
 * the norm reads 4. */
#ifndef KERNELS_CUDA_OPTIMIZER_CUH
#define KERNELS_CUDA_OPTIMIZER_CUH

#include "common.cuh"

/* ---- the squared norm ---- */

enum { NORM_THREADS = 256, NORM_VECTOR = 4, NORM_SPAN = 16 * NORM_THREADS * NORM_VECTOR, NORM_MOST = 1024 };

/* The blocks take turns along x. Squares are added in fp32 within a vector and in double beyond it, so the rounding
 * error does not grow with n. */
template <int N> static __global__ void squared_norm_kernel(double *part, const float *x, size_t n) {
    double sum = 0.0;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n;
         i += (size_t)gridDim.x * blockDim.x * N) {
        float squares = 0.0f;
        if (i + N <= n) {
            Floats<N> v = load<N>(x + i);
#pragma unroll
            for (int k = 0; k < N; k++) squares += v.x[k] * v.x[k];
        } else {
            for (size_t j = i; j < n; j++) squares += x[j] * x[j];
        }
        sum += (double)squares;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* Adds up the parts, in one block. */
static __global__ void squared_norm_combine_kernel(float *out, const double *part, int parts, bool accumulate) {
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < parts; i += (int)blockDim.x) sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = (float)(sum + (accumulate ? (double)out[0] : 0.0));
}

static void cuda_squared_norm(float *out, const float *x, size_t n, bool accumulate) {
    size_t blocks = cuda_div_up(n, NORM_SPAN);
    unsigned parts = blocks < NORM_MOST ? (unsigned)blocks : (unsigned)NORM_MOST;
    if (parts == 0) parts = 1;
    double *part = (double *)cuda_scratch(parts * sizeof(double));
    if (vectors_fit(NORM_VECTOR, NORM_VECTOR, x))
        LAUNCH(squared_norm_kernel<NORM_VECTOR>, parts, NORM_THREADS, 0, part, x, n);
    else
        LAUNCH(squared_norm_kernel<1>, parts, NORM_THREADS, 0, part, x, n);
    LAUNCH(squared_norm_combine_kernel, 1, NORM_THREADS, 0, out, part, (int)parts, accumulate);
}

/* ---- AdamW ---- */

typedef struct {
    float lr, beta1, beta2, eps, decay, max_norm;
    float correct1, correct2;  // 1 / (1 - beta^step)
} AdamWStep;

/* m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
 * w -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + decay w). */
template <int N>
static __device__ __forceinline__ void adamw_at(floatX *param, float *master, float *m, float *v, const float *grad,
                                                const float *norm_squared, const AdamWStep &s) {
    Floats<N> g = load<N>(grad), m1 = load<N>(m), v1 = load<N>(v), w = load<N>(master);
    float clip = 1.0f, square = norm_squared ? norm_squared[0] : 0.0f;  // loaded together with the rest
    const bool usable = isfinite(square);
    if (s.max_norm > 0.0f && sqrtf(square) > s.max_norm) clip = s.max_norm / sqrtf(square);
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float d = g.x[k] * clip;
        const float m2 = s.beta1 * m1.x[k] + (1.0f - s.beta1) * d, v2 = s.beta2 * v1.x[k] + (1.0f - s.beta2) * d * d;
        const float step = s.lr * (m2 * s.correct1 / (sqrtf(v2 * s.correct2) + s.eps) + s.decay * w.x[k]);
        m1.x[k] = usable ? m2 : m1.x[k];
        v1.x[k] = usable ? v2 : v1.x[k];
        w.x[k] = usable ? w.x[k] - step : w.x[k];
    }
    store<N>(m, m1);
    store<N>(v, v1);
    store<N>(master, w);
    store<N>(param, w);
}

/* A thread updates N parameters. A norm that is not finite means that the gradients are not usable: then every value
 * is written back unchanged, and the caller sees the norm in norm_squared. There is no branch around the update,
 * because it would make every thread wait for the norm before it reads the rest. */
template <int N>
static __global__ void adamw_kernel(floatX *param, float *master, float *m, float *v, const float *grad, size_t n,
                                    AdamWStep s, const float *norm_squared) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n)
        adamw_at<N>(param + i, master + i, m + i, v + i, grad + i, norm_squared, s);
    else
        for (; i < n; i++) adamw_at<1>(param + i, master + i, m + i, v + i, grad + i, norm_squared, s);
}

static void cuda_adamw(floatX *param, float *master, float *m, float *v, const float *grad, size_t n, float lr,
                       float beta1, float beta2, float eps, float decay, const float *norm_squared, float max_norm,
                       int step) {
    enum { THREADS = 256, N = 4 };
    if (n == 0) return;
    AdamWStep s = {lr,
                   beta1,
                   beta2,
                   eps,
                   decay,
                   max_norm,
                   (float)(1.0 / (1.0 - pow((double)beta1, step))),
                   (float)(1.0 / (1.0 - pow((double)beta2, step)))};
    if (vectors_fit(N, N, master, m, v, grad) && (uintptr_t)param % (N * sizeof(floatX)) == 0)
        LAUNCH(adamw_kernel<N>, cuda_blocks(n, THREADS * N), THREADS, 0, param, master, m, v, grad, n, s,
               norm_squared);
    else
        LAUNCH(adamw_kernel<1>, cuda_blocks(n, THREADS), THREADS, 0, param, master, m, v, grad, n, s, norm_squared);
}

#endif
