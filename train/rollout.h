/* Rollouts: the student's own samples, drawn inside training with the generator of infer.
 *
 *     rollout_open(&r, &student, images, samples, max_new_tokens, sampling);    after model_plan: allocates the KV cache, once
 *     rollout_sample(&r, pixels, numbers, B, G, step);                          -> r.ids, r.lengths, r.ended
 *
 * The generator reads the student's weights where the optimizer updates them, and the activations of its forward pass are
 * its scratch, so that only the KV cache takes memory. As many sequences as a micro-batch has images are decoded together;
 * of an image with several samples the prefill runs once.
 *
 * A token depends on the seed, the step, the image's number, the sample's number and the logits: not on the other sequences
 * of the batch, up to the rounding of the matmuls, and not on the number of ranks. Where the model has a begin token, every
 * sample begins with it, as every text of the data does; it is not drawn. Padding and special tokens are masked, and so is the
 * end at the first token (generator_mask_tokens). */
#ifndef TRAIN_ROLLOUT_H
#define TRAIN_ROLLOUT_H

#include "../generate.h"
#include "../lora.h"

typedef struct {
    Generator g;
    int max_images, max_samples, max_new_tokens;
    /* the samples of the last call; sample k of image b is row b * G + k */
    int *ids;       // host [max_images * max_samples, max_new_tokens], padded with -1
    int *lengths;   // host [rows]: tokens, begin and end token included
    bool *ended;    // host [rows]: the last token is an end token; else the sample was cut at max_new_tokens
    bool finite;    // false: the student's logits were not, and the rows where they were not stop early
    int first_row;  // of the sequences that are being generated
    int *streams;   // host [sequences together]
} Rollout;

/* For calls with up to `images` images and `samples` samples of each, of up to max_new_tokens tokens, the begin token included,
 * which must fit behind the image tokens. sampling: with the seed of the run. The student must have its own encoder
 * (model_share_encoder). */
static inline void rollout_open(Rollout *r, Model *student, int images, int samples, int max_new_tokens,
                                Sampling sampling) {
    const int most = student->max_B < GENERATOR_MAX_BATCH ? student->max_B : GENERATOR_MAX_BATCH;
    const int wanted = images * samples < most ? images * samples : most;
    const int together = wanted > samples ? wanted / samples * samples : samples;
    const size_t rows = (size_t)images * samples;
    *r = (Rollout){.max_images = images, .max_samples = samples, .max_new_tokens = max_new_tokens};
    generator_open(&r->g, student, together, max_new_tokens);
    generator_set_sampling(&r->g, sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed,
                           student->tokenizer.begin >= 0);
    r->ids = xcalloc(rows * max_new_tokens, sizeof(int));
    r->lengths = xcalloc(rows, sizeof(int));
    r->ended = xcalloc(rows, sizeof(bool));
    r->streams = xcalloc(together, sizeof(int));
}

/* From now on only tokens below `limit` are drawn: those that a teacher has too. */
static inline void rollout_limit_tokens(const Rollout *r, int limit) {
    const Model *m = r->g.m;
    const int V = m->c.lm.vocab;
    uint8_t *ones = xmalloc(V);
    memset(ones, 1, V);
    if (limit < V) m->op->upload(r->g.token_mask + limit, ones, V - limit);
    if (limit < V) m->op->upload(r->g.first_mask + limit, ones, V - limit);
    free(ones);
}

static inline void rollout_close(Rollout *r) {
    if (!r->ids) return;
    generator_close(&r->g);
    free(r->ids);
    free(r->lengths);
    free(r->ended);
    free(r->streams);
    *r = (Rollout){0};
}

/* The random stream of a sample: a hash of what tells it from all others of the run. */
static inline int rollout_stream(int64_t step, uint32_t number, int sample) {
    uint64_t x = (uint64_t)step;
    x = random_splitmix(&x) ^ number;
    x = random_splitmix(&x) ^ (uint32_t)sample;
    return (int)(uint32_t)(random_splitmix(&x) >> 32);
}

/* The TokenReader: appends a token to its row, the first one after the begin token. */
static inline bool rollout_read(void *context, int sequence, int id) {
    Rollout *r = context;
    const int row = r->first_row + sequence, begin = r->g.m->tokenizer.begin;
    if (id < 0) {
        r->finite = false;
        return false;
    }
    int *ids = r->ids + (size_t)row * r->max_new_tokens;
    if (r->lengths[row] == 0 && begin >= 0) ids[r->lengths[row]++] = begin;
    ids[r->lengths[row]++] = id;
    r->ended[row] = tokenizer_ends(&r->g.m->tokenizer, id);
    return !r->ended[row];
}

/* After a prefill of n images: copies sequence i to the sequences i * G .. i * G + G-1, from the last on, so that none is
 * overwritten before it was copied. */
static inline void rollout_repeat(Generator *g, int n, int G) {
    const Ops *op = g->m->op;
    const size_t V = (size_t)g->m->c.lm.vocab;
    for (int to = n * G - 1; to > 0 && G > 1; to--) {
        const int from = to / G;
        kv_cache_move(&g->cache, &g->m->c.lm, op, to, from, 0, g->length);
        op->copy(g->logits + to * V, g->logits + from * V, V * sizeof(float));
    }
    g->B = n * G;
    generator_set_all(g, g->positions, g->length - 1);
}

/* Draws G samples for each of B images, host pixels u8 [B, height, width, 3]; numbers [B] tell the images apart, and step
 * tells this call from others. Waits for the device. The student's activations are lost. */
static inline void rollout_sample(Rollout *r, const uint8_t *pixels, const uint32_t *numbers, int B, int G,
                                  int64_t step) {
    Model *m = r->g.m;
    const int rows = B * G, fit = r->g.max_B / G, together = fit < m->max_B ? fit : m->max_B;
    const int begin = m->tokenizer.begin, first = begin >= 0;
    if (B > r->max_images || G > r->max_samples)
        die("internal error: %d samples of %d images for rollouts planned for %d of %d", G, B, r->max_samples,
            r->max_images);
    r->finite = true;
    memset(r->lengths, 0, rows * sizeof(int));
    memset(r->ended, 0, rows * sizeof(bool));
    for (size_t i = 0; i < (size_t)rows * r->max_new_tokens; i++) r->ids[i] = -1;
    lora_set_dropout(m, 0);
    for (int at = 0; at < B; at += together) {
        const int n = B - at < together ? B - at : together;
        for (int i = 0; i < n * G; i++) r->streams[i] = rollout_stream(step, numbers[at + i / G], i % G);
        r->first_row = at * G;
        generator_prefill(&r->g, pixels + at * model_pixels(m), n, &begin, first);
        rollout_repeat(&r->g, n, G);
        generator_run(&r->g, r->streams, r->max_new_tokens - first, rollout_read, r);
    }
}

#endif
