/* Choosing the next token from logits: greedy, or at a temperature with top-k and top-p (nucleus; Holtzman et al.
 * 2020). */
#ifndef LIB_SAMPLER_H
#define LIB_SAMPLER_H

#include "error.h"
#include "random.h"
#include "tokenizer.h"

#include <math.h>

typedef struct {
    double temperature;  // 0: greedy
    double top_p;        // keep the likeliest tokens that together reach this probability; 1: all
    int top_k;           // keep this many; 0: all
    Random random;
    int vocab;
    struct Candidate {
        float p;
        int id;
    } * candidates;  // [vocab], scratch
} Sampler;

static inline void sampler_open(Sampler *s, int vocab, double temperature, double top_p, int top_k, uint64_t seed) {
    s->temperature = temperature;
    s->top_p = top_p;
    s->top_k = top_k;
    s->vocab = vocab;
    random_seed(&s->random, seed);
    s->candidates = (struct Candidate *)xcalloc((size_t)vocab, sizeof *s->candidates);
}

static inline void sampler_close(Sampler *s) { free(s->candidates); }

/* The largest logit; the smaller id where equal. */
static inline int argmax(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static inline int candidate_order(const void *a, const void *b) {
    const struct Candidate *x = (const struct Candidate *)a, *y = (const struct Candidate *)b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* A token id; forbidden tokens have logit -INFINITY. */
static inline int sampler_choose(Sampler *s, const float *logits) {
    int best = argmax(logits, s->vocab), n = 0;
    if (s->temperature <= 0) return best;
    double sum = 0;
    for (int i = 0; i < s->vocab; i++) {
        float p = expf((logits[i] - logits[best]) / (float)s->temperature);
        if (!(p > 0)) continue;
        s->candidates[n].p = p;
        s->candidates[n++].id = i;
        sum += (double)p;
    }
    if (!n) return best;
    if (s->top_k > 0 || s->top_p < 1) {
        qsort(s->candidates, (size_t)n, sizeof *s->candidates, candidate_order);
        if (s->top_k > 0 && s->top_k < n) n = s->top_k;
        double kept = 0;
        int used = 0;
        while (used < n && (used == 0 || kept < s->top_p * sum)) kept += (double)s->candidates[used++].p;
        n = used;
        sum = kept;
    }
    double draw = random_uniform(&s->random) * sum;
    for (int i = 0; i < n; i++) {
        draw -= (double)s->candidates[i].p;
        if (draw < 0) return s->candidates[i].id;
    }
    return s->candidates[n - 1].id;
}

/* What a model may not write: padding rows of the vocabulary, special tokens other than the end (the image token),
 * and the end itself as the first token, whether or not it is flagged as special. */
static inline void logits_forbid(float *logits, int vocab, int tokens, const uint8_t *flags, int end, bool first) {
    for (int i = 0; i < vocab; i++)
        if (i >= tokens || (i == end ? first : (flags[i] & TOKEN_SPECIAL) != 0)) logits[i] = -INFINITY;
}

#endif
