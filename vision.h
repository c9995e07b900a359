/* The SigLIP-style vision encoder and the connector: images -> image tokens of the decoder's width.
 *
 *   pixels u8 [B, S, S, 3], or [B, height, width, 3]
 *     -> patches [B, P, 3 p p],  P = floor(S/p)², or R Q in R rows and Q columns
 *     -> x [B, P, C] = patches W_patchᵀ + b + position [P, C], or + rows [R, C] + columns [Q, C]
 *     -> `layers` pre-norm blocks -> LayerNorm -> features [B, P, C]
 *     -> connector.h: neighbours joined [B, P/j, j C] -> linear -> image tokens [B, P/j, W]
 *
 *   block:  x = x + out_proj(attention(qkv_proj(layernorm1(x))))
 *           x = x + fc2(gelu(fc1(layernorm2(x))))
 *
 * Encoder: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training". No class token, no dropout. */
#ifndef VISION_H
#define VISION_H

#include "connector.h"
#include "kernels/ops.h"
#include "recompute.h"

typedef struct {
    Param *layernorm1_w, *layernorm1_b, *qkv_w, *qkv_b, *out_w, *out_b;
    Param *layernorm2_w, *layernorm2_b, *fc1_w, *fc1_b, *fc2_w, *fc2_b;
} VisionLayer;

/* The activations of one block, N = B * P rows. What a block need not store (see recompute.h; without a backward pass
 * that is everything) lies in buffers that all blocks share. */
typedef struct {
    floatX *residual;                      // [N, C] the residual stream at the block's input
    floatX *normed1, *qkv, *attention;     // [N, C], [N, 3C], [N, C]
    float *lse;                            // [B, H, P] log-sum-exp of the attention scores
    floatX *mid_residual;                  // [N, C] the residual stream after attention
    floatX *normed2, *fc1, *gelu;          // [N, C], [N, M] before (NULL when frozen) and after the activation
    float *mean1, *rstd1, *mean2, *rstd2;  // [N] statistics of the two norms
} VisionActs;

typedef struct Vision {
    VisionConfig c;  // its image_width is that of this pass, which may be less than the model's (vision_set_width)
    Param *patch_w, *patch_b, *norm_w, *norm_b;
    Connector connector;
    Param *position;        // of square images; NULL: rectangular, with the next two
    Param *rows, *columns;  // position embeddings of the rows and of the columns of patches
    VisionLayer *layer;     // [layers]
    VisionActs *acts;       // [layers]
    floatX *patches;        // [N, 3 p p]
    floatX *final_hidden;   // [N, C] the residual stream after the last block
    floatX *features;       // [N, C] its norm, which the connector reads
    float *mean, *rstd;     // [N] of the final norm
    floatX *branch;         // [N, C] the residual branch that is about to be added; scratch in the backward pass
    floatX *tokens;         // [B, P/j, W] the image tokens
    floatX *d_residual;     // [N, C]; only when the encoder is trained, as the next one
    floatX *d_wide;         // [N, max(3C, M)]
    bool trains_encoder;
    Recompute recompute;
    const struct Vision *source;  // the encoder whose features are used instead (model_share_encoder), or NULL
    const Ops *source_op;         // its device, where that is another one
    int B;                        // images of the last forward pass
} Vision;

/* ---- parameters ---- */

static inline Param *vision_declare_position(Params *p, const char *name, int rows, int C) {
    Param *x = param_add(p, GROUP_VISION, "vision.", -1, name, rows, C, 0.02f);
    x->decay = false;
    x->least_bits = 16;
    return x;
}

static inline void vision_declare(Vision *v, Params *p) {
    const VisionConfig *c = &v->c;
    int C = c->hidden_size, M = c->intermediate_size, inputs = 3 * c->patch_size * c->patch_size;
    float in = 1 / sqrtf(3.0f * C), deep = in / sqrtf(2.0f * c->layers);
    v->layer = xcalloc(c->layers, sizeof(VisionLayer));
    v->acts = xcalloc(c->layers, sizeof(VisionActs));
    v->patch_w = param_add(p, GROUP_VISION, "vision.", -1, "patch.weight", C, inputs, 4 / sqrtf(3.0f * inputs));
    v->patch_b = param_add(p, GROUP_VISION, "vision.", -1, "patch.bias", C, 0, 0);
    if (vision_rectangular(c)) {
        v->rows = vision_declare_position(p, "position.rows", vision_rows(c), C);
        v->columns = vision_declare_position(p, "position.columns", vision_columns(c), C);
    } else {
        v->position = vision_declare_position(p, "position", vision_patches(c), C);
    }
    for (int l = 0; l < c->layers; l++) {
        VisionLayer *y = &v->layer[l];
        y->layernorm1_w = param_add(p, GROUP_VISION, "vision.", l, "norm1.weight", C, 0, 1);
        y->layernorm1_b = param_add(p, GROUP_VISION, "vision.", l, "norm1.bias", C, 0, 0);
        y->qkv_w = param_add(p, GROUP_VISION, "vision.", l, "qkv.weight", 3 * C, C, in);
        y->qkv_b = param_add(p, GROUP_VISION, "vision.", l, "qkv.bias", 3 * C, 0, 0);
        y->out_w = param_add(p, GROUP_VISION, "vision.", l, "proj.weight", C, C, deep);
        y->out_b = param_add(p, GROUP_VISION, "vision.", l, "proj.bias", C, 0, 0);
        y->layernorm2_w = param_add(p, GROUP_VISION, "vision.", l, "norm2.weight", C, 0, 1);
        y->layernorm2_b = param_add(p, GROUP_VISION, "vision.", l, "norm2.bias", C, 0, 0);
        y->fc1_w = param_add(p, GROUP_VISION, "vision.", l, "fc1.weight", M, C, in);
        y->fc1_b = param_add(p, GROUP_VISION, "vision.", l, "fc1.bias", M, 0, 0);
        y->fc2_w = param_add(p, GROUP_VISION, "vision.", l, "fc2.weight", C, M, deep * sqrtf((float)C / (float)M));
        y->fc2_b = param_add(p, GROUP_VISION, "vision.", l, "fc2.bias", C, 0, 0);
    }
    v->norm_w = param_add(p, GROUP_VISION, "vision.", -1, "norm.weight", C, 0, 1);
    v->norm_b = param_add(p, GROUP_VISION, "vision.", -1, "norm.bias", C, 0, 0);
    connector_declare(&v->connector, c, p);
}

/* ---- memory ---- */

static inline void vision_plan_acts(Vision *v, int l, Arena *arena, size_t N) {
    size_t C = v->c.hidden_size, M = v->c.intermediate_size;
    VisionActs *a = &v->acts[l];
    if (l > 0) *a = v->acts[0];
    if (l == 0 || v->trains_encoder) a->residual = arena_x(arena, N * C);
    if (l == 0 || (v->trains_encoder && v->recompute == RECOMPUTE_NONE)) {
        a->normed1 = arena_x(arena, N * C);
        a->normed2 = arena_x(arena, N * C);
        a->gelu = arena_x(arena, N * M);
    }
    if (l == 0 || (v->trains_encoder && v->recompute != RECOMPUTE_BLOCKS)) {
        a->qkv = arena_x(arena, N * 3 * C);
        a->attention = arena_x(arena, N * C);
        a->lse = arena_f32(arena, N * v->c.heads);
        a->mid_residual = arena_x(arena, N * C);
        a->fc1 = v->trains_encoder ? arena_x(arena, N * M) : NULL;
        a->mean1 = arena_f32(arena, N);
        a->rstd1 = arena_f32(arena, N);
        a->mean2 = arena_f32(arena, N);
        a->rstd2 = arena_f32(arena, N);
    }
}

/* Hands out the activation buffers for batches of up to B images. */
static inline void vision_plan(Vision *v, Arena *arena, size_t B) {
    const VisionConfig *c = &v->c;
    size_t N = B * vision_patches(c), C = c->hidden_size, M = c->intermediate_size;
    v->tokens = arena_x(arena, B * vision_tokens(c) * c->output_size);
    connector_plan(&v->connector, c, arena, B);
    if (!v->source || v->source_op) v->features = arena_x(arena, N * C);
    if (v->source) return;
    for (int l = 0; l < c->layers; l++) vision_plan_acts(v, l, arena, N);
    v->patches = arena_x(arena, N * 3 * c->patch_size * c->patch_size);
    v->final_hidden = arena_x(arena, N * C);
    v->mean = arena_f32(arena, N);
    v->rstd = arena_f32(arena, N);
    v->branch = arena_x(arena, N * C);
    if (v->trains_encoder) {
        v->d_residual = arena_x(arena, N * C);
        v->d_wide = arena_x(arena, N * (3 * C > M ? 3 * C : M));
    }
}

/* The width of the images of the passes that follow: of rectangular models at most their own, and a multiple of patches that are
 * joined side by side (connector_block). */
static inline void vision_set_width(Vision *v, const Ops *op, int width, int max_B) {
    if (vision_size(&v->c).width == width) return;
    v->c.image_width = width;
    connector_fill(&v->connector, &v->c, op, max_B);
}

/* ---- forward ---- */

static inline AttentionShape vision_attention(const VisionConfig *c, int B) {
    int D = c->hidden_size / c->heads;
    return (AttentionShape){.B = B,
                            .T = vision_patches(c),
                            .H = c->heads,
                            .K = c->heads,
                            .D = D,
                            .causal = false,
                            .scale = 1 / sqrtf((float)D),
                            .rope = NULL};
}

/* One block. Its first norm has been computed by the block before, together with that one's residual addition.
 * recompute: the backward pass runs the block again, from its stored input up to what its last matmul reads. */
static inline void vision_block_forward(Vision *v, const Ops *op, int l, int B, bool recompute) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l], *z = y + 1;
    VisionActs *a = &v->acts[l], *next = a + 1;
    int C = c->hidden_size;
    size_t N = (size_t)B * vision_patches(c);
    if (recompute)  // h = layernorm1(x)
        op->layernorm_forward(a->normed1, a->mean1, a->rstd1, a->residual, y->layernorm1_w->value,
                              y->layernorm1_b->value, N, C, c->eps);
    linear_act(op, a->qkv, a->normed1, y->qkv_w, y->qkv_b, ACT_NONE, NULL, N);       // q, k, v = h W_qkvᵀ + b
    op->attention_forward(a->attention, a->lse, a->qkv, vision_attention(c, B));     // softmax(q kᵀ / √D) v
    linear_act(op, v->branch, a->attention, y->out_w, y->out_b, ACT_NONE, NULL, N);  // o = attention W_oᵀ + b
    op->residual_layernorm_forward(a->mid_residual, a->normed2, a->mean2, a->rstd2, a->residual, v->branch,
                                   y->layernorm2_w->value, y->layernorm2_b->value, N, C,
                                   c->eps);                                             // x += o, h = layernorm2(x)
    linear_act(op, a->gelu, a->normed2, y->fc1_w, y->fc1_b, c->activation, a->fc1, N);  // g = gelu(h W_1ᵀ + b)
    if (recompute) return;
    linear_act(op, v->branch, a->gelu, y->fc2_w, y->fc2_b, ACT_NONE, NULL, N);  // m = g W_2ᵀ + b
    if (l + 1 < c->layers)                                                      // x += m, and the next norm
        op->residual_layernorm_forward(next->residual, next->normed1, next->mean1, next->rstd1, a->mid_residual,
                                       v->branch, z->layernorm1_w->value, z->layernorm1_b->value, N, C, c->eps);
    else
        op->residual_layernorm_forward(v->final_hidden, v->features, v->mean, v->rstd, a->mid_residual, v->branch,
                                       v->norm_w->value, v->norm_b->value, N, C, c->eps);
}

/* From pixels to v->features. */
static inline void vision_encode(Vision *v, const Ops *op, const uint8_t *pixels, int B) {
    const VisionConfig *c = &v->c;
    int C = c->hidden_size, P = vision_patches(c);
    size_t N = (size_t)B * P;
    VisionActs *first = &v->acts[0];
    op->patchify(v->patches, pixels, B, vision_size(c).height, vision_size(c).width, c->patch_size);
    linear_act(op, first->residual, v->patches, v->patch_w, v->patch_b, ACT_NONE, NULL, N);
    if (v->position)
        op->position_forward(first->residual, v->position->value, B, P, C);
    else
        op->position_2d_forward(first->residual, v->rows->value, v->columns->value, B, vision_rows(c),
                                vision_columns(c), C);
    op->layernorm_forward(first->normed1, first->mean1, first->rstd1, first->residual,
                          v->layer[0].layernorm1_w->value, v->layer[0].layernorm1_b->value, N, C, c->eps);
    for (int l = 0; l < c->layers; l++) vision_block_forward(v, op, l, B, false);
}

/* Takes the features that v->source made of the same images. */
static inline void vision_use_shared_features(Vision *v, const Ops *op, int B) {
    const Vision *source = v->source;
    size_t n = (size_t)B * vision_patches(&v->c) * v->c.hidden_size;
    if (source->B != B || vision_patches(&source->c) != vision_patches(&v->c))
        die("internal error: the shared encoder has encoded %d images of %d patches, not %d of %d", source->B,
            vision_patches(&source->c), B, vision_patches(&v->c));
    if (v->source_op)
        op->copy_from(v->features, v->source_op, source->features, n * sizeof(floatX));
    else
        v->features = source->features;
}

/* Leaves the image tokens in v->tokens. pixels: device u8 [B, height, width, 3], not read where the encoder is shared. */
static inline void vision_forward(Vision *v, const Ops *op, const uint8_t *pixels, int B) {
    if (v->source)
        vision_use_shared_features(v, op, B);
    else
        vision_encode(v, op, pixels, B);
    connector_forward(&v->connector, &v->c, op, v->tokens, v->features, B);
}

/* ---- backward ---- */

/* Recomputes the activations that block l did not store. The last block's are always stored. */
static inline void vision_block_recompute(Vision *v, const Ops *op, int l, int B) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l];
    VisionActs *a = &v->acts[l];
    size_t N = (size_t)B * vision_patches(c);
    if (v->recompute == RECOMPUTE_NONE || l + 1 == c->layers) return;
    if (v->recompute == RECOMPUTE_BLOCKS) {
        vision_block_forward(v, op, l, B, true);
        return;
    }
    op->layernorm_forward(a->normed1, a->mean1, a->rstd1, a->residual, y->layernorm1_w->value, y->layernorm1_b->value,
                          N, c->hidden_size, c->eps);
    op->layernorm_forward(a->normed2, a->mean2, a->rstd2, a->mid_residual, y->layernorm2_w->value,
                          y->layernorm2_b->value, N, c->hidden_size, c->eps);
    op->gelu_forward(a->gelu, a->fc1, N * c->intermediate_size, c->activation);
}

/* The forward pass line by line in reverse. d_residual comes in as the gradient of the block's output and leaves as
 * that of its input; the norms' backward passes add to it. */
static inline void vision_block_backward(Vision *v, const Ops *op, int l, int B) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l];
    VisionActs *a = &v->acts[l];
    int C = c->hidden_size;
    size_t N = (size_t)B * vision_patches(c);
    vision_block_recompute(v, op, l, B);
    if (linear_backward(op, v->d_wide, v->d_residual, a->gelu, y->fc2_w, y->fc2_b, N)) return;
    op->gelu_backward(v->d_wide, v->d_wide, a->fc1, N * c->intermediate_size, c->activation);
    if (linear_backward(op, v->branch, v->d_wide, a->normed2, y->fc1_w, y->fc1_b, N)) return;
    op->layernorm_backward(v->d_residual, y->layernorm2_w->gradient, y->layernorm2_b->gradient, v->branch,
                           a->mid_residual, y->layernorm2_w->value, a->mean2, a->rstd2, N, C);
    if (linear_backward(op, v->branch, v->d_residual, a->attention, y->out_w, y->out_b, N)) return;
    op->attention_backward(v->d_wide, v->branch, a->attention, a->lse, a->qkv, vision_attention(c, B));
    if (linear_backward(op, v->branch, v->d_wide, a->normed1, y->qkv_w, y->qkv_b, N)) return;
    op->layernorm_backward(v->d_residual, y->layernorm1_w->gradient, y->layernorm1_b->gradient, v->branch,
                           a->residual, y->layernorm1_w->value, a->mean1, a->rstd1, N, C);
}

/* d_tokens [B, P/j, W]: the gradient of the image tokens. */
static inline void vision_backward(Vision *v, const Ops *op, const floatX *d_tokens, int B,
                                   const GradientHook *hook) {
    const VisionConfig *c = &v->c;
    int C = c->hidden_size, P = vision_patches(c);
    size_t N = (size_t)B * P;
    connector_backward(&v->connector, c, op, v->trains_encoder ? v->branch : NULL, d_tokens, v->features, v->d_wide, B);
    gradients_ready(hook, v->connector.w);
    if (!v->trains_encoder) return;
    op->zero(v->d_residual, N * C * sizeof(floatX));
    op->layernorm_backward(v->d_residual, v->norm_w->gradient, v->norm_b->gradient, v->branch, v->final_hidden,
                           v->norm_w->value, v->mean, v->rstd, N, C);
    for (int l = c->layers - 1; l >= 0; l--) {
        vision_block_backward(v, op, l, B);
        gradients_ready(hook, v->layer[l].layernorm1_w);
    }
    if (!v->patch_w->gradient) return;  // the encoder is frozen but for adapters
    if (v->position)
        op->position_backward(v->position->gradient, v->d_residual, B, P, C);
    else
        op->position_2d_backward(v->rows->gradient, v->columns->gradient, v->d_residual, B, vision_rows(c),
                                 vision_columns(c), C);
    linear_backward(op, NULL, v->d_residual, v->patches, v->patch_w, v->patch_b, N);
    gradients_ready(hook, v->patch_w);
}

static inline void vision_free(Vision *v) {
    free(v->layer);
    free(v->acts);
    *v = (Vision){0};
}

#endif
