/* Replay: the last batches of the student's own samples, to be learned from again (the off-policy replay of Ko et al. 2024,
 * "DistiLLM"). What is kept of a batch is its number, which says what its images were (dataloader.h), and the tokens of all
 * its rows, over all ranks, so that a checkpoint may be resumed by another number of ranks.
 *
 * In a state file: "NAME.batches" int64 [count] and "NAME.ids" int32 [count, rows, T], the oldest first; NAME is replay, or ahead for
 * the samples of the next batch (train/ahead.h). */
#ifndef TRAIN_REPLAY_H
#define TRAIN_REPLAY_H

#include "../lib/safetensors.h"

typedef struct {
    const char *name;  // of its tensors in a state file
    int capacity;      // batches; 0: none are kept
    int rows, T;       // of a batch, over all ranks; the most tokens of a sample
    int64_t added;     // batches so far: the next goes to slot added % capacity
    int64_t *numbers;  // [capacity] numbers of the batches
    int *ids;          // [capacity, rows, T], padded with -1
} Replay;

static inline void replay_open(Replay *r, const char *name, int capacity, int rows, int T) {
    *r = (Replay){.name = name, .capacity = capacity, .rows = rows, .T = T};
    if (!capacity) return;
    r->numbers = xcalloc(capacity, sizeof *r->numbers);
    r->ids = xcalloc((size_t)capacity * rows * T, sizeof(int));
}

static inline void replay_free(Replay *r) {
    free(r->numbers);
    free(r->ids);
    *r = (Replay){0};
}

static inline int replay_count(const Replay *r) { return (int)(r->added < r->capacity ? r->added : r->capacity); }

/* The slot of the i-th kept batch, from the oldest. */
static inline size_t replay_slot(const Replay *r, int i) {
    return (size_t)((r->added - replay_count(r) + i) % r->capacity);
}

static inline int *replay_batch(const Replay *r, size_t slot) { return r->ids + slot * r->rows * r->T; }

/* Room for the samples of batch `number`, [rows, T], in place of the oldest batch's. */
static inline int *replay_add(Replay *r, int64_t number) {
    const size_t slot = (size_t)(r->added++ % r->capacity);
    r->numbers[slot] = number;
    return replay_batch(r, slot);
}

/* ---- in a state file ---- */

enum { REPLAY_TENSORS = 2 };

/* The tensors of a state file; none while nothing is kept. Returns how many. */
static inline int replay_specs(const Replay *r, SafeTensorSpec specs[REPLAY_TENSORS]) {
    const int64_t count = replay_count(r);
    if (!count) return 0;
    specs[0] = (SafeTensorSpec){.dtype = DT_I64, .ndim = 1, .shape = {count}};
    specs[1] = (SafeTensorSpec){.dtype = DT_I32, .ndim = 3, .shape = {count, r->rows, r->T}};
    snprintf(specs[0].name, sizeof specs[0].name, "%s.batches", r->name);
    snprintf(specs[1].name, sizeof specs[1].name, "%s.ids", r->name);
    return REPLAY_TENSORS;
}

/* Writes them, at their place in the file. */
static inline int replay_write(const Replay *r, SafeTensorsWriter *w, Error *err) {
    const int count = replay_count(r);
    int bad = 0;
    for (int i = 0; i < count && !bad; i++)
        bad = safetensors_write_data(w, &r->numbers[replay_slot(r, i)], sizeof(int64_t), err);
    for (int i = 0; i < count && !bad; i++)
        bad =
            safetensors_write_data(w, replay_batch(r, replay_slot(r, i)), (size_t)r->rows * r->T * sizeof(int), err);
    return bad;
}

/* Whether a row is 1 to T tokens below vocab, then -1. */
static inline bool replay_row_valid(const int *ids, int T, int vocab) {
    bool valid = ids[0] >= 0;
    for (int t = 0; t < T; t++)
        valid = valid && ids[t] >= -1 && ids[t] < vocab && (t == 0 || ids[t] < 0 || ids[t - 1] >= 0);
    return valid;
}

/* Takes over what a state file has, the newest batches where it has more than are kept now. next: the number of the next
 * batch, which is above all of them. Returns 1 where nothing is taken over, because the batches or the longest samples have
 * another size now, and -1 with a sentence where the file is damaged. */
static inline int replay_load(Replay *r, const SafeTensors *st, int64_t next, int vocab, Error *err) {
    char names[REPLAY_TENSORS][32];
    if (!r->capacity) return 0;
    snprintf(names[0], sizeof names[0], "%s.batches", r->name);
    snprintf(names[1], sizeof names[1], "%s.ids", r->name);
    const SafeTensor *numbers = safetensors_find(st, names[0]), *ids = safetensors_find(st, names[1]);
    if (!numbers && !ids) return 0;
    const bool whole = numbers && ids && numbers->dtype == DT_I64 && ids->dtype == DT_I32 && numbers->ndim == 1 &&
                       ids->ndim == 3 && numbers->shape[0] == ids->shape[0];
    if (!whole) return error_set(err, "%s: the kept samples are not those of a training state", st->file.path);
    if (ids->shape[1] != r->rows || ids->shape[2] != r->T) return 1;
    const int64_t count = numbers->shape[0], first = count > r->capacity ? count - r->capacity : 0;
    for (int64_t i = first; i < count; i++) {
        int64_t number;
        memcpy(&number, numbers->data + i * sizeof number, sizeof number);
        int *to = replay_add(r, number);
        memcpy(to, ids->data + (size_t)i * r->rows * r->T * sizeof(int), (size_t)r->rows * r->T * sizeof(int));
        bool valid = number >= 0 && number < next;
        for (int row = 0; row < r->rows; row++)
            valid = valid && replay_row_valid(to + (size_t)row * r->T, r->T, vocab);
        if (!valid)
            return error_set(err, "%s is damaged: its kept samples of batch %lld are not programs", st->file.path,
                             (long long)number);
    }
    return 0;
}

#endif
