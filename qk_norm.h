/* RMS norms of queries and keys before their rotation (Qwen3; Dehghani et al. 2023 did it with layer norms to keep attention
 * scores small):
 *
 *   q_h = rmsnorm(q_h) * w_q,   k_h = rmsnorm(k_h) * w_k      for each head h; w_q, w_k [D] are shared by a block's heads
 *
 * A head is a row of D values to the operation rmsnorm. Queries, keys and values of a position lie side by side, so queries
 * and keys are copied out of there, which the backward pass needs anyway: it reads them as they were before the norm. */
#ifndef QK_NORM_H
#define QK_NORM_H

#include "config.h"
#include "params.h"

typedef struct {
    Param *q, *k;  // [D]; NULL: no norm
} QkNorm;

/* What the backward pass reads: queries [N, H, D] and keys [N, K, D] before the norm, and their statistics. */
typedef struct {
    floatX *q, *k;
    float *rstd_q, *rstd_k;  // [N, H], [N, K]
} QkNormActs;

static inline void qk_norm_declare(QkNorm *n, Params *p, int layer, int D) {
    n->q = param_add(p, GROUP_LM, "lm.", layer, "q_norm", D, 0, 1);
    n->k = param_add(p, GROUP_LM, "lm.", layer, "k_norm", D, 0, 1);
}

/* Takes the memory for N positions. */
static inline void qk_norm_plan(QkNormActs *a, Arena *arena, const LmConfig *c, size_t N) {
    a->q = arena_x(arena, N * c->heads * c->head_dim);
    a->k = arena_x(arena, N * c->kv_heads * c->head_dim);
    a->rstd_q = arena_f32(arena, N * c->heads);
    a->rstd_k = arena_f32(arena, N * c->kv_heads);
}

/* The heads of queries or of keys: where they lie in the rows of qkv, in bytes. */
typedef struct {
    size_t first, stride, width, rows;  // rows: positions
    int heads, D;
} QkHeads;

static inline QkHeads qk_heads(const LmConfig *c, bool keys, size_t N) {
    const size_t head = c->head_dim * sizeof(floatX);
    const int heads = keys ? c->kv_heads : c->heads;
    return (QkHeads){
        keys ? c->heads * head : 0, (c->heads + 2 * c->kv_heads) * head, heads * head, N, heads, c->head_dim};
}

static inline void qk_norm_forward_heads(const Ops *op, char *qkv, QkHeads h, const Param *w, floatX *before,
                                         float *rstd, floatX *normed, float eps) {
    op->copy_rows(before, h.width, qkv + h.first, h.stride, h.width, h.rows);
    op->rmsnorm_forward(normed, rstd, before, w->value, h.rows * h.heads, h.D, eps);
    op->copy_rows(qkv + h.first, h.stride, normed, h.width, h.width, h.rows);
}

/* Normalises queries and keys in qkv [N, (H + 2K) D] in place. scratch [N, H D]. */
static inline void qk_norm_forward(const Ops *op, const LmConfig *c, const QkNorm *n, const QkNormActs *a,
                                   floatX *qkv, floatX *scratch, size_t N) {
    if (!n->q) return;
    qk_norm_forward_heads(op, (char *)qkv, qk_heads(c, false, N), n->q, a->q, a->rstd_q, scratch, c->eps);
    qk_norm_forward_heads(op, (char *)qkv, qk_heads(c, true, N), n->k, a->k, a->rstd_k, scratch, c->eps);
}

static inline void qk_norm_backward_heads(const Ops *op, char *d_qkv, QkHeads h, const Param *w, const floatX *before,
                                          const float *rstd, floatX *d_normed, floatX *d_before) {
    op->copy_rows(d_normed, h.width, d_qkv + h.first, h.stride, h.width, h.rows);
    op->zero(d_before, h.rows * h.width);  // rmsnorm_backward adds to it
    op->rmsnorm_backward(d_before, w->gradient, d_normed, before, w->value, rstd, h.rows * h.heads, h.D);
    op->copy_rows(d_qkv + h.first, h.stride, d_before, h.width, h.width, h.rows);
}

/* d_qkv [N, (H + 2K) D] comes in as the gradient of the normalised queries and keys and leaves as that of those before the
 * norm. Adds the gradients of the weights where they are trained. scratch, other [N, H D]. */
static inline void qk_norm_backward(const Ops *op, const LmConfig *c, const QkNorm *n, const QkNormActs *a,
                                    floatX *d_qkv, floatX *scratch, floatX *other, size_t N) {
    if (!n->q) return;
    qk_norm_backward_heads(op, (char *)d_qkv, qk_heads(c, false, N), n->q, a->q, a->rstd_q, scratch, other);
    qk_norm_backward_heads(op, (char *)d_qkv, qk_heads(c, true, N), n->k, a->k, a->rstd_k, scratch, other);
}

#endif
