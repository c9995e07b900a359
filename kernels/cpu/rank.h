/* Ranks of the entries of a row: the k largest, and the rank of each entry with ties averaged. A row has finite values; +0
 * and -0 are equal.
 *
 * A rank needs no sorted row, only to know how many entries are smaller. So the entries are put into buckets of equal width,
 * and an entry is compared with those in its own bucket alone, which are few where values are spread as logits are. Where
 * they are not, a radix sort takes over, so that the work is never more than proportional to the row. */
#ifndef KERNELS_CPU_RANK_H
#define KERNELS_CPU_RANK_H

#include "../figures.h"
#include "doubles.h"

/* ---- range ---- */

/* The smallest and the largest entry of a row. */
typedef struct {
    float low, high;
    bool finite;  // all entries are; else low and high mean nothing
} RowRange;

static RowRange row_range(const float *x, size_t n) {
    vf low = vf_set(INFINITY), high = vf_set(-INFINITY), nothing = {0};  // NaN after an entry that is not finite
    FOR_LANES (i, m, 0, n) {
        vf v = vf_set(x[i]);
        if (m == LANES)
            v = vf_load(x + i);
        else
            for (size_t k = 0; k < m; k++) v[k] = x[i + k];
        low = vf_min(v, low);
        high = vf_max(v, high);
        nothing += v * 0.0f;
    }
    return (RowRange){-vf_largest(-low), vf_largest(high), vf_sum(nothing) == 0};
}

/* ---- the largest ---- */

/* The k <= FIGURES_TOP largest of x [n]. */
static FigureTops rank_top(const float *x, int n, int k) {
    enum { STEP = 32 };
    FigureTops t = {.count = 0};
    float least = -INFINITY;  // of those in t, once there are k
    for (int i = 0; i < n; i += STEP) {
        const int end = n - i < STEP ? n : i + STEP;
        int above = t.count < k || end - i < STEP;
        if (!above)
            for (int j = 0; j < STEP; j++) above |= x[i + j] > least;
        for (int j = i; above && j < end; j++) {
            if (t.count == k && !(x[j] > least)) continue;
            int at = t.count < k ? t.count++ : k - 1;
            for (; at > 0 && x[j] > x[t.ids[at - 1]]; at--) t.ids[at] = t.ids[at - 1];
            t.ids[at] = j;
            least = x[t.ids[t.count - 1]];
        }
    }
    return t;
}

/* ---- ranks by buckets ---- */

enum {
    RANK_DIGIT = 11,  // bits of a digit of the radix sort
    RANK_DIGITS = 3,  // of a key
    RANK_COUNTS = RANK_DIGITS << RANK_DIGIT,
    RANK_BUCKETED = 1 << 23,  // entries, most: up to here the numbers of buckets are exact in fp32
    RANK_SAMPLE = 256,        // entries that tell where the bulk is
    RANK_AHEAD = 16,          // entries whose place is fetched into the cache before they are stored
    RANK_CROWDED = 16         // mean number of entries that share an entry's bucket, from which it is too many
};

/* Memory for rows of up to n values, of rank_scratch_bytes(n) bytes, 64-byte aligned. */
typedef struct {
    uint32_t *begin;      // [buckets + 1, or what the radix sort needs]: where each bucket, or digit, begins
    int *bucket;          // [n + RANK_AHEAD, whole vectors]: of each entry
    float *keys;          // [n + LANES]: the entries, bucket after bucket
    uint64_t *from, *to;  // [n] each: of the radix sort, in the place of bucket and keys
} RankScratch;

static size_t rank_counts(size_t n) { return max_size(round_up(n / 2 + 2, LANES), RANK_COUNTS); }
static size_t rank_entries(size_t n) { return round_up(n + RANK_AHEAD, 16); }
static size_t rank_scratch_bytes(size_t n) {
    return rank_counts(n) * sizeof(uint32_t) + 2 * rank_entries(n) * sizeof(uint64_t);
}

static RankScratch rank_scratch(void *memory, size_t n) {
    RankScratch r = {.begin = (uint32_t *)memory};
    r.from = (uint64_t *)(void *)(r.begin + rank_counts(n));
    r.to = r.from + rank_entries(n);
    r.bucket = (int *)(void *)r.from;
    r.keys = (float *)(void *)r.to;
    return r;
}

/* Where the bulk of x [n] lies, within its range: the mean and three standard deviations around it, of a sample. So a
 * token far above the others, as most logits have one, does not widen the buckets for all. */
static RowRange rank_bulk(const float *x, int n, RowRange range) {
    const int step = 1 + (n - 1) / RANK_SAMPLE;
    double sum = 0, squares = 0, count = 0;
    for (int i = 0; i < n; i += step) {
        const double d = (double)x[i] - (double)x[0];
        sum += d;
        squares += d * d;
        count++;
    }
    const double mean = sum / count, variance = squares / count - mean * mean;
    const double deviation = variance > 0 ? sqrt(variance) : 0;
    const double low = (double)x[0] + mean - 3 * deviation, high = (double)x[0] + mean + 3 * deviation;
    if (low > (double)range.low && low < (double)range.high) range.low = (float)low;
    if (high < (double)range.high && high > (double)range.low) range.high = (float)high;
    return range;
}

/* Half as many as entries: a bucket then has few entries still, and the places where the buckets begin need less of the
 * cache. */
static inline int rank_bucket_count(int n) { return n / 2 + 1; }

/* bucket [n]: the bucket of each entry. They are of width 1 / scale, from `low` on; the first and the last also have what is
 * outside. */
static void rank_buckets(int *bucket, const float *x, int n, float low, float scale) {
    const vf last = vf_set((float)(n / 2));
    FOR_LANES (i, m, 0, (size_t)n) {
        const vf v = (vf_load_n(x + i, m) - low) * scale;
        const vi number = __builtin_convertvector(vf_min(vf_max(v, vf_zero()), last), vi);
        memcpy(bucket + i, &number, sizeof number);
    }
}

/* Puts x [n] into r->keys, bucket after bucket: r->begin[b] .. r->begin[b + 1] are those of bucket b. Returns false where
 * too many entries share a bucket. */
static bool rank_fill_buckets(const RankScratch *r, const float *x, int n, RowRange range) {
    const RowRange bulk = rank_bulk(x, n, range);
    const float scale = (float)(n / 2) / (bulk.high - bulk.low);
    uint32_t sum = 0;
    uint64_t pairs = 0;
    if (n < 2 || n > RANK_BUCKETED || !(scale > 0) || !isfinite(scale)) return false;
    rank_buckets(r->bucket, x, n, bulk.low, scale);
    memset(r->bucket + n, 0, RANK_AHEAD * sizeof *r->bucket);
    memset(r->begin, 0, ((size_t)n / 2 + 3) * sizeof *r->begin);
    uint32_t *next = r->begin + 1;  // of each bucket: how many it has, then where the next of them goes
    for (int i = 0; i < n; i++) next[r->bucket[i]]++;
    for (int b = 0; b < n / 2 + 1; b++) {
        const uint32_t here = next[b];
        next[b] = sum;
        sum += here;
        pairs += (uint64_t)here * here;
    }
    if (pairs > (uint64_t)n * RANK_CROWDED) return false;
    for (int i = 0; i < n; i++) {
        __builtin_prefetch(r->keys + next[r->bucket[i + RANK_AHEAD]], 1);
        r->keys[next[r->bucket[i]]++] = x[i];
    }
    for (int i = 0; i < LANES; i++) r->keys[n + i] = INFINITY;
    return true;
}

/* How many lanes of keys are below v, and how many are not above it, added up. */
static inline int rank_compare(vf keys, vf v) {
#if defined(VECTOR_512)
    return __builtin_popcount(_mm512_cmp_ps_mask((__m512)keys, (__m512)v, _CMP_LT_OQ)) +
           __builtin_popcount(_mm512_cmp_ps_mask((__m512)keys, (__m512)v, _CMP_LE_OQ));
#elif defined(VECTOR_256)
    return __builtin_popcount((unsigned)_mm256_movemask_ps((__m256)(keys < v)) |
                              (unsigned)_mm256_movemask_ps((__m256)(keys <= v)) << LANES);
#else
    const vi both = (keys < v) + (keys <= v);
    int sum = 0;
    for (int k = 0; k < LANES; k++) sum -= both[k];
    return sum;
#endif
}

/* twice [n]: twice the rank of each entry, from filled buckets. A rank is the number of smaller entries and half that of
 * equal ones, itself included, and 1/2. What follows a bucket in r->keys is larger, so whole vectors are compared. */
static void rank_from_buckets(int *twice, const RankScratch *r, const float *x, int n) {
    for (int i = 0; i < n; i++) {
        const uint32_t begin = r->begin[r->bucket[i]], end = r->begin[r->bucket[i] + 1];
        const vf v = vf_set(x[i]);
        int rank = (int)(2 * begin) + 1;
        uint32_t at = begin;
        do rank += rank_compare(vf_load(r->keys + at), v);
        while ((at += LANES) < end);
        twice[i] = rank;
    }
}

/* ---- ranks by sorting ---- */

/* An integer that orders as the float does. */
static inline uint32_t rank_key(float x) {
    uint32_t bits;
    x += 0.0f;  // -0 becomes +0
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Sorts x [n], n > 0, by a radix sort, from the lowest digit to the highest. Returns the entries: the key in the upper half,
 * the id in the lower. */
static const uint64_t *rank_sort(const RankScratch *r, const float *x, int n) {
    const uint32_t values = 1u << RANK_DIGIT, mask = values - 1;
    uint64_t *from = r->from, *to = r->to;
    memset(r->begin, 0, RANK_COUNTS * sizeof *r->begin);
    for (int i = 0; i < n; i++) {
        const uint32_t key = rank_key(x[i]);
        from[i] = (uint64_t)key << 32 | (uint32_t)i;
        for (int d = 0; d < RANK_DIGITS; d++) r->begin[(uint32_t)d * values + (key >> d * RANK_DIGIT & mask)]++;
    }
    for (int d = 0; d < RANK_DIGITS; d++) {
        uint32_t *begin = r->begin + (uint32_t)d * values, sum = 0;
        const int shift = 32 + d * RANK_DIGIT;
        if (begin[from[0] >> shift & mask] == (uint32_t)n) continue;  // the same digit everywhere
        for (uint32_t v = 0; v < values; v++) {
            const uint32_t here = begin[v];
            begin[v] = sum;
            sum += here;
        }
        for (int i = 0; i < n; i++) to[begin[from[i] >> shift & mask]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

/* twice [n]: twice the rank of each entry of a sorted row; entries that are equal have the mean of their ranks. */
static void rank_from_sorted(int *twice, const uint64_t *sorted, int n) {
    for (int i = 0; i < n;) {
        const uint32_t key = (uint32_t)(sorted[i] >> 32);
        int end = i + 1;
        while (end < n && (uint32_t)(sorted[end] >> 32) == key) end++;
        const int rank = i + end + 1;  // the mean of i + 1 .. end, twice
        for (; i < end; i++) twice[(uint32_t)sorted[i]] = rank;
    }
}

/* twice [n]: twice the rank of each entry of x [n], n > 0, of this range: from 1 for the smallest to n, equal ones have the
 * mean of their ranks; so twice the rank is a whole number. */
static void rank_averages(int *twice, const RankScratch *r, const float *x, int n, RowRange range) {
    if (rank_fill_buckets(r, x, n, range))
        rank_from_buckets(twice, r, x, n);
    else
        rank_from_sorted(twice, rank_sort(r, x, n), n);
}

/* The sums of figures_of_ranks, from the ranks of both rows. They are of whole numbers, hence exact. */
static void rank_products(double *aa, double *bb, double *ab, const int *a, const int *b, int n) {
    int64_t sums[3] = {0};
    for (int i = 0; i < n; i++) {  // the mean of twice the ranks is n + 1
        const int x = a[i] - n - 1, y = b[i] - n - 1;
        sums[0] += (int64_t)x * x;
        sums[1] += (int64_t)y * y;
        sums[2] += (int64_t)x * y;
    }
    *aa = (double)sums[0], *bb = (double)sums[1], *ab = (double)sums[2];
}

#endif
