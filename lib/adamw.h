/* The optimizer over lists of parameters, the learning-rate schedules, and the checkpoint of its state. */
#ifndef LIB_ADAMW_H
#define LIB_ADAMW_H

#include "parameters.h"

typedef struct {
    float beta1, beta2, eps, decay;
    float max_norm;  // global-norm clipping; <= 0: off
} AdamW;

static inline void gradients_zero(const Params *p, const Ops *op) {
    if (p->gradients.base) op->zero(p->gradients.base, p->gradients.used);
}

/* norm_squared: device float, gets the sum of squares of all gradients of all lists. */
static inline void gradients_norm(Params *const *lists, int count, const Ops *op, float *norm_squared) {
    bool accumulate = false;
    for (int i = 0; i < count; i++) {
        size_t n = lists[i]->gradients.used / sizeof(float);  // the gaps between pieces are zero
        if (!n) continue;
        op->squared_norm(norm_squared, (const float *)lists[i]->gradients.base, n, accumulate);
        accumulate = true;
    }
}

/* One step (counted from 1) on everything that has a gradient. A norm that is not finite leaves all as it was. */
static inline void adamw_step(const AdamW *a, Params *const *lists, int count, const Ops *op, float lr, int step,
                              const float *norm_squared) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < lists[i]->count; j++) {
            Param *p = &lists[i]->list[j];
            if (!p->gradient) continue;
            op->adamw(p->value, p->master, p->m, p->v, p->gradient, p->n, lr, a->beta1, a->beta2, a->eps,
                      p->decay ? a->decay : 0, norm_squared, a->max_norm, step);
        }
}

/* ---- learning rate ---- */

typedef enum { LR_COSINE, LR_LINEAR, LR_CONSTANT, LR_MULTISTEP } LrSchedule;

typedef struct {
    LrSchedule kind;
    double base, final_share;  // the schedule ends at base * final_share (cosine, linear)
    int64_t warmup, steps;     // linear warm-up from 0
    double gamma;              // multistep: factor at 50 %, 75 % and 90 % of the steps
} LearningRate;

/* For step 0 .. steps-1. */
static inline double learning_rate(const LearningRate *s, int64_t step) {
    if (step < s->warmup) return s->base * (double)(step + 1) / (double)s->warmup;
    double span = (double)(s->steps - s->warmup), progress = span > 0 ? (double)(step - s->warmup) / span : 0;
    if (progress > 1) progress = 1;
    double low = s->base * s->final_share;
    switch (s->kind) {
    case LR_COSINE: return low + (s->base - low) * 0.5 * (1 + cos(3.14159265358979323846 * progress));
    case LR_LINEAR: return s->base + (low - s->base) * progress;
    case LR_CONSTANT: return s->base;
    case LR_MULTISTEP: return s->base * pow(s->gamma, (progress >= 0.5) + (progress >= 0.75) + (progress >= 0.9));
    }
    return s->base;
}

/* ---- checkpoint of the optimizer ---- */

static const char *const state_kinds[3] = {"master", "m", "v"};

static inline float *state_piece(const Param *p, int kind) { return kind == 0 ? p->master : kind == 1 ? p->m : p->v; }

/* Writes masters and moments of everything trained as NAME.master, NAME.m, NAME.v (fp32), with the given metadata;
 * whole or not at all. */
static inline int state_save(const char *path, Params *const *lists, int count, const Ops *op,
                             const char *const *keys, const char *const *values, int metadata_count, Error *err) {
    int total = 0, n = 0;
    for (int i = 0; i < count; i++) total += 3 * lists[i]->count;
    SafeTensorSpec *specs = (SafeTensorSpec *)xcalloc((size_t)total + 1, sizeof(SafeTensorSpec));
    const float **data = (const float **)xcalloc((size_t)total + 1, sizeof(float *));
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 3 * lists[i]->count; j++) {
            const Param *p = &lists[i]->list[j / 3];
            if (!p->gradient) continue;
            snprintf(specs[n].name, sizeof specs[n].name, "%s.%s", p->name, state_kinds[j % 3]);
            specs[n].dtype = DT_F32;
            specs[n].ndim = 1;
            specs[n].shape[0] = (int64_t)p->n;
            data[n++] = state_piece(p, j % 3);
        }
    SafeTensorsWriter w;
    int bad = safetensors_write_begin(&w, path, specs, n, keys, values, metadata_count, err);
    for (int i = 0; !bad && i < n; i++) {
        size_t bytes = (size_t)specs[i].shape[0] * sizeof(float);
        void *host = xmalloc(bytes);
        op->download(host, data[i], bytes);
        bad = safetensors_write_data(&w, host, bytes, err);
        free(host);
    }
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    free((void *)data);
    return bad;
}

/* Restores what state_save wrote; the parameters themselves become the rounded masters. */
static inline int state_load(const SafeTensors *st, Params *const *lists, int count, const Ops *op, Error *err) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < lists[i]->count; j++) {
            Param *p = &lists[i]->list[j];
            if (!p->gradient) continue;
            for (int kind = 0; kind < 3; kind++) {
                char name[128];
                snprintf(name, sizeof name, "%s.%s", p->name, state_kinds[kind]);
                const SafeTensor *t = safetensors_find(st, name);
                if (!t || t->dtype != DT_F32 || t->bytes != p->n * sizeof(float))
                    return error_set(
                        err,
                        "%s: the optimizer state %s is missing or does not fit the model; resume with the "
                        "--student and --train of the first run, or start anew in another --out folder",
                        st->file.path, name);
                op->upload(state_piece(p, kind), t->data, t->bytes);
            }
            op->cast_to_x(p->value, p->master, p->n);
        }
    return 0;
}

#endif
