/* The microkernel (microkernel.h) for vectors. Operands are arrays of words of 32 bits: a float, or, where the
 * processor multiplies pairs of bf16 (AVX512-BF16), two neighbours along K. A word of A times a vector of B's words
 * is one instruction; a block of ROWS rows times two vectors of columns stays in registers.
 *
 * The floor is the arithmetic: ROWS * 2 instructions for ROWS words and two vectors loaded. What lies between is the
 * caches: a column block of B, DEPTH_BYTES deep, stays in the first level while ROWS rows after ROWS rows of A pass
 * by; BLOCK_ROWS rows of A, as deep, stay in the second level (Goto & van de Geijn 2008, "Anatomy of High-Performance
 * Matrix Multiplication"). */
#ifndef KERNELS_CPU_MICROKERNEL_VECTOR_H
#define KERNELS_CPU_MICROKERNEL_VECTOR_H

#if !defined(PRECISION_FP32) && (defined(__AVX512BF16__) || defined(PAIRS_EMULATED))
#define MICROKERNEL_PAIRS
typedef bf16 element;
enum { PAIR = 2 };  // elements of a word
#else
typedef float element;
enum { PAIR = 1 };
#endif

#if defined(VECTOR_512) || defined(__aarch64__)
enum { ROWS = 12 };  // of 32 registers 24 are sums
#else
enum { ROWS = 6 };  // of 16 registers 12 are sums
#endif

enum { M_STEP = 1, N_STEP = LANES, K_STEP = PAIR };
enum { A_IN_PLACE = 0, A_PADDING = 16 };  // rows of A a power of two apart would all lie in one set of the cache
enum { COLUMNS_TRANSPOSED = 0 };          // pack_a_from_columns copies, as pack_b_from_rows does
enum { BLOCK_ROWS = 48, DEPTH_BYTES = 16384, DEPTH = DEPTH_BYTES / (2 * LANES * 4) };  // DEPTH: in words

/* B in blocks of LANES columns, one block after the other: the word of B(k, n) is number
 * (n / LANES * (K / PAIR) + k / PAIR) * LANES + n % LANES. */
typedef struct {
    element *data;
    size_t K, N;
} PackedB;

static inline void microkernel_begin(void) {}
static inline void microkernel_end(void) {}

/* ---- packing ---- */

#ifdef MICROKERNEL_PAIRS
static inline void element_store(element *p, vf v) { bf16_store_n(p, v, LANES); }

/* The LANES words of n <= 2 LANES elements that are neighbours in memory; the rest is zero. */
static inline vf words_along(const Matrix *x, size_t index, size_t n) {
    vf words = vf_zero();
    if (x->dtype == DT_BF16) {
        memcpy(&words, (const bf16 *)x->data + index, n == 2 * LANES ? sizeof words : n * sizeof(bf16));
        return words;
    }
    bf16 pairs[2 * LANES];
    bf16_store_n(pairs, matrix_load(x, index, min_size(LANES, n)), LANES);
    bf16_store_n(pairs + LANES, n > LANES ? matrix_load(x, index + LANES, n - LANES) : vf_zero(), LANES);
    memcpy(&words, pairs, sizeof words);
    return words;
}

/* The words of n <= LANES columns, from as many of the two rows at `index` as there are. */
static inline vf words_across(const Matrix *x, size_t index, size_t n, size_t rows) {
    return (vf)bf16_pairs(matrix_load(x, index, n), rows > 1 ? matrix_load(x, index + x->ld, n) : vf_zero());
}

static inline vf word_fma(vf sum, vf a, vf b) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else  // for tests on other processors
    vf high = (vf)((vu)a & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
    return sum + high + (vf)((vu)a << 16) * (vf)((vu)b << 16);
#endif
}
#else
static inline void element_store(element *p, vf v) { vf_store(p, v); }
static inline vf words_along(const Matrix *x, size_t index, size_t n) { return matrix_load(x, index, n); }

static inline vf words_across(const Matrix *x, size_t index, size_t n, size_t rows) {
    (void)rows;
    return matrix_load(x, index, n);
}

static inline vf word_fma(vf sum, vf a, vf b) { return sum + a * b; }
#endif

/* The words of a packed B from B(k, n) on; k is a multiple of PAIR, n of LANES. */
static inline float *packed_b_words(const PackedB *b, size_t k, size_t n) {
    return (float *)(void *)b->data + n * (b->K / PAIR) + k / PAIR * LANES;
}

/* Stores B(k, n ..) and B(k + 1, n ..) for one vector of columns; k is even. */
static inline void packed_b_store_rows(const PackedB *b, size_t k, size_t n, vf even, vf odd) {
    float *p = packed_b_words(b, k, n);
#ifdef MICROKERNEL_PAIRS
    vf_store(p, (vf)bf16_pairs(even, odd));
#else
    vf_store(p, even);
    if (k + 1 < b->K) vf_store(p + LANES, odd);
#endif
}

static void pack_a_from_rows(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M, size_t K) {
    for (size_t m = 0; m < M; m++)
        for (size_t k = 0; k < K; k += LANES * PAIR) {
            size_t n = min_size(LANES * PAIR, K - k);
            vf_store_n((float *)(void *)(a + m * lda + k), words_along(x, (row0 + m) * x->ld + col0 + k, n),
                       div_up(n, PAIR));
        }
}

/* An A [M, K] that is packed from columns lies in groups of ROWS rows, one after the other: the word of A(m, k) is
 * number m / ROWS * group_size(lda) + k / PAIR * ROWS + m % ROWS. So packing copies words that are neighbours in x. It
 * stores whole vectors, which reach beyond the ROWS words of a k: into those of the next k, which are stored later,
 * and of the last k into a gap between the groups. It also loads whole vectors, where a next row of x makes sure that
 * there is memory. */
enum { WHOLE_ROWS = (ROWS + LANES - 1) / LANES * LANES };
static inline size_t group_size(size_t lda) { return lda / PAIR * ROWS + WHOLE_ROWS - ROWS; }
static inline size_t packed_columns_size(size_t M, size_t lda) { return div_up(M, ROWS) * group_size(lda) * PAIR; }

static void pack_a_from_columns(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M,
                                size_t K) {
    const size_t last = x->ld < WHOLE_ROWS ? 0 : (K - 1) / PAIR * PAIR;
    for (size_t m = 0; m < M; m += ROWS) {
        float *group = (float *)(void *)a + m / ROWS * group_size(lda);
        size_t index = row0 * x->ld + col0 + m, k = 0;
        for (; k < last; k += PAIR, group += ROWS, index += PAIR * x->ld)
            for (size_t i = 0; i < WHOLE_ROWS; i += LANES)
                vf_store(group + i, words_across(x, index + i, LANES, PAIR));
        for (; k < K; k += PAIR, group += ROWS, index += PAIR * x->ld)
            FOR_LANES (i, n, 0, min_size(ROWS, M - m)) vf_store(group + i, words_across(x, index + i, n, K - k));
    }
}

static void pack_b_from_rows(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    for (size_t k = 0; k < K; k += PAIR)
        FOR_LANES (n, m, 0, N)
            vf_store(packed_b_words(b, k, n), words_across(x, (row0 + k) * x->ld + col0 + n, m, K - k));
}

static void pack_b_from_columns(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    for (size_t n = 0; n < N; n += LANES)
        for (size_t k = 0; k < K; k += LANES * PAIR) {
            vf block[LANES];
            size_t width = min_size(LANES * PAIR, K - k);
            for (size_t i = 0; i < LANES; i++)
                block[i] = n + i < N ? words_along(x, (row0 + n + i) * x->ld + col0 + k, width) : vf_zero();
            transpose_lanes(block);
            float *p = packed_b_words(b, k, n);
            for (size_t i = 0; i < div_up(width, PAIR); i++) vf_store(p + i * LANES, block[i]);
        }
}

/* ---- matmul ---- */

/* `rows` rows times `vectors` vectors of columns, `depth` words deep. A's words are `row` apart from row to row and
 * `step` along K; `next` words lie between B's column blocks. */
ALWAYS_INLINE void microkernel_block(float *c, size_t ldc, const float *a, size_t row, size_t step, const float *b,
                                     size_t next, size_t depth, bool accumulate, const int rows, const int vectors) {
    vf sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = accumulate ? vf_load(c + i * ldc + v * LANES) : vf_zero();
    for (size_t k = 0; k < depth; k++) {
        vf column[2];
        for (int v = 0; v < vectors; v++) column[v] = vf_load(b + v * next + k * LANES);
        for (int i = 0; i < rows; i++) {
            vf x = vf_set(a[i * row + k * step]);
            for (int v = 0; v < vectors; v++) sum[i][v] = word_fma(sum[i][v], x, column[v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) vf_store(c + i * ldc + v * LANES, sum[i][v]);
}

/* M <= BLOCK_ROWS rows times N columns, `depth` <= DEPTH words deep. A's rows are ld words apart, or, if columns, its
 * groups of ROWS rows. */
ALWAYS_INLINE void microkernel_rows(float *c, size_t ldc, const float *a, size_t ld, const float *b, size_t next,
                                    size_t M, size_t N, size_t depth, bool accumulate, const bool columns) {
    const size_t row = columns ? 1 : ld, step = columns ? ROWS : 1;
    for (size_t n = 0; n < N; n += 2 * LANES) {
        const float *column = b + n / LANES * next;
        size_t m = 0;
#define BLOCKS(rows)                                                                                       \
    for (; m + rows <= M; m += rows) {                                                                     \
        const float *block_a = columns ? a + m / ROWS * ld + m % ROWS : a + m * ld;                        \
        float *block_c = c + m * ldc + n;                                                                  \
        if (N - n > LANES)                                                                                 \
            microkernel_block(block_c, ldc, block_a, row, step, column, next, depth, accumulate, rows, 2); \
        else                                                                                               \
            microkernel_block(block_c, ldc, block_a, row, step, column, next, depth, accumulate, rows, 1); \
    }
        BLOCKS(ROWS)
        BLOCKS(4)
        BLOCKS(2)
        BLOCKS(1)
#undef BLOCKS
    }
}

ALWAYS_INLINE void microkernel_any(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b, size_t k0,
                                   size_t n0, size_t M, size_t N, size_t K, bool accumulate, const bool columns) {
    const float *words = (const float *)(const void *)a, *first = packed_b_words(b, k0, n0);
    const size_t depth = div_up(K, PAIR), next = b->K / PAIR * LANES, ld = columns ? group_size(lda) : lda / PAIR;
    for (size_t k = 0; k < depth; k += DEPTH)
        for (size_t m = 0; m < M; m += BLOCK_ROWS) {
            const float *block_a = columns ? words + m / ROWS * ld + k * ROWS : words + m * ld + k;
            microkernel_rows(c + m * ldc, ldc, block_a, ld, first + k * LANES, next, min_size(BLOCK_ROWS, M - m), N,
                             min_size(DEPTH, depth - k), accumulate || k > 0, columns);
        }
}

/* C [M, N] = A B, or += when accumulate, for A [M, K] and B's rows k0.. and columns n0.. */
static void microkernel_matmul(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b, size_t k0,
                               size_t n0, size_t M, size_t N, size_t K, bool accumulate) {
    microkernel_any(c, ldc, a, lda, b, k0, n0, M, N, K, accumulate, false);
}

static void microkernel_matmul_columns(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b,
                                       size_t k0, size_t n0, size_t M, size_t N, size_t K, bool accumulate) {
    microkernel_any(c, ldc, a, lda, b, k0, n0, M, N, K, accumulate, true);
}

#endif
