/* Tests of the row kernel of the objective, of the gates and of the cosine of images. */
#ifndef DEV_TEST_KERNELS_OBJECTIVE_H
#define DEV_TEST_KERNELS_OBJECTIVE_H

#include "test_kernels.h"

typedef struct {
    ObjectiveRow o;
    double *s, *t, gate;
    int label, Vs, Vt;
    RefStats stats;
} ObjectiveCase;

static double objective_loss(void *context) {
    ObjectiveCase *k = (ObjectiveCase *)context;
    return k->o.scale * ref_objective(&k->stats, k->s, k->t, k->label, k->gate, &k->o, k->Vs, k->Vt);
}

static void check_stats(const RowStats *got, const RefStats *want, double size) {
    const float g[] = {got->ce,         got->soft, got->hard,   got->entropy,
                       got->confidence, got->gate, got->policy, got->clipped};
    const double w[] = {want->ce,         want->soft, want->hard,   want->entropy,
                        want->confidence, want->gate, want->policy, want->clipped};
    static const char *const names[] = {"ce", "soft", "hard", "entropy", "confidence", "gate", "policy", "clipped"};
    for (int i = 0; i < 8; i++)
        report(fabs(g[i] - w[i]) <= 2e-5 * (fabs(w[i]) + size), "stats.%s is %.9g, expected %.9g", names[i], g[i],
               w[i]);
    report(got->soft >= 0, "stats.soft is %.9g, less than 0", got->soft);
    report(got->student_top == want->student_top && got->teacher_top == want->teacher_top,
           "stats tops are %d %d, expected %d %d", got->student_top, got->teacher_top, want->student_top,
           want->teacher_top);
}

static void test_objective(void) {
    int Vs = below(3) ? 1 + ragged() : 300 + below(900), Vt = below(2) ? Vs : 1 + ragged();
    if (below(2)) Vs = (Vs + 7) / 8 * 8, Vt = (Vt + 7) / 8 * 8;  // whole vectors
    size_t rows = 1 + below(40);
    bool teacher = below(4) != 0, gated = below(2), gradient = below(4) != 0;
    double size = ONE_OF(double, 1, 1, 5, 30, 3000);
    ObjectiveRow o = {(float)uniform(),
                      below(4) ? (float)uniform() : 0,
                      below(2) ? (float)uniform() : 0,
                      below(3) ? 1.0f + (float)below(2) : 0.5f + 3 * (float)uniform(),
                      (SoftLoss)below(5),
                      0.1f + 0.8f * (float)uniform(),
                      below(2) ? 0.3f : 2.0f,
                      0.3f,
                      0.25f,
                      NULL,
                      0,
                      NULL};
    double *s = draw(rows * Vs, size), *t = draw(rows * Vt, size), *gate = draw(rows, 1), *grad = zeros(rows * Vs);
    int *labels = (int *)host(rows * sizeof(int));
    if (below(3) == 0)
        for (size_t i = 0; i < rows * Vs; i++) s[i] = floor(s[i]);  // ties
    floatX *dev_s = put_x(s, rows * Vs), *dev_t = put_x(t, rows * Vt);
    for (size_t r = 0; r < rows; r++) labels[r] = below(2) ? below(Vs) : ref_argmax(t + r * Vt, Vs < Vt ? Vs : Vt);
    float *dev_gate = put_f(gate, rows);
    RowStats *dev_stats = (RowStats *)device(rows * sizeof(RowStats));
    RowStats *stats = (RowStats *)host(rows * sizeof(RowStats));
    double *mix = zeros(rows);
    const bool mixed = below(2);
    for (size_t r = 0; r < rows; r++) mix[r] = (float)(mixed ? 0.01 + 0.9 * uniform() : o.mix);
    if (mixed) o.row_mix = put_f(mix, rows);
    op->distill_rows(dev_s, teacher ? dev_t : NULL, put_i(labels, rows), gated ? dev_gate : NULL, dev_stats, o, rows,
                     Vs, Vt, gradient);
    op->download(stats, dev_stats, rows * sizeof(RowStats));
    add_hash(stats, rows * sizeof(RowStats));
    for (size_t r = 0; r < rows; r++) {
        RefStats none = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        ObjectiveCase k = {o, s + r * Vs, teacher ? t + r * Vt : NULL, gated ? gate[r] : 1, labels[r], Vs, Vt, none};
        k.o.mix = (float)mix[r];
        objective_loss(&k);
        if (comparing) check_stats(stats + r, &k.stats, 1 + size);
        ref_objective_gradient(grad + r * Vs, k.s, k.t, k.label, &k.stats, &k.o, Vs, Vt);
        if (r < 2 && size < 10) check_difference("objective", objective_loss, &k, k.s, grad + r * Vs, Vs);
    }
    /* an exponent in the thousands is off by up to 2^-12 itself */
    check_x("distill_rows gradient", dev_s, gradient ? grad : s, rows * Vs, size > 1000 ? 1e-2 : BACKWARD);
}

/* Advantages of both signs, and probabilities that have grown, shrunk or not changed since the labels were drawn, on both
 * sides of where the ratio is clipped. */
static void test_policy(void) {
    const int Vs = below(3) ? 8 * (1 + below(200)) : 1 + ragged(), Vt = below(2) ? Vs : 1 + ragged();
    const bool teacher = below(3) != 0, gradient = below(4) != 0;
    const size_t rows = 1 + below(20);
    ObjectiveRow o = {.w_ce = 1,
                      .w_soft = teacher ? (float)uniform() : 0,
                      .temperature = ONE_OF(float, 1, 1, 2, 0.7f, 1.3f),
                      .soft = (SoftLoss)below(5),
                      .mix = 0.4f,
                      .gate_confidence = 2,
                      .scale = 0.25f,
                      .clip_ratio = ONE_OF(float, 0.2f, 0.4f)};
    double *s = draw(rows * Vs, 2), *t = draw(rows * Vt, 2), *grad = zeros(rows * Vs);
    int *labels = (int *)host(rows * sizeof(int));
    PolicyRow *policy = (PolicyRow *)host(rows * sizeof *policy);
    float old[20];  // where the kernel is not told
    floatX *dev_s = put_x(s, rows * Vs), *dev_t = put_x(t, rows * Vt);
    for (size_t r = 0; r < rows; r++) {
        RefStats now;
        labels[r] = below(Vs);
        ref_softmax(grad, s + r * Vs, Vs, o.temperature);
        now.ce = -grad[labels[r]];
        const double grown = ONE_OF(double, -0.7, -0.1, 0.1, 0.7) * (0.9 + 0.2 * uniform());
        policy[r] = (PolicyRow){below(8) ? (float)(2 * normal()) : 0, (float)(now.ce + grown)};
        if (below(4) == 0) policy[r].old_ce = NAN, old[r] = (float)now.ce;
    }
    PolicyRow *dev_policy = (PolicyRow *)device(rows * sizeof *policy);
    op->upload(dev_policy, policy, rows * sizeof *policy);
    RowStats *dev_stats = (RowStats *)device(rows * sizeof(RowStats));
    RowStats *stats = (RowStats *)host(rows * sizeof(RowStats));
    o.policy = dev_policy;
    op->distill_rows(dev_s, teacher ? dev_t : NULL, put_i(labels, rows), NULL, dev_stats, o, rows, Vs, Vt, gradient);
    op->download(stats, dev_stats, rows * sizeof(RowStats));
    add_hash(stats, rows * sizeof(RowStats));
    for (size_t r = 0; r < rows; r++) {
        RefStats none = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        ObjectiveCase k = {o, s + r * Vs, teacher ? t + r * Vt : NULL, 1, labels[r], Vs, Vt, none};
        if (isnan(policy[r].old_ce)) policy[r].old_ce = old[r];
        k.o.policy = policy + r;
        objective_loss(&k);
        if (comparing) check_stats(stats + r, &k.stats, 3);
        ref_objective_gradient(grad + r * Vs, k.s, k.t, k.label, &k.stats, &k.o, Vs, Vt);
        if (r < 2) check_difference("policy", objective_loss, &k, k.s, grad + r * Vs, Vs);
    }
    check_x("distill_rows policy gradient", dev_s, gradient ? grad : s, rows * Vs, BACKWARD);
}

/* A row of a large vocabulary: more than a GPU keeps on chip, in as many terms as there are. */
static void test_objective_wide(void) {
    int Vs = 20000 + 8 * below(3000) + (below(3) == 0), Vt = Vs + 8 * (below(3) - 1) * below(1000), label = below(Vs);
    bool teacher = below(4) != 0;
    float tau = below(3) ? 1.0f + (float)below(2) : 1.7f;
    ObjectiveRow o = {0.3f, 0.6f, 0.1f, tau, (SoftLoss)below(5), 0.4f, 2, 1, 0.25f, NULL, 0, NULL};
    double *s = draw(Vs, 4), *t = draw(Vt, 4), *grad = zeros(Vs);
    floatX *dev_s = put_x(s, Vs), *dev_t = put_x(t, Vt);
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    op->distill_rows(dev_s, teacher ? dev_t : NULL, put_i(&label, 1), NULL, dev_stats, o, 1, Vs, Vt, true);
    op->download(&stats, dev_stats, sizeof stats);
    add_hash(&stats, sizeof stats);
    RefStats want;
    ref_objective(&want, s, teacher ? t : NULL, label, 1, &o, Vs, Vt);
    if (comparing) check_stats(&stats, &want, 1);
    ref_objective_gradient(grad, s, teacher ? t : NULL, label, &want, &o, Vs, Vt);
    check_x("distill_rows wide gradient", dev_s, grad, Vs, BACKWARD);
}

/* A row of a sparse teacher: K listed entries of V and the rest, in proportions that differ by orders of magnitude. */
static SparseRow draw_sparse(int *ids, double *p, int K, int V, bool with_rest) {
    SparseRow row = {0, (float)uniform(), (float)uniform(), below(V)};
    double sum = 0, rest = with_rest ? exp(-6 * uniform()) : 0;
    int used = 0;
    for (int k = 0; k < K; k++) {
        ids[k] = used < V && below(10) ? below(V) : -1;
        for (int j = 0; j < k && ids[k] >= 0; j++)
            if (ids[j] == ids[k]) ids[k] = -1;
        if (k == 0 && ids[k] < 0) ids[k] = below(V);
        p[k] = ids[k] >= 0 ? exp(-8 * uniform()) : 0;
        used += ids[k] >= 0;
        sum += p[k];
    }
    if (used == V) rest = 0;
    for (int k = 0; k < K; k++) p[k] = (float)(p[k] / (sum + rest));
    row.rest = (float)(rest / (sum + rest));
    return row;
}

typedef struct {
    ObjectiveRow o;
    double *s, *p, gate;
    const int *ids;
    const SparseRow *t;
    int label, K, Vs, V;
    RefStats stats;
} SparseCase;

static double sparse_loss(void *context) {
    SparseCase *k = (SparseCase *)context;
    return k->o.scale *
           ref_sparse_objective(&k->stats, k->s, k->ids, k->p, k->t, k->label, k->gate, &k->o, k->K, k->Vs, k->V);
}

/* Rows of any shape, of more than a GPU keeps in shared memory too, with all of the objective's terms. */
static void test_objective_sparse(void) {
    const bool wide = below(12) == 0;
    int Vs = wide ? 37000 + 8 * below(500) + below(2) : below(3) ? 1 + ragged() : 300 + below(900);
    if (!wide && below(2)) Vs = (Vs + 7) / 8 * 8;
    int V = below(2) ? Vs : 1 + below(Vs), K = ONE_OF(int, 1, 2, 7, 16, 33, 64, 300);
    size_t rows = wide ? 2 : 1 + below(20);
    bool gated = below(2), gradient = below(4) != 0;
    SoftLoss soft = (SoftLoss)below(5);
    ObjectiveRow o = {(float)uniform(),
                      below(4) ? (float)uniform() : 0,
                      below(2) ? (float)uniform() : 0,
                      below(3) ? 1.0f + (float)below(2) : 0.5f + 3 * (float)uniform(),
                      soft,
                      0.1f + 0.8f * (float)uniform(),
                      below(2) ? 0.3f : 2.0f,
                      0.3f,
                      0.25f,
                      NULL,
                      0,
                      NULL};
    double *s = draw(rows * Vs, ONE_OF(double, 1, 1, 5)), *p = zeros(rows * K), *gate = draw(rows, 1);
    double *grad = zeros(rows * Vs);
    int *ids = (int *)host(rows * K * sizeof(int)), *labels = (int *)host(rows * sizeof(int));
    SparseRow *known = (SparseRow *)host(rows * sizeof *known);
    for (size_t r = 0; r < rows; r++) {
        known[r] = draw_sparse(ids + r * K, p + r * K, K, V, soft == SOFT_REVERSE_KL || below(2));
        labels[r] = below(2) ? below(Vs) : known[r].top;
    }
    floatX *dev_s = put_x(s, rows * Vs);
    SparseRow *dev_known = (SparseRow *)device(rows * sizeof *known);
    op->upload(dev_known, known, rows * sizeof *known);
    SparseTeacher t = {put_i(ids, rows * K), put_f(p, rows * K), dev_known, K, V};
    RowStats *dev_stats = (RowStats *)device(rows * sizeof(RowStats));
    RowStats *stats = (RowStats *)host(rows * sizeof(RowStats));
    float *dev_gate = put_f(gate, rows);
    op->distill_rows_sparse(dev_s, t, put_i(labels, rows), gated ? dev_gate : NULL, dev_stats, o, rows, Vs, gradient);
    op->download(stats, dev_stats, rows * sizeof(RowStats));
    add_hash(stats, rows * sizeof(RowStats));
    for (size_t r = 0; r < rows; r++) {
        RefStats none = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        SparseCase k = {o,  s + r * Vs, p + r * K, gated ? gate[r] : 1, ids + r * K, known + r, labels[r], K,
                        Vs, V,          none};
        if (wide && !comparing) continue;
        sparse_loss(&k);
        if (comparing) check_stats(stats + r, &k.stats, 1);
        ref_sparse_gradient(grad + r * Vs, k.s, k.ids, k.p, k.t, k.label, &k.stats, &o, K, Vs, V);
        if (r < 2 && !wide) check_difference("objective_sparse", sparse_loss, &k, k.s, grad + r * Vs, Vs);
    }
    check_x("distill_rows_sparse gradient", dev_s, gradient ? grad : s, rows * Vs, BACKWARD);
}

/* With every entry listed the sparse teacher is the dense one: the same terms, near the teacher and far from it. */
static void test_objective_sparse_whole(void) {
    int V = ONE_OF(int, 2, 37, 500, 1024), label = below(V);
    double tau = ONE_OF(double, 0.5, 1, 2, 4, 20), apart = ONE_OF(double, 0.02, 0.3, 3), mean = 0;
    ObjectiveRow o = {0.2f, 0.7f, 0.1f, (float)tau, (SoftLoss)below(5), ONE_OF(float, 0.1f, 0.5f, 0.9f), 2, 1,
                      1,    NULL, 0,    NULL};
    double *t = draw(V, 2), *s = copy_of(t, V), *p = zeros(V), *g = zeros(V);
    int *ids = (int *)host(V * sizeof(int));
    for (int i = 0; i < V; i++) s[i] += apart * normal(), ids[i] = i;
    floatX *dev_s = put_x(s, V);
    ref_softmax(p, t, V, tau);
    for (int i = 0; i < V; i++) p[i] = exp(p[i]), mean += p[i];
    RefStats want;
    ref_objective(&want, s, t, label, 1, &o, V, V);
    SparseRow known = {0, (float)want.entropy, (float)want.confidence, want.teacher_top};
    SparseRow *dev_known = (SparseRow *)device(sizeof known);
    op->upload(dev_known, &known, sizeof known);
    SparseTeacher sparse = {put_i(ids, V), put_f(p, V), dev_known, V, V};
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    op->distill_rows_sparse(dev_s, sparse, put_i(&label, 1), NULL, dev_stats, o, 1, V, true);
    op->download(&stats, dev_stats, sizeof stats);
    add_hash(&stats, sizeof stats);
    if (comparing) check_stats(&stats, &want, 1);
    ref_objective_gradient(g, s, t, label, &want, &o, V, V);
    check_x_with("distill_rows_sparse of everything", dev_s, g, V, BACKWARD, 1e-2);  // of two entries Q - 1 cancels
}

/* A student near its teacher, at temperatures from 0.01 to 1000: D is tiny beside the terms that it is the sum of,
 * and still has to have its digits, and so has the gradient. Below 1e-12 one entry has all the probability. */
static void test_objective_near(void) {
    int V = ONE_OF(int, 2, 37, 4096, 32001, 128256), label = below(V);
    double tau = ONE_OF(double, 0.01, 0.1, 0.5, 1, 2, 4, 20, 100, 1000), apart = ONE_OF(double, 0.02, 0.3, 3);
    ObjectiveRow o = {0, 1,    0, (float)tau, (SoftLoss)below(5), ONE_OF(float, 0.01f, 0.5f, 0.9f), 2, 1,
                      1, NULL, 0, NULL};
    bool gradient = below(2);
    double *t = draw(V, 4), *s = copy_of(t, V), *g = zeros(V), shift = 5 * normal();
    for (int i = 0; i < V; i++) s[i] += shift + apart * (tau < 1 ? tau : 1) * normal();
    floatX *dev_s = put_x(s, V), *dev_t = put_x(t, V);
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    op->distill_rows(dev_s, dev_t, put_i(&label, 1), NULL, dev_stats, o, 1, V, V, gradient);
    op->download(&stats, dev_stats, sizeof stats);
    add_hash(&stats, sizeof stats);
    RefStats want;
    ref_objective(&want, s, t, label, 1, &o, V, V);
    if (comparing)
        report(fabs(stats.soft - want.soft) <= 1e-4 * want.soft + 1e-12,
               "%d entries, kind %d, tau %g: D is %.9g, expected %.9g", V, (int)o.soft, tau, stats.soft, want.soft);
    ref_objective_gradient(g, s, t, label, &want, &o, V, V);
    check_x_with("gradient near the teacher", dev_s, gradient ? g : s, V, 10 * BACKWARD, 1e-12);
}

static void test_objective_extremes(void) {
    enum { V = 33 };
    double s[V], t[V], g[V];
    ObjectiveRow o = {1, 1, 1, 2, (SoftLoss)below(5), 0.5f, 2, 1, 1, NULL, 0, NULL};
    for (int i = 0; i < V; i++) s[i] = below(2) ? 1e4 : -1e4, t[i] = below(2) ? 1e4 : -1e4;
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    int label = below(V);
    floatX *dev_s = put_x(s, V), *dev_t = put_x(t, V);
    int *dev_label = put_i(&label, 1);
    op->distill_rows(dev_s, dev_t, dev_label, NULL, dev_stats, o, 1, V, V, true);
    op->download(&stats, dev_stats, sizeof stats);
    RefStats want;
    ref_objective(&want, s, t, label, 1, &o, V, V);
    ref_objective_gradient(g, s, t, label, &want, &o, V, V);
    if (comparing) check_stats(&stats, &want, 1e4);
    check_x("gradient for logits of 1e4", dev_s, g, V, BACKWARD);
    float bad[] = {NAN, INFINITY};
    floatX one = to_x(bad[below(2)]);
    op->upload(dev_s, &one, sizeof one);
    op->distill_rows(dev_s, dev_t, dev_label, NULL, dev_stats, o, 1, V, V, true);
    op->download(&stats, dev_stats, sizeof stats);
    report(!isfinite(stats.ce), "a logit that is not finite shows in ce (%g)", stats.ce);
}

static void test_entropy_band(void) {
    int rows = below(3) ? 1 + below(below(2) ? 20 : 3000) : 100, percent = below(100), inside = 0;
    float low = (float)uniform(), high = low + (float)uniform();
    RowStats *stats = (RowStats *)host((size_t)rows * sizeof *stats);
    double *gate = zeros(rows);
    for (int i = 0; i < rows; i++) {
        stats[i].entropy = below(8) ? 2 * (float)uniform() : low;
        gate[i] = stats[i].entropy >= low && stats[i].entropy <= high;
        inside += gate[i] > 0;
    }
    if (below(2)) percent = inside * 100 / rows;  // for some just as many as must remain
    for (int i = 0; i < rows && inside * 100 < rows * percent; i++) gate[i] = 1;
    RowStats *dev_stats = (RowStats *)device((size_t)rows * sizeof *stats);
    op->upload(dev_stats, stats, (size_t)rows * sizeof *stats);
    float *out = out_f(rows);
    op->entropy_band(out, dev_stats, (size_t)rows, low, high, percent);
    check_f("entropy_band", out, gate, rows, 0);
}

typedef struct {
    const double *t;
    double *a;
    size_t n;
} CosineCase;

static double cosine_loss(void *context) {
    CosineCase *k = (CosineCase *)context;
    int n = (int)k->n;
    return ref_dot(k->a, k->t, n) / sqrt(ref_dot(k->a, k->a, n) * ref_dot(k->t, k->t, n));
}

static void test_cosine(void) {
    int B = 1 + below(6);
    size_t n = 1 + ragged() * (1 + below(60));
    if (below(4) == 0) B = 1, n = 8 * (2000 + below(2) * 33000 + below(3000)) + below(2);  // images in parts
    float scale = 0.5f;
    double *a = draw(B * n, 1), *t = draw(B * n, 1), *cosine = zeros(B), *da = zeros(B * n);
    for (size_t i = 0; i < B * n; i++) a[i] += 0.5 * t[i];
    int zero = below(3) ? -1 : below(B);
    for (size_t i = 0; i < n && zero >= 0; i++) (below(2) ? a : t)[zero * n] = 0, a[zero * n + i] = 0;
    floatX *dev_a = put_x(a, B * n), *dev_t = put_x(t, B * n), *dev_da = out_x(B * n);
    float *dev_cosine = out_f(B);
    op->cosine(dev_cosine, below(4) ? dev_da : NULL, dev_a, dev_t, B, n, scale);
    random_state++;
    for (int b = 0; b < B; b++) {
        const double *x = a + b * n, *y = t + b * n;
        double xx = ref_dot(x, x, (int)n), yy = ref_dot(y, y, (int)n), xy = ref_dot(x, y, (int)n);
        if (xx == 0 || yy == 0) continue;
        cosine[b] = xy / sqrt(xx * yy);
        double *g = da + b * n;
        for (size_t i = 0; i < n; i++) g[i] = y[i] / sqrt(xx * yy) - cosine[b] * x[i] / xx;
        CosineCase k = {y, a + b * n, n};
        if (n > 2) check_difference("cosine", cosine_loss, &k, k.a, g, n);
        for (size_t i = 0; i < n; i++) g[i] *= -scale;
    }
    check_f("cosine", dev_cosine, cosine, B, FP32);
    op->cosine(dev_cosine, dev_da, dev_a, dev_t, B, n, scale);
    if (n > 2) check_x("cosine da", dev_da, da, B * n, BACKWARD);
}

#endif
