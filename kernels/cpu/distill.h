/* The row kernel of the distillation objective.
 *
 * Symbols, formulas and gradients are those at the top of loss.cuh; here q and p are over the first
 * V = min(V_s, V_t) entries and Q = softmax(s) over all V_s. A row is read from memory once: the further passes find
 * it, and the three exponentials of each entry, in the cache. All passes take groups of vectors (vector.h), so the
 * exponentials are kept in the order of groups. */
#ifndef KERNELS_CPU_DISTILL_H
#define KERNELS_CPU_DISTILL_H

#include "functions.h"
#include "../mixture.h"

typedef struct {
    float largest;
    int top;
} Peak;

/* The maximum of x[0 .. n) and the smallest index that has it. NaN entries are skipped. */
static Peak row_peak(const floatX *x, size_t n) {
    Peak peak = {-INFINITY, 0};
    vf best = vf_set(-INFINITY);
    vi where = {0}, index = {0};  // the first group in which a lane had its best value
    FOR_GROUPS (i, m, 0, n) {
        vf v[GROUP], largest = vf_set(-INFINITY);
        vx_load_group(v, x + i, m, -INFINITY);
        for (int k = 0; k < GROUP; k++) largest = vf_max(v[k], largest);
        where = (vi)vf_select(largest > best, (vf)index, (vf)where);
        best = vf_max(largest, best);
        index += GROUP_SIZE;
    }
    size_t first = n;
    peak.largest = vf_largest(best);
    for (int i = 0; i < LANES; i++)
        if (best[i] == peak.largest) first = min_size(first, (size_t)where[i]);
    for (size_t i = first; i < min_size(n, first + GROUP_SIZE); i++)
        if (from_x(x[i]) == peak.largest) {
            peak.top = (int)i;
            break;
        }
    return peak;
}

/* What the passes after the sums need to know about a row, and its exponentials, which they find in the cache:
 * e1 = exp(s - s_max), eq = exp((s - q_max) / tau), ep = exp((t - t_max) / tau). */
typedef struct {
    float inverse, one;  // 1 / tau; what stands for it in ce and hard: 1, in a policy gradient 1 / tau
    float s_max, q_max, t_max, z, zq, zp;
    float log_z_ratio;               // log (zq / zp): what log (q / p) subtracts
    Mixture mix;      // of the divergences from a mixture
    float centre;     // the mean under q of SoftTerms.back, which the gradient subtracts
    float *e1, *eq, *ep;
} RowState;

/* What stands for the missing entries of a row's last group: its exponential is 0, and it is finite. */
static const float LOWEST = -1e30f;

/* x = (a row's entries i .. i+m - largest) * factor */
ALWAYS_INLINE void load_shifted(vf *x, const floatX *row, size_t m, float largest, float factor) {
    vx_load_group(x, row, m, LOWEST);
    for (int k = 0; k < GROUP; k++) x[k] = (x[k] - largest) * factor;
}

ALWAYS_INLINE void add_group(vf *sum, const vf *x) {
    for (int k = 0; k < GROUP; k++) sum[k] += x[k];
}

/* e = exp((x - largest) * factor) for a row x; returns the sum. */
static float row_exp(float *e, const floatX *x, size_t n, float largest, float factor) {
    vf sum[GROUP] = {{0}};
    FOR_GROUPS (i, m, 0, n) {
        vf v[GROUP];
        load_shifted(v, x + i, m, largest, factor);
        vf_exp_each(v, GROUP);
        vf_store_group(e + i, v);
        add_group(sum, v);
    }
    return vf_sum_group(sum);
}

/* Computes ep, its sum, and the teacher's entropy and confidence. At temperature 1 the confidence needs no
 * exponentials of its own. */
static void row_teacher(RowState *r, RowStats *out, const floatX *t, size_t V) {
    const bool same = r->inverse == r->one;
    vf z1[GROUP] = {{0}}, zp[GROUP] = {{0}}, entropy[GROUP] = {{0}};
    FOR_GROUPS (i, m, 0, V) {
        vf x[GROUP], e[GROUP], y[GROUP];
        load_shifted(y, t + i, m, r->t_max, 1.0f);
        for (int k = 0; k < GROUP; k++) e[k] = x[k] = vf_max(vf_set(LOWEST), y[k] * r->inverse);
        vf_exp_each(e, GROUP);
        vf_store_group(r->ep + i, e);
        add_group(zp, e);
        for (int k = 0; k < GROUP; k++) entropy[k] += e[k] * x[k];
        if (same) continue;
        vf_exp_each(y, GROUP);
        add_group(z1, y);
    }
    r->zp = vf_sum_group(zp);
    out->confidence = 1.0f / (same ? r->zp : vf_sum_group(z1));
    out->entropy = logf(r->zp) - vf_sum_group(entropy) / r->zp;
}

/* ---- the divergence ----
 *
 * Where the student is near the teacher, D is a sum of terms that cancel: at a high temperature nothing would be left
 * of it in fp32. So it is summed in another form. With r = log (q / p), and because p and q both sum to 1,
 *   KL(p||q) = sum of p (e^r - 1 - r) = sum of p phi(r),        KL(q||p) = sum of q phi(-r),
 *   KL(p||m) = sum of p phi(u),   KL(q||m) = sum of q phi(u - r),   u = log (m / p) = log (1 + (1 - beta) (e^r - 1)),
 * in which no term is negative, and an error of r that is the same for all entries counts only as its square. */

static const float NEAR = 0.5f;  // the series serve for |r| below this; above it little cancels

static inline vi is_near(vf r) { return (vf)((vi)r & 0x7fffffff) < NEAR; }

/* y = phi(x) = e^x - 1 - x for |x| < 1/2, with a relative error of 1e-7 (Taylor). */
ALWAYS_INLINE void phi(vf *y, const vf *x) {
    static const float taylor[] = {1.0f / 5040.0f, 1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f};
    for (int k = 0; k < GROUP; k++) y[k] = x[k] * (1.0f / 40320.0f) + taylor[0];
    for (int n = 1; n < 6; n++)
        for (int k = 0; k < GROUP; k++) y[k] = y[k] * x[k] + taylor[n];
    for (int k = 0; k < GROUP; k++) y[k] = y[k] * x[k] * x[k];
}

/* log (1 + x) for -0.4 < x < 0.65, with a relative error of 1e-7: the series of vf_log. */
static inline vf log_1_plus(vf x) {
    vf s = x * vf_reciprocal(2.0f + x), z = s * s;
    vf p = z * (2.0f / 9.0f) + (2.0f / 7.0f);
    p = p * z + 0.4f;
    p = p * z + (2.0f / 3.0f);
    return s * 2.0f + s * z * p;
}

/* Entries of the vocabulary: their share of D; `back` of kernels/mixture.h, which is log (q / p) for KL(q||p); and q - p. */
typedef struct {
    vf share[GROUP], back[GROUP], difference[GROUP];
} SoftTerms;

/* What the skew divergences have beside JSD: terms with p / m = e^-u, in x->back and, where they do not cancel, in the
 * share. */
ALWAYS_INLINE void skew_terms(SoftTerms *x, const Mixture *m, const vf *p, const vf *q, const vf *ratio, const vf *u) {
    vf e[GROUP], f[GROUP], minus[GROUP];
    for (int k = 0; k < GROUP; k++) e[k] = minus[k] = -u[k];
    vf_exp_each(e, GROUP);
    phi(f, minus);
    for (int k = 0; k < GROUP; k++) {
        vf growth = vf_select(is_near(ratio[k]), minus[k] + f[k], e[k] - 1.0f);
        x->share[k] += vf_select(is_near(ratio[k]), vf_set(0.0f), m->slope * (p[k] - q[k]));
        x->back[k] = m->log_weight * x->back[k] + m->slope * growth;
    }
}

ALWAYS_INLINE void mixture_terms(SoftTerms *x, const RowState *r, const vf *p, const vf *q, const vf *ratio) {
    const Mixture *m = &r->mix;
    vf high[GROUP], e[GROUP], far_u[GROUP];
    /* log (m / p) from the larger of both parts of m, so that neither overflows */
    for (int k = 0; k < GROUP; k++) {
        vf a = vf_set(m->log_beta), b = ratio[k] + m->log_rest;
        high[k] = vf_max(a, b), e[k] = vf_min(a, b) - high[k];
    }
    vf_exp_each(e, GROUP);
    for (int k = 0; k < GROUP; k++) {
        vf u = high[k] + vf_log(1.0f + e[k]), back = ratio[k] - u;
        x->share[k] = m->q_weight * q[k] * back - m->p_weight * p[k] * u, x->back[k] = back;
        far_u[k] = u;
    }
    vf growth[GROUP], u[GROUP], back[GROUP], phi_u[GROUP], phi_back[GROUP];
    phi(growth, ratio);
    for (int k = 0; k < GROUP; k++) {
        growth[k] += ratio[k];  // e^r - 1
        u[k] = log_1_plus(m->rest * growth[k]);
        back[k] = u[k] - ratio[k];
    }
    phi(phi_u, u);
    phi(phi_back, back);
    for (int k = 0; k < GROUP; k++) {
        vf near = p[k] * (m->p_weight * phi_u[k] + m->q_weight * (1.0f + growth[k]) * phi_back[k]);
        x->share[k] = vf_select(is_near(ratio[k]), near, x->share[k]);
        x->back[k] = vf_select(is_near(ratio[k]), -back[k], x->back[k]);
        u[k] = vf_select(is_near(ratio[k]), u[k], far_u[k]);
    }
    if (m->slope != 0.0f) skew_terms(x, m, p, q, ratio, u);
}

ALWAYS_INLINE void soft_terms(SoftTerms *x, const RowState *r, const vf *p, const vf *q, const vf *ratio,
                              const SoftLoss kind) {
    if (kind == SOFT_JSD) {
        mixture_terms(x, r, p, q, ratio);
    } else if (kind == SOFT_REVERSE_KL) {
        vf f[GROUP];
        for (int k = 0; k < GROUP; k++) x->back[k] = -ratio[k];
        phi(f, x->back);
        for (int k = 0; k < GROUP; k++) {
            x->share[k] = vf_select(is_near(ratio[k]), q[k] * f[k], p[k] - q[k] + q[k] * ratio[k]);
            x->back[k] = ratio[k];
        }
    } else {
        vf f[GROUP];
        phi(f, ratio);
        for (int k = 0; k < GROUP; k++) {
            x->share[k] = vf_select(is_near(ratio[k]), p[k] * f[k], q[k] - p[k] - p[k] * ratio[k]);
            x->difference[k] = vf_select(is_near(ratio[k]), p[k] * (ratio[k] + f[k]), q[k] - p[k]);
        }
    }
}

/* Returns D and replaces ep by what the gradient needs of an entry: q - p for KL(p||q); `back` for the others, whose gradient
 * also needs the mean of that under q. `kind` is SOFT_JSD for every mixture. */
ALWAYS_INLINE float row_divergence(RowState *r, const floatX *s, const floatX *t, size_t V, const SoftLoss kind) {
    vf sum[GROUP] = {{0}}, centre[GROUP] = {{0}}, to_q = vf_set(1.0f / r->zq), to_p = vf_set(1.0f / r->zp);
    FOR_GROUPS (i, m, 0, V) {
        vf p[GROUP], q[GROUP], ratio[GROUP], y[GROUP];
        vf_load_group(p, r->ep + i);
        vf_load_group(q, r->eq + i);
        vx_load_group(ratio, s + i, m, LOWEST);
        vx_load_group(y, t + i, m, LOWEST);
        for (int k = 0; k < GROUP; k++) {
            p[k] *= to_p, q[k] *= to_q;
            ratio[k] = ((ratio[k] - r->q_max) - (y[k] - r->t_max)) * r->inverse - r->log_z_ratio;
        }
        SoftTerms x;
        soft_terms(&x, r, p, q, ratio, kind);
        add_group(sum, x.share);
        vf_store_group(r->ep + i, kind == SOFT_KL ? x.difference : x.back);
        for (int k = 0; kind != SOFT_KL && k < GROUP; k++) centre[k] += q[k] * x.back[k];
    }
    r->centre = vf_sum_group(centre);
    return vf_sum_group(sum);
}

/* ---- the gradient ---- */

/* The weights of a row's gradient, with scale and gate, and the indices of its one-hot terms. */
typedef struct {
    float ce, hard, soft;
    int label, top;
} RowGradient;

/* Subtracts `value` from the element at `index` of a group. */
static void subtract_at(vf *x, size_t index, float value) {
    floatX one_hot[GROUP_SIZE] = {0};
    vf hot[GROUP];
    one_hot[index] = to_x(1.0f);
    vx_load_group(hot, one_hot, GROUP_SIZE, 0.0f);
    for (int k = 0; k < GROUP; k++) x[k] -= hot[k] * value;
}

/* s = (ce + hard) Q - ce [label] - hard [top] + soft * bracket, the bracket being the gradient in loss.cuh without its
 * constant factors tau and Mixture.factor, over the first V entries. */
ALWAYS_INLINE void row_gradient(const RowState *r, floatX *s, size_t Vs, size_t V, const RowGradient *w,
                                const SoftLoss kind, const bool soft) {
    vf to_Q = vf_set((w->ce + w->hard) / r->z), to_q = vf_set(w->soft / r->zq);
    FOR_GROUPS (i, m, 0, Vs) {
        vf g[GROUP], x[GROUP], q[GROUP];
        vf_load_group(g, r->e1 + i);
        for (int k = 0; k < GROUP; k++) g[k] *= to_Q;
        if (soft && i < V) {
            vf_load_group(x, r->ep + i);
            if (kind != SOFT_KL) vf_load_group(q, r->eq + i);
            for (int k = 0; k < GROUP; k++)
                g[k] += kind == SOFT_KL ? w->soft * x[k] : to_q * q[k] * (x[k] - r->centre);
        }
        if ((size_t)w->label - i < GROUP_SIZE) subtract_at(g, (size_t)w->label - i, w->ce);
        if ((size_t)w->top - i < GROUP_SIZE) subtract_at(g, (size_t)w->top - i, w->hard);  // top -1: never
        vx_store_group(s + i, g, m);
    }
}

/* Returns D and, if asked, replaces s by the gradient. */
ALWAYS_INLINE float row_finish(RowState *r, floatX *s, const floatX *t, size_t Vs, size_t V, const RowGradient *w,
                               bool gradient, const SoftLoss kind) {
    float divergence = t ? row_divergence(r, s, t, V, kind) : 0.0f;
    if (gradient && t && w->soft != 0.0f)
        row_gradient(r, s, Vs, V, w, kind, true);
    else if (gradient)
        row_gradient(r, s, Vs, V, w, kind, false);
    return divergence;
}

static void distill_row(floatX *s, const floatX *t, int label, float row_gate, float mix, const PolicyRow *row_policy,
                        RowStats *stats, const ObjectiveRow *o, size_t Vs, size_t V, bool gradient) {
    size_t all_groups = div_up(Vs, GROUP_SIZE) * GROUP_SIZE, groups = div_up(V, GROUP_SIZE) * GROUP_SIZE;
    RowState r = {.inverse = 1.0f / o->temperature,
                  .one = o->policy ? 1.0f / o->temperature : 1.0f,
                  .mix = mixture_of(o->soft, mix),
                  .e1 = scratch(SCRATCH_A, (all_groups + 2 * groups) * sizeof(float))};
    RowStats out = {.teacher_top = -1};
    r.eq = r.e1 + all_groups;
    r.ep = r.eq + groups;
    Peak all = row_peak(s, Vs);
    r.s_max = all.largest;
    out.student_top = all.top;
    r.z = row_exp(r.e1, s, Vs, r.s_max, r.one);
    const float log_z = logf(r.z);
    if (t) {
        Peak teacher = row_peak(t, V);
        r.q_max = V < Vs ? row_peak(s, V).largest : all.largest;
        r.t_max = teacher.largest;
        if (V == Vs && r.inverse == r.one)
            r.eq = r.e1, r.zq = r.z;
        else
            r.zq = row_exp(r.eq, s, V, r.q_max, r.inverse);
        row_teacher(&r, &out, t, V);
        r.log_z_ratio = logf(r.zq / r.zp);
        out.teacher_top = teacher.top;
        out.hard = log_z + (r.s_max - from_x(s[teacher.top])) * r.one;
        bool confident = teacher.top == label && out.confidence >= o->gate_confidence;
        out.gate = row_gate * (confident ? o->gate_factor : 1.0f);
    }
    out.ce = log_z + (r.s_max - from_x(s[label])) * r.one;
    const PolicyTerm policy = policy_term(row_policy, o->clip_ratio, out.ce);
    out.policy = policy.value, out.clipped = policy.clipped;
    float soft = o->scale * out.gate * o->w_soft * o->temperature * r.mix.factor;
    RowGradient w = {o->scale * o->w_ce * policy.slope * r.one, o->scale * out.gate * o->w_hard * r.one, soft, label,
                     out.teacher_top};
    if (o->soft == SOFT_KL)
        out.soft = row_finish(&r, s, t, Vs, V, &w, gradient, SOFT_KL);
    else if (o->soft == SOFT_REVERSE_KL)
        out.soft = row_finish(&r, s, t, Vs, V, &w, gradient, SOFT_REVERSE_KL);
    else
        out.soft = row_finish(&r, s, t, Vs, V, &w, gradient, SOFT_JSD);
    *stats = out;
}

static void cpu_distill_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                             RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient) {
    size_t V = Vs < Vt ? Vs : Vt;
#pragma omp parallel for schedule(static) if (rows * Vs > 4096)
    for (size_t i = 0; i < rows; i++)
        distill_row(student + i * Vs, teacher ? teacher + i * Vt : NULL, labels[i], row_gate ? row_gate[i] : 1.0f,
                    o.row_mix ? o.row_mix[i] : o.mix, o.policy ? o.policy + i : NULL, stats + i, &o, Vs, V, gradient);
}

#endif
