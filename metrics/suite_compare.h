/* Compares the programs of models with the references, as texts and as drawings: the sums of each sample (suite.h) that the
 * report is made of. */
#ifndef METRICS_SUITE_COMPARE_H
#define METRICS_SUITE_COMPARE_H

#include "../dataloader.h"
#include "../lib/bpe.h"
#include "cdm.h"
#include "features.h"
#include "kid.h"
#include "programs.h"
#include "report_data.h"
#include "suite.h"

enum { SUITE_SIZE = 384, SUITE_DPI = 100, SUITE_SEED = 1 };

/* What was measured of a model. */
typedef struct {
    const char *path;
    double parameters, seconds;
    const LogitsResult *logits;
    const ProgramStore *programs;  // by the samples' numbers in the dataset
} SuiteModel;

typedef struct {
    const char *folder;  // of the report; exists
    const char *title, *command, *device, *data_name;
    const Dataset *data, *training;  // training: for CrystalBLEU, or NULL
    const Tokenizer *tokenizer;
    TextKind kind;
    int jobs;
    bool resume;              // take the drawings that the folder has
    FeatureEncoder *encoder;  // for self-similarity and KID, or NULL
} SuiteOptions;

/* What is computed of one model. */
typedef struct {
    char *name;
    TextSample *texts;     // [n]
    DrawnProgram *drawn;   // [n], or NULL without TeX
    double (*similar)[2];  // [n], self-similarity by means and by EMD; not numbers where it is unknown
    Interval kid;
    CdmScore *cdm;          // [n], of formulas
    SuiteSums *sums;        // [n]
    ReportOutput *outputs;  // [n]
    double *bins;           // of its histograms
    ChartSeries curve;
} SuiteComputed;

typedef struct {
    const SuiteOptions *o;
    const SuiteModel *models;
    int model_count, n;
    char **references;        // [n]
    DrawnProgram *drawings;   // [(1 + model_count) * n]: the references', then each model's
    bool drawn;               // there is TeX
    bool symbols;             // formulas are compared by their symbols
    char undrawn[160];        // a note
    SuiteComputed *computed;  // [model_count]
    ReportSample *samples;    // [n]
    const char *notes[8];
    int note_count;
} Suite;

static inline uint64_t suite_number(const Suite *s, int i) { return s->models[0].logits->ids[i]; }
static inline const char *suite_program(const Suite *s, int model, int i) {
    return s->models[model].programs->texts[suite_number(s, i)];
}

static inline size_t suite_length(const Suite *s, int model, int i) {
    return s->models[model].programs->lengths[suite_number(s, i)];
}

/* ---- texts ---- */

/* The text of a sample's tokens, without the end token. */
static inline char *suite_text_of(const Dataset *d, const Tokenizer *t, uint64_t number) {
    const Sample sample = dataset_sample(d, number);
    char *text;
    tokenizer_decode(t, (const int *)(const void *)sample.tokens, (int)sample.token_count - 1, &text, NULL);
    return text;
}

static inline void suite_compare_texts(Suite *s) {
    const SuiteOptions *o = s->o;
    TextSuite texts;
    TextPair *pairs = (TextPair *)xcalloc((size_t)s->n + 1, sizeof *pairs);
    text_suite_begin(&texts, o->kind, 500);
    for (uint64_t i = 0; o->training && i < o->training->count; i++) {
        Error err;
        const Sample sample = dataset_sample(o->training, i);
        die_if(dataset_check_sample(&sample, o->tokenizer->count, &err), &err);
        char *text = suite_text_of(o->training, o->tokenizer, i);
        text_suite_train(&texts, text, strlen(text));
        free(text);
    }
    for (int k = 0; k < s->model_count; k++) {
        for (int i = 0; i < s->n; i++) {
            const char *program = suite_program(s, k, i);
            pairs[i] = (TextPair){s->references[i], program, strlen(s->references[i]), suite_length(s, k, i)};
        }
        text_suite_measure(&texts, pairs, (size_t)s->n, s->computed[k].texts);
    }
    text_suite_end(&texts);
    free(pairs);
}

/* ---- drawings ---- */

/* Matches the symbols of formula i with those of its reference, for all models. */
static inline int suite_match(Suite *s, Renderer *r, int i, Error *err) {
    CdmDrawing reference, mine;
    int bad = cdm_draw(&reference, r, s->references[i], strlen(s->references[i]), err);
    for (int k = 0; k < s->model_count && !bad; k++) {
        const char *program = suite_program(s, k, i);
        bad = cdm_draw(&mine, r, program, suite_length(s, k, i), err);
        if (!bad) s->computed[k].cdm[i] = cdm_score(&reference, &mine);
        if (!bad) cdm_drawing_free(&mine);
    }
    if (!bad) cdm_drawing_free(&reference);
    return bad;
}

static inline int suite_match_symbols(Suite *s, Error *err) {
    Renderer r;
    Progress progress;
    int failed = 0, done = 0;
    if (renderer_open(&r, &(RenderOptions){.cancelled = interrupted}, err)) return -1;
    progress_begin(&progress, "matching symbols", 0, s->n);
#pragma omp parallel for schedule(dynamic) num_threads(s->o->jobs)
    for (int i = 0; i < s->n; i++) {
        Error why;
        int skip;
#pragma omp atomic read
        skip = failed;
        const int bad = skip ? 0 : suite_match(s, &r, i, &why);
#pragma omp critical(suite_symbols)
        {
            if (bad && !failed) *err = why;
            if (bad) {
#pragma omp atomic write
                failed = 1;
            }
            progress_update(&progress, ++done, NULL);
        }
    }
    progress_end(&progress);
    renderer_close(&r);
    return failed ? -1 : 0;
}

/* Notes how many samples have no scores of drawings. */
static inline void suite_note_references(Suite *s) {
    int count = 0;
    for (int i = 0; i < s->n; i++) count += s->drawings[i].verdict >= DRAWN_NOT;
    if (!count) return;
    snprintf(s->undrawn, sizeof s->undrawn,
             "Of %d samples the reference itself cannot be drawn; metrics of drawings, but for the compile rates, "
             "leave them out.",
             count);
    s->notes[s->note_count++] = s->undrawn;
}

/* Draws all references and programs. Without TeX the drawings are left out, with a note. */
static inline int suite_draw(Suite *s, Error *err) {
    char *folder = format_string("%s/drawings", s->o->folder);
    const DrawingOptions o = {.task = s->o->kind == TEXT_FORMULA ? RENDER_FORMULA : RENDER_TIKZ,
                              .dpi = SUITE_DPI,
                              .jobs = s->o->jobs,
                              .resume = s->o->resume,
                              .folder = folder};
    Renderer found;
    Error why;
    int bad = 0;
    for (int i = 0; i < s->n; i++) {
        s->drawings[i].program = s->references[i];
        s->drawings[i].bytes = strlen(s->references[i]);
    }
    for (int k = 0; k < s->model_count; k++) {
        s->computed[k].drawn = s->drawings + (size_t)(k + 1) * s->n;
        for (int i = 0; i < s->n; i++) {
            s->computed[k].drawn[i].program = suite_program(s, k, i);
            s->computed[k].drawn[i].bytes = suite_length(s, k, i);
        }
    }
    s->drawn = renderer_open(&found, &(RenderOptions){0}, &why) == 0;
    if (s->drawn) {
        s->symbols = s->o->kind == TEXT_FORMULA && found.tex.engines[TEX_PDFLATEX];
        if (s->o->kind == TEXT_FORMULA && !s->symbols)
            s->notes[s->note_count++] = "CDM is left out, because pdflatex is not installed.";
        renderer_close(&found);
        bad = make_folder(folder, err);
        if (!bad) bad = drawings_make(s->drawings, (s->model_count + 1) * s->n, &o, err);
        if (!bad && s->symbols) bad = suite_match_symbols(s, err);
        suite_note_references(s);
    } else {
        warn("the drawings are left out: %s", why.text);
        s->notes[s->note_count++] = "The drawings are left out, because TeX or Poppler is not installed.";
    }
    free(folder);
    return bad;
}

/* Loads what a program draws; where it draws nothing, a white image. */
static inline int suite_load(const Suite *s, const DrawnProgram *p, Image *image, Error *err) {
    if (p->verdict >= DRAWN_NOT) {
        *image = (Image){.width = 1, .height = 1, .rgb = (uint8_t *)xmalloc(3)};
        memset(image->rgb, 255, 3);
        return 0;
    }
    char *path = format_string("%s/drawings/%s.png", s->o->folder, p->name);
    const int bad = image_load(image, path, err);
    free(path);
    return bad;
}

/* The scores of a model's drawing of sample i; false: the reference has none. */
static inline bool suite_score(const Suite *s, int model, int i, ImageScores *scores) {
    const DrawnProgram *mine = &s->computed[model].drawn[i], *reference = &s->drawings[i];
    Image a, b;
    Error err;
    if (reference->verdict >= DRAWN_NOT) return false;
    if (suite_load(s, reference, &a, &err)) die("%s", err.text);
    if (suite_load(s, mine, &b, &err)) die("%s", err.text);
    if (image_scores(scores, &a, &b, SUITE_SIZE, &err)) die("%s", err.text);
    image_free(&a);
    image_free(&b);
    return true;
}

/* ---- features ---- */

/* The features of what a program draws, and their mean over the patches. */
static inline void suite_encode(const Suite *s, const DrawnProgram *p, double *features, double *mean) {
    FeatureEncoder *e = s->o->encoder;
    Image image;
    Error err;
    if (suite_load(s, p, &image, &err)) die("%s", err.text);
    feature_encode(e, &image, features);
    similarity_pool(mean, features, e->P, e->C);
    image_free(&image);
}

/* Encodes all drawings: self-similarity of each to its reference, and each model's distance from the references. */
static inline void suite_encode_all(Suite *s) {
    FeatureEncoder *e = s->o->encoder;
    const size_t C = (size_t)e->C, PC = (size_t)e->P * C;
    const int sets = s->model_count + 1;  // the references' means, then each model's
    double *features = (double *)xmalloc(2 * PC * sizeof(double)), *mine = features + PC;
    double *means = (double *)xmalloc((size_t)sets * (size_t)s->n * C * sizeof(double));
    Progress progress;
    Error err;
    int count = 0;  // samples whose reference is drawn
    progress_begin(&progress, "encoding", 0, s->n);
    for (int i = 0; i < s->n; i++) {
        if (s->drawings[i].verdict >= DRAWN_NOT) continue;
        suite_encode(s, &s->drawings[i], features, means + (size_t)count * C);
        for (int k = 0; k < s->model_count; k++) {
            double *set = means + (size_t)(k + 1) * (size_t)s->n * C, *similar = s->computed[k].similar[i];
            suite_encode(s, &s->computed[k].drawn[i], mine, set + (size_t)count * C);
            similar[0] = similarity_features(SIMILARITY_MEAN, features, mine, e->P, e->C);
            similar[1] = similarity_features(SIMILARITY_EMD, features, mine, e->P, e->C);
        }
        count++;
        progress_update(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    if (count < KID_SUBSET_SIZE)
        s->notes[s->note_count++] = "KID is of all drawings, since there are fewer than 50; it is then too low.";
    for (int k = 0; k < s->model_count; k++) {
        const double *set = means + (size_t)(k + 1) * (size_t)s->n * C;
        Kid distance = {0};
        s->computed[k].kid = (Interval){NAN, NAN, NAN};
        if (kid(&distance, means, count, set, count, e->C, SUITE_SEED, &err)) continue;
        s->computed[k].kid = (Interval){1000 * distance.mean, 1000 * (distance.mean - distance.deviation),
                                        1000 * (distance.mean + distance.deviation)};
    }
    free(features);
    free(means);
}

/* ---- sums ---- */

/* Fills in the sums and the outputs of a model. */
static inline void suite_sum(Suite *s, int model) {
    SuiteComputed *c = &s->computed[model];
    const LogitsResult *logits = s->models[model].logits;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < s->n; i++) {
        ImageScores scores;
        const TextSample *text = &c->texts[i];
        c->sums[i].logits = logits->samples[i];
        c->sums[i].text = text_sums_of(text);
        c->outputs[i] =
            (ReportOutput){.program = suite_program(s, model, i), .score = -text_mean_part(TEXT_CER, text)};
        if (!s->drawn) continue;
        image_scores_none(&scores);
        const bool scored = suite_score(s, model, i, &scores);
        if (scored && s->o->encoder) scores.self_mean = c->similar[i][0], scores.self_emd = c->similar[i][1];
        if (scored && s->symbols) scores.cdm_f1 = c->cdm[i].f1, scores.cdm_perfect = c->cdm[i].perfect;
        c->sums[i].image = suite_image(c->drawn[i].verdict, &scores);
        c->outputs[i].remark = c->drawn[i].error;
        c->outputs[i].compiled = true;
        c->outputs[i].score = scored ? scores.ink : INFINITY;
    }
}

#endif
