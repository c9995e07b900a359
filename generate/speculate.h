/* Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): a small draft model proposes some tokens one by one, and
 * the target model reads them all in one pass, which costs it little more than one token where decoding is bound by the
 * reading of the weights. It keeps the first ones that it agrees with and adds one of its own.
 *
 *     generator_prefill(target, pixels, 1, ...), generator_prefill(draft, its own pixels, 1, ...)
 *     speculator_run                as generator_run
 *
 * Greedy, a proposal is kept if it is the target's likeliest token, so the text is the target's alone. Otherwise the rule of
 * generate/rejection.h keeps the target's distribution. One sequence at a time; generate.h has the generators.
 *
 * A rejected token leaves its key and value in the caches: the next pass writes over them, and nothing reads them before. */
#ifndef GENERATE_SPECULATE_H
#define GENERATE_SPECULATE_H

#include "../generate.h"
#include "rejection.h"

/* Most tokens of one pass of the target: its last one and the proposals. model_plan must have been called for as many text
 * tokens, for the target and for the draft. */
enum { SPECULATE_ROWS = 8, SPECULATE_ROWS_GPU_FP32 = 4 };

/* The draft stops where the target would keep all proposals with less than this probability, by the draft's own numbers.
 * Measured on the starter's pair: from 0.5 to 0.9 it hardly matters; more is better where a row more costs much. */
#define SPECULATE_CONFIDENCE 0.8

typedef struct {
    Generator *target, *draft;
    int rows;           // most tokens of a pass
    int proposals;      // most proposals of a pass: rows - 1
    double confidence;  // SPECULATE_CONFIDENCE
    Arena arena;
    int *ids, *start;                   // device [rows], [1]: tokens of a pass, position of the first
    int *chosen, *positions, *streams;  // device [rows]: the target's greedy tokens, and what Ops.sample needs
    float *logits;                      // device [rows, V]
    uint8_t *target_mask, *first_mask, *draft_mask;  // host [V]: the generators' token masks
    float *host_logits;                              // host [V]
    Distribution p, q[SPECULATE_ROWS];               // where the target is; what the proposals were drawn from
    int proposed[SPECULATE_ROWS];                    // host

    int *text, count, read;  // host: the tokens of this run; how many the draft has read, its proposals among them
    int stream;              // random stream of this run
    int target_start, draft_start;   // positions of text[0]
    long passes, offered, accepted;  // statistics: passes of the target, proposals, those kept
} Speculator;

/* Refuses a draft whose tokens are not the target's. The vocabularies may be padded differently. */
static inline int speculator_check(const Model *target, const Model *draft, Error *err) {
    const Tokenizer *a = &target->tokenizer, *b = &draft->tokenizer;
    const char *t = target->file.file.path, *d = draft->file.file.path;
    if (a->count != b->count)
        return error_set(err, "the draft model %s has %d tokens but %s has %d; a draft needs the same tokenizer", d,
                         b->count, t, a->count);
    for (int i = 0; i < a->count; i++) {
        const int32_t *x = a->offsets + i, *y = b->offsets + i;
        if (x[1] - x[0] != y[1] - y[0] || memcmp(a->bytes + x[0], b->bytes + y[0], (size_t)(x[1] - x[0])) != 0)
            return error_set(
                err, "token %d of the draft model %s is not that of %s; a draft needs the same tokenizer", i, d, t);
        if (tokenizer_ends(a, i) != tokenizer_ends(b, i) || (a->flags[i] ^ b->flags[i]) & TOKEN_SPECIAL)
            return error_set(
                err,
                "token %d is a special token of only one of the draft model %s and %s; a draft needs the "
                "same tokenizer",
                i, d, t);
    }
    if (a->begin != b->begin)
        return error_set(err,
                         "the texts of the draft model %s do not begin with the token of %s; a draft needs the same "
                         "tokenizer",
                         d, t);
    return 0;
}

static inline void speculator_plan(Speculator *s) {
    const int V = s->target->m->c.lm.vocab, v = s->draft->m->c.lm.vocab;
    s->ids = arena_int(&s->arena, s->rows);
    s->start = arena_int(&s->arena, 1);
    s->chosen = arena_int(&s->arena, s->rows);
    s->positions = arena_int(&s->arena, s->rows);
    s->streams = arena_int(&s->arena, s->rows);
    s->logits = arena_f32(&s->arena, (size_t)s->rows * (V > v ? V : v));
}

/* A generator's token mask [V] on the host. */
static inline uint8_t *speculator_mask(const Generator *g, const uint8_t *mask) {
    uint8_t *host = (uint8_t *)xmalloc(g->m->c.lm.vocab);
    g->m->op->download(host, mask, g->m->c.lm.vocab);
    return host;
}

/* For two generators of one device, which stay the caller's and take one sequence or more. */
static inline void speculator_open(Speculator *s, Generator *target, Generator *draft) {
    const Ops *op = target->m->op;
    const int V = target->m->c.lm.vocab, v = draft->m->c.lm.vocab;
    *s = (Speculator){.target = target, .draft = draft};
    s->rows = SPECULATE_ROWS;
    if (sizeof(floatX) == sizeof(float) && !op->host_memory) s->rows = SPECULATE_ROWS_GPU_FP32;  // see model_extend
    if (draft->m->op != op || target->m->max_B * target->m->max_T < s->rows ||
        draft->m->max_B * draft->m->max_T < s->rows)
        die("internal error: speculative decoding needs one device and models planned for %d tokens", s->rows);
    speculator_plan(s);
    arena_allocate(&s->arena, op, "", "the proposals' logits");
    speculator_plan(s);
    s->target_mask = speculator_mask(target, target->token_mask);
    s->first_mask = speculator_mask(target, target->first_mask);
    s->draft_mask = speculator_mask(draft, draft->token_mask);
    s->host_logits = (float *)xmalloc((V > v ? V : v) * sizeof(float));
    distribution_open(&s->p, V);
    for (int i = 0; i < SPECULATE_ROWS; i++) distribution_open(&s->q[i], v);
    s->proposals = s->rows - 1;
    s->confidence = SPECULATE_CONFIDENCE;
}

static inline void speculator_close(Speculator *s) {
    const Ops *op = s->target->m->op;
    op->graph_free(s);
    op->graph_free(&s->draft);
    arena_release(&s->arena, op);
    free(s->target_mask);
    free(s->first_mask);
    free(s->draft_mask);
    free(s->host_logits);
    distribution_close(&s->p);
    for (int i = 0; i < SPECULATE_ROWS; i++) distribution_close(&s->q[i]);
}

static inline bool speculator_is_greedy(const Speculator *s) { return sample_is_greedy(&s->target->sampling); }

/* The distribution of a row of device logits. */
static inline void speculator_read(Speculator *s, Distribution *to, const Generator *g, const float *logits,
                                   const uint8_t *mask, const Sampling *sampling) {
    const int V = g->m->c.lm.vocab;
    g->m->op->download(s->host_logits, logits, V * sizeof(float));
    distribution_read(to, s->host_logits, mask, sampling, V);
}

/* One pass of a generator's model over n tokens (host) from `position` on. Afterwards s->logits [n, V] is of the tokens after
 * each, and if `mask` (device), s->chosen [n] are the likeliest of them. */
static inline void speculator_extend(Speculator *s, Generator *g, const int *tokens, int n, int position,
                                     const uint8_t *mask) {
    const Ops *op = g->m->op;
    const void *owner = g == s->target ? (const void *)s : (const void *)&s->draft;
    op->upload(s->ids, tokens, n * sizeof(int));
    op->upload(s->start, &position, sizeof(int));
    if (op->graph_launch(owner, 4 * (uint64_t)n + (mask == g->first_mask ? 2 : mask != NULL))) return;
    model_extend(g->m, s->ids, s->start, 1, n, &g->cache, s->logits);
    if (mask)
        op->sample(s->chosen, s->positions, s->logits, mask, s->streams, (Sampling){.top_p = 1}, n, g->m->c.lm.vocab);
    op->graph_end();
}

/* ---- the draft ---- */

/* The draft draws as the target, with other random numbers. */
static inline void speculator_set_draft(Speculator *s) {
    Generator *d = s->draft;
    Sampling want = s->target->sampling;
    want.seed ^= REJECTION_SEED_DRAFT;
    if (d->sampling.temperature != want.temperature || d->sampling.top_p != want.top_p ||
        d->sampling.top_k != want.top_k || d->sampling.seed != want.seed) {
        d->sampling = want;
        d->m->op->graph_free(d);
    }
    d->first = -1;  // the target draws the first token
    d->B = 1;
    d->m->op->upload(d->streams, &s->stream, sizeof(int));
}

/* Reads the tokens that the draft has not read yet and draws the next one into draft->ids. Returns its logits. */
static inline const float *speculator_catch_up(Speculator *s) {
    Generator *d = s->draft;
    int n = 0, last = s->draft_start + s->count - 1;
    for (; s->read < s->count; s->read += n) {
        n = s->count - s->read < s->rows ? s->count - s->read : s->rows;
        speculator_extend(s, d, s->text + s->read, n, s->draft_start + s->read, NULL);
    }
    const float *logits = s->logits + (size_t)(n - 1) * d->m->c.lm.vocab;
    d->length = s->draft_start + s->count;
    d->m->op->upload(d->positions, &last, sizeof(int));
    d->m->op->sample(d->ids, d->positions, logits, d->token_mask, d->streams, d->sampling, 1, d->m->c.lm.vocab);
    return logits;
}

/* The distribution that the draft's next token is drawn from; that of temperature 1 where the likeliest is taken. */
static inline void speculator_read_draft(Speculator *s, Distribution *q, const float *logits) {
    const Sampling plain = {.temperature = 1, .top_p = 1};
    speculator_read(s, q, s->draft, logits, s->draft_mask, speculator_is_greedy(s) ? &plain : &s->target->sampling);
}

/* Fills s->proposed with up to `most` tokens that may follow the text, and returns how many. It ends at an end token, and
 * before a token that the target might not keep: where the product of the draft's largest probabilities so far falls below
 * s->confidence. Whether a token is proposed depends on the tokens before it alone. If it depended on the token
 * drawn, the proposals would not have the distribution q. */
static inline int speculator_propose(Speculator *s, int most) {
    Generator *d = s->draft;
    double confidence = 1;
    int n = 0;
    while (n < most) {
        const float *logits = d->logits;
        if (n == 0)
            logits = speculator_catch_up(s);
        else
            generator_step(d, true), s->read++;
        speculator_read_draft(s, &s->q[n], logits);
        if (!s->q[n].total) break;  // the draft's numbers are not finite: the target decides alone
        confidence *= 0x1p40 / (double)s->q[n].total;
        if (confidence < s->confidence) break;
        d->m->op->download(&s->proposed[n], d->ids, sizeof(int));
        if (tokenizer_ends(&d->m->tokenizer, s->proposed[n++])) break;
    }
    return n;
}

/* ---- the target ---- */

/* How many of the n proposals are the target's own choice; *next is its choice after them. */
static inline int speculator_verify_greedy(Speculator *s, int n, int *next) {
    int chosen[SPECULATE_ROWS], kept = 0;
    s->target->m->op->download(chosen, s->chosen, (n + 1) * sizeof(int));
    while (kept < n && chosen[kept] == s->proposed[kept]) kept++;
    *next = chosen[kept];
    return kept;
}

/* How many of the n proposals the rule of generate/rejection.h keeps; *next is the token drawn after them. */
static inline int speculator_verify_sampled(Speculator *s, int n, const uint8_t *mask, int *next) {
    const Generator *g = s->target;
    const Sampling *sampling = &g->sampling;
    int position = s->target_start + s->count;
    for (int i = 0;; i++, position++) {
        speculator_read(s, &s->p, g, s->logits + (size_t)i * g->m->c.lm.vocab, mask, sampling);
        const int id = s->proposed[i < n ? i : 0];
        if (i < n && s->p.total && rejection_accepts(&s->p, &s->q[i], id, sampling->seed, s->stream, position))
            continue;
        if (i < n && s->p.total)
            *next = rejection_residual(&s->p, &s->q[i], sampling->seed, s->stream, position, g->m->tokenizer.count);
        else
            *next = distribution_draw(&s->p, sampling, s->stream, position);
        return i;
    }
}

/* One pass of the target over its last token and n proposals. Returns how many are kept, and the token after them. */
static inline int speculator_verify(Speculator *s, int n, int *next) {
    Generator *g = s->target;
    const bool greedy = speculator_is_greedy(s), first = s->target_start + s->count == g->first;
    int tokens[SPECULATE_ROWS] = {s->text[s->count - 1]};
    memcpy(tokens + 1, s->proposed, n * sizeof(int));
    speculator_extend(s, g, tokens, n + 1, s->target_start + s->count - 1,
                      !greedy ? NULL
                      : first ? g->first_mask
                              : g->token_mask);
    int kept = greedy ? speculator_verify_greedy(s, n, next)
                      : speculator_verify_sampled(s, n, first ? s->first_mask : s->target_mask, next);
    s->passes++;
    s->offered += n;
    s->accepted += kept;
    return kept;
}

/* ---- the loop ---- */

/* How many tokens the draft may propose: the caches and max_new_tokens must have space for them and for one more, and none
 * up to the position where the text may not end. */
static inline int speculator_most(const Speculator *s, int max_new_tokens) {
    const int spaces[] = {max_new_tokens - s->count - 1, s->target->cache.capacity - s->target_start - s->count,
                          s->draft->cache.capacity - s->draft_start - s->count + 1};
    int most = s->proposals;
    for (int i = 0; i < 3; i++) most = spaces[i] < most ? spaces[i] : most;
    return most < 0 || s->target_start + s->count <= s->target->first ? 0 : most;
}

static inline bool speculator_give(Speculator *s, int b, int id, TokenReader reader, void *context) {
    if (id >= 0) s->text[s->count++] = id;
    return reader(context, b, id) && id >= 0;
}

/* After generator_prefill of one sequence in both generators: generates up to max_new_tokens for it and gives them to `reader`,
 * as sequence b. `stream` numbers its random stream. */
static inline void speculator_run(Speculator *s, int b, int stream, int max_new_tokens, TokenReader reader,
                                  void *context) {
    Generator *g = s->target;
    const Ops *op = g->m->op;
    int id;
    if (max_new_tokens < 1) return;
    s->text = (int *)xmalloc(max_new_tokens * sizeof(int));
    s->count = s->read = 0;
    s->stream = stream;
    s->target_start = g->length;
    s->draft_start = s->draft->length;
    speculator_set_draft(s);
    op->upload(g->streams, &stream, sizeof(int));
    generator_sample(g);
    op->download(&id, g->ids, sizeof(int));
    bool more = speculator_give(s, b, id, reader, context);
    while (more && s->count < max_new_tokens) {
        const int before = s->count, offered = speculator_propose(s, speculator_most(s, max_new_tokens));
        const int kept = speculator_verify(s, offered, &id);
        for (int i = 0; i < kept && more; i++) more = speculator_give(s, b, s->proposed[i], reader, context);
        if (more) more = speculator_give(s, b, id, reader, context);
        if (s->read > before + kept) s->read = before + kept;  // what is not kept is read anew
    }
    g->length = s->target_start + s->count;
    free(s->text);
}

#endif
