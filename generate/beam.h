/* Beam search over the key-value cache: the program of an image for which
 *
 *     sum of the tokens' log-probabilities / (number of tokens, the end token included) ^ length_penalty
 *
 * is the highest among those that a search with `beams` unfinished programs finds. The rules are those of Hugging Face's
 * generate(num_beams, length_penalty, early_stopping=False) of transformers 4.44, token for token:
 *
 *     candidates   at each step the best of all continuations of an image's beams: (1 + end tokens) x beams, at least 2 x beams
 *     finished     those that end and rank among the first `beams`; the best `beams` of them are kept
 *     beams        the first `beams` of those that do not end
 *     done         when `beams` are finished and the step's best candidate, ended here, would not beat the worst of them
 *     limit        at max_new_tokens the unfinished beams compete too
 *
 * Log-probabilities are over all tokens, those that may not come (generator_mask_tokens) included.
 *
 * Each image is encoded once. A beam lives in a slot, one sequence of the cache: its first child stays there, further ones
 * go to slots of beams that died, and only the positions from where the texts of the two slots differ are copied. */
#ifndef GENERATE_BEAM_H
#define GENERATE_BEAM_H

#include "../generate.h"

typedef struct {
    int beams;
    double length_penalty;  // 0: none; positive favours long programs, negative short ones
} BeamOptions;

typedef struct {
    int *ids, count;     // the program without its end token; free with beam_result_free
    bool ended, failed;  // false, false: cut; failed: the model's numbers are not finite (model_not_finite)
    double log_probability, score;  // of the program, of its end token too if it has ended; as above
} BeamResult;

typedef struct {
    double sum;  // of log-probabilities
    int rank, id;
} BeamCandidate;

typedef struct {
    double sum, score;
    int *ids, count;
    bool ended;
} BeamHypothesis;

/* The search of one image. */
typedef struct {
    int *slots;    // [beams]: of the live beams in the order of their ranks, then the idle ones
    double *sums;  // [live]
    int live, finished;
    BeamHypothesis *hypotheses;  // [beams + 1], `finished` of them, the earliest first
    double worst;                // score of them
    bool done, failed;
} BeamImage;

typedef struct {
    Generator *g;
    BeamOptions options;
    int images, max_new_tokens, most;  // most: candidates of a step
    int tokens;                        // generated so far, by every beam
    int start;                         // position of the first one
    BeamImage *image;                  // [images]
    int *text, *ids;                   // [slots, max_new_tokens]; [slots]: the last tokens
    float *logits;                     // [slots, V]
    uint8_t *token_mask, *first_mask;  // the generator's, on the host
    BeamCandidate *candidates;         // [most], the best first
    int found;
    int *place, *order, *kept;  // scratch: [beams], [beams], [slots]
    bool *taken;                // scratch: [slots]
    bool (*stopped)(void);      // asked at each step whether to give up; NULL: never
} BeamSearch;

static inline void beam_result_free(BeamResult *r) {
    free(r->ids);
    r->ids = NULL;
}

/* ---- opening ---- */

static inline void beam_image_open(BeamImage *image, const BeamSearch *s, int number) {
    const int beams = s->options.beams;
    *image = (BeamImage){.live = 1, .worst = INFINITY};
    image->slots = (int *)xmalloc(beams * sizeof(int));
    image->sums = (double *)xcalloc(beams, sizeof(double));
    image->hypotheses = (BeamHypothesis *)xcalloc(beams + 1, sizeof(BeamHypothesis));
    for (int i = 0; i < beams; i++) image->slots[i] = number * beams + i;
    for (int i = 0; i <= beams; i++) image->hypotheses[i].ids = (int *)xmalloc(s->max_new_tokens * sizeof(int));
}

static inline void beam_open(BeamSearch *s, Generator *g, int images, const BeamOptions *o, int max_new_tokens) {
    const Tokenizer *t = &g->m->tokenizer;
    const size_t V = g->m->c.lm.vocab, slots = (size_t)images * o->beams;
    *s = (BeamSearch){.g = g, .options = *o, .images = images, .max_new_tokens = max_new_tokens};
    s->most = (2 + t->more_end_count) * o->beams;
    s->image = (BeamImage *)xcalloc(images, sizeof(BeamImage));
    for (int i = 0; i < images; i++) beam_image_open(&s->image[i], s, i);
    s->text = (int *)xcalloc(slots * max_new_tokens, sizeof(int));
    s->ids = (int *)xcalloc(slots, sizeof(int));
    s->logits = (float *)xmalloc(slots * V * sizeof(float));
    s->token_mask = (uint8_t *)xmalloc(V);
    s->first_mask = (uint8_t *)xmalloc(V);
    s->candidates = (BeamCandidate *)xmalloc(s->most * sizeof(BeamCandidate));
    s->place = (int *)xmalloc(o->beams * sizeof(int));
    s->order = (int *)xmalloc(o->beams * sizeof(int));
    s->kept = (int *)xmalloc(slots * sizeof(int));
    s->taken = (bool *)xmalloc(slots * sizeof(bool));
    g->m->op->download(s->token_mask, g->token_mask, V);
    g->m->op->download(s->first_mask, g->first_mask, V);
}

static inline void beam_close(BeamSearch *s) {
    for (int i = 0; i < s->images; i++) {
        for (int k = 0; k <= s->options.beams; k++) free(s->image[i].hypotheses[k].ids);
        free(s->image[i].hypotheses);
        free(s->image[i].slots);
        free(s->image[i].sums);
    }
    void *const all[] = {s->image,      s->text,  s->ids,   s->logits, s->token_mask, s->first_mask,
                         s->candidates, s->place, s->order, s->kept,   s->taken};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static inline int *beam_text(const BeamSearch *s, int slot) { return s->text + (size_t)slot * s->max_new_tokens; }

/* ---- candidates ---- */

/* log sum exp of a row of logits; NAN if one of them is NaN or +infinity, or all are -infinity. */
static inline double beam_log_sum(const float *logits, int V) {
    float top = -INFINITY;
    double sum = 0;
    for (int i = 0; i < V; i++) {
        if (!(logits[i] < INFINITY)) return NAN;
        top = logits[i] > top ? logits[i] : top;
    }
    if (top == -INFINITY) return NAN;
    for (int i = 0; i < V; i++) sum += (double)expf(logits[i] - top);
    return (double)top + log(sum);
}

/* Adds a candidate behind those that are as good or better, if it is one of the best s->most. */
static inline void beam_consider(BeamSearch *s, BeamCandidate c) {
    if (s->found == s->most && !(c.sum > s->candidates[s->most - 1].sum)) return;
    int at = s->found < s->most ? s->found++ : s->most - 1;
    for (; at > 0 && c.sum > s->candidates[at - 1].sum; at--) s->candidates[at] = s->candidates[at - 1];
    s->candidates[at] = c;
}

/* Fills s->candidates for image i. Of equals, the one of the lower rank and id comes first. Returns false if the model's
 * numbers are not finite. */
static inline bool beam_candidates(BeamSearch *s, int i) {
    const BeamImage *image = &s->image[i];
    const int V = s->g->m->c.lm.vocab;
    const uint8_t *mask = s->g->length == s->g->first ? s->first_mask : s->token_mask;
    s->found = 0;
    for (int rank = 0; rank < image->live; rank++) {
        const int row = s->tokens ? image->slots[rank] : i;  // the prefill has one row for each image
        const float *logits = s->logits + (size_t)row * V;
        const double log_sum = beam_log_sum(logits, V);
        if (isnan(log_sum)) return false;
        for (int id = 0; id < V; id++)
            if (!mask[id] && logits[id] > -INFINITY)
                beam_consider(s, (BeamCandidate){image->sums[rank] + ((double)logits[id] - log_sum), rank, id});
    }
    return s->found > 0;
}

/* ---- finished programs ---- */

static inline double beam_score(const BeamSearch *s, double sum, int length) {
    return sum / pow(length, s->options.length_penalty);
}

/* Adds the program in a slot, s->tokens long, to the finished ones, if it is among the best. */
static inline void beam_finish(BeamSearch *s, BeamImage *image, int slot, double sum, bool ended) {
    const int beams = s->options.beams;
    const double score = beam_score(s, sum, s->tokens + ended);
    BeamHypothesis *h = image->hypotheses;
    if (image->finished == beams && !(score > image->worst)) return;
    int *ids = h[image->finished].ids;
    memcpy(ids, beam_text(s, slot), s->tokens * sizeof(int));
    h[image->finished++] = (BeamHypothesis){sum, score, ids, s->tokens, ended};
    if (image->finished > beams) {  // the worst leaves; of equals the earliest
        int worst = 0;
        for (int i = 1; i <= beams; i++) worst = h[i].score < h[worst].score ? i : worst;
        BeamHypothesis last = h[worst];
        memmove(h + worst, h + worst + 1, (beams - worst) * sizeof *h);
        h[beams] = last;
        image->finished = beams;
    }
    image->worst = INFINITY;
    for (int i = 0; i < image->finished; i++) image->worst = h[i].score < image->worst ? h[i].score : image->worst;
}

/* ---- beams ---- */

/* How many tokens two slots' texts have in common from the beginning on. */
static inline int beam_common(const BeamSearch *s, int a, int b) {
    const int *x = beam_text(s, a), *y = beam_text(s, b);
    int n = 0;
    while (n < s->tokens && x[n] == y[n]) n++;
    return n;
}

/* Makes slot `to` a copy of slot `from`, of which `common` tokens are there. */
static inline void beam_copy(BeamSearch *s, int to, int from, int common) {
    const Generator *g = s->g;
    memcpy(beam_text(s, to) + common, beam_text(s, from) + common, (s->tokens - common) * sizeof(int));
    kv_cache_move(&g->cache, &g->m->c.lm, g->m->op, to, from, s->start + common, g->length);
}

/* A slot without a child for a further child of the beam of rank `parent`: the one whose text begins most alike. */
static inline int beam_place(BeamSearch *s, const BeamImage *image, int parent) {
    int best = -1, most = -1;
    for (int i = 0; i < s->options.beams; i++) {
        const int common = s->taken[i] ? -1 : beam_common(s, image->slots[i], image->slots[parent]);
        if (common > most) most = common, best = i;
    }
    beam_copy(s, image->slots[best], image->slots[parent], most);
    return best;
}

/* The first n candidates become the image's beams. An idle slot continues with token 0. */
static inline void beam_continue(BeamSearch *s, BeamImage *image, int n) {
    const BeamCandidate *c = s->candidates;
    const int beams = s->options.beams;
    memset(s->taken, 0, beams * sizeof(bool));
    for (int i = 0; i < n; i++) {
        s->place[i] = s->taken[c[i].rank] ? -1 : c[i].rank;
        s->taken[c[i].rank] = true;
    }
    for (int i = 0; i < n; i++) {
        if (s->place[i] < 0) s->place[i] = beam_place(s, image, c[i].rank);
        s->taken[s->place[i]] = true;
        s->order[i] = image->slots[s->place[i]];
        image->sums[i] = c[i].sum;
    }
    for (int i = 0, at = n; i < beams; i++)
        if (!s->taken[i]) s->order[at++] = image->slots[i];
    memcpy(image->slots, s->order, beams * sizeof(int));
    for (int i = 0; i < beams; i++)
        beam_text(s, image->slots[i])[s->tokens] = s->ids[image->slots[i]] = i < n ? c[i].id : 0;
    image->live = n;
}

/* One step of image i, for which s->logits are: finishes programs and chooses the next beams. */
static inline void beam_advance(BeamSearch *s, int i) {
    BeamImage *image = &s->image[i];
    const int beams = s->options.beams;
    int n = 0;
    if (!beam_candidates(s, i)) {
        image->done = image->failed = true;
        return;
    }
    const double best = s->candidates[0].sum;
    for (int rank = 0; rank < s->found && n < beams; rank++) {
        const BeamCandidate c = s->candidates[rank];
        if (!tokenizer_ends(&s->g->m->tokenizer, c.id))
            s->candidates[n++] = c;
        else if (rank < beams)
            beam_finish(s, image, image->slots[c.rank], c.sum, true);
    }
    image->done = (image->finished == beams && image->worst >= beam_score(s, best, s->tokens + 1)) || n == 0;
    if (!image->done) beam_continue(s, image, n);
}

/* ---- the loop ---- */

/* From one sequence of each image in the cache to its beams' slots, the last image first. */
static inline void beam_spread(BeamSearch *s) {
    Generator *g = s->g;
    const int beams = s->options.beams;
    for (int slot = s->images * beams - 1; slot > 0; slot--)
        if (slot / beams != slot) kv_cache_move(&g->cache, &g->m->c.lm, g->m->op, slot, slot / beams, 0, g->length);
    g->B = s->images * beams;
}

/* Compacts the batch to the slots of the images that are not done. */
static inline void beam_compact(BeamSearch *s, int running) {
    const int beams = s->options.beams, slots = s->g->B;
    int n = 0;
    memset(s->taken, 0, slots * sizeof(bool));
    for (int i = 0; i < s->images; i++)
        for (int k = 0; k < beams && !s->image[i].done; k++) s->taken[s->image[i].slots[k]] = true;
    int *moved = s->ids;  // where each slot goes; the ids are those at the end of the texts
    for (int slot = 0; slot < slots; slot++) {
        if (!s->taken[slot]) continue;
        memmove(beam_text(s, n), beam_text(s, slot), s->tokens * sizeof(int));
        moved[slot] = n;
        s->kept[n++] = slot;
    }
    for (int i = 0; i < s->images; i++)
        for (int k = 0; k < beams && !s->image[i].done; k++) s->image[i].slots[k] = moved[s->image[i].slots[k]];
    for (int slot = 0; slot < running * beams; slot++) s->ids[slot] = beam_text(s, slot)[s->tokens - 1];
    generator_compact(s->g, s->kept, n);
}

static inline void beam_run(BeamSearch *s) {
    int running = s->images;
    for (s->tokens = 0; running && s->tokens < s->max_new_tokens; s->tokens++) {
        if (s->stopped && s->stopped()) break;
        if (s->tokens) {
            if (2 * running * s->options.beams <= s->g->B) beam_compact(s, running);
            generator_append(s->g, s->ids);
        }
        generator_logits(s->g, s->logits);
        if (s->tokens == 0) beam_spread(s);
        running = 0;
        for (int i = 0; i < s->images; i++) {
            if (!s->image[i].done) beam_advance(s, i);
            running += !s->image[i].done;
        }
    }
}

/* Finishes what the limit has cut, and sorts the image's programs: the best first, of equals the latest. */
static inline void beam_rank(BeamSearch *s, BeamImage *image) {
    BeamHypothesis *h = image->hypotheses;
    for (int rank = 0; rank < image->live && !image->done; rank++)
        beam_finish(s, image, image->slots[rank], image->sums[rank], false);
    for (int k = 1; k < image->finished; k++) {
        const BeamHypothesis x = h[k];
        int at = k;
        for (; at > 0 && x.score >= h[at - 1].score; at--) h[at] = h[at - 1];
        h[at] = x;
    }
}

/* The best program. */
static inline BeamResult beam_result(BeamSearch *s, int i) {
    BeamImage *image = &s->image[i];
    if (image->failed) return (BeamResult){.failed = true};
    beam_rank(s, image);
    BeamHypothesis *best = image->hypotheses;
    BeamResult r = {best->ids, best->count, best->ended, false, best->sum, best->score};
    best->ids = NULL;  // the result's now
    return r;
}

/* Encodes images (host u8 [images, height, width, 3]), reads the prefix, which is the same for all, and searches the program
 * of each, of up to max_new_tokens >= 1 tokens. The generator must have been opened for images x beams sequences and prefix_count +
 * max_new_tokens tokens, and model_plan called for as many. The end tokens are masked where generator_set_sampling says; nothing
 * else of the sampling matters. Returns how many results [images] have failed. */
static inline int beam_search(Generator *g, const uint8_t *pixels, int images, const int *prefix, int prefix_count,
                              const BeamOptions *o, int max_new_tokens, BeamResult *results) {
    BeamSearch s;
    int failed = 0;
    if (o->beams < 1 || images * o->beams > g->max_B || max_new_tokens < 1 ||
        images * o->beams > g->m->max_B * g->m->max_T)
        die("internal error: a beam search of %d images with %d beams for %d tokens, planned for %d sequences",
            images, o->beams, max_new_tokens, g->max_B);
    beam_open(&s, g, images, o, max_new_tokens);
    generator_prefill(g, pixels, images, prefix, prefix_count);
    s.start = g->length;
    beam_run(&s);
    for (int i = 0; i < images; i++) {
        results[i] = beam_result(&s, i);
        failed += results[i].failed;
    }
    beam_close(&s);
    return failed;
}

#endif
