/* The command line of infer. */
#ifndef GENERATE_OPTIONS_H
#define GENERATE_OPTIONS_H

#include "../lib/file.h"
#include "../lib/options.h"
#include "../weights.h"
#include "best.h"
#include "dataset_write.h"
#include "default_model.h"
#include "draw.h"
#include "prepare.h"

static struct {
    const char *model, *output, *device, *prefix, *weights, *draft, *search, *reward, *repeat_guard, *preprocess,
        *attention, *task, *lora, *dataset, *keep,
        *formula_model;  // where --task auto decides image by image: the model of formulas; NULL: opt.model reads all images
    double temperature, top_p, exploration, length_penalty;
    int64_t top_k, seed, max_tokens, threads, batch, candidates, beam, samples, jobs;
    bool trim_near_white, invert, quiet, verbose, show, strict, json, render, finish, tidy, display, inline_math, plain, resume;
    DrawOptions draw;
} opt = {.device = "auto",
         .reward = "pixels",
         .repeat_guard = "on",
         .keep = "all",
         .samples = 1,
         .top_p = 1,
         .exploration = 0.6,
         .length_penalty = 1,
         .seed = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE",
     "model file (default: out/best.safetensors, else out/student.safetensors, else the starter student; for formulas "
     "the reader in dev/formula)",
     0, 0},
    {"task", 0, OPT_STRING, &opt.task, "tikz|formula|auto",
     "what the images show and the model writes: figures in TikZ, or formulas in LaTeX; auto: what the model says of "
     "itself; without --model, infer tells from each image which it shows (default: auto)",
     0, 0},
    {"lora", 0, OPT_STRING, &opt.lora, "FILE", "adapter of the model, from train_distill --lora", 0, 0},
    {"output", 'o', OPT_STRING, &opt.output, "FILE|DIR",
     "write there; with several images, or when it is a folder, as NAME.tex in it", 0, 0},
    {"pdf", 0, OPT_STRING, &opt.draw.pdf, "FILE|DIR", "compile the program, and write the drawing as PDF", 0, 0},
    {"png", 0, OPT_STRING, &opt.draw.png, "FILE|DIR", "the same as PNG, 300 pixels an inch", 0, 0},
    {"svg", 0, OPT_STRING, &opt.draw.svg, "FILE|DIR", "the same as SVG", 0, 0},
    {"check", 0, OPT_FLAG, &opt.draw.check, NULL, "compile the program; status 1 if TeX reports an error", 0, 0},
    {"render", 0, OPT_FLAG, &opt.render, NULL, "show image and drawing side by side in the terminal", 0, 0},
    {"json", 0, OPT_FLAG, &opt.json, NULL,
     "print one JSON object per image: task, program, log-probability (natural logarithm), confidence (the geometric mean "
     "of the probabilities of its tokens, the end included), whether it compiles, similarity, errors, times", 0,
     0},
    {"beam", 0, OPT_INT, &opt.beam, "N",
     "beam search with N unfinished programs of each image, for the likeliest program", 1, 1024},
    {"length-penalty", 0, OPT_FLOAT, &opt.length_penalty, "X",
     "of --beam: the log-probability is divided by the length to the power of X", -100, 100},
    {"candidates", 'c', OPT_INT, &opt.candidates, "N",
     "sample N programs, and keep the one that compiles and is most like the image", 1, 1e6},
    {"search", 's', OPT_STRING, &opt.search, "SECONDS|N",
     "search the best program of an image by writing, compiling and comparing: for so many seconds (10s, 2.5s), or so "
     "many programs (200)",
     0, 0},
    {"exploration", 0, OPT_FLOAT, &opt.exploration, "C", "of --search: how much it tries other beginnings", 0, 100},
    {"reward", 0, OPT_STRING, &opt.reward, "NAME",
     "what --search and --candidates look for: drawings that are like the image in their pixels, or, in the model's "
     "own features, in the same places (places), on the mean (mean) or by the earth mover's distance (emd); or only "
     "programs that compile (compiler)",
     0, 0},
    {"draft", 0, OPT_STRING, &opt.draft, "FILE",
     "a smaller model with the same tokenizer, which proposes tokens: the same programs, sooner; with --temperature, "
     "other draws from the same distribution", 0, 0},
    {"dataset", 0, OPT_STRING, &opt.dataset, "OUT.bin",
     "the IMAGE is a data set (a .bin file, or a pattern in quotes): write the programs for its images as the data set "
     "OUT.bin, for train_distill --data; images are taken as they are, unless --preprocess is given",
     0, 0},
    {"keep", 0, OPT_STRING, &opt.keep, "all|compiling|same",
     "of --dataset: keep all programs that have an end, those that compile without errors, or of these those that draw "
     "the same pixels as the data set's own program",
     0, 0},
    {"samples", 0, OPT_INT, &opt.samples, "N",
     "of --dataset: programs for each image; several are sampled at --temperature, by default 0.8", 1, 1024},
    {"jobs", 0, OPT_INT, &opt.jobs, "N", "of --dataset: programs that are drawn at a time; 0: one for each processor",
     0, 1024},
    {"resume", 0, OPT_FLAG, &opt.resume, NULL, "of --dataset: go on with the programs that a stopped run has written",
     0, 0},
    {"attention", 0, OPT_STRING, &opt.attention, "DIR",
     "write there, for each token, a picture of where in the image the model looked, and a page with all of them", 0,
     0},
    {"finish", 0, OPT_FLAG, &opt.finish, NULL, "close what is open in a program that was cut, so that it compiles", 0,
     0},
    {"tidy", 0, OPT_FLAG, &opt.tidy, NULL, "keep only the packages that a program uses, and lay it out", 0, 0},
    {"display", 0, OPT_FLAG, &opt.display, NULL, "write a formula as \\[...\\]", 0, 0},
    {"inline", 0, OPT_FLAG, &opt.inline_math, NULL, "write a formula as $...$", 0, 0},
    {"plain", 0, OPT_FLAG, &opt.plain, NULL, "write a formula without delimiters (the default)", 0, 0},
    {"repeat-guard", 0, OPT_STRING, &opt.repeat_guard, "on|off",
     "stop a program that repeats the same tokens for ever", 0, 0},
    {"unsafe-tex", 0, OPT_FLAG, &opt.draw.unsafe, NULL,
     "let TeX read and write all files and start programs: only for programs that you have read", 0, 0},
    {"prefix", 0, OPT_STRING, &opt.prefix, "TEXT", "every program begins with this text, and the model continues it",
     0, 0},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T",
     "0 takes the likeliest token; DeTikZify samples at 0.8, and so do --candidates and --search by default", 0, 100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "sample among the likeliest tokens that together reach P", 0, 1},
    {"top-k", 0, OPT_INT, &opt.top_k, "K", "sample among the K likeliest tokens; 0: all", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "random seed for sampling; each image has its own stream", 0, 1e15},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "longest program, with the prefix; 0: as long as the model allows", 0, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N",
     "images whose programs are generated together; 0: 16, on a GPU 64, or as many as there is memory for", 0, 1024},
    {"weights", 'w', OPT_STRING, &opt.weights, "q8|q4",
     "use weights of 8 or 4 bits, rounded while the model is loaded: less memory, and faster where memory is the limit",
     0, 0},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"preprocess", 0, OPT_STRING, &opt.preprocess, "auto|plain|detikzify",
     "auto: first make paper white, undo dark mode, uneven light and small rotations, remove noise; a clean image "
     "stays as it is. detikzify: enlarge it first, as DeTikZify's own program does (default: auto; for models "
     "converted from other projects plain)",
     0, 0},
    {"trim-near-white", 0, OPT_FLAG, &opt.trim_near_white, NULL,
     "also cut off a margin that is only nearly white, as JPEG leaves it", 0, 0},
    {"invert", 0, OPT_FLAG, &opt.invert, NULL, "make light dark and dark light: for light lines on a dark ground", 0,
     0},
    {"show", 0, OPT_FLAG, &opt.show, NULL, "draw the image as the model sees it, in coloured characters on stderr", 0,
     0},
    {"strict", 0, OPT_FLAG, &opt.strict, NULL,
     "status 1 also when a program was cut at the limit; it is kept. --search and --candidates keep a program with errors "
     "only if none is without, even where it draws something",
     0, 0},
    {"verbose", 'v', OPT_FLAG, &opt.verbose, NULL, "say on stderr what was done to an image", 0, 0},
    {"quiet", 'q', OPT_FLAG, &opt.quiet, NULL, "no timing, no task that was told and no warning of low confidence on stderr", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

static void check_values(WeightFormat *format) {
    BestOptions best;
    Error err;
    if (weight_format(opt.weights, format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    if (strcmp(opt.repeat_guard, "on") && strcmp(opt.repeat_guard, "off"))
        options_die("--repeat-guard must be on or off, not '%.40s'", opt.repeat_guard);
    if (opt.preprocess && !preprocess_known(opt.preprocess))
        options_die("--preprocess must be auto, plain or detikzify, not '%.40s'", opt.preprocess);
    if (opt.task && strcmp(opt.task, "auto") && strcmp(opt.task, "tikz") && strcmp(opt.task, "formula"))
        options_die("--task must be tikz, formula or auto, not '%.40s'", opt.task);
    if (best_reward(&best, opt.reward))
        options_die("--reward must be pixels, places, mean, emd or compiler, not '%.40s'", opt.reward);
    if (opt.search && best_budget(&best, opt.search, &err)) options_die("%s", err.text);
}

/* Refuses options that do not go together, or that would have no effect. */
static void check_combinations(void) {
    const bool best = opt.search || opt.candidates;
    if (!!opt.search + !!opt.candidates + !!opt.beam + !!opt.draft > 1)
        options_die("--search, --candidates, --beam and --draft cannot be used together");
    if (opt.display + opt.inline_math + opt.plain > 1) options_die("--display, --inline and --plain cannot be used together");
    if (opt.beam && opt.temperature > 0) options_die("--beam does not sample; leave out --temperature");
    if (!opt.beam && options_given(&opt.length_penalty)) options_die("--length-penalty is an option of --beam");
    if (!opt.search && options_given(&opt.exploration)) options_die("--exploration is an option of --search");
    if (!best && options_given(&opt.reward)) options_die("--reward is an option of --search and --candidates");
    if (best && !options_given(&opt.temperature)) opt.temperature = 0.8;
    if (best && opt.temperature == 0) options_die("--search and --candidates sample; --temperature must not be 0");
}

/* --dataset writes what the model has written, of one data set. */
static void check_dataset(const StringList *images) {
    const struct {
        const char *name;
        bool given;
    } without[] = {{"output", opt.output},        {"json", opt.json},
                   {"render", opt.render},        {"check", opt.draw.check},
                   {"pdf", opt.draw.pdf},         {"png", opt.draw.png},
                   {"svg", opt.draw.svg},         {"unsafe-tex", opt.draw.unsafe},
                   {"finish", opt.finish},        {"tidy", opt.tidy},
                   {"attention", opt.attention},  {"strict", opt.strict},
                   {"display", opt.display},      {"inline", opt.inline_math},
                   {"plain", opt.plain}},
      only[] = {{"keep", options_given(&opt.keep)},
                {"samples", options_given(&opt.samples)},
                {"jobs", options_given(&opt.jobs)},
                {"resume", opt.resume}};
    for (size_t i = 0; i < sizeof only / sizeof *only; i++)
        if (!opt.dataset && only[i].given) options_die("--%s is an option of --dataset", only[i].name);
    if (!opt.dataset) return;
    for (size_t i = 0; i < sizeof without / sizeof *without; i++)
        if (without[i].given)
            options_die("--dataset writes programs as the model writes them, into one file; leave out --%s",
                        without[i].name);
    if (images->count != 1)
        options_die("--dataset takes one data set, a .bin file or a pattern in quotes, not %d", images->count);
    if (name_index(opt.keep, keep_names, KEEP_KINDS) < 0)
        options_die("--keep must be all, compiling or same, not '%.40s'", opt.keep);
    if (opt.samples > 1 && (opt.beam || opt.candidates || opt.search || opt.draft))
        options_die("--samples cannot be used with --beam, --candidates, --search and --draft");
    if (opt.samples > 1 && !options_given(&opt.temperature)) opt.temperature = 0.8;
    if (opt.samples > 1 && opt.temperature == 0) options_die("--samples samples; --temperature must not be 0");
}

/* What decides the programs of --dataset, beside model and data, as text. */
static char *dataset_settings(WeightFormat format, RenderTask task, const char *preprocess, int max_tokens) {
    return format_string("%s %d %.17g %.17g %lld %lld %lld %lld %lld %.17g %s %.17g %s %s %s %s %d %d %d %s",
                         opt.prefix ? opt.prefix : "", max_tokens, opt.temperature, opt.top_p, (long long)opt.top_k,
                         (long long)opt.seed, (long long)opt.samples, (long long)opt.candidates, (long long)opt.beam,
                         opt.length_penalty, opt.search ? opt.search : "", opt.exploration, opt.reward,
                         opt.repeat_guard, opt.draft ? opt.draft : "", preprocess, opt.trim_near_white, opt.invert,
                         (int)format, render_task_names[task]);
}

/* Without --model: the model for --task, or, where there is one for each task, both, unless another option belongs to one model
 * only. */
static void choose_models(void) {
    const char *of[] = {[RENDER_TIKZ] = default_model(RENDER_TIKZ), [RENDER_FORMULA] = default_model(RENDER_FORMULA)};
    const bool formula = opt.task && !strcmp(opt.task, "formula"), tikz = opt.task && !strcmp(opt.task, "tikz");
    const bool one = formula || tikz || opt.lora || opt.draft || opt.prefix || opt.dataset;
    if (formula && !of[RENDER_FORMULA])
        die("--task formula: there is no model of formulas here, as %s would be; name one with --model",
            shipped_models[RENDER_FORMULA]);
    opt.model = formula || (!of[RENDER_TIKZ] && !tikz) ? of[RENDER_FORMULA] : of[RENDER_TIKZ];
    if (!opt.model)
        die("there is no model here: neither out/best.safetensors nor out/student.safetensors nor %s; name one with --model",
            shipped_models[RENDER_TIKZ]);
    if (!one && of[RENDER_TIKZ]) opt.formula_model = of[RENDER_FORMULA];
}

/* What --dataset is to do with the data set `data`. */
static GeneratedOptions dataset_options(const char *data) {
    return (GeneratedOptions){.output = opt.dataset,
                           .data_path = data,
                           .model_path = opt.model,
                           .keep = (KeepKind)name_index(opt.keep, keep_names, KEEP_KINDS),
                           .samples = (int)opt.samples,
                           .jobs = opt.jobs ? (int)opt.jobs : omp_get_num_procs(),
                           .resume = opt.resume,
                           .quiet = opt.quiet};
}

/* Parses the options into opt, and what is left into `images`. Ends the program where they are wrong. */
static void infer_options_parse(int argc, char **argv, StringList *images, WeightFormat *format) {
    char *usage = ops_usage("[options] IMAGE...\n\nWrites the TikZ program that draws each image, or, with a model of "
                            "formulas, its LaTeX. An IMAGE is a file, a folder of images, or - for standard input.");
    options_parse(table, OPTIONS, argc, argv, usage, images);
    free(usage);
    if (!images->count) options_die("no image given");
    check_values(format);
    check_dataset(images);
    check_combinations();
    if (!opt.model) choose_models();
}

#endif
