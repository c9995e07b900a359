/* On-policy distillation (Agarwal et al. 2024, "On-Policy Distillation of Language Models", GKD): the student learns from
 * what the teacher says about the student's own samples.
 *
 *     const Batch *batch = on_policy_batch(&own, &t, &parallel, batch_next(&data));     the data's programs, or its own
 *     t.objective.config = on_policy_objective(&own, config);
 *     ...
 *     on_policy_skew(&own, &t, &q, &mb);                                                of DistiLLM-2; else nothing
 *
 * With probability --on-policy, a pure function of (seed, batch number), the programs of a batch are samples of the student as
 * it is then (train/rollout.h), and the teacher scores those. They are constants to the gradient. All sampled tokens count, the
 * end token too; a sample that reached the limit has none. Such a batch has no cross entropy with its labels, which the
 * student made itself; the soft and the hard term, and the embedding loss, stay.
 *
 * With --replay N, half of these batches, at random, are one of the last N again: the images, which follow from the batch's
 * number, and the samples that were drawn for them (train/replay.h).
 *
 * --method distillm2 learns the data's programs by (2 - b) SKL and its own samples by b SRKL, b = --own-weight, with a skew
 * for each sequence (train/adaptive_skew.h).
 *
 * Sampling does not overlap the teacher, which needs what is sampled, nor the student, whose weights it needs; with
 * --on-policy-ahead the samples of the next batch, from weights of one step before, do (train/ahead.h):
 *
 *     on_policy_ahead(&own, &t, &parallel, next);                  at the beginning of a step
 *     on_policy_ahead_elsewhere(&own, &t, &parallel, next);        when all of the step is queued */
#ifndef TRAIN_ON_POLICY_H
#define TRAIN_ON_POLICY_H

#include "adaptive_skew.h"
#include "ahead.h"
#include "parallel.h"
#include "rollout.h"
#include "trainer.h"

typedef enum { PROGRAMS_DATA, PROGRAMS_SAMPLED, PROGRAMS_REPLAYED } Programs;

typedef struct {
    const Settings *s;
    Ahead ahead;
    Rollout rollout;
    AdaptiveSkew skew;  // of distillm2
    Loader again;       // makes the images of an earlier batch again; its thread stands still
    Batch batch;        // the last own batch, with the images of a loader
    int *ids;           // [rows, T] its programs
    LoaderConfig config;  // of the training data
    int *gathered;      // [ranks, rows, T] the samples of all ranks, where they are kept
    int *drawn;         // [rows, T] this rank's samples that were drawn ahead
    int *counts;        // [rows of a micro-batch] their tokens
    /* of this step */
    Programs programs;
    int sampled, cut;  // samples on this rank; those of them that reached the limit
    double seconds;    // that sampling took
} OnPolicy;

/* ---- opening ---- */

/* Allocates what sampling needs, after trainer_plan, and the kept samples: t->replay. limit: the most tokens of a program. */
static void on_policy_plan(OnPolicy *o, Trainer *t, const Settings *s, const Teacher *teacher, int limit, int ranks) {
    const int rows = s->batch * s->accum;
    const Sampling sampling = {
        .temperature = (float)opt.on_policy_temperature, .top_p = 1, .seed = (uint64_t)opt.seed};
    *o = (OnPolicy){.s = s, .counts = xcalloc(s->batch, sizeof(int))};
    if (s->method == METHOD_DISTILLM2) skew_open(&o->skew, t->op, s->batch, s->batch * limit);
    if (s->on_policy <= 0) return;
    const int tokens = opt.on_policy_tokens && opt.on_policy_tokens < limit ? (int)opt.on_policy_tokens : limit;
    ahead_open(&o->ahead, t, s, teacher, s->batch);
    rollout_open(&o->rollout, ahead_model(&o->ahead, &t->student), rows, 1, tokens, sampling);
    rollout_limit_tokens(&o->rollout, teacher->model.tokenizer.count);
    replay_open(&t->replay, "replay", (int)opt.replay, rows * ranks, tokens);
    replay_open(&t->ahead, "ahead", o->ahead.on, rows * ranks, tokens);
    o->ids = xcalloc((size_t)rows * limit, sizeof(int));
    if (opt.replay || o->ahead.on) o->gathered = xcalloc((size_t)rows * ranks * tokens, sizeof(int));
    if (o->ahead.on) o->drawn = xcalloc((size_t)rows * tokens, sizeof(int));
}

/* --replay: opens the loader of earlier batches, which caches nothing. config: of the training data's. */
static void on_policy_open_loader(OnPolicy *o, const Dataset *data, LoaderConfig config) {
    Error err;
    o->config = config;
    if (!opt.replay) return;
    config.cache_bytes = 0;
    die_if(loader_start(&o->again, data, config, &err), &err);
    loader_halt(&o->again);
}

static void on_policy_close(OnPolicy *o, const Ops *op) {
    loader_stop(&o->again);
    rollout_close(&o->rollout);
    ahead_close(&o->ahead);
    skew_close(&o->skew, op);
    free(o->ids);
    free(o->gathered);
    free(o->drawn);
    free(o->counts);
    *o = (OnPolicy){0};
}

/* ---- a batch ---- */

/* Whether a batch is learned from the student's own samples. */
static bool on_policy_takes(const Settings *s, uint64_t number) {
    Random random;
    random_seed3(&random, (uint64_t)opt.seed, number, 0x6f776e);
    return random_uniform(&random) < s->on_policy;
}

/* Which of the kept batches is learned from in the place of batch `number`, counted from the oldest; -1: none. */
static int on_policy_draw(const Replay *replay, uint64_t number) {
    const int kept = replay_count(replay);
    Random random;
    random_seed3(&random, (uint64_t)opt.seed, number, 0x6b657074);
    return kept && random_uniform(&random) < 0.5 ? (int)random_below(&random, (uint64_t)kept) : -1;
}

/* Copies a program of up to n tokens, padded with -1, to row `row` of the own batch; returns its length. */
static int on_policy_set_row(OnPolicy *o, int row, const int *ids, int n) {
    int *to = o->ids + (size_t)row * o->batch.T, length = 0;
    for (int t = 0; t < o->batch.T; t++) to[t] = t < n ? ids[t] : -1;
    while (length < n && ids[length] >= 0) length++;
    return length;
}

/* Tokens of the longest program, rounded up as the loader does. */
static int on_policy_width(int longest, int limit) {
    return (longest + 7) / 8 * 8 < limit ? (longest + 7) / 8 * 8 : limit;
}

/* The rank that has a row of a batch. */
static int on_policy_owner(const LoaderConfig *c, int64_t number, int row) {
    LoaderConfig of = *c;
    for (of.rank = 0; !loader_owns_row(&of, (uint64_t)number, row);) of.rank++;
    return of.rank;
}

/* Keeps the samples [B, replay->T] of all ranks. */
static void on_policy_keep(OnPolicy *o, Replay *replay, Parallel *p, const int *ids, int B, int64_t number) {
    const size_t T = replay->T, mine = (size_t)B * T;
    const int ranks = p->comm.ranks;
    int *next = xcalloc(ranks, sizeof *next), *to = replay_add(replay, number);
    comm_gather_host(&p->comm, ids, mine * sizeof(int), o->gathered);
    for (int row = 0; row < replay->rows; row++) {
        const int owner = on_policy_owner(&o->config, number, row);
        memcpy(to + row * T, o->gathered + owner * mine + next[owner]++ * T, T * sizeof(int));
    }
    free(next);
}

/* Draws this rank's samples for the images of a batch: [B, max_new_tokens], padded with -1. */
static const int *on_policy_draw_samples(OnPolicy *o, const Batch *batch) {
    rollout_sample(&o->rollout, batch->pixels[0], batch->samples, batch->B, 1, (int64_t)batch->number);
    return o->rollout.ids;
}

/* This rank's samples for a batch that were drawn ahead, or NULL: there are none. */
static const int *on_policy_drawn(OnPolicy *o, const Replay *ahead, int64_t number) {
    const size_t T = ahead->T;
    if (!replay_count(ahead) || ahead->numbers[0] != number) return NULL;
    for (int row = 0, at = 0; row < ahead->rows; row++)
        if (loader_owns_row(&o->config, (uint64_t)number, row))
            memcpy(o->drawn + at++ * T, replay_batch(ahead, 0) + row * T, T * sizeof(int));
    return o->drawn;
}

/* Tokens of a sample of up to T. */
static int on_policy_length(const int *ids, int T) {
    int n = 0;
    while (n < T && ids[n] >= 0) n++;
    return n;
}

/* The student's samples for the images of a batch. A row without any, whose logits were not finite, keeps the data's program: its
 * loss then says so. */
static void on_policy_sample(OnPolicy *o, Trainer *t, Parallel *p, const Batch *batch) {
    const int T = o->rollout.max_new_tokens, *ids = on_policy_drawn(o, &t->ahead, (int64_t)batch->number);
    int longest = 0, tokens = 0;
    if (!ids) {
        ahead_refresh(&o->ahead, &t->student);
        ids = on_policy_draw_samples(o, batch);
    }
    for (int b = 0; b < batch->B; b++) {
        const int length = on_policy_length(ids + (size_t)b * T, T), needed = length ? length : batch->T;
        longest = needed > longest ? needed : longest;
    }
    o->batch = *batch;
    o->batch.ids = o->ids;
    o->batch.T = on_policy_width(longest, t->student.max_T);
    for (int b = 0; b < batch->B; b++) {
        const int *row = ids + (size_t)b * T, length = on_policy_length(row, T);
        tokens += length ? on_policy_set_row(o, b, row, length)
                         : on_policy_set_row(o, b, batch->ids + (size_t)b * batch->T, batch->T);
        o->cut += !length || !tokenizer_ends(&t->student.tokenizer, row[length - 1]);
    }
    o->sampled = batch->B;
    o->batch.tokens = (int)parallel_sum(p, tokens);
    if (t->replay.capacity) on_policy_keep(o, &t->replay, p, ids, batch->B, (int64_t)batch->number);
}

/* A kept batch again, in the place of `batch`. */
static void on_policy_replay(OnPolicy *o, const Trainer *t, size_t slot, const Batch *batch) {
    Error err;
    const Replay *replay = &t->replay;
    const int64_t number = replay->numbers[slot];
    const int T = replay->T, *ids = replay_batch(replay, slot);
    Batch *images = &o->again.ring[0];
    die_if(loader_make_batch(&o->again, images, (uint64_t)number, &err), &err);
    int longest = 0, at = 0;
    o->batch = *images;
    o->batch.number = batch->number;
    o->batch.ids = o->ids;
    o->batch.tokens = 0;
    for (int i = 0; i < replay->rows * T; i++) {
        o->batch.tokens += ids[i] >= 0;
        if (ids[i] >= 0 && i % T >= longest) longest = i % T + 1;
    }
    o->batch.T = on_policy_width(longest, t->student.max_T);
    for (int row = 0; row < replay->rows; row++)
        if (loader_owns_row(&o->again.config, (uint64_t)number, row))
            on_policy_set_row(o, at++, ids + (size_t)row * T, T);
}

/* The batch to learn from, in the place of the data's: that one, its images with own samples, or an earlier own batch. Valid
 * until the next call, as long as `batch` is. */
static const Batch *on_policy_batch(OnPolicy *o, Trainer *t, Parallel *p, const Batch *batch) {
    const double begin = seconds_now();
    o->programs = PROGRAMS_DATA;
    o->sampled = o->cut = 0;
    o->seconds = 0;
    if (!on_policy_takes(o->s, batch->number)) return batch;
    const int kept = on_policy_draw(&t->replay, batch->number);
    o->programs = kept < 0 ? PROGRAMS_SAMPLED : PROGRAMS_REPLAYED;
    if (kept < 0)
        on_policy_sample(o, t, p, batch);
    else
        on_policy_replay(o, t, replay_slot(&t->replay, kept), batch);
    if (kept < 0) o->seconds = seconds_now() - begin;
    return &o->batch;
}

/* ---- the next batch's samples ---- */

/* Draws the samples of the next batch, if it is one of own samples and no kept one. Returns the seconds. */
static double on_policy_draw_ahead(OnPolicy *o, Trainer *t, Parallel *p, const Batch *next) {
    const double begin = seconds_now();
    if (!on_policy_takes(o->s, next->number) || on_policy_draw(&t->replay, next->number) >= 0) return 0;
    on_policy_keep(o, &t->ahead, p, on_policy_draw_samples(o, next), next->B, (int64_t)next->number);
    return seconds_now() - begin;
}

/* At the beginning of a step, whose weights the next batch's samples come from: the student draws them, or is copied to where they are
 * drawn. In the last step of a run, too: it may be resumed. */
static void on_policy_ahead(OnPolicy *o, Trainer *t, Parallel *p, const Batch *next) {
    if (o->ahead.op)
        ahead_refresh(&o->ahead, &t->student);
    else
        o->seconds += on_policy_draw_ahead(o, t, p, next);
}

/* When the device has all of the step to do: draws them with the copy. Returns the seconds, in which the student's device was busy. */
static double on_policy_ahead_elsewhere(OnPolicy *o, Trainer *t, Parallel *p, const Batch *next) {
    return o->ahead.op ? on_policy_draw_ahead(o, t, p, next) : 0;
}

/* ---- what is learned from it ---- */

/* The objective of this step's batch. */
static ObjectiveConfig on_policy_objective(const OnPolicy *o, ObjectiveConfig c) {
    const bool own = o->programs != PROGRAMS_DATA;
    if (own) c.w_ce = 0;
    if (o->s->method != METHOD_DISTILLM2) return c;
    c.soft = own ? SOFT_SRKL : SOFT_SKL;
    c.w_soft *= (float)(own ? opt.own_weight : 2 - opt.own_weight);
    return c;
}

/* distillm2: gives each sequence of the student's last forward pass its skew. */
static void on_policy_skew(OnPolicy *o, Trainer *t, TeacherOutput *q, const MicroBatch *mb) {
    if (o->s->method != METHOD_DISTILLM2) return;
    for (int b = 0; b < mb->B; b++) {
        o->counts[b] = 0;
        for (int i = 0; i < mb->T; i++) o->counts[b] += mb->ids[(size_t)b * mb->T + i] >= 0;
    }
    skew_adapt(&o->skew, &t->objective, &t->student, q, o->counts, o->programs != PROGRAMS_DATA, opt.skew);
}

#endif
