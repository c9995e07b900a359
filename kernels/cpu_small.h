/* A register-blocked fp32 product for operands that are in cache: the portable engine under the products and the
 * attention. */
#ifndef KERNELS_CPU_SMALL_H
#define KERNELS_CPU_SMALL_H

#include "cpu_vector.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Rows of a register block: with two vectors of columns the accumulators leave room for the operands. */
enum { BLOCK_ROWS = LANES == 16 ? 8 : 4 };

ALWAYS_INLINE void small_block(float *c, size_t ldc, const float *a, size_t a_row, size_t a_col, const float *b,
                               size_t ldb, size_t K, bool accumulate, const int rows, const int vectors) {
    vf sum[8][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = accumulate ? vf_load(c + i * ldc + v * LANES) : vf_zero();
    for (size_t k = 0; k < K; k++) {
        vf column[2];
        for (int v = 0; v < vectors; v++) column[v] = vf_load(b + k * ldb + v * LANES);
        for (int i = 0; i < rows; i++) {
            vf x = vf_set(a[i * a_row + k * a_col]);
            for (int v = 0; v < vectors; v++) sum[i][v] += x * column[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) vf_store(c + i * ldc + v * LANES, sum[i][v]);
}

/* C [M, N] = A B, or += : C rows ldc apart; A's element (m, k) at a[m * a_row + k * a_col], so that a transposed A
 * costs nothing; B [K, N] rows ldb apart. N is a multiple of LANES: rows of B and C are padded to it. */
static void small_product(float *c, size_t ldc, const float *a, size_t a_row, size_t a_col, const float *b, size_t ldb,
                          size_t M, size_t N, size_t K, bool accumulate) {
    for (size_t n = 0; n < N; n += 2 * LANES) {
        bool pair = N - n >= 2 * LANES;
        size_t m = 0;
#define BLOCKS(rows)                                                                                                   \
    for (; m + rows <= M; m += rows) {                                                                                 \
        if (pair)                                                                                                      \
            small_block(c + m * ldc + n, ldc, a + m * a_row, a_row, a_col, b + n, ldb, K, accumulate, rows, 2);        \
        else                                                                                                           \
            small_block(c + m * ldc + n, ldc, a + m * a_row, a_row, a_col, b + n, ldb, K, accumulate, rows, 1);        \
    }
        BLOCKS(BLOCK_ROWS)
        BLOCKS(2)
        BLOCKS(1)
#undef BLOCKS
    }
}

#endif
