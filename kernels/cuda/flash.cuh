/* Attention on tensor cores, forward and backward (FlashAttention-2: Dao 2023), for bf16 and heads of up to 128
 * channels, a multiple of 8; cuda/attention.cuh does the rest. A block of 4 warps owns a tile of rows (queries, or
 * keys in one of the backward kernels) of one head and walks over tiles of the other kind, which cp.async brings to
 * shared memory. A warp owns 32 (or 16) of the rows alone: scores, softmax and probabilities stay in its registers,
 * where the sums of one product have the layout of the left operand of the next.
 *
 * Why tiles look as they do. mma.sync multiplies 16 x 8 x 16 in 8 cycles of a quarter of an SM (A100; an H100 takes
 * about 6.5), ldmatrix.x4 moves 512 bytes in 4 cycles of the whole SM. So a quarter may load no more than one
 * fragment for two products, or shared memory is the limit: a warp of 32 rows uses each right fragment twice, and
 * left fragments stay in registers where there is room. The floor of all kernels is FLOPs / peak; what they read from
 * memory is small beside it (a tile of 128 queries: 128 operations for each byte of keys and values from L2).
 *
 * RoPE. Queries are turned once when their block reads them. Keys would be turned anew in every block: the angles are
 * fp32, so a tile's angles are twice the bytes of its keys and would double what comes from L2, and cp.async cannot
 * turn. So a small kernel turns the keys of a call into scratch first: 4 bytes for each of B T K D elements against
 * 2 B T^2 H D operations of a causal forward pass, 0.2 of its time at T = 2048 with as many key heads as query heads,
 * 0.03 with a group of 8, and half of that where the scratch stays in L2. The backward pass turns the queries too,
 * which its other kernel walks over: 0.05 of its time at T = 2048.
 *
 * There is no wgmma/TMA version for sm_90: nothing here says that it is correct, or by how much it is faster, before
 * it has run on such a GPU. */
#ifndef KERNELS_CUDA_FLASH_CUH
#define KERNELS_CUDA_FLASH_CUH

#include "attention.cuh"
#include "mma.cuh"

#ifndef PRECISION_FP32

enum { FLASH_WARPS = 4, FLASH_THREADS = 32 * FLASH_WARPS, FLASH_HEAD = 128, FLASH_QUERIES = 32 * FLASH_WARPS };
#ifdef CUDA_EMULATION
enum { FLASH_NEAR = 8 << 10 };
#else
enum { FLASH_NEAR = 24 << 20 };  // bytes that stay in the second-level cache; it has 40 MB on an A100, 50 on an H100
#endif

/* Rows of heads in memory: row t of head h of sequence b is x + b * batch + h * head + t * row. */
typedef struct {
    const bf16 *x;
    size_t batch, head;
    unsigned row;  // T + 128 of them are less than 2^32
} HeadRows;

/* What every kernel here is given. */
typedef struct {
    AttentionShape s;
    HeadRows q, k, v, dout;
    bool turned;          // queries and keys have been turned already, or need not be
    const float2 *stats;  // [B, H, padded]: log-sum-exp in powers of two, and delta; (inf, 0) beyond T
    int padded;
} FlashPlan;

/* x, so that the compiler does not see that it is the same each time: what follows from it would be kept in registers
 * from one tile to the next, or to the end, and there is no room for it. */
static __device__ __forceinline__ int again(int x) {
#ifndef CUDA_EMULATION
    asm volatile("" : "+r"(x));
#endif
    return x;
}

static __device__ __forceinline__ int thread_again() { return again((int)threadIdx.x); }

/* Which tile of which head a block has. Under a causal mask tiles differ in length by as much as their number, and a
 * long one that begins last would keep one multiprocessor busy alone: so the longest tiles of all heads come first,
 * that is of `section` heads at a time, no more than what fits into the second-level cache with what their tiles walk
 * over. Without a mask a section is one head. */
typedef struct {
    int tile, head, b;
} FlashPlace;

static __device__ __forceinline__ FlashPlace flash_place(int tiles, int heads, int B, int section) {
    const int block = again((int)blockIdx.x), first = block / (tiles * section) * section, left = heads * B - first;
    const int at = block - first * tiles, count = min(section, left), head = first + at % count;
    const FlashPlace place = {at / count, head % heads, head / heads};
    return place;
}

/* The section, for heads whose tiles walk over two arrays of [T, D] together with `sharing` - 1 others, or over
 * `arrays` such pairs. */
static int flash_section(const AttentionShape &s, int sharing, int arrays) {
    const size_t bytes = (size_t)arrays * s.T * s.D * 2 * sizeof(bf16);
    const size_t fit = FLASH_NEAR / bytes ? FLASH_NEAR / bytes : 1, all = (size_t)s.B * s.H;
    return s.causal ? (int)(fit * sharing < all ? fit * sharing : all) : 1;
}

static __device__ __forceinline__ const bf16 *head_rows(const HeadRows &r, int b, int h) {
    return r.x + b * r.batch + h * r.head;
}

/* ---- tiles in shared memory ----
 * Rows of D elements, in chunks of 16 bytes. The eight rows of a matrix that ldmatrix reads must lie in different
 * groups of four banks: a row's chunks change places by an exclusive or with bits of its number, as many as rows that
 * would fall into the same banks. D = 64, 128: 8 of them; 32: 4; 80 (160 bytes): 2. */
template <int D> struct Swizzle {
    enum { CHUNKS = D / 8, SPAN = (CHUNKS & -CHUNKS) < 8 ? (CHUNKS & -CHUNKS) : 8 };
    static __device__ __forceinline__ int bits(int row) { return row / (8 / SPAN) % SPAN; }
};

template <int D> static __device__ __forceinline__ int tile_place(int row, int chunk) {
    return row * D + (chunk ^ Swizzle<D>::bits(row)) * 8;
}

/* Where this lane points ldmatrix for the 16 x 16 elements at rows row.. and columns 16 step... Of the four matrices,
 * DOWN: the second is below the first (left operands; right ones when transposed); else beside it (right operands).
 */
template <int D, bool DOWN> struct LanePlace {
    int row, flip;
    __device__ __forceinline__ LanePlace() {
        const int lane = (D > 80 ? thread_again() : (int)threadIdx.x) % 32, half = DOWN ? lane / 16 : lane / 8 % 2;
        row = DOWN ? lane % 16 : lane % 8 + lane / 16 * 8;
        flip = half ^ Swizzle<D>::bits(row);
    }
    __device__ __forceinline__ const bf16 *at(const bf16 *tile, int first_row, int step) const {
        constexpr int SPAN = Swizzle<D>::SPAN;
        const int chunk = SPAN > 2 ? (2 * step % SPAN ^ flip) + 2 * step / SPAN * SPAN : 2 * step + flip;
        return tile + first_row * D + row * D + chunk * 8;
    }
};

/* tile [ROWS, D] = rows t0.. of a head, asynchronously; the last row again beyond row T, whose products are masked
 * but must be numbers. Columns from `width` on are not touched. */
template <int D, int ROWS>
static __device__ __forceinline__ void tile_copy(bf16 *tile, const bf16 *x, unsigned stride, int t0, int T,
                                                 int width) {
    constexpr int LANES = D <= 32 ? 4 : D <= 64 ? 8 : 16, STEP = FLASH_THREADS / LANES;
    const int thread = thread_again(), row = thread / LANES, chunk = thread % LANES;
    const unsigned last = (unsigned)(T - 1) * stride + chunk * 8;
    unsigned at = (unsigned)(t0 + row) * stride + chunk * 8;
    bf16 *to = tile + tile_place<D>(row, chunk);
    if (chunk * 8 >= width) return;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP, at += STEP * stride) copy_async_16(to + r * D, x + min(at, last));
}

/* Columns from `width` on of tiles one after another, zero for good. */
template <int D> static __device__ __forceinline__ void tile_pad(bf16 *tiles, int rows, int width) {
    for (int chunk = width / 8; chunk < D / 8; chunk++)
        for (int row = (int)threadIdx.x; row < rows; row += FLASH_THREADS)
            *(uint4 *)(tiles + tile_place<D>(row, chunk)) = make_uint4(0, 0, 0, 0);
}

/* ---- RoPE ---- */

/* Elements c .. c+3 of the first half of a row and their partners in the second half, turned; -1 turns back. */
static __device__ __forceinline__ void turn(Floats<4> &a, Floats<4> &b, const float *angles, int c, int half,
                                            float direction) {
    const Floats<4> cosine = load<4>(angles + c), sine = load<4>(angles + half + c);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float x = a.x[i], y = b.x[i], s = direction * sine.x[i];
        a.x[i] = x * cosine.x[i] - y * s;
        b.x[i] = y * cosine.x[i] + x * s;
    }
}

/* As tile_copy, turned, through registers. */
template <int D, int ROWS>
static __device__ __forceinline__ void tile_turn(bf16 *tile, const bf16 *x, unsigned stride, int t0,
                                                 const AttentionShape &s) {
    constexpr int LANES = D / 8;
    const int half = s.D / 2;
    for (int i = (int)threadIdx.x; i < ROWS * LANES; i += FLASH_THREADS) {
        const int row = i / LANES, c = i % LANES * 4, t = min(t0 + row, s.T - 1);
        if (c >= half) continue;
        Floats<4> a = load<4>(x + t * stride + c), b = load<4>(x + t * stride + half + c);
        turn(a, b, rope_at(s, t), c, half, 1.0f);
        store<4>(tile + tile_place<D>(row, c / 8) + c % 8, a);
        store<4>(tile + tile_place<D>(row, (half + c) / 8) + (half + c) % 8, b);
    }
}

/* to [B, heads, T, D] = heads first .. first + heads of qkv, turned; grid (rows, heads, B). Reads and writes them
 * once; the angles of all heads and sequences are the same and come from L2. */
static __global__ void flash_turn_kernel(bf16 *to, const bf16 *qkv, AttentionShape s, int first, int lanes_log) {
    const int lanes = 1 << lanes_log, c = ((int)threadIdx.x & (lanes - 1)) * 4, half = s.D / 2;
    const int t = (int)((blockIdx.x * blockDim.x + threadIdx.x) >> lanes_log);
    if (t >= s.T || c >= half) return;
    const bf16 *x = qkv + ((size_t)blockIdx.z * s.T + t) * (s.H + 2 * s.K) * s.D + (first + blockIdx.y) * s.D;
    Floats<4> a = load<4>(x + c), b = load<4>(x + half + c);
    turn(a, b, rope_at(s, t), c, half, 1.0f);
    to += (((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.T + t) * s.D;
    store<4>(to + c, a);
    store<4>(to + half + c, b);
}

/* ---- the two products of a warp ----
 * Sums [16 M, 8 N] are float [M][N][4], the fragments of mma_16x8x16. */

template <int M, int N> static __device__ __forceinline__ void sums_zero(float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
}

/* A warp's 16 M rows of a tile as left operand: KEPT in registers from the beginning, or read when needed. */
template <int D, int M, bool KEPT> struct LeftRows {
    const bf16 *tile;
    unsigned kept[KEPT ? M : 1][KEPT ? D / 16 : 1][4];
    __device__ __forceinline__ LeftRows(const bf16 *rows) : tile(rows) {
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

/* s = rows of the left times rows [8 N, D] of a tile, over D. */
template <int D, int M, int N, bool KEPT>
static __device__ __forceinline__ void warp_scores(float (&s)[M][N][4], const LeftRows<D, M, KEPT> &left,
                                                   const bf16 *right) {
    const LanePlace<D, true> left_place;
    const LanePlace<D, false> right_place;
    sums_zero(s);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) left.get(a[m], left_place, m, step);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            load_matrix_x4(b, right_place.at(right, 8 * n, step));
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

/* Sums as the left operand of a product over their columns. */
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

/* o += w times rows [16 N, D] of a tile. */
template <int D, int M, int N>
static __device__ __forceinline__ void warp_weigh(float (&o)[M][D / 8][4], const unsigned (&w)[M][N][4],
                                                  const bf16 *right) {
    const LanePlace<D, true> place;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            unsigned b[4];
            load_matrix_x4_transposed(b, place.at(right, 16 * n, step));
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(o[m][2 * step], w[m][n], b0, o[m][2 * step]);
                mma_16x8x16(o[m][2 * step + 1], w[m][n], b1, o[m][2 * step + 1]);
            }
        }
}

/* 2^x, off by two units in the last place at most; 0 below 2^-126. */
static __device__ __forceinline__ float power_of_two(float x) {
#ifdef CUDA_EMULATION
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* ---- forward ---- */

/* Scores of keys key0.. that the warp's queries query0.. do not see become -inf. */
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

/* Keys that some query of the tile from t0 on sees come before this one. */
static __device__ __forceinline__ int keys_seen(const AttentionShape &s, int t0) {
    return s.causal ? min(again(t0) + FLASH_QUERIES, s.T) : s.T;
}

/* The four lanes of a row agree on its largest value, or its sum. */
static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

/* Scores of one more tile of keys to probabilities relative to 2^top of their row (online softmax: Milakov &
 * Gimelshein 2018). `top` follows the largest score only when that has grown by 8 or more in some row of the warp
 * (FlashAttention- 4): until then probabilities of up to 2^8 do no harm, and the sums need not be rescaled. `sum` is
 * of this lane's columns. */
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
                const float rescale = power_of_two(before - top[m][half]);
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
                s[m][n][i] = power_of_two(fmaf(s[m][n][i], scale, -top[m][i / 2]));
                sum[m][i / 2] += s[m][n][i];
            }
}

/* A warp's rows of the result, times `factor`, to rows t0.. of y, through its own rows of a tile so that they are
 * written in 16 bytes a lane. Those have been read by ldmatrix only, for products of the whole warp that are done. */
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
 * a causal mask first. One tile of keys and one of values: the values of a tile travel while its scores are computed,
 * the next keys during softmax and weighing. */
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
    if (p.turned)
        tile_copy<D, FLASH_QUERIES>(q, queries, p.q.row, t0, s.T, s.D);
    else
        tile_turn<D, FLASH_QUERIES>(q, queries, p.q.row, t0, s);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const LeftRows<D, 2, KEPT> left(q + (int)threadIdx.x / 32 * 32 * D);
    float o[2][D / 8][4], top[2][2], sum[2][2];
    sums_zero(o);
#pragma unroll
    for (int i = 0; i < 4; i++) top[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0.0f;
    for (int j0 = 0; j0 < keys_seen(s, t0); j0 += KEYS) {
        const int query0 = again(t0) + thread_again() / 32 * 32;
        const bool busy = !s.causal || j0 < query0 + 32;  // else all its keys come after the warp's queries
        float scores[2][KEYS / 8][4];
        unsigned weights[2][KEYS / 16][4];
        copy_async_wait<0>();
        __syncthreads();  // these keys are there, and nobody reads the last values any more
        tile_copy<D, KEYS>(v, head_rows(p.v, again(b), again(kv)), p.v.row, j0, s.T, s.D);
        copy_async_commit();
        if (busy) warp_scores(scores, left, k);
        copy_async_wait<0>();
        __syncthreads();  // the values are there, and nobody reads these keys any more
        if (j0 + KEYS < keys_seen(s, t0))
            tile_copy<D, KEYS>(k, head_rows(p.k, again(b), again(kv)), p.k.row, j0 + KEYS, s.T, s.D);
        copy_async_commit();
        if (!busy) continue;
        if (j0 + KEYS > (s.causal ? min(query0 + 1, s.T) : s.T))
            mask_scores(scores, query0, j0, thread_again() % 32, s);
        warp_softmax(scores, top, sum, o, s.scale * LOG2E);
        warp_pack(weights, scores);
        warp_weigh<D>(o, weights, v);
    }
    const FlashPlace end = flash_place(tiles, s.H, s.B, section);
    const int lane = thread_again() % 32, warp_row = thread_again() / 32 * 32, query0 = t0 + warp_row;
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

/* Heads first .. first + heads of qkv as they lie there. */
static HeadRows rows_of_qkv(const bf16 *qkv, const AttentionShape &s, int first) {
    const unsigned row = (unsigned)(s.H + 2 * s.K) * s.D;
    HeadRows r = {qkv + (size_t)first * s.D, (size_t)s.T * row, (size_t)s.D, row};
    return r;
}

/* Heads first .. first + heads, turned, in [B, heads, T, D] at `to`. */
static HeadRows rows_turned(bf16 *to, const bf16 *qkv, const AttentionShape &s, int first, int heads) {
    int lanes_log = 0;
    while (4 << lanes_log < s.D / 2) lanes_log++;
    dim3 grid(cuda_blocks((size_t)s.T << lanes_log, 256), (unsigned)heads, (unsigned)s.B);
    LAUNCH(flash_turn_kernel, grid, 256, 0, to, qkv, s, first, lanes_log);
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
    p.turned = !s.rope;
    if (s.rope)
        p.k = rows_turned((bf16 *)cuda_scratch((size_t)s.B * s.K * s.T * s.D * sizeof(bf16)), qkv, s, s.H, s.K);
    if (s.D <= 32)
        launch_flash_forward<32, 64, true, 3>(out, lse, p);
    else if (s.D <= 64)
        launch_flash_forward<64, 64, true, 2>(out, lse, p);
    else if (s.D <= 80)
        launch_flash_forward<80, 64, true, 2>(out, lse, p);
    else
        launch_flash_forward<128, 64, false, 2>(out, lse, p);
}

/* ---- backward ----
 * With P = softmax(scale Q K^T), dP = dO V^T, delta_t = <dO_t, O_t>:
 *   dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO.
 * One kernel owns queries (dQ), the other keys (dK, dV, summed over the heads of their group): P and dS never leave
 * the registers and no sum is shared between blocks, so the order of every sum is fixed, for 7 products in place of
 * the 5 that one kernel with atomic additions to dQ would need. Tiles alternate between two places in shared memory,
 * with one barrier for each. */

/* stats [B, H, padded] from lse [B, H, T] and dout, out [B, T, H, D]; grid (rows, H, B). Reads all once. */
static __global__ void flash_stats_kernel(float2 *stats, const float *lse, const bf16 *dout, const bf16 *out,
                                          AttentionShape s, int padded, int lanes_log) {
    const int lanes = 1 << lanes_log, c = ((int)threadIdx.x & (lanes - 1)) * 8;
    const int t = (int)((blockIdx.x * blockDim.x + threadIdx.x) >> lanes_log);
    const size_t head = (size_t)blockIdx.z * s.H + blockIdx.y;
    const size_t row = ((size_t)blockIdx.z * s.T + t) * s.H + blockIdx.y;
    float sum = 0.0f;
    if (t < s.T && c < s.D) {
        const Floats<8> a = load<8>(dout + row * s.D + c), b = load<8>(out + row * s.D + c);
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(a.x[i], b.x[i], sum);
    }
    for (int n = lanes / 2; n > 0; n /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, n);
    if (c == 0 && t < padded)
        stats[head * padded + t] =
            t < s.T ? make_float2(lse[head * s.T + t] * LOG2E, sum) : make_float2(INFINITY, 0.0f);
}

/* A warp's rows of a gradient, times `factor`, to rows t0.. of y, turned back where `angles` are given; `stage` holds
 * [16 M, D + 8] floats of this warp alone, which nobody else reads any more. */
template <int D, int M>
static __device__ __forceinline__ void store_gradient(bf16 *y, size_t stride, const float (&o)[M][D / 8][4],
                                                      float factor, float *stage, int t0, bool turned,
                                                      const AttentionShape &s) {
    constexpr int LD = D + 8;
    const int lane = (int)threadIdx.x % 32, half = s.D / 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                *(float2 *)(stage + (16 * m + mma_row(lane, i)) * LD + 8 * n + mma_column(lane, 0)) =
                    make_float2(o[m][n][i] * factor, o[m][n][i + 1] * factor);
    __syncwarp();
    for (int i = lane; i < 16 * M * (D / 8); i += 32) {
        const int row = i / (D / 8), c = i % (D / 8) * 4, t = t0 + row;
        if (c >= half || t >= s.T) continue;
        Floats<4> a = load<4>(stage + row * LD + c), b = load<4>(stage + row * LD + half + c);
        if (turned) turn(a, b, rope_at(s, t), c, half, -1.0f);
        store<4>(y + t * stride + c, a);
        store<4>(y + t * stride + half + c, b);
    }
    __syncwarp();
}

template <int D, int KEYS> static size_t flash_queries_shared() {
    size_t tiles = (size_t)(2 * FLASH_QUERIES + 4 * KEYS) * D * sizeof(bf16) + FLASH_QUERIES * sizeof(float2);
    size_t stage = (size_t)FLASH_QUERIES * (D + 8) * sizeof(float);
    return tiles > stage ? tiles : stage;
}

/* dP to dS, from the scores, for a warp's queries and a few keys; `stats` of the queries in shared memory. */
template <int M, int N>
static __device__ __forceinline__ void row_gradients(float (&ds)[M][N][4], const float (&scores)[M][N][4],
                                                     const float2 *stats, float scale) {
    const int lane = thread_again() % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float2 row = stats[16 * m + mma_row(lane, 2 * half)];
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++)
                    ds[m][n][i] = power_of_two(fmaf(scores[m][n][i], scale, -row.x)) * (ds[m][n][i] - row.y);
        }
}

/* stats of rows t0.. of a head, asynchronously. */
template <int ROWS>
static __device__ __forceinline__ void stats_copy(float2 *to, const FlashPlan &p, int b, int h, int t0) {
    const float2 *from = p.stats + ((size_t)b * p.s.H + h) * p.padded + t0;
    if (threadIdx.x < ROWS / 2) copy_async_16(to + 2 * threadIdx.x, from + 2 * threadIdx.x);
}

/* The queries' part of dqkv; grid as in the forward pass. */
template <int D, int KEYS, int STEP, bool KEPT, int BLOCKS>
static __global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_backward_queries_kernel(bf16 *dqkv, FlashPlan p, int tiles_of_queries, int section) {
    DYNAMIC_SHARED(bf16, q);
    const AttentionShape &s = p.s;
    const FlashPlace place = flash_place(tiles_of_queries, s.H, s.B, section);
    bf16 *g = q + FLASH_QUERIES * D, *tiles = g + FLASH_QUERIES * D;
    float2 *stats = (float2 *)(tiles + 4 * KEYS * D);
    const int warp_row = (int)threadIdx.x / 32 * 32;
    const int t0 = (tiles_of_queries - 1 - place.tile) * FLASH_QUERIES, h = place.head, b = place.b;
    const int kv = h / (s.H / s.K), query0 = t0 + warp_row, seen = keys_seen(s, t0);
    const bf16 *keys = head_rows(p.k, b, kv), *values = head_rows(p.v, b, kv);
    tile_pad<D>(q, 2 * FLASH_QUERIES + 4 * KEYS, s.D);
    tile_copy<D, FLASH_QUERIES>(q, head_rows(p.q, b, h), p.q.row, t0, s.T, s.D);
    tile_copy<D, FLASH_QUERIES>(g, head_rows(p.dout, b, h), p.dout.row, t0, s.T, s.D);
    tile_copy<D, KEYS>(tiles, keys, p.k.row, 0, s.T, s.D);
    tile_copy<D, KEYS>(tiles + KEYS * D, values, p.v.row, 0, s.T, s.D);
    stats_copy<FLASH_QUERIES>(stats, p, b, h, t0);
    copy_async_commit();
    float dq[2][D / 8][4];
    sums_zero(dq);
    copy_async_wait<0>();
    __syncthreads();
    const LeftRows<D, 2, KEPT> left(q + warp_row * D), left_g(g + warp_row * D);
    for (int j0 = 0, turn = 0; j0 < seen; j0 += KEYS, turn ^= 1) {
        const bf16 *k = tiles + turn * 2 * KEYS * D, *v = k + KEYS * D;
        bf16 *next = tiles + (turn ^ 1) * 2 * KEYS * D;
        copy_async_wait<0>();
        __syncthreads();  // this tile is there, and nobody reads the one before it any more
        if (j0 + KEYS < seen) {
            tile_copy<D, KEYS>(next, keys, p.k.row, j0 + KEYS, s.T, s.D);
            tile_copy<D, KEYS>(next + KEYS * D, values, p.v.row, j0 + KEYS, s.T, s.D);
        }
        copy_async_commit();
#pragma unroll 1
        for (int j = 0; j < KEYS && (!s.causal || j0 + j < query0 + 32); j += STEP) {
            float scores[2][STEP / 8][4], ds[2][STEP / 8][4];
            unsigned weights[2][STEP / 16][4];
            warp_scores(scores, left, k + j * D);
            warp_scores(ds, left_g, v + j * D);
            if (j0 + j + STEP > (s.causal ? min(query0 + 1, s.T) : s.T))
                mask_scores(scores, query0, j0 + j, thread_again() % 32, s);
            row_gradients(ds, scores, stats + warp_row, s.scale * LOG2E);
            warp_pack(weights, ds);
            warp_weigh<D>(dq, weights, k + j * D);
        }
    }
    __syncthreads();  // nobody reads any tile any more
    const FlashPlace end = flash_place(tiles_of_queries, s.H, s.B, section);
    bf16 *to = dqkv + (size_t)end.b * s.T * (s.H + 2 * s.K) * s.D + (size_t)end.head * s.D;
    store_gradient<D, 2>(to, (size_t)(s.H + 2 * s.K) * s.D, dq, s.scale, (float *)q + warp_row * (D + 8), query0,
                         s.rope != NULL, s);
}

template <int D, int M, int QUERIES> static size_t flash_keys_shared() {
    const int keys = 16 * M * FLASH_WARPS;
    size_t tiles = (size_t)(2 * keys + 4 * QUERIES) * D * sizeof(bf16) + 2 * QUERIES * sizeof(float2);
    size_t stage = (size_t)keys * (D + 8) * sizeof(float);
    return tiles > stage ? tiles : stage;
}

/* Transposed scores, of a warp's keys key0.. and queries query0.. under a causal mask: -inf where the query does not
 * see the key. */
template <int M, int N>
static __device__ __forceinline__ void mask_columns(float (&s)[M][N][4], int query0, int key0) {
    const int lane = thread_again() % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int first = key0 + 16 * m + mma_row(lane, 2 * half) - query0 - mma_column(lane, 0);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (8 * n + i < first) s[m][n][2 * half + i] = -INFINITY;
        }
}

/* Transposed scores and dP to P and dS; `stats` of the queries in shared memory. */
template <int M, int N>
static __device__ __forceinline__ void column_gradients(float (&scores)[M][N][4], float (&ds)[M][N][4],
                                                        const float2 *stats, float scale) {
    const int lane = thread_again() % 32;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float4 two = *(const float4 *)(stats + 8 * n + mma_column(lane, 0));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float lse = i % 2 ? two.z : two.x, delta = i % 2 ? two.w : two.y;
                scores[m][n][i] = power_of_two(fmaf(scores[m][n][i], scale, -lse));
                ds[m][n][i] = scores[m][n][i] * (ds[m][n][i] - delta);
            }
    }
}

/* A tile of queries, of their gradients, and their stats, asynchronously. */
template <int D, int QUERIES>
static __device__ __forceinline__ void queries_copy(bf16 *tile, float2 *stats, const FlashPlan &p, int b, int h,
                                                    int t0) {
    tile_copy<D, QUERIES>(tile, head_rows(p.q, b, h), p.q.row, t0, p.s.T, p.s.D);
    tile_copy<D, QUERIES>(tile + QUERIES * D, head_rows(p.dout, b, h), p.dout.row, t0, p.s.T, p.s.D);
    stats_copy<QUERIES>(stats, p, b, h, t0);
}

/* The keys' and values' parts of dqkv; a block for each tile of 64 M keys of each of their heads, the keys that most
 * queries see first. */
template <int D, int M, int QUERIES, int STEP, bool KEPT, int BLOCKS>
static __global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_backward_keys_kernel(bf16 *dqkv, FlashPlan p, int tiles_of_keys, int section) {
    DYNAMIC_SHARED(bf16, k);
    constexpr int KEYS = 16 * M * FLASH_WARPS, TILE = 2 * QUERIES * D;
    const AttentionShape &s = p.s;
    bf16 *v = k + KEYS * D, *tiles = v + KEYS * D;
    float2 *stats = (float2 *)(tiles + 2 * TILE);
    const int warp_row = (int)threadIdx.x / 32 * 16 * M, group = s.H / s.K;
    const FlashPlace place = flash_place(tiles_of_keys, s.K, s.B, section);
    const int j0 = place.tile * KEYS, kv = place.head, b = place.b, key0 = j0 + warp_row;
    const int first = s.causal ? j0 / QUERIES * QUERIES : 0;
    tile_pad<D>(k, 2 * KEYS + 4 * QUERIES, s.D);
    tile_copy<D, KEYS>(k, head_rows(p.k, b, kv), p.k.row, j0, s.T, s.D);
    tile_copy<D, KEYS>(v, head_rows(p.v, b, kv), p.v.row, j0, s.T, s.D);
    queries_copy<D, QUERIES>(tiles, stats, p, b, kv * group, first);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const LeftRows<D, M, KEPT> left(k + warp_row * D), left_v(v + warp_row * D);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    sums_zero(dk);
    sums_zero(dv);
    int h = kv * group, t0 = first;
    for (int turn = 0; h < (kv + 1) * group; turn ^= 1) {
        const int next_t0 = t0 + QUERIES < s.T ? t0 + QUERIES : first, next_h = t0 + QUERIES < s.T ? h : h + 1;
        const bf16 *q = tiles + turn * TILE, *g = q + QUERIES * D;
        copy_async_wait<0>();
        __syncthreads();  // this tile is there, and nobody reads the one before it any more
        if (next_h < (kv + 1) * group)
            queries_copy<D, QUERIES>(tiles + (turn ^ 1) * TILE, stats + (turn ^ 1) * QUERIES, p, b, next_h, next_t0);
        copy_async_commit();
#pragma unroll 1
        for (int i = 0; i < QUERIES; i += STEP) {
            float scores[M][STEP / 8][4], ds[M][STEP / 8][4];
            unsigned weights[M][STEP / 16][4];
            if (s.causal && t0 + i + STEP <= key0) continue;  // no query sees any of the warp's keys
            warp_scores(scores, left, q + i * D);
            warp_scores(ds, left_v, g + i * D);
            if (s.causal && t0 + i < key0 + 16 * M - 1) mask_columns(scores, t0 + i, key0);
            column_gradients(scores, ds, stats + turn * QUERIES + i, s.scale * LOG2E);
            warp_pack(weights, scores);
            warp_weigh<D>(dv, weights, g + i * D);
            warp_pack(weights, ds);
            warp_weigh<D>(dk, weights, q + i * D);
        }
        t0 = next_t0, h = next_h;
    }
    __syncthreads();  // nobody reads any tile any more
    const size_t stride = (size_t)(s.H + 2 * s.K) * s.D;
    bf16 *to = dqkv + b * s.T * stride + (size_t)(s.H + kv) * s.D;
    float *stage = (float *)k + warp_row * (D + 8);
    store_gradient<D, M>(to, stride, dk, s.scale, stage, key0, s.rope != NULL, s);
    store_gradient<D, M>(to + (size_t)s.K * s.D, stride, dv, 1.0f, stage, key0, false, s);
}

template <int D, int KEYS, int STEP, bool KEPT, int BLOCKS>
static void launch_flash_queries(bf16 *dqkv, const FlashPlan &p) {
    const unsigned tiles = cuda_blocks((size_t)p.s.T, FLASH_QUERIES), heads = (unsigned)(p.s.H * p.s.B);
    cuda_allow_shared(flash_backward_queries_kernel<D, KEYS, STEP, KEPT, BLOCKS>, flash_queries_shared<D, KEYS>());
    LAUNCH((flash_backward_queries_kernel<D, KEYS, STEP, KEPT, BLOCKS>), tiles * heads, FLASH_THREADS,
           (flash_queries_shared<D, KEYS>()), dqkv, p, (int)tiles, flash_section(p.s, p.s.H / p.s.K, 1));
}

template <int D, int M, int QUERIES, int STEP, bool KEPT, int BLOCKS>
static void launch_flash_keys(bf16 *dqkv, const FlashPlan &p) {
    const unsigned tiles = cuda_blocks((size_t)p.s.T, 16 * M * FLASH_WARPS), heads = (unsigned)(p.s.K * p.s.B);
    cuda_allow_shared(flash_backward_keys_kernel<D, M, QUERIES, STEP, KEPT, BLOCKS>,
                      flash_keys_shared<D, M, QUERIES>());
    LAUNCH((flash_backward_keys_kernel<D, M, QUERIES, STEP, KEPT, BLOCKS>), tiles * heads, FLASH_THREADS,
           (flash_keys_shared<D, M, QUERIES>()), dqkv, p, (int)tiles, flash_section(p.s, 1, p.s.H / p.s.K));
}

/* stats and, with RoPE, queries and keys turned, in the device's scratch memory. */
static FlashPlan flash_backward_plan(const bf16 *dout, const bf16 *out, const float *lse, const bf16 *qkv,
                                     const AttentionShape &s) {
    FlashPlan p = {};
    p.s = s;
    p.padded = (int)cuda_div_up((size_t)s.T, FLASH_QUERIES) * FLASH_QUERIES;
    size_t stats_bytes = (size_t)s.B * s.H * p.padded * sizeof(float2);
    size_t turned_bytes = s.rope ? (size_t)s.B * (s.H + s.K) * s.T * s.D * sizeof(bf16) : 0;
    float2 *stats = (float2 *)cuda_scratch(stats_bytes + turned_bytes);
    int lanes_log = 0;
    while (8 << lanes_log < s.D) lanes_log++;
    dim3 grid(cuda_blocks((size_t)p.padded << lanes_log, 256), (unsigned)s.H, (unsigned)s.B);
    LAUNCH(flash_stats_kernel, grid, 256, 0, stats, lse, dout, out, s, p.padded, lanes_log);
    p.stats = stats;
    p.q = rows_of_qkv(qkv, s, 0);
    p.k = rows_of_qkv(qkv, s, s.H);
    p.v = rows_of_qkv(qkv, s, s.H + s.K);
    HeadRows g = {dout, (size_t)s.T * s.H * s.D, (size_t)s.D, (unsigned)s.H * s.D};
    p.dout = g;
    p.turned = true;
    if (s.rope) {
        p.q = p.k = rows_turned((bf16 *)((char *)stats + stats_bytes), qkv, s, 0, s.H + s.K);
        p.k.x += s.H * p.k.head;
    }
    return p;
}

static void flash_backward(bf16 *dqkv, const bf16 *dout, const bf16 *out, const float *lse, const bf16 *qkv,
                           const AttentionShape &s) {
    const FlashPlan p = flash_backward_plan(dout, out, lse, qkv, s);
    if (s.D <= 32) {
        launch_flash_queries<32, 64, 32, true, 2>(dqkv, p);
        launch_flash_keys<32, 2, 64, 32, true, 2>(dqkv, p);
    } else if (s.D <= 64) {
        launch_flash_queries<64, 64, 32, true, 2>(dqkv, p);
        launch_flash_keys<64, 2, 64, 32, false, 2>(dqkv, p);
    } else if (s.D <= 80) {
        launch_flash_queries<80, 64, 32, false, 2>(dqkv, p);
        launch_flash_keys<80, 1, 64, 32, true, 2>(dqkv, p);
    } else {
        launch_flash_queries<128, 32, 32, false, 2>(dqkv, p);
        launch_flash_keys<128, 1, 32, 16, true, 2>(dqkv, p);
    }
}

/* Rows of a multiple of 16 bytes on 16-byte boundaries, a sequence of less than 2^32 elements, and scores whose order
 * is that of the products. */
template <typename... P> static bool flash_fits(const AttentionShape &s, const P *...p) {
    const bool few = ((size_t)s.T + 2 * FLASH_QUERIES) * (s.H + 2 * s.K) * s.D < (size_t)1 << 32;
    return s.D <= FLASH_HEAD && s.scale > 0.0f && few && vectors_fit((size_t)s.D, VECTOR, s.rope, p...);
}

#endif

/* ---- the table's entries ---- */

static void cuda_attention_forward(floatX *out, float *lse, const floatX *qkv, AttentionShape s) {
    if (s.B == 0 || s.T == 0) return;
#ifndef PRECISION_FP32
    if (flash_fits(s, out, qkv)) return flash_forward(out, lse, qkv, s);
#endif
    attention_forward_general(out, lse, qkv, s);
}

static void cuda_attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                    const floatX *qkv, AttentionShape s) {
    if (s.B == 0 || s.T == 0) return;
#ifndef PRECISION_FP32
    if (flash_fits(s, dqkv, dout, out, qkv)) return flash_backward(dqkv, dout, out, lse, qkv, s);
#endif
    attention_backward_general(dqkv, dout, out, lse, qkv, s);
}

#endif
