/* Our own matmul, for what cuBLASLt does not take (weights of another type than floatX, rows that are not a multiple
 * of 16 bytes) and for what is too small to matter. fp32 arithmetic from shared memory.
 *
 * A block of 256 threads computes a tile of 64 x 64, of which a thread computes 4 x 4, from slices in shared memory
 * that are 16 deep. */
#ifndef KERNELS_CUDA_MATMUL_CUH
#define KERNELS_CUDA_MATMUL_CUH

#include "epilogue.cuh"

enum { TILE = 64, TILE_K = 16, TILE_THREADS = 256, TILE_LD = TILE + 4 };

/* tile [TILE_K, TILE] = rows k0.. and columns n0.. of a matrix that is stored as [K, N], or as [N, K] if TRANSPOSED;
 * zero outside. Neighbouring threads read neighbouring elements. */
template <bool TRANSPOSED, typename T>
static __device__ __forceinline__ void load_slice(float (*tile)[TILE_LD], const T *x, int K, int N, int k0, int n0) {
    for (int i = (int)threadIdx.x; i < TILE * TILE_K; i += TILE_THREADS) {
        const int k = TRANSPOSED ? i % TILE_K : i / TILE, n = TRANSPOSED ? i / TILE_K : i % TILE;
        const bool inside = k0 + k < K && n0 + n < N;
        const size_t at = TRANSPOSED ? (size_t)(n0 + n) * K + (k0 + k) : (size_t)(k0 + k) * N + (n0 + n);
        tile[k][n] = inside ? to_float(x[at]) : 0.0f;
    }
}

/* Grid: (tiles of M, tiles of N). Four blocks at once leave 64 registers to a thread, so that none is spilled. */
template <typename B, bool A_TRANSPOSED, bool B_TRANSPOSED>
static __global__ void __launch_bounds__(TILE_THREADS, 4) matmul_kernel(Matmul p) {
    __shared__ __align__(16) float tile_a[TILE_K][TILE_LD], tile_b[TILE_K][TILE_LD];
    const int m0 = (int)blockIdx.x * TILE, n0 = (int)blockIdx.y * TILE;
    const int y = (int)threadIdx.x / 16 * 4, x = (int)threadIdx.x % 16 * 4;
    float c[4][4] = {};
    for (int k0 = 0; k0 < p.K; k0 += TILE_K) {
        load_slice<!A_TRANSPOSED>(tile_a, p.a, p.K, p.M, k0, m0);
        load_slice<B_TRANSPOSED>(tile_b, (const B *)p.b, p.K, p.N, k0, n0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE_K; k++) {
            const Floats<4> a = load<4>(&tile_a[k][y]), b = load<4>(&tile_b[k][x]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) c[i][j] = fmaf(a.x[i], b.x[j], c[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (m0 + y + i < p.M && n0 + x + j < p.N) store_element(p, m0 + y + i, n0 + x + j, c[i][j]);
}

template <typename B> static void matmul_tiles(const Matmul &p) {
    dim3 grid(cuda_blocks((size_t)p.M, TILE), cuda_blocks((size_t)p.N, TILE));
    if (p.a_transposed)
        LAUNCH((matmul_kernel<B, true, false>), grid, TILE_THREADS, 0, p);
    else if (p.b_transposed)
        LAUNCH((matmul_kernel<B, false, true>), grid, TILE_THREADS, 0, p);
    else
        LAUNCH((matmul_kernel<B, false, false>), grid, TILE_THREADS, 0, p);
}

#endif
