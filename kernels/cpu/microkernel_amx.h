/* The microkernel (microkernel.h) for AMX. A tile register holds 16 rows of 64 bytes. One instruction multiplies a 16
 * x 32 bf16 tile by a 32 x 16 one and adds the result to a 16 x 16 fp32 tile. B's tile has its rows in pairs: row i
 * holds B(2i, n) and B(2i+1, n) side by side for its 16 n. Two packing steps give every form that is needed:
 * interleaving two rows, and transposing 16 x 16 elements of 32 bits. (Intel 64 and IA-32 Architectures Optimization
 * Reference Manual, chapter on AMX.) choose.c has asked the system for the registers. */
#ifndef KERNELS_CPU_MICROKERNEL_AMX_H
#define KERNELS_CPU_MICROKERNEL_AMX_H

typedef bf16 element;
enum { M_STEP = 16, N_STEP = 16, K_STEP = 32, A_IN_PLACE = 1, A_PADDING = 0, BLOCK_ROWS = 32, TILE = 16 * 32 };
enum { COLUMNS_TRANSPOSED = 1 };  // pack_a_from_columns transposes, which costs more than the other three

/* B in tiles of 32 rows and 16 columns, those of one column block one after the other: tile (k/32, n/16) begins at
 * data[((n/16) * (K/32) + k/32) * TILE]. */
typedef struct {
    element *data;
    size_t K, N;
} PackedB;

typedef uint16_t vpairs __attribute__((vector_size(64)));  // 32 bf16, or 16 pairs

/* ---- the tile registers ---- */

/* Called before and after a task's matmuls: gives all eight tile registers their full size, and releases them. */
static inline void microkernel_begin(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}

static inline void microkernel_end(void) { _tile_release(); }

/* ---- packing ---- */

static inline void element_store(element *p, vf v) { bf16_store_n(p, v, LANES); }

/* n <= 32 elements from index on as bf16; the rest is zero. */
static inline vpairs load_32(const Matrix *x, size_t index, size_t n) {
    if (x->dtype == DT_BF16) {
        __mmask32 mask = n == 32 ? ~0u : (1u << n) - 1;
        return (vpairs)_mm512_maskz_loadu_epi16(mask, (const bf16 *)x->data + index);
    }
    vf low = vf_load_n((const float *)x->data + index, min_size(n, 16));
    vf high = n > 16 ? vf_load_n((const float *)x->data + index + 16, n - 16) : vf_zero();
    return (vpairs)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

/* The same for n <= 16. */
static inline vh load_16(const Matrix *x, size_t index, size_t n) {
    if (x->dtype == DT_F32) return vf_to_bf16(vf_load_n((const float *)x->data + index, n));
    return vh_load_n((const bf16 *)x->data + index, n);
}

/* Two rows of 16 as 16 pairs. */
static inline vf interleave(vh even, vh odd) { return (vf)(vu_from_vh(even) | vu_from_vh(odd) << 16); }

/* Shuffles of two rows of 32 columns that give the pairs of the first 16 columns, and those of the other 16. */
#define FIRST_PAIRS                                                                                               \
    0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, \
        15, 47
#define SECOND_PAIRS                                                                                                \
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, \
        30, 62, 31, 63

/* Stores B(k, n ..) and B(k + 1, n ..) for 16 columns; k is even. */
static inline void packed_b_store_rows(const PackedB *b, size_t k, size_t n, vf even, vf odd) {
    vf pair = (vf)bf16_pairs(even, odd);
    memcpy(b->data + (n / 16 * (b->K / 32) + k / 32) * TILE + k % 32 / 2 * 32, &pair, sizeof pair);
}

static void pack_a_from_rows(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M, size_t K) {
    for (size_t m = 0; m < round_up(M, M_STEP); m++)
        for (size_t k = 0; k < K; k += 32) {
            vpairs v = {0};
            if (m < M) v = load_32(x, (row0 + m) * x->ld + col0 + k, min_size(32, K - k));
            memcpy(a + m * lda + k, &v, sizeof v);
        }
}

/* Elements of an A [M, K] that is packed from columns: row-major like the other. */
static inline size_t packed_columns_size(size_t M, size_t lda) { return round_up(M, M_STEP) * lda; }

static void pack_a_from_columns(element *a, size_t lda, const Matrix *x, size_t row0, size_t col0, size_t M,
                                size_t K) {
    for (size_t m = 0; m < M; m += 16)
        for (size_t k = 0; k < K; k += 32) {
            vf pair[16];
            for (int i = 0; i < 16; i++) {
                size_t r = k + 2 * i, at = (row0 + r) * x->ld + col0 + m, n = min_size(16, M - m);
                vh zero = {0}, even = r < K ? load_16(x, at, n) : zero,
                   odd = r + 1 < K ? load_16(x, at + x->ld, n) : zero;
                pair[i] = interleave(even, odd);
            }
            transpose_lanes(pair);
            for (int i = 0; i < 16; i++) memcpy(a + (m + i) * lda + k, &pair[i], 64);
        }
}

static void pack_b_from_columns(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    for (size_t n = 0; n < b->N; n += 16)
        for (size_t k = 0; k < b->K; k += 32) {
            vf row[16];
            for (size_t i = 0; i < 16; i++) {
                row[i] = vf_zero();
                if (n + i < N && k < K)
                    row[i] = (vf)load_32(x, (row0 + n + i) * x->ld + col0 + k, min_size(32, K - k));
            }
            transpose_lanes(row);
            memcpy(b->data + (n / 16 * (b->K / 32) + k / 32) * TILE, row, sizeof row);
        }
}

static void pack_b_from_rows(const PackedB *b, const Matrix *x, size_t row0, size_t col0, size_t K, size_t N) {
    const vpairs zero = {0};
    size_t next = b->K / 32 * TILE;
    for (size_t k = 0; k < b->K; k += 32)
        for (size_t n = 0; n < b->N; n += 32) {
            element *tile = b->data + n / 16 * next + k / 32 * TILE;
            size_t at = (row0 + k) * x->ld + col0 + n, count = n < N ? min_size(32, N - n) : 0;
            for (size_t i = 0; i < 32; i += 2) {
                vpairs even = k + i < K ? load_32(x, at + i * x->ld, count) : zero;
                vpairs odd = k + i + 1 < K ? load_32(x, at + (i + 1) * x->ld, count) : zero;
                vpairs low = __builtin_shufflevector(even, odd, FIRST_PAIRS);
                memcpy(tile + i * 16, &low, sizeof low);
                if (n + 16 == b->N) continue;
                vpairs high = __builtin_shufflevector(even, odd, SECOND_PAIRS);
                memcpy(tile + next + i * 16, &high, sizeof high);
            }
        }
}

/* ---- matmul ---- */

/* 16 rows, or 32 if two_m, times 16 columns, or 32 if two_n; `next` elements lie between B's column blocks. */
ALWAYS_INLINE void microkernel_block(float *c, size_t ldc, const element *a, size_t lda, const element *b,
                                     size_t next, size_t K, bool accumulate, const bool two_m, const bool two_n) {
    size_t c_stride = ldc * sizeof(float), a_stride = lda * sizeof(element);
    if (accumulate) {
        _tile_loadd(0, c, c_stride);
        if (two_n) _tile_loadd(1, c + 16, c_stride);
        if (two_m) _tile_loadd(2, c + 16 * ldc, c_stride);
        if (two_m && two_n) _tile_loadd(3, c + 16 * ldc + 16, c_stride);
    } else {
        _tile_zero(0);
        if (two_n) _tile_zero(1);
        if (two_m) _tile_zero(2);
        if (two_m && two_n) _tile_zero(3);
    }
    for (size_t k = 0; k < K; k += 32, a += 32, b += TILE) {
        _tile_loadd(4, a, a_stride);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (two_n) {
            _tile_loadd(7, b + next, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_m) {
            _tile_loadd(5, a + 16 * lda, a_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_m && two_n) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride);
    if (two_n) _tile_stored(1, c + 16, c_stride);
    if (two_m) _tile_stored(2, c + 16 * ldc, c_stride);
    if (two_m && two_n) _tile_stored(3, c + 16 * ldc + 16, c_stride);
}

/* C [M, N] = A B, or += when accumulate, for A [M, K] and B's rows k0.. and columns n0..; M, N and K are rounded up
 * to whole steps. */
static void microkernel_matmul(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b, size_t k0,
                               size_t n0, size_t M, size_t N, size_t K, bool accumulate) {
    size_t next = b->K / 32 * TILE;  // from one column block of B to the next
    M = round_up(M, M_STEP), N = round_up(N, N_STEP), K = round_up(K, K_STEP);
    __asm__ volatile("" ::: "memory");  // the operands are in memory before the tile loads read them
    for (size_t m = 0; m < M; m += 32)
        for (size_t n = 0; n < N; n += 32) {
            float *block = c + m * ldc + n;
            const element *rows = a + m * lda, *columns = b->data + (n0 + n) / 16 * next + k0 / 32 * TILE;
            if (M - m > 16 && N - n > 16)
                microkernel_block(block, ldc, rows, lda, columns, next, K, accumulate, true, true);
            else if (M - m > 16)
                microkernel_block(block, ldc, rows, lda, columns, next, K, accumulate, true, false);
            else if (N - n > 16)
                microkernel_block(block, ldc, rows, lda, columns, next, K, accumulate, false, true);
            else
                microkernel_block(block, ldc, rows, lda, columns, next, K, accumulate, false, false);
        }
    __asm__ volatile("" ::: "memory");
}

static void microkernel_matmul_columns(float *c, size_t ldc, const element *a, size_t lda, const PackedB *b,
                                       size_t k0, size_t n0, size_t M, size_t N, size_t K, bool accumulate) {
    microkernel_matmul(c, ldc, a, lda, b, k0, n0, M, N, K, accumulate);
}

#endif
