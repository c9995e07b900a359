/* Requests for the best of several programs, by beam search, candidates or tree search. Each has all slots of its model to
 * itself, so it waits until the programs before it are written, and those after it wait for it. */
#ifndef SERVER_ALONE_H
#define SERVER_ALONE_H

#include "../generate/beam.h"
#include "../generate/score.h"
#include "decode.h"

enum { ALONE_CANDIDATES = 16 };  // at most so many different programs are answered

static inline int alone_new_tokens(const Instance *i, const Job *j) { return j->max_tokens - i->prefix.count; }

/* ---- results ---- */

static inline void alone_candidate_json(JsonWriter *w, const Candidate *c) {
    json_begin_object(w);
    json_key(w, "program");
    json_string_bytes(w, c->text, c->bytes);
    json_key(w, "log_probability");
    json_number(w, c->log_probability);
    json_key(w, "compiles");
    if (c->compiled)
        json_bool(w, c->clean);
    else
        json_null(w);
    json_key(w, "score");
    json_number(w, c->score);
}

/* Adds a candidate: the text of its tokens, with the prefix, as a program alone would be written. */
static inline Candidate *alone_add(Instance *i, Job *j, const int *ids, int count) {
    const Tokenizer *t = &i->model.tokenizer;
    j->candidates = (Candidate *)xrealloc(j->candidates, (size_t)(j->candidate_count + 1) * sizeof(Candidate));
    Candidate *c = &j->candidates[j->candidate_count++];
    *c = (Candidate){.log_probability = NAN, .score = NAN, .ended = count > 0 && tokenizer_ends(t, ids[count - 1])};
    tokenizer_decode(t, ids, count - c->ended, &c->text, &c->bytes);
    if (i->task == RENDER_FORMULA) {
        char *before = c->text;
        c->text = formula_tidy(before, c->bytes, &c->bytes);
        free(before);
    }
    return c;
}

/* Makes the first candidate's tokens the job's program; ended: by the model. */
static inline void alone_take(Instance *i, Job *j, const int *ids, int count, bool ended) {
    Program *p = &j->program;
    program_add_all(p, &i->writer, ids + i->prefix.count, count - i->prefix.count, ended);
    fflush(p->memory);
}

/* The log-probability of a program that was not sampled one token after another. */
static inline double alone_score(Instance *i, const Job *j, const int *ids, int count) {
    const int prefix = i->prefix.count;
    if (count <= prefix) return NAN;
    return generator_score(&i->generator, j->pixels, i->prefix.ids, prefix, ids + prefix, count - prefix);
}

/* ---- beam search ---- */

/* The finished programs of a search, the best first, become the job's candidates. */
static inline void alone_take_beams(Instance *i, Job *j, const BeamImage *image) {
    TokenIds whole = {0};
    const BeamHypothesis *h = image->hypotheses;
    for (int k = 0; k < image->finished && k < ALONE_CANDIDATES; k++) {
        whole.count = 0;
        for (int n = 0; n < i->prefix.count; n++) token_ids_add(&whole, i->prefix.ids[n]);
        for (int n = 0; n < h[k].count; n++) token_ids_add(&whole, h[k].ids[n]);
        Candidate *c = alone_add(i, j, whole.ids, whole.count);
        c->log_probability = h[k].sum;
        c->ended = h[k].ended;
        c->score = h[k].score;
        if (k > 0) continue;
        alone_take(i, j, whole.ids, whole.count, h[k].ended);
        j->program.log_probability = h[k].sum;
    }
    free(whole.ids);
}

/* beam_search of generate/beam.h, which keeps the best program only, with a look at cancellation between its steps. */
static inline void alone_beam(Instance *i, Job *j) {
    BeamSearch s;
    const BeamOptions o = {(int)j->fields.beam, 1};
    Generator *g = &i->generator;
    beam_open(&s, g, 1, &o, alone_new_tokens(i, j));
    generator_prefill(g, j->pixels, 1, i->prefix.ids, i->prefix.count);
    s.start = g->length;
    s.stopped = interrupted;
    beam_run(&s);
    BeamImage *image = &s.image[0];
    if (job_left(j)) {  // which has failed it
    } else if (image->failed) {
        decode_fail_not_finite(i, j);
    } else {
        beam_rank(&s, image);
        alone_take_beams(i, j, image);
    }
    beam_close(&s);
}

/* ---- candidates ---- */

typedef struct {
    int index;
    const Judged *judged;
} Ranked;

static inline void alone_sort(Ranked *r, int n) {  // insertion keeps the order of equals: the first one sampled wins
    for (int k = 1; k < n; k++) {
        const Ranked x = r[k];
        int at = k;
        for (; at > 0 && candidate_is_better(x.judged, r[at - 1].judged, false); at--) r[at] = r[at - 1];
        r[at] = x;
    }
}

/* Waits for the verdicts on the sampled programs, and ranks those that differ. -1 with *err filled: TeX cannot be run. */
static inline int alone_rank(Instance *i, Candidates *c, Ranked *ranked, int *count, Error *err) {
    *count = 0;
    for (int k = 0; k < i->best.o.candidates; k++) {
        bool again = !c->judged[k];
        for (int q = 0; q < k && !again; q++) again = c->judged[q] == c->judged[k];
        if (again) continue;
        if (judge_wait(&i->best.judge, c->judged[k], 0, err) < 0) return -1;
        judge_score(&i->best.judge, c->judged[k]);
        ranked[(*count)++] = (Ranked){k, c->judged[k]};
    }
    alone_sort(ranked, *count);
    return 0;
}

static inline void alone_candidates(Instance *i, Job *j) {
    Error err;
    Best *b = &i->best;
    const size_t n = (size_t)b->o.candidates;
    Candidates c = {.best = b};
    int count = 0;
    c.texts = (TokenIds *)xcalloc(n, sizeof(TokenIds));
    c.judged = (Judged **)xcalloc(n, sizeof(Judged *));
    c.log_probabilities = (double *)xcalloc(n, sizeof(double));
    Ranked *ranked = (Ranked *)xcalloc(n, sizeof(Ranked));
    judge_begin(&b->judge, j->pixels, j->program.extent);
    candidates_sample(&c, 0, j->pixels);
    if (job_left(j)) {  // which has failed it
    } else if (c.not_finite) {
        decode_fail_not_finite(i, j);
    } else if (alone_rank(i, &c, ranked, &count, &err)) {
        if (!job_left(j)) job_fail(j, 500, "the candidates could not be compared: %s", err.text);
    } else if (!count) {
        job_fail(j, 500, "the candidates could not be compared: there is none");
    }
    for (int k = 0; k < count && k < ALONE_CANDIDATES && !j->done; k++) {
        const TokenIds *ids = &c.texts[ranked[k].index];
        Candidate *candidate = alone_add(i, j, ids->ids, ids->count);
        candidate->log_probability = c.log_probabilities[ranked[k].index];
        candidate->compiled = true;
        candidate->clean = ranked[k].judged->clean;
        candidate->score = ranked[k].judged->similarity;
        if (k > 0) continue;
        alone_take(i, j, ids->ids, ids->count, candidate->ended);
        j->program.log_probability = candidate->log_probability;
        if (!j->program.looped) j->program.similarity = judged_similarity(ranked[k].judged);
    }
    for (size_t k = 0; k < n; k++) free(c.texts[k].ids);
    free(c.texts);
    free(c.judged);
    free(c.log_probabilities);
    free(ranked);
}

/* ---- search ---- */

/* A better program was found: it is sent at once where the request streams. */
static inline void alone_report(void *context, const SearchFound *best, int rollouts, double seconds) {
    Job *j = (Job *)context;
    (void)rollouts, (void)seconds;
    if (!j->fields.stream) return;
    JsonWriter w = {0};
    const Candidate c = {best->text, best->bytes, NAN, best->score, true, best->clean, true};
    alone_candidate_json(&w, &c);
    json_end_object(&w);
    job_event(j, "candidate", w.text);
    json_writer_free(&w);
}

static inline void alone_search(Instance *i, Job *j) {
    Error err;
    SearchResult r;
    const Best *b = &i->best;
    const SearchOptions o = {.seconds = b->o.seconds,
                             .rollouts = b->o.rollouts,
                             .exploration = b->o.exploration,
                             .in_flight = BEST_IN_FLIGHT,
                             .seed = b->o.seed,
                             .max_length = j->max_tokens};
    if (search_run(&o, &i->generator, &i->best.judge, j->pixels, j->program.extent, i->prefix.ids, i->prefix.count,
                   alone_report, j, &r, &err)) {
        job_fail(j, 500, "the search failed: %s", err.text);
        return;
    }
    if (!r.count) job_fail(j, 504, "no program was found in the time of the search");
    for (int k = 0; k < r.count && k < ALONE_CANDIDATES && job_cancelled(j) == GOES_ON; k++) {
        const SearchFound *f = &r.found[k];
        Candidate *c = alone_add(i, j, f->ids, f->count);
        c->log_probability = alone_score(i, j, f->ids, f->count);
        c->score = f->score;
        c->compiled = true;
        c->clean = f->clean;
        if (k > 0) continue;
        alone_take(i, j, f->ids, f->count, c->ended);
        j->program.log_probability = c->log_probability;
        if (!j->program.looped) j->program.similarity = f->similarity;
    }
    search_result_free(&r);
}

/* ---- all three ---- */

/* Ends the TeX of a job that was left: forgets the programs that wait for it, and stops those that it works on. The engine clears
 * the interruption when the job is over, so this waits until the judge's threads have seen it, a tenth of a second. */
static inline void alone_stop_judge(Judge *judge) {
    bool running = true;
    interrupt_set(true);
    pthread_mutex_lock(&judge->lock);
    judge->first = judge->last = NULL;
    while (running) {
        running = false;
        for (int k = 0; k < JUDGE_SLOTS && !running; k++)
            for (const Judged *p = judge->slots[k]; p && !running; p = p->chained)
                running = p->state == JUDGED_RUNNING;
        if (running) pthread_cond_wait(&judge->done, &judge->lock);
    }
    judge_forget(judge);
    pthread_mutex_unlock(&judge->lock);
}

/* Opens TeX for an instance, or sets what another request has opened to what this one asks for. */
static inline int alone_open_best(Instance *i, const Job *j, Error *err) {
    BestOptions o = {.candidates = j->fields.search ? 0 : (int)j->fields.candidates,
                     .exploration = 0.6,
                     .quiet = true,
                     .task = i->task,
                     .similarity = SIMILARITY_PIXELS,
                     .seed = (uint64_t)j->fields.seed,
                     .max_new_tokens = alone_new_tokens(i, j)};
    if (j->fields.search && best_budget(&o, j->fields.search, err)) return -1;
    if (i->best_open) {
        i->best.o = o;
        return 0;
    }
    if (best_open(&i->best, o, &i->generator, i->prefix.ids, i->prefix.count, err)) return -1;
    i->best_open = true;
    return 0;
}

/* Runs a job that has its model to itself, and hands it on or fails it. */
static inline void alone_run(Instance *i, Job *j, Outlet *outlet) {
    Error err;
    const Sampling *s = &j->sampling;
    Generator *g = &i->generator;
    const bool judged = j->fields.beam == 1;
    decode_begin_program(i, j);
    generator_set_sampling(g, s->temperature, s->top_p, s->top_k, s->seed, i->model.tokenizer.begin >= 0);
    g->scored = !j->fields.search;
    if (judged && alone_open_best(i, j, &err))
        job_fail(j, 422, "%s", err.text);
    else if (!judged)
        alone_beam(i, j);
    else if (j->fields.search)
        alone_search(i, j);
    else
        alone_candidates(i, j);
    g->scored = true;
    if (judged && i->best_open && job_cancelled(j) != GOES_ON) alone_stop_judge(&i->best.judge);
    if (!j->done && !job_left(j))
        decode_end_program(i, j, outlet);
    else
        outlet_push(outlet, j);
}

#endif
