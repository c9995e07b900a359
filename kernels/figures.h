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
 *     where all logits of a row are equal (Spearman 1904: Pearson's correlation of the ranks)
 *
 * Ids that no token has (a head is often padded) count as any other, as in the loss (loss.cuh), whose ce, accuracy and
 * agreement these are.
 *
 * A device sums over the rows (logits_figures in ops.h: kernels/cpu/figures.h, kernels/cuda/figures.cuh); how the figures
 * follow from the sums is here, once for all devices. All sums are in double. */
#ifndef KERNELS_FIGURES_H
#define KERNELS_FIGURES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define FIGURES_INLINE static __device__ __forceinline__
#else
#define FIGURES_INLINE static inline
#endif

enum { FIGURES_TOPS = 4, FIGURES_TOP = 10 };  // k is 1, 3, 5 and 10

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
    FIGURE_TRUTH = FIGURE_STUDENT + SIDE_FIGURES,  // [FIGURES_TOPS]
    FIGURE_TEACHER = FIGURE_TRUTH + FIGURES_TOPS,
    FIGURE_KL = FIGURE_TEACHER + SIDE_FIGURES,
    FIGURE_REVERSE_KL,
    FIGURE_JS,
    FIGURE_AGREEMENT,
    FIGURE_CONFIDENCE_MSE,
    FIGURE_OVERLAP,                                // [FIGURES_TOPS]
    FIGURE_FIRST = FIGURE_OVERLAP + FIGURES_TOPS,  // [FIGURES_TOPS]
    FIGURE_RANK = FIGURE_FIRST + FIGURES_TOPS,     // 0 where it is undefined
    FIGURE_RANK_DEFINED,                           // 1 where it is not
    FIGURES
};

enum { FIGURES_GOOD, FIGURES_BAD_STUDENT, FIGURES_BAD_TEACHER };

typedef struct {
    double value[FIGURES];
    int state;  // which model's logits are not all finite, if one's are not; then all figures are 0
} LogitsFigures;

/* What a device sums over a row x of one model. */
typedef struct {
    double top, z, w;  // all its entries: the largest; with e = exp(x - top), the sums of e and of e (x - top)
    /* the first V: the largest; with y = (x - soft_top) / T, e = exp(y), the sums of e, e y and e^2, ... */
    double soft_top, zT, wT, qT;
    double weighted;  // ... and of e r, where r is twice the rank of the entry, from 1 for the smallest
} FigureSums;

/* What it sums over two rows, with r_i = y_i of the teacher minus that of the student. */
typedef struct {
    double p, q, m;  // e_t r, e_s r, and m log m with m = (e_t / zT_t + e_s / zT_s) / 2
} DivergenceSums;

/* The k largest entries of a row, largest first, the smaller id first where equal. */
typedef struct {
    int ids[FIGURES_TOP], count;
} FigureTops;

/* -sum of p log p, in nats, which may be rounded below 0. */
FIGURES_INLINE double figures_entropy(double z, double w) {
    const double h = log(z) - w / z;
    return h > 0 ? h : 0;
}

/* The figures of one model. Gini: sum of (2 i p_(i)) / V - (V + 1) / V, p sorted from the smallest. */
FIGURES_INLINE void figures_of_model(double *figure, const FigureSums *s, double logit_of_label, int V) {
    figure[SIDE_CE] = log(s->z) - (logit_of_label - s->top);
    figure[SIDE_CONFIDENCE] = 1 / s->z;
    figure[SIDE_ENTROPY] = figures_entropy(s->z, s->w);
    figure[SIDE_SOFT_ENTROPY] = figures_entropy(s->zT, s->wT);
    figure[SIDE_EFFECTIVE] = s->zT * s->zT / s->qT;
    figure[SIDE_GINI] = s->weighted / s->zT / V - (double)(V + 1) / V;
}

FIGURES_INLINE double figures_positive(double x) { return x > 0 ? x : 0; }

/* KL(p||q) = sum of p (log p - log q), in which the difference of logarithms is taken from the logits;
 * JS = H(m) - (H(p) + H(q)) / 2. All are 0 or more, and may be rounded below. */
FIGURES_INLINE void figures_of_both(double *value, const DivergenceSums *d, const FigureSums *t, const FigureSums *s,
                                    double T) {
    const double log_z = log(t->zT) - log(s->zT);
    const double entropies = figures_entropy(t->zT, t->wT) + figures_entropy(s->zT, s->wT);
    value[FIGURE_KL] = T * T * figures_positive(d->p / t->zT - log_z);
    value[FIGURE_REVERSE_KL] = T * T * figures_positive(log_z - d->q / s->zT);
    value[FIGURE_JS] = figures_positive(-d->m - entropies / 2);
    const double apart = value[FIGURE_STUDENT + SIDE_CONFIDENCE] - value[FIGURE_TEACHER + SIDE_CONFIDENCE];
    value[FIGURE_CONFIDENCE_MSE] = apart * apart;
}

/* From the sums of a a, b b and a b, where a and b are twice the ranks of an entry in both rows, less their mean. They are
 * whole numbers; in double they are exact up to V = 2^18. */
FIGURES_INLINE void figures_of_ranks(double *value, double aa, double bb, double ab) {
    const bool defined = aa > 0 && bb > 0;
    value[FIGURE_RANK_DEFINED] = defined;
    value[FIGURE_RANK] = !defined                              ? 0
                         : aa == bb && (ab == aa || ab == -aa) ? (ab > 0 ? 1 : -1)
                                                               : ab / (sqrt(aa) * sqrt(bb));
}

FIGURES_INLINE bool figures_among(const FigureTops *tops, int k, int id) {
    for (int i = 0; i < k && i < tops->count; i++)
        if (tops->ids[i] == id) return true;
    return false;
}

/* How the k largest of both rows, and the label, meet. t: of count 0 without a teacher. */
FIGURES_INLINE void figures_of_tops(double *value, const FigureTops *s, const FigureTops *t, int label) {
    for (int j = 0; j < FIGURES_TOPS; j++) {
        const int k = j == 0 ? 1 : j == 1 ? 3 : j == 2 ? 5 : 10, among = k < t->count ? k : t->count;
        int both = 0;
        value[FIGURE_TRUTH + j] = figures_among(s, k, label);
        if (!among) continue;
        for (int i = 0; i < among; i++) both += figures_among(s, k, t->ids[i]);
        value[FIGURE_OVERLAP + j] = (double)both / among;
        value[FIGURE_FIRST + j] = figures_among(s, k, t->ids[0]);
    }
    value[FIGURE_STUDENT + SIDE_CORRECT] = s->ids[0] == label;
    value[FIGURE_AGREEMENT] = t->count && s->ids[0] == t->ids[0];
}

#endif
