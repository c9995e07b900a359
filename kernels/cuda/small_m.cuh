/* Matmuls with up to 32 rows in bf16 (several sequences decoded together): y = x W^T on the tensor cores, bound by the
 * reading of the weight, like the matmul with one row: 2 N K bytes in bf16, 1.06 N K in q8, 0.63 N K in q4, which are
 * rounded to bf16 in registers.
 *
 * The weight is the A operand of mma, so output channels fill the 16 rows of a fragment and rows of x its 8 columns:
 * y^T = W x^T. It does not matter to which k of the sum an element of a fragment belongs, as long as both operands
 * agree. So a lane reads 16 bytes of its channels, which are 8 neighbouring k (16 in q8, 32 in q4), and the same k of
 * its rows. Each 8 of them are the fragments of two mma instructions, and nothing passes through shared memory on the
 * way in. The warps of a block take turns along K, and their sums are added at the end, in order. A block computes RT
 * tiles of 8 rows and CT tiles of 16 channels. It reads all of x, from the second-level cache; RT and CT are chosen
 * so that this is no more than it reads of the weight. */
#ifndef KERNELS_CUDA_SMALL_M_CUH
#define KERNELS_CUDA_SMALL_M_CUH

#include "epilogue.cuh"
#include "mma.cuh"
#include "quantised.cuh"

enum { SMALL_M_ROWS = 32, SMALL_M_THREADS = 256, SMALL_M_WARPS = SMALL_M_THREADS / 32 };

/* 8 neighbouring elements, or zeros. */
static __device__ __forceinline__ uint4 small_m_load(const bf16 *p, bool inside) {
    return inside ? *(const uint4 *)(const void *)p : make_uint4(0, 0, 0, 0);
}

/* Elements of W in 16 bytes. */
template <Dtype W> static constexpr int SMALL_M_PIECE = W == DT_BF16 ? 8 : PIECE<W>;

/* Piece `at` of a channel, or zeros past the end. */
template <Dtype W>
static __device__ __forceinline__ QuantPiece small_m_piece(const Matmul &p, int channel, int pieces, int at) {
    if (at >= pieces) return {make_uint4(0, 0, 0, 0), 0};
    if constexpr (W == DT_BF16)
        return {((const uint4 *)p.b)[(size_t)channel * pieces + at], 0};
    else
        return load_piece<W>(p.b, p.scales, (size_t)channel, pieces, at);
}

/* Elements 8m .. 8m + 7 of a piece, in bf16. */
template <Dtype W> static __device__ __forceinline__ uint4 small_m_eight(const QuantPiece &piece, int m) {
    if constexpr (W == DT_BF16) {
        return piece.q;
    } else {
        const Floats<8> v = widen_eight<W>(piece, m);
        unsigned w[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[i] = from_float<bf16>(v.x[2 * i]).bits | (unsigned)from_float<bf16>(v.x[2 * i + 1]).bits << 16;
        return make_uint4(w[0], w[1], w[2], w[3]);
    }
}

/* LOADS steps of 4 pieces along K, from piece `first` on. All reads of the weight come first, so that many are in
 * flight. */
template <Dtype W, int RT, int CT, int LOADS>
static __device__ __forceinline__ void small_m_steps(float (&sum)[RT][CT][4], const Matmul &p, int n0, int pieces,
                                                     int first) {
    const int lane = (int)threadIdx.x % 32, g = lane / 4;
    const bf16 *x = (const bf16 *)(const void *)p.a;
    QuantPiece w[LOADS][CT][2];
#pragma unroll
    for (int u = 0; u < LOADS; u++)
#pragma unroll
        for (int c = 0; c < 2 * CT; c++)
            w[u][c / 2][c % 2] =
                small_m_piece<W>(p, min(n0 + c * 8 + g, p.N - 1), pieces, first + u * SMALL_M_WARPS * 4 + lane % 4);
    wait_for_previous();
#pragma unroll
    for (int u = 0; u < LOADS; u++)
#pragma unroll
        for (int m = 0; m < SMALL_M_PIECE<W> / 8; m++) {
            const int at = (first + u * SMALL_M_WARPS * 4 + lane % 4) * SMALL_M_PIECE<W> + 8 * m;
            uint4 top[CT], low[CT];
#pragma unroll
            for (int c = 0; c < CT; c++)
                top[c] = small_m_eight<W>(w[u][c][0], m), low[c] = small_m_eight<W>(w[u][c][1], m);
#pragma unroll
            for (int r = 0; r < RT; r++) {
                const uint4 v = small_m_load(x + (size_t)(r * 8 + g) * p.K + at, at < p.K && r * 8 + g < p.M);
                const unsigned b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
                for (int c = 0; c < CT; c++) {
                    const unsigned a[2][4] = {{top[c].x, low[c].x, top[c].y, low[c].y},
                                              {top[c].z, low[c].z, top[c].w, low[c].w}};
                    mma_16x8x16(sum[r][c], a[0], b[0], sum[r][c]);
                    mma_16x8x16(sum[r][c], a[1], b[1], sum[r][c]);
                }
            }
        }
}

/* Grid: N / (16 CT) blocks. */
template <Dtype W, int RT, int CT>
static __global__ void __launch_bounds__(SMALL_M_THREADS) small_m_kernel(Matmul p, int pieces) {
    __shared__ float parts[SMALL_M_WARPS][8 * RT][16 * CT + 1];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, n0 = (int)blockIdx.x * 16 * CT;
    constexpr int LOADS = 4 / CT;
    float sum[RT][CT][4] = {};
    let_next_begin();
    for (int first = warp * 4; first < pieces; first += LOADS * SMALL_M_WARPS * 4)
        small_m_steps<W, RT, CT, LOADS>(sum, p, n0, pieces, first);
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

template <Dtype W> static void small_m_launch(const Matmul &p, int pieces) {
    if (p.M <= 8)
        LAUNCH_EARLY((small_m_kernel<W, 1, 1>), cuda_blocks((size_t)p.N, 16), SMALL_M_THREADS, 0, p, pieces);
    else if (p.M <= 16)
        LAUNCH_EARLY((small_m_kernel<W, 2, 1>), cuda_blocks((size_t)p.N, 16), SMALL_M_THREADS, 0, p, pieces);
    else
        LAUNCH_EARLY((small_m_kernel<W, 4, 2>), cuda_blocks((size_t)p.N, 32), SMALL_M_THREADS, 0, p, pieces);
}

/* Returns false, having done nothing, for shapes and types that it is not for. */
static bool small_m(const Matmul &p) {
    const bool fits = sizeof(floatX) == sizeof(bf16) && p.b_type != DT_F32 && p.b_transposed && !p.a_transposed &&
                      p.M <= SMALL_M_ROWS && p.K > 0 && p.N > 0 &&
                      vectors_fit((size_t)p.K, 8, p.a, (const char *)p.b);
    if (!fits) return false;
    if (p.b_type == DT_I8)
        small_m_launch<DT_I8>(p, pieces_of_row<DT_I8>(p.K));
    else if (p.b_type == DT_U8)
        small_m_launch<DT_U8>(p, pieces_of_row<DT_U8>(p.K));
    else
        small_m_launch<DT_BF16>(p, p.K / 8);
    return true;
}

#endif
