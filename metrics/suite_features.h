/* Features of drawings (features.h): each program's self-similarity to its reference, and each model's distance from the
 * references (KID). Both are kept, so that an interrupted report goes on: a vector for each drawing, its features' mean over the
 * patches, and two numbers for each pair of drawings. */
#ifndef METRICS_SUITE_FEATURES_H
#define METRICS_SUITE_FEATURES_H

#include "results.h"
#include "suite_compare.h"

typedef struct {
    Suite *s;
    ResultStore means, pairs;
    double *features[2];  // [P, C] each: of a reference, of a program
    bool encoded;         // the first has those of the sample's reference
    int64_t found;        // pairs that were kept
} SuiteEncoding;

/* Stands for what a program draws, as this encoder sees it. */
static inline uint64_t encoding_key(const SuiteEncoding *e, const DrawnProgram *p) {
    const uint64_t hash = hash_bytes(e->s->o->encoder->hash, p->name, strlen(p->name));
    const uint8_t drawn = p->verdict < DRAWN_NOT;
    return hash_bytes(hash, &drawn, 1);
}

/* Encodes what a program draws, and keeps the mean. `which`: of e->features. */
static inline int encoding_make(SuiteEncoding *e, const DrawnProgram *p, int which, double *mean, Error *err) {
    FeatureEncoder *encoder = e->s->o->encoder;
    Image image;
    if (suite_load(e->s, p, &image, err)) return -1;
    feature_encode(encoder, &image, e->features[which]);
    similarity_pool(mean, e->features[which], encoder->P, encoder->C);
    image_free(&image);
    return results_add(&e->means, encoding_key(e, p), mean, err);
}

/* The features of a sample's reference, once. */
static inline int encoding_reference(SuiteEncoding *e, int i, double *mean, Error *err) {
    if (e->encoded) return 0;
    e->encoded = true;
    return encoding_make(e, &e->s->drawings[i], 0, mean, err);
}

/* The mean features of a model's drawing of sample i and its similarity to the reference, kept ones or new ones. */
static inline int encoding_compare(SuiteEncoding *e, int model, int i, double *reference, double *mine, Error *err) {
    const Suite *s = e->s;
    const DrawnProgram *p = &s->computed[model].drawn[i], *drawn = &s->drawings[i];
    const uint64_t key = encoding_key(e, p), of_reference = encoding_key(e, drawn);
    const uint64_t pair = hash_bytes(of_reference, &key, sizeof key);
    const int P = s->o->encoder->P, C = s->o->encoder->C;
    double *similar = s->computed[model].similar[i];
    if (results_find(&e->means, key, mine) && results_find(&e->pairs, pair, similar)) return e->found++, 0;
    if (encoding_reference(e, i, reference, err) || encoding_make(e, p, 1, mine, err)) return -1;
    similar[0] = similarity_features(SIMILARITY_MEAN, e->features[0], e->features[1], P, C);
    similar[1] = similarity_features(SIMILARITY_EMD, e->features[0], e->features[1], P, C);
    return results_add(&e->pairs, pair, similar, err);
}

/* Encodes all drawings: *count means of the references [n, C] and, behind them, of each model's programs. */
static inline int encoding_all(SuiteEncoding *e, double *means, int *count, Error *err) {
    const Suite *s = e->s;
    const size_t C = (size_t)s->o->encoder->C;
    Progress progress;
    int bad = 0;
    progress_begin(&progress, "encoding", 0, s->n);
    for (int i = 0; i < s->n && !bad; i++) {
        double *reference = means + (size_t)*count * C;
        if (interrupted()) bad = error_set(err, "interrupted");
        if (bad || s->drawings[i].verdict >= DRAWN_NOT) continue;
        e->encoded = false;
        if (!results_find(&e->means, encoding_key(e, &s->drawings[i]), reference))
            bad = encoding_reference(e, i, reference, err);
        for (int k = 0; k < s->model_count && !bad; k++)
            bad = encoding_compare(e, k, i, reference, reference + (size_t)(k + 1) * (size_t)s->n * C, err);
        ++*count;
        progress_update(&progress, i + 1, "%lld pairs kept", (long long)e->found);
    }
    progress_end(&progress);
    return bad;
}

/* Each model's distance from the references. */
static inline void suite_distances(Suite *s, const double *means, int count) {
    const int C = s->o->encoder->C;
    Error err;
    if (count < KID_SUBSET_SIZE)
        s->notes[s->note_count++] = "KID is of all drawings, since there are fewer than 50; it is then too low.";
    for (int k = 0; k < s->model_count; k++) {
        const double *set = means + (size_t)(k + 1) * (size_t)s->n * (size_t)C;
        Kid distance = {0};
        s->computed[k].kid = (Interval){NAN, NAN, NAN};
        if (kid(&distance, means, count, set, count, C, SUITE_SEED, &err)) continue;
        s->computed[k].kid = (Interval){1000 * distance.mean, 1000 * (distance.mean - distance.deviation),
                                        1000 * (distance.mean + distance.deviation)};
    }
}

/* Fills in similarities and distances. -1 with *err filled: a file cannot be read or written, or the user has interrupted. */
static inline int suite_encode_all(Suite *s, Error *err) {
    const size_t C = (size_t)s->o->encoder->C, PC = (size_t)s->o->encoder->P * C;
    SuiteEncoding e = {.s = s,
                       .features = {(double *)xmalloc(PC * sizeof(double)), (double *)xmalloc(PC * sizeof(double))}};
    double *means = (double *)xmalloc(((size_t)s->model_count + 1) * ((size_t)s->n + 1) * C * sizeof(double));
    char *of_means = format_string("%s/features-%d", s->o->folder, s->o->encoder->C);
    char *of_pairs = format_string("%s/similarities", s->o->folder);
    int count = 0;  // samples whose reference is drawn
    int bad = results_open(&e.means, of_means, (int)C, s->o->resume, err);
    if (!bad) bad = results_open(&e.pairs, of_pairs, 2, s->o->resume, err);
    if (!bad) bad = encoding_all(&e, means, &count, err);
    if (!bad) suite_distances(s, means, count);
    results_close(&e.means);
    results_close(&e.pairs);
    for (int i = 0; i < 2; i++) free(e.features[i]);
    free(means);
    free(of_means);
    free(of_pairs);
    return bad;
}

#endif
