/* Linear layers over a model's parameters, with low-rank adapters beside them.
 *
 *   y  = x Wᵀ + b                  W [O, I]
 *   y += s dropout(x) Aᵀ Bᵀ        A [r, I], B [O, r], s = alpha / r: where the layer has an adapter
 *
 * Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". W stays frozen; only A and B are trained. B is
 * stored transposed, Bᵀ [r, O]: then the matmul that accumulates (linear_backward_input) adds the adapter's part to y, and
 * nothing of y's size is written twice. All matmuls with a model's weights go through this file. lora.h chooses the layers,
 * and reads and writes adapters. */
#ifndef LINEAR_H
#define LINEAR_H

#include "lib/safetensors.h"
#include "params.h"

/* What the adapters of one model share. */
typedef struct Lora {
    int rank;
    double alpha, dropout;  // dropout: the probability; applies in training only
    unsigned targets;       // bits of lora_targets (lora.h)
    uint64_t base;          // fingerprint of the model that they belong to
    Params params;          // A and Bᵀ of each layer, in the order of declaration
    struct LoraLayer *layer;
    int layers;
    SafeTensors file;     // kept open while values are used in place in it
    Arena arena;          // key; and merged weights
    uint64_t *key;        // device: of this pass's dropout; 0: drops nothing
    floatX *low, *d_low;  // [rows, r] s dropout(x) Aᵀ and its gradient; scratch of one layer
    floatX *dropped;      // [rows, widest I] dropout(x); NULL without dropout
} Lora;

/* One layer's adapter. */
typedef struct LoraLayer {
    Lora *shared;
    Param *a, *b;  // A [r, I] and Bᵀ [r, O]
    Param *weight;
    int number;   // its stream of dropout
    bool lowest;  // nothing below it is trained
} LoraLayer;

static inline Weight param_weight(const Param *w) {
    return (Weight){.data = w->dtype == DT_FLOATX ? w->value : w->quants,
                    .dtype = w->dtype,
                    .rows = w->rows,
                    .cols = w->cols,
                    .scales = w->scales};
}

/* ---- adapters ---- */

/* low [rows, r] = s dropout(x) Aᵀ. Returns dropout(x), which is x itself without dropout. */
static inline const floatX *lora_down(const Ops *op, const LoraLayer *l, const floatX *x, size_t rows) {
    const Lora *s = l->shared;
    if (s->dropped) {
        op->dropout(s->dropped, x, rows * l->a->cols, 1, (float)s->dropout, s->key, l->number, false);
        x = s->dropped;
    }
    op->linear_forward(s->low, x, param_weight(l->a), NULL, ACT_NONE, NULL, rows);
    op->dropout(s->low, s->low, rows * s->rank, (float)(s->alpha / s->rank), 0, NULL, 0, false);
    return x;
}

/* out [rows, O] += s dropout(x) Aᵀ Bᵀ. */
static inline void lora_forward(const Ops *op, floatX *out, const floatX *x, const LoraLayer *l, size_t rows) {
    lora_down(op, l, x, rows);
    op->linear_backward_input(out, l->shared->low, param_weight(l->b), rows, true);
}

/* Adds the gradients of A and B, and, if d_x is not NULL, the adapter's part of d_x [rows, I]. low is computed again
 * rather than stored: it costs as little as r does compared to O. */
static inline void lora_backward(const Ops *op, floatX *d_x, const floatX *d_out, const floatX *x, const LoraLayer *l,
                                 size_t rows) {
    const Lora *s = l->shared;
    const int r = s->rank, I = l->a->cols, O = l->b->cols;
    x = lora_down(op, l, x, rows);
    op->linear_backward_weight(l->b->gradient, NULL, s->low, d_out, rows, r, O);          // d_Bᵀ += lowᵀ d_out
    op->linear_forward(s->d_low, d_out, param_weight(l->b), NULL, ACT_NONE, NULL, rows);  // d_low = d_out B
    op->dropout(s->d_low, s->d_low, rows * r, (float)(s->alpha / r), 0, NULL, 0, false);  // s d_low
    op->linear_backward_weight(l->a->gradient, NULL, s->d_low, x, rows, r, I);  // d_A += s d_lowᵀ dropout(x)
    if (!d_x) return;
    op->linear_backward_input(s->dropped ? s->dropped : d_x, s->d_low, param_weight(l->a), rows, !s->dropped);
    if (s->dropped) op->dropout(d_x, s->dropped, rows * I, 1, (float)s->dropout, s->key, l->number, true);
}

/* Takes the scratch memory for passes over up to `rows` rows. */
static inline void lora_plan(Lora *s, Arena *arena, size_t rows) {
    size_t widest = 0;
    if (!s) return;
    for (int i = 0; i < s->layers; i++)
        if ((size_t)s->layer[i].a->cols > widest) widest = s->layer[i].a->cols;
    s->low = arena_x(arena, rows * s->rank);
    s->d_low = arena_x(arena, rows * s->rank);
    s->dropped = s->dropout > 0 ? arena_x(arena, rows * widest) : NULL;
}

static inline void lora_free(Lora *s, const Ops *op) {
    if (!s) return;
    params_release(&s->params, op);
    arena_release(&s->arena, op);
    safetensors_close(&s->file);
    free(s->layer);
    free(s);
}

/* ---- linear layers ---- */

/* out [rows, O] = in [rows, I] Wᵀ, W [O, I]. */
static inline void linear_weight(const Ops *op, floatX *out, const floatX *in, Weight w, size_t rows) {
    op->linear_forward(out, in, w, NULL, ACT_NONE, NULL, rows);
}

static inline void linear(const Ops *op, floatX *out, const floatX *in, const Param *w, size_t rows) {
    linear_weight(op, out, in, param_weight(w), rows);
    if (w->lora) lora_forward(op, out, in, w->lora, rows);
}

/* out = act(in Wᵀ + bias); bias may be NULL. preact [rows, O], if not NULL, keeps the value before the activation. */
static inline void linear_act(const Ops *op, floatX *out, const floatX *in, const Param *w, const Param *bias,
                              Activation act, floatX *preact, size_t rows) {
    floatX *sum = preact ? preact : out;
    const floatX *b = bias ? bias->value : NULL;
    if (!w->lora) {
        op->linear_forward(out, in, param_weight(w), b, act, preact, rows);
        return;
    }
    op->linear_forward(sum, in, param_weight(w), b, ACT_NONE, NULL, rows);
    lora_forward(op, sum, in, w->lora, rows);
    if (sum != out || act != ACT_NONE) op->gelu_forward(out, sum, rows * w->rows, act);
}

/* Logits in fp32: out [rows, O] = in Wᵀ. */
static inline void linear_logits(const Ops *op, float *out, const floatX *in, const Param *w, size_t rows) {
    op->linear_logits(out, in, param_weight(w), rows);
}

/* Backward of linear: adds the gradients of W and of the bias (may be NULL) if W is trained, those of its adapter if it has
 * one, and writes d_in [rows, I] = d_out [rows, O] W if d_in is not NULL. The backward of an activation is the caller's.
 * Returns true where nothing below the layer is trained: then d_in is not written, and the backward pass ends. */
static inline bool linear_backward(const Ops *op, floatX *d_in, const floatX *d_out, const floatX *in, const Param *w,
                                   const Param *bias, size_t rows) {
    const bool lowest = w->lora && w->lora->lowest;
    if (lowest) d_in = NULL;
    if (w->gradient)
        op->linear_backward_weight(w->gradient, bias ? bias->gradient : NULL, d_out, in, rows, w->rows, w->cols);
    if (d_in) op->linear_backward_input(d_in, d_out, param_weight(w), rows, false);
    if (w->lora && w->lora->a->gradient) lora_backward(op, d_in, d_out, in, w->lora, rows);
    return lowest;
}

#endif
