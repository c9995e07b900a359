/* Regular expressions of pre-tokenizers, matched against ASCII text. The semantics are those of Oniguruma, which
 * `tokenizers` uses: a backtracking matcher, where the first matching alternative wins and quantifiers are greedy.
 *
 * Supported are alternatives; groups (?:...) and (?i:...) that are a whole alternative; characters, escapes, classes
 * with ranges, \s \d \w \p{L} \p{Lu} \p{Ll} \p{M} \p{N} \p{P} \p{S} and their complements; the quantifiers ? * + {m}
 * {m,n} after one character or class; lookahead and lookbehind of one character or class; $. Anything else is an
 * error that names it, above all what would depend on characters beyond ASCII. A pattern may contain such characters;
 * they never match. */
#ifndef LIB_REGEX_ASCII_H
#define LIB_REGEX_ASCII_H

#include "error.h"

#include "utf8.h"

#include <ctype.h>

enum { REGEX_MAX_ITEMS = 256 };

typedef struct {
    uint64_t bits[2];
} AsciiSet;

typedef enum {
    REGEX_REPEAT,      // min to max characters of the set
    REGEX_AHEAD,       // (?=
    REGEX_NOT_AHEAD,   // (?!
    REGEX_BEHIND,      // (?<=
    REGEX_NOT_BEHIND,  // (?<!
    REGEX_LINE_END,    // $
    REGEX_MATCH        // the end of an alternative
} RegexKind;

typedef struct {
    RegexKind kind;
    AsciiSet set;  // not of REGEX_LINE_END and REGEX_MATCH
    int min, max;  // of REGEX_REPEAT
} RegexItem;

typedef struct {
    RegexItem items[REGEX_MAX_ITEMS];  // the alternatives one after another, each ended by REGEX_MATCH
    int count;
} Regex;

typedef struct {
    const char *pattern, *at;  // NUL-terminated UTF-8
    Regex *out;
    bool fold;  // inside (?i:...)
    Error *err;
} RegexParser;

static inline bool ascii_has(const AsciiSet *set, char c) {
    uint8_t u = (uint8_t)c;
    return u < 128 && (set->bits[u >> 6] >> (u & 63) & 1);
}

static inline void ascii_add(AsciiSet *set, uint32_t low, uint32_t high) {
    for (; low <= high && low < 128; low++) set->bits[low >> 6] |= (uint64_t)1 << (low & 63);
}

static inline void ascii_invert(AsciiSet *set) {
    set->bits[0] = ~set->bits[0];
    set->bits[1] = ~set->bits[1];
}

static inline int regex_fail(const RegexParser *p, const char *what) {
    return error_set(p->err,
                     "the regular expression '%.200s' of the pre-tokenizer has %s at byte %d, which is not "
                     "supported here",
                     p->pattern, what, (int)(p->at - p->pattern));
}

/* ---- parsing a pattern ---- */

/* Consumes one character of the pattern and returns its code point. */
static inline uint32_t regex_character(RegexParser *p) {
    const uint8_t *s = (const uint8_t *)p->at;
    int length = utf8_sequence(s, strlen(p->at));  // the JSON parser has checked that the pattern is valid UTF-8
    uint32_t c = length < 2 ? s[0] : s[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++) c = c << 6 | (s[i] & 0x3f);
    p->at += length > 0 ? length : 1;
    return c;
}

/* Parses {NAME} after \p or \P, and adds the ASCII characters of that general category of Unicode to the set. */
static inline int regex_category(RegexParser *p, AsciiSet *set) {
    static const struct {
        const char *name, *ranges;  // pairs of first and last character
    } known[] = {{"{L}", "AZaz"},
                 {"{Lu}", "AZ"},
                 {"{Ll}", "az"},
                 {"{M}", ""},
                 {"{N}", "09"},
                 {"{P}", "!#%*,/:;?@[]__{{}}"},
                 {"{S}", "$$++<>^^``||~~"}};
    if (p->fold) return regex_fail(p, "a property that ignores case");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strncmp(p->at, known[i].name, strlen(known[i].name)) != 0) continue;
        p->at += strlen(known[i].name);
        for (const char *r = known[i].ranges; *r; r += 2) ascii_add(set, (uint8_t)r[0], (uint8_t)r[1]);
        return 0;
    }
    return regex_fail(p, "another property than {L}, {Lu}, {Ll}, {M}, {N}, {P} and {S}");
}

/* Parses an escape after its backslash and adds its characters to the set. *single: the character, if it stands for
 * one, else -1. */
static inline int regex_escape(RegexParser *p, AsciiSet *set, int *single) {
    static const char from[] = "rntfv", to[] = "\r\n\t\f\v";
    char c = *p->at;
    AsciiSet found = {{0, 0}};
    const char *control = c ? strchr(from, c) : NULL;
    *single = -1;
    if (!c) return regex_fail(p, "nothing behind a backslash");
    if (control || ispunct((uint8_t)c)) {
        *single = control ? to[control - from] : c;
        ascii_add(&found, (uint32_t)*single, (uint32_t)*single);
        p->at++;
    } else if (strchr("sSdDwWpP", c)) {
        p->at++;
        if (tolower(c) == 's') ascii_add(&found, '\t', '\r'), ascii_add(&found, ' ', ' ');
        if (tolower(c) == 'd' || tolower(c) == 'w') ascii_add(&found, '0', '9');
        if (tolower(c) == 'w') ascii_add(&found, 'A', 'Z'), ascii_add(&found, 'a', 'z'), ascii_add(&found, '_', '_');
        if (tolower(c) == 'p' && regex_category(p, &found) != 0) return -1;
        if (isupper((uint8_t)c)) ascii_invert(&found);
    } else {
        return regex_fail(p, "another escape than \\r \\n \\t \\f \\v \\s \\d \\w \\p");
    }
    set->bits[0] |= found.bits[0];
    set->bits[1] |= found.bits[1];
    return 0;
}

/* Parses a class after its opening bracket and adds its characters to the set. */
static inline int regex_class(RegexParser *p, AsciiSet *set) {
    bool inverted = *p->at == '^';
    p->at += inverted;
    if (inverted && p->fold) return regex_fail(p, "an inverted class that ignores case");
    if (*p->at == ']') return regex_fail(p, "an empty class");
    while (*p->at != ']') {
        int single = -1;
        int64_t low, high;
        if (!*p->at) return regex_fail(p, "a class without an end");
        if (*p->at == '[' || !strncmp(p->at, "&&", 2)) return regex_fail(p, "a class inside a class");
        if (*p->at == '\\') {
            p->at++;
            if (regex_escape(p, set, &single) != 0) return -1;
            if (single < 0) continue;
            low = single;
        } else {
            low = regex_character(p);
        }
        high = low;
        if (*p->at == '-' && p->at[1] && p->at[1] != ']') {
            p->at++;
            if (*p->at == '[' || *p->at == '\\') return regex_fail(p, "a range that ends in an escape or a class");
            high = regex_character(p);
            if (high < low) return regex_fail(p, "a range that runs backwards");
        }
        ascii_add(set, (uint32_t)low, (uint32_t)high);
    }
    p->at++;
    if (inverted) ascii_invert(set);
    return 0;
}

/* Parses a character, an escape or a class, and sets `set` to the characters it matches. */
static inline int regex_set(RegexParser *p, AsciiSet *set) {
    int single;
    char c = *p->at;
    memset(set, 0, sizeof *set);
    if (c == '[' || c == '\\') {
        p->at++;
        if ((c == '[' ? regex_class(p, set) : regex_escape(p, set, &single)) != 0) return -1;
    } else if (!c || strchr("()]{}|*+?.^$", c)) {
        return regex_fail(p, c ? "an operator" : "an end");
    } else {
        uint32_t code = regex_character(p);
        ascii_add(set, code, code);
    }
    for (char letter = 'a'; p->fold && letter <= 'z'; letter++)
        if (ascii_has(set, letter) || ascii_has(set, (char)(letter - 32)))
            ascii_add(set, (uint8_t)letter, (uint8_t)letter),
                ascii_add(set, (uint8_t)letter - 32u, (uint8_t)letter - 32u);
    return 0;
}

/* Parses the quantifier of an item, if it has one. */
static inline int regex_quantifier(RegexParser *p, RegexItem *item) {
    item->min = item->max = 1;
    char c = *p->at;
    if (c == '?' || c == '*' || c == '+') {
        item->min = c == '+';
        item->max = c == '?' ? 1 : INT32_MAX;
        p->at++;
    } else if (c == '{') {
        int used = 0;
        if (sscanf(p->at, "{%4d%n", &item->min, &used) != 1) return regex_fail(p, "a brace that is no quantifier");
        p->at += used;
        item->max = item->min;
        if (*p->at == ',') {
            used = 0;
            if (sscanf(p->at, ",%4d%n", &item->max, &used) != 1)
                return regex_fail(p, "a brace without an upper limit");
            p->at += used;
        }
        if (*p->at != '}' || item->min < 0 || item->max < item->min || item->max < 1)
            return regex_fail(p, "a brace that is no quantifier");
        p->at++;
    } else {
        return 0;
    }
    return *p->at && strchr("?+*{", *p->at) ? regex_fail(p, "a lazy, possessive or doubled quantifier") : 0;
}

static inline RegexItem *regex_new_item(RegexParser *p, RegexKind kind) {
    if (p->out->count == REGEX_MAX_ITEMS) {
        regex_fail(p, "more than 256 parts");
        return NULL;
    }
    RegexItem *item = &p->out->items[p->out->count++];
    memset(item, 0, sizeof *item);
    item->kind = kind;
    return item;
}

/* Parses one alternative, up to | or ) or the end. */
static inline int regex_alternative(RegexParser *p) {
    static const char *const lookarounds[] = {"(?=", "(?!", "(?<=", "(?<!"};  // in the order of RegexKind
    int min_length = 0;
    while (*p->at && *p->at != '|' && *p->at != ')') {
        int i = 0;
        while (i < 4 && strncmp(p->at, lookarounds[i], strlen(lookarounds[i])) != 0) i++;
        RegexKind kind = i < 4 ? REGEX_AHEAD + i : *p->at == '$' ? REGEX_LINE_END : REGEX_REPEAT;
        RegexItem *item = regex_new_item(p, kind);
        if (!item) return -1;
        if (kind == REGEX_LINE_END) {
            p->at++;
        } else if (i < 4) {
            p->at += strlen(lookarounds[i]);
            if (regex_set(p, &item->set) != 0) return -1;
            if (*p->at != ')') return regex_fail(p, "a look at more than one character");
            p->at++;
        } else {
            if (*p->at == '(') return regex_fail(p, "a group that is not a whole alternative");
            if (regex_set(p, &item->set) != 0 || regex_quantifier(p, item) != 0) return -1;
            min_length |= item->min;
        }
    }
    if (!min_length) return regex_fail(p, "an alternative that can match nothing");
    return regex_new_item(p, REGEX_MATCH) ? 0 : -1;
}

/* Compiles a pattern, which need not stay valid. Returns -1 with a sentence if it is not supported. */
static inline int regex_parse(Regex *r, const char *pattern, Error *err) {
    RegexParser p = {pattern, pattern, r, false, err};
    r->count = 0;
    for (;;) {
        bool group = !strncmp(p.at, "(?:", 3) || !strncmp(p.at, "(?i:", 4);
        p.fold = group && p.at[2] == 'i';
        p.at += group ? 3 + p.fold : 0;
        if (regex_alternative(&p) != 0) return -1;
        while (group && *p.at == '|') {
            p.at++;
            if (regex_alternative(&p) != 0) return -1;
        }
        if (group && *p.at != ')') return regex_fail(&p, "a group without an end");
        p.at += group;
        if (!*p.at) return 0;
        if (*p.at != '|') return regex_fail(&p, "more behind a group or a parenthesis");
        p.at++;
    }
}

/* ---- matching ---- */

typedef struct {
    const Regex *regex;
    const char *text;
    size_t n;
    int64_t steps;  // steps left before the search is given up, because backtracking can take exponential time
} RegexSearch;

/* Matches the items from `item` on against the text from `at` on. Returns the end of the match, or -1. */
static inline int64_t regex_match(RegexSearch *s, const RegexItem *item, size_t at) {
    bool yes;
    if (--s->steps < 0) return -1;
    switch (item->kind) {
    case REGEX_MATCH: return at;
    case REGEX_LINE_END: yes = at == s->n || s->text[at] == '\n'; break;
    case REGEX_AHEAD: yes = at < s->n && ascii_has(&item->set, s->text[at]); break;
    case REGEX_NOT_AHEAD: yes = at == s->n || !ascii_has(&item->set, s->text[at]); break;
    case REGEX_BEHIND: yes = at > 0 && ascii_has(&item->set, s->text[at - 1]); break;
    case REGEX_NOT_BEHIND: yes = at == 0 || !ascii_has(&item->set, s->text[at - 1]); break;
    default: {
        size_t count = 0;
        while (at + count < s->n && count < (size_t)item->max && ascii_has(&item->set, s->text[at + count])) count++;
        for (; count + 1 > (size_t)item->min; count--) {
            int64_t end = regex_match(s, item + 1, at + count);
            if (end >= 0 || s->steps < 0 || count == 0) return end;
        }
        return -1;
    }
    }
    return yes ? regex_match(s, item + 1, at) : -1;
}

/* Finds the first match at or after `from`, text[*begin .. *end). */
static inline bool regex_find(RegexSearch *s, size_t from, size_t *begin, size_t *end) {
    for (; from < s->n; from++) {
        for (int i = 0; i < s->regex->count; i++) {
            int64_t found = regex_match(s, &s->regex->items[i], from);
            if (s->steps < 0) return false;
            if (found >= 0) {
                *begin = from;
                *end = found;
                return true;
            }
            while (s->regex->items[i].kind != REGEX_MATCH) i++;
        }
    }
    return false;
}

#endif
