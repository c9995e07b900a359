/* The configuration of a model: every key once, how keys are read, written and checked, and the named shapes.
 *
 *   keys     flat in the metadata of a model file ("lm.layers" = "4") and on the command line
 *            (--student small,lm.layers=4)
 *   shapes   tiny, small, base (for the starter's figures) and tl-1.1b (DeTikZify's)
 *
 * The keys in files are older than the members' names, which are Hugging Face's: lm.width is hidden_size, lm.ffn and
 * vision.mlp are intermediate_size. doc/glossary.md has the whole list. */
#ifndef CONFIG_H
#define CONFIG_H

#include "kernels/ops.h"
#include "lib/image_size.h"
#include "lib/safetensors.h"

/* ---- the structs ---- */

typedef enum { CONNECTOR_CONCAT, CONNECTOR_SHUFFLE, CONNECTOR_STRIPS } ConnectorKind;  // see connector.h

typedef struct {
    int image_size;  // S: images are S x S pixels; the last S mod patch_size rows and columns are ignored; 0: rectangular
    int image_height, image_width;                      // of rectangular images, multiples of patch_size; 0: square
    int letter;                                         // pixels: the height that letters get; 0: images are scaled to fit
    int patch_size;                                     // p, in pixels
    int hidden_size, layers, heads, intermediate_size;  // C, L, H, M
    Activation activation;
    float eps;            // of the layer norms
    ConnectorKind connector;
    int concat;           // of kinds concat and strips: patches joined into one image token
    int scale_factor;     // block side s of kind shuffle: s x s patches make one token
    bool connector_bias;  // the connector has a bias
    int output_size;      // W: the decoder's hidden size; not a key, follows from lm.width
} VisionConfig;

typedef enum { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3 } RopeScaling;

typedef struct {
    int vocab, hidden_size, layers, heads, kv_heads, head_dim, intermediate_size;  // V, W, L, H, K, D, F
    int max_positions;                                                             // image and text together
    float eps;                                                                     // of the RMS norms
    float rope_theta;
    RopeScaling rope_scaling;
    float rope_factor, rope_low, rope_high;
    int rope_original;  // positions the model was first trained on (llama3 scaling)
    bool qkv_bias;      // queries, keys and values have a bias (Qwen2)
    bool qk_norm;       // each head of queries and keys has an RMS norm (Qwen3)
    bool tied;          // the language-model head is the token embedding
} LmConfig;

typedef struct {
    VisionConfig vision;
    LmConfig lm;
} ModelConfig;

static inline bool vision_rectangular(const VisionConfig *c) { return !c->image_size; }
static inline ImageSize vision_size(const VisionConfig *c) {
    const int side = c->image_size;
    return (ImageSize){side ? side : c->image_height, side ? side : c->image_width, c->letter};
}

/* Rows and columns of patches, and their number. */
static inline int vision_rows(const VisionConfig *c) { return vision_size(c).height / c->patch_size; }
static inline int vision_columns(const VisionConfig *c) { return vision_size(c).width / c->patch_size; }
static inline int vision_patches(const VisionConfig *c) { return vision_rows(c) * vision_columns(c); }

/* Patches that are joined into one image token, and the number of image tokens. */
static inline int vision_joined(const VisionConfig *c) {
    return c->connector == CONNECTOR_SHUFFLE ? c->scale_factor * c->scale_factor : c->concat;
}
static inline int vision_tokens(const VisionConfig *c) { return vision_patches(c) / vision_joined(c); }

/* ---- the keys ---- */

typedef enum { FIELD_INT, FIELD_FLOAT, FIELD_BOOL, FIELD_ACTIVATION, FIELD_CONNECTOR, FIELD_ROPE } FieldType;

typedef struct {
    const char *key;
    FieldType type;
    size_t offset;    // in ModelConfig
    double min, max;  // inclusive, of a number
    bool optional;    // where a file lacks it, it is 0, false or the first of the names; then it is not written, either
} ConfigField;

#define VISION_FIELD(key, type, member, min, max) \
    { key, type, offsetof(ModelConfig, vision.member), min, max, false }
#define LM_FIELD(key, type, member, min, max) \
    { key, type, offsetof(ModelConfig, lm.member), min, max, false }
static const ConfigField config_fields[] = {
    VISION_FIELD("vision.image_size", FIELD_INT, image_size, 4, 2048),
    VISION_FIELD("vision.image_height", FIELD_INT, image_height, 4, 4096),
    VISION_FIELD("vision.image_width", FIELD_INT, image_width, 4, 4096),
    {"vision.letter", FIELD_INT, offsetof(ModelConfig, vision.letter), 4, 256, .optional = true},
    VISION_FIELD("vision.patch", FIELD_INT, patch_size, 1, 64),
    VISION_FIELD("vision.width", FIELD_INT, hidden_size, 4, 16384),
    VISION_FIELD("vision.layers", FIELD_INT, layers, 1, 256),
    VISION_FIELD("vision.heads", FIELD_INT, heads, 1, 256),
    VISION_FIELD("vision.mlp", FIELD_INT, intermediate_size, 1, 65536),
    VISION_FIELD("vision.activation", FIELD_ACTIVATION, activation, 0, 0),
    VISION_FIELD("vision.eps", FIELD_FLOAT, eps, 0, 1),
    {"connector.kind", FIELD_CONNECTOR, offsetof(ModelConfig, vision.connector), 0, 0, .optional = true},
    {"connector.scale_factor", FIELD_INT, offsetof(ModelConfig, vision.scale_factor), 1, 16, .optional = true},
    VISION_FIELD("connector.concat", FIELD_INT, concat, 1, 64),
    VISION_FIELD("connector.bias", FIELD_BOOL, connector_bias, 0, 1),
    LM_FIELD("lm.vocab", FIELD_INT, vocab, 2, 1 << 20),
    LM_FIELD("lm.width", FIELD_INT, hidden_size, 4, 16384),
    LM_FIELD("lm.layers", FIELD_INT, layers, 1, 256),
    LM_FIELD("lm.heads", FIELD_INT, heads, 1, 256),
    LM_FIELD("lm.kv_heads", FIELD_INT, kv_heads, 1, 256),
    LM_FIELD("lm.head_dim", FIELD_INT, head_dim, 2, 512),
    LM_FIELD("lm.ffn", FIELD_INT, intermediate_size, 1, 65536),
    LM_FIELD("lm.max_positions", FIELD_INT, max_positions, 2, 1 << 17),
    LM_FIELD("lm.eps", FIELD_FLOAT, eps, 0, 1),
    LM_FIELD("lm.rope_theta", FIELD_FLOAT, rope_theta, 1, 1e9),
    LM_FIELD("lm.rope_scaling", FIELD_ROPE, rope_scaling, 0, 0),
    LM_FIELD("lm.rope_factor", FIELD_FLOAT, rope_factor, 1e-3, 1e6),
    LM_FIELD("lm.rope_low", FIELD_FLOAT, rope_low, 0, 1e6),
    LM_FIELD("lm.rope_high", FIELD_FLOAT, rope_high, 0, 1e6),
    LM_FIELD("lm.rope_original", FIELD_INT, rope_original, 1, 1 << 24),
    {"lm.qkv_bias", FIELD_BOOL, offsetof(ModelConfig, lm.qkv_bias), 0, 1, .optional = true},
    {"lm.qk_norm", FIELD_BOOL, offsetof(ModelConfig, lm.qk_norm), 0, 1, .optional = true},
    LM_FIELD("lm.tied", FIELD_BOOL, tied, 0, 1),
};
enum { CONFIG_FIELDS = sizeof config_fields / sizeof config_fields[0] };

static const char *const activation_names[] = {"none", "gelu_tanh", "gelu"};
static const char *const connector_names[] = {"concat", "shuffle", "strips"};
static const char *const rope_names[] = {"none", "linear", "llama3"};

/* Whether the key applies: images are square (vision.image_size) or rectangular (vision.image_height, image_width), and the
 * connector joins blocks of scale_factor or a number of patches. */
static inline bool config_applies(const ModelConfig *c, const ConfigField *f) {
    if (!strcmp(f->key, "connector.concat")) return c->vision.connector != CONNECTOR_SHUFFLE;
    return strncmp(f->key, "vision.image_", 13) ||
           vision_rectangular(&c->vision) == (strcmp(f->key, "vision.image_size") != 0);
}

/* Whether a model file has the key. */
static inline bool config_stored(const ModelConfig *c, const ConfigField *f) {
    const void *member = (const char *)c + f->offset;
    if (f->optional && !(f->type == FIELD_BOOL ? *(const bool *)member : *(const int *)member != 0)) return false;
    return config_applies(c, f);
}

/* The index of `text` among names, or -1. */
static inline int name_index(const char *text, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(text, names[i])) return i;
    return -1;
}

/* Sets one key from its text; `where` is what the error sentence begins with. */
static inline int config_set(ModelConfig *c, const ConfigField *f, const char *text, const char *where, Error *err) {
    void *member = (char *)c + f->offset;
    char *end = NULL;
    double number = strtod(text, &end);
    bool is_number = end != text && *end == 0 && number >= f->min && number <= f->max;
    int name;
    switch (f->type) {
    case FIELD_INT:
        if (!is_number || number != floor(number)) break;
        *(int *)member = (int)number;
        return 0;
    case FIELD_FLOAT:
        if (!is_number) break;
        *(float *)member = (float)number;
        return 0;
    case FIELD_BOOL:
        if (strcmp(text, "true") && strcmp(text, "false")) break;
        *(bool *)member = text[0] == 't';
        return 0;
    case FIELD_ACTIVATION:
        if ((name = name_index(text, activation_names, 3)) < 1) break;
        *(Activation *)member = (Activation)name;
        return 0;
    case FIELD_CONNECTOR:
        if ((name = name_index(text, connector_names, 3)) < 0) break;
        *(ConnectorKind *)member = (ConnectorKind)name;
        return 0;
    case FIELD_ROPE:
        if ((name = name_index(text, rope_names, 3)) < 0) break;
        *(RopeScaling *)member = (RopeScaling)name;
        return 0;
    }
    if (f->type == FIELD_INT || f->type == FIELD_FLOAT)
        return error_set(err, "%s: %s is \"%.40s\"; expected a number from %g to %g", where, f->key, text, f->min,
                         f->max);
    return error_set(err, "%s: %s is \"%.40s\"; expected %s", where, f->key, text,
                     f->type == FIELD_ACTIVATION  ? "gelu_tanh or gelu"
                     : f->type == FIELD_CONNECTOR ? "concat, shuffle or strips"
                     : f->type == FIELD_ROPE      ? "none, linear or llama3"
                                                  : "true or false");
}

/* The text of one key, as config_set reads it. */
static inline void config_get(const ModelConfig *c, const ConfigField *f, char *text, size_t size) {
    const void *member = (const char *)c + f->offset;
    switch (f->type) {
    case FIELD_INT: snprintf(text, size, "%d", *(const int *)member); break;
    case FIELD_FLOAT: snprintf(text, size, "%.9g", *(const float *)member); break;
    case FIELD_BOOL: snprintf(text, size, "%s", *(const bool *)member ? "true" : "false"); break;
    case FIELD_ACTIVATION: snprintf(text, size, "%s", activation_names[*(const Activation *)member]); break;
    case FIELD_CONNECTOR: snprintf(text, size, "%s", connector_names[*(const ConnectorKind *)member]); break;
    case FIELD_ROPE: snprintf(text, size, "%s", rope_names[*(const RopeScaling *)member]); break;
    }
}

/* Checks what no single key shows, and fills output_size. */
static inline int config_check(ModelConfig *c, const char *where, Error *err) {
    VisionConfig *v = &c->vision;
    LmConfig *l = &c->lm;
    v->output_size = l->hidden_size;
    const ImageSize s = vision_size(v);
    if (!vision_rectangular(v) && v->image_size < v->patch_size)
        return error_set(err, "%s: vision.image_size %d is smaller than vision.patch %d", where, v->image_size,
                         v->patch_size);
    if (!s.height || !s.width)
        return error_set(err, "%s: vision.image_height and vision.image_width belong together; one is missing",
                         where);
    if (vision_rectangular(v) && (s.height % v->patch_size || s.width % v->patch_size))
        return error_set(err, "%s: images of %d x %d pixels are not multiples of vision.patch %d", where, s.height,
                         s.width, v->patch_size);
    if (v->letter && !vision_rectangular(v))
        return error_set(err, "%s: vision.letter is for rectangular images (vision.image_height, image_width)", where);
    if (v->letter > s.height)
        return error_set(err, "%s: vision.letter %d is higher than the images, %d pixels", where, v->letter, s.height);
    if (v->hidden_size % v->heads)
        return error_set(err, "%s: vision.width %d is not a multiple of vision.heads %d", where, v->hidden_size,
                         v->heads);
    if ((v->connector == CONNECTOR_SHUFFLE) != (v->scale_factor > 0))
        return error_set(err, "%s: connector.kind shuffle and connector.scale_factor belong together; one is missing", where);
    if (v->scale_factor && (vision_rows(v) % v->scale_factor || vision_columns(v) % v->scale_factor))
        return error_set(err, "%s: %d x %d patches cannot be joined in blocks of %d x %d (connector.scale_factor)", where,
                         vision_rows(v), vision_columns(v), v->scale_factor, v->scale_factor);
    if (!v->scale_factor && vision_patches(v) % v->concat)
        return error_set(err, "%s: %d patches cannot be joined in groups of connector.concat %d", where,
                         vision_patches(v), v->concat);
    if (v->connector == CONNECTOR_STRIPS && v->concat % vision_rows(v))
        return error_set(err, "%s: connector.concat %d is not a multiple of the %d rows of patches (kind strips)", where, v->concat,
                         vision_rows(v));
    if (l->heads % l->kv_heads)
        return error_set(err, "%s: lm.heads %d is not a multiple of lm.kv_heads %d", where, l->heads, l->kv_heads);
    if (l->head_dim % 2)
        return error_set(err, "%s: lm.head_dim %d is odd; rotary positions need an even one", where, l->head_dim);
    if (l->max_positions <= vision_tokens(v))
        return error_set(err, "%s: lm.max_positions %d leaves no room for text after %d image tokens", where,
                         l->max_positions, vision_tokens(v));
    if (l->rope_scaling == ROPE_LLAMA3 && !(l->rope_high > l->rope_low && l->rope_low > 0))
        return error_set(err, "%s: llama3 scaling needs 0 < lm.rope_low < lm.rope_high, found %g and %g", where,
                         l->rope_low, l->rope_high);
    return 0;
}

/* Reads the configuration of a model file. */
static inline int config_load(ModelConfig *c, const SafeTensors *st, Error *err) {
    memset(c, 0, sizeof *c);
    const char *format = safetensors_metadata(st, "format");
    if (!format || strcmp(format, "tikz.c/1"))
        return error_set(err,
                         "%s: not a tikz.c model (metadata format is %s, expected tikz.c/1); Hugging Face weights "
                         "must be converted first",
                         st->file.path, format ? format : "missing");
    c->vision.image_size = !safetensors_metadata(st, "vision.image_height");  // which of the image's keys are read
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        const bool optional = config_fields[i].optional;
        if (!optional && !config_applies(c, &config_fields[i])) continue;
        const char *text = safetensors_metadata(st, config_fields[i].key);
        if (!text && optional) continue;
        if (!text)
            return error_set(err, "%s: the config key %s is missing from the metadata", st->file.path,
                             config_fields[i].key);
        if (config_set(c, &config_fields[i], text, st->file.path, err)) return -1;
    }
    return config_check(c, st->file.path, err);
}

/* ---- the named shapes ---- */

static inline VisionConfig vision_shape(int image_size, int patch_size, int hidden_size, int layers, int heads) {
    return (VisionConfig){.image_size = image_size,
                          .patch_size = patch_size,
                          .hidden_size = hidden_size,
                          .layers = layers,
                          .heads = heads,
                          .intermediate_size = 4 * hidden_size,
                          .activation = ACT_GELU_TANH,
                          .eps = 1e-6f,
                          .concat = 3,
                          .connector_bias = false};  // as DeTikZify v2 and v2.5
}

static inline LmConfig lm_shape(int hidden_size, int layers, int heads, int kv_heads, int intermediate_size,
                                int max_positions) {
    return (LmConfig){.hidden_size = hidden_size,
                      .layers = layers,
                      .heads = heads,
                      .kv_heads = kv_heads,
                      .head_dim = hidden_size / heads,
                      .intermediate_size = intermediate_size,
                      .max_positions = max_positions,
                      .eps = 1e-5f,
                      .rope_theta = 1e4f,
                      .rope_factor = 1,
                      .rope_low = 1,
                      .rope_high = 4,
                      .rope_original = max_positions};
}

/* Reads "NAME[,key=value]...": a named shape, changed key by key. The vocabulary comes from the tokenizer. */
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
        c->vision.intermediate_size = 4304;
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
        if (!strcmp(item, "vision.image_size"))
            c->vision.image_height = c->vision.image_width = 0;  // square or rectangular: as the last key says
        else if (!strncmp(item, "vision.image_", 13))
            c->vision.image_size = 0;
    }
    return config_check(c, "model shape", err);
}

#endif
