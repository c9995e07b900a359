/* What a report shows: models, their figures, histograms, training curves and examples. Programs fill it in; report_page.h and
 * report_text.h write it. */
#ifndef METRICS_REPORT_DATA_H
#define METRICS_REPORT_DATA_H

#include "bootstrap.h"
#include "chart.h"
#include "metric_text.h"

/* A metric of a model, computed from the sum over its samples. */
typedef struct {
    MetricText text;
    const char *group;        // the metrics of a group follow each other
    BootstrapFigure compute;  // NULL: it is no function of sums, and value `which` of a model's `fixed`
    int which;                // given to `compute`
} Figure;

enum {
    REPORT_LEAST_SAMPLES = 20,    // intervals of fewer are much too narrow
    REPORT_PROGRAM_BYTES = 8000,  // shown of a program
    REPORT_IMAGE_SIDE = 640       // pixels of an image in the page, at most
};

typedef struct {
    const char *input, *reference;  // what the model sees, as PNG file in the report's folder; the reference program
    int64_t sample;
} ReportSample;

typedef struct {
    const char *program;
    const char *drawing, *difference;  // PNG files in the report's folder, or NULL: there is no drawing
    bool compiled;                     // TeX has tried it
    const char *remark;                // such as the first error, or NULL
    double score;                      // the less, the worse the example; not a number: unknown
} ReportOutput;

typedef struct {
    const char *name, *path;
    double parameters, seconds;
    Bootstrap sums;
    const Interval *fixed;        // figures that are given, with intervals that say nothing of differences
    const ReportOutput *outputs;  // [samples] of Report, or NULL
    ChartSeries reliability, confidence, entropy;  // count 0: none
    ChartSeries curve;                             // training loss over steps; count 0: none
} ReportModel;

typedef struct {
    const char *title, *data, *command, *device;
    int64_t sample_count;
    const Figure *figures;
    int figure_count;
    const ReportModel *models;
    int model_count;
    const ReportSample *samples;  // [sample_count], or NULL: no programs were generated
    const char *const *notes;     // sentences about what was left out
    int note_count;
} Report;

/* What the report shows of a program: the whole, or where it is long its beginning and how much is left out, so that the page
 * stays readable whatever a model writes. Allocated. */
static inline char *report_shown(const char *program) {
    const size_t bytes = strlen(program);
    size_t shown = REPORT_PROGRAM_BYTES;
    if (bytes <= shown) return xstrdup(program);
    while (shown > 0 && ((uint8_t)program[shown] & 0xc0) == 0x80) shown--;  // not inside a character
    return format_string("%.*s\n... (%zu more bytes)", (int)shown, program, bytes - shown);
}

/* The figure of a model. */
static inline double report_value(const Report *r, int model, int figure) {
    const Figure *f = &r->figures[figure];
    if (!f->compute) return r->models[model].fixed ? r->models[model].fixed[f->which].value : NAN;
    return r->figures[figure].compute(r->models[model].sums.total, r->figures[figure].which);
}

static inline Interval report_interval(const Report *r, int model, int figure) {
    const Figure *f = &r->figures[figure];
    if (!f->compute) return r->models[model].fixed ? r->models[model].fixed[f->which] : (Interval){NAN, NAN, NAN};
    return bootstrap_interval(&r->models[model].sums, r->figures[figure].compute, r->figures[figure].which);
}

/* Index of the best model in a figure, or -1: no model is better than the others, or the figure has no better. */
static inline int report_best(const Report *r, int figure) {
    int best = -1, equal = 0;
    double most = 0;
    if (!r->figures[figure].text.better || r->model_count < 2) return -1;
    for (int i = 0; i < r->model_count; i++) {
        const double v = report_value(r, i, figure) * r->figures[figure].text.better;
        if (!isfinite(v)) continue;
        if (best < 0 || v > most)
            best = i, most = v, equal = 0;
        else if (v == most)
            equal++;
    }
    return equal ? -1 : best;
}

/* Whether any model has the figure. */
static inline bool report_has(const Report *r, int figure) {
    for (int i = 0; i < r->model_count; i++)
        if (isfinite(report_value(r, i, figure))) return true;
    return false;
}

#endif
