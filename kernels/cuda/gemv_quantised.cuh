/* Matmuls with up to eight rows and a weight of 8 or 4 bits: y = x W^T, bound by the reading of the weight, which is
 * read once: 1.06 or 0.63 bytes an element.
 *
 * A lane reads a piece of 16 bytes of each of four output channels (two, with more than two rows), widens it in
 * registers, and multiplies it with the same elements of every row of x, in fp32. So a row of x is read from the
 * first-level cache once for these channels. Up to four warps of a block divide the pieces of their channels among
 * them, where there are few channels. */
#ifndef KERNELS_CUDA_GEMV_QUANTISED_CUH
#define KERNELS_CUDA_GEMV_QUANTISED_CUH

#include "epilogue.cuh"
#include "gemv.cuh"
#include "quantised.cuh"

/* BEST: with more rows its instructions would take longer than the reading of the weight, so that small_m.cuh comes
 * first. ROWS: the most it can do. */
enum { GEMV_QUANTISED_BEST = 2, GEMV_QUANTISED_ROWS = 8 };
enum { GEMV_WARPS_WANTED = 2048 };  // they keep the memory of a GPU busy

/* Output channels that a warp computes at once: as many as the registers allow. */
template <int ROWS> static constexpr int GEMV_CHANNELS = ROWS <= 2 ? 4 : 2;

/* row[at .. at + 7], or zeros past the end of the row. */
template <int WIDTH> static __device__ __forceinline__ Floats<8> load_eight(const floatX *row, int at, int end) {
    Floats<8> v;
#pragma unroll
    for (int i = 0; i < 8; i += WIDTH) {
        Floats<WIDTH> part = {};
        if (at + i < end) part = load<WIDTH>(row + at + i);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v.x[i + k] = part.x[k];
    }
    return v;
}

/* sum += the products of one piece of each channel and the same elements of the rows of x, from element `first` on.
 * Rows past the last are the last one's. */
template <Dtype T, int ROWS, int WIDTH>
static __device__ __forceinline__ void multiply_pieces(float (&sum)[ROWS][GEMV_CHANNELS<ROWS>],
                                                       const QuantPiece (&piece)[GEMV_CHANNELS<ROWS>],
                                                       const Matmul &p, int first) {
#pragma unroll
    for (int m = 0; m < PIECE<T> / 8; m++) {
        Floats<8> w[GEMV_CHANNELS<ROWS>];
#pragma unroll
        for (int c = 0; c < GEMV_CHANNELS<ROWS>; c++) w[c] = widen_eight<T>(piece[c], m);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const floatX *row = p.a + (unsigned)(min(r, p.M - 1) * p.K);
            /* opaque: fewer addresses are held in registers */
            const Floats<8> x = load_eight<WIDTH>(row, opaque(first + 8 * m), p.K);
#pragma unroll
            for (int c = 0; c < GEMV_CHANNELS<ROWS>; c++)
#pragma unroll
                for (int i = 0; i < 8; i++) sum[r][c] = fmaf(x.x[i], w[c].x[i], sum[r][c]);
        }
    }
}

/* `warps` warps compute GEMV_CHANNELS<ROWS> output channels. */
template <Dtype T, int ROWS, int WIDTH>
static __global__ void __launch_bounds__(GEMV_THREADS) gemv_quantised_kernel(Matmul p, int warps, int pieces) {
    __shared__ float parts[GEMV_WARPS][ROWS * GEMV_CHANNELS<ROWS>];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, part = warp % warps;
    const int first = ((int)blockIdx.x * (GEMV_WARPS / warps) + warp / warps) * GEMV_CHANNELS<ROWS>;
    float sum[ROWS][GEMV_CHANNELS<ROWS>] = {};
    let_next_begin();
    for (int at = part * 32 + lane; at < pieces; at += 32 * warps) {
        QuantPiece piece[GEMV_CHANNELS<ROWS>];
#pragma unroll
        for (int c = 0; c < GEMV_CHANNELS<ROWS>; c++)
            piece[c] = load_piece<T>(p.b, p.scales, (size_t)min(first + c, p.N - 1), pieces, at);
        wait_for_previous();
        multiply_pieces<T, ROWS, WIDTH>(sum, piece, p, at * PIECE<T>);
    }
    wait_for_previous();  // every thread calls it, also one that had nothing to read
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < GEMV_CHANNELS<ROWS>; c++) {
            const float total = warp_sum(sum[r][c]);
            if (lane == 0) parts[warp][r * GEMV_CHANNELS<ROWS> + c] = total;
        }
    __syncthreads();
    const int r = lane / GEMV_CHANNELS<ROWS>, channel = first + lane % GEMV_CHANNELS<ROWS>;
    if (part == 0 && r < min(ROWS, p.M) && channel < p.N) {
        float total = 0.0f;
        for (int w = 0; w < warps; w++) total += parts[warp + w][lane];
        store_element(p, (size_t)r, (size_t)channel, total);
    }
}

template <Dtype T, int ROWS, int WIDTH> static void gemv_quantised_rows(const Matmul &p) {
    const int pieces = pieces_of_row<T>(p.K), sets = (int)cuda_div_up((size_t)p.N, GEMV_CHANNELS<ROWS>);
    int warps = 1;
    while (warps < GEMV_WARPS && pieces > 32 * warps && sets * warps < GEMV_WARPS_WANTED) warps *= 2;
    LAUNCH_EARLY((gemv_quantised_kernel<T, ROWS, WIDTH>), cuda_blocks((size_t)sets, (size_t)(GEMV_WARPS / warps)),
                 GEMV_THREADS, 0, p, warps, pieces);
}

template <Dtype T, int WIDTH> static void gemv_quantised_launch(const Matmul &p) {
    if (p.M == 1)
        gemv_quantised_rows<T, 1, WIDTH>(p);
    else if (p.M == 2)
        gemv_quantised_rows<T, 2, WIDTH>(p);
    else
        gemv_quantised_rows<T, GEMV_QUANTISED_ROWS, WIDTH>(p);
}

static void gemv_quantised(const Matmul &p) {
    const bool vectors = vectors_fit((size_t)p.K, VECTOR, p.a);
    if (p.b_type == DT_I8)
        vectors ? gemv_quantised_launch<DT_I8, VECTOR>(p) : gemv_quantised_launch<DT_I8, 1>(p);
    else
        vectors ? gemv_quantised_launch<DT_U8, VECTOR>(p) : gemv_quantised_launch<DT_U8, 1>(p);
}

#endif
