/* Ranks of the entries of a row: the k largest, the rank of each entry with ties averaged, and Spearman's correlation of
 * two rows (Spearman 1904: Pearson's correlation of the ranks). A row has finite values; +0 and -0 are equal. */
#ifndef METRICS_RANK_H
#define METRICS_RANK_H

#include "../lib/error.h"
#include "lanes.h"

/* ---- the largest ---- */

/* ids of the k largest of x [n], largest first, the smaller id first where equal. Returns how many there are: k, or n
 * where n < k. */
static inline int rank_top(int *ids, int k, const float *x, int n) {
    int count = 0;
    float least = -INFINITY;  // of those in ids, once there are k
    for (int i = 0; i < n; i++) {
        if (count == k && !(x[i] > least)) continue;
        int at = count < k ? count++ : k - 1;
        for (; at > 0 && x[i] > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
        ids[at] = i;
        least = x[ids[count - 1]];
    }
    return count;
}

/* ---- all ranks ---- */

/* Memory to sort rows of up to n values. */
typedef struct {
    uint64_t *from, *to;  // [n] each: entries (rank_entry)
    uint32_t *count;      // [n, or what the radix sort needs]: entries of each bucket, or digit
} RankScratch;

enum {
    RANK_DIGIT = 11,  // bits of a digit of the radix sort
    RANK_DIGITS = 3,  // of a key
    RANK_COUNTS = RANK_DIGITS << RANK_DIGIT,
    RANK_BUCKETS = 1 << 23,  // most: up to here the numbers of buckets are exact in fp32
    RANK_SAMPLE = 256,       // entries that tell where the bulk is
    RANK_CROWDED = 16        // mean number of entries that share an entry's bucket, from which it is too many
};

static inline void rank_scratch_open(RankScratch *r, int n) {
    r->from = (uint64_t *)xmalloc((size_t)n * sizeof *r->from);
    r->to = (uint64_t *)xmalloc((size_t)n * sizeof *r->to);
    r->count = (uint32_t *)xmalloc((size_t)(n < RANK_COUNTS ? RANK_COUNTS : n) * sizeof *r->count);
}

static inline void rank_scratch_close(RankScratch *r) {
    free(r->from);
    free(r->to);
    free(r->count);
}

/* An integer that orders as the float does. */
static inline uint32_t rank_key(float x) {
    uint32_t bits;
    x += 0.0f;  // -0 becomes +0
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Orders as the float does, and of equal ones puts the larger id first. */
static inline uint64_t rank_entry(float x, int id) { return (uint64_t)rank_key(x) << 32 | (uint32_t)~id; }
static inline int rank_entry_id(uint64_t entry) { return (int)~(uint32_t)entry; }

/* Insertion sort of a [n], n > 1, in which few entries are far from their place. The two largest so far are in registers:
 * most entries go before none, one or both of them, which takes no branch that could be mispredicted. */
static inline void rank_insert(uint64_t *a, int n) {
    uint64_t first = a[0] > a[1] ? a[0] : a[1], second = a[0] > a[1] ? a[1] : a[0];
    for (int i = 2; i < n; i++) {
        const uint64_t entry = a[i], lower = entry < first ? entry : first;
        first = entry < first ? first : entry;
        const uint64_t third = lower < second ? lower : second;
        second = lower < second ? second : lower;
        int at = i - 2;
        for (; at > 0 && a[at - 1] > third; at--) a[at] = a[at - 1];
        a[at] = third;
    }
    a[n - 2] = second;
    a[n - 1] = first;
}

/* Where the bulk of x [n] lies, within its range: the mean and three standard deviations around it, of a sample. So a
 * token far above the others, as most logits have one, does not widen the buckets for all. */
static inline RowRange rank_bulk(const float *x, int n, RowRange range) {
    const int step = 1 + (n - 1) / RANK_SAMPLE;
    double sum = 0, squares = 0, count = 0;
    for (int i = 0; i < n; i += step) {
        const double d = (double)x[i] - (double)x[0];
        sum += d;
        squares += d * d;
        count++;
    }
    const double mean = sum / count, deviation = sqrt(fmax(0, squares / count - mean * mean));
    const double low = (double)x[0] + mean - 3 * deviation, high = (double)x[0] + mean + 3 * deviation;
    if (low > (double)range.low && low < (double)range.high) range.low = (float)low;
    if (high < (double)range.high && high > (double)range.low) range.high = (float)high;
    return range;
}

/* bucket [n]: the bucket of each entry, of n between low and low + (n - 1) / scale; the first and the last also have what
 * is outside. */
static inline void rank_buckets(uint32_t *bucket, const float *x, int n, float low, float scale) {
    const vd_floats last = (vd_floats){0} + (float)(n - 1);
    for (int i = 0; i < n; i += VD_LANES) {
        const int count = n - i < VD_LANES ? n - i : VD_LANES;
        vd_floats v = {low, low, low, low};
        if (count == VD_LANES)
            v = (vd_floats){x[i], x[i + 1], x[i + 2], x[i + 3]};
        else
            for (int k = 0; k < count; k++) v[k] = x[i + k];
        v = (v - low) * scale;
        v = (vd_floats)((vd_ints)v & (v > 0));
        const vd_ints inside = v < last;
        v = (vd_floats)(((vd_ints)v & inside) | ((vd_ints)last & ~inside));
        const vd_ints number = __builtin_convertvector(v, vd_ints);
        memcpy(bucket + i, &number, (size_t)count * sizeof *bucket);
    }
}

/* Sorts x [n] into r->from by buckets of equal width, as many as entries, and by insertion inside each. Values that are
 * spread as logits are leave few entries in a bucket, and it takes half of a radix sort's time. Returns false, with
 * nothing done, where they are not. */
static inline bool rank_sort_buckets(RankScratch *r, const float *x, int n, RowRange range) {
    const RowRange bulk = rank_bulk(x, n, range);
    const float scale = (float)(n - 1) / (bulk.high - bulk.low);
    uint32_t *bucket = (uint32_t *)r->to, sum = 0;
    uint64_t pairs = 0;
    if (n < 2 || n > RANK_BUCKETS || !(scale > 0) || !isfinite(scale)) return false;
    rank_buckets(bucket, x, n, bulk.low, scale);
    memset(r->count, 0, (size_t)n * sizeof *r->count);
    for (int i = 0; i < n; i++) r->count[bucket[i]]++;
    for (int i = 0; i < n; i++) {  // from counts to where each bucket begins
        const uint32_t here = r->count[i];
        r->count[i] = sum;
        sum += here;
        pairs += (uint64_t)here * here;
    }
    if (pairs > (uint64_t)n * RANK_CROWDED) return false;
    for (int i = 0; i < n; i++) r->from[r->count[bucket[i]]++] = rank_entry(x[i], i);
    rank_insert(r->from, n);
    return true;
}

/* Sorts x [n] into r->from by a radix sort, from the lowest digit to the highest. */
static inline void rank_sort_radix(RankScratch *r, const float *x, int n) {
    const uint32_t values = 1u << RANK_DIGIT, mask = values - 1;
    memset(r->count, 0, RANK_COUNTS * sizeof *r->count);
    for (int i = 0; i < n; i++) {
        const int id = n - 1 - i;  // the sort keeps the order of equal keys
        const uint32_t key = rank_key(x[id]);
        r->from[i] = rank_entry(x[id], id);
        for (int d = 0; d < RANK_DIGITS; d++) r->count[(uint32_t)d * values + (key >> d * RANK_DIGIT & mask)]++;
    }
    for (int d = 0; d < RANK_DIGITS; d++) {
        uint32_t *begin = r->count + (uint32_t)d * values, sum = 0;
        const int shift = 32 + d * RANK_DIGIT;
        if (begin[r->from[0] >> shift & mask] == (uint32_t)n) continue;  // the same digit everywhere
        for (uint32_t v = 0; v < values; v++) {
            const uint32_t here = begin[v];
            begin[v] = sum;
            sum += here;
        }
        for (int i = 0; i < n; i++) r->to[begin[r->from[i] >> shift & mask]++] = r->from[i];
        uint64_t *swap = r->from;
        r->from = r->to;
        r->to = swap;
    }
}

/* Sorts x [n], n > 0, of this range, into r->from. */
static inline void rank_sort(RankScratch *r, const float *x, int n, RowRange range) {
    if (!rank_sort_buckets(r, x, n, range)) rank_sort_radix(r, x, n);
}

/* rank_top from a sorted row. */
static inline int rank_sorted_top(int *ids, int k, const RankScratch *r, int n) {
    const int count = k < n ? k : n;
    for (int i = 0; i < count; i++) ids[i] = rank_entry_id(r->from[n - 1 - i]);
    return count;
}

/* twice [n]: twice the rank of each entry of a sorted row, from 1 for the smallest to n; entries that are equal have the
 * mean of their ranks, so that twice the rank is a whole number. */
static inline void rank_averages(int *twice, const RankScratch *r, int n) {
    for (int i = 0; i < n;) {
        const uint32_t key = (uint32_t)(r->from[i] >> 32);
        int end = i + 1;
        while (end < n && (uint32_t)(r->from[end] >> 32) == key) end++;
        const int rank = i + end + 1;  // the mean of i + 1 .. end, twice
        for (; i < end; i++) twice[rank_entry_id(r->from[i])] = rank;
    }
}

/* Spearman's correlation from the ranks of rank_averages; NaN where all entries of a row are equal, which have no order. The
 * sums are of whole numbers, hence exact (n below 2^20). */
static inline double rank_correlation(const int *a, const int *b, int n) {
    int64_t aa = 0, bb = 0, ab = 0;
    for (int i = 0; i < n; i++) {  // the mean of twice the ranks is n + 1
        const int x = a[i] - n - 1, y = b[i] - n - 1;
        aa += (int64_t)x * x;
        bb += (int64_t)y * y;
        ab += (int64_t)x * y;
    }
    if (!aa || !bb) return NAN;
    return aa == bb && (ab == aa || ab == -aa) ? (ab > 0 ? 1 : -1)
                                               : (double)ab / (sqrt((double)aa) * sqrt((double)bb));
}

#endif
