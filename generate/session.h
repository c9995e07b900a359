/* A session: one model of infer, its generator, and the memory that its images share in the way of generating that the options
 * ask for. */
#ifndef GENERATE_SESSION_H
#define GENERATE_SESSION_H

#include "../lib/file_checksum.h"
#include "../lora.h"
#include "best.h"
#include "fit.h"
#include "options.h"
#include "prefix.h"
#include "prepare.h"
#include "speculate.h"
#include "tell_task.h"

typedef struct {
    Model model, draft;
    Generator generator, drafter;
    Speculator speculator;
    ProgramModel known;  // the model, for the writer
    Writer *writer;      // shared by all sessions
    const Inputs *inputs;
    TokenIds prefix;
    PreprocessOptions prepare;
    int images, max_new_tokens;
    int taken;           // of the inputs, how many were looked at so far
    double first_token;  // its time, from seconds_now; 0: no token yet
} Session;

enum { SESSIONS = 2 };  // a model of figures, and one of formulas

/* Plans memory for `images` images at a time, with each_image sequences of each, and opens the generator. T: text tokens of
 * the longest pass. */
static void session_open_generator(Session *s, Generator *g, Model *m, int images, int each_image, int T) {
    const int max_tokens = s->max_new_tokens + s->prefix.count;
    model_plan(m, images, T);
    generator_open(g, m, images * each_image, max_tokens);
    generator_set_sampling(g, (float)opt.temperature, (float)opt.top_p, (int)opt.top_k, (uint64_t)opt.seed,
                           m->tokenizer.begin >= 0);
}

/* Whether the probability of every token is computed anyway, for the warning about unlikely programs: where that costs nothing. On a
 * GPU each token would have to be waited for. */
static bool session_scores(const Model *m) { return m->op->host_memory && m->c.lm.vocab <= 4096; }

/* Decides how many images and sequences are generated at a time, which depends on the way to generate. */
static void session_plan(Session *s) {
    Model *m = &s->model;
    const int max_tokens = s->max_new_tokens + s->prefix.count;
    int images = opt.batch ? (int)opt.batch : m->op->host_memory ? 16 : 64, each_image = 1, T = s->prefix.count + 1;
    if (opt.candidates) each_image = opt.candidates < images ? (int)opt.candidates : images;
    if (opt.search) each_image = BEST_IN_FLIGHT;
    if (opt.beam) each_image = (int)opt.beam;
    if (opt.candidates || opt.search || opt.draft || opt.attention) images = 1;
    if (s->images < images) images = s->images;
    while (!opt.batch && images > 1 && images * each_image > GENERATOR_MAX_BATCH) images /= 2;
    if (T < each_image) T = each_image;                           // the sequences of an image are rows of one pass
    if (opt.draft && T < SPECULATE_ROWS) T = SPECULATE_ROWS;      // and so are the tokens that a draft proposes
    if (opt.attention && T < max_tokens + 1) T = max_tokens + 1;  // the whole program is read once more
    images = generator_fit(m, images, each_image, !opt.batch, T, max_tokens);
    session_open_generator(s, &s->generator, m, images, each_image, T);
    s->generator.scored = (opt.json || (opt.temperature == 0 && session_scores(m))) && !opt.candidates && !opt.search && !opt.draft && !opt.beam;
    if (!opt.draft) return;
    session_open_generator(s, &s->drafter, &s->draft, 1, 1, T);
    speculator_open(&s->speculator, &s->generator, &s->drafter);
}

/* What the model writes: what it says of itself, else what --task says, else TikZ. Ends the program where the two differ. */
static RenderTask session_task(const Model *m, const char *path) {
    const char *said = m->tokenizer.task, *wanted = opt.task && strcmp(opt.task, "auto") ? opt.task : "";
    if (*said && *wanted && strcmp(said, wanted) != 0)
        die("--task %s: the task of %s is %s; name another model with --model", wanted, path, said);
    const RenderTask task = strcmp(*said ? said : wanted, "formula") ? RENDER_TIKZ : RENDER_FORMULA;
    if (task == RENDER_FORMULA && opt.tidy && !opt.formula_model)
        die("--tidy is for TikZ programs, and %s writes formulas, whose spaces are always tidied", path);
    if (task == RENDER_TIKZ && !opt.formula_model && (opt.display || opt.inline_math || opt.plain))
        die("--display, --inline and --plain are for formulas, and %s writes TikZ programs", path);
    return task;
}

/* Opens the model at `path`, and what goes with it, for s->images images. Ends the program where that is not possible. */
static void session_open(Session *s, const char *path, const Ops *op, WeightFormat format) {
    Error err;
    Model *m = &s->model;
    die_if(model_open_as(m, op, path, "", format, &err), &err);
    if (opt.lora) die_if(lora_open(m, opt.lora, &err), &err);
    const char *preprocess = opt.preprocess ? opt.preprocess : opt.dataset ? "plain" : preprocess_of_model(m, &err);
    if (!preprocess) die("%s", err.text);
    s->prepare = (PreprocessOptions){.preprocess = preprocess,
                                  .trim_near_white = opt.trim_near_white,
                                  .invert = opt.invert,
                                  .verbose = opt.verbose,
                                  .show = opt.show,
                                  .size = vision_size(&m->c.vision)};
    int max_tokens = model_max_text(m);
    if (opt.max_tokens && opt.max_tokens < max_tokens) max_tokens = (int)opt.max_tokens;
    die_if(prefix_read(&s->prefix, opt.prefix, &m->tokenizer, path, &err), &err);
    if (opt.draft) {
        die_if(model_open_as(&s->draft, op, opt.draft, "the draft's ", format, &err), &err);
        die_if(speculator_check(m, &s->draft, &err), &err);
        s->prepare.draft_size = vision_size(&s->draft.c.vision);
        if (model_max_text(&s->draft) < max_tokens) max_tokens = model_max_text(&s->draft);
    }
    if (s->prefix.count >= max_tokens)
        die("the --prefix leaves no room: it has %d tokens, and the program may have %d", s->prefix.count,
            max_tokens);
    s->max_new_tokens = max_tokens - s->prefix.count;
    s->known = (ProgramModel){&m->tokenizer, session_task(m, path), vision_size(&m->c.vision), max_tokens};
    session_plan(s);
}

/* The task of an input, as the models see it. One that cannot be read has none, which is said later: a figure. */
static RenderTask input_task(Input *input) {
    Error err;
    Image image;
    if (input_load(input, &image, &err)) return RENDER_TIKZ;
    if (opt.invert) image_invert(&image);
    const RenderTask task = tell_task(&image, !opt.preprocess || !strcmp(opt.preprocess, "auto"));
    image_free(&image);
    return task;
}

/* Tells the tasks of all inputs, and how many images there are of each; says on stderr what was told. */
static void tell_tasks(Inputs *inputs, RenderTask *tasks, int *images) {
    static const char *const kinds[] = {[RENDER_TIKZ] = "a figure", [RENDER_FORMULA] = "a formula"};
    images[RENDER_TIKZ] = images[RENDER_FORMULA] = 0;
    for (int i = 0; i < inputs->count; i++) {
        tasks[i] = input_task(&inputs->items[i]);
        images[tasks[i]]++;
        if (opt.verbose || (inputs->count == 1 && !opt.quiet))
            fprintf(stderr, "%s: taken for %s; --task %s takes it for %s\n", inputs->items[i].path, kinds[tasks[i]],
                    render_task_names[!tasks[i]], kinds[!tasks[i]]);
    }
    if (inputs->count > 1 && !opt.verbose && !opt.quiet)
        fprintf(stderr, "%d of %d images taken for formulas, the others for figures; --verbose says which\n",
                images[RENDER_FORMULA], inputs->count);
}

/* Opens a session for the model, or, where there are one of figures and one of formulas, for each of them that has images of its
 * task. Returns the number of sessions. */
static int sessions_open(Session *sessions, Writer *w, Inputs *inputs, const Ops *op, WeightFormat format) {
    const char *const paths[SESSIONS] = {[RENDER_TIKZ] = opt.model, [RENDER_FORMULA] = opt.formula_model};
    RenderTask *tasks = xcalloc((size_t)inputs->count, sizeof *tasks);
    int images[SESSIONS] = {inputs->count, 0}, count = 0;
    if (opt.formula_model) tell_tasks(inputs, tasks, images);
    for (int k = 0; k < SESSIONS; k++) {
        Session *s = &sessions[count];
        if (!images[k]) continue;
        *s = (Session){.writer = w, .inputs = inputs, .images = images[k]};
        session_open(s, paths[k], op, format);
        for (int i = 0; i < inputs->count; i++)
            if (tasks[i] == (RenderTask)k) w->programs[i].model = &s->known;
        count++;
    }
    free(tasks);
    return count;
}

/* Takes over what an earlier run of --dataset has written. */
static void session_begin_dataset(const Session *s, GeneratedData *generated, WeightFormat format) {
    Error err;
    uint64_t model, adapter = 0;
    char *settings = dataset_settings(format, s->known.task, s->prepare.preprocess, s->max_new_tokens);
    die_if(file_checksum(generated->o.model_path, &model, &err), &err);
    if (opt.lora) die_if(file_checksum(opt.lora, &adapter, &err), &err);
    if (opt.lora) model = hash_bytes(model, &adapter, sizeof adapter);
    generated->o.task = s->known.task;
    generated_begin(generated, &s->model.tokenizer, model, settings);
    free(settings);
}

static void session_close(Session *s) {
    if (opt.draft) {
        speculator_close(&s->speculator);
        generator_close(&s->drafter);
        model_close(&s->draft);
    }
    generator_close(&s->generator);
    model_close(&s->model);
    free(s->prefix.ids);
}

#endif
