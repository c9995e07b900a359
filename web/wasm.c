/* The model in the browser: what web/worker.js calls, compiled to WebAssembly (`make wasm`).
 *
 *   page_open           opens the model's file, which the worker has put into the module's memory
 *   page_image_begin    takes the size of an image that the browser has decoded,
 *   page_image_put      and its pixels, tile after tile
 *   page_convert        prepares the image as infer does, and generates its program
 *   page_document       makes a whole .tex file of a program
 *
 * What there is to say goes to the worker as events, each a name and JSON, in the shapes of serve's answers. An error ends the
 * module, after an event of its own. */
#include "../generate/beam.h"
#include "../generate/formula_text.h"
#include "../generate/replicate.h"
#include "../generate/preprocess.h"
#include "../generate/repeat.h"
#include "../lib/bpe.h"
#include "../lib/tex_document.h"

#include <emscripten.h>

enum {
    PAGE_SEQUENCES = 16,  // programs that are written together: beams, or candidates at a time
    PAGE_CANDIDATES = 64,
    PAGE_TILE = 1024  // pixels of the longest side of a tile of an image
};

/* A program while it is generated. */
typedef struct {
    TokenIds ids;  // with the begin token; of sampled programs with the end token
    int tokens;    // their number, without the end token
    RepeatGuard guard;
    double log_probability, confidence;
    bool ended, looped;
    char *text;  // once it is done
    size_t bytes;
} PageProgram;

static struct {
    Model model;
    Generator generator;
    RenderTask task;
    PreprocessOptions prepare;
    int prefix[1], prefix_count;  // the begin token, if the model has one
    int max_new_tokens;
    int sequences;  // programs that are written together: PAGE_SEQUENCES, or fewer where memory is short
    char *image_name;  // for messages
    Image image;
    ImageCanvas canvas;
    uint8_t *tile;    // [PAGE_TILE * PAGE_TILE, 4] RGBA
    uint8_t *pixels;  // [height, width, 3] the model's input
    TokenDecoder decoder;
    PageProgram programs[PAGE_CANDIDATES];
    int first, count;  // of the programs: the one in the generator's first sequence; all
} page;

/* ---- events ---- */

EM_JS(void, page_send, (const char *name, const char *json),
      { Module["onEvent"](UTF8ToString(name), JSON.parse(UTF8ToString(json))); });

static void page_event(const char *name, JsonWriter *w) {
    json_end_object(w);
    page_send(name, w->text);
    json_writer_free(w);
}

static void page_add_string(JsonWriter *w, const char *key, const char *value) {
    json_key(w, key);
    json_string(w, value);
}

static void page_add_number(JsonWriter *w, const char *key, double value) {
    json_key(w, key);
    if (isfinite(value))
        json_number(w, value);
    else
        json_null(w);
}

/* Called by die(). */
static void page_error(const char *text) {
    JsonWriter w = {0};
    json_begin_object(&w);
    page_add_string(&w, "message", text);
    page_event("error", &w);
    exit(1);
}

/* ---- the model ---- */

/* Opens the model's file. Event "model": what GET /v1/models says of one. */
EMSCRIPTEN_KEEPALIVE void page_open(const char *path) {
    Error err;
    Model *m = &page.model;
    JsonWriter w = {0};
    die_hook = page_error;
    die_if(model_open_as(m, cpu_ops(), path, "", WEIGHTS_AS_STORED, &err), &err);
    page.prepare = (PreprocessOptions){.preprocess = preprocess_of_model(m, &err), .size = vision_size(&m->c.vision)};
    if (!page.prepare.preprocess) die("%s", err.text);
    page.task = strcmp(m->tokenizer.task, "formula") ? RENDER_TIKZ : RENDER_FORMULA;
    if (m->tokenizer.begin >= 0) page.prefix[page.prefix_count++] = m->tokenizer.begin;
    page.max_new_tokens = model_max_text(m) - page.prefix_count;
    model_plan(m, 1, PAGE_SEQUENCES);
    for (page.sequences = PAGE_SEQUENCES; generator_try_open(&page.generator, m, page.sequences, model_max_text(m), &err);
         page.sequences /= 2)
        if (page.sequences == 1) die("the model is too large for the memory that a browser gives: %s", err.text);
    page.generator.scored = true;
    page.pixels = xmalloc(model_pixels(m));
    json_begin_object(&w);
    page_add_string(&w, "id", path);
    page_add_string(&w, "task", render_task_names[page.task]);
    page_add_string(&w, "kernels", m->op->kernels);
    page_add_number(&w, "image_height", page.prepare.size.height);
    page_add_number(&w, "image_width", page.prepare.size.width);
    page_add_number(&w, "max_tokens", model_max_text(m));
    page_event("model", &w);
}

/* ---- the image ---- */

/* Begins an image. Returns where the pixels of its tiles are put, RGBA. */
EMSCRIPTEN_KEEPALIVE uint8_t *page_image_begin(const char *name, int width, int height) {
    Error err;
    die_if(image_check_size((uint64_t)width, (uint64_t)height, IMAGE_MAX_PIXELS, name, &err), &err);
    free(page.image_name);
    page.image_name = xstrdup(name);
    if (!page.tile) page.tile = xmalloc((size_t)PAGE_TILE * PAGE_TILE * 4);
    image_free(&page.image);
    page.canvas = image_canvas(&page.image, width, height, 1);
    return page.tile;
}

/* Takes a tile of width x height pixels, at most PAGE_TILE each, whose upper left pixel is at x, y. */
EMSCRIPTEN_KEEPALIVE void page_image_put(int x, int y, int width, int height) {
    for (int row = 0; row < height; row++)
        image_put(&page.canvas, x, y + row, 1, page.tile + (size_t)row * width * 4, width, 4);
}

/* Prepares the image for the model, and forgets it. */
static void page_prepare(ImageCleaned *cleaned) {
    Error err;
    ImageBox box;
    die_if(preprocess_image(&page.image, &page.prepare, page.image_name, &box, cleaned, &err), &err);
    image_prepare_box(page.pixels, &page.image, box, page.prepare.size);
    image_free(&page.image);
}

/* ---- programs ---- */

/* The text of a program that is done; of a loop, the first round. */
static void page_finish(PageProgram *p) {
    const Tokenizer *t = &page.model.tokenizer;
    p->tokens = p->ids.count;
    if (p->tokens && tokenizer_ends(t, p->ids.ids[p->tokens - 1])) p->tokens--;
    p->confidence = generator_confidence(p->log_probability, p->tokens - page.prefix_count + p->ended);
    if (p->looped) p->tokens = page.prefix_count + p->guard.begin + p->guard.period;
    tokenizer_decode(t, p->ids.ids, p->tokens, &p->text, &p->bytes);
    if (page.task == RENDER_FORMULA) {
        char *before = p->text;
        p->text = formula_tidy(before, p->bytes, &p->bytes);
        free(before);
    }
    if (p->bytes && p->text[p->bytes - 1] == '\n') return;
    p->text = xrealloc(p->text, p->bytes + 2);
    memcpy(p->text + p->bytes++, "\n", 2);
}

static void page_add_program(JsonWriter *w, const PageProgram *p) {
    json_key(w, "program");
    json_string_bytes(w, p->text, p->bytes);
    page_add_number(w, "log_probability", p->log_probability);
    page_add_number(w, "confidence", p->confidence);
    page_add_number(w, "tokens", p->tokens);
    json_key(w, "ended");
    json_bool(w, p->ended);
    json_key(w, "compiles");  // which only TeX knows
    json_null(w);
}

/* Sends what a token has added to the text. The spaces of a formula change at its end. */
static void page_stream(int id) {
    const char *bytes;
    const size_t n = token_decoder_next(&page.decoder, id, &bytes);
    JsonWriter w = {0};
    if (!n || page.task == RENDER_FORMULA) return;
    json_begin_object(&w);
    json_key(&w, "text");
    json_string_bytes(&w, bytes, n);
    page_event("token", &w);
}

static void page_send_candidate(const PageProgram *p) {
    JsonWriter w = {0};
    json_begin_object(&w);
    page_add_program(&w, p);
    page_event("candidate", &w);
}

static void page_not_finite(void) {
    Error why;
    model_not_finite(&page.model, &why);
    die("no program can be written: %s", why.text);
}

/* Reader of the generator: takes the next token of a program. */
static bool page_read(void *context, int sequence, int id) {
    PageProgram *p = &page.programs[page.first + sequence];
    (void)context;
    if (id < 0) page_not_finite();
    token_ids_add(&p->ids, id);
    p->log_probability += page.generator.log_probability;
    p->ended = tokenizer_ends(&page.model.tokenizer, id);
    p->looped = !p->ended && repeat_add(&p->guard, id);
    if (!p->ended && page.count == 1) page_stream(id);
    if (!p->ended && !p->looped && p->ids.count < page.prefix_count + page.max_new_tokens) return true;
    page_finish(p);
    if (page.count > 1) page_send_candidate(p);
    return false;
}

static PageProgram *page_new_program(int k) {
    PageProgram *p = &page.programs[k];
    *p = (PageProgram){.log_probability = 0};
    repeat_begin(&p->guard);
    for (int i = 0; i < page.prefix_count; i++) token_ids_add(&p->ids, page.prefix[i]);
    return p;
}

/* Samples all programs, or takes the likeliest tokens of one. */
static void page_sample(void) {
    Generator *g = &page.generator;
    int streams[PAGE_SEQUENCES];
    token_decoder_begin(&page.decoder, &page.model.tokenizer);
    for (int i = 0; i < page.count; i++) page_new_program(i);
    for (page.first = 0; page.first < page.count; page.first += page.sequences) {
        const int left = page.count - page.first, B = left < page.sequences ? left : page.sequences;
        for (int i = 0; i < B; i++) streams[i] = page.first + i;
        generator_prefill(g, page.pixels, 1, page.prefix, page.prefix_count);
        if (B > 1) generator_replicate(g, B);
        generator_run(g, streams, page.max_new_tokens, page_read, NULL);
    }
    token_decoder_free(&page.decoder);
}

/* Beam search: the finished programs, the best first. */
static void page_beam(int beams) {
    BeamSearch s;
    beam_open(&s, &page.generator, 1, &(BeamOptions){beams, 1}, page.max_new_tokens);
    generator_prefill(&page.generator, page.pixels, 1, page.prefix, page.prefix_count);
    s.start = page.generator.length;
    beam_run(&s);
    BeamImage *image = &s.image[0];
    if (image->failed) page_not_finite();
    beam_rank(&s, image);
    page.count = image->finished;
    for (int k = 0; k < page.count; k++) {
        const BeamHypothesis *h = &image->hypotheses[k];
        PageProgram *p = page_new_program(k);
        for (int i = 0; i < h->count; i++) token_ids_add(&p->ids, h->ids[i]);
        p->log_probability = h->sum;
        p->ended = h->ended;
        page_finish(p);
    }
    beam_close(&s);
}

/* Puts the likeliest program first; equals stay in their order. */
static void page_rank(void) {
    for (int k = 1; k < page.count; k++) {
        const PageProgram p = page.programs[k];
        int at = k;
        for (; at > 0 && p.log_probability > page.programs[at - 1].log_probability; at--)
            page.programs[at] = page.programs[at - 1];
        page.programs[at] = p;
    }
}

/* "document": the program as a whole .tex file, or null where it cannot be one. */
static void page_add_document(JsonWriter *w, const char *program, size_t n) {
    char *document = tex_document_to_keep(page.task, program, n);
    json_key(w, "document");
    if (document)
        json_string(w, document);
    else
        json_null(w);
    free(document);
}

/* Event "result": the best program, and all of them where there are several. */
static void page_answer(const ImageCleaned *cleaned) {
    JsonWriter w = {0};
    json_begin_object(&w);
    page_add_string(&w, "task", render_task_names[page.task]);
    page_add_program(&w, &page.programs[0]);
    page_add_document(&w, page.programs[0].text, page.programs[0].bytes);
    page_add_string(&w, "preprocessing", cleaned->text);
    if (page.count > 1) {
        json_key(&w, "candidates");
        json_begin_array(&w);
        for (int k = 0; k < page.count; k++) {
            json_begin_object(&w);
            page_add_program(&w, &page.programs[k]);
            json_end_object(&w);
        }
        json_end_array(&w);
    }
    page_event("result", &w);
}

/* Generates the program of the image, which has been put. temperature 0: of the likeliest tokens; beams > 1: by beam search;
 * else `candidates` programs are sampled, and the likeliest is the result. */
EMSCRIPTEN_KEEPALIVE void page_convert(double temperature, double seed, int beams, int candidates) {
    ImageCleaned cleaned;
    JsonWriter w = {0};
    page_prepare(&cleaned);
    json_begin_object(&w);
    page_add_string(&w, "task", render_task_names[page.task]);
    page_event("begin", &w);
    page.count = candidates > PAGE_CANDIDATES ? PAGE_CANDIDATES : candidates < 1 ? 1 : candidates;
    generator_set_sampling(&page.generator, (float)temperature, 1, 0, (uint64_t)seed, page.prefix_count);
    if (beams > 1)
        page_beam(beams < page.sequences ? beams : page.sequences);
    else
        page_sample();
    if (beams <= 1) page_rank();
    page_answer(&cleaned);
    for (int k = 0; k < page.count; k++) {
        free(page.programs[k].text);
        free(page.programs[k].ids.ids);
    }
}

/* Event "document": of a program that was edited. */
EMSCRIPTEN_KEEPALIVE void page_document(const char *program) {
    JsonWriter w = {0};
    json_begin_object(&w);
    page_add_document(&w, program, strlen(program));
    page_event("document", &w);
}
