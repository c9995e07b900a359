/* The programs of infer, one per image: collects each while it is generated, and then, in the order of the images, writes,
 * compiles and shows it. A program that has failed has a line of JSON too, without a program. */
#ifndef GENERATE_WRITER_H
#define GENERATE_WRITER_H

#include "../lib/bpe.h"
#include "../lib/clock.h"
#include "../lib/image_prepare.h"
#include "../lib/terminal_image.h"
#include "../lib/tex_tidy.h"
#include "../lib/tokenizer.h"
#include "../metrics/similarity.h"
#include "dataset_write.h"
#include "draw.h"
#include "formula_text.h"
#include "repeat.h"
#include "result.h"

typedef struct {
    const char *output;  // file, or folder; NULL: stdout
    bool to_folder, several;
    bool json;          // one object per image on stdout, instead of the program
    bool finish, tidy;  // completes programs that were cut; only the packages that are used, laid out
    bool repeat_guard, render;
    bool doubts;               // warns of programs of low confidence
    FormulaStyle style;        // of formulas
    GeneratedData *generated;  // --dataset: takes the programs; NULL
} WriterOptions;

/* What must be known of the model that generates a program. */
typedef struct {
    const Tokenizer *tokenizer;
    RenderTask task;       // what its programs are
    ImageSize image_size;  // of its input
    int max_tokens;        // of a program, for the warning about one that was cut
} ProgramModel;

/* One program. */
typedef struct {
    Input *input;
    const ProgramModel *model;
    FILE *memory;  // of what is in `text`
    char *text;
    size_t bytes;
    FILE *live;       // where it is written while it is generated; NULL: only when it is complete
    AtomicFile file;  // with --output
    uint8_t *pixels;  // [height, width, 3] the input, where it is shown or compared
    ImageExtent extent;  // of it, without the margin
    TokenDecoder decoder;
    RepeatGuard guard;
    TokenIds ids;  // with the prefix, and with the end token
    int tokens;    // their number, without the end token
    int prefix_count;  // how many of them are the prefix
    bool ended, looped, opened, failed, done;
    char *preprocessing;  // what was done to the image; NULL: nothing
    double log_probability, confidence, similarity;  // as in Result
    double prefill_seconds, generate_seconds;
} Program;

typedef struct {
    WriterOptions o;
    Drawing *drawing;
    TerminalGraphics graphics;
    Program *programs;  // [count]
    int count, next;    // images; the first whose program has not been written yet
    int failures, cut;
    long tokens;  // of all programs, without prefixes
} Writer;

/* Opens the writer for the programs of `inputs`. Their models are set afterwards, before they begin. */
static inline void writer_open(Writer *w, WriterOptions o, const Inputs *inputs, Drawing *d) {
    const char *why = NULL;
    *w = (Writer){.o = o, .drawing = d, .count = inputs->count};
    w->programs = (Program *)xcalloc((size_t)inputs->count, sizeof(Program));
    for (int i = 0; i < inputs->count; i++)
        w->programs[i] = (Program){.input = &inputs->items[i],
                                   .log_probability = NAN,
                                   .confidence = NAN,
                                   .similarity = NAN,
                                   .prefill_seconds = NAN,
                                   .generate_seconds = NAN};
    if (o.render) w->graphics = terminal_graphics(stderr, NULL, &why);
    if (o.render && w->graphics == TERMINAL_NONE) warn("--render: %s", why);
}

static inline void writer_close(Writer *w) { free(w->programs); }

static inline void program_fail(Program *p, const Error *err) {
    report_error("%s", err->text);
    p->failed = true;
}

/* ---- while it is generated ---- */

static inline void program_write(Program *p, const Writer *w, FILE *f, const char *bytes, size_t n) {
    Error err;
    if (p->failed || (fwrite(bytes, 1, n, f) == n && !fflush(f))) return;
    error_set(&err, "cannot write the program of %s to %s: %s", p->input->path, w->o.output ? w->o.output : "stdout",
              strerror(errno));
    program_fail(p, &err);
}

static inline void program_add_bytes(Program *p, const Writer *w, const char *bytes, size_t n) {
    if (n && fwrite(bytes, 1, n, p->memory) != n) die("out of memory");
    if (p->live) program_write(p, w, p->live, bytes, n);
}

/* Opens the output of a program: FILE, or NAME.tex in the folder. */
static inline void program_open_output(Program *p, const Writer *w) {
    Error err;
    char *name = w->o.to_folder ? input_output_path(w->o.output, p->input, "tex") : xstrdup(w->o.output);
    p->opened = atomic_open(&p->file, name, &err) == 0;
    free(name);
    if (!p->opened) program_fail(p, &err);
}

/* Begins a program with the prefix. A program that is alone and needs no change is written while it is generated. */
static inline void program_begin_text(Program *p, const Writer *w, const int *prefix, int prefix_count) {
    const char *bytes;
    token_decoder_begin(&p->decoder, p->model->tokenizer);
    repeat_begin(&p->guard);
    p->memory = open_memstream(&p->text, &p->bytes);
    if (!p->memory) die("out of memory");
    if (w->o.output && !w->o.several) program_open_output(p, w);
    if (!w->o.several && !w->o.json && !w->o.finish && !w->o.tidy && p->model->task == RENDER_TIKZ)
        p->live = p->opened ? p->file.f : w->o.output ? NULL : stdout;
    for (int i = 0; i < prefix_count && !p->failed; i++) {
        const size_t n = token_decoder_next(&p->decoder, prefix[i], &bytes);
        program_add_bytes(p, w, bytes, n);
        token_ids_add(&p->ids, prefix[i]);
    }
    p->tokens = p->prefix_count = prefix_count;
}

/* Adds a token. Returns false where the program ends with it. */
static inline bool program_add(Program *p, const Writer *w, int id) {
    const char *bytes;
    token_ids_add(&p->ids, id);
    p->ended = tokenizer_ends(p->model->tokenizer, id);
    if (p->ended) return false;
    p->tokens++;
    const size_t n = token_decoder_next(&p->decoder, id, &bytes);
    program_add_bytes(p, w, bytes, n);
    p->looped = repeat_add(&p->guard, id) && w->o.repeat_guard;
    return !p->failed && !p->looped;
}

/* Adds the tokens of a program that was generated elsewhere; ended: by the model, with or without the end token among them. The
 * repeat guard stops a program that was cut, but a loop that comes to an end is part of the program. */
static inline void program_add_all(Program *p, const Writer *w, const int *ids, int count, bool ended) {
    for (int i = 0; i < count && !p->failed && (ended || !p->looped); i++)
        if (!program_add(p, w, ids[i]) && p->ended) break;
    p->ended = ended;
    p->looped = p->looped && !ended;
}

/* ---- when it is complete ---- */

/* The text is changed by one of the functions of lib/tex_tidy.h. */
static inline void program_change(Program *p, char *(*change)(const char *, size_t, size_t *)) {
    char *before = p->text;
    p->text = change(before, p->bytes, &p->bytes);
    free(before);
}

static inline char *program_close_tikz(const char *text, size_t n, size_t *size) {
    return tex_close(RENDER_TIKZ, text, n, size);
}

static inline char *program_close_formula(const char *text, size_t n, size_t *size) {
    return tex_close(RENDER_FORMULA, text, n, size);
}

/* Completes and tidies the text, as the options say; the spaces of a formula are always tidied. */
static inline void program_improve(Program *p, const Writer *w) {
    const bool formula = p->model->task == RENDER_FORMULA;
    if (w->o.finish && !p->ended) program_change(p, formula ? program_close_formula : program_close_tikz);
    if (formula) program_change(p, formula_tidy);
    if (w->o.tidy && !formula) program_change(p, tex_tidy_preamble);
    if (w->o.tidy && !formula) program_change(p, tex_tidy_layout);
}

/* Leaves out the rounds of a loop but for the first. What has been written stays. */
static inline void program_cut_loop(Program *p, int prefix_count) {
    if (!p->looped || p->live) return;
    p->tokens = p->ids.count = prefix_count + p->guard.begin + p->guard.period;
    free(p->text);
    tokenizer_decode(p->model->tokenizer, p->ids.ids, p->ids.count, &p->text, &p->bytes);
}

/* Ends the text: the decoder's last bytes and a line end, then what the options change. */
static inline void program_end_text(Program *p, const Writer *w, int prefix_count) {
    const char *bytes;
    const size_t n = token_decoder_end(&p->decoder, &bytes);
    program_add_bytes(p, w, bytes, n);
    token_decoder_free(&p->decoder);
    fflush(p->memory);
    if (p->bytes && p->text[p->bytes - 1] != '\n') program_add_bytes(p, w, "\n", 1);
    fclose(p->memory);
    program_cut_loop(p, prefix_count);
    program_improve(p, w);
}

static inline void program_warn(Program *p, Writer *w) {
    const char *then =
        w->o.finish                        ? "its last statement was dropped and what was open was closed"
        : p->model->task == RENDER_FORMULA ? "the formula is not complete"
                                           : "the document is not complete";
    if (p->ended || p->failed) return;
    w->cut++;
    if (p->looped)
        warn("%s: stopped, because the same %d token%s came again and again; %s", p->input->path, p->guard.period,
             p->guard.period == 1 ? "" : "s", then);
    else
        warn("%s: stopped after %d token%s without an end; %s", p->input->path, p->model->max_tokens,
             p->model->max_tokens == 1 ? "" : "s", then);
}

/* The text as it is written, allocated: a formula with its delimiters. */
static inline char *program_wrapped(const Program *p, const Writer *w, size_t *bytes) {
    return formula_wrap(p->model->task == RENDER_FORMULA ? w->o.style : FORMULA_PLAIN, p->text, p->bytes, bytes);
}

/* The confidence (as in Result) under which a program is doubtful. Of the starter student's programs for its own test figures 2 % are,
 * for other figures 30 %, for formulas 17 % (dev/formula/README.md). */
static const double program_doubtful[] = {[RENDER_TIKZ] = 0.9, [RENDER_FORMULA] = 0.8};

static inline void program_doubt(const Program *p, const Writer *w) {
    const bool formula = p->model->task == RENDER_FORMULA;
    if (!w->o.doubts || p->failed || !p->ended || !(p->confidence < program_doubtful[p->model->task])) return;  // NAN: not known
    warn("%s: the model is not sure of its %s (confidence %.2f); the image may show what it does not know", p->input->path,
         formula ? "formula" : "program", p->confidence);
}

/* Writes the text to where it goes, unless it has gone there already. */
static inline void program_output(Program *p, const Writer *w) {
    Error err;
    if (w->o.output && !p->failed && !p->opened) program_open_output(p, w);
    size_t n;
    char *text = program_wrapped(p, w, &n);
    if (!p->live && !p->failed && w->o.output) program_write(p, w, p->file.f, text, n);
    if (!p->live && !p->failed && !w->o.output && !w->o.json) {
        char *name = printable(xstrdup(p->input->path)), *head = format_string("%% %s\n", name);
        if (w->o.several) program_write(p, w, stdout, head, strlen(head));
        program_write(p, w, stdout, text, n);
        free(head);
        free(name);
    }
    free(text);
    if (p->opened && p->failed)
        atomic_abandon(&p->file);
    else if (p->opened && atomic_commit(&p->file, &err))
        program_fail(p, &err);
}

/* How alike the drawing is to the input, as the model sees both, unless that is known; shows them side by side where that is
 * wanted. */
static inline void program_compare(Program *p, const Writer *w, const Compiled *c) {
    const ImageSize size = p->model->image_size;
    Error err;
    Image drawn = {0}, input = {size.width, size.height, p->pixels};
    if (!p->pixels) return;
    if (c->pdf &&
        render_image(&w->drawing->renderer, c, similarity_drawing_size(p->extent.longest, size), 0, &drawn, &err)) {
        warn("%s: %s", p->input->path, err.text);
    } else if (c->pdf && isnan(p->similarity)) {
        uint8_t *pixels = (uint8_t *)xmalloc(image_size_bytes(size));
        image_prepare_like(pixels, &drawn, size, p->extent);
        p->similarity = similarity_of_pixels(p->pixels, pixels, size);
        free(pixels);
    }
    if (w->o.render) terminal_show(stderr, w->graphics, &input, drawn.rgb ? &drawn : NULL);
    image_free(&drawn);
}

static inline void program_print_json(Program *p, const Writer *w, const Compiled *c, double compile_seconds) {
    Error err;
    Result r = result_begin(p->input->path);
    char *text = p->text ? program_wrapped(p, w, &r.program_bytes) : NULL;
    r.program = text;
    r.tokens = p->tokens;
    r.task = render_task_names[p->model->task];
    r.log_probability = p->log_probability;
    r.confidence = p->confidence;
    r.complete = p->ended;
    if (c) result_set_compiled(&r, c);
    r.similarity = p->similarity;
    r.preprocessing = p->preprocessing;
    r.prefill_seconds = p->prefill_seconds;
    r.generate_seconds = p->generate_seconds;
    r.compile_seconds = compile_seconds;
    if (result_print_json(&r, stdout, "stdout", &err)) program_fail(p, &err);
    free(text);
}

/* Compiles the program where that is wanted, and does what needs its drawing. */
static inline void program_compile(Program *p, const Writer *w) {
    Error err;
    Compiled c = {0};
    const double start = seconds_now();
    bool compiled = w->drawing->open && !p->failed;
    if (compiled && render_compile(&w->drawing->renderer, p->model->task, p->text, p->bytes, &c, &err)) {
        program_fail(p, &err);
        compiled = false;
    }
    const double seconds = seconds_now() - start;
    if (compiled) program_compare(p, w, &c);
    if (compiled && draw_files(w->drawing, p->input, &c, &err)) program_fail(p, &err);
    if (w->o.json) program_print_json(p, w, compiled ? &c : NULL, compiled ? seconds : NAN);
    compiled_free(&c);
}

/* Gives the program to the data set that is being written. Cut programs are counted there. */
static inline void program_give(Program *p, const Writer *w) {
    const GeneratedState state = p->failed ? GENERATED_FAILED : p->ended ? GENERATED_ENDED : GENERATED_CUT;
    generated_take(w->o.generated, (int)(p - w->programs), state, p->ids.ids, p->failed ? 0 : p->tokens);
}

static inline void program_finish(Program *p, Writer *w) {
    p->confidence = generator_confidence(p->log_probability, p->tokens - p->prefix_count + p->ended);
    if (p->memory) program_end_text(p, w, p->prefix_count);
    if (w->o.generated) {
        program_give(p, w);
    } else {
        if (p->memory) program_warn(p, w);
        program_doubt(p, w);
        if (p->memory) program_output(p, w);
        program_compile(p, w);
    }
    if (!p->failed) w->tokens += p->tokens - p->prefix_count;
    w->failures += p->failed;
    free(p->text);
    free(p->pixels);
    free(p->ids.ids);
    free(p->preprocessing);
    p->text = NULL;
    p->pixels = NULL;
}

/* A program is complete, or has failed: writes it and those after it that are complete, once all before it are written. A
 * data set takes them in any order. */
static inline void writer_done(Writer *w, Program *p) {
    p->done = true;
    if (w->o.generated) program_finish(p, w);
    while (!w->o.generated && w->next < w->count && w->programs[w->next].done)
        program_finish(&w->programs[w->next++], w);
}

/* No program comes any more: after an interruption, writes those that are complete though one before them is missing, and says
 * how many are missing. (Those of a data set are counted by generated_finish.) */
static inline void writer_finish(Writer *w) {
    int missing = 0;
    for (; !w->o.generated && w->next < w->count; w->next++)
        if (w->programs[w->next].done)
            program_finish(&w->programs[w->next], w);
        else
            missing++;
    if (missing) report_error("stopped before %d of the %d images", missing, w->count);
    w->failures += missing;
}

#endif
