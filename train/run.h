/* The output folder of a run, and its lock.
 *
 *   student.safetensors   the newest weights              log.jsonl     one JSON object per step
 *   best.safetensors      the best on the validation data options.txt   the options, for --resume and --config
 *   state.safetensors     optimizer state and step        .lock         the process that writes here
 *
 * With --lora, adapter.safetensors and best_adapter.safetensors stand in place of the first two.
 *
 * With a sharded optimizer, each rank writes state-STEP.RANK-of-RANKS.safetensors (train/checkpoint.h). */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "../dist/comm.h"
#include "../lib/file.h"
#include "options.h"

#include <dirent.h>

typedef struct {
    const char *path;
    char *student, *best, *state, *log, *options, *lock;
    char *other_student, *other_best;  // as a run of the other kind, with or without adapters, names its weights
    dev_t device;  // of the lock file: tells when the folder was moved or replaced
    ino_t inode;   // 0: this rank writes nothing
} RunFolder;

static RunFolder run_folder(const char *path) {
    return (RunFolder){.path = path,
                       .student = format_string("%s/student.safetensors", path),
                       .best = format_string("%s/best.safetensors", path),
                       .other_student = format_string("%s/adapter.safetensors", path),
                       .other_best = format_string("%s/best_adapter.safetensors", path),
                       .state = format_string("%s/state.safetensors", path),
                       .log = format_string("%s/log.jsonl", path),
                       .options = format_string("%s/options.txt", path),
                       .lock = format_string("%s/.lock", path)};
}

/* A run with --lora writes adapters in place of students. */
static void run_folder_hold_adapters(RunFolder *f) {
    char *student = f->student, *best = f->best;
    f->student = f->other_student, f->other_student = student;
    f->best = f->other_best, f->other_best = best;
}

static void run_folder_free(RunFolder *f) {
    free(f->student);
    free(f->best);
    free(f->other_student);
    free(f->other_best);
    free(f->state);
    free(f->log);
    free(f->options);
    free(f->lock);
}

/* Refuses to begin from a file that this run would replace or remove. */
static void run_folder_check_inputs(const RunFolder *f) {
    const OptionName inputs[] = {
        {"student", opt.student}, {"teacher", opt.teacher}, {"init", opt.init}, {"tokenizer", opt.tokenizer}};
    const char *const outputs[] = {f->student, f->best, f->other_student, f->other_best};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        for (size_t o = 0; o < sizeof outputs / sizeof *outputs; o++)
            if (inputs[i].value && same_file(inputs[i].value, outputs[o]))
                die("--%s %s is a file that this run would write over; give it another --out folder", inputs[i].name,
                    (const char *)inputs[i].value);
}

/* Creates and locks the output folder, on rank 0. Refuses one that holds a student without --resume or --overwrite. */
static void run_folder_create(const RunFolder *f) {
    Error err;
    die_if(make_folder(f->path, &err), &err);
    die_if(folder_lock(f->path, &err) < 0, &err);
    if (!opt.resume) run_folder_check_inputs(f);
    if (!opt.resume && !opt.overwrite && (file_exists(f->student) || file_exists(f->other_student)))
        die("%s already holds a trained student; --resume continues with it, --overwrite starts anew, --out DIR goes "
            "elsewhere",
            f->path);
}

/* With a sharded optimizer all ranks write into the folder. Checks now, not at the first checkpoint, that they see the one
 * that rank 0 has locked. */
static void run_folder_check_shared(const RunFolder *f, Comm *comm) {
    char owner[24] = "";
    int64_t process = getpid();
    comm_broadcast_host(comm, &process, sizeof process);
    if (comm->rank == 0 || !opt.shard) return;
    const char *problem;
    size_t size;
    int fd = file_open(f->lock, &size, &problem);
    bool same = fd >= 0 && read(fd, owner, sizeof owner - 1) > 0 && strtoll(owner, NULL, 10) == process;
    if (fd >= 0) close(fd);
    if (!same)
        die("%s is not the folder of rank 0, where each rank saves its part of the optimizer state; give all ranks "
            "an --out that they share, or --no-shard",
            f->path);
}

/* Opens the folder on all ranks. */
static void run_folder_open(RunFolder *f, Comm *comm) {
    struct stat s;
    if (comm->rank == 0) run_folder_create(f);
    run_folder_check_shared(f, comm);
    if (comm->rank > 0 && !opt.shard) return;
    if (lstat(f->lock, &s)) die("cannot read %s: %s", f->lock, strerror(errno));
    f->device = s.st_dev;
    f->inode = s.st_ino;
}

/* Before anything is written: ends the program when the folder is not the one that the run began in, so that no run
 * writes into another's. */
static void run_folder_check(const RunFolder *f) {
    struct stat s;
    if (!f->inode || (lstat(f->lock, &s) == 0 && s.st_dev == f->device && s.st_ino == f->inode)) return;
    die("%s is no longer the folder in which this run began: it was moved or replaced; nothing was written there",
        f->path);
}

/* The path of one rank's optimizer shard. */
static char *run_shard_path(const RunFolder *f, int64_t step, int rank, int ranks) {
    return format_string("%s/state-%lld.%d-of-%d.safetensors", f->path, (long long)step, rank, ranks);
}

/* Removes the shards of every checkpoint but that of `step`, which has `ranks` of them (0: none), and the partial files of
 * killed ranks. To be called when no rank is saving. */
static void run_remove_old_shards(const RunFolder *f, int64_t step, int ranks) {
    DIR *folder = opendir(f->path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        long long at;
        int rank, of, end = 0;
        if (sscanf(entry->d_name, "state-%lld.%d-of-%d.safetensors%n", &at, &rank, &of, &end) != 3 || !end) continue;
        if (at == step && of == ranks && !entry->d_name[end]) continue;
        char *path = format_string("%s/%s", f->path, entry->d_name);
        unlink(path);
        free(path);
    }
    if (folder) closedir(folder);
    folder_sync(f->path);
}

/* Records the options, on rank 0, after everything that can fail, so that a mistake in one attempt to resume does not
 * reach the next. With --overwrite the old checkpoint goes first, so that no --resume takes it for one of this run, and
 * so does the old best student, so that infer does not. */
static void run_record_options(const RunFolder *f, const Settings *s, int ranks) {
    Error err;
    AtomicFile file;
    if (!opt.resume) {
        unlink(f->state);
        unlink(f->best);
        unlink(f->other_student);
        unlink(f->other_best);
        run_remove_old_shards(f, -1, 0);
    }
    die_if(atomic_open(&file, f->options, &err), &err);
    options_record(s, ranks, file.f);
    die_if(atomic_commit(&file, &err), &err);
}

#endif
