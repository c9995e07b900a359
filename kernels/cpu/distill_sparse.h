/* The row kernel of the distillation objective for a teacher of which few entries are known (kernels/sparse.h).
 *
 * The student's row is read as in distill.h. The listed entries and, as one more, all others together are gathered into
 * small arrays, on which the terms of D are computed as there. */
#ifndef KERNELS_CPU_DISTILL_SPARSE_H
#define KERNELS_CPU_DISTILL_SPARSE_H

#include "distill.h"

/* The events of a row in arrays of `n` elements, in whole groups: the listed entries, then all others together. */
typedef struct {
    size_t count, n;  // the last event is the others; those after it are empty: p = q = 0
    int *ids;
    size_t *places;        // of the entries in the arrays of exponentials (group_place)
    float *p, *q, *ratio;  // ratio: log (q / p)
    float *x;              // what the gradient needs of an event, as row_divergence leaves it
} Events;

/* log (q / p), where a probability that is 0 counts as the smallest normal number. */
static float events_ratio(float q, float p) { return logf(q > 1e-38f ? q : 1e-38f) - logf(p > 1e-38f ? p : 1e-38f); }

/* Sums e over the V entries that are not listed, exactly: by leaving the listed ones out, not by subtracting. */
static float events_rest(const Events *v, float *e, size_t V) {
    vf sum[GROUP] = {{0}};
    for (size_t k = 0; k + 1 < v->count; k++) v->x[k] = e[v->places[k]], e[v->places[k]] = 0.0f;
    for (size_t i = 0; i < V; i += GROUP_SIZE) {
        vf x[GROUP];
        vf_load_group(x, e + i);  // 0 beyond the row's end
        add_group(sum, x);
    }
    for (size_t k = 0; k + 1 < v->count; k++) e[v->places[k]] = v->x[k];
    return vf_sum_group(sum);
}

/* Gathers the events of a row from the exponentials at tau, and their sum, r->zq. */
static void events_gather(Events *v, RowState *r, const floatX *s, const int *ids, const float *p, int K, size_t V,
                          float rest) {
    v->count = 1;
    for (int k = 0; k < K; k++) {
        if (ids[k] < 0) continue;
        v->ids[v->count - 1] = ids[k];
        v->places[v->count - 1] = group_place((size_t)ids[k]);
        v->p[v->count++ - 1] = p[k];
    }
    const size_t last = v->count - 1;
    const float others = events_rest(v, r->eq, V);
    float sum = 0.0f;
    for (size_t k = 0; k < last; k++) sum += r->eq[v->places[k]];
    r->zq = others + sum;
    const float log_zq = logf(r->zq);
    for (size_t k = 0; k < last; k++) {
        v->q[k] = r->eq[v->places[k]] / r->zq;
        v->ratio[k] = (from_x(s[v->ids[k]]) - r->q_max) * r->inverse - log_zq - logf(v->p[k]);
    }
    v->p[last] = rest, v->q[last] = others / r->zq, v->ratio[last] = events_ratio(v->q[last], rest);
    for (size_t k = v->count; k < v->n; k++) v->p[k] = v->q[k] = v->ratio[k] = 0.0f;
}

/* Returns D, and fills v->x: q - p for KL(p||q), else SoftTerms.back less its mean under q. */
ALWAYS_INLINE float events_divergence(Events *v, const RowState *r, const SoftLoss kind) {
    vf sum[GROUP] = {{0}}, centre[GROUP] = {{0}};
    for (size_t i = 0; i < v->n; i += GROUP_SIZE) {
        vf p[GROUP], q[GROUP], ratio[GROUP];
        SoftTerms x;
        vf_load_group(p, v->p + i);
        vf_load_group(q, v->q + i);
        vf_load_group(ratio, v->ratio + i);
        soft_terms(&x, r, p, q, ratio, kind);
        add_group(sum, x.share);
        vf_store_group(v->x + i, kind == SOFT_KL ? x.difference : x.back);
        for (int k = 0; kind != SOFT_KL && k < GROUP; k++) centre[k] += q[k] * x.back[k];
    }
    const float mean = vf_sum_group(centre);
    for (size_t k = 0; kind != SOFT_KL && k < v->count; k++) v->x[k] -= mean;
    return vf_sum_group(sum);
}

/* Writes the gradient: first everything as if nothing were listed, then the listed entries. */
static void events_gradient(const Events *v, const RowState *r, floatX *s, size_t Vs, size_t V, const RowGradient *w,
                            SoftLoss kind) {
    const size_t last = v->count - 1;
    float others = v->x[last];
    if (kind == SOFT_KL) others = v->q[last] > 1e-38f ? v->x[last] / v->q[last] : 0.0f;
    const float to_Q = (w->ce + w->hard) / r->z;
    const vf to_Qs = vf_set(to_Q), to_q = vf_set(w->soft * others / r->zq);
    FOR_GROUPS (i, m, 0, Vs) {
        vf g[GROUP], q[GROUP];
        vf_load_group(g, r->e1 + i);
        for (int k = 0; k < GROUP; k++) g[k] *= to_Qs;
        if (i < V) {
            vf_load_group(q, r->eq + i);
            for (int k = 0; k < GROUP; k++) g[k] += to_q * q[k];
        }
        if ((size_t)w->label - i < GROUP_SIZE) subtract_at(g, (size_t)w->label - i, w->ce);
        if ((size_t)w->top - i < GROUP_SIZE) subtract_at(g, (size_t)w->top - i, w->hard);
        vx_store_group(s + i, g, m);
    }
    for (size_t k = 0; k < last; k++) {
        const int id = v->ids[k];
        float g = r->e1[v->places[k]] * to_Q + w->soft * (kind == SOFT_KL ? v->x[k] : v->q[k] * v->x[k]);
        if (id == w->label) g -= w->ce;
        if (id == w->top) g -= w->hard;
        s[id] = to_x(g);
    }
}

/* Memory for the exponentials of a row and its events. */
static void sparse_row_memory(RowState *r, Events *v, size_t Vs, size_t V, int K) {
    size_t all = div_up(Vs, GROUP_SIZE) * GROUP_SIZE, groups = div_up(V, GROUP_SIZE) * GROUP_SIZE;
    v->n = div_up((size_t)K + 1, GROUP_SIZE) * GROUP_SIZE;
    r->e1 = scratch(SCRATCH_A, (all + groups + 5 * v->n) * sizeof(float) + v->n * sizeof(size_t));
    r->eq = r->e1 + all;
    v->places = (size_t *)(void *)(r->eq + groups);
    v->p = (float *)(void *)(v->places + v->n);
    v->q = v->p + v->n;
    v->ratio = v->q + v->n;
    v->x = v->ratio + v->n;
    v->ids = (int *)(void *)(v->x + v->n);
}

static void distill_row_sparse(floatX *s, const int *ids, const float *p, const SparseRow *t, int K, int label,
                               float row_gate, RowStats *stats, const ObjectiveRow *o, size_t Vs, size_t V,
                               bool gradient) {
    RowState r = {.inverse = 1.0f / o->temperature,
                  .mix = mixture_of(o->soft, o->mix)};
    RowStats out = {.teacher_top = t->top, .entropy = t->entropy, .confidence = t->confidence};
    Events v;
    sparse_row_memory(&r, &v, Vs, V, K);
    Peak all = row_peak(s, Vs);
    r.s_max = all.largest;
    r.q_max = V < Vs ? row_peak(s, V).largest : all.largest;
    out.student_top = all.top;
    r.z = row_exp(r.e1, s, Vs, r.s_max, 1.0f);
    row_exp(r.eq, s, V, r.q_max, r.inverse);
    events_gather(&v, &r, s, ids, p, K, V, t->rest);
    const float log_z = logf(r.z);
    out.ce = out.policy = log_z + (r.s_max - from_x(s[label]));
    out.hard = log_z + (r.s_max - from_x(s[t->top]));
    bool confident = t->top == label && t->confidence >= o->gate_confidence;
    out.gate = row_gate * (confident ? o->gate_factor : 1.0f);
    if (o->soft == SOFT_KL)
        out.soft = events_divergence(&v, &r, SOFT_KL);
    else if (o->soft == SOFT_REVERSE_KL)
        out.soft = events_divergence(&v, &r, SOFT_REVERSE_KL);
    else
        out.soft = events_divergence(&v, &r, SOFT_JSD);
    float soft = o->scale * out.gate * o->w_soft * o->temperature * r.mix.factor;
    RowGradient w = {o->scale * o->w_ce, o->scale * out.gate * o->w_hard, soft, label, t->top};
    if (gradient) events_gradient(&v, &r, s, Vs, V, &w, o->soft);
    *stats = out;
}

static void cpu_distill_rows_sparse(floatX *student, SparseTeacher t, const int *labels, const float *row_gate,
                                    RowStats *stats, ObjectiveRow o, size_t rows, int Vs, bool gradient) {
#pragma omp parallel for schedule(static) if (rows * Vs > 4096)
    for (size_t i = 0; i < rows; i++)
        distill_row_sparse(student + i * Vs, t.ids + i * t.K, t.p + i * t.K, &t.rows[i], t.K, labels[i],
                           row_gate ? row_gate[i] : 1.0f, stats + i, &o, Vs, t.V, gradient);
}

#endif
