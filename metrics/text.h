/* How near generated programs, or formulas, are to their references, as texts.
 *
 *   TextSuite suite;
 *   text_suite_begin(&suite, TEXT_PROGRAM, 500);
 *   for each text of the training data: text_suite_train(&suite, text, bytes);       // for CrystalBLEU
 *   text_suite_measure(&suite, pairs, n, samples);                                   // fills samples[n]
 *   for each metric m that text_metric_applies: text_metric(m, samples, NULL, n)
 *   text_suite_end(&suite);
 *
 * A sample holds what the figure of any set of samples is made of, so that a bootstrap only adds up again. */
#ifndef METRICS_TEXT_H
#define METRICS_TEXT_H

#include "bleu.h"
#include "edit_distance.h"
#include "formula_normalise.h"
#include "metric_text.h"
#include "tex_tokens.h"

/* What the tokens of BLEU, edit score, length ratio and repetition rate are: of a program those of tex_tokens; of a formula
 * what stands between white space, as in im2latex-100k's files. */
typedef enum { TEXT_PROGRAM, TEXT_FORMULA } TextKind;

typedef struct {
    const char *reference, *hypothesis;
    size_t reference_bytes, hypothesis_bytes;
} TextPair;

typedef struct {
    size_t distance, longest;  // Levenshtein's, and the longer of the two lengths
} EditCounts;

typedef struct {
    bool exact, same_formula;          // equal bytes; equal normal forms
    BleuCounts bleu, crystal, normal;  // of tokens; of a program without trivial n-grams; of a formula's normal form
    EditCounts tokens, normal_tokens, characters;
    double extended;    // TexEditDistance, of a program
    double repetition;  // of the hypothesis
} TextSample;

typedef struct {
    TextKind kind;
    SymbolTable symbols;
    NgramTable trivial;  // while training: all
    size_t trivial_count;
    bool trained;
} TextSuite;

/* trivial: how many of the most frequent n-grams of the training texts CrystalBLEU leaves out. */
static inline void text_suite_begin(TextSuite *t, TextKind kind, size_t trivial) {
    memset(t, 0, sizeof *t);
    t->kind = kind;
    t->trivial_count = trivial;
}

static inline void text_suite_end(TextSuite *t) {
    symbol_table_free(&t->symbols);
    ngrams_free(&t->trivial);
}

/* ---- the tokens ---- */

typedef struct {
    Symbols tokens, normal, characters, extended;
} TextSymbols;

static inline void text_symbols_free(TextSymbols *x) {
    symbols_free(&x->tokens);
    symbols_free(&x->normal);
    symbols_free(&x->characters);
    symbols_free(&x->extended);
}

static inline void text_words(SymbolTable *table, Symbols *ids, const char *text, size_t bytes) {
    Symbols characters = {NULL, 0, 0};
    symbols_decode(&characters, text, bytes);
    symbols_of_words(table, ids, characters.s, characters.n);
    symbols_free(&characters);
}

/* All that is compared of one text. */
static inline TextSymbols text_symbols(TextSuite *t, const char *text, size_t bytes) {
    TextSymbols x;
    memset(&x, 0, sizeof x);
    symbols_decode(&x.characters, text, bytes);
    if (t->kind == TEXT_PROGRAM) {
        tex_tokens(&t->symbols, &x.tokens, text, bytes);
        tex_characters(&x.extended, text, bytes);
        return x;
    }
    text_words(&t->symbols, &x.tokens, text, bytes);
    size_t size;
    char *normal = formula_normalise(text, bytes, &size);
    text_words(&t->symbols, &x.normal, normal, size);
    free(normal);
    return x;
}

/* Counts the n-grams of a training text. All such calls come before the first text_suite_measure; without any, CrystalBLEU
 * is BLEU. */
static inline void text_suite_train(TextSuite *t, const char *text, size_t bytes) {
    Symbols ids = {NULL, 0, 0};
    if (t->kind == TEXT_PROGRAM) tex_tokens(&t->symbols, &ids, text, bytes);
    ngrams_train(&t->trivial, ids.s, ids.n);
    symbols_free(&ids);
}

/* ---- one sample ---- */

static inline EditCounts text_edits(const Symbols *a, const Symbols *b) {
    return (EditCounts){edit_distance(a->s, a->n, b->s, b->n), a->n > b->n ? a->n : b->n};
}

static inline bool text_equal(const Symbols *a, const Symbols *b) {
    return a->n == b->n && (a->n == 0 || !memcmp(a->s, b->s, a->n * sizeof *a->s));
}

/* Compares a hypothesis h with a reference r. */
static inline TextSample text_compare(const TextSuite *t, const TextSymbols *h, const TextSymbols *r,
                                      NgramTable *scratch) {
    const Symbols *a = &h->tokens, *b = &r->tokens;
    TextSample s;
    memset(&s, 0, sizeof s);
    s.exact = text_equal(&h->characters, &r->characters);
    s.bleu = bleu_count(a->s, a->n, b->s, b->n, NULL, scratch);
    s.tokens = text_edits(a, b);
    s.characters = text_edits(&h->characters, &r->characters);
    s.repetition = repetition_rate(a->s, a->n, scratch);
    if (t->kind == TEXT_PROGRAM) {
        s.crystal = bleu_count(a->s, a->n, b->s, b->n, &t->trivial, scratch);
        s.extended = extended_edit_distance(h->extended.s, h->extended.n, r->extended.s, r->extended.n);
    } else {
        s.same_formula = text_equal(&h->normal, &r->normal);
        s.normal = bleu_count(h->normal.s, h->normal.n, r->normal.s, r->normal.n, NULL, scratch);
        s.normal_tokens = text_edits(&h->normal, &r->normal);
    }
    return s;
}

/* Fills samples[n]. The work is spread over OpenMP's threads; the result does not depend on how many there are. */
static inline void text_suite_measure(TextSuite *t, const TextPair *pairs, size_t n, TextSample *samples) {
    enum { AT_ONCE = 64 };  // as many texts are in memory as symbols
    TextSymbols symbols[2 * AT_ONCE];
    if (!t->trained) ngrams_keep(&t->trivial, t->trivial_count);
    t->trained = true;
    for (size_t begin = 0; begin < n; begin += AT_ONCE) {
        const int count = n - begin < AT_ONCE ? (int)(n - begin) : AT_ONCE;
        for (int i = 0; i < count; i++) {
            const TextPair p = pairs[begin + (size_t)i];
            symbols[2 * i] = text_symbols(t, p.hypothesis, p.hypothesis_bytes);
            symbols[2 * i + 1] = text_symbols(t, p.reference, p.reference_bytes);
        }
#pragma omp parallel
        {
            NgramTable scratch = {NULL, 0, 0, 0, NULL};
#pragma omp for schedule(dynamic)
            for (int i = 0; i < count; i++)
                samples[begin + (size_t)i] = text_compare(t, &symbols[2 * i], &symbols[2 * i + 1], &scratch);
            ngrams_free(&scratch);
        }
        for (int i = 0; i < 2 * count; i++) text_symbols_free(&symbols[i]);
    }
}

/* ---- figures ---- */

typedef enum {
    TEXT_EXACT,
    TEXT_BLEU,
    TEXT_EDIT_SCORE,
    TEXT_CER,
    TEXT_CRYSTAL_BLEU,
    TEXT_TEX_EDIT_DISTANCE,
    TEXT_SAME_FORMULA,
    TEXT_NORMAL_BLEU,
    TEXT_NORMAL_EDIT_SCORE,
    TEXT_LENGTH_RATIO,
    TEXT_REPETITION,
    TEXT_METRICS
} TextMetric;

static const struct {
    MetricText text;
    bool of[2];  // of programs, of formulas
} text_metrics[TEXT_METRICS] = {
    [TEXT_EXACT] = {{"exact_match", "Exact match, %", "Programs that equal their references, byte for byte.", 1,
                     NULL},
                    {true, true}},
    [TEXT_BLEU] = {{"bleu", "BLEU-4", "Of the corpus, over the tokens of TeX, without smoothing.", 1, NULL},
                   {true, true}},
    [TEXT_EDIT_SCORE] = {{"edit_score", "Edit score, %",
                          "1 - edits / longer length, in tokens, of all programs together.", 1, NULL},
                         {true, true}},
    [TEXT_CER] = {{"cer", "Character error rate",
                   "Edits divided by the longer length, in characters, mean of the programs.", -1, NULL},
                  {true, true}},
    [TEXT_CRYSTAL_BLEU] = {{"crystal_bleu", "CrystalBLEU",
                            "BLEU-4 without the 500 most frequent n-grams of the training texts.", 1, NULL},
                           {true, false}},
    [TEXT_TEX_EDIT_DISTANCE] = {{"tex_edit_distance", "TexEditDistance",
                                 "Extended edit distance of the normalised characters.", -1, NULL},
                                {true, false}},
    [TEXT_SAME_FORMULA] = {{"exact_match_normalised", "Same formula, %", "Formulas with the same normal form.", 1,
                            NULL},
                           {false, true}},
    [TEXT_NORMAL_BLEU] = {{"bleu_normalised", "BLEU-4, normalised", "BLEU-4 of the normal forms.", 1, NULL},
                          {false, true}},
    [TEXT_NORMAL_EDIT_SCORE] = {{"edit_score_normalised", "Edit score, normalised, %",
                                 "Edit score of the normal forms.", 1, NULL},
                                {false, true}},
    [TEXT_LENGTH_RATIO] = {{"length_ratio", "Length ratio",
                            "Tokens of the programs divided by tokens of the references.", 0, NULL},
                           {true, true}},
    [TEXT_REPETITION] = {{"repetition_rate", "Repetition rate", "Share of a program's 4-grams that it had before.",
                          -1, NULL},
                         {true, true}},
};

static inline bool text_metric_applies(TextMetric m, TextKind kind) {
    return text_metrics[m].of[kind == TEXT_FORMULA];
}

/* The counts that a metric adds up, or NULL where it is a mean of the samples' values. */
static inline const BleuCounts *text_bleu_counts(TextMetric m, const TextSample *s) {
    if (m == TEXT_CRYSTAL_BLEU) return &s->crystal;
    if (m == TEXT_NORMAL_BLEU) return &s->normal;
    return m == TEXT_BLEU || m == TEXT_LENGTH_RATIO ? &s->bleu : NULL;
}

static inline const EditCounts *text_edit_counts(TextMetric m, const TextSample *s) {
    return m == TEXT_EDIT_SCORE ? &s->tokens : m == TEXT_NORMAL_EDIT_SCORE ? &s->normal_tokens : NULL;
}

static inline double text_mean_part(TextMetric m, const TextSample *s) {
    switch (m) {
    case TEXT_EXACT: return s->exact ? 100 : 0;
    case TEXT_SAME_FORMULA: return s->same_formula ? 100 : 0;
    case TEXT_CER: return s->characters.longest ? (double)s->characters.distance / (double)s->characters.longest : 0;
    case TEXT_TEX_EDIT_DISTANCE: return s->extended;
    default: return s->repetition;
    }
}

/* What the metrics of a set of samples are made of; all zeros: of no samples. */
typedef struct {
    double texts, mean[TEXT_METRICS];  // mean: sums of text_mean_part, of the metrics that are means
    BleuCounts bleu, crystal, normal;
    double distance[TEXT_METRICS], longest[TEXT_METRICS];
} TextSums;

static inline void text_sums_add(TextSums *a, const TextSums *b) {
    a->texts += b->texts;
    bleu_add(&a->bleu, &b->bleu);
    bleu_add(&a->crystal, &b->crystal);
    bleu_add(&a->normal, &b->normal);
    for (int m = 0; m < TEXT_METRICS; m++) {
        a->mean[m] += b->mean[m];
        a->distance[m] += b->distance[m];
        a->longest[m] += b->longest[m];
    }
}

static inline TextSums text_sums_of(const TextSample *s) {
    TextSums out = {.texts = 1, .bleu = s->bleu, .crystal = s->crystal, .normal = s->normal};
    for (int m = 0; m < TEXT_METRICS; m++) {
        const EditCounts *edits = text_edit_counts((TextMetric)m, s);
        if (edits) {
            out.distance[m] = (double)edits->distance;
            out.longest[m] = (double)edits->longest;
        } else if (!text_bleu_counts((TextMetric)m, s)) {
            out.mean[m] = text_mean_part((TextMetric)m, s);
        }
    }
    return out;
}

/* The metric of a set of samples, from their sums. Of no sample NaN, which JSON writes as null. What has no value by its
 * formula: the edit score and the CER of two empty texts are those of equal texts, 100 and 0; BLEU without a match of some
 * order is 0; the length ratio to references without a token is 1 if the hypotheses have none either, else infinite. */
static inline double text_figure(TextMetric m, const TextSums *s) {
    if (s->texts == 0) return NAN;
    switch (m) {
    case TEXT_BLEU: return bleu_score(&s->bleu);
    case TEXT_CRYSTAL_BLEU: return bleu_score(&s->crystal);
    case TEXT_NORMAL_BLEU: return bleu_score(&s->normal);
    case TEXT_LENGTH_RATIO:
        if (s->bleu.reference) return (double)s->bleu.hypothesis / (double)s->bleu.reference;
        return s->bleu.hypothesis ? INFINITY : 1;
    case TEXT_EDIT_SCORE:
    case TEXT_NORMAL_EDIT_SCORE: return s->longest[m] > 0 ? 100 * (1 - s->distance[m] / s->longest[m]) : 100;
    default: return s->mean[m] / s->texts;
    }
}

/* The metric of the n samples chosen[0..n), which may repeat; NULL: of samples[0..n). */
static inline double text_metric(TextMetric m, const TextSample *samples, const size_t *chosen, size_t n) {
    TextSums sum = {0};
    for (size_t i = 0; i < n; i++) {
        const TextSums one = text_sums_of(&samples[chosen ? chosen[i] : i]);
        text_sums_add(&sum, &one);
    }
    return text_figure(m, &sum);
}

#endif
