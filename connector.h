/* The connector: the features of patches -> image tokens of the decoder's width.
 *
 *   features [B, P, C] -> joined [B, P/j, j C] -> linear -> image tokens [B, P/j, W]
 *
 *   concat   j = `concat` patches that follow each other, row by row (Belouadi et al. 2024, "DeTikZify")
 *   shuffle  j = s x s patches of one block, s = `scale_factor`: Idefics3's pixel shuffle (Laurençon et al. 2024, "Building
 *            and better understanding vision-language models"); blocks and the patches in a block row by row
 *   strips   j = `concat` patches that stand in strips as high as the image, from left to right: the tokens of a line of text
 *            follow each other as its letters do
 *
 * concat moves nothing in memory. The others join blocks of h x w patches (shuffle: s x s, strips: rows x j / rows), and move
 * runs of w patches of one row, w C numbers each: token (r, q) is made of run q of the rows h r .. h r + h - 1 of patches. */
#ifndef CONNECTOR_H
#define CONNECTOR_H

#include "config.h"
#include "kernels/arena.h"
#include "linear.h"

typedef struct {
    Param *w, *b;      // [W, j C], [W]; b NULL: no bias
    int *run_order;    // of blocks: device [B P/w], the run of the features at each place of `joined`; else NULL
    floatX *joined;    // of blocks: [B P/w, w C], kept for the backward pass
} Connector;

/* The patches of a block, h rows of w; {1, j} for concat, which has no blocks. */
typedef struct {
    int h, w;
} ConnectorBlock;

static inline ConnectorBlock connector_block(const VisionConfig *c) {
    const int rows = vision_rows(c);
    if (c->connector == CONNECTOR_SHUFFLE) return (ConnectorBlock){c->scale_factor, c->scale_factor};
    return c->connector == CONNECTOR_STRIPS ? (ConnectorBlock){rows, c->concat / rows}
                                            : (ConnectorBlock){1, c->concat};
}

static inline bool connector_has_blocks(const VisionConfig *c) { return c->connector != CONNECTOR_CONCAT; }

/* Whether two connectors put patches into a token in the same order, so that one can begin with the other's weights. */
static inline bool connector_joins_alike(const VisionConfig *a, const VisionConfig *b) {
    const ConnectorBlock x = connector_block(a), y = connector_block(b);
    return connector_has_blocks(a) == connector_has_blocks(b) && x.h == y.h && x.w == y.w;
}

/* The image token that the patch in this row and column is part of. */
static inline int connector_token(const VisionConfig *c, int row, int column) {
    const ConnectorBlock b = connector_block(c);
    const int columns = vision_columns(c);
    return connector_has_blocks(c) ? row / b.h * (columns / b.w) + column / b.w : (row * columns + column) / c->concat;
}

/* Whether two encoders with equally many image tokens make each of the same part of the image: they see it in the same place,
 * and join blocks in equally many rows. What concat joins need not be blocks; two of these are taken to be alike. */
static inline bool connector_same_places(const VisionConfig *a, const VisionConfig *b) {
    const ConnectorBlock x = connector_block(a), y = connector_block(b);
    const ImageSize s = vision_size(a), t = vision_size(b);
    if (s.letter * t.height != t.letter * s.height) return false;
    if (s.letter && s.height * t.width != t.height * s.width) return false;
    if (!connector_has_blocks(a) && !connector_has_blocks(b)) return true;
    return vision_columns(a) % x.w == 0 && vision_columns(b) % y.w == 0 &&
           vision_rows(a) / x.h == vision_rows(b) / y.h;
}

static inline void connector_declare(Connector *k, const VisionConfig *c, Params *p) {
    const int joined = vision_joined(c) * c->hidden_size, W = c->output_size;
    k->w = param_add(p, GROUP_CONNECTOR, "connector.", -1, "weight", W, joined, 1 / sqrtf(3.0f * joined));
    k->w->least_bits = 8;  // small, and everything in the image passes through it
    if (c->connector_bias) k->b = param_add(p, GROUP_CONNECTOR, "connector.", -1, "bias", W, 0, 0);
}

/* Hands out the buffers for batches of up to B images. */
static inline void connector_plan(Connector *k, const VisionConfig *c, Arena *arena, size_t B) {
    if (!connector_has_blocks(c)) return;
    k->run_order = arena_int(arena, B * vision_patches(c) / connector_block(c).w);
    k->joined = arena_x(arena, B * vision_patches(c) * c->hidden_size);
}

/* Fills run_order, once its memory is there. Runs are counted through all images: row by row in the features, and in the order
 * block, row in the block when joined. */
static inline void connector_fill(const Connector *k, const VisionConfig *c, const Ops *op, int B) {
    if (!connector_has_blocks(c)) return;
    const ConnectorBlock b = connector_block(c);
    const int across = vision_columns(c) / b.w, rows = B * vision_rows(c);
    int *order = xmalloc((size_t)rows * across * sizeof(int)), n = 0;
    for (int top = 0; top < rows; top += b.h)
        for (int q = 0; q < across; q++)
            for (int row = top; row < top + b.h; row++) order[n++] = row * across + q;
    op->upload(k->run_order, order, n * sizeof(int));
    free(order);
}

/* tokens [B, P/j, W] from features [B, P, C]. */
static inline void connector_forward(Connector *k, const VisionConfig *c, const Ops *op, floatX *tokens,
                                     const floatX *features, int B) {
    const size_t patches = (size_t)B * vision_patches(c);
    if (connector_has_blocks(c)) {
        const int w = connector_block(c).w;
        op->gather_rows(k->joined, features, k->run_order, patches / w, w * c->hidden_size);
        features = k->joined;
    }
    linear_act(op, tokens, features, k->w, k->b, ACT_NONE, NULL, patches / vision_joined(c));
}

/* d_tokens [B, P/j, W]: the gradient of the tokens. features: as in the forward pass. d_features [B, P, C] gets that of the
 * features, or is NULL: the encoder is frozen. scratch [B, P, C]. */
static inline void connector_backward(Connector *k, const VisionConfig *c, const Ops *op, floatX *d_features,
                                      const floatX *d_tokens, const floatX *features, floatX *scratch, int B) {
    const size_t patches = (size_t)B * vision_patches(c), tokens = patches / vision_joined(c);
    if (!connector_has_blocks(c)) {
        linear_backward(op, d_features, d_tokens, features, k->w, k->b, tokens);
        return;
    }
    const int w = connector_block(c).w;
    const size_t runs = patches / w;
    linear_backward(op, d_features ? scratch : NULL, d_tokens, k->joined, k->w, k->b, tokens);
    if (d_features) op->scatter_rows(d_features, scratch, k->run_order, runs, runs, w * c->hidden_size);
}

#endif
