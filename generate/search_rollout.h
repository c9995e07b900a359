/* Rollouts of a tree search with a model: continues the tokens of a node with a generator.
 *
 * Each rollout in flight has one sequence of the generator's cache, its slot. The keys and values of image and prefix are
 * in all slots. Nodes keep those of their own tokens (generate/kv_store.h), so a rollout copies what its leaf has and its slot
 * has not, and computes only new tokens. What the store has dropped is read again, token by token as at the first time,
 * which gives the same bits. */
#ifndef GENERATE_SEARCH_ROLLOUT_H
#define GENERATE_SEARCH_ROLLOUT_H

#include "kv_store.h"
#include "search_loop.h"

/* One sequence of the generator. */
typedef struct {
    Generator g;  // a view of that sequence
    int *ids;     // the tokens whose keys and values are in its cache
    int count;
} RolloutSlot;

typedef struct {
    Generator *g;
    RolloutSlot slots[SEARCH_IN_FLIGHT];
    int count;  // of slots
    KvStore store;
    float *root_logits;  // device [V]: after the prefix
    const uint8_t *pixels;
    bool greedy_first;    // the first rollout takes the likeliest tokens
    bool feed_again;      // reads all tokens of the leaf again for each rollout, with a prefill: for comparisons
    int64_t fed, copied;  // tokens of leaves that were computed; rows that were copied
    SearchTree *tree;     // of the rollout that runs
    SearchRollout *rollout;
    bool not_finite;
    bool (*stopped)(void *context);  // asked at each token, or NULL
    void *context;
    bool was_stopped;
} Rollouts;

/* A generator of sequence `slot` alone, with the memory of g. */
static inline Generator rollout_view(const Generator *g, int slot) {
    const LmConfig *c = &g->m->c.lm;
    const size_t sequence = (size_t)c->kv_heads * g->cache.capacity * c->head_dim;
    Generator v = *g;
    v.max_B = v.B = 1;
    v.cache.keys = (floatX **)xmalloc((size_t)c->layers * sizeof(floatX *));
    v.cache.values = (floatX **)xmalloc((size_t)c->layers * sizeof(floatX *));
    for (int l = 0; l < c->layers; l++) {
        v.cache.keys[l] = g->cache.keys[l] + (size_t)slot * sequence;
        v.cache.values[l] = g->cache.values[l] + (size_t)slot * sequence;
    }
    v.ids += slot;
    v.positions += slot;
    v.streams += slot;
    v.logits += (size_t)slot * c->vocab;
    return v;
}

/* Reads the image and the prefix for all slots. The generator has at least `count` sequences. */
static inline int rollouts_open(Rollouts *r, Generator *g, int count, const uint8_t *pixels, const int *prefix,
                                int prefix_count, size_t store_bytes, Error *err) {
    const LmConfig *c = &g->m->c.lm;
    const Ops *op = g->m->op;
    *r = (Rollouts){.g = g, .count = count, .pixels = pixels};
    r->root_logits = (float *)op->alloc((size_t)c->vocab * sizeof(float));
    if (!r->root_logits) return error_set(err, "cannot allocate the logits of the search's root");
    generator_prefill(g, pixels, 1, prefix, prefix_count);
    op->copy(r->root_logits, g->logits, (size_t)c->vocab * sizeof(float));
    for (int s = 1; s < count; s++) kv_cache_move(&g->cache, c, op, s, 0, 0, g->length);
    for (int s = 0; s < count; s++) {
        RolloutSlot *slot = &r->slots[s];
        slot->g = rollout_view(g, s);
        slot->ids = (int *)xmalloc((size_t)g->cache.capacity * sizeof(int));
        slot->count = prefix_count;
        for (int i = 0; i < prefix_count; i++) slot->ids[i] = prefix[i];
    }
    kv_store_open(&r->store, g->m, store_bytes);
    return 0;
}

/* The nodes' rows are dropped too, so the tree must still exist. */
static inline void rollouts_close(Rollouts *r) {
    const Ops *op = r->g->m->op;
    for (int s = 0; s < r->count; s++) {
        op->graph_free(&r->slots[s].g);
        free(r->slots[s].g.cache.keys);
        free(r->slots[s].g.cache.values);
        free(r->slots[s].ids);
    }
    op->sync();
    kv_store_close(&r->store);
    op->release(r->root_logits);
}

/* ---- continuing from a leaf ---- */

/* Reads token number i of the leaf at its place; all before it must be in the slot's cache. */
static inline void rollout_feed(Rollouts *r, RolloutSlot *slot, const int *ids, int i) {
    slot->g.length = model_prompt(r->g->m) + i;
    generator_append(&slot->g, &ids[i]);
    r->fed++;
}

static inline int rollout_common(const RolloutSlot *slot, const int *ids, int count) {
    int n = 0;
    while (n < count && n < slot->count && ids[n] == slot->ids[n]) n++;
    return n;
}

/* Brings the keys and values of a node's tokens, up to token `end`, into the slot; `have` tokens are there. Parents first. */
static inline int rollout_bring(Rollouts *r, RolloutSlot *slot, SearchNode *n, const int *ids, int have, int end) {
    const int P = model_prompt(r->g->m);
    if (n->length > have && n->parent) have = rollout_bring(r, slot, n->parent, ids, have, end);
    KvRows *rows = n->rows;
    if (n->length < end) end = n->length;
    if (rows && have >= rows->first - P) {
        const int stored = rows->first - P + rows->count, upto = stored < end ? stored : end;
        if (upto > have) {
            kv_store_load(&r->store, rows, &slot->g.cache, P + have, P + upto);
            r->copied += upto - have;
            have = upto;
        }
    }
    for (; have < end; have++) rollout_feed(r, slot, ids, have);
    return have;
}

/* Puts the slot's generator behind the tokens ids [length] of a leaf. */
static inline void rollout_begin(Rollouts *r, RolloutSlot *slot, const SearchTree *t, SearchNode *leaf,
                                 const int *ids) {
    Generator *g = &slot->g;
    const int root = t->root->length, length = leaf->length;
    if (r->feed_again) {
        g->length = model_prefill(g->m, r->pixels, 1, ids, length, &g->cache, g->logits);
        generator_set_all(g, g->positions, g->length - 1);
        r->fed += length;
    } else if (length == root) {
        g->length = model_prompt(g->m) + root;
        g->m->op->copy(g->logits, r->root_logits, (size_t)g->m->c.lm.vocab * sizeof(float));
        generator_set_all(g, g->positions, g->length - 1);
    } else {
        rollout_bring(r, slot, leaf, ids, rollout_common(slot, ids, length - 1), length - 1);
        rollout_feed(r, slot, ids, length - 1);
    }
}

static inline bool rollout_read(void *context, int b, int id) {
    Rollouts *r = (Rollouts *)context;
    (void)b;
    r->not_finite = id < 0;
    r->was_stopped = r->stopped && r->stopped(r->context);
    return !r->not_finite && !r->was_stopped && search_token(r->tree, r->rollout, id);
}

/* The first rollout may be greedy. In a search for distinct programs, the temperature of a rollout rises with the number n of
 * repeats from its node, by a quarter for each power of two in 1 + n, at most threefold: a sure model needs heat to say
 * something else. */
static inline void rollout_set_temperature(Rollouts *r, RolloutSlot *slot, const SearchTree *t,
                                           const SearchRollout *o) {
    const SearchNode *n = o->leaf->widen ? o->leaf->parent : o->leaf;
    Sampling s = r->g->sampling;
    int doublings = 0;
    for (int m = 1 + n->repeats; m > 1 && doublings < 8; m /= 2) doublings++;
    if (t->rules.distinct) s.temperature *= 1 + 0.25f * (float)doublings;
    if (r->greedy_first && o->number == 0) s.temperature = 0;
    if (s.temperature == slot->g.sampling.temperature) return;
    slot->g.m->op->graph_free(&slot->g);  // which has the sampling in it
    slot->g.sampling = s;
}

/* SearchCalls.rollout. Returns -1 where the model's numbers are not finite, or `stopped` says so. */
static inline int rollout_run(Rollouts *r, SearchTree *t, SearchRollout *o, int s, Error *err) {
    RolloutSlot *slot = &r->slots[s];
    const int length = o->leaf->length, stream = o->number;
    rollout_set_temperature(r, slot, t, o);
    r->tree = t;
    r->rollout = o;
    rollout_begin(r, slot, t, o->leaf, o->program->ids);
    generator_run(&slot->g, &stream, t->rules.max_length - length, rollout_read, r);
    slot->count = length + (o->generated > 0 ? o->generated - 1 : 0);  // the last token has not been read
    memcpy(slot->ids, o->program->ids, (size_t)slot->count * sizeof(int));
    if (r->was_stopped) return error_set(err, "the search was stopped");
    if (r->not_finite) {
        model_not_finite(r->g->m, err);
        return -1;
    }
    return 0;
}

/* After a rollout has been applied: its nodes that have no rows keep what its slot has of them. */
static inline void rollout_keep(Rollouts *r, const SearchRollout *o, int s) {
    RolloutSlot *slot = &r->slots[s];
    const SearchProgram *p = o->program;
    const int P = model_prompt(r->g->m), have = rollout_common(slot, p->ids, p->count);
    if (r->feed_again) return;
    for (SearchNode *n = o->deepest; n->parent; n = n->parent) {
        const int first = n->length - n->own, end = n->length < have ? n->length : have;
        if (!n->rows && end > first) kv_store_save(&r->store, &n->rows, &slot->g.cache, P + first, end - first);
    }
}

#endif
