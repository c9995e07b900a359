/* The whole vision-language model: parameters, memory, forward and backward passes, prefill and decoding step.
 *
 *      image [S x S]                                  "\draw (0,0) ..."  token ids
 *          |  vision.h: patches, encoder, connector          |  token embedding
 *          v                                                 v
 *      [P image tokens*] -------------------------- [text tokens ... end]     x [B, P + T - 1, W]
 *                                    |
 *            +-----------------------v-----------------------+
 *            |  h = rmsnorm(x)                               |
 *            |  x = x + o_proj(attention(rope(qkv_proj(h)))) |   decoder block, `layers` times
 *            |  h = rmsnorm(x)                               |
 *            |  x = x + down_proj(silu(gate h) * up h)       |
 *            +-----------------------|-----------------------+
 *                                    v
 *             hidden = rmsnorm(x) at the positions that predict a text token   [n, W]
 *                                    |
 *             logits = hidden W_headᵀ   position P-1+t predicts text token t   [n, V]
 *
 * (* and the markers around them, where the tokenizer has some: model_prompt counts both.)
 *
 * The decoder is Llama's (Touvron et al. 2023): RMSNorm, rotary positions (rope.h), grouped-query attention, SwiGLU, no
 * biases. Two options make it Qwen's: a bias on q, k and v (Qwen2), and norms of q and k (Qwen3, qk_norm.h).
 * In training, loss.cuh applies the head chunk by chunk; this file stops at `hidden`. Gradient checkpointing
 * (--recompute) is decoder_block_recompute here and the table in recompute.h.
 *
 * A model file is one safetensors file: weights under the names declared here and in vision.h, the configuration in
 * its metadata (config.h), the tokenizer as tensors (lib/tokenizer.h). Metadata hub.* about the tokenizer's origin is
 * kept for scripts/export_hf.py. */
#ifndef MODEL_H
#define MODEL_H

#include "config.h"
#include "kernels/ops.h"
#include "lib/tokenizer.h"
#include "qk_norm.h"
#include "rope.h"
#include "vision.h"
#include "vision_init.h"
#include "weights.h"

typedef struct {
    Param *input_layernorm, *qkv_proj, *o_proj, *post_attention_layernorm, *gate_up_proj, *down_proj;
    Param *qkv_bias;         // NULL: none
    QkNorm qk_norm;
    bool keeps_output;       // nothing overwrites the block's output before the next pass
    const floatX *d_output;  // [N, W] what a loss of its own adds to the gradient of the block's output, or NULL
} DecoderLayer;

/* The activations of one block; N = B * S rows, S the sequence length. Buffers that need not be stored are shared by all
 * blocks (see recompute.h). */
typedef struct {
    floatX *residual;                   // [N, W] the residual stream at the block's input
    floatX *normed1, *qkv, *attention;  // [N, W], [N, (H + 2K) D], [N, H D]
    float *lse;                         // [B, H, S] log-sum-exp of the attention scores
    floatX *mid_residual, *normed2;     // [N, W] the residual stream after attention, and its norm
    floatX *gate_up, *swiglu;           // [N, 2F], [N, F]
    float *rstd1, *rstd2;               // [N] statistics of the two norms
    QkNormActs qk;
} DecoderActs;

/* Keys (rotated) and values of the positions so far, per layer [B, K, capacity, D]. generate.h owns the memory. */
typedef struct {
    floatX **keys, **values;
    int capacity;  // positions a sequence can have, the prompt included
} KVCache;

typedef struct {
    ModelConfig c;
    const Ops *op;
    SafeTensors file;  // kept open while weights or the tokenizer are mapped from it
    Tokenizer tokenizer;
    Params params;
    Lora *lora;  // low-rank adapters (linear.h, lora.h), or NULL
    Vision vision;
    Param *embed_tokens, *norm, *lm_head;  // lm_head == embed_tokens when tied
    DecoderLayer *layer;                   // [layers]
    int trained;                           // parameter groups with gradients
    Recompute recompute;
    GradientHook hook;  // called as gradients become final; set for the last micro-batch of a step only

    Arena arena;        // the activations
    int max_B, max_T;   // capacity: images, text tokens
    DecoderActs *acts;  // [layers]
    uint8_t *pixels;    // device [max_B, height, width, 3]
    int *input_ids;     // device [B, S]: token ids, -1 at image positions
    int *target_rows;   // device [n]: the rows of [B, S] that predict a text token
    int *host_input_ids, *host_target_rows;
    int *labels;                    // host [n]: the tokens to predict, in the order of `hidden`
    float *rope;                    // device [max_positions, D]: cosines, then sines
    floatX *branch;                 // [N, W] the residual branch about to be added; scratch in the backward pass
    floatX *final_hidden;           // [N, W] the residual stream after the last block
    floatX *selected;               // [n, W] its rows that predict a text token
    floatX *hidden;                 // [n, W] their norm: what the head reads
    float *rstd;                    // [n] of the final norm
    floatX *d_residual;             // [N, W] gradient of the residual stream
    floatX *d_wide, *d_narrow;      // [N, max(2F, (H + 2K) D)], [N, max(F, H D)]
    floatX *d_hidden, *d_selected;  // [n, W]; the objective fills d_hidden
    floatX *d_image_tokens;         // [B, P, W]
    const floatX *d_embed_loss;     // [B, P, W] the embedding loss's gradient, which is added to it, or NULL

    int B, T, n;  // of the last forward pass: images, text tokens, predicted tokens
} Model;

/* The next passes are over images of full width: for those that do not begin with model_forward or model_prefill. */
static inline void model_use_full_width(Model *m) {
    vision_set_width(&m->vision, m->op, vision_size(&m->c.vision).width, m->max_B);
}

/* Bytes of an input image u8 [height, width, 3] of full width. */
static inline size_t model_pixels(const Model *m) { return image_size_bytes(vision_size(&m->c.vision)); }

/* The image tokens of the last pass, and before one, of an image of full width. */
static inline int model_image_tokens(const Model *m) { return vision_tokens(&m->vision.c); }

/* The positions before the text: the image tokens, and the tokenizer's markers before and after them. */
static inline int model_prompt(const Model *m) { return model_image_tokens(m) + tokenizer_markers(&m->tokenizer); }

/* The maximum number of text tokens. */
static inline int model_max_text(const Model *m) {
    return m->c.lm.max_positions - vision_tokens(&m->c.vision) - tokenizer_markers(&m->tokenizer);
}

/* The sequence length for T text tokens: the last one is predicted but never read. */
static inline int model_sequence(const Model *m, int T) { return model_prompt(m) + T - 1; }

/* ---- parameters ---- */

static inline void model_declare(Model *m, const char *owner) {
    const LmConfig *c = &m->c.lm;
    int W = c->hidden_size, A = c->heads * c->head_dim, F = c->intermediate_size;
    float in = 1 / sqrtf(3.0f * W), deep = 1 / sqrtf(2.0f * c->layers);
    float from_heads = deep / sqrtf(3.0f * A), from_mlp = deep / sqrtf(3.0f * F);
    Params *p = &m->params;
    params_reserve(p, 11 + 12 * m->c.vision.layers + 9 * c->layers, owner);
    m->vision.c = m->c.vision;
    vision_declare(&m->vision, p);
    m->layer = xcalloc(c->layers, sizeof(DecoderLayer));
    m->acts = xcalloc(c->layers, sizeof(DecoderActs));
    m->embed_tokens = param_add(p, GROUP_LM, "lm.", -1, "embed", c->vocab, W, in);
    m->embed_tokens->least_bits = 8;
    for (int l = 0; l < c->layers; l++) {
        DecoderLayer *y = &m->layer[l];
        y->input_layernorm = param_add(p, GROUP_LM, "lm.", l, "norm1", W, 0, 1);
        y->qkv_proj =
            param_add(p, GROUP_LM, "lm.", l, "qkv.weight", (c->heads + 2 * c->kv_heads) * c->head_dim, W, in);
        if (c->qkv_bias) y->qkv_bias = param_add(p, GROUP_LM, "lm.", l, "qkv.bias", y->qkv_proj->rows, 0, 0);
        if (c->qk_norm) qk_norm_declare(&y->qk_norm, p, l, c->head_dim);
        y->o_proj = param_add(p, GROUP_LM, "lm.", l, "out.weight", W, A, from_heads);
        y->post_attention_layernorm = param_add(p, GROUP_LM, "lm.", l, "norm2", W, 0, 1);
        y->gate_up_proj = param_add(p, GROUP_LM, "lm.", l, "gate_up.weight", 2 * F, W, in);
        y->down_proj = param_add(p, GROUP_LM, "lm.", l, "down.weight", W, F, from_mlp);
    }
    m->norm = param_add(p, GROUP_LM, "lm.", -1, "norm", W, 0, 1);
    m->lm_head = c->tied ? m->embed_tokens : param_add(p, GROUP_LM, "lm.", -1, "head", c->vocab, W, in);
    m->lm_head->least_bits = 8;
}

/* ---- opening and saving ---- */

static inline void model_close(Model *m) {
    if (m->op) {
        m->op->graph_free(m);
        params_release(&m->params, m->op);
        lora_free(m->lora, m->op);
        arena_release(&m->arena, m->op);
        if (m->rope) m->op->release(m->rope);
    }
    vision_free(&m->vision);
    free(m->layer);
    free(m->acts);
    free(m->host_input_ids);
    free(m->host_target_rows);
    free(m->labels);
    safetensors_close(&m->file);
    *m = (Model){0};
}

/* Opens a model file. Weights are mapped in place when possible (params_load); the file stays open for them and for the
 * tokenizer. format: quantise the weights that are not. owner: prefix for messages about memory, "" or, where there are two
 * models, "the teacher's ". -1 with *err filled: the file cannot be read or is not a model. */
static inline int model_open_as(Model *m, const Ops *op, const char *path, const char *owner, WeightFormat format,
                                Error *err) {
    *m = (Model){0};
    if (safetensors_open(&m->file, path, err)) return -1;
    int bad = config_load(&m->c, &m->file, err) || tokenizer_load(&m->tokenizer, &m->file, err) ||
              tokenizer_fits(&m->tokenizer, vision_tokens(&m->c.vision), m->c.lm.max_positions, path, err);
    if (!bad && m->tokenizer.count > m->c.lm.vocab)
        bad = error_set(err, "%s: the tokenizer has %d tokens but the embedding only %d rows", path,
                        m->tokenizer.count, m->c.lm.vocab);
    if (!bad) {
        m->op = op;
        model_declare(m, owner);
        bad = params_load(&m->params, &m->file, op, format, err) || !(m->rope = rope_table(&m->c.lm, op, err));
    }
    if (bad) model_close(m);
    return bad ? -1 : 0;
}

static inline int model_open(Model *m, const Ops *op, const char *path, const char *owner, Error *err) {
    return model_open_as(m, op, path, owner, WEIGHTS_AS_STORED, err);
}

/* Opens a model file for training, or as a teacher of it: refuses quantised weights. */
static inline int model_open_to_train(Model *m, const Ops *op, const char *path, const char *owner, Error *err) {
    if (model_open(m, op, path, owner, err)) return -1;
    if (!params_refuse_quantised(&m->params, path, err)) return 0;
    model_close(m);
    return -1;
}

/* Says why a model that was opened computes values that are not finite. Returns whether its weights are damaged, not
 * only its input unusual. Slow: for error messages. */
static inline bool model_not_finite(const Model *m, Error *why) {
    const char *path = m->file.file.path;
    const SafeTensor *t = safetensors_not_finite(&m->file);
    if (t)
        error_set(why, "the model %s is damaged: tensor %s holds a value that is not finite", path, t->name);
    else
        error_set(why, "the model %s computes values that are not finite, though all its weights are finite", path);
    return t != NULL;
}

/* Makes a new model of the given shape with random weights. tokenizer_file is any file with tokenizer tensors. */
static inline int model_create(Model *m, const Ops *op, const char *shape, const char *tokenizer_file, uint64_t seed,
                               Error *err) {
    *m = (Model){0};
    if (safetensors_open(&m->file, tokenizer_file, err)) return -1;
    if (tokenizer_load(&m->tokenizer, &m->file, err) ||
        config_from_shape(&m->c, shape, (m->tokenizer.count + 15) / 16 * 16, err) ||
        tokenizer_fits(&m->tokenizer, vision_tokens(&m->c.vision), m->c.lm.max_positions, tokenizer_file, err)) {
        model_close(m);
        return -1;
    }
    if (m->tokenizer.count > m->c.lm.vocab) {
        error_set(err, "model shape: lm.vocab %d is too small for the %d tokens of %s", m->c.lm.vocab,
                  m->tokenizer.count, tokenizer_file);
        model_close(m);
        return -1;
    }
    m->op = op;
    model_declare(m, "");
    params_allocate(&m->params, op);
    params_init_random(&m->params, op, seed);
    vision_init_patch_bias(&m->vision, op);
    vision_init_positions(&m->vision, op);
    m->rope = rope_table(&m->c.lm, op, err);
    if (m->rope) return 0;
    model_close(m);
    return -1;
}

/* The metadata of a model file; `text` holds the values of the configuration. Returns how many pairs there are. */
static inline int model_metadata(const Model *m, const char **keys, const char **values,
                                 char text[CONFIG_FIELDS][32]) {
    int n = 0;
    keys[n] = "format";
    values[n++] = "tikz.c/1";
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        if (!config_stored(&m->c, &config_fields[i])) continue;
        config_get(&m->c, &config_fields[i], text[i], sizeof text[i]);
        keys[n] = config_fields[i].key;
        values[n++] = text[i];
    }
    n += tokenizer_metadata(&m->tokenizer, keys + n, values + n);
    for (int i = 0; i < m->file.metadata_count; i++) {
        if (strncmp(m->file.keys[i], "hub.", 4)) continue;
        keys[n] = m->file.keys[i];
        values[n++] = m->file.values[i];
    }
    return n;
}

/* Writes configuration, tokenizer and weights as one file, whole or not at all. */
static inline int model_save(const Model *m, const char *path, Error *err) {
    const Params *p = &m->params;
    int n = 0;
    SafeTensorSpec *specs = xcalloc(2 * p->count + 4, sizeof(SafeTensorSpec));
    size_t capacity = 1 + CONFIG_FIELDS + TOKENIZER_METADATA + m->file.metadata_count;
    const char **keys = xcalloc(capacity, sizeof *keys), **values = xcalloc(capacity, sizeof *values);
    char text[CONFIG_FIELDS][32];
    n += params_specs(p, specs);
    n += tokenizer_specs(&m->tokenizer, specs + n);
    int pairs = model_metadata(m, keys, values, text);
    SafeTensorsWriter w;
    int bad = safetensors_write_begin(&w, path, specs, n, keys, values, pairs, err);
    if (!bad) bad = params_write(p, m->op, &w, err);
    if (!bad) bad = tokenizer_write(&m->tokenizer, &w, err);
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    free(keys);
    free(values);
    return bad;
}

/* ---- memory ---- */

/* Selects the parameter groups to train; the others stay frozen. To be called before model_plan; optimizer_open
 * (train/optimizer.h) allocates the gradients. */
static inline void model_train(Model *m, int groups, Recompute recompute) {
    m->trained = groups;
    m->recompute = recompute;
    m->vision.trains_encoder = (groups & GROUP_VISION) != 0;
    m->vision.recompute = recompute;
}

static inline void model_plan_acts(Model *m, int l, size_t N) {
    const LmConfig *c = &m->c.lm;
    DecoderActs *a = &m->acts[l];
    Arena *arena = &m->arena;
    size_t W = c->hidden_size, D = c->head_dim, H = c->heads, K = c->kv_heads, F = c->intermediate_size;
    if (l > 0) *a = m->acts[0];
    if (l == 0 || m->trained || m->layer[l - 1].keeps_output) a->residual = arena_x(arena, N * W);
    if (l == 0 || ((m->trained & GROUP_LM) && m->recompute == RECOMPUTE_NONE)) {
        a->normed1 = arena_x(arena, N * W);
        a->normed2 = arena_x(arena, N * W);
        a->swiglu = arena_x(arena, N * F);
    }
    if (l == 0 || (m->trained && m->recompute != RECOMPUTE_BLOCKS)) {
        a->qkv = arena_x(arena, N * (H + 2 * K) * D);
        a->attention = arena_x(arena, N * H * D);
        a->lse = arena_f32(arena, N * H);
        a->mid_residual = arena_x(arena, N * W);
        a->gate_up = arena_x(arena, N * 2 * F);
        a->rstd1 = arena_f32(arena, N);
        a->rstd2 = arena_f32(arena, N);
        if (c->qk_norm) qk_norm_plan(&a->qk, arena, c, N);
    }
}

static inline void model_plan_arena(Model *m) {
    const LmConfig *c = &m->c.lm;
    Arena *arena = &m->arena;
    size_t B = m->max_B, N = B * model_sequence(m, m->max_T), n = B * m->max_T;
    size_t W = c->hidden_size, F = c->intermediate_size;
    size_t A = (size_t)c->heads * c->head_dim, Q = (size_t)(c->heads + 2 * c->kv_heads) * c->head_dim;
    vision_plan(&m->vision, arena, B);
    size_t rows = B * vision_patches(&m->c.vision);
    lora_plan(m->lora, arena, rows > N ? rows : N);
    for (int l = 0; l < c->layers; l++) model_plan_acts(m, l, N);
    if (!m->vision.source) m->pixels = arena_take(arena, B * model_pixels(m), 1);
    m->input_ids = arena_int(arena, N);
    m->target_rows = arena_int(arena, n);
    m->branch = arena_x(arena, N * W);
    m->final_hidden = arena_x(arena, N * W);
    m->selected = arena_x(arena, n * W);
    m->hidden = arena_x(arena, n * W);
    m->rstd = arena_f32(arena, n);
    if (m->trained) {
        m->d_residual = arena_x(arena, N * W);
        m->d_wide = arena_x(arena, N * (2 * F > Q ? 2 * F : Q));
        m->d_narrow = arena_x(arena, N * (A > F ? A : F));
        m->d_hidden = arena_x(arena, n * W);
        m->d_selected = arena_x(arena, n * W);
        m->d_image_tokens = arena_x(arena, B * model_image_tokens(m) * W);
    }
}

/* The bytes that model_plan would allocate for B images with T text tokens each. */
static inline size_t model_activation_bytes(Model *m, int B, int T) {
    m->max_B = B;
    m->max_T = T;
    model_plan_arena(m);
    size_t bytes = m->arena.used;
    m->arena.used = 0;
    return bytes;
}

/* Allocates the buffers for passes over up to B images with up to T text tokens each. Called once, after
 * model_train. -1: they do not fit. */
static inline int model_try_plan(Model *m, int B, int T, Error *err) {
    m->max_B = B;
    m->max_T = T;
    model_plan_arena(m);
    if (arena_try_allocate(&m->arena, m->op, m->params.owner, "activations", err)) return -1;
    model_plan_arena(m);
    connector_fill(&m->vision.connector, &m->c.vision, m->op, B);
    m->host_input_ids = xmalloc((size_t)B * model_sequence(m, T) * sizeof(int));
    m->host_target_rows = xmalloc((size_t)B * T * sizeof(int));
    m->labels = xmalloc((size_t)B * T * sizeof(int));
    return 0;
}

/* The same for programs that end where they do not fit. */
static inline void model_plan(Model *m, int B, int T) {
    Error err;
    die_if(model_try_plan(m, B, T, &err), &err);
}

/* Shares the teacher's encoder with the student if the student's is frozen and identical in shape and weights; returns
 * whether it did. To be called after model_train and before model_plan. The student's forward pass then starts from the
 * features of the teacher's last pass, which must be over the same images. On a common stream they are read in place, so
 * the teacher may start other images only after the student's backward pass. */
static inline bool model_share_encoder(Model *student, const Model *teacher) {
    const VisionConfig *a = &student->c.vision, *b = &teacher->c.vision;
    if (student->trained & GROUP_VISION || a->image_size != b->image_size ||
        !image_size_same(vision_size(a), vision_size(b)) || a->patch_size != b->patch_size ||
        a->hidden_size != b->hidden_size || a->layers != b->layers || a->heads != b->heads ||
        a->intermediate_size != b->intermediate_size || a->activation != b->activation || a->eps != b->eps)
        return false;
    for (int i = 0; i < student->params.count; i++) {  // the encoders' parameters come first, in the same order
        const Param *p = &student->params.list[i], *q = &teacher->params.list[i];
        if (p->group == GROUP_VISION && (p->lora || q->lora || !param_same(p, student->op, q, teacher->op)))
            return false;
    }
    student->vision.source = &teacher->vision;
    student->vision.source_op = teacher->op == student->op ? NULL : teacher->op;
    return true;
}

/* ---- forward ---- */

static inline AttentionShape decoder_attention_shape(const Model *m, int B, int T) {
    const LmConfig *c = &m->c.lm;
    return (AttentionShape){.B = B,
                            .T = T,
                            .H = c->heads,
                            .K = c->kv_heads,
                            .D = c->head_dim,
                            .causal = true,
                            .scale = 1 / sqrtf((float)c->head_dim),
                            .rope = m->rope};
}

/* Causal attention of block l over T positions per sequence; rotates queries and keys.
 *   training   cache NULL
 *   prefill    cache: keys and values are also stored there
 *   decoding   cache and positions (device int [B]): the T new keys and values are stored from the position on, and each
 *              query attends to everything up to its own */
static inline void decoder_attention(Model *m, int l, int B, int T, const KVCache *cache, const int *positions) {
    DecoderActs *a = &m->acts[l];
    AttentionShape s = decoder_attention_shape(m, B, T);
    if (positions) {
        m->op->attention_decode(a->attention, cache->keys[l], cache->values[l], a->qkv, positions, s,
                                cache->capacity);
        return;
    }
    m->op->attention_forward(a->attention, a->lse, a->qkv, s);
    if (cache) m->op->cache_store(cache->keys[l], cache->values[l], a->qkv, s, 0, cache->capacity);
}

/* One block over T positions per sequence, for training, prefill and decoding (cache and positions as above). The previous
 * block's residual addition has already computed this one's first norm (they are fused). recompute: the backward pass runs
 * the block again, from its stored input up to the input of down_proj. */
static inline void decoder_block_forward(Model *m, int l, int B, int T, const KVCache *cache, const int *positions,
                                         bool recompute) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const DecoderLayer *y = &m->layer[l];
    DecoderActs *a = &m->acts[l], *next = a + 1;
    int W = c->hidden_size;
    size_t N = (size_t)B * T;
    if (recompute)  // h = rmsnorm(x)
        op->rmsnorm_forward(a->normed1, a->rstd1, a->residual, y->input_layernorm->value, N, W, c->eps);
    linear_act(op, a->qkv, a->normed1, y->qkv_proj, y->qkv_bias, ACT_NONE, NULL, N);  // q, k, v = h W_qkvᵀ + b
    qk_norm_forward(op, c, &y->qk_norm, &a->qk, a->qkv, a->attention, N);             // q, k = rmsnorm(q), rmsnorm(k)
    decoder_attention(m, l, B, T, cache, positions);    // attention = softmax(rope(q) rope(k)ᵀ / √D) v
    linear(op, m->branch, a->attention, y->o_proj, N);  // o = attention W_oᵀ
    op->residual_rmsnorm_forward(a->mid_residual, a->normed2, a->rstd2, a->residual, m->branch,
                                 y->post_attention_layernorm->value, N, W, c->eps);  // x += o, h = rmsnorm(x)
    linear(op, a->gate_up, a->normed2, y->gate_up_proj, N);                          // gate, up = h W_guᵀ
    op->swiglu_forward(a->swiglu, a->gate_up, N, c->intermediate_size);              // s = silu(gate) * up
    if (recompute) return;
    linear(op, m->branch, a->swiglu, y->down_proj, N);  // d = s W_dᵀ
    if (l + 1 < c->layers)                              // x += d, and the next norm
        op->residual_rmsnorm_forward(next->residual, next->normed1, next->rstd1, a->mid_residual, m->branch,
                                     m->layer[l + 1].input_layernorm->value, N, W, c->eps);
    else
        op->residual_forward(m->final_hidden, a->mid_residual, m->branch, N * W);
}

/* Lays out the decoder's input for B rows of T text ids (padding is -1, at the end of a row): image positions get the
 * id -1, markers their ids, padding gets token 0, which causal masking hides from every counted position. Also lists the
 * positions that predict a token, and the tokens. */
static inline void model_layout(Model *m, const int *ids, int B, int T) {
    int P = model_prompt(m), S = model_sequence(m, T);
    if (B > m->max_B || T > m->max_T)
        die("internal error: a batch of %d x %d tokens for a model planned for %d x %d", B, T, m->max_B, m->max_T);
    m->B = B;
    m->T = T;
    m->n = 0;
    for (int b = 0; b < B; b++) {
        int *row = m->host_input_ids + (size_t)b * S;
        tokenizer_prompt(&m->tokenizer, row, model_image_tokens(m));
        for (int t = 0; t < T; t++) {
            int id = ids[(size_t)b * T + t];
            if (t + 1 < T) row[P + t] = id < 0 ? 0 : id;
            if (id < 0) continue;
            m->labels[m->n] = id;
            m->host_target_rows[m->n++] = b * S + P - 1 + t;
        }
    }
    m->op->upload(m->input_ids, m->host_input_ids, (size_t)B * S * sizeof(int));
    m->op->upload(m->target_rows, m->host_target_rows, m->n * sizeof(int));
}

/* Uploads host pixels u8 [B, height, width, 3], unless the encoder is shared. */
static inline void model_upload_pixels(Model *m, const uint8_t *pixels, int B) {
    m->vision.B = B;
    if (!m->vision.source) m->op->upload(m->pixels, pixels, B * image_size_bytes(vision_size(&m->vision.c)));
}

/* Embeds the input: image tokens, and the embeddings of the markers and of the text; and the first block's norm. */
static inline void decoder_embed(Model *m, int B, int S) {
    const LmConfig *c = &m->c.lm;
    DecoderActs *a = &m->acts[0];
    size_t N = (size_t)B * S, row = c->hidden_size * sizeof(floatX), bytes = model_image_tokens(m) * row;
    floatX *image = a->residual + (size_t)m->tokenizer.before_image.count * c->hidden_size;
    m->op->copy_rows(image, S * row, m->vision.tokens, bytes, bytes, B);
    m->op->embedding_forward(a->residual, m->input_ids, param_weight(m->embed_tokens), N);
    m->op->rmsnorm_forward(a->normed1, a->rstd1, a->residual, m->layer[0].input_layernorm->value, N, c->hidden_size,
                           c->eps);
}

/* Keys of the graphs (Ops.graph_launch): a pass makes the same calls for the same B, T and width, because every array of a
 * model stays where it is. The number of counted positions changes from batch to batch, so the calls that depend on it stay
 * outside the graphs. */
enum { GRAPH_FORWARD, GRAPH_BACKWARD, GRAPH_BACKWARD_VISION, GRAPH_KINDS };

static inline uint64_t model_graph(const Model *m, int kind, int B, int T) {
    const uint64_t columns = vision_columns(&m->vision.c);
    return ((uint64_t)B << 41 | columns << 28 | (uint64_t)T) * GRAPH_KINDS + (uint64_t)kind;
}

/* One pass over host pixels [B, height, width, 3] and host ids [B, T] (padding is -1, at the end of a row). Leaves the hidden
 * states of the m->n positions that predict a token in m->hidden [n, W], in the order of the ids. The images may be narrower
 * than the model's, as vision_set_width allows. */
static inline void model_forward_width(Model *m, const uint8_t *pixels, int width, const int *ids, int B, int T) {
    const LmConfig *c = &m->c.lm;
    vision_set_width(&m->vision, m->op, width, m->max_B);
    int S = model_sequence(m, T);
    model_layout(m, ids, B, T);
    model_upload_pixels(m, pixels, B);
    if (m->vision.source)
        vision_forward(&m->vision, m->op, m->pixels, B);  // may copy from another device, which no graph can hold
    if (!m->op->graph_launch(m, model_graph(m, GRAPH_FORWARD, B, T))) {
        if (!m->vision.source) vision_forward(&m->vision, m->op, m->pixels, B);
        decoder_embed(m, B, S);
        for (int l = 0; l < c->layers; l++) decoder_block_forward(m, l, B, S, NULL, NULL, false);
        m->op->graph_end();
    }
    m->op->gather_rows(m->selected, m->final_hidden, m->target_rows, m->n, c->hidden_size);
    m->op->rmsnorm_forward(m->hidden, m->rstd, m->selected, m->norm->value, m->n, c->hidden_size, c->eps);
}

/* The same for images of full width. */
static inline void model_forward(Model *m, const uint8_t *pixels, const int *ids, int B, int T) {
    model_forward_width(m, pixels, vision_size(&m->c.vision).width, ids, B, T);
}

/* ---- decoding ---- */

/* Logits fp32 [B, V] of the B rows in m->selected. */
static inline void model_logits(Model *m, int B, float *logits) {
    const LmConfig *c = &m->c.lm;
    m->op->rmsnorm_forward(m->hidden, NULL, m->selected, m->norm->value, B, c->hidden_size, c->eps);
    linear_logits(m->op, logits, m->hidden, m->lm_head, B);
}

/* The decoder's part of a prefill: reads the S positions of each sequence that model_layout laid out, with the image
 * tokens that the encoder left in m->vision.tokens, and fills the cache. logits as below. */
static inline void decoder_prefill(Model *m, int B, int S, const KVCache *cache, float *logits) {
    size_t row = m->c.lm.hidden_size * sizeof(floatX);
    decoder_embed(m, B, S);
    for (int l = 0; l < m->c.lm.layers; l++) decoder_block_forward(m, l, B, S, cache, NULL, false);
    m->op->copy_rows(m->selected, row, (const char *)m->final_hidden + (S - 1) * row, S * row, row, B);
    model_logits(m, B, logits);
}

/* Encodes B images (host u8 [B, height, width, 3]), reads a prefix of text tokens, the same for all, and fills the cache.
 * logits, device fp32 [B, V], are of the next token. Returns the cache's length. */
static inline int model_prefill(Model *m, const uint8_t *pixels, int B, const int *prefix, int prefix_count,
                                const KVCache *cache, float *logits) {
    model_use_full_width(m);
    int S = model_prompt(m) + prefix_count, T = prefix_count + 1;
    int *ids = xcalloc((size_t)B * T, sizeof(int));  // the last one of a row is never read
    for (int b = 0; b < B && prefix_count; b++) memcpy(ids + b * T, prefix, prefix_count * sizeof(int));
    model_layout(m, ids, B, T);
    free(ids);
    model_upload_pixels(m, pixels, B);
    vision_forward(&m->vision, m->op, m->pixels, B);
    decoder_prefill(m, B, S, cache, logits);
    return S;
}

/* T more tokens for each of B sequences: ids are device int [B, T], and positions, device int [B], those of each first one.
 * Row b T + t of logits, device fp32 [B T, V], is of the token after ids[b][t]. B T rows must fit into what model_plan was
 * called for. The same calls with the same arguments at every step, so that a GPU can run them as one graph. In fp32 a row is
 * the same bits for all B T that one kernel of linear_forward takes: up to 8 on the CPU, 4 on a GPU. */
static inline void model_extend(Model *m, const int *ids, const int *positions, int B, int T, const KVCache *cache,
                                float *logits) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    DecoderActs *a = &m->acts[0];
    int W = c->hidden_size, N = B * T;
    op->embedding_forward(a->residual, ids, param_weight(m->embed_tokens), N);
    op->rmsnorm_forward(a->normed1, NULL, a->residual, m->layer[0].input_layernorm->value, N, W, c->eps);
    for (int l = 0; l < c->layers; l++) decoder_block_forward(m, l, B, T, cache, positions, false);
    op->copy(m->selected, m->final_hidden, (size_t)N * W * sizeof(floatX));
    model_logits(m, N, logits);
}

/* One more token for each of B sequences. logits [B, V] are of the next one. */
static inline void model_decode_step(Model *m, const int *ids, const int *positions, int B, const KVCache *cache,
                                     float *logits) {
    model_extend(m, ids, positions, B, 1, cache, logits);
}

/* ---- backward ---- */

/* Recomputes the activations that block l did not store, except those that only gradients of frozen weights would
 * read. The last block's are always stored. */
static inline void decoder_block_recompute(Model *m, int l, int B, int S) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const DecoderLayer *y = &m->layer[l];
    DecoderActs *a = &m->acts[l];
    size_t N = (size_t)B * S;
    if (l + 1 == c->layers) return;
    if (m->recompute == RECOMPUTE_BLOCKS) decoder_block_forward(m, l, B, S, NULL, NULL, true);
    if (m->recompute != RECOMPUTE_ACTIVATIONS || !(m->trained & GROUP_LM)) return;
    op->rmsnorm_forward(a->normed1, a->rstd1, a->residual, y->input_layernorm->value, N, c->hidden_size, c->eps);
    op->rmsnorm_forward(a->normed2, a->rstd2, a->mid_residual, y->post_attention_layernorm->value, N, c->hidden_size,
                        c->eps);
    op->swiglu_forward(a->swiglu, a->gate_up, N, c->intermediate_size);
}

/* The forward pass line by line in reverse. d_residual comes in as the gradient of the block's output and leaves as
 * that of its input; the norms' backward passes add to it. doc/backward.md derives each line. */
static inline void decoder_block_backward(Model *m, int l, int B, int S) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const DecoderLayer *y = &m->layer[l];
    DecoderActs *a = &m->acts[l];
    int W = c->hidden_size;
    size_t N = (size_t)B * S;
    decoder_block_recompute(m, l, B, S);
    const floatX *d_x = m->d_residual;
    if (linear_backward(op, m->d_narrow, d_x, a->swiglu, y->down_proj, NULL, N)) return;  // d_s = d_x W_d
    op->swiglu_backward(m->d_wide, m->d_narrow, a->gate_up, N, c->intermediate_size);  // d_gate, d_up
    if (linear_backward(op, m->branch, m->d_wide, a->normed2, y->gate_up_proj, NULL, N)) return;  // d_h = d_gu W_gu
    op->rmsnorm_backward(m->d_residual, y->post_attention_layernorm->gradient, m->branch, a->mid_residual,
                         y->post_attention_layernorm->value, a->rstd2, N, W);  // d_x += rmsnorm'(d_h)
    if (linear_backward(op, m->d_narrow, d_x, a->attention, y->o_proj, NULL, N)) return;  // d_attention = d_x W_o
    op->attention_backward(m->d_wide, m->d_narrow, a->attention, a->lse, a->qkv,
                           decoder_attention_shape(m, B, S));                     // d_q, d_k, d_v
    qk_norm_backward(op, c, &y->qk_norm, &a->qk, m->d_wide, m->d_narrow, a->attention, N);
    if (linear_backward(op, m->branch, m->d_wide, a->normed1, y->qkv_proj, y->qkv_bias, N)) return;  // d_h = d_qkv W_qkv
    op->rmsnorm_backward(m->d_residual, y->input_layernorm->gradient, m->branch, a->residual,
                         y->input_layernorm->value, a->rstd1, N, W);  // d_x += rmsnorm'(d_h)
}

/* The residual stream after block l, [N, W], of the last pass: of a model that is trained, or where keeps_output is set. */
static inline const floatX *model_block_output(const Model *m, int l) {
    return l + 1 < m->c.lm.layers ? m->acts[l + 1].residual : m->final_hidden;
}

/* Backpropagates d_residual through all blocks and the embedding. */
static inline void decoder_backward(Model *m) {
    int S = model_sequence(m, m->T);
    size_t n = (size_t)m->B * S * m->c.lm.hidden_size;
    for (int l = m->c.lm.layers - 1; l >= 0; l--) {
        if (m->layer[l].d_output) m->op->residual_forward(m->d_residual, m->d_residual, m->layer[l].d_output, n);
        decoder_block_backward(m, l, m->B, S);
        gradients_ready(&m->hook, m->layer[l].input_layernorm);
    }
    if (m->embed_tokens->gradient)
        m->op->embedding_backward(m->embed_tokens->gradient, m->d_residual, m->input_ids, (size_t)m->B * S,
                                  m->c.lm.hidden_size, m->c.lm.vocab);
    gradients_ready(&m->hook, m->embed_tokens);
}

/* Replays a part of the backward pass as a graph, if possible. Not with a hook: it starts communication, which no graph can
 * hold. */
static inline bool model_graph_launch(Model *m, int kind) {
    return !m->hook.ready && m->op->graph_launch(m, model_graph(m, kind, m->B, m->T));
}

static inline void model_graph_end(Model *m) {
    if (!m->hook.ready) m->op->graph_end();
}

/* Adds the gradients of all trained parameters, starting from m->d_hidden [n, W], the gradient of the loss with respect to
 * m->hidden, and from m->d_embed_loss; objective_run has written both. */
static inline void model_backward(Model *m) {
    const Ops *op = m->op;
    int W = m->c.lm.hidden_size;
    size_t B = m->B, image = model_image_tokens(m), S = model_sequence(m, m->T), n = m->n, row = W * sizeof(floatX);
    op->zero(m->d_selected, n * row);
    op->rmsnorm_backward(m->d_selected, m->norm->gradient, m->d_hidden, m->selected, m->norm->value, m->rstd, n, W);
    gradients_ready(&m->hook, m->norm);
    op->scatter_rows(m->d_residual, m->d_selected, m->target_rows, n, B * S, W);
    if (!model_graph_launch(m, GRAPH_BACKWARD)) {
        decoder_backward(m);
        model_graph_end(m);
    }
    if (!(m->trained & (GROUP_VISION | GROUP_CONNECTOR))) return;
    const floatX *d_image = m->d_residual + (size_t)m->tokenizer.before_image.count * W;
    op->copy_rows(m->d_image_tokens, image * row, d_image, S * row, image * row, B);
    if (m->d_embed_loss) op->residual_forward(m->d_image_tokens, m->d_image_tokens, m->d_embed_loss, B * image * W);
    if (!model_graph_launch(m, GRAPH_BACKWARD_VISION)) {
        vision_backward(&m->vision, op, m->d_image_tokens, m->B, &m->hook);
        model_graph_end(m);
    }
}

#endif
