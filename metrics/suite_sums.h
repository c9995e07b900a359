/* The sums of each sample (suite.h): what was counted of its logits and its text, and the scores of its drawing. The scores are
 * kept, so that an interrupted report goes on. */
#ifndef METRICS_SUITE_SUMS_H
#define METRICS_SUITE_SUMS_H

#include "results.h"
#include "suite_compare.h"

/* The version changes where a score changes though the drawings do not. */
enum { SCORES_VERSION = 1, SCORES_NUMBERS = sizeof(ImageScores) / sizeof(double) };

/* Stands for the drawings of a program and of its reference. */
static inline uint64_t scores_key(const DrawnProgram *reference, const DrawnProgram *mine) {
    const uint64_t parts[] = {SCORES_VERSION, SUITE_SIZE, mine->verdict < DRAWN_NOT};
    uint64_t hash = hash_bytes(HASH_BEGIN, parts, sizeof parts);
    hash = hash_bytes(hash, reference->name, strlen(reference->name));
    return hash_bytes(hash, mine->name, strlen(mine->name));
}

/* The scores of a model's drawing of sample i, whose reference is drawn. Several threads may call it. */
static inline int scores_of(const Suite *s, ResultStore *kept, int model, int i, ImageScores *scores, Error *err) {
    const DrawnProgram *mine = &s->computed[model].drawn[i], *reference = &s->drawings[i];
    const uint64_t key = scores_key(reference, mine);
    double numbers[SCORES_NUMBERS];
    Image a, b;
    bool known;
    int bad;
#pragma omp critical(suite_scores)
    known = results_find(kept, key, numbers);
    if (known) {
        memcpy(scores, numbers, sizeof numbers);
        return 0;
    }
    if (suite_load(s, reference, &a, err)) return -1;
    bad = suite_load(s, mine, &b, err);
    if (!bad) {
        bad = image_scores(scores, &a, &b, SUITE_SIZE, err);
        image_free(&b);
    }
    image_free(&a);
    if (bad) return -1;
    memcpy(numbers, scores, sizeof numbers);
#pragma omp critical(suite_scores)
    bad = results_add(kept, key, numbers, err);
    return bad;
}

/* Fills in the sums and the output of a model's sample i. */
static inline int sums_of_sample(const Suite *s, ResultStore *kept, int model, int i, Error *err) {
    SuiteComputed *c = &s->computed[model];
    const TextSample *text = &c->texts[i];
    ImageScores scores;
    c->sums[i].logits = s->models[model].logits->samples[i];
    c->sums[i].text = text_sums_of(text);
    c->outputs[i] = (ReportOutput){.program = suite_program(s, model, i), .score = -text_mean_part(TEXT_CER, text)};
    if (!s->drawn) return 0;
    const bool scored = s->drawings[i].verdict < DRAWN_NOT;
    image_scores_none(&scores);
    if (scored && scores_of(s, kept, model, i, &scores, err)) return -1;
    if (scored && s->o->encoder) scores.self_mean = c->similar[i][0], scores.self_emd = c->similar[i][1];
    if (scored && s->symbols) scores.cdm_f1 = c->cdm[i].f1, scores.cdm_perfect = c->cdm[i].perfect;
    c->sums[i].image = suite_image(c->drawn[i].verdict, &scores);
    c->outputs[i].remark = c->drawn[i].error;
    c->outputs[i].compiled = true;
    c->outputs[i].score = scored ? scores.ink : INFINITY;
    return 0;
}

/* Fills in the sums and the outputs of all models. -1 with *err filled: a drawing cannot be read, or the user has interrupted. */
static inline int suite_sum(Suite *s, Error *err) {
    char *path = format_string("%s/scores", s->o->folder);
    ResultStore kept = {0};
    Progress progress;
    const int64_t all = (int64_t)s->model_count * s->n;
    int64_t done = 0;
    int failed = s->drawn ? results_open(&kept, path, SCORES_NUMBERS, s->o->resume, err) : 0;
    free(path);
    const size_t begun = kept.count;  // pairs of an earlier run
    progress_begin(&progress, "comparing drawings", 0, all);
    progress.quiet = !s->drawn;
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < all; at++) {
        Error why;
        int bad;
#pragma omp atomic read
        bad = failed;
        if (bad) continue;
        bad = interrupted() ? error_set(&why, "interrupted") : 0;
        if (!bad) bad = sums_of_sample(s, &kept, (int)(at / s->n), (int)(at % s->n), &why);
#pragma omp critical(suite_sums)
        {
            if (bad && !failed) *err = why;
            if (bad) {
#pragma omp atomic write
                failed = 1;
            }
            progress_update(&progress, ++done, "%zu pairs kept", begun);
        }
    }
    progress_end(&progress);
    results_close(&kept);
    return failed ? -1 : 0;
}

#endif
