/* --init: what a new student starts from.
 *
 * Layers of another depth are taken at even spacing, the first for the first and the last for the last (Sanh et al. 2019,
 * "DistilBERT", take every other layer); or the most influential ones are kept, in their order; or those of a list. A tensor is
 * copied where its name and shape then agree. Of the position embeddings of rectangular images' rows and columns, as many are
 * copied as both models have, so that images may be larger than before.
 *
 * --init-width importance also cuts tensors that are wider than the student's. It keeps the parts that train/importance.h
 * measures as the largest:
 *
 *   channels   of the residual stream, the same in all blocks: columns and rows of everything that reads and writes it
 *   heads      in each layer, groups of a key head and its query heads, and within the groups the query heads
 *   neurons    of each layer's MLP
 *
 * Without the dropped channels a norm finds another mean square and would scale what is left by another factor. Its weight is
 * multiplied by the square root of (mean square of the kept channels / of all), as measured, so that the kept channels come
 * out as before. */
#ifndef TRAIN_INIT_H
#define TRAIN_INIT_H

#include "../lib/progress.h"
#include "importance.h"

enum {
    INIT_LAYERS = 256,  // at most: a model has no more layers (config.h)
    INIT_IMAGES = 256   // of the training data, to measure on
};

typedef enum { INIT_EVEN, INIT_IMPORTANCE, INIT_LIST } InitLayers;

typedef struct {
    const char *path;  // the other model; NULL: random weights
    bool must_match;   // end the program where nothing of it can be taken
    InitLayers layers;
    int list_count, list[INIT_LAYERS];  // of the language model, counted from 1
    bool width;                         // cut what is wider
    const char *data;                   // to measure on
    int max_tokens;                     // of its texts; 0: as many as the model takes
    int images;                         // how many of it
    uint64_t seed;
    bool verbose;
} InitConfig;

/* What a tower of the student takes from one of the other model; index lists are ascending. */
typedef struct {
    TowerShape from, to;
    int layer[INIT_LAYERS];             // [to.layers]
    int *channel, *head, *kv, *neuron;  // [to.width], [to.layers, to.heads], ...: NULL: no width is cut
    double *norm_factor;                // [to.layers, 2], and of the last norm
} Cut;

/* Reads "even", "importance" or "1,2,4". */
static inline int init_layers_parse(InitConfig *c, const char *text, Error *err) {
    c->layers = !strcmp(text, "even") ? INIT_EVEN : !strcmp(text, "importance") ? INIT_IMPORTANCE : INIT_LIST;
    if (c->layers != INIT_LIST) return 0;
    for (const char *at = text; c->list_count < INIT_LAYERS; at++) {
        int length = 0, *layer = &c->list[c->list_count++];
        if (sscanf(at, "%4d%n", layer, &length) != 1 || *layer < 1 || !strchr(",", at[length])) break;
        at += length;
        if (!*at) return 0;
    }
    return error_set(err, "'%.40s' is not even, importance, nor layers counted from 1, such as 1,2,4", text);
}

/* ---- choosing ---- */

typedef struct {
    double value;
    int index;
} Ranked;

static inline int ranked_compare(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->index - y->index;
}

static inline int index_compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The indices of the k largest of n values, ascending; of equal values the first are taken. */
static inline void keep_largest(int *kept, int k, const double *value, int n) {
    Ranked *ranked = xcalloc(n, sizeof *ranked);
    for (int i = 0; i < n; i++) ranked[i] = (Ranked){value[i], i};
    qsort(ranked, n, sizeof *ranked, ranked_compare);
    for (int i = 0; i < k; i++) kept[i] = ranked[i].index;
    qsort(kept, k, sizeof *kept, index_compare);
    free(ranked);
}

/* Key heads kv [to.kv_heads] by the sum of their query heads' importance, and for each of them its query heads. */
static inline void keep_heads(int *head, int *kv, const double *importance, const TowerShape *from,
                              const TowerShape *to) {
    const int group = from->heads / from->kv_heads, kept = to->heads / to->kv_heads;
    double *sums = xcalloc(from->kv_heads, sizeof *sums);
    for (int h = 0; h < from->heads; h++) sums[h / group] += importance[h];
    keep_largest(kv, to->kv_heads, sums, from->kv_heads);
    for (int k = 0; k < to->kv_heads; k++) {
        keep_largest(head + k * kept, kept, importance + kv[k] * group, group);
        for (int i = 0; i < kept; i++) head[k * kept + i] += kv[k] * group;
    }
    free(sums);
}

/* What the weight of a norm is multiplied by. energy [from.width] of all channels that it has normalised. */
static inline double norm_factor(const Cut *cut, const double *energy) {
    double all = 0, kept = 0;
    for (int i = 0; i < cut->from.width; i++) all += energy[i];
    for (int i = 0; i < cut->to.width; i++) kept += energy[cut->channel[i]];
    if (cut->to.width == cut->from.width || all <= 0) return 1;
    return sqrt(kept / cut->to.width / (all / cut->from.width));
}

static inline void cut_choose_width(Cut *cut, const Importance *t) {
    const TowerShape *from = &cut->from, *to = &cut->to;
    const size_t L = (size_t)to->layers;
    cut->channel = xcalloc(to->width, sizeof(int));
    cut->head = xcalloc(L * to->heads, sizeof(int));
    cut->kv = xcalloc(L * to->kv_heads, sizeof(int));
    cut->neuron = xcalloc(L * to->neurons, sizeof(int));
    cut->norm_factor = xcalloc(2 * L + 1, sizeof(double));
    keep_largest(cut->channel, to->width, t->channel, from->width);
    for (size_t l = 0; l < L; l++) {
        const size_t s = (size_t)cut->layer[l];
        keep_heads(cut->head + l * to->heads, cut->kv + l * to->kv_heads, t->head + s * from->heads, from, to);
        keep_largest(cut->neuron + l * to->neurons, to->neurons, t->neuron + s * from->neurons, from->neurons);
        for (size_t i = 0; i < 2; i++)
            cut->norm_factor[2 * l + i] = norm_factor(cut, t->energy + (2 * s + i) * from->width);
    }
    cut->norm_factor[2 * L] = norm_factor(cut, t->energy + 2 * (size_t)from->layers * from->width);
}

static inline void cut_free(Cut *cut) {
    free(cut->channel);
    free(cut->head);
    free(cut->kv);
    free(cut->neuron);
    free(cut->norm_factor);
}

/* The layers that the student's start from. t: measured, or NULL. */
static inline void cut_choose_layers(Cut *cut, const InitConfig *c, bool lm, const Importance *t) {
    const int n = cut->to.layers, m = cut->from.layers;
    if (c->layers == INIT_IMPORTANCE)
        keep_largest(cut->layer, n, t->influence, m);
    else
        for (int l = 0; l < n; l++)
            cut->layer[l] = c->layers == INIT_LIST && lm ? c->list[l] - 1
                            : n > 1                      ? (l * (m - 1) + (n - 1) / 2) / (n - 1)
                                                         : 0;
}

/* ---- what cannot be taken ---- */

/* Ends the program where the layers that are asked for do not exist, or do not fit the student. */
static inline void init_check_layers(const InitConfig *c, const Cut cuts[TOWERS]) {
    const int n = cuts[TOWER_LM].to.layers, m = cuts[TOWER_LM].from.layers;
    for (int i = 0; i < TOWERS && c->layers == INIT_IMPORTANCE; i++)
        if (cuts[i].to.layers > cuts[i].from.layers)
            die("--init-layers importance: the student has %d %s, %s only %d; use --init-layers even",
                cuts[i].to.layers, i == TOWER_LM ? "lm.layers" : "vision.layers", c->path, cuts[i].from.layers);
    if (c->layers != INIT_LIST) return;
    if (c->list_count != n)
        die("--init-layers names %d layers, the student's language model has %d", c->list_count, n);
    for (int i = 0; i < n; i++)
        if (c->list[i] > m)
            die("--init-layers names layer %d of %s, whose language model has %d", c->list[i], c->path, m);
}

/* Ends the program where the student cannot be cut out of the other model. */
static inline void init_check_width(const InitConfig *c, const Cut *cut, bool lm) {
    const TowerShape *from = &cut->from, *to = &cut->to;
    const char *const names[2][4] = {{"vision.width", "vision.heads", "vision.heads", "vision.mlp"},
                                     {"lm.width", "lm.heads", "lm.kv_heads", "lm.ffn"}};
    const int sizes[4][2] = {{to->width, from->width},
                             {to->heads, from->heads},
                             {to->kv_heads, from->kv_heads},
                             {to->neurons, from->neurons}};
    for (int i = 0; i < 4; i++)
        if (sizes[i][0] > sizes[i][1])
            die("--init-width: the student has %s %d, more than the %d of %s, out of which it is to be cut",
                names[lm][i], sizes[i][0], sizes[i][1], c->path);
    if (to->head_dim != from->head_dim)
        die("--init-width: the student's heads have %d channels (%s), those of %s %d; whole heads are kept, so these "
            "must be "
            "equal",
            to->head_dim, lm ? "lm.head_dim" : "vision.width / vision.heads", c->path, from->head_dim);
    if (to->heads / to->kv_heads > from->heads / from->kv_heads)
        die("--init-width: the student has %d query heads for each key head, %s only %d", to->heads / to->kv_heads,
            c->path, from->heads / from->kv_heads);
}

/* ---- taking tensors ---- */

/* The rows or the columns of a tensor: which of the `from` that the other model has become the student's first. */
typedef struct {
    int from, count;
    int *index;
} Axis;

typedef enum {
    AXIS_SAME,
    AXIS_FIRST,  // as many as both have, from the first on
    AXIS_CHANNEL,
    AXIS_QKV,
    AXIS_HEADS,
    AXIS_GATE_UP,
    AXIS_NEURONS,
    AXIS_JOINED
} AxisKind;

/* Names after "lm.", "lm.N.", "vision.", "vision.N." or "connector.", with their rows and columns. */
static const struct {
    const char *name;
    AxisKind rows, cols;
    int norm;  // 1, 2: that norm of a block; 3: the last one; 0: none
} init_axes[] = {
    {"embed", AXIS_FIRST, AXIS_CHANNEL, 0},
    {"head", AXIS_FIRST, AXIS_CHANNEL, 0},
    {"norm", AXIS_CHANNEL, AXIS_SAME, 3},
    {"norm1", AXIS_CHANNEL, AXIS_SAME, 1},
    {"norm2", AXIS_CHANNEL, AXIS_SAME, 2},
    {"qkv.weight", AXIS_QKV, AXIS_CHANNEL, 0},
    {"q_norm", AXIS_SAME, AXIS_SAME, 0},
    {"k_norm", AXIS_SAME, AXIS_SAME, 0},
    {"out.weight", AXIS_CHANNEL, AXIS_HEADS, 0},
    {"gate_up.weight", AXIS_GATE_UP, AXIS_CHANNEL, 0},
    {"down.weight", AXIS_CHANNEL, AXIS_NEURONS, 0},
    {"patch.weight", AXIS_CHANNEL, AXIS_SAME, 0},
    {"patch.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"position", AXIS_SAME, AXIS_CHANNEL, 0},
    {"position.rows", AXIS_FIRST, AXIS_CHANNEL, 0},
    {"position.columns", AXIS_FIRST, AXIS_CHANNEL, 0},
    {"norm.weight", AXIS_CHANNEL, AXIS_SAME, 3},
    {"norm.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"norm1.weight", AXIS_CHANNEL, AXIS_SAME, 1},
    {"norm1.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"norm2.weight", AXIS_CHANNEL, AXIS_SAME, 2},
    {"norm2.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"qkv.bias", AXIS_QKV, AXIS_SAME, 0},
    {"proj.weight", AXIS_CHANNEL, AXIS_HEADS, 0},
    {"proj.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"fc1.weight", AXIS_NEURONS, AXIS_CHANNEL, 0},
    {"fc1.bias", AXIS_NEURONS, AXIS_SAME, 0},
    {"fc2.weight", AXIS_CHANNEL, AXIS_NEURONS, 0},
    {"fc2.bias", AXIS_CHANNEL, AXIS_SAME, 0},
    {"weight", AXIS_CHANNEL, AXIS_JOINED, 0},  // of the connector: its rows are the decoder's channels
    {"bias", AXIS_CHANNEL, AXIS_SAME, 0},
};

/* Appends the `size` indices of each of n parts, which are counted from `first`; part NULL: 0, 1, ... */
static inline void axis_add(Axis *a, int first, const int *part, int n, int size) {
    a->index = xrealloc(a->index, ((size_t)a->count + (size_t)n * size) * sizeof(int));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < size; k++) a->index[a->count++] = first + (part ? part[i] : i) * size + k;
}

/* The indices of one axis in layer l of a tower (of its first layer where the tensor is of no layer). size: the student's;
 * from_count: the other model's, of AXIS_FIRST. */
static inline Axis init_axis(AxisKind kind, const Cut cuts[TOWERS], int tower, int l, int size, int from_count) {
    const Cut *cut = &cuts[tower], *vision = &cuts[TOWER_VISION];
    const TowerShape *from = &cut->from, *to = &cut->to;
    const int D = from->head_dim, *heads = cut->head + (size_t)l * to->heads,
              *kv = cut->kv + (size_t)l * to->kv_heads;
    const int *neurons = cut->neuron + (size_t)l * to->neurons, joined = size / vision->to.width;
    Axis a = {.from = size};
    switch (kind) {
    case AXIS_SAME: axis_add(&a, 0, NULL, size, 1); break;
    case AXIS_FIRST: axis_add(&a, 0, NULL, size < (a.from = from_count) ? size : from_count, 1); break;
    case AXIS_CHANNEL: a.from = from->width, axis_add(&a, 0, cut->channel, to->width, 1); break;
    case AXIS_HEADS: a.from = from->heads * D, axis_add(&a, 0, heads, to->heads, D); break;
    case AXIS_QKV:
        a.from = (from->heads + 2 * from->kv_heads) * D;
        axis_add(&a, 0, heads, to->heads, D);
        axis_add(&a, from->heads * D, kv, to->kv_heads, D);
        axis_add(&a, (from->heads + from->kv_heads) * D, kv, to->kv_heads, D);
        break;
    case AXIS_NEURONS: a.from = from->neurons, axis_add(&a, 0, neurons, to->neurons, 1); break;
    case AXIS_GATE_UP:
        a.from = 2 * from->neurons;
        axis_add(&a, 0, neurons, to->neurons, 1);
        axis_add(&a, from->neurons, neurons, to->neurons, 1);
        break;
    case AXIS_JOINED:
        a.from = joined * vision->from.width;
        for (int i = 0; i < joined; i++) axis_add(&a, i * vision->from.width, vision->channel, vision->to.width, 1);
        break;
    }
    return a;
}

/* p[r, c] = factor * t[rows.index[r], columns.index[c]]; what is beyond the indices stays. */
static inline void param_take(const Param *p, const SafeTensor *t, const Axis *rows, const Axis *cols, double factor,
                              const Ops *op) {
    floatX *host = xmalloc(p->n * sizeof(floatX));
    op->download(host, p->value, p->n * sizeof(floatX));
    for (int r = 0; r < rows->count; r++)
        for (int c = 0; c < cols->count; c++)
            host[(size_t)r * p->cols + c] = to_x(
                (float)(factor * (double)safetensors_float(t, (size_t)rows->index[r] * cols->from + cols->index[c])));
    op->upload(p->value, host, p->n * sizeof(floatX));
    free(host);
}

/* The other model, and what the student takes from it. */
typedef struct {
    SafeTensors st;
    ModelConfig config;
    Tokenizer tokenizer;
    Cut cut[TOWERS];
} InitSource;

/* A parameter's place: its tower, its layer or -1, and what its name says after these. */
static inline const char *init_place(const char *name, int *tower, int *layer) {
    const char *rest = strchr(name, '.') + 1;
    int length = 0;
    *tower = strncmp(name, "vision.", 7) ? TOWER_LM : TOWER_VISION;
    if (sscanf(rest, "%d.%n", layer, &length) != 1 || !length) *layer = -1;
    return *layer < 0 ? rest : rest + length;
}

/* How many rows the other model's tensor has for an axis of AXIS_FIRST. */
static inline int init_rows_from(const Model *student, const Param *p, const ModelConfig *from) {
    if (p == student->vision.rows) return vision_rows(&from->vision);
    if (p == student->vision.columns) return vision_columns(&from->vision);
    return from->lm.vocab;
}

/* Copies one parameter's tensor, cut where it is wider. Returns whether it was there with the shape that was expected. */
static inline bool init_take(const Model *student, Param *p, InitSource *s, const InitConfig *c) {
    Error err;
    StoredParam stored;
    Param source = *p;
    int tower, layer, at = 0;
    const char *name = init_place(p->name, &tower, &layer);
    if (p == student->vision.connector.w && !connector_joins_alike(&s->config.vision, &student->c.vision)) return false;
    if (layer >= 0)
        snprintf(source.name, sizeof source.name, "%s.%d.%s", tower == TOWER_LM ? "lm" : "vision",
                 s->cut[tower].layer[layer], name);
    const bool positions = p == student->vision.rows || p == student->vision.columns;
    if (!c->width && !(positions && s->cut[tower].from.width == s->cut[tower].to.width)) {
        if (param_find(&stored, &source, &s->st, &err)) return false;
        if (stored.scales) die("--init: %s has quantised weights; name the model that it was made of", c->path);
        param_copy_from(p, stored.values, student->op);
        return true;
    }
    while (strcmp(init_axes[at].name, name)) at++;
    const int l = layer < 0 ? 0 : layer, norm = init_axes[at].norm;
    Axis rows = init_axis(init_axes[at].rows, s->cut, tower, l, p->rows, init_rows_from(student, p, &s->config));
    Axis cols = init_axis(init_axes[at].cols, s->cut, tower, l, p->cols, 0);
    source.rows = rows.from;
    source.cols = cols.from;
    const bool found = !param_find(&stored, &source, &s->st, &err);
    if (found)
        param_take(p, stored.values, &rows, &cols,
                   norm ? s->cut[tower].norm_factor[norm == 3 ? 2 * s->cut[tower].to.layers : 2 * l + norm - 1] : 1,
                   student->op);
    free(rows.index);
    free(cols.index);
    return found;
}

static inline void init_note_layers(const InitConfig *c, const Cut *cut, const char *what) {
    char text[4 * INIT_LAYERS + 1] = "";
    for (int l = 0, at = 0; l < cut->to.layers; l++) at += sprintf(text + at, " %d", cut->layer[l] + 1);
    progress_note("student: the layers of its %s are%s of %s", what, text, c->path);
}

/* Measures the other model where its parts are to be chosen by importance, and chooses. */
static inline void init_choose(InitSource *s, const InitConfig *c, const Ops *op) {
    Error err;
    Importance t[TOWERS];
    const bool measure = c->width || c->layers == INIT_IMPORTANCE;
    init_check_layers(c, s->cut);
    for (int i = 0; i < TOWERS && c->width; i++) init_check_width(c, &s->cut[i], i == TOWER_LM);
    if (measure && c->verbose) progress_note("student: measuring %s on %s", c->path, c->data);
    if (measure && importance_measure(t, op, c->path, c->data, c->max_tokens, c->images, c->seed, &err))
        die("%s", err.text);
    for (int i = 0; i < TOWERS; i++) {
        cut_choose_layers(&s->cut[i], c, i == TOWER_LM, measure ? &t[i] : NULL);
        if (c->width) cut_choose_width(&s->cut[i], &t[i]);
        if (measure) importance_close(&t[i]);
    }
    if (!c->verbose || c->layers != INIT_IMPORTANCE) return;
    init_note_layers(c, &s->cut[TOWER_VISION], "encoder");
    init_note_layers(c, &s->cut[TOWER_LM], "language model");
}

/* Starts a new student, whose weights are random, from another model. Ends the program where that cannot be read or what is
 * asked for cannot be taken from it. */
static inline void init_student(Model *student, const InitConfig *c) {
    Error err;
    InitSource s = {0};
    TowerShape from[TOWERS], to[TOWERS];
    int taken = 0;
    die_if(safetensors_open(&s.st, c->path, &err) || config_load(&s.config, &s.st, &err) ||
               tokenizer_load(&s.tokenizer, &s.st, &err),
           &err);
    tower_shapes(from, &s.config);
    tower_shapes(to, &student->c);
    for (int i = 0; i < TOWERS; i++) s.cut[i] = (Cut){.from = from[i], .to = to[i]};
    init_choose(&s, c, student->op);
    const bool same_tokens = !tokenizer_same(&student->tokenizer, &s.tokenizer, &err);
    for (int i = 0; i < student->params.count; i++) {
        Param *p = &student->params.list[i];
        if (same_tokens || (p != student->embed_tokens && p != student->lm_head))
            taken += init_take(student, p, &s, c);
    }
    safetensors_close(&s.st);
    for (int i = 0; i < TOWERS; i++) cut_free(&s.cut[i]);
    if (!taken && c->must_match)
        die("--init: no tensor of %s has the name and shape of one of the student's", c->path);
    if (c->verbose) progress_note("student: %d of %d tensors start from %s", taken, student->params.count, c->path);
}

#endif
