/* BLEU-4 of a corpus (Papineni et al. 2002), from counts of each sample that add up; CrystalBLEU (Eghbali and Pradel 2022),
 * which leaves out the n-grams that are frequent in the training texts; and how much a text repeats itself. */
#ifndef METRICS_BLEU_H
#define METRICS_BLEU_H

#include "symbols.h"

#include <math.h>

enum { BLEU_ORDERS = 4 };
#define NGRAM_NONE UINT32_MAX  // fills up the n-grams of orders below 4; no token has this id

/* ---- counts of n-grams ---- */

typedef struct {
    uint32_t ids[BLEU_ORDERS];
    uint32_t hypothesis, reference;  // how often the n-gram occurs there
} Ngram;

/* A hash table of n-grams, in the order in which they came. Initialise with zeros. 24 to 64 bytes an n-gram. */
typedef struct {
    Ngram *list;
    size_t count, capacity, slot_count;
    uint32_t *slots;  // index in list + 1, 0: free; at most half of them are taken
} NgramTable;

static inline void ngrams_free(NgramTable *t) {
    free(t->list);
    free(t->slots);
    memset(t, 0, sizeof *t);
}

/* Empties the table, in time for what is in it. */
static inline void ngrams_clear(NgramTable *t) {
    if (t->count) memset(t->slots, 0, t->slot_count * sizeof *t->slots);
    t->count = 0;
}

static inline size_t ngrams_slot(const NgramTable *t, const uint32_t *ids) {
    size_t at = hash_slot(hash_bytes(HASH_BEGIN, ids, sizeof t->list->ids), t->slot_count);
    while (t->slots[at] && memcmp(t->list[t->slots[at] - 1].ids, ids, sizeof t->list->ids))
        at = (at + 1) & (t->slot_count - 1);
    return at;
}

/* The entry of an n-gram, or NULL. */
static inline Ngram *ngrams_find(const NgramTable *t, const uint32_t *ids) {
    if (t->count == 0) return NULL;
    const uint32_t i = t->slots[ngrams_slot(t, ids)];
    return i ? &t->list[i - 1] : NULL;
}

/* The entry of an n-gram, a new one if there is none. */
static inline Ngram *ngrams_add(NgramTable *t, const uint32_t *ids) {
    if (2 * (t->count + 1) > t->slot_count) {
        t->slot_count = t->slot_count ? 2 * t->slot_count : 1024;
        if (t->slot_count > UINT32_MAX) die("there are too many different n-grams; take fewer texts to train on");
        free(t->slots);
        t->slots = (uint32_t *)xcalloc(t->slot_count, sizeof *t->slots);
        for (size_t i = 0; i < t->count; i++) t->slots[ngrams_slot(t, t->list[i].ids)] = (uint32_t)i + 1;
    }
    const size_t at = ngrams_slot(t, ids);
    if (t->slots[at]) return &t->list[t->slots[at] - 1];
    if (t->count == t->capacity) {
        t->capacity = 2 * t->capacity + 256;
        t->list = (Ngram *)xrealloc(t->list, t->capacity * sizeof *t->list);
    }
    Ngram *new_one = &t->list[t->count++];
    memset(new_one, 0, sizeof *new_one);
    memcpy(new_one->ids, ids, sizeof new_one->ids);
    t->slots[at] = (uint32_t)t->count;
    return new_one;
}

/* The n-gram of an order that begins at s. */
static inline void ngram_at(uint32_t ids[BLEU_ORDERS], const uint32_t *s, int order) {
    for (int i = 0; i < BLEU_ORDERS; i++) ids[i] = i < order ? s[i] : NGRAM_NONE;
}

/* ---- n-grams to leave out ---- */

/* Counts the n-grams of orders 1 to 4 of one text of the training corpus. */
static inline void ngrams_train(NgramTable *t, const uint32_t *s, size_t n) {
    uint32_t ids[BLEU_ORDERS];
    for (int order = 1; order <= BLEU_ORDERS; order++)
        for (size_t i = 0; i + (size_t)order <= n; i++) {
            ngram_at(ids, s + i, order);
            ngrams_add(t, ids)->reference++;
        }
}

typedef struct {
    Ngram ngram;
    size_t place;  // in the table
    int order;
} RankedNgram;

/* The most frequent first; of equally frequent ones the shorter, then the one that came first. */
static inline int ngrams_compare(const void *a, const void *b) {
    const RankedNgram *x = (const RankedNgram *)a, *y = (const RankedNgram *)b;
    if (x->ngram.reference != y->ngram.reference) return x->ngram.reference < y->ngram.reference ? 1 : -1;
    if (x->order != y->order) return x->order - y->order;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Keeps the `most` most frequent n-grams of a table that ngrams_train has filled. Equals Python's Counter.most_common
 * after counting all texts for order 1, then for order 2, and so on. */
static inline void ngrams_keep(NgramTable *t, size_t most) {
    RankedNgram *ranked = (RankedNgram *)xmalloc(t->count * sizeof *ranked);
    const size_t count = t->count;
    for (size_t i = 0; i < count; i++) {
        int order = 0;
        while (order < BLEU_ORDERS && t->list[i].ids[order] != NGRAM_NONE) order++;
        ranked[i] = (RankedNgram){t->list[i], i, order};
    }
    qsort(ranked, count, sizeof *ranked, ngrams_compare);
    ngrams_free(t);
    for (size_t i = 0; i < most && i < count; i++)
        ngrams_add(t, ranked[i].ngram.ids)->reference = ranked[i].ngram.reference;
    free(ranked);
}

/* ---- BLEU ---- */

/* What BLEU needs of one sample, or the sum over many. */
typedef struct {
    int64_t matches[BLEU_ORDERS], totals[BLEU_ORDERS];  // n-grams of the hypothesis that the reference has too; all
    int64_t hypothesis, reference;                      // tokens
} BleuCounts;

static inline void bleu_add(BleuCounts *sum, const BleuCounts *one) {
    for (int i = 0; i < BLEU_ORDERS; i++) {
        sum->matches[i] += one->matches[i];
        sum->totals[i] += one->totals[i];
    }
    sum->hypothesis += one->hypothesis;
    sum->reference += one->reference;
}

/* Counts one sample, without the n-grams in `ignored` (NULL: with all). `scratch` is emptied and used. An n-gram matches as
 * often as it occurs in both texts. As in nltk, and unlike in sacrebleu, a hypothesis without n-grams of an order counts
 * as one that does not match. */
static inline BleuCounts bleu_count(const uint32_t *hypothesis, size_t n, const uint32_t *reference, size_t m,
                                    const NgramTable *ignored, NgramTable *scratch) {
    BleuCounts c = {{0}, {0}, (int64_t)n, (int64_t)m};
    uint32_t ids[BLEU_ORDERS];
    ngrams_clear(scratch);
    for (int order = 1; order <= BLEU_ORDERS; order++) {
        const size_t width = (size_t)order, first = scratch->count;
        for (size_t i = 0; i + width <= n; i++) {
            ngram_at(ids, hypothesis + i, order);
            if (!ignored || !ngrams_find(ignored, ids)) ngrams_add(scratch, ids)->hypothesis++;
        }
        for (size_t i = 0; i + width <= m; i++) {
            ngram_at(ids, reference + i, order);
            Ngram *known = ngrams_find(scratch, ids);
            if (known) known->reference++;
        }
        for (size_t i = first; i < scratch->count; i++) {
            const Ngram g = scratch->list[i];
            c.totals[order - 1] += g.hypothesis;
            c.matches[order - 1] += g.hypothesis < g.reference ? g.hypothesis : g.reference;
        }
        if (c.totals[order - 1] == 0) c.totals[order - 1] = 1;
    }
    return c;
}

/* BLEU-4 in per cent, with equal weights and without smoothing. 0 where an order has no match, so also where all
 * hypotheses are empty or shorter than 4 tokens (nltk gives a number below 1e-70, and warns). */
static inline double bleu_score(const BleuCounts *c) {
    double sum = 0;
    for (int i = 0; i < BLEU_ORDERS; i++) {
        if (c->matches[i] == 0) return 0;
        sum += log((double)c->matches[i] / (double)c->totals[i]) / BLEU_ORDERS;
    }
    const double shorter = 1 - (double)c->reference / (double)c->hypothesis;
    return 100 * exp(sum + (shorter < 0 ? shorter : 0));
}

/* ---- repetition ---- */

/* The share of a text's n-grams of 4 tokens that occurred before in it (seq-rep-4 of Welleck et al. 2019, "Neural text
 * generation with unlikelihood training"); 0 for fewer than 4 tokens. */
static inline double repetition_rate(const uint32_t *s, size_t n, NgramTable *scratch) {
    ngrams_clear(scratch);
    for (size_t i = 0; i + BLEU_ORDERS <= n; i++) ngrams_add(scratch, s + i);
    return n < BLEU_ORDERS ? 0 : 1 - (double)scratch->count / (double)(n - BLEU_ORDERS + 1);
}

#endif
