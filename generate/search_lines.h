/* Lines of a text that comes token by token. A line ends with "\n", "\r\n" or "\r", as TeX reads files. */
#ifndef GENERATE_SEARCH_LINES_H
#define GENERATE_SEARCH_LINES_H

#include "../lib/tokenizer.h"

enum { LAST_NOTHING, LAST_LF, LAST_CR, LAST_OTHER };

/* One token of a vocabulary. */
typedef struct {
    int breaks;      // line ends in it
    uint8_t last;    // its last byte; LAST_NOTHING: it has no text
    bool begins_lf;  // with "\n", which belongs to a "\r" before it
    bool line_end;   // it contains "\n" or "\r"
    bool ends;       // it ends the program
} TokenLines;

/* Of a text so far. */
typedef struct {
    int breaks;
    uint8_t last;
} LineCount;

static inline TokenLines token_lines(const uint8_t *text, size_t n, bool ends) {
    TokenLines t = {.begins_lf = n > 0 && text[0] == '\n', .ends = ends};
    for (size_t i = 0; i < n; i++)
        t.breaks += text[i] == '\r' || (text[i] == '\n' && (i == 0 || text[i - 1] != '\r'));
    t.line_end = t.breaks > 0;
    if (n > 0) t.last = text[n - 1] == '\n' ? LAST_LF : text[n - 1] == '\r' ? LAST_CR : LAST_OTHER;
    return t;
}

/* The table of a tokenizer's tokens, allocated [vocab]; ids that the tokenizer does not know have no text. */
static inline TokenLines *token_lines_of(const Tokenizer *t, int vocab) {
    TokenLines *table = (TokenLines *)xcalloc((size_t)vocab, sizeof *table);
    for (int i = 0; i < vocab; i++) {
        const uint8_t *text;
        const size_t n = tokenizer_piece(t, i, &text);
        table[i] = token_lines(text, n, tokenizer_ends(t, i));
    }
    return table;
}

static inline void line_count_add(LineCount *c, const TokenLines *t) {
    c->breaks += t->breaks - (t->begins_lf && c->last == LAST_CR);
    if (t->last != LAST_NOTHING) c->last = t->last;
}

/* Lines that have begun; the last one may be incomplete. */
static inline int line_count_lines(const LineCount *c) { return c->breaks + (c->last == LAST_OTHER); }

/* Whether the text ends with a line. */
static inline bool line_count_at_end(const LineCount *c) { return c->last == LAST_LF || c->last == LAST_CR; }

#endif
