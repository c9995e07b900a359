/* Data parallelism. Every rank has a full copy of student and teacher, and its own micro-batches.
 *
 *   gradients   summed over the ranks bucket by bucket, from the end of the flat arrays (train/optimizer.h), while the
 *               last backward pass of a step is still computing the earlier layers
 *   optimizer   sharded, each rank updates its pieces; then the parameters are all-gathered
 *   reports     what was counted in a step, summed over the ranks, so that every rank takes the same decisions
 *
 * With a single rank all of this does nothing. The backends (MPI, NCCL) are in dist/comm.h. */
#ifndef TRAIN_PARALLEL_H
#define TRAIN_PARALLEL_H

#include "../dist/comm.h"
#include "../lib/crc32.h"
#include "../lib/file_checksum.h"
#include "../loss.cuh"
#include "optimizer.h"
#include "run.h"

#include <glob.h>

typedef struct {
    Comm comm;
    const Optimizer *optimizer;
    const Params *params;  // the student's, in the order of declaration
    int next_bucket;       // to be reduced next; counts down
    double waited_before;  // seconds that communication had waited at the last report
} Parallel;

static bool is_rank0(const Parallel *p) { return p->comm.rank == 0; }

/* ---- gradients ---- */

/* Starts summing the buckets whose gradients, from flat element `from` on, are final. */
static void parallel_reduce_from(Parallel *p, size_t from) {
    const Optimizer *o = p->optimizer;
    for (; p->next_bucket >= 0 && p->next_bucket * o->bucket >= from; p->next_bucket--) {
        float *bucket = o->gradients + p->next_bucket * o->bucket;
        size_t n = optimizer_bucket_length(o, p->next_bucket);
        if (o->sharded)
            comm_reduce_scatter(&p->comm, bucket, n / o->ranks);
        else
            comm_all_reduce(&p->comm, bucket, n);
    }
}

/* The gradient hook: the gradients of q and of everything declared after it are final. Norms and biases come first in the
 * flat arrays, so they are reduced last. */
static void parallel_gradients_ready(void *context, const Param *q) {
    Parallel *p = context;
    const Param *end = p->params->list + p->params->count;
    while (q < end && !(q->gradient && q->decay)) q++;
    if (q < end) parallel_reduce_from(p, q->offset);
}

/* Before a backward pass: installs the gradient hook for the last micro-batch of a step, so that buckets are reduced as
 * they become final. Adapters are few and come last: they are reduced after it. */
static void parallel_overlap_backward(Parallel *p, Model *student, bool last) {
    p->next_bucket = optimizer_buckets(p->optimizer) - 1;
    student->hook = (GradientHook){last && p->comm.ranks > 1 && !student->lora ? parallel_gradients_ready : NULL, p};
}

/* Reduces the remaining buckets, then computes the global gradient norm. With NCCL only the device waits. */
static void all_reduce_gradients(Parallel *p, const Optimizer *o) {
    parallel_reduce_from(p, 0);
    comm_finish(&p->comm);
    optimizer_norm(o);
    if (o->ranks == 1) return;
    comm_all_reduce(&p->comm, o->norm_squared, 1);
    comm_finish(&p->comm);
}

/* AdamW with global-norm clipping; with sharding, an all-gather of the parameters follows. step counts from 1. */
static void adamw_step(const Optimizer *o, Parallel *p, double lr, int64_t step) {
    optimizer_step(o, (float)lr, (int)step);
    for (int b = 0; o->sharded && b < optimizer_buckets(o); b++)
        comm_all_gather(&p->comm, o->values + b * o->bucket,
                        optimizer_bucket_length(o, b) / o->ranks * sizeof(floatX));
    comm_finish(&p->comm);
}

/* ---- reports ---- */

/* What was counted in a step or an evaluation. Doubles only, so that reports can be added up. */
typedef struct {
    ObjectiveSums sums;
    double flops, interrupted;
    double sampled, cut, sampling;  // own samples, those without an end, and the seconds that they took
    double waited;  // seconds blocked on MPI (0 with NCCL); filled by all_reduce_report
} Report;

/* All-reduces the report in rank order, so that every rank gets the same bits. `waited` is the minimum: only the slowest
 * rank's wait is pure communication time. */
static Report all_reduce_report(Parallel *p, Report mine) {
    enum { DOUBLES = sizeof(Report) / sizeof(double) };
    int ranks = p->comm.ranks;
    Report total = {0}, *all = xcalloc(ranks, sizeof *all);
    mine.waited = p->comm.seconds_waited - p->waited_before;
    p->waited_before = p->comm.seconds_waited;
    comm_gather_host(&p->comm, &mine, sizeof mine, all);
    double waited = all[0].waited;
    for (int r = 0; r < ranks; r++) {
        for (int k = 0; k < DOUBLES; k++) ((double *)&total)[k] += ((double *)&all[r])[k];
        if (all[r].waited < waited) waited = all[r].waited;
    }
    total.waited = waited;
    free(all);
    return total;
}

/* The sum of a value over the ranks. */
static double parallel_sum(Parallel *p, double mine) {
    double sum = 0, *all = xcalloc(p->comm.ranks, sizeof *all);
    comm_gather_host(&p->comm, &mine, sizeof mine, all);
    for (int r = 0; r < p->comm.ranks; r++) sum += all[r];
    free(all);
    return sum;
}

/* ---- agreement ---- */

/* Writes "key = checksum" of a file, or of all files that a pattern matches (of large files, 1 MB samples throughout). A
 * name that is not a file is written verbatim. */
static void write_checksum(FILE *text, const char *key, const char *path) {
    Error err;
    glob_t found = {0};
    uint32_t crc = 0;
    int files = 0;
    bool one = !path || file_exists(path) || glob(path, 0, NULL, &found) || !found.gl_pathc;
    for (size_t i = 0; path && i < (one ? 1 : found.gl_pathc); i++) {
        MappedFile file;
        const char *name = one ? path : found.gl_pathv[i];
        if (!file_exists(name) || file_map(&file, name, &err)) continue;
        crc = file_checksum_add(crc, &file);
        file_unmap(&file);
        files++;
    }
    globfree(&found);
    if (files)
        fprintf(text, "%s = checksum %08x\n", key, crc);
    else
        fprintf(text, "%s = %s\n", key, path ? path : "none");
}

/* Ends all ranks if a rank's build, settings, models or data differ from rank 0's. */
static void check_same_settings(Parallel *p, const RunFolder *folder, const Settings *s) {
    char *options = NULL, *text = NULL, *rest = NULL;
    size_t size;
    if (p->comm.ranks == 1) return;
    FILE *f = open_memstream(&options, &size);
    options_write(table, OPTIONS, f, NULL, 0);
    fclose(f);
    f = open_memstream(&text, &size);
    write_checksum(f, "build", "/proc/self/exe");
    write_checksum(f, "teacher", opt.teacher);
    write_checksum(f, "teacher cache", opt.teacher_cache);
    write_checksum(f, "student", opt.resume ? folder->student : opt.student);
    write_checksum(f, "init", opt.init);
    write_checksum(f, "tokenizer", opt.tokenizer);
    write_checksum(f, "training data", opt.data);
    write_checksum(f, "validation data", opt.val_data);
    if (opt.resume && opt.shard) write_checksum(f, "checkpoint", folder->state);
    for (char *line = strtok_r(options, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (!option_may_differ(line)) fprintf(f, "--%s\n", line);
    fprintf(f, "images of a micro-batch = %d\nmicro-batches of a step = %d\nvalidation batches = %lld\n", s->batch,
            s->accum, (long long)s->eval_batches);
    fclose(f);
    comm_check_same(&p->comm, text);
    free(options);
    free(text);
}

/* Ends all ranks if any rank's initial weights differ from rank 0's. */
static void check_same_weights(Parallel *p) {
    const Optimizer *o = p->optimizer;
    const size_t most = 1 << 20;
    uint32_t crc = 0, *all = xmalloc(p->comm.ranks * sizeof *all);
    floatX *host = xmalloc(most * sizeof(floatX));
    for (size_t at = 0; at < o->n && p->comm.ranks > 1; at += most) {
        size_t bytes = (o->n - at < most ? o->n - at : most) * sizeof(floatX);
        o->op->download(host, o->values + at, bytes);
        crc = crc32_bytes(crc, (const uint8_t *)host, bytes);
    }
    comm_gather_host(&p->comm, &crc, sizeof crc, all);
    for (int r = 1; r < p->comm.ranks; r++)
        if (all[r] != all[0]) die("the student's initial weights on rank %d differ from those on rank 0", r);
    free(all);
    free(host);
}

/* ---- opening ---- */

/* Joins the process group. check_same_settings then compares what the ranks are about to do. */
static void parallel_open(Parallel *p) {
    Error err;
    *p = (Parallel){0};
    die_if(comm_init(&p->comm, &err), &err);
}

static void parallel_use_optimizer(Parallel *p, const Optimizer *o, const Params *params) {
    Error err;
    p->optimizer = o;
    p->params = params;
    die_if(comm_use_device(&p->comm, o->op, &err), &err);
}

/* Opens the device that an option names, or else --device's. By default, the ranks of a machine share its GPUs evenly;
 * where each can have two, the teacher runs on one and the student on the other. */
static const Ops *open_device(const char *option, const char *name, const Parallel *p, bool has_teacher,
                              bool teacher) {
    Error err;
    char text[24];
    bool automatic = false;
    int gpus = gpus_visible(), ranks = p->comm.local_ranks, rank = p->comm.local_rank;
    if (!name) {
        name = opt.device;
        option = "device";
        automatic = !strcmp(name, "auto");
        bool pair = automatic && has_teacher && gpus >= 2 * ranks && !opt.teacher_device && !opt.student_device;
        if (gpus && (pair || (ranks > 1 && (automatic || !strcmp(name, "cuda"))))) {
            snprintf(text, sizeof text, "cuda:%d", pair ? 2 * rank + !teacher : rank % gpus);
            name = text;
        }
    }
    const Ops *op = ops_open(name, &err);
    if (!op && automatic) op = ops_open("auto", &err);  // a GPU that is too old
    if (!op && p->comm.ranks > 1) die("--%s: %s", option, err.text);
    if (!op) options_die("--%s: %s", option, err.text);
    return op;
}

typedef struct {
    const Ops *teacher, *student;  // the same device: two of its streams
} Devices;

/* Opens the devices of this rank, and divides the processor's cores among the ranks that share them. */
static Devices open_devices(bool has_teacher, const Parallel *p) {
    int cores = omp_get_max_threads() / (getenv("OMP_NUM_THREADS") ? 1 : p->comm.sharing);
    threads_use(opt.threads ? (int)opt.threads : cores ? cores : 1);
    Devices d = {.teacher = open_device("teacher-device", opt.teacher_device, p, has_teacher, true),
                 .student = open_device("student-device", opt.student_device, p, has_teacher, false)};
    if (has_teacher && d.teacher == d.student) d.teacher = ops_second_stream(d.student);
    return d;
}

static void parallel_close(Parallel *p) { comm_close(&p->comm); }

#endif
