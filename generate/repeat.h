/* The repeat guard: says that a model has begun to write the same tokens again and again.
 *
 * Rule: with some period p <= 64, the last max(256, 8 p) tokens each equal the token p places before. So a loop of one
 * token is found after 257 of them, and one of 64 tokens after nine rounds.
 *
 * Where the numbers come from: real programs repeat too (rows of equal cells, dashed lines in a matrix, long rules of
 * one token). In the starter pack, 592 published figures and 364 000 published formulas, encoded with BPE vocabularies
 * of 400, 1000 and 8000 tokens, the longest such run was 180 tokens (an array of equal cells, 400 tokens), and 156 with a
 * vocabulary of 1000 or more; most programs stay below 60. A loop whose rounds differ, for example in a coordinate
 * that grows, is not found. */
#ifndef GENERATE_REPEAT_H
#define GENERATE_REPEAT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { REPEAT_PERIODS = 64, REPEAT_TOKENS = 256, REPEAT_ROUNDS = 8 };

typedef struct {
    int last[REPEAT_PERIODS];     // the last tokens: token i is last[i % 64]
    int run[REPEAT_PERIODS + 1];  // [period] how many tokens up to now equal the one a period before
    int count;                    // tokens so far
    int period, begin;            // of the loop, once found: the first round is tokens begin to begin + period - 1
} RepeatGuard;

static inline void repeat_begin(RepeatGuard *g) {
    memset(g, 0, sizeof *g);
    g->begin = -1;
}

/* Adds the next token. Returns true when a loop has been found, from then on always. The program without the loop is
 * its first g->begin + g->period tokens, which keep one round, or its first g->begin. Constant time: 64 comparisons. */
static inline bool repeat_add(RepeatGuard *g, int id) {
    if (g->period) return true;
    const int longest = g->count < REPEAT_PERIODS ? g->count : REPEAT_PERIODS;
    for (int p = 1; p <= longest; p++) {
        g->run[p] = g->last[(g->count - p) % REPEAT_PERIODS] == id ? g->run[p] + 1 : 0;
        const int enough = REPEAT_ROUNDS * p > REPEAT_TOKENS ? REPEAT_ROUNDS * p : REPEAT_TOKENS;
        if (g->run[p] < enough || g->period) continue;
        g->period = p;  // the smallest
        g->begin = g->count + 1 - g->run[p] - p;
    }
    g->last[g->count++ % REPEAT_PERIODS] = id;
    return g->period > 0;
}

#endif
