/* Logging, on rank 0 only: log.jsonl, one JSON object per step and evaluation, and the summary at the start. */
#ifndef TRAIN_LOG_H
#define TRAIN_LOG_H

#include "../lib/json.h"
#include "../metrics/objective_table.h"
#include "on_policy.h"
#include "parallel.h"
#include "reinforce.h"
#include "trainer.h"

typedef struct {
    FILE *file;  // NULL on ranks that do not log
    const char *path;
    bool distils;      // steps have a teacher's outputs
    bool has_teacher;  // evaluations too
    int ranks;
    bool on_policy;            // some steps learn from own samples
    double sampling, seconds;  // of the steps so far: that sampling took; all
    double sampled, cut;       // own samples so far; those that have no end
} Log;

/* Copies the lines of the old log, if there is one, up to a step. A crash can leave a part of a line at the end. */
static void log_copy(AtomicFile *to, const char *path, int64_t step) {
    Error err;
    const char *problem;
    char *line = NULL;
    size_t size, capacity = 0;
    if (!file_exists(path)) return;
    int fd = file_open(path, &size, &problem);
    FILE *from = fd >= 0 ? fdopen(fd, "r") : NULL;
    if (!from) die("cannot read %s: %s", path, problem ? problem : strerror(errno));
    for (ssize_t length; (length = getline(&line, &capacity, from)) > 0;) {
        long long at;
        if (line[length - 1] != '\n') break;
        if (sscanf(line, "{\"step\":%lld", &at) != 1 || at > (long long)step) continue;
        die_if(atomic_write(to, line, (size_t)length, &err), &err);
    }
    if (ferror(from)) die("cannot read %s: %s", path, strerror(errno));
    free(line);
    fclose(from);
}

/* Opens the log. When resuming, lines of steps after the checkpoint are dropped: those steps run again. */
static Log log_open(const RunFolder *folder, int64_t step, const Settings *s, const Parallel *p) {
    Error err;
    AtomicFile file;
    struct stat old;
    Log log = {.path = folder->log,
               .distils = s->distils,
               .has_teacher = s->has_teacher,
               .ranks = p->comm.ranks,
               .on_policy = s->on_policy > 0};
    if (!is_rank0(p)) return log;
    const char *problem = stat(log.path, &old) == 0 ? file_problem(&old) : NULL;
    if (problem) die("cannot write %s: %s", log.path, problem);
    die_if(atomic_open(&file, log.path, &err), &err);
    if (opt.resume) log_copy(&file, log.path, step);
    die_if(atomic_commit(&file, &err), &err);
    log.file = fopen(log.path, "a");
    if (!log.file) die("cannot write %s: %s", log.path, strerror(errno));
    return log;
}

/* Before a checkpoint: its steps are in the log on disk, so that a log that lost lines in a crash has no gap. */
static void log_sync(const Log *log) {
    if (log->file && (fflush(log->file) || fsync(fileno(log->file))))
        die("cannot write %s: %s", log->path, strerror(errno));
}

static double log_sampling_percent(const Log *log) {
    return log->seconds > 0 ? 100 * log->sampling / log->seconds : 0;
}

static void log_close(Log *log) {
    if (log->file && log->on_policy && log->seconds > 0)
        fprintf(stderr, "own samples: %.0f, of which %.0f have no end; sampling took %.0f %% of the time\n",
                log->sampled, log->cut, log_sampling_percent(log));
    if (log->file && fclose(log->file)) die("cannot write %s: %s", log->path, strerror(errno));
    log->file = NULL;
}

static JsonWriter log_begin(int64_t step) {
    JsonWriter w = {0};
    json_begin_object(&w);
    json_key(&w, "step"), json_integer(&w, step);
    return w;
}

static void log_end(const Log *log, JsonWriter *w) {
    json_key(w, "time"), json_integer(w, (int64_t)time(NULL));  // Unix seconds
    json_end_object(w);
    if (log->file && (json_write_line(w, log->file) || fflush(log->file)))
        die("cannot write %s: %s", log->path, strerror(errno));
    json_writer_free(w);
}

/* One optimizer step, as it was logged. */
typedef struct {
    Report report;
    double loss, norm, lr;
    Programs programs;
    int tokens;      // counted text tokens of all ranks
    double seconds;  // the step's duration
    double peak;     // measured peak rate of all devices, FLOP/s
    const ReinforceStats *rewards;  // with --reinforce, else NULL
} StepResult;

/* What --reinforce adds to a step's line. kl: of student || reference, at the temperature of the samples. */
static void log_rewards(JsonWriter *w, const StepResult *r) {
    const ReinforceStats *s = r->rewards;
    const ObjectiveSums *sums = &r->report.sums;
    const double n = s->programs, tau2 = opt.sample_temperature * opt.sample_temperature;
    json_key(w, "reward"), json_number(w, s->reward / n);
    json_key(w, "compiles"), json_number(w, s->compiles / n);
    json_key(w, "exact"), json_number(w, s->exact / n);
    json_key(w, "cut"), json_number(w, s->cut / n);
    json_key(w, "length"), json_number(w, (double)s->length / n);
    json_key(w, "equal_groups"), json_number(w, (double)s->equal_groups / s->groups);
    json_key(w, "clipped"), json_number(w, sums->positions > 0 ? sums->clipped / sums->positions : 0);
    json_key(w, "kl"), json_number(w, sums->positions > 0 ? sums->soft / sums->positions / tau2 : 0);
    json_key(w, "sampling"), json_number(w, s->sampling / r->seconds);
    json_key(w, "rewarding"), json_number(w, s->rewarding / r->seconds);
}

/* Writes what a step had of own samples: whether it learned from them, whether from earlier ones, how many of the new ones
 * have no end, and the share of the step that sampling took. Says once that there are some without. */
static void log_own_samples(Log *log, JsonWriter *w, int64_t step, const StepResult *r) {
    const Report *report = &r->report;
    const double sampling = report->sampling / log->ranks;
    if (!log->on_policy) return;
    json_key(w, "on_policy"), json_integer(w, r->programs != PROGRAMS_DATA);
    json_key(w, "replayed"), json_integer(w, r->programs == PROGRAMS_REPLAYED);
    json_key(w, "cut"), json_integer(w, (int64_t)report->cut);
    json_key(w, "sampling"), json_number(w, sampling / r->seconds);
    if (log->file && report->cut > 0 && log->cut <= 0)
        progress_note(
            "step %lld: %.0f of %.0f own samples were cut before an end; they are learned from as far as they "
            "go, and log.jsonl counts them (\"cut\")",
            (long long)step, report->cut, report->sampled);
    log->sampling += sampling;
    log->seconds += r->seconds;
    log->sampled += report->sampled;
    log->cut += report->cut;
}

/* Writes the step's line, and shows it in the progress bar. */
static void log_step(Log *log, int64_t step, const StepResult *r, Progress *progress) {
    char sampling[40] = "";
    JsonWriter w = log_begin(step);
    json_key(&w, "loss"), json_number(&w, r->loss);
    if (r->rewards)
        log_rewards(&w, r);
    else
        metrics_json(&w, &r->report.sums, log->distils);
    json_key(&w, "lr"), json_number(&w, r->lr);
    json_key(&w, "norm"), json_number(&w, r->norm);
    json_key(&w, "tokens_per_second"), json_number(&w, r->tokens / r->seconds);
    json_key(&w, "peak_share"), json_number(&w, r->report.flops / r->seconds / r->peak);
    if (log->ranks > 1) json_key(&w, "comm"), json_number(&w, r->report.waited);
    log_own_samples(log, &w, step, r);
    log_end(log, &w);
    if (log->on_policy) snprintf(sampling, sizeof sampling, ", sampling %.0f %%", log_sampling_percent(log));
    if (r->rewards)
        progress_update(progress, step, "reward %.4f, %.1f %% exact", r->rewards->reward / r->rewards->programs,
                        100.0 * r->rewards->exact / r->rewards->programs);
    else
        progress_update(progress, step, "loss %.4f, %.0f tokens/s, %.0f %% of peak%s", r->loss,
                        r->tokens / r->seconds, 100 * r->report.flops / r->seconds / r->peak, sampling);
}

static void log_evaluation(const Log *log, int64_t step, const ObjectiveSums *sums) {
    JsonWriter w = log_begin(step);
    json_key(&w, "val");
    json_begin_object(&w);
    metrics_json(&w, sums, log->has_teacher);
    json_end_object(&w);
    log_end(log, &w);
    if (!log->file) return;
    double n = sums->positions;
    progress_note("step %lld: validation ce %.4f, token accuracy %.2f %%", (long long)step, sums->ce / n,
                  100 * sums->correct / n);
    if (log->has_teacher)
        progress_note("          soft loss %.4f, agreement with the teacher %.2f %%", sums->soft / n,
                      100 * sums->agreement / n);
}

/* ---- the summary ---- */

static double megabytes(const Arena *a) { return (double)a->used / 1e6; }

/* Prints what the adapters are, and the memory of what is trained (rounded values, gradients, masters and two moments)
 * beside that of training every weight. */
static void print_lora(const Lora *lora, const Params *base, const Optimizer *o) {
    char targets[256];
    const double shared = o->sharded ? o->ranks : 1, each = sizeof(floatX) + sizeof(float) * (1 + 3 / shared);
    lora_targets_write(targets, sizeof targets, lora->targets);
    fprintf(stderr, "lora: rank %d, alpha %g, dropout %g, %d layers (%s)\n", lora->rank, lora->alpha, lora->dropout,
            lora->layers, targets);
    fprintf(stderr,
            "lora: what is trained takes %.1f MB with its gradients and optimizer state, all weights would take %.1f "
            "MB\n",
            (megabytes(&o->value_arena) + megabytes(&o->gradient_arena) + megabytes(&o->state_arena)),
            each * (double)params_total(base, GROUP_ALL) / 1e6);
}

/* Prints what is trained, where and how long, or warns that the run is already complete. */
static void print_summary(const Trainer *t, const Teacher *teacher, const OnPolicy *own, const Settings *s,
                          const RunFolder *folder, const Parallel *p, const Dataset *data, double peak) {
    const Params *params = &t->student.params;
    const Optimizer *o = &t->optimizer;
    const Lora *lora = t->student.lora;
    const double trained = (double)(lora ? params_total(&lora->params, GROUP_ALL) : params_total(params, s->groups));
    fprintf(stderr, "device %s, %d threads, measured peak %.2f TFLOP/s\n", ops_name(t->op).text,
            omp_get_max_threads(), peak / 1e12);
    if (p->comm.ranks > 1)
        fprintf(stderr, "%d processes, gradients summed through %s%s\n", p->comm.ranks, p->comm.engine,
                o->sharded ? ", each with a part of the optimizer state" : "");
    if (teacher->cache.data) {
        char *what = cache_describe(&teacher->cache.h);
        fprintf(stderr, "teacher %s: not in memory, %s from %s\n", teacher->cache.h.name, what, opt.teacher_cache);
        free(what);
    }
    if (s->has_teacher)
        fprintf(stderr, "teacher %s: %.2f M parameters, on %s\n", opt.teacher,
                (double)params_total(&teacher->model.params, GROUP_ALL) / 1e6, teacher->op->name);
    fprintf(stderr, "student %s: %.2f M parameters (vision %.2f, connector %.2f, lm %.2f), %.2f M trained\n",
            opt.resume && !opt.lora ? folder->student : opt.student, (double)params_total(params, GROUP_ALL) / 1e6,
            (double)params_total(params, GROUP_VISION) / 1e6, (double)params_total(params, GROUP_CONNECTOR) / 1e6,
            (double)params_total(params, GROUP_LM) / 1e6, trained / 1e6);
    if (lora) print_lora(lora, params, o);
    fprintf(
        stderr,
        "memory: parameters %.1f MB, gradients %.1f MB, optimizer %.1f MB, activations %.1f MB (teacher %.1f MB), "
        "logits %.1f MB\n",
        megabytes(&params->arena) + megabytes(&o->value_arena), megabytes(&o->gradient_arena),
        megabytes(&o->state_arena), megabytes(&t->student.arena), megabytes(&teacher->model.arena),
        megabytes(&t->objective.arena));
    if (s->group > 1)
        fprintf(stderr, "rewards: %d programs for each image, drawn by %d threads of TeX\n", s->group,
                omp_get_max_threads());
    if (s->on_policy > 0)
        fprintf(
            stderr,
            "own samples: %g %% of the batches, up to %d tokens each, at temperature %g%s; key-value cache %.1f MB\n",
            100 * s->on_policy, own->rollout.max_new_tokens, opt.on_policy_temperature,
            !own->ahead.on ? "" : own->ahead.op ? ", drawn a step ahead on the teacher's GPU" : ", drawn a step ahead",
            megabytes(&own->rollout.g.arena));
    fprintf(stderr, "data: %llu samples, %lld steps of %lld images, %lld steps an epoch\n",
            (unsigned long long)data->count, (long long)t->steps, (long long)t->images,
            (long long)(t->fitting / t->images));
    if (t->step >= t->steps)
        warn("%s has all of its %lld steps already; --steps or --epochs can raise their number", opt.out,
             (long long)t->steps);
}

#endif
