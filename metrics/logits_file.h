/* The teacher-forced logits of a model as a file, for other programs: safetensors, logits fp32 [samples, positions,
 * vocabulary] (zeros after the end of a text) and ids int32 [samples, positions], -1 where a text has ended. */
#ifndef METRICS_LOGITS_FILE_H
#define METRICS_LOGITS_FILE_H

#include "../lib/safetensors.h"
#include "../model.h"

typedef struct {
    SafeTensorsWriter writer;
    float *row;  // [positions, V] logits of one sample
    int *ids;    // [samples, positions], written after all logits
    int positions, vocab;
    int64_t samples;  // written so far
} LogitsFile;

static inline void logits_file_open(LogitsFile *f, const char *path, int64_t samples, int positions, int vocab) {
    Error err;
    SafeTensorSpec specs[2];
    const char *keys[] = {"format"}, *values[] = {"tikz.c/logits/1"};
    memset(specs, 0, sizeof specs);
    snprintf(specs[0].name, sizeof specs[0].name, "logits");
    specs[0].dtype = DT_F32;
    specs[0].ndim = 3;
    snprintf(specs[1].name, sizeof specs[1].name, "ids");
    specs[1].dtype = DT_I32;
    specs[1].ndim = 2;
    for (int i = 0; i < 2; i++) {
        specs[i].shape[0] = samples;
        specs[i].shape[1] = positions;
    }
    specs[0].shape[2] = vocab;
    f->positions = positions;
    f->vocab = vocab;
    f->samples = 0;
    f->row = xcalloc((size_t)positions * (size_t)vocab, sizeof(float));
    f->ids = xcalloc((size_t)samples * (size_t)positions, sizeof(int));
    die_if(safetensors_write_begin(&f->writer, path, specs, 2, keys, values, 1, &err), &err);
}

/* Writes the logits of the last forward pass, over B rows of ids [B, T]. m->hidden holds the final hidden states of
 * the positions that have a label, row after row. */
static inline void logits_file_add(LogitsFile *f, const Model *m, const int *ids, int B, int T) {
    Error err;
    size_t row = (size_t)f->positions * (size_t)f->vocab;
    float *device = (float *)m->op->alloc((size_t)f->positions * (size_t)f->vocab * sizeof(float));
    if (!device) die("cannot allocate the logits of one sample");
    const floatX *hidden = m->hidden;
    for (int b = 0; b < B; b++) {
        int n = 0, *out = f->ids + (size_t)f->samples++ * (size_t)f->positions;
        for (int t = 0; t < f->positions; t++) {
            out[t] = t < T ? ids[(size_t)b * (size_t)T + (size_t)t] : -1;
            n += out[t] >= 0;
        }
        memset(f->row, 0, row * sizeof(float));
        linear_logits(m->op, device, hidden, m->lm_head, n);
        m->op->download(f->row, device, (size_t)n * (size_t)f->vocab * sizeof(float));
        die_if(safetensors_write_data(&f->writer, f->row, row * sizeof(float), &err), &err);
        hidden += (size_t)n * m->c.lm.hidden_size;
    }
    m->op->release(device);
}

static inline void logits_file_close(LogitsFile *f) {
    Error err;
    size_t bytes = (size_t)f->samples * (size_t)f->positions * sizeof(int);
    die_if(safetensors_write_data(&f->writer, f->ids, bytes, &err), &err);
    die_if(safetensors_write_end(&f->writer, &err), &err);
    free(f->row);
    free(f->ids);
}

#endif
