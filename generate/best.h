/* infer --candidates and --search: writes several programs for an image, and keeps the best one. Better is a program whose
 * drawing is more like the image, then one without errors; one that draws nothing is the last choice. */
#ifndef GENERATE_BEST_H
#define GENERATE_BEST_H

#include "../lib/bpe.h"
#include "../search.h"
#include "writer.h"

enum { BEST_IN_FLIGHT = 3 };  // rollouts of a search; a constant, so that a seed gives the same programs on all machines

typedef struct {
    int candidates;      // programs that are sampled; 0: tree search
    double seconds;      // limits of the search, as in SearchOptions
    int rollouts;
    double exploration;
    bool strict, unsafe, quiet;
    uint64_t seed;
    int max_new_tokens;
} BestOptions;

typedef struct {
    BestOptions o;
    Generator *g;
    Judge judge;
    const int *prefix;
    int prefix_count;
    bool interrupted;  // the user asked to stop: what was found is kept
} Best;

/* Reads a search's budget: seconds ("10s", "2.5s") or a number of programs ("200"). */
static inline int best_budget(BestOptions *o, const char *text, Error *err) {
    char *end;
    const double number = strtod(text, &end);
    const bool seconds = end != text && !strcmp(end, "s");
    if (end == text || (*end && !seconds) || !(number > 0) || number > 1e9 ||
        (!seconds && number != floor(number)))
        return error_set(err, "--search must be seconds, such as 10s, or a number of programs, such as 200, not '%.40s'",
                         text);
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
    if (judge_open(&b->judge, &(JudgeOptions){.model = g->m, .unsafe = o.unsafe}, err)) return -1;
    interrupts_keep();
    return 0;
}

static inline void best_close(Best *b) { judge_close(&b->judge); }

/* ---- candidates ---- */

/* The programs that are being sampled. */
typedef struct {
    Best *best;
    TokenIds *texts;   // [B] by sequence
    Judged **judged;   // [candidates] in the order in which they were completed
    bool *ended;       // [candidates]
    int *tokens;       // [candidates]
    int count, B, failed;
} Candidates;

/* A sequence has ended, or was cut: its program is compiled while the others are written. */
static inline void candidates_submit(Candidates *c, int sequence, bool ended) {
    char *text;
    size_t n;
    const TokenIds *ids = &c->texts[sequence];
    tokenizer_decode(&c->best->g->m->tokenizer, ids->ids, ids->count, &text, &n);
    c->ended[c->count] = ended;
    c->tokens[c->count] = ids->count;
    c->judged[c->count++] = judge_submit(&c->best->judge, text, n);
    free(text);
}

static inline bool candidates_read(void *context, int sequence, int id) {
    Candidates *c = (Candidates *)context;
    const bool ends = tokenizer_ends(&c->best->g->m->tokenizer, id);
    if (id < 0) {
        c->failed++;
        return false;
    }
    if (!ends) token_ids_add(&c->texts[sequence], id);
    const bool full = c->texts[sequence].count >= c->best->prefix_count + c->best->o.max_new_tokens;
    if (ends || full || interrupted()) candidates_submit(c, sequence, ends);
    return !ends && !full && !interrupted();
}

/* Samples all programs of one image, as many at a time as the generator has sequences. */
static inline void candidates_sample(Candidates *c, int number, const uint8_t *pixels) {
    Best *b = c->best;
    int *streams = (int *)xcalloc(b->g->max_B, sizeof(int));
    for (int first = 0; first < b->o.candidates && !interrupted(); first += c->B) {
        c->B = b->o.candidates - first < b->g->max_B ? b->o.candidates - first : b->g->max_B;
        for (int i = 0; i < c->B; i++) {
            streams[i] = (int)(((int64_t)number * b->o.candidates + first + i) & INT_MAX);
            c->texts[i].count = 0;
            for (int k = 0; k < b->prefix_count; k++) token_ids_add(&c->texts[i], b->prefix[k]);
        }
        generator_prefill(b->g, pixels, 1, b->prefix, b->prefix_count);
        generator_multiply(b->g, c->B);
        generator_run(b->g, streams, b->o.max_new_tokens, candidates_read, c);
    }
    free(streams);
}

/* Waits for the verdicts. Returns the index of the best program, -1: there is none, -2 with *err filled: TeX failed. */
static inline int candidates_choose(Candidates *c, Error *err) {
    int best = -1;
    for (int i = 0; i < c->count; i++) {
        Judged *p = c->judged[i], *q = best < 0 ? NULL : c->judged[best];
        const int late = judge_wait(&c->best->judge, p, 0, err);
        if (late < 0 && interrupted()) continue;
        if (late < 0) return -2;
        judge_score(&c->best->judge, p);
        const bool usable = p->drawn && (p->clean || !c->best->o.strict);
        const bool better = !q || (p->same && !q->same) || (p->same == q->same && p->similarity > q->similarity) ||
                            (p->same == q->same && p->similarity == q->similarity && p->clean && !q->clean);
        if (!q || (usable && better)) best = i;
    }
    return best;
}

static inline int best_of_candidates(Best *b, Program *p, int number, const uint8_t *pixels, int longest,
                                     Error *err) {
    const size_t n = (size_t)b->o.candidates;
    Candidates c = {.best = b};
    c.texts = (TokenIds *)xcalloc(b->g->max_B, sizeof(TokenIds));
    c.judged = (Judged **)xcalloc(n, sizeof(Judged *));
    c.ended = (bool *)xcalloc(n, sizeof(bool));
    c.tokens = (int *)xcalloc(n, sizeof(int));
    judge_begin(&b->judge, pixels, longest);
    candidates_sample(&c, number, pixels);
    const int best = candidates_choose(&c, err);
    int bad = best == -2;
    if (best >= 0) {
        program_set_text(p, c.judged[best]->text, c.judged[best]->bytes);
        p->ended = c.ended[best];
        p->tokens = c.tokens[best];
        p->similarity = c.judged[best]->similarity;
    } else if (!bad) {
        Error why;
        if (c.failed && model_not_finite(b->g->m, &why)) die("%s", why.text);
        error_set(&why, "no program was written for %s%s", p->input->path,
                  c.failed ? ": the model's numbers are not finite" : " before the interruption");
        program_fail(p, &why);
    }
    for (int i = 0; i < b->g->max_B; i++) free(c.texts[i].ids);
    free(c.texts);
    free(c.judged);
    free(c.ended);
    free(c.tokens);
    return bad ? -1 : 0;
}

/* ---- search ---- */

static inline void best_report(void *context, const SearchFound *best, int rollouts, double seconds) {
    if (!((Best *)context)->o.quiet)
        fprintf(stderr, "%.1f s, program %d: similarity %.4f%s\n", seconds, rollouts, best->score,
                best->clean ? "" : ", with errors");
}

/* The best programs of a search, one a line. */
static inline void best_print_ranks(const Program *p, const SearchResult *r) {
    fprintf(stderr, "%s: %d different programs of %d in %.1f s\n", p->input->path, r->count, r->rollouts, r->seconds);
    for (int i = 0; i < r->count && i < 5; i++)
        fprintf(stderr, "  %d. similarity %.4f, %s\n", i + 1, r->found[i].score,
                r->found[i].clean   ? "compiles"
                : r->found[i].drawn ? "drawn in spite of errors"
                                    : "draws nothing");
}

static inline int best_of_search(Best *b, Program *p, int number, const uint8_t *pixels, int longest, Error *err) {
    SearchResult r;
    Error why;
    const SearchOptions o = {.seconds = b->o.seconds,
                             .rollouts = b->o.rollouts,
                             .exploration = b->o.exploration,
                             .strict = b->o.strict,
                             .in_flight = BEST_IN_FLIGHT,
                             .seed = b->o.seed + (uint64_t)number};
    if (search_run(&o, b->g, &b->judge, pixels, longest, b->prefix, b->prefix_count, best_report, b, &r, err))
        return -1;
    if (r.count) {
        program_set_text(p, r.found[0].text, r.found[0].bytes);
        p->similarity = r.found[0].score;
        p->ended = true;  // a search keeps whole programs and those at the limit alike
        if (!b->o.quiet) best_print_ranks(p, &r);
    } else {
        error_set(&why, "the search found no program for %s in its time", p->input->path);
        program_fail(p, &why);
    }
    search_result_free(&r);
    return 0;
}

/* Writes the best program for an image into p. pixels u8 [S, S, 3]; number: of the image, for its random stream; longest: as
 * for judge_begin. -1 with *err filled: TeX or the model failed; what concerns this image alone fails p. */
static inline int best_find(Best *b, Program *p, int number, const uint8_t *pixels, int longest, Error *err) {
    const int bad = b->o.candidates ? best_of_candidates(b, p, number, pixels, longest, err)
                                    : best_of_search(b, p, number, pixels, longest, err);
    b->interrupted = interrupted();
    return bad;
}

#endif
