/* How much arithmetic a pass of the model takes. */
#ifndef FLOPS_H
#define FLOPS_H

#include "model.h"

/* FLOPs of encoding B images (a multiply-add counts 2): matmuls and attention, without the connector. 0 where the
 * encoder is shared. */
static inline double vision_flops(const Vision *v, int B) {
    const VisionConfig *c = &v->c;
    double P = vision_patches(c), C = c->hidden_size, M = c->intermediate_size;
    double per_patch = 2 * 3.0 * c->patch_size * c->patch_size * C + c->layers * (8 * C * C + 4 * C * M + 4 * P * C);
    return v->source ? 0 : B * P * per_patch;
}

/* FLOPs of one forward pass (a multiply-add counts 2): the encoder unless it is shared, the connector, the decoder, and
 * the head on n positions. The backward pass costs twice that, minus the encoder where it is frozen. */
static inline double model_flops(const Model *m, int B, int T, int n) {
    const LmConfig *c = &m->c.lm;
    double S = model_sequence(m, T), W = c->hidden_size, A = (double)c->heads * c->head_dim;
    double weights = W * (c->heads + 2 * c->kv_heads) * c->head_dim + A * W + 3 * W * c->intermediate_size;
    double per_position = c->layers * (2 * weights + 2 * S * A);  // causal attention: half of 4 S A
    double connector = 2.0 * vision_patches(&m->vision.c) * m->c.vision.hidden_size * W;
    return vision_flops(&m->vision, B) + B * (connector + S * per_position) + 2.0 * n * W * c->vocab;
}

#endif
