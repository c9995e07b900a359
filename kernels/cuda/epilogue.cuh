/* A product's description, and what happens to each of its results. */
#ifndef KERNELS_CUDA_EPILOGUE_CUH
#define KERNELS_CUDA_EPILOGUE_CUH

#include "common.cuh"

/* C [M, N] = left [M, K] right [K, N]. Exactly one of out and sum is set. */
typedef struct {
    const floatX *left;
    const void *right;
    Dtype right_type;
    bool left_turned;   // left is stored as [K, M]
    bool right_turned;  // right is stored as [N, K]
    int M, N, K;
    floatX *out, *preact;  // preact: C + bias before the activation, or NULL
    const floatX *bias;
    Activation act;
    float *sum;
    bool accumulate;  // C is added to what is there
} Product;

/* ---- epilogue ---- */

/* GELU(x) = x Phi(x). The tanh form (Hendrycks & Gimpel 2016) is x sigmoid(2u) with
 * u = sqrt(2/pi) (x + 0.044715 x^3), because (1 + tanh u) / 2 = sigmoid(2u). */
static __device__ __forceinline__ float gelu(float x, Activation act) {
    if (act == ACT_GELU_ERF) return 0.5f * x * (1.0f + erff(0.707106781f * x));
    return x / (1.0f + __expf(-1.59576912f * x * (1.0f + 0.044715f * x * x)));
}

/* What happens to a finished element of C. */
static __device__ __forceinline__ void store_element(const Product &p, size_t m, size_t n, float value) {
    const size_t at = m * p.N + n;
    if (p.sum) {
        p.sum[at] = p.accumulate ? p.sum[at] + value : value;
        return;
    }
    if (p.accumulate) value += to_float(p.out[at]);
    if (p.bias) value += to_float(p.bias[n]);
    if (p.preact) p.preact[at] = from_float<floatX>(value);
    if (p.act != ACT_NONE) value = gelu(rounded<floatX>(value), p.act);  // of what the backward pass will see
    p.out[at] = from_float<floatX>(value);
}

#endif
