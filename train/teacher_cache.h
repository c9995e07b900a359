/* Cached teacher outputs in the place of a teacher (train/cache_format.h describes the file).
 *
 *     cache_open(&cache, path, dataset, &err);   checks that the file is whole and was made for these data
 *     cache_plan(&cache, op, rows);
 *     cache_get(&cache, &q, samples, B, &err);   the TeacherOutput of a micro-batch
 *
 * The file is mapped, so that every process of a data-parallel run reads the rows of its own samples. A block is checked when
 * its sample is first used. */
#ifndef TRAIN_TEACHER_CACHE_H
#define TRAIN_TEACHER_CACHE_H

#include "../kernels/arena.h"
#include "../teacher_output.h"
#include "cache_format.h"

/* Unpacked rows. */
typedef struct {
    floatX *logits;   // [rows, vocab] of a dense cache
    int *ids;         // [rows, K] of a sparse one
    float *p;         // [rows, K]
    SparseRow *rows;  // [rows]
} CacheRows;

typedef struct {
    MappedFile file;  // data NULL: there is no cache
    CacheHeader h;
    const Dataset *data;
    uint64_t *offsets;  // [samples + 1] of the blocks
    uint8_t *checked;   // [samples]
    const Ops *op;      // the student's device
    Arena arena;
    CacheRows device, host;  // of a micro-batch; the same where the device is the host
    SparseTeacher sparse;
    float *exp_table;  // [65536] of topk: e^(-code / CACHE_STEPS)
} TeacherCache;

/* ---- opening ---- */

static int cache_check_numbers(const CacheHeader *h, const char *path, Error *err) {
    if (memcmp(h->magic, "TIKZTCH1", 8) != 0)
        return error_set(err, "cannot read %s: it is not a teacher cache (it does not begin with TIKZTCH1)", path);
    if (h->version != CACHE_VERSION || h->header_bytes != sizeof *h)
        return error_set(err,
                         "cannot read %s: teacher cache version %u with a header of %u bytes; version %d (%zu) is "
                         "supported, write the cache again",
                         path, h->version, h->header_bytes, CACHE_VERSION, sizeof *h);
    if (h->crc != cache_header_crc(h) || h->zero)
        return error_set(err, "cannot read %s: its header is damaged (CRC-32 %08x, the header says %08x)", path,
                         cache_header_crc(h), h->crc);
    const bool dense = h->kind == CACHE_DENSE;
    const bool fits = h->kind < CACHE_KINDS && h->vocab >= 1 && h->vocab <= 1 << 24 && h->max_tokens >= 1 &&
                      h->max_tokens <= DATASET_MAX_TOKENS && h->height >= 1 && h->width >= 1 && h->height <= 4096 &&
                      h->width <= 4096 && (dense ? h->K == 0 : h->K >= 1 && h->K <= SPARSE_MOST && h->K <= h->vocab);
    if (!fits || h->name[CACHE_NAME - 1] ||
        (dense ? h->temperature != 0 : !(h->temperature >= 0.01f && h->temperature <= 1000)))
        return error_set(err, "cannot read %s: the numbers in its header are not those of a teacher cache", path);
    if (h->row_bytes != cache_row_bytes((CacheKind)h->kind, h->K, h->vocab))
        return error_set(err, "cannot read %s: its header says %u bytes for a row of %s, %zu were expected", path,
                         h->row_bytes, cache_kind_names[h->kind],
                         cache_row_bytes((CacheKind)h->kind, h->K, h->vocab));
    return 0;
}

/* Checks that the cache belongs to these data, and has a block for each sample. */
static int cache_check_data(TeacherCache *c, const char *data_path, Error *err) {
    const CacheHeader *h = &c->h;
    const char *path = c->file.path;
    if (h->tokenizer != c->data->fingerprint)
        return error_set(
            err,
            "%s was made with another tokenizer (fingerprint %016llx) than %s (%016llx); write the cache "
            "again with --write-teacher-cache",
            path, (unsigned long long)h->tokenizer, data_path, (unsigned long long)c->data->fingerprint);
    if (h->samples != c->data->count || h->data != dataset_content(c->data))
        return error_set(
            err,
            "%s holds the teacher's outputs for other data (%llu samples) than %s (%llu samples), or for the "
            "same in another order; write the cache again with --write-teacher-cache",
            path, (unsigned long long)h->samples, data_path, (unsigned long long)c->data->count);
    c->offsets = cache_offsets(h, c->data);
    if (c->offsets[h->samples] != h->file_bytes)
        return error_set(err, "cannot read %s: its header says %llu bytes, these data make %llu", path,
                         (unsigned long long)h->file_bytes, (unsigned long long)c->offsets[h->samples]);
    return 0;
}

static void cache_close(TeacherCache *c) {
    if (c->op && !c->op->host_memory) {
        free(c->host.logits);
        free(c->host.ids);
        free(c->host.p);
        free(c->host.rows);
    }
    if (c->op) arena_release(&c->arena, c->op);
    file_unmap(&c->file);
    free(c->offsets);
    free(c->checked);
    free(c->exp_table);
    memset(c, 0, sizeof *c);
}

/* Opens a cache for the samples of d, which data_path names. After a failure there is nothing to close. */
static int cache_open(TeacherCache *c, const char *path, const Dataset *d, const char *data_path, Error *err) {
    memset(c, 0, sizeof *c);
    if (file_map(&c->file, path, err)) return -1;
    c->data = d;
    int bad = 0;
    if (c->file.size < sizeof c->h)
        bad = error_set(err, "cannot read %s: it is not a teacher cache, or cut off (%zu bytes)", path, c->file.size);
    if (!bad) memcpy(&c->h, c->file.data, sizeof c->h);
    if (!bad) bad = cache_check_numbers(&c->h, path, err);
    if (!bad && c->h.file_bytes != c->file.size)
        bad = error_set(err,
                        "cannot read %s: its header says %llu bytes, the file has %zu; it is cut off or was added to",
                        path, (unsigned long long)c->h.file_bytes, c->file.size);
    if (!bad) bad = cache_check_data(c, data_path, err);
    if (bad) cache_close(c);
    return bad;
}

static void cache_plan_rows(TeacherCache *c, size_t rows) {
    const size_t K = c->h.K;
    CacheRows *d = &c->device;
    if (c->h.kind == CACHE_DENSE) {
        d->logits = arena_x(&c->arena, rows * c->h.vocab);
        return;
    }
    d->ids = arena_int(&c->arena, rows * K);
    d->p = arena_f32(&c->arena, rows * K);
    d->rows = arena_take(&c->arena, rows, sizeof(SparseRow));
    c->sparse = (SparseTeacher){d->ids, d->p, d->rows, (int)K, (int)c->h.vocab};
}

/* Memory for micro-batches of up to `rows` positions, for a student on op. */
static void cache_plan(TeacherCache *c, const Ops *op, size_t rows) {
    const size_t K = c->h.K;
    c->op = op;
    cache_plan_rows(c, rows);
    arena_allocate(&c->arena, op, "the teacher's ", "cached outputs");
    cache_plan_rows(c, rows);
    c->host = c->device;
    if (!op->host_memory && c->h.kind == CACHE_DENSE)
        c->host.logits = xcalloc(rows * c->h.vocab, sizeof(floatX));
    else if (!op->host_memory)
        c->host = (CacheRows){NULL, xcalloc(rows * K, sizeof(int)), xcalloc(rows * K, sizeof(float)),
                              xcalloc(rows, sizeof(SparseRow))};
    c->checked = xcalloc((size_t)c->h.samples, 1);
    if (c->h.kind != CACHE_TOPK) return;
    c->exp_table = xmalloc(65536 * sizeof *c->exp_table);
    for (int i = 0; i < 65536; i++) c->exp_table[i] = (float)exp(-i / CACHE_STEPS);
}

/* ---- rows ---- */

/* The k-th id of a sparse row. */
static inline uint32_t cache_id(const CacheHeader *h, const uint8_t *row, uint32_t k) {
    const uint8_t *at = row + sizeof(SparseRow) + k * cache_id_bytes(h->vocab);
    uint32_t id = 0;
    memcpy(&id, at, cache_id_bytes(h->vocab));
    return id;
}

/* Whether a row holds what it may hold; CRC-32 finds damage, not a program that wrote something else. */
static bool cache_row_valid(const CacheHeader *h, const uint8_t *row) {
    if (h->kind == CACHE_DENSE) {
        for (uint32_t i = 0; i < h->vocab; i++) {
            bf16 x;
            memcpy(&x, row + 2 * i, sizeof x);
            if ((x.bits & 0x7f80) == 0x7f80) return false;  // not finite
        }
        return true;
    }
    SparseRow known;
    memcpy(&known, row, sizeof known);
    bool valid = known.rest >= 0 && known.rest <= 1 && known.entropy >= 0 && known.entropy < 100 &&
                 known.confidence >= 0 && known.confidence <= 1.001f && known.top >= 0 &&
                 (uint32_t)known.top < h->vocab;
    for (uint32_t k = 0; k < h->K && valid; k++) {
        const uint32_t id = cache_id(h, row, k), before = k ? cache_id(h, row, k - 1) : 0;
        valid = id < h->vocab && (k == 0 || id > before || (id == before && h->kind == CACHE_SAMPLE));
    }
    return valid;
}

/* Checks the block of a sample. */
static int cache_check_block(const TeacherCache *c, uint32_t sample, uint32_t tokens, Error *err) {
    const CacheHeader *h = &c->h;
    const uint8_t *rows = c->file.data + c->offsets[sample];
    const size_t bytes = (size_t)tokens * h->row_bytes;
    const uint32_t crc = cache_block_crc(sample, rows, bytes);
    const uint32_t noted = dataset_u32(c->file.data + c->offsets[sample + 1] - 4);
    if (crc != noted)
        return error_set(
            err,
            "cannot read %s: the outputs for sample %u are damaged (CRC-32 %08x, the file says %08x); write the cache "
            "again",
            c->file.path, sample, crc, noted);
    for (uint32_t t = 0; t < tokens; t++)
        if (!cache_row_valid(h, rows + (size_t)t * h->row_bytes))
            return error_set(err, "cannot read %s: the outputs for token %u of sample %u are not a distribution",
                             c->file.path, t, sample);
    return 0;
}

/* Unpacks K draws: each token once, with its share of them. */
static void cache_unpack_draws(const CacheHeader *h, const uint8_t *row, int *ids, float *p) {
    uint32_t used = 0;
    for (uint32_t k = 0; k < h->K; k++) {
        const int id = (int)cache_id(h, row, k);
        if (!used || ids[used - 1] != id) ids[used] = id, p[used++] = 0;
        p[used - 1] += 1.0f / (float)h->K;
    }
    for (; used < h->K; used++) ids[used] = -1, p[used] = 0;
}

/* Unpacks the likeliest tokens. What was rounded in the file is made to add up to 1 again. */
static void cache_unpack_topk(const TeacherCache *c, const uint8_t *row, int *ids, float *p, SparseRow *known) {
    const uint8_t *codes = row + sizeof *known + c->h.K * cache_id_bytes(c->h.vocab);
    double sum = known->rest;
    for (uint32_t k = 0; k < c->h.K; k++) {
        uint16_t code;
        memcpy(&code, codes + 2 * k, sizeof code);
        ids[k] = (int)cache_id(&c->h, row, k);
        sum += p[k] = c->exp_table[code];
    }
    for (uint32_t k = 0; k < c->h.K; k++) p[k] = (float)(p[k] / sum);
    known->rest = (float)(known->rest / sum);
}

/* Unpacks a row of the file to row `at` of the micro-batch. */
static void cache_unpack(const TeacherCache *c, const uint8_t *row, size_t at) {
    const CacheHeader *h = &c->h;
    const CacheRows *to = &c->host;
    if (h->kind == CACHE_DENSE) {
        floatX *logits = to->logits + at * h->vocab;
#ifdef PRECISION_FP32
        for (uint32_t i = 0; i < h->vocab; i++) {
            bf16 x;
            memcpy(&x, row + 2 * i, sizeof x);
            logits[i] = bf16_to_f32(x);
        }
#else
        memcpy(logits, row, h->row_bytes);
#endif
        return;
    }
    memcpy(to->rows + at, row, sizeof(SparseRow));
    if (h->kind == CACHE_SAMPLE)
        cache_unpack_draws(h, row, to->ids + at * h->K, to->p + at * h->K);
    else
        cache_unpack_topk(c, row, to->ids + at * h->K, to->p + at * h->K, to->rows + at);
}

/* Brings n unpacked rows to the device. */
static void cache_upload(const TeacherCache *c, size_t n) {
    const Ops *op = c->op;
    if (op->host_memory) return;
    if (c->h.kind == CACHE_DENSE) {
        op->upload(c->device.logits, c->host.logits, n * c->h.vocab * sizeof(floatX));
        return;
    }
    op->upload(c->device.ids, c->host.ids, n * c->h.K * sizeof(int));
    op->upload(c->device.p, c->host.p, n * c->h.K * sizeof(float));
    op->upload(c->device.rows, c->host.rows, n * sizeof(SparseRow));
}

/* The outputs for a micro-batch of B samples of the data. Valid until the next call. */
static int cache_get(TeacherCache *c, TeacherOutput *q, const uint32_t *samples, int B, Error *err) {
    size_t n = 0;
    for (int b = 0; b < B; b++) {
        const uint32_t sample = samples[b], tokens = dataset_sample(c->data, sample).token_count;
        const uint8_t *rows = c->file.data + c->offsets[sample];
        if (!c->checked[sample] && cache_check_block(c, sample, tokens, err)) return -1;
        c->checked[sample] = 1;
#pragma omp parallel for schedule(static) if (tokens * c->h.row_bytes > 65536)
        for (uint32_t t = 0; t < tokens; t++) cache_unpack(c, rows + (size_t)t * c->h.row_bytes, n + t);
        n += tokens;
    }
    cache_upload(c, n);
    *q = (TeacherOutput){.logits = c->device.logits, .sparse = c->h.kind == CACHE_DENSE ? NULL : &c->sparse};
    return 0;
}

#endif
