/* Tests of the metrics of texts. Also, for test/compare_text.py, what they give for a file of texts, each ended by a NUL, as
 * JSON:
 *
 *     test_text_metrics --metrics program|formula PAIRS [TRAIN]   hypothesis, reference, hypothesis, ...
 *     test_text_metrics --tokens TEXTS                            of tex_tokens and of tex_characters
 *     test_text_metrics --normalise TEXTS
 *     test_text_metrics --distances PAIRS                         of the code points
 *     test_text_metrics --winsorised LIMIT NUMBER... */
#include "samples.h"

#include "../lib/threads.h"
#include "../metrics/search_cost.h"
#include "../metrics/text.h"

/* ---- tokens ---- */

/* Appends a token and a NUL to a text. */
static char *with_token(char *text, const SymbolTable *t, uint32_t id) {
    char utf8[8];
    for (size_t i = t->begin[id]; i < t->begin[id + 1]; i++) {
        utf8[utf8_write(utf8, t->text.s[i])] = 0;
        char *longer = format_string("%s%s", text, utf8);
        free(text);
        text = longer;
    }
    return text;
}

/* The tokens of a text with a bar between each two. */
static void check_tokens(const char *text, const char *expected, int line) {
    SymbolTable table;
    Symbols ids = {NULL, 0, 0};
    memset(&table, 0, sizeof table);
    tex_tokens(&table, &ids, text, strlen(text));
    char *all = xstrdup("");
    for (size_t i = 0; i < ids.n; i++) {
        char *longer = with_token(format_string("%s%s", all, i ? "¦" : ""), &table, ids.s[i]);
        free(all);
        all = longer;
    }
    check(!strcmp(all, expected), __FILE__, line, text, all);
    free(all);
    symbols_free(&ids);
    symbol_table_free(&table);
}
#define TOKENS(text, expected) check_tokens(text, expected, __LINE__)

static void check_characters(const char *text, const char *expected, int line) {
    Symbols x = {NULL, 0, 0};
    tex_characters(&x, text, strlen(text));
    char *all = (char *)xmalloc(4 * x.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < x.n; i++) n += (size_t)utf8_write(all + n, x.s[i]);
    all[n] = 0;
    check(!strcmp(all, expected), __FILE__, line, text, all);
    free(all);
    symbols_free(&x);
}
#define CHARACTERS(text, expected) check_characters(text, expected, __LINE__)

static void test_tokens(void) {
    TOKENS("", "");
    TOKENS("\n\n % only a comment", "");
    TOKENS("\\draw[red, thick]* (0,1.5) -- (a.north);%c\n",
           "\\draw¦&#91;¦red¦,¦thick¦&#93;¦*¦(¦0,1.5¦)¦--¦(¦a.north¦)¦;");
    TOKENS("$x^{12}+\\alpha$ b", "$¦x¦^¦{¦12¦}¦+¦\\alpha¦$¦b");
    TOKENS("\\[a$b\\] $$c\\)$$ $d\\]$", "\\[¦a¦$¦b¦\\]¦$$¦c¦\\)¦$$¦$¦d¦\\]¦$");
    TOKENS("\\a[b\n] \\\\[2pt] \\ x", "\\a¦&#91;¦b¦&#93;¦\\\\¦&#91;¦2pt¦&#93;¦\\¦x");
    TOKENS("it's 'a' Dr. X. No. 5 No. x e.g. 1,000 a,b c... d. e",
           "it¦&apos;s¦&apos;¦a¦&apos;¦Dr.¦X.¦No.¦5¦No.¦x¦e.g.¦1,000"
           "¦a¦,¦b¦c¦...¦d.¦e");
    TOKENS("caf\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87 <a|b> \xe2\x86\x92 \xff",
           "caf\xc3\xa9¦\xe4\xb8\xad¦\xe6\x96\x87¦&lt;¦a¦&#124;¦b¦"
           "&gt;¦\xe2\x86\x92¦\xef\xbf\xbd");
    CHARACTERS("", "  ");
    CHARACTERS("\\node at (0,1.5) {Hi. You!} % no\n;", " \\node at (0 ,1 .5) { Hi . You ! } ; ");
    CHARACTERS("0. 1, e.g. Mr x", " 0.1 , e .g . Mr. ");
    CHARACTERS("$a ,  b$", " $ a , b $ ");
}

/* ---- distances ---- */

static size_t slow_distance(const uint32_t *a, size_t n, const uint32_t *b, size_t m) {
    size_t *row = (size_t *)xmalloc((m + 1) * sizeof *row);
    for (size_t j = 0; j <= m; j++) row[j] = j;
    for (size_t i = 0; i < n; i++) {
        size_t diagonal = row[0]++;
        for (size_t j = 0; j < m; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            row[j + 1] = best;
        }
    }
    const size_t distance = row[m];
    free(row);
    return distance;
}

/* Against the table of distances, on lengths around the blocks of 64, with few and with many different symbols. */
static void test_edit_distance(void) {
    static const size_t lengths[] = {0, 1, 2, 63, 64, 65, 127, 128, 129, 200};
    Random r;
    int wrong = 0;
    random_seed(&r, 7);
    for (int k = 0; k < 1000; k++) {
        uint32_t a[200], b[200];
        const size_t n = lengths[k % 10], m = lengths[k / 10 % 10];
        const uint32_t symbols = k % 3 ? 3 : 150;
        for (size_t i = 0; i < n; i++) a[i] = (uint32_t)random_below(&r, symbols);
        for (size_t i = 0; i < m; i++) b[i] = i < n && k % 2 ? a[i] : (uint32_t)random_below(&r, symbols);
        wrong += edit_distance(a, n, b, m) != slow_distance(a, n, b, m);
    }
    CHECK(wrong == 0);
}

static double eed(const char *hypothesis, const char *reference) {
    Symbols h = {NULL, 0, 0}, r = {NULL, 0, 0};
    symbols_decode(&h, hypothesis, strlen(hypothesis));
    symbols_decode(&r, reference, strlen(reference));
    const double d = extended_edit_distance(h.s, h.n, r.s, r.n);
    symbols_free(&h);
    symbols_free(&r);
    return d;
}

static void test_eed(void) {
    CHECK(fabs(eed(" ab ", " ab ") - 0.3 / 4.3) < 1e-12);  // never 0
    CHECK(eed("", "") == 1 && eed("abc", "") == 1);
    CHECK(eed("", "abc") == 1);
    CHECK(eed(" b a ", " a b ") < eed(" b x ", " a b "));
}

/* ---- BLEU ---- */

static BleuCounts bleu_of(const char *hypothesis, const char *reference, const NgramTable *ignored) {
    NgramTable scratch = {NULL, 0, 0, 0, NULL};
    Symbols h = {NULL, 0, 0}, r = {NULL, 0, 0};
    symbols_decode(&h, hypothesis, strlen(hypothesis));
    symbols_decode(&r, reference, strlen(reference));
    const BleuCounts c = bleu_count(h.s, h.n, r.s, r.n, ignored, &scratch);
    symbols_free(&h);
    symbols_free(&r);
    ngrams_free(&scratch);
    return c;
}

static void test_bleu(void) {
    const BleuCounts same = bleu_of("abcde", "abcde", NULL), clipped = bleu_of("aaaaa", "aab", NULL);
    CHECK(fabs(bleu_score(&same) - 100) < 1e-9);
    CHECK(clipped.matches[0] == 2 && clipped.totals[0] == 5 && clipped.matches[1] == 1 && clipped.matches[2] == 0);
    CHECK(bleu_score(&clipped) == 0);
    BleuCounts sum = bleu_of("abcd", "abcdefgh", NULL);
    CHECK(fabs(bleu_score(&sum) - 100 * exp(-1)) < 1e-9);  // brevity: exp(1 - 8/4)
    const BleuCounts empty = bleu_of("", "ab", NULL);
    CHECK(bleu_score(&empty) == 0 && empty.totals[0] == 1 && empty.totals[3] == 1);
    bleu_add(&sum, &empty);
    CHECK(sum.reference == 10 && sum.hypothesis == 4 && sum.totals[3] == 2 && sum.matches[3] == 1);
}

/* The most frequent n-grams: equally frequent ones in the order of Counter.most_common. */
static void test_trivial(void) {
    NgramTable t = {NULL, 0, 0, 0, NULL};
    const uint32_t text[] = {1, 2, 1, 2, 3}, second[] = {9, 3};
    ngrams_train(&t, text, 5);
    ngrams_train(&t, second, 2);
    ngrams_keep(&t, 5);  // 1, 2, 3 and 1 2 twice each; then 9
    const uint32_t all[][4] = {{1, NGRAM_NONE, NGRAM_NONE, NGRAM_NONE}, {2, NGRAM_NONE, NGRAM_NONE, NGRAM_NONE},
                               {3, NGRAM_NONE, NGRAM_NONE, NGRAM_NONE}, {1, 2, NGRAM_NONE, NGRAM_NONE},
                               {9, NGRAM_NONE, NGRAM_NONE, NGRAM_NONE}, {2, 1, NGRAM_NONE, NGRAM_NONE}};
    for (int i = 0; i < 6; i++) CHECK((ngrams_find(&t, all[i]) != NULL) == (i < 5));
    CHECK(t.count == 5);
    ngrams_free(&t);
    NgramTable a = {NULL, 0, 0, 0, NULL};
    const uint32_t a_only[] = {'a'};
    ngrams_train(&a, a_only, 1);
    const BleuCounts c = bleu_of("aba", "abab", &a);
    CHECK(c.matches[0] == 1 && c.totals[0] == 1 && c.hypothesis == 3 && c.matches[1] == 2);
    ngrams_free(&a);
}

static void test_repetition(void) {
    NgramTable scratch = {NULL, 0, 0, 0, NULL};
    const uint32_t text[] = {1, 1, 1, 1, 1, 1, 2};
    CHECK(repetition_rate(text, 3, &scratch) == 0 && repetition_rate(text, 4, &scratch) == 0);
    CHECK(repetition_rate(text, 6, &scratch) == 1 - 1.0 / 3 && repetition_rate(text, 7, &scratch) == 0.5);
    ngrams_free(&scratch);
}

/* ---- formulas ---- */

static void check_formula(const char *from, const char *to, int line) {
    size_t n, again;
    char *exact = (char *)xmalloc(strlen(from));
    memcpy(exact, from, strlen(from));  // without a NUL, so that the sanitizer sees what is read behind the end
    char *once = formula_normalise(exact, strlen(from), &n), *twice = formula_normalise(once, n, &again);
    check(n == strlen(to) && !strcmp(once, to), __FILE__, line, from, once);
    check(n == again && !memcmp(once, twice, n), __FILE__, line, from, twice);
    free(exact);
    free(once);
    free(twice);
}
#define FORMULA(from, to) check_formula(from, to, __LINE__)

static void test_formulas(void) {
    FORMULA("", "");
    FORMULA("x^2_{1}", "x _ { 1 } ^ { 2 }");
    FORMULA("x''^2", "x ^ { \\prime \\prime 2 }");
    FORMULA("\\frac12+\\frac {\\alpha} b", "\\frac { 1 } { 2 } + \\frac { \\alpha } { b }");
    FORMULA("{\\bf x} {\\rm max} {\\bf\\rm y}", "\\mathbf { x } \\mathrm { m a x } \\mathbf { \\mathrm { y } }");
    FORMULA("x_{\\rm a}", "x _ { \\mathrm { a } }");
    FORMULA("{a+b \\over {c}} {n \\choose k}", "\\frac { a + b } { c } \\binom { n } { k }");
    FORMULA("{\\bf a \\over b}", "\\mathbf { \\frac { a } { b } }");
    FORMULA("a & b \\over c \\\\", "a & b \\over c \\\\");
    FORMULA("\\left( {a \\over b} \\right)^2 \\left. x \\right|_0", "( \\frac { a } { b } ) ^ { 2 } x | _ { 0 }");
    FORMULA("{ { \\bar { K } } }_ { a } {{ab}} {=}", "\\bar { K } _ { a } { a b } { = }");
    FORMULA("\\foo{\\hat x}{y}", "\\foo { \\hat { x } } y");
    FORMULA("a\\ge b\\le c\\ne d\\not= e\\to f\\vert\\lbrace\\ast\\\t~",
            "a \\geq b \\leq c \\neq d \\neq e \\rightarrow f | \\{ * \\  ~");
    FORMULA("$$ \\displaystyle x % y\n\\label{z} $$", "x");
    FORMULA("\\[ x \\]", "x");
    FORMULA("\\$x\\$", "\\$ x \\$");
    FORMULA("\\text{if  x} \\mbox { a}", "\\text{if x} \\mbox{ a}");
    FORMULA("\\begin {array} { c c } a & b \\\\[2pt] c \\end{array}",
            "\\begin{array} {cc} a & b \\\\[2pt] c \\end{array}");
    FORMULA("\\operatorname * {arg} \\sqrt[3]x \\sqrt2", "\\operatorname* { a r g } \\sqrt [ 3 ] { x } \\sqrt { 2 }");
    FORMULA("^2 x\\sp2\\sb1 \\hat\\mathbf x", "{ } ^ { 2 } x _ { 1 } ^ { 2 } \\hat { \\mathbf { x } }");
    FORMULA("{a ^", "{ a ^ { } }");
    FORMULA("} \\right) \\", "} ) \\ ");
    FORMULA("{\\dot{\\hat x}} {\\hat x}", "{ \\dot { \\hat { x } } } \\hat { x }");
    FORMULA("\xc3\xa9\xff", "\xc3\xa9 \xff");
}

/* What random formulas are made of. */
static const char *const formula_words[] = {"{",
                                            "{",
                                            "}",
                                            "}",
                                            "^",
                                            "_",
                                            "'",
                                            "&",
                                            "\\\\",
                                            "\\\\[2pt]",
                                            "[",
                                            "]",
                                            "(",
                                            "x",
                                            "1",
                                            "=",
                                            "*",
                                            " ",
                                            " ",
                                            "\\alpha",
                                            "\\rm",
                                            "\\bf ",
                                            "\\over ",
                                            "\\choose ",
                                            "\\frac",
                                            "\\sqrt",
                                            "\\hat",
                                            "\\left",
                                            "\\right",
                                            "\\middle",
                                            ".",
                                            "<",
                                            "\\left(",
                                            "\\right)",
                                            "\\left.",
                                            "\\right.",
                                            "\\not",
                                            "\\{",
                                            "|",
                                            "\\text{a  b}",
                                            "\\text",
                                            "\\begin{array}{c c}",
                                            "\\begin{matrix}",
                                            "\\end{array}",
                                            "\\begin",
                                            "\\end",
                                            "$",
                                            "\\[",
                                            "\\]",
                                            "\\displaystyle ",
                                            "\\label{a}",
                                            "\\operatorname *",
                                            "\\foo ",
                                            "\\sp",
                                            "\\limits",
                                            "\\mathrm",
                                            "%c\n",
                                            "\\ ",
                                            "\\",
                                            "\xc3\xa9",
                                            "\\overset",
                                            "\\color{red}",
                                            "{}",
                                            "\\prime "};

/* Random formulas, most of them wrong: normalising is harmless, and twice is as once. */
static void test_formulas_random(void) {
    Random r;
    int wrong = 0;
    random_seed(&r, 11);
    for (int k = 0; k < 20000; k++) {
        char text[512];
        size_t n = 0, once, twice;
        for (int i = (int)random_below(&r, 24); i >= 0; i--) {
            const char *w = formula_words[random_below(&r, sizeof formula_words / sizeof *formula_words)];
            memcpy(text + n, w, strlen(w));
            n += strlen(w);
        }
        char *exact = (char *)xmalloc(n);
        memcpy(exact, text, n);
        char *a = formula_normalise(exact, n, &once), *b = formula_normalise(a, once, &twice);
        if ((once != twice || memcmp(a, b, once)) && wrong++ == 0)
            printf("not the same again: %.*s\n  %s\n  %s\n", (int)n, text, a, b);
        free(exact);
        free(a);
        free(b);
    }
    CHECK(wrong == 0);
}

/* `count` times what opens a group: the stack is not used up, and twice is as once. */
static bool is_stable(const char *opening, size_t count) {
    const size_t width = strlen(opening);
    char *text = (char *)xmalloc(width * count);
    for (size_t k = 0; k < count; k++) memcpy(text + k * width, opening, width);
    size_t once, twice;
    char *a = formula_normalise(text, width * count, &once), *b = formula_normalise(a, once, &twice);
    const bool stable = once == twice && !memcmp(a, b, once);
    free(text);
    free(a);
    free(b);
    return stable;
}

/* Groups that are nested too deeply, and nearly too deeply. */
static void test_formulas_deep(void) {
    static const char *const openings[] = {"{",       "x^",    "\\left(", "\\hat", "\\begin{matrix}",
                                           "\\frac{", " {%\n", "\\left"};
    for (int i = 0; i < 8; i++) {
        CHECK(is_stable(openings[i], 100000));
        for (size_t count = FORMULA_DEPTH - 5; count < FORMULA_DEPTH + 5; count++)
            CHECK(is_stable(openings[i], count));
    }
}

/* ---- the suite ---- */

static TextPair pair_of(const char *hypothesis, const char *reference) {
    return (TextPair){reference, hypothesis, strlen(reference), strlen(hypothesis)};
}

static void test_suite(void) {
    TextSuite program, formula;
    TextSample s[3], t[3];
    const TextPair pairs[] = {pair_of("\\draw (0,0);", "\\draw (0,0);"), pair_of("", "\\node {a};"), pair_of("", "")};
    text_suite_begin(&program, TEXT_PROGRAM, 2);
    text_suite_train(&program, "\\draw \\draw ; ;", 15);
    text_suite_measure(&program, pairs, 3, s);
    CHECK(s[0].exact && !s[1].exact && s[2].exact && s[0].bleu.matches[0] == 5 && s[0].crystal.matches[0] == 3);
    CHECK(fabs(text_metric(TEXT_EXACT, s, NULL, 3) - 200.0 / 3) < 1e-9);
    CHECK(text_metric(TEXT_CER, s, NULL, 3) == 1.0 / 3 && text_metric(TEXT_EDIT_SCORE, &s[2], NULL, 1) == 100);
    CHECK(fabs(text_metric(TEXT_EDIT_SCORE, s, NULL, 2) - 50) < 1e-9);
    CHECK(text_metric(TEXT_LENGTH_RATIO, s, NULL, 2) == 0.5 && text_metric(TEXT_LENGTH_RATIO, &s[2], NULL, 1) == 1);
    for (int m = 0; m < TEXT_METRICS; m++) CHECK(isnan(text_metric((TextMetric)m, s, NULL, 0)));
    /* a resample is the figure of its samples */
    const size_t chosen[] = {0, 0, 1};
    CHECK(fabs(text_metric(TEXT_EDIT_SCORE, s, chosen, 3) - 200.0 / 3) < 1e-9);
    text_suite_end(&program);
    const TextPair formulas[] = {pair_of("{\\bf x} ^2_1", "\\mathbf{x}_1^2"), pair_of("x", "y"), pair_of("", "")};
    text_suite_begin(&formula, TEXT_FORMULA, 0);
    text_suite_measure(&formula, formulas, 3, t);
    CHECK(!t[0].exact && t[0].same_formula && !t[1].same_formula &&
          text_metric(TEXT_NORMAL_EDIT_SCORE, t, NULL, 1) == 100);
    CHECK(fabs(text_metric(TEXT_NORMAL_BLEU, t, NULL, 1) - 100) < 1e-9 && t[0].bleu.hypothesis == 3);
    text_suite_end(&formula);
}

/* Any bytes, many of them special: the sanitizer watches, and a text is equal to itself by every metric. */
static void test_any_bytes(void) {
    static const char special[] = "\\\\\\{}[]()$%&_^'.,*\n\r \0\xc3\xa9\xe4\xb8";
    TextSuite suite;
    TextSample sample;
    Random r;
    int wrong = 0;
    random_seed(&r, 13);
    for (int k = 0; k < 4000; k++) {
        const size_t n = random_below(&r, 40);
        char *text = (char *)xmalloc(n);
        for (size_t i = 0; i < n; i++)
            text[i] = random_below(&r, 2) ? special[random_below(&r, sizeof special)] : (char)random_below(&r, 256);
        const TextPair pair = {text, text, n, n};
        text_suite_begin(&suite, k % 2 ? TEXT_FORMULA : TEXT_PROGRAM, 0);
        text_suite_measure(&suite, &pair, 1, &sample);
        wrong += !sample.exact || text_metric(TEXT_CER, &sample, NULL, 1) != 0 ||
                 text_metric(TEXT_EDIT_SCORE, &sample, NULL, 1) != 100 || (k % 2 && !sample.same_formula);
        text_suite_end(&suite);
        free(text);
    }
    CHECK(wrong == 0);
}

/* The same samples with one thread and with four. */
static void test_threads(void) {
    enum { N = 150 };
    TextPair pairs[N];
    TextSample one[N], four[N];
    Random r;
    random_seed(&r, 3);
    for (int i = 0; i < N; i++) {
        char *a = format_string("\\draw (%d,%d) -- (1,1);", (int)random_below(&r, 9), i);
        pairs[i] = pair_of(a, i ? pairs[i - 1].hypothesis : "x");
    }
    TextSuite suite;
    for (int k = 0; k < 2; k++) {
        threads_use(k ? 4 : 1);
        text_suite_begin(&suite, TEXT_PROGRAM, 5);
        text_suite_train(&suite, pairs[0].hypothesis, pairs[0].hypothesis_bytes);
        text_suite_measure(&suite, pairs, N, k ? four : one);
        text_suite_end(&suite);
    }
    for (int m = 0; m < TEXT_METRICS; m++) {
        const double a = text_metric((TextMetric)m, one, NULL, N), b = text_metric((TextMetric)m, four, NULL, N);
        CHECK(a == b);
    }
    for (int i = 0; i < N; i++) free((char *)pairs[i].hypothesis);
}

static void test_search_cost(void) {
    double values[40];
    for (int i = 0; i < 40; i++) values[i] = i;
    values[39] = 1e6;
    CHECK(fabs(winsorised_mean(values, 40, SEARCH_COST_LIMIT) - 19.5) < 1e-9);  // 0, 1 -> 2 and 38, 1e6 -> 37
    CHECK(winsorised_mean(values, 1, 0.05) == 0 && isnan(winsorised_mean(values, 0, 0.05)));
    CHECK(search_efficiency(5, 20) == 0.25 && search_efficiency(0, 0) == 0);
}

/* ---- for test/compare_text.py ---- */

typedef struct {
    MappedFile file;
    const char **text;
    size_t *bytes, count;
} Texts;

static Texts read_texts(const char *path) {
    Texts t;
    Error err;
    memset(&t, 0, sizeof t);
    die_if(file_map(&t.file, path, &err), &err);
    const char *s = (const char *)t.file.data;
    if (s[t.file.size - 1]) die("%s does not end with a NUL", path);
    for (size_t i = 0; i < t.file.size; i++) t.count += !s[i];
    t.text = (const char **)xmalloc(t.count * sizeof *t.text);
    t.bytes = (size_t *)xmalloc(t.count * sizeof *t.bytes);
    for (size_t i = 0; i < t.count; s += t.bytes[i++] + 1) {
        t.text[i] = s;
        t.bytes[i] = strlen(s);
    }
    return t;
}

static void free_texts(Texts *t) {
    free(t->text);
    free(t->bytes);
    file_unmap(&t->file);
}

static void json_symbols(JsonWriter *w, const uint32_t *s, size_t n) {
    char *text = (char *)xmalloc(4 * n + 1);
    size_t size = 0;
    for (size_t i = 0; i < n; i++) size += (size_t)utf8_write(text + size, s[i]);
    json_string_bytes(w, text, size);
    free(text);
}

static void compare_tokens(JsonWriter *w, const Texts *t) {
    SymbolTable table;
    Symbols ids = {NULL, 0, 0};
    memset(&table, 0, sizeof table);
    for (size_t i = 0; i < t->count; i++) {
        json_begin_array(w);
        json_begin_array(w);
        ids.n = 0;
        tex_tokens(&table, &ids, t->text[i], t->bytes[i]);
        for (size_t k = 0; k < ids.n; k++) {
            const size_t begin = table.begin[ids.s[k]];
            json_symbols(w, table.text.s + begin, table.begin[ids.s[k] + 1] - begin);
        }
        json_end_array(w);
        ids.n = 0;
        tex_characters(&ids, t->text[i], t->bytes[i]);
        json_symbols(w, ids.s, ids.n);
        json_end_array(w);
    }
    symbols_free(&ids);
    symbol_table_free(&table);
}

static void compare_distances(JsonWriter *w, const Texts *t) {
    Symbols a = {NULL, 0, 0}, b = {NULL, 0, 0};
    for (size_t i = 0; i + 1 < t->count; i += 2) {
        a.n = b.n = 0;
        symbols_decode(&a, t->text[i], t->bytes[i]);
        symbols_decode(&b, t->text[i + 1], t->bytes[i + 1]);
        json_begin_array(w);
        json_integer(w, (int64_t)edit_distance(a.s, a.n, b.s, b.n));
        json_number(w, extended_edit_distance(a.s, a.n, b.s, b.n));
        json_end_array(w);
    }
    symbols_free(&a);
    symbols_free(&b);
}

/* Of each metric the figure of all samples, that of the second half, and those of the samples. */
static void compare_metrics(JsonWriter *w, TextKind kind, const Texts *t, const Texts *train) {
    const size_t n = t->count / 2;
    TextSuite suite;
    TextPair *pairs = (TextPair *)xmalloc(n * sizeof *pairs);
    TextSample *samples = (TextSample *)xmalloc(n * sizeof *samples);
    for (size_t i = 0; i < n; i++)
        pairs[i] = (TextPair){t->text[2 * i + 1], t->text[2 * i], t->bytes[2 * i + 1], t->bytes[2 * i]};
    text_suite_begin(&suite, kind, 500);
    for (size_t i = 0; i < train->count; i++) text_suite_train(&suite, train->text[i], train->bytes[i]);
    text_suite_measure(&suite, pairs, n, samples);
    json_begin_object(w);
    for (int m = 0; m < TEXT_METRICS; m++) {
        if (!text_metric_applies((TextMetric)m, kind)) continue;
        json_key(w, text_metrics[m].text.key);
        json_begin_array(w);
        json_number(w, text_metric((TextMetric)m, samples, NULL, n));
        json_number(w, text_metric((TextMetric)m, samples + n / 2, NULL, n - n / 2));
        for (size_t i = 0; i < n; i++) json_number(w, text_metric((TextMetric)m, &samples[i], NULL, 1));
        json_end_array(w);
    }
    json_end_object(w);
    text_suite_end(&suite);
    free(pairs);
    free(samples);
}

static int compare(int argc, char **argv) {
    JsonWriter w;
    Texts texts, train;
    memset(&w, 0, sizeof w);
    memset(&train, 0, sizeof train);
    const bool metrics = !strcmp(argv[1], "--metrics"), formula = metrics && argc > 3 && !strcmp(argv[2], "formula");
    if (argc < 3 + metrics) die("usage: see the head of test/test_text_metrics.c");
    if (!strcmp(argv[1], "--winsorised")) {
        double *values = (double *)xmalloc((size_t)argc * sizeof *values);
        for (int i = 3; i < argc; i++) values[i - 3] = atof(argv[i]);
        printf("%.17g\n", winsorised_mean(values, (size_t)argc - 3, atof(argv[2])));
        free(values);
        return 0;
    }
    texts = read_texts(argv[2 + metrics]);
    if (metrics && argc > 4) train = read_texts(argv[4]);
    json_begin_array(&w);
    if (metrics) compare_metrics(&w, formula ? TEXT_FORMULA : TEXT_PROGRAM, &texts, &train);
    if (!strcmp(argv[1], "--tokens")) compare_tokens(&w, &texts);
    if (!strcmp(argv[1], "--distances")) compare_distances(&w, &texts);
    for (size_t i = 0; !strcmp(argv[1], "--normalise") && i < texts.count; i++) {
        size_t n;
        char *normal = formula_normalise(texts.text[i], texts.bytes[i], &n);
        json_string_bytes(&w, normal, n);
        free(normal);
    }
    json_end_array(&w);
    const int status = json_write_line(&w, stdout) ? 1 : 0;
    json_writer_free(&w);
    free_texts(&texts);
    if (train.text) free_texts(&train);
    return status;
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc > 1) return compare(argc, argv);
    test_tokens();
    test_edit_distance();
    test_eed();
    test_bleu();
    test_trivial();
    test_repetition();
    test_formulas();
    test_formulas_random();
    test_formulas_deep();
    test_suite();
    threads_use(1);
    test_any_bytes();
    test_threads();
    test_search_cost();
    return checks_report();
}
