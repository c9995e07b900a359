/* The named parameters of a model, their groups and their memory.
 *
 * A model declares its parameters once (name, shape, group, standard deviation at initialisation). Their values are
 * then taken from a file (weights.h) or drawn at random. Trained parameters move to the
 * optimizer's flat arrays (train/optimizer.h), which also hold their gradients. */
#ifndef PARAMS_H
#define PARAMS_H

#include "kernels/arena.h"
#include "kernels/quantised.h"
#include "lib/file.h"
#include "lib/memory.h"
#include "lib/random.h"


/* Parameter groups (a bit mask); each is trained or frozen as a whole. */
enum { GROUP_VISION = 1, GROUP_CONNECTOR = 2, GROUP_LM = 4, GROUP_ALL = 7 };

typedef struct {
    char name[96];
    int ndim, rows, cols;  // shape [rows, cols]; vectors have ndim 1 and cols = 1
    size_t n;              // elements
    int group;
    bool decay;       // AdamW's weight decay applies: to matrices, not to norms, biases and positions
    float init_std;   // standard deviation of random initialisation; 0: zeros; vectors with 1: ones
    int least_bits;   // the fewest that it may be quantised to: 4, 8, or 16 for never
    Dtype dtype;      // DT_FLOATX, or quantised: DT_I8 or DT_U8
    bool in_file;     // its values are used in place in a file
    floatX *value;    // device [n]; NULL where quantised
    void *quants;     // quantised: device [rows, quant_row_bytes]
    bf16 *scales;     // quantised: device [rows, quant_row_scales]
    float *gradient;  // device [n]; NULL where frozen
    size_t offset;    // of a trained parameter in the optimizer's flat arrays
    struct LoraLayer *lora;  // the adapter beside this weight (linear.h), or NULL
} Param;

typedef struct {
    Param *list;
    int count, capacity;
    const char *owner;  // prefix in messages about memory: "" or "the teacher's "
    Arena arena;        // values that are not used in place in a file
    void *large_pages;  // values that params_move_to_large_pages moved, or NULL
} Params;

/* ---- declaring ---- */

static inline void params_reserve(Params *p, int capacity, const char *owner) {
    *p = (Params){.list = xcalloc((size_t)capacity, sizeof(Param)), .capacity = capacity, .owner = owner};
}

/* Declares a parameter; layer < 0: the name has no layer number. Pointers stay valid: the list never moves. */
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
    x->least_bits = x->ndim == 2 ? 4 : 16;
    x->dtype = DT_FLOATX;
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

/* Bytes of a parameter's values, and of its scales. */
static inline size_t param_value_bytes(const Param *x) {
    return x->dtype == DT_FLOATX ? x->n * sizeof(floatX) : x->rows * quant_row_bytes(x->dtype, x->cols);
}
static inline size_t param_scale_bytes(const Param *x) {
    return x->dtype == DT_FLOATX ? 0 : x->rows * quant_row_scales(x->dtype, x->cols) * sizeof(bf16);
}

/* Bytes of all parameters in the groups of the mask. */
static inline size_t params_bytes(const Params *p, int groups) {
    size_t n = 0;
    for (int i = 0; i < p->count; i++)
        if (p->list[i].group & groups) n += param_value_bytes(&p->list[i]) + param_scale_bytes(&p->list[i]);
    return n;
}

/* ---- memory ---- */

/* Memory for all values that do not lie in a file. */
static inline void params_plan(Params *p) {
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        if (x->in_file) continue;
        if (x->dtype == DT_FLOATX) {
            x->value = arena_x(&p->arena, x->n);
        } else {
            x->quants = arena_take(&p->arena, param_value_bytes(x), 1);
            x->scales = arena_take(&p->arena, param_scale_bytes(x), 1);
        }
    }
}

static inline int params_try_allocate(Params *p, const Ops *op, Error *err) {
    params_plan(p);
    if (!p->arena.used) return 0;
    if (arena_try_allocate(&p->arena, op, p->owner, "parameters", err)) return -1;
    params_plan(p);
    return 0;
}

static inline void params_allocate(Params *p, const Ops *op) {
    Error err;
    die_if(params_try_allocate(p, op, &err), &err);
}

/* Frees the values of the groups in the mask, which have moved to the optimizer's array; compacts the rest. */
static inline void params_release_groups(Params *p, const Ops *op, int groups) {
    Arena frozen = {NULL, 0};
    if (!p->arena.base) return;
    for (int i = 0; i < p->count; i++)
        if (!(p->list[i].group & groups) && !p->list[i].in_file) arena_x(&frozen, p->list[i].n);
    if (frozen.used) {
        arena_allocate(&frozen, op, p->owner, "frozen parameters");
        for (int i = 0; i < p->count; i++) {
            Param *x = &p->list[i];
            if (x->group & groups || x->in_file) continue;
            floatX *to = arena_x(&frozen, x->n);
            op->copy(to, x->value, x->n * sizeof(floatX));
            x->value = to;
        }
    }
    op->sync();
    arena_release(&p->arena, op);
    p->arena = frozen;
}

/* Moves n bytes that lie in a file to *to, which advances. */
static inline void *move_from_file(char **to, const void *from, size_t n, const Ops *op) {
    char *moved = *to;
    op->copy(moved, from, n);
    file_forget(from, n);
    *to += (n + 63) / 64 * 64;
    return moved;
}

/* Copies weights that are used in place in a file to large pages, where the system gives them: decoding, which is bound by
 * reading them, is a third faster. Not for models under 32 MB, which stay in the caches, nor where the copy would take more
 * than half of the RAM or cannot be allocated. The file's pages are given back one parameter after the other. */
static inline void params_move_to_large_pages(Params *p, const Ops *op, int groups) {
    const size_t least = (size_t)32 << 20;
    size_t bytes = 0;
    for (int i = 0; i < p->count; i++) {
        const Param *x = &p->list[i];
        if (x->group & groups && x->in_file) bytes += param_value_bytes(x) + param_scale_bytes(x) + 128;
    }
    if (!op->host_memory || p->large_pages || bytes < least || bytes > memory_available() / 2) return;
    char *to = op->alloc(bytes);
    if (!to) return;
    p->large_pages = to;
    for (int i = 0; i < p->count; i++) {
        Param *x = &p->list[i];
        if (!(x->group & groups) || !x->in_file) continue;
        x->in_file = false;
        if (x->dtype == DT_FLOATX) {
            x->value = move_from_file(&to, x->value, param_value_bytes(x), op);
        } else {
            x->quants = move_from_file(&to, x->quants, param_value_bytes(x), op);
            x->scales = move_from_file(&to, x->scales, param_scale_bytes(x), op);
        }
    }
}

static inline void params_release(Params *p, const Ops *op) {
    if (p->large_pages) op->release(p->large_pages);
    arena_release(&p->arena, op);
    free(p->list);
    *p = (Params){0};
}

/* ---- values ---- */

/* Random initialisation with one random stream per parameter, so that changing the shape of one leaves the others
 * unchanged. */
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

/* ---- the backward pass tells when gradients are final ---- */

/* `ready` is called during a backward pass as soon as the gradients of p and of every parameter declared after it are final
 * (their kernels are queued), so that their all-reduce can start. NULL: no hook. */
typedef struct {
    void (*ready)(void *context, const Param *p);
    void *context;
} GradientHook;

static inline void gradients_ready(const GradientHook *hook, const Param *p) {
    if (hook->ready && p->gradient) hook->ready(hook->context, p);
}

#endif
