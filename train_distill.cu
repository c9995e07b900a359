/* train_distill: trains a small image-to-code model by distillation from a large one, or without a teacher.
 *
 * main is the algorithm. What it calls is below it and in train/: options.h (command line), run.h (output folder),
 * teacher.h (where the teacher's outputs come from), reinforce.h (rewards), trainer.h (student, objective, optimizer),
 * parallel.h (several processes), checkpoint.h, log.h. The formulas are in loss.cuh, the models in model.h and vision.h, the
 * data in dataloader.h. doc/walkthrough.md follows one batch through all of it. */
#include "dataloader.h"
#include "kernels/peak.h"
#include "lib/interrupt.h"
#include "lib/program.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "loss.cuh"
#include "model.h"
#include "train/cache_use.h"
#include "train/cache_write.h"
#include "train/checkpoint.h"
#include "train/log.h"
#include "train/on_policy.h"
#include "train/options.h"
#include "train/parallel.h"
#include "train/reinforce.h"
#include "train/run.h"
#include "train/teacher.h"
#include "train/trainer.h"

/* The training and validation data, and the batches of the training data. */
typedef struct {
    Dataset train, val;
    Loader loader;
    const Batch *next;  // the next step's batch, where the prefetch has taken it from the loader; else NULL
    int max_tokens;     // longest text, in tokens
    int64_t eval_every, eval_batches;  // steps between evaluations; batches in one, over all ranks
} Data;

typedef enum { NOT_STOPPED, OUT_OF_PATIENCE, INTERRUPTED } StopReason;

static Settings read_options(int argc, char **argv, RunFolder *folder);
static void open_models(Trainer *t, Teacher *teacher, Devices devices, const Settings *s, const RunFolder *folder,
                        const Parallel *p);
static void open_data(Data *d, const Settings *s, Trainer *t, Teacher *teacher);
static void plan_memory(Trainer *t, Teacher *teacher, OnPolicy *own, const Settings *s, const Data *d, Parallel *p);
static void start_loader(Data *d, Trainer *t, OnPolicy *own, const Settings *s, const Teacher *teacher,
                         const RunFolder *folder, const Parallel *p);
static double measure_peak(const Trainer *t, const Teacher *teacher, Parallel *p);
static const Batch *batch_next(Data *d);
static const Batch *batch_of_step(Data *d, Trainer *t, const RunFolder *folder, Parallel *p);
static MicroBatch micro_batch(const Batch *batch, int m);
static const MicroBatch *micro_batch_after(Data *d, const Batch *batch, int m, const Trainer *t, const Settings *s,
                                           MicroBatch *next);
static StepResult collect_step(Trainer *t, Parallel *p, Report report, const Batch *batch, double lr);
static void check_finite(const Trainer *t, const Settings *s, const StepResult *r, const RunFolder *folder);
static StopReason after_step(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                             Parallel *p, const Log *log, const StepResult *r);
static void print_result(const Trainer *t, const RunFolder *folder, StopReason stop);

int main(int argc, char **argv) {
    static Trainer t;          // student, objective, optimizer, step
    static Teacher teacher;    // teacher.op is NULL without one
    static OnPolicy own;       // samples of the student, to learn from
    static Parallel parallel;  // the data-parallel ranks
    static Data data;
    static Reinforce rl;  // --reinforce: the student's own programs and their rewards
    RunFolder folder;
    Progress progress;
    StopReason stop = NOT_STOPPED;

    /* options and ranks */
    program_begin(argv);
    threads_wait_politely(argv);
    interrupts_take();
    Settings s = read_options(argc, argv, &folder);
    if (opt.write_teacher_cache) return run_folder_free(&folder), cache_write();
    parallel_open(&parallel);
    redistribute_batch(&s, parallel.comm.ranks);
    check_same_settings(&parallel, &folder, &s);
    Devices devices = open_devices(s.has_teacher, &parallel);  // before the folder: a wrong --device makes none
    run_folder_open(&folder, &parallel.comm);

    /* models, data, memory */
    open_models(&t, &teacher, devices, &s, &folder, &parallel);
    open_data(&data, &s, &t, &teacher);
    plan_memory(&t, &teacher, &own, &s, &data, &parallel);
    if (opt.resume) checkpoint_restore(&t, &s, &folder);
    reinforce_open(&rl, &t, &teacher, &s, &data.train, data.max_tokens);
    double peak = measure_peak(&t, &teacher, &parallel);  // before the loader thread competes for a core
    start_loader(&data, &t, &own, &s, &teacher, &folder, &parallel);
    interrupts_keep();
    check_same_weights(&parallel);
    if (is_rank0(&parallel)) run_record_options(&folder, &s, parallel.comm.ranks);
    Log log = log_open(&folder, t.step, &s, &parallel);
    if (is_rank0(&parallel)) print_summary(&t, &teacher, &own, &s, &folder, &parallel, &data.train, peak);
    progress_begin(&progress, "train", t.step, t.steps);
    progress.quiet = !is_rank0(&parallel) || t.step >= t.steps;

    while (t.step < t.steps && stop == NOT_STOPPED) {
        double begin = seconds_now(), lr = learning_rate(&t.lr, t.samples, t.images);
        const Batch *batch = batch_of_step(&data, &t, &folder, &parallel);
        batch = on_policy_batch(&own, &t, &parallel, batch);  // the data's programs, or its own
        if (own.ahead.on) on_policy_ahead(&own, &t, &parallel, data.next = batch_next(&data));
        Report report = {.sampled = own.sampled, .cut = own.cut, .sampling = own.seconds};
        t.objective.config = objective_schedule(s.objective, s.kd_schedule, trainer_progress(&t));
        t.objective.config = on_policy_objective(&own, t.objective.config);
        int n = s.group > 1 ? reinforce_sample(&rl, &t, batch) : s.accum;  // micro-batches
        for (int u = 0; u < s.updates && n; u++) {                         // one, but for --reinforce
            optimizer_zero_gradients(&t.optimizer);
            for (int m = 0; m < n; m++) {
                MicroBatch mb = s.group > 1 ? reinforce_micro_batch(&rl, m) : micro_batch(batch, m), next;
                TeacherOutput q = teacher_get(&teacher, &mb);  // computed now, or prefetched
                trainer_set_dropout(&t, mb.number);
                model_forward_width(&t.student, mb.pixels, mb.width, mb.ids, mb.B, mb.T);  // -> student.hidden
                on_policy_skew(&own, &t, &q, &mb);                      // of distillm2
                objective_run(&t.objective, &t.student, &q, mb.scale);  // loss, its gradient -> student.d_hidden
                layer_loss_run(&t.layers, &t.student, &q, mb.scale);    // --w-layer, into the blocks' d_output
                if (s.updates > 1 && u == 0) reinforce_keep(&rl, &t.objective, &mb, t.student.n);
                report.flops += trainer_flops(&t, &s, &teacher, mb.B, mb.T);
                teacher_prefetch(&teacher, micro_batch_after(&data, batch, m, &t, &s, &next));
                parallel_overlap_backward(&parallel, &t.student, m == n - 1);
                model_backward(&t.student);  // adds the gradients of the trained parameters
            }
            all_reduce_gradients(&parallel, &t.optimizer);  // most of it begun inside the last backward pass
            adamw_step(&t.optimizer, &parallel, lr, t.step * s.updates + u + 1);  // clipped by the global norm
        }
        report.sampling += on_policy_ahead_elsewhere(&own, &t, &parallel, data.next);
        t.step++, t.batch++, t.samples += t.images;

        StepResult r = collect_step(&t, &parallel, report, batch, lr);  // waits for the device
        r.seconds = seconds_now() - begin;
        r.peak = peak;
        r.programs = own.programs;
        if (s.group > 1) r.rewards = &rl.stats, r.tokens = (int)rl.stats.length;
        check_finite(&t, &s, &r, &folder);
        log_step(&log, t.step, &r, &progress);
        stop = after_step(&t, &teacher, &data, &s, &folder, &parallel, &log, &r);
    }

    progress_end(&progress);
    log_close(&log);
    if (is_rank0(&parallel)) print_result(&t, &folder, stop);
    parallel_close(&parallel);
    loader_stop(&data.loader);
    on_policy_close(&own, t.op);
    reinforce_close(&rl);
    trainer_close(&t);
    teacher_close(&teacher);
    run_folder_free(&folder);
    return 0;
}

/* ---- opening ---- */

static Settings read_options(int argc, char **argv, RunFolder *folder) {
    char *usage = ops_usage(train_usage);
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    free(usage);
    bool explicit_accum = options_given(&opt.accum);
    *folder = run_folder(opt.out);
    Recalled recalled = {0};
    if (opt.resume) recalled = options_recall(argc, argv, folder->state, folder->options);
    options_find_shipped();
    Settings s = settings_from_options();
    if (opt.lora) run_folder_hold_adapters(folder);
    s.recalled = recalled;
    s.explicit_accum = explicit_accum;
    return s;
}

/* Opens the teacher and the student on their devices. */
static void open_models(Trainer *t, Teacher *teacher, Devices devices, const Settings *s, const RunFolder *folder,
                        const Parallel *p) {
    if (s->has_teacher) teacher_open(teacher, devices.teacher, opt.teacher);
    trainer_open(t, devices.student, s, folder, teacher, p->comm.ranks, is_rank0(p));
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

/* Opens the datasets and sets max_tokens: the longest sample, rounded up to a multiple of 8 and capped by both models'
 * context and --max-tokens. */
static void open_data(Data *d, const Settings *s, Trainer *t, Teacher *teacher) {
    open_dataset(&d->train, opt.data, t);
    if (s->has_val) open_dataset(&d->val, opt.val_data, t);
    int longest = (int)(d->val.longest > d->train.longest ? d->val.longest : d->train.longest);
    teacher_open_cache(teacher, s, &d->train, t->student.c.lm.vocab);
    int most = model_max_text(&t->student);
    if (teacher_max_text(teacher) < most) most = teacher_max_text(teacher);
    if (opt.max_tokens && opt.max_tokens < most) most = (int)opt.max_tokens;
    d->max_tokens = (longest + 7) / 8 * 8;
    if (d->max_tokens > most) d->max_tokens = most;
    t->data_fingerprint = dataset_content(&d->train);
    t->val_fingerprint = s->has_val ? dataset_content(&d->val) : 0;
    t->fitting = dataset_fitting(&d->train, d->max_tokens);
}

/* Allocates everything that training needs, and hands the optimizer to the data-parallel collectives. */
static void plan_memory(Trainer *t, Teacher *teacher, OnPolicy *own, const Settings *s, const Data *d, Parallel *p) {
    teacher_plan(teacher, t->op, s->batch, d->max_tokens, s->objective.w_embed > 0, &t->pairs);
    if (s->has_teacher && !s->own_programs && model_share_encoder(&t->student, &teacher->model) && is_rank0(p))
        progress_note("student: its frozen encoder is the teacher's, which encodes the images for both");
    trainer_plan(t, s, teacher, d->max_tokens, p->comm.rank, p->comm.ranks);
    on_policy_plan(own, t, s, teacher, d->max_tokens, p->comm.ranks);
    parallel_use_optimizer(p, &t->optimizer, trainer_params(t));
}

/* The matmul rate of the devices of all ranks in FLOP/s, measured on all of them at the same time. */
static double measure_peak(const Trainer *t, const Teacher *teacher, Parallel *p) {
    double mine = measure_peak_flops(t->op);
    if (teacher->op && !ops_share_memory(teacher->op, t->op)) mine += measure_peak_flops(teacher->op);
    return parallel_sum(p, mine);
}

/* ---- data ---- */

/* Loader settings for this rank's part of batches of `rows` images: endless shuffled epochs for training, one pass in
 * order for an evaluation. */
static LoaderConfig loader_config(const Data *d, const Settings *s, const Trainer *t, const Teacher *teacher,
                                  const Parallel *p, int rows, bool training) {
    bool has_teacher = s->has_teacher;
    const ImageSize second = has_teacher ? vision_size(&teacher->model.c.vision) : (ImageSize){0};
    LoaderConfig c =
        loader_config_for(rows, d->max_tokens, vision_size(&t->student.c.vision), t->student.tokenizer.count, second,
                          has_teacher ? teacher->model.c.lm.vocab : (int)teacher->cache.h.vocab);
    c.micro_rows = s->group > 1 ? rows : s->batch;  // --reinforce makes micro-batches of its own
    c.rank = p->comm.rank;
    c.ranks = p->comm.ranks;
    if (!training) return c;
    c.seed = (uint64_t)opt.seed;
    c.shuffle = c.drop_last = true;
    c.cache_bytes = (size_t)opt.cache << 20;
    c.augment = s->augment;
    c.threads = settings_load_threads(s);
    c.first_batch = (uint64_t)t->batch;
    c.hold = teacher->overlaps || opt.on_policy_ahead ? 2 : 1;
    if (opt.group_by_width) c.width_step = trainer_width_step(t, has_teacher ? &teacher->model : NULL);
    return c;
}

/* The number of batches in an evaluation. */
static int64_t evaluation_batches(const Data *d, const Settings *s) {
    int64_t batches = (dataset_fitting(&d->val, d->max_tokens) + s->batch - 1) / s->batch;
    return s->eval_batches && s->eval_batches < batches ? s->eval_batches : batches;
}

/* Starts the loader thread; sets the number of steps and the learning-rate schedule. */
static void start_loader(Data *d, Trainer *t, OnPolicy *own, const Settings *s, const Teacher *teacher,
                         const RunFolder *folder, const Parallel *p) {
    Error err;
    checkpoint_renumber_batches(t, folder);
    const LoaderConfig config = loader_config(d, s, t, teacher, p, (int)t->images, true);
    die_if(loader_start(&d->loader, &d->train, config, &err), &err);
    on_policy_open_loader(own, &d->train, config);
    if (d->loader.skipped && is_rank0(p))
        warn("%llu of %llu samples have more than %d text tokens and are left out",
             (unsigned long long)d->loader.skipped, (unsigned long long)d->train.count, d->max_tokens);
    t->steps = opt.steps ? opt.steps : t->step + opt.epochs * (int64_t)d->loader.batches_per_epoch - t->batch;
    d->eval_every = opt.eval_every ? opt.eval_every : (t->steps + 9) / 10;
    d->eval_batches = s->has_val ? evaluation_batches(d, s) : 0;
    if (s->has_val && !d->eval_batches)
        die("every sample of %s has more than %d text tokens, so that nothing is left to evaluate; use other data or "
            "--val-data none",
            opt.val_data, d->max_tokens);
    plan_learning_rate(t, s, is_rank0(p));
}

/* The next batch, or NULL where its data are damaged. */
static const Batch *batch_take(Data *d, Error *err) {
    const Batch *batch = d->next;
    d->next = NULL;
    return batch ? batch : loader_next(&d->loader, err);
}

static const Batch *batch_next(Data *d) {
    Error err;
    const Batch *batch = batch_take(d, &err);
    die_if(!batch, &err);
    return batch;
}

/* The batch of the next step. Where its data are damaged, one process saves what it has learned before it ends. */
static const Batch *batch_of_step(Data *d, Trainer *t, const RunFolder *folder, Parallel *p) {
    Error err;
    const Batch *batch = batch_take(d, &err);
    if (!batch && p->comm.ranks == 1 && t->step > 0 && t->step > t->saved) checkpoint_save(t, folder, p);
    die_if(!batch, &err);
    return batch;
}

/* Micro-batch m of a batch. */
static MicroBatch micro_batch(const Batch *batch, int m) {
    const int last = batch->size_count - 1;
    const size_t first = (size_t)m * batch->micro_rows;
    int left = batch->B - (int)first;
    return (MicroBatch){.samples = batch->samples + first,
                        .pixels = batch->pixels[0] + first * image_size_bytes(batch->sizes[0]),
                        .teacher_pixels = batch->pixels[last] + first * image_size_bytes(batch->sizes[last]),
                        .width = batch->widths[first],
                        .teacher_width = last ? batch->sizes[last].width : batch->widths[first],
                        .ids = batch->ids + first * batch->T,
                        .B = left < batch->micro_rows ? left : batch->micro_rows,
                        .T = batch->T,
                        .number = (int64_t)batch->number << 20 | m,  // unique: a batch has at most 2^20 micro-batches
                        .scale = {1.0 / batch->tokens, 1.0 / batch->rows}};
}

/* The micro-batch after m, for teacher_prefetch. NULL at the end of the run, and across a batch boundary where nothing is
 * prefetched, or where the student has yet to write the next programs. */
static const MicroBatch *micro_batch_after(Data *d, const Batch *batch, int m, const Trainer *t, const Settings *s,
                                           MicroBatch *next) {
    if ((m + 1) * batch->micro_rows < batch->B) {
        *next = micro_batch(batch, m + 1);
        return next;
    }
    if (t->step + 1 >= t->steps || d->loader.config.hold < 2 || on_policy_takes(s, batch->number + 1)) return NULL;
    d->next = batch_next(d);
    *next = micro_batch(d->next, 0);
    return next;
}

/* ---- after a step ---- */

/* Collects the step's statistics, summed over the ranks. */
static StepResult collect_step(Trainer *t, Parallel *p, Report report, const Batch *batch, double lr) {
    float norm_squared;
    report.sums = trainer_collect(t);
    report.interrupted = interrupted();
    StepResult r = {.report = all_reduce_report(p, report), .lr = lr, .tokens = batch->tokens};
    t->op->download(&norm_squared, t->optimizer.norm_squared, sizeof norm_squared);
    r.norm = sqrt((double)norm_squared);
    r.loss = objective_mean(&t->objective, &r.report.sums);
    return r;
}

/* Evaluates on the validation data with the objective as given, unscheduled. Returns sums over all ranks. */
static ObjectiveSums evaluate(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, Parallel *p) {
    Error err = {""};
    Loader loader;
    const Batch *batch;
    t->objective.config = s->objective;
    die_if(loader_start(&loader, &d->val, loader_config(d, s, t, teacher, p, s->batch, false), &err), &err);
    if (loader.skipped && t->best == INFINITY && is_rank0(p))  // warn at the first evaluation only
        warn("%llu of %llu validation samples have more than %d text tokens and are left out",
             (unsigned long long)loader.skipped, (unsigned long long)d->val.count, d->max_tokens);
    for (int64_t i = 0; i < d->eval_batches && (batch = loader_next(&loader, &err)); i++) {
        if (!batch->B) continue;  // other ranks have this batch
        MicroBatch mb = micro_batch(batch, 0);
        mb.number = -1;
        mb.scale = (LossScale){0, 0};
        TeacherOutput q = teacher_get(teacher, &mb);
        trainer_set_dropout(t, mb.number);
        model_forward_width(&t->student, mb.pixels, mb.width, mb.ids, mb.B, mb.T);
        objective_run(&t->objective, &t->student, &q, mb.scale);
        layer_loss_run(&t->layers, &t->student, &q, mb.scale);
    }
    if (err.text[0]) die("%s", err.text);
    loader_stop(&loader);
    return all_reduce_report(p, (Report){.sums = trainer_collect(t)}).sums;
}

/* Evaluates, saves the student if it is the best so far, and writes a checkpoint. */
static void evaluate_and_save(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                              Parallel *p, const Log *log) {
    Error err;
    if (s->has_val) {
        ObjectiveSums sums = evaluate(t, teacher, d, s, p);
        double ce = sums.ce / sums.positions;
        if (!isfinite(ce))
            die("the validation loss became %g after step %lld; %s", fabs(ce), (long long)t->step,
                resume_advice(t, folder, true));
        check_finite_state(t, folder);
        log_evaluation(log, t->step, &sums);
        t->evals_since_best = ce < t->best ? 0 : t->evals_since_best + 1;
        if (ce < t->best) {
            t->best = ce;
            run_folder_check(folder);
            if (is_rank0(p)) die_if(trainer_save_student(t, folder->best, &err), &err);
        }
    }
    log_sync(log);
    checkpoint_save(t, folder, p);
}

/* Ends the program when the loss or the gradient norm is not finite, and names the cause: a damaged file that the run
 * began from, the checkpoint, or the learning rate. (fabs: nan, not -nan.) */
static void check_finite(const Trainer *t, const Settings *s, const StepResult *r, const RunFolder *folder) {
    if (isfinite(r->loss) && isfinite(r->norm)) return;
    const char *begun_from[] = {s->has_teacher ? opt.teacher : NULL,
                                opt.resume && !opt.lora ? folder->student : opt.student, opt.resume ? NULL : s->init.path};
    for (int i = 0; i < 3; i++)
        if (begun_from[i]) check_file_finite(begun_from[i]);
    bool from_checkpoint = t->step == t->saved + 1;  // the weights of this step are the checkpoint's
    die("the loss became %g (gradient norm %g) at step %lld; %s", fabs(r->loss), fabs(r->norm), (long long)t->step,
        resume_advice(t, folder, !from_checkpoint));
}

/* Evaluates and saves when due. Returns why to stop early, or NOT_STOPPED. */
static StopReason after_step(Trainer *t, Teacher *teacher, const Data *d, const Settings *s, const RunFolder *folder,
                             Parallel *p, const Log *log, const StepResult *r) {
    bool due = t->step % d->eval_every == 0 || t->step == t->steps;
    if (due) evaluate_and_save(t, teacher, d, s, folder, p, log);
    if (due && opt.patience && t->evals_since_best >= opt.patience) return OUT_OF_PATIENCE;
    if (r->report.interrupted == 0 || t->step == t->steps) return NOT_STOPPED;
    if (due) return INTERRUPTED;
    log_sync(log);
    checkpoint_save(t, folder, p);
    return INTERRUPTED;
}

/* Prints why the run stopped early, if it did, and the path of the student. */
static void print_result(const Trainer *t, const RunFolder *folder, StopReason stop) {
    if (stop == OUT_OF_PATIENCE)
        fprintf(stderr, "stopped early: no better validation for %lld evaluations\n", (long long)t->evals_since_best);
    if (stop == INTERRUPTED)
        fprintf(stderr, "interrupted: saved step %lld in %s; --resume continues from there\n", (long long)t->step,
                folder->path);
    printf("%s\n", isfinite(t->best) ? folder->best : folder->student);
    const bool failed = fflush(stdout) || ferror(stdout), unread = errno == EPIPE || errno == EBADF;
    if (failed && !unread)  // a full disk; that nobody reads it is no fault of the run
        die("cannot write the name of the student to stdout: %s; the run itself is complete", strerror(errno));
}
