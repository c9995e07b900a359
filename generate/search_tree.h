/* The tree of a Monte Carlo tree search over programs, with the rules of DeTikZify (Belouadi et al. 2024, section 5 and
 * appendix A.1). It knows neither models nor TeX: tokens and verdicts come from its caller.
 *
 *   search_begin      selects a leaf, whose tokens the rollout continues
 *   search_token      takes the next token of the rollout, until it returns false
 *   search_end        finds the program among those that are known
 *   search_apply      takes the program's verdict: new nodes, and values for the nodes above them
 *
 * A node stands for a beginning of a program that ends with a line. Each has a widen child with the same tokens, through
 * which the search returns to it for another rollout. Values are min-max normalised over all scores so far whenever they
 * are read ("dynamic rescaling"). A rollout that enters a node that exists goes into it ("node deduplication"), and one
 * that reaches a beginning which is known to fail is not continued ("preemptive stopping").
 *
 * Several rollouts may be begun before the first is applied. A rollout that is not yet applied counts as a visit without a
 * value on its whole path. If each is applied before the next begins, these are exactly the published rules.
 *
 * A sure model writes the same few programs again and again, and under the published rules each time counts like the first.
 * With SearchRules.distinct a rollout that ends with a known program is a visit without a value, and a node that is a whole
 * program is no longer selected. */
#ifndef GENERATE_SEARCH_TREE_H
#define GENERATE_SEARCH_TREE_H

#include "search_lines.h"
#include "token_map.h"
#include "../lib/random.h"

#include <math.h>

/* A beginning of a program: its first `length` tokens. */
typedef struct {
    int length, lines;
    bool line_end;  // it ends with a line
} SearchState;

/* What is known about a whole program. */
typedef struct {
    bool drawn;         // there is an output, with or without errors
    bool clean;         // without errors
    int error_line;     // the smallest line of an error; 0: some error has no line in the program, or there is none
    double similarity;  // of the drawing, where it is drawn and the search asks for it
} SearchVerdict;

typedef struct {
    int *ids, count;
    SearchState *states;  // after the root's tokens: at each token that ends a line, and at the end
    int state_count;
    bool judged;
    SearchVerdict verdict;
    double value;
    int rollout;  // the first that wrote it
    void *user;   // the caller's
} SearchProgram;

typedef struct SearchNode {
    struct SearchNode *parent, **children;  // the widen child comes first
    int child_count;
    bool widen, expanded, whole;  // whole: the tokens are a whole program
    int *ids, own;                // the tokens that it has more than its parent
    int length, lines;
    int visits, pending;
    int repeats;     // rollouts from here that ended with a known program
    double *scores;  // of the successful rollouts below it, in their order
    int score_count, failures;
    double sum;  // of the first `summed` scores, normalised with the range of number `range`
    int summed, range;
    struct KvRows *rows;  // keys and values of its own tokens: the caller's
} SearchNode;

typedef struct {
    SearchNode *leaf;
    int number;
    SearchProgram *program;
    SearchNode *deepest;  // after search_apply: the node from which the value went up
    double value;         // after search_apply
    bool fresh;           // the program had not been judged before
    int generated;        // tokens that the model wrote for it
    int first_state;      // the first of the program's states that are not the leaf's
    LineCount lines;
} SearchRollout;

typedef struct {
    double exploration;  // c of the upper confidence bound; 0.6 in DeTikZify
    bool strict;         // a program with errors is a failure, even if it is drawn
    bool distinct;       // not of the published rules: rollouts are to find programs that are new (see below)
    bool compiler_only;  // the reward is the compiler's verdict: 1 clean, 0 with errors, -1 not drawn
    uint64_t seed;       // of ties
    int max_length;      // tokens of a program, the root's included
} SearchRules;

typedef struct {
    SearchRules rules;
    const TokenLines *tokens;  // of the vocabulary
    Random random;
    SearchNode *root;
    SearchProgram **programs;  // in the order of their first rollouts
    int program_count, program_capacity;
    TokenMap known, failed;  // program -> SearchProgram; state -> the program in which it failed, number of the state
    int begun;               // rollouts
    double lowest, highest;  // of all scores of drawn programs
    int scores, range;       // how many there were; how often lowest or highest have changed
} SearchTree;

/* ---- nodes ---- */

static inline SearchNode *search_node_new(SearchNode *parent, bool widen) {
    SearchNode *n = (SearchNode *)xcalloc(1, sizeof *n);
    n->parent = parent;
    n->widen = widen;
    n->range = -1;
    if (!parent) return n;
    n->length = parent->length;
    n->lines = parent->lines;
    parent->children =
        (SearchNode **)xrealloc(parent->children, (size_t)(parent->child_count + 1) * sizeof(SearchNode *));
    parent->children[parent->child_count++] = n;
    if (!widen) parent->expanded = true;
    return n;
}

static inline int *search_copy_ids(const int *ids, int count) {
    int *copy = (int *)xmalloc((size_t)count * sizeof(int));
    for (int i = 0; i < count; i++) copy[i] = ids[i];  // ids may be NULL where there are none
    return copy;
}

/* Adds a node for a state of a program, ids, and its widen child. parent: NULL for the root. */
static inline SearchNode *search_node_add(SearchNode *parent, const int *ids, const SearchState *s) {
    SearchNode *n = search_node_new(parent, false);
    const int before = parent ? parent->length : 0;
    n->own = s->length - before;
    n->ids = search_copy_ids(ids + before, n->own);
    n->length = s->length;
    n->lines = s->lines;
    search_node_new(n, true);
    return n;
}

/* Children first, without recursion: a chain may be as deep as a program has lines. */
static inline void search_node_free(SearchNode *root) {
    for (SearchNode *n = root; n;) {
        if (n->child_count > 0) {
            n = n->children[--n->child_count];
            continue;
        }
        SearchNode *parent = n == root ? NULL : n->parent;
        free(n->children);
        free(n->ids);
        free(n->scores);
        free(n);
        n = parent;
    }
}

/* Copies the tokens of a node's state to ids [node->length]. */
static inline void search_node_ids(const SearchNode *n, int *ids) {
    for (; n; n = n->parent)
        if (!n->widen) memcpy(ids + n->length - n->own, n->ids, (size_t)n->own * sizeof(int));
}

/* ---- opening ---- */

/* `tokens` describes the vocabulary and must stay. root [count]: the tokens that all programs begin with. */
static inline void search_tree_open(SearchTree *t, const SearchRules *rules, const TokenLines *tokens,
                                    const int *root, int count) {
    LineCount lines = {0, 0};
    *t = (SearchTree){.rules = *rules, .tokens = tokens};
    for (int i = 0; i < count; i++) line_count_add(&lines, &tokens[root[i]]);
    const SearchState s = {count, line_count_lines(&lines), line_count_at_end(&lines)};
    t->root = search_node_add(NULL, root, &s);
    random_seed(&t->random, rules->seed);
}

static inline void search_program_free(SearchProgram *p) {
    free(p->ids);
    free(p->states);
    free(p);
}

static inline void search_tree_close(SearchTree *t) {
    search_node_free(t->root);
    for (int i = 0; i < t->program_count; i++) search_program_free(t->programs[i]);
    free(t->programs);
    token_map_free(&t->known);
    token_map_free(&t->failed);
    *t = (SearchTree){0};
}

/* ---- selecting ---- */

/* The sum of a node's values: each success counts (s - lowest) / (highest - lowest), each failure -1. */
static inline double search_node_value(const SearchTree *t, SearchNode *n) {
    const double width = t->highest - t->lowest;
    if (n->range != t->range) n->sum = 0, n->summed = 0, n->range = t->range;
    for (; n->summed < n->score_count; n->summed++)
        n->sum += width > 0 ? (n->scores[n->summed] - t->lowest) / width : 0;
    return n->sum - n->failures;
}

/* UCT (Kocsis and Szepesvari 2006): W / n + c sqrt(ln n_parent / n). A widen node has visits but never a value. volatile: the
 * compiler must not contract the product with the sum, so that ties are ties on every machine. */
static inline double search_bound(const SearchTree *t, SearchNode *n) {
    const int above = n->parent->visits + n->parent->pending, visits = n->visits + n->pending;
    const double count = visits > 1 ? visits : 1, mean = search_node_value(t, n) / count;
    const volatile double explore = t->rules.exploration * sqrt(log(above > 1 ? above : 1) / count);
    return mean + explore;
}

/* Whether tokens [count] can have no more: the program has ended, or is as long as it may be. */
static inline bool search_ids_complete(const SearchTree *t, const int *ids, int count) {
    return count >= t->rules.max_length || (count > t->root->length && t->tokens[ids[count - 1]].ends);
}

/* Whether a child may be selected. */
static inline bool search_open_child(const SearchTree *t, const SearchNode *n) {
    return n->widen || !t->rules.distinct || !n->whole;
}

/* The child with the highest bound, one of them at random where several have it: one random_below of their number, in
 * the order of the children. */
static inline SearchNode *search_best_child(SearchTree *t, const SearchNode *n) {
    double best = -INFINITY, bound;
    int ties = 0, taken;
    for (int i = 0; i < n->child_count; i++) {
        if (!search_open_child(t, n->children[i])) continue;
        bound = search_bound(t, n->children[i]);
        if (bound > best) best = bound, ties = 0;
        ties += bound == best;
    }
    taken = ties > 1 ? (int)random_below(&t->random, (uint64_t)ties) : 0;
    for (int i = 0;; i++) {
        if (!search_open_child(t, n->children[i])) continue;
        if (search_bound(t, n->children[i]) == best && taken-- == 0) return n->children[i];
    }
}

static inline SearchNode *search_select(SearchTree *t) {
    SearchNode *n = t->root;
    while (n->expanded) n = search_best_child(t, n);
    return n;
}

static inline void search_count_pending(SearchNode *leaf, int change) {
    for (SearchNode *n = leaf; n; n = n->parent) n->pending += change;
}

/* ---- rollouts ---- */

static inline void search_program_state(SearchProgram *p, const LineCount *lines) {
    if ((p->state_count & (p->state_count + 1)) == 0)
        p->states = (SearchState *)xrealloc(p->states, (size_t)(2 * p->state_count + 1) * sizeof(SearchState));
    p->states[p->state_count++] = (SearchState){p->count, line_count_lines(lines), line_count_at_end(lines)};
}

/* Selects a leaf. r->program then holds the leaf's tokens, which the rollout continues with search_token unless
 * search_complete says that they are complete. */
static inline void search_begin(SearchTree *t, SearchRollout *r) {
    SearchNode *leaf = search_select(t);
    SearchProgram *p = (SearchProgram *)xcalloc(1, sizeof *p);
    *r = (SearchRollout){.leaf = leaf, .number = t->begun++, .program = p};
    p->rollout = r->number;
    p->ids = (int *)xmalloc((size_t)(t->rules.max_length > leaf->length ? t->rules.max_length : leaf->length) *
                            sizeof(int));
    search_node_ids(leaf, p->ids);
    for (; p->count < leaf->length;) {
        const TokenLines *token = &t->tokens[p->ids[p->count++]];
        line_count_add(&r->lines, token);
        if (p->count > t->root->length && (token->line_end || p->count == leaf->length))
            search_program_state(p, &r->lines);
    }
    r->first_state = p->state_count;
    search_count_pending(leaf, 1);
}

/* Whether a rollout can have no more tokens: it has ended, or is as long as it may be. */
static inline bool search_complete(const SearchTree *t, const SearchRollout *r) {
    return search_ids_complete(t, r->program->ids, r->program->count);
}

/* If the rollout has reached a state that is known to fail, takes over the rest of the program in which it failed. */
static inline bool search_preempt(SearchTree *t, SearchRollout *r) {
    SearchProgram *p = r->program;
    const TokenEntry *e = token_map_find(&t->failed, p->ids, p->count);
    if (!e) return false;
    const SearchProgram *f = (const SearchProgram *)e->value;
    memcpy(p->ids, f->ids, (size_t)f->count * sizeof(int));
    p->states = (SearchState *)xrealloc(p->states, (size_t)f->state_count * sizeof(SearchState));
    memcpy(p->states, f->states, (size_t)f->state_count * sizeof(SearchState));
    p->count = f->count;
    p->state_count = f->state_count;
    return true;
}

/* Appends a token. Returns whether the rollout goes on. */
static inline bool search_token(SearchTree *t, SearchRollout *r, int id) {
    SearchProgram *p = r->program;
    p->ids[p->count++] = id;
    r->generated++;
    line_count_add(&r->lines, &t->tokens[id]);
    if (t->tokens[id].line_end) {
        search_program_state(p, &r->lines);
        if (search_preempt(t, r)) return false;
    }
    return !search_complete(t, r);
}

/* Ends a rollout: r->program becomes the known program with these tokens, if there is one. r->fresh: it is new. */
static inline void search_end(SearchTree *t, SearchRollout *r) {
    SearchProgram *p = r->program;
    const int last = p->state_count ? p->states[p->state_count - 1].length : t->root->length;
    if (p->count > last) {
        search_program_state(p, &r->lines);
        search_preempt(t, r);
    }
    const TokenEntry *e = token_map_find(&t->known, p->ids, p->count);
    r->fresh = !e;
    if (e) {
        search_program_free(p);
        r->program = (SearchProgram *)e->value;
        return;
    }
    if (t->program_count == t->program_capacity) {
        t->program_capacity = t->program_capacity ? 2 * t->program_capacity : 64;
        t->programs = (SearchProgram **)xrealloc(t->programs, (size_t)t->program_capacity * sizeof(SearchProgram *));
    }
    t->programs[t->program_count++] = p;
    token_map_set(&t->known, p->ids, p->count, p, 0);
}

/* Forgets a rollout that was begun, and ended only if `ended`. */
static inline void search_abandon(SearchRollout *r, bool ended) {
    search_count_pending(r->leaf, -1);
    if (!ended) search_program_free(r->program);
    r->program = NULL;
}

/* ---- applying a verdict ---- */

static inline bool search_scorable(const SearchTree *t, const SearchVerdict *v) {
    return v->drawn && (v->clean || !t->rules.strict);
}

/* The child of a node that stands for this state of the program, or NULL. */
static inline SearchNode *search_find_child(const SearchNode *n, const SearchProgram *p, const SearchState *s) {
    for (int i = 0; i < n->child_count; i++) {
        SearchNode *c = n->children[i];
        if (!c->widen && c->length == s->length && !memcmp(c->ids, p->ids + n->length, (size_t)c->own * sizeof(int)))
            return c;
    }
    return NULL;
}

/* Adds the first round(sqrt(new states)) states of a program below a node. Of a program that failed, those before the
 * line of the error; the first state that contains this line is noted as failed. Returns the deepest node. */
static inline SearchNode *search_grow(SearchTree *t, SearchNode *n, SearchProgram *p, int first, bool scorable) {
    const int count = p->state_count - first, k = (int)lround(sqrt(count)), e = p->verdict.error_line;
    for (int i = 0; i < count && (scorable || e > 0); i++) {
        const SearchState *s = &p->states[first + i];
        if (i < k && (scorable || s->lines < e)) {
            n = search_node_add(n, p->ids, s);
            n->whole = search_ids_complete(t, p->ids, s->length);
        } else if (scorable) {
            break;
        } else if (s->lines > e || (s->lines == e && s->line_end)) {
            token_map_set(&t->failed, p->ids, s->length, p, first + i);
            break;
        }
    }
    return n;
}

static inline void search_node_score(SearchNode *n, double score) {
    if ((n->score_count & (n->score_count + 1)) == 0)
        n->scores = (double *)xrealloc(n->scores, (size_t)(2 * n->score_count + 1) * sizeof(double));
    n->scores[n->score_count++] = score;
}

static inline void search_back_propagate(SearchTree *t, SearchNode *from, double value, bool scorable) {
    if (scorable && (t->scores == 0 || value < t->lowest || value > t->highest)) {
        if (t->scores == 0 || value < t->lowest) t->lowest = value;
        if (t->scores == 0 || value > t->highest) t->highest = value;
        t->range++;
    }
    t->scores += scorable;
    for (SearchNode *n = from; n; n = n->parent) {
        n->visits++;
        if (scorable)
            search_node_score(n, value);
        else
            n->failures++;
    }
}

/* Takes the verdict on an ended rollout's program. Rollouts are applied in the order in which they were begun. */
static inline void search_apply(SearchTree *t, SearchRollout *r, const SearchVerdict *v) {
    SearchProgram *p = r->program;
    SearchNode *n = r->leaf, *next;
    int first = r->first_state;
    p->verdict = *v;
    const bool scorable = search_scorable(t, v);
    p->value = !scorable ? -1 : t->rules.compiler_only ? (v->clean ? 1 : 0) : v->similarity;
    p->judged = true;
    search_count_pending(r->leaf, -1);
    n->expanded = !n->widen;
    if (n->widen) {
        n->visits++;
        n = n->parent;
    }
    n->repeats += !r->fresh;
    for (; first < p->state_count && (next = search_find_child(n, p, &p->states[first])); first++) n = next;
    r->deepest = search_grow(t, n, p, first, scorable);
    r->value = p->value;
    if (r->fresh || !t->rules.distinct)
        search_back_propagate(t, r->deepest, p->value, scorable);
    else
        for (n = r->deepest; n; n = n->parent) n->visits++;
}

#endif
