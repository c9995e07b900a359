/* The portable microkernel (microkernel.h): fp32 operands; a block of rows times two vectors of columns stays in
 * registers. */
#ifndef KERNELS_CPU_MICROKERNEL_FP32_H
#define KERNELS_CPU_MICROKERNEL_FP32_H

typedef float element;
enum { M_STEP = 1, N_STEP = LANES, K_STEP = 1 };

/* B in blocks of LANES columns, one block after the other: B(k, n) is data[(n / LANES * K + k) * LANES + n %
 * LANES]. */
typedef struct {
    element *data;
    size_t K, N;
} PackedB;

static inline void microkernel_begin(void) {}
static inline void microkernel_end(void) {}

static inline void element_store(element *p, vf v) { vf_store(p, v); }

/* Stores B(k, n ..) and B(k + 1, n ..) for one vector of columns; k is even. */
static inline void packed_b_store_rows(const PackedB *b, size_t k, size_t n, vf even, vf odd) {
    float *p = b->data + n * b->K + k * LANES;
    vf_store(p, even);
    if (k + 1 < b->K) vf_store(p + LANES, odd);
}

static void pack_a_from_rows(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M, size_t K) {
    for (size_t m = 0; m < M; m++)
        FOR_LANES (k, n, 0, K) vf_store_n(a + m * lda + k, matrix_load(x, (row0 + m) * x->ld + col0 + k, n), n);
}

/* dst[c * ld + r] = x[row0 + r][col0 + c] */
static void transpose_into(float *dst, size_t ld, const Matrix *x, size_t row0, size_t col0, size_t rows,
                           size_t cols) {
    for (size_t r = 0; r < rows; r += LANES)
        FOR_LANES (c, n, 0, cols) {
            vf block[LANES];
            for (size_t i = 0; i < LANES; i++) {
                block[i] = vf_zero();
                if (r + i < rows) block[i] = matrix_load(x, (row0 + r + i) * x->ld + col0 + c, n);
            }
            transpose_lanes(block);
            for (size_t i = 0; i < n; i++) vf_store_n(dst + (c + i) * ld + r, block[i], min_size(LANES, rows - r));
        }
}

static void pack_a_from_columns(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M,
                                size_t K) {
    transpose_into(a, lda, x, row0, col0, K, M);
}

static void pack_b_from_rows(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    for (size_t k = 0; k < K; k++)
        FOR_LANES (n, m, 0, N)
            vf_store(b->data + n * b->K + k * LANES, matrix_load(x, (row0 + k) * x->ld + col0 + n, m));
}

static void pack_b_from_columns(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    for (size_t n = 0; n < N; n += LANES) {
        size_t columns = min_size(LANES, N - n);
        if (columns < LANES) memset(b->data + n * b->K, 0, b->K * LANES * sizeof(element));
        transpose_into(b->data + n * b->K, LANES, x, row0 + n, col0, columns, K);
    }
}

/* `rows` rows times `vectors` vectors of columns; `next` elements lie between B's column blocks. */
ALWAYS_INLINE void microkernel_block(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t next,
                                     size_t K, bool accumulate, const int rows, const int vectors) {
    vf sum[8][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = accumulate ? vf_load(c + i * ldc + v * LANES) : vf_zero();
    for (size_t k = 0; k < K; k++) {
        vf column[2];
        for (int v = 0; v < vectors; v++) column[v] = vf_load(b + v * next + k * LANES);
        for (int i = 0; i < rows; i++) {
            vf x = vf_set(a[i * lda + k]);
            for (int v = 0; v < vectors; v++) sum[i][v] += x * column[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) vf_store(c + i * ldc + v * LANES, sum[i][v]);
}

/* C [M, N] = A B, or += when accumulate, for A [M, K] and B's rows k0.. and columns n0.. */
static void microkernel_matmul(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b, size_t k0,
                               size_t n0, size_t M, size_t N, size_t K, bool accumulate) {
    enum { ROWS = LANES == 16 ? 8 : 4 };  // the accumulators leave registers for the operands
    for (size_t n = 0; n < N; n += 2 * LANES) {
        const float *column = b->data + (n0 + n) * b->K + k0 * LANES;
        size_t m = 0;
#define BLOCKS(rows)                                                                                                 \
    for (; m + rows <= M; m += rows) {                                                                               \
        if (N - n > LANES)                                                                                           \
            microkernel_block(c + m * ldc + n, ldc, a + m * lda, lda, column, b->K * LANES, K, accumulate, rows, 2); \
        else                                                                                                         \
            microkernel_block(c + m * ldc + n, ldc, a + m * lda, lda, column, b->K * LANES, K, accumulate, rows, 1); \
    }
        BLOCKS(ROWS)
        BLOCKS(2)
        BLOCKS(1)
#undef BLOCKS
    }
}

#endif
