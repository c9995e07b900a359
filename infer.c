/* infer: generates the TikZ program of each image.
 *
 *   load the model; for each batch of images: preprocess and encode them, then generate tokens until
 *   every program ends.
 *
 * main follows the options; generate.h has the KV cache and the loop over tokens. */
#include "draw.h"
#include "generate.h"
#include "lib/image.h"
#include "lib/image_clean.h"
#include "lib/image_prepare.h"
#include "lib/options.h"
#include "lib/program.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "lib/tokenizer_encode.h"

#include <sys/stat.h>

static struct {
    const char *model, *output, *device, *prefix, *weights, *preprocess;
    double temperature, top_p;
    int64_t top_k, seed, max_tokens, threads, batch;
    bool trim_near_white, invert, quiet, show, strict;
    DrawOptions draw;
} opt = {.device = "auto", .preprocess = "plain", .top_p = 1, .seed = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE",
     "model file (default: out/best.safetensors, else out/student.safetensors, else the starter student)", 0, 0},
    {"output", 'o', OPT_STRING, &opt.output, "FILE|DIR",
     "write there; with several images, or when it is a folder, as NAME.tex in it", 0, 0},
    {"pdf", 0, OPT_STRING, &opt.draw.pdf, "FILE|DIR", "compile the program, and write the drawing as PDF", 0, 0},
    {"png", 0, OPT_STRING, &opt.draw.png, "FILE|DIR", "the same as PNG, 300 pixels an inch", 0, 0},
    {"svg", 0, OPT_STRING, &opt.draw.svg, "FILE|DIR", "the same as SVG", 0, 0},
    {"check", 0, OPT_FLAG, &opt.draw.check, NULL, "compile the program; status 1 if TeX reports an error", 0, 0},
    {"unsafe-tex", 0, OPT_FLAG, &opt.draw.unsafe, NULL,
     "let TeX read and write all files and start programs: only for programs that you have read", 0, 0},
    {"prefix", 0, OPT_STRING, &opt.prefix, "TEXT", "every program begins with this text, and the model continues it",
     0, 0},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "0 takes the likeliest token; DeTikZify samples at 0.8", 0,
     100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "sample among the likeliest tokens that together reach P", 0, 1},
    {"top-k", 0, OPT_INT, &opt.top_k, "K", "sample among the K likeliest tokens; 0: all", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "random seed for sampling; each image has its own stream", 0, 1e15},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "longest program, with the prefix; 0: as long as the model allows", 0, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N",
     "images whose programs are generated together; 0: 16, on a GPU 64, or as many as there is memory for", 0, 1024},
    {"weights", 'w', OPT_STRING, &opt.weights, "q8|q4",
     "use weights of 8 or 4 bits, rounded while the model is loaded: less memory, and faster where memory is the "
     "limit",
     0, 0},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"trim-near-white", 0, OPT_FLAG, &opt.trim_near_white, NULL,
     "also cut off a margin that is only nearly white, as JPEG leaves it", 0, 0},
    {"preprocess", 0, OPT_STRING, &opt.preprocess, "auto|plain", "auto: clean the image first", 0, 0},
    {"invert", 0, OPT_FLAG, &opt.invert, NULL, "make light dark and dark light: for light lines on a dark ground", 0,
     0},
    {"show", 0, OPT_FLAG, &opt.show, NULL, "draw the image as the model sees it, in coloured characters on stderr", 0,
     0},
    {"strict", 0, OPT_FLAG, &opt.strict, NULL, "status 1 also when a program was cut at the limit; it is kept", 0, 0},
    {"quiet", 'q', OPT_FLAG, &opt.quiet, NULL, "no timing on stderr", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* The program of one image while it is being generated. */
typedef struct {
    const char *path;  // of the image
    FILE *out;
    AtomicFile file;  // with --output
    char *buffer;     // the program, if it must not appear before it is complete
    size_t buffered;
    FILE *copy;  // of all that is written, in `whole`, if it is to be drawn
    char *whole;
    size_t whole_bytes;
    TokenDecoder text;
    char last;  // the last byte written
    int count;  // number of tokens, including the prefix
    bool ended, failed;
} Program;

/* A batch of programs. A sequence of the generator is an image that could be read. */
typedef struct {
    Program *programs;  // [batch]
    int *program;       // [batch] index into programs of each sequence
    int *streams;       // [batch] random stream of each sequence
    uint8_t *pixels;    // [batch, S, S, 3] input of the vision encoder
    const Model *model;
    const Tokenizer *tokenizer;
    Drawing *drawing;
    bool to_folder, several;
    double first_token;  // time of the first token, from seconds_now; 0: none yet
} Writer;

static const char *default_model(void);
static bool is_folder(const char *path);
static void check_names(const StringList *images);
static int read_prefix(TokenIds *prefix, const Tokenizer *t, const char *model, Error *err);
static void writer_open(Writer *w, const Model *m, int batch, bool several, bool to_folder);
static bool write_batch(Writer *w, Generator *g, const TokenIds *prefix, const char **paths, int n, int first);
static void writer_close(Writer *w);

int main(int argc, char **argv) {
    static Model model;
    Generator generator;
    Writer writer;
    Drawing drawing;
    StringList images = {NULL, 0};
    TokenIds prefix = {NULL, 0, 0};
    WeightFormat format;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    char *usage = ops_usage("[options] IMAGE...\n\nWrites the TikZ program that draws each image.");
    options_parse(table, OPTIONS, argc, argv, usage, &images);
    free(usage);
    if (!images.count) options_die("no image given");
    if (weight_format(opt.weights, &format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    bool several = images.count > 1, to_folder = opt.output && (several || is_folder(opt.output));
    if (to_folder || (several && draw_wanted(&opt.draw))) check_names(&images);
    if (to_folder) die_if(make_folder(opt.output, &err), &err);
    die_if(drawing_open(&drawing, opt.draw, several, &err), &err);

    const char *path = opt.model ? opt.model : default_model();
    die_if(model_open_as(&model, op, path, "", format, &err), &err);
    int max_tokens = model_max_text(&model);
    if (opt.max_tokens && opt.max_tokens < max_tokens) max_tokens = (int)opt.max_tokens;
    die_if(read_prefix(&prefix, &model.tokenizer, path, &err), &err);
    if (prefix.count >= max_tokens)
        die("the --prefix leaves no room: it has %d tokens, and the program may have %d", prefix.count, max_tokens);
    int batch = opt.batch ? (int)opt.batch : op->host_memory ? 16 : 64;
    if (images.count < batch) batch = images.count;
    batch = generator_fit(&model, batch, !opt.batch, prefix.count + 1, max_tokens);
    model_plan(&model, batch, prefix.count + 1);
    generator_open(&generator, &model, batch, max_tokens);
    generator_set_sampling(&generator, (float)opt.temperature, (float)opt.top_p, (int)opt.top_k, (uint64_t)opt.seed,
                           model.tokenizer.begin >= 0);

    writer_open(&writer, &model, batch, several, to_folder);
    writer.drawing = &drawing;
    bool failed = false;
    for (int i = 0; i < images.count; i += batch) {
        int n = images.count - i < batch ? images.count - i : batch;
        if (!write_batch(&writer, &generator, &prefix, images.items + i, n, i)) failed = true;
    }

    writer_close(&writer);
    drawing_close(&drawing);
    free(prefix.ids);
    generator_close(&generator);
    model_close(&model);
    free((void *)images.items);
    return failed;
}

/* ---- the command line ---- */

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

/* The default of --model: the last training run's best checkpoint or else its student, else the shipped starter
 * student. */
static const char *default_model(void) {
    static const char *const models[] = {"out/best.safetensors", "out/student.safetensors",
                                         "dev/starter/student.safetensors"};
    for (int i = 0; i < 3; i++)
        if (file_exists(models[i])) return models[i];
    die("there is no model here: neither %s nor %s nor %s; name one with --model", models[0], models[1], models[2]);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Rejects images whose programs would have the same name, such as a/x.png and b/x.jpg. */
static void check_names(const StringList *images) {
    char **names = xcalloc(images->count, sizeof *names);
    for (int i = 0; i < images->count; i++)
        names[i] = draw_path(opt.output ? opt.output : ".", images->items[i], "tex");
    qsort(names, images->count, sizeof *names, compare_names);
    for (int i = 1; i < images->count; i++)
        if (!strcmp(names[i - 1], names[i])) options_die("two of the images would both be written to %s", names[i]);
    for (int i = 0; i < images->count; i++) free(names[i]);
    free(names);
}

/* The tokens that precede the generated ones: the begin token, if the model has one, and the encoded --prefix.
 * Rejects a prefix that contains special tokens or does not decode to the same text. */
static int read_prefix(TokenIds *prefix, const Tokenizer *t, const char *model, Error *err) {
    if (t->begin >= 0) token_ids_add(prefix, t->begin);
    if (!opt.prefix) return 0;
    Encoder encoder;
    Error why;
    char *name = format_string("the tokenizer.json inside %s", model), *text = NULL;
    int special = -1, before = prefix->count;
    int bad =
        encoder_open(&encoder, t, name, &why) || encoder_run(&encoder, opt.prefix, strlen(opt.prefix), prefix, &why);
    if (bad) error_set(err, "cannot use the --prefix: %s", why.text);
    for (int i = before; !bad && special < 0 && i < prefix->count; i++)
        if ((t->flags[prefix->ids[i]] & TOKEN_SPECIAL) || tokenizer_ends(t, prefix->ids[i])) special = prefix->ids[i];
    if (!bad) tokenizer_decode(t, prefix->ids, prefix->count, &text, NULL);
    if (special >= 0)
        bad = error_set(err, "cannot use the --prefix: it contains '%.*s', which is a special token of the model",
                        (int)(t->offsets[special + 1] - t->offsets[special]), t->bytes + t->offsets[special]);
    else if (!bad && strcmp(text, opt.prefix) != 0)
        bad =
            error_set(err, "cannot use the --prefix: the tokenizer does not keep it; it would become '%.200s'", text);
    free(text);
    free(name);
    encoder_close(&encoder);
    return bad;
}

/* ---- one program ---- */

static int program_fail(Program *p, const Error *err) {
    report_error("%s", err->text);
    p->failed = true;
    return -1;
}

/* Writes decoded bytes and flushes them at once, so that the program can be read while it is generated. */
static int write_bytes(Program *p, const char *bytes, size_t n) {
    Error err;
    if (n) p->last = bytes[n - 1];
    if (p->copy) fwrite(bytes, 1, n, p->copy);
    if (fwrite(bytes, 1, n, p->out) == n && !fflush(p->out)) return 0;
    error_set(&err, "cannot write the program of %s to %s: %s", p->path, opt.output ? opt.output : "stdout",
              strerror(errno));
    return program_fail(p, &err);
}

/* Decodes a token and writes the bytes that have become known. */
static int write_token(Program *p, int id) {
    const char *bytes;
    size_t n = token_decoder_next(&p->text, id, &bytes);
    p->count++;
    return write_bytes(p, bytes, n);
}

/* Opens the output of one image: FILE, or NAME.tex in the folder. */
static int open_output(Program *p, const Writer *w) {
    Error err;
    char *name = w->to_folder ? draw_path(opt.output, p->path, "tex") : xstrdup(opt.output);
    int bad = atomic_open(&p->file, name, &err);
    free(name);
    p->out = bad ? NULL : p->file.f;
    return bad ? program_fail(p, &err) : 0;
}

/* Opens the output of a program. If it is the only one of its batch, it is written directly, to stdout or to its file
 * (which appears under its name only when it is complete); otherwise it is buffered until it is complete. */
static int program_open(Program *p, const Writer *w, const char *path, bool alone) {
    *p = (Program){.path = path, .last = '\n'};
    token_decoder_begin(&p->text, w->tokenizer);
    if (draw_wanted(&opt.draw) && !(p->copy = open_memstream(&p->whole, &p->whole_bytes))) die("out of memory");
    if (alone && opt.output) return open_output(p, w);
    p->out = alone ? stdout : open_memstream(&p->buffer, &p->buffered);
    if (!p->out) die("out of memory");
    return 0;
}

/* Writes the last bytes of a program, and its buffer if it has one, and commits its file. */
static void program_close(Program *p, const Writer *w, bool alone) {
    Error err;
    const char *bytes;
    if (!p->failed) {
        size_t n = token_decoder_end(&p->text, &bytes);
        if (!write_bytes(p, bytes, n) && p->last != '\n') write_bytes(p, "\n", 1);
    }
    if (!alone) {
        fclose(p->out);
        p->out = stdout;
        if (p->copy) fclose(p->copy), p->copy = NULL;  // what follows is the same text once more
        if (!p->failed && (!opt.output || !open_output(p, w))) write_bytes(p, p->buffer, p->buffered);
        free(p->buffer);
    }
    if (opt.output && p->failed)
        atomic_abandon(&p->file);
    else if (opt.output && atomic_commit(&p->file, &err))
        program_fail(p, &err);
    token_decoder_free(&p->text);
    if (p->copy) fclose(p->copy);
}

/* Draws a program that has been written. */
static void program_draw(Program *p, const Writer *w) {
    Error err;
    if (!p->failed && draw_program(w->drawing, p->path, p->whole, p->whole_bytes, &err)) program_fail(p, &err);
    free(p->whole);
}

/* ---- a batch of images ---- */

static void writer_open(Writer *w, const Model *m, int batch, bool several, bool to_folder) {
    size_t S = m->c.vision.image_size;
    *w = (Writer){.programs = xcalloc(batch, sizeof(Program)),
                  .program = xcalloc(batch, sizeof(int)),
                  .streams = xcalloc(batch, sizeof(int)),
                  .pixels = xmalloc(batch * S * S * 3),
                  .model = m,
                  .tokenizer = &m->tokenizer,
                  .several = several,
                  .to_folder = to_folder};
}

static void writer_close(Writer *w) {
    free(w->programs);
    free(w->program);
    free(w->streams);
    free(w->pixels);
}

/* Draws every other pixel of an image [size, size, 3] on the terminal, two pixels per character: the upper half block
 * in the colour of one, on a background in the colour of the other. */
static void show_image(const uint8_t *pixels, int size) {
    for (int y = 0; y + 2 < size; y += 4) {
        for (int x = 0; x < size; x += 2) {
            const uint8_t *upper = pixels + ((size_t)y * size + x) * 3, *lower = upper + 2 * (size_t)size * 3;
            fprintf(stderr, "\033[38;2;%d;%d;%dm\033[48;2;%d;%d;%dm\xe2\x96\x80", upper[0], upper[1], upper[2],
                    lower[0], lower[1], lower[2]);
        }
        fputs("\033[0m\n", stderr);
    }
}

/* Reads an image and preprocesses it into pixels [size, size, 3], the input of the vision encoder. Warns of an image
 * that the model cannot make much of. */
static int prepare(Program *p, uint8_t *pixels, const char *path, int size) {
    Error err;
    Image image;
    char remark[256];
    if (image_load(&image, path, &err)) return program_fail(p, &err);
    if (!strcmp(opt.preprocess, "auto")) {
        ImageCleaned cleaned;
        image_clean(&image, &cleaned);
        if (*cleaned.text && !opt.quiet) fprintf(stderr, "%s: %s\n", path, cleaned.text);
    }
    if (opt.invert) image_invert(&image);
    const ImageBox box = image_trim(&image, opt.trim_near_white ? IMAGE_NEAR_WHITE : IMAGE_WHITE);
    image_prepare_box(pixels, &image, box, size);
    if (image_remark(remark, sizeof remark, &image, box, pixels, size)) warn("%s: %s", path, remark);
    image_free(&image);
    if (opt.show) show_image(pixels, size);
    return 0;
}

/* Writes the prefix, preceded by the name of the image if several programs go to stdout. */
static void write_prefix(Program *p, const Writer *w, const TokenIds *prefix) {
    char *name = printable(xstrdup(p->path));  // a line end would end the comment
    if (w->several && !opt.output) fprintf(p->out, "%% %s\n", name);
    free(name);
    for (int k = 0; k < prefix->count && !p->failed; k++) write_token(p, prefix->ids[k]);
}

/* The model computed values that are not finite: from damaged weights always, else perhaps from this image alone. */
static int fail_not_finite(Program *p, const Writer *w) {
    Error why, err;
    bool damaged = model_not_finite(w->model, &why);
    if (damaged) die("%s", why.text);
    error_set(&err, "cannot write the program of %s: %s", p->path, why.text);
    return program_fail(p, &err);
}

/* Callback of the generator: writes token `id` of sequence b. Returns false when the program ends. */
static bool read_token(void *context, int b, int id) {
    Writer *w = context;
    Program *p = &w->programs[w->program[b]];
    if (w->first_token == 0) w->first_token = seconds_now();
    p->ended = tokenizer_ends(w->tokenizer, id);
    if (p->ended) return false;
    return (id < 0 ? fail_not_finite(p, w) : write_token(p, id)) == 0;
}

/* Warns of programs that stopped without an end token, and returns how many. */
static int warn_of_cut(const Writer *w, int n, int max_tokens) {
    int cut = 0;
    for (int i = 0; i < n; i++) {
        const Program *p = &w->programs[i];
        if (p->failed || p->ended) continue;
        cut++;
        warn("%s: stopped after %d token%s without an end; the document is not complete", p->path, max_tokens,
             max_tokens == 1 ? "" : "s");
    }
    return cut;
}

/* Reports the latency and the rate of generation. */
static void print_timing(const Writer *w, int n, int B, int prefix, double start, double done) {
    int tokens = 0;
    for (int i = 0; i < n; i++)
        if (!w->programs[i].failed) tokens += w->programs[i].count - prefix;
    double rate = done > w->first_token ? tokens / (done - w->first_token) : 0;
    if (opt.quiet || w->first_token == 0) return;
    if (B == 1)
        fprintf(stderr, "%s: first token after %.0f ms, %d tokens at %.0f tokens/s on %s\n",
                w->programs[w->program[0]].path, 1e3 * (w->first_token - start), tokens, rate,
                ops_name(w->model->op).text);
    else
        fprintf(stderr, "%d images: first tokens after %.0f ms, %d tokens at %.0f tokens/s on %s\n", B,
                1e3 * (w->first_token - start), tokens, rate, ops_name(w->model->op).text);
}

/* Generates and writes the programs of n images, the first of which has index `first` on the command line. Returns
 * whether all succeeded, and with --strict, whether all are complete. */
static bool write_batch(Writer *w, Generator *g, const TokenIds *prefix, const char **paths, int n, int first) {
    const int S = g->m->c.vision.image_size, max_tokens = g->cache.capacity - model_image_tokens(g->m);
    const size_t pixels = (size_t)S * S * 3;
    const bool alone = n == 1;
    double start = seconds_now();
    int B = 0, failed = 0;
    w->first_token = 0;
    for (int i = 0; i < n; i++) {
        Program *p = &w->programs[i];
        if (program_open(p, w, paths[i], alone) || prepare(p, w->pixels + B * pixels, paths[i], S)) continue;
        write_prefix(p, w, prefix);
        w->program[B] = i;
        w->streams[B++] = first + i;
    }
    if (B) {
        generator_prefill(g, w->pixels, B, prefix->ids, prefix->count);
        generator_run(g, w->streams, max_tokens - prefix->count, read_token, w);
    }
    double done = seconds_now();
    for (int i = 0; i < n; i++) program_close(&w->programs[i], w, alone);
    for (int i = 0; i < n; i++) program_draw(&w->programs[i], w);
    for (int i = 0; i < n; i++) failed += w->programs[i].failed;
    int cut = warn_of_cut(w, n, max_tokens);
    print_timing(w, n, B, prefix->count, start, done);
    return !failed && !(opt.strict && cut);
}
