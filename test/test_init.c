/* What a new student starts from (train/init.h): models whose dropped parts contribute nothing must give students that compute
 * the same.
 *
 *   test_init [DEVICE]      cpu, or cuda; in the repository, whose starter has the data */
#include "checks.h"

#include "../lib/program.h"

#include "../train/init.h"

#ifdef PRECISION_FP32
static const double CUT = 2e-4;
#else
static const double CUT = 3e-2;
#endif

static const char tokens[] = "dev/starter/tokenizer.safetensors", texts[] = "dev/starter/val.bin";
static const char large[] =
    "tiny,vision.image_size=48,vision.layers=3,vision.width=48,vision.heads=3,vision.mlp=64,vision.eps=1e-12,"
    "connector.concat=2,connector.bias=true,lm.layers=3,lm.width=40,lm.heads=6,lm.kv_heads=3,lm.head_dim=8,lm.ffn=24,"
    "lm.eps=1e-12,lm.qkv_bias=true,lm.qk_norm=true,lm.tied=false";
static const char *small =
    "tiny,vision.image_size=48,vision.layers=2,vision.width=32,vision.heads=2,vision.mlp=44,vision.eps=1e-12,"
    "connector.concat=2,connector.bias=true,lm.layers=2,lm.width=26,lm.heads=2,lm.kv_heads=2,lm.head_dim=8,lm.ffn=17,"
    "lm.eps=1e-12,lm.qkv_bias=true,lm.qk_norm=true,lm.tied=false";
enum { T = 9 };
static const Ops *op;
static Random rng;

/* ---- a model whose dropped parts contribute nothing ---- */

static Param *find(const Model *m, const char *format, int l) {
    char name[96];
    snprintf(name, sizeof name, format, l);
    for (int i = 0; i < m->params.count; i++)
        if (!strcmp(m->params.list[i].name, name)) return &m->params.list[i];
    die("no parameter %s", name);
}

static floatX *values_of(const Param *p) {
    floatX *host = xmalloc(p->n * sizeof(floatX));
    op->download(host, p->value, p->n * sizeof(floatX));
    return host;
}

static void put_values(const Param *p, floatX *host) {
    op->upload(p->value, host, p->n * sizeof(floatX));
    free(host);
}

/* Multiplies rows, or columns, by a factor: part number `part` of those from `first` on, in parts of `size`. */
static void scale_part(const Param *p, bool columns, int first, int part, int size, float factor) {
    floatX *x = values_of(p);
    for (size_t i = 0; i < p->n; i++) {
        const int at = (int)(columns ? i % (size_t)p->cols : i / (size_t)p->cols) - first;
        if (at >= part * size && at < (part + 1) * size) x[i] = to_x(factor * from_x(x[i]));
    }
    put_values(p, x);
}

static void zero_rows(const Param *p, int first, int part, int size) { scale_part(p, false, first, part, size, 0); }
static void zero_columns(const Param *p, int part, int size) { scale_part(p, true, 0, part, size, 0); }

/* Makes all biases and norms of a model random, so that none is left out unseen. */
static void draw_vectors(const Model *m) {
    for (int i = 0; i < m->params.count; i++) {
        const Param *p = &m->params.list[i];
        floatX *x = values_of(p);
        const bool one = p->init_std == 1;
        for (size_t k = 0; k < p->n && p->ndim == 1; k++) x[k] = to_x((float)one + 0.3f * random_normal(&rng));
        put_values(p, x);
    }
}

/* The decoder: key head 1 of each layer gives nothing; of the query heads that are left, the first of each group attends to
 * everything alike, the other sharply, and nothing reads the first; neurons 3 .. 9 and channels 5 .. 18 are 0. The last layer
 * adds nothing. */
static void empty_decoder(const Model *m) {
    for (int l = 0; l < 3; l++) {
        Param *qkv = find(m, "lm.%d.qkv.weight", l), *out = find(m, "lm.%d.out.weight", l);
        Param *down = find(m, "lm.%d.down.weight", l), *gate_up = find(m, "lm.%d.gate_up.weight", l);
        Param *bias = find(m, "lm.%d.qkv.bias", l);
        zero_rows(qkv, 72, 1, 8);  // its value
        zero_rows(bias, 72, 1, 8);
        scale_part(find(m, "lm.%d.q_norm", l), false, 0, 0, 8, 10);
        for (int h = 0; h < 6; h += 2) {
            zero_rows(qkv, 0, h, 8);
            zero_rows(bias, 0, h, 8);
            zero_columns(out, h, 8);
        }
        for (int i = 3; i < 10; i++) zero_rows(gate_up, 0, i, 1);
        zero_rows(out, 5, 0, 14);
        zero_rows(down, 5, 0, 14);
        if (l == 2) zero_rows(out, 0, 0, 40), zero_rows(down, 0, 0, 40);
    }
    for (int i = 5; i < 19; i++) zero_columns(find(m, "lm.embed", 0), i, 1);
    zero_rows(find(m, "connector.weight", 0), 5, 0, 14);
    zero_rows(find(m, "connector.bias", 0), 5, 0, 14);
}

/* Row 2 i + 1 becomes the negative of row 2 i, so that the channels of the residual stream have the mean 0 (columns: the same
 * of columns); the first 16 become 0. */
static void pair_channels(const Param *p, bool columns) {
    floatX *x = values_of(p);
    const size_t C = (size_t)p->cols, step = columns ? 1 : C;
    for (size_t i = 0; i < p->n; i++) {
        const size_t at = columns ? i % C : i / C;
        if (at % 2) x[i] = to_x(-from_x(x[i - step]));
        if (at < 16) x[i] = to_x(0);
    }
    put_values(p, x);
}

/* The encoder: head 0 of each layer gives nothing, neurons 20 .. 39 are 0, and so are the first 16 channels, also after the
 * norms. The layer in the middle adds nothing. */
static void empty_encoder(const Model *m) {
    static const char *const written[] = {"vision.%d.proj.weight", "vision.%d.proj.bias", "vision.%d.fc2.weight",
                                          "vision.%d.fc2.bias"};
    static const char *const normed[] = {"vision.%d.norm1.weight", "vision.%d.norm1.bias", "vision.%d.norm2.weight",
                                         "vision.%d.norm2.bias",   "vision.norm.weight",   "vision.norm.bias"};
    for (int l = 0; l < 3; l++) {
        zero_rows(find(m, "vision.%d.qkv.weight", l), 96, 0, 16);
        zero_rows(find(m, "vision.%d.qkv.bias", l), 96, 0, 16);
        for (int i = 20; i < 40; i++) {
            zero_rows(find(m, "vision.%d.fc1.weight", l), 0, i, 1);
            zero_rows(find(m, "vision.%d.fc1.bias", l), 0, i, 1);
        }
        for (int i = 0; i < 4; i++) {
            pair_channels(find(m, written[i], l), false);
            if (l == 1) zero_rows(find(m, written[i], l), 0, 0, 48);
        }
        for (int i = 0; i < 6; i++) zero_rows(find(m, normed[i], l), 0, 0, 16);
    }
    pair_channels(find(m, "vision.patch.weight", 0), false);
    pair_channels(find(m, "vision.patch.bias", 0), false);
    pair_channels(find(m, "vision.position", 0), true);
}

/* ---- students ---- */

static void new_model(Model *m, const char *shape, uint64_t seed) {
    Error err;
    if (model_create(m, op, shape, tokens, seed, &err)) die("%s", err.text);
}

static InitConfig config(const char *path, const char *layers) {
    Error err;
    InitConfig c = {.path = path, .must_match = true, .width = true, .data = texts, .images = 24, .seed = 3};
    if (init_layers_parse(&c, layers, &err)) die("%s", err.text);
    return c;
}

static float *logits_of(Model *m, int *n) {
    uint8_t pixels[48 * 48 * 3];
    int ids[T];
    random_seed(&rng, 8);
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (uint8_t)random_below(&rng, 256);
    for (int i = 0; i < T; i++) ids[i] = (int)random_below(&rng, (uint32_t)m->tokenizer.count);
    model_plan(m, 1, T);
    model_forward(m, pixels, ids, 1, T);
    *n = m->n * m->c.lm.vocab;
    float *logits = op->alloc((size_t)*n * sizeof(float)), *host = xmalloc((size_t)*n * sizeof(float));
    linear_logits(op, logits, m->hidden, m->lm_head, (size_t)m->n);
    op->download(host, logits, (size_t)*n * sizeof(float));
    op->release(logits);
    return host;
}

static bool same_values(const Model *a, const Model *b) {
    bool same = a->params.count == b->params.count;
    for (int i = 0; i < a->params.count && same; i++)
        same = param_same(&a->params.list[i], op, &b->params.list[i], op);
    return same;
}

/* A student of the other model's own shape is that model, bit for bit. */
static void check_own_shape(const char *path, const Model *teacher) {
    static const char *const layers[] = {"even", "importance", "1,2,3"};
    for (int i = 0; i < 3; i++) {
        Model m;
        InitConfig c = config(path, layers[i]);
        new_model(&m, large, 5);
        check(!same_values(&m, teacher), "the new student is another model");
        init_student(&m, &c);
        check(same_values(&m, teacher), "layers %s: a student of the same shape is the same model", layers[i]);
        model_close(&m);
    }
}

/* A smaller student computes what the other model does, whose dropped parts contribute nothing. */
static void check_cut(const char *path, const char *layers, const float *expected, int count, bool same) {
    Model m, again;
    int n;
    InitConfig c = config(path, layers);
    new_model(&m, small, 5);
    new_model(&again, small, 5);
    init_student(&m, &c);
    init_student(&again, &c);
    check(same_values(&m, &again), "layers %s: the same again", layers);
    float *logits = logits_of(&m, &n);
    const double error = n == count ? relative_error(logits, expected, (size_t)n) : 1;
    check(same == (error <= CUT), "layers %s: the logits of the cut student differ by %.1e", layers, error);
    free(logits);
    model_close(&m);
    model_close(&again);
}

static void check_parse(void) {
    Error err;
    static const char *const bad[] = {"", "0", "1,", "1,,2", "-1", "1;2", "1.5", "odd"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        InitConfig c = {0};
        check(init_layers_parse(&c, bad[i], &err) != 0 && strstr(err.text, "counted from 1"), "layers '%s'", bad[i]);
    }
    const double values[6] = {1, 5, 3, 5, 0, 3};
    int kept[3];
    keep_largest(kept, 3, values, 6);
    check(kept[0] == 1 && kept[1] == 2 && kept[2] == 3, "the largest, and the first of equals: %d %d %d", kept[0],
          kept[1], kept[2]);
}

/* Which connectors have tokens of the same places, and which order patches alike, so that one may begin with the other's weights. */
static void check_connectors(void) {
    const VisionConfig concat = {.image_height = 16, .image_width = 32, .patch_size = 4, .concat = 4};
    VisionConfig other = concat, strips = concat, shuffle = concat;
    strips.connector = CONNECTOR_STRIPS;
    shuffle.connector = CONNECTOR_SHUFFLE, shuffle.scale_factor = 2;
    check(connector_joins_alike(&concat, &other) && connector_joins_alike(&strips, &strips), "connectors of one kind");
    check(!connector_joins_alike(&concat, &strips) && !connector_joins_alike(&concat, &shuffle) &&
              !connector_joins_alike(&strips, &shuffle),
          "connectors of different kinds with weights of one shape");
    check(connector_same_places(&concat, &other) && connector_same_places(&strips, &strips), "tokens of the same places");
    check(!connector_same_places(&strips, &shuffle) && !connector_same_places(&concat, &strips), "tokens of other places");
    other.letter = 8;
    check(!connector_same_places(&concat, &other), "letters have a height in one of two models");
    strips.letter = 8;
    VisionConfig finer = {.image_height = 32, .image_width = 64, .patch_size = 8, .concat = 4, .letter = 16};
    finer.connector = CONNECTOR_STRIPS;
    check(connector_same_places(&strips, &finer), "the same letters at twice the resolution");
    finer.letter = 8;
    check(!connector_same_places(&strips, &finer), "letters of another share of the image");
}

/* Images of 16 x 24 pixels become images of 8 x 48: of the position embeddings, both have one row and three columns. */
static void check_larger_images(const char *path) {
    static const char shape[] = "tiny,vision.patch=8,connector.concat=2,vision.image_";
    char before[256], after[256];
    Error err;
    Model teacher, student, random;
    snprintf(before, sizeof before, "%sheight=16,vision.image_width=24", shape);
    snprintf(after, sizeof after, "%sheight=8,vision.image_width=48", shape);
    new_model(&teacher, before, 1);
    new_model(&student, after, 2);
    new_model(&random, after, 2);
    die_if(model_save(&teacher, path, &err), &err);
    init_student(&student, &(InitConfig){.path = path, .must_match = true});
    const Param *rows[3] = {teacher.vision.rows, student.vision.rows, random.vision.rows};
    const Param *columns[3] = {teacher.vision.columns, student.vision.columns, random.vision.columns};
    floatX *r[3], *c[3];
    for (int i = 0; i < 3; i++) r[i] = values_of(rows[i]), c[i] = values_of(columns[i]);
    const size_t C = (size_t)rows[0]->cols;
    check(rows[1]->rows == 1 && columns[1]->rows == 6, "a frame of 1 x 6 patches");
    check(!memcmp(r[1], r[0], C * sizeof(floatX)), "the first row of positions");
    check(!memcmp(c[1], c[0], 3 * C * sizeof(floatX)), "the first three columns of positions");
    check(!memcmp(c[1] + 3 * C, c[2] + 3 * C, 3 * C * sizeof(floatX)), "further columns start at random");
    for (int i = 0; i < 3; i++) free(r[i]), free(c[i]);
    model_close(&teacher);
    model_close(&student);
    model_close(&random);
}

int main(int argc, char **argv) {
    Error err;
    Model teacher;
    int n;
    char path[] = "/tmp/test_init_XXXXXX";
    program_begin(argv);
    op = ops_open(argc > 1 ? argv[1] : "cpu", &err);
    if (!op) die("%s", err.text);
    const int descriptor = mkstemp(path);
    if (descriptor < 0) die("cannot make a temporary file in /tmp: %s", strerror(errno));
    close(descriptor);
    check_parse();
    check_connectors();
    random_seed(&rng, 7);
    new_model(&teacher, large, 1);
    draw_vectors(&teacher);
    empty_decoder(&teacher);
    empty_encoder(&teacher);
    die_if(model_save(&teacher, path, &err), &err);
    check_own_shape(path, &teacher);
    float *expected = logits_of(&teacher, &n);
    check_cut(path, "importance", expected, n, true);
    check_cut(path, "1,2", expected, n, true);  // of the encoder, which has its layers evenly, 1 and 3
    check_cut(path, "even", expected, n, false);
    check_cut(path, "2,1", expected, n, false);
    free(expected);
    model_close(&teacher);
    check_larger_images(path);
    unlink(path);
    return checks_end();
}
