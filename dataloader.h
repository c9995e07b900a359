// clang-format off
/* The dataset file format, and the loader that makes batches of it.
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
 * the index ends there where the file does, or where the source begins.
 *
 * A batch is a pure function of (seed, batch number), so training resumes by starting at a batch number. One thread, with
 * others that help it, decodes and augments images and fills a ring of prefetched batches. */
// clang-format on
#ifndef DATALOADER_H
#define DATALOADER_H

#include "lib/error.h"

#include "lib/crc32.h"
#include "lib/dataset_file.h"
#include "lib/file.h"
#include "lib/hash.h"
#include "lib/json.h"
#include "lib/image.h"
#include "lib/image_augment.h"
#include "lib/image_prepare.h"
#include "lib/random.h"
#include "lib/workers.h"

#include <glob.h>
#include <pthread.h>

/* ---- the dataset ---- */

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

/* ---- the loader ---- */

enum { LOADER_RING = 4, LOADER_WINDOW = 32 };  // batches prefetched; batches of a window that is sorted by length

typedef struct {
    int batch;
    ImageSize sizes[2];  // of images: the student's and, if different, the teacher's
    int size_count;      // 0 to 2
    int max_tokens;      // longer samples are skipped; 0: no limit
    uint64_t seed;
    bool shuffle;        // endless epochs in random order; else one pass in the order of the file
    bool drop_last;      // skip the last, smaller batch of an epoch
    size_t cache_bytes;  // capacity of the cache of images
    Augment augment;
    int threads;           // that decode and augment images; 0 means 1. The batches are the same
    uint64_t first_batch;  // number of the batch to start with
    int vocab;             // token ids must be below it; 0: below 2^31
    int hold;              // how many of the last batches stay valid for the caller: 1 or 2; 0 means 1
    /* Data-parallel ranks share a batch. It is divided into micro-batches of micro_rows rows, which are numbered
     * consecutively over all batches; a rank loads those whose number modulo `ranks` is `rank`. ranks 0: all rows. */
    int micro_rows, rank, ranks;
} LoaderConfig;

/* The configuration of one unshuffled pass in batches of `rows` images, for a model with the given image size and
 * vocabulary, and for a second model ({0, 0}, 0: none), which gets images of its own if its size differs. */
static inline LoaderConfig loader_config_for(int rows, int max_tokens, ImageSize size, int vocab,
                                             ImageSize second_size, int second_vocab) {
    LoaderConfig c = {.batch = rows, .sizes = {size}, .size_count = 1, .max_tokens = max_tokens, .vocab = vocab};
    if (second_size.height && !image_size_same(second_size, size)) c.sizes[c.size_count++] = second_size;
    if (second_vocab && second_vocab < vocab) c.vocab = second_vocab;
    return c;
}

typedef struct {
    int B, T;        // B: rows of this rank. T: tokens of the longest sample of all ranks, rounded up to a multiple
                     // of 8, at most max_tokens
    int rows;        // rows of the whole batch, over all ranks
    int micro_rows;  // rows of a micro-batch
    int *ids;        // [B, T], padded with -1
    ImageSize sizes[2];
    int size_count;
    uint8_t *pixels[2];  // [B, height, width, 3] for each size
    uint32_t *samples;   // [B], indices into the dataset
    int tokens;          // tokens of the whole batch, over all ranks, without padding
    uint64_t number, epoch;
    bool first_of_epoch;
} Batch;

typedef struct Loader {
    const Dataset *data;
    LoaderConfig config;
    uint32_t *kept;  // [kept_count], samples with at most max_tokens tokens
    size_t kept_count;
    uint64_t skipped, batches_per_epoch;

    /* The order of one epoch and the cache; used by the thread and its workers only. */
    uint64_t planned_epoch;
    uint32_t *order;  // [kept_count], samples
    size_t *starts;   // batch b of the epoch is order[starts[b] .. starts[b] + lengths[b])
    int *lengths;
    uint8_t **cache;    // for each sample: its preprocessed images, one size after the other, or NULL
    Image *decoded;     // for each sample, where the image itself is augmented: that image, or rgb NULL
    bool keep_decoded;  // cache these, and not what was made of them
    size_t cached_bytes;
    uint8_t *checked;  // for each sample: whether its record has been checked
    Workers workers;
    Batch *filling;  // batch whose images the workers load
    int failed_row;  // its first row that failed, for `row_error`; -1: none
    Error row_error;
    pthread_mutex_t row_mutex;

    pthread_t thread;
    bool running;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Batch ring[LOADER_RING];
    uint64_t written, read;  // batches that the thread has produced and the caller has consumed since the last seek
    int held;                // of the consumed batches, how many the caller may still use
    bool stop, ended, failed;
    Error error;
} Loader;

/* Bytes of an image of size i. */
static inline size_t loader_pixels(const Loader *l, int i) { return image_size_bytes(l->config.sizes[i]); }

/* A sort key: the length, then the position in the shuffled order, so that the order of equal lengths is defined. */
typedef struct {
    uint32_t length, position, sample;
} LoaderKey;

static inline int loader_compare(const void *a, const void *b) {
    const LoaderKey *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

/* Sorts the samples order[begin .. begin + n), one window, by length and cuts them into batches in random order. */
static inline void loader_plan_window(Loader *l, Random *random, size_t begin, size_t n, uint64_t first_batch) {
    LoaderKey *keys = xmalloc(n * sizeof *keys);
    for (size_t i = 0; i < n; i++) {
        uint32_t sample = l->order[begin + i];
        keys[i] = (LoaderKey){dataset_sample(l->data, sample).token_count, i, sample};
    }
    qsort(keys, n, sizeof *keys, loader_compare);
    for (size_t i = 0; i < n; i++) l->order[begin + i] = keys[i].sample;
    free(keys);
    const size_t batch = l->config.batch, batches = (n + batch - 1) / batch;
    uint32_t permutation[LOADER_WINDOW];
    for (size_t b = 0; b < batches; b++) permutation[b] = b;
    random_shuffle(random, permutation, batches);
    for (size_t b = 0; b < batches; b++) {
        size_t from = permutation[b] * batch;
        l->starts[first_batch + b] = begin + from;
        l->lengths[first_batch + b] = n - from < batch ? n - from : batch;
    }
}

/* Plans an epoch: which samples make which batch. To keep padding small, a batch has samples of similar length, yet
 * the order is random: all samples are shuffled, each window of 32 batches is sorted by length, and the batches of a
 * window are shuffled again. */
static inline void loader_plan(Loader *l, uint64_t epoch) {
    const size_t batch = l->config.batch, n = l->kept_count, window = batch * LOADER_WINDOW;
    Random random;
    random_seed3(&random, l->config.seed, epoch, 0x6f72646572u);
    memcpy(l->order, l->kept, n * sizeof *l->order);
    if (l->config.shuffle) random_shuffle(&random, l->order, n);
    const size_t used = l->config.drop_last ? n - n % batch : n;
    for (size_t begin = 0; begin < used; begin += window) {
        size_t size = used - begin < window ? used - begin : window;
        if (l->config.shuffle) loader_plan_window(l, &random, begin, size, begin / batch);
        for (size_t at = 0; !l->config.shuffle && at < size; at += batch) {
            l->starts[(begin + at) / batch] = begin + at;
            l->lengths[(begin + at) / batch] = size - at < batch ? size - at : batch;
        }
    }
    l->planned_epoch = epoch;
}

/* ---- making batches (in the thread) ---- */

/* Reserves a part of the cache; false: it is full. */
static inline bool loader_reserve(Loader *l, size_t bytes) {
    if (__atomic_add_fetch(&l->cached_bytes, bytes, __ATOMIC_RELAXED) <= l->config.cache_bytes) return true;
    __atomic_sub_fetch(&l->cached_bytes, bytes, __ATOMIC_RELAXED);
    return false;
}

/* Decodes the image of a sample, or copies it from the cache. */
static inline int loader_decode(Loader *l, Image *image, uint32_t sample, const Sample *s, Error *err) {
    if (l->keep_decoded && l->decoded[sample].rgb) {
        *image = image_copy(&l->decoded[sample]);
        return 0;
    }
    char *name = format_string("of record %llu in %s", (unsigned long long)s->number, s->path);
    int status = image_decode(image, s->image, s->image_bytes, name, err);
    free(name);
    if (status == 0 && l->keep_decoded && loader_reserve(l, 3 * (size_t)image->width * image->height))
        l->decoded[sample] = image_copy(image);
    return status;
}

/* Fills row `at` of b->pixels with the images of its sample, from the cache or by decoding, augmenting and
 * preprocessing. Checks the record when the sample is first used. Rows may be filled at the same time: a batch has a
 * sample once. */
static inline int loader_image(Loader *l, Batch *b, int at, Error *err) {
    const LoaderConfig *c = &l->config;
    const uint32_t sample = b->samples[at];
    const Sample s = dataset_sample(l->data, sample);
    size_t bytes = 0, offset = 0;
    for (int i = 0; i < c->size_count; i++) bytes += loader_pixels(l, i);
    if (!l->checked[sample] && dataset_check_sample(&s, c->vocab, err) != 0) return -1;
    l->checked[sample] = 1;
    const bool cached = l->cache[sample] != NULL;
    Image image = {0};
    ImageBox box = {0};
    if (!cached) {
        if (loader_decode(l, &image, sample, &s, err) != 0) return -1;
        box = augment_image(&c->augment, &image, c->seed, b->epoch, sample);
        if (!l->keep_decoded && loader_reserve(l, bytes)) l->cache[sample] = xmalloc(bytes);
    }
    for (int i = 0; i < c->size_count; offset += loader_pixels(l, i), i++) {
        uint8_t *to = b->pixels[i] + at * loader_pixels(l, i), *kept = l->cache[sample];
        if (!cached) image_prepare_box(to, &image, box, c->sizes[i]);
        if (cached) memcpy(to, kept + offset, loader_pixels(l, i));
        if (kept && !cached) memcpy(kept + offset, to, loader_pixels(l, i));
        augment_prepared(&c->augment, to, c->sizes[i], c->seed, b->epoch, sample);
    }
    image_free(&image);
    return 0;
}

/* One row of the batch that is being filled, in a thread of the pool. */
static inline void loader_fill_row(void *context, int row) {
    Loader *l = context;
    Error err;
    if (loader_image(l, l->filling, row, &err) == 0) return;
    pthread_mutex_lock(&l->row_mutex);
    if (l->failed_row < 0 || row < l->failed_row) {
        l->failed_row = row;
        l->row_error = err;
    }
    pthread_mutex_unlock(&l->row_mutex);
}

/* The number of micro-batches of a batch. */
static inline uint64_t loader_micro_batches(const LoaderConfig *c) {
    return (c->batch + c->micro_rows - 1) / c->micro_rows;
}

/* Whether a row of batch `number` belongs to this rank. */
static inline bool loader_owns_row(const LoaderConfig *c, uint64_t number, int row) {
    if (!c->ranks) return true;
    return (number * loader_micro_batches(c) + row / c->micro_rows) % c->ranks == (uint64_t)c->rank;
}

/* Makes batch `number`. */
static inline int loader_make_batch(Loader *l, Batch *b, uint64_t number, Error *err) {
    const uint64_t epoch = number / l->batches_per_epoch, within = number % l->batches_per_epoch;
    if (epoch != l->planned_epoch) loader_plan(l, epoch);
    b->number = number;
    b->epoch = epoch;
    b->first_of_epoch = within == 0;
    b->rows = l->lengths[within];
    b->micro_rows = l->config.micro_rows;
    b->size_count = l->config.size_count;
    memcpy(b->sizes, l->config.sizes, sizeof b->sizes);
    b->B = b->tokens = 0;
    uint32_t longest = 0;
    for (int i = 0; i < b->rows; i++) {
        uint32_t sample = l->order[l->starts[within] + i], n = dataset_sample(l->data, sample).token_count;
        if (loader_owns_row(&l->config, number, i)) b->samples[b->B++] = sample;
        b->tokens += (int)n;
        if (n > longest) longest = n;
    }
    b->T = (int)((longest + 7) / 8 * 8);
    if (b->T > l->config.max_tokens) b->T = l->config.max_tokens;
    l->filling = b;
    l->failed_row = -1;
    workers_run(&l->workers, b->B, loader_fill_row, l);
    if (l->failed_row >= 0) {
        *err = l->row_error;
        return -1;
    }
    for (int i = 0; i < b->B; i++) {
        const Sample s = dataset_sample(l->data, b->samples[i]);
        int *ids = b->ids + (size_t)i * b->T;
        for (int t = 0; t < b->T; t++) ids[t] = t < (int)s.token_count ? (int)s.tokens[t] : -1;
    }
    return 0;
}

static inline void *loader_thread(void *argument) {
    Loader *l = argument;
    pthread_mutex_lock(&l->mutex);
    for (uint64_t number = l->config.first_batch;; number++) {
        while (!l->stop && l->written - l->read + l->held >= LOADER_RING) pthread_cond_wait(&l->changed, &l->mutex);
        if (l->stop) break;
        if (!l->config.shuffle && number >= l->batches_per_epoch) {
            l->ended = true;
            break;
        }
        Batch *b = &l->ring[l->written % LOADER_RING];
        Error err;
        pthread_mutex_unlock(&l->mutex);
        int status = loader_make_batch(l, b, number, &err);
        pthread_mutex_lock(&l->mutex);
        if (status != 0) {
            l->error = err;
            l->failed = true;
            break;
        }
        l->written++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

/* ---- the interface ---- */

/* Stops the thread. */
static inline void loader_halt(Loader *l) {
    if (!l->running) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    pthread_join(l->thread, NULL);
    l->running = false;
}

/* Continues at batch batch_number, counted from the beginning of training: after seek(k), loader_next returns the
 * batch that it would return after k calls. Without shuffle, seek(0) starts the next pass. */
static inline int loader_seek(Loader *l, uint64_t batch_number, Error *err) {
    loader_halt(l);
    l->config.first_batch = batch_number;
    l->written = l->read = 0;
    l->held = 0;
    l->stop = l->ended = l->failed = false;
    int status = pthread_create(&l->thread, NULL, loader_thread, l);
    if (status != 0) return error_set(err, "cannot start the thread that loads data: %s", strerror(status));
    l->running = true;
    return 0;
}

/* Stops the thread and frees everything. */
static inline void loader_stop(Loader *l) {
    if (!l->data) return;
    loader_halt(l);
    for (int i = 0; i < LOADER_RING; i++) {
        free(l->ring[i].ids);
        free(l->ring[i].samples);
        for (int k = 0; k < 2; k++) free(l->ring[i].pixels[k]);
    }
    workers_stop(&l->workers);
    for (uint64_t i = 0; i < l->data->count; i++) free(l->cache[i]);
    for (uint64_t i = 0; l->decoded && i < l->data->count; i++) image_free(&l->decoded[i]);
    free(l->cache);
    free(l->decoded);
    free(l->checked);
    free(l->kept);
    free(l->order);
    free(l->starts);
    free(l->lengths);
    pthread_mutex_destroy(&l->row_mutex);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->changed);
    memset(l, 0, sizeof *l);
}

/* Allocates the ring, for at most as many rows as this rank has of a batch, and the arrays of the thread. */
static inline void loader_allocate(Loader *l) {
    const LoaderConfig *c = &l->config;
    size_t batch = c->batch;
    if (c->ranks) {
        size_t rows = (loader_micro_batches(c) + c->ranks - 1) / c->ranks * c->micro_rows;
        if (rows < batch) batch = rows;
    }
    for (int i = 0; i < LOADER_RING; i++) {
        l->ring[i].ids = xcalloc(batch * c->max_tokens, sizeof(int));
        l->ring[i].samples = xcalloc(batch, sizeof(uint32_t));
        for (int k = 0; k < c->size_count; k++) l->ring[i].pixels[k] = xcalloc(batch, loader_pixels(l, k));
    }
    l->cache = xcalloc(l->data->count, sizeof *l->cache);
    l->keep_decoded = augment_needs_image(&c->augment);
    if (l->keep_decoded) l->decoded = xcalloc(l->data->count, sizeof *l->decoded);
    l->checked = xcalloc(l->data->count, 1);
    l->order = xcalloc(l->kept_count, sizeof *l->order);
    l->starts = xcalloc(l->batches_per_epoch, sizeof *l->starts);
    l->lengths = xcalloc(l->batches_per_epoch, sizeof *l->lengths);
}

/* Starts loading batches. l->skipped is the number of samples that are skipped because they have more than max_tokens
 * tokens. To be stopped with loader_stop; after a failure there is nothing to stop. */
static inline int loader_start(Loader *l, const Dataset *d, LoaderConfig config, Error *err) {
    memset(l, 0, sizeof *l);
    if (config.batch < 1 || config.batch > 1 << 20)
        return error_set(err, "the batch size is %d, 1 to 1048576 was expected", config.batch);
    if (!config.hold) config.hold = 1;
    if (config.hold < 0 || config.hold > 2 ||
        (config.ranks &&
         (config.ranks < 0 || config.rank < 0 || config.rank >= config.ranks || config.micro_rows < 1)))
        return error_set(err, "internal error: batches held %d, rank %d of %d in micro-batches of %d", config.hold,
                         config.rank, config.ranks, config.micro_rows);
    if (config.size_count < 0 || config.size_count > 2) return error_set(err, "0 to 2 image sizes were expected");
    for (int i = 0; i < config.size_count; i++)
        if (config.sizes[i].height < 1 || config.sizes[i].height > 4096 || config.sizes[i].width < 1 ||
            config.sizes[i].width > 4096)
            return error_set(err, "the image size is %d x %d, 1 to 4096 was expected", config.sizes[i].height,
                             config.sizes[i].width);
    const int longest = (d->longest + 7) / 8 * 8;
    if (config.max_tokens <= 0 || config.max_tokens > longest) config.max_tokens = longest;
    l->config = config;
    l->kept = xcalloc(d->count, sizeof *l->kept);
    for (uint64_t i = 0; i < d->count; i++)
        if (dataset_sample(d, i).token_count <= (uint32_t)config.max_tokens) l->kept[l->kept_count++] = i;
    l->skipped = d->count - l->kept_count;
    const uint64_t batch = config.batch;
    l->batches_per_epoch = config.drop_last ? l->kept_count / batch : (l->kept_count + batch - 1) / batch;
    if (l->batches_per_epoch == 0) {
        size_t kept = l->kept_count;
        free(l->kept);
        return error_set(err,
                         "%s: of %llu samples %zu have at most %d tokens, not enough for one batch of %d; raise the "
                         "number of tokens or use a smaller batch",
                         d->shards[0].file.path, (unsigned long long)d->count, kept, config.max_tokens, config.batch);
    }
    l->data = d;
    l->planned_epoch = UINT64_MAX;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    pthread_mutex_init(&l->row_mutex, NULL);
    loader_allocate(l);
    workers_start(&l->workers, config.threads);
    int status = loader_seek(l, config.first_batch, err);
    if (status != 0) loader_stop(l);
    return status;
}

/* The next batch, which is valid until the next call (or, with config.hold 2, the one after that). Returns NULL on an
 * error (a damaged record or image), with a sentence in err, and at the end of the pass (only without shuffle), with
 * err empty. */
static inline const Batch *loader_next(Loader *l, Error *err) {
    const Batch *b = NULL;
    err->text[0] = '\0';
    pthread_mutex_lock(&l->mutex);
    if (l->held == l->config.hold) l->held--;
    pthread_cond_broadcast(&l->changed);
    while (l->read == l->written && !l->ended && !l->failed) pthread_cond_wait(&l->changed, &l->mutex);
    if (l->read < l->written) {
        b = &l->ring[l->read++ % LOADER_RING];
        l->held++;
    } else if (l->failed) {
        *err = l->error;
    }
    pthread_mutex_unlock(&l->mutex);
    return b;
}

#endif
