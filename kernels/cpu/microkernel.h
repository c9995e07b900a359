/* Products of operands that are in cache, C = A B with fp32 accumulation: the engine under the weights' products and
 * the attention. One interface, two implementations chosen at compile time:
 *
 *   cpu/microkernel_amx.h   bf16 operands, the matrix unit of Intel's AMX (bf16 builds on processors that have it)
 *   cpu/microkernel_fp32.h  fp32 operands, register blocks of vectors (everywhere else)
 *
 * Operands are arrays of `unit` (bf16 or float), padded with zeros to whole steps:
 *   left   A [M, K]: row-major, rows lda apart, M padded to M_STEP, K to K_STEP
 *   right  B [K, N]: packed in an order of the engine's own, described by Right, N padded to N_STEP
 *   C      fp32, row-major, padded like A's rows and B's columns
 * A stored matrix can be read in both roles and both directions:
 *   left_from_rows      A(m, k) = x[row0 + m][col0 + k]      right_from_rows     B(k, n) = x[row0 + k][col0 + n]
 *   left_from_columns   A(m, k) = x[row0 + k][col0 + m]      right_from_columns  B(k, n) = x[row0 + n][col0 + k] */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include "vector.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A stored matrix, rows ld elements apart; dtype is DT_F32 or DT_BF16. */
typedef struct {
    const void *data;
    Dtype dtype;
    size_t ld;
} Matrix;

static inline vf matrix_load(const Matrix *x, size_t index, size_t n) {
    return x->dtype == DT_F32 ? vf_load_n((const float *)x->data + index, n)
                              : bf16_load_n((const bf16 *)x->data + index, n);
}

static inline size_t round_up(size_t n, size_t step) { return div_up(n, step) * step; }

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(VECTOR_512) && \
    defined(__linux__) && !defined(PRECISION_FP32)
#define TILE_AMX
#include "microkernel_amx.h"
#else
#include "microkernel_fp32.h"
#endif

static inline size_t right_units(size_t K, size_t N) { return round_up(K, K_STEP) * round_up(N, N_STEP); }

static inline Right right_at(unit *data, size_t K, size_t N) {
    Right b = {data, round_up(K, K_STEP), round_up(N, N_STEP)};
    return b;
}

#endif
