/* Rewards of programs, from what TeX makes of them:
 *
 *   reward  -1 for a program that does not end or does not compile without errors, else the similarity of its drawing to
 *           the image that it was written for (metrics/similarity.h), at most 1
 *   gains   of its commands: after each ; the program so far is completed (lib/tex_close.h), drawn and compared, and a
 *           command's gain is the similarity after it less the one before it. Nothing drawn counts 0, what does not compile -1
 *
 * The rewards are those of DeTikZify's reinforcement from self-feedback, the gains those of IR4RL (arXiv 2609.34587).
 *
 *   rewards_open(&w, &options, &err)                      finds TeX, starts the threads that run it
 *   rewards_compute(&w, targets, programs, n, &err)       fills programs[i].reward, .commands, ...
 *
 * All programs of a call are drawn by all threads, in the box, each different one once (generate/judge.h). A reward depends
 * on the program and the image alone, not on the threads or on how busy the machine is: what ends a program is processor time. */
#ifndef TRAIN_REWARD_H
#define TRAIN_REWARD_H

#include "../generate/judge.h"
#include "../lib/tex_close.h"

/* The limit on wall time is there for a TeX that waits; a machine so busy that it strikes another one first has stopped. */
static const SandboxLimits reward_limits = {10, 600, (size_t)1 << 30, 64 << 20, 128 << 20, 500, 64};

/* An image that programs are written for. */
typedef struct {
    uint8_t *pixels;  // [height, width, 3] as the model sees it
    ImageExtent extent;  // of what was cut out of the image, as for judge_set_size
    char *text;       // the program that the data has for it; NULL: none is known
    size_t bytes;
    Judged *judged;
} RewardTarget;

/* One command of a program. */
typedef struct {
    size_t end;  // bytes of the program up to its ;
    double gain;
    Judged *judged;
} RewardedCommand;

typedef struct {
    char *text;
    size_t bytes;
    bool ended;  // the program has its end token
    int target;  // its image; programs of one image follow each other
    double reward;
    bool compiles, exact;  // exact: it draws what the data's program draws, pixel by pixel
    RewardedCommand *commands;
    int count;  // of the commands; 0 where their gains are not wanted
    Judged *judged;
} RewardedProgram;

/* What a drawing is worth for the present image. */
typedef struct {
    uint64_t pixels_hash;
    double similarity;
} RewardSeen;

typedef struct {
    Judge judge;
    bool gains;        // of commands
    RewardSeen *seen;  // drawings that were compared with the present image
    int seen_count, seen_capacity;
} Rewards;

/* model: whose encoder compares drawings, planned for one image at least; its image size counts for all similarities. threads
 * run TeX. Fails where TeX is not installed. */
static inline int rewards_open(Rewards *w, Model *model, Similarity similarity, bool gains, int threads,
                               const char *cache, Error *err) {
    *w = (Rewards){.gains = gains};
    const RenderTask task = strcmp(model->tokenizer.task, "formula") ? RENDER_TIKZ : RENDER_FORMULA;
    return judge_open(&w->judge,
                      &(JudgeOptions){.task = task,
                                      .threads = threads,
                                      .cache = cache,
                                      .similarity = similarity,
                                      .finishes = true,
                                      .limits = reward_limits,
                                      .model = model},
                      err);
}

static inline void rewards_close(Rewards *w) {
    judge_close(&w->judge);
    free(w->seen);
}

static inline void rewarded_program_free(RewardedProgram *p) {
    free(p->text);
    free(p->commands);
    *p = (RewardedProgram){0};
}

/* ---- commands ---- */

/* Finds the commands of a program: the statements of its figures that end with a ;, in the body of a \foreach too. */
static inline void reward_find_commands(RewardedProgram *p) {
    TexWalk w;
    TexToken t;
    int capacity = 0;
    tex_walk_begin(&w, p->text, p->bytes);
    while ((t = tex_walk_next(&w)).kind != TEX_END_OF_TEXT) {
        if (t.kind != TEX_SEMICOLON || !tex_complete_figure(&w, t)) continue;
        if (p->count == capacity) {
            capacity = 2 * capacity + 8;
            p->commands = xrealloc(p->commands, (size_t)capacity * sizeof *p->commands);
        }
        p->commands[p->count++] = (RewardedCommand){.end = t.end};
    }
    tex_walk_end(&w);
}

/* Queues the program up to each of its commands. */
static inline void reward_submit_commands(Rewards *w, RewardedProgram *p) {
    reward_find_commands(p);
    for (int k = 0; k < p->count; k++) {
        size_t n;
        char *prefix = tex_close(w->judge.o.task, p->text, p->commands[k].end, &n);
        p->commands[k].judged = judge_submit(&w->judge, prefix, n);
        free(prefix);
    }
}

/* ---- scores ---- */

static inline int reward_wait(Rewards *w, Judged *p, Error *err) { return judge_wait(&w->judge, p, 0, err) ? -1 : 0; }

/* What a finished program is worth for the present image; NULL: it does not compile. Valid until the next call. */
static inline const RewardSeen *reward_of(Rewards *w, const Judged *p) {
    Judge *j = &w->judge;
    if (!p->drawn || !p->clean) return NULL;
    for (int i = 0; i < w->seen_count; i++)
        if (w->seen[i].pixels_hash == p->pixels_hash) return &w->seen[i];
    if (w->seen_count == w->seen_capacity) {
        w->seen_capacity = 2 * w->seen_capacity + 16;
        w->seen = xrealloc(w->seen, (size_t)w->seen_capacity * sizeof *w->seen);
    }
    const double similarity = judge_compare(j, p);
    w->seen[w->seen_count] = (RewardSeen){p->pixels_hash, isfinite(similarity) ? similarity : -1};
    return &w->seen[w->seen_count++];
}

static inline int reward_score(Rewards *w, const RewardTarget *target, RewardedProgram *p, Error *err) {
    double before = 0;
    p->reward = -1;
    if (!p->judged) return 0;
    if (reward_wait(w, p->judged, err) || (target->text && reward_wait(w, target->judged, err))) return -1;
    const RewardSeen *seen = reward_of(w, p->judged);
    if (seen) p->reward = seen->similarity, p->compiles = true;
    p->exact = seen && target->text && target->judged->drawn && target->judged->pixels_hash == p->judged->pixels_hash;
    for (int k = 0; k < p->count; k++) {
        if (reward_wait(w, p->commands[k].judged, err)) return -1;
        seen = reward_of(w, p->commands[k].judged);
        const double after = seen ? seen->similarity : p->commands[k].judged->blank ? 0 : -1;
        p->commands[k].gain = after - before;
        before = after;
    }
    return 0;
}

/* Rewards n programs. Waits for TeX, and uses the model on the calling thread. -1 with *err filled: no verdict was possible, for
 * example because the disk is full. */
static inline int rewards_compute(Rewards *w, RewardTarget *targets, RewardedProgram *programs, int n, Error *err) {
    if (n) judge_begin(&w->judge, targets[programs[0].target].pixels, targets[programs[0].target].extent);
    for (int i = 0; i < n; i++) {
        RewardedProgram *p = &programs[i];
        RewardTarget *target = &targets[p->target];
        judge_set_size(&w->judge, target->extent);
        if (target->text) target->judged = judge_submit(&w->judge, target->text, target->bytes);
        if (!p->ended) continue;
        p->judged = judge_submit(&w->judge, p->text, p->bytes);
        if (w->gains) reward_submit_commands(w, p);
    }
    for (int i = 0; i < n; i++) {
        RewardedProgram *p = &programs[i];
        if (i == 0 || p->target != programs[i - 1].target) {
            judge_set_input(&w->judge, targets[p->target].pixels);
            w->seen_count = 0;
        }
        if (reward_score(w, &targets[p->target], p, err)) return -1;
    }
    return 0;
}

#endif
