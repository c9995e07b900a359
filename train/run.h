/* The folder of a run, and who may write into it.
 *
 *   student.safetensors   the newest weights              log.jsonl     one JSON object per step
 *   best.safetensors      the best on the validation data options.txt   the options, for --resume and --config
 *   state.safetensors     optimizer state and step        .lock         the process that writes here
 *
 * Where ranks share the optimizer state, each writes state-STEP.RANK-of-RANKS.safetensors (train/checkpoint.h). */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "../dist/comm.h"
#include "../lib/file.h"
#include "options.h"

#include <dirent.h>

typedef struct {
    const char *path;
    char *student, *best, *state, *log, *options;
} RunFolder;

static RunFolder run_folder(const char *path) {
    return (RunFolder){path,
                       format_string("%s/student.safetensors", path),
                       format_string("%s/best.safetensors", path),
                       format_string("%s/state.safetensors", path),
                       format_string("%s/log.jsonl", path),
                       format_string("%s/options.txt", path)};
}

static void run_folder_free(RunFolder *f) {
    free(f->student);
    free(f->best);
    free(f->state);
    free(f->log);
    free(f->options);
}

/* Takes the folder for this run, on rank 0. One that holds a student is only touched with --resume or --overwrite. */
static void run_folder_create(const RunFolder *f) {
    Error err;
    die_if(make_folder(f->path, &err), &err);
    die_if(folder_lock(f->path, &err) < 0, &err);
    if (!opt.resume && !opt.overwrite && file_exists(f->student))
        die("%s already holds a trained student; --resume continues with it, --overwrite starts anew, --out DIR goes "
            "elsewhere",
            f->path);
}

/* Ranks that share the optimizer state all write into the folder. Whether they see the one that rank 0 has locked is
 * better known now than at the first checkpoint. */
static void run_folder_check_shared(const RunFolder *f, Comm *comm) {
    char owner[24] = "";
    int64_t process = getpid();
    comm_broadcast_host(comm, &process, sizeof process);
    if (comm->rank == 0 || !opt.shard) return;
    char *path = format_string("%s/.lock", f->path);
    FILE *lock = fopen(path, "r");
    bool same = lock && fgets(owner, sizeof owner, lock) && strtoll(owner, NULL, 10) == process;
    if (lock) fclose(lock);
    free(path);
    if (!same)
        die("%s is not the folder of rank 0, where each rank saves its part of the optimizer state; give all ranks an "
            "--out that they share, or --no-shard",
            f->path);
}

/* Opens the folder on all ranks. */
static void run_folder_open(const RunFolder *f, Comm *comm) {
    if (comm->rank == 0) run_folder_create(f);
    run_folder_check_shared(f, comm);
}

/* The state file of one of several ranks. */
static char *run_shard_path(const RunFolder *f, int64_t step, int rank, int ranks) {
    return format_string("%s/state-%lld.%d-of-%d.safetensors", f->path, (long long)step, rank, ranks);
}

/* Removes the shards of other checkpoints than that of `step`, which has `ranks` of them (0: none), and what a killed
 * rank has left half-written. To be called when no rank is saving. */
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
}

/* Records the options, on rank 0, after everything that can fail, so that a mistake in one attempt to resume does not
 * reach the next. With --overwrite the old checkpoint goes now, so that no --resume takes it for one of this run, and so
 * does the old best student, so that infer does not. */
static void run_record_options(const RunFolder *f, const Settings *s, int ranks) {
    Error err;
    AtomicFile file;
    die_if(atomic_open(&file, f->options, &err), &err);
    options_record(s, ranks, file.f);
    die_if(atomic_commit(&file, &err), &err);
    if (opt.resume) return;
    unlink(f->state);
    unlink(f->best);
    run_remove_old_shards(f, -1, 0);
}

#endif
