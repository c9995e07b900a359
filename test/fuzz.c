/* Mutation fuzzing of every parser of files: safetensors with a tokenizer and its tokenizer.json, datasets, images of
 * every format, JSON and config files. Each valid sample is changed thousands of times, the same way in every run;
 * each result must be read, or refused with a sentence. Run it under the address and undefined-behaviour sanitizers.
 *
 *     fuzz [ROUNDS [SEED]]     ROUNDS mutations of each sample (default 3000) */
#include "samples.h"

#include "../dataloader.h"
#include "../lib/image_prepare.h"
#include "../lib/json.h"
#include "../lib/options.h"
#include "../lib/tex_tidy.h"
#include "../lib/tokenizer_encode.h"

typedef int (*Target)(const char *path, const uint8_t *bytes, size_t size, Error *err);

static volatile uint64_t touched;  // results are read, so that a wrong pointer is noticed

static void touch(const void *p, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((const uint8_t *)p)[i];
    touched += sum;
}

static int read_model(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)bytes;
    (void)size;
    SafeTensors st;
    Tokenizer t;
    if (safetensors_open(&st, path, err) != 0) return -1;
    for (int i = 0; i < st.count; i++) {
        touch(st.tensors[i].data, st.tensors[i].bytes);
        if (safetensors_find(&st, st.tensors[i].name) != &st.tensors[i]) die("%s: a tensor is not found", path);
    }
    int status = tokenizer_load(&t, &st, err);
    for (int i = 0; status == 0 && i < t.count; i++) {
        const uint8_t *piece;
        size_t n = tokenizer_piece(&t, i, &piece);
        touch(piece, n);
    }
    safetensors_close(&st);
    return status;
}

static int encode_texts(const Tokenizer *t, Error *err) {
    static const char *const texts[] = {"", "a", "ab a\nb  12's <p> </s> <s>", "aba c \xc3\xa9"};
    Encoder e;
    int status = encoder_open(&e, t, "fuzzed", err);
    for (int i = 0; status == 0 && i < 4; i++) {
        TokenIds ids = {NULL, 0, 0};
        int refused = encoder_run(&e, texts[i], strlen(texts[i]), &ids, err);
        for (int k = 0; k < ids.count; k++)
            if (ids.ids[k] < 0 || ids.ids[k] >= t->count) die("%s gives the id %d", texts[i], ids.ids[k]);
        if (refused && i < 3) status = -1;
        free(ids.ids);
    }
    encoder_close(&e);
    return status;
}

/* Everything that infer does with the tokenizer of a file. */
static int read_tokenizer(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)bytes;
    (void)size;
    SafeTensors st;
    Tokenizer t;
    if (safetensors_open(&st, path, err) != 0) return -1;
    int status = tokenizer_load(&t, &st, err);
    if (status == 0) {
        char *text;
        size_t length;
        int ids[64];
        for (int i = 0; i < 64; i++) ids[i] = i * 7 % 17;
        tokenizer_decode(&t, ids, 64, &text, &length);
        for (size_t i = 0; i < length;) {
            int n = utf8_sequence((const uint8_t *)text + i, length - i);
            if (!n) die("%s: a decoded text is not valid UTF-8", path);
            i += (size_t)n;
        }
        free(text);
        status = encode_texts(&t, err);
    }
    safetensors_close(&st);
    return status;
}

/* tokenizer.json alone, so that every mutation hits it. */
static int read_tokenizer_json(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)path;
    Tokenizer t;
    memset(&t, 0, sizeof t);
    t.count = 11;
    t.json = bytes;
    t.json_bytes = size;
    return encode_texts(&t, err);
}

static int read_regex(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)path;
    static const char text[] = "I'LL see 1234  \\node[a] \r\n\n {x}'s\t";
    Regex *r = (Regex *)xcalloc(1, sizeof *r);
    char *pattern = (char *)xcalloc(size + 1, 1);
    memcpy(pattern, bytes, size);
    int status = regex_parse(r, pattern, err);
    RegexSearch search = {r, text, strlen(text), 100000};
    size_t at = 0, begin, end;
    while (status == 0 && regex_find(&search, at, &begin, &end)) {
        if (begin < at || end <= begin || end > search.n) die("'%s' matches from %zu to %zu", pattern, begin, end);
        at = end;
    }
    free(pattern);
    free(r);
    return status;
}

static int read_dataset(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)bytes;
    (void)size;
    Dataset d;
    Loader l;
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch = 2;
    c.sizes[0] = image_square(8);
    c.size_count = 1;
    c.vocab = 50;
    if (dataset_open(&d, path, err) != 0) return -1;
    int status = loader_start(&l, &d, c, err);
    if (status == 0) {
        const Batch *b;
        while ((b = loader_next(&l, err))) {
            touch(b->ids, sizeof(int) * (size_t)b->B * (size_t)b->T);
            touch(b->pixels[0], (size_t)b->B * 8 * 8 * 3);
        }
        status = err->text[0] ? -1 : 0;
        loader_stop(&l);
    }
    dataset_close(&d);
    return status;
}

static int read_image(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    Image p;
    uint8_t out[12 * 12 * 3];
    if (image_decode(&p, bytes, size, path, err) != 0) return -1;
    if ((int64_t)p.width * p.height <
        1000000) {  // a mutated header may ask for a large image; that is slow, not wrong
        image_prepare(out, &p, image_size(6, 24));
        touch(out, sizeof out);
    }
    image_free(&p);
    return 0;
}

/* Repairs the checksums of a PNG, so that mutations reach the decoder behind them. */
static int read_png_repaired(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    uint8_t *copy = (uint8_t *)xmalloc(size);
    memcpy(copy, bytes, size);
    for (size_t at = 8; at + 12 <= size;) {
        size_t length = image_u32(copy + at);
        if (length > size - at - 12) break;
        uint32_t crc = crc32_bytes(0, copy + at + 4, length + 4);
        for (int i = 0; i < 4; i++) copy[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
    int status = read_image(path, copy, size, err);
    free(copy);
    return status;
}

static int read_json(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    Json j;
    if (json_parse(&j, (const char *)bytes, size, path, err) != 0) return -1;
    for (int i = 0; i < j.count; i++)
        if (j.values[i].string) touch(j.values[i].string, strlen(j.values[i].string));
    json_free(&j);
    return 0;
}

static struct {
    int64_t steps;
    double rate;
    bool shuffle;
    const char *out;
    StringList models;
} opt;

static const Option table[] = {{"steps", 's', OPT_INT, &opt.steps, "N", "", 1, 1000000},
                               {"lr", 0, OPT_FLOAT, &opt.rate, "X", "", 0, 10},
                               {"shuffle", 0, OPT_FLAG, &opt.shuffle, NULL, "", 0, 0},
                               {"out", 'o', OPT_STRING, &opt.out, "DIR", "", 0, 0},
                               {"model", 'm', OPT_LIST, &opt.models, "FILE", "", 0, 0}};

static int read_config(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    (void)bytes;
    (void)size;
    return options_config(table, (int)(sizeof table / sizeof *table), path, err);
}

/* The program of a model: whatever its bytes, it is tidied, and a second time changes nothing. */
static int read_program(const char *path, const uint8_t *bytes, size_t size, Error *err) {
    const char *program = (const char *)bytes;
    size_t n, m;
    (void)err;
    for (int task = 0; task < 2; task++) {
        char *closed = tex_close((RenderTask)task, program, size, &n);
        touch(closed, n + 1);
        free(closed);
    }
    char *less = tex_tidy_preamble(program, size, &n);
    char *laid = tex_tidy_layout(less, n, &m), *again = tex_tidy_layout(laid, m, &n);
    if (n != m || memcmp(laid, again, n) != 0)
        die("%s: the layout changes when it is laid out again:\n%.2000s\n%.2000s", path, laid, again);
    free(less);
    free(laid);
    free(again);
    return 0;
}

/* ---- mutations ---- */

/* Changes `b` in one to six places: bits, bytes, interesting numbers, removed, doubled and cut parts. */
static void mutate(Bytes *b, Random *r) {
    static const uint64_t odd[] = {0,
                                   1,
                                   0x7f,
                                   0x80,
                                   0xff,
                                   0x7fff,
                                   0xffff,
                                   0x7fffffff,
                                   0x80000000u,
                                   0xffffffffu,
                                   0x7fffffffffffffffu,
                                   0x8000000000000000u,
                                   0xffffffffffffffffu};
    for (uint64_t n = 1 + random_below(r, 6); n > 0 && b->size > 0; n--) {
        size_t at = (size_t)random_below(r, random_below(r, 2) ? b->size : b->size < 128 ? b->size : 128);
        size_t span = (size_t)random_below(r, 1 + (b->size - at < 40 ? b->size - at : 40));
        uint64_t value = odd[random_below(r, sizeof odd / sizeof *odd)];
        size_t width = (size_t)1 << random_below(r, 4);
        switch (random_below(r, 7)) {
        case 0: b->data[at] ^= (uint8_t)(1u << random_below(r, 8)); break;
        case 1: b->data[at] = (uint8_t)random_u64(r); break;
        case 2: memcpy(b->data + at, &value, width < b->size - at ? width : b->size - at); break;
        case 3: b->data[at] = (uint8_t) "0123456789-.,:{}[]\"\\eE #=\n"[random_below(r, 27)]; break;
        case 4:
            memmove(b->data + at, b->data + at + span, b->size - at - span);
            b->size -= span;
            break;
        case 5: {
            uint8_t part[40];
            memcpy(part, b->data + at, span);
            bytes_add(b, part, span);
            memmove(b->data + at + span, b->data + at, b->size - at - span);
            break;
        }
        default:
            if (random_below(r, 4) == 0) b->size = at;
        }
    }
}

/* Runs `rounds` mutations of a sample; the sample itself must be read. */
static void fuzz(const char *what, Target target, const Bytes *sample, bool with_file, int rounds, uint64_t seed) {
    Error err;
    int accepted = 0, silent = 0;
    for (int i = -1; i < rounds; i++) {
        Random r;
        random_seed3(&r, seed, (uint64_t)i, sample->size);
        Bytes b = {NULL, 0};
        bytes_add(&b, sample->data, sample->size);
        if (i >= 0) mutate(&b, &r);
        uint8_t *exact = (uint8_t *)xmalloc(b.size);  // no slack behind it: a read beyond the end is noticed
        memcpy(exact, b.data, b.size);
        if (with_file) write_bytes(sample_path("fuzzed"), exact, b.size);
        err.text[0] = '\0';
        int status = target(with_file ? sample_path("fuzzed") : what, exact, b.size, &err);
        if (i < 0) check(status == 0, __FILE__, __LINE__, what, err.text);
        accepted += status == 0;
        silent += status != 0 && err.text[0] == '\0';
        free(exact);
        free(b.data);
    }
    check(silent == 0, __FILE__, __LINE__, "every refusal says why", what);
    printf("%-24s %6d mutations, %6d read, %6d refused\n", what, rounds, accepted, rounds + 1 - accepted);
}

static void fuzz_text(const char *what, Target target, const char *text, bool with_file, int rounds, uint64_t seed) {
    Bytes b = {NULL, 0};
    bytes_add(&b, text, strlen(text));
    fuzz(what, target, &b, with_file, rounds, seed);
    free(b.data);
}

int main(int argc, char **argv) {
    program_begin(argv);
    int rounds = argc > 1 ? atoi(argv[1]) : 3000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    samples_begin();
    Error err;
    Bytes model = {NULL, 0}, images[5];
    CHECK_OK(write_tokenizer_file(sample_path("model"), 40, 0, &err), err);
    model.data = read_bytes(sample_path("model"), &model.size);
    fuzz("safetensors, tokenizer", read_model, &model, true, rounds, seed);
    for (int fallback = 0; fallback < 2; fallback++) {
        Bytes bpe = {NULL, 0};
        CHECK_OK(write_bpe_file(sample_path("bpe"), fallback, &err), err);
        bpe.data = read_bytes(sample_path("bpe"), &bpe.size);
        fuzz(fallback ? "byte fallback BPE" : "byte-level BPE", read_tokenizer, &bpe, true, rounds, seed);
        free(bpe.data);
        fuzz_text("tokenizer.json", read_tokenizer_json, fallback ? fallback_json : byte_level_json, false,
                  3 * rounds, seed);
    }
    fuzz_text("regular expression", read_regex,
              "(?i:'s|'ve)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}]+[\\r\\n]*|(?<=[(,])[0-9]|"
              "\\s+(?!\\S)|\\s+$|\xe4\xb8\x80-?[!-/:-~\xef\xbc\x81-\xef\xbc\x8f]",
              false, 3 * rounds, seed);
    for (int i = 0; i < 3; i++) images[i] = make_png(9, 7, i + 2, (uint64_t)i);
    images[3] = from_hex(jpeg_turned);
    images[4] = from_hex(jpeg_progressive);
    const int lengths[] = {3, 20, 1, 7, 12};
    Bytes data = make_dataset(5, images, lengths, 50, 1, 0);
    put_u32(data.data + 8, 1);  // version 1 has no CRC, so that damage reaches further than the header
    put_u32(data.data + 12, DATASET_HEADER_1);
    fuzz("dataset", read_dataset, &data, true, rounds / 3, seed);
    for (int i = 0; i < 3; i++) fuzz("PNG", read_image, &images[i], false, rounds / 3, seed);
    for (int i = 0; i < 3; i++) fuzz("PNG, CRC repaired", read_png_repaired, &images[i], false, rounds, seed);
    Bytes texts = from_hex(png_texts);
    fuzz("PNG, palette and texts", read_png_repaired, &texts, false, rounds, seed);
    free(texts.data);
    static const struct {
        const char *what, *hex;
    } others[] = {
        {"BMP, run lengths", bmp_rle4},      {"BMP, bit fields", bmp_fields},
#ifdef WITH_GIF
        {"GIF, interlaced", gif_interlaced}, {"GIF, part of the screen", gif_part},
#endif
#ifdef WITH_WEBP
        {"WebP, lossless", webp_lossless},   {"WebP, turned", webp_turned},         {"WebP, alpha", webp_alpha},
#endif
#ifdef WITH_TIFF
        {"TIFF, turned", tiff_turned},       {"TIFF, tiles", tiff_tiles},           {"TIFF, fax", tiff_fax},
        {"TIFF, JPEG", tiff_jpeg},
#endif
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        Bytes image = from_hex(others[i].hex);
        fuzz(others[i].what, read_image, &image, false, rounds, seed);
        free(image.data);
    }
    fuzz("JPEG, baseline", read_image, &images[3], false, rounds, seed);
    fuzz("JPEG, progressive", read_image, &images[4], false, rounds, seed);
    fuzz_text("JSON", read_json,
              "{\"a\":[1,-2.5e3,\"\\u00e9\\ud83d\\ude00x\"],\"b\":{\"c\":null,\"d\":true},\"e\":\"\xc3\xa9\"}", false,
              3 * rounds, seed);
    fuzz_text(
        "program", read_program,
        "\\documentclass[tikz]{standalone}\\usepackage{pgfplots, amsmath}\\usetikzlibrary{calc}% c\n\\begin{document}"
        "\\begin{tikzpicture}[x=1cm]\\foreach \\x in {1,2}{\\draw (\\x,0) node[red] "
        "{$a;\\left(b\\right)$};\n}\\begin{scope}"
        "\\verb|x|\\end{scope}\\end{tikzpicture}\\[x\\]\\end{document}",
        false, 3 * rounds, seed);
    fuzz_text("config file", read_config,
              "# c\nsteps = 7 # n\nlr=0.5\nshuffle = off\nout = \"a \\\" b\"\nmodel = x\nmodel = y\n", true, rounds,
              seed);
    for (int i = 0; i < 5; i++) free(images[i].data);
    free(data.data);
    free(model.data);
    samples_end();
    return checks_report();
}
