/* Prints every number of doc/walkthrough.md, stop by stop. From the repository's root:
 *
 *   make CUDA=0 build/BF16-cpu/walkthrough && build/BF16-cpu/walkthrough
 *
 * It includes the whole training program and calls the same functions in the same order as its main. */
#define main train_main
#include "train_distill.cu"
#undef main
#include "generate.h"
#include "kernels/sample.h"

static void print_x(const char *name, const floatX *x, int n) {
    printf("%-26s", name);
    for (int i = 0; i < n; i++) printf(" %11.5g", from_x(x[i]));
    printf("\n");
}

static double dot(const floatX *a, const floatX *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += from_x(a[i]) * from_x(b[i]);
    return sum;
}

static double norm(const floatX *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += from_x(x[i]) * from_x(x[i]);
    return sqrt(sum);
}

static double log_sum_exp(const floatX *x, int n, double tau) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += exp(from_x(x[i]) / tau);
    return log(sum);
}

/* The three likeliest tokens at temperature 0.8 (kernels/sample.h), and the number that is drawn for this position.
 */
static void print_top(const char *name, const float *logits, int position) {
    const int n = 512;
    float top = logits[0], scale = sample_scale(0.8f);
    uint64_t total = 0;
    for (int i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
    for (int i = 0; i < n; i++) total += sample_weight(sample_distance(logits[i], top, scale));
    printf("%-26s", name);
    for (float above = INFINITY, k = 0; k < 3; k++) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if (logits[i] < above && (best < 0 || logits[i] > logits[best])) best = i;
        above = logits[best];
        uint32_t q = sample_distance(above, top, scale);
        printf("  id %d logit %.4f distance %u p %.5f", best, above, q, (double)sample_weight(q) / total);
    }
    printf("  u %.5f\n", (double)sample_draw(1, 0, position, total) / total);
}

static void image_stops(uint8_t *pixels) {  // stops 1 to 3: model_train keeps the arrays of every block
    static Model m;
    Image image;
    Error err;
    die_if(image_load(&image, "dev/starter/example.png", &err), &err);
    image_prepare(pixels, &image, image_square(96));
    printf("1  image %d x %d, row 1, pixels 11-15:", image.width, image.height);
    for (const uint8_t *p = pixels + (96 + 11) * 3; p < pixels + (96 + 16) * 3; p++) printf(" %d", *p);
    die_if(model_open(&m, cpu_ops(), "dev/starter/student.safetensors", "", &err), &err);
    model_train(&m, GROUP_ALL, RECOMPUTE_NONE);
    model_plan(&m, 1, 1);
    vision_forward(&m.vision, m.op, pixels, 1);
    const Vision *v = &m.vision;
    const floatX *first = v->patches + 432;  // patch 1
    print_x("\n2  patch 1, red, row 0", first, 4);
    print_x("   red, row 1", first + 12, 4);
    print_x("   blue, row 1", first + 2 * 144 + 12, 4);
    for (int l = 0; l < 4; l++) {
        const VisionActs *a = &v->acts[l];
        printf("3  encoder block %d, |x| %.1f\n", l, norm(a->residual + 128, 128));
        print_x("   residual", a->residual + 128, 4);
        if (l == 0) {
            print_x("   normed1", a->normed1 + 128, 4);
            print_x("   q of head 0", a->qkv + 384, 4);
            print_x("   attention", a->attention + 128, 4);
            print_x("   mid_residual", a->mid_residual + 128, 4);
            print_x("   fc1", a->fc1 + 512, 4);
            print_x("   gelu", a->gelu + 512, 4);
        }
        double lse = a->lse[64 + 1];  // head 1, query 1
        printf("   head 1 of patch 1: lse %.4f, weights over 0.05:", lse);
        for (int j = 0; j < 64; j++) {
            double p = exp(dot(a->qkv + 384 + 32, a->qkv + j * 384 + 128 + 32, 32) / sqrt(32) - lse);
            if (p > 0.05) printf("  patch %d %.4f", j, p);
        }
        printf("\n");
    }
    print_x("   features", v->features + 128, 4);
    print_x("   image token 1", v->tokens + 192, 4);
    model_close(&m);
}

static Model *student;

static void print_gradient(void *context, const Param *p) {  // stop 9, during the backward pass
    const Vision *v = &student->vision;
    bool vision = !strncmp(p->name, "vision", 6);
    size_t n = vision ? 4 * 64 * 128 : 4 * 103 * 192;
    printf("   %-24s |gradient of x| %-10.5g", p->name, norm(vision ? v->d_residual : student->d_residual, n));
    printf(" its own gradient %.5g %.5g\n", p->gradient[0], p->gradient[1]);
    (void)context;
}

static void training_stops(int argc, char **argv) {  // stops 4 to 10
    static Trainer t;
    static Teacher teacher;
    static OnPolicy own;
    static Parallel parallel;
    static Data data;
    RunFolder folder;
    Settings s = read_options(argc, argv, &folder);
    parallel_open(&parallel);
    open_models(&t, &teacher, open_devices(s.has_teacher, &parallel), &s, &folder, &parallel);
    open_data(&data, &s, &t, &teacher);
    plan_memory(&t, &teacher, &own, &s, &data, &parallel);
    start_loader(&data, &t, &own, &s, &teacher, &folder, &parallel);
    const Batch *batch = batch_next(&data);
    const int at = 288, r = 83, y = 22, V = 512;  // position 82 of text 2; row 83 of the kernel; its label
    Model *m = student = &t.student;
    t.objective.config = objective_schedule(s.objective, s.kd_schedule, 0);
    MicroBatch mb = micro_batch(batch, 0);
    TeacherOutput q = teacher_get(&teacher, &mb);
    model_forward(m, mb.pixels, mb.ids, mb.B, mb.T);
    printf("4  B %d T %d S %d n %d, samples %u %u %u %u, text 2:", mb.B, mb.T, model_sequence(m, mb.T), m->n,
           batch->samples[0], batch->samples[1], batch->samples[2], batch->samples[3]);
    for (int i = 0; i < 40; i++) printf(" %d", mb.ids[80 + i]);
    printf("\n5  input_ids[288] %d, target_rows[83] %d, labels[83] %d\n", m->input_ids[at], m->target_rows[r],
           m->labels[r]);
    for (int l = 0; l < 2; l++) {
        const DecoderActs *a = &m->acts[l];
        printf("6  decoder block %d, |x| %.5g, rstd1 %.5g\n", l, norm(a->residual + at * 192, 192), a->rstd1[at]);
        print_x("   residual", a->residual + at * 192, 4);
        print_x("   normed1", a->normed1 + at * 192, 4);
        print_x("   q of head 0", a->qkv + at * 384, 4);
        print_x("   attention", a->attention + at * 192, 4);
        print_x("   mid_residual", a->mid_residual + at * 192, 4);
        print_x("   gate", a->gate_up + at * 1024, 4);
        print_x("   up", a->gate_up + at * 1024 + 512, 4);
        print_x("   swiglu", a->swiglu + at * 512, 4);
    }
    print_x("   final_hidden", m->final_hidden + at * 192, 4);
    print_x("   hidden[83]", m->hidden + r * 192, 4);
    print_x("   teacher's hidden[83]", q.hidden + r * 192, 4);
    floatX *ls = m->op->alloc(130 * V * sizeof(floatX)), *lt = m->op->alloc(130 * V * sizeof(floatX)),
           *g = t.objective.student_logits[0];
    linear(m->op, ls, m->hidden, m->lm_head, m->n);
    m->op->linear_forward(lt, q.hidden, t.objective.teacher_head, NULL, ACT_NONE, NULL, m->n);
    ls += r * V, lt += r * V;
    printf(
        "7  id       s         t         log Q     log q     log p     (log-sum-exp: s %.5f, s/4 %.5f, t/4 %.5f)\n",
        log_sum_exp(ls, V, 1), log_sum_exp(ls, V, 4), log_sum_exp(lt, V, 4));
    for (int id = 16; id <= 24; id += 2)
        printf("   %d  %8.4f  %8.4f  %8.5f  %8.5f  %8.5f\n", id, from_x(ls[id]), from_x(lt[id]),
               from_x(ls[id]) - log_sum_exp(ls, V, 1), from_x(ls[id]) / 4 - log_sum_exp(ls, V, 4),
               from_x(lt[id]) / 4 - log_sum_exp(lt, V, 4));
    optimizer_zero_gradients(&t.optimizer);
    objective_run(&t.objective, m, &q, mb.scale);
    const RowStats k = t.objective.stats[r];
    printf("   ce %.5f soft %.6f hard %.5f entropy %.5f confidence %.5f gate %g tops %d %d\n", k.ce, k.soft, k.hard,
           k.entropy, k.confidence, k.gate, k.student_top, k.teacher_top);
    ObjectiveSums sums = objective_collect(&t.objective);
    printf("8  loss %.6f = 0.2 * %.6f + 0.8 * %.6f; gradients:", objective_mean(&t.objective, &sums),
           sums.ce / sums.positions, sums.soft / sums.positions);
    for (int id = 16; id <= 24; id += 2) printf(" %d: %.5g", id, from_x(g[r * V + id]));
    double by_hand = 0;
    for (int i = 0; i < V; i++) by_hand += from_x(g[r * V + i]) * from_x(m->lm_head->value[i * 192]);
    print_x("\n9  d_hidden[83]", m->d_hidden + r * 192, 4);
    printf("   d_hidden[83][0] by hand %.5g, gradient of lm.head[22][0] %.5g\n", by_hand,
           m->lm_head->gradient[y * 192]);
    m->hook.ready = print_gradient;
    model_backward(m);
    print_x("   d_image_tokens", m->d_image_tokens, 4);
    all_reduce_gradients(&parallel, &t.optimizer);
    const Param *p = m->layer[0].down_proj;
    const Optimizer *o = &t.optimizer;
    double lr = learning_rate(&t.lr, t.samples, t.images);
    printf("10 flat arrays of %zu, %zu without decay\n", o->n, o->undecayed);
    printf("   lr %g, norm %.7f, w %.9f, gradient %.8g", lr, sqrt(*o->norm_squared), o->master[p->offset],
           p->gradient[0]);
    adamw_step(&t.optimizer, &parallel, lr, t.step + 1);
    printf(" -> m %.8g, v %.8g, w %.9f, rounded %.9f\n", o->m[p->offset], o->v[p->offset], o->master[p->offset],
           from_x(p->value[0]));
    loader_stop(&data.loader);
}

static void generation_stops(const uint8_t *pixels) {  // stops 12 to 14
    static Model m;
    Generator g;
    Error err;
    int at = 0;
    die_if(model_open(&m, cpu_ops(), "dev/starter/student.safetensors", "", &err), &err);
    model_plan(&m, 1, 1);
    generator_open(&g, &m, 1, model_max_text(&m));
    generator_prefill(&g, pixels, 1, NULL, 0);
    printf("12 length %d, capacity %d, cache %zu bytes\n", g.length, g.cache.capacity, kv_cache_bytes(&m.c.lm, 256));
    print_top("   token 0, position 64", g.logits, 64);
    for (; !at || g.ids[0] != m.tokenizer.end; at++) {
        char name[64];
        if (at) generator_step(&g, false);
        snprintf(name, sizeof name, "%s token %d, position %d", at ? "13" : "  ", at, g.length);
        if (at == 1) {
            const floatX *key = m.acts[0].qkv + 192, *kept = g.cache.keys[1] + 64 * 32;
            printf("13 block 1, key elements 0 and 16: %.5g %.5g, in the cache %.5g %.5g\n", from_x(key[0]),
                   from_x(key[16]), from_x(kept[0]), from_x(kept[16]));
        }
        if (at == 1 || at == 54) print_top(name, g.logits, g.length);
        generator_sample(&g);
    }
    printf("14 %d tokens\n", at);
}

int main(void) {
    static uint8_t pixels[96 * 96 * 3];
    char *options[] = {"walkthrough", "--student", "dev/starter/student.safetensors",
                       "--device",    "cpu",       "--steps",
                       "1",           "--batch",   "4",
                       "--val-data",  "none",      NULL};
    image_stops(pixels);
    training_stops(11, options);
    generation_stops(pixels);
}
