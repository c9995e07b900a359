/* Beam search (generate/beam.h) against a plain one.
 *
 *   test_beam [FIXTURES [DEVICE]]                             default: test/fixtures cpu
 *   test_beam --ids MODEL PIXELS BEAMS PENALTY TOKENS [ID...]   prints the ids of each image's program, one line each, for
 *                                                             test/hub_beam.py; PIXELS: u8 [images, S, S, 3]; ID...: a prefix
 *
 * The plain one is written here after the rules of transformers 4.44, keeps no cache, and reads every hypothesis whole with
 * model_forward. Where rounding decides, the two may differ: so the plain one also runs with noise on its logits, and only
 * what the noise does not change is compared. Prints what fails, then the line "N passed, M failed". */
#include "checks.h"

#include "../lib/program.h"

#include "../generate/beam.h"
#include "../kernels/device.h"
#include "../lib/random.h"

#ifdef PRECISION_FP32
static const double NOISE = 2e-5, SAME = 2e-5, COMPARED = 0.95;
#else
static const double NOISE = 4e-2, SAME = 3e-2, COMPARED = 0.4;
#endif

enum { TOKENS = 12, BEAMS = 5, PREFIX = 2, KNOWN = 8192, NOISES = 8, IMAGES = 4 };
static const double penalties[] = {-1, 0, 1, 2};
enum { PENALTIES = sizeof penalties / sizeof penalties[0] };

/* ---- the plain beam search ---- */

typedef struct {
    int ids[TOKENS], count;
    double sum, score;
    bool ended;
} Text;

typedef struct {
    Model *m;
    const uint8_t *pixels;  // of one image
    int prefix[PREFIX], prefix_count, number;
    struct {
        int ids[TOKENS], count;
        float *logits;
    } * known;  // [KNOWN]: logits that have been computed already
    int known_count;
    double noise;
    uint64_t seed;
} Plain;

/* The logits [V] after a text, from one pass over image, prefix and text. */
static const float *plain_logits(Plain *p, const Text *t) {
    const int V = p->m->c.lm.vocab, T = p->prefix_count + t->count + 1;
    for (int i = 0; i < p->known_count; i++)
        if (p->known[i].count == t->count && !memcmp(p->known[i].ids, t->ids, (size_t)t->count * sizeof(int)))
            return p->known[i].logits;
    if (p->known_count == KNOWN) die("the test needs a larger KNOWN");
    int ids[PREFIX + TOKENS + 1] = {0};
    memcpy(ids, p->prefix, (size_t)p->prefix_count * sizeof(int));
    memcpy(ids + p->prefix_count, t->ids, (size_t)t->count * sizeof(int));
    model_forward(p->m, p->pixels, ids, 1, T);
    float *device = p->m->op->alloc((size_t)T * V * sizeof(float)), *host = xmalloc(V * sizeof(float));
    p->m->op->linear_logits(device, p->m->hidden, param_weight(p->m->lm_head), (size_t)T);
    p->m->op->download(host, device + (size_t)(T - 1) * V, V * sizeof(float));
    p->m->op->release(device);
    const int k = p->known_count++;
    memcpy(p->known[k].ids, t->ids, (size_t)t->count * sizeof(int));
    p->known[k].count = t->count;
    p->known[k].logits = host;
    return host;
}

static void plain_forget(Plain *p) {
    while (p->known_count) free(p->known[--p->known_count].logits);
}

/* log softmax of the logits after a text, with noise that depends on the text alone. */
static void plain_log_softmax(Plain *p, const Text *t, double *to) {
    const int V = p->m->c.lm.vocab;
    const float *logits = plain_logits(p, t);
    double square = 0, sum = 0;
    uint64_t x = p->seed;
    for (int i = 0; i < t->count; i++) x = random_splitmix(&x) ^ (uint64_t)t->ids[i];
    for (int i = 0; i < V; i++) square += (double)logits[i] * (double)logits[i];
    for (int i = 0; i < V; i++) {
        const double uniform = (double)(random_splitmix(&x) >> 11) * 0x1p-52 - 1;  // -1 .. 1
        to[i] = (double)logits[i] + p->noise * sqrt(square / V) * uniform;
        sum += exp(to[i]);
    }
    for (int i = 0; i < V; i++) to[i] -= log(sum);
}

static bool plain_allowed(const Plain *p, const Text *t, int id) {
    const Tokenizer *k = &p->m->tokenizer;
    if (id >= k->count) return false;
    return tokenizer_ends(k, id) ? t->count > 0 : !(k->flags[id] & TOKEN_SPECIAL);
}

typedef struct {
    double sum;
    int beam, id;
} Next;

static int next_order(const void *a, const void *b) {
    const Next *x = a, *y = b;
    if (x->sum != y->sum) return x->sum > y->sum ? -1 : 1;
    return x->beam != y->beam ? x->beam - y->beam : x->id - y->id;
}

/* BeamHypotheses.add: a list in the order of adding, without the worst if it is too long. */
static void plain_add(Text *list, int *count, int beams, Text t, int length, double penalty) {
    int worst = 0;
    t.score = t.sum / pow(length, penalty);
    for (int i = 1; i < *count; i++)
        if (list[i].score < list[worst].score) worst = i;
    if (*count == beams) {
        if (t.score <= list[worst].score) return;
        for (int i = worst; i + 1 < *count; i++) list[i] = list[i + 1];
        list[*count - 1] = t;
    } else {
        list[(*count)++] = t;
    }
}

static Text plain_search(Plain *p, int beams, double penalty, int max_tokens) {
    const Tokenizer *k = &p->m->tokenizer;
    const int V = p->m->c.lm.vocab, most = (k->more_end_count + 2) * beams;
    Text beam[BEAMS] = {{.count = 0}}, done[BEAMS];
    int live = 1, finished = 0, length = 0;
    bool over = false;
    Next *next = xmalloc((size_t)(BEAMS * V) * sizeof *next);
    double *log_softmax = xmalloc((size_t)V * sizeof *log_softmax);
    for (; length < max_tokens && !over; length++) {
        int n = 0, children = 0;
        for (int b = 0; b < live; b++) {
            plain_log_softmax(p, &beam[b], log_softmax);
            for (int id = 0; id < V; id++)
                if (plain_allowed(p, &beam[b], id)) next[n++] = (Next){beam[b].sum + log_softmax[id], b, id};
        }
        qsort(next, (size_t)n, sizeof *next, next_order);
        Text child[BEAMS];
        for (int i = 0; i < n && i < most && children < beams; i++) {
            Text t = beam[next[i].beam];
            t.sum = next[i].sum;
            t.ended = tokenizer_ends(k, next[i].id);
            if (t.ended && i < beams) plain_add(done, &finished, beams, t, length + 1, penalty);
            if (t.ended) continue;
            t.ids[t.count++] = next[i].id;
            child[children++] = t;
        }
        memcpy(beam, child, (size_t)children * sizeof *beam);
        live = children;
        over = finished == beams;
        for (int i = 0; i < finished; i++) over &= done[i].score >= next[0].sum / pow(length + 1, penalty);
    }
    for (int b = 0; b < live && !over; b++) plain_add(done, &finished, beams, beam[b], length, penalty);
    int best = 0;
    for (int i = 1; i < finished; i++)
        if (done[i].score >= done[best].score) best = i;
    free(next);
    free(log_softmax);
    return done[best];
}

/* The sum of the log-probabilities of a text, with its end token, by whole passes. */
static double plain_sum(Plain *p, const BeamResult *r, int end) {
    Text t = {.count = 0};
    double sum = 0, *log_softmax = xmalloc((size_t)p->m->c.lm.vocab * sizeof *log_softmax);
    p->noise = 0;
    for (int i = 0; i < r->count + r->ended; i++) {
        plain_log_softmax(p, &t, log_softmax);
        sum += log_softmax[i < r->count ? r->ids[i] : end];
        if (i < r->count) t.ids[t.count++] = r->ids[i];
    }
    free(log_softmax);
    return sum;
}

/* ---- comparing ---- */

typedef struct {
    const char *name;
    const Ops *op;
    Model m;
    SafeTensors expected;
    const uint8_t *pixels;
    int images;
    Plain plain[IMAGES];
    int compared, all, ended, cut, unlike_greedy;
} Case;

static bool text_same(const Text *t, const int *ids, int count, bool ended) {
    return t->count == count && t->ended == ended && !memcmp(t->ids, ids, (size_t)count * sizeof(int));
}

static void compare(Case *c, const BeamResult *r, int i, int beams, double penalty, int max_tokens) {
    Plain *p = &c->plain[i];
    const Tokenizer *t = &c->m.tokenizer;
    bool clear = true;
    p->noise = 0;
    const Text want = plain_search(p, beams, penalty, max_tokens), greedy = plain_search(p, 1, penalty, max_tokens);
    for (p->seed = 1; p->seed <= NOISES && clear; p->seed++) {
        p->noise = NOISE;
        const Text noisy = plain_search(p, beams, penalty, max_tokens);
        clear = text_same(&noisy, want.ids, want.count, want.ended);
    }
    c->all++;
    check(!r->failed, "%s: image %d has failed", c->name, i);
    if (clear) {
        c->compared++;
        c->ended += r->ended;
        c->cut += !r->ended;
        c->unlike_greedy += !text_same(&greedy, r->ids, r->count, r->ended);
        check(text_same(&want, r->ids, r->count, r->ended),
              "%s: image %d, %d beams, penalty %g, end %d: another text than the plain search's", c->name, i, beams,
              penalty, t->end);
    }
    if (t->more_end_count) return;  // which of them it was is not known
    const double sum = plain_sum(p, r, t->end), score = sum / pow(r->count + r->ended, penalty);
    const double error = fabs(sum - r->log_probability) / (1 + fabs(sum)),
                 score_error = fabs(score - r->score) / (1 + fabs(score));
    check(error <= SAME && score_error <= SAME,
          "%s: image %d, %d beams, penalty %g: log-probability %g, but whole passes say %g; score %g and %g", c->name,
          i, beams, penalty, r->log_probability, sum, r->score, score);
}

typedef struct {
    int ids[IMAGES][TOKENS], count[IMAGES];
    bool ended[IMAGES];
    const Tokenizer *tokenizer;
} Greedy;

static bool read_greedy(void *context, int b, int id) {
    Greedy *g = context;
    g->ended[b] = tokenizer_ends(g->tokenizer, id);
    if (!g->ended[b]) g->ids[b][g->count[b]++] = id;
    return !g->ended[b];
}

/* One beam is greedy decoding. */
static void compare_greedy(Case *c, Generator *g, const BeamResult *r, int max_tokens) {
    Greedy greedy = {.tokenizer = &c->m.tokenizer};
    const int streams[IMAGES] = {0};
    generator_prefill(g, c->pixels, c->images, c->plain[0].prefix, c->plain[0].prefix_count);
    generator_run(g, streams, max_tokens, read_greedy, &greedy);
    for (int i = 0; i < c->images; i++)
        check(greedy.count[i] == r[i].count && greedy.ended[i] == r[i].ended &&
                  !memcmp(greedy.ids[i], r[i].ids, (size_t)r[i].count * sizeof(int)),
              "%s: image %d: one beam differs from greedy decoding", c->name, i);
}

/* All beams and penalties with the tokenizer as it is now. */
static void check_searches(Case *c, int prefix_count) {
    Generator g;
    BeamResult results[IMAGES];
    for (int i = 0; i < c->images; i++) c->plain[i].prefix_count = prefix_count;
    generator_open(&g, &c->m, c->images * BEAMS, PREFIX + TOKENS);
    generator_set_sampling(&g, 0, 1, 0, 1, prefix_count);
    for (int beams = 1; beams <= BEAMS; beams++)
        for (int k = 0; k < PENALTIES; k++) {
            const BeamOptions o = {beams, penalties[k]};
            const int max_tokens = k % 2 ? TOKENS : TOKENS - 3;
            beam_search(&g, c->pixels, c->images, c->plain[0].prefix, prefix_count, &o, max_tokens, results);
            if (beams == 1) compare_greedy(c, &g, results, max_tokens);
            for (int i = 0; i < c->images; i++) {
                compare(c, &results[i], i, beams, penalties[k], max_tokens);
                beam_result_free(&results[i]);
            }
        }
    for (int i = 0; i < c->images; i++) plain_forget(&c->plain[i]);
    generator_close(&g);
}

/* Logits that are not finite end one image's search and no other's, up to the rounding of a smaller batch. */
static void check_not_finite(Case *c) {
    static const float bad[] = {NAN, INFINITY};
    const BeamOptions o = {3, 1};
    Generator g;
    BeamResult want[IMAGES];
    generator_open(&g, &c->m, c->images * o.beams, TOKENS);
    beam_search(&g, c->pixels, c->images, NULL, 0, &o, TOKENS, want);
    for (int k = 0; k < 2; k++) {
        BeamSearch s;
        beam_open(&s, &g, c->images, &o, TOKENS);
        generator_prefill(&g, c->pixels, c->images, NULL, 0);
        s.start = g.length;
        c->op->upload(g.logits + c->m.c.lm.vocab + 5, &bad[k], sizeof(float));
        beam_run(&s);
        for (int i = 0; i < c->images; i++) {
            BeamResult r = beam_result(&s, i);
            check(r.failed == (i == 1) &&
                      (r.failed ? r.ids == NULL : r.count == want[i].count && fabs(r.score - want[i].score) < 1e-6 * fabs(r.score)),
                  "%s: image %d beside one with logits of %g", c->name, i, (double)bad[k]);
            beam_result_free(&r);
        }
        beam_close(&s);
    }
    for (int i = 0; i < c->images; i++) beam_result_free(&want[i]);
    generator_close(&g);
}

/* An end token that ranks behind the first `beams` candidates finishes nothing. For a tokenizer with two end tokens or more. */
static void check_rank_of_end(Case *c) {
    const Tokenizer *t = &c->m.tokenizer;
    const BeamOptions o = {2, 1};
    const int V = c->m.c.lm.vocab;
    Generator g;
    BeamSearch s;
    generator_open(&g, &c->m, o.beams, TOKENS);
    beam_open(&s, &g, 1, &o, TOKENS);
    generator_prefill(&g, c->pixels, 1, NULL, 0);
    s.start = g.length;
    g.first = -1;  // the first token may be an end
    for (int id = 0; id < V; id++) s.logits[id] = tokenizer_ends(t, id) ? 0 : -(float)id;
    s.logits[t->end] = 9;
    s.logits[t->more_ends[0]] = 7;
    for (int id = 4, n = 0; n < 2; id++)  // candidates: end, another token, end, another token
        if (!tokenizer_ends(t, id)) s.logits[id] = 8 - 2 * (float)n++;
    beam_spread(&s);
    beam_advance(&s, 0);
    check(s.image[0].finished == 1 && s.image[0].live == 2 && !s.image[0].done,
          "%s: an end of rank 2 beside two beams: %d finished, %d live", c->name, s.image[0].finished,
          s.image[0].live);
    beam_close(&s);
    generator_close(&g);
}

/* The fixture's tokenizer, then one with two end tokens that are written often, one that is never written, and padding. */
static void check_case(const Ops *op, const char *folder, const char *name) {
    static Case c;
    Error err;
    c = (Case){.name = name, .op = op};
    char *path = format_string("%s/%s.student.safetensors", folder, name);
    char *other = format_string("%s/%s.expected.safetensors", folder, name);
    if (model_open(&c.m, op, path, "", &err) || safetensors_open(&c.expected, other, &err)) die("%s", err.text);
    const SafeTensor *pixels = safetensors_find(&c.expected, "pixels");
    if (!pixels || pixels->shape[0] > IMAGES) die("%s has not the images that were expected", other);
    c.pixels = pixels->data;
    c.images = (int)pixels->shape[0];
    model_plan(&c.m, c.images * BEAMS, PREFIX + TOKENS + 1);
    for (int i = 0; i < c.images; i++)
        c.plain[i] = (Plain){.m = &c.m,
                             .pixels = c.pixels + i * model_pixels(&c.m),
                             .prefix = {4, 9},
                             .number = i,
                             .known = xcalloc(KNOWN, sizeof *c.plain[i].known)};
    check_searches(&c, 0);
    check_not_finite(&c);
    Tokenizer *t = &c.m.tokenizer;
    const Tokenizer own = *t;
    uint8_t *flags = xcalloc((size_t)t->count, 1);
    t->flags = flags;
    const Text likely = plain_search(&c.plain[0], 1, 1, TOKENS);
    plain_forget(&c.plain[0]);
    for (int k = 1; k < TOKENS; k += 4) {  // ends where image 0 would go on
        t->end = likely.ids[k];
        check_searches(&c, k == 1 ? PREFIX : 0);
    }
    flags[1] = TOKEN_SPECIAL;
    t->count--;
    t->more_ends[t->more_end_count++] = likely.ids[1] == t->end ? 6 : likely.ids[1];
    check_searches(&c, 0);
    check_rank_of_end(&c);
    for (int id = 8; t->more_end_count < TOKENIZER_MORE_ENDS; id++) t->more_ends[t->more_end_count++] = id;
    check_searches(&c, PREFIX);  // most candidates end a text
    *t = own;
    printf("%s: %d of %d compared; %d ended, %d cut, %d unlike greedy\n", name, c.compared, c.all, c.ended, c.cut,
           c.unlike_greedy);
    check(c.compared >= COMPARED * c.all && c.ended > 0 && c.cut > 0 && c.unlike_greedy * 10 > c.compared,
          "%s: too little was compared", name);
    for (int i = 0; i < c.images; i++) free(c.plain[i].known);
    free(flags);
    free(path);
    free(other);
    safetensors_close(&c.expected);
    model_close(&c.m);
}

/* ---- ids, for test/hub_beam.py ---- */

static int print_ids(int count, char **arguments) {
    static Model m;
    Error err;
    Generator g;
    MappedFile file;
    if (count < 5) die("usage: test_beam --ids MODEL PIXELS BEAMS PENALTY TOKENS [ID...]");
    if (model_open(&m, cpu_ops(), arguments[0], "", &err) || file_map(&file, arguments[1], &err)) die("%s", err.text);
    const int images = (int)(file.size / model_pixels(&m)), max_tokens = atoi(arguments[4]), prefix_count = count - 5;
    const BeamOptions o = {atoi(arguments[2]), atof(arguments[3])};
    int *prefix = xcalloc((size_t)prefix_count + 1, sizeof(int));
    for (int i = 0; i < prefix_count; i++) prefix[i] = atoi(arguments[5 + i]);
    BeamResult *results = xcalloc((size_t)images, sizeof *results);
    model_plan(&m, images * o.beams, prefix_count + 1);
    generator_open(&g, &m, images * o.beams, prefix_count + max_tokens);
    generator_set_sampling(&g, 0, 1, 0, 1, prefix_count);
    if (beam_search(&g, file.data, images, prefix, prefix_count, &o, max_tokens, results)) die("not finite");
    for (int i = 0; i < images; i++) {
        for (int k = 0; k < results[i].count; k++) printf("%d ", results[i].ids[k]);
        printf("%s %.9g %.9g\n", results[i].ended ? "end" : "cut", results[i].log_probability, results[i].score);
        beam_result_free(&results[i]);
    }
    free(results);
    free(prefix);
    generator_close(&g);
    model_close(&m);
    file_unmap(&file);
    return 0;
}

int main(int argc, char **argv) {
    static const char *const names[] = {"gqa", "linear", "llama3", "mapped", "rect", "shuffle", "strips"};
    program_begin(argv);
    if (argc > 1 && !strcmp(argv[1], "--ids")) return print_ids(argc - 2, argv + 2);
    Error err;
    const Ops *op = ops_open(argc > 2 ? argv[2] : "cpu", &err);
    if (!op) die("%s", err.text);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_case(op, argc > 1 ? argv[1] : "test/fixtures", names[i]);
    return checks_end();
}
