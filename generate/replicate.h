/* Several sequences that begin alike, from one encoded image. */
#ifndef GENERATE_REPLICATE_H
#define GENERATE_REPLICATE_H

#include "../generate.h"

/* Makes n sequences of the first one: what follows differs by the random stream alone. */
static inline void generator_replicate(Generator *g, int n) {
    const size_t row = (size_t)g->m->c.lm.vocab;
    for (int i = 1; i < n; i++) {
        kv_cache_move(&g->cache, &g->m->c.lm, g->m->op, i, 0, 0, g->length);
        g->m->op->copy(g->logits + i * row, g->logits, row * sizeof(float));
    }
    g->B = n;
    generator_set_all(g, g->positions, g->length - 1);
}

#endif
