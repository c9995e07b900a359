/* infer: generates the TikZ program of each image.
 *
 *   load the model; preprocess and encode the images, and generate tokens until every program ends
 *
 * main follows the options; generate.h has the KV cache and the loop over tokens, generate/writer.h what becomes of the
 * programs: they are written, compiled, drawn. --candidates and --search write several programs for an image and keep the
 * one whose drawing is most like it (generate/judge.h, search.h). */
#include "generate.h"
#include "generate/attention_maps.h"
#include "generate/beam.h"
#include "generate/best.h"
#include "generate/options.h"
#include "generate/prefix.h"
#include "generate/speculate.h"
#include "generate/writer.h"
#include "lib/image_clean.h"
#include "lib/program.h"
#include "lib/threads.h"

/* What all images share. */
typedef struct {
    Model model, draft;
    Generator generator, drafter;
    Speculator speculator;
    Writer writer;
    Inputs inputs;
    TokenIds prefix;
    bool cleans;                // images, before the model sees them (--preprocess auto)
    int max_new_tokens, taken;  // images taken so far
    double start, first_token;  // times, from seconds_now; 0: no token yet
} Infer;

static void open_models(Infer *f, const Ops *op, WeightFormat format);
static void run_batches(Infer *f);
static void run_beams(Infer *f);
static void run_draft(Infer *f);
static void run_best(Infer *f);
static void print_timing(const Infer *f);

int main(int argc, char **argv) {
    static Infer infer;
    Infer *f = &infer;
    Drawing drawing;
    StringList images = {NULL, 0};
    WeightFormat format;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    infer_options_parse(argc, argv, &images, &format);
    if (opt.search || opt.candidates) interrupts_take();
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    die_if(inputs_open(&f->inputs, &images, &err), &err);
    WriterOptions o = {.output = opt.output,
                       .several = f->inputs.count > 1,
                       .json = opt.json,
                       .finish = opt.finish,
                       .tidy = opt.tidy,
                       .render = opt.render,
                       .keep_tokens = opt.attention != NULL,
                       .chosen = opt.search || opt.candidates,
                       .repeat_guard = !strcmp(opt.repeat_guard, "on")};
    o.to_folder = opt.output && (o.several || is_folder(opt.output));
    if (o.to_folder || (o.several && draw_wanted(&opt.draw)))
        if (inputs_check_names(&f->inputs, opt.output ? opt.output : ".", "tex", &err)) options_die("%s", err.text);
    if (o.to_folder) die_if(make_folder(opt.output, &err), &err);
    if (opt.attention) die_if(make_folder(opt.attention, &err), &err);
    die_if(drawing_open(&drawing, opt.draw, o.several, opt.render, opt.json, &err), &err);
    open_models(f, op, format);
    o.image_size = f->model.c.vision.image_size;
    o.max_tokens = f->max_new_tokens + f->prefix.count;
    writer_open(&f->writer, o, &f->inputs, &f->model.tokenizer, &drawing);

    f->start = seconds_now();
    if (opt.search || opt.candidates)
        run_best(f);
    else if (opt.beam)
        run_beams(f);
    else if (opt.draft)
        run_draft(f);
    else
        run_batches(f);
    print_timing(f);
    const bool failed = f->writer.failures || (opt.strict && f->writer.cut);

    writer_close(&f->writer);
    drawing_close(&drawing);
    inputs_close(&f->inputs);
    free(f->prefix.ids);
    if (opt.draft) {
        speculator_close(&f->speculator);
        generator_close(&f->drafter);
        model_close(&f->draft);
    }
    generator_close(&f->generator);
    model_close(&f->model);
    free((void *)images.items);
    return failed;
}

/* ---- opening ---- */

/* Whether images are cleaned: as --preprocess says, or else the model's metadata. A model converted from another project
 * has its own habits, so that only ours are cleaned without being asked. */
static bool infer_cleans(const Model *m) {
    const char *said = opt.preprocess ? opt.preprocess : safetensors_metadata(&m->file, "hub.preprocess");
    return said ? !strcmp(said, "auto") : !safetensors_metadata(&m->file, "hub.tokenizer_config");
}

/* Opens the models and plans their memory. */
static void open_models(Infer *f, const Ops *op, WeightFormat format) {
    Error err;
    Model *m = &f->model;
    const char *path = opt.model ? opt.model : default_model();
    die_if(model_open_as(m, op, path, "", format, &err), &err);
    f->cleans = infer_cleans(m);
    int max_tokens = model_max_text(m);
    if (opt.max_tokens && opt.max_tokens < max_tokens) max_tokens = (int)opt.max_tokens;
    die_if(prefix_read(&f->prefix, opt.prefix, &m->tokenizer, path, &err), &err);
    const int prefix = f->prefix.count;
    if (opt.draft) {
        die_if(model_open_as(&f->draft, op, opt.draft, "the draft's ", format, &err), &err);
        die_if(speculator_check(m, &f->draft, &err), &err);
        if (model_max_text(&f->draft) < max_tokens) max_tokens = model_max_text(&f->draft);
    }
    if (prefix >= max_tokens)
        die("the --prefix leaves no room: it has %d tokens, and the program may have %d", prefix, max_tokens);
    f->max_new_tokens = max_tokens - prefix;
    int batch = opt.batch ? (int)opt.batch : op->host_memory ? 16 : 64;
    const int beams = opt.beam ? (int)opt.beam : 1;
    if (opt.candidates && opt.candidates < batch) batch = (int)opt.candidates;
    if (!opt.candidates && !opt.search && f->inputs.count < batch) batch = f->inputs.count;
    if (opt.search) batch = BEST_IN_FLIGHT;
    if (opt.draft || opt.attention) batch = 1;
    int T = opt.draft && prefix + 1 < SPECULATE_ROWS ? SPECULATE_ROWS : prefix + 1;
    if (opt.attention) T = max_tokens + 1;  // the whole program is read once more
    batch = generator_fit(m, batch * beams, !opt.batch && beams == 1, T, max_tokens);
    model_plan(m, batch, T);
    generator_open(&f->generator, m, batch, max_tokens);
    const int first = m->tokenizer.begin >= 0;
    generator_set_sampling(&f->generator, (float)opt.temperature, (float)opt.top_p, (int)opt.top_k,
                           (uint64_t)opt.seed, first);
    f->generator.scored = opt.json && !opt.candidates && !opt.search && !opt.draft && !opt.beam;
    if (!opt.draft) return;
    model_plan(&f->draft, 1, T);
    generator_open(&f->drafter, &f->draft, 1, max_tokens);
    generator_set_sampling(&f->drafter, (float)opt.temperature, (float)opt.top_p, (int)opt.top_k, (uint64_t)opt.seed,
                           first);
    speculator_open(&f->speculator, &f->generator, &f->drafter);
}

/* ---- one image ---- */

/* Reads an image, and prepares it as the input of the model and of the draft, if there is one: [size, size, 3] each. Warns of
 * an image that a model cannot make much of. Returns the longest side of what is not margin, or -1. */
static int prepare(Program *p, bool cleans, uint8_t *pixels, int size, uint8_t *draft_pixels, int draft_size) {
    Error err;
    Image image;
    char remark[256];
    if (input_load(p->input, &image, &err)) {
        program_fail(p, &err);
        return -1;
    }
    if (opt.invert) image_invert(&image);
    if (cleans) {
        ImageCleaned cleaned;
        image_clean(&image, &cleaned);
        if (*cleaned.text) p->preprocessing = xstrdup(cleaned.text);
        if (*cleaned.text && opt.verbose) fprintf(stderr, "%s: %s\n", p->input->path, cleaned.text);
    }
    const ImageBox box = image_trim(&image, opt.trim_near_white ? IMAGE_NEAR_WHITE : IMAGE_WHITE);
    image_prepare_box(pixels, &image, box, size);
    if (draft_pixels) image_prepare_box(draft_pixels, &image, box, draft_size);
    if (image_remark(remark, sizeof remark, &image, box, pixels, size)) warn("%s: %s", p->input->path, remark);
    image_free(&image);
    if (opt.show) terminal_show(stderr, TERMINAL_BLOCKS, &(Image){.width = size, .height = size, .rgb = pixels}, NULL);
    return box.width > box.height ? box.width : box.height;
}

/* Prepares the next image that can be read, and begins its program. Returns its number, or -1: there is none. `longest`: as
 * prepare returns it, or NULL. */
static int next_image(Infer *f, uint8_t *pixels, uint8_t *draft_pixels, int *longest) {
    const int S = f->model.c.vision.image_size, D = opt.draft ? f->draft.c.vision.image_size : 0;
    while (f->taken < f->inputs.count) {
        const int number = f->taken++;
        Program *p = &f->writer.programs[number];
        const int side = prepare(p, f->cleans, pixels, S, draft_pixels, D);
        if (side >= 0) program_begin_text(p, &f->writer, f->prefix.ids, f->prefix.count);
        if (side < 0 || p->failed) {
            writer_done(&f->writer, p, f->prefix.count);
            continue;
        }
        if (longest) *longest = side;
        if (opt.json || opt.render || opt.attention) {
            p->pixels = xmalloc((size_t)S * S * 3);
            memcpy(p->pixels, pixels, (size_t)S * S * 3);
        }
        p->log_probability = f->generator.scored ? 0 : NAN;
        p->generate_seconds = seconds_now();  // until it is done: when it began
        return number;
    }
    return -1;
}

static int source_image(void *context, uint8_t *pixels) { return next_image(context, pixels, NULL, NULL); }

/* The model computed values that are not finite: from damaged weights always, else perhaps from this image alone. */
static void fail_not_finite(Program *p, const Model *m) {
    Error why, err;
    bool damaged = model_not_finite(m, &why);
    if (damaged) die("%s", why.text);
    error_set(&err, "cannot write the program of %s: %s", p->input->path, why.text);
    program_fail(p, &err);
}

/* Writes where the model looked: into the folder of --attention, or one of the image's name in it. */
static void write_attention(Infer *f, Program *p) {
    Error err;
    char *folder = f->inputs.count > 1 ? input_output_path(opt.attention, p->input, "attention") : xstrdup(opt.attention);
    if (attention_maps_write(&f->model, p->pixels, p->ids.ids, p->ids.count, folder, p->input->path, &err))
        program_fail(p, &err);
    free(folder);
}

static void finish_program(Infer *f, Program *p) {
    p->generate_seconds = seconds_now() - p->generate_seconds;
    if (opt.attention && !p->failed) write_attention(f, p);
    writer_done(&f->writer, p, f->prefix.count);
}

/* Callback of the generator: takes token `id` of the program with this number. Returns false when the program ends. */
static bool read_token(void *context, int number, int id) {
    Infer *f = context;
    Program *p = &f->writer.programs[number];
    if (f->first_token == 0) f->first_token = seconds_now();
    if (isnan(p->prefill_seconds)) p->prefill_seconds = seconds_now() - p->generate_seconds;
    if (id < 0) fail_not_finite(p, &f->model);
    if (f->generator.scored && id >= 0) p->log_probability += f->generator.log_probability;
    const bool more =
        id >= 0 && program_add(p, &f->writer, id) && p->tokens < f->max_new_tokens + f->prefix.count;
    if (!more) finish_program(f, p);
    return more;
}

/* ---- the ways to generate ---- */

/* All images, in batches whose places the next images take as soon as a program ends. */
static void run_batches(Infer *f) {
    Generator *g = &f->generator;
    const size_t bytes = (size_t)f->model.c.vision.image_size * f->model.c.vision.image_size * 3;
    uint8_t *pixels = xmalloc(g->max_B * bytes);
    int *numbers = xmalloc(g->max_B * sizeof(int)), n = 0;
    while (n < g->max_B && (numbers[n] = next_image(f, pixels + n * bytes, NULL, NULL)) >= 0) n++;
    const Generation all = {.max_new_tokens = f->max_new_tokens,
                            .reader = read_token,
                            .source = source_image,
                            .context = f,
                            .prefix = f->prefix.ids,
                            .prefix_count = f->prefix.count,
                            .pixels = pixels};
    if (n) {
        generator_prefill(g, pixels, n, f->prefix.ids, f->prefix.count);
        generator_run_all(g, numbers, &all);
    }
    free(pixels);
    free(numbers);
}

/* Batches of images, several unfinished programs of each. */
static void run_beams(Infer *f) {
    Generator *g = &f->generator;
    const int beams = (int)opt.beam, batch = g->max_B / beams;
    const size_t bytes = (size_t)f->model.c.vision.image_size * f->model.c.vision.image_size * 3;
    const BeamOptions o = {beams, opt.length_penalty};
    uint8_t *pixels = xmalloc(batch * bytes);
    int *numbers = xmalloc(batch * sizeof(int)), n;
    BeamResult *results = xcalloc(batch, sizeof(BeamResult));
    do {
        for (n = 0; n < batch && (numbers[n] = next_image(f, pixels + n * bytes, NULL, NULL)) >= 0;) n++;
        if (n) beam_search(g, pixels, n, f->prefix.ids, f->prefix.count, &o, f->max_new_tokens, results);
        for (int i = 0; i < n; i++) {
            Program *p = &f->writer.programs[numbers[i]];
            if (f->first_token == 0) f->first_token = seconds_now();
            if (results[i].failed) fail_not_finite(p, &f->model);
            for (int k = 0; k < results[i].count && !p->failed; k++) program_add(p, &f->writer, results[i].ids[k]);
            p->ended = results[i].ended;
            p->log_probability = results[i].log_probability;
            finish_program(f, p);
            beam_result_free(&results[i]);
        }
    } while (n == batch);
    free(pixels);
    free(numbers);
    free(results);
}

/* One image after another: the draft proposes tokens, the model checks them. */
static void run_draft(Infer *f) {
    const size_t S = f->model.c.vision.image_size, D = f->draft.c.vision.image_size;
    uint8_t *pixels = xmalloc(S * S * 3), *draft_pixels = xmalloc(D * D * 3);
    int number;
    while ((number = next_image(f, pixels, draft_pixels, NULL)) >= 0) {
        generator_prefill(&f->generator, pixels, 1, f->prefix.ids, f->prefix.count);
        generator_prefill(&f->drafter, draft_pixels, 1, f->prefix.ids, f->prefix.count);
        speculator_run(&f->speculator, number, number, f->max_new_tokens, read_token, f);
    }
    free(pixels);
    free(draft_pixels);
}

/* One image after another: several programs, of which the best is kept. */
static void run_best(Infer *f) {
    Best best;
    Error err;
    BestOptions o = {.candidates = (int)opt.candidates,
                     .exploration = opt.exploration,
                     .strict = opt.strict,
                     .unsafe = opt.draw.unsafe,
                     .seed = (uint64_t)opt.seed,
                     .quiet = opt.quiet,
                     .max_new_tokens = f->max_new_tokens};
    if (opt.search && best_budget(&o, opt.search, &err)) options_die("%s", err.text);
    const size_t S = f->model.c.vision.image_size;
    uint8_t *pixels = xmalloc(S * S * 3);
    die_if(best_open(&best, o, &f->generator, f->prefix.ids, f->prefix.count, &err), &err);
    int number, longest = 0;
    while (!best.interrupted && (number = next_image(f, pixels, NULL, &longest)) >= 0) {
        Program *p = &f->writer.programs[number];
        die_if(best_find(&best, p, number, pixels, longest, &err), &err);
        finish_program(f, p);
    }
    best_close(&best);
    free(pixels);
}

/* Reports the latency and the rate of generation. */
static void print_timing(const Infer *f) {
    const double seconds = seconds_now() - f->first_token;
    const char *device = ops_name(f->model.op).text;
    const long tokens = f->writer.tokens;
    if (opt.quiet || f->first_token == 0) return;
    char *what = f->taken == 1 ? xstrdup(f->inputs.items[0].path) : format_string("%d images", f->taken);
    fprintf(stderr, "%s: first token after %.0f ms, %ld tokens at %.0f tokens/s on %s\n", what,
            1e3 * (f->first_token - f->start), tokens, seconds > 0 ? (double)tokens / seconds : 0, device);
    if (opt.draft)
        fprintf(stderr, "%ld of %ld tokens that the draft proposed were taken\n", f->speculator.accepted,
                f->speculator.offered);
    free(what);
}
