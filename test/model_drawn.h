/* Models that are drawn at random, large enough for the kernels to share their work among threads: what must change no bit of
 * their gradients (threads, recomputation, a shared encoder, images narrower than the model's), and the order in which gradients
 * become final. */
#ifndef TEST_MODEL_DRAWN_H
#define TEST_MODEL_DRAWN_H

#include "../loss.cuh"
#include "model_gradients.h"

#ifdef _OPENMP
#include <omp.h>
#endif

enum { DRAWN_B = 2, DRAWN_T = 40 };

/* A model drawn at random, and a batch. */
typedef struct {
    Model m;
    Optimizer optimizer;
    Objective objective;
    uint8_t *pixels;
    int ids[DRAWN_B * DRAWN_T];
} Drawn;

/* With the groups in the mask trained. teacher: its encoder is shared, if there is one and it can be. */
static void drawn_open(Drawn *d, const Ops *op, const char *tokenizer_file, const char *shape, int groups,
                       Recompute recompute, const Model *teacher) {
    Error err;
    Model *m = &d->m;
    ObjectiveConfig c;
    Random rng;
    memset(d, 0, sizeof *d);
    memset(&c, 0, sizeof c);
    c.w_ce = c.temperature = 1;
    if (model_create(m, op, shape, tokenizer_file, 5, &err)) die("%s", err.text);
    model_train(m, groups, recompute);
    if (groups) open_optimizer(&d->optimizer, op, &m->params, groups);
    if (teacher) check(model_share_encoder(m, teacher), "%s: equal encoders are not shared", shape);
    model_plan(m, DRAWN_B, DRAWN_T);
    objective_open(&d->objective, c, m, (Weight){0}, 0, DRAWN_B * DRAWN_T, DRAWN_B, 1);
    size_t pixels_size = DRAWN_B * model_pixels(m);
    d->pixels = xmalloc(pixels_size);
    random_seed(&rng, 7);
    for (size_t i = 0; i < pixels_size; i++) d->pixels[i] = (uint8_t)random_below(&rng, 256);
    for (int i = 0; i < DRAWN_B * DRAWN_T; i++) d->ids[i] = (int)random_below(&rng, (uint64_t)m->tokenizer.count);
}

/* Forward, objective, backward, with images of this width; returns the loss. */
static double drawn_learn_width(Drawn *d, const uint8_t *pixels, int width) {
    Model *m = &d->m;
    model_forward_width(m, pixels, width, d->ids, DRAWN_B, DRAWN_T);
    objective_run(&d->objective, m, &(TeacherOutput){0}, (LossScale){1.0 / m->n, 1.0 / DRAWN_B});
    model_backward(m);
    ObjectiveSums sums = objective_collect(&d->objective);
    return objective_mean(&d->objective, &sums);
}

static double drawn_learn(Drawn *d) { return drawn_learn_width(d, d->pixels, vision_size(&d->m.c.vision).width); }

static void drawn_close(Drawn *d) {
    free(d->pixels);
    objective_close(&d->objective);
    if (d->optimizer.op) optimizer_close(&d->optimizer);
    model_close(&d->m);
}

static float *gradients_with_threads(const Ops *op, const char *tokenizer_file, int threads, size_t *count,
                                     double *loss) {
    Drawn d;
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
#endif
    drawn_open(&d, op, tokenizer_file, "tiny", GROUP_ALL, RECOMPUTE_NONE, NULL);
    *loss = drawn_learn(&d);
    float *all = gather_gradients(&d.m.params, op, GROUP_ALL, count);
    drawn_close(&d);
#ifdef _OPENMP
    omp_set_num_threads(before);
#else
    (void)threads;
#endif
    return all;
}

static void check_threads(const Ops *op, const char *tokenizer_file) {
    size_t one_count, count;
    double one_loss, loss;
    float *one = gradients_with_threads(op, tokenizer_file, 1, &one_count, &one_loss);
    check(isfinite(one_loss) && one_loss > 2 && one_loss < 6, "tiny: the loss of random weights is %g", one_loss);
    for (int threads = 2; threads <= 3; threads++) {
        float *other = gradients_with_threads(op, tokenizer_file, threads, &count, &loss);
        check(loss == one_loss, "tiny: the loss is %.9g with %d threads and %.9g with one", loss, threads, one_loss);
        expect_bits("tiny", "another number of threads", other, count, one, one_count);
    }
    free(one);
}

static const char *const drawn_shapes[] = {
    "tiny,vision.image_size=48,vision.layers=3,lm.layers=3,vision.activation=gelu",
    "tiny,vision.image_size=24,vision.layers=2,lm.layers=3,lm.tied=true,lm.ffn=202,vision.mlp=150",
};
enum { DRAWN_SHAPES = sizeof drawn_shapes / sizeof drawn_shapes[0] };

/* What is kept for the backward pass changes no bit, and the levels need less and less memory; where nothing but the
 * connector is trained, the first two need the same. */
static void check_recompute(const Ops *op, const char *tokenizer_file, const char *shape, int groups) {
    static const char *const levels[] = {"none", "activations", "blocks"};
    float *first = NULL;
    size_t n = 0, count, memory = SIZE_MAX;
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_BLOCKS; level++) {
        Drawn d;
        drawn_open(&d, op, tokenizer_file, shape, groups, (Recompute)level, NULL);
        drawn_learn(&d);
        float *all = gather_gradients(&d.m.params, op, groups, &count);
        bool same = groups == GROUP_CONNECTOR && level == RECOMPUTE_ACTIVATIONS;
        check(d.m.arena.used < memory || (same && d.m.arena.used == memory),
              "%s: groups %d, --recompute %s takes %zu bytes, the level before %zu", shape, groups, levels[level],
              d.m.arena.used, memory);
        memory = d.m.arena.used;
        if (first) {
            expect_bits(shape, levels[level], all, count, first, n);
        } else {
            first = all;
            n = count;
        }
        drawn_close(&d);
    }
    free(first);
}

/* ---- the order in which gradients become final ---- */

/* What the hook has been told: gradients of all parameters from list[from] on, as they were then. */
typedef struct {
    const Model *m;
    int from, calls;
    float *seen[256];
    bool backwards;  // every call named an earlier parameter than the one before
} Told;

static void told(void *context, const Param *p) {
    Told *t = (Told *)context;
    const Params *params = &t->m->params;
    int at = (int)(p - params->list);
    t->calls++;
    t->backwards = t->backwards && at < t->from;
    for (int i = at; i < t->from; i++)
        if (params->list[i].gradient) t->seen[i] = host_f32(t->m->op, params->list[i].gradient, params->list[i].n);
    t->from = at;
}

static void check_hook(const Ops *op, const char *tokenizer_file, const char *shape, int groups) {
    Drawn d;
    Told t;
    drawn_open(&d, op, tokenizer_file, shape, groups, RECOMPUTE_NONE, NULL);
    const Params *params = &d.m.params;
    memset(&t, 0, sizeof t);
    t.m = &d.m;
    t.from = params->count;
    t.backwards = params->count <= 256;
    d.m.hook.ready = told;
    d.m.hook.context = &t;
    drawn_learn(&d);
    int calls = groups & GROUP_LM ? 2 + d.m.c.lm.layers : 0;
    calls += (groups & GROUP_CONNECTOR ? 1 : 0) + (groups & GROUP_VISION ? 1 + d.m.c.vision.layers : 0);
    check(t.backwards && t.calls == calls, "%s: groups %d, the hook was called %d times, expected %d, each earlier",
          shape, groups, t.calls, calls);
    for (int i = 0; i < params->count; i++) {
        const Param *p = &params->list[i];
        if (!p->gradient) continue;
        float *final = host_f32(op, p->gradient, p->n);
        check(t.seen[i] && !memcmp(t.seen[i], final, p->n * sizeof(float)), "%s: groups %d, %s %s", shape, groups,
              p->name, t.seen[i] ? "was called final too early" : "was never called final");
        free(final);
        free(t.seen[i]);
    }
    drawn_close(&d);
}

/* ---- one encoder for teacher and student ---- */

/* Gradients of the groups, with the teacher's encoder or, without a teacher, the student's own. */
static float *gradients_with_encoder(const Ops *op, const char *tokenizer_file, const char *shape, int groups,
                                  Drawn *teacher, size_t *count, size_t *memory) {
    Drawn d;
    drawn_open(&d, op, tokenizer_file, shape, groups, RECOMPUTE_NONE, teacher ? &teacher->m : NULL);
    if (teacher) model_forward(&teacher->m, d.pixels, d.ids, DRAWN_B, DRAWN_T);
    drawn_learn(&d);
    float *all = gather_gradients(&d.m.params, op, groups, count);
    *memory = d.m.arena.used;
    drawn_close(&d);
    return all;
}

static void check_shared_encoder(const Ops *op, const char *tokenizer_file) {
    const char *shape = drawn_shapes[0];
    Ops elsewhere = *op;  // a device of its own, as far as the models can see
    Drawn teacher, other;
    size_t n, count, own, memory;
    float *alone = gradients_with_encoder(op, tokenizer_file, shape, GROUP_CONNECTOR | GROUP_LM, NULL, &n, &own);
    for (int copied = 0; copied < 2; copied++) {
        drawn_open(&teacher, copied ? &elsewhere : op, tokenizer_file,
                   "tiny,vision.image_size=48,vision.layers=3,vision.activation=gelu,connector.concat=1,lm.layers=1",
                   0, RECOMPUTE_NONE, NULL);
        float *shared =
            gradients_with_encoder(op, tokenizer_file, shape, GROUP_CONNECTOR | GROUP_LM, &teacher, &count, &memory);
        expect_bits(shape, copied ? "a copy of the teacher's features" : "the teacher's encoder", shared, count,
                    alone, n);
        check(memory < own, "%s: %zu bytes without an encoder, %zu with one", shape, memory, own);
        drawn_open(&other, op, tokenizer_file, shape, GROUP_ALL, RECOMPUTE_NONE, NULL);
        check(!model_share_encoder(&other.m, &teacher.m), "%s: an encoder is shared although it is trained", shape);
        model_train(&other.m, GROUP_LM, RECOMPUTE_NONE);
        check(model_share_encoder(&other.m, &teacher.m), "%s: a frozen encoder is not shared", shape);
        const Param *last = teacher.m.vision.norm_b;
        floatX one = to_x(0.5f);
        op->upload(last->value + last->n - 1, &one, sizeof one);
        check(!model_share_encoder(&other.m, &teacher.m), "%s: an encoder with other weights is shared", shape);
        drawn_close(&other);
        drawn_open(&other, op, tokenizer_file, drawn_shapes[1], GROUP_LM, RECOMPUTE_NONE, NULL);
        check(!model_share_encoder(&other.m, &teacher.m), "an encoder of another shape is shared");
        drawn_close(&other);
        drawn_close(&teacher);
    }
    free(alone);
}

/* ---- images that are narrower than the model's ---- */

/* Gives a model the other's weights; of the position embeddings of columns the first ones. */
static void take_weights(Model *to, const Model *from) {
    for (int i = 0; i < to->params.count; i++) {
        const Param *p = &to->params.list[i], *q = &from->params.list[i];
        floatX *host = xmalloc(q->n * sizeof(floatX));
        from->op->download(host, q->value, q->n * sizeof(floatX));
        to->op->upload(p->value, host, p->n * sizeof(floatX));
        free(host);
    }
}

/* Gradients of a model with images 48 wide, and of one with images 96 wide that was given these: the same bits, and none for
 * the columns that were not there. */
static void expect_gradients_of_narrow(const Drawn *wide, const Drawn *narrow, const char *shape) {
    for (int i = 0; i < narrow->m.params.count; i++) {
        const Param *p = &narrow->m.params.list[i], *q = &wide->m.params.list[i];
        float *a = host_f32(narrow->m.op, p->gradient, p->n), *b = host_f32(wide->m.op, q->gradient, q->n);
        bool zero = true;
        for (size_t k = p->n; k < q->n; k++) zero = zero && b[k] == 0;
        check(!memcmp(a, b, p->n * sizeof *a) && zero, "%s: the gradient of %s is another one with narrow images", shape,
              p->name);
        check((q->n > p->n) == !strcmp(p->name, "vision.position.columns"), "%s: %s has another size", shape, p->name);
        free(a);
        free(b);
    }
}

/* A pass over images that are narrower than the model's is that of a model for such images, and leaves no trace. */
static void check_narrow(const Ops *op, const char *tokenizer_file, const char *connector) {
    enum { WIDE = 96, NARROW = 48 };
    Drawn wide, narrow;
    char shape[2][160];
    for (int i = 0; i < 2; i++)
        snprintf(shape[i], sizeof shape[i], "tiny,vision.image_height=16,vision.image_width=%d,vision.letter=5,%s",
                 i ? NARROW : WIDE, connector);
    drawn_open(&wide, op, tokenizer_file, shape[0], GROUP_ALL, RECOMPUTE_NONE, NULL);
    drawn_open(&narrow, op, tokenizer_file, shape[1], GROUP_ALL, RECOMPUTE_NONE, NULL);
    take_weights(&narrow.m, &wide.m);
    memcpy(narrow.ids, wide.ids, sizeof wide.ids);
    model_forward(&wide.m, wide.pixels, wide.ids, DRAWN_B, DRAWN_T);
    const size_t n = (size_t)wide.m.n * (size_t)wide.m.c.lm.hidden_size;
    float *before = host_x(op, wide.m.hidden, n);
    const double loss = drawn_learn(&narrow), same = drawn_learn_width(&wide, narrow.pixels, NARROW);
    check(loss == same, "%s: the loss of narrow images is %.9g, not %.9g", shape[0], same, loss);
    expect_gradients_of_narrow(&wide, &narrow, shape[0]);
    check(model_max_text(&wide.m) < model_max_text(&narrow.m), "%s: a pass has changed the longest text", shape[0]);
    model_forward(&wide.m, wide.pixels, wide.ids, DRAWN_B, DRAWN_T);
    float *after = host_x(op, wide.m.hidden, n);
    expect_bits(shape[0], "a pass over narrow images", after, n, before, n);
    free(before);
    drawn_close(&wide);
    drawn_close(&narrow);
}

static void check_drawn(const Ops *op, const char *folder) {
    static const int masks[] = {GROUP_ALL, GROUP_LM, GROUP_CONNECTOR, GROUP_VISION, GROUP_CONNECTOR | GROUP_LM};
    char *path = format_string("%s/gqa.student.safetensors", folder);
    check_threads(op, path);
    for (int i = 0; i < DRAWN_SHAPES; i++)
        for (size_t k = 0; k < sizeof masks / sizeof masks[0]; k++) {
            check_recompute(op, path, drawn_shapes[i], masks[k]);
            check_hook(op, path, drawn_shapes[i], masks[k]);
        }
    check_shared_encoder(op, path);
    check_narrow(op, path, "connector.concat=3");
    check_narrow(op, path, "connector.kind=strips,connector.concat=4");
    check_narrow(op, path, "connector.kind=shuffle,connector.scale_factor=2");
    free(path);
}

#endif
