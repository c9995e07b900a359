/* What a draft model saves.
 *
 *     bench_draft [--device NAME] [--samples N] [--layers N] [--draft-layers N] [--temperature T] [--proposals N]
 *                 [TARGET DRAFT DATA]     default: the starter's teacher, student and test.bin
 *
 * generates the programs of the first images of DATA with the target alone and with the draft, in turn, and prints the share
 * of proposals that the target keeps, tokens per pass of the target, and tokens per second of both. --layers and
 * --draft-layers make the models deeper by decoder layers that change nothing: their o_proj and down_proj are zero, so a layer
 * costs what any other costs and adds nothing. So the proposals are those of a trained pair, and the sizes are free.
 * --proposals N: at most N a pass. */
#include "../../dataloader.h"
#include "../../generate/speculate.h"
#include "../../lib/progress.h"
#include "../../lib/threads.h"

static struct {
    const char *device, *target, *draft, *data;
    int samples, layers, draft_layers, proposals;
    double temperature;
} opt = {.device = "cpu",
         .target = "dev/starter/teacher.safetensors",
         .draft = "dev/starter/student.safetensors",
         .data = "dev/starter/test.bin",
         .samples = 20};

/* Copies the parameters of `from` by name. Those of further layers are random, but what a layer adds is zero. */
static void copy_parameters(Model *to, const Model *from) {
    const Ops *op = to->op;
    params_init_random(&to->params, op, 1);
    for (int l = from->c.lm.layers; l < to->c.lm.layers; l++) {
        op->zero(to->layer[l].o_proj->value, to->layer[l].o_proj->n * sizeof(floatX));
        op->zero(to->layer[l].down_proj->value, to->layer[l].down_proj->n * sizeof(floatX));
    }
    for (int i = 0; i < from->params.count; i++)
        for (int j = 0; j < to->params.count; j++) {
            const Param *x = &from->params.list[i], *y = &to->params.list[j];
            if (strcmp(x->name, y->name) != 0) continue;
            if (x->dtype != DT_FLOATX)
                die("%s is quantised; --layers needs a model that is not", from->file.file.path);
            op->copy(y->value, x->value, x->n * sizeof(floatX));
        }
}

/* Opens a model file, with `layers` decoder layers if that is more than it has. */
static void open_deep(Model *m, const Ops *op, const char *path, int layers) {
    static Model source;  // its file stays open for the tokenizer
    Error err;
    if (model_open(&source, op, path, "", &err)) die("%s", err.text);
    *m = source;
    if (layers <= source.c.lm.layers) return;
    m->c.lm.layers = layers;
    model_declare(m, "");
    params_allocate(&m->params, op);
    copy_parameters(m, &source);
}

/* ---- generating ---- */

typedef struct {
    const Tokenizer *tokenizer;
    int ids[4096], count;
} Program;

static bool read_token(void *context, int b, int id) {
    Program *p = (Program *)context;
    (void)b;
    if (id < 0) die("the model computes values that are not finite");
    p->ids[p->count++] = id;
    return !tokenizer_ends(p->tokenizer, id);
}

typedef struct {
    Model target, draft;
    Generator g, d;
    Speculator s;
    int max_tokens;
} Bench;

static void bench_open(Bench *b, const Ops *op) {
    Error err;
    open_deep(&b->target, op, opt.target, opt.layers);
    open_deep(&b->draft, op, opt.draft, opt.draft_layers);
    if (speculator_check(&b->target, &b->draft, &err)) die("%s", err.text);
    int most = model_max_text(&b->target), draft_most = model_max_text(&b->draft);
    b->max_tokens = most < 4096 ? most : 4096;
    bool shared = model_share_encoder(&b->draft, &b->target);
    model_plan(&b->target, 1, SPECULATE_ROWS);
    model_plan(&b->draft, 1, SPECULATE_ROWS);
    generator_open(&b->g, &b->target, 1, b->max_tokens);
    generator_open(&b->d, &b->draft, 1, draft_most < b->max_tokens ? draft_most : b->max_tokens);
    generator_set_sampling(&b->g, (float)opt.temperature, 1, 0, 1, 0);
    speculator_open(&b->s, &b->g, &b->d);
    if (opt.proposals > 0 && opt.proposals < b->s.rows) b->s.proposals = opt.proposals;
    double n = (double)params_total(&b->target.params, GROUP_ALL),
           k = (double)params_total(&b->draft.params, GROUP_ALL);
    printf("target %.1f M parameters, %d decoder layers; draft %.1f M, %d%s; %.1f times\n", n / 1e6,
           b->target.c.lm.layers, k / 1e6, b->draft.c.lm.layers, shared ? ", with the target's encoder" : "", n / k);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Milliseconds of the fastest of 31 passes over n tokens after an image. */
static double time_pass(Bench *b, Generator *g, int n) {
    enum { ROUNDS = 31 };
    const int tokens[SPECULATE_ROWS] = {0};
    double times[ROUNDS];
    for (int i = -2; i < ROUNDS; i++) {
        g->m->op->sync();
        double start = seconds_now();
        speculator_extend(&b->s, g, tokens, n, model_prompt(g->m), NULL);
        g->m->op->sync();
        if (i >= 0) times[i] = seconds_now() - start;
    }
    qsort(times, ROUNDS, sizeof times[0], compare_doubles);
    return 1e3 * times[0];
}

typedef struct {
    double prefill, alone, draft_prefill, together;  // seconds
    long alone_tokens, together_tokens;
    int differing;
} Times;

static void measure_image(Bench *b, Times *t, const uint8_t *pixels, const uint8_t *draft_pixels, int stream) {
    const Ops *op = b->target.op;
    static Program alone, together;
    alone = together = (Program){.tokenizer = &b->target.tokenizer};
    double start = seconds_now();
    generator_prefill(&b->g, pixels, 1, NULL, 0);
    op->sync();
    double begun = seconds_now();
    generator_run(&b->g, &stream, b->max_tokens, read_token, &alone);
    double done = seconds_now();
    generator_prefill(&b->g, pixels, 1, NULL, 0);
    op->sync();
    double again = seconds_now();
    generator_prefill(&b->d, draft_pixels, 1, NULL, 0);
    op->sync();
    double ready = seconds_now();
    speculator_run(&b->s, 0, stream, b->max_tokens, read_token, &together);
    t->together += seconds_now() - ready;
    t->prefill += begun - start;
    t->alone += done - begun;
    t->draft_prefill += ready - again;
    t->alone_tokens += alone.count;
    t->together_tokens += together.count;
    t->differing += alone.count != together.count || memcmp(alone.ids, together.ids, alone.count * sizeof(int)) != 0;
}

static void report(const Bench *b, const Times *t) {
    const Speculator *s = &b->s;
    double alone = (double)t->alone_tokens / t->alone, together = (double)t->together_tokens / t->together;
    double with_prefill = (double)t->together_tokens / (t->together + t->draft_prefill);
    printf("%d images, temperature %g: %.0f %% of %.1f proposals kept a pass, %.2f tokens a pass\n", opt.samples,
           opt.temperature, s->offered ? 100.0 * (double)s->accepted / (double)s->offered : 0,
           s->passes ? (double)s->offered / (double)s->passes : 0,
           s->passes ? (double)t->together_tokens / (double)s->passes : 0);
    printf("alone %.0f tokens/s, with the draft %.0f: %.2f times; with the draft's reading of the image %.0f: %.2f "
           "times\n",
           alone, together, together / alone, with_prefill, with_prefill / alone);
    printf("an image: %.1f ms of the target's prefill, %.1f of the draft's, %.1f of generating alone, %.1f with the "
           "draft\n",
           1e3 * t->prefill / opt.samples, 1e3 * t->draft_prefill / opt.samples, 1e3 * t->alone / opt.samples,
           1e3 * t->together / opt.samples);
    printf("programs that differ: %d of %d\n", t->differing, opt.samples);
}

static void usage(void) {
    die("usage: bench_draft [--device NAME] [--samples N] [--layers N] [--draft-layers N] [--temperature T] "
        "[--proposals N] [TARGET DRAFT DATA]");
}

static int arguments(int argc, char **argv) {
    int i = 1;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--device"))
            opt.device = value;
        else if (!strcmp(name, "--samples"))
            opt.samples = atoi(value);
        else if (!strcmp(name, "--layers"))
            opt.layers = atoi(value);
        else if (!strcmp(name, "--draft-layers"))
            opt.draft_layers = atoi(value);
        else if (!strcmp(name, "--proposals"))
            opt.proposals = atoi(value);
        else if (!strcmp(name, "--temperature"))
            opt.temperature = atof(value);
        else
            usage();
    }
    return i;
}

int main(int argc, char **argv) {
    static Bench b;
    Error err;
    Dataset data;
    Loader loader;
    Times t = {0};
    program_name_set(argv[0]);
    threads_wait_politely(argv);  // as infer does
    int i = arguments(argc, argv);
    if (i + 3 == argc) opt.target = argv[i], opt.draft = argv[i + 1], opt.data = argv[i + 2];
    if ((i != argc && i + 3 != argc) || opt.samples < 1) usage();
    const Ops *op = ops_open(opt.device, &err);
    if (!op) die("%s", err.text);
    bench_open(&b, op);
    printf("milliseconds of a pass: target");
    for (int n = 1; n <= b.s.rows; n++) printf(" %.2f", time_pass(&b, &b.g, n));
    printf(" for 1, 2, ... tokens; draft %.2f\n", time_pass(&b, &b.d, 1));
    if (dataset_open(&data, opt.data, &err)) die("%s", err.text);
    LoaderConfig c = loader_config_for(1, b.max_tokens, vision_size(&b.target.c.vision), b.target.tokenizer.count,
                                       vision_size(&b.draft.c.vision), b.draft.tokenizer.count);
    if (loader_start(&loader, &data, c, &err)) die("%s", err.text);
    for (int n = 0; n < opt.samples; n++) {
        const Batch *batch = loader_next(&loader, &err);
        if (!batch) die("%s has no %d images", opt.data, opt.samples);
        measure_image(&b, &t, batch->pixels[0], batch->pixels[batch->size_count - 1], n);
    }
    report(&b, &t);
    loader_stop(&loader);
    dataset_close(&data);
    return 0;
}
