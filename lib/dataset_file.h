/* The numbers of the dataset file format, which dataset.h describes, and a writer of such files.
 *
 *     dataset_writer_open(&w, path, fingerprint, &err);
 *     ... dataset_writer_add(&w, image, image_bytes, ids, count, &err) ...
 *     dataset_writer_commit(&w, source, &err);      whole or not at all */
#ifndef LIB_DATASET_FILE_H
#define LIB_DATASET_FILE_H

#include "crc32.h"
#include "file.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "dataset files and safetensors are read in place: a little-endian machine is needed"
#endif

enum { DATASET_HEADER = 72, DATASET_HEADER_1 = 64, DATASET_ENTRY = 32, DATASET_MAX_TOKENS = 1 << 20 };

static inline uint64_t dataset_u64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint32_t dataset_u32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The size of an image in a record, with its padding to a multiple of 4. */
static inline size_t dataset_padded(uint32_t image_bytes) { return ((size_t)image_bytes + 3) & ~(size_t)3; }

/* ---- writing ---- */

typedef struct {
    AtomicFile file;
    uint64_t fingerprint, offset, count;
    uint8_t *index;  // [count] entries
    size_t capacity;
} DatasetWriter;

/* Discards what was written; PATH is unchanged. After a commit too. */
static inline void dataset_writer_close(DatasetWriter *w) {
    if (w->file.f) atomic_abandon(&w->file);
    free(w->index);
    memset(w, 0, sizeof *w);
}

/* fingerprint: of the tokenizer. */
static inline int dataset_writer_open(DatasetWriter *w, const char *path, uint64_t fingerprint, Error *err) {
    const uint8_t header[DATASET_HEADER] = {0};
    memset(w, 0, sizeof *w);
    w->fingerprint = fingerprint;
    w->offset = DATASET_HEADER;
    if (atomic_open(&w->file, path, err)) return -1;
    return atomic_write(&w->file, header, sizeof header, err);
}

/* Appends a record: the bytes of a PNG or JPEG file, and ids with the end token. */
static inline int dataset_writer_add(DatasetWriter *w, const uint8_t *image, uint32_t image_bytes,
                                     const uint32_t *ids, uint32_t count, Error *err) {
    const uint8_t zeros[4] = {0};
    const size_t padding = dataset_padded(image_bytes) - image_bytes, id_bytes = (size_t)count * sizeof *ids;
    if (!image_bytes || !count || count > DATASET_MAX_TOKENS)
        return error_set(
            err,
            "cannot write a sample of %u bytes of image and %u tokens; an image and 1 to %d tokens were expected",
            image_bytes, count, DATASET_MAX_TOKENS);
    if (w->count == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 256;
        w->index = (uint8_t *)xrealloc(w->index, w->capacity * DATASET_ENTRY);
    }
    uint32_t crc = crc32_bytes(crc32_bytes(0, image, image_bytes), zeros, padding);
    crc = crc32_bytes(crc, ids, id_bytes);
    uint8_t *entry = w->index + w->count++ * DATASET_ENTRY;
    memset(entry, 0, DATASET_ENTRY);
    memcpy(entry, &w->offset, 8);
    memcpy(entry + 8, &image_bytes, 4);
    memcpy(entry + 12, &count, 4);
    memcpy(entry + 16, &crc, 4);
    w->offset += image_bytes + padding + id_bytes;
    return atomic_write(&w->file, image, image_bytes, err) || atomic_write(&w->file, zeros, padding, err) ||
                   atomic_write(&w->file, ids, id_bytes, err)
               ? -1
               : 0;
}

/* Ends the file: the source (UTF-8, a line that says where the data came from), the index, and the header. */
static inline int dataset_writer_commit(DatasetWriter *w, const char *source, Error *err) {
    const uint8_t zeros[8] = {0};
    uint8_t header[DATASET_HEADER] = "TIKZBIN1";
    const uint32_t version = 2, header_bytes = DATASET_HEADER;
    const uint64_t source_bytes = strlen(source), padding = -(w->offset + source_bytes) & 7;
    const uint64_t index_bytes = w->count * DATASET_ENTRY, index = w->offset + source_bytes + padding;
    const uint64_t numbers[6] = {w->count, w->fingerprint, index, w->offset, source_bytes, index + index_bytes};
    memcpy(header + 8, &version, 4);
    memcpy(header + 12, &header_bytes, 4);
    memcpy(header + 16, numbers, sizeof numbers);
    uint32_t crc = crc32_bytes(crc32_bytes(0, header, DATASET_HEADER_1), source, source_bytes);
    crc = crc32_bytes(crc, w->index, index_bytes);
    memcpy(header + DATASET_HEADER_1, &crc, 4);
    if (atomic_write(&w->file, source, source_bytes, err) || atomic_write(&w->file, zeros, padding, err) ||
        atomic_write(&w->file, w->index, index_bytes, err))
        return -1;
    if (fseeko(w->file.f, 0, SEEK_SET)) return atomic_fail(&w->file, errno, err);
    if (atomic_write(&w->file, header, sizeof header, err) || atomic_commit(&w->file, err)) return -1;
    dataset_writer_close(w);
    return 0;
}

#endif
