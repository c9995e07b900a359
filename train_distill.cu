/* train_distill: trains a small image-to-code model, alone (--teacher none) or from a large one.
 *
 * main is the algorithm. What it calls is below it and in train/: options.h (what can be told), run.h (the folder),
 * teacher.h (where the teacher's outputs come from), trainer.h (student, objective, optimizer), parallel.h (several
 * processes), checkpoint.h, log.h. The formulas are in loss.cuh, the models in model.h and vision.h, the data in
 * dataloader.h. doc/walkthrough.md follows one batch through all of it. */
#include "dataloader.h"
#include "kernels/peak.h"
#include "lib/interrupt.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "loss.cuh"
#include "model.h"
#include "train/checkpoint.h"
#include "train/log.h"
#include "train/options.h"
#include "train/parallel.h"
#include "train/run.h"
#include "train/teacher.h"
#include "train/trainer.h"

/* The training and validation data, and the batches of the training data. */
typedef struct {
    Dataset train, val;
    Loader loader;
    const Batch *next;  // already taken from the loader, or NULL
    int max_tokens;     // most text tokens of a sample
    int64_t steps_per_epoch;
    int64_t eval_every, eval_batches;  // steps between evaluations; batches of one, on all ranks
} Data;

typedef enum { GOING_ON, OUT_OF_PATIENCE, INTERRUPTED } Stop;

static Settings read_options(int argc, char **argv, RunFolder *folder);
static void open_models(Trainer *t, Teacher *teacher, const Settings *s, const RunFolder *folder, const Parallel *p);
static void open_data(Data *d, const Settings *s, Trainer *t, const Teacher *teacher);
static void plan_memory(Trainer *t, Teacher *teacher, const Settings *s, const Data *d, Parallel *p);
static void start_loader(Data *d, Trainer *t, const Settings *s, const Teacher *teacher, const RunFolder *folder,
                         const Parallel *p);
static void print_data(const Data *d, const Trainer *t);
static double measure_peak(const Trainer *t, const Teacher *teacher, Parallel *p);
static const Batch *batch_next(Data *d);
static MicroBatch micro_batch(const Batch *batch, int m);
static const MicroBatch *micro_batch_after(Data *d, const Batch *batch, int m, const Trainer *t, MicroBatch *next);
static StepResult collect_step(const Trainer *t, Parallel *p, Report report, const Batch *batch, double lr);
static void check_finite(const Trainer *t, const Teacher *teacher, const StepResult *r, const RunFolder *folder);
static Stop after_step(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                       Parallel *p, const Log *log, const StepResult *r);
static void say_goodbye(const Trainer *t, const RunFolder *folder, Stop stop);

int main(int argc, char **argv) {
    static Trainer t;          // student, objective, optimizer, step
    static Teacher teacher;    // its op is NULL if there is none
    static Parallel parallel;  // the other processes, if there are any
    static Data data;
    RunFolder folder;
    Progress progress;
    Stop stop = GOING_ON;

    threads_wait_politely(argv);
    interrupts_take();
    Settings s = read_options(argc, argv, &folder);
    parallel_open(&parallel);
    redistribute_batch(&s, parallel.comm.ranks);
    check_same_settings(&parallel, &folder);
    run_folder_open(&folder, &parallel.comm);
    open_models(&t, &teacher, &s, &folder, &parallel);
    open_data(&data, &s, &t, &teacher);
    plan_memory(&t, &teacher, &s, &data, &parallel);
    if (opt.resume) checkpoint_restore(&t, &s, &folder);
    double peak = measure_peak(&t, &teacher, &parallel);  // before the loader's thread takes a core
    start_loader(&data, &t, &s, &teacher, &folder, &parallel);
    interrupts_keep();
    check_same_weights(&parallel);
    if (is_rank0(&parallel)) run_record_options(&folder, &s, parallel.comm.ranks);
    Log log = log_open(&folder, t.step, &s, &parallel);
    if (is_rank0(&parallel)) {
        print_summary(&t, &teacher, &s, &folder, &parallel, peak);
        print_data(&data, &t);
    }
    progress_begin(&progress, "train", t.step, t.steps);
    progress.quiet = !is_rank0(&parallel) || t.step >= t.steps;

    while (t.step < t.steps && stop == GOING_ON) {
        double begin = seconds_now(), lr = learning_rate(&t.lr, t.samples, t.images);
        const Batch *batch = batch_next(&data);
        Report report = {.waited = -parallel.comm.seconds_waited};
        t.objective.config = objective_schedule(s.objective, s.kd_schedule, trainer_progress(&t));
        optimizer_zero_gradients(&t.optimizer);
        for (int m = 0; m < s.accum; m++) {
            MicroBatch mb = micro_batch(batch, m), next;
            TeacherOutput q = teacher_get(&teacher, &mb);              // computed now, or prefetched
            model_forward(&t.student, mb.pixels, mb.ids, mb.B, mb.T);  // hidden states
            objective_run(&t.objective, &t.student, &q, mb.scale);     // loss, and its gradient at the hidden states
            teacher_prefetch(&teacher, micro_batch_after(&data, batch, m, &t, &next));
            parallel_watch_backward(&parallel, &t.student, m == s.accum - 1);
            model_backward(&t.student);  // adds the gradients of all parameters
            report.flops += trainer_flops(&t, &s, &teacher, mb.B, mb.T);
        }
        all_reduce_gradients(&parallel);  // begun inside the last backward pass
        adamw_step(&parallel, lr, t.step + 1);
        t.step++, t.batch++, t.samples += t.images;

        StepResult r = collect_step(&t, &parallel, report, batch, lr);  // here the host waits for the device
        r.seconds = seconds_now() - begin;
        r.peak = peak;
        check_finite(&t, &teacher, &r, &folder);
        log_step(&log, t.step, &r);
        progress_update(&progress, t.step, "loss %.4f, %.0f tokens/s, %.0f %% of peak", r.loss, r.tokens / r.seconds,
                        100 * r.report.flops / r.seconds / peak);
        stop = after_step(&t, &teacher, &data, &s, &folder, &parallel, &log, &r);
    }

    progress_end(&progress);
    log_close(&log);
    if (is_rank0(&parallel)) say_goodbye(&t, &folder, stop);
    parallel_close(&parallel);
    loader_stop(&data.loader);
    trainer_close(&t);
    teacher_close(&teacher);
    run_folder_free(&folder);
    return 0;
}

/* ---- opening ---- */

static Settings read_options(int argc, char **argv, RunFolder *folder) {
    options_parse(table, OPTIONS, argc, argv, train_usage, NULL);
    bool explicit_accum = options_given(&opt.accum);
    *folder = run_folder(opt.out);
    int64_t images = opt.resume ? options_recall(argc, argv, folder->state, folder->options) : 0;
    Settings s = settings_from_options();
    s.recorded_images = images;
    s.explicit_accum = explicit_accum;
    return s;
}

/* The device that an option names, else the one of --device. Without a word from the user, the ranks of a machine share
 * its GPUs evenly: where each can have two, the teacher runs on one and the student on the other. */
static const Ops *open_device(const char *option, const char *name, const Parallel *p, bool has_teacher,
                              bool teacher) {
    Error err;
    char text[24];
    int gpus = gpus_visible(), ranks = p->comm.local_ranks, rank = p->comm.local_rank;
    if (!name) {
        name = opt.device;
        option = "device";
        bool any = !strcmp(name, "auto");
        bool pair = any && has_teacher && gpus >= 2 * ranks && !opt.teacher_device && !opt.student_device;
        if (gpus && (pair || (ranks > 1 && (any || !strcmp(name, "cuda"))))) {
            snprintf(text, sizeof text, "cuda:%d", pair ? 2 * rank + !teacher : rank % gpus);
            name = text;
        }
    }
    const Ops *op = ops_open(name, &err);
    if (!op && p->comm.ranks > 1) die("--%s: %s", option, err.text);
    if (!op) options_die("--%s: %s", option, err.text);
    return op;
}

/* Opens the devices, then the teacher and the student on them. */
static void open_models(Trainer *t, Teacher *teacher, const Settings *s, const RunFolder *folder, const Parallel *p) {
    int cores = omp_get_max_threads() / (getenv("OMP_NUM_THREADS") ? 1 : p->comm.sharing);
    threads_use(opt.threads ? (int)opt.threads : cores ? cores : 1);
    const Ops *teacher_op = open_device("teacher-device", opt.teacher_device, p, s->has_teacher, true);
    const Ops *op = open_device("student-device", opt.student_device, p, s->has_teacher, false);
    if (teacher_op == op) teacher_op = ops_second_stream(op);
    if (s->has_teacher) teacher_open(teacher, teacher_op, opt.teacher);
    trainer_open(t, op, s, folder, teacher, p->comm.ranks, is_rank0(p));
}

static void open_dataset(Dataset *d, const char *pattern, const Trainer *t) {
    Error err;
    die_if(dataset_open(d, pattern, &err), &err);
    uint64_t fingerprint = t->student.tokenizer.fingerprint;
    if (d->fingerprint != fingerprint)
        die("%s was made with another tokenizer (fingerprint %016llx) than the student's (%016llx); convert the data "
            "again with the student's tokenizer",
            pattern, (unsigned long long)d->fingerprint, (unsigned long long)fingerprint);
}

/* Opens the datasets, and decides how long a text may be: as long as the longest, if it fits into both models. */
static void open_data(Data *d, const Settings *s, Trainer *t, const Teacher *teacher) {
    open_dataset(&d->train, opt.data, t);
    t->data_fingerprint = dataset_content(&d->train);
    if (s->has_val) open_dataset(&d->val, opt.val_data, t);
    int longest = (int)(d->val.longest > d->train.longest ? d->val.longest : d->train.longest);
    int most = model_max_text(&t->student);
    if (s->has_teacher && model_max_text(&teacher->model) < most) most = model_max_text(&teacher->model);
    if (opt.max_tokens && opt.max_tokens < most) most = (int)opt.max_tokens;
    d->max_tokens = (longest + 7) / 8 * 8;
    if (d->max_tokens > most) d->max_tokens = most;
}

static bool same_image_size(const Trainer *t, const Teacher *teacher) {
    return !teacher->op || teacher->model.c.vision.image_size == t->student.c.vision.image_size;
}

/* Allocates everything that training needs, and tells the ranks what they share. */
static void plan_memory(Trainer *t, Teacher *teacher, const Settings *s, const Data *d, Parallel *p) {
    teacher_plan(teacher, t->op, s->batch, d->max_tokens, s->objective.w_embed > 0);
    if (s->has_teacher && same_image_size(t, teacher) && model_share_encoder(&t->student, &teacher->model) &&
        is_rank0(p))
        progress_note("student: its frozen encoder is the teacher's, which encodes the images for both");
    trainer_plan(t, s, teacher, d->max_tokens, p->comm.rank, p->comm.ranks);
    parallel_use_optimizer(p, &t->optimizer, &t->student.params);
}

/* The matmul rate of the devices of all ranks in FLOP/s, measured on all of them at the same time. */
static double measure_peak(const Trainer *t, const Teacher *teacher, Parallel *p) {
    double mine = measure_peak_flops(t->op);
    if (teacher->op && !ops_share_memory(teacher->op, t->op)) mine += measure_peak_flops(teacher->op);
    return parallel_sum(p, mine);
}

/* ---- data ---- */

/* This rank's part of batches of `rows` images: for training endless, shuffled epochs, else one pass in order. */
static LoaderConfig loader_config(const Data *d, const Settings *s, const Trainer *t, const Teacher *teacher,
                                  const Parallel *p, int rows, bool training) {
    bool has_teacher = s->has_teacher;
    LoaderConfig c = loader_config_for(
        rows, d->max_tokens, t->student.c.vision.image_size, t->student.tokenizer.count,
        has_teacher ? teacher->model.c.vision.image_size : 0, has_teacher ? teacher->model.c.lm.vocab : 0);
    c.micro_rows = s->batch;
    c.rank = p->comm.rank;
    c.ranks = p->comm.ranks;
    if (!training) return c;
    c.seed = (uint64_t)opt.seed;
    c.shuffle = c.drop_last = true;
    c.cache_bytes = (size_t)opt.cache << 20;
    c.augment = opt.augment;
    c.first_batch = (uint64_t)t->batch;
    c.hold = teacher->overlaps ? 2 : 1;
    return c;
}

/* The number of batches in an evaluation. */
static int64_t evaluation_batches(const Data *d, const Settings *s) {
    int64_t batches = (dataset_fitting(&d->val, d->max_tokens) + s->batch - 1) / s->batch;
    return s->eval_batches && s->eval_batches < batches ? s->eval_batches : batches;
}

/* A run that is resumed with another number of images in a step: its batches are others, so it can only continue where an
 * epoch begins. */
static void renumber_batches(Trainer *t, int64_t samples, const RunFolder *folder) {
    if (!t->restored_images || t->restored_images == t->images) return;
    int64_t before = samples / t->restored_images, now = samples / t->images;
    if (!before || t->batch % before)
        die("--resume: the run in %s stopped inside an epoch, and its steps had %lld images; --batch and --accum of "
            "%lld "
            "images can take over at the end of an epoch, after batch %lld (now at %lld)",
            folder->path, (long long)t->restored_images, (long long)t->images,
            before ? (long long)((t->batch / before + 1) * before) : 0, (long long)t->batch);
    t->batch = t->batch / before * now;
}

/* Starts loading, and works out how long the run is. */
static void start_loader(Data *d, Trainer *t, const Settings *s, const Teacher *teacher, const RunFolder *folder,
                         const Parallel *p) {
    Error err;
    renumber_batches(t, dataset_fitting(&d->train, d->max_tokens), folder);
    die_if(loader_start(&d->loader, &d->train, loader_config(d, s, t, teacher, p, (int)t->images, true), &err), &err);
    if (d->loader.skipped && is_rank0(p))
        warn("%llu of %llu samples have more than %d text tokens and are left out",
             (unsigned long long)d->loader.skipped, (unsigned long long)d->train.count, d->max_tokens);
    d->steps_per_epoch = (int64_t)d->loader.batches_per_epoch;
    t->steps = opt.steps ? opt.steps : t->step + opt.epochs * d->steps_per_epoch - t->batch;
    d->eval_every = opt.eval_every ? opt.eval_every : (t->steps + 9) / 10;
    d->eval_batches = s->has_val ? evaluation_batches(d, s) : 0;
    if (s->has_val && !d->eval_batches)
        die("every sample of %s has more than %d text tokens, so that nothing is left to evaluate; use other data or "
            "--val-data none",
            opt.val_data, d->max_tokens);
    int64_t twentieth = t->steps / 20 < 1000 ? t->steps / 20 : 1000;
    t->lr = (LearningRate){.kind = s->lr_schedule,
                           .base = opt.lr,
                           .final_share = opt.lr_final,
                           .warmup = (opt.warmup >= 0 ? opt.warmup : twentieth) * t->images,
                           .total = t->samples + (t->steps - t->step) * t->images,
                           .gamma = opt.lr_gamma};
}

/* How much there is to do, or that nothing is left. */
static void print_data(const Data *d, const Trainer *t) {
    fprintf(stderr, "data: %llu samples, %lld steps of %lld images, %lld steps an epoch\n",
            (unsigned long long)d->train.count, (long long)t->steps, (long long)t->images,
            (long long)d->steps_per_epoch);
    if (t->step >= t->steps)
        warn("%s has all of its %lld steps already; --steps or --epochs can raise their number", opt.out,
             (long long)t->steps);
}

/* The batch of the next step. */
static const Batch *batch_next(Data *d) {
    Error err;
    const Batch *batch = d->next;
    d->next = NULL;
    if (!batch && !(batch = loader_next(&d->loader, &err))) die("%s", err.text);
    return batch;
}

/* Rows m * micro_rows, ... of a batch. */
static MicroBatch micro_batch(const Batch *batch, int m) {
    size_t first = (size_t)m * batch->micro_rows, S = batch->sizes[0],
           teacher_S = batch->sizes[batch->size_count - 1];
    const uint8_t *teacher_pixels = batch->pixels[batch->size_count - 1];
    int left = batch->B - (int)first;
    return (MicroBatch){.pixels = batch->pixels[0] + first * S * S * 3,
                        .teacher_pixels = teacher_pixels + first * teacher_S * teacher_S * 3,
                        .ids = batch->ids + first * batch->T,
                        .B = left < batch->micro_rows ? left : batch->micro_rows,
                        .T = batch->T,
                        .number = (int64_t)batch->number << 20 | m,
                        .scale = {1.0 / batch->tokens, 1.0 / batch->rows}};
}

/* The micro-batch that comes after number m of a batch, for the teacher to begin with; NULL when the run ends there. */
static const MicroBatch *micro_batch_after(Data *d, const Batch *batch, int m, const Trainer *t, MicroBatch *next) {
    if ((m + 1) * batch->micro_rows < batch->B) {
        *next = micro_batch(batch, m + 1);
        return next;
    }
    if (t->step + 1 >= t->steps || d->loader.config.hold < 2) return NULL;
    d->next = batch_next(d);
    *next = micro_batch(d->next, 0);
    return next;
}

/* ---- after a step ---- */

/* What the step has counted, on all ranks. */
static StepResult collect_step(const Trainer *t, Parallel *p, Report report, const Batch *batch, double lr) {
    float norm_squared;
    report.sums = objective_collect((Objective *)&t->objective);
    report.interrupted = interrupted();
    report.waited += p->comm.seconds_waited;
    StepResult r = {.report = all_reduce_report(p, report), .lr = lr, .tokens = batch->tokens};
    t->op->download(&norm_squared, t->optimizer.norm_squared, sizeof norm_squared);
    r.norm = sqrt((double)norm_squared);
    r.loss = objective_mean(&t->objective, &r.report.sums);
    return r;
}

/* Sums over the validation data, with the objective as it was given. */
static ObjectiveSums evaluate(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, Parallel *p) {
    Error err = {""};
    Loader loader;
    const Batch *batch;
    t->objective.config = s->objective;
    die_if(loader_start(&loader, &d->val, loader_config(d, s, t, teacher, p, s->batch, false), &err), &err);
    if (loader.skipped && t->best == INFINITY && is_rank0(p))  // the first time
        warn("%llu of %llu validation samples have more than %d text tokens and are left out",
             (unsigned long long)loader.skipped, (unsigned long long)d->val.count, d->max_tokens);
    for (int64_t i = 0; i < d->eval_batches && (batch = loader_next(&loader, &err)); i++) {
        if (!batch->B) continue;  // another rank's
        MicroBatch mb = micro_batch(batch, 0);
        mb.number = -1;
        mb.scale = (LossScale){0, 0};
        TeacherOutput q = teacher_get(teacher, &mb);
        model_forward(&t->student, mb.pixels, mb.ids, mb.B, mb.T);
        objective_run(&t->objective, &t->student, &q, mb.scale);
    }
    if (err.text[0]) die("%s", err.text);
    loader_stop(&loader);
    return all_reduce_report(p, (Report){.sums = objective_collect(&t->objective)}).sums;
}

/* Evaluates, keeps the best student, saves. */
static void evaluate_and_save(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                              Parallel *p, const Log *log) {
    Error err;
    if (s->has_val) {
        ObjectiveSums sums = evaluate(t, teacher, d, s, p);
        double ce = sums.ce / sums.positions;
        if (!isfinite(ce))
            die("the validation loss became %g after step %lld; %s", fabs(ce), (long long)t->step,
                resume_advice(folder));
        log_evaluation(log, t->step, &sums);
        t->evals_since_best = ce < t->best ? 0 : t->evals_since_best + 1;
        if (ce < t->best) {
            t->best = ce;
            run_folder_check(folder);
            if (is_rank0(p)) die_if(model_save(&t->student, folder->best, &err), &err);
        }
    }
    checkpoint_save(t, folder, p);
}

/* Ends the program when the loss or the gradient norm is not finite, and says what is to blame. */
static void check_finite(const Trainer *t, const Teacher *teacher, const StepResult *r, const RunFolder *folder) {
    if (isfinite(r->loss) && isfinite(r->norm)) return;
    const Param *p = teacher->op ? params_not_finite(&teacher->model.params, teacher->op) : NULL;
    if (p) die("the teacher %s is damaged: tensor %s holds a value that is not finite", opt.teacher, p->name);
    die("the loss became %g (gradient norm %g) at step %lld; %s", fabs(r->loss), fabs(r->norm), (long long)t->step,
        resume_advice(folder));
}

/* Evaluates and saves where that is due, and says whether the run ends although steps are left. */
static Stop after_step(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                       Parallel *p, const Log *log, const StepResult *r) {
    bool due = t->step % d->eval_every == 0 || t->step == t->steps;
    if (due) evaluate_and_save(t, teacher, d, s, folder, p, log);
    if (due && opt.patience && t->evals_since_best >= opt.patience) return OUT_OF_PATIENCE;
    if (r->report.interrupted == 0 || t->step == t->steps) return GOING_ON;
    if (!due) checkpoint_save(t, folder, p);
    return INTERRUPTED;
}

/* Why the run ended, if that needs saying, and where the student is. */
static void say_goodbye(const Trainer *t, const RunFolder *folder, Stop stop) {
    if (stop == OUT_OF_PATIENCE)
        fprintf(stderr, "stopped early: no better validation for %lld evaluations\n", (long long)t->evals_since_best);
    if (stop == INTERRUPTED)
        fprintf(stderr, "interrupted: saved step %lld in %s; --resume continues from there\n", (long long)t->step,
                folder->path);
    printf("%s\n", isfinite(t->best) ? folder->best : folder->student);
}
