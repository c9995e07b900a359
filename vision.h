/* The SigLIP-style vision encoder and the connector: image -> image tokens of the language model's width.
 *
 *   pixels u8 [B, S, S, 3] -> patches [B, P, 3 p p], P = floor(S/p)² -> x [B, P, C] + position
 *     -> `layers` pre-norm blocks -> LayerNorm -> `concat` neighbours joined [B, P/concat, concat C]
 *     -> linear -> image tokens [B, P/concat, W]
 *
 *   block:  x = x + proj(attention(qkv(norm1(x))));  x = x + fc2(gelu(fc1(norm2(x))))
 *
 * Encoder: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; connector: Belouadi et al. 2024,
 * "DeTikZify". No class token, no dropout. */
#ifndef VISION_H
#define VISION_H

#include "kernels/ops.h"
#include "kernels/arena.h"
#include "params.h"

typedef struct {
    int image_size, patch;  // S, p in pixels; of S, the last S mod p rows and columns are not looked at
    int width, layers, heads, mlp;
    Activation activation;
    float eps;
    int concat;  // patch features joined into one image token
    bool bias;   // the connector has one
    int out;     // W, the language model's width
} VisionConfig;

static inline int vision_patches(const VisionConfig *c) {
    int side = c->image_size / c->patch;
    return side * side;
}
static inline int vision_tokens(const VisionConfig *c) { return vision_patches(c) / c->concat; }

typedef struct {
    Param *norm1_w, *norm1_b, *qkv_w, *qkv_b, *proj_w, *proj_b, *norm2_w, *norm2_b, *fc1_w, *fc1_b, *fc2_w, *fc2_b;
} VisionLayer;

/* What a block does not keep for its backward pass but computes again there, with the same bits: nothing; what costs
 * no product (norms' outputs, activation functions'); all but its input (Chen et al. 2016, "Training Deep Nets with
 * Sublinear Memory Cost"). Bytes a position and block in bf16, for the encoder (C, M, H heads) and the decoder
 * (widths of LmActs), with the numbers of shape tl-1.1b:
 *
 *   none         2 (8 C + 2 M) + 4 H + 16   35728     2 (4 W + Q + A + 3 F) + 4 H + 8   59528
 *   activations  2 (6 C + M) + 4 H + 16     22512     2 (2 W + Q + A + 2 F) + 4 H + 8   40072
 *   blocks       2 C                         2304     2 W                                4096
 *
 * Beside that one set of what is not kept is shared by all blocks. A decoder that is frozen keeps no more than with
 * `activations`: what its block leaves out then only the gradients of weights would read. */
typedef enum { RECOMPUTE_NONE, RECOMPUTE_ACTIVATIONS, RECOMPUTE_BLOCKS } Recompute;

/* Whom a backward pass tells, if anyone, that the gradients of p and of everything declared after it are final: the
 * device has been asked for all that adds to them. */
typedef struct {
    void (*ready)(void *context, const Param *p);
    void *context;
} GradientHook;

static inline void gradients_ready(const GradientHook *hook, const Param *p) {
    if (hook->ready && p->gradient) hook->ready(hook->context, p);
}

/* What one block leaves for its backward pass; N = B * P rows. What it need not keep (Recompute; without a backward
 * pass nothing) it shares with all others. */
typedef struct {
    floatX *input;                         // [N, C] the residual stream as the block finds it
    floatX *norm1, *qkv, *att;             // [N, C], [N, 3C], [N, C]
    float *lse;                            // [B, heads, P]
    floatX *middle;                        // [N, C] the stream after attention
    floatX *norm2, *fc1, *gelu;            // [N, C], [N, M] before (NULL when frozen) and after the activation
    float *mean1, *rstd1, *mean2, *rstd2;  // [N]
} VisionActs;

typedef struct Vision {
    VisionConfig c;
    Param *patch_w, *patch_b, *position, *norm_w, *norm_b, *connector_w, *connector_b;
    VisionLayer *layer;
    VisionActs *acts;           // [layers]
    floatX *patches;            // [N, 3 p p]
    floatX *last;               // [N, C] the stream after the last block
    floatX *features;           // [N, C] normalised; read as [B * P/concat, concat C] by the connector
    float *mean, *rstd;         // [N] of the last norm
    floatX *branch;             // [N, C] what a block is about to add to the stream; scratch in the backward pass
    floatX *tokens;             // [B, P/concat, W]
    floatX *d_stream, *d_wide;  // [N, C], [N, max(3C, M)]; only when trained
    bool trains_encoder, trains_connector;
    Recompute recompute;
    const struct Vision *source;  // the encoder that looks for this one (model_share_encoder), or NULL
    const Ops *source_op;         // its device, if that is another one
    int B;                        // images of the last forward pass
} Vision;

static inline void vision_declare(Vision *v, Params *p) {
    const VisionConfig *c = &v->c;
    int C = c->width, M = c->mlp, inputs = 3 * c->patch * c->patch;
    float in = 1 / sqrtf(3.0f * (float)C), deep = in / sqrtf(2.0f * (float)c->layers);
    v->layer = (VisionLayer *)xcalloc((size_t)c->layers, sizeof(VisionLayer));
    v->acts = (VisionActs *)xcalloc((size_t)c->layers, sizeof(VisionActs));
    v->patch_w = param_add(p, GROUP_VISION, "vision.", -1, "patch.weight", C, inputs, 4 / sqrtf(3.0f * (float)inputs));
    v->patch_b = param_add(p, GROUP_VISION, "vision.", -1, "patch.bias", C, 0, 0);
    v->position = param_add(p, GROUP_VISION, "vision.", -1, "position", vision_patches(c), C, 0.02f);
    v->position->decay = false;
    for (int l = 0; l < c->layers; l++) {
        VisionLayer *y = &v->layer[l];
        y->norm1_w = param_add(p, GROUP_VISION, "vision.", l, "norm1.weight", C, 0, 1);
        y->norm1_b = param_add(p, GROUP_VISION, "vision.", l, "norm1.bias", C, 0, 0);
        y->qkv_w = param_add(p, GROUP_VISION, "vision.", l, "qkv.weight", 3 * C, C, in);
        y->qkv_b = param_add(p, GROUP_VISION, "vision.", l, "qkv.bias", 3 * C, 0, 0);
        y->proj_w = param_add(p, GROUP_VISION, "vision.", l, "proj.weight", C, C, deep);
        y->proj_b = param_add(p, GROUP_VISION, "vision.", l, "proj.bias", C, 0, 0);
        y->norm2_w = param_add(p, GROUP_VISION, "vision.", l, "norm2.weight", C, 0, 1);
        y->norm2_b = param_add(p, GROUP_VISION, "vision.", l, "norm2.bias", C, 0, 0);
        y->fc1_w = param_add(p, GROUP_VISION, "vision.", l, "fc1.weight", M, C, in);
        y->fc1_b = param_add(p, GROUP_VISION, "vision.", l, "fc1.bias", M, 0, 0);
        y->fc2_w = param_add(p, GROUP_VISION, "vision.", l, "fc2.weight", C, M, deep * sqrtf((float)C / (float)M));
        y->fc2_b = param_add(p, GROUP_VISION, "vision.", l, "fc2.bias", C, 0, 0);
    }
    v->norm_w = param_add(p, GROUP_VISION, "vision.", -1, "norm.weight", C, 0, 1);
    v->norm_b = param_add(p, GROUP_VISION, "vision.", -1, "norm.bias", C, 0, 0);
    int joined = c->concat * C;
    v->connector_w =
        param_add(p, GROUP_CONNECTOR, "connector.", -1, "weight", c->out, joined, 1 / sqrtf(3.0f * (float)joined));
    if (c->bias) v->connector_b = param_add(p, GROUP_CONNECTOR, "connector.", -1, "bias", c->out, 0, 0);
}

/* White paper (pixels of 1 after normalisation) starts as zero: the patch biases cancel the weights' sums. Otherwise
 * the thin grey lines of a small figure are a ripple on a large constant, and learning to see them takes most of the
 * training. */
static inline void vision_white_is_zero(const Vision *v, const Ops *op) {
    int C = v->c.width, inputs = v->patch_w->cols;
    floatX *weights = (floatX *)xmalloc(v->patch_w->n * sizeof(floatX));
    floatX *bias = (floatX *)xmalloc((size_t)C * sizeof(floatX));
    op->download(weights, v->patch_w->value, v->patch_w->n * sizeof(floatX));
    for (int c = 0; c < C; c++) {
        float sum = 0;
        for (int i = 0; i < inputs; i++) sum += from_x(weights[(size_t)c * (size_t)inputs + (size_t)i]);
        bias[c] = to_x(-sum);
    }
    op->upload(v->patch_b->value, bias, (size_t)C * sizeof(floatX));
    free(weights);
    free(bias);
}

/* Position embeddings start as 2-D sines and cosines: from random ones a small encoder needs many epochs to learn
 * where a patch is (Beyer, Zhai & Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k"). */
static inline void vision_sincos_positions(const Vision *v, const Ops *op) {
    int C = v->c.width, side = v->c.image_size / v->c.patch, quarter = C / 4;
    size_t n = (size_t)side * (size_t)side * (size_t)C;
    floatX *host = (floatX *)xcalloc(n, sizeof(floatX));
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++)
            for (int i = 0; i < quarter; i++) {
                float omega = powf(10000.0f, -(float)i / (float)quarter);
                floatX *row = host + ((size_t)y * (size_t)side + (size_t)x) * (size_t)C;
                row[i] = to_x(0.5f * sinf(omega * (float)x));
                row[quarter + i] = to_x(0.5f * cosf(omega * (float)x));
                row[2 * quarter + i] = to_x(0.5f * sinf(omega * (float)y));
                row[3 * quarter + i] = to_x(0.5f * cosf(omega * (float)y));
            }
    op->upload(v->position->value, host, n * sizeof(floatX));
    free(host);
}

static inline void vision_plan_acts(Vision *v, int l, Arena *arena, size_t N) {
    const VisionConfig *c = &v->c;
    VisionActs *a = &v->acts[l];
    size_t C = (size_t)c->width, M = (size_t)c->mlp;
    if (l > 0) *a = v->acts[0];
    if (l == 0 || v->trains_encoder) a->input = arena_x(arena, N * C);
    if (l == 0 || (v->trains_encoder && v->recompute == RECOMPUTE_NONE)) {
        a->norm1 = arena_x(arena, N * C);
        a->norm2 = arena_x(arena, N * C);
        a->gelu = arena_x(arena, N * M);
    }
    if (l == 0 || (v->trains_encoder && v->recompute != RECOMPUTE_BLOCKS)) {
        a->qkv = arena_x(arena, N * 3 * C);
        a->att = arena_x(arena, N * C);
        a->lse = arena_f32(arena, N * (size_t)c->heads);
        a->middle = arena_x(arena, N * C);
        a->fc1 = v->trains_encoder ? arena_x(arena, N * M) : NULL;
        a->mean1 = arena_f32(arena, N);
        a->rstd1 = arena_f32(arena, N);
        a->mean2 = arena_f32(arena, N);
        a->rstd2 = arena_f32(arena, N);
    }
}

/* Hands out the activation buffers for batches of up to B images. */
static inline void vision_plan(Vision *v, Arena *arena, int B) {
    const VisionConfig *c = &v->c;
    size_t N = (size_t)B * (size_t)vision_patches(c), C = (size_t)c->width, M = (size_t)c->mlp;
    v->tokens = arena_x(arena, (size_t)B * (size_t)vision_tokens(c) * (size_t)c->out);
    if (!v->source || v->source_op) v->features = arena_x(arena, N * C);
    if (v->source) return;
    for (int l = 0; l < c->layers; l++) vision_plan_acts(v, l, arena, N);
    v->patches = arena_x(arena, N * 3 * (size_t)c->patch * (size_t)c->patch);
    v->last = arena_x(arena, N * C);
    v->mean = arena_f32(arena, N);
    v->rstd = arena_f32(arena, N);
    v->branch = arena_x(arena, N * C);
    if (v->trains_encoder) {
        v->d_stream = arena_x(arena, N * C);
        v->d_wide = arena_x(arena, N * (3 * C > M ? 3 * C : M));
    }
}

static inline AttentionShape vision_attention(const VisionConfig *c, int B) {
    AttentionShape s;
    s.B = B;
    s.T = vision_patches(c);
    s.H = s.K = c->heads;
    s.D = c->width / c->heads;
    s.causal = false;
    s.scale = 1 / sqrtf((float)s.D);
    s.rope = NULL;
    return s;
}

/* From a->norm1 to a->gelu: all of a block but its last product. */
static inline void vision_block(Vision *v, const Ops *op, int l, int B) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l];
    VisionActs *a = &v->acts[l];
    size_t N = (size_t)B * (size_t)vision_patches(c);
    op->linear_forward(a->qkv, a->norm1, param_weight(y->qkv_w), y->qkv_b->value, ACT_NONE, NULL, N);
    op->attention_forward(a->att, a->lse, a->qkv, vision_attention(c, B));
    op->linear_forward(v->branch, a->att, param_weight(y->proj_w), y->proj_b->value, ACT_NONE, NULL, N);
    op->residual_layernorm_forward(a->middle, a->norm2, a->mean2, a->rstd2, a->input, v->branch, y->norm2_w->value,
                                   y->norm2_b->value, N, c->width, c->eps);
    op->linear_forward(a->gelu, a->norm2, param_weight(y->fc1_w), y->fc1_b->value, c->activation, a->fc1, N);
}

/* From pixels to v->features. */
static inline void vision_encode(Vision *v, const Ops *op, const uint8_t *pixels, int B) {
    const VisionConfig *c = &v->c;
    int C = c->width, P = vision_patches(c);
    size_t N = (size_t)B * (size_t)P;
    VisionActs *first = &v->acts[0];
    op->patchify(v->patches, pixels, B, c->image_size, c->patch);
    op->linear_forward(first->input, v->patches, param_weight(v->patch_w), v->patch_b->value, ACT_NONE, NULL, N);
    op->position_forward(first->input, v->position->value, B, P, C);
    op->layernorm_forward(first->norm1, first->mean1, first->rstd1, first->input, v->layer[0].norm1_w->value,
                          v->layer[0].norm1_b->value, N, C, c->eps);
    for (int l = 0; l < c->layers; l++) {
        const VisionLayer *y = &v->layer[l];
        vision_block(v, op, l, B);
        op->linear_forward(v->branch, v->acts[l].gelu, param_weight(y->fc2_w), y->fc2_b->value, ACT_NONE, NULL, N);
        if (l + 1 < c->layers) {
            VisionActs *next = &v->acts[l + 1];
            op->residual_layernorm_forward(next->input, next->norm1, next->mean1, next->rstd1, v->acts[l].middle,
                                           v->branch, v->layer[l + 1].norm1_w->value, v->layer[l + 1].norm1_b->value,
                                           N, C, c->eps);
        }
    }
    op->residual_layernorm_forward(v->last, v->features, v->mean, v->rstd, v->acts[c->layers - 1].middle, v->branch,
                                   v->norm_w->value, v->norm_b->value, N, C, c->eps);
}

/* The features that v->source made of the same images. */
static inline void vision_take_features(Vision *v, const Ops *op, int B) {
    const Vision *source = v->source;
    size_t n = (size_t)B * (size_t)vision_patches(&v->c) * (size_t)v->c.width;
    if (source->B != B) die("internal error: the shared encoder looked at %d images, not at %d", source->B, B);
    if (v->source_op)
        op->copy_from(v->features, v->source_op, source->features, n * sizeof(floatX));
    else
        v->features = source->features;
}

/* pixels: device u8 [B, S, S, 3], not read where another encoder looks. Leaves the image tokens in v->tokens. */
static inline void vision_forward(Vision *v, const Ops *op, const uint8_t *pixels, int B) {
    const VisionConfig *c = &v->c;
    if (v->source)
        vision_take_features(v, op, B);
    else
        vision_encode(v, op, pixels, B);
    op->linear_forward(v->tokens, v->features, param_weight(v->connector_w),
                       v->connector_b ? v->connector_b->value : NULL, ACT_NONE, NULL,
                       (size_t)B * (size_t)vision_tokens(c));
}

/* Computes again what block l has not kept. Of the last block that is still there. */
static inline void vision_block_again(Vision *v, const Ops *op, int l, int B) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l];
    VisionActs *a = &v->acts[l];
    size_t N = (size_t)B * (size_t)vision_patches(c);
    if (v->recompute == RECOMPUTE_NONE || l + 1 == c->layers) return;
    op->layernorm_forward(a->norm1, a->mean1, a->rstd1, a->input, y->norm1_w->value, y->norm1_b->value, N, c->width,
                          c->eps);
    if (v->recompute == RECOMPUTE_BLOCKS) {
        vision_block(v, op, l, B);
        return;
    }
    op->layernorm_forward(a->norm2, a->mean2, a->rstd2, a->middle, y->norm2_w->value, y->norm2_b->value, N, c->width,
                          c->eps);
    op->gelu_forward(a->gelu, a->fc1, N * (size_t)c->mlp, c->activation);
}

/* d_stream comes in as the gradient of the block's output and leaves as that of its input. */
static inline void vision_block_backward(Vision *v, const Ops *op, int l, int B) {
    const VisionConfig *c = &v->c;
    const VisionLayer *y = &v->layer[l];
    VisionActs *a = &v->acts[l];
    int C = c->width, M = c->mlp;
    size_t N = (size_t)B * (size_t)vision_patches(c);
    vision_block_again(v, op, l, B);
    op->linear_backward_weight(y->fc2_w->gradient, y->fc2_b->gradient, v->d_stream, a->gelu, N, C, M);
    op->linear_backward_input(v->d_wide, v->d_stream, param_weight(y->fc2_w), N, false);
    op->gelu_backward(v->d_wide, v->d_wide, a->fc1, N * (size_t)M, c->activation);
    op->linear_backward_weight(y->fc1_w->gradient, y->fc1_b->gradient, v->d_wide, a->norm2, N, M, C);
    op->linear_backward_input(v->branch, v->d_wide, param_weight(y->fc1_w), N, false);
    op->layernorm_backward(v->d_stream, y->norm2_w->gradient, y->norm2_b->gradient, v->branch, a->middle,
                           y->norm2_w->value, a->mean2, a->rstd2, N, C);
    op->linear_backward_weight(y->proj_w->gradient, y->proj_b->gradient, v->d_stream, a->att, N, C, C);
    op->linear_backward_input(v->branch, v->d_stream, param_weight(y->proj_w), N, false);
    op->attention_backward(v->d_wide, v->branch, a->att, a->lse, a->qkv, vision_attention(c, B));
    op->linear_backward_weight(y->qkv_w->gradient, y->qkv_b->gradient, v->d_wide, a->norm1, N, 3 * C, C);
    op->linear_backward_input(v->branch, v->d_wide, param_weight(y->qkv_w), N, false);
    op->layernorm_backward(v->d_stream, y->norm1_w->gradient, y->norm1_b->gradient, v->branch, a->input,
                           y->norm1_w->value, a->mean1, a->rstd1, N, C);
}

/* d_tokens [B, P/concat, W]: the gradient of the image tokens. */
static inline void vision_backward(Vision *v, const Ops *op, const floatX *d_tokens, int B,
                                   const GradientHook *hook) {
    const VisionConfig *c = &v->c;
    int C = c->width, P = vision_patches(c);
    size_t N = (size_t)B * (size_t)P, tokens = (size_t)B * (size_t)vision_tokens(c);
    if (v->trains_connector)
        op->linear_backward_weight(v->connector_w->gradient, v->connector_b ? v->connector_b->gradient : NULL,
                                   d_tokens, v->features, tokens, c->out, c->concat * C);
    gradients_ready(hook, v->connector_w);
    if (!v->trains_encoder) return;
    op->linear_backward_input(v->branch, d_tokens, param_weight(v->connector_w), tokens, false);
    op->zero(v->d_stream, N * (size_t)C * sizeof(floatX));
    op->layernorm_backward(v->d_stream, v->norm_w->gradient, v->norm_b->gradient, v->branch, v->last,
                           v->norm_w->value, v->mean, v->rstd, N, C);
    for (int l = c->layers - 1; l >= 0; l--) {
        vision_block_backward(v, op, l, B);
        gradients_ready(hook, v->layer[l].norm1_w);
    }
    op->position_backward(v->position->gradient, v->d_stream, B, P, C);
    op->linear_backward_weight(v->patch_w->gradient, v->patch_b->gradient, v->d_stream, v->patches, N, C,
                               3 * c->patch * c->patch);
    gradients_ready(hook, v->patch_w);
}

/* Operations of one encoder pass over B images (multiply-add = 2), products and attention, without the connector; 0
 * where another encoder looks. */
static inline double vision_flops(const Vision *v, int B) {
    const VisionConfig *c = &v->c;
    double P = vision_patches(c), C = c->width, M = c->mlp;
    double per_patch = 2 * 3.0 * c->patch * c->patch * C + c->layers * (8 * C * C + 4 * C * M + 4 * P * C);
    return v->source ? 0 : B * P * per_patch;
}

static inline void vision_free(Vision *v) {
    free(v->layer);
    free(v->acts);
    memset(v, 0, sizeof *v);
}

#endif
