/* One spelling for formulas that look the same as displays, so that metrics do not count how a formula is written:
 *
 *   white space, comments, \label, \nonumber     none; tokens are separated by one space
 *   braces around the arguments that commands and scripts have; none around a single letter, an accent, a fraction or an
 *   alphabet: x^2 -> x ^ { 2 }, \frac12 -> \frac { 1 } { 2 }, {x} -> x, {{ab}} -> { a b }
 *   {\bf x} -> \mathbf { x }, {a \over b} -> \frac { a } { b }, {n \choose k} -> \binom { n } { k }
 *   x' -> x ^ { \prime }; subscripts before superscripts; \sp and \sb are ^ and _
 *   \ge -> \geq, \ne and \not= -> \neq, \to -> \rightarrow, \vert -> |, ...: formula_synonyms
 *   $...$, $$...$$, \(...\), \[...\] and \displaystyle around the whole formula are dropped
 *   \left, \right and \middle are dropped, and their empty delimiters
 *
 * The last line is the only one that may change the look: the size of delimiters, and a thin space before them. A formula
 * that TeX would not take has a normal form too; it is read token by token. What is nested deeper than 200 groups keeps its
 * spelling. Normalising twice gives the same as once. */
#ifndef METRICS_FORMULA_NORMALISE_H
#define METRICS_FORMULA_NORMALISE_H

#include "formula_tokens.h"

static inline void formula_list(Formula *f, bool left);
static inline void formula_all(Formula *f);

/* ---- reading ---- */

/* Which script begins with t: '_', '^' or, for primes, '\''; 0: none. */
static inline char formula_script_kind(FormulaToken t) {
    if (formula_is(t, "\\sb")) return '_';
    if (formula_is(t, "\\sp")) return '^';
    return t.n == 1 && (*t.s == '_' || *t.s == '^' || *t.s == '\'') ? *t.s : 0;
}

/* A list in a group, an argument or an environment; of \left ... \right if `left`. */
static inline void formula_inner(Formula *f, bool left) {
    f->too_deep |= f->depth == FORMULA_DEPTH;
    if (f->too_deep) return;
    f->depth++;
    formula_list(f, left);
    f->depth--;
}

/* A group, of which the next character is the opening brace. A closing brace that is missing is added. */
static inline void formula_braces(Formula *f) {
    f->at++;
    formula_push_word(f, "{");
    formula_inner(f, false);
    if (formula_skip(f) && f->text[f->at] == '}') f->at++;
    formula_push_word(f, "}");
}

static inline void formula_nucleus(Formula *f, FormulaToken t);

/* The argument of a command or script, with braces; an empty one if there is none. */
static inline void formula_argument(Formula *f) {
    const FormulaToken t = formula_peek(f);
    const size_t open = f->count;
    if (formula_is(t, "{")) {
        formula_braces(f);
    } else {
        formula_push_word(f, "{");
        f->too_deep |= f->depth == FORMULA_DEPTH;
        if (t.n && !f->too_deep && !formula_script_kind(t) && !formula_is_any(t, FORMULA_NO_ARGUMENT)) {
            f->depth++;
            formula_nucleus(f, t);
            f->depth--;
        }
        formula_push_word(f, "}");
    }
    size_t close = f->count - 1;
    formula_settle(f, open, &close);
}

/* A group that is not an argument. */
static inline void formula_group(Formula *f) {
    const size_t open = f->count;
    formula_braces(f);
    size_t close = f->count - 1;
    formula_settle(f, open, &close);
    const FormulaContent c = formula_content(f, open + 1, close);
    if (c != FORMULA_SYMBOL && (c != FORMULA_COMMAND || formula_may_be_argument(f, open))) return;
    formula_remove(f, close);
    formula_remove(f, open);
}

/* The part of the text up to the bracket that closes the one at `at`, in brackets; nothing if none does. */
static inline void formula_option(Formula *f) {
    const FormulaToken t = formula_peek(f);
    if (!formula_is(t, "[")) return;
    const size_t end = f->end;
    size_t depth = 0, at = f->at + 1;
    for (; at < end && (depth || f->text[at] != ']'); at++) {
        if (f->text[at] == '\\')
            at++;
        else if (f->text[at] == '{')
            depth++;
        else if (f->text[at] == '}' && depth-- == 0)
            return;
    }
    if (at >= end) return;
    f->at++;
    formula_push_word(f, "[");
    f->end = at;
    formula_all(f);
    f->end = end;
    f->at = at + 1;
    formula_push_word(f, "]");
}

/* The delimiter behind \left and its relatives. Returns whether there is one: the empty one is none. */
static inline bool formula_delimiter(Formula *f) {
    const FormulaToken t = formula_peek(f);
    if (!formula_is_any(t, FORMULA_DELIMITERS)) return false;
    f->at += t.n;
    if (formula_is(t, ".")) return false;
    if (formula_is(t, "<"))
        formula_push_word(f, "\\langle");
    else if (formula_is(t, ">"))
        formula_push_word(f, "\\rangle");
    else
        formula_push(f, t);
    return true;
}

/* The argument of a command that takes text or a name, as one token with it: \text{a b}. Of \begin also the columns. */
static inline void formula_text(Formula *f, FormulaToken t) {
    const FormulaToken brace = formula_peek(f);
    const size_t begin = f->at, end = formula_is(brace, "{") ? formula_group_end(f, begin) : 0;
    if (end) f->at = end;
    formula_push_text(f, t, begin, end ? end : begin, formula_is_any(t, FORMULA_TEXT));
    if (!formula_is_any(f->tokens[f->count - 1], FORMULA_COLUMNS)) return;
    const FormulaToken columns = formula_peek(f);
    const size_t close = formula_is(columns, "{") ? formula_group_end(f, f->at) : 0;
    if (!close) return;
    formula_push_text(f, columns, f->at + 1, close, false);
    f->at = close;
}

/* An environment, of which \begin{...} has been written, to its end. */
static inline void formula_environment(Formula *f) {
    formula_inner(f, false);
    const FormulaToken t = formula_peek(f);
    if (!formula_is(t, "\\end")) return;
    f->at += t.n;
    formula_text(f, t);
}

/* A command, with its arguments. */
static inline void formula_command(Formula *f, FormulaToken t) {
    const size_t name = f->at, end = name + t.n;
    f->at = end;
    if (formula_is_any(t, FORMULA_STARRED)) {
        while (f->at < f->end && formula_is_space(f->text[f->at])) f->at++;
        const bool star = f->at < f->end && f->text[f->at] == '*';
        f->at = star ? f->at + 1 : end;
        if (star) {  // one token, whether there was space or not
            formula_push_text(f, t, f->at - 1, f->at, false);
            t = f->tokens[--f->count];
        }
    }
    if (formula_is_any(t, FORMULA_TEXT) || formula_is_any(t, FORMULA_NAME)) {
        formula_text(f, t);
        if (formula_is(t, "\\begin")) formula_environment(f);
        return;
    }
    const char *close = formula_is(t, "\\\\") && end < f->end && f->text[end] == '['
                            ? (const char *)memchr(f->text + end, ']', f->end - end)
                            : NULL;
    if (close) {  // \\[2pt]
        f->at = (size_t)(close - f->text) + 1;
        formula_push_text(f, t, end, f->at, false);
        return;
    }
    formula_push(f, t);
    if (formula_is_any(t, FORMULA_OPTIONAL)) formula_option(f);
    const bool two = formula_is_any(t, FORMULA_TWO) || formula_is_any(t, FORMULA_FRACTIONS);
    const bool one =
        formula_is_any(t, FORMULA_ONE) || formula_is_any(t, FORMULA_ACCENTS) || formula_is_any(t, FORMULA_ALPHABETS);
    if (one || two) formula_argument(f);
    if (two) formula_argument(f);
}

/* \left, its delimiter, and all to the \right and its delimiter; another command with a delimiter. Returns whether there is
 * a delimiter at the end, for scripts to stand behind. */
static inline bool formula_left(Formula *f, FormulaToken t) {
    f->at += t.n;
    const bool delimiter = formula_delimiter(f);
    if (!formula_is(t, "\\left")) return delimiter;
    formula_inner(f, true);
    t = formula_peek(f);
    if (!formula_is(t, "\\right")) return false;
    f->at += t.n;
    return formula_delimiter(f);
}

/* What scripts can stand behind. */
static inline void formula_nucleus(Formula *f, FormulaToken t) {
    if (formula_is(t, "{")) {
        formula_group(f);
    } else if (t.n > 1 && *t.s == '\\') {
        formula_command(f, t);
    } else {
        f->at += t.n;
        formula_push(f, t);
    }
}

/* ---- scripts ---- */

/* One script, written as ^ or _ and a group. Primes are a superscript, and take the one behind them in. */
static inline void formula_script(Formula *f, FormulaToken t) {
    const bool primes = formula_script_kind(t) == '\'';
    const size_t begin = f->count;
    f->at += t.n;
    formula_push_word(f, formula_script_kind(t) == '_' ? "_" : "^");
    if (!primes) {
        formula_argument(f);
        return;
    }
    formula_push_word(f, "{");
    formula_push_word(f, "\\prime");
    for (t = formula_peek(f); formula_script_kind(t) == '\''; t = formula_peek(f)) {
        f->at += t.n;
        formula_push_word(f, "\\prime");
    }
    if (formula_script_kind(t) == '^') {
        f->at += t.n;
        const size_t open = f->count;
        formula_argument(f);
        formula_remove(f, f->count - 1);
        formula_remove(f, open);
    }
    formula_push_word(f, "}");
    size_t close = f->count - 1;
    formula_settle(f, begin + 1, &close);
}

/* All scripts of what has just been written: first the subscripts, then the superscripts. */
static inline void formula_scripts(Formula *f) {
    size_t supers = f->count;  // where they begin
    for (FormulaToken t = formula_peek(f); formula_script_kind(t); t = formula_peek(f)) {
        const size_t begin = f->count;
        formula_script(f, t);
        const size_t size = f->count - begin;
        if (formula_script_kind(t) != '_') continue;
        formula_open(f, supers, size);  // moves it before them
        memcpy(f->tokens + supers, f->tokens + f->count - size, size * sizeof *f->tokens);
        f->count -= size;
        supers += size;
    }
}

/* Whether scripts behind token t belong to it, or to what it ends. */
static inline bool formula_takes_scripts(FormulaToken t) {
    const bool row = t.n > 1 && t.s[0] == '\\' && t.s[1] == '\\';
    return !row && !formula_is_any(t, FORMULA_NO_NUCLEUS);
}

/* ---- lists ---- */

/* Turns the only \over of tokens [begin, count), which is token `over`, into a fraction. Fonts at the beginning stay in
 * front of it: they hold for both parts. */
static inline void formula_fraction(Formula *f, size_t begin, size_t over) {
    const char *name = FORMULA_OTHER(f->tokens[over], formula_fractions);
    while (FORMULA_OTHER(f->tokens[begin], formula_fonts)) begin++;
    f->tokens[over] = (FormulaToken){"}", 1};
    formula_insert(f, over + 1, "{");
    formula_insert(f, f->count, "}");
    formula_insert(f, begin, "{");
    formula_insert(f, begin, name);
    size_t close = f->count - 1;
    formula_settle(f, over + 3, &close);
    close = over + 2;
    formula_settle(f, begin + 1, &close);
}

/* All up to a closing brace, an \end, of a list behind \left also \right; or to the end of the text. */
static inline void formula_list(Formula *f, bool left) {
    const size_t begin = f->count;
    size_t over = 0, overs = 0, cells = 0;
    for (FormulaToken t; (t = formula_peek(f)).n && !f->too_deep;) {
        if (formula_is(t, "}") || formula_is(t, "\\end") || (left && formula_is(t, "\\right"))) break;
        if (formula_is_any(t, " \\left \\right \\middle ")) {
            if (!formula_left(f, t)) continue;
        } else if (formula_script_kind(t)) {
            formula_push_word(f, "{");
            formula_push_word(f, "}");
        } else {
            if (FORMULA_OTHER(t, formula_fractions)) over = f->count, overs++;
            cells += formula_is(t, "&") || formula_is(t, "\\\\");
            formula_nucleus(f, t);
        }
        if (formula_takes_scripts(f->tokens[f->count - 1])) formula_scripts(f);
    }
    if (overs == 1 && cells == 0) formula_fraction(f, begin, over);
}

/* ---- the whole ---- */

/* All to the end of the text, with closing braces and \end that close nothing. */
static inline void formula_all(Formula *f) {
    while (formula_skip(f) && !f->too_deep) {
        formula_list(f, false);
        const FormulaToken t = formula_peek(f);
        f->at += t.n;
        if (formula_is(t, "}"))
            formula_push(f, t);
        else if (t.n)
            formula_text(f, t);
    }
}

/* Moves *begin and *end inward past dollars, \[ and \], or \( and \), that stand around all of the text. */
static inline void formula_unwrap(const char *s, size_t *begin, size_t *end) {
    for (;;) {
        while (*begin < *end && formula_is_space(s[*begin])) ++*begin;
        while (*begin < *end && formula_is_space(s[*end - 1]) && (*end < *begin + 2 || s[*end - 2] != '\\')) --*end;
        const char *a = s + *begin, *z = s + *end;
        const size_t n = *end - *begin, width = n >= 4 && (a[0] == '\\' || (a[0] == '$' && a[1] == '$')) ? 2 : 1;
        const bool square = width == 2 && a[0] == '\\' && z[-2] == '\\' &&
                            ((a[1] == '[' && z[-1] == ']') || (a[1] == '(' && z[-1] == ')'));
        const bool dollars = n >= 2 * width && a[0] == '$' && z[-1] == '$' && z[-(long)width] == '$';
        const bool kept = n >= 2 * width + 1 && z[-(long)width - 1] == '\\';  // \\] and \$ close nothing
        if ((!square && !dollars) || kept || (dollars && memchr(a + width, '$', n - 2 * width))) return;
        *begin += width;
        *end -= width;
    }
}

/* Whether the tokens from `from` to before `end` are in dollars or brackets of a display, and nothing else is. */
static inline bool formula_is_display(const Formula *f, size_t from, size_t end) {
    if (end < from + 2) return false;
    const FormulaToken a = f->tokens[from], z = f->tokens[end - 1];
    size_t dollars = 0;
    for (size_t i = from; i < end; i++) dollars += formula_is(f->tokens[i], "$");
    return (formula_is(a, "\\[") && formula_is(z, "\\]")) || (formula_is(a, "\\(") && formula_is(z, "\\)")) ||
           (dollars == 2 && formula_is(a, "$") && formula_is(z, "$"));
}

/* The tokens with a space between each two, without what makes them a display; allocated, and with a NUL behind. */
static inline char *formula_join(const Formula *f, size_t *size) {
    size_t n = 0, from = 0, end = f->count;
    for (;; from++) {
        if (formula_is_display(f, from, end))
            end--;
        else if (from == end || !formula_is(f->tokens[from], "\\displaystyle"))
            break;
    }
    for (size_t i = from; i < end; i++) n += f->tokens[i].n + 1;
    char *out = (char *)xmalloc(n + 1);
    n = 0;
    for (size_t i = from; i < end; i++) {
        if (i > from) out[n++] = ' ';
        memcpy(out + n, f->tokens[i].s, f->tokens[i].n);
        n += f->tokens[i].n;
    }
    out[n] = 0;
    *size = n;
    return out;
}

/* The normal form of a formula of n bytes, allocated; its size in *size. */
static inline char *formula_normalise(const char *text, size_t n, size_t *size) {
    Formula f = {.text = text, .end = n, .copies = (char *)xmalloc(3 * n + 1)};
    formula_unwrap(text, &f.at, &f.end);
    formula_all(&f);
    if (f.too_deep) {
        f.count = 0;
        formula_open(&f, 0, 1);
        f.tokens[0] = (FormulaToken){text, n};
    }
    char *out = formula_join(&f, size);
    free(f.copies);
    free(f.tokens);
    return out;
}

#endif
