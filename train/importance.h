/* What each part of a model contributes, measured by running it over training data. train/init.h keeps the parts with the
 * largest numbers.
 *
 *   head, neuron, channel   mean over the images of the L2 norm, over the positions, of a head's output, of a neuron of the
 *                           MLP after its activation, and of a channel of the norms' outputs, added up over all norms
 *                           (Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation")
 *   influence               mean over the positions of 1 - cosine of a block's input and output (Men et al. 2024,
 *                           "ShortGPT")
 *   energy                  sum over the positions of the square of each channel that a norm has normalised, before its weight
 */
#ifndef TRAIN_IMPORTANCE_H
#define TRAIN_IMPORTANCE_H

#include "../dataloader.h"
#include "../model.h"

/* The sizes of the encoder or of the decoder. */
typedef struct {
    int layers, width, heads, kv_heads, head_dim, neurons;
} TowerShape;

enum { TOWER_VISION, TOWER_LM, TOWERS };

typedef struct {
    TowerShape s;
    double *influence;  // [layers]
    double *head;       // [layers, heads]
    double *neuron;     // [layers, neurons]
    double *channel;    // [width]
    double *energy;     // [2 layers + 1, width]: of both norms of each block, and of the last norm
} Importance;

/* One block of a tower, and what its last pass over one image left, on the device. */
typedef struct {
    const floatX *in, *attention, *middle, *neurons, *out;  // [rows, width], [rows, heads D], ..., [rows, neurons]
    const Param *norm1, *bias1, *norm2, *bias2;             // biases NULL: RMSNorm
    int layer;
    size_t rows;
    float eps;
} MeasuredBlock;

static inline void tower_shapes(TowerShape s[TOWERS], const ModelConfig *c) {
    const VisionConfig *v = &c->vision;
    const LmConfig *l = &c->lm;
    s[TOWER_VISION] =
        (TowerShape){v->layers, v->hidden_size, v->heads, v->heads, v->hidden_size / v->heads, v->intermediate_size};
    s[TOWER_LM] = (TowerShape){l->layers, l->hidden_size, l->heads, l->kv_heads, l->head_dim, l->intermediate_size};
}

static inline void importance_open(Importance *t, TowerShape s) {
    *t = (Importance){.s = s,
                      .influence = xcalloc(s.layers, sizeof(double)),
                      .head = xcalloc((size_t)s.layers * s.heads, sizeof(double)),
                      .neuron = xcalloc((size_t)s.layers * s.neurons, sizeof(double)),
                      .channel = xcalloc(s.width, sizeof(double)),
                      .energy = xcalloc((2 * (size_t)s.layers + 1) * s.width, sizeof(double))};
}

static inline void importance_close(Importance *t) {
    free(t->influence);
    free(t->head);
    free(t->neuron);
    free(t->channel);
    free(t->energy);
}

/* ---- one image ---- */

static inline float *importance_download(const Ops *op, const floatX *x, size_t n) {
    floatX *raw = xmalloc(n * sizeof(floatX));
    float *host = xmalloc(n * sizeof(float));
    op->download(raw, x, n * sizeof(floatX));
    for (size_t i = 0; i < n; i++) host[i] = from_x(raw[i]);
    free(raw);
    return host;
}

/* Adds the L2 norm of each group of `size` channels of x [rows, groups, size], over its rows, to out [groups]. */
static inline void importance_norms(double *out, const Ops *op, const floatX *x, size_t rows, int groups, int size) {
    float *host = importance_download(op, x, rows * groups * size);
    for (int g = 0; g < groups; g++) {
        double sum = 0;
        for (size_t r = 0; r < rows; r++)
            for (int i = 0; i < size; i++) {
                const double value = (double)host[(r * groups + g) * size + i];
                sum += value * value;
            }
        out[g] += sqrt(sum);
    }
    free(host);
}

/* Mean and reciprocal standard deviation of a row: of RMSNorm, whose mean is 0, or of LayerNorm. */
static inline void importance_row(const float *x, int W, double eps, bool layernorm, double *mean, double *rstd) {
    double sum = 0, squares = 0;
    for (int i = 0; i < W; i++) sum += (double)x[i];
    *mean = layernorm ? sum / W : 0;
    for (int i = 0; i < W; i++) squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *rstd = 1 / sqrt(squares / W + eps);
}

/* The norm number `site` of a tower, which reads x [rows, width]: its channels and their energy. */
static inline void importance_site(Importance *t, const Ops *op, int site, const floatX *x, size_t rows,
                                   const Param *weight, const Param *bias, float eps) {
    const int W = t->s.width;
    double *energy = t->energy + (size_t)site * W, *squares = xcalloc(W, sizeof *squares), mean, rstd;
    float *host = importance_download(op, x, rows * W), *w = importance_download(op, weight->value, W);
    float *b = bias ? importance_download(op, bias->value, W) : xcalloc(W, sizeof(float));
    for (size_t r = 0; r < rows; r++) {
        const float *row = host + r * W;
        importance_row(row, W, (double)eps, bias != NULL, &mean, &rstd);
        for (int i = 0; i < W; i++) {
            const double normed = ((double)row[i] - mean) * rstd, out = normed * (double)w[i] + (double)b[i];
            energy[i] += normed * normed;
            squares[i] += out * out;
        }
    }
    for (int i = 0; i < W; i++) t->channel[i] += sqrt(squares[i]);
    free(host);
    free(w);
    free(b);
    free(squares);
}

/* The mean over the rows of 1 - cosine of a and b [rows, W]. */
static inline double importance_influence(const Ops *op, const floatX *a, const floatX *b, size_t rows, int W) {
    float *x = importance_download(op, a, rows * W), *y = importance_download(op, b, rows * W);
    double sum = 0;
    for (size_t r = 0; r < rows; r++) {
        double xy = 0, xx = 0, yy = 0;
        for (size_t i = r * W; i < (r + 1) * W; i++) {
            xy += (double)x[i] * (double)y[i];
            xx += (double)x[i] * (double)x[i];
            yy += (double)y[i] * (double)y[i];
        }
        sum += 1 - (xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 1);
    }
    free(x);
    free(y);
    return sum / (double)rows;
}

static inline void importance_block(Importance *t, const Ops *op, MeasuredBlock b) {
    const TowerShape *s = &t->s;
    const size_t l = (size_t)b.layer;
    t->influence[l] += importance_influence(op, b.in, b.out, b.rows, s->width);
    importance_norms(t->head + l * s->heads, op, b.attention, b.rows, s->heads, s->head_dim);
    importance_norms(t->neuron + l * s->neurons, op, b.neurons, b.rows, s->neurons, 1);
    importance_site(t, op, 2 * b.layer, b.in, b.rows, b.norm1, b.bias1, b.eps);
    importance_site(t, op, 2 * b.layer + 1, b.middle, b.rows, b.norm2, b.bias2, b.eps);
}

/* Adds what the last forward pass of m, over one image, shows. */
static inline void importance_add(Importance t[TOWERS], const Model *m) {
    const Vision *v = &m->vision;
    const size_t patches = (size_t)vision_patches(&v->c), S = (size_t)model_sequence(m, m->T);
    for (int l = 0; l < v->c.layers; l++) {
        const VisionLayer *y = &v->layer[l];
        const VisionActs *a = &v->acts[l];
        const floatX *out = l + 1 < v->c.layers ? a[1].residual : v->final_hidden;
        importance_block(&t[TOWER_VISION], m->op,
                         (MeasuredBlock){a->residual, a->attention, a->mid_residual, a->gelu, out, y->layernorm1_w,
                                         y->layernorm1_b, y->layernorm2_w, y->layernorm2_b, l, patches, v->c.eps});
    }
    importance_site(&t[TOWER_VISION], m->op, 2 * v->c.layers, v->final_hidden, patches, v->norm_w, v->norm_b,
                    v->c.eps);
    for (int l = 0; l < m->c.lm.layers; l++) {
        const DecoderLayer *y = &m->layer[l];
        const DecoderActs *a = &m->acts[l];
        importance_block(&t[TOWER_LM], m->op,
                         (MeasuredBlock){a->residual, a->attention, a->mid_residual, a->swiglu,
                                         model_block_output(m, l), y->input_layernorm, NULL,
                                         y->post_attention_layernorm, NULL, l, S, m->c.lm.eps});
    }
    importance_site(&t[TOWER_LM], m->op, 2 * m->c.lm.layers, m->final_hidden, S, m->norm, NULL, m->c.lm.eps);
}

/* ---- all of it ---- */

static inline bool importance_finite(const Importance *t) {
    double sum = 0;
    for (int i = 0; i < t->s.layers; i++) sum += t->influence[i];
    for (int i = 0; i < t->s.layers * t->s.heads; i++) sum += t->head[i];
    for (int i = 0; i < t->s.layers * t->s.neurons; i++) sum += t->neuron[i];
    for (int i = 0; i < t->s.width; i++) sum += t->channel[i];
    return isfinite(sum);
}

/* Runs the model over `images` of the loader's batches, of one image each, or over all. */
static inline int importance_run(Importance t[TOWERS], Model *m, Loader *data, int images, Error *err) {
    for (int i = 0; i < images && (uint64_t)i < data->batches_per_epoch; i++) {
        const Batch *b = loader_next(data, err);
        if (!b) return -1;
        model_forward(m, b->pixels[0], b->ids, 1, b->tokens);
        importance_add(t, m);
    }
    if (importance_finite(&t[TOWER_VISION]) && importance_finite(&t[TOWER_LM])) return 0;
    model_not_finite(m, err);
    return -1;
}

/* Measures a model file over so many images of a data set, in an order that follows from the seed: t, to be closed, gets sums
 * over the images. Texts of more than max_tokens are left out; 0: those that the model cannot read. -1 with *err filled: the
 * model or the data cannot be read, they do not share a tokenizer, or the model computes what is not finite. */
static inline int importance_measure(Importance t[TOWERS], const Ops *op, const char *path, const char *data,
                                     int max_tokens, int images, uint64_t seed, Error *err) {
    Model m;
    Dataset d;
    Loader loader;
    TowerShape s[TOWERS];
    if (model_open_to_train(&m, op, path, "the --init model's ", err) || dataset_open(&d, data, err)) return -1;
    if (d.fingerprint != m.tokenizer.fingerprint)
        return error_set(err, "%s was made with another tokenizer than %s has, which is to be measured on it", data,
                         path);
    const int longest = (int)(d.longest + 7) / 8 * 8,
              most = model_max_text(&m) < longest ? model_max_text(&m) : longest;
    if (!max_tokens || max_tokens > most) max_tokens = most;
    model_train(&m, GROUP_ALL, RECOMPUTE_NONE);  // so that every block keeps its activations
    model_plan(&m, 1, max_tokens);
    LoaderConfig c =
        loader_config_for(1, max_tokens, vision_size(&m.c.vision), m.tokenizer.count, (ImageSize){0}, 0);
    c.seed = seed;
    c.shuffle = true;
    if (loader_start(&loader, &d, c, err)) return -1;
    tower_shapes(s, &m.c);
    for (int i = 0; i < TOWERS; i++) importance_open(&t[i], s[i]);
    const int bad = importance_run(t, &m, &loader, images, err);
    loader_stop(&loader);
    dataset_close(&d);
    model_close(&m);
    return bad;
}

#endif
