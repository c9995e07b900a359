/* The teacher-forced pass: a model reads every reference program of a dataset and is asked for each next token; from its
 * answers, and a teacher's, follow the terms of the objective (loss.cuh) and the metrics of the logits (metrics/logits.h). */
#ifndef METRICS_FORCED_H
#define METRICS_FORCED_H

#include "../lib/clock.h"
#include "../lib/progress.h"
#include "../loss.cuh"
#include "dataset_pass.h"
#include "logits.h"
#include "logits_file.h"

typedef struct {
    int batch;           // images at a time
    int64_t samples;     // only the first; 0: all
    double temperature;  // of the soft term, and of the logits' metrics at T
    SoftLoss soft;
    double mix;  // beta of JSD, a of SKL and SRKL
    const char *logits_file;  // written where not NULL
} ForcedOptions;

typedef struct {
    ObjectiveSums sums;
    LogitsResult logits;
    int64_t samples;
    double seconds;
    double forward_seconds, figures_seconds;  // of these: for the logits, hidden layers included; for their metrics
} ForcedResult;

static inline void die_not_finite(const Model *m) {
    Error why;
    model_not_finite(m, &why);
    die("%s", why.text);
}

/* Ends the program, naming where a model's logits were not finite. */
static inline void forced_die(const LogitsFault *f, const Model *m, const Model *teacher) {
    Error why;
    model_not_finite(f->of_teacher ? teacher : m, &why);
    die("%s; the first logits that are not finite are those of sample %lu for its token %d", why.text,
        (unsigned long)f->sample, f->position);
}

/* Counts the images of a batch that are blank as the model sees them, and notes the sample of the first of all: its number in
 * the data. */
static inline void count_blank(const Batch *b, int B, int64_t *blank, int64_t *first) {
    const size_t bytes = image_size_bytes(b->sizes[0]);
    for (int i = 0; i < B; i++)
        if (image_darkest(b->pixels[0] + i * bytes, bytes) >= IMAGE_NEAR_WHITE && (*blank)++ == 0) *first = b->samples[i];
}

static inline void forced_open_objective(Objective *o, const ForcedOptions *options, const Model *m,
                                         Weight teacher_head, int max_tokens) {
    ObjectiveConfig config = {.w_ce = 1,
                              .w_soft = teacher_head.rows ? 1 : 0,
                              .temperature = (float)options->temperature,
                              .soft = options->soft,
                              .mix = (float)options->mix,
                              .band_high = INFINITY,
                              .gate_confidence = 2};
    objective_open(o, config, m, teacher_head, 0, options->batch * max_tokens, options->batch, 0);
}

static inline void forced_open_result(ForcedResult *result, const ForcedOptions *options, int64_t total,
                                      bool teacher) {
    *result = (ForcedResult){.logits = {.samples = (LogitsSums *)xcalloc((size_t)total, sizeof(LogitsSums)),
                                        .ids = (uint32_t *)xcalloc((size_t)total, sizeof(uint32_t)),
                                        .capacity = total,
                                        .teacher = teacher,
                                        .temperature = options->temperature}};
}

/* Measures m, planned for the options' batch and max_tokens, on all samples, and against the teacher, if there is one.
 * Ends the program with a sentence where a model's logits are not finite. Free result->logits. */
static inline void forced_measure(ForcedResult *result, const ForcedOptions *options, Model *m, Model *teacher,
                                  const Dataset *d, int max_tokens) {
    Objective objective;
    DatasetPass pass;
    LogitsMeter meter;
    LogitsFile file;
    LogitsFault fault;
    Progress progress;
    const Batch *batch;
    int B = 0;
    int64_t blank = 0, first_blank = 0;
    const double start = seconds_now();
    forced_open_objective(&objective, options, m, teacher ? param_weight(teacher->lm_head) : (Weight){0}, max_tokens);
    logits_open(&meter, m->op, m->lm_head, teacher ? teacher->lm_head : NULL, options->temperature);
    dataset_pass_open(&pass, d, m, teacher, options->batch, options->samples, max_tokens);
    forced_open_result(result, options, pass.total, teacher != NULL);
    if (options->logits_file) logits_file_open(&file, options->logits_file, pass.total, max_tokens, m->c.lm.vocab);
    progress_begin(&progress, "measuring", 0, pass.total);
    while ((batch = dataset_pass_next(&pass, &B))) {
        const double begin = seconds_now();
        if (teacher) model_forward(teacher, batch->pixels[batch->size_count - 1], batch->ids, B, batch->T);
        TeacherOutput q = {.hidden = teacher ? teacher->hidden : NULL};
        model_forward(m, batch->pixels[0], batch->ids, B, batch->T);
        m->op->sync();
        result->forward_seconds += seconds_now() - begin;
        objective_run(&objective, m, &q, (LossScale){0, 0});
        const LogitsBatch texts = {batch->ids, batch->samples, B, batch->T};
        if (logits_measure(&meter, &result->logits, &texts, m->hidden, q.hidden, m->labels, m->n, &fault))
            forced_die(&fault, m, teacher);
        if (options->logits_file) logits_file_add(&file, m, batch->ids, B, batch->T);
        count_blank(batch, B, &blank, &first_blank);
        result->samples += B;
        progress_update(&progress, result->samples, NULL);
    }
    result->sums = objective_collect(&objective);
    progress_end(&progress);
    if (!isfinite(result->sums.ce)) die_not_finite(m);  // of logits too large for the storage type
    if (teacher && !isfinite(result->sums.soft)) die_not_finite(teacher);
    if (blank)
        warn("%lld of the %lld images are blank in the model's size, or nearly so; the first is that of sample %lld",
             (long long)blank, (long long)result->samples, (long long)first_blank);
    if (options->logits_file) logits_file_close(&file);
    result->forward_seconds += meter.seconds[0];
    result->figures_seconds = meter.seconds[1];
    dataset_pass_close(&pass);
    logits_close(&meter);
    objective_close(&objective);
    result->seconds = seconds_now() - start;
}

#endif
