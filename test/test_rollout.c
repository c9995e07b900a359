/* Rollouts (train/rollout.h): the student's own samples against what its forward pass says.
 *
 *   test_rollout [DEVICE]      default: cpu; on a GPU a smaller model. From the project's folder: it reads dev/starter
 *
 * Every token is drawn again from the logits of a forward pass over the finished sample, so that the KV cache, the copies for
 * several samples of an image, the random streams, the masks and the begin token are checked by a pass that has none of them. A
 * sample does not depend on the batch that it was drawn in; limits cut; changed weights are seen at once. Ends with "N passed, M failed". */
#include "checks.h"

#include "../lib/program.h"

#include "../dataloader.h"
#include "../generate/rejection.h"
#include "../train/rollout.h"

/* In bf16 a forward pass and decoding round differently, so that some draws fall to a neighbour. */
#ifdef PRECISION_FP32
static const double SAME = 0.995;
#else
static const double SAME = 0.9;
#endif

enum { IMAGES = 5, SAMPLES = 3, LIMIT = 40, AT_ONCE = 7 };
#define TINY                                                                                                      \
    "tiny,connector.concat=1,vision.image_size=16,vision.patch=8,vision.layers=1,vision.width=16,vision.heads=1," \
    "vision.mlp=16,lm.width=32,lm.ffn=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.layers=1"
static const Sampling sampling = {.temperature = 1.5f, .top_p = 0.95f, .seed = 11};

typedef struct {
    Model m;
    Rollout r;
    floatX *head;     // device: the head's weights
    uint8_t *pixels;  // [IMAGES, height, width, 3]
    uint32_t numbers[IMAGES];
} Setup;

/* begin: the token that begins every text; -1: none. */
static void setup_open(Setup *s, const Ops *op, int limit, int begin) {
    Error err;
    Dataset data;
    Loader loader;
    *s = (Setup){0};
    const int bad = op->host_memory ? model_open(&s->m, op, "dev/starter/student.safetensors", "", &err)
                                    : model_create(&s->m, op, TINY, "dev/starter/tokenizer.safetensors", 1, &err);
    die_if(bad || dataset_open(&data, "dev/starter/val.bin", &err), &err);
    s->m.tokenizer.begin = begin;
    const LoaderConfig c =
        loader_config_for(IMAGES, 0, vision_size(&s->m.c.vision), s->m.c.lm.vocab, (ImageSize){0}, 0);
    die_if(loader_start(&loader, &data, c, &err), &err);
    const Batch *b = loader_next(&loader, &err);
    if (!b) die("%s", err.text);
    s->pixels = xmalloc(IMAGES * model_pixels(&s->m));
    memcpy(s->pixels, b->pixels[0], IMAGES * model_pixels(&s->m));
    memcpy(s->numbers, b->samples, sizeof s->numbers);
    loader_stop(&loader);
    dataset_close(&data);
    const size_t bytes = s->m.lm_head->n * sizeof(floatX);
    s->head = op->alloc(bytes);  // in memory that may be written, as in training
    if (!s->head) die("out of memory");
    op->copy(s->head, s->m.lm_head->value, bytes);
    s->m.lm_head->value = s->head;
    model_plan(&s->m, AT_ONCE, LIMIT);
    rollout_open(&s->r, &s->m, IMAGES, SAMPLES, limit, sampling);
}

/* Changes the weights, where they are. */
static void swap_head_rows(Setup *s, int i, int j) {
    const size_t W = s->m.lm_head->cols, row = W * sizeof(floatX);
    floatX *host = xmalloc(2 * row);
    s->m.op->download(host, s->head + i * W, row);
    s->m.op->download(host + W, s->head + j * W, row);
    s->m.op->upload(s->head + j * W, host, row);
    s->m.op->upload(s->head + i * W, host + W, row);
    free(host);
}

static void setup_close(Setup *s) {
    rollout_close(&s->r);
    s->m.op->release(s->head);
    model_close(&s->m);
    free(s->pixels);
}

static const int *row_ids(const Rollout *r, int row) { return r->ids + (size_t)row * r->max_new_tokens; }

/* Draws the tokens of a row again, from a forward pass over it; returns how many are the same. */
static int draw_again(Setup *s, int row, int image, int sample, int64_t step, float *logits, Distribution *p) {
    Model *m = &s->m;
    const int n = s->r.lengths[row], V = m->c.lm.vocab, P = model_prompt(m), first = m->tokenizer.begin >= 0;
    int same = first && *row_ids(&s->r, row) == m->tokenizer.begin;
    uint8_t *mask = xmalloc(2 * V);
    m->op->download(mask, s->r.g.first_mask, V);
    m->op->download(mask + V, s->r.g.token_mask, V);
    model_forward(m, s->pixels + image * model_pixels(m), row_ids(&s->r, row), 1, n);
    float *device = m->op->alloc((size_t)n * V * sizeof(float));
    linear_logits(m->op, device, m->hidden, m->lm_head, n);
    m->op->download(logits, device, (size_t)n * V * sizeof(float));
    m->op->release(device);
    for (int t = first; t < n; t++) {
        distribution_read(p, logits + (size_t)t * V, t > first ? mask + V : mask, &sampling, V);
        same += distribution_draw(p, &sampling, rollout_stream(step, s->numbers[image], sample), P + t) ==
                row_ids(&s->r, row)[t];
    }
    free(mask);
    return same;
}

/* Every row is well formed, and holds the tokens that the forward pass gives. */
static void check_rows(Setup *s, const char *what, int B, int G, int64_t step) {
    const Rollout *r = &s->r;
    float *logits = xmalloc((size_t)LIMIT * s->m.c.lm.vocab * sizeof(float));
    Distribution p;
    int same = 0, all = 0, ended = 0, wrong = 0;
    distribution_open(&p, s->m.c.lm.vocab);
    check(r->finite, "%s: the logits are not finite", what);
    for (int row = 0; row < B * G; row++) {
        const int n = r->lengths[row], *ids = row_ids(r, row);
        wrong += n < 1 || n > r->max_new_tokens || (!r->ended[row] && n != r->max_new_tokens);
        for (int t = 0; t < r->max_new_tokens; t++) {
            const bool end = ids[t] >= 0 && tokenizer_ends(&s->m.tokenizer, ids[t]);
            wrong += (ids[t] < 0) != (t >= n) || end != (r->ended[row] && t == n - 1);
        }
        ended += r->ended[row];
        if (!s->m.op->host_memory && row % 4) continue;  // an emulated GPU is slow
        all += n;
        same += draw_again(s, row, row / G, row % G, step, logits, &p);
    }
    check(wrong == 0, "%s: %d mistakes in lengths, ends and padding", what, wrong);
    check(same >= SAME * all, "%s: %d of %d tokens are those that the forward pass gives", what, same, all);
    if (s->m.op->host_memory && s->m.tokenizer.begin < 0)  // else the model has not learned it
        check(r->max_new_tokens < LIMIT ? ended == 0 : ended > 0, "%s: %d of %d samples ended", what, ended,
              IMAGES * G);
    distribution_close(&p);
    free(logits);
}

/* How many of these rows of T tokens are the same. */
static int rows_same(const int *a, const int *b, int rows, int T) {
    int same = 0;
    for (int row = 0; row < rows; row++) same += !memcmp(a + (size_t)row * T, b + (size_t)row * T, T * sizeof(int));
    return same;
}

/* The samples of step 3, called again in other ways. */
static void test_again(Setup *s, const int *first) {
    Rollout *r = &s->r;
    const int rows = IMAGES * SAMPLES, T = r->max_new_tokens;
    rollout_sample(r, s->pixels, s->numbers, IMAGES, SAMPLES, 3);
    check(!memcmp(first, r->ids, (size_t)rows * T * sizeof(int)), "the same call draws other samples");
    int alone = 0;
    for (int i = 0; i < IMAGES; i++) {
        rollout_sample(r, s->pixels + i * model_pixels(&s->m), s->numbers + i, 1, SAMPLES, 3);
        alone += rows_same(first + (size_t)i * SAMPLES * T, r->ids, SAMPLES, T);
    }
    check(alone >= (int)(SAME * rows) - 1, "only %d of %d samples do not depend on the batch", alone, rows);
    rollout_sample(r, s->pixels, s->numbers, IMAGES, SAMPLES, 4);
    check(rows_same(first, r->ids, rows, T) < rows - 2, "another step draws the same samples");
    rollout_sample(r, s->pixels, s->numbers, IMAGES, 1, 3);
    check_rows(s, "one sample an image", IMAGES, 1, 3);
}

static void test_samples(const Ops *op) {
    Setup s;
    setup_open(&s, op, op->host_memory ? LIMIT : 4, -1);
    Rollout *r = &s.r;
    const int B = op->host_memory ? IMAGES : 3, rows = B * SAMPLES, T = r->max_new_tokens;
    const size_t bytes = (size_t)rows * T * sizeof(int);
    int *first = xmalloc(bytes);
    rollout_sample(r, s.pixels, s.numbers, B, SAMPLES, 3);
    memcpy(first, r->ids, bytes);
    check_rows(&s, "3 samples an image", B, SAMPLES, 3);
    if (op->host_memory) test_again(&s, first);
    swap_head_rows(&s, 40, s.m.c.lm.vocab / 2);
    rollout_sample(r, s.pixels, s.numbers, B, SAMPLES, 3);
    check_rows(&s, "changed weights", B, SAMPLES, 3);
    free(first);
    setup_close(&s);
}

static void test_limit(const Ops *op) {
    Setup s;
    for (int begin = -1; begin < 400; begin += 400) {
        setup_open(&s, op, 6, begin);
        rollout_sample(&s.r, s.pixels, s.numbers, IMAGES, 2, 0);
        check_rows(&s, begin < 0 ? "cut at 6 tokens" : "cut at 6 tokens, after a begin token", IMAGES, 2, 0);
        for (int row = 0; begin >= 0 && row < 2 * IMAGES; row++)
            check(*row_ids(&s.r, row) == begin, "sample %d begins with token %d, expected %d", row, *row_ids(&s.r, row), begin);
        setup_close(&s);
    }
}

int main(int argc, char **argv) {
    Error err;
    program_begin(argv);
    const Ops *op = ops_open(argc > 1 ? argv[1] : "cpu", &err);
    if (!op) die("%s", err.text);
    const int stream = rollout_stream(1, 2, 3);
    check(stream != rollout_stream(2, 2, 3) && stream != rollout_stream(1, 3, 3) && stream != rollout_stream(1, 2, 4),
          "samples share a random stream");
    test_samples(op);
    if (op->host_memory) test_limit(op);
    return checks_end();
}
