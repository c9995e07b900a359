/* Speculative decoding (generate/speculate.h, generate/rejection.h).
 *
 *   test_generate [DEVICE]      default: cpu; from the project's folder, because it reads dev/starter
 *
 * The rule's tokens have the target's distribution (chi-square, against the exact numbers; and a wrong rule is seen). A text
 * with a draft is the target's alone, token for token, where tokens are not drawn, and has the same distribution where they
 * are. Limits, masks and damaged drafts change nothing. Ends with "N passed, M failed". */
#include "checks.h"

#include "../lib/program.h"

#include "../dataloader.h"
#include "../generate/speculate.h"
#include "../lib/threads.h"

#ifdef __SANITIZE_ADDRESS__
enum { SLOW = 1 };
#else
enum { SLOW = 0 };
#endif

/* Four standard deviations above the mean of chi-square with this many degrees of freedom, and a bit; the seeds are fixed. */
static double chi_square_bound(int freedom) { return freedom + 4 * sqrt(2.0 * freedom) + 4; }

/* ---- the rule alone ---- */

enum { TOKENS = 12, DRAWS = 60000 };

/* chi-square of DRAWS tokens against p. broken: a rejected token is drawn from p, not from the residual. */
static double rule_chi_square(const Distribution *p, const Distribution *q, uint64_t seed, bool broken,
                              int *freedom) {
    const Sampling own = {.seed = seed}, drafts = {.seed = seed ^ REJECTION_SEED_DRAFT};
    int counts[TOKENS] = {0};
    for (int i = 0; i < DRAWS; i++) {
        int id = distribution_draw(q, &drafts, 7, i);
        if (!rejection_accepts(p, q, id, seed, 7, i))
            id = broken ? distribution_draw(p, &own, 7, i) : rejection_residual(p, q, seed, 7, i, TOKENS);
        counts[id]++;
    }
    double sum = 0;
    *freedom = -1;
    for (int i = 0; i < TOKENS; i++) {
        const double expected = DRAWS * (double)p->weights[i] / (double)p->total;
        if (p->weights[i] == 0) {
            check(counts[i] == 0, "token %d, which the target never draws, came %d times", i, counts[i]);
            continue;
        }
        sum += (counts[i] - expected) * (counts[i] - expected) / expected;
        ++*freedom;
    }
    return sum;
}

static void test_rule(void) {
    const Sampling ways[] = {{.temperature = 1, .top_p = 1},
                             {.temperature = 0.5f, .top_p = 1},
                             {.temperature = 1, .top_p = 1, .top_k = 5},
                             {.temperature = 1.5f, .top_p = 0.8f}};
    const uint8_t target_mask[TOKENS] = {[3] = 1}, draft_mask[TOKENS] = {[3] = 1, [5] = 1};
    Distribution p, q;
    Random random;
    random_seed(&random, 5);
    distribution_open(&p, TOKENS);
    distribution_open(&q, TOKENS);
    for (int way = 0; way < 4; way++) {
        float logits[2][TOKENS];
        int freedom;
        for (int i = 0; i < 2 * TOKENS; i++) logits[i / TOKENS][i % TOKENS] = random_normal(&random);
        distribution_read(&p, logits[0], target_mask, &ways[way], TOKENS);
        distribution_read(&q, logits[1], draft_mask, &ways[way], TOKENS);
        const double right = rule_chi_square(&p, &q, 100 + way, false, &freedom);
        const double wrong = rule_chi_square(&p, &q, 100 + way, true, &freedom);
        check(right < chi_square_bound(freedom), "rule %d: chi-square %.1f with %d degrees of freedom", way, right,
              freedom);
        check(wrong > 2 * chi_square_bound(freedom), "rule %d: a wrong residual is not seen: chi-square %.1f with %d",
              way, wrong, freedom);
    }
    distribution_close(&p);
    distribution_close(&q);
}

/* The host draws what the device draws. */
static void test_same_draws(const Ops *op) {
    enum { V = 300, ROWS = 40 };
    Random random;
    random_seed(&random, 9);
    float *host = (float *)xmalloc(V * ROWS * sizeof(float));
    int streams[ROWS], positions[ROWS], ids[ROWS], wrong = 0;
    uint8_t mask[V] = {0};
    for (int i = 0; i < V * ROWS; i++) host[i] = 2 * random_normal(&random);
    for (int i = 0; i < V; i += 7) mask[i] = 1;
    for (int b = 0; b < ROWS; b++) streams[b] = 3 * b, positions[b] = b;
    float *logits = (float *)op->alloc(V * ROWS * sizeof(float));
    int *device = (int *)op->alloc(3 * ROWS * sizeof(int));
    uint8_t *device_mask = (uint8_t *)op->alloc(V);
    if (!logits || !device || !device_mask) die("out of memory");
    op->upload(logits, host, V * ROWS * sizeof(float));
    op->upload(device_mask, mask, V);
    Distribution p;
    distribution_open(&p, V);
    for (int way = 0; way < 4; way++) {
        const Sampling s = {way ? 0.7f : 0, way == 2 ? 0.6f : 1, way == 3 ? 9 : 0, 77};
        op->upload(device, streams, sizeof streams);
        op->upload(device + ROWS, positions, sizeof positions);
        op->sample(device + 2 * ROWS, device + ROWS, logits, device_mask, device, s, ROWS, V);
        op->download(ids, device + 2 * ROWS, sizeof ids);
        for (int b = 0; b < ROWS; b++) {
            distribution_read(&p, host + b * V, mask, &s, V);
            wrong += distribution_draw(&p, &s, streams[b], positions[b] + 1) != ids[b];
        }
    }
    check(wrong == 0, "%d of %d tokens are not those that the device draws", wrong, 4 * ROWS);
    distribution_close(&p);
    op->release(logits), op->release(device), op->release(device_mask);
    free(host);
}

/* ---- two models ---- */

enum { MOST = 200 };

typedef struct {
    Model target, draft;
    Generator g, d;
    Speculator s;
    uint8_t *pixels, *draft_pixels;
} Two;

typedef struct {
    int ids[MOST], count, stop;  // the reader stops after `stop` tokens, or at an end token if that is 0
    int sequence, wrong;
    const Tokenizer *tokenizer;
} Text;

static bool read_text(void *context, int sequence, int id) {
    Text *t = (Text *)context;
    t->wrong += sequence != t->sequence;
    t->ids[t->count++] = id;
    return id >= 0 && (t->stop ? t->count < t->stop : !tokenizer_ends(t->tokenizer, id));
}

/* Up to max_tokens for the target and draft_tokens for the draft, which may be fewer. */
static void two_open(Two *t, int max_tokens, int draft_tokens) {
    model_plan(&t->target, 1, SPECULATE_ROWS);
    model_plan(&t->draft, 1, SPECULATE_ROWS);
    generator_open(&t->g, &t->target, 1, max_tokens);
    generator_open(&t->d, &t->draft, 1, draft_tokens);
    speculator_open(&t->s, &t->g, &t->d);
}

static void two_close(Two *t) {
    speculator_close(&t->s);
    generator_close(&t->g);
    generator_close(&t->d);
    model_close(&t->target);
    model_close(&t->draft);
    free(t->pixels);
    free(t->draft_pixels);
}

static void alone(Two *t, Text *text, int stream, int most, const int *prefix, int prefix_count) {
    *text = (Text){.tokenizer = &t->target.tokenizer, .stop = text->stop};
    generator_prefill(&t->g, t->pixels, 1, prefix, prefix_count);
    generator_run(&t->g, &stream, most, read_text, text);
}

static void together(Two *t, Text *text, int stream, int most, const int *prefix, int prefix_count) {
    *text = (Text){.tokenizer = &t->target.tokenizer, .stop = text->stop, .sequence = 5};
    generator_prefill(&t->g, t->pixels, 1, prefix, prefix_count);
    generator_prefill(&t->d, t->draft_pixels, 1, prefix, prefix_count);
    speculator_run(&t->s, 5, stream, most, read_text, text);
    check(t->d.length <= t->d.cache.capacity, "%d positions in the draft's cache, which has %d", t->d.length,
          t->d.cache.capacity);
    check(text->wrong == 0, "the reader got another sequence's number");
}

/* Texts with the draft and alone must be the same. Returns their length. */
static int compare(Two *t, const char *what, int stream, int most, int stop, const int *prefix, int prefix_count) {
    static Text a, b;
    a.stop = b.stop = stop;
    alone(t, &a, stream, most, prefix, prefix_count);
    together(t, &b, stream, most, prefix, prefix_count);
    check(a.count == b.count && !memcmp(a.ids, b.ids, a.count * sizeof(int)),
          "%s, text %d: %d tokens with the draft, %d alone, or others", what, stream, b.count, a.count);
    return a.count;
}

/* ---- the shipped pair ---- */

/* In fp32 a row of the target's pass is the same bits, however many rows there are; on the CPU in bf16 too. */
static bool rows_are_same(const Ops *op) { return op->host_memory || sizeof(floatX) == sizeof(float); }

/* model_extend over n tokens against as many steps over one. */
static void test_extend(Two *t) {
    const int V = t->target.c.lm.vocab, P = model_prompt(&t->target);
    const int tokens[SPECULATE_ROWS] = {40, 41, 42, 43, 44, 45, 46, 47};
    float *many = (float *)xmalloc(SPECULATE_ROWS * V * sizeof(float)), *one = (float *)xmalloc(V * sizeof(float));
    generator_prefill(&t->g, t->pixels, 1, NULL, 0);
    for (int n = 2; n <= t->s.rows; n += 2) {
        int wrong = 0;
        speculator_extend(&t->s, &t->g, tokens, n, P, NULL);
        t->target.op->download(many, t->s.logits, (size_t)n * V * sizeof(float));
        t->g.length = P;  // the same positions again
        for (int i = 0; i < n; i++) {
            generator_append(&t->g, &tokens[i]);
            generator_logits(&t->g, one);
            wrong += memcmp(one, many + (size_t)i * V, V * sizeof(float)) != 0;
        }
        check(wrong == 0 || !rows_are_same(t->target.op), "%d of %d rows read together are not those read one by one",
              wrong, n);
    }
    free(many);
    free(one);
}

static void next_pixels(Two *t, Loader *loader) {
    Error err;
    const Batch *b = loader_next(loader, &err);
    const size_t side = t->target.c.vision.image_size;
    if (!b) die("too few images: %s", err.text);
    memcpy(t->pixels, b->pixels[0], side * side * 3);
    memcpy(t->draft_pixels, b->pixels[0], side * side * 3);
}

static void test_starter(const Ops *op) {
    static Two t;
    Error err;
    Dataset data;
    Loader loader;
    if (model_open(&t.target, op, "dev/starter/teacher.safetensors", "", &err) ||
        model_open(&t.draft, op, "dev/starter/student.safetensors", "", &err) ||
        dataset_open(&data, "dev/starter/test.bin", &err) || speculator_check(&t.target, &t.draft, &err))
        die("%s", err.text);
    const int side = t.target.c.vision.image_size, most = op->host_memory ? 190 : 8;
    const int images = op->host_memory ? (SLOW ? 3 : 12) : 1;
    const LoaderConfig c = loader_config_for(1, 190, image_square(side), t.target.tokenizer.count, (ImageSize){0}, 0);
    if (loader_start(&loader, &data, c, &err)) die("%s", err.text);
    t.pixels = (uint8_t *)xmalloc((size_t)side * side * 3);
    t.draft_pixels = (uint8_t *)xmalloc((size_t)side * side * 3);
    two_open(&t, 190, 190);
    for (int i = 0; i < images; i++) {
        next_pixels(&t, &loader);
        if (i == 0) test_extend(&t);
        t.s.confidence = i % 2 ? SPECULATE_CONFIDENCE : 0;
        t.s.proposals = i % 3 ? t.s.rows - 1 : 2;
        if (rows_are_same(op)) compare(&t, "the starter's pair", i, most, 0, NULL, 0);
    }
    /* They were 123 passes, and 171 with a draft that took rejected tokens for the text. */
    check(t.s.accepted > t.s.offered / 2 && (images < 12 || t.s.passes < 145),
          "%ld of %ld proposals were kept in %ld passes; the student is not so bad a draft", t.s.accepted,
          t.s.offered, t.s.passes);
    loader_stop(&loader);
    dataset_close(&data);
    two_close(&t);
}

/* ---- tiny random models ---- */

#define SHAPE                                                                                                       \
    "tiny,connector.concat=1,vision.patch=8,vision.layers=1,vision.width=16,vision.heads=1,vision.mlp=16,lm.width=" \
    "32,lm.ffn=32,"                                                                                                 \
    "lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.layers=1"

/* Multiplies a parameter and adds random numbers to it. */
static void change(const Model *m, const Param *x, float factor, float noise, uint64_t seed) {
    Random random;
    floatX *host = (floatX *)xmalloc(x->n * sizeof(floatX));
    random_seed(&random, seed);
    m->op->download(host, x->value, x->n * sizeof(floatX));
    for (size_t i = 0; i < x->n; i++) host[i] = to_x(factor * from_x(host[i]) + noise * random_normal(&random));
    m->op->upload(x->value, host, x->n * sizeof(floatX));
    free(host);
}

static uint8_t *random_pixels(const Model *m) {
    const size_t n = model_pixels(m);
    uint8_t *pixels = (uint8_t *)xmalloc(n);
    Random random;
    random_seed(&random, 3);
    for (size_t i = 0; i < n; i++) pixels[i] = (uint8_t)(128 + 40 * random_normal(&random));
    return pixels;
}

/* A target with clear preferences, and a draft that has another padding of the vocabulary and, up to noise, the same decoder. Its
 * images may have another size. */
static void tiny_open(Two *t, const Ops *op, int draft_side, float noise, int max_tokens, int draft_tokens) {
    const char *tokenizer = "dev/starter/tokenizer.safetensors";
    char shape[512];
    Error err;
    snprintf(shape, sizeof shape, SHAPE ",lm.vocab=544,vision.image_size=%d", draft_side);
    *t = (Two){0};
    if (model_create(&t->target, op, SHAPE ",vision.image_size=16", tokenizer, 1, &err) ||
        model_create(&t->draft, op, shape, tokenizer, 1, &err) || speculator_check(&t->target, &t->draft, &err))
        die("%s", err.text);
    change(&t->target, t->target.lm_head, 20, 0, 1);
    if (t->target.embed_tokens != t->target.lm_head) change(&t->target, t->target.embed_tokens, 20, 0, 1);
    const size_t row = t->target.c.lm.hidden_size, n = t->target.c.lm.vocab * row * sizeof(floatX);
    op->copy(t->draft.lm_head->value, t->target.lm_head->value, n);
    op->copy(t->draft.embed_tokens->value, t->target.embed_tokens->value, n);
    for (int i = 0; i < t->draft.params.count; i++) {
        const Param *x = &t->draft.params.list[i], *y = &t->target.params.list[i];
        if (x->group == GROUP_LM && x->n == y->n) op->copy(x->value, y->value, x->n * sizeof(floatX));
    }
    change(&t->draft, t->draft.lm_head, 1, noise, 2);
    t->pixels = random_pixels(&t->target);
    t->draft_pixels = random_pixels(&t->draft);
    two_open(t, max_tokens, draft_tokens);
    t->s.confidence = 0;
}

/* Lengths, caches that end, prefixes, the first token that may end a text, readers that stop. */
static void test_limits(const Ops *op) {
    const int prefix[] = {50, 51, 52};
    Two t;
    if (!rows_are_same(op)) return;
    tiny_open(&t, op, 32, 0.1f, 18, 10);  // the draft's cache ends first
    for (int most = op->host_memory ? 1 : 18; most <= 18; most++) {
        const int n = compare(&t, "a limit", 0, most, MOST, NULL, 0);
        check(n == most, "%d tokens, %d were asked for", n, most);
    }
    for (int stop = 1; stop < 12; stop += op->host_memory ? 2 : 9)
        compare(&t, "a reader that stops", 0, 18, stop, NULL, 0);
    for (int n = 1; n <= 3; n++) compare(&t, "a prefix", 0, 18 - n, MOST, prefix, n);
    for (int first = 0; first < 6; first += 2) {
        generator_set_sampling(&t.g, 0, 1, 0, 1, first);
        compare(&t, "a position where the text begins", 0, 10, 0, NULL, 0);
    }
    check(t.s.accepted > 0 && t.s.accepted < t.s.offered, "%ld of %ld proposals were kept: nothing is tested",
          t.s.accepted, t.s.offered);
    two_close(&t);
}

/* Opens the generators again, which have read the tokenizers. */
static void two_reopen(Two *t, int max_tokens) {
    speculator_close(&t->s);
    generator_close(&t->g);
    generator_close(&t->d);
    generator_open(&t->g, &t->target, 1, max_tokens);
    generator_open(&t->d, &t->draft, 1, max_tokens);
    speculator_open(&t->s, &t->g, &t->d);
    t->s.confidence = 0;
}

/* A token that the target likes best becomes a special one, which is never allowed; then the end token, which may stand
 * anywhere but at one place. */
static void test_masks(const Ops *op) {
    enum { AT = 3 };
    static Text text;
    Two t;
    tiny_open(&t, op, 16, 0, 12, 12);  // a draft that is always right, so that a pass takes many tokens
    const Tokenizer own = t.target.tokenizer;
    uint8_t *flags = (uint8_t *)xcalloc(own.count, 1);
    text.stop = MOST;
    alone(&t, &text, 0, 12, NULL, 0);
    const int liked = text.ids[AT];
    flags[liked] = TOKEN_SPECIAL;
    t.target.tokenizer.flags = t.draft.tokenizer.flags = flags;
    two_reopen(&t, 12);
    for (int temperature = 0; temperature < 2; temperature++) {
        generator_set_sampling(&t.g, (float)temperature, 1, 0, 1, 0);
        together(&t, &text, 0, 12, NULL, 0);
        int found = 0;
        for (int i = 0; i < text.count; i++) found += text.ids[i] == liked || text.ids[i] >= own.count;
        check(text.count == 12 && found == 0, "temperature %d: %d of %d tokens are masked ones", temperature, found,
              text.count);
    }
    t.target.tokenizer.flags = t.draft.tokenizer.flags = own.flags;
    t.target.tokenizer.end = t.draft.tokenizer.end = liked;
    two_reopen(&t, 12);
    for (int i = 0; i < 2; i++) {  // the second as good as greedy, but drawn
        generator_set_sampling(&t.g, i ? 1e-3f : 0, 1, 0, 1, AT);
        text.stop = AT + 2;
        together(&t, &text, 0, 12, NULL, 0);
        check(text.count == AT + 2 && text.ids[AT] != liked, "the end token where it may not stand: %d tokens",
              text.count);
        if (rows_are_same(op)) compare(&t, "an end token", 0, 12, 0, NULL, 0);
    }
    t.target.tokenizer.end = t.draft.tokenizer.end = own.end;
    free(flags);
    two_close(&t);
}

static void put_nan(const Model *m) {
    const floatX nan = to_x(NAN);
    m->op->upload(m->lm_head->value, &nan, sizeof nan);
}

/* A draft that computes NaN changes nothing; a target that does gives -1. */
static void test_damaged(const Ops *op) {
    static Text text;
    Two t;
    tiny_open(&t, op, 32, 0.1f, 8, 8);
    put_nan(&t.draft);
    for (int temperature = 0; temperature < 2; temperature++) {
        generator_set_sampling(&t.g, (float)temperature, 1, 0, 1, 0);
        compare(&t, "a damaged draft", 0, 8, MOST, NULL, 0);
    }
    check(t.s.offered == 0, "a damaged draft proposed %ld tokens", t.s.offered);
    two_close(&t);
    tiny_open(&t, op, 32, 0.1f, 8, 8);
    put_nan(&t.target);
    together(&t, &text, 0, 8, NULL, 0);
    check(text.count == 1 && text.ids[0] == -1, "a damaged target gave %d tokens, the first %d", text.count,
          text.ids[0]);
    two_close(&t);
}

/* ---- the distribution of whole texts ---- */

enum { LENGTH = 4, KEPT = 3, CLASSES = 1 << 12 };

/* A class of texts: a hash of the tokens. */
static int class_of(const Text *t) {
    uint64_t x = 0;
    for (int i = 0; i < t->count; i++) x = (x ^ (uint64_t)t->ids[i]) + 1, x = random_splitmix(&x);
    return (int)(x % CLASSES);
}

/* N texts with a draft against N without, by chi-square of the two samples; classes with few texts are one. */
static void test_distribution(const Ops *op, float temperature, float top_p, int top_k) {
    static int counts[2][CLASSES];
    static Text text;
    const int N = SLOW ? 400 : 3000;
    Two t;
    int freedom = -1, rest[2] = {0};
    double sum = 0;
    memset(counts, 0, sizeof counts);
    tiny_open(&t, op, 16, 0.8f, LENGTH, LENGTH);
    generator_set_sampling(&t.g, temperature, top_p, top_k, 11, 0);
    for (int i = 0; i < N; i++) {
        text.stop = MOST;
        together(&t, &text, i, LENGTH, NULL, 0);
        counts[0][class_of(&text)]++;
        alone(&t, &text, N + i, LENGTH, NULL, 0);
        counts[1][class_of(&text)]++;
    }
    for (int i = 0; i <= CLASSES; i++) {
        const int a = i < CLASSES ? counts[0][i] : rest[0], b = i < CLASSES ? counts[1][i] : rest[1];
        if (i < CLASSES && a + b < 20) {
            rest[0] += a, rest[1] += b;
        } else if (a + b) {
            sum += (double)(a - b) * (a - b) / (a + b);
            freedom++;
        }
    }
    check(freedom >= 3 && sum < chi_square_bound(freedom),
          "temperature %g, top-p %g, top-k %d: chi-square %.1f with %d", (double)temperature, (double)top_p, top_k,
          sum, freedom);
    check(t.s.accepted > t.s.offered / 10 && t.s.accepted < t.s.offered / 10 * 9,
          "%ld of %ld proposals were kept: too few or too many for this test", t.s.accepted, t.s.offered);
    two_close(&t);
}

/* The same seed gives the same text, whatever was generated before; another stream another one. */
static void test_seed(const Ops *op) {
    static Text first, again, other;
    Two t;
    tiny_open(&t, op, 32, 0.5f, 12, 12);
    generator_set_sampling(&t.g, 1, 1, 0, 21, 0);
    first.stop = again.stop = other.stop = MOST;
    together(&t, &first, 1, 12, NULL, 0);
    together(&t, &other, 2, 12, NULL, 0);
    together(&t, &again, 1, 12, NULL, 0);
    check(!memcmp(first.ids, again.ids, sizeof first.ids), "the same seed gave another text");
    check(memcmp(first.ids, other.ids, sizeof first.ids) != 0, "another stream gave the same text");
    two_close(&t);
}

/* ---- tokenizers ---- */

static void refuses(const Two *t, const char *word) {
    Error err = {{0}};
    const bool refused = speculator_check(&t->target, &t->draft, &err) != 0;
    check(refused && strstr(err.text, word), "a draft with another tokenizer: \"%s\", expected \"%s\"",
          refused ? err.text : "taken", word);
}

static void test_tokenizers(const Ops *op) {
    Two t;
    tiny_open(&t, op, 32, 0, 10, 10);
    Tokenizer *k = &t.draft.tokenizer;
    const Tokenizer own = *k;
    const int n = own.count;
    uint8_t *bytes = (uint8_t *)xmalloc(own.offsets[n]), *flags = (uint8_t *)xmalloc(n);
    memcpy(bytes, own.bytes, own.offsets[n]);
    memcpy(flags, own.flags, n);
    k->count--, refuses(&t, "needs the same tokenizer"), *k = own;
    bytes[own.offsets[n - 1]] ^= 1;
    k->bytes = bytes, refuses(&t, "token 511 of the draft"), *k = own;
    flags[200] ^= TOKEN_SPECIAL;
    k->flags = flags, refuses(&t, "token 200 is a special token"), *k = own;
    k->end = 300, refuses(&t, "special token of only one"), *k = own;
    k->begin = 7, refuses(&t, "do not begin"), *k = own;
    free(bytes);
    free(flags);
    two_close(&t);
}

int main(int argc, char **argv) {
    program_begin(argv);
    threads_wait_politely(argv);
    Error err;
    const Ops *op = ops_open(argc > 1 ? argv[1] : "cpu", &err);
    if (!op) die("%s", err.text);
    threads_use(1);  // the models are small: on a busy machine, threads would wait for each other for most of the time
    test_rule();
    test_same_draws(op);
    test_tokenizers(op);
    test_limits(op);
    test_masks(op);
    test_damaged(op);
    test_seed(op);
    if (op->host_memory) {  // a GPU draws the same, but an emulated one is slow
        test_distribution(op, 1, 1, KEPT);
        test_distribution(op, 1, 0.9f, 0);
    }
    test_starter(op);
    return checks_end();
}
