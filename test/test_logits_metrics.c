/* Tests of the metrics of the logits (kernels/cpu/rank.h, softmax.h and figures.h; metrics/logits.h and logits_table.h).
 *
 *     test_logits_metrics [DEVICE]     prints what fails, then "N passed, M failed"; with a device other than the CPU, only what
 *                                      runs there, against the CPU's
 *     test_logits_metrics --rows FILE  the figures of rows of logits, as JSON, for test/compare_logits.py; FILE: int32 rows,
 *                                      V_s, V_t (0: no teacher), float64 temperature, int32 labels [rows], fp32 student
 *                                      logits [rows, V_s], fp32 teacher logits [rows, V_t] */
#include "samples.h"

#include "../kernels/cpu/figures.h"
#include "../kernels/device.h"
#include "../metrics/logits_table.h"

static Random dice;

static void fill_normal(float *x, int n, float scale) {
    for (int i = 0; i < n; i++) x[i] = scale * random_normal(&dice);
}

static bool near(double a, double b, double within) { return fabs(a - b) <= within; }

/* The figures of one position. */
static LogitsFigures figures(const float *s, int Vs, const float *t, int Vt, int label, double T) {
    LogitsFigures f;
    cpu_logits_figures(&f, s, t, &label, T, 1, Vs, Vt);
    return f;
}

/* ---- ranks ---- */

enum { KINDS = 7, LARGEST = 3000 };

/* Rows of every kind: spread as logits, many ties, all equal, one far away, zeros of both signs, huge, tiny. */
static void fill_kind(float *x, int n, int kind) {
    fill_normal(x, n, 3);
    for (int i = 0; i < n; i++) {
        if (kind == 1) x[i] = floorf(x[i]);
        if (kind == 2) x[i] = 1.5f;
        if (kind == 4) x[i] = x[i] > 2 ? x[i] : x[i] > 0 ? 0.0f : -0.0f;
        if (kind == 5) x[i] *= 1e37f;
        if (kind == 6) x[i] *= 1e-44f;
    }
    if (kind == 3) x[n / 2] = 1e30f;
}

static bool ranks_right(const int *twice, const float *x, int n) {
    for (int i = 0; i < n; i++) {
        int below = 0, equal = 0;
        for (int j = 0; j < n; j++) below += x[j] < x[i], equal += x[j] == x[i];
        if (twice[i] != 2 * below + equal + 1) return false;
    }
    return true;
}

static bool top_right(const int *ids, int count, const float *x, int n) {
    for (int k = 0; k < count; k++) {
        int before = 0;  // entries that go before it
        for (int j = 0; j < n; j++) before += x[j] > x[ids[k]] || (x[j] == x[ids[k]] && j < ids[k]);
        if (before != k) return false;
    }
    return true;
}

static bool range_right(RowRange r, const float *x, int n) {
    bool low = false, high = false, inside = true;
    for (int i = 0; i < n; i++) {
        low = low || x[i] == r.low;
        high = high || x[i] == r.high;
        inside = inside && x[i] >= r.low && x[i] <= r.high;
    }
    return low && high && inside;
}

static void test_ranks(void) {
    static const int sizes[] = {1, 2, 3, 5, 17, 300, LARGEST};
    static float x[LARGEST];
    static int twice[LARGEST];
    const RankScratch memory = rank_scratch(xmalloc(rank_scratch_bytes(LARGEST)), LARGEST);
    for (int k = 0; k < KINDS; k++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            const int n = sizes[s];
            fill_kind(x, n, k);
            const RowRange range = row_range(x, (size_t)n);
            CHECK(range.finite && range_right(range, x, n));
            const FigureTops top = rank_top(x, n, 10);
            CHECK(top.count == (n < 10 ? n : 10) && top_right(top.ids, top.count, x, n));
            rank_averages(twice, &memory, x, n, range);
            CHECK(ranks_right(twice, x, n));
            rank_from_sorted(twice, rank_sort(&memory, x, n), n);
            CHECK(ranks_right(twice, x, n));
        }
    fill_kind(x, LARGEST, 0);
    CHECK(rank_fill_buckets(&memory, x, LARGEST, row_range(x, LARGEST)));
    fill_kind(x, LARGEST, 3);  // one far away, which must not put all others into one bucket
    x[LARGEST / 2] = 60;
    CHECK(rank_fill_buckets(&memory, x, LARGEST, row_range(x, LARGEST)));
    for (int i = 0; i < LARGEST; i++) x[i] = i % 3 + 1e-6f * (float)i;      // three heaps
    CHECK(!rank_fill_buckets(&memory, x, LARGEST, row_range(x, LARGEST)));  // would take n^2
    free(memory.begin);
    for (int n = 1; n < 20; n++)
        for (int i = 0; i < n; i++) {
            static const float bad[] = {NAN, INFINITY, -INFINITY};
            fill_kind(x, n, 0);
            x[i] = bad[i % 3];
            CHECK(!row_range(x, (size_t)n).finite);
        }
}

static void test_spearman(void) {
    enum { N = 500 };
    float x[N], y[N];
    for (int k = 0; k < 2; k++) {  // with ties and without
        fill_normal(x, N, 2);
        for (int i = 0; k && i < N; i++) x[i] = roundf(x[i]);
        for (int i = 0; i < N; i++) y[i] = expf(x[i] / 3) - 7;
        CHECK(figures(x, N, y, N, 0, 1).value[FIGURE_RANK] == 1);
        for (int i = 0; i < N; i++) y[i] = -x[i] * x[i] * x[i];
        CHECK(figures(x, N, y, N, 0, 1).value[FIGURE_RANK] == -1);
    }
    for (int i = 0; i < N; i++) y[i] = 4;
    const LogitsFigures p = figures(x, N, y, N, 0, 1);
    CHECK(p.value[FIGURE_RANK_DEFINED] == 0 && p.value[FIGURE_RANK] == 0);
}

/* ---- softmax and divergences ---- */

static void test_functions(void) {
    double exp_error = 0, log_error = 0;
    vd far = {0}, e;
    for (int i = 0; i < 20000; i++) {
        const double r = random_uniform(&dice), below[] = {-700 * r, -r, -20 * r * r, 0};
        const double above[] = {exp(below[0]), exp(below[1]), 1 + r, DBL_MIN};
        for (int k = 0; k < 4; k++) {
            e = vd_exp((vd){0} + below[k]);
            exp_error = fmax(exp_error, fabs(e[VD_LANES - 1] / exp(below[k]) - 1));
            e = vd_log((vd){0} + above[k]);
            log_error = fmax(log_error, fabs(e[VD_LANES - 1] - log(above[k])));
        }
    }
    CHECK(exp_error < 1e-12);
    CHECK(log_error < 1e-12);
    static const double lowest[] = {-1e38, -INFINITY, -701, -1e300};
    for (int k = 0; k < 4; k++) {
        e = vd_exp(far + lowest[k]);
        CHECK(e[0] == 0);
    }
}

static void test_divergences(void) {
    enum { N = 611 };
    float s[N], t[N], moved[N];
    static const double temperatures[] = {0.3, 1, 2, 2.5, 3, 8, 50};
    for (size_t i = 0; i < sizeof temperatures / sizeof *temperatures; i++) {
        const double T = temperatures[i];
        fill_normal(s, N, 4);
        fill_normal(t, N, 4);
        LogitsFigures p = figures(s, N, s, N, 3, T);
        CHECK(p.value[FIGURE_KL] == 0 && p.value[FIGURE_REVERSE_KL] == 0 && p.value[FIGURE_JS] < 1e-11);
        CHECK(p.value[FIGURE_RANK] == 1 && p.value[FIGURE_AGREEMENT] == 1 && p.value[FIGURE_CONFIDENCE_MSE] == 0);
        for (int k = 0; k < FIGURES_TOPS; k++) CHECK(p.value[FIGURE_OVERLAP + k] == 1);
        for (int k = 0; k < SIDE_FIGURES; k++) CHECK(p.value[k] == p.value[FIGURE_TEACHER + k]);
        for (int k = 0; k < N; k++) moved[k] = s[k] + 64;  // the same distribution, but for rounding
        CHECK(figures(s, N, moved, N, 3, T).value[FIGURE_KL] < 1e-9 * T * T);
        p = figures(s, N, t, N, 3, T);
        const LogitsFigures q = figures(t, N, s, N, 3, T);
        CHECK(p.value[FIGURE_KL] > 0 && near(p.value[FIGURE_KL], q.value[FIGURE_REVERSE_KL], 1e-9));
        CHECK(near(p.value[FIGURE_JS], q.value[FIGURE_JS], 1e-11));
        CHECK(p.value[FIGURE_JS] > 0 && p.value[FIGURE_JS] <= log(2) + 1e-11);
    }
    /* the power of the exponentials serves the whole temperatures alone */
    const LogitsFigures whole = figures(s, N, t, N, 3, 3), beside = figures(s, N, t, N, 3, 3 * (1 + 1e-13));
    for (int k = 0; k < FIGURES; k++) CHECK(near(whole.value[k], beside.value[k], 1e-9 * (1 + fabs(whole.value[k]))));
}

/* The student's own softmax is over all its ids, comparisons are over those that both have. */
static void test_vocabularies(void) {
    enum { N = 64, MORE = 70 };
    float s[MORE], t[N];
    fill_normal(s, MORE, 2);
    fill_normal(t, N, 2);
    s[MORE - 1] = 9;
    double z = 0;
    for (int i = 0; i < MORE; i++) z += exp((double)s[i]);
    const LogitsFigures p = figures(s, MORE, t, N, 5, 2), cut = figures(s, N, t, N, 5, 2);
    CHECK(near(p.value[SIDE_CE], log(z) - (double)s[5], 1e-11));
    CHECK(near(p.value[SIDE_CONFIDENCE], exp(9 - log(z)), 1e-11));
    CHECK(p.value[FIGURE_AGREEMENT] == 0 && p.value[SIDE_CORRECT] == 0);
    static const int compared[] = {SIDE_SOFT_ENTROPY, SIDE_EFFECTIVE, SIDE_GINI, FIGURE_KL, FIGURE_JS, FIGURE_RANK};
    for (int i = 0; i < 6; i++) CHECK(p.value[compared[i]] == cut.value[compared[i]]);
    const LogitsFigures teacher = figures(t, N, s, MORE, 5, 2);
    for (int k = 0; k < SIDE_FIGURES; k++) CHECK(teacher.value[FIGURE_TEACHER + k] == p.value[k]);
    const int first =
        rank_top(s, N, 1).ids[0];  // of the ids that both have; the teacher itself would generate the last of its own
    const LogitsFigures likeliest = figures(t, N, s, MORE, first, 2);
    CHECK(likeliest.value[FIGURE_TEACHER + SIDE_CORRECT] == 0);
    for (int i = 0; i < N; i++) t[i] = i == first;
    CHECK(figures(t, N, s, MORE, first, 2).value[FIGURE_AGREEMENT] == 1);
}

/* The code for any processor, as it is here, and that for this one give the same figures to rounding. */
static void test_processors(const Ops *cpu) {
    enum { N = 777 };
    float s[N], t[N];
    for (int k = 0; k < KINDS; k++) {
        fill_kind(s, N, k);
        fill_kind(t, N, (k + 1) % KINDS);
        const LogitsFigures a = figures(s, N, t, N, 1, 2);
        LogitsFigures b;
        cpu->logits_figures(&b, s, t, (const int[]){1}, 2, 1, N, N);
        for (int i = 0; i < FIGURES; i++) CHECK(near(a.value[i], b.value[i], 1e-11 * (1 + fabs(a.value[i]))));
    }
}

/* ---- calibration ---- */

/* The error of n predictions of a model whose probabilities are right, after its logits were multiplied by `sharper`. */
static double calibration(int n, float sharper) {
    enum { V = 12 };
    float x[V];
    LogitsSums sums = {0};
    for (int i = 0; i < n; i++) {
        fill_normal(x, V, 2);
        double z = 0, u = random_uniform(&dice);
        int label = 0;
        for (int k = 0; k < V; k++) z += exp((double)x[k]);
        for (u *= z; label < V - 1 && (u -= exp((double)x[label])) >= 0;) label++;
        for (int k = 0; k < V; k++) x[k] *= sharper;
        const LogitsFigures p = figures(x, V, NULL, 0, label, 1);
        logits_sums_add(&sums, &p, false);
    }
    return reliability_error(&sums.student);
}

static void test_reliability(void) {
    CHECK(calibration(200, 1) > 0.01);
    CHECK(calibration(40000, 1) < 0.01);
    CHECK(calibration(40000, 3) > 0.1);  // sharper than it should be
    CHECK(reliability_bin(0) == 0 && reliability_bin(1) == 9);
    for (int b = 1; b < RELIABILITY_BINS; b++) {
        const double edge = (double)b / RELIABILITY_BINS;
        CHECK(reliability_bin(edge) == b && reliability_bin(nextafter(edge, 0)) == b - 1);
    }
    Reliability r = {0};
    CHECK(isnan(reliability_error(&r)));
    reliability_add(&r, 0.95, true);
    reliability_add(&r, 0.75, false);
    CHECK(near(reliability_error(&r), (0.05 + 0.75) / 2, 1e-12));
}

static void test_moments(void) {
    enum { N = 400 };
    Moments all = {0}, halves[2] = {{0}};
    double x[N], y[N], mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
    for (int i = 0; i < N; i++) {  // a small spread far from 0: sums of squares would lose it
        x[i] = 1e7 + random_uniform(&dice);
        y[i] = 0.5 * (x[i] - 1e7) + random_uniform(&dice);
        mx += (x[i] - 1e7) / N, my += y[i] / N;
        moments_add(&all, x[i], y[i]);
        moments_add(&halves[i >= 77], x[i], y[i]);
    }
    for (int i = 0; i < N; i++) {
        const double dx = x[i] - 1e7 - mx, dy = y[i] - my;
        xx += dx * dx, yy += dy * dy, xy += dx * dy;
    }
    Moments merged = {0};
    for (int i = 0; i < 2; i++) moments_merge(&merged, &halves[i]);
    CHECK(near(moments_correlation(&all), xy / sqrt(xx * yy), 1e-7));
    CHECK(near(moments_correlation(&merged), xy / sqrt(xx * yy), 1e-7));
    CHECK(isnan(moments_correlation(&halves[0]) * 0 + moments_correlation(&(Moments){0})));
}

/* ---- chunks, batches, threads ---- */

static const int batches[] = {9, 1, 2, 4}, chunks[] = {1000, 1, 2, 5};
enum { SAMPLES = 9, TOKENS = 7, WIDTH = 16, VOCAB = 50, TEACHER_VOCAB = 53 };

typedef struct {
    Params params;
    Param *student, *teacher;
    floatX *hidden[2];  // on the device
    int ids[SAMPLES * TOKENS], labels[SAMPLES * TOKENS], lengths[SAMPLES];
    uint32_t samples[SAMPLES];
} Heads;

static floatX quarters(void) { return to_x(0.25f * (float)((int)random_below(&dice, 17) - 8)); }

static void heads_open(Heads *h, const Ops *op) {
    *h = (Heads){0};
    random_seed(&dice, 11);
    params_reserve(&h->params, 2, "");
    h->student = param_add(&h->params, GROUP_LM, "", -1, "student", VOCAB, WIDTH, 1);
    h->teacher = param_add(&h->params, GROUP_LM, "", -1, "teacher", TEACHER_VOCAB, WIDTH, 1);
    params_allocate(&h->params, op);
    for (int i = 0; i < 2; i++) {  // quarters, whose products and sums are exact in any order, as the kernels' may be
        const size_t n = h->params.list[i].n;
        floatX *values = xmalloc(n * sizeof *values), hidden[SAMPLES * TOKENS * WIDTH];
        for (size_t k = 0; k < n; k++) values[k] = quarters();
        for (int k = 0; k < SAMPLES * TOKENS * WIDTH; k++) hidden[k] = quarters();
        op->upload(h->params.list[i].value, values, n * sizeof *values);
        h->hidden[i] = op->alloc(sizeof hidden);
        op->upload(h->hidden[i], hidden, sizeof hidden);
        free(values);
    }
    for (int b = 0, n = 0; b < SAMPLES; b++) {
        h->samples[b] = (uint32_t)(3 * b);
        h->lengths[b] = 1 + (b * 5) % TOKENS;
        for (int t = 0; t < TOKENS; t++) {
            const int id = (b * 11 + t * 3) % VOCAB;
            h->ids[b * TOKENS + t] = t < h->lengths[b] ? id : -1;
            if (t < h->lengths[b]) h->labels[n++] = id;
        }
    }
}

static void heads_close(Heads *h, const Ops *op) {
    for (int i = 0; i < 2; i++) op->release(h->hidden[i]);
    params_release(&h->params, op);
}

/* Measures all samples, `batch` at a time, in chunks of `rows` positions. */
static int heads_measure(const Heads *h, const Ops *op, int batch, int rows, LogitsResult *r, LogitsFault *fault) {
    LogitsMeter meter;
    int status = 0;
    *r = (LogitsResult){.samples = xcalloc(SAMPLES, sizeof(LogitsSums)), .ids = xcalloc(SAMPLES, sizeof(uint32_t))};
    logits_open(&meter, op, h->student, h->teacher, 2);
    if (rows < meter.rows) meter.rows = rows;
    for (int b = 0, done = 0; b < SAMPLES && !status; b += batch) {
        const int B = b + batch > SAMPLES ? SAMPLES - b : batch;
        const LogitsBatch texts = {h->ids + b * TOKENS, h->samples + b, B, TOKENS};
        int n = 0;
        for (int i = 0; i < B; i++) n += h->lengths[b + i];
        status = logits_measure(&meter, r, &texts, h->hidden[0] + done * WIDTH, h->hidden[1] + done * WIDTH,
                                h->labels + done, n, fault);
        done += n;
    }
    logits_close(&meter);
    return status;
}

/* The same bits from any batches, chunks and numbers of threads. */
static void test_chunks(const Heads *h, const Ops *op, const LogitsResult *expected) {
    const int threads = omp_get_max_threads();
    LogitsResult r;
    LogitsFault fault;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            if (!op->host_memory && (k != i || i % 2 == 0)) continue;  // an emulated GPU is slow
            omp_set_num_threads(1 + (i + k) % 3);
            CHECK(heads_measure(h, op, batches[i], chunks[k], &r, &fault) == 0);
            CHECK(r.count == SAMPLES && !memcmp(r.samples, expected->samples, SAMPLES * sizeof(LogitsSums)));
            CHECK(!memcmp(r.ids, h->samples, sizeof h->samples));
            logits_result_free(&r);
        }
    omp_set_num_threads(threads);
}

static void test_totals(const Heads *h, const LogitsResult *r) {
    LogitsSums total = logits_total(r, NULL, 0), twice = {0};
    int positions = 0;
    for (int b = 0; b < SAMPLES; b++) {
        CHECK(r->samples[b].positions == h->lengths[b]);
        positions += h->lengths[b];
    }
    CHECK(total.positions == positions && total.confidence.count == positions);
    const int64_t picks[] = {4, 2, 4};
    twice = logits_total(r, picks, 3);
    CHECK(near(twice.figure[SIDE_CE], 2 * r->samples[4].figure[SIDE_CE] + r->samples[2].figure[SIDE_CE], 1e-12));
    CHECK(twice.positions == 2 * h->lengths[4] + h->lengths[2]);
}

/* A value that is not finite is named by model, sample and position. */
static void test_faults(const Heads *h, const Ops *op) {
    const int before = h->lengths[0] + h->lengths[1];
    CHECK(h->lengths[2] > 2);
    for (int i = 0; i < 2; i++) {
        floatX *at = h->hidden[i] + (before + 2) * WIDTH + 3, kept, bad = to_x(NAN);
        op->download(&kept, at, sizeof kept);
        op->upload(at, &bad, sizeof bad);
        for (int k = 0; k < (op->host_memory ? 4 : 1); k++) {
            LogitsResult r;
            LogitsFault fault;
            CHECK(heads_measure(h, op, batches[k], chunks[k], &r, &fault) == -1);
            CHECK(fault.of_teacher == (i == 1) && fault.sample == 6 && fault.position == 2);
            logits_result_free(&r);
        }
        op->upload(at, &kept, sizeof kept);
    }
}

/* Every metric of a device is the CPU's, but for the order of its sums. */
static void test_devices(const LogitsResult *a, const LogitsResult *b) {
    const LogitsSums x = logits_total(a, NULL, 0), y = logits_total(b, NULL, 0);
    for (int i = 0; i < LOGITS_METRICS; i++) {
        const double value = logits_value(&logits_metrics[i], &x);
        CHECK(near(value, logits_value(&logits_metrics[i], &y), 1e-11 * (1 + fabs(value))));
    }
}

static void test_measure(const Ops *op, const Ops *cpu) {
    static Heads h, plain;
    LogitsResult first, expected;
    LogitsFault fault;
    heads_open(&plain, cpu);
    heads_open(&h, op);
    CHECK(heads_measure(&plain, cpu, SAMPLES, 1000, &expected, &fault) == 0);
    CHECK(heads_measure(&h, op, SAMPLES, 1000, &first, &fault) == 0);
    test_totals(&plain, &expected);
    test_devices(&expected, &first);
    test_chunks(&h, op, &first);
    test_faults(&h, op);
    logits_result_free(&first);
    logits_result_free(&expected);
    heads_close(&plain, cpu);
    heads_close(&h, op);
}

/* Without positions, and without a teacher, what is undefined is NaN, and null in JSON. */
static void test_undefined(void) {
    JsonWriter w = {0};
    LogitsSums none = {0};
    logits_json(&w, &none, true);
    CHECK(strstr(w.text, "\"ce\":null") && strstr(w.text, "\"confidence_correlation\":null"));
    json_writer_free(&w);
    const float sure[] = {0, -1e30f, -1e30f}, lowest[] = {-FLT_MAX, -FLT_MAX, -FLT_MAX};
    CHECK(near(figures(lowest, 3, sure, 3, 1, 2).value[SIDE_CE], log(3), 1e-12));
    LogitsFigures p = figures(sure, 3, sure, 3, 0, 2);
    logits_sums_add(&none, &p, true);
    CHECK(isnan(logits_value(logits_find(logits_metrics, LOGITS_METRICS, "entropy_ratio"), &none)));
    CHECK(isnan(logits_value(logits_find(logits_metrics, LOGITS_METRICS, "confidence_correlation"), &none)));
    CHECK(logits_value(logits_find(logits_metrics, LOGITS_METRICS, "perplexity"), &none) == 1);
    CHECK(!logits_find(logits_metrics, LOGITS_METRICS, "nonsense"));
    for (int i = 0; i < 2; i++) {
        const float bad[] = {0, i ? NAN : -INFINITY, 1}, good[] = {0, 1, 2};
        CHECK(figures(bad, 3, good, 3, 0, 2).state == FIGURES_BAD_STUDENT);
        CHECK(figures(good, 3, bad, 3, 0, 2).state == FIGURES_BAD_TEACHER);
    }
}

/* ---- for test/compare_logits.py ---- */

static int print_rows(const char *path) {
    size_t size;
    uint8_t *file = read_bytes(path, &size);
    int32_t shape[3];
    double T;
    memcpy(shape, file, sizeof shape);
    memcpy(&T, file + sizeof shape, sizeof T);
    const int rows = shape[0], Vs = shape[1], Vt = shape[2];
    const int32_t *labels = (const int32_t *)(file + sizeof shape + sizeof T);
    const float *s = (const float *)(labels + rows), *t = s + (size_t)rows * Vs;
    LogitsSums sums = {0};
    JsonWriter w = {0};
    json_begin_object(&w);
    json_key(&w, "rows");
    json_begin_array(&w);
    for (int r = 0; r < rows; r++) {
        const LogitsFigures p = figures(s + (size_t)r * Vs, Vs, Vt ? t + (size_t)r * Vt : NULL, Vt, labels[r], T);
        json_begin_array(&w);
        if (p.state == FIGURES_GOOD) {
            logits_sums_add(&sums, &p, Vt > 0);
            for (int i = 0; i < FIGURES; i++) json_number(&w, p.value[i]);
        }
        json_end_array(&w);
    }
    json_end_array(&w);
    json_key(&w, "model"), logits_json(&w, &sums, Vt > 0);
    json_key(&w, "teacher"), logits_self_json(&w, &sums);
    json_end_object(&w);
    const int status = json_write_line(&w, stdout) ? 1 : 0;
    json_writer_free(&w);
    free(file);
    return status;
}

int main(int argc, char **argv) {
    Error err;
    program_begin(argv);
    if (argc == 3 && !strcmp(argv[1], "--rows")) return print_rows(argv[2]);
    random_seed(&dice, 7);
    const Ops *cpu = ops_open("cpu", &err), *op = argc > 1 ? ops_open(argv[1], &err) : cpu;
    if (!cpu || !op) die("%s", err.text);
    test_measure(op, cpu);
    if (op != cpu) return checks_report();
    test_ranks();
    test_spearman();
    test_functions();
    test_divergences();
    test_vocabularies();
    test_processors(cpu);
    test_reliability();
    test_moments();
    test_undefined();
    return checks_report();
}
