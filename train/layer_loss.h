/* The layer loss (--w-layer): hidden states of chosen decoder blocks of the student are drawn to the teacher's, as in
 * Romero et al. 2015, "FitNets", and Jiao et al. 2020, "TinyBERT".
 *
 * A pair names a block of the student and one of the teacher. x and t are the residual stream after them, rows [n, Ws] and
 * [n, Wt] of the positions that count. Where the widths differ, each pair has a learned linear map M [Wt, Ws], which is
 * trained with the student:
 *
 *   y      = x Mᵀ, or x where the widths are equal
 *   cosine   L = 1 - cos(y, t)           dL/dy = -(t / (|y| |t|) - cos y / |y|²)
 *   mse      L = |y - t|² / Wt           dL/dy = 2 (y - t) / Wt
 *   loss  += w_layer mean of L over positions and pairs
 *   dL/dx  = dL/dy M,  dL/dM = (dL/dy)ᵀ x
 *
 * dL/dx, which is 0 at the positions that do not count, is left in DecoderLayer.d_output. The backward pass adds it to the
 * gradient of the residual stream where it comes to that block (decoder_backward). */
#ifndef TRAIN_LAYER_LOSS_H
#define TRAIN_LAYER_LOSS_H

#include "../loss.cuh"
#include "../model.h"

typedef enum { LAYER_COSINE, LAYER_MSE } LayerLossKind;
static const char *const layer_loss_names[] = {"cosine", "mse"};  // by LayerLossKind

enum {
    LAYER_PAIRS = 256,        // at most: a model has no more layers (config.h)
    LAYER_ROWS = 1 << 14,     // of one call of Ops.cosine
    LAYER_PENDING = 1 << 16,  // capacity for values that wait on the device, at least
};

/* Which layers are compared, counted from 1. */
typedef struct {
    int count;  // 0: layer_pairs_resolve spaces them evenly
    int student[LAYER_PAIRS], teacher[LAYER_PAIRS];
} LayerPairs;

typedef struct {
    const Ops *op;  // the student's device
    LayerLossKind kind;
    float weight;      // 0: off, and there are no pairs
    LayerPairs pairs;  // once resolved
    Params maps;       // "layer_map.L:M" [Wt, Ws] of each pair where the widths differ
    int student_width, teacher_width, max_rows;
    size_t outputs;  // elements of a block's output
    Arena arena;
    floatX *x, *d_x;                // [n, Ws] the student's rows of one pair
    floatX *y, *d_y;                // [n, Wt]
    float *difference;              // [n, Wt], for mse
    floatX *d_output[LAYER_PAIRS];  // [N, Ws] of each pair
    /* statistics that wait for layer_loss_collect: cosines of rows, or squared distances of whole pairs */
    int pending, capacity;
    float *values, *host_values;
    double sum, rows;  // of what no longer waits
} LayerLoss;

/* ---- which layers ---- */

/* Reads "even" or "2:5,4:11". */
static inline int layer_pairs_parse(LayerPairs *p, const char *text, Error *err) {
    p->count = 0;
    if (!strcmp(text, "even")) return 0;
    for (const char *at = text; p->count < LAYER_PAIRS; at++) {
        int length = 0, *student = &p->student[p->count], *teacher = &p->teacher[p->count];
        if (sscanf(at, "%4d:%4d%n", student, teacher, &length) != 2 || !strchr(",", at[length]) || *student < 1 ||
            *teacher < 1)
            return error_set(err,
                             "'%.40s' is not even, nor pairs of layers of student and teacher, counted from 1, such "
                             "as 2:5,4:11",
                             text);
        for (int i = 0; i < p->count; i++)
            if (p->student[i] == *student)
                return error_set(err,
                                 "layer %d of the student is named twice; it can be compared with one layer of the "
                                 "teacher",
                                 *student);
        p->count++;
        at += length;
        if (!*at) return 0;
    }
    return error_set(err, "there are more than %d pairs", LAYER_PAIRS);
}

/* Chooses the pairs where none are named: each layer l of the student's L_s with layer l L_t / L_s, rounded, of the
 * teacher's L_t, the last with the last (the uniform mapping of TinyBERT). Else fails where a layer does not exist. */
static inline int layer_pairs_resolve(LayerPairs *p, int student_layers, int teacher_layers, Error *err) {
    for (int i = 0; i < p->count; i++) {
        const int s = p->student[i], t = p->teacher[i];
        if (s > student_layers || t > teacher_layers)
            return error_set(err, "%d:%d names layer %d of the %s, whose language model has %d", s, t,
                             s > student_layers ? s : t, s > student_layers ? "student" : "teacher",
                             s > student_layers ? student_layers : teacher_layers);
    }
    if (p->count) return 0;
    for (int l = 1; l <= student_layers; l++) {
        const int t = (2 * l * teacher_layers + student_layers) / (2 * student_layers);
        p->student[p->count] = l;
        p->teacher[p->count++] = t > 1 ? t : 1;
    }
    return 0;
}

/* ---- memory ---- */

static inline void layer_loss_plan(LayerLoss *o) {
    const size_t n = o->max_rows;
    o->x = arena_x(&o->arena, n * o->student_width);
    o->d_x = arena_x(&o->arena, n * o->student_width);
    o->y = arena_x(&o->arena, n * o->teacher_width);
    o->d_y = arena_x(&o->arena, n * o->teacher_width);
    if (o->kind == LAYER_MSE) o->difference = arena_f32(&o->arena, n * o->teacher_width);
    for (int i = 0; i < o->pairs.count; i++) o->d_output[i] = arena_x(&o->arena, o->outputs);
    o->values = arena_f32(&o->arena, o->capacity);
}

/* The learned maps, one per pair. */
static inline void layer_loss_make_maps(LayerLoss *o, uint64_t seed) {
    const LayerPairs *p = &o->pairs;
    const int from = o->student_width, to = o->teacher_width;
    params_reserve(&o->maps, p->count, "");
    for (int i = 0; i < p->count; i++) {
        char name[40];
        snprintf(name, sizeof name, "layer_map.%d:%d", p->student[i], p->teacher[i]);
        param_add(&o->maps, GROUP_LM, "", -1, name, to, from, 1 / sqrtf((float)from));
    }
    params_allocate(&o->maps, o->op);
    params_init_random(&o->maps, o->op, seed + 2000);  // another random stream than the student's
}

/* For passes of the student over up to B images with up to T text tokens each. pairs: resolved; none: the loss is off.
 * seed: for the maps. */
static inline void layer_loss_open(LayerLoss *o, LayerLossKind kind, float weight, const LayerPairs *pairs,
                                   Model *student, int teacher_width, int B, int T, uint64_t seed) {
    const int W = student->c.lm.hidden_size;
    *o = (LayerLoss){.op = student->op,
                     .kind = kind,
                     .weight = weight,
                     .pairs = *pairs,
                     .student_width = W,
                     .teacher_width = teacher_width,
                     .max_rows = B * T,
                     .outputs = (size_t)B * model_sequence(student, T) * W,
                     .capacity = B * T > LAYER_PENDING ? B * T : LAYER_PENDING};
    if (!pairs->count) return;
    layer_loss_plan(o);
    arena_allocate(&o->arena, o->op, "", "the layer loss");
    layer_loss_plan(o);
    o->host_values = xcalloc(o->capacity, sizeof(float));
    if (W != teacher_width) layer_loss_make_maps(o, seed);
    for (int i = 0; i < pairs->count; i++) student->layer[pairs->student[i] - 1].d_output = o->d_output[i];
}

static inline void layer_loss_close(LayerLoss *o) {
    if (!o->pairs.count) return;
    params_release(&o->maps, o->op);
    arena_release(&o->arena, o->op);
    free(o->host_values);
}

/* ---- statistics ---- */

/* Waits for the device and adds up the values that are there. */
static inline void layer_loss_drain(LayerLoss *o) {
    if (!o->pending) return;
    o->op->download(o->host_values, o->values, o->pending * sizeof(float));
    for (int i = 0; i < o->pending; i++)
        o->sum +=
            o->kind == LAYER_COSINE ? 1 - (double)o->host_values[i] : (double)o->host_values[i] / o->teacher_width;
    o->pending = 0;
}

/* Puts the sums over all passes since the last call into *sums. Waits for the device. */
static inline void layer_loss_collect(LayerLoss *o, ObjectiveSums *sums) {
    layer_loss_drain(o);
    sums->layer = o->sum;
    sums->layer_rows = o->rows;
    o->sum = o->rows = 0;
}

/* ---- the loss ---- */

/* 1 - cos of n rows y and t; with a gradient, d_y = scale times its gradient. */
static inline void layer_loss_cosine(LayerLoss *o, const floatX *y, const floatX *t, int n, float scale,
                                     bool gradient) {
    const size_t W = o->teacher_width;
    for (int at = 0; at < n; at += LAYER_ROWS) {
        const int rows = n - at < LAYER_ROWS ? n - at : LAYER_ROWS;
        o->op->cosine(o->values + o->pending + at, gradient ? o->d_y + at * W : NULL, y + at * W, t + at * W, rows, W,
                      scale);
    }
    o->pending += n;
}

/* The squared distance of n rows y and t; with a gradient, d_y = scale times that of the squared distance / Wt. */
static inline void layer_loss_mse(LayerLoss *o, const floatX *y, const floatX *t, int n, float scale, bool gradient) {
    const Ops *op = o->op;
    const size_t elements = (size_t)n * o->teacher_width;
    op->copy(o->d_y, y, elements * sizeof(floatX));
    op->dropout(o->d_y, t, elements, -1, 0, NULL, 0, true);  // y - t
    op->cast_from_x(o->difference, o->d_y, elements);
    op->squared_norm(o->values + o->pending++, o->difference, elements, false);
    if (gradient) op->dropout(o->d_y, o->d_y, elements, 2 * scale / (float)o->teacher_width, 0, NULL, 0, false);
}

/* Pair i, with the teacher's rows t [n, Wt]. */
static inline void layer_loss_pair(LayerLoss *o, Model *student, int i, const floatX *t, float scale, bool gradient) {
    const Ops *op = o->op;
    const Param *map = o->maps.count ? &o->maps.list[i] : NULL;
    const int n = student->n, W = o->student_width, rows = student->B * model_sequence(student, student->T);
    if (n > o->capacity - o->pending) layer_loss_drain(o);
    op->gather_rows(o->x, model_block_output(student, o->pairs.student[i] - 1), student->target_rows, n, W);
    if (map) linear(op, o->y, o->x, map, n);
    (o->kind == LAYER_COSINE ? layer_loss_cosine : layer_loss_mse)(o, map ? o->y : o->x, t, n, scale, gradient);
    if (!gradient) return;
    if (map) linear_backward(op, o->d_x, o->d_y, o->x, map, NULL, n);
    op->scatter_rows(o->d_output[i], map ? o->d_x : o->d_y, student->target_rows, n, rows, W);
}

/* The layer loss of the student's last forward pass; with a scale (1 / counted positions of the whole batch) its gradient
 * follows, in the layers' d_output, and the maps' own gradients are added to. */
static inline void layer_loss_run(LayerLoss *o, Model *student, const TeacherOutput *teacher, LossScale scale) {
    const size_t one = (size_t)student->n * o->teacher_width;
    const float factor = (float)(o->weight * scale.positions / (o->pairs.count ? o->pairs.count : 1));
    for (int i = 0; i < o->pairs.count; i++)
        layer_loss_pair(o, student, i, teacher->layers + i * one, factor, scale.positions > 0);
    o->rows += (double)student->n * o->pairs.count;
}

#endif
