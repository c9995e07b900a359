/* The optimizer: everything that is trained laid out in flat arrays, and AdamW over them.
 *
 *   flat    [norms, biases, positions | matrices], every parameter at a multiple of 32 elements; the gaps are zero.
 *           Only the matrices decay, so a step is two calls of AdamW, however many parameters there are.
 *   order   as declared. A backward pass finishes the gradients from the end, so all-reduces can start there.
 *
 * Data-parallel ranks cut the flat arrays into buckets, and every bucket into one piece per rank. Sharded (ZeRO stage 1,
 * Rajbhandari et al. 2020), a rank keeps masters and moments of its own pieces only. A single rank has one bucket and
 * one piece. */
#ifndef TRAIN_OPTIMIZER_H
#define TRAIN_OPTIMIZER_H

#include "../params.h"

typedef struct {
    float beta1, beta2, eps, decay;
    float max_norm;  // global-norm clipping; <= 0: off
} AdamW;

enum { OPTIMIZER_ALIGN = 32, OPTIMIZER_BUCKETS = 16, OPTIMIZER_PIECE_MOST = 1 << 20 };

typedef struct {
    const Ops *op;
    AdamW adamw;
    Param **list;         // the trained parameters in flat order
    int count;            // how many
    size_t n, undecayed;  // elements of the flat arrays; those before the first matrix
    int rank, ranks;
    bool sharded;   // masters and moments are kept for this rank's pieces only
    size_t bucket;  // elements of a bucket; the last one may be smaller
    Arena value_arena, gradient_arena, state_arena;
    floatX *values;         // device [n], where Param.value points
    float *gradients;       // device [n], where Param.gradient points
    float *master, *m, *v;  // device [n], or this rank's pieces of it, one after another
    float *norm_squared;    // device
} Optimizer;

/* A range of the flat arrays whose optimizer state is on this rank. */
typedef struct {
    size_t begin, n;
    size_t local;  // where it begins in master, m and v
} Piece;

static inline int optimizer_buckets(const Optimizer *o) { return (int)((o->n + o->bucket - 1) / o->bucket); }

static inline size_t optimizer_bucket_length(const Optimizer *o, int bucket) {
    size_t begin = bucket * o->bucket;
    return o->n - begin < o->bucket ? o->n - begin : o->bucket;
}

/* This rank's piece of a bucket. */
static inline Piece optimizer_piece(const Optimizer *o, int bucket) {
    Piece p;
    p.n = optimizer_bucket_length(o, bucket) / o->ranks;
    p.begin = bucket * o->bucket + o->rank * p.n;
    p.local = o->sharded ? bucket * (o->bucket / o->ranks) : p.begin;
    return p;
}

/* The optimizer state on this rank is this many ranges: one piece per bucket when sharded, else everything. */
static inline int optimizer_state_pieces(const Optimizer *o) { return o->sharded ? optimizer_buckets(o) : 1; }

static inline Piece optimizer_state_piece(const Optimizer *o, int i) {
    return o->sharded ? optimizer_piece(o, i) : (Piece){0, o->n, 0};
}

/* ---- layout ---- */

/* Elements of a bucket, a multiple of `unit`. One rank: everything. Several: a sixteenth, so that most of the gradients
 * travel while the backward pass still runs; but at most 1 M elements per rank (and at least 4 M), where a ring of that
 * many ranks is bound by bandwidth and no longer by latency (doc/scaling.md). */
static inline size_t optimizer_bucket_size(size_t n, int ranks, size_t unit) {
    size_t bucket = n / OPTIMIZER_BUCKETS, most = (size_t)OPTIMIZER_PIECE_MOST * (ranks > 4 ? ranks : 4);
    if (bucket > most) bucket = most;
    if (ranks == 1) bucket = n;
    return bucket > unit ? (bucket + unit - 1) / unit * unit : unit;
}

/* Gives every trained parameter its place in the flat arrays. */
static inline void optimizer_lay_out(Optimizer *o, Params *const *lists, const int *groups, int list_count) {
    int most = 0;
    for (int i = 0; i < list_count; i++) most += lists[i]->count;
    o->list = xcalloc(most + 1, sizeof *o->list);
    for (int decay = 0; decay < 2; decay++) {
        for (int i = 0; i < list_count; i++)
            for (int j = 0; j < lists[i]->count; j++) {
                Param *p = &lists[i]->list[j];
                if (!(p->group & groups[i]) || p->decay != (decay == 1)) continue;
                p->offset = o->n;
                o->n += (p->n + OPTIMIZER_ALIGN - 1) / OPTIMIZER_ALIGN * OPTIMIZER_ALIGN;
                o->list[o->count++] = p;
            }
        if (!decay) o->undecayed = o->n;
    }
    size_t unit = (size_t)OPTIMIZER_ALIGN * o->ranks;  // so that pieces are equal and aligned
    o->n = (o->n + unit - 1) / unit * unit;
    o->bucket = optimizer_bucket_size(o->n, o->ranks, unit);
}

/* Moves the trained values into the flat array; what stays frozen keeps, or gets, memory of its own. */
static inline void optimizer_take_values(Optimizer *o, Params *const *lists, const int *groups, int list_count) {
    o->values = arena_x(&o->value_arena, o->n);
    arena_allocate(&o->value_arena, o->op, "the student's ", "parameters");
    o->values = arena_x(&o->value_arena, o->n);
    for (int i = 0; i < o->count; i++) {
        Param *p = o->list[i];
        floatX *to = o->values + p->offset;
        o->op->copy(to, p->value, p->n * sizeof(floatX));
        p->value = to;
        p->in_file = false;
    }
    for (int i = 0; i < list_count; i++) params_release_groups(lists[i], o->op, groups[i]);
}

static inline void optimizer_plan_state(Optimizer *o) {
    size_t kept = o->sharded ? o->n / o->ranks : o->n;
    o->master = arena_f32(&o->state_arena, kept);
    o->m = arena_f32(&o->state_arena, kept);
    o->v = arena_f32(&o->state_arena, kept);
    o->norm_squared = arena_f32(&o->state_arena, 1);
}

/* Trains the given groups of each list of parameters, all of them on op, whose values must be there already. Gradients
 * and moments start at zero, masters at the values. Pointers in the lists change, so this comes before anything keeps
 * them. rank of ranks: the data-parallel processes; sharded: they divide the optimizer state among them. */
static inline void optimizer_open(Optimizer *o, const Ops *op, AdamW adamw, Params *const *lists, const int *groups,
                                  int list_count, int rank, int ranks, bool sharded) {
    *o = (Optimizer){.op = op, .adamw = adamw, .rank = rank, .ranks = ranks, .sharded = sharded && ranks > 1};
    optimizer_lay_out(o, lists, groups, list_count);
    optimizer_take_values(o, lists, groups, list_count);
    o->gradients = arena_f32(&o->gradient_arena, o->n);
    arena_allocate(&o->gradient_arena, op, "", "gradients");
    o->gradients = arena_f32(&o->gradient_arena, o->n);
    for (int i = 0; i < o->count; i++) o->list[i]->gradient = o->gradients + o->list[i]->offset;
    optimizer_plan_state(o);
    arena_allocate(&o->state_arena, op, "", "optimizer state");
    optimizer_plan_state(o);
    for (int i = 0; i < optimizer_state_pieces(o); i++) {
        Piece p = optimizer_state_piece(o, i);
        op->cast_from_x(o->master + p.local, o->values + p.begin, p.n);
    }
}

static inline void optimizer_close(Optimizer *o) {
    arena_release(&o->value_arena, o->op);
    arena_release(&o->gradient_arena, o->op);
    arena_release(&o->state_arena, o->op);
    free(o->list);
    *o = (Optimizer){0};
}

/* ---- a step ---- */

static inline void optimizer_zero_gradients(const Optimizer *o) { o->op->zero(o->gradients, o->n * sizeof(float)); }

/* Writes the sum of squares of this rank's pieces of the gradients (with one rank, of all of them) to norm_squared. */
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

/* One step (counted from 1) of AdamW on everything whose state is on this rank; norm_squared must be of all gradients.
 * A norm that is not finite leaves everything as it was. */
static inline void optimizer_step(const Optimizer *o, float lr, int step) {
    for (int i = 0; i < optimizer_state_pieces(o); i++) {
        Piece p = optimizer_state_piece(o, i);
        size_t end = p.begin + p.n;
        size_t matrices = o->undecayed < p.begin ? p.begin : o->undecayed > end ? end : o->undecayed;
        optimizer_update(o, p.begin, matrices, p.local, 0, lr, step);
        optimizer_update(o, matrices, end, p.local + (matrices - p.begin), o->adamw.decay, lr, step);
    }
}

#endif
