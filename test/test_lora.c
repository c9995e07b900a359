/* Low-rank adapters (linear.h, lora.h).
 *
 *   test_lora [FIXTURES [DEVICE]]                    default: test/fixtures cpu; on a GPU fewer cases
 *   test_lora --gradients MODEL ADAPTER PIXELS IDS OUT    for test/hub_lora.py: PIXELS u8 [B, S, S, 3] and IDS i32 [B, T] as
 *                     plain files; writes logits [n, V] and the gradients of the mean cross-entropy for every A and B
 *
 * A model with adapters computes what the model with merged weights W + s B A computes, and the chain rule gives the
 * adapters' gradients from that of W: dA = s Bᵀ dW, dB = s dW Aᵀ. test_model.c compares dW with PyTorch. Beyond that: B = 0
 * changes nothing, nothing of the base is trained or gets memory, recomputation and micro-batches change no more than they
 * may, dropout has the derivative of what it computes, and files that do not fit are refused. Prints what fails, then the
 * line "N passed, M failed". */
#include "checks.h"

#include "../lib/program.h"

#include "../kernels/device.h"
#include "../lora.h"
#include "../loss.cuh"
#include "../train/optimizer.h"

#ifdef PRECISION_FP32
static const double FORWARD = 1e-5, GRADIENT = 1e-4, SLOPE = 1e-2;
#else
static const double FORWARD = 2e-2, GRADIENT = 1.5e-1, SLOPE = 1;  // rounding hides a small step's change of the loss
#endif

enum { RANK = 3, CHUNK = 7 };
static const double ALPHA = 5;

static const char *fixtures = "test/fixtures";
static const Ops *device;
static char folder[] = "/tmp/tikz-lora-XXXXXX";

static float *host_f32(const float *x, size_t n) {
    float *host = xmalloc(n * sizeof *host);
    device->download(host, x, n * sizeof *host);
    return host;
}

static float *host_x(const floatX *x, size_t n) {
    floatX *raw = xmalloc(n * sizeof *raw);
    float *host = xmalloc(n * sizeof *host);
    device->download(raw, x, n * sizeof *raw);
    for (size_t i = 0; i < n; i++) host[i] = from_x(raw[i]);
    free(raw);
    return host;
}

/* ---- a student of the fixtures, being trained ---- */

typedef struct {
    Model m;
    Optimizer optimizer;
    Objective objective;
    const uint8_t *pixels;
    const int *ids;  // [B, T]
    int B, T, n;
} Student;

static char *path_of(const char *name) { return format_string("%s/%s", folder, name); }

/* Trains `groups` of the model, or its adapters where it has some. */
static void student_train(Student *s, int groups, Recompute recompute) {
    AdamW adamw;
    memset(&adamw, 0, sizeof adamw);
    Model *m = &s->m;
    Params *trained = m->lora ? &m->lora->params : &m->params;
    const int in_list = m->lora ? GROUP_ALL : groups;
    const ObjectiveConfig c = {
        .w_ce = 1, .temperature = 1, .mix = 0.5f, .band_high = INFINITY, .gate_confidence = 2};
    model_train(m, m->lora ? lora_groups(m->lora->targets) : groups, recompute);
    objective_open(&s->objective, c, m, (Weight){0}, CHUNK, s->B * s->T, s->B, 1);
    optimizer_open(&s->optimizer, device, adamw, &trained, &in_list, 1, 0, 1, false);
    model_plan(m, s->B, s->T);
}

/* Adds the gradients of rows first .. first+B-1; returns the mean loss of these rows' positions, times their share. */
static double student_learn(Student *s, int first, int B) {
    const TeacherOutput none = {0};
    const size_t bytes = image_size_bytes(vision_size(&s->m.c.vision));
    model_forward(&s->m, s->pixels + first * bytes, s->ids + first * s->T, B, s->T);
    objective_run(&s->objective, &s->m, &none, (LossScale){1.0 / s->n, 1.0 / s->B});
    model_backward(&s->m);
    ObjectiveSums sums = objective_collect(&s->objective);
    return sums.ce / s->n;
}

static double student_step(Student *s) {
    optimizer_zero_gradients(&s->optimizer);
    return student_learn(s, 0, s->B);
}

static void student_close(Student *s) {
    objective_close(&s->objective);
    optimizer_close(&s->optimizer);
    model_close(&s->m);
}

static void student_open(Student *s, const Ops *op, const char *path, const SafeTensors *expected) {
    Error err;
    memset(s, 0, sizeof *s);
    if (model_open(&s->m, op, path, "", &err)) die("%s", err.text);
    const SafeTensor *ids = safetensors_find(expected, "ids"), *pixels = safetensors_find(expected, "pixels");
    if (!ids || !pixels) die("%s has no ids or pixels; run test/make_fixtures.py", expected->file.path);
    s->ids = (const int *)(const void *)ids->data;
    s->pixels = pixels->data;
    s->B = (int)ids->shape[0], s->T = (int)ids->shape[1];
    for (int i = 0; i < s->B * s->T; i++) s->n += s->ids[i] >= 0;
}

/* B at random, so that the adapters do something and A gets a gradient. */
static void fill_b(const Model *m) {
    Random rng;
    random_seed(&rng, 7);
    for (int i = 0; i < m->lora->layers; i++) {
        const Param *b = m->lora->layer[i].b;
        floatX *host = xmalloc(b->n * sizeof *host);
        for (size_t k = 0; k < b->n; k++) host[k] = to_x(0.3f * random_normal(&rng));
        m->op->upload(b->value, host, b->n * sizeof *host);
        free(host);
    }
}

static LoraConfig config(const char *targets, double dropout) {
    Error err;
    LoraConfig c = {.rank = RANK, .alpha = ALPHA, .dropout = dropout};
    if (lora_targets_parse(&c.targets, targets, &err)) die("%s", err.text);
    return c;
}

static void create(Student *s, const char *targets, double dropout) {
    Error err;
    const LoraConfig c = config(targets, dropout);
    if (lora_create(&s->m, &c, 11, &err)) die("%s", err.text);
}

/* ---- gradients ---- */

/* The gradients of A and Bᵀ that follow from dW [O, I] by the chain rule. */
static void chain_rule(float *dA, float *dB, const float *dW, const float *A, const float *B, int O, int I) {
    const double s = ALPHA / RANK;
    for (int k = 0; k < RANK; k++) {
        for (int i = 0; i < I; i++) {
            double sum = 0;
            for (int o = 0; o < O; o++) sum += (double)B[k * O + o] * (double)dW[o * I + i];
            dA[k * I + i] = (float)(s * sum);
        }
        for (int o = 0; o < O; o++) {
            double sum = 0;
            for (int i = 0; i < I; i++) sum += (double)dW[o * I + i] * (double)A[k * I + i];
            dB[k * O + o] = (float)(s * sum);
        }
    }
}

static void compare_layer(const char *name, const LoraLayer *l, const Param *w) {
    const int O = l->b->cols, I = l->a->cols;
    float *A = host_x(l->a->value, l->a->n), *B = host_x(l->b->value, l->b->n), *dW = host_f32(w->gradient, w->n);
    float *dA = xmalloc(l->a->n * sizeof *dA), *dB = xmalloc(l->b->n * sizeof *dB);
    float *gotA = host_f32(l->a->gradient, l->a->n), *gotB = host_f32(l->b->gradient, l->b->n);
    chain_rule(dA, dB, dW, A, B, O, I);
    const double errorA = relative_error(gotA, dA, l->a->n), errorB = relative_error(gotB, dB, l->b->n);
    check(errorA <= GRADIENT, "%s: gradient of %s differs by %.1e", name, l->a->name, errorA);
    check(errorB <= GRADIENT, "%s: gradient of %s differs by %.1e", name, l->b->name, errorB);
    free(A), free(B), free(dW), free(dA), free(dB), free(gotA), free(gotB);
}

/* The same student with its adapters merged, through their file. */
static void merge_to_file(const char *model, const char *adapter, const char *merged) {
    Model m;
    Error err;
    if (model_open(&m, cpu_ops(), model, "", &err) || lora_open(&m, adapter, &err)) die("%s", err.text);
    lora_merge(&m);
    if (model_save(&m, merged, &err)) die("%s", err.text);
    model_close(&m);
}

static void compare_hidden(const char *name, const Model *a, const Model *b) {
    const size_t n = (size_t)a->n * a->c.lm.hidden_size;
    float *x = host_x(a->hidden, n), *y = host_x(b->hidden, n);
    const double error = relative_error(x, y, n);
    check(error <= FORWARD, "%s: hidden states with adapters and with merged weights differ by %.1e", name, error);
    free(x), free(y);
}

/* All gradients of the adapters, one after another. */
static float *all_gradients(const Student *s) { return host_f32(s->optimizer.gradients, s->optimizer.n); }

static void test_base_is_frozen(const char *name, const Student *s) {
    for (int i = 0; i < s->m.params.count; i++)
        check(!s->m.params.list[i].gradient, "%s: %s has a gradient", name, s->m.params.list[i].name);
    size_t elements = 0;
    for (int i = 0; i < s->m.lora->params.count; i++) elements += (s->m.lora->params.list[i].n + 31) / 32 * 32;
    check(s->optimizer.n == elements, "%s: the optimizer has %zu elements, the adapters %zu", name, s->optimizer.n,
          elements);
}

/* Micro-batches add up, and what is recomputed changes no bit. */
static void test_passes(const char *name, const char *model, const char *adapter, const SafeTensors *expected,
                        Student *s) {
    Error err;
    float *whole = all_gradients(s);
    optimizer_zero_gradients(&s->optimizer);
    for (int b = 0; b < s->B; b++) student_learn(s, b, 1);
    float *parts = all_gradients(s);
    const double error = relative_error(parts, whole, s->optimizer.n);
    check(error <= GRADIENT / 10, "%s: micro-batches differ from the batch by %.1e", name, error);
    for (int recompute = RECOMPUTE_ACTIVATIONS; recompute <= RECOMPUTE_BLOCKS; recompute++) {
        Student again;
        student_open(&again, device, model, expected);
        if (lora_open(&again.m, adapter, &err)) die("%s", err.text);
        student_train(&again, 0, (Recompute)recompute);
        student_step(&again);
        float *got = all_gradients(&again);
        check(!memcmp(got, whole, s->optimizer.n * sizeof *got), "%s: recomputation %d changes gradients", name,
              recompute);
        free(got);
        student_close(&again);
    }
    free(whole), free(parts);
}

static void test_gradients(const char *pair, const char *targets) {
    Student with, merged;
    SafeTensors expected;
    Error err;
    char *name = format_string("%s %s", pair, targets), *adapter = path_of("adapter.st"),
         *file = path_of("merged.st");
    char *model = format_string("%s/%s.student.safetensors", fixtures, pair);
    char *data = format_string("%s/%s.expected.safetensors", fixtures, pair);
    if (safetensors_open(&expected, data, &err)) die("%s", err.text);
    student_open(&with, device, model, &expected);
    create(&with, targets, 0);
    fill_b(&with.m);
    if (lora_save(&with.m, adapter, &err)) die("%s", err.text);
    merge_to_file(model, adapter, file);
    student_open(&merged, device, file, &expected);
    student_train(&with, 0, RECOMPUTE_NONE);
    student_train(&merged, GROUP_ALL, RECOMPUTE_NONE);
    const double a = student_step(&with), b = student_step(&merged);
    check(fabs(a - b) <= FORWARD * fabs(b), "%s: the loss is %.9g, with merged weights %.9g", name, a, b);
    compare_hidden(name, &with.m, &merged.m);
    check(with.m.lora->layers > 0, "%s: no layer has an adapter", name);
    for (int i = 0; i < with.m.lora->layers; i++) {
        const LoraLayer *l = &with.m.lora->layer[i];
        compare_layer(name, l, &merged.m.params.list[l->weight - with.m.params.list]);
    }
    test_base_is_frozen(name, &with);
    if (device->host_memory) test_passes(name, model, adapter, &expected, &with);
    student_close(&with), student_close(&merged);
    safetensors_close(&expected);
    free(name), free(adapter), free(file), free(model), free(data);
}

/* ---- at the start, and with dropout ---- */

static void test_start(const char *model, const SafeTensors *expected) {
    Student plain, with;
    student_open(&plain, device, model, expected);
    student_open(&with, device, model, expected);
    create(&with, "all", 0);
    student_train(&plain, GROUP_ALL, RECOMPUTE_NONE);
    student_train(&with, 0, RECOMPUTE_NONE);
    student_step(&plain), student_step(&with);
    compare_hidden("B = 0", &with.m, &plain.m);
    for (int i = 0; i < with.m.lora->layers; i++) {
        const LoraLayer *l = &with.m.lora->layer[i];
        float *A = host_x(l->a->value, l->a->n), most = 0, sum = 0;
        const float bound = 1 / sqrtf((float)l->a->cols);
        for (size_t k = 0; k < l->a->n; k++) most = fmaxf(most, fabsf(A[k])), sum += A[k];
        check(most <= bound * 1.004f && most >= bound * 0.8f, "%s is within %g, expected %g", l->a->name, most,
              bound);
        check(fabsf(sum) <= 3 * bound * sqrtf((float)l->a->n), "%s has the sum %g", l->a->name, sum);
        float *dA = host_f32(l->a->gradient, l->a->n), *dB = host_f32(l->b->gradient, l->b->n);
        double squares = 0;
        for (size_t k = 0; k < l->a->n; k++) check(dA[k] == 0, "%s has a gradient though B = 0", l->a->name);
        for (size_t k = 0; k < l->b->n; k++) squares += (double)dB[k] * (double)dB[k];
        check(squares > 0, "%s has no gradient", l->b->name);
        free(A), free(dA), free(dB);
    }
    student_close(&plain), student_close(&with);
}

/* Moves the adapters by `by` along a direction. */
static void move(Student *s, const float *direction, float by) {
    floatX *host = xmalloc(s->optimizer.n * sizeof *host);
    device->download(host, s->optimizer.values, s->optimizer.n * sizeof *host);
    for (size_t i = 0; i < s->optimizer.n; i++) host[i] = to_x(from_x(host[i]) + by * direction[i]);
    device->upload(s->optimizer.values, host, s->optimizer.n * sizeof *host);
    free(host);
}

static double loss_at(Student *s, uint64_t key) {
    lora_set_dropout(&s->m, key);
    return student_step(s);
}

/* With a fixed key the loss is a function like another: its slope along the gradient is the gradient's square. */
static void test_dropout(const char *model, const SafeTensors *expected) {
    Student s;
    student_open(&s, device, model, expected);
    create(&s, "all", 0.4);
    fill_b(&s.m);
    student_train(&s, 0, RECOMPUTE_BLOCKS);
    const double none = loss_at(&s, 0), first = loss_at(&s, 5), second = loss_at(&s, 6);
    check(first != none && first != second, "dropout drops nothing, or always the same: %g %g %g", none, first,
          second);
    if (!device->host_memory) {
        student_close(&s);
        return;
    }
    check(loss_at(&s, 5) == first && loss_at(&s, 0) == none, "the same key does not drop the same");
    loss_at(&s, 5);
    float *gradient = all_gradients(&s);
    double squares = 0;
    for (size_t i = 0; i < s.optimizer.n; i++) squares += (double)gradient[i] * (double)gradient[i];
    const float step = (float)(0.02 / sqrt(squares));
    move(&s, gradient, step);
    const double up = loss_at(&s, 5);
    move(&s, gradient, -2 * step);
    const double slope = (up - loss_at(&s, 5)) / (2 * (double)step);
    check(fabs(slope / squares - 1) <= SLOPE,
          "the loss with dropout has the slope %g along its gradient, expected %g", slope, squares);
    free(gradient);
    student_close(&s);
}

/* ---- files ---- */

static void refuses(const char *model, const char *adapter, const char *part) {
    Model m;
    Error err = {""};
    if (model_open(&m, cpu_ops(), model, "", &err)) die("%s", err.text);
    const int bad = lora_open(&m, adapter, &err);
    check(bad && strstr(err.text, part), "%s is not refused with '%s': %s", adapter, part, err.text);
    check(!m.lora, "%s is refused, but its adapters stay", adapter);
    for (int i = 0; bad && i < m.params.count; i++)
        check(!m.params.list[i].lora, "%s is refused, but %s has an adapter", adapter, m.params.list[i].name);
    model_close(&m);
}

/* Copies a file, with the first `from` replaced by `to`, which is as long. */
static char *damaged(const char *path, const char *name, const char *from, const char *to) {
    Error err;
    MappedFile file;
    if (file_map(&file, path, &err)) die("%s", err.text);
    char *copy = path_of(name), *data = memcpy(xmalloc(file.size), file.data, file.size);
    char *at = memmem(data, file.size, from, strlen(from));
    if (!at || strlen(from) != strlen(to)) die("%s does not hold '%s'", path, from);
    memcpy(at, to, strlen(to));
    FILE *f = fopen(copy, "wb");
    if (!f || fwrite(data, 1, file.size, f) != file.size || fclose(f)) die("cannot write %s", copy);
    file_unmap(&file);
    free(data);
    return copy;
}

static void test_files(const char *model, const char *other) {
    static const char *const damage[][3] = {
        {"tikz.c/lora/1", "tikz.c/lora/2", "not an adapter of tikz.c"},
        {"\"lora.rank\":\"3\"", "\"lora.rank\":\"0\"", "expected a number from 1"},
        {"\"lora.rank\":\"3\"", "\"lora.rank\":\"4\"", "has shape [3, "},
        {"\"lora.rank\":\"3\"", "\"lora.rank\":\"x\"", "expected a number from 1"},
        {"\"lora.rank\"", "\"lora.tank\"", "lora.rank is missing"},
        {"\"lora.alpha\":\"5\"", "\"lora.alpha\":\"0\"", "lora.alpha is \"0\""},
        {"qkv,out", "qkv,oat", "there is no layer \"oat\""},
        {"lora.base\"", "lora.bale\"", "an adapter of another model"},
        {"lm.0.qkv.lora_A", "lm.9.qkv.lora_A", "lm.0.qkv.lora_A is missing"},
    };
    Error err;
    Model m;
    char *adapter = path_of("adapter.st"), *again = path_of("again.st");
    const LoraConfig both = config("qkv,out", 0), wide = {.rank = 1000, .alpha = 1, .targets = both.targets};
    if (model_open(&m, cpu_ops(), model, "", &err)) die("%s", err.text);
    check(lora_create(&m, &wide, 1, &err) && strstr(err.text, "is too large"), "rank 1000 is not refused");
    if (lora_create(&m, &both, 1, &err) || lora_save(&m, adapter, &err)) die("%s", err.text);
    model_close(&m);
    refuses(other, adapter, "an adapter of another model");
    refuses(model, model, "not an adapter");
    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        char *path = damaged(adapter, "damaged.st", damage[i][0], damage[i][1]);
        refuses(model, path, damage[i][2]);
        free(path);
    }
    if (model_open(&m, cpu_ops(), model, "", &err) || lora_open(&m, adapter, &err)) die("%s", err.text);
    check(m.lora->rank == RANK && m.lora->alpha == ALPHA && m.lora->targets == both.targets, "the settings changed");
    if (lora_save(&m, again, &err)) die("%s", err.text);
    MappedFile a, b;
    if (file_map(&a, adapter, &err) || file_map(&b, again, &err)) die("%s", err.text);
    check(a.size == b.size && !memcmp(a.data, b.data, a.size), "an adapter file that is written again differs");
    file_unmap(&a), file_unmap(&b);
    model_close(&m);
    free(adapter), free(again);
}

static void test_targets(void) {
    Error err;
    unsigned bits;
    char text[256];
    const Param p = {.name = "lm.12.qkv.weight"}, q = {.name = "vision.3.qkv.weight"}, n = {.name = "lm.12.norm1"};
    check(!lora_targets_parse(&bits, "qkv,down", &err) && bits == 9, "qkv,down");
    check(lora_is_target(&p, bits) && !lora_is_target(&q, bits) && !lora_is_target(&n, ~0u), "names of parameters");
    check(!lora_targets_parse(&bits, "vision", &err) && bits == 0xf0 && lora_is_target(&q, bits), "vision");
    check(!lora_targets_parse(&bits, "all", &err) && bits == (1u << LORA_TARGETS) - 1, "all");
    lora_targets_write(text, sizeof text, bits);
    check(!lora_targets_parse(&bits, text, &err) && bits == (1u << LORA_TARGETS) - 1, "%s", text);
    check(lora_targets_parse(&bits, "qkv,head", &err) && strstr(err.text, "\"head\""), "head is not refused");
    check(lora_targets_parse(&bits, "", &err), "no layer is not refused");
}

/* ---- for test/hub_lora.py ---- */

static const void *read_file(const char *path, size_t *bytes) {
    Error err;
    MappedFile *file = xcalloc(1, sizeof *file);
    die_if(file_map(file, path, &err), &err);
    *bytes = file->size;
    return file->data;
}

static int write_gradients(char **arguments) {
    Error err;
    Student s;
    size_t pixel_bytes, id_bytes;
    memset(&s, 0, sizeof s);
    device = cpu_ops();
    die_if(model_open(&s.m, device, arguments[0], "", &err) || lora_open(&s.m, arguments[1], &err), &err);
    s.pixels = read_file(arguments[2], &pixel_bytes);
    s.ids = read_file(arguments[3], &id_bytes);
    s.B = (int)(pixel_bytes / model_pixels(&s.m));
    s.T = s.B ? (int)(id_bytes / sizeof(int)) / s.B : 0;
    if (!s.T) die("no images or no ids");
    for (int i = 0; i < s.B * s.T; i++) s.n += s.ids[i] >= 0;
    student_train(&s, 0, RECOMPUTE_NONE);
    student_step(&s);
    const Params *p = &s.m.lora->params;
    const size_t V = s.m.c.lm.vocab;
    SafeTensorSpec *specs = xcalloc((size_t)p->count + 1, sizeof *specs);
    for (int i = 0; i < params_specs(p, specs); i++) specs[i].dtype = DT_F32;
    specs[p->count] = (SafeTensorSpec){"logits", DT_F32, 2, {s.n, (int64_t)V}};
    SafeTensorsWriter w;
    die_if(safetensors_write_begin(&w, arguments[4], specs, p->count + 1, NULL, NULL, 0, &err), &err);
    for (int i = 0; i < p->count; i++)
        die_if(write_from_device(p->list[i].gradient, p->list[i].n * sizeof(float), device, &w, &err), &err);
    float *logits = device->alloc(s.n * V * sizeof(float));
    linear_logits(device, logits, s.m.hidden, s.m.lm_head, (size_t)s.n);
    die_if(write_from_device(logits, s.n * V * sizeof(float), device, &w, &err), &err);
    die_if(safetensors_write_end(&w, &err), &err);
    return 0;
}

int main(int argc, char **argv) {
    static const char *const targets[] = {"all", "lm", "down", "gate_up,vision.proj", "connector", "vision.fc2,out"};
    static const char *const pairs[] = {"gqa", "linear", "rect",
#ifdef PRECISION_FP32
                                        "qwen",  // whose norms of q and k enlarge what bf16 rounds of merged weights
#endif
    };
    Error err;
    SafeTensors expected;
    program_begin(argv);
    if (argc == 7 && !strcmp(argv[1], "--gradients")) return write_gradients(argv + 2);
    if (argc > 1) fixtures = argv[1];
    device = ops_open(argc > 2 ? argv[2] : "cpu", &err);
    if (!device || !mkdtemp(folder)) die("%s", device ? "cannot make a folder" : err.text);
    const bool all = device->host_memory;  // an emulated GPU takes a second for a pass
    for (size_t p = 0; p < (all ? sizeof pairs / sizeof pairs[0] : 1); p++)
        for (size_t t = 0; t < (!all ? 1 : p ? 2 : sizeof targets / sizeof targets[0]); t++)
            test_gradients(pairs[p], targets[t]);
    char *model = format_string("%s/gqa.student.safetensors", fixtures);
    char *other = format_string("%s/llama3.student.safetensors", fixtures);
    char *data = format_string("%s/gqa.expected.safetensors", fixtures);
    if (safetensors_open(&expected, data, &err)) die("%s", err.text);
    if (all) test_start(model, &expected);
    test_dropout(model, &expected);
    test_files(model, other);
    test_targets();
    safetensors_close(&expected);
    static const char *const files[] = {"adapter.st", "merged.st", "damaged.st", "again.st"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char *path = path_of(files[i]);
        unlink(path);
        free(path);
    }
    rmdir(folder);
    free(model), free(other), free(data);
    return checks_end();
}
