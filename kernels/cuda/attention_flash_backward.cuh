/* Attention on tensor cores, the backward pass; attention_flash.cuh has its tiles and the matmuls of a warp.
 *
 * With P = softmax(scale Q K^T), dP = dO V^T, delta_t = <dO_t, O_t>:
 *   dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO.
 * Two kernels compute them. In one a block owns queries (dQ), in the other keys (dK and dV, summed over the heads of
 * their group). P and dS never leave the registers, and no sum is shared between blocks, so the order of every sum is
 * fixed. This takes 7 matmuls in place of the 5 that one kernel with atomic additions to dQ would need. The tiles
 * that a block loops over alternate between two buffers in shared memory, with one barrier for each tile. */
#ifndef KERNELS_CUDA_ATTENTION_FLASH_BACKWARD_CUH
#define KERNELS_CUDA_ATTENTION_FLASH_BACKWARD_CUH

#include "attention_flash.cuh"

/* stats [B, H, padded] = (lse in powers of two, delta), of lse [B, H, T] and dout, out [B, T, H, D]; grid (rows, H,
 * B). Reads all once. */
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

/* Stores a warp's rows of a gradient, times `factor`, to rows t0.. of y, with the rotation undone if rotate. They go
 * through `stage`, [16 M, D + 8] floats that belong to this warp alone. */
template <int D, int M>
static __device__ __forceinline__ void store_gradient(bf16 *y, size_t stride, const float (&o)[M][D / 8][4],
                                                      float factor, float *stage, int t0, bool rotate,
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
        if (rotate) rotate_pairs(a, b, rope_at(s, t), c, half, -1.0f);
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

/* dS = P (dP - delta) in place of dP, from the scores, for a warp's queries and a few keys; `stats` of the queries in
 * shared memory. */
template <int M, int N>
static __device__ __forceinline__ void row_gradients(float (&ds)[M][N][4], const float (&scores)[M][N][4],
                                                     const float2 *stats, float scale) {
    const int lane = opaque_thread() % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float2 row = stats[16 * m + mma_row(lane, 2 * half)];
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++)
                    ds[m][n][i] = exp2_approx(fmaf(scores[m][n][i], scale, -row.x)) * (ds[m][n][i] - row.y);
        }
}

/* Copies the stats of rows t0.. of a head to shared memory, asynchronously. */
template <int ROWS>
static __device__ __forceinline__ void stats_copy(float2 *to, const FlashPlan &p, int b, int h, int t0) {
    const float2 *from = p.stats + ((size_t)b * p.s.H + h) * p.padded + t0;
    if (threadIdx.x < ROWS / 2) copy_async_16(to + 2 * threadIdx.x, from + 2 * threadIdx.x);
}

/* The queries' part of dqkv; the grid is the forward pass's. */
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
    const RowFragments<D, 2, KEPT> queries_a(q + warp_row * D), gradients_a(g + warp_row * D);
    for (int j0 = 0, buffer = 0; j0 < seen; j0 += KEYS, buffer ^= 1) {
        const bf16 *k = tiles + buffer * 2 * KEYS * D, *v = k + KEYS * D;
        bf16 *next = tiles + (buffer ^ 1) * 2 * KEYS * D;
        copy_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all have read the one before it
        if (j0 + KEYS < seen) {
            tile_copy<D, KEYS>(next, keys, p.k.row, j0 + KEYS, s.T, s.D);
            tile_copy<D, KEYS>(next + KEYS * D, values, p.v.row, j0 + KEYS, s.T, s.D);
        }
        copy_async_commit();
#pragma unroll 1
        for (int j = 0; j < KEYS && (!s.causal || j0 + j < query0 + 32); j += STEP) {
            float scores[2][STEP / 8][4], ds[2][STEP / 8][4];
            unsigned weights[2][STEP / 16][4];
            warp_scores(scores, queries_a, k + j * D);
            warp_scores(ds, gradients_a, v + j * D);
            if (j0 + j + STEP > (s.causal ? min(query0 + 1, s.T) : s.T))
                mask_scores(scores, query0, j0 + j, opaque_thread() % 32, s);
            row_gradients(ds, scores, stats + warp_row, s.scale * LOG2E);
            warp_pack(weights, ds);
            warp_weigh<D>(dq, weights, k + j * D);
        }
    }
    __syncthreads();  // all have read their last tiles
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

/* Sets the transposed scores of a warp's keys key0.. and queries query0.. to -inf where, under a causal mask, the
 * query does not see the key. */
template <int M, int N>
static __device__ __forceinline__ void mask_columns(float (&s)[M][N][4], int query0, int key0) {
    const int lane = opaque_thread() % 32;
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

/* Turns transposed scores and dP into P and dS; `stats` of the queries in shared memory. */
template <int M, int N>
static __device__ __forceinline__ void column_gradients(float (&scores)[M][N][4], float (&ds)[M][N][4],
                                                        const float2 *stats, float scale) {
    const int lane = opaque_thread() % 32;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float4 two = *(const float4 *)(stats + 8 * n + mma_column(lane, 0));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float lse = i % 2 ? two.z : two.x, delta = i % 2 ? two.w : two.y;
                scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], scale, -lse));
                ds[m][n][i] = scores[m][n][i] * (ds[m][n][i] - delta);
            }
    }
}

/* Copies a tile of queries, one of their gradients, and their stats, asynchronously. */
template <int D, int QUERIES>
static __device__ __forceinline__ void queries_copy(bf16 *tile, float2 *stats, const FlashPlan &p, int b, int h,
                                                    int t0) {
    tile_copy<D, QUERIES>(tile, head_rows(p.q, b, h), p.q.row, t0, p.s.T, p.s.D);
    tile_copy<D, QUERIES>(tile + QUERIES * D, head_rows(p.dout, b, h), p.dout.row, t0, p.s.T, p.s.D);
    stats_copy<QUERIES>(stats, p, b, h, t0);
}

/* The keys' and values' parts of dqkv; a block for each tile of 64 M keys of each key/value head. The keys that most
 * queries see come first. */
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
    const RowFragments<D, M, KEPT> keys_a(k + warp_row * D), values_a(v + warp_row * D);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    sums_zero(dk);
    sums_zero(dv);
    int h = kv * group, t0 = first;
    for (int buffer = 0; h < (kv + 1) * group; buffer ^= 1) {
        const int next_t0 = t0 + QUERIES < s.T ? t0 + QUERIES : first, next_h = t0 + QUERIES < s.T ? h : h + 1;
        const bf16 *q = tiles + buffer * TILE, *g = q + QUERIES * D;
        copy_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all have read the one before it
        if (next_h < (kv + 1) * group)
            queries_copy<D, QUERIES>(tiles + (buffer ^ 1) * TILE, stats + (buffer ^ 1) * QUERIES, p, b, next_h,
                                     next_t0);
        copy_async_commit();
#pragma unroll 1
        for (int i = 0; i < QUERIES; i += STEP) {
            float scores[M][STEP / 8][4], ds[M][STEP / 8][4];
            unsigned weights[M][STEP / 16][4];
            if (s.causal && t0 + i + STEP <= key0) continue;  // no query sees any of the warp's keys
            warp_scores(scores, keys_a, q + i * D);
            warp_scores(ds, values_a, g + i * D);
            if (s.causal && t0 + i < key0 + 16 * M - 1) mask_columns(scores, t0 + i, key0);
            column_gradients(scores, ds, stats + buffer * QUERIES + i, s.scale * LOG2E);
            warp_pack(weights, scores);
            warp_weigh<D>(dv, weights, g + i * D);
            warp_pack(weights, ds);
            warp_weigh<D>(dk, weights, q + i * D);
        }
        t0 = next_t0, h = next_h;
    }
    __syncthreads();  // all have read their last tiles
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

/* Computes the stats and, with RoPE, the rotated queries and keys, in scratch memory. */
static FlashPlan flash_backward_plan(const bf16 *dout, const bf16 *out, const float *lse, const bf16 *qkv,
                                     const AttentionShape &s) {
    FlashPlan p = {};
    p.s = s;
    p.padded = (int)cuda_div_up((size_t)s.T, FLASH_QUERIES) * FLASH_QUERIES;
    size_t stats_bytes = (size_t)s.B * s.H * p.padded * sizeof(float2);
    size_t rotated_bytes = s.rope ? (size_t)s.B * (s.H + s.K) * s.T * s.D * sizeof(bf16) : 0;
    float2 *stats = (float2 *)cuda_scratch(stats_bytes + rotated_bytes);
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
    p.rotated = true;
    if (s.rope) {
        p.q = p.k = rotated_rows((bf16 *)((char *)stats + stats_bytes), qkv, s, 0, s.H + s.K);
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

#endif
