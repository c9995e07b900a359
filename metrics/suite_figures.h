/* The figures of a report: every metric of logits, texts and drawings, with what it means. */
#ifndef METRICS_SUITE_FIGURES_H
#define METRICS_SUITE_FIGURES_H

#include "report_data.h"
#include "suite.h"

typedef struct {
    const char *key, *title, *meaning;
    int better;
    const char *axis;  // of the radar chart; NULL: none
} FigureText;

/* ---- logits ---- */

static const FigureText suite_logits_texts[] = {
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

static const FigureText suite_text_texts[TEXT_METRICS] = {
    [TEXT_EXACT] = {"exact_match", "Exact match, %", "Programs that equal their references, byte for byte.", 1, NULL},
    [TEXT_BLEU] = {"bleu", "BLEU-4", "Of the corpus, over the tokens of TeX, without smoothing.", 1, NULL},
    [TEXT_EDIT_SCORE] = {"edit_score", "Edit score, %",
                         "1 - edits / longer length, in tokens, of all programs together.", 1, NULL},
    [TEXT_CER] = {"cer", "Character error rate",
                  "Edits divided by the longer length, in characters, mean of the programs.", -1, NULL},
    [TEXT_CRYSTAL_BLEU] = {"crystal_bleu", "CrystalBLEU",
                           "BLEU-4 without the 500 most frequent n-grams of the training texts.", 1, NULL},
    [TEXT_TEX_EDIT_DISTANCE] = {"tex_edit_distance", "TexEditDistance",
                                "Extended edit distance of the normalised characters.", -1, NULL},
    [TEXT_SAME_FORMULA] = {"exact_match_normalised", "Same formula, %", "Formulas with the same normal form.", 1,
                           NULL},
    [TEXT_NORMAL_BLEU] = {"bleu_normalised", "BLEU-4, normalised", "BLEU-4 of the normal forms.", 1, NULL},
    [TEXT_NORMAL_EDIT_SCORE] = {"edit_score_normalised", "Edit score, normalised, %",
                                "Edit score of the normal forms.", 1, NULL},
    [TEXT_LENGTH_RATIO] = {"length_ratio", "Length ratio",
                           "Tokens of the programs divided by tokens of the references.", 0, NULL},
    [TEXT_REPETITION] = {"repetition_rate", "Repetition rate", "Share of a program's 4-grams that it had before.", -1,
                         NULL},
};

/* which: a TextMetric. */
static inline double suite_text_figure(const void *sums, int which) {
    return text_figure((TextMetric)which, &((const SuiteSums *)sums)->text);
}

/* ---- drawings ---- */

static const FigureText suite_image_texts[IMAGE_METRICS] = {
    // in the order of image_metrics
    {"exact_pixels", "Exact pixels", "Share of the programs that draw every pixel of the reference's drawing.", 1,
     "exact"},
    {"mse", "MSE", "Mean squared difference of the colours (0 to 255), in a common frame.", -1, NULL},
    {"psnr", "PSNR", "Peak signal-to-noise ratio in dB; at most 100, which equal drawings have.", 1, NULL},
    {"ssim", "SSIM", "Structural similarity (11 x 11 Gaussian).", 1, "SSIM"},
    {"histogram_similarity", "Histogram", "Bhattacharyya coefficient of the colours' histograms.", 1, NULL},
    {"perceptual_hash", "Perceptual hash", "Share of equal bits of 64, from a cosine transform.", 1, "hash"},
    {"sharpness_ratio", "Sharpness ratio", "Variances of the Laplacian, the smaller divided by the larger.", 1, NULL},
    {"colour_similarity", "Colour", "Similarity of the moments of the colours in Lab.", 1, "colour"},
    {"ink_similarity", "Ink", "Cosine of the ink at several resolutions, which search and candidates go by.", 1,
     "ink"},
    {"selfsim_mean", "Self-similarity, mean", "Cosine of the mean features of a vision encoder.", 1, NULL},
    {"selfsim_emd", "Self-similarity, EMD", "Earth mover's distance of the features, as a similarity.", 1, NULL},
    {"cdm_f1", "CDM F1", "Character detection matching: symbols of the formula that are drawn at the right place.", 1,
     "CDM"},
    {"cdm_perfect", "CDM perfect", "Share of the formulas whose symbols all match.", 1, NULL},
};

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

static inline Figure suite_figure(const FigureText *t, const char *group, BootstrapFigure compute, int which) {
    return (Figure){t->key, t->title, group, t->meaning, t->better, compute, which, t->axis};
}

/* Fills out[SUITE_FIGURES] with the figures for texts of this kind; returns how many there are. */
static inline int suite_figures(Figure *out, TextKind kind) {
    static const FigureText clean = {"compile_clean", "Compiles without errors", "Share of the programs.", 1,
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
        if (m) out[n++] = suite_figure(&suite_logits_texts[i], "Logits", suite_logits, (int)(m - logits_metrics));
    }
    for (int m = 0; m < TEXT_METRICS; m++)
        if (text_metric_applies((TextMetric)m, kind))
            out[n++] = suite_figure(&suite_text_texts[m], "Programs", suite_text_figure, m);
    out[n++] = suite_figure(&clean, "Drawings", suite_compile_figure, COMPILE_CLEAN);
    out[n++] = suite_figure(&drawn, "Drawings", suite_compile_figure, COMPILE_DRAWN);
    for (int m = 0; m < IMAGE_METRICS; m++)
        out[n++] = suite_figure(&suite_image_texts[m], "Drawings", suite_image_figure, m);
    out[n++] = suite_figure(&kid, "Drawings", NULL, 0);
    return n;
}

#endif
