/* Results that take long, kept in a file, so that an interrupted report goes on: each is a few numbers under a key, which is a
 * hash of all that they depend on. What an interruption has cut off at the file's end, or damaged, is dropped. */
#ifndef METRICS_RESULTS_H
#define METRICS_RESULTS_H

#include "../lib/file.h"

/* An entry of the file: key, numbers, and a hash of both. */
typedef struct {
    int numbers;      // of a result
    char *entries;    // [count] of results_bytes
    uint32_t *slots;  // [slot_count], a power of two: index of an entry + 1, 0: free; at most half of them are taken
    size_t count, slot_count;
    FILE *file;
    char *path;
} ResultStore;

static inline size_t results_bytes(const ResultStore *s) { return ((size_t)s->numbers + 2) * sizeof(uint64_t); }

static inline uint64_t results_key(const ResultStore *s, size_t entry) {
    uint64_t key;
    memcpy(&key, s->entries + entry * results_bytes(s), sizeof key);
    return key;
}

/* The slot of a key, or the free one where it belongs. */
static inline size_t results_slot(const ResultStore *s, uint64_t key) {
    size_t at = hash_slot(key, s->slot_count);
    while (s->slots[at] && results_key(s, s->slots[at] - 1) != key) at = (at + 1) & (s->slot_count - 1);
    return at;
}

/* Makes room for one more entry. */
static inline void results_grow(ResultStore *s) {
    if (s->slot_count && 2 * (s->count + 1) <= s->slot_count) return;
    s->slot_count = s->slot_count ? 2 * s->slot_count : 256;
    s->entries = (char *)xrealloc(s->entries, s->slot_count / 2 * results_bytes(s));
    free(s->slots);
    s->slots = (uint32_t *)xcalloc(s->slot_count, sizeof *s->slots);
    for (size_t i = 0; i < s->count; i++) s->slots[results_slot(s, results_key(s, i))] = (uint32_t)i + 1;
}

static inline uint64_t results_check(const ResultStore *s, const char *entry) {
    return hash_bytes(HASH_BEGIN, entry, results_bytes(s) - sizeof(uint64_t));
}

/* Takes over an entry, unless it is damaged or its key is there. */
static inline bool results_take(ResultStore *s, const char *entry) {
    uint64_t key, check;
    memcpy(&key, entry, sizeof key);
    memcpy(&check, entry + results_bytes(s) - sizeof check, sizeof check);
    if (check != results_check(s, entry)) return false;
    results_grow(s);
    const size_t slot = results_slot(s, key);
    if (s->slots[slot]) return true;
    memcpy(s->entries + s->count * results_bytes(s), entry, results_bytes(s));
    s->slots[slot] = (uint32_t)++s->count;
    return true;
}

/* Opens PATH, with the results of so many numbers that it has of an earlier run; `resume` false: it has none. */
static inline int results_open(ResultStore *s, const char *path, int numbers, bool resume, Error *err) {
    uint8_t *data;
    size_t size, good = 0;
    *s = (ResultStore){.numbers = numbers, .file = file_open_kept(path, &data, &size, err)};
    if (!s->file) return -1;
    s->path = xstrdup(path);
    results_grow(s);
    for (; resume && good + results_bytes(s) <= size; good += results_bytes(s))
        if (!results_take(s, (const char *)data + good)) break;
    free(data);
    return file_cut(s->file, path, good, err);
}

static inline bool results_has(const ResultStore *s, uint64_t key) { return s->slots[results_slot(s, key)] > 0; }

/* The numbers under a key, into out; false: there are none. */
static inline bool results_find(const ResultStore *s, uint64_t key, double *out) {
    const uint32_t entry = s->slots[results_slot(s, key)];
    if (entry)
        memcpy(out, s->entries + (entry - 1) * results_bytes(s) + sizeof key, (size_t)s->numbers * sizeof *out);
    return entry > 0;
}

/* Keeps numbers under a key; under one that has some, these stay. Not for several threads at a time. */
static inline int results_add(ResultStore *s, uint64_t key, const double *numbers, Error *err) {
    if (results_has(s, key)) return 0;
    char *entry = (char *)xmalloc(results_bytes(s));
    memcpy(entry, &key, sizeof key);
    memcpy(entry + sizeof key, numbers, (size_t)s->numbers * sizeof *numbers);
    const uint64_t check = results_check(s, entry);
    memcpy(entry + results_bytes(s) - sizeof check, &check, sizeof check);
    results_take(s, entry);
    const bool bad = fwrite(entry, results_bytes(s), 1, s->file) != 1 || fflush(s->file);
    free(entry);
    return bad ? error_set(err, "cannot write %s: %s", s->path, strerror(errno)) : 0;
}

static inline void results_close(ResultStore *s) {
    if (s->file) fclose(s->file);
    free(s->entries);
    free(s->slots);
    free(s->path);
    *s = (ResultStore){0};
}

#endif
