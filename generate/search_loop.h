/* The loop of a tree search: rollouts are written one after another while the verdicts on those before are still being
 * made, a constant number in flight. Results are applied in order, so the tree does not depend on how long a verdict takes;
 * with one in flight the rules are exactly the published ones. */
#ifndef GENERATE_SEARCH_LOOP_H
#define GENERATE_SEARCH_LOOP_H

#include "search_tree.h"

enum { SEARCH_IN_FLIGHT = 64 };

/* What a search needs from outside. `slot` numbers the rollouts in flight, 0 .. in_flight - 1; it is free again after the
 * rollout has been applied. Each int function returns -1 with *err filled where the search cannot go on. */
typedef struct {
    void *context;
    /* Continues the tokens r->program->ids [count] with the random stream r->number: gives every new token to search_token
     * until that returns false. */
    int (*rollout)(void *context, SearchTree *t, SearchRollout *r, int slot, Error *err);
    /* Begins to judge a program that has not been judged before, without waiting. */
    int (*submit)(void *context, const SearchRollout *r, int slot, Error *err);
    /* The verdict on a program that has been submitted. */
    int (*verdict)(void *context, const SearchRollout *r, SearchVerdict *v, Error *err);
    /* Called after a rollout has been applied. Returns whether the search goes on. */
    bool (*applied)(void *context, SearchTree *t, const SearchRollout *r, int slot);
    /* Whether the search ends at once, without the results that are still in flight. */
    bool (*stopped)(void *context);
} SearchCalls;

/* Begins one rollout, writes it and submits its program. */
static inline int search_launch(SearchTree *t, const SearchCalls *c, SearchRollout *r, int slot, Error *err) {
    search_begin(t, r);
    if (!search_complete(t, r) && c->rollout(c->context, t, r, slot, err)) {
        search_abandon(r, false);
        return -1;
    }
    search_end(t, r);
    if (!r->fresh || !c->submit(c->context, r, slot, err)) return 0;
    search_abandon(r, true);
    return -1;
}

/* Waits for the verdict on a rollout and applies it. Returns 0, 1 where the search is to end, -1 where it cannot go on. */
static inline int search_land(SearchTree *t, const SearchCalls *c, SearchRollout *r, int slot, Error *err) {
    SearchVerdict v = r->program->verdict;
    if (!r->program->judged && c->verdict(c->context, r, &v, err)) {
        search_abandon(r, true);
        return -1;
    }
    search_apply(t, r, &v);
    return !c->applied(c->context, t, r, slot);
}

/* Runs up to `rollouts` rollouts (0: without limit), `in_flight` at a time. Returns 0, or -1 with *err filled. The tree is
 * valid in either case. */
static inline int search_loop(SearchTree *t, const SearchCalls *c, int rollouts, int in_flight, Error *err) {
    SearchRollout flying[SEARCH_IN_FLIGHT];
    int begun = 0, landed = 0, status = 0;
    while (status == 0 && !(c->stopped && c->stopped(c->context))) {
        const bool more = rollouts == 0 || begun < rollouts;
        if (landed < begun && (!more || begun - landed == in_flight)) {
            status = search_land(t, c, &flying[landed % in_flight], landed % in_flight, err);
            landed++;
        } else if (more) {
            status = search_launch(t, c, &flying[begun % in_flight], begun % in_flight, err);
            begun += status == 0;
        } else {
            break;
        }
    }
    while (landed < begun) search_abandon(&flying[landed++ % in_flight], true);
    return status < 0 ? -1 : 0;
}

#endif
