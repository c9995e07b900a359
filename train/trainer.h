/* The trainer: student, objective, optimizer and progress. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "../flops.h"
#include "../lib/progress.h"
#include "../lora.h"
#include "init.h"
#include "optimizer.h"
#include "replay.h"
#include "run.h"
#include "teacher.h"

typedef struct {
    const Ops *op;  // the student's device
    const RunFolder *folder;
    Model student;
    Objective objective;
    LayerLoss layers;  // beside the objective
    LayerPairs pairs;  // of the layer loss; none: it is off
    Optimizer optimizer;
    LearningRate lr;
    int64_t step, steps;        // optimizer steps done; their total
    int64_t saved;              // the step of the last checkpoint; -1: there is none
    int64_t samples;            // images seen
    int64_t batch;              // number of the next batch (one per step)
    int64_t images;             // images per step, over all ranks
    int64_t restored_images;    // the same in the resumed checkpoint; 0: a new run
    uint64_t data_fingerprint;  // of the training samples
    uint64_t val_fingerprint;   // of the samples that the best was found on; 0: none
    int64_t fitting;            // training samples that are not too long
    int64_t restored_warmup;    // images of the warm-up in the resumed checkpoint; -1: not known
    int64_t restored_total;     // images of the whole training as the resumed run had planned it; -1: not known
    double best;                // validation CE of the best student so far
    int64_t evals_since_best;
    Replay replay;  // of own samples (train/on_policy.h)
    Replay ahead;   // --on-policy-ahead: the samples of the next batch
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

/* The parameters that are trained: the student's, or its adapters'. */
static Params *trainer_params(Trainer *t) { return t->student.lora ? &t->student.lora->params : &t->student.params; }

/* Writes what is trained: the student, or with --lora its adapters. */
static int trainer_save_student(const Trainer *t, const char *path, Error *err) {
    return t->student.lora ? lora_save(&t->student, path, err) : model_save(&t->student, path, err);
}

/* Opens the student's file on a device, or makes a new student with random or --init's weights. */
static void student_open(Model *m, const Ops *op, const Settings *s, const RunFolder *folder, const Teacher *teacher,
                         bool verbose) {
    Error err;
    const char *path = opt.resume && !opt.lora ? folder->student : opt.student;
    if (opt.resume || opt.lora || file_exists(path)) {
        die_if(model_open_to_train(m, op, path, "", &err), &err);
    } else {
        const char *tokenizer = opt.tokenizer                 ? opt.tokenizer
                                : strcmp(opt.teacher, "none") ? opt.teacher
                                                              : shipped_file("dev/starter/tokenizer.safetensors");
        die_if(model_create(m, op, path, tokenizer, (uint64_t)opt.seed, &err), &err);
        if (s->init.path) {
            InitConfig init = s->init;
            init.verbose = verbose;
            init_student(m, &init);
        }
    }
    if (s->has_teacher && tokenizer_same(&m->tokenizer, &teacher->model.tokenizer, &err))
        die("teacher %s and student %s do not share a tokenizer: %s", opt.teacher, path, err.text);
    if (opt.lora) die_if(lora_create(m, &s->lora, (uint64_t)opt.seed, &err), &err);
}

/* Opens the student on op. ranks: the data-parallel processes. */
static void trainer_open(Trainer *t, const Ops *op, const Settings *s, const RunFolder *folder,
                         const Teacher *teacher, int ranks, bool verbose) {
    Error err;
    *t = (Trainer){.op = op, .folder = folder, .best = INFINITY, .saved = -1, .restored_warmup = -1, .restored_total = -1};
    t->images = (int64_t)s->batch * s->accum * ranks / s->group;
    student_open(&t->student, op, s, folder, teacher, verbose);
    model_train(&t->student, s->groups, s->recompute);
    if (s->objective.w_layer <= 0) return;
    t->pairs = s->layer_pairs;
    if (layer_pairs_resolve(&t->pairs, t->student.c.lm.layers, teacher->model.c.lm.layers, &err))
        die("--layer-pairs: %s", err.text);
}

/* --group-by-width: what the width of images must be a multiple of, for both models to join patches into tokens. Refuses models
 * whose images cannot become narrower. teacher: NULL where there is none. */
static int trainer_width_step(const Trainer *t, const Model *teacher) {
    const VisionConfig *student = &t->student.c.vision;
    const VisionConfig *models[2] = {student, teacher ? &teacher->c.vision : student};
    int step = 1;
    for (int i = 0; i < 2; i++) {
        const int block = models[i]->patch_size * connector_block(models[i]).w;
        if (!models[i]->letter)
            die("--group-by-width is for models whose images begin at the left edge, those with vision.letter; the %s has "
                "none",
                i ? "teacher" : "student");
        if (!image_size_same(vision_size(models[i]), vision_size(student)))
            die("--group-by-width needs a teacher with images as large as the student's, %d x %d pixels with letters "
                "of %d; its own have %d x %d with letters of %d",
                student->image_height, student->image_width, student->letter, models[i]->image_height,
                models[i]->image_width, models[i]->letter);
        const int before = step;
        while (step % block) step += before;  // the least common multiple
    }
    if (student->image_width % step)
        die("--group-by-width makes images multiples of %d pixels wide, for patches to be joined into tokens, and "
            "the models' have %d",
            step, student->image_width);
    return step;
}

/* ---- memory ---- */

/* Plans the objective, then the optimizer of everything that is trained (the student and the projections of the embedding
 * loss and of the layer loss), then the student's activations. rank is 0 .. ranks-1. */
static void trainer_plan(Trainer *t, const Settings *s, const Teacher *teacher, int max_tokens, int rank, int ranks) {
    Model *student = &t->student;
    const AdamW adamw = {(float)opt.beta1, (float)opt.beta2, 1e-8f, (float)opt.decay, (float)opt.clip};
    int tokens = model_image_tokens(student);
    if (s->has_teacher && s->objective.w_embed > 0 && model_image_tokens(&teacher->model) != tokens)
        die("--w-embed needs as many image tokens in the student (%d) as in the teacher (%d)", tokens,
            model_image_tokens(&teacher->model));
    if (s->has_teacher && s->objective.w_embed > 0 && !connector_same_places(&student->c.vision, &teacher->model.c.vision))
        die("--w-embed compares image tokens of the same place, but the connectors of student and teacher join other patches");
    objective_open(&t->objective, s->objective, student, teacher->head, (int)opt.chunk, s->batch * max_tokens,
                   s->batch, (uint64_t)opt.seed);
    layer_loss_open(&t->layers, s->layer_loss, s->objective.w_layer, &t->pairs, student, teacher->head.cols, s->batch,
                    max_tokens, (uint64_t)opt.seed);
    Params *lists[3] = {trainer_params(t), &t->objective.map, &t->layers.maps};
    int groups[3] = {student->lora ? GROUP_ALL : s->groups, GROUP_ALL, GROUP_ALL};
    optimizer_open(&t->optimizer, t->op, adamw, lists, groups, 3, rank, ranks, opt.shard);
    model_plan(student, s->batch, max_tokens);
}

static void trainer_close(Trainer *t) {
    t->op->graph_free(&t->student);  // its graphs point into the optimizer's arrays
    objective_close(&t->objective);
    layer_loss_close(&t->layers);
    optimizer_close(&t->optimizer);
    replay_free(&t->replay);
    replay_free(&t->ahead);
    model_close(&t->student);
}

/* The sums over all passes since the last call. Waits for the device. */
static ObjectiveSums trainer_collect(Trainer *t) {
    ObjectiveSums sums = objective_collect(&t->objective);
    layer_loss_collect(&t->layers, &sums);
    return sums;
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
