/* infer: looks at pictures and writes the TikZ program of each.
 *
 *   load the model; for each picture: prepare it, look at it, write tokens until the end token. */
#include "lib/options.h"
#include "lib/picture.h"
#include "lib/progress.h"
#include "lib/sampler.h"
#include "lib/threads.h"
#include "model.h"

#include <sys/stat.h>

static struct {
    const char *model, *output, *device;
    double temperature, top_p;
    int64_t top_k, seed, max_tokens, threads;
    bool quiet, show;
} opt = {.device = "auto", .top_p = 1, .seed = 1};

static const Option table[] = {
    {"model", 'm', OPT_STRING, &opt.model, "FILE",
     "model file (default: out/best.safetensors, else out/student.safetensors, else the starter student)", 0, 0},
    {"output", 'o', OPT_STRING, &opt.output, "FILE|DIR",
     "write there; with several pictures, or when it is a folder, as NAME.tex in it", 0, 0},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "0 takes the likeliest token; DeTikZify samples at 0.8", 0,
     100},
    {"top-p", 0, OPT_FLOAT, &opt.top_p, "P", "sample among the likeliest tokens that together reach P", 0, 1},
    {"top-k", 0, OPT_INT, &opt.top_k, "K", "sample among the K likeliest tokens; 0: all", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "of the sampling", 0, 1e15},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N", "longest text; 0: as long as the model can write", 0, 1e9},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "auto or cpu", 0, 0},
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

/* Writes the program of one picture to `out` as the tokens come. */
static int write_program(Decoder *d, Sampler *sampler, const char *path, FILE *out, Error *err) {
    Model *m = d->m;
    const Tokenizer *t = &m->tokenizer;
    int size = m->c.vision.image_size, room = d->max_T - model_image_tokens(m), count = 0;
    double start = seconds_now(), looked = 0;
    bool line_open = false;
    Picture picture;
    if (picture_load(&picture, path, err)) return -1;
    uint8_t *pixels = (uint8_t *)xmalloc((size_t)size * (size_t)size * 3);
    picture_prepare(pixels, &picture, size);
    picture_free(&picture);
    if (opt.show) show_picture(pixels, size);
    decoder_start(d, pixels, 1, NULL, 0);
    free(pixels);
    for (; count < room; count++) {
        logits_forbid(d->host_logits, m->c.lm.vocab, t->count, t->flags, t->end, count == 0);
        int id = sampler_choose(sampler, d->host_logits);
        if (count == 0) looked = seconds_now();
        if (id == t->end) break;
        const uint8_t *bytes;
        size_t n = tokenizer_piece(t, id, &bytes);
        if (fwrite(bytes, 1, n, out) != n || fflush(out))
            return error_set(err, "cannot write the program of %s to %s: %s", path,
                             opt.output ? opt.output : "stdout", strerror(errno));
        if (n) line_open = bytes[n - 1] != '\n';
        if (count + 1 < room) decoder_step(d, &id);
    }
    double done = seconds_now();
    if (line_open) fputc('\n', out);
    if (count == room) warn("%s: stopped after %d tokens without an end; the document is not complete", path, room);
    if (!opt.quiet)
        fprintf(stderr, "%s: first token after %.0f ms, %d tokens at %.0f tokens/s\n", path, 1e3 * (looked - start),
                count, done > looked ? count / (done - looked) : 0);
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
static int infer_one(Decoder *d, Sampler *sampler, const char *path, bool several, bool folder, Error *err) {
    if (!opt.output) {
        if (several) printf("%% %s\n", path);
        return write_program(d, sampler, path, stdout, err);
    }
    char *name = folder ? output_path(opt.output, path) : xstrdup(opt.output);
    AtomicFile file;
    int bad = atomic_open(&file, name, err);
    if (!bad && (bad = write_program(d, sampler, path, file.f, err))) atomic_abandon(&file);
    if (!bad) bad = atomic_commit(&file, err);
    free(name);
    return bad;
}

int main(int argc, char **argv) {
    StringList pictures = {NULL, 0};
    static Model model;
    Decoder decoder;
    Sampler sampler;
    Error err;
    threads_wait_politely(argv);
    options_parse(table, OPTIONS, argc, argv,
                  "[options] PICTURE...\n\nWrites the TikZ program that draws each picture.", &pictures);
    if (!pictures.count) options_die("no picture given");
    threads_use((int)opt.threads);
    const Ops *op = ops_for_device(opt.device);
    if (!op) options_die("--device is '%s'; this build knows auto and cpu", opt.device);
    bool several = pictures.count > 1, folder = opt.output && (several || is_folder(opt.output));
    if (folder) check_names(&pictures);
    if (folder && make_folder(opt.output, &err)) die("%s", err.text);
    if (model_open(&model, op, opt.model ? opt.model : default_model(), true, &err)) die("%s", err.text);
    int room = model_text_room(&model);
    if (opt.max_tokens && opt.max_tokens < room) room = (int)opt.max_tokens;
    model_plan(&model, 1, 1);
    decoder_open(&decoder, &model, 1, room);
    sampler_open(&sampler, model.c.lm.vocab, opt.temperature, opt.top_p, (int)opt.top_k, (uint64_t)opt.seed);
    int failed = 0;
    for (int i = 0; i < pictures.count; i++)
        if (infer_one(&decoder, &sampler, pictures.items[i], several, folder, &err)) {
            report_error("%s", err.text);
            failed = 1;
        }
    sampler_close(&sampler);
    decoder_close(&decoder);
    model_close(&model);
    return failed;
}
