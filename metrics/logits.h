/* Sums of the figures of all positions (kernels/figures.h), kept for each sample, so that a paired bootstrap over the
 * samples can form every mean again. Logits exist for one chunk of positions at a time.
 *
 * Means are over the positions of the text that have a label, each with the same weight; image and padding positions have
 * none. (Image2TikZ averages its batches with equal weights, and most of its figures over all positions, padding included.)
 * Sums are in double, in the order of the positions: the same for any number of threads. */
#ifndef METRICS_LOGITS_H
#define METRICS_LOGITS_H

#include "../lib/clock.h"
#include "../loss.cuh"
#include "moments.h"
#include "reliability.h"

/* Sums over positions; the teacher's are 0 without one. */
enum { ENTROPY_BINS = 20 };
#define ENTROPY_BIN 0.25  // nats; the last bin has all from 4.75 on

typedef struct {
    double positions;
    double figure[FIGURES];
    double entropies[ENTROPY_BINS];  // how often the student's entropy falls into each bin
    Reliability student, teacher;
    Moments confidence;  // x: the teacher's, y: the student's
} LogitsSums;

/* What was measured of one model. */
typedef struct {
    LogitsSums *samples;  // [count], in the order of the dataset
    uint32_t *ids;        // [count], their numbers in the dataset
    int64_t count, capacity;
    bool teacher;
    double temperature;
} LogitsResult;

static inline void logits_result_free(LogitsResult *r) {
    free(r->samples);
    free(r->ids);
    *r = (LogitsResult){0};
}

static inline void logits_sums_add(LogitsSums *s, const LogitsFigures *p, bool teacher) {
    const double *value = p->value, *side = value + FIGURE_TEACHER;
    s->positions++;
    for (int i = 0; i < FIGURES; i++) s->figure[i] += value[i];
    const int bin = (int)(value[SIDE_ENTROPY] / ENTROPY_BIN);
    s->entropies[bin < 0 ? 0 : bin < ENTROPY_BINS ? bin : ENTROPY_BINS - 1]++;
    reliability_add(&s->student, value[SIDE_CONFIDENCE], value[SIDE_CORRECT] > 0);
    if (!teacher) return;
    reliability_add(&s->teacher, side[SIDE_CONFIDENCE], side[SIDE_CORRECT] > 0);
    moments_add(&s->confidence, side[SIDE_CONFIDENCE], value[SIDE_CONFIDENCE]);
}

static inline void logits_sums_merge(LogitsSums *s, const LogitsSums *more) {
    s->positions += more->positions;
    for (int i = 0; i < FIGURES; i++) s->figure[i] += more->figure[i];
    for (int i = 0; i < ENTROPY_BINS; i++) s->entropies[i] += more->entropies[i];
    reliability_merge(&s->student, &more->student);
    reliability_merge(&s->teacher, &more->teacher);
    moments_merge(&s->confidence, &more->confidence);
}

/* The sums over the samples picks [n], indices into r->samples, each as often as it occurs; picks NULL: over all. */
static inline LogitsSums logits_total(const LogitsResult *r, const int64_t *picks, int64_t n) {
    LogitsSums total = {0};
    if (!picks) n = r->count;
    for (int64_t i = 0; i < n; i++) logits_sums_merge(&total, &r->samples[picks ? picks[i] : i]);
    return total;
}

/* ---- from hidden states ---- */

enum {
    LOGITS_MEGABYTES = 64,  // of logits in memory, at most
    LOGITS_ROWS = 4096      // positions in a chunk, at most
};

/* Heads, and memory for the logits of a chunk of positions. The logits stay on the device; the figures come from there. */
typedef struct {
    const Ops *op;
    const Param *head[2];  // the student's, the teacher's or NULL
    int V[2];              // their rows; 0 without a teacher
    double temperature;
    int rows;                        // of a chunk
    float *logits[2];                // [rows, V] of the student, the teacher; on the device
    int *labels;                     // [rows], on the device
    LogitsFigures *there, *figures;  // [rows], on the device and here
    double seconds[2];               // for the logits; for their figures
} LogitsMeter;

/* The first position whose logits are not finite. */
typedef struct {
    bool of_teacher;
    uint32_t sample;
    int position;  // token of its text, from 0
} LogitsFault;

static inline void *logits_alloc(const LogitsMeter *l, size_t bytes) {
    void *p = bytes ? l->op->alloc(bytes) : NULL;
    if (bytes && !p) die("cannot allocate the logits of %d positions", l->rows);
    return p;
}

static inline void logits_open(LogitsMeter *l, const Ops *op, const Param *student, const Param *teacher,
                               double temperature) {
    *l = (LogitsMeter){.op = op,
                       .head = {student, teacher},
                       .V = {student->rows, teacher ? teacher->rows : 0},
                       .temperature = temperature};
    const size_t most = ((size_t)LOGITS_MEGABYTES << 20) / ((size_t)(l->V[0] + l->V[1]) * sizeof(float));
    l->rows = most > LOGITS_ROWS ? LOGITS_ROWS : most < 1 ? 1 : (int)most;
    const size_t rows = (size_t)l->rows;
    for (int i = 0; i < 2; i++) l->logits[i] = (float *)logits_alloc(l, rows * (size_t)l->V[i] * sizeof(float));
    l->labels = (int *)logits_alloc(l, rows * sizeof *l->labels);
    l->there = (LogitsFigures *)logits_alloc(l, rows * sizeof *l->there);
    l->figures = (LogitsFigures *)xmalloc(rows * sizeof *l->figures);
}

static inline void logits_close(LogitsMeter *l) {
    void *const device[] = {l->logits[0], l->logits[1], l->labels, l->there};
    for (int i = 0; i < 4; i++)
        if (device[i]) l->op->release(device[i]);
    free(l->figures);
    *l = (LogitsMeter){0};
}

/* The figures of n positions with these labels, from hidden states [n, W] on the device, the student's and the teacher's. */
static inline void logits_chunk(LogitsMeter *l, const floatX *student, const floatX *teacher, const int *labels,
                                int n) {
    const floatX *hidden[2] = {student, teacher};
    const size_t bytes = (size_t)n * sizeof *l->figures;
    double start = seconds_now();
    for (int i = 0; i < 2; i++)
        if (l->V[i]) linear_logits(l->op, l->logits[i], hidden[i], l->head[i], n);
    l->op->sync();
    l->seconds[0] += seconds_now() - start;
    start = seconds_now();
    l->op->upload(l->labels, labels, (size_t)n * sizeof *labels);
    l->op->logits_figures(l->there, l->logits[0], l->logits[1], l->labels, l->temperature, (size_t)n, l->V[0],
                          l->V[1]);
    l->op->download(l->figures, l->there, bytes);
    l->seconds[1] += seconds_now() - start;
}

/* Which positions of a batch have a label. */
typedef struct {
    const int *ids;           // [B, T], -1 where a text has ended
    const uint32_t *samples;  // [B], numbers in the dataset
    int B, T;
} LogitsBatch;

/* Appends the samples of a batch to *result, which has capacity for them. hidden: the states [n, W] of the positions that
 * have a label, row after row of the batch, with labels [n]. -1 with *fault filled: logits that are not finite. */
static inline int logits_measure(LogitsMeter *l, LogitsResult *result, const LogitsBatch *batch,
                                 const floatX *student, const floatX *teacher, const int *labels, int n,
                                 LogitsFault *fault) {
    int done = 0, chunk = 0, at = 0;  // positions before the chunk, positions of the chunk, the next one in it
    for (int b = 0; b < batch->B; b++) {
        LogitsSums *sums = &result->samples[result->count];
        result->ids[result->count++] = batch->samples[b];
        for (int t = 0; t < batch->T && batch->ids[(size_t)b * (size_t)batch->T + (size_t)t] >= 0; t++) {
            if (at == chunk) {
                done += chunk, at = 0;
                chunk = n - done < l->rows ? n - done : l->rows;
                logits_chunk(l, student + (size_t)done * (size_t)l->head[0]->cols,
                             teacher ? teacher + (size_t)done * (size_t)l->head[1]->cols : NULL, labels + done,
                             chunk);
            }
            const LogitsFigures *p = &l->figures[at++];
            if (p->state != FIGURES_GOOD) {
                *fault = (LogitsFault){p->state == FIGURES_BAD_TEACHER, batch->samples[b], t};
                return -1;
            }
            logits_sums_add(sums, p, l->V[1] > 0);
        }
    }
    return 0;
}

#endif
