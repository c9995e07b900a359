/* The row kernel of the distillation objective, and the cosine of the embedding term.
 *
 * For one position: student logits s (V_s of them), teacher logits t (V_t), label y, V = min(V_s, V_t),
 * p = softmax(t / tau) and q = softmax(s / tau) over the first V entries, Q = softmax(s) over all V_s.
 *
 *   CE   = -log Q_y                    dCE/ds_i   = Q_i - [i = y]
 *   hard = -log Q_top, top = argmax t  dhard/ds_i = Q_i - [i = top]
 *
 * Any divergence D(p, q) reaches s through q's softmax: with G_i = dD/dq_i,
 *   dD/ds_i = q_i (G_i - sum_j q_j G_j) / tau, and the objective carries tau^2 D (Hinton et al. 2015).
 *   KL(p||q):  G = -p/q             tau^2 dD/ds_i = tau (q_i - p_i)
 *   KL(q||p):  G = log(q/p) + 1     tau^2 dD/ds_i = tau q_i (log(q_i/p_i) - D)
 *   JSD_beta, m = beta p + (1 - beta) q:  the derivatives through m cancel to a constant and
 *              G = (1 - beta) log(q/m)    tau^2 dD/ds_i = tau (1 - beta) q_i (log(q_i/m_i) - KL(q||m))
 * (generalised JSD: Agarwal et al. 2024). Probabilities are only ever handled with their logarithms,
 * log q_i = (s_i - max) / tau - log Z, so an underflowing q_i costs no information. */
#ifndef KERNELS_CPU_OBJECTIVE_H
#define KERNELS_CPU_OBJECTIVE_H

#include "cpu_vector.h"
#include "ops.h"

typedef struct {
    float largest;
    int top;
} Peak;

/* The maximum of x[0 .. n) and the smallest index that has it; (NaN entries are passed over.) */
static Peak row_peak(const floatX *x, size_t n) {
    Peak peak = {-INFINITY, 0};
    float lane_max[LANES], first[LANES];
    vf best = vf_set(-INFINITY);
    vi index, where = {0};
    for (int i = 0; i < LANES; i++) index[i] = i;
    size_t whole = n / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES, index += LANES) {
        vf v = vx_load(x + i);
        vi better = v > best;
        best = vf_select(better, v, best);
        where = (better & index) | (~better & where);
    }
    vf_store(lane_max, best);
    (void)first;
    for (int i = 0; i < LANES && whole; i++)
        if (lane_max[i] > peak.largest || (lane_max[i] == peak.largest && where[i] < peak.top)) {
            peak.largest = lane_max[i];
            peak.top = where[i];
        }
    for (size_t i = whole; i < n; i++)
        if (from_x(x[i]) > peak.largest) peak.largest = from_x(x[i]), peak.top = (int)i;
    return peak;
}

/* What the passes over a row know about it. log p_i = (t_i - t_max) * inverse - log_zt, and so on. */
typedef struct {
    float inverse;             // 1 / tau
    float s_max, log_z;        // of Q: log Q_i = s_i - s_max - log_z
    float q_max, log_zq;       // of q
    float t_max, log_zt;       // of p
    float log_beta, log_rest;  // log beta, log (1 - beta)
} RowState;

static inline vf log_mean(const RowState *r, vf log_p, vf log_q) {  // log (beta p + (1 - beta) q)
    vf a = log_p + r->log_beta, b = log_q + r->log_rest;
    vf high = vf_max(a, b), low = vf_min(a, b);
    return high + vf_log(1.0f + vf_exp(low - high));
}

static float row_log_sum(const floatX *x, size_t n, float largest, float inverse) {
    float total = 0.0f;
    vf sum = vf_zero();
    size_t whole = n / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES) sum += vf_exp((vx_load(x + i) - largest) * inverse);
    total = vf_sum(sum);
    for (size_t i = whole; i < n; i++) total += vf_exp(vf_set((from_x(x[i]) - largest) * inverse))[0];
    return logf(total);
}

/* Lanes past the end are given zero weight. */
static inline vf lane_mask(vf v, size_t m) {
    if (m == LANES) return v;
    vi index;
    for (int i = 0; i < LANES; i++) index[i] = i;
    return vf_select(index < (int32_t)m, v, vf_zero());
}

/* D and the entropy of p; for JSD and KL(q||p), *centre is the mean under q that its gradient subtracts. */
static inline float row_divergence(const RowState *r, const floatX *s, const floatX *t, size_t V, SoftLoss kind,
                                   float beta, float *entropy, float *centre) {
    vf h = vf_zero(), from_p = vf_zero(), from_q = vf_zero();
    FOR_LANES(i, m, 0, V) {
        vf log_p = (vx_load_n(t + i, m) - r->t_max) * r->inverse - r->log_zt;
        vf log_q = (vx_load_n(s + i, m) - r->q_max) * r->inverse - r->log_zq;
        vf p = lane_mask(vf_exp(log_p), m);
        h -= lane_mask(p * log_p, m);
        if (kind == SOFT_KL) {
            from_p += lane_mask(p * (log_p - log_q), m);
        } else {
            vf q = lane_mask(vf_exp(log_q), m);
            vf log_m = kind == SOFT_JSD ? log_mean(r, log_p, log_q) : log_p;
            if (kind == SOFT_JSD) from_p += lane_mask(p * (log_p - log_m), m);
            from_q += lane_mask(q * (log_q - log_m), m);
        }
    }
    *entropy = vf_sum(h);
    *centre = vf_sum(from_q);
    if (kind == SOFT_KL) return vf_sum(from_p);
    return kind == SOFT_REVERSE_KL ? *centre : beta * vf_sum(from_p) + (1.0f - beta) * *centre;
}

/* Writes hot * Q + soft * (the bracket of the divergence) - the one-hot parts over s. */
static inline void row_gradient(const RowState *r, floatX *s, const floatX *t, size_t Vs, size_t V, SoftLoss kind,
                                float centre, float w_ce, float w_hard, float w_soft, int label, int top) {
    vi index;
    for (int i = 0; i < LANES; i++) index[i] = i;
    FOR_LANES(i, m, 0, Vs) {
        vf x = vx_load_n(s + i, m);
        vf g = vf_exp(x - r->s_max - r->log_z) * (w_ce + w_hard);
        vi id = index + (int32_t)i;
        g -= (vf)((id == label) & (vi)vf_set(w_ce));
        if (w_hard != 0.0f) g -= (vf)((id == top) & (vi)vf_set(w_hard));
        if (i < V && w_soft != 0.0f) {
            vf log_q = (x - r->q_max) * r->inverse - r->log_zq, q = vf_exp(log_q);
            vf log_p = (vx_load_n(t + i, min_size(m, V - i)) - r->t_max) * r->inverse - r->log_zt;
            vf d;
            if (kind == SOFT_KL)
                d = q - vf_exp(log_p);
            else if (kind == SOFT_REVERSE_KL)
                d = q * (log_q - log_p - centre);
            else
                d = q * (log_q - log_mean(r, log_p, log_q) - centre);
            g += w_soft * lane_mask(d, min_size(LANES, V - i));
        }
        vx_store_n(s + i, g, m);
    }
}

static void distill_row(floatX *s, const floatX *t, int label, float row_gate, RowStats *stats, const ObjectiveRow *o,
                        size_t Vs, size_t V, bool gradient) {
    Peak all = row_peak(s, Vs);
    RowState r = {0};
    r.inverse = 1.0f / o->temperature;
    r.s_max = all.largest;
    r.log_z = row_log_sum(s, Vs, r.s_max, 1.0f);
    RowStats out = {r.log_z + r.s_max - from_x(s[label]), 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, all.top, -1};
    float centre = 0.0f, w_soft = 0.0f;
    if (t) {
        Peak teacher = row_peak(t, V), student = V < Vs ? row_peak(s, V) : all;
        r.q_max = student.largest;
        r.t_max = teacher.largest;
        r.log_zq = row_log_sum(s, V, r.q_max, r.inverse);
        r.log_zt = row_log_sum(t, V, r.t_max, r.inverse);
        r.log_beta = logf(o->jsd_beta);
        r.log_rest = logf(1.0f - o->jsd_beta);
        out.teacher_top = teacher.top;
        out.confidence = expf(-(o->temperature == 1.0f ? r.log_zt : row_log_sum(t, V, r.t_max, 1.0f)));
        out.hard = r.log_z + r.s_max - from_x(s[teacher.top]);
        bool sure = teacher.top == label && out.confidence >= o->sure_confidence;
        out.gate = row_gate * (sure ? o->sure_factor : 1.0f);
        out.soft = row_divergence(&r, s, t, V, o->soft, o->jsd_beta, &out.entropy, &centre);
        w_soft = o->scale * out.gate * o->w_soft * o->temperature;
        if (o->soft == SOFT_JSD) w_soft *= 1.0f - o->jsd_beta;
    }
    *stats = out;
    if (gradient)
        row_gradient(&r, s, t, Vs, V, o->soft, centre, o->scale * o->w_ce, o->scale * out.gate * o->w_hard, w_soft,
                     label, out.teacher_top);
}

static void cpu_distill_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                             RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient) {
    size_t V = Vs < Vt ? Vs : Vt;
#pragma omp parallel for schedule(static) if (rows * Vs > 4096)
    for (size_t i = 0; i < rows; i++)
        distill_row(student + i * Vs, teacher ? teacher + i * Vt : NULL, labels[i], row_gate ? row_gate[i] : 1.0f,
                    stats + i, &o, Vs, V, gradient);
}

/* d cos / da = t / (|a||t|) - cos a / |a|^2. Where a norm is below 1e-12 the direction has no meaning: the cosine
 * is 0 and so is its gradient. */
static void cpu_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
#pragma omp parallel for schedule(static) if (B * n > 16384)
    for (int b = 0; b < B; b++) {
        const floatX *x = a + b * n, *y = t + b * n;
        double xy = 0.0, xx = 0.0, yy = 0.0;
        for (size_t i = 0; i < n; i += 1024) {
            vf vxy = vf_zero(), vxx = vf_zero(), vyy = vf_zero();
            FOR_LANES(j, m, i, min_size(n, i + 1024)) {
                vf u = vx_load_n(x + j, m), v = vx_load_n(y + j, m);
                vxy += u * v;
                vxx += u * u;
                vyy += v * v;
            }
            xy += vf_sum(vxy);
            xx += vf_sum(vxx);
            yy += vf_sum(vyy);
        }
        double norm_x = sqrt(xx), norm_y = sqrt(yy);
        bool defined = !(norm_x < 1e-12 || norm_y < 1e-12);
        double c = defined ? xy / (norm_x * norm_y) : 0.0;
        cosine[b] = (float)c;
        if (!da) continue;
        float from_t = defined ? (float)(-scale / (norm_x * norm_y)) : 0.0f;
        float from_a = defined ? (float)(scale * c / xx) : 0.0f;
        FOR_LANES(i, m, 0, n)
        vx_store_n(da + b * n + i, from_t * vx_load_n(y + i, m) + from_a * vx_load_n(x + i, m), m);
    }
}

#endif
