/* The figures of positions from rows of logits (kernels/figures.h). A block has a position at a time and reads its rows several
 * times, after the first time from the second-level cache: for the range, the ranks, the sums and the comparison. What comes
 * out are 300 bytes of a position, where its rows are hundreds of kilobytes.
 *
 * Ranks come from a radix sort of (logit, id) in scratch memory, whose work is proportional to the row, whatever its values.
 * The k largest are then the last entries. */
#ifndef KERNELS_CUDA_FIGURES_CUH
#define KERNELS_CUDA_FIGURES_CUH

#include "common.cuh"
#include "../ops.h"
#include <float.h>

enum { FIGURES_THREADS = 512, FIGURES_WARPS = FIGURES_THREADS / 32 };
enum { FIGURES_DIGIT = 8, FIGURES_BINS = 1 << FIGURES_DIGIT };  // of the radix sort
enum { FIGURES_SCRATCH = 256 << 20 };                           // bytes of all blocks, unless one alone needs more

typedef unsigned long long RankEntry;  // the logit's key in the upper half, the id in the lower

/* A block's memory: in the scratch memory, ... */
typedef struct {
    RankEntry *from, *to;  // [Vs] each
    int *twice[2];         // [V]: twice the ranks, of s, of t
} FiguresMemory;

/* ... and shared. [2]: of s, of t. */
typedef struct {
    FigureSums sums[2];
    FigureTops tops[2];
    LogitsFigures out;
} FiguresSpace;

/* ---- sorting ---- */

/* An integer that orders as the float does; adding 0 makes +0 of -0. */
static __device__ __forceinline__ unsigned rank_key(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ unsigned rank_digit(RankEntry entry, int shift) {
    return (unsigned)(entry >> shift) & (FIGURES_BINS - 1);
}

/* The lanes of the warp whose digit is this lane's, of those that are `live`. */
static __device__ __forceinline__ unsigned rank_peers(unsigned digit, bool live) {
    unsigned peers = __ballot_sync(ALL_LANES, live);
#pragma unroll
    for (int bit = 0; bit < FIGURES_DIGIT; bit++) {
        const bool set = digit >> bit & 1;
        const unsigned votes = __ballot_sync(ALL_LANES, set);
        peers &= set ? votes : ~votes;
    }
    return peers;
}

/* One pass of the sort: moves from [n] to `to` in the order of the digits above `shift`; entries with the same digit keep
 * their order. Each warp moves a stretch, and counts it first, to know where its entries of each digit go. */
static __device__ inline void rank_pass(RankEntry *to, const RankEntry *from, int n, int shift) {
    __shared__ unsigned place[FIGURES_WARPS][FIGURES_BINS];
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    const int stretch = (n + FIGURES_THREADS - 1) / FIGURES_THREADS * 32;
    const int begin = warp * stretch, end = min(begin + stretch, n);
    for (int i = t; i < FIGURES_WARPS * FIGURES_BINS; i += FIGURES_THREADS)
        place[i / FIGURES_BINS][i % FIGURES_BINS] = 0;
    __syncthreads();
    for (int i = begin + lane; i < end; i += 32) atomicAdd(&place[warp][rank_digit(from[i], shift)], 1u);
    __syncthreads();
    unsigned sum = 0;  // of digit t: entries of the warps before
    for (int w = 0; t < FIGURES_BINS && w < FIGURES_WARPS; w++) {
        const unsigned here = place[w][t];
        place[w][t] = sum;
        sum += here;
    }
    const unsigned before = (unsigned)block_running_sum(sum) - sum;  // entries of smaller digits
    for (int w = 0; t < FIGURES_BINS && w < FIGURES_WARPS; w++) place[w][t] += before;
    __syncthreads();
    for (int base = begin; base < end; base += 32) {
        const bool live = base + lane < end;
        const RankEntry entry = live ? from[base + lane] : 0;
        const unsigned digit = rank_digit(entry, shift), peers = rank_peers(digit, live);
        const int ahead = __popc(peers & ((1u << lane) - 1));
        if (live) to[place[warp][digit] + (unsigned)ahead] = entry;
        __syncwarp();
        if (live && ahead == 0) place[warp][digit] += (unsigned)__popc(peers);
        __syncwarp();
    }
    __syncthreads();
}

/* Sorts x [n] into m.from, from the smallest; of equal ones the larger id comes first. */
static __device__ inline void rank_sort(const FiguresMemory &m, const float *x, int n) {
    __syncthreads();  // all have read what was sorted before
    for (int i = (int)threadIdx.x; i < n; i += FIGURES_THREADS) {
        const int id = n - 1 - i;
        m.from[i] = (RankEntry)rank_key(x[id]) << 32 | (unsigned)id;
    }
    __syncthreads();
#pragma unroll 1
    for (int shift = 32; shift < 64; shift += 2 * FIGURES_DIGIT) {
        rank_pass(m.to, m.from, n, shift);
        rank_pass(m.from, m.to, n, shift + FIGURES_DIGIT);
    }
}

/* The first of the entries begin .. end with a key of at least `key`. */
static __device__ inline int rank_search(const RankEntry *sorted, int begin, int end, RankEntry key) {
    while (begin < end) {
        const int middle = begin + (end - begin) / 2;
        if (sorted[middle] >> 32 < key)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/* twice [n]: twice the rank of each entry of a sorted row; equal ones have the mean of their ranks. */
static __device__ inline void rank_averages(int *twice, const RankEntry *sorted, int n) {
    for (int i = (int)threadIdx.x; i < n; i += FIGURES_THREADS) {
        const RankEntry entry = sorted[i], key = entry >> 32;
        const bool tie = (i > 0 && sorted[i - 1] >> 32 == key) || (i + 1 < n && sorted[i + 1] >> 32 == key);
        const int begin = tie ? rank_search(sorted, 0, i, key) : i;
        const int end = tie ? rank_search(sorted, i + 1, n, key + 1) : i + 1;
        twice[(unsigned)entry] = begin + end + 1;
    }
}

/* ---- sums ---- */

static __device__ inline float row_top(const float *x, int n) {
    float top = -INFINITY;
    for (int i = (int)threadIdx.x; i < n; i += FIGURES_THREADS) top = fmaxf(top, x[i]);
    return block_max(top);
}

static __device__ inline bool row_finite(const float *x, int n) {
    float nothing = 0;  // NaN after an entry that is not finite
    for (int i = (int)threadIdx.x; i < n; i += FIGURES_THREADS) nothing += x[i] * 0.0f;
    return block_sum(nothing) == 0;
}

/* The sums over a row, with the ranks of its first V entries. */
static __device__ inline void sum_row(FigureSums *out, const float *x, const int *twice, int own, int V, double T) {
    const double top = (double)row_top(x, own), soft_top = (double)row_top(x, V), to_T = 1 / T;
    double z = 0, w = 0, zT = 0, wT = 0, qT = 0, weighted = 0;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < own; i += FIGURES_THREADS) {
        const double d = (double)x[i] - top, e = exp(d);
        z += e;
        w += e * d;
        if (i >= V) continue;
        const double y = ((double)x[i] - soft_top) * to_T, eT = exp(y);
        zT += eT;
        wT += eT * y;
        qT += eT * eT;
        weighted += eT * twice[i];
    }
    const FigureSums s = {top,           block_sum(z),  block_sum(w),  soft_top,
                          block_sum(zT), block_sum(wT), block_sum(qT), block_sum(weighted)};
    if (threadIdx.x == 0) *out = s;
}

/* Ranks, the largest of the first `listed` entries, and sums of one model's row. */
static __device__ inline void measure_row(FiguresSpace *space, const FiguresMemory &m, int i, const float *x, int own,
                                          int listed, int V, double T) {
    rank_sort(m, x, listed);
    if (threadIdx.x < FIGURES_TOP && (int)threadIdx.x < listed)
        space->tops[i].ids[threadIdx.x] = (int)(unsigned)m.from[listed - 1 - (int)threadIdx.x];
    if (threadIdx.x == 0) space->tops[i].count = min(listed, (int)FIGURES_TOP);
    if (listed > V) rank_sort(m, x, V);
    rank_averages(m.twice[i], m.from, V);
    __syncthreads();
    sum_row(&space->sums[i], x, m.twice[i], own, V, T);
    __syncthreads();
}

/* What compares both rows: divergences and ranks. */
static __device__ inline void compare_rows(FiguresSpace *space, const FiguresMemory &m, const float *s,
                                           const float *t, int V, double T) {
    const FigureSums &a = space->sums[1], &b = space->sums[0];
    const double to_T = 1 / T, to_p = 0.5 / a.zT, to_q = 0.5 / b.zT;
    double sum_p = 0, sum_q = 0, sum_m = 0, aa = 0, bb = 0, ab = 0;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < V; i += FIGURES_THREADS) {
        const double x = ((double)t[i] - a.soft_top) * to_T, y = ((double)s[i] - b.soft_top) * to_T;
        const double p = exp(x), q = exp(y), mean = p * to_p + q * to_q + DBL_MIN;  // where both are 0
        sum_p += p * (x - y);
        sum_q += q * (x - y);
        sum_m += mean * log(mean);
        const double rank_s = m.twice[0][i] - V - 1, rank_t = m.twice[1][i] - V - 1;  // the mean is V + 1
        aa += rank_s * rank_s;
        bb += rank_t * rank_t;
        ab += rank_s * rank_t;
    }
    const DivergenceSums both = {block_sum(sum_p), block_sum(sum_q), block_sum(sum_m)};
    aa = block_sum(aa), bb = block_sum(bb), ab = block_sum(ab);
    if (threadIdx.x > 0) return;
    figures_of_both(space->out.value, &both, &a, &b, T);
    figures_of_ranks(space->out.value, aa, bb, ab);
}

/* ---- a position ---- */

static __device__ inline void figures_position(FiguresSpace *space, const FiguresMemory &m, const float *s,
                                               const float *t, int label, double T, int Vs, int Vt) {
    const int V = t ? min(Vs, Vt) : Vs;
    double *value = space->out.value;
    const bool good_s = row_finite(s, Vs), good_t = !t || row_finite(t, Vt);
    if (threadIdx.x < FIGURES) value[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        space->out.state = good_s ? good_t ? FIGURES_GOOD : FIGURES_BAD_TEACHER : FIGURES_BAD_STUDENT;
    if (threadIdx.x == 0) space->tops[1].count = 0;
    if (!good_s || !good_t) return;
    measure_row(space, m, 0, s, Vs, Vs, V, T);
    if (t) measure_row(space, m, 1, t, Vt, V, V, T);
    if (threadIdx.x == 0) {
        figures_of_model(value, &space->sums[0], (double)s[label], V);
        if (t) figures_of_model(value + FIGURE_TEACHER, &space->sums[1], (double)t[label], V);
        figures_of_tops(value, &space->tops[0], &space->tops[1], label);
        if (t)
            value[FIGURE_TEACHER + SIDE_CORRECT] =
                space->tops[1].ids[0] == label && space->sums[1].top == space->sums[1].soft_top;
    }
    if (t) compare_rows(space, m, s, t, V, T);
}

static __global__ void __launch_bounds__(FIGURES_THREADS)
    logits_figures_kernel(LogitsFigures *out, const float *student, const float *teacher, const int *labels, double T,
                          size_t rows, int Vs, int Vt, char *scratch, size_t bytes) {
    __shared__ FiguresSpace space;
    const int V = teacher ? min(Vs, Vt) : Vs;
    FiguresMemory m;
    m.from = (RankEntry *)(void *)(scratch + blockIdx.x * bytes);
    m.to = m.from + Vs;
    m.twice[0] = (int *)(void *)(m.to + Vs);
    m.twice[1] = m.twice[0] + V;
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        figures_position(&space, m, student + r * Vs, teacher ? teacher + r * Vt : nullptr, labels[r], T, Vs, Vt);
        __syncthreads();
        if (threadIdx.x < FIGURES) out[r].value[threadIdx.x] = space.out.value[threadIdx.x];
        if (threadIdx.x == 0) out[r].state = space.out.state;
        __syncthreads();
    }
}

static void cuda_logits_figures(LogitsFigures *out, const float *student, const float *teacher, const int *labels,
                                double temperature, size_t rows, int Vs, int Vt) {
    const size_t V = (size_t)(teacher && Vt < Vs ? Vt : Vs);
    const size_t bytes = cuda_div_up(2 * (size_t)Vs * sizeof(RankEntry) + 2 * V * sizeof(int), 256) * 256;
    const size_t fit = FIGURES_SCRATCH / bytes, blocks = fit < 1 ? 1 : fit < rows ? fit : rows;
    if (!rows) return;
    char *scratch = (char *)cuda_scratch(blocks * bytes);
    LAUNCH(logits_figures_kernel, (unsigned)blocks, FIGURES_THREADS, 0, out, student, teacher, labels, temperature,
           rows, Vs, Vt, scratch, bytes);
}

#endif
