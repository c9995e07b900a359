// clang-format off
/* Datasets: the file format, and reading it. lib/dataset_file.h writes such files.
 *
 * File (little-endian):
 *
 *   header, 72 bytes                       index entry, 32 bytes, one for each record
 *     0  char magic[8] = "TIKZBIN1"          0  u64 offset of the record, a multiple of 4
 *     8  u32 version = 2                     8  u32 image_bytes
 *    12  u32 header_bytes = 72              12  u32 token_count, at most 2^20
 *    16  u64 count of records               16  u32 crc32 of the record
 *    24  u64 fingerprint of the tokenizer   20  u32 zero
 *    32  u64 index_offset                   24  u64 zero
 *    40  u64 source_offset
 *    48  u64 source_bytes                 record
 *    56  u64 file_bytes                     the bytes of a PNG or JPEG file, zeros up to a multiple of 4,
 *    64  u32 crc32 of the 64 bytes above,   token_count u32 ids: the program and the end token, no image tokens
 *        the source and the index
 *    68  u32 zero
 *
 * The source is UTF-8 text that says where the data came from. Version 1 has a header of 64 bytes, without the CRC;
 * the index ends there where the file does, or where the source begins. */
// clang-format on
#ifndef LIB_DATASET_H
#define LIB_DATASET_H

#include "crc32.h"
#include "dataset_file.h"
#include "error.h"
#include "file.h"
#include "hash.h"
#include "utf8.h"

#include <glob.h>

/* One file of a dataset. */
typedef struct {
    MappedFile file;
    uint64_t first, count;  // it holds the samples first .. first + count - 1 of the dataset
    const uint8_t *index;
    const char *source;  // not NUL-terminated
    size_t source_bytes;
} DatasetShard;

typedef struct Dataset {
    DatasetShard *shards;
    int shard_count;
    uint64_t count, fingerprint;
    uint32_t longest;  // largest number of tokens of a sample
} Dataset;

/* One sample, pointing into the mapped file. */
typedef struct {
    const uint8_t *image;
    const uint32_t *tokens;
    uint32_t image_bytes, token_count, crc;
    const uint8_t *record;
    size_t record_bytes;
    const char *path;  // of the file
    uint64_t number;   // index of the record in the file, from 0
} Sample;

static inline void dataset_close(Dataset *d) {
    for (int i = 0; i < d->shard_count; i++) file_unmap(&d->shards[i].file);
    free(d->shards);
    memset(d, 0, sizeof *d);
}

/* The CRC that the header of a file of version 2 should have. All that the header says must lie inside the file. */
static inline uint32_t dataset_crc(const uint8_t *file) {
    uint32_t crc = crc32_bytes(0, file, DATASET_HEADER_1);
    crc = crc32_bytes(crc, file + dataset_u64(file + 40), (size_t)dataset_u64(file + 48));
    return crc32_bytes(crc, file + dataset_u64(file + 32), (size_t)dataset_u64(file + 16) * DATASET_ENTRY);
}

/* Checks that the header, the source and the index are as they were written. Version 1 has no CRC, but a place where
 * its index has to end. */
static inline int dataset_check_crc(const DatasetShard *s, uint32_t version, Error *err) {
    const uint8_t *h = s->file.data;
    if (version == 1) {
        const uint8_t *end = s->index + s->count * DATASET_ENTRY;
        if (end == h + s->file.size || end == (const uint8_t *)s->source) return 0;
        return error_set(err,
                         "cannot read %s: its index of %llu samples ends neither at the end of the file nor at the "
                         "source text; the header is damaged",
                         s->file.path, (unsigned long long)s->count);
    }
    const uint32_t crc = dataset_crc(h), noted = dataset_u32(h + 64);
    if (crc == noted && dataset_u32(h + 68) == 0) return 0;
    return error_set(err,
                     "cannot read %s: its header or index is damaged (CRC-32 %08x, the header says %08x); copy the "
                     "file again",
                     s->file.path, crc, noted);
}

/* Checks the header of a file against its size, and fills the shard. */
static inline int dataset_check_header(DatasetShard *s, uint64_t *fingerprint, Error *err) {
    const uint8_t *h = s->file.data;
    const size_t size = s->file.size;
    const char *path = s->file.path;
    if (size < DATASET_HEADER || memcmp(h, "TIKZBIN1", 8) != 0)
        return error_set(err, "cannot read %s: it is not a dataset of tikz.c (it does not begin with TIKZBIN1)",
                         path);
    const uint32_t version = dataset_u32(h + 8), header_bytes = dataset_u32(h + 12);
    if (!(version == 1 && header_bytes == DATASET_HEADER_1) && !(version == 2 && header_bytes == DATASET_HEADER))
        return error_set(err,
                         "cannot read %s: dataset version %u with a header of %u bytes; versions 1 (64) and 2 (72) "
                         "are supported, convert the data again",
                         path, version, header_bytes);
    if (dataset_u64(h + 56) != size)
        return error_set(
            err, "cannot read %s: its header says %llu bytes, the file has %zu; it is cut off or was added to", path,
            (unsigned long long)dataset_u64(h + 56), size);
    uint64_t index = dataset_u64(h + 32), source = dataset_u64(h + 40), source_bytes = dataset_u64(h + 48);
    s->count = dataset_u64(h + 16);
    *fingerprint = dataset_u64(h + 24);
    if (s->count == 0 || s->count > UINT32_MAX)
        return error_set(err, "cannot read %s: it holds %llu samples", path, (unsigned long long)s->count);
    if (index < header_bytes || index % 8 != 0 || index > size || s->count > (size - index) / DATASET_ENTRY)
        return error_set(err, "cannot read %s: the index of %llu samples at byte %llu does not fit into the file",
                         path, (unsigned long long)s->count, (unsigned long long)index);
    if (source > size || source_bytes > size - source)
        return error_set(err, "cannot read %s: the source text at byte %llu does not fit into the file", path,
                         (unsigned long long)source);
    for (uint64_t at = 0; at < source_bytes;) {
        int length = utf8_sequence(h + source + at, (size_t)(source_bytes - at));
        if (length == 0) return error_set(err, "cannot read %s: the source text is not valid UTF-8", path);
        at += (uint64_t)length;
    }
    s->index = h + index;
    s->source = (const char *)h + source;
    s->source_bytes = (size_t)source_bytes;
    return dataset_check_crc(s, version, err);
}

/* Checks that an index entry describes a record inside the file. */
static inline int dataset_check_entry(const DatasetShard *s, uint64_t number, Error *err) {
    const uint8_t *e = s->index + number * DATASET_ENTRY;
    uint64_t offset = dataset_u64(e);
    uint32_t image_bytes = dataset_u32(e + 8), tokens = dataset_u32(e + 12);
    const char *path = s->file.path;
    unsigned long long n = (unsigned long long)number;
    if (image_bytes == 0 || tokens == 0 || tokens > DATASET_MAX_TOKENS)
        return error_set(err,
                         "cannot read %s: record %llu has %u bytes of image and %u tokens; an image and 1 to %d "
                         "tokens were expected",
                         path, n, image_bytes, tokens, DATASET_MAX_TOKENS);
    if (dataset_u32(e + 20) != 0 || dataset_u64(e + 24) != 0)
        return error_set(err, "cannot read %s: the unused part of index entry %llu is not zero; the file is damaged",
                         path, n);
    uint64_t bytes = dataset_padded(image_bytes) + 4 * (uint64_t)tokens;
    if (offset < DATASET_HEADER_1 || offset % 4 != 0 || offset > s->file.size || bytes > s->file.size - offset)
        return error_set(
            err, "cannot read %s: record %llu (%llu bytes at byte %llu) does not fit into the file of %zu bytes",
            path, n, (unsigned long long)bytes, (unsigned long long)offset, s->file.size);
    return 0;
}

/* Opens a file as the next shard and checks its index. */
static inline int dataset_add(Dataset *d, const char *path, Error *err) {
    DatasetShard *s = &d->shards[d->shard_count];
    uint64_t fingerprint = 0;
    if (file_map(&s->file, path, err) != 0) return -1;
    d->shard_count++;
    if (dataset_check_header(s, &fingerprint, err) != 0) return -1;
    if (d->shard_count == 1) d->fingerprint = fingerprint;
    if (fingerprint != d->fingerprint)
        return error_set(err, "%s and %s were made with different tokenizers; convert them with the same one",
                         d->shards[0].file.path, path);
    for (uint64_t i = 0; i < s->count; i++) {
        if (dataset_check_entry(s, i, err) != 0) return -1;
        uint32_t tokens = dataset_u32(s->index + i * DATASET_ENTRY + 12);
        if (tokens > d->longest) d->longest = tokens;
    }
    s->first = d->count;
    d->count += s->count;
    if (d->count > UINT32_MAX) return error_set(err, "cannot read %s: more than 4294967295 samples in all", path);
    return 0;
}

/* Opens one file, or all files that a pattern such as train-*.bin matches, sorted by name. The header and the index
 * of every file are checked here, records only by dataset_check_sample. */
static inline int dataset_open(Dataset *d, const char *glob_pattern, Error *err) {
    *d = (Dataset){0};
    glob_t found = {0};
    if (file_exists(glob_pattern) || glob(glob_pattern, 0, NULL, &found) != 0 || found.gl_pathc == 0) {
        globfree(&found);
        d->shards = xcalloc(1, sizeof *d->shards);
        int status = dataset_add(d, glob_pattern, err);  // a pattern without a match is reported as a missing file
        if (status != 0) dataset_close(d);
        return status;
    }
    d->shards = xcalloc(found.gl_pathc, sizeof *d->shards);
    int status = 0;
    for (size_t i = 0; status == 0 && i < found.gl_pathc; i++) status = dataset_add(d, found.gl_pathv[i], err);
    globfree(&found);
    if (status != 0) dataset_close(d);
    return status;
}

/* Sample i of the dataset, i < d->count. Its record has not been checked: see dataset_check_sample. */
static inline Sample dataset_sample(const Dataset *d, uint64_t i) {
    int low = 0, high = d->shard_count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (d->shards[middle].first <= i)
            low = middle;
        else
            high = middle - 1;
    }
    const DatasetShard *shard = &d->shards[low];
    Sample s = {.number = i - shard->first, .path = shard->file.path};
    const uint8_t *e = shard->index + s.number * DATASET_ENTRY;
    s.record = shard->file.data + dataset_u64(e);
    s.image_bytes = dataset_u32(e + 8);
    s.token_count = dataset_u32(e + 12);
    s.crc = dataset_u32(e + 16);
    s.image = s.record;
    s.tokens = (const void *)(s.record + dataset_padded(s.image_bytes));
    s.record_bytes = dataset_padded(s.image_bytes) + 4 * (size_t)s.token_count;
    return s;
}

/* The number of samples with at most max_tokens tokens. */
static inline int64_t dataset_fitting(const Dataset *d, int max_tokens) {
    int64_t n = 0;
    for (uint64_t i = 0; i < d->count; i++) n += dataset_sample(d, i).token_count <= (uint32_t)max_tokens;
    return n;
}

/* A fingerprint of all samples in their order: the hash of the index, which has size and CRC of every record. */
static inline uint64_t dataset_content(const Dataset *d) {
    uint64_t hash = HASH_BEGIN;
    for (int i = 0; i < d->shard_count; i++)
        hash = hash_bytes(hash, d->shards[i].index, d->shards[i].count * DATASET_ENTRY);
    return hash;
}

/* Checks the CRC of a record, and that every token id is below vocab (0: below 2^31). */
static inline int dataset_check_sample(const Sample *s, int vocab, Error *err) {
    const unsigned long long number = s->number;
    uint32_t crc = crc32_bytes(0, s->record, s->record_bytes);
    if (crc != s->crc)
        return error_set(
            err, "cannot read %s: record %llu is damaged (CRC-32 %08x, the index says %08x); copy the file again",
            s->path, number, crc, s->crc);
    const uint32_t limit = vocab > 0 ? (uint32_t)vocab : 0x80000000u;
    for (uint32_t i = 0; i < s->token_count; i++)
        if (s->tokens[i] >= limit)
            return error_set(
                err,
                "cannot use %s: record %llu has token %u at position %u, the model's vocabulary ends at %u; "
                "the data were made with another tokenizer than the model's or its teacher's",
                s->path, number, s->tokens[i], i, limit - 1);
    return 0;
}

/* Checks every record of the dataset (see dataset_check_sample). */
static inline int dataset_check_tokens(const Dataset *d, int vocab, Error *err) {
    for (uint64_t i = 0; i < d->count; i++) {
        Sample s = dataset_sample(d, i);
        if (dataset_check_sample(&s, vocab, err) != 0) return -1;
    }
    return 0;
}

#endif
