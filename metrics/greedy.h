/* The programs that a model writes, greedily, for the images of a dataset, and how many of them are the reference's. */
#ifndef METRICS_GREEDY_H
#define METRICS_GREEDY_H

#include "../generate.h"
#include "../lib/bpe.h"
#include "../lib/clock.h"
#include "../lib/progress.h"
#include "dataset_pass.h"
#include "forced.h"
#include "programs.h"

typedef struct {
    int batch;        // images at a time
    int64_t samples;  // only the first; 0: all
    /* folder, or NULL: programs are written there as NUMBER.tex, references as NUMBER.ref.tex, with the samples' numbers in
     * the dataset, in five digits, as in the report */
    const char *texts;
} GreedyOptions;

typedef struct {
    int64_t exact;           // programs that equal the reference's text
    double tokens, seconds;  // of this run: generated, the end tokens included, and the time for all
    ProgramStore programs;   // of all samples of the dataset, where programs.texts is not NULL
} GreedyResult;

/* The generated programs of a batch: ids [B, max_tokens], lengths [B] with the begin token, where the model has one, and without
 * the end token, random streams [B] (all 0, since greedy decoding draws nothing). */
typedef struct {
    const Model *model;
    int *ids, *lengths, *streams;
    int max_tokens;
} GreedyBatch;

/* Callback of the generator: stores token `id` of sequence b. Returns false at an end token. */
static inline bool greedy_token(void *context, int b, int id) {
    GreedyBatch *p = (GreedyBatch *)context;
    if (id < 0) die_not_finite(p->model);
    if (tokenizer_ends(&p->model->tokenizer, id)) return false;
    p->ids[(size_t)b * p->max_tokens + p->lengths[b]++] = id;
    return true;
}

static inline void greedy_write(const GreedyOptions *o, int64_t number, const char *ending, const char *text,
                                size_t bytes) {
    Error err;
    char *path = format_string("%s/%05lld%s", o->texts, (long long)number, ending);
    die_if(file_write(path, text, bytes, &err), &err);
    free(path);
}

/* Compares a program with the reference [n] of the sample of this number. */
static inline void greedy_compare(GreedyResult *result, const GreedyOptions *o, const Tokenizer *t,
                                  const char *program, size_t bytes, const int *ids, int n, int64_t number) {
    char *reference;
    size_t length;
    tokenizer_decode(t, ids, n, &reference, &length);
    result->exact += bytes == length && !memcmp(program, reference, bytes);
    if (o->texts) greedy_write(o, number, ".tex", program, bytes);
    if (o->texts) greedy_write(o, number, ".ref.tex", reference, length);
    free(reference);
}

/* Whether an earlier run has written the programs of a batch. */
static inline bool greedy_have(const GreedyResult *result, const Batch *batch, int B) {
    for (int b = 0; b < B; b++)
        if (!result->programs.texts || !result->programs.texts[batch->samples[b]]) return false;
    return true;
}

/* Compares the programs of a batch of B images with the references, and keeps those that are new. mine: what was generated;
 * NULL: the programs of an earlier run are taken. */
static inline void greedy_finish(GreedyResult *result, const GreedyOptions *o, const Model *m, const Batch *batch,
                                 const GreedyBatch *mine, int B) {
    Error err;
    for (int b = 0; b < B; b++) {
        const int *ids = batch->ids + (size_t)b * batch->T;
        char *text = mine ? NULL : result->programs.texts[batch->samples[b]];
        size_t bytes = mine ? 0 : result->programs.lengths[batch->samples[b]];
        int n = 0;
        while (n < batch->T && ids[n] >= 0 && ids[n] != m->tokenizer.end) n++;
        if (mine) {
            tokenizer_decode(&m->tokenizer, mine->ids + (size_t)b * mine->max_tokens, mine->lengths[b], &text,
                             &bytes);
            result->tokens += mine->lengths[b] - (m->tokenizer.begin >= 0) + 1;
        }
        greedy_compare(result, o, &m->tokenizer, text, bytes, ids, n, batch->samples[b]);
        if (mine && result->programs.texts)
            die_if(programs_add(&result->programs, batch->samples[b], text, bytes, &err), &err);
        else if (mine)
            free(text);
    }
}

/* Generates the programs of a batch of B images, after the begin token where the model has one, as infer does. */
static inline void greedy_generate(Generator *g, const uint8_t *pixels, int B, GreedyBatch *mine) {
    const int begin = g->m->tokenizer.begin, first = begin >= 0;
    for (int b = 0; b < B; b++) {
        mine->lengths[b] = first;
        if (first) mine->ids[(size_t)b * mine->max_tokens] = begin;
    }
    generator_prefill(g, pixels, B, &begin, first);
    generator_run(g, mine->streams, mine->max_tokens - first, greedy_token, mine);
}

/* Writes the programs of all samples with m, planned for the options' batch and max_tokens. result: zeros, with
 * result->programs open or not; what it has is not generated again. */
static inline void greedy_measure(GreedyResult *result, const GreedyOptions *o, Model *m, const Dataset *d,
                                  int max_tokens) {
    DatasetPass pass;
    Generator generator;
    Progress progress;
    const Batch *batch;
    const size_t B_most = (size_t)o->batch;
    GreedyBatch mine = {m, (int *)xcalloc(B_most * (size_t)max_tokens, sizeof(int)),
                        (int *)xcalloc(B_most, sizeof(int)), (int *)xcalloc(B_most, sizeof(int)), max_tokens};
    int B = 0;
    const double start = seconds_now();
    dataset_pass_open(&pass, d, m, NULL, o->batch, o->samples, max_tokens);
    generator_open(&generator, m, o->batch, max_tokens);
    generator_set_sampling(&generator, 0, 1, 0, 0, m->tokenizer.begin >= 0);
    progress_begin(&progress, "generating", 0, pass.total);
    while ((batch = dataset_pass_next(&pass, &B))) {
        const bool have = greedy_have(result, batch, B);
        if (!have) greedy_generate(&generator, batch->pixels[0], B, &mine);
        greedy_finish(result, o, m, batch, have ? NULL : &mine, B);
        progress_update(&progress, pass.seen, "%.1f %% exact", 100 * (double)result->exact / (double)pass.seen);
    }
    progress_end(&progress);
    generator_close(&generator);
    dataset_pass_close(&pass);
    free(mine.ids);
    free(mine.lengths);
    free(mine.streams);
    result->seconds = seconds_now() - start;
}

#endif
