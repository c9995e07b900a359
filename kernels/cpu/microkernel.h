/* The microkernel: matmuls of operands that are in cache, C = A B, with fp32 accumulation. Linear layers (linear.h)
 * and attention (attention.h) are built on it. One interface has two implementations, chosen at compile time by the
 * set of instructions:
 *
 *   cpu/microkernel_amx.h     bf16 operands in the tiles of Intel's AMX
 *   cpu/microkernel_vector.h  operands in vectors: fp32, to which bf16 is widened while it is packed, or pairs of
 *                             bf16 where AVX512-BF16 multiplies them
 *
 * Operands are packed into arrays of `element` (bf16 or float), padded with zeros to whole steps:
 *   A [M, K]   row-major, rows lda apart, M padded to M_STEP, K to K_STEP; or, where it is packed from columns, in an
 *              order of the implementation's own: packed_columns_size elements, of which lda >= K counts the depth
 *   B [K, N]   in an order of the implementation's own, described by PackedB; N padded to N_STEP
 *   C          fp32, row-major, padded like A's rows and B's columns
 * A stored matrix x can be packed as either operand, as it is or transposed:
 *   pack_a_from_rows      A(m, k) = x[row0 + m][col0 + k]      pack_b_from_rows      B(k, n) = x[row0 + k][col0 + n]
 *   pack_a_from_columns   A(m, k) = x[row0 + k][col0 + m]      pack_b_from_columns   B(k, n) = x[row0 + n][col0 + k]
 * microkernel_matmul takes an A from rows, microkernel_matmul_columns one from columns.
 */
#ifndef KERNELS_CPU_MICROKERNEL_H
#define KERNELS_CPU_MICROKERNEL_H

#include "vector.h"

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

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(VECTOR_512) && \
    !defined(PRECISION_FP32)
#define MICROKERNEL_AMX
#include "microkernel_amx.h"
#else
#include "microkernel_vector.h"
#endif

/* Elements of a packed B [K, N]. */
static inline size_t packed_b_size(size_t K, size_t N) { return round_up(K, K_STEP) * round_up(N, N_STEP); }

/* Describes a packed B [K, N] at `data`, which may still be empty. */
static inline PackedB packed_b_at(element *data, size_t K, size_t N) {
    PackedB b = {data, round_up(K, K_STEP), round_up(N, N_STEP)};
    return b;
}

#endif
