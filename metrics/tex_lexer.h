/* A lexer of TeX texts for CrystalBLEU and TexEditDistance, which are defined by the tokens of Pygments' TexLexer: it gives
 * the same tokens. (lib/tex_walk.h is for tools: it knows environments and statements, which Pygments does not.)
 *
 *   TexLexer x;  TexLexeme t;
 *   tex_lexer_begin(&x, text, bytes);
 *   while (tex_lexer_next(&x, &t)) ... t.kind, x.text.s[t.begin .. t.end) ...
 *   tex_lexer_end(&x);
 *
 * The modes: TeX outside math; just behind a command, where [options] and * belong to it; inline and display math. As in
 * Pygments, math does not nest, and what was not closed goes on to the end of the text. */
#ifndef METRICS_TEX_LEXER_H
#define METRICS_TEX_LEXER_H

#include "symbols.h"

/* Pygments' token types, as far as the metrics distinguish them. */
typedef enum {
    LEX_COMMENT,  // Comment
    LEX_TEXT,     // Text
    LEX_WORDS,    // Name.Attribute, Name.Builtin: options; braces, & _ ^; what is in math besides commands
    LEX_WHOLE     // all others: commands, $, \[ and their like; in math also numbers and operators
} TexLexKind;

typedef struct {
    TexLexKind kind;
    size_t begin, end;  // in the text
} TexLexeme;

typedef enum { LEX_OUTSIDE, LEX_BEHIND_COMMAND, LEX_INLINE, LEX_DISPLAY } TexLexMode;

typedef struct {
    Symbols text;  // code points, with line ends as \n, without empty lines at both ends, with one \n at the end
    size_t at;
    TexLexMode mode;
} TexLexer;

static inline void tex_lexer_begin(TexLexer *x, const char *text, size_t bytes) {
    memset(x, 0, sizeof *x);
    Symbols *t = &x->text;
    symbols_decode(t, text, bytes);
    size_t n = 0, from = t->n && t->s[0] == 0xfeff;  // a byte order mark
    for (; from < t->n; from++) {
        const bool cr = t->s[from] == '\r';
        if (cr && from + 1 < t->n && t->s[from + 1] == '\n') from++;
        if (n || !(cr || t->s[from] == '\n')) t->s[n++] = cr ? '\n' : t->s[from];
    }
    while (n && t->s[n - 1] == '\n') n--;
    t->n = n;
    symbols_push(t, '\n');
}

static inline void tex_lexer_end(TexLexer *x) { symbols_free(&x->text); }

static inline bool tex_lex_is(uint32_t c, const char *list) { return c && c < 0x80 && strchr(list, (int)c); }

/* The end of a run of characters that are not in `stops`. */
static inline size_t tex_lex_until(const TexLexer *x, size_t at, const char *stops) {
    while (at < x->text.n && !tex_lex_is(x->text.s[at], stops)) at++;
    return at;
}

/* The end of the command that begins with the backslash at `at`; at + 1 if nothing follows it in its line. */
static inline size_t tex_lex_command(const TexLexer *x, size_t at) {
    const uint32_t *s = x->text.s;
    if (++at >= x->text.n || s[at] == '\n') return at;
    if (!symbol_is_letter(s[at])) return at + 1;
    while (at < x->text.n && symbol_is_letter(s[at])) at++;
    return at;
}

/* [options] or * behind a command. Returns whether there is one of them. */
static inline bool tex_lex_options(const TexLexer *x, TexLexeme *t) {
    const uint32_t c = x->text.s[t->begin];
    const size_t close = c == '[' ? tex_lex_until(x, t->begin + 1, "]\n") : 0;
    if (c != '*' && (!close || close >= x->text.n || x->text.s[close] != ']')) return false;
    t->kind = c == '*' ? LEX_WHOLE : LEX_WORDS;
    t->end = c == '*' ? t->begin + 1 : close + 1;
    return true;
}

/* Comments and the characters that are tokens everywhere. Returns whether there is one of them. */
static inline bool tex_lex_general(const TexLexer *x, TexLexeme *t) {
    const uint32_t c = x->text.s[t->begin];
    t->kind = c == '%' ? LEX_COMMENT : LEX_WORDS;
    t->end = c == '%' ? tex_lex_until(x, t->begin, "\n") + 1 : t->begin + 1;
    return tex_lex_is(c, "%{}&_^");
}

static inline void tex_lex_outside(TexLexer *x, TexLexeme *t) {
    const uint32_t c = x->text.s[t->begin], next = x->text.s[t->begin + (t->begin + 1 < x->text.n)];
    if (tex_lex_general(x, t)) return;
    t->kind = LEX_WHOLE;
    if (c == '$' || (c == '\\' && (next == '[' || next == '('))) {
        const bool display = c == '$' ? next == '$' : next == '[';
        t->end = t->begin + 1 + (c == '\\' || display);
        x->mode = display ? LEX_DISPLAY : LEX_INLINE;
    } else if (c == '\\') {
        t->end = tex_lex_command(x, t->begin);
        x->mode = LEX_BEHIND_COMMAND;
    } else {
        t->kind = LEX_TEXT;
        t->end = tex_lex_until(x, t->begin, "\\$%&_^{}");
    }
}

static inline void tex_lex_math(TexLexer *x, TexLexeme *t) {
    const bool display = x->mode == LEX_DISPLAY;
    const uint32_t c = x->text.s[t->begin], next = x->text.s[t->begin + (t->begin + 1 < x->text.n)];
    if (tex_lex_general(x, t)) return;
    t->kind = LEX_WHOLE;
    if (c == '$' && display && next != '$') {
        t->kind = LEX_WORDS;
    } else if (c == '$' || (c == '\\' && next == (display ? ']' : ')'))) {
        t->end = t->begin + 1 + (c == '\\' || display);
        x->mode = LEX_OUTSIDE;
    } else if (c == '\\') {
        t->end = tex_lex_command(x, t->begin);
    } else if (symbol_is_digit(c)) {
        while (t->end < x->text.n && symbol_is_digit(x->text.s[t->end])) t->end++;
    } else if (!tex_lex_is(c, "-=!+*/()[]")) {
        t->kind = LEX_WORDS;
        t->end = tex_lex_until(x, t->begin, "=!+*/()[]\\$%&_^{}0123456789-");
    }
}

/* Reads the next token. Returns false at the end of the text. */
static inline bool tex_lexer_next(TexLexer *x, TexLexeme *t) {
    if (x->at >= x->text.n) return false;
    t->begin = x->at;
    if (x->mode != LEX_BEHIND_COMMAND || !tex_lex_options(x, t)) {
        if (x->mode == LEX_BEHIND_COMMAND) x->mode = LEX_OUTSIDE;
        if (x->mode == LEX_OUTSIDE)
            tex_lex_outside(x, t);
        else
            tex_lex_math(x, t);
    }
    x->at = t->end;
    return true;
}

#endif
