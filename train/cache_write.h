/* --write-teacher-cache: runs the teacher once over the training data and keeps its outputs (cache_format.h).
 *
 * The file is written as FILE.partial, in batches of samples of similar length. A run that was stopped is continued: the
 * samples whose blocks have the right CRC are there already. */
#ifndef TRAIN_CACHE_WRITE_H
#define TRAIN_CACHE_WRITE_H

#include "../lib/file_checksum.h"
#include "../lib/interrupt.h"
#include "../lib/kept_file.h"
#include "../lib/progress.h"
#include "cache_pack.h"
#include "../dist/comm.h"
#include "options.h"

enum { CACHE_CHUNK = 1024 };  // positions whose logits are in memory at a time

typedef struct {
    CacheHeader h;
    KeptFile file;
    Dataset data;
    uint64_t *offsets;
    uint8_t *done;              // [samples]
    int64_t samples, finished;  // with blocks; with blocks that are written
    Model teacher;
    floatX *logits, *host;             // [CACHE_CHUNK, vocab] on the device and here
    uint8_t *packed;                   // [positions of a batch, row_bytes]
    uint32_t *row_sample, *row_token;  // of each position of a batch
} CacheWriter;

/* Opens the data, which must have been made with the teacher's tokenizer, or with the --tokenizer of a student that has the
 * same tokens. */
static void cache_write_open_data(CacheWriter *w) {
    Error err;
    Tokenizer student;
    SafeTensors file;
    uint64_t fingerprint = w->teacher.tokenizer.fingerprint;
    die_if(dataset_open(&w->data, opt.data, &err), &err);
    if (opt.tokenizer && w->data.fingerprint != fingerprint) {
        die_if(safetensors_open(&file, opt.tokenizer, &err) || tokenizer_load(&student, &file, &err), &err);
        if (tokenizer_same(&student, &w->teacher.tokenizer, &err))
            die("teacher %s and --tokenizer %s do not go together: %s", opt.teacher, opt.tokenizer, err.text);
        fingerprint = student.fingerprint;
    }
    if (w->data.fingerprint != fingerprint)
        die("%s was made with another tokenizer (fingerprint %016llx) than the teacher's (%016llx); convert the data "
            "again with it, or name the student's with --tokenizer",
            opt.data, (unsigned long long)w->data.fingerprint, (unsigned long long)fingerprint);
}

static void cache_write_header(CacheWriter *w) {
    Error err;
    CacheKind kind;
    CacheHeader h = {
        .magic = "TIKZTCH", .version = CACHE_VERSION, .header_bytes = sizeof h, .samples = w->data.count};
    const ImageSize size = vision_size(&w->teacher.c.vision);
    const int most = model_max_text(&w->teacher);
    h.magic[7] = '1';
    cache_kind_parse(opt.teacher_cache_kind, &kind, &h.K);
    h.kind = kind;
    h.data = dataset_content(&w->data);
    h.tokenizer = w->data.fingerprint;
    die_if(file_checksum(opt.teacher, &h.teacher, &err), &err);
    h.vocab = (uint32_t)w->teacher.c.lm.vocab;
    if (h.K > h.vocab)
        die("--teacher-cache-kind %s asks for more tokens than the teacher's vocabulary of %u has",
            opt.teacher_cache_kind, h.vocab);
    h.max_tokens = (uint32_t)(opt.max_tokens && opt.max_tokens < most ? opt.max_tokens : most);
    h.row_bytes = (uint32_t)cache_row_bytes(kind, h.K, h.vocab);
    h.height = (uint32_t)size.height, h.width = (uint32_t)size.width;
    h.temperature = kind == CACHE_DENSE ? 0 : (float)opt.temperature;
    h.seed = kind == CACHE_SAMPLE ? (uint64_t)opt.seed : 0;
    snprintf(h.name, sizeof h.name, "%s", opt.teacher);
    w->offsets = cache_offsets(&h, &w->data);
    h.file_bytes = w->offsets[h.samples];
    for (uint64_t i = 0; i < h.samples; i++) {
        const uint32_t tokens = dataset_sample(&w->data, i).token_count;
        if (tokens <= h.max_tokens) h.rows += tokens, w->samples++;
    }
    h.crc = cache_header_crc(&h);
    w->h = h;
}

/* Finds the samples whose blocks are in the file. */
static void cache_write_find_done(CacheWriter *w) {
    Error err;
    uint8_t *block = NULL;
    for (uint64_t i = 0; i < w->h.samples; i++) {
        const size_t bytes = (size_t)(w->offsets[i + 1] - w->offsets[i]);
        if (!bytes) continue;
        block = xrealloc(block, bytes);
        die_if(kept_read(&w->file, block, bytes, w->offsets[i], &err), &err);
        const size_t rows = (size_t)dataset_sample(&w->data, i).token_count * w->h.row_bytes;
        w->done[i] = dataset_u32(block + bytes - 4) == cache_block_crc((uint32_t)i, block, rows);
        w->finished += w->done[i];
    }
    free(block);
}

/* Opens FILE.partial: continues what was written with the same header, else begins anew with the whole space reserved. */
static void cache_write_open_file(CacheWriter *w) {
    Error err;
    CacheHeader old = {0};
    die_if(kept_open(&w->file, opt.write_teacher_cache, &err), &err);
    w->done = xcalloc((size_t)w->h.samples, 1);
    const bool whole = w->file.size == w->h.file_bytes;
    if (whole) die_if(kept_read(&w->file, &old, sizeof old, 0, &err), &err);
    if (whole && !memcmp(&old, &w->h, sizeof old)) {
        cache_write_find_done(w);
        progress_note("%s: goes on after %lld of %lld samples", opt.write_teacher_cache, (long long)w->finished,
                      (long long)w->samples);
        return;
    }
    die_if(kept_resize(&w->file, 0, &err), &err);
    die_if(kept_reserve(&w->file, w->h.file_bytes, &err), &err);
    die_if(kept_write(&w->file, &w->h, sizeof w->h, 0, &err), &err);
}

/* Whether FILE itself is what would be written. */
static bool cache_write_is_complete(const CacheWriter *w) {
    Error err;
    MappedFile file;
    if (!file_exists(opt.write_teacher_cache) || file_map(&file, opt.write_teacher_cache, &err)) return false;
    const bool same = file.size == w->h.file_bytes && !memcmp(file.data, &w->h, sizeof w->h);
    file_unmap(&file);
    return same;
}

/* Packs the outputs of the teacher's last forward pass. */
static void cache_write_pack(CacheWriter *w, const Batch *batch) {
    const Model *m = &w->teacher;
    const size_t V = w->h.vocab, W = m->c.lm.hidden_size;
    bool finite = true;
    int at = 0;
    for (int b = 0; b < batch->B; b++) {
        const uint32_t tokens = dataset_sample(&w->data, batch->samples[b]).token_count;
        for (uint32_t t = 0; t < tokens; t++) w->row_sample[at] = batch->samples[b], w->row_token[at++] = t;
    }
    for (at = 0; at < m->n; at += CACHE_CHUNK) {
        const int rows = m->n - at < CACHE_CHUNK ? m->n - at : CACHE_CHUNK;
        linear(m->op, w->logits, m->hidden + (size_t)at * W, m->lm_head, (size_t)rows);
        m->op->download(w->host, w->logits, (size_t)rows * V * sizeof(floatX));
#pragma omp parallel for schedule(static) reduction(&& : finite)
        for (int i = 0; i < rows; i++)
            finite = cache_pack(w->packed + (size_t)(at + i) * w->h.row_bytes, w->host + (size_t)i * V, &w->h,
                                w->row_sample[at + i], w->row_token[at + i]) &&
                     finite;
    }
    if (!finite) die("the teacher %s computes logits that are not finite; it is damaged", opt.teacher);
}

/* Writes the blocks of a batch. */
static void cache_write_blocks(CacheWriter *w, const Batch *batch) {
    Error err;
    const uint8_t *rows = w->packed;
    for (int b = 0; b < batch->B; b++) {
        const uint32_t sample = batch->samples[b];
        const size_t bytes = (size_t)dataset_sample(&w->data, sample).token_count * w->h.row_bytes;
        const uint64_t begin = w->offsets[sample], end = w->offsets[sample + 1];
        const uint32_t crc = cache_block_crc(sample, rows, bytes);
        uint8_t tail[8] = {0};  // up to 3 zeros, the CRC
        const size_t tail_bytes = (size_t)(end - begin) - bytes;
        memcpy(tail + tail_bytes - 4, &crc, sizeof crc);
        die_if(kept_write(&w->file, rows, bytes, begin, &err) ||
                   kept_write(&w->file, tail, tail_bytes, begin + bytes, &err),
               &err);
        w->finished += !w->done[sample];
        w->done[sample] = 1;
        rows += bytes;
    }
}

static bool cache_write_has(const CacheWriter *w, const Batch *batch) {
    for (int b = 0; b < batch->B; b++)
        if (!w->done[batch->samples[b]]) return false;
    return true;
}

/* All samples that are not there yet. */
static void cache_write_run(CacheWriter *w) {
    Error err;
    Loader loader;
    Progress progress;
    const int batch_rows = (int)opt.batch;
    const uint32_t longest = w->data.longest < w->h.max_tokens ? w->data.longest : w->h.max_tokens;
    const int T = (int)((longest + 7) / 8 * 8 < w->h.max_tokens ? (longest + 7) / 8 * 8 : w->h.max_tokens);
    LoaderConfig c = loader_config_for(batch_rows, T, vision_size(&w->teacher.c.vision), w->teacher.tokenizer.count,
                                       (ImageSize){0}, 0);
    c.shuffle = true;  // which makes batches of samples of similar length
    die_if(loader_start(&loader, &w->data, c, &err), &err);
    const size_t positions = (size_t)batch_rows * (size_t)T;
    model_plan(&w->teacher, batch_rows, T);
    w->packed = xmalloc(positions * w->h.row_bytes);
    w->row_sample = xcalloc(positions, sizeof(uint32_t));
    w->row_token = xcalloc(positions, sizeof(uint32_t));
    w->host = xcalloc((size_t)CACHE_CHUNK * w->h.vocab, sizeof(floatX));
    w->logits = w->teacher.op->alloc((size_t)CACHE_CHUNK * w->h.vocab * sizeof(floatX));
    if (!w->logits) die("cannot allocate the logits of %d positions on %s", CACHE_CHUNK, w->teacher.op->name);
    interrupts_keep();
    progress_begin(&progress, "teacher", w->finished, w->samples);
    for (uint64_t i = 0; i < loader.batches_per_epoch && w->finished < w->samples && !interrupted(); i++) {
        const Batch *batch = loader_next(&loader, &err);
        if (!batch) die("%s", err.text);
        if (cache_write_has(w, batch)) continue;
        model_forward(&w->teacher, batch->pixels[0], batch->ids, batch->B, batch->T);
        cache_write_pack(w, batch);
        cache_write_blocks(w, batch);
        progress_update(&progress, w->finished, NULL);
    }
    progress_end(&progress);
    loader_stop(&loader);
    w->teacher.op->release(w->logits);
    free(w->packed);
    free(w->row_sample);
    free(w->row_token);
    free(w->host);
}

static void cache_write_report(const CacheWriter *w) {
    char *what = cache_describe(&w->h);
    if (w->samples < (int64_t)w->data.count)
        warn("%lld of %llu samples have more than %u text tokens and are left out",
             (long long)((int64_t)w->data.count - w->samples), (unsigned long long)w->data.count, w->h.max_tokens);
    fprintf(stderr, "%lld samples, %llu tokens, %s: %.1f bytes a token, %.1f MB in all\n", (long long)w->samples,
            (unsigned long long)w->h.rows, what, (double)w->h.file_bytes / (double)w->h.rows,
            (double)w->h.file_bytes / 1e6);
    printf("%s\n", opt.write_teacher_cache);
    if (fflush(stdout)) die("cannot write to stdout: %s", strerror(errno));
    free(what);
}

/* The program, where --write-teacher-cache is given. Returns its exit status. */
static int cache_write(void) {
    Error err;
    CacheWriter w = {0};
    if (launched_ranks() > 1) die("--write-teacher-cache runs as one process; start it without mpirun");
    threads_use(opt.threads ? (int)opt.threads : omp_get_max_threads());
    const char *option = opt.teacher_device ? "teacher-device" : "device";
    const Ops *op = ops_open(opt.teacher_device ? opt.teacher_device : opt.device, &err);
    if (!op) options_die("--%s: %s", option, err.text);
    die_if(model_open_to_train(&w.teacher, op, opt.teacher, "the teacher's ", &err), &err);
    cache_write_open_data(&w);
    cache_write_header(&w);
    if (!w.samples)
        die("every sample of %s has more than %u text tokens; raise --max-tokens", opt.data, w.h.max_tokens);
    if (cache_write_is_complete(&w)) {
        progress_note("%s is complete already", opt.write_teacher_cache);
    } else {
        cache_write_open_file(&w);
        if (w.finished < w.samples) cache_write_run(&w);
        if (w.finished < w.samples)
            die("interrupted: %lld of %lld samples are in %s; the same command continues", (long long)w.finished,
                (long long)w.samples, w.file.partial);
        die_if(kept_commit(&w.file, &err), &err);
    }
    cache_write_report(&w);
    dataset_close(&w.data);
    model_close(&w.teacher);
    free(w.offsets);
    free(w.done);
    return 0;
}

#endif
