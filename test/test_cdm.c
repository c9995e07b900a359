/* Tests of metrics/cdm.h and lib/assignment.h: the boxes of every kind of token, spellings of one formula, mistakes in it.
 *
 *   test_cdm                                      the tests
 *   test_cdm --assign N M FILE                    the columns of the best assignment of float64 costs [N, M]
 *   test_cdm --colour FORMULA                     the coloured formula
 *   test_cdm --compare REF HYP...                 F1 and boxes of each pair
 *   test_cdm --layout FILE                        of each formula, a line each: pixels moved by colouring, ink, black */
#include "samples.h"

#include "../metrics/cdm.h"

static Renderer renderer;

static void draw(CdmDrawing *d, const char *formula) {
    Error err;
    die_if(cdm_draw(d, &renderer, formula, strlen(formula), &err), &err);
}

static CdmScore compare(const char *reference, const char *hypothesis) {
    CdmDrawing a, b;
    draw(&a, reference);
    draw(&b, hypothesis);
    const CdmScore s = cdm_score(&a, &b);
    cdm_drawing_free(&a);
    cdm_drawing_free(&b);
    return s;
}

static void open_renderer(void) {
    Error err;
    die_if(renderer_open(&renderer, &(RenderOptions){0}, &err), &err);
}

static int compare_pairs(int count, char **formulas) {
    open_renderer();
    for (int i = 0; i + 1 < count; i += 2) {
        CdmDrawing a, b;
        draw(&a, formulas[i]);
        draw(&b, formulas[i + 1]);
        const CdmScore s = cdm_score(&a, &b);
        printf("%.4f %d %d %d %s%s\n", s.f1, s.reference, s.hypothesis, s.matched, a.problem ? a.problem : "",
               b.problem ? b.problem : "");
        for (int k = 0; k < a.count; k++) {
            const CdmWord w = a.colouring.tokens[a.boxes[k].token].word;
            printf("  %.*s: %g %g %g %g\n", w.n, w.at, a.boxes[k].left, a.boxes[k].top, a.boxes[k].right,
                   a.boxes[k].bottom);
        }
        cdm_drawing_free(&a);
        cdm_drawing_free(&b);
    }
    renderer_close(&renderer);
    return 0;
}

/* Draws a formula without colours, in the same resolution. Returns whether there is a drawing. */
static bool draw_plain(const char *formula, Image *image) {
    Compiled c;
    Error err;
    die_if(render_compile_with(&renderer, 1 << TEX_PDFLATEX, RENDER_FORMULA, formula, strlen(formula), &c, &err),
           &err);
    const bool drawn = c.pdf != NULL;
    if (drawn) die_if(render_hard(&renderer, &c, CDM_DPI, image, &err), &err);
    compiled_free(&c);
    return drawn;
}

/* What colouring does to a drawing: pixels that are white in one and not in the other, ink, ink that belongs to no token;
 * -1: one of them is not drawn; -2: of another size. */
typedef struct {
    int moved, ink, black;
} Layout;

static Layout layout_of(const char *formula) {
    CdmColouring c;
    Image plain, coloured;
    Layout l = {-1, 0, 0};
    cdm_colour(&c, formula, strlen(formula));
    const bool a = draw_plain(formula, &plain), b = draw_plain(c.out, &coloured);
    if (a == b) l.moved = 0;
    if (a && b && (plain.width != coloured.width || plain.height != coloured.height)) l.moved = -2;
    for (int i = 0; a && b && l.moved >= 0 && i < plain.width * plain.height; i++) {
        const bool white =
            coloured.rgb[3 * i] == 255 && coloured.rgb[3 * i + 1] == 255 && coloured.rgb[3 * i + 2] == 255;
        l.moved += white != (plain.rgb[3 * i] == 255);
        l.ink += !white;
        l.black += !white && cdm_colour_of(coloured.rgb + 3 * i) == 0;
    }
    if (a) image_free(&plain);
    if (b) image_free(&coloured);
    cdm_colouring_free(&c);
    return l;
}

static int print_layouts(const char *path) {
    char line[4096];
    FILE *f = fopen(path, "r");
    open_renderer();
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        const Layout l = layout_of(line);
        printf("%d %d %d %s\n", l.moved, l.ink, l.black, line);
        fflush(stdout);
    }
    renderer_close(&renderer);
    return f ? fclose(f) : 1;
}

static int print_colours(const char *formula) {
    CdmColouring c;
    cdm_colour(&c, formula, strlen(formula));
    printf("%s\n", c.out);
    cdm_colouring_free(&c);
    return 0;
}

/* ---- assignments ---- */

static void test_assignment(void) {
    const double cost[] = {4, 1, 3, 2, 0, 5, 3, 2, 2}, wide[] = {7, 7, 1, 7, 1, 7}, equal[] = {2, 2, 2, 2};
    int column[3] = {-1, -1, -1};
    assignment_solve(column, cost, 3, 3);
    CHECK(column[0] == 1 && column[1] == 0 && column[2] == 2);
    assignment_solve(column, wide, 2, 3);
    CHECK(column[0] == 2 && column[1] == 1);
    assignment_solve(column, equal, 2, 2);
    CHECK(column[0] != column[1] && column[0] + column[1] == 1);
    assignment_solve(column, cost, 0, 3);
    assignment_solve(column, cost, 0, 0);
}

static int print_assignment(int n, int m, const char *path) {
    MappedFile f;
    Error err;
    die_if(file_map(&f, path, &err), &err);
    if (n < 1 || m < n || f.size != (size_t)n * (size_t)m * sizeof(double)) die("%s has another size", path);
    int *column = (int *)xmalloc((size_t)n * sizeof *column);
    assignment_solve(column, (const double *)(const void *)f.data, n, m);
    for (int i = 0; i < n; i++) printf("%d\n", column[i]);
    free(column);
    file_unmap(&f);
    return fflush(stdout) != 0;
}

/* ---- colours ---- */

/* The words of the tokens of a formula, joined by spaces. */
static void expect_tokens(const char *formula, const char *expected) {
    CdmColouring c;
    char text[512] = "";
    cdm_colour(&c, formula, strlen(formula));
    for (int i = 0; i < c.count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%.*s", i ? " " : "", c.tokens[i].word.n,
                 c.tokens[i].word.at);
    check(!strcmp(text, expected), __FILE__, __LINE__, formula, text);
    cdm_colouring_free(&c);
}

static void test_tokens(void) {
    expect_tokens("x_i ^{2}+ \\alpha", "x i 2 + \\alpha");
    expect_tokens("\\frac12\\sqrt[3]y % z\nw", "\\frac 1 2 \\sqrt 3 y w");
    expect_tokens("f''(x)", "f ' ' ( x )");
    expect_tokens("\\left( a \\middle| b \\right.", "( a | b");
    expect_tokens("\\bigl\\{ a\\hspace{2cm}\\kern-3mu b", "\\{ a b");
    expect_tokens("\\begin{pmatrix}a&b\\\\[2pt]c\\end{pmatrix}", "( a b c )");
    expect_tokens("\\begin{array}{c|c}1&2\\\\\\hline 3\\end{array}", "1 2 3");
    expect_tokens("\\mathbf x\\operatorname*{ab}_\\text{c d}", "x a b c d");
    expect_tokens("a \\not = \xc3\xa9\\unknown{z}", "a \\not = \xc3\xa9 \\unknown z");
    expect_tokens("a\\rule[1pt]{2pt}{3pt}b", "a \\rule b");
    expect_tokens("", "");
}

/* Texts that are no formulas. Sanitizers watch. */
static void test_odd_formulas(void) {
    static const char *const odd[] = {"\\",
                                      "{",
                                      "}",
                                      "}}{",
                                      "\\left",
                                      "\\left(",
                                      "\\right)",
                                      "\\begin",
                                      "\\begin{array",
                                      "\\begin{array}{c",
                                      "\\end{x}",
                                      "^",
                                      "_",
                                      "x^",
                                      "''",
                                      "'^",
                                      "\\frac",
                                      "\\frac{a",
                                      "\\sqrt[",
                                      "\\sqrt[3",
                                      "\\not",
                                      "\\hat",
                                      "%",
                                      "\\kern",
                                      "\\\\[",
                                      "\\text{",
                                      "&&\\\\",
                                      "\\big",
                                      "\\overset{a",
                                      "\xff\xfe",
                                      "\\color",
                                      "\\multicolumn{2}"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        CdmColouring c;
        cdm_colour(&c, odd[i], strlen(odd[i]));
        check(c.at == c.end && !c.problem && strlen(c.out) == c.used, __FILE__, __LINE__, odd[i], "");
        cdm_colouring_free(&c);
    }
    char *deep = (char *)xmalloc(5001);
    for (int kind = 0; kind < 3; kind++) {
        CdmColouring c;
        memset(deep, "x{^"[kind], 5000);
        deep[5000] = '\0';
        cdm_colour(&c, deep, 5000);
        CHECK(c.problem && strstr(c.problem, kind ? "nested too deep" : "too many symbols"));
        cdm_colouring_free(&c);
    }
    free(deep);
    Random rng;
    random_seed(&rng, 1);
    for (int i = 0; i < 2000; i++) {
        static const char pieces[] = "\\{}[]()^_'&%$ ab1\\frac\\left\\right\\begin\\end{array}\\sqrt\\hat\\\\";
        char text[40];
        int n = 0;
        while (n < 30) text[n++] = pieces[random_below(&rng, sizeof pieces - 1)];
        CdmColouring c;
        cdm_colour(&c, text, (size_t)n);
        if (c.at != c.end) check(false, __FILE__, __LINE__, "a random formula is read to its end", "");
        cdm_colouring_free(&c);
    }
}

/* ---- matching ---- */

/* A drawing of n boxes of the same symbol, 10 x 10 pixels each, in an image of 200 x 100. */
static void place(CdmDrawing *d, CdmToken *token, CdmBox *boxes, int n, const int (*at)[2]) {
    *d = (CdmDrawing){.width = 200, .height = 100, .count = n, .boxes = boxes};
    *token = (CdmToken){{"a", 1}, {NULL, 0}};
    d->colouring.tokens = token;
    for (int i = 0; i < n; i++) boxes[i] = (CdmBox){0, at[i][0], at[i][1], at[i][0] + 10, at[i][1] + 10};
}

/* How far the matched boxes are from each other, all together. */
static double distance_of(int n, const int (*a)[2], const int (*b)[2]) {
    CdmDrawing x, y;
    CdmToken tokens[2];
    CdmBox boxes[2][20];
    CdmMatch matches[20];
    double sum = 0;
    place(&x, &tokens[0], boxes[0], n, a);
    place(&y, &tokens[1], boxes[1], n, b);
    CHECK(cdm_match(matches, &x, &y) == n);
    for (int i = 0; i < n; i++) sum += fabs(matches[i].across) + fabs(matches[i].down);
    return sum;
}

/* Of equal symbols, the place in the order decides where the boxes are near, and the box where they are far and the formula
 * is long. */
static void test_match(void) {
    static const int near[][2] = {{0, 0}, {20, 0}}, exchanged[][2] = {{20, 0}, {0, 0}};
    CHECK(distance_of(2, near, exchanged) == 40 && distance_of(2, near, near) == 0);
    int line[20][2], other[20][2];
    for (int i = 0; i < 20; i++) line[i][0] = other[i][0] = 10 * (i ? i - 1 : 0), line[i][1] = other[i][1] = 50;
    line[0][1] = other[1][1] = 0;  // an exponent and an index at the same symbol, written in either order
    line[1][1] = other[0][1] = 90;
    CHECK(distance_of(20, line, other) == 0);
}

/* ---- drawings ---- */

/* Colours move nothing, and all ink belongs to a token, but for `black` pixels of rules. */
static void expect_layout(const char *formula, bool rules) {
    const Layout l = layout_of(formula);
    char found[80];
    snprintf(found, sizeof found, "moved %d, ink %d, black %d", l.moved, l.ink, l.black);
    check(l.moved == 0 && l.ink > 0 && (l.black > 0) == rules, __FILE__, __LINE__, formula, found);
}

static void test_layout(void) {
    expect_layout("\\sum_{i=1}^{n} x_i \\left(\\frac{a}{b}\\right)^2 + f'^2 \\sqrt[3]{y}", false);
    expect_layout("\\underbrace{a+b}_{n} \\overline{xy} \\binom{n}{k} \\big| \\int_0^1 \\lim_{x\\to 0}", false);
    expect_layout("a=\\begin{cases}b&c\\\\d&e\\end{cases} \\begin{bmatrix}1\\\\2\\end{bmatrix}", false);
    expect_layout("\\left(\\begin{array}{|c|c|}\\hline 1&2\\\\\\hline 3&4\\end{array}\\right)", true);
}

/* A box has the size of what is seen: no bar, no rule and no limit counts to a neighbour's. */
static void test_boxes(void) {
    CdmDrawing d;
    draw(&d, "\\frac{a}{bcdef}+\\left(\\begin{array}{c|c}1&2\\\\3&4\\end{array}\\right)");
    const CdmBox *a = &d.boxes[1], *bar = &d.boxes[0];
    CHECK(d.count == 14 && a->right - a->left < 25 && bar->right - bar->left > 90 && bar->bottom - bar->top < 6);
    for (int i = 9; i < 13; i++) CHECK(d.boxes[i].right - d.boxes[i].left < 25);
    cdm_drawing_free(&d);
}

static void expect_score(const char *reference, const char *hypothesis, int n, int m, int matched) {
    const CdmScore s = compare(reference, hypothesis);
    char found[80];
    snprintf(found, sizeof found, "%d and %d boxes, %d match", s.reference, s.hypothesis, s.matched);
    check(s.reference == n && s.hypothesis == m && s.matched == matched, __FILE__, __LINE__, hypothesis, found);
    CHECK(s.perfect == (n == m && n == matched) && fabs(s.f1 - 2.0 * matched / (n + m)) < 1e-12);
}

static void test_scores(void) {
    expect_score("x_i^2+\\frac{a}{b}=\\sqrt{y}", "x^{2}_{i}+{\\frac ab} = \\sqrt y", 10, 10, 10);  // spellings
    expect_score("\\begin{pmatrix}a\\\\c\\end{pmatrix}\\le f'",
                 "\\left(\\begin{matrix}a\\\\c\\end{matrix}\\right)\\leq f^\\prime", 7, 7, 7);
    expect_score("x^2+y=z", "x2+y=z", 6, 6, 5);                           // an exponent on the line
    expect_score("a+b", "a-b", 3, 3, 2);                                  // another symbol
    expect_score("\\frac{abcde}{xy}+1", "\\frac{abcd}{xy}+1", 10, 9, 9);  // a symbol less, which shifts others
    expect_score("x+mmmm+abc", "x+abc", 10, 5, 5);                        // several, which shift others far
    expect_score("\\mathbf{x}+y", "x+y", 3, 3, 2);                        // another font
    expect_score("a+b", "\\frac{a+", 3, 0, 0);                            // nothing drawn
    expect_score("a+b", "a+b\\rule{10000pt}{1pt}", 3, 0, 0);              // too large to be drawn
    const CdmScore blank = compare("\\quad", "\\ ");
    CHECK(blank.reference == 0 && blank.f1 == 1 && blank.perfect);
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc > 2 && !strcmp(argv[1], "--colour")) return print_colours(argv[2]);
    if (argc > 3 && !strcmp(argv[1], "--compare")) return compare_pairs(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "--layout")) return print_layouts(argv[2]);
    if (argc > 4 && !strcmp(argv[1], "--assign")) return print_assignment(atoi(argv[2]), atoi(argv[3]), argv[4]);
    test_assignment();
    test_tokens();
    test_odd_formulas();
    test_match();
    Error err;
    if (renderer_open(&renderer, &(RenderOptions){0}, &err)) {
        printf("not tested here: drawings of formulas (%s)\n", err.text);
        return checks_report();
    }
    test_layout();
    test_boxes();
    test_scores();
    renderer_close(&renderer);
    return checks_report();
}
