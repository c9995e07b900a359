/* infer --candidates and --search: writes several programs for an image, and keeps the best one. Better is a program whose
 * drawing is more like the image, then one without errors; one that draws nothing is the last choice. */
#ifndef GENERATE_BEST_H
#define GENERATE_BEST_H

#include "../lib/bpe.h"
#include "../search.h"
#include "replicate.h"

enum {
    BEST_IN_FLIGHT = 3
};  // rollouts of a search; a constant, so that a seed gives the same programs on all machines

typedef struct {
    int candidates;  // programs that are sampled; 0: tree search
    double seconds;  // limits of the search, as in SearchOptions
    int rollouts;
    double exploration;
    bool strict, unsafe, quiet;
    bool compiler_only;     // a program is as good as it compiles
    RenderTask task;        // what the programs are
    Similarity similarity;  // else as its drawing is like the image
    uint64_t seed;
    int max_new_tokens;
} BestOptions;

/* The program that was chosen for an image. */
typedef struct {
    int *ids, count;    // its tokens, with the prefix, and with the end token if it has ended; NULL: there is none
    double similarity;  // NAN: not compared
    bool not_finite;    // there is none because the model's numbers are not finite (model_not_finite)
} BestProgram;

typedef struct {
    BestOptions o;
    Generator *g;
    Judge judge;
    const int *prefix;
    int prefix_count;
} Best;

/* Reads a reward: "compiler", or the name of a similarity. -1: there is none of this name. */
static inline int best_reward(BestOptions *o, const char *name) {
    o->compiler_only = !strcmp(name, "compiler");
    for (int i = 0; i < SIMILARITIES && !o->compiler_only; i++)
        if (!strcmp(name, similarity_names[i])) {
            o->similarity = (Similarity)i;
            return 0;
        }
    return o->compiler_only ? 0 : -1;
}

/* Reads a search's budget: seconds ("10s", "2.5s") or a number of programs ("200"). */
static inline int best_budget(BestOptions *o, const char *text, Error *err) {
    char *end;
    const double number = strtod(text, &end);
    const bool seconds = end != text && !strcmp(end, "s");
    if (end == text || (*end && !seconds) || !(number > 0) || number > 1e9 || (!seconds && number != floor(number)))
        return error_set(
            err, "--search must be seconds, such as 10s, or a number of programs, such as 200, not '%.40s'", text);
    if (seconds)
        o->seconds = number;
    else
        o->rollouts = (int)number;
    return 0;
}

/* Finds TeX and starts the threads that run it. From now on Ctrl-C ends a search, and what it has found is kept; this needs
 * interrupts_take at the program's begin. */
static inline int best_open(Best *b, BestOptions o, Generator *g, const int *prefix, int prefix_count, Error *err) {
    *b = (Best){.o = o, .g = g, .prefix = prefix, .prefix_count = prefix_count};
    if (judge_open(
            &b->judge,
            &(JudgeOptions){
                .task = o.task,
                .model = g->m,
                .unsafe = o.unsafe,
                .similarity = o.similarity,
                .compile_only = o.compiler_only},
            err))
        return -1;
    interrupts_keep();
    return 0;
}

static inline void best_close(Best *b) { judge_close(&b->judge); }

/* ---- candidates ---- */

/* The programs that are being sampled. */
typedef struct {
    Best *best;
    int first;        // candidate in sequence 0
    TokenIds *texts;  // [candidates] with the end token
    Judged **judged;  // [candidates]; NULL: not written
    double *log_probabilities;  // [candidates], of which the generator is `scored`; NULL: not wanted
    bool not_finite;
} Candidates;

/* A candidate has ended, or was cut: it is compiled while the others are written. */
static inline void candidates_submit(Candidates *c, int candidate) {
    char *text;
    size_t n;
    const TokenIds *ids = &c->texts[candidate];
    tokenizer_decode(&c->best->g->m->tokenizer, ids->ids, ids->count, &text, &n);
    c->judged[candidate] = judge_submit(&c->best->judge, text, n);
    free(text);
}

static inline bool candidates_read(void *context, int sequence, int id) {
    Candidates *c = (Candidates *)context;
    TokenIds *ids = &c->texts[c->first + sequence];
    c->not_finite |= id < 0;
    if (id < 0) return false;
    token_ids_add(ids, id);
    if (c->log_probabilities) c->log_probabilities[c->first + sequence] += c->best->g->log_probability;
    const bool more = !tokenizer_ends(&c->best->g->m->tokenizer, id) && !interrupted() &&
                      ids->count < c->best->prefix_count + c->best->o.max_new_tokens;
    if (!more) candidates_submit(c, c->first + sequence);
    return more;
}

/* Samples all programs of one image, as many at a time as the generator has sequences. */
static inline void candidates_sample(Candidates *c, int number, const uint8_t *pixels) {
    Best *b = c->best;
    int *streams = (int *)xcalloc(b->g->max_B, sizeof(int));
    for (; c->first < b->o.candidates && !interrupted(); c->first += b->g->max_B) {
        const int left = b->o.candidates - c->first, B = left < b->g->max_B ? left : b->g->max_B;
        for (int i = 0; i < B; i++) {
            streams[i] = (int)(((int64_t)number * b->o.candidates + c->first + i) & INT_MAX);
            for (int k = 0; k < b->prefix_count; k++) token_ids_add(&c->texts[c->first + i], b->prefix[k]);
        }
        generator_prefill(b->g, pixels, 1, b->prefix, b->prefix_count);
        generator_replicate(b->g, B);
        generator_run(b->g, streams, b->o.max_new_tokens, candidates_read, c);
    }
    free(streams);
}

/* Whether a judged program is better than another, which may be NULL. */
static inline bool candidate_is_better(const Judged *p, const Judged *q, bool strict) {
    if (!q) return true;
    const bool usable = p->drawn && (p->clean || !strict), other = q->drawn && (q->clean || !strict);
    if (usable != other) return usable;
    if (p->same != q->same) return p->same;
    return p->similarity != q->similarity ? p->similarity > q->similarity : p->clean && !q->clean;
}

/* Waits for the verdicts. Returns the best candidate, -1: there is none, -2 with *err filled: TeX failed. */
static inline int candidates_choose(Candidates *c, Error *err) {
    int best = -1;
    for (int i = 0; i < c->best->o.candidates; i++) {
        if (!c->judged[i]) continue;
        const bool failed = judge_wait(&c->best->judge, c->judged[i], 0, err) < 0;
        if (failed && !interrupted()) return -2;
        if (failed) continue;
        judge_score(&c->best->judge, c->judged[i]);
        if (candidate_is_better(c->judged[i], best < 0 ? NULL : c->judged[best], c->best->o.strict)) best = i;
    }
    return best;
}

static inline int best_of_candidates(Best *b, int number, const uint8_t *pixels, ImageExtent extent, BestProgram *found,
                                     Error *err) {
    const size_t n = (size_t)b->o.candidates;
    Candidates c = {.best = b};
    c.texts = (TokenIds *)xcalloc(n, sizeof(TokenIds));
    c.judged = (Judged **)xcalloc(n, sizeof(Judged *));
    judge_begin(&b->judge, pixels, extent);
    candidates_sample(&c, number, pixels);
    const int best = candidates_choose(&c, err);
    found->not_finite = c.not_finite && best < 0;
    if (best >= 0) {
        found->ids = c.texts[best].ids;
        found->count = c.texts[best].count;
        found->similarity = judged_similarity(c.judged[best]);
        c.texts[best].ids = NULL;  // the caller's now
    }
    for (size_t i = 0; i < n; i++) free(c.texts[i].ids);
    free(c.texts);
    free(c.judged);
    return best == -2 ? -1 : 0;
}

/* ---- search ---- */

static inline void best_report(void *context, const SearchFound *best, int rollouts, double seconds) {
    if (!((Best *)context)->o.quiet)
        fprintf(stderr, "%.1f s, program %d: score %.4f%s\n", seconds, rollouts, best->score,
                best->clean ? "" : ", with errors");
}

/* The best programs of a search, one a line. */
static inline void best_print_ranks(const char *name, const SearchResult *r) {
    fprintf(stderr, "%s: %d different programs of %d in %.1f s\n", name, r->count, r->rollouts, r->seconds);
    for (int i = 0; i < r->count && i < 5; i++)
        fprintf(stderr, "  %d. score %.4f, %s\n", i + 1, r->found[i].score,
                r->found[i].clean   ? "compiles"
                : r->found[i].drawn ? "drawn in spite of errors"
                                    : "draws nothing");
}

static inline int best_of_search(Best *b, int number, const char *name, const uint8_t *pixels, ImageExtent extent,
                                 BestProgram *found, Error *err) {
    SearchResult r;
    const SearchOptions o = {.seconds = b->o.seconds,
                             .rollouts = b->o.rollouts,
                             .exploration = b->o.exploration,
                             .strict = b->o.strict,
                             .compiler_only = b->o.compiler_only,
                             .in_flight = BEST_IN_FLIGHT,
                             .seed = b->o.seed + (uint64_t)number};
    const uint64_t seed = b->g->sampling.seed;
    b->g->sampling.seed += (uint64_t)number * 0x9e3779b97f4a7c15;  // random streams of its own for each image
    const int failed =
        search_run(&o, b->g, &b->judge, pixels, extent, b->prefix, b->prefix_count, best_report, b, &r, err);
    b->g->sampling.seed = seed;
    found->not_finite = r.not_finite;
    if (failed) return r.not_finite ? 0 : -1;
    if (r.count) {
        found->ids = search_copy_ids(r.found[0].ids, r.found[0].count);
        found->count = r.found[0].count;
        found->similarity = r.found[0].similarity;
    }
    if (r.count && !b->o.quiet) best_print_ranks(name, &r);
    search_result_free(&r);
    return 0;
}

/* Finds the best program for an image: its number, for its random stream, and its name, for messages; pixels u8 [height,
 * width, 3]; extent: as for judge_begin. The caller frees found->ids. -1 with *err filled: TeX or the model failed. */
static inline int best_find(Best *b, int number, const char *name, const uint8_t *pixels, ImageExtent extent,
                            BestProgram *found, Error *err) {
    *found = (BestProgram){.similarity = NAN};
    return b->o.candidates ? best_of_candidates(b, number, pixels, extent, found, err)
                           : best_of_search(b, number, name, pixels, extent, found, err);
}

#endif
