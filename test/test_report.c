/* Tests of reports: intervals by resampling, marking of differences, charts, and a page of invented models.
 *
 *     test_report                   runs the tests
 *     test_report --page FOLDER     writes the page of the invented models there, to be looked at */
#include "samples.h"

#include "../metrics/curve.h"
#include "../metrics/difference.h"
#include "../metrics/drawings.h"
#include "../metrics/programs.h"
#include "../metrics/report_page.h"
#include "../metrics/report_text.h"
#include "../metrics/results.h"

/* ---- resampling ---- */

typedef struct {
    double correct, tokens;
} Counts;

static double share(const void *sums, int which) {
    (void)which;
    return ((const Counts *)sums)->correct / ((const Counts *)sums)->tokens;
}
static double undefined(const void *sums, int which) {
    (void)which;
    return ((const Counts *)sums)->correct / 0.0 * 0;
}

static void counts_add(void *sum, const void *sample) {
    ((Counts *)sum)->correct += ((const Counts *)sample)->correct;
    ((Counts *)sum)->tokens += ((const Counts *)sample)->tokens;
}
static const SampleKind counted = {sizeof(Counts), counts_add};

/* `count` samples of 10 tokens, each correct with probability p. */
static Counts *samples_of(int count, double p, uint64_t seed) {
    Random random;
    Counts *out = xcalloc((size_t)count, sizeof *out);
    random_seed(&random, seed);
    for (int i = 0; i < count; i++) {
        out[i].tokens = 10;
        for (int k = 0; k < 10; k++) out[i].correct += random_uniform(&random) < p;
    }
    return out;
}

static void test_bootstrap(void) {
    const int count = 400;
    Bootstrap a, b, again;
    Counts *x = samples_of(count, 0.5, 1), *y = samples_of(count, 0.5, 1);
    bootstrap_open(&a, x, count, counted, 7);
    bootstrap_open(&again, x, count, counted, 7);
    CHECK(!memcmp(a.sums, again.sums, BOOTSTRAP_RESAMPLES * sizeof(Counts)));
    const Interval i = bootstrap_interval(&a, share, 0);
    const double error = 1.96 * sqrt(i.value * (1 - i.value) / (10 * count));  // of a share of independent tokens
    CHECK(fabs(i.low - (i.value - error)) < 0.2 * error && fabs(i.high - (i.value + error)) < 0.2 * error);
    for (int k = 0; k < count; k += 20) y[k].correct -= y[k].correct > 0;
    bootstrap_open(&b, y, count, counted, 7);
    const Interval d = bootstrap_difference(&b, &a, share, 0), j = bootstrap_interval(&b, share, 0);
    CHECK(d.value < 0 && bootstrap_significant(&d));        // 20 tokens of 4000, but always to the same side:
    CHECK(j.high > i.low && j.low < i.high && d.high < 0);  // the intervals overlap, and the pairs still tell
    const Interval none = bootstrap_difference(&a, &again, share, 0), nan = bootstrap_interval(&a, undefined, 0);
    CHECK(none.value == 0 && none.low == 0 && none.high == 0 && !bootstrap_significant(&none));
    CHECK(isnan(nan.value) && isnan(nan.low) && isnan(nan.high));
    bootstrap_close(&a), bootstrap_close(&b), bootstrap_close(&again);
    bootstrap_open(&a, x, 1, counted, 7);
    const Interval one = bootstrap_interval(&a, share, 0);
    CHECK(one.value == x[0].correct / 10 && isnan(one.low) && isnan(one.high));
    bootstrap_close(&a);
    const double sorted[] = {1, 2, 4};
    CHECK(bootstrap_quantile(sorted, 3, 0.25) == 1.5 && bootstrap_quantile(sorted, 3, 1) == 4);
    free(x), free(y);
}

/* ---- differences of texts ---- */

/* Two texts as one, as HTML with marks. */
static void check_diff(const char *a, const char *b, const char *both) {
    DiffText x, y;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diff_open(&x, &y, a, b);
    diff_write_both(f, &x, &y);
    fclose(f);
    check(!strcmp(text, both), __FILE__, __LINE__, both, text);
    diff_close(&x), diff_close(&y);
    free(text);
}

static void test_diff(void) {
    check_diff("", "", "");
    check_diff("a", "", "<mark>a</mark>");
    check_diff("\\draw (1,2);", "\\draw (1,2);", "\\draw (1,2);");
    check_diff("\\draw (1,2.5);", "\\draw (1,2.75);", "\\draw (1,<del>2.75</del><mark>2.5</mark>);");
    check_diff("a b c", "a c", "a <mark>b </mark>c");
    check_diff("<x>", "<y>", "&#60;<del>y</del><mark>x</mark>&#62;");
    check_diff("x y z", "z y x", "<del>z</del><mark>x</mark> y <del>x</del><mark>z</mark>");
}

/* ---- charts ---- */

static void test_steps(void) {
    const double ranges[] = {1e-7, 0.3, 1, 7, 12345};
    for (int i = 0; i < 5; i++) {
        const double step = chart_step(ranges[i], 6), first = step / pow(10, floor(log10(step) + 1e-9));
        CHECK(ranges[i] / step <= 6 + 1e-9 && ranges[i] / step >= 2);
        CHECK(fabs(first - 1) < 1e-6 || fabs(first - 2) < 1e-6 || fabs(first - 5) < 1e-6);
    }
    char text[32];
    chart_number(text, NAN), CHECK(!strcmp(text, "none"));
    chart_number(text, 0.123456), CHECK(!strcmp(text, "0.1235"));
    char name[64];
    chart_name(name, "short"), CHECK(!strcmp(name, "short"));
    chart_name(name, "out/a-long-folder/another-long-folder/\xc3\xa4\xc3\xa4\xc3\xa4/best.safetensors");
    CHECK(strlen(name) <= 44 && !strncmp(name, "out/a-long-folder/", 18) && strstr(name, "...") &&
          strstr(name, "/best.safetensors"));
    for (size_t i = 0, length; name[i]; i += length)
        CHECK(utf8_scan((const uint8_t *)name + i, strlen(name + i), &length) == UTF8_COMPLETE);
}

/* Values that differ by a few roundings still have an axis. */
static void test_narrow(void) {
    const double x[] = {1, 2}, y[] = {3, nextafter(3, 4)};
    const ChartSeries s = {"narrow", x, y, 2};
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    chart_write(f, &(Chart){.title = "t", .x_title = "x", .y_title = "y", .series = &s, .count = 1});
    fclose(f);
    CHECK(n < 10000 && strstr(text, "</svg>"));
    free(text);
}

/* ---- programs and results of an earlier run ---- */

static bool contains(const char *folder, const char *file, const char *part) {
    char *path = format_string("%s/%s", folder, file);
    Error err;
    MappedFile f;
    CHECK_OK(file_map(&f, path, &err), err);
    const bool found = memmem(f.data, f.size, part, strlen(part)) != NULL;
    file_unmap(&f);
    free(path);
    return found;
}

/* Programs with line ends and zero bytes come back; a file that is empty or cut gives what is whole in it. */
static void test_programs(void) {
    char *path = format_string("%s/programs", samples_folder);
    Error err;
    ProgramStore s;
    for (int cut = 0; cut < 4; cut++) {
        remove(path);
        CHECK_OK(programs_open(&s, path, 3, &err), err);
        CHECK_OK(programs_add(&s, 2, memcpy(xmalloc(6), "a\nb\0c", 6), 5, &err), err);
        CHECK_OK(programs_add(&s, 0, xstrdup("9 9\n"), 4, &err), err);
        programs_close(&s);
        const off_t sizes[] = {-1, 0, 7, 12};  // whole, nothing, inside the first, inside the second
        if (cut) CHECK(truncate(path, sizes[cut]) == 0);
        CHECK_OK(programs_open(&s, path, 3, &err), err);
        CHECK(!s.texts[1] && !s.texts[2] == (cut == 1 || cut == 2) && !s.texts[0] == (cut > 0));
        if (s.texts[2]) CHECK(s.lengths[2] == 5 && !memcmp(s.texts[2], "a\nb\0c", 5));
        CHECK_OK(programs_add(&s, 1, xstrdup("new"), 3, &err), err);
        programs_close(&s);
        CHECK_OK(programs_open(&s, path, 3, &err), err);
        CHECK(s.texts[1] && !strcmp(s.texts[1], "new") && (cut || s.lengths[0] == 4));
        programs_close(&s);
    }
    free(path);
}

/* What is not the program's own file is not written to. */
static void test_links(void) {
    char *path = format_string("%s/linked", samples_folder), *target = format_string("%s/precious", samples_folder);
    Error err;
    ProgramStore programs;
    ResultStore results;
    CHECK_OK(file_write(target, "9 9\nprecious", 12, &err), err);
    CHECK(symlink("precious", path) == 0);
    CHECK(programs_open(&programs, path, 3, &err) == -1 && strstr(err.text, "symbolic link"));
    CHECK(results_open(&results, path, 2, true, &err) == -1 && strstr(err.text, "symbolic link"));
    CHECK(contains(samples_folder, "precious", "9 9\nprecious"));
    programs_close(&programs);
    results_close(&results);
    CHECK(remove(path) == 0 && mkfifo(path, 0600) == 0);
    CHECK(programs_open(&programs, path, 3, &err) == -1);
    programs_close(&programs);
    remove(path);
    free(path), free(target);
}

/* Results come back, in whatever number; a file that is cut or damaged gives those before. */
static void test_results(void) {
    enum { MANY = 1000 };
    char *path = format_string("%s/results", samples_folder);
    Error err;
    ResultStore s;
    double x[2];
    for (int damage = 0; damage < 4; damage++) {
        remove(path);
        CHECK_OK(results_open(&s, path, 2, false, &err), err);
        for (int i = 0; i < MANY; i++) CHECK_OK(results_add(&s, (uint64_t)i * 64, (double[]){i, NAN}, &err), err);
        CHECK_OK(results_add(&s, 64, (double[]){-1, -1}, &err), err);  // the first stays
        CHECK(results_find(&s, 64, x) && x[0] == 1 && isnan(x[1]) && !results_find(&s, 65, x));
        results_close(&s);
        const off_t size = MANY * 4 * 8, cut[] = {size, size - 1, 7, 500 * 4 * 8 + 9};
        FILE *f = damage == 3 ? fopen(path, "r+") : NULL;
        if (f) CHECK(!fseek(f, (long)cut[3], SEEK_SET) && fputc('x', f) == 'x' && !fclose(f));
        if (damage < 3) CHECK(truncate(path, cut[damage]) == 0);
        const int whole[] = {MANY, MANY - 1, 0, 500};
        for (int resume = 1; resume >= 0; resume--) {
            CHECK_OK(results_open(&s, path, 2, resume, &err), err);
            CHECK((int)s.count == (resume ? whole[damage] : 0));
            for (int i = 0; i < MANY; i++) CHECK(results_find(&s, (uint64_t)i * 64, x) == (i < (int)s.count));
            results_close(&s);
        }
    }
    free(path);
}

/* ---- difference maps ---- */

static void test_difference(void) {
    uint8_t black[3] = {0, 0, 0}, row[15] = {255, 255, 255, 0, 0, 0, 255, 255, 255, 0, 0, 0, 255, 255, 255};
    const Image dot = {.width = 1, .height = 1, .rgb = black}, two = {.width = 5, .height = 1, .rgb = row};
    static const uint8_t expected[15] = {255, 255, 255, 30, 135, 235, 225, 45, 45, 30, 135, 235, 255, 255, 255};
    Image map = difference_map(&dot, &two), same = difference_map(&two, &two);
    CHECK(map.width == 5 && map.height == 1 && !memcmp(map.rgb, expected, 15));
    CHECK(same.rgb[0] == 255 && same.rgb[3] == 105 && same.rgb[4] == 105);
    image_free(&map), image_free(&same);
}

/* ---- training curves ---- */

/* A log with an evaluation, a damaged line, a run that was resumed from step 2, and a last line without an end. */
static void test_curve(void) {
    static const char log[] =
        "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2.5}\n{\"step\":2,\"val\":{\"ce\":1}}\n"
        "{\"step\":3,\"loss\":9}\n{\"step\":4,\"lo\n\n{\"step\":3,\"loss\":2}\n{\"step\":4,\"loss\":1.5}";
    char *path = format_string("%s/log.jsonl", samples_folder),
         *model = format_string("%s/best.safetensors", samples_folder);
    Error err;
    ChartSeries s = curve_read(model);
    CHECK(s.count == 0);
    CHECK_OK(file_write(path, log, sizeof log - 1, &err), err);
    s = curve_read(model);
    CHECK(s.count == 4 && s.x[3] == 4 && s.y[0] == 3 && s.y[1] == 2.5 && s.y[2] == 2 && s.y[3] == 1.5);
    curve_free(&s);
    free(path), free(model);
}

/* ---- drawings ---- */

#define FIGURE(body)                                                                    \
    "\\documentclass[tikz]{standalone}\n\\begin{document}\n\\begin{tikzpicture}\n" body \
    "\n\\end{tikzpicture}\n\\end{document}\n"

/* Three programs, one of them twice: verdicts, files, a second run that goes on and draws nothing again, and a third that
 * begins anew. */
static void test_drawings(void) {
    static const char *const programs[] = {FIGURE("\\draw (0,0) -- (1,1);"),
                                           FIGURE("\\draw (0,0) \\nonsense -- (1,1);"), "no document",
                                           FIGURE("\\draw (0,0) -- (1,1);")};
    static const DrawnVerdict verdicts[] = {DRAWN_CLEAN, DRAWN_WITH_ERRORS, DRAWN_NOT, DRAWN_CLEAN};
    DrawingOptions o = {.task = RENDER_TIKZ, .dpi = 100, .jobs = 2, .folder = samples_folder};
    Renderer r;
    Error err;
    if (renderer_open(&r, &(RenderOptions){0}, &err)) {
        printf("not tested here: drawings: %s\n", err.text);
        return;
    }
    renderer_close(&r);
    for (int run = 0; run < 3; run++) {
        DrawnProgram p[4] = {{0}};
        for (int i = 0; i < 4; i++) p[i].program = programs[i], p[i].bytes = strlen(programs[i]);
        o.resume = run == 1;
        CHECK_OK(drawings_make(p, 4, &o, &err), err);
        for (int i = 0; i < 4; i++)
            CHECK(p[i].verdict == verdicts[i] && (p[i].verdict == DRAWN_CLEAN) == !p[i].error);
        CHECK(p[1].error && strstr(p[1].error, "line 4:") && !strcmp(p[0].name, p[3].name));
        char *png = drawn_path(&o, &p[0], "png"), *none = drawn_path(&o, &p[2], "png"),
             *txt = drawn_path(&o, &p[0], "txt");
        CHECK(file_exists(png) && !file_exists(none));
        if (run == 0)
            CHECK_OK(file_write(png, "kept", 4, &err), err);
        else
            CHECK(contains(samples_folder, png + strlen(samples_folder) + 1, "kept") == (run == 1));
        if (run == 1) CHECK_OK(file_write(txt, "damaged", 7, &err), err);
        if (run == 1) CHECK(!drawn_find(&p[0], &o));
        if (run == 2) CHECK(remove(png) == 0 && !drawn_find(&p[0], &o));
        drawings_free(p, 4);
        free(png), free(none), free(txt);
    }
}

/* ---- a page ---- */

static double tokens(const void *sums, int which) {
    (void)which;
    return ((const Counts *)sums)->tokens;
}

static const Figure figures[] = {
    {{"accuracy", "Accuracy", "Share of the tokens that the model ranks first.", 1, "accuracy"}, "Tokens", share, 0},
    {{"error", "Error", "The other share <&\">.", -1, NULL}, "Tokens", share, 0},
    {{"second", "Second", "Another share.", 1, "second"}, "Programs", share, 0},
    {{"third", "Third", "Another share.", 1, "third"}, "Programs", share, 0},
    {{"tokens", "Tokens", "How many there are.", 0, NULL}, "Programs", tokens, 0},
    {{"none", "None", "Never defined.", 1, NULL}, "Programs", undefined, 0},
};

static void fill_curve(ChartSeries *s, int count, double from, double scale) {
    double *x = xcalloc((size_t)count, sizeof *x), *y = xcalloc((size_t)count, sizeof *y);
    for (int i = 0; i < count; i++) x[i] = from + i * scale, y[i] = 0.5 + 0.4 * sin(i * 0.3 + from);
    if (count > 3) y[3] = NAN;
    *s = (ChartSeries){.x = x, .y = y, .count = count};
}

static void invent_png(const char *folder, const char *name, int shade, int width, int height) {
    Error err;
    char *path = format_string("%s/%s", folder, name);
    const size_t bytes = 3 * (size_t)width * (size_t)height;
    Image p = {.width = width, .height = height, .rgb = xmalloc(bytes)};
    memset(p.rgb, shade, bytes);
    CHECK_OK(image_save_png(&p, path, &err), err);
    image_free(&p);
    free(path);
}

/* Writes page, text and table of two invented models; returns what report_write_page does. */
static int write_invented(const char *folder, const char *drawing, Error *err) {
    enum { SAMPLES = 30 };
    static ReportModel models[3];
    static const char *const names[] = {"teacher", "student with a <long> name", "baseline"};
    static const char *const notes[] = {"CDM is left out, because no sample is a formula."};
    static char rambling[20001];
    ReportSample samples[SAMPLES];
    ReportOutput outputs[SAMPLES];
    invent_png(folder, "input.png", 200, 1300, 500), invent_png(folder, "drawing.png", 90, 40, 30);
    memset(rambling, 'y', sizeof rambling - 1);
    for (int i = 0; i < SAMPLES; i++) {
        samples[i] = (ReportSample){"input.png", "\\draw (0,0) -- (1,2);\n\\node {A < B};", i};
        outputs[i] = (ReportOutput){.program = "\\draw (0,0) -- (1,3);\n\\node {A < B};",
                                    .drawing = i % 3 ? drawing : NULL,
                                    .compiled = true,
                                    .remark = i % 3 ? NULL : "line 3: Undefined control sequence",
                                    .score = i};
        if (i == 17) outputs[i].program = rambling;
    }
    for (int i = 0; i < 3; i++) {
        Counts *x = samples_of(SAMPLES, 0.5 + 0.15 * i, (uint64_t)i);
        models[i] =
            (ReportModel){.name = names[i], .path = "out/best.safetensors", .parameters = 2e6, .outputs = outputs};
        bootstrap_open(&models[i].sums, x, SAMPLES, counted, 1);
        free(x);
        fill_curve(&models[i].reliability, 10, 0.05, 0.1), fill_curve(&models[i].confidence, 10, 0, 0.1);
        fill_curve(&models[i].entropy, 20, 0, 0.3), fill_curve(&models[i].curve, 1000, 0, 1);
    }
    const Report r = {"Three models",
                      "dev/starter/test.bin",
                      "./eval --report x",
                      "cpu (avx2)",
                      SAMPLES,
                      figures,
                      sizeof figures / sizeof *figures,
                      models,
                      3,
                      samples,
                      notes,
                      1};
    const int64_t worst[] = {0, 1, 2}, random[] = {5, 17, 29};
    int bad = report_write_page(&r, folder, worst, random, 3, err);
    if (!bad) bad = report_write_text(&r, folder, worst, random, 3, err);
    for (int i = 0; i < 3; i++) {
        ChartSeries *const series[] = {&models[i].reliability, &models[i].confidence, &models[i].entropy,
                                       &models[i].curve};
        for (int k = 0; k < 4; k++) curve_free(series[k]);
        bootstrap_close(&models[i].sums);
    }
    return bad;
}

/* A text of n bytes and these. */
static const char *rambling_at(size_t n, const char *end) {
    static char text[REPORT_PROGRAM_BYTES + 8];
    memset(text, 'x', n);
    strcpy(text + n, end);
    return text;
}

static void test_page(void) {
    Error err;
    CHECK_ERROR(write_invented(samples_folder, "missing.png", &err), err, "missing.png");
    CHECK_OK(write_invented(samples_folder, "drawing.png", &err), err);
    CHECK(contains(samples_folder, "index.html", "student with a &#60;long&#62; name"));
    CHECK(contains(samples_folder, "index.html", "data:image/png;base64,") &&
          !contains(samples_folder, "index.html", "http"));
    CHECK(contains(samples_folder, "index.html", "(1,<del>2</del><mark>3</mark>)") &&
          !contains(samples_folder, "index.html", "nan"));
    CHECK(!contains(samples_folder, "index.html", "Never defined") &&
          contains(samples_folder, "report.md", "| Accuracy |"));
    CHECK(contains(samples_folder, "metrics.csv", "accuracy,"));
    CHECK(contains(samples_folder, "index.html", "<img width=\"640\" height=\"246\"") &&
          contains(samples_folder, "index.html", "<img width=\"40\" height=\"30\""));
    CHECK(contains(samples_folder, "index.html", "12000") &&
          contains(samples_folder, "report.md", "... (12000 more bytes)"));
    char *shown = report_shown(rambling_at(REPORT_PROGRAM_BYTES - 1, "\xc3\xa4")), *whole = report_shown("\xc3\xa4");
    CHECK(shown[REPORT_PROGRAM_BYTES - 2] == 'x' && shown[REPORT_PROGRAM_BYTES - 1] == '\n' &&
          !strcmp(whole, "\xc3\xa4"));
    free(shown), free(whole);
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc > 2 && !strcmp(argv[1], "--page")) {
        Error err;
        die_if(make_folder(argv[2], &err), &err);
        die_if(write_invented(argv[2], "drawing.png", &err), &err);
        return 0;
    }
    samples_begin();
    test_bootstrap();
    test_diff();
    test_steps();
    test_narrow();
    test_programs();
    test_links();
    test_results();
    test_difference();
    test_curve();
    test_drawings();
    test_page();
    return checks_report();
}
