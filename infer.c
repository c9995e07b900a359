/* infer: looks at images and writes the TikZ program of each.
 *
 *   load the model; for each batch of images: prepare them, look at them, write tokens until each has its end. */
#include "generate.h"
#include "lib/options.h"
#include "lib/image.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "lib/tokenizer_encode.h"

#include <sys/stat.h>

static struct {
    const char *model, *output, *device, *prefix;
    double temperature, top_p;
    int64_t top_k, seed, max_tokens, threads, batch;
    bool quiet, show;
} opt = {.device = "auto", .top_p = 1, .seed = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE",
     "model file (default: out/best.safetensors, else out/student.safetensors, else the starter student)", 0, 0},
    {"output", 'o', OPT_STRING, &opt.output, "FILE|DIR",
     "write there; with several images, or when it is a folder, as NAME.tex in it", 0, 0},
    {"prefix", 0, OPT_STRING, &opt.prefix, "TEXT", "every program begins with this text, and the model continues it",
     0, 0},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "0 takes the likeliest token; DeTikZify samples at 0.8", 0,
     100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "sample among the likeliest tokens that together reach P", 0, 1},
    {"top-k", 0, OPT_INT, &opt.top_k, "K", "sample among the K likeliest tokens; 0: all", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "of the sampling, in which the first image, the second, ... differ", 0,
     1e15},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "longest text, with the prefix; 0: as long as the model can write", 0, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N",
     "images whose programs are written together; 0: 16, on a GPU 64, or as many as there is memory for", 0, 1024},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"show", 0, OPT_FLAG, &opt.show, NULL, "draw the image as the model sees it, in coloured characters on stderr",
     0, 0},
    {"quiet", 'q', OPT_FLAG, &opt.quiet, NULL, "no timing on stderr", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

/* What was trained here, the best of it where there is a best, else what ships. */
static const char *default_model(void) {
    static const char *const models[] = {"out/best.safetensors", "out/student.safetensors",
                                         "dev/starter/student.safetensors"};
    for (int i = 0; i < 3; i++)
        if (file_exists(models[i])) return models[i];
    die("there is no model here: neither %s nor %s nor %s; name one with --model", models[0], models[1], models[2]);
}

/* Two pixels a character (the upper half block, its colour and its background), every other pixel of the image. */
static void show_image(const uint8_t *pixels, int size) {
    for (int y = 0; y + 2 < size; y += 4) {
        for (int x = 0; x < size; x += 2) {
            const uint8_t *upper = pixels + ((size_t)y * (size_t)size + (size_t)x) * 3;
            const uint8_t *lower = upper + 2 * (size_t)size * 3;
            fprintf(stderr, "\033[38;2;%d;%d;%dm\033[48;2;%d;%d;%dm\xe2\x96\x80", upper[0], upper[1], upper[2],
                    lower[0], lower[1], lower[2]);
        }
        fputs("\033[0m\n", stderr);
    }
}

/* What stands before the first token that the model chooses: the token that begins every text, if the model has one,
 * and the prefix. Refused: a prefix that would not come back as it is when its tokens are written. */
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
        if ((t->flags[prefix->ids[i]] & TOKEN_SPECIAL) || prefix->ids[i] == t->end) special = prefix->ids[i];
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

/* A program that is being written. */
typedef struct {
    const char *path;  // of the image
    FILE *out;
    AtomicFile file;  // with -o
    char *buffer;     // what waits until all is there
    size_t buffered;
    TokenDecoder text;
    char last;  // byte
    int count;  // tokens, with the prefix
    bool ended, failed;
} Text;

typedef struct {
    Text *texts;      // [--batch]
    int *text;        // [--batch]: which of them each of the decoder's is
    int *numbers;     // [--batch]
    uint8_t *pixels;  // [--batch, S, S, 3]
    const Tokenizer *tokenizer;
    bool to_folder, several;
    double looked;  // when the first token had been chosen; 0: not yet
} Writer;

static int text_fail(Text *t, const Error *err) {
    report_error("%s", err->text);
    t->failed = true;
    return -1;
}

/* What is certain of the text so far goes out at once, so that one can read along. */
static int write_bytes(Text *t, const char *bytes, size_t n) {
    Error err;
    if (n) t->last = bytes[n - 1];
    if (fwrite(bytes, 1, n, t->out) == n && !fflush(t->out)) return 0;
    error_set(&err, "cannot write the program of %s to %s: %s", t->path, opt.output ? opt.output : "stdout",
              strerror(errno));
    return text_fail(t, &err);
}

static int write_token(Text *t, int id) {
    const char *bytes;
    size_t n = token_decoder_next(&t->text, id, &bytes);
    t->count++;
    return write_bytes(t, bytes, n);
}

static bool read_token(void *context, int b, int id) {
    Writer *w = (Writer *)context;
    Text *t = &w->texts[w->text[b]];
    if (w->looked == 0) w->looked = seconds_now();
    if (id == w->tokenizer->end) {
        t->ended = true;
        return false;
    }
    return write_token(t, id) == 0;
}

/* FOLDER/NAME.tex for FOLDER2/NAME.png */
static char *output_path(const char *folder, const char *image) {
    const char *slash = strrchr(image, '/'), *name = slash ? slash + 1 : image, *dot = strrchr(name, '.');
    int length = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    return format_string("%s/%.*s.tex", folder, length, name);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Refuses images such as a/x.png and b/x.jpg, of which one program would silently replace the other. */
static void check_names(const StringList *images) {
    char **names = (char **)xcalloc((size_t)images->count, sizeof *names);
    for (int i = 0; i < images->count; i++) names[i] = output_path(opt.output, images->items[i]);
    qsort(names, (size_t)images->count, sizeof *names, compare_names);
    for (int i = 1; i < images->count; i++)
        if (!strcmp(names[i - 1], names[i])) options_die("two of the images would both be written to %s", names[i]);
    for (int i = 0; i < images->count; i++) free(names[i]);
    free(names);
}

/* FILE, or NAME.tex in the folder, for one image. */
static int open_output(Text *t, const Writer *w) {
    Error err;
    char *name = w->to_folder ? output_path(opt.output, t->path) : xstrdup(opt.output);
    int bad = atomic_open(&t->file, name, &err);
    free(name);
    t->out = bad ? NULL : t->file.f;
    return bad ? text_fail(t, &err) : 0;
}

/* Where the program of an image goes: what is written alone to its place at once (with -o a file, which appears
 * under its name only when it is complete), else to a buffer, until it is complete. */
static int text_open(Text *t, const Writer *w, const char *path, bool alone) {
    memset(t, 0, sizeof *t);
    t->path = path;
    t->last = '\n';
    token_decoder_begin(&t->text, w->tokenizer);
    if (alone && opt.output) return open_output(t, w);
    t->out = alone ? stdout : open_memstream(&t->buffer, &t->buffered);
    if (!t->out) die("out of memory");
    return 0;
}

/* Its last bytes, and the way to its place. */
static void text_close(Text *t, const Writer *w, bool alone) {
    Error err;
    const char *bytes;
    if (!t->failed) {
        size_t n = token_decoder_end(&t->text, &bytes);
        if (!write_bytes(t, bytes, n) && t->last != '\n') write_bytes(t, "\n", 1);
    }
    if (!alone) {
        fclose(t->out);
        t->out = stdout;
        if (!t->failed && (!opt.output || !open_output(t, w))) write_bytes(t, t->buffer, t->buffered);
        free(t->buffer);
    }
    if (opt.output && t->failed)
        atomic_abandon(&t->file);
    else if (opt.output && atomic_commit(&t->file, &err))
        text_fail(t, &err);
    token_decoder_free(&t->text);
}

/* Reads and prepares an image. */
static int prepare(Text *t, uint8_t *pixels, const char *path, int size) {
    Error err;
    Image image;
    if (image_load(&image, path, &err)) return text_fail(t, &err);
    image_prepare(pixels, &image, size);
    image_free(&image);
    if (opt.show) show_image(pixels, size);
    return 0;
}

/* The texts of images that could be read begin with the prefix, and where several come one after another on stdout
 * with the image's name. */
static void write_beginning(Text *t, const Writer *w, const TokenIds *prefix) {
    if (w->several && !opt.output) fprintf(t->out, "%% %s\n", t->path);
    for (int k = 0; k < prefix->count && !t->failed; k++) write_token(t, prefix->ids[k]);
}

/* How long it took, and what is not complete. */
static void tell(const Writer *w, int n, int B, int prefix, int room, double start, double done) {
    int tokens = 0;
    for (int i = 0; i < n; i++) {
        const Text *t = &w->texts[i];
        if (t->failed) continue;
        tokens += t->count - prefix;
        if (!t->ended)
            warn("%s: stopped after %d token%s without an end; the document is not complete", t->path, room,
                 room == 1 ? "" : "s");
    }
    double rate = done > w->looked ? tokens / (done - w->looked) : 0;
    if (opt.quiet || w->looked == 0) return;
    if (B == 1)
        fprintf(stderr, "%s: first token after %.0f ms, %d tokens at %.0f tokens/s\n", w->texts[w->text[0]].path,
                1e3 * (w->looked - start), tokens, rate);
    else
        fprintf(stderr, "%d images: first tokens after %.0f ms, %d tokens at %.0f tokens/s\n", B,
                1e3 * (w->looked - start), tokens, rate);
}

/* Writes the programs of n images, of which the first one is number `first` on the command line; whether all
 * came out. */
static bool write_batch(Writer *w, Decoder *d, const TokenIds *prefix, const char **paths, int n, int first) {
    const int size = d->m->c.vision.image_size, room = d->max_T - model_image_tokens(d->m);
    const size_t pixels = (size_t)size * (size_t)size * 3;
    const bool alone = n == 1;
    double start = seconds_now();
    int B = 0, failed = 0;
    w->looked = 0;
    for (int i = 0; i < n; i++) {
        Text *t = &w->texts[i];
        if (text_open(t, w, paths[i], alone) || prepare(t, w->pixels + (size_t)B * pixels, paths[i], size)) continue;
        write_beginning(t, w, prefix);
        w->text[B] = i;
        w->numbers[B++] = first + i;
    }
    if (B) {
        decoder_start(d, w->pixels, B, prefix->ids, prefix->count);
        decoder_write(d, w->numbers, room - prefix->count, read_token, w);
    }
    double done = seconds_now();
    for (int i = 0; i < n; i++) text_close(&w->texts[i], w, alone);
    for (int i = 0; i < n; i++) failed += w->texts[i].failed;
    tell(w, n, B, prefix->count, room, start, done);
    return !failed;
}

/* How many images are written together. */
static int batch_size(Model *m, int images, int T, int room) {
    int most = opt.batch ? (int)opt.batch : m->op->host_memory ? 16 : 64;
    return decoder_fit(m, images < most ? images : most, !opt.batch, T, room);
}

static void writer_open(Writer *w, const Model *m, int batch, bool several, bool to_folder) {
    const size_t B = (size_t)batch, size = (size_t)m->c.vision.image_size;
    w->texts = (Text *)xcalloc(B, sizeof(Text));
    w->text = (int *)xcalloc(B, sizeof(int));
    w->numbers = (int *)xcalloc(B, sizeof(int));
    w->pixels = (uint8_t *)xmalloc(B * size * size * 3);
    w->tokenizer = &m->tokenizer;
    w->several = several;
    w->to_folder = to_folder;
}

static void writer_close(Writer *w) {
    free(w->texts);
    free(w->text);
    free(w->numbers);
    free(w->pixels);
}

int main(int argc, char **argv) {
    StringList images = {NULL, 0};
    TokenIds prefix = {NULL, 0, 0};
    static Model model;
    Decoder decoder;
    Writer writer;
    Error err;
    threads_wait_politely(argv);
    atexit(files_abandon);
    options_parse(table, OPTIONS, argc, argv,
                  "[options] IMAGE...\n\nWrites the TikZ program that draws each image.", &images);
    if (!images.count) options_die("no image given");
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    bool several = images.count > 1, to_folder = opt.output && (several || is_folder(opt.output));
    if (to_folder) check_names(&images);
    if (to_folder) die_if(make_folder(opt.output, &err), &err);
    const char *path = opt.model ? opt.model : default_model();
    die_if(model_open(&model, op, path, &err), &err);
    int room = model_text_room(&model);
    if (opt.max_tokens && opt.max_tokens < room) room = (int)opt.max_tokens;
    die_if(read_prefix(&prefix, &model.tokenizer, path, &err), &err);
    if (prefix.count >= room)
        die("the --prefix leaves no room: it has %d tokens, and the text may have %d", prefix.count, room);
    int batch = batch_size(&model, images.count, prefix.count + 1, room);
    model_plan(&model, batch, prefix.count + 1);
    decoder_open(&decoder, &model, batch, room);
    decoder_sample(&decoder, (float)opt.temperature, (float)opt.top_p, (int)opt.top_k, (uint64_t)opt.seed,
                   model.tokenizer.begin >= 0);
    writer_open(&writer, &model, batch, several, to_folder);
    bool failed = false;
    for (int i = 0; i < images.count; i += batch) {
        int n = images.count - i < batch ? images.count - i : batch;
        if (!write_batch(&writer, &decoder, &prefix, images.items + i, n, i)) failed = true;
    }
    writer_close(&writer);
    free(prefix.ids);
    decoder_close(&decoder);
    model_close(&model);
    free((void *)images.items);
    return failed;
}
