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
#include "generate/score.h"
#include "generate/session.h"
#include "lib/program.h"
#include "lib/threads.h"

static void run_batches(Session *s);
static void run_beams(Session *s);
static void run_draft(Session *s);
static void run_best(Session *s);
static void print_timing(const Session *s, int count, double start);

int main(int argc, char **argv) {
    static Session sessions[SESSIONS];  // one for each model
    static GeneratedData generated;     // --dataset
    Inputs inputs = {0};
    Writer writer;
    Drawing drawing;
    StringList images = {NULL, 0};
    WeightFormat format;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    infer_options_parse(argc, argv, &images, &format);
    if (opt.search || opt.candidates || opt.dataset) interrupts_take();
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    if (opt.dataset)
        generated_open(&generated, dataset_options(images.items[0]), &inputs);
    else
        die_if(inputs_open(&inputs, &images, &err), &err);
    WriterOptions o = {.output = opt.output,
                       .several = inputs.count > 1 || opt.dataset,
                       .json = opt.json,
                       .finish = opt.finish,
                       .tidy = opt.tidy,
                       .style = opt.display ? FORMULA_DISPLAY : opt.inline_math ? FORMULA_INLINE : FORMULA_PLAIN,
                       .render = opt.render,
                       .doubts = !opt.quiet && opt.temperature == 0,  // what is sampled is unlikely anyway
                       .repeat_guard = !strcmp(opt.repeat_guard, "on"),
                       .generated = opt.dataset ? &generated : NULL};
    o.to_folder = opt.output && (o.several || is_folder(opt.output));
    if (o.to_folder || (o.several && draw_wanted(&opt.draw)))
        if (inputs_check_names(&inputs, opt.output ? opt.output : ".", "tex", &err)) options_die("%s", err.text);
    if (opt.attention && o.several && inputs_check_names(&inputs, opt.attention, "attention", &err))
        options_die("%s", err.text);
    if (o.to_folder) die_if(make_folder(opt.output, &err), &err);
    if (opt.attention) die_if(make_folder(opt.attention, &err), &err);
    die_if(drawing_open(&drawing, opt.draw, o.several, opt.render, opt.json, &err), &err);
    writer_open(&writer, o, &inputs, &drawing);
    const int count = sessions_open(sessions, &writer, &inputs, op, format);
    if (opt.dataset) session_begin_dataset(sessions, &generated, format);

    const double start = seconds_now();
    void (*const generate)(Session *) = opt.search || opt.candidates ? run_best
                                        : opt.beam                   ? run_beams
                                        : opt.draft                  ? run_draft
                                                                     : run_batches;
    for (Session *s = sessions; s < sessions + count; s++) generate(s);
    writer_finish(&writer);
    if (opt.dataset) generated_finish(&generated);
    print_timing(sessions, count, start);
    const bool failed = writer.failures || (opt.strict && writer.cut);

    for (Session *s = sessions; s < sessions + count; s++) session_close(s);
    writer_close(&writer);
    drawing_close(&drawing);
    inputs_close(&inputs);
    free((void *)images.items);
    return failed;
}

/* ---- one image ---- */

/* Prepares the next image that can be read, [height, width, 3] for the model and for the draft (NULL: none), and begins its
 * program. Returns its number, or -1: there is none. */
static int next_image(Session *s, uint8_t *pixels, uint8_t *draft_pixels) {
    const size_t bytes = model_pixels(&s->model);
    while (s->taken < s->inputs->count && !(opt.dataset && interrupted())) {
        const int number = s->taken++;
        Program *p = &s->writer->programs[number];
        if (p->model != &s->known) continue;
        if (opt.dataset && generated_has(s->writer->o.generated, number)) continue;
        program_prepare(p, &s->prepare, pixels, draft_pixels);
        if (!p->failed) program_begin_text(p, s->writer, s->prefix.ids, s->prefix.count);
        if (p->failed) {
            writer_done(s->writer, p);
            continue;
        }
        if (opt.json || opt.render || opt.attention) p->pixels = memcpy(xmalloc(bytes), pixels, bytes);
        if (s->generator.scored) p->log_probability = 0;
        p->generate_seconds = seconds_now();  // until it is done: when it began
        return number;
    }
    return -1;
}

static int source_image(void *context, uint8_t *pixels) { return next_image(context, pixels, NULL); }

/* The model computed values that are not finite: from damaged weights always, else perhaps from this image alone. */
static void fail_not_finite(Program *p, const Model *m) {
    Error why, err;
    bool damaged = model_not_finite(m, &why);
    if (damaged) die("%s", why.text);
    error_set(&err, "cannot write the program of %s: %s", p->input->path, why.text);
    program_fail(p, &err);
}

/* Writes where the model looked: into the folder of --attention, or one of the image's name in it. */
static void write_attention(Session *s, Program *p) {
    Error err;
    char *folder =
        s->inputs->count > 1 ? input_output_path(opt.attention, p->input, "attention") : xstrdup(opt.attention);
    if (attention_maps_write(&s->model, p->pixels, p->ids.ids, p->tokens, folder, p->input->path, &err))
        program_fail(p, &err);
    free(folder);
}

static void finish_program(Session *s, Program *p) {
    p->generate_seconds = seconds_now() - p->generate_seconds;
    if (opt.attention && !p->failed) write_attention(s, p);
    writer_done(s->writer, p);
}

/* Callback of the speculator: takes token `id` of the program with this number. Returns false when the program ends. */
static bool take_token(void *context, int number, int id) {
    Session *s = context;
    Program *p = &s->writer->programs[number];
    if (s->first_token == 0) s->first_token = seconds_now();
    if (isnan(p->prefill_seconds)) p->prefill_seconds = seconds_now() - p->generate_seconds;
    if (id < 0) fail_not_finite(p, &s->model);
    return id >= 0 && program_add(p, s->writer, id) && p->tokens < s->max_new_tokens + s->prefix.count;
}

/* Callback of the generator: the same, and finishes a program that ends. */
static bool read_token(void *context, int number, int id) {
    Session *s = context;
    Program *p = &s->writer->programs[number];
    if (s->generator.scored) p->log_probability += s->generator.log_probability;
    const bool more = take_token(s, number, id);
    if (!more) finish_program(s, p);
    return more;
}

/* Computes the log-probability of a program that was not sampled by the generator. */
static void score_program(Session *s, Program *p) {
    const int prefix = s->prefix.count;
    if (!opt.json || p->failed || p->ids.count <= prefix) return;
    p->log_probability =
        generator_score(&s->generator, p->pixels, s->prefix.ids, prefix, p->ids.ids + prefix, p->ids.count - prefix);
}

/* ---- the ways to generate ---- */

/* All images, in batches whose places the next images take as soon as a program ends. */
static void run_batches(Session *s) {
    Generator *g = &s->generator;
    const size_t bytes = model_pixels(&s->model);
    uint8_t *pixels = xmalloc(g->max_B * bytes);
    int *numbers = xmalloc(g->max_B * sizeof(int)), n = 0;
    while (n < g->max_B && (numbers[n] = next_image(s, pixels + n * bytes, NULL)) >= 0) n++;
    const Generation all = {.max_new_tokens = s->max_new_tokens,
                            .reader = read_token,
                            .source = source_image,
                            .context = s,
                            .prefix = s->prefix.ids,
                            .prefix_count = s->prefix.count,
                            .pixels = pixels};
    if (n) {
        generator_prefill(g, pixels, n, s->prefix.ids, s->prefix.count);
        generator_run_all(g, numbers, &all);
    }
    free(pixels);
    free(numbers);
}

/* Batches of images, several unfinished programs of each. */
static void run_beams(Session *s) {
    Generator *g = &s->generator;
    const int batch = g->max_B / (int)opt.beam;
    const size_t bytes = model_pixels(&s->model);
    const BeamOptions o = {(int)opt.beam, opt.length_penalty};
    uint8_t *pixels = xmalloc(batch * bytes);
    int *numbers = xmalloc(batch * sizeof(int)), n;
    BeamResult *results = xcalloc(batch, sizeof(BeamResult));
    do {
        for (n = 0; n < batch && (numbers[n] = next_image(s, pixels + n * bytes, NULL)) >= 0;) n++;
        if (n) beam_search(g, pixels, n, s->prefix.ids, s->prefix.count, &o, s->max_new_tokens, results);
        for (int i = 0; i < n; i++) {
            Program *p = &s->writer->programs[numbers[i]];
            if (results[i].failed) fail_not_finite(p, &s->model);
            program_add_all(p, s->writer, results[i].ids, results[i].count, results[i].ended);
            p->log_probability = results[i].log_probability;
            finish_program(s, p);
            beam_result_free(&results[i]);
        }
    } while (n == batch);
    free(pixels);
    free(numbers);
    free(results);
}

/* One image after another: the draft proposes tokens, the model checks them. */
static void run_draft(Session *s) {
    uint8_t *pixels = xmalloc(model_pixels(&s->model)), *draft_pixels = xmalloc(model_pixels(&s->draft));
    int number;
    while ((number = next_image(s, pixels, draft_pixels)) >= 0) {
        Program *p = &s->writer->programs[number];
        generator_prefill(&s->generator, pixels, 1, s->prefix.ids, s->prefix.count);
        generator_prefill(&s->drafter, draft_pixels, 1, s->prefix.ids, s->prefix.count);
        speculator_run(&s->speculator, number, number, s->max_new_tokens, take_token, s);
        score_program(s, p);
        finish_program(s, p);
    }
    free(pixels);
    free(draft_pixels);
}

/* Takes over the program that was chosen for an image. */
static void take_best(Session *s, Program *p, const BestProgram *found) {
    Error err;
    const int prefix = s->prefix.count, count = found->count;
    if (found->not_finite) {
        fail_not_finite(p, &s->model);
    } else if (!found->ids) {
        error_set(&err, "no program of %s was found in time", p->input->path);
        program_fail(p, &err);
    } else {
        const bool ended = count > prefix && tokenizer_ends(&s->model.tokenizer, found->ids[count - 1]);
        program_add_all(p, s->writer, found->ids + prefix, count - prefix, ended);
    }
    if (!p->looped) p->similarity = found->similarity;  // else it was judged with all rounds of the loop
    score_program(s, p);
}

/* One image after another: several programs, of which the best is kept. Ctrl-C ends the search of an image, which keeps what
 * it has found; the images after it have no programs (writer_finish). */
static void run_best(Session *s) {
    Best best;
    Error err;
    BestOptions o = {.task = s->known.task,
                     .candidates = (int)opt.candidates,
                     .exploration = opt.exploration,
                     .strict = opt.strict,
                     .unsafe = opt.draw.unsafe,
                     .seed = (uint64_t)opt.seed,
                     .quiet = opt.quiet,
                     .max_new_tokens = s->max_new_tokens};
    best_reward(&o, opt.reward);  // checked with the options, as the budget
    if (opt.search) best_budget(&o, opt.search, &err);
    uint8_t *pixels = xmalloc(model_pixels(&s->model));
    die_if(best_open(&best, o, &s->generator, s->prefix.ids, s->prefix.count, &err), &err);
    int number;
    while (!interrupted() && (number = next_image(s, pixels, NULL)) >= 0) {
        Program *p = &s->writer->programs[number];
        BestProgram found;
        die_if(best_find(&best, number, p->input->path, pixels, p->extent, &found, &err), &err);
        if (opt.dataset && interrupted()) {  // what a search has found so far is not what it would have found
            free(found.ids);
            break;
        }
        take_best(s, p, &found);
        finish_program(s, p);
        free(found.ids);
    }
    best_close(&best);
    free(pixels);
}

/* Reports the latency and the rate of generation. */
static void print_timing(const Session *s, int count, double start) {
    const Inputs *inputs = s->inputs;
    const long tokens = s->writer->tokens;
    double first_token = 0;
    if (opt.quiet || !tokens) return;
    for (int i = 0; i < count; i++)
        if (s[i].first_token > 0 && (first_token == 0 || s[i].first_token < first_token)) first_token = s[i].first_token;
    const double seconds = seconds_now() - (first_token > 0 ? first_token : start);
    char *what = s->taken == 1 ? xstrdup(inputs->items[0].path) : format_string("%d images", s->taken), *first = NULL;
    if (first_token > 0) first = format_string("first token after %.0f ms, ", 1e3 * (first_token - start));
    fprintf(stderr, "%s: %s%ld tokens at %.0f tokens/s on %s\n", what, first ? first : "", tokens,
            seconds > 0 ? (double)tokens / seconds : 0, ops_name(s->model.op).text);
    if (opt.draft)
        fprintf(stderr, "%ld of %ld tokens that the draft proposed were taken\n", s->speculator.accepted,
                s->speculator.offered);
    free(what);
    free(first);
}
