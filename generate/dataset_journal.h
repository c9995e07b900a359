/* The programs of infer --dataset while they are being written: kept in a file, so that a run that was stopped goes on.
 *
 * OUT.programs (a KeptFile: OUT.programs.partial) has a header of 32 bytes: char magic[8] = "TIKZSEQ1", u64 identity (of
 * the model, the data and what decides the programs), u64 count of programs, u64 zero. Then an entry for each program, in the
 * order in which they were done: u32 number, state, count, CRC-32 of the entry without it, ids [count] without the end token.
 * What follows the first entry that is not whole is dropped. */
#ifndef GENERATE_DATASET_JOURNAL_H
#define GENERATE_DATASET_JOURNAL_H

#include "../lib/dataset_file.h"
#include "../lib/kept_file.h"

typedef enum { GENERATED_MISSING, GENERATED_ENDED, GENERATED_CUT, GENERATED_FAILED, GENERATED_STATES } GeneratedState;

/* A program of a model for an image of the data. */
typedef struct {
    GeneratedState state;
    uint32_t *ids, count;
} GeneratedProgram;

enum { JOURNAL_HEADER = 32, JOURNAL_ENTRY = 16 };

typedef struct {
    KeptFile file;
    uint64_t end;  // where the next entry goes
} Journal;

static inline void journal_close(Journal *j) { kept_close(&j->file); }

static inline uint32_t journal_crc(const uint32_t *head, const uint32_t *ids) {
    return crc32_bytes(crc32_bytes(0, head, 12), ids, (size_t)head[2] * sizeof *ids);
}

/* Begins anew. */
static inline int journal_begin(Journal *j, uint64_t identity, uint64_t count, Error *err) {
    uint8_t header[JOURNAL_HEADER] = "TIKZSEQ1";
    memcpy(header + 8, &identity, 8);
    memcpy(header + 16, &count, 8);
    j->end = sizeof header;
    return kept_resize(&j->file, 0, err) || kept_write(&j->file, header, sizeof header, 0, err) ? -1 : 0;
}

/* Takes the next entry at j->end. 1: there is no whole one. */
static inline int journal_next(Journal *j, GeneratedProgram *programs, uint64_t count, Error *err) {
    uint32_t head[4];
    const uint64_t left = j->file.size - j->end;
    if (left < JOURNAL_ENTRY) return 1;
    if (kept_read(&j->file, head, sizeof head, j->end, err)) return -1;
    const size_t bytes = (size_t)head[2] * sizeof(uint32_t);
    if (head[0] >= count || head[1] == GENERATED_MISSING || head[1] >= GENERATED_STATES || head[2] > DATASET_MAX_TOKENS ||
        bytes > left - JOURNAL_ENTRY || programs[head[0]].state != GENERATED_MISSING)
        return 1;
    uint32_t *ids = (uint32_t *)xmalloc(bytes);
    if (kept_read(&j->file, ids, bytes, j->end + JOURNAL_ENTRY, err)) return -1;
    if (head[3] != journal_crc(head, ids)) {
        free(ids);
        return 1;
    }
    programs[head[0]] = (GeneratedProgram){(GeneratedState)head[1], ids, head[2]};
    j->end += JOURNAL_ENTRY + bytes;
    return 0;
}

/* Opens the journal at `path`. With `resume` its programs are taken over, where they belong to this identity; without, there
 * must be none. Returns how many there are, or -1. */
static inline int64_t journal_open(Journal *j, const char *path, uint64_t identity, GeneratedProgram *programs,
                                   uint64_t count, bool resume, Error *err) {
    uint8_t header[JOURNAL_HEADER] = {0};
    int64_t found = 0;
    int status = 0;
    if (kept_open(&j->file, path, err)) return -1;
    if (j->file.size <= JOURNAL_HEADER) return journal_begin(j, identity, count, err);
    if (kept_read(&j->file, header, sizeof header, 0, err)) return -1;
    if (!resume)
        return error_set(err,
                         "%s holds programs of an earlier run: --resume goes on with them; remove it to begin anew",
                         j->file.partial);
    if (memcmp(header, "TIKZSEQ1", 8) != 0)
        return error_set(err, "--resume: %s is not what infer --dataset writes; remove it", j->file.partial);
    if (dataset_u64(header + 8) != identity || dataset_u64(header + 16) != count)
        return error_set(
            err,
            "--resume: the programs in %s are of another model or other data, or were written with other "
            "options; give the same as then, or remove it to begin anew",
            j->file.partial);
    j->end = sizeof header;
    while ((status = journal_next(j, programs, count, err)) == 0) found++;
    if (status < 0 || kept_resize(&j->file, j->end, err)) return -1;
    return found;
}

static inline int journal_add(Journal *j, uint32_t number, const GeneratedProgram *p, Error *err) {
    uint32_t *entry = (uint32_t *)xmalloc(JOURNAL_ENTRY + (size_t)p->count * sizeof *entry);
    entry[0] = number, entry[1] = p->state, entry[2] = p->count;
    memcpy(entry + 4, p->ids, (size_t)p->count * sizeof *entry);
    entry[3] = journal_crc(entry, p->ids);
    const size_t bytes = JOURNAL_ENTRY + (size_t)p->count * sizeof *entry;
    const int bad = kept_write(&j->file, entry, bytes, j->end, err);
    free(entry);
    if (!bad) j->end += bytes;
    return bad;
}

/* Removes the journal: its programs are in the data set now. */
static inline void journal_remove(Journal *j) {
    unlink(j->file.partial);
    kept_close(&j->file);
}

#endif
