/* Everything that is measured of one sample of a dataset and one model, as sums that add up: of the logits, of the program's
 * text and of its drawing. From the sum over any set of samples follow the figures (suite_figures.h). */
#ifndef METRICS_SUITE_H
#define METRICS_SUITE_H

#include "drawings.h"
#include "image.h"
#include "logits_table.h"
#include "text.h"

/* `count`: of the samples that have the metric. */
typedef struct {
    double programs, clean, errors;  // programs that were compiled; without errors; with errors, but drawn
    double sum[IMAGE_METRICS], count[IMAGE_METRICS];
} ImageSums;

typedef struct {
    LogitsSums logits;
    TextSums text;
    ImageSums image;
} SuiteSums;

/* scores: those that are not numbers do not count. */
static inline ImageSums suite_image(DrawnVerdict verdict, const ImageScores *scores) {
    ImageSums out = {.programs = 1, .clean = verdict == DRAWN_CLEAN, .errors = verdict == DRAWN_WITH_ERRORS};
    for (int m = 0; m < IMAGE_METRICS; m++) {
        const double x = image_metric_value(&image_metrics[m], scores);
        out.count[m] = isfinite(x);
        out.sum[m] = isfinite(x) ? x : 0;
    }
    return out;
}

static inline void suite_add(void *sum, const void *sample) {
    SuiteSums *a = (SuiteSums *)sum;
    const SuiteSums *b = (const SuiteSums *)sample;
    logits_sums_merge(&a->logits, &b->logits);
    text_sums_add(&a->text, &b->text);
    a->image.programs += b->image.programs;
    a->image.clean += b->image.clean;
    a->image.errors += b->image.errors;
    for (int m = 0; m < IMAGE_METRICS; m++) {
        a->image.sum[m] += b->image.sum[m];
        a->image.count[m] += b->image.count[m];
    }
}

static const SampleKind suite_kind = {sizeof(SuiteSums), suite_add};

#endif
