/* What the objective reads of a teacher for one micro-batch, in each form that it comes in; all on the student's device. */
#ifndef TEACHER_OUTPUT_H
#define TEACHER_OUTPUT_H

#include "kernels/device.h"

typedef struct {
    const floatX *hidden;         // [n, Wt] of a model that runs, for its head; else NULL
    const floatX *image_tokens;   // [B, P, Wt] of a model that runs
    const floatX *layers;  // [pairs, n, Wt] of a model that runs, for the layer loss (train/layer_loss.h); else NULL
    const floatX *logits;         // [n, Vt] of a dense cache (train/teacher_cache.h); else NULL
    const SparseTeacher *sparse;  // [n] rows of a sparse cache; else NULL
    const PolicyRow *policy;      // [n] of the student's own programs in --reinforce; else NULL
    const float *row_mix;         // [n] the skew of each position (train/adaptive_skew.h), or NULL: the objective's
} TeacherOutput;

/* Whether there is a teacher. */
static inline bool teacher_output_given(const TeacherOutput *q) { return q->hidden || q->logits || q->sparse; }

/* The rows of a sparse teacher from row `at` on. */
static inline SparseTeacher sparse_from(const SparseTeacher *t, int at) {
    const size_t entries = (size_t)at * t->K;
    return (SparseTeacher){t->ids + entries, t->p + entries, t->rows + at, t->K, t->V};
}

#endif
