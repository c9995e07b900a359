/* What the logits of a student, and of a teacher, say about one position of a text: its figures.
 *
 * For the label y, student logits s (V_s values), teacher logits t (V_t), V = min(V_s, V_t), a temperature T,
 * p = softmax(t[:V]/T), q = softmax(s[:V]/T):
 *
 *   at temperature 1, over the model's own vocabulary, as it would generate
 *     ce -log softmax(s)[y];  correct argmax s = y;  confidence max softmax(s);  entropy of softmax(s);
 *     truth_k: y is among the k largest of s.                              The teacher's likewise, but for truth_k.
 *   at temperature T, over the first V ids
 *     soft_entropy of q;  effective vocabulary 1 / sum q_i^2;  Gini coefficient of q;  the same of p
 *     kl T^2 KL(p||q);  reverse_kl T^2 KL(q||p);  js (KL(p||m) + KL(q||m)) / 2, m = (p + q) / 2, which is at most log 2
 *   of the order of the logits; the k largest, of equal ones those with smaller ids; t's over the first V ids
 *     agreement argmax s = argmax t;  overlap_k: the share of t's k largest (all, where V < k) that are among s's;
 *     first_k: argmax t is among s's k largest;  rank: Spearman's correlation of s[:V] and t[:V], ties averaged, undefined
 *     where all logits of a row are equal
 *
 * Ids that no token has (a head is often padded) count as any other, as in the loss (loss.cuh), whose ce, accuracy and
 * agreement these are. */
#ifndef METRICS_POSITION_H
#define METRICS_POSITION_H

#include "rank.h"
#include "softmax.h"

enum { POSITION_TOPS = 4, POSITION_TOP = 10 };
static const int position_tops[POSITION_TOPS] = {1, 3, 5, 10};  // k

/* The figures of one model. */
enum {
    SIDE_CE,
    SIDE_CORRECT,
    SIDE_CONFIDENCE,
    SIDE_ENTROPY,
    SIDE_SOFT_ENTROPY,
    SIDE_EFFECTIVE,
    SIDE_GINI,
    SIDE_FIGURES
};

/* All figures of a position: the student's, then those that need a teacher. */
enum {
    FIGURE_STUDENT = 0,
    FIGURE_TRUTH = FIGURE_STUDENT + SIDE_FIGURES,  // [POSITION_TOPS]
    FIGURE_TEACHER = FIGURE_TRUTH + POSITION_TOPS,
    FIGURE_KL = FIGURE_TEACHER + SIDE_FIGURES,
    FIGURE_REVERSE_KL,
    FIGURE_JS,
    FIGURE_AGREEMENT,
    FIGURE_CONFIDENCE_MSE,
    FIGURE_OVERLAP,                                 // [POSITION_TOPS]
    FIGURE_FIRST = FIGURE_OVERLAP + POSITION_TOPS,  // [POSITION_TOPS]
    FIGURE_RANK = FIGURE_FIRST + POSITION_TOPS,     // 0 where it is undefined
    FIGURE_RANK_DEFINED,                            // 1 where it is not
    FIGURES
};

typedef enum { POSITION_GOOD, POSITION_BAD_STUDENT, POSITION_BAD_TEACHER } PositionState;

typedef struct {
    double value[FIGURES];
    PositionState state;  // which model's logits are not all finite, if one's are not; then there are no figures
} Position;

/* Logits of a position: fp32 rows; t NULL without a teacher. label is in [0, min(Vs, Vt)). */
typedef struct {
    const float *s, *t;
    int Vs, Vt, label;
    double temperature;
} PositionLogits;

/* A thread's memory. */
typedef struct {
    double *exp[2];  // exponentials at T: of s, of t
    int *rank[2];    // twice the ranks
    RankScratch sort;
} PositionScratch;

static inline int position_least(int a, int b) { return a < b ? a : b; }

static inline void position_scratch_open(PositionScratch *p, int Vs, int Vt) {
    const int most = Vs > Vt ? Vs : Vt;
    for (int i = 0; i < 2; i++) {
        p->exp[i] = (double *)xmalloc(((size_t)most + VD_LANES) * sizeof(double));
        p->rank[i] = (int *)xmalloc((size_t)most * sizeof(int));
    }
    rank_scratch_open(&p->sort, most);
}

static inline void position_scratch_close(PositionScratch *p) {
    for (int i = 0; i < 2; i++) {
        free(p->exp[i]);
        free(p->rank[i]);
    }
    rank_scratch_close(&p->sort);
}

/* The Gini coefficient sum of (2 i p_(i)) / n - (n + 1) / n, p sorted from the smallest; equal p may share their ranks. */
LANES_INLINE double position_gini(const double *e, double z, const int *twice, int n) {
    vd sum = {0};
    int i = 0;
    for (; i + VD_LANES <= n; i += VD_LANES) {
        vd r, p;
        vd_load_ints(&r, twice + i);
        memcpy(&p, e + i, sizeof p);
        sum += p * r;
    }
    double all = vd_sum(&sum);
    for (; i < n; i++) all += e[i] * twice[i];
    return all / z / n - (double)(n + 1) / n;
}

/* The logits of one model: all its ids' or, of these, the first V, which are compared; with their ranges. */
typedef struct {
    const float *x;
    int own, V;
    RowRange shared, rest;  // of x[:V] and x[V:]
} PositionSide;

LANES_INLINE PositionSide position_side(const float *x, int own, int V) {
    return (PositionSide){x, own, V, row_range(x, V), row_range(x + V, own - V)};
}

static inline bool position_finite(const PositionSide *s) { return s->shared.finite && s->rest.finite; }

/* The figures of one model. What the comparison needs is left in *soft and in memory `i` of the scratch, the sorted row in
 * its last. */
LANES_INLINE void position_model(double *figure, SoftSoftmax *soft, PositionScratch *m, int i,
                                 const PositionSide *side, int label, double T) {
    const int V = side->V;
    Softmax s;
    softmax_row(&s, soft, m->exp[i], side->x, V, (double)side->shared.high, T);
    rank_sort(&m->sort, side->x, V, side->shared);
    rank_averages(m->rank[i], &m->sort, V);
    figure[SIDE_SOFT_ENTROPY] = softmax_entropy(soft->z, soft->w);
    figure[SIDE_EFFECTIVE] = soft->z * soft->z / soft->q;
    figure[SIDE_GINI] = position_gini(m->exp[i], soft->z, m->rank[i], V);
    if (side->own > V) {
        Softmax rest;
        SoftSoftmax unused;
        softmax_row(&rest, &unused, NULL, side->x + V, side->own - V, (double)side->rest.high, T);
        softmax_join(&s, &rest);
    }
    const double log_z = log(s.z);
    figure[SIDE_CE] = log_z - ((double)side->x[label] - s.top);
    figure[SIDE_CONFIDENCE] = 1 / s.z;
    figure[SIDE_ENTROPY] = softmax_entropy(s.z, s.w);
}

static inline bool position_among(const int *ids, int n, int id) {
    for (int i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

/* How the k largest of both rows, and the label, meet. */
static inline void position_tops_meet(double *value, const int *s, int s_count, const int *t, int t_count,
                                      int label) {
    for (int j = 0; j < POSITION_TOPS; j++) {
        const int k = position_tops[j], among_s = position_least(k, s_count), among_t = position_least(k, t_count);
        int both = 0;
        value[FIGURE_TRUTH + j] = position_among(s, among_s, label);
        if (!t_count) continue;
        for (int i = 0; i < among_t; i++) both += position_among(s, among_s, t[i]);
        value[FIGURE_OVERLAP + j] = (double)both / among_t;
        value[FIGURE_FIRST + j] = position_among(s, among_s, t[0]);
    }
    value[FIGURE_STUDENT + SIDE_CORRECT] = s[0] == label;
    value[FIGURE_AGREEMENT] = t_count && s[0] == t[0];
}

/* The figures that compare both models. */
LANES_INLINE void position_compare(double *value, const PositionLogits *l, PositionScratch *m, int V,
                                   const SoftSoftmax *student, const SoftSoftmax *teacher) {
    const double T = l->temperature;
    Divergences d;
    softmax_divergences(&d, l->t, teacher, m->exp[1], l->s, student, m->exp[0], V, T);
    value[FIGURE_KL] = T * T * d.kl;
    value[FIGURE_REVERSE_KL] = T * T * d.reverse_kl;
    value[FIGURE_JS] = d.js;
    const double apart = value[FIGURE_STUDENT + SIDE_CONFIDENCE] - value[FIGURE_TEACHER + SIDE_CONFIDENCE];
    value[FIGURE_CONFIDENCE_MSE] = apart * apart;
    const double rank = rank_correlation(m->rank[0], m->rank[1], V);
    value[FIGURE_RANK_DEFINED] = !isnan(rank);
    value[FIGURE_RANK] = isnan(rank) ? 0 : rank;
}

LANES_INLINE void position_body(Position *out, const PositionLogits *l, PositionScratch *m) {
    const int V = l->t ? position_least(l->Vs, l->Vt) : l->Vs, label = l->label;
    const PositionSide s = position_side(l->s, l->Vs, V);
    double *value = out->value;
    int s_top[POSITION_TOP] = {0}, t_top[POSITION_TOP] = {0}, s_count, t_count = 0;
    SoftSoftmax student, teacher = {0};
    memset(out, 0, sizeof *out);
    if (!position_finite(&s)) {
        out->state = POSITION_BAD_STUDENT;
        return;
    }
    if (l->t) {
        const PositionSide t = position_side(l->t, l->Vt, V);
        if (!position_finite(&t)) {
            out->state = POSITION_BAD_TEACHER;
            return;
        }
        position_model(value + FIGURE_TEACHER, &teacher, m, 1, &t, label, l->temperature);
        t_count = rank_sorted_top(t_top, POSITION_TOP, &m->sort, V);
        value[FIGURE_TEACHER + SIDE_CORRECT] = t_top[0] == label && !(t.rest.high > t.shared.high);
    }
    position_model(value + FIGURE_STUDENT, &student, m, 0, &s, label, l->temperature);
    if (l->Vs > V)
        s_count = rank_top(s_top, POSITION_TOP, l->s, l->Vs);
    else
        s_count = rank_sorted_top(s_top, POSITION_TOP, &m->sort, V);
    position_tops_meet(value, s_top, s_count, t_top, t_count, label);
    if (l->t) position_compare(value, l, m, V, &student, &teacher);
}

/* ---- compiled for the processor ---- */

static void position_any(Position *out, const PositionLogits *l, PositionScratch *m) { position_body(out, l, m); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void position_avx2(Position *out, const PositionLogits *l,
                                                              PositionScratch *m) {
    position_body(out, l, m);
}
#endif

/* The figures of one position. The same bits whatever other positions are computed, and on which thread. */
static inline void position_figures(Position *out, const PositionLogits *l, PositionScratch *m) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        position_avx2(out, l, m);
        return;
    }
#endif
    position_any(out, l, m);
}

#endif
