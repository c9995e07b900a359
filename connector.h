/* The connector: the features of patches -> image tokens of the decoder's width.
 *
 *   features [B, P, C] -> joined [B, P/j, j C] -> linear -> image tokens [B, P/j, W]
 *
 *   concat   j = `concat` patches that follow each other, row by row (Belouadi et al. 2024, "DeTikZify")
 *   shuffle  j = s x s patches of one block, s = `scale_factor`: Idefics3's pixel shuffle (Laurençon et al. 2024, "Building
 *            and better understanding vision-language models"); blocks and the patches in a block row by row
 *
 * concat moves nothing in memory. shuffle moves runs of s patches of one row, s C numbers each: token (r, q) is made of run q
 * of the rows s r .. s r + s - 1 of patches. */
#ifndef CONNECTOR_H
#define CONNECTOR_H

#include "config.h"
#include "kernels/arena.h"
#include "linear.h"

typedef struct {
    Param *w, *b;      // [W, j C], [W]; b NULL: no bias
    int *run_order;    // shuffle: device [B P/s], the run of the features at each place of `joined`; else NULL
    floatX *shuffled;  // shuffle: [B P/s, s C], kept for the backward pass
} Connector;

static inline bool connector_shuffles(const VisionConfig *c) { return c->connector == CONNECTOR_SHUFFLE; }

/* The image token that the patch in this row and column is part of. */
static inline int connector_token(const VisionConfig *c, int row, int column) {
    const int s = c->scale_factor, columns = vision_columns(c);
    return connector_shuffles(c) ? row / s * (columns / s) + column / s : (row * columns + column) / c->concat;
}

/* Whether two encoders with equally many image tokens make each of the same part of the picture: by strips, or by blocks. A token
 * of one patch is both. */
static inline bool connector_same_places(const VisionConfig *a, const VisionConfig *b) {
    return connector_shuffles(a) == connector_shuffles(b) || vision_joined(connector_shuffles(a) ? b : a) == 1;
}

static inline void connector_declare(Connector *k, const VisionConfig *c, Params *p) {
    const int joined = vision_joined(c) * c->hidden_size, W = c->output_size;
    k->w = param_add(p, GROUP_CONNECTOR, "connector.", -1, "weight", W, joined, 1 / sqrtf(3.0f * joined));
    k->w->least_bits = 8;  // small, and everything in the picture passes through it
    if (c->connector_bias) k->b = param_add(p, GROUP_CONNECTOR, "connector.", -1, "bias", W, 0, 0);
}

/* Hands out the buffers for batches of up to B images. */
static inline void connector_plan(Connector *k, const VisionConfig *c, Arena *arena, size_t B) {
    if (!connector_shuffles(c)) return;
    k->run_order = arena_int(arena, B * vision_patches(c) / c->scale_factor);
    k->shuffled = arena_x(arena, B * vision_patches(c) * c->hidden_size);
}

/* Fills run_order, once its memory is there. Runs are counted through all images: row by row in the features, and in the order
 * block, row in the block when shuffled. */
static inline void connector_fill(const Connector *k, const VisionConfig *c, const Ops *op, int B) {
    if (!connector_shuffles(c)) return;
    const int s = c->scale_factor, across = vision_columns(c) / s, rows = B * vision_rows(c);
    int *order = xmalloc((size_t)rows * across * sizeof(int)), n = 0;
    for (int top = 0; top < rows; top += s)
        for (int q = 0; q < across; q++)
            for (int row = top; row < top + s; row++) order[n++] = row * across + q;
    op->upload(k->run_order, order, n * sizeof(int));
    free(order);
}

/* tokens [B, P/j, W] from features [B, P, C]. */
static inline void connector_forward(Connector *k, const VisionConfig *c, const Ops *op, floatX *tokens,
                                     const floatX *features, int B) {
    const size_t patches = (size_t)B * vision_patches(c);
    if (connector_shuffles(c)) {
        const int s = c->scale_factor;
        op->gather_rows(k->shuffled, features, k->run_order, patches / s, s * c->hidden_size);
        features = k->shuffled;
    }
    linear_act(op, tokens, features, k->w, k->b, ACT_NONE, NULL, patches / vision_joined(c));
}

/* d_tokens [B, P/j, W]: the gradient of the tokens. features: as in the forward pass. d_features [B, P, C] gets that of the
 * features, or is NULL: the encoder is frozen. scratch [B, P, C]. */
static inline void connector_backward(Connector *k, const VisionConfig *c, const Ops *op, floatX *d_features,
                                      const floatX *d_tokens, const floatX *features, floatX *scratch, int B) {
    const size_t patches = (size_t)B * vision_patches(c), tokens = patches / vision_joined(c);
    if (!connector_shuffles(c)) {
        linear_backward(op, d_features, d_tokens, features, k->w, k->b, tokens);
        return;
    }
    const size_t runs = patches / c->scale_factor;
    linear_backward(op, d_features ? scratch : NULL, d_tokens, k->shuffled, k->w, k->b, tokens);
    if (d_features) op->scatter_rows(d_features, scratch, k->run_order, runs, runs, c->scale_factor * c->hidden_size);
}

#endif
