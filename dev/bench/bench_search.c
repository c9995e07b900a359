/* What the tree search does in a given time.
 *
 *     bench_search --speed [--model FILE|SHAPE]     rollouts per second with keys and values of nodes kept, and with all
 *                                                   tokens of the leaf read again for each rollout, as DeTikZify does; verdicts
 *                                                   are invented and cost nothing
 *     bench_search [--data FILE --first N ...]      for figures of a dataset: how often the search draws exactly what the
 *                                                   reference program draws, and how often the greedy program does
 *
 * Drawings are compared as the judge prepares them, in the model's resolution. With --out DIR the programs are written as
 * DIR/N.tex beside the references DIR/N.ref.tex, for dev/starter/score.py. */
#include "../../lib/error.h"

#include "../../lib/dataset.h"
#include "../../lib/options.h"
#include "../../lib/program.h"
#include "../../metrics/search_cost.h"
#include "../../search.h"

static struct {
    const char *model, *data, *similarity, *out, *device;
    int64_t first, figures, rollouts, in_flight, threads, judges, max_tokens, seed, store;
    double seconds, temperature, top_p, exploration;
    bool speed, published, strict, compiler_only;
} opt = {.model = "dev/starter/student.safetensors",
         .data = "dev/starter/val.bin",
         .similarity = "pixels",
         .device = "cpu",
         .figures = 20,
         .seconds = 10,
         .temperature = 0.8,
         .top_p = 0.95,
         .exploration = 0.6,
         .store = 256};

static const Option table[] = {
    {"speed", 0, OPT_FLAG, &opt.speed, NULL, "measure rollouts per second with invented verdicts", 0, 0},
    {"model", 'm', OPT_STRING, &opt.model, "FILE|SHAPE", "the model, or the shape of a random one", 0, 0},
    {"data", 0, OPT_STRING, &opt.data, "FILE", "dataset", 0, 0},
    {"first", 0, OPT_INT, &opt.first, "N", "first figure", 0, 1e9},
    {"figures", 'n', OPT_INT, &opt.figures, "N", "how many", 1, 1e6},
    {"seconds", 0, OPT_FLOAT, &opt.seconds, "S", "for each figure; 0: without limit", 0, 1e6},
    {"rollouts", 0, OPT_INT, &opt.rollouts, "N", "for each figure; 0: without limit", 0, 1e9},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "of the rollouts", 0, 100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "of the rollouts", 0.001, 1},
    {"exploration", 0, OPT_FLOAT, &opt.exploration, "C", "", 0, 100},
    {"similarity", 0, OPT_STRING, &opt.similarity, "NAME", "mean, emd, places or pixels", 0, 0},
    {"compiler-only", 0, OPT_FLAG, &opt.compiler_only, NULL, "reward the compiler's verdict", 0, 0},
    {"strict", 0, OPT_FLAG, &opt.strict, NULL, "errors are failures", 0, 0},
    {"published", 0, OPT_FLAG, &opt.published, NULL, "no greedy first rollout, no end at an exact drawing", 0, 0},
    {"in-flight", 0, OPT_INT, &opt.in_flight, "N", "rollouts at a time; 0: judges + 1", 0, SEARCH_IN_FLIGHT},
    {"judges", 0, OPT_INT, &opt.judges, "N", "threads that run TeX; 0: one for each processor", 0, 64},
    {"threads", 0, OPT_INT, &opt.threads, "N", "of the model; 0: all", 0, 4096},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N", "of a program; 0: what the model can", 0, 1e6},
    {"store", 0, OPT_INT, &opt.store, "MB", "for keys and values of nodes", 1, 1e6},
    {"seed", 0, OPT_INT, &opt.seed, "N", "", 0, 1e15},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu or cuda", 0, 0},
    {"out", 0, OPT_STRING, &opt.out, "DIR", "write the programs there", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* ---- speed ---- */

typedef struct {
    Rollouts rollouts;
    int64_t generated;
} Speed;

static int speed_rollout(void *context, SearchTree *t, SearchRollout *r, int slot, Error *err) {
    return rollout_run(&((Speed *)context)->rollouts, t, r, slot, err);
}

static int speed_submit(void *context, const SearchRollout *r, int slot, Error *err) {
    (void)context, (void)r, (void)slot, (void)err;
    return 0;
}

/* Most programs are drawn, some have an error in one of their lines. */
static int speed_verdict(void *context, const SearchRollout *r, SearchVerdict *v, Error *err) {
    const SearchProgram *p = r->program;
    const uint64_t h = hash_bytes(HASH_BEGIN, p->ids, (size_t)p->count * sizeof(int));
    const bool bad = h % 8 == 0;
    (void)context, (void)err;
    *v = (SearchVerdict){!bad, !bad, bad ? 1 + (int)(h >> 8) % (p->state_count + 1) : 0, (double)(h >> 40) * 0x1p-24};
    return 0;
}

static bool speed_applied(void *context, SearchTree *t, const SearchRollout *r, int slot) {
    Speed *s = context;
    (void)t;
    s->generated += r->generated;
    rollout_keep(&s->rollouts, r, slot);
    return true;
}

/* Runs one search and prints its speed. Returns its rollouts per second. */
static double measure_speed(Generator *g, const uint8_t *pixels, bool feed_again) {
    Speed s = {.generated = 0};
    Error err;
    SearchTree t;
    const SearchCalls calls = {&s, speed_rollout, speed_submit, speed_verdict, speed_applied, NULL};
    const SearchRules rules = {.exploration = opt.exploration,
                               .distinct = !opt.published,
                               .seed = (uint64_t)opt.seed,
                               .max_length = g->cache.capacity - model_prompt(g->m)};
    TokenLines *lines = token_lines_of(&g->m->tokenizer, g->m->c.lm.vocab);
    const int count = opt.rollouts ? (int)opt.rollouts : 200;
    die_if(rollouts_open(&s.rollouts, g, 1, pixels, NULL, 0, (size_t)opt.store << 20, &err), &err);
    s.rollouts.feed_again = feed_again;
    search_tree_open(&t, &rules, lines, NULL, 0);
    const double begin = seconds_now();
    die_if(search_loop(&t, &calls, count, 1, &err), &err);
    const double seconds = seconds_now() - begin;
    printf("%-28s %7.1f rollouts/s; for each %6.1f new tokens, %6.1f of the leaf read, %6.1f copied; %lld dropped, "
           "%d programs, values %.9g\n",
           feed_again ? "all tokens read again" : "keys and values kept", count / seconds,
           (double)s.generated / count, (double)s.rollouts.fed / count, (double)s.rollouts.copied / count,
           (long long)s.rollouts.store.dropped, t.program_count, search_node_value(&t, t.root));
    rollouts_close(&s.rollouts);
    search_tree_close(&t);
    free(lines);
    return count / seconds;
}

/* ---- figures ---- */

typedef struct {
    int figures, greedy, search, drawn, rollouts, programs;
    double seconds;
    double *efficiency, *throughput;  // [figures], of each search
} Totals;

/* The hash of a program's drawing; 0: none. */
static uint64_t drawing(Judge *j, const char *text, size_t n) {
    Error err;
    Judged *p = judge_submit(j, text, n);
    die_if(judge_wait(j, p, 0, &err), &err);
    return p->drawn ? p->pixels_hash : 0;
}

static void write_text(int number, const char *kind, const char *text, size_t n) {
    Error err;
    char *path = format_string("%s/%06d%s.tex", opt.out, number, kind);
    die_if(file_write(path, text, n, &err), &err);
    free(path);
}

static void search_figure(Generator *g, Judge *j, const Dataset *d, int number, Totals *t) {
    const Sample sample = dataset_sample(d, (uint64_t)number);
    Image image;
    Error err;
    SearchResult r;
    const SearchOptions o = {.seconds = opt.seconds,
                             .rollouts = (int)opt.rollouts,
                             .exploration = opt.exploration,
                             .strict = opt.strict,
                             .compiler_only = opt.compiler_only,
                             .published = opt.published,
                             .in_flight = (int)opt.in_flight,
                             .seed = (uint64_t)opt.seed};
    uint8_t *pixels = xmalloc(model_pixels(g->m));
    die_if(dataset_check_sample(&sample, g->m->tokenizer.count, &err), &err);
    die_if(image_decode(&image, sample.image, sample.image_bytes, "of the dataset", &err), &err);
    const ImageBox box = image_trim(&image, IMAGE_WHITE);
    const ImageExtent extent = image_prepare_box(pixels, &image, box, vision_size(&g->m->c.vision));
    die_if(search_run(&o, g, j, pixels, extent, NULL, 0, NULL, NULL, &r, &err), &err);
    char *reference;
    size_t n;
    tokenizer_decode(&g->m->tokenizer, (const int *)sample.tokens, (int)sample.token_count, &reference, &n);
    const uint64_t want = drawing(j, reference, n);
    bool greedy = false, best = false;
    for (int i = 0; i < r.count; i++) {
        if (r.found[i].rollout != 0 && i > 0) continue;
        const bool same = drawing(j, r.found[i].text, r.found[i].bytes) == want;
        if (r.found[i].rollout == 0) greedy = same;
        if (i == 0) best = same;
    }
    if (opt.out) write_text(number, ".ref", reference, n);
    if (opt.out && r.count) write_text(number, "", r.found[0].text, r.found[0].bytes);
    Judged *truth = judge_submit(j, reference, n);
    judge_score(j, truth);
    printf("%4d: greedy %d, search %d; score %.4f, the reference's %.4f; %d rollouts, %d programs, %.1f s\n", number,
           greedy, best, r.count ? r.found[0].score : -1, truth->similarity, r.rollouts, r.count, r.seconds);
    fflush(stdout);
    t->figures++, t->greedy += greedy, t->search += best, t->rollouts += r.rollouts, t->programs += r.count;
    t->drawn += r.count && r.found[0].drawn;
    t->seconds += r.seconds;
    double tried = 0;
    for (int i = 0; i < r.count; i++) tried += r.found[i].count;
    t->efficiency[t->figures - 1] = search_efficiency(r.count ? r.found[0].count : 0, tried);
    t->throughput[t->figures - 1] = r.count;
    search_result_free(&r);
    free(reference);
    image_free(&image);
    free(pixels);
}

static void search_figures(Model *m, Generator *g) {
    Dataset d;
    Judge j;
    Error err;
    Totals t = {0};
    const int similarity = name_index(opt.similarity, similarity_names, SIMILARITIES);
    if (similarity < 0) options_die("--similarity is '%.40s'; expected mean, emd, places or pixels", opt.similarity);
    die_if(dataset_open(&d, opt.data, &err), &err);
    die_if(judge_open(&j, &(JudgeOptions){.model = m, .threads = (int)opt.judges, .similarity = similarity}, &err),
           &err);
    if (opt.out) die_if(make_folder(opt.out, &err), &err);
    t.efficiency = xcalloc((size_t)opt.figures, sizeof(double));
    t.throughput = xcalloc((size_t)opt.figures, sizeof(double));
    for (int64_t i = 0; i < opt.figures && opt.first + i < (int64_t)d.count; i++)
        search_figure(g, &j, &d, (int)(opt.first + i), &t);
    printf("%d figures: greedy draws %.1f %% exactly, the search %.1f %%; %d drawn; for each %.1f rollouts, %.1f "
           "programs, %.2f s\n",
           t.figures, 100.0 * t.greedy / t.figures, 100.0 * t.search / t.figures, t.drawn,
           (double)t.rollouts / t.figures, (double)t.programs / t.figures, t.seconds / t.figures);
    printf("mean token efficiency %.4f, mean sampling throughput %.1f programs (winsorised)\n",
           winsorised_mean(t.efficiency, (size_t)t.figures, SEARCH_COST_LIMIT),
           winsorised_mean(t.throughput, (size_t)t.figures, SEARCH_COST_LIMIT));
    free(t.efficiency);
    free(t.throughput);
    judge_close(&j);
    dataset_close(&d);
}

/* The pixels of dev/starter/example.png. */
static uint8_t *example(const Model *m) {
    uint8_t *pixels = xmalloc(model_pixels(m));
    Image image;
    Error err;
    die_if(image_load(&image, "dev/starter/example.png", &err), &err);
    image_prepare(pixels, &image, vision_size(&m->c.vision));
    image_free(&image);
    return pixels;
}

int main(int argc, char **argv) {
    Model m;
    Generator g;
    Error err;
    program_begin(argv);
    threads_wait_politely(argv);
    options_parse(table, OPTIONS, argc, argv, "[options]", NULL);
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    if (file_exists(opt.model))
        die_if(model_open(&m, op, opt.model, "", &err), &err);
    else
        die_if(model_create(&m, op, opt.model, "dev/starter/tokenizer.safetensors", 1, &err), &err);
    const int most = model_max_text(&m),
              tokens = opt.max_tokens && opt.max_tokens < most ? (int)opt.max_tokens : most;
    const int slots = opt.speed ? 1 : opt.in_flight ? (int)opt.in_flight : 9;
    model_plan(&m, 1, opt.speed ? tokens + 1 : 1);
    generator_open(&g, &m, slots, tokens);
    generator_set_sampling(&g, (float)opt.temperature, (float)opt.top_p, 0, (uint64_t)opt.seed,
                           m.tokenizer.begin >= 0);
    if (opt.speed) {
        uint8_t *pixels = example(&m);
        const double kept = measure_speed(&g, pixels, false), again = measure_speed(&g, pixels, true);
        printf("%.2f times as many rollouts\n", kept / again);
        free(pixels);
    } else {
        search_figures(&m, &g);
    }
    generator_close(&g);
    model_close(&m);
    return 0;
}
