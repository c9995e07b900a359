/* Tree search with the compiler in the loop: writes many programs for one image, compiles and draws each, and returns them
 * with the drawings most like the image first.
 *
 *   generator_set_sampling(&g, 0.8, 0.95, 0, seed, ...);      // rollouts are sampled
 *   search_run(&(SearchOptions){.seconds = 10, .exploration = 0.6}, &g, &judge, pixels, extent, prefix, prefix_count,
 *              report, context, &result, &err);
 *
 *   generate/search_tree.h     the rules (Monte Carlo tree search of DeTikZify)
 *   generate/search_loop.h     several rollouts in flight
 *   generate/search_rollout.h  rollouts of the model, with keys and values of nodes kept
 *   generate/judge.h           threads that compile and draw, and rewards
 *
 * The same seed gives the same programs in the same order, whatever the threads do; only where a limit of time ends the search
 * depends on the machine. */
#ifndef SEARCH_H
#define SEARCH_H

#include "generate/judge.h"
#include "generate/search_rollout.h"
#include "lib/memory.h"

typedef struct {
    double seconds;      // the search ends after the result that comes after this time; 0: no limit
    int rollouts;        // it ends after so many; 0: no limit
    double exploration;  // 0.6 in DeTikZify
    bool strict;         // a program with errors is a failure even if it is drawn
    bool compiler_only;  // the reward is the compiler's: 1 clean, 0 with errors, -1 nothing drawn
    bool
        published;  // DeTikZify's search: without SearchRules.distinct, a greedy first rollout and an end at an exact
                    // drawing
    int in_flight;  // rollouts at a time, at most the generator's max_B; 0: the judge's threads + 1
    size_t
        store_bytes;  // for keys and values of nodes; 0: an eighth of the memory, or a quarter of what a GPU has free
    uint64_t seed;    // of ties
    int max_length;   // tokens of a program, with the prefix; 0: as many as the generator's cache holds
    bool feed_again;  // for comparisons: nothing is kept of nodes
} SearchOptions;

/* One program. */
typedef struct {
    char *text;
    size_t bytes;
    int *ids, count;    // its tokens, with the prefix, and with the end token if it has ended
    double score;       // the reward
    double similarity;  // of drawing and input, as judged_similarity
    bool clean, drawn;  // it compiles without errors; there is a drawing
    bool usable;        // it is drawn, and, where that is asked for (SearchOptions.strict), without errors
    bool same;          // the drawing has the input's pixels, as the model sees them
    char *message;      // on the first error; NULL if clean
    int rollout;        // that wrote it first, from 0
} SearchFound;

typedef struct {
    SearchFound *found;  // different programs, the best first
    int count;
    int rollouts;  // that were applied
    bool not_finite;  // the search has failed because the model's numbers are not finite (model_not_finite)
    double seconds;
    int64_t fed, copied;  // tokens of leaves that were computed, rows that were copied
} SearchResult;

/* Called for each program that is better than all before. */
typedef void (*SearchReport)(void *context, const SearchFound *best, int rollouts, double seconds);

typedef struct {
    SearchOptions o;
    Judge *judge;
    const Tokenizer *tokenizer;
    Rollouts rollouts;
    SearchTree tree;
    Judged **judged;  // [capacity], of each program in the order of tree.programs
    int capacity;
    double begin, best;
    SearchReport report;
    void *context;
    bool late;  // the time is over
    int applied;
} Search;

static inline void search_result_free(SearchResult *r) {
    for (int i = 0; i < r->count; i++) {
        free(r->found[i].text);
        free(r->found[i].ids);
        free(r->found[i].message);
    }
    free(r->found);
    *r = (SearchResult){0};
}

/* ---- what the loop calls ---- */

/* Scores that differ by less than this, of drawings by another renderer than the input's, say nothing. */
#define SEARCH_SAME_SCORE 0x1p-11

static inline double search_rounded(double score) { return floor(score / SEARCH_SAME_SCORE + 0.5); }

static inline bool search_is_over(void *context) {
    Search *s = (Search *)context;
    if (s->o.seconds > 0 && seconds_now() - s->begin >= s->o.seconds) s->late = true;
    return s->late || interrupted();
}

static inline int search_on_rollout(void *context, SearchTree *t, SearchRollout *r, int slot, Error *err) {
    return rollout_run(&((Search *)context)->rollouts, t, r, slot, err);
}

static inline int search_on_submit(void *context, const SearchRollout *r, int slot, Error *err) {
    Search *s = (Search *)context;
    const int index = s->tree.program_count - 1;
    char *text;
    size_t n;
    (void)slot, (void)err;
    if (index >= s->capacity) {
        s->capacity = 2 * index + 64;
        s->judged = (Judged **)xrealloc(s->judged, (size_t)s->capacity * sizeof(Judged *));
    }
    tokenizer_decode(s->tokenizer, r->program->ids, r->program->count, &text, &n);
    r->program->user = judge_submit(s->judge, text, n);
    s->judged[index] = (Judged *)r->program->user;
    free(text);
    return 0;
}

static inline int search_on_verdict(void *context, const SearchRollout *r, SearchVerdict *v, Error *err) {
    Search *s = (Search *)context;
    Judged *p = (Judged *)r->program->user;
    int status = 1;
    while (status == 1 && !search_is_over(s)) status = judge_wait(s->judge, p, seconds_now() + 0.1, err);
    if (status == 1) return error_set(err, "the search was stopped");
    if (status != 0) return -1;
    if (!s->o.compiler_only) judge_score(s->judge, p);
    *v = (SearchVerdict){p->drawn, p->clean, p->error_line, p->similarity};
    return 0;
}

static inline SearchFound search_found(const Search *s, const SearchProgram *program, const Judged *p) {
    SearchFound f = {.bytes = p->bytes, .score = program->value, .clean = p->clean, .drawn = p->drawn};
    f.similarity = judged_similarity(p);
    f.usable = p->drawn && (p->clean || !s->o.strict);
    f.same = p->same;
    f.rollout = program->rollout;
    f.ids = program->ids;
    f.count = program->count;
    f.text = p->text;
    f.message = p->message;
    return f;
}

static inline bool search_on_applied(void *context, SearchTree *t, const SearchRollout *r, int slot) {
    Search *s = (Search *)context;
    const Judged *p = (const Judged *)r->program->user;
    (void)t;
    rollout_keep(&s->rollouts, r, slot);
    s->applied++;
    if (p->drawn && search_rounded(r->value) > search_rounded(s->best)) {
        const SearchFound best = search_found(s, r->program, p);
        s->best = r->value;
        if (s->report) s->report(s->context, &best, s->applied, seconds_now() - s->begin);
    }
    return !search_is_over(s) && (s->o.published || s->o.compiler_only || !(p->same && p->clean));
}

/* ---- results ---- */

/* Better first: usable, the same pixels, a higher score, no errors, found earlier. */
static inline int search_compare(const void *a, const void *b) {
    const SearchFound *x = (const SearchFound *)a, *y = (const SearchFound *)b;
    const double score = search_rounded(x->score) - search_rounded(y->score);
    if (x->usable != y->usable) return x->usable ? -1 : 1;
    if (x->same != y->same) return x->same ? -1 : 1;
    if (score != 0) return score > 0 ? -1 : 1;
    if (x->clean != y->clean) return x->clean ? -1 : 1;
    return x->rollout < y->rollout ? -1 : x->rollout > y->rollout;
}

/* Takes over the judged programs; of those with the same text the first. */
static inline void search_take_results(const Search *s, SearchResult *result) {
    const SearchTree *t = &s->tree;
    *result = (SearchResult){.rollouts = s->applied, .seconds = seconds_now() - s->begin};
    result->fed = s->rollouts.fed;
    result->copied = s->rollouts.copied;
    result->found = (SearchFound *)xcalloc((size_t)t->program_count, sizeof(SearchFound));
    for (int i = 0; i < t->program_count; i++) {
        const SearchProgram *program = t->programs[i];
        bool again = !program->judged;
        for (int k = 0; k < i && !again; k++) again = t->programs[k]->judged && s->judged[k] == s->judged[i];
        if (again) continue;
        SearchFound f = search_found(s, program, s->judged[i]);
        f.text = (char *)memcpy(xmalloc(f.bytes + 1), f.text, f.bytes + 1);
        f.ids = search_copy_ids(f.ids, f.count);
        f.message = f.message ? xstrdup(f.message) : NULL;
        result->found[result->count++] = f;
    }
    qsort(result->found, (size_t)result->count, sizeof(SearchFound), search_compare);
}

/* ---- the search ---- */

static inline size_t search_store_bytes(const SearchOptions *o, const Ops *op) {
    return o->store_bytes ? o->store_bytes : op->host_memory ? memory_available() / 8 : op->memory_free() / 4;
}

static inline void search_prepare(Search *s, Generator *g, const TokenLines *lines, const int *prefix,
                                  int prefix_count) {
    const SearchRules rules = {.exploration = s->o.exploration,
                               .strict = s->o.strict,
                               .distinct = !s->o.published,
                               .compiler_only = s->o.compiler_only,
                               .seed = s->o.seed,
                               .max_length =
                                   s->o.max_length ? s->o.max_length : g->cache.capacity - model_prompt(g->m)};
    search_tree_open(&s->tree, &rules, lines, prefix, prefix_count);
    s->rollouts.greedy_first = !s->o.published;
    s->rollouts.feed_again = s->o.feed_again;
    s->rollouts.stopped = search_is_over;
    s->rollouts.context = s;
}

/* Searches programs for one image: pixels u8 [height, width, 3] as infer prepares them; extent as for judge_begin; prefix
 * [prefix_count]: the tokens that all programs begin with. g is open, with sequences for all rollouts in flight, and its
 * sampling is set; its image and prefix are read here. Stops early when the user interrupts, and at an exact drawing. Returns
 * 0 with a result (free it with search_result_free), which may have no programs if there was no time; or -1 with *err
 * filled: the model's numbers are not finite, or TeX cannot be run. */
static inline int search_run(const SearchOptions *o, Generator *g, Judge *judge, const uint8_t *pixels, ImageExtent extent,
                             const int *prefix, int prefix_count, SearchReport report, void *context,
                             SearchResult *result, Error *err) {
    Search s = {.o = *o, .judge = judge, .tokenizer = &g->m->tokenizer, .report = report, .context = context};
    const SearchCalls calls = {
        &s, search_on_rollout, search_on_submit, search_on_verdict, search_on_applied, search_is_over};
    s.o.compiler_only |= judge->o.compile_only;
    int in_flight = o->in_flight ? o->in_flight : judge->o.threads + 1;
    if (in_flight > g->max_B) in_flight = g->max_B;
    if (in_flight > SEARCH_IN_FLIGHT) in_flight = SEARCH_IN_FLIGHT;
    s.begin = seconds_now();
    s.best = -2;  // below all scores
    *result = (SearchResult){0};
    judge_begin(judge, pixels, extent);
    if (rollouts_open(&s.rollouts, g, in_flight, pixels, prefix, prefix_count, search_store_bytes(o, g->m->op), err))
        return -1;
    TokenLines *lines = token_lines_of(&g->m->tokenizer, g->m->c.lm.vocab);
    search_prepare(&s, g, lines, prefix, prefix_count);
    /* The model leaves the judge's processors to TeX: threads that wait for each other in every matmul become many times
     * slower where another program takes one of their processors. Results do not depend on their number. */
    const int threads = omp_get_max_threads(), spare = omp_get_num_procs() - judge->o.threads;
    omp_set_num_threads(spare < 1 ? 1 : spare < threads ? spare : threads);
    int status = search_loop(&s.tree, &calls, o->rollouts, in_flight, err);
    omp_set_num_threads(threads);
    if (search_is_over(&s)) status = 0;  // the loop's failure is only that it was stopped
    if (status == 0) search_take_results(&s, result);
    result->not_finite = status != 0 && s.rollouts.not_finite;
    rollouts_close(&s.rollouts);
    search_tree_close(&s.tree);
    free(s.judged);
    free(lines);
    return status;
}

#endif
