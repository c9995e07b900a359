/* Attention in fp32 arithmetic, forward and backward, for every head size up to 512 and both storage types: what the
 * tensor cores' kernels (attention_flash.cuh) do not take. Full or causal, grouped queries, RoPE applied on the way
 * in, without an array of T x T scores (FlashAttention: Dao et al. 2022).
 *
 * A block owns a tile of rows (queries, or keys in one of the backward kernels) of one head and loops over tiles of
 * the other kind. Its 256 threads form a square of 16 x 16: thread (y, x) owns ROWS rows from y * ROWS on, the
 * columns x + 16 j of a tile of scores, and the columns 2 x + 32 j (in pairs) of a result. So the threads of a row
 * are 16 neighbours in one warp, and the row's maximum, sum and probabilities never leave that warp. All the
 * arithmetic is in two matmuls of tiles, tile_scores and tile_weigh, from shared memory into registers. */
#ifndef KERNELS_CUDA_ATTENTION_GENERAL_CUH
#define KERNELS_CUDA_ATTENTION_GENERAL_CUH

#include "attention_rows.cuh"

enum { SIDE = 16, ATTENTION_THREADS = SIDE * SIDE };

/* The arguments that all kernels here share. */
typedef struct {
    AttentionShape s;
    int ld;         // floats between the rows of a tile in shared memory. It is 4 more than a multiple of 8, so that
                    // rows of which neighbouring threads read 16 bytes begin in different banks
    int lanes_log;  // 2^lanes_log threads load or store a row
} AttentionPlan;

static AttentionPlan attention_plan(AttentionShape s, int width) {
    AttentionPlan p = {s, (s.D + 7) / 8 * 8 + 4, 0};
    while (p.lanes_log < 5 && width << p.lanes_log < s.D) p.lanes_log++;
    return p;
}

/* tile [rows, ld] = rows t0.. of a head, `stride` elements apart in x, rotated if rotate. It is zero beyond row T
 * and, up to a multiple of 4, beyond column D. */
template <int WIDTH>
static __device__ __forceinline__ void load_tile(float *tile, int rows, const floatX *x, size_t stride, int t0,
                                                 bool rotate, const AttentionPlan &p) {
    const int D = p.s.D, lane = threadIdx.x & ((1 << p.lanes_log) - 1);
    for (int row = threadIdx.x >> p.lanes_log; row < rows; row += ATTENTION_THREADS >> p.lanes_log)
        for (int c = lane * WIDTH; c < ((D + 3) & ~3); c += WIDTH << p.lanes_log) {
            const int t = t0 + row;
            Floats<WIDTH> v = {};
            if (t < p.s.T && c < D)
                v = load_rotated<WIDTH>(x + t * stride, rotate ? rope_at(p.s, t) : NULL, c, D, 1.0f);
            store<WIDTH>(tile + row * p.ld + c, v);
        }
}

/* Stores a thread's part of a result tile [16 ROWS, D], times factor[row], to rows t0.. of y, with the rotation
 * undone if rotate. The tile goes through shared memory, so that whole rows are written. `stage` is a tile whose rows
 * only this warp has used, and not since the last tile_weigh, in which the warp's lanes wait for each other. */
template <int WIDTH, int ROWS, int PAIRS>
static __device__ __forceinline__ void store_tile(floatX *y, size_t stride, float2 (&o)[ROWS][PAIRS],
                                                  const float (&factor)[ROWS], float *stage, int t0, bool rotate,
                                                  const AttentionPlan &p) {
    const int D = p.s.D, x = threadIdx.x % SIDE, first = threadIdx.x / SIDE * ROWS;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            float *at = stage + (first + i) * p.ld + 2 * x + 32 * j;
            if (2 * x + 32 * j < D) *(float2 *)at = make_float2(o[i][j].x * factor[i], o[i][j].y * factor[i]);
        }
    __syncwarp();
    for (int i = 0; i < ROWS && t0 + first + i < p.s.T; i++)
        for (int c = x * WIDTH; c < D; c += SIDE * WIDTH) {
            const int t = t0 + first + i;
            const float *angles = rotate ? rope_at(p.s, t) : NULL;
            store<WIDTH>(y + t * stride + c, load_rotated<WIDTH>(stage + (first + i) * p.ld, angles, c, D, -1.0f));
        }
}

/* ---- the two matmuls of tiles ---- */

/* s[i][j] = <row i of this thread's rows of a, row x + 16 j of b> over D columns. ROWS + COLS loads of 16 bytes serve
 * 4 ROWS COLS multiplications. */
template <int ROWS, int COLS>
static __device__ __forceinline__ void tile_scores(float (&s)[ROWS][COLS], const float *a, const float *b,
                                                   const AttentionPlan &p) {
    a += threadIdx.x / SIDE * ROWS * p.ld;
    b += threadIdx.x % SIDE * p.ld;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) s[i][j] = 0.0f;
#pragma unroll 2
    for (int d = 0; d < p.s.D; d += 4) {
        float4 left[ROWS], right[COLS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) left[i] = *(const float4 *)(a + i * p.ld + d);
#pragma unroll
        for (int j = 0; j < COLS; j++) right[j] = *(const float4 *)(b + SIDE * j * p.ld + d);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++) {
                s[i][j] = fmaf(left[i].x, right[j].x, s[i][j]);
                s[i][j] = fmaf(left[i].y, right[j].y, s[i][j]);
                s[i][j] = fmaf(left[i].z, right[j].z, s[i][j]);
                s[i][j] = fmaf(left[i].w, right[j].w, s[i][j]);
            }
    }
}

/* o[i] += sum over rows r of b of w(i, r) b[r]. The weights [16 ROWS, 16 COLS] arrive in registers, laid out as
 * tile_scores leaves its scores, and reach the row's other threads through `weights` in shared memory. */
template <int ROWS, int COLS, int PAIRS>
static __device__ __forceinline__ void tile_weigh(float2 (&o)[ROWS][PAIRS], const float (&w)[ROWS][COLS],
                                                  float *weights, const float *b, const AttentionPlan &p) {
    const int ldw = SIDE * COLS + 4, x = threadIdx.x % SIDE, last = ((p.s.D + 3) & ~3) - 2;
    weights += threadIdx.x / SIDE * ROWS * ldw;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) weights[i * ldw + x + SIDE * j] = w[i][j];
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < SIDE * COLS; r += 4) {
        Floats<4> left[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) left[i] = load<4>(weights + i * ldw + r);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                const float2 right = *(const float2 *)(b + (r + k) * p.ld + min(2 * x + 32 * j, last));
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    o[i][j].x = fmaf(left[i].x[k], right.x, o[i][j].x);
                    o[i][j].y = fmaf(left[i].x[k], right.y, o[i][j].y);
                }
            }
    }
}

template <int ROWS, int PAIRS> static __device__ __forceinline__ void tile_zero(float2 (&o)[ROWS][PAIRS]) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < PAIRS; j++) o[i][j] = make_float2(0.0f, 0.0f);
}

/* ---- forward ---- */

static __device__ __forceinline__ bool sees(const AttentionShape &s, int query, int key) {
    return key < s.T && query < s.T && (!s.causal || key <= query);
}

/* The largest value of a row, or its sum, over the 16 threads of the row; all of them get it. */
static __device__ __forceinline__ float row_max(float x) {
    for (int n = SIDE / 2; n > 0; n /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, n));
    return x;
}

static __device__ __forceinline__ float row_sum(float x) {
    for (int n = SIDE / 2; n > 0; n /= 2) x += __shfl_xor_sync(ALL_LANES, x, n);
    return x;
}

/* One step of the online softmax (Milakov & Gimelshein 2018), in powers of two: turns the scores of the next tile of
 * keys into probabilities relative to the largest score so far, and rescales the earlier sums to it. `sum` covers
 * this thread's columns only. */
template <int ROWS, int COLS, int PAIRS>
static __device__ __forceinline__ void softmax_step(float (&s)[ROWS][COLS], float (&top)[ROWS], float (&sum)[ROWS],
                                                    float2 (&o)[ROWS][PAIRS], int query, int key,
                                                    const AttentionShape &shape) {
    const float scale = shape.scale * LOG2E;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float largest = top[i];
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            const int k = key + SIDE * j;
            s[i][j] = k < shape.T && (!shape.causal || k <= query + i) ? s[i][j] * scale : -INFINITY;
            largest = fmaxf(largest, s[i][j]);
        }
        largest = row_max(largest);
        const float rescale = exp2f(top[i] - largest);
        top[i] = largest;
        sum[i] *= rescale;
#pragma unroll
        for (int j = 0; j < COLS; j++) sum[i] += s[i][j] = exp2f(s[i][j] - largest);
#pragma unroll
        for (int j = 0; j < PAIRS; j++) o[i][j] = make_float2(o[i][j].x * rescale, o[i][j].y * rescale);
    }
}

template <int ROWS, int COLS> static size_t attention_forward_shared(int ld) {
    int keys = SIDE * COLS * ld, weights = SIDE * ROWS * (SIDE * COLS + 4);
    return (size_t)(SIDE * ROWS * ld + (keys > weights ? keys : weights) + keys) * sizeof(float);
}

/* out [B, T, H*D], lse [B, H, T]; grid (tiles of 16 ROWS queries, H, B), the longest rows of a causal mask first. The
 * probabilities are stored over the keys in shared memory. Keys and values are read once for every tile of queries;
 * the kernel is bound by its arithmetic. */
template <int ROWS, int COLS, int PAIRS, int WIDTH>
static __global__ void __launch_bounds__(ATTENTION_THREADS, WIDTH == 1 ? 1 : 2)
    attention_forward_kernel(floatX *out, float *lse, const floatX *qkv, AttentionPlan p) {
    DYNAMIC_SHARED(float, shared);
    const AttentionShape &s = p.s;
    const int QUERIES = SIDE * ROWS, KEYS = SIDE * COLS, weights = QUERIES * (KEYS + 4);
    float *q = shared, *k = q + QUERIES * p.ld, *v = k + max(KEYS * p.ld, weights);
    const int t0 = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES, h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int y = (int)threadIdx.x / SIDE * ROWS, x = (int)threadIdx.x % SIDE;
    const size_t stride = (size_t)(s.H + 2 * s.K) * s.D;
    const floatX *row = qkv + b * s.T * stride, *keys = row + (s.H + h / (s.H / s.K)) * (size_t)s.D;
    float2 o[ROWS][PAIRS];
    float top[ROWS], sum[ROWS], scores[ROWS][COLS];
    tile_zero(o);
#pragma unroll
    for (int i = 0; i < ROWS; i++) top[i] = -INFINITY, sum[i] = 0.0f;
    load_tile<WIDTH>(q, QUERIES, row + h * (size_t)s.D, stride, t0, true, p);
    const int seen = s.causal ? min(t0 + QUERIES, s.T) : s.T;
    for (int j0 = 0; j0 < seen; j0 += KEYS) {
        __syncthreads();  // all have read the previous tiles
        load_tile<WIDTH>(k, KEYS, keys, stride, j0, true, p);
        load_tile<WIDTH>(v, KEYS, keys + s.K * (size_t)s.D, stride, j0, false, p);
        __syncthreads();
        tile_scores(scores, q, k, p);
        softmax_step(scores, top, sum, o, t0 + y, j0 + x, s);
        __syncthreads();  // all have read the keys, and the probabilities may replace them
        tile_weigh<ROWS, COLS>(o, scores, k, v, p);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const float total = row_sum(sum[i]);
        const int t = t0 + y + i;
        if (lse && x == 0 && t < s.T) lse[((size_t)b * s.H + h) * s.T + t] = (top[i] + log2f(total)) * LN2;
        sum[i] = 1.0f / total;
    }
    floatX *to = out + ((size_t)b * s.T * s.H + h) * s.D;
    store_tile<WIDTH>(to, (size_t)s.H * s.D, o, sum, q, t0, false, p);
}

template <int ROWS, int COLS, int PAIRS, int WIDTH>
static void launch_attention_forward(floatX *out, float *lse, const floatX *qkv, AttentionPlan p) {
    size_t bytes = attention_forward_shared<ROWS, COLS>(p.ld);
    dim3 grid(cuda_blocks((size_t)p.s.T, SIDE * ROWS), (unsigned)p.s.H, (unsigned)p.s.B);
    cuda_allow_shared(attention_forward_kernel<ROWS, COLS, PAIRS, WIDTH>, bytes);
    LAUNCH((attention_forward_kernel<ROWS, COLS, PAIRS, WIDTH>), grid, ATTENTION_THREADS, bytes, out, lse, qkv, p);
}

/* Calls launch<ROWS, COLS, PAIRS, WIDTH> with the tile size for the head size: 32 PAIRS columns hold a row, and a
 * thread's 2 ROWS PAIRS results stay in registers. */
#define ATTENTION_TILES(launch, cols, width, D, ...)    \
    do {                                                \
        if ((D) <= 64)                                  \
            launch<4, cols, 2, width>(__VA_ARGS__);     \
        else if ((D) <= 96)                             \
            launch<4, cols, 3, width>(__VA_ARGS__);     \
        else if ((D) <= 128)                            \
            launch<4, cols, 4, width>(__VA_ARGS__);     \
        else if ((D) <= 256)                            \
            launch<2, cols / 2, 8, width>(__VA_ARGS__); \
        else                                            \
            launch<1, 1, 16, width>(__VA_ARGS__);       \
    } while (0)

static void attention_forward_general(floatX *out, float *lse, const floatX *qkv, const AttentionShape &s) {
    attention_check(&s);
    if (attention_vectors(s, out, qkv))
        ATTENTION_TILES(launch_attention_forward, 4, VECTOR, s.D, out, lse, qkv, attention_plan(s, VECTOR));
    else
        ATTENTION_TILES(launch_attention_forward, 4, 1, s.D, out, lse, qkv, attention_plan(s, 1));
}

/* ---- backward ----
 * With P = softmax(scale Q K^T), dP = dO V^T, delta_t = <dO_t, O_t>:
 *   dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO.
 * Two kernels compute them. In one a block owns queries and sums over keys (dQ); in the other it owns keys and sums
 * over the queries of all heads of their group (dK, dV). Each recomputes P from the saved log-sum-exp, and no sum is
 * shared between blocks, so the order of every sum is fixed.
 *
 * A block loops over two tiles at a time, K and V or Q and dO. With heads of more than 96 channels only one of them
 * is in shared memory at a time (`together` is false), so that 99 KB are enough, which is what GPUs outside data
 * centres have. */

static __host__ __device__ constexpr bool tiles_together(int pairs) { return pairs <= 3; }

/* delta [B, H, T] = <dout, out> over D, of dout and out [B, T, H, D]; a warp takes 32 / 2^lanes_log rows. Reads both
 * once. */
template <int WIDTH>
static __global__ void attention_delta_kernel(float *delta, const floatX *dout, const floatX *out, AttentionPlan p) {
    const AttentionShape &s = p.s;
    const int lanes = 1 << p.lanes_log, lane = (int)threadIdx.x & (lanes - 1);
    const size_t row = ((size_t)blockIdx.x * ATTENTION_THREADS + threadIdx.x) >> p.lanes_log;
    const size_t bt = row / s.H, h = row % s.H;
    const bool inside = row < (size_t)s.B * s.T * s.H;
    float sum = 0.0f;
    for (int c = lane * WIDTH; c < s.D && inside; c += lanes * WIDTH) {
        const Floats<WIDTH> a = load<WIDTH>(dout + row * s.D + c), b = load<WIDTH>(out + row * s.D + c);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum = fmaf(a.x[i], b.x[i], sum);
    }
    for (int n = lanes / 2; n > 0; n /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, n);
    if (inside && lane == 0) delta[(bt / s.T * s.H + h) * s.T + bt % s.T] = sum;
}

/* A score's probability, given its row's log-sum-exp in powers of two; 0 where the query does not see the key. */
static __device__ __forceinline__ float probability(float score, float lse, int query, int key,
                                                    const AttentionShape &s) {
    return sees(s, query, key) ? exp2f(score * (s.scale * LOG2E) - lse) : 0.0f;
}

template <int ROWS, int COLS, int PAIRS> static size_t attention_backward_shared(int ld) {
    const int tiles = 2 * ROWS + (tiles_together(PAIRS) ? 2 : 1) * COLS;
    return (size_t)(SIDE * tiles * ld + SIDE * ROWS * (SIDE * COLS + 4)) * sizeof(float);
}

/* The queries' part of dqkv; grid as in the forward pass. */
template <int ROWS, int COLS, int PAIRS, int WIDTH>
static __global__ void __launch_bounds__(ATTENTION_THREADS, WIDTH == 1 ? 1 : 2)
    attention_backward_queries_kernel(floatX *dqkv, const floatX *dout, const float *lse, const float *delta,
                                      const floatX *qkv, AttentionPlan p) {
    DYNAMIC_SHARED(float, shared);
    const AttentionShape &s = p.s;
    const int QUERIES = SIDE * ROWS, KEYS = SIDE * COLS;
    const bool together = tiles_together(PAIRS);
    float *q = shared, *g = q + QUERIES * p.ld, *k = g + QUERIES * p.ld, *v = together ? k + KEYS * p.ld : k;
    float *w = v + KEYS * p.ld;
    const int t0 = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES, h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int y = (int)threadIdx.x / SIDE * ROWS, x = (int)threadIdx.x % SIDE;
    const size_t stride = (size_t)(s.H + 2 * s.K) * s.D, head = h * (size_t)s.D, at = ((size_t)b * s.H + h) * s.T;
    const floatX *row = qkv + b * s.T * stride, *keys = row + (s.H + h / (s.H / s.K)) * (size_t)s.D;
    float2 dq[ROWS][PAIRS];
    float row_lse[ROWS], row_delta[ROWS], prob[ROWS][COLS], ds[ROWS][COLS];
    tile_zero(dq);
    load_tile<WIDTH>(q, QUERIES, row + head, stride, t0, true, p);
    load_tile<WIDTH>(g, QUERIES, dout + (size_t)b * s.T * s.H * s.D + head, (size_t)s.H * s.D, t0, false, p);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int t = min(t0 + y + i, s.T - 1);
        row_lse[i] = lse[at + t] * LOG2E;
        row_delta[i] = delta[at + t];
    }
    const int seen = s.causal ? min(t0 + QUERIES, s.T) : s.T;
    for (int j0 = 0; j0 < seen; j0 += KEYS) {
        __syncthreads();
        load_tile<WIDTH>(v, KEYS, keys + s.K * (size_t)s.D, stride, j0, false, p);
        if (!together) {
            __syncthreads();
            tile_scores(ds, g, v, p);
            __syncthreads();
        }
        load_tile<WIDTH>(k, KEYS, keys, stride, j0, true, p);
        __syncthreads();
        if (together) tile_scores(ds, g, v, p);
        tile_scores(prob, q, k, p);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++)
                ds[i][j] =
                    (ds[i][j] - row_delta[i]) * probability(prob[i][j], row_lse[i], t0 + y + i, j0 + x + SIDE * j, s);
        tile_weigh<ROWS, COLS>(dq, ds, w, k, p);
    }
    float scale[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) scale[i] = s.scale;
    store_tile<WIDTH>(dqkv + b * s.T * stride + head, stride, dq, scale, q, t0, true, p);
}

/* The keys' and values' parts of dqkv; grid (tiles of 16 ROWS keys, K, B). */
template <int ROWS, int COLS, int PAIRS, int WIDTH>
static __global__ void __launch_bounds__(ATTENTION_THREADS, WIDTH == 1 || PAIRS > 2 ? 1 : 2)
    attention_backward_keys_kernel(floatX *dqkv, const floatX *dout, const float *lse, const float *delta,
                                   const floatX *qkv, AttentionPlan p) {
    DYNAMIC_SHARED(float, shared);
    const AttentionShape &s = p.s;
    const int KEYS = SIDE * ROWS, QUERIES = SIDE * COLS, group = s.H / s.K;
    const bool together = tiles_together(PAIRS);
    float *k = shared, *v = k + KEYS * p.ld, *q = v + KEYS * p.ld, *g = together ? q + QUERIES * p.ld : q;
    float *w = g + QUERIES * p.ld;
    const int j0 = (int)blockIdx.x * KEYS, kv = (int)blockIdx.y, b = (int)blockIdx.z;
    const int y = (int)threadIdx.x / SIDE * ROWS, x = (int)threadIdx.x % SIDE;
    const size_t D = s.D, stride = (size_t)(s.H + 2 * s.K) * D, key = (s.H + kv) * D, value = key + s.K * D;
    const floatX *row = qkv + b * s.T * stride;
    float2 dk[ROWS][PAIRS], dv[ROWS][PAIRS];
    tile_zero(dk);
    tile_zero(dv);
    load_tile<WIDTH>(k, KEYS, row + key, stride, j0, true, p);
    load_tile<WIDTH>(v, KEYS, row + value, stride, j0, false, p);
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        const size_t at = ((size_t)b * s.H + h) * s.T;
        for (int t0 = s.causal ? j0 / QUERIES * QUERIES : 0; t0 < s.T; t0 += QUERIES) {
            float prob[ROWS][COLS], ds[ROWS][COLS];
            const floatX *gradients = dout + ((size_t)b * s.T * s.H + h) * D;
            __syncthreads();
            if (!together) {
                load_tile<WIDTH>(g, QUERIES, gradients, s.H * D, t0, false, p);
                __syncthreads();
                tile_scores(ds, v, g, p);
                __syncthreads();
            }
            load_tile<WIDTH>(q, QUERIES, row + h * D, stride, t0, true, p);
            if (together) load_tile<WIDTH>(g, QUERIES, gradients, s.H * D, t0, false, p);
            __syncthreads();
            if (together) tile_scores(ds, v, g, p);
            tile_scores(prob, k, q, p);
#pragma unroll
            for (int j = 0; j < COLS; j++) {
                const int t = t0 + x + SIDE * j, inside = min(t, s.T - 1);
                const float query_lse = lse[at + inside] * LOG2E, query_delta = delta[at + inside];
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    prob[i][j] = probability(prob[i][j], query_lse, t, j0 + y + i, s);
                    ds[i][j] = prob[i][j] * (ds[i][j] - query_delta);
                }
            }
            tile_weigh<ROWS, COLS>(dk, ds, w, q, p);
            if (!together) {
                __syncthreads();
                load_tile<WIDTH>(g, QUERIES, gradients, s.H * D, t0, false, p);
                __syncthreads();
            }
            tile_weigh<ROWS, COLS>(dv, prob, w, g, p);
        }
    }
    float scale[ROWS], one[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) scale[i] = s.scale, one[i] = 1.0f;
    floatX *to = dqkv + b * s.T * stride;
    store_tile<WIDTH>(to + key, stride, dk, scale, k, j0, true, p);
    store_tile<WIDTH>(to + value, stride, dv, one, v, j0, false, p);
}

template <int ROWS, int COLS, int PAIRS, int WIDTH>
static void launch_attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                      const floatX *qkv, AttentionPlan p) {
    size_t rows = (size_t)p.s.B * p.s.T * p.s.H, bytes = attention_backward_shared<ROWS, COLS, PAIRS>(p.ld);
    float *delta = (float *)cuda_scratch(rows * sizeof(float));
    unsigned tiles = cuda_blocks((size_t)p.s.T, SIDE * ROWS);
    dim3 queries(tiles, (unsigned)p.s.H, (unsigned)p.s.B), keys(tiles, (unsigned)p.s.K, (unsigned)p.s.B);
    cuda_allow_shared(attention_backward_queries_kernel<ROWS, COLS, PAIRS, WIDTH>, bytes);
    cuda_allow_shared(attention_backward_keys_kernel<ROWS, COLS, PAIRS, WIDTH>, bytes);
    LAUNCH(attention_delta_kernel<WIDTH>, cuda_blocks(rows << p.lanes_log, ATTENTION_THREADS), ATTENTION_THREADS, 0,
           delta, dout, out, p);
    LAUNCH((attention_backward_queries_kernel<ROWS, COLS, PAIRS, WIDTH>), queries, ATTENTION_THREADS, bytes, dqkv,
           dout, lse, delta, qkv, p);
    LAUNCH((attention_backward_keys_kernel<ROWS, COLS, PAIRS, WIDTH>), keys, ATTENTION_THREADS, bytes, dqkv, dout,
           lse, delta, qkv, p);
}

static void attention_backward_general(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                       const floatX *qkv, const AttentionShape &s) {
    attention_check(&s);
    if (attention_vectors(s, dqkv, dout, out, qkv))
        ATTENTION_TILES(launch_attention_backward, 2, VECTOR, s.D, dqkv, dout, out, lse, qkv,
                        attention_plan(s, VECTOR));
    else
        ATTENTION_TILES(launch_attention_backward, 2, 1, s.D, dqkv, dout, out, lse, qkv, attention_plan(s, 1));
}

#endif
