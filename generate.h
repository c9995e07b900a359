/* Writing texts: a batch of images decoded together with a key-value cache.
 *
 *   decoder_start   looks at the images and reads the prefix, which is the same for all
 *   decoder_write   chooses token after token of every text, until whoever reads them has enough of each
 *   decoder_step    appends given tokens instead, one to each text
 *
 * Everything that changes from token to token lies on the device: the last token and the position of every text. A
 * step is therefore the same calls with the same arguments, which a GPU gets as one (replay in kernels/ops.h), and
 * the next one is under way there while the host looks at the last one's tokens. What is written does not depend on
 * the other texts of the batch, but for the rounding of the products. */
#ifndef DECODE_H
#define DECODE_H

#include "model.h"

typedef struct {
    Model *m;
    int max_B, max_T;  // texts decoded together; positions the cache holds, of image and text
    Arena arena;
    floatX **kcache, **vcache;  // per layer [max_B, K, max_T, D]
    int *ids, *positions;       // device [max_B]: the last token of every text, and where it stands
    int *numbers;               // device [max_B]: what the random numbers of a text depend on
    float *logits;              // device [max_B, V]: of the next token
    uint8_t *token_mask;         // device [V]: not 0 where a token is never written
    Sampling sampling;
    int B, length;  // texts now; positions in the cache, the same number for each
    int *host;      // [max_B]
} Decoder;

static inline void decoder_plan_pass(Decoder *d) {
    const LmConfig *c = &d->m->c.lm;
    size_t cache = (size_t)d->max_B * (size_t)c->kv_heads * (size_t)d->max_T * (size_t)c->head_dim;
    for (int l = 0; l < c->layers; l++) {
        d->kcache[l] = arena_x(&d->arena, cache);
        d->vcache[l] = arena_x(&d->arena, cache);
    }
    d->ids = arena_int(&d->arena, (size_t)d->max_B);
    d->positions = arena_int(&d->arena, (size_t)d->max_B);
    d->numbers = arena_int(&d->arena, (size_t)d->max_B);
    d->logits = arena_f32(&d->arena, (size_t)d->max_B * (size_t)c->vocab);
    d->token_mask = (uint8_t *)arena_take(&d->arena, (size_t)c->vocab, 1);
}

/* Never written: padding rows of the vocabulary, and special tokens other than the end (the image token). */
static inline void decoder_forbid(const Decoder *d) {
    const Tokenizer *t = &d->m->tokenizer;
    size_t vocab = (size_t)d->m->c.lm.vocab;
    uint8_t *token_mask = (uint8_t *)xmalloc(vocab);
    for (int i = 0; i < (int)vocab; i++)
        token_mask[i] = i >= t->count || (i != t->end && (t->flags[i] & TOKEN_SPECIAL) != 0);
    d->m->op->upload(d->token_mask, token_mask, vocab);
    free(token_mask);
}

/* For up to B images at a time and max_text tokens each; the model must be planned for B images and at least the
 * prefix it will be given plus one token. Takes the likeliest tokens until decoder_sample says otherwise. */
static inline void decoder_open(Decoder *d, Model *m, int B, int max_text) {
    const int most = OPS_DOWNLOAD_BYTES / (int)sizeof(int);
    if (B > most) die("at most %d texts are written together; %d were asked for, take a smaller --batch", most, B);
    memset(d, 0, sizeof *d);
    d->m = m;
    d->max_B = B;
    d->max_T = model_image_tokens(m) + max_text;
    d->kcache = (floatX **)xcalloc((size_t)m->c.lm.layers, sizeof(floatX *));
    d->vcache = (floatX **)xcalloc((size_t)m->c.lm.layers, sizeof(floatX *));
    decoder_plan_pass(d);
    arena_allocate(&d->arena, m->op, "the key-value cache");
    decoder_plan_pass(d);
    d->host = (int *)xmalloc((size_t)B * sizeof(int));
    d->sampling.top_p = 1;
    d->sampling.end = m->tokenizer.end;
    d->sampling.first = model_image_tokens(m);
    decoder_forbid(d);
    params_settle(&m->params, m->op, GROUP_LM);
}

/* Memory for B texts: what model_plan takes for T text tokens, and decoder_open. Before model_plan. */
static inline size_t decoder_bytes(Model *m, int B, int T, int max_text) {
    const LmConfig *c = &m->c.lm;
    const size_t head = (size_t)(model_image_tokens(m) + max_text) * (size_t)c->head_dim * sizeof(floatX);
    m->max_B = B;
    m->max_T = T;
    model_plan_pass(m);
    const size_t activations = m->arena.used, cache = 2 * (size_t)c->layers * (size_t)c->kv_heads * head;
    m->arena.used = 0;
    return activations + (size_t)B * (cache + (size_t)c->vocab * sizeof(float));
}

/* B; or, where it may be less, as much less as leaves the machine three quarters of its memory, a GPU a twentieth of
 * what is free. Stops the program with a sentence when the memory is not there: a CPU's cannot be relied on to say
 * no. Before model_plan. */
static inline int decoder_fit(Model *m, int B, bool or_less, int T, int max_text) {
    const bool host = m->op->host_memory;
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    const size_t there = host ? machine : m->op->memory_free(), most = host ? there / 4 : there / 20 * 19;
    while (or_less && B > 1 && decoder_bytes(m, B, T, max_text) > most) B /= 2;
    const size_t bytes = decoder_bytes(m, B, T, max_text);
    if (bytes > there)
        die("%d text%s of up to %d tokens and %s %.1f MB of memory beside the model, and %s %.1f MB; %sfewer tokens "
            "or a smaller model need less",
            B, B == 1 ? "" : "s together", max_text, B == 1 ? "its image need" : "their images need",
            (double)bytes / 1e6, host ? "this machine has" : "the GPU has free", (double)there / 1e6,
            B == 1 ? "" : "a smaller --batch, ");
    return B;
}

/* How tokens are chosen from now on (Sampling in kernels/ops.h); the end may not be number `first` of a text. */
static inline void decoder_sample(Decoder *d, float temperature, float top_p, int top_k, uint64_t seed, int first) {
    d->sampling.temperature = temperature;
    d->sampling.top_p = top_p;
    d->sampling.top_k = top_k;
    d->sampling.seed = seed;
    d->sampling.first = model_image_tokens(d->m) + first;
    d->m->op->graph_free(d);
}

static inline void decoder_close(Decoder *d) {
    d->m->op->graph_free(d);
    arena_release(&d->arena, d->m->op);
    free(d->kcache);
    free(d->vcache);
    free(d->host);
}

/* The same number for every text. */
static inline void decoder_upload(const Decoder *d, int *to, int value) {
    for (int b = 0; b < d->B; b++) d->host[b] = value;
    d->m->op->upload(to, d->host, (size_t)d->B * sizeof(int));
}

/* Logits from m->picked, the last row of the stream of every text. */
static inline void decoder_read(const Decoder *d) {
    const Model *m = d->m;
    const LmConfig *c = &m->c.lm;
    m->op->rmsnorm_forward(m->hidden, NULL, m->picked, m->norm->value, (size_t)d->B, c->width, c->eps);
    m->op->linear_logits(d->logits, m->hidden, param_weight(m->head), (size_t)d->B);
}

/* Looks at B images (host u8 [B, S, S, 3]) and reads `prefix` (the same for all): d->logits are then of the next
 * token. */
static inline void decoder_start(Decoder *d, const uint8_t *pixels, int B, const int *prefix, int prefix_count) {
    Model *m = d->m;
    const LmConfig *c = &m->c.lm;
    int S = model_image_tokens(m) + prefix_count, T = prefix_count + 1;
    int *ids = (int *)xmalloc((size_t)B * (size_t)T * sizeof(int));
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) ids[b * T + t] = t < prefix_count ? prefix[t] : 0;
    model_layout(m, ids, B, T);
    free(ids);
    model_look(m, pixels, B);
    lm_start(m, B, S);
    for (int l = 0; l < c->layers; l++) {
        lm_block(m, l, B, S);
        m->op->cache_store(d->kcache[l], d->vcache[l], m->acts[l].qkv, lm_attention(m, B, S), 0, d->max_T);
        lm_next(m, l, (size_t)B * (size_t)S);
    }
    d->B = B;
    d->length = S;
    decoder_upload(d, d->positions, S - 1);
    size_t row = (size_t)c->width * sizeof(floatX), last = (size_t)(S - 1) * row;
    m->op->copy_rows(m->picked, row, (const char *)m->last + last, (size_t)S * row, row, (size_t)B);
    decoder_read(d);
}

static inline void decoder_choose(const Decoder *d) {
    d->m->op->sample(d->ids, d->positions, d->logits, d->token_mask, d->numbers, d->sampling, d->B, d->m->c.lm.vocab);
}

/* Reads the last tokens, d->ids at d->positions; d->logits are then of the next ones, and with `choose` these are
 * chosen. */
static inline void decoder_run(Decoder *d, bool choose) {
    Model *m = d->m;
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const size_t B = (size_t)d->B;
    d->length++;
    if (op->graph_launch(d, 2 * B + choose)) return;
    op->embedding_forward(m->acts[0].input, d->ids, m->embed->value, B, c->width);
    op->rmsnorm_forward(m->acts[0].norm1, NULL, m->acts[0].input, m->layer[0].norm1->value, B, c->width, c->eps);
    for (int l = 0; l < c->layers; l++) {
        LmActs *a = &m->acts[l];
        op->linear_forward(a->qkv, a->norm1, param_weight(m->layer[l].qkv), NULL, ACT_NONE, NULL, B);
        op->attention_decode(a->att, d->kcache[l], d->vcache[l], a->qkv, d->positions, lm_attention(m, d->B, 1),
                             d->max_T);
        lm_block_after_attention(m, l, B);
        lm_next(m, l, B);
    }
    op->copy(m->picked, m->last, B * (size_t)c->width * sizeof(floatX));
    decoder_read(d);
    if (choose) decoder_choose(d);
    op->graph_end();
}

/* Appends one token to every text (host ids [B]); d->logits are then of the next ones. */
static inline void decoder_step(Decoder *d, const int *ids) {
    d->m->op->upload(d->ids, ids, (size_t)d->B * sizeof(int));
    decoder_upload(d, d->positions, d->length);
    decoder_run(d, false);
}

/* The logits of the next tokens, to host [B, V]; waits for them. */
static inline void decoder_logits(const Decoder *d, float *host) {
    d->m->op->download(host, d->logits, (size_t)d->B * (size_t)d->m->c.lm.vocab * sizeof(float));
}

/* Goes on with the n texts in the places `kept` only, in increasing order: they move up. */
static inline void decoder_keep(Decoder *d, const int *kept, int n) {
    const Ops *op = d->m->op;
    const LmConfig *c = &d->m->c.lm;
    const size_t head = (size_t)d->max_T * (size_t)c->head_dim, text = head * (size_t)c->kv_heads;
    const size_t used = (size_t)d->length * (size_t)c->head_dim * sizeof(floatX);
    int *const arrays[] = {d->ids, d->positions, d->numbers};
    for (int i = 0; i < n; i++) {
        const size_t to = (size_t)i * text, from = (size_t)kept[i] * text, stride = head * sizeof(floatX);
        if (kept[i] == i) continue;
        for (int l = 0; l < c->layers; l++) {
            op->copy_rows(d->kcache[l] + to, stride, d->kcache[l] + from, stride, used, (size_t)c->kv_heads);
            op->copy_rows(d->vcache[l] + to, stride, d->vcache[l] + from, stride, used, (size_t)c->kv_heads);
        }
        for (int k = 0; k < 3; k++) op->copy(arrays[k] + i, arrays[k] + kept[i], sizeof(int));
    }
    d->B = n;
}

/* Takes the next token of text b of the batch; returns whether that text is to go on. */
typedef bool (*TokenReader)(void *context, int b, int id);

/* After decoder_start: gives every text's tokens, up to `room` of them, to `reader` as they come. numbers [B]: what a
 * text's random numbers depend on. A GPU is one step ahead of the reader; texts that are done are written on, unread,
 * until half of the batch is done and the others move up. */
static inline void decoder_write(Decoder *d, const int *numbers, int room, TokenReader reader, void *context) {
    const Ops *op = d->m->op;
    int *text = (int *)xmalloc((size_t)d->B * sizeof(int)), *kept = (int *)xmalloc((size_t)d->B * sizeof(int));
    int writing = d->B, asked = 0;
    for (int b = 0; b < d->B; b++) text[b] = b;  // in each place; -1: done
    op->upload(d->numbers, numbers, (size_t)d->B * sizeof(int));
    for (int read = 0; writing && read < room; read++) {
        bool sparse = 2 * writing <= d->B;
        if (sparse && asked == read) {
            for (int b = 0, n = 0; b < d->B; b++)
                if (text[b] >= 0) text[n] = text[b], kept[n++] = b;
            decoder_keep(d, kept, writing);
            sparse = false;
        }
        for (int ahead = sparse || op->host_memory ? 0 : 1; asked < room && asked <= read + ahead; asked++) {
            if (asked)
                decoder_run(d, true);
            else
                decoder_choose(d);
            op->download_async(asked % OPS_DOWNLOADS, d->ids, (size_t)d->B * sizeof(int));
        }
        const int *ids = (const int *)op->download_wait(read % OPS_DOWNLOADS);
        for (int b = 0; b < d->B; b++)
            if (text[b] >= 0 && !reader(context, text[b], ids[b])) text[b] = -1, writing--;
    }
    free(text);
    free(kept);
}

#endif
