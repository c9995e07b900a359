/* Matmuls with 5 to 32 rows in bf16 (several sequences decoded together): y = x W^T on the tensor cores, bound by the
 * reading of the weight, 2 N K bytes, like the matmul with one row.
 *
 * The weight is the A operand of mma, so output channels fill the 16 rows of a fragment and rows of x its 8 columns:
 * y^T = W x^T. It does not matter to which k of the sum an element of a fragment belongs, as long as both operands
 * agree. So a lane reads 8 neighbouring k of its channels and of its rows, 16 bytes each, straight into the fragments
 * of two mma instructions, and nothing passes through shared memory on the way in. The warps of a block take turns
 * along K, and their sums are added at the end, in order. A block computes RT tiles of 8 rows and CT tiles of 16
 * channels. It reads all of x, from the second-level cache; RT and CT are chosen so that this is no more than it
 * reads of the weight. */
#ifndef KERNELS_CUDA_SMALL_M_CUH
#define KERNELS_CUDA_SMALL_M_CUH

#include "epilogue.cuh"
#include "mma.cuh"

enum { SMALL_M_ROWS = 32, SMALL_M_THREADS = 256, SMALL_M_WARPS = SMALL_M_THREADS / 32, SMALL_M_K = 32 };

/* 8 neighbouring elements, or zeros. */
static __device__ __forceinline__ uint4 small_m_load(const bf16 *p, bool inside) {
    return inside ? *(const uint4 *)(const void *)p : make_uint4(0, 0, 0, 0);
}

/* LOADS steps of SMALL_M_K along K. All reads of the weight come first, so that many are in flight. */
template <int RT, int CT, int LOADS>
static __device__ __forceinline__ void small_m_steps(float (&sum)[RT][CT][4], const bf16 *x, const bf16 *weight,
                                                     int k0, int rows, int channels, int K) {
    const int lane = (int)threadIdx.x % 32, g = lane / 4, k = k0 + lane % 4 * 8;
    uint4 w[LOADS][CT][2];
#pragma unroll
    for (int u = 0; u < LOADS; u++)
#pragma unroll
        for (int c = 0; c < 2 * CT; c++) {
            const int at = k + u * SMALL_M_WARPS * SMALL_M_K;
            w[u][c / 2][c % 2] = small_m_load(weight + (size_t)min(c * 8 + g, channels - 1) * K + at, at < K);
        }
    wait_for_previous();
#pragma unroll
    for (int u = 0; u < LOADS; u++)
#pragma unroll
        for (int r = 0; r < RT; r++) {
            const int at = k + u * SMALL_M_WARPS * SMALL_M_K;
            const uint4 v = small_m_load(x + (size_t)(r * 8 + g) * K + at, at < K && r * 8 + g < rows);
            const unsigned b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
            for (int c = 0; c < CT; c++) {
                const uint4 top = w[u][c][0], low = w[u][c][1];
                const unsigned a[2][4] = {{top.x, low.x, top.y, low.y}, {top.z, low.z, top.w, low.w}};
                mma_16x8x16(sum[r][c], a[0], b[0], sum[r][c]);
                mma_16x8x16(sum[r][c], a[1], b[1], sum[r][c]);
            }
        }
}

/* Grid: N / (16 CT) blocks. */
template <int RT, int CT> static __global__ void __launch_bounds__(SMALL_M_THREADS) small_m_kernel(Matmul p) {
    __shared__ float parts[SMALL_M_WARPS][8 * RT][16 * CT + 1];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, n0 = (int)blockIdx.x * 16 * CT;
    const bf16 *weight = (const bf16 *)p.b + (size_t)n0 * p.K, *x = (const bf16 *)(const void *)p.a;
    constexpr int LOADS = 4 / CT;
    float sum[RT][CT][4] = {};
    let_next_begin();
    for (int k0 = warp * SMALL_M_K; k0 < p.K; k0 += LOADS * SMALL_M_WARPS * SMALL_M_K)
        small_m_steps<RT, CT, LOADS>(sum, x, weight, k0, p.M, p.N - n0, p.K);
    wait_for_previous();  // every thread calls it, also one that had nothing to read
#pragma unroll
    for (int r = 0; r < RT; r++)
#pragma unroll
        for (int c = 0; c < CT; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                parts[warp][r * 8 + mma_column(lane, i)][c * 16 + mma_row(lane, i)] = sum[r][c][i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 8 * RT * 16 * CT; i += SMALL_M_THREADS) {
        const int m = i / (16 * CT), n = i % (16 * CT);
        float total = 0.0f;
        for (int w = 0; w < SMALL_M_WARPS; w++) total += parts[w][m][n];
        if (m < p.M && n0 + n < p.N) store_element(p, (size_t)m, (size_t)(n0 + n), total);
    }
}

/* Returns false, having done nothing, for shapes and types that it is not for. */
static bool small_m(const Matmul &p) {
    const bool fits = sizeof(floatX) == sizeof(bf16) && p.b_type == DT_BF16 && p.b_transposed && !p.a_transposed &&
                      p.M <= SMALL_M_ROWS && p.K > 0 && p.N > 0 &&
                      vectors_fit((size_t)p.K, 8, p.a, (const floatX *)p.b);
    if (!fits) return false;
    if (p.M <= 8)
        LAUNCH_EARLY((small_m_kernel<1, 1>), cuda_blocks((size_t)p.N, 16), SMALL_M_THREADS, 0, p);
    else if (p.M <= 16)
        LAUNCH_EARLY((small_m_kernel<2, 1>), cuda_blocks((size_t)p.N, 16), SMALL_M_THREADS, 0, p);
    else
        LAUNCH_EARLY((small_m_kernel<4, 2>), cuda_blocks((size_t)p.N, 32), SMALL_M_THREADS, 0, p);
    return true;
}

#endif
