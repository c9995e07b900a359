/* The row kernel of the distillation objective.
 *
 * Symbols, formulas and gradients are those at the top of loss.cuh; here q and p are over the first
 * V = min(V_s, V_t) entries and Q = softmax(s) over all V_s. A row is read from memory once: the further passes over
 * it find it in the cache. Probabilities are always computed from their logarithms,
 * log q_i = (s_i - max) / tau - log Z, so an underflowing q_i costs no information. */
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

/* What the second pass needs to know about a row: log Q_i = s_i - s_max - log_z, log q_i = (s_i - q_max) / tau -
 * log_zq, log p_i = (t_i - t_max) / tau - log_zt. */
typedef struct {
    float inverse;  // 1 / tau
    float s_max, log_z, q_max, log_zq, t_max, log_zt;
    float log_beta, log_rest;  // log beta, log (1 - beta)
    float centre;              // the mean under q that the gradient of KL(q||p) and JSD subtracts
} RowState;

/* The first m lanes of v; the others are 0. */
static inline vf first_lanes(vf v, size_t m) {
    return m == LANES ? v : vf_select(lane_index() < (int32_t)m, v, vf_zero());
}

/* The sum of exp(s_i - largest) over begin .. end. */
static float row_sum_exp(const floatX *s, size_t begin, size_t end, float largest) {
    vf sum = vf_zero();
    FOR_LANES (i, m, begin, end) sum += first_lanes(vf_exp(vx_load_n(s + i, m) - largest), m);
    return vf_sum(sum);
}

/* All sums over both rows, in one pass: the logarithms of the normalisers, entropy, confidence and, for the two KL
 * divergences, D itself. With a = (x - max) / tau and e = exp(a),
 *   KL(p||q) = sum of e_p (a_p - a_q) / z_p - log z_p + log z_q. */
static inline void row_sums(RowState *r, RowStats *out, const floatX *s, const floatX *t, size_t Vs, size_t V,
                            SoftLoss kind) {
    vf z = vf_zero(), z1 = z, zq = z, zp = z, entropy = z, divergence = z;
    FOR_LANES (i, m, 0, V) {
        vf s1 = vx_load_n(s + i, m), t1 = vx_load_n(t + i, m);
        vf aq = (s1 - r->q_max) * r->inverse, ap = (t1 - r->t_max) * r->inverse;
        vf eq = first_lanes(vf_exp(aq), m), ep = first_lanes(vf_exp(ap), m);
        z += first_lanes(vf_exp(s1 - r->s_max), m);
        z1 += first_lanes(vf_exp(t1 - r->t_max), m);
        zq += eq;
        zp += ep;
        entropy += ep * ap;
        if (kind == SOFT_KL) divergence += ep * (ap - aq);
        if (kind == SOFT_REVERSE_KL) divergence += eq * (aq - ap);
    }
    float total_q = vf_sum(zq), total_p = vf_sum(zp);
    r->log_z = logf(vf_sum(z) + row_sum_exp(s, V, Vs, r->s_max));
    r->log_zq = logf(total_q);
    r->log_zt = logf(total_p);
    out->confidence = 1.0f / vf_sum(z1);
    out->entropy = r->log_zt - vf_sum(entropy) / total_p;
    if (kind == SOFT_KL) out->soft = vf_sum(divergence) / total_p - r->log_zt + r->log_zq;
    if (kind == SOFT_REVERSE_KL) r->centre = out->soft = vf_sum(divergence) / total_q - r->log_zq + r->log_zt;
}

static inline vf log_mixture(const RowState *r, vf log_p, vf log_q) {  // log (beta p + (1 - beta) q)
    vf a = log_p + r->log_beta, b = log_q + r->log_rest;
    vf high = vf_max(a, b), low = vf_min(a, b);
    return high + vf_log(1.0f + vf_exp(low - high));
}

/* JSD, which takes a pass of its own because it needs the normalised probabilities. */
static float row_jsd(RowState *r, const floatX *s, const floatX *t, size_t V, float beta) {
    vf from_p = vf_zero(), from_q = vf_zero();
    r->log_beta = logf(beta);
    r->log_rest = logf(1.0f - beta);
    FOR_LANES (i, m, 0, V) {
        vf log_p = (vx_load_n(t + i, m) - r->t_max) * r->inverse - r->log_zt;
        vf log_q = (vx_load_n(s + i, m) - r->q_max) * r->inverse - r->log_zq;
        vf log_m = log_mixture(r, log_p, log_q);
        from_p += first_lanes(vf_exp(log_p) * (log_p - log_m), m);
        from_q += first_lanes(vf_exp(log_q) * (log_q - log_m), m);
    }
    r->centre = vf_sum(from_q);
    return beta * vf_sum(from_p) + (1.0f - beta) * r->centre;
}

/* The weights of a row's gradient, with scale and gate, and the indices of its one-hot terms. */
typedef struct {
    float ce, hard, soft;
    int label, top;
} RowGradient;

/* s = (ce + hard) Q - ce [label] - hard [top] + soft * bracket, the bracket being the gradient in loss.cuh
 * without its constant factors tau and (1 - beta); over the first V entries when there is a soft term. */
static inline __attribute__((always_inline)) void row_gradient(const RowState *r, floatX *s, const floatX *t,
                                                               size_t begin, size_t end, const RowGradient *w,
                                                               const SoftLoss kind, const bool soft) {
    vi id = lane_index() + (int32_t)begin;
    vf ce = vf_set(w->ce), hard = vf_set(w->hard);
    for (size_t i = begin; i < end; i += LANES, id += LANES) {
        size_t m = min_size(LANES, end - i);
        vf x = vx_load_n(s + i, m), g = vf_exp(x - r->s_max - r->log_z) * (w->ce + w->hard);
        g -= vf_select(id == w->label, ce, vf_zero()) + vf_select(id == w->top, hard, vf_zero());
        if (soft) {
            vf log_q = (x - r->q_max) * r->inverse - r->log_zq, q = vf_exp(log_q);
            vf log_p = (vx_load_n(t + i, m) - r->t_max) * r->inverse - r->log_zt;
            if (kind == SOFT_KL) g += w->soft * (q - vf_exp(log_p));
            if (kind == SOFT_REVERSE_KL) g += w->soft * q * (log_q - log_p - r->centre);
            if (kind == SOFT_JSD) g += w->soft * q * (log_q - log_mixture(r, log_p, log_q) - r->centre);
        }
        vx_store_n(s + i, g, m);
    }
}

static void row_gradient_all(const RowState *r, floatX *s, const floatX *t, size_t Vs, size_t V, const RowGradient *w,
                             SoftLoss kind) {
    size_t both = t && w->soft != 0.0f ? V : 0;
    if (kind == SOFT_KL)
        row_gradient(r, s, t, 0, both, w, SOFT_KL, true);
    else if (kind == SOFT_REVERSE_KL)
        row_gradient(r, s, t, 0, both, w, SOFT_REVERSE_KL, true);
    else
        row_gradient(r, s, t, 0, both, w, SOFT_JSD, true);
    row_gradient(r, s, t, both, Vs, w, kind, false);
}

static void distill_row(floatX *s, const floatX *t, int label, float row_gate, RowStats *stats, const ObjectiveRow *o,
                        size_t Vs, size_t V, bool gradient) {
    RowState r = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    RowStats out = {0, 0, 0, 0, 0, 0, 0, -1};
    Peak all = row_peak(s, Vs);
    r.s_max = all.largest;
    out.student_top = all.top;
    if (t) {
        Peak teacher = row_peak(t, V);
        r.inverse = 1.0f / o->temperature;
        r.q_max = V < Vs ? row_peak(s, V).largest : all.largest;
        r.t_max = teacher.largest;
        row_sums(&r, &out, s, t, Vs, V, o->soft);
        if (o->soft == SOFT_JSD) out.soft = row_jsd(&r, s, t, V, o->jsd_beta);
        out.teacher_top = teacher.top;
        out.hard = r.log_z + (r.s_max - from_x(s[teacher.top]));
        bool confident = teacher.top == label && out.confidence >= o->gate_confidence;
        out.gate = row_gate * (confident ? o->gate_factor : 1.0f);
    } else {
        r.log_z = logf(row_sum_exp(s, 0, Vs, r.s_max));
    }
    out.ce = r.log_z + (r.s_max - from_x(s[label]));
    *stats = out;
    if (!gradient) return;
    float soft = o->scale * out.gate * o->w_soft * o->temperature * (o->soft == SOFT_JSD ? 1.0f - o->jsd_beta : 1.0f);
    RowGradient w = {o->scale * o->w_ce, o->scale * out.gate * o->w_hard, soft, label, out.teacher_top};
    row_gradient_all(&r, s, t, Vs, V, &w, o->soft);
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
