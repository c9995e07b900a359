/* Plain double-precision references for every kernel, written for clarity: loops over the formulas of kernels/ops.h.
 * dev/kernels/test_kernels.c compares a device with them, and them with finite differences. */
#ifndef DEV_REFERENCE_H
#define DEV_REFERENCE_H

#include "../../kernels/device.h"
#include <stdlib.h>

static const double PI = 3.14159265358979323846;

/* ---- norms ---- layer: LayerNorm, else RMSNorm (mean and bias are not used) */

static void ref_norm_forward(double *out, double *mean, double *rstd, const double *x, const double *weight,
                             const double *bias, size_t rows, int C, double eps, bool layer) {
    for (size_t r = 0; r < rows; r++) {
        const double *row = x + r * C;
        double mu = 0, square = 0;
        for (int c = 0; c < C; c++) mu += layer ? row[c] / C : 0;
        for (int c = 0; c < C; c++) square += (row[c] - mu) * (row[c] - mu) / C;
        mean[r] = mu;
        rstd[r] = 1 / sqrt(square + eps);
        for (int c = 0; c < C; c++) out[r * C + c] = (row[c] - mu) * rstd[r] * weight[c] + (layer ? bias[c] : 0);
    }
}

/* Adds to dx, dweight and dbias. */
static void ref_norm_backward(double *dx, double *dweight, double *dbias, const double *dout, const double *x,
                              const double *weight, const double *mean, const double *rstd, size_t rows, int C,
                              bool layer) {
    for (size_t r = 0; r < rows; r++) {
        const double *row = x + r * C, *d = dout + r * C;
        double mean_g = 0, mean_gx = 0;
        for (int c = 0; c < C; c++) {
            double normed = (row[c] - mean[r]) * rstd[r], g = d[c] * weight[c];
            dweight[c] += d[c] * normed;
            dbias[c] += d[c];
            mean_g += layer ? g / C : 0;
            mean_gx += g * normed / C;
        }
        for (int c = 0; c < C; c++)
            dx[r * C + c] += rstd[r] * (d[c] * weight[c] - mean_g - (row[c] - mean[r]) * rstd[r] * mean_gx);
    }
}

/* ---- pointwise ---- */

static double ref_sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double ref_activation(double x, Activation act) {
    if (act == ACT_GELU_TANH) return 0.5 * x * (1 + tanh(sqrt(2 / PI) * (x + 0.044715 * x * x * x)));
    if (act == ACT_GELU_ERF) return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    return x;
}

static double ref_activation_derivative(double x, Activation act) {
    if (act == ACT_GELU_ERF) return 0.5 * (1 + erf(x / sqrt(2.0))) + x * exp(-x * x / 2) / sqrt(2 * PI);
    if (act == ACT_NONE) return 1;
    double k = sqrt(2 / PI), t = tanh(k * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
}

static double ref_silu(double x) { return x * ref_sigmoid(x); }
static double ref_silu_derivative(double x) { return ref_sigmoid(x) * (1 + x * (1 - ref_sigmoid(x))); }

/* ---- matmul ---- */

/* c [M, N] = a b with a's element (m, k) at a[m * am + k * ak] and b's (k, n) at b[k * bk + n * bn] */
static void ref_matmul(double *c, const double *a, size_t am, size_t ak, const double *b, size_t bk, size_t bn,
                       size_t M, size_t N, size_t K) {
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) {
            double sum = 0;
            for (size_t k = 0; k < K; k++) sum += a[m * am + k * ak] * b[k * bk + n * bn];
            c[m * N + n] = sum;
        }
}

/* ---- attention ---- */

/* Rotates v [D] by the angles of position t; direction is 1, or -1 to undo it. */
static void ref_rotate(double *v, const AttentionShape *s, int t, double direction) {
    if (!s->rope) return;
    const float *angle = s->rope + (size_t)t * s->D;
    for (int i = 0, half = s->D / 2; i < half; i++) {
        double a = v[i], b = v[i + half], c = angle[i], sine = direction * angle[i + half];
        v[i] = a * c - b * sine;
        v[i + half] = b * c + a * sine;
    }
}

/* A copy of qkv with queries and keys rotated. */
static double *ref_rotated(const double *qkv, const AttentionShape *s, double direction) {
    size_t heads = s->H + 2 * s->K, n = (size_t)s->B * s->T * heads * s->D;
    double *x = (double *)malloc(n * sizeof *x);
    memcpy(x, qkv, n * sizeof *x);
    for (int row = 0; row < s->B * s->T; row++)
        for (int h = 0; h < s->H + s->K; h++) ref_rotate(x + (row * heads + h) * s->D, s, row % s->T, direction);
    return x;
}

static double ref_dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* probabilities of query (b, t, h) over `keys` keys of rotated qkv x; returns the log-sum-exp */
static double ref_scores(double *p, const double *x, const AttentionShape *s, int b, int t, int h, int keys) {
    size_t heads = s->H + 2 * s->K;
    int kv = s->H + h / (s->H / s->K);
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < keys; j++) {
        p[j] = s->scale * ref_dot(x + (((size_t)b * s->T + t) * heads + h) * s->D,
                                  x + (((size_t)b * s->T + j) * heads + kv) * s->D, s->D);
        top = p[j] > top ? p[j] : top;
    }
    for (int j = 0; j < keys; j++) sum += exp(p[j] - top);
    for (int j = 0; j < keys; j++) p[j] = exp(p[j] - top) / sum;
    return top + log(sum);
}

/* out [D] of query (b, t, h) of rotated qkv x; returns the log-sum-exp. p: memory for T values */
static double ref_attention_row(double *out, double *p, const double *x, const AttentionShape *s, int b, int t,
                                int h) {
    size_t heads = s->H + 2 * s->K;
    int keys = s->causal ? t + 1 : s->T, v = s->H + s->K + h / (s->H / s->K);
    double lse = ref_scores(p, x, s, b, t, h, keys);
    memset(out, 0, s->D * sizeof *out);
    for (int j = 0; j < keys; j++)
        for (int d = 0; d < s->D; d++) out[d] += p[j] * x[(((size_t)b * s->T + j) * heads + v) * s->D + d];
    return lse;
}

static void ref_attention_forward(double *out, double *lse, const double *qkv, const AttentionShape *s) {
    double *x = ref_rotated(qkv, s, 1), *p = (double *)malloc(s->T * sizeof *p);
    for (int b = 0; b < s->B; b++)
        for (int h = 0; h < s->H; h++)
            for (int t = 0; t < s->T; t++)
                lse[((size_t)b * s->H + h) * s->T + t] =
                    ref_attention_row(out + (((size_t)b * s->T + t) * s->H + h) * s->D, p, x, s, b, t, h);
    free(x);
    free(p);
}

static void ref_attention_backward(double *dqkv, const double *dout, const double *qkv, const AttentionShape *s) {
    size_t heads = s->H + 2 * s->K, n = (size_t)s->B * s->T * heads * s->D;
    double *x = ref_rotated(qkv, s, 1), *p = (double *)malloc(2 * s->T * sizeof *p), *dp = p + s->T;
    double *dx = (double *)calloc(n, sizeof *dx);
    for (int b = 0; b < s->B; b++)
        for (int h = 0; h < s->H; h++)
            for (int t = 0; t < s->T; t++) {
                int keys = s->causal ? t + 1 : s->T, k = s->H + h / (s->H / s->K), v = k + s->K, D = s->D;
                const double *d = dout + (((size_t)b * s->T + t) * s->H + h) * D;
                size_t q = (((size_t)b * s->T + t) * heads + h) * D;
                double mean = 0;
                ref_scores(p, x, s, b, t, h, keys);
                for (int j = 0; j < keys; j++) {
                    dp[j] = ref_dot(d, x + (((size_t)b * s->T + j) * heads + v) * D, D);
                    mean += p[j] * dp[j];
                }
                for (int j = 0; j < keys; j++) {
                    size_t at = ((size_t)b * s->T + j) * heads;
                    double ds = p[j] * (dp[j] - mean) * s->scale;
                    for (int i = 0; i < D; i++) {
                        dx[q + i] += ds * x[(at + k) * D + i];
                        dx[(at + k) * D + i] += ds * x[q + i];
                        dx[(at + v) * D + i] += p[j] * d[i];
                    }
                }
            }
    double *back = ref_rotated(dx, s, -1);
    memcpy(dqkv, back, n * sizeof *back);
    free(back);
    free(dx);
    free(p);
    free(x);
}

/* ---- objective ---- */

static void ref_softmax(double *p, const double *x, int n, double tau) {  // log-probabilities
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++) sum += exp((x[i] - top) / tau);
    for (int i = 0; i < n; i++) p[i] = (x[i] - top) / tau - log(sum);
}

static int ref_argmax(const double *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static long double ref_log_total(const double *x, int n, long double tau, double top) {  // of softmax(x / tau)
    long double sum = 0;
    for (int i = 0; i < n; i++) sum += expl((x[i] - top) / tau);
    return logl(sum);
}

/* D(p, q), term by term as it is defined, with the 64 bits of a long double: what cancels leaves enough. */
static double ref_divergence(const double *s, const double *t, int V, double temperature, SoftLoss kind,
                             double beta) {
    const long double tau = temperature;
    double s_top = s[ref_argmax(s, V)], t_top = t[ref_argmax(t, V)];
    long double s_total = ref_log_total(s, V, tau, s_top), t_total = ref_log_total(t, V, tau, t_top), sum = 0;
    for (int i = 0; i < V; i++) {
        long double lq = (s[i] - s_top) / tau - s_total, lp = (t[i] - t_top) / tau - t_total, q = expl(lq),
                    p = expl(lp);
        if (kind == SOFT_KL) sum += p * (lp - lq);
        if (kind == SOFT_REVERSE_KL) sum += q * (lq - lp);
        if (kind < SOFT_JSD) continue;
        const double share = kind == SOFT_SRKL ? 1 - beta : beta;  // of p in the mixture
        long double a = logl(share) + lp, b = logl(1 - share) + lq, high = a > b ? a : b, low = a > b ? b : a;
        long double lm = high + log1pl(expl(low - high));
        if (kind == SOFT_JSD) sum += beta * p * (lp - lm) + (1 - beta) * q * (lq - lm);
        if (kind == SOFT_SKL) sum += p * (lp - lm);
        if (kind == SOFT_SRKL) sum += q * (lq - lm);
    }
    return (double)sum;
}

typedef struct {
    double ce, soft, hard, entropy, confidence, gate, policy, clipped;
    int student_top, teacher_top;
} RefStats;

/* The term with the weight w_ce: ce, or -min (r A, clip (r) A) of the ratio r of the label's probabilities now and then. */
static void ref_policy(RefStats *r, const ObjectiveRow *o) {
    r->policy = r->ce;
    if (!o->policy) return;
    const double A = o->policy->advantage, old = o->policy->old_ce, e = o->clip_ratio;
    const double ratio = isnan(old) ? 1 : exp(old - r->ce), inside = fmin(fmax(ratio, 1 - e), 1 + e);
    r->policy = -fmin(ratio * A, inside * A);
    r->clipped = ratio != inside && inside * A < ratio * A;
}

/* Statistics of one row, and the row's loss without `scale`: what distill_rows differentiates. The gate is a
 * constant to the gradient (the teacher's row decides it). */
static double ref_objective(RefStats *out, const double *s, const double *t, int label, double row_gate,
                            const ObjectiveRow *o, int Vs, int Vt) {
    const double one = o->policy ? o->temperature : 1;  // the temperature of ce, hard and confidence
    int V = Vs < Vt ? Vs : Vt;
    double *lq1 = (double *)calloc(1, 2 * (size_t)(Vs + Vt) * sizeof *lq1), *lq = lq1 + Vs, *lp = lq + Vs;
    RefStats r = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    ref_softmax(lq1, s, Vs, one);
    r.ce = -lq1[label];
    ref_policy(&r, o);
    r.student_top = ref_argmax(s, Vs);
    r.teacher_top = -1;
    if (t) {
        r.teacher_top = ref_argmax(t, V);
        ref_softmax(lp, t, V, one);
        r.confidence = exp(lp[r.teacher_top]);
        ref_softmax(lp, t, V, o->temperature);
        ref_softmax(lq, s, V, o->temperature);
        for (int i = 0; i < V; i++) r.entropy -= exp(lp[i]) * lp[i];
        r.soft = ref_divergence(s, t, V, o->temperature, o->soft, o->mix);
        r.hard = -lq1[r.teacher_top];
        bool confident = r.teacher_top == label && r.confidence >= o->gate_confidence;
        r.gate = row_gate * (confident ? o->gate_factor : 1);
    }
    free(lq1);
    *out = r;
    double soft = (double)o->temperature * o->temperature * r.soft;
    return o->w_ce * r.policy + r.gate * (o->w_soft * soft + o->w_hard * r.hard);
}

/* Gradient of ref_objective times o->scale, by the formulas at the head of kernels/cpu/distill.h. */
static void ref_objective_gradient(double *g, const double *s, const double *t, int label, const RefStats *stats,
                                   const ObjectiveRow *o, int Vs, int Vt) {
    int V = Vs < Vt ? Vs : Vt;
    double *l1 = (double *)malloc(4 * (size_t)(Vs + Vt) * sizeof *l1), *lq = l1 + Vs, *lp = lq + Vs, *qG = lp + Vt;
    double hard = stats->gate * o->w_hard, soft = stats->gate * o->w_soft * o->temperature, mean = 0;
    double beta = o->mix, ce = o->w_ce;
    if (o->policy) {
        hard /= o->temperature;
        ce *= (stats->clipped ? 0 : -stats->policy) / o->temperature;  // d(-r A)/d ce = r A
    }
    ref_softmax(l1, s, Vs, o->policy ? o->temperature : 1);
    for (int i = 0; i < Vs; i++) {
        g[i] = (ce + hard) * exp(l1[i]);
        if (i == label) g[i] -= ce;
        if (i == stats->teacher_top) g[i] -= hard;
    }
    if (t) {
        ref_softmax(lp, t, V, o->temperature);
        ref_softmax(lq, s, V, o->temperature);
        for (int i = 0; i < V; i++) {
            const double share = o->soft == SOFT_SRKL ? 1 - beta : beta;
            double a = log(share) + lp[i], b = log(1 - share) + lq[i], high = a > b ? a : b, low = a > b ? b : a;
            double lm = high + log1p(exp(low - high)), q = exp(lq[i]), p = exp(lp[i]);
            if (o->soft == SOFT_KL) qG[i] = -exp(lp[i]);
            if (o->soft == SOFT_REVERSE_KL) qG[i] = q * (lq[i] - lp[i]);
            if (o->soft == SOFT_JSD) qG[i] = q * (1 - beta) * (lq[i] - lm);
            if (o->soft == SOFT_SKL) qG[i] = -(1 - beta) * p * exp(lq[i] - lm);
            if (o->soft == SOFT_SRKL) qG[i] = q * (lq[i] - lm + 1 - beta * exp(lq[i] - lm));
            mean += qG[i];
        }
        for (int i = 0; i < V; i++) g[i] += soft * (qG[i] - exp(lq[i]) * mean);
    }
    for (int i = 0; i < Vs; i++) g[i] *= o->scale;
    free(l1);
}

/* ---- the objective with a teacher of few entries (kernels/sparse.h) ---- */

/* D over K listed entries and "any of the others", of p [K] and of the student's softmax at tau over V entries. */
static double ref_sparse_divergence(const double *s, const int *ids, const double *p, double rest, int K, int V,
                                    const ObjectiveRow *o) {
    double *lq = (double *)calloc((size_t)V, sizeof *lq), others = 0, sum = 0, beta = o->mix;
    const double share = o->soft == SOFT_SRKL ? 1 - beta : beta;  // of p in the mixture
    ref_softmax(lq, s, V, o->temperature);
    for (int i = 0; i < V; i++) {
        bool listed = false;
        for (int k = 0; k < K; k++) listed = listed || ids[k] == i;
        if (!listed) others += exp(lq[i]);
    }
    for (int k = 0; k <= K; k++) {
        if (k < K && ids[k] < 0) continue;
        double a = k < K ? p[k] : rest, b = k < K ? exp(lq[ids[k]]) : others, m = share * a + (1 - share) * b;
        if (o->soft == SOFT_KL && a > 0) sum += a * log(a / b);
        if (o->soft == SOFT_REVERSE_KL && b > 0) sum += b * log(b / a);
        if (o->soft == SOFT_SKL && a > 0) sum += a * log(a / m);
        if (o->soft == SOFT_SRKL && b > 0) sum += b * log(b / m);
        if (o->soft == SOFT_JSD)
            sum += (a > 0 ? beta * a * log(a / m) : 0) + (b > 0 ? (1 - beta) * b * log(b / m) : 0);
    }
    free(lq);
    return sum;
}

/* The row's loss without `scale`, and its statistics but for those that the teacher's row says. */
static double ref_sparse_objective(RefStats *out, const double *s, const int *ids, const double *p,
                                   const SparseRow *t, int label, double row_gate, const ObjectiveRow *o, int K,
                                   int Vs, int V) {
    double *l1 = (double *)calloc((size_t)Vs, sizeof *l1);
    ref_softmax(l1, s, Vs, 1);
    RefStats r = {0, 0, 0, t->entropy, t->confidence, 0, 0, 0, ref_argmax(s, Vs), t->top};
    r.ce = -l1[label], r.hard = -l1[t->top];
    r.policy = r.ce;
    r.soft = ref_sparse_divergence(s, ids, p, t->rest, K, V, o);
    r.gate = row_gate * (t->top == label && t->confidence >= o->gate_confidence ? o->gate_factor : 1);
    free(l1);
    *out = r;
    return o->w_ce * r.ce +
           r.gate * (o->w_soft * (double)o->temperature * o->temperature * r.soft + o->w_hard * r.hard);
}

/* Its gradient times o->scale: dD/dz_j = q_j (D_b(j) - sum over events of q_b D_b). */
static void ref_sparse_gradient(double *g, const double *s, const int *ids, const double *p, const SparseRow *t,
                                int label, const RefStats *stats, const ObjectiveRow *o, int K, int Vs, int V) {
    double *l1 = (double *)malloc(2 * (size_t)Vs * sizeof *l1), *q = l1 + Vs, q_others = 0, mean = 0;
    double *slope = (double *)calloc((size_t)K + 1, sizeof *slope), beta = o->mix;
    int *event = (int *)malloc((size_t)V * sizeof *event);
    ref_softmax(l1, s, Vs, 1);
    ref_softmax(q, s, V, o->temperature);
    for (int i = 0; i < V; i++) event[i] = K, q[i] = exp(q[i]);
    for (int k = 0; k < K; k++)
        if (ids[k] >= 0) event[ids[k]] = k;
    for (int i = 0; i < V; i++) q_others += event[i] == K ? q[i] : 0;
    for (int k = 0; k <= K; k++) {
        if (k < K && ids[k] < 0) continue;
        double a = k < K ? p[k] : t->rest, b = k < K ? q[ids[k]] : q_others;
        if (b == 0) continue;
        if (o->soft == SOFT_KL) slope[k] = -a / b;
        if (o->soft == SOFT_REVERSE_KL) slope[k] = log(b / a) + 1;
        if (o->soft == SOFT_JSD) slope[k] = (1 - beta) * log(b / (beta * a + (1 - beta) * b));
        if (o->soft == SOFT_SKL) slope[k] = -(1 - beta) * a / (beta * a + (1 - beta) * b);
        if (o->soft == SOFT_SRKL) {
            const double m = (1 - beta) * a + beta * b;
            slope[k] = log(b / m) + 1 - beta * b / m;
        }
        mean += b * slope[k];
    }
    for (int i = 0; i < Vs; i++) {
        double hard = stats->gate * o->w_hard, soft = stats->gate * o->w_soft * o->temperature;
        g[i] = (o->w_ce + hard) * exp(l1[i]) - (i == label ? o->w_ce : 0) - (i == t->top ? hard : 0);
        if (i < V) g[i] += soft * q[i] * (slope[event[i]] - mean);
        g[i] *= o->scale;
    }
    free(event);
    free(slope);
    free(l1);
}

#endif
