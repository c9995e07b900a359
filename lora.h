/* Low-rank adapters of a model: which layers have one, how they start, their file, and merging them into the weights.
 * The layers themselves are in linear.h.
 *
 * An adapter file is one safetensors file, a few hundredths of the model's size:
 *
 *   NAME.lora_A [r, I], NAME.lora_B [r, O] (B transposed)       for every layer NAME, for example lm.0.qkv
 *   metadata: format = tikz.c/lora/1, lora.rank, lora.alpha, lora.dropout, lora.targets,
 *             lora.base (fingerprint of the model that it was trained on), lora.base_name (its path then)
 *
 * qkv and gate_up are one matrix each here, so q, k and v share A, and so do gate and up; B's rows are those of q, then k,
 * then v. That is exact in the other direction too: three projections with the same A and their parts of B. */
#ifndef LORA_H
#define LORA_H

#include "lib/hash.h"
#include "model.h"

typedef struct {
    int rank;
    double alpha, dropout;
    unsigned targets;
} LoraConfig;

/* ---- targets ---- */

typedef struct {
    const char *name, *prefix, *suffix;  // parameters PREFIX[LAYER.]SUFFIX
    int group;
} LoraTarget;

static const LoraTarget lora_targets[] = {
    {"qkv", "lm.", "qkv.weight", GROUP_LM},
    {"out", "lm.", "out.weight", GROUP_LM},
    {"gate_up", "lm.", "gate_up.weight", GROUP_LM},
    {"down", "lm.", "down.weight", GROUP_LM},
    {"vision.qkv", "vision.", "qkv.weight", GROUP_VISION},
    {"vision.proj", "vision.", "proj.weight", GROUP_VISION},
    {"vision.fc1", "vision.", "fc1.weight", GROUP_VISION},
    {"vision.fc2", "vision.", "fc2.weight", GROUP_VISION},
    {"connector", "connector.", "weight", GROUP_CONNECTOR},
};
enum { LORA_TARGETS = sizeof lora_targets / sizeof lora_targets[0] };

/* The bits that a name stands for: a target, or several of them. 0: it names nothing. */
static inline unsigned lora_target_bits(const char *name) {
    unsigned bits = 0;
    for (int i = 0; i < LORA_TARGETS; i++) {
        const int group = lora_targets[i].group;
        if (!strcmp(name, lora_targets[i].name) || !strcmp(name, "all") ||
            (group == GROUP_LM && !strcmp(name, "lm")) || (group == GROUP_VISION && !strcmp(name, "vision")))
            bits |= 1u << i;
    }
    return bits;
}

/* Reads names with commas between them. -1 with *err filled where one names nothing. */
static inline int lora_targets_parse(unsigned *targets, const char *text, Error *err) {
    char copy[256], *rest = NULL;
    *targets = 0;
    if (strlen(text) >= sizeof copy) return error_set(err, "the list of layers is longer than 255 characters");
    snprintf(copy, sizeof copy, "%s", text);
    for (char *name = strtok_r(copy, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        const unsigned bits = lora_target_bits(name);
        if (!bits)
            return error_set(
                err,
                "there is no layer \"%.40s\"; the layers are qkv, out, gate_up and down of the decoder (or "
                "lm), vision.qkv, vision.proj, vision.fc1 and vision.fc2 (or vision), and connector; all "
                "names all of them",
                name);
        *targets |= bits;
    }
    return *targets ? 0 : error_set(err, "no layer is named");
}

/* Writes the names of targets as lora_targets_parse reads them. */
static inline void lora_targets_write(char *text, size_t size, unsigned targets) {
    size_t length = 0;
    text[0] = 0;
    for (int i = 0; i < LORA_TARGETS && length < size; i++)
        if (targets >> i & 1)
            length += (size_t)snprintf(text + length, size - length, "%s%s", length ? "," : "", lora_targets[i].name);
}

/* The parameter groups in which the targets are. */
static inline int lora_groups(unsigned targets) {
    int groups = 0;
    for (int i = 0; i < LORA_TARGETS; i++)
        if (targets >> i & 1) groups |= lora_targets[i].group;
    return groups;
}

/* Whether a parameter is the weight of one of the targets. */
static inline bool lora_is_target(const Param *p, unsigned targets) {
    for (int i = 0; i < LORA_TARGETS; i++) {
        const LoraTarget *t = &lora_targets[i];
        const size_t prefix = strlen(t->prefix);
        if (!(targets >> i & 1) || strncmp(p->name, t->prefix, prefix)) continue;
        const char *rest = p->name + prefix;
        if (t->group != GROUP_CONNECTOR) rest += strspn(rest, "0123456789");
        if (rest > p->name + prefix && *rest == '.') rest++;
        if (!strcmp(rest, t->suffix)) return true;
    }
    return false;
}

/* ---- the base ---- */

/* A model's fingerprint: of its configuration, its tokenizer, and 16 runs of 64 numbers of each tensor, rounded to bf16 so
 * that both builds of this program agree. Read from the model's file, which must hold unquantised weights. */
static inline uint64_t lora_fingerprint(const Model *m) {
    enum { RUNS = 16, RUN = 64 };
    uint64_t hash = hash_bytes(HASH_BEGIN, &m->tokenizer.fingerprint, sizeof m->tokenizer.fingerprint);
    const char *const markers[] = {m->tokenizer.before_image.text, m->tokenizer.after_image.text};
    char text[32];
    for (int i = 0; i < 2; i++)
        if (markers[i] && *markers[i]) hash = hash_bytes(hash_bytes(hash, &i, sizeof i), markers[i], strlen(markers[i]) + 1);
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        if (!config_stored(&m->c, &config_fields[i])) continue;
        config_get(&m->c, &config_fields[i], text, sizeof text);
        hash = hash_bytes(hash, text, strlen(text) + 1);
    }
    for (int i = 0; i < m->params.count; i++) {
        const Param *p = &m->params.list[i];
        const SafeTensor *t = safetensors_find(&m->file, p->name);
        const size_t length = p->n < RUN ? p->n : RUN, runs = p->n <= RUN ? 1 : RUNS;
        hash = hash_bytes(hash, p->name, strlen(p->name));
        for (size_t run = 0; run < runs && t && t->bytes / dtype_size(t->dtype) == p->n; run++) {
            const size_t from = runs > 1 ? (p->n - length) / (runs - 1) * run : 0;
            bf16 values[RUN];
            for (size_t k = 0; k < length; k++) values[k] = f32_to_bf16(safetensors_float(t, from + k));
            hash = hash_bytes(hash, values, length * sizeof *values);
        }
    }
    return hash;
}

/* -1 with *err filled where the model is stored in 8 or 4 bits: an adapter belongs to the weights as they were. */
static inline int lora_check_base(const Model *m, Error *err) {
    for (int i = 0; i < m->params.count; i++) {
        const SafeTensor *t = safetensors_find(&m->file, m->params.list[i].name);
        if (t && dtype_is_quantised(t->dtype))
            return error_set(
                err,
                "%s has weights of %d bits, and an adapter needs the model that it was made of: name that "
                "one; infer and eval also take --weights q8 or q4",
                m->file.file.path, t->dtype == DT_I8 ? 8 : 4);
    }
    return 0;
}

/* ---- making ---- */

static inline int lora_check_rank(const Model *m, const LoraConfig *c, const char *where, Error *err) {
    for (int i = 0; i < m->params.count; i++) {
        const Param *p = &m->params.list[i];
        const int most = p->rows < p->cols ? p->rows : p->cols;
        if (lora_is_target(p, c->targets) && c->rank > most)
            return error_set(err, "%s: rank %d is too large: %s is a matrix of %d x %d, whose rank is at most %d",
                             where, c->rank, p->name, p->rows, p->cols, most);
    }
    return 0;
}

/* Declares A and B of every target, and puts them beside their weights. */
static inline void lora_declare(Model *m, const LoraConfig *c) {
    Lora *s = xcalloc(1, sizeof *s);
    *s = (Lora){.rank = c->rank, .alpha = c->alpha, .dropout = c->dropout, .targets = c->targets};
    params_reserve(&s->params, 2 * m->params.count, "the adapters' ");
    s->layer = xcalloc((size_t)m->params.count, sizeof *s->layer);
    for (int i = 0; i < m->params.count; i++) {
        Param *p = &m->params.list[i];
        char name[sizeof p->name - 8];
        if (!lora_is_target(p, c->targets)) continue;
        LoraLayer *l = &s->layer[s->layers];
        snprintf(name, sizeof name, "%.*s", (int)(strrchr(p->name, '.') - p->name), p->name);
        l->shared = s;
        l->weight = p;
        l->number = s->layers++;
        l->a = param_add(&s->params, p->group, name, -1, ".lora_A", c->rank, p->cols, 0);
        l->b = param_add(&s->params, p->group, name, -1, ".lora_B", c->rank, p->rows, 0);
        l->a->least_bits = l->b->least_bits = 16;
        l->lowest = l->number == 0;  // parameters are declared in the order of the forward pass
        p->lora = l;
    }
    m->lora = s;
}

/* The dropout's key on the device; 0. */
static inline void lora_allocate_key(Lora *s, const Ops *op) {
    if (s->dropout <= 0) return;
    arena_take(&s->arena, 1, sizeof *s->key);
    arena_allocate(&s->arena, op, "", "the dropout's key");
    s->key = arena_take(&s->arena, 1, sizeof *s->key);
}

/* New adapters beside a model that was opened from a file: A uniform in -1/√I .. 1/√I, as PEFT has it (He et al. 2015 with
 * the a = √5 of PyTorch's linear layers), B zero, so that they change nothing yet. */
static inline int lora_create(Model *m, const LoraConfig *c, uint64_t seed, Error *err) {
    if (lora_check_base(m, err) || lora_check_rank(m, c, m->file.file.path, err)) return -1;
    lora_declare(m, c);
    Lora *s = m->lora;
    params_allocate(&s->params, m->op);
    lora_allocate_key(s, m->op);
    s->base = lora_fingerprint(m);
    for (int i = 0; i < s->layers; i++) {
        const Param *a = s->layer[i].a;
        Random rng;
        random_seed3(&rng, seed, 0x4c6f5241, (uint64_t)i);
        floatX *host = xmalloc(a->n * sizeof *host);
        const double bound = 1 / sqrt((double)a->cols);
        for (size_t k = 0; k < a->n; k++) host[k] = to_x((float)(bound * (2 * random_uniform(&rng) - 1)));
        m->op->upload(a->value, host, a->n * sizeof *host);
        free(host);
    }
    return 0;
}

/* Chooses what the next passes drop; 0: nothing, as at inference. */
static inline void lora_set_dropout(const Model *m, uint64_t key) {
    if (m->lora && m->lora->key) m->op->upload(m->lora->key, &key, sizeof key);
}

/* ---- files ---- */

enum { LORA_KEYS = 7 };

static inline int lora_save(const Model *m, const char *path, Error *err) {
    static const char *const keys[LORA_KEYS] = {"format",       "lora.rank", "lora.alpha",    "lora.dropout",
                                                "lora.targets", "lora.base", "lora.base_name"};
    const Lora *s = m->lora;
    char rank[16], alpha[40], dropout[40], targets[256], base[24];
    const char *const values[LORA_KEYS] = {"tikz.c/lora/1", rank, alpha, dropout, targets, base, m->file.file.path};
    snprintf(rank, sizeof rank, "%d", s->rank);
    snprintf(alpha, sizeof alpha, "%.17g", s->alpha);
    snprintf(dropout, sizeof dropout, "%.17g", s->dropout);
    lora_targets_write(targets, sizeof targets, s->targets);
    snprintf(base, sizeof base, "%016llx", (unsigned long long)s->base);
    SafeTensorSpec *specs = xcalloc((size_t)s->params.count + 1, sizeof *specs);
    SafeTensorsWriter w;
    int bad = safetensors_write_begin(&w, path, specs, params_specs(&s->params, specs), keys, values, LORA_KEYS, err);
    if (!bad) bad = params_write(&s->params, m->op, &w, err);
    if (!bad) bad = safetensors_write_end(&w, err);
    free(specs);
    return bad;
}

/* Reads a number of the metadata in least .. most. */
static inline int lora_number(double *x, const SafeTensors *st, const char *key, double least, double most,
                              Error *err) {
    const char *text = safetensors_metadata(st, key);
    char *end = NULL;
    *x = text ? strtod(text, &end) : NAN;
    if (text && end != text && *end == 0 && *x >= least && *x <= most) return 0;
    return error_set(err, "%s: the metadata %s is %s%.40s%s; expected a number from %g to %g", st->file.path, key,
                     text ? "\"" : "", text ? text : "missing", text ? "\"" : "", least, most);
}

static inline int lora_read_config(LoraConfig *c, const SafeTensors *st, Error *err) {
    const char *format = safetensors_metadata(st, "format"), *path = st->file.path;
    const char *targets = safetensors_metadata(st, "lora.targets");
    double rank;
    Error why;
    if (!format || strcmp(format, "tikz.c/lora/1"))
        return error_set(err, "%s: not an adapter of tikz.c (metadata format is %.40s, expected tikz.c/lora/1)", path,
                         format ? format : "missing");
    if (lora_number(&rank, st, "lora.rank", 1, 65536, err) ||
        lora_number(&c->alpha, st, "lora.alpha", 1e-6, 1e6, err) ||
        lora_number(&c->dropout, st, "lora.dropout", 0, 0.99, err))
        return -1;
    c->rank = (int)rank;
    if (c->rank != rank) return error_set(err, "%s: lora.rank is %g; expected a whole number", path, rank);
    if (!targets) return error_set(err, "%s: the metadata lora.targets is missing", path);
    return lora_targets_parse(&c->targets, targets, &why) ? error_set(err, "%s: lora.targets: %s", path, why.text)
                                                          : 0;
}

/* -1 with *err filled unless the adapter file was trained on this model, whose fingerprint this is. */
static inline int lora_check_fingerprint(const Model *m, uint64_t fingerprint, const SafeTensors *st, Error *err) {
    const char *text = safetensors_metadata(st, "lora.base"), *name = safetensors_metadata(st, "lora.base_name");
    char base[24];
    snprintf(base, sizeof base, "%016llx", (unsigned long long)fingerprint);
    if (text && !strcmp(text, base)) return 0;
    return error_set(err, "%s is an adapter of another model than %s; it was trained on %.200s", st->file.path,
                     m->file.file.path, name ? name : "one that it does not name");
}

/* Puts the adapters of a file beside the weights of the model that they were trained on. -1 with *err filled, and the model
 * as it was, where that is not possible. */
static inline int lora_open(Model *m, const char *path, Error *err) {
    SafeTensors st;
    LoraConfig c = {0};
    if (lora_check_base(m, err) || safetensors_open(&st, path, err)) return -1;
    const SafeTensor *damaged = NULL;
    const uint64_t base = lora_fingerprint(m);
    int bad = lora_read_config(&c, &st, err) || lora_check_fingerprint(m, base, &st, err) ||
              lora_check_rank(m, &c, path, err);
    if (!bad && (damaged = safetensors_not_finite(&st)))
        bad = error_set(err, "%s is damaged: its tensor %s holds a value that is not finite", path, damaged->name);
    if (bad) {
        safetensors_close(&st);
        return -1;
    }
    c.dropout = 0;  // of training alone
    lora_declare(m, &c);
    m->lora->file = st;
    m->lora->base = base;
    if (!params_load(&m->lora->params, &m->lora->file, m->op, WEIGHTS_AS_STORED, err)) return 0;
    for (int i = 0; i < m->lora->layers; i++) m->lora->layer[i].weight->lora = NULL;
    lora_free(m->lora, m->op);
    m->lora = NULL;
    return -1;
}

/* ---- merging ---- */

/* merged [O, I] = W + s B A, in fp32, rounded to floatX once. */
static inline void lora_merge_layer(floatX *merged, const LoraLayer *l) {
    const Param *w = l->weight;
    const int I = w->cols, r = l->shared->rank;
    const float scale = (float)(l->shared->alpha / r);
#pragma omp parallel
    {
        float *row = xmalloc((size_t)I * sizeof *row);
#pragma omp for schedule(static)
        for (int o = 0; o < w->rows; o++) {
            const size_t at = (size_t)o * I;
            memset(row, 0, (size_t)I * sizeof *row);
            for (int k = 0; k < r; k++) {
                const float b = scale * from_x(l->b->value[(size_t)k * w->rows + o]);
                const floatX *a = l->a->value + (size_t)k * I;
                for (int i = 0; i < I; i++) row[i] += b * from_x(a[i]);
            }
            for (int i = 0; i < I; i++) merged[at + i] = to_x(from_x(w->value[at + i]) + row[i]);
        }
        free(row);
    }
}

/* Merges the adapters of a model on the CPU into its weights, which are floatX: it computes the same from then on, to
 * rounding, without them. */
static inline void lora_merge(Model *m) {
    Lora *s = m->lora;
    Arena merged = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        if (pass) arena_allocate(&merged, m->op, "", "merged weights");
        for (int i = 0; i < s->layers; i++) {
            LoraLayer *l = &s->layer[i];
            floatX *to = arena_x(&merged, l->weight->n);
            if (!pass) continue;
            lora_merge_layer(to, l);
            l->weight->value = to;
            l->weight->in_file = false;
            l->weight->lora = NULL;
        }
    }
    arena_release(&s->arena, m->op);
    s->arena = merged;
    s->key = NULL;
}

#endif
