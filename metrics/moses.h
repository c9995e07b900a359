/* The Moses tokenizer for English text (Koehn et al. 2007; its tokenizer.perl as ported by sacremoses), on code points:
 * splits off punctuation and symbols, keeps numbers with a comma, runs of full stops and abbreviations together, and
 * writes &apos; for ' and so on. The order of the steps is theirs, because each sees the spaces that the last one made.
 *
 * Two differences from sacremoses, both outside the scripts of Latin, Greek, Cyrillic, Armenian and kana, where letters and
 * digits are known exactly: a letter of another script is a token of its own, as Chinese characters are there too; and
 * whether a full stop belongs to its word because a small letter follows is known for ASCII, Latin-1, Greek and Russian. */
#ifndef METRICS_MOSES_H
#define METRICS_MOSES_H

#include "symbols.h"

/* ---- characters ---- first and last of each range, in ascending order */

static const uint16_t moses_letters[][2] = {
    {0x41, 0x5a},     {0x61, 0x7a},     {0xaa, 0xaa},     {0xb5, 0xb5},     {0xba, 0xba},     {0xc0, 0xd6},
    {0xd8, 0xf6},     {0xf8, 0x2c1},    {0x2c6, 0x2d1},   {0x2e0, 0x2e4},   {0x2ec, 0x2ec},   {0x2ee, 0x2ee},
    {0x345, 0x345},   {0x370, 0x374},   {0x376, 0x377},   {0x37a, 0x37d},   {0x37f, 0x37f},   {0x386, 0x386},
    {0x388, 0x38a},   {0x38c, 0x38c},   {0x38e, 0x3a1},   {0x3a3, 0x3f5},   {0x3f7, 0x481},   {0x48a, 0x52f},
    {0x531, 0x556},   {0x559, 0x559},   {0x561, 0x587},   {0x1e00, 0x1f15}, {0x1f18, 0x1f1d}, {0x1f20, 0x1f45},
    {0x1f48, 0x1f4d}, {0x1f50, 0x1f57}, {0x1f59, 0x1f59}, {0x1f5b, 0x1f5b}, {0x1f5d, 0x1f5d}, {0x1f5f, 0x1f7d},
    {0x1f80, 0x1fb4}, {0x1fb6, 0x1fbc}, {0x1fbe, 0x1fbe}, {0x1fc2, 0x1fc4}, {0x1fc6, 0x1fcc}, {0x1fd0, 0x1fd3},
    {0x1fd6, 0x1fdb}, {0x1fe0, 0x1fec}, {0x1ff2, 0x1ff4}, {0x1ff6, 0x1ffc}, {0x2071, 0x2071}, {0x207f, 0x207f},
    {0x2090, 0x209c}, {0x2102, 0x2102}, {0x2107, 0x2107}, {0x210a, 0x2113}, {0x2115, 0x2115}, {0x2119, 0x211d},
    {0x2124, 0x2124}, {0x2126, 0x2126}, {0x2128, 0x2128}, {0x212a, 0x212d}, {0x212f, 0x2139}, {0x213c, 0x213f},
    {0x2145, 0x2149}, {0x214e, 0x214e}, {0x2160, 0x2188}, {0x24b6, 0x24e9}, {0x25cc, 0x25cc}, {0x2c60, 0x2c7f},
    {0x3041, 0x3096}, {0x309d, 0x309f}, {0x30a1, 0x30fa}, {0x30fc, 0x30ff}, {0xfb00, 0xfb06}, {0xff21, 0xff3a},
    {0xff41, 0xff5a}, {0xff66, 0xff9f},
};
static const uint16_t moses_numbers[][2] = {
    {0x30, 0x39},     {0xb2, 0xb3},     {0xb9, 0xb9},     {0xbc, 0xbe},     {0x2070, 0x2070},
    {0x2074, 0x2079}, {0x2080, 0x2089}, {0x2150, 0x2182}, {0x2185, 0x2189}, {0x2460, 0x249b},
    {0x24ea, 0x24ff}, {0x2776, 0x2793}, {0x2cfd, 0x2cfd}, {0x3192, 0x3195}, {0xff10, 0xff19},
};

static inline bool moses_in(uint32_t c, const uint16_t (*ranges)[2], int count) {
    int low = 0, high = count;  // the first range that ends at c or behind it is in [low, high]
    while (low < high) {
        const int middle = (low + high) / 2;
        if (ranges[middle][1] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && ranges[low][0] <= c;
}

static bool moses_letter(uint32_t c) {
    return moses_in(c, moses_letters, sizeof moses_letters / sizeof *moses_letters);
}
static bool moses_number(uint32_t c) {
    return moses_in(c, moses_numbers, sizeof moses_numbers / sizeof *moses_numbers);
}
static bool moses_not_letter(uint32_t c) { return !moses_letter(c); }
static bool moses_not_number(uint32_t c) { return !moses_number(c); }
static bool moses_neither(uint32_t c) { return !moses_letter(c) && !moses_number(c); }
static bool moses_s(uint32_t c) { return c == 's'; }

static inline bool moses_alphanumeric(uint32_t c) {
    return moses_letter(c) || symbol_is_digit(c) || (c >= 0xff10 && c <= 0xff19);
}

static inline bool moses_small(uint32_t c) {
    return (c >= 'a' && c <= 'z') || c == 0xaa || c == 0xb5 || c == 0xba || (c >= 0xdf && c <= 0xff && c != 0xf7) ||
           (c >= 0x3ac && c <= 0x3ce) || (c >= 0x430 && c <= 0x45f);
}

/* ---- steps ---- each reads text and writes next, which then takes its place */

typedef struct {
    Symbols text, next;
} Moses;

static inline void moses_free(Moses *m) {
    symbols_free(&m->text);
    symbols_free(&m->next);
}

static inline void moses_step(Moses *m) {
    const Symbols t = m->text;
    m->text = m->next;
    m->next = t;
    m->next.n = 0;
}

static inline void moses_spaced(Moses *m, uint32_t c) {
    const uint32_t three[] = {' ', c, ' '};
    symbols_append(&m->next, three, 3);
}

/* One space for each run of white space, none at both ends; no control characters. */
static inline void moses_clean(Moses *m) {
    for (size_t i = 0; i < m->text.n; i++) {
        const uint32_t c = m->text.s[i];
        if (symbol_is_space(c)) {
            if (m->next.n && m->next.s[m->next.n - 1] != ' ') symbols_push(&m->next, ' ');
        } else if (c >= ' ') {
            symbols_push(&m->next, c);
        }
    }
    if (m->next.n && m->next.s[m->next.n - 1] == ' ') m->next.n--;
    moses_step(m);
}

/* Spaces around all but letters, digits and . ' ` , - */
static inline void moses_split_symbols(Moses *m) {
    for (size_t i = 0; i < m->text.n; i++) {
        const uint32_t c = m->text.s[i];
        if (moses_alphanumeric(c) || c == ' ' || (c < 0x80 && c && strchr(".'`,-", (int)c)))
            symbols_push(&m->next, c);
        else
            moses_spaced(m, c);
    }
    moses_step(m);
}

/* A run of k > 1 full stops becomes the word DOT...DOTMULTI, which the last step turns back. */
static inline void moses_hide_dots(Moses *m) {
    for (size_t i = 0, k; i < m->text.n; i += k) {
        for (k = 0; i + k < m->text.n && m->text.s[i + k] == '.';) k++;
        if (k < 2) {
            symbols_push(&m->next, m->text.s[i]);
            k = 1;
            continue;
        }
        symbols_push(&m->next, ' ');
        for (size_t j = 0; j < k; j++) symbols_append_ascii(&m->next, "DOT");
        symbols_append_ascii(&m->next, "MULTI");
        if (i + k < m->text.n) symbols_push(&m->next, ' ');
    }
    moses_step(m);
}

static inline void moses_show_dots(Moses *m) {
    for (size_t i = 0; i < m->text.n;) {
        size_t k = 0;
        while (symbols_have(m->text.s, m->text.n, i + 3 * k, "DOT")) k++;
        if (k && symbols_have(m->text.s, m->text.n, i + 3 * k, "MULTI")) {
            i += 3 * k + strlen("MULTI");
            while (k--) symbols_push(&m->next, '.');
        } else {
            symbols_push(&m->next, m->text.s[i++]);
        }
    }
    moses_step(m);
}

typedef bool (*MosesClass)(uint32_t);

/* A space before `mark`, and behind it if `behind`, wherever it stands between characters of two classes; NULL: any, or
 * none. As with a regular expression, matches do not overlap. */
static inline void moses_split(Moses *m, MosesClass before, uint32_t mark, MosesClass after, bool behind) {
    const size_t length = 1 + (before != NULL) + (after != NULL);
    const Symbols *t = &m->text;
    for (size_t i = 0; i < t->n;) {
        const uint32_t *c = t->s + i;
        const bool match = i + length <= t->n && (!before || before(c[0])) && c[before != NULL] == mark &&
                           (!after || after(c[length - 1]));
        if (!match || before) symbols_push(&m->next, c[0]);
        if (match) symbols_push(&m->next, ' '), symbols_push(&m->next, mark);
        if (match && behind) symbols_push(&m->next, ' ');
        if (match && after) symbols_push(&m->next, c[length - 1]);
        i += match ? length : 1;
    }
    moses_step(m);
}

/* ---- full stops ---- */

static inline bool moses_is_word(const uint32_t *s, size_t n, const char *list) {
    char word[16] = " ";
    if (n == 0 || n > sizeof word - 3) return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] <= ' ' || s[i] >= 0x7f) return false;
        word[1 + i] = (char)s[i];
    }
    word[1 + n] = ' ';
    word[2 + n] = 0;
    return strstr(list, word) != NULL;
}

/* Moses's abbreviations that keep their full stop; single capitals too, and three only before a number. */
#define MOSES_ABBREVIATIONS                                                                                          \
    " Adj Adm Adv Asst Bart Bldg Brig Bros Capt Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov Hon Hr Hosp Insp " \
    "Lt "                                                                                                            \
    "MM MR MRS MS Maj Messrs Mlle Mme Mr Mrs Ms Msgr Op Ord Pfc Ph Prof Pvt Rep Reps Res Rev Rt Sen Sens Sfc Sgt "   \
    "Sr "                                                                                                            \
    "St Supt Surg v vs i.e rev e.g Rs Nos Nr Jan Feb Mar Apr Jun Jul Aug Sep Oct Nov Dec "

/* Whether word s[0, n), without its last full stop, keeps it; `next` is the character after the space behind, 0: none. */
static inline bool moses_keeps_stop(const uint32_t *s, size_t n, uint32_t next) {
    bool stop = false, letter = false;
    for (size_t i = 0; i < n; i++) {
        stop |= s[i] == '.';
        letter |= moses_letter(s[i]);
    }
    if ((stop && letter) || (n == 1 && s[0] >= 'A' && s[0] <= 'Z') || moses_small(next)) return true;
    return moses_is_word(s, n, MOSES_ABBREVIATIONS) || (moses_is_word(s, n, " No Art pp ") && symbol_is_digit(next));
}

/* Splits the full stop off the end of each word that does not keep it. */
static inline void moses_split_stops(Moses *m) {
    const Symbols *t = &m->text;
    for (size_t i = 0, end; i < t->n; i = end) {
        while (i < t->n && t->s[i] == ' ') i++;
        for (end = i; end < t->n && t->s[end] != ' ';) end++;
        size_t next = end;
        while (next < t->n && t->s[next] == ' ') next++;
        const bool stop = end > i + 1 && t->s[end - 1] == '.';
        const bool split = stop && !moses_keeps_stop(t->s + i, end - i - 1, next < t->n ? t->s[next] : 0);
        if (m->next.n && end > i) symbols_push(&m->next, ' ');
        symbols_append(&m->next, t->s + i, end - i - split);
        if (split) symbols_append_ascii(&m->next, " .");
    }
    moses_step(m);
}

/* ---- the whole ---- */

/* Characters that mean something in XML, or to Moses. */
static inline void moses_escape(Moses *m) {
    static const struct {
        char c;
        const char *text;
    } escapes[] = {{'&', "&amp;"},   {'|', "&#124;"}, {'<', "&lt;"},  {'>', "&gt;"},
                   {'\'', "&apos;"}, {'"', "&quot;"}, {'[', "&#91;"}, {']', "&#93;"}};
    for (size_t i = 0; i < m->text.n; i++) {
        const uint32_t c = m->text.s[i];
        size_t k = 0;
        while (k < sizeof escapes / sizeof *escapes && c != (uint32_t)escapes[k].c) k++;
        if (k < sizeof escapes / sizeof *escapes)
            symbols_append_ascii(&m->next, escapes[k].text);
        else
            symbols_push(&m->next, c);
    }
    moses_step(m);
}

/* Leaves in m->text the tokens of a text, with white space between them. */
static inline void moses_tokenize(Moses *m, const uint32_t *s, size_t n) {
    m->text.n = m->next.n = 0;
    symbols_append(&m->text, s, n);
    moses_clean(m);
    moses_split_symbols(m);
    moses_hide_dots(m);
    moses_split(m, moses_not_number, ',', NULL, true);
    moses_split(m, NULL, ',', moses_not_number, true);
    if (m->text.n > 1 && m->text.s[m->text.n - 1] == ',' && moses_number(m->text.s[m->text.n - 2])) {
        m->text.s[m->text.n - 1] = ' ';
        symbols_push(&m->text, ',');
    }
    moses_split(m, moses_not_letter, '\'', moses_not_letter, true);
    moses_split(m, moses_neither, '\'', moses_letter, true);
    moses_split(m, moses_letter, '\'', moses_not_letter, true);
    moses_split(m, moses_letter, '\'', moses_letter, false);
    moses_split(m, moses_number, '\'', moses_s, false);
    moses_split_stops(m);
    if (m->text.n > 1 && m->text.s[m->text.n - 1] == '\'' && m->text.s[m->text.n - 2] == '.') {
        m->text.n -= 2;
        symbols_append_ascii(&m->text, " . '");
    }
    moses_show_dots(m);
    moses_escape(m);
}

#endif
