/* From what was measured of models to the report: compares their programs with the references as texts and as drawings,
 * chooses examples, and writes the report's folder.
 *
 *   index.html, report.md, metrics.csv     the report
 *   drawings/                              what the programs draw (drawings.h)
 *   programs-*, symbols, features-*, similarities, scores
 *                                          what --resume goes on with (programs.h, results.h)
 *   images/                                inputs and difference maps of the examples */
#ifndef METRICS_SUITE_REPORT_H
#define METRICS_SUITE_REPORT_H

#include "curve.h"
#include "difference.h"
#include "report_page.h"
#include "report_text.h"
#include "suite_compare.h"
#include "suite_features.h"
#include "suite_figures.h"
#include "suite_sums.h"
#include "suite_symbols.h"

enum { SUITE_EXAMPLES = 20 };

/* ---- examples ---- */

typedef struct {
    double score;
    int64_t sample;
} RankedSample;

static inline int suite_compare_scores(const void *a, const void *b) {
    const RankedSample *x = (const RankedSample *)a, *y = (const RankedSample *)b;
    if (x->score != y->score) return x->score < y->score ? -1 : 1;
    return (x->sample > y->sample) - (x->sample < y->sample);
}

/* Fills worst and random [SUITE_EXAMPLES] with indices of samples: the last model's worst, and others by chance. */
static inline int suite_choose(const Suite *s, int64_t *worst, int64_t *random) {
    const int count = s->n < SUITE_EXAMPLES ? s->n : SUITE_EXAMPLES;
    RankedSample *ranked = (RankedSample *)xcalloc((size_t)s->n + 1, sizeof *ranked);
    uint32_t *order = (uint32_t *)xcalloc((size_t)s->n + 1, sizeof *order);
    Random state;
    random_seed(&state, SUITE_SEED);
    for (int i = 0; i < s->n; i++) {
        ranked[i] = (RankedSample){s->computed[s->model_count - 1].outputs[i].score, i};
        order[i] = (uint32_t)i;
    }
    qsort(ranked, (size_t)s->n, sizeof *ranked, suite_compare_scores);
    random_shuffle(&state, order, (size_t)s->n);
    for (int i = 0; i < count; i++) worst[i] = ranked[i].sample, random[i] = order[i];
    free(ranked);
    free(order);
    return count;
}

/* Writes the images of sample i, once. */
static inline int suite_images(Suite *s, int64_t i, Error *err) {
    const Sample sample = dataset_sample(s->o->data, suite_number(s, (int)i));
    Image input, reference, mine;
    if (s->samples[i].input) return 0;
    char *name = format_string("images/%05lld.png", (long long)s->samples[i].sample);
    char *path = format_string("%s/%s", s->o->folder, name);
    int bad = image_decode(&input, sample.image, sample.image_bytes, "of the dataset", err);
    if (!bad) bad = image_save_png(&input, path, err), image_free(&input);
    s->samples[i].input = name;
    free(path);
    for (int k = 0; k < s->model_count && !bad && s->drawn; k++) {
        ReportOutput *out = &s->computed[k].outputs[i];
        if (s->computed[k].drawn[i].verdict >= DRAWN_NOT) continue;
        out->drawing = format_string("drawings/%s.png", s->computed[k].drawn[i].name);
        if (s->drawings[i].verdict >= DRAWN_NOT) continue;
        bad = suite_load(s, &s->drawings[i], &reference, err);
        if (bad) break;
        bad = suite_load(s, &s->computed[k].drawn[i], &mine, err);
        if (!bad && difference_fits(&reference, &mine)) {
            Image map = difference_map(&reference, &mine);
            out->difference = format_string("images/%05lld-%d.png", (long long)s->samples[i].sample, k + 1);
            path = format_string("%s/%s", s->o->folder, out->difference);
            bad = image_save_png(&map, path, err);
            free(path);
            image_free(&map);
        }
        if (!bad) image_free(&mine);
        image_free(&reference);
    }
    return bad;
}

/* ---- the report ---- */

/* The name of a model's file, without folder and ending, as *n bytes. */
static inline const char *suite_base(const char *path, int *n) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *ending = strrchr(base, '.');
    *n = ending && !strcmp(ending, ".safetensors") ? (int)(ending - base) : (int)strlen(base);
    return base;
}

/* The name of a model in the report: that of its file; the whole path where two files have the same name; with a number where
 * the same file is given again. */
static inline char *suite_name(const Suite *s, int model) {
    const char *path = s->models[model].path;
    int n, length, shared = 0, before = 0;
    const char *base = suite_base(path, &n);
    for (int k = 0; k < s->model_count; k++) {
        const char *other = suite_base(s->models[k].path, &length);
        shared += length == n && !memcmp(base, other, (size_t)n);
        before += k < model && !strcmp(path, s->models[k].path);
    }
    if (before) return format_string("%s (%d)", path, before + 1);
    return shared > 1 ? xstrdup(path) : format_string("%.*s", n, base);
}

/* Reliability curve, and histograms of confidence and entropy, of a model. */
static inline void suite_histograms(SuiteComputed *c, ReportModel *m, const LogitsSums *s) {
    c->bins = (double *)xcalloc(4 * RELIABILITY_BINS + 2 * ENTROPY_BINS, sizeof(double));
    double *x = c->bins, *y = x + RELIABILITY_BINS, *edges = y + RELIABILITY_BINS, *shares = edges + RELIABILITY_BINS;
    for (int b = 0; b < RELIABILITY_BINS; b++) {
        const double count = s->student.count[b];
        x[b] = count > 0 ? s->student.confidence[b] / count : NAN;
        y[b] = count > 0 ? s->student.correct[b] / count : NAN;
        edges[b] = (double)b / RELIABILITY_BINS;
        shares[b] = count / s->positions;
    }
    double *nats = shares + RELIABILITY_BINS, *entropies = nats + ENTROPY_BINS;
    for (int b = 0; b < ENTROPY_BINS; b++) {
        nats[b] = b * ENTROPY_BIN;
        entropies[b] = s->entropies[b] / s->positions;
    }
    m->entropy = (ChartSeries){.x = nats, .y = entropies, .count = ENTROPY_BINS};
    m->reliability = (ChartSeries){.x = x, .y = y, .count = RELIABILITY_BINS};
    m->confidence = (ChartSeries){.x = edges, .y = shares, .count = RELIABILITY_BINS};
}

static inline int suite_write(Suite *s, const Report *r, Error *err) {
    int64_t worst[SUITE_EXAMPLES], random[SUITE_EXAMPLES];
    char *images = format_string("%s/images", s->o->folder);
    const int count = suite_choose(s, worst, random);
    int bad = make_folder(images, err);
    for (int i = 0; i < count && !bad; i++) bad = suite_images(s, worst[i], err) || suite_images(s, random[i], err);
    if (!bad) bad = report_write_page(r, s->o->folder, worst, random, count, err);
    if (!bad) bad = report_write_text(r, s->o->folder, worst, random, count, err);
    free(images);
    return bad;
}

static inline int suite_finish(Suite *s, Error *err) {
    Figure figures[SUITE_FIGURES];
    ReportModel *models = (ReportModel *)xcalloc((size_t)s->model_count, sizeof *models);
    Report r = {s->o->title,
                s->o->data_name,
                s->o->command,
                s->o->device,
                s->n,
                figures,
                suite_figures(figures, s->o->kind),
                models,
                s->model_count,
                s->samples,
                s->notes,
                s->note_count};
    Progress progress;
    progress_begin(&progress, "resampling", 0, s->model_count);
    for (int k = 0; k < s->model_count; k++) {
        SuiteComputed *c = &s->computed[k];
        models[k] = (ReportModel){.name = c->name,
                                  .path = s->models[k].path,
                                  .parameters = s->models[k].parameters,
                                  .seconds = s->models[k].seconds,
                                  .fixed = &c->kid,
                                  .outputs = c->outputs};
        bootstrap_open(&models[k].sums, c->sums, s->n, suite_kind, SUITE_SEED);
        suite_histograms(c, &models[k], &((const SuiteSums *)(const void *)models[k].sums.total)->logits);
        models[k].curve = c->curve = curve_read(s->models[k].path);
        progress_update(&progress, k + 1, NULL);
    }
    progress_end(&progress);
    const int bad = suite_write(s, &r, err);
    for (int k = 0; k < s->model_count; k++) bootstrap_close(&models[k].sums);
    free(models);
    return bad;
}

static inline void suite_open(Suite *s, const SuiteOptions *o, const SuiteModel *models, int count) {
    const int n = (int)models[0].logits->count;
    *s = (Suite){.o = o, .models = models, .model_count = count, .n = n};
    s->references = (char **)xcalloc((size_t)n + 1, sizeof *s->references);
    s->drawings = (DrawnProgram *)xcalloc((size_t)(count + 1) * (size_t)n + 1, sizeof *s->drawings);
    s->computed = (SuiteComputed *)xcalloc((size_t)count, sizeof *s->computed);
    s->samples = (ReportSample *)xcalloc((size_t)n + 1, sizeof *s->samples);
    for (int i = 0; i < n; i++) {
        s->references[i] = suite_text_of(o->data, o->tokenizer, suite_number(s, i));
        s->samples[i] = (ReportSample){.reference = s->references[i], .sample = (int64_t)suite_number(s, i)};
    }
    for (int k = 0; k < count; k++) {
        SuiteComputed *c = &s->computed[k];
        c->name = suite_name(s, k);
        c->texts = (TextSample *)xcalloc((size_t)n + 1, sizeof *c->texts);
        c->sums = (SuiteSums *)xcalloc((size_t)n + 1, sizeof *c->sums);
        c->outputs = (ReportOutput *)xcalloc((size_t)n + 1, sizeof *c->outputs);
        c->similar = (double(*)[2])xcalloc((size_t)n + 1, sizeof *c->similar);
        c->kid = (Interval){NAN, NAN, NAN};
        c->cdm = (CdmScore *)xcalloc((size_t)n + 1, sizeof *c->cdm);
    }
    if (!o->training && o->kind == TEXT_PROGRAM)
        s->notes[s->note_count++] = "CrystalBLEU leaves out no n-grams, because no training data was named.";
}

static inline void suite_close(Suite *s) {
    for (int i = 0; i < s->n; i++) {
        free(s->references[i]);
        free((void *)(uintptr_t)s->samples[i].input);
    }
    drawings_free(s->drawings, (s->model_count + 1) * s->n);
    for (int k = 0; k < s->model_count; k++) {
        SuiteComputed *c = &s->computed[k];
        for (int i = 0; i < s->n; i++) {
            free((void *)(uintptr_t)c->outputs[i].drawing);
            free((void *)(uintptr_t)c->outputs[i].difference);
        }
        free(c->name);
        free(c->texts);
        free(c->sums);
        free(c->outputs);
        free(c->cdm);
        free(c->similar);
        free(c->bins);
        curve_free(&c->curve);
    }
    free(s->references);
    free(s->drawings);
    free(s->computed);
    free(s->samples);
}

/* Compares the models' programs and writes the report. All models must have been measured on the same samples. -1 with *err
 * filled: a file cannot be written, or the user has interrupted; the same command goes on with the drawings that are done. */
static inline int suite_report(const SuiteOptions *o, const SuiteModel *models, int count, Error *err) {
    Suite s;
    for (int k = 1; k < count; k++)
        if (models[k].logits->count != models[0].logits->count ||
            memcmp(models[k].logits->ids, models[0].logits->ids, (size_t)models[0].logits->count * sizeof(uint32_t)))
            return error_set(
                err,
                "%s and %s cannot be in one report: they can take texts of different lengths, so that they "
                "were measured on other samples",
                models[0].path, models[k].path);
    suite_open(&s, o, models, count);
    int bad = suite_compare_texts(&s, err);
    if (!bad) bad = suite_draw(&s, err);
    if (!bad && s.symbols) bad = suite_match_symbols(&s, err);
    if (!bad && s.drawn && o->encoder) bad = suite_encode_all(&s, err);
    if (!bad) bad = suite_sum(&s, err);
    if (!bad && interrupted()) bad = -1;
    if (!bad) bad = suite_finish(&s, err);
    if (bad && interrupted()) error_set(err, "interrupted; the same command with --resume goes on");
    suite_close(&s);
    return bad;
}

#endif
