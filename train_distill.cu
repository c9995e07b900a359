/* train_distill: trains a small image-to-code model, alone (--teacher none) or from a large one.
 *
 *   load teacher, student, data
 *   for each batch:  teacher forward, student forward, loss, backward   (per micro-batch)
 *                    gradient norm, AdamW
 *   now and then:    evaluate, save
 *
 * The formulas are in loss.cuh, the models in model.h and vision.h, the data in dataloader.h. */
#include "dataloader.h"
#include "lib/json.h"
#include "lib/machine.h"
#include "lib/options.h"
#include "lib/progress.h"
#include "lib/state.h"
#include "lib/threads.h"
#include "loss.cuh"
#include "model.h"

#include <limits.h>
#include <signal.h>

/* ---------------------------------------------------------------------------------------------------------------
 * Options */

static struct {
    const char *teacher = "dev/starter/teacher.safetensors", *student = "base,lm.layers=2", *tokenizer = NULL;
    const char *init = "teacher", *train = "vision,connector,lm";
    const char *data = "dev/starter/train.bin", *val_data = "dev/starter/val.bin", *out = "out";
    const char *device = "auto", *teacher_device = NULL, *student_device = NULL;
    int64_t steps = 0, epochs = 8, batch = 32, accum = 1, seed = 1, warmup = -1, max_tokens = 0;
    int64_t eval_every = 0, eval_batches = 0, patience = 0, chunk = 0, cache = 512, threads = 0;
    const char *schedule = "cosine", *loss = "kl", *kd_schedule = "anneal";
    double lr = 1e-3, lr_final = 0.05, lr_gamma = 0.1, decay = 0.05, beta1 = 0.9, beta2 = 0.98, clip = 1;
    double temperature = 4, alpha = NAN, w_ce = 0.2, w_soft = 0.8, w_hard = 0, w_embed = 0, beta = 0.5;
    double entropy_low = 0, entropy_high = 1e9, sure = 2, sure_factor = 0.3;
    bool resume = false, overwrite = false, recompute = false, augment = false;
} opt;

#define HEADING(text) \
    { NULL, 0, OPT_FLAG, NULL, NULL, text, 0, 0 }
static const Option table[] = {
    HEADING("models"),
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE", "model to learn from, or none", 0, 0},
    {"student", 0, OPT_STRING, &opt.student, "FILE|SHAPE",
     "model to train: a file, or a shape (tiny, small, base, tl-1.1b; small,lm.layers=4 changes a key) drawn at "
     "random",
     0, 0},
    {"tokenizer", 0, OPT_STRING, &opt.tokenizer, "FILE",
     "file with the tokenizer of a new student (default: the teacher, else dev/starter/tokenizer.safetensors)", 0, 0},
    {"init", 0, OPT_STRING, &opt.init, "FILE|teacher",
     "start a new student from this model wherever names and shapes agree, its layers taken evenly; none: at random",
     0, 0},
    {"train", 0, OPT_STRING, &opt.train, "PARTS", "parts to train; the others stay frozen", 0, 0},
    HEADING("data"),
    {"data", 0, OPT_STRING, &opt.data, "FILE|GLOB", "training data", 0, 0},
    {"val-data", 0, OPT_STRING, &opt.val_data, "FILE", "validation data, or none", 0, 0},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "leave out samples with more text tokens than this; 0: as many as the models take", 0, 1e9},
    {"augment", 0, OPT_FLAG, &opt.augment, NULL, "vary brightness, contrast, noise and sharpness of the pictures", 0,
     0},
    {"cache", 0, OPT_INT, &opt.cache, "MB", "memory for decoded pictures", 0, 1e9},
    HEADING("training"),
    {"out", 'o', OPT_STRING, &opt.out, "DIR", "folder for the student, checkpoints and the log", 0, 0},
    {"resume", 0, OPT_FLAG, &opt.resume, NULL, "go on from the checkpoint in --out, with the options of that run", 0,
     0},
    {"overwrite", 0, OPT_FLAG, &opt.overwrite, NULL, "start anew although --out holds a trained student", 0, 0},
    {"steps", 0, OPT_INT, &opt.steps, "N", "optimizer steps; 0: as --epochs says", 0, 2e9},
    {"epochs", 0, OPT_INT, &opt.epochs, "N", "passes over the data", 1, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "pictures in a micro-batch", 1, 65536},
    {"accum", 0, OPT_INT, &opt.accum, "N", "micro-batches in an optimizer step", 1, 65536},
    {"lr", 0, OPT_FLOAT, &opt.lr, "X", "peak learning rate", 0, 10},
    {"lr-schedule", 0, OPT_STRING, &opt.schedule, "NAME", "cosine, linear, constant or multistep", 0, 0},
    {"lr-final", 0, OPT_FLOAT, &opt.lr_final, "X", "share of --lr at the end (cosine, linear)", 0, 1},
    {"lr-gamma", 0, OPT_FLOAT, &opt.lr_gamma, "X", "factor at 50, 75 and 90 % of the steps (multistep)", 0, 1},
    {"warmup", 0, OPT_INT, &opt.warmup, "N", "steps of linear warm-up; -1: 5 % of the steps, at most 1000", -1, 1e12},
    {"decay", 0, OPT_FLOAT, &opt.decay, "X", "AdamW's weight decay, on matrices only", 0, 10},
    {"beta1", 0, OPT_FLOAT, &opt.beta1, "X", "AdamW's first moment", 0, 0.9999999},
    {"beta2", 0, OPT_FLOAT, &opt.beta2, "X", "AdamW's second moment", 0, 0.9999999},
    {"clip", 0, OPT_FLOAT, &opt.clip, "X", "largest gradient norm; 0: not clipped", 0, 1e9},
    {"eval-every", 0, OPT_INT, &opt.eval_every, "N", "steps between evaluations; 0: ten in the run", 0, 1e12},
    {"eval-batches", 0, OPT_INT, &opt.eval_batches, "N", "validation batches; 0: all", 0, 1e9},
    {"patience", 0, OPT_INT, &opt.patience, "N", "stop after N evaluations without a better one; 0: never", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "of random weights and of the order of the data", 0, 1e15},
    HEADING("objective"),
    {"alpha", 'a', OPT_FLOAT, &opt.alpha, "A", "short for --w-soft A --w-ce 1-A", 0, 1},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "softens both distributions in the soft term", 0.01, 1000},
    {"soft-loss", 0, OPT_STRING, &opt.loss, "NAME", "kl, reverse-kl or jsd", 0, 0},
    {"jsd-beta", 0, OPT_FLOAT, &opt.beta, "X", "the teacher's share in JSD's mixture", 0.001, 0.999},
    {"w-ce", 0, OPT_FLOAT, &opt.w_ce, "X", "weight of the cross entropy with the text", 0, 1e6},
    {"w-soft", 0, OPT_FLOAT, &opt.w_soft, "X", "weight of the divergence from the teacher", 0, 1e6},
    {"w-hard", 0, OPT_FLOAT, &opt.w_hard, "X", "weight of the cross entropy with the teacher's best token", 0, 1e6},
    {"w-embed", 0, OPT_FLOAT, &opt.w_embed, "X", "weight of 1 - cosine of the image tokens", 0, 1e6},
    {"kd-schedule", 0, OPT_STRING, &opt.kd_schedule, "NAME",
     "none; anneal: the temperature falls to 1 in 80 % of the steps; image2tikz: temperature, weights and band move",
     0, 0},
    {"entropy-low", 0, OPT_FLOAT, &opt.entropy_low, "X", "distil only above this teacher entropy, nats", 0, 1e9},
    {"entropy-high", 0, OPT_FLOAT, &opt.entropy_high, "X", "distil only below this teacher entropy, nats", 0, 1e9},
    {"sure", 0, OPT_FLOAT, &opt.sure, "P",
     "scale the distillation where the teacher is right with at least this probability; above 1: never", 0, 2},
    {"sure-factor", 0, OPT_FLOAT, &opt.sure_factor, "X", "the factor for --sure", 0, 1},
    {"chunk", 0, OPT_INT, &opt.chunk, "N", "positions whose logits exist at a time; 0: 4096", 0, 1e9},
    HEADING("machine"),
    {"device", 0, OPT_STRING, &opt.device, "NAME",
     "where both models run: cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers", 0, 0},
    {"teacher-device", 0, OPT_STRING, &opt.teacher_device, "NAME", "where the teacher runs, if elsewhere", 0, 0},
    {"student-device", 0, OPT_STRING, &opt.student_device, "NAME", "where the student runs, if elsewhere", 0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"recompute", 0, OPT_FLAG, &opt.recompute, NULL, "keep one activation a block and compute the others twice", 0,
     0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* ---------------------------------------------------------------------------------------------------------------
 * The run */

typedef struct {
    const Ops *op, *teacher_op;  // the student's device, the teacher's
    Model student, teacher;
    bool has_teacher, has_val;
    int teacher_pixels;  // which of a batch's pictures the teacher looks at: 1 when it wants another size
    int parts;           // of the student that are trained
    Dataset data, val;
    Loader loader;
    int text;                // most text tokens of a sample
    ObjectiveConfig config;  // as given; the schedule moves objective.config
    KdSchedule schedule;     // how it moves
    Objective objective;
    Optimizer optimizer;
    LearningRate lr;
    int64_t steps, step, steps_per_epoch;
    double best;    // validation CE of the best checkpoint
    int64_t worse;  // evaluations since
    double peak;    // measured product rate of the device, or of both, FLOP/s
    FILE *log;
    char *student_path, *best_path, *state_path, *log_path, *options_path;
} Run;

static volatile sig_atomic_t interrupted = 0;

static void on_interrupt(int signal_number) {
    interrupted = 1;
    signal(signal_number, SIG_DFL);  // a second Ctrl-C stops at once
}

static void check(int failed, const Error *err) {
    if (failed) die("%s", err->text);
}

/* The place of an option's value among names; a wrong one is a usage mistake. */
static int choice(const char *option, const char *text, const char *const *names, int count) {
    int i = name_index(text, names, count);
    if (i >= 0) return i;
    char list[200] = "";
    for (int k = 0; k < count; k++) {
        strcat(list, k ? ", " : "");
        strcat(list, names[k]);
    }
    options_die("--%s is '%s'; expected one of %s", option, text, list);
}

static int parse_parts(const char *text) {
    static const char *const names[] = {"vision", "connector", "lm"};
    int parts = 0;
    char copy[64], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *name = strtok_r(copy, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        parts |= 1 << choice("train", name, names, 3);
    if (!parts) options_die("--train names no part; expected vision, connector, lm or several with commas");
    return parts;
}

static ObjectiveConfig parse_objective(void) {
    static const char *const losses[] = {"kl", "reverse-kl", "jsd"};
    ObjectiveConfig c;
    memset(&c, 0, sizeof c);
    if (!isnan(opt.alpha)) {
        opt.w_soft = opt.alpha;
        opt.w_ce = 1 - opt.alpha;
        opt.alpha = NAN;  // what is recorded for --resume are the two weights
    }
    bool alone = !strcmp(opt.teacher, "none");
    if (alone && !options_given(&opt.w_ce)) opt.w_ce = 1;
    if (alone) opt.w_soft = opt.w_hard = opt.w_embed = 0;
    if (opt.w_ce <= 0 && (alone || (opt.w_soft <= 0 && opt.w_hard <= 0 && opt.w_embed <= 0)))
        options_die("every term of the objective has weight 0%s; there is nothing to learn",
                    alone ? " without a teacher" : "");
    c.w_ce = (float)opt.w_ce;
    c.w_soft = (float)opt.w_soft;
    c.w_hard = (float)opt.w_hard;
    c.w_embed = (float)opt.w_embed;
    c.temperature = (float)opt.temperature;
    c.soft = (SoftLoss)choice("soft-loss", opt.loss, losses, 3);
    c.jsd_beta = (float)opt.beta;
    c.band_low = (float)opt.entropy_low;
    c.band_high = opt.entropy_high >= 1e9 ? INFINITY : (float)opt.entropy_high;
    c.sure_confidence = (float)opt.sure;
    c.sure_factor = (float)opt.sure_factor;
    return c;
}

/* The name in a model of `from` layers of what the student calls `name`: layer l of n stands for the layer at the
 * same share of the depth, first for first and last for last (Sanh et al. 2019, "DistilBERT", take every other
 * layer). */
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

/* --init: copies every tensor of another model that has its place in the student. */
static void start_from(Run *r, const char *path) {
    Error err;
    SafeTensors st;
    ModelConfig from;
    int taken = 0;
    Tokenizer tokenizer;
    check(safetensors_open(&st, path, &err) || config_load(&from, &st, &err) || tokenizer_load(&tokenizer, &st, &err),
          &err);
    bool same_tokens = !tokenizer_same(&r->student.tokenizer, &tokenizer, &err);
    Params *params = &r->student.params;
    for (int i = 0; i < params->count; i++) {
        Param source = params->list[i], *p = &params->list[i];
        if (!same_tokens && (p == r->student.embed || p == r->student.head)) continue;
        name_in_source(source.name, sizeof source.name, p->name, &r->student.c, &from);
        const SafeTensor *t = param_find(&source, &st, &err);
        if (!t) continue;
        param_copy_from(p, t, r->op);
        taken++;
    }
    safetensors_close(&st);
    if (!taken && options_given(&opt.init))
        die("--init: no tensor of %s has the name and shape of one of the student's", path);
    progress_note("student: %d of %d tensors start from %s", taken, params->count, path);
}

static void open_models(Run *r) {
    Error err;
    r->has_teacher = strcmp(opt.teacher, "none") != 0;
    if (r->has_teacher) check(model_open(&r->teacher, r->teacher_op, opt.teacher, &err), &err);
    const char *student = opt.resume ? r->student_path : opt.student;
    if (opt.resume || file_exists(student)) {
        check(model_open(&r->student, r->op, student, &err), &err);
    } else {
        const char *tokenizer = opt.tokenizer    ? opt.tokenizer
                                : r->has_teacher ? opt.teacher
                                                 : "dev/starter/tokenizer.safetensors";
        check(model_create(&r->student, r->op, student, tokenizer, (uint64_t)opt.seed, &err), &err);
        if (strcmp(opt.init, "none")) start_from(r, strcmp(opt.init, "teacher") ? opt.init : opt.teacher);
    }
    if (r->has_teacher && tokenizer_same(&r->student.tokenizer, &r->teacher.tokenizer, &err))
        die("teacher %s and student %s do not share a tokenizer: %s", opt.teacher, student, err.text);
    r->teacher_pixels = r->has_teacher && r->teacher.c.vision.image_size != r->student.c.vision.image_size;
    model_train(&r->student, r->parts, opt.recompute);
}

static void open_dataset(const Run *r, Dataset *d, const char *pattern) {
    Error err;
    check(dataset_open(d, pattern, &err), &err);
    if (d->fingerprint != r->student.tokenizer.fingerprint)
        die("%s was made with another tokenizer (fingerprint %016llx) than the student's (%016llx); convert the data "
            "again with the student's tokenizer",
            pattern, (unsigned long long)d->fingerprint, (unsigned long long)r->student.tokenizer.fingerprint);
}

static LoaderConfig loader_config(const Run *r, int batch, bool shuffle) {
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch = batch;
    c.sizes[0] = r->student.c.vision.image_size;
    c.sizes[1] = r->has_teacher ? r->teacher.c.vision.image_size : c.sizes[0];
    c.size_count = c.sizes[1] == c.sizes[0] ? 1 : 2;
    c.max_tokens = r->text;
    c.vocab = r->student.tokenizer.count;
    if (r->has_teacher && r->teacher.c.lm.vocab < c.vocab) c.vocab = r->teacher.c.lm.vocab;
    c.seed = (uint64_t)opt.seed;
    c.shuffle = shuffle;
    c.drop_last = shuffle;
    c.cache_bytes = shuffle ? (size_t)opt.cache << 20 : 0;  // an evaluation looks at each picture once
    c.augment = shuffle && opt.augment;
    return c;
}

/* Opens the data and works out how long a text and the run may be. */
static void open_data(Run *r) {
    open_dataset(r, &r->data, opt.data);
    r->has_val = opt.val_data && strcmp(opt.val_data, "none");
    if (r->has_val) open_dataset(r, &r->val, opt.val_data);
    int longest = (int)(r->has_val && r->val.longest > r->data.longest ? r->val.longest : r->data.longest);
    int room = model_text_room(&r->student);
    if (r->has_teacher && model_text_room(&r->teacher) < room) room = model_text_room(&r->teacher);
    if (opt.max_tokens && opt.max_tokens < room) room = (int)opt.max_tokens;
    r->text = (longest + 7) / 8 * 8;
    if (r->text > room) r->text = room;
}

static void start_loader(Run *r) {
    Error err;
    LoaderConfig c = loader_config(r, (int)(opt.batch * opt.accum), true);
    c.first_batch = (uint64_t)r->step;
    check(loader_start(&r->loader, &r->data, c, &err), &err);
    if (r->loader.skipped)
        warn("%llu of %llu samples have more than %d text tokens and are left out",
             (unsigned long long)r->loader.skipped, (unsigned long long)r->data.count, r->text);
    r->steps_per_epoch = (int64_t)r->loader.batches_per_epoch;
    r->steps = opt.steps ? opt.steps : opt.epochs * r->steps_per_epoch;
}

/* Of the student and the objective's map. */
static void plan_optimizer(Run *r) {
    AdamW adamw;
    Params *lists[2] = {&r->student.params, &r->objective.map};
    int parts[2] = {r->parts, PART_ALL};
    adamw.beta1 = (float)opt.beta1;
    adamw.beta2 = (float)opt.beta2;
    adamw.eps = 1e-8f;
    adamw.decay = (float)opt.decay;
    adamw.max_norm = (float)opt.clip;
    optimizer_open(&r->optimizer, r->op, adamw, lists, parts, 2, 0, 1, false);
}

static void plan_training(Run *r) {
    int B = (int)opt.batch;
    Model *s = &r->student, *t = &r->teacher;
    model_plan(s, B, r->text);
    if (r->has_teacher) model_plan(t, B, r->text);
    int tokens = model_image_tokens(s);
    if (r->has_teacher && r->config.w_embed > 0 && model_image_tokens(t) != tokens)
        die("--w-embed needs as many image tokens in the student (%d) as in the teacher (%d)", tokens,
            model_image_tokens(t));
    Weight teacher_head = param_weight(r->has_teacher ? t->head : s->head);
    objective_open(&r->objective, r->op, r->config, s->c.lm.vocab, s->c.lm.width, r->has_teacher ? t->op : NULL,
                   teacher_head, (int)opt.chunk, B * r->text, B, tokens, (uint64_t)opt.seed);
    plan_optimizer(r);
}

static void plan_schedule(Run *r) {
    r->lr.base = opt.lr;
    r->lr.final_share = opt.lr_final;
    r->lr.gamma = opt.lr_gamma;
    r->lr.steps = r->steps;
    int64_t twentieth = r->steps / 20 < 1000 ? r->steps / 20 : 1000;
    r->lr.warmup = opt.warmup >= 0 ? opt.warmup : twentieth;
}

/* ---------------------------------------------------------------------------------------------------------------
 * One pass, one step */

/* Forward of both models and the objective over rows first .. first+B-1 of a batch; with scale > 0 also backward. */
static void pass(Run *r, const Batch *batch, int first, int B, double scale, double picture_scale) {
    Model *s = &r->student, *t = &r->teacher;
    int T = batch->T;
    const int *ids = batch->ids + (size_t)first * (size_t)T;
    size_t S = (size_t)s->c.vision.image_size;
    const floatX *teacher_hidden = NULL, *teacher_tokens = NULL;
    if (r->has_teacher) {
        size_t St = (size_t)t->c.vision.image_size;
        model_forward(t, batch->pixels[r->teacher_pixels] + (size_t)first * St * St * 3, ids, B, T);
        teacher_hidden = t->hidden;
        teacher_tokens = t->vision.tokens;
    }
    model_forward(s, batch->pixels[0] + (size_t)first * S * S * 3, ids, B, T);

    bool learn = scale > 0;
    objective_run(&r->objective, learn ? s->d_hidden : NULL, learn ? s->head->gradient : NULL, s->hidden,
                  param_weight(s->head), teacher_hidden, s->labels, s->n, (float)scale);
    const floatX *d_tokens =
        objective_embed(&r->objective, s->vision.tokens, teacher_tokens, B, (float)picture_scale, learn);
    if (learn) model_backward(s, s->d_hidden, d_tokens);
}

/* Operations of one training pass: both forward passes and the student's backward pass. */
static double pass_flops(const Run *r, int B, int T) {
    const Model *s = &r->student;
    double forward = model_flops(s, B, T, s->n), encoder = vision_flops(&s->c.vision, B);
    double flops = forward + 2 * (r->parts & PART_VISION ? forward : forward - encoder);
    return r->has_teacher ? flops + model_flops(&r->teacher, B, T, s->n) : flops;
}

typedef struct {
    ObjectiveSums sums;
    double norm, lr, loss, flops;
    int tokens;
} StepResult;

/* Gradients of a whole batch, in micro-batches of --batch rows, then one update. */
static StepResult train_step(Run *r, const Batch *batch) {
    StepResult result;
    memset(&result, 0, sizeof result);
    r->objective.config = objective_schedule(r->config, r->schedule, (double)r->step / (double)r->steps);
    optimizer_zero_gradients(&r->optimizer);
    for (int first = 0; first < batch->B; first += (int)opt.batch) {
        int B = batch->B - first < opt.batch ? batch->B - first : (int)opt.batch;
        pass(r, batch, first, B, 1.0 / batch->tokens, 1.0 / batch->B);
        result.flops += pass_flops(r, B, batch->T);
    }
    float norm_squared;
    optimizer_norm(&r->optimizer);
    result.lr = learning_rate(&r->lr, r->step);
    optimizer_step(&r->optimizer, (float)result.lr, (int)r->step + 1);
    result.sums = objective_collect(&r->objective);  // here the host waits for the device, not before
    r->op->download(&norm_squared, r->optimizer.norm_squared, sizeof norm_squared);
    result.norm = sqrt((double)norm_squared);
    result.loss = objective_mean(&r->objective, &result.sums);
    result.tokens = batch->tokens;
    return result;
}

/* Means over the validation data, with the objective as it was given. */
static ObjectiveSums evaluate(Run *r) {
    Error err;
    Loader loader;
    const Batch *batch;
    r->objective.config = r->config;
    check(loader_start(&loader, &r->val, loader_config(r, (int)opt.batch, false), &err), &err);
    if (loader.skipped && r->best == INFINITY)  // once
        warn("%llu of %llu validation samples have more than %d text tokens and are left out",
             (unsigned long long)loader.skipped, (unsigned long long)r->val.count, r->text);
    err.text[0] = 0;
    for (int64_t i = 0; !opt.eval_batches || i < opt.eval_batches; i++) {
        if (!(batch = loader_next(&loader, &err))) break;
        pass(r, batch, 0, batch->B, 0, 0);
    }
    if (err.text[0]) die("%s", err.text);
    loader_stop(&loader);
    return objective_collect(&r->objective);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Saving and going on */

static void name_files(Run *r) {
    r->student_path = format_string("%s/student.safetensors", opt.out);
    r->best_path = format_string("%s/best.safetensors", opt.out);
    r->state_path = format_string("%s/state.safetensors", opt.out);
    r->log_path = format_string("%s/log.jsonl", opt.out);
    r->options_path = format_string("%s/options.txt", opt.out);
}

/* The student first: if the state cannot follow, the old state still fits, for it carries all that is trained. */
static void save(Run *r) {
    Error err;
    char step[32], best[40], worse[32];
    snprintf(step, sizeof step, "%lld", (long long)r->step);
    snprintf(best, sizeof best, "%.17g", r->best);
    snprintf(worse, sizeof worse, "%lld", (long long)r->worse);
    const char *keys[] = {"format", "step", "best", "worse"}, *values[] = {"tikz.c/state/1", step, best, worse};
    check(model_save(&r->student, r->student_path, &err), &err);
    check(state_save(r->state_path, &r->optimizer, keys, values, 4, &err), &err);
}

static void restore(Run *r) {
    Error err;
    SafeTensors st;
    check(safetensors_open(&st, r->state_path, &err), &err);
    const char *format = safetensors_metadata(&st, "format"), *step = safetensors_metadata(&st, "step");
    const char *best = safetensors_metadata(&st, "best"), *worse = safetensors_metadata(&st, "worse");
    long long at, since;
    if (!format || strcmp(format, "tikz.c/state/1") || !step || !best || !worse || sscanf(step, "%lld", &at) != 1 ||
        at < 0 || at > INT_MAX || sscanf(worse, "%lld", &since) != 1)
        die("%s is not a training state of this program", r->state_path);
    r->step = at;
    r->best = strtod(best, NULL);
    r->worse = since;
    check(state_load(&st, 1, &r->optimizer, &err), &err);
    safetensors_close(&st);
}

/* Opens the log. When resuming, lines of steps after the checkpoint are dropped: those steps run again. */
static void open_log(Run *r) {
    char *line = NULL;
    size_t capacity = 0;
    FILE *old = opt.resume ? fopen(r->log_path, "r") : NULL;
    char *kept_path = format_string("%s.new", r->log_path);
    r->log = fopen(kept_path, "w");
    if (!r->log) die("cannot write %s: %s", kept_path, strerror(errno));
    while (old && getline(&line, &capacity, old) > 0) {
        long long step;
        if (sscanf(line, "{\"step\":%lld", &step) == 1 && step <= (long long)r->step) fputs(line, r->log);
    }
    if (old) fclose(old);
    if (fflush(r->log) || rename(kept_path, r->log_path)) die("cannot write %s: %s", r->log_path, strerror(errno));
    free(kept_path);
    free(line);
}

static void log_sums(JsonWriter *w, const Run *r, const ObjectiveSums *s) {
    json_key(w, "ce"), json_number(w, s->ce / s->positions);
    json_key(w, "accuracy"), json_number(w, s->right / s->positions);
    if (!r->has_teacher) return;
    json_key(w, "soft"), json_number(w, s->soft / s->positions);
    json_key(w, "hard"), json_number(w, s->hard / s->positions);
    json_key(w, "agreement"), json_number(w, s->agree / s->positions);
    json_key(w, "entropy"), json_number(w, s->entropy / s->positions);
    json_key(w, "gate"), json_number(w, s->gate / s->positions);
    if (s->pictures > 0) json_key(w, "embed"), json_number(w, s->embed / s->pictures);
}

static void log_line(Run *r, JsonWriter *w) {
    json_end_object(w);
    if (json_write_line(w, r->log) || fflush(r->log)) die("cannot write %s: %s", r->log_path, strerror(errno));
    json_writer_free(w);
}

static JsonWriter log_begin(const Run *r) {
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "step"), json_integer(&w, r->step);
    return w;
}

static void log_step(Run *r, const StepResult *x, double seconds) {
    JsonWriter w = log_begin(r);
    json_key(&w, "loss"), json_number(&w, x->loss);
    log_sums(&w, r, &x->sums);
    json_key(&w, "lr"), json_number(&w, x->lr);
    json_key(&w, "norm"), json_number(&w, x->norm);
    json_key(&w, "tokens_per_second"), json_number(&w, x->tokens / seconds);
    json_key(&w, "peak_share"), json_number(&w, x->flops / seconds / r->peak);
    log_line(r, &w);
}

/* Evaluates, keeps the best student, saves. Returns false when patience has run out. */
static bool evaluate_and_save(Run *r) {
    if (r->has_val) {
        ObjectiveSums s = evaluate(r);
        double ce = s.ce / s.positions;
        bool better = ce < r->best;
        JsonWriter w = log_begin(r);
        json_key(&w, "val");
        json_begin_object(&w);
        log_sums(&w, r, &s);
        json_end_object(&w);
        log_line(r, &w);
        progress_note("step %lld: validation ce %.4f, token accuracy %.2f %%", (long long)r->step, ce,
                      100 * s.right / s.positions);
        if (r->has_teacher)
            progress_note("          soft loss %.4f, agreement with the teacher %.2f %%", s.soft / s.positions,
                          100 * s.agree / s.positions);
        r->worse = better ? 0 : r->worse + 1;
        if (better) {
            Error err;
            r->best = ce;
            check(model_save(&r->student, r->best_path, &err), &err);
        }
    }
    save(r);
    return !opt.patience || r->worse < opt.patience;
}

/* ---------------------------------------------------------------------------------------------------------------
 * The loop */

static void print_summary(const Run *r) {
    const Model *s = &r->student;
    fprintf(stderr, "device %s, %d threads, measured product peak %.2f TFLOP/s\n", r->op->name, omp_get_max_threads(),
            r->peak / 1e12);
    if (r->has_teacher)
        fprintf(stderr, "teacher %s: %.2f M parameters, on %s\n", opt.teacher,
                (double)params_total(&r->teacher.params, PART_ALL) / 1e6, r->teacher_op->name);
    fprintf(stderr, "student %s: %.2f M parameters (vision %.2f, connector %.2f, lm %.2f), %.2f M trained\n",
            opt.resume ? r->student_path : opt.student, (double)params_total(&s->params, PART_ALL) / 1e6,
            (double)params_total(&s->params, PART_VISION) / 1e6,
            (double)params_total(&s->params, PART_CONNECTOR) / 1e6, (double)params_total(&s->params, PART_LM) / 1e6,
            (double)params_total(&s->params, r->parts) / 1e6);
    fprintf(
        stderr,
        "memory: parameters %.1f MB, gradients %.1f MB, optimizer %.1f MB, activations %.1f MB (teacher %.1f MB), "
        "logits %.1f MB\n",
        (double)(s->params.values.used + r->optimizer.value_memory.used) / 1e6,
        (double)r->optimizer.gradient_memory.used / 1e6, (double)r->optimizer.state_memory.used / 1e6, (double)s->arena.used / 1e6, (double)r->teacher.arena.used / 1e6,
        (double)r->objective.arena.used / 1e6);
    fprintf(stderr, "data: %llu samples, %lld steps of %lld pictures, %lld steps an epoch\n",
            (unsigned long long)r->data.count, (long long)r->steps, (long long)(opt.batch * opt.accum),
            (long long)r->steps_per_epoch);
}

static void train(Run *r) {
    Error err;
    Progress progress;
    int64_t every = opt.eval_every ? opt.eval_every : (r->steps + 9) / 10;
    if (r->step >= r->steps) {
        warn("%s has all of its %lld steps already; --steps or --epochs can raise their number", opt.out,
             (long long)r->steps);
        return;
    }
    progress_begin(&progress, "train", r->step, r->steps);
    double before = seconds_now();
    while (r->step < r->steps) {
        err.text[0] = 0;
        const Batch *batch = loader_next(&r->loader, &err);
        if (!batch) die("%s", err.text);
        StepResult x = train_step(r, batch);
        if (!isfinite(x.loss) || !isfinite(x.norm))
            die("the loss became %g (gradient norm %g) at step %lld%s%s with a smaller --lr", x.loss, x.norm,
                (long long)r->step + 1,
                file_exists(r->state_path) ? "; --resume goes on from the checkpoint in " : "",
                file_exists(r->state_path) ? opt.out : ", before the first checkpoint; start anew");
        r->step++;
        double now = seconds_now(), seconds = now - before;
        before = now;
        log_step(r, &x, seconds);
        progress_update(&progress, r->step, "loss %.4f, %.0f tokens/s, %.0f %% of peak", x.loss, x.tokens / seconds,
                        100 * x.flops / seconds / r->peak);
        bool due = r->step % every == 0 || r->step == r->steps;
        if (due && !evaluate_and_save(r)) {
            progress_end(&progress);
            fprintf(stderr, "stopped early: no better validation for %lld evaluations\n", (long long)r->worse);
            return;
        }
        if (interrupted && r->step < r->steps) {
            if (!due) save(r);
            progress_end(&progress);
            fprintf(stderr, "interrupted: saved step %lld in %s; --resume goes on from there\n", (long long)r->step,
                    opt.out);
            return;
        }
        if (due) before = seconds_now();
    }
    progress_end(&progress);
}

/* --resume: the options of the first run, then again what the command line says. */
static void recall_options(const Run *r, int argc, char **argv, const char *usage) {
    Error err;
    const char *out = opt.out;
    if (opt.overwrite) options_die("--resume and --overwrite exclude each other");
    if (!file_exists(r->state_path))
        die("--resume: there is no checkpoint %s; name its folder with --out, or start without --resume",
            r->state_path);
    check(options_config(table, OPTIONS, r->options_path, &err), &err);
    const char *student = opt.student;
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    if (strcmp(opt.student, student))
        die("--resume goes on with the student in %s, which began as %s; --student %s is another: leave it out, or "
            "start anew in another --out folder",
            out, student, opt.student);
    opt.out = out;  // the folder may have been moved
    opt.resume = true;
}

/* A file that is missing, or a shape that is not one, told apart before anything is loaded. */
static void check_student(const char *student) {
    Error err;
    ModelConfig c;
    size_t length = strlen(student);
    if (file_exists(student)) return;
    if (strchr(student, '/') || (length > 12 && !strcmp(student + length - 12, ".safetensors")))
        die("cannot read the student %s: %s", student, strerror(errno));
    if (config_from_shape(&c, student, 1024, &err)) options_die("--student: %s", err.text);
}

/* The device that --student-device or --teacher-device names, --device where that is not given. */
static const Ops *open_device(const char *option, const char *name) {
    Error err;
    const Ops *op = ops_open(name ? name : opt.device, &err);
    if (!op) options_die("--%s: %s", name ? option : "device", err.text);
    return op;
}

static void parse_options(Run *r, int argc, char **argv) {
    static const char *const schedules[] = {"cosine", "linear", "constant", "multistep"};
    static const char *const moves[] = {"none", "anneal", "image2tikz"};
    const char *usage =
        "[options]\n\nTrains a picture-to-TikZ model, by default from the starter teacher on the starter data.";
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    name_files(r);
    if (opt.resume) recall_options(r, argc, argv, usage);
    if (!opt.resume) check_student(opt.student);
    if (opt.batch * opt.accum > 1 << 20)
        options_die("--batch times --accum is %lld; at most 1048576 is supported",
                    (long long)(opt.batch * opt.accum));
    threads_use((int)opt.threads);
    r->op = open_device("student-device", opt.student_device);
    r->teacher_op = open_device("teacher-device", opt.teacher_device);
    r->parts = parse_parts(opt.train);
    r->config = parse_objective();
    if (!strcmp(opt.init, "teacher") && !strcmp(opt.teacher, "none")) {
        if (options_given(&opt.init)) options_die("--init teacher needs a --teacher");
        opt.init = "none";
    }
    if (r->config.w_embed > 0 && r->parts == PART_LM)
        options_die("--w-embed has nothing to train: --train leaves out the vision encoder and the connector");
    if (opt.patience && !strcmp(opt.val_data, "none")) options_die("--patience needs --val-data");
    r->schedule = (KdSchedule)choice("kd-schedule", opt.kd_schedule, moves, 3);
    r->lr.kind = (LrSchedule)choice("lr-schedule", opt.schedule, schedules, 4);
    r->best = INFINITY;
}

/* Takes the output folder for this run. A finished or stopped run there is only touched with --resume. */
static void claim_folder(Run *r) {
    Error err;
    check(make_folder(opt.out, &err), &err);
    check(folder_lock(opt.out, &err) < 0, &err);
    if (!opt.resume && !opt.overwrite && file_exists(r->student_path))
        die("%s already holds a trained student; --resume goes on with it, --overwrite starts anew, --out DIR goes "
            "elsewhere",
            opt.out);
}

/* The options of this run, for a --resume. After all that can fail, so that a mistake in one attempt to resume does
 * not reach the next; with --overwrite the old checkpoint goes now, lest a --resume take it for one of this run, and
 * the old best, lest infer does. */
static void record_options(const Run *r) {
    Error err;
    AtomicFile file;
    bool resume = opt.resume;
    check(atomic_open(&file, r->options_path, &err), &err);
    opt.resume = opt.overwrite = false;  // the file also serves as --config of another run
    options_write(table, OPTIONS, file.f);
    opt.resume = resume;
    check(atomic_commit(&file, &err), &err);
    if (resume) return;
    unlink(r->state_path);
    unlink(r->best_path);
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    threads_wait_politely(argv);
    parse_options(r, argc, argv);
    open_models(r);
    open_data(r);
    claim_folder(r);
    plan_training(r);
    if (opt.resume) restore(r);
    r->peak = measure_peak_flops(r->op);  // before the loader's thread takes a core
    if (r->has_teacher && r->teacher_op != r->op) r->peak += measure_peak_flops(r->teacher_op);
    start_loader(r);
    plan_schedule(r);
    record_options(r);
    open_log(r);
    print_summary(r);
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    train(r);
    printf("%s\n", isfinite(r->best) ? r->best_path : r->student_path);
    return 0;
}
