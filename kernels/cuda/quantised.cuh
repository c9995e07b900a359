/* Weights of 8 and 4 bits (kernels/quantised.h) in registers, and as rows of floatX.
 *
 * They are read in pieces of 16 bytes: half a group of q8 or a whole group of q4. An element is widened by two
 * instructions: a byte is put into the mantissa of a float v = M + byte, and the weight is scale * v + offset, where
 * offset holds what v has too much.
 *
 *   q8   byte = q + 128,  M = 2^15    offset = -(2^15 + 128) * scale, which needs 17 bits: the weight is exact
 *   q4   byte = q,        M = 128     offset = minimum - 128 * scale, rounded once: 2^-17 of a scale */
#ifndef KERNELS_CUDA_QUANTISED_CUH
#define KERNELS_CUDA_QUANTISED_CUH

#include "common.cuh"
#include "../quantised.h"

/* Elements of a piece. */
template <Dtype T> static constexpr int PIECE = T == DT_I8 ? QUANT_GROUP / 2 : QUANT_GROUP;

template <Dtype T> static inline int pieces_of_row(int cols) {
    return (int)quant_groups((size_t)cols) * (QUANT_GROUP / PIECE<T>);
}

/* A piece as it lies in memory. scale holds the bits of the scale in its lower and of the minimum in its upper half. */
struct QuantPiece {
    uint4 q;
    unsigned scale;
};

/* Piece `at` of row `row` of a weight whose rows have `pieces` pieces. */
template <Dtype T>
static __device__ __forceinline__ QuantPiece load_piece(const void *q, const bf16 *scales, size_t row, int pieces,
                                                        int at) {
    QuantPiece p;
    p.q = ((const uint4 *)q)[row * pieces + at];
    if constexpr (T == DT_I8)
        p.scale = scales[(row * pieces + at) / 2].bits;
    else
        p.scale = ((const unsigned *)(const void *)scales)[row * pieces + at];
    return p;
}

/* Elements 4m .. 4m + 3 of a piece. */
template <Dtype T> static __device__ __forceinline__ Floats<4> widen_four(const QuantPiece &p, int m) {
    const float scale = __uint_as_float(p.scale << 16);
    const unsigned words[4] = {p.q.x, p.q.y, p.q.z, p.q.w};
    Floats<4> w;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        if constexpr (T == DT_I8) {
            const unsigned v = __byte_perm(words[m % 4] ^ 0x80808080u, 0x47000000u, 0x7504u | i << 4);
            w.x[i] = fmaf(__uint_as_float(v), scale, -32896.0f * scale);
        } else {
            const float minimum = __uint_as_float(p.scale & 0xffff0000u);
            const unsigned v = __byte_perm(words[m % 4] >> m / 4 * 4 & 0x0f0f0f0fu, 0x43000000u, 0x7044u | i << 8);
            w.x[i] = fmaf(__uint_as_float(v), scale, minimum - 128.0f * scale);
        }
    }
    return w;
}

/* Elements 8m .. 8m + 7 of a piece. */
template <Dtype T> static __device__ __forceinline__ Floats<8> widen_eight(const QuantPiece &p, int m) {
    const Floats<4> low = widen_four<T>(p, 2 * m), high = widen_four<T>(p, 2 * m + 1);
    return {{low.x[0], low.x[1], low.x[2], low.x[3], high.x[0], high.x[1], high.x[2], high.x[3]}};
}

/* ---- rows of floatX ---- */

/* row[at .. at + 7] = v, less what is past the end of the row. */
template <int WIDTH>
static __device__ __forceinline__ void store_eight(floatX *row, int at, int end, const Floats<8> &v) {
#pragma unroll
    for (int i = 0; i < 8; i += WIDTH) {
        Floats<WIDTH> part;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) part.x[k] = v.x[i + k];
        if (at + i < end) store<WIDTH>(row + at + i, part);
    }
}

/* out [gridDim.x, cols]: out[r, :] = w[r, :], or w[ids[r], :] with ids, or nothing where ids[r] < 0; a block for each
 * row. Reads the rows' elements and scales once and writes cols elements each. */
template <Dtype T, int WIDTH>
static __global__ void widen_rows_kernel(floatX *out, Weight w, const int *ids, int pieces) {
    const int r = (int)blockIdx.x, row = ids ? ids[r] : r;
    if (row < 0) return;
    for (int at = (int)threadIdx.x; at < pieces; at += (int)blockDim.x) {
        const QuantPiece p = load_piece<T>(w.data, w.scales, (size_t)row, pieces, at);
#pragma unroll
        for (int m = 0; m < PIECE<T> / 8; m++)
            store_eight<WIDTH>(out + (size_t)r * w.cols, at * PIECE<T> + 8 * m, w.cols, widen_eight<T>(p, m));
    }
}

template <Dtype T> static void widen_rows_of(floatX *out, Weight w, const int *ids, size_t rows) {
    const int pieces = pieces_of_row<T>(w.cols);
    if (vectors_fit((size_t)w.cols, VECTOR, out))
        LAUNCH((widen_rows_kernel<T, VECTOR>), (unsigned)rows, cuda_row_threads((size_t)pieces), 0, out, w, ids,
               pieces);
    else
        LAUNCH((widen_rows_kernel<T, 1>), (unsigned)rows, cuda_row_threads((size_t)pieces), 0, out, w, ids, pieces);
}

/* out [rows, w.cols] = the first rows of a quantised weight, or those with these ids, where they are not negative. */
static void widen_rows(floatX *out, Weight w, const int *ids, size_t rows) {
    if (rows == 0) return;
    if (w.dtype == DT_I8)
        widen_rows_of<DT_I8>(out, w, ids, rows);
    else
        widen_rows_of<DT_U8>(out, w, ids, rows);
}

#endif
