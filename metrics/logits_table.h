/* The metrics of the logits: their names here and in Image2TikZ, how each follows from the sums, and their JSON. */
#ifndef METRICS_LOGITS_TABLE_H
#define METRICS_LOGITS_TABLE_H

#include "../lib/json.h"
#include "logits.h"

typedef enum {
    LOGITS_MEAN,         // of a figure
    LOGITS_EXP_MEAN,     // exp of it
    LOGITS_RATIO,        // of the sums of two figures
    LOGITS_ECE,          // the student's
    LOGITS_TEACHER_ECE,  // the teacher's
    LOGITS_CORRELATION   // of both confidences
} LogitsFormula;

typedef struct {
    const char *key;         // in our JSON
    const char *image2tikz;  // in Image2TikZ's blocks of a student, or NULL
    LogitsFormula formula;
    int figure, divisor;
    bool teacher;  // only where there is a teacher
} LogitsMetric;

static const LogitsMetric logits_metrics[] = {
    {"ce", "CE", LOGITS_MEAN, SIDE_CE, 0, false},
    {"perplexity", "Perplexity", LOGITS_EXP_MEAN, SIDE_CE, 0, false},
    {"kl", "KL_to_teacher", LOGITS_MEAN, FIGURE_KL, 0, true},
    {"reverse_kl", NULL, LOGITS_MEAN, FIGURE_REVERSE_KL, 0, true},
    {"js", "JS_Divergence", LOGITS_MEAN, FIGURE_JS, 0, true},
    {"agreement", "ArgmaxAgreementWithTeacher", LOGITS_MEAN, FIGURE_AGREEMENT, 0, true},
    {"accuracy", "NextTokenAccuracy", LOGITS_MEAN, SIDE_CORRECT, 0, false},
    {"ece", "ECE", LOGITS_ECE, 0, 0, false},
    {"confidence", NULL, LOGITS_MEAN, SIDE_CONFIDENCE, 0, false},
    {"confidence_mse", "confidence_mse", LOGITS_MEAN, FIGURE_CONFIDENCE_MSE, 0, true},
    {"confidence_correlation", "confidence_correlation", LOGITS_CORRELATION, 0, 0, true},
    {"entropy", "MeanEntropy", LOGITS_MEAN, SIDE_ENTROPY, 0, false},
    {"soft_entropy", "student_entropy", LOGITS_MEAN, SIDE_SOFT_ENTROPY, 0, false},
    {"entropy_ratio", "entropy_ratio", LOGITS_RATIO, SIDE_SOFT_ENTROPY, FIGURE_TEACHER + SIDE_SOFT_ENTROPY, true},
    {"effective_vocabulary", "student_effective_vocab", LOGITS_MEAN, SIDE_EFFECTIVE, 0, false},
    {"gini", "student_gini", LOGITS_MEAN, SIDE_GINI, 0, false},
    {"rank_correlation", "RankCorrelation", LOGITS_RATIO, FIGURE_RANK, FIGURE_RANK_DEFINED, true},
    {"overlap_1", "topk_1_overlap_ratio", LOGITS_MEAN, FIGURE_OVERLAP, 0, true},
    {"overlap_3", "topk_3_overlap_ratio", LOGITS_MEAN, FIGURE_OVERLAP + 1, 0, true},
    {"overlap_5", "topk_5_overlap_ratio", LOGITS_MEAN, FIGURE_OVERLAP + 2, 0, true},
    {"overlap_10", "topk_10_overlap_ratio", LOGITS_MEAN, FIGURE_OVERLAP + 3, 0, true},
    {NULL, "Top5OverlapWithTeacher", LOGITS_MEAN, FIGURE_OVERLAP + 2, 0, true},
    {"first_in_1", "teacher_top1_in_student_top1", LOGITS_MEAN, FIGURE_FIRST, 0, true},
    {"first_in_3", "teacher_top1_in_student_top3", LOGITS_MEAN, FIGURE_FIRST + 1, 0, true},
    {"first_in_5", "teacher_top1_in_student_top5", LOGITS_MEAN, FIGURE_FIRST + 2, 0, true},
    {"first_in_10", "teacher_top1_in_student_top10", LOGITS_MEAN, FIGURE_FIRST + 3, 0, true},
    {"truth_in_1", "gt_in_student_top1", LOGITS_MEAN, FIGURE_TRUTH, 0, false},
    {"truth_in_3", "gt_in_student_top3", LOGITS_MEAN, FIGURE_TRUTH + 1, 0, false},
    {"truth_in_5", "gt_in_student_top5", LOGITS_MEAN, FIGURE_TRUTH + 2, 0, false},
    {"truth_in_10", "gt_in_student_top10", LOGITS_MEAN, FIGURE_TRUTH + 3, 0, false},
    {"teacher_confidence", NULL, LOGITS_MEAN, FIGURE_TEACHER + SIDE_CONFIDENCE, 0, true},
    {"teacher_entropy", NULL, LOGITS_MEAN, FIGURE_TEACHER + SIDE_ENTROPY, 0, true},
    {"teacher_soft_entropy", "teacher_entropy", LOGITS_MEAN, FIGURE_TEACHER + SIDE_SOFT_ENTROPY, 0, true},
    {"teacher_effective_vocabulary", "teacher_effective_vocab", LOGITS_MEAN, FIGURE_TEACHER + SIDE_EFFECTIVE, 0,
     true},
    {"teacher_gini", "teacher_gini", LOGITS_MEAN, FIGURE_TEACHER + SIDE_GINI, 0, true},
};
enum { LOGITS_METRICS = sizeof logits_metrics / sizeof logits_metrics[0] };

/* Of the teacher itself: the block teacher_self. */
static const LogitsMetric logits_self_metrics[] = {
    {"ce", "CE", LOGITS_MEAN, FIGURE_TEACHER + SIDE_CE, 0, true},
    {"perplexity", "Perplexity", LOGITS_EXP_MEAN, FIGURE_TEACHER + SIDE_CE, 0, true},
    {"accuracy", "NextTokenAccuracy", LOGITS_MEAN, FIGURE_TEACHER + SIDE_CORRECT, 0, true},
    {"ece", "ECE", LOGITS_TEACHER_ECE, 0, 0, true},
};
enum { LOGITS_SELF_METRICS = sizeof logits_self_metrics / sizeof logits_self_metrics[0] };

/* NaN where it is undefined: without positions, a ratio to 0, a correlation with what never changes. */
static inline double logits_value(const LogitsMetric *m, const LogitsSums *s) {
    const double sum = s->figure[m->figure];
    switch (m->formula) {
    case LOGITS_MEAN: return sum / s->positions;
    case LOGITS_EXP_MEAN: return exp(sum / s->positions);
    case LOGITS_RATIO: return s->figure[m->divisor] != 0 ? sum / s->figure[m->divisor] : NAN;
    case LOGITS_ECE: return reliability_error(&s->student);
    case LOGITS_TEACHER_ECE: return reliability_error(&s->teacher);
    case LOGITS_CORRELATION: return moments_correlation(&s->confidence);
    }
    return NAN;
}

/* The metric of this key, or NULL. */
static inline const LogitsMetric *logits_find(const LogitsMetric *list, int count, const char *key) {
    for (int i = 0; i < count; i++)
        if (list[i].key && !strcmp(list[i].key, key)) return &list[i];
    return NULL;
}

/* ---- a table ---- */

/* The titles, or with sums the values, of a line of the table; `self`: those of the teacher itself. */
static inline void logits_print_row(FILE *f, const LogitsSums *s, bool self) {
    static const char *const keys[] = {"ce",       "perplexity", "kl", "agreement",
                                       "accuracy", "ece",        "js", "rank_correlation"};
    static const char *const titles[] = {"CE", "perplexity", "KL", "agreement", "accuracy", "ECE", "JS", "ranks"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const LogitsMetric *m = self ? logits_find(logits_self_metrics, LOGITS_SELF_METRICS, keys[i])
                                     : logits_find(logits_metrics, LOGITS_METRICS, keys[i]);
        if (!s)
            fprintf(f, " %10s", titles[i]);
        else if (!m)
            fprintf(f, " %10s", "");
        else
            fprintf(f, " %10.4f", logits_value(m, s));
    }
    fprintf(f, "\n");
}

/* ---- JSON ---- what is undefined is null */

static inline void logits_json_pair(JsonWriter *w, const char *key, double x) {
    json_key(w, key);
    json_number(w, x);
}

/* The reliability curve: an object for each bin, with null where it is empty. */
static inline void reliability_json(JsonWriter *w, const char *key, const Reliability *r) {
    json_key(w, key);
    json_begin_array(w);
    for (int b = 0; b < RELIABILITY_BINS; b++) {
        json_begin_object(w);
        logits_json_pair(w, "count", r->count[b]);
        logits_json_pair(w, "confidence", r->confidence[b] / r->count[b]);
        logits_json_pair(w, "accuracy", r->correct[b] / r->count[b]);
        json_end_object(w);
    }
    json_end_array(w);
}

/* All metrics under our keys, as an object. */
static inline void logits_json(JsonWriter *w, const LogitsSums *s, bool teacher) {
    json_begin_object(w);
    for (int i = 0; i < LOGITS_METRICS; i++) {
        const LogitsMetric *m = &logits_metrics[i];
        if (m->key && (teacher || !m->teacher)) logits_json_pair(w, m->key, logits_value(m, s));
    }
    reliability_json(w, "reliability", &s->student);
    json_end_object(w);
}

/* The teacher's own, under our keys. */
static inline void logits_self_json(JsonWriter *w, const LogitsSums *s) {
    json_begin_object(w);
    for (int i = 0; i < LOGITS_SELF_METRICS; i++)
        logits_json_pair(w, logits_self_metrics[i].key, logits_value(&logits_self_metrics[i], s));
    reliability_json(w, "reliability", &s->teacher);
    json_end_object(w);
}

/* One of Image2TikZ's blocks; null without sums. */
static inline void logits_image2tikz_block(JsonWriter *w, const char *name, const LogitsMetric *list, int count,
                                           const LogitsSums *s) {
    json_key(w, name);
    if (!s) {
        json_null(w);
        return;
    }
    json_begin_object(w);
    for (int i = 0; i < count; i++)
        if (list[i].image2tikz) logits_json_pair(w, list[i].image2tikz, logits_value(&list[i], s));
    json_end_object(w);
}

#endif
