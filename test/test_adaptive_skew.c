/* The skew of each sequence in DistiLLM-2 (train/adaptive_skew.h), and the loss with it, against plain formulas in double.
 *
 *   test_adaptive_skew [DEVICE]      default: cpu; from the project's folder, because it reads dev/starter
 *
 * Student and teacher are two random models. Their logits, from the head over all positions at once, give the
 * probabilities of the sequences, the skews, and SKL and SRKL term by term; the objective, in chunks, must say the same.
 * Ends with "N passed, M failed". */
#include "checks.h"

#include "../lib/program.h"

#include "../kernels/device.h"
#include "../train/adaptive_skew.h"

#ifdef PRECISION_FP32
static const double CLOSE = 1e-4;
#else
static const double CLOSE = 3e-2;
#endif

enum { B = 4, T = 9, CHUNK = 7 };
static const int counts[B] = {9, 2, 5, 1};  // 17 positions: three chunks
static const double BASE = 0.6;             // few skews are cut off
#define TINY                                                                                                      \
    "tiny,connector.concat=1,vision.image_size=16,vision.patch=8,vision.layers=1,vision.width=16,vision.heads=1," \
    "vision.mlp=16,lm.ffn=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.layers=1,"

static void open_random(Model *m, const Ops *op, const char *shape, uint64_t seed) {
    Error err;
    die_if(model_create(m, op, shape, "dev/starter/tokenizer.safetensors", seed, &err), &err);
    floatX *host = xmalloc(m->lm_head->n * sizeof *host);  // a head that has opinions
    Random random;
    random_seed(&random, seed);
    for (size_t i = 0; i < m->lm_head->n; i++) host[i] = to_x(0.5f * random_normal(&random));
    op->upload(m->lm_head->value, host, m->lm_head->n * sizeof *host);
    free(host);
    model_plan(m, B, T);
}

/* log softmax of the n rows of logits after a model's last pass, in double [n, V]. */
static double *log_probabilities(const Model *m) {
    const int V = m->c.lm.vocab, n = m->n;
    float *device = m->op->alloc((size_t)n * V * sizeof(float)), *x = xmalloc((size_t)n * V * sizeof(float));
    double *out = xmalloc((size_t)n * V * sizeof(double));
    linear_logits(m->op, device, m->hidden, m->lm_head, n);
    m->op->download(x, device, (size_t)n * V * sizeof(float));
    m->op->release(device);
    for (int r = 0; r < n; r++) {
        double sum = 0;
        for (int i = 0; i < V; i++) sum += exp((double)x[(size_t)r * V + i]);
        for (int i = 0; i < V; i++) out[(size_t)r * V + i] = (double)x[(size_t)r * V + i] - log(sum);
    }
    free(x);
    return out;
}

/* The formulas at the head of adaptive_skew.h. */
static void expected_skews(double *skew, const Model *student, const double *lq, const double *lp, bool own) {
    const int V = student->c.lm.vocab;
    double d[B], mean = 0;
    for (int b = 0, at = 0; b < B; b++) {
        double p = 0, q = 0;
        for (int t = 0; t < counts[b]; t++, at++) {
            p += lp[(size_t)at * V + student->labels[at]] / counts[b];
            q += lq[(size_t)at * V + student->labels[at]] / counts[b];
        }
        d[b] = own ? exp(q) - exp(p) : exp(p) - exp(q);
        mean += d[b] / B;
    }
    for (int b = 0; b < B; b++) skew[b] = fmin(BASE, fmax(0.01, 1 - (1 - BASE) * mean / (d[b] + 1e-5)));
}

/* SKL or SRKL of the rows with the skew of their sequences. */
static double expected_loss(const double *skew, const double *lq, const double *lp, int V, bool own) {
    double sum = 0;
    for (int b = 0, at = 0; b < B; b++)
        for (int t = 0; t < counts[b]; t++, at++)
            for (int i = 0; i < V; i++) {
                const double p = exp(lp[(size_t)at * V + i]), q = exp(lq[(size_t)at * V + i]), a = skew[b];
                sum += own ? q * log(q / ((1 - a) * p + a * q)) : p * log(p / (a * p + (1 - a) * q));
            }
    return sum;
}

static int between;  // skews so far that were not cut off

static void test_pass(Model *student, Model *teacher, int seed, bool own) {
    int ids[B * T];
    uint8_t pixels[B * 16 * 16 * 3];
    Random random;
    random_seed(&random, (uint64_t)seed);
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (uint8_t)random_below(&random, 256);
    for (int i = 0; i < B * T; i++) ids[i] = i % T < counts[i / T] ? 1 + (int)random_below(&random, 400) : -1;
    const ObjectiveConfig config = {.w_soft = 1,
                                    .temperature = 1,
                                    .soft = own ? SOFT_SRKL : SOFT_SKL,
                                    .mix = (float)BASE,
                                    .band_high = INFINITY,
                                    .gate_confidence = 2};
    Objective o;
    AdaptiveSkew a;
    objective_open(&o, config, student, param_weight(teacher->lm_head), CHUNK, B * T, B, 1);
    skew_open(&a, student->op, B, B * T);
    model_forward(student, pixels, ids, B, T);
    model_forward(teacher, pixels, ids, B, T);
    double *lq = log_probabilities(student), *lp = log_probabilities(teacher), skew[B];
    TeacherOutput q = {.hidden = teacher->hidden};
    skew_adapt(&a, &o, student, &q, counts, own, BASE);
    float *mix = xmalloc(student->n * sizeof *mix);
    student->op->download(mix, q.row_mix, student->n * sizeof *mix);
    expected_skews(skew, student, lq, lp, own);
    for (int b = 0, at = 0; b < B; at += counts[b++]) {
        check(fabs(mix[at] - skew[b]) <= 30 * CLOSE * skew[b], "sequence %d: skew %.6f, expected %.6f", b,
              (double)mix[at], skew[b]);
        for (int t = 1; t < counts[b]; t++) check(mix[at + t] == mix[at], "the skew differs inside sequence %d", b);
        between += skew[b] > 0.011 && skew[b] < BASE - 0.001;
        skew[b] = mix[at];
    }
    objective_run(&o, student, &q, (LossScale){0, 0});
    const double loss = objective_collect(&o).loss, want = expected_loss(skew, lq, lp, student->c.lm.vocab, own);
    check(fabs(loss - want) <= CLOSE * want, "the loss is %.6f, expected %.6f", loss, want);
    free(mix), free(lq), free(lp);
    skew_close(&a, student->op);
    objective_close(&o);
}

int main(int argc, char **argv) {
    Error err;
    Model student, teacher;
    program_begin(argv);
    const Ops *op = ops_open(argc > 1 ? argv[1] : "cpu", &err);
    if (!op) die("%s", err.text);
    open_random(&student, op, TINY "lm.width=32", 1);
    open_random(&teacher, op, TINY "lm.width=48", 2);
    for (int seed = 0; seed < 20; seed++) test_pass(&student, &teacher, seed, seed % 2);
    check(between > 5, "%d skews were not cut off: little is tested", between);
    check(skew_of(0.1, 0.2, 0.2) > 0.09 && skew_of(0.1, 0.2, 10) == 0.1 && skew_of(0.1, 0.2, 0.01) == 0.01,
          "a sequence with the mean difference has the skew that was asked for");
    model_close(&student);
    model_close(&teacher);
    return checks_end();
}
