/* The words of a formula, and the writer that copies them with colours between them, for metrics/cdm_colour.h. */
#ifndef METRICS_CDM_WORDS_H
#define METRICS_CDM_WORDS_H

#include "../lib/error.h"

#include <ctype.h>

/* A part of the formula. */
typedef struct {
    const char *at;
    int n;
} CdmWord;

typedef struct {
    CdmWord word, font;  // font: of the command that sets it, such as \mathbf; n is 0 without one
} CdmToken;

enum { CDM_LEVELS = 16, CDM_TOKENS = CDM_LEVELS * CDM_LEVELS * CDM_LEVELS - 2, CDM_DEPTH = 100, CDM_KEEP = -1 };

typedef struct {
    const char *at, *end;  // what is left of the formula
    char *out;             // the coloured formula
    size_t used, capacity;
    CdmToken *tokens;  // that of colour c is tokens[c - 1]; colour 0 is black
    int count, token_capacity, depth;
    CdmWord font;
    const char *problem;  // NULL: none
} CdmColouring;

/* ---- words ---- */

static inline bool cdm_equal(CdmWord a, CdmWord b) {
    return a.n == b.n && (a.n == 0 || !memcmp(a.at, b.at, (size_t)a.n));
}

static inline bool cdm_is(CdmWord a, const char *text) {
    return (size_t)a.n == strlen(text) && !memcmp(a.at, text, (size_t)a.n);
}

/* Whether a word is in a list, in which spaces separate words. */
static inline bool cdm_in(CdmWord a, const char *list) {
    for (const char *p = list; *p; p += strspn(p, " ")) {
        const size_t n = strcspn(p, " ");
        if (n == (size_t)a.n && !memcmp(p, a.at, n)) return true;
        p += n;
    }
    return false;
}

/* The next word: a command, or a character of UTF-8; n is 0 at the end. */
static inline CdmWord cdm_peek(const CdmColouring *c) {
    const char *p = c->at;
    if (p == c->end) return (CdmWord){p, 0};
    const bool command = *p++ == '\\';
    if (command && p < c->end && isalpha((unsigned char)*p))
        while (p < c->end && isalpha((unsigned char)*p)) p++;
    else {
        if (command && p < c->end) p++;
        while (p < c->end && ((unsigned char)*p & 0xc0) == 0x80) p++;
    }
    return (CdmWord){c->at, (int)(p - c->at)};
}

static inline void cdm_put(CdmColouring *c, const char *text, size_t n) {
    if (c->used + n + 1 > c->capacity) {
        c->capacity = 2 * (c->used + n + 64);
        c->out = (char *)xrealloc(c->out, c->capacity);
    }
    memcpy(c->out + c->used, text, n);
    c->used += n;
    c->out[c->used] = '\0';
}

static inline void cdm_put_text(CdmColouring *c, const char *text) { cdm_put(c, text, strlen(text)); }

static inline void cdm_put_word(CdmColouring *c, CdmWord word) { cdm_put(c, word.at, (size_t)word.n); }

/* Skips white space and comments; one space stands for them. */
static inline void cdm_spaces(CdmColouring *c) {
    const char *begin = c->at;
    while (c->at < c->end && (strchr(" \t\r\n", *c->at) || *c->at == '%')) {
        if (*c->at == '%')
            while (c->at < c->end && *c->at != '\n') c->at++;
        else
            c->at++;
    }
    if (c->at > begin) cdm_put_text(c, " ");
}

static inline CdmWord cdm_next(CdmColouring *c) {
    const CdmWord word = cdm_peek(c);
    c->at += word.n;
    return word;
}

/* Whether the next character is this one; then it is taken and written. */
static inline bool cdm_take(CdmColouring *c, char character) {
    if (c->at == c->end || *c->at != character) return false;
    cdm_put(c, c->at++, 1);
    return true;
}

/* A group that is no formula, such as a length: copied, or without `keep` left out. */
static inline void cdm_copy_group(CdmColouring *c, char open, char close, bool keep) {
    int depth = 0;
    cdm_spaces(c);
    if (c->at == c->end || *c->at != open) return;
    const char *begin = c->at;
    do {
        depth += *c->at == open ? 1 : *c->at == close ? -1 : 0;
        c->at++;
    } while (depth > 0 && c->at < c->end);
    if (keep) cdm_put(c, begin, (size_t)(c->at - begin));
}

/* A length after a command, such as -3mu. */
static inline void cdm_copy_length(CdmColouring *c) {
    cdm_spaces(c);
    while (c->at < c->end && strchr("+-.0123456789 ", *c->at)) cdm_put(c, c->at++, 1);
    for (int i = 0; i < 2 && c->at < c->end && isalpha((unsigned char)*c->at); i++) cdm_put(c, c->at++, 1);
}

/* ---- colours ---- */

/* Sets the colour of what TeX ships out next; CDM_KEEP: does nothing. */
static inline void cdm_set(CdmColouring *c, int colour) {
    char text[96];
    if (colour == CDM_KEEP) return;
    const double r = (double)(colour / 256) / 15, g = (double)(colour / 16 % 16) / 15, b = (double)(colour % 16) / 15;
    snprintf(text, sizeof text, "\\pdfliteral{%.4f %.4f %.4f rg %.4f %.4f %.4f RG}", r, g, b, r, g, b);
    cdm_put_text(c, text);
}

/* Begins a token: sets its colour, and returns it. */
static inline int cdm_token(CdmColouring *c, CdmWord word) {
    if (c->count == CDM_TOKENS) {
        c->problem = "it has too many symbols";
        c->at = c->end;
        return 0;
    }
    if (c->count == c->token_capacity) {
        c->token_capacity = 2 * c->token_capacity + 64;
        c->tokens = (CdmToken *)xrealloc(c->tokens, (size_t)c->token_capacity * sizeof *c->tokens);
    }
    c->tokens[c->count++] = (CdmToken){word, c->font};
    cdm_set(c, c->count);
    return c->count;
}

#endif
