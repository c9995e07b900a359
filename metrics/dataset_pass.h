/* One pass over the samples of a dataset in its order, for measuring. */
#ifndef METRICS_DATASET_PASS_H
#define METRICS_DATASET_PASS_H

#include "../dataloader.h"
#include "../model.h"

typedef struct {
    Loader loader;
    int64_t total, seen;  // samples of the pass, and how many were used so far
} DatasetPass;

/* Images come in the size of the model and, if it differs, of the teacher (or NULL), `batch` at a time. limit: only the
 * first samples; 0: all. Samples of more than max_tokens text tokens are left out, with a warning. */
static inline void dataset_pass_open(DatasetPass *p, const Dataset *d, const Model *m, const Model *teacher,
                                     int batch, int64_t limit, int max_tokens) {
    Error err;
    const ImageSize none = {0};
    LoaderConfig c =
        loader_config_for(batch, max_tokens, vision_size(&m->c.vision), m->tokenizer.count,
                          teacher ? vision_size(&teacher->c.vision) : none, teacher ? teacher->c.lm.vocab : 0);
    p->seen = 0;
    die_if(loader_start(&p->loader, d, c, &err), &err);
    if (p->loader.skipped)
        warn("%llu of %llu samples have more than %d text tokens and are left out",
             (unsigned long long)p->loader.skipped, (unsigned long long)d->count, max_tokens);
    p->total = (int64_t)(d->count - p->loader.skipped);
    if (limit && limit < p->total) p->total = limit;
}

/* The next batch, and in *rows how many of its rows to use; NULL at the end. */
static inline const Batch *dataset_pass_next(DatasetPass *p, int *rows) {
    Error err;
    err.text[0] = 0;
    if (p->seen >= p->total) return NULL;
    const Batch *b = loader_next(&p->loader, &err);
    if (!b && err.text[0]) die("%s", err.text);
    if (!b) return NULL;
    *rows = p->seen + b->B > p->total ? (int)(p->total - p->seen) : b->B;
    p->seen += *rows;
    return b;
}

static inline void dataset_pass_close(DatasetPass *p) { loader_stop(&p->loader); }

#endif
