/* What CrystalBLEU and TexEditDistance compare (Belouadi et al. 2024, "DeTikZify"): the tokens of a TeX text, and its
 * normalised characters. */
#ifndef METRICS_TEX_TOKENS_H
#define METRICS_TEX_TOKENS_H

#include "moses.h"
#include "tex_lexer.h"

/* Appends to `ids` the tokens of a TeX text for CrystalBLEU: those of the lexer without comments and white space; text,
 * options and what is in math are split further by the Moses tokenizer. */
static inline void tex_tokens(SymbolTable *table, Symbols *ids, const char *text, size_t bytes) {
    TexLexer x;
    TexLexeme t;
    Moses moses = {{NULL, 0, 0}, {NULL, 0, 0}};
    tex_lexer_begin(&x, text, bytes);
    while (tex_lexer_next(&x, &t)) {
        symbols_strip(x.text.s, &t.begin, &t.end);
        const uint32_t *s = x.text.s + t.begin;
        const size_t n = t.end - t.begin;
        if (n == 0 || t.kind == LEX_COMMENT) continue;
        if (t.kind == LEX_WHOLE) {
            symbols_push(ids, symbol_table_id(table, s, n));
            continue;
        }
        moses_tokenize(&moses, s, n);
        symbols_of_words(table, ids, moses.text.s, moses.text.n);
    }
    tex_lexer_end(&x);
    moses_free(&moses);
}

/* ---- TexEditDistance ---- */

/* Replaces each `from` by `to`, in place; `to` is not longer. */
static inline void tex_replace(Symbols *x, const char *from, const char *to) {
    size_t n = 0;
    for (size_t i = 0; i < x->n;) {
        if (!symbols_have(x->s, x->n, i, from)) {
            x->s[n++] = x->s[i++];
            continue;
        }
        for (const char *c = to; *c; c++) x->s[n++] = (uint8_t)*c;
        i += strlen(from);
    }
    x->n = n;
}

static inline bool tex_digit(uint32_t c) { return symbol_is_digit(c) || (c >= 0xff10 && c <= 0xff19); }

/* "0 . 1" becomes "0.1"; "Mr x" becomes "Mr.", whatever x is: that is what torchmetrics does. */
static inline void tex_join_english(Symbols *x) {
    static const char *const titles[] = {"Dr ", "Jr ", "Prof ", "Rev ", "Gen ", "Mr ", "Mt ", "Mrs ", "Ms "};
    size_t n = 0;
    const uint32_t *s = x->s;
    for (size_t i = 0; i < x->n;) {
        const bool join = i + 4 < x->n && tex_digit(s[i]) && s[i + 1] == ' ' &&
                          (s[i + 2] == '.' || s[i + 2] == ',') && s[i + 3] == ' ' && tex_digit(s[i + 4]);
        x->s[n++] = s[i];
        if (join) x->s[n++] = s[i + 2], x->s[n++] = s[i + 4];
        i += join ? 5 : 1;
    }
    x->n = n;
    n = 0;
    for (size_t i = 0, k; i < x->n; n++) {
        for (k = 0; k < sizeof titles / sizeof *titles && !symbols_have(s, x->n, i, titles[k]);) k++;
        const size_t length = k < sizeof titles / sizeof *titles ? strlen(titles[k]) : 0;
        if (length == 0 || i + length >= x->n) {
            x->s[n] = s[i++];
            continue;
        }
        for (size_t j = 0; j + 1 < length; j++) x->s[n++] = s[i + j];
        x->s[n] = '.';
        i += length + 1;
    }
    x->n = n;
    tex_replace(x, "e . g .", "e.g.");
    tex_replace(x, "i . e .", "i.e.");
    tex_replace(x, "U . S .", "U.S.");
}

/* Prepares English text as torchmetrics' extended edit distance does: a space before . ! ? and , but not in numbers and
 * some abbreviations. Differs from it in that only ASCII and full-width digits are digits. */
static inline void tex_prepare_english(Symbols *out, const uint32_t *s, size_t n) {
    out->n = 0;
    for (size_t i = 0; i < n; i++) {
        const bool space = symbol_is_space(s[i]);
        if ((space || tex_lex_is(s[i], ".!?,")) && !(out->n && out->s[out->n - 1] == ' ')) symbols_push(out, ' ');
        if (!space) symbols_push(out, s[i]);
    }
    tex_join_english(out);
}

/* Appends the characters that TexEditDistance compares: a space, then each word of the lexer's tokens, without comments,
 * and a space; a text without words gives two spaces. */
static inline void tex_characters(Symbols *out, const char *text, size_t bytes) {
    TexLexer x;
    TexLexeme t;
    Symbols english = {NULL, 0, 0};
    const size_t begin = out->n;
    tex_lexer_begin(&x, text, bytes);
    symbols_push(out, ' ');
    while (tex_lexer_next(&x, &t)) {
        const uint32_t *s = x.text.s + t.begin;
        size_t n = t.end - t.begin;
        if (t.kind == LEX_COMMENT) continue;
        if (t.kind == LEX_TEXT) {
            tex_prepare_english(&english, s, n);
            s = english.s;
            n = english.n;
        }
        for (size_t i = 0; i < n; i++) {
            if (symbol_is_space(s[i])) continue;
            symbols_push(out, s[i]);
            if (i + 1 == n || symbol_is_space(s[i + 1])) symbols_push(out, ' ');
        }
    }
    if (out->n == begin + 1) symbols_push(out, ' ');
    tex_lexer_end(&x);
    symbols_free(&english);
}

#endif
