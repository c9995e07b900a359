/* Tests of lib/tex_tidy.h: programs that were cut, preambles, layout; as texts, and where TeX is installed, as drawings.
 *
 *     test_tidy [all]     all: all drawings, and each package and library beside a figure that uses none (minutes) */
#include "samples.h"
#include "tidy_samples.h"

#include "../lib/render.h"
#include "../lib/tex_tidy.h"

typedef char *(*Tidy)(const char *program, size_t n, size_t *size);

static char *close_figure(const char *p, size_t n, size_t *size) { return tex_close(RENDER_TIKZ, p, n, size); }
static char *close_formula(const char *p, size_t n, size_t *size) { return tex_close(RENDER_FORMULA, p, n, size); }

static void check_text(Tidy tidy, const char *from, const char *to, int line) {
    size_t n;
    char *exact = xmalloc(strlen(from)), *text;
    memcpy(exact, from, strlen(from));
    text = tidy(exact, strlen(from), &n);
    check(n == strlen(to) && !strcmp(text, to), __FILE__, line, from, text);
    free(text);
    free(exact);
}

#define CLOSED(from, to) check_text(close_figure, from, to, __LINE__)
#define FORMULA(from, to) check_text(close_formula, from, to, __LINE__)
#define LAID(from, to) check_text(tex_tidy_layout, from, to, __LINE__)
#define SAME_LAYOUT(from) check_text(tex_tidy_layout, from, from, __LINE__)
#define PREAMBLE(from, to) check_text(tex_tidy_preamble, from, to, __LINE__)

#define PICTURE "\\begin{tikzpicture}"
#define ENDED "\\end{tikzpicture}\n"

static void test_close(void) {
    CLOSED(PICTURE "\n\\draw (0,0);\n\\draw (1,", PICTURE "\n\\draw (0,0);\n" ENDED);
    CLOSED(PICTURE "\n\\draw (0,0); \\node {a;b", PICTURE "\n\\draw (0,0);\n" ENDED);
    CLOSED(PICTURE "[red]\n\\begin{scope}[x={(1,0)}]\n\\fill (0,0) circle (1);\n\\end{sc",
           PICTURE "[red]\n\\begin{scope}[x={(1,0)}]\n\\fill (0,0) circle (1);\n\\end{scope}\n" ENDED);
    CLOSED(PICTURE "\n\\foreach \\x in {1,2} {\n\\draw (\\x,0);\\draw[r",
           PICTURE "\n\\foreach \\x in {1,2} {\n\\draw (\\x,0);\n}\n" ENDED);
    CLOSED(PICTURE "\\foreach \\x in {1,2} \\node at (\\x,0) {a; b}; \\draw",
           PICTURE "\\foreach \\x in {1,2} \\node at (\\x,0) {a; b};\n" ENDED);
    CLOSED(PICTURE "\n\\begin{axis}[\nxmin=0,\nti", PICTURE "\n" ENDED);
    CLOSED("\\documentclass{standalone}\n\\begin{document}\n" PICTURE "\n\\draw (0,0) -- (1,1);\n\\draw",
           "\\documentclass{standalone}\n\\begin{document}\n" PICTURE "\n\\draw (0,0) -- (1,1);\n" ENDED
           "\\end{document}\n");
    CLOSED(PICTURE "\n\\draw (0,0); % ; \\begin{scope}\n% half",
           PICTURE "\n\\draw (0,0); % ; \\begin{scope}\n" ENDED);
    CLOSED(PICTURE "\n\\node {\\verb|}{;|};\n\\node {\\verb|;", PICTURE "\n\\node {\\verb|}{;|};\n" ENDED);
    CLOSED(PICTURE "\n\\def\\a{1}\n\\tikzset{b/.style={", PICTURE "\n\\def\\a{1}\n" ENDED);
    CLOSED(PICTURE "\n\\tikzstyle{a}=[red]\n\\node {x}\nchild {node {y}}\nchild",
           PICTURE "\n\\tikzstyle{a}=[red]\n" ENDED);
    CLOSED("\\begin{document}\n\\begin{verbatim}\n\\begin{x}{\n\\end{verbatim}\n\\begin{verbatim}\n}",
           "\\begin{document}\n\\begin{verbatim}\n\\begin{x}{\n\\end{verbatim}\n\\end{document}\n");
    CLOSED("\\begin{document}\n\\tikz \\draw (0,0)\n-- (1,1); x\n\\tikz \\dr",
           "\\begin{document}\n\\tikz \\draw (0,0)\n-- (1,1); x\n\\end{document}\n");
    CLOSED("\\begin{tikzcd}\nA \\arrow[r] & B \\\\\nC \\arrow[",
           "\\begin{tikzcd}\nA \\arrow[r] & B \\\\\n\\end{tikzcd}\n");
    CLOSED("\\documentclass{standalone}\n\\usepackage{ti", "\\documentclass{standalone}\n");
    CLOSED(PICTURE "\n\\draw ($(a)!.5!(b)$) -- (1,1);\n\\draw ($(a",
           PICTURE "\n\\draw ($(a)!.5!(b)$) -- (1,1);\n" ENDED);
    CLOSED(PICTURE "\n\\draw (0,0);\n\\end{tikzpicture", PICTURE "\n\\draw (0,0);\n" ENDED);
    CLOSED(PICTURE "\\draw;\\end{tikzpicture}", PICTURE "\\draw;\\end{tikzpicture}");
    CLOSED("", "");
    CLOSED("\\", "");
    CLOSED("}}]] \\end{x} \\draw", "}}]] \\end{x}\n");
    for (size_t i = 0; i < sizeof tidy_documents / sizeof *tidy_documents; i++)
        CLOSED(tidy_documents[i], tidy_documents[i]);  // what is complete stays
    FORMULA("a + \\frac{1}{2", "a +");
    FORMULA("\\left( a + b", "\\left( a + b\\right.");
    FORMULA("\\begin{aligned} a &= b \\\\ c &= \\alp", "\\begin{aligned} a &= b \\\\ c &=\\end{aligned}");
    FORMULA("$x^2 + y^", "$x^2 + y$");
    FORMULA("x [ y , z ) + \\sqrt [ 3", "x [ y , z ) +");
    FORMULA("\\frac{a}{b}", "\\frac{a}{b}");
}

/* The result of closing any beginning of a program is balanced: closing it again changes nothing. */
static void test_close_everywhere(void) {
    int wrong = 0;
    for (size_t i = 0; i < sizeof tidy_documents / sizeof *tidy_documents; i++)
        for (size_t n = 0; n <= strlen(tidy_documents[i]); n++) {
            size_t once, twice;
            char *a = close_figure(tidy_documents[i], n, &once), *b = close_figure(a, once, &twice);
            wrong += once != twice || memcmp(a, b, once) != 0;
            free(a);
            free(b);
        }
    CHECK(wrong == 0);
}

static void test_layout(void) {
    LAID(
        "\\documentclass[tikz]{standalone}\\usepackage{pgfplots} \\begin{document}" PICTURE
        "[scale=2,\n red]\\draw (0,0)--(1,1);\\foreach \\x in {1,2}{\\draw[red,\nthick] (\\x,0) node {a;b};\\fill "
        "(1,1); % c  \n}   \n\n\n\n\\node {x};\\begin{scope}\\draw (0,0)\n--(1,2);\\end{scope}\\end{tikzpicture}\\end"
        "{document}",
        "\\documentclass[tikz]{standalone}\n\\usepackage{pgfplots}\n\\begin{document}\n" PICTURE
        "[scale=2,\n  red]\n  \\draw (0,0)--(1,1);\n  \\foreach \\x in {1,2}{\n    \\draw[red,\n      thick] (\\x,0) "
        "node {a;b};\n    \\fill (1,1); % c  \n  }\n\n  \\node {x};\n  \\begin{scope}\n    \\draw (0,0)\n      "
        "--(1,2);\n"
        "  \\end{scope}\n\\end{tikzpicture}\n\\end{document}\n");
    LAID(PICTURE "[\nred,\nthick\n]\n\\draw (0,0) {\n  kept   \n kept};\n\\end{tikzpicture}   ",
         PICTURE "[\n  red,\n  thick\n]\n  \\draw (0,0) {\n  kept   \n kept};\n\\end{tikzpicture}\n");
    LAID("\\begin{verbatim}\n  a;  b \n\\end{verbatim}  \n \\verb|a;  b|  \n",
         "\\begin{verbatim}\n  a;  b \n\\end{verbatim}\n"
         "\\verb|a;  b|\n");
    LAID("% a \r\n" PICTURE "\r\n\t\\draw;\r\n\\end{tikzpicture}",
         "% a \r\n" PICTURE "\n  \\draw;\n\\end{tikzpicture}\n");
    SAME_LAYOUT(PICTURE "\\draw;\\catcode`\\;=13 \\end{tikzpicture}");
    SAME_LAYOUT(PICTURE "\\draw;\\draw;{");
    SAME_LAYOUT(PICTURE "\r\\draw;\\draw;\\end{tikzpicture}");
    SAME_LAYOUT("");
    SAME_LAYOUT("\\draw;  \\");
    LAID("a   ", "a\n");
}

static void test_preamble(void) {
#define HEAD "\\documentclass[tikz]{standalone}\n"
#define BODY "\\begin{document}\n" PICTURE "\\draw (0,0) -- (1,1);\\end{tikzpicture}\n\\end{document}\n"
    PREAMBLE(
        HEAD
        "\\usepackage{amsmath, amssymb}\n\\usepackage{pgfplots} % plots\n\\pgfplotsset{compat=1.18, a/.style={b}}\n"
        "\\usetikzlibrary{calc,fit, patterns,unknown}\n\\usetikzlibrary{shapes.geometric}\n" BODY,
        HEAD "\\usetikzlibrary{unknown}\n" BODY);
    PREAMBLE(HEAD "\\usepackage{amsmath}\\usepackage{tikz-cd}\\usetikzlibrary{decorations.pathmorphing,3d}" BODY,
             HEAD BODY);
    /* what is used stays */
    PREAMBLE(
        HEAD
        "\\usetikzlibrary{calc,fit,matrix}\n\\begin{document}\n\\tikz \\draw ($(a)!.5!(b)$) -- (1,1) node[fit=(a)]"
        " {};\\end{document}",
        HEAD "\\usetikzlibrary{calc, fit}\n\\begin{document}\n\\tikz \\draw ($(a)!.5!(b)$) -- (1,1) node[fit=(a)]"
             " {};\\end{document}");
    static const char *const kept[] = {
        HEAD
        "\\usepackage{amsmath}\n\\begin{document}\\tikz \\node {$\\begin{pmatrix}a\\end{pmatrix}$};\\end{document}",
        HEAD "\\usepackage{amssymb}\n\\begin{document}\\tikz \\node {$\\mathbb{R}$};\\end{document}",
        HEAD "\\usepackage{pgfplots}\n\\pgfplotsset{compat=1.18}\n\\begin{document}" PICTURE
             "\\begin{axis}\\addplot{x};\\end{axis}\\end{tikzpicture}\\end{document}",
        HEAD "\\usetikzlibrary{arrows.meta}\n\\begin{document}\\tikz \\draw[-Stealth] (0,0)--(1,1);\\end{document}",
        HEAD "\\usetikzlibrary{positioning}\n\\begin{document}\\tikz \\node[above left=1cm] {};\\end{document}",
        HEAD "\\usetikzlibrary{quotes}\n\\begin{document}\\tikz \\draw (0,0) edge[\"a\"] (1,1);\\end{document}",
        HEAD "\\usetikzlibrary{bending,babel}\n" BODY,
        HEAD "\\usepackage[dvipsnames]{xcolor}\n\\usepackage{lmodern}\n" BODY,
        "\\documentclass{standalone}\n\\usepackage{pgfplots}\n" BODY,  // it loads TikZ
        "\\documentclass{standalone}\n\\usepackage{pgfplots}\n\\usepackage{tikz}\n" BODY,
        HEAD "\\usepackage{tikz-cd}\n\\begin{document}" PICTURE
             "\\matrix[matrix of nodes]{a\\\\};\\end{tikzpicture}\\end{document}",
        HEAD "\\newcommand{\\load}{\\usetikzlibrary{calc}}\n" BODY,
        HEAD "\\usepackage{amssymb}\n\\begin{document}\\tikz \\node {$\\of unknown\\origin$};\\end{document}",
        PICTURE "\\usetikzlibrary{calc}\\end{tikzpicture}",
    };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) PREAMBLE(kept[i], kept[i]);
    PREAMBLE(HEAD
             "\\usepackage{amssymb}\n\\usetikzlibrary{fit}\n% \\usetikzlibrary{fit} and fit\n\\newcommand\\own{1}\n"
             "\\begin{document}\\tikz \\foreach \\t/\\s in {1/2} \\node {\\own\\t\\s};\\end{document}",
             HEAD "% \\usetikzlibrary{fit} and fit\n\\newcommand\\own{1}\n"
                  "\\begin{document}\\tikz \\foreach \\t/\\s in {1/2} \\node {\\own\\t\\s};\\end{document}");
}

/* ---- drawings ---- */

static Renderer renderer;

/* The drawing of a program; no pixels where TeX reports an error. */
static Image drawn(const char *program, size_t n, char **problem) {
    Compiled c;
    Error err = {""};
    Image image = {0};
    *problem = NULL;
    if (render_compile(&renderer, RENDER_TIKZ, program, n, &c, &err)) die("%s", err.text);
    if (c.clean && render_image(&renderer, &c, 0, 100, &image, &err)) die("%s", err.text);
    if (!c.clean) *problem = xstrdup(c.problem);
    compiled_free(&c);
    return image;
}

static bool same_image(const Image *a, const Image *b) {
    return a->rgb && b->rgb && a->width == b->width && a->height == b->height &&
           !memcmp(a->rgb, b->rgb, 3 * (size_t)a->width * a->height);
}

/* Draws a document before and after both tidyings, and what is left when it is cut in its middle. */
static void check_drawing(const char *program) {
    size_t n, m, k;
    char *problem[2];
    char *less = tex_tidy_preamble(program, strlen(program), &n), *laid = tex_tidy_layout(less, n, &m),
         *closed = tex_close(RENDER_TIKZ, program, strlen(program) - strlen(program) / 5, &k);
    Image before = drawn(program, strlen(program), &problem[0]), after = drawn(laid, m, &problem[1]);
    Compiled part;
    Error err = {""};
    if (render_compile(&renderer, RENDER_TIKZ, closed, k, &part, &err)) die("%s", err.text);
    check(before.rgb != NULL, __FILE__, __LINE__, program, problem[0] ? problem[0] : "");
    check(same_image(&before, &after), __FILE__, __LINE__, laid, problem[1] ? problem[1] : "it looks different");
    check(part.clean, __FILE__, __LINE__, closed, part.problem ? part.problem : "");
    for (int i = 0; i < 2; i++) free(problem[i]);
    image_free(&before);
    image_free(&after);
    compiled_free(&part);
    free(less);
    free(laid);
    free(closed);
}

/* A package or library that the tables may remove must not change a figure that uses none. */
static void test_side_effects(void) {
    static const char *const commands[] = {"\\usepackage{%s}", "\\usetikzlibrary{%s}",
                                           "\\usepackage{pgfplots}\\usepgfplotslibrary{%s}"};
    const TexProvider *tables[] = {tex_packages, tex_libraries, tex_plot_libraries};
    const size_t sizes[] = {sizeof tex_packages / sizeof *tex_packages, sizeof tex_libraries / sizeof *tex_libraries,
                            sizeof tex_plot_libraries / sizeof *tex_plot_libraries};
    char *problem;
    Image plain = drawn(tidy_plain, strlen(tidy_plain), &problem);
    CHECK(plain.rgb != NULL);
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < sizes[k]; i++) {
            char *load = format_string("%.*s%s}", (int)(strchr(commands[k], '%') - commands[k]), commands[k],
                                       tables[k][i].name);
            char *program = format_string("\\documentclass[tikz]{standalone}%s%s", load, strchr(tidy_plain, '\n'));
            Image image = drawn(program, strlen(program), &problem);
            check(same_image(&plain, &image), __FILE__, __LINE__, load, problem ? problem : "it looks different");
            free(problem);
            image_free(&image);
            free(program);
            free(load);
        }
    image_free(&plain);
}

int main(int argc, char **argv) {
    const bool all = argc > 1 && !strcmp(argv[1], "all");
    Error err;
    program_begin(argv);
    samples_begin();
    setenv("TMPDIR", samples_folder, 1);
    setenv("XDG_CACHE_HOME", samples_folder, 1);
    test_close();
    test_close_everywhere();
    test_layout();
    test_preamble();
    const RenderOptions options = {.engines = 1 << TEX_PDFLATEX};
    if (renderer_open(&renderer, &options, &err) == 0) {
        const size_t count = sizeof tidy_documents / sizeof *tidy_documents;
        for (size_t i = 0; i < (all ? count : 5); i++) check_drawing(tidy_documents[i]);
        if (all) test_side_effects();
        renderer_close(&renderer);
    } else {
        printf("not tested here: drawings of tidied programs (%s)\n", err.text);
    }
    samples_end();
    return checks_report();
}
