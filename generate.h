/* Batched generation from images to programs, with a key-value cache.
 *
 *   generator_prefill   encodes the images and reads the prefix, which is the same for all sequences
 *   generator_run_all   samples token after token of every sequence until the reader stops it; then the next image takes
 *                       its slot in the batch at once (continuous batching)
 *   generator_append    appends given tokens instead of sampled ones, one to each sequence
 *
 * All that changes from step to step is on the device: the last token and the position of every sequence. So every step
 * makes identical calls, which a GPU replays as one graph, and the next step already runs while the host reads the last
 * one's tokens. The sequences of a batch are independent of each other, up to the rounding of the matmuls.
 *
 * How one token is drawn (greedy, temperature, top-k, top-p) is in kernels/sample.h; the
 * attention over the cache in kernels/{cpu,cuda}/attention_decode. generate/ has what is built on this: beam search,
 * speculative decoding, judging programs by compiling them, tree search (search.h). */
#ifndef GENERATE_H
#define GENERATE_H

#include "model.h"

/* ---- the key-value cache ---- */

/* Bytes of the cache of one sequence with `capacity` positions. */
static inline size_t kv_cache_bytes(const LmConfig *c, int capacity) {
    return 2 * (size_t)c->layers * c->kv_heads * capacity * c->head_dim * sizeof(floatX);
}

/* Hands out the cache of B sequences from an arena. */
static inline void kv_cache_plan(KVCache *cache, const LmConfig *c, int B, Arena *arena) {
    size_t n = (size_t)B * c->kv_heads * cache->capacity * c->head_dim;
    for (int l = 0; l < c->layers; l++) {
        cache->keys[l] = arena_x(arena, n);
        cache->values[l] = arena_x(arena, n);
    }
}

/* Copies the positions first .. length-1 of sequence `from` over those of sequence `to`. */
static inline void kv_cache_move(const KVCache *cache, const LmConfig *c, const Ops *op, int to, int from, int first,
                                 int length) {
    size_t head = (size_t)cache->capacity * c->head_dim, sequence = head * c->kv_heads,
           begin = (size_t)first * c->head_dim;
    size_t stride = head * sizeof(floatX), used = (size_t)(length - first) * c->head_dim * sizeof(floatX);
    for (int l = 0; l < c->layers && first < length; l++) {
        floatX *keys = cache->keys[l] + begin, *values = cache->values[l] + begin;
        op->copy_rows(keys + to * sequence, stride, keys + from * sequence, stride, used, c->kv_heads);
        op->copy_rows(values + to * sequence, stride, values + from * sequence, stride, used, c->kv_heads);
    }
}

/* ---- the generator ---- */

enum { GENERATOR_MAX_BATCH = OPS_DOWNLOAD_BYTES / sizeof(int) };  // the last tokens of a batch are one download

typedef struct {
    Model *m;
    int max_B;  // largest batch
    Arena arena;
    KVCache cache;
    int *ids, *positions;  // device [max_B]: the last token of every sequence, and its position
    int *streams;          // device [max_B]: the random stream of every sequence
    float *logits;         // device [max_B, V]: of the next token
    uint8_t *token_mask;   // device [V]: 1 where a token is never generated
    uint8_t *first_mask;   // device [V]: 1 where a token is not generated as the first one
    Sampling sampling;
    int first;      // the position at which the text begins, where it may not end
    int B, length;  // sequences now; positions of each in the cache
    bool scored;    // log_probability is computed of every token before the reader gets it
    double log_probability;
    float *row;    // host [V] scratch
    int *host;     // host [max_B] scratch
    KVCache slot;  // scratch: the cache of one sequence
} Generator;

static inline void generator_plan(Generator *g) {
    const LmConfig *c = &g->m->c.lm;
    kv_cache_plan(&g->cache, c, g->max_B, &g->arena);
    g->ids = arena_int(&g->arena, g->max_B);
    g->positions = arena_int(&g->arena, g->max_B);
    g->streams = arena_int(&g->arena, g->max_B);
    g->logits = arena_f32(&g->arena, (size_t)g->max_B * c->vocab);
    g->token_mask = arena_take(&g->arena, c->vocab, 1);
    g->first_mask = arena_take(&g->arena, c->vocab, 1);
}

/* Masks the tokens that are never generated: padding rows of the vocabulary, and special tokens that do not end a
 * text (the image token). The first token must not end the text, so that no program is empty. */
static inline void generator_mask_tokens(const Generator *g) {
    const Tokenizer *t = &g->m->tokenizer;
    int vocab = g->m->c.lm.vocab;
    uint8_t *mask = xmalloc(vocab);
    for (int i = 0; i < vocab; i++)
        mask[i] = i >= t->count || (!tokenizer_ends(t, i) && (t->flags[i] & TOKEN_SPECIAL) != 0);
    g->m->op->upload(g->token_mask, mask, vocab);
    for (int i = 0; i < t->count && i < vocab; i++) mask[i] |= tokenizer_ends(t, i);
    g->m->op->upload(g->first_mask, mask, vocab);
    free(mask);
}

/* Opens a generator for up to B sequences of up to max_tokens text tokens, the prefix included. model_plan must have been
 * called for B images and at least prefix + 1 tokens. Greedy until generator_set_sampling. -1: it does not fit. */
static inline int generator_try_open(Generator *g, Model *m, int B, int max_tokens, Error *err) {
    const int layers = m->c.lm.layers;
    if (B > GENERATOR_MAX_BATCH)
        return error_set(err, "at most %d programs are generated together; %d were asked for, take a smaller --batch",
                         GENERATOR_MAX_BATCH, B);
    *g = (Generator){.m = m, .max_B = B};
    model_use_full_width(m);
    g->cache.capacity = model_prompt(m) + max_tokens;
    g->cache.keys = xcalloc(layers, sizeof(floatX *));
    g->cache.values = xcalloc(layers, sizeof(floatX *));
    generator_plan(g);
    if (arena_try_allocate(&g->arena, m->op, "", "the key-value cache", err)) {
        free(g->cache.keys);
        free(g->cache.values);
        return -1;
    }
    generator_plan(g);
    g->slot.keys = xcalloc(layers, sizeof(floatX *));
    g->slot.values = xcalloc(layers, sizeof(floatX *));
    g->host = xmalloc(B * sizeof(int));
    g->row = xmalloc(m->c.lm.vocab * sizeof(float));
    g->sampling = (Sampling){.top_p = 1};
    g->first = model_prompt(m);
    generator_mask_tokens(g);
    params_move_to_large_pages(&m->params, m->op, GROUP_LM);
    return 0;
}

/* The same for programs that end where it does not fit. */
static inline void generator_open(Generator *g, Model *m, int B, int max_tokens) {
    Error err;
    die_if(generator_try_open(g, m, B, max_tokens, &err), &err);
}

static inline void generator_close(Generator *g) {
    g->m->op->graph_free(g);
    arena_release(&g->arena, g->m->op);
    free(g->cache.keys);
    free(g->cache.values);
    free(g->slot.keys);
    free(g->slot.values);
    free(g->host);
    free(g->row);
}

/* How tokens are sampled from now on (Sampling in kernels/ops.h). first: index of the first
 * generated text token, where the end tokens are masked. */
static inline void generator_set_sampling(Generator *g, float temperature, float top_p, int top_k, uint64_t seed,
                                          int first) {
    g->sampling.temperature = temperature;
    g->sampling.top_p = top_p;
    g->sampling.top_k = top_k;
    g->sampling.seed = seed;
    g->first = model_prompt(g->m) + first;
    g->m->op->graph_free(g);
}

/* ---- steps ---- */

/* Sets one device int per sequence to the same value. */
static inline void generator_set_all(const Generator *g, int *to, int value) {
    for (int b = 0; b < g->B; b++) g->host[b] = value;
    g->m->op->upload(to, g->host, g->B * sizeof(int));
}

/* Encodes B images (host u8 [B, height, width, 3]) and reads the prefix. Afterwards g->logits holds
 * the logits of the next token. */
static inline void generator_prefill(Generator *g, const uint8_t *pixels, int B, const int *prefix,
                                     int prefix_count) {
    g->B = B;
    g->length = model_prefill(g->m, pixels, B, prefix, prefix_count, &g->cache, g->logits);
    generator_set_all(g, g->positions, g->length - 1);
}

/* Draws the next token of every sequence from g->logits. */
static inline void generator_sample(const Generator *g) {
    const uint8_t *mask = g->length == g->first ? g->first_mask : g->token_mask;
    g->m->op->sample(g->ids, g->positions, g->logits, mask, g->streams, g->sampling, g->B, g->m->c.lm.vocab);
}

/* One decoding step: reads the last tokens (g->ids at g->positions) and, if `sample`, samples the next ones. */
static inline void generator_step(Generator *g, bool sample) {
    const Ops *op = g->m->op;
    g->length++;
    const bool first = g->length == g->first;
    if (op->graph_launch(g, 4 * (uint64_t)g->B + 2 * first + sample)) return;
    model_decode_step(g->m, g->ids, g->positions, g->B, &g->cache, g->logits);
    if (sample) generator_sample(g);
    op->graph_end();
}

/* Appends one given token to every sequence (host ids [B]). Afterwards g->logits holds the logits of the next ones. */
static inline void generator_append(Generator *g, const int *ids) {
    g->m->op->upload(g->ids, ids, g->B * sizeof(int));
    generator_set_all(g, g->positions, g->length);
    generator_step(g, false);
}

/* Copies the logits of the next tokens to host fp32 [B, V]; waits for them. */
static inline void generator_logits(const Generator *g, float *host) {
    g->m->op->download(host, g->logits, (size_t)g->B * g->m->c.lm.vocab * sizeof(float));
}

/* Compacts the batch to the sequences kept[0 .. n-1] (increasing indices). */
static inline void generator_compact(Generator *g, const int *kept, int n) {
    const Ops *op = g->m->op;
    int *const arrays[] = {g->ids, g->positions, g->streams};
    for (int i = 0; i < n; i++) {
        if (kept[i] == i) continue;
        kv_cache_move(&g->cache, &g->m->c.lm, op, i, kept[i], 0, g->length);
        for (int k = 0; k < 3; k++) op->copy(arrays[k] + i, arrays[k] + kept[i], sizeof(int));
    }
    g->B = n;
}

/* ---- the loop ---- */

/* Takes the next token of a sequence; returns false to stop it, and for -1 it must: the model's numbers are not finite
 * (model_not_finite says why). */
typedef bool (*TokenReader)(void *context, int sequence, int id);

/* Writes the pixels u8 [height, width, 3] of another image. Returns the number of its sequence, which is its random stream too, or
 * -1: there is none. */
typedef int (*ImageSource)(void *context, uint8_t *pixels);

/* What is to be generated, and who reads it. */
typedef struct {
    int max_new_tokens;
    TokenReader reader;
    ImageSource source;  // of the images that take the slots of finished ones; NULL: there are none
    void *context;       // of reader and source
    const int *prefix;   // of each image's program
    int prefix_count;
    uint8_t *pixels;  // [height, width, 3] scratch for the source
} Generation;

/* The slots of a batch: what each of its sequences works on. Host arrays [max_B]. */
typedef struct {
    int *sequence;  // which sequence is in each slot; -1: none
    int *left;      // tokens that it may still have
    int *begin;     // the first step whose token is its own
    int running;
} Slots;

/* log softmax(logits)[id] of the sequence in slot b. */
static inline double generator_log_probability(const Generator *g, int b, int id) {
    const int V = g->m->c.lm.vocab;
    g->m->op->download(g->row, g->logits + (size_t)b * V, V * sizeof(float));
    double sum = 0, top = g->row[0];
    for (int i = 1; i < V; i++) top = g->row[i] > top ? g->row[i] : top;
    for (int i = 0; i < V; i++) sum += exp(g->row[i] - top);
    return id < 0 ? -INFINITY : g->row[id] - top - log(sum);
}

/* Encodes the source's next image into slot b and draws its first token. Returns that, or -2: there is no image. */
static inline int generator_refill(Generator *g, const Generation *s, Slots *p, int b, int started) {
    const Ops *op = g->m->op;
    const LmConfig *c = &g->m->c.lm;
    const size_t sequence = (size_t)c->kv_heads * g->cache.capacity * c->head_dim;
    const int number = s->source ? s->source(s->context, s->pixels) : -1;
    if (number < 0) return -2;
    for (int l = 0; l < c->layers; l++) {
        g->slot.keys[l] = g->cache.keys[l] + b * sequence;
        g->slot.values[l] = g->cache.values[l] + b * sequence;
    }
    g->slot.capacity = g->cache.capacity;
    float *logits = g->logits + (size_t)b * c->vocab;
    const int length = model_prefill(g->m, s->pixels, 1, s->prefix, s->prefix_count, &g->slot, logits);
    const int last = length - 1;
    int id;
    op->upload(g->positions + b, &last, sizeof(int));
    op->upload(g->streams + b, &number, sizeof(int));
    op->sample(g->ids + b, g->positions + b, logits, length == g->first ? g->first_mask : g->token_mask,
               g->streams + b, g->sampling, 1, c->vocab);
    op->download(&id, g->ids + b, sizeof(int));
    p->sequence[b] = number;
    p->left[b] = s->max_new_tokens;
    p->begin[b] = started;
    return id;
}

/* How sure a model is of a program: the geometric mean of the probabilities of its n tokens, the end included. NAN: of none. */
static inline double generator_confidence(double log_probability, int n) { return n > 0 ? exp(log_probability / n) : NAN; }

/* Gives a token to the reader. When the sequence in slot b ends, the next image takes the slot; without one, the slot
 * stays empty, at position 0, so that its further steps stay inside the cache. */
static inline void generator_give(Generator *g, const Generation *s, Slots *p, int b, int id, int started) {
    while (id != -2) {
        if (g->scored) g->log_probability = generator_log_probability(g, b, id);
        if (s->reader(s->context, p->sequence[b], id) && --p->left[b] > 0) return;
        id = generator_refill(g, s, p, b, started);
    }
    const int zero = 0;
    g->m->op->upload(g->positions + b, &zero, sizeof(int));
    p->sequence[b] = -1;
    p->running--;
}

/* Compacts the batch to the slots that are taken. */
static inline void generator_compact_slots(Generator *g, Slots *p) {
    int n = 0;
    for (int b = 0; b < g->B; b++) {
        if (p->sequence[b] < 0) continue;
        p->sequence[n] = p->sequence[b];
        p->left[n] = p->left[b];
        p->begin[n] = p->begin[b];
        g->host[n++] = b;
    }
    if (g->length > g->cache.capacity) g->length = g->cache.capacity;  // slots begin at different times
    generator_compact(g, g->host, n);
}

/* After generator_prefill of sequences 0 .. B-1: generates tokens until every sequence and those of the source have ended.
 * streams [B] numbers the sequences' random streams. A GPU is one step ahead of the reader. */
static inline void generator_run_all(Generator *g, const int *streams, const Generation *s) {
    const Ops *op = g->m->op;
    int *arrays = xcalloc(3 * (size_t)g->max_B, sizeof(int));
    Slots p = {arrays, arrays + g->max_B, arrays + 2 * g->max_B, g->B};
    int started = 0;  // steps queued on the device
    for (int b = 0; b < g->B; b++) p.sequence[b] = s->source ? streams[b] : b, p.left[b] = s->max_new_tokens;
    op->upload(g->streams, streams, g->B * sizeof(int));
    if (s->max_new_tokens < 1) p.running = 0;
    for (int step = 0; p.running; step++) {
        bool sparse = 2 * p.running <= g->B;
        if (sparse && started == step) {
            generator_compact_slots(g, &p);
            sparse = false;
        }
        const int ahead = sparse || op->host_memory || g->scored ? 0 : 1;
        for (; started <= step + ahead; started++) {
            if (started)
                generator_step(g, true);
            else
                generator_sample(g);
            op->download_async(started % OPS_DOWNLOADS, g->ids, g->B * sizeof(int));
        }
        const int *ids = op->download_wait(step % OPS_DOWNLOADS);
        for (int b = 0; b < g->B; b++)
            if (p.sequence[b] >= 0 && step >= p.begin[b]) generator_give(g, s, &p, b, ids[b], started);
    }
    free(arrays);
}

/* The same without a source: the reader gets the sequences' numbers at the prefill. */
static inline void generator_run(Generator *g, const int *streams, int max_new_tokens, TokenReader reader,
                                 void *context) {
    generator_run_all(g, streams,
                      &(Generation){.max_new_tokens = max_new_tokens, .reader = reader, .context = context});
}

#endif
