/* Matmuls with up to four rows (decoding): y = x W^T, bound by the reading of the weight.
 *
 * Each weight is read once, 16 bytes at a time, and used for all rows: 2 N K bytes in bf16. The rows of x come from
 * the first-level cache, which the warps of a multiprocessor share. An output channel is computed by one warp, or by
 * all four warps of a block where there are few channels, so that the GPU has enough loads in flight. */
#ifndef KERNELS_CUDA_GEMV_CUH
#define KERNELS_CUDA_GEMV_CUH

#include "epilogue.cuh"

enum { GEMV_ROWS = 4, GEMV_THREADS = 128, GEMV_WARPS = GEMV_THREADS / 32, GEMV_LOADS = 4 };

/* `warps` warps compute an output channel. */
template <typename W, int ROWS, int WIDTH>
static __global__ void __launch_bounds__(GEMV_THREADS) gemv_kernel(Matmul p, int warps) {
    __shared__ float parts[GEMV_WARPS][ROWS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, part = warp % warps;
    const int channel = (int)blockIdx.x * (GEMV_WARPS / warps) + warp / warps, step = 32 * warps * WIDTH;
    const W *weight = (const W *)p.b + (size_t)min(channel, p.N - 1) * p.K;
    float sum[ROWS] = {};
    let_next_begin();
    for (int k0 = (part * 32 + lane) * WIDTH; k0 < p.K; k0 += GEMV_LOADS * step) {
        Floats<WIDTH> w[GEMV_LOADS];
#pragma unroll
        for (int u = 0; u < GEMV_LOADS; u++) {
            w[u] = {};
            if (k0 + u * step < p.K) w[u] = load<WIDTH>(weight + k0 + u * step);
        }
        wait_for_previous();
#pragma unroll
        for (int u = 0; u < GEMV_LOADS; u++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (k0 + u * step >= p.K) continue;
                const Floats<WIDTH> x = load<WIDTH>(p.a + (size_t)r * p.K + k0 + u * step);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sum[r] = fmaf(x.x[i], w[u].x[i], sum[r]);
            }
    }
    wait_for_previous();  // every thread calls it, also one that had nothing to read
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        sum[r] = warp_sum(sum[r]);
        if (lane == 0) parts[warp][r] = sum[r];
    }
    __syncthreads();
    if (part == 0 && lane < ROWS && channel < p.N) {
        float total = 0.0f;
        for (int w = 0; w < warps; w++) total += parts[warp + w][lane];
        store_element(p, lane, channel, total);
    }
}

template <typename W, int WIDTH> static void gemv_launch(const Matmul &p) {
    const int warps = p.N <= 8192 ? GEMV_WARPS : 1;
    const unsigned grid = cuda_blocks((size_t)p.N, (size_t)(GEMV_WARPS / warps));
    if (p.M == 1) LAUNCH_EARLY((gemv_kernel<W, 1, WIDTH>), grid, GEMV_THREADS, 0, p, warps);
    if (p.M == 2) LAUNCH_EARLY((gemv_kernel<W, 2, WIDTH>), grid, GEMV_THREADS, 0, p, warps);
    if (p.M == 3) LAUNCH_EARLY((gemv_kernel<W, 3, WIDTH>), grid, GEMV_THREADS, 0, p, warps);
    if (p.M == 4) LAUNCH_EARLY((gemv_kernel<W, 4, WIDTH>), grid, GEMV_THREADS, 0, p, warps);
}

static void gemv(const Matmul &p) {
    if (p.b_type == DT_FLOATX && vectors_fit((size_t)p.K, VECTOR, p.a, (const floatX *)p.b))
        gemv_launch<floatX, VECTOR>(p);
    else if (p.b_type == DT_BF16)
        gemv_launch<bf16, 1>(p);
    else
        gemv_launch<float, 1>(p);
}

#endif
