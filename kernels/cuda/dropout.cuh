/* Dropout, and scaling: memory-bound, reads one array (two where it adds), writes one. */
#ifndef KERNELS_CUDA_DROPOUT_CUH
#define KERNELS_CUDA_DROPOUT_CUH

#include "../dropout.h"
#include "common.cuh"

/* The key is read on the device, so that a graph of this call drops other elements each time it runs. */
template <int WIDTH>
static __global__ void dropout_kernel(floatX *out, const floatX *inp, size_t n, float scale, float p,
                                      const uint64_t *key, int stream, bool accumulate) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    if (i >= n) return;
    const bool drops = p > 0.0f && *key != 0;
    const uint64_t start = drops ? dropout_stream(*key, stream) : 0;
    const uint32_t threshold = dropout_threshold(p);
    const float kept = scale / (1.0f - p);
    Floats<WIDTH> x = load<WIDTH>(inp + i), sum = {};
    if (accumulate) sum = load<WIDTH>(out + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++)
        sum.x[k] += x.x[k] * (!drops ? scale : dropout_bits(start, i + k) >= threshold ? kept : 0.0f);
    store<WIDTH>(out + i, sum);
}

static void cuda_dropout(floatX *out, const floatX *inp, size_t n, float scale, float p, const uint64_t *key,
                         int stream, bool accumulate) {
    enum { THREADS = 256 };
    if (n == 0) return;
    if (vectors_fit(n, VECTOR, out, inp))
        LAUNCH(dropout_kernel<VECTOR>, cuda_blocks(n, THREADS * VECTOR), THREADS, 0, out, inp, n, scale, p, key,
               stream, accumulate);
    else
        LAUNCH(dropout_kernel<1>, cuda_blocks(n, THREADS), THREADS, 0, out, inp, n, scale, p, key, stream,
               accumulate);
}

#endif
