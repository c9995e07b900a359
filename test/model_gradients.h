/* What tests of models share: values on the host, an optimizer for gradients, and gradients that must be the same bits. */
#ifndef TEST_MODEL_GRADIENTS_H
#define TEST_MODEL_GRADIENTS_H

#include "checks.h"

#include "../model.h"
#include "../train/optimizer.h"

static float *host_f32(const Ops *op, const float *x, size_t n) {
    float *host = xmalloc(n * sizeof(float));
    op->download(host, x, n * sizeof(float));
    return host;
}

static float *host_x(const Ops *op, const floatX *x, size_t n) {
    floatX *raw = xmalloc(n * sizeof(floatX));
    op->download(raw, x, n * sizeof(floatX));
    float *host = xmalloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) host[i] = from_x(raw[i]);
    free(raw);
    return host;
}

static void open_optimizer(Optimizer *o, const Ops *op, Params *params, int groups) {
    AdamW adamw;
    memset(&adamw, 0, sizeof adamw);
    optimizer_open(o, op, adamw, &params, &groups, 1, 0, 1, false);
}

/* Gradients of all parameters, one after another, frozen ones left out; the caller frees. */
static float *gather_gradients(const Params *params, const Ops *op, int groups, size_t *count) {
    float *all = xmalloc(params_total(params, GROUP_ALL) * sizeof(float));
    *count = 0;
    for (int i = 0; i < params->count; i++) {
        const Param *x = &params->list[i];
        if (!x->gradient || !(x->group & groups)) continue;
        op->download(all + *count, x->gradient, x->n * sizeof(float));
        *count += x->n;
    }
    return all;
}

static void expect_bits(const char *name, const char *what, float *a, size_t a_count, float *b, size_t b_count) {
    check(a_count == b_count && a_count > 0 && !memcmp(a, b, a_count * sizeof(float)),
          "%s: %s gives other gradients (relative difference %.1e)", name, what,
          a_count == b_count ? relative_error(a, b, a_count) : -1.0);
    free(a);
}

#endif
