/* The teacher, behind one interface wherever it runs.
 *
 *     TeacherOutput q = teacher_get(&teacher, &mb);        // on the student's device
 *     ...
 *     teacher_prefetch(&teacher, &next);                   // its forward pass overlaps the student's backward pass
 *
 * On a CPU, teacher and student alternate. On a GPU the teacher has its own stream or its own GPU and runs one
 * micro-batch ahead, during the student's backward pass. Only its hidden states (d wide, not V wide) are copied to the
 * student's device, by a (peer) copy on a stream of their own. With --teacher-cache there is no model: the outputs are read
 * from a file. */
#ifndef TRAIN_TEACHER_H
#define TRAIN_TEACHER_H

#include "../loss.cuh"
#include "../model.h"
#include "layer_loss.h"
#include "teacher_cache.h"

/* One micro-batch in host memory: images, at both models' sizes, and token ids. */
typedef struct {
    const uint32_t *samples;                 // [B], of the training data
    const uint8_t *pixels, *teacher_pixels;  // [B, height, width, 3], each at its model's image size, or narrower
    int width, teacher_width;                // of these
    const int *ids;                          // [B, T], padded with -1
    int B, T;
    int64_t number;   // unique in the run; -1 in an evaluation: never prefetched
    LossScale scale;  // zeros: forward only
    const PolicyRow *policy;  // device [counted positions]: of --reinforce; else NULL
} MicroBatch;

typedef struct {
    const Ops *op;  // NULL: there is no model
    Model model;
    TeacherCache cache;               // of --teacher-cache
    const Ops *student_op, *copy_op;  // the student's device, and its stream for copies
    bool overlaps;                    // the teacher can compute while the student does
    bool staged;                      // its outputs are copied to the student's device or stream
    int64_t prefetched;               // number of the micro-batch whose forward pass has begun, or -1
    Arena arena;                      // on the student's device
    Weight head;                      // the teacher's head as the student reads it: staged_head, or in place
    void *staged_head;                // a copy of the head, or NULL where the memory is shared
    floatX *staged_hidden;            // [max positions, Wt]
    floatX *staged_tokens;            // [B, P, Wt]; NULL without an embedding loss
    LayerPairs pairs;                 // of the layer loss
    floatX *layers;                   // [pairs, n, Wt] its rows, on the student's device
} Teacher;

enum { STREAM_COPY = 2 };  // of the student's device; 0 computes, 1 has the objective's row kernels

/* Opens the teacher's model on op. */
static void teacher_open(Teacher *t, const Ops *op, const char *path) {
    Error err;
    *t = (Teacher){.op = op, .prefetched = -1};
    die_if(model_open_to_train(&t->model, op, path, "the teacher's ", &err), &err);
}

static void teacher_plan_staging(Teacher *t, int B, int max_tokens, bool image_tokens) {
    const Param *head = t->model.lm_head;
    size_t W = head->cols, n = (size_t)B * max_tokens;
    if (t->pairs.count) t->layers = arena_x(&t->arena, t->pairs.count * n * W);
    if (!t->staged) return;
    if (!ops_share_memory(t->op, t->student_op)) t->staged_head = arena_take(&t->arena, head->n, sizeof(floatX));
    t->staged_hidden = arena_x(&t->arena, n * W);
    if (image_tokens) t->staged_tokens = arena_x(&t->arena, (size_t)B * model_image_tokens(&t->model) * W);
}

/* Allocates the buffers for micro-batches of up to B images with up to max_tokens text tokens each, for a student on
 * student_op. image_tokens: stage the image tokens as well, for the embedding loss. pairs: of the layer loss. */
static void teacher_plan(Teacher *t, const Ops *student_op, int B, int max_tokens, bool image_tokens,
                         const LayerPairs *pairs) {
    if (t->cache.data) cache_plan(&t->cache, student_op, (size_t)B * max_tokens);
    if (t->cache.data && t->cache.h.kind == CACHE_DENSE) t->head.rows = (int)t->cache.h.vocab;  // chunks as long as with a teacher
    if (!t->op) return;
    t->student_op = student_op;
    t->copy_op = ops_stream(student_op, STREAM_COPY);
    t->overlaps = t->op != student_op && !t->op->host_memory;
    t->staged = t->op != student_op;
    t->pairs = *pairs;
    for (int i = 0; i < pairs->count; i++) t->model.layer[pairs->teacher[i] - 1].keeps_output = true;
    model_plan(&t->model, B, max_tokens);
    t->head = param_weight(t->model.lm_head);
    if (!t->staged && !pairs->count) return;
    teacher_plan_staging(t, B, max_tokens, image_tokens);
    arena_allocate(&t->arena, student_op, "the teacher's ", "outputs");
    teacher_plan_staging(t, B, max_tokens, image_tokens);
    t->op->sync();  // the head may have come through another stream
    if (!t->staged_head) return;
    student_op->copy_from(t->staged_head, t->op, t->head.data, t->model.lm_head->n * sizeof(floatX));
    t->head.data = t->staged_head;
}

/* The most text tokens of a sample that the teacher can have outputs for. */
static int teacher_max_text(const Teacher *t) {
    if (t->cache.data) return (int)t->cache.h.max_tokens;
    return t->op ? model_max_text(&t->model) : INT_MAX;
}

static void teacher_close(Teacher *t) {
    cache_close(&t->cache);
    if (!t->op) return;
    if (t->student_op) arena_release(&t->arena, t->student_op);
    model_close(&t->model);
    t->op = NULL;
}

static void teacher_forward(Teacher *t, const MicroBatch *mb) {
    model_forward_width(&t->model, mb->teacher_pixels, mb->teacher_width, mb->ids, mb->B, mb->T);
}

/* Brings the rows of the layer loss to the student's device, through the teacher's scratch memory where that is another
 * one, or another stream. */
static void teacher_stage_layers(Teacher *t) {
    Model *m = &t->model;
    const size_t n = (size_t)m->n * m->c.lm.hidden_size;
    for (int i = 0; i < t->pairs.count; i++) {
        floatX *to = t->layers + i * n, *rows = t->staged ? m->branch : to;
        t->op->gather_rows(rows, model_block_output(m, t->pairs.teacher[i] - 1), m->target_rows, m->n,
                           m->c.lm.hidden_size);
        if (t->staged) t->copy_op->copy_from(to, t->op, rows, n * sizeof(floatX));
    }
}

/* Copies the last forward pass's outputs to the student's device. The copy waits for the teacher, and for the student's
 * work so far, which may still be reading the previous outputs. */
static void teacher_stage(Teacher *t) {
    const Model *m = &t->model;
    size_t row = m->c.lm.hidden_size * sizeof(floatX);
    t->copy_op->wait_for(t->student_op);
    t->copy_op->copy_from(t->staged_hidden, t->op, m->hidden, m->n * row);
    if (t->staged_tokens)
        t->copy_op->copy_from(t->staged_tokens, t->op, m->vision.tokens, (size_t)m->B * model_image_tokens(m) * row);
    teacher_stage_layers(t);
}

/* Starts the teacher's forward pass for the next micro-batch, if both can run at the same time. NULL: nothing to prefetch.
 * With the student on the CPU the copy would block, so teacher_get makes it. */
static void teacher_prefetch(Teacher *t, const MicroBatch *next) {
    if (!t->op || !t->overlaps || !next) return;
    teacher_forward(t, next);
    if (!t->student_op->host_memory) teacher_stage(t);
    t->prefetched = next->number;
}

/* Returns the teacher's outputs for a micro-batch, prefetched, computed now, or from the cache, which has none for an
 * evaluation. */
static TeacherOutput teacher_get(Teacher *t, const MicroBatch *mb) {
    Error err;
    const Model *m = &t->model;
    TeacherOutput cached = {.policy = mb->policy};
    if (t->cache.data && mb->number >= 0) die_if(cache_get(&t->cache, &cached, mb->samples, mb->B, &err), &err);
    if (!t->op) return cached;
    bool ready = mb->number >= 0 && mb->number == t->prefetched;
    if (!ready) teacher_forward(t, mb);
    t->prefetched = -1;
    TeacherOutput live = {
        .hidden = m->hidden, .image_tokens = m->vision.tokens, .layers = t->layers, .policy = mb->policy};
    if (!t->staged) {
        teacher_stage_layers(t);
        return live;
    }
    if (!ready || t->student_op->host_memory) teacher_stage(t);
    t->student_op->wait_for(t->copy_op);
    live.hidden = t->staged_hidden, live.image_tokens = t->staged_tokens;
    return live;
}

#endif
