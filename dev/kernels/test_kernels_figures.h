/* The figures of rows of logits (kernels/figures.h), against plain formulas. */
#ifndef DEV_TEST_KERNELS_FIGURES_H
#define DEV_TEST_KERNELS_FIGURES_H

#include "test_kernels.h"

/* Logits of several kinds: spread as logits are, with many equal ones, all equal, one far above, zeros of both signs, huge,
 * tiny, in two heaps. */
static void figure_logits(float *x, int V, int kind) {
    for (int i = 0; i < V; i++) {
        x[i] = (float)(3 * normal());
        if (kind == 1) x[i] = floorf(x[i]);
        if (kind == 2) x[i] = 1.5f;
        if (kind == 4) x[i] = x[i] > 2 ? x[i] : x[i] > 0 ? 0.0f : -0.0f;
        if (kind == 5) x[i] *= 1e30f;
        if (kind == 6) x[i] *= 1e-41f;
        if (kind == 7) x[i] = (float)(i % 3) + 1e-6f * (float)below(4 * V);
    }
    if (kind == 3) x[below(V)] = 1e4f;
}

/* (The maximum is one of floats: gcc 12 for aarch64 fails on one of floats that become doubles.) */
static double figure_largest(const float *x, int n) {
    float top = -INFINITY;
    for (int i = 0; i < n; i++) top = fmaxf(top, x[i]);
    return (double)top;
}

static double *figure_softmax(const float *x, int n, double T) {
    double *p = zeros((size_t)n), z = 0, top = figure_largest(x, n);
    for (int i = 0; i < n; i++) z += p[i] = exp(((double)x[i] - top) / T);
    for (int i = 0; i < n; i++) p[i] /= z;
    return p;
}

static double ref_entropy(const double *p, int n) {
    double h = 0;
    for (int i = 0; i < n; i++)
        if (p[i] > 0) h -= p[i] * log(p[i]);
    return h;
}

/* Entries that go before entry k: larger ones, and equal ones with smaller ids. */
static int ref_place(const float *x, int n, int k) {
    int place = 0;
    for (int i = 0; i < n; i++) place += x[i] > x[k] || (x[i] == x[k] && i < k);
    return place;
}

static double *ref_ranks(const float *x, int n) {
    double *rank = zeros((size_t)n);
    for (int i = 0; i < n; i++) {
        int below_it = 0, equal = 0;
        for (int j = 0; j < n; j++) below_it += x[j] < x[i], equal += x[j] == x[i];
        rank[i] = below_it + (equal + 1) / 2.0;
    }
    return rank;
}

static double ref_correlation(const double *a, const double *b, int n) {
    double aa = 0, bb = 0, ab = 0, mean = (n + 1) / 2.0;
    for (int i = 0; i < n; i++) {
        aa += (a[i] - mean) * (a[i] - mean);
        bb += (b[i] - mean) * (b[i] - mean);
        ab += (a[i] - mean) * (b[i] - mean);
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}

/* sum over i of T^2 p (log p - log q), from the logits, so that it is defined where q is rounded to 0. */
static double ref_kl(const float *t, const float *s, int n, double T) {
    const double *p = figure_softmax(t, n, T), *q = figure_softmax(s, n, T);
    int k = 0;  // the likeliest of s, whose probability is not 0
    for (int i = 0; i < n; i++)
        if (q[i] > q[k]) k = i;
    double sum = -ref_entropy(p, n) - log(q[k]);
    for (int i = 0; i < n; i++) sum -= p[i] * ((double)s[i] - (double)s[k]) / T;
    return T * T * sum;
}

static void ref_side(double *f, const float *x, int own, int V, int label, double T) {
    const double *p = figure_softmax(x, own, 1), *soft = figure_softmax(x, V, T), *rank = ref_ranks(x, V);
    double z = 0, squares = 0;
    const double top = figure_largest(x, own);
    for (int i = 0; i < own; i++) z += exp((double)x[i] - top);
    f[SIDE_CE] = log(z) - ((double)x[label] - top);
    f[SIDE_CORRECT] = ref_place(x, own, label) == 0;
    f[SIDE_CONFIDENCE] = 1 / z;
    f[SIDE_ENTROPY] = ref_entropy(p, own);
    f[SIDE_SOFT_ENTROPY] = ref_entropy(soft, V);
    f[SIDE_GINI] = -(V + 1.0) / V;
    for (int i = 0; i < V; i++) squares += soft[i] * soft[i], f[SIDE_GINI] += 2 * soft[i] * rank[i] / V;
    f[SIDE_EFFECTIVE] = 1 / squares;
}

static void ref_both(double *f, const float *s, const float *t, int Vs, int V, double T) {
    const double *p = figure_softmax(t, V, T), *q = figure_softmax(s, V, T),
                 rank = ref_correlation(ref_ranks(s, V), ref_ranks(t, V), V);
    double js = 0;
    int first = 0;
    for (int i = 0; i < V; i++) {
        const double m = (p[i] + q[i]) / 2;
        if (p[i] > 0) js += p[i] * log(p[i] / m) / 2;
        if (q[i] > 0) js += q[i] * log(q[i] / m) / 2;
        if (ref_place(t, V, i) == 0) first = i;
    }
    f[FIGURE_KL] = ref_kl(t, s, V, T);
    f[FIGURE_REVERSE_KL] = ref_kl(s, t, V, T);
    f[FIGURE_JS] = js;
    f[FIGURE_AGREEMENT] = ref_place(s, Vs, first) == 0;
    f[FIGURE_CONFIDENCE_MSE] = pow(f[SIDE_CONFIDENCE] - f[FIGURE_TEACHER + SIDE_CONFIDENCE], 2);
    for (int j = 0; j < FIGURES_TOPS; j++) {
        static const int tops[] = {1, 3, 5, 10};
        const int k = tops[j];
        double both = 0;
        for (int i = 0; i < V; i++) both += ref_place(t, V, i) < k && ref_place(s, Vs, i) < k;
        f[FIGURE_OVERLAP + j] = both / (k < V ? k : V);
        f[FIGURE_FIRST + j] = ref_place(s, Vs, first) < k;
    }
    f[FIGURE_RANK_DEFINED] = !isnan(rank);
    f[FIGURE_RANK] = isnan(rank) ? 0 : rank;
}

/* Figures of a row are compared to 1e-9 of their size: of KL, which T^2 and the distance of the logits make large, too. */
static void figures_check(const LogitsFigures *got, const float *s, const float *t, int label, double T, int Vs,
                          int Vt) {
    const int V = t && Vt < Vs ? Vt : Vs;
    double f[FIGURES] = {0};
    float size = 1;
    ref_side(f, s, Vs, V, label, T);
    for (int j = 0; j < FIGURES_TOPS; j++) f[FIGURE_TRUTH + j] = ref_place(s, Vs, label) < (int[]){1, 3, 5, 10}[j];
    if (t) {
        ref_side(f + FIGURE_TEACHER, t, Vt, V, label, T);
        ref_both(f, s, t, Vs, V, T);
    }
    for (int i = 0; i < V; i++) size = fmaxf(size, fabsf(s[i]) + (t ? fabsf(t[i]) : 0));
    report(got->state == FIGURES_GOOD, "the state is %d", got->state);
    for (int i = 0; i < FIGURES; i++) {
        const bool logits = i == FIGURE_KL || i == FIGURE_REVERSE_KL || i == SIDE_CE || i == FIGURE_TEACHER + SIDE_CE;
        const double scale = logits ? (double)size * fmax(1, T) : fmax(1, fabs(f[i]));
        report(fabs(got->value[i] - f[i]) <= 1e-9 * scale, "figure %d of %d is %.15g, expected %.15g", i, V,
               got->value[i], f[i]);
    }
}

static void test_figures(void) {
    enum { MOST = 3 };
    const int Vs = ONE_OF(int, 1, 2, 3, 9, 31, 32, 33, 257, 700), rows = 1 + below(MOST), kind = below(8);
    const int Vt = below(4) == 0 ? 0 : below(2) ? Vs : 1 + below(Vs + 40), bad = below(4) ? -1 : below(rows);
    const double T = ONE_OF(double, 1, 2, 3, 0.7, 4.5);
    float *s = (float *)host((size_t)(rows * Vs) * sizeof *s), *t = (float *)host((size_t)(rows * Vt) * sizeof *t);
    int labels[MOST];
    LogitsFigures got[MOST];
    for (int r = 0; r < rows; r++) {
        figure_logits(s + r * Vs, Vs, kind);
        if (Vt) figure_logits(t + r * Vt, Vt, below(2) ? kind : below(8));
        labels[r] = below(Vt && Vt < Vs ? Vt : Vs);
    }
    const bool of_teacher = Vt && below(2);
    if (bad >= 0)
        (of_teacher ? t + bad * Vt : s + bad * Vs)[below(of_teacher ? Vt : Vs)] =
            ONE_OF(float, NAN, INFINITY, -INFINITY);
    float *d_s = (float *)device((size_t)(rows * Vs) * sizeof *s),
          *d_t = Vt ? (float *)device((size_t)(rows * Vt) * sizeof *t) : NULL;
    LogitsFigures *out = (LogitsFigures *)device((size_t)rows * sizeof *out);
    op->upload(d_s, s, (size_t)(rows * Vs) * sizeof *s);
    if (Vt) op->upload(d_t, t, (size_t)(rows * Vt) * sizeof *t);
    op->logits_figures(out, d_s, d_t, put_i(labels, (size_t)rows), T, (size_t)rows, Vs, Vt);
    op->download(got, out, (size_t)rows * sizeof *got);
    for (int r = 0; r < rows; r++) add_hash(got[r].value, sizeof got[r].value);
    for (int r = 0; comparing && r < rows; r++) {
        const int state = r != bad ? FIGURES_GOOD : of_teacher ? FIGURES_BAD_TEACHER : FIGURES_BAD_STUDENT;
        if (state == FIGURES_GOOD)
            figures_check(&got[r], s + r * Vs, Vt ? t + r * Vt : NULL, labels[r], T, Vs, Vt);
        else
            report(got[r].state == state && got[r].value[SIDE_CE] == 0, "the state is %d, not %d", got[r].state,
                   state);
    }
}

#endif
