/* The figures of a report: every metric of logits, texts and drawings, with what it means. */
#ifndef METRICS_SUITE_FIGURES_H
#define METRICS_SUITE_FIGURES_H

#include "report_data.h"
#include "suite.h"

/* ---- logits ---- */

static const MetricText suite_logits_texts[] = {
    {"ce", "Cross entropy", "Mean of -log p(token) over the tokens of the reference programs, in nats.", -1, NULL},
    {"perplexity", "Perplexity", "exp of the cross entropy.", -1, NULL},
    {"accuracy", "Next-token accuracy",
     "Share of the tokens that the model ranks first, given the reference before them.", 1, "tokens"},
    {"kl", "KL to the teacher", "T squared times KL(teacher, model) at temperature T.", -1, NULL},
    {"reverse_kl", "Reverse KL", "T squared times KL(model, teacher) at temperature T.", -1, NULL},
    {"js", "Jensen-Shannon", "Divergence of both from their mean at temperature T; at most log 2.", -1, NULL},
    {"agreement", "Agreement", "Share of the tokens where model and teacher rank the same token first.", 1,
     "agreement"},
    {"rank_correlation", "Rank correlation", "Spearman's correlation of the logits of model and teacher.", 1, NULL},
    {"ece", "Calibration error", "ECE: mean distance of accuracy and confidence, in 10 bins.", -1, NULL},
    {"confidence", "Confidence", "Mean probability of the likeliest token.", 0, NULL},
    {"confidence_mse", "Confidence MSE", "Mean squared difference of the confidences of model and teacher.", -1,
     NULL},
    {"confidence_correlation", "Confidence correlation",
     "Pearson's correlation of the confidences of model and teacher.", 1, NULL},
    {"entropy", "Entropy", "Mean entropy of the next token, in nats.", 0, NULL},
    {"soft_entropy", "Entropy at T", "The same at temperature T.", 0, NULL},
    {"entropy_ratio", "Entropy ratio", "The model's entropy divided by the teacher's, both at temperature T.", 0,
     NULL},
    {"effective_vocabulary", "Effective vocabulary",
     "1 divided by the sum of squared probabilities, at temperature T.", 0, NULL},
    {"gini", "Gini", "How unequal the probabilities are, at temperature T: 0 for all alike.", 0, NULL},
    {"overlap_1", "Top 1 overlap", "Share of the teacher's likeliest token that is the model's.", 1, NULL},
    {"overlap_3", "Top 3 overlap", "Share of the teacher's 3 likeliest tokens that are among the model's.", 1, NULL},
    {"overlap_5", "Top 5 overlap", "The same for 5.", 1, "top 5"},
    {"overlap_10", "Top 10 overlap", "The same for 10.", 1, NULL},
    {"first_in_3", "Teacher's first in top 3",
     "How often the teacher's likeliest token is among the model's 3 likeliest.", 1, NULL},
    {"first_in_5", "Teacher's first in top 5", "The same for 5.", 1, NULL},
    {"first_in_10", "Teacher's first in top 10", "The same for 10.", 1, NULL},
    {"truth_in_3", "Truth in top 3", "How often the reference's token is among the model's 3 likeliest.", 1, NULL},
    {"truth_in_5", "Truth in top 5", "The same for 5.", 1, NULL},
    {"truth_in_10", "Truth in top 10", "The same for 10.", 1, NULL},
};

/* which: index in logits_metrics. Without a teacher its metrics are none. */
static inline double suite_logits(const void *sums, int which) {
    const LogitsSums *s = &((const SuiteSums *)sums)->logits;
    double of_teacher = 0;
    for (int b = 0; b < RELIABILITY_BINS; b++) of_teacher += s->teacher.count[b];
    if (s->positions == 0 || (logits_metrics[which].teacher && of_teacher == 0)) return NAN;
    return logits_value(&logits_metrics[which], s);
}

/* ---- texts ---- */

/* which: a TextMetric. */
static inline double suite_text_figure(const void *sums, int which) {
    return text_figure((TextMetric)which, &((const SuiteSums *)sums)->text);
}

/* ---- drawings ---- */

/* which: index in image_metrics. */
static inline double suite_image_figure(const void *sums, int which) {
    const ImageSums *s = &((const SuiteSums *)sums)->image;
    return s->count[which] > 0 ? s->sum[which] / s->count[which] : NAN;
}

enum { COMPILE_CLEAN, COMPILE_DRAWN };

static inline double suite_compile_figure(const void *sums, int which) {
    const ImageSums *s = &((const SuiteSums *)sums)->image;
    return s->programs > 0 ? (s->clean + (which == COMPILE_DRAWN ? s->errors : 0)) / s->programs : NAN;
}

/* ---- all ---- */

enum { SUITE_FIGURES = sizeof suite_logits_texts / sizeof suite_logits_texts[0] + TEXT_METRICS + IMAGE_METRICS + 3 };

static inline Figure suite_figure(const MetricText *t, const char *group, BootstrapFigure compute, int which) {
    return (Figure){*t, group, compute, which};
}

/* Fills out[SUITE_FIGURES] with the figures for texts of this kind; returns how many there are. */
static inline int suite_figures(Figure *out, TextKind kind) {
    static const MetricText clean = {"compile_clean", "Compiles without errors", "Share of the programs.", 1,
                                     "compiles"},
                            kid = {"kid", "KID x 1000",
                                   "Kernel inception distance of drawings and references, from a vision encoder; "
                                   "the interval is one standard deviation over its subsets to each side.",
                                   -1, NULL},
                            drawn = {"compile_drawn", "Can be drawn",
                                     "Share of the programs, those with errors included.", 1, NULL};
    int n = 0;
    for (size_t i = 0; i < sizeof suite_logits_texts / sizeof suite_logits_texts[0]; i++) {
        const LogitsMetric *m = logits_find(logits_metrics, LOGITS_METRICS, suite_logits_texts[i].key);
        if (!m) die("there is no metric of the logits called %s", suite_logits_texts[i].key);
        out[n++] = suite_figure(&suite_logits_texts[i], "Logits", suite_logits, (int)(m - logits_metrics));
    }
    for (int m = 0; m < TEXT_METRICS; m++)
        if (text_metric_applies((TextMetric)m, kind))
            out[n++] = suite_figure(&text_metrics[m].text, "Programs", suite_text_figure, m);
    out[n++] = suite_figure(&clean, "Drawings", suite_compile_figure, COMPILE_CLEAN);
    out[n++] = suite_figure(&drawn, "Drawings", suite_compile_figure, COMPILE_DRAWN);
    for (int m = 0; m < IMAGE_METRICS; m++)
        out[n++] = suite_figure(&image_metrics[m].text, "Drawings", suite_image_figure, m);
    out[n++] = suite_figure(&kid, "Drawings", NULL, 0);
    return n;
}

#endif
