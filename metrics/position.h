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

/* A thread's memory, for vocabularies of up to n ids. */
typedef struct {
    double *exp[2];  // exponentials at T: of s, of t
    int *rank[2];    // twice the ranks
    RankScratch sort;
} PositionScratch;

static inline void position_scratch_open(PositionScratch *p, int n) {
    for (int i = 0; i < 2; i++) {
        p->exp[i] = (double *)xmalloc(((size_t)n + SOFTMAX_LANES) * sizeof(double));
        p->rank[i] = (int *)xmalloc((size_t)n * sizeof(int));
    }
    rank_scratch_open(&p->sort, n);
}

static inline void position_scratch_close(PositionScratch *p) {
    for (int i = 0; i < 2; i++) {
        free(p->exp[i]);
        free(p->rank[i]);
    }
    rank_scratch_close(&p->sort);
}

/* The Gini coefficient sum of (2 i p_(i)) / n - (n + 1) / n, p sorted from the smallest; equal p may share their ranks. */
SOFTMAX_INLINE double position_gini(const double *e, double z, const int *twice, int n) {
    vd sum = {0};
    int i = 0;
    for (; i + SOFTMAX_LANES <= n; i += SOFTMAX_LANES) {
        vd_ints r;
        vd p;
        memcpy(&r, twice + i, sizeof r);
        memcpy(&p, e + i, sizeof p);
        sum += p * __builtin_convertvector(r, vd);
    }
    double all = vd_sum(&sum);
    for (; i < n; i++) all += e[i] * twice[i];
    return all / z / n - (double)(n + 1) / n;
}

/* The figures of one model from its logits x [own], V of which are compared at T. What the
 * comparison needs is left in *soft and in memory `i` of the scratch. */
SOFTMAX_INLINE void position_side(double *figure, SoftSoftmax *soft, PositionScratch *m, int i, const float *x,
                                  int own, int V, int label, double T) {
    Softmax s, rest;
    SoftSoftmax unused;
    softmax_row(&s, soft, m->exp[i], x, V, T);
    rank_all(m->rank[i], &m->sort, x, V);
    if (own > V) {
        softmax_row(&rest, &unused, NULL, x + V, own - V, T);
        softmax_join(&s, &rest);
    }
    const double log_z = log(s.z);
    figure[SIDE_CE] = log_z - ((double)x[label] - s.top);
    figure[SIDE_CONFIDENCE] = 1 / s.z;
    figure[SIDE_ENTROPY] = softmax_entropy(s.z, s.w);
    figure[SIDE_SOFT_ENTROPY] = softmax_entropy(soft->z, soft->w);
    figure[SIDE_EFFECTIVE] = soft->z * soft->z / soft->q;
    figure[SIDE_GINI] = position_gini(m->exp[i], soft->z, m->rank[i], V);
}

static inline bool position_among(const int *ids, int n, int id) {
    for (int i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

static inline int position_least(int a, int b) { return a < b ? a : b; }

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
}

/* The figures that compare both models. */
SOFTMAX_INLINE void position_compare(double *value, const PositionLogits *l, PositionScratch *m, int V,
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

SOFTMAX_INLINE void position_body(Position *out, const PositionLogits *l, PositionScratch *m) {
    const int V = l->t ? position_least(l->Vs, l->Vt) : l->Vs;
    int s_top[POSITION_TOP], t_top[POSITION_TOP], t_count = 0;
    SoftSoftmax student, teacher;
    memset(out, 0, sizeof *out);
    if (isnan(softmax_top(l->s, l->Vs))) out->state = POSITION_BAD_STUDENT;
    if (!out->state && l->t && isnan(softmax_top(l->t, l->Vt))) out->state = POSITION_BAD_TEACHER;
    if (out->state) return;
    double *value = out->value;
    position_side(value + FIGURE_STUDENT, &student, m, 0, l->s, l->Vs, V, l->label, l->temperature);
    if (l->t) {
        position_side(value + FIGURE_TEACHER, &teacher, m, 1, l->t, l->Vt, V, l->label, l->temperature);
        t_count = rank_top(t_top, POSITION_TOP, l->t, V);
        position_compare(value, l, m, V, &student, &teacher);
    }
    const int s_count = rank_top(s_top, POSITION_TOP, l->s, l->Vs);
    position_tops_meet(value, s_top, s_count, t_top, t_count, l->label);
    if (!l->t) return;
    int own = -1;
    rank_top(&own, 1, l->t, l->Vt);
    value[FIGURE_TEACHER + SIDE_CORRECT] = own == l->label;
    value[FIGURE_AGREEMENT] = s_top[0] == t_top[0];
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
