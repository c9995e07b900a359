/* Samples of the next batch, drawn while this one trains (--on-policy-ahead): they come from weights that are one step old.
 *
 *     ahead_refresh(&a, &t.student);         at the beginning of a step: the weights from which the next batch's samples come
 *     ahead_model(&a, &t.student)            the model that samples
 *
 * Where the teacher has a GPU of its own, a copy of the student is there, and draws the samples after the teacher's forward passes,
 * while the student's GPU is busy with the step: the host has queued all of it before, and waits only for the copy's tokens. Elsewhere
 * the student itself draws them before its step, from the same weights: the same samples, but nothing overlaps.
 *
 * The samples wait in t.ahead, which a checkpoint holds, since the weights that they came from are gone by then. */
#ifndef TRAIN_AHEAD_H
#define TRAIN_AHEAD_H

#include "trainer.h"

typedef struct {
    bool on;
    const Ops *op;  // the teacher's GPU, where the copy is; NULL: the student samples
    Model copy;
} Ahead;

/* Opens the copy, where there is to be one, for `images` images at a time. After trainer_plan. */
static void ahead_open(Ahead *a, const Trainer *t, const Settings *s, const Teacher *teacher, int images) {
    *a = (Ahead){.on = opt.on_policy_ahead};
    if (!a->on || t->op->host_memory || teacher->op->host_memory || ops_share_memory(teacher->op, t->op)) return;
    a->op = teacher->op;
    student_open(&a->copy, a->op, s, t->folder, teacher, false);
    model_plan(&a->copy, images, 1);
}

static void ahead_close(Ahead *a) {
    if (a->op) model_close(&a->copy);
    *a = (Ahead){0};
}

/* Copies the values of parameters to another device, where they were declared in the same order. */
static void ahead_copy(const Ahead *a, const Params *to, const Ops *from_op, const Params *from) {
    for (int i = 0; i < from->count; i++)
        a->op->copy_from(to->list[i].value, from_op, from->list[i].value, from->list[i].n * sizeof(floatX));
}

/* Brings the copy up to date. The student's next step waits until its weights have been read. */
static void ahead_refresh(const Ahead *a, const Model *student) {
    if (!a->op) return;
    ahead_copy(a, &a->copy.params, student->op, &student->params);
    if (student->lora) ahead_copy(a, &a->copy.lora->params, student->op, &student->lora->params);
}

/* The model that samples. */
static Model *ahead_model(Ahead *a, Model *student) { return a->op ? &a->copy : student; }

#endif
