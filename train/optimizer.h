/* The optimizer: everything that is trained laid out in flat arrays, AdamW over them, and the learning rate.
 *
 *   flat   [norms, biases, positions | matrices], each parameter at a multiple of 32 elements; the gaps are zero.
 *          Only the matrices decay, so a step is two calls of AdamW however many parameters there are.
 *   order  as declared. A backward pass finishes it from the end, so gradients can be sent away from there.
 *
 * Several ranks that train together cut the flat arrays into buckets and every bucket into as many pieces as there
 * are ranks; piece r of every bucket belongs to rank r. The masters and moments of the others' pieces are then not
 * kept (ZeRO stage 1: Rajbhandari et al. 2020). One rank has one bucket and one piece. */
#ifndef LIB_ADAMW_H
#define LIB_ADAMW_H

#include "../params.h"

typedef struct {
    float beta1, beta2, eps, decay;
    float max_norm;  // global-norm clipping; <= 0: off
} AdamW;

enum { OPTIMIZER_LISTS = 2, OPTIMIZER_ALIGN = 32, OPTIMIZER_BUCKETS = 16, OPTIMIZER_PIECE_MOST = 1 << 20 };

typedef struct {
    const Ops *op;
    AdamW adamw;
    Param **list;         // what is trained, in flat order
    int count;            // of them
    size_t n, undecayed;  // elements of the flat arrays; those before the first matrix
    int rank, ranks;      // whose pieces are ours
    bool sharded;         // masters and moments are kept for our pieces only
    size_t bucket;        // elements; the last bucket may be smaller
    Arena value_memory, gradient_memory, state_memory;
    floatX *values;         // device [n], where Param.value points
    float *gradients;       // device [n], where Param.gradient points
    float *master, *m, *v;  // device [n], or our pieces of it, one after another
    float *norm_squared;    // device
} Optimizer;

/* Our piece of a bucket. */
typedef struct {
    size_t begin, n;  // in the flat arrays
    size_t local;     // in master, m and v
} Piece;

static inline int optimizer_buckets(const Optimizer *o) { return (int)((o->n + o->bucket - 1) / o->bucket); }

static inline size_t optimizer_bucket_length(const Optimizer *o, int bucket) {
    size_t begin = (size_t)bucket * o->bucket;
    return o->n - begin < o->bucket ? o->n - begin : o->bucket;
}

static inline Piece optimizer_piece(const Optimizer *o, int bucket) {
    Piece p;
    p.n = optimizer_bucket_length(o, bucket) / (size_t)o->ranks;
    p.begin = (size_t)bucket * o->bucket + (size_t)o->rank * p.n;
    p.local = o->sharded ? (size_t)bucket * (o->bucket / (size_t)o->ranks) : p.begin;
    return p;
}

static inline bool param_is_trained(const Param *p, int parts) { return (p->part & parts) != 0; }

/* ---- layout ---- */

/* One rank: everything. Several: a sixteenth, so that most of it travels while the backward pass is at work, but not
 * more than 1 M elements a rank (at least 4 M), where a ring of that many ranks is bound by bandwidth and no more by
 * latency (dev/scale.md). A multiple of `unit`. */
static inline size_t optimizer_bucket_size(size_t n, int ranks, size_t unit) {
    size_t bucket = n / OPTIMIZER_BUCKETS, most = (size_t)OPTIMIZER_PIECE_MOST * (size_t)(ranks > 4 ? ranks : 4);
    if (bucket > most) bucket = most;
    if (ranks == 1) bucket = n;
    return bucket > unit ? (bucket + unit - 1) / unit * unit : unit;
}

/* Gives every trained parameter its place. */
static inline void optimizer_lay_out(Optimizer *o, Params *const *lists, const int *parts, int lists_count) {
    int most = 0;
    for (int i = 0; i < lists_count; i++) most += lists[i]->count;
    o->list = (Param **)xcalloc((size_t)most + 1, sizeof *o->list);
    for (int decay = 0; decay < 2; decay++) {
        for (int i = 0; i < lists_count; i++)
            for (int j = 0; j < lists[i]->count; j++) {
                Param *p = &lists[i]->list[j];
                if (!param_is_trained(p, parts[i]) || p->decay != (decay == 1)) continue;
                p->at = o->n;
                o->n += (p->n + OPTIMIZER_ALIGN - 1) / OPTIMIZER_ALIGN * OPTIMIZER_ALIGN;
                o->list[o->count++] = p;
            }
        if (!decay) o->undecayed = o->n;
    }
    size_t unit = (size_t)OPTIMIZER_ALIGN * (size_t)o->ranks;  // so that pieces are equal and aligned
    o->n = (o->n + unit - 1) / unit * unit;
    o->bucket = optimizer_bucket_size(o->n, o->ranks, unit);
}

/* Moves the values: what is trained into the flat array, and what is not into an arena of the list's own, unless it
 * is used in place in a file. */
static inline void optimizer_take_values(Optimizer *o, Params *const *lists, const int *parts, int lists_count) {
    o->values = (floatX *)arena_take(&o->value_memory, o->n, sizeof(floatX));
    arena_allocate(&o->value_memory, o->op, "the student's parameters");
    o->values = (floatX *)arena_take(&o->value_memory, o->n, sizeof(floatX));
    for (int i = 0; i < o->count; i++) {
        Param *p = o->list[i];
        floatX *to = o->values + p->at;
        o->op->copy(to, p->value, p->n * sizeof(floatX));
        p->value = to;
    }
    for (int i = 0; i < lists_count; i++) params_leave(lists[i], o->op, parts[i]);
}

static inline void optimizer_plan_state(Optimizer *o) {
    size_t kept = o->sharded ? o->n / (size_t)o->ranks : o->n;
    o->master = arena_f32(&o->state_memory, kept);
    o->m = arena_f32(&o->state_memory, kept);
    o->v = arena_f32(&o->state_memory, kept);
    o->norm_squared = arena_f32(&o->state_memory, 1);
}

/* The masters of our pieces become the values. */
static inline void optimizer_masters_from_values(Optimizer *o) {
    if (!o->sharded) {
        o->op->cast_from_x(o->master, o->values, o->n);
        return;
    }
    for (int b = 0; b < optimizer_buckets(o); b++) {
        Piece p = optimizer_piece(o, b);
        o->op->cast_from_x(o->master + p.local, o->values + p.begin, p.n);
    }
}

/* Trains the given parts of each list of parameters (all on op), whose values are there already: gradients (zero),
 * masters (the values) and moments (zero). rank of ranks that train together; sharded: the optimizer state is divided
 * among them. Pointers in the lists change: call it before anything keeps them. */
static inline void optimizer_open(Optimizer *o, const Ops *op, AdamW adamw, Params *const *lists, const int *parts,
                                  int lists_count, int rank, int ranks, bool sharded) {
    memset(o, 0, sizeof *o);
    o->op = op;
    o->adamw = adamw;
    o->rank = rank;
    o->ranks = ranks;
    o->sharded = sharded && ranks > 1;
    optimizer_lay_out(o, lists, parts, lists_count);
    optimizer_take_values(o, lists, parts, lists_count);
    o->gradients = arena_f32(&o->gradient_memory, o->n);
    arena_allocate(&o->gradient_memory, op, "gradients");
    o->gradients = arena_f32(&o->gradient_memory, o->n);
    for (int i = 0; i < o->count; i++) o->list[i]->gradient = o->gradients + o->list[i]->at;
    optimizer_plan_state(o);
    arena_allocate(&o->state_memory, op, "optimizer state");
    optimizer_plan_state(o);
    optimizer_masters_from_values(o);
}

static inline void optimizer_close(Optimizer *o) {
    arena_release(&o->value_memory, o->op);
    arena_release(&o->gradient_memory, o->op);
    arena_release(&o->state_memory, o->op);
    free(o->list);
    memset(o, 0, sizeof *o);
}

/* ---- a step ---- */

static inline void optimizer_zero_gradients(const Optimizer *o) { o->op->zero(o->gradients, o->n * sizeof(float)); }

/* norm_squared gets the sum of squares of our pieces' gradients: of all of them with one rank. */
static inline void optimizer_norm(const Optimizer *o) {
    for (int b = 0; b < optimizer_buckets(o); b++) {
        Piece p = optimizer_piece(o, b);
        o->op->squared_norm(o->norm_squared, o->gradients + p.begin, p.n, b > 0);
    }
}

/* AdamW on the flat elements begin .. end, whose state begins at `local`. */
static inline void optimizer_update(const Optimizer *o, size_t begin, size_t end, size_t local, float decay, float lr,
                                    int step) {
    const AdamW *a = &o->adamw;
    if (begin >= end) return;
    o->op->adamw(o->values + begin, o->master + local, o->m + local, o->v + local, o->gradients + begin, end - begin,
                 lr, a->beta1, a->beta2, a->eps, decay, o->norm_squared, a->max_norm, step);
}

/* One step (counted from 1) on everything whose state is here, with norm_squared of all gradients. A norm that is not
 * finite leaves all as it was. */
static inline void optimizer_step(const Optimizer *o, float lr, int step) {
    int pieces = o->sharded ? optimizer_buckets(o) : 1;
    for (int b = 0; b < pieces; b++) {
        Piece p = {0, o->n, 0};
        if (o->sharded) p = optimizer_piece(o, b);
        size_t end = p.begin + p.n;
        size_t matrices = o->undecayed < p.begin ? p.begin : o->undecayed > end ? end : o->undecayed;
        optimizer_update(o, p.begin, matrices, p.local, 0, lr, step);
        optimizer_update(o, matrices, end, p.local + (matrices - p.begin), o->adamw.decay, lr, step);
    }
}

/* ---- learning rate ---- */

typedef enum { LR_COSINE, LR_LINEAR, LR_CONSTANT, LR_MULTISTEP } LrSchedule;

typedef struct {
    LrSchedule kind;
    double base, final_share;  // the schedule ends at base * final_share (cosine, linear)
    int64_t warmup, steps;     // linear warm-up from 0
    double gamma;              // multistep: factor at 50 %, 75 % and 90 % of the steps
} LearningRate;

/* For step 0 .. steps-1. */
static inline double learning_rate(const LearningRate *s, int64_t step) {
    if (step < s->warmup) return s->base * (double)(step + 1) / (double)s->warmup;
    double span = (double)(s->steps - s->warmup), progress = span > 0 ? (double)(step - s->warmup) / span : 0;
    if (progress > 1) progress = 1;
    double low = s->base * s->final_share;
    switch (s->kind) {
    case LR_COSINE: return low + (s->base - low) * 0.5 * (1 + cos(3.14159265358979323846 * progress));
    case LR_LINEAR: return s->base + (low - s->base) * progress;
    case LR_CONSTANT: return s->base;
    case LR_MULTISTEP: return s->base * pow(s->gamma, (progress >= 0.5) + (progress >= 0.75) + (progress >= 0.9));
    }
    return s->base;
}

#endif
