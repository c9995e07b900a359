/* The rule of speculative sampling (Leviathan et al. 2023; Chen et al. 2023). A draft draws token x from q, and the target,
 * whose distribution is p, keeps it with probability min(1, p(x) / q(x)). If it does not, the token is drawn from the
 * residual max(0, p - q), scaled to sum to 1. Either way the token has the distribution p:
 *
 *     q(x) min(1, p(x)/q(x)) + (1 - sum_y min(p(y), q(y))) max(0, p(x) - q(x)) / sum_y max(0, p(y) - q(y)) = p(x)
 *
 * p and q are those that kernels/sample.h draws from, after temperature, top-k and top-p. Their weights are whole numbers, so
 * all of this is exact and the same on every machine, up to the 2^-62 of a probability that is drawn. */
#ifndef GENERATE_REJECTION_H
#define GENERATE_REJECTION_H

#include "../kernels/sample_host.h"
#include "../lib/error.h"

/* A token at a position takes up to three draws, which must not depend on each other. The target's own has the plain seed,
 * so that a token without a proposal is the one that generator_run would draw. */
#define REJECTION_SEED_DRAFT 0x6a09e667f3bcc908u
#define REJECTION_SEED_ACCEPT 0xbb67ae8584caa73bu

/* Token i has the probability weights[i] / total; a weight is at most 2^40, the total below 2^61. */
typedef struct {
    uint64_t *weights, total;  // [V]
    uint32_t *distance;        // [V]
    SampleItem *items;         // [V] scratch
} Distribution;

static inline void distribution_open(Distribution *d, int V) {
    d->weights = (uint64_t *)xcalloc((size_t)V, sizeof *d->weights);
    d->distance = (uint32_t *)xcalloc((size_t)V, sizeof *d->distance);
    d->items = (SampleItem *)xcalloc((size_t)V, sizeof *d->items);
    d->total = 0;
}

static inline void distribution_close(Distribution *d) {
    free(d->weights);
    free(d->distance);
    free(d->items);
}

/* The distribution of host logits [V]. Its total is 0 where there is none (sample_best). */
static inline void distribution_read(Distribution *d, const float *logits, const uint8_t *token_mask,
                                     const Sampling *s, int V) {
    d->total = 0;
    if (sample_kept(d->distance, d->items, logits, token_mask, s, V) < 0) return;
    for (int i = 0; i < V; i++) d->total += d->weights[i] = sample_weight(d->distance[i]);
}

/* The token that Ops.sample draws from it, or -1. */
static inline int distribution_draw(const Distribution *d, const Sampling *s, int stream, int position) {
    return d->total ? sample_pick(d->distance, d->total, s, stream, position) : -1;
}

/* How far a number must be shifted to the right to be below 2^62. */
static inline int rejection_shift(unsigned __int128 x) {
    int shift = 0;
    while (x >> shift >> 62) shift++;
    return shift;
}

/* Whether the target p keeps token `id`, which was drawn from q. */
static inline bool rejection_accepts(const Distribution *p, const Distribution *q, int id, uint64_t seed, int stream,
                                     int position) {
    const unsigned __int128 kept = (unsigned __int128)p->weights[id] * q->total;
    const unsigned __int128 drawn = (unsigned __int128)q->weights[id] * p->total;
    if (kept >= drawn) return true;
    const int shift = rejection_shift(drawn);
    const uint64_t draw = sample_draw(seed ^ REJECTION_SEED_ACCEPT, stream, position, (uint64_t)(drawn >> shift));
    return draw < (uint64_t)(kept >> shift);
}

/* Token i's weight in max(0, p - q). */
static inline unsigned __int128 rejection_weight(const Distribution *p, const Distribution *q, int i) {
    const unsigned __int128 have = (unsigned __int128)p->weights[i] * q->total;
    const unsigned __int128 taken = (unsigned __int128)q->weights[i] * p->total;
    return have > taken ? have - taken : 0;
}

/* Draws one of the first n tokens, all that p or q may choose, from max(0, p - q), after p has rejected a token of q. */
static inline int rejection_residual(const Distribution *p, const Distribution *q, uint64_t seed, int stream,
                                     int position, int n) {
    unsigned __int128 whole = 0;
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++) whole += rejection_weight(p, q, i);
    const int shift = rejection_shift(whole);
    for (int i = 0; i < n; i++) total += (uint64_t)(rejection_weight(p, q, i) >> shift);
    const uint64_t draw = sample_draw(seed, stream, position, total);
    for (int i = 0; i < n; i++) {
        sum += (uint64_t)(rejection_weight(p, q, i) >> shift);
        if (sum > draw) return i;
    }
    die("internal error: a residual without a token");
}

#endif
