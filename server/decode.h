/* Continuous batching over requests: programs of one model are written together, and a request joins and leaves between two
 * tokens. generate.h's loop knows all its images before it begins; here they come while it runs, and each has its own
 * temperature, seed and limit. The steps are the same: model_prefill, model_decode_step, sample.
 *
 * A program is the one that infer writes for the image alone, bit for bit on a CPU: an image is encoded alone, and a matmul's
 * row does not depend on the others as long as one kernel takes them all (model_extend), so larger batches are decoded in
 * groups of so many. A GPU takes all at once, and agrees up to rounding. */
#ifndef SERVER_DECODE_H
#define SERVER_DECODE_H

#include "../generate/speculate.h"
#include "chat.h"
#include "metrics.h"

/* The cache from slot b on. */
static inline const KVCache *decode_cache(Instance *i, int b) {
    Generator *g = &i->generator;
    const LmConfig *c = &i->model.c.lm;
    const size_t sequence = (size_t)c->kv_heads * g->cache.capacity * c->head_dim;
    for (int l = 0; l < c->layers; l++) {
        g->slot.keys[l] = g->cache.keys[l] + b * sequence;
        g->slot.values[l] = g->cache.values[l] + b * sequence;
    }
    g->slot.capacity = g->cache.capacity;
    return &g->slot;
}

/* Draws the next tokens of slots b .. b+n-1, which have the same sampling. */
static inline void decode_sample(Instance *i, int b, int n, const uint8_t *mask) {
    Generator *g = &i->generator;
    const int V = i->model.c.lm.vocab;
    i->model.op->sample(g->ids + b, g->positions + b, g->logits + (size_t)b * V, mask, g->streams + b,
                        i->slots[b]->sampling, n, V);
}

/* ---- beginning and ending ---- */

/* Sends what the last token has added to the text. */
static inline void decode_stream(Job *j, const char *bytes, size_t n) {
    if (!n) return;
    const bool chat = j->route->request == FOR_CHAT;
    char *data = chat ? chat_chunk(j, bytes, n, NULL) : token_event(bytes, n);
    job_event(j, chat ? NULL : "token", data);
    free(data);
}

/* Begins the text of a job's program, and the stream of /v1/convert. */
static inline void decode_begin_program(Instance *i, Job *j) {
    if (j->fields.stream && j->route->kind == ROUTE_CONVERT) {
        char *data = begin_event(i);
        job_event(j, "begin", data);
        free(data);
    }
    j->program.log_probability = 0;
    j->generate_seconds = seconds_now();
    program_begin_text(&j->program, &i->writer, i->prefix.ids, i->prefix.count);
}

/* The model's numbers are not finite: the weights are damaged, or this image alone has brought it about. */
static inline void decode_fail_not_finite(Instance *i, Job *j) {
    Error why;
    model_not_finite(&i->model, &why);
    job_fail(j, 500, "no program can be written: %s", why.text);
}

/* The program is complete: a drawer or the writer goes on with it. */
static inline void decode_end_program(Instance *i, Job *j, Outlet *outlet) {
    Program *p = &j->program;
    const size_t sent = i->task == RENDER_FORMULA ? 0 : p->bytes;
    j->generate_seconds = seconds_now() - j->generate_seconds;
    p->confidence = generator_confidence(p->log_probability, p->tokens - i->prefix.count + p->ended);
    program_end_text(p, &i->writer, i->prefix.count);
    p->memory = NULL;
    if (j->fields.stream && !j->alone && p->bytes > sent + 1) decode_stream(j, p->text + sent, p->bytes - sent - 1);
    outlet_push(outlet, j);
}

/* Takes the next token of a job. Returns false where the program ends with it, or fails. */
static inline bool decode_take(Instance *i, Job *j, int b, int id) {
    Program *p = &j->program;
    const size_t before = p->bytes;
    if (id < 0) return false;
    p->log_probability += generator_log_probability(&i->generator, b, id);
    const bool more = program_add(p, &i->writer, id) && p->tokens < j->max_tokens;
    fflush(p->memory);
    if (j->fields.stream && i->task != RENDER_FORMULA)  // whose spaces change at the end
        decode_stream(j, p->text + before, p->bytes - before);
    return more;
}

/* Empties slot b: the last one moves there. */
static inline void decode_leave(Instance *i, int b) {
    Generator *g = &i->generator;
    const Ops *op = i->model.op;
    const int last = --i->running;
    if (b == last) return;
    const Job *moved = i->slots[last];
    int *const arrays[] = {g->ids, g->positions, g->streams};
    kv_cache_move(&g->cache, &i->model.c.lm, op, b, last, 0,
                  model_prompt(&i->model) + moved->program.ids.count);
    for (int k = 0; k < 3; k++) op->copy(arrays[k] + b, arrays[k] + last, sizeof(int));
    i->slots[b] = i->slots[last];
}

/* What follows a token of slot b: it goes on, or its program is handed on. */
static inline void decode_give(Instance *i, int b, int id, Outlet *outlet) {
    Job *j = i->slots[b];
    const bool left = job_cancelled(j) != GOES_ON;
    if (!left && decode_take(i, j, b, id)) return;
    decode_leave(i, b);
    if (!left && id >= 0) {
        decode_end_program(i, j, outlet);
        return;
    }
    if (!job_left(j)) decode_fail_not_finite(i, j);
    outlet_push(outlet, j);
}

/* A newcomer takes the next free slot: its image is encoded, and its first token drawn. */
static inline void decode_admit(Instance *i, Job *j, Outlet *outlet, Metrics *metrics) {
    Generator *g = &i->generator;
    const Ops *op = i->model.op;
    const int b = i->running++, stream = 0, V = i->model.c.lm.vocab;
    int id;
    i->slots[b] = j;
    decode_begin_program(i, j);
    const int length = model_prefill(&i->model, j->pixels, 1, i->prefix.ids, i->prefix.count, decode_cache(i, b),
                                     g->logits + (size_t)b * V);
    const int last = length - 1;
    op->upload(g->positions + b, &last, sizeof(int));
    op->upload(g->streams + b, &stream, sizeof(int));
    decode_sample(i, b, 1, length == g->first ? g->first_mask : g->token_mask);
    op->download(&id, g->ids + b, sizeof(int));
    metrics_add(&metrics->prefills, 1);
    metrics_add(&metrics->tokens, 1);
    decode_give(i, b, id, outlet);
}

/* ---- a step ---- */

static inline bool decode_same_sampling(const Instance *i) {
    for (int b = 1; b < i->running; b++) {
        const Sampling *s = &i->slots[0]->sampling, *t = &i->slots[b]->sampling;
        if (s->temperature != t->temperature || s->top_p != t->top_p || s->top_k != t->top_k || s->seed != t->seed)
            return false;
    }
    return true;
}

/* One more token for every program of the instance. */
static inline void decode_step(Instance *i, Outlet *outlet, Metrics *metrics) {
    Generator *g = &i->generator;
    const Ops *op = i->model.op;
    const int B = i->running, V = i->model.c.lm.vocab, rows = op->host_memory ? SPECULATE_ROWS : B;
    if (B == 0) return;
    if (op->host_memory || !op->graph_launch(g, (uint64_t)1 << 40 | (uint64_t)B)) {  // generator_step's are below
        for (int b = 0; b < B; b += rows)
            model_decode_step(&i->model, g->ids + b, g->positions + b, B - b < rows ? B - b : rows,
                              decode_cache(i, b), g->logits + (size_t)b * V);
        if (!op->host_memory) op->graph_end();
    }
    if (decode_same_sampling(i))
        decode_sample(i, 0, B, g->token_mask);
    else
        for (int b = 0; b < B; b++) decode_sample(i, b, 1, g->token_mask);
    op->download(g->host, g->ids, B * sizeof(int));
    metrics_add(&metrics->tokens, (uint64_t)B);
    metrics_add(&metrics->rows, (uint64_t)B);
    metrics_add(&metrics->steps, 1);
    for (int b = B - 1; b >= 0; b--) decode_give(i, b, g->host[b], outlet);  // backwards: decode_leave moves the last
}

#endif
