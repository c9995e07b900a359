/* Choosing the next token (kernels/sample.h has the arithmetic); a block for each sequence. All sums are of whole
 * numbers, so the order in which the threads add does not matter. */
#ifndef KERNELS_CUDA_SAMPLE_CUH
#define KERNELS_CUDA_SAMPLE_CUH

#include "common.cuh"
#include "../sample.h"

enum { SAMPLE_THREADS = SAMPLE_BINS, SAMPLE_WARPS = SAMPLE_THREADS / 32 };

/* The logits of one sequence, and what distances from the largest of them need. */
typedef struct {
    const float *logits;
    const uint8_t *token_mask;
    int V;
    float top, scale;
} SampleRow;

/* The bin of the last token that is kept, as a tally finds it. */
typedef struct {
    unsigned long long sum, rank, before;  // weight of all tokens; number and weight of those before the bin
    unsigned long long bin_sum;
    unsigned bin_count, bin;
} SampleFound;

static __device__ __forceinline__ uint32_t row_distance(const SampleRow &r, int i) {
    return r.token_mask[i] ? SAMPLE_NEVER : sample_distance(r.logits[i], r.top, r.scale);
}

/* The largest v of the block, for all of its threads. */
static __device__ inline unsigned long long block_largest(unsigned long long v) {
    __shared__ unsigned long long part[SAMPLE_WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int bits = 16; bits > 0; bits >>= 1) v = max(v, __shfl_xor_sync(ALL_LANES, v, bits));
    if (lane == 0) part[warp] = v;
    __syncthreads();
    v = part[lane];
    for (int bits = 16; bits > 0; bits >>= 1) v = max(v, __shfl_xor_sync(ALL_LANES, v, bits));
    return v;
}

/* The likeliest token that is allowed, the first of equals; -1 if there is none or a logit is NaN or +infinity. A
 * maximum of whole numbers finds it: the upper half is the logit's bits, mapped so that they have the order of the
 * floats, the lower half the inverted id. The largest number of all stands for a logit that is not finite. */
static __device__ __forceinline__ int row_best(const SampleRow &r) {
    unsigned long long best = 0;
#pragma unroll 2
    for (int i = (int)threadIdx.x; i < r.V; i += SAMPLE_THREADS) {
        const float x = r.logits[i];
        const unsigned bits = __float_as_uint(x), order = x < 0.0f ? ~bits : bits | 0x80000000u;
        if (!(x < INFINITY))
            best = ~0ull;
        else if (x > -INFINITY && !r.token_mask[i])
            best = max(best, (unsigned long long)order << 32 | ~(unsigned)i);
    }
    best = block_largest(best);
    return best && ~best ? (int)~(unsigned)best : -1;
}

/* One step of a radix select: counts the keys with the higher digits `prefix` (all keys if first) by their digit
 * above `shift`, and finds the last of these bins from which top-k and top-p keep a token. */
static __device__ inline void tally(SampleFound *found, const SampleRow &r, const Sampling &s, uint64_t prefix,
                                    int shift, bool first) {
    __shared__ unsigned counts[SAMPLE_BINS];
    __shared__ unsigned long long sums[SAMPLE_BINS];
    __shared__ int last;
    const int t = (int)threadIdx.x;
    counts[t] = 0, sums[t] = 0;
    if (t == 0) last = 0;
    __syncthreads();
#pragma unroll 1
    for (int i = t; i < r.V; i += SAMPLE_THREADS) {
        const uint32_t distance = row_distance(r, i);
        const uint64_t key = sample_key(distance, i);
        if (distance == SAMPLE_NEVER || (!first && key >> (shift + SAMPLE_DIGIT) != prefix)) continue;
        atomicAdd(&counts[key >> shift & (SAMPLE_BINS - 1)], 1u);
        atomicAdd(&sums[key >> shift & (SAMPLE_BINS - 1)], (unsigned long long)sample_weight(distance));
    }
    __syncthreads();
    const unsigned long long through = block_running_sum(sums[t]), counted = block_running_sum(counts[t]);
    if (first && t == SAMPLE_THREADS - 1) found->sum = through;
    __syncthreads();
    const unsigned long long target = sample_target(s.top_p, found->sum), most = s.top_k > 0 ? s.top_k : r.V;
    const unsigned long long rank = found->rank + counted - counts[t], before = found->before + through - sums[t];
    if (counts[t] && rank < most && before < target) atomicMax(&last, t);
    __syncthreads();
    if (t == last) {
        found->rank = rank, found->before = before;
        found->bin = (unsigned)t, found->bin_count = counts[t], found->bin_sum = sums[t];
    }
    __syncthreads();
}

/* The bound of the kept tokens, which have key >> *shift <= bound; *total is their weight. */
static __device__ inline uint64_t row_kept(uint64_t *total, int *shift, const SampleRow &r, const Sampling &s) {
    __shared__ SampleFound found;
    uint64_t prefix = 0;
    if (threadIdx.x == 0) found.rank = found.before = 0;
    for (*shift = SAMPLE_KEY_BITS - SAMPLE_DIGIT;; *shift -= SAMPLE_DIGIT) {
        tally(&found, r, s, prefix, *shift, *shift == SAMPLE_KEY_BITS - SAMPLE_DIGIT);
        prefix = prefix << SAMPLE_DIGIT | found.bin;
        if (!sample_is_limited(&s)) {
            *total = found.sum;
            return UINT64_MAX;
        }
        if (found.bin_count == 1 || *shift == 0) break;
    }
    *total = found.before + found.bin_sum;
    return prefix;
}

/* *id = the first kept token at which the running sum of the weights exceeds `draw`. Each warp sums a stretch of the
 * row, and the one whose stretch contains the token searches it again. */
static __device__ inline void row_pick(int *id, const SampleRow &r, uint64_t kept, int shift, uint64_t draw) {
    const int lane = (int)threadIdx.x % 32, stretch = (r.V + SAMPLE_THREADS - 1) / SAMPLE_THREADS * 32;
    const int begin = (int)threadIdx.x / 32 * stretch, end = min(begin + stretch, r.V);
    unsigned long long sum = 0;
#pragma unroll 1
    for (int i = begin + lane; i < end; i += 32) {
        const uint32_t distance = row_distance(r, i);
        if (sample_key(distance, i) >> shift <= kept) sum += sample_weight(distance);
    }
    const unsigned long long through = __shfl_sync(ALL_LANES, block_running_sum(sum), 31);
    unsigned long long mine = sum;
    for (int bits = 16; bits > 0; bits >>= 1) mine += __shfl_xor_sync(ALL_LANES, mine, bits);
    unsigned long long before = through - mine;
    if (draw < before || draw >= through) return;
    for (int i = begin + lane;; i += 32) {
        const uint32_t distance = i < end ? row_distance(r, i) : SAMPLE_NEVER;
        unsigned long long w = sample_key(distance, i) >> shift <= kept ? sample_weight(distance) : 0;
        for (int n = 1; n < 32; n *= 2) {
            const unsigned long long from = __shfl_up_sync(ALL_LANES, w, n);
            if (lane >= n) w += from;
        }
        const unsigned beyond = __ballot_sync(ALL_LANES, before + w > draw);
        if (beyond) {
            if (lane == __ffs((int)beyond) - 1) *id = i;
            return;
        }
        before += __shfl_sync(ALL_LANES, w, 31);
    }
}

/* Grid: B blocks. Reads a row once for the likeliest token. Finding the kept tokens reads it one to five times more,
 * as a rule twice, and choosing one of them once more, all from the second-level cache: 32000 logits are 128 KB. */
static __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_kernel(int *ids, int *positions, const float *logits, const uint8_t *token_mask, const int *streams,
                  Sampling s, int V) {
    const int b = (int)blockIdx.x, position = positions[b] + 1;
    SampleRow r = {logits + (size_t)b * V, token_mask, V, 0.0f, 0.0f};
    const int best = row_best(r);
    if (threadIdx.x == 0) positions[b] = position;
    if (best < 0 || sample_is_greedy(&s)) {
        if (threadIdx.x == 0) ids[b] = best;
        return;
    }
    uint64_t total;
    int shift;
    r.top = r.logits[best];
    r.scale = sample_scale(s.temperature);
    const uint64_t kept = row_kept(&total, &shift, r, s);
    row_pick(&ids[b], r, kept, shift, sample_draw(s.seed, streams[b], position, total));
}

static void cuda_sample(int *ids, int *positions, const float *logits, const uint8_t *token_mask, const int *streams,
                        Sampling s, int B, int V) {
    if (B) LAUNCH(sample_kernel, (unsigned)B, SAMPLE_THREADS, 0, ids, positions, logits, token_mask, streams, s, V);
}

#endif
