/* The trainer: student, objective, optimizer and progress. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "../lib/progress.h"
#include "../lora.h"
#include "optimizer.h"
#include "replay.h"
#include "run.h"
#include "teacher.h"

typedef struct {
    const Ops *op;  // the student's device
    Model student;
    Objective objective;
    Optimizer optimizer;
    LearningRate lr;
    int64_t step, steps;        // optimizer steps done; their total
    int64_t saved;              // the step of the last checkpoint; -1: there is none
    int64_t samples;            // images seen
    int64_t batch;              // number of the next batch (one per step)
    int64_t images;             // images per step, over all ranks
    int64_t restored_images;    // the same in the resumed checkpoint; 0: a new run
    uint64_t data_fingerprint;  // of the training samples
    int64_t fitting;            // training samples that are not too long
    int64_t restored_warmup;    // images of the warm-up in the resumed checkpoint; -1: not known
    int64_t restored_total;     // images of the whole training as the resumed run had planned it; -1: not known
    double best;                // validation CE of the best student so far
    int64_t evals_since_best;
    Replay replay;  // of own samples (train/on_policy.h)
} Trainer;

/* The fraction of the training that is done, in [0, 1]. */
static double trainer_progress(const Trainer *t) { return (double)t->samples / (double)t->lr.total; }

/* Sets the learning-rate schedule over all images of the training, and says so where a resumed run had another. */
static void plan_learning_rate(Trainer *t, const Settings *s, bool verbose) {
    int64_t default_warmup = t->steps / 20 < 1000 ? t->steps / 20 : 1000;
    int64_t warmup = (opt.warmup >= 0 ? opt.warmup : default_warmup) * t->images;
    if (t->restored_warmup >= 0 && !s->recalled.new_warmup) warmup = t->restored_warmup;
    t->lr = (LearningRate){.kind = s->lr_schedule,
                           .base = opt.lr,
                           .final_share = opt.lr_final,
                           .warmup = warmup,
                           .total = t->samples + (t->steps - t->step) * t->images,
                           .gamma = opt.lr_gamma};
    LearningRate before = t->lr;
    before.total = t->restored_total;
    double rate = learning_rate(&t->lr, t->samples, t->images), old = learning_rate(&before, t->samples, t->images);
    if (verbose && t->restored_total >= 0 && rate != old && t->step < t->steps)
        progress_note(
            "the training now ends after %lld images, not %lld: the learning rate goes on at %.3g, not %.3g",
            (long long)t->lr.total, (long long)t->restored_total, rate, old);
}

/* ---- the student ---- */

/* Maps a parameter name of the student to one of a model of another depth: layers are taken at even spacing, the first for
 * the first and the last for the last (Sanh et al. 2019, "DistilBERT", take every other layer). */
static void name_in_source(char *out, size_t size, const char *name, const ModelConfig *c, const ModelConfig *from) {
    int l, at = 0, vision = !strncmp(name, "vision.", 7);
    int n = vision ? c->vision.layers : c->lm.layers, m = vision ? from->vision.layers : from->lm.layers;
    if (sscanf(name, vision ? "vision.%d.%n" : "lm.%d.%n", &l, &at) != 1 || !at) {
        snprintf(out, size, "%s", name);
        return;
    }
    int source = n > 1 ? (l * (m - 1) + (n - 1) / 2) / (n - 1) : 0;
    snprintf(out, size, "%s.%d.%s", vision ? "vision" : "lm", source, name + at);
}

/* --init: copies every tensor of another model whose mapped name and shape match one of the student's. */
static void student_init_from(Model *student, const char *path, bool verbose) {
    Error err;
    SafeTensors st;
    ModelConfig from;
    Tokenizer tokenizer;
    int taken = 0;
    die_if(safetensors_open(&st, path, &err) || config_load(&from, &st, &err) ||
               tokenizer_load(&tokenizer, &st, &err),
           &err);
    bool same_tokens = !tokenizer_same(&student->tokenizer, &tokenizer, &err);
    for (int i = 0; i < student->params.count; i++) {
        Param *p = &student->params.list[i], source = *p;
        if (!same_tokens && (p == student->embed_tokens || p == student->lm_head)) continue;
        name_in_source(source.name, sizeof source.name, p->name, &student->c, &from);
        StoredParam stored;
        if (param_find(&stored, &source, &st, &err)) continue;
        if (stored.scales) die("--init: %s has quantised weights; name the model that it was made of", path);
        param_copy_from(p, stored.values, student->op);
        taken++;
    }
    safetensors_close(&st);
    if (!taken && options_given(&opt.init))
        die("--init: no tensor of %s has the name and shape of one of the student's", path);
    if (verbose) progress_note("student: %d of %d tensors start from %s", taken, student->params.count, path);
}

/* The parameters that are trained: the student's, or its adapters'. */
static Params *trainer_params(Trainer *t) { return t->student.lora ? &t->student.lora->params : &t->student.params; }

/* Writes what is trained: the student, or with --lora its adapters. */
static int trainer_save_student(const Trainer *t, const char *path, Error *err) {
    return t->student.lora ? lora_save(&t->student, path, err) : model_save(&t->student, path, err);
}

/* Opens the student's file, or makes a new student with random or --init's weights. */
static void student_open(Trainer *t, const Settings *s, const RunFolder *folder, const Teacher *teacher,
                         bool verbose) {
    Error err;
    const char *path = opt.resume && !opt.lora ? folder->student : opt.student;
    if (opt.resume || opt.lora || file_exists(path)) {
        die_if(model_open_to_train(&t->student, t->op, path, "", &err), &err);
    } else {
        const char *tokenizer = opt.tokenizer                 ? opt.tokenizer
                                : strcmp(opt.teacher, "none") ? opt.teacher
                                                              : "dev/starter/tokenizer.safetensors";
        die_if(model_create(&t->student, t->op, path, tokenizer, (uint64_t)opt.seed, &err), &err);
        if (s->init) student_init_from(&t->student, s->init, verbose);
    }
    if (s->has_teacher && tokenizer_same(&t->student.tokenizer, &teacher->model.tokenizer, &err))
        die("teacher %s and student %s do not share a tokenizer: %s", opt.teacher, path, err.text);
    if (opt.lora) die_if(lora_create(&t->student, &s->lora, (uint64_t)opt.seed, &err), &err);
    model_train(&t->student, s->groups, s->recompute);
}

/* Opens the student on op. ranks: the data-parallel processes. */
static void trainer_open(Trainer *t, const Ops *op, const Settings *s, const RunFolder *folder,
                         const Teacher *teacher, int ranks, bool verbose) {
    *t = (Trainer){.op = op, .best = INFINITY, .saved = -1, .restored_warmup = -1, .restored_total = -1};
    t->images = (int64_t)s->batch * s->accum * ranks / s->group;
    student_open(t, s, folder, teacher, verbose);
}

/* ---- memory ---- */

/* Plans the objective, then the optimizer of everything that is trained (the student and the embedding loss's
 * projection), then the student's activations. rank is 0 .. ranks-1. */
static void trainer_plan(Trainer *t, const Settings *s, const Teacher *teacher, int max_tokens, int rank, int ranks) {
    Model *student = &t->student;
    const AdamW adamw = {(float)opt.beta1, (float)opt.beta2, 1e-8f, (float)opt.decay, (float)opt.clip};
    int tokens = model_image_tokens(student);
    if (s->has_teacher && s->objective.w_embed > 0 && model_image_tokens(&teacher->model) != tokens)
        die("--w-embed needs as many image tokens in the student (%d) as in the teacher (%d)", tokens,
            model_image_tokens(&teacher->model));
    objective_open(&t->objective, s->objective, student, teacher->head, (int)opt.chunk, s->batch * max_tokens,
                   s->batch, (uint64_t)opt.seed);
    Params *lists[2] = {trainer_params(t), &t->objective.map};
    int groups[2] = {student->lora ? GROUP_ALL : s->groups, GROUP_ALL};
    optimizer_open(&t->optimizer, t->op, adamw, lists, groups, 2, rank, ranks, opt.shard);
    model_plan(student, s->batch, max_tokens);
}

static void trainer_close(Trainer *t) {
    t->op->graph_free(&t->student);  // its graphs point into the optimizer's arrays
    objective_close(&t->objective);
    optimizer_close(&t->optimizer);
    replay_free(&t->replay);
    model_close(&t->student);
}

/* Before a pass over the micro-batch of this number: chooses what the adapters' dropout drops; -1, in an evaluation:
 * nothing. Every rank and every micro-batch of a run drops something else, and a resumed run the same. */
static void trainer_set_dropout(const Trainer *t, int64_t number) {
    uint64_t x = (uint64_t)opt.seed;
    x = random_splitmix(&x) ^ (uint64_t)t->optimizer.rank;
    x = random_splitmix(&x) ^ (uint64_t)number;
    lora_set_dropout(&t->student, number < 0 ? 0 : random_splitmix(&x) | 1);
}

/* FLOPs of training on B images: both forward passes and the student's backward pass, which costs half as much where the
 * weights are frozen and only adapters, which are not counted, get gradients. */
static double trainer_flops(const Trainer *t, const Settings *s, const Teacher *teacher, int B, int T) {
    const Model *m = &t->student;
    double forward = model_flops(m, B, T, m->n), encoder = vision_flops(&m->vision, B);
    double flops = forward + (m->lora ? 1 : 2) * (s->groups & GROUP_VISION ? forward : forward - encoder);
    return s->has_teacher ? flops + model_flops(&teacher->model, B, T, m->n) : flops;
}

#endif
