/* The named parameters of a model.
 *
 * A model declares its parameters once (name, shape, part, initial spread); after that they are either mapped from
 * a file and used in place, copied from a file, or drawn at random. What is trained then moves to the optimizer's
 * flat arrays (train/optimizer.h). */
#ifndef LIB_PARAMETERS_H
#define LIB_PARAMETERS_H

#include "kernels/arena.h"
#include "lib/error.h"
#include "lib/random.h"
#include "lib/safetensors.h"

#include <unistd.h>

/* Parts of a model that can be trained or frozen apart (a bit mask). */
enum { GROUP_VISION = 1, GROUP_CONNECTOR = 2, GROUP_LM = 4, GROUP_ALL = 7 };

typedef struct {
    char name[96];
    int ndim;
    int rows, cols;  // shape [rows, cols], or [rows] with cols = 1 when ndim is 1
    size_t n;
    int part;
    bool decay;       // AdamW's weight decay applies: matrices, not norms, biases or positions
    float spread;     // standard deviation at random initialisation; 0: zeros, 1 with ndim 1: ones
    floatX *value;    // [n]
    float *gradient;  // [n]; NULL when frozen
    size_t at;        // where it begins in the optimizer's flat arrays; when trained
} Param;

typedef struct {
    Param *list;
    int count, capacity;
    Arena values;
    void *settled;  // the values that params_settle moved; NULL when none
} Params;

static inline void params_reserve(Params *p, int capacity) {
    memset(p, 0, sizeof *p);
    p->list = (Param *)xcalloc((size_t)capacity, sizeof(Param));
    p->capacity = capacity;
}

/* Declares a parameter; `layer` < 0 leaves the number out of the name. Pointers stay valid: the list never moves. */
static inline Param *param_add(Params *p, int part, const char *prefix, int layer, const char *name, int rows,
                               int cols, float spread) {
    if (p->count == p->capacity) die("internal error: more parameters declared than reserved (%d)", p->capacity);
    Param *x = &p->list[p->count++];
    if (layer < 0)
        snprintf(x->name, sizeof x->name, "%s%s", prefix, name);
    else
        snprintf(x->name, sizeof x->name, "%s%d.%s", prefix, layer, name);
    x->ndim = cols > 0 ? 2 : 1;
    x->rows = rows;
    x->cols = cols > 0 ? cols : 1;
    x->n = (size_t)rows * (size_t)x->cols;
    x->part = part;
    x->decay = x->ndim == 2;
    x->spread = spread;
    return x;
}

static inline Weight param_weight(const Param *p) {
    Weight w;
    w.data = p->value;
    w.dtype = DT_FLOATX;
    w.rows = p->rows;
    w.cols = p->cols;
    w.scales = NULL;
    return w;
}

static inline size_t params_total(const Params *p, int parts) {
    size_t n = 0;
    for (int i = 0; i < p->count; i++)
        if (p->list[i].part & parts) n += p->list[i].n;
    return n;
}

static inline void params_plan_values(Params *p) {
    for (int i = 0; i < p->count; i++) p->list[i].value = arena_x(&p->values, p->list[i].n);
}

static inline void params_allocate_values(Params *p, const Ops *op) {
    params_plan_values(p);
    arena_allocate(&p->values, op, "parameters");
    params_plan_values(p);
}

/* Keeps memory for the values of the parts that are not in the mask only; the others have moved elsewhere. */
static inline void params_leave(Params *p, const Ops *op, int gone) {
    Arena kept = {NULL, 0};
    if (!p->values.base) return;
    for (int i = 0; i < p->count; i++)
        if (!(p->list[i].part & gone)) arena_x(&kept, p->list[i].n);
    if (kept.used) {
        arena_allocate(&kept, op, "frozen parameters");
        for (int i = 0; i < p->count; i++) {
            Param *x = &p->list[i];
            if (x->part & gone) continue;
            floatX *to = arena_x(&kept, x->n);
            op->copy(to, x->value, x->n * sizeof(floatX));
            x->value = to;
        }
    }
    op->sync();
    arena_release(&p->values, op);
    p->values = kept;
}

/* Draws every parameter of the given parts. One random stream per parameter, so that changing one shape leaves the
 * others as they were. */
static inline void params_randomise(Params *p, const Ops *op, int parts, uint64_t seed) {
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        if (!(x->part & parts)) continue;
        Random rng;
        random_seed(&rng, seed * 1000003u + (uint64_t)i);
        floatX *host = (floatX *)xmalloc(x->n * sizeof(floatX));
        bool ones = x->ndim == 1 && x->spread == 1.0f;
        for (size_t j = 0; j < x->n; j++)
            host[j] = to_x(ones ? 1.0f : x->spread == 0 ? 0.0f : x->spread * random_normal(&rng));
        op->upload(x->value, host, x->n * sizeof(floatX));
        free(host);
    }
}

/* The stored tensor for a parameter, its shape and type checked; NULL with *err filled when it does not fit. */
static inline const SafeTensor *param_find(const Param *x, const SafeTensors *st, Error *err) {
    const SafeTensor *t = safetensors_find(st, x->name);
    if (!t) {
        error_set(err, "%s: tensor %s is missing; the file is not a complete tikz.c model", st->file.path, x->name);
        return NULL;
    }
    bool shape_ok = t->ndim == x->ndim && t->shape[0] == x->rows && (x->ndim == 1 || t->shape[1] == x->cols);
    if (!shape_ok) {
        error_set(err, "%s: tensor %s has shape [%lld, %lld]; the configuration asks for [%d, %d]", st->file.path,
                  x->name, t->ndim > 0 ? (long long)t->shape[0] : 0, t->ndim > 1 ? (long long)t->shape[1] : 1,
                  x->rows, x->cols);
        return NULL;
    }
    if (t->dtype != DT_BF16 && t->dtype != DT_F32 && t->dtype != DT_F16) {
        error_set(err, "%s: tensor %s is of type %s; weights must be BF16, F16 or F32", st->file.path, x->name,
                  dtype_name(t->dtype));
        return NULL;
    }
    return t;
}

static inline void param_copy_from(const Param *x, const SafeTensor *t, const Ops *op) {
    if (t->dtype == DT_FLOATX) {
        op->upload(x->value, t->data, t->bytes);
        return;
    }
    floatX *host = (floatX *)xmalloc(x->n * sizeof(floatX));
    for (size_t i = 0; i < x->n; i++) {
        float f = 0;
        if (t->dtype == DT_F32) f = ((const float *)t->data)[i];
        if (t->dtype == DT_BF16) f = bf16_to_f32(((const bf16 *)t->data)[i]);
        if (t->dtype == DT_F16) f = f16_to_f32(((const uint16_t *)t->data)[i]);
        host[i] = to_x(f);
    }
    op->upload(x->value, host, x->n * sizeof(floatX));
    free(host);
}

/* Takes the values from a file. In place (no copy, no memory: the pages load when first read) when the device shares
 * the host's memory and every tensor is stored as floatX; the file must then stay open. */
static inline int params_load(Params *p, const SafeTensors *st, const Ops *op, Error *err) {
    bool in_place = op->host_memory;
    for (int i = 0; i < p->count; i++) {
        const SafeTensor *t = param_find(&p->list[i], st, err);
        if (!t) return -1;
        if (t->dtype != DT_FLOATX) in_place = false;
    }
    if (!in_place) params_allocate_values(p, op);
    for (int i = 0; i < p->count; i++) {
        const SafeTensor *t = safetensors_find(st, p->list[i].name);
        if (in_place)
            p->list[i].value = (floatX *)(uintptr_t)t->data;
        else
            param_copy_from(&p->list[i], t, op);
    }
    return 0;
}

/* Copies the values of some parts that are used in place in a file into memory of their own: that lies on large pages
 * where the system gives them, and reads a third faster than a file's small ones. For what is read over and over at
 * memory bandwidth, so not for little models, which stay in the caches; and not where the copy and the file's pages
 * would crowd the machine: then, and without memory, everything stays where it is. */
static inline void params_settle(Params *p, const Ops *op, int parts) {
    const size_t least = (size_t)32 << 20;
    size_t bytes = params_total(p, parts) * sizeof(floatX);
    size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    if (!op->host_memory || p->values.base || p->settled || bytes < least || bytes > machine / 2) return;
    char *to = (char *)op->alloc(bytes + 64 * (size_t)p->count);
    if (!to) return;
    p->settled = to;
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        if (!(x->part & parts)) continue;
        op->copy(to, x->value, x->n * sizeof(floatX));
        x->value = (floatX *)(void *)to;
        to += (x->n * sizeof(floatX) + 63) / 64 * 64;
    }
}

static inline void params_release(Params *p, const Ops *op) {
    if (p->settled) op->release(p->settled);
    arena_release(&p->values, op);
    free(p->list);
    memset(p, 0, sizeof *p);
}

#endif
