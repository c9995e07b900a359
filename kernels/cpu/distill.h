/* The row kernel of the distillation objective.
 *
 * Symbols, formulas and gradients are those at the top of loss.cuh; here q and p are over the first
 * V = min(V_s, V_t) entries and Q = softmax(s) over all V_s. A row is read from memory once: the further passes find
 * it, and the three exponentials of each entry, in the cache. */
#ifndef KERNELS_CPU_DISTILL_H
#define KERNELS_CPU_DISTILL_H

#include "vector.h"
#include "../ops.h"

typedef struct {
    float largest;
    int top;
} Peak;

/* The maximum of x[0 .. n) and the smallest index that has it. NaN entries are skipped. */
static Peak row_peak(const floatX *x, size_t n) {
    Peak peak = {-INFINITY, 0};
    float lane_max[LANES];
    vf best = vf_set(-INFINITY);
    vi index = lane_index(), where = {0};
    size_t whole = n / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES, index += LANES) {
        vf v = vx_load(x + i);
        vi better = v > best;
        best = vf_select(better, v, best);
        where = (better & index) | (~better & where);
    }
    vf_store(lane_max, best);
    for (int i = 0; i < LANES && whole; i++)
        if (lane_max[i] > peak.largest || (lane_max[i] == peak.largest && where[i] < peak.top)) {
            peak.largest = lane_max[i];
            peak.top = where[i];
        }
    for (size_t i = whole; i < n; i++)
        if (from_x(x[i]) > peak.largest) peak.largest = from_x(x[i]), peak.top = (int)i;
    return peak;
}

/* What the passes after the sums need to know about a row, and its exponentials, which they find in the cache:
 * e1 = exp(s - s_max), eq = exp((s - q_max) / tau), ep = exp((t - t_max) / tau). */
typedef struct {
    float inverse;  // 1 / tau
    float s_max, q_max, t_max, z, zq, zp;
    float log_z_ratio;               // log (zq / zp): what log (q / p) subtracts
    float beta, log_beta, log_rest;  // of JSD; log beta, log (1 - beta)
    float centre;                    // the mean under q that the gradient of KL(q||p) and JSD subtracts
    float *e1, *eq, *ep;
} RowState;

/* The first m lanes of v; the others are 0. */
static inline vf first_lanes(vf v, size_t m) {
    return m == LANES ? v : vf_select(lane_index() < (int32_t)m, v, vf_zero());
}

/* Computes e1 and returns its sum. */
static float row_exp(const RowState *r, const floatX *s, size_t Vs) {
    vf sum = vf_zero();
    FOR_LANES (i, m, 0, Vs) {
        vf e = first_lanes(vf_exp(vx_load_n(s + i, m) - r->s_max), m);
        vf_store_n(r->e1 + i, e, m);
        sum += e;
    }
    return vf_sum(sum);
}

/* Computes eq and ep, their sums, and the teacher's entropy and confidence. */
static void row_sums(RowState *r, RowStats *out, const floatX *s, const floatX *t, size_t V) {
    vf z1 = vf_zero(), zq = z1, zp = z1, entropy = z1;
    FOR_LANES (i, m, 0, V) {
        vf y = vx_load_n(t + i, m) - r->t_max, ap = y * r->inverse;
        vf eq = first_lanes(vf_exp((vx_load_n(s + i, m) - r->q_max) * r->inverse), m);
        vf ep = first_lanes(vf_exp(ap), m);
        vf_store_n(r->eq + i, eq, m);
        vf_store_n(r->ep + i, ep, m);
        z1 += first_lanes(vf_exp(y), m);
        zq += eq;
        zp += ep;
        entropy += ep * ap;
    }
    r->zq = vf_sum(zq);
    r->zp = vf_sum(zp);
    r->log_z_ratio = logf(r->zq / r->zp);
    out->confidence = 1.0f / vf_sum(z1);
    out->entropy = logf(r->zp) - vf_sum(entropy) / r->zp;
}

/* ---- the divergence ----
 *
 * Where the student is near the teacher, D is a sum of terms that cancel: at a high temperature nothing would be left
 * of it in fp32. So it is summed in another form. With r = log (q / p), and because p and q both sum to 1,
 *   KL(p||q) = sum of p (e^r - 1 - r) = sum of p phi(r),        KL(q||p) = sum of q phi(-r),
 *   JSD      = sum of beta p phi(u) + (1 - beta) q phi(u - r),  u = log (m / p) = log (1 + (1 - beta) (e^r - 1)),
 * in which no term is negative, and an error of r that is the same for all entries counts only as its square. */

static const float NEAR = 0.5f;  // the series serve for |r| below this; above it little cancels

static inline vi is_near(vf r) { return (vf)((vi)r & 0x7fffffff) < NEAR; }

/* phi(x) = e^x - 1 - x for |x| < 1/2, with a relative error of 1e-7 (Taylor). */
static inline vf phi(vf x) {
    vf p = x * (1.0f / 40320.0f) + (1.0f / 5040.0f);
    p = p * x + (1.0f / 720.0f);
    p = p * x + (1.0f / 120.0f);
    p = p * x + (1.0f / 24.0f);
    p = p * x + (1.0f / 6.0f);
    p = p * x + 0.5f;
    return p * x * x;
}

/* log (1 + x) for -0.4 < x < 0.65, with a relative error of 1e-7: the series of vf_log. */
static inline vf log_1_plus(vf x) {
    vf s = x * vf_reciprocal(2.0f + x), z = s * s;
    vf p = z * (2.0f / 9.0f) + (2.0f / 7.0f);
    p = p * z + 0.4f;
    p = p * z + (2.0f / 3.0f);
    return s * 2.0f + s * z * p;
}

/* An entry of the vocabulary: its share of D; log (q / m), where KL(q||p) has m = p; and q - p. */
typedef struct {
    vf share, back, difference;
} SoftTerm;

static inline SoftTerm jsd_term(const RowState *r, vf p, vf q, vf ratio) {
    const float beta = r->beta, rest = 1.0f - beta;
    vf growth = ratio + phi(ratio);  // e^r - 1
    vf u = log_1_plus(rest * growth), back = ratio - u;
    vf near = p * (beta * phi(u) + rest * (1.0f + growth) * phi(-back));
    /* log (m / p) from the larger of both parts of m, so that neither overflows */
    vf a = vf_set(r->log_beta), b = ratio + r->log_rest, high = vf_max(a, b), low = vf_min(a, b);
    vf far_u = high + vf_log(1.0f + vf_exp(low - high)), far_back = ratio - far_u;
    vi small = is_near(ratio);
    return (SoftTerm){vf_select(small, near, rest * q * far_back - beta * p * far_u),
                      vf_select(small, back, far_back), vf_zero()};
}

static inline __attribute__((always_inline)) SoftTerm soft_term(const RowState *r, vf s, vf t, vf p, vf q,
                                                                const SoftLoss kind) {
    vf ratio = ((s - r->q_max) - (t - r->t_max)) * r->inverse - r->log_z_ratio;
    vi small = is_near(ratio);
    if (kind == SOFT_JSD) return jsd_term(r, p, q, ratio);
    if (kind == SOFT_REVERSE_KL)
        return (SoftTerm){vf_select(small, q * phi(-ratio), p - q + q * ratio), ratio, vf_zero()};
    vf f = phi(ratio);
    return (SoftTerm){vf_select(small, p * f, q - p - p * ratio), vf_zero(),
                      vf_select(small, p * (ratio + f), q - p)};
}

/* D, and the mean that its gradient subtracts, in a pass of their own. */
static inline __attribute__((always_inline)) float row_divergence(RowState *r, const floatX *s, const floatX *t,
                                                                  size_t V, const SoftLoss kind) {
    vf sum = vf_zero(), centre = sum, to_q = vf_set(1.0f / r->zq), to_p = vf_set(1.0f / r->zp);
    FOR_LANES (i, m, 0, V) {
        vf p = vf_load_n(r->ep + i, m) * to_p, q = vf_load_n(r->eq + i, m) * to_q;
        SoftTerm x = soft_term(r, vx_load_n(s + i, m), vx_load_n(t + i, m), p, q, kind);
        sum += first_lanes(x.share, m);
        centre += first_lanes(q * x.back, m);
    }
    r->centre = vf_sum(centre);
    return vf_sum(sum);
}

/* ---- the gradient ---- */

/* The weights of a row's gradient, with scale and gate, and the indices of its one-hot terms. */
typedef struct {
    float ce, hard, soft;
    int label, top;
} RowGradient;

/* out = (ce + hard) Q - ce [label] - hard [top] + soft * bracket, the bracket being the gradient in loss.cuh
 * without its constant factors tau and (1 - beta); over the first V entries when there is a soft term. Returns
 * KL(p||q), which comes out on the way. out may be s, or the memory of e1. */
static inline __attribute__((always_inline)) float row_gradient(const RowState *r, floatX *out, const floatX *s,
                                                                const floatX *t, size_t begin, size_t end,
                                                                const RowGradient *w, const SoftLoss kind,
                                                                const bool soft) {
    vi id = lane_index() + (int32_t)begin;
    vf ce = vf_set(w->ce), hard = vf_set(w->hard), sum = vf_zero();
    vf to_Q = vf_set((w->ce + w->hard) / r->z), to_q = vf_set(1.0f / r->zq), to_p = vf_set(1.0f / r->zp);
    for (size_t i = begin; i < end; i += LANES, id += LANES) {
        size_t m = min_size(LANES, end - i);
        vf g = vf_load_n(r->e1 + i, m) * to_Q;
        g -= vf_select(id == w->label, ce, vf_zero()) + vf_select(id == w->top, hard, vf_zero());
        if (soft) {
            vf p = vf_load_n(r->ep + i, m) * to_p, q = vf_load_n(r->eq + i, m) * to_q;
            SoftTerm x = soft_term(r, vx_load_n(s + i, m), vx_load_n(t + i, m), p, q, kind);
            if (kind == SOFT_KL) sum += first_lanes(x.share, m);
            g += w->soft * (kind == SOFT_KL ? x.difference : q * (x.back - r->centre));
        }
        vx_store_n(out + i, g, m);
    }
    return vf_sum(sum);
}

/* Writes the gradient of a row and returns D. KL(p||q) takes the same way, and gets the same bits, without a gradient. */
static float row_finish(RowState *r, floatX *s, const floatX *t, size_t Vs, size_t V, const RowGradient *w,
                        SoftLoss kind, bool gradient) {
    const bool soft = gradient && w->soft != 0.0f;
    float divergence = 0;
    if (t && kind == SOFT_KL && gradient && !soft) divergence = row_divergence(r, s, t, V, SOFT_KL);
    if (t && kind == SOFT_REVERSE_KL) divergence = row_divergence(r, s, t, V, SOFT_REVERSE_KL);
    if (t && kind == SOFT_JSD) divergence = row_divergence(r, s, t, V, SOFT_JSD);
    if (t && kind == SOFT_KL && (soft || !gradient))
        divergence = row_gradient(r, gradient ? s : (floatX *)(void *)r->e1, s, t, 0, V, w, SOFT_KL, true);
    if (soft && kind == SOFT_REVERSE_KL) row_gradient(r, s, s, t, 0, V, w, SOFT_REVERSE_KL, true);
    if (soft && kind == SOFT_JSD) row_gradient(r, s, s, t, 0, V, w, SOFT_JSD, true);
    if (gradient) row_gradient(r, s, s, t, soft ? V : 0, Vs, w, kind, false);
    return divergence;
}

static void distill_row(floatX *s, const floatX *t, int label, float row_gate, RowStats *stats, const ObjectiveRow *o,
                        size_t Vs, size_t V, bool gradient) {
    RowState r = {.inverse = 1.0f / o->temperature,
                  .beta = o->jsd_beta,
                  .log_beta = logf(o->jsd_beta),
                  .log_rest = logf(1.0f - o->jsd_beta),
                  .e1 = scratch(SCRATCH_A, (Vs + 2 * V) * sizeof(float))};
    RowStats out = {.teacher_top = -1};
    r.eq = r.e1 + Vs;
    r.ep = r.eq + V;
    Peak all = row_peak(s, Vs);
    r.s_max = all.largest;
    out.student_top = all.top;
    r.z = row_exp(&r, s, Vs);
    const float log_z = logf(r.z);
    if (t) {
        Peak teacher = row_peak(t, V);
        r.q_max = V < Vs ? row_peak(s, V).largest : all.largest;
        r.t_max = teacher.largest;
        row_sums(&r, &out, s, t, V);
        out.teacher_top = teacher.top;
        out.hard = log_z + (r.s_max - from_x(s[teacher.top]));
        bool confident = teacher.top == label && out.confidence >= o->gate_confidence;
        out.gate = row_gate * (confident ? o->gate_factor : 1.0f);
    }
    out.ce = log_z + (r.s_max - from_x(s[label]));
    float soft = o->scale * out.gate * o->w_soft * o->temperature * (o->soft == SOFT_JSD ? 1.0f - o->jsd_beta : 1.0f);
    RowGradient w = {o->scale * o->w_ce, o->scale * out.gate * o->w_hard, soft, label, out.teacher_top};
    out.soft = row_finish(&r, s, t, Vs, V, &w, o->soft, gradient);
    *stats = out;
}

static void cpu_distill_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                             RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient) {
    size_t V = Vs < Vt ? Vs : Vt;
#pragma omp parallel for schedule(static) if (rows * Vs > 4096)
    for (size_t i = 0; i < rows; i++)
        distill_row(student + i * Vs, teacher ? teacher + i * Vt : NULL, labels[i], row_gate ? row_gate[i] : 1.0f,
                    stats + i, &o, Vs, V, gradient);
}

#endif
