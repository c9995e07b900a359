/* From a teacher's logits to the rows of a cache (cache_format.h). */
#ifndef TRAIN_CACHE_PACK_H
#define TRAIN_CACHE_PACK_H

#include "../lib/dtype.h"
#include "../lib/random.h"
#include "cache_format.h"

/* Sums over a row of logits x [V]: with top the largest, z = sum of exp((x - top) / tau), and what a SparseRow says. */
typedef struct {
    double top, z;
    SparseRow known;
} CacheSums;

/* Returns false where a logit is not finite. */
static bool cache_sums(CacheSums *s, const floatX *x, uint32_t V, double tau) {
    double z1 = 0, weighted = 0;
    *s = (CacheSums){.top = -INFINITY};
    for (uint32_t i = 0; i < V; i++) {
        const double value = from_x(x[i]);
        if (!isfinite(value)) return false;
        if (value > s->top) s->top = value, s->known.top = (int)i;
    }
    for (uint32_t i = 0; i < V; i++) {
        const double y = from_x(x[i]) - s->top, e = exp(y / tau);
        s->z += e;
        weighted += e * (y / tau);
        z1 += tau == 1 ? e : exp(y);
    }
    s->known.confidence = (float)(1 / z1);
    s->known.entropy = (float)fmax(log(s->z) - weighted / s->z, 0);
    return true;
}

static double cache_p(const CacheSums *s, floatX x, double tau) { return exp((from_x(x) - s->top) / tau) / s->z; }

static void cache_put_id(uint8_t *ids, uint32_t vocab, uint32_t k, uint32_t id) {
    memcpy(ids + k * cache_id_bytes(vocab), &id, cache_id_bytes(vocab));
}

/* ---- the K likeliest ---- */

/* Whether entry a of x is less likely than b; of equals, the larger id. */
static inline bool cache_less(const floatX *x, uint32_t a, uint32_t b) {
    const float u = from_x(x[a]), v = from_x(x[b]);
    return u < v || (u == v && a > b);
}

/* Moves heap[at] down to its place in a heap whose first entry is the least likely. */
static void cache_sift(const floatX *x, uint32_t *heap, uint32_t n, uint32_t at) {
    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && cache_less(x, heap[child + 1], heap[child])) child++;
        if (!cache_less(x, heap[child], heap[at])) return;
        const uint32_t moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
    }
}

static int cache_compare_ids(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* The ids of the K <= V largest entries of x [V], in ascending order. */
static void cache_likeliest(uint32_t *ids, const floatX *x, uint32_t V, uint32_t K) {
    for (uint32_t i = 0; i < K; i++) ids[i] = i;
    for (uint32_t i = K / 2; i-- > 0;) cache_sift(x, ids, K, i);
    for (uint32_t i = K; i < V; i++) {
        if (!cache_less(x, ids[0], i)) continue;
        ids[0] = i;
        cache_sift(x, ids, K, 0);
    }
    qsort(ids, K, sizeof *ids, cache_compare_ids);
}

/* The others' probability is a sum of its own, not 1 less that of the listed, which would have lost its digits. */
static void cache_pack_topk(uint8_t *row, CacheSums *s, const floatX *x, const CacheHeader *h) {
    uint32_t ids[SPARSE_MOST], at = 0;
    double rest = 0;
    uint8_t *to = row + sizeof s->known, *codes = to + h->K * cache_id_bytes(h->vocab);
    cache_likeliest(ids, x, h->vocab, h->K);
    for (uint32_t i = 0; i < h->vocab; i++) {
        const double p = cache_p(s, x[i], h->temperature);
        if (at == h->K || ids[at] != i) {
            rest += p;
            continue;
        }
        const double code = -log(fmax(p, 1e-300)) * CACHE_STEPS;
        const uint16_t rounded = code < 65535 ? (uint16_t)(code + 0.5) : 65535;
        cache_put_id(to, h->vocab, at, i);
        memcpy(codes + 2 * at++, &rounded, sizeof rounded);
    }
    s->known.rest = (float)rest;
    memcpy(row, &s->known, sizeof s->known);
}

/* ---- draws ---- */

static void cache_pack_draws(uint8_t *row, const CacheSums *s, const floatX *x, const CacheHeader *h, uint32_t sample,
                             uint32_t token) {
    Random random;
    random_seed3(&random, h->seed, sample, token);
    const double u = random_uniform(&random);
    double cumulated = 0;
    uint32_t drawn = 0;
    uint8_t *to = row + sizeof s->known;
    for (uint32_t i = 0; i < h->vocab && drawn < h->K; i++) {
        cumulated += cache_p(s, x[i], h->temperature);
        while (drawn < h->K && (u + drawn) / h->K < cumulated) cache_put_id(to, h->vocab, drawn++, i);
    }
    while (drawn < h->K) cache_put_id(to, h->vocab, drawn++, h->vocab - 1);  // the sum was rounded to less than 1
    memcpy(row, &s->known, sizeof s->known);
}

/* ---- a row ---- */

/* Packs the logits of one token of a sample. Returns false where one is not finite. */
static bool cache_pack(uint8_t *row, const floatX *x, const CacheHeader *h, uint32_t sample, uint32_t token) {
    CacheSums s;
    if (h->kind == CACHE_DENSE) {
        bool finite = true;
        for (uint32_t i = 0; i < h->vocab; i++) {
            const bf16 value = f32_to_bf16(from_x(x[i]));
            finite = finite && isfinite(from_x(x[i]));
            memcpy(row + 2 * i, &value, sizeof value);
        }
        return finite;
    }
    if (!cache_sums(&s, x, h->vocab, h->temperature)) return false;
    if (h->kind == CACHE_TOPK)
        cache_pack_topk(row, &s, x, h);
    else
        cache_pack_draws(row, &s, x, h, sample, token);
    return true;
}

#endif
