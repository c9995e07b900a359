/* The symbols of formulas (cdm.h): matches all models' formulas with the references, several at a time, and keeps the scores, so
 * that an interrupted report goes on. */
#ifndef METRICS_SUITE_SYMBOLS_H
#define METRICS_SUITE_SYMBOLS_H

#include "results.h"
#include "suite_compare.h"

/* Changes where a score changes though the formulas do not. */
enum { SYMBOLS_VERSION = 1 };

typedef struct {
    Suite *s;
    Renderer renderer;
    ResultStore kept;  // f1, perfect
    int64_t found;     // formulas whose scores were all kept
} SymbolMatch;

static inline uint64_t symbols_key(const Suite *s, int model, int i) {
    const uint64_t parts[] = {SYMBOLS_VERSION, strlen(s->references[i])};
    uint64_t hash = hash_bytes(HASH_BEGIN, parts, sizeof parts);
    hash = hash_bytes(hash, s->references[i], strlen(s->references[i]));
    return hash_bytes(hash, suite_program(s, model, i), suite_length(s, model, i));
}

/* Takes the scores of formula i that are kept; returns whether these are all. */
static inline bool symbols_find(SymbolMatch *m, int i) {
    bool all = true;
    for (int k = 0; k < m->s->model_count; k++) {
        double kept[2];
        const bool known = results_find(&m->kept, symbols_key(m->s, k, i), kept);
        if (known) m->s->computed[k].cdm[i] = (CdmScore){.f1 = kept[0], .perfect = kept[1] > 0};
        all = all && known;
    }
    m->found += all;
    return all;
}

/* Matches formula i of all models with its reference. A drawing that a limit has ended is not final: the machine may only have
 * been busy. */
static inline int symbols_match(SymbolMatch *m, int i, bool *final, Error *err) {
    const Suite *s = m->s;
    CdmDrawing reference, mine;
    int bad = cdm_draw(&reference, &m->renderer, s->references[i], strlen(s->references[i]), err);
    for (int k = 0; k < s->model_count && !bad; k++) {
        bad = cdm_draw(&mine, &m->renderer, suite_program(s, k, i), suite_length(s, k, i), err);
        if (bad) break;
        s->computed[k].cdm[i] = cdm_score(&reference, &mine);
        final[k] = !reference.stopped && !mine.stopped;
        cdm_drawing_free(&mine);
    }
    if (!bad) cdm_drawing_free(&reference);
    return bad;
}

static inline int symbols_keep(SymbolMatch *m, int i, const bool *final, Error *err) {
    int bad = 0;
    for (int k = 0; k < m->s->model_count && !bad; k++) {
        const CdmScore *score = &m->s->computed[k].cdm[i];
        const double numbers[] = {score->f1, score->perfect};
        if (final[k]) bad = results_add(&m->kept, symbols_key(m->s, k, i), numbers, err);
    }
    return bad;
}

/* Matches all formulas; as many at a time as the options say. */
static inline int symbols_match_all(SymbolMatch *m, Error *err) {
    Suite *s = m->s;
    Progress progress;
    int failed = 0, done = 0;
    progress_begin(&progress, "matching symbols", 0, s->n);
#pragma omp parallel for schedule(dynamic) num_threads(s->o->jobs)
    for (int i = 0; i < s->n; i++) {
        Error why;
        int skip, bad = 0;
        bool *final = (bool *)xcalloc((size_t)s->model_count, sizeof *final);
#pragma omp critical(suite_symbols)
        skip = failed || symbols_find(m, i);
        if (!skip && interrupted()) bad = error_set(&why, "interrupted");
        if (!skip && !bad) bad = symbols_match(m, i, final, &why);
#pragma omp critical(suite_symbols)
        {
            if (!skip && !bad) bad = symbols_keep(m, i, final, &why);
            if (bad && !failed) *err = why;
            failed = failed || bad;
            progress_update(&progress, ++done, "%lld kept", (long long)m->found);
        }
        free(final);
    }
    progress_end(&progress);
    return failed ? -1 : 0;
}

/* Fills in the scores of all formulas. -1 with *err filled: the machine fails, or the user has interrupted. */
static inline int suite_match_symbols(Suite *s, Error *err) {
    SymbolMatch m = {.s = s};
    char *path = format_string("%s/symbols", s->o->folder);
    int bad = results_open(&m.kept, path, 2, s->o->resume, err);
    free(path);
    if (!bad) bad = renderer_open(&m.renderer, &(RenderOptions){.cancelled = interrupted}, err);
    if (!bad) {
        bad = symbols_match_all(&m, err);
        renderer_close(&m.renderer);
    }
    results_close(&m.kept);
    return bad;
}

#endif
