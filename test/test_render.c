/* Tests of lib/render.h and what is below it: documents and logs as texts, then, where TeX and Poppler are installed,
 * figures, formulas, formats, errors and hostile documents. */
#include "samples.h"

#include "../lib/png_write.h"
#include "../lib/render.h"
#include "../lib/threads.h"

#include <sys/mount.h>

/* ---- texts ---- */

static void test_log(void) {
    static const char text[] =
        "This is pdfTeX\n./a.tex:12: Undefined control sequence.\nl.12 \\foo\n/usr/x.sty:7: Package x Error: no.\r\n"
        "a.tex:3: Missing $ inserted.\nAt 10:30: noon\n\t...x.lua:8: in main chunk\n./a.tex:x: no\n"
        "! ==> Fatal error occurred\na.tex:9:  ==> Fatal error occurred\n!pdfTeX error: pdflatex (file ec): Font ec "
        "at 600 not found\n"
        "Output written on a.pdf (2 pages, 11057 bytes).\n./a.tex:99999999999: far\nlast:4: x";
    TexLog l;
    tex_log_read(&l, "a.tex", text, strlen(text));
    CHECK(l.count == 5 && l.pages == 2 && tex_log_first_line(&l) == 3);
    CHECK(l.errors[0].line == 12 && !strcmp(l.errors[0].message, "Undefined control sequence."));
    CHECK(l.errors[1].line == 0 && !strcmp(l.errors[1].message, "Package x Error: no."));
    CHECK(l.errors[2].line == 3 && l.errors[3].line == 0 && strstr(l.errors[3].message, "Font ec at 600"));
    tex_log_free(&l);
    tex_log_read(&l, "a.tex", "", 0);
    CHECK(l.count == 0 && l.pages == 0 && tex_log_first_line(&l) == 0);
    const TexMessage missing = {3, (char *)"LaTeX Error: File `circuitikz.sty' not found."},
                     class = {0, (char *)"LaTeX Error: File `mine.cls' not found."},
                     image = {2, (char *)"LaTeX Error: File `a.png' not found."};
    char *a = tex_explain(&missing), *b = tex_explain(&class), *c = tex_explain(&image);
    CHECK(!strcmp(a, "line 3: the package circuitikz is not installed (circuitikz.sty; Debian has it in "
                     "texlive-pictures)"));
    CHECK(!strcmp(b, "the class mine is not installed (mine.cls)") && strstr(c, "line 2: LaTeX Error: File `a.png'"));
    free(a);
    free(b);
    free(c);
}

static void check_document(RenderTask task, const char *program, const char *part, int line) {
    Error err = {""};
    char *document = tex_document(task, program, strlen(program), &err),
         *at = document ? strstr(document, part) : NULL;
    int lines = 1;
    for (const char *p = document; at && p < at; p++) lines += *p == '\n';
    check(at && !strncmp(document, TEX_EMPTY_PAGES, strlen(TEX_EMPTY_PAGES)) && lines == line, __FILE__, __LINE__,
          program, document ? document : err.text);
    free(document);
}

static void test_documents(void) {
    Error err;
    const char *const picture = "\\begin{tikzpicture}\n\\draw (0,0);\n\\end{tikzpicture}";
    check_document(RENDER_TIKZ, "% x\n\\documentclass{a}\n\\begin{document}\nx", "x\n\\documentclass{a}", 1);
    check_document(RENDER_TIKZ, "\xef\xbb\xbf\\documentclass{a}", "\\documentclass{a}", 1);
    check_document(RENDER_TIKZ, picture, "standalone}\\begin{document}\\begin{tikzpicture}\n\\draw", 1);
    check_document(RENDER_TIKZ, "\\usetikzlibrary{shapes}\n\\begin{tikzpicture}", "\n\\begin{document}\\begin{tikz",
                   1);
    check_document(RENDER_TIKZ, "\\tikzset{a/.style={}}\n\\tikz \\node{x};", "\\begin{document}\\tikz \\node", 2);
    check_document(RENDER_TIKZ, "% \\documentclass{x}\n\\begin{tikzcd}", "\\usepackage{tikz-cd}", 1);
    check_document(RENDER_TIKZ, "\\usepackage{x}\n\\begin{document}x", "standalone}\\usepackage{x}", 1);
    check_document(RENDER_FORMULA, "\n x^2 \n\n", "$\\displaystyle x^2\n$", 2);
    check_document(RENDER_FORMULA, "\\begin{align}x&=1\\end{align}", "\\begin{document}\\begin{align}", 1);
    check_document(RENDER_FORMULA, "\\begin{aligned}x\\end{aligned}", "$\\displaystyle \\begin{aligned}", 1);
    check_document(RENDER_FORMULA, "\\begin{gathered}x\\end{gathered}", "$\\displaystyle \\begin{gathered}", 1);
    check_document(RENDER_FORMULA, "\\begin{gather*}x\\end{gather*}", "\\begin{document}\\begin{gather*}", 1);
    check_document(RENDER_FORMULA, "\\begin{array}{c}x\\end{array}", "$\\displaystyle \\begin{array}", 1);
    check_document(RENDER_FORMULA, "\\[x\\]", "\\begin{document}\\[x", 1);
    CHECK(!tex_document(RENDER_TIKZ, "hello", 5, &err) && strstr(err.text, "is not a document: it has neither"));
    CHECK(!tex_document(RENDER_TIKZ, "\\tikzset{}", 10, &err) && !tex_document(RENDER_TIKZ, "", 0, &err));
    CHECK(!tex_document(RENDER_TIKZ, "\\documentclass{a}\0", 18, &err) && strstr(err.text, "zero byte"));
    CHECK(!tex_document(RENDER_FORMULA, " \n", 2, &err) && strstr(err.text, "it is empty"));
    CHECK(tex_preamble("a%\\begin{document}\n\\%\\begin{document}") == 21 && tex_preamble("x") == 0);
    char *body = tex_format_body("a\nb\\begin{document}\nx", 3);
    CHECK(!strcmp(body, "%\n\\begin{document}\nx"));
    free(body);
    CHECK(!tex_aux_matters("\\relax \n\\gdef \\@abspage@last{1}\n") &&
          tex_aux_matters("\\relax \n\\newlabel{a}{}\n"));
}

static void test_svg_crop(void) {
    char *svg = render_svg_crop("<?xml?>\n<svg width=\"80pt\" viewBox=\"0 0 80 40\" version=\"1.2\">\n<g/></svg>",
                                (ImageBox){25, 10, 50, 25}, 100, 50);
    CHECK(svg && strstr(svg, "width=\"40.000pt\" height=\"20.000pt\" viewBox=\"20.000 8.000 40.000 20.000\"") &&
          strstr(svg, ">\n<g/></svg>"));
    free(svg);
    CHECK(!render_svg_crop("<html>", (ImageBox){0, 0, 1, 1}, 1, 1));
}

/* ---- real TeX ---- */

static const SandboxLimits test_limits = {20, 100, (size_t)1 << 30, 64 << 20, 128 << 20, 500, 64};
static const char *cache;

static Renderer open_renderer(int engines, int after, const SandboxLimits *limits) {
    Renderer r;
    Error err;
    const RenderOptions o = {.engines = engines, .limits = *limits, .cache = cache, .format_after = after};
    if (renderer_open(&r, &o, &err) != 0) die("%s", err.text);
    return r;
}

static Compiled compile(Renderer *r, RenderTask task, const char *program) {
    Compiled c;
    Error err = {""};
    const int status = render_compile(r, task, program, strlen(program), &c, &err);
    check(status == 0, __FILE__, __LINE__, "a verdict", err.text);
    return c;
}

static Image draw(const Renderer *r, const Compiled *c, int longest, double dpi) {
    Image p;
    Error err = {""};
    const int status = render_image(r, c, longest, dpi, &p, &err);
    check(status == 0, __FILE__, __LINE__, "an image", err.text);
    if (status != 0) p = (Image){1, 1, (uint8_t *)xcalloc(3, 1)};
    return p;
}

#define STANDALONE "\\documentclass[tikz]{standalone}\n\\begin{document}\n"

static bool is_colour(const Image *p, int x, int y, int red, int green, int blue) {
    const uint8_t *at = p->rgb + 3 * ((size_t)p->width * y + x);
    return abs(at[0] - red) < 3 && abs(at[1] - green) < 3 && abs(at[2] - blue) < 3;
}

/* The size, the colours, the crop, and that the last page counts. */
static void test_drawing(void) {
    Renderer r = open_renderer(1 << TEX_PDFLATEX, -1, &test_limits);
    Compiled c = compile(&r, RENDER_TIKZ, "\\fill[red](0,0) rectangle(4,2);");
    CHECK(!c.pdf && strstr(c.problem, "not a document"));
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ,
                "\\documentclass{article}\\begin{document}x\\newpage\\noindent\\rule{40pt}{20pt}"
                "\\end{document}");
    CHECK(c.clean && !c.problem && c.log.pages == 2 && c.log.count == 0);
    Image p = draw(&r, &c, 420, 0);  // a small figure on a page of A4, without a page number
    CHECK(p.width <= 420 && p.width >= 418 && abs(p.height - 210) <= 3 && is_colour(&p, 210, 100, 0, 0, 0) &&
          is_colour(&p, 3, 3, 0, 0, 0));
    image_free(&p);
    p = draw(&r, &c, 0, 72.27);
    CHECK(abs(p.width - 40) <= 2 && abs(p.height - 20) <= 2);
    image_free(&p);
    Error err;
    CHECK_ERROR(render_image(&r, &c, 30000, 0, &p, &err), err, "cannot draw with 30000 pixels");
    CHECK_ERROR(render_image(&r, &c, 0, 0, &p, &err), err, "or 0 dpi");
    char *svg = render_svg(&r, &c, &err);
    double width = 0, height = 0;
    CHECK(svg && sscanf(strstr(svg, "width="), "width=\"%lfpt\" height=\"%lfpt", &width, &height) == 2);
    CHECK(fabs(width - 39.9) < 2 && fabs(height - 19.9) < 2);
    free(svg);
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ,
                STANDALONE "\\tikz{\\fill[red](0,0) rectangle(4,2);\\fill[blue](2,0) rectangle(4,1);}"
                           "\\end{document}");
    p = draw(&r, &c, 200, 0);
    CHECK(is_colour(&p, 50, 50, 255, 0, 0) && is_colour(&p, 150, 75, 0, 0, 255) && is_colour(&p, 150, 25, 255, 0, 0));
    char *png = format_string("%s/p.png", samples_folder);
    Image again;
    CHECK_OK(image_save_png(&p, png, &err), err);
    CHECK_OK(image_load(&again, png, &err), err);
    CHECK(again.width == p.width && !memcmp(again.rgb, p.rgb, 3 * (size_t)p.width * p.height));
    image_free(&again);
    image_free(&p);
    free(png);
    compiled_free(&c);
    c = compile(&r, RENDER_FORMULA, "\\frac{a}{b}");
    p = draw(&r, &c, 64, 0);
    CHECK(c.clean && p.height >= 62 && p.height <= 64 && p.width < p.height && p.width > 10);
    image_free(&p);
    c.pdf_bytes /= 2;
    c.pdf[c.pdf_bytes / 2] ^= 1;
    CHECK(render_image(&r, &c, 64, 0, &p, &err) != 0 || p.rgb);  // half a file: drawn or refused
    image_free(&p);
    c.pdf_bytes = 9;
    CHECK_ERROR(render_image(&r, &c, 64, 0, &p, &err), err, "pdftocairo cannot draw the page");
    CHECK(!strchr(err.text, '?'));  // its first line alone
    compiled_free(&c);
    CHECK_ERROR(render_image(&r, &c, 64, 0, &p, &err), err, "there is nothing to draw");
    renderer_close(&r);
}

/* Lines, messages, and the PDF that errors leave. */
static void test_errors(void) {
    Renderer r = open_renderer(1 << TEX_PDFLATEX, -1, &test_limits);
    Compiled c = compile(&r, RENDER_TIKZ, STANDALONE "x\n\\foo\n\\foobar\n\\end{document}");
    CHECK(!c.clean && c.pdf && c.log.count == 2 && c.log.errors[0].line == 4 && c.log.errors[1].line == 5);
    CHECK(!strcmp(c.problem, "pdflatex: line 4: Undefined control sequence."));
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ,
                "\\documentclass{article}\n\\usepackage{nosuchthing}\n\\begin{document}x\\end{document}");
    CHECK(!c.pdf && strstr(c.problem, "pdflatex: the package nosuchthing is not installed (nosuchthing.sty)"));
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ, "\\documentclass{article}\n\\begin{document}\n\\end{document}");
    CHECK(!c.pdf && !c.clean && !strcmp(c.problem, "pdflatex: the document has no page"));
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ, "\\documentclass{article}\n\\begin{document}\n\\csname @@end\\endcsname");
    CHECK(!c.pdf && !c.clean && c.log.count == 1);
    compiled_free(&c);
    renderer_close(&r);
}

/* References are settled: the second run knows the label that the first has written. */
static void test_references(void) {
    Renderer r = open_renderer(1 << TEX_PDFLATEX, -1, &test_limits);
    Compiled c = compile(&r, RENDER_TIKZ,
                         "\\documentclass{article}\\begin{document}\\makeatletter\\@ifundefined{r@a}{x}"
                         "{\\rule{10pt}{90pt}}\\label{a}\\end{document}");
    Image p = draw(&r, &c, 0, 72);
    CHECK(c.clean && p.height >= 88);
    image_free(&p);
    compiled_free(&c);
    renderer_close(&r);
}

/* The rule of DeTikZify: the next engine compiles what the first cannot; else the furthest first error is kept. */
static void test_rescue(void) {
    Renderer r = open_renderer(0, -1, &test_limits);
    if (!r.tex.engines[TEX_LUALATEX]) {
        printf("not tested here: the rescue by another engine (no lualatex)\n");
        renderer_close(&r);
        return;
    }
    Compiled c = compile(&r, RENDER_TIKZ,
                         "\\documentclass{article}\\begin{document}\n\\ifx\\directlua\\undefined\n\\foo\n"
                         "\\fi x\\end{document}");
    CHECK(c.clean && c.engine == TEX_LUALATEX && c.pdf);
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ,
                "\\documentclass{article}\\begin{document}\n\\ifx\\directlua\\undefined\n\\foo\n"
                "\\fi\n\\foobar x\\end{document}");
    CHECK(!c.clean && c.engine == TEX_LUALATEX && c.pdf && c.log.errors[0].line == 5);
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ, "\\documentclass{article}\\begin{document}\n\\foo x\\end{document}");
    CHECK(!c.clean && c.engine == TEX_PDFLATEX && c.pdf);  // all alike: the first
    compiled_free(&c);
    const SandboxLimits short_limits = {2, 100, (size_t)1 << 30, 64 << 20, 128 << 20, 500, 64};
    Renderer hasty = open_renderer(0, -1, &short_limits);
    c = compile(&hasty, RENDER_TIKZ,
                "\\documentclass{article}\\begin{document}\n\\ifx\\directlua\\undefined\n\\foo\n\\else\\def\\x{\\x}\\x\n\\fi y"
                "\\end{document}");
    CHECK(!c.clean && c.engine == TEX_PDFLATEX && c.pdf && c.stopped);  // a limit ended the next: perhaps it was only busy
    compiled_free(&c);
    renderer_close(&hasty);
    if (r.tex.engines[TEX_XELATEX]) {
        Renderer x = open_renderer(1 << TEX_XELATEX, -1, &test_limits);
        c = compile(&x, RENDER_TIKZ, STANDALONE "\\tikz\\fill[red](0,0) rectangle(4,2);\\end{document}");
        CHECK(c.clean && c.engine == TEX_XELATEX);
        Image p = draw(&x, &c, 100, 0);
        CHECK(is_colour(&p, 50, 20, 255, 0, 0));
        image_free(&p);
        compiled_free(&c);
        renderer_close(&x);
    } else {
        printf("not tested here: xelatex (not installed)\n");
    }
    renderer_close(&r);
}

/* ---- formats ---- */

#define BODY "\\begin{document}\n\\tikz\\draw[thick,->](0,0)--(2,1);\n\\end{document}"

/* The path of the only format in the cache, and of a file in it. */
static char *format_file(const char *name) {
    char *path = NULL;
    DIR *folder = opendir(cache);
    for (struct dirent *e; folder && (e = readdir(folder));)
        if (e->d_name[0] != '.') {
            free(path);
            path = format_string("%s/%s/%s", cache, e->d_name, name);
        }
    if (folder) closedir(folder);
    return path;
}

static uint64_t drawn(Renderer *r, const char *program) {
    Compiled c = compile(r, RENDER_TIKZ, program);
    check(c.clean, __FILE__, __LINE__, "compiles without errors", c.problem ? c.problem : "");
    Image p = draw(r, &c, 100, 0);
    const uint64_t hash = hash_bytes(HASH_BEGIN, p.rgb, 3 * (size_t)p.width * p.height);
    image_free(&p);
    compiled_free(&c);
    return hash;
}

static int formats_ready(const Renderer *r) {
    int n = 0;
    for (int i = 0; i < TEX_FORMAT_SLOTS; i++) n += r->formats.slots[i].state == FORMAT_READY;
    return n;
}

static void damage(const char *path, off_t length, bool cut) {
    const int fd = open(path, O_RDWR);
    uint8_t byte = 0;
    if (cut && ftruncate(fd, length) != 0) die("cannot cut %s", path);
    if (!cut && (pread(fd, &byte, 1, length) != 1 || (byte ^= 8, pwrite(fd, &byte, 1, length) != 1)))
        die("cannot damage %s", path);
    close(fd);
}

static void test_formats(void) {
    const char *const program = "\\documentclass[tikz]{standalone}\n\\usetikzlibrary{calc}\n" BODY;
    Renderer r = open_renderer(1 << TEX_PDFLATEX, 0, &test_limits);
    const uint64_t expected = drawn(&r, program);
    char *none = format_file("a.fmt");
    CHECK(!none && formats_ready(&r) == 0);
    CHECK(drawn(&r, program) == expected && formats_ready(&r) == 1);  // the second time
    char *path = format_file("a.fmt");
    struct stat made, now;
    CHECK(path && stat(path, &made) == 0);
    CHECK(drawn(&r, program) == expected && stat(path, &now) == 0 && now.st_ino == made.st_ino);
    Compiled c = compile(&r, RENDER_TIKZ,
                         "\\documentclass[tikz]{standalone}\n\\usetikzlibrary{calc}\n\\begin{document}\nx\n"
                         "\\foo\\end{document}");
    CHECK(c.log.count == 1 && c.log.errors[0].line == 5 && c.pdf);  // the line is that of the program
    compiled_free(&c);
    damage(path, 1000, true);  // after it was verified: TeX notices it, and it is made again later
    CHECK(drawn(&r, program) == expected && !file_exists(path));
    CHECK(drawn(&r, program) == expected && stat(path, &now) == 0 && now.st_size == made.st_size);
    renderer_close(&r);
    size_t bytes;
    uint8_t *whole = read_bytes(path, &bytes);
    damage(path, made.st_size / 2, false);  // one bit: the checksum notices it
    r = open_renderer(1 << TEX_PDFLATEX, 0, &test_limits);
    CHECK(drawn(&r, program) == expected && formats_ready(&r) == 1);  // found on disk, so at once
    uint8_t *again = read_bytes(path, &bytes);
    CHECK(again[made.st_size / 2] == whole[made.st_size / 2]);  // and made again
    free(whole);
    free(again);
    char *folder = folder_of(path), *document = format_string("%s%s", TEX_EMPTY_PAGES, program);
    CHECK(tex_format_is_whole(folder, document, tex_preamble(document)));
    renderer_close(&r);
    r = open_renderer(1 << TEX_PDFLATEX, 1, &test_limits);
    c = compile(&r, RENDER_TIKZ, "\\documentclass{article}\n\\foo\n\\begin{document}x\\end{document}");
    CHECK(!c.clean && c.log.errors[0].line == 2 && formats_ready(&r) == 0);  // a preamble with an error has no format
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ,
                "\\documentclass{article}\n\\usepackage{filecontents}\\begin{filecontents*}{b.tex}\nx\n"
                "\\end{filecontents*}\n\\begin{document}\\input{b}\\end{document}");
    CHECK(c.clean && formats_ready(&r) == 0);  // nor one that writes files
    compiled_free(&c);
    r.tex.fingerprint++;  // another TeX: its formats have other names
    char *other = tex_format_path(&r.formats, tex_format_hash(&r.tex, document, tex_preamble(document)));
    CHECK(strncmp(folder, other, strlen(other)));
    free(other);
    renderer_close(&r);
    free(folder);
    free(document);
    free(path);
}

static bool asked_to_stop;

static bool stop_asked(void) { return asked_to_stop; }

/* A run that was cancelled or could not begin says nothing of its preamble: the format is made for a later document. */
static void test_interrupted_format(void) {
    Renderer r = open_renderer(1 << TEX_PDFLATEX, 1, &test_limits);
    const char *const preamble = "\\documentclass{article}\\usepackage{tikz}\n";
    const size_t n = strlen(preamble);
    r.tex.cancelled = stop_asked;
    asked_to_stop = true;
    char *path = tex_format_get(&r.formats, &r.tex, preamble, n);
    CHECK(!path && formats_ready(&r) == 0);
    asked_to_stop = false;
    setenv("TMPDIR", "/nowhere", 1);  // where no folder can be made for the run
    path = tex_format_get(&r.formats, &r.tex, preamble, n);
    CHECK(!path && formats_ready(&r) == 0);
    setenv("TMPDIR", samples_folder, 1);
    path = tex_format_get(&r.formats, &r.tex, preamble, n);
    CHECK(path && formats_ready(&r) == 1);
    free(path);
    renderer_close(&r);
}

static Renderer shared;

static void *draw_some(void *failures) {
    for (int i = 0; i < 3; i++) {
        char *program = format_string(STANDALONE "\\tikz\\fill[red](0,0) rectangle(%d,4);\\end{document}", i + 1);
        Compiled c = compile(&shared, RENDER_TIKZ, program);
        Image p = draw(&shared, &c, 100, 0);
        if (!c.clean || abs(p.width - 25 * (i + 1)) > 2) __atomic_add_fetch((int *)failures, 1, __ATOMIC_RELAXED);
        image_free(&p);
        compiled_free(&c);
        free(program);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[3];
    int failures = 0;
    shared = open_renderer(1 << TEX_PDFLATEX, 1, &test_limits);
    for (int i = 0; i < 3; i++) thread_start(&threads[i], draw_some, &failures);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    CHECK(failures == 0 && formats_ready(&shared) == 1);
    renderer_close(&shared);
}

/* ---- hostile documents ---- */

#define ARTICLE(body) "\\documentclass{article}\\usepackage{tikz}\\begin{document}" body "\\end{document}"

static const struct {
    const char *what, *program, *problem;  // the beginning of the sentence; "": it compiles, to no effect
} hostile[] = {
    {"a macro that calls itself", ARTICLE("\\def\\z{\\z}\\z"), "pdflatex took more than 1 s of processor time"},
    {"a loop", ARTICLE("\\loop\\iftrue\\repeat"), "pdflatex took more than 1 s of processor time"},
    {"a loop of pgf",
     ARTICLE("\\tikz\\foreach \\y in {1,...,9999} {\\foreach \\x in {1,...,9999} {\\pgfmathparse{sin(\\x)}}};"),
     "pdflatex took more than 1 s of processor time"},
    {"a macro that grows", ARTICLE("\\def\\z#1{\\z{#1#1}}\\z{aaaa}"), "pdflatex: line 1: TeX capacity exceeded"},
    {"deep recursion", ARTICLE("\\def\\z{\\z x}\\z"), "pdflatex"},
    {"an endless file",
     ARTICLE("\\newwrite\\w\\immediate\\openout\\w=big.txt \\def\\z{\\immediate\\write\\w{"
             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
             "aaaaa"
             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
             "aaaaa}\\z}"
             "\\z"),
     "pdflatex wrote a file of more than 4 MB"},
    {"an endless log",
     ARTICLE("\\def\\z{\\immediate\\write-1{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
             "aaa}\\z}"
             "\\z"),
     "pdflatex wrote a file of more than 4 MB"},
    {"endless pages", ARTICLE("\\def\\z{x\\newpage\\z}\\z"), "pdflatex"},
    {"/etc/passwd", ARTICLE("\\input{/etc/passwd}"), "pdflatex: LaTeX Error: File `/etc/passwd"},
    {"/dev/zero", ARTICLE("\\input{/dev/zero}"), "pdflatex: LaTeX Error: File `/dev/zero"},
    {"openin", ARTICLE("x\\newread\\r\\openin\\r=/etc/passwd \\ifeof\\r\\else\\ESCAPED\\fi"), ""},
    {"openin from above", ARTICLE("x\\newread\\r\\openin\\r=../canary/file \\ifeof\\r\\else\\ESCAPED\\fi"), ""},
    {"a pipe", ARTICLE("x\\newread\\r\\openin\\r=|ls \\ifeof\\r\\else\\ESCAPED\\fi"), ""},
    {"a shell", ARTICLE("x\\immediate\\write18{touch escaped; touch CANARY/new}\\IfFileExists{escaped}{\\ESCAPED}{}"),
     ""},
    {"another file", ARTICLE("\\newwrite\\w\\immediate\\openout\\w=CANARY/file x"), "pdflatex"},
    {"a file above", ARTICLE("\\newwrite\\w\\immediate\\openout\\w=../escaped x"), "pdflatex"},
    {"a file read by pdfTeX",
     ARTICLE("x\\edef\\x{\\pdffiledump offset 0 length 20{/etc/passwd}\\pdfmdfivesum file"
             "{/etc/passwd}}\\ifx\\x\\empty\\else\\ESCAPED\\fi"),
     ""},
};

static char *with_canary(const char *text, const char *canary) {
    return replace_all(xstrdup(text), "CANARY", canary);
}

/* The folder has one file, as it was made. */
static bool is_unchanged(const char *canary) {
    Error err;
    size_t size = 0;
    char *bytes = sandbox_read(canary, "file", 99, &size, &err);
    const bool same = bytes && !strcmp(bytes, "precious") && sandbox_folder_size(canary).files == 1;
    free(bytes);
    return same;
}

static void test_hostile(const char *canary) {
    SandboxLimits limits = {1, 60, (size_t)1 << 30, 4 << 20, 16 << 20, 100, 64};
    Renderer r = open_renderer(1 << TEX_PDFLATEX, 1, &test_limits);
    drawn(&r, ARTICLE("x"));  // makes the format, which takes longer than this second
    renderer_close(&r);
    r = open_renderer(1 << TEX_PDFLATEX, 1, &limits);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        char *program = with_canary(hostile[i].program, canary);
        Compiled c = compile(&r, RENDER_TIKZ, program);
        const char *problem = c.problem ? c.problem : "";
        const bool as_expected =
            hostile[i].problem[0] ? !strncmp(problem, hostile[i].problem, strlen(hostile[i].problem)) : c.clean;
        check(as_expected, __FILE__, __LINE__, hostile[i].what, problem);
        check(is_unchanged(canary), __FILE__, __LINE__, "nothing outside has changed", hostile[i].what);
        compiled_free(&c);
        free(program);
    }
    renderer_close(&r);
}

/* A small PDF file whose page takes for ever: forty forms that each draw the one before twice. */
static void test_slow_page(void) {
    static const char program[] =
        "\\documentclass[tikz]{standalone}\\begin{document}\\setbox0\\hbox{x}\\immediate\\pdfxform0 \\count1=0 "
        "\\loop\\setbox0\\hbox{\\rlap{\\pdfrefxform\\pdflastxform}\\pdfrefxform\\pdflastxform}\\immediate\\pdfxform0 "
        "\\advance\\count1 by1 \\ifnum\\count1<40 \\repeat\\tikz\\node{\\pdfrefxform\\pdflastxform};\\end{document}";
    SandboxLimits limits = test_limits;
    limits.cpu_seconds = 1;
    Renderer r = open_renderer(1 << TEX_PDFLATEX, -1, &limits);
    Compiled c = compile(&r, RENDER_TIKZ, program);
    Image p;
    Error err;
    CHECK(c.clean);
    CHECK_ERROR(render_image(&r, &c, 100, 0, &p, &err), err, "pdftocairo took more than 1 s of processor time");
    compiled_free(&c);
    renderer_close(&r);
}

/* Lua inside LuaTeX; it refuses much itself. */
static void test_hostile_lualatex(const char *canary) {
    SandboxLimits limits = test_limits;
    Renderer r = open_renderer(1 << TEX_LUALATEX, -1, &limits);
    char *program = with_canary(
        ARTICLE("x\\directlua{"
                "local n = 0 "
                "local function try(f, ...) local ok, x = pcall(f, ...) if ok and x then tex.error('ESCAPED', {}) "
                "end end "
                "try(io.open, '/etc/passwd') try(io.open, 'CANARY/new', 'w') try(io.open, '../escaped', 'w') "
                "try(function() return os.execute('touch escaped') == 0 end) try(io.popen, 'ls') "
                "try(function() return socket.tcp():connect('127.0.0.1', 1) end) "
                "try(function() return lfs.mkdir('../escaped') end) try(function() return lfs.link('/etc/passwd', "
                "'l', true)"
                " and io.open('l') end) }"),
        canary);
    Compiled c = compile(&r, RENDER_TIKZ, program);
    check(c.clean, __FILE__, __LINE__, "Lua reaches nothing outside", c.problem ? c.problem : "");
    CHECK(is_unchanged(canary));
    compiled_free(&c);
    free(program);
    renderer_close(&r);
    limits.cpu_seconds = 3;
    r = open_renderer(1 << TEX_LUALATEX, -1, &limits);
    c = compile(&r, RENDER_TIKZ, ARTICLE("\\directlua{while true do end}"));
    check(c.problem && !strcmp(c.problem, "lualatex took more than 3 s of processor time"), __FILE__, __LINE__,
          "a loop", c.problem ? c.problem : "");
    compiled_free(&c);
    renderer_close(&r);
    limits = test_limits;
    limits.memory_bytes = 512 << 20;
    r = open_renderer(1 << TEX_LUALATEX, -1, &limits);
    c = compile(&r, RENDER_TIKZ,
                ARTICLE("\\directlua{local s = string.rep('a', 1000) while true do s = s .. s end}"));
    check(c.problem && !strcmp(c.problem, "lualatex needed more than 512 MB of memory"), __FILE__, __LINE__, "memory",
          c.problem ? c.problem : "");
    compiled_free(&c);
    renderer_close(&r);
}

/* Lua without TeX's rules, so that only the box is left: texlua is LuaTeX as an interpreter. */
static void test_hostile_lua(const char *canary) {
    static const char script[] =
        "local function try(what, f, ...) local ok, x = pcall(f, ...) if ok and x then print('ESCAPED', what) end "
        "end "
        "try('read', io.open, '/etc/passwd') try('write', io.open, 'CANARY/new', 'w') "
        "try('append', io.open, 'CANARY/file', 'a') try('remove', os.remove, 'CANARY/file') "
        "try('rename', os.rename, 'CANARY/file', 'CANARY/b') "
        "try('shell', function() return os.execute('true') == 0 end) "
        "try('popen', function() local p = io.popen('echo x') return p and p:read('*a') == 'x\\n' end) "
        "try('socket', function() return require('socket').tcp():connect('127.0.0.1', 1) end) "
        "try('mkdir', lfs.mkdir, 'd') try('touch', lfs.touch, 'CANARY/file', 1, 1) "
        "try('link', lfs.link, '/etc/passwd', 'l', true) print('ran')";
    char *texlua = sandbox_find("texlua");
    for (int boxed = 1; texlua && boxed >= 0; boxed--) {
        Error err;
        char *program = with_canary(script, canary), *folder = sandbox_folder_make(NULL, &err);
        SandboxResult r = {0};
        const char *arguments[] = {texlua, "a.lua", NULL};
        const SandboxJob job = {
            .program = texlua, .arguments = arguments, .folder = folder, .limits = test_limits, .unsafe = !boxed};
        CHECK_OK(sandbox_write(folder, "a.lua", program, strlen(program), &err), err);
        CHECK_OK(sandbox_run(&job, &r, &err), err);
        const bool ran = r.output && strstr(r.output, "ran") != NULL;
        check(ran && (strstr(r.output, "ESCAPED") ? !boxed : boxed), __FILE__, __LINE__,
              boxed ? "boxed" : "not boxed", r.output);
        if (boxed) CHECK(is_unchanged(canary));
        sandbox_result_free(&r);
        sandbox_folder_remove(folder);
        free(program);
    }
    free(texlua);
}

/* Without the box a document reads what its user may; limits remain. And whoever asks to stop is heard. */
static bool always(void) { return true; }

static void test_unsafe(const char *canary) {
    Error err;
    Renderer r;
    SandboxLimits limits = test_limits;
    limits.cpu_seconds = 1;
    char *program =
        with_canary("\\documentclass{article}\\begin{document}\\input{CANARY/file}\\end{document}", canary);
    RenderOptions o = {.engines = 1 << TEX_PDFLATEX, .limits = limits, .format_after = -1, .unsafe = true};
    CHECK_OK(renderer_open(&r, &o, &err), err);
    Compiled c = compile(&r, RENDER_TIKZ, program);
    CHECK(c.clean);
    compiled_free(&c);
    c = compile(&r, RENDER_TIKZ, ARTICLE("\\def\\z{\\z}\\z"));
    CHECK(c.problem && strstr(c.problem, "took more than 1 s of processor time"));
    compiled_free(&c);
    renderer_close(&r);
    o = (RenderOptions){.engines = 1 << TEX_PDFLATEX, .format_after = -1, .cancelled = always};
    CHECK_OK(renderer_open(&r, &o, &err), err);
    CHECK_ERROR(render_compile(&r, RENDER_TIKZ, program, strlen(program), &c, &err), err,
                "rendering was interrupted");
    renderer_close(&r);
    free(program);
}

static void test_full_disk(void) {
    Error err;
    Compiled c;
    char *small = format_string("%s/small", samples_folder);
    if (mkdir(small, 0700) != 0 || mount("tmpfs", small, "tmpfs", 0, "size=68k") != 0) {
        printf("not tested here: a full disk (no right to mount a small file system)\n");
        free(small);
        return;
    }
    setenv("TMPDIR", small, 1);
    Renderer r = open_renderer(1 << TEX_PDFLATEX, -1, &test_limits);
    const char *program =
        ARTICLE("\\def\\z#1{\\ifnum#1<9000 \\immediate\\write-1{aaaaaaaaaaaaaaaaaaaa}\\expandafter\\z"
                "\\expandafter{\\number\\numexpr#1+1}\\fi}\\z{0}x");
    CHECK_ERROR(render_compile(&r, RENDER_TIKZ, program, strlen(program), &c, &err), err, "is full; make room");
    setenv("TMPDIR", samples_folder, 1);
    CHECK(umount(small) == 0);
    renderer_close(&r);
    free(small);
}

static void test_missing_programs(void) {
    Renderer r;
    Error err;
    char *path = xstrdup(getenv("PATH"));
    setenv("PATH", "/nowhere", 1);
    CHECK_ERROR(renderer_open(&r, &(RenderOptions){0}, &err), err, "no TeX engine is installed");
    CHECK(strstr(err.text, "texlive-latex-base"));
    char *only = format_string("%s/bin", samples_folder), *link = format_string("%s/pdflatex", only);
    CHECK(mkdir(only, 0700) == 0 && symlink("/bin/true", link) == 0);
    setenv("PATH", only, 1);
    CHECK_ERROR(renderer_open(&r, &(RenderOptions){0}, &err), err, "poppler-utils");
    setenv("PATH", path, 1);
    free(path);
    free(only);
    free(link);
}

/* Runs a test; VERBOSE=1 says how long it took. */
#define TIMED(test)                                                                           \
    do {                                                                                      \
        const double begin = seconds_now();                                                   \
        test;                                                                                 \
        if (getenv("VERBOSE")) fprintf(stderr, "%s: %.1f s\n", #test, seconds_now() - begin); \
    } while (0)

static bool has(const char *program) {
    char *path = sandbox_find(program);
    const bool found = path != NULL;
    free(path);
    return found;
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    samples_begin();
    setenv("TMPDIR", samples_folder, 1);
    setenv("XDG_CACHE_HOME", samples_folder, 1);  // not the user's own
    char *folder = format_string("%s/cache", samples_folder), *canary = format_string("%s/canary", samples_folder),
         *file = format_string("%s/file", canary);
    cache = folder;
    test_log();
    test_documents();
    test_svg_crop();
    test_missing_programs();
    if (has("pdflatex") && has("pdftocairo")) {
        if (mkdir(canary, 0700) != 0) die("cannot make %s", canary);
        write_bytes(file, "precious", 8);
        TIMED(test_drawing());
        TIMED(test_errors());
        TIMED(test_references());
        TIMED(test_rescue());
        TIMED(test_formats());
        TIMED(test_interrupted_format());
        TIMED(test_threads());
        TIMED(test_hostile(canary));
        TIMED(test_slow_page());
        if (has("lualatex")) TIMED(test_hostile_lualatex(canary));
        write_bytes(file, "precious", 8);
        TIMED(test_hostile_lua(canary));
        write_bytes(file, "precious", 8);
        TIMED(test_unsafe(canary));
        TIMED(test_full_disk());
    } else {
        printf("not tested here: rendering (no pdflatex or pdftocairo; scripts/deps.sh tex)\n");
    }
    free(folder);
    free(canary);
    free(file);
    samples_end();
    return checks_report();
}
