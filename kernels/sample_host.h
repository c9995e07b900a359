/* The tokens that temperature, top-k and top-p keep of one row of logits, on the host: the CPU's sampling and speculative
 * decoding share it. sample.h has the arithmetic. */
#ifndef KERNELS_SAMPLE_HOST_H
#define KERNELS_SAMPLE_HOST_H

#include "sample.h"
#include <stdlib.h>

typedef struct {
    uint64_t key, weight;
} SampleItem;

static inline int sample_order(const void *a, const void *b) {
    uint64_t x = ((const SampleItem *)a)->key, y = ((const SampleItem *)b)->key;
    return x < y ? -1 : x > y;
}

/* The key of the last token that top-k and top-p keep. A count by the distances' first digit finds the bin that
 * contains it, and only that bin is sorted. */
static inline uint64_t sample_last_kept(SampleItem *items, const uint32_t *distance, const Sampling *s, int V) {
    const int shift = SAMPLE_KEY_BITS - SAMPLE_ID_BITS - SAMPLE_DIGIT;
    uint64_t sums[SAMPLE_BINS] = {0}, counts[SAMPLE_BINS] = {0}, total = 0, rank = 0, before = 0;
    for (int i = 0; i < V; i++) {
        if (distance[i] == SAMPLE_NEVER) continue;
        counts[distance[i] >> shift]++;
        sums[distance[i] >> shift] += sample_weight(distance[i]);
    }
    for (int b = 0; b < SAMPLE_BINS; b++) total += sums[b];
    const uint64_t target = sample_target(s->top_p, total), most = (uint64_t)(s->top_k > 0 ? s->top_k : V);
    uint32_t bin = 0;
    uint64_t bin_rank = 0, bin_before = 0;
    for (uint32_t b = 0; b < SAMPLE_BINS; rank += counts[b], before += sums[b], b++)
        if (counts[b] && rank < most && before < target) bin = b, bin_rank = rank, bin_before = before;
    int n = 0, last = 0;
    for (int i = 0; i < V; i++)
        if (distance[i] >> shift == bin) {
            items[n].key = sample_key(distance[i], i);
            items[n++].weight = sample_weight(distance[i]);
        }
    qsort(items, (size_t)n, sizeof *items, sample_order);
    for (int i = 0; i < n && bin_rank < most && bin_before < target; i++, bin_rank++) {
        last = i;
        bin_before += items[i].weight;
    }
    return items[last].key;
}

/* The likeliest token that is allowed, the first of equals; -1 if there is none or a logit is NaN or +infinity. */
static inline int sample_best(const float *logits, const uint8_t *token_mask, int V) {
    float top = -INFINITY;
    int best = -1;
    for (int i = 0; i < V; i++) {
        if (!(logits[i] < INFINITY)) return -1;
        if (logits[i] > top && !token_mask[i]) {
            top = logits[i];
            best = i;
        }
    }
    return best;
}

/* distance [V] = every token's distance from the likeliest allowed one, SAMPLE_NEVER where temperature, top-k or top-p leave
 * it out. Returns the likeliest token, which is the only one kept where sampling is greedy, or -1 as sample_best; then
 * distance is not written. items [V] is scratch, not read unless sample_is_limited. */
static inline int sample_kept(uint32_t *distance, SampleItem *items, const float *logits, const uint8_t *token_mask,
                              const Sampling *s, int V) {
    const int best = sample_best(logits, token_mask, V);
    if (best < 0) return best;
    const bool greedy = sample_is_greedy(s);
    const float scale = greedy ? 1 : sample_scale(s->temperature), top = logits[best];
    for (int i = 0; i < V; i++) {
        const bool never = token_mask[i] || (greedy && i != best);
        distance[i] = never ? SAMPLE_NEVER : sample_distance(logits[i], top, scale);
    }
    if (greedy || !sample_is_limited(s)) return best;
    const uint64_t last = sample_last_kept(items, distance, s, V);
    for (int i = 0; i < V; i++)
        if (sample_key(distance[i], i) > last) distance[i] = SAMPLE_NEVER;
    return best;
}

/* Draws a token with its weight's share of `total`, which is their sum: the last step of sample.h. */
static inline int sample_pick(const uint32_t *distance, uint64_t total, const Sampling *s, int stream, int position) {
    const uint64_t draw = sample_draw(s->seed, stream, position, total);
    int id = -1;
    for (uint64_t sum = 0; sum <= draw; id++) sum += sample_weight(distance[id + 1]);
    return id;
}

#endif
