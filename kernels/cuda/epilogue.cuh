/* What a matmul is asked for, and its epilogue: what happens to each finished element of the result. */
#ifndef KERNELS_CUDA_EPILOGUE_CUH
#define KERNELS_CUDA_EPILOGUE_CUH

#include "common.cuh"
#include "pointwise.cuh"

/* C [M, N] = A [M, K] B [K, N]. Exactly one of out and sum is set. */
typedef struct {
    const floatX *a;
    const void *b;
    Dtype b_type;
    const bf16 *scales;  // of a quantised B, as in Weight
    bool a_transposed;   // A is stored as [K, M]
    bool b_transposed;   // B is stored as [N, K]
    int M, N, K;
    int ld;                // elements from one row of C to the next
    floatX *out, *preact;  // preact: gets C + bias before the activation, or NULL
    const floatX *bias;
    Activation act;
    float *sum;
    bool accumulate;  // C is added to what is there
} Matmul;

/* Stores a finished element of C. */
static __device__ __forceinline__ void store_element(const Matmul &p, size_t m, size_t n, float value) {
    const size_t at = m * p.ld + n;
    if (p.sum) {
        p.sum[at] = p.accumulate ? p.sum[at] + value : value;
        return;
    }
    if (p.accumulate) value += to_float(p.out[at]);
    if (p.bias) value += to_float(p.bias[n]);
    if (p.preact) p.preact[at] = from_float<floatX>(value);
    if (p.act != ACT_NONE)
        value = gelu(rounded<floatX>(value),
                     p.act);  // GELU of the rounded value, which is what the backward pass will read
    p.out[at] = from_float<floatX>(value);
}

#endif
