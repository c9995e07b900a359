/* Texts as sequences of 32-bit symbols: code points, or ids of tokens. All metrics of texts compare such sequences. */
#ifndef METRICS_SYMBOLS_H
#define METRICS_SYMBOLS_H

#include "../lib/error.h"
#include "../lib/hash.h"
#include "../lib/utf8.h"

typedef struct {
    uint32_t *s;
    size_t n, capacity;
} Symbols;

static inline void symbols_free(Symbols *x) {
    free(x->s);
    memset(x, 0, sizeof *x);
}

static inline void symbols_reserve(Symbols *x, size_t more) {
    if (x->capacity - x->n >= more) return;
    x->capacity = 2 * (x->n + more) + 16;
    x->s = (uint32_t *)xrealloc(x->s, x->capacity * sizeof *x->s);
}

static inline void symbols_push(Symbols *x, uint32_t symbol) {
    symbols_reserve(x, 1);
    x->s[x->n++] = symbol;
}

static inline void symbols_append(Symbols *x, const uint32_t *s, size_t n) {
    symbols_reserve(x, n);
    if (n) memcpy(x->s + x->n, s, n * sizeof *s);
    x->n += n;
}

/* Appends ASCII characters. */
static inline void symbols_append_ascii(Symbols *x, const char *s) {
    for (; *s; s++) symbols_push(x, (uint8_t)*s);
}

/* Whether ASCII text `word` stands at position `at`. */
static inline bool symbols_have(const uint32_t *s, size_t n, size_t at, const char *word) {
    for (; *word; word++, at++)
        if (at >= n || s[at] != (uint8_t)*word) return false;
    return true;
}

/* Appends the code points of UTF-8 text. What is not valid becomes U+FFFD, one for the longest valid beginning of a
 * character, as Python's errors="replace" does. */
static inline void symbols_decode(Symbols *x, const char *text, size_t n) {
    const uint8_t *s = (const uint8_t *)text;
    symbols_reserve(x, n);
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t c = s[i];
        if (utf8_scan(s + i, n - i, &length) != UTF8_COMPLETE)
            c = 0xfffd;
        else if (length > 1)
            c &= 0x7fu >> length;
        for (size_t k = 1; k < length && c != 0xfffd; k++) c = c << 6 | (s[i + k] & 0x3f);
        symbols_push(x, c);
    }
}

/* White space, as Python's str.isspace and its regular expressions' \s. */
static inline bool symbol_is_space(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static inline bool symbol_is_letter(uint32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static inline bool symbol_is_digit(uint32_t c) { return c >= '0' && c <= '9'; }

/* Moves *begin and *end inward past white space. */
static inline void symbols_strip(const uint32_t *s, size_t *begin, size_t *end) {
    while (*begin < *end && symbol_is_space(s[*begin])) ++*begin;
    while (*begin < *end && symbol_is_space(s[*end - 1])) --*end;
}

/* ---- tokens as ids ---- */

/* Gives equal tokens equal ids, 0, 1, 2, ... in the order in which they come. Initialise with zeros. */
typedef struct {
    Symbols text;            // code points of all tokens
    size_t *begin;           // [count + 1] of each token in `text`
    uint32_t count, *slots;  // slots: id + 1 of a token, 0: free; at most half of them are taken
    size_t slot_count, capacity;
} SymbolTable;

static inline void symbol_table_free(SymbolTable *t) {
    symbols_free(&t->text);
    free(t->begin);
    free(t->slots);
    memset(t, 0, sizeof *t);
}

/* The slot of a token, or the free slot where it belongs. */
static inline size_t symbol_table_slot(const SymbolTable *t, const uint32_t *s, size_t n) {
    size_t at = hash_slot(hash_bytes(HASH_BEGIN, s, n * sizeof *s), t->slot_count);
    for (; t->slots[at]; at = (at + 1) & (t->slot_count - 1)) {
        const size_t begin = t->begin[t->slots[at] - 1], size = t->begin[t->slots[at]] - begin;
        if (size == n && (n == 0 || !memcmp(t->text.s + begin, s, n * sizeof *s))) break;
    }
    return at;
}

static inline void symbol_table_grow(SymbolTable *t) {
    t->slot_count = t->slot_count ? 2 * t->slot_count : 1024;
    free(t->slots);
    t->slots = (uint32_t *)xcalloc(t->slot_count, sizeof *t->slots);
    for (uint32_t i = 0; i < t->count; i++) {
        const size_t begin = t->begin[i];
        t->slots[symbol_table_slot(t, t->text.s + begin, t->begin[i + 1] - begin)] = i + 1;
    }
}

/* The id of a token of n code points, a new one if it has not been seen. */
static inline uint32_t symbol_table_id(SymbolTable *t, const uint32_t *s, size_t n) {
    if (2 * ((size_t)t->count + 1) > t->slot_count) symbol_table_grow(t);
    const size_t at = symbol_table_slot(t, s, n);
    if (t->slots[at]) return t->slots[at] - 1;
    if (t->count + 2 > t->capacity) {
        t->capacity = 2 * ((size_t)t->count + 2);
        t->begin = (size_t *)xrealloc(t->begin, t->capacity * sizeof *t->begin);
        t->begin[0] = 0;
    }
    symbols_append(&t->text, s, n);
    t->begin[t->count + 1] = t->text.n;
    t->slots[at] = ++t->count;
    return t->count - 1;
}

/* Appends to `ids` the ids of the words of a text: what stands between white space. */
static inline void symbols_of_words(SymbolTable *t, Symbols *ids, const uint32_t *s, size_t n) {
    for (size_t i = 0; i < n;) {
        while (i < n && symbol_is_space(s[i])) i++;
        const size_t begin = i;
        while (i < n && !symbol_is_space(s[i])) i++;
        if (i > begin) symbols_push(ids, symbol_table_id(t, s + begin, i - begin));
    }
}

#endif
