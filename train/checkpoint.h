/* Checkpoints: the student's weights, and what resuming needs besides: the optimizer state and the step.
 *
 * A state file is safetensors, fp32:
 *
 *   NAME.master, NAME.m, NAME.v          of parameter NAME, whole
 *   NAME.master[BEGIN:END], ...          its elements BEGIN .. END-1
 *   replay.batches, replay.ids           own samples that are kept (train/replay.h)
 *   ahead.batches, ahead.ids             those of the next batch (train/ahead.h)
 *
 * One process writes one file. Ranks that share the optimizer state write one shard each, with what they hold; together
 * the shards are a checkpoint, whatever the number of ranks that reads them. */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include "parallel.h"
#include "trainer.h"

/* ---- the optimizer state in files ---- */

static const char *const state_kinds[3] = {"master", "m", "v"};

static inline float *state_kind(const Optimizer *o, int kind) {
    return kind == 0 ? o->master : kind == 1 ? o->m : o->v;
}

/* The part of a parameter's state that one tensor of a file holds. */
typedef struct {
    const Param *param;
    int kind;
    size_t begin, end;  // elements of the parameter
    size_t local;       // where the first is in this rank's masters or moments
} Slice;

/* The slices of a parameter whose state is on this rank; returns how many. `slices` has room for one per bucket. */
static inline int state_slices(const Optimizer *o, const Param *p, int kind, Slice *slices) {
    int count = 0;
    for (int i = 0; i < optimizer_state_pieces(o); i++) {
        Piece piece = optimizer_state_piece(o, i);
        size_t begin = piece.begin > p->offset ? piece.begin : p->offset;
        size_t end = piece.begin + piece.n < p->offset + p->n ? piece.begin + piece.n : p->offset + p->n;
        if (begin >= end) continue;
        Slice s = {p, kind, begin - p->offset, end - p->offset, piece.local + (begin - piece.begin)};
        slices[count++] = s;
    }
    return count;
}

static inline void state_specify(SafeTensorSpec *spec, const Slice *s) {
    const Param *p = s->param;
    if (s->end - s->begin == p->n)
        snprintf(spec->name, sizeof spec->name, "%s.%s", p->name, state_kinds[s->kind]);
    else
        snprintf(spec->name, sizeof spec->name, "%s.%s[%zu:%zu]", p->name, state_kinds[s->kind], s->begin, s->end);
    spec->dtype = DT_F32;
    spec->ndim = 1;
    spec->shape[0] = (int64_t)(s->end - s->begin);
}

/* Writes the state on this rank, the kept samples (two kinds of them), and the given metadata; whole or not at all. */
static inline int state_save(const char *path, const Optimizer *o, const Replay *const kept[2], const char *const *keys,
                             const char *const *values, int metadata_count, Error *err) {
    int n = 0, most = 3 * (o->count + (o->sharded ? 2 * optimizer_buckets(o) : 0));
    Slice *slices = xcalloc((size_t)most + (size_t)optimizer_buckets(o), sizeof *slices);
    for (int i = 0; i < o->count; i++)
        for (int kind = 0; kind < 3; kind++) n += state_slices(o, o->list[i], kind, slices + n);
    SafeTensorSpec *specs = xcalloc((size_t)n + 2 * REPLAY_TENSORS, sizeof *specs);
    for (int i = 0; i < n; i++) state_specify(&specs[i], &slices[i]);
    SafeTensorsWriter w;
    int all = n;
    for (int k = 0; k < 2; k++) all += replay_specs(kept[k], specs + all);
    int bad = safetensors_write_begin(&w, path, specs, all, keys, values, metadata_count, err);
    for (int i = 0; !bad && i < n; i++) {
        size_t bytes = (slices[i].end - slices[i].begin) * sizeof(float);
        void *host = xmalloc(bytes);
        o->op->download(host, state_kind(o, slices[i].kind) + slices[i].local, bytes);
        bad = safetensors_write_data(&w, host, bytes, err);
        free(host);
    }
    for (int k = 0; k < 2 && !bad; k++) bad = replay_write(kept[k], &w, err);
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    free(slices);
    return bad;
}

/* Finds out what a tensor of the given kind is a slice of; false when it is something else. */
static inline bool state_recognise(Slice *s, const Optimizer *o, const SafeTensor *t, int kind) {
    char name[sizeof t->name];
    unsigned long long begin, end;
    int length = 0;
    snprintf(name, sizeof name, "%s", t->name);
    char *bracket = strchr(name, '[');
    bool part = bracket && sscanf(bracket, "[%llu:%llu]%n", &begin, &end, &length) == 2 && bracket[length] == 0;
    if (bracket) *bracket = 0;
    char *dot = strrchr(name, '.');
    if (!dot || strcmp(dot + 1, state_kinds[kind]) || (bracket && !part)) return false;
    *dot = 0;
    int i = 0;
    while (i < o->count && strcmp(o->list[i]->name, name)) i++;
    if (i == o->count) return false;
    s->param = o->list[i];
    s->kind = kind;
    s->begin = part ? (size_t)begin : 0;
    s->end = part ? (size_t)end : s->param->n;
    return s->begin < s->end && s->end <= s->param->n && t->dtype == DT_F32 &&
           t->bytes == (s->end - s->begin) * sizeof(float);
}

/* Gathers the masters, or one of the moments, of all files in the flat array of gradients. */
static inline int state_gather(const SafeTensors *files, int count, const Optimizer *o, int kind, Error *err) {
    size_t *found = xcalloc((size_t)o->count + 1, sizeof *found);
    optimizer_zero_gradients(o);
    for (int f = 0; f < count; f++)
        for (int t = 0; t < files[f].count; t++) {
            Slice s;
            int i = 0;
            if (!state_recognise(&s, o, &files[f].tensors[t], kind)) continue;
            while (o->list[i] != s.param) i++;
            found[i] += s.end - s.begin;
            o->op->upload(o->gradients + s.param->offset + s.begin, files[f].tensors[t].data,
                          files[f].tensors[t].bytes);
        }
    int i = 0;
    while (i < o->count && found[i] == o->list[i]->n) i++;
    free(found);
    if (i == o->count) return 0;
    return error_set(err,
                     "%s: the optimizer state %s.%s is missing or does not fit the model; resume with the --student "
                     "and --train of the first run, or start anew in another --out folder",
                     files[0].file.path, o->list[i]->name, state_kinds[kind]);
}

/* Restores what state_save wrote, from all files of the checkpoint. The parameters become the rounded masters. */
static inline int state_load(const SafeTensors *files, int count, const Optimizer *o, Error *err) {
    for (int kind = 0; kind < 3; kind++) {
        if (state_gather(files, count, o, kind, err)) return -1;
        if (kind == 0) o->op->cast_to_x(o->values, o->gradients, o->n);
        for (int i = 0; i < optimizer_state_pieces(o); i++) {
            Piece p = optimizer_state_piece(o, i);
            o->op->copy(state_kind(o, kind) + p.local, o->gradients + p.begin, p.n * sizeof(float));
        }
    }
    return 0;
}

/* ---- saving ---- */

/* The trained parameter whose moments or master on this rank are not all finite, or NULL; *kind is which of the
 * three. A sum of squares on the device tells first whether there can be one. */
static const Param *optimizer_not_finite(const Optimizer *o, int *kind) {
    size_t kept = o->sharded ? o->n / o->ranks : o->n;
    const Param *found = NULL;
    Slice *slices = xcalloc(optimizer_buckets(o), sizeof *slices);
    for (int k = 2; k >= 0 && !found; k--) {
        float squares;
        *kind = k;
        o->op->squared_norm(o->norm_squared, state_kind(o, k), kept, false);
        o->op->download(&squares, o->norm_squared, sizeof squares);
        if (isfinite(squares)) continue;
        for (int i = 0; i < o->count && !found; i++) {
            int n = state_slices(o, o->list[i], k, slices);
            for (const Slice *s = slices; s < slices + n && !found; s++) {
                size_t length = s->end - s->begin;
                float *host = xmalloc(length * sizeof *host);
                o->op->download(host, state_kind(o, k) + s->local, length * sizeof *host);
                for (size_t j = 0; j < length && !found; j++)
                    if (!isfinite(host[j])) found = o->list[i];
                free(host);
            }
        }
    }
    free(slices);
    return found;
}

/* What to do when training has gone wrong. lr_matters: with a smaller learning rate the last checkpoint would not
 * have led here; otherwise the checkpoint itself is of no use. */
static char *resume_advice(const Trainer *t, const RunFolder *folder, bool lr_matters) {
    if (t->saved < 0) return format_string("there is no checkpoint yet; start anew with a smaller --lr");
    if (lr_matters)
        return format_string("the checkpoint in %s is kept; --resume continues from it, with a smaller --lr",
                             folder->path);
    bool best = isfinite(t->best) && file_exists(folder->best) && !t->student.lora;
    return format_string(
        "the checkpoint in %s has come too far: its next step fails with every --lr; start anew%s%s in "
        "another --out folder, with a smaller --lr",
        folder->path, best ? " with --student " : "", best ? folder->best : "");
}

/* Ends the program when the weights or moments are not finite: they are never written over a checkpoint that is. In
 * the step after a checkpoint the moments do not depend on the learning rate, while the weights do. */
static void check_finite_state(const Trainer *t, const RunFolder *folder) {
    int kind;
    const Param *p = optimizer_not_finite(&t->optimizer, &kind);
    if (p)
        die("the %s of %s are not finite after step %lld; %s", kind ? "moments" : "weights", p->name,
            (long long)t->step, resume_advice(t, folder, kind == 0 || t->step != t->saved + 1));
}

/* Ends the program when a file that the run began from holds a value that is not finite. */
static void check_file_finite(const char *path) {
    Error err;
    SafeTensors st;
    if (safetensors_open(&st, path, &err)) return;  // a shape, or a file that has gone since
    const SafeTensor *tensor = safetensors_not_finite(&st);
    if (tensor) die("%s is damaged: its tensor %s holds a value that is not finite", path, tensor->name);
    safetensors_close(&st);
}

/* The metadata of a state file. Files of older versions end with `shards`. `worse` counts the evaluations since the best,
 * `fitting` the training samples that are not too long; `warmup` and `total` are in images; `data` and `val` are fingerprints
 * of the samples. `base` is that of the frozen model, of adapters; it comes last and is left out without them. */
static const char *const checkpoint_keys[] = {"format", "step", "best",    "worse",  "shards", "samples", "batch",
                                              "images", "data", "fitting", "warmup", "total",  "val",     "base"};
enum { CHECKPOINT_KEYS = sizeof checkpoint_keys / sizeof checkpoint_keys[0] };

typedef struct {
    char text[CHECKPOINT_KEYS][40];
    const char *values[CHECKPOINT_KEYS];
} CheckpointMetadata;

/* Returns how many there are. */
static int checkpoint_metadata(CheckpointMetadata *m, const Trainer *t) {
    const Optimizer *o = &t->optimizer;
    const long long numbers[CHECKPOINT_KEYS] = {0,
                                                t->step,
                                                0,
                                                t->evals_since_best,
                                                o->sharded ? o->ranks : 0,
                                                t->samples,
                                                t->batch,
                                                t->images,
                                                0,
                                                t->fitting,
                                                t->lr.warmup,
                                                t->lr.total,
                                                0,
                                                0};
    for (int i = 0; i < CHECKPOINT_KEYS; i++) {
        snprintf(m->text[i], sizeof m->text[i], "%lld", numbers[i]);
        m->values[i] = m->text[i];
    }
    m->values[0] = "tikz.c/state/1";
    snprintf(m->text[2], sizeof m->text[2], "%.17g", t->best);
    snprintf(m->text[8], sizeof m->text[8], "%016llx", (unsigned long long)t->data_fingerprint);
    snprintf(m->text[12], sizeof m->text[12], "%016llx", (unsigned long long)t->val_fingerprint);
    if (!t->student.lora) return CHECKPOINT_KEYS - 1;
    snprintf(m->text[13], sizeof m->text[13], "%016llx", (unsigned long long)t->student.lora->base);
    return CHECKPOINT_KEYS;
}

/* The student goes first: if the state cannot follow, the old state still fits, because it carries everything that is
 * trained. Where ranks share the state, each writes its shard beside the last checkpoint's; when all are there, the state
 * file, which then holds only the step and the number of shards, makes them the checkpoint. */
static void checkpoint_save(Trainer *t, const RunFolder *folder, Parallel *p) {
    Error err;
    const Optimizer none = {.bucket = 1}, *o = &t->optimizer;
    const Replay no_samples = {0}, *const none_kept[] = {&no_samples, &no_samples}, *const kept[] = {&t->replay, &t->ahead};
    check_finite_state(t, folder);
    run_folder_check(folder);
    CheckpointMetadata m;
    const int n = checkpoint_metadata(&m, t);
    const char *const *keys = checkpoint_keys, *const *values = m.values;
    if (o->sharded) {
        char *path = run_shard_path(folder, t->step, o->rank, o->ranks);
        die_if(state_save(path, o, none_kept, keys, values, n, &err), &err);
        free(path);
        comm_barrier(&p->comm);
    }
    t->saved = t->step;
    if (!is_rank0(p)) return;
    die_if(trainer_save_student(t, folder->student, &err), &err);
    die_if(state_save(folder->state, o->sharded ? &none : o, kept, keys, values, n, &err), &err);
    run_remove_old_shards(folder, t->step, o->sharded ? o->ranks : 0);
}

/* ---- restoring ---- */

static void checkpoint_restore_optimizer(Trainer *t, const RunFolder *folder, const SafeTensors *st, int shards) {
    Error err;
    SafeTensors *files = xcalloc(shards + 1, sizeof *files);
    for (int i = 0; i < shards; i++) {
        char *path = run_shard_path(folder, t->step, i, shards);
        die_if(safetensors_open(&files[i], path, &err), &err);
        free(path);
    }
    die_if(shards ? state_load(files, shards, &t->optimizer, &err) : state_load(st, 1, &t->optimizer, &err), &err);
    for (int i = 0; i < shards; i++) safetensors_close(&files[i]);
    free(files);
}

/* Reads a whole number of the metadata; `missing` where the file is older than the key. */
static int64_t checkpoint_number(const SafeTensors *st, const char *key, int64_t missing, int64_t most) {
    const char *text = safetensors_metadata(st, key);
    char *end = NULL;
    if (!text) return missing;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno || end == text || *end || number < 0 || number > most)
        die("%s is not a training state of this program: its %s is \"%.40s\"", st->file.path, key, text);
    return number;
}

/* --resume of adapters: ends the program unless the base is the model that they were trained on so far. */
static void checkpoint_check_base(const Trainer *t, const SafeTensors *st) {
    const char *base = safetensors_metadata(st, "base");
    char text[24];
    if (!t->student.lora) return;
    snprintf(text, sizeof text, "%016llx", (unsigned long long)t->student.lora->base);
    if (!base || strcmp(base, text))
        die("--resume: %s is another model than the one whose adapters %s holds; name that one with --student",
            opt.student, st->file.path);
}

/* --resume: an evaluation on other data says nothing about the best one so far. */
static void checkpoint_check_validation(Trainer *t, const SafeTensors *st) {
    const char *val = safetensors_metadata(st, "val");
    const uint64_t before = val ? strtoull(val, NULL, 16) : 0;
    if (!before) return;  // nothing was evaluated, or by an older version
    if (!t->val_fingerprint) t->val_fingerprint = before;  // nothing is evaluated now
    if (t->val_fingerprint == before) return;
    if (t->optimizer.rank == 0 && isfinite(t->best))
        warn("--resume: %s holds other samples than the run was evaluated on so far; which student is the best is decided anew",
             opt.val_data);
    t->best = INFINITY;
    t->evals_since_best = 0;
}

/* --resume: where the run is, the best evaluation and the optimizer state of the checkpoint in the folder. */
static void checkpoint_restore(Trainer *t, const Settings *s, const RunFolder *folder) {
    Error err;
    SafeTensors st;
    die_if(safetensors_open(&st, folder->state, &err), &err);
    const char *format = safetensors_metadata(&st, "format"), *best = safetensors_metadata(&st, "best");
    const char *data = safetensors_metadata(&st, "data");
    if (!format || strcmp(format, "tikz.c/state/1") || !safetensors_metadata(&st, "step") || !best ||
        !safetensors_metadata(&st, "worse"))
        die("%s is not a training state of this program", folder->state);
    t->step = checkpoint_number(&st, "step", 0, INT_MAX);
    t->saved = t->step;
    t->best = strtod(best, NULL);
    if (isnan(t->best)) t->best = INFINITY;  // older versions could save one
    t->evals_since_best = checkpoint_number(&st, "worse", 0, INT_MAX);
    t->restored_images = checkpoint_number(&st, "images", s->recalled.images, 1 << 20);
    t->samples = checkpoint_number(&st, "samples", t->step * s->recalled.images, INT64_MAX / 2);
    t->batch = checkpoint_number(&st, "batch", t->step, INT64_MAX / 2);
    t->restored_warmup = checkpoint_number(&st, "warmup", -1, INT64_MAX / 2);
    t->restored_total = checkpoint_number(&st, "total", -1, INT64_MAX / 2);
    if (!data && t->restored_images != t->images)
        die("--resume: the checkpoint in %s is of an older version and had %lld images per step, not %lld; resume it "
            "once without another --batch or --accum",
            folder->path, (long long)t->restored_images, (long long)t->images);
    if (data && strtoull(data, NULL, 16) != t->data_fingerprint)
        die("--resume: %s holds other samples than the run in %s began with; give the same --data, or start anew in "
            "another --out folder with --student %s",
            opt.data, folder->path, folder->student);
    if (checkpoint_number(&st, "fitting", t->fitting, INT64_MAX / 2) != t->fitting)
        die("--resume: with this --max-tokens %lld samples of %s are short enough, in the run so far it was another "
            "number; leave --max-tokens as it was",
            (long long)t->fitting, opt.data);
    checkpoint_check_validation(t, &st);
    checkpoint_check_base(t, &st);
    const int other = replay_load(&t->replay, &st, t->batch, t->student.c.lm.vocab, &err);
    die_if(other < 0 || replay_load(&t->ahead, &st, t->batch + 1, t->student.c.lm.vocab, &err) < 0, &err);
    if (other && t->optimizer.rank == 0)
        warn("--resume: the kept samples of %s are of other batches than the next ones; none is learned from again",
             folder->state);
    int kind, shards = (int)checkpoint_number(&st, "shards", 0, 4096);
    checkpoint_restore_optimizer(t, folder, &st, shards);
    const Param *p = optimizer_not_finite(&t->optimizer, &kind);
    if (p)
        die("%s is damaged: the %s of %s are not finite; start anew in another --out folder", folder->state,
            kind ? "moments" : "weights", p->name);
    safetensors_close(&st);
}

/* Resuming with another number of images per step renumbers the batches, which only works at the end of an epoch. */
static void checkpoint_renumber_batches(Trainer *t, const RunFolder *folder) {
    if (!t->restored_images || t->restored_images == t->images) return;
    int64_t before = t->fitting / t->restored_images, now = t->fitting / t->images;
    if (!before || t->batch % before)
        die("--resume: the run in %s stopped inside an epoch, and its steps had %lld images; steps of %lld images "
            "can take over only at the end of an epoch: resume it once without another --batch or --accum, up to "
            "--steps %lld",
            folder->path, (long long)t->restored_images, (long long)t->images,
            (long long)(t->step + (before ? before - t->batch % before : 0)));
    t->batch = t->batch / before * now;
}

#endif
