/* The tokens of a formula, and what is known of its commands; for metrics/formula_normalise.h. */
#ifndef METRICS_FORMULA_TOKENS_H
#define METRICS_FORMULA_TOKENS_H

#include "../lib/error.h"
#include "../lib/utf8.h"

typedef struct {
    const char *s;  // in the text, in `copies`, or a constant
    size_t n;
} FormulaToken;

/* A text that is read from `at` to `end`, and the tokens written so far. */
typedef struct {
    const char *text;
    size_t at, end;
    FormulaToken *tokens;
    size_t count, capacity;
    char *copies;  // spellings of tokens that the text does not have as they are; room for three times the text
    size_t copied;
    int depth;
    bool too_deep;
} Formula;

enum { FORMULA_DEPTH = 200 };  // of groups; what is nested deeper is not normalised

/* ---- commands ---- lists with a space on both sides of each word */

/* Which spellings are one symbol. */
static const char *const formula_synonyms[][2] = {
    {"\\ge", "\\geq"},
    {"\\le", "\\leq"},
    {"\\ne", "\\neq"},
    {"\\to", "\\rightarrow"},
    {"\\gets", "\\leftarrow"},
    {"\\owns", "\\ni"},
    {"\\land", "\\wedge"},
    {"\\lor", "\\vee"},
    {"\\lnot", "\\neg"},
    {"\\lbrace", "\\{"},
    {"\\rbrace", "\\}"},
    {"\\vert", "|"},
    {"\\Vert", "\\|"},
    {"\\ast", "*"},
    {"\\\t", "\\ "},
    {"\\\n", "\\ "},
    {"\\", "\\ "},
};
/* Fonts that hold to the end of a group, and those with an argument. */
static const char *const formula_fonts[][2] = {
    {"\\rm", "\\mathrm"}, {"\\bf", "\\mathbf"}, {"\\it", "\\mathit"},
    {"\\sf", "\\mathsf"}, {"\\tt", "\\mathtt"}, {"\\cal", "\\mathcal"},
};
/* Fractions whose numerator is what stands before them in their group. */
static const char *const formula_fractions[][2] = {{"\\over", "\\frac"}, {"\\choose", "\\binom"}};

/* One argument, or two. Braces around what an ACCENT, an ALPHABET or a FRACTION gives change nothing. */
#define FORMULA_ACCENTS \
    " \\hat \\check \\tilde \\acute \\grave \\dot \\ddot \\breve \\bar \\vec \\widehat \\widetilde "
#define FORMULA_ALPHABETS \
    " \\mathrm \\mathbf \\mathit \\mathsf \\mathtt \\mathcal \\mathbb \\mathfrak \\mathscr \\mathnormal "
#define FORMULA_ONE                                                                                         \
    " \\overline \\underline \\overbrace \\underbrace \\overrightarrow \\overleftarrow \\operatorname "     \
    "\\operatorname* \\boldsymbol \\bm \\pmb \\phantom \\hphantom \\vphantom \\mathop \\mathbin \\mathrel " \
    "\\mathord \\mathopen \\mathclose \\mathpunct \\mathinner \\boxed \\substack \\sqrt \\xrightarrow \\xleftarrow "
#define FORMULA_FRACTIONS " \\frac \\dfrac \\tfrac \\binom \\dbinom \\tbinom "
#define FORMULA_TWO " \\overset \\underset \\stackrel \\cfrac "
#define FORMULA_OPTIONAL " \\sqrt \\xrightarrow \\xleftarrow \\cfrac "  // in brackets before the arguments

/* An argument that is text; one that is a name or a length, where spaces mean nothing. */
#define FORMULA_TEXT                                                                                              \
    " \\text \\textrm \\textbf \\textit \\textsf \\texttt \\textnormal \\textup \\textsc \\textsl \\emph \\mbox " \
    "\\hbox \\fbox \\tag "
#define FORMULA_NAME " \\ref \\eqref \\hspace \\hspace* \\vspace \\vspace* \\color \\textcolor \\begin \\end "
#define FORMULA_STARRED " \\operatorname \\hspace \\vspace "
#define FORMULA_INVISIBLE " \\label \\nonumber \\notag "
#define FORMULA_COLUMNS \
    " \\begin{array} \\begin{subarray} \\begin{alignedat} \\begin{alignat} \\begin{alignat*} \\begin{tabular} "

/* Atoms of class Ord. */
#define FORMULA_SYMBOLS                                                                                            \
    " \\alpha \\beta \\gamma \\delta \\epsilon \\varepsilon \\zeta \\eta \\theta \\vartheta \\iota \\kappa "       \
    "\\lambda \\mu \\nu \\xi \\pi \\varpi \\rho \\varrho \\sigma \\varsigma \\tau \\upsilon \\phi \\varphi \\chi " \
    "\\psi \\omega \\Gamma \\Delta \\Theta \\Lambda \\Xi \\Pi \\Sigma \\Upsilon \\Phi \\Psi \\Omega \\infty "      \
    "\\partial \\nabla \\ell \\hbar \\prime \\aleph \\Re \\Im \\emptyset \\forall \\exists \\imath \\jmath \\wp "
/* Other commands without arguments. */
#define FORMULA_BARE                                                                                                 \
    " \\sum \\prod \\int \\oint \\cdot \\times \\pm \\mp \\in \\subset \\subseteq \\cup \\cap \\wedge \\vee "        \
    "\\otimes \\oplus \\leq \\geq \\neq \\equiv \\sim \\simeq \\approx \\cong \\rightarrow \\leftarrow \\mapsto "    \
    "\\Rightarrow \\quad \\qquad \\ldots \\cdots \\dots \\langle \\rangle \\sin \\cos \\tan \\exp \\log \\ln \\lim " \
    "\\max \\min \\sup \\inf \\det \\dim \\limits \\nolimits \\displaystyle \\textstyle \\rm \\bf \\it \\cal "       \
    "\\over "                                                                                                        \
    "\\choose \\mid \\propto \\circ \\dagger \\star "
/* What cannot be an argument. */
#define FORMULA_NO_ARGUMENT " } & $ \\\\ \\begin \\end \\left \\right \\middle \\over \\choose \\limits \\nolimits "
/* What scripts cannot belong to; they have an empty nucleus then. */
#define FORMULA_NO_NUCLEUS                                                                                          \
    " & $ \\[ \\] \\( \\) \\over \\choose \\rm \\bf \\it \\sf \\tt \\cal \\displaystyle \\textstyle \\scriptstyle " \
    "\\scriptscriptstyle "
/* What can stand behind \left. */
#define FORMULA_DELIMITERS                                                                                        \
    " ( ) [ ] | / < > . \\{ \\} \\| \\lbrace \\rbrace \\lbrack \\rbrack \\langle \\rangle \\vert \\Vert \\lvert " \
    "\\rvert \\lVert \\rVert \\lfloor \\rfloor \\lceil \\rceil \\lgroup \\rgroup \\lmoustache \\rmoustache "      \
    "\\uparrow \\downarrow \\updownarrow \\Uparrow \\Downarrow \\Updownarrow \\backslash \\ulcorner \\urcorner "  \
    "\\llcorner \\lrcorner "

/* ---- tokens ---- */

static inline bool formula_is(FormulaToken t, const char *word) {
    return t.n == strlen(word) && !memcmp(t.s, word, t.n);
}

static inline bool formula_is_any(FormulaToken t, const char *list) {
    char word[48];
    if (t.n == 0 || t.n + 3 > sizeof word || memchr(t.s, ' ', t.n) || memchr(t.s, 0, t.n)) return false;
    snprintf(word, sizeof word, " %.*s ", (int)t.n, t.s);
    return strstr(list, word) != NULL;
}

/* The second of the pair whose first is t, or NULL. */
static inline const char *formula_other(FormulaToken t, const char *const (*pairs)[2], size_t count) {
    for (size_t i = 0; i < count; i++)
        if (formula_is(t, pairs[i][0])) return pairs[i][1];
    return NULL;
}
#define FORMULA_OTHER(t, pairs) formula_other(t, pairs, sizeof pairs / sizeof *pairs)

static inline bool formula_is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static inline bool formula_is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* The token at `at`, which is neither white space nor the end: a command, or a character. */
static inline FormulaToken formula_read(const Formula *f, size_t at) {
    const char *s = f->text + at;
    const size_t left = f->end - at;
    size_t n = 1;
    if (*s == '\\' && left > 1) {
        while (n < left && formula_is_letter(s[n])) n++;
        if (n > 1) return (FormulaToken){s, n};
    } else {
        n = 0;
    }
    const int length = utf8_sequence((const uint8_t *)s + n, left - n);
    return (FormulaToken){s, n + (length ? (size_t)length : 1)};
}

/* The end of the group whose opening brace is at `at`, behind its closing brace; 0 if it does not end. */
static inline size_t formula_group_end(const Formula *f, size_t at) {
    for (size_t depth = 0; at < f->end; at++) {
        if (f->text[at] == '\\')
            at++;
        else if (f->text[at] == '{')
            depth++;
        else if (f->text[at] == '}' && --depth == 0)
            return at + 1;
    }
    return 0;
}

/* Skips white space, comments and what is not printed. Returns whether there is something behind. */
static inline bool formula_skip(Formula *f) {
    while (f->at < f->end) {
        const char c = f->text[f->at];
        if (formula_is_space(c)) {
            f->at++;
        } else if (c == '%') {
            while (f->at < f->end && f->text[f->at] != '\n') f->at++;
        } else if (c == '\\') {
            const FormulaToken t = formula_read(f, f->at);
            if (!formula_is_any(t, FORMULA_INVISIBLE)) return true;
            f->at += t.n;
            while (formula_is(t, "\\label") && f->at < f->end && formula_is_space(f->text[f->at])) f->at++;
            if (formula_is(t, "\\label") && f->at < f->end && f->text[f->at] == '{') {
                const size_t end = formula_group_end(f, f->at);
                f->at = end ? end : f->at;
            }
        } else {
            return true;
        }
    }
    return false;
}

/* The next token; of no characters at the end. */
static inline FormulaToken formula_peek(Formula *f) {
    return formula_skip(f) ? formula_read(f, f->at) : (FormulaToken){"", 0};
}

/* ---- writing ---- */

/* Makes room for `more` tokens at `at`, and moves those behind it. */
static inline void formula_open(Formula *f, size_t at, size_t more) {
    if (f->capacity - f->count < more) {
        f->capacity = 2 * (f->count + more) + 64;
        f->tokens = (FormulaToken *)xrealloc(f->tokens, f->capacity * sizeof *f->tokens);
    }
    memmove(f->tokens + at + more, f->tokens + at, (f->count - at) * sizeof *f->tokens);
    f->count += more;
}

static inline void formula_insert(Formula *f, size_t at, const char *word) {
    formula_open(f, at, 1);
    f->tokens[at] = (FormulaToken){word, strlen(word)};
}

static inline void formula_remove(Formula *f, size_t at) {
    memmove(f->tokens + at, f->tokens + at + 1, (f->count - at - 1) * sizeof *f->tokens);
    f->count--;
}

/* Writes a token in its one spelling. */
static inline void formula_push(Formula *f, FormulaToken t) {
    const char *word = FORMULA_OTHER(t, formula_synonyms);
    if (formula_is(t, "=") && f->count && formula_is(f->tokens[f->count - 1], "\\not")) {
        f->count--;
        word = "\\neq";
    }
    formula_open(f, f->count, 1);
    f->tokens[f->count - 1] = word ? (FormulaToken){word, strlen(word)} : t;
}

static inline void formula_push_word(Formula *f, const char *word) {
    formula_push(f, (FormulaToken){word, strlen(word)});
}

/* Writes token t followed by text [begin, end), or by {} if that is empty, as one token; with a single space for each run of
 * white space, or without any. */
static inline void formula_push_text(Formula *f, FormulaToken t, size_t begin, size_t end, bool spaces) {
    char *copy = f->copies + f->copied;
    size_t n = t.n;
    memcpy(copy, t.s, n);
    for (size_t i = begin; i < end; i++) {
        if (!formula_is_space(f->text[i]) || copy[n - 1] == '\\')
            copy[n++] = f->text[i];
        else if (spaces && copy[n - 1] != ' ')
            copy[n++] = ' ';
    }
    if (begin == end) copy[n++] = '{', copy[n++] = '}';
    f->copied += n;
    formula_push(f, (FormulaToken){copy, n});
}

/* ---- what has been written ---- */

/* The token behind the group that begins at token `at`; `at` if none does. */
static inline size_t formula_behind_group(const Formula *f, size_t at, size_t end) {
    size_t depth = 0;
    for (size_t i = at; i < end; i++) {
        if (formula_is(f->tokens[i], "{")) depth++;
        if (formula_is(f->tokens[i], "}")) depth--;
        if (depth == 0) return i == at ? at : i + 1;
    }
    return at;
}

typedef enum { FORMULA_SEVERAL, FORMULA_SYMBOL, FORMULA_COMMAND, FORMULA_GROUP } FormulaContent;

/* What tokens [begin, end) are: one symbol of class Ord; one accent, alphabet or fraction with its arguments; one group. Not
 * an accent on an accent: amsmath draws scripts behind it otherwise than behind a group. */
static inline FormulaContent formula_content(const Formula *f, size_t begin, size_t end) {
    if (begin == end) return FORMULA_SEVERAL;
    const FormulaToken t = f->tokens[begin];
    const bool letter = t.n == 1 && (formula_is_letter(*t.s) || (*t.s >= '0' && *t.s <= '9'));
    if (begin + 1 == end) return letter || formula_is_any(t, FORMULA_SYMBOLS) ? FORMULA_SYMBOL : FORMULA_SEVERAL;
    if (formula_is(t, "{")) return formula_behind_group(f, begin, end) == end ? FORMULA_GROUP : FORMULA_SEVERAL;
    const bool two = formula_is_any(t, FORMULA_FRACTIONS), accent = formula_is_any(t, FORMULA_ACCENTS);
    if (!two && !accent && !formula_is_any(t, FORMULA_ALPHABETS)) return FORMULA_SEVERAL;
    if (accent && formula_is_any(f->tokens[begin + 2], FORMULA_ACCENTS)) return FORMULA_SEVERAL;
    size_t at = formula_behind_group(f, begin + 1, end);
    if (two && at > begin + 1) at = formula_behind_group(f, at, end);
    return at == end ? FORMULA_COMMAND : FORMULA_SEVERAL;
}

/* Brings an argument, whose opening brace is token `open` and whose closing brace is the last one, to its normal form: not
 * with braces inside the braces, and with alphabets instead of fonts. */
static inline void formula_settle(Formula *f, size_t open, size_t *close) {
    for (;;) {
        const char *font = *close > open + 1 ? FORMULA_OTHER(f->tokens[open + 1], formula_fonts) : NULL;
        if (font) {  // { \rm a } -> { \mathrm { a } }
            f->tokens[open + 1] = (FormulaToken){font, strlen(font)};
            formula_insert(f, open + 2, "{");
            formula_insert(f, ++*close, "}");
            size_t inner = *close;
            formula_settle(f, open + 2, &inner);
            *close = inner + 1;
        } else if (formula_content(f, open + 1, *close) == FORMULA_GROUP) {
            formula_remove(f, *close);
            formula_remove(f, open);
            *close -= 2;
        } else {
            return;
        }
    }
}

/* Whether a command of which nothing is known stands before token `at`: a group there may be its argument. */
static inline bool formula_may_be_argument(const Formula *f, size_t at) {
    const FormulaToken t = at ? f->tokens[at - 1] : (FormulaToken){"", 0};
    return t.n > 1 && t.s[0] == '\\' && formula_is_letter(t.s[1]) && t.s[t.n - 1] != '}' &&
           !formula_is_any(t, FORMULA_SYMBOLS) && !formula_is_any(t, FORMULA_BARE);
}

#endif
