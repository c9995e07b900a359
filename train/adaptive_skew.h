/* The skew of each sequence in DistiLLM-2 (Ko et al. 2025, "DistiLLM-2: A Contrastive Approach Boosts the Distillation of
 * LLMs"): a sequence that the student does not yet write as its teacher does gets more of the mixture.
 *
 *     p, q = exp(mean of log p(y_t)), exp(mean of log q(y_t))       of a sequence y, teacher and student at temperature 1
 *     d    = p - q of the data's programs, q - p of the student's own
 *     a    = 1 - (1 - a_0) mean(d) / (d + 1e-5), between 0.01 and a_0 (--skew)
 *
 * The mean is over the sequences of a micro-batch, as in the authors' code. log p and log q cost a pass through both heads of
 * their own, before the objective's. */
#ifndef TRAIN_ADAPTIVE_SKEW_H
#define TRAIN_ADAPTIVE_SKEW_H

#include "../loss.cuh"

static const double SKEW_LEAST = 0.01, SKEW_EPSILON = 1e-5;

typedef struct {
    Arena arena;
    RowStats *student, *teacher;  // device [positions]
    float *mix;                   // device [positions]
    RowStats *host;               // [positions]
    double *p, *q;                // host [sequences]
    float *host_mix;              // [positions]
} AdaptiveSkew;

static inline void skew_plan(AdaptiveSkew *a, int positions) {
    a->student = arena_take(&a->arena, positions, sizeof(RowStats));
    a->teacher = arena_take(&a->arena, positions, sizeof(RowStats));
    a->mix = arena_f32(&a->arena, positions);
}

/* For micro-batches of up to this many sequences with up to this many positions in all. */
static inline void skew_open(AdaptiveSkew *a, const Ops *op, int sequences, int positions) {
    *a = (AdaptiveSkew){0};
    skew_plan(a, positions);
    arena_allocate(&a->arena, op, "", "the skew of each position");
    skew_plan(a, positions);
    a->host = xcalloc(positions, sizeof(RowStats));
    a->p = xcalloc(sequences, sizeof(double));
    a->q = xcalloc(sequences, sizeof(double));
    a->host_mix = xcalloc(positions, sizeof(float));
}

static inline void skew_close(AdaptiveSkew *a, const Ops *op) {
    if (!a->host) return;
    arena_release(&a->arena, op);
    free(a->host);
    free(a->p);
    free(a->q);
    free(a->host_mix);
    *a = (AdaptiveSkew){0};
}

/* The cross entropies of the labels, of student and teacher, at each position: -log q and -log p. */
static inline void skew_score(AdaptiveSkew *a, Objective *o, const Model *student, const TeacherOutput *q) {
    const ObjectivePass pass = {student->hidden, q, student->lm_head, NULL, student->n};
    const ObjectiveRow plain = {.w_ce = 1, .temperature = 1, .mix = 0.5f, .gate_confidence = 2};
    const int Vt = o->teacher_head.rows;
    o->op->upload(o->labels, student->labels, student->n * sizeof(int));
    for (int at = 0; at < student->n; at += o->chunk) {
        const size_t rows = objective_rows(o, &pass, at);
        const int slot = objective_slot(o, at), *labels = o->labels + at;
        objective_logits(o, &pass, at);
        o->op->distill_rows(o->student_logits[slot], NULL, labels, NULL, a->student + at, plain, rows, o->Vs, 0,
                            false);
        o->op->distill_rows(o->teacher_logits[slot], NULL, labels, NULL, a->teacher + at, plain, rows, Vt, 0, false);
    }
}

/* exp(mean log-probability) of each sequence, of the row statistics on the device. */
static inline void skew_likelihoods(AdaptiveSkew *a, const Ops *op, double *out, const RowStats *stats,
                                    const int *counts, int B, int n) {
    op->download(a->host, stats, n * sizeof(RowStats));
    for (int b = 0, at = 0; b < B; b++) {
        double sum = 0;
        for (int t = 0; t < counts[b]; t++) sum -= (double)a->host[at++].ce;
        out[b] = exp(sum / counts[b]);
    }
}

/* One skew, of a sequence with the difference d, where these differences have this mean. */
static inline double skew_of(double base, double mean, double d) {
    const double a = 1 - (1 - base) * mean / (d + SKEW_EPSILON);
    return a < SKEW_LEAST ? SKEW_LEAST : a > base ? base : a;  // NaN, of a model that is not finite, stays
}

/* Sets q->row_mix for the student's last forward pass: over B sequences, the b-th with counts[b] > 0 positions. own: they are
 * the student's own samples. base: a_0. */
static inline void skew_adapt(AdaptiveSkew *a, Objective *o, const Model *student, TeacherOutput *q,
                              const int *counts, bool own, double base) {
    const int B = student->B, n = student->n;
    double mean = 0;
    skew_score(a, o, student, q);
    skew_likelihoods(a, o->op, a->q, a->student, counts, B, n);
    skew_likelihoods(a, o->op, a->p, a->teacher, counts, B, n);
    for (int b = 0; b < B; b++) mean += (own ? a->q[b] - a->p[b] : a->p[b] - a->q[b]) / B;
    for (int b = 0, at = 0; b < B; b++) {
        const double d = own ? a->q[b] - a->p[b] : a->p[b] - a->q[b];
        const float skew = (float)skew_of(base, mean, d);
        for (int t = 0; t < counts[b]; t++) a->host_mix[at++] = skew;
    }
    o->op->upload(a->mix, a->host_mix, n * sizeof(float));
    q->row_mix = a->mix;
}

#endif
