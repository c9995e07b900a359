/* Tests of what infer needs around generation: the repeat guard, the writer of programs, the list of images, results as JSON,
 * and images in the terminal. */
#include "samples.h"

#include "../generate.h"
#include "../generate/writer.h"

#include <pty.h>
#include <sys/wait.h>

/* ---- the repeat guard ---- */

/* Adds `head` different tokens, then a loop of `period`. Returns how many tokens of the loop were needed; 0: not found. */
static int loop_after(RepeatGuard *g, int head, int period, int most) {
    repeat_begin(g);
    for (int i = 0; i < head; i++)
        if (repeat_add(g, 1000 + i)) return -1;
    for (int i = 0; i < most; i++)
        if (repeat_add(g, i % period)) return i + 1;
    return 0;
}

static void test_repeat(void) {
    RepeatGuard g;
    for (int period = 1; period <= 64; period++) {
        const int needed = period + (8 * period > 256 ? 8 * period : 256);
        CHECK(loop_after(&g, 37, period, 2000) == needed && g.period == period && g.begin == 37);
        CHECK(loop_after(&g, 0, period, needed - 1) == 0 && g.period == 0);
        CHECK(loop_after(&g, 200, period, needed) == needed && g.begin == 200);
    }
    CHECK(loop_after(&g, 5, 65, 5000) == 0);
    CHECK(loop_after(&g, 5, 3, 300) > 0 && repeat_add(&g, 12345) && g.period == 3);  // it stays found
    repeat_begin(&g);
    bool found = false;
    for (int i = 0; i < 5000; i++) found |= repeat_add(&g, i % 40 == 39 ? i : i % 40);  // a coordinate that grows
    CHECK(!found);
    const int longest = 180;  // of real data: generate/repeat.h
    repeat_begin(&g);
    for (int i = 0; i < 30 + longest; i++) found |= repeat_add(&g, i % 30);
    CHECK(!found);
}

/* The programs of the starter pack do not trigger it. */
static void test_repeat_starter(void) {
    static const char *const files[] = {"dev/starter/train.bin", "dev/starter/val.bin", "dev/starter/test.bin"};
    Error err;
    int programs = 0, found = 0;
    for (int f = 0; f < 3; f++) {
        Dataset d;
        if (!file_exists(files[f])) {
            printf("not tested here: the repeat guard on %s (run from the root of the repository)\n", files[f]);
            continue;
        }
        CHECK_OK(dataset_open(&d, files[f], &err), err);
        for (uint64_t i = 0; i < d.count; i++) {
            const Sample s = dataset_sample(&d, i);
            RepeatGuard g;
            repeat_begin(&g);
            for (uint32_t k = 0; k < s.token_count; k++) found += repeat_add(&g, (int)s.tokens[k]);
            programs++;
        }
        dataset_close(&d);
    }
    CHECK(found == 0 && (programs == 0 || programs == 4200));
}

/* ---- programs ---- */

/* A tokenizer of 20 tokens, the last of which ends a text, and a model with it; the caller closes the file. */
static ProgramModel program_model(Tokenizer *t, SafeTensors *st) {
    Error err;
    CHECK_OK(write_tokenizer_file(sample_path("tokenizer"), 20, 0, &err), err);
    CHECK_OK(safetensors_open(st, sample_path("tokenizer"), &err), err);
    CHECK_OK(tokenizer_load(t, st, &err), err);
    return (ProgramModel){t, RENDER_TIKZ, image_square(8), 1000};
}

/* A program that was generated elsewhere: only one without an end loses the rounds of its loop. */
static void test_loops(void) {
    enum { N = 403 };
    SafeTensors file;
    Tokenizer t;
    Input image = {.path = (char *)"a.png"};
    const ProgramModel model = program_model(&t, &file);
    const Writer w = {.o = {.repeat_guard = true, .several = true}};
    int ids[N + 1] = {1, 2};
    for (int i = 2; i < N; i++) ids[i] = 5;
    ids[N - 1] = 3;
    ids[N] = t.end;
    for (int way = 0; way < 3; way++) {  // cut; ended, without the end token as beams are, and with it
        Program p = {.input = &image, .model = &model};
        program_begin_text(&p, &w, NULL, 0);
        program_add_all(&p, &w, ids, way < 2 ? N : N + 1, way > 0);
        CHECK(p.ended == (way > 0) && p.looped == (way == 0));
        program_end_text(&p, &w, 0);
        CHECK(p.tokens == (way ? N : 3) && p.ids.count == (way == 2 ? N + 1 : p.tokens));
        char *text;
        tokenizer_decode(&t, ids, p.tokens, &text, NULL);
        CHECK(!strncmp(p.text, text, strlen(text)) && p.bytes <= strlen(text) + 1);
        free(text);
        free(p.text);
        free(p.ids.ids);
    }
    safetensors_close(&file);
}

/* After an interruption, programs behind one that is missing are written, too. */
static void test_interrupted(void) {
    SafeTensors file;
    Tokenizer t;
    Error err;
    Writer w;
    Drawing drawing = {0};
    const ProgramModel model = program_model(&t, &file);
    const int ids[] = {6, 7, t.end};
    char *folder = format_string("%s/written", samples_folder);
    Input images[] = {{.path = (char *)"0.png"}, {.path = (char *)"1.png"}, {.path = (char *)"2.png"}};
    CHECK_OK(make_folder(folder, &err), err);
    writer_open(&w, (WriterOptions){.output = folder, .to_folder = true, .several = true}, &(Inputs){images, 3}, &drawing);
    w.programs[1].model = &model;
    program_begin_text(&w.programs[1], &w, NULL, 0);
    program_add_all(&w.programs[1], &w, ids, 3, true);
    writer_done(&w, &w.programs[1]);
    char *path = format_string("%s/1.tex", folder), *other = format_string("%s/2.tex", folder);
    CHECK(!file_exists(path));
    writer_finish(&w);
    CHECK(file_exists(path) && !file_exists(other) && w.failures == 2 && w.tokens == 2 && w.next == 3);
    writer_close(&w);
    safetensors_close(&file);
    free(path);
    free(other);
    free(folder);
}

/* ---- the images of the command line ---- */

static void test_inputs(void) {
    Error err;
    Inputs in;
    Bytes png = make_png(9, 7, 3, 1);
    CHECK_OK(make_folder(sample_path("images/inner"), &err), err);
    CHECK_OK(make_folder(sample_path("empty"), &err), err);
    static const char *const images[] = {"images/b.png", "images/B", "images/inner/c.png", "images/.hidden.png"};
    for (int i = 0; i < 4; i++) write_bytes(sample_path(images[i]), png.data, png.size);
    write_bytes(sample_path("images/a.JPG"), "no image", 8);
    write_bytes(sample_path("images/BMW.txt"), "BMW is a car", 12);
    write_bytes(sample_path("images/bmp"), "BM\x40\0\0\0\0\0\0\0\x36\0\0\0\x28\0", 16);
    write_bytes(sample_path("images/none"), "", 0);
    CHECK(mkfifo(sample_path("images/pipe.png"), 0600) == 0);
    char *folder = xstrdup(sample_path("images")), *slash = format_string("%s/", folder);
    const char *single[] = {"none.png", folder, "x/y.png"}, *two[] = {folder, slash}, *dashes[] = {"-", "-"};
    CHECK_OK(inputs_open(&in, &(StringList){single, 3}, &err), err);
    static const char *const names[] = {"none.png",      "/images/B",   "/images/a.JPG",
                                        "/images/b.png", "/images/bmp", "x/y.png"};
    CHECK(in.count == 6);
    for (int i = 0; i < 6 && in.count == 6; i++) CHECK(strstr(in.items[i].path, names[i]) && !in.items[i].is_stdin);
    CHECK_OK(inputs_check_names(&in, "out", "tex", &err), err);
    inputs_close(&in);
    CHECK_OK(inputs_open(&in, &(StringList){single, 1}, &err), err);
    Image image;
    CHECK_ERROR(input_load(&in.items[0], &image, &err), err, "none.png: No such file");
    CHECK_OK(inputs_check_names(&in, "out", "tex", &err), err);
    inputs_close(&in);
    CHECK_OK(inputs_open(&in, &(StringList){two + 1, 1}, &err), err);
    CHECK(in.count == 4 && !strstr(in.items[0].path, "//"));
    CHECK_ERROR(input_load(&in.items[1], &image, &err), err, "a.JPG: it is neither PNG");
    inputs_close(&in);
    CHECK_OK(inputs_open(&in, &(StringList){two, 2}, &err), err);
    CHECK_ERROR(inputs_check_names(&in, "o", "tex", &err), err, "two of the images would both be written to o/");
    inputs_close(&in);
    const char *empty[] = {sample_path("empty")};
    CHECK_ERROR(inputs_open(&in, &(StringList){empty, 1}, &err), err, "there is no image in the folder");
    CHECK(!strchr(err.text, '\n') && strstr(err.text, "folders inside it are not searched"));
    inputs_close(&in);
    CHECK_ERROR(inputs_open(&in, &(StringList){dashes, 2}, &err), err, "only once");
    inputs_close(&in);
    free(folder);
    free(slash);
    free(png.data);
}

/* Gives n bytes as standard input and loads "-". */
static int load_stdin(const void *bytes, size_t n, Image *image, char **output, Error *err) {
    Inputs in;
    const char *dash[] = {"-"};
    const int before = dup(STDIN_FILENO);
    write_bytes(sample_path("given"), bytes, n);
    const int given = open(sample_path("given"), O_RDONLY);
    if (before < 0 || given < 0 || dup2(given, STDIN_FILENO) < 0) die("cannot redirect stdin");
    close(given);
    int bad = inputs_open(&in, &(StringList){dash, 1}, err);
    if (!bad) bad = input_load(&in.items[0], image, err);
    *output = bad ? NULL : input_output_path("to", &in.items[0], "tex");
    inputs_close(&in);
    dup2(before, STDIN_FILENO);
    close(before);
    return bad;
}

static void test_stdin(void) {
    Error err;
    Image image;
    char *output;
    Bytes png = make_png(300, 170, 3, 1);
    uint8_t *noise = xmalloc(200000);
    for (int i = 0; i < 200000; i++) noise[i] = (uint8_t)(i * 2654435761u >> 24);
    CHECK_OK(load_stdin(png.data, png.size, &image, &output, &err), err);
    CHECK(image.width == 300 && image.height == 170 && output && !strcmp(output, "to/stdin.tex"));
    image_free(&image);
    free(output);
    CHECK_ERROR(load_stdin("", 0, &image, &output, &err), err, "cannot read an image from stdin: it is empty");
    CHECK_ERROR(load_stdin(noise, 200000, &image, &output, &err), err, "the image from stdin: it is neither PNG");
    CHECK_ERROR(load_stdin(png.data, png.size / 2, &image, &output, &err), err, "the image from stdin");
    free(noise);
    free(png.data);
}

/* ---- results ---- */

static void test_result(void) {
    Error err;
    Json j;
    char *text = NULL;
    size_t n = 0;
    TexMessage errors[] = {{3, (char *)"Undefined \"\\foo\"\n\xff"}, {0, (char *)"Emergency stop."}};
    FILE *f = open_memstream(&text, &n);
    Result r = result_begin("a\n\xfe.png");
    CHECK_OK(result_print_json(&r, f, "memory", &err), err);
    r.program = "\\draw \0\xff\xc3\xa9;\n";
    r.program_bytes = 12;
    r.tokens = 7;
    r.log_probability = -INFINITY;
    r.complete = true;
    const Compiled c = {.pdf = (char *)"x", .log = {errors, 2, 1}};
    result_set_compiled(&r, &c);
    r.similarity = 0.5;
    r.preprocessing = "cropped";
    r.prefill_seconds = 0.25;
    CHECK_OK(result_print_json(&r, f, "memory", &err), err);
    fclose(f);
    char *second = strchr(text, '\n');
    CHECK(second && strchr(second + 1, '\n') == text + n - 1);  // two lines
    CHECK(second &&
          !strncmp(text,
                   "{\"image\":\"a\\n\xef\xbf\xbd.png\",\"task\":null,\"program\":null,\"tokens\":0,\"log_probability\":null,"
                   "\"confidence\":null,\"complete\":false,\"compiles\":null,\"errors\":[],\"similarity\":null,"
                   "\"preprocessing\":null,\"seconds\":{\"prefill\":null,\"generate\":null,"
                   "\"compile\":null}}\n",
                   (size_t)(second + 1 - text)));
    CHECK(second && strstr(second, "\"program\":\"\\\\draw \\u0000\xef\xbf\xbd\xc3\xa9;\\n\",\"tokens\":7,"));
    char *nul = second ? strstr(second, "\\u0000") : NULL;
    if (nul) memcpy(nul, "\\u0001", 6);  // our own reader takes no NUL
    CHECK_OK(json_parse(&j, second + 1, strlen(second + 1), "a result", &err), err);
    const int list = json_find(&j, 0, "errors"), first = j.values[list].child, last = j.values[first].next;
    CHECK(j.values[list].count == 2 && j.values[json_find(&j, first, "line")].integer == 3);
    CHECK(!strcmp(json_get_string(&j, first, "message"), "Undefined \"\\foo\"\n\xef\xbf\xbd"));
    CHECK(j.values[json_find(&j, last, "line")].type == JSON_NULL);
    CHECK(!strcmp(json_get_string(&j, 0, "compiles"), "errors") && json_get_bool(&j, 0, "complete", false));
    CHECK(j.values[json_find(&j, 0, "log_probability")].type == JSON_NULL);
    CHECK(j.values[json_find(&j, 0, "similarity")].number == 0.5);
    json_free(&j);
    free(text);
    const Compiled clean = {.clean = true, .pdf = (char *)"x"}, no = {.log = {errors, 1, 0}};
    result_set_compiled(&r, &clean);
    CHECK(r.compiles == COMPILES_CLEAN && r.error_count == 0);
    result_set_compiled(&r, &no);
    CHECK(r.compiles == COMPILES_NO && r.error_count == 1);
    FILE *full = fopen("/dev/full", "w");
    if (full) {
        CHECK_ERROR(result_print_json(&r, full, "stdout", &err), err, "to stdout: No space left on device");
        fclose(full);
    }
}

/* ---- formulas ---- */

static void test_formulas(void) {
    static const char *const cases[][2] = {
        {"\\alpha +x", "\\alpha+x\n"},
        {"\\alpha x", "\\alpha x\n"},
        {"\\frac{\\alpha }{\\beta }", "\\frac{\\alpha}{\\beta}\n"},
        {"\\alpha \\beta ", "\\alpha\\beta\n"},
        {"  x \n", "x\n"},
        {"a\\ b", "a\\ b\n"},
        {"x\\ ", "x\\ \n"},
        {"x\\\\ ", "x\\\\\n"},
        {"\\text{ if \\alpha } x", "\\text{ if \\alpha } x\n"},
        {"\\mbox{a {\\it b } }+\\mu +1", "\\mbox{a {\\it b } }+\\mu+1\n"},
        {"\\text{\\} } +", "\\text{\\} } +\n"},
        {"\\text{open", "\\text{open\n"},
        {"\\text{open\\", "\\text{open\\ \n"},
        {"\\", "\\ \n"},
        {"", "\n"},
        {"\\sum  _{i}", "\\sum_{i}\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n, again;
        const size_t bytes = strlen(cases[i][0]);
        char *exact = memcpy(xmalloc(bytes + !bytes), cases[i][0], bytes);  // a sanitizer sees reads behind it
        char *tidy = formula_tidy(exact, bytes, &n), *twice = formula_tidy(tidy, n, &again);
        CHECK(n == strlen(cases[i][1]) && !memcmp(tidy, cases[i][1], n + 1));
        CHECK(again == n && !memcmp(twice, tidy, n));
        free(exact);
        free(tidy);
        free(twice);
    }
    size_t n;
    char *zero = formula_tidy("\\a \0 ", 5, &n);
    CHECK(n == 4 && !memcmp(zero, "\\a\0\n", 4));
    free(zero);
    char *display = formula_wrap(FORMULA_DISPLAY, "x\n", 2, &n), *plain = formula_wrap(FORMULA_PLAIN, "", 0, &n);
    CHECK(!strcmp(display, "\\[x\\]\n") && n == 0 && !*plain);
    free(display);
    free(plain);
}

/* ---- images in the terminal ---- */

/* Decodes base64 up to the first other character. */
static Bytes from_base64(const char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    Bytes b = {NULL, 0};
    uint32_t word = 0;
    int bits = 0;
    for (const char *at; *text && (at = strchr(digits, *text)); text++) {
        word = word << 6 | (uint32_t)(at - digits);
        if ((bits += 6) < 8) continue;
        bits -= 8;
        const uint8_t byte = (uint8_t)(word >> bits);
        bytes_add(&b, &byte, 1);
    }
    return b;
}

/* A decoder of sixel graphics, made from DEC's description and not from the encoder. */
static Image from_sixel(const char *text) {
    Image p = {0};
    uint8_t palette[256][3] = {{0}};
    int x = 0, y = 0, colour = 0;
    const char *at = strstr(text, "\033P");
    at = at ? strchr(at, 'q') : NULL;
    if (!at || sscanf(at, "q\"1;1;%d;%d", &p.width, &p.height) != 2) return p;
    p.rgb = xcalloc((size_t)p.width * p.height, 3);
    for (at += 2 + strspn(at + 2, "0123456789;"); *at && *at != '\033';) {
        int count = 1, used = 0, c, r, g, b;
        if (*at == '#' && sscanf(at, "#%d;2;%d;%d;%d%n", &c, &r, &g, &b, &used) == 4) {
            const int values[] = {r, g, b};
            for (int k = 0; k < 3; k++) palette[c & 255][k] = (uint8_t)((values[k] * 255 + 50) / 100);
            at += used;
        } else if (*at == '#') {
            colour = (int)strtol(at + 1, (char **)&at, 10) & 255;
        } else if (*at == '$') {
            x = 0, at++;
        } else if (*at == '-') {
            x = 0, y += 6, at++;
        } else {
            if (*at == '!') count = (int)strtol(at + 1, (char **)&at, 10);
            for (const int bits = *at++ - 63; count > 0; count--, x++)
                for (int k = 0; k < 6; k++)
                    if (bits >> k & 1 && x < p.width && y + k < p.height)
                        memcpy(p.rgb + 3 * ((size_t)(y + k) * p.width + x), palette[colour], 3);
        }
    }
    return p;
}

static Image sample_image(int width, int height, uint64_t seed) {
    return (Image){width, height, draw_image(width, height, 3, seed)};
}

static int largest_difference(const Image *a, const Image *b) {
    int largest = 0;
    if (a->width != b->width || a->height != b->height || !a->rgb || !b->rgb) return 256;
    for (size_t i = 0; i < 3 * (size_t)a->width * a->height; i++)
        if (abs(a->rgb[i] - b->rgb[i]) > largest) largest = abs(a->rgb[i] - b->rgb[i]);
    return largest;
}

static char *shown(TerminalGraphics g, const Image *a, const Image *b) {
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    terminal_show(f, g, a, b);
    fclose(f);
    return text;
}

static void test_sixel(void) {
    const int sizes[][2] = {{1, 1}, {5, 6}, {40, 13}, {61, 50}};
    for (int i = 0; i < 4; i++) {
        Image p = sample_image(sizes[i][0], sizes[i][1], (uint64_t)i);
        char *text = shown(TERMINAL_SIXEL, &p, NULL);
        Image q = from_sixel(text);
        CHECK(largest_difference(&p, &q) <= 2);  // 1/100 of 255, rounded
        image_free(&p);
        image_free(&q);
        free(text);
    }
    Image p = {128, 128, xmalloc(128 * 128 * 3)};  // 16384 colours
    for (int i = 0; i < 128 * 128; i++) memcpy(p.rgb + 3 * i, (uint8_t[]){i % 128 * 2, i / 128 * 2, 77}, 3);
    char *text = shown(TERMINAL_SIXEL, &p, NULL);
    Image q = from_sixel(text);
    CHECK(largest_difference(&p, &q) <= 16);
    image_free(&p);
    image_free(&q);
    free(text);
}

static void test_kitty(void) {
    Image p = {90, 70, xmalloc(90 * 70 * 3)}, q = {0};
    Error err;
    Random random;
    random_seed(&random, 1);
    for (int i = 0; i < 90 * 70 * 3; i++) p.rgb[i] = (uint8_t)random_u64(&random);
    char *text = shown(TERMINAL_KITTY, &p, NULL), *base64 = xcalloc(strlen(text) + 1, 1);
    int pieces = 0, last = 0;
    for (char *at = text; (at = strstr(at, "\033_G")); pieces++) {
        char *data = strchr(at, ';'), *end = strstr(at, "\033\\");
        CHECK(data && end && end - data - 1 <= 4096 && last == 0);
        if (!data || !end) break;
        CHECK((pieces == 0) == !strncmp(at, "\033_Ga=T,f=100,q=2,m=1;", 20));
        last = data[-1] == '0';
        strncat(base64, data + 1, (size_t)(end - data - 1));
        at = end;
    }
    Bytes b = from_base64(base64);
    CHECK(pieces > 3 && last == 1);
    CHECK_OK(image_decode(&q, b.data, b.size, "kitty", &err), err);
    CHECK(largest_difference(&p, &q) == 0);
    image_free(&q);
    free(b.data);
    free(text);
    free(base64);
    text = shown(TERMINAL_ITERM2, &p, NULL);
    char *data = strchr(text, ':');
    size_t size = 0;
    CHECK(sscanf(text, "\033]1337;File=inline=1;size=%zu;width=90px;height=70px:", &size) == 1 && strchr(text, '\a'));
    b = from_base64(data ? data + 1 : "");
    CHECK(b.size == size);
    CHECK_OK(image_decode(&q, b.data, b.size, "iTerm2", &err), err);
    CHECK(largest_difference(&p, &q) == 0);
    image_free(&q);
    image_free(&p);
    free(b.data);
    free(text);
}

/* The colours of the character cells, as an image; a lower half without a colour is (1, 2, 3). */
static Image from_blocks(const char *text) {
    Image p = {0};
    int x = 0, y = 0;
    p.rgb = xmalloc(3 * 4000000);
    for (int upper[3], lower[3]; *text;) {
        memcpy(lower, (int[]){1, 2, 3}, sizeof lower);
        int used = 0, more = 0;
        if (sscanf(text, "\033[38;2;%d;%d;%dm%n", upper, upper + 1, upper + 2, &used) == 3) {
            sscanf(text + used, "\033[48;2;%d;%d;%dm%n", lower, lower + 1, lower + 2, &more);
            text += used + more + 3;  // the half block
            for (int k = 0; k < 3; k++) {
                p.rgb[3 * (y * 1000 + x) + k] = (uint8_t)upper[k];
                p.rgb[3 * ((y + 1) * 1000 + x) + k] = (uint8_t)lower[k];
            }
            x++;
        } else {
            if (*text == '\n') p.width = x, x = 0, y += 2;
            text++;
        }
    }
    p.height = y;
    return p;
}

static void test_blocks(void) {
    setenv("COLUMNS", "30", 1);
    Image a = sample_image(30, 21, 1), b = sample_image(28, 14, 2);
    char *text = shown(TERMINAL_BLOCKS, &a, NULL);
    Image q = from_blocks(text);
    int wrong = q.width != 30 || q.height != 22;
    for (int y = 0; y < 21; y++) wrong += memcmp(q.rgb + 3000 * y, a.rgb + 90 * y, 90) != 0;
    CHECK(wrong == 0 && q.rgb[3000 * 21] == 1);
    image_free(&q);
    free(text);
    text = shown(TERMINAL_BLOCKS, &a, &b);  // two boxes of 14 columns: 14 x 10 and 14 x 7, the second a pixel lower
    q = from_blocks(text);
    CHECK(q.width == 30 && q.height == 10);
    Image small = terminal_scale(&b, 14, 7);
    wrong = 0;
    for (int y = 0; y < 7; y++) wrong += memcmp(q.rgb + 3 * (1000 * (y + 1) + 16), small.rgb + 42 * y, 42) != 0;
    for (int y = 0; y < 10; y++)
        for (int k = 0; k < 6; k++) wrong += q.rgb[3 * (1000 * y + 14) + k] != 255;
    CHECK(wrong == 0);
    image_free(&small);
    image_free(&q);
    free(text);
    for (int g = 0; g < 5; g++) {
        Image none = {0};
        text = shown((TerminalGraphics)g, &a, &none);  // there is no drawing: the image alone
        CHECK((*text == '\0') == (g == 0));
        free(text);
    }
    image_free(&a);
    image_free(&b);
    unsetenv("COLUMNS");
}

static void clear_terminal_variables(void) {
    static const char *const names[] = {"TMUX",        "TERM",     "KITTY_WINDOW_ID", "TERM_PROGRAM",
                                        "LC_TERMINAL", "NO_COLOR", "TIKZ_GRAPHICS"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void test_graphics_choice(void) {
    static const struct {
        const char *name, *value;
        TerminalGraphics expected;
    } cases[] = {{"TERM", "xterm-kitty", TERMINAL_KITTY},
                 {"KITTY_WINDOW_ID", "1", TERMINAL_KITTY},
                 {"TERM_PROGRAM", "ghostty", TERMINAL_KITTY},
                 {"TERM_PROGRAM", "iTerm.app", TERMINAL_ITERM2},
                 {"LC_TERMINAL", "iTerm2", TERMINAL_ITERM2},
                 {"TERM_PROGRAM", "WezTerm", TERMINAL_ITERM2},
                 {"TERM", "foot", TERMINAL_SIXEL},
                 {"TERM", "xterm-256color", TERMINAL_NONE},
                 {"KITTY_WINDOW_ID", "", TERMINAL_NONE}};
    const char *why;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        clear_terminal_variables();
        setenv(cases[i].name, cases[i].value, 1);
        CHECK(terminal_from_environment() == cases[i].expected);
        setenv("TMUX", "/tmp/x", 1);
        CHECK(terminal_from_environment() == TERMINAL_NONE);
    }
    clear_terminal_variables();
    FILE *file = fopen(sample_path("no-terminal"), "w");
    CHECK(terminal_graphics(file, NULL, &why) == TERMINAL_NONE && strstr(why, "not a terminal"));
    CHECK(terminal_graphics(file, "sixel", &why) == TERMINAL_SIXEL);
    CHECK(terminal_graphics(file, "ansi", &why) == TERMINAL_NONE && strstr(why, "kitty, iterm2, sixel"));
    setenv("TIKZ_GRAPHICS", "kitty", 1);
    CHECK(terminal_graphics(file, NULL, &why) == TERMINAL_KITTY);
    CHECK(terminal_graphics(file, "none", &why) == TERMINAL_NONE && strstr(why, "asked for"));
    fclose(file);
    clear_terminal_variables();
    CHECK(terminal_answer_has_sixel("\033[?62;4;22c") && terminal_answer_has_sixel("x\033[?4c"));
    CHECK(!terminal_answer_has_sixel("\033[?62;14;22c") && !terminal_answer_has_sixel("\033[?62;22c4") &&
          !terminal_answer_has_sixel("") && !terminal_answer_has_sixel("\033[?") &&
          !terminal_answer_has_sixel("4c") && !terminal_answer_has_sixel("\033[?x4c") &&
          !terminal_answer_has_sixel("\033[?62;4"));
}

/* A terminal that gives `answer` when it is asked, or none. */
static bool ask(const char *answer, double timeout, double *seconds) {
    int master, slave, status;
    struct termios before, after;
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    if (openpty(&master, &slave, NULL, NULL, NULL)) return false;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        char question[3];
        size_t n = 0;
        close(slave);
        for (ssize_t got; n < 3 && (got = read(master, question + n, 3 - n)) > 0;) n += (size_t)got;
        if (n == 3 && !memcmp(question, "\033[c", 3) && answer) {
            const ssize_t written = write(master, answer, strlen(answer));
            (void)written;
        }
        _exit(0);
    }
    tcgetattr(slave, &before);
    *seconds = seconds_now();
    const bool sixel = terminal_asks_sixel(slave, slave, timeout);
    *seconds = seconds_now() - *seconds;
    tcgetattr(slave, &after);
    CHECK(!memcmp(&before, &after, sizeof before));
    close(slave);
    close(master);
    CHECK(waitpid(child, &status, 0) == child);
    return sixel;
}

static void test_ask(void) {
    double seconds;
    CHECK(ask("\033[?62;4c", 10, &seconds) && seconds < 9);
    CHECK(!ask("\033[?62;22c", 10, &seconds) && seconds < 9);
    CHECK(!ask(NULL, 0.1, &seconds) && seconds >= 0.05 && seconds < 5);
    CHECK(!ask("endless nonsense", 0.1, &seconds));
    int pipes[2];
    CHECK(pipe(pipes) == 0 && !terminal_asks_sixel(pipes[0], pipes[1], 5));
    close(pipes[0]);
    close(pipes[1]);
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    samples_begin();
    test_repeat();
    test_repeat_starter();
    test_loops();
    test_interrupted();
    test_inputs();
    test_stdin();
    test_formulas();
    test_result();
    test_sixel();
    test_kitty();
    test_blocks();
    test_graphics_choice();
    test_ask();
    samples_end();
    return checks_report();
}
