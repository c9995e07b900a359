/* The whole vision-language model: configuration, parameters, forward and backward passes.
 *
 *   sequence  [P image tokens][text tokens ... end]          positions count from 0 at the first image token
 *   stream    x [B, S, W]: image tokens from vision.h, then token embeddings
 *   block     x = x + out(attention(rope(qkv(norm1(x)))));  x = x + down(silu(gate(h)) * up(h)), h = norm2(x)
 *   head      logits = rmsnorm(x) headᵀ; position P-1+t predicts text token t
 *
 * The decoder is Llama's: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases (Touvron et al.
 * 2023). The head itself lives in loss.cuh when training: only the hidden states of the positions that predict a text
 * token leave this file.
 *
 * A model file is one safetensors file: weights under the names declared here and in vision.h, the configuration as
 * flat keys in its metadata (config_fields below), the tokenizer as tensors (lib/tokenizer.h). Metadata hub.*, about
 * the tokenizer's origin, is kept for scripts/export_hf.py. */
#ifndef MODEL_H
#define MODEL_H

#include "kernels/ops.h"
#include "kernels/arena.h"
#include "params.h"
#include "lib/safetensors.h"
#include "lib/tokenizer.h"
#include "vision.h"

/* ---------------------------------------------------------------------------------------------------------------
 * Configuration */

typedef enum { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3 } RopeScaling;

typedef struct {
    int vocab, width, layers, heads, kv_heads, head_dim, ffn;
    int max_positions;  // image and text together
    float eps;
    float rope_theta;
    RopeScaling rope_scaling;
    float rope_factor, rope_low, rope_high;
    int rope_original;  // positions the model was first trained on (llama3 scaling)
    bool tied;          // the head is the embedding
} LmConfig;

typedef struct {
    VisionConfig vision;
    LmConfig lm;
} ModelConfig;

typedef enum { FIELD_INT, FIELD_FLOAT, FIELD_BOOL, FIELD_ACTIVATION, FIELD_ROPE } FieldType;

/* Every key of the configuration, once: for reading, writing, `--student SHAPE,key=value` and checking. */
typedef struct {
    const char *key;
    FieldType type;
    size_t offset;
    double min, max;
} ConfigField;

#define VISION_FIELD(key, type, member, min, max) \
    { key, type, offsetof(ModelConfig, vision.member), min, max }
#define LM_FIELD(key, type, member, min, max) \
    { key, type, offsetof(ModelConfig, lm.member), min, max }
static const ConfigField config_fields[] = {
    VISION_FIELD("vision.image_size", FIELD_INT, image_size, 4, 2048),
    VISION_FIELD("vision.patch", FIELD_INT, patch, 1, 64),
    VISION_FIELD("vision.width", FIELD_INT, width, 4, 16384),
    VISION_FIELD("vision.layers", FIELD_INT, layers, 1, 256),
    VISION_FIELD("vision.heads", FIELD_INT, heads, 1, 256),
    VISION_FIELD("vision.mlp", FIELD_INT, mlp, 1, 65536),
    VISION_FIELD("vision.activation", FIELD_ACTIVATION, activation, 0, 0),
    VISION_FIELD("vision.eps", FIELD_FLOAT, eps, 0, 1),
    VISION_FIELD("connector.concat", FIELD_INT, concat, 1, 64),
    VISION_FIELD("connector.bias", FIELD_BOOL, bias, 0, 1),
    LM_FIELD("lm.vocab", FIELD_INT, vocab, 2, 1 << 20),
    LM_FIELD("lm.width", FIELD_INT, width, 4, 16384),
    LM_FIELD("lm.layers", FIELD_INT, layers, 1, 256),
    LM_FIELD("lm.heads", FIELD_INT, heads, 1, 256),
    LM_FIELD("lm.kv_heads", FIELD_INT, kv_heads, 1, 256),
    LM_FIELD("lm.head_dim", FIELD_INT, head_dim, 2, 512),
    LM_FIELD("lm.ffn", FIELD_INT, ffn, 1, 65536),
    LM_FIELD("lm.max_positions", FIELD_INT, max_positions, 2, 1 << 17),
    LM_FIELD("lm.eps", FIELD_FLOAT, eps, 0, 1),
    LM_FIELD("lm.rope_theta", FIELD_FLOAT, rope_theta, 1, 1e9),
    LM_FIELD("lm.rope_scaling", FIELD_ROPE, rope_scaling, 0, 0),
    LM_FIELD("lm.rope_factor", FIELD_FLOAT, rope_factor, 1e-3, 1e6),
    LM_FIELD("lm.rope_low", FIELD_FLOAT, rope_low, 0, 1e6),
    LM_FIELD("lm.rope_high", FIELD_FLOAT, rope_high, 0, 1e6),
    LM_FIELD("lm.rope_original", FIELD_INT, rope_original, 1, 1 << 24),
    LM_FIELD("lm.tied", FIELD_BOOL, tied, 0, 1),
};
enum { CONFIG_FIELDS = sizeof config_fields / sizeof config_fields[0] };

static const char *const activation_names[] = {"none", "gelu_tanh", "gelu"};
static const char *const rope_names[] = {"none", "linear", "llama3"};

/* The place of `text` among names, or -1. */
static inline int name_index(const char *text, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(text, names[i])) return i;
    return -1;
}

static inline int config_set(ModelConfig *c, const ConfigField *f, const char *text, const char *where, Error *err) {
    char *at = (char *)c + f->offset, *end = NULL;
    double number = strtod(text, &end);
    bool is_number = end != text && *end == 0 && number >= f->min && number <= f->max;
    int name;
    switch (f->type) {
    case FIELD_INT:
        if (!is_number || number != floor(number)) break;
        *(int *)at = (int)number;
        return 0;
    case FIELD_FLOAT:
        if (!is_number) break;
        *(float *)at = (float)number;
        return 0;
    case FIELD_BOOL:
        if (strcmp(text, "true") && strcmp(text, "false")) break;
        *(bool *)at = text[0] == 't';
        return 0;
    case FIELD_ACTIVATION:
        if ((name = name_index(text, activation_names, 3)) < 1) break;
        *(Activation *)at = (Activation)name;
        return 0;
    case FIELD_ROPE:
        if ((name = name_index(text, rope_names, 3)) < 0) break;
        *(RopeScaling *)at = (RopeScaling)name;
        return 0;
    }
    if (f->type == FIELD_INT || f->type == FIELD_FLOAT)
        return error_set(err, "%s: %s is \"%.40s\"; expected a number from %g to %g", where, f->key, text, f->min,
                         f->max);
    return error_set(err, "%s: %s is \"%.40s\"; expected %s", where, f->key, text,
                     f->type == FIELD_BOOL         ? "true or false"
                     : f->type == FIELD_ACTIVATION ? "gelu_tanh or gelu"
                                                   : "none, linear or llama3");
}

static inline void config_get(const ModelConfig *c, const ConfigField *f, char *text, size_t size) {
    const char *at = (const char *)c + f->offset;
    switch (f->type) {
    case FIELD_INT: snprintf(text, size, "%d", *(const int *)at); break;
    case FIELD_FLOAT: snprintf(text, size, "%.9g", (double)*(const float *)at); break;
    case FIELD_BOOL: snprintf(text, size, "%s", *(const bool *)at ? "true" : "false"); break;
    case FIELD_ACTIVATION: snprintf(text, size, "%s", activation_names[*(const Activation *)at]); break;
    case FIELD_ROPE: snprintf(text, size, "%s", rope_names[*(const RopeScaling *)at]); break;
    }
}

/* What no single field shows. */
static inline int config_check(ModelConfig *c, const char *where, Error *err) {
    VisionConfig *v = &c->vision;
    LmConfig *l = &c->lm;
    v->out = l->width;
    if (v->image_size < v->patch)
        return error_set(err, "%s: vision.image_size %d is smaller than vision.patch %d", where, v->image_size,
                         v->patch);
    if (v->width % v->heads)
        return error_set(err, "%s: vision.width %d is not a multiple of vision.heads %d", where, v->width, v->heads);
    if (vision_patches(v) % v->concat)
        return error_set(err, "%s: %d patches cannot be joined in groups of connector.concat %d", where,
                         vision_patches(v), v->concat);
    if (l->heads % l->kv_heads)
        return error_set(err, "%s: lm.heads %d is not a multiple of lm.kv_heads %d", where, l->heads, l->kv_heads);
    if (l->head_dim % 2)
        return error_set(err, "%s: lm.head_dim %d is odd; rotary positions need an even one", where, l->head_dim);
    if (l->max_positions <= vision_tokens(v))
        return error_set(err, "%s: lm.max_positions %d leaves no room for text after %d image tokens", where,
                         l->max_positions, vision_tokens(v));
    if (l->rope_scaling == ROPE_LLAMA3 && !(l->rope_high > l->rope_low && l->rope_low > 0))
        return error_set(err, "%s: llama3 scaling needs 0 < lm.rope_low < lm.rope_high, found %g and %g", where,
                         (double)l->rope_low, (double)l->rope_high);
    return 0;
}

static inline int config_load(ModelConfig *c, const SafeTensors *st, Error *err) {
    memset(c, 0, sizeof *c);
    const char *format = safetensors_metadata(st, "format");
    if (!format || strcmp(format, "tikz.c/1"))
        return error_set(err,
                         "%s: not a tikz.c model (metadata format is %s, expected tikz.c/1); Hugging Face weights "
                         "must be converted first",
                         st->file.path, format ? format : "missing");
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        const char *text = safetensors_metadata(st, config_fields[i].key);
        if (!text)
            return error_set(err, "%s: the config key %s is missing from the metadata", st->file.path,
                             config_fields[i].key);
        if (config_set(c, &config_fields[i], text, st->file.path, err)) return -1;
    }
    return config_check(c, st->file.path, err);
}

static inline VisionConfig vision_shape(int image_size, int patch, int width, int layers, int heads) {
    VisionConfig v;
    memset(&v, 0, sizeof v);
    v.image_size = image_size;
    v.patch = patch;
    v.width = width;
    v.layers = layers;
    v.heads = heads;
    v.mlp = 4 * width;
    v.activation = ACT_GELU_TANH;
    v.eps = 1e-6f;
    v.concat = 3;
    v.bias = true;
    return v;
}

static inline LmConfig lm_shape(int width, int layers, int heads, int kv_heads, int ffn, int max_positions) {
    LmConfig l;
    memset(&l, 0, sizeof l);
    l.width = width;
    l.layers = layers;
    l.heads = heads;
    l.kv_heads = kv_heads;
    l.head_dim = width / heads;
    l.ffn = ffn;
    l.max_positions = max_positions;
    l.eps = 1e-5f;
    l.rope_theta = 1e4f;
    l.rope_factor = 1;
    l.rope_low = 1;
    l.rope_high = 4;
    l.rope_original = max_positions;
    return l;
}

/* "NAME[,key=value]...": a named shape (tiny, small, base, tl-1.1b), changed key by key. The vocabulary comes from
 * the tokenizer. */
static inline int config_from_shape(ModelConfig *c, const char *shape, int vocab, Error *err) {
    char text[1024];
    if (strlen(shape) >= sizeof text) return error_set(err, "the model shape is longer than 1023 characters");
    snprintf(text, sizeof text, "%s", shape);
    char *rest = NULL, *name = strtok_r(text, ",", &rest);
    memset(c, 0, sizeof *c);
    if (name && !strcmp(name, "tiny")) {
        c->vision = vision_shape(96, 8, 64, 2, 2);
        c->lm = lm_shape(64, 2, 2, 1, 192, 256);
    } else if (name && !strcmp(name, "small")) {
        c->vision = vision_shape(96, 8, 96, 3, 3);
        c->lm = lm_shape(128, 3, 4, 4, 352, 256);
    } else if (name && !strcmp(name, "base")) {
        c->vision = vision_shape(96, 12, 128, 4, 4);  // a patch is one grid cell of the starter's figures
        c->vision.concat = 1;
        c->lm = lm_shape(192, 4, 6, 3, 512, 256);
    } else if (name && !strcmp(name, "tl-1.1b")) {
        c->vision = vision_shape(384, 14, 1152, 27, 16);
        c->vision.mlp = 4304;
        c->vision.activation = ACT_GELU_ERF;
        c->lm = lm_shape(2048, 22, 32, 4, 5632, 2048);
    } else {
        return error_set(
            err, "unknown model shape \"%.60s\"; expected a model file or one of tiny, small, base, tl-1.1b", shape);
    }
    c->lm.vocab = vocab;
    for (char *item; (item = strtok_r(NULL, ",", &rest));) {
        char *equals = strchr(item, '=');
        int f = 0;
        if (equals) *equals = 0;
        while (f < CONFIG_FIELDS && strcmp(item, config_fields[f].key)) f++;
        if (!equals || f == CONFIG_FIELDS)
            return error_set(err, "model shape: \"%s\" is not key=value with a known key such as lm.layers", item);
        if (config_set(c, &config_fields[f], equals + 1, "model shape", err)) return -1;
    }
    return config_check(c, "model shape", err);
}

/* ---------------------------------------------------------------------------------------------------------------
 * The model */

typedef struct {
    Param *norm1, *qkv, *out, *norm2, *gate_up, *down;
} LmLayer;

/* What one block leaves for its backward pass; N = B * S rows. Shared between blocks as VisionActs are. In the table
 * at Recompute (vision.h): Q = (H + 2 K) D, A = H D. */
typedef struct {
    floatX *input;              // [N, W] the residual stream as the block finds it
    floatX *norm1, *qkv, *att;  // [N, W], [N, (H+2K) D], [N, H D]
    float *lse;                 // [B, H, S]
    floatX *middle, *norm2;     // [N, W] the stream after attention, and its norm
    floatX *gate_up, *swiglu;   // [N, 2F], [N, F]
    float *rstd1, *rstd2;       // [N]
} LmActs;

typedef struct {
    ModelConfig c;
    const Ops *op;
    SafeTensors file;  // open while weights or the tokenizer live in it
    Tokenizer tokenizer;
    Params params;
    Vision vision;
    Param *embed, *norm, *head;  // head == embed when tied
    LmLayer *layer;
    int trained;  // parts with gradients
    Recompute recompute;
    GradientHook hook;  // of model_backward; with micro-batches to be set for the last of them only

    Arena arena;       // activations
    int max_B, max_T;  // what they were planned for: images, text tokens
    LmActs *acts;
    uint8_t *pixels;  // device [max_B, S, S, 3]
    int *inputs;      // device [B, S]: token ids, -1 at image positions
    int *index;       // device [n]: rows of the stream that predict a text token
    int *host_inputs, *host_index;
    int *labels;                  // host [n]: the tokens to predict, in the order of m->hidden
    float *rope;                  // device [max_positions, D]
    floatX *branch;               // [N, W] what a block is about to add to the stream; scratch in the backward pass
    floatX *last;                 // [N, W] the stream after the last block
    floatX *picked;               // [n, W] its rows that predict text
    floatX *hidden;               // [n, W] their norm: what the head reads
    float *rstd;                  // [n]
    floatX *d_stream;             // [N, W] gradient of the residual stream
    floatX *d_wide, *d_narrow;    // [N, max(2F, (H+2K) D)], [N, max(F, H D)]
    floatX *d_hidden, *d_picked;  // [n, W]; d_hidden is for the objective to fill
    floatX *d_tokens;             // [B, P, W] gradient of the image tokens

    int B, T, n;  // of the last forward pass: images, text tokens, predicted tokens
} Model;

static inline int model_image_tokens(const Model *m) { return vision_tokens(&m->c.vision); }
static inline int model_text_room(const Model *m) { return m->c.lm.max_positions - model_image_tokens(m); }
static inline int model_sequence(const Model *m, int T) { return model_image_tokens(m) + T - 1; }

static inline void model_declare(Model *m) {
    const LmConfig *c = &m->c.lm;
    int W = c->width, D = c->head_dim;
    float in = 1 / sqrtf(3.0f * (float)W), deep = 1 / sqrtf(2.0f * (float)c->layers);
    params_reserve(&m->params, 10 + 12 * m->c.vision.layers + 6 * c->layers);
    m->vision.c = m->c.vision;
    vision_declare(&m->vision, &m->params);
    m->layer = (LmLayer *)xcalloc((size_t)c->layers, sizeof(LmLayer));
    m->acts = (LmActs *)xcalloc((size_t)c->layers, sizeof(LmActs));
    m->embed = param_add(&m->params, GROUP_LM, "lm.", -1, "embed", c->vocab, W, in);
    for (int l = 0; l < c->layers; l++) {
        LmLayer *y = &m->layer[l];
        Params *p = &m->params;
        float from_heads = deep / sqrtf(3.0f * (float)(c->heads * D)), from_ffn = deep / sqrtf(3.0f * (float)c->ffn);
        y->norm1 = param_add(p, GROUP_LM, "lm.", l, "norm1", W, 0, 1);
        y->qkv = param_add(p, GROUP_LM, "lm.", l, "qkv.weight", (c->heads + 2 * c->kv_heads) * D, W, in);
        y->out = param_add(p, GROUP_LM, "lm.", l, "out.weight", W, c->heads * D, from_heads);
        y->norm2 = param_add(p, GROUP_LM, "lm.", l, "norm2", W, 0, 1);
        y->gate_up = param_add(p, GROUP_LM, "lm.", l, "gate_up.weight", 2 * c->ffn, W, in);
        y->down = param_add(p, GROUP_LM, "lm.", l, "down.weight", W, c->ffn, from_ffn);
    }
    m->norm = param_add(&m->params, GROUP_LM, "lm.", -1, "norm", W, 0, 1);
    m->head = c->tied ? m->embed : param_add(&m->params, GROUP_LM, "lm.", -1, "head", c->vocab, W, in);
}

/* Rotation angles of every position, fp32 [max_positions, D]: cosines then sines. Frequencies theta^(-2i/D); `linear`
 * divides the position by the factor (Chen et al. 2023); `llama3` divides low frequencies by it, keeps high ones and
 * blends between (Llama 3.1; wavelengths are compared with the original context). */
static inline void model_make_rope(Model *m) {
    const LmConfig *c = &m->c.lm;
    int half = c->head_dim / 2;
    size_t n = (size_t)c->max_positions * (size_t)c->head_dim;
    float *host = (float *)xmalloc(n * sizeof(float));
    for (int i = 0; i < half; i++) {
        double frequency = pow((double)c->rope_theta, -(double)i / half);
        if (c->rope_scaling == ROPE_LINEAR) frequency /= (double)c->rope_factor;
        if (c->rope_scaling == ROPE_LLAMA3) {
            double turns = c->rope_original * frequency / (2 * 3.14159265358979323846);  // over the original context
            double blend = (turns - (double)c->rope_low) / ((double)c->rope_high - (double)c->rope_low);
            blend = blend < 0 ? 0 : blend > 1 ? 1 : blend;
            frequency = (1 - blend) * frequency / (double)c->rope_factor + blend * frequency;
        }
        for (int t = 0; t < c->max_positions; t++) {
            host[(size_t)t * (size_t)c->head_dim + (size_t)i] = (float)cos(t * frequency);
            host[(size_t)t * (size_t)c->head_dim + (size_t)(half + i)] = (float)sin(t * frequency);
        }
    }
    m->rope = (float *)m->op->alloc(n * sizeof(float));
    if (!m->rope) die("cannot allocate the rotary table for %d positions", c->max_positions);
    m->op->upload(m->rope, host, n * sizeof(float));
    free(host);
}

static inline void model_close(Model *m) {
    if (m->op) {
        m->op->graph_free(m);
        params_release(&m->params, m->op);
        arena_release(&m->arena, m->op);
        if (m->rope) m->op->release(m->rope);
    }
    vision_free(&m->vision);
    free(m->layer);
    free(m->acts);
    free(m->host_inputs);
    free(m->host_index);
    free(m->labels);
    safetensors_close(&m->file);
    memset(m, 0, sizeof *m);
}

/* Opens a model file. Weights are used where they lie in the file, if that is possible (params_load); the file stays
 * open for them and for the tokenizer. */
static inline int model_open(Model *m, const Ops *op, const char *path, Error *err) {
    memset(m, 0, sizeof *m);
    if (safetensors_open(&m->file, path, err)) return -1;
    int bad = config_load(&m->c, &m->file, err) || tokenizer_load(&m->tokenizer, &m->file, err);
    if (!bad && m->tokenizer.count > m->c.lm.vocab)
        bad = error_set(err, "%s: the tokenizer has %d tokens but the embedding only %d rows", path,
                        m->tokenizer.count, m->c.lm.vocab);
    if (!bad) {
        m->op = op;
        model_declare(m);
        bad = params_load(&m->params, &m->file, op, err);
    }
    if (bad) {
        model_close(m);
        return -1;
    }
    model_make_rope(m);
    return 0;
}

/* A new model of the given configuration with random weights. tokenizer_file is any file with tokenizer tensors. */
static inline int model_create(Model *m, const Ops *op, const char *shape, const char *tokenizer_file, uint64_t seed,
                               Error *err) {
    memset(m, 0, sizeof *m);
    if (safetensors_open(&m->file, tokenizer_file, err)) return -1;
    if (tokenizer_load(&m->tokenizer, &m->file, err) ||
        config_from_shape(&m->c, shape, (m->tokenizer.count + 15) / 16 * 16, err)) {
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
    model_declare(m);
    params_allocate_values(&m->params, op);
    params_randomise(&m->params, op, GROUP_ALL, seed);
    vision_white_is_zero(&m->vision, op);
    vision_sincos_positions(&m->vision, op);
    model_make_rope(m);
    return 0;
}

/* Writes configuration, tokenizer and weights as one file, whole or not at all. */
static inline int model_save(const Model *m, const char *path, Error *err) {
    const Params *p = &m->params;
    int n = 0;
    SafeTensorSpec *specs = (SafeTensorSpec *)xcalloc((size_t)p->count + 4, sizeof(SafeTensorSpec));
    size_t room = CONFIG_FIELDS + 3 + (size_t)m->file.metadata_count;
    const char **keys = (const char **)xcalloc(room, sizeof *keys);
    const char **values = (const char **)xcalloc(room, sizeof *values);
    char text[CONFIG_FIELDS][32];
    for (; n < p->count; n++) {
        snprintf(specs[n].name, sizeof specs[n].name, "%s", p->list[n].name);
        specs[n].dtype = DT_FLOATX;
        specs[n].ndim = p->list[n].ndim;
        specs[n].shape[0] = p->list[n].rows;
        specs[n].shape[1] = p->list[n].cols;
    }
    n += tokenizer_specs(&m->tokenizer, specs + n);
    keys[0] = "format";
    values[0] = "tikz.c/1";
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        config_get(&m->c, &config_fields[i], text[i], sizeof text[i]);
        keys[1 + i] = config_fields[i].key;
        values[1 + i] = text[i];
    }
    int pairs =
        1 + CONFIG_FIELDS + tokenizer_metadata(&m->tokenizer, keys + 1 + CONFIG_FIELDS, values + 1 + CONFIG_FIELDS);
    for (int i = 0; i < m->file.metadata_count; i++) {  // what scripts/export_hf.py needs of the tokenizer's origin
        if (strncmp(m->file.keys[i], "hub.", 4)) continue;
        keys[pairs] = m->file.keys[i];
        values[pairs++] = m->file.values[i];
    }
    SafeTensorsWriter w;
    int bad = safetensors_write_begin(&w, path, specs, n, keys, values, pairs, err);
    for (int i = 0; !bad && i < p->count; i++) {
        size_t bytes = p->list[i].n * sizeof(floatX);
        void *host = xmalloc(bytes);
        m->op->download(host, p->list[i].value, bytes);
        bad = safetensors_write_data(&w, host, bytes, err);
        free(host);
    }
    if (!bad) bad = tokenizer_write(&m->tokenizer, &w, err);
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    free(keys);
    free(values);
    return bad;
}

/* ---------------------------------------------------------------------------------------------------------------
 * Planning */

static inline void lm_plan_acts(Model *m, int l, size_t N) {
    const LmConfig *c = &m->c.lm;
    LmActs *a = &m->acts[l];
    Arena *arena = &m->arena;
    size_t W = (size_t)c->width, D = (size_t)c->head_dim, H = (size_t)c->heads, K = (size_t)c->kv_heads;
    if (l > 0) *a = m->acts[0];
    if (l == 0 || m->trained) a->input = arena_x(arena, N * W);
    if (l == 0 || ((m->trained & GROUP_LM) && m->recompute == RECOMPUTE_NONE)) {
        a->norm1 = arena_x(arena, N * W);
        a->norm2 = arena_x(arena, N * W);
        a->swiglu = arena_x(arena, N * (size_t)c->ffn);
    }
    if (l == 0 || (m->trained && m->recompute != RECOMPUTE_BLOCKS)) {
        a->qkv = arena_x(arena, N * (H + 2 * K) * D);
        a->att = arena_x(arena, N * H * D);
        a->lse = arena_f32(arena, N * H);
        a->middle = arena_x(arena, N * W);
        a->gate_up = arena_x(arena, N * 2 * (size_t)c->ffn);
        a->rstd1 = arena_f32(arena, N);
        a->rstd2 = arena_f32(arena, N);
    }
}

static inline void model_plan_pass(Model *m) {
    const LmConfig *c = &m->c.lm;
    Arena *arena = &m->arena;
    size_t B = (size_t)m->max_B, N = B * (size_t)model_sequence(m, m->max_T), W = (size_t)c->width;
    size_t n = B * (size_t)m->max_T, S = (size_t)m->c.vision.image_size;
    size_t heads = (size_t)(c->heads * c->head_dim), qkv = (size_t)((c->heads + 2 * c->kv_heads) * c->head_dim);
    size_t wide = 2 * (size_t)c->ffn;
    vision_plan(&m->vision, arena, m->max_B);
    for (int l = 0; l < c->layers; l++) lm_plan_acts(m, l, N);
    if (!m->vision.source) m->pixels = (uint8_t *)arena_take(arena, B * S * S * 3, 1);
    m->inputs = arena_int(arena, N);
    m->index = arena_int(arena, n);
    m->branch = arena_x(arena, N * W);
    m->last = arena_x(arena, N * W);
    m->picked = arena_x(arena, n * W);
    m->hidden = arena_x(arena, n * W);
    m->rstd = arena_f32(arena, n);
    if (m->trained) {
        m->d_stream = arena_x(arena, N * W);
        m->d_wide = arena_x(arena, N * (wide > qkv ? wide : qkv));
        m->d_narrow = arena_x(arena, N * (heads > (size_t)c->ffn ? heads : (size_t)c->ffn));
        m->d_hidden = arena_x(arena, n * W);
        m->d_picked = arena_x(arena, n * W);
        m->d_tokens = arena_x(arena, B * (size_t)model_image_tokens(m) * W);
    }
}

/* Buffers for passes over up to B images with up to T text tokens each. Called once, after model_train. */
static inline void model_plan(Model *m, int B, int T) {
    m->max_B = B;
    m->max_T = T;
    model_plan_pass(m);
    arena_allocate(&m->arena, m->op, "activations");
    model_plan_pass(m);
    m->host_inputs = (int *)xmalloc((size_t)B * (size_t)model_sequence(m, T) * sizeof(int));
    m->host_index = (int *)xmalloc((size_t)B * (size_t)T * sizeof(int));
    m->labels = (int *)xmalloc((size_t)B * (size_t)T * sizeof(int));
}

/* The parts in the mask are trained, the others stay frozen. Before model_plan; their gradients come from
 * optimizer_open (train/optimizer.h). */
static inline void model_train(Model *m, int parts, Recompute recompute) {
    m->trained = parts;
    m->recompute = recompute;
    m->vision.trains_encoder = (parts & GROUP_VISION) != 0;
    m->vision.trains_connector = (parts & GROUP_CONNECTOR) != 0;
    m->vision.recompute = recompute;
}

/* Whether two parameters have the same values, bit for bit. */
static inline bool param_same(const Param *a, const Ops *a_op, const Param *b, const Ops *b_op) {
    size_t bytes = a->n * sizeof(floatX);
    void *a_copy = a_op->host_memory ? NULL : xmalloc(bytes), *b_copy = b_op->host_memory ? NULL : xmalloc(bytes);
    if (a_copy) a_op->download(a_copy, a->value, bytes);
    if (b_copy) b_op->download(b_copy, b->value, bytes);
    bool same = !memcmp(a_copy ? a_copy : a->value, b_copy ? b_copy : b->value, bytes);
    free(a_copy);
    free(b_copy);
    return same;
}

/* Lets the teacher's encoder look at the images for the student too, when the student's is frozen and the same in
 * shape and weights; returns whether it is. After model_train, before model_plan. From then on the student's forward
 * passes begin with the features of the teacher's last one, which must have been over the same images; the results
 * are those the student's encoder would have had on the teacher's kind of device. Where both models share a device's
 * table the features are read in place: the teacher goes on to other images only after the student's backward
 * pass. */
static inline bool model_share_encoder(Model *student, const Model *teacher) {
    const VisionConfig *a = &student->c.vision, *b = &teacher->c.vision;
    if (student->trained & GROUP_VISION || a->image_size != b->image_size || a->patch != b->patch ||
        a->width != b->width || a->layers != b->layers || a->heads != b->heads || a->mlp != b->mlp ||
        a->activation != b->activation || a->eps != b->eps)
        return false;
    for (int i = 0; i < student->params.count; i++) {  // the encoders' are the first ones, in the same order
        const Param *p = &student->params.list[i], *q = &teacher->params.list[i];
        if (p->part == GROUP_VISION && !param_same(p, student->op, q, teacher->op)) return false;
    }
    student->vision.source = &teacher->vision;
    student->vision.source_op = teacher->op == student->op ? NULL : teacher->op;
    return true;
}

/* ---------------------------------------------------------------------------------------------------------------
 * Forward */

static inline AttentionShape lm_attention(const Model *m, int B, int T) {
    AttentionShape s;
    s.B = B;
    s.T = T;
    s.H = m->c.lm.heads;
    s.K = m->c.lm.kv_heads;
    s.D = m->c.lm.head_dim;
    s.causal = true;
    s.scale = 1 / sqrtf((float)s.D);
    s.rope = m->rope;
    return s;
}

/* From attention's output a->att to what the block's last product reads, a->swiglu. */
static inline void lm_block_to_swiglu(Model *m, int l, size_t N) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const LmLayer *y = &m->layer[l];
    LmActs *a = &m->acts[l];
    op->linear_forward(m->branch, a->att, param_weight(y->out), NULL, ACT_NONE, NULL, N);
    op->residual_rmsnorm_forward(a->middle, a->norm2, a->rstd2, a->input, m->branch, y->norm2->value, N, c->width,
                                 c->eps);
    op->linear_forward(a->gate_up, a->norm2, param_weight(y->gate_up), NULL, ACT_NONE, NULL, N);
    op->swiglu_forward(a->swiglu, a->gate_up, N, c->ffn);
}

/* From a->att to the block's second addition to the stream, in m->branch. */
static inline void lm_block_after_attention(Model *m, int l, size_t N) {
    lm_block_to_swiglu(m, l, N);
    m->op->linear_forward(m->branch, m->acts[l].swiglu, param_weight(m->layer[l].down), NULL, ACT_NONE, NULL, N);
}

/* From a->norm1 to a->att. */
static inline void lm_block_attention(Model *m, int l, int B, int S) {
    LmActs *a = &m->acts[l];
    m->op->linear_forward(a->qkv, a->norm1, param_weight(m->layer[l].qkv), NULL, ACT_NONE, NULL,
                          (size_t)B * (size_t)S);
    m->op->attention_forward(a->att, a->lse, a->qkv, lm_attention(m, B, S));
}

/* From a->norm1 to m->branch. */
static inline void lm_block(Model *m, int l, int B, int S) {
    lm_block_attention(m, l, B, S);
    lm_block_after_attention(m, l, (size_t)B * (size_t)S);
}

/* Adds the block's branch to the stream and prepares the next block; after the last one leaves the stream in m->last.
 */
static inline void lm_next(Model *m, int l, size_t N) {
    const LmConfig *c = &m->c.lm;
    if (l + 1 < c->layers) {
        LmActs *next = &m->acts[l + 1];
        m->op->residual_rmsnorm_forward(next->input, next->norm1, next->rstd1, m->acts[l].middle, m->branch,
                                        m->layer[l + 1].norm1->value, N, c->width, c->eps);
    } else {
        m->op->residual_forward(m->last, m->acts[l].middle, m->branch, N * (size_t)c->width);
    }
}

/* Lays out the decoder's input for B rows of T text ids (padding -1): ids of image positions are -1 (filled from the
 * encoder), padding reads token 0, which nothing that counts can see. Also lists the rows that predict a token, and
 * the tokens. */
static inline void model_layout(Model *m, const int *ids, int B, int T) {
    int P = model_image_tokens(m), S = model_sequence(m, T);
    if (B > m->max_B || T > m->max_T)
        die("internal error: a batch of %d x %d tokens for a model planned for %d x %d", B, T, m->max_B, m->max_T);
    m->B = B;
    m->T = T;
    m->n = 0;
    for (int b = 0; b < B; b++) {
        int *row = m->host_inputs + (size_t)b * (size_t)S;
        for (int s = 0; s < P; s++) row[s] = -1;
        for (int t = 0; t < T; t++) {
            int id = ids[(size_t)b * (size_t)T + (size_t)t];
            if (t + 1 < T) row[P + t] = id < 0 ? 0 : id;
            if (id < 0) continue;
            m->labels[m->n] = id;
            m->host_index[m->n++] = b * S + P - 1 + t;
        }
    }
    m->op->upload(m->inputs, m->host_inputs, (size_t)B * (size_t)S * sizeof(int));
    m->op->upload(m->index, m->host_index, (size_t)m->n * sizeof(int));
}

/* Host pixels u8 [B, S, S, 3] to the device, unless another model's encoder looks at them. */
static inline void model_take_pixels(Model *m, const uint8_t *pixels, int B) {
    size_t S = (size_t)m->c.vision.image_size;
    m->vision.B = B;
    if (!m->vision.source) m->op->upload(m->pixels, pixels, (size_t)B * S * S * 3);
}

/* Image tokens of host pixels u8 [B, S, S, 3], left in m->vision.tokens [B, P, W]. */
static inline void model_look(Model *m, const uint8_t *pixels, int B) {
    model_take_pixels(m, pixels, B);
    vision_forward(&m->vision, m->op, m->pixels, B);
}

/* The first block's input and its norm: image tokens followed by embeddings. */
static inline void lm_start(Model *m, int B, int S) {
    const LmConfig *c = &m->c.lm;
    LmActs *a = &m->acts[0];
    size_t N = (size_t)B * (size_t)S, row = (size_t)c->width * sizeof(floatX), P = (size_t)model_image_tokens(m);
    m->op->copy_rows(a->input, (size_t)S * row, m->vision.tokens, P * row, P * row, (size_t)B);
    m->op->embedding_forward(a->input, m->inputs, m->embed->value, N, c->width);
    m->op->rmsnorm_forward(a->norm1, a->rstd1, a->input, m->layer[0].norm1->value, N, c->width, c->eps);
}

/* Names of a pass's calls for Ops.graph_launch: they are the same for the same B and T, for every array of a model lies
 * where it lies. How many positions count differs from batch to batch, so what depends on that is not in them. */
enum { RECORDED_FORWARD, RECORDED_BACKWARD, RECORDED_BACKWARD_VISION, RECORDED_KINDS };

static inline uint64_t model_recording(int kind, int B, int T) {
    return ((uint64_t)B << 32 | (uint64_t)T) * RECORDED_KINDS + (uint64_t)kind;
}

/* One pass over host pixels [B, S, S, 3] and host ids [B, T] (-1: padding, at the end of a row). Leaves the hidden
 * states of the m->n positions that predict a token in m->hidden [n, W], in the order of the ids. */
static inline void model_forward(Model *m, const uint8_t *pixels, const int *ids, int B, int T) {
    const LmConfig *c = &m->c.lm;
    int S = model_sequence(m, T);
    model_layout(m, ids, B, T);
    model_take_pixels(m, pixels, B);
    if (m->vision.source) vision_forward(&m->vision, m->op, m->pixels, B);  // copies from another device
    if (!m->op->graph_launch(m, model_recording(RECORDED_FORWARD, B, T))) {
        if (!m->vision.source) vision_forward(&m->vision, m->op, m->pixels, B);
        lm_start(m, B, S);
        for (int l = 0; l < c->layers; l++) {
            lm_block(m, l, B, S);
            lm_next(m, l, (size_t)B * (size_t)S);
        }
        m->op->graph_end();
    }
    m->op->gather_rows(m->picked, m->last, m->index, (size_t)m->n, c->width);
    m->op->rmsnorm_forward(m->hidden, m->rstd, m->picked, m->norm->value, (size_t)m->n, c->width, c->eps);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Backward */

/* Computes again what block l has not kept, without what only the gradients of frozen weights would read. Of the last
 * block that is still there. */
static inline void lm_block_again(Model *m, int l, int B, int S) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const LmLayer *y = &m->layer[l];
    LmActs *a = &m->acts[l];
    size_t N = (size_t)B * (size_t)S;
    bool blocks = m->recompute == RECOMPUTE_BLOCKS;
    if (l + 1 == c->layers || !(blocks || (m->recompute == RECOMPUTE_ACTIVATIONS && (m->trained & GROUP_LM)))) return;
    op->rmsnorm_forward(a->norm1, a->rstd1, a->input, y->norm1->value, N, c->width, c->eps);
    if (blocks) {
        lm_block_attention(m, l, B, S);
        lm_block_to_swiglu(m, l, N);
        return;
    }
    op->rmsnorm_forward(a->norm2, a->rstd2, a->middle, y->norm2->value, N, c->width, c->eps);
    op->swiglu_forward(a->swiglu, a->gate_up, N, c->ffn);
}

static inline void lm_block_backward(Model *m, int l, int B, int S) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const LmLayer *y = &m->layer[l];
    LmActs *a = &m->acts[l];
    int W = c->width, F = c->ffn, heads = c->heads * c->head_dim, qkv = (c->heads + 2 * c->kv_heads) * c->head_dim;
    size_t N = (size_t)B * (size_t)S;
    bool trains = (m->trained & GROUP_LM) != 0;
    lm_block_again(m, l, B, S);
    if (trains) op->linear_backward_weight(y->down->gradient, NULL, m->d_stream, a->swiglu, N, W, F);
    op->linear_backward_input(m->d_narrow, m->d_stream, param_weight(y->down), N, false);
    op->swiglu_backward(m->d_wide, m->d_narrow, a->gate_up, N, F);
    if (trains) op->linear_backward_weight(y->gate_up->gradient, NULL, m->d_wide, a->norm2, N, 2 * F, W);
    op->linear_backward_input(m->branch, m->d_wide, param_weight(y->gate_up), N, false);
    op->rmsnorm_backward(m->d_stream, y->norm2->gradient, m->branch, a->middle, y->norm2->value, a->rstd2, N, W);
    if (trains) op->linear_backward_weight(y->out->gradient, NULL, m->d_stream, a->att, N, W, heads);
    op->linear_backward_input(m->d_narrow, m->d_stream, param_weight(y->out), N, false);
    op->attention_backward(m->d_wide, m->d_narrow, a->att, a->lse, a->qkv, lm_attention(m, B, S));
    if (trains) op->linear_backward_weight(y->qkv->gradient, NULL, m->d_wide, a->norm1, N, qkv, W);
    op->linear_backward_input(m->branch, m->d_wide, param_weight(y->qkv), N, false);
    op->rmsnorm_backward(m->d_stream, y->norm1->gradient, m->branch, a->input, y->norm1->value, a->rstd1, N, W);
}

/* From the gradient of the stream after the last block to that of its first input. */
static inline void lm_backward(Model *m) {
    int S = model_sequence(m, m->T);
    for (int l = m->c.lm.layers - 1; l >= 0; l--) {
        lm_block_backward(m, l, m->B, S);
        gradients_ready(&m->hook, m->layer[l].norm1);
    }
    if (m->trained & GROUP_LM)
        m->op->embedding_backward(m->embed->gradient, m->d_stream, m->inputs, (size_t)m->B * (size_t)S, m->c.lm.width,
                                  m->c.lm.vocab);
    gradients_ready(&m->hook, m->embed);
}

/* Whether these calls of the backward pass need not be made, as they have been played back. With a hook they are
 * never recorded: it sends gradients on their way, which no recording can. */
static inline bool model_replay_backward(Model *m, int kind) {
    return !m->hook.ready && m->op->graph_launch(m, model_recording(kind, m->B, m->T));
}

static inline void model_record_end(Model *m) {
    if (!m->hook.ready) m->op->graph_end();
}

/* Adds the gradients of everything that is trained. d_hidden [n, W]: the loss's gradient at m->hidden of the last
 * forward pass. d_image_tokens [B, P, W], or NULL: what else depends on the image tokens (the embedding loss). */
static inline void model_backward(Model *m, const floatX *d_hidden, const floatX *d_image_tokens) {
    const Ops *op = m->op;
    int W = m->c.lm.width;
    size_t B = (size_t)m->B, P = (size_t)model_image_tokens(m), S = (size_t)model_sequence(m, m->T), n = (size_t)m->n;
    size_t row = (size_t)W * sizeof(floatX);
    op->zero(m->d_picked, n * row);
    op->rmsnorm_backward(m->d_picked, m->norm->gradient, d_hidden, m->picked, m->norm->value, m->rstd, n, W);
    gradients_ready(&m->hook, m->norm);
    op->scatter_rows(m->d_stream, m->d_picked, m->index, n, B * S, W);
    if (!model_replay_backward(m, RECORDED_BACKWARD)) {
        lm_backward(m);
        model_record_end(m);
    }
    if (!(m->trained & (GROUP_VISION | GROUP_CONNECTOR))) return;
    op->copy_rows(m->d_tokens, P * row, m->d_stream, S * row, P * row, B);
    if (d_image_tokens) op->residual_forward(m->d_tokens, m->d_tokens, d_image_tokens, B * P * (size_t)W);
    if (!model_replay_backward(m, RECORDED_BACKWARD_VISION)) {
        vision_backward(&m->vision, op, m->d_tokens, m->B, &m->hook);
        model_record_end(m);
    }
}

/* Operations of one forward pass (multiply-add = 2): the encoder, if it looks itself, the connector, the decoder and
 * the head on n positions. A backward pass takes twice as many, without the encoder's when that is frozen. */
static inline double model_flops(const Model *m, int B, int T, int n) {
    const LmConfig *c = &m->c.lm;
    double S = model_sequence(m, T), W = c->width, heads = (double)c->heads * c->head_dim;
    double weights = W * (c->heads + 2 * c->kv_heads) * c->head_dim + heads * W + 3 * W * c->ffn;
    double per_position = c->layers * (2 * weights + 2 * S * heads);  // causal: half of 4 S heads
    double connector = 2.0 * vision_patches(&m->c.vision) * m->c.vision.width * W;
    return vision_flops(&m->vision, B) + B * (connector + S * per_position) + 2.0 * n * W * c->vocab;
}

#endif
