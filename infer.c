/* infer: looks at pictures and writes the TikZ program of each.
 *
 *   load the model; for each picture: prepare it, look at it, write tokens until the end token. */
#include "lib/options.h"
#include "lib/picture.h"
#include "lib/progress.h"
#include "lib/sampler.h"
#include "lib/threads.h"
#include "lib/tokenizer_encode.h"
#include "model.h"

#include <sys/stat.h>

static struct {
    const char *model, *output, *device, *prefix;
    double temperature, top_p;
    int64_t top_k, seed, max_tokens, threads;
    bool quiet, show;
} opt = {.device = "auto", .top_p = 1, .seed = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE",
     "model file (default: out/best.safetensors, else out/student.safetensors, else the starter student)", 0, 0},
    {"output", 'o', OPT_STRING, &opt.output, "FILE|DIR",
     "write there; with several pictures, or when it is a folder, as NAME.tex in it", 0, 0},
    {"prefix", 0, OPT_STRING, &opt.prefix, "TEXT", "every program begins with this text, and the model continues it",
     0, 0},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "0 takes the likeliest token; DeTikZify samples at 0.8", 0,
     100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "sample among the likeliest tokens that together reach P", 0, 1},
    {"top-k", 0, OPT_INT, &opt.top_k, "K", "sample among the K likeliest tokens; 0: all", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "of the sampling", 0, 1e15},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "longest text, with the prefix; 0: as long as the model can write", 0, 1e9},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"show", 0, OPT_FLAG, &opt.show, NULL, "draw the picture as the model sees it, in coloured characters on stderr",
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

/* Two pixels a character (the upper half block, its colour and its background), every other pixel of the picture. */
static void show_picture(const uint8_t *pixels, int size) {
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

/* What is certain of the text so far goes to `out` at once, so that one can read along. */
static int write_text(FILE *out, const char *text, size_t n, char *last, const char *path, Error *err) {
    if (n) *last = text[n - 1];
    if (fwrite(text, 1, n, out) == n && !fflush(out)) return 0;
    return error_set(err, "cannot write the program of %s to %s: %s", path, opt.output ? opt.output : "stdout",
                     strerror(errno));
}

/* Chooses tokens until the end token or until the text has `room`; *count: tokens in the text, with the prefix. */
static int write_tokens(Decoder *d, Sampler *sampler, const TokenIds *prefix, int room, int *count, double *looked,
                        const char *path, FILE *out, Error *err) {
    const Tokenizer *t = &d->m->tokenizer;
    TokenDecoder text;
    const char *bytes;
    char last = '\n';
    int bad = 0, id = -1;
    token_decoder_begin(&text, t);
    for (*count = 0; !bad && *count < room; ++*count) {
        if (*count < prefix->count) {
            id = prefix->ids[*count];
        } else {
            bool empty = *count == (t->begin >= 0);
            if (*count > prefix->count) decoder_step(d, &id);
            logits_forbid(d->host_logits, d->m->c.lm.vocab, t->count, t->flags, t->end, empty);
            id = sampler_choose(sampler, d->host_logits);
            if (*count == prefix->count) *looked = seconds_now();
            if (id == t->end) break;
        }
        size_t n = token_decoder_next(&text, id, &bytes);
        bad = write_text(out, bytes, n, &last, path, err);
    }
    size_t n = token_decoder_end(&text, &bytes);
    if (!bad) bad = write_text(out, bytes, n, &last, path, err);
    if (!bad && last != '\n') fputc('\n', out);
    token_decoder_free(&text);
    return bad;
}

/* Writes the program of one picture to `out` as the tokens come. */
static int write_program(Decoder *d, Sampler *sampler, const TokenIds *prefix, const char *path, FILE *out,
                         Error *err) {
    int size = d->m->c.vision.image_size, room = d->max_T - model_image_tokens(d->m), count = 0;
    double start = seconds_now(), looked = start;
    Picture picture;
    if (picture_load(&picture, path, err)) return -1;
    uint8_t *pixels = (uint8_t *)xmalloc((size_t)size * (size_t)size * 3);
    picture_prepare(pixels, &picture, size);
    picture_free(&picture);
    if (opt.show) show_picture(pixels, size);
    decoder_start(d, pixels, 1, prefix->ids, prefix->count);
    free(pixels);
    if (write_tokens(d, sampler, prefix, room, &count, &looked, path, out, err)) return -1;
    double done = seconds_now();
    int chosen = count - prefix->count;
    if (count == room) warn("%s: stopped after %d tokens without an end; the document is not complete", path, room);
    if (!opt.quiet)
        fprintf(stderr, "%s: first token after %.0f ms, %d tokens at %.0f tokens/s\n", path, 1e3 * (looked - start),
                chosen, done > looked ? chosen / (done - looked) : 0);
    return 0;
}

/* FOLDER/NAME.tex for FOLDER2/NAME.png */
static char *output_path(const char *folder, const char *picture) {
    const char *slash = strrchr(picture, '/'), *name = slash ? slash + 1 : picture, *dot = strrchr(name, '.');
    int length = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    return format_string("%s/%.*s.tex", folder, length, name);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Refuses pictures such as a/x.png and b/x.jpg, of which one program would silently replace the other. */
static void check_names(const StringList *pictures) {
    char **names = (char **)xcalloc((size_t)pictures->count, sizeof *names);
    for (int i = 0; i < pictures->count; i++) names[i] = output_path(opt.output, pictures->items[i]);
    qsort(names, (size_t)pictures->count, sizeof *names, compare_names);
    for (int i = 1; i < pictures->count; i++)
        if (!strcmp(names[i - 1], names[i])) options_die("two of the pictures would both be written to %s", names[i]);
    for (int i = 0; i < pictures->count; i++) free(names[i]);
    free(names);
}

/* One picture to the place that -o names; the file appears under its name only when it is complete. */
static int infer_one(Decoder *d, Sampler *sampler, const TokenIds *prefix, const char *path, bool several,
                     bool folder, Error *err) {
    if (!opt.output) {
        if (several) printf("%% %s\n", path);
        return write_program(d, sampler, prefix, path, stdout, err);
    }
    char *name = folder ? output_path(opt.output, path) : xstrdup(opt.output);
    AtomicFile file;
    int bad = atomic_open(&file, name, err);
    if (!bad && (bad = write_program(d, sampler, prefix, path, file.f, err))) atomic_abandon(&file);
    if (!bad) bad = atomic_commit(&file, err);
    free(name);
    return bad;
}

int main(int argc, char **argv) {
    StringList pictures = {NULL, 0};
    TokenIds prefix = {NULL, 0, 0};
    static Model model;
    Decoder decoder;
    Sampler sampler;
    Error err;
    threads_wait_politely(argv);
    options_parse(table, OPTIONS, argc, argv,
                  "[options] PICTURE...\n\nWrites the TikZ program that draws each picture.", &pictures);
    if (!pictures.count) options_die("no picture given");
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    bool several = pictures.count > 1, folder = opt.output && (several || is_folder(opt.output));
    if (folder) check_names(&pictures);
    if (folder && make_folder(opt.output, &err)) die("%s", err.text);
    const char *path = opt.model ? opt.model : default_model();
    if (model_open(&model, op, path, &err)) die("%s", err.text);
    int room = model_text_room(&model);
    if (opt.max_tokens && opt.max_tokens < room) room = (int)opt.max_tokens;
    if (read_prefix(&prefix, &model.tokenizer, path, &err)) die("%s", err.text);
    if (prefix.count >= room)
        die("the --prefix leaves no room: it has %d tokens, and the text may have %d", prefix.count, room);
    model_plan(&model, 1, prefix.count + 1);
    decoder_open(&decoder, &model, 1, room);
    sampler_open(&sampler, model.c.lm.vocab, opt.temperature, opt.top_p, (int)opt.top_k, (uint64_t)opt.seed);
    int failed = 0;
    for (int i = 0; i < pictures.count; i++)
        if (infer_one(&decoder, &sampler, &prefix, pictures.items[i], several, folder, &err)) {
            report_error("%s", err.text);
            failed = 1;
        }
    free(prefix.ids);
    sampler_close(&sampler);
    decoder_close(&decoder);
    model_close(&model);
    return failed;
}
