/* The model, the objective and the optimizer against PyTorch, and against themselves.
 *
 *   test_model [FIXTURES [DEVICE [PAIR...]]]      default: test/fixtures cpu, all pairs
 *
 * FIXTURES is the folder that make_fixtures.py writes: pairs of tiny models with what doc/reference.py computes from
 * them in float64. Errors are norms of differences over norms of references, tensor by tensor. Beyond PyTorch:
 * decoding with the cache equals the teacher-forced pass, micro-batches add up to the batch, recomputation, the
 * number of threads, frozen groups and a shared encoder change no bit, gradients are final when they are said to be, a
 * saved model is the model, a quantised one computes what its weights say. Prints what fails, then the line
 * "N passed, M failed". What needs larger models is in model_drawn.h. */
#include "checks.h"

#include "../lib/program.h"

#include "../generate.h"
#include "../train/layer_loss.h"
#include "../train/schedule.h"
#include "../loss.cuh"
#include "model_drawn.h"

#ifdef PRECISION_FP32
/* SAME is for two ways to compute the same thing here. */
static const double FORWARD = 1e-5, LOSS = 1e-5, GRADIENT = 1e-4, WEIGHTS = 5e-5, SAME = 1e-5;
#else
/* bf16 rounds every activation to 8 bits. The largest gradient errors are those of the first layers, whose signal has
 * passed through all of them; after AdamW's division by its own size the smallest tensors (biases) show them most. */
static const double FORWARD = 2e-2, LOSS = 2e-2, GRADIENT = 1e-1, WEIGHTS = 1.5e-1, SAME = 2e-2;
#endif

static const char *const pair_names[] = {"gqa", "linear", "llama3", "mapped", "rect", "layers", "qwen", "shuffle", "strips"};
enum { PAIRS = sizeof pair_names / sizeof pair_names[0], CHUNK = 7 };

/* ---- one pair of models and what is known about it ---- */

typedef struct {
    const char *name;
    const Ops *op;
    Model student, teacher;
    Optimizer optimizer;  // of the student, when it is trained
    SafeTensors expected;
    const uint8_t *pixels, *teacher_pixels;
    const int *ids; // [B, T]
    int B, T, n;    // n positions predict a token
    int *labels;    // [n]
} Pair;

static const SafeTensor *expected(const Pair *p, const char *name) {
    const SafeTensor *t = safetensors_find(&p->expected, name);
    if (!t) die("%s has no tensor %s; run test/make_fixtures.py", p->expected.file.path, name);
    return t;
}

static double number(const Pair *p, const char *key) {
    const char *text = safetensors_metadata(&p->expected, key);
    if (!text) die("%s has no metadata %s; run test/make_fixtures.py", p->expected.file.path, key);
    return strtod(text, NULL);
}

static double setting_number(const Pair *p, int k, const char *key) {
    char name[64];
    snprintf(name, sizeof name, "%d.%s", k, key);
    return number(p, name);
}

/* NULL where the setting does not say. */
static const char *setting_text(const Pair *p, int k, const char *key) {
    char name[64];
    snprintf(name, sizeof name, "%d.%s", k, key);
    return safetensors_metadata(&p->expected, name);
}

/* Frees `got`. */
static void expect(const Pair *p, const char *name, float *got, size_t n, double tolerance) {
    const SafeTensor *t = expected(p, name);
    size_t count = t->bytes / sizeof(float);
    check(count == n, "%s: %s has %zu values, expected %zu", p->name, name, n, count);
    double error = count == n ? relative_error(got, (const float *)t->data, n) : 0;
    check(error <= tolerance, "%s: %s differs by %.1e (at most %.0e)", p->name, name, error, tolerance);
    free(got);
}

static void open_model(Model *m, const Ops *op, const char *folder, const char *name, const char *role) {
    Error err;
    char *path = format_string("%s/%s.%s.safetensors", folder, name, role);
    if (model_open(m, op, path, "", &err)) die("%s", err.text);
    free(path);
}

/* Gradients and optimizer state for the given groups of one list, with settings to be filled in. */
static void pair_open(Pair *p, const Ops *op, const char *folder, const char *name, int groups,
                      Recompute recompute) {
    Error err;
    memset(p, 0, sizeof *p);
    p->name = name;
    p->op = op;
    char *path = format_string("%s/%s.expected.safetensors", folder, name);
    if (safetensors_open(&p->expected, path, &err)) die("%s", err.text);
    free(path);
    const SafeTensor *ids = expected(p, "ids");
    p->B = (int)ids->shape[0];
    p->T = (int)ids->shape[1];
    p->ids = (const int *)ids->data;
    p->pixels = expected(p, "pixels")->data;
    p->teacher_pixels = expected(p, "teacher.pixels")->data;
    p->labels = xcalloc((size_t)(p->B * p->T), sizeof(int));
    for (int i = 0; i < p->B * p->T; i++)
        if (p->ids[i] >= 0) p->labels[p->n++] = p->ids[i];
    open_model(&p->teacher, op, folder, name, "teacher");
    for (int l = 0; l < p->teacher.c.lm.layers; l++) p->teacher.layer[l].keeps_output = true;
    model_plan(&p->teacher, p->B, p->T);
    open_model(&p->student, op, folder, name, "student");
    if (groups) {
        model_train(&p->student, groups, recompute);
        open_optimizer(&p->optimizer, op, &p->student.params, groups);
    }
    model_plan(&p->student, p->B, p->T);
}

static void pair_close(Pair *p) {
    if (p->optimizer.op) optimizer_close(&p->optimizer);
    model_close(&p->student);
    model_close(&p->teacher);
    safetensors_close(&p->expected);
    free(p->labels);
}

static ObjectiveConfig setting(const Pair *p, int k) {
    ObjectiveConfig c;
    memset(&c, 0, sizeof c);
    c.w_ce = (float)setting_number(p, k, "w_ce");
    c.w_soft = (float)setting_number(p, k, "w_soft");
    c.w_hard = (float)setting_number(p, k, "w_hard");
    c.w_embed = (float)setting_number(p, k, "w_embed");
    if (setting_text(p, k, "w_layer")) c.w_layer = (float)setting_number(p, k, "w_layer");
    c.temperature = (float)setting_number(p, k, "temperature");
    c.mix = (float)setting_number(p, k, "mix");
    c.band_low = (float)setting_number(p, k, "band_low");
    c.band_high = (float)setting_number(p, k, "band_high");
    c.gate_confidence = (float)setting_number(p, k, "sure_confidence");
    c.gate_factor = (float)setting_number(p, k, "sure_factor");
    char key[32];
    snprintf(key, sizeof key, "%d.soft", k);
    const char *soft = safetensors_metadata(&p->expected, key);
    if (!soft) die("%s has no metadata %s", p->expected.file.path, key);
    const int index = name_index(soft, soft_loss_names, SOFT_LOSSES);
    if (index < 0) die("%s: the divergence '%s' is unknown", p->expected.file.path, soft);
    c.soft = (SoftLoss)index;
    return c;
}

static void open_objective(Objective *o, const Pair *p, ObjectiveConfig c, int chunk) {
    objective_open(o, c, &p->student, param_weight(p->teacher.lm_head), chunk, p->B * p->T, p->B, 1);
    if (o->map.count) param_copy_from(&o->map.list[0], expected(p, "embed_map"), p->op);
}

/* The layer loss of setting k with the maps of the fixture; without one, a loss without pairs. */
static void open_layers(LayerLoss *o, Pair *p, int k) {
    Error err;
    const char *weight = setting_text(p, k, "w_layer"), *kind = setting_text(p, k, "layer_loss");
    LayerPairs pairs = {0};
    if (weight && layer_pairs_parse(&pairs, setting_text(p, k, "layer_pairs"), &err)) die("%s", err.text);
    layer_loss_open(o, kind && !strcmp(kind, "mse") ? LAYER_MSE : LAYER_COSINE, weight ? strtof(weight, NULL) : 0,
                    &pairs, &p->student, p->teacher.c.lm.hidden_size, p->B, p->T, 1);
    for (int i = 0; i < o->maps.count; i++)
        param_copy_from(&o->maps.list[i], expected(p, o->maps.list[i].name), p->op);
}

/* The blocks add nothing of a layer loss any more. */
static void close_layers(LayerLoss *o, Pair *p) {
    for (int l = 0; l < p->student.c.lm.layers; l++) p->student.layer[l].d_output = NULL;
    p->op->graph_free(&p->student);  // graphs that add it
    layer_loss_close(o);
}

/* The layer loss of the passes that were just made; with a scale, its gradient. */
static void run_layers(Pair *p, LayerLoss *o, LossScale scale) {
    const Model *t = &p->teacher;
    const size_t W = (size_t)t->c.lm.hidden_size, n = (size_t)t->n;
    floatX *rows = p->op->alloc((size_t)(o->pairs.count + 1) * n * W * sizeof(floatX));
    for (int i = 0; i < o->pairs.count; i++)
        p->op->gather_rows(rows + (size_t)i * n * W, model_block_output(t, o->pairs.teacher[i] - 1), t->target_rows,
                           n, (int)W);
    layer_loss_run(o, &p->student, &(TeacherOutput){.layers = rows}, scale);
    p->op->release(rows);
}

static ObjectiveSums collect(Objective *o, LayerLoss *layers) {
    ObjectiveSums sums = objective_collect(o);
    layer_loss_collect(layers, &sums);
    return sums;
}

/* Teacher forward, student forward, objective, layer loss, backward over rows first .. first+B-1 of the batch. The gradients are
 * added to those there; the means are over the whole batch. */
static void learn(Pair *p, Objective *o, LayerLoss *layers, int first, int B) {
    Model *s = &p->student, *t = &p->teacher;
    const int *ids = p->ids + first * p->T;
    model_forward(t, p->teacher_pixels + first * model_pixels(t), ids, B, p->T);
    model_forward(s, p->pixels + first * model_pixels(s), ids, B, p->T);
    TeacherOutput q = {.hidden = t->hidden, .image_tokens = t->vision.tokens};
    LossScale scale = {1.0 / p->n, 1.0 / p->B};
    objective_run(o, s, &q, s->trained ? scale : (LossScale){0, 0});
    run_layers(p, layers, s->trained ? scale : (LossScale){0, 0});
    if (s->trained) model_backward(s);
}

/* ---- the forward pass ---- */

static float *logits_of(const Model *m) {
    size_t n = (size_t)m->n * (size_t)m->c.lm.vocab;
    float *device = (float *)m->op->alloc(n * sizeof(float));
    m->op->linear_logits(device, m->hidden, param_weight(m->lm_head), (size_t)m->n);
    float *host = host_f32(m->op, device, n);
    m->op->release(device);
    return host;
}

static int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* The same greedy token as PyTorch wherever its favourite leads by more than what rounding can move. */
static void check_greedy(const Pair *p, const char *name, const float *logits, int V) {
    const float *reference = (const float *)expected(p, name)->data;
    double sum = 0;
    for (int i = 0; i < p->n * V; i++) sum += (double)reference[i] * (double)reference[i];
    float margin = (float)(6 * FORWARD * sqrt(sum / (p->n * V)));
    int wrong = 0, compared = 0;
    for (int r = 0; r < p->n; r++) {
        const float *row = reference + r * V;
        int top = argmax(row, V);
        bool clear = true;
        for (int i = 0; i < V; i++) clear = clear && (i == top || row[top] - row[i] > margin);
        if (!clear) continue;
        compared++;
        wrong += argmax(logits + r * V, V) != top;
    }
    check(wrong == 0, "%s: %s: %d of %d greedy tokens differ", p->name, name, wrong, compared);
    check(compared * 2 >= p->n, "%s: %s: only %d of %d greedy tokens are clear", p->name, name, compared, p->n);
}

static void check_forward(const Pair *p, Model *m, const uint8_t *pixels, const char *prefix) {
    char name[64];
    size_t W = (size_t)m->c.lm.hidden_size, V = (size_t)m->c.lm.vocab, n = (size_t)p->n;
    model_forward(m, pixels, p->ids, p->B, p->T);
    check(m->n == p->n, "%s: %d positions predict a token, expected %d", p->name, m->n, p->n);
    snprintf(name, sizeof name, "%simage", prefix);
    size_t tokens = (size_t)p->B * (size_t)model_image_tokens(m) * W;
    expect(p, name, host_x(p->op, m->vision.tokens, tokens), tokens, FORWARD);
    snprintf(name, sizeof name, "%shidden", prefix);
    expect(p, name, host_x(p->op, m->hidden, n * W), n * W, FORWARD);
    snprintf(name, sizeof name, "%slogits", prefix);
    float *logits = logits_of(m);
    check_greedy(p, name, logits, (int)V);
    expect(p, name, logits, n * V, FORWARD);
}

/* ---- the objective and the gradients ---- */

static void check_rows(const Pair *p, int k, const Objective *o) {
    static const char *const names[6] = {"ce", "soft", "hard", "entropy", "confidence", "gate"};
    char name[64];
    snprintf(name, sizeof name, "%d.rows", k);
    const float *reference = (const float *)expected(p, name)->data;
    float *got = xmalloc((size_t)p->n * sizeof(float)),
          *want = xmalloc((size_t)p->n * sizeof(float));
    for (int column = 0; column < 6; column++) {
        for (int i = 0; i < p->n; i++) {
            const RowStats *r = &o->host_stats[i];
            float values[6] = {r->ce, r->soft, r->hard, r->entropy, r->confidence, r->gate};
            got[i] = values[column];
            want[i] = reference[i * 6 + column];
        }
        double error = relative_error(got, want, (size_t)p->n), tolerance = column == 5 ? 1e-6 : LOSS;
        check(error <= tolerance, "%s: setting %d, %s of the rows differs by %.1e (at most %.0e)", p->name, k,
              names[column], error, tolerance);
    }
    free(got);
    free(want);
}

static void check_gradients(const Pair *p, int k, const Params *params) {
    for (int i = 0; i < params->count; i++) {
        const Param *x = &params->list[i];
        char name[160];
        snprintf(name, sizeof name, "%d.gradient.%s", k, x->name);
        check(x->gradient != NULL, "%s: %s has no gradient", p->name, x->name);
        if (x->gradient) expect(p, name, host_f32(p->op, x->gradient, x->n), x->n, GRADIENT);
    }
}

/* After learn(): the same loss without gradients, and without the teacher only the cross-entropy. */
static void check_evaluation(Pair *p, int k, Objective *o, LayerLoss *layers, const ObjectiveSums *sums) {
    const TeacherOutput none = {0}, q = {.hidden = p->teacher.hidden, .image_tokens = p->teacher.vision.tokens};
    objective_run(o, &p->student, &q, (LossScale){0, 0});
    run_layers(p, layers, (LossScale){0, 0});
    ObjectiveSums again = collect(o, layers);
    check(objective_mean(o, &again) == objective_mean(o, sums),
          "%s: setting %d: the loss without a gradient is %.9g, with one %.9g", p->name, k, objective_mean(o, &again),
          objective_mean(o, sums));
    objective_run(o, &p->student, &none, (LossScale){0, 0});
    ObjectiveSums alone = objective_collect(o);
    double ce = (double)o->config.w_ce * sums->ce / sums->positions;
    check(fabs(objective_mean(o, &alone) - ce) <= 1e-7 * fabs(ce),  // a row's CE is fp32, and summed in another order
          "%s: setting %d: the loss without a teacher is %.9g, w_ce CE is %.9g",
          p->name, k, objective_mean(o, &alone), ce);
}

static void check_setting(Pair *p, int k) {
    ObjectiveConfig c = setting(p, k);
    Objective o;
    open_objective(&o, p, c, k == 0 ? 0 : CHUNK);
    LayerLoss layers;
    open_layers(&layers, p, k);
    Optimizer map, layer_maps;
    if (o.map.count) open_optimizer(&map, p->op, &o.map, GROUP_ALL);
    if (layers.maps.count) open_optimizer(&layer_maps, p->op, &layers.maps, GROUP_ALL);
    optimizer_zero_gradients(&p->optimizer);
    learn(p, &o, &layers, 0, p->B);
    ObjectiveSums sums = collect(&o, &layers);
    char name[64];
    snprintf(name, sizeof name, "%d.loss", k);
    float *loss = xmalloc(sizeof(float));
    *loss = (float)objective_mean(&o, &sums);
    expect(p, name, loss, 1, LOSS);
    check_rows(p, k, &o);
    if (c.w_embed > 0) {
        float *embed = xmalloc((size_t)p->B * sizeof(float));
        for (int b = 0; b < p->B; b++) embed[b] = 1 - o.host_cosines[b];
        snprintf(name, sizeof name, "%d.embed", k);
        expect(p, name, embed, (size_t)p->B, LOSS);
    }
    snprintf(name, sizeof name, "%d.gradient", k);
    if (!strcmp(safetensors_metadata(&p->expected, name), "true")) {
        check_gradients(p, k, &p->student.params);
        check_gradients(p, k, &o.map);
        check_gradients(p, k, &layers.maps);
    }
    if (c.w_layer > 0) {
        float *layer = xmalloc(sizeof(float));
        *layer = (float)(sums.layer / sums.layer_rows);
        snprintf(name, sizeof name, "%d.layer", k);
        expect(p, name, layer, 1, LOSS);
    }
    check_evaluation(p, k, &o, &layers, &sums);
    if (o.map.count) optimizer_close(&map);
    if (layers.maps.count) optimizer_close(&layer_maps);
    close_layers(&layers, p);
    objective_close(&o);
}

/* ---- the optimizer ---- */

static void check_adamw(Pair *p) {
    const Ops *op = p->op;
    Optimizer *optimizer = &p->optimizer;
    optimizer->adamw.beta1 = (float)number(p, "adamw.beta1");
    optimizer->adamw.beta2 = (float)number(p, "adamw.beta2");
    optimizer->adamw.eps = (float)number(p, "adamw.eps");
    optimizer->adamw.decay = (float)number(p, "adamw.decay");
    optimizer->adamw.max_norm = (float)number(p, "adamw.max_norm");
    float lr = (float)number(p, "adamw.lr");
    int steps = (int)number(p, "steps");
    float *losses = xcalloc((size_t)steps, sizeof(float)),
          *norms = xcalloc((size_t)steps, sizeof(float));
    Objective o;
    LayerLoss layers;
    open_objective(&o, p, setting(p, 0), 0);
    open_layers(&layers, p, 0);
    for (int step = 0; step < steps; step++) {
        optimizer_zero_gradients(optimizer);
        learn(p, &o, &layers, 0, p->B);
        ObjectiveSums sums = collect(&o, &layers);
        optimizer_norm(optimizer);
        optimizer_step(optimizer, lr, step + 1);
        float squared;
        op->download(&squared, optimizer->norm_squared, sizeof squared);
        losses[step] = (float)objective_mean(&o, &sums);
        norms[step] = sqrtf(squared);
    }
    expect(p, "adamw.loss", losses, (size_t)steps, LOSS);
    expect(p, "adamw.norm", norms, (size_t)steps, GRADIENT);
    for (int i = 0; i < optimizer->count; i++) {
        const Param *x = optimizer->list[i];
        const float *trained = optimizer->master + x->offset;
        char name[160];
        snprintf(name, sizeof name, "adamw.%s", x->name);
        expect(p, name, host_f32(op, trained, x->n), x->n, WEIGHTS);
        float *master = host_f32(op, trained, x->n), *value = host_x(op, x->value, x->n);
        size_t wrong = 0;
        for (size_t j = 0; j < x->n; j++) wrong += value[j] != from_x(to_x(master[j]));
        check(wrong == 0, "%s: %zu values of %s are not the rounded masters", p->name, wrong, x->name);
        free(master);
        free(value);
    }
    close_layers(&layers, p);
    objective_close(&o);
}

/* ---- decoding with the cache against the teacher-forced pass ---- */

/* Row of the teacher-forced logits that predicts token t of text b. */
static int predicting_row(const Pair *p, int b, int t) {
    int row = 0;
    for (int i = 0; i < b * p->T + t; i++) row += p->ids[i] >= 0;
    return row;
}

static double generator_error(const Pair *p, const Generator *d, int place, const float *logits, int b, int t) {
    size_t V = (size_t)p->student.c.lm.vocab;
    float *got = xmalloc((size_t)d->B * V * sizeof(float));
    generator_logits(d, got);
    double error = relative_error(got + (size_t)place * V, logits + (size_t)predicting_row(p, b, t) * V, V);
    free(got);
    return error;
}

/* One sequence at a time: prefill of its first `prefix` tokens, then the others step by step. */
static void check_prefix(Pair *p, const float *logits, int b, int prefix, double tolerance) {
    const int *ids = p->ids + b * p->T;
    int length = 0;
    while (length < p->T && ids[length] >= 0) length++;
    if (prefix >= length) return;
    Generator d;
    generator_open(&d, &p->student, 1, p->T);
    generator_prefill(&d, p->pixels + (size_t)b * model_pixels(&p->student), 1, ids, prefix);
    double worst = generator_error(p, &d, 0, logits, b, prefix);
    for (int t = prefix; t + 1 < length; t++) {
        generator_append(&d, &ids[t]);
        double error = generator_error(p, &d, 0, logits, b, t + 1);
        worst = error > worst ? error : worst;
    }
    check(worst <= tolerance, "%s: text %d, prefix %d: decoding differs from the whole pass by %.1e", p->name, b,
          prefix, worst);
    generator_close(&d);
}

/* All sequences in one batch, without a prefix. */
static void check_batch_decoding(Pair *p, const float *logits, double tolerance) {
    Generator d;
    generator_open(&d, &p->student, p->B, p->T);
    generator_prefill(&d, p->pixels, p->B, NULL, 0);
    double worst = 0;
    for (int t = 0; t < p->T; t++) {
        int next[64];
        for (int b = 0; b < p->B; b++) {
            int id = p->ids[b * p->T + t];
            double error = id >= 0 ? generator_error(p, &d, b, logits, b, t) : 0;
            worst = error > worst ? error : worst;
            next[b] = id >= 0 ? id : 0;
        }
        if (t + 1 < p->T) generator_append(&d, next);
    }
    check(worst <= tolerance, "%s: decoding %d texts together differs from the whole pass by %.1e", p->name, p->B,
          worst);
    generator_close(&d);
}

enum { GENERATED = 6 };

/* The generated tokens; sequence b is stopped after lengths[b] of them. */
typedef struct {
    int ids[64][GENERATED], count[64], lengths[64];
    const Tokenizer *tokenizer;
    int wrong;  // tokens that may not stand where they do
} Generated;

static bool record_token(void *context, int b, int id) {
    Generated *w = (Generated *)context;
    const Tokenizer *t = w->tokenizer;
    w->wrong +=
        id < 0 || id >= t->count || (tokenizer_ends(t, id) ? w->count[b] == 0 : (t->flags[id] & TOKEN_SPECIAL) != 0);
    w->ids[b][w->count[b]++] = id;
    return w->count[b] < w->lengths[b];
}

/* Sequences generated together, of different lengths, so that the batch is compacted on the way, equal those generated alone.
 * In bf16 the matmuls of one row round differently from those of several. */
static void check_generating(Pair *p, float temperature) {
    static Generated together, alone;
    size_t pixels = model_pixels(&p->student);
    int max_tokens = p->T < GENERATED ? p->T : GENERATED, numbers[64], wrong = 0;
    Generator d;
    memset(&together, 0, sizeof together);
    memset(&alone, 0, sizeof alone);
    together.tokenizer = alone.tokenizer = &p->student.tokenizer;
    for (int b = 0; b < p->B; b++) {
        numbers[b] = 10 + b;
        together.lengths[b] = alone.lengths[0] = 1 + (b * 2 + 1) % max_tokens;
    }
    generator_open(&d, &p->student, p->B, p->T);
    generator_set_sampling(&d, temperature, 0.9f, 0, 5, 0);
    for (int again = 0; again < 2; again++) {  // a generator can be used again
        memset(together.count, 0, sizeof together.count);
        generator_prefill(&d, p->pixels, p->B, NULL, 0);
        generator_run(&d, numbers, max_tokens, record_token, &together);
    }
    for (int b = 0; b < p->B; b++) {
        alone.count[0] = 0;
        alone.lengths[0] = together.lengths[b];
        generator_prefill(&d, p->pixels + (size_t)b * pixels, 1, NULL, 0);
        generator_run(&d, numbers + b, max_tokens, record_token, &alone);
        wrong += together.count[b] != alone.count[0];
        wrong += memcmp(together.ids[b], alone.ids[0], (size_t)alone.count[0] * sizeof(int)) != 0;
    }
    generator_close(&d);
    check(together.wrong + alone.wrong == 0, "%s: %d tokens that are not allowed", p->name, together.wrong + alone.wrong);
#ifdef PRECISION_FP32
    check(wrong == 0, "%s: %d of %d texts are others when written together (temperature %g)", p->name, wrong, p->B,
          (double)temperature);
#else
    check(wrong <= 2 * p->B, "%s: a text was counted twice", p->name);
#endif
}

enum { FED = 7 };  // images of a continuous batch

typedef struct {
    const Pair *p;
    Generated *texts;
    int taken;
} Feed;

/* Image `taken`, of which the pair has p->B different ones. */
static int feed_image(void *context, uint8_t *pixels) {
    Feed *f = (Feed *)context;
    const size_t bytes = model_pixels(&f->p->student);
    if (f->taken == FED) return -1;
    memcpy(pixels, f->p->pixels + (size_t)(f->taken % f->p->B) * bytes, bytes);
    return f->taken++;
}

static bool feed_read(void *context, int sequence, int id) { return record_token(((Feed *)context)->texts, sequence, id); }

/* Images that take the places of finished ones give the texts that they give alone, with their log-probabilities. */
static void check_continuous(Pair *p, float temperature) {
    static Generated together, alone;
    const size_t bytes = model_pixels(&p->student);
    const int places = p->B < 3 ? p->B : 3, max_tokens = p->T < GENERATED ? p->T : GENERATED;
    uint8_t *pixels = (uint8_t *)xmalloc(3 * bytes);
    Feed f = {p, &together, 0};
    Generator d;
    int numbers[3], wrong = 0;
    memset(&together, 0, sizeof together);
    memset(&alone, 0, sizeof alone);
    together.tokenizer = alone.tokenizer = &p->student.tokenizer;
    for (int i = 0; i < FED; i++) together.lengths[i] = alone.lengths[i] = 1 + (i * 5 + 2) % max_tokens;
    generator_open(&d, &p->student, places, p->T);
    generator_set_sampling(&d, temperature, 0.9f, 0, 5, 0);
    for (int i = 0; i < places; i++) numbers[i] = feed_image(&f, pixels + (size_t)i * bytes);
    generator_prefill(&d, pixels, places, NULL, 0);
    generator_run_all(&d, numbers,
                      &(Generation){.max_new_tokens = max_tokens, .reader = feed_read, .source = feed_image,
                                    .context = &f, .pixels = pixels});
    Feed one = {p, &alone, 0};
    for (int i = 0; i < FED; i++) {
        const int number = feed_image(&one, pixels);
        generator_prefill(&d, pixels, 1, NULL, 0);
        one.taken = FED;  // no other image follows
        generator_run_all(&d, &number,
                          &(Generation){.max_new_tokens = max_tokens, .reader = feed_read, .source = feed_image,
                                        .context = &one, .pixels = pixels});
        one.taken = i + 1;
        wrong += together.count[i] != alone.count[i] || alone.count[i] < 1;
        wrong += memcmp(together.ids[i], alone.ids[i], (size_t)alone.count[i] * sizeof(int)) != 0;
    }
    generator_close(&d);
    free(pixels);
    check(together.wrong + alone.wrong == 0 && f.taken == FED, "%s: %d tokens that are not allowed, %d images taken",
          p->name, together.wrong + alone.wrong, f.taken);
#ifdef PRECISION_FP32
    check(wrong == 0, "%s: %d of %d texts of a continuous batch are others alone (temperature %g)", p->name, wrong, FED,
          (double)temperature);
#else
    check(wrong <= 2 * FED, "%s: a text was counted twice", p->name);
#endif
}

/* Samples from logits that are highest for masked tokens, then for the other end token (where there is one), then for
 * the end token, then for `liked`, at position `at` of sequences whose position `first` may not be the end. */
static void check_token_mask(Generator *d, const Pair *p, int at, int first, int liked) {
    const Tokenizer *t = &p->student.tokenizer;
    const int V = p->student.c.lm.vocab, prefix[] = {liked, liked};
    float *logits = xcalloc((size_t)(p->B * V), sizeof(float));
    int *ids = xcalloc((size_t)p->B, sizeof(int)), wrong = 0, end = t->more_end_count ? t->more_ends[0] : t->end;
    for (int b = 0; b < p->B; b++)
        for (int i = 0; i < V; i++)
            logits[b * V + i] = i == end                                             ? 2.5f
                                : i == t->end                                        ? 2.0f
                                : i >= t->count || (t->flags[i] & TOKEN_SPECIAL) ? 3.0f
                                                                                     : i == liked;
    generator_set_sampling(d, 0, 1, 0, 1, first);
    generator_prefill(d, p->pixels, p->B, prefix, at);
    p->op->upload(d->logits, logits, (size_t)(p->B * V) * sizeof(float));
    generator_sample(d);
    p->op->download(ids, d->ids, (size_t)p->B * sizeof(int));
    for (int b = 0; b < p->B; b++) wrong += ids[b] != (at == first ? liked : end);
    check(wrong == 0, "%s: token %d, where the end may not be number %d: %d of %d texts got another one, the first %d",
          p->name, at, first, wrong, p->B, ids[0]);
    free(logits);
    free(ids);
}

static bool read_on(void *context, int b, int id) {
    (void)id;
    ((int *)context)[b]++;
    return true;
}

/* Which tokens may be generated, and how many. The fixtures' tokenizers have no image token, and their vocabularies no
 * padding: so one is made of another token, and the last row becomes padding. */
static void check_limits(Pair *p) {
    Tokenizer *t = &p->student.tokenizer;
    const Tokenizer own = *t;
    uint8_t *flags = xcalloc((size_t)t->count, 1);
    int liked = t->count - 2, counts[64] = {0}, numbers[64] = {0};
    Generator d;
    flags[1] = TOKEN_SPECIAL;
    t->flags = flags;
    t->end = 2;
    t->count--;
    flags[3] = TOKEN_SPECIAL;
    t->more_ends[0] = 3;
    for (t->more_end_count = 1; t->more_end_count >= 0; t->more_end_count--) {
        generator_open(&d, &p->student, p->B, p->T);
        for (int at = 0; at < 3 && at < p->T; at++)
            for (int first = 0; first < 2; first++) check_token_mask(&d, p, at, first, liked);
        generator_close(&d);
    }
    t->more_end_count = 0;
    generator_open(&d, &p->student, p->B, p->T);
    generator_prefill(&d, p->pixels, p->B, NULL, 0);
    generator_run(&d, numbers, p->T, read_on, counts);
    for (int b = 0; b < p->B; b++)
        check(counts[b] == p->T, "%s: text %d has %d tokens, there is room for %d", p->name, b, counts[b], p->T);
    generator_close(&d);
    *t = own;
    free(flags);
}

static void check_decoding(Pair *p) {
    model_forward(&p->student, p->pixels, p->ids, p->B, p->T);
    float *logits = logits_of(&p->student);
    for (int b = 0; b < p->B; b++)
        for (int prefix = 0; prefix < p->T; prefix++) check_prefix(p, logits, b, prefix, SAME);
    check_batch_decoding(p, logits, SAME);
    check_generating(p, 0);
    check_generating(p, 2);
    check_continuous(p, 0);
    check_continuous(p, 2);
    check_limits(p);
    free(logits);
}

/* ---- the same gradients another way ---- */

/* Opens the pair anew, learns setting k in one batch or two, and returns the gradients of `groups`. */
static float *gradients_of(const Ops *op, const char *folder, const char *name, int k, int trained,
                           Recompute recompute, int batches, int groups, size_t *count) {
    Pair p;
    pair_open(&p, op, folder, name, trained, recompute);
    Objective o;
    LayerLoss layers;
    open_objective(&o, &p, setting(&p, k), 0);
    int first = batches == 1 ? p.B : p.B / 2;
    open_layers(&layers, &p, k);
    learn(&p, &o, &layers, 0, first);
    if (first < p.B) learn(&p, &o, &layers, first, p.B - first);
    for (int i = 0; i < p.student.params.count; i++) {
        const Param *x = &p.student.params.list[i];
        check(((x->group & trained) != 0) == (x->gradient != NULL), "%s: %s %s a gradient", name, x->name,
              x->gradient ? "is frozen but has" : "is trained but lacks");
    }
    float *all = gather_gradients(&p.student.params, op, groups, count);
    close_layers(&layers, &p);
    objective_close(&o);
    pair_close(&p);
    return all;
}

static void check_equivalents(const Ops *op, const char *folder, const char *name) {
    static const int masks[] = {GROUP_VISION, GROUP_CONNECTOR, GROUP_LM, GROUP_VISION | GROUP_CONNECTOR,
                                GROUP_CONNECTOR | GROUP_LM};
    size_t n, count;
    float *whole = gradients_of(op, folder, name, 0, GROUP_ALL, RECOMPUTE_NONE, 1, GROUP_ALL, &n);
    float *other = gradients_of(op, folder, name, 0, GROUP_ALL, RECOMPUTE_ACTIVATIONS, 1, GROUP_ALL, &count);
    expect_bits(name, "--recompute activations", other, count, whole, n);
    other = gradients_of(op, folder, name, 0, GROUP_ALL, RECOMPUTE_BLOCKS, 1, GROUP_ALL, &count);
    expect_bits(name, "--recompute blocks", other, count, whole, n);
    other = gradients_of(op, folder, name, 0, GROUP_ALL, RECOMPUTE_NONE, 2, GROUP_ALL, &count);
    double error = relative_error(other, whole, n);
    check(count == n && error <= SAME, "%s: two micro-batches differ from one batch by %.1e", name, error);
    free(other);
    free(whole);
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
        whole = gradients_of(op, folder, name, 0, GROUP_ALL, RECOMPUTE_NONE, 1, masks[i], &n);
        other = gradients_of(op, folder, name, 0, masks[i], (Recompute)(i % 3), 1, masks[i], &count);
        expect_bits(name, "freezing the other groups", other, count, whole, n);
        free(whole);
    }
}

/* ---- files ---- */

static void check_saving(Pair *p) {
    Error err;
    char path[] = "/tmp/test_model_XXXXXX";
    int descriptor = mkstemp(path);
    if (descriptor < 0) die("cannot make a temporary file in /tmp: %s", strerror(errno));
    close(descriptor);
    model_forward(&p->student, p->pixels, p->ids, p->B, p->T);
    float *before = logits_of(&p->student);
    size_t n = (size_t)p->n * (size_t)p->student.c.lm.vocab;
    int status = model_save(&p->student, path, &err);
    check(status == 0, "%s: %s", p->name, status ? err.text : "");
    if (status == 0) {
        Model again;
        status = model_open(&again, p->op, path, "", &err);
        check(status == 0, "%s: %s", p->name, status ? err.text : "");
        if (status) die("%s", err.text);
        model_plan(&again, p->B, p->T);
        model_forward(&again, p->pixels, p->ids, p->B, p->T);
        float *after = logits_of(&again);
        check(!memcmp(before, after, n * sizeof(float)), "%s: a saved model gives other logits", p->name);
        check(again.tokenizer.count == p->student.tokenizer.count, "%s: the saved tokenizer has another size",
              p->name);
        free(after);
        model_close(&again);
    }
    free(before);
    unlink(path);
}

/* ---- weights of 8 and 4 bits ---- */

/* Replaces the values of r by what those of q stand for; to be undone with release_dequantised. */
static void dequantise(Model *r, const Model *q) {
    const Ops *op = q->op;
    for (int i = 0; i < q->params.count; i++) {
        const Param *x = &q->params.list[i];
        if (x->dtype == DT_FLOATX) continue;
        const size_t bytes = quant_row_bytes(x->dtype, x->cols), scales = quant_row_scales(x->dtype, x->cols);
        uint8_t *from = xmalloc(param_value_bytes(x));
        bf16 *s = xmalloc(param_scale_bytes(x));
        floatX *to = xmalloc(x->n * sizeof(floatX));
        op->download(from, x->quants, param_value_bytes(x));
        op->download(s, x->scales, param_scale_bytes(x));
        for (size_t k = 0; k < x->n; k++) {
            const size_t row = k / x->cols;
            to[k] = to_x(quantised_element(x->dtype, from + row * bytes, s + row * scales, k % x->cols));
        }
        r->params.list[i].value = op->alloc(x->n * sizeof(floatX));
        op->upload(r->params.list[i].value, to, x->n * sizeof(floatX));
        free(from);
        free(s);
        free(to);
    }
}

static void release_dequantised(Model *r, const Model *q) {
    for (int i = 0; i < q->params.count; i++)
        if (q->params.list[i].dtype != DT_FLOATX) q->op->release(r->params.list[i].value);
}

/* A quantised model against the same one with the weights that its whole numbers and scales stand for.
 *
 * In the pass over whole texts they differ by rounding only. In decoding, the CPU also rounds the inputs of its matmuls, which
 * have up to QUANT_ROWS rows, to 8 bits. The error of an element is uniform within half a scale, so its standard deviation is
 * the group's largest magnitude over 127 sqrt(12) = 440; the largest of 32 normal numbers is 2.1 times their standard
 * deviation. That makes 0.5 % per matmul. The errors of different matmuls are independent, and at most 18 follow each other
 * here, encoder and decoder together: 0.5 % sqrt(18) = 2 %. Tested is the worst of some hundred rows: three times that. */
static void check_quantised(const Pair *p, const char *folder, WeightFormat format) {
    const double rounding = p->op->host_memory ? 6e-2 : 0;
    Error err;
    Pair quantised = *p, reference = *p;
    char *path = format_string("%s/%s.student.safetensors", folder, p->name);
    char *name = format_string("%s with %d bits", p->name, format == WEIGHTS_Q8 ? 8 : 4);
    if (model_open_as(&quantised.student, p->op, path, "", format, &err)) die("%s", err.text);
    if (model_open(&reference.student, p->op, path, "", &err)) die("%s", err.text);
    quantised.name = reference.name = name;
    dequantise(&reference.student, &quantised.student);
    Model *const models[2] = {&quantised.student, &reference.student};
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        model_plan(models[i], p->B, p->T);
        model_forward(models[i], p->pixels, p->ids, p->B, p->T);
        logits[i] = logits_of(models[i]);
    }
    const double error = relative_error(logits[0], logits[1], (size_t)p->n * (size_t)models[0]->c.lm.vocab);
    check(error <= SAME, "%s: the logits differ by %.1e", name, error);
    for (int b = 0; b < p->B; b++)
        for (int prefix = 0; prefix < p->T; prefix += 3)
            check_prefix(&quantised, logits[1], b, prefix, SAME + rounding);
    check_batch_decoding(&quantised, logits[1], SAME + rounding);
    release_dequantised(&reference.student, &quantised.student);
    for (int i = 0; i < 2; i++) {
        free(logits[i]);
        model_close(models[i]);
    }
    free(name);
    free(path);
}

/* ---- the schedule of the objective ---- */

/* Image2TikZ's numbers at chosen points: temperature 4, alpha 0.8, band 1 to 2. */
static void check_schedule(void) {
    static const struct {
        double progress;
        float temperature, soft;
        bool band;
    } points[] = {
        {0.00, 4.0f, 0.80f, false}, {0.10, 4.0f, 0.80f, false},  {0.24, 4.0f, 0.632f, false},
        {0.25, 3.4f, 0.62f, false}, {0.39, 3.4f, 0.452f, false}, {0.40, 3.4f, 0.44f, true},
        {0.50, 2.8f, 0.40f, true},  {0.55, 2.8f, 0.38f, true},   {0.70, 2.8f, 0.32f, true},
        {0.75, 2.4f, 0.32f, true},  {1.00, 2.4f, 0.32f, true},
    };
    ObjectiveConfig base;
    memset(&base, 0, sizeof base);
    base.temperature = 4;
    base.w_soft = 0.8f;
    base.w_ce = 0.2f;
    base.band_low = 1;
    base.band_high = 2;
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        ObjectiveConfig c = objective_schedule(base, KD_IMAGE2TIKZ, points[i].progress);
        check(fabsf(c.temperature - points[i].temperature) < 1e-5f && fabsf(c.w_soft - points[i].soft) < 1e-5f &&
                  fabsf(c.w_ce + c.w_soft - 1) < 1e-5f && (c.band_low > 0 || !isinf(c.band_high)) == points[i].band,
              "schedule at %.2f: temperature %g, soft %g, CE %g, band %g to %g", points[i].progress,
              (double)c.temperature, (double)c.w_soft, (double)c.w_ce, (double)c.band_low, (double)c.band_high);
    }
    base.temperature = 3;
    check(objective_schedule(base, KD_IMAGE2TIKZ, 0.9).temperature == 2, "schedule: the temperature does not stop at 2");
    base.temperature = 4;
    check(objective_schedule(base, KD_CONSTANT, 0.9).temperature == 4, "schedule: none moves the temperature");
    for (int i = 0; i <= 10; i++) {
        ObjectiveConfig c = objective_schedule(base, KD_ANNEAL, 0.1 * i);
        float expected = i < 8 ? 4 - 3 * (float)i / 8 : 1;
        check(fabsf(c.temperature - expected) < 1e-5f && c.w_soft == base.w_soft,
              "annealing at %.1f: temperature %g, expected %g", 0.1 * i, (double)c.temperature, (double)expected);
    }
}

/* ---- all of it ---- */

static void test_pair(const Ops *op, const char *folder, const char *name) {
    Pair p;
    pair_open(&p, op, folder, name, GROUP_ALL, RECOMPUTE_NONE);
    check_forward(&p, &p.student, p.pixels, "");
    check_forward(&p, &p.teacher, p.teacher_pixels, "teacher.");
    for (int k = 0; k < (int)number(&p, "settings"); k++) check_setting(&p, k);
    check_decoding(&p);
    check_saving(&p);
    check_adamw(&p);
    pair_close(&p);
    pair_open(&p, op, folder, name, 0, RECOMPUTE_NONE);  // without gradients all blocks share one set of buffers
    check_forward(&p, &p.student, p.pixels, "");
    check_decoding(&p);
    check_quantised(&p, folder, WEIGHTS_Q8);
    check_quantised(&p, folder, WEIGHTS_Q4);
    pair_close(&p);
    check_equivalents(op, folder, name);
}

int main(int argc, char **argv) {
    program_begin(argv);
    const char *folder = argc > 1 ? argv[1] : "test/fixtures", *device = argc > 2 ? argv[2] : "cpu";
    Error err;
    const Ops *op = ops_open(device, &err);
    if (!op) die("%s", err.text);
    check_schedule();
    check_drawn(op, folder);
    if (argc <= 3)
        for (int i = 0; i < PAIRS; i++) test_pair(op, folder, pair_names[i]);
    for (int i = 3; i < argc; i++) test_pair(op, folder, argv[i]);
    return checks_end();
}
