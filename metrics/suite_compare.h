/* Compares the programs of models with the references, as texts and as drawings: the sums of each sample (suite.h) that the
 * report is made of. */
#ifndef METRICS_SUITE_COMPARE_H
#define METRICS_SUITE_COMPARE_H

#include "../lib/bpe.h"
#include "../lib/dataset.h"
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
    bool resume;              // take the drawings, and other results that take long, which the folder has
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

/* Counts the n-grams of the training texts. -1: the user has interrupted. */
static inline int suite_train(const Suite *s, TextSuite *texts, Error *err) {
    const SuiteOptions *o = s->o;
    Progress progress;
    if (!o->training) return 0;
    progress_begin(&progress, "reading training texts", 0, (int64_t)o->training->count);
    uint64_t i = 0;
    for (; i < o->training->count && !interrupted(); i++) {
        const Sample sample = dataset_sample(o->training, i);
        die_if(dataset_check_sample(&sample, o->tokenizer->count, err), err);
        char *text = suite_text_of(o->training, o->tokenizer, i);
        text_suite_train(texts, text, strlen(text));
        free(text);
        progress_update(&progress, (int64_t)i + 1, NULL);
    }
    progress_end(&progress);
    return i < o->training->count ? error_set(err, "interrupted") : 0;
}

/* Compares a model's programs with the references, some at a time. `progress` counts the programs of all models. */
static inline int suite_compare_model(const Suite *s, TextSuite *texts, int model, Progress *progress, Error *err) {
    enum { AT_ONCE = 512 };
    TextPair pairs[AT_ONCE];
    for (int begin = 0; begin < s->n; begin += AT_ONCE) {
        const int count = s->n - begin < AT_ONCE ? s->n - begin : AT_ONCE;
        if (interrupted()) return error_set(err, "interrupted");
        for (int k = 0; k < count; k++) {
            const int i = begin + k;
            pairs[k] = (TextPair){s->references[i], suite_program(s, model, i), strlen(s->references[i]),
                                  suite_length(s, model, i)};
        }
        text_suite_measure(texts, pairs, (size_t)count, s->computed[model].texts + begin);
        progress_update(progress, (int64_t)model * s->n + begin + count, NULL);
    }
    return 0;
}

/* Compares all programs as texts. -1 with *err filled: the user has interrupted. */
static inline int suite_compare_texts(Suite *s, Error *err) {
    TextSuite texts;
    Progress progress;
    text_suite_begin(&texts, s->o->kind, 500);
    int bad = suite_train(s, &texts, err);
    if (!bad) {
        progress_begin(&progress, "comparing texts", 0, (int64_t)s->model_count * s->n);
        for (int k = 0; k < s->model_count && !bad; k++) bad = suite_compare_model(s, &texts, k, &progress, err);
        progress_end(&progress);
    }
    text_suite_end(&texts);
    return bad;
}

/* ---- drawings ---- */

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

#endif
