/* What beam search costs beside greedy decoding at the same batch.
 *
 *     bench_beam [--model FILE --data FILE --images N --beams N ...]
 *
 * Beam search of N images with B beams and greedy decoding of N x B images both decode N x B sequences at a step. They take
 * turns, --rounds times; a step's time is the time after the prefill over the number of steps. */
#include "../../lib/dataset.h"
#include "../../lib/image.h"
#include "../../lib/image_prepare.h"
#include "../../generate/beam.h"
#include "../../lib/clock.h"
#include "../../lib/options.h"
#include "../../lib/program.h"

static struct {
    const char *model, *data, *device;
    int64_t images, beams, rounds, tokens;
    double length_penalty;
} opt = {.model = "dev/starter/student.safetensors",
         .data = "dev/starter/val.bin",
         .device = "cpu",
         .images = 4,
         .beams = 5,
         .rounds = 7,
         .tokens = 120,
         .length_penalty = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE", "the model", 0, 0},
    {"data", 0, OPT_STRING, &opt.data, "FILE", "dataset whose first images are decoded", 0, 0},
    {"images", 'n', OPT_INT, &opt.images, "N", "of the beam search", 1, 1000},
    {"beams", 0, OPT_INT, &opt.beams, "N", "for each image", 1, 100},
    {"length-penalty", 0, OPT_FLOAT, &opt.length_penalty, "X", "", -100, 100},
    {"tokens", 0, OPT_INT, &opt.tokens, "N", "of every program", 1, 1e6},
    {"rounds", 0, OPT_INT, &opt.rounds, "N", "", 1, 99},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu or cuda", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

static bool read_on(void *context, int b, int id) {
    (void)context, (void)b;
    return id >= 0;
}

/* Seconds of greedy decoding of B images, without the prefill. */
static double time_greedy(Generator *g, const uint8_t *pixels, int B) {
    int *streams = xcalloc(B, sizeof(int));
    generator_prefill(g, pixels, B, NULL, 0);
    g->m->op->sync();
    const double begin = seconds_now();
    generator_run(g, streams, (int)opt.tokens, read_on, NULL);
    free(streams);
    return seconds_now() - begin;
}

/* Seconds of the beam search, without the prefill. */
static double time_beams(Generator *g, const uint8_t *pixels) {
    BeamSearch s;
    const BeamOptions o = {(int)opt.beams, opt.length_penalty};
    beam_open(&s, g, (int)opt.images, &o, (int)opt.tokens);
    generator_prefill(g, pixels, (int)opt.images, NULL, 0);
    g->m->op->sync();
    s.start = g->length;
    const double begin = seconds_now();
    beam_run(&s);
    const double seconds = seconds_now() - begin;
    if (s.tokens != opt.tokens) die("the beam search ended after %d tokens", s.tokens);
    beam_close(&s);
    return seconds;
}

static int compare_numbers(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, n, sizeof *x, compare_numbers);
    return x[n / 2];
}

/* The prepared images of the first n samples [n, height, width, 3]. */
static uint8_t *read_images(const Model *m, int n) {
    uint8_t *pixels = xmalloc(n * model_pixels(m));
    Dataset d;
    Image image;
    Error err;
    die_if(dataset_open(&d, opt.data, &err), &err);
    for (int i = 0; i < n; i++) {
        const Sample s = dataset_sample(&d, (uint64_t)i % d.count);
        die_if(image_decode(&image, s.image, s.image_bytes, "of the dataset", &err), &err);
        image_prepare(pixels + i * model_pixels(m), &image, vision_size(&m->c.vision));
        image_free(&image);
    }
    dataset_close(&d);
    return pixels;
}

int main(int argc, char **argv) {
    static Model m;
    static double greedy[99], beams[99];
    Generator g;
    Error err;
    program_begin(argv);
    options_parse(table, OPTIONS, argc, argv, "[options]", NULL);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    die_if(model_open(&m, op, opt.model, "", &err), &err);
    m.tokenizer.end = -1;  // so that no program ends and every step decodes all sequences
    m.tokenizer.more_end_count = 0;
    const int B = (int)(opt.images * opt.beams);
    if (opt.tokens > model_max_text(&m)) options_die("--tokens: the model has %d", model_max_text(&m));
    uint8_t *pixels = read_images(&m, B);
    model_plan(&m, B, 1);
    generator_open(&g, &m, B, (int)opt.tokens);
    for (int i = -1; i < opt.rounds; i++) {  // the first round warms up
        const double a = time_greedy(&g, pixels, B), b = time_beams(&g, pixels);
        if (i >= 0) greedy[i] = a, beams[i] = b;
    }
    const double a = median(greedy, (int)opt.rounds) / (double)opt.tokens,
                 b = median(beams, (int)opt.rounds) / (double)opt.tokens;
    printf("%d sequences: a step of greedy decoding %.3f ms, of %d images with %d beams %.3f ms: %.2f times\n", B,
           1e3 * a, (int)opt.images, (int)opt.beams, 1e3 * b, b / a);
    free(pixels);
    generator_close(&g);
    model_close(&m);
    return 0;
}
