/* Sums, running sums and maxima over a warp and over a block. All lanes or threads get the result, and the order of the
 * additions is fixed by the size of the block, so the same input gives the same bits. */
#ifndef KERNELS_CUDA_REDUCE_CUH
#define KERNELS_CUDA_REDUCE_CUH

#include <platform.cuh>

enum : unsigned { ALL_LANES = 0xffffffffu };

template <typename T> static __device__ __forceinline__ T warp_sum(T v) {  // float or double
#pragma unroll
    for (int bits = 16; bits > 0; bits >>= 1) v += __shfl_xor_sync(ALL_LANES, v, bits);
    return v;
}

static __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int bits = 16; bits > 0; bits >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bits));
    return v;
}

/* The sum over a block, which all of its threads call. Its barriers also order what the threads have written to
 * shared memory before. */
template <typename T> static __device__ inline T block_sum(T v) {
    __shared__ T part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads();  // all have read the last call's sums
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : T(0));
}

/* Sums a and b at once, with the barriers of one sum. */
static __device__ inline void block_sum_pair(float &a, float &b) {
    __shared__ float part[2][32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();
    if (lane == 0) part[0][warp] = a, part[1][warp] = b;
    __syncthreads();
    a = warp_sum(lane < warps ? part[0][lane] : 0.0f);
    b = warp_sum(lane < warps ? part[1][lane] : 0.0f);
}

static __device__ inline float block_max(float v) {
    __shared__ float part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();  // all have read the last call's maxima
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_max(lane < warps ? part[lane] : -INFINITY);
}

/* The sum of v over the block's threads up to this one, which is included. The loops stay rolled: unrolled, a block
 * of 1024 threads, which has 64 registers a thread, spills some. */
static __device__ inline unsigned long long block_running_sum(unsigned long long v) {
    __shared__ unsigned long long part[32];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll 1
    for (int n = 1; n < 32; n *= 2) {
        const unsigned long long from = __shfl_up_sync(ALL_LANES, v, n);
        if (lane >= n) v += from;
    }
    __syncthreads();  // all have read the last call's sums
    if (lane == 31) part[warp] = v;
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < warp; w++) v += part[w];
    return v;
}

#endif
