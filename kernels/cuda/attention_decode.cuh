/* Attention of new tokens against the keys and values of the tokens before them, and the caches that hold those. */
#ifndef KERNELS_CUDA_ATTENTION_DECODE_CUH
#define KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "attention_rows.cuh"

/* ---- the caches ---- [B, K, max_T, D], keys rotated */

enum { CACHE_THREADS = 256 };

/* Stores the key and value of each head and row (b, t) of qkv at position `start + t`; a warp stores one. */
template <int WIDTH>
static __global__ void cache_store_kernel(floatX *kcache, floatX *vcache, const floatX *qkv, AttentionShape s,
                                          int start, int max_T) {
    const size_t item = ((size_t)blockIdx.x * CACHE_THREADS + threadIdx.x) / 32, D = s.D;
    if (item >= (size_t)s.B * s.T * s.K) return;
    const size_t kv = item % s.K, row = item / s.K, b = row / s.T, position = start + row % s.T;
    const floatX *key = qkv + row * (s.H + 2 * s.K) * D + (s.H + kv) * D, *value = key + s.K * D;
    const size_t at = ((b * s.K + kv) * max_T + position) * D;
    for (int c = (int)threadIdx.x % 32 * WIDTH; c < s.D; c += 32 * WIDTH) {
        store<WIDTH>(kcache + at + c, load_rotated<WIDTH>(key, rope_at(s, (int)position), c, s.D, 1.0f));
        store<WIDTH>(vcache + at + c, load<WIDTH>(value + c));
    }
}

static void cuda_cache_store(floatX *kcache, floatX *vcache, const floatX *qkv, AttentionShape s, int start,
                             int max_T) {
    unsigned blocks = cuda_blocks((size_t)s.B * s.T * s.K, CACHE_THREADS / 32);
    if (blocks == 0) return;
    if (attention_vectors(s, kcache, vcache, qkv))
        LAUNCH(cache_store_kernel<VECTOR>, blocks, CACHE_THREADS, 0, kcache, vcache, qkv, s, start, max_T);
    else
        LAUNCH(cache_store_kernel<1>, blocks, CACHE_THREADS, 0, kcache, vcache, qkv, s, start, max_T);
}

/* ---- decoding ----
 * The positions are cut into chunks, so that a single sequence keeps the GPU busy. A block reads the keys and values
 * of one chunk of one key/value head once, for up to HEADS query heads of its group. For each of these it stores the
 * largest score, the sum of the probabilities relative to it, and the values weighted by them. A second kernel
 * combines the chunks in order. The chunks depend on the cache's size only, so a result does not depend on what else
 * is decoded. Each of several new tokens of a sequence has blocks of its own, which read the chunk again, mostly from the
 * second-level cache. */

enum { DECODE_THREADS = 128, DECODE_WARPS = DECODE_THREADS / 32, DECODE_ROWS = 4 };

typedef struct {
    AttentionShape s;
    int max_T, chunk, chunks;  // positions in a chunk, chunks in the cache
    int lanes_log;             // 2^lanes_log threads read a row
} DecodePlan;

/* A chunk's result for one query head. */
typedef struct {
    float top, sum;  // scores are in powers of two
} DecodePart;

/* q [HEADS, D] = query heads first .. first + HEADS of key/value head kv's group, rotated, and scaled for powers of
 * two; zero beyond the group. */
template <int HEADS>
static __device__ __forceinline__ void decode_load(float *q, const floatX *row, int kv, int first, int position,
                                                   const AttentionShape &s) {
    const int D = s.D, group = s.H / s.K;
    const float *rope = rope_at(s, position);
    for (int i = (int)threadIdx.x; i < HEADS * D; i += DECODE_THREADS) {
        const int head = first + i / D;
        const floatX *from = row + (size_t)(kv * group + head) * D;
        q[i] = head < group ? load_rotated<1>(from, rope, i % D, D, 1.0f).x[0] * (s.scale * LOG2E) : 0.0f;
    }
}

/* Stores the new keys, rotated, and values of head kv at positions begin .. end - 1; row is that of position begin. */
static __device__ __forceinline__ void decode_store(floatX *keys, floatX *values, const floatX *row, int kv, int begin,
                                                    int end, const AttentionShape &s) {
    const int D = s.D;
    for (int position = begin; position < end; position++, row += (size_t)(s.H + 2 * s.K) * D) {
        const float *rope = rope_at(s, position);
        const floatX *from = row + (size_t)(s.H + kv) * D;
        for (int c = (int)threadIdx.x; c < D; c += DECODE_THREADS) {
            keys[(size_t)position * D + c] = from_float<floatX>(load_rotated<1>(from, rope, c, D, 1.0f).x[0]);
            values[(size_t)position * D + c] = from[(size_t)s.K * D + c];
        }
    }
}

/* The row of this thread's u-th load after `base`. Groups of 2^lanes_log threads take rows in turn, DECODE_ROWS at a
 * time, so that as many loads are under way. */
static __device__ __forceinline__ int decode_row(int base, int u, const DecodePlan &p) {
    return base + ((u * DECODE_THREADS + (int)threadIdx.x) >> p.lanes_log);
}

/* scores [HEADS, chunk] = q K^T, of q [HEADS, D] and `rows` keys. */
template <int HEADS, int WIDTH>
static __device__ __forceinline__ void decode_scores(float *scores, const float *q, const floatX *keys, int rows,
                                                     const DecodePlan &p) {
    const int D = p.s.D, lanes = 1 << p.lanes_log, lane = (int)threadIdx.x & (lanes - 1);
    for (int base = 0; base < rows; base += DECODE_ROWS * DECODE_THREADS >> p.lanes_log) {
        float sum[DECODE_ROWS][HEADS] = {};
        for (int c = lane * WIDTH; c < D; c += lanes * WIDTH) {
            Floats<WIDTH> key[DECODE_ROWS];
#pragma unroll
            for (int u = 0; u < DECODE_ROWS; u++)
                key[u] = load<WIDTH>(keys + (size_t)min(decode_row(base, u, p), rows - 1) * D + c);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const Floats<WIDTH> query = load<WIDTH>(q + h * D + c);
#pragma unroll
                for (int u = 0; u < DECODE_ROWS; u++)
#pragma unroll
                    for (int i = 0; i < WIDTH; i++) sum[u][h] = fmaf(query.x[i], key[u].x[i], sum[u][h]);
            }
        }
#pragma unroll
        for (int u = 0; u < DECODE_ROWS; u++)
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                for (int n = lanes / 2; n > 0; n /= 2) sum[u][h] += __shfl_xor_sync(ALL_LANES, sum[u][h], n);
                const int row = decode_row(base, u, p);
                if (lane == 0 && row < rows) scores[h * p.chunk + row] = sum[u][h];
            }
    }
}

/* Turns the scores [HEADS, chunk] into probabilities relative to the largest of each head; a warp takes a head. */
template <int HEADS>
static __device__ __forceinline__ void decode_softmax(float *scores, DecodePart *parts, int rows, int heads,
                                                      const DecodePlan &p) {
    const int lane = (int)threadIdx.x % 32;
    for (int h = (int)threadIdx.x / 32; h < HEADS; h += DECODE_WARPS) {
        float *x = scores + h * p.chunk, top = -INFINITY, sum = 0.0f;
        for (int r = lane; r < rows; r += 32) top = fmaxf(top, x[r]);
        top = warp_max(top);
        for (int r = lane; r < rows; r += 32) sum += x[r] = exp2f(x[r] - top);
        sum = warp_sum(sum);
        if (lane == 0 && h < heads) parts[(size_t)h * p.chunks].top = top, parts[(size_t)h * p.chunks].sum = sum;
    }
}

/* Adds this thread's part of the weighted values to o: columns c .. c+WIDTH of the rows that it takes in turn. */
template <int HEADS, int WIDTH>
static __device__ __forceinline__ void decode_values(Floats<WIDTH> (&o)[HEADS], const float *weights,
                                                     const floatX *values, int rows, const DecodePlan &p) {
    for (int base = 0; base < rows; base += DECODE_ROWS * DECODE_THREADS >> p.lanes_log) {
        Floats<WIDTH> value[DECODE_ROWS];
#pragma unroll
        for (int u = 0; u < DECODE_ROWS; u++)
            value[u] = load<WIDTH>(values + (size_t)min(decode_row(base, u, p), rows - 1) * p.s.D);
#pragma unroll
        for (int u = 0; u < DECODE_ROWS; u++) {
            const int row = decode_row(base, u, p);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float w = row < rows ? weights[h * p.chunk + row] : 0.0f;
#pragma unroll
                for (int i = 0; i < WIDTH; i++) o[h].x[i] = fmaf(w, value[u].x[i], o[h].x[i]);
            }
        }
    }
}

/* Sums columns c0 .. c0 + width of the weighted values of all heads over the block's groups of threads: first within
 * a warp, then over the warps in order, through `sums` [DECODE_WARPS, HEADS, width]. */
template <int HEADS, int WIDTH>
static __device__ __forceinline__ void decode_reduce(float *out, Floats<WIDTH> (&o)[HEADS], float *sums, int c0,
                                                     int heads, const DecodePlan &p) {
    const int lanes = 1 << p.lanes_log, width = WIDTH << p.lanes_log, D = p.s.D;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            for (int n = 16; n >= lanes; n /= 2) o[h].x[i] += __shfl_xor_sync(ALL_LANES, o[h].x[i], n);
        if (lane < lanes) store<WIDTH>(sums + (warp * HEADS + h) * width + lane * WIDTH, o[h]);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < HEADS * width; i += DECODE_THREADS) {
        const int h = i / width, c = c0 + i % width;
        float sum = 0.0f;
        for (int w = 0; w < DECODE_WARPS; w++) sum += sums[w * HEADS * width + i];
        if (h < heads && c < D) out[(size_t)h * p.chunks * D + c] = sum;
    }
    __syncthreads();
}

template <int HEADS, int WIDTH> static size_t decode_shared(const DecodePlan &p) {
    return (size_t)HEADS * (p.s.D + p.chunk + DECODE_WARPS * (WIDTH << p.lanes_log)) * sizeof(float);
}

/* parts [B, T, H, chunks], o [B, T, H, chunks, D]; grid (chunks, K * ceil(group / HEADS), B * T). Chunks after a
 * token's position have nothing to do. A block stores those new keys and values in its chunk that its token attends to:
 * every block of the group and every later token does, with the same bytes, so that none waits for another. */
template <int HEADS, int WIDTH>
static __global__ void __launch_bounds__(DECODE_THREADS, 1)
    attention_decode_kernel(DecodePart *parts, float *o, floatX *kcache, floatX *vcache, const floatX *qkv,
                            const int *positions, DecodePlan p) {
    DYNAMIC_SHARED(float, q);
    const AttentionShape &s = p.s;
    const int D = s.D, group = s.H / s.K, blocks = (group + HEADS - 1) / HEADS;
    const int kv = (int)blockIdx.y / blocks, first = (int)blockIdx.y % blocks * HEADS,
              heads = min(HEADS, group - first);
    let_next_begin();
    wait_for_previous();
    const int token = (int)blockIdx.z, b = token / s.T, start = positions[b], position = start + token % s.T;
    const int begin = (int)blockIdx.x * p.chunk, fresh = max(begin, start);  // the first new position of the chunk
    const int rows = min(p.chunk, position + 1 - begin), width = WIDTH << p.lanes_log;
    if (rows <= 0) return;
    float *scores = q + HEADS * D, *sums = scores + HEADS * p.chunk;
    floatX *keys = kcache + ((size_t)b * s.K + kv) * p.max_T * D, *values = vcache + (keys - kcache);
    const size_t part = ((size_t)token * s.H + kv * group + first) * p.chunks + blockIdx.x;
    const size_t row = (size_t)(s.H + 2 * s.K) * D;
    decode_load<HEADS>(q, qkv + token * row, kv, first, position, s);
    decode_store(keys, values, qkv + ((size_t)b * s.T + fresh - start) * row, kv, fresh, begin + rows, s);
    __syncthreads();
    decode_scores<HEADS, WIDTH>(scores, q, keys + (size_t)begin * D, rows, p);
    __syncthreads();
    decode_softmax<HEADS>(scores, parts + part, rows, heads, p);
    __syncthreads();
    for (int c0 = 0; c0 < D; c0 += width) {
        const int c = c0 + ((int)threadIdx.x & ((1 << p.lanes_log) - 1)) * WIDTH;
        Floats<WIDTH> sum[HEADS] = {};
        if (c < D) decode_values<HEADS, WIDTH>(sum, scores, values + (size_t)begin * D + c, rows, p);
        decode_reduce<HEADS, WIDTH>(o + part * D, sum, sums, c0, heads, p);
    }
}

/* out [B, T, H*D] = the combined chunks; a block for each token and query head. */
static __global__ void attention_combine_kernel(floatX *out, const DecodePart *parts, const float *o,
                                                const int *positions, DecodePlan p) {
    let_next_begin();
    wait_for_previous();
    const int row = (int)blockIdx.x, D = p.s.D, token = row / p.s.H;
    const int live = (positions[token / p.s.T] + token % p.s.T) / p.chunk + 1;
    parts += (size_t)row * p.chunks;
    o += (size_t)row * p.chunks * D;
    float top = -INFINITY;
    for (int i = 0; i < live; i++) top = fmaxf(top, parts[i].top);
    for (int c = (int)threadIdx.x; c < D; c += DECODE_THREADS) {
        float total = 0.0f, sum = 0.0f;
        for (int i = 0; i < live; i++) {
            const float scale = exp2f(parts[i].top - top);
            total = fmaf(scale, parts[i].sum, total);
            sum = fmaf(scale, o[(size_t)i * D + c], sum);
        }
        out[(size_t)row * D + c] = from_float<floatX>(sum / total);
    }
}

template <int HEADS, int WIDTH>
static void launch_attention_decode(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv,
                                    const int *positions, DecodePlan p) {
    const AttentionShape &s = p.s;
    const size_t heads = (size_t)s.B * s.T * s.H, parts_bytes = heads * p.chunks * sizeof(DecodePart);
    DecodePart *parts = (DecodePart *)cuda_scratch(parts_bytes + heads * p.chunks * s.D * sizeof(float));
    float *o = (float *)((char *)parts + parts_bytes);
    dim3 grid((unsigned)p.chunks, (unsigned)(s.K * ((s.H / s.K + HEADS - 1) / HEADS)), (unsigned)(s.B * s.T));
    LAUNCH_EARLY((attention_decode_kernel<HEADS, WIDTH>), grid, DECODE_THREADS, (decode_shared<HEADS, WIDTH>(p)),
                 parts, o, kcache, vcache, qkv, positions, p);
    LAUNCH_EARLY(attention_combine_kernel, (unsigned)heads, DECODE_THREADS, 0, out, parts, o, positions, p);
}

/* Calls launch<HEADS, WIDTH> for the size of the group. Eight heads of more than 128 channels would not fit into 48
 * KB of shared memory. */
#define DECODE_HEADS(launch, width, group, D, ...) \
    do {                                           \
        if ((group) == 1)                          \
            launch<1, width>(__VA_ARGS__);         \
        else if ((group) == 2)                     \
            launch<2, width>(__VA_ARGS__);         \
        else if ((group) <= 4 || (D) > 128)        \
            launch<4, width>(__VA_ARGS__);         \
        else                                       \
            launch<8, width>(__VA_ARGS__);         \
    } while (0)

/* Chunks have 64 positions, so that a short cache has several of them, and grow once there are 64. */
static DecodePlan decode_plan(AttentionShape s, int max_T, int width) {
    int chunk = min(512, max(64, (max_T + 64 * 64 - 1) / (64 * 64) * 64));
    DecodePlan p = {s, max_T, chunk, (max_T + chunk - 1) / chunk, 0};
    while (p.lanes_log < 5 && width << p.lanes_log < s.D) p.lanes_log++;
    return p;
}

static void cuda_attention_decode(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv,
                                  const int *positions, AttentionShape s, int max_T) {
    if (s.B == 0 || s.T == 0) return;
    attention_check(&s);
    if (attention_vectors(s, kcache, vcache, qkv))
        DECODE_HEADS(launch_attention_decode, VECTOR, s.H / s.K, s.D, out, kcache, vcache, qkv, positions,
                     decode_plan(s, max_T, VECTOR));
    else
        DECODE_HEADS(launch_attention_decode, 1, s.H / s.K, s.D, out, kcache, vcache, qkv, positions,
                     decode_plan(s, max_T, 1));
}

#endif
