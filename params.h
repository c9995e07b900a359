/* The named parameters of a model, their groups and their memory, and the product with a matrix of them.
 *
 * A model declares its parameters once (name, shape, group, standard deviation at initialisation). Their values are
 * then mapped from a file and used in place, copied from a file, or drawn at random. Trained parameters move to the
 * optimizer's flat arrays (train/optimizer.h), which also hold their gradients. */
#ifndef PARAMS_H
#define PARAMS_H

#include "kernels/arena.h"
#include "lib/random.h"
#include "lib/safetensors.h"

#include <unistd.h>

/* Parameter groups, trained or frozen as a whole (a bit mask). */
enum { GROUP_VISION = 1, GROUP_CONNECTOR = 2, GROUP_LM = 4, GROUP_ALL = 7 };

typedef struct {
    char name[96];
    int ndim, rows, cols;  // shape [rows, cols]; [rows] with cols = 1 where ndim is 1
    size_t n;              // elements
    int group;
    bool decay;       // AdamW's weight decay applies: to matrices, not to norms, biases and positions
    float init_std;   // standard deviation of random initialisation; 0: zeros; 1 where ndim is 1: ones
    floatX *value;    // device [n]
    float *gradient;  // device [n]; NULL where frozen
    size_t offset;    // of a trained parameter in the optimizer's flat arrays
} Param;

typedef struct {
    Param *list;
    int count, capacity;
    const char *owner;  // whose parameters, in messages: "" or "the teacher's "
    Arena arena;        // values that are not used in place in a file
    void *large_pages;  // values that params_move_to_large_pages moved, or NULL
} Params;

/* ---- declaring ---- */

static inline void params_reserve(Params *p, int capacity, const char *owner) {
    *p = (Params){.list = xcalloc((size_t)capacity, sizeof(Param)), .capacity = capacity, .owner = owner};
}

/* Declares a parameter; `layer` < 0 leaves the number out of the name. Pointers stay valid: the list never moves. */
static inline Param *param_add(Params *p, int group, const char *prefix, int layer, const char *name, int rows,
                               int cols, float init_std) {
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
    x->group = group;
    x->decay = x->ndim == 2;
    x->init_std = init_std;
    return x;
}

/* Elements of all parameters in the groups of the mask. */
static inline size_t params_total(const Params *p, int groups) {
    size_t n = 0;
    for (int i = 0; i < p->count; i++)
        if (p->list[i].group & groups) n += p->list[i].n;
    return n;
}

/* ---- the product with a matrix ---- Every matrix of a model is multiplied here: the place where adapters (LoRA) and
 * quantised weights come in. */

static inline Weight param_weight(const Param *w) {
    return (Weight){.data = w->value, .dtype = DT_FLOATX, .rows = w->rows, .cols = w->cols, .scales = NULL};
}

/* out [rows, O] = in [rows, I] Wᵀ, W [O, I]. */
static inline void linear(const Ops *op, floatX *out, const floatX *in, const Param *w, size_t rows) {
    op->linear_forward(out, in, param_weight(w), NULL, ACT_NONE, NULL, rows);
}

/* out = act(in Wᵀ + bias); bias may be NULL. preact [rows, O], if not NULL, keeps the value before the activation. */
static inline void linear_act(const Ops *op, floatX *out, const floatX *in, const Param *w, const Param *bias,
                              Activation act, floatX *preact, size_t rows) {
    op->linear_forward(out, in, param_weight(w), bias ? bias->value : NULL, act, preact, rows);
}

/* Logits in fp32: out [rows, O] = in Wᵀ. */
static inline void linear_logits(const Ops *op, float *out, const floatX *in, const Param *w, size_t rows) {
    op->linear_logits(out, in, param_weight(w), rows);
}

/* The backward pass of linear and linear_act (without the activation): adds the gradients of W and of the bias (may be
 * NULL) where W is trained, and writes d_in [rows, I] = d_out [rows, O] W where d_in is not NULL. */
static inline void linear_backward(const Ops *op, floatX *d_in, const floatX *d_out, const floatX *in, const Param *w,
                                   const Param *bias, size_t rows) {
    if (w->gradient)
        op->linear_backward_weight(w->gradient, bias ? bias->gradient : NULL, d_out, in, rows, w->rows, w->cols);
    if (d_in) op->linear_backward_input(d_in, d_out, param_weight(w), rows, false);
}

/* ---- memory ---- */

static inline void params_plan(Params *p) {
    for (int i = 0; i < p->count; i++) p->list[i].value = arena_x(&p->arena, p->list[i].n);
}

static inline void params_allocate(Params *p, const Ops *op) {
    params_plan(p);
    arena_allocate(&p->arena, op, p->owner, "parameters");
    params_plan(p);
}

/* Gives back the memory of the groups in the mask, whose values have moved to the optimizer's array. */
static inline void params_release_groups(Params *p, const Ops *op, int groups) {
    Arena frozen = {NULL, 0};
    if (!p->arena.base) return;
    for (int i = 0; i < p->count; i++)
        if (!(p->list[i].group & groups)) arena_x(&frozen, p->list[i].n);
    if (frozen.used) {
        arena_allocate(&frozen, op, p->owner, "frozen parameters");
        for (int i = 0; i < p->count; i++) {
            Param *x = &p->list[i];
            if (x->group & groups) continue;
            floatX *to = arena_x(&frozen, x->n);
            op->copy(to, x->value, x->n * sizeof(floatX));
            x->value = to;
        }
    }
    op->sync();
    arena_release(&p->arena, op);
    p->arena = frozen;
}

/* Copies the values of some groups that are used in place in a file into memory of their own. That memory lies on
 * large pages where the system gives them, and is read a third faster than a file's small pages. Worth it for weights
 * that are read again and again at memory bandwidth, so small models, which stay in the caches, are left alone. So is
 * everything where the copy and the file's pages would crowd the machine, or where there is no memory. */
static inline void params_move_to_large_pages(Params *p, const Ops *op, int groups) {
    const size_t least = (size_t)32 << 20;
    size_t bytes = params_total(p, groups) * sizeof(floatX);
    size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    if (!op->host_memory || p->arena.base || p->large_pages || bytes < least || bytes > machine / 2) return;
    char *to = op->alloc(bytes + 64 * (size_t)p->count);
    if (!to) return;
    p->large_pages = to;
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        if (!(x->group & groups)) continue;
        op->copy(to, x->value, x->n * sizeof(floatX));
        x->value = (floatX *)(void *)to;
        to += (x->n * sizeof(floatX) + 63) / 64 * 64;
    }
}

static inline void params_release(Params *p, const Ops *op) {
    if (p->large_pages) op->release(p->large_pages);
    arena_release(&p->arena, op);
    free(p->list);
    *p = (Params){0};
}

/* ---- values ---- */

/* Draws all parameters at random. Each has a random stream of its own, so that changing the shape of one leaves the
 * others as they were. */
static inline void params_init_random(Params *p, const Ops *op, uint64_t seed) {
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        Random rng;
        random_seed(&rng, seed * 1000003u + (uint64_t)i);
        floatX *host = xmalloc(x->n * sizeof(floatX));
        bool ones = x->ndim == 1 && x->init_std == 1.0f;
        for (size_t j = 0; j < x->n; j++)
            host[j] = to_x(ones ? 1.0f : x->init_std == 0 ? 0.0f : x->init_std * random_normal(&rng));
        op->upload(x->value, host, x->n * sizeof(floatX));
        free(host);
    }
}

/* The stored tensor of a parameter, its shape and type checked; NULL with *err filled when it does not fit. */
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

/* Copies a stored tensor into a parameter, converted to floatX. */
static inline void param_copy_from(const Param *x, const SafeTensor *t, const Ops *op) {
    if (t->dtype == DT_FLOATX) {
        op->upload(x->value, t->data, t->bytes);
        return;
    }
    floatX *host = xmalloc(x->n * sizeof(floatX));
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

/* Takes the values from a file: in place (no copy, no memory; pages load when first read) where the device shares the
 * host's memory and every tensor is stored as floatX. The file must then stay open. */
static inline int params_load(Params *p, const SafeTensors *st, const Ops *op, Error *err) {
    bool in_place = op->host_memory;
    for (int i = 0; i < p->count; i++) {
        const SafeTensor *t = param_find(&p->list[i], st, err);
        if (!t) return -1;
        if (t->dtype != DT_FLOATX) in_place = false;
    }
    if (!in_place) params_allocate(p, op);
    for (int i = 0; i < p->count; i++) {
        const SafeTensor *t = safetensors_find(st, p->list[i].name);
        if (in_place)
            p->list[i].value = (floatX *)(uintptr_t)t->data;
        else
            param_copy_from(&p->list[i], t, op);
    }
    return 0;
}

/* Whether two parameters, possibly on different devices, have the same values bit for bit. */
static inline bool param_same(const Param *a, const Ops *a_op, const Param *b, const Ops *b_op) {
    size_t bytes = a->n * sizeof(floatX);
    void *a_copy = a_op->host_memory ? NULL : xmalloc(bytes), *b_copy = b_op->host_memory ? NULL : xmalloc(bytes);
    if (a_copy) a_op->download(a_copy, a->value, bytes);
    if (b_copy) b_op->download(b_copy, b->value, bytes);
    bool same = !memcmp(a_copy ? a_copy : a->value, b_copy ? b_copy : b->value, bytes);
    free(a_copy);
    free(b_copy);
    return same;
}

/* The first parameter with a value that is not finite, or NULL. Reads everything: for the sentence after a failure. */
static inline const Param *params_not_finite(const Params *p, const Ops *op) {
    const Param *found = NULL;
    for (int i = 0; i < p->count && !found; i++) {
        const Param *x = &p->list[i];
        floatX *host = xmalloc(x->n * sizeof(floatX));
        op->download(host, x->value, x->n * sizeof(floatX));
        for (size_t j = 0; j < x->n && !found; j++)
            if (!isfinite(from_x(host[j]))) found = x;
        free(host);
    }
    return found;
}

/* ---- the backward pass tells when gradients are final ---- */

/* `ready` is called during a backward pass: the gradients of p and of every parameter declared after it are final (the
 * device has been given all that adds to them), and their all-reduce can begin. NULL: nobody asks. */
typedef struct {
    void (*ready)(void *context, const Param *p);
    void *context;
} GradientHook;

static inline void gradients_ready(const GradientHook *hook, const Param *p) {
    if (hook->ready && p->gradient) hook->ready(hook->context, p);
}

#endif
