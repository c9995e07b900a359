/* Schedules: the learning rate and the distillation objective. */
#ifndef TRAIN_SCHEDULE_H
#define TRAIN_SCHEDULE_H

#include "../loss.cuh"

/* ---- the learning rate ---- */

typedef enum { LR_COSINE, LR_LINEAR, LR_CONSTANT, LR_MULTISTEP, LR_SCHEDULES } LrSchedule;
static const char *const lr_schedule_names[] = {"cosine", "linear", "constant", "multistep"};

typedef struct {
    LrSchedule kind;
    double base, final_share;  // the schedule ends at base * final_share (cosine, linear)
    int64_t warmup, total;     // in images: the linear warm-up from 0; the whole training
    double gamma;              // multistep: factor at 50 %, 75 % and 90 % of what follows the warm-up
} LearningRate;

/* The learning rate of a step of `images` images after `seen` images. It is a function of images, not steps, so that a
 * run that is resumed with another batch size stays on the curve. */
static inline double learning_rate(const LearningRate *s, int64_t seen, int64_t images) {
    if (seen + images <= s->warmup) return s->base * (double)(seen + images) / (double)s->warmup;
    if (seen < s->warmup) return s->base;
    double span = (double)(s->total - s->warmup), progress = span > 0 ? (double)(seen - s->warmup) / span : 0;
    if (progress > 1) progress = 1;
    double low = s->base * s->final_share;
    switch (s->kind) {
    case LR_COSINE: return low + (s->base - low) * 0.5 * (1 + cos(3.14159265358979323846 * progress));
    case LR_LINEAR: return s->base + (low - s->base) * progress;
    case LR_CONSTANT: return s->base;
    case LR_SCHEDULES: break;
    case LR_MULTISTEP: return s->base * pow(s->gamma, (progress >= 0.5) + (progress >= 0.75) + (progress >= 0.9));
    }
    return s->base;
}

/* ---- the objective ---- */

typedef enum { KD_CONSTANT, KD_ANNEAL, KD_IMAGE2TIKZ, KD_SCHEDULES } KdSchedule;
static const char *const kd_schedule_names[] = {"none", "anneal", "image2tikz"};

/* Image2TikZ's schedule. The temperature is 1, 0.85, 0.70 and 0.60 of its base in the four quarters, in the last one
 * at least 2. The
 * weight of the soft term stays at its base for 10 % of the training, falls linearly to 55 % of it at 40 % and to 40 %
 * at 70 %; w_ce grows by as much. The entropy band is on from 40 %. */
static inline ObjectiveConfig schedule_image2tikz(ObjectiveConfig base, double progress) {
    static const float quarters[4] = {1.0f, 0.85f, 0.70f, 0.60f};
    ObjectiveConfig c = base;
    int quarter = progress < 0.25 ? 0 : progress < 0.5 ? 1 : progress < 0.75 ? 2 : 3;
    c.temperature = base.temperature * quarters[quarter];
    if (quarter == 3 && c.temperature < 2) c.temperature = base.temperature < 2 ? base.temperature : 2;
    double share = progress < 0.1   ? 1
                   : progress < 0.4 ? 1 - 0.45 * (progress - 0.1) / 0.3
                   : progress < 0.7 ? 0.55 - 0.15 * (progress - 0.4) / 0.3
                                    : 0.40;
    c.w_soft = base.w_soft * (float)share;
    c.w_ce = base.w_ce + (base.w_soft - c.w_soft);
    if (progress < 0.4) {
        c.band_low = 0;
        c.band_high = INFINITY;
    }
    return c;
}

/* The objective at `progress` in [0, 1] of the training.
 *
 * Annealing (after Jafari et al. 2021, "Annealing Knowledge Distillation"): the temperature goes linearly from its base
 * to 1 at 80 % of the training and stays there. At a high temperature the small probabilities of the teacher's row count
 * too, and say which wrong tokens are nearly right. But the student generates at temperature 1, and as it cannot match
 * the teacher exactly, the best match at another temperature is not the best one there; so the schedule ends at 1. */
static inline ObjectiveConfig objective_schedule(ObjectiveConfig base, KdSchedule schedule, double progress) {
    const double annealed = 0.8;
    if (schedule == KD_IMAGE2TIKZ) return schedule_image2tikz(base, progress);
    if (schedule == KD_ANNEAL) {
        double share = progress < annealed ? progress / annealed : 1;
        base.temperature += (float)share * (1 - base.temperature);
    }
    return base;
}

#endif
