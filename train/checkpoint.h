/* The checkpoint of the optimizer: fp32 masters and moments, as safetensors.
 *
 *   NAME.master, NAME.m, NAME.v          of parameter NAME, whole
 *   NAME.master[BEGIN:END], ...          its elements BEGIN .. END-1
 *
 * One process writes one file. Ranks that share the optimizer state write one file each, with what they hold;
 * together the files are a checkpoint, whatever the number of ranks that reads them. */
#ifndef LIB_STATE_H
#define LIB_STATE_H

#include "optimizer.h"

static const char *const state_kinds[3] = {"master", "m", "v"};

static inline float *state_kind(const Optimizer *o, int kind) {
    return kind == 0 ? o->master : kind == 1 ? o->m : o->v;
}

/* What one tensor of the file holds. */
typedef struct {
    const Param *param;
    int kind;
    size_t begin, end;  // elements of the parameter
    size_t local;       // where the first is in our masters or moments
} Slice;

/* The slices of a parameter that we hold; returns how many. `slices` has room for one a bucket. */
static inline int state_slices(const Optimizer *o, const Param *p, int kind, Slice *slices) {
    int count = 0;
    for (int b = 0; b < (o->sharded ? optimizer_buckets(o) : 1); b++) {
        Piece piece = {0, o->n, 0};
        if (o->sharded) piece = optimizer_piece(o, b);
        size_t begin = piece.begin > p->at ? piece.begin : p->at;
        size_t end = piece.begin + piece.n < p->at + p->n ? piece.begin + piece.n : p->at + p->n;
        if (begin >= end) continue;
        Slice s = {p, kind, begin - p->at, end - p->at, piece.local + (begin - piece.begin)};
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

/* Writes what we hold, with the given metadata; whole or not at all. */
static inline int state_save(const char *path, const Optimizer *o, const char *const *keys, const char *const *values,
                             int metadata_count, Error *err) {
    int n = 0, most = 3 * (o->count + (o->sharded ? 2 * optimizer_buckets(o) : 0));
    Slice *slices = (Slice *)xcalloc((size_t)most + (size_t)optimizer_buckets(o), sizeof *slices);
    for (int i = 0; i < o->count; i++)
        for (int kind = 0; kind < 3; kind++) n += state_slices(o, o->list[i], kind, slices + n);
    SafeTensorSpec *specs = (SafeTensorSpec *)xcalloc((size_t)n + 1, sizeof *specs);
    for (int i = 0; i < n; i++) state_specify(&specs[i], &slices[i]);
    SafeTensorsWriter w;
    int bad = safetensors_write_begin(&w, path, specs, n, keys, values, metadata_count, err);
    for (int i = 0; !bad && i < n; i++) {
        size_t bytes = (slices[i].end - slices[i].begin) * sizeof(float);
        void *host = xmalloc(bytes);
        o->op->download(host, state_kind(o, slices[i].kind) + slices[i].local, bytes);
        bad = safetensors_write_data(&w, host, bytes, err);
        free(host);
    }
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    free(slices);
    return bad;
}

/* What a tensor of the given kind is a slice of; false when it is something else. */
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

/* Gathers masters or moments of all files in the flat array of gradients. */
static inline int state_gather(const SafeTensors *files, int count, const Optimizer *o, int kind, Error *err) {
    size_t *found = (size_t *)xcalloc((size_t)o->count + 1, sizeof *found);
    optimizer_zero_gradients(o);
    for (int f = 0; f < count; f++)
        for (int t = 0; t < files[f].count; t++) {
            Slice s;
            int i = 0;
            if (!state_recognise(&s, o, &files[f].tensors[t], kind)) continue;
            while (o->list[i] != s.param) i++;
            found[i] += s.end - s.begin;
            o->op->upload(o->gradients + s.param->at + s.begin, files[f].tensors[t].data, files[f].tensors[t].bytes);
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

/* Restores what state_save wrote, from all files of the checkpoint; the parameters themselves become the rounded
 * masters. */
static inline int state_load(const SafeTensors *files, int count, const Optimizer *o, Error *err) {
    for (int kind = 0; kind < 3; kind++) {
        if (state_gather(files, count, o, kind, err)) return -1;
        if (kind == 0) o->op->cast_to_x(o->values, o->gradients, o->n);
        for (int b = 0; b < (o->sharded ? optimizer_buckets(o) : 1); b++) {
            Piece p = {0, o->n, 0};
            if (o->sharded) p = optimizer_piece(o, b);
            o->op->copy(state_kind(o, kind) + p.local, o->gradients + p.begin, p.n * sizeof(float));
        }
    }
    return 0;
}

#endif
