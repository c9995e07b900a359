/* Attention on tensor cores, the forward pass and what the backward pass shares with it (FlashAttention-2: Dao 2023),
 * for bf16 and heads of up to 128 channels, a multiple of 8. A block of 4 warps owns a tile of rows (queries, or keys
 * in one of the backward kernels) of one head and loops over tiles of the other kind, which cp.async brings to shared
 * memory. A warp owns 32 (or 16) of the rows alone, so its scores, softmax and probabilities stay in its registers,
 * where the sums of one matmul already have the layout of the A operand of the next.
 *
 * Why the tiles have these sizes: mma.sync multiplies 16 x 8 x 16 in 8 cycles of a quarter of an SM (A100; an H100
 * takes about 6.5), and ldmatrix.x4 moves 512 bytes in 4 cycles of the whole SM. So a quarter may load no more than
 * one fragment for every two mma, or shared memory becomes the limit: a warp of 32 rows uses each B fragment twice,
 * and A fragments stay in registers where there is space. The floor of all kernels is FLOPs / peak; what they read
 * from memory is small beside it (with a tile of 128 queries, 128 operations for each byte of keys and values from
 * L2).
 *
 * RoPE: queries are rotated once, when their block reads them. Keys would be rotated again in every block. The angles
 * are fp32, so a tile's angles have twice the bytes of its keys and would double what comes from L2, and cp.async
 * cannot rotate. So a small kernel first rotates the keys of a call into scratch memory. It moves 4 bytes for each of
 * B T K D elements, against 2 B T^2 H D operations of a causal forward pass: 0.2 of its time at T = 2048 with as many
 * key heads as query heads, 0.03 with a group of 8, and half of that where the scratch memory stays in L2. The
 * backward pass rotates the queries too, because one of its kernels loops over them: 0.05 of its time at T = 2048.
 *
 * There is no wgmma/TMA version for sm_90, because without such a GPU nothing shows that it is correct, or how much
 * faster it is. */
#ifndef KERNELS_CUDA_ATTENTION_FLASH_CUH
#define KERNELS_CUDA_ATTENTION_FLASH_CUH

#include "attention_rows.cuh"
#include "mma.cuh"

enum { FLASH_WARPS = 4, FLASH_THREADS = 32 * FLASH_WARPS, FLASH_HEAD = 128, FLASH_QUERIES = 32 * FLASH_WARPS };

/* Rows of heads in memory: row t of head h of sequence b is x + b * batch + h * head + t * row. */
typedef struct {
    const bf16 *x;
    size_t batch, head;
    unsigned row;  // T + 128 of them are less than 2^32
} HeadRows;

/* The arguments that all kernels share. */
typedef struct {
    AttentionShape s;
    HeadRows q, k, v, dout;
    bool rotated;         // queries and keys have been rotated already, or are not rotated at all
    const float2 *stats;  // [B, H, padded]: log-sum-exp in powers of two, and delta; (inf, 0) beyond T
    int padded;
} FlashPlan;

/* The thread's number, hidden from the optimizer (opaque in platform.cuh). */
static __device__ __forceinline__ int opaque_thread() { return opaque((int)threadIdx.x); }

/* Which tile of which head a block computes. Under a causal mask the last tile loops over as many times more keys as
 * there are tiles, and a long tile that begins last would keep one multiprocessor busy alone. So the longest tiles of
 * all heads come first, or rather those of `section` heads at a time: as many heads as have their keys and values in
 * the second-level cache together. Without a mask a section is one head. */
typedef struct {
    int tile, head, b;
} FlashPlace;

static __device__ __forceinline__ FlashPlace flash_place(int tiles, int heads, int B, int section) {
    const int block = opaque((int)blockIdx.x), first = block / (tiles * section) * section, left = heads * B - first;
    const int at = block - first * tiles, count = min(section, left), head = first + at % count;
    const FlashPlace place = {at / count, head % heads, head / heads};
    return place;
}

/* The number of heads in a section, when `sharing` heads loop over the same two arrays of [T, D], or each head over
 * `arrays` such pairs. */
static int flash_section(const AttentionShape &s, int sharing, int arrays) {
    const size_t bytes = (size_t)arrays * s.T * s.D * 2 * sizeof(bf16);
    const size_t fit = L2_KEPT_BYTES / bytes ? L2_KEPT_BYTES / bytes : 1, all = (size_t)s.B * s.H;
    return s.causal ? (int)(fit * sharing < all ? fit * sharing : all) : 1;
}

static __device__ __forceinline__ const bf16 *head_rows(const HeadRows &r, int b, int h) {
    return r.x + b * r.batch + h * r.head;
}

/* ---- tiles in shared memory ----
 * Rows of D elements, in chunks of 16 bytes. The eight rows of a matrix that ldmatrix reads must lie in different
 * groups of four banks. So the chunks of a row are permuted by an exclusive or with bits of the row's number, over as
 * many chunks as there are rows that would fall into the same banks: 8 for D = 64 and 128, 4 for 32, 2 for 80 (160
 * bytes). */
template <int D> struct Swizzle {
    enum { CHUNKS = D / 8, SPAN = (CHUNKS & -CHUNKS) < 8 ? (CHUNKS & -CHUNKS) : 8 };
    static __device__ __forceinline__ int bits(int row) { return row / (8 / SPAN) % SPAN; }
};

template <int D> static __device__ __forceinline__ int tile_place(int row, int chunk) {
    return row * D + (chunk ^ Swizzle<D>::bits(row)) * 8;
}

/* The address that this lane gives ldmatrix for the 16 x 16 elements at rows row.. and columns 16 step... DOWN: the
 * second of the four matrices is below the first one (A operands, and transposed B operands); else beside it (B
 * operands). */
template <int D, bool DOWN> struct LanePlace {
    int row, flip;
    __device__ __forceinline__ LanePlace() {
        const int lane = (D > 80 ? opaque_thread() : (int)threadIdx.x) % 32, half = DOWN ? lane / 16 : lane / 8 % 2;
        row = DOWN ? lane % 16 : lane % 8 + lane / 16 * 8;
        flip = half ^ Swizzle<D>::bits(row);
    }
    __device__ __forceinline__ const bf16 *at(const bf16 *tile, int first_row, int step) const {
        constexpr int SPAN = Swizzle<D>::SPAN;
        const int chunk = SPAN > 2 ? (2 * step % SPAN ^ flip) + 2 * step / SPAN * SPAN : 2 * step + flip;
        return tile + first_row * D + row * D + chunk * 8;
    }
};

/* tile [ROWS, D] = rows t0.. of a head, asynchronously. Beyond row T it repeats the last row, because the scores
 * there are masked but must be numbers. Columns from `width` on are not written. */
template <int D, int ROWS>
static __device__ __forceinline__ void tile_copy(bf16 *tile, const bf16 *x, unsigned stride, int t0, int T,
                                                 int width) {
    constexpr int LANES = D <= 32 ? 4 : D <= 64 ? 8 : 16, STEP = FLASH_THREADS / LANES;
    const int thread = opaque_thread(), row = thread / LANES, chunk = thread % LANES;
    const unsigned last = (unsigned)(T - 1) * stride + chunk * 8;
    unsigned at = (unsigned)(t0 + row) * stride + chunk * 8;
    bf16 *to = tile + tile_place<D>(row, chunk);
    if (chunk * 8 >= width) return;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP, at += STEP * stride) copy_async_16(to + r * D, x + min(at, last));
}

/* Zeroes columns from `width` on of consecutive tiles, with `rows` rows together. Nothing else writes there. */
template <int D> static __device__ __forceinline__ void tile_pad(bf16 *tiles, int rows, int width) {
    for (int chunk = width / 8; chunk < D / 8; chunk++)
        for (int row = (int)threadIdx.x; row < rows; row += FLASH_THREADS)
            *(uint4 *)(tiles + tile_place<D>(row, chunk)) = make_uint4(0, 0, 0, 0);
}

/* ---- RoPE ---- */

/* Rotates elements c .. c+3 of the first half of a row (a) and their partners in the second half (b); direction is 1,
 * or -1 to undo the rotation. */
static __device__ __forceinline__ void rotate_pairs(Floats<4> &a, Floats<4> &b, const float *angles, int c, int half,
                                                    float direction) {
    const Floats<4> cosine = load<4>(angles + c), sine = load<4>(angles + half + c);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float x = a.x[i], y = b.x[i], s = direction * sine.x[i];
        a.x[i] = x * cosine.x[i] - y * s;
        b.x[i] = y * cosine.x[i] + x * s;
    }
}

/* tile_copy with the rows rotated, which takes them through registers. */
template <int D, int ROWS>
static __device__ __forceinline__ void tile_rotate(bf16 *tile, const bf16 *x, unsigned stride, int t0,
                                                   const AttentionShape &s) {
    constexpr int LANES = D / 8;
    const int half = s.D / 2;
    for (int i = (int)threadIdx.x; i < ROWS * LANES; i += FLASH_THREADS) {
        const int row = i / LANES, c = i % LANES * 4, t = min(t0 + row, s.T - 1);
        if (c >= half) continue;
        Floats<4> a = load<4>(x + t * stride + c), b = load<4>(x + t * stride + half + c);
        rotate_pairs(a, b, rope_at(s, t), c, half, 1.0f);
        store<4>(tile + tile_place<D>(row, c / 8) + c % 8, a);
        store<4>(tile + tile_place<D>(row, (half + c) / 8) + (half + c) % 8, b);
    }
}

/* to [B, heads, T, D] = heads first .. first + heads of qkv, rotated; grid (rows, heads, B). Reads and writes them
 * once. The angles are the same for all heads and sequences and come from L2. */
static __global__ void flash_rotate_kernel(bf16 *to, const bf16 *qkv, AttentionShape s, int first, int lanes_log) {
    const int lanes = 1 << lanes_log, c = ((int)threadIdx.x & (lanes - 1)) * 4, half = s.D / 2;
    const int t = (int)((blockIdx.x * blockDim.x + threadIdx.x) >> lanes_log);
    if (t >= s.T || c >= half) return;
    const bf16 *x = qkv + ((size_t)blockIdx.z * s.T + t) * (s.H + 2 * s.K) * s.D + (first + blockIdx.y) * s.D;
    Floats<4> a = load<4>(x + c), b = load<4>(x + half + c);
    rotate_pairs(a, b, rope_at(s, t), c, half, 1.0f);
    to += (((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.T + t) * s.D;
    store<4>(to + c, a);
    store<4>(to + half + c, b);
}

/* ---- the two matmuls of a warp ----
 * Sums [16 M, 8 N] are float [M][N][4], the fragments of mma_16x8x16. */

template <int M, int N> static __device__ __forceinline__ void sums_zero(float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
}

/* A warp's 16 M rows of a tile as A operand: KEPT in registers from the beginning, or read when needed. */
template <int D, int M, bool KEPT> struct RowFragments {
    const bf16 *tile;
    unsigned kept[KEPT ? M : 1][KEPT ? D / 16 : 1][4];
    __device__ __forceinline__ RowFragments(const bf16 *rows) : tile(rows) {
        if constexpr (KEPT) {
            const LanePlace<D, true> place;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int step = 0; step < D / 16; step++) load_matrix_x4(kept[m][step], place.at(tile, 16 * m, step));
        }
    }
    __device__ __forceinline__ void get(unsigned (&a)[4], const LanePlace<D, true> &place, int m, int step) const {
        if constexpr (KEPT) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = kept[m][step][i];
        } else {
            load_matrix_x4(a, place.at(tile, 16 * m, step));
        }
    }
};

/* s = A B^T, over D, for the warp's rows A and rows B [8 N, D] of a tile. */
template <int D, int M, int N, bool KEPT>
static __device__ __forceinline__ void warp_scores(float (&s)[M][N][4], const RowFragments<D, M, KEPT> &rows_a,
                                                   const bf16 *rows_b) {
    const LanePlace<D, true> place_a;
    const LanePlace<D, false> place_b;
    sums_zero(s);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) rows_a.get(a[m], place_a, m, step);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            load_matrix_x4(b, place_b.at(rows_b, 8 * n, step));
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(s[m][n], a[m], b0, s[m][n]);
                mma_16x8x16(s[m][n + 1], a[m], b1, s[m][n + 1]);
            }
        }
    }
}

/* Two floats as bf16, the first in the low half. */
static __device__ __forceinline__ unsigned pack_pair(float x, float y) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* Sums, packed as the A operand of a matmul over their columns. */
template <int M, int N>
static __device__ __forceinline__ void warp_pack(unsigned (&w)[M][N / 2][4], const float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            w[m][n / 2][n % 2 * 2] = pack_pair(s[m][n][0], s[m][n][1]);
            w[m][n / 2][n % 2 * 2 + 1] = pack_pair(s[m][n][2], s[m][n][3]);
        }
}

/* o += W B for packed weights W and rows B [16 N, D] of a tile. */
template <int D, int M, int N>
static __device__ __forceinline__ void warp_weigh(float (&o)[M][D / 8][4], const unsigned (&w)[M][N][4],
                                                  const bf16 *rows_b) {
    const LanePlace<D, true> place;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            unsigned b[4];
            load_matrix_x4_transposed(b, place.at(rows_b, 16 * n, step));
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(o[m][2 * step], w[m][n], b0, o[m][2 * step]);
                mma_16x8x16(o[m][2 * step + 1], w[m][n], b1, o[m][2 * step + 1]);
            }
        }
}

/* ---- forward ---- */

/* Sets the scores of keys key0.. that the warp's queries query0.. do not see to -inf. */
template <int M, int N>
static __device__ __forceinline__ void mask_scores(float (&s)[M][N][4], int query0, int key0, int lane,
                                                   const AttentionShape &shape) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = query0 + 16 * m + mma_row(lane, 2 * half);
            const int last = (shape.causal ? min(query, shape.T - 1) : shape.T - 1) - key0 - mma_column(lane, 0);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (8 * n + i > last) s[m][n][2 * half + i] = -INFINITY;
        }
}

/* The number of keys that some query of the tile from t0 on sees. */
static __device__ __forceinline__ int keys_seen(const AttentionShape &s, int t0) {
    return s.causal ? min(opaque(t0) + FLASH_QUERIES, s.T) : s.T;
}

/* The largest value of a row, or its sum, over the four lanes of the row; all of them get it. */
static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

/* One step of the online softmax (Milakov & Gimelshein 2018): turns the scores of the next tile of keys into
 * probabilities relative to 2^top of their row. `top` follows the largest score only when that has grown by 8 or more
 * in some row of the warp (FlashAttention-4): until then probabilities of up to 2^8 do no harm, and the sums need not
 * be rescaled. `sum` covers this lane's columns. */
template <int M, int N, int COLUMNS>
static __device__ __forceinline__ void warp_softmax(float (&s)[M][N][4], float (&top)[M][2], float (&sum)[M][2],
                                                    float (&o)[M][COLUMNS][4], float scale) {
    float largest[M][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = -INFINITY;
#pragma unroll
            for (int n = 0; n < N; n++) x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            largest[m][half] = quad_max(x) * scale;
            grown = grown || largest[m][half] > top[m][half] + 8.0f;
        }
    if (__any_sync(ALL_LANES, grown)) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float before = top[m][half];
                top[m][half] = fmaxf(before, largest[m][half]);
                const float rescale = exp2_approx(before - top[m][half]);
                sum[m][half] *= rescale;
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) o[m][n][2 * half + i] *= rescale;
            }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[m][n][i] = exp2_approx(fmaf(s[m][n][i], scale, -top[m][i / 2]));
                sum[m][i / 2] += s[m][n][i];
            }
}

/* Stores a warp's rows of the result, times `factor`, to rows t0.. of y. They go through the warp's own rows of a
 * tile, so that each lane writes 16 bytes. Only ldmatrix has read those rows, for matmuls that the whole warp has
 * finished. */
template <int D, int M>
static __device__ __forceinline__ void store_rows(bf16 *y, size_t stride, const float (&o)[M][D / 8][4],
                                                  const float (&factor)[M][2], bf16 *tile, int t0,
                                                  const AttentionShape &s) {
    constexpr int LANES = D <= 32 ? 4 : D <= 64 ? 8 : 16;
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = 16 * m + mma_row(lane, 2 * half);
                const float f = factor[m][half];
                *(unsigned *)(tile + tile_place<D>(row, n) + mma_column(lane, 0)) =
                    pack_pair(o[m][n][2 * half] * f, o[m][n][2 * half + 1] * f);
            }
    __syncwarp();
    const int chunk = lane % LANES;
    for (int row = lane / LANES; row < 16 * M && t0 + row < s.T; row += 32 / LANES)
        if (chunk * 8 < s.D)
            *(uint4 *)(y + (t0 + row) * stride + chunk * 8) = *(const uint4 *)(tile + tile_place<D>(row, chunk));
}

template <int D, int KEYS> static size_t flash_forward_shared() {
    return (size_t)(FLASH_QUERIES + 2 * KEYS) * D * sizeof(bf16);
}

/* out [B, T, H*D], lse [B, H, T]; a block for each of `tiles` tiles of 128 queries of each head, the longest rows of
 * a causal mask first. Shared memory has one tile of keys and one of values: the values arrive while the scores are
 * computed, and the next keys during the softmax and the matmul with the values. */
template <int D, int KEYS, bool KEPT, int BLOCKS>
static __global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_forward_kernel(bf16 *out, float *lse, FlashPlan p, int tiles, int section) {
    DYNAMIC_SHARED(bf16, q);
    const AttentionShape &s = p.s;
    const FlashPlace place = flash_place(tiles, s.H, s.B, section);
    bf16 *k = q + FLASH_QUERIES * D, *v = k + KEYS * D;
    const int t0 = (tiles - 1 - place.tile) * FLASH_QUERIES, h = place.head, b = place.b;
    const int kv = h / (s.H / s.K);
    const bf16 *queries = head_rows(p.q, b, h);
    tile_pad<D>(q, FLASH_QUERIES + 2 * KEYS, s.D);
    tile_copy<D, KEYS>(k, head_rows(p.k, b, kv), p.k.row, 0, s.T, s.D);
    if (p.rotated)
        tile_copy<D, FLASH_QUERIES>(q, queries, p.q.row, t0, s.T, s.D);
    else
        tile_rotate<D, FLASH_QUERIES>(q, queries, p.q.row, t0, s);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const RowFragments<D, 2, KEPT> queries_a(q + (int)threadIdx.x / 32 * 32 * D);
    float o[2][D / 8][4], top[2][2], sum[2][2];
    sums_zero(o);
#pragma unroll
    for (int i = 0; i < 4; i++) top[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0.0f;
    for (int j0 = 0; j0 < keys_seen(s, t0); j0 += KEYS) {
        const int query0 = opaque(t0) + opaque_thread() / 32 * 32;
        const bool busy = !s.causal || j0 < query0 + 32;  // else all keys of the tile come after the warp's queries
        float scores[2][KEYS / 8][4];
        unsigned weights[2][KEYS / 16][4];
        copy_async_wait<0>();
        __syncthreads();  // these keys have arrived, and all have read the last values
        tile_copy<D, KEYS>(v, head_rows(p.v, opaque(b), opaque(kv)), p.v.row, j0, s.T, s.D);
        copy_async_commit();
        if (busy) warp_scores(scores, queries_a, k);
        copy_async_wait<0>();
        __syncthreads();  // the values have arrived, and all have read these keys
        if (j0 + KEYS < keys_seen(s, t0))
            tile_copy<D, KEYS>(k, head_rows(p.k, opaque(b), opaque(kv)), p.k.row, j0 + KEYS, s.T, s.D);
        copy_async_commit();
        if (!busy) continue;
        if (j0 + KEYS > (s.causal ? min(query0 + 1, s.T) : s.T))
            mask_scores(scores, query0, j0, opaque_thread() % 32, s);
        warp_softmax(scores, top, sum, o, s.scale * LOG2E);
        warp_pack(weights, scores);
        warp_weigh<D>(o, weights, v);
    }
    const FlashPlace end = flash_place(tiles, s.H, s.B, section);
    const int lane = opaque_thread() % 32, warp_row = opaque_thread() / 32 * 32, query0 = t0 + warp_row;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float total = quad_sum(sum[m][half]);
            const int t = query0 + 16 * m + mma_row(lane, 2 * half);
            if (lse && lane % 4 == 0 && t < s.T)
                lse[((size_t)end.b * s.H + end.head) * s.T + t] = (top[m][half] + log2f(total)) * LN2;
            sum[m][half] = 1.0f / total;
        }
    bf16 *to = out + ((size_t)end.b * s.T * s.H + end.head) * s.D;
    store_rows<D, 2>(to, (size_t)s.H * s.D, o, sum, q + warp_row * D, query0, s);
}

/* Heads first .. first + heads of qkv, in place. */
static HeadRows rows_of_qkv(const bf16 *qkv, const AttentionShape &s, int first) {
    const unsigned row = (unsigned)(s.H + 2 * s.K) * s.D;
    HeadRows r = {qkv + (size_t)first * s.D, (size_t)s.T * row, (size_t)s.D, row};
    return r;
}

/* Heads first .. first + heads, rotated into `to` [B, heads, T, D]. */
static HeadRows rotated_rows(bf16 *to, const bf16 *qkv, const AttentionShape &s, int first, int heads) {
    int lanes_log = 0;
    while (4 << lanes_log < s.D / 2) lanes_log++;
    dim3 grid(cuda_blocks((size_t)s.T << lanes_log, 256), (unsigned)heads, (unsigned)s.B);
    LAUNCH(flash_rotate_kernel, grid, 256, 0, to, qkv, s, first, lanes_log);
    HeadRows r = {to, (size_t)heads * s.T * s.D, (size_t)s.T * s.D, (unsigned)s.D};
    return r;
}

template <int D, int KEYS, bool KEPT, int BLOCKS>
static void launch_flash_forward(bf16 *out, float *lse, const FlashPlan &p) {
    const unsigned tiles = cuda_blocks((size_t)p.s.T, FLASH_QUERIES), heads = (unsigned)(p.s.H * p.s.B);
    cuda_allow_shared(flash_forward_kernel<D, KEYS, KEPT, BLOCKS>, flash_forward_shared<D, KEYS>());
    LAUNCH((flash_forward_kernel<D, KEYS, KEPT, BLOCKS>), tiles * heads, FLASH_THREADS,
           (flash_forward_shared<D, KEYS>()), out, lse, p, (int)tiles, flash_section(p.s, p.s.H / p.s.K, 1));
}

static void flash_forward(bf16 *out, float *lse, const bf16 *qkv, const AttentionShape &s) {
    FlashPlan p = {};
    p.s = s;
    p.q = rows_of_qkv(qkv, s, 0);
    p.k = rows_of_qkv(qkv, s, s.H);
    p.v = rows_of_qkv(qkv, s, s.H + s.K);
    p.rotated = !s.rope;
    if (s.rope)
        p.k = rotated_rows((bf16 *)cuda_scratch((size_t)s.B * s.K * s.T * s.D * sizeof(bf16)), qkv, s, s.H, s.K);
    if (s.D <= 32)
        launch_flash_forward<32, 64, true, 3>(out, lse, p);
    else if (s.D <= 64)
        launch_flash_forward<64, 64, true, 2>(out, lse, p);
    else if (s.D <= 80)
        launch_flash_forward<80, 64, true, 2>(out, lse, p);
    else
        launch_flash_forward<128, 64, false, 2>(out, lse, p);
}

/* These kernels can do it: rows are a multiple of 16 bytes and begin on 16-byte boundaries, a sequence has less than
 * 2^32 elements, and the scale is positive, so that the largest product has the largest score. */
template <typename... P> static bool flash_fits(const AttentionShape &s, const P *...p) {
    const bool few = ((size_t)s.T + 2 * FLASH_QUERIES) * (s.H + 2 * s.K) * s.D < (size_t)1 << 32;
    return s.D <= FLASH_HEAD && s.scale > 0.0f && few && vectors_fit((size_t)s.D, VECTOR, s.rope, p...);
}

#endif
